"""A root run from claim to release: where an application's request meets what its store knows.

Invariants:
- Nothing is executed, and nothing saved, of a run that another execution holds, that was started
  with something else, or that has succeeded.
- A claim is released on every way out.
- What a run starts from, without its secrets, is saved before anything happens in it; so are the
  answers that it is given.
- Each follower is told once that the run has ended.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from time import time
from typing import Any, cast, final

from anyio import CancelScope, Event, Lock
from anyio.lowlevel import checkpoint_if_cancelled

from shoal._concurrency.background import BackgroundTask
from shoal._concurrency.cancellation import drive, ki_protected
from shoal._concurrency.watchdog import Part, is_life_of
from shoal._engine.commit import Write, commit, end_below, record_steered
from shoal._engine.config import RunConfig
from shoal._engine.crash_suspects import CrashSuspects
from shoal._engine.fanout.finish import End, settle_end
from shoal._engine.fanout.group import ChildTaskGroup
from shoal._engine.fanout.read_ledgers import recall_ledgers
from shoal._engine.fanout.read_runs import recorded_asked, recorded_history
from shoal._engine.fanout.takeup import refuse_left_steps, refuse_retry
from shoal._engine.parts import read_children
from shoal._engine.publish import publish_run_ended
from shoal._engine.replay import refuse_other_way, stand_at
from shoal._engine.run import Run
from shoal._engine.second_copies import SecondCopies
from shoal._engine.spawning import Executing, within
from shoal._engine.walk import complete_step, walk
from shoal._errors.exceptions import BadUse, RunCancelled
from shoal._errors.inspection import first_of
from shoal._events.events import Status
from shoal._events.hooks import Hook
from shoal._events.identity import RunPath
from shoal._events.report import Report, Spending
from shoal._graph.parallel import Parallel, stores_within
from shoal._limits.accounts import Level
from shoal._limits.flows import Priority
from shoal._limits.limits import Part as LimitPart
from shoal.stores._history import RUN_AGAIN, Steered, paused_by, play
from shoal.stores._protocol import Beginning, NullStore, RunRecord, Store

from .answers import Answers, resolve_answers
from .reopening import step_to_reopen, way_back
from .result import RunResult, result_of
from .seats import Seat
from .start import RunRequest, RunStart, make_run, note_missing, refuse_conflict, refuse_missing

logger = logging.getLogger("shoal")

BY_WATCHER = "a watcher cancelled it"
"""Why a run is cancelled from outside, if that was not told."""
PAUSED = "paused"
"""The reason for which an execution is held while its run is paused."""


@final
class RootRun:
    """One execution of a root run. If the run has succeeded before, there is nothing to execute."""

    def __init__(
        self,
        request: RunRequest,
        config: RunConfig,
        subject: object,
        *,
        wants_watch: bool | None = None,
    ) -> None:
        """Plan it. Without a store there is nothing to load, so the run is made at once.

        Args:
            request: What was asked for.
            config: The run's configuration.
            subject: The application or graph that is run, for errors.
            wants_watch: Whether its application wants it to be watched.
        """
        self.path: RunPath = request.path
        self._request = request
        self.wants_watch: bool | None = wants_watch
        """Whether its application wants it to be watched; None: as its runtime does."""
        self._config = config
        self._subject = subject
        self._execution = execution = config.execution
        self._answers: Answers = request.answers or {}
        self.run: Run | None = None
        """The run, once it has begun; None before that, and for good if it could not begin."""
        self._only_ends = False  # set as it is resumed, if it was cancelled in an earlier execution
        # Set once `run` is there, or never will be; None: it is there already.
        self._begun: Event | None = None
        self._task: BackgroundTask | None = None  # from when a runtime has started it
        self._error: Exception | None = None  # why it could not begin
        self._reason: str = ""  # why it was cancelled; the run, once there, has its own
        self._followers: list[Callable[[], None]] = []
        # Its seat among the root runs of its runtime, if only so many execute there at once.
        self._seat: Seat | None = None
        self._made: Run | None = None  # the run, if it was made before its turn had come
        # Whatever steers it holds this meanwhile: two that come at once are carried out, and on
        # record, one after the other. None before the first comes, which is nearly always.
        self._steering: Lock | None = None
        self.paused: Steered | None = None
        """The pause that is on record, and under which it is; None: it isn't paused."""
        self.started_at: float = execution.services.clock()
        """When it was planned, by the clock of its runtime."""
        self.last_report: Report | None = None
        """The last report about it; None before its end, and if it is not watched."""
        # Both None unless it is watched.
        self._sampled: Callable[[], Report | None] | None = None
        self._at_end: Callable[[RootRun], Awaitable[None]] | None = None
        first = request.first
        if isinstance(first, RunStart) and isinstance(execution.store, NullStore):
            self.run = make_run(config, first.fields, self.path, subject)
            self._be_as(first.beginning)
        else:
            self._begun = Event()

    # -- its task -------------------------------------------------------------------------------

    @property
    def task(self) -> BackgroundTask:
        """The task that executes it."""
        assert self._task is not None, "a runtime has begun it"
        return self._task

    @task.setter
    def task(self, task: BackgroundTask) -> None:
        self._task = task

    @property
    def is_recovered(self) -> bool:
        """Whether another execution has left it, and nobody asks for it now."""
        return self._request.is_recovered

    def take(self, seat: Seat) -> None:
        """Execute it in ``seat``, before its task starts. Until its turn it has not begun."""
        self._seat = seat
        if seat.is_waiting and self.run is not None:
            self._made, self.run, self._begun = self.run, None, Event()

    def leave_seat(self) -> None:
        """Leave its seat to the next run: it has ended."""
        if self._seat is not None:
            self._seat.leave()

    @property
    def seat(self) -> Seat | None:
        """Its seat, if its runtime has only so many."""
        return self._seat

    @property
    def has_ended(self) -> bool:
        """Whether all of it is over, cleanup included."""
        return self._task is not None and self._task.ended.is_set()

    @property
    def is_interrupted(self) -> bool:
        """Whether it was cancelled, or halted, because its process stops: it has no end then."""
        return self._execution.is_interrupted or (self.run is not None and _stays_open(self.run))

    def cancel(self, reason: str) -> None:
        """Cancel it, unless it has ended or is cancelled: the first reason counts."""
        self.task.cancel(reason)

    def drain(self, reason: str) -> None:
        """Start nothing more in it; it halts when what runs has ended. The first reason counts."""
        self._execution.drain.begin(reason)

    def drain_interrupted(self, reason: str) -> None:
        """Start nothing more in it because its process stops, if another one can resume it."""
        if isinstance(self._execution.store, NullStore):
            return
        # Not `is_interrupted`: a failure of the run is its own until then, and is saved.
        self._execution.drain.leaves_open = True
        self.drain(reason)

    @property
    def is_draining(self) -> bool:
        """Whether it starts nothing more, and has not ended."""
        return self._execution.drain.reason is not None and not self.has_ended

    def interrupt(self, reason: str) -> None:
        """Cancel it because its process stops: no end is saved, so it can be recovered."""
        if not self.task.is_cancelled:
            self._execution.is_interrupted = True
        self.task.cancel(reason)

    def on_cancel(self, reason: str) -> None:
        """Note why it is about to be cancelled; called once, before its scope is cancelled."""
        self._reason = reason
        if self.run is not None:
            self.run.reason = reason

    def _be_as(self, begun: Beginning) -> None:
        """Take over what the beginning of the run says of all its executions."""
        execution = self._execution
        execution.spawned_by, execution.owner = begun.spawned_by, begun.owner
        # This execution may have been asked to be more urgent, or less, than the run began.
        if self._request.priority is None and begun.priority is not None:
            execution.priority = begun.priority

    @property
    def priority(self) -> Priority:
        """How urgent it is, as far as is known: the store knows it of a run that goes on."""
        return self._execution.priority

    @property
    def owner(self) -> str:
        """Whose run it is, once it has begun; empty if it has no owner."""
        return self._execution.owner

    # -- steered from outside -------------------------------------------------------------------

    async def steer(self, steered: Steered, act: Callable[[], object] | None = None) -> bool:
        """Carry out what was asked from outside, and put it on record.

        Cancelled, it was carried out and recorded, or neither.

        Args:
            steered: What was asked for. A pause and its end are carried out here...
            act: ...and all else by this, before it is recorded; what it raises is raised.

        Returns False, and does nothing, if the run could not begin, or has ended.

        Raises:
            ShoalError: It could not be recorded, which ends the execution.
        """
        return await self.in_turn(partial(self._steer, steered, act))

    async def in_turn(self, do: Callable[[], Awaitable[bool]]) -> bool:
        """Await ``do`` when the run has begun, after all that steers it already.

        Cancelled, ``do`` has been awaited to its end, or not begun. If it could not save something,
        that ends the execution.
        """
        await self.settled()
        done = False
        if self._steering is None:
            self._steering = Lock()
        async with self._steering:
            with CancelScope(shield=True):
                try:
                    done = await do()
                except Exception as error:
                    if self._execution.ended_by(error):
                        # At once, and not only where the run saves something the next time.
                        for group in tuple(self.groups):
                            if group.scope.is_open:
                                group.scope.fail(error)
                    raise
        return done

    async def _steer(self, steered: Steered, act: Callable[[], object] | None) -> bool:
        run, execution = self.run, self._execution
        if run is None or run.status is not None or execution.is_over:
            return False
        if steered.what == "pause":
            # Before it is saved, so that nothing starts meanwhile. The end of a pause is saved
            # before anything starts.
            execution.hold_up(PAUSED)
        try:
            if act is not None:
                act()
            if not await record_steered(run, steered):
                return False
            self.paused = paused_by(self.paused, steered)
        finally:
            if self.paused is None:  # also if the pause could not be recorded
                execution.let_go(PAUSED)
            self._mind_seat()
        return True

    def _mind_seat(self) -> None:
        """Lend the seat while it is paused: a paused run would keep others waiting for nothing."""
        if self._seat is None:
            return
        if self.paused is not None:
            self._seat.lend()
        else:
            self._seat.take_back()

    # -- those that watch it --------------------------------------------------------------------

    @property
    def store(self) -> Store:
        """Where it is saved."""
        return self._execution.store

    @property
    def groups(self) -> Collection[ChildTaskGroup]:
        """The groups of its descendants that are alive."""
        return cast("Collection[ChildTaskGroup]", self._execution.groups)

    @property
    def costs(self) -> Collection[tuple[LimitPart, float]]:
        """What was charged to it at limits with ``cost=``."""
        costs = self._execution.costs
        return () if costs is None else costs.all()

    @property
    def spending(self) -> tuple[Spending, ...]:
        """What it has spent of budgets."""
        levels = self._execution.accounts.levels().items()
        return tuple(
            Spending(budget=name, unit=unit, spent=spent, aside=aside, amount=amount)
            for name, (unit, spent, aside, amount) in levels
        )

    @property
    def copies(self) -> SecondCopies | None:
        """The second copies of late attempts in it; None: nothing in it is hedged."""
        return self._execution.copies

    def parts(self) -> Collection[Part]:
        """Return the coroutine that executes it, if it has begun and not ended."""
        return () if self._task is None else self._task.parts()

    def watch(
        self, sampled: Callable[[], Report | None], at_end: Callable[[RootRun], Awaitable[None]]
    ) -> None:
        """Let it be watched.

        Args:
            sampled: Returns a report of what it does now.
            at_end: Awaited when it has ended, before its store is released.
        """
        self._sampled, self._at_end = sampled, at_end
        self._execution.is_watched = True

    @property
    def report(self) -> Report | None:
        """What it does now, or did until its end; None if it isn't watched."""
        if self._sampled is None or self.last_report is not None:
            return self.last_report
        return self._sampled()

    # -- those that follow it -------------------------------------------------------------------

    def follow(self, on_ended: Callable[[], None], hook: Hook | None = None) -> None:
        """Call ``on_ended`` when it has ended, and publish its events to ``hook`` until then."""
        if hook is not None:
            self._execution.hooks.join(hook)
        if self.has_ended:
            on_ended()
        else:
            self._followers.append(on_ended)

    def unfollow(self, on_ended: Callable[[], None], hook: Hook) -> None:
        """Stop calling ``on_ended`` and publishing to ``hook``."""
        self._execution.hooks.leave(hook)
        if on_ended in self._followers:
            self._followers.remove(on_ended)

    def notify_ended(self) -> None:
        """Call the followers: it has ended."""
        followers, self._followers = self._followers, []
        for on_ended in followers:
            on_ended()

    # -- its end --------------------------------------------------------------------------------

    @property
    def reason(self) -> str:
        """Why it was cancelled; empty if it was not."""
        return self._reason if self.run is None else self.run.reason

    @property
    def failure(self) -> BaseException | None:
        """What it failed with: a KeyboardInterrupt or the like before any Exception; else None."""
        return first_of(
            None if self._task is None else self._task.fatal,
            self._error,
            None if self.run is None else self.run.error,
        )

    def release_error(self) -> None:
        """Release the error that it ended with, whose traceback leads back to here."""
        self._error = None
        if self._task is not None:
            self._task.fatal = None
        if self.run is not None:
            self.run.error = None
        self._execution.forget()

    async def settled(self) -> None:
        """Wait until it has begun, or it is known that it never will."""
        if self._begun is not None:
            await self._begun.wait()

    def _settle(self) -> None:
        if self._begun is not None:
            self._begun.set()

    async def wait_begun(self) -> None:
        """Wait until it has begun, or had ended long ago; if the wait is cancelled, cancel it too.

        Raises:
            RunCancelled: It was cancelled before it began.
            Exception: It could not begin.
        """
        if self.run is None:
            try:
                await self.settled()
            except BaseException:
                self.cancel("closed")
                await self.task.wait()
                raise
        if self.run is None:
            await self.task.wait()
            never = RunCancelled(f"run {self.path.id} was cancelled before it began: {self.reason}")
            try:
                raise first_of(self.failure, never) or never
            finally:
                self.release_error()

    async def wait_ended(self) -> Status:
        """Wait until it has ended, cleanup included; return how."""
        await self.task.ended.wait()
        status = None if self.run is None else self.run.status
        return "failed" if status is None else status  # None: a KeyboardInterrupt before its end

    def result(self) -> RunResult[Any]:
        """Return its result; it has ended, and its failure, if it had one, was raised.

        Raises:
            RunCancelled: It was cancelled.
            BadUse: It has failed, and its error was released.
        """
        run = self.run
        if run is None or run.status == "cancelled":
            msg = f"run {self.path.id} has no result, it was cancelled: {self.reason}"
            raise RunCancelled(msg)
        if run.status not in ("succeeded", "halted"):
            msg = f"run {self.path.id} failed; its error was raised while its block lasted"
            raise BadUse(msg)
        return result_of(run, self.last_report)

    # -- its execution --------------------------------------------------------------------------

    @ki_protected
    async def execute(self) -> None:
        """Execute the run to its end; ``failure`` says what it failed with.

        Raises:
            BaseException: A cancellation of the scope around it, or a KeyboardInterrupt or
                SystemExit from inside.
        """
        try:
            if self._seat is not None:
                await self._enter(self._seat)
            if self.run is None:
                self.run = await self._begin()
                self._settle()
            self._execution.begin_record(self.path, self.run.head[0])
            if self.run.status is None:
                await _execute(self.run, only_ends=self._only_ends)
                note_missing(self.run)
        except Exception as error:  # noqa: BLE001 # raised in the caller's frame
            self._error = error
        finally:
            self._settle()  # also where it could not begin: `wait_begun` then raises why
            at_end, self._at_end = self._at_end, None
            try:
                if at_end is not None:
                    await at_end(self)
            finally:
                self._sampled = None  # breaks a cycle
                await self._execution.release()

    async def _enter(self, seat: Seat) -> None:
        """Wait for its turn.

        Raises:
            Draining: The runtime takes no more runs.
        """
        await seat.wait()
        seat.surround()
        made, self._made = self._made, None
        if made is not None:
            self.run = made
            self._settle()

    async def _begin(self) -> Run:
        """Claim the run, load it, and make it; a run that has succeeded has its status already.

        Raises:
            RunClaimed: Another execution has it.
            RunConflict: It was started with something else.
            MissingSecret: It was started with secrets that are not given again.
            UnknownQuestion: It has not asked the question that is answered.
            StoreFailed: The store could not be read.
        """
        # Claimed before it is loaded: otherwise another execution could go on meanwhile, and what
        # was loaded would be old.
        execution, run_id = self._execution, self.path.id
        store = execution.store
        has_died = await execution.claim(store, run_id)
        await checkpoint_if_cancelled()
        record = await execution.ask(store.load(run_id), f"run {run_id}")
        wanted = self._request.first
        if not isinstance(wanted, RunStart):
            wanted = await wanted(execution, record)
        if record is None:
            return await self._begin_new(wanted)
        return await self._resume(record, wanted, has_died=has_died)

    async def _begin_new(self, wanted: RunStart) -> Run:
        """Make a run that the store doesn't have, and save its beginning."""
        resolve_answers(self._answers, (), {}, self.path.id)  # refuses any: nothing was asked
        run = make_run(self._config, wanted.fields, self.path, self._subject)
        begun = wanted.beginning
        self._be_as(begun)
        if begun.forked_from is not None:
            stand_at(run, play(run.data, (), after=begun.after, visits=begun.visits))
            await recall_ledgers(run, {}, ())
        await commit(run, Write(begun=begun))
        return run

    async def _resume(self, record: RunRecord, wanted: RunStart, *, has_died: bool) -> Run:
        """Make a run that the store has, and let it stand where its record ends.

        Args:
            record: What the store has.
            wanted: What the caller started it with.
            has_died: Whether its claim was held by an execution that has died.
        """
        execution, run_id = self._execution, self.path.id
        store, reopening = execution.store, self._request.reopening
        wanted, known = wanted.declaring(record.beginning.secret), record.beginning
        refuse_conflict(run_id, known, wanted)
        is_over = record.status == "succeeded" and reopening is None
        if not is_over:
            refuse_missing(run_id, known.secret, wanted.secrets)
        execution.is_resumed = True
        self._be_as(known)
        if has_died and record.status is None:
            # Not before the first crash, so that runs that never crash do not pay for counting.
            execution.suspects = CrashSuspects(execution.services.max_crashes)
        known = replace(known, first={**known.first, **wanted.secrets})
        run = make_run(self._config, known.first, self.path, self._subject)
        execution.know_all(stores_within(run.config.graph))
        played = await recorded_history(execution, self.path, known)
        done, children = await read_children(execution, store, self.path)
        execution.answers.update(played.answers)
        levels = {at: Level(*level) for at, level in played.spent.items()}
        execution.accounts.restore(levels)
        if not is_over:
            visits = {*done, *((one.step, one.visit) for one in children)}
            refuse_left_steps(self.path, run.config.graph, played, sorted(visits))
        asked = (
            ()
            if record.status == "succeeded"
            else recorded_asked(self.path, run.config.graph, played, children)
        )
        has_failed = record.status == "failed"
        answered = resolve_answers(
            self._answers, asked, played.answers, run_id, has_failed=has_failed
        )
        run.resume_state().has_halted_here = record.status == "halted"
        if reopening is not None:
            now, graph = played.data, run.config.graph
            rewound = step_to_reopen(self.path, graph, played, done, children, wanted=reopening)
            played.add(rewound)
            refuse_other_way(run, played)
            act = graph.find(rewound.step)
            if isinstance(act, Parallel):
                refuse_retry(self.path, act._join(), played)
            run.resume_state().rewind = rewound, way_back(now, played.restored)
        execution.forks_at = played.began.number
        stand_at(run, played)
        await recall_ledgers(run, done, children)
        if not is_over and played.paused is not None:
            self.paused = played.paused
            execution.hold_up(PAUSED)
            self._mind_seat()
            logger.warning(
                "run %s starts nothing: it is %s, until it is resumed",
                run_id,
                played.paused.sentence,
            )
        if is_over:
            run.status = "succeeded"
            return run
        cancelled = played.cancelled
        ends = cancelled is not None and self.is_recovered and record.status is None
        # A program that asks for a cancelled run wants it to go on, also in the next process.
        again = cancelled is not None and not ends
        # Also with nothing to save: until then the store has the run as its last execution ended.
        if answered or again or record.status is not None:
            steered = (Steered(RUN_AGAIN, at=time()),) if again else ()
            await commit(run, Write(questions=answered, steered=steered))
            execution.answers.update((one.id, one.value) for one in answered)
        if cancelled is not None and ends:
            # Its process has died between the record of that and the end, which is all that it
            # lacks. Last, since each further await is cancelled.
            self._only_ends = True
            run.reason = cancelled.reason or BY_WATCHER
            self.cancel(run.reason)
        return run


