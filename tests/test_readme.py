"""The README's programs do what the README says, as they stand there."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import anyio
import pytest

from tools.pages import DOCS, blocks

README = Path(__file__).parent.parent / "README.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)


def execute(program: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": "readme"}
    exec(compile(program, str(README), "exec", dont_inherit=True), namespace)  # that is the point
    return namespace


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_prints_what_the_readme_shows(
    program: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # for the files they make
    shown = [line.removeprefix("#> ") for line in program.splitlines() if line.startswith("#> ")]
    execute(program)
    assert capsys.readouterr().out.splitlines() == shown


class Site(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/missing":
            self.send_error(404)
            return
        body = f"<title>page {self.path}</title>".encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 # the overridden one's name
        pass


@pytest.fixture
def site() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_map_fetches_real_pages(site: str, backend: str) -> None:
    crawl_titles = execute(PROGRAMS[0])["crawl_titles"]
    urls = [f"{site}/{n}" for n in range(50)]
    state = anyio.run(crawl_titles, [*urls, f"{site}/missing"], backend=backend)
    assert list(state["titles"].items()) == [(url, f"page /{n}") for n, url in enumerate(urls)]
    [(url, error)] = state["failed"].items()
    assert (url, error["type"]) == (f"{site}/missing", "httpx.HTTPStatusError")


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_guide_s_map_fetches_them_too(
    site: str, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = DOCS / "guides" / "maps.md"
    program = next(one.body for one in blocks(page) if one.language == "python")
    crawl_titles = execute(program)["crawl_titles"]
    urls = [f"{site}/{n}" for n in range(50)]
    titles = anyio.run(crawl_titles, [*urls, f"{site}/missing"], backend=backend)
    assert list(titles.items()) == [(url, f"page /{n}") for n, url in enumerate(urls)]
    assert capsys.readouterr().out == f"{site}/missing failed: httpx.HTTPStatusError\n"


def test_it_is_short() -> None:
    assert len(PROGRAMS) == 3
    for program in PROGRAMS:
        lines = [line for line in program.splitlines() if line and not line.startswith("#")]
        assert len(lines) <= 15
    assert len(README.read_text("utf-8").splitlines()) <= 250
