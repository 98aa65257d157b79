"""Worker threads of this process, as an executor."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Literal, final

from shoal._concurrency.worker_threads import Thread
from shoal._concurrency.worker_threads import Threads as WorkerThreads
from shoal._errors.exceptions import DefinitionError
from shoal._limits.gates import Gate

from ._port import ContextPort, Executor, ItemsPort, Job, PoolHost, TimePort
from ._results import finished


@final
class Threads(Executor):
    """Worker threads of the process that executes the run. Plain functions run there by default.

    ``"threads"`` stands for the threads that all runs of a runtime share, as many as
    ``Runtime(threads=)`` says. Declare some of your own for functions that must not take those
    away from others, or of which only a few may run at once.

    Args:
        max_workers: Threads at once; None: as many as ``Runtime(threads=)`` says, besides those.

    Raises:
        DefinitionError: ``max_workers`` is no whole number of at least 1.

    Examples:
        >>> from shoal.executors import Threads
        >>> @action(reads=["n"], writes=["square"], executor=Threads(2))
        ... def square(n: int) -> int:
        ...     return n * n
        >>> Application(square).run_sync({"n": 3}).state["square"]
        9
    """

    name = "threads"
    takes: Literal["plain", "all"] = "plain"

    def __init__(self, max_workers: int | None = None) -> None:
        if max_workers is not None and (type(max_workers) is not int or max_workers < 1):
            msg = f"Threads(max_workers=...) takes a whole number, at least 1, not {max_workers!r}"
            raise DefinitionError(msg)
        self.max_workers: int | None = max_workers

    def refuse(self, job: Job, inputs: Mapping[str, object]) -> str:
        """Return why a function can't run in a thread; "" if it can."""
        if job.kind == "plain":
            return ""
        kind = "a coroutine function" if job.kind == "async" else "an async generator function"
        return f"it is {kind}, and threads run plain functions: leave out executor= of its action"

    def open(self, host: PoolHost) -> ThreadPool:
        """Make the threads of a runtime; none is started yet."""
        return ThreadPool(host, host.threads if self.max_workers is None else self.max_workers)

    def __repr__(self) -> str:
        return "Threads()" if self.max_workers is None else f"Threads({self.max_workers})"


SHARED_THREADS = Threads()
"""The threads that all runs of a runtime share: ``executor="threads"``."""


@final
class ThreadPool:
    """Worker threads of one runtime."""

    def __init__(self, host: PoolHost, slots: int) -> None:
        """Start no threads yet; at most ``slots`` functions are called at once."""
        self._threads = WorkerThreads(host.grace, host.backend.call_soon)
        self.gate: Gate = host.new_gate(slots, Threads.name)

    def call(self) -> ThreadCall:
        """Make a call; see ``Pool.call``."""
        return ThreadCall(self._threads.turn())

    async def aclose(self) -> None:
        """Do nothing: idle threads end by themselves, and those left behind can't be ended."""


def _call_and_check(job: Job, given: Mapping[str, Any]) -> object:
    # Checked in the thread: trio lets no coroutine out of one, and says so in words of its own.
    result = job.function(**given)
    return finished(job, None if job.access is None else given["state"], result)


@final
class ThreadCall:
    """One call of a function in a thread; see ``Call``."""

    __slots__ = ("_thread",)

    def __init__(self, thread: Thread) -> None:
        self._thread = thread

    @property
    def grace(self) -> float:
        """Seconds that the function is waited for after a cancellation."""
        return self._thread.grace

    def call(
        self,
        job: Job,
        kwargs: Mapping[str, Any],
        *,
        abandon: bool = False,
        alone: bool = False,
        context: ContextPort | None = None,
        items: ItemsPort | None = None,
        on_cancelled: Callable[[], None] | None = None,
        time: TimePort | None = None,
    ) -> Coroutine[Any, Any, object]:
        """Call the function of ``job`` in a thread; see ``Call.call``."""
        # No coroutine of its own around that of the thread: it would cost every plain function.
        del alone, items
        given = {**kwargs, "context": context} if job.takes_context else kwargs
        work = {"job": job, "given": given}
        return self._thread.call(_call_and_check, work, abandon=abandon, on_cancelled=on_cancelled)

    @property
    def is_running(self) -> bool:
        """Whether the function is at work; see ``Call.is_running``."""
        return self._thread.is_running

    @property
    def place(self) -> str:
        """Where the function stands: file, line and name of its innermost frame."""
        return self._thread.place

    def leave(self, call: Callable[[], None]) -> None:
        """Call ``call`` as soon as the function has ended: now, if it doesn't run."""
        self._thread.leave(call)
