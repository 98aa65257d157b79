"""A display of progress: what it shows, where, and that it leaves the terminal as it was."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
import types
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import anyio
import pytest

from shoal import Application, Context, Limits, Runtime, action, fan_out
from shoal._events.identity import RunPath
from shoal._events.report import Doing, LiveRun, LiveStep, Report
from shoal.errors import DefinitionError
from shoal.watch import progress
from shoal.watch._board import Board
from shoal.watch.progress import (
    WIDTH,
    Boards,
    Lines,
    Notebook,
    Terminal,
    as_text,
    drawn,
    new_display,
)

pytest.importorskip("rich")

ROOT = RunPath(run_id="r1", act="crawl")
WATCHED: Mapping[str, Mapping[Doing, int]] = {"fetch": {"action": 3}}


def step(
    name: str = "pages",
    *,
    path: RunPath = ROOT,
    total: int | None = 100,
    ended: int = 0,
    failed: int = 0,
    halted: int = 0,
    title: str = "",
) -> LiveStep:
    return LiveStep(
        path=path,
        step=name,
        visit=0,
        title=title,
        total=total,
        ended=ended,
        failed=failed,
        halted=halted,
        in_flight=3,
        at=WATCHED,
    )


def report(
    seconds: float,
    *steps: LiveStep,
    is_over: bool = False,
    spent: Mapping[Doing, float] | None = None,
    longest: tuple[LiveRun, ...] = (),
    omitted: int = 0,
) -> Report:
    return Report(
        run_id="r1",
        seconds=seconds,
        samples=int(seconds * 4),
        every=0.25,
        spent={"action": seconds} if spent is None else spent,
        steps=steps,
        longest=longest,
        is_over=is_over,
        omitted=omitted,
    )


def inner(number: int) -> RunPath:
    return RunPath(act="batch", parent=ROOT, step="batches", key=number)


# -- what is shown ---------------------------------------------------------------------------------


def test_a_row_has_count_pace_failures_and_the_time_left():
    board = Board("crawl")
    board.update(report(1, step(ended=10)))
    board.update(report(11, step(ended=60, failed=2)))
    (row,) = board.rows()
    assert (row.name, row.count, row.pace, row.seconds_left) == ("pages", "60/100", 5.0, 8.0)
    assert row.details == ["2 failed", "3 running", "5/s", "a few seconds left"]
    assert board.headline == "pages 60/100 · 2 failed · 3 running · 5/s · a few seconds left"


def test_the_pace_is_that_of_the_last_seconds():
    board = Board("crawl")
    for second in range(100):
        board.update(report(second + 1, step(total=None, ended=second * (1 if second < 50 else 2))))
    (row,) = board.rows()
    assert row.pace == pytest.approx(2, abs=0.1)
    assert (row.total, row.seconds_left, row.count) == (None, None, "198")


def test_nested_fan_outs_are_folded_into_one_row():
    board = Board("crawl")
    outer = step("batches", total=3, ended=0)
    board.update(report(1, outer, *(step("pages", path=inner(n), total=10) for n in (0, 1))))
    below = [step("pages", path=inner(n), total=10, ended=4, failed=1) for n in (0, 1)]
    board.update(report(2, outer, *below))
    _, row = board.rows()
    assert (row.steps, row.groups, row.count) == (("batches", "pages"), 2, "8/20")
    # One of them ends, and the third begins: its children stay counted.
    gone = step("batches", total=3, ended=1)
    board.update(report(3, gone, below[1], step("pages", path=inner(2), total=10)))
    _, row = board.rows()
    assert (row.groups, row.count, row.failed) == (2, "14/30", 2)
    board.update(report(4, is_over=True))
    assert [row.count for row in board.rows()] == ["3/3", "30/30"]
    assert board.headline.endswith("over after 4 s")


def test_a_run_that_failed_stays_as_it_was():
    board = Board("crawl")
    board.update(report(1, step(ended=10)))
    assert "3 running" in board.rows()[0].details
    board.update(report(2, is_over=True), has_failed=True)
    assert board.rows()[0].count == "10/100"
    assert board.rows()[0].details == [], "nothing runs any more"
    assert board.headline.endswith("ended without success after 2 s")


def test_halted_children_of_a_fan_out_that_is_gone_have_not_ended():
    board = Board("crawl")
    board.update(report(1, step("pages", path=inner(0), total=10, ended=9, halted=1)))
    board.update(report(2, step("pages", path=inner(1), total=10, ended=4)))
    assert board.rows()[0].ended == 13


def test_fan_outs_that_a_report_leaves_out_are_not_taken_for_ended():
    board = Board("crawl")
    board.update(report(1, step("pages", path=inner(0), ended=3)))
    board.update(report(2, step("pages", path=inner(1), ended=4), omitted=1))
    assert board.rows()[0].ended == 4
    assert "1 more fan-outs under way" in as_text([board])


def test_why_it_waits_and_what_has_run_longest():
    slow = LiveRun(
        path=RunPath(act="fetch", parent=ROOT, step="pages", key="a.html"),
        step="fetch",
        doing="backoff",
        since=2,
        age=30,
        attempt=2,
        attempts=5,
        next_in=4,
        note="page 3 of 9",
    )
    board = Board("crawl")
    board.update(report(30, step(), spent={"rate": 20, "action": 10}, longest=(slow,)))
    assert "held up by rate" in board.why
    text = as_text([board])
    assert "fetch[a.html]: fetch for 2 s, 30 s in all · attempt 2/5 · again in 4 s · page 3" in text
    long = replace(slow, since=29.8, doing="action", next_in=None)
    board.update(report(31, step(), longest=(long,)))
    assert "fetch[a.html]: fetch for 30 s · attempt 2/5" in as_text([board])
    board.age = 12
    assert board.why == "as of 12 s ago"


def test_users_texts_cannot_act_on_the_terminal():
    board = Board("crawl\x1b]0;title\x07")
    at: Mapping[str, Mapping[Doing, int]] = {"b\x1b[31m": {"action": 3}, "c\u202e": {"slot": 2}}
    board.update(report(1, replace(step(title="a\x1b[31mb\u202ec"), at=at), step("next")))
    assert "a?[31mb?c" in as_text([board])
    assert not {"\x1b", "\x07", "\u202e"} & set(as_text([board, board]))
    console = pytest.importorskip("rich.console").Console(file=io.StringIO(), width=100)
    console.print(drawn([board], names=True))
    assert not {"\x1b", "\x07", "\u202e"} & set(console.file.getvalue())


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("total", [None, 0, 1, 20_000])
def test_it_is_drawn_at_any_width(width: int, total: int | None):
    console = pytest.importorskip("rich.console").Console(file=io.StringIO(), width=width)
    boards = [Board("one"), Board("two")]
    for board in boards:
        board.update(report(1, step(total=total), step("pages", path=inner(0))))
    console.print(drawn(boards))
    lines = console.file.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    if width >= 80:
        assert any("pages" in line for line in lines)
        assert as_text(boards).count("\n") >= 5


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120])
def test_counts_are_whole_and_the_bar_shrinks(width: int):
    console = pytest.importorskip("rich.console").Console(file=io.StringIO(), width=width)
    board = Board("one")
    many = replace(step(total=147_000, name="a-rather-long-name"), ended=12_431, failed=312)
    board.update(report(1, replace(many, in_flight=20, waiting=1_000)))
    console.print(drawn([board]))
    (line, *_) = console.file.getvalue().splitlines()
    assert "12,431/147,000" in line
    assert line.startswith("a-rather-long-name ")
    bar = line.index("12,431") - len("a-rather-long-name  ")
    assert bar == {40: 6, 60: 4, 80: 6, 100: WIDTH, 120: WIDTH}[width]
    if width >= 80:
        assert "312 failed · 20 running · 1,000 waiting" in line


# -- where it is shown -----------------------------------------------------------------------------


def test_where_there_is_no_terminal_lines_are_written_now_and_then():
    now = [0.0]
    out = io.StringIO()
    display = Boards(Lines(out, 5.0, lambda: now[0]))
    display.start()
    for tick in range(41):
        now[0] = tick / 4
        display.update("r1", "crawl r1", report(now[0] or 0.1, step(ended=tick)))
    assert out.getvalue().count("\n") == 2
    display.update("r1", "crawl r1", report(10.1, is_over=True))
    display.stop()
    display.stop()
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert lines[-1].startswith("crawl r1: pages 100/100")


def test_a_closed_stream_ends_the_display_and_nothing_else():
    out = io.StringIO()
    display = Boards(Lines(out, 0.0))
    display.start()
    out.close()
    display.update("r1", "crawl", report(1, step()))
    display.update("r1", "crawl", report(2, step()))
    display.stop()


def test_only_the_last_runs_that_ended_stay():
    shown: list[list[str]] = []

    class Surface:
        def start(self) -> None: ...
        def stop(self) -> None: ...
        def show(self, boards: Any, *, is_last: bool) -> None:
            shown.append([board.name for board in boards])

    display = Boards(Surface())
    display.start()
    for number in range(10):
        display.update(f"r{number}", f"crawl r{number}", report(1, is_over=True))
    display.update("r10", "crawl r10", report(1, step()))
    assert shown[-1] == ["crawl r7", "crawl r8", "crawl r9", "crawl r10"]


def test_a_notebook_replaces_one_output(monkeypatch: pytest.MonkeyPatch):
    outputs: list[Any] = []

    class Handle:
        def update(self, data: Any, *, raw: bool) -> None:
            outputs[-1] = data

    def show(data: Any, *, raw: bool, display_id: bool) -> Handle:
        outputs.append(data)
        return Handle()

    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace(kernel=object())  # pyright: ignore[reportAttributeAccessIssue] # made here
    shows = types.ModuleType("IPython.display")
    shows.display = show  # pyright: ignore[reportAttributeAccessIssue] # made here
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", shows)
    display = new_display()
    assert isinstance(display, Boards)
    assert isinstance(display._surface, Notebook)
    display.start()
    display.update("r1", "crawl", report(1, step(title="<b>")))
    display.update("r1", "crawl", report(2, step(title="<b>", ended=50)))
    display.stop()
    (output,) = outputs
    assert "50/100" in output["text/plain"]
    assert "&lt;b&gt;" in output["text/html"]


def _finds_nothing(_name: str) -> None:
    return None


def test_without_rich_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "find_spec", _finds_nothing)
    begun: list[int] = []

    @action(writes=["done"])
    def work() -> int:
        begun.append(1)
        return 1

    with pytest.raises(DefinitionError, match=r"pip install 'shoal\[progress\]'"):
        Application(work).run_sync(progress=True)
    assert begun == []


# -- runs ------------------------------------------------------------------------------------------


@action(reads=["item"], writes=["done"])
async def second(item: int, context: Context) -> int:
    context.note("working")
    await anyio.sleep(1)
    if item < 0:
        raise ValueError(item)
    return item


many = fan_out(second, over="items", into="all", limits=Limits(2), title="numbers")


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What displays write, a line for each report."""
    out = io.StringIO()
    monkeypatch.setattr(progress, "new_display", lambda: Boards(Lines(out, 0.0)))
    return out


