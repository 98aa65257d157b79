"""A simulated run: life after life, until it has ended for good.

A life is what one process does with the run. In the first one it begins; in each later one it is
resumed with what the store kept, until it has succeeded, or has failed where nothing went wrong.

Invariants:
- A run depends on its plan and on the program alone: on no wall clock, no hash and no earlier run.
- Each life is judged before the next begins, so that a violation names the life that made it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sys
import traceback
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, final

import anyio
from anyio.lowlevel import cancel_shielded_checkpoint

from shoal._engine.injection import INJECTION
from shoal._engine.run import Run
from shoal._errors.exceptions import BadUse, ShoalError, brief
from shoal._events.events import Event, Question
from shoal._events.hooks import Hook
from shoal._graph.act import Act
from shoal._graph.action import FunctionAction
from shoal._limits.retry import Retry
from shoal._runtime.application import Application
from shoal._runtime.result import RunResult
from shoal._runtime.runtime import Runtime
from shoal._state.secrets import reveal
from shoal._state.state import Change, State
from shoal.stores._memory import MemoryStore
from shoal.stores._protocol import NullStore, Store
from shoal.testing._clock import jump_of_this_loop, run_virtual
from shoal.testing._deadlock import VirtualDeadlock
from shoal.testing._faults import CANCELS, STEP, Backend, Fault, Passes, Plan
from shoal.testing._faulty_acts import FaultyActs
from shoal.testing._faulty_hooks import FaultyHook
from shoal.testing._faulty_store import FaultyStore, like
from shoal.testing._invariants import (
    Seen,
    done_in,
    is_explained,
    judge_finality,
    judge_life,
    leaves,
    look,
    may_fail_for_good,
    short,
)
from shoal.testing._leaks import Census, LeakError, judge
from shoal.testing._recording import RecordingHook
from shoal.testing._steps import steps_of_this_loop
from shoal.testing._violation import Violation

RUN_ID = "simulated"
MOST_LIVES = 20
MOST_HALTS = 100
PATIENCE = 1e6
"""Virtual seconds after which a run that hangs, because that was injected, is cancelled: twelve
days, behind any timeout that a program may have."""

_HANGS = frozenset({"hangs", "in-doubt", "unknown"})
_NOWHERE = NullStore()
_REASON = "shoal.testing.simulate"
Status = Literal["succeeded", "failed", "cancelled", "killed", "halted"]


@final
@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is simulated: the arguments of `simulate` that say what runs."""

    app: Application[Any] | Callable[[], Application[Any]]
    changed: Application[Any] | Callable[[], Application[Any]] | None
    state: Any
    inputs: Mapping[str, object] | Callable[[], Mapping[str, object]] | None
    answers: Mapping[str, object] | Callable[[Question], object] | None
    runtime: Callable[[], Runtime] | None
    raises: Mapping[str, Callable[[], Exception]]
    durable: bool | None
    debug: bool

    @property
    def starts_changed(self) -> bool:
        """Whether the changed application, too, begins a run with the state that is given."""
        try:
            self.application(is_changed=True)._check.refuse_start("simulate", self.given_state())
        except ShoalError:
            return False
        return True

    @property
    def is_kept(self) -> bool | None:
        """Whether runs are kept; None: if the application has a store."""
        return True if self.changed is not None else self.durable

    def application(self, *, is_changed: bool = False) -> Application[Any]:
        """Return the application, as a new process would have it."""
        given: object = self.changed if is_changed else self.app
        app = given() if callable(given) and not isinstance(given, Act) else given
        if not isinstance(app, Application):
            where = "simulate(changed=...)" if is_changed else "simulate()"
            mended = f": Application({app.name})" if isinstance(app, Act) else ""
            msg = (
                f"{where} takes an Application, or a function that makes one; not "
                f"{brief(app)}{mended}"
            )
            raise BadUse(msg)
        return app

    def given_state(self) -> Any:
        """Return the state that the run starts with."""
        return self.state() if callable(self.state) else self.state

    def given_secrets(self, names: Collection[str]) -> State[Any] | None:
        """Return the secret fields of that state alone, which resume a run; None if it has none."""
        if not names:
            return None
        fields = self.application()._check._declared(self.given_state(), "simulate")
        return State({name: reveal(fields[name]) for name in names}, secret=names)

    def given_inputs(self) -> Mapping[str, object]:
        """Return the inputs of a run: the same in all of its lives."""
        given = self.inputs() if callable(self.inputs) else self.inputs
        return {} if given is None else given

    def answer(self, question: Question) -> object:
        """Return the answer to a question."""
        answers = self.answers
        return answers(question) if callable(answers) else (answers or {})[question.name]


