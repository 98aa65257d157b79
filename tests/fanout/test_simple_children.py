"""Children that only call simple actions take a short way, on which nothing else is different."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from shoal import Application, Graph, Hook, RetryLater, Runtime, action, fan_out
from shoal.events import StepStarted
from shoal.testing import run_virtual

pytestmark = pytest.mark.anyio


@action(reads=["n"], writes=["double"])
async def double(n: int) -> int:
    await anyio.sleep(0)
    return 2 * n


@action(reads=["double"], writes=["more"])
async def one_more(double: int) -> int:
    await anyio.sleep(0)
    return double + 1


def over(*acts: Any) -> Application[Any]:
    steps = Graph.chain(*acts, name="steps")
    return Application(fan_out(steps, over="numbers", item="n", into="found", take="more"))


def test_a_function_is_called_as_its_signature_says():
    calls: list[tuple[tuple[int, ...], dict[str, int]]] = []

    def spied(function: Callable[..., Awaitable[int]]) -> Callable[..., Awaitable[int]]:
        @functools.wraps(function)
        async def spy(*args: int, **kwargs: int) -> int:
            calls.append((args, kwargs))
            return await function(*args, **kwargs)

        return spy

    @action(reads=["n"], writes=["double"])
    @spied
    async def wrapped(n: int) -> int:
        return 2 * n

    @action(reads=["double"], writes=["more"])
    async def by_name_alone(*, double: int) -> int:
        return double + 1

    assert run_virtual(lambda: over(wrapped, by_name_alone).run({"numbers": [3]})).state[
        "found"
    ] == [7]
    assert calls == [((), {"n": 3})]


async def test_a_step_does_not_get_the_native_cancel_that_the_step_before_has_left():
    @action(reads=["n"], writes=["double"])
    async def cancels_itself(n: int) -> int:
        task = asyncio.current_task() if _is_asyncio() else None
        if task is not None:
            task.cancel()
        return 2 * n

    found = await over(cancels_itself, one_more).run({"numbers": [1, 2]})
    assert found.state["found"] == [3, 5]


async def test_a_hook_that_joins_in_the_middle_of_a_child_sees_its_next_step():
    seen: list[str] = []

    class Steps(Hook):
        def on_step_started(self, event: StepStarted) -> None:
            seen.append(event.step)

    @action(reads=["n"], writes=["double"])
    async def joins(n: int) -> int:
        run._run.config.hooks.join(Steps())  # pyright: ignore[reportPrivateUsage]
        return 2 * n

    async with Runtime() as runtime:
        run = await over(joins, one_more).start({"numbers": [1]}, runtime=runtime)
        assert (await run.result()).state["found"] == [3]
    assert seen == ["one_more"]


async def test_a_step_in_the_middle_that_is_put_off_is_repeated():
    puts_off = [True]

    @action(reads=["double"], writes=["more"])
    async def busy(double: int) -> int:
        if puts_off:
            puts_off.pop()
            raise RetryLater(0.001)
        return double + 1

    assert (await over(double, busy).run({"numbers": [1]})).state["found"] == [3]


def _is_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
