"""Tracebacks of what a run raises have the user's frames, and few of shoal."""

from __future__ import annotations

import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, NoReturn, cast

import anyio
import pytest

from shoal import (
    Application,
    Context,
    Hook,
    MemoryStore,
    Result,
    Runtime,
    State,
    action,
    fan_out,
    race,
)
from shoal.errors import HookFailed, MissingField, ShoalError, UndeclaredRead
from shoal.events import StateUpdated
from shoal.stores import Store
from shoal.testing import crash_everywhere, simulate
from tests.starters import anyio_run

pytestmark = pytest.mark.anyio


def fail() -> NoReturn:
    raise LookupError("gone")


@action(reads=["n"], writes=["m"])
async def look(n: int) -> int:
    await anyio.lowlevel.checkpoint()
    fail()


@action(reads=["n"], writes=["m"])
def look_in_a_thread(n: int) -> int:
    fail()


@action(reads=["n"], writes=["m"])
async def look_streaming(n: int) -> AsyncIterator[int | Result[int]]:
    yield 1
    fail()


def names(error: BaseException) -> list[str]:
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


def modules(error: BaseException) -> list[str]:
    walked = traceback.walk_tb(error.__traceback__)
    return [frame.f_globals["__name__"].partition(".")[0] for frame, _ in walked]


async def run(app: Application[Any]) -> object:
    return await app.run({"n": 1})


async def run_in_a_runtime(app: Application[Any]) -> object:
    async with Runtime() as runtime:
        return await runtime.run(app, {"n": 1})


async def run_started(app: Application[Any]) -> object:
    async with Runtime() as runtime:
        handle = await runtime.start(app, {"n": 1})
        return await handle.result()


async def run_opened(app: Application[Any]) -> object:
    async with app.open({"n": 1}) as opened:
        return await opened.result()


async def run_read(app: Application[Any]) -> object:
    async with app.open({"n": 1}) as opened:
        return [event async for event in opened]


async def run_stepwise(app: Application[Any]) -> object:
    async with app.open({"n": 1}, stepwise=True) as opened:
        return await opened.step()


