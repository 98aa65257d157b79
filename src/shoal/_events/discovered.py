"""What ``grow`` has returned in earlier executions, where elements have no keys to be known by.

Imports digests and events.

Invariants:
- What a child has discovered counts once, however often it runs again and is asked again: an
  element is known if it is equal to one that its outcome has brought before, each as often as then.
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
    """Elements that are known already, as digests, by the child whose outcome has brought them.

    Of a child that has another outcome by now, the store doesn't say what the first has brought:
    that is known to all children that run again.
    """

    __slots__ = ("_by_cause",)

    def __init__(self) -> None:
        """Know nothing."""
        self._by_cause: dict[ChildName | None, Counter[bytes]] = {}

    def __bool__(self) -> bool:
        """Tell whether anything is known."""
        return bool(self._by_cause)

    def remember(self, elements: Iterable[object], cause: ChildName | None) -> None:
        """Have elements be known, which ``cause`` has brought; None: nobody knows who has."""
        self._by_cause.setdefault(cause, Counter()).update(map(digest, elements))

    def find(self, element: object, cause: ChildName) -> Known | None:
        """Return what is known of an element that ``cause`` brings, and have it count no more."""
        try:
            hashed = digest(element)
        except NotData:
            return None  # no store has kept it
        for found in (self._by_cause.get(cause), self._by_cause.get(None)):
            if found is not None and found[hashed] > 0:
                found[hashed] -= 1
                return found, hashed
        return None


Known = tuple[Counter[bytes], bytes]


def bring_back(known: Iterable[Known]) -> None:
    """Undo finds: they count again."""
    for found, hashed in known:
        found[hashed] += 1
