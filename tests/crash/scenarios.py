"""What the process does that is killed: applications whose outcome no crash may change.

Each body of an action writes down that it begins and how it ended. Who wins a race is decided by
what is acceptable, never by who is quicker: so it is the same however often a life was cut short.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import anyio

from shoal import (
    Context,
    Done,
    Each,
    Graph,
    Limits,
    Outcome,
    Retry,
    RunResult,
    State,
    action,
    fan_out,
    race,
    when,
)
from shoal.types import Act

from .life import current, effect, passes


def pulled(field: str) -> Callable[[State], Iterator[Any]]:
    """Make an ``over=`` that goes through a field, and may die before each of its elements."""

    def pull(state: State) -> Iterator[Any]:
        for element in state[field]:
            passes("source")
            yield element

    return pull


@action(reads=["item"], writes=["page"])
async def fetch(item: int, context: Context) -> int:
    async with effect(context):
        await anyio.sleep(item % 3 / 1000)
        if item == 13:
            raise ValueError(item)
        return 10 * item


@action(reads=["page"], writes=["page"])
async def parse(page: int, context: Context) -> int:
    async with effect(context):
        await anyio.sleep(0)
        return page + 1


@action(writes=["first"])
async def first(context: Context) -> str:
    async with effect(context):
        return "first"


@action(reads=["first"], writes=["last"])
async def last(first: str, context: Context) -> int:
    async with effect(context):
        await anyio.sleep(0)
        return len(first)


pages = Graph.chain(fetch, parse, name="pages")


def mapping() -> Act:
    """A map with children of two steps, one of which fails for good."""
    step = fan_out(
        pages, over=pulled("items"), reads=["items"], key=int, into="out", errors_into="errors",
        on_error="collect", limits=Limits(3),
    )  # fmt: skip
    return Graph.chain(first, step, last)


@action(reads=["item"], writes=["below"])
async def spread(item: int, context: Context) -> list[int]:
    async with effect(context):
        return [10 * item + n for n in (1, 2, 4)]


def count(state: State, outcome: Outcome) -> State:
    """Twice would be noticed, in whatever order."""
    value = outcome.value if isinstance(outcome, Done) else 0
    return state.increment(count=1, sum=value)


def nested() -> Act:
    """A map of maps: one puts, one folds."""
    put = fan_out(
        pages, over=pulled("below"), reads=["below"], key=int, into="leaves", take="page",
        limits=Limits(2),
    )  # fmt: skip
    fold = fan_out(
        fetch, over="below", key=int, reduce=count, writes=["count", "sum"], name="fold",
        limits=Limits(2),
    )  # fmt: skip
    children = Graph.chain(spread, put, fold, name="children")
    step = fan_out(
        children, over=pulled("items"), reads=["items"], into="out", take=["leaves", "sum"],
        limits=Limits(2),
    )  # fmt: skip
    return Graph.chain(first, step, last)


@action(reads=["item"], writes=["answer"])
async def wrong(item: int, context: Context) -> int:
    async with effect(context):
        return -item


@action(reads=["item"], writes=["answer"])
async def right(item: int, context: Context) -> int:
    async with effect(context):
        # Otherwise `wrong` could be cancelled, and another one would have lost each time. No length
        # of time is enough for it where the machine is busy.
        await current().wait_ended("wrong", beside=context.path)
        return item


@action(reads=["item"], writes=["answer"])
async def late(item: int, context: Context) -> int:
    async with effect(context):
        await anyio.sleep(3600)
        return item


def is_right(answer: int) -> bool:
    return answer > 0


def races() -> Act:
    """A race, and a map of races: one answer is refused, one comes too late."""
    each = race(wrong, right, late, into="answer", accept=is_right, name="each")
    step = fan_out(
        Graph.chain(each, name="raced"), over=pulled("items"), reads=["items"], key=int, into="out",
        take="answer", limits=Limits(2),
    )  # fmt: skip
    final = race(wrong, right, late, into="answer", accept=is_right)
    return Graph.chain(first, step, final, last)


@action(reads=["item"], writes=["next"])
async def look(item: int, context: Context) -> list[int]:
    async with effect(context):
        await anyio.sleep(item % 3 / 1000)
        return [n for n in (2 * item, 2 * item + 1) if n < 18]


def found(_: State, outcome: Done) -> Iterable[int]:
    passes("source")
    return outcome.value


def frontier() -> Act:
    """A map that finds its own elements; folded, so that each counts once."""

    def fold(state: State, outcome: Done) -> State:
        state = state.increment(count=1, sum=outcome.element)
        return state.put("seen", outcome.key, outcome.value)

    step = fan_out(
        look, over=pulled("items"), key=int, grow=found, reduce=fold, reads=["items"],
        writes=["count", "sum", "seen"], take=lambda state: state["next"], name="frontier",
        limits=Limits(3),
    )  # fmt: skip
    return Graph.chain(first, step, last)


@action(reads=["page"], writes=["page"])
async def moody(page: int, context: Context) -> int:
    """Its first attempt fails, in every life."""
    async with effect(context):
        await anyio.sleep(0)
        if context.attempt == 1:
            raise ConnectionError(page)
        return page + 2


@action(writes=["steady"], retry=Retry(3, on=TimeoutError, initial=0.001))
async def steady(context: Context) -> int:
    async with effect(context):
        if context.attempt < 3:
            raise TimeoutError
        return 1


def retries() -> Act:
    """Children that are tried again at the step that failed, and a step that is."""
    tried = Graph.chain(fetch, moody, parse, name="tried")
    step = fan_out(
        tried, over=pulled("items"), reads=["items"], key=int, into="out", take="page",
        each=Each(retry=Retry(3, on=ConnectionError, initial=0.001)), limits=Limits(3),
    )  # fmt: skip
    return Graph.chain(first, step, steady, last)


@action(reads=["items"], writes=["found"])
async def search(items: list[int], context: Context) -> dict[str, object]:
    """Starts children by itself: a map with two kinds of them, and a race that it calls off."""
    answers: dict[str, object] = {}
    async with effect(context):
        async with context.fan_out(name="tries", limits=Limits(3)) as group:
            for item in items:
                group.start(pages, {"item": item}, key=item)
            group.start_each(fetch, over=pulled("items")(State(items=items)))
            async for outcome in group:
                done = isinstance(outcome, Done)
                answers[f"{outcome.act} {outcome.key}"] = outcome.value if done else "failed"
        async with context.fan_out(name="contest") as group:
            for act in (late, right, wrong):
                group.start(act, {"item": 5})
            async for outcome in group:
                if isinstance(outcome, Done) and is_right(outcome.value):
                    answers["winner"] = outcome.value
                    group.cancel("one is enough")
        return answers


def by_hand() -> Act:
    return Graph.chain(first, search, last)


@action(reads=["turn"], writes=["turn"])
async def next_turn(turn: int, context: Context) -> int:
    async with effect(context):
        return turn + 1


def loop() -> Act:
    """Maps that a graph comes by twice: their children are others each time."""
    listed = fan_out(pages, over=pulled("items"), reads=["items"], into="list", limits=Limits(2))
    fold = fan_out(
        fetch, over="items", key=int, reduce=count, writes=["count", "sum"], name="fold",
        limits=Limits(2),
    )  # fmt: skip
    again = when(lambda turn: turn < 2)
    ways = (listed, fold), (fold, next_turn), (next_turn, listed, again), (next_turn, first)
    return Graph(*ways, entry=listed)


@dataclass(frozen=True)
class Scenario:
    """An application, what it starts with, and the phases that its process comes through."""

    graph: Act
    first: dict[str, object]
    phases: frozenset[str]
    grows: bool = False
    """Whether results are in the order of discovery, which may be another one each time."""
    fails: bool = False
    """Whether a child fails for good: it runs again in every life, with updates of its own."""

    def summary(self, result: RunResult[Any]) -> str:
        """Say what it has come to, without what differs from run to run."""
        state = json.loads(json.dumps(result.state.to_plain()), object_hook=_stable)
        return json.dumps(state, sort_keys=self.grows)


def _stable(value: dict[str, Any]) -> Any:
    """Leave out of an error where it was raised: a child with a last chance is called elsewhere."""
    return [value["type"], value["message"]] if "traceback" in value else value


def _scenario(
    graph: Act, *phases: str, grows: bool = False, fails: bool = False, **given: object
) -> Scenario:
    always = ("child", "batch save", "after save", "finish", "outside")
    return Scenario(graph, given, frozenset((*always, *phases)), grows, fails)


SCENARIOS = {
    "map": _scenario(mapping(), "source", fails=True, items=[3, 1, 4, 13, 5, 9]),
    "nested": _scenario(nested(), "source", items=[1, 2, 3]),
    "race": _scenario(races(), "source", "decision", "cleanup", items=[1, 2, 3], item=7),
    "frontier": _scenario(frontier(), "source", grows=True, items=[1]),
    "retries": _scenario(retries(), "source", items=[1, 2, 3, 4]),
    "by hand": _scenario(by_hand(), "source", "cleanup", grows=True, items=[1, 2, 3, 4]),
    "loop": _scenario(loop(), "source", items=[1, 2, 3], turn=0),
}
