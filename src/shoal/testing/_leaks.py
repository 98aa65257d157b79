"""`no_leaks`: nothing that is started inside a block may be left when it ends."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, suppress

# Imported by name, because detectors of blocking calls patch modules: these calls read the kernel's
# tables and no disk, and sleep only to wait for a thread (see
# test_works_under_a_detector_of_blocking_calls).
from os import listdir, readlink
from time import monotonic, sleep
from typing import NamedTuple, final

import anyio
import anyio.lowlevel

from shoal.testing._stacks import where_task_stands, where_thread_stands
from shoal.testing._workers import working_threads

_TURNS = 50  # turns of the loop until things end: a cancelled task may unwind through many waits
_FIRST_TURNS = 3  # turns in any case: a closed transport's socket is closed a turn later
_THREAD_GRACE = 2.0  # real seconds for a thread that is about to end, on a busy machine too
_BREATH = 0.001  # real seconds in which that thread has the interpreter to itself

_DESCRIPTOR_TABLES = ("/proc/self/fd", "/dev/fd")


@final
class LeakError(AssertionError):
    """Something that was started inside `no_leaks`, or an `Attempt`, is left.

    Attributes:
        leaks: one description of each thing that is left.
    """

    def __init__(self, leaks: tuple[str, ...], *, inside: str = "no_leaks()") -> None:
        self.leaks = leaks
        super().__init__("\n- ".join([f"came to life inside {inside} and still there:", *leaks]))


@asynccontextmanager
async def no_leaks(*, threads: bool = True, descriptors: bool = True) -> AsyncGenerator[None]:
    """Check on leaving that no task, thread or file descriptor born inside is left.

    Before the check, the event loop gets some turns for things that are about to end, and the
    garbage is collected, so that a forgotten coroutine or exception warns here and not in a later
    test. No time passes on a virtual clock. On asyncio the current task must also have as many
    cancellation requests (``asyncio.Task.cancelling``) as on entry.

    Idle worker threads are no leak: anyio, trio and asyncio's default executor keep theirs. A
    worker of anyio's or trio's that still has a job is one.

    If the block raises or is cancelled, the exception goes on unchanged and nothing is checked:
    catch an expected exception inside.

    Args:
        threads: look for threads too.
        descriptors: look for file descriptors too, where the system lists them (Linux, macOS).

    Raises:
        LeakError: the message names all that is left; for tasks and threads, also where they stand.
    """
    census = Census(threads=threads, descriptors=descriptors)
    yield
    await census.settle()
    gc.collect()
    # Once more, because the collector makes work: `aclose` of forgotten async generators.
    await census.settle()
    leaks = tuple(census.leaks())
    if leaks:
        raise LeakError(leaks)


async def judge(census: Census, *, inside: str) -> None:
    """Raise if anything is left.

    Garbage is collected only if something seems left, because that takes as long as a round.
    """
    await census.settle()
    if any(census.leaks()):
        gc.collect()
        await census.settle()
        leaks = tuple(census.leaks())
        if leaks:
            raise LeakError(leaks, inside=inside)


class Census:
    """The tasks, threads and descriptors at the start, and those that are new since then."""

    def __init__(self, *, threads: bool, descriptors: bool) -> None:
        # The objects, not their `id`: a new one may get the address of a dead one.
        self._coroutines = {task.coro for task in anyio.get_running_tasks()}
        self._threads = set(working_threads()) if threads else None
        self._descriptors = set(_open_descriptors()) if descriptors else None
        self._cancel_requests = _cancel_requests()
        self._grace_ends_at: float | None = None  # for threads; counted from the first `settle`

    async def settle(self) -> None:
        """Give the loop turns until nothing is new, or more turns would not help."""
        if self._grace_ends_at is None:
            self._grace_ends_at = monotonic() + _THREAD_GRACE
        for turn in itertools.count():
            if turn >= _FIRST_TURNS and self._is_clean():
                return
            if turn >= _TURNS:
                if monotonic() >= self._grace_ends_at or not self._new_threads():
                    return
                sleep(_BREATH)  # noqa: ASYNC251 # only a thread can still end
            await anyio.lowlevel.cancel_shielded_checkpoint()

    def leaks(self) -> Iterator[str]:
        """Yield a description of each new thing."""
        for task in self._new_tasks():
            yield f"task {task.name!r} stands at\n{where_task_stands(task.coro, indent='    ')}"
        for thread in self._new_threads():
            kind = "daemon thread" if thread.daemon else "thread"
            yield f"{kind} {thread.name!r} stands at\n{where_thread_stands(thread, indent='    ')}"
        for descriptor in self._new_descriptors():
            yield f"file descriptor {descriptor.number}: {descriptor.target}"
        requests = _cancel_requests()
        if requests != self._cancel_requests:
            yield (
                f"cancellation requests of the current task: {requests}, on entry"
                f" {self._cancel_requests}. HINT: code that catches its own cancellation request"
                " also calls uncancel(); other code lets it through"
            )

    def _is_clean(self) -> bool:
        return not (self._new_tasks() or self._new_threads() or self._new_descriptors())

    def _new_tasks(self) -> list[anyio.TaskInfo]:
        return [
            task
            for task in anyio.get_running_tasks()
            if task.coro not in self._coroutines and not _is_test_runner(task)
        ]

    def _new_threads(self) -> list[threading.Thread]:
        if self._threads is None:
            return []
        # A worker that was idle at the start and has a job at the end is new, too.
        return [thread for thread in working_threads() if thread not in self._threads]

    def _new_descriptors(self) -> list[_Descriptor]:
        if self._descriptors is None:
            return []
        return sorted(set(_open_descriptors()) - self._descriptors)


def _is_test_runner(task: anyio.TaskInfo) -> bool:
    # anyio's pytest plugin runs each half of a fixture in a task of its own, so a fixture with
    # `no_leaks` around its `yield` begins beside one such task and ends beside another.
    name: str = getattr(task.coro, "__qualname__", "")
    return name == "TestRunner._call_in_runner_task"


def _cancel_requests() -> int:
    with suppress(RuntimeError):  # on trio
        task = asyncio.current_task()
        return task.cancelling() if task is not None else 0
    return 0


class _Descriptor(NamedTuple):
    """An open file descriptor. Its number may be used again, so what it refers to is part of it."""

    number: int
    device: int
    inode: int
    target: str


def _open_descriptors() -> Iterator[_Descriptor]:
    for table in _DESCRIPTOR_TABLES:
        with suppress(OSError):
            numbers = [int(name) for name in listdir(table)]  # noqa: PTH208  # see its import
            break
    else:
        return  # the system lists none
    for number in numbers:
        with suppress(OSError):  # closed meanwhile, as the one that has read the table is
            status = os.fstat(number)
            yield _Descriptor(number, status.st_dev, status.st_ino, _target(table, number))


def _target(table: str, number: int) -> str:
    with suppress(OSError):
        return readlink(f"{table}/{number}")  # noqa: PTH115  # see its import
    return "of a kind this system does not name"
