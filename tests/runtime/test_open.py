"""Opened runs: events, steps and ends, while the run goes on; nothing lost, hung or left alive."""

from __future__ import annotations

import asyncio
import gc
import math
import signal
import sys
import warnings
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from shoal import Application, Cancelled, Graph, Hook, Limits, RunCancelled, State, action, fan_out
from shoal.errors import BadUse, DefinitionError, HookFailed, MissingInput
from shoal.events import (
    ChildEnded,
    ChildStarted,
    Event,
    Missed,
    RunEnded,
    RunStarted,
    StateUpdated,
    StepEnded,
    StepStarted,
    Update,
)
from shoal.stores import replay
from shoal.stores._protocol import Batch, NullStore
from shoal.testing import RecordingHook, VirtualTimeLoop, no_leaks, run_virtual
from shoal.types import OpenRun
from tests.sweeps import EVERYWHERE, at_any_turn

pytestmark = pytest.mark.anyio
BACKENDS: Any = ("asyncio", "trio")


@action(reads=["item"], writes=["value"])
async def nap(item: float) -> float:
    """Takes as many seconds as its element says; its cleanup takes half a second."""
    try:
        await anyio.sleep(item)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.5)
    return item


@action(reads=["item"], writes=["value"])
async def tick(item: int) -> int:
    await checkpoint()
    if item < 0:
        raise ValueError(item)
    return item


@action(reads=[], writes=["first"])
async def first() -> int:
    await anyio.sleep(1)
    return 1


@action(reads=[], writes=["second"])
async def second() -> int:
    await anyio.sleep(1)
    return 2


@action(reads=[], writes=["third"])
async def third() -> int:
    await anyio.sleep(1)
    return 3


@action(reads=[], writes=["-"])
async def fail() -> None:
    await anyio.sleep(1)
    raise ValueError("failed")


def naps(n: int = 100) -> Graph:
    return Graph.chain(fan_out(nap, over="n", into="out", limits=Limits(n)))


def ticks(n: int = 100) -> Graph:
    return Graph.chain(fan_out(tick, over="n", into="out", limits=Limits(n)))


class Counting(Hook):
    """Counts what was published."""

    def __init__(self) -> None:
        self.count = 0

    def on_run_started(self, event: Any) -> None:
        self.count += 1

    on_step_started = on_state_updated = on_child_started = on_child_ended = on_run_started
    on_step_ended = on_run_ended = on_run_started


# -- reading ---------------------------------------------------------------------------------------


@pytest.mark.realtime
@pytest.mark.parametrize("buffer", [1, 2, 1000])
async def test_events_of_the_run_and_its_descendants_are_read_in_order(buffer: int):
    inner = fan_out(tick, over="item", item="item", into="out", name="inner")
    hook = RecordingHook()
    app = Application(fan_out(inner, over="n", item="item", into="outs", take="out"), hooks=[hook])
    async with no_leaks(), app.open({"n": [[1, 2], [3]]}, id="r", buffer=buffer) as run:
        events = [event async for event in run]
        assert run.status == "succeeded"
        assert (await run.result()).state["outs"] == [[1, 2], [3]]
    hook.assert_paired()
    assert events == hook.events
    assert isinstance(events[0], RunStarted)
    assert isinstance(events[-1], RunEnded)
    assert {event.depth for event in events} == {0, 1, 2}
    assert run.run_id == "r"


async def test_an_opened_run_advances_on_its_own():
    async with Application(Graph.chain(first, second)).open() as run:
        assert run.status is None
        await anyio.sleep(1.5)
        assert run.state == {"first": 1}
        await anyio.sleep(1)
        assert run.status == "succeeded"
        assert run.state == {"first": 1, "second": 2}
        events = [event async for event in run]
        assert isinstance(events[0], RunStarted)
        assert [event async for event in run] == []


async def test_where_nobody_iterates_the_oldest_events_are_dropped():
    hook = RecordingHook()
    app = Application(ticks(), hooks=[hook])
    async with app.open({"n": range(100)}, buffer=10, id="r") as run:
        result = await run.result()
        missed, *rest = [event async for event in run]
    assert missed == Missed(path=hook.events[0].path, count=len(hook.events) - 10)
    assert missed.run_id == "r"
    assert rest == hook.events[-10:]
    assert result.state["out"] == list(range(100))
    assert result.outcomes("out").done == 100


async def test_an_end_that_nobody_looks_at_is_no_failure():
    async with Application(ticks()).open({"n": range(5)}) as run:
        await anyio.sleep(1)
    assert run.status == "succeeded"
    assert (await run.result()).state["out"] == list(range(5))


async def test_a_slow_consumer_holds_the_run_back():
    """For longer than other hooks may take; and at most what is in flight goes beyond."""
    counting = Counting()
    app = Application(ticks(3), hooks=[counting])
    read = 0
    ahead = 0
    async with app.open({"n": range(20)}, buffer=8) as run:
        async for event in run:
            assert not isinstance(event, Missed)
            read += 1
            await anyio.sleep(100)
            ahead = max(ahead, counting.count - read)
    assert read == counting.count
    assert 8 <= ahead <= 8 + 4


@pytest.mark.sweep
@pytest.mark.parametrize("buffer", [1, 3])
async def test_a_fan_out_of_thousands_through_a_tiny_buffer(buffer: int):
    app = Application(ticks(1000))
    ended = list[int]()
    async with no_leaks(), app.open({"n": range(3000)}, buffer=buffer) as run:
        async for event in run:
            if isinstance(event, ChildEnded):
                ended.append(event.outcome.position)
            assert len(run._stream._events) <= buffer + 1001
        assert sorted(ended) == list(range(3000))
        assert run.state["out"] == list(range(3000))


