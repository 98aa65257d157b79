"""A durable map over many elements, 100 in flight, compared with LangGraph and Burr.

In every program, the body awaits one real checkpoint, its result is in the file before the map
continues or its child counts as ended, and the results end up in a dict by key. All wait for the
disk in the same way (``synchronous=full`` in WAL mode). ``_langgraph`` and ``_burr`` describe the
setup of the peers, which are compared if they are installed, as ``nox -s bench`` does.

``python -m benchmarks.durable`` prints the time and the file size per item, both for a file that
the run creates and for one that exists already.
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
"""Maps over so many items, and keeps the results in a file."""

OURS = "shoal, durability=sync, full"
PEERS = {"langgraph": "benchmarks._langgraph", "burr": "benchmarks._burr"}
MOST_OF_PEERS = 10_000
"""The most items for the peers, because ten times as many take them a minute or far longer."""

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


# -- the measurement -----------------------------------------------------------------------------


@contextmanager
def fresh_file() -> Generator[Path]:
    """Yield the path of a file that doesn't exist yet, and delete its directory afterwards."""
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=".") as directory:
        # here, which is on a disk; /tmp may be in memory
        yield Path(directory) / "runs.db"


@dataclass
class Taken:
    """The figures of the runs of one program."""

    seconds: list[Seconds] = field(default_factory=list[Seconds])
    size: int = 0

    def micros(self, items: int) -> tuple[list[float], list[float]]:
        """Return microseconds per item of each run: elapsed time and processor time."""
        wall, cpu = zip(*self.seconds, strict=True)
        return [one / items * 1e6 for one in wall], [one / items * 1e6 for one in cpu]


def measure(
    programs: Mapping[str, Program], items: int, rounds: int, *, is_there: bool = False
) -> dict[str, Taken]:
    """Run all programs in turn, each with its own file; print and return their figures."""
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
    """Measure how long it takes to load a run that has succeeded."""
    with fresh_file() as path:
        app = Application(doubles, store=SQLiteStore(path))
        app.run_sync({"numbers": range(items)}, id="x")
        took = timed(lambda: app.run_sync(id="x")).wall
        print(f"\nloading a run of {items:,} items takes {took / items * 1e6:.1f} us per item")


def main() -> None:
    """Measure, as the arguments say."""
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
            print(f"{name} is not installed, so it is not compared: nox -s bench -- durable")
        else:
            peers |= importlib.import_module(module).programs("full")
    for program in (*ours().values(), *peers.values()):
        with fresh_file() as path:
            program(path, 10)  # so that no later import or compilation is measured
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
