"""An executor whose workers are in this task: it counts, refuses, and loses workers on demand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, Literal

import anyio
from anyio.lowlevel import checkpoint

from shoal.errors import NotSendable, WorkerDied
from shoal.executors import Executor
from shoal.executors._port import ContextPort, ItemsPort, Job, PoolHost, TimePort
from shoal.executors._results import finished
from shoal.executors._streams import stream


class Exit(BaseException):
    """Raised by a function, ends its worker, as ``os._exit`` does."""


class Worker:
    """What a worker process would be: the calls at work in it, and whether it has died."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.calls: dict[FakeCall, anyio.CancelScope] = {}
        self.is_dead = False
        self.deaths_of: int = 0

    def die(self) -> None:
        """End at once, with all calls at work."""
        self.is_dead = True
        self.deaths_of = len(self.calls)
        for scope in self.calls.values():
            scope.cancel()


here: ContextVar[Worker] = ContextVar("here")
"""The worker that calls the function."""


class Fake(Executor):
    """Declares workers in this task.

    Args:
        name: What watchers call it.
        takes: Which functions it takes if it is inherited.
        slots: Calls at once; None: without bound.
        workers: Workers at once.
        refusing: Names of functions and inputs that can't be sent.
    """

    def __init__(
        self,
        name: str = "fake",
        *,
        takes: Literal["plain", "all"] = "all",
        slots: float = 1000,
        workers: int = 4,
        refusing: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.takes: Literal["plain", "all"] = takes
        self.slots = slots
        self.workers = workers
        self.refusing = refusing
        self.pools: list[FakePool] = []
        self.asked: list[tuple[str, Mapping[str, object]]] = []
        self.made_of: type[FakePool] = FakePool
        self.before: Callable[[Job], Any] | None = None
        """Awaited before a call begins, with its job."""

    def refuse(self, job: Job, inputs: Mapping[str, object]) -> str:
        self.asked.append((job.name, dict(inputs)))
        for name in (job.name, *inputs):
            if name in self.refusing:
                return f"{name!r} is a lock; make it in the worker"
        return ""

    def open(self, host: PoolHost) -> FakePool:
        self.pools.append(self.made_of(self, host))
        return self.pools[-1]

    @property
    def pool(self) -> FakePool:
        """The last pool."""
        return self.pools[-1]

    @property
    def called(self) -> list[str]:
        """The actions that were called, in all pools."""
        return [name for pool in self.pools for name in pool.called]


class FakePool:
    """The workers of a runtime."""

    def __init__(self, executor: Fake, host: PoolHost) -> None:
        self.executor = executor
        self.host = host
        self.gate = host.new_gate(executor.slots, executor.name)
        self.called: list[str] = []
        self.alone: list[str] = []
        """Actions that had a worker for themselves."""
        self.workers: list[Worker] = []
        self.dead: list[Worker] = []
        self.most = 0
        self.at_work = 0
        self.closed = 0
        self.changed = anyio.Event()

    def call(self) -> FakeCall:
        return FakeCall(self)

    def resize(self, slots: float) -> None:
        self.host.resize(self.gate, slots)

    async def aclose(self) -> None:
        await checkpoint()
        self.closed += 1

    def place(self, *, alone: bool) -> Worker | None:
        """Return a worker that may take a call; None: none may now.

        If no other may, a child's call gets the worker of its parent's, which waits for it.
        """
        living = [one for one in self.workers if not one.is_dead]
        free = [one for one in living if not (one.calls and alone)]
        free = [one for one in free if not any(call.alone for call in one.calls)]
        idle = [one for one in free if not one.calls]
        if not idle and len(self.workers) < self.executor.workers:
            self.workers.append(Worker(len(self.workers) + len(self.dead)))
            return self.workers[-1]
        above = here.get(None)
        waiting = above if above in living else None
        return min(free, key=lambda one: len(one.calls), default=waiting)

    def tell(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()


class FakeCall:
    """A call, in the task that awaits it."""

    def __init__(self, pool: FakePool) -> None:
        self.pool = pool
        self.grace = pool.host.grace
        self.alone = False
        self.is_running = False
        self.place = "a place unknown"

    async def call(
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
    ) -> object:
        pool = self.pool
        if time is not None:
            time.stop()
        for name, value in kwargs.items():
            if value == "a lock":
                msg = f"action {job.name!r}: field {name!r} can't be sent: it is a lock"
                raise NotSendable(msg)
        if pool.executor.before is not None:
            await pool.executor.before(job)
        else:
            await checkpoint()  # on the way
        self.alone = alone
        while (worker := pool.place(alone=alone)) is None:
            await pool.changed.wait()
        if time is not None:
            time.start()
        pool.called.append(job.name)
        if alone:
            pool.alone.append(job.name)
        pool.at_work += 1
        pool.most = max(pool.most, pool.at_work)
        given = {**kwargs, "context": context} if job.takes_context else dict(kwargs)
        token = here.set(worker)
        try:
            with anyio.CancelScope() as scope:
                worker.calls[self] = scope
                try:
                    result = await self._result(job, given, items)
                    if not worker.is_dead:
                        return finished(job, kwargs["state"] if job.access else None, result)
                except Exit:
                    worker.die()
            others = worker.deaths_of - 1
            msg = f"worker {worker.number} has died"
            raise WorkerDied(msg, str(worker.number), others)
        finally:
            here.reset(token)
            del worker.calls[self]
            pool.at_work -= 1
            if worker.is_dead and worker in pool.workers:
                pool.workers.remove(worker)
                pool.dead.append(worker)
            pool.tell()

    async def _result(self, job: Job, given: dict[str, Any], items: ItemsPort | None) -> object:
        function: Any = job.function
        if job.kind == "async":
            return await function(**given)
        if job.kind == "stream":
            assert items is not None
            return await stream(function(**given), items)
        return function(**given)

    def leave(self, call: Callable[[], None]) -> None:
        call()
