"""What the examples serve is sent at once: no small message waits 40 ms for an acknowledgement."""

from __future__ import annotations

import asyncio
import socket
import time
from http.server import BaseHTTPRequestHandler

import pytest
import uvicorn

from examples.llm_race import Rules
from examples.llm_race.demo import server as demo_server
from examples.llm_race.gateway.offer import Offer
from examples.llm_race.gateway.serve import listening_at
from examples.llm_race.gateway.service import make_service
from examples.scraper import demo_site
from tests.examples.rivals import Rival


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=lambda one: one.name)
def test_what_is_accepted_has_no_delay(family: socket.AddressFamily):
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    found = list[int]()

    async def accepted(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received = writer.get_extra_info("socket")
        found.append(received.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        writer.close()

    async def main(listening: socket.socket) -> None:
        async with await asyncio.start_server(accepted, sock=listening):
            reader, writer = await asyncio.open_connection(*listening.getsockname()[:2])
            await reader.read()
            writer.close()

    try:
        listening = listening_at(family, host, 0)
    except OSError:
        pytest.skip(f"no {host} here")
    asyncio.run(main(listening))
    assert found == [1]


@pytest.mark.parametrize("module", [demo_server, demo_site])
def test_the_demos_have_no_delay(module: object):
    handler: type[BaseHTTPRequestHandler] = vars(module)["Handler"]
    assert handler.disable_nagle_algorithm


def test_a_port_that_is_taken_is_an_error_and_nothing_is_left():
    with (
        listening_at(socket.AF_INET, "127.0.0.1", 0) as taken,
        pytest.raises(OSError, match="in use"),
    ):
        listening_at(socket.AF_INET, "127.0.0.1", taken.getsockname()[1])


@pytest.mark.slow
def test_an_answer_in_json_is_there_at_once():
    service = make_service(Offer(providers=[Rival("one").provider()], rules=Rules()))
    config = uvicorn.Config(service, ws="none", log_level="error", access_log=False)

    async def main(listening: socket.socket) -> list[float]:
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        took = list[float]()
        for _ in range(15):
            began = time.perf_counter()
            writer.write(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                int(line.split(b":")[1]) for line in head.splitlines() if b"content-length" in line
            )
            await reader.readexactly(length)
            took.append(time.perf_counter() - began)
        writer.close()
        server.should_exit = True
        await serving
        return took

    with listening_at(socket.AF_INET, "127.0.0.1", 0) as listening:
        took = sorted(asyncio.run(main(listening)))
    assert took[len(took) // 4] < 0.030  # it was 0.043 for each but the first
