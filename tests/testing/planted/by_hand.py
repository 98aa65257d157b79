"""Tests that a careful user writes by hand for the three applications, on asyncio alone.

``CAREFUL`` has, for each application, the tests that the usual advice asks for: everything goes
well; services answer at once, and in another order; a service refuses once; the run is cancelled,
and then resumed. They know what the application has to do, and no bug. ``WRITTEN_FOR`` has, for a
bug that they miss, the test of a user who has thought of it.

Each is a coroutine function that is called with ``application`` of a module, without its bug or
with it. Services answer after hundredths of a second; the waits of the applications are theirs.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from types import ModuleType
from typing import Any

import pytest

from shoal import Application, State

from . import crawl, search, shop

Make = Callable[[], Application[Any]]
Test = Callable[[Make], Awaitable[None]]

ORDERS = shop.STATE["orders"]
PAGES = crawl.STATE["pages"]


# -- the shop --------------------------------------------------------------------------------------


class Bank(shop.Bank):
    """Takes as long as it is told, and refuses an order so many times."""

    def __init__(self, takes: Mapping[str, float], refuses: Mapping[str, int]) -> None:
        super().__init__()
        self.takes, self.refuses = takes, dict(refuses)
        self.loses: set[str] = set()

    async def charge(self, order: str, key: str) -> str:
        if self.takes:
            await asyncio.sleep(self.takes[order])
        if self.refuses.get(order, 0):
            self.refuses[order] -= 1
            raise ConnectionError("busy")
        self.charges.setdefault(key, order)
        if order in self.loses:
            self.loses.remove(order)
            raise ConnectionError("the connection was closed")
        return f"receipt for {order}"


IN_ORDER = {"ale": 0.01, "bun": 0.02, "cod": 0.03}


def shop_of(
    takes: Mapping[str, float], refuses: Mapping[str, int] | None = None
) -> tuple[Bank, shop.Stock]:
    return Bank(takes, refuses or {}), shop.Stock()


def has_sold(state: State[Any], bank: Bank, stock: shop.Stock) -> None:
    assert sorted(bank.charges.values()) == ORDERS
    assert sorted(stock.taken) == ORDERS
    filed: Any = state["filed"]  # the orders as they came, or how many letters they have
    assert filed == 9 if isinstance(filed, int) else list(filed) == ORDERS


async def sells(application: Make) -> None:
    bank, stock = shop_of(IN_ORDER)
    result = await application().run(shop.STATE, inputs={"bank": bank, "stock": stock})
    has_sold(result.state, bank, stock)


async def sells_at_once(application: Make) -> None:
    bank, stock = shop_of({})
    result = await application().run(shop.STATE, inputs={"bank": bank, "stock": stock})
    has_sold(result.state, bank, stock)


async def sells_in_another_order(application: Make) -> None:
    bank, stock = shop_of({"ale": 0.04, "bun": 0.01, "cod": 0.02})
    result = await application().run(shop.STATE, inputs={"bank": bank, "stock": stock})
    has_sold(result.state, bank, stock)


async def sells_although_the_bank_is_busy(application: Make) -> None:
    bank, stock = shop_of(IN_ORDER, {"ale": 1, "cod": 2})
    result = await application().run(shop.STATE, inputs={"bank": bank, "stock": stock})
    has_sold(result.state, bank, stock)


async def sells_after_a_cancellation(application: Make) -> None:
    bank, stock = shop_of(IN_ORDER)
    app, inputs = application(), {"bank": bank, "stock": stock}
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.015):
            await app.run(shop.STATE, id="s", inputs=inputs)
    result = await app.run(shop.STATE, id="s", inputs=inputs)
    has_sold(result.state, bank, stock)


async def sells_once_if_the_answer_is_lost(application: Make) -> None:
    bank, stock = shop_of(IN_ORDER)
    bank.loses.add("ale")
    result = await application().run(shop.STATE, inputs={"bank": bank, "stock": stock})
    has_sold(result.state, bank, stock)


# -- the search ------------------------------------------------------------------------------------


class Engine(search.Engine):
    """Takes as long as it is told, and refuses so many times."""

    def __init__(self, takes: Mapping[str, float], refuses: Mapping[str, int]) -> None:
        super().__init__()
        self.takes, self.refuses = takes, dict(refuses)
        search.ENGINES.append(self)  # what it leaves open is closed after the test

    async def ask(self, name: str, seconds: float, *, gives_back: bool) -> str:
        if self.refuses.get(name, 0):
            self.refuses[name] -= 1
            await asyncio.sleep(0)
            raise ConnectionError("busy")
        return await super().ask(name, self.takes[name], gives_back=gives_back)


async def answer_of(application: Make, engine: Engine) -> str:
    result = await application().run(search.STATE, inputs={"engine": engine})
    answer: str = result.state["answer"]
    assert answer in ("here, says quick", "here, says thorough")
    assert set(engine.written.values()) == {answer}
    return answer


async def the_quick_one_answers(application: Make) -> None:
    engine = Engine({"quick": 0.01, "thorough": 0.03}, {})
    assert await answer_of(application, engine) == "here, says quick"


async def the_thorough_one_is_quicker(application: Make) -> None:
    engine = Engine({"quick": 0.03, "thorough": 0.01}, {})
    assert await answer_of(application, engine) == "here, says thorough"


async def both_answer_at_once(application: Make) -> None:
    await answer_of(application, Engine({"quick": 0, "thorough": 0}, {}))


async def an_engine_is_busy(application: Make) -> None:
    engine = Engine({"quick": 0.01, "thorough": 0.03}, {"quick": 1})
    await answer_of(application, engine)


async def the_search_is_cancelled(application: Make) -> None:
    engine = Engine({"quick": 0.01, "thorough": 0.03}, {})
    task = asyncio.create_task(application().run(search.STATE, inputs={"engine": engine}))
    await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not engine.written


async def every_connection_is_closed(application: Make) -> None:
    engine = Engine({"quick": 0.01, "thorough": 0.03}, {})
    await answer_of(application, engine)
    assert not engine.open


# -- the crawler -----------------------------------------------------------------------------------


class Site(crawl.Site):
    """Answers at once, but for pages that it refuses once; it pushes all messages at once."""

    def __init__(self, *refuses: str) -> None:
        super().__init__()
        self.refuses = list(refuses)
        self.fetched: list[str] = []

    async def fetch(self, page: str) -> str:
        self.calls.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.01)
        if page in self.refuses:
            self.refuses.remove(page)
            raise ConnectionError("busy")
        self.fetched.append(page)
        return f"page {page}"

    async def messages(self, count: int, *, most: float) -> None:
        self.waiting: asyncio.Queue[int] = asyncio.Queue(0 if most == math.inf else int(most))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._push(count))
            for _ in range(count):
                await self.waiting.get()

    async def _push(self, count: int) -> None:
        for number in range(count):
            await self.waiting.put(number)
            self.most_waiting = max(self.most_waiting, self.waiting.qsize())


def has_crawled(state: State[Any], site: Site) -> None:
    assert dict(state["texts"]) == {page: f"page {page}" for page in PAGES}
    assert state["news"] == len(PAGES)
    wanted = [*PAGES, *(f"links of {page}" for page in PAGES)]
    assert sorted(site.fetched) == sorted(wanted), "each is fetched once"


async def crawls_within_the_rate(application: Make) -> None:
    site = Site()
    result = await application().run(crawl.STATE, inputs={"site": site})
    has_crawled(result.state, site)
    # Real timers are late, so a call may come within a second of the one before the last. Two exact
    # rates of two would be four.
    assert site.most_per_second() <= 3


async def crawls_on_after_a_failure(application: Make) -> None:
    site, app = Site("b"), application()
    with pytest.raises(ExceptionGroup):
        await app.run(crawl.STATE, id="c", inputs={"site": site})
    result = await app.run(crawl.STATE, id="c", inputs={"site": site})
    has_crawled(result.state, site)


async def crawls_after_a_cancellation(application: Make) -> None:
    site, app = Site(), application()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.7):
            await app.run(crawl.STATE, id="c", inputs={"site": site})
    result = await app.run(crawl.STATE, id="c", inputs={"site": site})
    has_crawled(result.state, site)


async def a_burst_of_messages_waits_outside(application: Make) -> None:
    site = Site()
    await application().run(crawl.STATE, inputs={"site": site})
    assert site.most_waiting <= crawl.MOST_WAITING


async def many_pages_are_indexed(application: Make) -> None:
    """The index is written while page "c", the slow one, is about to be."""
    async with asyncio.timeout(30):
        await application().run({"pages": list("abcdefg")}, inputs={"site": Site()})


async def a_run_is_resumed_after_a_deployment(application: Make) -> None:
    """The site refuses a link, so a page is fetched and not yet indexed; then comes version 2."""
    site, app = Site("links of b"), application()
    with pytest.raises(ExceptionGroup):
        await app.run(crawl.STATE, id="c", inputs={"site": site})
    changed = crawl.application(version="2", store=app.store)
    result = await changed.run(crawl.STATE, id="c", inputs={"site": site})
    has_crawled(result.state, site)


CAREFUL: Mapping[ModuleType, tuple[Test, ...]] = {
    shop: (
        sells, sells_at_once, sells_in_another_order, sells_although_the_bank_is_busy,
        sells_after_a_cancellation,
    ),
    search: (
        the_quick_one_answers, the_thorough_one_is_quicker, both_answer_at_once,
        an_engine_is_busy, the_search_is_cancelled,
    ),
    crawl: (crawls_within_the_rate, crawls_on_after_a_failure, crawls_after_a_cancellation),
}  # fmt: skip
"""The tests that are written before any bug is known, by the application that they are for."""

WRITTEN_FOR: Mapping[str, Test] = {
    "non-idempotent retry": sells_once_if_the_answer_is_lost,
    "leak": every_connection_is_closed,
    "unbounded queue": a_burst_of_messages_waits_outside,
    "deadlock": many_pages_are_indexed,
    "changed graph": a_run_is_resumed_after_a_deployment,
}
"""The test that finds a bug, written by a user who has thought of it."""
