"""Clients that go away while an endpoint works for them. Imports FastAPI and anyio.

An endpoint that returns a value is not cancelled by itself, whatever server runs it; and behind a
``BaseHTTPMiddleware``, ``request.is_disconnected()`` never becomes true. Receiving messages until
there is one that says so works everywhere.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast

from anyio import create_task_group
from fastapi import Depends, HTTPException, Request, WebSocket, WebSocketDisconnect

CLIENT_HAS_GONE = 499
"""The status of a request whose client has gone, as nginx has it; only logs see it."""

_GONE = frozenset({"http.disconnect", "websocket.disconnect"})


@asynccontextmanager
async def cancel_on_disconnect(connection: Request | WebSocket) -> AsyncGenerator[None]:
    """Cancel what is awaited in the block when the client goes away.

    What was cancelled is awaited, cleanup included. Then a request's block is left by
    ``HTTPException`` with status 499, which nobody reads; a web socket's is just left, and so it is
    where sending finds out first. What the block raises by itself leaves it as it is.

    A request's body is to be read before: an endpoint's parameters are. What a web socket's client
    sends meanwhile is dropped; an endpoint that receives by itself is told by that.

    Args:
        connection: The request or the web socket.

    Raises:
        HTTPException: The client of a request has gone.

    Examples:
        >>> from fastapi import FastAPI, Request
        >>> service = FastAPI()
        >>> @service.get("/answer")
        ... async def answer(request: Request) -> str:
        ...     async with cancel_on_disconnect(request):
        ...         return await think()
    """
    has_gone = False
    failure: Exception | None = None

    async def listen() -> None:
        nonlocal has_gone
        message: Any = {"type": ""}
        while message["type"] not in _GONE:
            message = await connection.receive()
        has_gone = True
        tasks.cancel_scope.cancel()

    async with create_task_group() as tasks:
        tasks.start_soon(listen)
        try:
            yield
        except Exception as error:  # noqa: BLE001 # raised below, for the task group would wrap it
            failure = error
        tasks.cancel_scope.cancel()
    try:
        is_socket = isinstance(connection, WebSocket)
        if failure is not None and not (is_socket and _only_says_so(failure)):
            raise failure
        if has_gone and not is_socket:
            raise HTTPException(CLIENT_HAS_GONE, "the client has gone")
    finally:
        del failure  # no cycle from the exception to this frame


def _only_says_so(error: BaseException) -> bool:
    """Tell whether an error is that the client has gone, and nothing else."""
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return group.split(WebSocketDisconnect)[1] is None
    return isinstance(error, WebSocketDisconnect)


async def _cancel_on_disconnect(request: Request) -> AsyncGenerator[None]:
    async with cancel_on_disconnect(request):
        yield


# Left before the response is sent: behind that, every server says that the client has gone.
CancelOnDisconnect: Any = Depends(_cancel_on_disconnect, scope="function")
"""The same as a dependency: ``@service.get("/answer", dependencies=[CancelOnDisconnect])``."""
