"""What tells the elements of a source apart: their keys, and their positions.

Invariants:
- Keys are plain str or int, kept apart. One repeated in ``over`` is refused; with ``grow`` it is
  dropped and counted.
- Positions are those of an earlier execution: what ``grow`` returned then has the places that it
  got, and what is pulled has the others, in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, final

from shoal._errors.exceptions import BadKey, brief
from shoal._events.identity import Key, plain_key
from shoal._state.state import refuse_awaitable


@final
class KeySet:
    """The keys of the elements that a source has given."""

    __slots__ = ("_grows", "_of_former", "_who", "dropped", "key_of", "seen")

    def __init__(self, who: str, key_of: Callable[[Any], object] | None, *, grows: bool) -> None:
        """Have none.

        Args:
            who: The name of the fan-out, for errors.
            key_of: Key of an element; None: its place among the elements.
            grows: Whether repeated keys are dropped, for ``grow`` may find an element again.
        """
        self._who = who
        self._grows = grows
        self.key_of: Callable[[Any], object] | None = key_of
        """Reads the key of an element; None: elements have none."""
        self.seen: set[object] = set()
        """All there are, so that none comes twice."""
        self._of_former: set[object] = set()  # those that the source of an earlier attempt has seen
        self.dropped: int = 0
        """Elements whose keys were repeated, and that made no child."""

    def key(self, element: object, index: int) -> Key | None:
        """Find the key of an element; None if it is known and may be dropped.

        Raises:
            BadKey: It is none, or another element has it.
        """
        if self.key_of is None:
            return index
        key = self.key_of(element)
        if type(key) is not int and type(key) is not str:
            key = self._checked(key, element, index)
        seen = self.seen
        if key in seen:
            if self.has_come_before(key):
                return None
            if self._grows:
                self.dropped += 1
                return None
            self._refuse_repeated(key, element, index)
        seen.add(key)
        return key

    def has_come_before(self, key: object) -> bool:
        """Tell whether an element is one that the source of an earlier attempt has given.

        That is so once for each key: a repetition is refused in this attempt as it was in that one.
        With ``grow``, repetitions are dropped, and counted already.
        """
        if key not in self._of_former:
            return False
        if not self._grows:
            self._of_former.discard(key)
        return True

    def remove(self, keys: Iterable[Key], dropped: int) -> None:
        """Have ``keys`` not seen, and ``dropped`` elements not dropped."""
        self.seen.difference_update(keys)
        self.dropped -= dropped

    def go_on(self, former: KeySet) -> None:
        """Go on with the keys of the source of an earlier attempt."""
        self.seen |= former.seen
        self._of_former = set(self.seen)
        self.dropped = former.dropped

    def _checked(self, key: object, element: object, index: int) -> Key:
        plain = plain_key(key)
        if plain is not None:
            return plain
        refuse_awaitable(key, f"key= of fan-out {self._who!r}")
        msg = (
            f"fan-out {self._who!r}: the key of element {index} ({brief(element)}) is a "
            f"{type(key).__name__}; keys are str or int: make key= return one"
        )
        raise BadKey(msg)

    def _refuse_repeated(self, key: Key, element: object, index: int) -> NoReturn:
        msg = (
            f"fan-out {self._who!r}: element {index} ({brief(element)}) has the key "
            f"{brief(key)}, which an earlier element has; make key= tell them apart, or remove "
            f"repetitions"
        )
        raise BadKey(msg)


@final
class Positions:
    """The positions of children: the next one that is pulled, and the ranges that are reserved."""

    __slots__ = ("_end", "_reserved_before", "next", "reserved", "width")

    def __init__(self, width: int, last: int = -1) -> None:
        """Begin at 0.

        Args:
            width: Positions that an element takes.
            last: The last one that an earlier execution has given.
        """
        self.width: int = width
        """Positions that an element takes."""
        self.next: int = 0
        """That of the next child that is pulled, unless it is reserved."""
        self.reserved: deque[tuple[int, int]] = deque()
        """Ranges of what ``grow`` returned, ahead of that."""
        self._reserved_before = 0  # positions before that which grow has given
        self._end = -(-(last + 1) // width) * width  # no position from there on is taken

    def free(self) -> int:
        """Return the lowest position that no element has."""
        while self.reserved and self.reserved[0][0] <= self.next:
            start, stop = self.reserved.popleft()
            self._reserved_before += stop - start
            self.next = stop
        return self.next

    def end(self) -> int:
        """Return the first position from which on none is taken."""
        return max(self._end, self.free())

    def reserve(self, start: int, stop: int) -> None:
        """Take the positions from ``start`` on, up to ``stop``."""
        self._end = max(self._end, stop)
        if self.reserved and self.reserved[-1][1] == start:
            self.reserved[-1] = self.reserved[-1][0], stop
        elif start < stop:
            self.reserved.append((start, stop))

    def go_on(self, former: Positions) -> None:
        """Go on with the positions of the source of an earlier attempt."""
        self.next, self.reserved = former.free(), former.reserved
        self._reserved_before, self._end = former._reserved_before, former._end

    @property
    def pulled(self) -> int:
        """Elements that were pulled."""
        return (self.next - self._reserved_before) // self.width
