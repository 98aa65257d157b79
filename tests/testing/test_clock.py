"""Virtual time on both backends: `VirtualTimeLoop`, `virtual_backend`, `run_virtual`."""

from __future__ import annotations

import asyncio
import functools
import importlib
import math
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Any, Literal

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest
from anyio.pytest_plugin import get_runner

from shoal import Application, action, fan_out
from shoal.testing._clock import VirtualTimeLoop, run_virtual, virtual_backend
from shoal.testing._deadlock import VirtualDeadlock

pytestmark = pytest.mark.anyio

Backend = tuple[Literal["asyncio", "trio"], int | None]

BACKENDS: list[Backend] = [
    ("asyncio", None),
    *(("asyncio", seed) for seed in range(4)),
    ("trio", None),
    ("trio", 7),
]
both = pytest.mark.parametrize("backend", ["asyncio", "trio"])
HOUR = 3600.0


def eager_loop() -> VirtualTimeLoop:
    assert sys.version_info >= (3, 12)
    loop = VirtualTimeLoop()
    loop.set_task_factory(asyncio.eager_task_factory)
    return loop


@pytest.fixture(
    params=[*BACKENDS, "eager"] if sys.version_info >= (3, 12) else BACKENDS,
    ids=lambda it: it if isinstance(it, str) else f"{it[0]}-{it[1]}",
)
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    if request.param == "eager":
        return "asyncio", {"loop_factory": eager_loop}
    name, seed = request.param
    return virtual_backend(name, seed=seed)


@contextmanager
def deadlock() -> Generator[list[VirtualDeadlock]]:
    """Expects a `VirtualDeadlock`: bare, or in the groups of the main task's nurseries (trio)."""
    found: list[VirtualDeadlock] = []
    with pytest.raises((VirtualDeadlock, ExceptionGroup)) as caught:
        yield found
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert isinstance(error, VirtualDeadlock)
    found.append(error)


# Time


async def test_a_day_passes_at_once():
    began_at = time.monotonic()
    assert anyio.current_time() == 0
    await anyio.sleep(24 * HOUR)
    assert anyio.current_time() == 24 * HOUR
    assert time.monotonic() - began_at < 10


async def test_timers_fire_in_order_each_at_its_time():
    fired: list[tuple[float, float]] = []

    async def sleep(delay: float) -> None:
        await anyio.sleep(delay)
        fired.append((anyio.current_time(), delay))

    delays = [0.1, 7.0, 0.3, 2.5, 100_000.0, 1e-3, 0.2]
    async with anyio.create_task_group() as tasks:
        for delay in delays:
            tasks.start_soon(sleep, delay)
    assert [delay for _, delay in fired] == sorted(delays)
    assert [at for at, _ in fired] == pytest.approx(sorted(delays), abs=1e-9)


async def test_time_stands_while_a_task_can_run():
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.sleep, 1)
        for _ in range(1000):
            await anyio.lowlevel.checkpoint()
        assert anyio.current_time() == 0
    assert anyio.current_time() == 1


async def test_timeouts_are_exact_and_cancelled_ones_cost_no_time():
    with pytest.raises(TimeoutError), anyio.fail_after(5):
        await anyio.sleep(6)
    assert anyio.current_time() == 5
    with anyio.fail_after(HOUR):
        await anyio.sleep(1)
    assert anyio.current_time() == 6
    with anyio.move_on_after(2):
        await anyio.sleep_forever()
    assert anyio.current_time() == 8


async def test_thousands_of_timers_cancelled_at_once():
    async with anyio.create_task_group() as tasks:
        for delay in range(500):
            tasks.start_soon(anyio.sleep, HOUR + delay)
        await anyio.sleep(1)
        tasks.cancel_scope.cancel()
    await anyio.sleep(1)
    assert anyio.current_time() == 2


def test_the_clock_may_start_anywhere():
    with asyncio.Runner(loop_factory=functools.partial(VirtualTimeLoop, start_at=50.0)) as runner:
        runner.run(asyncio.sleep(0.5))
        assert runner.get_loop().time() == 50.5


