"""Races that go on after a crash: their recorded winner stays, and two never win."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

import anyio
import pytest

from shoal import (
    Application,
    Cancelled,
    Context,
    Done,
    Graph,
    Limits,
    MemoryStore,
    NobodyAccepted,
    Outcome,
    RunPath,
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
from shoal.events import ChildName, Decision, Update
from shoal.stores import Store
from shoal.testing import Recovery, crash_everywhere
from shoal.types import FanOut

from .test_first_item import stream
from .test_until import sleeper

pytestmark = pytest.mark.anyio

Backend = Literal["asyncio", "trio"]


@action(reads=["item"], writes=["slept"])
async def sleep(item: float) -> float:
    """Sleeps as long as its element says, and a moment in its cleanup; negative ones fail."""
    try:
        await anyio.sleep(abs(item))
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.25)
    if item < 0:
        raise ValueError(item)
    return item


@action(reads=["slept"], writes=["twice"])
async def twice(slept: float) -> float:
    await anyio.sleep(0.125)
    return 2 * slept


@action(reads=["out"], writes=["last"])
async def last(out: object) -> str:
    return f"last {out}"


def add(state: State, outcome: Done) -> State:
    return state.increment(sum=outcome.value)


def deeper(state: State, outcome: Done) -> Iterable[float]:
    return [outcome.element + 1] if outcome.element < 6 else []


def over(**options: Any) -> Graph:
    act = Graph.chain(sleep, twice, name="two steps")
    options.setdefault("into", "out")
    return Graph.chain(fan_out(act, over="n", take="twice", name="race", **options), last)


def two_came(state: State, outcome: Outcome) -> bool:
    return len(state["out"]) == 2


def nested() -> Graph:
    inner = race(Graph.chain(sleep, name="slow"), sleep.bind(name="other"), into="slept")
    each = fan_out(inner, over="n", key=str, into="each", take="slept", limits=Limits(2))
    return Graph.chain(race(each, Graph.chain(each, name="again"), into="out", take="each"), last)


def collected() -> Graph:
    step = fan_out(
        sleep, over="n", reduce=add, writes=["sum"], name="race", until=first(2), reads=["out"]
    )
    return Graph.chain(step, last)


RACES: dict[str, tuple[Callable[[], Graph], list[float]]] = {
    "first": (lambda: over(until=first()), [3, -1, 2, 9]),
    "accepted": (lambda: over(until=first(accept=(6, 8).__contains__)), [1, 4, 2, 3]),
    "two": (lambda: over(key=str, until=first(2)), [3, 1, 2, 9]),
    "quorum": (lambda: over(until=quorum(2, by=bool)), [3, -1, 2, 9]),
    "in order": (lambda: over(until=first(2), stagger=inf), [1, -1, 2, 3]),
    "staggered": (lambda: over(until=first(), stagger=0.5), [9, 8, 1, 1]),
    "search": (
        lambda: over(until=first(accept=(10).__eq__), grow=deeper, key=int, limits=Limits(1)),
        [1],
    ),
    "asked": (lambda: over(until=two_came), [3, 1, 2, 9]),
    "nested": (nested, [0.5, 1]),
    "reduced": (collected, [3, 1, 2, 9]),
}


@dataclass
class Result:
    state: dict[str, object]
    counts: tuple[int, int]


async def races_of(store: MemoryStore, path: RunPath) -> list[Decision]:
    """The decisions of a run, and of all its descendants: none twice."""
    entries = await store.read(path)
    found = [entry for entry in entries if isinstance(entry, Decision)]
    assert len({decision.step for decision in found}) == len(found), "decided twice"
    for at, entry in enumerate(entries):
        if isinstance(entry, Decision):
            before = entries[at - 1]
            assert isinstance(before, Update)
            assert before.step == entry.step
            later = [one for one in entries[at:] if isinstance(one, Update)]
            assert all(one.step != entry.step for one in later), "nothing is applied after it"
    for child in await store.children(path):
        below = RunPath(
            act=child.act, parent=path, step=child.step, visit=child.visit, key=child.key
        )
        found += await races_of(store, below)
    return found


def crash(name: str, **manner: Any) -> int:
    make, elements = RACES[name]

    async def scenario(store: Store) -> Result:
        app = Application(make(), store=store, max_live=2000)
        given: dict[str, object] = {"n": elements, "sum": 0}
        if name == "reduced":
            given["out"] = "nothing"
        result = await app.run(given, id="race")
        step = "race" if name != "nested" else "out"
        ledger = result.outcomes(step)
        assert ledger.total == ledger.done + ledger.failed + ledger.cancelled
        return Result(result.state.to_plain(), (ledger.total, 0))

    # The save of one contestant hangs, and meanwhile another one wins.
    is_overtaken = manner.get("how") == "hangs"

    async def check(recovery: Recovery[Result]) -> None:
        decisions = await races_of(recovery.store, RunPath(run_id="race"))
        step = "race" if name != "nested" else "out"
        assert [decision.step for decision in decisions if decision.step == step] == [step]
        state, clean = recovery.result.state, recovery.clean.state
        assert state.keys() == clean.keys()
        if name in ("accepted", "search", "in order", "asked"):  # else others may be quicker
            assert state == clean or name == "asked" or (name == "accepted" and is_overtaken)
        assert state["last"] == f"last {state['out']}"

    return crash_everywhere(scenario, check, **manner)


@pytest.mark.parametrize("name", RACES)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_race_keeps_its_recorded_winner(name: str, backend: Backend):
    assert crash(name, backend=backend, limit=30) >= 8


@pytest.mark.parametrize("name", ["first", "two", "quorum", "nested"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_it_does_so_on_a_slow_store_that_dies_again_and_again(name: str, backend: Backend):
    assert crash(name, backend=backend, delay=0.25, times=2, seed=1, limit=16) >= 8


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", RACES)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("how", ["dies", "fails", "hangs"])
@pytest.mark.parametrize("delay", [0, 0.25])
def test_it_does_so_wherever_the_store_goes_wrong(
    name: str, backend: Backend, how: Any, delay: float
):
    assert crash(name, backend=backend, how=how, delay=delay, times=2, seed=2) >= 8


async def test_after_the_decision_nothing_is_started_any_more():
    """The process dies just after the decision was saved: losers were neither recorded nor run."""
    started = list[float]()

    @action(reads=["item"], writes=["slept"])
    async def note(item: float) -> float:
        started.append(item)
        await anyio.sleep(item)
        return item

    store = MemoryStore()
    kept: list[MemoryStore] = []
    save = store.save

    def saving(batch: Any) -> None:
        save(batch)
        if batch.decision is not None:
            kept.append(store.copy())
            raise OSError("died")

    store.save = saving  # pyright: ignore[reportAttributeAccessIssue]
    step = fan_out(note, over="n", into="out", until=first())
    with pytest.raises(StoreFailed):
        await Application(step, store=store).run({"n": [3.0, 1.0, 2.0]}, id="race")
    assert started == [3, 1, 2]
    started.clear()
    result = await Application(step, store=kept[0]).run(id="race")
    assert result.state["out"] == 1
    assert started == []
    outcomes = result.outcomes("out")
    assert (outcomes.done, outcomes.cancelled) == (1, 2)
    assert {(one.position, one.attempts) for one in outcomes} == {(0, 0), (2, 0)}


@pytest.mark.parametrize("place", ["root", "node", "child"])
async def test_losers_that_nobody_could_record_have_lost_wherever_they_are_read(place: str):
    """The process dies just after the decision was saved: of the losers only steps are kept."""
    ran = list[float]()

    @action(reads=["item"], writes=["slept"])
    async def note(item: float) -> float:
        await anyio.sleep(0.5)
        ran.append(item)
        return item

    @action(reads=["slept"], writes=["slept"])
    async def wait(slept: float) -> float:
        await anyio.sleep(slept)
        return slept

    store = MemoryStore()
    kept: list[MemoryStore] = []
    save = store.save

    def saving(batch: Any) -> None:
        save(batch)
        if batch.decision is not None and not kept:
            kept.append(store.copy())
            raise OSError("died")

    store.save = saving  # pyright: ignore[reportAttributeAccessIssue]
    act = Graph.chain(note, wait, name="act")
    step = fan_out(act, over="n", key=str, into="out", take="slept", until=first())
    name = "out"
    if place == "node":
        step, name = Graph.chain(step, name="node"), "node/out"
    elif place == "child":
        step = fan_out(Graph.chain(step), over=lambda _: [1], reads=[], into="outs", take="out")
    graph = Graph.chain(step, name="race")
    with pytest.raises((StoreFailed, ExceptionGroup)):
        await Application(graph, store=store).run({"n": [3.0, 1.0, 2.0]}, id="race")
    assert sorted(ran) == [1, 2, 3]
    app = Application(graph, store=kept[0])
    for _ in range(2):  # the second time, it is the result that is recorded
        result = await app.run(id="race")
        assert len(ran) == 3, "nothing runs again"
        if place == "child":
            assert result.state["outs"] == [1]
            continue
        assert result.state["out"] == 1
        losers = list(result.outcomes(name))
        assert [(type(one), one.key) for one in losers] == [(Cancelled, "3.0"), (Cancelled, "2.0")]
        for loser in losers:
            assert isinstance(loser, Cancelled)
            assert loser.winner == ("act", "1.0")
            assert loser.reason == "key '1.0' decided fan-out 'out'"
        if place == "root":
            read = [one async for one in result.all_outcomes(name)]
            assert [(type(one), one.key) for one in read] == [
                (Cancelled, "3.0"), (Done, "1.0"), (Cancelled, "2.0")
            ]  # fmt: skip
    decisions = await races_of(kept[0], RunPath(run_id="race"))
    assert [(decision.winner, decision.step) for decision in decisions] == [(("act", "1.0"), "out")]


async def test_losers_are_recorded_with_the_winner():
    store = MemoryStore()
    step = fan_out(sleep, over="n", key=str, into="out", until=first())
    app = Application(step, store=store)
    await app.run({"n": [3, 1, -0.5]}, id="race")
    children = {child.key: child for child in await store.children(RunPath(run_id="race"))}
    assert children["3"].status == "cancelled"
    assert children["3"].winner == ("sleep", "1")
    assert children["3"].reason == "key '1' decided fan-out 'out'"
    assert children["-0.5"].status == "failed"
    assert not (await store.children(RunPath(run_id="race")))[0].applied
    again = await app.run(id="race")
    assert again.state["out"] == 1
    loser, _ = again.outcomes("out")
    assert isinstance(loser, Cancelled)
    assert loser.winner == ("sleep", "1")


async def test_losers_that_never_come_up_again_have_lost():
    """The process dies with both under way; in the next life one wins before the other starts."""
    stores = [MemoryStore()]

    @action(reads=["item"], writes=["begun"])
    async def begin(item: int) -> int:
        return item

    @action(reads=["begun"], writes=["end"])
    async def finish(begun: int) -> int:
        if len(stores) == 1 and begun == 2:
            await anyio.sleep(1)
            stores.append(stores[0].copy())  # what the process leaves behind
        await anyio.sleep(9 if begun == 2 or len(stores) == 1 else 0)
        return begun

    both = Graph.chain(begin, finish, name="both")

    def app(limit: int) -> Application:
        step = fan_out(
            both, over="n", key=int, into="out", take="end", until=first(), limits=Limits(limit)
        )
        return Application(step, store=stores[-1])

    with anyio.move_on_after(2):
        await app(2).run({"n": [1, 2]}, id="race")
    result = await app(1).run({"n": [1, 2]}, id="race")
    assert result.state["out"] == 1
    records = await stores[1].children(RunPath(run_id="race"))
    ends = {record.key: (record.status, record.winner) for record in records}
    assert ends == {1: ("succeeded", None), 2: ("cancelled", ("both", 1))}


async def test_a_child_that_failed_in_a_race_is_not_retried():
    store = MemoryStore()
    step = fan_out(sleep, over="n", key=str, into="out", until=first())
    app = Application(step, store=store)
    await app.run({"n": [3, 1, -0.5]}, id="race")
    with pytest.raises(Exception, match="none to retry"):
        await app.retry_failed("race")


async def test_a_lost_race_is_run_again():
    attempts = list[float]()

    @action(reads=["item"], writes=["slept"])
    async def fails_once(item: float) -> float:
        attempts.append(item)
        await anyio.sleep(0.25)
        if len(attempts) <= 2:
            raise ValueError(item)
        return item

    app = Application(
        fan_out(fails_once, over="n", key=str, into="out", until=first()), store=MemoryStore()
    )
    with pytest.raises(NobodyAccepted):
        await app.run({"n": [1, 2]}, id="race")
    result = await app.run(id="race")
    assert result.state["out"] == 1
    assert attempts == [1, 2, 1, 2]


async def test_what_was_accepted_before_counts():
    """The process dies after the first of two: the second decides, and only that is needed."""
    started = list[float]()

    @action(reads=["item"], writes=["slept"])
    async def note(item: float) -> float:
        started.append(item)
        await anyio.sleep(item)
        return item

    async def die_after_the_first(step: FanOut) -> MemoryStore:
        store = MemoryStore()
        kept: list[MemoryStore] = []
        save = store.save

        def saving(batch: Any) -> None:
            save(batch)
            if batch.applied:
                kept.append(store.copy())
                raise OSError("died")

        store.save = saving  # pyright: ignore[reportAttributeAccessIssue]
        with pytest.raises(StoreFailed):
            await Application(step, store=store).run({"n": [3.0, 1.0, 2.0]}, id="race")
        return kept[0]

    for until, into in ((first(2), {"1.0": 1, "2.0": 2}), (quorum(2, by=bool), 1)):
        step = fan_out(note, over="n", key=str, into="out", until=until)
        store = await die_after_the_first(step)
        started.clear()
        result = await Application(step, store=store).run(id="race")
        assert result.state["out"] == into
        assert started == [3, 2], "what was accepted is not run again"
        assert result.outcomes("out").done == 2


# -- streams ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [Limits(1), Limits(9)])
@pytest.mark.parametrize("until", [first(2), quorum(2)])
async def test_a_result_that_was_recorded_decides_when_it_comes_up_last(
    until: Until, limits: Limits
):
    """The first of three succeeds in the second life; the second one did so in the first life."""
    store = MemoryStore()

    @action(reads=["item"], writes=["answer"])
    async def answer(item: int, context: Context) -> str:
        return "yes" if item == 2 else await context.ask("what", f"What is {item}?")

    race_of_three = fan_out(
        answer, over="items", item="item", key=int, into="out", until=until, limits=limits
    )
    app = Application(race_of_three, store=store)
    halted = await app.run({"items": [1, 2, 3]}, id="r")
    assert halted.status == "halted"
    asked = {question.question: question.run_id for question in halted.questions}
    result = await app.run(id="r", answers={(asked["What is 1?"], "what"): "yes"})
    assert result.status == "succeeded"
    assert result.state["out"] == ({1: "yes", 2: "yes"} if until == first(2) else "yes")
    kept = {one.key: one.status for one in await store.children(RunPath(run_id="r", act=app.name))}
    assert kept == {1: "succeeded", 2: "succeeded", 3: "cancelled"}
    (loser,) = result.outcomes("out")
    assert isinstance(loser, Cancelled)
    assert loser.winner == ChildName("answer", 1)  # the last that was accepted


@pytest.mark.parametrize("limits", [1, 2, 9])
@pytest.mark.parametrize("until", [first(2), quorum(2, by=lambda value: value > 0)])
async def test_what_was_accepted_before_counts_before_its_element_comes_up(
    until: Until, limits: int
):
    """A race for two is lost with one result, of the third; two others succeed when it goes on."""
    store, is_up = MemoryStore(), False

    @action(reads=["item"], writes=["answer"])
    async def answer(item: int) -> int:
        if item != 3 and not is_up:
            raise ValueError(item)
        return item

    race_of_four = fan_out(
        answer, over="items", item="item", key=int, into="out", until=until, limits=Limits(limits)
    )
    app = Application(race_of_four, store=store)
    with pytest.raises(NobodyAccepted):
        await app.run({"items": [1, 2, 3, 4]}, id="r")
    is_up = True
    result = await app.run(id="r")
    assert result.state["out"] == ({1: 1, 3: 3} if until == first(2) else 1)
    records = await store.children(RunPath(run_id="r", act=app.name))
    assert [one.key for one in records if one.status == "succeeded"] == [1, 3]
    every = [one async for one in result.all_outcomes("out")]
    assert [one.key for one in every if isinstance(one, Done) and one.used] == [1, 3]
    decision = next(one for one in await store.read(RunPath(run_id="r")) if type(one) is Decision)
    assert decision.winners == (ChildName("answer", 1), ChildName("answer", 3))


@pytest.mark.parametrize("until", [first(2), quorum(2, by=lambda value: value > 0)])
async def test_what_was_accepted_before_does_not_count_where_it_runs_anew(until: Until):
    """The version of what it executes is another one: its old result is taken out."""
    store, is_up, version = MemoryStore(), False, "1"

    def app() -> Application:
        @action(reads=["item"], writes=["answer"], version=version)
        async def answer(item: int) -> int:
            if item != 1 and not is_up:
                raise ValueError(item)
            return item + 10 * int(version)

        over = fan_out(
            answer, over="items", item="item", key=int, into="out", until=until, limits=Limits(1)
        )
        return Application(over, store=store, name="app")

    with pytest.raises(NobodyAccepted):
        await app().run({"items": [1, 2, 3]}, id="r")
    is_up, version = True, "2"
    result = await app().run(id="r")
    assert result.state["out"] == ({1: 21, 2: 22} if until == first(2) else 21)


async def test_after_a_crash_only_the_winner_runs_again_from_its_start():
    starts = list[str]()
    first = stream("first", [], starts=starts)
    winner = Graph.chain(
        sleeper("before", 0.5).bind(name="before"),
        stream("a", [(0.5, "a"), (3, "b")], starts=starts),
        name="winner",
    )
    other = stream("other", [(2, "x")], starts=starts)
    step = race(winner, other, into="out", take="text", until=first_item())
    store, kept = MemoryStore(), list[MemoryStore]()
    save = store.save

    def saving(batch: Any) -> None:
        save(batch)
        if batch.unapplied:  # the loser is recorded
            kept.append(store.copy())
            raise OSError("died")

    store.save = saving  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(StoreFailed):
        await Application(step, store=store).run({}, id="race")
    assert starts == ["other", "a"]
    starts.clear()
    began = anyio.current_time()
    result = await Application(step, store=kept[0]).run(id="race")
    assert result.state["out"] == "a: ['a', 'b']"
    assert starts == ["a"]
    assert anyio.current_time() - began == 4, "all of it, its first step too"
    (loser,) = result.outcomes("out")
    assert isinstance(loser, Cancelled)
    assert loser.winner == ChildName("winner", "")
    assert first


def crash_stream(on_break: Any, **manner: Any) -> int:
    async def scenario(store: Store) -> Counter[str]:
        step = race(
            stream("a", [(1, "a"), (1, ValueError() if on_break == "restart" else "b")]),
            Graph.chain(sleeper("sleeper", 0.5), stream("b", [(1.5, "b"), (1, "c")]), name="b"),
            stream("c", [(3, "x")], cleanup=0.5),
            into="out", take="text", until=first_item(on_break=on_break),
        )  # fmt: skip
        app = Application(Graph.chain(step, sleeper("last", 1)), store=store)
        result = await app.run({}, id="race")
        ledger = result.outcomes("out")
        assert ledger.done == 1
        return Counter({result.state["out"]: 1})

    # The save of one contestant hangs, and meanwhile another one wins.
    is_overtaken = manner.get("how") == "hangs"

    async def check(recovery: Recovery[Counter[str]]) -> None:
        assert recovery.result == recovery.clean or (on_break == "restart" and is_overtaken)
        children = await recovery.store.children(RunPath(run_id="race"), "out")
        assert sum(child.applied is not None for child in children) == 1

    return crash_everywhere(scenario, check, **manner)


@pytest.mark.parametrize("on_break", ["fail", "restart"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("delay", [0, 0.25])
def test_a_race_of_streams_keeps_its_recorded_winner(on_break: str, backend: Backend, delay: float):
    assert crash_stream(on_break, backend=backend, delay=delay, limit=30) >= 8


@pytest.mark.slow
@pytest.mark.parametrize("on_break", ["fail", "restart"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("delay", [0, 0.25])
@pytest.mark.parametrize("how", ["dies", "fails", "hangs"])
def test_a_race_of_streams_keeps_it_wherever_the_store_goes_wrong(
    on_break: str, backend: Backend, delay: float, how: Any
):
    assert crash_stream(on_break, backend=backend, delay=delay, how=how, times=2, seed=1) >= 8


async def test_a_decided_race_that_is_not_taken_up_again_ends_as_it_was_decided():
    """Its first item has decided it, the process dies, and the next one fails before it."""
    life = {"first": True}

    @action(writes=["slept"])
    async def other() -> float:
        if not life["first"]:
            raise LookupError("not any more")
        await anyio.sleep(60)
        return 60.0

    @action(writes=["begun"])  # so that each contestant has a record
    async def begin() -> bool:
        return True

    slow, quick = (
        Graph.chain(begin, stream("tell", [(at, "so"), (9, "on")]), name=name)
        for name, at in (("slow", 2), ("quick", 1))
    )
    inner = race(slow, quick, into="out", take="text", name="race", until=first_item())
    racing = Graph.chain(inner, name="racing")
    step = fan_out([other, racing], into="outs", name="both", take=lambda state: "")
    store = MemoryStore()
    kept: list[MemoryStore] = []
    save = store.save

    def saving(batch: Any) -> None:
        save(batch)
        if batch.decision is not None and not kept:
            kept.append(store.copy())
            raise OSError("died")

    store.save = saving  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises((StoreFailed, ExceptionGroup)):
        await Application(step, store=store, name="app").run({}, id="x")
    life["first"] = False
    with pytest.raises(ExceptionGroup):
        await Application(step, store=kept[0], name="app").run(id="x")
    path = RunPath(run_id="x")
    (key,) = [one.key for one in await kept[0].children(path) if one.act == "racing"]
    racing_path = RunPath(parent=path, step="both", act="racing", key=key)
    ended = {one.act: one for one in await kept[0].children(racing_path)}
    assert {one.status for one in ended.values()} == {"cancelled"}
    assert ended["quick"].winner is None, "it would have won"
    assert ended["slow"].winner == ("quick", ended["slow"].key)
    assert ended["slow"].reason != ended["quick"].reason
