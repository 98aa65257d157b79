"""The persistent collections behind ``append``, ``extend`` and ``put``.

All versions of a collection share one journal; each version is a small immutable face on it. The
newest version extends the journal in O(1); extending an older one first copies what it sees. So N
appends or puts in a row cost O(N), and a version that is kept never changes.

Invariants:
- A face of size n reads the first n entries of its journal and ignores the entries after them.
- Journals only grow. If two threads extend the same version, one of them copies the journal (see
  test_two_threads_extend_one_version).

A kept version keeps the whole journal alive, newer entries included.
"""

from __future__ import annotations

from collections.abc import Collection, ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from itertools import islice
from math import inf
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast, final, overload

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")

# A journal is copied once it has more than twice as many entries as keys, so that a copy of n
# entries is paid by n puts. The slack keeps small maps from being copied at every few puts.
_SLACK = 64

_START = -1.0  # the position of a map's first content: before every position that is put


class _ListJournal(Generic[T]):
    # `items` grows under `lock` alone. Faces read without it, because they read no entry beyond
    # their size, and an entry never changes.
    __slots__ = ("items", "lock")

    def __init__(self, items: list[T]) -> None:
        self.items = items
        self.lock = Lock()


@final
class StateList(Sequence[T]):
    """An immutable list that appends in O(1) by sharing structure with its earlier versions.

    Equal to a list of the same content. Reads cost what a list's do. ``state_list + [item]`` is a
    version with the item at the end.
    """

    __module__ = "shoal"  # pickles and stored values name it so, wherever it is defined

    __slots__ = ("_journal", "_size")

    if TYPE_CHECKING:  # at run time they would be looked up in the module that __module__ names
        _journal: _ListJournal[T]
        _size: int
        __hash__: ClassVar[None]  # pyright: ignore[reportIncompatibleMethodOverride] # as a list

    def __init__(self, items: Iterable[T] = ()) -> None:
        """Hold a copy of ``items``."""
        self._journal = _ListJournal(list(items))
        self._size = len(self._journal.items)

    def append(self, item: T) -> StateList[T]:
        """Return a version with ``item`` at the end. O(1) on the newest version."""
        return self.extend((item,))

    def extend(self, items: Iterable[T]) -> StateList[T]:
        """Return a version with ``items`` at the end."""
        new = tuple(items)  # outside of the lock: iterating runs the caller's code
        journal, size = self._journal, self._size
        with journal.lock:
            # Compared under the lock: of two threads that extend this version, the second one finds
            # the journal longer and copies it (see test_two_threads_extend_one_version).
            if len(journal.items) == size:
                # One call: an interrupt leaves all the items in the journal or none of them.
                journal.items.extend(new)
            else:
                journal = _ListJournal([*islice(journal.items, size), *new])
        face = cast("StateList[T]", object.__new__(StateList))
        face._journal = journal
        face._size = size + len(new)
        return face

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[T]:
        return islice(self._journal.items, self._size)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self._journal.items[i] for i in range(*index.indices(self._size))]
        return self._journal.items[_rank(range(self._size), index)]

    def __eq__(self, other: object) -> bool:
        return _equal_lists(self, other)

    def __repr__(self) -> str:
        return repr(list(self))

    def __add__(self, other: list[T] | Sequence[T]) -> StateList[T]:
        if not isinstance(other, list | StateList | PositionedList):
            return NotImplemented
        return self.extend(cast("Sequence[T]", other))

    def __radd__(self, other: list[T]) -> list[T]:
        return [*other, *self] if isinstance(other, list) else NotImplemented

    def __copy__(self) -> StateList[T]:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return StateList, (list(self),)


class _MapJournal(Generic[K, V]):
    """Entries in order of arrival. ``index`` finds a key's newest entry, ``older`` the one before.

    ``older`` maps the number of an entry to that of the same key's entry before it.
    """

    __slots__ = ("entries", "index", "lock", "older")

    def __init__(self) -> None:
        self.entries: list[tuple[K, V, float]] = []
        self.index: dict[K, int] = {}
        self.older: dict[int, int] = {}
        self.lock = Lock()

    def push(self, key: K, value: V, position: float) -> bool:
        """Add an entry; return whether its key is new.

        A single append adds the entry. A push that is interrupted before the append changes nothing
        that any version reads. A push that is interrupted after it leaves an entry that belongs to
        no version; the next ``put`` sees that the journal is too long and copies it (see
        test_an_interrupt_anywhere_in_a_put...).
        """
        at = len(self.entries)
        before = self.index.get(key)
        if before is not None:
            self.older[at] = before
        elif at in self.older:
            del self.older[at]  # left over from an interrupted push
        self.entries.append((key, value, position))
        self.index[key] = at
        return before is None


