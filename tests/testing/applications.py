"""Applications without bugs, which use much of shoal: what `simulate` has to be silent about.

``ALL`` has each with the state and the answers that it takes, and what must be the same in each
run.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, NamedTuple

import anyio

from shoal import (
    Application,
    Breaker,
    Budget,
    Context,
    Done,
    Each,
    Graph,
    Hedge,
    Limits,
    MemoryStore,
    Rate,
    Result,
    Retry,
    State,
    action,
    fan_out,
    first,
    first_item,
    quorum,
    race,
)


class Sample(NamedTuple):
    """An application and how it is run."""

    app: Callable[[], Application[Any]]
    state: dict[str, Any]
    answers: dict[str, object] | None = None
    same: Callable[[State], object] | bool | None = None


@action(
    reads=["n"],
    writes=["square"],
    retry=Retry(3, on=ConnectionError, initial=0.5),
    limits=Limits(2),
)
async def square(n: int) -> int:
    await anyio.sleep(n / 4)
    return n * n


@action(reads=["n"], writes=["half"])
def halve(n: int) -> int:
    return n // 2


@action(reads=["ns"], writes=["total"])
async def add(ns: Any) -> int:
    await anyio.sleep(0.5)
    return sum(ns.values())


def nested_maps() -> Application[Any]:
    """Maps in maps in maps, under limits that all of them share."""
    shared = Limits(3)
    leaf = square.bind(name="leaf")
    inner = fan_out(leaf, over="row", item="n", key=int, into="ns", take="square", limits=shared)
    rows = fan_out(
        Graph.chain(inner, add, name="a row"),
        over="table", item="row", into="rows", take="total", limits=Limits(2),
    )  # fmt: skip
    tables = fan_out(rows, over="tables", item="table", into="sums", take="rows")
    return Application(tables, store=MemoryStore(), limits=shared)


@action(reads=["question"], writes=["answer"])
async def quick(question: str) -> str:
    await anyio.sleep(1)
    return f"{question} A"


@action(reads=["question"], writes=["answer"], retry=Retry(2, on=ConnectionError))
async def steady(question: str) -> str:
    await anyio.sleep(1.5)
    return f"{question} A"


@action(reads=["question"], writes=["answer"])
async def odd(question: str) -> str:
    await anyio.sleep(0.5)
    return f"{question} B"


@action(reads=["question"], writes=["answer"])
async def speak(question: str) -> AsyncIterator[str | Result[str]]:
    for word in ("It", "depends"):
        await anyio.sleep(0.25)
        yield word
    yield Result(f"{question} A")


def races() -> Application[Any]:
    """Races in a map: the first, a quorum, the first item, staggered ones."""
    steps = [
        race(
            quick,
            steady,
            odd,
            into="answer",
            accept=lambda answer: answer.endswith("A"),
            name="accepted",
        ),
        fan_out([quick, steady, odd], into="answer", until=quorum(2), name="voted"),
        race(speak, speak.bind(name="other"), into="answer", until=first_item(), name="spoken"),
        race(quick, steady, into="answer", stagger=0.5, name="staggered"),
        fan_out([quick, steady, odd], into="answers", until=first(2), name="two"),
    ]
    each = [
        fan_out(
            one, over="questions", item="question", key=str, into=f"by {one.name}",
            name=f"all {one.name}", take="answer",
        )
        for one in steps[:4]
    ]  # fmt: skip
    return Application(Graph.chain(*each, _one, steps[4], name="races"), store=MemoryStore())


@action(reads=["questions"], writes=["question"])
async def _one(questions: list[str]) -> str:
    return questions[0]


@action(reads=["n"], writes=["below"], retry=Retry(2, on=ConnectionError))
async def divide(n: int) -> list[int]:
    await anyio.sleep(n % 3)
    return [n // 2, n // 3] if n > 1 else []


def count(state: State, outcome: Done) -> State:
    return state.increment(seen=1)


def below(state: State, outcome: Done) -> Iterable[int]:
    return outcome.value


def frontier() -> Application[Any]:
    """A frontier that discovers its work, with a rate."""
    explored = fan_out(
        divide, over="starts", item="n", key=int, reduce=count, grow=below, reads=["seen"],
        writes=["seen"], name="explored", limits=Limits(4) & Limits(rate=Rate(8)),
    )  # fmt: skip
    return Application(Graph.chain(_zero, explored, name="frontier"), store=MemoryStore())


@action(writes=["seen"])
async def _zero() -> int:
    return 0


@action(reads=["n"], writes=["name"])
async def ask(n: int, context: Context) -> str:
    await anyio.sleep(0.25)
    return f"{await context.ask('who', f'who is {n}?')} {n}"


def questions() -> Application[Any]:
    """Questions, from a map and from an action with children of its own."""

    @action(reads=["n"], writes=["told"])
    async def consult(n: int, context: Context) -> list[str]:
        async with context.fan_out(name="experts") as group:
            for number in (1, 2):
                group.start(ask, {"n": 10 * n + number}, key=number)
            found = [outcome async for outcome in group]
        return sorted(outcome.value for outcome in found if isinstance(outcome, Done))

    asked = fan_out(ask, over="numbers", item="n", key=int, into="names", take="name")
    told = fan_out(consult, over="numbers", item="n", key=int, into="told")
    return Application(Graph.chain(asked, told, name="questions"), store=MemoryStore())


def tolerant() -> Application[Any]:
    """Failures that are collected, breakers, timeouts of children, hedges, a budget."""
    late = fan_out(
        square.bind(name="late"), over="numbers", item="n", key=int, into="late", take="square",
        errors_into="errors", on_error="collect",
        each=Each(timeout=30, hedge=Hedge(initial=1), retry=Retry(2, on=TimeoutError)),
    )  # fmt: skip
    broken = fan_out(
        halve, over="numbers", item="n", key=int, into="halves", on_error="ignore",
        each=Each(breaker=Breaker(by=lambda state: state["n"] % 2, failures=2)),
    )  # fmt: skip
    paid = fan_out(
        quick.bind(name="paid"), over="questions", item="question", key=str, into="paid",
        on_error="ignore", limits=Limits(2) & Budget(1.0, "USD", worst=0.125, on_empty="stop"),
    )  # fmt: skip
    return Application(Graph.chain(late, broken, paid, name="tolerant"), store=MemoryStore())


def own_children() -> Application[Any]:
    """Children that an action starts by itself, three deep, and a loop."""

    @action(reads=["n"], writes=["sum"])
    async def deep(n: int, context: Context) -> int:
        if n == 0:
            return 1
        total = 0
        async with context.fan_out(name="below", limits=Limits(2)) as group:
            for number in range(2):
                group.start(deep, {"n": n - 1}, key=number)
            async for outcome in group:
                total += outcome.value if isinstance(outcome, Done) else 0
        return total

    @action(reads=["n"], writes=["n"])
    async def less(n: int) -> int:
        await anyio.sleep(0.5)
        return n - 1

    graph = Graph(
        (deep, less), (less, deep, lambda n: n > 1), (less, _zero), entry=deep, name="own"
    )
    return Application(graph, store=MemoryStore())


def threads() -> Application[Any]:
    """Plain functions, and values that are cached."""
    cached = action(reads=["n"], writes=["double"], cache=60)(_double)
    doubled = fan_out(cached, over="numbers", item="n", into="doubles", take="double")
    again = fan_out(cached, over="numbers", item="n", into="again", take="double")
    return Application(
        Graph.chain(
            doubled, again, fan_out(halve, over="numbers", item="n", into="halves"), name="threads"
        ),
        store=MemoryStore(),
    )


async def _double(n: int) -> int:
    await anyio.sleep(0.25)
    return 2 * n


NUMBERS = {"numbers": [1, 2, 3, 4]}
ALL = {
    "nested maps": Sample(nested_maps, {"tables": [[[1, 2], [3]], [[4, 5], []], []]}),
    "races": Sample(races, {"questions": ["who?", "why?"]}),
    "frontier": Sample(frontier, {"starts": [9, 12]}),
    "questions": Sample(questions, NUMBERS, {"who": "Ada"}),
    "tolerant": Sample(tolerant, {**NUMBERS, "questions": ["a", "b", "c"]}),
    "own children": Sample(own_children, {"n": 2}),
    "threads": Sample(threads, NUMBERS),
}
