"""One run, as a record: what it is, how far it has come, how it ended. It awaits nothing.

Imports settings and values. What walks a run, commits to it and publishes it is above.

Invariants:
- One end. A run ends once: succeeded, failed, cancelled or halted. A status is set in one place,
  ``Run._end``, which knows what may follow what; a run with a final disposition never gets another.
- What has ended well, and could not be saved, did not end well for anybody.
- What a run has ended with is released when nobody needs it: an error's frames lead back here.
- A cancellation, and what ends the whole execution, count more than that an attempt waits.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Mapping
from typing import Any, final

from shoal._concurrency.cancellation import cancelled
from shoal._errors.exceptions import Poisoned, brief, note
from shoal._errors.inspection import context_of, set_context
from shoal._events.events import (
    Cancelled,
    ChildName,
    Done,
    Failed,
    Outcome,
    Question,
    Skipped,
    Status,
    Update,
)
from shoal._events.identity import Key, RunPath
from shoal._graph.action import Act, FunctionAction
from shoal._limits.permits import HeldPermits
from shoal._state.state import NO_CHANGE, Change, State, held, make_state, typed
from shoal.stores._history import Playback
from shoal.stores._protocol import ChildRecord

from .config import Setting
from .disposition import (
    APPLIED_BEFORE,
    DEFERRED,
    DONE,
    LIVE,
    NEVER_STARTED,
    RESTING,
    SKIPPED,
    Disposition,
)
from .progress import PendingQuestions, ResumeState, RetryState, StepCounts, plain

logger = logging.getLogger("shoal")


@final
class Run:
    """One life of an application or a child: a state, and where in the graph it is.

    Made cheap, since a fan-out makes one per element: it is one object, what can be derived is
    derived when asked for, and what few runs need stands in records that are made on first use.

    How its status changes:

    =================  ====================  =========  =====================================
    by                 from                  to         when
    =================  ====================  =========  =====================================
    ``succeed``        no end                succeeded  it has come to the end of its graph
    ``fail``           no end                failed     a step has raised
    ``cancel``         no end                cancelled  a cancellation has reached it
    ``never_start``    no end                cancelled  it waited to start until then
    ``halt``           no end                halted     it waits for answers, or is to stop
    ``give_up``        halted                cancelled  its answers are not needed any more
    ``replace_end``    succeeded, failed     failed     what was told of its end has raised
    ``revoke_end``     any, or skipped       cancelled  its end could not be saved
    ``reopen``         any that isn't final  no end     its parent is tried again
    ``take_over``      no end                succeeded  a record says so, not applied yet
    ``keep_recorded``  no end                succeeded  a record says so, applied long ago
    ``rest``           no end                halted     a record says so, nothing is answered
    =================  ====================  =========  =====================================
    """

    __slots__ = (
        "_digest",
        "_outcome",
        "_path",
        "began",
        "disposition",
        "elapsed",
        "element",
        "error",
        "head",
        "initial",
        "key",
        "packed",
        "pending",
        "permits",
        "position",
        "questions",
        "reason",
        "resume",
        "retries",
        "setting",
        "started_at",
        "status",
        "step",
        "steps",
        "used",
        "value",
        "winner",
    )

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
        # Who it is.
        self.setting: Setting = setting
        self.key: Key = key
        self.position: int = position
        self.element: object = element
        # How far it is. The number of the last update, and the state after it: one attribute, so
        # that not even a KeyboardInterrupt between two bytecodes tears them apart.
        self.head: tuple[int, Mapping[str, object]] = (0, data)
        self.pending: Change | None = None  # the last step's change: decided, not yet committed
        self.initial: Mapping[str, object] = data
        self.step: str | None = None  # the one that has started and not ended; a child's last stays
        self.began: bool = False  # whether its start was published, and its end is to be
        # How it ended: see the table for what may follow what.
        self.status: Status | None = None
        self.disposition: Disposition = LIVE
        self.error: BaseException | None = None
        self.reason: str = ""
        self.value: object = None
        self.used: bool = True
        self.elapsed: float = 0.0
        self.winner: ChildName | None = None
        self.started_at: float = setting.services.clock()
        self.packed: object = None  # what the parent's store has made of its end
        # What few runs need: made on first use, by the methods of similar names.
        self.retries: RetryState | None = None
        self.questions: PendingQuestions | None = None
        self.resume: ResumeState | None = None
        self.steps: StepCounts | None = None
        self.permits: HeldPermits | None = None
        # Made when asked for, and most children are never asked.
        self._path = path
        self._outcome: Outcome | None = None
        if setting.secrets.names and setting.parent is not None:
            setting.secrets.refuse((key, element), f"an element of {setting.step!r}, or its key,")
        # Of what it is given, before its model adds defaults; and before it runs, so that what is
        # no data is refused first.
        self._digest: str | None = setting.digest(data, key) if setting.keeps else None

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
        return self.head[1]

    @property
    def ledgers(self) -> dict[str, list[Any]]:
        """How the children of each fan-out step ended, for each visit: they are ``Ledger``s."""
        return self.step_counts().ledgers

    @property
    def attempts(self) -> int:
        """Tries of the step that it ended in; 0 where there was nothing to be done."""
        if self.status is None or self.disposition is NEVER_STARTED:
            return 0
        return 1 if self.retries is None else 1 + self.retries.further

    @property
    def abandoned(self) -> bool:
        """Whether it has left a thread behind that still ran."""
        return self.retries is not None and self.retries.abandoned

    @property
    def crashes(self) -> int:
        """Executions that have died while it was at work at its step; see ``SavedRun``."""
        return 0 if self.retries is None else self.retries.crashes

    @property
    def age(self) -> float:
        """Seconds since its start."""
        return self.setting.services.clock() - self.started_at

    @property
    def digest(self) -> str:
        """A hash of what a child works on; see ``SavedRun``."""
        if self._digest is None:
            self._digest = self.setting.digest(self.initial, self.key)
        return self._digest

    @property
    def playback(self) -> Playback | None:
        """What an earlier execution has done of the step under way; None if nothing."""
        return None if self.resume is None else self.resume.replayed

    def is_undone(self, number: int) -> bool:
        """Tell whether its update of that number counts no more, since it has gone back."""
        resume = self.resume
        return resume is not None and resume.is_undone is not None and resume.is_undone(number)

    def visit(self, step: str) -> int:
        """Return which visit of ``step`` this is: how often the run has completed it before."""
        return 0 if self.steps is None else self.steps.visits.get(step, 0)

    @property
    def begins_anew(self) -> bool:
        """Whether it begins at its entry, as far as it is known before it lives."""
        is_first, resume = self.retries is None and self.questions is None, self.resume
        if resume is None:
            return is_first
        return resume.record is None and (is_first or resume.is_afresh)

    @property
    def number(self) -> int:
        """The number of its last update; 0 before the first."""
        return self.head[0]

    @property
    def state(self) -> State:
        """Its committed state."""
        return self._state_of(self.head[1])

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
        change = self.pending
        if change is None or not change.operations:
            return None
        return Update(self.head[0] + 1, self.step or "", change.operations)

    def final_field(self, field: str) -> object:
        """Return a field of the state as the last step left it; raise KeyError if there is none."""
        change = self.pending
        if change is not None and field in change.values:
            return change.values[field]
        return self.final_data()[field]

    def final_data(self) -> Mapping[str, object]:
        """Return the fields of the state as the last step left it, committed or not."""
        data = self.head[1]
        return data if self.pending is None else self.pending.applied_to(data)

    # -- what it takes turns for, and holds -----------------------------------------------------

    @property
    def slot_owner(self) -> Run:
        """The child of a fan-out that it is part of, or itself."""
        return self.setting.host or self

    def held_permits(self) -> HeldPermits:
        """Return what it holds of limits, made on first use."""
        if self.permits is None:
            self.permits = HeldPermits(self.setting.execution, self.setting.in_flight)
        return self.permits

    @property
    def is_starting(self) -> bool:
        """Whether it has completed no step, nor has the child of a fan-out that it is part of."""
        is_at_entry = self.pending is None and (self.steps is None or not self.steps.visits)
        return is_at_entry and self.setting.begins_host

    # -- what most runs never need: made on first use -------------------------------------------

    def retry_state(self) -> RetryState:
        """Return what it keeps between attempts, made on first use."""
        if self.retries is None:
            self.retries = RetryState()
        return self.retries

    def pending_questions(self) -> PendingQuestions:
        """Return what it waits for, made on first use."""
        if self.questions is None:
            self.questions = PendingQuestions()
        return self.questions

    def resume_state(self) -> ResumeState:
        """Return what earlier executions have left of it, made on first use."""
        if self.resume is None:
            self.resume = ResumeState()
        return self.resume

    def step_counts(self) -> StepCounts:
        """Return which steps it has completed, made on first use."""
        if self.steps is None:
            self.steps = StepCounts()
        return self.steps

    # -- what acts ask of it; see ``Performer`` --------------------------------------------------

    def call(self, action: FunctionAction[..., object]) -> Awaitable[Change]:
        """Execute a function action on the state as it is."""
        return self.setting.services.call(self, action)

    def enter(self, graph: Act) -> Awaitable[Change]:
        """Run a graph as a child of its own."""
        return self.setting.services.enter(graph, self)

    def fan_out(self, parallel: Act) -> Awaitable[Change]:
        """Run the children of a parallel act."""
        return self.setting.services.fan_out(parallel, self)

    # -- being tried again ----------------------------------------------------------------------

    @property
    def attempt(self) -> int:
        """Which try of the current step this is, counted from 1."""
        return 1 if self.retries is None else self.retries.attempt

    @property
    def is_cached(self) -> bool:
        """Whether its current step is not executed, for its result was stored before."""
        return self.retries is not None and self.retries.is_cached

    def begin_attempt(self) -> None:
        """Count one more attempt of its current step."""
        retries = self.retry_state()
        retries.attempt += 1
        retries.further += 1

    def count_earlier_attempts(self, attempts: int) -> None:
        """Count on from so many attempts, which were made in earlier rounds of a race.

        So what it gives now is not taken for what it gave then. Which steps it came to then is not
        known, so each of them counts on.
        """
        if attempts:
            retries = self.retry_state()
            retries.before = retries.further = attempts
            retries.attempt = attempts + 1

    def retain(self, step: str, what: object) -> None:
        """Retain what a step that has failed is to go on with, if it may be tried again."""
        if self.setting.is_resumable:
            self.retry_state().retained[step] = what

    def take_retained(self, step: str) -> object:
        """Return what a step is to go on with; None: it begins."""
        return None if self.retries is None else self.retries.retained.pop(step, None)

    @property
    def is_halting(self) -> bool:
        """Whether the attempt under way comes to nothing, since it waits for something."""
        return self.questions is not None and self.questions.is_halting

    @property
    def open_questions(self) -> tuple[Question, ...]:
        """What it and its descendants wait for: its own first, then those of its children."""
        if self.questions is None:
            return ()
        return self.questions.in_order(self.path, self.setting.execution.answers)

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
            written = () if self.pending is None else self.pending.operations
            setting.secrets.refuse((self.value, written), f"what {setting.act!r} has come to")
        if setting.parent is not None:
            self.packed = setting.keeper.pack(self)
        if self.retries is not None:
            self.retries.clear_crashes()
        self._end("succeeded")

    def take_over(self, end: ChildRecord | Done) -> None:
        """Note that it is Done, as ``end`` says, and that nobody has applied it.

        What it has written is in the outcome, or read by ``load_end`` where it is a record.
        """
        self.disposition = DONE
        self.status, self.value, self.elapsed = "succeeded", end.value, end.elapsed
        if isinstance(end, Done):
            self.head = (0, held(end.state))
            self.pending = NO_CHANGE
        else:
            self.resume_state().record = end
        retries = self.retry_state()
        retries.further = max(0, end.attempts - 1)
        retries.abandoned = end.abandoned

    def reopen(self) -> None:
        """Go on living, though its end was saved and published: its parent is tried again.

        What is Done stays so, and what is skipped: all that lacks is its parent's update.
        """
        self.permits = None  # those were of the group before, which has given them back
        self.used = True
        self._outcome = None
        if self.disposition.is_saved or self.disposition is SKIPPED:
            return
        if self.status == "succeeded":
            self._stay_done()
            return
        if self.disposition is not NEVER_STARTED:
            self.begin_attempt()
        self.disposition = LIVE
        if self.retries is not None and self.retries.lacks_value:
            self.pending = NO_CHANGE
        self.step = None
        self.began = False
        self.status = None
        self.error = None
        self.value = None
        if self.questions is not None:
            self.questions.begin_attempt()
        self.reason = ""
        self.started_at = self.setting.services.clock()

    def _stay_done(self) -> None:
        """Be Done from now on: its end is saved and published, its last update with it."""
        update = self.last_update
        number = self.head[0] if update is None else update.number
        self.head = number, self.final_data()
        self.pending = NO_CHANGE
        self.step = None
        self.began = False
        self.packed = None  # it has the last update in it
        self.disposition = DONE

    @property
    def outcome(self) -> Outcome:
        """How it ended, as a value."""
        if self._outcome is None:
            self._outcome = self._make_outcome()
        return self._outcome

    def _make_outcome(self) -> Outcome:
        common: dict[str, Any] = {
            "path": self.path,
            "position": self.position,
            "element": self.element,
            "elapsed": self.elapsed,
            "attempts": self.attempts,
            "abandoned": self.abandoned,
        }
        match self.status:
            case "succeeded":
                return Done(**common, value=self.value, state=self.final_state, used=self.used)
            case "failed":
                assert isinstance(self.error, Exception), "others are not outcomes"
                return Failed(**common, error=self.error)
            case "cancelled":
                return Cancelled(**common, reason=self.reason, winner=self.winner)
            case None:
                return Skipped(**common, reason=self.reason)
            case "halted":
                msg = f"run {self.path.id} rests, and has no outcome"
                raise AssertionError(msg)

    def _end(self, status: Status, *after: Status) -> None:
        """Set how it ended, and after how long; see the table of ``Run``.

        Args:
            status: How.
            after: What it may be instead of, besides nothing: an end that is not saved yet, or
                one that is none, since it rests.
        """
        if self.disposition.is_final or not (self.status is None or self.status in after):
            ended = self.status or self.disposition.why
            msg = f"run {self.path.id} has ended ({ended}), and can't be {status} any more"
            raise AssertionError(msg)
        self.elapsed = self.setting.services.clock() - self.started_at
        self.status = status

    def fail(self, error: Exception, *after: Status) -> None:
        """Note that the run ended with ``error``, and say in it where that was.

        Args:
            error: What it failed with.
            after: The ends that this may be instead of, none of which is saved.
        """
        self._end("failed", *after)
        self.setting.secrets.hide(error)
        self.pending = None
        self.value = None  # which may be what can't be kept
        # There will be no result, and the errors in there lead back to here.
        if self.steps is not None:
            for ledger in self.steps.all_ledgers():
                ledger.forget()
            self.steps.ledgers = {}
        if self.retries is not None and not isinstance(error, Poisoned):
            self.retries.clear_crashes()
        self.error = error
        self._note(error)

    def replace_end(self, error: Exception) -> None:
        """Note that it ended with ``error`` after all: what was told of its end has raised that.

        A cancellation is never replaced, nor a run that is halted.
        """
        if self.disposition.is_final or self.status not in ("succeeded", "failed"):
            path, status = self.path, self.status
            logger.error("at the end of run %s, which %s", path.id, status, exc_info=error)
            return
        own, self._outcome = self.error, None
        self.fail(error, "succeeded", "failed")
        if own is not None and own is not error:
            first: BaseException = error  # as Python does it, had the one been raised in the other
            while (context := context_of(first)) is not None and context is not own:
                first = context
            set_context(first, own)

    def cancel(self, reason: str, winner: ChildName | None = None, *after: Status) -> None:
        """Note that the run was cancelled before its end; in a race, because ``winner`` had won.

        Args:
            reason: Why.
            winner: Who has won.
            after: The ends that this may be instead of, none of which is saved.
        """
        self._end("cancelled", *after)
        self.pending = None
        if self.retries is not None:
            self.retries.clear_crashes()
        if self.steps is not None:
            for ledger in self.steps.all_ledgers():  # nobody raises the errors in there
                ledger.let_go()
        self.reason = self.setting.secrets.mask(reason)
        self.winner = winner

    def halt(self) -> None:
        """Note that it rests: its attempt waits for answers, or it was to stop here.

        What it is cancelled by, or what ends the execution, counts more.
        """
        failure = self.setting.execution.failure  # which its action may have hidden
        if failure is not None:
            self.fail(failure)
            return
        if cancelled():
            self.cancel(self.reason or "it was cancelled")
            return
        self._end("halted")
        self.pending = None
        if self.retries is not None:
            self.retries.clear_crashes()
        self.reason = ""
        self.value = plain(self.open_questions) if self.setting.parent is not None else None

    def rest(self, record: ChildRecord) -> None:
        """Note that nothing it waits for has been answered, so that it rests as before."""
        self.disposition = RESTING
        self.resume_state().record = record
        self.status, self.value = "halted", record.value

    def give_up(self, reason: str, winner: ChildName | None = None) -> None:
        """Note that it rests no more: nobody needs what it would have come to."""
        if self.disposition is RESTING:  # it has not begun in this execution
            self.disposition = NEVER_STARTED
        self.value = None
        elapsed = self.elapsed
        self.cancel(reason, winner, "halted")
        self.elapsed = elapsed

    def release_error(self) -> None:
        """Release its outcome, which was handed over: the frames of an error lead back to here."""
        self.error = None
        self._outcome = None

    def revoke_end(self) -> None:
        """Note that the run's end could not be saved: for everybody else it did not end well.

        Neither was it skipped or deferred, if nobody can know that later.
        """
        why = "its outcome could not be saved"
        if self.disposition in (SKIPPED, DEFERRED):
            self._outcome = None
            self.never_start(why)
        elif self.status is not None and not self.disposition.is_final:
            self._outcome = None
            self.error = None
            self.cancel(why, None, "succeeded", "failed", "cancelled", "halted")

    def never_start(self, reason: str, winner: ChildName | None = None) -> None:
        """Note that it was cancelled while it waited to start."""
        self.cancel(reason, winner)
        self.disposition = NEVER_STARTED

    def skip(self, reason: str) -> None:
        """Note that there is nothing to do for the element."""
        self.disposition = SKIPPED
        self.reason = reason

    def pass_over(self, reason: str) -> None:
        """Note that it isn't started now; it is when the run is resumed."""
        self.disposition = DEFERRED
        self.reason = reason
        self.used = False

    @property
    def lacks_history(self) -> bool:
        """Whether it is Done, and what it has written was not read yet."""
        return self.disposition is DONE and self.pending is None

    def keep_recorded(self, record: ChildRecord) -> None:
        """Note that an earlier execution has done all there is to do, as ``record`` says."""
        self.disposition = APPLIED_BEFORE
        self.resume_state().record = record
        self.value, self.elapsed = record.value, record.elapsed
        if record.status == "skipped":
            self.reason = record.reason
        else:
            self.status = "succeeded"

    @property
    def is_live(self) -> bool:
        """Whether it is lived, and not skipped, kept or Done before."""
        return self.disposition is LIVE

    def discard_result(self) -> None:
        """Note that the parent doesn't take what the child returned, if it hasn't long ago.

        One that is skipped returns nothing: its key has a result, which stays.
        """
        if not self.disposition.is_kept and self.disposition is not SKIPPED:
            self.used = False
            self._outcome = None

    def _note(self, error: BaseException) -> None:
        path = self.path
        where = f"in action {self.step!r}" if self.step is not None else f"in {path.act!r}"
        child = "" if path.parent is None else f" of {path.step!r}, key {brief(path.key)}"
        note(error, f"shoal: {where}{child}, run {path.id}")
