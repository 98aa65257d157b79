"""Races: the delay until a winner is visible, the cost of cancelling, and the gain by hedging.

``python -m benchmarks.race``. Ratios compare programs run in turn; times are of one run each.
"""

from __future__ import annotations

import argparse
import gc
import platform
import statistics
import time
from collections.abc import Callable
from random import Random

import anyio

from benchmarks._measure import in_turn
from shoal import Application, Hedge, Hook, Limits, Runtime, action, fan_out, race
from shoal.events import StateUpdated
from shoal.testing import run_virtual

MS = 1e3


# -- how soon --------------------------------------------------------------------------------------


class Winner(Hook):
    """Notes the time at which a race's winner is published."""

    observer = True

    def __init__(self) -> None:
        self.at = 0.0

    def on_state_updated(self, event: StateUpdated) -> None:
        if event.depth == 0 and event.outcome is not None:
            self.at = time.perf_counter()


returned_at = 0.0


@action(writes=["answer"])
async def quick() -> str:
    global returned_at  # noqa: PLW0603 # the measured time
    await anyio.sleep(0.01)
    returned_at = time.perf_counter()
    return "quick"


@action(writes=["answer"])
async def slow(cleanup: float) -> str:
    try:
        await anyio.sleep(3600)
    finally:
        if cleanup:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(cleanup)
    return "slow"


def latencies(cleanup: float, rounds: int, backend: str) -> tuple[float, float]:
    """Return medians, in ms, from the winner's return to its publication, and to ``run``'s."""
    winner = Winner()
    losers = [slow.bind(name=f"slow{n}", cleanup=cleanup) for n in range(2)]
    app = Application(race(losers[0], quick, losers[1], into="answer"), hooks=[winner])
    published, ended = list[float](), list[float]()

    async def main() -> None:
        async with Runtime() as runtime:
            for _ in range(rounds):
                await app.run(runtime=runtime)
                ended.append(time.perf_counter() - returned_at)
                published.append(winner.at - returned_at)

    anyio.run(main, backend=backend)
    return statistics.median(published) * MS, statistics.median(ended) * MS


def measure_latency(rounds: int) -> None:
    print(f"\nrace of three: ms from the winner's return, medians of {rounds} races")
    print(f"{'':<36}{'published':>12}{'run returned':>14}")
    for backend in ("asyncio", "trio"):
        for cleanup in (0.0, 0.05):
            published, ended = latencies(cleanup, rounds, backend)
            name = f"{backend}, losers' cleanup {cleanup * MS:g} ms"
            print(f"{name:<36}{published:>12.3f}{ended:>14.3f}")


# -- cancelling ------------------------------------------------------------------------------------


@action(writes=["never"])
async def sleep() -> None:
    await anyio.sleep(3600)


@action(writes=["answer"])
async def win(started: anyio.Event) -> str:
    await started.wait()
    return "won"


async def sleep_bare() -> None:
    await anyio.sleep(3600)


def cancelling_by_hand(children: int, seconds: list[float]) -> Callable[[], object]:
    async def main() -> None:
        began = 0.0
        async with anyio.create_task_group() as tasks:
            for _ in range(children):
                tasks.start_soon(sleep_bare)
            await anyio.wait_all_tasks_blocked()
            gc.collect()  # a garbage collection that is due must not be measured
            began = time.perf_counter()
            tasks.cancel_scope.cancel()
        seconds.append(time.perf_counter() - began)

    return lambda: anyio.run(main)


def cancelling_by_shoal(children: int, seconds: list[float]) -> Callable[[], object]:
    app = Application(
        fan_out(sleep, over="numbers", item="n", into="results", limits=Limits(children))
    )

    async def main() -> None:
        began = 0.0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(app.run, {"numbers": range(children)})
            await anyio.wait_all_tasks_blocked()
            gc.collect()  # a garbage collection that is due must not be measured
            began = time.perf_counter()
            tasks.cancel_scope.cancel()
        seconds.append(time.perf_counter() - began)

    return lambda: anyio.run(main)


def measure_cancelling(children: int, rounds: int) -> None:
    bare, ours = list[float](), list[float]()
    in_turn(
        {"bare": cancelling_by_hand(children, bare), "shoal": cancelling_by_shoal(children, ours)},
        rounds,
    )
    ratio = statistics.median(o / b for o, b in zip(ours[1:], bare[1:], strict=True))
    print(f"\ncancel {children:,} children in flight, to the last cleanup: medians of {rounds}")
    print(f"{'bare anyio task group':<36}{statistics.median(bare[1:]) * MS:>10.1f} ms")
    print(f"{'shoal fan_out':<36}{statistics.median(ours[1:]) * MS:>10.1f} ms{ratio:>8.2f}x")


# -- hedging ---------------------------------------------------------------------------------------


def hedged(requests: int, hedge: Hedge | None, seed: int) -> tuple[list[float], int]:
    """Return the latencies of many consecutive requests in virtual time, and the starts of each."""
    random, starts = Random(seed), 0

    @action(writes=["answer"])
    async def ask(copy: str = "first") -> str:
        nonlocal starts
        starts += 1
        await anyio.sleep(3.0 if random.random() < 0.05 else random.uniform(0.08, 0.12))
        return copy

    acts = [ask, ask.bind(name="again", copy="second")] if hedge is not None else [ask]
    app = Application(race(*acts, into="answer", stagger=hedge))
    seconds = list[float]()

    async def main() -> None:
        async with Runtime() as runtime:
            for _ in range(requests):
                began = anyio.current_time()
                await app.run(runtime=runtime)
                seconds.append(anyio.current_time() - began)

    run_virtual(main)
    return sorted(seconds), starts


def measure_hedging(requests: int) -> None:
    print(f"\nhedging {requests:,} requests of 80-120 ms, 5 % of them 3 s; virtual time")
    print(f"{'':<36}{'p50':>9}{'p90':>9}{'p99':>9}{'extra starts':>14}")
    for name, hedge in (
        ("one request", None),
        ("Hedge(percentile=90, budget=0.15)", Hedge(percentile=90, budget=0.15)),
        ("Hedge(percentile=95, budget=0.1)", Hedge()),
    ):
        seconds, starts = hedged(requests, hedge, seed=1)
        p50, p90, p99 = (seconds[int(requests * p)] * MS for p in (0.5, 0.9, 0.99))
        extra = starts / requests - 1
        print(f"{name:<36}{p50:>7.0f}ms{p90:>7.0f}ms{p99:>7.0f}ms{extra:>13.1%}")


def main() -> None:
    """Measure all of it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.race", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--races", type=int, default=200)
    parser.add_argument("--children", type=int, default=10_000)
    parser.add_argument("--requests", type=int, default=10_000)
    options = parser.parse_args()
    print(f"CPython {platform.python_version()}")
    measure_latency(options.races)
    measure_cancelling(options.children, options.rounds)
    measure_hedging(options.requests)


if __name__ == "__main__":
    main()
