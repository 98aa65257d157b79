"""The scraper's command line, run as a process against small servers of the test's own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from examples.scraper.command.cli import main
from examples.scraper.command.job import Job
from examples.scraper.settings import Settings

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(90)  # whole processes, on whatever machine


class EndlessSite(ThreadingHTTPServer):
    """A site without an end, some of whose pages never answer; `/only` is a page without links."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Page)
        self.closing = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"


class Page(BaseHTTPRequestHandler):
    server: EndlessSite  # pyright: ignore[reportIncompatibleVariableOverride] - as in the demo site

    def do_GET(self) -> None:
        with suppress(ConnectionError):  # the crawler has left
            self.answer()

    def answer(self) -> None:
        number = self.path.removeprefix("/")
        if number.endswith("7"):
            self.server.closing.wait()
        if number in {"missing", "robots.txt"}:
            self.send_error(404)
            return
        links = [] if number == "only" else [int(number) * 2, int(number) * 2 + 1]
        body = "".join(f"<a href=/{link}>x</a>" for link in links).encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        pass


@pytest.fixture
def site() -> Iterator[str]:
    with EndlessSite() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.url
        server.closing.set()
        server.shutdown()
        thread.join()


def start(*args: str, **options: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "examples.scraper", *args]
    environ = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_ctrl_c_ends_cleanly_with_what_was_fetched_written(site: str, backend: str) -> None:
    flags = ["--concurrency", "64", "--per-host", "64", "--backend", backend, "--timeout", "2"]
    with start(f"{site}/1", "--out", "-", *flags) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = [process.stdout.readline() for _ in range(30)]  # some pages hang by now
        process.send_signal(signal.SIGINT)
        lines += process.stdout.readlines()
        stderr = process.stderr.read()
    assert process.returncode == 130
    rows = [json.loads(line) for line in lines]
    assert len({row["url"] for row in rows}) == len(rows) >= 30
    assert all(row["status"] == 200 for row in rows)
    assert "Traceback" not in stderr
    assert f"{len(rows)} pages, 0 failed, " in stderr
    assert "to resume: python -m examples.scraper resume " in stderr
    shutil.rmtree(stderr.split()[-1])


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_ctrl_c_ends_the_demo_and_its_site_without_a_word_from_either() -> None:
    with start("--demo", "--out", "-", "--progress", "none") as process:
        assert process.stdout is not None
        first = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert len(stderr.splitlines()) == 1
    with pytest.raises(OSError, match=r".+"):
        urlopen(first["url"], timeout=5)


@pytest.mark.skipif(sys.platform == "win32", reason="a broken pipe shows otherwise")
def test_a_reader_that_has_seen_enough_ends_the_crawl_quietly(site: str) -> None:
    with start(f"{site}/1", "--out", "-", "--progress", "none") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=10) == 1
        assert process.stderr.read() == ""


def test_a_failed_page_shows_in_the_exit_code(
    site: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    assert main([f"{site}/only", f"{site}/missing", "--out", str(out)]) == 3
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["url"].rpartition("/")[2]: row["status"] for row in rows} == {
        "only": 200,
        "missing": 404,
    }
    assert "1 pages, 1 failed (http 1) in " in capsys.readouterr().err


def test_a_server_that_is_not_there_is_a_failed_page(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    out = tmp_path / "out.jsonl"
    assert main(["http://127.0.0.1:1/", "--out", str(out), "--retries", "0"]) == 3
    row = json.loads(out.read_text())
    assert row["error"]["kind"] == "connect"
    assert row["status"] is None


def test_with_json_every_line_on_stderr_is_json(
    site: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--out", str(tmp_path / "out.jsonl"), "--progress", "json"]
    assert main([f"{site}/only", *flags]) == 0
    *_, last = map(json.loads, capsys.readouterr().err.splitlines())
    assert (last["pages"], last["waiting"]) == (1, 0)


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_with_json_so_is_how_to_go_on(site: str) -> None:
    with start(f"{site}/1", "--out", "-", "--progress", "json", "--timeout", "2") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        *_, last = map(json.loads, process.stderr.readlines())
    assert process.returncode == 130
    assert list(last) == ["resume"]
    shutil.rmtree(last["resume"])


def test_a_match_is_named(site: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--out", str(tmp_path / "out.jsonl"), "--until-match", "href=/2>"]
    assert main([f"{site}/1", *flags]) == 4
    assert capsys.readouterr().err.endswith(f"; the match is {site}/1\n")


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["example.org"],
        ["ftp://example.org/"],
        ["http://[bad"],
        ["--demo", "http://example.org/"],
        ["--demo", "--max-pages", "0"],
        ["--demo", "--max-depth", "-1"],
        ["--demo", "--concurrency", "many"],
        ["--demo", "--rate", "fast"],
        ["--demo", "--select", "h1"],
        ["--demo", "--include", "("],
        ["--demo", "--timeout", "0"],
        ["--demo", "--format", "xml"],
        ["--demo", "--resume"],
        ["--demo", "--format", "sqlite", "--out", "-"],
        ["--demo", "--job", "{job}"],
        ["crawl"],
        ["resume"],
        ["resume", "{nothing}"],
        ["status", "{nothing}"],
        ["export", "{nothing}"],
        ["export", "{job}", "--format", "sqlite"],
        ["mirror"],
        ["mirror", "http://a/", "--sha256", "abc"],
        ["--nothing"],
    ],
)
def test_wrong_usage(args: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Job.create(tmp_path / "job", Settings())
    named = {"job": tmp_path / "job", "nothing": tmp_path / "nothing"}
    assert main([arg.format(**named) for arg in args]) == 2
    assert "Usage: python -m examples.scraper" in capsys.readouterr().err


def test_an_output_that_cannot_be_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--demo", "--out", str(tmp_path / "no" / "such" / "file")]) == 1
    assert "error: [Errno 2]" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_an_output_that_cannot_be_written(site: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"{site}/1", "--out", "/dev/full"]) == 1
    assert capsys.readouterr().err.startswith("error: [Errno 28]")
