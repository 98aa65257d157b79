"""A durable map over many elements, 100 in flight, beside LangGraph and Burr with their savers.

In every program the body awaits one real checkpoint; what it has come to is in the file before the
map goes on, or its child counts as ended; and the results end up in a dict by key. All wait for the
disk alike (``synchronous=full`` in WAL mode). How the peers are set up is in ``_langgraph`` and
``_burr``; they are compared where they are installed, as ``nox -s bench`` does.

``python -m benchmarks.durable`` prints what an item takes, in time and in the file: where the file
is made by the run, as it is by each first one, and where it was there before.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import platform
import statistics
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import _postgres
from benchmarks._measure import Seconds, timed
from benchmarks.map import LIMIT, by_shoal, check, double, doubles
from shoal import Application, Graph, Limits, MemoryStore, SQLiteStore, fan_out

Program = Callable[[Path, int], object]
"""Maps over so many items, and keeps that in a file."""

OURS = "shoal, durability=sync, full"
PEERS = {"langgraph": "benchmarks._langgraph", "burr": "benchmarks._burr"}
MOST_OF_PEERS = 10_000
"""Items that peers are given at most: they take a minute for ten times as many, or far longer."""

# -- shoal -----------------------------------------------------------------------------------------

two_steps = fan_out(
    Graph.chain(double, check, name="two steps"),
    over="numbers",
    item="n",
    key=int,
    into="checked",
    limits=Limits(LIMIT),
)


def durable(graph: Any = doubles, **how: Any) -> Program:
    def run(path: Path, items: int) -> None:
        by_shoal(Application(graph, store=SQLiteStore(path, **how)), items)()

    return run


def in_memory(_: Path, items: int) -> None:
    by_shoal(Application(doubles, store=MemoryStore()), items)()


def without_store(_: Path, items: int) -> None:
    by_shoal(Application(doubles), items)()


def ours() -> dict[str, Program]:
    return {
        OURS: durable(),
        "shoal, durability=sync, normal": durable(synchronous="normal"),
        "shoal, durability=relaxed, full": durable(durability="relaxed"),
        "shoal, durability=end, full": durable(durability="end"),
        "shoal, sync, full, children of two steps": durable(two_steps),
        "shoal, MemoryStore": in_memory,
        "shoal, no store": without_store,
    }


# -- what is measured ------------------------------------------------------------------------------


@contextmanager
def fresh_file() -> Generator[Path]:
    """Give the path of a file that isn't there yet, and goes with its directory."""
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=".") as directory:
        # here, which is on a disk, as /tmp may not be
        yield Path(directory) / "runs.db"


@dataclass
class Taken:
    """What the runs of one program took."""

    seconds: list[Seconds] = field(default_factory=list[Seconds])
    size: int = 0

    def micros(self, items: int) -> tuple[list[float], list[float]]:
        """Return microseconds per item, of each run: by the clock, and of the processor."""
        wall, cpu = zip(*self.seconds, strict=True)
        return [one / items * 1e6 for one in wall], [one / items * 1e6 for one in cpu]


def measure(
    programs: Mapping[str, Program], items: int, rounds: int, *, is_there: bool = False
) -> dict[str, Taken]:
    """Run all programs in turn, each in a file of its own; print and return what they took."""
    where = "a file that is there" if is_there else "a file that is made"
    print(f"\ndurable map over {items:,} items, {LIMIT} in flight, into {where}")
    taken = {name: Taken() for name in programs}
    for _ in range(rounds):
        for name, program in programs.items():
            with fresh_file() as path:
                if is_there:
                    program(path, 2)
                taken[name].seconds.append(timed(partial(program, path, items)))
                taken[name].size = sum(one.stat().st_size for one in path.parent.iterdir())
    show(taken, items)
    return taken


def show(taken: Mapping[str, Taken], items: int) -> None:
    base, _ = taken[OURS].micros(items)
    print(f"{'':<44}{'us/item':>9}{'min':>9}{'cpu':>9}{'ratio':>8}{'bytes/item':>12}")
    for name, of in taken.items():
        each, cpu = of.micros(items)
        ratio = statistics.median(theirs / ours for theirs, ours in zip(each, base, strict=True))
        print(
            f"{name:<44}{statistics.median(each):>9.1f}{min(each):>9.1f}"
            f"{statistics.median(cpu):>9.1f}{ratio:>7.1f}x{of.size / items:>12.0f}"
        )


def measure_resume(items: int) -> None:
    """Time how long it takes to load a run that has succeeded."""
    with fresh_file() as path:
        app = Application(doubles, store=SQLiteStore(path))
        app.run_sync({"numbers": range(items)}, id="x")
        took = timed(lambda: app.run_sync(id="x")).wall
        print(f"\nloading a run of {items:,} items takes {took / items * 1e6:.1f} us per item")


def main() -> None:
    """Measure what the arguments ask for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.durable", description=__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--rounds", type=int, default=5, help="with the first number of items")
    parser.add_argument("--alone", action="store_true", help="without the peers")
    parser.add_argument("--postgres", metavar="URL", help="of a server; else one of its own")
    options = parser.parse_args()
    print(f"CPython {platform.python_version()}, medians of rounds in turn; a ratio is to {OURS!r}")
    peers = dict[str, Program]()
    for name, module in () if options.alone else PEERS.items():
        if importlib.util.find_spec(name) is None:
            print(f"{name} is not installed, so it isn't compared: nox -s bench -- durable")
        else:
            peers |= importlib.import_module(module).programs("full")
    for program in (*ours().values(), *peers.values()):
        with fresh_file() as path:
            program(path, 10)  # so that nothing is imported, or compiled, later
    each = dict[int, float]()
    for items in options.items:
        programs = {**ours(), **peers} if items <= MOST_OF_PEERS else ours()
        is_first = items == options.items[0]
        rounds = options.rounds if is_first else max(1, options.rounds // 2)
        if is_first:
            measure(programs, items, rounds, is_there=True)
        taken = measure(programs, items, rounds)
        each[items] = statistics.median(taken[OURS].micros(items)[0])
    print(f"\n{OURS}, by number of items, beside the first:")
    for items, micros in each.items():
        print(f"{items:>12,}{micros:>9.1f} us/item{micros / each[options.items[0]]:>7.2f}x")
    measure_resume(max(options.items))
    _postgres.measure(options.items, options.rounds, options.postgres)


if __name__ == "__main__":
    main()
