"""What is SQLiteStore's own: its file, its claims among processes, what the disk does to it."""

# pyright: reportPrivateUsage=false
# Clocks, holders and the thread's database are replaced, to bring about what takes long.

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from shoal import (
    Application,
    Codec,
    Context,
    Each,
    Failed,
    Graph,
    Retry,
    RunClaimed,
    SQLiteStore,
    State,
    StoreFailed,
    action,
    fan_out,
    race,
)
from shoal.errors import CommitInDoubt, DefinitionError, NotData, NotEncodable, UpdateTooLarge
from shoal.events import Set, StateUpdated, Update
from shoal.stores import Batch
from shoal.stores._sql import holders as _holders
from shoal.stores._sql import leases as _claims
from shoal.stores._sqlite import database as _sqlite_database
from shoal.stores._sqlite import file as _sqlite_file
from shoal.stores._sqlite.file import Synchronous, connect
from shoal.testing import HandMadeRun, RecordingHook, child_run, no_leaks
from shoal.testing._hand_made import ROOT, claimed, save, update_of

from .durable import stopped

anyio_test = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs.db"


def store_at(path: Path, **more: Any) -> SQLiteStore:
    given: dict[str, Any] = {"synchronous": "normal", **more}
    return SQLiteStore(path, **given)


@contextmanager
def database(path: Path) -> Generator[sqlite3.Connection]:
    """Open the file as another program would."""
    with closing(sqlite3.connect(path, isolation_level=None, timeout=20)) as connection:
        yield connection


def rows(path: Path, query: str, *values: object) -> list[tuple[Any, ...]]:
    with database(path) as connection:
        return connection.execute(query, values).fetchall()


@action(reads=["item"], writes=["out"])
async def same(item: Any) -> Any:
    return item


outs = fan_out(same, over="items", key=str, into="outs")


# -- being made ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"durability": "none"}, "durability= is 'sync', 'relaxed' or 'end', not 'none'"),
        ({"synchronous": "off"}, "synchronous= is 'full' or 'normal', not 'off'"),
        ({"lease": 0}, r"SQLiteStore\(lease=...\) takes a number of seconds, not 0"),
        ({"patience": "5"}, r"SQLiteStore\(patience=...\) takes a number of seconds"),
        ({"window": -1}, r"SQLiteStore\(window=...\) takes a number of seconds"),
        ({"lease": 5, "heartbeat": 5}, "a heartbeat every 5 s can't keep up a lease of 5 s"),
        ({"max_update": 0}, r"SQLiteStore\(max_update=...\) takes a number of bytes, not 0"),
        ({"max_update": -1}, r"SQLiteStore\(max_update=...\) takes a number of bytes, not -1"),
        ({"max_update": True}, r"SQLiteStore\(max_update=...\) takes a number of bytes, not True"),
        ({"max_update": 1.5}, r"SQLiteStore\(max_update=...\) takes a number of bytes, not 1.5"),
        ({"max_update": "x"}, r"SQLiteStore\(max_update=...\) takes a number of bytes, not 'x'"),
        ({"max_update": None}, r"SQLiteStore\(max_update=...\) takes a number of bytes, not None"),
        ({"codec": 3}, r"SQLiteStore\(codec=...\) takes a Codec, not 3"),
        ({"codec": Codec}, r"SQLiteStore\(codec=...\) takes a Codec, not <class 'shoal"),
    ],
)
def test_what_is_no_option_is_refused(path: Path, more: Any, message: str):
    with pytest.raises(DefinitionError, match=message):
        SQLiteStore(path, **more)


@pytest.mark.parametrize("path", [":memory:", ""])
def test_it_takes_a_file(path: str):
    with pytest.raises(DefinitionError, match="takes the path of a file"):
        SQLiteStore(path)


def test_describing_it_makes_no_file(path: Path):
    assert repr(SQLiteStore(path)) == f"<SQLiteStore {str(path)!r}, 0 runs claimed>"
    assert not path.exists()


def test_its_file_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    store = store_at(Path("runs.db"))
    monkeypatch.chdir("/")
    Application(outs, store=store).run_sync({"items": [1]}, id="x")
    assert (tmp_path / "runs.db").exists()


# -- being open ------------------------------------------------------------------------------------


def is_open(store: SQLiteStore) -> bool:
    return store._writer is not None and store._writer.is_alive()


@anyio_test
async def test_it_is_open_while_a_run_is_claimed(path: Path):
    store = store_at(path)
    async with no_leaks():
        await store.claim("root", "me")
        assert is_open(store)
        await store.claim("other", "me")
        await store.release("root", "me")
        assert is_open(store)
        await store.release("other", "me")
        assert not is_open(store)
    assert sorted(each.name for each in path.parent.iterdir()) == ["runs.db"], "and all is in it"


