"""What is PostgresStore's own: its options, its schema and its server."""

# pyright: reportPrivateUsage=false
# Connections are looked at.

from __future__ import annotations

import socket
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest

from shoal import Application, Codec, Limits, PostgresStore, StoreFailed, action, fan_out
from shoal.errors import DefinitionError
from shoal.stores._postgres import schema as _postgres_schema
from shoal.testing import child_run, no_leaks
from shoal.testing._hand_made import ROOT, claimed, save, update_of

from .durable import InSchema, wait_for
from .postgres import PostgresServer

anyio_test = pytest.mark.anyio
services = pytest.mark.services

SECRET = "open-sesame"


@action(reads=["item"], writes=["out"])
async def same(item: Any) -> Any:
    return item


outs = fan_out(same, over="items", key=str, into="outs", limits=Limits(3))


# -- being made ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"durability": "none"}, "durability= is 'sync', 'relaxed' or 'end', not 'none'"),
        ({"lease": 0}, r"PostgresStore\(lease=...\) takes a number of seconds, not 0"),
        ({"patience": "5"}, r"PostgresStore\(patience=...\) takes a number of seconds"),
        ({"lease": 5, "heartbeat": 5}, "a heartbeat every 5 s can't keep up a lease of 5 s"),
        ({"max_update": 0}, r"PostgresStore\(max_update=...\) takes a number of bytes, not 0"),
        ({"max_update": -1}, r"PostgresStore\(max_update=...\) takes a number of bytes, not -1"),
        (
            {"max_update": True},
            r"PostgresStore\(max_update=...\) takes a number of bytes, not True",
        ),
        ({"max_update": 1.5}, r"PostgresStore\(max_update=...\) takes a number of bytes, not 1.5"),
        ({"max_update": "x"}, r"PostgresStore\(max_update=...\) takes a number of bytes, not 'x'"),
        (
            {"max_update": None},
            r"PostgresStore\(max_update=...\) takes a number of bytes, not None",
        ),
        ({"codec": 3}, r"PostgresStore\(codec=...\) takes a Codec, not 3"),
        ({"codec": Codec}, r"PostgresStore\(codec=...\) takes a Codec, not <class 'shoal"),
        ({"schema": ""}, r"PostgresStore\(schema=...\) takes the name of a schema, not ''"),
        ({"schema": "pg_temp"}, "takes the name of a schema, not 'pg_temp'"),
    ],
)
def test_what_is_no_option_is_refused(more: Any, message: str):
    with pytest.raises(DefinitionError, match=message):
        PostgresStore("postgresql://localhost/runs", **more)


def test_an_address_that_is_none_is_refused_and_not_shown():
    with pytest.raises(DefinitionError, match="takes an address, such as 'postgresql:") as raised:
        PostgresStore(f"postgresql://me:{SECRET}@[localhost/runs")
    assert SECRET not in "".join(traceback.format_exception(raised.value))


def test_describing_it_connects_to_nothing_and_shows_no_password():
    store = PostgresStore(f"postgresql://me:{SECRET}@nowhere.invalid:99/runs", schema="mine")
    assert repr(store) == (
        "<PostgresStore 'postgresql://nowhere.invalid:99/runs', schema 'mine', 0 runs claimed>"
    )


# -- servers it can't use --------------------------------------------------------------------------


async def refusal(store: PostgresStore) -> str:
    """Try to use it in all ways; return why that isn't possible."""
    messages: list[str] = []
    async with no_leaks():
        for use in (store.__aenter__, lambda: store.load("root"), lambda: store.claim("x", "me")):
            with pytest.raises(StoreFailed) as raised:
                await use()
            assert SECRET not in "".join(traceback.format_exception(raised.value))
            messages.append(str(raised.value))
        with pytest.raises(StoreFailed) as raised:
            await Application(outs, store=store).run({"items": [1]}, id="x")
        assert SECRET not in "".join(traceback.format_exception(raised.value))
    return messages[0]


@pytest.fixture
def reachable(postgres: PostgresServer) -> Callable[..., str]:
    """Say how the server is reached through the network, where it wants a password."""
    with suppress(psycopg.errors.DuplicateObject):
        postgres.execute(f"CREATE ROLE guest LOGIN PASSWORD '{SECRET}' CONNECTION LIMIT 2")
    given = {"host": "127.0.0.1", "user": "guest", "password": SECRET}

    def address(**more: str) -> str:
        return postgres.address(**{**given, **more})

    return address


@anyio_test
@services
async def test_a_wrong_password_is_refused_at_once(place: InSchema, reachable: Any):
    message = await refusal(place.store(reachable(password=f"no {SECRET}"), patience=1000))
    assert "refuses the connection, and retrying won't help" in message
    assert 'password authentication failed for user "guest"' in message


@anyio_test
@services
async def test_a_database_that_is_not_there_is_refused_at_once(place: InSchema, reachable: Any):
    message = await refusal(place.store(reachable(database="nothing"), patience=1000))
    assert 'database "nothing" does not exist' in message


