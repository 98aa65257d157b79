"""`no_leaks`: nothing that is started inside a block may be left when it ends."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import sys
import threading
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, suppress

# Imported by name, because detectors of blocking calls patch modules: these calls read the kernel's
# tables and no disk, and sleep only to wait for a thread (see
# test_works_under_a_detector_of_blocking_calls).
from os import close, listdir, read, readlink
from os import open as open_file
from time import monotonic, sleep
from types import AsyncGeneratorType
from typing import Any, NamedTuple, final

import anyio
import anyio.lowlevel

from shoal.testing._stacks import where_task_stands, where_thread_stands
from shoal.testing._workers import working_threads

_TURNS = 50  # turns of the loop until things end: a cancelled task may unwind through many waits
_FIRST_TURNS = 3  # turns in any case: a closed transport's socket is closed a turn later
_THREAD_GRACE = 2.0  # real seconds for a thread that is about to end, on a busy machine too
_BREATH = 0.001  # real seconds in which that thread has the interpreter to itself

_OWN_THREADS = "/proc/self/task"
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
async def no_leaks(
    *,
    threads: bool = True,
    descriptors: bool = True,
    generators: bool = True,
    processes: bool = True,
) -> AsyncGenerator[None]:
    """Check on leaving that nothing born inside is left.

    No task, thread, file descriptor, child process, and no async generator that has begun and was
    neither finished nor closed: its cleanup would run at a time that nobody knows.

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
        generators: look for async generators too.
        processes: look for child processes too, where the system lists them (Linux). One that has
            ended and was not waited for is left, too.

    Raises:
        LeakError: the message names all that is left; for tasks and threads, also where they stand.
    """
    census = Census(
        threads=threads, descriptors=descriptors, generators=generators, processes=processes
    )
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
    """What there was at the start, and what is new since then."""

    def __init__(
        self, *, threads: bool, descriptors: bool, generators: bool = False, processes: bool = False
    ) -> None:
        # The objects, not their `id`: a new one may get the address of a dead one.
        self._coroutines = {task.coro for task in anyio.get_running_tasks()}
        self._threads = set(working_threads()) if threads else None
        self._descriptors = set(_open_descriptors()) if descriptors else None
        self._generators = set(_open_generators()) if generators else None
        self._processes = set(_children()) if processes else None
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
        for generator in self._new_generators():
            name = generator.__qualname__
            yield (
                f"async generator {name!r} stands at\n"
                f"{where_task_stands(generator, indent='    ')}"
                f"    HINT: close it: async with contextlib.aclosing({name}(...)) as items"
            )
        for process in self._new_processes():
            yield f"child process {process}: {_command_of(process)}"
        requests = _cancel_requests()
        if requests != self._cancel_requests:
            yield (
                f"cancellation requests of the current task: {requests}, on entry"
                f" {self._cancel_requests}. HINT: code that catches its own cancellation request"
                " also calls uncancel(); other code lets it through"
            )

    def _is_clean(self) -> bool:
        return not (
            self._new_tasks()
            or self._new_threads()
            or self._new_descriptors()
            or self._new_processes()
            or self._new_generators()
        )

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

    def _new_generators(self) -> list[AsyncGeneratorType[Any, Any]]:
        if self._generators is None:
            return []
        return [one for one in _open_generators() if one not in self._generators]

    def _new_processes(self) -> list[int]:
        return [] if self._processes is None else sorted(set(_children()) - self._processes)


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


def _open_generators() -> Iterator[AsyncGeneratorType[Any, Any]]:
    """Yield the async generators of the running loop that have begun and not ended.

    Those that nothing refers to are closed by the loop, some turns after they were collected.
    """
    loop: Any = None
    with suppress(RuntimeError):  # on trio
        loop = asyncio.get_running_loop()
    if loop is not None:
        found = getattr(loop, "_asyncgens", ())  # uvloop calls it so, too
    else:
        run: Any = sys.modules["trio._core._run"]
        found = run.GLOBAL_RUN_CONTEXT.runner.asyncgens.alive
    for generator in list(found):
        if isinstance(generator, AsyncGeneratorType) and generator.ag_frame is not None:
            yield generator


def _children() -> Iterator[int]:
    """Yield the ids of this process's children, also of those that nobody has waited for."""
    with suppress(OSError):
        for thread in listdir(_OWN_THREADS):  # noqa: PTH208  # see its import
            yield from map(int, _content(f"{_OWN_THREADS}/{thread}/children").split())


def _command_of(process: int) -> str:
    command = _content(f"/proc/{process}/cmdline").replace(b"\0", b" ").decode(errors="replace")
    return command.strip() or "it has ended, and was not waited for"


def _content(name: str) -> bytes:
    """Return the beginning of a file of the kernel's; nothing if there is none."""
    with suppress(OSError):
        file = open_file(name, os.O_RDONLY)
        try:
            return read(file, 4096)
        finally:
            close(file)
    return b""


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
