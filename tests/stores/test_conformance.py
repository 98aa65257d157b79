"""Our own stores do what every store has to."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from shoal import MemoryStore, PostgresStore, SQLiteStore
from shoal.stores import Store
from shoal.testing import StoreConformance

from .postgres import PostgresServer


@pytest.mark.anyio
class TestMemoryStore(StoreConformance):
    @pytest.fixture
    def store(self) -> MemoryStore:
        return MemoryStore()


@pytest.mark.anyio
class TestSQLiteStore(StoreConformance):
    @pytest.fixture
    def store(self, tmp_path: Path) -> SQLiteStore:
        return SQLiteStore(tmp_path / "runs.db", synchronous="normal")

    def another(self, store: Any) -> Store:
        return SQLiteStore(store.path, synchronous="normal")


@pytest.mark.anyio
class TestRelaxedSQLiteStore(StoreConformance):
    @pytest.fixture
    def store(self, tmp_path: Path) -> SQLiteStore:
        return SQLiteStore(tmp_path / "runs.db", durability="relaxed", window=0.001)


@pytest.mark.anyio
class TestSQLiteStoreThatWaitsForTheEnd(StoreConformance):
    @pytest.fixture
    def store(self, tmp_path: Path) -> SQLiteStore:
        return SQLiteStore(tmp_path / "runs.db", durability="end")


@pytest.mark.anyio
@pytest.mark.services
class TestPostgresStore(StoreConformance):
    @pytest.fixture(autouse=True)
    def _server(self, postgres: PostgresServer) -> None:
        self._address, self._schema = postgres.address(), postgres.new_schema()

    @pytest.fixture
    async def store(self) -> AsyncGenerator[PostgresStore]:
        async with PostgresStore(self._address, schema=self._schema) as store:
            yield store  # connected once: that takes as long as a test

    def another(self, store: Any) -> Store:
        return PostgresStore(self._address, schema=self._schema)