async def test_a_timeout_around_one_item_loses_no_event():
    hook = RecordingHook()
    app = Application(naps(), hooks=[hook])
    events, timeouts = list[Event](), 0
    async with app.open({"n": [1, 2.25, 3.5, 10]}, buffer=2) as run:
        while True:
            with anyio.move_on_after(0.1) as scope:
                try:
                    event = await anext(run)
                except StopAsyncIteration:
                    break
                events.append(event)
            timeouts += scope.cancelled_caught
            if len(events) == 10:
                await anyio.sleep(60)
    assert events == hook.events
    assert timeouts > 20


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("buffer", [1, 5])
def test_reading_cancelled_at_any_turn_loses_no_event(backend: Any, buffer: int):
    async def go(after: int) -> None:
        hook = RecordingHook()
        app = Application(ticks(3), hooks=[hook])
        events = list[Event]()

        async def stop(scope: anyio.CancelScope) -> None:
            for _ in range(after):
                await checkpoint()
            scope.cancel()

        async def read(run: OpenRun) -> None:
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(stop, scope)
                    async for event in run:
                        events.append(event)
                    tasks.cancel_scope.cancel()

        async with app.open({"n": range(8)}, buffer=buffer) as run:
            await read(run)
            while (event := await anext(run, None)) is not None:
                events.append(event)
                await read(run)
        missed = [event.count for event in events if isinstance(event, Missed)]
        assert len(events) - len(missed) + sum(missed) == len(hook.events)
        kept = [event for event in events if not isinstance(event, Missed)]
        places = [hook.events.index(event) for event in kept]
        assert places == sorted(places)

    for after in range(12):
        for seed in range(3):
            run_virtual(go, after, backend=backend, seed=seed)


async def test_what_a_loop_that_was_left_would_have_held_back_goes_on():
    app = Application(ticks(5))
    async with app.open({"n": range(50)}, buffer=4) as run:
        async for _ in run:
            await anyio.sleep(1)
            assert run.status is None
            break
        await anyio.sleep(1)
        assert run.status == "succeeded"
        assert isinstance(await anext(run), Missed)


async def test_a_loop_that_raised_holds_nothing_back():
    app = Application(ticks(5))
    async with app.open({"n": range(50)}, buffer=4) as run:
        try:
            async for _ in run:
                await anyio.sleep(1)
                raise LookupError
        except LookupError:
            await anyio.sleep(1)
            assert run.status == "succeeded"


async def test_a_reader_of_single_events_holds_the_run_back_until_it_is_awaited():
    app = Application(ticks(5))
    async with app.open({"n": range(50)}, buffer=4) as run:
        assert isinstance(await anext(run), RunStarted)
        await anyio.sleep(100)
        assert run.status is None
        assert len((await run.result()).state["out"]) == 50
        assert isinstance(await anext(run), Missed)


@pytest.mark.parametrize("where", ["inside the loop", "after break", "after anext", "never read"])
async def test_nothing_hangs_when_the_consumer_calls_result(where: str):
    app = Application(ticks(50))
    async with app.open({"n": range(100)}, buffer=1) as run:
        match where:
            case "inside the loop":
                async for _ in run:
                    await anyio.sleep(1)
                    await run.result()
            case "after break":
                async for _ in run:
                    await anyio.sleep(1)
                    break
            case "after anext":
                await anext(run)
                await anyio.sleep(1)
            case _:
                pass
        assert len((await run.result()).state["out"]) == 100


async def test_a_reader_beside_a_task_that_waits_for_the_result_misses_nothing():
    hook = RecordingHook()
    app = Application(ticks(5), hooks=[hook])
    events = list[Event]()

    async def show(run: OpenRun) -> None:
        async for event in run:
            events.append(event)
            await anyio.sleep(1)

    async with app.open({"n": range(20)}, buffer=8) as run, anyio.create_task_group() as tasks:
        tasks.start_soon(show, run)
        await anyio.sleep(0.5)
        await run.result()
    assert events == hook.events


async def test_a_reader_that_stops_releases_a_task_that_waits_for_the_result():
    app = Application(ticks(5))

    async def show(run: OpenRun) -> None:
        async for _ in run:
            await anyio.sleep(10)
            break

    async with app.open({"n": range(20)}, buffer=2) as run, anyio.create_task_group() as tasks:
        tasks.start_soon(show, run)
        await anyio.sleep(0.5)
        await run.result()
        assert anyio.current_time() == 10


async def test_two_loops_in_one_task_share_the_events():
    hook = RecordingHook()
    app = Application(ticks(5), hooks=[hook])
    events = list[Event]()
    async with app.open({"n": range(20)}, buffer=2) as run:
        async for event in run:
            events.append(event)
            if isinstance(event, ChildStarted) and event.position == 7:
                async for inner in run:
                    events.append(inner)
                    await anyio.sleep(1)
                    if isinstance(inner, ChildEnded):
                        break
                await anyio.sleep(1)
                events.append(await anext(run))
    assert events == hook.events


# -- failures --------------------------------------------------------------------------------------


async def test_a_failure_is_raised_after_all_events_bare():
    hook = RecordingHook()
    app = Application(Graph.chain(first, fail), hooks=[hook])
    events = list[Event]()
    async with app.open() as run:
        await anyio.sleep(5)  # it is over, and all is buffered
        with pytest.raises(ValueError, match="failed") as caught:
            async for event in run:
                events.append(event)
        assert events == hook.events
        assert run.status == "failed"
        assert run.state == {"first": 1}
        with pytest.raises(ValueError, match="failed"):
            await run.result()
        with pytest.raises(ValueError, match="failed"):
            await anext(run)
    assert "in action 'fail'" in caught.value.__notes__[0]
    assert run.state == {"first": 1}
    assert run.status == "failed"
    with pytest.raises(BadUse, match="failed"):
        await run.result()


