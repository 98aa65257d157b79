"""``shoal top``: show the progress of the runs that processes execute now, as they report it."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

import anyio

from shoal._events.report_text import parse_report
from shoal.stores._protocol import Browses, RunSummary
from shoal.stores._watching import KeepsReports

from ._command import Subparsers, add_command, that_can
from ._lines import hint, is_terminal, shown, utc, write_fields, write_json, write_table
from ._store import Refused

if TYPE_CHECKING:
    from shoal.stores import Store
    from shoal.watch._board import Board

EVERY = 1.0
"""Seconds from one look to the next. Processes report four times per second."""
LIMIT = 20
"""Runs that are shown, the newest ones: more than fit on most screens."""


def add_to(commands: Subparsers) -> None:
    """Add the command ``top``."""
    parser = add_command(
        commands, "top", _top, "show the progress of the runs that are executed now"
    )
    parser.add_argument(
        "--every",
        type=_seconds,
        default=EVERY,
        metavar="SECONDS",
        help=f"look again after so many seconds (default: {EVERY:g})",
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="look once and write that, as is done where the output is no terminal",
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:  # noqa: PLR2004 # as good as never
        msg = f"{text!r} is not a number of seconds above 0"
        raise argparse.ArgumentTypeError(msg)
    return seconds


async def _top(store: Store, given: argparse.Namespace) -> int:
    browsed = that_can(store, Browses, "list its runs")
    kept = that_can(store, KeepsReports, "keep reports about its runs")
    looks = _Looks(browsed, kept)
    if given.once or given.json or not is_terminal(sys.stdout):
        await looks.look()
        _write(looks, as_json=given.json)
        return 0
    try:
        from rich.console import Console  # noqa: PLC0415 # optional
        from rich.live import Live  # noqa: PLC0415
    except ModuleNotFoundError:
        msg = (
            "shoal top needs rich, which isn't installed: pip install 'shoal[progress]'; "
            "or look once: shoal top --once"
        )
        raise Refused(msg) from None
    from shoal.watch.progress import drawn  # noqa: PLC0415 # needs rich

    with Live(console=Console(), auto_refresh=False, screen=True) as live:
        while True:
            await looks.look()
            live.update(drawn(looks.boards, names=True, empty="no run is executed"), refresh=True)
            await anyio.sleep(given.every)


class _Looks:
    """The runs that are executed now, from look to look."""

    def __init__(self, browsed: Browses, kept: KeepsReports) -> None:
        self._browsed = browsed
        self._kept = kept
        self._boards: dict[str, Board] = {}
        self.runs: list[RunSummary] = []

    async def look(self) -> None:
        """Read which runs are executed, and their last reports."""
        from shoal.watch._board import Board  # noqa: PLC0415 # most of shoal: not for --help

        boards: dict[str, Board] = {}
        self.runs = [
            run
            for run in await self._browsed.runs(status="running", limit=LIMIT)
            if run.holder  # else its process is gone
        ]
        for run in self.runs:
            board = self._boards.get(run.run_id) or Board(f"{run.application} {shown(run.run_id)}")
            boards[run.run_id] = board
            stored = await self._kept.reported(run.run_id)
            if stored is None:
                continue
            report = parse_report(stored.text)
            board.age = max(0.0, time.time() - stored.at)
            if board.report is None or report.samples != board.report.samples:
                board.update(report)
        self._boards = boards

    @property
    def boards(self) -> list[Board]:
        """The boards of the runs, the newest run first."""
        return list(self._boards.values())


def _write(looks: _Looks, *, as_json: bool) -> None:
    pairs = list(zip(looks.runs, looks.boards, strict=True))
    if as_json:
        for run, board in pairs:
            rows = [
                {
                    "step": "/".join(row.steps),
                    "title": row.title,
                    "total": row.total,
                    "ended": row.ended,
                    "failed": row.failed,
                    "in_flight": row.in_flight,
                    "waiting": row.waiting,
                }
                for row in board.rows()
            ]
            write_json(
                {
                    "run_id": run.run_id,
                    "application": run.application,
                    "began_at": utc(run.began_at),
                    "age": board.age,
                    "steps": rows,
                    "held_up": board.why,
                }
            )
    elif not is_terminal(sys.stdout):
        for run, board in pairs:
            write_fields((run.run_id, run.application), board.headline)
    elif pairs:
        rows = ((run.run_id, run.application, board.headline) for run, board in pairs)
        write_table(("RUN", "APPLICATION", ""), rows, shortens=1)
    if not pairs:
        hint("no run is executed")
