"""The places of all boxes, lines and texts of a drawing.

A figure is laid out from the inside outwards: what is inside becomes one box of its graph. No line
crosses the border of a box, so that is all there is to drawing graphs within graphs.

Invariants:
- Boxes overlap only if one is inside the other.
- Lines begin and end at borders of boxes. Between them they pass no box of their graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

from .figure import Figure, lines_of, name_of
from .layers import Edge, Place, in_ranks
from .lettering import label_width, name_width, shortened
from .routes import Line, Rect, Text, routed

NAME, LABEL = 13.0, 11.0
"""Sizes of letters, in pixels."""
LEADING = 15.0
"""The height of a line of labels."""
PAD = 14.0
GAP = 22.0
ROW = 760.0
"""The width beyond which children that stand side by side begin another row."""
STACKED = 4.0
"""How far each sheet of a stack sticks out: a child for each of many elements."""
MARK = 14.0
"""The width of the start and the end of a graph."""
BAR = 6.0
LONGEST_NAME, LONGEST_LABEL = 48, 64
"""Characters, beyond which a text is shortened. The title of its box has all of it."""

Counts = Mapping[tuple[str, ...], Mapping[str, int]]


@final
@dataclass(slots=True, eq=False)
class Box:
    """One figure, laid out. Its coordinates are relative to the drawing in the end."""

    figure: Figure
    rect: Rect
    name: str
    labels: Sequence[str]
    counts: Mapping[str, int] | None = None
    inside: list[Box] = field(default_factory=list["Box"])
    lines: list[Line] = field(default_factory=list[Line])
    texts: list[Text] = field(default_factory=list[Text])
    """The labels of the lines."""
    start: Rect | None = None
    end: Rect | None = None

    def move(self, x: float, y: float) -> None:
        """Move the box with all that is inside."""
        for rect in (self.rect, self.start, self.end):
            if rect is not None:
                rect.x, rect.y = rect.x + x, rect.y + y
        for line in self.lines:
            line.points = [(one + x, other + y) for one, other in line.points]
        for text in self.texts:
            text.x, text.y = text.x + x, text.y + y
        for box in self.inside:
            box.move(x, y)

    @property
    def head(self) -> float:
        """The height of its name, its labels and its counts."""
        counts = 0.0 if self.counts is None else BAR + LEADING + 4
        return (NAME + 6 if self.name else 0.0) + LEADING * len(self.labels) + counts

    def walk(self) -> Iterator[Box]:
        """Yield the box, and all boxes inside."""
        yield self
        for box in self.inside:
            yield from box.walk()


def laid_out(figure: Figure, counts: Counts | None) -> Box:
    """Lay a figure out, its upper left corner at 0, 0.

    Args:
        figure: The outermost one. If it is a graph, it has no border and no name of its own.
        counts: The children of each step by how they ended, by the path of the figure; a figure
            without them shows none. None: no counts at all.
    """
    return _box(figure, counts, bare=not figure.path and figure.is_linked)


def counted(counts: Mapping[str, int]) -> str:
    """Return counts as a text."""
    return " · ".join(f"{count:,} {status}" for status, count in counts.items() if count)


def _box(figure: Figure, counts: Counts | None, *, bare: bool = False) -> Box:
    found = None if counts is None else counts.get(figure.path)
    box = Box(
        figure,
        Rect(0.0, 0.0, 0.0, 0.0),
        "" if bare else shortened(name_of(figure), LONGEST_NAME),
        [] if bare else [shortened(line, LONGEST_LABEL) for line in lines_of(figure.labels)],
        None if bare else found,
    )
    pad = 0.0 if bare else PAD
    width = _least_width(box)
    height = box.head
    if figure.inside:
        inner = [_box(one, counts) for one in figure.inside]
        box.inside = inner
        room = _linked(box) if figure.is_linked else _side_by_side(box)
        above = 0.0 if bare else height + 8
        shift = max(0.0, (width - room.width) / 2)
        for one in inner:
            one.move(shift, above)
        _move_lines(box, shift, above)
        width, height = max(width, room.width), above + room.height
    box.rect = Rect(0.0, 0.0, width + 2 * pad, height + 2 * pad * 0.7)
    for one in box.inside:
        one.move(pad, pad * 0.7)
    _move_lines(box, pad, pad * 0.7)
    return box


def _move_lines(box: Box, x: float, y: float) -> None:
    inside, box.inside, rect = box.inside, [], box.rect
    box.rect = Rect(0.0, 0.0, 0.0, 0.0)
    box.move(x, y)
    box.inside, box.rect = inside, rect


def _least_width(box: Box) -> float:
    figure = box.figure
    kind = f"  {figure.kind}" if figure.kind in ("fan-out", "race") and box.name else ""
    widths = [name_width(box.name, NAME) + label_width(kind, LABEL), 0.0 if not box.name else 68.0]
    widths += [label_width(line, LABEL) for line in box.labels]
    if box.counts is not None:
        # In steps, so that a drawing that shows counts as they change seldom changes its layout.
        widths.append(-(-label_width(counted(box.counts), LABEL) // 40) * 40)
    return max(widths)


def _side_by_side(box: Box) -> Rect:
    """Place what is inside in rows; return the room that it takes."""
    extra = 2 * STACKED if box.figure.is_many else 0.0
    x = y = height = width = 0.0
    for one in box.inside:
        if x and x + one.rect.width > ROW:
            x, y, height = 0.0, y + height + GAP * 0.7, 0.0
        one.move(x, y)
        x += one.rect.width + extra + GAP * 0.7
        width = max(width, x - GAP * 0.7)
        height = max(height, one.rect.height + extra)
    return Rect(0.0, 0.0, width, y + height)


def _linked(box: Box) -> Rect:
    """Place what is inside in layers, and the lines between; return the room that it takes."""
    figure, rects = box.figure, [one.rect for one in box.inside]
    first = 1 if figure.starts else 0
    if figure.starts:
        box.start = Rect(0.0, 0.0, MARK, MARK)
        rects.insert(0, box.start)
    edges = [Edge(0, 1, "")] if figure.starts else []
    end = len(rects)
    if figure.ends:
        box.end = Rect(0.0, 0.0, MARK, MARK)
        rects.append(box.end)
    for link in figure.links:
        target = end if link.target is None else link.target + first
        edges.append(Edge(link.source + first, target, shortened(link.label, LONGEST_NAME)))
    widths = [label_width(edge.label, LABEL) + 10 if edge.label else 0.0 for edge in edges]
    loops = {edge.source: index for index, edge in enumerate(edges) if edge.source == edge.target}
    around = [
        2 * (26.0 + widths[loops[index]]) if index in loops else 0.0 for index in range(len(rects))
    ]
    ranked = in_ranks(
        [rect.width + more for rect, more in zip(rects, around, strict=True)],
        edges,
        widths,
        bend=10.0,
        gap=GAP,
    )
    places = _Moves(box, rects, first)
    room, box.lines, box.texts = routed(ranked, rects, places.put, LABEL)
    for one in box.inside:
        one.move(-room.x, -room.y)
    _move_lines(box, -room.x, -room.y)
    return room


@final
@dataclass(slots=True)
class _Moves:
    """Moves boxes to their places, with all that is inside."""

    box: Box
    rects: Sequence[Rect]
    first: int

    def put(self, place: Place, x: float, y: float) -> None:
        assert place.box is not None
        rect = self.rects[place.box]
        index = place.box - self.first
        if 0 <= index < len(self.box.inside):
            self.box.inside[index].move(x - rect.x, y - rect.y)
        else:
            rect.x, rect.y = x, y