@is_life_of("run")  # also of what comes after its walk: the save of its end, and its last hooks
@ki_protected
async def _execute(run: Run, *, only_ends: bool) -> None:
    """Walk a root run to its end, then save and publish it; ``status`` and ``error`` say how.

    Args:
        run: The run.
        only_ends: Whether it is cancelled already, and begins nothing more.

    Raises:
        BaseException: A cancellation of the scope around it, or a KeyboardInterrupt or
            SystemExit from inside; the end is saved and published before it travels on.
    """
    executing, saved = Executing(run), list[Run]()
    walking = checkpoint_if_cancelled() if only_ends else _walk_to_end(run, saved)
    try:
        await drive(within(copy_context(), executing), walking, _nothing)
    except BaseException as error:
        end = settle_end(run, error, reason=run.reason or type(error).__name__)
        if end in (End.CANCELLED, End.INTERRUPTED):
            await _finish(run)
            raise
    finally:
        executing.child = None  # user code may have kept a copy of the context, which leads here
    await _finish(run, is_saved=bool(saved))


async def _walk_to_end(run: Run, saved: list[Run]) -> None:
    """Walk to the end of the run; add it to ``saved`` if its success is saved already.

    It is saved with the last step, unless there are hooks: those receive the last step first, and
    one of them may raise, or be cancelled.
    """
    await walk(run)
    change, run.pending = run.pending, None
    assert change is not None, "the walk leaves the last change, even if it is none"
    if run.step is not None:  # else an earlier execution has completed all of them
        # One save for the last step and the end, if nothing can come between the two.
        is_saved = not run.config.hooks.listening
        await complete_step(run, change, ended="succeeded" if is_saved else None)
    else:
        is_saved = False
    run.succeed()
    if is_saved:
        saved.append(run)


