"""Ctrl-C on trio, which raises it wherever unprotected code stands."""

from __future__ import annotations

import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

import anyio
import pytest
import trio

from shoal import Application, MemoryStore, Runtime, action, fan_out

pytestmark = pytest.mark.skipif(not hasattr(signal, "raise_signal"), reason="needs signals")

ITEMS = {"items": [1, 2]}


@action(reads=["item"], writes=["out"])
async def double(item: int) -> int:
    await anyio.sleep(0)
    return 2 * item


doubled = fan_out(double, over="items", item="item", key=str, into="outs", take="out")


async def in_a_runtime_of_its_own(app: Application[Any]) -> object:
    return await app.run(ITEMS, id="r")


async def in_a_shared_one(app: Application[Any]) -> object:
    async with Runtime() as runtime:
        return await app.run(ITEMS, id="r", runtime=runtime)


async def started(app: Application[Any]) -> object:
    async with Runtime() as runtime:
        return await (await app.start(ITEMS, id="r", runtime=runtime)).result()


async def opened(app: Application[Any]) -> object:
    async with app.open(ITEMS, id="r") as run:
        return await run.result()


class CtrlC:
    """Raises SIGINT at the ``at``-th line that the engine and anyio execute."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.lines = 0

    def on_call(self, frame: FrameType, event: str, arg: object) -> Any:
        name = frame.f_globals.get("__name__", "").partition(".")[0]
        return self.on_line if name in ("shoal", "anyio") else None

    def on_line(self, frame: FrameType, event: str, arg: object) -> Any:
        self.lines += event == "line"
        if event == "line" and self.lines == self.at:
            sys.settrace(None)
            signal.raise_signal(signal.SIGINT)
        return self.on_line


def lines_of(live: Callable[[Application[Any]], Awaitable[object]]) -> int:
    ctrl_c = CtrlC(0)
    assert lived(live, Application(doubled, name="app", store=MemoryStore()), ctrl_c)
    return ctrl_c.lines


def lived(
    live: Callable[[Application[Any]], Awaitable[object]], app: Application[Any], ctrl_c: CtrlC
) -> bool:
    """Return whether a run has come to its end, and not to the Ctrl-C."""

    async def main() -> None:
        sys.settrace(ctrl_c.on_call)
        try:
            await live(app)
        finally:
            sys.settrace(None)

    before = sys.gettrace()
    try:
        trio.run(main)
    except KeyboardInterrupt:
        return False
    finally:
        sys.settrace(before)
    return True


def places(count: int) -> Iterator[int]:
    """Yield a few of so many lines, from the first on."""
    yield from range(1, count, max(1, count // 60))


@pytest.mark.sweep
@pytest.mark.parametrize("live", [in_a_runtime_of_its_own, in_a_shared_one, started, opened])
def test_ctrl_c_anywhere_on_trio(live: Callable[[Application[Any]], Awaitable[object]]) -> None:
    """It comes out bare, nothing is torn or hangs, and the run can be resumed."""
    interrupted = 0
    for at in places(lines_of(live)):
        app = Application(doubled, name="app", store=MemoryStore())
        interrupted += not lived(live, app, CtrlC(at))
        result = trio.run(partial(app.run, ITEMS, id="r"))
        assert result.state["outs"] == {"1": 2, "2": 4}
    assert interrupted > 10
