"""Asking for a run that goes on already: it is found, and neither started nor cancelled by that."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from httpx import AsyncClient, Response

from shoal import Application, MemoryStore, Runtime, SQLiteStore, action
from shoal.fastapi import runs_router, runtime_lifespan
from shoal.stores._protocol import NullStore
from shoal.testing import no_leaks
from tests.fastapi.inside import client_of, doubled, jobs, service_of, visitors

pytestmark = pytest.mark.anyio

BODY: dict[str, Any] = {"id": "a", "state": {"items": [1]}}
THE_SAME = [BODY, {"id": "a"}, {"id": "a", "state": {"items": [1.0], "title": "job"}}]


async def test_a_run_that_goes_on_is_found():
    service, runtime = service_of(jobs)
    async with no_leaks(), client_of(service) as client:
        first = await client.post("/jobs", json=BODY)
        for body in THE_SAME:
            again = await client.post("/jobs", json=body)
            assert (again.status_code, again.json()) == (202, first.json())
            assert again.headers["location"] == "/jobs/a"
        refused = await client.post("/jobs", json={"id": "a", "state": {"items": [2]}})
        assert (refused.status_code, "'items'" in refused.json()["detail"]) == (409, True)
        assert [run.run_id for run in runtime.runs()] == ["a"]
        done = await client.post("/jobs/wait", json=BODY)
        assert (done.status_code, done.json()["state"]["outs"]) == (200, {"1.0": 2.0})
        assert len((await client.get("/jobs")).json()["runs"]) == 1


async def test_one_of_another_process_is_found():
    store = MemoryStore()
    one, _ = service_of(jobs, store=store)
    other, runtime = service_of(jobs, store=store)
    async with no_leaks(), client_of(one) as first, client_of(other) as second:
        await first.post("/jobs", json=BODY)
        for body in THE_SAME:
            again = await second.post("/jobs", json=body)
            assert (again.status_code, again.json()["status"]) == (202, "running")
            assert again.headers["location"] == "/jobs/a"
        refused = await second.post("/jobs", json={"id": "a", "state": {"items": [2]}})
        assert (refused.status_code, "'items'" in refused.json()["detail"]) == (409, True)
        assert runtime.runs() == []
        done = await second.post("/jobs/wait", json=BODY)
        assert (done.status_code, done.json()["state"]["said"]) == (200, "job: done")


async def test_without_a_store_it_is_found_in_its_process():
    service = FastAPI(lifespan=runtime_lifespan(runtime := Runtime(), within=1))
    service.include_router(runs_router(jobs, authorize=None))
    async with no_leaks(), client_of(service) as client:
        for body in (BODY, *THE_SAME):
            assert (await client.post("/runs", json=body)).status_code == 202
        assert len(runtime.runs()) == 1
        refused = await client.post("/runs", json={"id": "a", "state": {"items": [2]}})
        assert (refused.status_code, "'items'" in refused.json()["detail"]) == (409, True)
        done = await client.post("/runs/wait", json=BODY)
        assert (done.status_code, done.json()["state"]["outs"]) == (200, {"1.0": 2.0})


async def test_all_clients_that_ask_at_once_are_answered_for_one_run():
    starts = list[str]()
    service, runtime = service_of(jobs, store=(store := MemoryStore()))
    load = store.load

    async def load_slowly(run_id: str) -> Any:  # so that it is claimed long before it has begun
        starts.append(run_id)
        await anyio.sleep(0.1)
        return await load(run_id)

    store.load = load_slowly
    found = list[Response]()
    async with no_leaks(), client_of(service) as client, anyio.create_task_group() as tasks:

        async def ask(path: str) -> None:
            found.append(await client.post(path, json=BODY))

        for path in ("/jobs", "/jobs/wait", "/jobs", "/jobs/wait"):
            tasks.start_soon(ask, path)
        await anyio.sleep(0.5)
        assert len(runtime.runs()) <= 1
    assert sorted(one.status_code for one in found) == [200, 200, 202, 202]
    results = [one.json()["state"] for one in found if one.status_code == 200]
    assert results[0] == results[1]
    assert results[0]["outs"] == {"1.0": 2.0}


async def test_what_is_claimed_and_never_begins_is_refused_in_the_end():
    store = MemoryStore()
    service, _ = service_of(jobs, store=store)
    async with no_leaks(), client_of(service) as client:
        await store.claim("a", "somebody")
        refused = await client.post("/jobs", json=BODY)
        assert (refused.status_code, "already running" in refused.json()["detail"]) == (409, True)
        await store.release("a", "somebody")
        assert (await client.post("/jobs/wait", json=BODY)).json()["status"] == "succeeded"


async def test_one_of_another_application_is_a_conflict():
    service, _ = service_of(jobs, visitors)
    async with no_leaks(), client_of(service) as client:
        await client.post("/jobs", json=BODY)
        refused = await client.post("/visitors", json=BODY)
        assert (refused.status_code, "'jobs'" in refused.json()["detail"]) == (409, True)


async def test_one_that_another_version_executes_is_found():
    store = MemoryStore()
    newer = Application(doubled, name="jobs", version="2")
    one, _ = service_of(Application(doubled, name="jobs", version="1"), store=store)
    other, _ = service_of(newer, store=store)
    async with no_leaks(), client_of(one) as first, client_of(other) as second:
        assert (await first.post("/jobs", json=BODY)).status_code == 202
        for path, status in (("/jobs", 202), ("/jobs/wait", 200)):
            assert (await second.post(path, json=BODY)).status_code == status


async def test_one_with_secrets_is_found_and_they_are_not_held_against_it():
    @action(reads=["token", "item"], writes=["out"])
    async def use(token: str, item: int) -> str:
        await anyio.sleep(1)
        return f"{len(token)} {item}"

    store = MemoryStore()
    app = Application(use, name="keepers", secret={"token"})
    one, _ = service_of(app, store=store)
    other, _ = service_of(app, store=store)
    async with no_leaks(), client_of(one) as first, client_of(other) as second:
        body: Any = {"id": "a", "state": {"token": "abc", "item": 1}}
        await first.post("/keepers", json=body)
        for client in (first, second):
            for state in (body["state"], {"token": "another", "item": 1}, {"token": "abc"}, None):
                found = await client.post("/keepers", json={"id": "a", "state": state})
                assert found.status_code == 202, state
            other_item = {"id": "a", "state": {"token": "abc", "item": 2}}
            refused = await client.post("/keepers", json=other_item)
            assert (refused.status_code, "'item'" in refused.json()["detail"]) == (409, True)
            assert "abc" not in refused.text


async def post_and_hang_up(service: FastAPI, runtime: Runtime, after: float) -> int:
    """Ask for the run, and go away while it goes on; return the status that is only logged."""
    messages = iter([{"type": "http.request", "body": json.dumps(BODY).encode()}])
    statuses = list[int]()

    async def receive() -> Any:
        message = next(messages, None)
        if message is None:
            await anyio.sleep(after)
            return {"type": "http.disconnect"}
        return message

    async def send(message: Any) -> None:
        statuses.append(message.get("status", 0))

    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "path": "/jobs/wait",
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
        "state": {"runtime": runtime},
    }
    await service(scope, receive, send)
    return statuses[0]


async def test_a_client_that_has_not_started_it_and_hangs_up_cancels_nothing():
    store = MemoryStore()
    one, here = service_of(jobs, store=store)
    other, elsewhere = service_of(jobs, store=store)
    async with no_leaks(), client_of(one) as client, client_of(other):
        await client.post("/jobs", json=BODY)
        assert await post_and_hang_up(one, here, 0.3) == 499
        assert await post_and_hang_up(other, elsewhere, 0.3) == 499
        assert (await client.get("/jobs/a")).json()["status"] == "running"
        done = await client.post("/jobs/wait", json=BODY)
        assert done.json()["status"] == "succeeded"


async def test_waiting_tasks_learn_that_it_is_cancelled_with_the_task_that_started_it():
    store = MemoryStore()
    one, here = service_of(jobs, store=store)
    other, _ = service_of(jobs, store=store)
    found = list[Any]()

    async def ask(client: Any) -> None:
        found.append((await client.post("/jobs/wait", json=BODY)).json())

    async with (
        no_leaks(),
        client_of(one) as first,
        client_of(other) as second,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(post_and_hang_up, one, here, 0.5)
        await anyio.sleep(0.1)
        tasks.start_soon(ask, first)
        tasks.start_soon(ask, second)
    cancelled = ("cancelled", "its client has gone")
    assert [(one["status"], one["reason"]) for one in found] == [cancelled, cancelled]


@asynccontextmanager
async def waiting_elsewhere(
    first: AsyncClient, second: AsyncClient, found: list[Response]
) -> AsyncGenerator[None]:
    """Start a run in one process, and have a client of another one wait for it meanwhile."""
    await first.post("/jobs", json=BODY)

    async def ask() -> None:
        found.append(await second.post("/jobs/wait", json=BODY))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await anyio.sleep(0.3)
        yield


async def test_a_wait_for_another_process_ends_when_its_own_stops():
    store = MemoryStore()
    one, _ = service_of(jobs, store=store)
    other, runtime = service_of(jobs, store=store)
    found = list[Response]()
    async with no_leaks(), client_of(one) as first, client_of(other) as second:
        async with waiting_elsewhere(first, second, found):
            await runtime.drain()
        assert (found[0].status_code, found[0].headers["retry-after"]) == (503, "1")
        assert (await first.get("/jobs/a")).json()["status"] == "running"


async def test_a_waiting_client_sees_the_end_after_another_process_took_the_run_over():
    store = MemoryStore()
    one, stopped = service_of(jobs, store=store)
    other, runtime = service_of(jobs, store=store)
    found = list[Response]()
    async with (
        no_leaks(),
        client_of(one) as first,
        client_of(other) as second,
        waiting_elsewhere(first, second, found),
    ):
        await stopped.drain(within=0)
        await runtime.recover()
    assert found[0].json()["status"] == "succeeded"


async def test_one_that_has_ended_and_is_not_yet_given_back_is_waited_for():
    store = MemoryStore()
    one, _ = service_of(jobs, store=store)
    other, _ = service_of(jobs, store=store)
    release = store.release

    async def release_late(run_id: str, holder: str) -> None:
        await anyio.sleep(1)
        await release(run_id, holder)

    store.release = release_late
    async with no_leaks(), client_of(one) as first, client_of(other) as second:
        await first.post("/jobs", json=BODY)
        await anyio.sleep(1.5)  # its end is saved, and nobody else may have it yet
        assert (await second.post("/jobs", json=BODY)).status_code == 202
        again = await second.post("/jobs/wait", json=BODY)
        assert (again.status_code, again.json()["status"]) == (200, "succeeded")


@pytest.mark.parametrize("kind", ["memory", "sqlite", "none"])
async def test_one_that_has_succeeded_is_answered_as_it_is(kind: str, tmp_path: Path):
    stores = {"memory": MemoryStore, "sqlite": lambda: SQLiteStore(tmp_path / "runs.db")}
    store = stores[kind]() if kind in stores else NullStore()
    service, runtime = service_of(jobs, store=store)
    async with no_leaks(), client_of(service) as client:
        first = (await client.post("/jobs/wait", json=BODY)).json()
        assert first["status"] == "succeeded"
        for body in THE_SAME if kind in stores else ():
            again = await client.post("/jobs", json=body)
            assert (again.status_code, again.json()["status"]) == (202, "succeeded")
            assert (await client.post("/jobs/wait", json=body)).json() == first
            assert (await client.get("/jobs/a")).json() == first
        assert runtime.runs() == []


@pytest.mark.parametrize("items", [[1], [-1]], ids=["succeeded", "failed"])
async def test_a_run_that_is_given_back(items: list[int]):
    """Its store takes a while for that: meanwhile it has ended, and nobody is told that it runs."""
    store = MemoryStore()
    service, _ = service_of(jobs, store=store)
    release, releasing = store.release, anyio.Event()

    async def release_late(run_id: str, holder: str) -> None:
        releasing.set()
        await anyio.sleep(1)
        await release(run_id, holder)

    store.release = release_late
    body = {"id": "a", "state": {"items": items}}
    async with no_leaks(), client_of(service) as client:
        await client.post("/jobs", json=body)
        await releasing.wait()
        found = list[Any]()

        async def ask(path: str) -> None:
            found.append((await client.post(path, json=body)).json()["status"])

        async with anyio.create_task_group() as tasks:
            for path in ("/jobs", "/jobs", "/jobs/wait"):
                tasks.start_soon(ask, path)
        if items == [1]:
            assert found == ["succeeded"] * 3
        else:  # asking has it go on, which a GET shows too
            assert sorted(found) == ["failed", "running", "running"]
            await client.post("/jobs/wait", json=body)
            assert (await client.get("/jobs/a")).json()["status"] == "failed"


@pytest.mark.parametrize("way", ["native", "scope"])
@pytest.mark.parametrize(
    ("path", "on_disconnect", "outlives"),
    [
        ("/jobs", "cancel", True),
        ("/jobs", "detach", True),
        ("/jobs/wait", "detach", True),
        ("/jobs/wait", "cancel", False),
    ],
)
async def test_a_run_that_outlives_its_request_begins_whatever_cancels_that(
    path: str, on_disconnect: Any, outlives: bool, way: str, anyio_backend_name: str
):
    """As servers cancel the tasks of requests whose clients have gone."""
    if way == "native" and anyio_backend_name == "trio":
        pytest.skip("trio has no native cancellation")
    store = MemoryStore()
    service, runtime = service_of(jobs, store=store, on_disconnect=on_disconnect)
    claim, claiming = store.claim, anyio.Event()

    async def claim_slowly(run_id: str, holder: str) -> Any:
        claiming.set()
        await anyio.sleep(0.5)
        return await claim(run_id, holder)

    store.claim = claim_slowly

    async def ask(client: AsyncClient) -> None:
        await client.post(path, json=BODY)

    async with no_leaks(), client_of(service) as client:
        if way == "native":
            request = asyncio.create_task(ask(client))
            await claiming.wait()
            request.cancel()
            with suppress(asyncio.CancelledError):
                await request
        else:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask, client)
                await claiming.wait()
                tasks.cancel_scope.cancel()
        await anyio.sleep(0.6)
        assert [run.run_id for run in runtime.runs()] == (["a"] if outlives else [])
        if outlives:
            done = await client.post("/jobs/wait", json=BODY)
            assert done.json()["status"] == "succeeded"
