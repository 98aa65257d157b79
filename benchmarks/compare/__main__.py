"""``python -m benchmarks.compare``: shoal beside loops written by hand and other libraries.

Each contender has a process of its own. They take turns, so that what else the machine does hits
all of them; every result is checked. ``--check`` compares with the ratios in ``ratios.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.compare.plot import plot
from benchmarks.compare.worker import MISSING
from benchmarks.compare.workloads import WORKLOADS

ROOT = Path(__file__).parents[2]
RATIOS = Path(__file__).with_name("ratios.json")
WORSE = 1.15
"""A ratio that has grown by more than this factor is reported."""
OURS = "shoal"


@dataclass(frozen=True)
class Contender:
    """One program to measure."""

    name: str
    module: str
    key: str
    """Its name in its module."""
    package: str = ""
    """Its distribution, whose version is shown."""
    kind: str = "peer"


CONTENDERS = (
    Contender(OURS, "ours", "shoal", "shoal", kind="ours"),
    Contender("gather + Semaphore", "by_hand", "gather", kind="hand"),
    Contender("TaskGroup + Semaphore", "by_hand", "taskgroup", kind="hand"),
    Contender("trio nursery + CapacityLimiter", "by_hand", "nursery", "trio", kind="hand"),
    Contender("anyio group + CapacityLimiter", "by_hand", "anyio", "anyio", kind="hand"),
    Contender("aiometer", "with_aiometer", "aiometer", "aiometer"),
    Contender("Burr", "with_burr", "burr", "apache-burr"),
    Contender("Burr, as it comes", "with_burr", "plain", "apache-burr"),
    Contender("LangGraph", "with_langgraph", "asynchronous", "langgraph"),
    Contender("LangGraph, blocking saver", "with_langgraph", "blocking", "langgraph"),
    Contender("pydantic-graph", "with_pydantic_graph", "pydantic", "pydantic-graph"),
    Contender("llama-index-workflows", "with_llama", "llama", "llama-index-workflows"),
    Contender("DBOS", "with_dbos", "dbos", "dbos"),
    Contender("Prefect", "with_prefect", "prefect", "prefect"),
)


@dataclass
class Taken:
    """What the rounds of one contender took."""

    cpu: list[float] = field(default_factory=list[float])
    wall: list[float] = field(default_factory=list[float])
    kib: float = 0.0


class Process:
    """The process of a contender."""

    def __init__(self, python: str, source: str, contender: Contender, *cell: str) -> None:
        module = f"benchmarks.compare.{contender.module}"
        path = os.pathsep.join(filter(None, [source, str(ROOT), os.environ.get("PYTHONPATH", "")]))
        self.process = subprocess.Popen(
            [
                *(python, "-m", "benchmarks.compare.worker"),
                *(module, contender.key, contender.package, *cell),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "0"},
        )

    def answer(self) -> dict[str, Any] | None:
        """Return what it says next; None if it has no program for the work."""
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        line = self.process.stdout.readline()
        if line:
            found: dict[str, Any] = json.loads(line)
            return found
        if self.process.wait() == MISSING:
            return None
        raise SystemExit(self.process.stderr.read()[-3000:])

    def measure(self) -> dict[str, float]:
        """Run the program once."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        found = self.answer()
        assert found is not None
        return found

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


def start_up(rounds: int, pythons: dict[str, str], sources: dict[str, str]) -> dict[str, Taken]:
    """Measure what importing each library takes, above an interpreter that imports nothing."""
    taken: dict[str, Taken] = {}
    imports = {
        OURS: "shoal",
        **{name: "shoal" for name in sources if name != OURS},
        "asyncio": "asyncio",
        "httpx": "httpx",
        "Burr": "burr.core",
        "LangGraph": "langgraph.graph",
        "pydantic-graph": "pydantic_graph",
        "llama-index-workflows": "workflows",
        "DBOS": "dbos",
        "Prefect": "prefect",
    }
    for counted in range(rounds + 1):
        for name, module in imports.items():
            python = pythons.get(name, sys.executable)
            code = (
                "import time; w, c = time.perf_counter(), time.process_time(); "
                f"import {module}; print(time.perf_counter() - w, time.process_time() - c)"
            )
            env = {**os.environ}
            if name in sources:
                env["PYTHONPATH"] = sources[name]
            ran = subprocess.run(
                [python, "-c", code], capture_output=True, text=True, env=env, check=False
            )
            if ran.returncode == 0 and counted:
                wall, cpu = map(float, ran.stdout.split()[-2:])
                one = taken.setdefault(name, Taken())
                one.wall.append(wall)
                one.cpu.append(cpu)
    return taken


