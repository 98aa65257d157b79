"""The commands that look into runs: show a child, events, explain, diff, export."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from shoal import Application, Context, Graph, RunPath, Runtime, SQLiteStore, action, fan_out
from shoal.__main__ import main
from shoal._events.paths import parse_path, path_text
from shoal._events.report_text import report_text
from shoal.watch import LimitUse, LiveRun, LiveStep, Report


@action(reads=["n"], writes=["square"])
async def square(n: int) -> int:
    if n % 4 == 3:
        raise LookupError(f"no square of {n}")
    return n * n


@action(reads=["squares"], writes=["total"])
async def add(squares: dict[str, int]) -> int:
    return sum(squares.values())


@action(writes=["total"])
async def give_up() -> int:
    return -1


numbers = fan_out(
    square, over="numbers", item="n", key=str, into="squares", on_error="ignore", name="numbers"
)
groups = fan_out(
    Graph.chain(numbers, name="inner"),
    over="groups",
    item="numbers",
    key=lambda group: str(group[0]),  # pyright: ignore[reportUnknownLambdaType]
    take="squares",
    into="all",
    name="outer",
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two runs that took different ways, and one whose children have children."""
    path = tmp_path_factory.mktemp("store") / "runs.db"
    store = SQLiteStore(path, synchronous="normal")
    first = Application(Graph.chain(numbers, add), name="squares", store=store, watch=False)
    first.run_sync({"numbers": [1, 2, 3]}, id="a")
    second = Application(Graph.chain(numbers, give_up), name="squares", store=store, watch=False)
    second.run_sync({"numbers": [1, 3, 5, 6]}, id="b")
    Application(groups, name="groups", store=store, watch=False).run_sync(
        {"groups": [[0, 1], [2, 3]]}, id="nested"
    )
    return path


