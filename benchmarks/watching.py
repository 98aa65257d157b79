"""What a store answers to watchers, and how quickly.

``python -m benchmarks.watching make FILE --children 100000`` writes a finished run into a file of
SQLite: a fan-out of so many children, of which 1,000 fail in 5 ways; 1,000 children of two steps;
and a value of 1 MB in its state. ``python -m benchmarks.watching read FILE`` prints the median of
20 of each call of ``Inspects`` on that file, the longest, and the median of the processor time.

``python -m benchmarks.watching map`` measures what watching costs the process that executes runs: a
map with a body of one checkpoint, watched or not, with a display of progress, and with reports into
a file. ``python -m benchmarks.watching sample`` prints the processor time of one sample of 20,000
runs in flight, in one fan-out and in 1,000 nested ones.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import anyio
from anyio.lowlevel import checkpoint

from benchmarks._measure import in_turn, print_table
from shoal import Application, Graph, Limits, RunPath, Runtime, SQLiteStore, action, fan_out
from shoal._runtime.display import showing
from shoal.types import FanOut
from shoal.watch.progress import Boards, Terminal

RUN_ID = "watched"
RUN = RunPath(run_id=RUN_ID)
FAILURES = 1_000
CHAINED = 1_000
ROUNDS = 20

# -- the run that is watched -----------------------------------------------------------------------


@action(reads=["children"], writes=["large", "numbers", "urls"])
async def prepare(children: int) -> dict[str, object]:
    """Put 1 MB into the state."""
    urls = [f"https://example.org/{n}" for n in range(CHAINED)]
    return {"large": "x" * 1_000_000, "numbers": range(children), "urls": urls}


@action(reads=["n", "every"], writes=["page"])
async def work(n: int, every: int) -> dict[str, object]:
    """Fail now and then, in five ways."""
    await checkpoint()
    if n % every == every - 1:
        which = n // every % 5
        if which == 0:
            raise ConnectionError(f"connection to host-{n}.example.org refused")
        if which == 1:
            raise TimeoutError(f"no answer within {n / 1000:.1f} s")
        if which == 2:
            raise KeyError(f"field-{n}")
        if which == 3:
            raise ValueError(f"page {n} has no title")
        raise RuntimeError(f"status {500 + n % 4}")
    return {"title": f"page {n}", "size": n}


@action(reads=["url"], writes=["body"])
async def fetch(url: str) -> str:
    """First step of a chain."""
    await checkpoint()
    return f"<p>{url}</p>"


@action(reads=["body"], writes=["length"])
async def parse(body: str) -> int:
    """Second step of a chain."""
    if body.endswith("00</p>"):
        raise ValueError(f"no end in {body}")
    return len(body)


def program(file: Path) -> Application:
    """Return the application whose run is watched."""
    limits = Limits(100)
    pages = fan_out(
        work,
        over="numbers",
        item="n",
        into="pages",
        on_error="collect",
        errors_into="failed",
        limits=limits,
    )
    lengths = fan_out(
        Graph.chain(fetch, parse, name="read"),
        over="urls",
        item="url",
        key=str,
        take="length",
        into="lengths",
        on_error="collect",
        errors_into="unread",
        limits=limits,
    )
    store = SQLiteStore(file, synchronous="normal", durability="relaxed", max_update=1 << 30)
    return Application(Graph.chain(prepare, pages, lengths), store=store, name="watched")


def make(file: Path, children: int) -> None:
    """Write the file."""
    began = time.perf_counter()
    state = {"children": children, "every": max(1, children // FAILURES)}
    program(file).run_sync(state, id=RUN_ID)
    took, size = time.perf_counter() - began, file.stat().st_size
    print(f"{children:,} children in {took:.1f} s, {size / 1e6:.1f} MB")


# -- the calls of a watcher ------------------------------------------------------------------------


async def calls(store: SQLiteStore) -> Mapping[str, Callable[[], Awaitable[object]]]:
    """Return the calls that are measured, by what they ask for."""
    failed = (await store.rows(RUN, limit=1)).rows[0].path
    middle = await store.rows(RUN, order="failed first", status="succeeded", limit=1000)
    every = {
        "mark": store.mark,
        "counts": partial(store.counts, RUN),
        "tallies": partial(store.tallies, RUN),
        "failed_rows": partial(store.failed_rows, RUN),
        "timeline": partial(store.timeline, RUN),
        "times": partial(store.times, RUN),
        "row": partial(store.row, RUN),
        "row of a child": partial(store.row, failed),
        "text": partial(store.text, failed, "error"),
        "children_of_key": partial(store.children_of_key, RUN, "pages", 7),
        "entries": partial(store.entries, RUN),
        "entries, questions": partial(store.entries, RUN, kinds=("asked", "answered")),
        "spawned": partial(store.spawned, RUN),
        "rows, next page": partial(store.rows, RUN, status="succeeded", after=middle.after),
        "rows, of a large step": partial(store.rows, RUN, step="pages"),
        "rows, of a small step": partial(store.rows, RUN, step="lengths"),
        "rows, by key": partial(store.rows, RUN, key="77"),
        "rows, by a key of few": partial(store.rows, RUN, key="example.org/77"),
    }
    for order in ("failed first", "position", "ended last", "slowest"):
        every[f"rows, {order}"] = partial(store.rows, RUN, order=order)
        every[f"rows, {order}, failed"] = partial(store.rows, RUN, order=order, status="failed")
    return every


async def read(file: Path) -> None:
    """Print how long the calls take."""
    async with SQLiteStore(file, max_update=1 << 30) as store:
        print(f"{sum((await store.counts(RUN)).values()):,} children, milliseconds")
        print(f"{'':<32}{'median':>9}{'max':>9}{'cpu':>9}")
        for name, call in (await calls(store)).items():
            took: list[float] = []
            cpu: list[float] = []
            for _ in range(ROUNDS):
                began, began_cpu = time.perf_counter(), time.process_time()
                await call()
                took.append((time.perf_counter() - began) * 1000)
                cpu.append((time.process_time() - began_cpu) * 1000)
            print(
                f"{name:<32}{statistics.median(took):>9.2f}{max(took):>9.2f}"
                f"{statistics.median(cpu):>9.2f}"
            )


# -- what watching costs the runs ------------------------------------------------------------------


@action(reads=["n"], writes=["double"])
async def double(n: int) -> int:
    """Await one checkpoint."""
    await checkpoint()
    return n + n


doubles = fan_out(double, over="numbers", item="n", into="doubles", limits=Limits(100))


def mapped(items: int, *, watch: bool, file: Path | None = None) -> Callable[[], object]:
    """Return a function that runs the map."""

    def run() -> None:
        store = None
        if file is not None:
            file.unlink(missing_ok=True)
            store = SQLiteStore(file, synchronous="normal", durability="relaxed")
        Application(doubles, store=store, watch=watch).run_sync({"numbers": range(items)})

    return run


def with_progress(items: int) -> None:
    """Run the map with a live display, on a terminal that throws everything away."""

    async def run() -> None:
        async with Runtime(watch=True) as runtime:
            display = Boards(Terminal(io.StringIO()))
            with showing(display, runtime.watch_reports):
                await runtime.run(Application(doubles), {"numbers": range(items)})

    anyio.run(run)


def measure_map(items: int, rounds: int) -> None:
    """Print the time per item, and ratios to the runs that aren't watched."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "runs.db"
        print_table(
            in_turn(
                {
                    "not watched": mapped(items, watch=False),
                    "watched": mapped(items, watch=True),
                    "with a display of progress": partial(with_progress, items),
                },
                rounds,
            ),
            items,
            "not watched",
        )
        print_table(
            in_turn(
                {
                    "SQLiteStore, not watched": mapped(items, watch=False, file=file),
                    "SQLiteStore, with reports": mapped(items, watch=True, file=file),
                },
                rounds,
            ),
            items,
            "SQLiteStore, not watched",
        )


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
    """Write a file, read one, or measure what watching costs."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watching", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("make", help="write a file with a run in it")
    making.add_argument("file", type=Path)
    making.add_argument("--children", type=int, default=100_000)
    reading = commands.add_parser("read", help="measure each call on that file")
    reading.add_argument("file", type=Path)
    mapping = commands.add_parser("map", help="measure what watching costs a map")
    mapping.add_argument("--items", type=int, default=100_000)
    mapping.add_argument("--rounds", type=int, default=5)
    sampling = commands.add_parser("sample", help="measure a sample of many runs in flight")
    sampling.add_argument("--runs", type=int, default=20_000)
    options = parser.parse_args()
    if options.command == "make":
        make(options.file, options.children)
    elif options.command == "map":
        measure_map(options.items, options.rounds)
    elif options.command == "sample":
        measure_sample(options.runs)
    else:
        anyio.run(read, options.file)


if __name__ == "__main__":
    main()