@anyio_test
async def test_it_is_open_while_its_block_is(path: Path):
    async with no_leaks(), store_at(path) as store:
        async with claimed(store):
            await save(store, updates=(update_of(1),))
        assert is_open(store)
        assert list(await store.read(ROOT)) == [update_of(1)]
        assert list(await store.read(ROOT)) == [update_of(1)]
    async with no_leaks():
        assert list(await store.read(ROOT)) == [update_of(1)], "closed, it opens it for a moment"


@anyio_test
async def test_reading_makes_no_file(path: Path):
    store = store_at(path)
    assert await store.load("root") is None
    assert not path.exists()


@anyio_test
async def test_a_run_that_nobody_has_claimed_before_is_not_looked_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = store_at(path)
    with monkeypatch.context() as patched:
        patched.setattr(store, "_connect", None)
        result = await Application(outs, store=store).run({"items": [1, 2]}, id="x")
    assert (await Application(outs, store=store).run(id="x")).state == result.state


@anyio_test
async def test_an_application_leaves_nothing_open(path: Path):
    store = store_at(path)
    async with no_leaks():
        result = await Application(outs, store=store).run({"items": [1, 2]}, id="x")
        outcomes = [one async for one in result.all_outcomes("outs")]
        assert [one.key for one in outcomes] == ["1", "2"]
        with pytest.raises(RunClaimed):
            await store.claim("other", "me")
            await store.claim("other", "you")
        await store.release("other", "me")


# -- files it can't use ----------------------------------------------------------------------------


async def refusal(path: Path) -> str:
    """Try to use a file in all ways; return why it is refused. It must be left as it was."""
    before = path.read_bytes() if path.is_file() else None
    store = store_at(path)
    messages: list[str] = []
    async with no_leaks():
        for use in (store.__aenter__, lambda: store.load("root"), lambda: store.claim("x", "me")):
            with pytest.raises(StoreFailed) as raised:
                await use()
            messages.append(str(raised.value))
        with pytest.raises(StoreFailed) as raised:
            await Application(outs, store=store).run({"items": [1]}, id="x")
        messages.append(str(raised.value))
    assert len(set(messages)) == 1
    assert (path.read_bytes() if path.is_file() else None) == before
    return messages[0]


@anyio_test
async def test_a_file_that_is_no_database_is_refused(path: Path):
    path.write_text("dear diary" * 1000)
    assert "runs.db is not an SQLite database; it was left unchanged" in await refusal(path)


@anyio_test
async def test_a_database_of_something_else_is_refused(path: Path):
    with database(path) as connection:
        connection.execute("CREATE TABLE albums (title)")
    message = await refusal(path)
    assert "is a database, but not a shoal store (tables: albums); it was left unchanged" in message


