"""How large an update may be: what stores say of those that are. Imports errors.

Invariants:
- Of many large updates only the first is warned of.
"""

from __future__ import annotations

import warnings
from typing import final

from shoal._errors.exceptions import UpdateTooLarge

LARGE = 1_000_000
"""Bytes from which on an update is worth a warning."""

MAX_UPDATE = 64_000_000
"""Bytes that a store takes, unless it is told otherwise."""


@final
class UpdateSizes:
    """Looks at the size of each update that one store saves."""

    __slots__ = ("_has_warned", "max_update")
    _has_warned: bool

    def __init__(self, max_update: int = MAX_UPDATE) -> None:
        """Refuse what is larger than ``max_update`` bytes."""
        self.max_update: int = max_update
        """Bytes that an update may have."""
        self._has_warned = False

    def check(self, text: str, what: str) -> None:
        """Warn of an update that is large, once, and refuse one that is too large.

        Args:
            text: What would be saved.
            what: What messages call it: step, key and run.

        Raises:
            UpdateTooLarge: It is larger than ``max_update``.
        """
        if 4 * len(text) < min(LARGE, self.max_update):  # no character has more bytes
            return
        size = size_of(text)
        if size > self.max_update:
            msg = (
                f"{what} is an update of {size:,} bytes, and the store takes {self.max_update:,}: "
                f"keep what is large in files and their names in the state, or raise max_update="
            )
            raise UpdateTooLarge(msg)
        if size > LARGE and not self._has_warned:
            self._has_warned = True
            msg = (
                f"{what} is an update of {size:,} bytes: saving it takes long, and so does every "
                f"resume; keep what is large in files and their names in the state"
            )
            warnings.warn(msg, UserWarning, stacklevel=2)


def size_of(text: str) -> int:
    """Count the bytes that ``text`` has in UTF-8."""
    return len(text) if text.isascii() else len(text.encode())
