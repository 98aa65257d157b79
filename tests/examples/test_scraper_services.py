"""The scraper against servers that nobody here wrote, and one that cuts bodies short.

Everywhere: each address ends in one row, nothing hangs, and what was polite is told by the server.
"""

import hashlib
import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks._nginx import POSTGRES_DOCS, Served
from examples.scraper.command.cli import main

pytestmark = [pytest.mark.services, pytest.mark.timeout(120)]

Row = dict[str, Any]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


class Crawled:
    """A crawl that has ended: its exit code, its rows by path, and its statistics."""

    def __init__(self, tmp_path: Path, *args: str) -> None:
        out, stats = tmp_path / "rows.jsonl", tmp_path / "stats.json"
        flags = ["--progress", "none", "--out", str(out), "--stats", str(stats)]
        self.code = main([*args, *flags])
        rows: list[Row] = [json.loads(line) for line in out.read_text().splitlines()]
        self.rows = {row["url"].split("/", 3)[3]: row for row in rows}
        self.stats = json.loads(stats.read_text())
        assert len(self.rows) == len(rows)
        assert self.stats["in_flight"] == 0

    @property
    def kinds(self) -> dict[str, str | None]:
        """How each address ended."""
        return {path: row["error"] and row["error"]["kind"] for path, row in self.rows.items()}


# -- nginx ---------------------------------------------------------------------------------------


def crawl_limited(site: Served, tmp_path: Path, pages: int) -> tuple[Crawled, int, float]:
    """Crawl a site that takes 100 requests a second; return refusals and seconds by its log."""
    site.forget()
    limits = ["--max-pages", str(pages)] if pages < 1144 else []
    done = Crawled(tmp_path, f"{site.url}/index.html", *limits)
    asked = [one for one in site.asked() if one.path != "/robots.txt"]
    assert done.stats["pages"] == len(done.rows) == pages
    assert Counter(one.path for one in asked if one.status == 200).most_common(1)[0][1] == 1
    refused = [one.at for one in asked if one.status == 429]
    # Whoever is told to wait for a second does: but for what was under way, nobody asks.
    for at in refused:
        assert not [one for one in asked if at + 0.3 < one.at < at + 0.98]
    return done, len(refused), asked[-1].at - asked[0].at


def test_a_server_that_limits_requests_gives_all_pages(
    nginx: dict[str, Served], tmp_path: Path
) -> None:
    done, refused, _ = crawl_limited(nginx["limited"], tmp_path, 300)
    assert done.code == 4
    assert refused <= 20
    assert done.stats["refusals"] == refused


@pytest.mark.slow
@pytest.mark.parametrize("_", range(3))
def test_a_whole_site_at_the_rate_that_its_server_allows(
    nginx: dict[str, Served], tmp_path: Path, _: int
) -> None:
    done, refused, seconds = crawl_limited(nginx["limited"], tmp_path, 1144)
    print(f"{refused} refusals, {seconds:.1f} s")
    assert done.code == 0
    assert refused <= 40
    assert seconds <= 1.35 * (1144 - 20) / 100


def test_a_rate_and_a_number_at_once_are_kept_to_by_the_servers_log(
    nginx: dict[str, Served], tmp_path: Path
) -> None:
    site = nginx["postgres"]
    site.forget()
    flags = ["--rate", "20/s", "--max-pages", "50", "--per-host", "3"]
    Crawled(tmp_path, f"{site.url}/index.html", *flags)
    asked = site.asked()
    times = sorted(one.at for one in asked if one.path != "/robots.txt")
    assert len(times) == 50
    assert times[-1] - times[0] >= 49 / 20 * 0.95
    # What starts every 50 ms arrives so, but for how long it took on its way.
    assert sum(later - earlier < 0.02 for earlier, later in pairwise(times)) <= 5
    assert len({one.connection for one in asked}) <= 3


