"""Open the runtime of a service when it starts, and drain it when it stops.

A server that stops waits for its open connections first, and ends the lifespan only then. Streams
that end with the lifespan would keep the server from stopping. So the lifespan handles SIGTERM and
SIGINT itself: the runtime begins to drain at once, and streams end.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from datetime import timedelta
from functools import partial
from types import FrameType
from typing import Annotated, Any, TypedDict, cast

from anyio import Event, create_task_group
from fastapi import Depends
from starlette.requests import HTTPConnection

from shoal._concurrency.backend import current_backend
from shoal._errors.exceptions import BadUse
from shoal._runtime.recovery import Secrets
from shoal._runtime.runtime import Runtime

from ._retention import check_keep, keep_pruning, pruning

WITHIN = 2.0
"""Seconds that runs have to end by themselves when the service stops: less than the time after
which container runtimes kill a process, 10 s or more."""
EVERY = 10.0
"""Seconds between two searches for runs of dead processes: less than the default lease of 15 s, so
a run is recovered soon after its lease has expired."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class RuntimeState(TypedDict):
    """The state that the lifespan adds to requests: ``request.state.runtime``."""

    runtime: Runtime


Lifespan = Callable[[Any], AbstractAsyncContextManager[RuntimeState]]


def runtime_lifespan(
    runtime: Runtime,
    *,
    within: float = WITHIN,
    starts_for: float = math.inf,
    recover_every: float | None = EVERY,
    secrets: Secrets | None = None,
    keep: timedelta | None = None,
) -> Lifespan:
    """Open ``runtime`` for the life of a service: ``FastAPI(lifespan=runtime_lifespan(...))``.

    While the service is up, it recovers runs of the runtime's ``apps`` that other processes have
    left.

    The service stops on SIGTERM or SIGINT if it runs in the main thread, else with the end of the
    lifespan. The runtime then accepts no more runs, event streams end, and runs have ``within``
    seconds to end; after that they are cancelled, and awaited. Runs that are kept in a store are
    left to the next process.

    Args:
        runtime: A runtime that is not open.
        within: Seconds that runs have to end by themselves. If the server limits the time that it
            waits for connections, that limit must be longer.
        starts_for: Seconds of these in which runs that have a store may still begin steps and
            children. Then they start nothing more, so that what is under way ends in the rest of
            the time; see ``Runtime.drain``.
        recover_every: Seconds between two searches for runs that other processes have left; None
            never searches.
        secrets: The secret fields of those runs, as for ``Runtime.recover``.
        keep: How long runs are kept after their end, such as ``timedelta(days=30)``: older ones are
            deleted with all their data, in the background, from the stores of the runtime and its
            ``apps``. Halted runs are kept. None deletes nothing.

    Raises:
        DefinitionError: ``keep`` is no time. The lifespan itself raises ``BadUse`` if there is no
            store, or one that can't delete runs.

    Examples:
        If the service has resources of its own, call it inside of another lifespan:

        >>> from contextlib import asynccontextmanager
        >>> from fastapi import FastAPI
        >>> @asynccontextmanager
        ... async def lifespan(service):
        ...     async with open_client() as client:
        ...         runtime = Runtime(inputs={"client": client})
        ...         async with runtime_lifespan(runtime)(service) as state:
        ...             yield state
        >>> service = FastAPI(lifespan=lifespan)
    """
    if not isinstance(runtime, Runtime):
        msg = f"runtime_lifespan(runtime) takes a Runtime, not {runtime!r}"
        raise TypeError(msg)
    kept = check_keep(keep)

    @asynccontextmanager
    async def lifespan(_service: Any) -> AsyncGenerator[RuntimeState]:
        stores = () if kept is None else pruning(runtime)
        async with runtime, create_task_group() as tasks:
            stop = Event()
            tasks.start_soon(_drain, runtime, within, starts_for, stop)
            if recover_every is not None and runtime.can_recover:
                recover = partial(runtime.keep_recovering, secrets=secrets)
                tasks.start_soon(recover, recover_every)
            if kept is not None:
                tasks.start_soon(keep_pruning, runtime, stores, kept)
            with _on_signals(stop.set):
                yield {"runtime": runtime}
            stop.set()

    return lifespan


async def _drain(runtime: Runtime, within: float, starts_for: float, stop: Event) -> None:
    await stop.wait()
    await runtime.drain(within, starts_for=starts_for)


async def get_runtime(connection: HTTPConnection) -> Runtime:
    """Return the runtime that the lifespan has opened. A test may override this dependency.

    Raises:
        BadUse: The service has no ``runtime_lifespan``.
    """
    runtime: object = getattr(connection.state, "runtime", None)
    if not isinstance(runtime, Runtime):
        msg = (
            "this service has no runtime: FastAPI(lifespan=runtime_lifespan(Runtime(...))); a "
            "lifespan of your own yields what that one does; a client for tests enters it: "
            "with TestClient(service) as client"
        )
        raise BadUse(msg)
    return runtime


RuntimeDep = Annotated[Runtime, Depends(get_runtime)]
"""The service's runtime, as a parameter of an endpoint: ``runtime: RuntimeDep``."""


@contextmanager
def _on_signals(call: Callable[[], None]) -> Generator[None]:
    """Within the block, call ``call`` soon after a signal to stop, beside the former handler.

    Does nothing in threads other than the main one, because Python handles signals only there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    call_soon = current_backend().call_soon
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def on_signal(number: int, frame: FrameType | None) -> None:
        call_soon(call)
        cast("Callable[[int, FrameType | None], object]", before[signal.Signals(number)])(
            number, frame
        )

    # A signal without a handler in Python ends the process, or is ignored. That stays so.
    handled = [number for number in SIGNALS if callable(before[number])]
    for number in handled:
        signal.signal(number, on_signal)
    try:
        yield
    finally:
        for number in handled:
            if signal.getsignal(number) is on_signal:  # a handler that was installed later stays
                signal.signal(number, before[number])
