"""The engine of fan-outs: fairness, back-pressure, and how many tasks it takes."""

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import anyio
import pytest
import trio.testing
from anyio.lowlevel import checkpoint

from shoal import END, Application, Graph, Limits, Outcome, Runtime, State, action, fan_out, when
from shoal.stores._protocol import Batch, NullStore
from shoal.testing import VirtualTimeLoop, no_leaks

pytestmark = pytest.mark.anyio


class Keeping(NullStore):
    """A store that keeps its batches, each save taking as long as told."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.batches: list[Batch] = []
        self.child_ends = 0
        self.on_save: Callable[[], object] = lambda: None

    def save(self, batch: Batch) -> Awaitable[None] | None:
        if self.seconds:
            return self._keep_slowly(batch)
        self._keep(batch)
        return None

    async def _keep_slowly(self, batch: Batch) -> None:
        await anyio.sleep(self.seconds)
        self._keep(batch)

    def _keep(self, batch: Batch) -> None:
        self.batches.append(batch)
        self.child_ends += len(batch.applied)
        self.on_save()


def application(graph: Any, store: Keeping) -> Application:
    app = Application(graph)
    app.store = store
    return app


def as_generator(state: State) -> Iterator[int]:
    yield from state["n"]


async def as_async_generator(state: State) -> AsyncIterator[int]:
    for n in state["n"]:
        yield n


SOURCES: dict[str, Any] = {
    "list": "n",
    "generator": as_generator,
    "async generator": as_async_generator,
}
every_source = pytest.mark.parametrize("over", SOURCES.values(), ids=SOURCES)


def pass_time(seconds: float) -> None:
    """Move the virtual clock while code runs, as code that computes does."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, trio.testing.MockClock)
        clock.jump(seconds)
    else:
        assert isinstance(loop, VirtualTimeLoop)
        loop._move_to(loop.time() + seconds)  # pyright: ignore[reportPrivateUsage]


def nothing_new(state: State, outcome: Outcome) -> tuple[int, ...]:
    return ()


# -- fairness --------------------------------------------------------------------------------------


class Neighbour:
    """Another task of the same event loop: sees how far a run got between two of its turns.

    On trio, which shuffles what is ready, the run may have two turns between them.
    """

    def __init__(self) -> None:
        self.done = 0
        self.seen = [0]

    async def watch(self, until: int) -> None:
        while self.done < until:
            await checkpoint()
            self.seen.append(self.done)

    @property
    def longest(self) -> int:
        return max(after - before for before, after in zip(self.seen, self.seen[1:], strict=False))


@pytest.mark.sweep
@pytest.mark.realtime
@every_source
@pytest.mark.parametrize("limit", [1, 10, 300])
async def test_children_that_never_wait_let_others_run_after_64_of_them(over: Any, limit: int):
    neighbour = Neighbour()

    @action(reads=["item"], writes=["-"])
    async def work(item: int) -> None:
        neighbour.done += 1

    app = Application(fan_out(work, over=over, reads=["n"], name="f", limits=Limits(limit)))
    async with no_leaks(), anyio.create_task_group() as tasks:
        tasks.start_soon(neighbour.watch, 400)
        await app.run({"n": range(400)})
    assert neighbour.longest <= 2 * 64


