"""Processes under each event loop, however it was started, and under virtual clocks."""

from __future__ import annotations

import time
from typing import Any

import anyio
import pytest

from shoal import Application, Runtime, action, fan_out
from shoal.executors import Processes
from shoal.testing import no_leaks
from tests.executors import work


@action(reads=["n"], writes=["square"])
async def wait_an_hour(n: int) -> int:
    await anyio.sleep(3600)
    return n * n


@pytest.mark.anyio
@pytest.mark.every_starter
async def test_processes_work_in_every_loop():
    squares = fan_out(work.square, over="ns", item="n", into="squares")
    result = await Application(squares, executor=Processes(1)).run({"ns": range(30)})
    assert result.state["squares"] == [n * n for n in range(30)]


@pytest.mark.anyio
async def test_a_virtual_clock_jumps_unless_a_call_is_under_way():
    processes = Processes(1)
    async with no_leaks(), Runtime() as runtime:

        async def run(act: Any) -> None:
            await Application(act, executor=processes).run({"n": 2}, runtime=runtime)

        await run(work.square)
        began, began_really = anyio.current_time(), time.monotonic()
        await run(wait_an_hour)  # in the loop, since a coroutine function is not taken
        assert anyio.current_time() - began >= 3600
        assert time.monotonic() - began_really < 60
        began, began_really = anyio.current_time(), time.monotonic()
        await run(work.square)
        # Time has passed for real, if at all: no timer of ours was jumped to.
        assert anyio.current_time() - began <= time.monotonic() - began_really + 0.1
