"""Programs and their worker processes, killed at random: their runs end all the same."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.executors.test_process_programs import ENVIRONMENT, assert_gone

pytestmark = pytest.mark.crash

ITEMS = 60
PATIENCE = 150
"""Seconds in which something has to happen. At a low priority, on a machine that has much else to
do, a Python takes a minute to start."""

PROGRAM = """
import sys, anyio
from shoal import Application, Runtime, SQLiteStore, action, fan_out
from shoal.executors import Processes

@action(reads=["n", "folder"], writes=["square"])
def square(n: int, folder: str) -> int:
    import os, time
    with open(f"{folder}/effects", "a") as file:  # one write, which no kill can tear
        file.write(f"{n}\\n")
    with open(f"{folder}/pids", "a") as file:
        file.write(f"{os.getpid()} {os.getppid()}\\n")
    time.sleep(0.02)
    return n * n

def add(state, outcome):
    return state.increment(total=outcome.value).append(order=outcome.key)

squares = fan_out(square, name="squares", over="ns", item="n", key=str, reduce=add,
                  reads=["order", "total"], writes=["order", "total"], executor=Processes(2))

async def main(folder: str, id: str, items: int) -> None:
    async with Runtime(max_crashes=1000, grace=0.5) as runtime:
        async with SQLiteStore(f"{folder}/runs.db") as store:
            app = Application(squares, store=store)
            fields = {"ns": list(range(items)), "folder": folder, "total": 0, "order": []}
            result = await app.run(fields, id=id, runtime=runtime)
            assert result.status == "succeeded", result
            state = result.state
            assert sorted(state["order"], key=int) == [str(n) for n in range(items)], state["order"]
            assert state["total"] == sum(n * n for n in range(items)), state["total"]

anyio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]), backend=sys.argv[4])
print("succeeded", flush=True)
"""


def pids_in(folder: Path) -> list[tuple[int, int]]:
    """Return the workers that have ever been at work, each with its launcher."""
    with suppress(OSError):
        lines = (folder / "pids").read_text().splitlines()
        return [(int(one), int(other)) for one, other in map(str.split, lines)]
    return []


def kill_some(folder: Path, driver: subprocess.Popen[str], chance: random.Random) -> str:
    """Kill the program, a worker that was at work lately, or their launcher; say which."""
    recent = pids_in(folder)[-2:]
    victim = chance.choice(["driver", "driver", "worker", "worker", "launcher"])
    if victim == "driver" or not recent:
        driver.kill()
        return "driver"
    worker, launcher = chance.choice(recent)
    if victim == "launcher" and launcher == 1:
        victim = "worker"
    with suppress(ProcessLookupError):
        os.kill(worker if victim == "worker" else launcher, signal.SIGKILL)
    return victim


def lives(folder: Path, kills: int, seed: int, backend: str) -> Iterator[str]:
    """Run runs to their ends, with so many kills on the way; yield what was killed."""
    chance, killed, run = random.Random(seed), 0, 0
    while killed < kills:
        driver = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(folder), f"run-{run}", str(ITEMS), backend],
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with (folder / "begun").open("a") as begun:
            begun.write(f"{run}\n")
        seen = len(pids_in(folder))
        until = time.monotonic() + PATIENCE
        while driver.poll() is None and killed < kills:
            # A kill counts only behind an effect of this life.
            if len(pids_in(folder)) > seen:
                time.sleep(chance.uniform(0, 0.1))
                seen = len(pids_in(folder))
                until = time.monotonic() + PATIENCE
                killed += 1
                yield kill_some(folder, driver, chance)
            assert time.monotonic() < until, "nothing happens any more"
            time.sleep(0.005)
        output, _ = driver.communicate(timeout=PATIENCE)
        if driver.returncode == 0:
            assert output.endswith("succeeded\n"), output
            run += 1
        else:
            assert driver.returncode == -signal.SIGKILL, output
        # With them goes all else: their shared memory has no name.
        # (A worker whose launcher was killed may have written down that its parent is process 1.)
        for pid in {pid for pair in pids_in(folder) for pid in pair} - {1}:
            assert_gone(pid)
        (folder / "pids").unlink(missing_ok=True)


@pytest.mark.parametrize(
    "kills", [6, pytest.param(100, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])]
)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_killed_programs_lose_nothing_and_apply_nothing_twice(
    tmp_path: Path, kills: int, backend: str
):
    killed = list(lives(tmp_path, kills, kills, backend))
    assert len(killed) == kills
    # The run that was under way is finished in peace; its own checks say the rest.
    begun = max(int(line) for line in (tmp_path / "begun").read_text().split()) + 1
    for run in range(begun):
        given = [str(tmp_path), f"run-{run}", str(ITEMS), backend]
        program = [sys.executable, "-c", PROGRAM, *given]
        subprocess.run(program, env=ENVIRONMENT, timeout=100, capture_output=True, check=True)
    effects = (tmp_path / "effects").read_text().split()
    assert set(effects) == {str(n) for n in range(ITEMS)}
    # A kill makes those calls again that were at work, and those whose results were not saved.
    assert len(effects) <= ITEMS * begun + 10 * kills
