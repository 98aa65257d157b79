"""What a function in a worker waits for, when its call is cancelled or its block is left."""

from __future__ import annotations

from collections.abc import AsyncIterator

import anyio
import anyio.lowlevel
import pytest

from shoal import Application, Context, Hook, Runtime, action
from shoal.events import Item
from shoal.executors import _messages as m
from shoal.executors._remote_context import EMIT
from shoal.executors._remote_group import LEAVE
from shoal.testing import no_leaks
from tests.executors.links import InThreads

pytestmark = pytest.mark.realtime

SEEN: list[str] = []
"""What functions have seen: they are called by reference, so it is a global."""


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    SEEN.clear()


@action(reads=["what"], writes=["never"])
async def ask_for(what: str, context: Context) -> None:
    try:
        if what == EMIT:
            await context.emit(1)
        else:
            async with context.fan_out(name="children") as group:
                group.start(sleep_long, {"n": 1})
    except Exception as error:
        SEEN.append(repr(error))
        raise
    except BaseException:
        SEEN.append("cancelled")
        raise


@action(reads=["n"], writes=["never"])
async def sleep_long(n: int) -> None:
    try:
        await anyio.sleep(1000)
    finally:
        SEEN.append("child ended")


class Waiting(Hook):
    """Waits with each item. Hooks are shielded, so no cancellation arrives in here."""

    def __init__(self) -> None:
        self.released = anyio.Event()

    async def on_item(self, event: Item) -> None:
        await self.released.wait()


@pytest.mark.parametrize("what", [EMIT, LEAVE])
async def test_what_is_served_when_the_cancellation_arrives_is_answered(
    anyio_backend: object, what: str
):
    workers, hook = InThreads(), Waiting()
    app = Application(ask_for, executor=workers, hooks=[hook])
    async with no_leaks(), Runtime(grace=30) as runtime:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: app.run({"what": what}, runtime=runtime))
                while not workers.transports or not any(
                    message[0] == m.ASKED and message[3] == what
                    for message in workers.transports[0].received
                ):
                    await anyio.sleep(0.001)
                await anyio.wait_all_tasks_blocked()
                tasks.cancel_scope.cancel()
                await anyio.lowlevel.cancel_shielded_checkpoint()
                hook.released.set()
        # Its own cleanup comes last, and no other exception than the cancellation has led there.
        assert (["child ended", "cancelled"] if what == LEAVE else ["cancelled"]) == SEEN
        assert not workers.transports[0].dead


@action(reads=["n"], writes=["found"])
async def leave_while_waited_for(n: int, context: Context) -> str:
    found: list[str] = []

    async def wait(group: AsyncIterator[object]) -> None:
        found.extend([str(outcome) async for outcome in group])
        found.append("no more")

    async with anyio.create_task_group() as tasks, context.fan_out(name="children") as group:
        group.start(sleep_long, {"n": n})
        tasks.start_soon(wait, group)
        await anyio.sleep(0.01)
        group.cancel("enough")
    return found[-1]


async def test_a_task_that_waits_for_outcomes_ends_when_the_block_is_left(anyio_backend: object):
    async with no_leaks(), Runtime() as runtime:
        app = Application(leave_while_waited_for, executor=InThreads())
        with anyio.fail_after(10):
            assert (await app.run({"n": 1}, runtime=runtime)).state["found"] == "no more"
