"""Rates that processes share, whatever keeps them: what they have started, and when they may."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from shoal import Application, Limits, SharedRate, action, fan_out
from shoal._limits.shared_rates import SLACK
from shoal.rates import RateRequest

SHARER = Path(__file__).with_name("sharer.py")


def noting(starts: list[float]) -> Any:
    @action(reads=["n"], writes=["out"])
    async def noting(n: int) -> int:
        starts.append(time.monotonic())
        return n

    return noting


def many(starts: list[float], rate: SharedRate) -> Application[Any]:
    act = noting(starts)
    return Application(fan_out(act, over="ns", item="n", into="out", limits=Limits(rate=rate)))


@asynccontextmanager
async def watched_clock() -> AsyncGenerator[Lateness]:
    """Measure how late the machine wakes this process meanwhile."""
    lateness = Lateness()

    async def watch() -> None:
        while True:
            begun = time.monotonic()
            await anyio.sleep(0.005)
            lateness.seconds = max(lateness.seconds, time.monotonic() - begun)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        yield lateness
        tasks.cancel_scope.cancel()


@dataclass
class Lateness:
    """By how much a process was woken too late, at most."""

    seconds: float = 0.0


def check_windows(starts: list[float], k: float, burst: float, late: float) -> None:
    """In any window of t seconds at most k * t + burst start: look at all of them."""
    starts = sorted(starts)
    for first in range(len(starts)):
        for last in range(first, len(starts)):
            allowed = k * (starts[last] - starts[first] + late) + burst
            assert last - first + 1 <= allowed + 1e-6 * k, (
                f"{last - first + 1} in {starts[last] - starts[first]} s, {allowed} are allowed"
            )


def share(where: str, logs: list[Path], *, k: float, burst: float, n: int, slots: int) -> Any:
    """Start processes that share a rate, and let them go all at once."""
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, str(SHARER), ("asyncio", "trio")[number % 2], where),
                *(str(k), str(burst), str(n), str(slots), str(log)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number, log in enumerate(logs)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return processes


def join(processes: Any) -> None:
    for process in processes:
        process.communicate(timeout=30)


def read(*logs: Path) -> list[float]:
    lines = [line for log in logs for line in log.read_text().splitlines()]
    return sorted(float(line) for line in lines if not line.startswith("late"))


def lateness(*logs: Path) -> float:
    """By how much the machine itself was late, at most, more than is made allowance for."""
    lines = [line for log in logs for line in log.read_text().splitlines()]
    return max(float(line[5:]) for line in lines if line.startswith("late"))


def keep_to_a_rate(where: str, folder: Path, *, k: float, burst: float) -> None:
    """Let four processes share a rate: together they keep to it, and each has its share."""
    logs = [folder / f"{number}.log" for number in range(4)]
    n = int(k * 2 / len(logs))
    processes = share(where, logs, k=k, burst=burst, n=n, slots=64)
    join(processes)
    assert all(process.returncode == 0 for process in processes)
    starts = read(*logs)
    assert len(starts) == n * len(logs)
    slack = RateRequest(key="x", interval=1 / k, burst=burst).slack
    late = lateness(*logs)
    check_windows(starts, k, burst, late=max(0.0, late - slack))
    whole = n * len(logs) / k
    assert starts[-1] - starts[0] <= 1.5 * whole  # with one process at a time it would be 4 times
    assert all(read(log)[0] - starts[0] < 0.75 * whole for log in logs)  # each has its share


def lose_a_process(where: str, folder: Path) -> None:
    """Kill one of three processes that share a rate: the others use it up."""
    logs = [folder / f"{number}.log" for number in range(3)]
    k = 100
    victim, *others = processes = share(where, logs, k=k, burst=5, n=100, slots=64)
    while not logs[0].exists() or not logs[0].read_text():
        time.sleep(0.01)
    time.sleep(0.3)
    victim.kill()
    join(processes)
    assert victim.returncode == -signal.SIGKILL
    starts = read(*logs)
    check_windows(starts, k, 5, late=max(0.0, lateness(*logs) - SLACK))
    assert len(read(*logs[1:])) == 200
    assert all(process.returncode == 0 for process in others)
    assert starts[-1] - starts[0] <= 1.5 * len(starts) / k
