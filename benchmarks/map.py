"""A map over many elements, 100 in flight, compared with loops written by hand.

In every program, the body awaits one real checkpoint, and the results end up in a dict by key.
Before measuring, each program is checked to reach the limit as its peak in flight, with bodies that
last long enough to overlap. The measured bodies would not reach it: shoal counts a child as in
flight until its result is committed, so some children are always between their end and the commit.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import tracemalloc
from collections.abc import Awaitable, Callable, Iterator

import anyio
from anyio.lowlevel import checkpoint

from benchmarks._measure import InFlight, in_turn, print_table
from shoal import Application, Done, Graph, Hook, Limits, MemoryStore, State, action, fan_out
from shoal.events import StateUpdated

LIMIT = 100

in_flight = InFlight()
counting_bodies = False


async def body(n: int) -> int:
    if counting_bodies:
        in_flight.enter()
        await anyio.sleep(0.001)
        in_flight.leave()
    else:
        await checkpoint()
    return n + n


# -- by hand ------------------------------------------------------------------------------------


async def gather_and_semaphore(items: int) -> dict[int, int]:
    semaphore = asyncio.Semaphore(LIMIT)

    async def one(n: int) -> tuple[int, int]:
        async with semaphore:
            return n, await body(n)

    return dict(await asyncio.gather(*(one(n) for n in range(items))))


async def task_group_and_semaphore(items: int) -> dict[int, int]:
    semaphore = asyncio.Semaphore(LIMIT)
    results: dict[int, int] = {}

    async def one(n: int) -> None:
        async with semaphore:
            results[n] = await body(n)

    async with asyncio.TaskGroup() as tasks:
        for n in range(items):
            tasks.create_task(one(n))
    return results


async def anyio_and_limiter(items: int) -> dict[int, int]:
    limiter = anyio.CapacityLimiter(LIMIT)
    results: dict[int, int] = {}

    async def one(n: int) -> None:
        async with limiter:
            results[n] = await body(n)

    async with anyio.create_task_group() as tasks:
        for n in range(items):
            tasks.start_soon(one, n)
    return results


# -- shoal --------------------------------------------------------------------------------------


@action(reads=["n"], writes=["double"])
async def double(n: int) -> int:
    return await body(n)


@action(reads=["double"], writes=["checked"])
async def check(double: int) -> bool:
    return double >= 0


doubles = fan_out(double, over="numbers", item="n", key=int, into="doubles", limits=Limits(LIMIT))


class Listening(Hook):
    """Receives one kind of event, and does nothing."""

    observer = True

    def on_state_updated(self, event: StateUpdated) -> None:
        pass


def with_steps(further: int) -> Application:
    def step(number: int) -> Graph:
        @action(reads=["double"], writes=["double"], name=f"step{number}")
        async def again(double: int) -> int:
            return double

        return Graph.chain(again)

    acts = [act for number in range(further) for act in step(number).acts]
    graph = Graph.chain(double, *acts, name="steps")
    return Application(
        fan_out(graph, over="numbers", item="n", key=int, into="double", limits=Limits(LIMIT))
    )


def count(state: State, _: Done) -> State:
    return state.increment(count=1)


counting = fan_out(
    double,
    over=lambda state: forever(state["items"]),
    item="n",
    reduce=count,
    reads=["items"],
    writes=["count"],
    name="counting",
    limits=Limits(LIMIT),
)


def forever(items: int) -> Iterator[int]:
    yield from range(items)


# -- the measurement ----------------------------------------------------------------------------


def by_shoal(app: Application, items: int) -> Callable[[], object]:
    return lambda: app.run_sync({"numbers": range(items)})


def by_hand(program: Callable[[int], Awaitable[object]], items: int) -> Callable[[], object]:
    return lambda: anyio.run(program, items)


def check_peak(name: str, run: Callable[[], object]) -> None:
    global counting_bodies  # noqa: PLW0603 # the bodies of all programs are the same function
    counting_bodies, in_flight.peak = True, 0
    run()
    counting_bodies = False
    assert in_flight.peak == LIMIT, f"{name}: peak in flight was {in_flight.peak}, not {LIMIT}"


def measure_against_hand(items: int, rounds: int) -> None:
    print(f"\nmap over {items:,} items, {LIMIT} in flight, no store")
    for name, run in against_hand(1000).items():
        check_peak(name, run)
    seconds = in_turn(against_hand(items), rounds)
    print_table(seconds, items, "asyncio.gather + Semaphore")


def against_hand(items: int) -> dict[str, Callable[[], object]]:
    return {
        "asyncio.gather + Semaphore": by_hand(gather_and_semaphore, items),
        "asyncio.TaskGroup + Semaphore": by_hand(task_group_and_semaphore, items),
        "anyio task group + CapacityLimiter": by_hand(anyio_and_limiter, items),
        "shoal fan_out": by_shoal(Application(doubles), items),
        "shoal fan_out, a hook on every update": by_shoal(
            Application(doubles, hooks=[Listening()]), items
        ),
    }


def measure_steps_and_hooks(items: int, rounds: int) -> None:
    print(f"\nsteps and hooks, over {items:,} items; us/item above the first row is their cost")
    contenders = {
        "one step": by_shoal(Application(doubles), items),
        "ten further steps": by_shoal(with_steps(10), items),
        "one hook on each update": by_shoal(Application(doubles, hooks=[Listening()]), items),
        "ten hooks on each update": by_shoal(
            Application(doubles, hooks=[Listening() for _ in range(10)]), items
        ),
    }
    print_table(in_turn(contenders, rounds), items, "one step")


def measure_remembering(items: int, rounds: int) -> None:
    print(f"\nremembering, over {items:,} items; a ratio is the cost of a store in memory")
    print_table(in_turn(remembering(items, rounds), rounds), items, "no store")


def remembering(items: int, rounds: int) -> dict[str, Callable[[], object]]:
    unfinished = iter([all_but_the_last(items) for _ in range(rounds + 1)])
    state = {"numbers": range(items)}
    return {
        "no store": by_shoal(Application(doubles), items),
        "MemoryStore": lambda: Application(doubles, store=MemoryStore()).run_sync(state),
        "MemoryStore, resumed before the last item": lambda: Application(
            doubles, store=next(unfinished)
        ).run_sync(state, id="x"),
    }


def all_but_the_last(items: int) -> MemoryStore:
    """Run the map up to its last element, which fails."""

    def numbers(state: State) -> Iterator[int]:
        yield from state["numbers"][:-1]
        raise ConnectionError

    unfinished = fan_out(
        double,
        over=numbers,
        reads=["numbers"],
        item="n",
        key=int,
        into="doubles",
        limits=Limits(LIMIT),
    )
    store = MemoryStore()
    try:
        Application(unfinished, store=store).run_sync({"numbers": range(items)}, id="x")
    except ConnectionError:
        return store
    raise AssertionError


def measure_scaling(rounds: int) -> None:
    print("\ntime per item by size")
    for items in (1_000, 10_000, 100_000, 1_000_000):
        seconds = in_turn(
            {f"{items:,} items": by_shoal(Application(doubles), items)},
            rounds if items < 1_000_000 else 1,
        )
        print_table(seconds, items, f"{items:,} items")


def measure_memory() -> None:
    print("\npeak traced memory with a counting reducer")
    peaks: list[float] = []
    for items in (10_000, 1_000_000):
        tracemalloc.start()
        result = Application(counting).run_sync({"items": items, "count": 0})
        peak = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        assert result.state["count"] == items
        peaks.append(peak)
        print(f"{items:>12,} items {peak:>8.2f} MB")
    print(f"{'difference':>18} {peaks[1] - peaks[0]:>8.2f} MB")


def main() -> None:
    """Measure, as the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.map", description=__doc__)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--all", action="store_true", help="also sizes and memory; takes minutes")
    options = parser.parse_args()
    print(f"CPython {platform.python_version()}, medians of {options.rounds} rounds in turn")
    measure_against_hand(options.items, options.rounds)
    measure_steps_and_hooks(options.items // 5, options.rounds)
    measure_remembering(options.items // 5, options.rounds)
    if options.all:
        measure_scaling(options.rounds)
        measure_memory()


if __name__ == "__main__":
    main()
