"""Real servers on real sockets: clients that go away, signals, workers that are killed."""

from __future__ import annotations

import collections
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.fastapi.serving import Server, events_of, serving, until

pytestmark = [pytest.mark.services, pytest.mark.timeout(120)]

APP = "tests.fastapi.served:service"
SERVERS = ("uvicorn", "granian", "hypercorn")
PROMPT = 0.5
"""Seconds in which one of ten requests is cancelled; each of them would take twice as long."""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Server]]:
    """Serve with each kind of server, each once for all tests here."""
    folders = {kind: tmp_path_factory.mktemp(kind) for kind in SERVERS}  # not safe in threads
    with ThreadPoolExecutor() as threads:
        up: dict[str, Any] = {}
        down = threading.Event()

        def serve(kind: str, ready: threading.Event) -> None:
            with serving(kind, APP, STORE=str(folders[kind] / "runs.db")) as server:
                up[kind] = server
                ready.set()
                down.wait()

        waiting = {kind: threading.Event() for kind in SERVERS}
        served = [threads.submit(serve, kind, ready) for kind, ready in waiting.items()]

        def server_of(kind: str) -> Server:
            until(lambda: waiting[kind].is_set() or any(one.done() for one in served))
            return up[kind]

        yield server_of
        down.set()
        for one in served:
            one.result()


class Style(NamedTuple):
    """A way to write an endpoint, and what becomes of it when its client goes away."""

    path: str
    is_cancelled: bool = True
    method: str = "GET"


STYLES = [
    Style("unguarded", is_cancelled=False),
    Style("guarded"),
    Style("guarded", method="POST"),
    Style("dependency"),
    Style("resource"),
    Style("in-a-group"),
    Style("streamed"),
    Style("chatty"),
    Style("sse"),
    Style("background", is_cancelled=False),
    Style("started", is_cancelled=False),
    Style("socket", method="SOCKET"),
    Style("chatty-socket", method="SOCKET"),
    Style("jobs/wait", method="POST"),
    Style("detached/wait", method="POST", is_cancelled=False),
]


def hang_up(server: Server, base: str, style: Style) -> tuple[str, float]:
    """Ask for something, and go away while it is worked on; return its name, and when."""
    name = uuid.uuid4().hex
    path = f"/{base}/{style.path}?name={name}"
    if style.method == "SOCKET":
        connection = server.websocket(path)
    else:
        body = {"state": {"name": name, "seconds": 1.0}} if style.method == "POST" else None
        connection = server.connect(path, body)
    until(lambda: "began" in server.ask("/noted")[1].get(name, {}))
    gone = time.monotonic()
    connection.close()
    return name, gone


def fate_of(server: Server, name: str) -> dict[str, float]:
    return until(lambda: (notes := server.ask("/noted")[1][name]).keys() > {"began"} and notes)


@pytest.mark.parametrize("base", ["plain", "behind"])
@pytest.mark.parametrize("kind", SERVERS)
def test_what_should_be_cancelled_is_and_what_should_go_on_does(
    kind: str, base: str, servers: Callable[[str], Server]
):
    server = servers(kind)
    going_on: list[tuple[Style, str]] = []
    for style in STYLES:
        if not style.is_cancelled:
            going_on.append((style, hang_up(server, base, style)[0]))
            continue
        took, name = 1.0, ""
        for _ in range(10):  # the machine may have been busy elsewhere
            name, gone = hang_up(server, base, style)
            notes = fate_of(server, name)
            assert "ended" not in notes, style
            took = notes["cancelled"] - gone
            if took < PROMPT:
                break
        assert took < PROMPT, style
        if style.path == "resource":
            until(lambda one=name: "closed" in server.ask("/noted")[1][one])
    for style, name in going_on:
        assert "ended" in fate_of(server, name), style
    until(lambda: server.ask("/alive")[1]["runs"] == [])


@pytest.mark.parametrize("kind", SERVERS)
def test_a_follower_that_stops_does_nothing_to_the_run(kind: str, servers: Callable[[str], Server]):
    server = servers(kind)
    run_id = uuid.uuid4().hex
    state = {"name": run_id, "items": [1, 2], "seconds": 0.3}
    assert server.ask("/jobs", {"id": run_id, "state": state})[0] == 202
    for base in ("plain", "behind"):
        events = events_of(server.connect(f"/{base}/jobs/{run_id}/events"))
        assert next(events)["event"] == "state"
        events.close()
    followed = list(events_of(server.connect(f"/jobs/{run_id}/events")))
    assert followed[-1]["data"]["status"] == "succeeded"


@pytest.mark.parametrize("kind", SERVERS)
def test_a_stream_is_taken_up_where_it_broke_off(kind: str, servers: Callable[[str], Server]):
    server = servers(kind)
    run_id = uuid.uuid4().hex
    state = {"name": run_id, "items": [1, 2, 3, 4], "seconds": 0.2}
    server.ask("/jobs", {"id": run_id, "state": state})
    events = events_of(server.connect(f"/jobs/{run_id}/events"))
    last = next(event["id"] for event in events if event["event"] == "update")
    events.close()
    rest = events_of(server.connect(f"/jobs/{run_id}/events", **{"last-event-id": last}))
    updates = [event["data"]["number"] for event in rest if event["event"] == "update"]
    final = server.ask(f"/jobs/{run_id}")[1]["number"]
    assert updates == list(range(int(last) + 1, final + 1))


