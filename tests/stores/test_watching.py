"""What watchers read of stores in databases, beyond what every store has to answer."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from shoal import Application, Graph, RunPath, SQLiteStore, StoreFailed, action, fan_out
from shoal.stores import Command
from shoal.stores._row_order import STATUSES
from shoal.stores._sql import inspecting as _inspecting
from shoal.stores._sql.inspecting import Inspector
from shoal.stores._sqlite.database import SQLITE
from shoal.testing import child_run
from shoal.testing._conformance_watching import CROWD, ORDERS, crowd, paged
from shoal.testing._hand_made import ROOT, HandMadeRun, claimed, save, update_of

from .durable import InFile, InSchema, Kept
from .postgres import PostgresServer
from .test_sqlite_pruning import Explaining

pytestmark = pytest.mark.anyio

POSTGRES = pytest.param("postgres", marks=pytest.mark.services)
KEPT = Path(__file__).parents[1] / "kept"


@pytest.fixture(params=["sqlite", POSTGRES])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> Kept:
    if request.param == "sqlite":
        return InFile(tmp_path / "runs.db")
    return InSchema(request.getfixturevalue("postgres"))


# -- pages of many children ------------------------------------------------------------------------


async def test_pages_of_many_children_are_those_of_few(kept: Kept, monkeypatch: pytest.MonkeyPatch):
    """Few children of a step are sorted here; more are read along indices, or from the table."""
    wanted: list[dict[str, Any]] = [
        {"step": step, "status": status}
        for step in (None, "map", "again")
        for status in (None, "failed", "succeeded", "running")
    ]
    async with kept.store() as store:
        await crowd(store)
        few = [[await paged(store, order, 100, **one) for one in wanted] for order in ORDERS]
        monkeypatch.setattr(_inspecting, "FEW", 2)
        for limit in (4, 100):
            many = [[await paged(store, order, limit, **one) for one in wanted] for order in ORDERS]
            assert many == few
    assert [len(of_order[0]) for of_order in few] == [CROWD] * len(ORDERS)


async def test_a_search_says_what_it_leaves_out(kept: Kept, monkeypatch: pytest.MonkeyPatch):
    store = kept.store()
    await crowd(store)
    assert (await store.rows(ROOT, key=".")).left_out == ""
    monkeypatch.setattr(_inspecting, "SEARCHED", 30)
    assert (await store.rows(ROOT, key=".")).left_out == "all but 30 keys"
    monkeypatch.setattr(_inspecting, "FOUND", 10)
    page = await store.rows(ROOT, key=".")
    assert page.left_out == "all but the first 10 children whose key contains it"
    assert len(page.rows) == 10


def test_pages_go_along_indices(tmp_path: Path):
    store = InFile(tmp_path / "runs.db").store()
    anyio.run(crowd, store)
    with closing(Explaining(sqlite3.connect(tmp_path / "runs.db"))) as sql:
        inspector = Inspector(sql, SQLITE, store._config.codec, lambda _: set())
        for status in (None, *STATUSES):
            for step in (None, "map"):
                for order in ("failed first", "ended last"):
                    inspector.rows(
                        ROOT, step=step, status=status, key=None, order=order, after=None, limit=9
                    )
        assert not [plan for plan in sql.plans if "TEMP B-TREE" in plan], "no query sorts"
        inspector.children_of_key(ROOT, "map", "a")
        inspector.entries(ROOT, None, 0, 5)
        inspector.entries(ROOT, ("asked", "answered"), 0, 5)
        inspector.spawned(ROOT)
        inspector.text(ROOT, "first")
        for plan in sql.plans:
            assert "SCAN" not in plan.replace("SCAN CONSTANT ROW", "")


def test_children_are_tallied_without_looking_at_most_of_them(tmp_path: Path):
    """By the virtual machine of SQLite, because times vary."""
    store = InFile(tmp_path / "runs.db").store()

    async def fill() -> None:
        async with claimed(store):
            children = [child_run(at, value="x" * 50) for at in range(3000)]
            updates = [update_of(at + 1) for at in range(3000)]
            failed = [child_run(f"f{at}", status="failed", error=ValueError()) for at in range(30)]
            await save(store, updates=updates, applied=children, unapplied=failed)

    anyio.run(fill)
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    with closing(sqlite3.connect(tmp_path / "runs.db")) as sql:
        inspector = Inspector(sql, SQLITE, store._config.codec, lambda _: set())
        sql.set_progress_handler(count, 1)
        (tally,) = inspector.tallies(ROOT)
    assert tally.counts == {"failed": 30, "succeeded": 3000}
    assert steps < 3030 * 22, "an index is read twice, and no table"


# -- times -----------------------------------------------------------------------------------------


async def test_programs_that_query_see_when_children_ended(kept: Kept):
    store = kept.store()
    async with claimed(store):
        done, lost = child_run("done", elapsed=2.0), child_run("lost", status="cancelled")
        await save(store, updates=(update_of(1),), applied=(done,), unapplied=(lost,))
        await save(store, child_run("under way", status=None), updates=(update_of(1),))
    as_number = "extract(epoch FROM {})" if isinstance(kept, InSchema) else "{}"
    columns = ", ".join(as_number.format(name) for name in ("began_at", "ended_at"))
    found = {
        key: (began, ended)
        for key, began, ended in kept.rows(f"SELECT key, {columns} FROM child_runs")
    }
    assert found.pop("under way") == (None, None)
    for key, (began, ended) in found.items():
        row = await store.row(child_run(key).path)
        assert row is not None
        assert float(began) == pytest.approx(row.began_at)
        assert float(ended) == pytest.approx(row.ended_at)


async def test_children_of_an_earlier_layout_have_no_times(tmp_path: Path):
    """Nor do they get those of saves that were made later."""
    file = tmp_path / "runs.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript((KEPT / "sqlite-5.sql").read_text())
    path = RunPath(run_id="listed")
    store = SQLiteStore(file, synchronous="normal")
    before = list((await store.rows(path)).rows)
    assert before
    assert {row.ended_at for row in before} == {None}
    assert list(await store.timeline(path)) == []
    assert list(await store.times(path)) == []
    async with claimed(store, HandMadeRun(path=path), begin=False):
        late = child_run("late", parent=path, step="listed")
        await save(
            store, HandMadeRun(path=path), updates=(update_of(100, "listed"),), applied=(late,)
        )
    for order in ORDERS:
        rows = await paged_of(store, path, order)
        assert [row.path for row in rows if row.ended_at is not None] == [late.path]
        assert len(rows) == len(before) + 1
    assert [dict(one.counts) for one in await store.timeline(path)] == [{"succeeded": 1}]


async def paged_of(store: SQLiteStore, path: RunPath, order: Any) -> list[Any]:
    rows: list[Any] = []
    after: str | None = None
    while True:
        page = await store.rows(path, order=order, after=after, limit=1)
        rows += page.rows
        after = page.after
        if after is None:
            return rows


@pytest.mark.services
async def test_a_reader_migrates_an_older_schema(postgres: PostgresServer):
    place = InSchema(postgres)
    dump = (KEPT / "postgres-4.sql").read_text()
    postgres.execute(
        dump.replace("kept.", f"{place.schema}.").replace("SCHEMA kept;", f"SCHEMA {place.schema};")
    )
    store = place.store()
    assert len(await store.runs()) > 10, "they were taken for none"
    rows = (await store.rows(RunPath(run_id="listed"))).rows
    assert rows
    assert {row.ended_at for row in rows} == {None}


# -- steps in which children fail ------------------------------------------------------------------


async def test_a_watcher_sees_in_which_step_a_child_failed(kept: Kept):
    @action(reads=["n"], writes=["half"])
    async def halve(n: int) -> int:
        if n == 1:
            raise ValueError("odd")
        return n // 2

    @action(reads=["half"], writes=["out"])
    async def check(half: int) -> int:
        if half == 1:
            raise LookupError("too small")
        return half

    act = Graph.chain(halve, check, name="both")
    steps = [
        fan_out(
            of,
            over="numbers",
            item="n",
            into=f"into_{name}",
            take=take,
            on_error="collect",
            errors_into=f"bad_{name}",
            name=name,
        )
        for name, of, take in (("many", act, "out"), ("one", halve, "half"))
    ]
    store = kept.store()
    await Application(Graph.chain(*steps), store=store).run({"numbers": [1, 2, 4]}, id="root")
    rows = await store.failed_rows(ROOT)
    assert [(row.path.step, row.path.key, row.failed_step) for row in rows] == [
        ("many", 0, "halve"),
        ("many", 1, "check"),
        ("one", 0, ""),
    ]
    assert [tally.step for tally in await store.tallies(ROOT)] == ["many", "one"]
    assert [dict(tally.counts) for tally in await store.tallies(ROOT)] == [
        {"failed": 2, "succeeded": 1},
        {"failed": 1, "succeeded": 2},
    ]


# -- reports and commands --------------------------------------------------------------------------


async def test_an_execution_that_has_lost_its_run_reports_nothing(kept: Kept):
    late, other, watcher = kept.store(), kept.store(), kept.store()
    cancel = Command(run_id="root", kind="cancel")
    async with claimed(late):
        await late.report({"root": '"before"'})
        await watcher.command(cancel)
        kept.rows("UPDATE claims SET epoch = epoch + 1, execution = 'another'")
        assert list(await late.report({"root": '"too late"'})) == []
        report = await watcher.reported("root")
        assert report is not None
        assert report.text == '"before"'
        assert list(await other.report({"root": '"of no execution"'})) == []
        assert await watcher.reported("root") == report


@pytest.mark.parametrize("by", ["prune", "discard"])
async def test_what_watchers_read_goes_with_the_run(kept: Kept, by: str):
    store, watcher = kept.store(), kept.store()
    await crowd(store)
    async with claimed(store, begin=False):
        await store.report({"root": "{}"})
        await watcher.command(Command(run_id="root", kind="cancel"))
        await save(store, HandMadeRun(status="succeeded"), ended="succeeded")
    tables = ("saves", "reports", "commands", "roots", "runs", "history")
    for table in tables:
        assert kept.rows(f"SELECT count(*) FROM {table}") != [(0,)], table
    if by == "prune":
        assert await store.prune(0) == 1
    else:
        await store.discard("root")
    for table in tables:
        assert kept.rows(f"SELECT count(*) FROM {table}") == [(0,)], table


async def test_a_child_that_begins_anew_keeps_no_times(kept: Kept):
    store = kept.store()
    child, inner = child_run("a", status=None), child_run("b", parent=child_run("a").path)
    async with claimed(store):
        await save(store, child, updates=(update_of(1),), applied=(inner,))
        assert kept.rows("SELECT count(*) FROM saves") == [(1,)]
        await save(store, child, updates=(update_of(1),), afresh=True)
        assert kept.rows("SELECT count(*) FROM saves") == [(0,)]


async def test_a_report_does_not_wait_for_the_disk(tmp_path: Path):
    store = SQLiteStore(tmp_path / "runs.db", synchronous="full")
    async with claimed(store):
        assert store._writer is not None
        await store.report({"root": "{}"})
        database: Any = store._writer._database
        assert database._synchronous == "normal"
        await save(store, updates=(update_of(1),))
        assert database._synchronous == "full"


# -- files that may only be read -------------------------------------------------------------------


@pytest.fixture
def folder() -> Generator[Path]:
    """Make a folder that other users can reach."""
    found = Path(tempfile.mkdtemp(prefix="shoal-read-"))
    found.chmod(0o755)
    try:
        yield found
    finally:
        found.chmod(0o755)
        shutil.rmtree(found)


@contextmanager
def reading_only(folder: Path) -> Generator[None]:
    """Be a user that may read the folder, and not write to it."""
    is_root = os.geteuid() == 0
    for one in folder.iterdir():
        one.chmod(0o444)
    folder.chmod(0o555)
    if is_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        folder.chmod(0o755)
        for one in folder.iterdir():
            one.chmod(0o644)


async def test_a_file_that_no_process_has_open_is_read_without_a_trace(folder: Path):
    file = folder / "runs.db"
    await crowd(SQLiteStore(file, synchronous="normal"))
    store = SQLiteStore(file)
    expected = list((await store.rows(ROOT)).rows)
    with reading_only(folder):
        assert list((await store.rows(ROOT)).rows) == expected
        async with store:
            assert list((await store.rows(ROOT)).rows) == expected
            assert await store.mark() is not None
            assert [one.name for one in folder.iterdir()] == ["runs.db"]
        with pytest.raises(StoreFailed, match="this process may only read it"):
            await store.command(Command(run_id="root", kind="cancel"))
        with pytest.raises(StoreFailed, match="this process may only read it"):
            await store.claim("root", "me")
    await crowd_on(store)
    assert len((await store.rows(ROOT)).rows) == len(expected) + 1


async def crowd_on(store: SQLiteStore) -> None:
    async with claimed(store, begin=False):
        await save(store, unapplied=(child_run("one more"),))


async def test_a_file_that_another_process_writes_is_read(folder: Path):
    file = folder / "runs.db"
    writing, store = SQLiteStore(file, synchronous="normal"), SQLiteStore(file)
    await store.runs()
    async with claimed(writing):
        await save(writing, unapplied=(child_run("a"),))
        with reading_only(folder):
            assert [row.path.key for row in (await store.rows(ROOT)).rows] == ["a"]
        await save(writing, unapplied=(child_run("b"),))
        with reading_only(folder):
            assert len((await store.rows(ROOT)).rows) == 2


async def test_an_older_file_that_may_only_be_read_is_refused(folder: Path):
    file = folder / "runs.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript((KEPT / "sqlite-5.sql").read_text())
    with reading_only(folder), pytest.raises(StoreFailed) as refused:
        await SQLiteStore(file).runs()
    assert "has the layout 5 of an older shoal, and this process may only read it" in str(
        refused.value
    )
    assert len(await SQLiteStore(file).runs()) > 10
