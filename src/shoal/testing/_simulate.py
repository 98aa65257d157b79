"""`simulate`: a user's application, run many times in virtual time, with everything going wrong."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace as with_other
from typing import Any, Literal, final

from shoal._errors.exceptions import BadUse, did_you_mean
from shoal._events.events import Question
from shoal._graph.graph import Graph
from shoal._runtime.application import Application
from shoal._runtime.runtime import Runtime
from shoal._state.state import State
from shoal.testing._comparison import Comparison, actions_below
from shoal.testing._coverage import Coverage
from shoal.testing._faults import (
    OF_ACTIONS,
    OF_HOOKS,
    OF_READS,
    OF_SAVES,
    OF_STEPS,
    SAVE,
    Backend,
    Fault,
    Plan,
    plan_of,
)
from shoal.testing._lives import Life, Player, SimulatedRun, Subject, installed
from shoal.testing._planning import Agenda, simpler
from shoal.testing._shrinking import shrink
from shoal.testing._story import story
from shoal.testing._violation import Violation

REPLAY = "SHOAL_REPLAY"
"""The environment variable that is the default of ``replay=``."""
SEEDS = "SHOAL_SIMULATE_SEEDS"
"""The environment variable that goes before ``seeds=``: a nightly run tries more."""

KINDS = {*OF_ACTIONS, *OF_SAVES, *OF_READS, *OF_HOOKS, *OF_STEPS}
_TRIES = 150  # to make a failure smaller


@final
class SimulationFailed(AssertionError):
    """A simulated run has done what it must not.

    The message tells what was broken, what had gone wrong before, life by life, and how to repeat
    exactly that.

    Attributes:
        kind: what was broken, in a few words.
        replay: the text for ``simulate(..., replay=...)``.
        run: the run that failed, as far as it came.
    """

    def __init__(self, message: str, kind: str, replay: str, run: SimulatedRun) -> None:
        self.kind = kind
        self.replay = replay
        self.run = run
        super().__init__(message)


@final
class Simulation:
    """What `simulate` has tried. Printed, it is a table.

    Attributes:
        runs: how many runs were executed.
        seconds: the real seconds that it took.
    """

    def __init__(self, name: str, coverage: Coverage, seconds: float, why_not: str) -> None:
        self._name = name
        self._coverage = coverage
        self._why_not = why_not
        self.runs: int = sum(coverage.runs.values())
        self.seconds = seconds

    def times(self, place: str, what: str) -> int:
        """Return how often a fault has happened at a place: ``times("action.fetch", "raises")``."""
        return self._coverage.times(place, what)

    def __str__(self) -> str:
        runs = ", ".join(
            f"{count} on {name}" for name, count in sorted(self._coverage.runs.items())
        )
        ends = ", ".join(f"{n} {end}" for end, n in sorted(self._coverage.ends.items()))
        same = f"\nfinal states were not compared: {self._why_not}" if self._why_not else ""
        return (
            f"simulated {self._name!r}: {self.runs} runs ({runs}) in {self.seconds:.1f} s\n"
            f"executions that ended: {ends}{same}\n\n{self._coverage}"
        )


def simulate(
    app: Application[Any] | Callable[[], Application[Any]],
    state: Mapping[str, Any] | object | None = None,
    *,
    changed: Application[Any] | Callable[[], Application[Any]] | None = None,
    inputs: Mapping[str, object] | Callable[[], Mapping[str, object]] | None = None,
    answers: Mapping[str, object] | Callable[[Question], object] | None = None,
    check: Callable[[SimulatedRun], object] | None = None,
    same: Callable[[State[Any]], object] | bool | None = None,
    seeds: int | range = 100,
    seconds: float | None = None,
    faults: Collection[str] | None = None,
    raises: Mapping[str, Callable[[], Exception]] | None = None,
    durable: bool | None = None,
    debug: bool = True,
    runtime: Callable[[], Runtime] | None = None,
    backends: Collection[Literal["asyncio", "trio"]] | None = None,
    replay: str | None = None,
) -> Simulation:
    """Run an application many times in virtual time, while everything goes wrong that can.

    Each run has an order of ready tasks and faults of its own, which its number decides. Actions
    raise, lose their answers, answer late or never; the store fails, is slow, or leaves in doubt
    what was saved; a guarding hook fails; the clock jumps; the run is cancelled at a step of the
    event loop; its process dies before or after a save. A run that ended early is resumed with
    what the store kept, until it has succeeded.

    The invariants are checked after each execution: the history has no gaps, and what hooks were
    told is in it; events come in pairs; a child has one end, and what is done is not done again; no
    limit is exceeded; nothing is left running; no cancellation is swallowed; a run fails only with
    what went wrong; it never hangs. In the end its state must be that of an undisturbed run, and
    running it again must execute nothing. ``check`` says what else must hold.


    >>> @action(reads=["order"], writes=["receipt"])
    ... async def sell(order: str, bank: list[str]) -> str:
    ...     bank.append(order)
    ...     return f"receipt for {order}"
    >>> sales = fan_out(sell, over="orders", item="order", key=str, into="receipts")
    >>> def check(run: SimulatedRun) -> None:
    ...     assert sorted(run.inputs["bank"]) == ["a", "b"], run.inputs["bank"]
    >>> try:
    ...     simulate(
    ...         Application(sales, store=MemoryStore()),
    ...         {"orders": ["a", "b"]},
    ...         inputs=lambda: {"bank": []},
    ...         check=check,
    ...     )
    ... except SimulationFailed as failed:
    ...     print(failed.kind, sorted(failed.run.inputs["bank"]))
    check ['a', 'a', 'b']

    Nothing outside is touched: whatever store the application names, its runs are kept in memory.
    Plain functions are called on the event loop instead of in threads. Give fakes of clients as
    ``inputs``, made anew for each run by a function, and look at them in ``check``.

    A failure is made small, and told: which faults in which order, what broke, and the text that
    replays it. That text goes into ``replay=``, or into the environment variable ``SHOAL_REPLAY``.
    The order of a set of strings depends on the process, the wall clock on the world, so a program
    that uses them may replay otherwise.

    Args:
        app: The application; or a function that makes it, called by each simulated process.
        state: What it starts with, as for ``Application.run``; or a function that makes that.
        changed: The application as a later version has it; or a function that makes that. It
            resumes what ``app`` has begun: each process after the first executes it, as after a
            deployment. So nearly each run is ended early in its first process, and then meets
            faults at places of this one. It is held to the same invariants: done work stays
            done, the run succeeds, and comes to the same if an undisturbed run of each comes to
            the same. It resumes without a ``state``, as ``Application.recover`` does; a run of
            which nothing was kept begins with ``state``, by ``app`` if this one refuses that.
        inputs: The inputs; or a function that makes them, called for each run and not for each of
            its processes: the world outside outlives them.
        answers: The answers to questions, by name; or a function of a ``Question``. Without any, a
            run that asks has ended.
        check: Called with each `SimulatedRun` that has succeeded in the end, or is halted; raises
            if something is wrong. A coroutine function is awaited, on the same event loop.
        same: What must be the same in each run, as a function of the final state. By default the
            whole state, unless a race was decided, or children have ended otherwise than in the
            undisturbed run, as where failures are tolerated. True: the whole state in any case;
            False: nothing.
        seeds: How many runs; or which ones, ``range(100, 200)``, where several machines share the
            work. The variable ``SHOAL_SIMULATE_SEEDS`` goes before it.
        seconds: Real seconds after which no further run begins; None: as many as it takes.
        faults: The kinds of faults: "raises", "loses", "late", "hangs", "fails", "slow",
            "in-doubt", "unknown", "dies-before", "dies-after", "cancelled", "cancelled-natively",
            "jumps". None: all of them; empty: only the order of ready tasks differs.
        raises: What actions raise where that is injected, by their names. By default an
            `InjectedFault`, a ``ConnectionError``; where a ``Retry`` is for other exceptions, it is
            one of those too.
        durable: Whether runs are kept, and resumed; None: if the application has a store, or is
            ``changed``.
        debug: Whether actions are looked for that change values of the state in place.
        runtime: Makes the runtime of each execution; by default, each has one of its own.
        backends: "asyncio", "trio" or both; None: those that are installed.
        replay: The one run to execute, as a failure has printed it.

    Returns:
        What was tried. Print it: it is a table of actions, saves and steps, with the faults that
        each has met.

    Raises:
        SimulationFailed: A run did what it must not.
        BadUse: An argument means nothing.
    """
    __tracebackhide__ = True  # pytest shows the story, and no code of these functions
    wanted = _backends(backends)
    subject = Subject(
        app=app, changed=changed, state=state, inputs=inputs, answers=answers, runtime=runtime,
        raises=raises or {}, durable=durable, debug=debug,
    )  # fmt: skip
    if changed is not None and durable is False:
        raise BadUse("simulate(changed=...) resumes what is kept: leave durable=False away")
    for kind in faults or ():
        if kind not in KINDS:
            msg = f"simulate(faults=...): there is no fault {kind!r}{did_you_mean(kind, KINDS)}"
            raise BadUse(msg)
    example = subject.application()
    example._check.refuse_start("simulate", subject.given_state())
    replay = os.environ.get(REPLAY) or None if replay is None else replay
    numbers = _numbers(os.environ.get(SEEDS) or seeds)
    simulator = _Simulator(subject, check, same, example.graph)
    if changed is not None:  # refused before anything is executed
        simulator.coverage.expect_change(actions_below(subject.application(is_changed=True).graph))
    began = time.monotonic()
    simulator.undisturbed(wanted)
    if replay is not None:
        simulator.replay(plan_of(replay))
    else:
        agenda = Agenda(
            simulator.coverage.passed,
            faults,
            is_handed_over=changed is not None,
            halts=simulator.halts,
        )
        for number in numbers:
            if seconds is not None and time.monotonic() - began > seconds:
                break
            simulator.run(agenda.plan(number))
    took = time.monotonic() - began
    assert simulator.comparison is not None
    return Simulation(example.name, simulator.coverage, took, simulator.comparison.why_not)


def _numbers(given: object) -> range:
    """Return the numbers of the runs: of how many, also as text, or of a range."""
    if isinstance(given, str) and given.isdigit():
        given = int(given)
    if type(given) is int and given >= 0:
        return range(given)
    if isinstance(given, range) and (not given or min(given) >= 0):
        return given
    msg = f"simulate(seeds=...) takes a number of runs, or a range of numbers, not {given!r}"
    raise BadUse(msg)


def _backends(given: Collection[Literal["asyncio", "trio"]] | None) -> list[Backend]:
    known: list[Backend] = ["asyncio", "trio"]
    if given is None:
        return [one for one in known if installed(one)]
    if not given or not set(given) <= set(known):
        msg = f"simulate(backends=...) takes 'asyncio', 'trio' or both, not {given!r}"
        raise BadUse(msg)
    return [one for one in known if one in given]


@final
class _Simulator:
    """Plays plans, and reports the first that fails, made small."""

    def __init__(
        self,
        subject: Subject,
        check: Callable[[SimulatedRun], object] | None,
        same: Callable[[State[Any]], object] | bool | None,
        graph: Graph,
    ) -> None:
        self._subject = subject
        self._check = check
        self._same = same
        self._graph = graph
        self.coverage = Coverage(actions_below(graph))
        self.comparison: Comparison | None = None
        self.halts = False
        """Whether the undisturbed run waits for answers."""
        self._is_kept = False

    def undisturbed(self, backends: Collection[Backend]) -> None:
        """Run it without faults, to see what it comes to, and what can go wrong where."""
        __tracebackhide__ = True
        for backend in backends:
            first = with_other(self._subject, changed=None, durable=self._subject.is_kept)
            run = self._undisturbed(first, Plan(backend, None))
            self.halts = len(run.lives) > 1
            if self.comparison is None:
                comparison = Comparison(self._same, self._graph, run)
                if self._subject.changed is not None:
                    comparison.expect_change(self._changed(first, backend))
                self.comparison = comparison
            lives = run.lives
            if self._subject.changed is not None:
                lives = [lives[0], *self._resumed(backend)]
            self.coverage.passed[backend] = [life.passed for life in lives]
            self._count(run)
            self._is_kept = bool(run.stores)

    def _changed(self, first: Subject, backend: Backend) -> SimulatedRun | None:
        """Return the undisturbed run of the changed application; None if it can't begin it."""
        assert self._subject.changed is not None
        if not self._subject.starts_changed:
            return None
        try:
            changed = with_other(first, app=self._subject.changed)
            return self._undisturbed(changed, Plan(backend, None))
        except SimulationFailed as failed:
            failed.add_note("This was an undisturbed run of the application changed=.")
            raise

    def _resumed(self, backend: Backend) -> Sequence[Life]:
        """Return the lives of the changed application, if the first one has hardly begun."""
        __tracebackhide__ = True
        # Not the user's check: perhaps `faults=` excludes that a process dies.
        dies = Fault("dies-after", SAVE, 1)
        run = self._undisturbed(self._subject, Plan(backend, None, (dies,)), is_checked=False)
        return run.lives[1:]

    def _undisturbed(
        self, subject: Subject, plan: Plan, *, is_checked: bool = True
    ) -> SimulatedRun:
        __tracebackhide__ = True
        player = Player(subject, plan, counting=True, is_kept=bool(plan.faults))
        self._play(player, plan, is_checked=is_checked)
        if player.run.result is None:
            # Judged already: without faults, nothing explains a failure.
            raise BadUse("the undisturbed run was cancelled by itself")
        return player.run

    def run(self, plan: Plan) -> None:
        """Play one plan.

        Raises:
            SimulationFailed: It fails; what the smallest plan that fails in this way comes to.
        """
        __tracebackhide__ = True
        player = self._player(plan)
        self._play(player, plan, smaller=True)
        self._count(player.run)

    def replay(self, plan: Plan) -> None:
        """Play one plan as it is.

        Raises:
            SimulationFailed: It fails.
        """
        __tracebackhide__ = True
        player = self._player(plan)
        self._play(player, plan)
        self._count(player.run)

    def _player(self, plan: Plan) -> Player:
        return Player(self._subject, plan, is_kept=self._is_kept)

    def _play(
        self, player: Player, plan: Plan, *, smaller: bool = False, is_checked: bool = True
    ) -> None:
        __tracebackhide__ = True
        violation = self._violation(player, is_checked=is_checked)
        if violation is None:
            return
        failing, tries = player, 0
        if smaller:
            kind = violation.kind

            def fails(other: Plan) -> tuple[Player, Violation] | None:
                again = self._player(other)
                found = self._violation(again)
                return (again, found) if found is not None and found.kind == kind else None

            _, (failing, violation), tries = shrink(
                plan, (player, violation), simpler, fails, tries=_TRIES
            )
        raise SimulationFailed(
            story(violation, failing.run, first=plan, tries=tries, runs=self.coverage.runs.total()),
            violation.kind,
            str(failing.run.plan),
            failing.run,
        ) from _cause(violation)

    def _violation(self, player: Player, *, is_checked: bool = True) -> Violation | None:
        """Play, and return what is wrong; None if nothing is."""
        try:
            run = player.play(self._check if is_checked else None)
            if self.comparison is not None:
                self.comparison.judge(run)
        except Violation as violation:
            return violation
        return None

    def _count(self, run: SimulatedRun) -> None:
        if self.coverage.resumed is not None:
            self.coverage.resumed += any(life.is_changed for life in run.lives)
        for life in run.lives:
            self.coverage.add(run.backend, [life.status], life.called)
            for fault in life.faults:
                self.coverage.add_fault(run.backend, fault)
        self.coverage.runs[run.backend] -= len(run.lives) - 1


def _cause(violation: Violation) -> BaseException | None:
    return violation.__cause__