@anyio_test
@services
async def test_a_user_without_the_right_to_make_a_schema_gets_an_error(
    place: InSchema, reachable: Any
):
    store = place.store(reachable(), patience=1000)
    with pytest.raises(StoreFailed, match="does not permit it: permission denied for database"):
        await store.claim("x", "me")


@anyio_test
async def test_a_server_that_is_not_there_is_waited_for_in_vain(caplog: pytest.LogCaptureFixture):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    store = PostgresStore(f"postgresql://me:{SECRET}@127.0.0.1:{port}/runs", patience=0.12)
    message = r"runs could not be reached for 0.12 s \(PostgresStore\(patience=...\) waits longer\)"
    for use in (lambda: store.claim("x", "me"), lambda: store.load("x")):
        with pytest.raises(StoreFailed, match=f"{message}: .*Connection refused") as raised:
            await use()
        assert SECRET not in "".join(traceback.format_exception(raised.value))
    told = [record.message for record in caplog.records if record.name == "shoal"]
    assert "Connection refused" in told[0]
    assert [one.partition(":")[0] for one in told] == [
        "saves wait 0.12 s at most",
        "readers wait 0.12 s at most",
    ]


@anyio_test
@services
async def test_a_free_connection_is_waited_for(place: InSchema, reachable: Any):
    place.rows(f"CREATE SCHEMA {place.schema} AUTHORIZATION guest")
    with ended(place), closing(psycopg.connect(reachable())):
        taken = psycopg.connect(reachable())
        with pytest.raises(StoreFailed, match="has no connection left, and has had none for"):
            await place.store(reachable(), patience=0.1).claim("root", "me")
        store = place.store(reachable(), patience=30)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store.claim, "root", "me")
            await anyio.to_thread.run_sync(time.sleep, 0.05)
            taken.close()
        await store.release("root", "me")


@contextmanager
def ended(place: InSchema) -> Generator[None]:
    """Leave no schema of somebody else's behind, nor connections of his."""
    try:
        yield
    finally:
        place.rows(f"DROP SCHEMA {place.schema} CASCADE")


@anyio_test
@services
async def test_a_schema_of_something_else_is_refused(place: InSchema):
    place.rows(f"CREATE SCHEMA {place.schema}")
    place.rows("CREATE TABLE albums (title text)")
    message = await refusal(place.store())
    assert f"the schema '{place.schema}' of postgresql://" in message
    assert "is not a shoal store (tables: albums); it was left unchanged" in message
    assert place.rows(f"{TABLES}'{place.schema}'") == [("albums",)]


TABLES = "SELECT table_name FROM information_schema.tables WHERE table_schema = "


@anyio_test
@services
async def test_a_schema_of_a_newer_version_is_refused(place: InSchema):
    async with place.store():
        pass
    place.rows("UPDATE layout SET version = 99")
    message = await refusal(place.store())
    known = _postgres_schema.VERSION
    assert f"was made by a newer shoal (its layout is 99, and this one knows {known})" in message
    assert place.rows("SELECT version FROM layout") == [(99,)]


@anyio_test
@services
async def test_a_schema_of_an_older_version_is_brought_to_this_one(
    place: InSchema, monkeypatch: pytest.MonkeyPatch
):
    async with place.store() as store, claimed(store):
        await save(store, updates=(update_of(1),))
    further = ("CREATE TABLE further (x int); CREATE TABLE more (x int)", "DROP TABLE more")
    monkeypatch.setattr(_postgres_schema, "MIGRATIONS", (*_postgres_schema.MIGRATIONS, *further))
    monkeypatch.setattr(_postgres_schema, "VERSION", len(_postgres_schema.MIGRATIONS))
    async with place.store() as store:
        assert list(await store.read(ROOT)) == [update_of(1)]
    assert place.rows("SELECT version FROM layout") == [(_postgres_schema.VERSION,)]
    assert place.rows("SELECT to_regclass('further')::text, to_regclass('more')") == [
        ("further", None)
    ]


@anyio_test
@services
async def test_a_migration_that_fails_leaves_the_schema_as_it_was(
    place: InSchema, monkeypatch: pytest.MonkeyPatch
):
    async with place.store():
        pass
    before = _postgres_schema.VERSION
    further = ("CREATE TABLE further (x int)", "ALTER TABLE nowhere ADD COLUMN y int")
    monkeypatch.setattr(_postgres_schema, "MIGRATIONS", (*_postgres_schema.MIGRATIONS, *further))
    monkeypatch.setattr(_postgres_schema, "VERSION", len(_postgres_schema.MIGRATIONS))
    with pytest.raises(StoreFailed, match='relation "nowhere" does not exist'):
        await place.store().claim("x", "me")
    assert place.rows("SELECT version, to_regclass('further') FROM layout") == [(before, None)]


@anyio_test
@services
async def test_several_processes_make_one_schema(place: InSchema):
    """Stores are as good: each has a connection of its own."""
    stores = [place.store() for _ in range(6)]
    async with anyio.create_task_group() as tasks:
        for number, store in enumerate(stores):
            tasks.start_soon(store.claim, f"run{number}", "me")
    assert place.rows("SELECT version FROM layout") == [(_postgres_schema.VERSION,)]
    assert place.rows("SELECT count(*) FROM claims") == [(6,)]
    for number, store in enumerate(stores):
        await store.release(f"run{number}", "me")


