"""Programs whose runs stand in the kept files, each interrupted where it has something to resume.

They must stay as they are: their names, versions and fields are what the files were written with.
``python -m tests.kept`` writes such files anew, with the version of shoal that it finds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import anyio

from shoal import (
    END,
    Application,
    Context,
    Done,
    Graph,
    Limits,
    MapStates,
    MemoryStore,
    NobodyAccepted,
    State,
    Tolerate,
    action,
    fan_out,
    first,
    race,
    when,
)
from shoal.stores import Store
from shoal.types import Act


@dataclass
class World:
    """What the bodies of the programs see of their process."""

    fails: bool = False
    """Whether the parts fail that fail once."""
    ran: Counter[str] = field(default_factory=Counter[str])
    """Which bodies were called."""

    async def note(self, what: object, *, breaks: bool = False) -> None:
        self.ran[str(what)] += 1
        await anyio.lowlevel.checkpoint()
        if breaks and self.fails:
            raise ConnectionError(f"{what}, the first time")


def programs(world: World, store: Store | None) -> dict[str, tuple[Application, dict[str, Any]]]:
    """Return each program, by the id of its run, and the state that it starts with."""

    @action(reads=["n"], writes=["page"])
    async def fetch(n: int) -> str:
        await world.note(f"fetch {n}")
        return f"page {n}"

    @action(reads=["n", "page"], writes=["title"])
    async def parse(n: int, page: str) -> str:
        await world.note(f"parse {n}", breaks=n == 3)
        return page.upper()

    @action(reads=["n"], writes=["m"])
    async def odd(n: int) -> int:
        await world.note(f"odd {n}")
        if n % 2 == 0:
            raise ValueError(f"{n} is even")
        return n

    @action(reads=["n", "bad"], writes=["seen"])
    async def look(n: int, bad: dict[int, Any]) -> str:
        await world.note(f"look {n}", breaks=n == 2)
        return ", ".join(sorted(f"{key}: {bad[key].type}" for key in bad))

    @action(reads=["n"], writes=["grown"])
    async def visit(n: int) -> int:
        await world.note(f"visit {n}", breaks=n == 4)
        return n

    @action(writes=["answer"], name="slow")
    async def slow() -> str:
        await world.note("slow")
        await anyio.sleep(3600)
        return "slow"

    @action(writes=["answer"], name="quick")
    async def quick() -> str:
        await world.note("quick")
        return "quick"

    @action(reads=["answer"], writes=["judged"])
    async def judge(answer: str) -> str:
        await world.note("judge", breaks=True)
        return f"{answer}!"

    @action(reads=["ns"], writes=["total"])
    async def add(ns: list[int], context: Context) -> int:
        total = 0
        async with context.fan_out(name="parts", limits=Limits(1)) as group:
            group.start_each(square, over=ns, item="n", key=int)
            async for outcome in group:
                if not isinstance(outcome, Done):
                    raise ConnectionError("a part failed")
                total += outcome.value
        return total

    @action(reads=["n"], writes=["square"])
    async def square(n: int) -> int:
        await world.note(f"square {n}", breaks=n == 3)
        return n * n

    @action(writes=["approved"])
    async def ask(context: Context) -> bool:
        await world.note("ask")
        return await context.ask("approve", "May it be sent?")

    @action(reads=["round"], writes=["round"])
    async def turn(round: int) -> int:  # noqa: A002 # the name of a field
        await world.note(f"turn {round}", breaks=round == 1)
        return round + 1

    def more(round: int) -> bool:  # noqa: A002 # the name of a field
        return round < 3

    class Pages(MapStates):
        """A fan-out as a class."""

        reads = ("ns", "sum")
        writes = ("sum",)
        limits = Limits(1)

        def action(self, state: State, inputs: Mapping[str, Any]) -> Act:
            return visit

        def states(self, state: State, inputs: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
            for n in state["ns"]:
                yield {"n": n}

        def key(self, state: Mapping[str, Any]) -> int:
            return state["n"]

        def reduce(self, state: State, outcome: Any) -> State:
            return state.increment(sum=outcome.value)

    one_by_one = Limits(1)
    pages = fan_out(
        Graph.chain(fetch, parse, name="page"), over="ns", item="n", key=int, into="titles",
        take="title", limits=one_by_one,
    )  # fmt: skip
    listed = fan_out(
        [fetch, Graph.chain(fetch, parse, name="both")], over="ns", item="n", into="out",
        take=["page"], limits=one_by_one, name="listed",
    )  # fmt: skip
    failing = fan_out(
        odd, over="ns", item="n", key=int, into="odds", take="m", errors_into="bad",
        on_error=Tolerate(count=9),
    )  # fmt: skip
    looking = fan_out(look, over="ns", item="n", key=int, into="looks", limits=one_by_one)
    frontier = fan_out(
        visit, over="starts", item="n", key=int, name="frontier", writes=["sum"],
        reduce=lambda state, outcome: state.increment(sum=outcome.value),
        grow=lambda state, outcome: [
            n for n in (2 * outcome.value, 2 * outcome.value + 1) if n < 8
        ],
        limits=one_by_one,
    )  # fmt: skip
    nested = fan_out(
        fan_out(
            Graph.chain(fetch, parse, name="page"), over="ns", item="n", key=int, into="inner",
            take="title", limits=one_by_one,
        ),
        over="names", item="name", key=str, into="outer", take="inner", limits=one_by_one,
    )  # fmt: skip
    lost = race(
        odd.bind(name="left"), odd.bind(name="right"), into="never", take="m",
        until=first(accept=lambda value: False),
    )  # fmt: skip
    graphs: dict[str, tuple[Any, dict[str, Any]]] = {
        "map": (pages, {"ns": [1, 2, 3, 4]}),
        "listed": (listed, {"ns": [1, 2, 3]}),
        "errors": (Graph.chain(failing, looking), {"ns": [1, 2, 3, 4]}),
        "frontier": (frontier, {"starts": [1], "sum": 0}),
        "race": (Graph.chain(race(slow, quick, into="answer"), judge), {}),
        "own": (add, {"ns": [1, 2, 3, 4]}),
        "nested": (nested, {"ns": [2, 3], "names": ["a", "b"]}),
        "node": (Graph.chain(Graph.chain(pages, name="node"), name="outside"), {"ns": [2, 3]}),
        "asking": (ask, {}),
        "loop": (
            Graph((turn, turn, when(more)), (turn, END), name="loop", entry=turn),
            {"round": 0},
        ),
        "class": (Pages(), {"ns": [3, 4, 5], "sum": 0}),
        "done": (Graph.chain(fetch, name="done"), {"n": 7}),
        "lost": (lost, {"n": 5}),
    }
    return {
        name: (Application(graph, name=name, version="3", store=store), state)
        for name, (graph, state) in graphs.items()
    }


ENDS = (ConnectionError, ExceptionGroup, NobodyAccepted)
"""What a program may fail with."""
ANSWERS = {"asking": {"approve": True}}
"""What is answered when a run is resumed."""


async def resumed(
    name: str, store: Store, answers: Mapping[str, Any] | None = None
) -> tuple[dict[str, int], dict[str, Any] | None]:
    """Resume a run; return the bodies that it called, and its state, or None if it failed."""
    world = World()
    app, _ = programs(world, store)[name]
    state = None
    with suppress(*ENDS):
        state = (await app.run(id=name, answers=answers)).state.to_plain()
    return dict(sorted(world.ran.items())), state


async def straight(name: str) -> dict[str, Any] | None:
    """Return the state of a run that nothing has interrupted."""
    app, given = programs(World(), MemoryStore())[name]
    try:
        result = await app.run(given, id=name)
        if result.questions:
            result = await app.run(id=name, answers=ANSWERS[name])
    except ENDS:
        return None
    return result.state.to_plain()
