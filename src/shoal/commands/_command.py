"""Make a command of an async function that looks into a store.

On a terminal the output of a command is for people. Otherwise it is for programs: lines of fields
with tabs between them, times in UTC, nothing shortened; with ``--json``, lines of JSON.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from shoal._errors.exceptions import UnknownRun
from shoal._events.identity import RunPath
from shoal._events.paths import parse_path
from shoal.stores._protocol import Browses

from ._lines import shown
from ._store import Refused, add_store, given_store, shown_store

if TYPE_CHECKING:
    from shoal.stores import Store
    from shoal.watch import Queries

P = TypeVar("P")

Subparsers = Any  # argparse's own class is private
Do = Callable[["Store", argparse.Namespace], Coroutine[Any, Any, int]]


def add_command(commands: Subparsers, name: str, do: Do, what: str) -> argparse.ArgumentParser:
    """Add a command with the options that name a store, and ``--json``.

    Args:
        commands: The subparsers of ``shoal``.
        name: The command.
        do: Executes it with the store and the arguments, and returns the exit code. If it raises
            ``UnknownRun``, the message is written, and the code is 1.
        what: What it does, for the help.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=what, description=f"{what[0].upper()}{what[1:]}."
    )
    add_store(parser)
    parser.add_argument(
        "--json", action="store_true", help="write one line of JSON for each result"
    )
    parser.set_defaults(do=partial(_run, do))
    return parser


def _run(do: Do, given: argparse.Namespace) -> int:
    try:
        return anyio.run(do, given_store(given), given)
    except UnknownRun as unknown:
        similar = f"; did you mean {unknown.similar!r}?" if unknown.similar else ""
        return complain(f"{unknown} in {shown_store(given)}{similar or _advice(given)}")


def _advice(given: argparse.Namespace) -> str:
    """Return how to find a child, if it may be the id of one: errors and logs have these."""
    path = getattr(given, "path", None)
    if not isinstance(path, RunPath) or path.parent is not None or not _ID.fullmatch(path.id):
        return ""
    how = f"shoal show RUN --child {path.id}"
    return f"; if it is a child's id, find the child in its root run: {how}"


_ID = re.compile("[0-9a-f]{32}")


def complain(why: str) -> int:
    """Write to stderr why there is nothing to show, and return the exit code."""
    sys.stderr.write(f"shoal: {shown(why)}\n")
    return 1


def that_can(store: Store, protocol: type[P], what: str) -> P:
    """Return the store, if it implements a protocol.

    Raises:
        Refused: It doesn't.
    """
    if not isinstance(store, protocol):
        name = protocol.__name__
        msg = f"{type(store).__name__} can't {what} (it doesn't implement shoal.stores.{name})"
        raise Refused(msg)
    return store


def queries_of(store: Store, what: str) -> Queries:
    """Return queries about the runs in a store.

    Raises:
        Refused: The store can't answer them.
    """
    from shoal.watch import Queries  # noqa: PLC0415 # most of shoal: not for `shoal --help`

    return Queries(that_can(store, Browses, what))


def add_run(parser: argparse.ArgumentParser, name: str = "path", metavar: str = "ID") -> None:
    """Add an argument that names a run."""
    parser.add_argument(
        name,
        metavar=metavar,
        type=_path,
        help="the run's id; of a child, its path: RUN_ID/step:visit:act:key/...",
    )


def _path(text: str) -> RunPath:
    try:
        return parse_path(text)
    except UnknownRun as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def count(text: str) -> int:
    """Parse a number above 0."""
    if not text.isdecimal() or not int(text):
        msg = f"{text!r} is not a whole number above 0"
        raise argparse.ArgumentTypeError(msg)
    return int(text)
