"""One run, as a record: its identity, its progress and its end. Nothing in it is awaited.

The functions that walk a run, commit to it and publish its events are in modules of their own.

Invariants:
- A run ends once: succeeded, failed, cancelled or halted. The status is set in one place,
  ``Run._end``, which knows which status may replace which. A run with a final disposition never
  gets another end.
- A success that could not be saved is no success, for the parent and for hooks.
- A run releases its error once its outcome was handed over: the frames of an error lead back here.
- A cancellation, and an error that ends the whole execution, outrank a halt.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Mapping
from typing import Any, final

from shoal._concurrency.cancellation import cancelled
from shoal._errors.exceptions import Poisoned
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
from shoal._events.identity import Key, RunPath, child_path
from shoal._events.making import COMMON, make_done
from shoal._graph.act import Act
from shoal._graph.action import FunctionAction
from shoal._limits.passes import Pass
from shoal._limits.permits import HeldPermits
from shoal._state.state import NO_CHANGE, Change, State, as_named, held, make_state, typed
from shoal.stores._history import ReplayedHistory
from shoal.stores._protocol import ChildRecord

from .config import RunConfig
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
from .whereabouts import note_where

logger = logging.getLogger("shoal")


@final
class Run:
    """One execution of an application or a child: its state, and its place in the graph.

    A run is cheap, since a fan-out makes one per element: it is one object, attributes that can be
    derived are derived when they are read, and records that few runs need are made on first use.

    How the status changes:

    =================  ====================  =========  ========================================
    by                 from                  to         when
    =================  ====================  =========  ========================================
    ``succeed``        no end                succeeded  all steps are completed
    ``fail``           no end                failed     a step has raised
    ``cancel``         no end                cancelled  a cancellation has reached the run
    ``never_start``    no end                cancelled  it was cancelled before its start
    ``halt``           no end                halted     it waits for answers, or begins no step
    ``give_up``        halted                cancelled  its answers are not needed any more
    ``replace_end``    succeeded, failed     failed     a hook that received the end has raised
    ``revoke_end``     any, or skipped       cancelled  its end could not be saved
    ``reopen``         any that isn't final  no end     its parent is retried, or it has answers
    ``take_over``      no end                succeeded  a record says so, not applied yet
    ``keep_recorded``  no end                succeeded  a record says so, applied long ago
    ``rest``           no end                halted     a record says so, no answer has come
    ``rest_again``     no end                halted     it has answers, and was not started again
    =================  ====================  =========  ========================================
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
        "passed",
        "pending",
        "permits",
        "position",
        "questions",
        "reason",
        "resume",
        "retries",
        "config",
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
        config: RunConfig,
        data: Mapping[str, object],
        key: Key = "",
        position: int = 0,
        element: object = None,
        *,
        path: RunPath | None = None,
    ) -> None:
        """Start at the entry of the graph, with the state ``data``."""
        # Identity: never changes. A root run has no key, position or element.
        self.config: RunConfig = config
        self.key: Key = key
        self.position: int = position
        self.element: object = element

        # Progress.
        # The number of the last update, and the state after it. One attribute, so that a
        # KeyboardInterrupt between two bytecodes can't tear them apart. Only a commit sets it, or
        # replay; the mapping in it is never changed.
        self.head: tuple[int, Mapping[str, object]] = (0, data)
        # The last step's change: decided, and saved by the commit that saves the end. None until
        # all steps are completed; `NO_CHANGE` if the last step is saved already.
        self.pending: Change | None = None
        # The state before the first update, by which the digest is made and histories are replayed.
        self.initial: Mapping[str, object] = data
        # The step that has started and not ended. A child's last step stays: it ends with the run.
        self.step: str | None = None
        # Whether the run's start is published, so that its end must be. Reset by `reopen`, and
        # when the end of a halted run is published.
        self.began: bool = False

        # The end: the table above says which status may replace which.
        # None until the end, and for good if the child is skipped.
        self.status: Status | None = None
        # `LIVE` unless the child is not executed; set by admission, sources and replay.
        self.disposition: Disposition = LIVE
        # Only of a failed run. Released once the outcome was handed over.
        self.error: BaseException | None = None
        # Why it was cancelled, skipped or deferred. Set before the end in a root run.
        self.reason: str = ""
        # Of a child that succeeded. Of a halted child, its open questions as plain data.
        self.value: object = None
        # Whether the parent takes the value. False for losers that succeeded, and deferred ones.
        self.used: bool = True
        self.elapsed: float = 0.0  # seconds; 0 until the end
        # The contestant that has won, if the run was cancelled because of that.
        self.winner: ChildName | None = None
        self.started_at: float = config.services.clock()  # again by `reopen`
        # The end as the parent's store encodes it, made when the child succeeds: a value that
        # can't be saved fails the child then, and not its parent later.
        self.packed: object = None

        # Records that few runs need: None until the methods of similar names make them.
        self.retries: RetryState | None = None
        self.questions: PendingQuestions | None = None
        self.resume: ResumeState | None = None
        self.steps: StepCounts | None = None
        self.permits: HeldPermits | None = None
        self.passed: Pass | None = None  # what it has taken past the requests for `permits`

        # Made when read, which few children are. The outcome is dropped when the run changes.
        self._path = path
        self._outcome: Outcome | None = None
        if config.secrets.names and config.parent is not None:
            config.secrets.refuse((key, element), f"an element of {config.step!r}, or its key,")
        # Of the state before a model adds defaults, and before the action runs: no data is refused.
        self._digest: str | None = config.digest(data, key) if config.keeps else None

    # -- identity and progress ------------------------------------------------------------------

    @property
    def path(self) -> RunPath:
        """The run's identity."""
        path = self._path
        if path is None:
            config = self.config
            assert config.parent is not None, "a root run was given its path"
            path = self._path = child_path(
                config.parent, config.step, config.visit, config.act, self.key
            )
        return path

    @property
    def data(self) -> Mapping[str, object]:
        """The fields of the committed state. They must not be changed."""
        return self.head[1]

    @property
    def ledgers(self) -> dict[str, list[Any]]:
        """One ``Ledger`` for each visit of a fan-out, by the step's name."""
        return self.step_counts().ledgers

    @property
    def attempts(self) -> int:
        """The number of attempts, for the outcome; 0 if the run never started."""
        if self.status is None or self.disposition is NEVER_STARTED:
            return 0
        return 1 if self.retries is None else 1 + self.retries.further

    @property
    def abandoned(self) -> bool:
        """Whether the run has left a thread behind that still ran."""
        return self.retries is not None and self.retries.abandoned

    @property
    def crashes(self) -> int:
        """Executions in a row that died while the run was at work; see ``SavedRun``."""
        return 0 if self.retries is None else self.retries.crashes

    @property
    def age(self) -> float:
        """Seconds since the run's start."""
        return self.config.services.clock() - self.started_at

    @property
    def digest(self) -> str:
        """A hash of the input of a child; see ``SavedRun``."""
        if self._digest is None:
            self._digest = self.config.digest(self.initial, self.key)
        return self._digest

    @property
    def playback(self) -> ReplayedHistory | None:
        """The saved history, as long as the run is at the step that was under way in it."""
        return None if self.resume is None else self.resume.replayed

    def is_undone(self, number: int) -> bool:
        """Return whether the update of that number was undone by going back."""
        resume = self.resume
        return resume is not None and resume.is_undone is not None and resume.is_undone(number)

    def visit(self, step: str) -> int:
        """Return the number of the current visit of ``step``: how often the run completed it."""
        return 0 if self.steps is None else self.steps.visits.get(step, 0)

    @property
    def begins_anew(self) -> bool:
        """Whether the run starts at its entry, as far as that is known before it starts."""
        is_first, resume = self.retries is None and self.questions is None, self.resume
        if resume is None:
            return is_first
        return resume.record is None and (is_first or resume.is_afresh)

    @property
    def number(self) -> int:
        """The number of the last update; 0 before the first."""
        return self.head[0]

    @property
    def state(self) -> State:
        """The committed state."""
        return self._state_of(self.head[1])

    @property
    def final_state(self) -> State:
        """The state after the last step, committed or not."""
        return self._state_of(self.final_data())

    def _state_of(self, data: Mapping[str, object]) -> State:
        schema, state = self.config.schema, make_state(data)
        return state if schema is None else typed(state, schema)

    @property
    def last_update(self) -> Update | None:
        """The last update, which the parent's commit saves; None if there is none."""
        pending = self.pending
        operations = () if pending is None else pending.operations
        if not operations:
            return None
        return as_named(Update, (self.head[0] + 1, self.step or "", operations, (), 0))

    def final_field(self, field: str) -> object:
        """Return a field of the state after the last step; raise KeyError if there is none."""
        # The usual value of a child is a field that its last step wrote: no state is built for it.
        change = self.pending
        if change is not None and field in change.values:
            return change.values[field]
        return self.final_data()[field]

    def final_data(self) -> Mapping[str, object]:
        """Return the fields of the state after the last step, committed or not."""
        data = self.head[1]
        return data if self.pending is None else self.pending.applied_to(data)

    # -- permits --------------------------------------------------------------------------------

    @property
    def slot_owner(self) -> Run:
        """The child of a fan-out that the run is part of as a nested graph, or the run itself."""
        return self.config.host or self

    def held_permits(self) -> HeldPermits:
        """Return the permits that the run holds; the record is made on first use."""
        if self.permits is None:
            self.permits = HeldPermits(self.config.execution, self.config.in_flight)
        return self.permits

    @property
    def is_starting(self) -> bool:
        """Whether the run has completed no step yet, nor has the child that it is part of."""
        is_at_entry = self.pending is None and (self.steps is None or not self.steps.visits)
        return is_at_entry and self.config.begins_host

    # -- records that most runs never need: each method makes its record on first use -----------

    def retry_state(self) -> RetryState:
        """Return the record of attempts and crashes."""
        if self.retries is None:
            self.retries = RetryState()
        return self.retries

    def pending_questions(self) -> PendingQuestions:
        """Return the record of open questions."""
        if self.questions is None:
            self.questions = PendingQuestions()
        return self.questions

    def resume_state(self) -> ResumeState:
        """Return the record of earlier executions."""
        if self.resume is None:
            self.resume = ResumeState()
        return self.resume

    def step_counts(self) -> StepCounts:
        """Return the record of completed steps."""
        if self.steps is None:
            self.steps = StepCounts()
        return self.steps

    # -- the methods of ``Performer``, which acts call -------------------------------------------

    def call(self, action: FunctionAction[..., object]) -> Awaitable[Change]:
        """Execute a function action on the current state."""
        return self.config.services.call(self, action)

    def enter(self, graph: Act) -> Awaitable[Change]:
        """Execute a graph as a run of its own."""
        return self.config.services.enter(graph, self)

    def fan_out(self, parallel: Act) -> Awaitable[Change]:
        """Execute the children of a parallel act."""
        return self.config.services.fan_out(parallel, self)

    # -- retries --------------------------------------------------------------------------------

    @property
    def attempt(self) -> int:
        """The number of the current attempt of the current step, from 1."""
        return 1 if self.retries is None else self.retries.attempt

    @property
    def is_cached(self) -> bool:
        """Whether the current step is not executed, since its result was found in the cache."""
        return self.retries is not None and self.retries.is_cached

    def begin_attempt(self) -> None:
        """Count another attempt of the current step."""
        retries = self.retry_state()
        retries.attempt += 1
        retries.further += 1

    def count_earlier_attempts(self, attempts: int) -> None:
        """Count on from so many attempts, which were made in earlier rounds of a race.

        Partial items have the number of their attempt, so items of this round differ from earlier
        ones. The steps that the run reached then are unknown, so each step counts on.
        """
        if attempts:
            retries = self.retry_state()
            retries.before = retries.further = attempts
            retries.attempt = attempts + 1

    def retain(self, step: str, what: object, *, is_halted: bool = False) -> None:
        """Retain the fan-out of a failed step for the next attempt, if there may be one."""
        if self.config.is_resumable or is_halted:
            self.retry_state().retained[step] = what

    def take_retained(self, step: str) -> object:
        """Return the fan-out that an attempt of ``step`` continues, and forget it; None: none."""
        return None if self.retries is None else self.retries.retained.pop(step, None)

    @property
    def is_halting(self) -> bool:
        """Whether the current attempt is halted, since it waits for an answer or a breakpoint."""
        return self.questions is not None and self.questions.is_halting

    @property
    def open_questions(self) -> tuple[Question, ...]:
        """The open questions of the run and its descendants: its own first, then its children's."""
        if self.questions is None:
            return ()
        return self.questions.in_order(self.path, self.config.execution.answers)

    # -- ends -----------------------------------------------------------------------------------

    def succeed(self) -> None:
        """End the run as succeeded, and take its value from its final state.

        Raises:
            NotData: The value, or a field of the last update, can't be saved.
            UpdateTooLarge: They are too large to be saved.
            SecretLeaked: They hold a secret.
        """
        config = self.config
        # All that may raise comes before `_end`: then the run fails and has no end to revoke.
        if config.value_of is not None:
            self.value = config.value_of(self)
        if config.secrets.names and config.parent is not None:
            written = () if self.pending is None else self.pending.operations
            config.secrets.refuse((self.value, written), f"what {config.act!r} has come to")
        if config.packs:
            self.packed = config.keeper.pack(self)
        if self.retries is not None:
            self.retries.clear_crashes()
        self._end("succeeded")

    def take_over(self, end: ChildRecord | Done) -> None:
        """Take the success in ``end``, of an earlier execution, that is not applied yet.

        If ``end`` is a record, ``load_end`` reads the final state later.
        """
        self.disposition = DONE
        # Not by `_end`: this execution has not ended it, and `elapsed` is the recorded one.
        self.status, self.value, self.elapsed = "succeeded", end.value, end.elapsed
        if isinstance(end, Done):
            self.head = (0, held(end.state))
            self.pending = NO_CHANGE
        else:
            self.resume_state().record = end
        retries = self.retry_state()
        retries.further = max(0, end.attempts - 1)
        retries.abandoned = end.abandoned

    def reopen(self, *, counts: bool = True) -> None:
        """Take back the end, since the parent is retried and continues with this child.

        A child that is done or skipped stays so: only the parent's update is missing. With
        ``counts=False`` no attempt is counted: a halted child has its answers.
        """
        self.permits = self.passed = None  # the group before has released them
        self.used = True
        self._outcome = None
        is_kept = self.disposition.is_saved and (counts or self.disposition is not RESTING)
        if is_kept or self.disposition is SKIPPED:
            return
        if self.status == "succeeded":
            self._stay_done()
            return
        if counts and self.disposition is not NEVER_STARTED:
            self.begin_attempt()  # its attempts are counted over all rounds
        self.disposition = LIVE
        # All its steps are saved, and only its value is missing: it must not walk again.
        if self.retries is not None and self.retries.lacks_value:
            self.pending = NO_CHANGE
        self.step, self.began = None, False
        self.status = None
        self.error = None
        self.value = None
        if self.questions is not None:
            self.questions.begin_attempt()
        self.reason = ""
        self.started_at = self.config.services.clock()

    def _stay_done(self) -> None:
        """Become ``DONE``: the end is saved and published, with the last update."""
        update = self.last_update
        number = self.head[0] if update is None else update.number
        self.head = number, self.final_data()
        self.pending = NO_CHANGE
        self.step = None
        self.began = False
        self.packed = None  # it contains the last update, which must not be saved twice
        self.disposition = DONE

    @property
    def outcome(self) -> Outcome:
        """The run's end, as the value that callers and hooks receive."""
        if self._outcome is None:
            self._outcome = self._make_outcome()
        return self._outcome

    def _make_outcome(self) -> Outcome:
        if self.status == "succeeded":  # as most are, and hooks receive one for each child
            return make_done(self, self.config.schema)
        common: dict[str, Any] = {name: getattr(self, name) for name in COMMON}
        match self.status:
            case "failed":
                assert isinstance(self.error, Exception), "others propagate and are no outcomes"
                return Failed(**common, error=self.error)
            case "cancelled":
                return Cancelled(**common, reason=self.reason, winner=self.winner)
            case None:
                return Skipped(**common, reason=self.reason)
            case "halted":
                msg = f"run {self.path.id} is halted, and has no outcome"
                raise AssertionError(msg)

    def _end(self, status: Status, *after: Status) -> None:
        """Set the status and the elapsed time; see the table of ``Run``.

        Args:
            status: The new status.
            after: Statuses that it may replace, besides None: ends that are not saved yet, and
                ``halted``, which is no end.
        """
        # A bug in the engine: users can't cause it, so it isn't one of their errors.
        if self.disposition.is_final or not (self.status is None or self.status in after):
            ended = self.status or self.disposition.why
            msg = f"run {self.path.id} has ended ({ended}), and can't be {status} any more"
            raise AssertionError(msg)
        self.elapsed = self.config.services.clock() - self.started_at
        self.status = status

    def fail(self, error: Exception, *after: Status) -> None:
        """End the run as failed with ``error``, and note in it where that was.

        Args:
            error: The failure.
            after: The statuses that this may replace, none of which is saved.
        """
        self._end("failed", *after)
        self.config.secrets.hide(error)  # before anything can see it
        self.pending = None
        self.value = None  # the value may be the reason: one that can't be saved
        # No result will hand these ledgers over, and the errors in them lead back here.
        if self.steps is not None:
            for ledger in self.steps.all_ledgers():
                ledger.forget()
            self.steps.ledgers = {}
        # A poisoned run keeps its count, so that it stays poisoned when the run is resumed; see
        # test_it_stays_condemned_though_others_kill_too.
        if self.retries is not None and not isinstance(error, Poisoned):
            self.retries.clear_crashes()
        self.error = error
        note_where(error, self.path, self.step, self.config.graph)

    def replace_end(self, error: Exception) -> None:
        """End the run as failed with ``error`` instead: a hook that received its end has raised it.

        A cancellation is never replaced, nor a halt; then the error is only logged.
        """
        if self.disposition.is_final or self.status not in ("succeeded", "failed"):
            path, status = self.path, self.status
            logger.error("at the end of run %s, which %s", path.id, status, exc_info=error)
            return
        own, self._outcome = self.error, None
        self.fail(error, "succeeded", "failed")
        # Chained as Python does it, at the end of the chain, so that no context is lost.
        if own is not None and own is not error:
            first: BaseException = error
            while (context := context_of(first)) is not None and context is not own:
                first = context
            set_context(first, own)

    def cancel(self, reason: str, winner: ChildName | None = None, *after: Status) -> None:
        """End the run as cancelled.

        Args:
            reason: Why it was cancelled.
            winner: The contestant that has won, if that is why.
            after: The statuses that this may replace, none of which is saved.
        """
        self._end("cancelled", *after)
        self.pending = None  # a cancelled step is never completed
        if self.retries is not None:
            self.retries.clear_crashes()
        if self.steps is not None:
            # The errors of children are not raised any more, and their frames lead back here.
            for ledger in self.steps.all_ledgers():
                ledger.release_errors()
        secrets = self.config.secrets
        # Many may be cancelled at once, mostly without secrets: saves a call for each.
        self.reason = secrets.mask(reason) if secrets.names else reason
        self.winner = winner

    def halt(self) -> None:
        """End the run's execution as halted: it waits for answers, or begins no further step.

        An error that ends the whole execution outranks that, and so does a cancellation.
        """
        # The action may have caught the error of a failed save; see
        # test_a_save_that_has_failed_counts_more_than_a_question.
        failure = self.config.execution.failure
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
        self.reason = self.config.secrets.mask(self.config.execution.drain.halted_by)
        self.value = plain(self.open_questions) if self.config.parent is not None else None

    def rest(self, record: ChildRecord) -> None:
        """Stay halted as in an earlier execution, since none of the open questions is answered."""
        self.disposition = RESTING
        self.resume_state().record = record
        self.status, self.value = "halted", record.value

    def rest_again(self, asked: object) -> None:
        """Stay halted: it had its answers, and was not started with them; ``asked`` as recorded."""
        self.status, self.value = "halted", asked

    def give_up(self, reason: str, winner: ChildName | None = None) -> None:
        """End a halted run as cancelled, since its result is not needed any more."""
        if self.disposition is RESTING:  # it has not started in this execution
            self.disposition = NEVER_STARTED
        self.value = None
        elapsed = self.elapsed  # the time in which it waited for a person is not its own
        self.cancel(reason, winner, "halted")
        self.elapsed = elapsed

    def release_error(self) -> None:
        """Release the outcome, which was handed over: the frames of its error lead back here."""
        self.error = None
        self._outcome = None

    def revoke_end(self) -> None:
        """End the run as cancelled, skipped or not, since its end could not be saved."""
        why = "its outcome could not be saved"
        if self.disposition in (SKIPPED, DEFERRED):
            self._outcome = None
            self.never_start(why)
        elif self.status is not None and not self.disposition.is_final:
            self._outcome = None
            self.error = None
            self.cancel(why, None, "succeeded", "failed", "cancelled", "halted")

    def never_start(self, reason: str, winner: ChildName | None = None) -> None:
        """End the run as cancelled before its start."""
        self.cancel(reason, winner)  # first: it refuses a run that has ended
        self.disposition = NEVER_STARTED

    def skip(self, reason: str) -> None:
        """Skip the child: its key has a result already. ``status`` stays None."""
        self.disposition = SKIPPED
        self.reason = reason

    def pass_over(self, reason: str) -> None:
        """Defer the child: it is started when the run is resumed. ``status`` stays None."""
        self.disposition = DEFERRED
        self.reason = reason
        self.used = False

    @property
    def lacks_history(self) -> bool:
        """Whether the run is done, and its final state was not read yet; see ``load_end``."""
        return self.disposition is DONE and self.pending is None

    def keep_recorded(self, record: ChildRecord) -> None:
        """Take the end in ``record``, which an earlier execution has applied already."""
        self.disposition = APPLIED_BEFORE
        self.resume_state().record = record
        self.value, self.elapsed = record.value, record.elapsed
        if record.status == "skipped":
            self.reason = record.reason
        else:
            self.status = "succeeded"

    @property
    def is_live(self) -> bool:
        """Whether the child is executed, and not skipped, deferred or done before."""
        return self.disposition is LIVE

    def discard_result(self) -> None:
        """Drop the child's value, which the parent doesn't take.

        A value that an earlier execution has applied stays. So does the earlier result of a key
        that is skipped.
        """
        if not self.disposition.is_kept and self.disposition is not SKIPPED:
            self.used = False
            self._outcome = None
