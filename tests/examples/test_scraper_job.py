"""Jobs: killed and resumed, interrupted, looked at from outside; no page lost, none twice."""

import json
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random

import pytest

from benchmarks._nginx import Served
from examples.scraper.command.cli import main

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.services, pytest.mark.timeout(180)]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def site(nginx: dict[str, Served]) -> Served:
    nginx["postgres"].forget()
    return nginx["postgres"]


def start(*args: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "examples.scraper", *args, "--progress", "none"]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for(path: Path, count: int, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 60
    while lines(path) < count and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)


def kill_again_and_again(site: Served, tmp_path: Path, *, kills: int, pages: int) -> None:
    """Crawl until the process is killed, then again; judge what is left in the end."""
    job, out, chance = tmp_path / "job", tmp_path / "rows.jsonl", Random(kills)
    flags = ["--job", str(job), "--resume", "--out", str(out), "--concurrency", "8"]
    flags += [] if pages == 1144 else ["--max-pages", str(pages)]
    for _ in range(kills):
        share = pages // (kills + 1)
        process = start(f"{site.url}/index.html", *flags)
        wait_for(out, lines(out) + chance.randint(share // 2, share), process)
        assert process.poll() is None
        process.kill()
        process.communicate()
        # A process may die in the middle of a line as well.
        with out.open("ab") as file:
            file.write(b'{"url": "http://torn')
    with start(f"{site.url}/index.html", *flags) as last:
        assert last.wait() == (0 if pages == 1144 else 4)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len({row["url"] for row in rows}) == len(rows) == pages
    assert all(row["status"] == 200 for row in rows)
    asked = Counter(one.path for one in site.asked() if one.path != "/robots.txt")
    assert set(asked) >= {row["url"].removeprefix(site.url) for row in rows}
    twice = asked.total() - len(asked)
    assert twice <= kills * 8, "what was in flight when a process died, its outcome not saved yet"


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGKILL")
def test_a_crawl_that_is_killed_goes_on_where_it_was(site: Served, tmp_path: Path) -> None:
    kill_again_and_again(site, tmp_path, kills=2, pages=300)


@pytest.mark.slow
def test_a_whole_site_in_spite_of_five_kills(site: Served, tmp_path: Path) -> None:
    kill_again_and_again(site, tmp_path, kills=5, pages=1144)


def test_the_first_ctrl_c_lets_what_is_under_way_come_to_its_end(
    site: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job, out = tmp_path / "job", tmp_path / "rows.csv"
    flags = ["--job", str(job), "-o", str(out), "-f", "csv", "--rate", "100/s"]
    process = start(f"{site.url}/index.html", *flags)
    wait_for(out, 40, process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, "Traceback" in stderr) == (130, False)
    asked = Counter(one.path for one in site.asked() if one.path != "/robots.txt")
    assert (
        asked.total() == lines(out) - 1 >= 39
    )  # the first line names the columns; nothing was fetched in vain

    assert main(["status", str(job)]) == 0
    assert f"interrupted: {asked.total()} done, 0 failed, " in capsys.readouterr().out
    assert (
        main(["resume", str(job), "--deadline", "0.5s", "--rate", "50", "--progress", "none"]) == 4
    )
    some = lines(out)
    assert asked.total() + 1 < some < 200
    assert main(["export", str(job), "-f", "csv"]) == 0
    assert capsys.readouterr().out.encode() == out.read_bytes()
    assert main(["export", str(job), "-f", "sqlite", "-o", str(tmp_path / "rows.db")]) == 0
    with sqlite3.connect(tmp_path / "rows.db") as sql:
        assert sql.execute("SELECT count(*) FROM pages").fetchone() == (some - 1,)
    sql.close()


def test_a_job_that_is_done_is_done(
    site: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job, out = str(tmp_path / "job"), tmp_path / "rows.jsonl"
    flags = ["--job", job, "--out", str(out), "--progress", "none"]
    assert main([f"{site.url}/preface.html", "--no-links", *flags]) == 0
    first = out.read_bytes()
    asked = len(site.asked())
    out.unlink()
    assert main(["resume", job, "--progress", "none"]) == 0
    assert (out.read_bytes(), len(site.asked())) == (first, asked)
    capsys.readouterr()
    assert main([f"{site.url}/index.html", *flags]) == 2
    assert "holds a job already" in capsys.readouterr().err
    assert main(["status", job]) == 0
    assert capsys.readouterr().out.startswith("finished: 1 done, 0 failed, 0 waiting\n")


def test_what_got_no_answer_is_tried_again_when_a_job_goes_on(site: Served, tmp_path: Path) -> None:
    job, out = str(tmp_path / "job"), tmp_path / "rows.jsonl"
    urls = ["http://127.0.0.1:1/", f"{site.url}/preface.html", f"{site.url}/missing.html"]
    flags = ["--job", job, "--out", str(out), "--progress", "none"]
    flags += [
        "--retries",
        "0",
        "--rate",
        "1/h",
        "--deadline",
        "1s",
        "--ignore-robots",
        "--no-links",
    ]
    assert main([*urls, *flags]) == 4
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["error"] and row["error"]["kind"] for row in rows] == ["connect", None]
    assert main(["resume", job, "--rate", "10/s", "--progress", "none"]) == 3
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    found = {row["url"]: row["error"] and row["error"]["kind"] for row in rows}
    assert len(rows) == len(found)
    assert [found[url] for url in urls] == ["connect", None, "http"]


def test_one_process_at_a_time_works_on_a_job(
    site: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job, out = tmp_path / "job", tmp_path / "rows.jsonl"
    flags = ["--job", str(job), "--out", str(out), "--rate", "20/s"]
    with start(f"{site.url}/index.html", *flags) as process:
        wait_for(out, 3, process)
        assert main(["status", str(job)]) == 0
        assert f"claimed by process {process.pid} on " in capsys.readouterr().out
        assert main(["resume", str(job), "--progress", "none"]) == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: process {process.pid} on ")
        process.kill()


def test_a_folder_without_a_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("resume", "status", "export"):
        assert main([command, str(tmp_path)]) == 2
        assert "holds no job" in capsys.readouterr().err
