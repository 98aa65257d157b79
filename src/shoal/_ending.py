"""How a run ends, or rests: what is noted of it, and the values that say so.

Imports halting and events.

Invariants:
- One end. What has ended well, and could not be saved, did not end well for anybody.
- What a run has ended with is let go of when nobody needs it: an error's frames lead back here.
- A cancellation, and what ends the whole execution, count more than that an attempt waits.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import Any

from ._cancel import cancelled
from ._errors import Poisoned, brief, note
from ._events import Cancelled, ChildName, Done, Failed, Halted, Outcome, Skipped, Status
from ._halting import Halter, plain
from ._raised import context_of, set_context
from ._state import Change, State
from ._store import ChildRecord

logger = logging.getLogger("shoal")


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
    record: ChildRecord | None
    is_kept: bool
    never_started: bool
    _last: Change | None
    _ledgers: dict[str, list[Any]] | None
    _outcome: Outcome | None
    _started_at: float
    _step: str | None

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

    def fail(self, error: Exception) -> None:
        """Note that the run ended with ``error``, and say in it where that was."""
        self.setting.secrets.hide(error)
        self._last = None
        self.value = None  # which may be what can't be kept
        self._ledgers = None  # there will be no result, and the errors in there lead back to here
        if self._trials is not None and not isinstance(error, Poisoned):
            self._trials.clear()
        self.elapsed = self.setting.services.clock() - self._started_at
        self.status = "failed"
        self.error = error
        self._note(error)

    def spoil(self, error: Exception) -> None:
        """Note that it ended with ``error`` after all: what was told of its end has raised that.

        That is never instead of a cancellation, and nothing for who waits for an answer.
        """
        if self.status not in ("succeeded", "failed"):
            path, status = self.path, self.status
            logger.error("at the end of run %s, which %s", path.id, status, exc_info=error)
            return
        own, self._outcome = self.error, None
        self.fail(error)
        if own is not None and own is not error:
            first: BaseException = error  # as Python does it, had the one been raised in the other
            while (context := context_of(first)) is not None and context is not own:
                first = context
            set_context(first, own)

    def cancel(self, reason: str, winner: ChildName | None = None) -> None:
        """Note that the run was cancelled before its end; in a race, because ``winner`` had won."""
        self._last = None
        if self._trials is not None:
            self._trials.clear()
        self.elapsed = self.setting.services.clock() - self._started_at
        self.status = "cancelled"
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
        self._last = None
        if self._trials is not None:
            self._trials.clear()
        self.elapsed = self.setting.services.clock() - self._started_at
        self.status = "halted"
        self.reason = ""
        self.value = plain(self.questions) if self.setting.parent is not None else None

    def rest(self, record: ChildRecord) -> None:
        """Note that nothing it waits for has been answered, so that it rests as before."""
        self.is_kept = True
        self.record = record
        self.status, self.value = "halted", record.value

    def give_up(self, reason: str, winner: ChildName | None = None) -> None:
        """Note that it rests no more: nobody needs what it would have come to."""
        if self.is_kept:  # it has not begun in this execution
            self.is_kept, self.never_started = False, True
        self.value = None
        elapsed = self.elapsed
        self.cancel(reason, winner)
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
        """Note that the run's end could not be saved: for everybody else it did not end well."""
        if self.status is not None:
            self._outcome = None
            self.error = None
            self.cancel("its outcome could not be saved")

    def skip(self, reason: str) -> None:
        """Note that there is nothing to do for the element."""
        self.reason = reason

    def pass_over(self, reason: str) -> None:
        """Note that it isn't started now; it is when the run is resumed."""
        self.reason = reason
        self.used = False

    def keep_recorded(self, record: ChildRecord) -> None:
        """Note that an earlier execution has done all there is to do, as ``record`` says."""
        self.is_kept = True
        self.record = record
        self.value, self.elapsed = record.value, record.elapsed
        if record.status == "skipped":
            self.reason = record.reason
        else:
            self.status = "succeeded"

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing to be lived: it is skipped, or kept."""
        return self.is_kept or bool(self.reason)

    def miss(self) -> None:
        """Note that the parent doesn't take what the child returned, if it hasn't long ago."""
        if not self.is_kept:
            self.used = False
            self._outcome = None

    def _note(self, error: BaseException) -> None:
        path = self.path
        where = f"in action {self._step!r}" if self._step is not None else f"in {path.act!r}"
        child = "" if path.parent is None else f" of {path.step!r}, key {brief(path.key)}"
        note(error, f"shoal: {where}{child}, run {path.id}")
