"""Applications of all kinds, cancelled at every place: nothing torn, lost, untold or left alive.

`cancel_everywhere` sees to tasks, swallowed cancels and hangs; `Watched.check` to the rest: updates
are saved before they are seen and replay to the state, starts and ends are paired, every run and
child ends once, no slot is lost.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from math import inf
from typing import Any, Literal

import anyio
import pytest
from anyio.lowlevel import checkpoint

from shoal import (
    Context,
    Done,
    Graph,
    Hedge,
    Limits,
    MapStates,
    Outcome,
    Result,
    State,
    Tolerate,
    action,
    fan_out,
    first_item,
    quorum,
    race,
    when,
)
from shoal import first as first_of
from shoal._events.events import Status
from shoal.events import ChildStarted, Event
from shoal.testing import Attempt, cancel_everywhere
from shoal.types import Act

from .test_cancellation import RUNS, Watched, seen_runs

__all__ = ["seen_runs"]  # a fixture

Backend = Literal["asyncio", "trio"]
How = Literal["scope", "native"]
Waits = Callable[[], Awaitable[object]]

PLACES = 24  # of each sweep in the gate; `nox -s soak` tries them all


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


@action(reads=["item"], writes=["slept"])
async def sleeper(item: int) -> int:
    """Has no cleanup to wait in: it ends in the tick in which it is cancelled."""
    await anyio.sleep(item)
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


@action(reads=["turn"], writes=["turn"])
async def next_turn(turn: int) -> int:
    await anyio.sleep(0.25)
    return turn + 1


@action(reads=["n"], writes=["found"], limits=Limits(1))
async def search(n: list[int], context: Context) -> list[object]:
    """Consumes some outcomes, ends the rest, and has been without its slot meanwhile."""
    found: list[object] = []
    async with context.fan_out(name="tries", limits=Limits(3)) as group:
        for item in n:
            group.start(leaf, {"item": item}, key=item)
        group.start_each(sleeper, over=n, key=str)
        async for outcome in group:
            found.append((outcome.act, outcome.key, isinstance(outcome, Done)))
            if len(found) == len(n):
                group.cancel("found enough")
    return found


@action(reads=["n"], writes=["all"], limits=Limits(1))
async def await_all(n: list[int], context: Context) -> int:
    """Consumes nothing: leaving the block waits, and raises what failed."""
    async with context.fan_out(name="all") as group:
        group.start_each(sleeper, over=n)
    return len(n)


def chain() -> Graph:
    return Graph.chain(first, last)


def collecting() -> Graph:
    step = fan_out(
        leaf, over="n", key=str, into="out", on_error="collect", errors_into="errors",
        limits=Limits(2),
    )  # fmt: skip
    return Graph.chain(first, step, last)


def at_once() -> Graph:
    return Graph.chain(fan_out(sleeper, over="n", into="out"))


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


def loop() -> Graph:
    """The fan-out's second visit runs everything anew, into an empty collection."""
    step = fan_out(sleeper, over="n", key=str, into="out")
    again = when(lambda turn: turn < 2)
    ways = (step, next_turn), (next_turn, step, again), (next_turn, first), (first, last)
    return Graph(*ways, entry=step)


def in_a_node() -> Graph:
    inner = fan_out(leaf, over="below", key=str, into="leaves", limits=Limits(2))
    node = Graph.chain(spread, inner, first, name="node")
    outer = fan_out(Graph.chain(node, last), over="n", into="out", take="leaves")
    return Graph.chain(first, outer, last)


def acts() -> Graph:
    each = fan_out(
        [leaf, sleeper], over="n", key=str, into="out", on_error="collect", errors_into="errors",
        limits=Limits(3),
    )  # fmt: skip
    at_once = fan_out([first, Graph.chain(first, last, name="both")], into="acts", take="first")
    return Graph.chain(each, at_once)


def by_hand() -> Graph:
    return Graph.chain(first, search, await_all, last)


def cartesian() -> Graph:
    step = fan_out(
        [leaf, sleeper], over="n", key=str, into="out", on_error="collect", errors_into="errors",
        limits=Limits(3),
    )  # fmt: skip
    return Graph.chain(first, step, last)


class Mapped(MapStates):
    """Its states come from an async generator that waits, also where it is closed."""

    reads = ("n",)
    writes = ("count", "order")
    limits = Limits(2)

    def action(self, state: State, inputs: Mapping[str, Any]) -> Act:
        return leaf

    async def states(self, state: State, inputs: Mapping[str, Any]) -> AsyncIterator[Any]:
        OPEN.append(self)
        try:
            for n in state["n"]:
                await anyio.sleep(0.5)
                yield {"item": n}
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.5)
            OPEN.remove(self)

    def reduce(self, state: State, outcome: Outcome) -> State:
        return count(state, outcome)


