"""A PostgreSQL server of one's own, in a folder that goes with it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import psycopg

# A kill of the server takes nothing from the system's own cache, so the disk needn't be waited for.
QUICK = {"fsync": "off", "full_page_writes": "off"}


def programs() -> Path | None:
    """Find where the server's programs are: the newest of Debian's, or those on the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=_version)
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).parent if on_path else None


def _version(initdb: Path) -> float:
    return float(initdb.parent.parent.name)


class PostgresServer:
    """A server, with a cluster of its own in a folder that goes with it."""

    def __init__(self, bin_: Path, settings: Mapping[str, str], where: Path | None = None) -> None:
        """Make the cluster, and start it.

        Args:
            bin_: Where its programs are.
            settings: The server's own.
            where: A folder to make its own one in; by default where files take no time.
        """
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self._bin = bin_
        memory = Path("/dev/shm")  # each schema is a hundred files
        if where is None and memory.is_dir() and shutil.disk_usage(memory).free > 1 << 30:
            where = memory
        self.folder = Path(tempfile.mkdtemp(prefix="shoal-pg-", dir=where))
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:  # as whom it doesn't run
            user = pwd.getpwnam("postgres")
            self._as = {"user": user.pw_uid, "group": user.pw_gid}
            os.chown(self.folder, user.pw_uid, user.pw_gid)
        self._schemas = count(1)
        self._settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.folder),  # of which a name has 107 bytes at most
            "port": str(self.port),
            "shared_buffers": "16MB",
            "max_connections": "50",
            "log_min_messages": "fatal",
            **settings,
        }
        self._call(
            "initdb",
            "-D",
            self.data,
            "-N",
            "-U",
            "postgres",
            "-E",
            "UTF8",
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
        )
        self.start()

    @property
    def data(self) -> str:
        return str(self.folder / "data")

    def _call(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._bin / program), *arguments],
            **self._as,
            cwd="/",
            env={**os.environ, "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout

    def start(self) -> None:
        """Start it, and wait until it lets in."""
        options = " ".join(f"-c {name}='{value}'" for name, value in self._settings.items())
        log = str(self.folder / "log")
        self._call("pg_ctl", "start", "-D", self.data, "-l", log, "-o", options, "-w", "-t", "60")

    def stop(self, how: str = "fast") -> None:
        """Stop it: ``fast``, or ``immediate`` as if it had crashed."""
        self._call("pg_ctl", "stop", "-D", self.data, "-m", how, "-w")

    @property
    def pid(self) -> int:
        return int((self.folder / "data" / "postmaster.pid").read_text().splitlines()[0])

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to the server, and to all that it has started."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        for pid in (self.pid, *map(int, children)):
            os.kill(pid, number)

    def address(self, database: str = "postgres", user: str = "postgres", **more: str) -> str:
        """Say where it is: a database of it, as a user may reach that."""
        given = {"host": self.folder, "port": self.port, "dbname": database}
        return " ".join(
            f"{name}='{value}'" for name, value in {**given, "user": user, **more}.items()
        )

    def new_schema(self) -> str:
        """Name a schema that nobody has used."""
        return f"test{next(self._schemas)}"

    def execute(self, sql: str, *values: object, address: str = "") -> list[tuple[object, ...]]:
        """Execute a statement, as another program would."""
        with psycopg.connect(address or self.address(), autocommit=True) as connection:
            found = connection.execute(sql.encode(), values or None)
            return found.fetchall() if found.description else []

    def end(self) -> None:
        """Stop it at once, and leave nothing."""
        if (self.folder / "data" / "postmaster.pid").exists():
            os.kill(self.pid, signal.SIGCONT)
            self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)


@contextmanager
def private_server(
    bin_: Path, settings: Mapping[str, str], where: Path | None = None
) -> Generator[PostgresServer]:
    """Have a server while the block lasts."""
    server = PostgresServer(bin_, settings, where)
    try:
        yield server
    finally:
        server.end()