def test_late_clocks_still_reach_their_timers():
    # At 1e16 s the clock can't tell half seconds: a timer is due when it says, or the loop hangs.
    with asyncio.Runner(loop_factory=functools.partial(VirtualTimeLoop, start_at=1e16)) as runner:
        runner.run(asyncio.wait_for(asyncio.sleep(0.5), 100))
        runner.run(asyncio.sleep(3))
        assert runner.get_loop().time() == 1e16 + 4


def test_works_in_debug_mode():
    with asyncio.Runner(debug=True, loop_factory=VirtualTimeLoop) as runner:
        runner.run(asyncio.sleep(HOUR))
        assert runner.get_loop().time() == HOUR


# Deadlock


async def wait_for(event: anyio.Event) -> None:
    await event.wait()


@both
@pytest.mark.parametrize("seed", [None, 3])
def test_a_deadlock_names_the_tasks_and_where_they_stand(
    backend: Literal["asyncio", "trio"], seed: int | None
):
    cleaned: list[str] = []

    async def second_level(event: anyio.Event) -> None:
        try:
            await wait_for(event)
        finally:
            cleaned.append("child")

    async def main() -> None:
        await anyio.sleep(3)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(second_level, anyio.Event(), name="the child")
            await anyio.sleep(4)

    with deadlock() as caught:
        run_virtual(main, backend=backend, seed=seed)
    (error,) = caught
    assert error.at == 7
    assert "at virtual time 7 every task is blocked" in str(error)
    assert len(error.blocked_tasks) == 2
    assert "the child" in error.blocked_tasks
    child = str(error).partition("task 'the child' stands at")[2]
    assert "in second_level" in child
    assert "await event.wait()" in child
    assert "in main" in str(error)
    assert cleaned == ["child"]


@both
def test_a_deadlock_is_seen_through_async_generators(backend: Literal["asyncio", "trio"]):
    async def source():
        yield 1
        await wait_for(anyio.Event())
        yield 2

    async def main() -> None:
        async for _ in source():
            pass

    with deadlock() as caught:
        run_virtual(main, backend=backend)
    assert "in source" in str(caught[0])
    assert "in wait_for" in str(caught[0])


def test_a_plain_asyncio_deadlock_is_raised_bare():
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(None)
        await asyncio.get_running_loop().create_future()

    with (
        asyncio.Runner(loop_factory=VirtualTimeLoop) as runner,
        pytest.raises(VirtualDeadlock) as caught,
    ):
        runner.run(main())
    assert caught.value.at == 0
    assert "in main" in str(caught.value)


@both
@pytest.mark.parametrize("forever", [anyio.sleep_forever, functools.partial(anyio.sleep, math.inf)])
def test_sleeping_forever_is_a_deadlock_too(
    backend: Literal["asyncio", "trio"], forever: Callable[[], Awaitable[object]]
):
    with deadlock():
        run_virtual(forever, backend=backend)


@both
def test_a_deadline_prevents_a_deadlock(backend: Literal["asyncio", "trio"]):
    async def main() -> float:
        with anyio.move_on_after(HOUR):
            await anyio.Event().wait()
        return anyio.current_time()

    assert run_virtual(main, backend=backend) == HOUR


@both
def test_what_cleans_up_after_a_deadlock_may_still_take_time(backend: Literal["asyncio", "trio"]):
    ended_at: list[float] = []

    async def main() -> None:
        try:
            await anyio.Event().wait()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(10)
            ended_at.append(anyio.current_time())

    with deadlock():
        run_virtual(main, backend=backend)
    assert ended_at == [10]


def test_a_deadlock_in_the_cleanup_after_a_deadlock_ends_all_the_same():
    async def main() -> None:
        try:
            await anyio.Event().wait()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.Event().wait()

    # Once more when the runner waits for the cancelled task, which is then given up for good.
    with deadlock() as caught:
        run_virtual(main)
    assert isinstance(caught[0].__context__, VirtualDeadlock)


@both
def test_a_shield_does_not_hold_a_deadlock_back(backend: Literal["asyncio", "trio"]):
    cleaned: list[str] = []

    async def shielded_wait(name: str) -> None:
        try:
            with anyio.CancelScope(shield=True):
                await anyio.Event().wait()
        finally:
            cleaned.append(name)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(shielded_wait, "one")
            tasks.start_soon(shielded_wait, "two")

    with pytest.raises((VirtualDeadlock, ExceptionGroup)):
        run_virtual(main, backend=backend)
    assert sorted(cleaned) == ["one", "two"]


