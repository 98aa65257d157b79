"""``shoal pause | resume | drain | cancel | limit``: steer runs that other processes execute."""

from __future__ import annotations

import argparse
import getpass
import socket
import sys
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from shoal._errors.exceptions import BadAnswer, NotSteered
from shoal.stores._protocol import Browses

from ._command import Subparsers, add_command, add_run, complain, queries_of, that_can
from ._lines import is_terminal, shown, write, write_fields, write_json, write_table

if TYPE_CHECKING:
    from shoal.stores import Steered, Store
    from shoal.watch import Control, LimitUse

RUN = "the run's id"
_STANDS = {"failed": "it has failed", "cancelled": "it was cancelled", "halted": "it is halted"}
GOES_ON = "goes on when its program runs it again: run(id={!r})"
"""How a run goes on that no process executes; commands don't have its program."""


def add_to(commands: Subparsers) -> None:
    """Add the commands that steer runs."""
    what = "start nothing more in a run until it is resumed, or with a limit that it uses"
    pause = add_command(commands, "pause", _pause, what)
    what = "let a paused run go on, or a paused limit"
    resume = add_command(commands, "resume", _resume, what)
    for parser in (pause, resume):
        parser.add_argument("run_id", metavar="ID", help=RUN)
        parser.add_argument(
            "--limit",
            metavar="OWNER",
            help="only a limit, in the process that executes the run: 'runtime', or the name of "
            "the application, action or fan-out where it stands (shoal limit ID lists them)",
        )
        _add_part(parser)
        parser.add_argument("--key", help="only this key of the limit, a host for example")
    cancel = add_command(commands, "cancel", _cancel, "cancel a run, or a child of it")
    add_run(cancel)
    what = "start nothing more in a run, and halt it when what runs has ended"
    drain = add_command(commands, "drain", _drain, what)
    drain.add_argument("run_id", metavar="ID", help=RUN)
    what = "list the limits that a run uses, or change one in the process that executes the run"
    limit = add_command(commands, "limit", _limit, what)
    limit.add_argument("run_id", metavar="ID", help=RUN)
    limit.add_argument("owner", metavar="OWNER", nargs="?", help="where the limit stands")
    _add_part(limit)
    limit.add_argument("-n", type=int, metavar="NUMBER", help="slots")
    limit.add_argument("--rate", type=float, metavar="NUMBER", help="units of its rate...")
    limit.add_argument("--per", type=float, metavar="SECONDS", help="...in so many seconds")
    limit.add_argument("--burst", type=float, metavar="NUMBER", help="units that may go at once")
    for parser in (pause, resume, cancel, drain):
        parser.add_argument("--reason", default="", metavar="TEXT", help="why, for the record")
    for parser in (pause, resume, cancel, drain, limit):
        add_by(parser)


def _add_part(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--part", type=int, default=0, metavar="NUMBER",
        help="which part of the limit, from 0 (the default); -1: the children in flight",
    )  # fmt: skip


def add_by(parser: argparse.ArgumentParser) -> None:
    """Add the option that says who steers."""
    parser.add_argument(
        "--by", metavar="NAME", help="who asks, for the record (default: the user and machine)"
    )


async def _pause(store: Store, given: argparse.Namespace) -> int:
    async def pause(control: Control) -> Steered:
        if given.limit is None:
            return await control.pause(given.run_id, given.reason)
        return await control.pause_limit(
            given.run_id, given.limit, part=given.part, key=given.key, reason=given.reason
        )

    return await steered(store, given, pause)


async def _resume(store: Store, given: argparse.Namespace) -> int:
    async def resume(control: Control) -> Steered:
        if given.limit is None:
            found = await control.resume(given.run_id, given.reason)
            if found is None:
                raise NotSteered(await _why_not_resumed(store, given.run_id))
            return found
        return await control.resume_limit(
            given.run_id, given.limit, part=given.part, key=given.key, reason=given.reason
        )

    return await steered(store, given, resume)


async def _why_not_resumed(store: Store, run_id: str) -> str:
    """Say that a run isn't paused, and what lets it go on instead."""
    overview = await queries_of(store, "look at it").overview(run_id)
    told = f"run {run_id} isn't paused"
    if overview.status == "succeeded":
        return f"{told}: it has succeeded"
    if overview.status == "running" and not overview.is_lost:
        return f"{told}: {overview.summary.holder} executes it"
    stands = _STANDS.get("lost" if overview.is_lost else overview.status, "no process executes it")
    return f"{told}: {stands}, and {GOES_ON.format(run_id)}"


async def _cancel(store: Store, given: argparse.Namespace) -> int:
    return await steered(store, given, lambda control: control.cancel(given.path, given.reason))


async def _drain(store: Store, given: argparse.Namespace) -> int:
    return await steered(store, given, lambda control: control.drain(given.run_id, given.reason))


async def _limit(store: Store, given: argparse.Namespace) -> int:
    numbers = {name: getattr(given, name) for name in ("n", "rate", "per", "burst")}
    if given.owner is None or all(number is None for number in numbers.values()):
        return await _list_limits(store, given)
    return await steered(
        store,
        given,
        lambda control: control.change_limit(given.run_id, given.owner, part=given.part, **numbers),
    )


async def _list_limits(store: Store, given: argparse.Namespace) -> int:
    uses = [
        use
        for use in await queries_of(store, "list limits").limits(given.run_id)
        if given.owner in (None, use.owner)
    ]
    if not uses:
        return complain(f"run {given.run_id} reports no limit now")
    if given.json:
        for use in uses:
            write_json(
                {
                    "owner": use.owner, "part": use.part, "limits": use.limits,
                    "in_use": use.in_use, "slots": use.slots, "waiting": use.waiting,
                    "paused": use.paused, "keys": use.keys,
                }
            )  # fmt: skip
        return 0
    is_for_people = is_terminal(sys.stdout)
    rows = [
        (use.owner, str(use.part), use.limits, str(use.in_use),
         _slots(use, for_people=is_for_people), str(use.waiting), str(use.paused))
        for use in uses
    ]  # fmt: skip
    if is_for_people:
        write_table(("owner", "part", "limit", "in use", "of", "waiting", "paused"), rows)
    else:
        for row in rows:
            write_fields(row)
    return 0


def _slots(use: LimitUse, *, for_people: bool) -> str:
    if use.slots is None:
        return ""
    # Beside the slots in use of all keys together.
    is_each = for_people and use.capacity != use.slots
    return f"{use.capacity:g} ({use.slots:g} each)" if is_each else f"{use.slots:g}"


async def steered(
    store: Store, given: argparse.Namespace, do: Callable[[Control], Coroutine[Any, Any, Steered]]
) -> int:
    """Do something with a ``Control``, and write what is on record of it; return the exit code."""
    from shoal.watch import Control  # noqa: PLC0415 # most of shoal: not for `shoal --help`

    control = Control(that_can(store, Browses, "find its runs"), by=given.by or _whoever_asks())
    try:
        one = await do(control)
    except (BadAnswer, NotSteered) as error:
        return complain(str(error))
    if given.json:
        write_json({"what": one.what, "by": one.by, "at": one.at, **one.arguments})
    elif is_terminal(sys.stdout):
        write(shown(one.sentence))
    else:
        write_fields((one.what, one.by, one.reason))
    return 0


def _whoever_asks() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # the user has no name
        return socket.gethostname()
