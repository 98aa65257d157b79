"""Queries about runs: what the store and the last report know, put together."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

import shoal
from shoal import (
    Application,
    Graph,
    MemoryStore,
    PostgresStore,
    RunPath,
    SQLiteStore,
    action,
    fan_out,
    race,
)
from shoal.errors import UnknownRun
from shoal.stores import RunSummary
from shoal.stores._watching import Bin
from shoal.watch import LimitUse, LiveRun, LiveStep, Queries, Report, Row, path_text
from tests.stores.postgres import PostgresServer
from tests.watch.reporting import Listing, Reporting, make_report

pytestmark = pytest.mark.anyio


@action(reads=["n"], writes=["square"])
async def square(n: int) -> int:
    await anyio.sleep(n)
    if n % 4 == 3:
        raise LookupError(f"no square of {n} in 'the book'")
    return n * n


@action(reads=["n"], writes=["m"])
async def same(n: int) -> int:
    return n


numbers = fan_out(
    square, over="numbers", item="n", key=str, into="squares", on_error="ignore", name="numbers"
)
squares = Application(numbers, name="squares")


def path(run_id: str = "a", *names: tuple[str, int, str, str | int]) -> RunPath:
    at = RunPath(run_id=run_id)
    for step, visit, act, key in names:
        at = RunPath(parent=at, step=step, visit=visit, act=act, key=key)
    return at


POSTGRES = pytest.param("postgres", marks=pytest.mark.services)


@pytest.fixture(params=["memory", "any", "sqlite", POSTGRES])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A store in memory, one that only lists its runs, one in a file, and one on a server."""
    match request.param:
        case "postgres":
            server: PostgresServer = request.getfixturevalue("postgres")
            return PostgresStore(server.address(), schema=server.new_schema())
        case "sqlite":
            return SQLiteStore(tmp_path / "runs.db", synchronous="normal")
        case "any":
            return Listing()
        case _:
            return MemoryStore()


async def run(app: Application[Any], store: Any, state: Any, id: str) -> None:
    async with shoal.Runtime(store=store) as runtime:
        await runtime.run(app, state, id=id)


async def squared(store: Any, count: int = 8) -> Any:
    await run(squares, store, {"numbers": list(range(count))}, id="a")
    return store


def report(run_id: str = "a", **more: Any) -> Report:
    return make_report(run_id, more.pop("spent", {"action": 10.0}), **more)


@asynccontextmanager
async def running(app: Application[Any], state: dict[str, Any]) -> AsyncGenerator[MemoryStore]:
    """Run an application as ``a`` for the time of the block."""
    store = MemoryStore()
    async with shoal.Runtime(store=store) as runtime:
        handle = await runtime.start(app, state, id="a")
        yield store
        handle.cancel("the test is over")


# -- overview --------------------------------------------------------------------------------------


async def test_the_overview_of_a_run_that_has_ended(store: Any):
    found = await Queries(await squared(store)).overview("a")
    assert found.status == "succeeded"
    assert found.counts == {"succeeded": 6, "failed": 2}
    (bar,) = found.bars
    assert (bar.step, bar.visit, bar.done, bar.failed, bar.is_under_way) == (
        *("numbers", 0, 8, 2, False),
    )
    (group,) = found.failures.groups
    assert (group.step, group.error_type, group.message, group.count) == (
        *("numbers", "LookupError", "no square of <n> in 'the book'", 2),
    )
    assert group.example.path == path("a", ("numbers", 0, "square", "3"))
    assert re.match("succeeded after .* m?s · 8 done · 2 failed", found.headline.text)
    assert not found.is_lost
    assert found.breadcrumbs == []
    assert found.summary.application == "squares"


