"""Virtual time on both backends: an hour of sleep passes at once.

- `VirtualTimeLoop`: the asyncio loop.
- `virtual_backend`: the value of an ``anyio_backend`` fixture.
- `run_virtual`: ``anyio.run`` under virtual time.

Invariants, on both backends:
- Time moves only when no task can run. Then it jumps to the next timer: never past it, and never
  backwards.
- While the program waits for the real world (a socket, a worker thread) time passes at its real
  speed. Such tests work, but their times are no longer exact.
- If nothing can ever happen again, `VirtualDeadlock` is raised; the program does not hang.
- The same seed gives the same schedule.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import math
import random
import selectors
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any, Literal, TypeVar, TypeVarTuple, final
from weakref import WeakKeyDictionary

import anyio

from shoal.testing._deadlock import VirtualDeadlock
from shoal.testing._workers import is_owed, may_be_called, working_threads

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")
_Events = list[tuple[selectors.SelectorKey, int]]

# Timers this close together are due together, as on a real clock: 0.1 + 0.2 is 0.3. A billionth of
# a second is far below any sleep of a test, and far above the rounding of sums of sleeps.
_RESOLUTION = 1e-9

# Real seconds to wait for a call from a thread that may also end without one. Short, because the
# wait is repeated as long as the thread lives.
_PATIENCE = 0.05

# The C class and the Python one, which is not its base.
_TASKS = (asyncio.Task, getattr(asyncio.tasks, "_PyTask", asyncio.Task))


class _TurnSelector(selectors.DefaultSelector):
    """The loop's selector. The loop asks it for events once a turn; ``turn`` may call ``wait``."""

    turn: Callable[[float | None], _Events]

    def select(self, timeout: float | None = None) -> _Events:
        return self.turn(timeout)

    def wait(self, timeout: float | None) -> _Events:
        return super().select(timeout)


