"""The command `shoal runs`: lists, shows and deletes what is in a store."""

from __future__ import annotations

import importlib
import json
import signal
import sqlite3
import subprocess
import sys
import time
import tomllib
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import dedent
from typing import Any, cast
from urllib.parse import urlencode

import anyio
import pytest
from psycopg.conninfo import conninfo_to_dict

import shoal
from shoal import Application, Context, Graph, SQLiteStore, action, fan_out
from shoal.__main__ import main
from shoal.stores._protocol import NullStore, Store
from tests.stores.postgres import PostgresServer


@dataclass
class Page:
    """A type that the command doesn't know."""

    url: str


@action(reads=["page"], writes=["title"])
async def fetch(page: Page) -> str:
    if page.url == "b":
        raise LookupError("no such\tpage\nat all")
    return page.url.upper()


@action(writes=["out"])
async def stop(context: Context) -> str:
    raise OSError("the disk is on fire")


crawl = Application(
    fan_out(
        fetch, over="pages", item="page", key="url", into="titles", take="title", on_error="ignore"
    ),
    name="crawl",
    version="2",
)
failing = Application(Graph.chain(stop, name="failing"))


async def fill_with_one(store: Store) -> None:
    async with shoal.Runtime(store=store) as runtime:
        await runtime.run(crawl, {"pages": [Page("a"), Page("b"), Page("c")]}, id="good")


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A store with a run that has succeeded, one that has failed, and one that was left behind."""
    path = tmp_path_factory.mktemp("store") / "runs.db"
    store = SQLiteStore(path, synchronous="normal")

    async def fill() -> None:
        async with shoal.Runtime(store=store) as runtime, store:
            await fill_with_one(store)
            for run_id in ("bad", "left"):
                with pytest.raises(OSError, match="fire"):
                    await runtime.run(failing, id=run_id)

    anyio.run(fill)
    change(path, "UPDATE runs SET status = NULL WHERE key = 'left'")
    change(path, "UPDATE roots SET ended_at = NULL, error = NULL WHERE run = 6")
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path, filled: bytes) -> Path:
    path = tmp_path / "runs.db"
    path.write_bytes(filled)
    return path


def change(path: Path, statement: str, *values: object) -> None:
    """Change what is in a file."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement, values)
        connection.commit()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Write to a terminal."""
    # The class, because the test has other objects of it than its fixtures have.
    kind = cast("Any", type(sys.stdout))
    monkeypatch.setattr(kind, "isatty", is_one, raising=False)
    monkeypatch.setenv("COLUMNS", "100")


def is_one(_: object) -> bool:
    return True


def line(verb: str, store: object, *more: object) -> list[str]:
    """Return a command line; ``store`` is a file or a URL."""
    named = "--postgres" if str(store).startswith("postgres") else "--db"
    return [verb, named, str(store), *map(str, more)]


def said(
    capsys: pytest.CaptureFixture[str], verb: str, store: object, *more: object, code: int = 0
) -> str:
    """Do it, and return what it wrote: to whoever asked, or what was wrong."""
    assert main(line(verb, store, *more)) == code
    out, err = capsys.readouterr()
    if code:
        assert not out
        return err
    return out


# -- list ------------------------------------------------------------------------------------------


def test_runs_are_listed_for_people(path: Path, terminal: None, capsys: Any):
    title, left, bad, good = said(capsys, "runs", path).splitlines()
    assert title.split() == ["RUN", "APPLICATION", "STATUS", "BEGAN", "TOOK"]
    assert left.split()[:3] == ["left", "failing", "lost"]
    assert bad.split()[:3] == ["bad", "failing", "failed"]
    assert bad.endswith("OSError: the disk is on fire")
    assert good.split()[:3] == ["good", "crawl", "succeeded"]
    assert good.split()[-1].endswith("s"), "it says how long it took"
    assert title.index("STATUS") == good.index("succeeded") == bad.index("failed")


def test_what_is_too_long_for_a_line_is_shortened(
    path: Path, terminal: None, capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    change(path, "UPDATE roots SET error = ? WHERE run = 5", f"Oh: {'x' * 500}")
    lines = said(capsys, "runs", path, "--status", "failed").splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[-1].endswith("xxx...")
    monkeypatch.undo()
    assert "x" * 500 in said(capsys, "runs", path)


def test_runs_are_listed_for_programs(path: Path, capsys: Any):
    lines = [line.split("\t") for line in said(capsys, "runs", path).splitlines()]
    assert [line[:4] for line in lines] == [
        ["left", "failing", "1", "lost"],
        ["bad", "failing", "1", "failed"],
        ["good", "crawl", "2", "succeeded"],
    ]
    assert [line[6:] for line in lines] == [
        ["", "", "", "normal"],
        ["", "OSError: the disk is on fire", "", "normal"],
        ["", "", "", "normal"],
    ]
    began, ended = lines[1][4:6]
    assert began <= ended
    assert ended.endswith("+00:00")


def test_runs_are_listed_as_json(path: Path, capsys: Any):
    found = [json.loads(line) for line in said(capsys, "runs", path, "--json").splitlines()]
    assert [run["run_id"] for run in found] == ["left", "bad", "good"]
    assert found[0]["ended_at"] is None
    assert found[1]["error"] == "OSError: the disk is on fire"
    assert set(found[0]) == {*shoal.stores.RunSummary._fields, "is_lost"}
    assert [(run["status"], run["is_lost"]) for run in found] == [
        ("lost", True),
        ("failed", False),
        ("succeeded", False),
    ]


def test_a_lost_run_is_lost_in_every_form(path: Path, capsys: Any):
    differ = said(capsys, "diff", path, "left", "left")
    assert differ == "status\tlost\tlost\n"
    assert json.loads(said(capsys, "diff", path, "left", "left", "--json"))["first"]["status"] == (
        "lost"
    )
    assert json.loads(said(capsys, "show", path, "left", "--json"))["status"] == "lost"
    shown = said(capsys, "show", path, "left")
    assert "status\tlost\n" in shown
    assert not [line for line in shown.splitlines() if line.startswith("children\trunning")]
    ids = [line.split("\t")[0] for line in said(capsys, "runs", path).splitlines()]
    assert ids == ["left", "bad", "good"]
    lost = [json.loads(said(capsys, "runs", path, "--status", "lost", "--json"))]
    assert [run["run_id"] for run in lost] == ["left"]
    assert not said(capsys, "runs", path, "--status", "running")
    change(path, "UPDATE claims SET execution = 'x', boot = 'other', seen_at = ?", time.time())
    assert not said(capsys, "runs", path, "--status", "lost")
    assert said(capsys, "runs", path, "--status", "running").startswith("left\t")


def test_lost_runs_have_pages(path: Path, terminal: None, capsys: Any):
    change(path, "UPDATE runs SET status = NULL WHERE key IN ('bad', 'good')")
    change(path, "UPDATE roots SET ended_at = NULL, error = NULL")
    assert main(line("runs", path, "--status", "lost", "--limit", "2")) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["RUN", "left", "bad"]
    assert err == "there are more runs: --after bad, or a higher --limit\n"
    assert main(line("runs", path, "--status", "lost", "--after", "bad")) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["RUN", "good"]
    assert not err


def test_a_list_has_pages(path: Path, terminal: None, capsys: Any):
    assert main(line("runs", path, "--limit", "2")) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["RUN", "left", "bad"]
    assert err == "there are more runs: --after bad, or a higher --limit\n"
    assert main(line("runs", path, "--after", "bad")) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["RUN", "good"]
    assert not err
    wrong = said(capsys, "runs", path, "--after", "nowhere", code=1)
    assert wrong == f"shoal: there is no run 'nowhere' in {path}\n"


def test_a_list_of_nothing_says_so(path: Path, terminal: None, capsys: Any):
    assert main(line("runs", path, "--status", "halted")) == 0
    assert capsys.readouterr() == ("", "there are no runs\n")


# -- show ------------------------------------------------------------------------------------------


def test_a_run_is_shown_to_people(path: Path, terminal: None, capsys: Any):
    text = said(capsys, "show", path, "good")
    about, failures = text.split("\n\n")
    lines = {line[:13].rstrip(): line[13:] for line in about.splitlines()}
    assert list(lines) == ["run", "application", "status", "began", "ended", "children", "headline"]
    assert lines["run"] == "good"
    assert lines["application"] == "crawl, version 2"
    assert lines["status"] == "succeeded"
    assert lines["children"] == "1 failed, 2 succeeded"
    assert failures.splitlines() == [
        "failures",
        "1  titles  LookupError: no such page at all, as 'b'",
    ]
    assert "OSError: the disk is on fire" in said(capsys, "show", path, "bad")
    assert "lost: it has no end, and no process executes it" in said(capsys, "show", path, "left")
    change(path, "UPDATE runs SET status = 'halted' WHERE key = 'left'")
    assert "halted: it waits for answers" in said(capsys, "show", path, "left")


def test_a_loser_of_a_race_is_no_failure(tmp_path: Path, terminal: None, capsys: Any):
    @shoal.action(writes=["a"])
    async def answer(text: str) -> str:
        await anyio.sleep(0.001 * len(text))
        if not text:
            raise ConnectionError("gone")
        return text

    quick, slow = answer.bind(name="quick", text=""), answer.bind(name="slow", text="yes")
    path = tmp_path / "runs.db"
    app = shoal.Application(shoal.race(quick, slow, into="a"), store=SQLiteStore(path))
    app.run_sync(id="won")
    text = said(capsys, "show", path, "won")
    assert "children     1 failed, 1 succeeded (1 lost a race)\n" in text
    assert "failures" not in text
    shown = json.loads(said(capsys, "show", path, "won", "--json"))
    assert [child["lost"] for child in shown["failures"]] == [True]


def test_a_run_is_shown_to_programs(path: Path, capsys: Any):
    lines = [line.split("\t") for line in said(capsys, "show", path, "good").splitlines()]
    assert ["run_id", "good"] in lines
    assert ["children", "failed", "1"] in lines
    (failure,) = [line for line in lines if line[0] == "failure"]
    assert failure[1:7] == [
        *("titles", "0", "fetch", "b", "1"),
        "LookupError: no such\\tpage\\nat all",
    ]
    shown = json.loads(said(capsys, "show", path, "good", "--json"))
    assert shown["children"] == {"failed": 1, "succeeded": 2}
    assert [child["key"] for child in shown["failures"]] == ["b"]


def test_a_run_that_is_not_there_is_no_run(path: Path, capsys: Any):
    wrong = said(capsys, "show", path, "nowhere", code=1)
    assert wrong == f"shoal: there is no run 'nowhere' in {path}\n"


def test_the_process_that_executes_a_run_is_shown(path: Path, terminal: None, capsys: Any):
    change(path, "UPDATE claims SET execution = 'x', boot = 'other', seen_at = ?", time.time())
    assert "executed by  process" in said(capsys, "show", path, "left")
    assert "running" in said(capsys, "runs", path)


# -- whatever has been kept ------------------------------------------------------------------------

HALF = "caf\udce9"  # a name that is no UTF-8, as os.listdir() gives it
CONTROL = "\x1b[31m\x85\x7f\u202e\n\t"
CHINESE = "爬虫"


@action(reads=["name"], writes=["size"])
async def measure(name: str) -> int:
    raise FileNotFoundError(2, "gone\x1b[2J\nfor good", name)


measuring = fan_out(
    measure,
    over="names",
    item="name",
    key=lambda name: 10**5000 if name == "vast" else name,
    into="sizes",
    on_error="collect",
)


def fill_with_odd_ones(path: Path, *run_ids: str) -> None:
    app = Application(measuring, name="measure", store=SQLiteStore(path, synchronous="normal"))
    for run_id in run_ids:
        app.run_sync({"names": [HALF, CONTROL, "vast"]}, id=run_id)


def test_odd_ids_are_escaped_for_programs(tmp_path: Path, capsys: Any):
    path = tmp_path / "odd.db"
    fill_with_odd_ones(path, "older", HALF, CONTROL, "a\\n", CHINESE)
    lines = said(capsys, "runs", path).splitlines()
    assert [line.split("\t")[0] for line in lines] == [
        CHINESE,
        r"a\\n",
        r"\x1b[31m\x85\x7f\u202e\n\t",
        r"caf\udce9",
        "older",
    ]
    listed = [json.loads(line) for line in said(capsys, "runs", path, "--json").splitlines()]
    assert [run["run_id"] for run in listed] == [CHINESE, "a\\n", CONTROL, HALF, "older"]
    assert said(capsys, "runs", path, "--after", HALF).startswith("older\t")


def test_odd_keys_and_errors_are_escaped_for_programs(tmp_path: Path, capsys: Any):
    path = tmp_path / "odd.db"
    fill_with_odd_ones(path, "run")
    lines = [line.split("\t") for line in said(capsys, "show", path, "run").splitlines()]
    failures = {line[4]: line[6] for line in lines if line[0] == "failure"}
    assert list(failures) == [r"caf\udce9", r"\x1b[31m\x85\x7f\u202e\n\t", f"{10**5000:#x}"]
    assert failures[r"caf\udce9"].endswith(r"gone\x1b[2J\nfor good: 'caf\\udce9'")
    text = said(capsys, "show", path, "run", "--json")
    assert text.isascii()
    shown = json.loads(text)
    assert [one["key"] for one in shown["failures"]] == [HALF, CONTROL, f"{10**5000:#x}"]


def test_nothing_that_was_kept_acts_on_a_terminal(tmp_path: Path, terminal: None, capsys: Any):
    path = tmp_path / "odd.db"
    fill_with_odd_ones(path, CONTROL, HALF)
    text = said(capsys, "runs", path) + said(capsys, "show", path, CONTROL)
    assert text.replace("\n", "").isprintable()
    assert [line.split()[0] for line in text.splitlines()[:3]] == [
        "RUN",
        r"caf\udce9",
        r"\x1b[31m\x85\x7f\u202e\n\t",
    ]
    assert "3  sizes  FileNotFoundError: [Errno 2] gone" in text
    assert main(line("runs", path, "--limit", "1")) == 0
    assert r"--after caf\udce9," in capsys.readouterr().err
    wrong = said(capsys, "show", path, "\x1b[31m", code=1)
    assert wrong.startswith(f"shoal: there is no run '\\x1b[31m' in {path}; did you mean '")
    assert wrong.removesuffix("\n").isprintable()


def test_an_error_keeps_its_lines(path: Path, terminal: None, capsys: Any):
    change(path, "UPDATE roots SET error = ? WHERE run = 5", "E: one\n two\r\x1b[31m")
    lines = said(capsys, "show", path, "bad").splitlines()
    at = lines.index("error        E: one")
    assert lines[at + 1] == r"              two\r\x1b[31m"


def test_columns_are_as_wide_as_a_terminal_shows_them(tmp_path: Path, terminal: None, capsys: Any):
    path = tmp_path / "odd.db"
    fill_with_odd_ones(path, "plain", CHINESE, "e\u0301te\u0301")
    title, accents, chinese, plain = said(capsys, "runs", path).splitlines()
    at = title.index("APPLICATION")
    assert plain.index("measure") == at
    assert chinese.index("measure") == at - 2, "each of two takes up two columns"
    assert accents.index("measure") == at + 2, "an accent takes up none"


def test_default_ids_fit_a_terminal_of_80_columns(
    path: Path, terminal: None, capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "80")
    ids = ("f" * 32, "0" * 32, "9" * 32)
    for was, run_id in zip(("good", "bad", "left"), ids, strict=True):
        change(path, "UPDATE runs SET key = ? WHERE key = ?", run_id, was)
    change(path, "UPDATE roots SET error = ? WHERE run = 5", f"Oh: {'爬' * 500}")
    change(path, "UPDATE roots SET began_at = ended_at - 86400.0 * 367 WHERE run <> 6")
    change(path, "UPDATE roots SET application = ?", "a-name-that-is-too-long-for-a-column")
    lines = said(capsys, "runs", path).splitlines()
    assert [line.split()[0] for line in lines] == ["RUN", ids[2], ids[1], "Oh:", ids[0]]
    assert all(runs_width(line) <= 80 for line in lines)
    assert lines[3].endswith("爬...")
    assert "  a-name-that-...  lost" in lines[1]
    assert lines[4].split()[3].count("-") == 2, "the year, for it is another one"
    assert lines[1].split()[3].count("-") == 1, "no year, but the time of the day"


def runs_width(line: str) -> int:
    return sum(2 if character == "爬" else 1 for character in line)


def test_what_an_encoding_lacks_is_escaped(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    path, out = tmp_path / "odd.db", tmp_path / "out"
    fill_with_odd_ones(path, "café", CHINESE)
    for more in ((), ("--json",)):
        with monkeypatch.context() as patch, out.open("w", encoding="ascii") as stdout:
            patch.setattr(sys, "stdout", stdout)
            assert main(line("runs", path, *more)) == 0
        text = out.read_text("ascii")
        assert r"\u722c\u866b" in text
        assert r"caf\u00e9" in text or r"caf\xe9" in text
    with monkeypatch.context() as patch, out.open("w", encoding="ascii") as stdout:
        patch.setattr(sys, "stdout", stdout)
        patch.setattr(sys.stdout, "isatty", lambda: True)
        assert main(line("runs", path)) == 0
    title, chinese, cafe = out.read_text("ascii").splitlines()
    assert title.index("APPLICATION") == chinese.index("measure") == cafe.index("measure")


# -- prune -----------------------------------------------------------------------------------------


def test_old_runs_are_deleted(path: Path, capsys: Any):
    assert said(capsys, "prune", path, "--older-than", "1h") == "0\n"
    assert said(capsys, "prune", path, "--older-than", "0s", "--dry-run") == "2\n"
    assert len(said(capsys, "runs", path).splitlines()) == 3
    pruned = said(capsys, "prune", path, "--older-than", "0s", "--status", "failed", "--json")
    assert json.loads(pruned) == {"runs": 1, "deleted": True}
    assert said(capsys, "prune", path, "--older-than", "0s") == "1\n"
    assert said(capsys, "runs", path).startswith("left\t")


def test_the_command_prints_what_was_deleted(path: Path, terminal: None, capsys: Any):
    old = ("prune", path, "--older-than", "0s")
    assert said(capsys, *old, "--dry-run") == "2 runs would be deleted\n"
    assert said(capsys, *old, "--status", "running", "--status", "halted") == "deleted 1 run\n"
    assert said(capsys, *old) == "deleted 2 runs\n"


@pytest.mark.parametrize(
    ("text", "days"),
    [("86400s", 1), ("30d", 30), ("2w", 14), ("1d12h", 1.5), ("1w 12h", 7.5), ("90m", 1 / 16)],
)
def test_lengths_of_time(
    path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, text: str, days: float
):
    asked: list[float] = []

    async def prune(store: SQLiteStore, older_than: float, *more: Any, **options: Any) -> int:
        asked.append(older_than)
        return 0

    monkeypatch.setattr(SQLiteStore, "prune", prune)
    said(capsys, "prune", path, "--older-than", text)
    assert asked == [days * 86400]


@pytest.mark.parametrize("text", ["30", "d", "-1d", "1y", "1d then", "", "soon"])
def test_what_is_no_length_of_time_is_refused(path: Path, capsys: Any, text: str):
    with pytest.raises(SystemExit) as exit_:
        main(line("prune", path, f"--older-than={text}"))
    assert exit_.value.code == 2
    assert "is not a length of time: write 90s, 15m, 12h, 30d or 1w" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [["--limit", "0"], ["--limit", "x"], ["--status", "odd"]])
def test_wrong_options_are_refused(path: Path, capsys: Any, wrong: list[str]):
    with pytest.raises(SystemExit) as exit_:
        main(line("runs", path, *wrong))
    assert exit_.value.code == 2


def test_how_old_has_to_be_said(path: Path, capsys: Any):
    with pytest.raises(SystemExit):
        main(line("prune", path))
    assert "--older-than" in capsys.readouterr().err


# -- no store --------------------------------------------------------------------------------------


def refusals(path: Path, capsys: Any) -> set[str]:
    """Ask for all there is, and return what is wrong; nothing changes."""
    before = sorted((each, each.read_bytes()) for each in path.parent.iterdir() if each.is_file())
    found = {
        said(capsys, verb, path, *more, code=2)
        for verb, *more in (
            ("runs",),
            ("show", "x"),
            ("events", "x"),
            ("explain", "x"),
            ("diff", "x", "y"),
            ("export", "x"),
            ("prune", "--older-than", "1d"),
            ("prune", "--older-than", "1d", "--dry-run"),
        )
    }
    after = sorted((each, each.read_bytes()) for each in path.parent.iterdir() if each.is_file())
    assert before == after
    return found


def test_a_file_that_is_not_there(tmp_path: Path, capsys: Any):
    (why,) = refusals(tmp_path / "runs.db", capsys)
    assert why.startswith(f"shoal: there is no file {tmp_path / 'runs.db'}: give the file of an")


def test_a_directory(tmp_path: Path, capsys: Any):
    (why,) = refusals(tmp_path, capsys)
    assert "is not a file" in why


def test_an_empty_file(tmp_path: Path, capsys: Any):
    (tmp_path / "runs.db").touch()
    (why,) = refusals(tmp_path / "runs.db", capsys)
    assert "is empty: no run was ever saved in it" in why


def test_a_file_of_something_else(tmp_path: Path, capsys: Any):
    (tmp_path / "runs.db").write_text("title,author\n" * 1000)
    (why,) = refusals(tmp_path / "runs.db", capsys)
    assert "is not an SQLite database; it was left unchanged" in why


def test_a_database_of_something_else(tmp_path: Path, capsys: Any):
    change(tmp_path / "runs.db", "CREATE TABLE albums (title)")
    (why,) = refusals(tmp_path / "runs.db", capsys)
    assert "is a database, but not a shoal store (tables: albums)" in why


def test_a_file_of_a_newer_shoal(path: Path, capsys: Any):
    change(path, "PRAGMA user_version = 99")
    (why,) = refusals(path, capsys)
    assert "was written by a newer shoal" in why


def test_a_damaged_file(path: Path, capsys: Any):
    damaged = bytearray(path.read_bytes())
    for at in range(4096, len(damaged), 4096):
        damaged[at : at + 100] = b"\xff" * 100
    path.write_bytes(damaged)
    (why,) = refusals(path, capsys)
    assert "is damaged" in why


def given(store: Store, _: str) -> Store:
    """Stand in for a class of stores."""
    return store


def test_what_is_not_installed(path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise ModuleNotFoundError("No module named 'msgspec'", name="msgspec")

    monkeypatch.setattr(shoal, "SQLiteStore", broken, raising=False)
    why = said(capsys, "runs", path, code=2)
    assert "SQLiteStore needs a package that isn't installed (No module named 'msgspec')" in why
    assert "pip install 'shoal[sqlite]'" in why
    monkeypatch.setattr(shoal, "PostgresStore", broken, raising=False)
    url = "postgresql://me:secret@host/runs"
    why = said(capsys, "runs", url, code=2)
    assert "pip install 'shoal[postgres]'" in why
    assert "secret" not in why


def test_what_to_install_is_said_once(path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "msgspec", None)
    assert said(capsys, "runs", path, code=2) == (
        "shoal: saving values needs msgspec, which isn't installed: pip install 'shoal[sqlite]'\n"
    )


def test_a_url_of_something_else(capsys: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SHOAL_STORE", "mysql://me:secret@host/runs")
    assert main(["runs"]) == 2
    why = capsys.readouterr().err
    assert why.startswith("shoal: no store has a mysql:// URL: give the file of")
    assert "secret" not in why


def test_a_password_is_not_written(capsys: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shoal, "PostgresStore", partial(given, shoal.MemoryStore()), raising=False)
    why = said(capsys, "show", "postgres://me:sec%40ret@host/runs", "x", code=1)
    assert why == "shoal: there is no run 'x' in postgres://host/runs\n"


@pytest.mark.services
def test_runs_in_postgres(postgres: PostgresServer, capsys: Any):
    told = conninfo_to_dict(postgres.address())
    address = f"postgresql:///{told.pop('dbname')}?{urlencode(told)}"
    schema = postgres.new_schema()
    where = (address, "--schema", schema)
    assert not said(capsys, "runs", *where)
    assert said(capsys, "prune", *where, "--older-than", "0s") == "0\n"
    store = shoal.PostgresStore(address, schema=schema)
    anyio.run(fill_with_one, store)
    assert said(capsys, "runs", *where).startswith("good\tcrawl\t2\tsucceeded\t")
    shown = json.loads(said(capsys, "show", *where, "good", "--json"))
    assert shown["children"] == {"failed": 1, "succeeded": 2}
    assert shown["failures"][0]["error"] == "LookupError: no such\tpage\nat all"
    assert said(capsys, "prune", *where, "--older-than", "0s") == "1\n"
    assert not said(capsys, "runs", *where)


def test_a_schema_is_of_postgres_alone(path: Path, capsys: Any):
    why = said(capsys, "runs", path, "--schema", "shoal", code=2)
    assert why == f"shoal: --schema is for a PostgresStore, but {path} is a file\n"


def test_a_store_that_can_not(path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shoal, "SQLiteStore", partial(given, NullStore()), raising=False)
    assert said(capsys, "runs", path, code=2) == (
        "shoal: NullStore can't list its runs (it doesn't implement shoal.stores.Browses)\n"
    )
    why = said(capsys, "prune", path, "--older-than", "1d", code=2)
    assert "can't delete old runs" in why


# -- the command itself ----------------------------------------------------------------------------


def test_an_interruption_has_a_code_of_its_own(
    path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    async def interrupted(*_: object, **__: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(SQLiteStore, "prune", interrupted)
    assert said(capsys, "prune", path, "--older-than", "0s", code=130) == "shoal: interrupted\n"


def test_it_is_installed_as_shoal():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    (module, _, function) = project["project"]["scripts"]["shoal"].partition(":")
    assert getattr(importlib.import_module(module), function) is main


def test_help_says_what_there_is(capsys: Any):
    for arguments, words in (
        (["--help"], ["runs", "show", "events", "explain", "diff", "export", "prune"]),
        (["runs", "--help"], ["--db FILE", "--postgres URL", "SHOAL_STORE", "--application"]),
        (["prune", "--help"], ["--older-than", "--dry-run", "succeeded, failed"]),
        (["--version"], [shoal.__version__]),
    ):
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == 0
        text = capsys.readouterr().out
        assert all(word in text for word in words)


@pytest.mark.slow
def test_it_ends_quietly_where_nobody_reads(path: Path):
    command = [sys.executable, "-m", "shoal", *line("runs", path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_output_that_can_not_be_written_has_a_code_of_its_own(
    path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
):
    for buffering in (1, -1):  # it is met by a line, or in the end
        with Path("/dev/full").open("w", buffering) as full, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", full)
            assert main(line("runs", path, *more)) == 3
        assert capsys.readouterr().err == (
            "shoal: the output can't be written: No space left on device\n"
        )


SLOW_PRUNE = """
    import sys, time
    import shoal.stores._sql.store as durable
    from shoal.stores._sqlite.database import SQLiteDatabase
    from shoal.__main__ import main

    durable.SOME, durable.PAUSE = 1, 0.01
    sweep = SQLiteDatabase.sweep
    def told(database, limit):
        print("sweeping", flush=True)
        time.sleep(0.01)
        sweep(database, limit)
        return True
    SQLiteDatabase.sweep = told
    sys.exit(main(["prune", "--db", sys.argv[1], "--older-than", "0s"]))
"""


@pytest.mark.slow
def test_interrupted_it_leaves_a_whole_store(path: Path, capsys: Any):
    command = [sys.executable, "-c", dedent(SLOW_PRUNE), str(path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "sweeping\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert err == "shoal: interrupted\n"
    assert process.returncode == 130
    assert said(capsys, "runs", path).split("\t")[0] == "left"
    assert not list(path.parent.glob("*-wal"))
