"""Data flow of a graph: which fields its acts have written and read at each act.

Invariants:
- A field is surely written at an act if it is written on every path there, and possibly written if
  it is on some path. So a loop doesn't hide that its first iteration lacks a field.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import reduce
from typing import NamedTuple, final

from .act import Act
from .condition import Condition


@final
class End:
    """The type of ``END``, its only instance."""

    __module__ = "shoal"  # pickles and stored values name it so, wherever it is defined

    __slots__ = ()

    def __repr__(self) -> str:
        return "END"

    def __reduce__(self) -> str:
        return "END"


END = End()
"""The target of an edge that ends the run: ``(act, END, when("done"))``."""


@final
class Edge(NamedTuple):
    """A transition from one act to the next, or to the end."""

    source: Act
    target: Act | End
    condition: Condition | None
    """The condition under which the edge is taken; None: always."""

    def __str__(self) -> str:
        return f"{self.source.name!r} -> {name_of(self.target)}"

    def __repr__(self) -> str:
        condition = "" if self.condition is None else f" {self.condition!r}"
        target = self.target.name if isinstance(self.target, Act) else "END"
        return f"{self.source.name} -> {target}{condition}"


def name_of(act: object) -> str:
    """Return the name of an edge's target for a message; of anything else, its repr."""
    return repr(act.name) if isinstance(act, Act) else repr(act)


@final
class Flow(NamedTuple):
    """The fields that a graph as a whole reads, writes and needs."""

    reads: frozenset[str]
    """Fields that acts and conditions may read before they are surely written."""
    writes: frozenset[str]
    """Fields that some act may change."""
    sure_writes: frozenset[str]
    """Fields that are certain to be in the state at the end, whichever path is taken."""
    needed_by: Mapping[str, str]
    """Fields that must be given to the graph, each with a description of the act or condition.

    These are needed by an act or a condition, and no act can have written them when a run first
    reaches it.
    """


def trace(entry: Act, acts: Sequence[Act], leaving: Mapping[str, Sequence[Edge]]) -> Flow:
    """Return the data flow of a graph.

    Args:
        entry: The act at which a run begins.
        acts: All acts.
        leaving: The edges that leave each act, by its name, in the order in which they are tried.
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
        # For each act, before it: the fields written on every path to it, and the acts passed on
        # every path, and on some path.
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
            for field, reader in act.needed_by.items():
                if not self._may_be_written(field, act.name):
                    needed.setdefault(field, reader)
            for number, condition in enumerate(self._tried(act.name)):
                edge = self._leaving[act.name][number]
                for field in sorted(condition.needs.difference(act.writes)):
                    # The first condition is always evaluated when a run first reaches the act. The
                    # others perhaps only when it comes back, with more fields written.
                    if not self._may_be_written(field, act.name, later=number > 0):
                        needed.setdefault(field, f"edge {edge}, {condition!r},")
        return needed

    def _tried(self, act: str) -> Iterable[Condition]:
        """Yield the conditions after ``act``, up to the edge that is always taken."""
        for edge in self._leaving[act]:
            if edge.condition is None:
                return
            yield edge.condition

    def _may_be_written(self, field: str, reader: str, *, later: bool = False) -> bool:
        """Return whether ``field`` may be written when a run first reaches ``reader``.

        Args:
            field: The field.
            reader: The name of an act.
            later: Whether to ask about all times at which a run reaches it, not only the first.
        """
        itself = self._itself
        # A writer counts if it is on some path to the reader. For the first time, some path must
        # lead to the writer without passing the reader, which must not be the writer itself.
        return any(
            self._perhaps[reader] & itself[writer]
            and (later or not (self._always[writer] | itself[writer]) & itself[reader])
            for writer in self._writers.get(field, ())
        )


@final
class _Bits:
    """Sets of strings, as bits of an int.

    A graph of a thousand acts has a thousand such sets, of up to a thousand fields each, and
    merges them at every edge.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        self._bits = {one: 1 << at for at, one in enumerate(dict.fromkeys(strings))}

    def mask(self, strings: Iterable[str]) -> int:
        return reduce(int.__or__, (self._bits[one] for one in strings), 0)

    def names(self, mask: int) -> frozenset[str]:
        return frozenset(one for one, bit in self._bits.items() if bit & mask)

    def without(self, strings: Iterable[str], mask: int) -> set[str]:
        """Return ``strings`` without those in ``mask``."""
        return {one for one in strings if not self._bits.get(one, 0) & mask}


def _before(
    entry: str,
    arriving: Mapping[str, Sequence[str]],
    adds: Mapping[str, int],
    merge: Callable[[int, int], int],
) -> Mapping[str, int]:
    """Propagate sets along all edges to a fixed point; return the set that arrives at each act.

    Each act adds its own elements. Where paths meet, ``merge`` combines the sets.
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
        # Sweeps alternate in direction, so that a long path against the order takes one sweep, not
        # one for each act on it.
        order.reverse()
    return before


def reachable(entry: str, leaving: Mapping[str, Sequence[Edge]]) -> AbstractSet[str]:
    """Return the names of the acts that a run can reach, in the order of a traversal."""
    reached = {entry: None}
    waiting = [entry]
    while waiting:
        for edge in leaving[waiting.pop()]:
            if isinstance(edge.target, Act) and edge.target.name not in reached:
                reached[edge.target.name] = None
                waiting.append(edge.target.name)
    return reached.keys()