@final
class StateMap(Mapping[K, V]):
    """An immutable mapping that puts in O(1) by sharing structure with its earlier versions.

    Iterates in order of insertion, or of position if entries were put with one: the content from
    the start first, entries without a position last. Equal to a dict of the same content, in any
    order. ``state_map | {key: value}`` is a version with the entries put.
    """

    __module__ = "shoal"  # pickles and stored values name it so, wherever it is defined

    __slots__ = ("_count", "_journal", "_last", "_order", "_size")

    if TYPE_CHECKING:
        _journal: _MapJournal[K, V]
        _size: int  # entries of the journal that belong to this version
        _count: int  # different keys among them
        _last: float | None  # the greatest position while keys arrive in order of it, then None
        _order: list[int] | None  # entries in reading order; None until first needed
        __hash__: ClassVar[None]  # pyright: ignore[reportIncompatibleMethodOverride] # as a dict

    def __init__(self, items: Mapping[K, V] | Iterable[tuple[K, V]] = ()) -> None:
        """Hold a copy of ``items``."""
        journal: _MapJournal[K, V] = _MapJournal()
        for key, value in dict(items).items():
            journal.push(key, value, _START)
        self._become(journal, len(journal.entries), len(journal.entries), _START)

    def put(self, key: K, value: V, position: float | None = None) -> StateMap[K, V]:
        """Return a version in which ``key`` has ``value``. O(1) on the newest version.

        Args:
            key: Any hashable.
            value: What it maps to.
            position: Where the key stands among the others. Without it, a new key stands last and
                a known key keeps its place.
        """
        return self.put_all(((key, value, position),))

    def put_all(self, entries: Iterable[tuple[K, V, float | None]]) -> StateMap[K, V]:
        """Return a version with each ``(key, value, position)`` put, in that order."""
        new = tuple(entries)  # outside of the lock: iterating runs the caller's code
        journal, count, last = self._journal, self._count, self._last
        with journal.lock:
            if len(journal.entries) != self._size or self._size > 2 * self._count + _SLACK:
                journal = self._copied()  # this is an older version, or mostly overwritten
            ours, index, older = journal.entries, journal.index, journal.older
            for entry in new:
                key, value, wanted = entry
                known = index.get(key)
                if known is None and not older and wanted is not None:
                    # A new key with a position, as a fan-out puts them: `push` without its call.
                    ours.append(entry)  # pyright: ignore[reportArgumentType] # it has a position
                    index[key] = len(ours) - 1
                    count += 1
                    last = wanted if last is not None and wanted >= last else None
                    continue
                place = inf if known is None else ours[known][2]
                position = place if wanted is None else wanted
                if journal.push(key, value, position):
                    count += 1
                    last = position if last is not None and position >= last else None
                elif position != place:
                    last = None  # a known key moved: the journal's order is not the reading order
            size = len(ours)
        face = cast("StateMap[K, V]", object.__new__(StateMap))
        face._become(journal, size, count, last)
        return face

    def without(self, keys: Collection[K]) -> StateMap[K, V]:
        """Return a version without ``keys``; the others keep their order."""
        if not any(key in self for key in keys):
            return self
        ours = self._journal.entries
        kept = (ours[self._latest(ours[at][0])] for at in self._first_entries())
        return self._restored([entry for entry in kept if entry[0] not in keys])

    def _become(
        self, journal: _MapJournal[K, V], size: int, count: int, last: float | None
    ) -> None:
        self._journal = journal
        self._size = size
        self._count = count
        self._last = last
        self._order = None  # a race of two threads to fill it is harmless: both find the same

    def _copied(self) -> _MapJournal[K, V]:
        ours, copy = self._journal, _MapJournal[K, V]()
        for at in self._first_entries():
            key = ours.entries[at][0]
            copy.push(*ours.entries[self._latest(key)])
        return copy

    def _latest(self, key: K) -> int:
        """Return the newest entry of ``key`` in this version; raise KeyError if there is none."""
        older = self._journal.older
        at = self._journal.index[key]
        while at >= self._size:
            if at not in older:
                raise KeyError(key)
            at = older[at]
        return at

    def _first_entries(self) -> Iterable[int]:
        """Return the entries that brought a new key, in order of arrival."""
        if self._count == self._size:
            return range(self._size)
        older = self._journal.older
        return (at for at in range(self._size) if at not in older)

    def _in_order(self) -> Iterable[int]:
        """Return the entries that hold this version's values, in reading order."""
        if self._order is None:
            if self._count == self._size and self._last is not None:
                return range(self._size)
            entries = self._journal.entries
            latest = [self._latest(entries[at][0]) for at in self._first_entries()]
            if self._last is None:
                latest.sort(key=lambda at: entries[at][2])  # stable: ties stay as they arrived
            self._order = latest
        return self._order

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, key: K) -> V:
        return self._journal.entries[self._latest(key)][1]

    def __contains__(self, key: object) -> bool:
        try:
            self._latest(cast("K", key))
        except (KeyError, TypeError):  # TypeError: not hashable
            return False
        return True

    def __iter__(self) -> Iterator[K]:
        entries = self._journal.entries
        return (entries[at][0] for at in self._in_order())

    def items(self) -> ItemsView[K, V]:
        """Return a view of the entries; see ``dict.items``."""
        return _Items(self)

    def values(self) -> ValuesView[V]:
        """Return a view of the values; see ``dict.values``."""
        return _Values(self)

    def in_order(self, rank: int) -> V:
        """Return the value at ``rank`` in reading order, counted from 0."""
        order = self._in_order()
        assert isinstance(order, Sequence)
        return self._journal.entries[order[rank]][1]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mapping):
            return NotImplemented
        return dict(self.items()) == dict(cast("Mapping[object, object]", other).items())

    def __repr__(self) -> str:
        return repr(dict(self.items()))

    def __or__(self, other: Mapping[K, V]) -> StateMap[K, V]:
        if not isinstance(other, dict | StateMap):
            return NotImplemented
        pairs = cast("Mapping[K, V]", other).items()
        return self.put_all((key, value, None) for key, value in pairs)

    def __ror__(self, other: dict[K, V]) -> dict[K, V]:
        return {**other, **self} if isinstance(other, dict) else NotImplemented

    def __copy__(self) -> StateMap[K, V]:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        entries = self._journal.entries
        firsts = (entries[at][0] for at in self._first_entries())
        return self._restored, ([entries[self._latest(key)] for key in firsts],)

    @classmethod  # so that a pickle names the class and not this private module
    def _restored(cls, entries: list[tuple[K, V, float]]) -> StateMap[K, V]:
        """Make a map from its entries in order of arrival, as pickles and deep copies hold them."""
        return cls().put_all(entries)