async def test_a_failure_travels_through_the_block_bare():
    for read in (True, False):
        with pytest.raises(ValueError, match="failed"):
            async with Application(fail).open() as run:
                if read:
                    async for _ in run:
                        pass
                else:
                    await run.result()


async def test_a_failure_that_was_raised_nowhere_is_raised_on_leaving():
    with pytest.raises(ValueError, match="failed"):
        async with Application(fail).open() as run:
            await anyio.sleep(2)
            assert run.status == "failed"
    with pytest.raises(ValueError, match="failed"):
        async with Application(fail).open() as run:
            async for _ in run:
                await anyio.sleep(2)
                break


async def test_a_failure_that_was_raised_is_not_raised_again():
    async with Application(fail).open() as run:
        with suppress(ValueError):
            await run.result()
    with pytest.raises(LookupError):
        async with Application(fail).open() as run:
            with suppress(ValueError):
                await run.result()
            raise LookupError


async def test_a_failing_block_and_a_failed_run_are_raised_together():
    with pytest.RaisesGroup(
        pytest.RaisesExc(LookupError), pytest.RaisesExc(ValueError, match="failed")
    ):
        async with Application(fail).open():
            await anyio.sleep(2)
            raise LookupError


async def test_a_failure_does_not_interrupt_what_the_consumer_awaits():
    app = Application(Graph.chain(fan_out(tick, over="n", into="out")))
    async with app.open({"n": [1, -1]}) as run:
        worked = 0
        with pytest.RaisesGroup(ValueError):
            async for _ in run:
                await anyio.sleep(10)
                worked += 1
        assert worked == anyio.current_time() / 10 > 5


async def test_a_cleanup_that_fails_while_the_block_is_left_is_raised():
    run: OpenRun | None = None

    @action(reads=[], writes=["-"])
    async def messy() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise LookupError("cleanup")

    with pytest.raises(LookupError, match="cleanup"):
        async with Application(messy).open() as run:
            await anyio.sleep(1)
    assert run is not None
    assert run.status == "failed"
    with anyio.CancelScope() as scope:
        async with Application(messy).open() as run:
            await anyio.sleep(1)
            scope.cancel()
            await anyio.sleep(1)
    assert scope.cancelled_caught


async def test_a_hook_that_fails_is_the_runs_failure_and_published_in_its_place():
    class Guard(Hook):
        def on_step_ended(self, event: StepEnded) -> None:
            raise LookupError

    async with Application(first, hooks=[Guard()]).open() as run:
        events = list[Event]()
        with pytest.raises(HookFailed):
            async for event in run:
                events.append(event)
        assert [type(event) for event in events[-3:]] == [StateUpdated, StepEnded, RunEnded]


async def test_no_cycle_of_garbage_is_left():
    class Refusal(Exception):
        pass

    refs = list[weakref.ref[BaseException]]()

    @action(reads=[], writes=["-"])
    async def refuse() -> None:
        error = Refusal()
        refs.append(weakref.ref(error))
        try:
            raise error
        finally:
            del error

    async def once(how: str) -> None:
        async with Application(refuse).open() as run:
            match how:
                case "read":
                    while True:
                        await anext(run)  # a loop's variable would hold the event of the failure
                case "result":
                    await run.result()
                case _:
                    await anyio.sleep(1)

    gc.collect()
    gc.disable()
    try:
        for how in ("read", "result", "left"):
            with suppress(Refusal):
                await once(how)
            await checkpoint()
            assert refs.pop()() is None, how
    finally:
        gc.enable()


# -- leaving ---------------------------------------------------------------------------------------


class Ends(Hook):
    """Notes how runs and children end."""

    def __init__(self) -> None:
        self.ends = list[RunEnded]()
        self.children = list[ChildEnded]()

    def on_run_ended(self, event: RunEnded) -> None:
        if event.depth == 0:
            self.ends.append(event)

    def on_child_ended(self, event: ChildEnded) -> None:
        self.children.append(event)


@pytest.mark.parametrize("how", ["break", "raise", "end", "return"])
async def test_leaving_early_cancels_the_run_and_awaits_its_cleanup(how: str):
    ends = Ends()
    app = Application(naps(3), hooks=[ends])

    async def leave() -> str | None:
        async with app.open({"n": [1, 100, 100, 100]}, buffer=2) as run:
            if how == "end":
                await anyio.sleep(5)
                return None
            async for event in run:
                if isinstance(event, ChildEnded):
                    if how == "break":
                        break
                    if how == "raise":
                        raise LookupError
                    return "returned"
        return None

    async with no_leaks():
        try:
            assert await leave() == ("returned" if how == "return" else None)
        except LookupError as error:
            assert (how, error.__context__) == ("raise", None)  # noqa: PT017
        else:
            assert how != "raise"
    (end,) = ends.ends
    assert (end.status, end.reason, end.error) == ("cancelled", "closed", None)
    assert anyio.current_time() == (5.5 if how == "end" else 2)
    assert sum(isinstance(child.outcome, Cancelled) for child in ends.children) >= 2


async def test_the_garbage_after_a_break_is_silent():
    async def use() -> None:
        async with Application(naps()).open({"n": [100]}) as run:
            async for _ in run:
                break

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        await use()
        gc.collect()
        with anyio.CancelScope():
            await anyio.sleep(0.01)
    assert not warned


async def test_an_outer_scope_that_is_cancelled():
    run: OpenRun | None = None
    ends = Ends()
    app = Application(naps(), hooks=[ends])
    async with no_leaks():
        with anyio.move_on_after(3) as scope:
            async with app.open({"n": [1, 100]}, buffer=1) as run:
                async for _ in run:
                    await anyio.sleep(0.25)
        assert scope.cancelled_caught
    assert ends.ends[0].status == "cancelled"
    assert run is not None
    assert run.status == "cancelled"
    assert anyio.current_time() == 3.5


