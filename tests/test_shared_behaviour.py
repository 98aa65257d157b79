"""What the tests of others assert about behaviour that shoal has as well, asserted of shoal.

The others: aiometer, anyio's task groups, Java's `StructuredTaskScope`, the samples of Temporal's
Python SDK, and Burr's parallelism. Each test says whose it is. Where shoal differs on purpose, the
test shows what shoal does instead, and docs/semantics.md says why.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from itertools import pairwise
from typing import Any

import anyio
import pytest

from shoal import (
    Application,
    Cancelled,
    Context,
    Done,
    Failed,
    Graph,
    Limits,
    MapActions,
    MapActionsAndStates,
    MapStates,
    MemoryStore,
    NobodyAccepted,
    Outcome,
    Rate,
    Retry,
    Runtime,
    State,
    StepTimeout,
    action,
    fan_out,
    first,
    race,
)
from shoal.errors import BadUse, DefinitionError, RunCancelled
from shoal.events import ChildStarted
from shoal.testing import RecordingHook, no_leaks
from shoal.types import Act

pytestmark = pytest.mark.anyio


@action(reads=["item"], writes=["out"])
async def capitalize(item: str) -> str:
    await anyio.sleep(1 / len(item))
    return item.capitalize()


@action(reads=["item"], writes=["out"])
async def sleep(item: float) -> float:
    """Sleeps as long as it is told; fails if that is negative."""
    await anyio.sleep(abs(item))
    if item < 0:
        raise ValueError(item)
    return item


FRUITS = ["apple", "banana", "cherry", "apple"]


# -- aiometer --------------------------------------------------------------------------------------


async def test_results_are_in_input_order_whichever_is_quicker():
    """`run_all` returns results in the order of its functions."""
    app = Application(fan_out(sleep, over="n", into="out"))
    for naps in [0, 1], [1, 0], [3, 1, 2]:
        assert (await app.run({"n": naps})).state["out"] == naps


async def test_results_arrive_as_they_are_made():
    """`amap` yields results in the order in which functions end."""
    arrived: list[float] = []

    @action(reads=["n"], writes=["order"])
    async def consume(n: list[float], context: Context) -> list[float]:
        async with context.fan_out(name="naps") as group:
            group.start_each(sleep, over=n)
            async for outcome in group:
                assert isinstance(outcome, Done)
                arrived.append(outcome.value)
        return list(arrived)

    result = await Application(consume).run({"n": [3, 1, 2]})
    assert result.state["order"] == [1, 2, 3]


async def test_an_equal_element_is_another_element_unless_keys_say_otherwise():
    """`run_on_each` calls the function for each of two equal arguments, as shoal without keys."""
    result = await Application(fan_out(capitalize, over="n", into="out")).run({"n": FRUITS})
    assert result.state["out"] == ["Apple", "Banana", "Cherry", "Apple"]


async def test_what_is_not_consumed_is_awaited_all_the_same():
    """Leaving `amap` waits for all tasks, though no result was read."""

    @action(reads=["n"], writes=["count"])
    async def ignore(n: list[float], context: Context) -> int:
        async with context.fan_out(name="naps") as group:
            group.start_each(sleep, over=n)
        return len(n)

    began = anyio.current_time()
    assert (await Application(ignore).run({"n": [1, 2, 5]})).state["count"] == 3
    assert anyio.current_time() - began == 5


async def test_the_first_success_is_the_result():
    """`run_any` returns the first result; shoal's needs a success, and takes failures as none."""
    acts = [sleep.bind(name="slow"), sleep.bind(name="quick")]
    slow, quick = acts
    assert (slow.name, quick.name) == ("slow", "quick")
    step = fan_out(sleep, over="n", into="out", until=first())
    assert (await Application(step).run({"n": [3, -0.5, 1]})).state["out"] == 1


