"""Measures contenders in turn, so that disturbances of the machine affect all of them."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple


@dataclass
class InFlight:
    """Counts the bodies between their start and their end, and remembers the peak."""

    now: int = 0
    peak: int = 0

    def enter(self) -> None:
        self.now += 1
        self.peak = max(self.peak, self.now)

    def leave(self) -> None:
        self.now -= 1


def in_turn(
    contenders: Mapping[str, Callable[[], object]], rounds: int, *, cpu: bool = False
) -> dict[str, list[float]]:
    """Run every contender once per round, after one uncounted round; return seconds.

    Those of the processor, with ``cpu``: they depend less on what else the machine does.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for counted in range(rounds + 1):
        for name, run in contenders.items():
            took = timed(run)
            if counted:
                seconds[name].append(took.cpu if cpu else took.wall)
    return seconds


class Seconds(NamedTuple):
    """The time of a measurement."""

    wall: float
    cpu: float
    """The processor time of all threads."""


def timed(run: Callable[[], object]) -> Seconds:
    """Run a contender, after collecting the garbage of the previous one."""
    gc.collect()
    began, began_cpu = time.perf_counter(), time.process_time()
    run()
    return Seconds(time.perf_counter() - began, time.process_time() - began_cpu)


def print_table(seconds: Mapping[str, list[float]], items: int, base: str) -> dict[str, float]:
    """Print microseconds per item, and the ratio to ``base`` by rounds; return the ratios."""
    ratios: dict[str, float] = {}
    print(f"{'':<46}{'us/item':>9}{'min':>8}{'max':>8}{'ratio':>8}")
    for name, values in seconds.items():
        ratios[name] = statistics.median(
            ours / theirs for ours, theirs in zip(values, seconds[base], strict=True)
        )
        each = [value / items * 1e6 for value in values]
        print(
            f"{name:<46}{statistics.median(each):>9.2f}{min(each):>8.2f}{max(each):>8.2f}"
            f"{ratios[name]:>8.2f}"
        )
    return ratios
