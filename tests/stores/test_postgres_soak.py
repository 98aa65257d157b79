"""Many workers on one PostgreSQL server, killed and asked for each other's runs all the time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .durable import InSchema, find_programs
from .postgres import PostgresServer, private_server
from .soak import Soaked, soak

pytestmark = pytest.mark.services

DEADLOCKS = "SELECT sum(deadlocks) FROM pg_stat_database"


def check(server: PostgresServer, found: Soaked) -> None:
    assert server.execute(DEADLOCKS) == [(0,)]
    assert "deadlock" not in (server.folder / "log").read_text()
    assert not found.ends, "no run has come to its end, nor failed"
    assert set(found.answers) <= {"begun", "goes on"}


@pytest.fixture
def disk() -> Iterator[Path]:
    """Have a folder on a disk that every user may look into."""
    with tempfile.TemporaryDirectory(prefix="shoal-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.timeout(120)
def test_workers_that_are_killed_hold_nobody_up(postgres: PostgresServer, tmp_path: Path):
    place = InSchema(postgres)
    given = {"address": postgres.address(), "schema": place.schema}
    found = soak(tmp_path, given, seconds=8, runs=40, kill_every=2)
    check(postgres, found)
    assert found.kills == 3


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_hundred_runs_for_a_minute_beside_sqlite(
    disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """On one disk, with the settings that both have by default."""
    settings = {"log_min_messages": "error"}
    with private_server(find_programs(), settings, disk) as server:
        (tmp_path / "postgres").mkdir()
        given = {"address": server.address(), "schema": "soak"}
        postgres = soak(tmp_path / "postgres", given, seconds=60, runs=200)
        check(server, postgres)
    (tmp_path / "sqlite").mkdir()
    sqlite = soak(tmp_path / "sqlite", {"file": str(disk / "runs.db")}, seconds=60, runs=200)
    with capsys.disabled():
        print(f"\nPostgreSQL: {postgres}\nSQLite: {sqlite}")
    assert postgres.rate >= sqlite.rate / 2
