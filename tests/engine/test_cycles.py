"""What a run raised dies with the last reference to it: the garbage collector has nothing to do.

An exception's traceback holds the frames that it came through, and so what children held: pages,
bodies, connections. A cycle that leads from there back to the exception would keep all of that
until the collector comes by.
"""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any, NoReturn

import anyio
import anyio.lowlevel
import pytest

from shoal import (
    Application,
    Context,
    Each,
    Graph,
    Limits,
    Retry,
    State,
    Tolerate,
    action,
    fan_out,
    first,
    first_item,
    quorum,
    race,
)

pytestmark = pytest.mark.anyio


class Page:
    """What a child holds."""


pages: list[weakref.ref[Page]] = []


def new_page() -> Page:
    page = Page()
    pages.append(weakref.ref(page))
    return page


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    pages.clear()
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@action(reads=["x"], writes=["y"])
async def work(x: int) -> int:
    _page = new_page()  # held by the frame
    await anyio.lowlevel.checkpoint()
    raise ValueError(x)


@action(reads=["x"], writes=["y"], retry=Retry(3, on=ValueError, initial=0.01))
async def retried(x: int) -> int:
    _page = new_page()  # held by the frame
    await anyio.lowlevel.checkpoint()
    raise ValueError(x)


@action(reads=["x"], writes=["y"], timeout=0.5, retry=Retry(2, on=TimeoutError, initial=0.01))
async def slow(x: int) -> int:
    _page = new_page()  # held by the frame
    await anyio.sleep(10)
    return x


@action(reads=["x"], writes=["y"], retry=Retry(2, on=ValueError, initial=60))
async def waits(x: int) -> int:
    _page = new_page()  # held by the frame
    await anyio.lowlevel.checkpoint()
    raise ValueError(x)


@action(reads=["x"], writes=["y"])
def threaded(x: int) -> int:
    _page = new_page()  # held by the frame
    raise ValueError(x)


@action(reads=["x"], writes=["y"])
async def fine(x: int) -> int:
    return x


@action(reads=["x"], writes=["y"])
async def stream(x: int) -> AsyncIterator[int]:
    _page = new_page()  # held by the frame
    yield x
    await anyio.lowlevel.checkpoint()
    raise ValueError(x)


@action(reads=["x"], writes=["y"])
async def own(x: int, context: Context) -> int:
    _page = new_page()  # held by the frame
    async with context.fan_out(name="kids") as group:
        group.start_each(work, over=range(3), item="x")
    return x


def fail(*_: object) -> NoReturn:
    _page = new_page()  # held by the frame
    raise RuntimeError


def reduce(state: State, outcome: object) -> State:
    fail()


def over(act: Any, **options: Any) -> Any:
    options = {"into": "ys", "take": "y"} | options
    return fan_out(act, over="xs", item="x", name="over", **options)


plain = over(work)
reducing: Any = {"into": None, "take": None, "reduce": reduce, "writes": ["ys"]}
ACTS: dict[str, Any] = {
    "a step": work,
    "a thread": threaded,
    "Retry used up": retried,
    "timeouts used up": slow,
    "cancelled between attempts": waits,
    "a fan-out": plain,
    "a fan-out of threads": over(threaded),
    "nested fan-outs": fan_out(plain, over="xs", item="o", into="zs", take="ys"),
    "a graph as a node": Graph.chain(fine, Graph.chain(work, name="inner"), name="outer"),
    "children's retries": over(work, each=Each(retry=Retry(3, on=ValueError, initial=0.01))),
    "children's timeouts": over(slow, each=Each(timeout=0.2)),
    "too many failures": over(work, on_error=Tolerate(count=1)),
    "a lost race": race(work, threaded, own, into="y", until=first()),
    "a lost quorum": over(work, until=quorum(2)),
    "nobody is accepted": race(fine, into="y", until=first(accept=fail)),
    "a fallback": race(work, retried, into="y", stagger=float("inf")),
    "first_item breaks off": over(stream, until=first_item()),
    "reduce": over(fine, **reducing),
    "key": over(fine, key=fail),
    "take": over(fine, take=fail),
    "grow": over(fine, key=str, grow=fail),
    "over": fan_out(fine, over=fail, item="x", into="ys", take="y", reads=["xs"], name="over"),
    "by": over(fine, limits=Limits(1, by=fail)),
    "an own fan-out": own,
    "own fan-outs": over(own),
    "collected": over(work, on_error="collect", errors_into="bad"),
}


async def once(app: Application[Any]) -> None:
    try:
        with anyio.move_on_after(30):
            await app.run({"xs": [0, 1, 2], "x": 1})
    except Exception:
        return


@pytest.mark.parametrize("name", ACTS)
async def test_what_a_run_raised_leaves_no_cycles(name: str):
    await once(Application(ACTS[name]))
    for _ in range(5):
        await anyio.lowlevel.checkpoint()
    assert pages
    for _ in range(200 if "thread" in name or name == "a lost race" else 1):
        if not alive():
            return
        time.sleep(0.01)  # a worker thread may not yet have returned from its call
    assert not alive()


def alive() -> int:
    return sum(page() is not None for page in pages)
