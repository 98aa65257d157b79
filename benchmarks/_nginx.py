"""nginx with real sites, for benchmarks and tests against a server that isn't ours.

nginx runs as the current user, with its own configuration, logs and ports. The requests that it
received are read from its log.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

POSTGRES_DOCS = Path("/usr/share/doc/postgresql-doc-17/html")  # 1,144 small pages
PYTHON_DOCS = Path("/usr/share/doc/python3.13/html")  # 538 pages, with many links

_HTTP = """
{user}
daemon off;
worker_processes 1;
pid {here}/pid;
error_log {here}/error.log crit;
events {{ worker_connections 512; }}
http {{
    log_format asked '$msec $connection $status $bytes_sent $request_method $request_uri';
    types {{ text/html html; text/css css; text/plain txt; application/javascript js; }}
    default_type application/octet-stream;
    keepalive_requests 100000;
    client_body_temp_path {here}/body;
    proxy_temp_path {here}/proxy;
    fastcgi_temp_path {here}/fastcgi;
    uwsgi_temp_path {here}/uwsgi;
    scgi_temp_path {here}/scgi;
    limit_req_status 429;
    {zones}
    {servers}
}}
"""
_SERVER = """
    server {{
        listen 127.0.0.1:{port};
        access_log {log} asked;
        root {root};
        {more}
    }}
"""


class Site(NamedTuple):
    """A site and how it is served."""

    root: Path
    rate: int | None = None
    """Requests per second that it accepts; others get 429, and Retry-After: 1."""
    burst: int = 20
    more: str = ""
    """More directives."""


class Asked(NamedTuple):
    """One line of a server's log."""

    at: float
    connection: int
    status: int
    bytes: int
    path: str


class Served(NamedTuple):
    """A site that is being served."""

    url: str
    log: Path

    def asked(self) -> list[Asked]:
        """The requests that it received, in the order in which they were finished."""
        found: list[Asked] = []
        for line in self.log.read_text().splitlines():
            at, connection, status, size, _, path = line.split(" ", 5)
            found.append(Asked(float(at), int(connection), int(status), int(size), path))
        return found

    def forget(self) -> None:
        """Begin a new log."""
        os.truncate(self.log, 0)


def find_nginx() -> str | None:
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@contextmanager
def serving(here: Path, sites: Mapping[str, Site]) -> Generator[dict[str, Served]]:
    """Serve `sites` while the block lasts; nginx's own files are in the folder `here`."""
    nginx = find_nginx()
    if nginx is None:
        raise FileNotFoundError("nginx")
    zones, servers = "", ""
    served: dict[str, Served] = {}
    for name, site in sites.items():
        port, log = free_port(), here / f"{name}.log"
        more = site.more
        if site.rate is not None:
            zones += f"limit_req_zone $server_port zone={name}:1m rate={site.rate}r/s;\n    "
            more += (
                f"limit_req zone={name} burst={site.burst} nodelay; error_page 429 @later; "
                f"location @later {{ internal; add_header Retry-After 1 always; return 429; }}"
            )
        servers += _SERVER.format(port=port, log=log, root=site.root, more=more)
        served[name] = Served(f"http://127.0.0.1:{port}", log)
    config = here / "nginx.conf"
    # If nginx starts as root, its workers run as a user that may not read the files of a test.
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(_HTTP.format(user=user, here=here, zones=zones, servers=servers))
    # -e: else nginx complains about the machine's log, which it may not open.
    command = [nginx, "-p", str(here), "-c", str(config), "-e", str(here / "error.log")]
    with subprocess.Popen(command) as process:
        try:
            for site in served.values():
                wait_until_listening(int(site.url.rpartition(":")[2]), process)
            yield served
        finally:
            process.terminate()


def wait_until_listening(port: int, process: subprocess.Popen[bytes], seconds: float = 30) -> None:
    """Wait until a server listens.

    Raises:
        RuntimeError: The server ended, or took too long.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise RuntimeError(f"{process.args} did not begin to listen")
