"""Who may do what with which run: what ``authorize`` is told, and that nothing gets around it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Header, HTTPException, Request

from shoal import MemoryStore
from shoal.fastapi import runs_router
from tests.fastapi.inside import client_of, jobs, service_of

pytestmark = pytest.mark.anyio

OWNERS = {"mine": "eve", "bobs": "bob"}


async def only_owners(run_id: str = "", x_user: str = Header("")) -> None:
    """Let anybody start runs; nobody but its owner does anything with one that has one."""
    if x_user != "admin" and OWNERS.get(run_id, x_user) != x_user:
        raise HTTPException(403, f"{run_id} is not yours")


async def test_a_run_that_is_named_in_a_body_is_decided_on_as_one_in_a_path():
    service, _ = service_of(jobs, authorize=only_owners)
    async with client_of(service) as client:
        admin, eve = {"x-user": "admin"}, {"x-user": "eve"}
        body: Any = {"id": "bobs", "state": {"items": [0]}}
        assert (await client.post("/jobs/wait", json=body, headers=admin)).status_code == 200
        for path in ("/jobs", "/jobs/wait", "/jobs?run_id=mine", "/jobs/wait?run_id=mine"):
            for asked in (body, {"id": "bobs"}):
                refused = await client.post(path, json=asked, headers=eve)
                assert (refused.status_code, refused.json()["detail"]) == (403, "bobs is not yours")
        mine = {"id": "mine", "state": {"items": [0]}}
        assert (await client.post("/jobs/wait", json=mine, headers=eve)).status_code == 200
        assert (await client.get("/jobs/mine?run_id=bobs", headers=eve)).status_code == 200
        refused = await client.get("/jobs/bobs?run_id=mine", headers=eve)
        assert refused.status_code == 403


async def test_it_receives_the_run_of_the_request_and_never_by_the_query():
    received = list[tuple[str, str, str]]()

    async def authorize(request: Request, run_id: str = "") -> None:
        received.append((request.method, request.url.path, run_id))

    service, _ = service_of(jobs, authorize=authorize)
    async with client_of(service) as client:
        nameless: dict[str, Any] = {"state": {"items": []}}
        named = {"id": "a", **nameless}
        asked: list[tuple[str, str, Any, str]] = [
            ("POST", "/jobs/wait", named, "a"),
            ("POST", "/jobs/wait", nameless, ""),
            ("POST", "/jobs/wait", {"id": None, **nameless}, ""),
            ("POST", "/jobs/wait", {"id": 5, **nameless}, ""),
            ("POST", "/jobs/wait", {"id": "a/b", **nameless}, ""),
            ("POST", "/jobs/wait", [named], ""),
            ("POST", "/jobs", named, "a"),
            ("GET", "/jobs", None, ""),
            ("GET", "/jobs/a", None, "a"),
            ("GET", "/jobs/a/events", None, "a"),
            ("POST", "/jobs/a/cancel", {"reason": "r", "id": "other"}, "a"),
            ("POST", "/jobs/a/answers", {"answers": [], "id": "other"}, "a"),
            ("GET", "/healthz", None, ""),
            ("GET", "/limits", None, ""),
        ]
        for method, path, body, expected in asked:
            await client.request(method, f"{path}?run_id=query", json=body)
            assert received[-1] == (method, path, expected)
        text = {"content-type": "text/plain"}
        refused = await client.post("/jobs", content=b"{half", headers=text)
        assert (refused.status_code, received[-1][2]) == (422, "")


async def test_the_query_is_not_documented_to_name_a_run():
    service, _ = service_of(jobs, authorize=only_owners)
    for path, methods in service.openapi()["paths"].items():
        for operation in methods.values():
            given = {(one["name"], one["in"]) for one in operation["parameters"]}
            assert ("x-user", "header") in given
            assert ("run_id", "query") not in given
            assert (("run_id", "path") in given) == ("{run_id}" in path)


def owner(x_user: str = Header("")) -> str:
    return x_user


def decide(run_id: str | None, user: str) -> None:
    if run_id is None or OWNERS.get(run_id) != user:
        raise HTTPException(403, repr(run_id))


def in_a_thread(user: Annotated[str, Depends(owner)], run_id: str | None = None) -> None:
    decide(run_id, user)


async def with_cleanup(run_id: str, user: str = Depends(owner)) -> AsyncGenerator[None]:
    decide(run_id or None, user)
    yield


class Instance:
    async def __call__(self, run_id: str | None = None, user: str = Depends(owner)) -> None:
        decide(run_id, user)


class OfClass:
    def __init__(self, run_id: str | None = None, user: str = Depends(owner)) -> None:
        decide(run_id, user)


async def run_of(run_id: str | None = None) -> str | None:
    return run_id


async def through_another(
    found: Annotated[str | None, Depends(run_of)], user: str = Depends(owner)
) -> None:
    decide(found, user)


def through_its_class(
    given: Annotated[OfClass, Depends()], user: Annotated[str, Depends(owner)]
) -> None:
    """Leave it to what it depends on."""


@pytest.mark.parametrize(
    "authorize",
    [
        in_a_thread,
        with_cleanup,
        Instance(),
        Instance().__call__,
        OfClass,
        through_another,
        through_its_class,
        partial(in_a_thread),
    ],
)
@pytest.mark.realtime  # FastAPI calls functions in threads
async def test_every_kind_of_dependency_is_shown(authorize: Any):
    service, _ = service_of(jobs, authorize=authorize)
    eve = {"x-user": "eve"}
    async with client_of(service, headers=eve) as client:
        for run_id, allowed in (("mine", True), ("bobs", False), (None, False)):
            body: Any = {"state": {"items": []}, "id": run_id}
            done = await client.post("/jobs/wait?run_id=mine", json=body)
            assert done.status_code == (200 if allowed else 403), done.text
            if not allowed:
                assert done.json()["detail"] == repr(run_id)
        assert (await client.get("/jobs?run_id=mine")).status_code == 403
        assert (await client.get("/jobs/mine")).status_code == 200
        assert (await client.get("/jobs/bobs?run_id=mine")).status_code == 403


async def test_a_test_may_have_another_one_decide():
    service, _ = service_of(jobs, authorize=only_owners)
    async with client_of(service) as client:
        assert (await client.get("/jobs/bobs")).status_code == 403
        service.dependency_overrides[only_owners] = lambda: None
        assert (await client.get("/jobs/bobs")).status_code == 404
        service.dependency_overrides.clear()
        service.dependency_overrides[owner] = lambda: "of something else"
        body: Any = {"id": "bobs", "state": {"items": []}}
        refused = await client.post("/jobs?run_id=mine", json=body, headers={"x-user": "eve"})
        assert refused.status_code == 403


async def test_what_it_has_said_elsewhere_is_not_taken_for_what_it_says_of_the_run():
    inner, _ = service_of(jobs, store=MemoryStore())
    outer = FastAPI(lifespan=inner.router.lifespan_context, dependencies=[Depends(only_owners)])
    outer.include_router(runs_router(jobs, authorize=only_owners))
    async with client_of(outer) as client:
        body: Any = {"id": "bobs", "state": {"items": []}}
        refused = await client.post("/runs?run_id=mine", json=body, headers={"x-user": "eve"})
        assert (refused.status_code, refused.json()["detail"]) == (403, "bobs is not yours")
