"""Runs that go on where they stood: cancelled everywhere, and stopped at every single write.

`Watch` looks over the shoulder of an application in every life of its run, and notices whatever is
wrong: a step that runs although the store has it as completed, a hook that is told what the store
doesn't have, an update with a number that is not the next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import anyio
import pytest
from anyio.lowlevel import checkpoint

from shoal import (
    Application,
    Context,
    Done,
    Each,
    ErrorInfo,
    Failed,
    Graph,
    Hook,
    Limits,
    MapActions,
    MapStates,
    MemoryStore,
    Outcome,
    ParallelAction,
    Retry,
    RunPath,
    RunResult,
    State,
    Task,
    Tolerate,
    action,
    fan_out,
    when,
)
from shoal.events import ChildEnded, RunEnded, StateUpdated, StepEnded, Update
from shoal.stores import Completed, Store
from shoal.stores._memory import _Kept
from shoal.testing import Attempt, RecordingHook, Recovery, cancel_everywhere, crash_everywhere
from shoal.types import Act

Backend = Literal["asyncio", "trio"]
How = Literal["dies", "fails", "hangs"]

PLACES = 8  # of each sweep in the gate; `nox -s soak` tries them all


# -- watching --------------------------------------------------------------------------------------


def kept_by(store: Store) -> MemoryStore:
    """The store in memory that keeps what ``store`` is given."""
    return store if isinstance(store, MemoryStore) else cast("Any", store)._kept


def kept_runs(store: MemoryStore) -> Iterator[tuple[RunPath, _Kept]]:
    """All runs in a store, with what it keeps of each."""

    def below(path: RunPath, kept: _Kept) -> Iterator[tuple[RunPath, _Kept]]:
        yield path, kept
        for (step, visit), children in kept.visits.items():
            for (act, key), child in children.items():
                at = RunPath(parent=path, step=step, visit=visit, act=act, key=key)
                yield from below(at, child)

    for run_id, kept in store._roots.items():
        yield from below(RunPath(run_id=run_id), kept)


def kept_of(store: MemoryStore, path: RunPath) -> _Kept:
    kept = store._known(path)
    assert kept is not None, f"the store doesn't know {path!r}"
    return kept


def check_histories(store: MemoryStore) -> None:
    """Updates are numbered from 1, without gaps, and whoever applied a child has that number."""
    for path, kept in kept_runs(store):
        updates = [entry for entry in kept.history if isinstance(entry, Update)]
        assert [one.number for one in updates] == list(range(1, len(updates) + 1)), path
        numbers = [one.record.applied for one in kept.children() if one.record is not None]
        applied = [number for number in numbers if number is not None]
        assert len(set(applied)) == len(applied), "two children applied by one update"
        assert set(applied) <= {one.number for one in updates}


@dataclass
class Watch(Hook):
    """Everything that one run does, in all its lives."""

    bodies: list[tuple[RunPath, str, int]] = field(default_factory=list[tuple[RunPath, str, int]])
    store: MemoryStore = field(default_factory=MemoryStore)
    completed: set[tuple[str, str, int]] = field(default_factory=set[tuple[str, str, int]])
    succeeded: set[str] = field(default_factory=set[str])

    moody: set[str] = field(default_factory=set[str])
    """Runs that have failed once in this life."""

    def begin(self, store: Store) -> None:
        """Begin a life: from now on, what the store has as completed must not run."""
        self.store = kept_by(store)
        self.completed, self.succeeded, self.moody = set(), set(), set()
        for path, kept in kept_runs(self.store):
            visits = Counter[str]()
            for entry in kept.history:
                if isinstance(entry, Completed):
                    self.completed.add((path.id, entry.step, visits[entry.step]))
                    visits[entry.step] += 1
            if kept.record is not None and kept.record.status == "succeeded":
                self.succeeded.add(path.id)

    def ran(self, context: Context) -> None:
        """Hear that the body of an action runs."""
        run, step = context._run, context.step
        self.bodies.append((context.path, step, run.visit(step)))
        assert (context.run_id, step, run.visit(step)) not in self.completed, "it was completed"
        path: RunPath | None = context.path
        while path is not None:
            assert path.id not in self.succeeded, f"{path!r} was completed"
            path = path.parent

    def on_state_updated(self, event: StateUpdated) -> None:
        assert event.update in kept_of(self.store, event.path).history
        if event.outcome is not None:
            record = kept_of(self.store, event.outcome.path).record
            assert record is not None
            assert record.applied == event.update.number

    def on_step_ended(self, event: StepEnded) -> None:
        if event.status == "succeeded":
            kept = kept_of(self.store, event.path)
            ended = kept.record is not None and kept.record.status == "succeeded"
            last = [entry for entry in kept.history if isinstance(entry, Completed)]
            assert ended or last[-1].step == event.step

    def on_child_ended(self, event: ChildEnded) -> None:
        if getattr(event.outcome, "reason", "") == "its outcome could not be saved":
            return
        record = kept_of(self.store, event.outcome.path).record
        assert record is not None
        kind = {"succeeded": "Done"}.get(record.status or "", (record.status or "").capitalize())
        assert kind == type(event.outcome).__name__

    def on_run_ended(self, event: RunEnded) -> None:
        if event.status == "succeeded":
            kept = kept_of(self.store, event.path)
            assert (kept.status if kept.record is None else kept.record.status) == "succeeded"


def comparable(value: object) -> Any:
    """Values without types of ours, and without what differs from run to run."""
    match value:
        case ErrorInfo():
            return value.type, value.message
        case Mapping():
            items = cast("Mapping[Any, object]", value).items()
            return {key: comparable(inner) for key, inner in items}
        case str():
            return value
        case Sequence():
            return [comparable(inner) for inner in cast("Sequence[object]", value)]
        case _:
            return value


def outcomes_of(result: RunResult[Any]) -> dict[str, Any]:
    return {
        step: [
            (
                (ledger.done, ledger.failed, ledger.cancelled, ledger.skipped),
                [
                    (type(one).__name__, one.act, one.key, one.position, one.element, received(one))
                    for one in ledger
                ],
            )
            for ledger in ledgers
        ]
        for step, ledgers in result._ledgers.items()
    }


def received(outcome: Outcome) -> str:
    match outcome:
        case Failed():
            return repr(outcome.error)
        case Done():
            return ""
        case _:
            return outcome.reason


def summary(result: RunResult[Any], *, grows: bool) -> Any:
    """What is compared: the state, the order of what is in input order, and how children ended.

    What grows is in the order of discovery, which is anybody's.
    """
    fields = {name: comparable(value) for name, value in result.state.items()}
    orders = [] if grows else [list(fields.get(name, ())) for name in ("out", "errors")]
    try:
        result.raise_for_failures()
        failures = []
    except ExceptionGroup as group:
        failures = [repr(error) for error in group.exceptions]
    return fields, orders, outcomes_of(result), failures


# -- programs --------------------------------------------------------------------------------------

WATCH = Watch()
"""Of the program that runs: actions are defined once, and have to know."""


@action(reads=["item"], writes=["leaf"])
async def leaf(item: int, context: Context) -> int:
    WATCH.ran(context)
    await anyio.sleep(1 + item % 2)
    if item == 13:
        raise ValueError(item)
    return 10 * item


@action(reads=["item"], writes=["leaf"])
async def moody(item: int, context: Context) -> int:
    """Fails the first time in each life."""
    WATCH.ran(context)
    await anyio.sleep(item % 2)
    if context.run_id not in WATCH.moody:
        WATCH.moody.add(context.run_id)
        raise ConnectionError(item)
    return 10 * item


@action(reads=["leaf"], writes=["leaf"])
async def plus_one(leaf: int, context: Context) -> int:
    WATCH.ran(context)
    await checkpoint()
    return leaf + 1


@action(reads=["leaf"], writes=["leaf"], executor="loop")
def negate(leaf: int, context: Context) -> int:
    WATCH.ran(context)
    return -leaf


@action(reads=["item"], writes=["below"])
async def spread(item: int, context: Context) -> list[int]:
    WATCH.ran(context)
    return [10 * item + n for n in (1, 2, 4)]


@action(writes=["first"])
async def first(context: Context) -> str:
    WATCH.ran(context)
    await anyio.sleep(1)
    return "first"


@action(reads=["first"], writes=["last"])
async def last(first: str, context: Context) -> int:
    WATCH.ran(context)
    await checkpoint()
    return len(first)


@action()
async def nothing(context: Context) -> None:
    WATCH.ran(context)


@action(reads=["turn"], writes=["turn"])
async def next_turn(turn: int, context: Context) -> int:
    WATCH.ran(context)
    return turn + 1


@action(reads=["item"], writes=["divisors"])
async def divide(item: int, context: Context) -> list[int]:
    WATCH.ran(context)
    await anyio.sleep(item % 3)
    return [n for n in range(1, item) if item % n == 0]


@action(reads=["item"], writes=["half"])
async def halve(item: int, context: Context) -> int:
    WATCH.ran(context)
    await anyio.sleep(1)
    return item // 2


@action(reads=["n"], writes=["found"])
async def search(n: list[int], context: Context) -> dict[str, object]:
    WATCH.ran(context)
    found: dict[str, object] = {}
    async with context.fan_out(name="tries", limits=Limits(3)) as group:
        for item in n:
            group.start(two_steps, {"item": item}, key=item)
        group.start_each(leaf, over=n)
        async for outcome in group:
            done = isinstance(outcome, Done)
            found[f"{outcome.act} {outcome.key}"] = outcome.value if done else "failed"
    return found


two_steps = Graph.chain(leaf, plus_one, name="two_steps")
three_steps = Graph.chain(leaf, plus_one, negate, name="three_steps")


def total(state: State, outcome: Outcome) -> State:
    """In whatever order they arrive, it comes to the same."""
    value = outcome.value if isinstance(outcome, Done) else 0
    about = repr((outcome.act, outcome.element, value))
    state = state.update(seen=sorted([*state.get("seen", ()), about]))
    return state.increment(count=1, sum=value or 0)


def smaller(state: State, outcome: Done) -> Iterable[int]:
    return outcome.value


def half(state: State, outcome: Done) -> Iterable[int]:
    return [outcome.element // 2] if outcome.element > 1 else []


def sequential() -> Graph:
    return Graph.chain(first, nothing, last, next_turn)


def loop() -> Graph:
    step = fan_out(leaf, over="n", key=int, into="out", limits=Limits(2))
    keyless = fan_out(two_steps, over="n", into="list", limits=Limits(2))
    again = when(lambda turn: turn < 2)
    ways = (step, keyless), (keyless, next_turn), (next_turn, step, again), (next_turn, first)
    return Graph(*ways, entry=step)


def mapping() -> Graph:
    return Graph.chain(first, fan_out(two_steps, over="n", key=str, into="out"), last)


def listing() -> Graph:
    return Graph.chain(fan_out(three_steps, over="n", into="out", limits=Limits(2)))


def nested() -> Graph:
    inner = fan_out(two_steps, over="below", key=int, into="leaves", limits=Limits(2), take="leaf")
    count = fan_out(leaf, over="below", reduce=total, writes=["count", "sum", "seen"], name="sum")
    children = Graph.chain(spread, inner, count, name="children")
    outer = fan_out(children, over="n", into="out", take=["leaves", "sum"], limits=Limits(2))
    return Graph.chain(first, outer, last)


def only_reduced_below() -> Graph:
    """The children save nothing by themselves before their own children do."""
    below = fan_out(
        three_steps, over=lambda state: [state["item"], 7], reduce=total, reads=["item"],
        writes=["count", "sum", "seen"], name="below", item="item",
    )  # fmt: skip
    return Graph.chain(fan_out(Graph.chain(below), over="n", into="out", take="sum"))


def frontier() -> Graph:
    step = fan_out(divide, over="n", key=int, into="out", grow=smaller, limits=Limits(3))
    return Graph.chain(first, step, last)


def keyless_frontier() -> Graph:
    step = fan_out(
        two_halves, over="n", grow=half, reduce=total, writes=["count", "sum", "seen"],
        name="halves", limits=Limits(2),
    )  # fmt: skip
    return Graph.chain(step)


two_halves = Graph.chain(halve, nothing, name="two_halves")


def frontier_of_acts() -> Graph:
    def new_ones(state: State, outcome: Done) -> Iterable[int]:
        return outcome.value if outcome.act == "divide" else [outcome.value, 1]

    step = fan_out([divide, halve], over="n", key=int, into="out", grow=new_ones, limits=Limits(3))
    return Graph.chain(step)


def by_hand() -> Graph:
    return Graph.chain(first, search, last)


def in_a_node() -> Graph:
    inner = fan_out(two_steps, over="below", key=str, into="leaves", limits=Limits(2), take="leaf")
    node = Graph.chain(spread, inner, first, name="node")
    outer = fan_out(Graph.chain(node, last, name="outer"), over="n", into="out", take="leaves")
    return Graph.chain(first, Graph.chain(outer, last, name="whole"), next_turn)


class Summed(ParallelAction):
    reads = ("n",)
    writes = ("count", "sum", "seen", "finished")

    def tasks(self, state: State, inputs: Mapping[str, Any]) -> Iterator[Task]:
        for n in state["n"]:
            yield Task(two_steps, {"item": n}, key=n, element=n)
            yield Task(halve, {"item": n}, key=n, element=n)

    def reduce(self, state: State, outcome: Outcome) -> State:
        return total(state, outcome)

    def finish(self, state: State) -> State:
        return state.update(finished=state["count"])


class Mapped(MapStates):
    reads = ("n",)
    writes = ("count", "sum", "seen")
    limits = Limits(2)

    def action(self, state: State, inputs: Mapping[str, Any]) -> Act:
        return three_steps

    async def states(self, state: State, inputs: Mapping[str, Any]) -> AsyncIterator[Any]:
        for n in state["n"]:
            await anyio.sleep(0.5)
            yield {"item": n}

    def reduce(self, state: State, outcome: Done | Failed) -> State:
        return total(state, outcome)


class Several(MapActions):
    reads = ("n",)
    writes = ("count", "sum", "seen")

    def actions(self, state: State, inputs: Mapping[str, Any]) -> Iterator[Act]:
        for n in state["n"]:
            yield halve.bind(name=f"halve {n}")

    def state(self, state: State, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"item": 8}

    def reduce(self, state: State, outcome: Done | Failed) -> State:
        return total(state, outcome)


def classes() -> Graph:
    return Graph.chain(Summed(), Mapped(), Several())


@dataclass
class Leaf:
    item: int
    leaf: int = 0
    more: tuple[int, ...] = ()


@dataclass
class Whole:
    n: list[int]
    turn: int
    out: dict[int, float] = field(default_factory=dict[int, float])
    list_: list[Leaf] = field(default_factory=list[Leaf])
    first: str = ""
    last: int = 0


def typed() -> Graph:
    child = Graph.chain(leaf, plus_one, name="child", state=Leaf)
    into_map = fan_out(child, over="n", key=int, into="out", take="leaf", limits=Limits(2))
    into_list = fan_out(child, over="n", into="list_", take=lambda state: state.data)
    return Graph.chain(first, into_map, into_list, last, state=Whole)


def at_most() -> Graph:
    grown = fan_out(
        divide, over="n", key=int, into="out", grow=smaller, limits=Limits(1), at_most=4
    )
    plain = fan_out(two_steps, over="n", into="list", at_most=2, limits=Limits(1))
    return Graph.chain(grown, plain)


def collecting() -> Graph:
    step = fan_out(
        two_steps, over="n", key=str, into="out", on_error="collect", errors_into="errors",
        limits=Limits(2),
    )  # fmt: skip
    keyless = fan_out(leaf, over="n", into="list", on_error="collect", errors_into="by position")
    return Graph.chain(first, step, keyless, last)


def ignoring() -> Graph:
    return Graph.chain(fan_out(two_steps, over="n", into="out", on_error="ignore"), first)


def tolerating() -> Graph:
    step = fan_out(
        leaf, over="n", into="out", on_error=Tolerate(count=2), errors_into="errors",
        limits=Limits(2),
    )  # fmt: skip
    return Graph.chain(step, first)


def folding_failures() -> Graph:
    step = fan_out(
        two_steps, over="n", key=int, reduce=total, writes=["count", "sum", "seen"],
        on_error="collect", name="fold", limits=Limits(2),
    )  # fmt: skip
    return Graph.chain(step, first)


def neither() -> Graph:
    return Graph.chain(fan_out(two_steps, over="n", name="effects", limits=Limits(2)), first)


def retrying() -> Graph:
    """Children that are tried again, of children that are."""
    each = Each(retry=Retry(9, on=ConnectionError, initial=0.25))
    steps = Graph.chain(first, moody, plus_one, name="steps")
    inner = fan_out(steps, over="below", key=int, into="leaves", limits=Limits(2), take="leaf")
    children = Graph.chain(spread, inner, name="children")
    outer = fan_out(children, over="n", into="out", take="leaves", each=each, limits=Limits(2))
    flat = fan_out(steps, over="n", key=str, into="flat", each=each, take="leaf")
    return Graph.chain(outer, flat)


def impatient() -> Graph:
    """Children that don't wait for a store that hangs, of children that are tried again then."""
    each = Each(retry=Retry(3, on=TimeoutError, initial=0.25))
    inner = fan_out(
        three_steps, over="below", key=int, into="leaves", take="leaf", limits=Limits(2),
        timeout=20,
    )  # fmt: skip
    children = Graph.chain(spread, inner, name="children")
    return Graph.chain(fan_out(children, over="n", into="out", take="leaves", each=each))


