"""What a run that may be tried again remembers of how far it came. Imports acts."""

from __future__ import annotations

from typing import Any, final

from ._action import Act


@final
class Trials:
    """What a run that may be tried again remembers of how far it came."""

    __slots__ = (
        "abandoned",
        "at",
        "attempt",
        "crashes",
        "further",
        "is_suspect",
        "is_undecided",
        "kept",
        "last_step",
    )

    def __init__(self) -> None:
        """Remember nothing yet."""
        self.attempt: int = 1
        """Which try of the current step this is."""
        self.further: int = 0
        """Tries beside the first, of all steps."""
        self.at: Act | None = None
        """The act that failed, or was to come next; None: it has not come to any."""
        self.is_undecided: bool = False
        """Whether that act is completed, and only its edges could not be judged."""
        self.last_step: str | None = None
        """The last of all its steps, if it has ended well, and was published to have ended."""
        self.kept: dict[str, Any] = {}
        """What steps that failed are to go on with, by their names."""
        self.abandoned: bool = False
        """Whether a thread was left behind."""
        self.crashes: int = 0
        """Executions that have died while it was at work at its step, this one included..."""
        self.is_suspect: bool = False
        """...if this is set: then the store knows that it is at work."""

    def clear(self, crashes: int = 0) -> None:
        """Hear that it got further, so that nothing is held against it."""
        self.crashes, self.is_suspect = crashes, False
