"""Real servers for the tests: processes of their own, on sockets of the loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).parents[2]
COMMANDS: Mapping[str, Sequence[str]] = {
    "uvicorn": ("uvicorn", "{app}", "--port={port}", "--log-level=warning"),
    "granian": ("granian", "--interface=asgi", "{app}", "--port={port}", "--log-level=warning"),
    "hypercorn": ("hypercorn", "{app}", "--bind=127.0.0.1:{port}", "--workers=0"),
    "uvicorn4": ("uvicorn", "{app}", "--port={port}", "--workers=4", "--log-level=warning"),
    "hypercorn-trio": (
        *("hypercorn", "{app}", "--bind=127.0.0.1:{port}", "--workers=0", "--worker-class=trio"),
    ),
}
PATIENCE = 20.0
"""Seconds that anything here may take on a machine that is busy."""


class Server:
    """A server, and what a client may want of it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process = process
        self.port = port

    def ask(
        self,
        path: str,
        body: object = None,
        *,
        method: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, Any]:
        """Make a request, with ``body`` as JSON; return the status and what was answered."""
        data = None if body is None else json.dumps(body).encode()
        given = {"content-type": "application/json", **(headers or {})}
        url = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(url, data, given, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as response:
                return response.status, json.loads(response.read() or b"null")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read() or b"null")

    def connect(self, path: str, body: object = None, **headers: str) -> socket.socket:
        """Send a request, and return the socket before there is an answer."""
        data = b"" if body is None else json.dumps(body).encode()
        method = "GET" if body is None else "POST"
        given = {"host": "x", "content-length": str(len(data)), "connection": "close", **headers}
        if body is not None:
            given["content-type"] = "application/json"
        lines = [f"{method} {path} HTTP/1.1", *(f"{k}: {v}" for k, v in given.items()), "", ""]
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)
        connection.sendall("\r\n".join(lines).encode() + data)
        return connection

    def websocket(self, path: str) -> socket.socket:
        """Open a web socket."""
        connection = self.connect(
            path,
            upgrade="websocket",
            connection="Upgrade",
            **{"sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==", "sec-websocket-version": "13"},
        )
        assert b"101" in connection.recv(1000).split(b"\r\n")[0]
        return connection

    def stop(self, number: int = signal.SIGTERM) -> float:
        """Send the process a signal, and return the seconds until it has ended."""
        began = time.monotonic()
        self.process.send_signal(number)
        self.process.wait(PATIENCE)
        return time.monotonic() - began


STARTS = 3
"""Ports that are tried: another test may take one before the server listens on it."""


@contextmanager
def serving(kind: str, app: str, *more: str, **environment: str) -> Generator[Server]:
    """Serve ``app`` in a process of its own, and end it."""
    for left in reversed(range(STARTS)):
        server = _start(kind, app, more, environment)
        try:
            try:
                # Each of its workers imports everything, on a machine that has much else to do.
                until(lambda server=server: is_up(server), patience=60)
            except AssertionError:
                if left and server.process.poll() is not None:
                    continue
                raise
            yield server
            return
        finally:
            _end(server.process)


def _start(kind: str, app: str, more: Iterable[str], environment: Mapping[str, str]) -> Server:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [part.format(app=app, port=port) for part in COMMANDS[kind]]
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", *command, *more],
        cwd=HERE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(["src", "."]), **environment},
        start_new_session=True,  # so that workers which are left behind can be ended too
    )
    return Server(process, port)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
    with suppress(ProcessLookupError):  # there were none
        os.killpg(process.pid, signal.SIGKILL)


def is_up(server: Server) -> bool:
    assert server.process.poll() is None, "the server has ended"
    try:
        return server.ask("/healthz")[0] == 200
    except OSError:
        return False  # it does not listen yet


def until(holds: Callable[[], Any], every: float = 0.02, patience: float = PATIENCE) -> Any:
    """Wait until something holds, and return it."""
    deadline = time.monotonic() + patience
    while True:
        found = holds()
        if found:
            return found
        assert time.monotonic() < deadline, "it does not come to hold"
        time.sleep(every)


def events_of(connection: socket.socket) -> Generator[dict[str, Any]]:
    """Read server-sent events until they end: ``event``, ``id`` and ``data``.

    Whoever reads no more closes the connection, by closing this.
    """
    with connection, connection.makefile("rb") as lines:
        event: dict[str, Any] = {}
        for raw in lines:
            line = raw.decode().rstrip("\r\n")
            name, _, value = line.partition(": ")
            if name == "data":
                event["data"] = json.loads(value)
            elif name in ("event", "id"):
                event[name] = value
            elif not line and "event" in event:
                yield event
                event = {}
