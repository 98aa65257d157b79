"""A guard that fails, whatever it is told of just then: every start has its end all the same."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
from anyio.lowlevel import checkpoint

from shoal import Application, Context, Graph, Hook, action, fan_out, race
from shoal.errors import HookFailed
from shoal.events import Event
from shoal.testing import RecordingHook

pytestmark = pytest.mark.anyio


@action(writes=["x"])
async def begin() -> int:
    await checkpoint()
    return 1


@action(reads=["x"], writes=["y"])
async def go_on(x: int) -> int:
    await checkpoint()
    return x


@action(reads=["n"], writes=["z"])
async def leaf(n: int) -> int:
    await checkpoint()
    return n


@action(reads=["z"], writes=["q"])
async def after_leaf(z: int) -> int:
    return z


@action(writes=["w"])
async def by_hand(context: Context) -> int:
    async with context.fan_out(name="by hand") as group:
        for n in range(3):
            group.start(leaf, {"n": n}, key=n)
        return len([outcome async for outcome in group])


def spread(act: Any, take: str) -> Any:
    return fan_out(act, over="ns", item="n", key=int, into="out", take=take, name="spread")


GRAPHS: dict[str, Callable[[], Any]] = {
    "steps": lambda: Graph.chain(begin, go_on),
    "a graph in a graph in a graph": lambda: Graph.chain(
        Graph.chain(Graph.chain(begin, name="inner"), go_on, name="outer")
    ),
    "a fan-out": lambda: spread(leaf, "z"),
    "of two steps": lambda: spread(Graph.chain(leaf, after_leaf, name="two"), "q"),
    "in a graph": lambda: Graph.chain(Graph.chain(begin, spread(leaf, "z"), name="node")),
    "of graphs in graphs": lambda: spread(
        Graph.chain(Graph.chain(leaf, name="inner"), name="outer"), "z"
    ),
    "a race": lambda: race(begin, begin.bind(name="other"), into="won", name="race"),
    "an action's own": lambda: by_hand,
}
METHODS = sorted(name for name in dir(Hook) if name.startswith("on_"))


def guard(method: str, fails_at: int, error: type[BaseException] = RuntimeError) -> Hook:
    """Make one that fails when it is told that for the so-manieth time."""
    received = count(1)

    def receive(self: Hook, event: Event) -> None:
        if next(received) == fails_at:
            raise error("so far and no further")

    return type("Guard", (Hook,), {method: receive})()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("graph", GRAPHS.values(), ids=GRAPHS)
async def test_every_start_has_its_end(graph: Callable[[], Any], method: str):
    for fails_at in count(1):
        before, after = RecordingHook(), RecordingHook()
        app = Application(graph(), hooks=[before, guard(method, fails_at), after])
        try:
            await app.run({"ns": [1, 2, 3]})
        except HookFailed:
            has_failed = True
        else:
            has_failed = False  # it is not told that often
        before.assert_paired()
        after.assert_paired()
        if not has_failed:
            break


@pytest.mark.parametrize("method", METHODS)
async def test_every_start_has_its_end_though_a_ctrl_c_arrives_in_a_hook(method: str):
    for fails_at in count(1):
        hook = RecordingHook()
        app = Application(
            GRAPHS["of two steps"](), hooks=[hook, guard(method, fails_at, KeyboardInterrupt)]
        )
        try:
            await app.run({"ns": [1, 2, 3]})
        except KeyboardInterrupt:
            hook.assert_paired()
        else:
            break
