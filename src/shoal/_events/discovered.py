"""Elements that ``grow`` returned in earlier executions, for fan-outs whose elements have no keys.

Invariants:
- An element counts once, however often the child that discovered it runs again: it is known if it
  equals an element that an earlier outcome of the child brought. If that outcome brought several
  equal ones, as many are known.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import final

from shoal._errors.exceptions import NotData
from shoal._state.digest import digest

from .events import ChildName


@final
class Discovered:
    """Known elements, as digests, by the child whose outcome brought them.

    If a child has a newer outcome, the store no longer says which elements the first one brought.
    They are then known to every child that runs again: their cause is None.
    """

    __slots__ = ("_by_cause",)

    def __init__(self) -> None:
        self._by_cause: dict[ChildName | None, Counter[bytes]] = {}

    def __bool__(self) -> bool:
        return bool(self._by_cause)

    def remember(self, elements: Iterable[object], cause: ChildName | None) -> None:
        """Make elements known as those of ``cause``; None if the store doesn't say whose."""
        self._by_cause.setdefault(cause, Counter()).update(map(digest, elements))

    def find(self, element: object, cause: ChildName) -> Known | None:
        """Return the known element that equals ``element``, once for each; None if none is left."""
        try:
            hashed = digest(element)
        except NotData:
            return None  # a value that is not data was never saved
        for found in (self._by_cause.get(cause), self._by_cause.get(None)):
            if found is not None and found[hashed] > 0:
                found[hashed] -= 1
                return found, hashed
        return None


Known = tuple[Counter[bytes], bytes]


def bring_back(known: Iterable[Known]) -> None:
    """Undo finds: the elements can be found again."""
    for found, hashed in known:
        found[hashed] += 1
