"""Figures of acts: what ``shoal._drawing`` draws.

Invariants:
- A figure is known without a run. An act inside itself is drawn as a reference, and nesting ends at
  a given depth, so a figure is finite.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, final

from shoal._drawing.figure import Figure, Link

from .act import Act
from .dataflow import Edge
from .sketch import Sketch

DEPTH = 3
"""How deep runs are nested in a drawing. Deeper ones are rare, and too small to be read."""


def figure_of(act: Act, depth: int = DEPTH) -> Figure:
    """Return the figure of an act.

    Args:
        act: The act: its names are not part of the paths inside it, if it is a graph.
        depth: How deep runs are nested in the figure. Acts of deeper runs are left out.
    """
    sketch = act.sketch()
    if sketch.kind != "graph":
        return _Pictures(depth).of(act, (), (), 0)
    figure = _Pictures(depth).graph(act, sketch, (), (), 0)
    # A single act needs no frame.
    return figure if figure.is_linked else figure.inside[0]


def drawing_of(act: Act) -> str:
    """Return an act as SVG, for notebooks."""
    from shoal._drawing.svg import svg  # noqa: PLC0415 # hardly any program draws

    return svg(figure_of(act))


@final
class _Pictures:
    def __init__(self, depth: int) -> None:
        self._depth = depth

    def of(self, act: Act, path: tuple[str, ...], around: tuple[Act, ...], level: int) -> Figure:
        """Return the figure of an act.

        Args:
            act: The act.
            path: The names around it.
            around: The acts around it.
            level: The depth of the run that executes it.
        """
        own = (*path, act.name)
        if any(_is_same(act, one) for one in around):
            return Figure(name=act.name, kind="again", path=own)
        sketch = act.sketch()
        if sketch.kind == "graph":
            return self.graph(act, sketch, own, around, level + 1)
        children = _acts_in(sketch.within)
        if children and level >= self._depth:
            return _closed(act, sketch, own, len(children))
        inside = tuple(self._child(child, own, (*around, act), level + 1) for child in children)
        return Figure(
            name=act.name,
            kind=sketch.kind,
            path=own,
            labels=tuple(sketch.labels),
            note=_note(act),
            inside=inside,
            is_chosen=sketch.is_chosen and bool(inside),
            is_many=sketch.is_many,
        )

    def _child(
        self, act: Act, path: tuple[str, ...], around: tuple[Act, ...], level: int
    ) -> Figure:
        """Return the figure of the act of a child run, which is executed at ``level``."""
        sketch = act.sketch()
        if sketch.kind != "graph" or any(_is_same(act, one) for one in around):
            return self.of(act, path, around, level)
        acts = _acts_in(sketch.within)
        was_made_a_graph = len(acts) == 1 and len(sketch.edges) == 1 and acts[0].name == act.name
        if was_made_a_graph:
            return self.of(acts[0], path, around, level)
        return self.graph(act, sketch, (*path, act.name), around, level)

    def graph(
        self, act: Act, sketch: Sketch, path: tuple[str, ...], around: tuple[Act, ...], level: int
    ) -> Figure:
        """Return the figure of a graph, whose acts a run at ``level`` executes."""
        acts = _acts_in(sketch.within)
        if level > self._depth:
            return _closed(act, sketch, path, len(acts))
        indexes = {one.name: index for index, one in enumerate(acts)}
        return Figure(
            name=act.name,
            kind="graph",
            path=path,
            labels=tuple(sketch.labels),
            note=_note(act),
            inside=tuple(self.of(one, path, (*around, act), level) for one in acts),
            links=_links(sketch.edges, indexes, is_outermost=not path),
        )


def _closed(act: Act, sketch: Sketch, path: tuple[str, ...], count: int) -> Figure:
    inside = f"{count} act{'' if count == 1 else 's'} inside"
    labels = (*sketch.labels, inside)
    return Figure(name=act.name, kind="closed", path=path, labels=labels, note=_note(act))


def _acts_in(found: Sequence[object]) -> list[Act]:
    """Return the acts among some objects, and the graphs of applications, each name once."""
    acts: dict[str, Act] = {}
    for one in found:
        # Applications have a graph, and aren't known here: the runtime imports this package.
        graph: object = getattr(one, "graph", None) if not isinstance(one, Act | type) else None
        act = graph if isinstance(graph, Act) else one
        if isinstance(act, Act):
            acts.setdefault(act.name, act)
    return [*acts.values()]


def _is_same(one: Act, other: Act) -> bool:
    """Return whether two acts are one, or copies of one: binding and typing an act copies it."""
    if one is other:
        return True
    return type(one) is type(other) and one.name == other.name and repr(one) == repr(other)


def _links(
    edges: Sequence[Any], indexes: dict[str, int], *, is_outermost: bool
) -> tuple[Link, ...]:
    links = [*_written(edges, indexes)]
    sources = {link.source for link in links}
    ends = [Link(index, None) for index in indexes.values() if index not in sources]
    # Inside a cluster, that a chain ends where it ends needs no sign.
    says_more = any(link.target is None and link.label for link in links)
    if not is_outermost and not says_more:
        return tuple(link for link in links if link.target is not None)
    found = (*links, *ends)
    is_one = len(indexes) == 1 and all(link.target is None for link in found)
    return () if is_one and not says_more else found


def _written(edges: Sequence[Edge], indexes: dict[str, int]) -> Iterator[Link]:
    may_stay = set[str]()
    for source, target, condition in edges:
        label = "else" if source.name in may_stay else ""
        if condition is not None:
            label = condition.name
            may_stay.add(source.name)
        index = indexes[target.name] if isinstance(target, Act) else None
        yield Link(indexes[source.name], index, label)


def _note(act: Act) -> str:
    """Return what an act reads, writes and takes, as a text."""
    parts = {"reads": sorted(act.reads), "writes": sorted(act.writes), "takes": sorted(act.takes)}
    return "; ".join(f"{verb} {', '.join(names)}" for verb, names in parts.items() if names)
