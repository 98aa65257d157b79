"""Maps in worker processes: ``python -m benchmarks.executors``.

Children that only compute, beside the same in one process, and in ``concurrent.futures``. All
contenders run in turn, with warm processes, so a ratio says more than a time.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial

from benchmarks._measure import in_turn
from shoal import Application, Runtime, action, fan_out
from shoal.executors import ExecutorName, Processes

CHUNKS = (1, 5, 10, 25)
WORKERS = 2


def spin(turns: int) -> int:
    """Compute for a while, in pure Python.

    The numbers stay short, so that twice as many turns take twice as long.
    """
    total = 0
    for n in range(turns):
        total ^= n
    return total


@action(reads=["turns"], writes=["total"])
def compute(turns: int) -> int:
    return spin(turns)


def turns_of(seconds: float) -> int:
    """Return how many turns take so many seconds on this machine."""
    took = min(_took(100_000) for _ in range(20))
    return int(100_000 * seconds / took)


def _took(turns: int) -> float:
    began = time.perf_counter()
    spin(turns)
    return time.perf_counter() - began


def one_process(turns: list[int]) -> None:
    for one in turns:
        spin(one)


class Shoal:
    """A map in a runtime that stays open, on a loop of its own."""

    def __init__(self, executor: Processes | ExecutorName) -> None:
        self._loop = asyncio.new_event_loop()
        self._app = Application(
            fan_out(compute, over="all", item="turns", into="totals", executor=executor)
        )
        self._over = asyncio.Event()
        self._opened: asyncio.Future[Runtime] = self._loop.create_future()
        self._holding = self._loop.create_task(self._hold())
        self._runtime = self._loop.run_until_complete(self._opened)
        self.map([10] * 200)

    async def _hold(self) -> None:
        async with Runtime() as runtime:
            self._opened.set_result(runtime)
            await self._over.wait()

    def map(self, turns: list[int]) -> None:
        result = self._loop.run_until_complete(self._app.run({"all": turns}, runtime=self._runtime))
        assert len(result.state["totals"]) == len(turns)

    def close(self) -> None:
        self._over.set()
        self._loop.run_until_complete(self._holding)
        self._loop.close()


def pool_map(pool: ProcessPoolExecutor, turns: list[int], chunk: int) -> None:
    assert len(list(pool.map(spin, turns, chunksize=chunk))) == len(turns)


def measure(seconds: float, children: int, rounds: int, chunks: tuple[int, ...]) -> None:
    """Measure maps of children that take so many seconds each."""
    turns = [turns_of(seconds)] * children
    with ExitStack() as opened:
        pool = opened.enter_context(ProcessPoolExecutor(WORKERS))
        pool_map(pool, [10] * 200, 1)
        here, there = Shoal("loop"), Shoal(Processes(WORKERS))
        opened.callback(here.close)
        opened.callback(there.close)
        contenders: dict[str, Callable[[], object]] = {
            "one process, by hand": partial(one_process, turns),
            "shoal, in the loop": partial(here.map, turns),
            f"shoal, in {WORKERS} processes": partial(there.map, turns),
        }
        for chunk in chunks:
            name = f"ProcessPoolExecutor({WORKERS}), chunksize={chunk}"
            contenders[name] = partial(pool_map, pool, turns, chunk)
        took = in_turn(contenders, rounds)
    ours = took[f"shoal, in {WORKERS} processes"]
    print(f"\n{children:,} children of {seconds * 1e6:,.0f} us, medians of {rounds} rounds")
    print(f"{'':<44}{'us/child':>10}{'shoal in processes is so many times as fast':>47}")
    print(f"{'':<44}{'':>10}{'median of rounds':>25}{'ratio of medians':>22}")
    for name, values in took.items():
        ratio = statistics.median(other / one for other, one in zip(values, ours, strict=True))
        of_medians = statistics.median(values) / statistics.median(ours)
        took_each = statistics.median(values) / children * 1e6
        print(f"{name:<44}{took_each:>10.1f}{ratio:>25.3f}{of_medians:>22.3f}")
    pools = [took[name] for name in took if "Pool" in name]
    # The quickest chunk size of each round, which favours the pool: no size is it in all of them.
    best = [min(values) for values in zip(*pools, strict=True)]
    ratio = statistics.median(other / one for other, one in zip(best, ours, strict=True))
    of_medians = min(map(statistics.median, pools)) / statistics.median(ours)
    name = "the best of ProcessPoolExecutor"
    print(f"{name:<44}{'':>10}{ratio:>25.3f}{of_medians:>22.3f}")


def main() -> None:
    """Measure children of 5 ms, and of 50 microseconds."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.executors", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--children", type=int, default=400, help="of 5 ms; 20 times as many others"
    )
    options = parser.parse_args()
    print(
        f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    measure(0.005, options.children, options.rounds, CHUNKS)
    measure(0.00005, 20 * options.children, options.rounds, (1, 100))


if __name__ == "__main__":
    main()
