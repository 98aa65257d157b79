"""Limits: their cost for each child, and how it grows with the number of keys.

``python -m benchmarks.limits``. Each contender is the same map, over children of one checkpoint.
Its limits never make a child wait for longer than the others of its kind, so only the checks are
measured. In the last row of the keys, every key waits for its rate, so all of them are in the queue
at once.
"""

from __future__ import annotations

import argparse
import platform
import time
import tracemalloc
from collections.abc import Callable

from anyio.lowlevel import checkpoint

from benchmarks._measure import in_turn, print_table
from shoal import AIMD, Application, Limits, Rate, State, action, fan_out
from shoal.testing import run_virtual
from shoal.types import FunctionAction

LIMIT = 100
FAST = Rate(1e9, burst=1e9)


def double(limits: Limits | None = None) -> FunctionAction[..., object]:
    @action(reads=["n"], writes=["double"], limits=limits)
    async def double(n: int) -> int:
        await checkpoint()
        return n + n

    return double


def mapped(act: FunctionAction[..., object], limits: Limits | None = None) -> Application:
    return Application(
        fan_out(
            act,
            over="numbers",
            item="n",
            key=int,
            into="doubles",
            take="double",
            limits=Limits(LIMIT) if limits is None else Limits(LIMIT) & limits,
        )
    )


plain = double()


def among(keys: int) -> Callable[[State], int]:
    return lambda state: state["n"] % keys


def program(app: Application, items: int) -> Callable[[], object]:
    return lambda: app.run_sync({"numbers": range(items)})


def measure_admission(items: int, rounds: int) -> None:
    print(
        f"\nadmission, over {items:,} items, {LIMIT} in flight; "
        "the time above the first row is the cost of the limits"
    )
    contenders = {
        "nothing but the number in flight": mapped(plain),
        "capacity on the action": mapped(double(Limits(LIMIT))),
        "capacity on the application": Application(mapped(plain).graph, limits=Limits(LIMIT)),
        "adaptive capacity on the action": mapped(double(Limits(LIMIT, adapt=AIMD()))),
        "rate of the fan-out": mapped(plain, Limits(rate=FAST)),
        "rate of the action": mapped(double(Limits(rate=FAST))),
        "rate of the fan-out, by one of 100 keys": mapped(plain, Limits(rate=FAST, by=among(100))),
        "the same, and capacity of the action": mapped(
            double(Limits(LIMIT)), Limits(rate=FAST, by=among(100))
        ),
    }
    programs = {name: program(app, items) for name, app in contenders.items()}
    print_table(in_turn(programs, rounds), items, "nothing but the number in flight")


def measure_keys(items: int, rounds: int) -> None:
    print(f"\nkeys, over {items:,} items; the keys take turns")
    programs = {
        f"{keys:,} keys": program(mapped(plain, Limits(5, rate=FAST, by=among(keys))), items)
        for keys in (1, 100, 10_000, items)
    }
    print_table(in_turn(programs, rounds), items, "1 keys")


def measure_waiting(keys: int) -> None:
    """Let every key wait for its rate, in virtual time: two children each, a second apart."""
    print("\nwaiting keys with two children each, all in the queue at once, in virtual time")
    print(f"{'':<20}{'us/child':>10}{'peak MB':>10}")
    for some in (keys // 100, keys // 10, keys):
        app = mapped(plain, Limits(some) & Limits(rate=Rate(1), by=among(some)))

        async def main(app: Application = app, some: int = some) -> None:
            await app.run({"numbers": range(2 * some)})

        began = time.perf_counter()
        run_virtual(main)
        each = (time.perf_counter() - began) / (2 * some) * 1e6
        tracemalloc.start()
        run_virtual(main)
        peak = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        print(f"{some:>14,} keys {each:>10.2f}{peak:>10.1f}")


def main() -> None:
    """Measure, as the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.limits", description=__doc__)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"CPython {platform.python_version()}, medians of {options.rounds} rounds in turn")
    measure_admission(options.items // 5, options.rounds)
    measure_keys(options.items, options.rounds)
    measure_waiting(options.items)


if __name__ == "__main__":
    main()
