"""Races whose process dies behind the decision: all have an outcome, also in the store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest

from shoal import (
    Application,
    Context,
    Done,
    Each,
    Graph,
    Hedge,
    Limits,
    MemoryStore,
    NobodyAccepted,
    Outcome,
    Result,
    Retry,
    RunPath,
    SQLiteStore,
    State,
    StoreFailed,
    action,
    fan_out,
    first,
    first_item,
    quorum,
    race,
)
from shoal._graph.until import Until
from shoal.errors import BadKey
from shoal.events import Update
from shoal.stores import ChildRecord, Store
from shoal.stores._protocol import Batch
from shoal.testing import RecordingHook
from shoal.types import Act

pytestmark = pytest.mark.anyio


@action(reads=["item"], writes=["begun"])
async def begin(item: float) -> bool:
    return item > 0


@action(reads=["item"], writes=["slept"])
async def sleep(item: float) -> float:
    await anyio.sleep(item)
    return item


@action(reads=["item"], writes=["slept"])
async def tell(item: float) -> AsyncIterator[str | Result[float]]:
    await anyio.sleep(item)
    yield "so"
    await anyio.sleep(0.5)
    yield Result(item)


two_steps = Graph.chain(begin, sleep, name="two steps")
streams = Graph.chain(begin, tell, name="streams")


def over(act: Act, **how: Any) -> Act:
    return fan_out(act, over="n", into="out", take="slept", name="race", **how)


@action(reads=["found"], writes=["slept"])
async def rest(found: float) -> float:
    await anyio.sleep(0.5)
    return found


# It saves nothing itself before the race in it is decided; its child has saved a step by then.
with_a_race = Graph.chain(
    fan_out(
        two_steps, over=lambda state: [state["item"]], item="item", reads=["item"], into="found",
        take="slept", until=first(),
    ),
    rest,
    name="with a race",
)  # fmt: skip


def has_two(state: State, _outcome: Outcome) -> bool:
    return len(state["out"]) == 2


@action(writes=["out"])
async def quick() -> str:
    await anyio.sleep(0.5)
    return "quick"


@action(writes=["out"])
async def slow() -> str:
    await anyio.sleep(60)
    return "slow"


late = Graph.chain(begin.bind(name="begins"), slow, name="late")
duel = race(quick, slow, late, into="out", name="race")


@action(writes=["found"])
async def search(context: Context) -> str:
    async with context.fan_out(name="tries") as group:
        group.start(duel, {"item": 1.0})
        async for outcome in group:
            if isinstance(outcome, Done):
                return str(outcome.state["out"])
    raise AssertionError


class Race(NamedTuple):
    make: Callable[[], Act]
    contestants: int
    winners: int = 1


RACES = {
    "acts": Race(lambda: duel, 3),
    "first": Race(lambda: over(sleep, until=first()), 4),
    "first, of two steps": Race(lambda: over(two_steps, until=first()), 4),
    "two": Race(lambda: over(two_steps, key=str, until=first(2)), 4, 2),
    "quorum": Race(lambda: over(two_steps, until=quorum(2, by=bool)), 4, 2),
    "first item": Race(lambda: over(streams, until=first_item()), 4),
    "first item, of one step": Race(lambda: over(tell, until=first_item()), 4),
    "a function": Race(lambda: over(sleep, key=str, until=has_two), 4, 2),
    "with few at once": Race(lambda: over(two_steps, until=first(), limits=Limits(2)), 2),
    "in a node": Race(lambda: Graph.chain(Graph.chain(duel, name="node"), name="app"), 3),
    "of races": Race(lambda: over(with_a_race, until=first()), 4),
    "in a child": Race(
        lambda: fan_out(Graph.chain(duel, name="inner"), over="one", item="item", into="each",
                        take="out", name="each"),
        3,
    ),
    "in a child that an action starts": Race(lambda: search, 3),
}  # fmt: skip


class Mortal:
    """A store whose process dies at its n-th save from the one on that decides the race."""

    def __init__(self, store: Store, n: int, *, is_late: bool) -> None:
        self._store, self._left, self._is_late = store, n, is_late
        self.has_decided = False

    def save(self, batch: Batch) -> Any:
        decides = batch.decision is not None and batch.decision.step == "race"
        self.has_decided = self.has_decided or decides
        saved: Any = None
        if not self.has_decided:
            return self._store.save(batch)
        self._left -= 1
        if self._left > 0 or (self._left == 0 and self._is_late):
            saved = self._store.save(batch)
        if self._left <= 0:
            raise OSError("the process is dead")
        return saved

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


async def below(store: Store, path: RunPath) -> list[tuple[RunPath, ChildRecord]]:
    """Return all descendants of a run, as the store has them."""
    found = list[tuple[RunPath, ChildRecord]]()
    for one in await store.children(path):
        child = RunPath(act=one.act, parent=path, step=one.step, visit=one.visit, key=one.key)
        found += [(child, one), *await below(store, child)]
    return found


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("name", RACES)
async def test_each_contestant_has_one_outcome_wherever_the_process_dies(
    name: str, kind: str, tmp_path: Path
):
    make, contestants, winners = RACES[name]
    given = {"n": [8.0, 1.0, 2.0, 9.0], "one": [1.0], "item": 1.0}
    n, died = 0, True
    while died:
        n += 1
        store: Any = MemoryStore()
        if kind == "sqlite":
            store = SQLiteStore(tmp_path / f"{n}.db", synchronous="normal")
        died = False
        for life in range(3):  # the second one dies once more, where it saves for the first time
            mortal: Any = store
            if life == 0:
                mortal = Mortal(store, (n + 1) // 2, is_late=n % 2 == 0)
            elif life == 1:
                mortal = Mortal(store, 1, is_late=n % 2 == 0)
                mortal.has_decided = True
            try:
                result = await Application(make(), store=mortal, name="app").run(
                    given if life == 0 else None, id="x"
                )
            except StoreFailed:
                died = died or life == 0
                continue
            break
        else:
            hook = RecordingHook()
            result = await Application(make(), store=store, hooks=[hook], name="app").run(id="x")
            hook.assert_paired()
        again = await Application(make(), store=store, name="app").run(id="x")
        found = await below(store, RunPath(run_id="x"))
        in_race = [record for _, record in found if record.step == "race"]
        assert {record.status for _, record in found} <= {"succeeded", "cancelled"}
        assert len(in_race) == len({(one.act, one.key) for one in in_race}) == contestants
        done = [one for one in in_race if one.status == "succeeded" and one.used]
        lost = [one for one in in_race if one.status == "cancelled"]
        assert len(done) == winners
        assert len(lost) == contestants - winners
        assert len({(one.reason, one.winner) for one in lost}) == 1
        assert lost[0].winner in {(one.act, one.key) for one in done}
        if name not in ("in a child", "in a child that an action starts"):
            step = "node/race" if name == "in a node" else "race"
            for one in (result, again):
                ledger = one.outcomes(step)
                assert (ledger.done, ledger.cancelled) == (winners, contestants - winners)
    assert n > 2


# -- started one after the other ------------------------------------------------------------------


@pytest.mark.parametrize("how", [inf, 5.0, Hedge(initial=5.0)])
async def test_a_decided_race_is_not_staggered(how: float | Hedge):
    """Its other elements are left out, and no start is waited for that nobody takes."""
    calls: list[float] = []

    @action(reads=["item"], writes=["slept"])
    async def breaks_off_once(item: float) -> AsyncIterator[str | Result[float]]:
        calls.append(item)
        yield "so"
        await anyio.sleep(0.5)
        if len(calls) == 1:
            raise ValueError(item)
        yield Result(item)

    @action(reads=["item"], writes=["slept"])
    async def breaks_off(item: float) -> AsyncIterator[str | Result[float]]:
        calls.append(item)
        yield "so"
        await anyio.sleep(0.5)
        raise ValueError(item)

    for act, ends in ((breaks_off_once, True), (breaks_off, False)):
        calls.clear()
        race_of_three = fan_out(
            act, over="items", item="item", key=str, into="out", until=first_item(), stagger=how
        )
        app = Application(race_of_three, store=MemoryStore())
        with pytest.raises(NobodyAccepted):
            await app.run({"items": [1.0, 2.0, 3.0]}, id="a")
        with anyio.fail_after(100):
            if ends:
                assert (await app.run(id="a")).state["out"] == 1.0
            else:
                with pytest.raises(NobodyAccepted):
                    await app.run(id="a")
        assert calls == [1.0, 1.0], "the winner, and nobody else"


# -- tried again ----------------------------------------------------------------------------------


@pytest.mark.parametrize("until", [first(), first_item(), first_item(on_break="restart")])
async def test_a_race_that_is_decided_stays_decided_when_something_raises_behind_it(until: Until):
    """An element is refused when the only contestant has decided; the race is tried again."""
    store, starts = MemoryStore(), list[int]()

    @action(reads=["item"], writes=["begun"])
    async def begins(item: int) -> int:
        starts.append(item)
        return item

    @action(reads=["item"], writes=["answer"])
    async def answers(item: int) -> AsyncIterator[Any]:
        await anyio.sleep(0.5)
        yield "so"
        yield Result(item)

    inner = fan_out(
        Graph.chain(begins, answers, name="two"), over="items", item="item", key=int,
        into="out", take="answer", until=until, limits=Limits(1), name="race",
    )  # fmt: skip
    outer = fan_out(
        Graph.chain(inner, name="inner"), over="lists", item="items", into="each", take="out",
        each=Each(retry=Retry(attempts=3, on=BadKey)),
    )  # fmt: skip
    result = await Application(outer, store=store, name="app").run({"lists": [[1, 1]]}, id="r")
    assert result.state["each"] == [1]
    assert starts == [1]


class SlowToApply(MemoryStore):  # pyright: ignore[reportGeneralTypeIssues] # a test's own
    """A store that takes a second for a save that applies a result."""

    def save(self, batch: Batch) -> Any:
        super().save(batch)
        return anyio.sleep(1) if batch.applied else None


@pytest.mark.parametrize("until", [first_item(), first_item(on_break="restart")])
async def test_a_race_whose_winner_has_its_answer_stays_decided_when_it_is_tried_again(
    until: Until,
):
    """The source raises while the result of the winner is saved; the race is tried again."""
    ran, raises = list[str](), False

    @action(reads=["item"], writes=["answer"])
    async def asks(item: int, context: Context) -> AsyncIterator[str | Result[object]]:
        ran.append("begins")
        yield "so"
        answer = await context.ask("what", "What is it?")
        ran.append("is answered")
        yield Result(answer)

    async def numbers() -> AsyncIterator[int]:
        yield 1
        await anyio.sleep(0.5)
        if raises:
            raise ConnectionError

    inner = fan_out(
        Graph.chain(asks, name="one"), over=lambda state: numbers(), reads=[], item="item",
        key=int, into="out", take="answer", until=until, name="race",
    )  # fmt: skip
    outer = fan_out(
        Graph.chain(inner, name="inner"), over="names", key=str, into="each", take="out",
        each=Each(retry=Retry(attempts=4, on=ConnectionError, jitter=0)),
    )  # fmt: skip
    app = Application(outer, store=SlowToApply(), name="app")
    halted = await app.run({"names": ["a"]}, id="r")
    assert halted.status == "halted"
    ran.clear()
    raises = True
    result = await app.run(id="r", answers={"what": "this"})
    assert result.state["each"] == {"a": "this"}
    assert ran == ["begins", "is answered"]


async def test_a_contestant_that_waits_for_answers_runs_anew_in_the_next_round():
    """What it has completed in the round before is done again: its history says so."""
    store = MemoryStore()

    @action(reads=["item"], writes=["asked"])
    async def asks(item: int, context: Context) -> AsyncIterator[str | Result[str]]:
        if item == 1:
            answer = await context.ask("what", "What is it?")
            yield Result(answer)
        else:
            await anyio.sleep(1)
            yield "so"
            await anyio.sleep(1)
            raise ValueError(item)

    act = fan_out(
        Graph.chain(begin, asks, name="two"), over="items", item="item", key=int, into="out",
        take="asked", until=first_item(on_break="restart"), name="race",
    )  # fmt: skip
    app = Application(act, store=store, name="app")
    halted = await app.run({"items": [1, 2]}, id="r")
    assert halted.status == "halted"
    (question,) = halted.questions
    path = RunPath(act="two", parent=RunPath(run_id="r", act="app"), step="race", key=1)
    numbers = [one.number for one in await store.read(path) if isinstance(one, Update)]
    assert numbers == [1]
    result = await app.run(id="r", answers={(question.run_id, "what"): "this"})
    assert result.state["out"] == "this"
    numbers = [one.number for one in await store.read(path) if isinstance(one, Update)]
    assert numbers == [1, 2]


async def test_a_child_that_at_most_has_left_out_is_no_loser():
    """Behind a decision, losers were made of acts that would never have been started."""
    store = MemoryStore()

    def contestant(name: str) -> Any:
        @action(writes=["text"], name=name)
        async def speak(context: Context) -> AsyncIterator[str | Result[str]]:
            yield f"{name} begins"
            yield Result(await context.ask("what", "What is it?"))

        return speak

    step = fan_out(
        [contestant(name) for name in "abc"], into="text", take="text", until=first_item(),
        at_most=1, name="race",
    )  # fmt: skip
    app = Application(step, store=store, name="app")
    halted = await app.run({}, id="r")
    (question,) = halted.questions
    result = await app.run(id="r", answers={question.address: "this"})
    assert result.state["text"] == "this"
    ledger = result.outcomes("race")
    assert (ledger.done, ledger.cancelled, ledger.left) == (1, 0, 2)
    assert [one.act async for one in result.all_outcomes("race")] == ["a"]
