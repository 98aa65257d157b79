"""How deep and how broad trees of runs may get: ``max_depth`` and ``max_live``."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from time import process_time
from typing import Any, cast

import anyio
import pytest

from shoal import (
    Application,
    Context,
    Done,
    Failed,
    Graph,
    Limits,
    Rate,
    State,
    action,
    fan_out,
    race,
)
from shoal._engine.execution import MAX_DEPTH, MAX_LIVE
from shoal._engine.fanout.workers import WorkerPool
from shoal.errors import DepthExceeded
from shoal.events import RunStarted
from shoal.testing import RecordingHook, no_leaks

pytestmark = pytest.mark.anyio


# -- trees -----------------------------------------------------------------------------------------


class Live:
    """Counts the children that live in all groups, and the most there ever were."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Watch every child from its start to its end, before its parent has heard of it."""
        self.now = self.peak = 0
        execute = WorkerPool._execute  # pyright: ignore[reportPrivateUsage]

        async def watched(pool: WorkerPool, child: Any, *given: Any) -> bool | None:
            with self._counted():
                return await execute(pool, child, *given)

        monkeypatch.setattr(WorkerPool, "_execute", watched)

    @contextmanager
    def _counted(self) -> Generator[None]:
        self.now += 1
        self.peak = max(self.peak, self.now)
        try:
            yield
        finally:
            self.now -= 1


@action(reads=["n"], writes=["out"])
async def leaf(n: int) -> int:
    await anyio.sleep(1)
    return 1


def add(state: State, outcome: Any) -> State:
    return state.increment(out=outcome.value)


def tree(depth: int, limit: int = 100) -> Any:
    """Fan-outs in each other, each over the field ``ns``; their ``out`` counts the leaves."""
    act: Any = leaf
    for level in range(depth):
        act = Graph.chain(
            start,
            fan_out(
                act,
                over="ns",
                item="n",
                take="out",
                reduce=add,
                writes=["out"],
                name=f"level{level}",
                limits=Limits(limit),
            ),
            name=f"tree{level}",
        )
    return act


@action(writes=["out"])
async def start() -> int:
    return 0


@action(reads=["depth", "fan", "limit"], writes=["out"])
async def spread(depth: int, fan: int, limit: int, context: Context) -> int:
    """The same tree, by recursion."""
    if depth == 0:
        await anyio.sleep(1)
        return 1
    found = 0
    async with context.fan_out(name="deeper", limits=Limits(limit)) as group:
        for key in range(fan):
            group.start(spread, {"depth": depth - 1}, key=key)
        async for outcome in group:
            if isinstance(outcome, Failed):
                raise outcome.error
            assert isinstance(outcome, Done)
            found += outcome.value
    return found


async def leaves(shape: str, depth: int, fan: int, limit: int = 100, **options: Any) -> int:
    """Run a whole tree; return how many leaves it had."""
    if shape == "nested":
        result = await Application(tree(depth, limit), **options).run({"ns": range(fan)})
    else:
        fields = {"depth": depth, "fan": fan, "limit": limit}
        result = await Application(spread, **options).run(fields)
    return result.state["out"]


shapes = pytest.mark.parametrize("shape", ["nested", "recursive"])


# -- breadth ---------------------------------------------------------------------------------------


@shapes
@pytest.mark.parametrize("max_live", [2, 5, 50])
async def test_a_tree_stays_small(shape: str, max_live: int, monkeypatch: pytest.MonkeyPatch):
    live = Live(monkeypatch)
    depth, fan = 3, 3
    assert await leaves(shape, depth, fan, limit=1, max_live=max_live) == fan**depth
    assert live.now == 0
    assert live.peak == depth  # one each: nobody needs a permit
    live.peak = 0
    assert await leaves(shape, depth, fan, limit=max_live, max_live=max_live) == fan**depth
    assert depth < live.peak <= (max_live + 1) * depth


@pytest.mark.slow
@pytest.mark.timeout(300)
@shapes
@pytest.mark.parametrize("fan_depth", [(3, 9), (8, 4), (2, 12)])
async def test_a_deep_tree_under_a_small_budget(
    shape: str, fan_depth: tuple[int, int], monkeypatch: pytest.MonkeyPatch
):
    live = Live(monkeypatch)
    fan, depth = fan_depth
    async with no_leaks():
        assert await leaves(shape, depth, fan, limit=10, max_live=10) == fan**depth
    assert live.peak <= 11 * depth