OPEN: list[Mapped] = []


def mapped() -> Graph:
    return Graph.chain(first, Mapped(), last)


def tolerating() -> Graph:
    step = fan_out(
        leaf, over="n", into="out", on_error=Tolerate(count=1), errors_into="errors",
        limits=Limits(4),
    )  # fmt: skip
    return Graph.chain(first, step, last)


@action(reads=[], writes=["time"])
async def take_time(seconds: float, cleanup: float) -> float:
    try:
        await anyio.sleep(seconds)
    finally:
        if cleanup:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(cleanup)
    return seconds


def racing() -> Graph:
    times = [(3, 0.5), (2, 0.5), (4, 0), (2, 0), (9, 0.25)]
    acts = [
        take_time.bind(name=f"act{at}", seconds=seconds, cleanup=cleanup)
        for at, (seconds, cleanup) in enumerate(times)
    ]
    return Graph.chain(first, race(*acts, into="out"), last)


def staggered() -> Graph:
    good = first_of(accept=(4, 6).__contains__)
    step = fan_out(leaf, over="n", key=str, into="out", stagger=0.5, until=good)
    return Graph.chain(first, step, last)


def hedged() -> Graph:
    hedge = Hedge(initial=0.5, budget=1)
    each = race(leaf, leaf.bind(name="again"), into="leaf", stagger=hedge)
    step = fan_out(each, over="n", key=str, into="out", on_error="ignore")
    return Graph.chain(first, step, last)


@action(reads=["item"], writes=["told"])
async def tell(item: int) -> AsyncIterator[Any]:
    try:
        for n in range(2):
            await anyio.sleep(item)
            yield n
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.25)
    if item == 13:
        raise ValueError(item)
    yield Result(item)


def streaming() -> Graph:
    step = fan_out(tell, over="n", key=str, into="out", until=first_item())
    return Graph.chain(first, step, last)


def in_order() -> Graph:
    step = fan_out(leaf, over="n", key=str, into="out", stagger=inf, until=first_of(2))
    return Graph.chain(first, step, last)


def agreeing() -> Graph:
    step = fan_out(leaf, over="n", into="out", until=quorum(2, by=bin))
    return Graph.chain(first, step, last)


def enough(state: State, outcome: Outcome) -> bool:
    return state["count"] == 2


def asked() -> Graph:
    step = fan_out(
        leaf, over="n", reduce=count, writes=["count", "order"], name="out", limits=Limits(2),
        until=enough,
    )  # fmt: skip
    return Graph.chain(first, step, last)


def lost() -> Graph:
    return Graph.chain(first, fan_out(leaf, over="n", into="out", until=first_of(2)), last)


def races_in_races() -> Graph:
    each = race(Graph.chain(leaf, name="slow"), sleeper, into="won")
    mapped = fan_out(each, over="n", key=str, into="each", take="won", limits=Limits(2))
    whole = Graph.chain(mapped, name="whole")
    other = Graph.chain(fan_out(sleeper, over="n", into="other"), name="other")
    return Graph.chain(first, race(whole, other, into="out", take=dict), last)


APPLICATIONS: dict[str, tuple[Callable[[], Graph], list[int]]] = {
    "chain": (chain, []),
    "at once": (at_once, [1, 1, 2, 2, 2, 9]),
    "collecting": (collecting, [1, 13, 2, 3]),
    "failing": (failing, [1, 13, 2, 3]),
    "nested": (nested, [2, 3]),
    "frontier": (frontier, [0]),
    "loop": (loop, [1, 2]),
    "in a node": (in_a_node, [2, 3]),
    "acts": (acts, [1, 13]),
    "by hand": (by_hand, [1, 2]),
    "cartesian": (cartesian, [1, 13]),
    "mapped": (mapped, [1, 2, 3]),
    "tolerating": (tolerating, [13, 2, 13, 4, 5]),
    "racing": (racing, []),
    "staggered": (staggered, [13, 2, 4, 6]),
    "hedged": (hedged, [1, 2, 13]),
    "streaming": (streaming, [3, 1, 2, 4]),
    "in order": (in_order, [2, 13, 4, 6]),
    "agreeing": (agreeing, [1, 2, 13, 4, 2, 5]),
    "asked": (asked, [1, 2, 4, 5]),
    "lost": (lost, [13, 13, 2]),
    "races in races": (races_in_races, [1, 2]),
}

