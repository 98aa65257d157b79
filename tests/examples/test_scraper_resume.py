"""Jobs that go on: what failed is tried again, what is asked counts, one process at a time."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from examples.scraper.command.cli import main
from examples.scraper.command.job import Job
from examples.scraper.command.resuming import FLAGS, HOW
from examples.scraper.settings import Settings
from tests.examples.raw_site import NOT_FOUND, Head, RawSite, links, reply, serving

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.timeout(120), pytest.mark.realtime]  # whole processes, and sockets


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


def rows_in(out: Path) -> list[dict[str, Any]]:
    if out.suffix == ".sqlite":
        with sqlite3.connect(out) as sql:
            found = [{"url": url} for (url,) in sql.execute("SELECT url FROM pages")]
        sql.close()
        return found
    return [json.loads(line) for line in out.read_text().splitlines()]


def start(*args: str, progress: str = "none") -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "examples.scraper", *args, "--progress", progress]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def wait_for(site: RawSite, requests: int, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 60
    while len(site.asked) < requests:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Site:
    """A front page with links to pages, some of which get no answer as long as it `is_ill`."""

    def __init__(self, pages: int = 20, seconds: float = 0.0) -> None:
        self.pages = pages
        self.seconds = seconds
        self.is_ill = True

    def __call__(self, target: str, _: Head) -> bytes | None:
        if target == "/":
            kinds = ["ill" if n % 4 == 3 else "well" for n in range(self.pages)]
            return links(*(f"/{kind}{n}" for n, kind in enumerate(kinds)))
        if target == "/robots.txt":
            return NOT_FOUND
        time.sleep(self.seconds)
        return None if self.is_ill and target.startswith("/ill") else reply("<title>t</title>")


@pytest.mark.parametrize("form", ["jsonl", "csv", "sqlite"])
def test_a_job_that_was_finished_tries_again_what_had_failed(tmp_path: Path, form: str) -> None:
    job, out, ill = str(tmp_path / "job"), tmp_path / f"rows.{form}", Site()
    flags = ["--progress", "none"]
    with serving(ill) as site:
        first = ["--job", job, "--out", str(out), "-f", form, "--retries", "0"]
        assert main([f"{site.url}/", *first, *flags]) == 3
        assert Job.open(Path(job)).failed == 5
        site.asked.clear()
        assert main(["resume", job, *flags]) == 3, "they fail once more"
        assert {one[:4] for one in site.targets} == {"/ill"} | ({"/"} & site.targets.keys())
        ill.is_ill = False
        site.asked.clear()
        assert main(["resume", job, *flags]) == 0
        assert site.targets == dict.fromkeys((f"/ill{n}" for n in range(3, 20, 4)), 1)
        site.asked.clear()
        assert main(["resume", job, *flags]) == 0
        assert site.asked == []
    assert Job.open(Path(job)).failed == 0
    if form != "csv":
        urls = [row["url"] for row in rows_in(out)]
        assert len(urls) == len(set(urls)) == 21


def test_sitemaps_are_counted_when_a_job_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ill = Site(pages=4)

    def give(target: str, head: Head) -> bytes | None:
        return NOT_FOUND if target == "/sitemap.xml" else ill(target, head)

    job, out = str(tmp_path / "job"), str(tmp_path / "rows.jsonl")
    with serving(give) as site:
        flags = ["--job", job, "--out", out, "--sitemap", "--retries", "0"]
        assert main([f"{site.url}/", *flags]) == 3
        ill.is_ill = False
        assert main(["resume", job]) == 0
    assert "known but not fetched" not in capsys.readouterr().err


# -- what a job that goes on is told ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--max-depth", "3"], "--max-depth"),
        (["--exclude", "x"], "--exclude"),
        (["--scope", "host"], "--scope"),
        (["--no-links"], "--links"),
        (["--ignore-robots"], "--ignore-robots"),
        (["--select", "a=b"], "--select"),
        (["--text"], "--text"),
        (["--until-match", "x"], "--until-match"),
        (["http://127.0.0.1:1/"], "URL"),
    ],
)
def test_a_job_does_not_go_on_as_another_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], told: str
) -> None:
    job, out = str(tmp_path / "job"), tmp_path / "rows.jsonl"
    with serving(Site()) as site:
        same = [f"{site.url}/", "--job", job, "--out", str(out), "--max-pages", "5"]
        same += ["--retries", "0"]
        assert main([*same, "--progress", "none"]) == 4
        before, asked = out.read_bytes(), len(site.asked)
        given = ["--job", job, "--resume", *flags]
        assert main([*([] if told == "URL" else [f"{site.url}/"]), *given]) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert f" as {told}, and can't continue with " in error
        assert (out.read_bytes(), len(site.asked)) == (before, asked)
        assert main([*same, "--resume", "--progress", "none"]) == 4, "the same is no difference"


def test_how_a_job_goes_on_may_be_given_anew(tmp_path: Path) -> None:
    job, ill = str(tmp_path / "job"), Site()
    first, second = tmp_path / "first.jsonl", tmp_path / "second.csv"
    with serving(ill) as site:
        flags = [f"{site.url}/", "--job", job, "--progress", "none", "--retries", "0"]
        assert main([*flags, "--out", str(first)]) == 3
        before = first.read_bytes()
        ill.is_ill = False
        again = [*flags, "--resume", "--out", str(second), "-f", "csv", "-c", "3", "--rate", "50"]
        assert main(again) == 0
    assert first.read_bytes() == before
    assert len(second.read_text().splitlines()) == 22, "the first line names the columns"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_limit_may_be_raised(
    tmp_path: Path, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    job, out, ill = str(tmp_path / "job"), tmp_path / "rows.jsonl", Site()
    ill.is_ill = False

    def resume(*flags: str) -> int:
        return main(["resume", job, "--progress", "none", "--backend", backend, *flags])

    with serving(ill) as site:
        flags = ["--job", job, "--out", str(out), "--progress", "none", "--backend", backend]
        assert main([f"{site.url}/", *flags, "--max-pages", "5"]) == 4
        assert (len(rows_in(out)), site.targets.total()) == (5, 5)
        assert resume() == 4, "the limit holds as long as it isn't raised"
        assert (len(rows_in(out)), site.targets.total()) == (5, 5)
        main(["status", job])
        assert "limit reached: 5 done, 0 failed, 16 waiting" in capsys.readouterr().out
        assert resume("--max-pages", "12") == 4
        assert (len(rows_in(out)), site.targets.total()) == (12, 12)
        assert resume("--max-pages", "3") == 4, "it may be lowered, too"
        assert main([f"{site.url}/", *flags, "--resume", "--max-pages", "900"]) == 0
    assert len({row["url"] for row in rows_in(out)}) == len(rows_in(out)) == 21
    assert set(site.targets.values()) == {1}, "no page was requested twice"


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_pages_that_failed_count_once_for_the_limit(tmp_path: Path, backend: str) -> None:
    job, out, ill = str(tmp_path / "job"), tmp_path / "rows.jsonl", Site()
    with serving(ill) as site:
        flags = ["--job", job, "--out", str(out), "--progress", "none", "--backend", backend]
        flags += ["--retries", "0"]
        assert main([f"{site.url}/", *flags, "--max-pages", "12"]) == 4
        assert len(rows_in(out)) == 12
        failed = sum(row["error"] is not None for row in rows_in(out))
        assert failed
        ill.is_ill = False
        assert main(["resume", job, "--progress", "none"]) == 4
        assert site.targets.total() == 12 + failed
        assert [row["error"] for row in rows_in(out)] == [None] * 12
        assert main(["resume", job, "--progress", "none", "--max-pages", "21"]) == 0
    assert len(rows_in(out)) == 21


def test_each_setting_may_be_given_anew_or_not() -> None:
    settings = Settings()
    assert set(settings.to_json()) > HOW | FLAGS.keys()


# -- one at a time ---------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="has no locks")
@pytest.mark.parametrize("form", ["jsonl", "sqlite"])
@pytest.mark.parametrize("same", ["job", "out"])
def test_a_second_process_leaves_alone_what_the_first_one_writes(
    tmp_path: Path, form: str, same: str, capsys: pytest.CaptureFixture[str]
) -> None:
    job, out = tmp_path / "job", tmp_path / f"rows.{form}"
    flags = ["--out", str(out), "-f", form, "--retries", "0"]
    with serving(Site(200, 0.03)) as site:
        with start(f"{site.url}/", "--job", str(job), *flags) as process:
            for requests in (30, 80, 130):
                wait_for(site, requests, process)
                if same == "job":
                    assert main(["resume", str(job), "--progress", "none"]) == 1
                    assert f"process {process.pid} on " in capsys.readouterr().err
                else:
                    assert main([f"{site.url}/", *flags, "--progress", "none"]) == 1
                    assert "another crawl writes to it" in capsys.readouterr().err
            _, stderr = process.communicate()
        assert process.returncode == 3, stderr
    urls = Counter(row["url"] for row in rows_in(out))
    assert urls == Counter(row["url"] for row in Job.open(job).rows())
    assert len(urls) == 201


# -- signals ---------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_crawl_in_good_order(
    tmp_path: Path, sent: signal.Signals, code: int, backend: str
) -> None:
    job, out = tmp_path / "job", tmp_path / "rows.jsonl"
    site_of = Site(400, 0.05)
    site_of.is_ill = False
    with serving(site_of) as site:
        flags = ["--job", str(job), "--out", str(out), "--backend", backend]
        with start(f"{site.url}/", *flags) as process:
            wait_for(site, 40, process)
            process.send_signal(sent)
            _, stderr = process.communicate(timeout=30)
        assert (process.returncode, "Traceback" in stderr) == (code, False), stderr
        assert Job.open(job).status == "halted"
        assert len(rows_in(out)) == site.targets.total(), "what was under way came to its end"
        assert main(["resume", str(job), "--per-host", "16", "--progress", "none"]) == 0
        assert set(site.targets.values()) == {1}
    assert len(rows_in(out)) == 401


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
def test_a_signal_says_how_a_crawl_without_a_job_goes_on(tmp_path: Path) -> None:
    with serving(Site(400, 0.05)) as site, start(f"{site.url}/", "--out", os.devnull) as process:
        wait_for(site, 40, process)
        process.send_signal(signal.SIGTERM)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 143
    folder = stderr.split()[-1]
    assert "to resume: python -m examples.scraper resume " in stderr
    assert (Path(folder) / "job.json").exists()


# -- stderr ----------------------------------------------------------------------------------------


def test_with_json_a_warning_is_json_too(tmp_path: Path) -> None:
    big = links(*(f"/page-with-a-fairly-long-name/{n}" for n in range(30_000)))

    def give(target: str, _: Head) -> bytes:
        return big if target == "/" else NOT_FOUND

    flags = ["--out", str(tmp_path / "rows"), "--max-pages", "3"]
    with serving(give) as site, start(f"{site.url}/", *flags, progress="json") as process:
        _, stderr = process.communicate()
    lines = [json.loads(line) for line in stderr.splitlines()]
    assert [line for line in lines if "warning" in line]
    assert lines[-1]["waiting"] == 29_998