async def test_a_caller_that_is_cancelled_already_starts_nothing():
    hook = RecordingHook()
    with anyio.CancelScope() as scope:
        scope.cancel()
        async with Application(ticks(), hooks=[hook]).open({"n": [1]}):
            pytest.fail("entered")
    assert scope.cancelled_caught
    assert not hook.events


async def test_a_cancellation_while_the_block_is_being_left_awaits_the_cleanup():
    for error in (None, LookupError):
        ends = Ends()
        with anyio.move_on_after(1.25) as scope:
            async with Application(naps(), hooks=[ends]).open({"n": [100]}):
                await anyio.sleep(1)
                if error is not None:
                    raise error
        assert scope.cancelled_caught
        assert ends.ends[0].reason == "closed"


async def test_a_block_left_in_another_task_ends_the_run_and_says_so():
    ends = Ends()
    app = Application(naps(), hooks=[ends])
    opened = app.open({"n": [100]})

    async def leave() -> None:
        with pytest.raises(BadUse, match="another task"):
            await opened.__aexit__(None, None, None)

    async with no_leaks(), opened:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leave)
        assert opened.status == "cancelled"
    assert ends.ends[0].reason == "closed"


async def test_a_reader_in_another_task_learns_that_the_block_was_left():
    received = list[str]()

    async def read(run: OpenRun, delay: float) -> None:
        try:
            async for _ in run:
                await anyio.sleep(delay)
        except BadUse as error:
            received.append(str(error))

    for delay in (0, 1000):
        async with (
            anyio.create_task_group() as tasks,
            Application(naps()).open({"n": [100]}, buffer=1) as run,
        ):
            tasks.start_soon(read, run, delay)
            await anyio.sleep(50)
    assert ["block was left" in message for message in received] == [True, True]


async def test_a_waiter_in_another_task_learns_how_the_run_ended():
    received = list[BaseException]()

    async def wait(run: OpenRun) -> None:
        try:
            await run.result()
        except (RunCancelled, ValueError) as error:
            received.append(error)

    async with anyio.create_task_group() as tasks, Application(naps()).open({"n": [100]}) as run:
        tasks.start_soon(wait, run)
        await anyio.sleep(1)
    assert "closed" in str(received.pop())
    async with anyio.create_task_group() as tasks:
        with suppress(ValueError):
            async with Application(Graph.chain(first, fail)).open() as run:
                tasks.start_soon(wait, run)
                await anyio.sleep(2)
    assert isinstance(received.pop(), ValueError | RunCancelled)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_handle_that_was_never_left_warns(backend: Any):
    async def go() -> None:
        opened = Application(ticks()).open({"n": [1, 2]}, id="forgotten")
        await opened.__aenter__()
        await opened.result()
        runtime = opened._runtime
        with pytest.warns(ResourceWarning, match="forgotten: succeeded> was never left"):  # noqa: PT031
            del opened
            gc.collect()
        await runtime.__aexit__(None, None, None)

    run_virtual(go, backend=backend)


async def test_a_handle_that_was_never_entered_is_silent():
    opened = Application(ticks()).open({"n": [1, 2]}, id="x")
    assert repr(opened) == "<OpenRun x: not yet opened>"
    del opened
    gc.collect()


# -- cancelling ------------------------------------------------------------------------------------


async def test_the_consumer_cancels_the_run_and_reads_on():
    hook = RecordingHook()
    app = Application(naps(3), hooks=[hook])
    events = list[Event]()
    async with no_leaks(), app.open({"n": [1, 100, 100, 100]}, buffer=1) as run:
        async for event in run:
            events.append(event)
            if isinstance(event, ChildEnded):
                await anyio.sleep(10)  # the channel is full
                run.cancel("enough")
                run.cancel("too late")
        assert run.status == "cancelled"
        with pytest.raises(RunCancelled, match="enough"):
            await run.result()
        run.cancel("it is over")
    hook.assert_paired()
    assert events == hook.events
    end = events[-1]
    assert isinstance(end, RunEnded)
    assert (end.status, end.reason) == ("cancelled", "enough")
    with pytest.raises(RunCancelled, match="enough"):
        await run.result()


async def test_the_consumer_cancels_the_run_and_waits_for_its_end_inside_its_loop():
    async with Application(naps(3)).open({"n": [1, 100, 100, 100]}, buffer=1) as run:
        async for event in run:
            if isinstance(event, ChildEnded):
                await anyio.sleep(10)
                run.cancel("enough")
                with pytest.raises(RunCancelled):
                    await run.result()