SLOTS = {"loop": Limits(1), "nested": Limits(2), "frontier": Limits(2), "acts": Limits(3)}
"""What some of them are run under, so that attempts wait for slots; "by hand" has its own."""


# -- how they are run ------------------------------------------------------------------------------


async def run(watched: Watched, fields: Mapping[str, object]) -> State:
    return await watched.go(fields)


async def read_all(watched: Watched, fields: Mapping[str, object]) -> State:
    """Open it, and read every event through a tiny buffer."""
    async for _ in reading(watched, fields):
        pass
    return watched.state


async def read_some(watched: Watched, fields: Mapping[str, object]) -> None:
    """Open it, and leave early: the run is cancelled, and ends before the block does."""
    left = 2
    async with aclosing(reading(watched, fields)) as events:
        async for _ in events:
            left -= 1
            if not left:
                break


async def reading(watched: Watched, fields: Mapping[str, object]) -> AsyncGenerator[Event]:
    watched.initial = State(fields)
    RUNS.pop(watched.id, None)
    read: dict[str, list[Event]] = {}
    async with watched.app.open(fields, id=watched.id, buffer=2) as opened:
        async for event in opened:
            of_run = read.setdefault(event.run_id, [])
            if not isinstance(event, ChildStarted):  # told by each child: their order is anybody's
                of_run.append(event)
            told = [one for one in watched.hook.events if one.run_id == event.run_id]
            told = [one for one in told if not isinstance(one, ChildStarted)]
            assert of_run == told[: len(of_run)], "each event of a run, in order"
            yield event


Life = Callable[[Watched, Mapping[str, object]], Awaitable[State | None]]


def comparable(state: State) -> dict[str, object]:
    """Without what tells one run of an application from another."""
    return {field: value for field, value in state.items() if field != "errors"}


def sweep(
    name: str,
    waits: Waits | None,
    *,
    how: tuple[Backend, How],
    seed: int | None,
    limit: int | None,
    live: Life = run,
) -> int:
    make, elements = APPLICATIONS[name]
    whole: State | None = None  # what the uncancelled run comes to

    async def scenario(attempt: Attempt) -> None:
        nonlocal whole
        watched = Watched(make(), waits=waits, limits=SLOTS.get(name))
        status: Status = "failed"
        try:
            ending = await attempt(live, watched, {"n": elements, "turn": 0})
            status = "cancelled" if ending.cancelled else "succeeded"
            if ending.place == 0:
                whole = ending.result
        except* ValueError:
            assert name in ("failing", "tolerating", "lost")
        watched.check()
        assert not OPEN, "a generator is left open"
        if watched.run is None:
            assert status == "cancelled"
        elif live is read_some:
            assert watched.run.status != "succeeded"
            assert status == "cancelled" or watched.run.reason == "closed"
        elif watched.run.status == "succeeded":  # maybe just before its caller was cancelled
            assert whole is not None
            assert comparable(watched.state) == comparable(whole)
            assert status != "failed"
        else:
            assert status in {watched.run.status, "cancelled"}

    backend, kind = how
    return cancel_everywhere(scenario, backend=backend, how=kind, seed=seed, limit=limit)


every_application = pytest.mark.parametrize("name", APPLICATIONS)
every_pace = pytest.mark.parametrize("waits", [None, checkpoint, nap], ids=["", "slow", "slower"])
every_way = pytest.mark.parametrize(
    "how", [("asyncio", "scope"), ("asyncio", "native"), ("trio", "scope")], ids=" ".join
)


every_life = pytest.mark.parametrize("live", [run, read_all, read_some])


@every_application
@every_way
def test_cancelled_at_some_places(name: str, how: tuple[Backend, How]):
    assert sweep(name, None, how=how, seed=1, limit=PLACES) > 5


@pytest.mark.parametrize("name", ["collecting", "loop", "by hand"])
@pytest.mark.parametrize("live", [read_all, read_some])
@every_way
def test_opened_and_cancelled_at_some_places(name: str, live: Life, how: tuple[Backend, How]):
    assert sweep(name, None, how=how, seed=1, limit=PLACES // 2, live=live) > 5


@pytest.mark.slow
@pytest.mark.timeout(120)
@every_application
@every_life
@every_pace
@every_way
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_cancelled_everywhere(
    name: str, live: Life, waits: Waits | None, how: tuple[Backend, How], seed: int | None
):
    assert sweep(name, waits, how=how, seed=seed, limit=None, live=live) > 5