@anyio_test
async def test_a_file_of_a_newer_version_is_refused(path: Path):
    async with store_at(path):
        pass
    with database(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    message = await refusal(path)
    assert "was written by a newer shoal" in message
    known = _sqlite_file.VERSION
    assert f"(its layout is 99, and this one knows {known})" in message
    assert "upgrade shoal" in message


@anyio_test
async def test_a_damaged_file_is_refused(path: Path):
    async with store_at(path) as store, claimed(store):
        for number in range(1, 200):
            await save(store, updates=(large_update(number, 400),))
    damaged = bytearray(path.read_bytes())
    for at in range(4096, len(damaged), 4096):
        damaged[at : at + 100] = b"\xff" * 100
    path.write_bytes(damaged)
    async with no_leaks():
        for use in (
            lambda: store.load("root"),
            lambda: store.read(ROOT),
            lambda: store.claim("x", "me"),
        ):
            with pytest.raises(StoreFailed, match=r"runs.db is damaged \(.*restore a backup"):
                await use()
        with pytest.raises(StoreFailed, match=r"runs.db is damaged"):
            await Application(outs, store=store).run({"items": [1]}, id="x")


@anyio_test
async def test_a_file_in_no_directory_is_refused(path: Path):
    store = store_at(path / "no" / "where.db")
    async with no_leaks():
        for use in (store.__aenter__, lambda: store.claim("x", "me")):
            with pytest.raises(StoreFailed, match="can't be opened: does its directory exist"):
                await use()


@anyio_test
async def test_an_empty_file_is_as_good_as_none(path: Path):
    path.touch()
    async with store_at(path):
        pass
    assert rows(path, "PRAGMA user_version") == [(_sqlite_file.VERSION,)]


def large_update(number: int, size: int) -> Any:
    update = update_of(number)
    return update._replace(operations=(update.operations[0]._replace(value="x" * size),))


@anyio_test
async def test_a_file_of_an_older_version_is_brought_to_this_one(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with store_at(path) as store, claimed(store):
        await save(store, updates=(update_of(1),))
    further = ("CREATE TABLE further (x); CREATE TABLE more (x)", "ALTER TABLE more ADD COLUMN y")
    monkeypatch.setattr(_sqlite_file, "MIGRATIONS", (*_sqlite_file.MIGRATIONS, *further))
    monkeypatch.setattr(_sqlite_file, "VERSION", len(_sqlite_file.MIGRATIONS))
    async with store_at(path) as store:
        assert list(await store.read(ROOT)) == [update_of(1)]
    assert rows(path, "PRAGMA user_version") == [(_sqlite_file.VERSION,)]
    assert rows(path, "SELECT y FROM more") == []


@anyio_test
async def test_a_file_of_the_first_layout_can_all_that_a_new_one_can(path: Path):
    with database(path) as connection:
        connection.executescript((Path(__file__).parent / "layout-1.sql").read_text())
    store = store_at(path)
    app = Application(outs, name="crawl", store=store)
    assert (await app.run(id="crawl-1")).state["titles"] == {"a": "A", "c": "C"}
    assert rows(path, "PRAGMA user_version") == [(_sqlite_file.VERSION,)]
    newest, oldest = await store.runs()
    assert (newest.run_id, newest.status, newest.error) == ("crawl-2", "failed", "")
    assert (oldest.run_id, oldest.status) == ("crawl-1", "succeeded")
    await store.remember("a", (Set("n", 1),), 60)
    assert await store.recall("a") is not None
    assert await store.prune(0) == 2
    assert rows(path, "SELECT run_id FROM root_runs") == []
    assert rows(path, "SELECT count(*) FROM runs") == [(0,)]
    await app.run({"items": [1]}, id="crawl-1")


@anyio_test
async def test_a_migration_that_fails_leaves_the_file_as_it_was(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    async with store_at(path):
        pass
    before = _sqlite_file.VERSION
    further = ("CREATE TABLE further (x)", "ALTER TABLE nowhere ADD COLUMN y")
    monkeypatch.setattr(_sqlite_file, "MIGRATIONS", (*_sqlite_file.MIGRATIONS, *further))
    monkeypatch.setattr(_sqlite_file, "VERSION", len(_sqlite_file.MIGRATIONS))
    assert "could not be used: no such table: nowhere" in await refusal(path)
    assert rows(path, "PRAGMA user_version") == [(before,)]
    assert rows(path, "SELECT name FROM sqlite_schema WHERE name = 'further'") == []


@pytest.mark.parametrize("fails", ["link", "fsync", "O_TMPFILE"])
def test_where_a_file_can_not_be_made_aside_it_is_made_in_its_place(
    path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
):
    def fail(*_: object, **__: object) -> None:
        raise OSError("not here")

    if fails == "O_TMPFILE":  # a system that has no files without names
        monkeypatch.delattr(os, fails)
    else:
        monkeypatch.setattr(os, fails, fail)
    Application(outs, store=store_at(path)).run_sync({"items": [1]}, id="x")
    assert sorted(each.name for each in path.parent.iterdir()) == ["runs.db"]


@pytest.mark.parametrize("synchronous", ["full", "normal"])
def test_the_name_of_a_new_file_is_waited_for_unless_the_first_save_does_that(
    path: Path, monkeypatch: pytest.MonkeyPatch, synchronous: Synchronous
):
    synced: list[bool] = []

    def fsync(file: int) -> None:
        synced.append(stat.S_ISDIR(os.fstat(file).st_mode))

    monkeypatch.setattr(os, "fsync", fsync)
    connect(path, patience=1.0, synchronous=synchronous).close()
    assert synced == ([False] if synchronous == "full" else [False, True])


@pytest.fixture
def made(path: Path) -> Path:
    """A file that has its tables, and that no process has open."""
    connect(path, patience=1.0, synchronous="full").close()
    return path


@pytest.fixture
def transactions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The settings that the writer's transactions have, and how they end."""
    found: list[str] = []

    def note(statement: str) -> None:
        if "synchronous" in statement or statement in ("COMMIT", "ROLLBACK"):
            found.append(statement.removeprefix("PRAGMA synchronous = "))

    def traced(*args: Any, **more: Any) -> sqlite3.Connection:
        connection = connect(*args, **more)
        connection.set_trace_callback(note)
        return connection

    monkeypatch.setattr(_sqlite_database, "connect", traced)
    return found


@anyio_test
async def test_a_claim_waits_for_no_disk_and_the_first_save_waits_for_the_head_of_the_log(
    path: Path, transactions: list[str]
):
    for _ in range(2):  # a file that is new, and one that was closed
        async with claimed(store := store_at(path, synchronous="full")):
            await save(store, updates=(update_of(1),))
        assert transactions[:4] == [*("off", "COMMIT"), *("full", "COMMIT")]
        transactions.clear()


@anyio_test
@pytest.mark.parametrize("at", ["before", "after"])
async def test_the_head_of_a_log_that_another_has_begun_is_waited_for(
    made: Path, transactions: list[str], monkeypatch: pytest.MonkeyPatch, at: str
):
    # Used by the writer's thread, too.
    with closing(sqlite3.connect(made, isolation_level=None, check_same_thread=False)) as other:

        def write() -> None:
            other.execute("INSERT INTO places VALUES (100, 'another', 0, 'act')")

        traced: Any = _sqlite_database.connect  # pyright: ignore[reportPrivateLocalImportUsage]

        def overtaken(*args: Any, **more: Any) -> sqlite3.Connection:
            connection = traced(*args, **more)
            write()
            return connection

        if at == "before":
            write()
        else:
            monkeypatch.setattr(_sqlite_database, "connect", overtaken)
        async with claimed(store_at(made, synchronous="full")):
            pass
    looked = [] if at == "before" else ["off", "ROLLBACK"]
    assert transactions[: len(looked) + 2] == [*looked, "normal", "COMMIT"]


KILLED = """
import os, signal, sys
from pathlib import Path
from shoal.stores._sqlite.file import connect

def killed(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(os, sys.argv[1], killed)
connect(Path(sys.argv[2]), patience=1.0, synchronous="full")
"""


@pytest.mark.parametrize("at", ["fsync", "link", "unlink"])
def test_a_kill_while_a_file_is_made_leaves_nothing_behind(path: Path, at: str):
    process = subprocess.run([sys.executable, "-c", KILLED, at, str(path)], check=False)
    assert process.returncode in (-signal.SIGKILL, 0)  # 0: it does not come by that place
    connect(path, patience=1.0, synchronous="full").close()
    assert [each.name for each in path.parent.iterdir()] == ["runs.db"]


def nothing(*_: object) -> None: ...


@anyio_test
async def test_made_either_way_a_file_is_the_same(path: Path, monkeypatch: pytest.MonkeyPatch):
    made: list[object] = []
    for aside in (True, False):
        if not aside:
            monkeypatch.setattr(_sqlite_file, "_make_aside", nothing)
        file = path.with_name(f"{aside}.db")
        async with store_at(file):
            pass
        settings = ("journal_mode", "auto_vacuum", "application_id", "user_version", "encoding")
        found = [rows(file, f"PRAGMA {setting}") for setting in settings]
        made.append((found, rows(file, "SELECT type, name, sql FROM sqlite_schema")))
    assert made[0] == made[1]


@anyio_test
async def test_claims_wait_for_no_disk_and_saves_do(path: Path):
    store = store_at(path, synchronous="full")

    def setting(database: Any) -> int:
        return database._sql.execute("PRAGMA synchronous").fetchone()[0]

    async with store:
        assert store._writer is not None
        async with claimed(store, begin=False):
            assert await store._writer.ask(setting, lightly=True) == 1
            await save(store, updates=(update_of(1),))
            assert await store._writer.ask(setting) == 2
        assert await store._writer.ask(setting, lightly=True) == 1
        with stopped(store):
            together = store._writer.ask(setting, lightly=True), store._writer.ask(setting)
        assert [await one for one in together] == [2, 2]


def test_two_processes_make_one_file(path: Path):
    """Threads are as good: each opens it by itself."""
    barrier = threading.Barrier(6)
    failures: list[BaseException] = []

    def open_it() -> None:
        barrier.wait()
        try:
            _sqlite_file.connect(path, patience=20, synchronous="normal").close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


# -- what the disk does ----------------------------------------------------------------------------


@anyio_test
async def test_a_locked_file_is_waited_for(path: Path):
    store = store_at(path, patience=30)
    async with claimed(store):
        with database(path) as other:
            other.execute("BEGIN IMMEDIATE")
            pending = store.save(Batch(HandMadeRun(), (update_of(1),), holder="me"))
            assert pending is not None
            await anyio.to_thread.run_sync(time.sleep, 0.05)
            other.execute("ROLLBACK")
        await pending
        assert list(await store.read(ROOT)) == [update_of(1)]


@anyio_test
async def test_a_file_that_stays_locked_ends_the_execution(path: Path):
    """At its last saved state, from where it goes on when the file is free."""
    store = store_at(path, patience=0.05)
    lock = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    seen: list[object] = []

    @action(writes=["first"])
    async def one() -> int:
        return 1

    @action(reads=["first"], writes=["second"])
    async def two(first: int) -> int:
        await anyio.to_thread.run_sync(lock.execute, "BEGIN IMMEDIATE")
        return 2

    hook = RecordingHook()
    app = Application(Graph.chain(one, two), store=store, hooks=[hook])
    with closing(lock):
        with pytest.raises(
            StoreFailed, match=r"runs\.db is locked: another program has been"
        ) as raised:
            await app.run(id="x")
        assert "at a save of run x, which stops at its last" in "".join(raised.value.__notes__)
        seen += [one.update.number for one in hook.events if isinstance(one, StateUpdated)]
        lock.execute("ROLLBACK")
    assert seen == [1], "what was not saved was not seen"
    assert [one.number for one in await store.read(ROOT_X) if isinstance(one, Update)] == [1]


ROOT_X = type(ROOT)(run_id="x", act="app")


@anyio_test
async def test_a_full_disk_is_waited_for(path: Path, monkeypatch: pytest.MonkeyPatch):
    store = store_at(path, patience=20)
    async with claimed(store):
        await save(store, updates=(update_of(1),))
        with full_disk(store, times=2) as tries:
            await save(store, updates=(large_update(2, 200_000),))
            assert len(tries) == 3
        kept = list(await store.read(ROOT))
        assert kept == [update_of(1), large_update(2, 200_000)], "kept, and once"


@anyio_test
async def test_a_disk_that_stays_full_ends_the_execution(path: Path):
    store = store_at(path, patience=0.2)
    async with claimed(store):
        full = full_disk(store, times=1000)
        with full, pytest.raises(StoreFailed, match="can't grow: the disk is full"):
            await save(store, updates=(large_update(1, 200_000),))
        await save(store, updates=(update_of(1),))
        assert list(await store.read(ROOT)) == [update_of(1)]


@contextmanager
def full_disk(store: SQLiteStore, times: int) -> Generator[list[int]]:
    """Let the file not grow for a number of tries: SQLite itself says so."""
    assert store._writer is not None
    data = store._writer._database
    (pages,) = data._sql.execute("PRAGMA page_count").fetchone()
    tries: list[int] = []
    transact = data._transact

    def limited(jobs: Any) -> None:
        tries.append(len(jobs))
        most = pages if len(tries) <= times else 1_000_000
        data._sql.execute(f"PRAGMA max_page_count = {most}")
        transact(jobs)

    data._transact = limited
    yield tries
    data._transact = transact
    data._sql.execute("PRAGMA max_page_count = 1000000")


@anyio_test
async def test_whether_a_commit_that_failed_is_kept_is_unknown(path: Path):
    store = store_at(path)
    async with claimed(store):
        assert store._writer is not None
        data = store._writer._database
        connection = data._connection
        data._connection = Failing(connection, "COMMIT", sqlite3.SQLITE_IOERR)
        with pytest.raises(CommitInDoubt, match="it is unknown whether a save was kept"):
            await save(store, updates=(update_of(1),))
        data._connection = connection
        await save(store, updates=(update_of(1),))
        assert list(await store.read(ROOT)) == [update_of(1)]


class Failing:
    """A connection that fails at one statement."""

    def __init__(self, connection: Any, statement: str, code: int) -> None:
        self._connection, self._statement, self._code = connection, statement, code

    def execute(self, statement: str, *values: Any) -> Any:
        if statement.startswith(self._statement):
            error = sqlite3.OperationalError("disk I/O error")
            error.sqlite_errorcode = self._code
            error.sqlite_errorname = "SQLITE_IOERR"
            raise error
        return self._connection.execute(statement, *values)

    def executemany(self, statement: str, values: Any) -> Any:
        if statement.startswith(self._statement):
            self.execute(statement)
        return self._connection.executemany(statement, values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


@anyio_test
@pytest.mark.parametrize("durability", ["relaxed", "end"])
async def test_a_save_that_nobody_waited_for_fails_the_next(path: Path, durability: Any):
    store = store_at(path, durability=durability, window=1000)
    async with claimed(store):
        assert store._writer is not None
        data = store._writer._database
        connection = data._connection
        data._connection = Failing(connection, "INSERT INTO history", sqlite3.SQLITE_IOERR)
        assert store.save(Batch(HandMadeRun(), (update_of(1),), holder="me")) is None
        with pytest.raises(StoreFailed, match="disk I/O error"):
            await save(store, HandMadeRun(status="succeeded"), ended="succeeded")
        data._connection = connection
        with pytest.raises(StoreFailed, match="disk I/O error"):
            await save(store, updates=(update_of(2),))
        assert list(await store.read(ROOT)) == []


# -- what can't be kept ----------------------------------------------------------------------------


def a_lock(item: Any) -> Any:
    return {"pages": [1, threading.Lock()]} if item == 2 else item


@action(reads=["item"], writes=["out"])
async def some_locks(item: Any) -> Any:
    return a_lock(item)


@action(reads=["out"], writes=["out"], name="after")
async def go_on(out: Any) -> Any:
    return out


@anyio_test
async def test_a_step_that_makes_what_can_not_be_kept_fails(path: Path):
    store = store_at(path)
    app = Application(Graph.chain(same, some_locks), store=store)
    with pytest.raises(NotEncodable) as raised:
        await app.run({"item": 2}, id="x")
    assert raised.value.path == "state['out']['pages'][1]"
    assert "in action 'some_locks', run x" in "".join(raised.value.__notes__)
    assert rows(path, "SELECT status FROM root_runs") == [("failed",)]
    assert rows(path, "SELECT step FROM history WHERE kind = 'update'") == [("same",)]


@anyio_test
@pytest.mark.parametrize("act", [some_locks, Graph.chain(some_locks, go_on, name="two")])
async def test_a_child_that_makes_what_can_not_be_kept_fails_alone(path: Path, act: Any):
    app = Application(
        fan_out(act, over="items", key=int, into="outs", take="out", errors_into="bad",
                on_error="collect"),
        store=store_at(path),
    )  # fmt: skip
    result = await app.run({"items": range(4)}, id="x")
    assert dict(result.state["outs"]) == {0: 0, 1: 1, 3: 3}
    assert result.state["bad"][2].type == "shoal.NotEncodable" or result.state["bad"]
    (failed,) = [one for one in result.outcomes("outs") if isinstance(one, Failed)]
    assert isinstance(failed.error, NotEncodable)
    assert "state['out']['pages'][1]" in str(failed.error)
    assert "in action 'some_locks' of 'outs', key 2" in "".join(failed.error.__notes__)
    stored = rows(path, "SELECT key, status, error_type FROM child_runs ORDER BY key")
    assert [row[:2] for row in stored] == [
        (0, "succeeded"), (1, "succeeded"), (2, "failed"), (3, "succeeded"),
    ]  # fmt: skip
    assert stored[2][2].endswith(":NotEncodable")


@anyio_test
async def test_nested_fan_outs_fail_where_it_is_made(path: Path):
    inner = fan_out(some_locks, over="group", key=int, into="inner", take="out")
    app = Application(
        fan_out(inner, over="groups", item="group", key=len, into="outs", take="inner",
                errors_into="bad", on_error="collect"),
        store=store_at(path),
    )  # fmt: skip
    result = await app.run({"groups": [[1], [1, 2, 3]]}, id="x")
    assert {key: dict(value) for key, value in result.state["outs"].items()} == {1: {1: 1}}
    assert list(result.state["bad"]) == [3]
    assert "NotEncodable" in result.state["bad"][3].message


@anyio_test
async def test_in_a_race_it_only_loses(path: Path):
    locked = some_locks.bind(name="locked")
    app = Application(race(locked, same, into="answer", take="out"), store=store_at(path))
    result = await app.run({"item": 1}, id="x")
    assert result.state["answer"] == 1

    @action(reads=["item"], writes=["out"], name="other")
    async def other(item: Any) -> Any:
        await anyio.sleep(1)
        return "good"

    app = Application(race(locked, other, into="answer", take="out"), store=store_at(path))
    result = await app.run({"item": 2}, id="y")
    assert result.state["answer"] == "good"


@anyio_test
async def test_in_an_own_fan_out_it_is_an_outcome(path: Path):
    @action(reads=["items"], writes=["ended"])
    async def own(items: Any, context: Context) -> list[str]:
        async with context.fan_out(name="own") as group:
            for item in items:
                group.start(some_locks, {"item": item}, key=item)
            return [f"{one.key} {type(one).__name__}" async for one in group]

    result = await Application(own, store=store_at(path)).run({"items": [1, 2, 3]}, id="x")
    assert sorted(result.state["ended"]) == ["1 Done", "2 Failed", "3 Done"]


@anyio_test
async def test_in_a_node_it_fails_the_node(path: Path):
    node = Graph.chain(same, some_locks.bind(name="locked"), name="node")
    with pytest.raises(NotEncodable) as raised:
        await Application(Graph.chain(node, go_on), store=store_at(path)).run({"item": 2}, id="x")
    assert raised.value.path == "state['out']['pages'][1]"
    assert rows(path, "SELECT act, status FROM child_runs") == [("node", "failed")]


@anyio_test
async def test_it_is_tried_again_as_any_failure(path: Path):
    tries: list[int] = []

    @action(reads=["item"], writes=["out"])
    async def second_time(item: int) -> Any:
        tries.append(item)
        return threading.Lock() if len(tries) == 1 else item

    each = Each(retry=Retry(2, on=NotEncodable))
    act = Graph.chain(second_time, go_on, name="two")
    app = Application(
        fan_out(act, over="items", key=int, into="outs", take="out", each=each),
        store=store_at(path),
    )
    result = await app.run({"items": [7]}, id="x")
    assert dict(result.state["outs"]) == {7: 7}
    assert tries == [7, 7]


@anyio_test
async def test_what_reduce_makes_fails_the_step(path: Path):
    def keep_lock(state: State, outcome: Any) -> State:
        return state.append(log=threading.Lock())

    act = fan_out(same, over="items", reduce=keep_lock, reads=["items", "log"], writes=["log"],
                  name="folded")  # fmt: skip
    store = store_at(path)
    with pytest.raises(NotEncodable) as raised:
        await Application(act, store=store).run({"items": [1, 2], "log": []}, id="x")
    assert raised.value.path == "state['log'][0]"
    assert "in the update of step 'folded' for key 0" in "".join(raised.value.__notes__)
    assert rows(path, "SELECT status FROM root_runs") == [("failed",)]
    assert rows(path, "SELECT status, applied, used FROM child_runs") == [
        ("succeeded", None, 0), ("succeeded", None, 0),
    ]  # fmt: skip


@anyio_test
async def test_what_a_run_starts_with_is_refused_before_it_begins(path: Path):
    with pytest.raises(NotData, match=r"state\['item'\]"):
        await Application(same, store=store_at(path)).run({"item": threading.Lock()}, id="x")
    assert rows(path, "SELECT count(*) FROM root_runs") == [(0,)]


@anyio_test
async def test_large_updates_are_warned_of_once_and_too_large_ones_refused(path: Path):
    @action(reads=["item"], writes=["out"])
    async def long(item: int) -> str:
        return "x" * item

    act = fan_out(long, over="items", key=int, into="outs", errors_into="bad", on_error="collect")
    app = Application(act, store=store_at(path, max_update=1_500_000))
    sizes = [10, 1_100_000, 1_200_000, 2_000_000]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = await app.run({"items": sizes}, id="x")
    assert list(result.state["outs"]) == sizes[:3]
    (failed,) = result.outcomes("outs")
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, UpdateTooLarge)
    assert "step 'long' of run" in str(failed.error)
    assert "key 2000000 of 'outs'" in str(failed.error)
    (warning,) = [one for one in caught if one.category is UserWarning]
    assert "has 1,100,00" in str(warning.message)


@anyio_test
async def test_a_codec_of_ones_own_is_used(path: Path):
    class Money:
        def __init__(self, cents: int) -> None:
            self.cents = cents

        def __reduce__(self) -> Any:
            return Money, (self.cents,)

    codec = Codec()
    codec.register(Money, tag="money", encode=lambda m: m.cents, decode=lambda c, _: Money(c))
    app = Application(same, store=store_at(path, codec=codec))
    result = await app.run({"item": Money(5)}, id="x")
    again = await app.run(id="x")
    assert again.state["out"].cents == result.state["out"].cents == 5


# -- leases ----------------------------------------------------------------------------------------


class Clocks:
    """Clocks that tests set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall, self.uptime = 1_000_000.0, 50_000.0
        for module in (_claims, _sqlite_database, _holders):
            monkeypatch.setattr(module, "now", lambda: _holders.Clock(self.wall, self.uptime))

    def pass_(self, seconds: float) -> None:
        self.wall += seconds
        self.uptime += seconds


@pytest.fixture
def clocks(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    return Clocks(monkeypatch)


@contextmanager
def another_process(path: Path, **more: object) -> Generator[None]:
    """Have it that the claim is another process's."""
    names = ", ".join(f"{name} = ?" for name in more)
    with database(path) as connection:
        connection.execute(f"UPDATE claims SET {names}", list(more.values()))
    yield


@anyio_test
async def test_setting_the_clock_ends_no_lease(path: Path, clocks: Clocks):
    store, other = store_at(path, heartbeat=14), store_at(path)
    await store.claim("root", "them")
    clocks.wall += 100_000
    with pytest.raises(RunClaimed):
        await other.claim("root", "me")
    clocks.wall -= 200_000
    clocks.uptime += 15.1
    await other.claim("root", "me")
    await other.release("root", "me")
    await store.release("root", "them")


def test_a_zombie_is_gone():
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        holder = _holders.current_holder()._replace(pid=process.pid, started="1")
        assert holder.is_gone
        started = _holders._started(process.pid)
        if started:
            holder = holder._replace(started=started)
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            assert holder.is_gone
    assert not _holders.current_holder().is_gone
    assert _holders.current_holder().is_near
    assert not holder._replace(boot="").is_gone, "nobody knows"


# -- processes -------------------------------------------------------------------------------------

# -- the layout ------------------------------------------------------------------------------------


def queries() -> list[tuple[str, str]]:
    """The examples in the documentation, by their headings."""
    text = (Path(__file__).parents[2] / "docs" / "store-layout.md").read_text()
    found: list[tuple[str, str]] = []
    for part in text.split("\n### ")[1:]:
        title, _, body = part.partition("\n")
        _, fence, query = body.partition("```sql\n")
        if fence:
            found.append((title, query.partition("```")[0]))
    return found


@pytest.fixture
def crawled(path: Path) -> Path:
    @action(reads=["url"], writes=["page"])
    async def fetch(url: str, context: Context) -> dict[str, Any]:
        if url == "b":
            raise LookupError("no such page")
        if url == "d":
            await context.ask("password", {"for": url})
        return {"title": url.upper()}

    act = fan_out(
        fetch, over="urls", item="url", key=str, into="pages", errors_into="bad", on_error="collect"
    )
    app = Application(act, store=store_at(path), name="crawl")
    app.run_sync({"urls": ["a", "b", "c", "d"]}, id="crawl-1")
    return path


ANSWERS: dict[str, Any] = {
    "Runs": [("crawl-1", "crawl", "halted")],
    "Counts by status": [("failed", 1), ("halted", 1), ("succeeded", 2)],
    "The first page of failures": [("b", "builtins:LookupError", "no such page")],
    "Open questions": [("d", "password", '{"for":"d"}')],
    "Into a child's value": [("a", "A"), ("c", "C")],
    "When children have ended": None,
    "Who has claimed what": [],
    "Space": None,
}


def test_every_example_has_an_answer():
    assert [title for title, _ in queries()] == list(ANSWERS)


@pytest.mark.parametrize("title", ANSWERS)
def test_examples_of_queries_are_right(crawled: Path, title: str):
    query = dict(queries())[title]
    found = rows(crawled, query)
    if ANSWERS[title] is not None:
        assert [row[: len(ANSWERS[title][0])] for row in found] == ANSWERS[title]
    else:
        assert found


@pytest.mark.parametrize("title", ["Counts by status", "The first page of failures"])
def test_examples_of_queries_need_no_scan(crawled: Path, title: str):
    plan = " / ".join(
        row[-1] for row in rows(crawled, f"EXPLAIN QUERY PLAN {dict(queries())[title]}")
    )
    assert "SCAN" not in plan
    assert "runs_by_status" in plan


@pytest.mark.slow
def test_a_hundred_thousand_children_are_queried_in_time(path: Path):
    """By another program, while the run writes."""
    store, count, size = store_at(path), 100_000, 1000
    took: dict[str, list[float]] = {}

    def ask() -> None:
        for title in ("Counts by status", "The first page of failures"):
            began = time.perf_counter()
            found = rows(path, dict(queries())[title].replace("crawl-1", "root"))
            took.setdefault(title, []).append(time.perf_counter() - began)
            assert found

    async def main() -> None:
        async with claimed(store):
            for first in range(0, count, size):
                ends = [
                    child_run(f"key {number}", value={"n": number}, position=number)
                    if number % 50
                    else child_run(f"key {number}", status="failed", error=LookupError("no"))
                    for number in range(first, first + size)
                ]
                await save(store, unapplied=ends)
                if first >= count - 10 * size:
                    await anyio.to_thread.run_sync(ask)

    anyio.run(main)
    assert min(took["Counts by status"]) < 0.050, took
    assert min(took["The first page of failures"]) < 0.005, took


def test_an_item_of_a_collection_is_saved_once(path: Path):
    """And neither it nor the collection again with what comes after it."""
    size: list[int] = []
    for items in (1000, 3000):
        file = path.with_name(f"{items}.db")
        Application(outs, store=store_at(file)).run_sync({"items": range(items)}, id="x")
        size.append(file.stat().st_size)
    assert size[1] < 3.3 * size[0]
    (longest,) = rows(file, "SELECT max(length(data)) FROM history WHERE step = 'outs'")[0]
    assert longest < 200


@anyio_test
async def test_new_rows_beside_known_ones_are_written(path: Path):
    """Whatever statements they share: children that an earlier execution has left run again."""

    @action(reads=["item"], writes=["out"])
    async def odd_fails(item: int, mended: bool) -> int:
        if item % 2 and not mended:
            raise ConnectionError
        return item

    some = fan_out(
        odd_fails, over="items", key=int, into="outs", errors_into="failed", on_error="collect"
    )
    app = Application(some, store=store_at(path))
    await app.run({"items": list(range(100))}, id="x", inputs={"mended": False})
    result = await app.retry_failed("x", inputs={"mended": True})
    assert result.state["outs"] == {item: item for item in range(100)}
    kept = "SELECT status, count(*) FROM runs WHERE position IS NOT NULL GROUP BY status"
    assert rows(path, kept) == [("succeeded", 100)]


def test_appending_to_a_list_saves_what_is_appended(path: Path):
    @action(reads=["log"], writes=["log"])
    async def append(state: State) -> State:
        return state.append(log=len(state["log"]))

    loop = Graph((append, append), entry=append, name="loop")
    app = Application(loop, store=store_at(path), max_steps=300)
    with pytest.raises(Exception, match="300 steps"):
        app.run_sync({"log": []}, id="x")
    (longest,) = rows(path, "SELECT max(length(data)) FROM history")[0]
    assert longest < 100


@anyio_test
async def test_discarded_runs_are_gone(crawled: Path):
    store = store_at(crawled)
    async with claimed(store):
        with pytest.raises(RunClaimed):
            await store.discard("root")
        await store.discard("crawl-1")
        await store.discard("unknown")
    assert await store.load("crawl-1") is None
    for table in ("runs", "roots", "history"):
        assert rows(crawled, f"SELECT count(*) FROM {table}") == [(1 if table != "history" else 0,)]