WAYS = [run, run_in_a_runtime, run_started, run_opened, run_read, run_stepwise]
Way = Callable[[Application[Any]], Coroutine[Any, Any, object]]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("act", [look, look_in_a_thread, look_streaming], ids=lambda act: act.name)
async def test_only_the_users_frames_are_left(way: Way, act: Any):
    with pytest.raises(LookupError) as info:
        await way(Application(act))
    found = names(info.value)
    assert found[0] == "test_only_the_users_frames_are_left"
    assert found[-2:] == [act.function.__name__, "fail"]
    assert way.__name__ in found
    assert set(modules(info.value)).isdisjoint(("shoal", "anyio", "asyncio"))
    assert info.value.__notes__  # what shoal says of it stays


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_event_loop_of_run_sync_is_left_out(backend: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(anyio, "run", anyio_run)  # the frames of a starter of tests would stay
    with pytest.raises(LookupError) as info:
        Application(look).run_sync({"n": 1}, backend=backend)
    assert names(info.value) == ["test_the_event_loop_of_run_sync_is_left_out", "look", "fail"]


async def test_all_frames_on_request(monkeypatch: Any):
    monkeypatch.setenv("SHOAL_TRACEBACKS", "full")
    with pytest.raises(LookupError) as info:
        await Application(look).run({"n": 1})
    assert "shoal" in modules(info.value)
    assert len(names(info.value)) > 8


async def test_what_shoal_raises_keeps_its_innermost_frame():
    with pytest.raises(MissingField) as info:
        await Application(look).run({})
    assert modules(info.value).count("shoal") == 1

    @action(reads=["n"], writes=["m"])
    async def wrong(state: State) -> State:
        return state.update(m=state["other"])

    with pytest.raises(UndeclaredRead) as found:
        await Application(wrong).run({"n": 1})
    assert "wrong" in names(found.value)
    assert modules(found.value)[-1] == "shoal"
    assert modules(found.value).count("shoal") == 1


async def test_the_errors_of_a_group_are_shortened_too():
    inner = fan_out(look, over="numbers", item="n", name="inner")
    outer = fan_out(inner, over="lists", item="numbers", name="outer")
    with pytest.raises(ExceptionGroup) as info:
        await Application(outer).run({"lists": [[1]]})
    error: Any = info.value
    while isinstance(error, ExceptionGroup):
        assert modules(cast("Any", error)).count("shoal") == 1
        (error,) = cast("Any", error).exceptions
    assert names(error) == ["look", "fail"]


async def test_an_action_between_two_runs_stays():
    @action(reads=["n"], writes=["m"])
    async def middle(n: int, context: Context) -> int:
        async with context.fan_out(name="below") as group:
            group.start(look, {"n": n})
        return n

    with pytest.raises(ExceptionGroup) as info:
        await Application(middle).run({"n": 1})
    assert "middle" in names(info.value)
    assert names(info.value.exceptions[0]) == ["look", "fail"]


async def test_a_cause_is_shortened_too():
    class Guard(Hook):
        async def on_state_updated(self, event: StateUpdated) -> None:
            fail()

    @action(writes=["m"])
    async def fine() -> int:
        return 1

    with pytest.raises(HookFailed) as info:
        await Application(fine, hooks=[Guard()]).run({})
    assert info.value.__cause__ is not None
    assert names(info.value.__cause__) == ["on_state_updated", "fail"]


async def test_the_frames_of_other_packages_stay_where_the_user_has_called_them():
    @action(writes=["m"])
    async def send() -> int:
        sender, receiver = anyio.create_memory_object_stream[int](1)
        receiver.close()
        with sender:
            sender.send_nowait(1)
        return 1

    with pytest.raises(anyio.BrokenResourceError) as info:
        await Application(send).run({})
    assert names(info.value)[-1] == "send_nowait"
    assert modules(info.value)[-1] == "anyio"


async def test_causes_in_a_circle_end():
    @action(writes=["m"])
    async def circle() -> int:
        first, second = ValueError("1"), ValueError("2")
        first.__cause__, second.__context__ = second, first
        raise first

    with pytest.raises(ValueError, match="1"):
        await Application(circle).run({})


async def test_an_exception_whose_class_hides_its_traceback_is_no_trouble():
    class Odd(Exception):
        @property
        def __traceback__(self) -> NoReturn:  # pyright: ignore[reportIncompatibleVariableOverride]
            raise AssertionError

        def with_traceback(self, tb: object) -> NoReturn:  # pyright: ignore[reportIncompatibleMethodOverride]
            raise AssertionError

    @action(writes=["m"])
    async def odd() -> int:
        raise Odd

    with pytest.raises(Odd):
        await Application(odd).run({})


async def test_a_race_that_nobody_wins_is_shortened():
    with pytest.raises(ExceptionGroup) as info:
        await Application(race(look, look.bind(name="two"), take="m", into="m")).run({"n": 1})
    assert isinstance(info.value, ShoalError)
    assert [names(error)[-1] for error in info.value.exceptions] == ["fail", "fail"]


collecting = fan_out(
    look, over="ns", item="n", key=int, into="ms", errors_into="failed", on_error="collect"
)


async def test_a_collected_failure_has_the_users_frames_alone():
    for act in (look, look_in_a_thread, look_streaming):
        step = fan_out(
            act, over="ns", item="n", take="m", into="ms", errors_into="bad", on_error="collect"
        )
        (error,) = (await Application(step).run({"ns": [1]})).state["bad"].values()
        assert ", in fail" in error.traceback
        assert "_engine" not in error.traceback


async def test_a_collected_failure_has_all_frames_on_request(monkeypatch: Any):
    monkeypatch.setenv("SHOAL_TRACEBACKS", "full")
    state = (await Application(collecting).run({"ns": [1]})).state
    assert "_engine" in state["failed"][1].traceback


def test_a_collected_failure_is_the_same_after_a_crash():
    async def scenario(store: Store) -> State:
        app = Application(collecting, store=store)
        return (await app.run({"ns": [1, 2]}, id="today")).state

    assert crash_everywhere(scenario) > 2
    app = Application(collecting, store=MemoryStore())
    simulate(app, {"ns": [1, 2]}, faults=["dies-before", "dies-after"], seeds=20)