@pytest.mark.parametrize("ended", ["failed", "cancelled", "halted"])
async def test_a_run_that_is_resumed_runs_before_it_saves_anything_else(store: Any, ended: str):
    calls: list[str] = []

    @action(writes=["m"])
    async def slow() -> int:
        calls.append(ended)
        if len(calls) == 1 and ended == "failed":
            raise LookupError
        await anyio.sleep(1)
        return 1

    app = Application(slow, name="app")
    before = [slow] if ended == "halted" else []
    async with shoal.Runtime(store=store) as runtime:
        with anyio.move_on_after(0.5), suppress(LookupError):
            await runtime.run(app, id="a", halt_before=before)
        queries = Queries(store)
        assert (await queries.overview("a")).status == ended
        async with app.open(id="a", runtime=runtime) as again:
            await anyio.sleep(0.5)
            assert (await queries.overview("a")).status == "running"
            assert [one.run_id for one in (await queries.runs(status="running")).runs] == ["a"]
            assert (await again.result()).status == "succeeded"
        assert (await queries.overview("a")).status == "succeeded"


async def test_failures_of_a_later_execution_are_grouped_anew(store: Any):
    words = ["first"]

    @action(reads=["n"], writes=["m"])
    async def fails(n: int) -> int:
        raise LookupError(words[-1])

    each = fan_out(fails, over="ns", item="n", key=str, into="ms", on_error="ignore", name="each")
    app = Application(each, name="each")
    queries = Queries(store)
    async with shoal.Runtime(store=store) as runtime:
        await runtime.run(app, {"ns": [1, 2]}, id="a")
        before = await queries.overview("a")
        words.append("second")
        await anyio.sleep(1)
        await app.retry_failed("a", runtime=runtime)
        after = await queries.overview("a")
    assert [(group.count, group.message) for group in before.failures.groups] == [(2, "first")]
    assert [(group.count, group.message) for group in after.failures.groups] == [(2, "second")]


async def test_the_page_of_a_child_is_the_page_of_a_run(store: Any):
    child = fan_out(
        Graph.chain(numbers, name="inner"),
        over="batches",
        item="numbers",
        key=lambda batch: str(batch[0]),  # pyright: ignore[reportUnknownLambdaType]
        take="squares",
        into="all",
        name="outer",
    )
    await run(Application(child), store, {"batches": [[0, 1], [2, 3]]}, id="a")
    queries = Queries(store)
    at = path("a", ("outer", 0, "inner", "2"))
    found = await queries.overview(path_text(at))
    assert found.path == at
    assert found.row.status == "succeeded"
    assert found.row.has_children
    assert found.breadcrumbs == [path("a")]
    assert found.counts == {"succeeded": 1, "failed": 1}
    below = await queries.children(at)
    assert [row.path.key for row in below.rows] == ["3", "2"]
    deepest = await queries.overview(below.rows[0].path)
    assert deepest.breadcrumbs == [path("a"), at]
    assert deepest.headline.text.startswith("failed after 3 s: LookupError: no square of 3")


async def test_an_unknown_run_is_refused(store: Any):
    queries = Queries(await squared(store))
    for text in ("b", "a/numbers:0:square:99", "a/numbers", ""):
        with pytest.raises(UnknownRun):
            await queries.overview(text)


async def test_what_runs_now_is_known_from_the_last_report():
    slow = Application(numbers, name="squares")
    async with running(slow, {"numbers": [0, 1, 2, 3, 50, 50.5]}) as memory:
        await anyio.sleep(10)
        store = Reporting(memory)
        now = path("a", ("numbers", 0, "square", "50"))
        store.write(
            report(
                spent={"action": 2.0, "slot": 8.0},
                steps=(
                    LiveStep(path=path(), step="numbers", visit=0, total=6, in_flight=2, title="t"),
                ),
                longest=(LiveRun(path=now, step="square", doing="action", since=9.0, age=9.5),),
                costs={"openai": 2.5},
            ),
            age=0.5,
        )
        queries = Queries(store)
        found = await queries.overview("a")
        assert found.headline.text.startswith("4 of 6 · 1 failed · 2 running")
        assert found.headline.text.endswith(
            "held up by slots (100 % of waiting) · 2.5 spent at openai"
        )
        assert (found.bars[0].total, found.bars[0].in_flight, found.bars[0].title) == (6, 2, "t")
        assert found.report_age == pytest.approx(0.5, abs=0.4)
        assert [one.path for one in found.longest] == [now]
        child = await queries.overview(now)
        assert child.status == "running"
        assert child.headline.text == "running square", "the root run waits, not the child"
        assert child.row.began_at is not None, "the store doesn't know the child yet"
        assert [one.path for one in child.longest] == [now]
        store.reports["a"] = store.reports["a"]._replace(text='{"run_id": 1}')
        assert (await queries.overview("a")).report is None, "of a later version of shoal"
        other = await queries.overview("a/numbers:0:square:1")
        assert other.longest == []
        assert (await queries.runs()).runs[0].status == "running"


