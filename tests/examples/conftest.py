"""Servers that nobody here wrote: nginx, httpbin, mountebank. Started once for all tests.

In CI a missing one is a failure: there it would be skipped for ever.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import pytest

from benchmarks._nginx import (
    POSTGRES_DOCS,
    PYTHON_DOCS,
    Served,
    Site,
    find_nginx,
    free_port,
    serving,
    wait_until_listening,
)
from tests.examples.memory_site import Crawl, crawl_by
from tests.examples.services import absent


@pytest.fixture(params=["asyncio", "trio"])
def crawled(request: pytest.FixtureRequest) -> Crawl:
    """Crawls a site in memory, in virtual time."""
    return crawl_by(request.param)


@pytest.fixture(scope="session")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Served]]:
    """Sites, by name: `python` and `postgres` (real ones), `limited`, `slow`, `files`."""
    if find_nginx() is None:
        absent("nginx")
    for package, folder in (("python3.13-doc", PYTHON_DOCS), ("postgresql-doc-17", POSTGRES_DOCS)):
        if not folder.is_dir():
            absent(package)
    here = tmp_path_factory.mktemp("nginx")
    files = here / "files"
    files.mkdir()
    with (files / "huge.html").open("wb") as huge:
        huge.truncate(5_000_000_000)  # of holes: it takes no space
    sites = {
        "python": Site(PYTHON_DOCS),
        "postgres": Site(POSTGRES_DOCS),
        "limited": Site(POSTGRES_DOCS, rate=100, burst=20),
        "slow": Site(POSTGRES_DOCS, more="limit_rate 4k;"),
        "files": Site(files),
    }
    with serving(here, sites) as served:
        yield served


@contextmanager
def server(command: list[str], port: int, **environ: str) -> Generator[None]:
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | environ
    ) as process:
        try:
            wait_until_listening(port, process)
            yield
        finally:
            process.terminate()


@pytest.fixture(scope="session")
def httpbin() -> Iterator[str]:
    """httpbin, with a thread for each request."""
    if find_spec("httpbin") is None:
        absent("httpbin")
    port = free_port()
    code = (
        "from httpbin import app; from werkzeug.serving import run_simple; "
        f"run_simple('127.0.0.1', {port}, app, threaded=True)"
    )
    with server([sys.executable, "-W", "ignore", "-c", code], port):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def mountebank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """mountebank's own address, where imposters are asked for."""
    program = shutil.which("mb")
    if program is None:
        absent("mountebank (npm install -g @mbtest/mountebank)")
    port = free_port()
    here = tmp_path_factory.mktemp("mountebank")
    flags = ["--port", str(port), "--host", "127.0.0.1", "--nologfile"]
    flags += ["--pidfile", str(here / "pid")]
    with server([program, "start", *flags], port):
        yield f"http://127.0.0.1:{port}"
