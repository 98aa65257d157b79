"""Figures: what is drawn of an act, whichever language the drawing is written in.

Invariants:
- A figure is a tree of values. Links connect figures that are inside the same figure, so no line
  crosses a border.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, final

Kind = Literal["action", "graph", "fan-out", "race", "again", "closed"]
"""What a figure stands for; ``"again"``: a figure around it; ``"closed"``: its inside is left out.
"""

LINE = 46
"""Characters of a line of labels: more make a drawing wide, fewer make it tall."""


@final
class Link(NamedTuple):
    """An edge between two figures of one graph."""

    source: int
    """The index of a figure, in ``Figure.inside``."""
    target: int | None
    """The index of the other one; None: the end of the graph."""
    label: str = ""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """What is drawn of one act."""

    name: str
    kind: Kind
    path: tuple[str, ...] = ()
    """The names of the acts from the outermost graph, which is left out, down to this one."""
    labels: tuple[str, ...] = ()
    """What is said of it besides its name, each a few words."""
    note: str = ""
    """Shown to a reader on request: which fields it reads and writes."""
    inside: tuple[Figure, ...] = ()
    links: tuple[Link, ...] = ()
    """The edges of the graph whose acts are inside; none if these are children, side by side."""
    is_chosen: bool = False
    """Whether what is inside is chosen at run time: then it is what the code names."""
    is_many: bool = False
    """Whether each figure inside stands for a child for each of many elements."""

    @property
    def is_linked(self) -> bool:
        """Whether what is inside has an order."""
        return bool(self.links)

    @property
    def starts(self) -> bool:
        """Whether the start of the graph is drawn: only of the outermost one.

        Each act of a graph is reached from its entry, so the entry is always on top.
        """
        return not self.path and self.is_linked

    @property
    def ends(self) -> bool:
        """Whether the end of the graph is drawn."""
        return any(link.target is None for link in self.links)


def lines_of(labels: Iterable[str], width: int = LINE) -> Iterator[str]:
    """Yield the labels in lines, as many to a line as fit, a long one by itself."""
    line = ""
    for label in labels:
        if line and len(line) + len(label) + 3 > width:
            yield line
            line = label
        else:
            line = f"{line} · {label}" if line else label
    if line:
        yield line


def name_of(figure: Figure) -> str:
    """Return the name of a figure, with the sign of a figure around it."""
    return f"↻ {figure.name}" if figure.kind == "again" else figure.name


def heading_of(figure: Figure) -> str:
    """Return the name of a figure and, of a parallel one, its kind."""
    name = name_of(figure)
    return f"{name} ({figure.kind})" if figure.kind in ("fan-out", "race") else name