@pytest.mark.slow
@pytest.mark.timeout(300)
@shapes
async def test_a_deep_tree_under_the_default_budget(shape: str, monkeypatch: pytest.MonkeyPatch):
    live = Live(monkeypatch)
    async with no_leaks():
        assert await leaves(shape, 9, 3) == 3**9
    assert live.peak <= (MAX_LIVE + 1) * 9


@shapes
async def test_the_budget_is_used(shape: str, monkeypatch: pytest.MonkeyPatch):
    """One of each fan-out needs no permit; the others are as many as there are."""
    live = Live(monkeypatch)
    assert await leaves(shape, 1, 50, limit=10, max_live=10) == 50
    assert live.peak == 10
    assert anyio.current_time() == pytest.approx(5)


@shapes
async def test_a_limit_above_the_budget_raises_it(shape: str, monkeypatch: pytest.MonkeyPatch):
    live = Live(monkeypatch)
    assert await leaves(shape, 1, 200, limit=40, max_live=3) == 200
    assert live.peak == 40
    assert anyio.current_time() == pytest.approx(5)


async def test_the_budget_is_one_for_the_whole_tree_and_not_for_other_runs(
    monkeypatch: pytest.MonkeyPatch,
):
    live = Live(monkeypatch)
    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(partial(leaves, "nested", 2, 8, 8, max_live=8))
    both, live.peak = live.peak, 0
    assert await leaves("nested", 2, 8, 8, max_live=8) == 64
    assert live.peak == both / 2


async def test_permits_come_back_however_children_end(monkeypatch: pytest.MonkeyPatch):
    """Failed, cancelled, skipped, dropped: afterwards there is as much room as before."""
    live = Live(monkeypatch)

    @action(reads=["n"], writes=["out"])
    async def fate(n: int) -> int:
        await anyio.sleep(n % 3)
        if n % 4 == 0:
            raise ValueError(n)
        return n

    @action(reads=["ns"], writes=["found"])
    async def hasty(ns: range, context: Context) -> None:
        for name, patience in (("a", 0.5), ("b", 1.5), ("c", 99)):
            with anyio.move_on_after(patience):
                async with context.fan_out(name=name, limits=Limits(6)) as group:
                    group.start_each(fate, over=ns, item="n")
                    async for _ in group:
                        pass

    collect = fan_out(
        fate,
        over="ns",
        item="n",
        key=int,
        into="some",
        take="out",
        on_error="collect",
        limits=Limits(6),
    )
    whole = fan_out(leaf, over="ns", item="n", into="all", take="out", limits=Limits(6))
    app = Application(Graph.chain(hasty, collect, whole), max_live=6)
    result = await app.run({"ns": range(24), "some": {1: 1, 2: 2}})
    assert len(result.state["all"]) == 24
    live.peak = 0
    began = anyio.current_time()
    await Application(whole, max_live=6).run({"ns": range(24)})
    assert anyio.current_time() - began == pytest.approx(4)
    assert live.peak == 6


# -- depth -----------------------------------------------------------------------------------------


def depths(hook: RecordingHook) -> set[int]:
    return {event.path.depth for event in hook.of(RunStarted)}


def graphs(depth: int, inner: Any = leaf) -> Any:
    """Graphs in each other, as nodes."""
    for level in range(depth):
        inner = Graph.chain(inner, name=f"graph{level}")
    return inner


def error_leaves(error: Exception) -> list[Exception]:
    if isinstance(error, ExceptionGroup):
        group = cast("ExceptionGroup[Exception]", error)
        return [leaf for one in group.exceptions for leaf in error_leaves(one)]
    return [error]


def deep(shape: str, depth: int, fan: int = 1) -> tuple[Any, dict[str, Any]]:
    """An act that nests runs so deep, and the fields it starts with."""
    if shape == "nested":
        return tree(depth), {"ns": range(fan)}
    if shape == "recursive":
        return spread, {"depth": depth, "fan": fan, "limit": 10}
    return Graph.chain(graphs(depth), name="all"), {"n": 1}


all_shapes = pytest.mark.parametrize("shape", ["nested", "recursive", "graphs"])