@pytest.mark.anyio
async def test_the_progress_of_a_run_is_shown(lines: io.StringIO):
    await Application(many).run({"items": range(6)}, id="r1", progress=True)
    found = lines.getvalue().splitlines()
    assert found[0].startswith("all r1: numbers 0/6 · 2 running")
    assert found[-1] == "all r1: numbers 6/6 · 2/s · over after 3 s"
    assert any("numbers 4/6" in line for line in found)


@pytest.mark.anyio
async def test_only_the_run_that_asked_for_it_is_shown(lines: io.StringIO):
    async with Runtime(watch=True) as runtime, anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: Application(many).run({"items": [1]}, id="a", runtime=runtime))
        await Application(many).run({"items": [1]}, id="b", runtime=runtime, progress=True)
    assert {line.split(":")[0] for line in lines.getvalue().splitlines()} == {"all b"}


@pytest.mark.anyio
async def test_a_runtime_shows_all_of_its_runs(lines: io.StringIO):
    async with Runtime(progress=True) as runtime:
        for run_id in ("a", "b"):
            await runtime.start(Application(many), {"items": [1]}, id=run_id)
    assert {line.split(":")[0] for line in lines.getvalue().splitlines()} == {"all a", "all b"}


@pytest.mark.anyio
async def test_a_run_that_fails_or_is_cancelled_shows_how_far_it_was(lines: io.StringIO):
    with pytest.raises(ExceptionGroup):
        await Application(many).run({"items": [1, 2, 3, -1, 5, 6]}, id="a", progress=True)
    assert lines.getvalue().splitlines()[-1].startswith("all a: numbers 2/6")
    with anyio.move_on_after(1.5):
        await Application(many).run({"items": range(6)}, id="b", progress=True)
    assert lines.getvalue().splitlines()[-1].startswith("all b: numbers 2/6")


