"""What becomes of a child that isn't lived: ``Disposition``, a value. Imports nothing."""

from __future__ import annotations

from enum import Enum
from typing import final


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
