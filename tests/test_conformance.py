"""Our own stores do what every store has to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoal import MemoryStore, SQLiteStore, Store
from shoal.testing import StoreConformance


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
