"""What is recorded of the children of one visit of a step, in little memory. Imports the store.

Most children of a long step are done: nothing is asked of them but whether their input is what it
was. So of each of these 20 bytes are kept, and its key, unless that is its position.

Invariants:
- Whatever is asked for is a ``ChildRecord``, made when it is asked for. That of a child that is
  done says nothing of its element and value, which were not read: see ``UNREAD``.
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
    """The children of one act that are done.

    One whose key is its position, as it is without ``key=``, is found by that number in arrays. Of
    others, which a source without order may have, a dict has the key.
    """

    __slots__ = ("_act", "_applied", "_digests", "_elapsed", "_has", "_places", "_step", "count")

    def __init__(self, one: DoneChild) -> None:
        """Have none yet; ``one`` says of which act."""
        self._step: tuple[str, int] = one.step, one.visit
        self._act: str = one.act
        self._applied = 0  # the highest number; one stands for all, since all of them count
        self._has = bytearray()  # by position: whether there is one
        self._digests = bytearray()
        self._elapsed: array[float] = array("f")
        self._places: dict[Key, tuple[int, bytes, float]] = {}  # of the others
        self.count: int = 0

    def add(self, one: DoneChild) -> None:
        key, digest = one.key, bytes.fromhex(one.digest)
        self.count += 1
        self._applied = max(self._applied, one.applied)
        size = len(self._has)
        # They come nearly in order of position, so that there are never many gaps.
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
        """Return the positions of the others, each with its key."""
        for key, (position, *_) in self._places.items():
            yield position, key

    def drop(self, key: Key) -> None:
        self.count -= 1
        if self._places.pop(key, None) is None:
            assert type(key) is int, "it is there"
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
    """The records of children, by act and key."""

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
        """Have what is said in full."""
        self._done: dict[str, _DoneOfAct] = {}
        self._others: dict[ChildName, ChildRecord] = {}
        self._names: dict[int, ChildName] | None = None  # by position; made when asked for
        self.applied_first: list[ChildRecord] = []
        """Of children that are done, those that were asked for by the updates that applied them."""
        self.last_position: int = -1
        """The highest position of any of them, those that were taken out included."""
        self.started: int = 0
        """How many were started: all but those that were skipped for their key."""
        self.acts: set[str] = set()
        """The names of the acts that they are of."""
        self.acts_done: set[str] = set()
        """Those of acts that have results."""
        for one in others:
            self.add(one)

    def add(self, record: ChildRecord) -> None:
        """Have a record in full, instead of any other one of that child."""
        name = ChildName(record.act, record.key)
        self._forget(name)
        self._others[name] = record
        self._note(record.act, record.position, is_done=record.status == "succeeded")
        self.started += was_started(record)

    def add_done(self, children: Iterable[DoneChild], first: Collection[int] = ()) -> None:
        """Have children that are done; those that updates ``first`` have applied are told apart."""
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
        """Return what is recorded of a child."""
        found = self._others.get(name)
        of_act = self._done.get(name.act)
        if found is None and of_act is not None:
            found = of_act.get(name.key)
        return found

    def at(self, position: int) -> ChildRecord | None:
        """Return what is recorded of a child at a position; of several, one that comes later."""
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
        """Return it, and have it no more."""
        found = self._others.pop(name, None)
        of_act = self._done.get(name.act)
        if found is None and of_act is not None:
            found = of_act.get(name.key)
            if found is not None:
                of_act.drop(name.key)
        return found

    def of(self, acts: Collection[str]) -> Iterator[ChildRecord]:
        """Go through those of some acts that have no children that are done."""
        return (one for one in self._others.values() if one.act in acts)

    def _forget(self, name: ChildName) -> None:
        """Take out what another store, or an earlier attempt, said of a child."""
        record = self.pop(name)
        if record is not None:
            self.started -= was_started(record)

    def __len__(self) -> int:
        return len(self._others) + self.done

    @property
    def done(self) -> int:
        """How many of them are known to be done without having been read in full."""
        return sum(of_act.count for of_act in self._done.values())

    @property
    def others(self) -> Iterable[ChildRecord]:
        """Those that were read in full."""
        return self._others.values()

    def __iter__(self) -> Iterator[ChildRecord]:
        """Go through all, in input order. Takes memory for each that is left."""
        found = list(self._others.values())
        for of_act in self._done.values():
            found += (record for key in of_act if (record := of_act.get(key)) is not None)
        return iter(sorted(found, key=lambda record: record.position))


@final
class Conflicts(NamedTuple):
    """Why results can't be gone on with as they are recorded, since the program has changed.

    Several programs may have executed a step, and some of them may have been refused. So a result
    is compared with what was declared when it was made (see
    test_the_former_program_goes_on_after_a_refusal_that_came_late).
    """

    kept: Sequence[tuple[int, str]]
    """For each declaration the number of the last update before it, and why a result that was
    applied behind that can't stay; empty: it can."""
    of_value: str
    """Why a result that has yet to be applied can't be; empty: it can."""

    def of_kept(self, record: ChildRecord) -> str:
        """Say why a result that was applied can't stay; empty: it can."""
        applied = record.applied or 0
        return next((why for number, why in reversed(self.kept) if number < applied), "")


def was_started(record: ChildRecord) -> bool:
    """Tell whether a child counts as one that was started."""
    return record.status != "skipped" or not record.used