async def test_a_child_that_has_ended_does_nothing_by_an_old_report():
    async with running(squares, {"numbers": [0, 1, 50]}) as memory:
        await anyio.sleep(10)
        store = Reporting(memory)
        ended = path("a", ("numbers", 0, "square", "1"))
        below = RunPath(parent=ended, step="parts", visit=0, act="part", key="x")
        live: Any = {"step": "part", "doing": "action", "since": 9.0, "age": 9.5}
        store.write(
            report(
                spent={"slot": 8.0},
                steps=(LiveStep(path=ended, step="parts", visit=0, total=2, in_flight=1),),
                longest=(LiveRun(path=ended, **live), LiveRun(path=below, **live)),
            )
        )
        found = await Queries(store).overview(ended)
    assert found.status == "succeeded"
    assert found.longest == found.bars == []
    assert found.headline.running == 0
    assert found.headline.text == "succeeded after 1 s"


async def test_a_run_whose_process_has_died_is_lost():
    async with running(squares, {"numbers": [0, 1, 50]}) as memory:
        await anyio.sleep(10)
        store = Reporting(memory.copy())  # what a durable store has if the process dies now
        live = LiveStep(path=path(), step="numbers", visit=0, total=3, ended=2, in_flight=1)
        store.write(report(steps=(live,)))
        found = await Queries(store).overview("a")
    assert found.is_lost
    assert found.status == "running"
    assert found.headline.text == (
        "lost: it has no end, and no process executes it · 2 of 3 · 1 lost"
    )
    assert found.headline.running == 0
    assert found.longest == []


@pytest.mark.parametrize("is_lost", [False, True])
async def test_children_in_flight_have_bars_in_the_timeline(is_lost: bool):
    async with running(squares, {"numbers": [0, 1, 50, 51]}) as memory:
        await anyio.sleep(10)
        store = Reporting(memory.copy() if is_lost else memory)
        now, busy = (path("a", ("numbers", 0, "square", key)) for key in ("50", "51"))
        ended = path("a", ("numbers", 0, "square", "1"))
        live: Any = {"step": "square", "doing": "action", "since": 9.0, "age": 90.0}
        longest = tuple(LiveRun(path=one, **live) for one in (now, ended))
        below = LiveStep(path=busy, step="parts", visit=0, age=80.0)
        store.write(report(longest=longest, steps=(below,)), age=5)
        found = await Queries(store).timeline("a")
        assert found.begins_at is not None
        assert found.ends_at is not None
    assert [(one.path.key, one.status) for one in found.bars] == [
        *(("50", "running"), ("51", "running"))
    ]
    assert (found.total, found.omitted) == (4, 2), "this store has no times of those that ended"
    # 95 s ago; and a process that is gone was last heard of 5 s ago.
    assert found.ends_at - found.begins_at == pytest.approx(90 if is_lost else 95, abs=1)


@pytest.mark.parametrize("how", ["cancelled", "halted", "lost"])
async def test_a_run_that_has_ended_early_says_of_how_many(how: str):
    store = MemoryStore()
    step = fan_out(square, over="ns", item="n", key=str, into="squares", limits=shoal.Limits(2))
    async with shoal.Runtime(store=store, watch=True) as runtime:
        handle = await runtime.start(Application(step), {"ns": [0, 1, 2, 5, 50, 52, 53]}, id="a")
        await anyio.sleep(10)
        match how:
            case "halted":
                handle.drain("enough")
            case "lost":
                await runtime.drain(0)
            case _:
                handle.cancel("enough")
        await handle.wait_ended()
        found = await Queries(store).overview("a")
    assert how == ("lost" if found.is_lost else found.status)
    assert "6 of 7" in found.headline.text


