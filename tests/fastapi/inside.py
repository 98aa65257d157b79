"""Applications that tests have endpoints for, and services of them without a server."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import anyio
from fastapi import FastAPI
from httpx import ASGITransport, AsyncClient, Response
from pydantic import BaseModel, Field

from shoal import Application, Context, Graph, Limits, MemoryStore, Result, Runtime, action, fan_out
from shoal.fastapi import runs_router, runtime_lifespan, service_router


class Job(BaseModel):
    items: list[float] = Field(max_length=50)
    title: str = "job"
    outs: dict[str, float] = {}
    said: str = ""


@action(reads=["item"], writes=["out"])
async def double(item: float) -> float:
    await anyio.sleep(item)
    if item < 0:
        raise ValueError("negative")
    return 2 * item


@action(reads=["title"], writes=["said"])
async def say(title: str) -> Any:
    yield "well"
    yield Result(f"{title}: done")


doubled = fan_out(double, over="items", item="item", key=str, into="outs", limits=Limits(10))
jobs = Application(Graph.chain(doubled, say), name="jobs", state=Job)


@action(reads=["item"], writes=["name"])
async def ask(item: int, context: Context) -> str:
    return await context.ask("name", f"who is {item}?")


visitors = Application(
    fan_out(ask, over="items", item="item", key=str, into="names", take="name"), name="visitors"
)


def service_of(
    *apps: Application[Any], store: Any = None, authorize: Any = None, **options: Any
) -> tuple[FastAPI, Runtime]:
    """Make a service with endpoints for ``apps``, under their names."""
    runtime = Runtime(apps=apps, store=MemoryStore() if store is None else store, limits=Limits(9))
    service = FastAPI(lifespan=runtime_lifespan(runtime, within=1, recover_every=None))
    for app in apps:
        router = runs_router(app, authorize=authorize, prefix=f"/{app.name}", **options)
        service.include_router(router)
    service.include_router(service_router(authorize=authorize))
    return service, runtime


@asynccontextmanager
async def client_of(service: FastAPI, **options: Any) -> AsyncGenerator[AsyncClient]:
    """Serve in this task, with the lifespan, as a server does."""
    async with service.router.lifespan_context(service) as state:

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await service({**scope, "state": dict(state or {})}, receive, send)

        transport = ASGITransport(app, raise_app_exceptions=True)
        async with AsyncClient(transport=transport, base_url="http://x", **options) as client:
            yield client


def events_in(response: Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    found = list[dict[str, Any]]()
    for part in response.text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in part.splitlines() if line[0] != ":")
        if lines:
            found.append({**lines, "data": json.loads(lines["data"])})
    return found


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["event"] for event in events]