@pytest.mark.parametrize("kind", SERVERS)
def test_it_stops_at_a_signal_and_the_next_process_goes_on(kind: str, tmp_path: Path):
    ids = ["first", "second"]
    given = {"STORE": str(tmp_path / "runs.db"), "WITHIN": "0.5"}
    with serving(kind, APP, **given) as server:
        for run_id in ids:
            state = {"name": run_id, "items": [1, 2], "seconds": 1.5}
            assert server.ask("/jobs", {"id": run_id, "state": state})[0] == 202
        connections = [server.connect(f"{base}/jobs/first/events") for base in ("", "/behind")]
        streams = [events_of(connection) for connection in connections]
        assert [next(stream)["event"] for stream in streams] == ["state", "state"]
        body = {"id": "waited-for", "state": {"name": "w", "items": [1], "seconds": 1.5}}
        waiting = server.connect("/jobs/wait", body)
        until(lambda: "waited-for" in server.ask("/alive")[1]["runs"])
        assert server.stop() < 3
        assert b" 503 " in answer_of(waiting).split(b"\r\n")[0]
        assert "end" not in [event["event"] for stream in streams for event in stream]
    with serving(kind, APP, **given) as server:
        for run_id in (*ids, "waited-for"):
            found = until(lambda one=run_id: ended(server, one))
            assert found["status"] == "succeeded"
            assert found["state"]["done"] == {
                str(item): 2 * item for item in found["state"]["items"]
            }
        server.stop()


def ended(server: Server, run_id: str) -> dict[str, Any] | None:
    found = server.ask(f"/jobs/{run_id}")[1]
    return None if found["status"] == "running" else found


def answer_of(connection: socket.socket) -> bytes:
    """Read whatever comes until the server closes the connection."""
    with connection:
        parts: list[bytes] = []
        while part := connection.recv(65536):
            parts.append(part)
        return b"".join(parts)


@pytest.mark.parametrize("clients", [200])
def test_a_worker_is_killed_and_every_run_completes_once(clients: int, tmp_path: Path):
    effects = tmp_path / "effects"
    given = {"STORE": str(tmp_path / "runs.db"), "EFFECTS": str(effects)}
    ids = [f"run-{number}" for number in range(clients)]
    items = [1, 2, 3]
    with serving("uvicorn4", APP, **given) as server, ThreadPoolExecutor(clients) as threads:

        def start(run_id: str) -> None:
            """Start a run as a client does that tries again when its connection breaks."""
            body = {"id": run_id, "state": {"name": run_id, "items": items, "seconds": 0.5}}
            while True:
                try:
                    status, found = server.ask("/jobs", body)
                except (OSError, ValueError):
                    continue
                if status == 202 or (status == 409 and "already running" in found["detail"]):
                    return

        pids = until(lambda: len(found := workers(server.process.pid)) == 4 and found)
        started = [threads.submit(start, run_id) for run_id in ids]
        until(lambda: sum(one.done() for one in started) > clients // 3)
        os.kill(pids[0], signal.SIGKILL)
        for one in started:
            one.result()
        deadline = time.monotonic() + 60
        for run_id in ids:
            found = until(lambda one=run_id: ended(server, one), patience=60)
            assert found["status"] == "succeeded", found
            assert found["state"]["done"] == {str(item): 2 * item for item in items}
            assert found["number"] == len(items) + 2, "each outcome is applied once"
        assert time.monotonic() < deadline
        listed = server.ask("/jobs?limit=200")[1]["runs"]
        assert sorted(run["id"] for run in listed) == sorted(ids)
    done = collections.Counter(effects.read_text().splitlines())
    assert set(done) == {f"{run_id} {item}" for run_id in ids for item in items}
    # An effect whose outcome was not saved yet is repeated; those were at work in one worker.
    again = {line.split()[0] for line, count in done.items() if count > 1}
    assert len(again) < clients // 2


def workers(parent: int) -> list[int]:
    """Return the processes that a server has for its workers."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    commands = {int(pid): Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children}
    return [pid for pid, command in commands.items() if b"spawn_main" in command]


def test_any_worker_cancels_what_another_executes(tmp_path: Path):
    given = {"STORE": str(tmp_path / "runs.db")}
    with serving("uvicorn", APP, **given) as one, serving("uvicorn", APP, **given) as other:
        body = {"id": "x", "state": {"name": "x", "items": [1], "seconds": 5}}
        assert one.ask("/jobs", body)[0] == 202
        assert other.ask("/jobs/x")[1]["status"] == "running"
        followed = other.connect("/jobs/x/events")
        status, found = other.ask("/jobs/x/cancel", {"reason": "by another"})
        assert (status, found["status"]) == (202, "running")
        end = list(events_of(followed))[-1]
        assert (end["event"], end["data"]["status"]) == ("end", "cancelled")
        assert end["data"]["reason"] == "by another"
        assert one.ask("/jobs/x")[1]["reason"] == "by another"
        assert other.ask("/jobs", {"id": "x"})[0] == 202, "it may be started again at once"
        time.sleep(1)
        assert one.ask("/jobs/x")[1]["status"] == "running"