PROGRAM = """
import sys, anyio
from shoal import Application, Limits, action, fan_out
@action(reads=["item"], writes=["done"])
async def work(item: int) -> int:
    await anyio.sleep(0.3)
    if item == int(sys.argv[1]):
        raise ValueError(item)
    return item
app = Application(fan_out(work, over="items", into="all", limits=Limits(3), title="things"))
async def main():
    with anyio.move_on_after(float(sys.argv[2])):
        await app.run({"items": range(9)}, progress=True)
    print("and on")
anyio.run(main, backend=sys.argv[3])
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("how", ["-1 9", "4 9", "-1 0.5"], ids=["well", "failed", "cancelled"])
def test_a_terminal_is_left_as_it_was(how: str, backend: str):
    master, slave = pty.openpty()
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *how.split(), backend],
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(slave)
    found = b""
    while True:
        try:
            part = os.read(master, 1 << 16)
        except OSError:  # Linux says so where the other end is closed
            break
        if not part:
            break
        found += part
    program.wait(30)
    os.close(master)
    text = found.decode()
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l") >= 0  # the cursor is shown again
    assert "things" in text
    assert re.search("9/9" if how == "-1 9" else "[0369]/9", text)
    assert ("and on" in text) == ("4" not in how.split(maxsplit=1)[0])


def test_runs_at_once_share_one_display_of_a_terminal(monkeypatch: pytest.MonkeyPatch):
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Screen()
    monkeypatch.setattr("sys.stderr", out)
    first = progress.new_display()
    first.start()
    first.update("r1", "one", report(1, step(ended=50)))
    second = progress.new_display()
    second.start()
    second.update("r2", "two", report(1, step(ended=7)))
    first.stop()
    assert "\x1b[?25h" not in out.getvalue(), "the other run goes on"
    second.update("r2", "two", report(2, step(ended=9)))
    drawn_last = out.getvalue().rpartition("\x1b[2K")[2]
    assert "50/100" in drawn_last
    assert "9/100" in drawn_last
    second.stop()
    assert out.getvalue().count("\x1b[?25l") == out.getvalue().count("\x1b[?25h") == 1
    assert sys.stderr is out

    third = progress.new_display()  # of a later run: the earlier ones are history
    third.start()
    third.update("r3", "three", report(1, step(ended=3)))
    third.stop()
    assert "50/100" not in out.getvalue().rpartition("\x1b[?25l")[2]


def test_a_terminal_display_uses_its_own_stream():
    out = io.StringIO()
    display = Boards(Terminal(out))
    display.start()
    display.update("r1", "crawl", report(1, step(ended=50)))
    display.stop()
    assert "50/100" in out.getvalue()
