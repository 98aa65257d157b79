"""The endpoints, without a server: what they do, refuse, and say of themselves."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import anyio
import pytest
from fastapi import FastAPI, HTTPException, Request, WebSocket, WebSocketDisconnect
from httpx import AsyncClient, Response

from shoal import Application, MemoryStore, RunPath, Runtime, action
from shoal.errors import BadUse, DefinitionError
from shoal.fastapi import (
    RuntimeDep,
    _events,
    cancel_on_disconnect,
    get_runtime,
    runs_router,
    runtime_lifespan,
    service_router,
)
from shoal.stores import Entry
from shoal.testing import no_leaks
from tests.fastapi.inside import client_of, doubled, events_in, jobs, kinds, service_of, visitors

pytestmark = pytest.mark.anyio


# -- runs ------------------------------------------------------------------------------------------


async def test_a_run_is_started_looked_at_and_listed():
    service, _ = service_of(jobs)
    async with no_leaks(), client_of(service) as client:
        started = await client.post("/jobs", json={"id": "a", "state": {"items": [1, 2]}})
        assert started.status_code == 202
        assert started.json() == {
            "id": "a",
            "application": "jobs",
            "status": "running",
            "reason": "",
        }
        assert started.headers["location"] == "/jobs/a"
        await anyio.sleep(1.5)
        found = (await client.get(started.headers["location"])).json()
        assert found["status"] == "running"
        assert found["state"]["outs"] == {"1.0": 2.0}
        await anyio.sleep(1)
        found = (await client.get("/jobs/a")).json()
        assert found["status"] == "succeeded"
        assert found["state"]["said"] == "job: done"
        (listed,) = (await client.get("/jobs")).json()["runs"]
        assert (listed["id"], listed["status"], listed["version"]) == ("a", "succeeded", "1")


async def test_its_address_is_that_of_where_it_was_started():
    inner, _ = service_of(jobs)
    outer = FastAPI(lifespan=inner.router.lifespan_context)
    outer.mount("/api", inner)
    async with client_of(outer) as client:
        body = {"id": "a", "state": {"items": [0]}}
        started = await client.post("/api/jobs", json=body)
        assert started.headers["location"] == "/api/jobs/a"


async def test_a_client_waits_for_the_end():
    service, _ = service_of(jobs, visitors)
    async with no_leaks(), client_of(service) as client:
        found = await client.post("/jobs/wait", json={"state": {"items": [1]}})
        assert (found.status_code, found.json()["status"]) == (200, "succeeded")
        found = (await client.post("/jobs/wait", json={"state": {"items": [-1]}})).json()
        assert found["status"] == "failed"
        assert "negative" in found["reason"]
        found = (await client.post("/visitors/wait", json={"state": {"items": [1]}})).json()
        assert found["status"] == "halted"
        assert found["questions"][0]["question"] == "who is 1?"


async def test_one_that_is_known_goes_on():
    service, _ = service_of(jobs)
    async with client_of(service) as client:
        for body in ({"id": "a", "state": {"items": [1]}}, {"id": "a"}):
            assert (await client.post("/jobs/wait", json=body)).json()["status"] == "succeeded"
        refused = await client.post("/jobs", json={"id": "a", "state": {"items": [2]}})
        assert refused.status_code == 409
        assert "'items'" in refused.json()["detail"]
        refused = await client.post("/jobs", json={"id": "never"})
        assert refused.status_code == 422
        (missing,) = refused.json()["detail"]
        assert (missing["type"], missing["loc"]) == ("missing", ["body", "state", "items"])


@pytest.mark.parametrize(
    "body",
    [
        {"state": {"items": ["x"]}},
        {"state": {"items": [1] * 51}},
        {"state": {"items": [1], "unknown": 1}},
        {"state": {"title": "without"}},
        {"state": {"items": [1]}, "inputs": {"client": 1}},
        {"state": {"items": [1]}, "id": "a/b"},
        {"state": {"items": [1]}, "id": ""},
        {"state": {"items": [1]}, "id": "."},
        {"state": {"items": [1]}, "id": ".."},
        {"state": [1]},
        [],
    ],
)
async def test_what_does_not_fit_is_refused(body: Any):
    service, runtime = service_of(jobs)
    async with client_of(service) as client:
        for path in ("/jobs", "/jobs/wait"):
            assert (await client.post(path, json=body)).status_code == 422
        assert runtime.runs() == []


async def test_a_run_is_found_at_its_address_whatever_its_id():
    service, _ = service_of(jobs)
    async with client_of(service) as client:
        for run_id in ("...", "....", ".a", "..a", "a.", "a..b", "-", "~", "0", "a:b@c+d"):
            body = {"id": run_id, "state": {"items": [0]}}
            started = await client.post("/jobs", json=body)
            assert started.status_code == 202, started.text
            found = await client.get(started.headers["location"])
            assert (found.status_code, found.json()["id"]) == (200, run_id)


async def test_what_is_not_there_is_not_found():
    service, _ = service_of(jobs, visitors)
    async with client_of(service) as client:
        await client.post("/visitors/wait", json={"id": "v", "state": {"items": []}})
        for run_id in ("never", "v"):
            for method, path in (
                ("GET", f"/jobs/{run_id}"),
                ("GET", f"/jobs/{run_id}/events"),
                ("POST", f"/jobs/{run_id}/cancel"),
            ):
                response = await client.request(method, path)
                assert response.status_code == 404, path
            answers = {"answers": [{"name": "name", "value": 1}]}
            response = await client.post(f"/jobs/{run_id}/answers", json=answers)
            assert response.status_code == 404


async def test_a_run_is_cancelled():
    service, _ = service_of(jobs)
    async with no_leaks(), client_of(service) as client:
        for run_id, body, reason in (
            ("a", None, "asked for by a client"),
            ("b", {"reason": "enough"}, "enough"),
        ):
            await client.post("/jobs", json={"id": run_id, "state": {"items": [9]}})
            assert (await client.post(f"/jobs/{run_id}/cancel", json=body)).status_code == 202
            await anyio.sleep(0.1)
            found = (await client.get(f"/jobs/{run_id}")).json()
            assert (found["status"], found["reason"]) == ("cancelled", reason)
            again = await client.post(f"/jobs/{run_id}/cancel", json={"reason": "again"})
            assert (again.status_code, again.json()["reason"]) == (202, reason)


async def test_questions_are_answered_by_any_process():
    store = MemoryStore()
    one, _ = service_of(visitors, store=store)
    other, _ = service_of(visitors, store=store)
    async with no_leaks(), client_of(one) as first, client_of(other) as second:
        await first.post("/visitors/wait", json={"id": "v", "state": {"items": [1, 2]}})
        found = (await second.get("/visitors/v")).json()
        assert found["status"] == "halted"
        assert [(one["key"], one["question"]) for one in found["questions"]] == [
            ("1", "who is 1?"),
            ("2", "who is 2?"),
        ]
        assert kinds(events_in(await second.get("/visitors/v/events")))[-1] == "end"
        ambiguous = {"answers": [{"name": "name", "value": "a"}]}
        assert (await second.post("/visitors/v/answers", json=ambiguous)).status_code in (409, 422)
        asked = found["questions"]
        answers = [
            {"run_id": one["run_id"], "name": "name", "value": one["key"] * 2} for one in asked
        ]
        response = await second.post("/visitors/v/answers", json={"answers": answers})
        assert response.status_code == 202
        await anyio.sleep(0.1)
        found = (await first.get("/visitors/v")).json()
        assert found["status"] == "succeeded"
        assert found["state"]["names"] == {"1": "11", "2": "22"}
        assert (await second.post("/visitors/v/answers", json={"answers": []})).status_code == 422


async def test_a_page_at_a_time_of_one_applications_runs():
    service, _ = service_of(jobs, visitors)
    async with client_of(service) as client:
        for number in range(5):
            await client.post("/jobs/wait", json={"id": f"j{number}", "state": {"items": []}})
            await client.post("/visitors/wait", json={"id": f"v{number}", "state": {"items": []}})
        listed, after = list[str](), {}
        while True:
            page = (await client.get("/jobs", params={"limit": 2, **after})).json()
            listed += [run["id"] for run in page["runs"]]
            if page["next"] is None:
                break
            after = {"after": page["next"]}
        assert listed == ["j4", "j3", "j2", "j1", "j0"]
        page = (await client.get("/jobs", params={"status": "failed"})).json()
        assert page == {"runs": [], "next": None}
        assert (await client.get("/jobs", params={"limit": 0})).status_code == 422


# -- events ----------------------------------------------------------------------------------------


async def test_what_happens_is_followed():
    service, _ = service_of(jobs)
    async with no_leaks(), client_of(service) as client:
        await client.post("/jobs", json={"id": "a", "state": {"items": [1, 2]}})
        events = events_in(await client.get("/jobs/a/events"))
    first = next(number for number, event in enumerate(events) if "child" in event["data"])
    assert kinds(events)[0] == "state"
    assert kinds(events[first:]) == [
        *("update", "child", "update", "child", "step"),
        *("step", "item", "update", "step", "end"),
    ]
    updates = [event for event in events[first:] if event["event"] == "update"]
    assert [event["id"] for event in updates] == [str(event["data"]["number"]) for event in updates]
    assert updates[0]["data"]["operations"][0]["op"] == "put"
    assert updates[0]["data"]["child"]["key"] == "1.0"
    assert events[-1]["data"] == {"status": "succeeded", "reason": "", "number": 4}
    item = next(event["data"] for event in events if event["event"] == "item")
    assert (item["step"], item["item"], item["index"]) == ("say", "well", 0)


def rebuilt(events: list[dict[str, Any]], state: dict[str, Any]) -> dict[str, Any]:
    """Apply what a client has read to the state that it has."""
    for event in events:
        data = event["data"]
        if event["event"] == "state":
            state = data["state"]
        for operation in data.get("operations", ()):
            match operation:
                case {"op": "set", "field": name, "value": value}:
                    state = {**state, name: value}
                case {"op": "put", "field": name, "key": key, "value": value}:
                    state = {**state, name: {**state[name], key: value}}
                case _:
                    pytest.fail(f"{operation}")
    return state


@pytest.mark.parametrize("slow", [False, True])
async def test_a_client_that_comes_back_misses_nothing(slow: bool, monkeypatch: pytest.MonkeyPatch):
    if slow:
        monkeypatch.setattr(_events, "BUFFER", 1)
    service, _ = service_of(jobs)
    body = {"id": "a", "state": {"items": [0.1 * n for n in range(20)]}}
    async with no_leaks(), client_of(service) as client:
        await client.post("/jobs", json=body)
        read = events_in(await client.get("/jobs/a/events"))
        final = (await client.get("/jobs/a")).json()
        assert rebuilt(read, {}) == final["state"]
        for last in (0, 7, final["number"]):
            came_back = {"last-event-id": str(last)}
            rest = events_in(await client.get("/jobs/a/events", headers=came_back))
            numbers = [e["data"]["number"] for e in rest if e["event"] == "update"]
            assert numbers == list(range(last + 1, final["number"] + 1))
            assert kinds(rest)[-1] == "end"
        beyond = {"last-event-id": "1000"}
        rest = events_in(await client.get("/jobs/a/events", headers=beyond))
        assert kinds(rest) == ["state", "end"]
        nonsense = {"last-event-id": "x"}
        assert (await client.get("/jobs/a/events", headers=nonsense)).status_code == 422


async def test_an_event_during_a_call_of_the_store_is_delivered_once():
    store = MemoryStore()
    read = store.read

    async def read_slowly(path: Any, from_number: int = 0) -> Any:
        await anyio.sleep(0.35)
        return await read(path, from_number)

    service, _ = service_of(jobs, store=store)
    async with no_leaks(), client_of(service) as client:
        body = {"id": "a", "state": {"items": [0.1 * n for n in range(20)]}}
        await client.post("/jobs", json=body)
        await anyio.sleep(0.5)
        store.read = read_slowly
        events = events_in(await client.get("/jobs/a/events", headers={"last-event-id": "1"}))
    numbers = [event["data"]["number"] for event in events if event["event"] == "update"]
    assert numbers == list(range(2, numbers[-1] + 1))
    assert kinds(events)[-1] == "end"


async def test_what_another_process_executes_is_followed():
    store = MemoryStore()
    one, _ = service_of(jobs, store=store)
    other, _ = service_of(jobs, store=store)
    async with no_leaks(), client_of(one) as first, client_of(other) as second:
        await first.post("/jobs", json={"id": "a", "state": {"items": [1, 2, -1]}})
        events = events_in(await second.get("/jobs/a/events"))
        assert kinds(events)[0] == "state"
        assert kinds(events)[-1] == "end"
        assert events[-1]["data"]["status"] == "failed"


async def test_a_stream_ends_when_the_service_stops():
    store = MemoryStore()
    one, runtime = service_of(jobs, store=store)
    other, _ = service_of(jobs, store=store)
    async with no_leaks(), client_of(one) as first, client_of(other) as second:
        await first.post("/jobs", json={"id": "a", "state": {"items": [9]}})
        read = list[list[dict[str, Any]]]()

        began = anyio.current_time()

        async def follow(client: AsyncClient) -> None:
            read.append(events_in(await client.get("/jobs/a/events")))
            assert anyio.current_time() - began == pytest.approx(1), "while the run goes on"

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow, first)
            await anyio.sleep(1)
            tasks.start_soon(runtime.drain, 1)
        assert "end" not in kinds(read[0])
        for method, path in (("POST", "/jobs"), ("POST", "/jobs/wait"), ("GET", "/jobs/a/events")):
            body: Any = {"state": {"items": []}} if method == "POST" else None
            refused = await first.request(method, path, json=body)
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1"), path
        assert (await second.get("/jobs/a")).json()["status"] == "running", "somebody goes on"


async def test_a_client_that_waits_as_the_service_stops_learns_where_to_ask():
    service, runtime = service_of(jobs)
    found = list[Response]()
    async with no_leaks(), client_of(service) as client, anyio.create_task_group() as tasks:

        async def wait() -> None:
            body = {"id": "a", "state": {"items": [9]}}
            found.append(await client.post("/jobs/wait", json=body))

        tasks.start_soon(wait)
        await anyio.sleep(1)
        await runtime.drain(within=1)
    assert found[0].status_code == 503
    assert "run a is left to another process" in found[0].json()["detail"]


async def test_what_is_secret_is_taken_and_never_given_back():
    @action(reads=["token", "item"], writes=["out"])
    async def use(token: str, item: int) -> str:
        await anyio.sleep(1)
        return f"{len(token)} {item}"

    app = Application(use, name="keepers", secret={"token"})
    service, _ = service_of(app)
    async with no_leaks(), client_of(service) as client:
        body = {"id": "a", "state": {"token": "abc-123", "item": 1}}
        answers = [await client.post("/keepers", json=body)]
        answers.append(await client.get("/keepers/a/events"))
        answers.append(await client.get("/keepers/a"))
        assert answers[-1].json()["state"] == {"item": 1, "out": "7 1"}
        assert not [one for one in answers if "abc-123" in one.text]
        body = {"id": "b", "state": {"token": "abc-123", "item": 1}}
        await client.post("/keepers", json=body)
        await client.post("/keepers/b/cancel")
        await anyio.sleep(0.1)
        refused = await client.post("/keepers", json={"id": "b"})
        (missing,) = refused.json()["detail"]
        assert (refused.status_code, missing["loc"]) == (422, ["body", "state", "token"])
        body = {"id": "b", "state": {"token": "abc-123"}}
        assert (await client.post("/keepers", json=body)).status_code == 202


# -- without a store -------------------------------------------------------------------------------


async def test_without_a_store_a_run_is_known_while_it_goes_on():
    runtime = Runtime()
    service = FastAPI(lifespan=runtime_lifespan(runtime, within=1))
    service.include_router(runs_router(jobs, authorize=None))
    async with no_leaks(), client_of(service) as client:
        await client.post("/runs", json={"id": "a", "state": {"items": [1, 2]}})
        (listed,) = (await client.get("/runs")).json()["runs"]
        assert listed["id"] == "a"
        await anyio.sleep(0.5)
        came_back = {"last-event-id": "0"}
        events = events_in(await client.get("/runs/a/events", headers=came_back))
        assert kinds(events)[0] == "state", "nobody knows what came before"
        assert kinds(events)[-1] == "end"
        missing = await client.get("/runs/a")
        assert missing.status_code == 404
        assert "without a store" in missing.json()["detail"]


async def test_without_a_store_what_goes_on_is_listed_as_with_one():
    service = FastAPI(lifespan=runtime_lifespan(runtime := Runtime(), within=0))
    for app in (jobs, visitors):
        service.include_router(runs_router(app, authorize=None, prefix=f"/{app.name}"))
    async with no_leaks(), client_of(service) as client:
        before = time.time()
        for number in range(3):
            body = {"id": f"j{number}", "state": {"items": [9]}}
            await client.post("/jobs", json=body)
            await anyio.sleep(2)

        async def page(**asked: Any) -> tuple[list[str], str | None]:
            found = (await client.get("/jobs", params=asked)).json()
            return [run["id"] for run in found["runs"]], found["next"]

        assert await page() == (["j2", "j1", "j0"], None)
        assert await page(limit=3) == (["j2", "j1", "j0"], None)
        assert await page(limit=2) == (["j2", "j1"], "j1")
        assert await page(limit=2, after="j1") == (["j0"], None)
        assert await page(after="never") == ([], None)
        assert await page(status="running") == (["j2", "j1", "j0"], None)
        assert await page(status="failed") == ([], None)
        assert (await client.get("/visitors")).json() == {"runs": [], "next": None}
        listed = (await client.get("/jobs")).json()["runs"]
        ages = [time.time() - run["began_at"] for run in listed]
        passed = time.time() - before  # in real time; the runs' own is a virtual one
        assert ages == [pytest.approx(age, abs=1 + passed) for age in (2, 4, 6)]
        assert (listed[0]["status"], listed[0]["executed_by"]) == ("running", "this process")
        await runtime.drain(within=0)


# -- who may ---------------------------------------------------------------------------------------


async def test_nothing_is_reachable_without_what_authorizes():
    asked = list[str]()

    async def authorize(request: Request, run_id: str = "") -> None:
        asked.append(run_id)
        if request.headers.get("authorization") != "Bearer token":
            raise HTTPException(401, "no token")

    service, runtime = service_of(jobs, authorize=authorize)
    reached = 0
    async with client_of(service) as client:
        for path, methods in service.openapi()["paths"].items():
            for method in methods:
                url = path.replace("{run_id}", "a")
                refused = await client.request(method, url, json={"state": {"items": []}})
                assert refused.status_code == 401, path
                reached += 1
        assert reached == 14
        assert "a" in asked
        assert runtime.runs() == []
        allowed = {"authorization": "Bearer token"}
        assert (await client.get("/jobs", headers=allowed)).status_code == 200


def test_a_service_without_authorization_has_to_say_so():
    for make in (runs_router, service_router):
        given = (jobs,) if make is runs_router else ()
        with pytest.raises(TypeError, match="authorize"):
            make(*given)  # pyright: ignore[reportCallIssue]
        with pytest.raises(DefinitionError, match="a function that raises HTTPException"):
            make(*given, authorize="token")  # pyright: ignore[reportArgumentType]


def test_what_is_no_application_or_no_policy_is_refused():
    with pytest.raises(DefinitionError, match="takes an Application"):
        runs_router(doubled, authorize=None)  # pyright: ignore[reportArgumentType]
    stop: Any = "stop"
    with pytest.raises(DefinitionError, match='"cancel" or "detach"'):
        runs_router(jobs, authorize=None, on_disconnect=stop)
    with pytest.raises(TypeError, match="takes a Runtime"):
        runtime_lifespan(jobs)  # pyright: ignore[reportArgumentType]


# -- the service -----------------------------------------------------------------------------------


async def test_how_the_service_is():
    store = MemoryStore()
    service, runtime = service_of(jobs, store=store)
    async with client_of(service) as client:
        for path in ("/healthz", "/readyz"):
            assert (await client.get(path)).json() == {"status": "ok", "detail": ""}
        await client.post("/jobs/wait", json={"state": {"items": [0]}})
        limits = (await client.get("/limits")).json()
        assert limits[""][0]["slots"] == 9

        async def gone(run_id: str) -> None:
            raise OSError("gone")

        async def silent(run_id: str) -> None:
            await anyio.sleep_forever()

        for load in (gone, silent):
            store.load = load
            refused = await client.get("/readyz")
            assert (refused.status_code, refused.json()["status"]) == (503, "unhealthy")
            assert refused.json()["detail"] == "a store does not answer"
        store.load = gone
        refused = await client.get("/jobs/a")
        assert (refused.status_code, "gone" in refused.text) == (503, True)
        await runtime.drain()
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/healthz")).json()["status"] == "draining"


async def test_a_service_without_a_runtime_says_what_it_lacks():
    service = FastAPI()

    @service.get("/")
    async def use(runtime: RuntimeDep) -> bool:
        return runtime.draining

    async with client_of(service) as client:
        with pytest.raises(BadUse, match="runtime_lifespan"):
            await client.get("/")
        async with Runtime() as other:
            service.dependency_overrides[get_runtime] = lambda: other
            assert (await client.get("/")).json() is False


async def test_two_applications_share_a_service(recwarn: pytest.WarningsRecorder):
    service, _ = service_of(jobs, visitors)
    operations = [
        operation["operationId"]
        for methods in service.openapi()["paths"].values()
        for operation in methods.values()
    ]
    assert len(set(operations)) == len(operations)
    assert list(recwarn) == []


# -- clients that go away --------------------------------------------------------------------------


def request_of(*messages: dict[str, Any], kind: str = "http") -> Any:
    """Make a request, or a web socket, whose client sends these, one a second, and then nothing."""
    waiting = iter(messages)

    async def receive() -> Any:
        await anyio.sleep(1)
        message = next(waiting, None)
        if message is None:
            await anyio.sleep_forever()
        return message

    async def send(message: Any) -> None:
        """Send nothing."""

    scope: dict[str, Any] = {
        "type": kind,
        "headers": [],
        "path": "/",
        "query_string": b"",
        "method": "GET",
    }
    if kind == "http":
        return Request(scope, receive, send)
    socket = WebSocket(scope, receive, send)
    socket.client_state = socket.application_state = type(socket.client_state).CONNECTED
    return socket


BODY = {"type": "http.request", "body": b"", "more_body": False}
GONE = {"type": "http.disconnect"}


async def test_what_is_awaited_is_cancelled_with_its_client():
    tidied = list[float]()
    async with no_leaks():
        with pytest.raises(HTTPException) as raised:
            async with cancel_on_disconnect(request_of(BODY, GONE)):
                try:
                    await anyio.sleep(9)
                finally:
                    with anyio.CancelScope(shield=True):
                        await anyio.sleep(3)
                    tidied.append(anyio.current_time())
        assert raised.value.status_code == 499
        assert tidied == [anyio.current_time()]


async def test_what_ends_before_is_left_as_it_is():
    async with no_leaks():
        async with cancel_on_disconnect(request_of(BODY)):
            await anyio.sleep(2)
        for error in (LookupError("mine"), HTTPException(418)):
            with pytest.raises(type(error)) as raised:
                async with cancel_on_disconnect(request_of(BODY)):
                    raise error
            assert raised.value is error


async def test_another_cancellation_is_not_taken_for_the_client_s():
    async with no_leaks():
        with anyio.move_on_after(0.5) as scope:
            async with cancel_on_disconnect(request_of(GONE)):
                await anyio.sleep(9)
        assert scope.cancelled_caught


async def test_a_web_sockets_block_is_just_left():
    def gone(kind: str) -> Any:
        return request_of({"type": "websocket.disconnect", "code": 1006}, kind=kind)

    after = list[str]()
    async with no_leaks():
        async with cancel_on_disconnect(gone("websocket")):
            await anyio.sleep(9)
        after.append("left")
        async with cancel_on_disconnect(gone("websocket")):
            raise WebSocketDisconnect(1006)
        async with cancel_on_disconnect(gone("websocket")), anyio.create_task_group():
            raise WebSocketDisconnect(1006)
        with pytest.raises(ExceptionGroup):
            async with cancel_on_disconnect(gone("websocket")), anyio.create_task_group():
                raise LookupError
    assert after == ["left"]


@pytest.mark.parametrize("on_disconnect", ["cancel", "detach"])
async def test_a_client_that_hangs_up_while_it_waits(on_disconnect: Any):
    service, runtime = service_of(jobs, on_disconnect=on_disconnect)
    body = json.dumps({"id": "a", "state": {"items": [3]}}).encode()
    sent = list[Any]()

    async def send(message: Any) -> None:
        sent.append(message)

    async with no_leaks(), client_of(service) as client:
        given = request_of({"type": "http.request", "body": body, "more_body": False}, GONE)
        scope = {
            **given.scope,
            "method": "POST",
            "path": "/jobs/wait",
            "headers": [(b"content-type", b"application/json")],
            "state": {"runtime": runtime},
        }
        await service(scope, given.receive, send)
        assert sent[0]["status"] == 499
        found = (await client.get("/jobs/a")).json()
        assert found["status"] == ("cancelled" if on_disconnect == "cancel" else "running")
        assert found.get("reason", "") == ("its client has gone" if "reason" in found else "")


async def test_what_ends_while_it_is_looked_at_is_never_shown_as_ended_with_less_than_it_has(
    monkeypatch: pytest.MonkeyPatch,
):
    store = MemoryStore()
    read = store.read

    async def read_slowly(path: RunPath, from_number: int = 0) -> Sequence[Entry]:
        entries = await read(path, from_number)
        await anyio.sleep(5)
        return entries

    monkeypatch.setattr(store, "read", read_slowly)
    service, _ = service_of(jobs, store=store)
    async with (
        client_of(service) as client,
        Runtime(store=store) as elsewhere,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(partial(elsewhere.run, jobs, {"items": [1.0]}, id="x"))
        await anyio.sleep(0.5)
        found = (await client.get("/jobs/x")).json()
        assert (found["status"], found["number"]) == ("running", 1)
        found = (await client.get("/jobs/x")).json()
        assert (found["status"], found["state"]["said"]) == ("succeeded", "job: done")