def test_pages_that_come_slowly_come_whole(nginx: dict[str, Served], tmp_path: Path) -> None:
    url = nginx["slow"].url
    flags = ["--no-links", "--timeout", "20s", "--read-timeout", "1.5s"]
    done = Crawled(tmp_path, f"{url}/preface.html", f"{url}/index.html", *flags)
    size = (POSTGRES_DOCS / "preface.html").stat().st_size
    assert done.rows["preface.html"]["bytes"] == size
    assert done.rows["preface.html"]["elapsed_ms"] >= size / 4096 * 1000 * 0.5
    quick = ["--no-links", "--timeout", "1s", "--retries", "0"]
    assert Crawled(tmp_path, f"{url}/index.html", *quick).kinds == {"index.html": "timeout"}


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_body_without_end_is_left(nginx: dict[str, Served], tmp_path: Path, backend: str) -> None:
    site = nginx["files"]
    site.forget()
    done = Crawled(tmp_path, f"{site.url}/huge.html", "--backend", backend)
    assert (done.code, done.kinds) == (3, {"huge.html": "size"})
    assert site.asked()[-1].bytes < 50_000_000


# -- httpbin -------------------------------------------------------------------------------------


def test_httpbin(httpbin: str, tmp_path: Path) -> None:
    ends: dict[str, str | None] = {
        "links/12/0": None,
        "encoding/utf8": None,
        "deny": "robots",
        "status/404": "http",
        "status/418": "http",
        "status/500": "http",
        "redirect/3": None,
        "absolute-redirect/2": None,
        "redirect-to?url=//127.0.0.2/": "redirect",
        "delay/1": None,
        "gzip": None,
        "deflate": None,
        "drip?numbytes=4&duration=1": None,
        "drip?numbytes=100&duration=60": "timeout",
        "stream/5": None,
        "bytes/100": None,
        "html": None,
    }
    flags = ["--timeout", "3s", "--retries", "1", "--accept", "*/*", "--per-host", "16"]
    done = Crawled(tmp_path, *(f"{httpbin}/{path}" for path in ends), *flags)
    assert {path: done.kinds[path] for path in ends} == ends
    assert done.code == 3
    for n in range(12):
        assert done.rows[f"links/12/{n}"]["status"] == 200
    assert [done.rows[path]["status"] for path in ("redirect/3", "get")] == [302, 200]
    assert done.rows["status/500"]["attempts"] == 2
    assert done.rows["status/404"]["attempts"] == 1
    assert done.rows["deny"]["status"] is None
    assert done.rows["html"]["error"] is None


# -- mountebank ----------------------------------------------------------------------------------


def stub(path: str, *responses: object) -> object:
    return {"predicates": [{"equals": {"path": path}}], "responses": list(responses)}


def says(status: int, body: str = "", **headers: str) -> dict[str, object]:
    head = {"Content-Type": "text/html"} | {k.replace("_", "-"): v for k, v in headers.items()}
    return {"is": {"statusCode": status, "headers": head, "body": body}}


