"""Memory follows what is in flight, not what there is to do."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from weakref import WeakSet

import anyio
import pytest

from shoal import Application, Done, Graph, Limits, MemoryStore, Runtime, State, action, fan_out
from shoal.stores import Batch
from shoal.testing import run_virtual
from shoal.types import FanOut

SLACK = 2_000_000  # bytes that a peak may be above that of a hundredth of the elements


@action(reads=["item"], writes=["out"])
async def echo(item: int) -> int:
    await anyio.lowlevel.checkpoint()
    return item


@action(reads=["item"], writes=["out"], executor="loop")
def at_once(item: int) -> int:
    return item


def count(state: State, _: Done) -> State:
    return state.increment(count=1)


def count_slowly(state: State, outcome: Done) -> State:
    # Slow beside the children, which end at once: it, not they, sets the pace.
    return state.update(sums=sum(range(50)) + outcome.position).increment(count=1)


def count_by_bucket(state: State, outcome: Done) -> State:
    bucket = outcome.element % 10
    counts = state["counts"]
    return state.put("counts", bucket, counts.get(bucket, 0) + 1).increment(count=1)


def numbers(state: State) -> Iterator[int]:
    yield from range(state["n"])


def three_more(state: State, outcome: Done) -> Iterable[int]:
    """Keep the frontier below 100 wide: each of the first levels has three, then one."""
    element, n = outcome.element, state["n"]
    if element < 40:
        following = range(3 * element + 1, 3 * element + 4)
    else:
        following = range(element + 81, element + 82)
    return [item for item in following if item < n]


def fan_out_of(kind: str) -> FanOut:
    common: dict[str, Any] = {"reads": ["n"], "name": "f", "limits": Limits(100)}
    match kind:
        case "generator":
            return fan_out(echo, over=numbers, reduce=count, writes=["count"], **common)
        case "grow":
            return fan_out(
                echo, over=lambda _: [0], grow=three_more, reduce=count, writes=["count"], **common
            )
        case "slow reducer":
            return fan_out(
                at_once, over=numbers, reduce=count_slowly, writes=["count", "sums"], **common
            )
        case _:
            return fan_out(
                at_once, over=numbers, reduce=count_by_bucket, writes=["count", "counts"], **common
            )


KINDS = ["generator", "grow", "slow reducer", "overwriting"]


def peak(kind: str, n: int, backend: Literal["asyncio", "trio"]) -> int:
    application = Application(fan_out_of(kind))
    gc.collect()
    tracemalloc.start()
    try:
        result = application.run_sync({"n": n, "count": 0, "counts": {}}, backend=backend)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert result.state["count"] == (n if kind != "grow" else result.outcomes("f").done)
    assert result.state["count"] >= n // 2
    return most


@pytest.mark.sweep
@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_peak_does_not_grow_with_the_number_of_elements(
    kind: str, backend: Literal["asyncio", "trio"]
) -> None:
    peak(kind, 200, backend)  # imports and caches
    assert peak(kind, 4_000, backend) <= peak(kind, 1_000, backend) + SLACK // 10


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_peak_at_a_million_is_that_at_ten_thousand(
    kind: str, backend: Literal["asyncio", "trio"], capsys: pytest.CaptureFixture[str]
) -> None:
    many = 1_000_000 if backend == "asyncio" else 100_000
    few, most = peak(kind, 10_000, backend), peak(kind, many, backend)
    with capsys.disabled():
        print(f"\n{kind}, {backend}: {few / 1e6:.2f} MB at 10,000, {most / 1e6:.2f} MB at {many:,}")
    assert most <= few + SLACK


# -- whatever is slow ------------------------------------------------------------------------------


class SlowStore(MemoryStore):  # pyright: ignore[reportGeneralTypeIssues] # a test's own
    """Takes its time, and forgets what it has acknowledged, as one with a disk does."""

    def save(self, batch: Batch) -> Any:
        return anyio.sleep(0.01)


class Elements:
    """Elements of a thousand bytes each, made as they are pulled; counted until they are freed."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.pulled = self.done = self.ahead = 0
        self.alive: WeakSet[Any] = WeakSet()
        self.most_alive = 0

    def __call__(self, state: State) -> Iterator[Page]:
        for number in range(self.n):
            page = Page(number, bytes(1000))
            self.alive.add(page)
            self.pulled += 1
            self.ahead = max(self.ahead, self.pulled - self.done)
            self.most_alive = max(self.most_alive, len(self.alive))
            yield page
            del page


@dataclass(eq=False)
class Page:
    number: int
    text: bytes


@action(reads=["page"], writes=["out"])
async def words(page: Page) -> int:
    await anyio.lowlevel.checkpoint()
    return len(page.text)


