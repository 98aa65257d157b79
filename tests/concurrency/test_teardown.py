"""A loop that tears down all of its tasks ends, whatever the engine is doing at that moment.

``asyncio.run``, servers and test runners cancel every task at their end, the engine's too: also
those that have not begun, which asyncio then never begins.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from shoal import (
    Application,
    Context,
    Each,
    Hook,
    Limits,
    Rate,
    Retry,
    Runtime,
    action,
    fan_out,
    race,
)
from shoal.events import RunEnded, RunStarted
from shoal.testing import VirtualTimeLoop
from shoal.testing._steps import steps_of_this_loop
from tests.starters import ON_ASYNCIO, Main, start
from tests.sweeps import EVERYWHERE, sample

STARTERS = tuple(ON_ASYNCIO) if EVERYWHERE else ("asyncio.run", *[*ON_ASYNCIO][5:])


class Pairs(Hook):
    """Which runs have started and not ended."""

    def __init__(self) -> None:
        self.open = set[str]()

    def on_run_started(self, event: RunStarted) -> None:
        self.open.add(event.run_id)

    def on_run_ended(self, event: RunEnded) -> None:
        self.open.remove(event.run_id)


@action(reads=["x"], writes=["y"])
async def leaf(x: int) -> int:
    await anyio.sleep(0.1 * x)
    return x


@action(reads=["x"], writes=["y"])
async def own(x: int, context: Context) -> int:
    async with context.fan_out(name="kids", limits=Limits(2)) as group:
        group.start_each(leaf, over=range(3), item="x")
        return len([outcome async for outcome in group])


@action(reads=["x"], writes=["y"])
def threaded(x: int) -> int:
    return x


nested = fan_out(
    fan_out(leaf, over="xs", item="x", into="ys", take="y", limits=Limits(rate=Rate(20))),
    over="xss",
    item="xs",
    into="ys",
)
state = {"xs": [0, 1, 2], "xss": [[0, 1], [1, 2]], "x": 1}
ACTS: dict[str, Any] = {
    "fan-out": fan_out(leaf, over="xs", item="x", into="ys", take="y"),
    "nested": nested,
    "race": race(leaf, own.bind(name="other"), into="y", stagger=0.05),
    "own fan-out": own,
    "retried": fan_out(
        own,
        over="xs",
        item="x",
        into="ys",
        take="y",
        each=Each(timeout=5, retry=Retry(2, on=ValueError)),
    ),
    "threads": fan_out(threaded, over="xs", item="x", into="ys", take="y"),
}


async def by_run(app: Application[Any]) -> None:
    await app.run(state)


async def by_start(app: Application[Any]) -> None:
    async with Runtime() as runtime:
        await runtime.start(app, state)


async def by_open(app: Application[Any]) -> None:
    async with app.open(state) as run:
        async for _ in run:
            pass


async def torn_down(work: Callable[[], Awaitable[None]], place: int, again: int) -> bool:
    """Cancel all tasks before a step of the loop; tell whether there are so many steps.

    Once more, ``again`` steps later.
    """
    main = asyncio.current_task()
    steps = 0

    def received() -> None:
        nonlocal steps
        steps += 1
        if steps in (place, place + again):
            for task in asyncio.all_tasks() - {main}:
                task.cancel()

    async def waited() -> None:
        await work()

    with steps_of_this_loop(received, reason="torn down"):
        background = asyncio.create_task(waited())
        await asyncio.wait([background])
        seen = steps
    if not background.cancelled():
        background.exception()  # it was looked at
    assert asyncio.all_tasks() == {main}
    return seen >= place


@pytest.mark.parametrize("how", [by_run, by_start, by_open])
@pytest.mark.parametrize("name", ACTS)
@pytest.mark.parametrize("starter", STARTERS)
def test_a_loop_that_tears_down_all_tasks_ends(starter: str, name: str, how: Any):
    """A deadlock is an error: time is virtual."""
    logging.getLogger("asyncio").setLevel(logging.ERROR)
    for place in sample():
        pairs = Pairs()
        app: Any = Application(ACTS[name], hooks=[pairs])
        hit = run(starter, lambda: torn_down(lambda: how(app), place, place % 4))  # noqa: B023
        assert not pairs.open, f"torn down before step {place}"
        if place and not hit:
            return
    raise AssertionError("it never ended")


def run(starter: str, main: Main[Any]) -> Any:
    return start(starter, main, "asyncio", {"loop_factory": VirtualTimeLoop})


PROGRAM = """
import asyncio
from shoal import Application, Context, action

@action(reads=["x"], writes=["y"])
async def leaf(x: int) -> int:
    return x

async def main() -> None:
    is_there = asyncio.Event()

    @action(writes=["total"])
    async def own(context: Context) -> int:
        await asyncio.sleep(0.01)
        is_there.set()
        async with context.fan_out(name="kids") as group:
            group.start_each(leaf, over=range(3), item="x")
            return sum([outcome.value async for outcome in group])

    background = asyncio.create_task(Application(own).run())
    await is_there.wait()
    assert not background.done()

asyncio.run(main())
print("ended")
"""


def test_a_program_that_leaves_a_run_behind_ends():
    """``asyncio.run`` cancels the run's tasks, one of which has not begun, and waits for them."""
    command = [sys.executable, "-W", "error", "-c", PROGRAM]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.stdout == "ended\n"
    assert "never awaited" not in ended.stderr