async def test_the_run_is_cancelled_from_outside_while_the_channel_is_full():
    hook = RecordingHook()
    app = Application(naps(3), hooks=[hook])

    async def cancel(run: OpenRun) -> None:
        await anyio.sleep(10)
        run.cancel("from outside")

    events = list[Event]()
    async with (
        app.open({"n": [1, 100, 100, 100]}, buffer=1) as run,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(cancel, run)
        async for event in run:
            events.append(event)
            await anyio.sleep(4)
    assert events == hook.events
    assert run.status == "cancelled"


async def test_cancelling_before_the_run_took_its_first_turn():
    async with Application(first).open() as run:
        run.cancel("at once")
        with pytest.raises(RunCancelled, match="at once"):
            await run.result()
        assert run.state == {}


async def test_a_cancelled_wait_for_the_result_leaves_the_run_alone():
    async with Application(Graph.chain(first, second)).open() as run:
        with anyio.move_on_after(1.5) as scope:
            await run.result()
        assert scope.cancelled_caught
        assert run.status is None
        assert (await run.result()).state == {"first": 1, "second": 2}


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("how", ["read", "result", "step", "leave", "raise", "cancel"])
async def test_keyboard_interrupt_and_system_exit_come_bare_out_of_the_block(
    how: str, kind: type[BaseException]
):
    @action(reads=[], writes=["-"])
    async def stop() -> None:
        await checkpoint()
        raise kind("stop")

    caught: BaseException | None = None
    async with no_leaks():
        with anyio.CancelScope() as scope:
            try:
                async with Application(stop).open(stepwise=how == "step") as run:
                    match how:
                        case "read":
                            async for _ in run:
                                pass
                        case "result":
                            await run.result()
                        case "step":
                            await run.step()
                        case "leave":
                            await anyio.sleep(1)
                        case "raise":
                            await anyio.sleep(1)
                            raise LookupError
                        case _:
                            await anyio.sleep(1)
                            scope.cancel()
                            await anyio.sleep(1)
            except kind as error:
                caught = error
    assert repr(caught) == f"{kind.__name__}('stop')"


# -- steps -----------------------------------------------------------------------------------------


async def test_a_stepwise_run_takes_one_step_at_a_time():
    hook = RecordingHook()
    app = Application(Graph.chain(first, fan_out(nap, over="n", into="out"), third), hooks=[hook])
    seen = list[tuple[str, float, int]]()
    async with app.open({"n": [1, 2]}, stepwise=True) as run:
        await anyio.sleep(10)
        assert hook.names() == ["RunStarted"]
        while (step := await run.step()) is not None:
            seen.append((step, anyio.current_time(), len(run.state)))
            await anyio.sleep(10)
            started = sum(isinstance(e, StepStarted) and e.depth == 0 for e in hook.events)
            assert started == len(seen)
        assert run.status == "succeeded"
        assert await run.step() is None
        assert (await run.result()).state == {"n": [1, 2], "first": 1, "out": [1, 2], "third": 3}
    assert seen == [("first", 11, 2), ("out", 23.5, 3), ("third", 34.5, 4)]


async def test_a_cancelled_step_goes_on_and_the_next_call_waits_for_it():
    async with Application(Graph.chain(first, second, third)).open(stepwise=True) as run:
        with anyio.move_on_after(0.5) as scope:
            await run.step()
        assert scope.cancelled_caught
        assert await run.step() == "first"
        assert anyio.current_time() == 1
        assert run.state == {"first": 1}
        with anyio.move_on_after(0.5) as scope:
            await run.step()
        await anyio.sleep(10)  # it ended meanwhile, and no other began
        assert run.state == {"first": 1, "second": 2}
        assert await run.step() == "second"
        assert run.state == {"first": 1, "second": 2}
        with anyio.move_on_after(0.5) as scope:
            await run.step()
        await anyio.sleep(10)
        assert run.status == "succeeded"
        assert await run.step() == "third"
        assert await run.step() is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_stepping_cancelled_at_any_turn_reports_each_step_once(backend: Any):
    acts = [action(reads=["n"], writes=["n"], name=f"s{i}")(partial_step) for i in range(5)]

    async def go(after: int) -> None:
        steps = list[str]()

        async def stop(scope: anyio.CancelScope) -> None:
            for _ in range(after):
                await checkpoint()
            scope.cancel()

        async with Application(Graph.chain(*acts)).open({"n": 0}, stepwise=True) as run:
            while run.status is None or len(steps) < len(acts):
                with anyio.CancelScope() as scope:
                    async with anyio.create_task_group() as tasks:
                        tasks.start_soon(stop, scope)
                        step = await run.step()
                        if step is not None:
                            steps.append(step)
                            assert run.state["n"] == len(steps)
                        tasks.cancel_scope.cancel()
            assert await run.step() is None
        assert steps == [act.name for act in acts]

    for after in range(12):
        for seed in range(3):
            run_virtual(go, after, backend=backend, seed=seed)


async def partial_step(n: int) -> int:
    await checkpoint()
    await checkpoint()
    return n + 1


async def test_a_step_that_fails_raises_the_runs_failure():
    async with Application(Graph.chain(first, fail)).open(stepwise=True) as run:
        assert await run.step() == "first"
        for _ in range(2):
            with pytest.raises(ValueError, match="failed"):
                await run.step()
        assert run.status == "failed"


async def test_a_stepped_run_that_is_cancelled_has_ended():
    async def cancel(run: OpenRun) -> None:
        await anyio.sleep(0.5)
        run.cancel("enough")

    for waits in (True, False):
        async with Application(Graph.chain(first, second)).open(stepwise=True) as run:
            assert await run.step() == "first"
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(cancel, run)
                if waits:
                    assert await run.step() is None
            assert await run.step() is None
            with pytest.raises(RunCancelled, match="enough"):
                await run.result()


async def test_leaving_a_stepped_run_between_steps_closes_it():
    ends = Ends()
    app = Application(Graph.chain(first, second), hooks=[ends])
    async with no_leaks(), app.open(stepwise=True) as run:
        await run.step()
    assert ends.ends[0].reason == "closed"
    assert run.state == {"first": 1}


async def test_steps_and_events_in_turn():
    """Who steps does not read meanwhile: a full channel must not stop the step."""
    app = Application(Graph.chain(ticks().entry, first))
    kinds = list[type[Event]]()
    async with app.open({"n": range(50)}, stepwise=True, buffer=3) as run:
        kinds.append(type(await anext(run)))
        assert await run.step() == "out"
        kinds.append(type(await anext(run)))
        assert await run.step() == "first"
        async for event in run:
            kinds.append(type(event))
    assert kinds[:2] == [RunStarted, Missed]
    assert kinds[-1] is RunEnded


async def test_events_of_a_stepped_run_are_read_beside_it():
    hook = RecordingHook()
    app = Application(Graph.chain(ticks().entry, first), hooks=[hook])
    events = list[Event]()

    async def read(run: OpenRun) -> None:
        async for event in run:
            events.append(event)
            await anyio.sleep(1)

    async with (
        app.open({"n": range(20)}, stepwise=True, buffer=3) as run,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(read, run)
        await anyio.sleep(0.5)
        while await run.step():
            pass
    assert events == hook.events


# -- misuse ----------------------------------------------------------------------------------------


async def test_a_second_consumer_is_refused():
    hook = RecordingHook()
    app = Application(naps(), hooks=[hook])
    events = list[Event]()

    async def read(run: OpenRun) -> None:
        async for event in run:
            events.append(event)
            await anyio.sleep(0.75)

    async def read_one(run: OpenRun) -> None:
        events.append(await anext(run))

    for reader in (read, read_one):
        events.clear()
        hook.events.clear()
        async with app.open({"n": [10]}) as run:
            while reader is read_one and len(events) < len(hook.events):
                events.append(await anext(run))
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(reader, run)
                await anyio.sleep(1)
                if reader is read:
                    with pytest.raises(BadUse, match="has a consumer already"):
                        async for _ in run:
                            pytest.fail("read")
                    with pytest.raises(BadUse, match="has a consumer already"):
                        await anext(run)
            events.extend([event async for event in run])
        kinds = list(events)
        assert kinds == hook.events


async def test_reading_while_another_task_waits_for_an_event_is_refused():
    async def read_all(run: OpenRun) -> None:
        while await anext(run, None):
            pass

    async with Application(naps()).open({"n": [10]}) as run, anyio.create_task_group() as tasks:
        tasks.start_soon(read_all, run)
        await anyio.sleep(1)
        with pytest.raises(BadUse, match="has a consumer already"):
            await anext(run)
        with pytest.raises(BadUse, match="has a consumer already"):
            async for _ in run:
                pytest.fail("read")


async def test_what_is_not_opened_or_was_left_is_refused():
    opened = Application(first).open()
    for use in (
        lambda: opened.state,
        lambda: opened.status,
        lambda: opened.cancel("x"),
        lambda: aiter(opened),
    ):
        with pytest.raises(BadUse, match=r"async with app\.open"):
            use()
    for wait in (opened.result, opened.step, lambda: anext(opened)):
        with pytest.raises(BadUse, match=r"async with app\.open"):
            await wait()
    async with opened as run:
        assert run is opened
        await run.result()
        with pytest.raises(BadUse, match="opened before"):
            await opened.__aenter__()
    with pytest.raises(BadUse, match="block was left"):
        async for _ in run:
            pytest.fail("read")
    with pytest.raises(BadUse, match="block was left"):
        await anext(run)
    with pytest.raises(BadUse, match="opened before"):
        async with opened:
            pytest.fail("entered")


async def test_step_and_result_are_refused_where_they_make_no_sense():
    async with Application(Graph.chain(first, second)).open(stepwise=True) as run:
        with pytest.raises(BadUse, match=r"call step\(\)"):
            await run.result()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run.step)
            await anyio.sleep(0.5)
            with pytest.raises(BadUse, match="stepped already"):
                await run.step()
    async with Application(first).open() as run:
        with pytest.raises(BadUse, match="stepwise=True"):
            await run.step()
        with pytest.raises(TypeError, match="cancel"):
            run.cancel(None)  # pyright: ignore[reportArgumentType]


def test_what_is_given_is_checked_at_once():
    @action(reads=[], writes=["-"])
    async def needs(client: object) -> None:
        pass

    app = Application(needs)
    with pytest.raises(MissingInput, match=r"give it to open\(inputs"):
        app.open()
    for buffer in (0, -1, 1.5, True, None, math.inf):
        with pytest.raises(DefinitionError, match="buffer"):
            app.open(inputs={"client": 1}, buffer=buffer)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"open\(id"):
        app.open(id=1, inputs={"client": 1})  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"open\(\) takes state"):
        app.open([], inputs={"client": 1})  # pyright: ignore[reportArgumentType]