@both
def test_a_deadlocked_test_fails_and_the_next_one_runs(backend: Literal["asyncio", "trio"]):
    async def stuck() -> None:
        await wait_for(anyio.Event())

    async def fine() -> None:
        await anyio.sleep(HOUR)

    for _ in range(2):
        with get_runner(*virtual_backend(backend)) as runner, pytest.raises(VirtualDeadlock):
            runner.run_test(stuck, {})
        with get_runner(*virtual_backend(backend)) as runner:
            runner.run_test(fine, {})


@both
def test_other_errors_pass_as_they_are(backend: Literal["asyncio", "trio"]):
    async def main() -> None:
        await anyio.sleep(1)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run_virtual(main, backend=backend)


# The real world. Threads that wait do so a moment, for a clock that jumped would have to show it.

A_MOMENT = 0.02


def wait_a_moment() -> str:
    threading.Event().wait(A_MOMENT)
    return "done"


async def test_a_timeout_does_not_fire_while_a_worker_thread_works():
    for _ in range(3):
        with anyio.fail_after(HOUR):
            assert await anyio.to_thread.run_sync(wait_a_moment) == "done"
    assert anyio.current_time() == pytest.approx(3 * A_MOMENT, abs=5)


async def test_an_idle_worker_thread_does_not_hold_time_back():
    await anyio.to_thread.run_sync(wait_a_moment)
    at = anyio.current_time()
    await anyio.sleep(HOUR)
    # On trio the pace is set back at the first idle turn, so a little real time may be in it.
    assert anyio.current_time() - at == pytest.approx(HOUR, abs=5)


async def test_a_worker_thread_that_is_waited_for_is_no_deadlock():
    assert await anyio.to_thread.run_sync(wait_a_moment) == "done"


@action(reads=["item"], writes=["out"])
def in_a_thread(item: int) -> str:
    return wait_a_moment()


async def test_a_worker_thread_that_a_run_waits_for_is_no_deadlock():
    assert (await Application(in_a_thread).run({"item": 1})).state["out"] == "done"
    app = Application(fan_out(in_a_thread, over="items", into="out"))
    assert (await app.run({"items": [1, 2]})).state["out"] == ["done", "done"]


@action(reads=["item"], writes=["out"])
async def stuck_in_a_run(item: int) -> None:
    await anyio.Event().wait()


@both
def test_a_deadlock_says_where_the_code_in_a_run_stands(backend: Literal["asyncio", "trio"]):
    app = Application(fan_out(stuck_in_a_run, over="items", into="out"))

    async def main() -> None:
        await app.run({"items": [1]})

    with pytest.raises(VirtualDeadlock, match=r"in stuck_in_a_run\n\s+await anyio.Event"):
        run_virtual(main, backend=backend)


@both
def test_a_deadlock_is_found_though_idle_worker_threads_exist(backend: Literal["asyncio", "trio"]):
    async def main() -> None:
        await anyio.to_thread.run_sync(wait_a_moment)
        await anyio.Event().wait()

    with deadlock():
        run_virtual(main, backend=backend)


async def test_the_clock_is_exact_again_after_a_thread():
    await anyio.to_thread.run_sync(wait_a_moment)
    await anyio.sleep(1)
    at = anyio.current_time()
    threading.Event().wait(A_MOMENT)  # not in a worker: nothing lets time pass meanwhile
    assert anyio.current_time() == at
    await anyio.sleep(1)
    assert anyio.current_time() - at == pytest.approx(1, abs=1e-9)


def test_a_worker_that_was_stopped_holds_nothing_back():
    # It may still be there, for it ends in its own time; the loop will not hear of that.
    released = threading.Event()
    thread: Any = threading.Thread(target=released.wait, args=(5,))

    async def main() -> float:
        thread.loop = asyncio.get_running_loop()
        thread.workers = set()
        thread.idle_workers = ()
        thread.start()
        await anyio.sleep(HOUR)
        released.set()
        return anyio.current_time()

    assert run_virtual(main) == HOUR
    thread.join()


