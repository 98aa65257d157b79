"""Cancel the work of an endpoint when its client disconnects.

No server cancels an endpoint that returns a value by itself; and behind a ``BaseHTTPMiddleware``,
``request.is_disconnected()`` never becomes true. Receiving messages until the disconnect message
arrives works everywhere.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, cast

from anyio import create_task_group
from fastapi import Depends, HTTPException, Request, WebSocket, WebSocketDisconnect

CLIENT_HAS_GONE = 499
"""The status of a request whose client has disconnected, as in nginx; only logs see it."""

_GONE = frozenset({"http.disconnect", "websocket.disconnect"})


@asynccontextmanager
async def cancel_on_disconnect(connection: Request | WebSocket) -> AsyncGenerator[None]:
    """Cancel the block when the client disconnects.

    The block is left after the cancelled work, including its cleanup, has ended. For a request it
    then raises ``HTTPException`` with status 499, which no client receives. For a web socket it
    raises nothing, even if sending has noticed the disconnect first. Other exceptions of the block
    pass unchanged.

    Read the body of a request before the block; parameters of an endpoint are read before. Messages
    of a web socket's client that arrive during the block are dropped, so an endpoint that receives
    messages should not use it: ``receive`` tells it of the disconnect.

    Args:
        connection: The request or the web socket.

    Raises:
        HTTPException: The client of a request has disconnected.

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
        except Exception as error:  # noqa: BLE001 # raised below: the task group would wrap it
            failure = error
        tasks.cancel_scope.cancel()
    try:
        is_socket = isinstance(connection, WebSocket)
        if failure is not None and not (is_socket and _only_says_so(failure)):
            raise failure
        if has_gone and not is_socket:
            raise HTTPException(CLIENT_HAS_GONE, "the client has gone")
    finally:
        del failure  # breaks the traceback cycle


def _only_says_so(error: BaseException) -> bool:
    """Return whether an error says that the client has disconnected, and nothing else."""
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return group.split(WebSocketDisconnect)[1] is None
    return isinstance(error, WebSocketDisconnect)


async def _cancel_on_disconnect(request: Request) -> AsyncGenerator[None]:
    async with cancel_on_disconnect(request):
        yield


# With scope="function" the block ends before the response is sent. Afterwards every server reports
# a disconnect.
CancelOnDisconnect: Any = Depends(_cancel_on_disconnect, scope="function")
"""``cancel_on_disconnect`` as a dependency of an endpoint:
``@service.get("/answer", dependencies=[CancelOnDisconnect])``."""
