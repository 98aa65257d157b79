"""A Valkey or Redis server of one's own, which keeps nothing on disk."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

SERVERS = ("valkey-server", "redis-server")


class Server:
    """A server of its own, on a free port, that keeps nothing on disk."""

    def __init__(self, program: str, directory: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self._command = [
            *(program, "--port", str(self.port), "--bind", "127.0.0.1"),
            *("--save", "", "--appendonly", "no", "--dir", str(directory), "--daemonize", "no"),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
            except OSError:
                assert time.monotonic() < deadline, f"{self._command} does not listen"
                time.sleep(0.02)
            else:
                return

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def program_of(*programs: str) -> str | None:
    """Return where the first of these is that is installed."""
    for program in programs or SERVERS:
        found = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
        if found is not None:
            return found
    return None


def find(*programs: str) -> str:
    """Find a server. In CI one of them is enough, and none a failure: else skipped for ever."""
    found = program_of(*programs)
    if found is not None:
        return found
    if os.environ.get("CI") == "true" and programs == SERVERS:
        pytest.fail(f"{' or '.join(programs)} is missing")
    pytest.skip(f"needs {' or '.join(programs)}")
