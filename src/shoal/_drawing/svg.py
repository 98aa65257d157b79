"""Figures as SVG: no script, no font, no address of anything else."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from xml.sax.saxutils import escape, quoteattr

from .figure import Figure, heading_of
from .layout import BAR, LABEL, LEADING, NAME, PAD, STACKED, Box, Counts, counted, laid_out
from .lettering import name_width
from .routes import Line, Rect
from .style import style

_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that no XML document can hold."""

MARGIN = 12.0
ARROW = 6.0
CORNER = 7.0
"""The radius of corners of boxes, and of lines."""


def svg(figure: Figure, counts: Counts | None = None, *, styled: bool = True) -> str:
    """Return a figure as an SVG document.

    Args:
        figure: The figure.
        counts: How many children are in which state, by the path of their step; see ``laid_out``.
        styled: Whether the style sheet is in the drawing.
    """
    box = laid_out(figure, counts)
    box.move(MARGIN, MARGIN)
    width, height = box.rect.width + 2 * MARGIN, box.rect.height + 2 * MARGIN
    return "\n".join(_document(box, width, height, styled=styled)) + "\n"


def _document(box: Box, width: float, height: float, *, styled: bool) -> Iterator[str]:
    size = f'width="{_n(width)}" height="{_n(height)}" viewBox="0 0 {_n(width)} {_n(height)}"'
    yield f'<svg xmlns="http://www.w3.org/2000/svg" class="shoal-drawing" role="img" {size}>'
    yield f"<title>{_text(f'{_spoken(box.figure)} {box.figure.name}')}</title>"
    yield f"<desc>{_text(_described(box.figure))}</desc>"
    if styled:
        yield f"<style>{style()}</style>"
    yield f'<rect class="paper" width="{_n(width)}" height="{_n(height)}" rx="{_n(CORNER)}"/>'
    yield from _drawn(box)
    yield "</svg>"


def _drawn(box: Box) -> Iterator[str]:
    figure = box.figure
    framed = bool(box.name)
    kinds = f"{figure.kind}{' chosen' if figure.is_chosen else ''}"
    step = f" data-step={quoteattr(_text('/'.join(figure.path)))}" if figure.path else ""
    yield f'<g class="{kinds}"{step}>'
    if framed:
        if figure.path:
            yield f"<title>{_text(_titled(box))}</title>"
        yield _rect(box.rect, "box")
        yield from _heading(box)
    if figure.is_many:
        for one in box.inside:
            for sheet in (2, 1):
                yield _rect(one.rect, "box", sheet * STACKED)
    for line in box.lines:
        yield from _line(line)
    for text in box.texts:
        beside = " beside" if text.anchor == "start" else ""
        at = f'x="{_n(text.x)}" y="{_n(text.y)}"'
        yield f'<text class="edge-label{beside}" {at}>{_text(text.text)}</text>'
    if box.start is not None:
        yield _circle(box.start, "mark", box.start.width / 2)
    if box.end is not None:
        yield _circle(box.end, "ring", box.end.width / 2 - 0.5)
        yield _circle(box.end, "mark", box.end.width / 4)
    for one in box.inside:
        yield from _drawn(one)
    yield "</g>"


def _heading(box: Box) -> Iterator[str]:
    figure, rect = box.figure, box.rect
    is_leaf = not box.inside
    x = rect.middle if is_leaf else rect.x + PAD
    anchor = ' text-anchor="middle"' if is_leaf else ""
    y = rect.y + PAD * 0.7 + NAME / 2 + 1
    if is_leaf:  # in the middle of a box that is higher than its heading
        y += max(0.0, (rect.height - box.head - 2 * PAD * 0.7) / 2)
    yield f'<text class="name" x="{_n(x)}" y="{_n(y)}"{anchor}>{_text(box.name)}</text>'
    if figure.kind in ("fan-out", "race"):
        kind = x + name_width(box.name, NAME) + 8
        if is_leaf:
            kind = x + name_width(box.name, NAME) / 2 + 8
        yield f'<text class="kind" x="{_n(kind)}" y="{_n(y)}">{figure.kind}</text>'
    y += NAME / 2 + 4
    for line in box.labels:
        at = f'x="{_n(x)}" y="{_n(y + LABEL / 2)}"'
        yield f'<text class="label" {at}{anchor}>{_text(line)}</text>'
        y += LEADING
    if box.counts is not None:
        yield from _counts(box, box.counts, y)


def _counts(box: Box, counts: Mapping[str, int], y: float) -> Iterator[str]:
    x, room = box.rect.x + PAD, box.rect.width - 2 * PAD
    total = sum(counts.values())
    for status, count in counts.items():
        width = room * count / total if total else 0.0
        if width:
            at = f'x="{_n(x)}" y="{_n(y + 2)}" width="{_n(width)}" height="{_n(BAR)}"'
            kind = "".join(c if c.isalnum() or c in "-_" else "-" for c in status)
            yield f'<rect class="bar {kind}" {at}/>'
        x += width
    text = counted(counts) or "none yet"
    anchor, at = "", box.rect.x + PAD
    if not box.inside:
        anchor, at = ' text-anchor="middle"', box.rect.middle
    place = f'x="{_n(at)}" y="{_n(y + BAR + 4 + LABEL / 2)}"'
    yield f'<text class="counts" {place}{anchor}>{_text(text)}</text>'


