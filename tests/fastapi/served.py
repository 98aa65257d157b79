"""The service that the tests talk to: what can be cancelled, and runs, plain and behind middleware.

Everything that begins, is cancelled or ends is noted with the time, by the clock that all processes
of the machine share; ``GET /noted`` tells.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import anyio
from fastapi import BackgroundTasks, Depends, FastAPI, Request, WebSocket
from fastapi.sse import EventSourceResponse
from pydantic import BaseModel, Field
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import StreamingResponse

from shoal import Application, Context, Graph, Limits, Runtime, SQLiteStore, action, fan_out
from shoal.fastapi import (
    CancelOnDisconnect,
    RuntimeDep,
    cancel_on_disconnect,
    runs_router,
    runtime_lifespan,
    service_router,
)

noted: dict[str, dict[str, float]] = {}
EFFECTS = Path(os.environ.get("EFFECTS", "/dev/null"))
"""A file that each item of a run appends a line to, whichever process executes it."""


async def work(name: str, seconds: float = 2.0) -> str:
    """Take a while, and note what becomes of it."""
    notes = noted.setdefault(name, {})
    notes["began"] = time.monotonic()
    try:
        await anyio.sleep(seconds)
    except anyio.get_cancelled_exc_class():
        notes["cancelled"] = time.monotonic()
        raise
    notes["ended"] = time.monotonic()
    return name


# -- runs ------------------------------------------------------------------------------------------


class Job(BaseModel):
    """What a run is about."""

    name: str = Field(max_length=50)
    items: list[int] = Field([], max_length=200)
    seconds: float = Field(0.0, ge=0, le=float(os.environ.get("MOST_SECONDS", "5")))
    done: dict[str, int] = {}
    said: str = ""


@action(reads=["item", "seconds", "name"], writes=["twice"])
async def double(item: int, seconds: float, name: str) -> int:
    await anyio.sleep(seconds)
    with EFFECTS.open("a") as file:  # a line, unbuffered
        file.write(f"{name} {item}\n")
    return 2 * item


@action(reads=["name", "seconds"], writes=["said"])
async def say(name: str, seconds: float, context: Context) -> str:
    for word in ("well", "done"):
        await context.emit(word)
    return await work(name, seconds)


doubled = fan_out(double, over="items", item="item", key=str, into="done", limits=Limits(20))
store = SQLiteStore(os.environ["STORE"]) if "STORE" in os.environ else None
jobs = Application(Graph.chain(doubled, say), name="jobs", state=Job, store=store)

# -- what can be cancelled, in every style ---------------------------------------------------------

styles = FastAPI()


@styles.get("/unguarded")
async def unguarded(name: str) -> str:
    return await work(name)


@styles.get("/guarded")
async def guarded(request: Request, name: str) -> str:
    async with cancel_on_disconnect(request):
        return await work(name)


@styles.post("/guarded")
async def guarded_post(request: Request, name: str, body: dict[str, Any]) -> str:
    async with cancel_on_disconnect(request):
        return await work(name)


@styles.get("/dependency", dependencies=[CancelOnDisconnect])
async def dependency(name: str) -> str:
    return await work(name)


async def resource(name: str) -> AsyncIterator[str]:
    try:
        yield name
    finally:
        noted.setdefault(name, {})["closed"] = time.monotonic()


@styles.get("/resource", dependencies=[CancelOnDisconnect])
async def with_resource(name: Annotated[str, Depends(resource)]) -> str:
    return await work(name)


@styles.get("/in-a-group", dependencies=[CancelOnDisconnect])
async def in_a_group(name: str) -> str:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work, name)
    return name


@styles.get("/streamed")
async def streamed(name: str) -> StreamingResponse:
    async def parts() -> AsyncIterator[str]:
        yield "first\n"
        yield await work(name)

    return StreamingResponse(parts())


@styles.get("/chatty")
async def chatty(name: str) -> StreamingResponse:
    async def parts() -> AsyncIterator[str]:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(work, name)
            for _ in range(100):
                yield "more\n"
                await anyio.sleep(0.02)

    return StreamingResponse(parts())


@styles.get("/sse", response_class=EventSourceResponse)
async def sse(name: str) -> AsyncIterator[str]:
    yield "first"
    yield await work(name)


@styles.get("/background")
async def background(name: str, tasks: BackgroundTasks) -> str:
    tasks.add_task(work, name, 0.3)
    return name


@styles.get("/started")
async def started(name: str, runtime: RuntimeDep) -> str:
    handle = await runtime.start(jobs, {"name": name, "seconds": 0.3})
    async with anyio.create_task_group():
        await handle.wait_ended()
    return name


@styles.websocket("/socket")
async def socket(websocket: WebSocket, name: str) -> None:
    await websocket.accept()
    async with cancel_on_disconnect(websocket):
        await work(name)


@styles.websocket("/chatty-socket")
async def chatty_socket(websocket: WebSocket, name: str) -> None:
    await websocket.accept()
    async with cancel_on_disconnect(websocket), anyio.create_task_group() as tasks:
        tasks.start_soon(work, name)
        for _ in range(100):
            await websocket.send_text("more")
            await anyio.sleep(0.02)


behind = FastAPI()
behind.include_router(styles.router)
behind.add_middleware(GZipMiddleware, minimum_size=1)


@behind.middleware("http")
async def nothing_at_all(request: Request, call_next: Any) -> Any:
    """Do nothing: being a ``BaseHTTPMiddleware`` is enough to swallow disconnects."""
    return await call_next(request)


# -- the service -----------------------------------------------------------------------------------

runtime = Runtime(apps=[jobs], limits=Limits(500))
within = float(os.environ.get("WITHIN", "1"))
service = FastAPI(lifespan=runtime_lifespan(runtime, within=within, recover_every=1))
for parent in (styles, behind):
    parent.include_router(runs_router(jobs, authorize=None, prefix="/jobs"))
    parent.include_router(
        runs_router(jobs, authorize=None, prefix="/detached", on_disconnect="detach")
    )
service.mount("/plain", styles)
service.mount("/behind", behind)
service.include_router(runs_router(jobs, authorize=None, prefix="/jobs"))
service.include_router(service_router(authorize=None))


@service.get("/noted")
async def get_noted() -> dict[str, dict[str, float]]:
    return noted


@service.get("/alive")
async def get_alive() -> dict[str, Any]:
    """Say what goes on here: runs, and tasks besides that of this request."""
    count = anyio.get_running_tasks()
    return {"runs": [run.run_id for run in runtime.runs()], "tasks": len(count), "pid": os.getpid()}
