"""Limit the size of updates: warn of large ones, and refuse those that are too large.

Invariants:
- A store warns only of its first large update.
"""

from __future__ import annotations

import warnings
from typing import final

from shoal._errors.exceptions import UpdateTooLarge

LARGE = 1_000_000
"""Updates with more bytes are worth a warning: encoding one holds up the event loop, and every
resume reads it again."""

MAX_UPDATE = 64_000_000
"""The most bytes that an update may have by default."""


@final
class UpdateSizes:
    """Checks the size of each update that a store saves."""

    __slots__ = ("_has_warned", "max_update")
    _has_warned: bool

    def __init__(self, max_update: int = MAX_UPDATE, *, warns: bool = True) -> None:
        """Refuse updates of more than ``max_update`` bytes; warn of large ones if ``warns``."""
        self.max_update: int = max_update
        """The most bytes that an update may have."""
        self._has_warned = not warns

    def check(self, text: str, what: str) -> None:
        """Warn of a large update (once per store), and refuse one that is too large.

        Args:
            text: The encoded update.
            what: The update's name in messages: step, key and run.

        Raises:
            UpdateTooLarge: The update is larger than ``max_update``.
        """
        if 4 * len(text) < min(LARGE, self.max_update):  # UTF-8 has at most 4 bytes per character
            return
        size = size_of(text)
        if size > self.max_update:
            msg = (
                f"{what} has {size:,} bytes, and the store takes {self.max_update:,}: "
                f"keep large values in files and their names in the state, or raise max_update="
            )
            raise UpdateTooLarge(msg)
        if size > LARGE and not self._has_warned:
            self._has_warned = True
            msg = (
                f"{what} has {size:,} bytes: saving it takes long, and so does every resume; keep "
                f"large values in files and their names in the state"
            )
            warnings.warn(msg, UserWarning, stacklevel=2)


def size_of(text: str) -> int:
    """Return the number of bytes of ``text`` in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())
