"""``shoal prune``: delete old runs, with all their data."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import anyio

from shoal.stores._protocol import ENDED, Prunes, RunStatus

from ._command import Subparsers, add_command, that_can
from ._lines import hint, is_terminal, write, write_json
from .runs import STATUSES, UNITS

if TYPE_CHECKING:
    from shoal.stores import Store


def add_to(commands: Subparsers) -> None:
    """Add the command ``prune``."""
    parser = add_command(commands, "prune", _prune, "delete old runs, with all their data")
    parser.add_argument(
        "--older-than",
        type=_seconds,
        required=True,
        metavar="TIME",
        help="the age since the run's end, or its last sign of life: 12h, 30d, '1w 12h'; units: "
        "s, m, h, d, w",
    )
    parser.add_argument(
        "--status",
        choices=STATUSES,
        action="append",
        help=f"only runs with this status; may be repeated (default: {', '.join(ENDED)})",
    )
    parser.add_argument("--dry-run", action="store_true", help="count the runs, delete nothing")


def _seconds(text: str) -> float:
    """Parse a length of time."""
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*([smhdw])", text)
    if not parts or re.sub(r"(\d+(?:\.\d+)?)\s*[smhdw]|\s", "", text):
        msg = f"{text!r} is not a length of time: write 90s, 15m, 12h, 30d or 1w"
        raise argparse.ArgumentTypeError(msg)
    return sum(float(number) * UNITS[unit] for number, unit in parts)


async def _prune(store: Store, given: argparse.Namespace) -> int:
    pruned = that_can(store, Prunes, "delete old runs")
    statuses: Sequence[RunStatus] = given.status or ENDED
    try:
        number = await pruned.prune(given.older_than, statuses, dry_run=given.dry_run)
    except anyio.get_cancelled_exc_class():
        hint("some runs are deleted, each as a whole; the next prune frees their remaining space")
        raise
    if given.json:
        write_json({"runs": number, "deleted": not given.dry_run})
    elif is_terminal(sys.stdout):
        runs = f"{number:,} run{'' if number == 1 else 's'}"
        write(f"{runs} would be deleted" if given.dry_run else f"deleted {runs}")
    else:
        write(str(number))
    return 0
