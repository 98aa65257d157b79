"""Children that start before the ends of others are committed, and steps that nothing keeps.

A fan-out goes ahead only where nobody can tell. So some of these tests
compare with a run in which it doesn't: with hooks that receive everything, or with a store.
"""

import asyncio
import pickle
from collections.abc import Iterator
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from shoal import Application, Graph, Hook, Limits, MemoryStore, RetryLater, State, action, fan_out
from shoal._engine.fanout import group
from shoal._engine.fanout.batch import BatchJoin
from shoal._engine.run import Run
from shoal.events import ChildEnded, ChildStarted, StateUpdated
from shoal.testing import RecordingHook

pytestmark = pytest.mark.anyio


class Updates(Hook):
    """Receives updates alone: a fan-out goes ahead beside it."""

    def __init__(self) -> None:
        self.numbers: list[int] = []

    def on_state_updated(self, event: StateUpdated) -> None:
        if event.depth == 0:
            self.numbers.append(event.update.number)


@action(reads=["n"], writes=["double"])
async def double(n: int) -> int:
    await checkpoint()
    return n + n


@action(reads=["double"], writes=["double"])
async def again(double: int) -> int:
    return double + double


@action(reads=["double"], writes=["double"])
async def from_state(state: State) -> State:
    return state.update(double=state["double"] + 1).drop("double").update(double=state["double"])


def mapped(act: Any = double, limit: int = 3, **how: Any) -> Any:
    how = {"into": "doubles", "take": "double"} | how
    return fan_out(act, over="numbers", item="n", key=int, limits=Limits(limit), **how)


@pytest.mark.parametrize("limit", [1, 2, 5, 100])
async def test_as_many_are_at_work_as_may_be_and_all_have_results(limit: int):
    now = most = 0

    @action(reads=["n"], writes=["double"])
    async def counting(n: int) -> int:
        nonlocal now, most
        now += 1
        most = max(most, now)
        for _ in range(n % 3):
            await checkpoint()
        now -= 1
        return n + n

    result = await Application(mapped(counting, limit)).run({"numbers": range(300)})
    assert result.state["doubles"] == {n: n + n for n in range(300)}
    assert most <= limit
    assert result.outcomes("doubles").done == 300


async def test_a_group_with_few_places_commits_many_ends_at_once(monkeypatch: pytest.MonkeyPatch):
    """Else its workers would wait for a commit after every second child."""
    batches: list[int] = []

    add_all = BatchJoin.add_all

    def counted(self: BatchJoin, batch: list[Run]) -> BaseException | None:
        batches.append(len(batch))
        return add_all(self, batch)

    monkeypatch.setattr(BatchJoin, "add_all", counted)
    await Application(mapped(limit=2)).run({"numbers": range(1000)})
    assert sum(batches) == 1000
    assert len(batches) < 250
    assert max(batches) <= group.UNCOMMITTED + 2 * 2


async def test_beside_hooks_that_count_children_no_more_are_in_flight_than_may_be():
    class Counting(Hook):
        now = most = 0

        def on_child_started(self, event: ChildStarted) -> None:
            self.now += 1
            self.most = max(self.most, self.now)

        def on_child_ended(self, event: ChildEnded) -> None:
            self.now -= 1

    hook = Counting()
    await Application(mapped(limit=2), hooks=[hook]).run({"numbers": range(50)})
    assert (hook.now, hook.most) == (0, 2)


async def test_an_iterator_is_advanced_when_the_end_before_was_committed():
    """It may look at what is done so far."""

    def numbers(_: State) -> Iterator[int]:
        for n in range(10):
            pulled.append(list(hook.numbers))
            yield n

    pulled: list[list[int]] = []
    hook = Updates()
    spread = fan_out(
        double, over=numbers, reads=[], item="n", into="doubles", limits=Limits(1), take="double"
    )
    await Application(spread, hooks=[hook]).run()
    # The first update makes the collection.
    assert pulled == [list(range(1, n + 2)) for n in range(10)]


STEPS = [double, Graph.chain(double, again), Graph.chain(double, from_state)]


@pytest.mark.parametrize("act", STEPS)
async def test_what_comes_out_is_the_same_however_it_is_watched_or_kept(act: Any):
    states: dict[str, Any] = {}
    ways: dict[str, dict[str, Any]] = {
        "alone": {},
        "updates": {"hooks": [Updates()]},
        "all": {"hooks": [RecordingHook()]},
        "store": {"store": MemoryStore()},
    }
    for name, how in ways.items():
        result = await Application(mapped(act), **how).run({"numbers": range(40)})
        states[name] = dict(result.state), result.outcomes("doubles").done
    assert all(state == states["alone"] for state in states.values())


async def test_updates_are_numbered_as_if_all_of_them_were_published():
    """A hook that joins later, as a reader of an opened run, sees how many there were."""
    hook = Updates()
    watched = Application(Graph.chain(mapped(), name="one"), hooks=[hook])
    await watched.run({"numbers": range(10)})

    @action(reads=["doubles"], writes=["last"])
    async def last(doubles: Any) -> int:
        return len(doubles)

    app = Application(Graph.chain(mapped(), last, name="two"))
    async with app.open({"numbers": range(10)}) as run:
        updates = [event async for event in run if isinstance(event, StateUpdated)]
    seen = [event.update.number for event in updates if event.depth == 0]
    assert seen == list(range(1, 13))
    assert hook.numbers == list(range(1, 12))


async def test_a_failure_stops_the_start_of_others_before_it_is_judged():
    begun: list[int] = []

    @action(reads=["n"], writes=["double"])
    async def fails(n: int) -> int:
        begun.append(n)
        await checkpoint()
        if n == 1:
            raise ConnectionError
        await anyio.sleep(3600)
        return n

    with pytest.raises(ExceptionGroup) as failure:
        await Application(mapped(fails, 2)).run({"numbers": range(20)})
    assert failure.group_contains(ConnectionError)
    assert begun == [0, 1]


async def test_a_simple_action_may_still_ask_for_a_later_time():
    asked = 0

    @action(reads=["n"], writes=["double"])
    async def later(n: int) -> int:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise RetryLater(0)
        return n

    result = await Application(mapped(later)).run({"numbers": [1]})
    assert (result.state["doubles"], asked) == ({1: 1}, 3)


async def test_a_cancel_left_by_a_step_does_not_reach_the_next_one(anyio_backend_name: str):
    if anyio_backend_name == "trio":
        pytest.skip("trio has no native cancellation")

    @action(reads=["n"], writes=["double"])
    async def cancels(n: int) -> int:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        return n + n

    @action(reads=["double"], writes=["double"])
    async def waits(double: int) -> int:
        await checkpoint()
        return double

    act = Graph.chain(cancels, waits)
    result = await Application(mapped(act)).run({"numbers": range(5)})
    assert result.state["doubles"] == {n: 2 * n for n in range(5)}


def test_what_an_action_may_do_is_pickled_the_same_after_calls():
    before = pickle.dumps(from_state.access)
    app = Application(from_state)
    app.run_sync({"double": 1})
    state: State = State({"n": 1, "double": 2})
    assert state.update(double=3)["double"] == 3
    assert pickle.dumps(from_state.access) == before
