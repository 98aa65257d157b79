"""Those who follow a run: they share what is encoded, and a slow one costs the others nothing."""

# pyright: reportPrivateUsage=false
# Whether a run has the feed as a hook is seen from inside alone.

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import pytest
from fastapi import FastAPI

from shoal import (
    Application,
    Graph,
    Limits,
    MemoryStore,
    Result,
    Runtime,
    action,
    fan_out,
    first_item,
    race,
)
from shoal.events import RunEnded, RunStarted
from shoal.fastapi import _events, _feed
from shoal.testing import RecordingHook, no_leaks
from tests.fastapi.inside import client_of, service_of

pytestmark = pytest.mark.anyio


@action(reads=["item"], writes=["out"])
async def page(item: int) -> str:
    await anyio.sleep(0.1)
    return f"page {item}"


pages = Application(
    fan_out(page, over="items", item="item", key=str, into="outs", limits=Limits(5)), name="pages"
)

Send = Callable[[bytes], Awaitable[None]]


async def follow(
    service: FastAPI,
    runtime: Runtime,
    send: Send,
    *,
    until: anyio.Event | None = None,
    after: int | None = None,
) -> None:
    """Be a client that takes the events of run "r" as ``send`` does, ``until`` it hangs up."""

    async def receive() -> Any:
        await (until or anyio.Event()).wait()
        return {"type": "http.disconnect"}

    async def sent(message: Any) -> None:
        if message.get("body"):
            await send(message["body"])

    scope: dict[str, Any] = {
        "type": "http",
        "method": "GET",
        "path": "/pages/r/events",
        "query_string": b"",
        "headers": [] if after is None else [(b"last-event-id", str(after).encode())],
        "state": {"runtime": runtime},
    }
    await service(scope, receive, sent)


def events_in(body: bytes) -> list[dict[str, Any]]:
    found = list[dict[str, Any]]()
    for part in body.decode().strip().split("\n\n"):
        if not part.startswith(":"):
            event = dict(line.split(": ", 1) for line in part.splitlines())
            found.append({**event, "data": json.loads(event["data"])})
    return found


def outs_in(body: bytes) -> dict[str, str]:
    """What a client knows of the results, from the state it began with and the updates."""
    known, number = dict[str, str](), -1
    for event in events_in(body):
        data = event["data"]
        assert event["event"] == "end" or int(event["id"]) >= number
        if event["event"] == "state":
            known, number = dict(data["state"].get("outs", {})), data["number"]
        elif event["event"] == "update":
            assert number in (-1, data["number"] - 1)
            number = data["number"]
            for operation in data["operations"]:
                if operation["op"] == "put":
                    assert operation["key"] not in known
                    known[operation["key"]] = operation["value"]
    return known


def counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note what is encoded from now on."""
    encoded = list[str]()
    as_json = _feed.as_json

    def noted(value: object) -> bytes:
        encoded.append(repr(value))
        return as_json(value)

    monkeypatch.setattr(_feed, "as_json", noted)
    return encoded


async def at_once(data: bytes) -> None:
    """Take what is sent."""


async def test_children_steps_and_leaders_are_told_of_in_short():
    """With how a child has ended, and why; not with its value, which is in the update."""

    @action(reads=["item"], writes=["out"])
    async def fails(item: int) -> str:
        if item == 2:
            raise ConnectionError("down")
        return f"page {item}"

    @action(writes=["text"])
    async def streams(seconds: float) -> AsyncIterator[str | Result[str]]:
        await anyio.sleep(seconds)  # both have begun
        yield "a"
        await anyio.sleep(1)
        yield Result("a")

    hook = RecordingHook()
    models = [streams.bind(name="one", seconds=1.0), streams.bind(name="two", seconds=2.0)]
    streamed = race(*models, into="text", until=first_item(), name="best")
    mapped = fan_out(fails, over="items", item="item", into="outs", on_error="collect", name="map")
    app = Application(Graph.chain(streamed, mapped, name="all"), hooks=[hook])
    await app.run({"items": [1, 2]}, id="r")
    root = [event for event in hook.events if event.run_id == "r"]
    encoded = [event for event in root if not isinstance(event, (RunStarted, RunEnded))]
    told = [*map(json.loads, (_feed._encoded(event).split(b"data: ")[1] for event in encoded))]
    (leads,) = (one for one in told if "leader" in one)
    assert (leads["step"], leads["act"], leads["reason"]) == ("best", "one", "")
    ends = [one for one in told if one.get("status") not in (None, "running") and "act" in one]
    best = {one["act"]: one["status"] for one in ends if one["step"] == "best"}
    assert best == {"one": "succeeded", "two": "cancelled"}
    assert [(one["key"], one["status"], one["reason"]) for one in ends[2:]] == [
        (0, "succeeded", ""),
        (1, "failed", "ConnectionError: down"),
    ]


@pytest.mark.parametrize("many", [1, 10, 100])
async def test_an_event_is_encoded_once(many: int, monkeypatch: pytest.MonkeyPatch):
    encoded = counting(monkeypatch)
    service, runtime = service_of(pages)
    bodies = [bytearray() for _ in range(many)]

    async def follow_into(body: bytearray, pause: float) -> None:
        async def send(data: bytes) -> None:
            await anyio.sleep(pause)
            body.extend(data)

        await follow(service, runtime, send)

    async with no_leaks(), client_of(service), anyio.create_task_group() as tasks:
        await runtime.start(pages, {"items": [*range(40)]}, id="r")
        for n, body in enumerate(bodies):
            tasks.start_soon(follow_into, body, 0.05 * (n % 7))  # each at its own pace
    ends = [one for one in encoded if "'reason': '', 'number'" in one]
    assert len(ends) == many  # how it ended, alone, is told to each
    others = [one for one in encoded if one not in ends]
    assert len(others) == len(set(others)) <= 3 * 40 + 5
    for body in bodies:
        assert outs_in(bytes(body)) == {str(n): f"page {n}" for n in range(40)}
        assert events_in(bytes(body))[-1]["data"]["status"] == "succeeded"


async def test_followers_that_do_not_read_hold_nothing_back(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_events, "BUFFER", 10)
    encoded = counting(monkeypatch)
    service, runtime = service_of(pages)
    quick, late, gone = bytearray(), bytearray(), anyio.Event()
    may_read = anyio.Event()

    async def never(_: bytes) -> None:
        await anyio.sleep_forever()

    async def at_last(data: bytes) -> None:
        await may_read.wait()
        late.extend(data)

    async def read(data: bytes) -> None:
        quick.extend(data)

    expected = {str(n): f"page {n}" for n in range(100)}
    async with no_leaks(), client_of(service), anyio.create_task_group() as tasks:
        run = await runtime.start(pages, {"items": [*range(100)]}, id="r")
        began = anyio.current_time()
        for _ in range(50):
            tasks.start_soon(lambda: follow(service, runtime, never, until=gone))
        tasks.start_soon(follow, service, runtime, at_last)
        tasks.start_soon(follow, service, runtime, read)
        await run.wait_ended()
        assert anyio.current_time() - began == pytest.approx(100 / 5 * 0.1)
        await anyio.sleep(1)
        assert outs_in(bytes(quick)) == expected
        assert len(encoded) < 500  # nothing for those who don't read
        may_read.set()
        await anyio.sleep(1)
        assert outs_in(bytes(late)) == expected  # from the store
        gone.set()


async def test_a_feed_is_a_hook_while_somebody_follows():
    service, runtime = service_of(pages)
    async with no_leaks(), client_of(service), anyio.create_task_group() as tasks:
        run = await runtime.start(pages, {"items": [*range(100)]}, id="r")

        def feeds() -> int:
            hooks = run._root._execution.hooks.hooks
            return sum(isinstance(hook, _feed.Feed) for hook in hooks)

        gone = [anyio.Event() for _ in range(3)]
        for one in gone:
            tasks.start_soon(lambda o=one: follow(service, runtime, at_once, until=o))
        await anyio.sleep(0.25)
        assert feeds() == 1
        for one in gone:
            assert feeds() == 1
            one.set()
            await anyio.sleep(0.05)
        assert feeds() == 0
        again = bytearray()

        async def read(data: bytes) -> None:
            again.extend(data)

        await follow(service, runtime, read)
        assert len(outs_in(bytes(again))) == 100


@pytest.mark.parametrize("place", ["here", "elsewhere"])
async def test_a_silent_run_is_kept_in_touch_with(place: str):
    @action(reads=["n"], writes=["m"])
    async def think(n: int) -> int:
        await anyio.sleep(40)
        return n

    thinking = Application(think, name="pages")
    store = MemoryStore()
    service, runtime = service_of(thinking, store=store)
    other, elsewhere = service_of(thinking, store=store)
    body = bytearray()

    async def read(data: bytes) -> None:
        body.extend(data)

    async with no_leaks(), client_of(service), client_of(other):
        await runtime.start(thinking, {"n": 1}, id="r")
        where = (service, runtime) if place == "here" else (other, elsewhere)
        await follow(*where, read)
    assert body.count(b": ping\n\n") == 2
    assert events_in(bytes(body))[-1]["data"]["status"] == "succeeded"


async def test_a_stream_ends_without_its_end_where_the_store_is_gone():
    store = MemoryStore()
    service, runtime = service_of(pages, store=store)
    other, elsewhere = service_of(pages, store=store)
    body = bytearray()

    async def read(data: bytes) -> None:
        body.extend(data)

    async with no_leaks(), client_of(service), client_of(other):
        run = await runtime.start(pages, {"items": [*range(20)]}, id="r")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(follow, other, elsewhere, read)
            await anyio.sleep(0.1)
            load = store.load

            async def gone(_: str) -> None:
                raise OSError("gone")

            store.load = gone  # pyright: ignore[reportAttributeAccessIssue]
            await anyio.sleep(0.5)
            store.load = load
        await run.wait_ended()
    assert [event["event"] for event in events_in(bytes(body))][-1] != "end"
