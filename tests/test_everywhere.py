"""Applications of all kinds, cancelled at every place: nothing torn, lost, untold or left alive.

`cancel_everywhere` sees to tasks, swallowed cancels and hangs; `Watched.check` to the rest: updates
are saved before they are seen and replay to the state, starts and ends are paired, every run and
child ends once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Literal

import anyio
import pytest
from anyio.lowlevel import checkpoint

from shoal import Graph, Limits, Outcome, State, action, fan_out
from shoal.testing import Attempt, cancel_everywhere
from tests.test_cancellation import Watched, quick_collections, seen_runs

__all__ = ["quick_collections", "seen_runs"]  # fixtures

Backend = Literal["asyncio", "trio"]
How = Literal["scope", "native"]
Waits = Callable[[], Awaitable[object]]

PLACES = 40  # of each sweep in the gate; `nox -s soak` tries them all


async def nap() -> None:
    await anyio.sleep(0.25)


# -- applications ----------------------------------------------------------------------------------


@action(reads=["item"], writes=["leaf"])
async def leaf(item: int) -> int:
    """Waits a little, so that many end at once; and waits in its cleanup too."""
    try:
        await anyio.sleep(1 + item % 2)
        if item == 13:
            raise ValueError(item)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.5)
    return item


@action(reads=[], writes=["first"])
async def first() -> str:
    await anyio.sleep(1)
    return "first"


@action(reads=["first"], writes=["last"])
async def last(first: str) -> int:
    await checkpoint()
    return len(first)


@action(reads=["item"], writes=["below"])
async def spread(item: int) -> list[int]:
    return [10 * item + n for n in (1, 2)]


def count(state: State, outcome: Outcome) -> State:
    return state.increment(count=1).append(order=outcome.position)


def two_above(state: State, outcome: Outcome) -> Iterable[int]:
    """Grows by numbers that are new, and by some that aren't."""
    return [outcome.element + 1, outcome.element + 2] if outcome.element < 4 else []


def chain() -> Graph:
    return Graph.chain(first, last)


def collecting() -> Graph:
    step = fan_out(
        leaf, over="n", key=str, into="out", on_error="collect", errors_into="errors",
        limits=Limits(2),
    )  # fmt: skip
    return Graph.chain(first, step, last)


def failing() -> Graph:
    return Graph.chain(first, fan_out(leaf, over="n", key=str, into="out"), last)


def nested() -> Graph:
    inner = fan_out(
        leaf, over="below", reduce=count, writes=["count", "order"], name="inner", limits=Limits(2)
    )
    children = Graph.chain(spread, inner, name="children")
    outer = fan_out(children, over="n", into="out", take=["count"], limits=Limits(2))
    return Graph.chain(first, outer, last)


def frontier() -> Graph:
    step = fan_out(leaf, over="n", key=int, into="out", grow=two_above, limits=Limits(3))
    return Graph.chain(first, step, last)


APPLICATIONS: dict[str, tuple[Callable[[], Graph], list[int]]] = {
    "chain": (chain, []),
    "collecting": (collecting, [1, 13, 2, 3]),
    "failing": (failing, [1, 13, 2, 3]),
    "nested": (nested, [2, 3]),
    "frontier": (frontier, [0]),
}


def sweep(
    name: str, waits: Waits | None, backend: Backend, how: How, seed: int | None, limit: int | None
) -> int:
    make, elements = APPLICATIONS[name]

    async def scenario(attempt: Attempt) -> None:
        watched = Watched(make(), waits=waits)
        try:
            ending = await attempt(watched.go, {"n": elements})
            if not ending.cancelled:
                assert "last" in watched.state
        except* ValueError:
            assert name == "failing"
        watched.check()

    return cancel_everywhere(scenario, backend=backend, how=how, seed=seed, limit=limit)


every_application = pytest.mark.parametrize("name", APPLICATIONS)
every_pace = pytest.mark.parametrize("waits", [None, checkpoint, nap], ids=["", "slow", "slower"])
every_way = pytest.mark.parametrize(
    ("backend", "how"), [("asyncio", "scope"), ("asyncio", "native"), ("trio", "scope")]
)


@every_application
@every_way
def test_cancelled_at_some_places(name: str, backend: Backend, how: How):
    assert sweep(name, checkpoint, backend, how, 1, PLACES) > 5


@pytest.mark.slow
@every_application
@every_pace
@every_way
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_cancelled_everywhere(
    name: str, waits: Waits | None, backend: Backend, how: How, seed: int | None
):
    assert sweep(name, waits, backend, how, seed, None) > 5