async def test_worker_threads_pruned_after_virtual_idleness_hold_nothing_back():
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(anyio.to_thread.run_sync, wait_a_moment)
    await anyio.sleep(HOUR)
    await anyio.to_thread.run_sync(wait_a_moment)
    at = anyio.current_time()
    await anyio.sleep(HOUR)
    assert anyio.current_time() - at == pytest.approx(HOUR, abs=5)


def test_jobs_of_an_executor_run_in_real_time():
    async def main() -> float:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(HOUR):
            assert await loop.run_in_executor(None, wait_a_moment) == "done"
            assert await asyncio.to_thread(wait_a_moment) == "done"
        assert loop.time() < 5
        at = loop.time()
        await asyncio.sleep(HOUR)
        return loop.time() - at

    # Closing the loop waits for the executor's threads, with a timeout of its own from 3.12 on.
    assert run_virtual(main) == pytest.approx(HOUR)


def test_a_job_that_is_given_up_holds_nothing_back():
    released = threading.Event()

    async def main() -> float:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(A_MOMENT):
                await asyncio.to_thread(released.wait, 5)
        at = anyio.current_time()
        await anyio.sleep(HOUR)
        released.set()
        return anyio.current_time() - at

    assert run_virtual(main) == pytest.approx(HOUR, abs=1e-9)


@both
def test_a_thread_of_ones_own_prevents_a_deadlock(backend: Literal["asyncio", "trio"]):
    threads: list[threading.Thread] = []

    async def main() -> None:
        called = anyio.Event()
        token = anyio.lowlevel.current_token()

        def work() -> None:
            wait_a_moment()
            anyio.from_thread.run_sync(called.set, token=token)

        threads.append(threading.Thread(target=work))
        threads[0].start()
        await called.wait()

    run_virtual(main, backend=backend)
    threads[0].join()


@pytest.mark.parametrize(
    ("backend", "witness", "deadline"),
    [
        ("asyncio", "_clock.may_be_called", math.inf),
        ("asyncio", "_clock.VirtualTimeLoop._waits_for_outside", HOUR),
        ("trio", "_trio_clock.may_be_called", math.inf),
        ("trio", "_trio_clock._waits_for_outside", HOUR),
    ],
)
def test_the_last_call_of_a_thread_that_has_ended_arrives(
    backend: Literal["asyncio", "trio"],
    witness: str,
    deadline: float,
    monkeypatch: pytest.MonkeyPatch,
):
    # At the worst moment: the loop has looked for calls, and now looks for threads.
    async def main() -> float:
        called = anyio.Event()
        token: Any = anyio.lowlevel.current_token().native_token
        run_soon = getattr(token, "run_sync_soon", None) or token.call_soon_threadsafe

        def call_in_and_end(*_: object) -> bool:
            run_soon(called.set)
            return False

        monkeypatch.setattr(f"shoal.testing.{witness}", call_in_and_end)
        with anyio.fail_after(deadline):
            await called.wait()
        monkeypatch.undo()
        return anyio.current_time()

    assert run_virtual(main, backend=backend) == 0


@both
def test_a_thread_that_ends_without_a_call_leaves_a_deadlock(backend: Literal["asyncio", "trio"]):
    async def main() -> None:
        threading.Thread(target=wait_a_moment).start()
        await anyio.Event().wait()

    with deadlock():
        run_virtual(main, backend=backend)


@both
def test_a_blocking_portal_waits_for_the_task_that_started_it(backend: Literal["asyncio", "trio"]):
    async def nap() -> float:
        await anyio.sleep(HOUR)
        return anyio.current_time()

    name, options = virtual_backend(backend)
    with anyio.from_thread.start_blocking_portal(name, options) as portal:
        wait_a_moment()
        assert portal.call(nap) == pytest.approx(HOUR, abs=5)


def test_a_thread_of_ones_own_is_waited_for_in_real_time():
    threads: list[threading.Thread] = []

    async def main() -> float:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop)
        answer: asyncio.Future[str] = loop.create_future()

        def work() -> None:
            loop.call_soon_threadsafe(answer.set_result, wait_a_moment())

        threads.append(threading.Thread(target=work))
        threads[0].start()
        with loop.real_time():
            async with asyncio.timeout(HOUR):
                assert await answer == "done"
        return loop.time()

    assert 0 < run_virtual(main) < 5
    threads[0].join()


