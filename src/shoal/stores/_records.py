"""Hold the recorded children of one visit of a step in little memory.

Most children of a long step are done, and resuming needs only their digests, to compare the input.
So ``Records`` keeps 20 bytes for each of them, and the key unless it is the position.

Invariants:
- Lookups return a ``ChildRecord``, made on request. The record of a done child has no element and
  no value, because they were not read from the store: see ``UNREAD``.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final, NamedTuple, final

from shoal._events.events import ChildName
from shoal._events.identity import Key
from shoal._state.digest import BYTES

from ._protocol import ChildRecord, DoneChild


@final
class _Unread:
    """Stands for an element that was not read from the store."""

    def __repr__(self) -> str:
        return "<not read from the store>"


UNREAD: Final = _Unread()


@final
class _DoneOfAct:
    """The done children of one act.

    Children whose key is their position (the default without ``key=``) are in arrays, at that
    index. All others are in a dict by key.
    """

    __slots__ = ("_act", "_applied", "_digests", "_elapsed", "_has", "_places", "_step", "count")

    def __init__(self, one: DoneChild) -> None:
        """Create an empty collection for the act of ``one``."""
        self._step: tuple[str, int] = one.step, one.visit
        self._act: str = one.act
        # The highest number of an update that applied one of them. Records of all of them get it:
        # done children are kept, so it only matters that an update applied them.
        self._applied = 0
        # Three arrays by position, always of the same length (``_digests`` counted in ``BYTES``).
        self._has = bytearray()  # 1 where there is a child
        self._digests = bytearray()
        self._elapsed: array[float] = array("f")
        # The children that the arrays don't hold: position, digest and seconds by key.
        self._places: dict[Key, tuple[int, bytes, float]] = {}
        self.count: int = 0

    def add(self, one: DoneChild) -> None:
        key, digest = one.key, bytes.fromhex(one.digest)
        self.count += 1
        self._applied = max(self._applied, one.applied)
        size = len(self._has)
        # Children arrive nearly in order of position. A position more than twice the present size
        # would leave a large gap in the arrays (1024: a start for small ones), so it goes into the
        # dict.
        at = one.position
        is_near = type(key) is int and key == at and at <= 2 * size + 1024
        if not is_near or len(digest) != BYTES:
            self._places[key] = at, digest, one.elapsed
            return
        if at >= size:
            more = at + 1 - size
            self._has.extend(bytes(more))
            self._digests.extend(bytes(more * BYTES))
            self._elapsed.frombytes(bytes(more * self._elapsed.itemsize))
        self._has[at] = 1
        self._digests[at * BYTES : (at + 1) * BYTES] = digest
        self._elapsed[at] = one.elapsed

    def get(self, key: Key) -> ChildRecord | None:
        if type(key) is int and 0 <= key < len(self._has) and self._has[key]:
            digest = self._digests[key * BYTES : (key + 1) * BYTES]
            return self._record(key, key, bytes(digest), self._elapsed[key])
        found = self._places.get(key)
        return None if found is None else self._record(key, *found)

    def at(self, position: int) -> ChildRecord | None:
        """Return the child whose key is its position."""
        is_there = 0 <= position < len(self._has) and self._has[position]
        return self.get(position) if is_there else None

    def positions(self) -> Iterator[tuple[int, Key]]:
        """Return the positions of the children that are not in the arrays, each with its key."""
        for key, (position, *_) in self._places.items():
            yield position, key

    def drop(self, key: Key) -> None:
        self.count -= 1
        if self._places.pop(key, None) is None:
            assert type(key) is int, "a key that isn't in the dict is a position in the arrays"
            self._has[key] = 0

    def __iter__(self) -> Iterator[Key]:
        yield from (key for key, has in enumerate(self._has) if has)
        yield from self._places

    def _record(self, key: Key, position: int, digest: bytes, elapsed: float) -> ChildRecord:
        return ChildRecord(
            *self._step,
            self._act,
            key,
            position,
            UNREAD,
            digest.hex(),
            "succeeded",
            applied=self._applied,
            elapsed=elapsed,
        )


@final
class Records:
    """The records of the children of one visit of a step, by act and key."""

    __slots__ = (
        "_done",
        "_names",
        "_others",
        "acts",
        "acts_done",
        "applied_first",
        "last_position",
        "started",
    )

    def __init__(self, others: Iterable[ChildRecord] = ()) -> None:
        """Start with the given full records."""
        # A child is either in ``_done`` or in ``_others``, never in both.
        self._done: dict[str, _DoneOfAct] = {}
        self._others: dict[ChildName, ChildRecord] = {}
        self._names: dict[int, ChildName] | None = None  # by position; made by the first ``at``
        self.applied_first: list[ChildRecord] = []
        """The done children that one of the updates ``first`` of ``add_done`` applied."""
        self.last_position: int = -1
        """The highest position of any child, including those that ``pop`` removed."""
        self.started: int = 0
        """The number of started children: all but those that were skipped for their key."""
        self.acts: set[str] = set()
        """The names of the children's acts."""
        self.acts_done: set[str] = set()
        """The names of the acts that have results."""
        for one in others:
            self.add(one)

    def add(self, record: ChildRecord) -> None:
        """Add a full record; it replaces any other record of that child."""
        name = ChildName(record.act, record.key)
        self._forget(name)
        self._others[name] = record
        self._note(record.act, record.position, is_done=record.status == "succeeded")
        self.started += was_started(record)

    def add_done(self, children: Iterable[DoneChild], first: Collection[int] = ()) -> None:
        """Add done children; also list those that one of the updates ``first`` applied."""
        for one in children:
            if one.applied in first:
                self.applied_first.append(
                    ChildRecord(*one[:5], UNREAD, one.digest, "succeeded", applied=one.applied)
                )
            of_act = self._done.get(one.act)
            if self._others:
                self._forget(ChildName(one.act, one.key))
            if of_act is None:
                of_act = self._done[one.act] = _DoneOfAct(one)
            of_act.add(one)
            self._note(one.act, one.position, is_done=True)
            self.started += 1

    def _note(self, act: str, position: int, *, is_done: bool) -> None:
        self.last_position = max(self.last_position, position)
        if is_done:
            self.acts_done.add(act)
        self.acts.add(act)

    def get(self, name: ChildName) -> ChildRecord | None:
        """Return the record of a child; None if there is none."""
        found = self._others.get(name)
        of_act = self._done.get(name.act)
        if found is None and of_act is not None:
            found = of_act.get(name.key)
        return found

    def at(self, position: int) -> ChildRecord | None:
        """Return the record of the child at a position; if several share it, the last one."""
        for of_act in self._done.values():
            found = of_act.at(position)
            if found is not None:
                return found
        if self._names is None:
            self._names = {one.position: name for name, one in self._others.items()}
            for act, of_act in self._done.items():
                self._names.update((at, ChildName(act, key)) for at, key in of_act.positions())
        name = self._names.get(position)
        return None if name is None else self.get(name)

    def pop(self, name: ChildName) -> ChildRecord | None:
        """Remove the record of a child and return it."""
        found = self._others.pop(name, None)
        of_act = self._done.get(name.act)
        if found is None and of_act is not None:
            found = of_act.get(name.key)
            if found is not None:
                of_act.drop(name.key)
        return found

    def of(self, acts: Collection[str]) -> Iterator[ChildRecord]:
        """Iterate over the full records of some acts. The acts have no done children."""
        return (one for one in self._others.values() if one.act in acts)

    def _forget(self, name: ChildName) -> None:
        """Remove a child's record that came from another store or an earlier attempt."""
        record = self.pop(name)
        if record is not None:
            self.started -= was_started(record)

    def __len__(self) -> int:
        return len(self._others) + self.done

    @property
    def done(self) -> int:
        """The number of done children, which were not read in full."""
        return sum(of_act.count for of_act in self._done.values())

    @property
    def others(self) -> Iterable[ChildRecord]:
        """The records that were read in full."""
        return self._others.values()

    def __iter__(self) -> Iterator[ChildRecord]:
        """Iterate over all records in input order. Takes memory for each of them."""
        found = list(self._others.values())
        for of_act in self._done.values():
            found += (record for key in of_act if (record := of_act.get(key)) is not None)
        return iter(sorted(found, key=lambda record: record.position))


@final
class Conflicts(NamedTuple):
    """The reasons why recorded results can't be used as they are, after the program has changed.

    Several programs may have executed a step, and some of them may have been refused. So each
    result is compared with the declaration that was valid when it was made (see
    test_the_former_program_goes_on_after_a_refusal_that_came_late).
    """

    kept: Sequence[tuple[int, str]]
    """For each declaration: the number of the last update before it, and the reason why a result
    that was applied after that number can't stay; empty if it can."""
    of_value: str
    """The reason why a result that is not yet applied can't be applied; empty if it can."""

    def of_kept(self, record: ChildRecord) -> str:
        """Return the reason why an applied result can't stay; empty if it can."""
        applied = record.applied or 0
        return next((why for number, why in reversed(self.kept) if number < applied), "")


def was_started(record: ChildRecord) -> bool:
    """Return whether a child counts as started."""
    return record.status != "skipped" or not record.used