@all_shapes
@pytest.mark.parametrize("max_depth", [1, 3])
async def test_one_level_too_many_is_refused_before_anything_of_it_starts(
    shape: str, max_depth: int
):
    act, fields = deep(shape, max_depth + 1, fan=3)
    hook = RecordingHook()
    app = Application(act, max_depth=max_depth, hooks=[hook])
    with pytest.raises((DepthExceeded, ExceptionGroup)) as caught:
        async with no_leaks():
            await app.run(fields)
    for error in error_leaves(caught.value):
        assert isinstance(error, DepthExceeded)
        assert f"{max_depth + 1} levels below the root; at most {max_depth}" in str(error)
    assert depths(hook) == set(range(max_depth + 1))
    assert anyio.current_time() == 0  # no leaf slept
    hook.assert_paired()


@all_shapes
@pytest.mark.parametrize("max_depth", [1, 3])
async def test_as_deep_as_allowed_is_fine(shape: str, max_depth: int):
    act, fields = deep(shape, max_depth)
    hook = RecordingHook()
    result = await Application(act, max_depth=max_depth, hooks=[hook]).run(fields)
    assert result.state["out"] == 1
    assert depths(hook) == set(range(max_depth + 1))


@all_shapes
async def test_by_default_64_levels_are_allowed(shape: str):
    assert MAX_DEPTH == 64
    act, fields = deep(shape, 64)
    assert (await Application(act).run(fields)).state["out"] == 1
    act, fields = deep(shape, 65)
    with pytest.raises((DepthExceeded, ExceptionGroup)) as caught:
        await Application(act).run(fields)
    assert [type(error) for error in error_leaves(caught.value)] == [DepthExceeded]


@all_shapes
@pytest.mark.parametrize("how", ["scope", "timeout", "native"])
async def test_64_levels_are_cancelled_at_once(shape: str, how: str, anyio_backend_name: str):
    if anyio_backend_name == "trio":
        how = "scope"  # the only way there
    act, fields = deep(shape, 64)
    hook = RecordingHook()
    app = Application(act, hooks=[hook])
    began = process_time()
    async with no_leaks():
        if how == "scope":
            with anyio.move_on_after(0.5) as scope:
                await app.run(fields)
            assert scope.cancelled_caught
        elif how == "timeout":
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await app.run(fields)
        else:
            task = asyncio.create_task(app.run(fields))
            await anyio.sleep(0.5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
    assert process_time() - began < 5  # as a rule 0.1: it doesn't spin
    assert anyio.current_time() == pytest.approx(0.5)
    assert depths(hook) == set(range(65))
    hook.assert_paired()


# -- below the default -----------------------------------------------------------------------------


async def test_a_budget_below_the_default_number_in_flight_holds(monkeypatch: pytest.MonkeyPatch):
    """Nobody has named a hundred: one child needs no permit, and so many more have one."""
    live = Live(monkeypatch)
    step = fan_out(leaf, over="ns", item="n", into="all", take="out")
    assert len((await Application(step, max_live=9).run({"ns": range(40)})).state["all"]) == 40
    assert live.peak == 10
    assert anyio.current_time() == pytest.approx(4)

    @action(reads=["ns"], writes=["found"])
    async def by_hand(ns: range, context: Context) -> int:
        async with context.fan_out(name="own") as group:
            group.start_each(leaf, over=ns, item="n")
            return sum([1 async for _ in group])

    live.peak = 0
    assert (await Application(by_hand, max_live=9).run({"ns": range(40)})).state["found"] == 40
    assert live.peak == 10


async def test_a_rate_alone_names_no_number_in_flight(monkeypatch: pytest.MonkeyPatch):
    live = Live(monkeypatch)
    step = fan_out(
        leaf, over="ns", item="n", into="all", take="out", limits=Limits(rate=Rate(1000, burst=99))
    )
    await Application(step, max_live=4).run({"ns": range(40)})
    assert live.peak == 5


async def test_a_race_starts_all_its_contestants_whatever_the_budget(
    monkeypatch: pytest.MonkeyPatch,
):
    live = Live(monkeypatch)
    contestants = [leaf.bind(name=f"leaf{n}") for n in range(30)]
    await Application(race(*contestants, into="won"), max_live=2).run({"n": 1})
    assert live.peak == 30
    assert anyio.current_time() == pytest.approx(1)
