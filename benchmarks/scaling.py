"""What many items take: ``python -m benchmarks.scaling`` prints the tables of ``docs/scaling.md``.

A few constants, each measured on one machine, and a simulation of processes that take partitions of
the items, one after another, and die now and then. ``--measure`` measures the constants again here;
they are processor time, which other programs on the machine hardly change.
"""

from __future__ import annotations

import argparse
import heapq
import os
import random
import tempfile
import tracemalloc
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from benchmarks._measure import timed

ITEMS = 1_000_000_000
PARTS = 1_000
CORES = 64
MEAN_LIFE = 24 * 3600.0
"""Seconds after which a process dies, on average: more often than most do."""
LEASE = 15.0
"""Seconds until another machine takes over the run of a dead process."""
IN_FLIGHT = 100
"""Items that were at work in a process that dies, and run again."""


@dataclass(frozen=True)
class Costs:
    """What was measured: seconds of processor time, and bytes, each for one item."""

    loop: float = 18e-6
    """An action on the loop that does nothing, without a store."""
    sqlite: float = 41e-6
    """The same with its result in an ``SQLiteStore``."""
    postgres: float = 50e-6
    """The same with a ``PostgresStore``, in the process that runs it."""
    server: float = 18e-6
    """What that costs the server of PostgreSQL."""
    driver: float = 36e-6
    """A plain function in a worker: what it costs the process of the run, without a store."""
    worker: float = 8e-6
    """What it costs the worker."""
    sqlite_bytes: float = 143
    postgres_bytes: float = 327
    state_bytes: float = 221
    """Memory of the process for a number with its key, if ``into`` keeps them all."""

    def saving(self, store: str) -> float:
        """Return what saving costs the process of the run."""
        return {"none": self.loop, "SQLite": self.sqlite, "PostgreSQL": self.postgres}[
            store
        ] - self.loop

    def size(self, store: str) -> float:
        return {"none": 0.0, "SQLite": self.sqlite_bytes, "PostgreSQL": self.postgres_bytes}[store]


MEASURED = Costs()
STORES = ("none", "SQLite", "PostgreSQL")
WORKS = {"nothing": 0.0, "50 µs": 50e-6, "1 ms": 1e-3, "5 ms": 5e-3, "50 ms": 50e-3}
"""What an item computes: processor time in Python."""


# -- one process -----------------------------------------------------------------------------------


def one_process(costs: Costs) -> Iterator[list[str]]:
    """Yield rows: what one process carries, with all work in the loop, and as a driver."""
    for store in STORES:
        here = costs.loop + costs.saving(store)
        there = costs.driver + costs.saving(store)
        cores = [f"{fed(costs, store, work):,.0f}" for work in (1e-3, 5e-3, 50e-3)]
        yield [store, f"{here * 1e6:.0f} µs", about(1 / here), about(1 / there), *cores]


def fed(costs: Costs, store: str, work: float) -> float:
    """Return how many cores one process keeps at work, if items compute in worker processes."""
    return (work + costs.worker) / (costs.driver + costs.saving(store))


# -- many ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Taken:
    """What all items took."""

    seconds: float
    repeated: int
    """Items that ran twice."""
    bound: str


def simulate(costs: Costs, work: float, store: str, servers: int = 0) -> Taken:
    """Let a process on each core take parts until none is left, with deaths at random times.

    A process that dies loses what is in flight. Its part is continued once the lease has expired.
    A server that is asked for more than it can do slows all processes down alike.
    """
    chance = random.Random(19)  # the same for each row
    each = work + costs.loop + costs.saving(store)
    bound = "cores"
    if servers:
        slowest = CORES * costs.server / servers  # one core of a server for each
        if slowest > each:
            each, bound = slowest, "the server"
    free = [0.0] * CORES
    repeated = 0
    for _ in range(PARTS):
        left, now = ITEMS // PARTS, heapq.heappop(free)
        while (life := chance.expovariate(1 / MEAN_LIFE)) < left * each:
            left -= max(0, int(life / each) - IN_FLIGHT)
            now += life + LEASE
            repeated += IN_FLIGHT
        heapq.heappush(free, now + left * each)
    return Taken(max(free), repeated, bound)


def many(costs: Costs) -> Iterator[list[str]]:
    """Yield rows: what 10⁹ items take on ``CORES`` cores."""
    for name, work in WORKS.items():
        alone = simulate(costs, work, "SQLite")
        one = simulate(costs, work, "PostgreSQL", servers=1)
        eight = simulate(costs, work, "PostgreSQL", servers=8)
        yield [
            name,
            span(alone.seconds),
            span(one.seconds) + (" (server)" if one.bound != "cores" else ""),
            span(eight.seconds) + (" (server)" if eight.bound != "cores" else ""),
            f"{alone.repeated:,}",
        ]


def sizes(costs: Costs) -> Iterator[list[str]]:
    """Yield rows: what 10⁹ results take on disks, and in memory if one state kept them."""
    for store in ("SQLite", "PostgreSQL"):
        yield [store, f"{ITEMS * costs.size(store) / 1e9:,.0f} GB"]
    yield ["in memory, in one state", f"{ITEMS * costs.state_bytes / 1e9:,.0f} GB"]


# -- words -----------------------------------------------------------------------------------------


def about(rate: float) -> str:
    """Return a rate with two digits that mean something."""
    digits = 10 ** (len(str(int(rate))) - 2)
    return f"{round(rate / digits) * digits:,}"


