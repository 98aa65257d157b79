"""Plain functions run in worker threads, of which a runtime has only so many."""

from __future__ import annotations

import contextvars
import threading
from typing import Any

import anyio
import anyio.from_thread
import pytest
from anyio.lowlevel import checkpoint

from shoal import Application, Context, Done, Limits, Rate, action, fan_out
from shoal._runtime.runtime import THREADS, Runtime
from shoal.errors import BadResult
from shoal.events import StateUpdated, StepEnded, Waiting
from shoal.executors._threads import SHARED_THREADS
from shoal.testing import RecordingHook, no_leaks

pytestmark = [pytest.mark.anyio, pytest.mark.realtime]

spot: contextvars.ContextVar[str] = contextvars.ContextVar("spot", default="none")


async def test_a_plain_function_leaves_the_loop_free():
    started, may_end = anyio.Event(), threading.Event()

    @action(reads=["n"], writes=["out"])
    def wait(n: int) -> int:
        anyio.from_thread.run_sync(started.set)
        assert may_end.wait(10)
        return n + 1

    async def release() -> None:
        await started.wait()  # the loop runs while the function waits for it
        may_end.set()

    async with no_leaks(threads=False), anyio.create_task_group() as tasks:
        tasks.start_soon(release)
        assert (await Application(wait).run({"n": 1})).state["out"] == 2


async def test_there_are_only_so_many_threads_at_once():
    lock, all_there = threading.Lock(), threading.Event()
    now = most = 0

    @action(reads=["n"], writes=["out"])
    def work(n: int) -> int:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
            if now == THREADS:
                all_there.set()
        assert all_there.wait(10)
        with lock:
            now -= 1
        return n

    numbers = list(range(3 * THREADS))
    app = Application(fan_out(work, over="ns", item="n", into="out", limits=Limits(200)))
    assert (await app.run({"ns": numbers})).state["out"] == numbers
    assert most == THREADS


async def test_how_many_is_up_to_the_runtime():
    lock, three = threading.Lock(), threading.Barrier(3, timeout=10)
    now = most = 0

    @action(reads=["n"], writes=["out"])
    def work(n: int) -> int:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        three.wait()
        with lock:
            now -= 1
        return n

    app = Application(fan_out(work, over="ns", item="n", into="out"))
    async with Runtime(threads=3) as runtime:
        result = await runtime.run(app, {"ns": range(12)})
    assert result.state["out"] == list(range(12))
    assert most == 3


async def test_a_step_cancelled_in_its_thread_is_not_completed():
    started, may_end = anyio.Event(), threading.Event()
    hook = RecordingHook()

    @action(reads=[], writes=["out"])
    def work() -> int:
        anyio.from_thread.run_sync(started.set)
        assert may_end.wait(10)
        return 1

    async with no_leaks(threads=False), anyio.create_task_group() as tasks:

        async def cancel() -> None:
            await started.wait()
            tasks.cancel_scope.cancel()
            may_end.set()

        tasks.start_soon(cancel)
        await Application(work, hooks=[hook]).run({})
    hook.assert_paired()
    assert not hook.of(StateUpdated)
    assert [event.status for event in hook.of(StepEnded)] == ["cancelled"]


async def test_what_the_thread_raises_comes_out_of_run():
    @action(reads=[], writes=["out"])
    def work() -> int:
        raise LookupError("in the thread")

    async with no_leaks(threads=False):
        with pytest.raises(LookupError, match="in the thread") as caught:
            await Application(work).run({})
    assert "action 'work'" in caught.value.__notes__[0]


async def test_cancellation_waits_for_the_thread_and_drops_its_result():
    started, may_end, ended = anyio.Event(), threading.Event(), threading.Event()
    hook = RecordingHook()

    @action(reads=["n"], writes=["out"])
    def work(n: int) -> int:
        anyio.from_thread.run_sync(started.set)
        assert may_end.wait(10)
        ended.set()
        return n

    app = Application(fan_out(work, over="ns", item="n", into="out"), hooks=[hook])
    async with no_leaks(threads=False), anyio.create_task_group() as tasks:

        async def cancel() -> None:
            await started.wait()
            tasks.cancel_scope.cancel()
            may_end.set()

        tasks.start_soon(cancel)
        await app.run({"ns": [1]})
    assert ended.is_set()
    hook.assert_paired()
    assert hook.names().count("StateUpdated") == 1  # the empty collection, and no result


async def test_context_variables_travel_into_the_thread_and_not_out_of_it():
    @action(reads=["n"], writes=["out"])
    def work(n: int) -> str:
        seen = spot.get()
        spot.set(f"set by {n}")
        return seen

    spot.set("outside")
    app = Application(fan_out(work, over="ns", item="n", into="out", limits=Limits(1)))
    assert (await app.run({"ns": [1, 2, 3]})).state["out"] == ["outside"] * 3
    assert spot.get() == "outside"


