"""The lines between the boxes of one graph.

A line downwards moves sideways only between two ranks, where no box is. A line upwards leaves the
boxes to the right, where it has a lane of its own in the gutter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, final

from .layers import Edge, Place, Ranked
from .lettering import label_width

BETWEEN = 17.0
"""The height between two ranks."""
LABELLED = 18.0
"""The height of a rank with labels."""
LANE = 16.0
"""The width of a lane in the gutter, and the height of one between two ranks."""
STEP = 4.0
"""How far a label beside a line is moved at a time, to get out of the way of another line."""
APART = 12.0
"""The distance between two ends of lines at one border."""


@final
@dataclass(slots=True, eq=False)
class Rect:
    """A rectangle, by its upper left corner."""

    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """The right border."""
        return self.x + self.width

    @property
    def bottom(self) -> float:
        """The lower border."""
        return self.y + self.height

    @property
    def middle(self) -> float:
        """The middle between the left and the right border."""
        return self.x + self.width / 2


@final
@dataclass(slots=True, eq=False)
class Line:
    """A line with an arrow at its end."""

    points: list[tuple[float, float]]
    shape: Literal["curves", "corners"]
    """How its points are joined: by curves that begin and end downwards, or by straight lines."""
    label_at: int | None = None
    """The index of the point after which its label interrupts it, if one does."""


@final
@dataclass(slots=True, eq=False)
class Text:
    """A label, by the middle of its height and its middle or its beginning."""

    x: float
    y: float
    text: str
    anchor: Literal["middle", "start"]


Put = Callable[[Place, float, float], None]
"""Moves a box to a place: its upper left corner."""


def routed(
    ranked: Ranked, rects: Sequence[Rect], put: Put, size: float
) -> tuple[Rect, list[Line], list[Text]]:
    """Place the boxes of a graph and draw its lines; return the room, the lines and the labels."""
    return _Routes(ranked, rects, size).drawn(put)


@final
class _Routes:
    def __init__(self, ranked: Ranked, rects: Sequence[Rect], size: float) -> None:
        self._ranked = ranked
        self._rects = rects
        self._size = size
        self._lines: list[Line] = []
        self._texts: list[Text] = []
        self._loops = [edge for edge in ranked.back if edge.source == edge.target]
        # Short ones first: they get the inner lanes.
        upwards = [edge for edge in ranked.back if edge.source != edge.target]
        self._upwards = sorted(
            upwards, key=lambda edge: self._rank(edge.source) - self._rank(edge.target)
        )
        outermost = {rank[-1].box for rank in ranked.ranks}
        self._by_side = {box for box in range(len(rects)) if box in outermost}
        self._ports = _Ports()

    def _rank(self, box: int) -> int:
        return self._ranked.boxes[box].rank

    def drawn(self, put: Put) -> tuple[Rect, list[Line], list[Text]]:
        """Place the boxes and draw the lines."""
        self._stack(put)
        self._note_ports()
        self._draw_down()
        self._draw_loops()
        self._draw_up()
        return self._room(), self._lines, self._texts

    # -- ranks ------------------------------------------------------------------------------------

    def _stack(self, put: Put) -> None:
        """Give each rank its height, and each box its place."""
        below = [0] * len(self._ranked.ranks)  # lanes under each rank...
        above = [0] * len(self._ranked.ranks)  # ...and over it
        for edge in self._upwards:
            if edge.source not in self._by_side:
                below[self._rank(edge.source)] += 1
            if edge.target not in self._by_side:
                above[self._rank(edge.target)] += 1
        self._tops: list[float] = []
        self._bottoms: list[float] = []
        y = 0.0
        for index, rank in enumerate(self._ranked.ranks):
            y += LANE * above[index] + (BETWEEN if above[index] and not index else 0.0)
            boxes = [place for place in rank if place.box is not None]
            height = max((self._rects[place.box or 0].height for place in boxes), default=0.0)
            if any(place.label for place in rank):
                height = max(height, LABELLED)
            self._tops.append(y)
            self._bottoms.append(y + height)
            for place in boxes:
                rect = self._rects[place.box or 0]
                put(place, place.x - rect.width / 2, y + (height - rect.height) / 2)
            y += height + LANE * below[index] + BETWEEN

    # -- ends of lines ----------------------------------------------------------------------------

    def _note_ports(self) -> None:
        """Divide the borders of the boxes among the lines that end there."""
        ports, rects = self._ports, self._rects
        for edge, chain in self._ranked.chains:
            ports.add(edge, "out", rects[edge.source], "bottom", chain[1].x)
            ports.add(edge, "in", rects[edge.target], "top", chain[-2].x)
        # On the right side: arriving lines above, loops in the middle, leaving lines below.
        for edge in self._upwards:
            side = edge.target in self._by_side
            where = "right" if side else "top"
            ports.add(edge, "in", rects[edge.target], where, -1.0 if side else math.inf)
        for edge in self._loops:
            ports.add(edge, "in", rects[edge.source], "right", 0.0)
            ports.add(edge, "out", rects[edge.source], "right", 0.0)
        for edge in self._upwards:
            side = edge.source in self._by_side
            where = "right" if side else "bottom"
            ports.add(edge, "out", rects[edge.source], where, 1.0 if side else math.inf)

    # -- lines ------------------------------------------------------------------------------------

    def _draw_down(self) -> None:
        for edge, chain in self._ranked.chains:
            start, end = self._ports.at(edge, "out"), self._ports.at(edge, "in")
            # Straight down to the end of the rank, where a neighbour may be higher than the box.
            line = Line([start, (start[0], self._bottoms[chain[0].rank])], "curves")
            for place in chain[1:-1]:
                top, bottom = self._tops[place.rank], self._bottoms[place.rank]
                if place.label:
                    line.label_at = len(line.points)
                    self._texts.append(Text(place.x, (top + bottom) / 2, place.label, "middle"))
                line.points += [(place.x, top), (place.x, bottom)]
            line.points += [(end[0], self._tops[chain[-1].rank]), end]
            self._lines.append(line)

    def _draw_loops(self) -> None:
        for edge in self._loops:
            x, low = self._ports.at(edge, "out")
            _, high = self._ports.at(edge, "in")
            out = x + 20
            points = [(x, low), (out, low), (out, high), (x, high)]
            self._lines.append(Line(points, "corners"))
            if edge.label:
                self._texts.append(Text(out + 5, (low + high) / 2, edge.label, "start"))

    def _draw_up(self) -> None:
        edges = self._extents()
        labels: list[tuple[Text, float, float]] = []
        used_below = dict.fromkeys(range(len(self._tops)), 0)
        used_above = dict.fromkeys(range(len(self._tops)), 0)
        for edge in self._upwards:
            low, high = self._rank(edge.source), self._rank(edge.target)
            spanned = range(max(high - 1, 0), min(low + 2, len(edges)))
            lane = max(edges[rank] for rank in spanned) + LANE
            label = label_width(edge.label, self._size) + 8 if edge.label else 0.0
            for rank in spanned:
                edges[rank] = lane + label
            start, end = self._ports.at(edge, "out"), self._ports.at(edge, "in")
            points = [start]
            y_low, y_high = start[1], end[1]
            if edge.source not in self._by_side:
                used_below[low] += 1
                y_low = self._bottoms[low] + LANE * used_below[low]
                points.append((start[0], y_low))
            points.append((lane, y_low))
            if edge.target not in self._by_side:
                used_above[high] += 1
                y_high = self._tops[high] - LANE * used_above[high]
            points.append((lane, y_high))
            if edge.target not in self._by_side:
                points.append((end[0], y_high))
            points.append(end)
            self._lines.append(Line(points, "corners"))
            if edge.label:
                labels.append((Text(lane + 6, 0.0, edge.label, "start"), y_high, y_low))
        for text, y_high, y_low in labels:
            text.y = self._free(text, y_high, y_low)
            self._texts.append(text)

    def _free(self, text: Text, top: float, bottom: float) -> float:
        """Return a height at which no line goes through a label, as near the middle as can be."""
        right = text.x + label_width(text.text, self._size)
        taken = [
            y0
            for line in self._lines
            for (x0, y0), (x1, y1) in pairwise(line.points)
            if y0 == y1 and min(x0, x1) < right and max(x0, x1) > text.x
        ]
        middle = (top + bottom) / 2
        steps = range(int((bottom - top) / 2 / STEP))
        for height in (middle + sign * STEP * step for step in steps for sign in (-1, 1)):
            if all(abs(height - y) > LABELLED / 2 for y in taken):
                return height
        return middle

    def _extents(self) -> list[float]:
        """Return how far each rank reaches to the right."""
        loops = {edge.source: edge for edge in self._loops}
        extents: list[float] = []
        for rank in self._ranked.ranks:
            found = [0.0]
            for place in rank:
                right = place.x + place.width / 2
                if place.box is not None:
                    right = self._rects[place.box].right
                    loop = loops.get(place.box)
                    if loop is not None:
                        right += 28 + label_width(loop.label, self._size)
                found.append(right)
            extents.append(max(found[1:], default=0.0))
        return extents

    def _room(self) -> Rect:
        """Return the room that everything takes."""
        lefts, tops, rights, bottoms = zip(*self._areas(), strict=True)
        left, top = min(lefts), min(tops)
        return Rect(left, top, max(rights) - left, max(bottoms) - top)

    def _areas(self) -> list[tuple[float, float, float, float]]:
        areas = [(rect.x, rect.y, rect.right, rect.bottom) for rect in self._rects]
        areas += [(x, y, x, y) for line in self._lines for x, y in line.points]
        for text in self._texts:
            width = label_width(text.text, self._size)
            x = text.x - width / 2 if text.anchor == "middle" else text.x
            areas.append((x, text.y - 8, x + width, text.y + 8))
        return areas


@final
@dataclass(slots=True)
class _Ports:
    """The ends of lines at the borders of boxes, spread so that no two are at one point."""

    _sides: dict[tuple[int, str], list[tuple[float, int, tuple[int, str]]]] = field(
        default_factory=dict[tuple[int, str], list[tuple[float, int, tuple[int, str]]]]
    )
    _rects: dict[int, Rect] = field(default_factory=dict[int, Rect])
    _at: dict[tuple[int, str], tuple[float, float]] = field(
        default_factory=dict[tuple[int, str], tuple[float, float]]
    )

    def add(self, edge: Edge, end: str, rect: Rect, side: str, wanted: float) -> None:
        """Note that a line ends at a side of a box, as near to ``wanted`` as can be."""
        self._rects[id(rect)] = rect
        found = self._sides.setdefault((id(rect), side), [])
        found.append((wanted, len(found), (id(edge), end)))
        self._at.clear()

    def at(self, edge: Edge, end: str) -> tuple[float, float]:
        """Return where a line ends."""
        if not self._at:
            for (rect, side), found in self._sides.items():
                self._spread(self._rects[rect], side, sorted(found))
        return self._at[id(edge), end]

    def _spread(
        self, rect: Rect, side: str, found: Sequence[tuple[float, int, tuple[int, str]]]
    ) -> None:
        if side == "right":
            apart = min(APART, rect.height / (len(found) + 1))
            first = rect.y + rect.height / 2 - apart * (len(found) - 1) / 2
            for index, (_, _, which) in enumerate(found):
                self._at[which] = rect.right, first + apart * index
            return
        margin = min(10.0, rect.width / 2)
        low, high = rect.x + margin, rect.right - margin
        apart = min(APART, (high - low) / max(len(found) - 1, 1))
        places: list[float] = []
        for index, (wanted, _, _) in enumerate(found):
            least = places[-1] + apart if places else low
            most = high - apart * (len(found) - 1 - index)
            places.append(min(max(wanted, least), most))
        y = rect.y if side == "top" else rect.bottom
        for place, (_, _, which) in zip(places, found, strict=True):
            self._at[which] = place, y
