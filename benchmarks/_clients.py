"""Clients of the service in ``service.py``, in a process of their own; standard library alone.

``python -m benchmarks._clients PORT PATH CLIENTS REQUESTS`` connects, says ``ready``, waits for a
line on its standard input, sends the requests, and prints their latencies.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

CALLS = 4
"""Calls that each request asks for."""


async def load(port: int, path: str, clients: int, requests: int) -> list[float]:
    """Run all clients once they are connected and told to; return the latencies."""
    found: list[float] = []
    start = asyncio.Event()

    async def client(number: int) -> None:
        """Send requests, one after the other, on one connection."""
        prompts = [f"{number} {call}" for call in range(CALLS)]
        body = json.dumps({"state": {"prompts": prompts}}).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await start.wait()
        for _ in range(requests):
            began = time.perf_counter()
            writer.write(head.encode() + body)
            answer = await received(reader)
            found.append(time.perf_counter() - began)
            is_right = b" 200 " in answer.split(b"\r\n")[0]
            if not is_right or prompts[-1].upper().encode() not in answer:
                raise SystemExit(answer.decode())
        writer.close()
        await writer.wait_closed()

    async with asyncio.TaskGroup() as tasks:
        for number in range(clients):
            tasks.create_task(client(number))
        await asyncio.sleep(0.1)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        start.set()
    return found


async def received(reader: asyncio.StreamReader) -> bytes:
    """Receive one response."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1])
        for line in head.lower().split(b"\r\n")
        if line.startswith(b"content-length")
    )
    return head + await reader.readexactly(length)


if __name__ == "__main__":
    port, path, clients, requests = sys.argv[1:]
    print(json.dumps(asyncio.run(load(int(port), path, int(clients), int(requests)))))