async def test_the_pace_is_that_of_the_last_seconds():
    async with running(squares, {"numbers": [0, *range(100, 200)]}) as memory:
        queries = Queries(memory)
        await anyio.sleep(90)
        assert (await queries.overview("a")).headline.pace is None, "nothing to compare with"
        for _ in range(2):
            await anyio.sleep(10)
            await queries.overview("a")
        await anyio.sleep(10)
        found = await queries.overview("a")
        assert found.headline.pace == pytest.approx(1.0, abs=0.2)


class Resumed(Reporting):
    """A store in which the run has begun half an hour ago, and was resumed 12 seconds ago."""

    async def summary(self, run_id: str) -> RunSummary | None:
        found = await super().summary(run_id)
        ended_at = None if found is None or found.ended_at is None else time.time()
        return found and found._replace(began_at=time.time() - 1800, ended_at=ended_at)

    async def row(self, path: RunPath) -> Row | None:
        found = await super().row(path)
        return found and found._replace(
            began_at=time.time() - 1800,
            ended_at=None if found.status == "running" else time.time(),
            elapsed=0.0 if found.status == "running" else 1800.0,
        )

    async def timeline(self, path: RunPath, *, bins: int = 60) -> Sequence[Bin]:
        now = time.time()
        first = Bin(now - 1800, now - 1798, {"succeeded": 40})
        return [first, Bin(now - 6, now - 4, {"succeeded": 6}), Bin(now - 2, now, {"succeeded": 6})]


async def test_the_pace_of_a_resumed_run_is_that_of_its_last_execution():
    async with running(Application(numbers), {"numbers": [0, 1, 2, 50]}) as memory:
        await anyio.sleep(10)
        store = Resumed(memory)
        store.write(report(spent={"action": 12.0}), age=0.1)
        found = await Queries(store).overview("a")
        assert found.headline.pace == pytest.approx(1.2, abs=0.05), "12 in the last 10 s"
        explained = await Queries(store).explain("a")
    (note,) = explained.notes
    assert note == (
        "the run was resumed: the shares and the advice are those of its last execution, which "
        "has taken 12 s; children that had ended before took their times then"
    )
    assert explained.critical_path[0].seconds == pytest.approx(12.0)


async def test_what_was_cancelled_and_runs_again_has_not_ended():
    app, state = Application(numbers), {"numbers": [0, 1, 50, 50.5]}
    memory = MemoryStore()
    with anyio.move_on_after(10):
        await run(app, memory, state, id="a")
    async with shoal.Runtime(store=memory) as runtime:
        handle = await runtime.start(app, state, id="a")
        await anyio.sleep(10)
        store = Resumed(memory)
        live = LiveStep(path=path(), step="numbers", visit=0, total=4, ended=2, in_flight=2)
        store.write(report(spent={"action": 12.0}, steps=(live,)), age=0.1)
        found = await Queries(store).overview("a")
        handle.cancel("the test is over")
    assert found.counts == {"succeeded": 2, "cancelled": 2}, "as the store has them"
    assert found.headline.text.startswith("2 of 4 · 2 running")


async def test_the_pace_of_a_resumed_run_that_has_ended():
    memory = await squared(MemoryStore())
    kept = Resumed(memory)
    kept.write(report(spent={"action": 12.0}, is_over=True), age=0.0)
    found = await Queries(kept).overview("a")
    assert found.headline.pace == pytest.approx(1.0, abs=0.05), "not 8 in half an hour"


