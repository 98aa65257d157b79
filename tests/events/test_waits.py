"""Waits for limits are told when they begin and when they end."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from shoal import Application, Graph, Limits, action, fan_out
from shoal.events import ChildStarted, WaitEnded, Waiting
from shoal.testing import RecordingHook

pytestmark = pytest.mark.anyio


@action(reads=["n"], writes=["m"])
async def quick(n: int) -> int:
    return n


@action(reads=["m"], writes=["done"], limits=Limits(1))
async def slow(m: int) -> int:
    await anyio.sleep(2)
    return m


def waits(hook: RecordingHook) -> list[Any]:
    return [event for event in hook.events if isinstance(event, Waiting | WaitEnded)]


async def test_an_attempt_that_has_waited_is_told_to_have_room():
    hook = RecordingHook()
    both = Graph.chain(quick, slow, name="both")
    app = Application(fan_out(both, over="ns", item="n", into="x", take="done"), hooks=[hook])
    await app.run({"ns": range(3)})
    begun = [event for event in waits(hook) if isinstance(event, Waiting)]
    ended = [event for event in waits(hook) if isinstance(event, WaitEnded)]
    assert [event.path.key for event in begun] == [event.path.key for event in ended] == [1, 2]
    assert [event.seconds for event in ended] == [2, 4]
    assert {(event.step, event.limit) for event in waits(hook)} == {("slow", "Limits(1)")}


async def test_a_child_that_has_waited_is_told_to_have_started():
    hook = RecordingHook()
    app = Application(fan_out(slow, over="ns", item="m", into="x"), hooks=[hook])
    await app.run({"ns": range(2)})
    (waiting,) = waits(hook)
    assert isinstance(waiting, Waiting)
    assert waiting.step == ""
    later = hook.events[hook.events.index(waiting) :]
    assert any(isinstance(one, ChildStarted) and one.child == waiting.path for one in later)


async def test_a_wait_that_is_cancelled_has_no_end():
    hook = RecordingHook()
    both = Graph.chain(quick, slow, name="both")
    step = fan_out(both, over="ns", item="n", into="x", take="done", timeout=1)
    with pytest.raises(TimeoutError):
        await Application(step, hooks=[hook]).run({"ns": range(2)})
    assert [type(event) for event in waits(hook)] == [Waiting]