def measure(
    cell: tuple[str, str, int, int], contenders: Sequence[Contender], options: Any
) -> dict[str, Taken]:
    """Let all contenders do the work of one cell in turn."""
    if cell[0] == "start":
        return start_up(options.rounds, options.pythons, options.sources)
    processes: dict[str, Process] = {}
    base = WORKLOADS[cell[0]].base
    if options.check or options.write:  # beside the loop by hand that ratios compare with
        keys = ("shoal", base) if base else ("shoal", "gather", "nursery")
        contenders = [one for one in contenders if one.key in keys]
    for contender in contenders:
        for name in options.sources if contender.name == OURS else (contender.name,):
            process = Process(
                options.pythons.get(name, sys.executable),
                options.sources.get(name, ""),
                contender,
                *map(str, cell),
            )
            ready = process.answer()
            if ready is None:
                process.close()
                continue
            processes[name] = process
            if contender.package:
                options.versions[contender.package] = ready["version"]
    taken = {name: Taken() for name in processes}
    slow: set[str] = set()
    for _ in range(options.rounds):
        for name, process in processes.items():
            if name in slow:
                continue
            took = process.measure()
            taken[name].cpu.append(took["cpu"])
            taken[name].wall.append(took["wall"])
            taken[name].kib = max(taken[name].kib, took["kib"])
            if took["wall"] > options.patience:
                slow.add(name)  # one round of it is enough
    for process in processes.values():
        process.close()
    return taken


def cells(options: Any) -> Iterator[tuple[str, str, int, int]]:
    """Go through the workloads that were asked for, with their sizes."""
    for name in options.workloads or WORKLOADS:
        found = WORKLOADS[name]
        sizes = (*found.sizes, *(found.more if options.all else ()))
        for items, limit in options.sizes or sizes:
            for backend in options.backends:
                yield name, backend, items, limit


def named(cell: tuple[str, str, int, int]) -> str:
    workload, backend, items, limit = cell
    return f"{workload} {items} {limit} {backend}"


def ratio(of: Taken, base: Taken, clock: str) -> float:
    """Return the median of the rounds' ratios."""
    return statistics.median(
        a / b for a, b in zip(getattr(of, clock), getattr(base, clock), strict=False)
    )


def show(cell: tuple[str, str, int, int], taken: dict[str, Taken]) -> list[dict[str, Any]]:
    """Print the table of one cell; return its rows."""
    workload, backend, items, limit = cell
    found = WORKLOADS[workload]
    per = f"us/{found.unit}"
    print(f"\n{found.title}: {items:,}, {limit:,} in flight, {backend}; ratios of {found.clock}")
    print(f"{'':<34}{'cpu ' + per:>24}{'min':>10}{'wall':>10}{'peak MB':>9}{'ratio':>8}")
    rows: list[dict[str, Any]] = []
    base = next((one for name, one in taken.items() if name != OURS), None)
    for name, one in taken.items():
        of = 1.0 if base is None else ratio(one, base, found.clock)
        cpu, least, wall = (
            value / items * 1e6
            for value in (statistics.median(one.cpu), min(one.cpu), statistics.median(one.wall))
        )
        print(f"{name:<34}{cpu:>24.2f}{least:>10.2f}{wall:>10.2f}{one.kib / 1024:>9.1f}{of:>8.2f}")
        rows.append(
            {
                "name": name,
                "cpu": cpu,
                "min": least,
                "wall": wall,
                "mb": one.kib / 1024,
                "ratio": of,
            }
        )
    if found.unit == "child in flight":
        each = ", ".join(f"{name} {one.kib / items:.2f}" for name, one in taken.items())
        print(f"KiB for each child in flight: {each}")
    return rows


