"""Write a run as lines of JSON: the run, its history, its children.

Each line is an object with a ``type``: ``run``, ``entry`` or ``child``. Stored JSON is copied as it
is; docs/stored-values.md describes it.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any, get_args

from shoal._errors.exceptions import UnknownRun
from shoal._events.identity import RunPath
from shoal._events.paths import path_text
from shoal.stores._protocol import Browses, similar_run
from shoal.stores._watching import Inspects, Row, StoredEntry

from ._stored import entries_of, rows_of
from ._values import What


async def unknown_run(store: Browses, path: RunPath) -> UnknownRun:
    """Return the error for a run, or a child, that the store does not have."""
    if path.parent is not None:
        return UnknownRun(f"there is no child {path_text(path)!r}")
    return UnknownRun(f"there is no run {path.id!r}", await similar_run(store, path.id))


async def export_lines(
    store: Browses, inspected: Inspects, path: RunPath, *, values: bool = False
) -> AsyncGenerator[str]:
    """Yield a run as lines of JSON.

    Args:
        store: The store.
        inspected: What answers about its children.
        path: The run.
        values: Whether to add the history, the element, the value and the error of each child. What
            the parent has taken from a child is in the parent's history already.

    Raises:
        UnknownRun: The store doesn't know the run.
    """
    summary = await store.summary(path.root.id)
    row = await inspected.row(path)
    if summary is None or row is None:
        raise await unknown_run(store, path)
    run: dict[str, Any] = {"application": summary.application, "version": summary.version}
    run |= {"forked_from": summary.forked_from, **_row(row)}
    yield _line("run", path, run, await _values(inspected, row) if values else {})
    # A run's lines come before those of its children: a stack, since recursion may be deep.
    walked = [path]
    while walked:
        at = walked.pop()
        async for entry in entries_of(inspected, at):
            yield _line("entry", at, _entry(entry), {"data": entry.data})
        below = list[RunPath]()
        async for child in rows_of(inspected, at):
            yield _line("child", child.path, _row(child), await _values(inspected, child, values))
            if child.has_children or values:
                below.append(child.path)
        walked += reversed(below)


async def _values(inspected: Inspects, row: Row, wanted: bool = True) -> dict[str, str]:
    found = dict[str, str]()
    for what in get_args(What) if wanted else ():
        text = await inspected.text(row.path, what)
        if text is not None:
            found[what] = text
    return found


def _line(kind: str, path: RunPath, data: dict[str, Any], stored: dict[str, str]) -> str:
    """Write an object; values in ``stored`` are JSON already, and are copied."""
    text = json.dumps({"type": kind, "path": path_text(path), **data})
    more = "".join(f", {json.dumps(name)}: {value}" for name, value in stored.items())
    return f"{text[:-1]}{more}}}"


def _entry(entry: StoredEntry) -> dict[str, Any]:
    child = None if entry.child is None else path_text(entry.child.path)
    return {
        "number": entry.number,
        "kind": entry.kind,
        "step": entry.step,
        "at": entry.at,
        "child": child,
    }


def _row(row: Row) -> dict[str, Any]:
    return {
        "status": row.status,
        "position": row.position,
        "began_at": row.began_at,
        "ended_at": row.ended_at,
        "elapsed": row.elapsed,
        "attempts": row.attempts,
        "used": row.used,
        "reason": row.reason,
        "winner": None if row.winner is None else path_text(row.winner),
        "error_type": row.error_type,
        "error_text": row.error,
        "failed_step": row.failed_step,
        "applied": row.applied,
    }
