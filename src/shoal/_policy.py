"""What a user asks of a fan-out, as values. Imports nothing of ours but errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

from ._errors import DefinitionError

OnError = Literal["fail", "collect"]
"""What the failure of a child does to its fan-out."""

DEFAULT_IN_FLIGHT = 100
"""Children in flight in a fan-out that names no limit."""


@final
@dataclass(frozen=True, slots=True)
class Limits:
    """How much may go on at once.

    On a fan-out: at most ``n`` of its children are in flight. A child is in flight from its start
    until its result is part of the parent's saved state, so a slow reducer or store slows the
    source down, and memory stays bounded.

    Args:
        n: Children at once; at least 1.

    Raises:
        DefinitionError: ``n`` is not a whole number of at least 1.
    """

    n: int = DEFAULT_IN_FLIGHT

    def __post_init__(self) -> None:
        """Refuse what is no count."""
        if type(self.n) is not int or self.n < 1:
            msg = f"Limits(n) takes a whole number of at least 1, not {self.n!r}"
            raise DefinitionError(msg)
