"""A service under load: the cost of a run per request, compared with the same work by hand.

``python -m benchmarks.service``: clients send requests to one worker of uvicorn, again and again.
Each request makes four calls, which share one limit of concurrent calls and have one timeout. The
version by hand uses ``gather``, a ``Semaphore`` and ``timeout``. It lacks several things that a run
has: an id by which it can be found, a checked state that is committed after each call, cancellation
when its client disconnects, followers, saving and resuming. Latencies are measured by the clients;
processor time and memory are the server's. By default the limit has room for all calls; with
``--slots 200`` half of them wait. It takes a minute.

``python -m benchmarks.compare service`` compares the processor time alone, with short calls.
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

from benchmarks._clients import CALLS
from shoal import Application, Limits, Runtime, action, fan_out
from shoal.fastapi import RuntimeDep, cancel_on_disconnect, runs_router, runtime_lifespan

SLOTS = int(os.environ.get("SLOTS", "1000"))
SECONDS = float(os.environ.get("SECONDS", "1"))
TIMEOUT = 60.0

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
async def healthz() -> dict[str, float]:
    before = time.process_time()
    gc.collect()  # rounds begin alike; not counted, since it takes as long as a hundred requests
    status = Path("/proc/self/status").read_text()  # noqa: ASYNC240 # of memory
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    found = {"kib": int(line.split()[1]), "runs": len(runtime.runs())}
    return {**found, "cpu_before": before, "cpu_after": time.process_time()}


# -- its clients -----------------------------------------------------------------------------------

CONTENDERS = {
    "by hand": "/by-hand",
    "by hand, cancelled with its client": "/by-hand-guarded",
    "runtime.run in an endpoint": "/run",
    "the router's POST /runs/wait": "/runs/wait",
}


def load(port: int, path: str, clients: int, requests: int) -> tuple[list[float], float]:
    """Run all clients; return the latencies, and the processor time of the server."""
    sizes = map(str, (port, path, clients, requests))
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks._clients", *sizes],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()  # all are connected
        before = state_of(port)["cpu_after"]
        answer, _ = process.communicate(b"\n")
    cpu = state_of(port)["cpu_before"] - before
    if process.returncode:
        raise SystemExit(process.returncode)
    return json.loads(answer), cpu


def percentile(values: Sequence[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def state_of(port: int) -> dict[str, float]:
    with urlopen(f"http://127.0.0.1:{port}/healthz", timeout=60) as response:
        return json.loads(response.read())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--requests", type=int, default=2, help="of each client, per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slots", type=int, default=SLOTS, help="calls at once")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="that a call takes")
    options = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "benchmarks.service:service", f"--port={port}"]
    server = subprocess.Popen(
        [*command, "--log-level=warning", "--backlog=4096"],
        env={**os.environ, "SLOTS": str(options.slots), "SECONDS": str(options.seconds)},
    )
    try:
        while True:
            try:
                state_of(port)
                break
            except OSError:
                time.sleep(0.1)
        measure(port, options)
    finally:
        server.terminate()
        server.wait()


def measure(port: int, options: Any) -> None:
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in CONTENDERS}
    memory: list[float] = []
    count = options.clients * options.requests
    for counted in range(options.rounds + 1):  # the first warms up
        for name, path in CONTENDERS.items():
            latencies, cpu = load(port, path, options.clients, options.requests)
            if counted:
                p50, p99 = percentile(latencies, 0.5), percentile(latencies, 0.99)
                found[name].append((p50, p99, cpu / count * 1e3))
        state = state_of(port)
        memory.append(state["kib"])
        assert state["runs"] == 0, state
    seconds, slots = options.seconds, options.slots
    floor = max(1.0, options.clients * CALLS / slots) * seconds
    print(f"{options.clients} clients at once, {CALLS} calls of {seconds:g} s each, {slots} slots")
    print(f"a round of requests takes {floor:.2f} s at least; medians of {options.rounds} rounds\n")
    print(f"{'':<38}{'p50 s':>8}{'p99 s':>8}{'CPU ms':>9}{'ratios to by hand':>24}")
    base = found["by hand"]
    for name, rounds in found.items():
        taken = [statistics.median(one[n] for one in rounds) for n in range(3)]
        ratios = [
            statistics.median(one[n] / other[n] for one, other in zip(rounds, base, strict=True))
            for n in range(3)
        ]
        times = f"{taken[0]:>8.3f}{taken[1]:>8.3f}{taken[2]:>9.2f}"
        print(f"{name:<38}{times}{ratios[0]:>10.2f}{ratios[1]:>7.2f}{ratios[2]:>7.2f}")
    grown = ", ".join(f"{kib / 1024:.1f}" for kib in memory)
    print(f"\nmemory of the server after each round, MiB: {grown}; no run is left")


if __name__ == "__main__":
    main()
