"""The keys and positions of the elements of a source.

Invariants:
- Keys are plain str or int, and ``1`` differs from ``"1"``. A repeated key in ``over`` is refused.
  With ``grow``, the repeated element is dropped and counted.
- Positions are stable across executions. Elements that ``grow`` returned in an earlier execution
  keep their positions; pulled elements get the remaining positions in order.
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

    __slots__ = ("_grows", "_of_former", "_name", "dropped", "key_of", "seen")

    def __init__(self, name: str, key_of: Callable[[Any], object] | None, *, grows: bool) -> None:
        """Create a set without keys.

        Args:
            name: The name of the fan-out, for errors.
            key_of: Returns the key of an element; None: the key is the element's index.
            grows: Whether to drop repeated keys, because ``grow`` may find an element again.
        """
        self._name = name
        self._grows = grows
        self.key_of: Callable[[Any], object] | None = key_of
        """Returns the key of an element; None: the key is the element's index."""
        # Only grows, but for `remove`, which undoes what was not saved.
        self.seen: set[object] = set()
        """All keys so far, to find repetitions."""
        # Keys from the source of an earlier attempt that this source has not met, or, with
        # ``grow``, all of them. Their elements are passed over instead of refused.
        self._of_former: set[object] = set()
        self.dropped: int = 0
        """The number of elements dropped for a repeated key."""

    def key(self, element: object, index: int) -> Key | None:
        """Return the key of an element; None if the key is known and the element dropped.

        Raises:
            BadKey: The key is not a str or int, or another element has it.
        """
        if self.key_of is None:
            # Not noted in `seen`: no two elements have the same index.
            return index
        key = self.key_of(element)
        # By type, and not by isinstance: True is an int, and a subclass may compare as it likes.
        if type(key) is not int and type(key) is not str:
            key = self._checked(key, element, index)
        seen = self.seen
        if key in seen:
            # Before it counts as dropped: if it was a repetition, the earlier attempt has counted
            # it.
            if self.has_come_before(key):
                return None
            if self._grows:
                self.dropped += 1
                return None
            self._refuse_repeated(key, element, index)
        # Last, so that the key of an element about which something raised is still new.
        seen.add(key)
        return key

    def has_come_before(self, key: object) -> bool:
        """Return whether the source of an earlier attempt has given the element with this key.

        Without ``grow`` it returns True once for each key, so that a repetition is refused in this
        attempt too. With ``grow``, repetitions are dropped, and were counted in that attempt.
        """
        if key not in self._of_former:
            return False
        if not self._grows:
            self._of_former.discard(key)
        return True

    def remove(self, keys: Iterable[Key], dropped: int) -> None:
        """Undo that ``keys`` were seen and that ``dropped`` elements were dropped."""
        self.seen.difference_update(keys)
        self.dropped -= dropped

    def go_on(self, former: KeySet) -> None:
        """Continue with the keys of the source of an earlier attempt."""
        self.seen |= former.seen
        # A copy: keys are taken out of it one by one, and stay in `seen`; see
        # test_a_repeated_key_is_refused_in_each_attempt.
        self._of_former = set(self.seen)
        self.dropped = former.dropped

    def _checked(self, key: object, element: object, index: int) -> Key:
        plain = plain_key(key)
        if plain is not None:
            return plain
        refuse_awaitable(key, f"key= of fan-out {self._name!r}")
        msg = (
            f"fan-out {self._name!r}: the key of element {index} ({brief(element)}) is a "
            f"{type(key).__name__}; keys are str or int: make key= return one"
        )
        raise BadKey(msg)

    def _refuse_repeated(self, key: Key, element: object, index: int) -> NoReturn:
        msg = (
            f"fan-out {self._name!r}: element {index} ({brief(element)}) has the key "
            f"{brief(key)}, which an earlier element has; make key= tell them apart, or remove "
            f"repetitions"
        )
        raise BadKey(msg)


@final
class Positions:
    """The positions of children: the next one to pull, and the ranges reserved for ``grow``."""

    __slots__ = ("_end", "_reserved_before", "next", "reserved", "width")

    def __init__(self, width: int, last: int = -1) -> None:
        """Start at position 0.

        Args:
            width: The number of positions per element: one for each act.
            last: The highest position that an earlier execution used; -1: none.
        """
        self.width: int = width
        """The number of positions per element: one for each act."""
        self.next: int = 0
        """The position of the next pulled element, unless it is reserved: then see ``free``."""
        self.reserved: deque[tuple[int, int]] = deque()
        """Ranges of elements that ``grow`` returned: (start, stop), ascending, from ``next`` on."""
        self._reserved_before = 0  # the reserved positions before ``next``, which `pulled` excludes
        # No position from here on is used. Rounded up to a whole element, because the last element
        # of an earlier execution may lack children of some acts.
        self._end = -(-(last + 1) // width) * width

    def free(self) -> int:
        """Return the position of the next pulled element, past the ranges reserved before it."""
        # A loop, since ranges may follow each other without a gap.
        while self.reserved and self.reserved[0][0] <= self.next:
            start, stop = self.reserved.popleft()
            self._reserved_before += stop - start
            self.next = stop
        return self.next

    def end(self) -> int:
        """Return the first position behind all that are used."""
        # Pulled elements may be in front of what has grown, or behind all of it.
        return max(self._end, self.free())

    def reserve(self, start: int, stop: int) -> None:
        """Reserve the positions from ``start`` up to, but not including, ``stop``."""
        self._end = max(self._end, stop)
        if self.reserved and self.reserved[-1][1] == start:
            self.reserved[-1] = self.reserved[-1][0], stop
        elif start < stop:
            self.reserved.append((start, stop))

    def go_on(self, former: Positions) -> None:
        """Continue with the positions of the source of an earlier attempt.

        A function may have chosen another number of acts since. The elements keep their indices,
        see test_elements_have_keys_of_their_own_if_more_acts_are_chosen_in_another_attempt.
        """
        now, then = self.width, former.width
        # Counted in elements, since positions count acts too.
        self.next = former.free() // then * now
        self.reserved = former.reserved
        if now != then:
            places = ((start // then * now, stop // then * now) for start, stop in former.reserved)
            self.reserved = deque(places)
        self._reserved_before = former._reserved_before // then * now
        self._end = -(-former._end // then) * now

    @property
    def pulled(self) -> int:
        """The number of elements that were pulled, and not returned by ``grow``."""
        return (self.next - self._reserved_before) // self.width
