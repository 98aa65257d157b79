"""What a user asks of a fan-out, as values. Imports nothing of ours but errors."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal, final

from ._errors import DefinitionError


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerate:
    """Failures that a fan-out puts up with: as ``on_error="collect"``, until there are too many.

    The failure that is too many ends the step as under ``on_error="fail"``: the other children are
    cancelled and awaited, and all failures so far are raised as one ``ExceptionGroup``.

    Args:
        count: So many failures are tolerated, one more is not.
        share: Or this share of the children that have ended, from 0 to 1...
        after: ...judged once so many have ended, and at the end.

    Raises:
        DefinitionError: Both or neither of ``count`` and ``share``, or one of them out of range.

    Examples:
        >>> Tolerate(count=3)
        Tolerate(count=3)
        >>> Tolerate(share=0.1, after=20)
        Tolerate(share=0.1, after=20)
    """

    count: int | None = None
    share: float | None = None
    after: int = 0

    def __post_init__(self) -> None:
        """Refuse what can't be judged."""
        if (self.count is None) == (self.share is None):
            msg = "Tolerate takes either count= or share=: Tolerate(count=3), Tolerate(share=0.1)"
            raise DefinitionError(msg)
        count = 0 if self.count is None else self.count
        for name, value in (("count", count), ("after", self.after)):
            if type(value) is not int or value < 0:
                msg = f"Tolerate({name}=...) takes a whole number of at least 0, not {value!r}"
                raise DefinitionError(msg)
        if self.share is None:
            if self.after:
                msg = "Tolerate(after=...) belongs to share=; count= is judged from the first child"
                raise DefinitionError(msg)
        elif type(self.share) not in (int, float) or not 0 <= self.share < 1:
            msg = f"Tolerate(share=...) takes a number from 0 up to, but not, 1, not {self.share!r}"
            raise DefinitionError(msg)

    def is_exceeded(self, failed: int, ended: int, *, at_end: bool = False) -> bool:
        """Tell whether ``failed`` of ``ended`` children are too many."""
        if self.count is not None:
            return failed > self.count
        assert self.share is not None
        return (at_end or ended >= self.after) and failed > self.share * ended

    def __repr__(self) -> str:
        if self.count is not None:
            return f"Tolerate(count={self.count})"
        after = f", after={self.after}" if self.after else ""
        return f"Tolerate(share={self.share}{after})"


@final
class Inherit(Enum):
    """What a fan-out's children have of their parent."""

    INHERIT = "inherit"

    def __repr__(self) -> str:
        return "INHERIT"


INHERIT = Inherit.INHERIT
"""The same as the parent: the store that keeps it, the hooks that are told of it."""

OnError = Literal["fail", "collect", "ignore"] | Tolerate
"""What the failure of a child does to its fan-out."""
