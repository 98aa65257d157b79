"""Figures in DOT, the language of Graphviz."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from .figure import Figure, heading_of, lines_of
from .layers import leading_back


def dot(figure: Figure) -> str:
    """Return a figure as a digraph, with a cluster for each figure that has figures inside."""
    return "\n".join(_Writer().lines(figure)) + "\n"


class _Writer:
    def __init__(self) -> None:
        self._ids = count(1)
        self._own: dict[int, int] = {}

    def lines(self, figure: Figure) -> Iterator[str]:
        yield f"digraph {_quoted(figure.name)} {{"
        yield "  compound=true; fontname=Helvetica; fontsize=11; labeljust=l; nodesep=0.35;"
        yield "  node [shape=box, style=rounded, fontname=Helvetica, fontsize=11];"
        yield "  edge [fontname=Helvetica, fontsize=10, arrowsize=0.7];"
        if figure.inside and not figure.path and figure.is_linked:
            yield from self._inside(figure, "  ")
        else:
            yield from self._drawn(figure, "  ")
        yield "}"

    def _id(self, figure: Figure, of: str = "") -> str:
        """Return the name of the node of a figure, or of its start or end."""
        known = self._own.setdefault(id(figure), next(self._ids))
        return f"n{known}{of}"

    def _first(self, figure: Figure) -> str:
        """Return the node at which lines to a figure end, before its border cuts them off."""
        return self._first(figure.inside[0]) if figure.inside else self._id(figure)

    def _last(self, figure: Figure) -> str:
        """Return the node at which lines from a figure begin."""
        if figure.ends:
            return self._id(figure, "end")
        return self._last(figure.inside[-1]) if figure.inside else self._id(figure)

    def _drawn(self, figure: Figure, indent: str) -> Iterator[str]:
        label = _quoted("\n".join((heading_of(figure), *lines_of(figure.labels))))
        own = self._id(figure)
        if not figure.inside:
            dashes = ', style="rounded,dashed"' if figure.kind == "again" else ""
            tooltip = f", tooltip={_quoted(figure.note)}" if figure.note else ""
            yield f"{indent}{own} [label={label}{dashes}{tooltip}];"
            return
        yield f"{indent}subgraph cluster_{own} {{"
        style = '"rounded,dashed"' if figure.is_chosen else "rounded"
        yield f"{indent}  label={label}; style={style};"
        yield from self._inside(figure, f"{indent}  ")
        yield f"{indent}}}"

    def _inside(self, figure: Figure, indent: str) -> Iterator[str]:
        start, end = self._id(figure, "start"), self._id(figure, "end")
        if figure.starts:
            yield f'{indent}{start} [shape=circle, style=filled, label="", width=0.15];'
        for one in figure.inside:
            yield from self._drawn(one, indent)
        if figure.ends:
            yield f'{indent}{end} [shape=doublecircle, label="", width=0.12];'
        if figure.starts:
            yield f"{indent}{start} -> {self._to(figure.inside[0])};"
        back = leading_back(len(figure.inside), figure.links) if figure.links else set[int]()
        for index, link in enumerate(figure.links):
            source = figure.inside[link.source]
            target = None if link.target is None else figure.inside[link.target]
            given: list[str] = []
            if source.inside and source is not target:
                given.append(f"ltail=cluster_{self._id(source)}")
            if target is not None and target.inside and source is not target:
                given.append(f"lhead=cluster_{self._id(target)}")
            if index in back:
                given.append("constraint=false")  # else Graphviz may turn the drawing upside down
            if link.label:
                given.append(f"label={_quoted(link.label)}")
            more = f" [{', '.join(given)}]" if given else ""
            to = end if target is None else self._first(target)
            yield f"{indent}{self._last(source)} -> {to}{more};"

    def _to(self, figure: Figure) -> str:
        cut = f" [lhead=cluster_{self._id(figure)}]" if figure.inside else ""
        return f"{self._first(figure)}{cut}"


def _quoted(text: str) -> str:
    """Return a text as a string of DOT, in which a backslash begins an escape."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\r", " ")
    return '"' + escaped.replace("\n", "\\n") + '"'
