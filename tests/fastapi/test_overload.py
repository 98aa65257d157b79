"""Runs that limits refuse because they are overloaded: 503, and when to come back."""

from __future__ import annotations

from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from httpx import Response

from shoal import Application, Limits, MemoryStore, Rate, Runtime, action, fan_out, race
from shoal.errors import DefinitionError
from shoal.fastapi import runs_router, runtime_lifespan, service_router
from shoal.testing import no_leaks
from tests.fastapi.inside import client_of, service_of

pytestmark = pytest.mark.anyio

limits = Limits(rate=Rate(1, per=5), waiting=1)


@action(reads=["n"], writes=["out"], limits=limits)
async def ask(n: int) -> int:
    return n


alone = Application(ask, name="alone")
many = Application(fan_out(ask, over="ns", item="n", into="outs"), name="many")
some = Application(race(ask, ask.bind(name="again"), into="won", take="out"), name="some")


@pytest.mark.parametrize("app", [alone, many, some])
async def test_what_finds_too_many_waiting_is_answered_with_503(app: Application[object]):
    service, _ = service_of(alone, many, some)
    responses: list[Response] = []
    async with no_leaks(), client_of(service) as client:

        async def wait(name: str, id: str) -> None:
            sent = {"id": id, "state": {"n": 1, "ns": [1, 2]}}
            responses.append(await client.post(f"/{name}/wait", json=sent))

        async with anyio.create_task_group() as tasks:
            for n in range(2):
                tasks.start_soon(wait, "alone", str(n))
                await anyio.sleep(0.1)
            await wait(app.name, "refused")
            refused = responses[-1]
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "5"
            assert "wait" in refused.json()["detail"]
        await anyio.sleep(10)
        await wait(app.name, "refused")
    assert [one.status_code for one in responses] == [200, 503, 200, 200]
    assert responses[-1].json()["status"] == "succeeded"


@action(reads=["n"], writes=["out"])
async def rest(n: int) -> int:
    await anyio.sleep(1)
    return n


resting = Application(rest, name="resting")


def busy_service() -> tuple[FastAPI, Runtime]:
    runtime = Runtime(store=MemoryStore(), max_runs=1, waiting=2)
    service = FastAPI(lifespan=runtime_lifespan(runtime))
    service.include_router(runs_router(resting, authorize=None))
    service.include_router(service_router(authorize=None, busy_at=0.5))
    return service, runtime


async def test_readiness_turns_red_before_runs_are_refused_and_green_again():
    service, _ = busy_service()
    statuses: list[int] = []
    async with no_leaks(), client_of(service) as client, anyio.create_task_group() as tasks:

        async def come(endpoint: str, n: int) -> None:
            response = await client.post(endpoint, json={"state": {"n": n}})
            statuses.append(response.status_code)
            if response.status_code == 503:
                assert response.headers["retry-after"] == "1"
                assert "2 wait already" in response.json()["detail"]

        async def ready() -> tuple[int, str]:
            response = await client.get("/readyz")
            return response.status_code, response.json()["status"]

        assert await ready() == (200, "ok")
        tasks.start_soon(come, "/runs/wait", 1)
        await anyio.sleep(0.1)
        assert await ready() == (200, "ok")
        tasks.start_soon(come, "/runs", 2)
        await anyio.sleep(0.1)
        assert await ready() == (503, "busy")
        tasks.start_soon(come, "/runs/wait", 3)
        await anyio.sleep(0.1)
        assert statuses == []
        await come("/runs", 4)
        await come("/runs/wait", 5)
        assert statuses == [503, 503]
        await anyio.sleep(2)
        assert await ready() == (200, "ok")
        assert (await client.get("/healthz")).status_code == 200
    assert sorted(statuses) == [200, 200, 202, 503, 503]


async def test_a_client_that_goes_away_leaves_the_line():
    service, runtime = busy_service()
    async with no_leaks(), service.router.lifespan_context(service) as state:
        first = await runtime.start(resting, {"n": 1})
        gone = anyio.Event()
        body = iter([{"type": "http.request", "body": b'{"state": {"n": 2}}'}])

        async def receive() -> Any:
            message = next(body, None)
            if message is None:
                await gone.wait()
            return message or {"type": "http.disconnect"}

        async def send(message: object) -> None:
            """Nobody is there."""

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/runs/wait",
            "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
            "state": dict(state or {}),
        }
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(service, scope, receive, send)
            await anyio.sleep(0.5)
            assert runtime.load.waiting == 1
            gone.set()
        assert runtime.load.waiting == 0
        await first.wait_ended()
        assert len(runtime.runs()) == 0


@pytest.mark.parametrize("share", [0, 1.5, True, "half"])
def test_a_share_that_means_nothing_is_refused(share: Any):
    with pytest.raises(DefinitionError, match="above 0 and at most 1"):
        service_router(authorize=None, busy_at=share)