@final
class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An asyncio loop whose `time` jumps to the next timer as soon as no task can run.

    Before every jump the loop looks for real events: sockets, signals, calls from threads. Time
    passes at its real speed while a descriptor is registered, and while a job of
    `run_in_executor`, ``asyncio.to_thread`` or ``anyio.to_thread`` runs. The loop can't know
    whether a thread of your own is about to call into it. Such a thread prevents a
    `VirtualDeadlock`, but not jumps of time: wrap the wait for it in `real_time`.

    With a seed, tasks that are ready at the same time take their next steps in a random order that
    the seed decides. Callbacks keep their place, because some depend on it (anyio's cancellation
    does). Without a seed the order is asyncio's: first come, first served.

    Code that spins (``while loop.time() < t: await asyncio.sleep(0)``) never ends: a task that can
    always run keeps time from moving.

    Args:
        start_at: the first reading of the clock.
        seed: decides the order of simultaneous task steps.

    Raises:
        VirtualDeadlock: from the call that runs the loop, when no task can ever run again.
            ``asyncio.Runner`` or ``anyio.run`` then cancels the blocked tasks, as after Ctrl-C.
    """

    if TYPE_CHECKING:  # private to asyncio, and unchanged for years
        _ready: deque[asyncio.Handle]
        _scheduled: list[asyncio.TimerHandle]
        _clock_resolution: float

    def __init__(self, *, start_at: float = 0.0, seed: int | None = None) -> None:
        self._now = start_at
        self._order = None if seed is None else _StepOrder(seed)
        self._outside_jobs = 0  # what waits for the real world: jobs, and blocks of `real_time`
        self._bystanders = frozenset(working_threads())  # older than the loop: they don't call it
        self._turns = _TurnSelector()
        super().__init__(self._turns)
        self._own_descriptors = len(self._turns.get_map())  # the pipe for calls from threads
        self._turns.turn = self._turn
        self._move_to(start_at)

    def time(self) -> float:
        """Return the virtual time in seconds."""
        return self._now

    def jump(self, seconds: float) -> None:
        """Let seconds pass at once, whether or not tasks can run."""
        self._move_to(self._now + seconds)

    @contextlib.contextmanager
    def real_time(self) -> Generator[None]:
        """Let time pass at its real speed inside the block whenever no task can run."""
        self._outside_jobs += 1
        try:
            yield
        finally:
            self._outside_jobs -= 1

    def run_in_executor(  # pyright: ignore[reportIncompatibleMethodOverride]  # typeshed's is Any
        self, executor: Executor | None, func: Callable[[*_Ts], _T], *args: *_Ts
    ) -> asyncio.Future[_T]:
        """As asyncio's. Time passes at its real speed until the job ends or is given up."""
        future = super().run_in_executor(executor, func, *args)
        self._outside_jobs += 1
        future.add_done_callback(self._end_outside_job)
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """As asyncio's. It waits for threads, in real time."""
        with self.real_time():
            if sys.version_info >= (3, 12):
                await super().shutdown_default_executor(timeout)
            else:
                await super().shutdown_default_executor()

    def _end_outside_job(self, _: asyncio.Future[Any]) -> None:
        self._outside_jobs -= 1

    def _turn(self, timeout: float | None) -> _Events:
        """Return the real events of one turn of the loop; if nothing is ready, let time pass.

        asyncio gives a timeout of 0 if callbacks are ready, and None if no timer is set.
        """
        if self._order is not None:
            self._order.shuffle(self._ready)
        events = self._turns.wait(0)
        if events or timeout == 0:
            return events
        if self._waits_for_outside():
            return self._wait_really(timeout)
        # No timer, or one at infinity, which is how `anyio.sleep_forever` sleeps.
        next_at = self._next_timer_at()
        if next_at == math.inf and may_be_called(self._bystanders):
            return self._wait_really(_PATIENCE)
        if self._ready:
            return events  # a thread has called in, and ended, since the look for events
        if next_at == math.inf:
            raise VirtualDeadlock(
                self._now, ((task.get_name(), task.get_coro()) for task in asyncio.all_tasks(self))
            )
        self._move_to(max(self._now, next_at))
        return events

    def _wait_really(self, timeout: float | None) -> _Events:
        began_at = time.monotonic()
        events = self._turns.wait(timeout)
        passed = time.monotonic() - began_at
        self._move_to(min(self._now + passed, max(self._now, self._next_timer_at())))
        return events

    def _move_to(self, at: float) -> None:
        self._now = at
        # The loop runs the timers that are due before `at` plus this. Late on the clock it must be
        # at least the distance to the next float, or no timer would ever be due (see
        # test_late_clocks_still_reach_their_timers).
        self._clock_resolution = max(_RESOLUTION, math.ulp(at))

    def _next_timer_at(self) -> float:
        return self._scheduled[0].when() if self._scheduled else math.inf

    def _waits_for_outside(self) -> bool:
        if self._outside_jobs or len(self._turns.get_map()) > self._own_descriptors:
            return True
        return threading.active_count() > 1 and (
            any(_works_for(self, thread) for thread in threading.enumerate()) or is_owed(self)
        )


