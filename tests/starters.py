"""The ways in which programs start an event loop, so that tests can be run in each of them.

`anyio.run` leaves the name of the library in a context variable, so it hides code that works in no
other loop: code that needs a current task where there is none, in callbacks of the loop. So tests
run under ``asyncio.run`` unless they say otherwise; ``pytest --starter=NAME`` runs all of them in
another way, and ``nox -s soak`` in all of these.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import sys
import threading
import urllib.request
from collections.abc import Callable, Coroutine, Generator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import anyio
import trio

T = TypeVar("T")
Main = Callable[[], Coroutine[Any, Any, T]]
MakeLoop = Callable[[], asyncio.AbstractEventLoop]

anyio_run = anyio.run  # as it is, whatever a test session has put in its place


def with_anyio(main: Main[T], make_loop: MakeLoop) -> T:
    """``anyio.run``, which tells anyio and sniffio which library runs."""
    return anyio_run(main, backend="asyncio", backend_options={"loop_factory": make_loop})


def with_asyncio(main: Main[T], make_loop: MakeLoop) -> T:
    """``asyncio.run``, as nearly all programs on asyncio."""
    with asyncio.Runner(loop_factory=make_loop) as runner:
        return runner.run(main())


def with_runner(main: Main[T], make_loop: MakeLoop) -> T:
    """``asyncio.Runner``, whose loop has run something before."""
    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(asyncio.sleep(0))
        return runner.run(main())


def with_hand_made_loop(main: Main[T], make_loop: MakeLoop) -> T:
    """``loop.run_until_complete`` on a loop of the program's own."""
    loop = make_loop()
    try:
        return loop.run_until_complete(main())
    finally:
        close(loop)


def with_notebook(main: Main[T], make_loop: MakeLoop) -> T:
    """A loop that runs for ever, as a notebook's: each cell is a task that a callback makes."""
    loop = make_loop()
    cells: list[asyncio.Task[T]] = []

    def run_cell() -> None:
        cell = loop.create_task(main())
        cell.add_done_callback(lambda _: loop.call_soon(loop.stop))
        cells.append(cell)

    try:
        loop.call_soon(run_cell)
        loop.run_forever()
        return cells[0].result()
    finally:
        close(loop)


def close(loop: asyncio.AbstractEventLoop) -> None:
    """End a loop that was made by hand."""

    async def end() -> None:
        left = asyncio.all_tasks(loop) - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await loop.shutdown_asyncgens()
        await loop.shutdown_default_executor()

    loop.run_until_complete(end())
    loop.close()


def with_eager_tasks(main: Main[T], make_loop: MakeLoop) -> T:
    """``asyncio.run`` on a loop whose tasks begin as soon as they are made (3.12 and newer)."""

    def make_eager() -> asyncio.AbstractEventLoop:
        loop = make_loop()
        loop.set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009 # not on 3.11
        return loop

    return with_asyncio(main, make_eager)


def with_uvicorn(main: Main[T], make_loop: MakeLoop) -> T:
    """In a request that uvicorn answers, in real time."""
    import uvicorn

    results: list[T] = []
    failures: list[BaseException] = []

    async def app(scope: Mapping[str, Any], receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        try:
            results.append(await main())
        except BaseException as error:
            failures.append(error)
        finally:
            server.should_exit = True
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    def request(url: str) -> None:
        # If the server fails, its own exception is the one to look at.
        with suppress(OSError):
            urllib.request.urlopen(url, timeout=60).close()

    # Without WebSockets, of which uvicorn imports a deprecated implementation if there is one.
    config = uvicorn.Config(
        app, lifespan="off", ws="none", log_config=None, timeout_graceful_shutdown=5
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/"
        client = threading.Thread(target=request, args=[url])
        client.start()
        with_asyncio(functools.partial(server.serve, sockets=[listening]), make_loop)
        client.join()
    for failure in failures:
        raise failure
    return results[0]


ON_ASYNCIO: Mapping[str, Callable[[Main[Any], MakeLoop], Any]] = {
    "asyncio.run": with_asyncio,
    "asyncio.Runner": with_runner,
    "run_until_complete": with_hand_made_loop,
    "notebook": with_notebook,
    "anyio.run": with_anyio,
    **({"eager": with_eager_tasks} if sys.version_info >= (3, 12) else {}),
}
"""Those that run any loop of asyncio's, under virtual time too."""

STARTERS = (*ON_ASYNCIO, "uvloop.run", "uvicorn", "trio.run")


@contextmanager
def failing_callbacks(make_loop: MakeLoop) -> Generator[MakeLoop]:
    """Raise at the end what callbacks of the loop have raised: asyncio only logs that."""
    failures: list[Exception] = []

    def note(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, Exception):
            failures.append(error)
        else:
            loop.default_exception_handler(context)

    def make() -> asyncio.AbstractEventLoop:
        loop = make_loop()
        loop.set_exception_handler(note)
        return loop

    yield make
    if failures:
        raise ExceptionGroup("callbacks of the event loop have failed", failures)


def start(
    starter: str, main: Main[T], backend: str = "asyncio", options: Mapping[str, Any] | None = None
) -> T:
    """Run ``main`` by a starter.

    Args:
        starter: One of ``STARTERS``, for asyncio.
        main: What to run.
        backend: Where it is ``trio``, trio runs it.
        options: As ``anyio.run`` takes them for that backend.
    """
    given = dict(options or {})
    given.pop("starter", None)
    if backend == "trio":
        return trio.run(main, **given)
    debug = given.pop("debug", None)
    make_loop = _loop_factory(given)

    def make() -> asyncio.AbstractEventLoop:
        loop = make_loop()
        if debug is not None:
            loop.set_debug(debug)
        return loop

    with failing_callbacks(make) as make_watched:
        return _starter(starter)(main, make_watched)


def _starter(name: str) -> Callable[[Main[Any], MakeLoop], Any]:
    if name == "uvicorn":
        return with_uvicorn
    return ON_ASYNCIO.get(name, with_asyncio)  # ``uvloop.run`` is that with another loop


def _loop_factory(options: dict[str, Any]) -> MakeLoop:
    if options.pop("use_uvloop", False):
        import uvloop

        return uvloop.new_event_loop
    return options.pop("loop_factory", None) or asyncio.new_event_loop