def _line(line: Line) -> Iterator[str]:
    (before, end) = line.points[-2:]
    leftwards = line.shape == "corners" and before[1] == end[1]
    x, y = end
    # The line ends at the middle of its arrow, so that no blunt end shows at the tip.
    short = (x + ARROW / 2, y) if leftwards else (x, y - ARROW / 2)
    points = [short if point == end else point for point in line.points]
    path = _curved(points, line.label_at) if line.shape == "curves" else _cornered(points)
    yield f'<path class="line" d="{path}"/>'
    half = ARROW * 0.6
    if leftwards:
        tip = f"M{_n(x)},{_n(y)}l{_n(ARROW)},{_n(-half)}v{_n(2 * half)}z"
    else:
        tip = f"M{_n(x)},{_n(y)}l{_n(-half)},{_n(-ARROW)}h{_n(2 * half)}z"
    yield f'<path class="arrow" d="{tip}"/>'


def _curved(points: Sequence[tuple[float, float]], gap: int | None) -> str:
    """Join points by curves that leave each downwards and arrive downwards, but for one gap."""
    parts = [f"M{_n(points[0][0])},{_n(points[0][1])}"]
    for index, ((x0, y0), (x1, y1)) in enumerate(pairwise(points)):
        if index == gap:
            parts.append(f"M{_n(x1)},{_n(y1)}")
        elif y0 == y1:
            continue  # a rank without height
        elif _n(x0) == _n(x1):
            parts.append(f"L{_n(x1)},{_n(y1)}")
        else:
            middle = _n((y0 + y1) / 2)
            parts.append(f"C{_n(x0)},{middle} {_n(x1)},{middle} {_n(x1)},{_n(y1)}")
    return "".join(parts)


def _cornered(points: Sequence[tuple[float, float]]) -> str:
    """Join points by straight lines with round corners."""
    parts = [f"M{_n(points[0][0])},{_n(points[0][1])}"]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        x, y = _towards(corner, before)
        parts.append(f"L{_n(x)},{_n(y)}Q{_n(corner[0])},{_n(corner[1])} ")
        x, y = _towards(corner, after)
        parts.append(f"{_n(x)},{_n(y)}")
    parts.append(f"L{_n(points[-1][0])},{_n(points[-1][1])}")
    return "".join(parts)


def _towards(corner: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    """Return the point where the rounding of a corner begins: at most half of the way away."""
    x, y = other[0] - corner[0], other[1] - corner[1]
    length = abs(x) + abs(y)  # one of them is 0
    part = min(CORNER, length / 2) / length if length else 0.0
    return corner[0] + x * part, corner[1] + y * part


def _rect(rect: Rect, kind: str, shift: float = 0.0) -> str:
    at = f'x="{_n(rect.x + shift)}" y="{_n(rect.y + shift)}"'
    size = f'width="{_n(rect.width)}" height="{_n(rect.height)}"'
    return f'<rect class="{kind}" {at} {size} rx="{_n(CORNER)}"/>'


def _circle(rect: Rect, kind: str, radius: float) -> str:
    y = rect.y + rect.height / 2
    return f'<circle class="{kind}" cx="{_n(rect.middle)}" cy="{_n(y)}" r="{_n(radius)}"/>'


# -- texts ----------------------------------------------------------------------------------------


def _titled(box: Box) -> str:
    figure = box.figure
    parts = [f"{_spoken(figure)} {figure.name}", *figure.labels, figure.note]
    if box.counts is not None:
        parts.append(counted(box.counts))
    return "\n".join(part for part in parts if part)


def _spoken(figure: Figure) -> str:
    return {"again": "back to", "closed": "act"}.get(figure.kind, figure.kind)


def _described(figure: Figure) -> str:
    """Return what is drawn, in sentences, for those who don't see it."""
    names = ", ".join(heading_of(one) for one in figure.inside)
    said = [f"Inside: {names}."] if names else []
    for link in figure.links:
        target = "the end" if link.target is None else figure.inside[link.target].name
        label = f", if {link.label}" if link.label and link.label != "else" else ""
        said.append(f"{figure.inside[link.source].name} leads to {target}{label}.")
    said += [f"{one.name}: {_described(one)}" for one in figure.inside if one.inside]
    return " ".join(said)


def _n(number: float) -> str:
    return f"{round(number, 1):g}"


def _text(text: str) -> str:
    """Escape a text, without the characters that XML can't hold."""
    return escape(_NO_XML.sub("\ufffd", text))
