"""Ended runs are deleted after a while: ``runtime_lifespan(keep=)``."""

from __future__ import annotations

import logging
from collections.abc import Collection
from datetime import timedelta
from typing import Any

import anyio
import pytest

from shoal import Application, Context, MemoryStore, Runtime, StoreFailed, action
from shoal.errors import BadUse, DefinitionError
from shoal.fastapi import runtime_lifespan
from shoal.testing import no_leaks

pytestmark = pytest.mark.anyio


@action(reads=["n"], writes=["out"])
async def work(n: int, context: Context) -> int:
    return n or await context.ask("n", "which?")


app = Application(work, name="work")


async def ids(store: MemoryStore) -> Collection[str]:
    return {one.run_id for one in await store.runs()}


async def test_it_looks_every_hour_whatever_fails(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    asked: list[tuple[float, float]] = []

    async def prune(_store: MemoryStore, older_than: float) -> int:
        asked.append((anyio.current_time(), older_than))
        if len(asked) < 3:
            raise StoreFailed("it is away")
        return 0

    monkeypatch.setattr(MemoryStore, "prune", prune)
    start = anyio.current_time()
    runtime = Runtime(store=MemoryStore())
    with caplog.at_level(logging.INFO, "shoal.fastapi"):
        async with no_leaks(), runtime_lifespan(runtime, keep=timedelta(days=30))(None):
            await anyio.sleep(timedelta(hours=3).total_seconds())
    first, second, third = [at - start for at, _ in asked]
    assert first <= 60
    assert [round(second - first), round(third - second)] == [3600, 3600]
    assert {seconds for _, seconds in asked} == {2592000}
    assert [one.getMessage() for one in caplog.records] == [
        "can't delete old runs now: StoreFailed: it is away"
    ]


async def test_ended_runs_are_deleted_and_others_stay():
    store = MemoryStore()
    runtime = Runtime(store=store)
    async with no_leaks(), runtime_lifespan(runtime, keep=timedelta(microseconds=1))(None):
        await runtime.run(app, {"n": 1}, id="ended")
        await runtime.run(app, {"n": 0}, id="halted")
        await anyio.sleep(0.001)
        assert await ids(store) == {"halted"}


async def test_it_needs_a_store_that_can():
    with pytest.raises(BadUse, match="this runtime saves none"):
        async with runtime_lifespan(Runtime(), keep=timedelta(days=1))(None):
            pass


@pytest.mark.parametrize("keep", [30, "30 days", timedelta(0), True])
def test_a_time_that_means_nothing_is_refused(keep: Any):
    with pytest.raises(DefinitionError, match=r"timedelta\(days=30\)"):
        runtime_lifespan(Runtime(), keep=keep)
