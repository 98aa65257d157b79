"""A service under load: the cost of a run per request, compared with the same work by hand.

``python -m benchmarks.service``: 1,000 concurrent clients send requests to one worker of uvicorn,
again and again. Each request makes four calls, which share one limit of concurrent calls and have
one timeout. The version by hand uses ``gather``, a ``Semaphore`` and ``timeout``. It lacks several
things that a run has: an id by which it can be found, a checked state that is committed after each
call, cancellation when its client disconnects, followers, saving and resuming. Latencies are
measured by the clients; memory is the server's.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import anyio
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.requests import Request

from shoal import Application, Limits, Runtime, action, fan_out
from shoal.fastapi import RuntimeDep, cancel_on_disconnect, runs_router, runtime_lifespan

SLOTS = int(os.environ.get("SLOTS", "1000"))
SECONDS = float(os.environ.get("SECONDS", "3"))
TIMEOUT = 60.0
CALLS = 4

# -- the service -----------------------------------------------------------------------------------


class Prompts(BaseModel):
    prompts: list[str]
    answers: dict[str, str] = {}


async def call(prompt: str) -> str:
    """Simulate a call of a model."""
    await anyio.sleep(SECONDS)
    return prompt.upper()


@action(reads=["prompt"], writes=["answer"])
async def answer(prompt: str) -> str:
    return await call(prompt)


answers = fan_out(
    answer, over="prompts", item="prompt", key=str, into="answers", take="answer", timeout=TIMEOUT
)
app = Application(answers, name="answers", state=Prompts)
runtime = Runtime(apps=[app], limits=Limits(SLOTS))
service = FastAPI(lifespan=runtime_lifespan(runtime, recover_every=None))
service.include_router(runs_router(app, authorize=None))
semaphore = asyncio.Semaphore(SLOTS)


class Request_(BaseModel):  # noqa: N801 # a request's body, beside the request
    state: Prompts


@service.post("/by-hand")
async def by_hand(body: Request_) -> dict[str, Any]:
    async def one(prompt: str) -> tuple[str, str]:
        async with semaphore:
            return prompt, await call(prompt)

    async with asyncio.timeout(TIMEOUT):
        found = dict(await asyncio.gather(*map(one, body.state.prompts)))
    return {"state": body.state.model_copy(update={"answers": found}).model_dump()}


@service.post("/by-hand-guarded")
async def by_hand_guarded(request: Request, body: Request_) -> dict[str, Any]:
    async with cancel_on_disconnect(request):
        return await by_hand(body)


@service.post("/run")
async def run(body: Request_, runtime: RuntimeDep) -> dict[str, Any]:
    result = await runtime.run(app, body.state)
    return {"state": result.state.to_plain()}


@service.get("/healthz")
async def healthz() -> dict[str, int]:
    gc.collect()
    status = Path("/proc/self/status").read_text()  # noqa: ASYNC240 # of memory
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return {
        "kib": int(line.split()[1]),
        "tasks": len(asyncio.all_tasks()),
        "runs": len(runtime.runs()),
    }


# -- its clients -----------------------------------------------------------------------------------

CONTENDERS = {
    "by hand": "/by-hand",
    "by hand, cancelled with its client": "/by-hand-guarded",
    "runtime.run in an endpoint": "/run",
    "the router's POST /runs/wait": "/runs/wait",
}


async def client(port: int, path: str, number: int, requests: int, into: list[float]) -> None:
    """Send ``requests`` requests, one after the other, on one connection."""
    prompts = [f"{number} {call}" for call in range(CALLS)]
    body = json.dumps({"state": {"prompts": prompts}}).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(requests):
        began = time.perf_counter()
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = next(
            int(line.split(b":")[1])
            for line in answer.lower().split(b"\r\n")
            if line.startswith(b"content-length")
        )
        answer += await reader.readexactly(length)
        into.append(time.perf_counter() - began)
        if b" 200 " not in answer.split(b"\r\n")[0] or prompts[-1].upper().encode() not in answer:
            raise SystemExit(answer.decode())
    writer.close()
    await writer.wait_closed()


async def load(port: int, path: str, clients: int, requests: int) -> tuple[list[float], float]:
    """Run all clients; return the latencies, and the seconds it took."""
    found: list[float] = []
    began = time.perf_counter()
    await asyncio.gather(
        *(client(port, path, number, requests, found) for number in range(clients))
    )
    return found, time.perf_counter() - began


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def state_of(port: int) -> dict[str, int]:
    with urlopen(f"http://127.0.0.1:{port}/healthz", timeout=30) as response:
        return json.loads(response.read())


def cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=2, help="of each client, per round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "benchmarks.service:service", f"--port={port}"]
    server = subprocess.Popen([*command, "--log-level=warning", "--backlog=4096"])
    try:
        while True:
            try:
                state_of(port)
                break
            except OSError:
                time.sleep(0.1)
        measure(port, server.pid, options)
    finally:
        server.terminate()
        server.wait()


def measure(port: int, pid: int, options: Any) -> None:
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in CONTENDERS}
    memory: list[int] = []
    count = options.clients * options.requests
    for counted in range(options.rounds + 1):  # the first warms up
        for name, path in CONTENDERS.items():
            before = cpu_of(pid)
            latencies, _ = asyncio.run(load(port, path, options.clients, options.requests))
            cpu = (cpu_of(pid) - before) / count * 1e3
            if counted:
                p50, p99 = percentile(latencies, 0.5), percentile(latencies, 0.99)
                found[name].append((p50, p99, cpu))
        state = state_of(port)
        memory.append(state["kib"])
        assert state["runs"] == 0, state
    floor = options.clients * CALLS * SECONDS / SLOTS
    print(f"{options.clients} clients at once, {CALLS} calls of {SECONDS:g} s each, {SLOTS} slots")
    print(f"a round of requests takes {floor:.2f} s at least; medians of {options.rounds} rounds\n")
    print(f"{'':<38}{'p50 s':>8}{'p99 s':>8}{'ratios':>14}{'CPU ms':>9}")
    base = found["by hand"]
    for name, rounds in found.items():
        p50, p99, cpu = (statistics.median(one[n] for one in rounds) for n in range(3))
        ratios = [
            statistics.median(one[n] / other[n] for one, other in zip(rounds, base, strict=True))
            for n in range(2)
        ]
        print(f"{name:<38}{p50:>8.3f}{p99:>8.3f}{ratios[0]:>7.2f}{ratios[1]:>7.2f}{cpu:>9.2f}")
    grown = ", ".join(f"{kib / 1024:.1f}" for kib in memory)
    print(f"\nmemory of the server after each round, MiB: {grown}; no run is left")


if __name__ == "__main__":
    main()
