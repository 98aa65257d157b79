"""Old runs deleted from a file little by little, results in it, and lists of what is in it."""

# pyright: reportPrivateUsage=false
# The thread's database is looked at while it works.

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path
from textwrap import dedent
from typing import Any

import anyio
import pytest

from shoal import Application, Codec, Graph, RunClaimed, RunPath, SQLiteStore, action, fan_out
from shoal.events import Set
from shoal.stores._sql import browsing as _browsing
from shoal.stores._sql import pruning as _pruning
from shoal.stores._sql import results as _cached
from shoal.stores._sql import store as _durable
from shoal.stores._sqlite.database import SQLITE, SQLiteDatabase
from shoal.testing import HandMadeRun, child_run, no_leaks
from shoal.testing._hand_made import ROOT, claimed, save, update_of

anyio_test = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


def store_at(path: Path, **more: Any) -> SQLiteStore:
    return SQLiteStore(path, synchronous="normal", **more)


def rows(path: Path, query: str, *values: object) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path, isolation_level=None, timeout=20)) as connection:
        return connection.execute(query, values).fetchall()


def left(path: Path) -> int:
    """Count the rows that runs have in the file."""
    return sum(
        rows(path, f"SELECT count(*) FROM {table}")[0][0] for table in ("runs", "roots", "history")
    )


@action(reads=["item"], writes=["page"])
async def fetch(item: int) -> str:
    if item % 10 == 3:
        raise LookupError(item)
    return f"{item}" * 20


@action(reads=["page"], writes=["out"])
async def parse(page: str) -> str:
    return page


crawl = fan_out(
    Graph.chain(fetch, parse, name="page"),
    over="items",
    item="item",
    key=str,
    into="outs",
    take="out",
    errors_into="bad",
    on_error="collect",
)


async def crawled(store: SQLiteStore, run_id: str, count: int) -> None:
    """Have a run in the store whose children have histories."""
    app = Application(crawl, name="crawl", store=store)
    await app.run({"items": range(count)}, id=run_id)


# -- little by little ------------------------------------------------------------------------------


@contextmanager
def watched_sweeps(monkeypatch: pytest.MonkeyPatch, at_once: int) -> Generator[list[int]]:
    """Sweep a few rows at once; say how many rows each transaction has deleted."""
    deleted: list[int] = []
    sweep: Callable[[SQLiteDatabase, int], bool] = SQLiteDatabase.sweep

    def watched(database: SQLiteDatabase, limit: int) -> bool:
        before = database._sql.total_changes
        has_more = sweep(database, limit)
        deleted.append(database._sql.total_changes - before)
        return has_more

    with monkeypatch.context() as patch:
        patch.setattr(SQLiteDatabase, "sweep", watched)
        patch.setattr(_durable, "SOME", at_once)
        yield deleted