# -- sweeps ----------------------------------------------------------------------------------------


class Keeping(NullStore):
    """A store that keeps what it is given."""

    def __init__(self, waits: Callable[[], Awaitable[object]] | None) -> None:
        self.waits = waits
        self.saved: dict[str, list[Update]] = {}
        self.ended = list[str | None]()

    def save(self, batch: Batch) -> Awaitable[None] | None:
        if self.waits is not None:
            return self._save(batch, self.waits)
        self._keep(batch)
        return None

    async def _save(self, batch: Batch, waits: Callable[[], Awaitable[object]]) -> None:
        await waits()
        self._keep(batch)
        await waits()

    def _keep(self, batch: Batch) -> None:
        self.saved.setdefault(batch.path.id, []).extend(batch.updates)
        for child in (*batch.applied, *batch.unapplied):
            if child.last_update is not None:
                self.saved.setdefault(child.path.id, []).append(child.last_update)
        if batch.ended is not None:
            self.ended.append(batch.ended)


@action(reads=["item"], writes=["leaf"])
async def leaf(item: int) -> int:
    try:
        for _ in range(1 + item % 3):
            await checkpoint()
        if item == 11:
            raise ValueError(item)
    finally:
        with anyio.CancelScope(shield=True):
            await checkpoint()
    return item


@action(reads=[], writes=["begun"])
async def begin() -> bool:
    await checkpoint()
    return True


@action(reads=["item"], writes=["below"])
async def spread(item: int) -> list[int]:
    return [10 * item, 10 * item + 1]


@action(reads=[], writes=["ended"], name="last")
async def finish() -> bool:
    await checkpoint()
    return True