async def _finish(run: Run, *, is_saved: bool = False) -> None:
    """Save and publish how the run ended; a failure to do so is the run's, if it has no other.

    Nothing in here can be cancelled, so no end is ever lost.
    """
    save = partial(_save_end, run)
    publish = partial(publish_run_ended, run)
    for end in (publish,) if is_saved else (save, publish):
        try:
            await end()
        except Exception as error:
            if run.status not in ("succeeded", "halted"):
                logger.exception("at the end of run %s, which %s", run.path.id, run.status)
            else:
                run.fail(error, "succeeded", "halted")


def _stays_open(run: Run) -> bool:
    """Whether the run has halted only because its process stops, so that no end is saved."""
    drain = run.config.execution.drain
    return run.status == "halted" and drain.has_cut and drain.leaves_open


async def _save_end(run: Run) -> None:
    execution = run.config.execution
    if _stays_open(run) or (execution.is_interrupted and run.status not in ("succeeded", "halted")):
        return  # the process stops: the run has no end, and another process resumes it
    # After a save that failed nothing can be saved. A run that succeeded all the same tries to, and
    # fails with that error: what could not be saved did not end well.
    if run.status == "succeeded" or not execution.unsaved:
        if execution.is_resumed and run.status in ("failed", "cancelled"):
            # Children that an earlier execution has left without an end, and that this one has not
            # reached, would stay under way in the store for ever.
            await end_below(run)
        await commit(run, Write(ended=run.status))


def _nothing() -> None:
    """Stand in for a callback that isn't needed."""