async def test_sockets_that_are_ready_take_no_time():
    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)
        right.setblocking(False)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep, 1)
            for _ in range(10):
                right.send(b"x")
                await anyio.wait_readable(left)
                assert left.recv(1) == b"x"
            assert anyio.current_time() < 0.5
    assert anyio.current_time() >= 1


async def test_sockets_are_served_while_tasks_run():
    left, right = socket.socketpair()
    heard = False

    async def listen() -> None:
        nonlocal heard
        await anyio.wait_readable(left)
        heard = True

    with left, right:
        left.setblocking(False)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(listen)
            await anyio.lowlevel.checkpoint()
            right.send(b"x")
            turns = 0
            while not heard and turns < 100:
                await anyio.lowlevel.checkpoint()
                turns += 1
            assert turns < 100
    assert anyio.current_time() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="asyncio has no signal handlers there")
async def test_signals_are_handled_before_time_jumps():
    with anyio.open_signal_receiver(signal.SIGUSR1) as signals:
        os.kill(os.getpid(), signal.SIGUSR1)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep, HOUR)
            async for _ in signals:
                assert anyio.current_time() == 0
                break


async def test_a_timeout_does_not_fire_while_a_socket_is_waited_for():
    left, right = socket.socketpair()

    def send() -> None:
        wait_a_moment()
        right.send(b"x")

    with left, right:
        left.setblocking(False)
        thread = threading.Thread(target=send)
        thread.start()
        with anyio.fail_after(HOUR):
            await anyio.wait_readable(left)
        thread.join()
    assert anyio.current_time() < 5


async def test_a_timeout_does_fire_on_a_socket_nobody_writes_to():
    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)
        with pytest.raises(TimeoutError), anyio.fail_after(A_MOMENT):
            await anyio.wait_readable(left)
    assert anyio.current_time() >= A_MOMENT - 1e-3


async def test_subprocesses_run_in_real_time():
    with anyio.fail_after(HOUR):
        done = await anyio.run_process([sys.executable, "-S", "-c", "print(5)"])
    assert done.stdout.strip() == b"5"
    assert anyio.current_time() < 30


# Schedules


async def turns_of(*, tasks: int, steps: int) -> list[tuple[int, int]]:
    """Tasks that always can run, noting each of their steps."""
    noted: list[tuple[int, int]] = []

    async def run(number: int) -> None:
        for step in range(steps):
            noted.append((step, number))
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        for number in range(tasks):
            group.start_soon(run, number)
    return noted


@both
def test_a_seed_decides_the_schedule(backend: Literal["asyncio", "trio"]):
    run = functools.partial(turns_of, tasks=8, steps=3)
    schedules = [
        [tuple(run_virtual(run, backend=backend, seed=seed)) for _ in range(3)] for seed in range(5)
    ]
    assert all(len(set(same_seed)) == 1 for same_seed in schedules)
    assert len({same_seed[0] for same_seed in schedules}) == 5
    for schedule, *_ in schedules:
        # Every task has had its step before any has the next: shuffled, not starved.
        assert [step for step, _ in schedule] == [0] * 8 + [1] * 8 + [2] * 8


def test_without_a_seed_asyncio_is_first_come_first_served():
    schedule = run_virtual(functools.partial(turns_of, tasks=8, steps=3))
    assert schedule == [(step, number) for step in range(3) for number in range(8)]


@both
def test_cancelled_tasks_unwind_in_an_order_that_the_seed_decides(
    backend: Literal["asyncio", "trio"],
):
    async def main() -> tuple[int, ...]:
        noted: list[int] = []

        async def run(number: int) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                noted.append(number)

        async with anyio.create_task_group() as tasks:
            for number in range(20):
                tasks.start_soon(run, number)
            await anyio.sleep(1)
            tasks.cancel_scope.cancel()
        return tuple(noted)

    kept: list[object] = []
    orders: set[tuple[int, ...]] = set()
    for attempt in range(10):
        orders.add(run_virtual(main, backend=backend, seed=1))
        # anyio and trio keep sets of tasks, which come in the order of addresses: move those.
        kept += [bytearray(random.randrange(50, 1500)) for _ in range(200 * attempt)]
    assert len(orders) == 1
    assert run_virtual(main, backend=backend, seed=2) not in orders


