"""Render templates. They are compiled and static files are read once, when the first page is made.

So no request reads a file, and an error in a template shows before the server accepts requests.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import cache
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any, cast, final

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from shoal._events.identity import RunPath
from shoal._events.paths import path_text
from shoal._events.report import Doing, Waited
from shoal.watch import draw
from shoal.watch._board import how_long
from shoal.watch._headline import named
from shoal.watch._words import DOING, many

from . import _charts as charts
from . import _format as form

HERE = Path(__file__).parent
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

KINDS = {
    "decision": "the race was decided",
    "completed": "the step was completed",
    "rewound": "went back into the step",
    "begun": "the fan-out began",
    "asked": "asked a question",
    "answered": "was answered",
    "steered": "was steered from outside",
}


@final
class Static:
    """The files that pages use."""

    def __init__(self) -> None:
        """Read them."""
        paths = [path for path in (HERE / "static").iterdir() if path.suffix in TYPES]
        self.files = {path.name: (path.read_bytes(), TYPES[path.suffix]) for path in paths}
        self.files["drawing.css"] = draw.style_sheet().encode(), "text/css"
        self.versions = {
            name: sha256(content).hexdigest()[:12] for name, (content, _) in self.files.items()
        }


@cache
def static() -> Static:
    """Return the static files, read once in a process."""
    return Static()


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        auto_reload=False,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    filters: dict[str, Callable[..., object]] = {
        "bytes": form.bytes_text,
        "cut": form.cut,
        "doing_text": _doing_text,
        "duration": form.duration,
        "first_line": form.first_line,
        "how_long": how_long,
        "iso": form.iso,
        "between": form.between,
        "key_text": form.key_text,
        "kind_text": _kind_text,
        "moment": form.moment,
        "number": form.number,
        "part_class": _part_class,
        "percent": form.percent,
        "quoted": repr,
        "root_text": _root_text,
        "safe_id": _safe_id,
        "since": form.since,
        "size": form.bytes_text,
        "waited_text": _waited_text,
        "whole": math.floor,
    }
    more: Any = environment  # jinja2's own annotations are those of its own filters
    more.filters |= filters
    more.globals |= {"inf": math.inf, "share_bar": charts.share_bar}
    return environment


def _doing_text(doing: str) -> str:
    return DOING.get(cast("Doing", doing), doing)


def _waited_text(waited: Waited) -> str:
    """Name what was waited for, as ``shoal explain`` does, without its owner."""
    if waited.others:
        return many(waited.others, "other key")
    if waited.limit == "in flight":
        return "a place in flight"
    if waited.doing == "other":
        return f'"{waited.key}"' if waited.key else waited.limit
    return named(waited.doing, "" if waited.owner else waited.limit, waited.key)


def _kind_text(kind: str) -> str:
    return KINDS.get(kind, kind)


def _part_class(part: str) -> str:
    return "held" if part == "held up" else part


def _root_text(run_id: str) -> str:
    return path_text(RunPath(run_id=run_id))


def _safe_id(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


@cache
def _template(name: str) -> Template:
    return _environment().get_template(name)


@cache
def prepare() -> None:
    """Compile all templates, and read all static files."""
    static()
    for name in _environment().list_templates():
        _template(name)


def rendered(template: str, values: dict[str, Any]) -> str:
    """Render a template without the white space between its elements, which would be nodes.

    Halves of surrogate pairs, which keys and texts of users may have, can't be encoded, so they are
    replaced.
    """
    text = _GAPS.sub("><", _template(template).render(values))
    return _HALVES.sub("\N{REPLACEMENT CHARACTER}", text)


# Line ends between two tags. Text in <pre> and <textarea> has no tags with line ends between them.
_GAPS = re.compile(r">\n+\s*<")
_HALVES = re.compile("[\ud800-\udfff]")
