"""``Disposition``: whether a child is executed, and why not."""

from __future__ import annotations

from enum import Enum
from typing import final


@final
class Disposition(Enum):
    """Whether this execution runs a child, and if not, why not.

    Sources, admission and replay set it. It is never derived from a reason or a status: a child
    that was cancelled, for example, may have started or not.
    """

    # Each row: the meaning, which errors quote; then counted, kept, saved, final, as declared
    # below. No child goes from a final disposition to another one.
    LIVE = "it is executed", False, False, False, False
    SKIPPED = "its key has a result already", False, False, False, False
    DEFERRED = "its circuit is open: it runs when the run is resumed", False, False, False, False
    # Not saved: its end is made by this execution, like that of a child that was cancelled at work.
    NEVER_STARTED = "it was cancelled while it waited to start", False, False, False, False
    # Not kept: the parent's update is all that is missing of it.
    DONE = "it is Done, and only has to be applied", True, False, True, True
    APPLIED_BEFORE = "an earlier execution has done all there is to do", True, True, True, True
    # Not final: it may be cancelled with its group, or lose a race.
    RESTING = "it would only ask a question that is still open", False, True, True, False

    def __init__(
        self, why: str, is_counted: bool, is_kept: bool, is_saved: bool, is_final: bool
    ) -> None:
        """Read one row. Attributes, and not sets of members: every child is asked for them."""
        self.why: str = why
        """The meaning, for errors."""
        self.is_counted: bool = is_counted
        """Whether the step's ledger has counted the child before it comes to be applied."""
        self.is_kept: bool = is_kept
        """Whether the parent applies nothing of it: that was done before, or it has no end."""
        self.is_saved: bool = is_saved
        """Whether the child's end is saved and published already, and must not be again."""
        self.is_final: bool = is_final
        """Whether the child never gets another outcome."""


# Module names, since looking a member up on its class costs more, and every child is compared.
LIVE = Disposition.LIVE
SKIPPED = Disposition.SKIPPED
DEFERRED = Disposition.DEFERRED
NEVER_STARTED = Disposition.NEVER_STARTED
DONE = Disposition.DONE
APPLIED_BEFORE = Disposition.APPLIED_BEFORE
RESTING = Disposition.RESTING
