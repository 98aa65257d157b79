"""Watch the root runs of a runtime: sample them, report about them, and take commands for them.

Invariants:
- Watching never delays a run. Samples are taken by a timer of the loop, in a bounded time; what a
  store takes longer for, or fails with, costs reports. Only the end of a run waits for its last
  report, at most ``LAST`` seconds.
- A run that ends before the first sample costs a timer, which all runs share.
- An error in watching is logged once, and no run notices it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import cast, final

from anyio import CancelScope, Event, move_on_after

from shoal._concurrency.backend import Clock
from shoal._concurrency.background import Work
from shoal._concurrency.cancellation import as_failure, ki_protected, shielded_wait
from shoal._engine.services import Services
from shoal._engine.standing import Marks, marks
from shoal._errors.exceptions import brief
from shoal._events.report import BreakerUse, BudgetUse, LimitUse, Report
from shoal._events.report_text import report_text
from shoal._limits.limiters import Limiter
from shoal._limits.timers import SetAlarm
from shoal.stores._protocol import NullStore, Store
from shoal.stores._watching import Command, KeepsReports

from .limit_use import (
    named_circuits,
    names_of_costs,
    owners_of,
    uses_in_flight,
    uses_of,
    uses_of_breakers,
    uses_of_budgets,
    uses_of_workers,
)
from .root_run import RootRun
from .tally import Tally

logger = logging.getLogger("shoal")

FIRST = 0.047
"""Seconds from one sample to the next in the first second of a run. Most short runs end before the
first one, and cost nothing.

No round number, as below: a program that does something every second, say, would be sampled in step
with it. See test_samples_are_not_in_step_with_a_program.
"""
YOUNG = 1.0
"""Seconds after which samples are less frequent: a run of a second has had twenty."""
EVERY = 0.237
"""Seconds from one sample to the next, later on, and from one report to the next: what a person
takes for "now"."""
SHARE = 25
"""The pause after samples is at least so many times as long as they took. So watching takes four
percent of the loop's time at most, however many runs there are."""
TURN = 0.01
"""Seconds after which no more runs are looked at in one turn of the loop: other tasks wait so long.
The others are looked at in the next turn, so each of very many runs is sampled less often."""
LAST = 1.0
"""Seconds that the end of a run waits until its last report is stored."""
PATIENCE = 5.0
"""Seconds without reports after a store has failed to take one."""

Listener = Callable[[RootRun, Report], None]
"""Receives each report about a root run, in the loop's thread and no task. It must not raise."""
CarryOut = Callable[[RootRun, Command], Awaitable[None]]
"""Carries out a command for a root run."""


@final
class _Watched:
    """A root run that is watched."""

    __slots__ = ("keeper", "next_at", "reported_at", "root", "tally")

    def __init__(self, root: RootRun, tally: Tally, keeper: ReportKeeper | None) -> None:
        self.root = root
        self.tally = tally
        self.keeper = keeper
        """Stores its reports; None: they stay in this process."""
        self.reported_at: float | None = None  # when the last report was made
        self.next_at: float = 0.0  # when the next sample is due


