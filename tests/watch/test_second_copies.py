"""Second copies of late attempts, and whose a run is, as watchers see them."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from shoal import (
    Application,
    Each,
    Hedge,
    Limits,
    MemoryStore,
    Retry,
    Runtime,
    SQLiteStore,
    action,
    fan_out,
)
from shoal.__main__ import main
from shoal._engine.second_copies import LAST, NAMES, OTHERS, SecondCopies
from shoal._events.report_text import parse_report, report_text
from shoal.testing import no_leaks
from shoal.watch import Queries, explain
from shoal.watch._board import Board

calls = Counter[int]()


@pytest.fixture(autouse=True)
def fresh() -> None:
    calls.clear()


@action(reads=["n"], writes=["out"])
async def fetch(n: int) -> int:
    calls[n] += 1
    late = calls[n] == 1 and n in (1, 2, 3)
    # The copy of 3 takes longer than the attempt itself, and that of 2 is still at work after 4 s.
    await anyio.sleep(2.5 if n == 3 and late else 60 if late else {1: 1, 2: 5, 3: 10}.get(n, 0.5))
    return n


each = Each(hedge=Hedge(percentile=50, budget=1, initial=1))
pages = fan_out(fetch, over="ns", item="n", key=str, into="outs", each=each, name="pages")
app = Application(pages, name="app")


@pytest.mark.anyio
async def test_a_report_tells_of_second_copies_and_of_those_at_work():
    async with no_leaks(), Runtime(watch=True, limits=Limits(50)) as runtime:
        handle = await runtime.start(app, {"ns": list(range(5))})
        await anyio.sleep(4)
        report = handle.report
        assert report is not None
        (use,) = report.hedges
        assert (use.owner, use.copies, use.used, use.running) == ("pages", 3, 1, 1)
        assert use.text == "3 second copies, 1 used, 1 at work"
        told = [(one.path.key, one.step, one.used, round(one.seconds)) for one in report.copies]
        assert told == [("1", "fetch", True, 1), ("3", "fetch", False, 2), ("2", "fetch", None, 3)]
        assert {one.after for one in report.copies} == {1.0}
        (longest,) = report.longest
        assert longest.copied == pytest.approx(3, abs=0.3)
        assert parse_report(report_text(report)) == report
        await handle.wait_ended()
        report = handle.report
        assert report is not None
        assert report.hedges[0].text == "3 second copies, 2 used"
        assert "late attempts of pages: 3 second copies, 2 used" in explain(report).text
        assert "pages/fetch '2': fetch, late after 1" in explain(report).text
        board = Board("app")
        board.update(report)
        assert "3 second copies, 2 used" in board.headline


def test_commands_and_pages_show_second_copies_owner_and_priority(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    store = SQLiteStore(tmp_path / "runs.db", synchronous="normal")
    quick = Each(hedge=Hedge(initial=0.01, budget=1))

    @action(reads=["n"], writes=["out"])
    async def once(n: int) -> int:
        calls[n] += 1
        await anyio.sleep(30 if calls[n] == 1 else 0.1)
        return n

    step = fan_out(once, over="ns", item="n", key=str, into="outs", each=quick, name="pages")
    Application(step, name="app", store=store).run_sync(
        {"ns": [7]}, id="a", owner="eve", priority="batch"
    )
    Application(step, name="app", store=store, watch=False).run_sync({"ns": []}, id="b")
    monkeypatch.setenv("SHOAL_STORE", str(tmp_path / "runs.db"))

    def said(*command: str) -> str:
        assert main(list(command)) == 0
        return capsys.readouterr().out

    shown = json.loads(said("show", "a", "--json"))
    assert shown["hedges"] == [{"owner": "pages", "copies": 1, "used": 1, "running": 0}]
    assert shown["copies"][0]["path"] == "a/pages:0:once:7"
    assert shown["copies"][0]["used"] is True
    assert "1 second copy, 1 used" in shown["headline"]["text"]
    assert (shown["owner"], shown["priority"]) == ("eve", "batch")
    assert "copies\tpages\t1\t1\t0\n" in said("explain", "a")
    assert said("show", "a").count("copies\tpages\t1\t1\t0\n") == 1
    assert said("runs", "--owner", "eve").rstrip("\n").endswith("\teve\tbatch")
    assert [line.split("\t")[0] for line in said("runs").splitlines()] == ["b", "a"]

    def is_one(_: object) -> bool:
        return True

    monkeypatch.setattr(cast("Any", type(sys.stdout)), "isatty", is_one, raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    text = said("show", "a")
    assert "owner" in text
    assert "eve" in text
    assert "second copies of late attempts" in text
    assert "pages/once '7': once, late after" in text
    table = said("runs")
    assert "OWNER" in table
    assert "batch" in table


@action(reads=["n"], writes=["out"], limits=Limits(1, by=lambda _: "host"), name="ask")
async def ask(n: int) -> int:
    calls[n] += 1
    await anyio.sleep(2)
    if n == 0 and calls[n] == 1:
        raise ConnectionError
    return n


@pytest.mark.anyio
async def test_a_child_whose_attempt_has_failed_waits_for_its_retry_and_not_for_a_copy_that_waits():
    retry = Retry(2, on=ConnectionError, initial=0.5, jitter=0)
    retried = Each(hedge=each.hedge, retry=retry)
    asked = fan_out(ask, over="ns", item="n", key=str, into="outs", each=retried, name="asked")
    async with no_leaks(), Runtime(watch=True) as runtime:
        handle = await runtime.start(Application(asked), {"ns": list(range(4))})
        await anyio.sleep(3)
        report = handle.report
        assert report is not None
        one = report.longest[0]
        assert (one.path.key, one.step, one.doing, one.limit_key) == ("0", "ask", "key", "host")
        assert one.attempt == 2
        assert await handle.wait_ended() == "succeeded"
        assert calls[0] == 2


def test_what_is_kept_of_copies_is_bounded():
    copies = SecondCopies(lambda: 1.0)
    path: Any = None
    at_work = [copies.began(f"step {n}", path, "act") for n in range(2 * NAMES)]
    for one in at_work[: NAMES + LAST]:
        copies.ended(one, used=True)
    uses = copies.uses()
    assert len(uses) == NAMES + 1
    assert (uses[-1].owner, uses[-1].copies, uses[-1].used) == (OTHERS, NAMES, LAST)
    assert len(copies.all()) == 2 * LAST


@pytest.mark.anyio
async def test_a_list_of_runs_has_owner_and_priority():
    store = MemoryStore()
    async with Runtime(store=store) as runtime:
        await runtime.run(app, {"ns": []}, id="a", owner="eve", priority="interactive")
    (run,) = (await Queries(store).runs(owner="eve")).runs
    assert (run.owner, run.priority) == ("eve", "interactive")