class Paced:
    """A run of ``n`` elements in which one thing is slow, and what it came to."""

    def __init__(self, slow: str, n: int, backend: Literal["asyncio", "trio"]) -> None:
        self.slow = slow
        self.elements = Elements(n)
        gc.collect()
        tracemalloc.start()
        try:
            run_virtual(self.run, backend=backend)
            self.peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    def reduce(self, state: State, outcome: Done) -> State:
        self.elements.done += 1
        if self.slow == "reducer":  # on the loop, so nothing else gets anywhere meanwhile
            sum(range(2000))
        return state.increment(count=1)

    async def run(self) -> None:
        step = fan_out(
            words,
            over=self.elements,
            item="page",
            reduce=self.reduce,
            reads=[],
            writes=["count"],
            name="pages",
            limits=Limits(20),
            store=SlowStore() if self.slow == "store" else None,
        )
        async with Application(step).open({"count": 0}, buffer=50) as run:
            if self.slow == "events":
                async for _ in run:
                    await anyio.sleep(0.001)
            result = await run.result()
        assert result.state["count"] == self.elements.n
        self.seconds = anyio.current_time()


@pytest.mark.sweep
@pytest.mark.timeout(120)
@pytest.mark.parametrize("slow", ["events", "reducer", "store"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("n", [50, pytest.param(1_000, marks=pytest.mark.slow)])
def test_memory_is_bounded_whatever_is_slow(
    slow: str, backend: Literal["asyncio", "trio"], n: int
) -> None:
    """The source waits for it: what is pulled ahead, and what is alive, doesn't grow with it."""
    Paced(slow, 100, backend)  # imports and caches
    few, many = Paced(slow, n, backend), Paced(slow, 10 * n, backend)
    for paced in few, many:
        assert paced.elements.ahead <= 20 + 1
        assert paced.elements.most_alive <= 2 * 20 + 50 + 50  # in flight, and in the buffer
    assert many.peak <= few.peak + SLACK // 5
    if slow != "reducer":  # whose time is the machine's
        assert many.seconds >= 8 * few.seconds > 0


# -- many runs at once -----------------------------------------------------------------------------


@action(reads=["n"], writes=["ns"])
async def list_some(n: int) -> list[int]:
    return [n, n + 1]


@action(reads=["item"], writes=["out"])
async def wait_for(item: int, gate: anyio.Event, inside: list[int]) -> int:
    inside[0] += 1
    await gate.wait()
    return item


async def live_together(count: int, rounds: int) -> list[tuple[int, int]]:
    """Let so many runs be in the middle of a map at once, in each of the rounds.

    Returns the bytes that are in use while they wait, and after they have ended, above those of
    before, in each round.
    """
    step = fan_out(wait_for, over="ns", key=int, into="out")
    app = Application(Graph.chain(list_some, step))
    used: list[tuple[int, int]] = []

    async def one(runtime: Runtime, n: int, **inputs: object) -> None:
        result = await runtime.run(app, {"n": n}, inputs=inputs)
        assert result.state["out"] == {n: n, n + 1: n + 1}

    async with Runtime() as runtime:
        await live_round(runtime, one, 50)  # imports and caches
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(rounds):
            waiting = await live_round(runtime, one, count)
            gc.collect()
            used.append((waiting - before, tracemalloc.get_traced_memory()[0] - before))
    return used


async def live_round(runtime: Runtime, one: Any, count: int) -> int:
    gate, inside, waiting = anyio.Event(), [0], 0
    async with anyio.create_task_group() as tasks:
        for n in range(count):
            tasks.start_soon(partial(one, runtime, n, gate=gate, inside=inside))
        while inside[0] < 2 * count:
            await anyio.sleep(1)
        waiting, _ = tracemalloc.get_traced_memory()
        gate.set()
    return waiting


def bytes_of(count: int, rounds: int, backend: Literal["asyncio", "trio"]) -> list[tuple[int, int]]:
    gc.collect()
    tracemalloc.start()
    try:
        return run_virtual(live_together, count, rounds, backend=backend)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(
    "count",
    [
        pytest.param(20, marks=pytest.mark.sweep),
        pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(1200)]),
    ],
)
def test_runs_side_by_side_leave_nothing_behind(
    count: int, backend: Literal["asyncio", "trio"], capsys: pytest.CaptureFixture[str]
) -> None:
    """Memory follows what is in flight: it is the same in each round, and given back after it."""
    (first, left), *others = bytes_of(count, 3, backend)
    if count == 10_000:
        with capsys.disabled():
            print(
                f"\n{count:,} runs at once, {backend}: {first / count / 1000:.1f} kB each, "
                f"{left / 1e6:.2f} MB after they have ended; then "
                + ", ".join(f"{peak / 1e6:.1f} and {after / 1e6:.2f} MB" for peak, after in others)
            )
    for waiting, after in others:
        assert waiting <= first * 1.05 + SLACK / 10
        assert after <= left + SLACK / 10
    assert left <= first / 20 + SLACK / 10
