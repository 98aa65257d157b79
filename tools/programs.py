"""Run the programs of docs/programs, kill, fail and cancel them, and count what they lose.

    python tools/programs.py [NAME ...]

prints the rows of the table on that page. tests/test_programs.py compares them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAMS = ROOT / "docs" / "programs"
NAMES = ("map", "race", "crawl", "review", "service", "search")
PEERS = {"crawl": "crawlee", "service": "dbos"}
"""Where it isn't LangGraph: the libraries with a store that do the most of the program for one."""

DRIVER = """
import asyncio, json, os, sys
sys.path.insert(0, sys.argv[1])
import world
main = __import__(sys.argv[2]).main

async def drive():
    cancel_at = int(os.environ.get("CANCEL_AT", "0"))
    task = asyncio.create_task(main())
    while cancel_at and world.begun < cancel_at and not task.done():
        await asyncio.sleep(0.001)
    if cancel_at:
        task.cancel()
    try:
        await task
    except BaseException as error:
        ended = error
    else:
        ended = None
    world.note("over", type(ended).__name__)
    await asyncio.sleep(0.3)  # whatever goes on writes it down now
    result = None if ended or task.cancelled() else task.result()
    world.note("result", json.dumps(result, sort_keys=True))

asyncio.run(drive())
"""


@dataclass(frozen=True, slots=True)
class Row:
    """What a program costs and loses."""

    lines: int
    calls: int
    after_kill: int
    after_failure: int
    after_cancellation: int
    goes_on: int
    right: int
    """How many of the three second runs return what a clean run returns."""

    def cells(self) -> str:
        """Return the cells of the page's table."""
        lost = (self.after_kill, self.after_failure, self.after_cancellation, self.goes_on)
        return " | ".join(str(one) for one in (self.lines, self.calls, *lost, self.right))


def kinds(name: str) -> tuple[str, str, str]:
    """Return with what a program is written, as its files' names say it."""
    return "asyncio", PEERS.get(name, "langgraph"), "shoal"


def run(program: str, folder: Path, trouble: Mapping[str, str] | None = None) -> list[list[str]]:
    """Run a program in ``folder`` to its end, well or not; return what it wrote down."""
    log = folder / "calls.log"
    log.unlink(missing_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), **(trouble or {})}
    subprocess.run(  # our own programs
        [sys.executable, "-c", DRIVER, str(PROGRAMS), program],
        cwd=folder,
        env=environment,
        timeout=60,
        check=False,
        capture_output=True,
    )
    return [line.split(" ", 1) for line in log.read_text().splitlines()]


def names(log: list[list[str]], what: str) -> list[str]:
    """Return the calls that began, or ended, in order."""
    return [name for kind, name in log if kind == what]


def measure(name: str, kind: str) -> Row:
    """Put a program through everything."""
    program = f"{name}_{kind}"
    source = (PROGRAMS / f"{program}.py").read_text("utf-8")
    with tempfile.TemporaryDirectory() as folder:
        log = run(program, Path(folder))
    clean, expected = names(log, "begin"), returned(name, log)
    middle = len(clean) * 6 // 10
    lost: list[int] = []
    goes_on = right = 0
    for trouble in ({"KILL_AT": str(middle)}, {"FAIL": clean[middle]}, {"CANCEL_AT": str(middle)}):
        with tempfile.TemporaryDirectory() as folder:
            first = run(program, Path(folder), trouble)
            again = run(program, Path(folder))
        lost.append(len({*names(first, "end")} & {*names(again, "begin")}))
        said = [one for one, _ in first if one != "result"]
        goes_on += len(said) - said.index("over") - 1 if "over" in said else 0
        right += returned(name, again) == expected
    return Row(
        lines=sum(bool(line.strip()) for line in source.splitlines()),
        calls=len(clean),
        after_kill=lost[0],
        after_failure=lost[1],
        after_cancellation=lost[2],
        goes_on=goes_on,
        right=right,
    )


def returned(name: str, log: list[list[str]]) -> object:
    """Return what a program returned; of a race only to which questions there are answers."""
    (said,) = names(log, "result")
    result = json.loads(said)
    # Where the model fails that wins otherwise, the other one's answer is right.
    return sorted(result) if name == "race" and result else result


if __name__ == "__main__":
    for one in sys.argv[1:] or NAMES:
        for kind in kinds(one):
            print(f"| {one}, {kind} | {measure(one, kind).cells()} |")
