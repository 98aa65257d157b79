"""What a run that may be tried again remembers of how far it came, and of what it has asked.

Imports acts, events and history.
"""

from __future__ import annotations

from typing import Any, final

from ._action import Act
from ._events import Question
from ._history import QuestionAsked


@final
class Waits:
    """What a run waits for, in the step under way, and in this attempt."""

    __slots__ = ("asked", "below", "is_on", "posed")

    def __init__(self, asked: dict[str, QuestionAsked] | None = None) -> None:
        """Have ``asked`` so much before."""
        self.asked: dict[str, QuestionAsked] = {} if asked is None else asked
        """Its own questions in the step under way, by name."""
        self.posed: dict[str, object] = {}
        """What this attempt has asked so far."""
        self.below: dict[str, tuple[Question, ...]] = {}
        """What its children wait for, by the step that they belong to."""
        self.is_on: bool = False
        """Whether this attempt comes to nothing, since something has yet to be answered."""

    def begin_attempt(self) -> None:
        """Forget what the attempt before has come to."""
        self.posed.clear()
        self.below.clear()
        self.is_on = False


@final
class Trials:
    """What a run that may be tried again remembers of how far it came."""

    __slots__ = (
        "abandoned",
        "at",
        "attempt",
        "before",
        "crashes",
        "further",
        "is_cached",
        "is_suspect",
        "is_undecided",
        "kept",
        "lacks_value",
        "noted",
        "result_key",
        "waits",
    )

    def __init__(self) -> None:
        """Remember nothing yet."""
        self.attempt: int = 1
        """Which try of the current step this is."""
        self.further: int = 0
        """Tries beside the first, of all steps."""
        self.before: int = 0
        """Of these, how many were made in earlier rounds of a race, of whichever step."""
        self.at: Act | None = None
        """The act that failed, or was to come next; None: it has not come to any."""
        self.is_undecided: bool = False
        """Whether that act is completed, and only its edges could not be judged."""
        self.lacks_value: bool = False
        """Whether all of its steps are completed, and only its value could not be taken."""
        self.kept: dict[str, Any] = {}
        """What steps that failed are to go on with, by their names."""
        self.abandoned: bool = False
        """Whether a thread was left behind."""
        self.waits: Waits | None = None
        """What it waits for, if it has ever asked."""
        self.crashes: int = 0
        """Executions that have died while it was at work at its step, this one included..."""
        self.is_suspect: bool = False
        """...if this is set: then the store knows that it is at work."""
        self.noted: int = 0
        """How many of them the store has that keeps its history, which may not have its end."""
        self.result_key: str = ""
        """Under which key the result of its current step is remembered, with ``cache=``..."""
        self.is_cached: bool = False
        """...and whether it was, so that the step is not executed."""

    def clear(self, crashes: int = 0) -> None:
        """Hear that it got further, so that nothing is held against it."""
        self.crashes, self.is_suspect = crashes, False