@pytest.mark.parametrize("task_type", ["Task", "_PyTask"])  # the one in C, the one in Python
def test_only_runs_of_task_steps_are_shuffled(task_type: str):
    new_task: Any = getattr(asyncio.tasks, task_type)

    def steps(seed: int) -> str:
        noted: list[str] = []

        async def step(name: str, wake: asyncio.Future[None] | None = None) -> None:
            if wake is not None:
                await wake
            noted.append(name + bound.get_name())

        async def main() -> None:
            nonlocal bound
            loop = asyncio.get_running_loop()
            futures = [loop.create_future() for _ in range(3)]
            tasks = [new_task(step("w", future), loop=loop) for future in futures]
            bound = new_task(asyncio.sleep(0), loop=loop)
            bound.set_name("0")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            # From here on, whatever runs in the next turn is queued: steps, callback, steps, ...
            tasks += [new_task(step(name), loop=loop) for name in "abc"]
            loop.call_soon(bound.set_name, "1")  # bound to a task, and yet a callback
            for future in futures:
                future.set_result(None)
            loop.call_soon(noted.append, "|")
            tasks += [new_task(step(name), loop=loop) for name in "def"]
            await asyncio.wait([*tasks, bound])

        bound: asyncio.Task[None]
        run_virtual(main, seed=seed)
        return " ".join(noted)

    seen = {steps(seed) for seed in range(30)}
    for order in seen:
        before, woken, after = order[:8], order[9:17], order[20:]
        assert (sorted(before.split()), woken) == (["a0", "b0", "c0"], "w1 w1 w1")
        assert (order[18], sorted(after.split())) == ("|", ["d1", "e1", "f1"])
    assert len(seen) > 15


def test_trio_gets_its_own_randomness_back():
    run: Any = importlib.import_module("trio._core._run")
    before = run._r.getstate(), run._ALLOW_DETERMINISTIC_SCHEDULING
    assert run_virtual(turns_of_two, backend="trio", seed=5)
    assert (run._r.getstate(), run._ALLOW_DETERMINISTIC_SCHEDULING) == before


async def turns_of_two() -> int:
    return len(await turns_of(tasks=2, steps=2))


async def test_level_cancellation_holds_under_any_schedule():
    # A task that swallows its cancellation gets it again at its next checkpoint, and no other does.
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        for _ in range(5):
            try:
                await anyio.sleep_forever()
            except anyio.get_cancelled_exc_class():
                swallowed += 1
        await anyio.sleep_forever()

    async with anyio.create_task_group() as outer:
        outer.start_soon(anyio.sleep, 2)
        async with anyio.create_task_group() as inner:
            for _ in range(4):
                inner.start_soon(stubborn)
            await anyio.sleep(1)
            inner.cancel_scope.cancel()
        assert anyio.current_time() == 1
    assert swallowed == 20
    assert anyio.current_time() == 2


# Entrances


def test_run_virtual_passes_arguments_and_result():
    async def add(left: int, right: int) -> int:
        await anyio.sleep(HOUR)
        return left + right

    assert run_virtual(add, 2, 3) == 5
    assert run_virtual(add, 2, 3, backend="trio", seed=1) == 5


@both
def test_every_backend_has_a_clock_of_its_own(backend: Literal["asyncio", "trio"]):
    async def main() -> float:
        await anyio.sleep(1)
        return anyio.current_time()

    assert [run_virtual(main, backend=backend) for _ in range(3)] == [1, 1, 1]
    _, options = virtual_backend(backend)
    _, others = virtual_backend(backend)
    if backend == "trio":
        assert options["clock"] is not others["clock"]


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match='choose "asyncio" or "trio"'):
        virtual_backend("curio")  # pyright: ignore[reportArgumentType]  # that is the point


def test_without_trio_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "trio", None)
    monkeypatch.delitem(sys.modules, "shoal.testing._trio_clock", raising=False)
    monkeypatch.delattr("shoal.testing._trio_clock", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"pip install shoal\[trio\]"):
        virtual_backend("trio")
    assert virtual_backend("asyncio")[0] == "asyncio"