@final
@dataclass(kw_only=True)
class Life:
    """What one process did with a simulated run."""

    number: int
    faults: Sequence[Fault]
    """What went wrong in it, in order."""
    status: Status
    """``"killed"`` if its process died."""
    error: BaseException | None
    """What the run failed with."""
    events: Sequence[Event]
    """What hooks received, in order."""
    seconds: float
    """How long it took, on the virtual clock."""
    is_changed: bool = False
    """Whether it executed the application that ``changed=`` has given."""
    called: Mapping[str, int] = field(default_factory=dict[str, int])
    """How often each action was called."""
    passed: Mapping[str, int] = field(default_factory=dict[str, int], repr=False)
    """How often each place was passed at which something can go wrong."""


@final
@dataclass(kw_only=True)
class SimulatedRun:
    """A run that `simulate` has executed, as ``check=`` receives it."""

    plan: Plan
    """What was to happen: ``str(plan)`` replays it."""
    inputs: Mapping[str, Any]
    """The inputs of this run, which all of its lives shared: the fakes that it has talked to."""
    lives: list[Life]
    """What became of it, process by process."""
    result: RunResult[Any] | None = None
    """The result; None if it failed."""
    stores: Sequence[MemoryStore] = ()
    """What is kept of it: the application's store, then those of fan-outs; none without a store."""

    @property
    def backend(self) -> Backend:
        """The event loop: "asyncio" or "trio"."""
        return self.plan.backend

    @property
    def faults(self) -> Sequence[Fault]:
        """All that went wrong, in order."""
        return [fault for life in self.lives for fault in life.faults]

    @property
    def state(self) -> State[Any]:
        """The final state.

        Raises:
            BadUse: The run has none, because it failed.
        """
        if self.result is None:
            msg = "this run failed, and has no final state: look at its `error` first"
            raise BadUse(msg)
        return self.result.state

    @property
    def error(self) -> BaseException | None:
        """What it failed with in the end; None if it didn't fail."""
        return self.lives[-1].error if self.lives else None

    @property
    def events(self) -> Sequence[Event]:
        """What hooks received in all lives, in order."""
        return [event for life in self.lives for event in life.events]

    @property
    def seconds(self) -> float:
        """How long it took in all, on the virtual clock."""
        return sum(life.seconds for life in self.lives)

    @property
    def was_killed(self) -> bool:
        """Whether its process died at least once."""
        return any(life.status == "killed" for life in self.lives)


