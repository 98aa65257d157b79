"""The constructs of the catalogue: each with functions of the user's at all of its boundaries.

The functions are wrapped by `Boundaries`, and named for the place in the catalogue that they are
at. A construct may be interrupted anywhere, and is then run again with the same store; it has to
come to a result that it may come to.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import anyio

from shoal import (
    Application,
    Budget,
    Context,
    Each,
    Graph,
    Hedge,
    Limits,
    Outcome,
    ParallelAction,
    Result,
    State,
    Task,
    action,
    fan_out,
    first_item,
    race,
)
from shoal.stores import Store
from shoal.testing import Boundaries, RecordingHook
from shoal.types import Act

ID = "run"


@dataclass(frozen=True)
class Construct:
    """A construct, what it is given, and what it may come to."""

    make: Callable[[Boundaries], Act]
    places: frozenset[str]
    """The functions in it, by the names of their places."""
    fields: Mapping[str, object]
    ends: Callable[[State], bool]
    """Whether a final state is one that it may come to, whatever went wrong before."""
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])


def tidying() -> anyio.CancelScope:
    """Return the scope of a cleanup: it can't be cancelled, and takes 2 s at most.

    Without that bound, one that hangs would be awaited for ever: shoal leaves no coroutine behind.
    """
    return anyio.move_on_after(2, shield=True)


async def nap() -> None:
    await anyio.sleep(0.25)


def bodies(b: Boundaries) -> tuple[Any, Any]:
    """Return an action that tidies up behind itself, and how it does that."""

    async def cleanup() -> None:
        with tidying():
            await nap()

    tidy = b(cleanup)

    @action(reads=["item"], writes=["leaf"])
    async def body(item: int) -> int:
        try:
            await anyio.sleep(1 + item % 2)
        finally:
            await tidy()
        return item

    return b(body), tidy


def source(b: Boundaries, of: str) -> Callable[[State], AsyncIterator[int]]:
    """Return an ``over=`` that waits for its elements, and where it is closed."""
    close = b(nap, "close")

    async def pull(state: State) -> AsyncIterator[int]:
        try:
            for item in state[of]:
                await nap()
                yield item
        finally:
            with tidying():
                await close()

    return b(pull)


def reducer(b: Boundaries) -> Callable[[State, Outcome], State]:
    def reduce(state: State, outcome: Outcome) -> State:
        return state.increment(count=1)

    return b(reduce)


def by_parity(state: State) -> int:
    return state["item"] % 2


@action(writes=["first"])
async def first() -> str:
    await anyio.sleep(1)
    return "first"


def a_map(b: Boundaries) -> Act:
    """Two ways to map: one is a function, one a class with a ``finish``."""
    body, _ = bodies(b)

    def enough(state: State, outcome: Outcome) -> bool:
        return state["count"] > 99

    limits = Limits(2) & Limits(1, by=b(by_parity, "admission"))
    step = fan_out(
        body, over=source(b, "n"), key=int, reduce=reducer(b), reads=["n"], writes=["count"],
        name="step", limits=limits, until=b(enough, "decision"),
    )  # fmt: skip

    class Folding(ParallelAction):
        reads = ("n", "total")
        writes = ("total", "finished")

        def tasks(self, state: State, inputs: Mapping[str, Any]) -> Iterator[Task]:
            for item in state["n"]:
                yield Task(body, {"item": item}, key=item)

        def reduce(self, state: State, outcome: Outcome) -> State:
            return state.increment(total=1)

        def finish(self, state: State) -> State:
            return finish(state)

    def done(state: State) -> State:
        return state.update(finished=True)

    finish = b(done, "finish")
    return Graph.chain(first, step, Folding())


def nested(b: Boundaries) -> Act:
    body, _ = bodies(b)

    def below(state: State) -> Iterator[int]:
        yield from (10 * state["item"] + n for n in (1, 2))

    def value(state: State) -> int:
        return state["leaf"]

    inner = fan_out(
        body, over=b(below, "pull"), key=int, into="leaves", take=b(value, "hand-over"),
        reads=["item"], limits=Limits(1, by=b(by_parity, "admission")),
    )  # fmt: skip
    each = Graph.chain(first, inner, name="each")
    outer = fan_out(
        each, over="n", key=int, reduce=reducer(b), writes=["count"], name="outer", limits=Limits(2)
    )
    return Graph.chain(outer, name="nested")


def contestants(b: Boundaries) -> Act:
    tidy = b(nap, "cleanup")

    @action(writes=["answer"])
    async def body(seconds: float, text: str) -> str:
        try:
            await anyio.sleep(seconds)
        finally:
            with tidying():
                await tidy()
        return text

    def is_good(value: str) -> bool:
        return value in ("quick", "slow")

    body = b(body)
    acts = [
        body.bind(name=name, seconds=seconds, text=name)
        for name, seconds in {"quick": 1, "wrong": 0.5, "slow": 3, "lame": 5}.items()
    ]
    return Graph.chain(first, race(*acts, into="won", accept=b(is_good, "decision")))


def frontier(b: Boundaries) -> Act:
    body, _ = bodies(b)

    def grow(state: State, outcome: Outcome) -> Iterable[int]:
        return [outcome.element + 1, outcome.element + 2] if outcome.element < 3 else []

    def starts(state: State) -> list[int]:
        return [0]

    step = fan_out(
        body, over=b(starts, "pull"), key=int, into="out", grow=b(grow, "reduce"), reads=[],
        limits=Limits(2) & Limits(2, by=b(by_parity, "admission")),
    )  # fmt: skip
    return Graph.chain(first, step)


def streams(b: Boundaries) -> Act:
    tidy = b(nap, "cleanup")

    @action(reads=["item"], writes=["told"])
    async def body(item: int) -> AsyncIterator[Any]:
        try:
            for n in range(2):
                await anyio.sleep(item)
                yield n
        finally:
            with tidying():
                await tidy()
        yield Result(item)

    def is_good(item: object) -> bool:
        return True

    until = first_item(when=b(is_good, "decision"))
    step = fan_out(
        b(body),
        over=source(b, "n"),
        key=int,
        into="out",
        until=until,
        reads=["n"],
        limits=Limits(2),
    )
    return Graph.chain(first, step)


def questions(b: Boundaries) -> Act:
    @action(reads=["item"], writes=["leaf"])
    async def body(item: int, context: Context) -> str:
        await anyio.sleep(1)
        if item == 2:
            return await context.ask("which", "which one?")
        return "nothing"

    step = fan_out(
        b(body), over=source(b, "n"), key=int, reduce=reducer(b), reads=["n"], writes=["count"],
        name="step", limits=Limits(2),
    )  # fmt: skip
    return Graph.chain(first, step)


def hedges(b: Boundaries) -> Act:
    tidy = b(nap, "cleanup")

    @action(reads=["item"], writes=["leaf"])
    async def body(item: int) -> int:
        try:
            await anyio.sleep(9 if item == 4 else 1)
        finally:
            with tidying():
                await tidy()
        return item

    step = fan_out(
        b(body), over=source(b, "n"), key=int, reduce=reducer(b), reads=["n"], writes=["count"],
        name="step", limits=Limits(3), each=Each(hedge=Hedge(initial=2, budget=1)),
    )  # fmt: skip
    return Graph.chain(first, step)


def budgets(b: Boundaries) -> Act:
    @action(reads=["item"], writes=["leaf"])
    async def body(item: int, context: Context) -> int:
        await anyio.sleep(item)
        context.charge(0.5)
        return item

    def worst(state: State) -> float:
        return 1.0

    budget = Budget(100, "USD", worst=b(worst, "admission"), per=None)
    step = fan_out(
        b(body), over=source(b, "n"), key=int, reduce=reducer(b), reads=["n"], writes=["count"],
        name="step", limits=Limits(2) & budget,
    )  # fmt: skip
    return Graph.chain(first, step)


def counts(n: int) -> Callable[[State], bool]:
    def ends(state: State) -> bool:
        return state["count"] == n

    return ends


COMMON = frozenset({"body", "pull", "close", "reduce"})
CONSTRUCTS: Mapping[str, Construct] = {
    "map": Construct(
        a_map,
        COMMON | {"admission", "cleanup", "decision", "finish"},
        {"n": [1, 2, 3], "count": 0, "total": 0},
        lambda state: (state["count"], state["total"], state["finished"]) == (3, 3, True),
    ),
    "nested map": Construct(
        nested,
        frozenset({"body", "pull", "admission", "hand-over", "reduce", "cleanup"}),
        {"n": [1, 2], "count": 0},
        counts(2),
    ),
    "race": Construct(
        contestants,
        frozenset({"body", "decision", "cleanup"}),
        {},
        lambda state: state["won"] in ("quick", "slow"),
    ),
    "frontier": Construct(
        frontier,
        frozenset({"body", "pull", "admission", "reduce", "cleanup"}),
        {},
        lambda state: list(state["out"]) == [0, 1, 2, 3, 4],
    ),
    "stream": Construct(
        streams,
        frozenset({"body", "pull", "close", "decision", "cleanup"}),
        {"n": [3, 2, 4]},
        lambda state: state["out"] in (2, 3, 4),
    ),
    "question": Construct(questions, COMMON, {"n": [1, 2, 3], "count": 0}, counts(3)),
    "hedge": Construct(hedges, COMMON | {"cleanup"}, {"n": [1, 4, 2], "count": 0}, counts(3)),
    "budget": Construct(budgets, COMMON | {"admission"}, {"n": [1, 2, 3], "count": 0}, counts(3)),
}


async def live(
    construct: Construct, b: Boundaries, store: Store, hook: RecordingHook | None = None
) -> State:
    """Run a construct to its end, its questions answered; on the second time, resume it."""
    app = Application(
        construct.make(b),
        store=store,
        hooks=[b.hook(), *([] if hook is None else [hook])],
        **construct.settings,
    )
    result = await app.run(construct.fields, id=ID)
    if result.status == "halted":
        given = {(one.run_id, one.name): "that one" for one in result.questions}
        result = await app.run(construct.fields, id=ID, answers=given)
    state = cast("State", result.state)
    assert construct.ends(state), state
    return state
