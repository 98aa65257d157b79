"""``shoal explain``: where the time of a run went, and what would make it faster."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from shoal._events.paths import path_text

from ._command import Subparsers, add_command, add_run, queries_of
from ._lines import is_terminal, shown, write, write_fields, write_json

if TYPE_CHECKING:
    from shoal.stores import Store


def add_to(commands: Subparsers) -> None:
    """Add the command ``explain``."""
    what = "say where the time of a run went, and what would make it faster"
    add_run(add_command(commands, "explain", _explain, what))


async def _explain(store: Store, given: argparse.Namespace) -> int:
    found = await queries_of(store, "explain its runs").explain(given.path)
    chain = [(path_text(link.row.path), link.step, link.seconds) for link in found.critical_path]
    slowest = [(path_text(row.path), row.elapsed) for row in found.slowest]
    if given.json:
        write_json(
            {
                "run_id": found.run_id,
                "seconds": found.seconds,
                "is_over": found.is_over,
                "samples": found.samples,
                "shares": dict(found.shares),
                "waited": [
                    {
                        "doing": one.doing,
                        "limit": one.limit,
                        "key": one.key,
                        "owner": one.owner,
                        "seconds": one.seconds,
                        "others": one.others,
                    }
                    for one in found.waited
                ],
                "critical_path": [
                    {"path": path, "step": step, "seconds": seconds}
                    for path, step, seconds in chain
                ],
                "slowest": [{"path": path, "seconds": seconds} for path, seconds in slowest],
                "hedges": [
                    {
                        "owner": one.owner,
                        "copies": one.copies,
                        "used": one.used,
                        "running": one.running,
                    }
                    for one in found.hedges
                ],
                "advice": found.advice,
                "notes": list(found.notes),
            }
        )
    elif is_terminal(sys.stdout):
        for line in found.text.split("\n"):
            write(shown(line))
    else:
        write_fields(("seconds", found.seconds))
        for doing, share in found.shares.items():
            write_fields(("share", doing, share))
        for one in found.waited:
            write_fields(("waited", one.doing, one.limit, one.key, one.seconds, one.others))
        for link in chain:
            write_fields(("path", *link))
        for row in slowest:
            write_fields(("slowest", *row))
        for use in found.hedges:
            write_fields(("copies", use.owner, use.copies, use.used, use.running))
        write_fields(("advice", found.advice))
        for note in found.notes:
            write_fields(("note", note))
    return 0