# As the views of `Mapping`, which look up each key.


class _Items(ItemsView[K, V]):
    __slots__ = ()
    _mapping: StateMap[K, V]

    def __iter__(self) -> Iterator[tuple[K, V]]:
        entries = self._mapping._journal.entries
        for at in self._mapping._in_order():
            key, value, _ = entries[at]
            yield key, value


class _Values(ValuesView[V]):
    __slots__ = ()
    _mapping: StateMap[Any, V]

    def __iter__(self) -> Iterator[V]:
        entries = self._mapping._journal.entries
        return (entries[at][1] for at in self._mapping._in_order())


@final
class PositionedList(Sequence[T]):
    """An immutable list whose items were put by position, in any order. Gaps take no room.

    Equal to a list of the same content.
    """

    __module__ = "shoal"  # pickles and stored values name it so, wherever it is defined

    __slots__ = ("_map",)

    if TYPE_CHECKING:
        __hash__: ClassVar[None]  # pyright: ignore[reportIncompatibleMethodOverride] # as a list

    def __init__(self, by_position: StateMap[int, T]) -> None:
        """Hold the values of ``by_position``, read in order of position."""
        self._map = by_position

    def put_all(self, entries: Iterable[tuple[int, T, float | None]]) -> PositionedList[T]:
        """Return a version with each ``(position, value, position)`` put."""
        return PositionedList(self._map.put_all(entries))

    def without(self, positions: Collection[int]) -> PositionedList[T]:
        """Return a version without the items that were put at ``positions``."""
        left = self._map.without(positions)
        return self if left is self._map else PositionedList(left)

    def at(self, position: int, missing: T) -> T:
        """Return the item that was put at ``position``; ``missing`` if there is none."""
        return self._map.get(position, missing)

    def __len__(self) -> int:
        return len(self._map)

    def __iter__(self) -> Iterator[T]:
        return iter(self._map.values())

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        ranks = range(len(self._map))
        if isinstance(index, slice):
            return [self._map.in_order(rank) for rank in ranks[index]]
        return self._map.in_order(_rank(ranks, index))

    def __add__(self, other: list[T] | Sequence[T]) -> list[T]:
        if not isinstance(other, list | StateList | PositionedList):
            return NotImplemented
        return [*self, *cast("Sequence[T]", other)]

    def __radd__(self, other: list[T]) -> list[T]:
        return [*other, *self] if isinstance(other, list) else NotImplemented

    def __eq__(self, other: object) -> bool:
        return _equal_lists(self, other)

    def __repr__(self) -> str:
        return repr(list(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return PositionedList, (self._map,)


def _rank(ranks: range, index: int) -> int:
    try:
        return ranks[index]
    except IndexError:
        msg = f"index {index} is out of range: the list has {len(ranks)} items"
        raise IndexError(msg) from None


def _equal_lists(ours: Sequence[object], other: object) -> bool:
    if not isinstance(other, list | StateList | PositionedList):
        return NotImplemented
    theirs = cast("Sequence[object]", other)
    return len(ours) == len(theirs) and all(
        a is b or a == b for a, b in zip(ours, theirs, strict=True)
    )


Growable = StateList[Any] | StateMap[Any, Any] | PositionedList[Any]


def growable(value: object) -> Growable | None:
    """Return ``value`` as a collection that grows cheaply; None if it is no list or mapping."""
    if isinstance(value, list):
        return StateList(cast("list[Any]", value))
    if isinstance(value, dict):
        return StateMap(cast("dict[Any, Any]", value))
    if isinstance(value, StateList | StateMap | PositionedList):
        return cast("Growable", value)
    return None
