"""What becomes of ``run(state, id=...)``, by what the store says of the id; and of the claim."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from shoal import (
    Application,
    Failed,
    Graph,
    Hook,
    MemoryStore,
    RunClaimed,
    RunConflict,
    RunPath,
    Runtime,
    Skipped,
    StoreFailed,
    action,
    fan_out,
    when,
)
from shoal.errors import (
    CommitInDoubt,
    HookFailed,
    LeaseLost,
    MissingField,
    NoTransition,
    TooManySteps,
)
from shoal.events import ChildStarted, RunEnded, RunStarted, StateUpdated, StepStarted
from shoal.stores import Batch, SavedRun, Store
from shoal.testing import RecordingHook, no_leaks

pytestmark = pytest.mark.anyio

ran = list[str]()
fails = set[str]()


@pytest.fixture(autouse=True)
def all_is_well() -> None:
    ran.clear()
    fails.clear()


@action(reads=["n"], writes=["one"])
async def one(n: int) -> int:
    ran.append("one")
    await anyio.sleep(1)
    if "one" in fails:
        raise ValueError("one")
    return n + 1


@action(reads=["one"], writes=["two"])
async def two(one: int) -> int:
    ran.append("two")
    await anyio.sleep(1)
    if "two" in fails:
        raise ValueError("two")
    return one + 1


@action(reads=["item"], writes=["out"])
async def leaf(item: Any) -> Any:
    ran.append(f"leaf {item}")
    await anyio.sleep(1)
    if f"leaf {item}" in fails:
        raise ValueError(item)
    return item


graph = Graph.chain(one, two, name="both")


def application(store: Store, **options: Any) -> Application[Any]:
    return Application(graph, store=store, **options)


async def status(store: Store, run_id: str = "x") -> str | None:
    record = await store.load(run_id)
    assert record is not None
    return record.status


async def is_claimed(store: MemoryStore, run_id: str = "x") -> bool:
    try:
        await store.claim(run_id, "a test")
    except RunClaimed:
        return True
    await store.release(run_id, "a test")
    return False


# -- the table of section 6 ------------------------------------------------------------------------


async def test_nothing_is_stored_so_it_starts():
    store, hook = MemoryStore(), RecordingHook()
    result = await application(store, hooks=[hook]).run({"n": 1}, id="x")
    assert result.state == {"n": 1, "one": 2, "two": 3}
    assert [event.resumed for event in hook.of(RunStarted)] == [False]
    assert await status(store) == "succeeded"
    assert not await is_claimed(store)


async def test_a_run_without_an_id_is_remembered_by_the_one_it_gets():
    store = MemoryStore()
    app = application(store)
    first, other = await app.run({"n": 1}), await app.run({"n": 1})
    assert first.run_id != other.run_id
    ran.clear()
    assert (await app.run(id=first.run_id)).state == first.state
    assert not ran


async def test_claimed_by_a_live_execution_so_it_is_refused():
    store = MemoryStore()
    app = application(store)
    async with app.open({"n": 1}, id="x") as run:
        with pytest.raises(RunClaimed, match="run x is already running in this process"):
            await app.run({"n": 1}, id="x")
        for attempt in (lambda: app.run(id="x"), lambda: app.retry_failed("x")):
            with pytest.raises(RunClaimed):
                await attempt()
        assert await is_claimed(store), "a refused one has not given back what it never had"
        result = await run.result()
    assert result.state["two"] == 3
    assert ran == ["one", "two"]
    assert not await is_claimed(store)


async def test_of_two_that_begin_at_once_one_is_refused():
    store = MemoryStore()
    app = application(store)
    ends = list[str]()

    async def run() -> None:
        try:
            await app.run({"n": 1}, id="x")
            ends.append("succeeded")
        except RunClaimed:
            ends.append("refused")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        tasks.start_soon(run)
    assert sorted(ends) == ["refused", "succeeded"]
    assert ran == ["one", "two"]


async def test_a_dead_process_s_run_is_resumed():
    store = MemoryStore()
    async with application(store).open({"n": 1}, id="x") as run:
        async for event in run:
            if isinstance(event, StateUpdated):
                break
        found = store.copy()  # what a new process would find now
    ran.clear()
    hook = RecordingHook()
    result = await application(found, hooks=[hook]).run({"n": 1}, id="x")
    assert ran == ["two"]
    assert result.state == {"n": 1, "one": 2, "two": 3}
    assert [event.resumed for event in hook.of(RunStarted)] == [True]
    assert [event.step for event in hook.of(StepStarted)] == ["two"]
    assert [event.update.number for event in hook.of(StateUpdated)] == [2]


async def test_failed_so_it_is_resumed_at_the_failed_step():
    store, app = MemoryStore(), None
    app = application(store)
    fails.add("two")
    for _ in range(2):
        with pytest.raises(ValueError, match="two"):
            await app.run({"n": 1}, id="x")
        assert await status(store) == "failed"
        assert not await is_claimed(store)
    fails.clear()
    result = await app.run({"n": 1}, id="x")
    assert result.state["two"] == 3
    assert ran == ["one", "two", "two", "two"]
    assert await status(store) == "succeeded"


async def test_cancelled_so_it_is_resumed_at_the_cancelled_step():
    store = MemoryStore()
    app = application(store)
    for after in (0.5, 1.5, 0.5):
        with anyio.move_on_after(after):
            await app.run({"n": 1}, id="x")
        assert await status(store) == "cancelled"
    record = await store.load("x")
    assert record is not None
    assert record.reason
    assert ran == ["one", "one", "two", "two"]
    assert (await app.run({"n": 1}, id="x")).state["two"] == 3


async def test_closed_so_it_is_resumed():
    store = MemoryStore()
    app = application(store)
    async with app.open({"n": 1}, id="x") as run:
        async for event in run:
            if isinstance(event, StateUpdated):
                break
    record = await store.load("x")
    assert record is not None
    assert (record.status, record.reason) == ("cancelled", "closed")
    assert (await app.run(id="x")).state["two"] == 3
    assert ran.count("one") == 1


async def test_what_is_done_and_skipped_is_kept_and_the_others_run_again():
    store = MemoryStore()
    leaves = fan_out(leaf, over="items", key=str, into="outs")
    app = Application(leaves, store=store)
    state = {"items": [1, 2, 3, 4, 5], "outs": {"5": "five"}}
    fails.update({"leaf 3"})
    with pytest.raises(ExceptionGroup):
        await app.run(state, id="x")
    records = {record.key: record for record in await store.children(RunPath(run_id="x"))}
    assert records["3"].status == "failed"
    assert records["5"].status == "skipped"
    ran.clear()
    fails.clear()
    result = await app.run(state, id="x")
    assert "leaf 3" in ran
    assert "leaf 5" not in ran
    applied = {key for key, one in records.items() if one.applied}
    assert not {f"leaf {key}" for key in applied} & set(ran)
    assert result.state["outs"] == {"1": 1, "2": 2, "3": 3, "4": 4, "5": "five"}
    ledger = result.outcomes("outs")
    assert (ledger.done, ledger.skipped) == (4, 1)
    assert [type(outcome) for outcome in ledger] == [Skipped]


async def test_a_completed_step_keeps_the_failures_that_were_collected():
    store = MemoryStore()
    leaves = fan_out(leaf, over="items", key=str, into="outs", on_error="collect")
    app = Application(Graph.chain(leaves, two), store=store)
    fails.update({"leaf 2", "two"})
    with pytest.raises(ValueError, match="two"):
        await app.run({"items": [1, 2], "one": 1}, id="x")
    fails.clear()
    result = await app.run({"items": [1, 2], "one": 1}, id="x")
    assert result.state["outs"] == {"1": 1}
    assert ran == ["leaf 1", "leaf 2", "two", "two"]
    (failed,) = result.outcomes("outs")
    assert isinstance(failed, Failed)
    with pytest.raises(ExceptionGroup, match="a child of run x failed"):
        result.raise_for_failures()


async def test_succeeded_so_what_is_recorded_is_returned_and_nothing_runs():
    store, hook = MemoryStore(), RecordingHook()
    first = await application(store).run({"n": 1}, id="x")
    ran.clear()
    app = application(store, hooks=[hook])
    for again in (await app.run({"n": 1}, id="x"), await app.run(id="x")):
        assert again.state == first.state
        assert again.run_id == "x"
    assert not ran
    assert hook.events == [], "nothing happened"
    assert not await is_claimed(store)
    assert len(await store.read(RunPath(run_id="x"))) == 4


@dataclass
class Model:
    n: int
    one: int = 0
    two: int = 0


typed = Graph.chain(one, two, name="both", state=Model)


@pytest.mark.parametrize(
    ("state", "named"),
    [
        ({"n": 2}, "its initial state differs in 'n'"),
        ({"n": "1"}, "'n'"),
        ({"n": 1, "more": 2}, "'more'"),
        ({"n": True}, "'n'"),
    ],
)
async def test_another_initial_state_is_a_conflict(state: Mapping[str, Any], named: str):
    store = MemoryStore()
    app = application(store)
    await app.run({"n": 1}, id="x")
    ran.clear()
    with pytest.raises(RunConflict, match="run x exists, and was started with something else") as e:
        await app.run(state, id="x")
    assert named in str(e.value)
    assert "leave out the state: run(id='x')" in str(e.value)
    assert "fork('x', update={...})" in str(e.value)
    assert not ran
    assert not await is_claimed(store)


async def test_all_fields_that_differ_are_named_and_no_others():
    store = MemoryStore()
    app = application(store)
    await app.run({"n": 1, "a": [1, {"b": 2}], "c": 3, "same": {1, 2}}, id="x")
    with pytest.raises(RunConflict, match=r"differs in 'a', 'c', 'n'\. To go on"):
        await app.run({"n": 2, "a": [1, {"b": 3}], "same": {2, 1}}, id="x")


@pytest.mark.parametrize("with_state", [True, False])
async def test_another_application_or_version_is_a_conflict_with_or_without_a_state(
    with_state: bool,
):
    store = MemoryStore()
    given: dict[str, Any] = {"state": {"n": 1}} if with_state else {}
    await application(store, name="mine").run({"n": 1}, id="x")
    ran.clear()
    for other, named in (
        ({"name": "yours"}, "the application's name was 'mine' and is 'yours' now"),
        ({"name": "mine", "version": "2"}, "the application's version was '1' and is '2' now"),
    ):
        app = application(store, **other)
        with pytest.raises(RunConflict, match=named) as raised:
            await app.run(id="x", **given)
        assert "leave out the state" not in str(raised.value), "that would not help"
        with pytest.raises(RunConflict, match=named):
            await app.retry_failed("x")
        with pytest.raises(RunConflict, match=named):
            async with app.open(id="x", **given):
                pass
    assert not ran


async def test_a_changed_graph_that_lacks_the_step_a_run_stands_after_is_a_conflict():
    store = MemoryStore()
    fails.add("two")
    with pytest.raises(ValueError, match="two"):
        await application(store).run({"n": 1}, id="x")
    fails.clear()
    changed = Application(Graph.chain(two.bind(name="other"), name="both"), store=store)
    with pytest.raises(RunConflict, match=r"has completed the step 'one', which 'both' does not"):
        await changed.run(id="x")
    assert not await is_claimed(store)
    assert (await application(store).run({"n": 1}, id="x")).state["two"] == 3


async def test_typed_states_are_compared_as_the_model_has_them():
    store = MemoryStore()
    app: Application[Any] = Application(typed, store=store)
    first = await app.run(Model(1), id="x")
    ran.clear()
    assert (await app.run({"n": 1}, id="x")).state.data == first.state.data
    assert (await app.run({"n": 1, "one": 0}, id="x")).state.data == Model(1, 2, 3)
    with pytest.raises(RunConflict, match="differs in 'one'"):
        await app.run(Model(1, one=1), id="x")
    assert not ran


async def test_the_state_may_be_left_out_where_the_store_has_the_run():
    store = MemoryStore()
    app = application(store)
    with pytest.raises(MissingField, match="'n'"):
        await app.run(id="x")
    assert await store.load("x") is None
    assert not await is_claimed(store)
    with anyio.move_on_after(1.5):
        await app.run({"n": 1}, id="x")
    assert (await app.run(id="x")).state == {"n": 1, "one": 2, "two": 3}


async def test_a_run_that_needs_no_fields_may_leave_out_its_state_always():
    store = MemoryStore()

    @action(writes=["a"])
    async def alone() -> int:
        ran.append("alone")
        return 1

    app = Application(alone, store=store)
    await app.run(id="x")
    await app.run(id="x")
    assert ran == ["alone"]


async def test_without_a_store_an_id_is_only_a_name():
    app = Application(graph)
    await app.run({"n": 1}, id="x")
    await app.run({"n": 2}, id="x")
    assert ran == ["one", "two"] * 2


async def test_a_runtime_s_store_counts_where_the_application_has_none():
    ours, theirs = MemoryStore(), MemoryStore()
    async with Runtime(store=theirs) as runtime:
        await runtime.run(Application(graph), {"n": 1}, id="x")
        await runtime.run(application(ours), {"n": 1}, id="y")
        await runtime.run(Application(graph), id="x")
    assert (len(ours), len(theirs)) == (1, 1)
    assert ran == ["one", "two"] * 2


# -- what resumes where ----------------------------------------------------------------------------


async def test_an_edge_that_failed_is_decided_again_and_the_step_is_not_repeated():
    store = MemoryStore()
    ready = False

    def is_ready(one: int) -> bool:
        if not ready:
            raise LookupError("not yet")
        return True

    app = Application(Graph((one, two, when(is_ready)), entry=one), store=store)
    with pytest.raises(LookupError, match="not yet"):
        await app.run({"n": 1}, id="x")
    hook = RecordingHook()
    app.hooks = (hook,)
    with pytest.raises(LookupError, match="not yet"):
        await app.run({"n": 1}, id="x")
    assert hook.of(StepStarted) == []
    hook.assert_paired()
    ready = True
    assert (await app.run({"n": 1}, id="x")).state["two"] == 3
    assert ran == ["one", "two"]


async def test_an_edge_is_decided_by_the_state_as_it_was():
    """And not by what the step under way has made of it meanwhile."""
    store = MemoryStore()
    leaves = fan_out(leaf, over="items", key=str, into="outs")
    is_empty = when(lambda outs: not outs)
    app = Application(Graph((one, leaves, is_empty), (one, two), (leaves, two)), store=store)
    fails.add("leaf 2")
    state: dict[str, Any] = {"n": 1, "items": [1, 2], "outs": {}}
    with anyio.move_on_after(1 + 0.5):
        await app.run(state, id="x")
    with pytest.raises(ExceptionGroup):
        await app.run(state, id="x")
    fails.clear()
    result = await app.run(state, id="x")
    assert result.state["outs"] == {"1": 1, "2": 2}
    assert ran[-1] == "two"


async def test_no_transition_stays_so_until_the_graph_has_one():
    store = MemoryStore()
    stuck = Application(Graph((one, two, when(one=99)), name="g"), store=store)
    for _ in range(2):
        with pytest.raises(NoTransition):
            await stuck.run({"n": 1}, id="x")
    mended = Application(Graph((one, two), name="g"), store=store)
    assert (await mended.run({"n": 1}, id="x")).state["two"] == 3
    assert ran == ["one", "two"]


async def test_steps_are_counted_over_all_executions():
    store = MemoryStore()

    @action(reads=["n"], writes=["n"])
    async def more(n: int) -> int:
        ran.append("more")
        await anyio.sleep(1)
        return n + 1

    app = Application(Graph((more, more, when(lambda n: True))), store=store, max_steps=5)
    with anyio.move_on_after(3.5):
        await app.run({"n": 0}, id="x")
    with pytest.raises(TooManySteps):
        await app.run({"n": 0}, id="x")
    assert len(ran) == 3 + 1 + 2


async def test_hooks_of_a_resumed_run_receive_only_new_events():
    store, hook = MemoryStore(), RecordingHook()
    leaves = fan_out(leaf, over="items", key=str, into="outs")
    app = Application(Graph.chain(one, leaves, two), store=store)
    fails.add("leaf 2")
    with pytest.raises(ExceptionGroup):
        await app.run({"n": 1, "items": [1, 2]}, id="x")
    fails.clear()
    app.hooks = (hook,)
    await app.run(id="x")
    hook.assert_paired()
    assert {event.child.key for event in hook.of(ChildStarted)} == {"2"}
    assert [e.step for e in hook.of(StepStarted) if e.depth == 0] == ["outs", "two"]
    numbers = [e.update.number for e in hook.of(StateUpdated) if e.depth == 0]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


async def test_a_guard_that_fails_leaves_the_run_resumable():
    class Guard(Hook):
        def on_state_updated(self, event: StateUpdated) -> None:
            if event.update.step == "one" and strict:
                raise ValueError("not this")

    strict = True
    store = MemoryStore()
    app = application(store, hooks=[Guard()])
    with pytest.raises(HookFailed, match="not this"):
        await app.run({"n": 1}, id="x")
    assert await status(store) == "failed"
    strict = False
    assert (await app.run({"n": 1}, id="x")).state["two"] == 3
    assert ran == ["one", "two"], "what the guard was told of is saved"


# -- opened ----------------------------------------------------------------------------------------


async def test_a_recorded_run_can_be_opened_and_has_no_events():
    store = MemoryStore()
    app = application(store)
    first = await app.run({"n": 1}, id="x")
    ran.clear()
    async with no_leaks(), app.open(id="x") as run:
        assert [event async for event in run] == []
        assert run.status == "succeeded"
        assert run.state == first.state
        assert (await run.result()).state == first.state
        run.cancel("too late")
        assert run.status == "succeeded"
    assert not ran
    assert await status(store) == "succeeded"
    assert not await is_claimed(store)


async def test_a_recorded_run_that_is_opened_stepwise_has_no_step_left():
    store = MemoryStore()
    app = application(store)
    await app.run({"n": 1}, id="x")
    async with no_leaks(), app.open(id="x", stepwise=True) as run:
        assert await run.step() is None
        assert (await run.result()).state["two"] == 3


async def test_a_run_that_is_opened_goes_on_and_publishes_events():
    store = MemoryStore()
    app = application(store)
    with anyio.move_on_after(1.5):
        await app.run({"n": 1}, id="x")
    async with app.open({"n": 1}, id="x") as run:
        events = [event async for event in run]
    assert isinstance(events[0], RunStarted)
    assert events[0].resumed
    assert isinstance(events[-1], RunEnded)
    assert ran == ["one", "two", "two"]


async def test_a_run_is_stepped_over_several_executions():
    store = MemoryStore()
    app = application(store)
    async with app.open({"n": 1}, id="x", stepwise=True) as run:
        assert await run.step() == "one"
    assert await status(store) == "cancelled"
    async with app.open(id="x", stepwise=True) as run:
        assert run.state == {"n": 1, "one": 2}
        assert await run.step() == "two"
        assert await run.step() is None
        assert (await run.result()).state["two"] == 3
    assert ran == ["one", "two"]


async def test_conflicts_and_claims_are_raised_where_a_run_is_opened():
    store = MemoryStore()
    app = application(store)
    async with no_leaks():
        async with app.open({"n": 1}, id="x", stepwise=True):
            with pytest.raises(RunClaimed):
                async with app.open({"n": 1}, id="x"):
                    pytest.fail("the block is not entered")
        with pytest.raises(RunConflict):
            async with app.open({"n": 2}, id="x"):
                pytest.fail("the block is not entered")
        with pytest.raises(MissingField):
            async with app.open(id="y"):
                pytest.fail("the block is not entered")
    assert not await is_claimed(store)
    assert not await is_claimed(store, "y")


# -- claims and stores that go wrong ---------------------------------------------------------------


class Odd:
    """A store in front of one that keeps, doing something odd at one of its calls."""

    def __init__(self, **odd: Callable[..., Any]) -> None:
        self.kept = MemoryStore()
        self.odd = odd
        self.calls = list[str]()

    async def _call(self, name: str, *args: Any) -> Any:
        self.calls.append(name)
        if name in self.odd:
            await self.odd[name](*args)
        return await getattr(self.kept, name)(*args)

    async def claim(self, run_id: str, holder: str) -> None:
        await self._call("claim", run_id, holder)

    async def load(self, run_id: str) -> Any:
        return await self._call("load", run_id)

    def pack(self, child: SavedRun) -> None:
        self.kept.pack(child)

    def save(self, batch: Batch) -> Awaitable[None] | None:
        self.calls.append("save")
        odd = self.odd.get("save")
        return self.kept.save(batch) if odd is None else odd(batch)

    async def read(self, path: RunPath, from_number: int = 0) -> Any:
        return await self._call("read", path, from_number)

    async def children(
        self, path: RunPath, step: str | None = None, visit: int | None = None
    ) -> Any:
        return await self._call("children", path, step, visit)

    async def release(self, run_id: str, holder: str) -> None:
        await self._call("release", run_id, holder)


async def test_a_stale_execution_can_not_save_once_another_has_the_run():
    store = MemoryStore()
    app, hook = application(store), RecordingHook()
    app.hooks = (hook,)
    taken = anyio.Event()

    async def stale() -> None:
        with pytest.raises(LeaseLost, match="run x was taken over by another execution"):
            await app.run({"n": 1}, id="x")
        taken.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stale)
        await anyio.sleep(1.5)
        store._claims["x"] = "another process"  # whose lease had run out
        await taken.wait()
    assert [event.update.step for event in hook.of(StateUpdated)] == ["one"]
    assert store._claims == {"x": "another process"}, "which a stale one does not give back"
    hook.assert_paired()
    assert [event.status for event in hook.of(RunEnded)] == ["failed"]
    await store.release("x", "another process")
    assert (await app.run({"n": 1}, id="x")).state["two"] == 3


async def test_children_of_a_stale_execution_can_not_save_either():
    store = MemoryStore()
    pair = Graph.chain(leaf, leaf.bind(name="again"), name="pair")
    app = Application(fan_out(pair, over="items", key=str, into="outs"), store=store)

    async def stale() -> None:
        with pytest.raises(LeaseLost):
            await app.run({"items": [1, 2, 3]}, id="x")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stale)
        await anyio.sleep(0.5)
        store._claims["x"] = "another process"
    assert len(ran) == 3
    assert await store.children(RunPath(run_id="x")) == []


@pytest.mark.parametrize("call", ["claim", "load"])
async def test_a_store_that_can_not_say_what_it_has_ends_it_before_it_begins(call: str):
    async def no(*_: object) -> None:
        raise OSError("database is locked")

    store = Odd(**{call: no})
    async with no_leaks():
        with pytest.raises(StoreFailed, match=r"run x: OSError\('database is locked'\)") as raised:
            await application(store).run({"n": 1}, id="x")
    assert isinstance(raised.value.__cause__, OSError)
    assert not ran
    assert store.calls[-1] == "release", "whoever may have claimed it gives it back"
    assert not store.kept._claims


@pytest.mark.parametrize("listens", [False, True])
async def test_the_end_is_saved_with_the_last_step_unless_a_hook_receives_that_first(
    *, listens: bool
):
    saved = list[tuple[str | None, str | None]]()

    def save(batch: Batch) -> Awaitable[None] | None:
        saved.append((batch.step_completed, batch.ended))
        return store.kept.save(batch)

    store = Odd(save=save)
    hooks = [RecordingHook()] if listens else []
    await Application(Graph.chain(one, two), store=store, hooks=hooks).run({"n": 1}, id="x")
    ends = [("two", None), (None, "succeeded")] if listens else [("two", "succeeded")]
    assert saved == [(None, None), ("one", None), *ends]
    assert (await Application(Graph.chain(one, two), store=store).run(id="x")).state["two"] == 3


@pytest.mark.parametrize("call", ["claim", "load", "read", "children"])
async def test_a_store_that_never_answers_is_given_up_at_the_deadline(call: str):
    store = Odd()
    with anyio.move_on_after(1.5):
        await application(store).run({"n": 1}, id="x")

    async def never(*_: object) -> None:
        await anyio.sleep_forever()

    store.odd[call] = never
    since = anyio.current_time()
    async with Runtime(commit_deadline=5) as runtime:
        with pytest.raises(StoreFailed, match="did not answer within 5 s"):
            await application(store).run({"n": 1}, id="x", runtime=runtime)
    assert anyio.current_time() - since == 5
    assert not store.kept._claims
    del store.odd[call]
    assert (await application(store).run({"n": 1}, id="x")).state["two"] == 3


@pytest.mark.parametrize("is_kept", [False, True])
async def test_a_save_that_is_never_acknowledged_is_in_doubt_and_the_resume_knows(is_kept: bool):
    async def never(batch: Batch) -> None:
        if is_kept:
            store.kept.save(batch)
        await anyio.sleep_forever()

    def save(batch: Batch) -> Awaitable[None] | None:
        return never(batch) if batch.step_completed == "one" else store.kept.save(batch)

    store = Odd(save=save)
    with pytest.raises(CommitInDoubt):
        await application(store).run({"n": 1}, id="x")
    assert not store.kept._claims
    store.odd.clear()
    assert (await application(store).run({"n": 1}, id="x")).state["two"] == 3
    assert ran == (["one", "two"] if is_kept else ["one", "one", "two"])


@pytest.mark.parametrize("how", ["fails", "hangs"])
async def test_a_run_that_can_not_be_given_back_has_come_to_what_it_has(
    how: str, caplog: pytest.LogCaptureFixture
):
    async def no(*_: object) -> None:
        if how == "hangs":
            await anyio.sleep_forever()
        raise OSError("gone")

    store = Odd(release=no)
    with caplog.at_level(logging.ERROR, "shoal"):
        result = await application(store).run({"n": 1}, id="x")
    assert result.state["two"] == 3
    assert "run x could not be given back to its store" in caplog.text


@pytest.mark.parametrize("call", ["claim", "load"])
async def test_being_cancelled_while_the_store_is_asked_begins_nothing_and_gives_it_back(call: str):
    began = anyio.Event()

    async def waits(*_: object) -> None:
        began.set()
        await anyio.sleep(10)

    store = Odd(**{call: waits})
    async with no_leaks(), anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: application(store).run({"n": 1}, id="x"))
        await began.wait()
        tasks.cancel_scope.cancel()
    assert not ran
    assert not store.kept._claims
    assert len(store.kept) == 0


# -- Ctrl-C ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_what_ends_the_process_leaves_the_run_resumable(kind: type[BaseException]):
    store = MemoryStore()
    interrupts = True

    @action(reads=["one"], writes=["two"])
    async def last(one: int) -> int:
        ran.append("last")
        await checkpoint()
        if interrupts:
            raise kind
        return one + 1

    app = Application(Graph.chain(one, last), store=store)
    async with no_leaks():
        with pytest.raises(kind):
            await app.run({"n": 1}, id="x")
    assert await status(store) == "cancelled"
    assert not await is_claimed(store)
    interrupts = False
    assert (await app.run({"n": 1}, id="x")).state["two"] == 3
    assert ran == ["one", "last", "last"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_from_a_child_too(kind: type[BaseException]):
    store = MemoryStore()
    interrupts = True

    @action(reads=["item"], writes=["out"])
    async def work(item: int) -> int:
        ran.append(f"work {item}")
        await anyio.sleep(item)
        if interrupts and item == 2:
            raise kind
        return item

    app = Application(fan_out(work, over="items", key=str, into="outs"), store=store)
    async with no_leaks():
        with pytest.raises(kind):
            await app.run({"items": [1, 2, 3]}, id="x")
    interrupts = False
    ran.clear()
    result = await app.run({"items": [1, 2, 3]}, id="x")
    assert result.state["outs"] == {"1": 1, "2": 2, "3": 3}
    assert sorted(ran) == ["work 2", "work 3"]


INTERRUPTED = """
    import anyio
    from shoal import Application, Graph, MemoryStore, action
    ran = []

    @action(writes=["one"])
    async def one():
        ran.append("one")
        return 1

    @action(reads=["one"], writes=["two"])
    async def two(one):
        ran.append("two")
        if ran.count("two") == 1:
            print("ready", flush=True)
            await anyio.sleep(60)
        return one + 1

    app = Application(Graph.chain(one, two), store=MemoryStore())
    try:
        app.run_sync(id="x", backend={backend!r})
    except KeyboardInterrupt:
        pass
    print(app.run_sync(id="x", backend={backend!r}).state.to_plain(), ran)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGINT"), reason="needs signals")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_real_ctrl_c_leaves_the_run_resumable(backend: str):
    source = textwrap.dedent(INTERRUPTED.format(backend=backend))
    with subprocess.Popen(
        [sys.executable, "-c", source], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate()[0] == "{'one': 1, 'two': 2} ['one', 'two', 'two']\n"