def flatness(tables: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Say by how much the time of an item depends on how many there are, as far as measured."""
    sizes: dict[tuple[str, str, str], dict[int, float]] = {}
    for cell, rows in tables.items():
        workload, items, limit, backend = cell.rsplit(" ", 3)
        if WORKLOADS[workload].unit == "item":
            sizes.setdefault((workload, limit, backend), {})[int(items)] = _ours(rows)["cpu"]
    for (workload, limit, backend), cpu in sizes.items():
        if len(cpu) > 1:
            times = max(cpu.values()) / min(cpu.values())
            yield (
                f"{workload}, {limit} in flight, {backend}: from {min(cpu):,} to {max(cpu):,} "
                f"items the longest time of an item is {times:.2f} times the shortest"
            )


def main() -> int:
    """Measure as the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=", ".join(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--backends", nargs="+", default=["asyncio"], help="asyncio, trio")
    parser.add_argument("--sizes", nargs="+", type=_size, metavar="ITEMS:LIMIT")
    parser.add_argument("--all", action="store_true", help="the sizes that take minutes, too")
    parser.add_argument("--alone", action="store_true", help="without other libraries")
    parser.add_argument("--before", metavar="SRC", help="the source of another shoal, as well")
    parser.add_argument("--python", nargs="*", default=[], metavar="NAME=PATH", help="of a peer")
    parser.add_argument("--patience", type=float, default=20.0, help="seconds for further rounds")
    parser.add_argument("--check", action="store_true", help="compare with ratios.json")
    parser.add_argument("--write", action="store_true", help="write ratios.json")
    parser.add_argument("--plot", metavar="SVG", help="draw the ratios")
    options = parser.parse_args()
    options.versions = dict[str, str]()
    options.pythons = dict(one.split("=", 1) for one in options.python)
    options.sources = {OURS: ""} | ({"shoal, before": options.before} if options.before else {})
    contenders = [one for one in CONTENDERS if not options.alone or one.kind != "peer"]
    machine = f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()}"
    print(f"CPython {platform.python_version()}, {machine}; {options.rounds} rounds in turn")
    tables: dict[str, list[dict[str, Any]]] = {}
    committed: dict[str, float] = json.loads(RATIOS.read_text()) if RATIOS.exists() else {}
    worse: list[str] = []
    for cell in cells(options):
        if options.check and named(cell) not in committed:
            continue
        rows = tables[named(cell)] = show(cell, measure(cell, contenders, options))
        ours = _ours(rows)["ratio"]
        if options.check and ours > committed[named(cell)] * WORSE:
            worse.append(f"{named(cell)}: {ours:.2f}, was {committed[named(cell)]:.2f}")
    for line in flatness(tables):
        print(f"\n{line}")
    if options.write:
        found = {
            cell: round(_ours(rows)["ratio"], 2) for cell, rows in tables.items() if len(rows) > 1
        }
        RATIOS.write_text(json.dumps(committed | found, indent=2, sort_keys=True) + "\n")
    if options.plot:
        versions = ", ".join(f"{name} {version}" for name, version in options.versions.items())
        note = f"CPython {platform.python_version()}, {machine}, {versions}"
        Path(options.plot).write_text(plot(tables, note))
    print("\n" + ", ".join(f"{name} {version}" for name, version in options.versions.items()))
    for line in worse:
        print(f"worse by over {WORSE - 1:.0%}: {line}")
    return 1 if worse else 0


def _ours(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return next(row for row in rows if row["name"] == OURS)


def _size(text: str) -> tuple[int, int]:
    items, limit = map(int, text.split(":"))
    return items, limit


if __name__ == "__main__":
    raise SystemExit(main())
