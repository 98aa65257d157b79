"""The pool of workers that are elsewhere: here, in threads, behind links that pickle everything."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import anyio
import pytest

from shoal.errors import WorkerDied
from shoal.executors import _messages as m
from shoal.executors import _remote_pool
from shoal.executors._port import Job
from shoal.executors._sending import dump
from shoal.testing import no_leaks
from tests.executors.links import ThreadLink, ThreadTransport, job, pool_of

pytestmark = pytest.mark.realtime


def add(a: int, b: int) -> int:
    return a + b


def fail(text: str) -> None:
    raise ValueError(text)


async def aadd(a: int, b: int) -> int:
    await anyio.sleep(0)
    return a + b


async def test_a_function_is_called_and_its_result_returned(anyio_backend: object):
    async with no_leaks(), pool_of() as (pool, _):
        assert await pool.call().call(job(add), {"a": 1, "b": 2}) == 3
        assert await pool.call().call(job(aadd, "async"), {"a": 1, "b": 2}) == 3


async def test_what_it_raises_is_raised(anyio_backend: object):
    async with no_leaks(), pool_of() as (pool, _):
        with pytest.raises(ValueError, match="no such") as caught:
            await pool.call().call(job(fail), {"text": "no such"})
        assert "in fail" in "".join(caught.value.__notes__)
        assert "worker 1" in "".join(caught.value.__notes__)


async def test_many_calls_at_once(anyio_backend: object):
    async with no_leaks(), pool_of() as (pool, transport):
        results: dict[int, object] = {}
        one = job(add)

        async def call(n: int) -> None:
            results[n] = await pool.call().call(one, {"a": n, "b": n})

        async with anyio.create_task_group() as tasks:
            for n in range(300):
                tasks.start_soon(call, n)
        assert results == {n: 2 * n for n in range(300)}
        assert transport.started == 2


# -- cancelling ------------------------------------------------------------------------------------


@pytest.fixture
def gate() -> Iterator[object]:
    """Holds functions of workers up: they are called by reference, so it is a global."""
    GATE.clear()
    BEGUN.clear()
    ENDED.clear()
    CALLS.clear()
    yield GATE
    GATE.set()


GATE, BEGUN = threading.Event(), threading.Event()
ENDED: list[str] = []


def wait_for_gate() -> str:
    BEGUN.set()
    assert GATE.wait(10)
    return "through"


def wait_politely() -> None:
    BEGUN.set()
    while True:
        anyio.from_thread.check_cancelled()
        time.sleep(0.001)


async def wait_long() -> None:
    BEGUN.set()
    try:
        await anyio.sleep(100)
    finally:
        ENDED.append("cleaned up")


async def wait_stubbornly() -> None:
    BEGUN.set()
    while not GATE.is_set():
        with suppress(BaseException):
            await anyio.sleep(0.01)


async def begun() -> None:
    await anyio.to_thread.run_sync(BEGUN.wait)


async def test_a_plain_function_learns_of_its_cancellation(anyio_backend: object, gate: object):
    async with no_leaks(), pool_of() as (pool, transport):
        call = pool.call()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: call.call(job(wait_politely), {}))
            await begun()
            tasks.cancel_scope.cancel()
        assert not call.is_running
        assert not transport.dead
        assert await pool.call().call(job(add), {"a": 1, "b": 2}) == 3


async def test_a_coroutine_is_cancelled_and_its_cleanup_awaited(
    anyio_backend: object, gate: object
):
    async with no_leaks(), pool_of() as (pool, transport):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: pool.call().call(job(wait_long, "async"), {}))
            await begun()
            tasks.cancel_scope.cancel()
        assert ENDED == ["cleaned up"]
        assert not transport.dead


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_a_worker_whose_function_does_not_end_is_killed_after_the_grace(
    anyio_backend: object, gate: object, kind: str
):
    function = wait_for_gate if kind == "plain" else wait_stubbornly
    told: list[str] = []
    async with no_leaks(), pool_of(grace=0.05) as (pool, transport):
        call = pool.call()

        async def wait() -> None:
            await call.call(job(function, kind), {}, on_cancelled=lambda: told.append("told"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait)
            await begun()
            assert call.is_running
            assert function.__name__ in call.place
            tasks.cancel_scope.cancel()
        assert told == ["told"]
        assert len(transport.dead) == 1
        assert not call.is_running
        left: list[str] = []
        call.leave(lambda: left.append("left"))
        assert left == ["left"]
        assert await pool.call().call(job(add), {"a": 1, "b": 2}) == 3
        GATE.set()


async def test_with_abandon_nothing_is_waited_for(anyio_backend: object, gate: object):
    left: list[str] = []
    async with no_leaks(), pool_of(grace=1000) as (pool, transport):
        call = pool.call()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: call.call(job(wait_for_gate), {}, abandon=True))
            await begun()
            tasks.cancel_scope.cancel()
        call.leave(lambda: left.append("left"))
        with anyio.fail_after(5):
            while not left:
                await anyio.sleep(0.001)
        assert len(transport.dead) == 1
        GATE.set()


async def test_a_call_that_has_not_begun_never_begins(anyio_backend: object, gate: object):
    async with no_leaks(), pool_of(workers=1) as (pool, transport):
        # The pace is known, so that the second call is sent ahead, behind the first one.
        one = job(wait_through)
        for _ in range(3):
            await pool.call().call(one, {})
        GATE.clear()
        BEGUN.clear()
        first, second = pool.call(), pool.call()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: first.call(one, {"wait": True}))
            await begun()
            async with anyio.create_task_group() as inner:
                inner.start_soon(lambda: second.call(one, {"wait": True}))
                await anyio.sleep(0.02)
                assert [sent[0] for sent in transport.links[0].sent].count("call") == 5
                inner.cancel_scope.cancel()
            assert not second.is_running
            assert CALLS == [False] * 3 + [True]
            GATE.set()
        assert not transport.dead


async def test_calls_that_wait_in_its_lane_do_not_hold_up_its_end(
    anyio_backend: object, gate: object
):
    async with no_leaks(), pool_of(workers=1, grace=0.05) as (pool, transport):
        one = job(wait_through)
        for _ in range(3):
            await pool.call().call(one, {})
        BEGUN.clear()
        first, second = pool.call(), pool.call()
        async with anyio.create_task_group() as tasks:
            async with anyio.create_task_group() as inner:
                inner.start_soon(lambda: first.call(one, {"wait": True}))
                await begun()
                tasks.start_soon(lambda: second.call(one, {}))
                await anyio.sleep(0.02)
                assert [sent[0] for sent in transport.links[0].sent].count("call") == 5
                inner.cancel_scope.cancel()
            # Nothing of it is left when the cancellation goes on.
            assert not first.is_running
            assert len(transport.dead) == 1
        GATE.set()
        assert CALLS == [False] * 3 + [True, False]


CALLS: list[bool] = []


def wait_through(wait: bool = False) -> None:
    CALLS.append(wait)
    BEGUN.set()
    if wait:
        GATE.wait(10)


# -- the time of a call ----------------------------------------------------------------------------


class Time:
    """Remembers when it was stopped and started."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def stop(self) -> None:
        self.said.append("stop")

    def start(self) -> None:
        self.said.append("start")