async def test_on_the_loop_a_plain_function_is_called_there():
    threads: set[int] = set()

    @action(reads=["n"], writes=["out"], executor="loop")
    def work(n: int) -> int:
        threads.add(threading.get_ident())
        return n

    await Application(fan_out(work, over="ns", item="n", into="out")).run({"ns": [1, 2]})
    assert threads == {threading.get_ident()}


async def test_on_the_loop_a_plain_function_that_returns_a_coroutine_is_refused():
    async def later() -> int:
        return 1

    @action(writes=["out"], executor="loop")
    def work() -> Any:
        return later()

    with pytest.raises(BadResult, match="'work' is a plain function and returned something to be"):
        await Application(work).run()


# -- a thread is one more slot ---------------------------------------------------------------------


@pytest.mark.parametrize("limits", [Limits(1), Limits(rate=Rate(1, per=1000))])
@pytest.mark.parametrize("where", ["fan-out", "action"])
async def test_an_attempt_that_waits_for_a_thread_holds_nothing(limits: Limits, where: str):
    """Neither a slot nor a unit of a rate, which others would have to wait for."""
    blocked, may_end, others = anyio.Event(), threading.Event(), anyio.Event()
    began: list[str] = []

    @action()
    def blocker() -> None:
        anyio.from_thread.run_sync(blocked.set)
        assert may_end.wait(10)

    @action(name="in a thread")
    def in_thread() -> None:
        began.append("in a thread")

    @action(name="on the loop")
    async def on_loop() -> None:
        began.append("on the loop")
        others.set()

    async def end_it_all() -> None:
        await others.wait()
        tasks.cancel_scope.cancel()
        may_end.set()

    acts: Any = [in_thread, on_loop]
    if where == "action":
        steps: Any = fan_out(acts, name="both")
    else:  # who is let in has its first seat then
        steps = fan_out(acts, name="both", limits=Limits(10) & Limits(rate=Rate(10_000, burst=9)))
    app = Application(steps, limits=limits)
    async with Runtime(threads=1) as runtime:
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(runtime.run, Application(blocker))
                await blocked.wait()
                tasks.start_soon(end_it_all)
                await runtime.run(app)
        assert runtime.services.pools.of(SHARED_THREADS).gate.used == 0
    assert began == ["on the loop"]


async def test_a_wait_for_a_thread_is_published():
    hook, blocked, may_end = RecordingHook(), anyio.Event(), threading.Event()

    @action()
    def blocker() -> None:
        anyio.from_thread.run_sync(blocked.set)
        assert may_end.wait(10)

    @action()
    def work() -> None:
        pass

    async with Runtime(threads=1) as runtime, anyio.create_task_group() as tasks:
        tasks.start_soon(runtime.run, Application(blocker))
        await blocked.wait()
        tasks.start_soon(runtime.run, Application(work, hooks=[hook]))
        while not hook.of(Waiting):
            await checkpoint()
        may_end.set()
    (received,) = hook.of(Waiting)
    assert (received.step, received.limit, received.key) == ("work", "threads", None)


async def test_an_action_in_a_thread_keeps_it_while_it_is_inside_of_its_fan_out():
    """It lends its slots, but the thread is busy: it waits in there."""
    peak = 0

    @action(reads=["n"], writes=["out"])
    async def child(n: int) -> int:
        nonlocal peak
        peak = max(peak, runtime.services.pools.of(SHARED_THREADS).gate.used)
        return n

    @action(writes=["out"], limits=Limits(1))
    def work(context: Context) -> int:
        async def inside() -> int:
            async with context.fan_out(name="inside") as group:
                group.start(child, {"n": 5})
                return sum([outcome.value async for outcome in group if isinstance(outcome, Done)])

        return anyio.from_thread.run(inside)

    async with Runtime(threads=1) as runtime:
        result = await runtime.run(Application(work))
        assert runtime.services.pools.of(SHARED_THREADS).gate.used == 0
    assert result.state["out"] == 5
    assert peak == 1


async def test_runs_take_turns_for_threads():
    order: list[str] = []
    blocked, may_end = anyio.Event(), threading.Event()

    @action()
    def blocker() -> None:
        anyio.from_thread.run_sync(blocked.set)
        assert may_end.wait(10)

    @action(reads=["n"], writes=["out"])
    def work(n: str) -> None:
        order.append(n)

    app = Application(fan_out(work, over="ns", item="n", into="out"))
    async with Runtime(threads=1) as runtime, anyio.create_task_group() as tasks:
        tasks.start_soon(runtime.run, Application(blocker))
        await blocked.wait()
        for name in ("big", "small"):
            tasks.start_soon(runtime.run, app, {"ns": [name] * (50 if name == "big" else 3)})
            for _ in range(20):
                await checkpoint()
        may_end.set()
    assert order.count("big") == 50
    assert "small" not in order[12:]  # the big one begins with a few in one go
