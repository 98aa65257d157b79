"""Whose runs a client may see: ``runs_router(owner=...)``."""

from __future__ import annotations

from typing import Annotated, Any

import anyio
import pytest
from fastapi import FastAPI, Header

from shoal import Application, Runtime, action
from shoal.errors import BadResult, DefinitionError
from shoal.fastapi import runs_router, runtime_lifespan
from shoal.testing import no_leaks
from tests.fastapi.inside import client_of, service_of

pytestmark = pytest.mark.anyio
EVE, BOB, ALL = {"user": "eve"}, {"user": "bob"}, {"user": "all"}


@action(reads=["n"], writes=["out"])
async def work(n: int) -> int:
    await anyio.sleep(n)
    return n


app = Application(work, name="jobs")


async def user_of(user: Annotated[str, Header()]) -> str | None:
    return None if user == "all" else user


@pytest.mark.parametrize("is_running", [False, True])
async def test_runs_of_others_are_not_there(is_running: bool):
    service, _ = service_of(app, owner=user_of)
    async with no_leaks(), client_of(service) as client:
        sent = {"state": {"n": 5}, "id": "a"}
        assert (await client.post("/jobs", json=sent, headers=EVE)).status_code == 202
        if not is_running:
            await anyio.sleep(6)
        for method, path in (
            ("GET", "/jobs/a"),
            ("GET", "/jobs/a/events"),
            ("POST", "/jobs/a/cancel"),
            ("POST", "/jobs/a/pause"),
            ("POST", "/jobs/a/resume"),
            ("POST", "/jobs/a/drain"),
            ("POST", "/jobs/a/limits"),
            ("POST", "/jobs/a/answers"),
        ):
            body = None if method == "GET" else dict[str, Any]()
            response = await client.request(method, path, json=body, headers=BOB)
            assert response.status_code == 404, path
            assert response.json() == {"detail": "there is no run 'a'"}
        for path in ("/jobs", "/jobs/wait"):
            response = await client.post(path, json=sent, headers=BOB)
            assert response.status_code == 409
            assert response.json() == {"detail": "the id 'a' is taken; send another `id`"}
        for headers in (EVE, ALL):
            assert (await client.get("/jobs/a", headers=headers)).status_code == 200
            assert (await client.post("/jobs", json=sent, headers=headers)).status_code == 202
        assert (await client.get("/jobs/a")).status_code == 422  # the dependency refuses


@pytest.mark.parametrize("has_store", [False, True])
async def test_the_list_has_the_runs_of_the_owner(has_store: bool):
    runtime = Runtime()
    service = FastAPI(lifespan=runtime_lifespan(runtime))
    service.include_router(runs_router(app, authorize=None, owner=user_of, prefix="/jobs"))
    if has_store:
        service, runtime = service_of(app, owner=user_of)
    async with no_leaks(), client_of(service) as client:

        async def ids(headers: dict[str, str], query: str = "") -> list[tuple[str, str]]:
            found = (await client.get(f"/jobs{query}", headers=headers)).json()["runs"]
            return [(one["id"], one["owner"]) for one in found]

        for id, headers in (("a", EVE), ("b", BOB), ("c", EVE), ("d", ALL)):
            await client.post("/jobs", json={"state": {"n": 1}, "id": id}, headers=headers)
        assert await ids(EVE) == [("c", "eve"), ("a", "eve")]
        assert await ids(EVE, "?owner=bob") == []
        assert await ids(EVE, "?owner=eve&limit=1&after=c") == [("a", "eve")]
        assert await ids(BOB) == [("b", "bob")]
        assert await ids(ALL) == [("d", ""), ("c", "eve"), ("b", "bob"), ("a", "eve")]
        assert await ids(ALL, "?owner=bob") == [("b", "bob")]


async def test_an_owner_that_is_no_name_is_an_error_of_the_service():
    service, _ = service_of(app, owner=lambda: "")
    async with no_leaks(), client_of(service) as client:
        with pytest.raises(BadResult, match="returned an empty one"):
            await client.get("/jobs")


def test_what_is_no_dependency_is_refused():
    owner: Any = "eve"
    with pytest.raises(DefinitionError, match="takes a dependency"):
        runs_router(app, authorize=None, owner=owner)
