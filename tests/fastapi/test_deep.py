"""What is nested deeper than can be kept is refused as such, whatever it is sent for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException

from shoal import Application, MemoryStore, Runtime, action
from shoal.fastapi import runs_router, runtime_lifespan
from shoal.testing import no_leaks
from tests.fastapi.inside import client_of, jobs, service_of, visitors

pytestmark = pytest.mark.anyio

JSON = {"content-type": "application/json"}


@action(reads=["n"], writes=["m"])
async def same(n: Any) -> Any:
    return n


def nested(levels: int, start: str = "[", end: str = "]") -> str:
    return start * levels + "1" + end * levels


@pytest.mark.parametrize("store", [None, MemoryStore])
async def test_a_state_is_refused_that_is_nested_too_deep(store: Any):
    app = Application(same, name="same")
    service = FastAPI(lifespan=runtime_lifespan(runtime := Runtime(store=store and store())))
    service.include_router(runs_router(app, authorize=None))
    async with no_leaks(), client_of(service) as client:
        for path in ("/runs", "/runs/wait"):
            for levels in (99, 120, 255, 700, 900, 3_000, 100_000):
                for text in (nested(levels), nested(levels, '{"a":', "}")):
                    body = f'{{"id": "deep", "state": {{"n": {text}}}}}'
                    refused = await client.post(path, content=body, headers=JSON)
                    assert refused.status_code == 422, levels
                    (detail,) = refused.json()["detail"]
                    assert detail == {
                        "type": "too_deep",
                        "loc": ["body"],
                        "msg": "the body is nested more than 100 levels deep",
                    }
        assert runtime.runs() == []
        for text in (nested(98), nested(98, '{"a":', "}")):
            body = f'{{"state": {{"n": {text}}}}}'
            done = await client.post("/runs/wait", content=body, headers=JSON)
            assert (done.status_code, done.json()["state"]["m"]) == (200, json.loads(text))


async def test_so_is_whatever_else_is_sent():
    service, _ = service_of(jobs, visitors)
    deep = nested(700)
    async with no_leaks(), client_of(service) as client:
        await client.post("/visitors/wait", json={"id": "v", "state": {"items": [1]}})
        for path, body in (
            ("/visitors/v/answers", f'{{"answers": [{{"name": "name", "value": {deep}}}]}}'),
            ("/visitors/v/cancel", f'{{"reason": {deep}}}'),
            ("/jobs", f'{{"state": {{"items": [1]}}, "unknown": {deep}}}'),
            ("/jobs", f'{{"state": {{"items": [1]}}, "id": {deep}}}'),
            ("/jobs", deep),
        ):
            refused = await client.post(path, content=body, headers=JSON)
            assert (refused.status_code, "100 levels" in refused.text) == (422, True), path
        assert (await client.get("/visitors/v")).json()["status"] == "halted"


async def test_what_is_wide_is_not_deep():
    service, _ = service_of(Application(same, name="same"))
    wide: Any = [[{"a": [number]} for number in range(100)] for _ in range(100)]
    async with no_leaks(), client_of(service) as client:
        done = await client.post("/same/wait", json={"state": {"n": wide}})
        assert (done.status_code, done.json()["state"]["m"]) == (200, wide)


async def test_a_client_without_the_right_is_refused():
    async def authorize() -> None:
        raise HTTPException(401, "no token")

    service, _ = service_of(jobs, authorize=authorize)
    async with client_of(service) as client:
        refused = await client.post("/jobs", content=nested(200), headers=JSON)
        assert refused.status_code == 401
