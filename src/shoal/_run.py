"""The life of one run: what it is, and step after step to its end.

Imports settings, the step, and the parts of a run: ``_holding``, ``_recalling``, ``_resuming``,
which commits, tells and ends.

Invariants:
- One writer. Only the task that a run lives in commits to it.
- One end. A run ends once: succeeded, failed, cancelled or halted; neither a cancelled step nor one
  that is halted is ever completed.
- Starts and ends are told in pairs, on every way out.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from contextvars import copy_context
from typing import Any, Literal, NoReturn, final

from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from ._action import Act, FunctionAction
from ._cancel import absorb_native_cancel, as_failure, cancelled, drive, ki_protected
from ._ending import LIVE, NEVER_STARTED, Disposition
from ._errors import Halting, NotData, SecretLeaked, TooManySteps, UpdateTooLarge
from ._events import ChildName, Outcome, RunStarted, Status, StepStarted, Update
from ._halting import has_halted
from ._history import Playback, Rewound
from ._holding import Holder
from ._ids import Key, RunPath
from ._recalling import Recaller
from ._resuming import Resumer, act_after
from ._seat import Seat, Stake
from ._setting import Halts, Setting
from ._state import NO_CHANGE, Change, State, make_state, typed
from ._step import call_function
from ._store import ChildRecord
from ._suspects import Suspects
from ._trials import Trials
from ._watch import is_life_of

logger = logging.getLogger("shoal")

STEPS = 64
"""Steps that a run takes without passing a checkpoint, if none of them waits."""
LAST_STEPS = 6
"""Steps that are named where there were too many of them."""


@final
class Run(Recaller, Resumer, Holder):
    """One life of an application or a child: a state, and where in the graph it is.

    Made cheap, since a fan-out makes one per element: whatever can be derived is derived on demand.
    """

    __slots__ = (
        "_digest",
        "_head",
        "_last",
        "_ledgers",
        "_outcome",
        "_path",
        "_playback",
        "_started_at",
        "_step",
        "_trials",
        "_undone",
        "_visits",
        "began",
        "element",
        "elapsed",
        "error",
        "disposition",
        "first",
        "has_stood_here",
        "is_afresh",
        "key",
        "position",
        "packed",
        "reason",
        "record",
        "rewound",
        "seat",
        "setting",
        "stake",
        "status",
        "used",
        "value",
        "winner",
    )
    began: bool

    def __init__(
        self,
        setting: Setting,
        data: Mapping[str, object],
        *,
        key: Key = "",
        position: int = 0,
        element: object = None,
        path: RunPath | None = None,
    ) -> None:
        """Stand at the beginning, with the state ``data``."""
        self.setting: Setting = setting
        self.key: Key = key
        self.position: int = position
        self.element: object = element
        self.began = False
        self.status: Status | None = None
        self.error: BaseException | None = None
        self.reason: str = ""
        self.used: bool = True
        self.winner: ChildName | None = None
        self.value: object = None
        self.packed: object = None  # what the parent's store has made of its end
        self.elapsed: float = 0.0
        # The number of the last update, and the state after it: one attribute, so that not even a
        # KeyboardInterrupt between two bytecodes tears them apart.
        self._head: tuple[int, Mapping[str, object]] = (0, data)
        self.first: Mapping[str, object] = data  # what it started with
        self._last: Change | None = None  # the last step's change: decided, not yet committed
        self._step: str | None = None  # the step that has started and not ended
        self._path = path
        self._outcome: Outcome | None = None
        self._ledgers: dict[str, list[Any]] | None = None
        self._visits: dict[str, int] | None = None
        self._trials: Trials | None = None
        self._started_at = setting.services.clock()
        if setting.secrets.names and setting.parent is not None:
            self.refuse_secrets((key, element), f"an element of {setting.step!r}, or its key,")
        # Of what it is given, before its model adds defaults; and before it runs, so that what is
        # no data is refused first.
        self._digest: str | None = setting.digest(data, key) if setting.keeps else None
        self.record: ChildRecord | None = None  # what the store has of a child, to go on from
        self.rewound: tuple[Rewound, Change] | None = None  # where to go back to first
        self.disposition: Disposition = LIVE
        self.is_afresh: bool = False  # whether what the store has of it is to count no more
        self._playback: Playback | None = None  # of the step that was under way
        self.stake: Stake | None = None
        self.seat: Seat | None = None
        self.has_stood_here: bool = False  # whether a root run was halted where it goes on
        self._undone: Callable[[int], bool] | None = None

    # -- what it is -----------------------------------------------------------------------------

    @property
    def path(self) -> RunPath:
        """Its identity."""
        if self._path is None:
            setting = self.setting
            self._path = RunPath(
                act=setting.act,
                parent=setting.parent,
                step=setting.step,
                visit=setting.visit,
                key=self.key,
            )
        return self._path

    @property
    def data(self) -> Mapping[str, object]:
        """The fields of its committed state. Not to be changed."""
        return self._head[1]

    @property
    def ledgers(self) -> dict[str, list[Any]]:
        """What layer 3 keeps of each fan-out step: how its children ended, for each visit."""
        if self._ledgers is None:
            self._ledgers = {}
        return self._ledgers

    @property
    def attempts(self) -> int:
        """Tries of the step that it ended in; 0 where there was nothing to be done."""
        if self.status is None or self.disposition is NEVER_STARTED:
            return 0
        return 1 if self._trials is None else 1 + self._trials.further

    @property
    def abandoned(self) -> bool:
        """Whether it has left a thread behind that still ran."""
        return self._trials is not None and self._trials.abandoned

    @property
    def crashes(self) -> int:
        """Executions that have died while it was at work at its step; see ``SavedRun``."""
        return 0 if self._trials is None else self._trials.crashes

    @property
    def noted(self) -> int:
        """How many of them the store has that keeps its history."""
        return 0 if self._trials is None else self._trials.noted

    def note_crashes(self) -> None:
        """Remember that the store has as many as there are."""
        if self._trials is not None:
            self._trials.noted = self._trials.crashes

    @property
    def age(self) -> float:
        """Seconds since its start."""
        return self.setting.services.clock() - self._started_at

    @property
    def digest(self) -> str:
        """A hash of what a child works on; see ``SavedRun``."""
        if self._digest is None:
            self._digest = self.setting.digest(self.first, self.key)
        return self._digest

    @property
    def begins_anew(self) -> bool:
        """Whether it begins at its entry, as far as it is known before it lives."""
        return self.record is None and (self._trials is None or self.is_afresh)

    @property
    def current_step(self) -> str | None:
        """The step that has started and not ended; a child's last one stays."""
        return self._step

    @property
    def number(self) -> int:
        """The number of its last update; 0 before the first."""
        return self._head[0]

    @property
    def state(self) -> State:
        """Its committed state."""
        return self._state_of(self._head[1])

    @property
    def final_state(self) -> State:
        """Its state as the last step left it, committed or not."""
        return self._state_of(self.final_data())

    def _state_of(self, data: Mapping[str, object]) -> State:
        schema, state = self.setting.schema, make_state(data)
        return state if schema is None else typed(state, schema)

    @property
    def last_update(self) -> Update | None:
        """Its last update, which whoever started the run saves; None if there is none."""
        change = self._last
        if change is None or not change.operations:
            return None
        return Update(self._head[0] + 1, self._step or "", change.operations)

    def final_field(self, field: str) -> object:
        """Return a field of the state as the last step left it; raise KeyError if there is none."""
        change = self._last
        if change is not None and field in change.values:
            return change.values[field]
        return self.final_data()[field]

    def final_data(self) -> Mapping[str, object]:
        """Return the fields of the state as the last step left it, committed or not."""
        data = self._head[1]
        return data if self._last is None else self._last.applied_to(data)

    # -- living ---------------------------------------------------------------------------------

    @is_life_of("self")
    async def advance(self) -> None:
        """Walk the graph to its end: from its entry, or from where an earlier attempt has failed.

        The last step's change is left for ``commit`` by whoever started the run. Cancellation goes
        to the action that runs; earlier steps stay committed.

        Raises:
            NoTransition: No edge that leaves an act is true; its step is completed.
            TooManySteps: The next step would be one too many.
            Halting: A step waits for answers, or it is to stop here.
            Poisoned: It was at work whenever a process died.
            Exception: Whatever an act or a condition raises.
        """
        setting = self.setting
        hooks = setting.hooks
        act: Act | None = setting.graph.entry
        steps = 0
        trials = self._trials
        # An attempt that has not come to its first act, since what the store has could not be read
        # for example, leaves all of that to the next.
        begins = self._last is None and (trials is None or trials.at is None)
        if begins:
            if self.record is not None and self._playback is None:
                await self.recall()
            if self._playback is not None:
                act = self._following(self._playback)
                steps = sum(self._playback.began.visits.values())
        if not self.began:
            self.began = True
            if hooks.run_started:
                resumed = self.record is not None or setting.execution.is_resumed
                resumed = resumed and self._playback is not None  # else it begins, or was forked
                await hooks.tell(hooks.run_started, RunStarted(path=self.path, resumed=resumed))
        suspects = setting.execution.suspects
        if begins and self.record is not None and (suspects or self.record.crashes):
            self._remember().noted = self.record.crashes
            if suspects is not None:
                self._remember().crashes = self.record.crashes
                suspects.check(self.path, self.record.crashes)
        if not begins:
            act = self._act_it_stands_at(self._remember())
        elif setting.schema is not None and self._playback is None:
            self._fill_model(setting.schema)
        if self.rewound is not None:
            await self._rewind(*self.rewound)
            self.rewound = None
        max_steps = setting.execution.max_steps
        straight, halts = setting.graph.straight, setting.halts
        if halts is not None and act is not None and not self.has_stood_here:
            self._stop_before(act, halts)
        walked: tuple[str, ...] = ()
        try:
            while act is not None:
                steps += 1
                if steps > max_steps - LAST_STEPS:
                    if steps > max_steps:
                        raise self._too_many_steps(act, walked)
                    walked += (act.name,)
                if steps % STEPS == 0:
                    await checkpoint()
                if setting.gate is not None:
                    await setting.gate(act.name)
                is_open, self._step = self._step is not None, act.name
                if hooks.watching_steps:
                    change = await self._perform_watched(act, is_open=is_open)
                else:
                    change = await self._perform(act)
                if hooks.failures:
                    raise hooks.failures[0]  # a guard's; maybe the act has caught what that raised
                self._playback = None  # what follows is new
                if setting.schema is not None:
                    change = setting.schema.checked(change, self._head[1], f"action {act.name!r}")
                if act.name in straight:
                    following = straight[act.name]
                else:
                    following = await self._choose(act, change)
                if following is None and not self.saves_last(act):
                    self._last = change
                elif halts is not None and following and halts.stop(act.name, following.name):
                    await self._complete_step(change, ended="halted")
                    self._stop_here()
                else:
                    await self._complete_step(change)
                act = following
        except BaseException:
            if setting.is_resumable:
                self._remember().at = act
            raise
        if self._last is None:
            self._last = NO_CHANGE  # all steps are completed
            if setting.ends_itself:
                await self.commit((), self.data, ended="succeeded")

    def _stop_before(self, act: Act, halts: Halts) -> None:
        """Halt before the first step of all, or of this execution, if it is to."""
        if halts.stop(None, act.name):
            self._stop_here()

    def _stop_here(self) -> NoReturn:
        """Halt between two steps.

        Raises:
            Halting: That is how it ends.
        """
        self._waits.is_on = True
        raise Halting(f"run {self.path.id} is to stop here")

    def call(self, action: FunctionAction[..., object]) -> Awaitable[Change]:
        """Execute a function action on the state as it is; see ``Performer``."""
        return self._execute(action) if action.cache is None else self.recall_or_execute(action)

    def _execute(self, action: FunctionAction[..., object]) -> Awaitable[Change]:
        setting = self.setting
        if action.takes_context and self._trials is not None and self.rests():
            return _halt(self)
        if setting.execution.suspects is not None and setting.keeps:
            return self._call_suspect(action, setting.execution.suspects)
        return self._call(action)

    def _call(self, action: FunctionAction[..., object]) -> Awaitable[Change]:
        setting = self.setting
        return call_function(
            action, self._head[1], setting.inputs, setting.services, run=self, scopes=setting.scopes
        )

    async def _call_suspect(
        self, action: FunctionAction[..., object], suspects: Suspects
    ) -> Change:
        """Execute it, and have it known before: a process has died, and may do so again."""
        trials = self._remember()
        before = trials.crashes - trials.is_suspect
        turn = suspects.wait_turn(trials, before)
        if suspects.is_free(before):
            await turn
        else:  # the child that is at work may wait for just what this one holds
            if self.seat is not None:
                self.seat.cancel()
                self.seat = None
            await self.wait_aside(turn)
        try:
            if not trials.is_suspect:
                trials.crashes, trials.is_suspect = trials.crashes + 1, True
                await self.commit((), self.data)
            return await self._call(action)
        finally:
            suspects.leave(trials)

    async def pass_blame(self) -> None:
        """Hear that its action has its own children do the work: from now on they are to blame."""
        trials, suspects = self._trials, self.setting.execution.suspects
        if suspects is None or trials is None or not trials.is_suspect:
            return
        suspects.leave(trials)
        trials.clear(trials.crashes - 1)
        await self.commit((), self.data)

    def enter(self, graph: Act) -> Awaitable[Change]:
        """Run a graph as a child of its own; see ``Performer``."""
        return self.setting.services.enter(graph, self)

    def fan_out(self, parallel: Act) -> Awaitable[Change]:
        """Run the children of a parallel act; see ``Performer``."""
        return self.setting.services.fan_out(parallel, self)

    async def _choose(self, act: Act, change: Change) -> Act | None:
        """Find what follows ``act`` by the conditions on its edges.

        If that fails, the step is completed nevertheless, so that it isn't run again on resume.
        """
        try:
            return act_after(self.setting.graph, act, change.applied_to(self._head[1]))
        except BaseException:
            await self._complete_step(change)
            if self.setting.is_resumable:
                self._remember().is_undecided = True
            raise

    def _too_many_steps(self, act: Act, walked: tuple[str, ...]) -> TooManySteps:
        limit = self.setting.execution.max_steps
        return TooManySteps(
            f"run {self.path.id} of {self.path.act!r} has taken {limit} steps, "
            f"the last {' -> '.join(walked)}, and {act.name!r} would be next; "
            f"if that is no endless loop, allow more: Application(..., max_steps=...)"
        )

    def _perform(self, act: Act) -> Awaitable[Change]:
        """Perform a step, in time if the run is a child that has only so much."""
        each = self.setting.each
        if each is None or each.timeout is None:
            return act.perform(self)
        return self._perform_in_time(act)

    async def _perform_in_time(self, act: Act) -> Change:
        change = await act.perform(self)
        # It may have swallowed the cancellation. To be found here, before anything is saved of it.
        await checkpoint_if_cancelled()
        return change

    async def _perform_watched(self, act: Act, *, is_open: bool) -> Change:
        """Perform a step whose start was published already, if it ``is_open``."""
        hooks, each = self.setting.hooks, self.setting.each
        event = StepStarted(path=self.path, step=act.name)
        if hooks.step_started and not is_open:
            await hooks.tell(hooks.step_started, event)
        is_childs = each is not None and each.retry is not None  # else the act's, if anybody's
        entered = hooks.enter_around(hooks.around_step, event)
        try:
            change = await self._perform(act)
        except BaseException as error:
            self.hide_secrets(error)
            failure = entered.leave(error)
            if failure is not None and isinstance(error, Exception):
                raise failure from error
            if act.retry is not None and not is_childs and isinstance(error, Exception):
                await self.tell_attempt_ended(error, None)
            raise  # a cancellation is never replaced
        failure = entered.leave(None)
        if failure is not None:
            raise failure
        if (act.retry is not None or is_childs) and not self.is_cached:
            await self.tell_attempt_ended(None, None)
        return change

    # -- being tried again ----------------------------------------------------------------------

    def leave_behind(self) -> None:
        """Hear that a thread of its action is waited for no more."""
        self._remember().abandoned = True

    def _remember(self) -> Trials:
        if self._trials is None:
            self._trials = Trials()
        return self._trials

    def _act_it_stands_at(self, trials: Trials) -> Act | None:
        """Find where an earlier attempt has come to; None: to the end."""
        if self._last is not None:
            return None
        assert trials.at is not None, "else it would begin"
        if not trials.is_undecided:
            return trials.at
        following = act_after(self.setting.graph, trials.at, self._head[1])
        trials.is_undecided, trials.attempt = False, trials.before + 1
        return following

    @property
    def attempt(self) -> int:
        """Which try of the current step this is, counted from 1."""
        return 1 if self._trials is None else self._trials.attempt

    @property
    def is_doomed(self) -> bool:
        """Whether the whole execution is about to end."""
        return self.setting.execution.is_doomed

    def begin_attempt(self) -> None:
        """Hear that its current step is tried once more."""
        trials = self._remember()
        trials.attempt += 1
        trials.further += 1

    def count_on(self, tries: int) -> None:
        """Hear that so many were made before, in earlier rounds of a race: they are counted on.

        So what it gives now is not taken for what it gave then. Which steps it came to then is not
        known, so each of them counts on.
        """
        if tries:
            trials = self._remember()
            trials.before = trials.further = tries
            trials.attempt = tries + 1

    def keep(self, step: str, what: object) -> None:
        """Remember what a step that has failed is to go on with, if it may be tried again."""
        if self.setting.is_resumable:
            self._remember().kept[step] = what

    def take_kept(self, step: str) -> object:
        """Return what a step is to go on with; None: it begins."""
        return None if self._trials is None else self._trials.kept.pop(step, None)

    async def settle(self) -> None:
        """Drop native cancellation that user code has left on this task, before a commit."""
        if self.setting.services.native_cancels()() and not cancelled():
            await absorb_native_cancel()

    async def _complete_step(
        self, change: Change, *, ended: Literal["succeeded", "halted"] | None = None
    ) -> None:
        await self.settle()
        step = self._step
        assert step is not None
        updates: tuple[Update, ...] = ()
        if change.operations:
            updates = (Update(self._head[0] + 1, step, change.operations),)
        if self._trials is not None:
            self._trials.clear()
            self._trials.waits = None
        data = change.applied_to(self._head[1])
        own = self.own_of(step)
        await self.commit(updates, data, step_completed=step, ended=ended, step_begun=own)
        if self._visits is None:
            self._visits = {}
        self._visits[step] = self._visits.get(step, 0) + 1
        if self._trials is not None:
            self._trials.attempt = self._trials.before + 1
        await self._tell_step_ended("succeeded")
        if self._trials is not None:
            self._trials.is_cached = False

    # -- ending ---------------------------------------------------------------------------------

    def succeed(self) -> None:
        """Note that a child reached the end of its graph, and what its value is.

        Raises:
            NotData: That, or what it wrote last, is nothing that can be kept.
            UpdateTooLarge: It is more than can be kept.
            SecretLeaked: It holds what is secret.
        """
        setting = self.setting
        if setting.value_of is not None:
            self.value = setting.value_of(self)
        if setting.secrets.names and setting.parent is not None:
            written = () if self._last is None else self._last.operations
            self.refuse_secrets((self.value, written), f"what {setting.act!r} has come to")
        if setting.parent is not None:
            self.packed = setting.keeper.pack(self)
        if self._trials is not None:
            self._trials.clear()
        self._end("succeeded")

    async def complete_last(self) -> None:
        """Complete its last step by itself, since its value could not be taken, or not be kept.

        Else the step's change would be saved with the child's end. So another attempt, or another
        execution, takes the value anew, and executes nothing (see
        test_a_child_whose_value_could_not_be_taken_executes_nothing_again). If what the step wrote
        can't be kept either, it is the step that has failed.

        Raises:
            StoreFailed: It could not be saved.
            CommitInDoubt: The same.
            HookFailed: A guarding hook raised.
        """
        trials, step = self._remember(), self._step
        change, self._last = self._last, None
        if step is not None and change is not None:
            try:
                await self._complete_step(change)
            except (NotData, UpdateTooLarge, SecretLeaked):
                trials.at = self.setting.graph.find(step)
                return
        trials.lacks_value = True

    # -- a root run -----------------------------------------------------------------------------

    @ki_protected
    async def live(self) -> None:
        """Live the whole life of a root run; how it ended is in ``status`` and ``error``.

        Raises:
            BaseException: A cancellation of the scope around it, or a KeyboardInterrupt or
                SystemExit from inside; the end is saved and published before it travels on.
        """
        is_saved = False

        async def walk() -> None:
            nonlocal is_saved
            is_saved = await self._walk()

        try:
            await drive(copy_context(), walk(), _nothing)
        except BaseException as error:
            if has_halted(self, error):
                self.halt()
                await self._finish()
                return
            failure = as_failure(error)
            if failure is None:
                self.cancel(self.reason or type(error).__name__)
                await self._finish()
                raise
            self.fail(failure)
            del failure  # no cycle from the exception through its traceback to this frame
        await self._finish(is_saved=is_saved)

    async def _walk(self) -> bool:
        """Return whether it is saved already that it succeeded.

        It is saved with the last step, unless somebody hears of that step first, and may object, or
        be cancelled meanwhile.
        """
        await self.advance()
        change, self._last = self._last, None
        assert change is not None, "advance leaves the last change, even if it is none"
        if self._step is not None:  # else an earlier execution has completed all of them
            is_saved = not self.setting.hooks.listening
            await self._complete_step(change, ended="succeeded" if is_saved else None)
        else:
            is_saved = False
        self.succeed()
        return is_saved

    async def _finish(self, *, is_saved: bool = False) -> None:
        """Save and publish how the run ended; a failure to do so is the run's, if it has no other.

        Nothing in here can be cancelled, so no end is ever lost.
        """
        for end in (self.tell_ended,) if is_saved else (self._save_end, self.tell_ended):
            try:
                await end()
            except Exception as error:
                if self.status not in ("succeeded", "halted"):
                    logger.exception("at the end of run %s, which %s", self.path.id, self.status)
                else:
                    self.fail(error, "succeeded", "halted")

    async def _save_end(self) -> None:
        execution = self.setting.execution
        if execution.is_interrupted and self.status not in ("succeeded", "halted"):
            return  # for whoever resumes it this is no end
        if self.status == "succeeded" or not execution.unsaved:
            if execution.is_resumed and self.status in ("failed", "cancelled"):
                await self.end_below()
            await self.commit((), self.data, ended=self.status)


async def _halt(run: Run) -> Change:
    raise Halting(f"run {run.path.id} waits for answers")


def _nothing() -> None:
    """Stand in for a callback that nobody needs."""
