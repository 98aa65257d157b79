"""The processor time of one sample of many runs in flight, the report about it included.

In one fan-out, and in nested ones of 20 children each. Samples are taken four times per second.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Sequence

import anyio

from shoal import Application, Limits, Runtime, action, fan_out
from shoal.types import FanOut

ROUNDS = 20


@action(reads=["n"], writes=["waited"])
async def wait(n: int) -> int:
    """Be in flight for a while."""
    await anyio.sleep(5)
    return n


def measure_sample(runs: int) -> None:
    """Print the processor time of samples of so many runs in flight, reports included."""
    nested = runs // 20
    flat = fan_out(wait, over="numbers", item="n", into="all", limits=Limits(runs))
    few = fan_out(wait, over="some", item="n", into="few", limits=Limits(20))
    deep = fan_out(few, over="numbers", item="some", into="all", limits=Limits(nested))

    async def sampled(act: FanOut, numbers: Sequence[object]) -> list[float]:
        took: list[float] = []
        app = Application(act, max_live=2 * runs, watch=True)
        async with Runtime() as runtime:
            handle = await runtime.start(app, {"numbers": numbers})
            await anyio.sleep(3)
            runtime.watch_reports(lambda _root, _report: None)  # so that each sample is reported
            watching = runtime._watching  # noqa: SLF001 # samples are taken by a timer
            for _ in range(ROUNDS):
                watching._stop_timer()  # noqa: SLF001 # as above
                began = time.thread_time()
                watching._tick()  # noqa: SLF001 # as above
                took.append((time.thread_time() - began) * 1000)
            handle.cancel("enough")
        return took

    print(f"{runs:,} runs in flight, milliseconds")
    print(f"{'':<32}{'median':>9}{'mean':>9}{'max':>9}")
    for name, act, numbers in (
        ("in one fan-out", flat, range(runs)),
        (f"in {nested:,} nested ones", deep, [list(range(20)) for _ in range(nested)]),
    ):
        took = anyio.run(sampled, act, numbers)
        print(
            f"{name:<32}{statistics.median(took):>9.2f}{statistics.mean(took):>9.2f}"
            f"{max(took):>9.2f}"
        )


def main() -> None:
    """Measure, as the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampling", description=__doc__)
    parser.add_argument("--runs", type=int, default=20_000)
    options = parser.parse_args()
    print(f"CPython {platform.python_version()}, {ROUNDS} samples")
    measure_sample(options.runs)


if __name__ == "__main__":
    main()