def acts() -> Graph:
    each = fan_out(
        [two_steps, halve], over="n", key=str, into="out", on_error="collect",
        errors_into="errors", limits=Limits(3),
    )  # fmt: skip
    listed = fan_out([leaf, halve], over="n", into="list", on_error="ignore", limits=Limits(3))
    at_once = fan_out([first, Graph.chain(first, last, name="both")], into="acts", take="first")
    return Graph.chain(each, listed, at_once)


def already_there() -> Graph:
    step = fan_out(two_steps, over="n", key=int, into="out", limits=Limits(2))
    again = when(lambda turn: turn < 2)
    return Graph((step, next_turn), (next_turn, step, again), (next_turn, first), entry=step)


PROGRAMS: dict[str, tuple[Callable[[], Graph], Sequence[int], Mapping[str, object]]] = {
    "sequential": (sequential, (), {}),
    "loop": (loop, (1, 2, 3), {}),
    "mapping": (mapping, (1, 2, 3, 4), {}),
    "listing": (listing, (3, 4, 5), {}),
    "nested": (nested, (1, 2), {}),
    "only reduced below": (only_reduced_below, (1, 2), {}),
    "frontier": (frontier, (12, 13, 4), {}),
    "keyless frontier": (keyless_frontier, (9, 4), {}),
    "frontier of acts": (frontier_of_acts, (9, 4), {}),
    "by hand": (by_hand, (1, 13, 2), {}),
    "in a node": (in_a_node, (1, 2), {}),
    "classes": (classes, (1, 2, 3), {}),
    "typed": (typed, (1, 2, 3), {}),
    "at most": (at_most, (12, 9, 13), {}),
    "collecting": (collecting, (1, 13, 2), {}),
    "ignoring": (ignoring, (13, 1, 2), {}),
    "tolerating": (tolerating, (1, 13, 2, 13), {}),
    "folding failures": (folding_failures, (1, 13, 2), {}),
    "neither": (neither, (1, 2, 3), {}),
    "retrying": (retrying, (1, 2), {}),
    "impatient": (impatient, (1, 2), {}),
    "acts": (acts, (1, 13), {}),
    "already there": (already_there, (1, 2, 3), {"out": {2: "there", 7: "other"}}),
}


