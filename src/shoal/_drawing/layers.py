"""The layers of a graph, as Sugiyama, Tagawa and Toda draw it (1981): downwards, in ranks.

Boxes stand on even ranks. On the odd ranks between them stand the labels of edges, so that a label
has a place of its own like a box. An edge that passes a rank has a bend there.

Invariants:
- Each edge of the result leads from one rank to the next. Edges that would lead upwards are left
  out: ``Ranked.back`` has them.
- Neighbours on a rank keep their distance.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, final

SWEEPS = 8
"""Passes over the ranks, up and down in turn. Graphs of people's size stop changing before that."""


@final
class Edge(NamedTuple):
    """An edge between two boxes of one graph."""

    source: int
    target: int
    label: str


@final
@dataclass(slots=True, eq=False)
class Place:
    """A place on a rank: of a box, of a label, or of a bend of an edge."""

    rank: int
    width: float
    box: int | None = None
    label: str = ""
    x: float = 0.0
    """The middle."""
    above: list[Place] = field(default_factory=list["Place"])
    below: list[Place] = field(default_factory=list["Place"])


@final
@dataclass(frozen=True, slots=True)
class Ranked:
    """A graph in layers."""

    ranks: Sequence[Sequence[Place]]
    """The places of each rank, from left to right."""
    boxes: Sequence[Place]
    chains: Sequence[tuple[Edge, Sequence[Place]]]
    """Each edge that leads downwards, with the places that it passes, both boxes included."""
    back: Sequence[Edge]
    """Edges that lead upwards, or to where they come from."""


def in_ranks(
    widths: Sequence[float],
    edges: Sequence[Edge],
    label_widths: Sequence[float],
    *,
    bend: float,
    gap: float,
) -> Ranked:
    """Give each box, label and bend a place.

    Args:
        widths: The widths of the boxes; the first one is the entry.
        edges: The edges. Each box is reached from the entry.
        label_widths: The width of the label of each edge; 0 if there is none.
        bend: The width of a bend.
        gap: The distance between neighbours.
    """
    back = leading_back(len(widths), edges)
    downwards = [index for index in range(len(edges)) if index not in back]
    rank = _longest_paths(len(widths), [edges[index] for index in downwards])
    boxes = [Place(2 * rank[box], width, box) for box, width in enumerate(widths)]
    ranks: list[list[Place]] = [[] for _ in range(2 * max(rank) + 1)]
    for place in boxes:
        ranks[place.rank].append(place)
    chains: list[tuple[Edge, Sequence[Place]]] = []
    for index in downwards:
        edge = edges[index]
        chain = [boxes[edge.source]]
        for passed in range(chain[0].rank + 1, boxes[edge.target].rank):
            named = passed == chain[0].rank + 1 and bool(edge.label)
            place = Place(passed, label_widths[index] if named else bend)
            place.label = edge.label if named else ""
            ranks[passed].append(place)
            chain.append(place)
        chain.append(boxes[edge.target])
        for one, other in pairwise(chain):
            one.below.append(other)
            other.above.append(one)
        chains.append((edge, chain))
    ranks = _with_few_crossings(ranks)
    _align(ranks, gap)
    return Ranked(ranks, boxes, chains, [edges[index] for index in sorted(back)])


def leading_back(count: int, edges: Sequence[tuple[int, int | None, str]]) -> set[int]:
    """Return the indexes of edges to a box that a walk from the first box has passed on its way.

    Args:
        count: The number of boxes.
        edges: The source, the target and the label of each edge. None as a target leads out.
    """
    leaving: list[list[int]] = [[] for _ in range(count)]
    for index, edge in enumerate(edges):
        leaving[edge[0]].append(index)
    back: set[int] = set()
    on_the_way, seen = {0}, {0}
    walk = [(0, iter(leaving[0]))]  # no recursion: a chain may have a thousand acts
    while walk:
        box, rest = walk[-1]
        for index in rest:
            target = edges[index][1]
            if target is None:
                continue
            if target in on_the_way:
                back.add(index)
            elif target not in seen:
                seen.add(target)
                on_the_way.add(target)
                walk.append((target, iter(leaving[target])))
                break
        else:
            walk.pop()
            on_the_way.discard(box)
    return back


