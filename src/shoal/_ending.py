"""How a run ends, or rests: what is noted of it, and the values that say so.

Imports halting and events.

Invariants:
- One end. What has ended well, and could not be saved, did not end well for anybody.
- An outcome is final. A status is set in one place, ``Ender._end``, which knows what may follow
  what; a run with a final disposition never gets another one.
- What a run has ended with is let go of when nobody needs it: an error's frames lead back here.
- A cancellation, and what ends the whole execution, count more than that an attempt waits.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterator
from enum import Enum
from typing import Any, Protocol, final

from ._cancel import cancelled
from ._errors import Poisoned, brief, note
from ._events import Cancelled, ChildName, Done, Failed, Halted, Outcome, Skipped, Status
from ._halting import Halter, plain
from ._raised import context_of, set_context
from ._state import Change, State
from ._store import ChildRecord
from ._trials import ResumeState, RetryState, StepCounts

logger = logging.getLogger("shoal")


@final
class Disposition(Enum):
    """Whether a child is lived in this execution, and if not, why not.

    It is set by sources, admission and what resumes; nothing derives it from a reason or a status.
    """

    #                what it means                                          kept   saved  final
    LIVE = "it is lived", False, False, False
    SKIPPED = "its key has a result already", False, False, False
    DEFERRED = "its circuit is open: it runs when the run is resumed", False, False, False
    NEVER_STARTED = "it was cancelled while it waited to start", False, False, False
    DONE = "it is Done, and only has to be applied", False, True, True
    APPLIED_BEFORE = "an earlier execution has done all there is to do", True, True, True
    RESTING = "it would only come to a question that is still open", True, True, False

    def __init__(self, why: str, is_kept: bool, is_saved: bool, is_final: bool) -> None:  # a row
        """Say what it means. Each child is asked for these, so they are attributes and no sets."""
        self.why: str = why
        """What it means."""
        self.is_kept: bool = is_kept
        """Whether the ledger has counted it when it came up, so that its end isn't counted."""
        self.is_saved: bool = is_saved
        """Whether its end is saved and published, and not to be again."""
        self.is_final: bool = is_final
        """Whether it never gets another outcome."""


LIVE = Disposition.LIVE
SKIPPED = Disposition.SKIPPED
DEFERRED = Disposition.DEFERRED
NEVER_STARTED = Disposition.NEVER_STARTED
DONE = Disposition.DONE
APPLIED_BEFORE = Disposition.APPLIED_BEFORE
RESTING = Disposition.RESTING


class Kept(Protocol):
    """What a run keeps of how the children of a step ended: a ledger."""

    def forget(self) -> None:
        """Let go of the outcomes."""
        ...

    def let_go(self) -> None:
        """Keep as data the failures that might have been raised, and won't be."""
        ...


class Ender(Halter):
    """The part of a run that ends."""

    __slots__ = ()
    position: int
    element: object
    status: Status | None
    error: BaseException | None
    reason: str
    winner: ChildName | None
    """Of the race that it was cancelled for."""
    used: bool
    value: object
    elapsed: float
    """Seconds from its start to its end."""
    disposition: Disposition
    pending: Change | None
    _outcome: Outcome | None
    started_at: float
    step: str | None

    resume: ResumeState | None
    retries: RetryState | None
    steps: StepCounts | None

    @abstractmethod
    def resume_state(self) -> ResumeState:
        """Return what earlier executions have left of it."""

    @property
    @abstractmethod
    def attempts(self) -> int:
        """Tries of the step that it ended in."""

    @property
    @abstractmethod
    def abandoned(self) -> bool:
        """Whether it has left a thread behind that still ran."""

    @property
    @abstractmethod
    def final_state(self) -> State:
        """Its state as the last step left it, committed or not."""

    @property
    def outcome(self) -> Outcome:
        """How it ended, as a value."""
        if self._outcome is None:
            self._outcome = self._make_outcome()
        return self._outcome

    @property
    def halted(self) -> Halted:
        """How it rests, as a value."""
        return Halted(**self._what_all_say(), questions=self.waits_for)

    def _what_all_say(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "position": self.position,
            "element": self.element,
            "elapsed": self.elapsed,
            "attempts": self.attempts,
            "abandoned": self.abandoned,
        }

    def _make_outcome(self) -> Outcome:
        common = self._what_all_say()
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
        """Set how it ended, and after how long. Nothing else sets a status but ``Run.succeed``.

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
            for ledger in _all(self.steps.ledgers):
                ledger.forget()
            self.steps.ledgers = {}
        if self.retries is not None and not isinstance(error, Poisoned):
            self.retries.clear_crashes()
        self.error = error
        self._note(error)

    def spoil(self, error: Exception) -> None:
        """Note that it ended with ``error`` after all: what was told of its end has raised that.

        That is never instead of a cancellation, and nothing for who waits for an answer.
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
            for ledger in _all(self.steps.ledgers):  # nobody raises the errors in there
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

    def forget(self) -> None:
        """Let go of the error that it ended with, whose traceback leads back to here."""
        self.error = None
        self.setting.execution.forget()

    def let_go(self) -> None:
        """Let go of its outcome, which somebody has taken: an error's frames lead back to here."""
        self.error = None
        self._outcome = None

    def give_reason(self, reason: str) -> None:
        """Hear why it is about to be cancelled."""
        self.reason = reason

    def lose(self) -> None:
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

    def miss(self) -> None:
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


def _all(ledgers: dict[str, list[Any]]) -> Iterator[Kept]:
    """Go through the ledgers of all steps."""
    for of_step in ledgers.values():
        yield from of_step