def test_mountebank(mountebank: str, tmp_path: Path) -> None:
    paths = ["/later", "/reset", "/garbage", "/loop", "/slow", "/flaky", "/fine"]
    links = "".join(f"<a href={path}>x</a>" for path in paths)
    later = {**says(429, Retry_After="1"), "_behaviors": {"repeat": 2}}
    flaky = {"fault": "CONNECTION_RESET_BY_PEER"}
    stubs: list[object] = [
        stub("/", says(200, links)),
        stub("/later", later, says(200, "<title>at last")),
        stub("/reset", flaky),
        stub("/flaky", flaky, says(200, "<title>there")),
        stub("/garbage", {"fault": "RANDOM_DATA_THEN_CLOSE"}),
        stub("/loop", says(302, Location="/loop")),
        stub("/slow", {**says(200), "_behaviors": {"wait": 30_000}}),
        stub("/fine", says(200, "<title>fine")),
        {"responses": [says(404)]},
    ]
    made = httpx.post(
        f"{mountebank}/imposters",
        json={"protocol": "http", "host": "127.0.0.1", "stubs": stubs, "recordRequests": True},
        trust_env=False,
    )
    port = made.json()["port"]
    flags = ["--timeout", "1.5s", "--retries", "1"]
    done = Crawled(tmp_path, f"http://127.0.0.1:{port}/", *flags)
    assert done.kinds == {
        "": None,
        "later": None,
        "reset": "network",
        "garbage": "network",
        "loop": "redirect",
        "slow": "timeout",
        "flaky": None,
        "fine": None,
    }
    assert (done.rows["later"]["title"], done.rows["later"]["attempts"]) == ("at last", 3)
    assert (done.rows["flaky"]["title"], done.rows["flaky"]["attempts"]) == ("there", 2)
    received = httpx.get(f"{mountebank}/imposters/{port}", trust_env=False).json()["requests"]
    asked = Counter(one["path"] for one in received)
    failing = {"/robots.txt": 1, "/reset": 2, "/garbage": 2, "/slow": 2}
    assert {path: asked[path] for path in failing} == failing
    # Any of these may be asked besides, to find out whether the failures are the host's.
    answered = {"/": 1, "/loop": 11, "/later": 3, "/flaky": 2, "/fine": 1}
    assert answered.items() <= {path: min(asked[path], n) for path, n in answered.items()}.items()
    assert asked.total() <= sum((failing | answered).values()) + 4


# -- a peer that cuts bodies short ---------------------------------------------------------------

BODY = b"<title>whole</title>" + b"x" * 5000
CUT = {
    "/length": b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6000\r\n\r\n" + BODY,
    "/chunk": b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"1000\r\n<title>whole</title>",
    "/head": b"HTTP/1.1 200 OK\r\nContent-Ty",
    "/nothing": b"",
    "/close": b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n" + BODY,
}


@pytest.fixture
def cutter() -> Iterator[str]:
    """Answer each request with what stands above, then hang up."""
    listening = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                peer, _ = listening.accept()
            except OSError:  # it was closed
                return
            with peer:
                asked = peer.recv(65536).split(b" ", 2)
                missing = b"HTTP/1.1 404 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                peer.sendall(CUT.get(asked[1].decode(), missing) if len(asked) > 1 else b"")

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()
    thread.join()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_what_was_cut_short_is_no_page(cutter: str, tmp_path: Path, backend: str) -> None:
    flags = ["--retries", "1", "--backend", backend]
    done = Crawled(tmp_path, *(cutter + path for path in CUT), *flags)
    assert done.kinds == {
        "length": "network",
        "chunk": "network",
        "head": "network",
        "nothing": "network",
        "close": None,
    }
    assert done.rows["close"]["bytes"] == len(BODY)
    assert done.rows["length"]["attempts"] == 2


# -- mirrors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_first_mirror_with_the_right_file_wins(
    nginx: dict[str, Served],
    cutter: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    backend: str,
) -> None:
    page = (POSTGRES_DOCS / "index.html").read_bytes()
    good, slow = nginx["postgres"].url, nginx["slow"].url
    mirrors = [
        f"{cutter}/length",  # cut
        f"{good}/preface.html",  # another file
        f"{good}/missing.html",
        "http://127.0.0.1:1/index.html",  # nobody there
        f"{slow}/index.html",  # right, and too slow
        f"{good}/index.html",
    ]
    out = tmp_path / "index.html"
    checksum = ["--sha256", hashlib.sha256(page).hexdigest(), "--out", str(out)]
    assert main(["mirror", *mirrors, *checksum, "--backend", backend]) == 0
    assert out.read_bytes() == page
    assert f"from {good}/index.html" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == [out]  # nothing of the others is left
    out.unlink()
    assert main(["mirror", *mirrors[:4], *checksum, "--backend", backend]) == 3
    assert not [*tmp_path.iterdir()]
    assert "no mirror sent the file" in capsys.readouterr().err