def _longest_paths(count: int, edges: Iterable[Edge]) -> list[int]:
    """Return how many edges the longest way to each box has."""
    leaving: list[list[int]] = [[] for _ in range(count)]
    arriving = [0] * count
    for edge in edges:
        leaving[edge.source].append(edge.target)
        arriving[edge.target] += 1
    rank = [0] * count
    ready = [box for box in range(count) if not arriving[box]]
    while ready:
        box = ready.pop()
        for target in leaving[box]:
            rank[target] = max(rank[target], rank[box] + 1)
            arriving[target] -= 1
            if not arriving[target]:
                ready.append(target)
    return rank


def _with_few_crossings(ranks: list[list[Place]]) -> list[list[Place]]:
    """Order each rank by the mean of its neighbours' positions; keep the best order found."""
    best, fewest = ranks, _crossings(ranks)
    for sweep in range(SWEEPS):
        if not fewest:
            break
        ranks = [list(rank) for rank in ranks]
        down = sweep % 2 == 0
        order = ranks if down else ranks[::-1]
        for before, rank in pairwise(order):
            _order_by(before, rank, down=down)
        crossings = _crossings(ranks)
        if crossings < fewest:
            best, fewest = ranks, crossings
    return best


def _order_by(before: Sequence[Place], rank: list[Place], *, down: bool) -> None:
    position = {id(place): index for index, place in enumerate(before)}
    means: dict[int, float] = {}
    for index, place in enumerate(rank):
        found = [position[id(one)] for one in (place.above if down else place.below)]
        means[id(place)] = sum(found) / len(found) if found else index
    rank.sort(key=lambda place: means[id(place)])


def _crossings(ranks: Sequence[Sequence[Place]]) -> int:
    total = 0
    for upper, lower in pairwise(ranks):
        position = {id(place): index for index, place in enumerate(lower)}
        ends = [sorted(position[id(one)] for one in place.below) for place in upper]
        flat = [end for found in ends for end in found]
        total += sum(one > other for index, one in enumerate(flat) for other in flat[index + 1 :])
    return total


def _align(ranks: Sequence[Sequence[Place]], gap: float) -> None:
    """Place each rank as near below and above its neighbours as the distances allow."""
    for rank in ranks:
        _settle(rank, [0.0] * len(rank), gap)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for rank in ranks if down else reversed(ranks):
            wanted: list[float] = []
            for place in rank:
                beside = (place.above or place.below) if down else (place.below or place.above)
                wanted.append(sum(one.x for one in beside) / len(beside) if beside else place.x)
            _settle(rank, wanted, gap)


def _settle(rank: Sequence[Place], wanted: Sequence[float], gap: float) -> None:
    """Set ``x`` as near to ``wanted`` as can be, by least squares, keeping order and distances.

    Neighbours that want to be too near each other form a block, which goes where its members want
    to be on average (isotonic regression by pooling adjacent violators).
    """
    offset = 0.0
    offsets: list[float] = []
    for index, place in enumerate(rank):
        if index:
            offset += (rank[index - 1].width + place.width) / 2 + gap
        offsets.append(offset)
    blocks: list[tuple[float, int]] = []  # the sum of what the members want, and their number
    for want, offset in zip(wanted, offsets, strict=True):
        total, members = want - offset, 1
        while blocks and blocks[-1][0] / blocks[-1][1] > total / members:
            before = blocks.pop()
            total, members = total + before[0], members + before[1]
        blocks.append((total, members))
    settled = [total / members for total, members in blocks for _ in range(members)]
    for place, at, offset in zip(rank, settled, offsets, strict=True):
        place.x = at + offset
