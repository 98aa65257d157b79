"""A shop: each order is charged and taken from the stock, then the receipts are filed."""

from __future__ import annotations

from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from shoal import (
    Application,
    Context,
    Done,
    Graph,
    Limits,
    MemoryStore,
    Retry,
    State,
    action,
    fan_out,
)
from shoal.testing import SimulatedRun

STATE = {"orders": ["ale", "bun", "cod"]}


class Bank:
    """Charges cards: once for each key that it is given."""

    def __init__(self) -> None:
        self.charges: dict[str, str] = {}

    async def charge(self, order: str, key: str) -> str:
        await anyio.sleep({"ale": 1, "bun": 2, "cod": 3}[order])
        self.charges.setdefault(key, order)
        return f"receipt for {order}"


class Stock:
    """Knows which orders have been taken from the shelves."""

    def __init__(self) -> None:
        self.taken: tuple[str, ...] = ()


def INPUTS() -> dict[str, Any]:  # noqa: N802 # as in the other modules
    return {"bank": Bank(), "stock": Stock()}


def check(run: SimulatedRun) -> None:
    """Each order is charged once, and all are taken."""
    charged = sorted(run.inputs["bank"].charges.values())
    assert charged == STATE["orders"], f"charged: {charged}"
    taken = sorted(set(run.inputs["stock"].taken))
    assert taken == STATE["orders"], f"taken: {taken}"


def application(bug: str = "") -> Application[Any]:
    """Return the shop; ``bug`` is "", "lost update", "non-idempotent retry" or "reducer"."""

    @action(reads=["order"], writes=["receipt"], retry=Retry(3, on=ConnectionError))
    async def charge(order: str, bank: Bank, context: Context) -> str:
        key = context.idempotency_key
        if bug == "non-idempotent retry":
            key = f"{order} {len(bank.charges)}"
        return await bank.charge(order, key)

    @action(reads=["order"])
    async def take(order: str, stock: Stock) -> None:
        before = stock.taken
        if bug == "lost update":
            await checkpoint()  # a look at the shelf: another order may be taken meanwhile
        stock.taken = (*before, order)

    def file(state: State, outcome: Done) -> State:
        return state.append(filed=outcome.element)

    def count(state: State, outcome: Done) -> State:
        return state.increment(filed=len(outcome.element))

    orders = fan_out(
        Graph.chain(charge, take, name="order"),
        name="orders",
        over="orders",
        item="order",
        key=str,
        reduce=file if bug == "reducer" else count,
        reads=["filed"],
        writes=["filed"],
        limits=Limits(2),
    )
    start = action(writes=["filed"], name="start")(_empty if bug == "reducer" else _zero)
    return Application(Graph.chain(start, orders, name="shop"), store=MemoryStore())


async def _empty() -> list[str]:
    return []


async def _zero() -> int:
    return 0
