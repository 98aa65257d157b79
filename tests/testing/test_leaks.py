"""`no_leaks`: sees what is left of a task, thread or descriptor, and nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import sys
import threading
from collections.abc import AsyncGenerator

import anyio
import anyio.abc
import anyio.lowlevel
import anyio.to_thread
import pytest
from blockbuster import blockbuster_ctx

from shoal.testing import _leaks
from shoal.testing._clock import VirtualTimeLoop, virtual_backend
from shoal.testing._leaks import LeakError, no_leaks

pytestmark = pytest.mark.anyio


def eager_loop() -> VirtualTimeLoop:
    assert sys.version_info >= (3, 12)
    loop = VirtualTimeLoop()
    loop.set_task_factory(asyncio.eager_task_factory)
    return loop


ASYNCIO = ["asyncio-None", "asyncio-0", "asyncio-1", *["eager"] * (sys.version_info >= (3, 12))]
on_asyncio = pytest.mark.parametrize("anyio_backend", ASYNCIO, indirect=True)


@pytest.fixture(params=[*ASYNCIO, "trio-None", "trio-1", "asyncio-real"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    match request.param.split("-"):
        case ["eager"]:
            return "asyncio", {"loop_factory": eager_loop}
        case ["asyncio", "real"]:
            return "asyncio", {}
        case [name, seed]:
            return virtual_backend(name, seed=None if seed == "None" else int(seed))
        case _:
            raise AssertionError(request.param)


@pytest.fixture
async def elsewhere() -> AsyncGenerator[anyio.abc.TaskGroup]:
    """A task group outside of what is watched: what starts in it may outlive the block."""
    async with anyio.create_task_group() as tasks:
        yield tasks
        tasks.cancel_scope.cancel()


async def wait_for(event: anyio.Event) -> None:
    await event.wait()


# Tasks


async def test_a_clean_block_passes():
    async with no_leaks(), anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(anyio.sleep, 0.001)


async def test_a_task_left_behind_is_named_with_where_it_stands(elsewhere: anyio.abc.TaskGroup):
    with pytest.raises(LeakError) as caught:
        async with no_leaks():
            elsewhere.start_soon(wait_for, anyio.Event(), name="the stray")
    (leak,) = caught.value.leaks
    assert leak.startswith("task 'the stray' stands at\n")
    assert "in wait_for" in leak
    assert "await event.wait()" in leak
    assert leak in str(caught.value)
    assert isinstance(caught.value, AssertionError)


async def test_all_that_is_left_is_listed(elsewhere: anyio.abc.TaskGroup):
    ends: list[int] = []
    with pytest.raises(LeakError) as caught:
        async with no_leaks():
            for number in range(3):
                elsewhere.start_soon(anyio.sleep_forever, name=f"stray {number}")
            elsewhere.start_soon(anyio.lowlevel.checkpoint, name="done soon")
            ends += os.pipe()
    for end in ends:
        os.close(end)
    assert len(caught.value.leaks) == 5


async def test_tasks_from_before_are_no_leak(elsewhere: anyio.abc.TaskGroup):
    elsewhere.start_soon(anyio.sleep_forever)
    async with no_leaks():
        pass


async def test_a_task_that_takes_the_place_of_one_from_before_is_a_leak(
    elsewhere: anyio.abc.TaskGroup,
):
    # As often as not it gets the address of the dead one.
    for _ in range(8):
        scopes = [anyio.CancelScope(), anyio.CancelScope()]

        async def sleep(scope: anyio.CancelScope) -> None:
            with scope:
                await anyio.sleep_forever()

        elsewhere.start_soon(sleep, scopes[0])
        await anyio.lowlevel.checkpoint()
        with pytest.raises(LeakError):
            async with no_leaks():
                scopes[0].cancel()
                for _ in range(5):
                    await anyio.lowlevel.checkpoint()
                elsewhere.start_soon(sleep, scopes[1])
        scopes[1].cancel()


async def test_a_task_about_to_end_is_given_the_turns(elsewhere: anyio.abc.TaskGroup):
    async def unwind() -> None:
        for _ in range(20):
            await anyio.lowlevel.checkpoint()

    async with no_leaks():
        elsewhere.start_soon(unwind)


async def test_no_virtual_time_passes(elsewhere: anyio.abc.TaskGroup):
    at = anyio.current_time()
    with pytest.raises(LeakError):
        async with no_leaks():
            elsewhere.start_soon(anyio.sleep, 1)
    assert anyio.current_time() - at < 0.9


@on_asyncio
async def test_a_plain_asyncio_task_is_seen():
    tasks: list[asyncio.Task[None]] = []
    with pytest.raises(LeakError, match="task 'plain' stands at"):
        async with no_leaks():
            tasks.append(asyncio.create_task(asyncio.sleep(3600), name="plain"))
    tasks[0].cancel()
    await asyncio.wait(tasks)


async def test_judges_though_the_scope_around_it_is_cancelled(elsewhere: anyio.abc.TaskGroup):
    judged = False
    with anyio.CancelScope() as scope:
        with pytest.raises(LeakError):
            async with no_leaks():
                elsewhere.start_soon(anyio.sleep_forever)
                scope.cancel()
        judged = True
        await anyio.lowlevel.checkpoint()
    assert judged
    assert scope.cancelled_caught


async def test_an_exception_of_the_block_passes_unchanged(elsewhere: anyio.abc.TaskGroup):
    with pytest.raises(KeyError, match="mine"):
        async with no_leaks():
            elsewhere.start_soon(anyio.sleep_forever)
            raise KeyError("mine")


async def test_a_cancelled_block_stays_cancelled():
    with anyio.move_on_after(0.001) as scope:
        async with no_leaks():
            await anyio.sleep_forever()
    assert scope.cancelled_caught


# As a fixture: its halves run beside different tasks of the plugin's


@pytest.fixture
async def watched() -> AsyncGenerator[None]:
    async with no_leaks():
        yield


async def test_serves_as_a_fixture(watched: None):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.lowlevel.checkpoint)


@pytest.fixture
async def expected_leak(elsewhere: anyio.abc.TaskGroup) -> AsyncGenerator[None]:
    with pytest.raises(LeakError) as caught:
        async with no_leaks():
            yield
    assert len(caught.value.leaks) == 1


async def test_as_a_fixture_sees_what_the_test_leaves(
    expected_leak: None, elsewhere: anyio.abc.TaskGroup
):
    elsewhere.start_soon(anyio.sleep_forever)


# Cancellation requests


@on_asyncio
async def test_an_unanswered_cancellation_request_is_reported():
    task = asyncio.current_task()
    assert task is not None
    with pytest.raises(
        LeakError, match=r"cancellation requests of the current task: 1, on entry 0"
    ):
        async with no_leaks():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)
    assert task.uncancel() == 0


@on_asyncio
async def test_answered_cancellation_requests_are_fine():
    async with no_leaks():
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await asyncio.sleep(1)
        with anyio.move_on_after(0.001):
            await anyio.sleep_forever()


@on_asyncio
async def test_a_request_from_before_is_not_blamed():
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    async with no_leaks():
        pass
    task.uncancel()


# Threads


@pytest.fixture
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_leaks, "_THREAD_GRACE", 0.01)


async def test_a_thread_left_behind_is_named_with_where_it_stands(short_grace: None):
    released = threading.Event()

    def wait_here() -> None:
        released.wait(5)

    thread = threading.Thread(target=wait_here, name="the stray thread")
    with pytest.raises(LeakError) as caught:
        async with no_leaks():
            thread.start()
    released.set()
    thread.join()
    (leak,) = caught.value.leaks
    assert leak.startswith("thread 'the stray thread' stands at\n")
    assert "in wait_here" in leak


async def test_threads_need_not_be_watched():
    released = threading.Event()
    thread = threading.Thread(target=released.wait, args=(5,))
    async with no_leaks(threads=False):
        thread.start()
    released.set()
    thread.join()


async def test_a_thread_on_its_way_out_is_given_the_time():
    thread = threading.Thread(target=threading.Event().wait, args=(0.02,))
    async with no_leaks():
        thread.start()
    thread.join()


async def test_idle_worker_threads_are_no_leak():
    async with no_leaks(), anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(anyio.to_thread.run_sync, threading.get_ident)


async def test_a_worker_thread_that_still_works_is_a_leak(short_grace: None):
    released = threading.Event()
    started = threading.Event()

    def work_on() -> None:
        started.set()
        released.wait(5)

    async def give_up() -> None:
        await anyio.to_thread.run_sync(work_on, abandon_on_cancel=True)

    try:
        with pytest.raises(LeakError, match="in work_on"):
            async with no_leaks(), anyio.create_task_group() as tasks:
                tasks.start_soon(give_up)
                await anyio.to_thread.run_sync(started.wait, 5)
                tasks.cancel_scope.cancel()
    finally:
        released.set()
    async with no_leaks():  # and it goes back to the idle ones
        await anyio.to_thread.run_sync(threading.get_ident)


@on_asyncio
async def test_threads_of_the_default_executor_are_no_leak():
    async with no_leaks():
        await asyncio.to_thread(threading.get_ident)


# Descriptors


async def test_a_descriptor_left_open_is_a_leak():
    sockets: list[socket.socket] = []
    with pytest.raises(LeakError) as caught:
        async with no_leaks():
            sockets += socket.socketpair()
            sockets[1].close()
    (leak,) = caught.value.leaks
    assert leak.startswith(f"file descriptor {sockets[0].fileno()}: ")
    if sys.platform == "linux":
        assert "socket:[" in leak
    sockets[0].close()


async def test_descriptors_need_not_be_watched():
    async with no_leaks(descriptors=False):
        left, right = socket.socketpair()
    left.close()
    right.close()


async def test_a_reused_number_is_a_leak_all_the_same():
    left, right = socket.socketpair()
    number = left.fileno()
    with pytest.raises(LeakError, match=f"file descriptor {number}: "), right:
        async with no_leaks():
            left.close()
            left, other = socket.socketpair()
            assert left.fileno() == number
            other.close()
    left.close()


async def test_closed_descriptors_are_fine():
    async with no_leaks():
        for end in os.pipe():
            os.close(end)
        with open(__file__, "rb"):  # noqa: PTH123
            pass


async def test_streams_that_are_closed_need_not_be_waited_for():
    left, right = socket.socketpair()
    with right:
        async with no_leaks():
            stream = await anyio.abc.SocketStream.from_socket(left)
            await stream.send(b"x")
            await stream.aclose()


@on_asyncio
async def test_a_closing_transport_is_given_the_turns():
    left, right = socket.socketpair()
    with right:
        async with no_leaks():
            _, writer = await asyncio.open_connection(sock=left)
            writer.close()
    await writer.wait_closed()


async def test_a_system_that_lists_no_descriptors_is_fine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_leaks, "_DESCRIPTOR_TABLES", ("/nowhere",))
    async with no_leaks():
        left, right = socket.socketpair()
    left.close()
    right.close()


# Garbage


class Cycle:
    """Garbage that only the collector finds."""

    def __init__(self, content: object) -> None:
        self.me = self
        self.content = content


async def leave_a_coroutine_as_garbage() -> None:
    async with no_leaks():
        Cycle(wait_for(anyio.Event()))


async def test_garbage_speaks_up_inside():
    gc.disable()
    try:
        with pytest.warns(RuntimeWarning, match="'wait_for' was never awaited"):
            await leave_a_coroutine_as_garbage()
    finally:
        gc.enable()


@on_asyncio
async def test_forgotten_generators_are_closed_inside():
    closed: list[str] = []

    async def source() -> AsyncGenerator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            closed.append("source")

    async with no_leaks():
        generator = source()
        await anext(generator)
        Cycle(generator)
        del generator
    assert closed == ["source"]


# Company


@on_asyncio
async def test_works_under_a_detector_of_blocking_calls(elsewhere: anyio.abc.TaskGroup):
    with blockbuster_ctx():
        async with no_leaks():
            await asyncio.to_thread(threading.get_ident)
        with pytest.raises(LeakError):
            async with no_leaks():
                elsewhere.start_soon(anyio.sleep_forever)
