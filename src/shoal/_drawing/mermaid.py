"""Figures in Mermaid's language, which forges and documentation tools draw."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from .figure import Figure, heading_of, lines_of


def mermaid(figure: Figure) -> str:
    """Return a figure as a Mermaid flowchart."""
    return "\n".join(_Writer().lines(figure)) + "\n"


class _Writer:
    def __init__(self) -> None:
        self._ids = count(1)
        self._dashed: list[tuple[str, str]] = []

    def lines(self, figure: Figure) -> Iterator[str]:
        yield _settings(figure)
        yield "flowchart TD"
        if figure.inside and not figure.path and figure.is_linked:
            yield from self._inside(figure, "  ")
        else:
            yield from self._drawn(figure, f"n{next(self._ids)}", "  ")
        dashes = {"again": "2 3", "chosen": "6 4"}
        for kind in sorted({kind for _, kind in self._dashed}):
            yield f"  classDef {kind} stroke-dasharray: {dashes[kind]}"
        yield from (f"  class {own} {kind}" for own, kind in self._dashed)

    def _drawn(self, figure: Figure, own: str, indent: str) -> Iterator[str]:
        text = "<br>".join(map(_quoted, (heading_of(figure), *lines_of(figure.labels))))
        if figure.kind == "again":
            self._dashed.append((own, "again"))
        if figure.is_chosen:
            self._dashed.append((own, "chosen"))
        if not figure.inside:
            shape = '(["{}"])' if figure.kind == "again" else '["{}"]'
            yield f"{indent}{own}{shape.format(text)}"
            return
        yield f'{indent}subgraph {own}["{text}"]'
        yield f"{indent}  direction TB"
        yield from self._inside(figure, f"{indent}  ")
        yield f"{indent}end"

    def _inside(self, figure: Figure, indent: str) -> Iterator[str]:
        ids = [f"n{next(self._ids)}" for _ in figure.inside]
        start, end = f"n{next(self._ids)}", f"n{next(self._ids)}"
        if figure.starts:
            yield f'{indent}{start}((" "))'
        for one, own in zip(figure.inside, ids, strict=True):
            yield from self._drawn(one, own, indent)
        if figure.ends:
            yield f'{indent}{end}((("end")))'
        if figure.starts:
            yield f"{indent}{start} --> {ids[0]}"
        for link in figure.links:
            label = f'|"{_quoted(link.label)}"|' if link.label else ""
            target = end if link.target is None else ids[link.target]
            yield f"{indent}{ids[link.source]} -->{label} {target}"


def _settings(figure: Figure) -> str:
    """Return the room for titles of several lines, and for long lines, which Mermaid wraps."""
    lines = max(_titles(figure), default=1)
    room = f', "subGraphTitleMargin": {{"top": 4, "bottom": {22 * (lines - 1) + 8}}}'
    return f'%%{{init: {{"flowchart": {{"wrappingWidth": 420{room if lines > 1 else ""}}}}}}}%%'


def _titles(figure: Figure) -> Iterator[int]:
    """Yield how many lines the title of each box has."""
    if figure.inside:
        yield 1 + len([*lines_of(figure.labels)])
    for one in figure.inside:
        yield from _titles(one)


def _quoted(text: str) -> str:
    """Escape what Mermaid and HTML read as more than text: Mermaid has entities with ``#``."""
    signs = {"#": "#35;", "&": "#amp;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "\\": "#92;"}
    signs |= {"`": "#96;", "\n": " ", "\r": " "}
    return "".join(signs.get(character, character) for character in text)
