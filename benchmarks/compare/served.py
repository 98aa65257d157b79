"""Requests to the service of ``benchmarks.service``: the processor time of its process.

The server runs in the process that is measured, and its clients in another one.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import socket
import sys
import time
from typing import Any

from benchmarks.compare.workloads import Job, Part, Program

SECONDS = 0.01
"""What a call takes: short, since only the work around the calls is measured."""


def served(path: str) -> Program:
    """Return a program that sends ``items`` requests to ``path``, from ``limit`` clients."""

    def program(job: Job) -> Part:
        # On the first use, because few workloads need a web framework.
        os.environ["SECONDS"] = str(SECONDS)
        service = importlib.import_module("benchmarks.service").service
        uvicorn = importlib.import_module("uvicorn")
        with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
            server = uvicorn.Server(uvicorn.Config(service, log_level="warning"))
            return asyncio.run(_measure(job, path, server, listener))

    return program


async def _measure(job: Job, path: str, server: Any, listener: socket.socket) -> Part:
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    port = listener.getsockname()[1]
    clients = min(job.limit, job.items)
    sizes = map(str, (port, path, clients, job.items // clients))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "benchmarks._clients", *sizes),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    await process.stdout.readline()  # all are connected
    wall, cpu = time.perf_counter(), time.process_time()
    answer, _ = await process.communicate(b"\n")
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    server.should_exit = True
    await serving
    return Part(len(json.loads(answer)), wall, cpu)