@pytest.mark.parametrize("limit", [1, 2, 5, 20])
async def test_no_more_run_at_once_than_the_limit_and_as_many_as_that(limit: int):
    """`max_at_once` bounds the tasks that run; shoal's limit is also made use of."""
    running = most = 0

    @action(reads=["item"], writes=["out"])
    async def spy(item: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await anyio.sleep(1 + item % 3)
        running -= 1
        return item

    step = fan_out(spy, over="n", into="out", limits=Limits(limit))
    await Application(step).run({"n": list(range(30))})
    assert (most, running) == (limit, 0)


@pytest.mark.parametrize("limit", [0, -1, -10])
def test_a_limit_must_be_positive(limit: int):
    """`max_at_once=0` is refused."""
    with pytest.raises(DefinitionError):
        Limits(limit)


@pytest.mark.parametrize("per_second", [5, 20, 100])
async def test_starts_are_spread_evenly_by_a_rate(per_second: int):
    """`max_per_second` leaves a period between starts: never two at once, and never a burst."""
    started: list[float] = []

    @action(reads=["item"], writes=["out"])
    async def spy(item: int) -> int:
        started.append(anyio.current_time())
        return item

    step = fan_out(spy, over="n", into="out", limits=Limits(rate=Rate(per_second, per=1.0)))
    await Application(step).run({"n": [1, 2, 3, 4]})
    gaps = [after - before for before, after in pairwise(started)]
    assert gaps == [pytest.approx(1 / per_second)] * 3


# -- anyio's task groups ---------------------------------------------------------------------------


async def test_nothing_is_started_in_a_group_that_was_left():
    """A task group that was left refuses further tasks."""
    groups: list[Any] = []

    @action(writes=["x"])
    async def leave(context: Context) -> int:
        async with context.fan_out(name="group") as group:
            groups.append(group)
        with pytest.raises(BadUse):
            group.start(sleep, {"item": 1})
        return 1

    assert (await Application(leave).run({})).state["x"] == 1


async def test_an_error_of_the_host_cancels_the_children_and_comes_out():
    """`raise` in the block cancels the tasks. anyio wraps it in a group; shoal raises it bare."""
    ended: list[str] = []

    @action(reads=["item"])
    async def child(item: int) -> None:
        try:
            await anyio.sleep(60)
        finally:
            ended.append("cancelled")

    @action(writes=["x"])
    async def host(context: Context) -> int:
        async with context.fan_out(name="group") as group:
            group.start(child, {"item": 1})
            await anyio.sleep(1)
            raise LookupError("of the host")

    async with no_leaks():
        with pytest.raises(LookupError, match="of the host"):
            await Application(host).run({})
    assert ended == ["cancelled"]


async def test_a_failing_child_cancels_its_siblings_and_errors_are_a_group():
    """All errors are raised together, in a group; shoal's is in input order, and not in time's."""
    step = fan_out(sleep, over="n", into="out")
    began = anyio.current_time()
    with pytest.raises(ExceptionGroup) as caught:
        await Application(step).run({"n": [60, -2, -2, 60]})
    assert [str(error) for error in caught.value.exceptions] == ["-2", "-2"]
    assert anyio.current_time() - began == 2


async def test_a_failing_child_interrupts_a_host_that_waits_for_outcomes_alone():
    """In anyio a failing task cancels its host wherever it is. shoal tells it at the group."""
    reached: list[str] = []

    @action(writes=["x"])
    async def host(context: Context) -> int:
        async with context.fan_out(name="group") as group:
            group.start(sleep, {"item": -1.0})
            await anyio.sleep(5)  # goes on: the failure is an outcome, which may be looked at
            reached.append("after")
            async for outcome in group:
                assert isinstance(outcome, Failed)
        return 1

    assert (await Application(host).run({})).state["x"] == 1
    assert reached == ["after"]


async def test_a_cancelled_child_that_has_not_begun_never_begins():
    """anyio starts a task whose group is cancelled, up to its first wait. shoal doesn't."""
    began: list[int] = []

    @action(reads=["item"])
    async def child(item: int) -> None:
        began.append(item)

    @action(writes=["x"])
    async def host(context: Context) -> int:
        async with context.fan_out(name="group") as group:
            group.start(child, {"item": 1})
            group.cancel("not needed")
            return len([outcome async for outcome in group if isinstance(outcome, Cancelled)])

    assert (await Application(host).run({})).state["x"] == 1
    assert began == []


async def test_a_shielded_cleanup_is_awaited():
    """What is shielded inside of a cancelled group runs to its end, and the rest doesn't."""
    done: list[str] = []

    @action(reads=["item"])
    async def child(item: int) -> None:
        with anyio.move_on_after(10, shield=True):
            await anyio.sleep(2)
            done.append("shielded")
        await anyio.sleep(1)
        done.append("never")

    began = anyio.current_time()
    with anyio.move_on_after(1):
        await Application(fan_out(child, over="n", name="f")).run({"n": [1]})
    assert done == ["shielded"]
    assert anyio.current_time() - began == 2


async def test_the_nearer_of_two_deadlines_counts():
    """A deadline around another one is the effective one if it is nearer.

    A run has a task of its own, so `anyio.current_effective_deadline` doesn't know its caller's.
    """

    @action(writes=["left"])
    async def look(context: Context) -> float:
        return context.deadline - anyio.current_time()

    app = Application(fan_out(look, over="n", into="out", take="left", timeout=5))
    with anyio.fail_after(3):
        assert (await app.run({"n": [1]})).state["out"] == [3]
    with anyio.fail_after(math.inf):
        assert (await app.run({"n": [1]})).state["out"] == [5]


# -- Java's StructuredTaskScope --------------------------------------------------------------------


async def test_no_subtasks_are_no_results_and_no_winner():
    """`allSuccessfulOrThrow` without subtasks is empty; `anySuccessfulOrThrow` throws."""
    assert (await Application(fan_out(sleep, over="n", into="out")).run({"n": []})).state[
        "out"
    ] == []
    with pytest.raises(NobodyAccepted):
        await Application(fan_out(sleep, over="n", into="out", until=first())).run({"n": []})


async def test_if_none_succeeds_all_failures_are_raised():
    """`anySuccessfulOrThrow` throws the first failure; shoal raises all of them, in input order."""
    step = fan_out(sleep, over="n", into="out", until=first())
    with pytest.raises(NobodyAccepted) as caught:
        await Application(step).run({"n": [-3, -1]})
    assert [str(error) for error in caught.value.exceptions] == ["-3", "-1"]


async def test_a_predicate_ends_the_scope_and_what_is_unfinished_is_unavailable():
    """`allUntil(predicate)` cancels the rest once the predicate is true."""

    def two(state: State, outcome: Outcome) -> bool:
        return len(state["out"]) == 2

    step = fan_out(sleep, over="n", key=str, into="out", until=two)
    result = await Application(step).run({"n": [9, 1, 2]})
    assert result.state["out"] == {"1": 1, "2": 2}
    assert [type(outcome) for outcome in result.outcomes("out")] == [Cancelled]


async def test_nothing_is_started_after_the_end_was_decided():
    """A subtask that is forked after the cancellation doesn't run, and that is no error."""
    hook = RecordingHook()
    step = fan_out(sleep, over="n", into="out", until=first(), limits=Limits(1))
    assert (await Application(step, hooks=[hook]).run({"n": [1, 2, 3]})).state["out"] == 1
    assert len(hook.of(ChildStarted)) == 1


async def test_a_timeout_cancels_the_subtasks_and_what_was_applied_stays():
    """A scope with a timeout cancels its subtasks when that has passed."""
    step = fan_out(sleep, over="n", into="out", timeout=3)
    async with Application(step).open({"n": [1, 9, 2]}) as run:
        with pytest.raises(StepTimeout):
            await run.result()
        assert run.state["out"] == [1, 2]


async def test_the_end_of_a_block_waits_for_stragglers_also_when_it_is_interrupted():
    """`close` waits for subtasks that go on after their interrupt, and stays interrupted."""
    done: list[float] = []

    @action(reads=["item"], writes=["out"])
    async def straggler(item: float) -> float:
        with suppress(anyio.get_cancelled_exc_class()):
            await anyio.sleep(60)
        with anyio.CancelScope(shield=True):
            await anyio.sleep(2)
        done.append(anyio.current_time())
        return item

    began = anyio.current_time()
    with anyio.move_on_after(1) as scope:
        await Application(fan_out(straggler, over="n", into="out")).run({"n": [1, 2]})
    assert scope.cancelled_caught
    assert done == [began + 3, began + 3]


# -- Temporal's samples ----------------------------------------------------------------------------


async def test_a_cancelled_run_cleans_up_says_so_and_is_cancelled():
    """`hello_cancellation`: an activity is cancelled and cleaned up, and the result says so."""
    cleaned: list[str] = []

    @action()
    async def never_complete() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cleaned.append("up")

    async with Runtime() as runtime:
        handle = await runtime.start(Application(never_complete), {}, id="r")
        await anyio.sleep(1)
        handle.cancel("not needed")
        with pytest.raises(RunCancelled, match="not needed"):
            await handle.result()
        assert handle.status == "cancelled"
    assert cleaned == ["up"]


POLLING = Retry(10, on=ConnectionError, initial=60, factor=1, cap=60, jitter=0)


async def test_an_activity_is_tried_until_it_succeeds():
    """`polling/infrequent`: the retry policy polls, with equal pauses."""
    tries: list[float] = []

    @action(writes=["done"], retry=POLLING)
    async def poll() -> str:
        tries.append(anyio.current_time())
        if len(tries) < 5:
            raise ConnectionError("not yet")
        return "completed"

    assert (await Application(poll).run({})).state["done"] == "completed"
    assert [one - tries[0] for one in tries] == [0, 60, 120, 180, 240]


async def test_a_result_is_there_whenever_it_is_asked_for():
    """A workflow id that has completed gives its result, and runs nothing again."""
    calls: list[str] = []

    @action(reads=["name"], writes=["greeting"])
    async def greet(name: str) -> str:
        calls.append(name)
        return f"Hello, {name}!"

    app = Application(greet, store=MemoryStore())
    for _ in range(2):
        assert (await app.run({"name": "World"}, id="hello")).state["greeting"] == "Hello, World!"
    assert calls == ["World"]


async def test_a_signal_lets_a_waiting_run_go_on():
    """`hello_signal` and the samples of approval: a run waits for a person, and goes on."""

    @action(writes=["answer"])
    async def approve(context: Context) -> str:
        return await context.ask("approve", "may it be bought?")

    app = Application(approve, store=MemoryStore())
    assert (await app.run({}, id="order")).status == "halted"
    result = await app.run(id="order", answers={"approve": "yes"})
    assert result.state["answer"] == "yes"


# -- Burr's parallelism ----------------------------------------------------------------------------


@action(reads=["number"], writes=["output"])
def add(number: int, plus: int) -> int:
    return number + plus


@action(reads=["output"], writes=["output"])
async def again(output: int) -> int:
    return output + 1


def several() -> Iterator[Act]:
    yield add.bind(name="one", plus=1000)
    yield Graph.chain(add.bind(name="first", plus=1999), again, name="two")


def appended(state: State, outcome: Outcome) -> State:
    assert isinstance(outcome, Done)
    return state.append(outputs=outcome.state["output"])


async def test_several_actions_on_one_state_are_reduced_one_by_one():
    """`MapActions`: Burr gives `reduce` all states, in their order; shoal one, as it arrives."""

    class Several(MapActions):
        reads = ("number",)
        writes = ("outputs",)

        def actions(self, state: State, inputs: Mapping[str, Any]) -> Iterator[Act]:
            yield from several()

        def reduce(self, state: State, outcome: Outcome) -> State:
            return appended(state, outcome)

    outputs = (await Application(Several()).run({"number": 100})).state["outputs"]
    assert sorted(outputs) == [1100, 2100]
    step = fan_out(list(several()), into="outputs", take="output")  # in their order, always
    outputs = (await Application(step).run({"number": 100})).state["outputs"]
    assert list(outputs.items()) == [("one", 1100), ("two", 2100)]


async def test_one_action_on_several_states_is_reduced_one_by_one():
    """`MapStates`: the states may come from an async generator."""

    class Each(MapStates):
        reads = ("numbers",)
        writes = ("outputs",)

        def action(self, state: State, inputs: Mapping[str, Any]) -> Act:
            return add.bind(plus=11)

        async def states(self, state: State, inputs: Mapping[str, Any]) -> AsyncIterator[Any]:
            for number in state["numbers"]:
                yield {"number": number}

        def reduce(self, state: State, outcome: Outcome) -> State:
            return appended(state, outcome)

    result = await Application(Each()).run({"numbers": [100, 200, 300]})
    assert sorted(result.state["outputs"]) == [111, 211, 311]


async def test_actions_and_states_are_multiplied():
    """`MapActionsAndStates`: each action on each state, each in a run of its own."""

    class Product(MapActionsAndStates):
        reads = ("numbers",)
        writes = ("outputs",)

        def actions(self, state: State, inputs: Mapping[str, Any]) -> Iterator[Act]:
            yield from several()

        def states(self, state: State, inputs: Mapping[str, Any]) -> Iterator[Any]:
            for number in state["numbers"]:
                yield {"number": number}

        def reduce(self, state: State, outcome: Outcome) -> State:
            return appended(state, outcome)

    hook = RecordingHook()
    result = await Application(Product(), hooks=[hook]).run({"numbers": [100, 200]})
    assert sorted(result.state["outputs"]) == [1100, 1200, 2100, 2200]
    children = {event.child.id for event in hook.of(ChildStarted) if event.depth == 0}
    assert len(children) == 4


async def test_hooks_and_stores_are_inherited_unless_something_else_is_given():
    """Trackers and persisters cascade to subgraphs; a step may have its own, or none."""
    hook, own, store = RecordingHook(), RecordingHook(), MemoryStore()
    cases: list[tuple[dict[str, Any], tuple[int, int]]] = [
        ({}, (2, 0)),
        ({"hooks": [own]}, (0, 2)),
        ({"hooks": []}, (0, 0)),
    ]
    for given, expected in cases:
        hook.events.clear()
        own.events.clear()
        step = fan_out(sleep, over="n", key=str, into="out", **given)
        await Application(step, hooks=[hook], store=store).run({"n": [1, 2]})
        below = [
            len({event.run_id for event in one.events if event.depth == 1}) for one in (hook, own)
        ]
        assert tuple(below) == expected


async def test_acts_side_by_side_may_be_a_race_too():
    """What Burr leaves to `reduce`: to take the first good result, and stop the others."""
    quick = sleep.bind(name="quick")
    acts = race(Graph.chain(quick, name="a"), Graph.chain(sleep, name="b"), into="won", take="out")
    assert (await Application(acts).run({"item": 1})).state["won"] == 1
