"""A worker dies: which calls it is held against, what is called again, and what ends."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest

from shoal import (
    Application,
    Cancelled,
    Context,
    Done,
    Each,
    Failed,
    Graph,
    Limits,
    MemoryStore,
    Rate,
    Result,
    Retry,
    RetryLater,
    RunPath,
    Runtime,
    State,
    StoreFailed,
    action,
    fan_out,
    race,
)
from shoal.errors import Poisoned, StepTimeout, WorkerDied
from shoal.events import AttemptEnded, Item
from shoal.stores import Batch
from shoal.testing import RecordingHook, no_leaks

from .fake import Exit, Fake

pytestmark = pytest.mark.anyio


class Killer:
    """Actions of an executor that end their worker for some elements, some times."""

    def __init__(self, times: dict[Any, int] | None = None, **options: Any) -> None:
        self.fake = Fake(**options)
        self.left: dict[Any, int] = dict(times or {})
        self.ran = Counter[Any]()

    def strike(self, n: Any) -> None:
        self.ran[n] += 1
        if self.left.get(n, 0) > 0:
            self.left[n] -= 1
            raise Exit

    def plain(self, **options: Any) -> Any:
        @action(reads=["n"], writes=["out"], name="work", executor=self.fake, **options)
        def work(n: int) -> int:
            self.strike(n)
            return n * 10

        return work

    def later(self, seconds: float = 1.0, **options: Any) -> Any:
        @action(reads=["n"], writes=["out"], name="work", executor=self.fake, **options)
        async def work(n: int) -> int:
            await anyio.sleep(seconds)
            self.strike(n)
            await anyio.sleep(seconds)
            return n * 10

        return work


def mapped(act: Any, **more: Any) -> Any:
    given: dict[str, Any] = {"into": "outs", "key": str, "take": "out", **more}
    return fan_out(act, over="ns", item="n", name="map", **given)


COLLECT: dict[str, Any] = {"on_error": "collect", "errors_into": "bad"}
MANY = 1000


# -- counting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("deaths", [1, 2])
@pytest.mark.parametrize("kind", ["plain", "later"])
async def test_an_action_whose_worker_dies_is_called_again(
    deaths: int, kind: str, caplog: pytest.LogCaptureFixture
):
    """It is no failure of its own: no attempt is counted, and hooks are told of none."""
    killer, hook = Killer({2: deaths}), RecordingHook()
    act = getattr(killer, kind)(retry=Retry(2, on=WorkerDied))
    async with no_leaks(), Runtime() as runtime:
        app = Application(mapped(act, limits=Limits(1)), hooks=[hook])
        result = await runtime.run(app, {"ns": [1, 2, 3]})
        assert killer.fake.pool.gate.used == 0
        assert killer.fake.pool.gate.users == 0
    assert result.state["outs"] == {"1": 10, "2": 20, "3": 30}
    assert killer.ran == {1: 1, 2: deaths + 1, 3: 1}
    assert [event.attempt for event in hook.of(AttemptEnded)] == [1, 1, 1]
    assert all(event.error is None for event in hook.of(AttemptEnded))
    messages = [one.message for one in caplog.records if one.levelno == logging.WARNING]
    assert len(messages) == deaths
    assert "has died while it called action 'work' of run" in messages[0]
    assert "called again: death 1 of at most 3" in messages[0]


@pytest.mark.parametrize("most", [1, 2, 3])
@pytest.mark.parametrize("kind", ["plain", "later"])
async def test_what_kills_workers_is_condemned(most: int, kind: str):
    killer = Killer({2: MANY}, workers=3)
    act = getattr(killer, kind)(retry=Retry(5, on=Exception))
    async with no_leaks(), Runtime(max_crashes=most) as runtime:
        app = Application(mapped(act, limits=Limits(1), **COLLECT))
        result = await runtime.run(app, {"ns": [1, 2, 3]})
    assert result.state["outs"] == {"1": 10, "3": 30}
    assert killer.ran[2] == most
    (outcome,) = result.outcomes("map")
    assert isinstance(outcome, Failed)
    error = outcome.error
    assert isinstance(error, Poisoned)
    assert error.crashes == most
    assert isinstance(error.__cause__, WorkerDied)
    words = (
        f"action 'work' of run {outcome.path.id}, key '2' of 'map', was at work in {most} worker"
    )
    assert words in str(error)
    assert f"(the last one: {error.__cause__})" in str(error)


async def test_of_several_in_one_worker_only_the_one_that_kills_it_is_condemned():
    """It has its last chance alone, and so do the others, as long as they are suspects."""
    killer = Killer({7: MANY}, workers=2)
    async with no_leaks(), Runtime() as runtime:
        app = Application(mapped(killer.later(), **COLLECT))
        with anyio.fail_after(100):
            result = await runtime.run(app, {"ns": list(range(20))})
    assert set(result.state["bad"]) == {"7"}
    assert len(result.state["outs"]) == 19
    assert killer.fake.pool.alone


@pytest.mark.parametrize("most", [1, 2])
async def test_a_death_among_others_is_never_the_last_one(most: int):
    killer = Killer({0: most}, workers=1)
    async with no_leaks(), Runtime(max_crashes=most) as runtime:
        app = Application(mapped(killer.later()))
        if most == 1:
            result = await runtime.run(app, {"ns": [0, 1, 2]})
            assert len(result.state["outs"]) == 3
            assert len(killer.fake.pool.alone) == 3
        else:
            with pytest.raises(ExceptionGroup) as caught:
                await runtime.run(app, {"ns": [0, 1, 2]})
            assert [type(one) for one in caught.value.exceptions] == [Poisoned]


async def test_a_child_that_gets_further_is_counted_anew():
    killer = Killer({1: 2, 10: 2})

    @action(reads=["out"], writes=["end"], executor=killer.fake)
    def last(out: int) -> int:
        killer.strike(out)
        return out

    chain = Graph.chain(killer.plain(), last)
    async with Runtime(max_crashes=3) as runtime:
        result = await runtime.run(Application(mapped(chain, take="end")), {"ns": [1]})
    assert result.state["outs"] == {"1": 10}
    assert killer.ran == {1: 3, 10: 3}
    assert killer.fake.pool.alone == ["work", "last"], "the last chance of each, and no other call"


async def test_a_root_run_is_counted_without_a_store_too():
    killer = Killer({1: MANY})
    async with no_leaks():
        with pytest.raises(Poisoned, match=r"action 'work' of run .* was at work in 3 workers"):
            await Application(killer.plain()).run({"n": 1})
    assert killer.ran[1] == 3
    killer = Killer({1: 2})
    assert (await Application(killer.plain()).run({"n": 1})).state["out"] == 10


async def test_an_action_on_the_loop_may_raise_the_error_itself():
    called: list[int] = []

    @action(limits=Limits(1))
    async def raises() -> None:
        called.append(1)
        raise WorkerDied("a pool of its own")

    with pytest.raises(WorkerDied):
        await Application(raises).run()
    assert called == [1]


# -- what is around it -----------------------------------------------------------------------------


async def test_in_a_race_the_one_that_kills_only_leaves():
    killer = Killer({1: MANY})
    slow = killer.later(seconds=5.0)
    both = race(
        killer.plain().bind(name="kills"),
        Graph.chain(action(writes=["n"], name="set", executor="loop")(lambda: 2), slow, name="b"),
        into="won",
        take="out",
        name="race",
    )
    async with no_leaks():
        result = await Application(both).run({"n": 1})
    assert result.state["won"] == 20
    assert [type(one) for one in result.outcomes("race")] == [Failed]


@pytest.mark.parametrize("loser_dies", [True, False])
async def test_a_race_is_decided_and_a_loser_s_worker_dies(loser_dies: bool):
    killer = Killer({1: MANY if loser_dies else 0}, workers=1)

    @action(reads=["n"], writes=["out"], executor=killer.fake)
    async def clings(n: int) -> int:
        try:
            await anyio.sleep_forever()
        finally:
            killer.strike(n)  # its worker dies in the cleanup
        return n

    @action(writes=["out"])
    async def wins() -> int:
        await anyio.sleep(1)
        return 5

    both = race(clings, wins, into="won", take="out", name="race")
    # With one death allowed, it would be condemned if it were not cancelled.
    async with no_leaks(), Runtime(max_crashes=1) as runtime:
        with anyio.fail_after(10):
            result = await runtime.run(Application(both), {"n": 1})
    assert result.state["won"] == 5
    assert killer.ran[1] == 1
    assert [type(one) for one in result.outcomes("race")] == [Cancelled]


async def test_a_timeout_of_an_attempt_and_a_death():
    """What is called again has its whole time again, and one that is out of time times out."""
    killer = Killer({1: 1})
    result = await Application(killer.later(seconds=2.0, timeout=5)).run({"n": 1})
    assert result.state["out"] == 10
    killer = Killer({1: 1})
    with pytest.raises(StepTimeout):
        await Application(killer.later(seconds=4.0, timeout=5)).run({"n": 1})
    assert killer.ran[1] == 2


async def test_a_timeout_of_the_child_holds_over_all_calls():
    killer = Killer({1: 2})
    act = mapped(killer.later(seconds=2.0), each=Each(timeout=5), **COLLECT)
    async with no_leaks():
        result = await Application(act).run({"ns": [1, 2]})
    assert set(result.state["bad"]) == {"1"}
    assert result.state["bad"]["1"].type == "shoal.StepTimeout"
    assert result.state["outs"] == {"2": 20}


@pytest.mark.parametrize("seconds", [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5])
async def test_a_run_that_is_cancelled_around_a_death_leaves_nothing(seconds: float):
    killer = Killer({1: 2}, workers=1, slots=2)
    async with no_leaks():
        async with Runtime() as runtime:
            with anyio.move_on_after(seconds):
                await runtime.run(
                    Application(mapped(killer.later(), limits=Limits(2) & Limits(rate=Rate(100)))),
                    {"ns": [1, 2, 3]},
                )
            assert killer.fake.pool.gate.used == 0
            assert killer.fake.pool.gate.users == 0
            assert killer.fake.pool.at_work == 0
        assert killer.fake.pool.closed == 1


async def test_limits_are_asked_again_for_each_call():
    killer = Killer({1: 2})
    hook = RecordingHook()
    limits = Limits(1, rate=Rate(1, per=10), by=lambda state: "host")
    act = killer.plain(limits=limits)
    start = anyio.current_time()
    async with no_leaks(), Runtime() as runtime:
        result = await runtime.run(Application(act, hooks=[hook]), {"n": 1})
        assert runtime.limiter(act).statistics()[0].in_use == 0
    assert result.state["out"] == 10
    assert anyio.current_time() - start == pytest.approx(20)


async def test_a_retry_of_the_child_and_deaths_count_apart():
    killer, tries = Killer({1: 1}), list[int]()

    @action(reads=["n"], writes=["out"], executor=killer.fake)
    def work(n: int) -> int:
        killer.strike(n)
        tries.append(n)
        if len(tries) < 3:
            raise ConnectionError
        return n

    hook = RecordingHook()
    act = mapped(work, each=Each(retry=Retry(3, on=ConnectionError, initial=0.1)))
    result = await Application(act, hooks=[hook]).run({"ns": [1]})
    assert result.state["outs"] == {"1": 1}
    assert len(tries) == 3
    assert [event.attempt for event in hook.of(AttemptEnded)] == [1, 2, 3]


async def test_items_are_numbered_on_when_a_stream_is_called_again():
    killer, hook = Killer({1: 1}), RecordingHook()

    @action(reads=["n"], writes=["out"], executor=killer.fake)
    async def stream(n: int) -> AsyncIterator[str | Result[int]]:
        yield "first"
        killer.strike(n)
        yield "second"
        yield Result(n)

    result = await Application(stream, hooks=[hook]).run({"n": 1})
    assert result.state["out"] == 1
    assert [event.item for event in hook.of(Item)] == ["first", "first", "second"]


async def test_a_question_that_was_asked_before_the_death_halts_the_run():
    killer = Killer({1: 1})

    @action(reads=["n"], writes=["out"], executor=killer.fake)
    async def asks(n: int, context: Context) -> str:
        try:
            return await context.ask("which", "?")
        finally:
            killer.strike(n)

    app = Application(mapped(asks), store=MemoryStore())
    result = await app.run({"ns": [1]}, id="x")
    assert result.status == "halted"
    assert [one.name for one in result.questions] == ["which"]
    result = await app.run(id="x", answers={"which": "this"})
    assert result.state["outs"] == {"1": "this"}


@pytest.mark.parametrize("dies", [True, False], ids=["dies", "asks for another try later"])
async def test_an_action_with_children_of_its_own_is_called_again(*, dies: bool):
    """Its children that are done stay so, as when it is tried again."""
    killer = Killer({"parent": int(dies), 2: 1}, workers=2)
    child = killer.plain()

    @action(writes=["total"], executor=killer.fake)
    async def parent(context: Context) -> int:
        total = 0
        async with context.fan_out(name="below") as group:
            group.start_each(child, over=[1, 2, 3], item="n", key=str)
            async for outcome in group:
                assert isinstance(outcome, Done)
                total += outcome.value
        killer.strike("parent")
        if killer.ran["parent"] == 1:
            raise RetryLater(1)
        return total

    async with no_leaks():
        result = await Application(parent, store=MemoryStore()).run()
    assert result.state["total"] == 60
    assert killer.ran == {"parent": 2, 1: 1, 2: 2, 3: 1}


@pytest.mark.parametrize("how", ["dies", "later", "retry"])
async def test_grandchildren_that_are_done_stay_so_when_the_action_is_called_again(how: str):
    """Its child was cancelled in the middle of its own children, and goes on there."""
    killer = Killer({"parent": int(how == "dies")}, workers=1)
    done = anyio.Event()

    @action(reads=["n"], writes=["out"])
    async def leaf(n: int) -> int:
        killer.ran[n] += 1
        if n == 3 and killer.ran[n] == 1:
            done.set()
            await anyio.sleep_forever()
        return n

    inner = mapped(leaf, limits=Limits(1))

    @action(writes=["total"], executor=killer.fake, retry=Retry(2, on=ConnectionError, initial=0.1))
    async def parent(context: Context) -> int:
        async with context.fan_out(name="below") as group:
            group.start(inner, {"ns": [1, 2, 3, 4]})
            await done.wait()
            killer.strike("parent")
            if killer.ran["parent"] == 1:
                raise RetryLater(1) if how == "later" else ConnectionError
            return sum([sum(one.value.values()) async for one in group if isinstance(one, Done)])

    hook = RecordingHook()
    async with no_leaks():
        result = await Application(parent, store=MemoryStore(), hooks=[hook]).run(id="x")
    assert result.state["total"] == 10
    assert killer.ran == {"parent": 2, 1: 1, 2: 1, 3: 2, 4: 1}


# -- stores ----------------------------------------------------------------------------------------


def crashing(store: MemoryStore) -> tuple[Callable[[], None], list[MemoryStore]]:
    kept: list[MemoryStore] = []
    return lambda: kept.append(store.copy()), kept


async def test_a_death_is_saved_before_the_action_is_called_again():
    killer, store = Killer({1: 1}), MemoryStore()
    keep, kept = crashing(store)

    @action(reads=["n"], writes=["out"], executor=killer.fake)
    async def work(n: int) -> int:
        if killer.ran[n]:
            keep()
            await anyio.sleep_forever()
        killer.strike(n)
        return n

    async with Runtime(store=store) as runtime:
        with anyio.move_on_after(5):
            await runtime.run(Application(mapped(work), name="app"), {"ns": [1]}, id="x")
    # What is kept is as the process had left it, had it died in the second call.
    killer.ran.clear()
    killer.left[1] = 0
    async with Runtime(store=kept[0], max_crashes=1) as runtime:
        app = Application(mapped(killer.plain(), **COLLECT), name="app")
        result = await runtime.run(app, {"ns": [1]}, id="x")
    (outcome,) = result.outcomes("map")
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, Poisoned), "one crash is known of it, and one is allowed"


async def test_a_death_among_others_condemns_none_of_them_in_the_next_life():
    """What was saved of them is less than what condemns, also where one death does."""
    killer, store = Killer({1: 1}, workers=1), MemoryStore()
    keep, kept = crashing(store)

    @action(reads=["n"], writes=["out"], executor=killer.fake)
    async def work(n: int) -> int:
        if killer.ran[n]:
            keep()
            await anyio.sleep_forever()
        await anyio.sleep(n)
        killer.strike(n)
        return n

    async with Runtime(store=store, max_crashes=1) as runtime:
        with anyio.move_on_after(50):
            await runtime.run(Application(mapped(work), name="app"), {"ns": [1, 2]}, id="x")
    killer.ran.clear()
    async with Runtime(store=kept[-1], max_crashes=1) as runtime:
        result = await runtime.run(
            Application(mapped(killer.plain(), **COLLECT), name="app"), {"ns": [1, 2]}, id="x"
        )
    assert not result.state["bad"]
    assert len(result.state["outs"]) == 2


@pytest.mark.parametrize("own", [False, True])
async def test_the_count_is_down_to_nothing_once_it_has_ended(own: bool):
    killer, store, other = Killer({1: 2, 2: MANY, 4: 1}), MemoryStore(), MemoryStore()

    @action(reads=["n"], writes=["out"], executor=killer.fake)
    def work(n: int) -> int:
        killer.strike(n)
        if n == 4:
            raise ValueError(n)
        return n

    act = mapped(work, store=other if own else store, **COLLECT)
    async with no_leaks(), Runtime(store=store) as runtime:
        await runtime.run(Application(act, name="app"), {"ns": [1, 2, 3, 4]}, id="x")
    root = RunPath(run_id="x", act="app")
    counted = {record.key: record.crashes for record in await store.children(root, "map", 0)}
    assert counted == {"1": 0, "2": 3, "3": 0, "4": 0}
    if own:
        counted = {record.key: record.crashes for record in await other.children(root, "map", 0)}
        assert counted == {"1": 0, "2": 3, "3": 0, "4": 0}


async def test_a_resumed_run_goes_on_with_what_others_have_done():
    """A run that has failed because of a death tries it again, when its cause is mended."""
    killer, store = Killer({2: 3}), MemoryStore()
    app = Application(mapped(killer.plain()), store=store)
    with pytest.raises(ExceptionGroup) as caught:
        await app.run({"ns": [1, 2, 3]}, id="x")
    assert caught.group_contains(Poisoned)
    result = await app.run(id="x")
    assert result.state["outs"] == {"1": 10, "2": 20, "3": 30}
    assert killer.ran[1] == 1


async def test_with_a_save_that_fails_after_the_death_the_run_ends(monkeypatch: pytest.MonkeyPatch):
    killer, store = Killer({1: 1}), MemoryStore()
    save = store.save

    def full(batch: Batch) -> Any:
        if batch.run.crashes:
            raise OSError("no space left")
        return save(batch)

    monkeypatch.setattr(store, "save", full)
    async with no_leaks():
        with pytest.raises(StoreFailed):
            await Application(mapped(killer.plain()), store=store).run({"ns": [1]}, id="x")
    assert killer.ran[1] == 1


async def test_a_state_is_what_it_was_in_a_further_call():
    killer = Killer({1: 1})

    @action(reads=["n", "log"], writes=["log"], executor=killer.fake)
    def add(state: State) -> State:
        after = state.append(log=state["n"])
        killer.strike(state["n"])
        return after

    result = await Application(add).run({"n": 1, "log": ["a"]})
    assert result.state["log"] == ["a", 1]


async def test_a_store_that_fails_is_named_though_the_worker_of_the_parent_has_died_too(
    monkeypatch: pytest.MonkeyPatch,
):
    killer, store = Killer({1: 1}, workers=1), MemoryStore()
    work, save = killer.later(), store.save

    @action(writes=["got"], executor=killer.fake)
    async def parent(context: Context) -> int:
        async with context.fan_out(name="map") as group:
            group.start(work, {"n": 1}, key=1)
            return len([outcome async for outcome in group])

    def is_full(batch: Batch) -> object:
        if killer.left[1] == 0:
            msg = "the disk is full"
            raise OSError(msg)
        return save(batch)

    monkeypatch.setattr(store, "save", is_full)
    with pytest.raises(StoreFailed, match="the disk is full"):
        await Application(parent, store=store).run(id="r")