def scenario() -> Graph:
    inner = fan_out(leaf, over="below", into="leaves", name="inner", limits=Limits(2))
    children = Graph.chain(spread, inner, name="children")
    outer = fan_out(
        children, over="n", into="out", take="leaves", on_error="collect", limits=Limits(2)
    )
    return Graph.chain(begin, outer, finish)


class Opened:
    """A run of the scenario, opened and consumed in some way; and everything it told and saved."""

    def __init__(self, how: str, waits: Callable[[], Awaitable[object]] | None) -> None:
        self.how = how
        self.hook = RecordingHook()
        self.store = Keeping(waits)
        self.app = Application(scenario(), hooks=[self.hook])
        self.app.store = self.store
        self.events = list[Event]()
        self.run: OpenRun | None = None
        self.ended = False

    async def go(self) -> None:
        stepwise = self.how == "step"
        async with self.app.open({"n": [0, 1]}, buffer=1, stepwise=stepwise) as run:
            self.run = run
            match self.how:
                case "read":
                    async for event in run:
                        self.events.append(event)
                case "slowly":
                    async for event in run:
                        self.events.append(event)
                        await checkpoint()
                case "result":
                    await run.result()
                case "step":
                    while await run.step() is not None:
                        pass
                case "cancel":
                    async for event in run:
                        self.events.append(event)
                        if isinstance(event, ChildEnded):
                            run.cancel("enough")
                case "break":
                    async for event in run:
                        self.events.append(event)
                        if isinstance(event, ChildEnded):
                            await checkpoint()
                            break
                case _:
                    raise AssertionError(self.how)
        self.ended = True

    def check(self) -> None:
        self.hook.assert_paired()
        assert self.events == self.hook.events[: len(self.events)]
        published: dict[str, list[Update]] = {}
        for event in self.hook.events:
            if isinstance(event, StateUpdated):
                published.setdefault(event.run_id, []).append(event.update)
        assert {k: v for k, v in self.store.saved.items() if v} == published
        if self.run is not None:
            state = State({"n": [0, 1]})
            for update in published.get(self.run.run_id, ()):
                state = replay(state, update.operations)
            assert state == self.run.state
            assert self.store.ended == [self.run.status]


HOWS = ("read", "slowly", "result", "step", "cancel", "break")
every_how = pytest.mark.parametrize("how", HOWS)
with_waits = pytest.mark.parametrize("waits", [None, checkpoint], ids=["", "slow"])


@pytest.mark.sweep
@pytest.mark.realtime
@every_how
@with_waits
async def test_a_scope_cancelled_at_any_turn(how: str, waits: Any):
    async def once(turn: int) -> bool:
        opened = Opened(how, waits)
        tasks_before = len(anyio.get_running_tasks())

        async def cancel() -> None:
            for _ in range(turn):
                await checkpoint()
            scope.cancel()

        scope = anyio.CancelScope()
        async with anyio.create_task_group() as others:
            with scope:
                others.start_soon(cancel)
                await opened.go()
            assert scope.cancelled_caught != opened.ended
            assert len(anyio.get_running_tasks()) - tasks_before <= 1, "alive afterwards"
            others.cancel_scope.cancel()
        opened.check()
        return opened.ended and not scope.cancel_called

    async with no_leaks():
        assert await at_any_turn(once) >= 10


LOOPS: dict[str, dict[str, Any]] = {
    "plain": {"loop_factory": VirtualTimeLoop},
    "shuffled": {"loop_factory": lambda: VirtualTimeLoop(seed=1)},
    "uvloop": {"use_uvloop": True},
}


def eager_loop() -> asyncio.AbstractEventLoop:
    loop = VirtualTimeLoop()
    loop.set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009 # not on 3.11
    return loop


if sys.version_info >= (3, 12):
    LOOPS["eager"] = {"loop_factory": eager_loop}


def run_asyncio(on: str, function: Callable[..., Awaitable[object]], *args: object) -> None:
    unheard: list[dict[str, Any]] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: unheard.append(context))
        async with no_leaks():
            await function(*args)

    anyio.run(main, backend="asyncio", backend_options=LOOPS[on])
    gc.collect()
    assert not unheard


async def spin(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


@pytest.mark.sweep
@pytest.mark.parametrize("on", LOOPS)
@every_how
@with_waits
@pytest.mark.parametrize(
    ("times", "apart"),
    [
        (1, 0),
        pytest.param(2, 0, marks=pytest.mark.slow),
        pytest.param(2, 1, marks=pytest.mark.slow),
        (3, 2),
    ],
)
def test_native_cancels_at_any_turn(on: str, how: str, waits: Any, times: int, apart: int):
    async def once(turn: int) -> bool:
        opened = Opened(how, waits)
        before = len(asyncio.all_tasks())
        task = asyncio.create_task(opened.go())
        await spin(turn)
        requests = 0
        for _ in range(times):
            requests += task.cancel()
            await spin(apart)
        await asyncio.wait([task])
        await spin(1)
        assert len(asyncio.all_tasks()) == before, "alive afterwards"
        opened.check()
        assert task.cancelling() == requests
        assert task.cancelled() == (requests > 0), "a cancel was lost, or came from nowhere"
        return not requests

    async def go() -> None:
        assert await at_any_turn(once) >= 10

    run_asyncio(on, go)


@pytest.mark.sweep
@pytest.mark.parametrize("on", LOOPS)
@every_how
def test_a_native_cancel_and_a_scope_cancelled_around_each_other(on: str, how: str):
    async def once(scope_at: int, native_at: int) -> tuple[bool, bool]:
        opened = Opened(how, checkpoint)
        scope = anyio.CancelScope()
        left = asked = False

        async def caller() -> None:
            nonlocal left
            with scope:
                try:
                    await opened.go()
                finally:
                    left = True

        async def cancel_scope() -> None:
            await spin(scope_at)
            scope.cancel()

        async def cancel_natively() -> None:
            nonlocal asked
            await spin(native_at)
            asked = not left and task.cancel()

        task = asyncio.create_task(caller())
        others = [asyncio.create_task(cancel_scope()), asyncio.create_task(cancel_natively())]
        await asyncio.wait([task, *others])
        opened.check()
        assert task.cancelled() == asked
        assert task.cancelling() == asked
        return opened.ended, asked

    async def go() -> None:
        for native_at in range(4, 60, 3 if EVERYWHERE else 9):
            for scope_at in range(native_at - 3, native_at + 4):
                await once(scope_at, native_at)

    run_asyncio(on, go)


@pytest.mark.sweep
@pytest.mark.parametrize("on", LOOPS)
@every_how
def test_a_native_timeout_around_the_block_and_within(on: str, how: str):
    async def go() -> None:
        me = asyncio.current_task()
        assert me is not None
        opened = Opened(how, partial(anyio.sleep, 0.01))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.055):
                await opened.go()
        opened.check()
        assert me.cancelling() == 0
        async with Application(first).open() as run:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    while True:
                        await anext(run)
            assert me.cancelling() == 0
            assert run.status is None

    run_asyncio(on, go)


