"""Tasks that an action makes by itself and leaves behind are named in asyncio's debug mode."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sys
from typing import Any

import pytest

from shoal import Application, action, fan_out
from tests.starters import start

needs_contexts = pytest.mark.skipif(
    sys.version_info < (3, 12), reason="tasks don't tell their contexts"
)


def run(*, debug: bool, leaks: bool = True) -> None:
    kept: list[asyncio.Task[None]] = []

    @action(reads=["x"], writes=["y"])
    async def work(x: int) -> int:
        task = asyncio.create_task(asyncio.sleep(5), name=f"left by {x}")
        if leaks:
            kept.append(task)
        else:
            task.cancel()
            await asyncio.wait([task])
        return x

    async def main() -> None:
        mine = asyncio.create_task(asyncio.sleep(5), name="of the caller")
        await Application(fan_out(work, over="xs", item="x", into="ys")).run({"xs": [1, 2]})
        for task in (mine, *kept):
            task.cancel()
        await asyncio.wait([mine, *kept])

    start("asyncio.run", main, options={"debug": debug})


@needs_contexts
def test_a_task_that_an_action_leaves_behind_is_named(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "shoal"):
        run(debug=True)
    told = sorted(r.getMessage() for r in caplog.records if r.name == "shoal")
    assert len(told) == 2
    assert "left by 1, running sleep, made at" in told[0]
    assert "test_leftovers.py" in told[0]
    assert "in work. Await it in the action" in told[0]


@pytest.mark.parametrize(("debug", "leaks"), [(False, True), (True, False)])
def test_nothing_is_said_without_debug_mode_or_without_a_leak(
    debug: bool, leaks: bool, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING, "shoal"):
        run(debug=debug, leaks=leaks)
    assert not [r for r in caplog.records if r.name == "shoal"]


def run_twice(**options: Any) -> None:
    """Run an action twice, by one id, that keeps one task for all runs, and cancels others."""
    kept: list[asyncio.Task[None]] = []

    @action(writes=["y"])
    async def work() -> int:
        if not kept:
            kept.append(asyncio.create_task(asyncio.sleep(5), name="refresher", **options))
        given_up = asyncio.create_task(asyncio.sleep(5), name="given up")
        await asyncio.sleep(0)
        given_up.cancel()
        return 1

    async def main() -> None:
        for _ in range(2):
            await Application(work).run(id="nightly")
        kept[0].cancel()
        await asyncio.wait(kept)

    start("asyncio.run", main, options={"debug": True})


@needs_contexts
def test_a_task_that_outlives_its_run_is_named_once_and_what_is_being_cancelled_never(
    caplog: pytest.LogCaptureFixture,
):
    with caplog.at_level(logging.WARNING, "shoal"):
        run_twice()
    (told,) = [r.getMessage() for r in caplog.records if r.name == "shoal"]
    assert "refresher" in told


@needs_contexts
def test_a_task_with_a_context_of_its_own_is_nobodys(caplog: pytest.LogCaptureFixture):
    """As the warning says."""
    with caplog.at_level(logging.WARNING, "shoal"):
        run_twice(context=contextvars.Context())
    assert not [r for r in caplog.records if r.name == "shoal"]
