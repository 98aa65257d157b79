"""``shoal diff``: where two runs took different ways, and in what they differ."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from shoal._errors.exceptions import brief
from shoal._events.paths import path_text

from ._command import Subparsers, add_command, add_run, queries_of
from ._lines import is_terminal, shown, write, write_fields, write_json, write_table
from .runs import LOST

if TYPE_CHECKING:
    from shoal.stores import Store
    from shoal.watch import ChildDifference, Difference, Row

NONE = "(none)"


def add_to(commands: Subparsers) -> None:
    """Add the command ``diff``."""
    what = "compare two runs: where they took different ways, and in what they differ"
    parser = add_command(commands, "diff", _diff, what)
    add_run(parser, "first", "A")
    add_run(parser, "second", "B")


async def _diff(store: Store, given: argparse.Namespace) -> int:
    found = await queries_of(store, "compare its runs").diff(given.first, given.second)
    if given.json:
        write_json(_as_json(found))
    elif is_terminal(sys.stdout):
        _describe(found)
    else:
        write_fields(("status", *(_status(row, lost) for row, lost in _runs(found))))
        if found.parting is not None:
            write_fields(("step", *found.parting))
        for field in found.fields:
            write_fields(("field", *("" if one is None else one for one in field)))
        for child in found.children:
            write_fields(("child", *child[:4], *_ends(child, found)))
        if found.omitted_fields or found.omitted_children:
            write_fields(("omitted", found.omitted_fields, found.omitted_children))
    return 0


def _describe(found: Difference) -> None:
    if found.is_same:
        status = _status(found.first, found.is_first_lost)
        write(f"the runs took the same way to the same end: {status}")
        return
    first, second = (shown(path_text(row.path)) for row in (found.first, found.second))
    write(f"A {first}: {_of_run(found.first, found.is_first_lost)}")
    write(f"B {second}: {_of_run(found.second, found.is_second_lost)}")
    parting = found.parting
    if parting is not None:
        where = (
            f"after {shown(parting.after)} (step {parting.at})" if parting.after else "at the start"
        )
        ways = (shown(parting.first or NONE), shown(parting.second or NONE))
        write(f"\nthey part {where}: A goes to {ways[0]}, B to {ways[1]}")
    if found.fields:
        write(f"\nfields that differ{_and_more(found.omitted_fields)}")
        rows = [
            (
                f"{one.field}{one.key and f'[{one.key}]'}",
                f"{one.first or NONE} | {one.second or NONE}",
            )
            for one in found.fields
        ]
        write_table((), rows)
    if found.children:
        write(f"\nchildren that differ{_and_more(found.omitted_children)}")
        children = [
            (
                f"{one.step}/{one.act}",
                brief(one.key),
                " | ".join(end or NONE for end in _ends(one, found)),
            )
            for one in found.children
        ]
        write_table((), children)


def _and_more(count: int) -> str:
    return f" (and {count:,} more)" if count else ""


def _runs(found: Difference) -> tuple[tuple[Row, bool], tuple[Row, bool]]:
    """Return the two runs, and whether each is lost."""
    return (found.first, found.is_first_lost), (found.second, found.is_second_lost)


def _of_run(row: Row, is_lost: bool) -> str:  # the same as in `_runs`
    return shown(_end(row, is_lost))


def _ends(child: ChildDifference, found: Difference) -> tuple[str, str]:
    return _end(child.first, found.is_first_lost), _end(child.second, found.is_second_lost)


def _end(row: Row | None, is_lost: bool) -> str:  # as above
    if row is None:
        return ""
    why, status = row.error or row.reason, _status(row, is_lost)
    return f"{status}: {' '.join(why.split())}" if why else status


def _status(row: Row, is_lost: bool) -> str:  # as above
    """Return the status of a run or of its child; without an end both are lost with the run."""
    return LOST if is_lost and row.status == "running" else row.status


def _as_json(found: Difference) -> dict[str, Any]:
    parting = found.parting
    return {
        "first": _run(found.first, found.is_first_lost),
        "second": _run(found.second, found.is_second_lost),
        "parting": None if parting is None else parting._asdict(),
        "fields": [one._asdict() for one in found.fields],
        "children": [_child(one, found) for one in found.children],
        "omitted_fields": found.omitted_fields,
        "omitted_children": found.omitted_children,
        "is_same": found.is_same,
    }


def _run(row: Row, is_lost: bool) -> dict[str, Any]:  # as above
    status = _status(row, is_lost)
    return {"path": path_text(row.path), "status": status, "error": row.error}


def _child(child: ChildDifference, found: Difference) -> dict[str, Any]:
    row = child.first or child.second
    assert row is not None, "one of the runs has the child"
    return {
        "path": path_text(row.path).partition("/")[2].rpartition("/")[2],
        "first": None if child.first is None else _run(child.first, found.is_first_lost),
        "second": None if child.second is None else _run(child.second, found.is_second_lost),
    }
