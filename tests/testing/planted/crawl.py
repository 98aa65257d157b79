"""A crawler: pages are fetched under the site's rate, indexed, and news are listened to."""

from __future__ import annotations

import math
from contextlib import AsyncExitStack
from typing import Any

import anyio

from shoal import Application, Graph, Limits, MemoryStore, Rate, action, fan_out
from shoal.stores import Store
from shoal.testing import SimulatedRun

STATE = {"pages": ["a", "b", "c"]}
MOST_WAITING = 5


class Site:
    """Counts the calls that it gets, and pushes a message a second to whom it may."""

    def __init__(self) -> None:
        self.calls: list[float] = []
        self.most_waiting = 0
        self.index, self.host = anyio.CapacityLimiter(1), anyio.CapacityLimiter(1)

    async def fetch(self, page: str) -> str:
        self.calls.append(anyio.current_time())
        await anyio.sleep(1)
        return f"page {page}"

    async def messages(self, count: int, *, most: float) -> None:
        """Receive messages, of which at most so many wait in the buffer."""
        began_at = anyio.current_time()
        for number in range(1, count + 1):
            await anyio.sleep(max(0.0, began_at + number - anyio.current_time()))
            sent = min(count, int(anyio.current_time() - began_at))
            self.most_waiting = max(self.most_waiting, int(min(sent - number, most)))

    def most_per_second(self) -> int:
        """Return how many calls came within a second, at most."""
        return max(
            (sum(at <= one < at + 0.999 for one in self.calls) for at in self.calls), default=0
        )


def INPUTS() -> dict[str, Any]:  # noqa: N802 # as in the other modules
    return {"site": Site()}


def check(run: SimulatedRun) -> None:
    """The site gets no more calls than it allows, and no buffer grows without bound."""
    site = run.inputs["site"]
    if not any(fault.what == "jumps" for fault in run.faults):
        # Each process counts anew, so its first calls come on top.
        allowed = 2 * len(run.lives)
        assert site.most_per_second() <= allowed, f"{site.most_per_second()} calls in a second"
    assert site.most_waiting <= MOST_WAITING, f"{site.most_waiting} messages waited"


def application(bug: str = "", version: str = "1", store: Store | None = None) -> Application[Any]:
    """Return the crawler.

    ``bug`` is "", "rate counted twice", "unbounded queue" or "deadlock". With another ``version``,
    pages are fetched by an action of another name: the graph has changed.
    """
    slowly = Limits(rate=Rate(2, burst=1))
    again = Limits(rate=Rate(2, burst=1)) if bug == "rate counted twice" else slowly

    @action(
        name="fetch" if version == "1" else "download",
        reads=["page"],
        writes=["text"],
        limits=slowly,
    )
    async def fetch(page: str, site: Site) -> str:
        return await site.fetch(page)

    @action(reads=["page"], writes=["links"], limits=again)
    async def links(page: str, site: Site) -> str:
        return await site.fetch(f"links of {page}")

    @action(reads=["texts"], writes=["news"])
    async def listen(texts: Any, site: Site) -> int:
        await site.messages(10, most=math.inf if bug == "unbounded queue" else MOST_WAITING)
        return len(texts)

    @action(reads=["page"])
    async def index(page: str, site: Site) -> None:
        # One page is written from the host's side, the others from the index's.
        first, second = site.index, site.host
        if bug == "deadlock" and page == "c":
            first, second = second, first
            await anyio.sleep(2)
        async with AsyncExitStack() as held:
            await held.enter_async_context(first)
            if page != "c":
                await anyio.sleep(0.5)
            await held.enter_async_context(second)

    both = Graph.chain(fetch, links, name="both")
    texts = fan_out(both, over="pages", item="page", key=str, into="texts", take="text")
    written = fan_out(index, over="pages", item="page", key=str, name="indexed")
    graph = Graph.chain(texts, listen, written, name="crawl")
    return Application(graph, store=store or MemoryStore())