@final
class Player:
    """Plays one plan. It is the `Injection` of the runtimes that are opened meanwhile."""

    def __init__(
        self, subject: Subject, plan: Plan, *, counting: bool = False, is_kept: bool = False
    ) -> None:
        """Play nothing yet.

        Args:
            subject: What runs.
            plan: What goes wrong.
            counting: Whether to count the steps of the event loop, which costs time.
            is_kept: Whether a store keeps the run, which then has to succeed.
        """
        self._is_kept = is_kept
        self._subject = subject
        self._plan = plan
        self._counting = counting
        self._kept: list[MemoryStore] = []
        self._given: list[Store] = []
        self._app: Application[Any] | None = None
        self._fronts: list[FaultyStore] = []
        self._passes = Passes()
        self._recorder = RecordingHook()
        self._acts: FaultyActs
        self._seen: Mapping[str, Seen] = {}
        self._is_changed = False  # whether the present life executes the changed application
        self.run: SimulatedRun = SimulatedRun(plan=plan, inputs={}, lives=[])

    # -- the port: see ``Injection`` -------------------------------------------------------------

    @property
    def seed(self) -> int | None:
        """Repeatable delays of retries."""
        return self._plan.order or 0

    @property
    def debug(self) -> bool:
        """Whether values that are changed in place are looked for."""
        return self._subject.debug

    def call(
        self,
        run: Run,
        action: FunctionAction[..., object],
        call: Callable[[], Awaitable[Change]],
        context: object,
    ) -> Awaitable[Change]:
        """Make a call, which may go wrong."""
        del context
        return self._acts.call(run, action, call)

    def is_for(self, run: Run, retry: Retry, error: Exception) -> bool:
        """Return whether a failure is tried again: as outside of a simulation."""
        del run
        return retry.is_for(error)

    def store(self, given: Store) -> Store:
        """Return the store in memory that stands for ``given``."""
        if isinstance(given, FaultyStore):
            return given
        if isinstance(given, NullStore):
            if not self._subject.is_kept:
                return given
            given = _NOWHERE  # each runtime has a NullStore of its own
        if self._subject.is_kept is False:
            return NullStore()
        place = next((at for at, one in enumerate(self._given) if one is given), None)
        if place is None:
            place = len(self._given)
            self._given.append(given)
            if place == len(self._kept):
                self._kept.append(like(given))
            self._fronts.append(FaultyStore(self._kept[place], self._passes))
        return self._fronts[place]

    def hooks(self) -> Sequence[Hook]:
        """Return the hook that keeps all events, and the one that fails."""
        return (self._recorder, FaultyHook(self._passes))

    # -- playing ---------------------------------------------------------------------------------

    def play(self, check: Callable[[SimulatedRun], object] | None = None) -> SimulatedRun:
        """Play the plan, and judge it.

        Raises:
            Violation: Something that must hold did not.
            BaseException: The ``check`` raised it, or it was a Ctrl-C.
        """
        chance = random.getstate()
        random.seed(self._plan.order or 0)
        order = self._plan.order
        if order is None and self._plan.backend == "trio":
            order = 0  # it has no order of its own
        # What is injected is logged as what it would be, each time with its traceback: nobody reads
        # that, and it takes as long as the run.
        quiet = logging.getLogger("shoal")
        level = quiet.level
        quiet.setLevel(logging.CRITICAL + 1)
        try:
            run_virtual(self._play, check, backend=self._plan.backend, seed=order)
        except VirtualDeadlock as error:
            raise Violation("hangs", f"it hangs: {error}") from None
        except BaseExceptionGroup as errors:
            found = _deadlock_in(errors)
            if found is None:
                raise
            raise Violation("hangs", f"it hangs: {found}") from None
        finally:
            random.setstate(chance)
            quiet.setLevel(level)
        return self.run

    async def _play(self, check: Callable[[SimulatedRun], object] | None) -> None:
        await cancel_shielded_checkpoint()  # trio's own tasks begin, so that they are not new later
        INJECTION.set(self)
        self.run.inputs = self._subject.given_inputs()
        await self._live_all()
        self.run.stores = [kept.copy() for kept in self._kept]
        if check is not None and self.run.result is not None:
            await _checked(check, self.run)
        if self.run.result is not None and self.run.result.status == "succeeded" and self._kept:
            await self._live_again()

    async def _live_all(self) -> None:
        lives, answers = self.run.lives, None
        halts = 0
        while True:
            life = await self._live(len(lives) + 1, self._plan.faults, answers)
            answers = None
            lives.append(life)
            self._judge(life)
            if life.status == "halted":
                assert self.run.result is not None
                questions = self.run.result.questions
                halts += 1
                if not questions or self._subject.answers is None or halts > MOST_HALTS:
                    return
                answers = {one.address: self._subject.answer(one) for one in questions}
            elif life.status == "succeeded" or not self._is_kept:
                return
            elif life.status == "failed" and not life.faults:
                assert life.error is not None
                if not may_fail_for_good(life.error):
                    raise Violation(
                        "fails for good",
                        f"resumed where nothing goes wrong, it fails with {short(life.error)}",
                    ) from life.error
                return
            if len(lives) - halts > MOST_LIVES:
                ends = ", ".join(f"{one.status}" for one in lives)
                raise Violation("no end", f"it comes to no end in {len(lives)} lives: {ends}")

    def _judge(self, life: Life) -> None:
        if life.error is not None and not is_explained(life.error, self._fired):
            raise Violation(
                "fails",
                f"it fails with {short(life.error)}, and no fault that was injected explains that",
            ) from life.error

    @property
    def _fired(self) -> list[Fault]:
        return [fault for life in self.run.lives for fault in life.faults]

    async def _live_again(self) -> None:
        """Run once more what has succeeded: nothing is executed, and the result is the same."""
        before = self.run.result
        number = len(self.run.lives) + 1
        life = await self._live(number, (), None)
        judge_finality(life.status, life.called, before, self.run.result)
        self.run.result = before

    async def _live(
        self, number: int, faults: Collection[Fault], answers: Mapping[Any, object] | None
    ) -> Life:
        """Be a process: run the application, or resume it."""
        passes = self._passes = Passes(fault for fault in faults if fault.life == number)
        if number > 1:
            self._kept = [kept.copy() for kept in self._kept]
        before, self._recorder = self._seen, RecordingHook()
        begun = before.get(RUN_ID)
        is_known = begun is not None and begun.beginning is not None
        subject = self._subject
        self._is_changed = number > 1 and subject.changed is not None
        if self._is_changed and not is_known:
            # Nothing was kept of it, so it begins now.
            self._is_changed = subject.starts_changed
        app = subject.application(is_changed=self._is_changed)
        if app is not self._app:  # other objects stand for its stores, in the same order
            self._app, self._given = app, []
        self._fronts = [FaultyStore(kept, passes) for kept in self._kept[: len(self._given)]]
        self._acts = FaultyActs(passes, self._subject.raises, app.limits, done_in(before))
        began_at = anyio.current_time()
        status, error = await self._end_of(app, passes, answers)
        if passes.has_died:
            status = "killed"
        life = Life(
            number=number,
            faults=tuple(passes.fired),
            status=status,
            error=None if status == "killed" else error,
            events=tuple(self._recorder.events),
            seconds=anyio.current_time() - began_at,
            is_changed=self._is_changed,
            called=dict(self._acts.called),
            passed=dict(passes.counts),
        )
        self._seen = look(self._kept)
        violations = [*self._acts.violations]
        violations += judge_life(
            life, before, self._seen,
            stores=self._fronts, again=self._acts.again, result=self.run.result,
        )  # fmt: skip
        if violations:
            self.run.lives.append(life)
            raise violations[0]
        return life

    async def _end_of(
        self, app: Application[Any], passes: Passes, answers: Mapping[Any, object] | None
    ) -> tuple[Status, BaseException | None]:
        """Run the application to its end, or to where the plan ends it, and look for leaks."""
        census = Census(threads=True, descriptors=True)
        self.run.result = None
        error: BaseException | None = None
        cancelled = False
        try:
            cancelled = await self._cancellable(app, passes, answers)
        except Exception as raised:  # noqa: BLE001 # judged by the caller
            error = raised
        try:
            await self._look_for_leaks(census, error)
        except LeakError as leak:
            self._note_life(passes, error)
            raise Violation("leak", str(leak)) from None
        deadlock = _deadlock_in(error)
        if deadlock is not None:
            self._note_life(passes, error)
            raise Violation("hangs", f"it hangs: {deadlock}") from None
        if error is not None:
            return "failed", error
        if cancelled or self.run.result is None:
            return "cancelled", None
        return self.run.result.status, None

    async def _look_for_leaks(self, census: Census, error: BaseException | None) -> None:
        if error is None:
            await judge(census, inside="the run")
            return
        try:
            await judge(census, inside="the run")
        except LeakError:
            # The frames of its traceback may hold what seems left.
            traceback.clear_frames(error.__traceback__)
            error.__traceback__ = None
            await judge(census, inside="the run")

    def _note_life(self, passes: Passes, error: BaseException | None) -> None:
        """Enter a life that comes to no judgement, for the report."""
        number = len(self.run.lives) + 1
        life = Life(
            number=number, faults=tuple(passes.fired), status="failed", error=error,
            events=tuple(self._recorder.events), seconds=0.0, is_changed=self._is_changed,
        )  # fmt: skip
        self.run.lives.append(life)

    async def _cancellable(
        self, app: Application[Any], passes: Passes, answers: Mapping[Any, object] | None
    ) -> bool:
        """Run it, and cancel it or let the clock jump where the plan says so.

        Returns whether it was cancelled.
        """
        jump, cancels = jump_of_this_loop(), dict[str, Callable[[], object]]()

        def arrive() -> None:
            fault = passes.at(STEP)
            if fault is None:
                return
            if fault.what in CANCELS:
                cancels.get(fault.what, cancels["cancelled"])()
            else:
                jump(fault.seconds)

        async def live() -> bool:
            with anyio.CancelScope() as scope:
                if any(fault.what in _HANGS for fault in self._plan.faults):
                    scope.deadline = anyio.current_time() + PATIENCE
                cancels["cancelled"] = lambda: scope.cancel(_REASON)
                await self._run(app, answers)
            return scope.cancelled_caught

        watches = self._counting or passes.expects(STEP)
        steps = steps_of_this_loop(arrive, reason=_REASON) if watches else nullcontext()
        if not passes.expects(STEP, "cancelled-natively") or self._plan.backend == "trio":
            with steps:
                return await live()
        cancels["cancelled"] = lambda: None  # until it begins
        with steps:
            task = asyncio.create_task(live(), name="simulated")
            cancels["cancelled-natively"] = task.cancel
            await asyncio.wait([task])
        return task.cancelled() or task.result()

    async def _run(self, app: Application[Any], answers: Mapping[Any, object] | None) -> None:
        state, make = self._given_state(), self._subject.runtime
        inputs = self.run.inputs
        if make is None:
            self.run.result = await app.run(state, id=RUN_ID, inputs=inputs, answers=answers)
            return
        async with make() as runtime:
            self.run.result = await runtime.run(
                app, state, id=RUN_ID, inputs=inputs, answers=answers
            )

    def _given_state(self) -> Any:
        """Return what the present process gives as the state.

        A changed application may have another model of it, which would be another start. So it
        leaves the state to the store, as ``Runtime.recover`` does, but for what is saved nowhere.
        """
        known = self._seen.get(RUN_ID)
        # An application that names no store, and is kept all the same, can't leave anything to it.
        names_store = self._app is not None and self._app.store is not None
        if not self._is_changed or known is None or known.beginning is None or not names_store:
            return self._subject.given_state()
        return self._subject.given_secrets(known.beginning.secret)


async def _checked(check: Callable[[SimulatedRun], object], run: SimulatedRun) -> None:
    try:
        pending = check(run)
        if isinstance(pending, Awaitable):
            await pending
    except Exception as error:
        raise Violation("check", f"{type(error).__name__}: {error}".rstrip(": ")) from error


def _deadlock_in(error: BaseException | None) -> VirtualDeadlock | None:
    found = () if error is None else leaves(error)
    return next((one for one in found if isinstance(one, VirtualDeadlock)), None)


def installed(backend: Backend) -> bool:
    """Return whether the library of a backend can be imported."""
    if backend == "asyncio" or "trio" in sys.modules:
        return True
    from importlib.util import find_spec  # noqa: PLC0415 # rarely needed

    return find_spec("trio") is not None