@dataclass
class Subject:
    """A program, and how it is run."""

    name: str

    def __post_init__(self) -> None:
        make, n, given = PROGRAMS[self.name]
        self.graph = make()
        self.fields: dict[str, object] = {"n": list(n), "turn": 0, **given}
        if self.name != "typed":
            return
        self.fields = {"n": list(n), "turn": 0}

    async def run(self, store: Store) -> Any:
        """Run it, or go on with it; return what is to be compared."""
        WATCH.begin(store)
        hook = RecordingHook()
        app = Application(self.graph, name=self.name, store=store, hooks=[hook, WATCH])
        try:
            result = await app.run(self.fields, id="run")
            return summary(result, grows="frontier" in self.name or self.name == "at most")
        finally:
            hook.assert_paired()
            check_histories(kept_by(store))

    async def check(self, result: Any, clean: Any, store: MemoryStore) -> None:
        """Assert what holds at the end of all lives."""
        assert result == clean
        check_histories(store)
        before = len(WATCH.bodies)
        assert await self.run(store) == clean, "what is recorded is not what it came to"
        assert len(WATCH.bodies) == before, "a run that has succeeded runs nothing"


every_program = pytest.mark.parametrize("name", PROGRAMS)
every_backend = pytest.mark.parametrize("backend", ["asyncio", "trio"])