@pytest.fixture(autouse=True)
def named_store(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is named by the environment."""
    monkeypatch.setenv("SHOAL_STORE", str(file))


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Write to a terminal."""
    kind = cast("Any", type(sys.stdout))
    monkeypatch.setattr(kind, "isatty", is_one, raising=False)
    monkeypatch.setenv("COLUMNS", "100")


def is_one(_: object) -> bool:
    return True


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(arguments) == code
    out, err = capsys.readouterr()
    return err if code else out


def fields(text: str) -> list[list[str]]:
    return [line.split("\t") for line in text.splitlines()]


# -- naming the store ------------------------------------------------------------------------------


def test_the_store_has_to_be_named(capsys: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SHOAL_STORE")
    assert said(capsys, "runs", code=2) == (
        "shoal: which store? Give --db FILE or --postgres URL, or set SHOAL_STORE to one of them\n"
    )
    why = said(capsys, "runs", "--db", "postgresql://me:secret@host/runs", code=2)
    assert why == ("shoal: --db takes a file: give the URL of a PostgresStore with --postgres\n")
    assert "secret" not in said(capsys, "runs", "--postgres", "mysql://me:secret@host/x", code=2)


def test_the_former_command_lines_are_translated(file: Path, capsys: Any):
    why = said(capsys, "runs", "list", str(file), code=2)
    assert why == (
        f"shoal: `shoal runs list {file}` is now `shoal runs --db FILE|--postgres URL`\n"
    )
    assert "is now `shoal show ID --db" in said(capsys, "runs", "show", str(file), "a", code=2)
    with pytest.raises(SystemExit):
        main(["runs", "prune", str(file), "--older-than", "1d"])
    assert "--older-than" in capsys.readouterr().err


def test_runs_of_one_application(capsys: Any):
    lines = fields(said(capsys, "runs", "--application", "squares", "--limit", "1"))
    assert [line[0] for line in lines] == ["b"]
    lines = fields(said(capsys, "runs", "--application", "squares", "--after", "b"))
    assert [line[0] for line in lines] == ["a"]


# -- show ------------------------------------------------------------------------------------------


def test_a_child_is_shown_like_a_run(terminal: None, capsys: Any):
    text = said(capsys, "show", "nested/outer:0:inner:2")
    lines = dict(line.split(maxsplit=1) for line in text.split("\n\n")[0].splitlines())
    assert lines["run"] == "nested/outer:0:inner:2"
    assert lines["part"] == "of      nested"
    assert lines["status"] == "succeeded"
    assert lines["children"] == "1 failed, 1 succeeded"
    assert lines["headline"].startswith("succeeded")
    assert text.split("\n\n")[1].splitlines() == [
        "failures",
        "1  numbers  LookupError: no square of 3, as '3'",
    ]
    deepest = said(capsys, "show", "nested/outer:0:inner:2/numbers:0:square:3")
    assert "error        LookupError: no square of 3" in deepest


def test_a_child_is_shown_to_programs(capsys: Any):
    lines = fields(said(capsys, "show", "nested/outer:0:inner:2"))
    assert ["path", "nested/outer:0:inner:2"] in lines
    assert ["children", "failed", "1"] in lines
    assert ["step", "numbers", "0", "2", "", "1", "0", "0", "0"] in lines
    assert [
        *("failures", "1", "numbers", "LookupError", "no square of 3"),
        "nested/outer:0:inner:2/numbers:0:square:3",
    ] in lines
    shown = json.loads(said(capsys, "show", "nested/outer:0:inner:2", "--json"))
    assert shown["run_id"] == "nested"
    assert shown["headline"]["done"] == 2
    assert shown["failure_groups"][0]["count"] == 1
    assert shown["steps"][0]["counts"] == {"failed": 1, "succeeded": 1}


def test_children_are_listed_page_by_page(capsys: Any):
    assert not [line for line in fields(said(capsys, "show", "b")) if line[0] == "child"]
    pages, after = list[list[list[str]]](), ""
    while len(pages) < 3:
        more = ["--after", after] if after else []
        lines = fields(said(capsys, "show", "b", "--limit", "2", "--order", "position", *more))
        pages.append([line[1:4] for line in lines if line[0] == "child"])
        found = [line[1] for line in lines if line[0] == "after"]
        if not found:
            break
        [after] = found
    assert pages == [
        [["b/numbers:0:square:1", "succeeded", "0"], ["b/numbers:0:square:3", "failed", "1"]],
        [["b/numbers:0:square:5", "succeeded", "2"], ["b/numbers:0:square:6", "succeeded", "3"]],
    ]


def test_some_children_are_listed_for_programs(capsys: Any):
    shown = json.loads(said(capsys, "show", "b", "--status", "failed", "--json"))
    (row,) = shown["rows"]
    assert (row["path"], row["status"]) == ("b/numbers:0:square:3", "failed")
    assert row["error"] == "LookupError: no square of 3"
    assert shown["after"] is None
    assert "rows" not in json.loads(said(capsys, "show", "b", "--json"))
    shown = json.loads(said(capsys, "show", "b", "--key", "6", "--json"))
    assert [row["path"] for row in shown["rows"]] == ["b/numbers:0:square:6"]
    why = said(capsys, "show", "b", "--after", "no cursor", code=2)
    assert "begin with its first page" in why


def test_children_are_listed_for_people(terminal: None, capsys: Any):
    text = said(capsys, "show", "b", "--limit", "2")
    lines = text.split("\nchildren\n")[1].splitlines()
    assert len(lines) == 2
    assert lines[0].split()[:2] == ["'3'", "failed"]
    assert lines[0].endswith("numbers/square  LookupError: no square of 3")
    text = said(capsys, "show", "b", "--status", "halted")
    assert text.endswith("\nchildren\nno child is like that\n")


def test_what_a_step_and_a_full_limit_have_is_told_to_programs(capsys: Any):
    shown = json.loads(said(capsys, "show", "b", "--json"))
    (step,) = shown["steps"]
    assert (step["cancelled"], step["halted"], step["gone"]) == (0, 0, 0)
    assert shown["longest"] == []


def test_what_is_not_there_is_said(file: Path, capsys: Any):
    for command in (("show",), ("events",), ("explain",), ("diff", "a"), ("export",)):
        assert said(capsys, *command, "x", code=1) == f"shoal: there is no run 'x' in {file}\n"
    missing = said(capsys, "show", "a/numbers:0:square:9", code=1)
    assert missing == f"shoal: there is no child 'a/numbers:0:square:9' in {file}\n"
    with pytest.raises(SystemExit) as exit_:
        main(["show", "a/numbers"])
    assert exit_.value.code == 2
    assert "'numbers' is not step:visit:act:key" in capsys.readouterr().err


def test_a_mistyped_id_is_quoted_and_the_run_meant_is_named(file: Path, capsys: Any):
    for command in (("show",), ("events",), ("explain",), ("diff", "a"), ("export",)):
        why = said(capsys, *command, "nestd", code=1)
        assert why == f"shoal: there is no run 'nestd' in {file}; did you mean 'nested'?\n"
    why = said(capsys, "runs", "--after", "nestd", code=1)
    assert why == f"shoal: there is no run 'nestd' in {file}; did you mean 'nested'?\n"


def test_a_child_is_found_by_its_id(file: Path, capsys: Any):
    path = parse_path("nested/outer:0:inner:2/numbers:0:square:3")
    why = said(capsys, "show", path.id, code=1)
    assert why == (
        f"shoal: there is no run {path.id!r} in {file}; if it is a child's id, find the child in "
        f"its root run: shoal show RUN --child {path.id}\n"
    )
    shown = fields(said(capsys, "show", "nested", "--child", path.id))
    assert ["path", path_text(path)] in shown
    missing = said(capsys, "show", "a", "--child", path.id, code=1)
    assert missing == f"shoal: there is no descendant {path.id!r} of 'a' in {file}\n"


def test_a_run_under_way_is_shown_with_its_last_report(
    tmp_path: Path, terminal: None, capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("shoal.watch._overview._SILENT", -1.0)
    path = tmp_path / "now.db"
    root = RunPath(run_id="now")
    site = RunPath(parent=root, step="sites", act="site", key="s")
    child = RunPath(parent=site, step="pages", act="fetch", key="x")
    live = LiveRun(
        path=child,
        step="fetch",
        doing="backoff",
        since=1.0,
        age=61.0,
        attempt=2,
        attempts=3,
        next_in=1.5,
        title="the page",
        note="3 of 9",
    )
    report = Report(
        run_id="now",
        seconds=100.0,
        samples=400,
        every=0.25,
        spent={"action": 50.0, "backoff": 50.0},
        steps=(
            LiveStep(
                path=root,
                step="sites",
                visit=0,
                total=9,
                in_flight=1,
                waiting=3,
                at={"pages": {"action": 1}},
            ),
            LiveStep(path=site, step="pages", visit=0, total=20, ended=7, failed=1, in_flight=4),
        ),
        longest=(live,),
        limits=(
            LimitUse(
                owner="fetch", limits="Limits(2, by=host)", in_use=6, slots=2, waiting=3, keys=4
            ),
        ),
    )
    shown = list[str]()

    async def report_and_show() -> None:
        async with SQLiteStore(path, synchronous="normal") as store:
            app = Application(wait_for_show, name="now", store=store)
            async with Runtime(store=store, watch=False) as runtime:
                handle = await runtime.start(app, {}, id="now")
                await anyio.wait_all_tasks_blocked()
                assert await anyio.to_thread.run_sync(main, ["show", "now", "--db", str(path)]) == 0
                shown.append(capsys.readouterr().out)
                await store.report({"now": report_text(report)})
                for line in (
                    *(("show", "now"), ("explain", "now"), ("show", "now", "--json")),
                    ("limit", "now"),
                ):
                    arguments = [*line, "--db", str(path)]
                    assert await anyio.to_thread.run_sync(main, arguments) == 0
                    shown.append(capsys.readouterr().out)
                handle.cancel("it was shown")

    anyio.run(report_and_show)
    silent, text, explained, found, limits = shown
    assert " ".join(limits.splitlines()[1].split()) == (
        "fetch 0 Limits(2, by=host) 6 8 (2 each) 3 0"
    )
    assert "reports      none: the run isn't watched (watch=False)" in silent
    assert "reports  " not in text
    (line,) = json.loads(found)["longest"]
    assert (line["path"], line["step"], line["doing"]) == (path_text(child), "fetch", "backoff")
    assert (line["since"], line["age"], line["next_in"]) == (1.0, 61.0, 1.5)
    assert (line["attempt"], line["attempts"]) == (2, 3)
    assert (line["title"], line["note"]) == ("the page", "3 of 9")
    assert "headline     0 of 9 · 1 running · held up by backoff before further attempts" in text
    assert "\nsteps\nsites    0 of 9 · 1 running · 3 waiting\n" in text
    assert "\n  pages  7 of 20 · 1 failed · 4 running\n" in text
    assert (
        "\nrunning longest\n"
        "1 s, 1 min 1 s in all  the page ('s' / 'x')  "
        "fetch: waiting for its next attempt · attempt 2 of 3...\n"
    ) in text
    assert explained.startswith("run now has taken 1 min 40 s, looked at 400 times\n")
    assert "advice: 50 % of the time is waiting for further attempts" in explained


@action(writes=["total"])
async def wait_for_show() -> int:
    await anyio.sleep_forever()
    return 0


@action(reads=["n"], writes=["square"])
async def ask_for_square(n: int, context: Context) -> int:
    if n == 1:
        return 1
    return await context.ask("square", {"of": n})


def test_a_halted_run_shows_its_questions(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "halted.db"
    asked = fan_out(ask_for_square, over="numbers", item="n", key=str, into="squares", name="all")
    app = Application(asked, store=SQLiteStore(path, synchronous="normal"), watch=False)
    app.run_sync({"numbers": [1, 2, 3]}, id="asks")
    child = parse_path("asks/all:0:ask_for_square:2")
    app.run_sync(id="asks", answers={(child.id, "square"): 4})
    left = parse_path("asks/all:0:ask_for_square:3")
    lines = fields(said(capsys, "show", "asks", "--db", str(path)))
    (question,) = [line for line in lines if line[0] == "question"]
    assert question[1:5] == ["square", path_text(left), left.id, '{"of": 3}']
    (shown,) = json.loads(said(capsys, "show", "asks", "--json", "--db", str(path)))["questions"]
    assert shown["run_id"] == left.id
    assert shown["id"] == question[5]
    monkeypatch.setattr(cast("Any", type(sys.stdout)), "isatty", is_one, raising=False)
    text = said(capsys, "show", "asks", "--db", str(path))
    assert f'\nsquare  {path_text(left)}  {{"of": 3}}\n' in text
    assert f"run(id='asks', answers={{('{left.id}', 'square'): ...}})" in text


def test_a_drained_run_says_why_it_is_halted(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "drained.db"
    chain = Graph.chain(numbers, add, name="chain")
    app = Application(fan_out(chain, over="all", item="numbers", into="sums", take="total"))
    app.store = SQLiteStore(path, synchronous="normal")

    async def main_() -> None:
        async with Runtime() as runtime:
            run = await runtime.start(app, {"all": [[1], [2]]}, id="drained")
            run.drain("the week is over")
            await run.wait_ended()

    anyio.run(main_)
    assert "the week is over" in said(capsys, "runs", "--db", str(path))
    monkeypatch.setattr(cast("Any", type(sys.stdout)), "isatty", is_one, raising=False)
    text = said(capsys, "show", "drained", "--db", str(path))
    assert "halted: it was drained; run it again, and it goes on" in text
    assert "the week is over" in text
    assert "answer" not in text


# -- events ----------------------------------------------------------------------------------------


def test_the_history_is_shown_entry_by_entry(capsys: Any):
    lines = fields(said(capsys, "events", "a"))
    assert [(line[0], line[2], line[3], line[4], line[5]) for line in lines] == [
        ("0", "begun", "numbers", "", ""),
        ("1", "update", "numbers", "", "squares = {}"),
        ("2", "update", "numbers", "a/numbers:0:square:1", 'squares["1"] = 1'),
        ("3", "update", "numbers", "a/numbers:0:square:2", 'squares["2"] = 4'),
        ("3", "completed", "numbers", "", ""),
        ("4", "update", "add", "", "total = 5"),
        ("4", "completed", "add", "", ""),
    ]
    assert all(line[1].endswith("+00:00") for line in lines if line[2] == "update")
    later = fields(said(capsys, "events", "a", "--from", "4"))
    assert later == lines[5:]
    found = [json.loads(line) for line in said(capsys, "events", "a", "--json").splitlines()]
    assert found[2]["changes"] == [
        {"field": "squares", "how": "put", "key": '"1"', "value": "1", "size": 1}
    ]


def test_the_history_fits_a_terminal(terminal: None, capsys: Any):
    lines = said(capsys, "events", "a").splitlines()
    assert lines[2].endswith("""numbers/square '1'  squares["1"] = 1""")
    assert all(len(line) <= 100 for line in lines)
    (own,) = said(capsys, "events", "a/numbers:0:square:2").splitlines()
    assert own.endswith("square  square = 4")


GROWING = """
    import sys, anyio
    from shoal import *
    @action(reads=["n"], writes=["m"])
    async def slow(n: float) -> float:
        await anyio.sleep(n)
        return n
    each = fan_out(slow, over="ns", item="n", key=str, into="ms", name="each")
    app = Application(each, name="growing", store=SQLiteStore(sys.argv[1]))
    app.run_sync({"ns": [0.0, 0.4, 0.8]}, id="growing")
"""


@pytest.mark.slow
def test_a_history_is_followed_to_its_end(tmp_path: Path, capsys: Any):
    path = tmp_path / "growing.db"
    program = tmp_path / "growing.py"
    program.write_text("\n".join(line[4:] for line in GROWING.splitlines()))
    with subprocess.Popen([sys.executable, str(program), str(path)]) as process:
        until = time.monotonic() + 20
        while not has_run(path) and time.monotonic() < until:
            time.sleep(0.05)
        assert process.poll() is None, "it is followed while it runs"
        lines = fields(said(capsys, "events", "growing", "--follow", "--db", str(path)))
        assert process.wait(20) == 0
    changes = [line[5] for line in lines if line[2] == "update"]
    assert [change for change in changes if "[" in change] == [
        *('ms["0.0"] = 0.0', 'ms["0.4"] = 0.4', 'ms["0.8"] = 0.8')
    ]
    assert lines[-1][2] == "completed"
    assert len({tuple(line) for line in lines}) == len(lines), "nothing is shown twice"


def has_run(path: Path) -> bool:
    if not path.exists() or not path.stat().st_size:
        return False

    async def find() -> bool:
        async with SQLiteStore(path) as store:
            return await store.summary("growing") is not None

    return anyio.run(find)


# -- explain ---------------------------------------------------------------------------------------


def test_a_run_without_a_report_has_its_critical_path(capsys: Any):
    lines = fields(said(capsys, "explain", "nested"))
    chain = [line[1] for line in lines if line[0] == "path"]
    assert chain[0] == "nested"
    assert len(chain) == 3
    assert chain[2].startswith(chain[1])
    assert any(line[0] == "note" and "there is no report" in line[1] for line in lines)
    found = json.loads(said(capsys, "explain", "nested", "--json"))
    assert found["shares"] == {}
    assert [link["path"] for link in found["critical_path"]] == chain


# -- diff ------------------------------------------------------------------------------------------


def test_two_runs_are_compared(capsys: Any):
    lines = fields(said(capsys, "diff", "a", "b"))
    assert lines == [
        ["status", "succeeded", "succeeded"],
        ["step", "numbers", "add", "give_up", "1"],
        ["field", "numbers", "", "[1, 2, 3]", "[1, 3, 5, 6]"],
        ["field", "squares", '"2"', "4", ""],
        ["field", "squares", '"5"', "", "25"],
        ["field", "squares", '"6"', "", "36"],
        ["field", "total", "", "5", "-1"],
        ["child", "numbers", "0", "square", "2", "succeeded", ""],
        ["child", "numbers", "0", "square", "5", "", "succeeded"],
        ["child", "numbers", "0", "square", "6", "", "succeeded"],
    ]
    found = json.loads(said(capsys, "diff", "a", "b", "--json"))
    assert found["parting"] == {"after": "numbers", "first": "add", "second": "give_up", "at": 1}
    assert not found["is_same"]


def test_two_runs_are_compared_for_people(terminal: None, capsys: Any):
    text = said(capsys, "diff", "a", "b")
    assert "\nthey part after numbers (step 1): A goes to add, B to give_up\n" in text
    assert 'squares["2"]  4 | (none)' in text
    assert "numbers/square  '5'  (none) | succeeded" in text
    assert said(capsys, "diff", "a", "a") == (
        "the runs took the same way to the same end: succeeded\n"
    )


def test_children_are_compared_like_runs(capsys: Any):
    first, second = "nested/outer:0:inner:0", "nested/outer:0:inner:2"
    lines = fields(said(capsys, "diff", first, second))
    assert ["field", "(element)", "", "[0, 1]", "[2, 3]"] in lines


collected = fan_out(
    square,
    over="numbers",
    item="n",
    key=str,
    into="squares",
    on_error="collect",
    errors_into="errors",
    name="numbers",
)


@action(writes=["pages"])
async def load_pages() -> list[str]:
    return ["x" * 300 + "end"]


@action(writes=["pages"])
async def load_others() -> list[str]:
    return ["x" * 300 + "other"]


def test_collected_errors_that_say_the_same_do_not_differ(
    tmp_path: Path, terminal: None, capsys: Any
):
    path = tmp_path / "same.db"
    app = Application(collected, store=SQLiteStore(path, synchronous="normal"), watch=False)
    for run_id in ("one", "two"):
        app.run_sync({"numbers": [1, 3, 7]}, id=run_id)
    text = said(capsys, "diff", "one", "two", "--db", str(path))
    assert text == "the runs took the same way to the same end: succeeded\n"
    app.run_sync({"numbers": [1, 11]}, id="three")
    lines = said(capsys, "diff", "one", "three", "--db", str(path))
    assert '"message": "no square of 11"' in lines
    assert "@type" not in lines
    assert "Traceback" not in lines


def test_the_part_of_a_long_value_that_differs_is_shown(tmp_path: Path, capsys: Any):
    path = tmp_path / "long.db"
    store = SQLiteStore(path, synchronous="normal")
    for act, run_id in ((load_pages, "one"), (load_others, "two")):
        Application(act, store=store, watch=False).run_sync({}, id=run_id)
    lines = fields(said(capsys, "diff", "one", "two", "--db", str(path)))
    (field,) = [line for line in lines if line[0] == "field"]
    assert field[3].startswith("…xxx")
    assert field[3].endswith('xxend"]')
    assert field[4].endswith('xxother"]')


# -- export ----------------------------------------------------------------------------------------


def test_a_run_is_exported_as_lines_of_json(capsys: Any):
    lines = [json.loads(line) for line in said(capsys, "export", "nested").splitlines()]
    kinds = [(line["type"], line["path"]) for line in lines]
    assert kinds[0] == ("run", "nested")
    assert lines[0]["application"] == "groups"
    assert ("child", "nested/outer:0:inner:2/numbers:0:square:3") in kinds
    assert ("entry", "nested/outer:0:inner:2") in kinds
    failed = next(line for line in lines if line["path"].endswith("square:3"))
    assert failed["error_text"] == "LookupError: no square of 3"
    assert "element" not in failed
    more = [json.loads(line) for line in said(capsys, "export", "nested", "--values").splitlines()]
    good = next(line for line in more if line["path"].endswith("inner:2/numbers:0:square:2"))
    assert (good["element"], good["value"]) == (2, 4)
    entry = next(
        line
        for line in more
        if line["type"] == "entry" and line["path"].endswith("inner:2/numbers:0:square:2")
    )
    assert entry["data"]["do"] == [["set", "square", 4]]
    assert more[0]["first"] == {"groups": [[0, 1], [2, 3]]}


def test_an_export_to_burr_says_what_it_wrote(tmp_path: Path, capsys: Any):
    why = said(capsys, "export", "nested", "--format", "burr", code=2)
    assert why == "shoal: where to? Give a directory with --to; Burr's UI is started with it\n"
    where = ("--format", "burr", "--to", str(tmp_path))
    (line,) = fields(said(capsys, "export", "nested", *where))
    assert line == [str(tmp_path), "shoal-groups", "nested", "7", "0"]
    assert (tmp_path / "shoal-groups" / "nested" / "log.jsonl").exists()
    few = json.loads(said(capsys, "export", "nested", *where, "--max-children", "1", "--json"))
    assert (few["written"], few["omitted"]) == (2, 3)
    (tmp_path / "file").touch()
    into = said(capsys, "export", "a", "--format", "burr", "--to", str(tmp_path / "file"), code=2)
    assert into.startswith("shoal: the export can't be written:")
