"""Gates and limiters are kept while they are of use, and no longer."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import cast
from weakref import ref

import anyio
import pytest

from shoal import Application, Budget, Context, Limits, Rate, RetryLater, Runtime, action
from shoal._limits.gates import Gate
from shoal._limits.limiters import Limiters
from shoal._limits.meters import Meter
from shoal._limits.scheduler import FairScheduler
from shoal.errors import BadUse

NOW = 10.0


def use(gate: Gate) -> None:
    gate.users += 1


def pause(gate: Gate) -> None:
    gate.paused_until = NOW + 1


def shut(gate: Gate) -> None:
    gate.is_shut = True


def charge(gate: Gate) -> None:
    cast("Meter", gate.meter).take(NOW, 1.0)


@pytest.mark.parametrize("change", [use, pause, shut, charge])
def test_a_gate_of_which_something_would_be_lost_is_not_dropped(change: Callable[[Gate], None]):
    gate = Gate(2, Limits(2, rate=Rate(1, per=1)).parts[0])
    gate.paused_until = NOW
    assert gate.is_new(NOW), "the pause is over"
    change(gate)
    assert not gate.is_new(NOW)


def test_a_gate_without_a_rate_is_dropped_if_nothing_uses_it():
    gate = Gate(2, Limits(2).parts[0])
    assert gate.is_new(NOW)
    use(gate)
    assert not gate.is_new(NOW)


class Owner:
    pass


def test_an_owner_keeps_its_limiter_while_its_limits_are_the_same_objects():
    limiters = Limiters(FairScheduler(None, lambda: NOW))  # pyright: ignore[reportArgumentType]
    owner, one, other = Owner(), Limits(1), Limits(2)
    first = limiters.of(owner, one)
    assert limiters.of(owner, one) is first
    assert limiters.of(owner, one, "another") is not first
    both = limiters.of(owner, one & other)
    assert both is not first
    assert both.parts[0] is first.parts[0], "what is counted stays"
    assert limiters.of(owner, one & other) is both
    gone = ref(both)
    del owner, both, first
    gc.collect()
    assert gone() is None


def test_a_gate_keeps_its_line_when_its_limit_is_changed():
    """Those in line would be forgotten, and more runs would wait than `waiting=` allows."""
    limiters = Limiters(FairScheduler(None, lambda: NOW))  # pyright: ignore[reportArgumentType]
    limiter = limiters.of(Owner(), Limits(1))
    gate = limiter.parts[0].the_one()
    limiter.change(Limits(2))
    assert gate.line is None
    limiter.change(Limits(2, waiting=5))
    line = gate.line
    assert line is not None
    limiter.change(Limits(3, waiting=6))
    assert gate.line is line
    assert gate.slots == 3


@pytest.mark.anyio
async def test_a_part_that_does_not_exist_is_not_paused():
    async with Runtime(limits=Limits(2) & Limits(1, by=lambda state: state["key"])) as runtime:
        limiter = runtime.limiter(runtime)
        for part in (-1, 2, True, "1"):
            with pytest.raises(BadUse, match=r"has no part .*: it has 2, from 0"):
                limiter.pause(part=part)  # pyright: ignore[reportArgumentType]
        with pytest.raises(BadUse, match="has no keys, so 'a' is none of them"):
            limiter.pause("a")
        for part in (0, 1):
            limiter.pause(part=part)
        limiter.resume("a", part=1)


@pytest.mark.parametrize(
    "limits",
    [Limits(1, by=lambda state: state["key"]), Limits(1, rate=Rate(9), cost=lambda state: 1)],
    ids=["by", "cost"],
)
@pytest.mark.anyio
async def test_a_limit_that_nothing_has_used_is_shown_as_paused(limits: Limits):
    """Else the page of the runs offers to pause it again, and not to let it go on."""
    async with Runtime(limits=limits) as runtime:
        limiter = runtime.limiter(runtime)
        limiter.pause()
        assert [one.paused for one in limiter.statistics()] == [1]
        limiter.resume()
        assert [one.paused for one in limiter.statistics()] == [0]
        if limits.parts[0].by is not None:
            limiter.pause("a")
            limiter.pause("b")
            assert [one.paused for one in limiter.statistics()] == [2]
            limiter.resume("a")
            assert [one.paused for one in limiter.statistics()] == [1]


@pytest.mark.anyio
async def test_a_key_is_shown_as_paused_until_the_moment_at_which_its_pause_ends():
    @action(reads=["n"], writes=["out"], limits=Limits(1, by=lambda state: state["n"]))
    async def work(n: int, context: Context) -> int:
        began.append(anyio.current_time())
        if len(began) == 1:
            raise RetryLater(2)
        counts.append(limiter.statistics()[0].paused)
        return n

    began, counts = list[float](), list[int]()
    async with Runtime() as runtime, anyio.create_task_group() as tasks:
        limiter = runtime.limiter(work)
        tasks.start_soon(runtime.run, Application(work), {"n": 1})
        await anyio.sleep(1)
        assert limiter.statistics()[0].paused == 1
    assert counts == [0]
    assert began[1] - began[0] == 2


@pytest.mark.parametrize("is_keyed", [False, True])
@pytest.mark.anyio
async def test_a_budget_is_paused_before_a_run_has_it_and_while_it_has(is_keyed: bool):
    """Each run has one of its own; a pause holds for all of them, also for those to come."""
    calls: list[int] = []

    @action(reads=["n"], writes=["out"])
    async def work(n: int) -> int:
        calls.append(n)
        return n

    app = Application(
        work, limits=Budget(5, "EUR", worst=1, by=(lambda _: "a") if is_keyed else None)
    )
    key = "a" if is_keyed else None
    async with Runtime() as runtime, anyio.create_task_group() as tasks:
        limiter = runtime.limiter(app)
        limiter.pause(key)
        tasks.start_soon(runtime.run, app, {"n": 1})
        await anyio.sleep(1)
        assert not calls
        assert limiter.statistics()[0].paused == 1
        limiter.resume(key)
    assert calls == [1]