@every_source
async def test_or_after_a_millisecond_of_them(over: Any):
    neighbour = Neighbour()

    @action(reads=["item"], writes=["-"])
    async def work(item: int) -> None:
        pass_time(0.0004)
        neighbour.done += 1

    app = Application(fan_out(work, over=over, reads=["n"], name="f"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(neighbour.watch, 200)
        await app.run({"n": range(200)})
    assert neighbour.longest <= 2 * 4


@pytest.mark.realtime
async def test_steps_that_never_wait_let_others_run_after_64_of_them():
    neighbour = Neighbour()

    @action(reads=["n"], writes=["n"])
    async def work(n: int) -> int:
        neighbour.done += 1
        return n - 1

    app = Application(Graph((work, work, when("n")), (work, END), entry=work))
    async with no_leaks(), anyio.create_task_group() as tasks:
        tasks.start_soon(neighbour.watch, 400)
        await app.run({"n": 400})
    assert neighbour.longest <= 2 * 64


@pytest.mark.sweep
@pytest.mark.realtime
@pytest.mark.parametrize("kind", ["into", "skipped", "dropped", "async dropped"])
async def test_a_map_that_never_waits_can_be_cancelled(kind: str):
    """Not even one whose elements make no children."""
    turns = pulled = 0

    @action(reads=["item"], writes=["-"])
    async def work(item: int) -> None:
        pass

    def elements(state: State) -> Iterator[int]:
        nonlocal pulled
        for n in range(100_000):
            pulled += 1
            yield 0 if "dropped" in kind else n

    async def elements_async(state: State) -> AsyncIterator[int]:
        for n in elements(state):
            yield n

    def count(state: State, outcome: Outcome) -> State:
        return state.increment(count=1)

    options: dict[str, dict[str, Any]] = {
        "into": {"reduce": count, "writes": ["count"], "name": "f"},
        "skipped": {"key": int, "into": "out"},
        "dropped": {"key": int, "name": "f", "grow": nothing_new},
    }
    options["async dropped"] = options["dropped"]
    over = elements_async if kind == "async dropped" else elements
    app = Application(fan_out(work, over=over, reads=["-"], **options[kind]))

    async def cancel_soon() -> None:
        nonlocal turns
        for _ in range(20):
            await checkpoint()
            turns += 1
        scope.cancel()

    async with no_leaks():
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(cancel_soon)
                known = dict.fromkeys(range(100_000)) if kind == "skipped" else {}
                await app.run({"-": None, "out": known})
    assert scope.cancelled_caught
    assert pulled < 100_000


# -- back-pressure ---------------------------------------------------------------------------------


@every_source
@pytest.mark.parametrize("limit", [1, 5, 64])
async def test_a_slow_store_holds_the_source_back(over: Any, limit: int):
    """A child's place is free when its result is saved, not when the child ends."""
    store, started, ahead = Keeping(1.0), 0, list[int]()

    @action(reads=["item"], writes=["-"])
    async def work(item: int) -> None:
        nonlocal started
        started += 1
        ahead.append(started - store.child_ends)

    app = application(
        fan_out(work, over=over, reads=["n"], into="out", limits=Limits(limit)), store
    )
    await app.run({"n": range(200)})
    assert max(ahead) == limit
    assert store.child_ends == 200


async def test_a_batch_is_one_save_of_at_most_a_thousand_in_order_of_position():
    store = Keeping()

    @action(reads=["item"], writes=["-"])
    async def work(item: int) -> None:
        await anyio.sleep(1 + (item % 2))

    app = application(fan_out(work, over="n", into="out", limits=Limits(5000)), store)
    await app.run({"n": range(2500)})
    batches = [
        [child.outcome.position for child in batch.applied]
        for batch in store.batches
        if batch.applied
    ]
    assert [len(batch) for batch in batches] == [1000, 250] * 2
    assert all(batch == sorted(batch) for batch in batches)
    numbers = [update.number for batch in store.batches for update in batch.updates]
    assert numbers == list(range(1, 2502))


async def test_between_two_batches_others_may_run():
    store, seen = Keeping(), list[int]()

    @action(reads=["item"], writes=["-"])
    async def work(item: int) -> None:
        await go.wait()

    async def watch() -> None:
        while store.child_ends < 3000:
            await checkpoint()
            seen.append(store.child_ends)

    go = anyio.Event()
    app = application(fan_out(work, over="n", into="out", limits=Limits(3000)), store)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(app.run, {"n": range(3000)})
        for _ in range(30):
            await checkpoint()
        tasks.start_soon(watch)
        go.set()
    assert {1000, 2000} & set(seen)  # both, but where the schedule is random


# -- pullers ---------------------------------------------------------------------------------------


@pytest.mark.sweep
@every_source
@pytest.mark.parametrize("limit", [1, 2, 3, 300])
async def test_the_ramp_multiplies_until_the_limit(over: Any, limit: int):
    started, go = 0, anyio.Event()

    @action(reads=["item"], writes=["-"])
    async def work(item: int) -> None:
        nonlocal started
        started += 1
        await go.wait()

    app = Application(fan_out(work, over=over, reads=["n"], name="f", limits=Limits(limit)))
    turns = 0
    async with no_leaks(), anyio.create_task_group() as tasks:
        tasks.start_soon(app.run, {"n": range(400)})
        while started < limit:
            await checkpoint()
            turns += 1
            assert turns < 1000, started
        for _ in range(5):
            await checkpoint()
        assert started == limit
        go.set()
    assert started == 400
    # Two at a time it would take 14, and one 300. Four pass until it is known that they take long.
    assert turns <= 9 + 4


async def test_quick_children_share_a_few_workers(anyio_backend_name: str):
    """A worker costs more than such a child; on trio workers are cheap, and all are started."""
    before, counts = len(anyio.get_running_tasks()), set[int]()

    @action(reads=["item"], writes=["-"])
    async def work(item: int) -> None:
        for _ in range(1 + item % 3):
            await checkpoint()
        counts.add(len(anyio.get_running_tasks()) - before)

    app = Application(fan_out(work, over="n", name="f", limits=Limits(100)))
    async with no_leaks():
        await app.run({"n": range(1000)})
    workers = max(counts) - 1  # besides the run's own task
    assert workers <= (20 if anyio_backend_name == "asyncio" else 100)


async def test_children_that_take_long_are_all_started_though_others_were_quick():
    """The quick ones are followed by a hundred that wait for each other, with one quick between."""
    started, go = 0, anyio.Event()

    @action(reads=["item"], writes=["-"])
    async def work(item: int) -> None:
        nonlocal started
        if item < 200 or item % 5 == 0:
            await checkpoint()
            return
        started += 1
        if started == 100:
            go.set()
        await go.wait()

    app = Application(fan_out(work, over="n", name="f", limits=Limits(100)))
    async with no_leaks():
        await app.run({"n": range(400)})
    assert started == 160


@pytest.mark.sweep
@every_source
@pytest.mark.parametrize("limit", [1, 10, 100])
@pytest.mark.parametrize("waits", ["never", "a few times", "now and then"])
async def test_pullers_are_no_more_than_the_limit_and_one_if_nobody_waits(
    over: Any, limit: int, waits: str
):
    before, counts = len(anyio.get_running_tasks()), set[int]()

    @action(reads=["item"], writes=["-"])
    async def work(item: int) -> None:
        turns = {"never": 0, "a few times": 3, "now and then": item % 9 == 0}[waits]
        for _ in range(turns):
            await checkpoint()
        if item % 7 == 0:
            counts.add(len(anyio.get_running_tasks()) - before)

    app = Application(fan_out(work, over=over, reads=["n"], name="f", limits=Limits(limit)))
    async with no_leaks():
        await app.run({"n": range(350)})
    others = 1 if over is not as_async_generator else 2  # the run's own task, and the source's
    assert max(counts) - others <= (1 if waits == "never" else limit)


@pytest.mark.parametrize("elements", [[], [1], [1, 2, 3, 4], (1, 2, 3), {1: 0, 2: 0}])
async def test_no_puller_is_made_to_find_that_there_is_no_more(elements: Any):
    before, go = len(anyio.get_running_tasks()), anyio.Event()

    @action(reads=["item"], writes=["-"])
    async def work(item: int) -> None:
        await go.wait()

    app = Application(fan_out(work, over=lambda state: elements, reads=[], name="f"))
    async with no_leaks(), anyio.create_task_group() as tasks:
        tasks.start_soon(app.run, dict[str, Any]())
        for _ in range(20):
            await checkpoint()
        caller_and_run = 2 if elements else 0  # it has ended
        assert len(anyio.get_running_tasks()) - before == caller_and_run + len(elements)
        go.set()


@pytest.mark.parametrize("over", ["n", as_generator])
async def test_the_last_element_may_be_cancelled_alone(over: Any):
    """Nobody is left who would find that there is no more."""

    @action(reads=["item"], writes=["-"])
    async def work(item: int) -> None:
        await anyio.sleep(10 * item)

    app = Application(fan_out(work, over=over, reads=["n"], key=int, name="f", limits=Limits(1)))
    async with Runtime(apps=[app]) as runtime:
        handle = await runtime.start(app, {"n": [1, 2]})
        await anyio.sleep(15)
        assert handle.cancel_child(2, "enough")
        assert (await handle.result()).status == "succeeded"
        assert anyio.current_time() < 16


async def test_a_save_waits_for_no_more_ends_if_all_in_flight_have_ended(anyio_backend_name: str):
    turns, saved = 0, list[int]()

    async def count_turns() -> None:
        nonlocal turns
        for _ in range(8):
            turns += 1
            await checkpoint()

    @action(reads=["n"], writes=["result"])
    async def wait(n: int) -> int:
        await anyio.sleep(1)
        if n == 3:  # the last of the first four
            tasks.start_soon(count_turns)
        return n

    class Counting(Keeping):
        def save(self, batch: Batch) -> Awaitable[None] | None:
            if batch.applied:
                saved.append(turns)
            return super().save(batch)

    store = Counting(seconds=0.01)
    spread = fan_out(wait, over="numbers", item="n", into="results", limits=Limits(4))
    async with anyio.create_task_group() as tasks:
        await application(spread, store).run({"numbers": range(8)})
    assert len(saved) == 2
    # The turn in which the parent is woken; on trio others may come first in it.
    assert saved[0] <= (anyio_backend_name == "trio"), saved


# -- many that are cancelled at once ---------------------------------------------------------------


async def calls_to_cancel(children: int) -> Counter[str]:
    """Count the calls of Python functions by package, from the cancellation of a map to its end."""
    started, counts = 0, Counter[str]()

    @action(writes=["never"])
    async def wait_for_ever() -> None:
        nonlocal started
        started += 1
        await anyio.sleep_forever()

    def profile(frame: Any, event: str, argument: object) -> None:
        name = frame.f_globals.get("__name__", "")
        if event == "call" and name.startswith(("shoal", "anyio")):
            counts[name.partition(".")[0]] += 1
            counts[frame.f_code.co_name] += 1

    app = Application(
        fan_out(wait_for_ever, over="n", into="results", limits=Limits(children), item="one")
    )
    before = sys.getprofile()
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(app.run, {"n": range(children)})
            while started < children:
                await checkpoint()
            await anyio.wait_all_tasks_blocked()
            sys.setprofile(profile)
            tasks.cancel_scope.cancel()
    finally:
        sys.setprofile(before)
    return counts


async def test_children_that_are_cancelled_together_cost_few_calls_each(anyio_backend_name: str):
    few, many = await calls_to_cancel(100), await calls_to_cancel(200)
    calls = {name: (many[name] - few[name]) / 100 for name in many}
    assert calls["shoal"] <= 20, calls
    assert calls["_end"] == 1, calls
    if anyio_backend_name == "asyncio":  # its scopes deliver a cancellation anew in each turn
        assert calls["_deliver_cancellation"] <= 1.1, calls