@final
class Watching:
    """Samples the root runs of a runtime that are watched."""

    def __init__(
        self,
        clock: Clock,
        alarm: SetAlarm,
        start: Callable[[Work], object],
        *,
        is_real: bool,
        deadline: float,
        limits: Callable[[], LimitsInUse],
        carry_out: CarryOut,
    ) -> None:
        """Watch nothing yet.

        Args:
            clock: The clock of the runtime.
            alarm: Calls a function at a time.
            start: Starts a task of the runtime's own.
            is_real: Whether the clock shows real time.
            deadline: Seconds that a store may take to store reports.
            limits: Returns the limits in use.
            carry_out: Carries out a command.
        """
        self._clock = clock
        self._alarm = alarm
        self._start = start
        self._is_real = is_real
        self._deadline = deadline
        self._limits = limits
        self._carry_out = carry_out
        self._marks: Marks | None = None  # looked up when the first run is watched
        self._watched: dict[RootRun, _Watched] = {}
        self._keepers: list[ReportKeeper] = []
        self._listeners: list[Listener] = []
        self._due = 0.0  # when the next sample is due, if a timer is set
        self._every = FIRST
        self._call_off: Callable[[], object] | None = None  # cancels the timer; None: none is set

    # -- which runs -----------------------------------------------------------------------------

    def begin(self, root: RootRun, wish: bool | None) -> None:
        """Watch a root run that begins, if its application or runtime wish that.

        Args:
            root: The run.
            wish: Whether to watch it; None: if other processes can read reports in its store.
        """
        store = root.store
        if not (self._is_watched(store) if wish is None else wish):
            return
        if self._marks is None:
            self._marks = marks()
        now = self._clock()
        keeper = self._keeper_of(store) if isinstance(store, KeepsReports) else None
        tally = Tally(root.path.id, now, self._marks)
        self._watched[root] = _Watched(root, tally, keeper)
        root.watch(partial(self._report, root), self._end)
        if self._call_off is None:
            self._sample_at(now + FIRST)
        elif self._every > FIRST and self._due > now + FIRST:
            self._stop_timer()
            self._sample_at(now + FIRST)

    def _is_watched(self, store: Store) -> bool:
        # First, because it is the most frequent one, and checking a protocol takes long.
        if type(store) is NullStore:
            return False
        # Under virtual time a timer that never ends would hide that nothing else can happen.
        return self._is_real and isinstance(store, KeepsReports) and store.is_shared

    def _keeper_of(self, store: KeepsReports) -> ReportKeeper:
        for keeper in self._keepers:
            if keeper.store is store:
                return keeper
        keeper = ReportKeeper(store, self._clock, self._start, self._take, self._deadline)
        self._keepers.append(keeper)
        return keeper

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` with each report from now on; return what ends that."""
        self._listeners.append(listener)
        return partial(self._unlisten, listener)

    def _unlisten(self, listener: Listener) -> None:
        with suppress(ValueError):  # it was removed before
            self._listeners.remove(listener)

    def close(self) -> None:
        """Stop: all runs have ended."""
        self._stop_timer()
        self._watched.clear()
        self._listeners.clear()
        for keeper in self._keepers:
            keeper.close()
        self._keepers.clear()

    # -- samples --------------------------------------------------------------------------------

    def _sample_at(self, due: float) -> None:
        self._due = due
        self._call_off = self._alarm(due, self._tick)

    def _stop_timer(self) -> None:
        call_off, self._call_off = self._call_off, None
        if call_off is not None:
            call_off()

    @ki_protected
    def _tick(self) -> None:
        """Take samples, and set the timer for the next ones."""
        self._call_off = None
        if not self._watched:
            return
        due, now = self._due, self._clock()
        self._look(due, now)
        is_young = any(now - root.started_at < YOUNG for root in self._watched)
        self._every = max(FIRST if is_young else EVERY, SHARE * (self._clock() - now))
        self._sample_at(now + self._every)

    def _look(self, due: float, now: float) -> None:
        """Take a sample of each run whose turn it is, and hand on the reports that are due."""
        in_use: LimitsInUse | None = None
        for root in list(self._watched):
            one = self._watched.get(root)
            if one is None or one.next_at > now + FIRST / 2:
                continue
            # To the end: if there are too many for one turn of the loop, the others come first.
            self._watched[root] = self._watched.pop(root)
            one.next_at = now + (FIRST if now - root.started_at < YOUNG else EVERY)
            try:
                in_use = self._limits() if in_use is None else in_use
                one.tally.add(root.run, root.parts(), now=now, due=due, limits=in_use.uses)
                # In the first second there are more samples than reports.
                is_due = one.reported_at is None or now - one.reported_at >= EVERY - FIRST / 2
                if self._listeners or (is_due and one.keeper is not None):
                    report = self._made(one, now, in_use)
                    if is_due:
                        one.reported_at = now
                        if one.keeper is not None:
                            one.keeper.offer(root.path.id, report_text(report))
                    self._tell(root, report)
            except Exception:  # noqa: BLE001 # logged: no run notices it
                self._give_up(one)
            if self._clock() - now > TURN:
                break

    def _made(
        self, one: _Watched, now: float, in_use: LimitsInUse | None = None, *, is_over: bool = False
    ) -> Report:
        found = self._limits() if in_use is None else in_use
        run = one.root.run
        groups = () if run is None or is_over else one.tally.groups
        uses = [*uses_in_flight(groups), *found.uses]
        costs: dict[str, float] = {}
        for part, cost in one.root.costs:
            name = found.names.get(id(part), repr(part))
            costs[name] = costs.get(name, 0.0) + cost
        return one.tally.report(
            now,
            self._every,
            limits=uses,
            breakers=found.breakers,
            budgets=found.budgets,
            owners=found.owners,
            costs=costs,
            spending=one.root.spending,
            copies=one.root.copies,
            is_over=is_over,
        )

    def _report(self, root: RootRun) -> Report | None:
        """Return a report of the last sample; None if there was none, or the run isn't watched."""
        one = self._watched.get(root)
        return None if one is None or not one.tally.samples else self._made(one, self._clock())

    def _tell(self, root: RootRun, report: Report) -> None:
        for listener in tuple(self._listeners):
            listener(root, report)

    def _give_up(self, one: _Watched) -> None:
        logger.exception(  # noqa: LOG004 # called while an exception is handled
            "run %s is not watched any more", one.root.path.id
        )
        self._watched.pop(one.root, None)

    # -- the end of a run -----------------------------------------------------------------------

    @ki_protected
    async def _end(self, root: RootRun) -> None:
        """Make the last report of a run, and store it: called before its store is released."""
        one = self._watched.pop(root, None)
        due = self._due
        if not self._watched:
            self._stop_timer()
        if one is None:
            return
        try:
            one.tally.end(self._clock(), due)
            report = root.last_report = self._made(one, self._clock(), is_over=True)
            self._tell(root, report)
        except Exception:  # noqa: BLE001 # logged: no run notices it
            self._give_up(one)
            return
        # A run without a sample has stored no report, so it needs no last one.
        if one.keeper is not None and one.tally.samples:
            await one.keeper.store_last(root.path.id, report_text(report))

    def _take(self, store: KeepsReports, commands: Sequence[Command]) -> None:
        """Have commands carried out that a store had."""
        if commands:
            # In one task, so in their order; not in this one, which stores reports.
            self._start(partial(self._carry_out_all, store, commands))

    async def _carry_out_all(self, store: KeepsReports, commands: Sequence[Command]) -> None:
        """Carry out commands; one that can't be carried out is dropped.

        Shielded: they were taken from the store, so they would be lost.
        """
        with CancelScope(shield=True):
            for command in commands:
                # Ids are unique within one store alone.
                roots = [
                    root
                    for root in self._watched
                    if root.path.id == command.run_id and cast("object", root.store) is store
                ]
                try:
                    if not roots:
                        logger.warning("a command for run %s came too late", command.run_id)
                    for root in roots[:1]:
                        await self._carry_out(root, command)
                except Exception as error:  # noqa: BLE001 # of a watcher in another process: no run's
                    logger.warning(
                        "a command for run %s can't be carried out, and is dropped: %s: %s",
                        command.run_id,
                        command.kind,
                        brief(error),
                    )


@final
class LimitsInUse:
    """The limits of a runtime that are in use."""

    __slots__ = (
        "_breakers",
        "_budgets",
        "_find_breakers",
        "_find_budgets",
        "names",
        "owners",
        "uses",
    )

    def __init__(
        self,
        uses: Sequence[LimitUse],
        owners: Mapping[str, str],
        names: Mapping[int, str],
        breakers: Callable[[], tuple[BreakerUse, ...]],
        budgets: Callable[[], tuple[BudgetUse, ...]],
    ) -> None:
        self.uses = uses
        self._find_breakers = breakers
        self._find_budgets = budgets
        # None until they are asked for.
        self._breakers: tuple[BreakerUse, ...] | None = None
        self._budgets: tuple[BudgetUse, ...] | None = None
        self.owners = owners
        """The name of the owner of each limit, by the limit as it is written."""
        self.names = names
        """The name of the owner of each limit with ``cost=``, by the id of its part."""

    @property
    def breakers(self) -> tuple[BreakerUse, ...]:
        """The breakers of the runtime. Only reports have them, and most samples make none."""
        if self._breakers is None:
            self._breakers = self._find_breakers()
        return self._breakers

    @property
    def budgets(self) -> tuple[BudgetUse, ...]:
        """The budgets of retries of the runtime; as ``breakers``, for reports alone."""
        if self._budgets is None:
            self._budgets = self._find_budgets()
        return self._budgets


@final
class ReportKeeper:
    """Stores the reports of the runs that one store has, and takes the commands for them.

    One call is under way at a time. Reports that come meanwhile wait for the next call, and a newer
    one replaces an older one.
    """

    def __init__(
        self,
        store: KeepsReports,
        clock: Clock,
        start: Callable[[Work], object],
        take: Callable[[KeepsReports, Sequence[Command]], None],
        deadline: float,
    ) -> None:
        """Store nothing yet.

        Args:
            store: The store.
            clock: The clock of the runtime.
            start: Starts a task of the runtime's own.
            take: Carries out commands that the store had.
            deadline: Seconds that the store may take for one call.
        """
        self.store: KeepsReports = store
        self._clock = clock
        self._start = start
        self._take = take
        self._deadline = deadline
        # Texts of reports, by the ids of the root runs.
        self._pending: dict[str, str] = {}
        self._storing: dict[str, str] = {}  # those of the call that is under way
        # The scope around the call that is under way, and an event for its end.
        self._scope: CancelScope | None = None
        self._ended: Event = Event()
        self._has_failed = False  # whether a failure was logged; never reset
        self._rests_until = 0.0  # after a failure
        self._is_starting = False  # a task was started that will store what is pending
        self._is_stuck = False  # the end of a run did not get the call under way

    def offer(self, run_id: str, text: str) -> None:
        """Store a report soon, if the store is well."""
        if self._clock() < self._rests_until:
            return
        self._pending[run_id] = text
        self._see_to_work()

    def _see_to_work(self) -> None:
        if self._scope is None and not self._is_starting:
            self._is_starting = True
            self._ended = Event()
            self._start(self._work)

    async def store_last(self, run_id: str, text: str) -> None:
        """Store the last report of a run, and wait for that, at most ``LAST`` seconds."""
        if self._is_stuck or self._clock() < self._rests_until:
            return
        self._pending[run_id] = text
        with move_on_after(LAST, shield=True) as scope:
            # Only for the call with this report: other runs report on and on. Not in this task,
            # which is the run's: a store that can't be cancelled would keep it beyond ``LAST``, see
            # test_a_store_that_cannot_be_cancelled_delays_the_end_by_a_second.
            while self._waits(run_id, text):
                self._see_to_work()
                await shielded_wait(self._ended.wait())
        self._pending.pop(run_id, None)
        if scope.cancelled_caught:  # so that the ends of other runs don't wait as long
            self._is_stuck = self._scope is not None
            self._fail(f"the last one of run {run_id} took longer than {LAST:g} s")

    def _waits(self, run_id: str, text: str) -> bool:
        """Return whether a report is neither stored nor dropped."""
        return text in (self._pending.get(run_id), self._storing.get(run_id))

    @ki_protected
    async def _work(self) -> None:
        """Store what is pending, until nothing is.

        Shielded: the last report of a run is stored after its runtime's block was cancelled, too.
        """
        self._is_starting = False
        with CancelScope(shield=True):
            while self._pending and self._scope is None:
                await self._store()
        self._ended.set()

    @ki_protected
    async def _store(self) -> None:
        """Store what is pending now, with one call."""
        if self._ended.is_set():
            self._ended = Event()
        texts, self._pending = self._pending, {}
        self._storing = texts
        self._scope = CancelScope()
        self._scope.deadline = self._clock() + self._deadline
        try:
            with self._scope:
                self._take(self.store, await self.store.report(texts))
            if self._scope.cancelled_caught:
                self._fail(f"it took longer than {self._deadline:g} s")
        except BaseException as error:
            failure = as_failure(error)
            if failure is None:
                raise
            self._fail(brief(failure))
        finally:
            self._scope = None
            self._is_stuck = False
            self._storing = {}
            self._ended.set()

    def _fail(self, why: str) -> None:
        self._pending.clear()
        self._rests_until = self._clock() + PATIENCE
        if not self._has_failed:
            self._has_failed = True
            logger.warning("the store could not keep reports about runs, which go on: %s", why)

    def close(self) -> None:
        """Stop: nothing is reported any more."""
        self._pending.clear()
        self._rests_until = float("inf")
        if self._scope is not None:
            self._scope.cancel()


def limits_in_use(limiters: Mapping[str, Limiter], services: Services) -> LimitsInUse:
    """Return the limits of a runtime that are in use.

    Args:
        limiters: Its limiters by the names of their owners.
        services: Its services.
    """
    breakers = named_circuits(services.circuits)
    return LimitsInUse(
        [*uses_of(limiters, services.clock()), *uses_of_workers(services.pools.opened)],
        owners_of(limiters),
        names_of_costs(limiters),
        partial(uses_of_breakers, breakers),
        lambda: uses_of_budgets(services.retries.accounts, services.clock()),
    )
