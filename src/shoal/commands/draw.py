"""``shoal draw``: draw the graph of an application, as Mermaid, DOT or SVG."""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from shoal._errors.exceptions import brief, did_you_mean

from ._lines import write_document
from ._store import Refused

if TYPE_CHECKING:
    from shoal.watch.draw import Drawable

SUFFIXES = {".mmd": "mermaid", ".mermaid": "mermaid", ".dot": "dot", ".gv": "dot", ".svg": "svg"}
"""The format of a file, by the end of its name."""
FORMATS = ("mermaid", "dot", "svg")

Subparsers = Any  # argparse's own class is private


def add_to(commands: Subparsers) -> None:
    """Add the command ``draw``."""
    what = "draw a graph as Mermaid, DOT or SVG"
    parser: argparse.ArgumentParser = commands.add_parser(
        "draw", help=what, description=f"{what[0].upper()}{what[1:]}."
    )
    parser.add_argument(
        "what",
        metavar="MODULE:NAME",
        help="an application, a graph or another act, after its module: myproject.app:app",
    )
    parser.add_argument(
        "--format", choices=FORMATS, help="the format; by default that of FILE, else mermaid"
    )
    parser.add_argument("-o", "--output", metavar="FILE", help="the file to write")
    parser.add_argument(
        "--depth", type=_depth, metavar="N", help="how deep runs are nested (default: 3)"
    )
    parser.set_defaults(do=_draw)


def _depth(text: str) -> int:
    if not text.isdecimal():
        msg = f"{text!r} is not a whole number"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


def _draw(given: argparse.Namespace) -> int:
    path = None if given.output is None else Path(given.output)
    chosen = given.format or SUFFIXES.get("" if path is None else path.suffix.lower(), "mermaid")
    drawn = found(given.what)
    from shoal.watch import draw  # noqa: PLC0415 # the other commands need no graphs

    write: Callable[..., str] = getattr(draw, chosen)
    text = write(drawn, **({} if given.depth is None else {"depth": given.depth}))
    if path is None:
        write_document(text)
        return 0
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        msg = f"{path} can't be written: {error.strerror or error}"
        raise Refused(msg) from error
    return 0


def found(what: str) -> Drawable:
    """Import what is named ``module:name``.

    Raises:
        Refused: There is no such module or name, or it can't be drawn.
    """
    module_name, _, name = what.partition(":")
    module = imported(module_name, what)
    if not name:
        msg = f"give the name in it too: {_suggested(module)}"
        raise Refused(msg)
    try:
        drawn: object = attrgetter(name)(module)
    except AttributeError:
        names = [one for one in vars(module) if not one.startswith("_")]
        msg = f"module {module_name} has no {name!r}{did_you_mean(name, names)}; {_there(module)}"
        raise Refused(msg) from None
    if not _is_drawable(drawn):
        hint = "; call it in a module of yours, and name the result" if callable(drawn) else ""
        msg = (
            f"{what} is neither an application nor a graph nor another act, but {brief(drawn)}"
            f"{hint}; {_there(module)}"
        )
        raise Refused(msg)
    return drawn  # pyright: ignore[reportReturnType] # it was looked at


def imported(name: str, what: str) -> ModuleType:
    """Import the module that a user named as a part of ``what``.

    Raises:
        Refused: It can't be imported; the message says why, and what to write.
    """
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)  # as `python -m` does, for modules that aren't installed
    if "/" in name or "\\" in name or name.endswith(".py"):
        path = Path(name.removesuffix(".py"))
        dotted = ".".join(part for part in path.parts if part not in ("/", ".", ".."))
        msg = (
            f"{name} is a file; give the module's name: {dotted}:{what.partition(':')[2] or 'app'}"
        )
        raise Refused(msg)
    if not all(part.isidentifier() for part in name.split(".")):
        msg = f"{what!r} names no module; write MODULE:NAME, such as myproject.app:app"
        raise Refused(msg)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            msg = (
                f"there is no module {error.name!r}, looking from {folder}; give the name by which "
                f"a program in this folder would import it"
            )
            raise Refused(msg) from None
        msg = f"module {name} needs {error.name!r}, which isn't installed here"
        raise Refused(msg) from error
    except Exception as error:
        # Its traceback says where in the user's code; the frames of the import system don't.
        lines = "".join(traceback.format_exception(error)).rstrip()
        msg = f"importing {name} fails:\n{lines}"
        raise Refused(msg) from error


def _is_drawable(value: object) -> bool:
    from shoal import Application  # noqa: PLC0415 # the other commands need no graphs
    from shoal.types import Act  # noqa: PLC0415

    return isinstance(value, Act | Application)


def _there(module: ModuleType) -> str:
    names = [name for name, value in vars(module).items() if _is_drawable(value)]
    return f"what can be drawn in it: {', '.join(names) or 'nothing'}"


def _suggested(module: ModuleType) -> str:
    names = [name for name, value in vars(module).items() if _is_drawable(value)]
    shown = ", ".join(f"{module.__name__}:{name}" for name in names)
    return shown or f"{module.__name__}:NAME, but nothing in it can be drawn"
