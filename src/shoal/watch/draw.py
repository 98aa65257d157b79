"""Drawings of graphs: as Mermaid and DOT, which other programs lay out, and as SVG.

A drawing shows what is known without a run. Fan-outs, races and nested graphs are boxes around
what is inside them, with the elements, the condition that ends them, and their limits. The
conditions of edges stand on the edges. An act that is inside itself, as in a recursion, is drawn as
a reference: ``↻ crawl``. If acts are chosen at run time, those that the code names are drawn, in a
dashed box.

In notebooks, graphs, fan-outs and applications show themselves as SVG.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from shoal._drawing import dot as _dot
from shoal._drawing import mermaid as _mermaid
from shoal._drawing import svg as _svg
from shoal._drawing.figure import Figure
from shoal._drawing.style import style
from shoal._errors.exceptions import DefinitionError
from shoal._graph.act import Act
from shoal._graph.graph import no_act
from shoal._graph.picture import DEPTH, figure_of
from shoal._runtime.application import Application

__all__ = ["Counted", "Counts", "Drawable", "dot", "mermaid", "style_sheet", "svg"]

Drawable = Act | Application
"""What can be drawn: a graph, any other act, or an application, which stands for its graph."""
Counted = Mapping[str, int]
"""How many children are in which state."""
Counts = (
    Mapping[str, Counted]
    | Mapping[tuple[str, ...], Counted]
    | Mapping[str | tuple[str, ...], Counted]
)
"""How many children are in which state, by step: ``{"pages": {"done": 8, "failed": 1}}``.

A step is named by its name in the outermost graph, or by the names from there on: a fan-out, the
act of its children, an action of that. So ``("pages", "page", "fetch")`` is the action ``fetch`` of
the graph ``page``, which the fan-out ``pages`` runs over its elements.
"""


def mermaid(drawn: Drawable, *, depth: int = DEPTH) -> str:
    """Return a graph as a Mermaid flowchart.

    Args:
        drawn: A graph, an action, a fan-out, or an application.
        depth: How deep runs are nested in the drawing; deeper graphs are closed boxes.

    Raises:
        DefinitionError: ``drawn`` is none of these.

    Examples:
        >>> @action(writes=["page"])
        ... async def fetch() -> str:
        ...     return "<h1>shoal</h1>"
        >>> @action(reads=["page"], writes=["title"])
        ... async def parse(page: str) -> str:
        ...     return page[4:-5]
        >>> print(mermaid(Graph.chain(fetch, parse)))
        %%{init: {"flowchart": {"wrappingWidth": 420}}}%%
        flowchart TD
          n3((" "))
          n1["fetch"]
          n2["parse"]
          n4((("end")))
          n3 --> n1
          n1 --> n2
          n2 --> n4
    """
    return _mermaid.mermaid(_figure(drawn, depth))


def dot(drawn: Drawable, *, depth: int = DEPTH) -> str:
    """Return a graph in DOT, the language of Graphviz; see ``mermaid``.

    Raises:
        DefinitionError: ``drawn`` can't be drawn.
    """
    return _dot.dot(_figure(drawn, depth))


def svg(
    drawn: Drawable, counts: Counts | None = None, *, depth: int = DEPTH, styled: bool = True
) -> str:
    """Return a graph as an SVG document.

    It has no script, asks nothing of a network, and follows the reader's choice of light or dark.

    Args:
        drawn: A graph, an action, a fan-out, or an application.
        counts: How many children of which steps are in which state, to be shown in the boxes.
        depth: How deep runs are nested in the drawing; deeper graphs are closed boxes.
        styled: Whether the style sheet is part of the drawing. A page with several drawings, or one
            that allows no styles in its documents, has ``style_sheet()`` once instead.

    Raises:
        DefinitionError: ``drawn`` can't be drawn.

    Examples:
        >>> @action(reads=["url"], writes=["page"])
        ... async def fetch(url: str) -> str:
        ...     return f"the page at {url}"
        >>> pages = fan_out(fetch, over="urls", item="url", into="pages")
        >>> "8 done · 1 failed" in svg(pages, {"pages": {"done": 8, "failed": 1}})
        True
    """
    figure, by_path = _figure(drawn, depth), None
    if counts is not None:
        drawn_paths = {one.path for one in _all_in(figure)}
        by_path = {
            _place((step,) if isinstance(step, str) else step, drawn_paths): found
            for step, found in counts.items()
        }
    return _svg.svg(figure, by_path, styled=styled)


def _all_in(figure: Figure) -> Iterator[Figure]:
    yield figure
    for inside in figure.inside:
        yield from _all_in(inside)


def _place(way: tuple[str, ...], paths: Collection[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the path of the box that shows a fan-out.

    A single act that a child executes is a graph of its own name, which has no box of its own: so a
    name that stands there twice is drawn once.
    """
    path: tuple[str, ...] = ()
    for name in way:
        if not path or name != path[-1] or (*path, name) in paths:
            path = (*path, name)
    return path


def style_sheet() -> str:
    """Return the style sheet of SVG drawings. It applies to them alone."""
    return style()


def _figure(drawn: object, depth: int) -> Figure:
    act = drawn.graph if isinstance(drawn, Application) else drawn
    if not isinstance(act, Act):
        raise DefinitionError(no_act(act, "a drawing"))
    if type(depth) is not int or depth < 0:
        msg = f"a drawing takes a depth of 0 or more, not {depth!r}"
        raise DefinitionError(msg)
    return figure_of(act, depth)