@anyio_test
@services
async def test_a_schema_may_take_longer_to_make_than_an_answer_may(place: InSchema):
    """Else a slow disk would keep a service from ever starting; so would others that start."""
    database = f"slow_{place.schema}"
    place.rows(f"CREATE DATABASE {database}")
    address = place.server.address(database)
    place.server.execute(
        "CREATE FUNCTION wait() RETURNS event_trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_sleep(0.3); END $$; "
        "CREATE EVENT TRIGGER waits ON ddl_command_start WHEN TAG IN ('CREATE SCHEMA') "
        "EXECUTE FUNCTION wait()",
        address=address,
    )
    stores = [place.store(address, patience=0.01, answers=0.15) for _ in range(3)]
    async with anyio.create_task_group() as tasks:
        for number, store in enumerate(stores):
            tasks.start_soon(store.claim, f"run{number}", "me")
    found = place.server.execute(f"SELECT count(*) FROM {place.schema}.claims", address=address)
    assert found == [(3,)]
    for number, store in enumerate(stores):
        await store.release(f"run{number}", "me")


# -- what is there ---------------------------------------------------------------------------------


@anyio_test
@services
async def test_it_is_connected_while_a_run_is_claimed(place: InSchema):
    store = place.store()
    async with no_leaks():
        await store.claim("root", "me")
        await store.claim("other", "me")
        await store.release("root", "me")
        assert len(place.backends()) == 1
        await store.release("other", "me")
        await anyio.to_thread.run_sync(wait_for, lambda: not place.backends())


@anyio_test
@services
async def test_reading_makes_no_schema(place: InSchema):
    assert await place.store().load("root") is None
    assert place.rows("SELECT FROM pg_namespace WHERE nspname = ?", place.schema) == []


@anyio_test
@services
async def test_keys_of_any_length_are_kept(place: InSchema):
    keys: list[Any] = ["#", "#1", '#"', "x" * 5000, "ü" * 3000, "x" * 5001, "\0" * 2000, 7**3000]
    async with place.store() as store, claimed(store):
        await save(store, unapplied=[child_run(key) for key in keys])
        await save(store, unapplied=[child_run(key, status="failed") for key in keys])
        found = await store.children(ROOT)
        assert [one.key for one in found] == keys
        assert {one.status for one in found} == {"failed"}
    texts = [text for (text,) in place.rows("SELECT key FROM child_runs ORDER BY id")]
    assert texts[3:6] == keys[3:6]


@anyio_test
@services
async def test_what_postgres_has_no_letters_for_is_kept(place: InSchema):
    values = ["\0", "a\0b", {"\0": ["\ud800"]}, float("nan"), 10**40, 1e300, 0.1, {"b": 1, "a": 2}]
    async with place.store() as store, claimed(store):
        await save(store, unapplied=[child_run(n, value=value) for n, value in enumerate(values)])
        found = [one.value for one in await store.children(ROOT)]
    assert repr(found) == repr(values)
    (told,) = place.rows("SELECT count(value ->> 0), count(error_type) FROM child_runs")
    assert told[1] == 0


# -- the layout ------------------------------------------------------------------------------------


def queries() -> dict[str, str]:
    """The examples in the documentation, by their headings."""
    text = (Path(__file__).parents[2] / "docs" / "store-layout.md").read_text()
    found: dict[str, str] = {}
    for part in text.partition("\n## In PostgreSQL")[2].split("\n#### ")[1:]:
        title, _, body = part.partition("\n")
        found[title] = body.partition("```sql\n")[2].partition("```")[0]
    return found


ANSWERS: dict[str, Any] = {
    "Runs": [("crawl-1", "crawl", "succeeded")],
    "Counts by status": [("failed", 1), ("succeeded", 2)],
    "The first page of failures": [("b", "builtins:LookupError", "no such page")],
    "Into a child's value": [("a", "A"), ("c", "C")],
    "Who has claimed what": [],
    "Space": None,
}


@services
def test_examples_of_queries_are_right(place: InSchema):
    @action(reads=["url"], writes=["page"])
    async def fetch(url: str) -> dict[str, Any]:
        if url == "b":
            raise LookupError("no such page")
        return {"title": url.upper()}

    act = fan_out(
        fetch, over="urls", item="url", key=str, into="pages", errors_into="bad", on_error="collect"
    )
    app = Application(act, store=place.store(), name="crawl")
    app.run_sync({"urls": ["a", "b", "c"]}, id="crawl-1")
    assert list(queries()) == list(ANSWERS)
    for title, query in queries().items():
        found = place.rows(query.replace("'shoal'", f"'{place.schema}'"))
        if ANSWERS[title] is not None:
            assert [row[: len(ANSWERS[title][0])] if row else row for row in found] == ANSWERS[
                title
            ]
        else:
            assert found, title