LAST = threading.Event()


def hold(n: int) -> None:
    assert n or LAST.wait(10)


@pytest.mark.parametrize("are_quick", [False, True], ids=["not_sent", "sent_ahead"])
async def test_no_time_passes_for_a_call_that_waits_for_a_worker(
    anyio_backend: object, gate: object, are_quick: bool
):
    LAST.clear()
    async with no_leaks(), pool_of(1) as (pool, transport):
        one = job(hold)
        if are_quick:
            for n in range(1, 20):
                await pool.call().call(one, {"n": n})
        first, second = Time(), Time()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: pool.call().call(job(wait_for_gate), {}, time=first))
            await begun()
            assert first.said == ["stop", "start"]
            waiting = pool.call()
            tasks.start_soon(lambda: waiting.call(one, {"n": 0}, time=second))
            await anyio.wait_all_tasks_blocked()
            assert bool(waiting.number) == are_quick
            assert second.said == ["stop"]
            GATE.set()
            while not second.said[1:]:
                transport.links[0].core.tick()  # as a worker does while a call is at work
                await anyio.sleep(0)
            LAST.set()
        assert set(first.said[1:]) == {"start"}


async def test_the_time_of_a_call_that_is_moved_is_stopped_again(
    anyio_backend: object, gate: object
):
    async with no_leaks(), pool_of(1) as (pool, _):
        one, time_of_it = job(add), Time()
        for n in range(20):
            await pool.call().call(one, {"a": n, "b": n})
        async with anyio.create_task_group() as tasks:
            holding = pool.call()

            async def hold() -> None:
                with suppress(WorkerDied):
                    await holding.call(job(wait_for_gate), {})

            tasks.start_soon(hold)
            await begun()
            moved = pool.call()
            tasks.start_soon(lambda: moved.call(one, {"a": 1, "b": 1}, time=time_of_it))
            await anyio.wait_all_tasks_blocked()
            assert moved.number
            holding.worker.link.kill()
            GATE.set()  # nobody listens to what its thread says any more
        assert time_of_it.said[:3] == ["stop", "stop", "start"]


