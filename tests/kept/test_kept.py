"""Runs that an earlier version has stored are resumed as that version would have resumed them.

Which bodies are called says more than the final state: a digest or an identity that has changed
makes children run anew, and nothing else shows it.
"""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from shoal import PostgresStore, SQLiteStore
from shoal.stores import Store
from tests.kept.programs import ANSWERS, World, programs, resumed, straight
from tests.stores.postgres import PostgresServer

pytestmark = pytest.mark.anyio

HERE = Path(__file__).parent
RUNS = sorted(programs(World(), None))


def without_tracebacks(state: dict[str, Any] | None) -> dict[str, Any] | None:
    errors: dict[object, dict[str, object]] = {} if state is None else state.get("bad", {})
    for error in errors.values():
        error.pop("traceback", None)
    return state


async def check(name: str, store: Store, executed: str) -> None:
    expected = json.loads((HERE / executed).read_text())[name]
    ran, state = await resumed(name, store, ANSWERS.get(name))
    assert ran == expected
    assert without_tracebacks(state) == without_tracebacks(await straight(name))
    ran, again = await resumed(name, store)
    assert without_tracebacks(again) == state
    assert ran == {}, "what has ended is told, and nothing runs"


@pytest.mark.parametrize("layout", [4, 5, 6])
@pytest.mark.parametrize("name", RUNS)
async def test_runs_of_an_earlier_version_are_resumed(name: str, layout: int, tmp_path: Path):
    file = tmp_path / "runs.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript((HERE / f"sqlite-{layout}.sql").read_text())
    await check(name, SQLiteStore(file), "sqlite-4.json")


@pytest.mark.services
@pytest.mark.parametrize("layout", [3, 4, 5])
@pytest.mark.parametrize("name", RUNS)
async def test_runs_in_a_schema_of_an_earlier_version_are_resumed(
    name: str, layout: int, postgres: PostgresServer
):
    schema = postgres.new_schema()
    dump = (HERE / f"postgres-{layout}.sql").read_text()
    postgres.execute(
        dump.replace("kept.", f"{schema}.").replace("SCHEMA kept;", f"SCHEMA {schema};")
    )
    store = PostgresStore(postgres.address(), schema=schema)
    await check(name, store, "sqlite-4.json")
