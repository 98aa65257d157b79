"""Races over real sockets: losers' connections are closed, and the server sees it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx
import pytest
from anyio.abc import SocketAttribute, SocketStream

from shoal import Application, Cancelled, Result, action, fan_out, first, first_item, race
from shoal.testing import no_leaks

pytestmark = [pytest.mark.anyio, pytest.mark.realtime]

WAITS = 5
"""Seconds that a test waits for the server to notice something, at most."""


@dataclass
class Server:
    """Answers ``/quick`` at once, and everything else never; notes who hangs up."""

    port: int = 0
    asked: set[str] = field(default_factory=set[str])
    hung_up: set[str] = field(default_factory=set[str])
    news: anyio.Event = field(default_factory=anyio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _tell(self) -> None:
        self.news.set()
        self.news = anyio.Event()

    async def until(self, paths: set[str], seen: set[str]) -> None:
        with anyio.fail_after(WAITS):
            while not paths <= seen:
                await self.news.wait()

    async def serve(self, stream: SocketStream) -> None:
        async with stream:
            head = b""
            while b"\r\n\r\n" not in head:
                head += await stream.receive()
            path = head.split()[1].decode()
            self.asked.add(path)
            self._tell()
            if path.startswith("/quick"):
                await self.until({"/slow", "/slower"}, self.asked)
                body = b"quick"
                await stream.send(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n" + body)
            elif path.startswith("/stream"):
                await stream.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
                await stream.send(b"5\r\nfirst\r\n")
                await self.until({"/slow", "/slower"}, self.hung_up)  # it goes on, others don't
                await stream.send(b"6\r\n, last\r\n0\r\n\r\n")
            try:
                await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                self.hung_up.add(path)
                self._tell()


@asynccontextmanager
async def serving() -> AsyncGenerator[Server]:
    server = Server()
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    server.port = listener.extra(SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, server.serve, tasks)
        yield server
        tasks.cancel_scope.cancel()


@action(reads=["path"], writes=["page"])
async def get(path: str, client: httpx.AsyncClient) -> str:
    response = await client.get(path)
    return response.raise_for_status().text


@asynccontextmanager
async def connected() -> AsyncGenerator[tuple[Server, httpx.AsyncClient]]:
    async with serving() as server, httpx.AsyncClient(base_url=server.url, timeout=None) as client:
        yield server, client


async def test_losers_hang_up_before_the_race_ends():
    step = fan_out(get, over="paths", item="path", key=str, into="page", until=first())
    async with no_leaks(descriptors=False), connected() as (server, client):
        paths = ["/slow", "/quick", "/slower"]
        result = await Application(step).run({"paths": paths}, inputs={"client": client})
        assert result.state["page"] == "quick"
        outcomes = list(result.outcomes("page"))
        assert [outcome.key for outcome in outcomes] == ["/slow", "/slower"]
        assert all(isinstance(outcome, Cancelled) for outcome in outcomes)
        await server.until({"/slow", "/slower"}, server.hung_up)
        assert "/quick" not in server.hung_up, "its connection is the client's to keep"


async def test_and_so_do_all_where_the_caller_goes_away():
    step = fan_out(get, over="paths", item="path", key=str, into="page", until=first())
    async with no_leaks(descriptors=False), connected() as (server, client):
        async with anyio.create_task_group() as tasks:
            app = Application(step, inputs={"client": client})
            tasks.start_soon(app.run, {"paths": ["/slow", "/slower"]})
            await server.until({"/slow", "/slower"}, server.asked)
            tasks.cancel_scope.cancel()
        await server.until({"/slow", "/slower"}, server.hung_up)


async def test_the_first_to_stream_goes_on_and_the_others_hang_up():
    @action(writes=["text"])
    async def read(path: str, client: httpx.AsyncClient) -> AsyncIterator[Any]:
        text = ""
        async with client.stream("GET", path) as response:
            async for chunk in response.aiter_text():
                text += chunk
                yield chunk
        yield Result(text)

    acts = [read.bind(name=path, path=path) for path in ("/slow", "/stream", "/slower")]
    async with no_leaks(descriptors=False), connected() as (server, client):
        app = Application(race(*acts, into="text", until=first_item()))
        result = await app.run(inputs={"client": client})
        assert result.state["text"] == "first, last"
        assert server.hung_up == {"/slow", "/slower"}
