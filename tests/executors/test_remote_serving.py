"""What a function in a worker waits for, when its call is cancelled or its block is left."""

from __future__ import annotations

import threading
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
    SEEN.append("child begun")
    try:
        await anyio.sleep(1000)
    finally:
        SEEN.append("child ended")


def has_asked(workers: InThreads, what: str) -> bool:
    received = workers.transports[0].received
    return any(message[0] == m.ASKED and message[3] == what for message in received)


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
                while not workers.transports or not has_asked(workers, what):
                    await anyio.sleep(0.001)
                while what == LEAVE and not SEEN:
                    await anyio.sleep(0.001)
                await anyio.wait_all_tasks_blocked()
                tasks.cancel_scope.cancel()
                await anyio.lowlevel.cancel_shielded_checkpoint()
                hook.released.set()
        # Its own cleanup comes last, and no other exception than the cancellation has led there.
        child = ["child begun", "child ended"] if what == LEAVE else []
        assert [*child, "cancelled"] == SEEN
        assert not workers.transports[0].dead


RELEASED = threading.Event()


@action(reads=["n"], writes=["found"])
async def leave_while_waited_for(n: int, context: Context) -> str:
    found: list[str] = []

    async def wait(group: AsyncIterator[object]) -> None:
        found.extend([str(outcome) async for outcome in group])
        found.append("no more")

    async with anyio.create_task_group() as tasks, context.fan_out(name="children") as group:
        group.start(wait_for_release, {"n": n})
        tasks.start_soon(wait, group)
        await anyio.sleep(0)
    return found[-1]


@action(reads=["n"], writes=["never"])
async def wait_for_release(n: int) -> None:
    while not RELEASED.is_set():
        await anyio.sleep(0.001)


async def test_a_task_that_waits_for_outcomes_ends_when_the_block_is_left(anyio_backend: object):
    workers = InThreads()
    RELEASED.clear()
    async with no_leaks(), Runtime() as runtime:
        app = Application(leave_while_waited_for, executor=workers)
        ended = app.run({"n": 1}, runtime=runtime)
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(release_when_left, workers)
                assert (await ended).state["found"] == "no more"


async def release_when_left(workers: InThreads) -> None:
    while not workers.transports or not has_asked(workers, LEAVE):
        await anyio.sleep(0.001)
    await anyio.wait_all_tasks_blocked()
    RELEASED.set()