# -- random consumers ------------------------------------------------------------------------------


def seeds(count: int) -> Iterator[tuple[Any, int]]:
    for backend in BACKENDS:
        for seed in range(count):
            yield backend, seed


@pytest.mark.sweep
def test_random_consumers_on_many_schedules():
    """Readers, steppers and cancellers in tasks of their own; whatever they do, nothing hangs."""
    import random

    async def go(seed: int) -> None:
        rng = random.Random(seed)
        hook = RecordingHook()
        app = Application(scenario(), hooks=[hook])
        stepwise = rng.random() < 0.3
        buffer = rng.choice([1, 1, 2, 5, 1000])
        events = list[Event]()

        async def pause() -> None:
            for _ in range(rng.randrange(4)):
                await checkpoint()

        async def read(run: OpenRun) -> None:
            while True:
                async for event in run:
                    events.append(event)
                    await pause()
                    if rng.random() < 0.05:
                        break
                else:
                    return
                await pause()

        async def wait(run: OpenRun) -> None:
            await pause()
            if stepwise:
                while await run.step() is not None:
                    await pause()
                    with anyio.CancelScope() as scope:
                        scope.cancel()
                        await run.step()
            elif rng.random() < 0.7:
                with suppress(RunCancelled):
                    await run.result()

        async def cancel(run: OpenRun) -> None:
            for _ in range(rng.randrange(200)):
                await checkpoint()
            run.cancel("at random")

        async with (
            no_leaks(threads=False, descriptors=False),
            app.open({"n": [0, 1]}, buffer=buffer, stepwise=stepwise) as run,
            anyio.create_task_group() as tasks,
        ):
            for consume in (read, wait, cancel):
                if consume is wait or rng.random() < 0.6:
                    tasks.start_soon(consume, run)
            if rng.random() < 0.2:
                for _ in range(rng.randrange(100)):
                    await checkpoint()
                tasks.cancel_scope.cancel()
        hook.assert_paired()
        missed = sum(event.count for event in events if isinstance(event, Missed))
        kept = [event for event in events if not isinstance(event, Missed)]
        places = [index for index, event in enumerate(hook.events) if any(event is e for e in kept)]
        assert len(places) == len(kept)
        assert [hook.events[index] for index in places] == kept
        assert len(kept) + missed <= len(hook.events)

    for backend, seed in seeds(RANDOM_CONSUMERS):
        run_virtual(go, seed, backend=backend, seed=seed)


RANDOM_CONSUMERS = 15


# -- within other frames ---------------------------------------------------------------------------


async def test_a_generator_that_holds_the_block_and_is_closed():
    ends = Ends()

    async def events() -> AsyncGenerator[Event]:
        async with Application(naps(), hooks=[ends]).open({"n": [100]}) as run:
            async for event in run:
                yield event

    async with no_leaks():
        generator = events()
        await anext(generator)
        await generator.aclose()
    assert ends.ends[0].reason == "closed"


async def test_a_cancellation_while_such_a_generator_is_closed_is_not_swallowed():
    @action(writes=[])
    async def cleans_up() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(2)

    async def events() -> AsyncGenerator[Event]:
        async with Application(cleans_up).open() as run:
            async for event in run:
                yield event

    went_on = False
    async with no_leaks():
        with anyio.move_on_after(1) as scope:
            generator = events()
            await anext(generator)
            await generator.aclose()  # would take 2 s; the generator itself is told to exit
            went_on = True
    assert scope.cancelled_caught
    assert not went_on


async def test_two_runs_opened_within_each_other():
    async with Application(naps()).open({"n": [1, 2]}) as outer:
        async with Application(naps()).open({"n": [3]}) as inner:
            async for _ in inner:
                await anext(outer, None)
        assert len((await outer.result()).state["out"]) == 2


def press(at: int, hook_of: type[Event]) -> Hook:
    class Pressing(Hook):
        count = 0

        def on_run_started(self, event: Any) -> None:
            self.count += isinstance(event, hook_of)
            if self.count == at:
                self.count += 1
                signal.raise_signal(signal.SIGINT)

        on_state_updated = on_child_ended = on_child_started = on_run_started

    return Pressing()


@pytest.mark.parametrize("backend", BACKENDS)
@every_how
def test_ctrl_c_ends_the_block_cleanly(backend: Any, how: str):
    opened = Opened(how, checkpoint)
    opened.app.hooks = (*opened.app.hooks, press(1, StateUpdated))
    with pytest.raises(KeyboardInterrupt):
        anyio.run(opened.go, backend=backend)
    opened.check()