def _works_for(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> bool:
    """Return whether this thread has a job of the loop's that `run_in_executor` does not show.

    Such threads are known by their attributes, because their classes are private: anyio's worker
    threads (one that was told to stop is not among the workers, and wakes no task), and, by name
    alone, the threads in which asyncio waits for subprocesses on some systems.
    """
    if thread.name.startswith(("waitpid-", "asyncio-waitpid-")):
        return True
    if getattr(thread, "loop", None) is not loop:
        return False
    workers, idle = getattr(thread, "workers", ()), getattr(thread, "idle_workers", ())
    return thread in workers and thread not in idle


class _StepOrder:
    """Shuffles consecutive task steps in a loop's queue. All other handles keep their place.

    Shuffling everything would break correct programs: anyio's level cancellation relies on its
    callback running after the steps that were queued before it.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)  # noqa: S311  # not used for secrets
        # Tasks by age. A set of tasks (anyio's cancellation walks one) is ordered by memory
        # addresses. Sorting before shuffling gives a seed the same schedule in every process.
        self._ages: WeakKeyDictionary[asyncio.Task[Any], int] = WeakKeyDictionary()
        self._born = itertools.count()

    def shuffle(self, ready: deque[asyncio.Handle]) -> None:
        # Other threads may append meanwhile. So only the handles taken out are put back, at the
        # front. `deque.popleft` itself, because that of the queue's class counts a step as run: see
        # `_steps`.
        handles = [deque[asyncio.Handle].popleft(ready) for _ in range(len(ready))]
        shuffled: list[asyncio.Handle] = []
        for are_steps, run in itertools.groupby(handles, _is_task_step):
            batch = list(run)
            if are_steps:
                batch.sort(key=self._age)
                self._random.shuffle(batch)
            shuffled += batch
        ready.extendleft(reversed(shuffled))

    def _age(self, step: asyncio.Handle) -> int:
        task: asyncio.Task[Any] = _callback_of(step).__self__
        age = self._ages.get(task)
        if age is None:
            age = self._ages[task] = next(self._born)
        return age


def _is_task_step(handle: asyncio.Handle) -> bool:
    """Return whether this handle is a task's next step, and not a callback.

    A step or wakeup is bound to its task but is not among the task's methods: in C it is nameless
    or called "task_wakeup", in Python its name is mangled. ``loop.call_soon(task.cancel)`` is bound
    to a task too, but is a callback: the task has a method of that name.
    """
    callback = _callback_of(handle)
    if not isinstance(getattr(callback, "__self__", None), _TASKS):
        return False
    name = getattr(callback, "__name__", "")
    return not (name and hasattr(callback.__self__, name))


def _callback_of(handle: asyncio.Handle) -> Any:
    return getattr(handle, "_callback", None)


def virtual_backend(
    name: Literal["asyncio", "trio"], *, seed: int | None = None
) -> tuple[str, dict[str, object]]:
    """Return a backend and its options under virtual time, for an ``anyio_backend`` fixture.

    Each call makes a new clock, starting at 0: make the fixture function-scoped::

        @pytest.fixture(params=[("asyncio", None), ("asyncio", 1), ("trio", None)])
        def anyio_backend(request):
            name, seed = request.param
            return virtual_backend(name, seed=seed)

    Args:
        name: "asyncio" (see `VirtualTimeLoop`) or "trio" (its own ``MockClock``, which does not
            jump while a socket or a worker thread is waited for; it has no `real_time`).
        seed: makes the order of simultaneous task steps random and repeatable. Without one, asyncio
            is first come, first served, and trio is random and not repeatable.

    Raises:
        ModuleNotFoundError: ``name`` is "trio", and trio is not installed.
        ValueError: there is no backend of that name.
    """
    match name:
        case "asyncio":
            return "asyncio", {"loop_factory": functools.partial(VirtualTimeLoop, seed=seed)}
        case "trio":
            try:
                from shoal.testing import _trio_clock  # noqa: PLC0415  # trio is optional
            except ModuleNotFoundError as error:
                if error.name != "trio":
                    raise
                raise ModuleNotFoundError(
                    "the trio backend needs trio: pip install shoal[trio]", name="trio"
                ) from error
            return "trio", _trio_clock.virtual_options(seed)
        case _:  # pyright: ignore[reportUnnecessaryComparison]  # for users who don't check types
            raise ValueError(f'no backend is called {name!r}: choose "asyncio" or "trio"')


def jump_of_this_loop() -> Callable[[float], None]:
    """Return what moves the virtual clock of the running loop forward, by seconds.

    Timers that are due by then are due at once, as when a machine was asleep. It may be called
    outside of any task.
    """
    with contextlib.suppress(RuntimeError):
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualTimeLoop), "under virtual time"
        return loop.jump
    clock: Any = sys.modules["trio"].lowlevel.current_clock()
    return clock.jump


def run_virtual(
    async_fn: Callable[[*_Ts], Awaitable[_T]],
    *args: *_Ts,
    backend: Literal["asyncio", "trio"] = "asyncio",
    seed: int | None = None,
) -> _T:
    """Run an async function under virtual time, as ``anyio.run`` does; return its result.

    >>> async def nap() -> float:
    ...     await anyio.sleep(3600)
    ...     return anyio.current_time()
    >>> run_virtual(nap)
    3600.0

    Args:
        async_fn: the function to run.
        *args: its arguments.
        backend: "asyncio" or "trio".
        seed: see `virtual_backend`.

    Raises:
        VirtualDeadlock: no task could ever run again. On asyncio it is raised past the tasks, which
            are then cancelled; on trio in the main task, so the task groups open there wrap it.
    """
    name, options = virtual_backend(backend, seed=seed)
    return anyio.run(async_fn, *args, backend=name, backend_options=options)
