"""The tasks of a runtime: all have ended when its block is left."""

from __future__ import annotations

import anyio
import pytest
from anyio.lowlevel import checkpoint

from shoal._concurrency.backend import current_backend
from shoal._runtime.tasks import RuntimeTasks

pytestmark = pytest.mark.anyio


async def test_the_block_awaits_a_task_though_it_is_cancelled() -> None:
    ended = list[str]()

    async def work() -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(1)
        ended.append("the work")

    with anyio.CancelScope() as scope:
        async with RuntimeTasks(current_backend()) as tasks:
            tasks.start(work)
            await checkpoint()
            scope.cancel()
    assert ended == ["the work"]


async def test_an_exception_out_of_a_task_is_raised_by_the_block() -> None:
    async def work() -> None:
        await checkpoint()
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup) as raised:
        async with RuntimeTasks(current_backend()) as tasks:
            tasks.start(work)
            await anyio.sleep(10)
    assert isinstance(raised.value.exceptions[0], ZeroDivisionError)


async def test_a_task_begins_only_after_its_start() -> None:
    begun = list[str]()

    async def work() -> None:
        begun.append("the work")

    async with RuntimeTasks(current_backend()) as tasks:
        tasks.start(work)
        assert not begun
    assert begun == ["the work"]
