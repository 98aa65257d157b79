"""Workers in threads of this process, for tests of the pool and of what runs in a worker."""

from __future__ import annotations

import pickle
import threading
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from functools import partial
from queue import SimpleQueue
from typing import Any

import anyio

from shoal._concurrency.backend import current_backend
from shoal.executors import Executor
from shoal.executors._links import OnBatch, OnDied
from shoal.executors._messages import Message
from shoal.executors._port import Job, PoolHost
from shoal.executors._remote_pool import RemotePool
from shoal.executors._worker import WorkerCore


class ThreadLink:
    """A worker in a thread. ``kill`` only cuts it off: what is at work there goes on."""

    def __init__(self, transport: ThreadTransport, on_batch: OnBatch, on_died: OnDied, number: int):
        self.name = f"worker {number}"
        self.sent: list[Message] = []
        self.listening: list[bool] = []
        self.pauses: list[float] = []
        self.mark = 0
        self._transport = transport
        self._on_batch, self._on_died = on_batch, on_died
        self._is_dead = False
        self._inbox: SimpleQueue[bytes | None] = SimpleQueue()
        self.core = WorkerCore(
            self._from_worker,
            initializer=transport.initializer,
            mark=self._set_mark if transport.marks else None,
        )
        self.threads = [
            threading.Thread(target=target, daemon=True) for target in (self._run, self._read)
        ]
        self._runs = transport.runs
        if self._runs:
            for thread in self.threads:
                thread.start()

    # In threads of the worker.

    def _run(self) -> None:
        self.core.run()
        self._inbox.put(None)
        self._transport.call_soon(partial(self.die, "it has ended"))

    def _read(self) -> None:
        while (data := self._inbox.get()) is not None:
            self.core.handle(pickle.loads(data))
        self.core.close()

    def _set_mark(self, call: int) -> None:
        self.mark = call

    def _from_worker(self, batch: list[Message]) -> None:
        self._transport.call_soon(partial(self._take, pickle.dumps(batch)))

    # On the loop.

    def _take(self, data: bytes) -> None:
        if not self._is_dead:
            batch: list[Message] = pickle.loads(data)
            self._transport.received += batch
            self._on_batch(batch)

    def send(self, batch: list[Message]) -> None:
        self.sent += batch
        self._inbox.put(pickle.dumps(batch))

    def listen(self, is_on: bool) -> None:
        self.listening.append(is_on)

    def pause(self, seconds: float) -> None:
        self.pauses.append(seconds)

    def answer(self, *messages: Message) -> None:
        """Let the pool receive what a worker without threads has not sent."""
        self._on_batch(list(messages))

    def begun(self) -> Collection[int] | None:
        return [self.mark] if self._transport.marks else None

    def kill(self) -> None:
        self._transport.call_soon(partial(self.die, "it was killed"))

    def die(self, reason: str) -> None:
        if not self._is_dead:
            self._is_dead = True
            self._transport.links.remove(self)
            self._transport.dead.append(self)
            self._on_died(reason)

    def end(self) -> None:
        """End the threads."""
        self._inbox.put(pickle.dumps([("stop",)]))
        if self._runs:
            for thread in self.threads:
                thread.join(5)


class ThreadTransport:
    """Starts workers in threads."""

    def __init__(
        self,
        call_soon: Callable[[Callable[[], None]], object],
        *,
        initializer: bytes | None = None,
        marks: bool = True,
        runs: bool = True,
    ):
        self.call_soon = call_soon
        self.initializer = initializer
        self.marks = marks
        self.runs = runs
        self.links: list[ThreadLink] = []
        self.dead: list[ThreadLink] = []
        self.received: list[Message] = []
        self.started = 0
        self.refusal: OSError | None = None

    def start(self, on_batch: OnBatch, on_died: OnDied) -> ThreadLink:
        if self.refusal is not None:
            raise self.refusal
        self.started += 1
        link = ThreadLink(self, on_batch, on_died, self.started)
        self.links.append(link)
        return link

    async def aclose(self) -> None:
        for link in [*self.links, *self.dead]:
            await anyio.to_thread.run_sync(link.end)


@asynccontextmanager
async def pool_of(
    workers: int = 2,
    *,
    concurrency: int = 10,
    grace: float = 5.0,
    initializer: bytes | None = None,
    marks: bool = True,
    runs: bool = True,
) -> AsyncGenerator[tuple[RemotePool, ThreadTransport]]:
    """Open a pool of workers in threads."""
    backend = current_backend()
    async with anyio.create_task_group() as tasks:

        def alarm(at: float, call: Callable[[], None]) -> Callable[[], object]:
            scope = anyio.CancelScope()

            async def ring() -> None:
                with scope:
                    await anyio.sleep_until(at)
                    call()

            tasks.start_soon(ring)
            return scope.cancel

        host = PoolHost(
            backend=backend,
            grace=grace,
            threads=40,
            set_alarm=backend.alarm or alarm,
            start_task=tasks.start_soon,
            serve=lambda gate: None,
        )
        transport = ThreadTransport(
            backend.call_soon, initializer=initializer, marks=marks, runs=runs
        )
        pool = RemotePool(
            host, transport, name="threads of a test", workers=workers, concurrency=concurrency
        )
        try:
            yield pool, transport
        finally:
            with anyio.CancelScope(shield=True):
                await pool.aclose()
            tasks.cancel_scope.cancel()


class InThreads(Executor):
    """Declares one worker in a thread of this process, for whole applications."""

    takes = "all"

    def __init__(self) -> None:
        self.transports: list[ThreadTransport] = []

    def refuse(self, job: Job, inputs: Mapping[str, object]) -> str:
        return ""

    def open(self, host: PoolHost) -> RemotePool:
        self.transports.append(ThreadTransport(host.backend.call_soon))
        return RemotePool(
            host, self.transports[-1], name="threads of a test", workers=1, concurrency=100
        )


def job(function: Callable[..., object], kind: Any = "plain", **options: Any) -> Job:
    return Job(function=function, name=function.__name__, kind=kind, **options)