# -- dying -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("marks", [True, False])
async def test_of_calls_that_may_have_begun_none_is_taken_to_be_alone(
    anyio_backend: object, gate: object, marks: bool
):
    died: list[WorkerDied] = []
    async with no_leaks(), pool_of(1, marks=marks) as (pool, transport):
        quick = job(add)
        for _ in range(3):  # it is known to be quick, so one is sent ahead from now on
            await pool.call().call(quick, {"a": 1, "b": 2})

        async def call(one: Job, **kwargs: object) -> None:
            try:
                await pool.call().call(one, kwargs)
            except WorkerDied as error:
                died.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call, job(wait_for_gate))
            await begun()
            tasks.start_soon(partial(call, quick, a=1, b=2))
            await anyio.wait_all_tasks_blocked()
            transport.links[0].die("it was killed")
            GATE.set()
    # A link without marks does not know what had begun: its last reports may be lost.
    assert [error.others for error in died] == ([0] if marks else [1, 1])


# -- room ------------------------------------------------------------------------------------------


async def test_a_worker_that_waits_long_for_its_place_holds_nothing_up(
    anyio_backend: object, gate: object, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_remote_pool, "STARTING", 0.0)
    async with no_leaks(), pool_of(2, concurrency=10) as (pool, transport):
        await pool.call().call(job(aadd, "async"), {"a": 1, "b": 2})
        transport.runs = False  # those that are started from now on are never ready
        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(lambda: pool.call().call(job(wait_long, "async"), {}))
            await begun()
            sent = [message for message in transport.links[0].sent if message[0] == m.CALL]
            assert transport.started == 2
            assert len(sent) == 1 + 6
            tasks.cancel_scope.cancel()


async def test_a_pool_may_be_allowed_more_workers(anyio_backend: object, gate: object):
    async with no_leaks(), pool_of(1) as (pool, transport), anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(lambda: pool.call().call(job(wait_for_gate), {}))
        await begun()
        assert transport.started == 1
        pool.allow(3)
        assert transport.started == 3
        assert pool.gate.slots >= 3
        GATE.set()


