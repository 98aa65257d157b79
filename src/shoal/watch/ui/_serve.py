"""Serve the page with uvicorn, in a process of its own.

An open stream keeps uvicorn alive: it waits for connections before it ends the lifespan. So this
server tells the streams to end when a signal arrives, and waits for other requests for a second.
"""

from __future__ import annotations

import asyncio
import socket
from types import FrameType
from typing import TYPE_CHECKING, final

import uvicorn

from ._streams import Streams

if TYPE_CHECKING:
    from starlette.applications import Starlette

GRACE = 1
"""Seconds that open requests get after a signal; uvicorn takes whole ones."""


@final
class Server(uvicorn.Server):
    """A server that closes streams when it is asked to end."""

    def __init__(self, config: uvicorn.Config, streams: Streams) -> None:
        """Make a server.

        Args:
            config: What it serves, and where.
            streams: The open streams of the application.
        """
        super().__init__(config)
        self._streams = streams
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Remember the loop: signals arrive outside of it."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """End the streams, then everything else. Python calls it between two instructions."""
        super().handle_exit(sig, frame)
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._streams.close)


def serve(app: Starlette, listener: socket.socket) -> None:
    """Serve the page until a signal arrives.

    Args:
        app: What ``create_app`` has returned.
        listener: The listening socket.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        timeout_graceful_shutdown=GRACE,
        lifespan="on",
        ws="none",
        server_header=False,
    )
    Server(config, app.state.streams).run(sockets=[listener])