async def test_losers_of_a_race_are_no_failures(store: Any):
    @action(writes=["a"])
    async def answer(text: str) -> str:
        await anyio.sleep(len(text))
        if not text:
            raise ConnectionError("gone")
        return text

    acts = [answer.bind(name=name, text=name[2:]) for name in ("1_", "2_yes", "3_later than that")]
    await run(Application(race(*acts, into="a", name="ask")), store, {}, id="a")
    queries = Queries(store)
    found = await queries.overview("a")
    assert found.failures.groups == ()
    assert (found.bars[0].failed, found.bars[0].lost) == (0, 2)
    assert found.headline.failed == 0
    rows = {row.path.act: row for row in (await queries.children("a")).rows}
    assert rows["3_later than that"].winner == rows["2_yes"].path
    explained = await queries.explain("a")
    assert [link.row.path.act for link in explained.critical_path][1:] == ["2_yes"], (
        "the race took as long as its winner"
    )


async def test_halted_children_are_listed(store: Any):
    @action(reads=["n"], writes=["square"])
    async def ask(n: int, context: shoal.Context) -> int:
        return await context.ask("how much", f"is {n} squared?")

    app = Application(fan_out(ask, over="numbers", item="n", key=str, into="squares", name="s"))
    await run(app, store, {"numbers": [2, 3]}, id="a")
    found = await Queries(store).overview("a")
    assert found.status == "halted"
    assert "halted" in found.headline.text
    assert "it waits for answers" in found.headline.text
    assert [one.key for one in found.questions] == ["2", "3"]


# -- lists -----------------------------------------------------------------------------------------


async def test_runs_have_pages(store: Any):
    store = MemoryStore()
    for at in range(7):
        app = squares if at % 2 else Application(numbers, name="other")
        await run(app, store, {"numbers": []}, id=f"r{at}")
    queries = Queries(store)
    first = await queries.runs(limit=4)
    assert [run.run_id for run in first.runs] == ["r6", "r5", "r4", "r3"]
    second = await queries.runs(limit=4, after=first.after)
    assert [run.run_id for run in second.runs] == ["r2", "r1", "r0"]
    assert second.after is None
    mine = await queries.runs(limit=2, application="squares")
    assert [run.run_id for run in mine.runs] == ["r5", "r3"]
    rest = await queries.runs(limit=2, application="squares", after=mine.after)
    assert [run.run_id for run in rest.runs] == ["r1"]
    assert rest.after is None
    assert (await queries.runs(status="failed")).runs == []


async def test_children_have_pages_failed_first(store: Any):
    queries = Queries(await squared(store))
    seen, after = list[Row](), None
    while True:
        page = await queries.children("a", after=after, limit=3)
        seen += page.rows
        after = page.after
        if after is None:
            break
    assert [row.path.key for row in seen] == ["3", "7", "0", "1", "2", "4", "5", "6"]
    slowest = await queries.children("a", order="slowest", limit=2)
    assert [row.path.key for row in slowest.rows] == ["7", "6"]
    (found,) = (await queries.children("a", key="5")).rows
    assert found.elapsed == pytest.approx(5.0, abs=0.01)
    assert len((await queries.children("a", status="failed")).rows) == 2


async def test_limits_of_running_runs_are_listed_once():
    use = LimitUse(owner="runtime", limits="Limits(20)", in_use=3, slots=20, waiting=1)
    async with running(squares, {"numbers": [50]}) as memory:
        store = Reporting(memory)
        store.write(report(limits=(use,)))
        queries = Queries(store)
        assert list(await queries.limits()) == [replace(use, holders=("a",))]
        assert list(await queries.limits("a")) == [use]
        assert list(await queries.limits("b")) == []
    assert list(await queries.limits()) == [], "the run is over"


async def test_all_executions_of_a_fan_out_count_as_one_limit_of_their_run():
    given: Any = {"owner": "parts", "limits": "in flight", "part": -1}
    uses = tuple(LimitUse(in_use=n, slots=2, waiting=n, **given) for n in (2, 1, 2))
    other = LimitUse(owner="runtime", limits="Limits(20)", in_use=3, slots=20, waiting=1)
    async with running(squares, {"numbers": [50]}) as memory:
        store = Reporting(memory)
        store.write(report(limits=(*uses[:2], other, uses[2])))
        found = await Queries(store).limits()
    whole = LimitUse(in_use=5, slots=6, waiting=5, keys=3, holders=("a",), **given)
    assert list(found) == [whole, replace(other, holders=("a",))]


