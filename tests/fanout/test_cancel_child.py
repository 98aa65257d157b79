"""Cancelling one child by its key: the others don't notice."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from shoal import (
    Application,
    Cancelled,
    Context,
    Done,
    Failed,
    Graph,
    Limits,
    NobodyAccepted,
    Outcome,
    State,
    action,
    fan_out,
    race,
)
from shoal.errors import BadUse, TooFewChildren
from shoal.events import ChildEnded, ChildStarted
from shoal.testing import no_leaks
from shoal.types import Act
from tests.engine.test_cancellation import Watched, seen_runs

from .test_until import losers, sleeper

pytestmark = pytest.mark.anyio

__all__ = ["seen_runs"]  # a fixture

Go = Callable[[Any], Coroutine[Any, Any, None]]


@action(reads=["item"], writes=["slept"])
async def sleep(item: float) -> float:
    await anyio.sleep(item)
    return item


@action(reads=["item"], writes=["slept"])
async def tidy(item: float) -> float:
    """Takes a while to clean up."""
    try:
        await anyio.sleep(item)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.5)
    return item


async def opened(
    graph: Any, given: dict[str, Any], go: Go, **settings: Any
) -> tuple[Watched, State]:
    """Run it, and let ``go`` do what it likes with the opened run."""
    watched = Watched(graph, **settings)
    watched.initial = State(given)
    async with watched.app.open(given, id=watched.id) as run, anyio.create_task_group() as tasks:
        tasks.start_soon(go, run)
        await run.result()
    watched.check()
    return watched, watched.state


async def test_one_is_cancelled_and_the_others_are_not():
    async def go(run: Any) -> None:
        await anyio.sleep(1)
        assert run.cancel_child("9", "too slow")
        assert run.cancel_child("9", "twice: the first reason counts")

    step = fan_out(tidy, over="n", key=str, into="out")
    async with no_leaks():
        watched, state = await opened(step, {"n": [3, 9, 2]}, go)
    assert state["out"] == {"3": 3, "2": 2}
    assert anyio.current_time() == 3.5
    (outcome,) = losers(watched)
    assert isinstance(outcome, Cancelled)
    assert (outcome.key, outcome.reason, outcome.winner) == ("9", "too slow", None)
    (ended,) = [e for e in watched.of(ChildEnded) if e.outcome.key == "9"]
    assert ended.outcome == outcome


async def test_its_place_is_taken_by_the_next():
    """A fresh puller takes over, whatever became of the task that was cancelled."""
    started = list[float]()

    @action(reads=["item"], writes=["slept"])
    async def note(item: float) -> float:
        started.append(anyio.current_time())
        await anyio.sleep(item)
        return item

    async def go(run: Any) -> None:
        for key in range(4):
            await anyio.sleep(1)
            assert run.cancel_child(key, "next")

    step = fan_out(note, over="n", into="out", limits=Limits(1))
    _, state = await opened(step, {"n": [9, 9, 9, 9, 1]}, go)
    assert started == [0, 1, 2, 3, 4]
    assert state["out"] == [1]


async def test_keys_are_told_apart_and_unknown_ones_are_none():
    async def go(run: Any) -> None:
        await anyio.sleep(0.5)
        assert not run.cancel_child("1", "an int has that key")
        assert not run.cancel_child(7, "nobody")
        assert not run.cancel_child(0, "over")
        assert run.cancel_child(1, "this one")
        assert not run.cancel_child(2, "not begun")

    step = fan_out(sleep, over="n", into="out", limits=Limits(1))
    _, state = await opened(step, {"n": [0.25, 5, 1]}, go)
    assert state["out"] == [0.25, 1]


async def test_of_several_acts_with_that_key():
    async def go(run: Any) -> None:
        await anyio.sleep(0.5)
        assert run.cancel_child("1", "this one", act="tidy")
        assert not run.cancel_child("2", "nobody", act="other")
        assert run.cancel_child("2", "both")

    step = fan_out([sleep, tidy], over="n", key=str, into="out")
    _, state = await opened(step, {"n": [1, 2]}, go)
    assert state["out"] == {"1": {"sleep": 1}}


async def test_a_contestant_of_a_race():
    async def go(run: Any) -> None:
        await anyio.sleep(0.5)
        assert run.cancel_child("", "too dear", act="b")

    step = race(sleeper("a", 3), sleeper("b", 1), into="out")
    watched, state = await opened(step, {}, go)
    assert state["out"] == "a"
    (outcome,) = losers(watched)
    assert isinstance(outcome, Cancelled)
    assert (outcome.reason, outcome.winner) == ("too dear", None)


async def test_the_next_of_a_staggered_race_starts_at_once():
    async def go(run: Any) -> None:
        await anyio.sleep(0.5)
        assert run.cancel_child("", "stuck", act="a")

    step = race(sleeper("a", 99), sleeper("b", 1), into="out", stagger=30)
    _, state = await opened(step, {}, go)
    assert state["out"] == "b"
    assert anyio.current_time() == 1.5


async def test_all_contestants():
    app = Application(race(sleeper("a", 3), sleeper("b", 1), into="out"))
    with pytest.raises(NobodyAccepted, match="none of its 2 children") as raised:
        async with app.open({}) as run:
            await anyio.sleep(0.5)
            assert run.cancel_child("", "none of them")
            await run.result()
    assert isinstance(raised.value.exceptions[0], TooFewChildren)


async def test_a_child_at_any_depth_by_its_path():
    async def go(run: Any) -> None:
        async for event in run:
            if isinstance(event, ChildStarted) and event.depth and event.child.key == 5:
                assert not run.cancel_child(5, "of the outer one, there is none")
                assert run.cancel_child(event.child, "deep inside")

    @action(reads=["item"], writes=["below"])
    async def spread(item: int) -> list[int]:
        await checkpoint()
        return [item, item + 1]

    inner = fan_out(sleep, over="below", key=int, into="slept")
    deep = Graph.chain(spread, inner, name="deep")
    step = fan_out(deep, over="n", key=int, into="out", take="slept")
    watched, state = await opened(step, {"n": [1, 4]}, go)
    assert state["out"] == {1: {1: 1, 2: 2}, 4: {4: 4}}
    (ended,) = [e for e in watched.of(ChildEnded, depth=1) if isinstance(e.outcome, Cancelled)]
    assert isinstance(ended.outcome, Cancelled)
    assert ended.outcome.reason == "deep inside"


async def test_in_a_graph_that_is_a_node():
    async def go(run: Any) -> None:
        await anyio.sleep(0.5)
        assert run.cancel_child("2", "the node is the run's own")

    node = Graph.chain(fan_out(sleep, over="n", key=str, into="out"), name="node")
    _, state = await opened(Graph.chain(node, name="whole"), {"n": [1, 2]}, go)
    assert state["out"] == {"1": 1}


async def test_a_child_with_children_of_its_own():
    """It is cancelled with all of them, cleanup included."""

    async def go(run: Any) -> None:
        await anyio.sleep(0.5)
        assert run.cancel_child("2", "with all of its own")

    inner = fan_out(tidy, over=lambda state: [state["item"], 9], reads=["item"], into="slept")
    step = fan_out(inner, over="n", key=str, into="out", take="slept", on_error="collect")
    watched, _ = await opened(Graph.chain(step), {"n": [2]}, go)
    assert anyio.current_time() == 1
    (outcome,) = [e.outcome for e in watched.of(ChildEnded)]
    assert isinstance(outcome, Cancelled)
    assert outcome.reason == "with all of its own"


async def test_one_that_swallows_it_goes_on():
    async def go(run: Any) -> None:
        await anyio.sleep(0.5)
        assert run.cancel_child(0, "not heard")

    @action(reads=["item"], writes=["slept"])
    async def stubborn(item: float) -> str:
        with suppress(anyio.get_cancelled_exc_class()):
            await anyio.sleep(item)
        return "stubborn"

    step = fan_out(stubborn, over="n", into="out", limits=Limits(1))
    _, state = await opened(step, {"n": [5, 1]}, go)
    assert state["out"] == ["stubborn", "stubborn"]


async def test_one_that_fails_in_its_cleanup_has_failed():
    async def go(run: Any) -> None:
        await anyio.sleep(0.5)
        assert run.cancel_child(0, "in vain")

    @action(reads=["item"], writes=["slept"])
    async def untidy(item: float) -> None:
        try:
            await anyio.sleep(item)
        finally:
            if item > 1:
                raise OSError

    step = fan_out(untidy, over="n", into="out", on_error="collect")
    watched, _ = await opened(step, {"n": [5, 1]}, go)
    (outcome,) = losers(watched)
    assert isinstance(outcome, Failed)


async def test_cancelled_with_the_whole_run_in_one_moment():
    async def around(after: float) -> Watched:
        watched = Watched(fan_out(tidy, over="n", into="out", limits=Limits(2)))
        watched.initial = State({"n": [3, 3, 3]})
        async with watched.app.open({"n": [3, 3, 3]}, id=watched.id) as run:
            await anyio.sleep(1)
            run.cancel_child(0, "by hand")
            await anyio.sleep(after)
            run.cancel("all of it")
        watched.check()
        return watched

    for after in (0, 0.25, 0.5):
        async with no_leaks():
            watched = await around(after)
        reasons = {
            outcome.key: outcome.reason
            for outcome in losers(watched)
            if isinstance(outcome, Cancelled)
        }
        assert reasons[0] == "by hand"
        assert reasons[1] == "the fan-out was cancelled"


async def test_by_the_action_that_started_it():
    @action(writes=["out"])
    async def by_hand(context: Context) -> list[Outcome]:
        outcomes = list[Outcome]()
        async with context.fan_out(name="own", limits=Limits(2)) as group:
            for item in (9.0, 2.0, 5.0, 1.0):
                group.start(sleep, {"item": item}, key=str(item))
            assert group.cancel_child("5.0", "not even begun")
            assert not group.cancel_child("5.0")
            await anyio.sleep(1)
            assert group.cancel_child("9.0")
            assert not group.cancel_child("7.0")
            async for outcome in group:
                outcomes.append(outcome)
        assert not group.cancel_child("2.0")
        return outcomes

    watched = Watched(by_hand)
    state = await watched.go({})
    watched.check()
    ends = {outcome.key: outcome for outcome in state["out"]}
    assert isinstance(ends["2.0"], Done)
    assert isinstance(ends["1.0"], Done)
    assert ends["5.0"].reason == "not even begun"
    assert ends["9.0"].reason == "the action cancelled it"
    assert anyio.current_time() == 2


async def test_before_the_run_is_opened():
    app = Application(fan_out(sleep, over="n", into="out"))
    run = app.open({"n": []})
    with pytest.raises(BadUse):
        run.cancel_child(1, "too early")
    async with run:
        with pytest.raises(TypeError, match="string as reason"):
            run.cancel_child(1, 2)  # pyright: ignore[reportArgumentType]
        await run.result()
        assert not run.cancel_child(1, "too late")


@pytest.mark.realtime
async def test_on_real_loops():
    started = anyio.Event()

    def act(name: str) -> Act:
        @action(writes=["value"], name=name)
        async def hang() -> None:
            if name == "b":
                started.set()
            await anyio.sleep_forever()

        return hang

    async def go(run: Any) -> None:
        await started.wait()
        assert run.cancel_child("", "one", act="a")
        await checkpoint()
        assert run.cancel_child("", "two", act="b")

    async with no_leaks():
        watched, _ = await opened(
            fan_out([act("a"), act("b")], into="out", on_error="collect"), {}, go
        )
    assert [getattr(outcome, "reason", "") for outcome in losers(watched)] == ["one", "two"]
