"""Requests that wait for a backend, and for something else: slots, or another backend.

A request waits at one gate at a time. A backend is asked for what waits there, and only for what
could be used; the other needs must not be forgotten meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from shoal import Application, Budget, Limits, Rate, Runtime, SharedRate, action, fan_out
from shoal.rates import BudgetReply, BudgetRequest, MemoryRates, RateReply, RateRequest
from shoal.testing import run_virtual

MONEY = 50


class Distant:
    """A backend that is some milliseconds away, and counts its calls and what is spent there."""

    def __init__(self, latency: float) -> None:
        self.latency = latency
        self.kept = MemoryRates()
        self.calls = 0
        self.used = 0.0

    async def settle(self, requests: Sequence[RateRequest]) -> Sequence[RateReply]:
        self.calls += 1
        await anyio.sleep(self.latency)
        replies = await self.kept.settle(requests)
        await anyio.sleep(self.latency)
        return replies

    async def spend(self, requests: Sequence[BudgetRequest]) -> Sequence[BudgetReply]:
        self.calls += 1
        await anyio.sleep(self.latency)
        replies = await self.kept.spend(requests)
        self.used = replies[-1].used
        await anyio.sleep(self.latency)
        return replies


def rate(backend: Distant) -> Limits:
    return Limits(rate=SharedRate(Rate(100, burst=5), "calls", backend))


def budget(backend: Distant) -> Limits:
    return Budget(MONEY, "EUR", worst=1, name="team", backend=backend)


def working(limits: Limits, seconds: float = 0.01, name: str = "work") -> Any:
    @action(name=name, reads=["n"], writes=["out"], limits=limits)
    async def work(n: int) -> int:
        await anyio.sleep(seconds)
        return n

    return work


def mapped(act: Any) -> Application[Any]:
    return Application(fan_out(act, over="ns", item="n", name="many", limits=Limits(4)))


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("is_rated", [False, True], ids=["", "of a shared rate"])
@pytest.mark.parametrize("what", [rate, budget])
def test_a_slot_that_was_taken_meanwhile_is_waited_for(what: Any, is_rated: bool, backend: Any):
    """Another run takes the slot while requests wait for a backend, which is then not asked."""

    async def main(later: int) -> None:
        far = Distant(0.0)
        slot = Limits(1, rate=SharedRate(Rate(1000), "slots", far) if is_rated else None)
        with anyio.fail_after(5):
            async with Runtime() as runtime, anyio.create_task_group() as tasks:
                app = mapped(working(what(far) & slot))
                tasks.start_soon(runtime.run, app, {"ns": range(3)})
                for _ in range(later):
                    await anyio.lowlevel.checkpoint()
                other = Application(working(slot, 0.3, "other"), name="other")
                tasks.start_soon(runtime.run, other, {"n": 1})
        assert far.calls < 20
        if what is budget:
            assert far.used == 3

    for later in range(6):
        run_virtual(main, later, backend=backend)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("latency", [0.0, 0.03])
def test_a_shared_rate_and_a_shared_budget_together(latency: float, backend: Any):
    """A grant of one of them must not be given back while the other one is asked."""

    async def main() -> None:
        far = Distant(latency)
        with anyio.fail_after(5):
            async with Runtime() as runtime:
                await runtime.run(mapped(working(rate(far) & budget(far))), {"ns": range(8)})
        assert far.calls < 40
        assert far.used == 8

    run_virtual(main, backend=backend)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_what_was_granted_for_a_request_that_is_cancelled_is_given_back(backend: Any):
    """It waits for the next turn of the rate then, and other processes could use its money."""

    async def main() -> None:
        far = Distant(0.0)
        slow = Limits(rate=SharedRate(Rate(0.1, burst=1), "calls", far))
        act = working(slow & budget(far))
        async with Runtime() as runtime:
            await runtime.run(Application(act), {"n": 1})
            with anyio.move_on_after(2):
                await runtime.run(Application(act), {"n": 2})
            await anyio.sleep(0.1)
            assert far.used == 1

    run_virtual(main, backend=backend)