# -- history, values -------------------------------------------------------------------------------


async def test_the_history_says_what_each_update_changed(store: Any):
    @action(reads=["squares"], writes=["total", "log"])
    async def add(squares: dict[str, int]) -> dict[str, object]:
        return {"total": sum(squares.values()), "log": ["x" * 1000]}

    app = Application(Graph.chain(numbers, add), name="squares")
    await run(app, store, {"numbers": [1, 3]}, id="a")
    queries = Queries(store)
    found = (await queries.history("a")).entries
    updates = [entry for entry in found if entry.changes]
    assert [str(entry.changes[0]) for entry in updates[:2]] == ["squares = {}", 'squares["1"] = 1']
    assert updates[0].child is None
    assert updates[1].child is not None
    assert updates[1].child.path.key == "1"
    assert [(one.field, one.how) for one in updates[-1].changes] == [
        ("total", "set"),
        ("log", "set"),
    ]
    assert updates[-1].changes[1].size == 1004
    assert len(updates[-1].changes[1].value) == 200
    assert {entry.kind for entry in found} == {"update", "begun", "completed"}
    page, seen = await queries.history("a", limit=1), list[Any]()
    while True:
        seen += page.entries
        if page.after is None:
            break
        page = await queries.history("a", after=page.after, limit=1)
    assert seen == list(found)


@pytest.mark.parametrize("count", [8, 150])
async def test_the_history_can_be_read_from_its_end(store: Any, count: int):
    quick = fan_out(same, over="numbers", item="n", key=str, into="all", name="numbers")
    await run(Application(quick, name="all"), store, {"numbers": [*range(count)]}, id="a")
    queries = Queries(store)
    whole = (await queries.history("a", limit=1000)).entries
    page, seen = await queries.history("a", limit=50, newest_first=True), list[Any]()
    seen += page.entries
    while page.after is not None:
        page = await queries.history("a", after=page.after, limit=50, newest_first=True)
        seen += page.entries
    assert seen == list(reversed(whole))
    assert seen[0].number >= count


async def test_values_are_shortened_and_their_size_is_told(store: Any):
    await run(squares, store, {"numbers": [2], "more": "x" * 50_000}, id="a")
    queries = Queries(store)
    first = await queries.value("a", "first")
    assert first is not None
    assert not first.is_complete
    assert len(first.text) == 10_000
    assert first.size > 50_000
    value = await queries.value("a/numbers:0:square:2", "value")
    assert value is not None
    assert (value.text, value.size, value.is_complete) == ("4", 1, True)
    assert await queries.value("a/numbers:0:square:2", "error") is None


# -- time ------------------------------------------------------------------------------------------


async def test_an_explanation_without_a_report_has_the_critical_path(store: Any):
    found = await Queries(await squared(store, 9)).explain("a")
    assert found.shares == {}
    assert found.is_over
    assert "there is no report" in found.notes[0]
    assert [link.row.path for link in found.critical_path] == [
        path(),
        path("a", ("numbers", 0, "square", "8")),
    ]
    assert found.critical_path[0].step == "numbers"
    assert [row.path.key for row in found.slowest] == ["8", "7", "6", "5", "4"]
    if not isinstance(store, SQLiteStore | PostgresStore):  # whose times are real
        assert found.seconds == pytest.approx(8.0, abs=0.01)


async def test_an_explanation_has_the_shares_of_the_report():
    store = Reporting(await squared(MemoryStore()))
    store.write(report(spent={"action": 4.0, "slot": 6.0}, is_over=True))
    found = await Queries(store).explain("a/numbers:0:square:7")
    assert found.shares == {"slot": 0.6, "action": 0.4}
    assert "the whole root run a" in found.notes[0]
