"""What flows along the edges of a graph: fields, written and read. Imports conditions.

Invariants:
- A field counts as surely written where it is on every way, and as perhaps written where it is on
  some way; so a loop doesn't hide that its first turn lacks a field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import reduce
from typing import NamedTuple, final

from .action import Act
from .condition import Condition


@final
class End:
    """Where an edge leads that ends the run. There is one, ``END``."""

    __module__ = "shoal"  # pickles and stored values name it so, wherever it is defined

    __slots__ = ()

    def __repr__(self) -> str:
        return "END"

    def __reduce__(self) -> str:
        return "END"


END = End()
"""What an edge leads to that ends the run: ``(act, END, when("done"))``."""


@final
class Edge(NamedTuple):
    """What may follow an act."""

    source: Act
    target: Act | End
    condition: Condition | None
    """What must be true of the state for it to be taken; None: nothing."""

    def __str__(self) -> str:
        return f"{self.source.name!r} -> {name_of(self.target)}"

    def __repr__(self) -> str:
        condition = "" if self.condition is None else f" {self.condition!r}"
        target = self.target.name if isinstance(self.target, Act) else "END"
        return f"{self.source.name} -> {target}{condition}"


def name_of(act: object) -> str:
    """Name what an edge leads to, or what was given for it, in a message."""
    return repr(act.name) if isinstance(act, Act) else repr(act)


@final
class Flow(NamedTuple):
    """What is known of the state along the edges of a graph."""

    reads: frozenset[str]
    """Fields that acts and conditions may look at and that they haven't surely written."""
    writes: frozenset[str]
    """Fields that some act may change."""
    sure_writes: frozenset[str]
    """Those that are in the state afterwards, whichever way is taken."""
    needed_by: Mapping[str, str]
    """Fields that some act or condition can't do without and that nothing can have written when a
    run first comes there; and who that is."""


def trace(entry: Act, acts: Sequence[Act], leaving: Mapping[str, Sequence[Edge]]) -> Flow:
    """Find what is surely written, what may be, and what nothing has written when it is read.

    Sets are kept as the bits of numbers: a graph of a thousand acts has a thousand of them, of up
    to a thousand fields each, and they are merged at every edge.

    Args:
        entry: Where a run begins.
        acts: All of them.
        leaving: The edges that leave each, by its name, as they are tried.
    """
    return _Trace(entry, acts, leaving).flow()


@final
class _Trace:
    def __init__(
        self, entry: Act, acts: Sequence[Act], leaving: Mapping[str, Sequence[Edge]]
    ) -> None:
        self._acts = acts
        self._leaving = leaving
        fields = _Bits(field for act in acts for field in (*act.writes, *act.sure_writes))
        nodes = _Bits(act.name for act in acts)
        arriving: dict[str, list[str]] = {name: [] for name in reachable(entry.name, leaving)}
        for act in acts:
            for edge in leaving[act.name]:
                if isinstance(edge.target, Act):
                    arriving[edge.target.name].append(act.name)
        self._fields = fields
        self._sure = {act.name: fields.mask(act.sure_writes) for act in acts}
        self._itself = {act.name: nodes.mask((act.name,)) for act in acts}
        # what has been done on the way to each act: fields written; acts passed on every, on some
        self._written = _before(entry.name, arriving, self._sure, int.__and__)
        self._always = _before(entry.name, arriving, self._itself, int.__and__)
        self._perhaps = _before(entry.name, arriving, self._itself, int.__or__)
        self._writers: dict[str, list[str]] = {}
        for act in acts:
            for field in act.writes:
                self._writers.setdefault(field, []).append(act.name)

    def flow(self) -> Flow:
        ends = [
            self._written[name] | self._sure[name]
            for name, edges in self._leaving.items()
            if not edges or any(isinstance(edge.target, End) for edge in edges)
        ]
        return Flow(
            reads=frozenset(self._reads()),
            writes=frozenset(self._writers),
            sure_writes=self._fields.names(reduce(int.__and__, ends) if ends else 0),
            needed_by=self._needed_by(),
        )

    def _reads(self) -> set[str]:
        reads: set[str] = set()
        for act in self._acts:
            name = act.name
            before = self._written[name]
            reads |= self._fields.without(act.reads, before)
            for condition in self._tried(name):
                reads |= self._fields.without(condition.reads, before | self._sure[name])
        return reads

    def _needed_by(self) -> dict[str, str]:
        needed: dict[str, str] = {}
        for act in self._acts:
            for field, who in act.needed_by.items():
                if not self._may_be_written(field, act.name):
                    needed.setdefault(field, who)
            for number, condition in enumerate(self._tried(act.name)):
                edge = self._leaving[act.name][number]
                for field in sorted(condition.needs.difference(act.writes)):
                    # edges after the first may be left untried until the run comes back
                    if not self._may_be_written(field, act.name, later=number > 0):
                        needed.setdefault(field, f"edge {edge}, {condition!r},")
        return needed

    def _tried(self, act: str) -> Iterable[Condition]:
        """Go through the conditions after ``act``, up to the edge that is always taken."""
        for edge in self._leaving[act]:
            if edge.condition is None:
                return
            yield edge.condition

    def _may_be_written(self, field: str, reader: str, *, later: bool = False) -> bool:
        """Tell whether it may be when a run first comes to ``reader``, or later comes back."""
        itself = self._itself
        return any(
            self._perhaps[reader] & itself[writer]
            and (later or not (self._always[writer] | itself[writer]) & itself[reader])
            for writer in self._writers.get(field, ())
        )


@final
class _Bits:
    """Sets of strings as the bits of numbers."""

    def __init__(self, strings: Iterable[str]) -> None:
        self._bits = {one: 1 << at for at, one in enumerate(dict.fromkeys(strings))}

    def mask(self, strings: Iterable[str]) -> int:
        return reduce(int.__or__, (self._bits[one] for one in strings), 0)

    def names(self, mask: int) -> frozenset[str]:
        return frozenset(one for one, bit in self._bits.items() if bit & mask)

    def without(self, strings: Iterable[str], mask: int) -> set[str]:
        """Return those of ``strings`` that are not in ``mask``."""
        return {one for one in strings if not self._bits.get(one, 0) & mask}


def _before(
    entry: str,
    arriving: Mapping[str, Sequence[str]],
    adds: Mapping[str, int],
    merge: Callable[[int, int], int],
) -> Mapping[str, int]:
    """Follow sets along all edges until nothing changes; return what arrives at each act.

    Each act adds to what passes it; where ways meet, ``merge`` says what is left. The sweeps
    alternate in direction, so that a long way back costs no sweep for each act on it.
    """
    before = {entry: 0}
    order = list(arriving)
    changed = True
    while changed:
        changed = False
        for name in order:
            masks = [before[source] | adds[source] for source in arriving[name] if source in before]
            if name == entry:
                masks.append(0)
            if masks:
                mask = reduce(merge, masks)
                if before.get(name) != mask:
                    before[name] = mask
                    changed = True
        order.reverse()
    return before


def reachable(entry: str, leaving: Mapping[str, Sequence[Edge]]) -> AbstractSet[str]:
    """Return the names of the acts that a run may come to, in the order of some walk."""
    reached = {entry: None}
    waiting = [entry]
    while waiting:
        for edge in leaving[waiting.pop()]:
            if isinstance(edge.target, Act) and edge.target.name not in reached:
                reached[edge.target.name] = None
                waiting.append(edge.target.name)
    return reached.keys()