def span(seconds: float) -> str:
    """Return a time as people say it."""
    for unit, length in (("days", 86400.0), ("h", 3600.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds / 60:.0f} min"


def table(head: list[str], rows: Iterator[list[str]]) -> list[str]:
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def tables(costs: Costs = MEASURED) -> dict[str, list[str]]:
    """Return the tables of the page, by name."""
    constants = [
        ["an action on the loop that does nothing", f"{costs.loop * 1e6:.0f} µs"],
        ["the same with `SQLiteStore`", f"{costs.sqlite * 1e6:.0f} µs"],
        ["the same with `PostgresStore`", f"{costs.postgres * 1e6:.0f} µs"],
        ["that, in PostgreSQL's server", f"{costs.server * 1e6:.0f} µs"],
        [
            "a function in a worker process, for the process of the run",
            f"{costs.driver * 1e6:.0f} µs",
        ],
        ["that, for the worker", f"{costs.worker * 1e6:.0f} µs"],
        ["a result in SQLite's file", f"{costs.sqlite_bytes:.0f} bytes"],
        [
            "a result in PostgreSQL's tables, with their indexes",
            f"{costs.postgres_bytes:.0f} bytes",
        ],
        ["a number in the state, by key, if `into=` keeps it", f"{costs.state_bytes:.0f} bytes"],
    ]
    cores = ["cores fed, 1 ms", "5 ms", "50 ms"]
    carries = ["store", "CPU per item", "items/s in the loop", "items/s through workers", *cores]
    takes = ["an item computes", "SQLite, a file for each process"]
    takes += ["PostgreSQL on one core", "PostgreSQL on 8 cores", "items that run twice"]
    return {
        "constants": table(["for one item", "processor time, or size"], iter(constants)),
        "one process": table(carries, one_process(costs)),
        "many": table(takes, many(costs)),
        "size": table(["store", "10⁹ results"], sizes(costs)),
    }


# -- measuring -------------------------------------------------------------------------------------


def measure(items: int = 20_000, rounds: int = 3) -> Costs:
    """Measure all constants on this machine; PostgreSQL's only if it is installed."""
    from benchmarks.durable import fresh_file  # noqa: PLC0415 # not for printing
    from benchmarks.executors import Shoal  # noqa: PLC0415
    from benchmarks.map import by_shoal, doubles  # noqa: PLC0415
    from shoal import Application, SQLiteStore  # noqa: PLC0415
    from shoal.executors import Processes  # noqa: PLC0415

    def least(run: partial[object]) -> float:
        return min(timed(run).cpu for _ in range(rounds)) / items

    found = asdict(MEASURED)
    found["loop"] = least(partial(by_shoal(Application(doubles), items)))
    with fresh_file() as path:
        store = SQLiteStore(path)
        found["sqlite"] = least(partial(by_shoal(Application(doubles, store=store), items)))
        size = sum(one.stat().st_size for one in path.parent.iterdir())
        found["sqlite_bytes"] = size / items / rounds
    there = Shoal(Processes(1))
    before = _processor_time_below()
    found["driver"] = least(partial(there.map, [1] * items))
    found["worker"] = (_processor_time_below() - before) / items / rounds
    there.close()
    tracemalloc.start()
    kept = Application(doubles).run_sync({"numbers": range(items)})
    found["state_bytes"] = tracemalloc.get_traced_memory()[0] / items
    assert len(kept.state["doubles"]) == items
    tracemalloc.stop()
    found |= _measure_postgres(items, rounds)
    return Costs(**found)


def _measure_postgres(items: int, rounds: int) -> dict[str, float]:
    import psycopg  # noqa: PLC0415 # a group of its own

    from benchmarks import _postgres  # noqa: PLC0415
    from benchmarks.map import by_shoal, doubles  # noqa: PLC0415
    from shoal import Application  # noqa: PLC0415
    from tests.stores.postgres import private_server, programs  # noqa: PLC0415

    installed = programs()
    if installed is None:
        return {}
    ours: list[float] = []
    theirs: list[float] = []
    sizes: list[float] = []
    with tempfile.TemporaryDirectory(dir=".") as folder:
        Path(folder).chmod(0o755)
        home = Path(folder).absolute()
        with (
            private_server(installed, {"shared_buffers": "128MB"}, home) as server,
            psycopg.connect(server.address(), autocommit=True) as connection,
        ):
            row = connection.execute("SHOW data_directory").fetchone()
            assert row is not None
            master = int((Path(row[0]) / "postmaster.pid").read_text().split()[0])
            for _ in range(rounds):
                with _postgres.fresh_schema(connection):
                    store = _postgres.store(server.address(), {})
                    before = _processor_time_below(master)
                    app = Application(doubles, store=store)
                    ours.append(timed(by_shoal(app, items)).cpu / items)
                    theirs.append((_processor_time_below(master) - before) / items)
                    sizes.append(_postgres.size(connection) / items)
    return {"postgres": min(ours), "server": min(theirs), "postgres_bytes": sizes[-1]}


def _processor_time_below(pid: int | None = None) -> float:
    """Return the processor time of a process and its descendants; of ours without itself."""
    of, parents = dict[int, float](), dict[int, int]()
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            parents[int(entry.name)] = int(fields[1])
            of[int(entry.name)] = sum(map(int, fields[11:15]))  # its ended children's too
    top = os.getpid() if pid is None else pid

    def is_below(one: int | None) -> bool:
        while one is not None and one != top:
            one = parents.get(one)
        return one == top

    ticks = sum(time for one, time in of.items() if is_below(one) and (one != top or pid))
    return ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    """Print the tables, of the measured constants or of new ones."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--measure", action="store_true", help="measure the constants here")
    options = parser.parse_args()
    for name, lines in tables(measure() if options.measure else MEASURED).items():
        print(f"\n{name}\n")
        print("\n".join(lines))


if __name__ == "__main__":
    main()