# -- pauses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("time", [None, Time()], ids=["plain", "timed"])
async def test_workers_that_are_busy_for_long_are_looked_at_together(
    anyio_backend: object, monkeypatch: pytest.MonkeyPatch, time: Time | None
):
    async with no_leaks(), pool_of(2, runs=False) as (pool, transport):
        monkeypatch.setattr(pool, "_clock", lambda: 1000.0)  # all at once, also on a busy machine
        one = job(add)
        async with anyio.create_task_group() as tasks:
            for n in range(24):
                tasks.start_soon(partial(pool.call().call, one, {"a": n, "b": n}, time=time))
            await anyio.wait_all_tasks_blocked()
            first, second = transport.links
            first.answer((m.READY,))
            second.answer((m.READY,))
            numbers = [next(iter(worker.calls)) for worker in pool._workers]  # pyright: ignore[reportPrivateUsage]
            data = dump(2)
            first.answer((m.DONE, numbers[0], data, 0.005))  # it is known from now on
            second.answer((m.DONE, numbers[1], data, 0.005))
            await anyio.wait_all_tasks_blocked()
            if time is not None:
                assert not first.pauses
                assert not second.pauses
            else:
                assert 0.005 < first.pauses[-1] <= _remote_pool.PAUSE
                assert second.pauses[-1] == first.pauses[-1]  # they end in the same moment
            while pool._workers[0].calls:  # pyright: ignore[reportPrivateUsage]
                for link, worker in zip((first, second), pool._workers, strict=True):  # pyright: ignore[reportPrivateUsage]
                    link.pauses.clear()
                    link.answer(*((m.DONE, number, data, 0.005) for number in [*worker.calls][:2]))
                await anyio.wait_all_tasks_blocked()
            assert not first.pauses  # at the end, results are not held up
            assert not second.pauses
        for link in [*transport.links]:
            link.die("it has ended")


async def test_no_worker_is_left_alone_while_another_one_is_idle(anyio_backend: object):
    async with no_leaks(), pool_of(2, runs=False) as (pool, transport):
        one = job(add)
        async with anyio.create_task_group() as tasks:
            for n in range(8):
                tasks.start_soon(lambda n=n: pool.call().call(one, {"a": n, "b": n}))
            await anyio.wait_all_tasks_blocked()
            first, second = transport.links
            first.answer((m.READY,))
            second.answer((m.READY,))
            busy, idle = pool._workers  # pyright: ignore[reportPrivateUsage]
            data = dump(2)
            first.answer((m.DONE, next(iter(busy.calls)), data, 0.005))
            await anyio.wait_all_tasks_blocked()
            assert len(busy.calls) > 2
            first.pauses.clear()
            second.answer(*((m.DONE, number, data, 0.005) for number in [*idle.calls]))
            while not any(message[0] == m.WITHDRAW for message in first.sent):
                await anyio.sleep(0.001)
            assert not first.pauses  # its answer gives calls to the idle one
            withdrawn = next(sent[1] for sent in first.sent if sent[0] == m.WITHDRAW)
            first.answer((m.WITHDRAWN, withdrawn))
            assert idle.calls
            for link, worker in ((first, busy), (second, idle)):
                while worker.calls:
                    link.answer(*((m.DONE, one, data, 0.005) for one in [*worker.calls]))
        for link in [*transport.links]:
            link.die("it has ended")


async def test_workers_that_were_about_to_start_are_not_left_behind(
    anyio_backend: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def reach_nothing(link: ThreadLink) -> None:
        pass

    async def end_all(transport: ThreadTransport) -> None:
        for link in list(transport.links):
            link.die("the pool is closed")

    monkeypatch.setattr(ThreadTransport, "aclose", end_all)
    monkeypatch.setattr(ThreadLink, "kill", reach_nothing)
    monkeypatch.setattr(_remote_pool, "CLOSING", 0.01)
    async with no_leaks(), pool_of(1, runs=False) as (pool, transport):
        with anyio.move_on_after(0.01):
            await pool.call().call(job(add), {"a": 1, "b": 2})
        assert transport.started == 1
    assert not any("left behind" in message for message in caplog.messages)
