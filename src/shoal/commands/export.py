"""``shoal export``: write a run as lines of JSON, or as logs for Burr's UI."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from ._command import Subparsers, add_command, add_run, count, queries_of
from ._lines import hint, is_terminal, shown, write, write_fields, write_json
from ._store import Refused

if TYPE_CHECKING:
    from shoal.stores import Store


def add_to(commands: Subparsers) -> None:
    """Add the command ``export``."""
    what = "write a run as lines of JSON, or as logs that Burr's UI shows"
    parser = add_command(commands, "export", _export, what)
    add_run(parser)
    parser.add_argument(
        "--format",
        choices=("jsonl", "burr"),
        default="jsonl",
        help="jsonl: the run, its history and its children, to stdout (default); burr: a "
        "directory with logs",
    )
    parser.add_argument(
        "--values",
        action="store_true",
        help="jsonl: add the history, element, value and error of each child",
    )
    parser.add_argument("--to", metavar="DIR", help="burr: the directory to write into")
    parser.add_argument("--project", metavar="NAME", help="burr: the project's name")
    parser.add_argument(
        "--max-children",
        type=count,
        metavar="N",
        help="burr: write at most N children: winners, failed ones, the slowest (default: 200)",
    )


async def _export(store: Store, given: argparse.Namespace) -> int:
    queries = queries_of(store, "export its runs")
    if given.format == "jsonl":
        async for line in queries.lines(given.path, values=given.values):
            write(line)
        return 0
    if given.to is None:
        msg = "where to? Give a directory with --to; Burr's UI is started with it"
        raise Refused(msg)
    more = {} if given.max_children is None else {"max_children": given.max_children}
    try:
        done = await queries.to_burr(given.path, given.to, project=given.project, **more)
    except OSError as error:
        msg = f"the export can't be written: {error}"
        raise Refused(msg) from error
    if given.json:
        write_json({**done._asdict(), "directory": str(done.directory)})
    elif is_terminal(sys.stdout):
        left_out = f"; {done.omitted:,} children are left out" if done.omitted else ""
        write(shown(f"wrote {done.written:,} runs to {done.directory / done.project}{left_out}"))
        hint(
            f"to look at them: burr_path={done.directory} burr-admin-server, or the `burr` command"
        )
    else:
        write_fields(done)
    return 0