@anyio_test
async def test_each_transaction_deletes_a_few_rows_and_others_save_in_between(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    store, other = store_at(path), store_at(path)
    await crawled(store, "old", 30)
    total = left(path)
    assert total > 60
    async with no_leaks(), claimed(other):
        with watched_sweeps(monkeypatch, 10) as deleted:
            done = anyio.Event()

            async def prune() -> None:
                assert await store.prune(0) == 1
                done.set()

            saves = 0
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(prune)
                while not done.is_set():
                    await save(other, updates=(update_of(saves + 1),), before=saves)
                    saves += 1
                    await anyio.sleep(_durable.PAUSE / 2)
        assert len(deleted) > total / 20
        assert max(deleted) <= 2 * 10 + 1, "a row may be condemned before it is deleted"
        assert saves > 5
        assert len(await other.read(ROOT)) == saves
    assert left(path) == 2 + saves


@anyio_test
async def test_cancelled_it_has_deleted_whole_runs_and_the_next_goes_on(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = store_at(path)
    await crawled(store, "old", 30)
    before = left(path)
    with watched_sweeps(monkeypatch, 5) as deleted:
        async with no_leaks(), anyio.create_task_group() as tasks:

            async def cancel() -> None:
                while len(deleted) < 4:
                    await anyio.sleep(_durable.PAUSE)
                tasks.cancel_scope.cancel()

            tasks.start_soon(cancel)
            await store.prune(0)
    assert 0 < left(path) < before
    for each in (store, store_at(path)):
        assert await each.load("old") is None
        assert list(await each.runs()) == []
        assert list(await each.children(RunPath(run_id="old"))) == []
    await crawled(store, "old", 3)  # it begins anew, whatever is left
    assert dict(await store.counts(RunPath(run_id="old"))) == {"succeeded": 3}
    assert await store.prune(3600) == 0
    assert len(rows(path, "SELECT id FROM runs WHERE parent = ?", _pruning.CONDEMNED)) == 0
    assert left(path) == 2 + 3 + rows(path, "SELECT count(*) FROM history")[0][0]


def test_runs_that_were_claimed_or_ended_anew_meanwhile_stay(path: Path):
    for run_id in ("a", "b", "c"):
        anyio.run(crawled, store_at(path), run_id, 1)
    with closing(sqlite3.connect(path, isolation_level=None)) as sql:
        old = _pruning.old_runs(sql, SQLITE, time.time(), ["succeeded"])
        assert sorted(old) == ["a", "b", "c"]
        elsewhere = "execution = 'new', host = 'far', boot = 'far'"
        sql.execute(f"UPDATE claims SET {elsewhere} WHERE run_id = 'a'")
        sql.execute("UPDATE roots SET ended_at = ended_at + 1000 WHERE run > 4")  # that of "c"
        assert _pruning.condemn_old(sql, SQLITE, old, time.time(), ["succeeded"]) == 1
        assert rows(path, "SELECT run_id FROM root_runs") == [("a",), ("c",)]


@anyio_test
async def test_discarding_too_is_done_little_by_little(path: Path, monkeypatch: pytest.MonkeyPatch):
    store = store_at(path)
    await crawled(store, "old", 20)
    await crawled(store, "new", 2)
    kept = left(path)
    async with claimed(store):
        with pytest.raises(RunClaimed):
            await store.discard("root")
        with watched_sweeps(monkeypatch, 10) as deleted:
            await store.discard("old")
            await store.discard("unknown")
    assert len(deleted) > 5
    assert [run.run_id for run in await store.runs()] == ["root", "new"]
    assert 5 < left(path) < kept / 5


# -- room ------------------------------------------------------------------------------------------


@anyio_test
async def test_the_file_shrinks_by_what_was_deleted(path: Path):
    store = store_at(path)
    await crawled(store, "small", 1)
    small = path.stat().st_size
    await crawled(store, "large", 200)
    assert path.stat().st_size > 1.5 * small
    assert await store.prune(0) == 2
    assert path.stat().st_size <= small
    assert rows(path, "PRAGMA freelist_count") == [(0,)]
    assert rows(path, "PRAGMA integrity_check") == [("ok",)]


@anyio_test
async def test_a_file_that_can_not_shrink_has_room_for_what_comes(path: Path):
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript((Path(__file__).parent / "layout-1.sql").read_text())
    store = store_at(path)
    await crawled(store, "large", 200)
    size = path.stat().st_size
    async with no_leaks():
        assert await store.prune(0) == 3
    assert rows(path, "PRAGMA freelist_count")[0][0] > 10
    await crawled(store, "large", 200)
    assert path.stat().st_size < 1.2 * size


# -- which -----------------------------------------------------------------------------------------


@anyio_test
async def test_it_is_the_end_that_counts_and_else_the_last_sign_of_life(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    store, real = store_at(path), time.time
    for age in (300, 200, 100):
        monkeypatch.setattr(time, "time", lambda age=age: real() - age)
        ended = HandMadeRun(path=RunPath(run_id=f"ended {age}", act="app"))
        async with claimed(store, ended):
            ended.status = "succeeded"
            await save(store, ended, ended="succeeded")
        async with claimed(store, HandMadeRun(path=RunPath(run_id=f"left {age}", act="app"))):
            pass
    monkeypatch.undo()
    assert await store.prune(250) == 1
    assert await store.prune(150, ["running"]) == 2
    assert {run.run_id for run in await store.runs()} == {"ended 200", "ended 100", "left 100"}


@anyio_test
async def test_where_there_is_no_file_there_is_nothing_to_delete(path: Path):
    store = store_at(path)
    assert await store.prune(0) == 0
    assert await store.recall("a") is None
    assert dict(await store.counts(ROOT)) == {}
    assert not path.exists()


# -- results ---------------------------------------------------------------------------------------


@anyio_test
async def test_results_last_by_the_clock_that_processes_share(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    real = time.time
    async with store_at(path) as store, store_at(path) as other:
        await store.remember("a", (Set("n", 1),), 60)
        await store.remember("ever", (), inf)
        for passed, is_there in ((59, True), (61, False), (1e9, False)):
            monkeypatch.setattr(time, "time", lambda passed=passed: real() + passed)
            assert (await other.recall("a") is not None) is is_there
            assert await other.recall("ever") is not None


@anyio_test
async def test_what_has_run_out_goes_with_what_comes(path: Path, monkeypatch: pytest.MonkeyPatch):
    real = time.time
    async with store_at(path) as store:
        for number in range(25):
            await store.remember(f"{number}", (), 60)
        monkeypatch.setattr(time, "time", lambda: real() + 61)
        for number in range(3):
            await store.remember(f"new {number}", (), 60)
        assert rows(path, "SELECT count(*) FROM results") == [(3,)]
        monkeypatch.setattr(time, "time", lambda: real() + 200)
        await store.prune(0)
        assert rows(path, "SELECT count(*) FROM results") == [(0,)]


@dataclass
class Page:
    title: str


@anyio_test
async def test_what_can_not_be_read_any_more_is_as_good_as_none(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with store_at(path) as store:
        await store.remember("a", (Set("page", Page("x")),), 60)
        assert await store.recall("a") is not None
        monkeypatch.delattr(sys.modules[__name__], "Page")
        assert await store_at(path, codec=Codec()).recall("a") is None


# -- in time ---------------------------------------------------------------------------------------


class Explaining:
    """A connection that says how each query would be answered."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.plans: list[str] = []

    def execute(self, sql: str, values: Any = ()) -> Any:
        plan = self.connection.execute(f"EXPLAIN QUERY PLAN {sql}", values)
        self.plans.append(" / ".join(row[-1] for row in plan))
        return self.connection.execute(sql, values)

    def executemany(self, sql: str, values: Any) -> object:
        return self.connection.executemany(sql, values)

    def close(self) -> None:
        self.connection.close()


def test_no_query_sorts_or_looks_at_all_rows(path: Path):
    anyio.run(crawled, store_at(path), "x", 20)
    with closing(Explaining(sqlite3.connect(path))) as sql:
        for status in (None, "running", "failed"):
            for after in (None, "x"):
                _browsing.runs(sql, SQLITE, status, 10, after)
        _browsing.summary(sql, SQLITE, "x")
        _browsing.counts(sql, 1)
        sql.execute(f"SELECT id FROM runs WHERE {_browsing.FAILURES}", (1, 10, 0))
        _cached.remember(sql, SQLITE, "a", "", 1)
        _cached.recall(sql, "a", 1)
        _pruning.condemn_old(sql, SQLITE, ["x"], inf, ["succeeded"])
        _pruning.sweep(sql, 100)
        for plan in sql.plans:
            assert "TEMP B-TREE" not in plan
            # one row that is there once, and the root runs in their own order
            assert "SCAN" not in plan.replace("SCAN roots /", "")


ASKING = """
    import sys, time, anyio
    from shoal import RunPath, SQLiteStore

    async def main():
        async with SQLiteStore(sys.argv[1], synchronous="normal") as store:
            path = RunPath(run_id="root")
            print("ready", flush=True)
            for _ in sys.stdin:
                began = time.perf_counter()
                counts = await store.counts(path)
                between = time.perf_counter()
                failures = await store.failures(path)
                ended = time.perf_counter()
                assert len(failures) == 50 and sum(counts.values()) > 80_000
                print(between - began, ended - between, flush=True)

    anyio.run(main)
"""


@pytest.mark.slow
def test_a_hundred_thousand_children_are_looked_at_in_time(path: Path):
    """By another process, while the run writes."""
    store, count, size = store_at(path), 100_000, 1000
    took: list[tuple[float, ...]] = []

    def save_more(first: int) -> list[HandMadeRun]:
        return [
            child_run(f"key {number}", value={"n": number}, position=number)
            if number % 50
            else child_run(f"key {number}", status="failed", error=LookupError("no"))
            for number in range(first, first + size)
        ]

    async def main() -> None:
        async with claimed(store):
            for first in range(0, count, size):
                await save(store, unapplied=save_more(first))
                if first > count - 11 * size:
                    print("ask", file=asking.stdin, flush=True)
                    await save(store, updates=(update_of(first),), before=first - 1)
                    took.append(tuple(map(float, said().split())))

    command = [sys.executable, "-c", dedent(ASKING), str(path)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as asking:
        assert asking.stdout is not None
        said = asking.stdout.readline
        assert said() == "ready\n"
        anyio.run(main)
        asking.communicate()
    assert asking.returncode == 0
    assert min(counting for counting, _ in took) < 0.050, took
    assert min(failing for _, failing in took) < 0.005, took
