"""Ledgers that a later execution recalls: they are those of the execution that ran the steps."""

# pyright: reportUnknownLambdaType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypedDict

import pytest
from pydantic import AfterValidator, TypeAdapter

from shoal import END, Application, Context, Graph, MemoryStore, SQLiteStore, action, fan_out, when
from shoal._engine.fanout.ledger import Ledger

pytestmark = pytest.mark.anyio

fails = list[str]()


@pytest.fixture(autouse=True)
def nothing_fails() -> None:
    fails.clear()


@action(reads=["x"], writes=["y"])
async def work(x: int) -> int:
    return x


def opens(counts: Callable[[int], list[tuple[str, int]]]) -> Any:
    """Make an action that opens fan-outs: their names, and how many each starts in a visit."""

    @action(reads=["turns"], writes=["turns"], name="own")
    async def own(turns: int, context: Context) -> int:
        for name, count in counts(turns):
            async with context.fan_out(name=name) as group:
                for x in range(count):
                    group.start(work, {"x": x})
        return turns + 1

    return own


@action(reads=["turns"], writes=["end"])
async def end(turns: int) -> int:
    if fails:
        raise LookupError(fails.pop())
    return turns


COUNTS: dict[str, Callable[[int], list[tuple[str, int]]]] = {
    "none": lambda turn: [("a", 0)],
    "some of several": lambda turn: [("a", 0), ("b", 2), ("c", 0)],
    "in some visits": lambda turn: [("a", turn % 2)] if turn < 2 else [("b", 0)],
    "in the first visit": lambda turn: [] if turn else [("a", 0), ("b", 1)],
}


def graph(place: str, own: Any) -> Any:
    if place == "root":
        return Graph.chain(own, end, name="app")
    if place == "loop":
        return Graph((own, own, when(lambda turns: turns < 3)), (own, end))
    if place == "node":
        return Graph.chain(Graph.chain(own, name="node"), end, name="app")
    if place == "looped node":
        looped = Graph((own, own, when(lambda turns: turns < 3)), (own, END), name="node")
        return Graph.chain(looped, end, name="app")
    assert place == "node in a node"
    node = Graph.chain(Graph.chain(own, name="inner"), name="node")
    return Graph.chain(node, end, name="app")


def counted(ledgers: Any) -> dict[str, list[tuple[int, ...]]]:
    def of(ledger: Ledger) -> tuple[int, ...]:
        return ledger.done, ledger.failed, ledger.cancelled, ledger.skipped

    return {name: list(map(of, found)) for name, found in ledgers.items()}


@pytest.mark.parametrize("place", ["root", "loop", "node", "looped node", "node in a node"])
@pytest.mark.parametrize("case", COUNTS)
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_an_empty_fan_out_of_an_action_s_own_has_a_ledger_in_each_execution(
    place: str, case: str, kind: str, tmp_path: Path
):
    """Nothing was kept of one that has started nothing: its outcomes raised KeyError."""
    store = MemoryStore() if kind == "memory" else SQLiteStore(tmp_path / "runs.db")
    app: Application[Any] = Application(graph(place, opens(COUNTS[case])), name="app", store=store)
    straight = counted((await app.run({"turns": 0}, id="straight"))._ledgers)
    assert any(not any(one) for of_step in straight.values() for one in of_step)
    again = await app.run(id="straight")
    assert counted(again._ledgers) == straight
    fails.append("once")
    with pytest.raises(LookupError):
        await app.run({"turns": 0}, id="resumed")
    resumed = await app.run(id="resumed")
    assert counted(resumed._ledgers) == straight
    for name, ledgers in straight.items():
        if name.startswith("own/"):
            found = [one async for one in resumed.all_outcomes(name)]
            assert len(found) == ledgers[-1][0]


def refusing(value: int) -> int:
    if value and fails:
        raise LookupError(fails.pop())
    return value


TypeAdapter(int)  # what pydantic reads from files for the first model is read here


class Model(TypedDict, total=False):
    turns: int
    size: Annotated[int, AfterValidator(refusing)]
    few: dict[int, int]
    many: dict[int, int]
    found: dict[int, int]
    end: int


@action(reads=["turns"], writes=["size"])
async def size(turns: int) -> int:
    return turns


@pytest.mark.parametrize("how", ["applied", "refused"])
@pytest.mark.parametrize("name", ["few", "many"])
async def test_of_a_node_s_last_steps_only_the_one_that_it_took_has_a_ledger(name: str, how: str):
    """It has no children, and the graph doesn't say which one follows: its declaration does."""
    few, many = (
        fan_out(
            work, over=lambda state: [], item="x", key=int, into=name, reads=[], again=True,
            name=name,
        )
        for name in ("few", "many")
    )  # fmt: skip
    node = Graph(
        (size, few, when(lambda size: size < 3)), (size, many), (few, END), (many, END),
        name="node",
    )  # fmt: skip
    whole = Graph.chain(node, end, name="app", state=Model if how == "refused" else None)
    app: Application[Any] = Application(whole, store=MemoryStore())
    turns = 1 if name == "few" else 3
    straight = counted((await app.run({"turns": turns}, id="straight"))._ledgers)
    assert straight == {f"node/{name}": [(0, 0, 0, 0)]}
    fails.append("once")  # where it is applied, and else behind it
    with pytest.raises(Exception):  # of whatever kind
        await app.run({"turns": turns}, id="resumed")
    assert counted((await app.run(id="resumed"))._ledgers) == straight


async def test_a_fan_out_in_front_of_a_node_s_last_step_has_one_ledger():
    """The last step leaves no trace, and the children that there are belong to the one before."""
    fan = fan_out(work, over=lambda state: [1, 2], item="x", into="found", reads=[], name="fan")

    @action()
    async def nothing() -> None:
        pass

    node = Graph.chain(fan, nothing, name="node")
    app: Application[Any] = Application(Graph.chain(node, end), name="app", store=MemoryStore())
    fails.append("once")
    with pytest.raises(LookupError):
        await app.run({"turns": 0}, id="resumed")
    assert counted((await app.run(id="resumed"))._ledgers) == {"node/fan": [(2, 0, 0, 0)]}


async def test_children_s_empty_fan_outs_cost_no_save():
    """Nobody asks for ledgers of children: their last step is saved by their parent."""
    saves = list[int]()

    class Counting:
        def __init__(self) -> None:
            self.store = MemoryStore()
            saves.append(0)

        def save(self, batch: Any) -> None:
            saves[-1] += 1
            self.store.save(batch)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.store, name)

    for counts in COUNTS["none"], lambda turn: []:
        act = fan_out(
            opens(counts), over=lambda state: [0], item="x", reads=[], into="out", take="turns"
        )
        kept: Any = Counting()
        await Application(act, store=kept).run({"turns": 0})
    assert saves[0] == saves[1]
