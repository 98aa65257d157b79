"""What ``grow`` adds to the source of a fan-out: the elements that the ends of children lead to.

Invariants:
- The position of an element that was found is behind all that are used. It is saved with the
  update that found the element, so that no two have the same in any execution.
- No element that was found is handed out before that update is saved (``ElementSource.admit``).
- Until then it can be undone: the elements count as new again. Their positions stay unused, because
  later ones may be in use already.
- A child that runs again finds its elements again, and they count once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast, final

from shoal._events.discovered import Discovered, Known, bring_back
from shoal._events.events import ChildName, Done, Failed
from shoal._events.identity import Key

from .entries import ChildTemplate, PendingChild, entries_for, refuse_grown
from .keys import KeySet, Positions
from .recorded import RecordedChildren


@final
class Growth:
    """The elements that ``grow`` has found for one source."""

    __slots__ = ("_calls", "_found_before", "_keys", "_positions", "_recorded", "kinds", "name")

    def __init__(
        self,
        name: str,
        kinds: Sequence[ChildTemplate],
        keys: KeySet,
        positions: Positions,
        recorded: RecordedChildren | None,
    ) -> None:
        """Begin with nothing found.

        Args:
            name: The name of the fan-out, for errors.
            kinds: The templates of the acts that are executed for each element.
            keys: The keys of the source's elements.
            positions: Their positions.
            recorded: The children that earlier executions recorded; None if there are none.
        """
        self.name = name
        self.kinds = kinds
        # Both belong to the source, which pulls elements into the same.
        self._keys = keys
        self._positions = positions
        self._recorded = recorded
        # One entry for each call of `grow` whose update is not saved, so that `undo` can undo it:
        # the new keys, the number of dropped elements, and the elements found again.
        self._calls: list[tuple[list[Key], int, list[Known]]] = []
        # Elements that `grow` returned in an earlier execution; used only if there are no keys.
        self._found_before = Discovered()

    @property
    def calls(self) -> int:
        """The calls of ``grow`` since the last ``keep``, those that raised included."""
        return len(self._calls)

    def find(self, elements: object, cause: Done | Failed) -> list[PendingChild]:
        """Return the entries of the new elements that ``grow`` returned for the outcome ``cause``.

        Raises:
            BadResult: ``elements`` is not iterable.
            BadKey: An element has a bad key.
        """
        if not isinstance(elements, Iterable) or isinstance(elements, str | bytes):
            refuse_grown(elements, self.name, cause.key)
        found: list[PendingChild] = []
        # Behind all that are used: positions are saved with the children, and none has two.
        start = position = self._positions.end()
        keys, dropped, children = list[Key](), self._keys.dropped, self._recorded
        again, name = list[Known](), ChildName(cause.act, cause.key)
        # A child without a position in an earlier execution has found nothing there.
        may_know = self._found_before and children and cause.position <= children.last_position
        try:
            for element in cast("Iterable[object]", elements):
                if may_know and (known := self._found_before.find(element, name)) is not None:
                    again.append(known)
                    continue
                entries = entries_for(element, position, self._keys, self.kinds)
                if entries:
                    keys.append(entries[0].key)
                if entries and children is not None and _are_done(entries, children):
                    self._keys.dropped += 1  # done at the position that the source gave it
                elif entries:
                    found += entries
                    position += self._positions.width
        finally:  # also if an element raised: `undo` undoes the ones before it
            self._calls.append((keys, self._keys.dropped - dropped, again))
        self._positions.reserve(start, position)
        # After all elements: if one has raised, none of them gets a place.
        return found

    def keep(self) -> None:
        """Note that all that was found is saved, and can't be undone any more."""
        self._calls.clear()

    def undo(self, count: int) -> None:
        """Undo all calls of ``grow`` since the last ``keep``, except the first ``count``."""
        for keys, dropped, again in self._calls[: count - 1 if count else None : -1]:
            self._keys.remove(keys, dropped)
            bring_back(again)
        del self._calls[count:]

    def remember(self, elements: Iterable[object], cause: ChildName | None) -> None:
        """Know elements without keys that ``grow`` returned in an earlier execution.

        Args:
            elements: The elements that were new then.
            cause: The child whose outcome ``grow`` was given; None if that outcome has changed.
        """
        self._found_before.remember(elements, cause)

    def go_on(self, former: Growth) -> None:
        """Continue with what the source of an earlier attempt knew of earlier executions."""
        self._found_before = former._found_before

    def __repr__(self) -> str:
        return f"<Growth of fan-out {self.name!r}, {len(self._calls)} calls not saved>"


def _are_done(entries: Iterable[PendingChild], children: RecordedChildren) -> bool:
    return all(children.has_done(one.kind.config.act, one.key) for one in entries)
