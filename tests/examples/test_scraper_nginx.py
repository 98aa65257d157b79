"""The scraper on a real site of over 500 pages: Python's own documentation behind nginx.

What nginx was asked for is read from its own log; what there is to be found is computed from the
files, by another parser.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urljoin, urlsplit

import pytest

from tests.examples.services import absent

ROOT = Path(__file__).parents[2]
DOCS = Path("/usr/share/doc/python3.13/html")

CONFIG = """
daemon off;
worker_processes 1;
pid {here}/pid;
error_log {here}/error.log;
events {{ worker_connections 256; }}
http {{
    log_format asked '$request_method $request_uri';
    access_log {here}/access.log asked;
    types {{ text/html html; text/css css; text/plain txt; application/javascript js; }}
    default_type application/octet-stream;
    client_body_temp_path {here}/body;
    proxy_temp_path {here}/proxy;
    fastcgi_temp_path {here}/fastcgi;
    uwsgi_temp_path {here}/uwsgi;
    scgi_temp_path {here}/scgi;
    server {{
        listen 127.0.0.1:{port};
        root {docs};
    }}
}}
"""


class Served(NamedTuple):
    url: str
    log: Path


@pytest.fixture
def docs(tmp_path: Path) -> Iterator[Served]:
    nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if nginx is None:
        absent("nginx")
    if not DOCS.is_dir():
        absent("python3.13-doc")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = tmp_path / "nginx.conf"
    config.write_text(CONFIG.format(here=tmp_path, port=port, docs=DOCS))
    log = tmp_path / "access.log"
    # -e: else nginx complains about the machine's own log, which it may not open.
    command = [nginx, "-p", str(tmp_path), "-c", str(config), "-e", str(tmp_path / "error.log")]
    with subprocess.Popen(command) as process:
        try:
            wait_until_listening(port, process)
            yield Served(f"http://127.0.0.1:{port}", log)
        finally:
            process.terminate()


def wait_until_listening(port: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.02)
        else:
            return
    pytest.fail("nginx did not start")


class Hrefs(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in {"a", "area"}:
            self.found += [value or "" for name, value in attrs if name == "href"]


def reachable(start: str) -> set[str]:
    """The paths that links lead to from `start`, whether or not there is a file."""
    known, todo = {start}, [start]
    while todo:
        path = todo.pop()
        file = DOCS / path.lstrip("/")
        if file.suffix != ".html" or not file.is_file():
            continue
        for href in Hrefs(file.read_text("utf-8")).found:
            target = urlsplit(urljoin(f"http://docs{path}", href))
            if target[:2] == ("http", "docs") and unquote(target.path) not in known:
                known.add(unquote(target.path))
                todo.append(unquote(target.path))
    return known


@pytest.mark.services
@pytest.mark.timeout(120)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_every_reachable_page_once_and_none_outside(
    docs: Served, tmp_path: Path, backend: str
) -> None:
    out = tmp_path / "pages.jsonl"
    # Whatever is asked of another host would go through this proxy, and so be in the log.
    through = dict.fromkeys(["http_proxy", "https_proxy", "all_proxy"], docs.url)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "examples.scraper",
            f"{docs.url}/index.html",
            "--out",
            str(out),
            "--backend",
            backend,
        ],
        cwd=ROOT,
        env={**os.environ, **through, "no_proxy": "127.0.0.1"},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stderr)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    paths = {unquote(row["url"].removeprefix(docs.url)): row for row in rows}
    expected = reachable("/index.html")

    assert paths.keys() == expected
    assert len(rows) == len(expected)
    pages = [path for path in expected if path.endswith(".html") and (DOCS / path[1:]).is_file()]
    assert len(pages) > 500
    assert all(paths[path]["title"] for path in pages)

    asked = Counter(docs.log.read_text().splitlines())
    assert {unquote(line) for line in asked} == {f"GET {path}" for path in expected}
    assert set(asked.values()) == {1}

    missing = {path for path in expected if not (DOCS / path[1:]).exists()}
    assert {path for path, row in paths.items() if row["error"]} == missing
    assert done.returncode == (3 if missing else 0)