@pytest.fixture(autouse=True)
def new_watch() -> None:
    WATCH.bodies.clear()


# -- stopped at every write ------------------------------------------------------------------------


def crash(name: str, **manner: Any) -> int:
    subject = Subject(name)

    async def check(recovery: Recovery[Any]) -> None:
        await subject.check(recovery.result, recovery.clean, recovery.store)

    return crash_everywhere(subject.run, check, **manner)


@every_program
@every_backend
def test_stopped_at_some_writes(name: str, backend: Backend):
    assert crash(name, backend=backend, limit=2 * PLACES) >= 8


@every_program
@every_backend
@pytest.mark.parametrize("times", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_stopped_again_and_again(name: str, backend: Backend, times: int):
    assert crash(name, backend=backend, times=times, limit=PLACES, seed=times) >= 5


@every_program
@every_backend
def test_stopped_while_saves_take_their_time(name: str, backend: Backend):
    assert crash(name, backend=backend, delay=0.5, seed=3, limit=PLACES) >= 5


@every_program
@every_backend
@pytest.mark.parametrize("how", ["fails", "hangs"])
def test_a_store_that_goes_wrong_at_a_single_call(name: str, backend: Backend, how: How):
    assert crash(name, backend=backend, how=how, times=2, seed=1, limit=PLACES) >= 5


@pytest.mark.slow
@pytest.mark.timeout(600)
@every_program
@every_backend
@pytest.mark.parametrize("how", ["dies", "fails", "hangs"])
@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("manner", [{}, {"seed": 1}, {"delay": 0.5, "seed": 2}], ids=repr)
def test_a_store_that_goes_wrong_everywhere(
    name: str, backend: Backend, how: How, times: int, manner: dict[str, Any]
):
    assert crash(name, backend=backend, how=how, times=times, **manner) >= 8


# -- cancelled everywhere --------------------------------------------------------------------------


def cancel(
    name: str,
    how: tuple[Backend, Literal["scope", "native"]],
    *,
    limit: int | None,
    seed: int | None,
) -> int:
    subject = Subject(name)
    clean: Any = None
    backend, kind = how

    async def scenario(attempt: Attempt) -> None:
        nonlocal clean
        store = MemoryStore()
        ending = await attempt(subject.run, store)
        assert not store._claims
        if ending.place == 0:
            clean = ending.result
        await subject.check(await subject.run(store), clean, store)

    return cancel_everywhere(scenario, backend=backend, how=kind, limit=limit, seed=seed)


every_way = pytest.mark.parametrize(
    "how", [("asyncio", "scope"), ("asyncio", "native"), ("trio", "scope")], ids=" ".join
)


@every_program
@every_way
def test_cancelled_at_some_places(name: str, how: tuple[Backend, Literal["scope", "native"]]):
    assert cancel(name, how, limit=2 * PLACES, seed=1) > 5


@pytest.mark.slow
@pytest.mark.timeout(600)
@every_program
@every_way
@pytest.mark.parametrize("seed", [None, 1])
def test_cancelled_everywhere(
    name: str, how: tuple[Backend, Literal["scope", "native"]], seed: int | None
):
    assert cancel(name, how, limit=None, seed=seed) > 5
