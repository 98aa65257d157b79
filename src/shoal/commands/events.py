"""``shoal events``: the history of a run, entry by entry; with ``--follow`` as it grows."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any

import anyio

from shoal._errors.exceptions import brief
from shoal._events.identity import RunPath
from shoal._events.paths import path_text

from ._command import Subparsers, add_command, add_run, queries_of
from ._lines import cut, flush, is_terminal, local, shown, utc, write, write_fields, write_json

if TYPE_CHECKING:
    from shoal.stores import Store
    from shoal.watch import HistoryEntry, Queries

PAUSE = 0.5
"""Seconds between two looks at a history that may grow: less than people notice."""


def add_to(commands: Subparsers) -> None:
    """Add the command ``events``."""
    what = "show the history of a run: each update, what it changed, and for which child"
    parser = add_command(commands, "events", _events, what)
    add_run(parser)
    parser.add_argument(
        "--from", dest="number", type=_number, default=0, metavar="N", help="from update N on"
    )
    parser.add_argument(
        "--follow", action="store_true", help="go on as the run goes on, until it has ended"
    )


def _number(text: str) -> int:
    if not text.isdecimal():
        msg = f"{text!r} is not the number of an update"
        raise argparse.ArgumentTypeError(msg)
    return int(text)


async def _events(store: Store, given: argparse.Namespace) -> int:
    queries = queries_of(store, "show its runs")
    await queries.row(given.path)  # raises if there is no such run
    is_for_people = is_terminal(sys.stdout) and not given.json
    async for entry in _entries(queries, given.path, given.number, follow=given.follow):
        if given.json:
            write_json(_as_json(entry))
        elif is_for_people:
            _describe(entry)
        else:
            child = "" if entry.child is None else path_text(entry.child.path)
            changes = (str(change) for change in entry.changes)
            text = entry.text or "; ".join(changes)
            write_fields((entry.number, utc(entry.at), entry.kind, entry.step, child, text))
        if given.follow:
            flush()
    return 0


async def _entries(
    queries: Queries, path: RunPath, number: int, *, follow: bool
) -> AsyncGenerator[HistoryEntry]:
    """Yield the entries of a history from an update on, and with ``follow`` those to come."""
    seen = 0  # how many entries with ``number`` were yielded: a later save may add more of them
    while True:
        # Before the entries are read: all that is saved until the end is among them then.
        mark = await queries.mark()
        is_over = not follow or await _is_over(queries, path)
        after, skip = str(number), seen
        while True:
            entries, further = await queries.history(path, after=after)
            for entry in entries:
                if entry.number > number:
                    number, seen, skip = entry.number, 0, 0
                if skip:
                    skip -= 1
                    continue
                seen += 1
                yield entry
            if further is None:
                break
            after = further
        if is_over:
            return
        while await queries.mark() == mark:  # noqa: ASYNC110 # another process sets no event here
            await anyio.sleep(PAUSE)


async def _is_over(queries: Queries, path: RunPath) -> bool:
    """Return whether nothing will be added to a history, until the run is started again."""
    run = await queries.store.summary(path.root.id)
    if run is None or run.status != "running" or not run.holder:
        return True
    row = await queries.inspected.row(path)
    return row is not None and row.status != "running"


def _describe(entry: HistoryEntry) -> None:
    at = "" if entry.at is None else local(entry.at).partition(" ")[2]
    step = entry.step
    if entry.child is not None:
        step = f"{step}/{entry.child.path.act} {brief(entry.child.path.key)}"
    lines = [str(change) for change in entry.changes] or [entry.text]
    if entry.discovered:
        lines.append(f"{entry.discovered:,} more elements")
    columns = shutil.get_terminal_size().columns
    kind = "" if entry.kind == "update" else entry.kind
    head = f"{entry.number:6}  {at:8}  {' '.join(filter(None, (kind, shown(step))))}"
    write(cut(f"{head}  {shown(lines[0])}".rstrip(), columns))
    for line in lines[1:]:
        write(cut(f"{'':18}{shown(line)}", columns))


def _as_json(entry: HistoryEntry) -> dict[str, Any]:
    child = entry.child
    return {
        "number": entry.number,
        "at": utc(entry.at) or None,
        "kind": entry.kind,
        "step": entry.step,
        "child": None if child is None else path_text(child.path),
        "status": None if child is None else child.status,
        "changes": [change._asdict() for change in entry.changes],
        "discovered": entry.discovered,
        "text": entry.text,
    }
