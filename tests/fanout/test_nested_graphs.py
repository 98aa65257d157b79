"""Graphs as nodes of graphs: one child, one update, saved together, whatever becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Literal

import anyio
import pytest
from anyio.lowlevel import checkpoint
from pydantic import BaseModel

from shoal import (
    END,
    Application,
    Cancelled,
    Done,
    Failed,
    Graph,
    Hook,
    Runtime,
    State,
    StoreFailed,
    action,
    fan_out,
    when,
)
from shoal.errors import DepthExceeded, HookFailed, InvalidState, MissingField
from shoal.events import ChildEnded, ChildStarted, Drop, RunEnded, RunStarted, Set, StateUpdated
from shoal.stores._protocol import Batch, NullStore
from shoal.testing import Attempt, RecordingHook, cancel_everywhere, no_leaks
from tests.engine.test_cancellation import Watched, seen_runs

__all__ = ["seen_runs"]  # a fixture

pytestmark = pytest.mark.anyio


@action(reads=["n"], writes=["n"])
async def more(n: int) -> int:
    await anyio.sleep(1)
    return n + 1


@action(reads=["n"], writes=["twice"])
async def double(n: int) -> int:
    await anyio.sleep(1)
    return 2 * n


@action(reads=["twice"], writes=["text"])
async def show(twice: int) -> str:
    return f"it is {twice}"


@action(reads=["n"], writes=["n", "twice", "late"])
async def drop(state: State) -> State:
    return state.drop("n", "twice", "late")


@action(reads=["n"], writes=["twice"])
async def fail(n: int) -> int:
    await anyio.sleep(1)
    raise LookupError(n)


inner = Graph.chain(more, double, name="inner")


# -- what it does --------------------------------------------------------------------------------


async def test_it_is_one_child_whose_writes_arrive_in_one_update():
    watched = Watched(Graph.chain(inner, show, name="outer"))
    async with no_leaks():
        state = await watched.go({"n": 1, "other": 5})
    watched.check()
    assert state == {"n": 2, "twice": 4, "text": "it is 4", "other": 5}
    (started,) = watched.hook.of(ChildStarted)
    (ended,) = watched.hook.of(ChildEnded)
    path = started.child
    assert (started.step, path.key, path.act, path.step, path.visit, path.depth) == (
        "inner", "", "inner", "inner", 0, 1,
    )  # fmt: skip
    assert path.parent is not None
    assert path.parent.id == watched.id
    outcome = ended.outcome
    assert isinstance(outcome, Done)
    assert outcome.run_id == path.id
    assert outcome.state == {"n": 2, "twice": 4}  # what it doesn't read, it doesn't have
    first, _ = watched.of(StateUpdated)
    assert first.update.operations == (Set("n", 2), Set("twice", 4))
    assert first.outcome == outcome


async def test_parent_and_child_are_published_in_order():
    hook = RecordingHook()
    await Application(Graph.chain(inner, name="outer"), hooks=[hook]).run({"n": 1})
    assert [f"{'-' * event.depth}{type(event).__name__}" for event in hook.events] == [
        "RunStarted",
        "StepStarted",
        "ChildStarted",
        "-RunStarted",
        "-StepStarted",
        "-StateUpdated",
        "-StepEnded",
        "-StepStarted",
        "-StateUpdated",
        "-StepEnded",
        "-RunEnded",
        "StateUpdated",
        "ChildEnded",
        "StepEnded",
        "RunEnded",
    ]


class Batches(NullStore):
    """A store that keeps what it is given, or fails at one save."""

    def __init__(self, fails_at: int = 0) -> None:
        self.batches: list[Batch] = []
        self.calls = 0
        self.fails_at = fails_at

    def save(self, batch: Batch) -> None:
        self.calls += 1
        if self.calls == self.fails_at:
            raise OSError("disk full")
        self.batches.append(batch)


async def test_its_end_and_its_parents_update_are_one_save():
    store = Batches()
    async with Runtime(store=store) as runtime:
        await runtime.run(Application(Graph.chain(inner, name="outer")), {"n": 1})
    child, applied, completed = store.batches
    assert (child.path.act, len(child.updates), child.step_completed) == ("inner", 1, "more")
    (run,) = applied.applied
    assert [one.operations for one in applied.updates] == [(Set("n", 2), Set("twice", 4))]
    assert run.last_update is not None
    assert run.last_update.operations == (Set("twice", 4),)
    assert (completed.updates, completed.step_completed) == ((), "inner")
    assert completed.ended == "succeeded", "nobody hears of the step first"


async def test_each_visit_in_a_loop_is_a_child_of_its_own():
    watched = Watched(Graph((inner, inner, when(lambda n: n < 4)), (inner, END), name="loop"))
    state = await watched.go({"n": 1})
    watched.check()
    assert state == {"n": 4, "twice": 8}
    children = [event.child for event in watched.hook.of(ChildStarted)]
    assert [child.visit for child in children] == [0, 1, 2]
    assert len({child.id for child in children}) == 3


DROPS: dict[str, tuple[Graph, dict[str, object]]] = {
    "what it was given": (Graph.chain(drop, name="g"), {"n": 1}),
    "what it had written": (Graph.chain(double, drop, name="g"), {"n": 1, "twice": 7}),
    "two levels down": (
        Graph.chain(Graph.chain(double, drop, name="h"), name="g"),
        {"n": 1, "twice": 7},
    ),
}


@pytest.mark.parametrize("case", DROPS)
async def test_what_it_drops_is_dropped(case: str):
    graph, given = DROPS[case]
    watched = Watched(Graph.chain(graph, name="outer"))
    state = await watched.go({**given, "kept": 1})
    watched.check()
    assert state == {"kept": 1}
    assert Drop("n") in watched.of(StateUpdated)[0].update.operations


async def test_what_it_may_write_and_does_not_stays():
    @action(reads=["n"], writes=["note", "n"])
    async def maybe(state: State) -> State:
        return state

    class Noted(BaseModel):
        n: int = 0
        note: str = "none"

    for graph in (Graph.chain(maybe, name="g"), Graph.chain(maybe, name="g", state=Noted)):
        watched = Watched(Graph.chain(graph, name="outer"))
        state = await watched.go({"n": 1, "note": "mine"})
        watched.check()
        assert state == {"n": 1, "note": "mine"}
        assert not watched.of(StateUpdated)[0].update.operations


async def test_three_deep():
    deep = inner
    for name in ("second", "third"):
        deep = Graph.chain(deep, name=name)
    watched = Watched(Graph.chain(deep, show, name="outer"))
    state = await watched.go({"n": 1})
    watched.check()
    assert state == {"n": 2, "twice": 4, "text": "it is 4"}
    assert [event.child.depth for event in watched.hook.of(ChildStarted)] == [1, 2, 3]
    app = Application(Graph.chain(deep, name="outer"), max_depth=3)
    assert (await app.run({"n": 1})).state["n"] == 2
    with pytest.raises(DepthExceeded, match="'inner' would run 3 levels below the root; at most 2"):
        await Application(Graph.chain(deep, name="outer"), max_depth=2).run({"n": 1})


async def test_a_part_is_a_node():
    graph = Graph((more, double), (double, show), (show, END), name="whole")
    for part, expected in (
        (graph.part(ends_after=["more"], name="p"), {"n": 2}),
        (graph.part(entry="double", name="p"), {"n": 1, "twice": 2, "text": "it is 2"}),
        (graph.part(entry="double", ends_after=["double"], name="p"), {"n": 1, "twice": 2}),
    ):
        watched = Watched(Graph.chain(part, name="outer"))
        assert await watched.go({"n": 1}) == expected
        watched.check()


async def test_in_a_fan_out():
    child = Graph.chain(Graph.chain(double, show, name="low"), name="child")
    watched = Watched(fan_out(child, over="ns", item="n", key=int, into="texts", take="text"))
    state = await watched.go({"ns": [1, 2]})
    watched.check()
    assert state["texts"] == {1: "it is 2", 2: "it is 4"}
    keys = [(event.child.depth, event.child.key) for event in watched.hook.of(ChildStarted)]
    assert keys == [(1, 1), (2, ""), (1, 2), (2, "")]
    lowest = [event.child.id for event in watched.hook.of(ChildStarted) if event.child.depth == 2]
    assert len(set(lowest)) == 2


async def test_its_fan_outs_are_found_by_path():
    squares = fan_out(double, over="ns", item="n", into="doubles")
    graph = Graph.chain(Graph.chain(squares, name="low"), name="mid")
    result = await Application(Graph.chain(graph, name="top")).run({"ns": [1, 2]})
    assert result.state["doubles"] == [2, 4]
    assert result.outcomes("mid/low/doubles").done == 2
    with pytest.raises(KeyError, match="mid/low/doubles"):
        result.outcomes("doubles")
    loop = Graph((graph, graph, when(lambda doubles: len(doubles) < 0)), (graph, END), name="loop")
    result = await Application(loop).run({"ns": [3]})
    assert result.outcomes("mid/low/doubles", 0).done == 1


# -- how it ends ---------------------------------------------------------------------------------


@action(reads=["item"], writes=["out"])
async def square(item: int) -> int:
    seen.append(item)
    return item * item


seen = list[int]()
squares = fan_out(square, over="items", key=str, into="outs")


@pytest.mark.parametrize("depth", [0, 1, 2])
async def test_its_fan_outs_leave_out_what_is_there_already(depth: int):
    seen.clear()
    act: Any = Graph.chain(squares, name="squares")
    for level in range(depth):
        act = Graph.chain(act, name=f"level {level}")
    result = await Application(Graph.chain(act)).run({"items": [1, 2, 3], "outs": {"2": "known"}})
    assert (result.state["outs"], seen) == ({"1": 1, "2": "known", "3": 9}, [1, 3])
    path = "/".join((*(f"level {level}" for level in reversed(range(depth))), "squares/outs"))
    assert result.outcomes(path).skipped == 1


@pytest.mark.parametrize("again", [None, False, True])
async def test_when_a_loop_comes_back_to_it_they_do_as_they_would_without_it(again: bool | None):
    act = fan_out(square, over="items", key=str, into="outs", again=again)
    found = list[list[int]]()
    for body in (act, Graph.chain(Graph.chain(act, name="inner"), name="node")):
        seen.clear()
        loop = Graph((body, more), (more, body, when(lambda n: n < 3)), (more, END), entry=body)
        await Application(loop).run({"items": [1, 2], "n": 1, "outs": {"2": "known"}})
        found.append(list(seen))
    without, within = found
    expected = {None: [1, 1, 2], False: [1], True: [1, 2, 1, 2]}
    assert without == within == expected[again]


async def test_what_fails_in_it_is_raised_bare_and_nothing_is_applied():
    failing = Graph.chain(more, Graph.chain(fail, name="low"), name="mid")
    watched = Watched(Graph.chain(failing, name="top"))
    async with no_leaks():
        with pytest.raises(LookupError) as caught:
            await watched.go({"n": 1})
    watched.check()
    assert watched.state == {"n": 1}
    notes = [note.partition(", run ")[0] for note in caught.value.__notes__]
    assert notes == [
        "shoal: in action 'fail' of 'low'",
        "shoal: in graph 'low' of 'mid'",
        "shoal: in graph 'mid'",
    ]
    outcomes = [event.outcome for event in watched.hook.of(ChildEnded)]
    assert all(isinstance(one, Failed) and one.error is caught.value for one in outcomes)
    assert [event.status for event in watched.hook.of(RunEnded)] == ["failed"] * 3


async def test_cancelled_it_leaves_nothing_applied():
    watched = Watched(Graph.chain(inner, name="outer"))
    async with no_leaks():
        with anyio.move_on_after(1.5):
            await watched.go({"n": 1})
    watched.check()
    assert watched.state == {"n": 1}
    (ended,) = watched.hook.of(ChildEnded)
    assert isinstance(ended.outcome, Cancelled)
    assert [event.status for event in watched.hook.of(RunEnded)] == ["cancelled"] * 2


async def test_a_field_that_is_nowhere_is_missed_before_it_starts():
    @action(writes=["n"])
    async def perhaps(state: State) -> State:
        return state

    hook = RecordingHook()
    with pytest.raises(MissingField, match="the actions of 'inner' read field 'n'"):
        await Application(Graph.chain(perhaps, inner), hooks=[hook]).run()
    assert len(hook.of(RunStarted)) == 1


@pytest.mark.parametrize("at", range(1, 8))
async def test_a_store_that_fails_at_each_save(at: int):
    graph = Graph.chain(inner, Graph.chain(show, name="last"), name="outer")
    store, hook = Batches(fails_at=at), RecordingHook()
    app = Application(graph, hooks=[hook])
    whole = Batches()
    async with Runtime(store=whole) as runtime:
        await runtime.run(app, {"n": 1})
    assert whole.calls == 6
    hook.events.clear()
    opened = None
    async with no_leaks(), Runtime(store=store) as runtime:
        if at > whole.calls:
            await runtime.run(app, {"n": 1})
            return
        with pytest.raises(StoreFailed):
            async with app.open({"n": 1}, runtime=runtime) as opened:
                await opened.result()
    hook.assert_paired()
    assert opened is not None
    kept = [one for batch in store.batches if batch.path.parent is None for one in batch.updates]
    received = [event.update for event in hook.of(StateUpdated) if event.depth == 0]
    assert kept == received
    assert len(store.batches) == at - 1  # nothing is saved any more
    assert opened.state == {
        "n": 1 if len(kept) < 1 else 2,
        **({"twice": 4} if kept else {}),
        **({"text": "it is 4"} if len(kept) > 1 else {}),
    }
    assert not any(isinstance(event.outcome, Done) for event in hook.of(ChildEnded)[len(kept) :])


@pytest.mark.parametrize(
    ("depth", "kind"),
    [
        *((0, kind) for kind in ("state_updated", "step_ended", "child_ended", "run_ended")),
        *((1, kind) for kind in ("state_updated", "step_ended", "run_ended")),
    ],
)
async def test_a_guard_that_fails_ends_it_all(depth: int, kind: str):
    class Guard(Hook):
        pass

    def guard(_: Hook, event: Any) -> None:
        if event.depth == depth:
            raise LookupError(kind)

    setattr(Guard, f"on_{kind}", guard)
    watched = Watched(Graph.chain(inner, show, name="outer"), hooks=[Guard()])
    async with no_leaks():
        with pytest.raises(HookFailed, match="LookupError"):
            await watched.go({"n": 1})
    watched.check()


# -- everywhere ----------------------------------------------------------------------------------


def looping() -> Graph:
    return Graph(
        (inner, inner, when(lambda n: n < 3)),
        (inner, Graph.chain(Graph.chain(show, name="low"), name="mid")),
        name="outer",
    )


def spreading() -> Graph:
    child = Graph.chain(Graph.chain(double, show, name="low"), name="child")
    return Graph.chain(inner, fan_out(child, over="ns", item="n", into="texts", take="text"))


APPLICATIONS: dict[str, Callable[[], Graph]] = {"looping": looping, "spreading": spreading}


def sweep(
    make: Callable[[], Graph],
    backend: Literal["asyncio", "trio"],
    how: Literal["scope", "native"],
    *,
    seed: int | None = None,
    limit: int | None = None,
) -> int:
    async def scenario(attempt: Attempt) -> None:
        watched = Watched(make())
        ending = await attempt(watched.go, {"n": 1, "ns": [1, 2, 3]})
        watched.check()
        if watched.run is not None:
            updates = watched.of(StateUpdated)
            applied = [e.outcome for e in updates if e.outcome is not None]
            assert all(isinstance(outcome, Done) for outcome in applied)
        if not ending.cancelled:
            assert ending.result is not None
            assert ending.result["n"] == (3 if make is looping else 2)

    return cancel_everywhere(scenario, backend=backend, how=how, seed=seed, limit=limit)


every_way = pytest.mark.parametrize(
    ("backend", "how"), [("asyncio", "scope"), ("asyncio", "native"), ("trio", "scope")]
)


@every_way
@pytest.mark.parametrize("name", APPLICATIONS)
def test_cancelled_at_some_places(
    name: str, backend: Literal["asyncio", "trio"], how: Literal["scope", "native"]
):
    assert sweep(APPLICATIONS[name], backend, how, seed=1, limit=12) > 5


@pytest.mark.slow
@every_way
@pytest.mark.parametrize("name", APPLICATIONS)
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_cancelled_everywhere(
    name: str,
    backend: Literal["asyncio", "trio"],
    how: Literal["scope", "native"],
    seed: int | None,
):
    assert sweep(APPLICATIONS[name], backend, how, seed=seed) > 5


async def test_a_write_that_does_not_fit_the_parents_model_ends_the_child_all_the_same():
    class Page(BaseModel):
        title: str = ""

    @action(writes=["title"])
    async def write() -> object:
        return 5

    hook = RecordingHook()
    app = Application(Graph.chain(Graph.chain(write, name="node")), state=Page, hooks=[hook])
    with pytest.raises(InvalidState, match="graph 'node' gives field 'title' 5"):
        await app.run()
    hook.assert_paired()
    (ended,) = hook.of(ChildEnded)
    assert isinstance(ended.outcome, Done)
    assert not ended.outcome.used


async def test_what_a_failing_child_does_to_its_task_does_not_tear_the_save_of_its_end():
    @action(writes=["x"])
    async def cancel_oneself() -> int:
        if anyio.get_cancelled_exc_class() is asyncio.CancelledError:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        raise ValueError("after that")

    class Slow(NullStore):
        async def save(self, batch: Batch) -> None:
            await checkpoint()

    node = Graph.chain(cancel_oneself, name="node")
    async with Runtime(store=Slow()) as runtime:
        with pytest.raises(ValueError, match="after that") as caught:
            await runtime.run(Application(Graph.chain(node)))
    assert not any("while the graph ended" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("fails", [False, True])
async def test_its_end_is_published_though_it_is_cancelled_while_its_task_is_put_in_order(
    turns: int, fails: bool
):
    if anyio.get_cancelled_exc_class() is not asyncio.CancelledError:
        pytest.skip("trio has no native cancellation")
    loop, hook = asyncio.get_running_loop(), RecordingHook()

    def cancel_after(turns: int) -> None:
        if turns:
            loop.call_soon(cancel_after, turns - 1)
        else:
            handle.cancel("enough")

    @action(writes=["x"])
    async def cancel_oneself() -> int:
        cancel_after(turns)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        if fails:
            raise ValueError("after that")
        return 1

    app = Application(Graph.chain(Graph.chain(cancel_oneself, name="node")), hooks=[hook])
    async with Runtime(apps=[app]) as runtime:
        handle = await runtime.start(app)
        await handle.wait_ended()
    hook.assert_paired()
    assert len(hook.of(ChildEnded)) == 1


# -- isolation -------------------------------------------------------------------------------------


LETTER = ContextVar("LETTER", default="unset")


@pytest.mark.parametrize("waits", [False, True])
async def test_it_sees_context_variables_of_its_parent_and_keeps_its_own(waits: bool):
    def look(number: int) -> Any:
        @action(writes=[f"seen{number}"], name=f"look{number}")
        async def look() -> str:
            before = LETTER.get()
            if waits:
                await checkpoint()
            LETTER.set(f"{before}{number}")
            return before

        return look

    inner = Graph.chain(look(1), look(2), name="inner")
    outer = Graph.chain(look(0), inner, look(3))
    LETTER.set("caller's ")
    state = (await Application(outer).run()).state
    seen = [state[f"seen{number}"] for number in range(4)]
    assert seen == ["caller's ", "caller's 0", "caller's 01", "caller's 0"]
