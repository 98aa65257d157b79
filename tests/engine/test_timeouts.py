"""Timeouts of attempts, children and whole steps: what is cut short, what stays, who is told."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, Literal, cast

import anyio
import pytest
import trio
from anyio.lowlevel import checkpoint

from shoal import (
    INHERIT,
    Application,
    Cancelled,
    Context,
    Done,
    Each,
    Failed,
    Graph,
    Hook,
    Limits,
    MapStates,
    Outcome,
    Retry,
    Runtime,
    State,
    StepTimeout,
    action,
    fan_out,
    first_item,
    race,
)
from shoal.errors import DefinitionError, SpuriousCancel
from shoal.events import AttemptEnded, ChildEnded, RunEnded, StateUpdated, StepEnded
from shoal.stores._protocol import Batch, NullStore
from shoal.testing import Attempt, RecordingHook, cancel_everywhere, no_leaks

pytestmark = pytest.mark.anyio

Backend = Literal["asyncio", "trio"]
every_way = pytest.mark.parametrize(
    "how", [("asyncio", "scope"), ("asyncio", "native"), ("trio", "scope")], ids=" ".join
)


def sleeper(**options: Any) -> Any:
    """An action that sleeps for as long as its field says."""

    @action(reads=["n"], writes=["out"], name="sleep", **options)
    async def sleep(n: float) -> float:
        await anyio.sleep(n)
        return n

    return sleep


def is_asyncio() -> bool:
    return "asyncio" in anyio.get_cancelled_exc_class().__module__


# -- of an action ----------------------------------------------------------------------------------


async def test_an_attempt_that_takes_too_long_is_cancelled_and_fails():
    hook, cleaned_up = RecordingHook(), False

    @action(writes=["out"], timeout=2)
    async def act() -> None:
        nonlocal cleaned_up
        try:
            await anyio.sleep(10)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)
            cleaned_up = True

    async with no_leaks():
        with pytest.raises(StepTimeout) as caught:
            await Application(act, hooks=[hook]).run(id="here")
    assert anyio.current_time() == 3
    assert cleaned_up
    assert isinstance(caught.value, TimeoutError)
    assert str(caught.value) == "action 'act' of run here took longer than its timeout of 2 s"
    assert caught.value.__cause__ is None
    assert [event.status for event in hook.of(StepEnded)] == ["failed"]
    assert not hook.of(StateUpdated)
    hook.assert_paired()


async def test_an_attempt_that_is_in_time_pays_nothing():
    assert (await Application(sleeper(timeout=2)).run({"n": 1.5})).state["out"] == 1.5
    assert anyio.current_time() == 1.5


@pytest.mark.parametrize("how", ["sleeps", "is woken", "computes"])
async def test_in_the_very_tick_of_its_timeout_it_ends_in_one_way(how: str):
    """It keeps its result or has timed out; the events say the same as ``run``."""
    hook, woken = RecordingHook(), anyio.Event()

    @action(writes=["out"], timeout=2)
    async def act() -> int:
        if how == "sleeps":
            await anyio.sleep(2)
        elif how == "is woken":
            await woken.wait()
        else:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(2)
        return 1

    async with no_leaks(), anyio.create_task_group() as tasks:

        async def wake() -> None:
            await anyio.sleep(2)
            woken.set()

        tasks.start_soon(wake)
        try:
            result = await Application(act, hooks=[hook]).run()
        except StepTimeout:
            assert hook.of(RunEnded)[0].status == "failed"
            assert not hook.of(StateUpdated)
        else:
            assert result.state["out"] == 1
            assert hook.of(RunEnded)[0].status == "succeeded"
    assert how != "computes" or hook.of(StateUpdated), "it wasn't interrupted, so it is kept"
    hook.assert_paired()


def swallower(**options: Any) -> Any:
    """An action that takes its cancellation for an answer, and returns seconds later."""

    @action(reads=["n"], writes=["out"], name="swallow", **options)
    async def swallow(n: float) -> float:
        with suppress(anyio.get_cancelled_exc_class()):
            await anyio.sleep(10)
        with anyio.CancelScope(shield=True):
            await anyio.sleep(n)
        return n

    return swallow


async def test_what_returns_after_its_time_has_failed():
    hook = RecordingHook()
    async with no_leaks():
        with pytest.raises(StepTimeout, match="'swallow' of run r took longer than its timeout of"):
            await Application(swallower(timeout=2), hooks=[hook]).run({"n": 3}, id="r")
    assert anyio.current_time() == 5, "it is awaited all the same"
    assert not hook.of(StateUpdated)
    hook.assert_paired()


async def test_what_was_shielded_and_returns_after_its_time_has_failed():
    @action(writes=["out"], timeout=2)
    async def act() -> int:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(2.5)
        return 1

    with pytest.raises(StepTimeout):
        await Application(act).run()


async def test_what_returns_after_its_time_is_tried_again():
    @action(writes=["out"], timeout=2, retry=Retry(2, on=TimeoutError, initial=1, jitter=0))
    async def act(context: Context) -> int:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(3 if context.attempt == 1 else 1)
        return context.attempt

    assert (await Application(act).run()).state["out"] == 2
    assert anyio.current_time() == 3 + 1 + 1


async def test_what_returns_late_and_was_cancelled_from_outside_too_is_cancelled():
    hook = RecordingHook()
    with anyio.move_on_at(3) as scope:
        await Application(swallower(timeout=2), hooks=[hook]).run({"n": 3})
    assert scope.cancelled_caught
    assert anyio.current_time() == 5
    (ended,) = hook.of(RunEnded)
    assert ended.status == "cancelled"
    hook.assert_paired()


async def test_the_time_begins_when_it_has_its_slots():
    app = Application(sleeper(timeout=2, limits=Limits(1)))
    many = fan_out(app.graph, over="ns", item="n", into="outs")
    result = await Application(many).run({"ns": [1.5] * 5})
    assert result.state["outs"] == [1.5] * 5
    assert anyio.current_time() == 7.5


async def test_an_attempt_that_timed_out_is_tried_again():
    hook, attempts = RecordingHook(), list[int]()

    @action(writes=["out"], timeout=2, retry=Retry(3, on=TimeoutError, initial=1, jitter=0))
    async def act(context: Context) -> int:
        attempts.append(context.attempt)
        await anyio.sleep(3 if context.attempt < 3 else 1)
        return context.attempt

    result = await Application(act, hooks=[hook]).run()
    assert result.state["out"] == 3
    assert attempts == [1, 2, 3]
    assert anyio.current_time() == (2 + 1) + (2 + 2) + 1
    assert [type(e.error) for e in hook.of(AttemptEnded)] == [StepTimeout, StepTimeout, type(None)]


async def test_what_its_cleanup_raises_is_what_it_fails_with():
    @action(timeout=2)
    async def act() -> None:
        try:
            await anyio.sleep(10)
        finally:
            raise LookupError

    with pytest.raises(LookupError) as caught:
        await Application(act).run()
    assert "shoal: raised after the timeout of 2 s" in caught.value.__notes__


async def test_what_else_its_task_group_raises_is_what_it_fails_with():
    @action(timeout=2)
    async def act() -> None:
        async def fail() -> None:
            try:
                await anyio.sleep(10)
            finally:
                raise LookupError

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail)
            tasks.start_soon(anyio.sleep, 10)

    with pytest.raises(ExceptionGroup) as caught:
        await Application(act).run()
    assert caught.group_contains(LookupError)


async def test_its_own_scopes_are_its_own():
    """A timeout within is no timeout of ours; nor does one beyond it hide ours."""

    @action(writes=["out"], timeout=5)
    async def inside() -> str:
        with anyio.move_on_after(1):
            await anyio.sleep(9)
        with suppress(TimeoutError), anyio.fail_after(1):
            await anyio.sleep(9)
        return "went on"

    @action(timeout=5)
    async def outside() -> None:
        with anyio.move_on_after(9):
            await anyio.sleep(20)

    @action(timeout=5)
    async def own() -> None:
        with anyio.fail_after(1):
            await anyio.sleep(20)

    assert (await Application(inside).run()).state["out"] == "went on"
    with pytest.raises(StepTimeout):
        await Application(outside).run()
    with pytest.raises(TimeoutError) as caught:
        await Application(own).run()
    assert not isinstance(caught.value, StepTimeout)


async def test_a_false_cancellation_is_no_timeout():
    @action(reads=["n"], timeout=5)
    async def act(n: int) -> None:
        await anyio.sleep(n)
        raise anyio.get_cancelled_exc_class()

    if not is_asyncio():
        pytest.skip("on trio nobody can make a cancellation")
    with pytest.raises(SpuriousCancel):
        await Application(act).run({"n": 1})


async def test_a_fan_out_that_a_child_cancels_has_not_timed_out():
    @action(reads=["n"], writes=["out"])
    async def act(n: int) -> None:
        nursery = trio.lowlevel.current_task().parent_nursery
        assert nursery is not None
        nursery.cancel_scope.cancel()
        await anyio.sleep(1)

    if is_asyncio():
        pytest.skip("on asyncio code can't reach the scope that it is in")
    many = fan_out(act, over=lambda state: [1, 2], item="n", reads=[], into="out", timeout=5)
    with pytest.raises(SpuriousCancel):
        await Application(many).run({})


async def test_native_cancellation_left_behind_does_not_hide_a_timeout():
    asyncio = pytest.importorskip("asyncio")
    if not is_asyncio():
        pytest.skip("trio has no native cancellation")

    @action(timeout=2)
    async def act() -> None:
        task = asyncio.current_task()
        asyncio.get_running_loop().call_at(2, task.cancel)  # in the very tick
        await anyio.sleep(10)

    @action(timeout=2)
    async def swallowing() -> None:
        asyncio.current_task().cancel()
        with suppress(asyncio.CancelledError):
            await anyio.sleep(10)
        await anyio.sleep(10)

    @action(timeout=2)
    async def twice() -> None:
        asyncio.current_task().cancel()
        with anyio.CancelScope(shield=True), suppress(asyncio.CancelledError):
            await anyio.sleep(1)
        asyncio.get_running_loop().call_at(2, asyncio.current_task().cancel)
        with anyio.CancelScope(shield=True), suppress(asyncio.CancelledError):
            await anyio.sleep(3)
        await anyio.sleep(10)

    for one in (act, swallowing, twice):
        async with no_leaks():
            with pytest.raises(StepTimeout):
                await Application(one).run()
            many = fan_out(one, over="ns", item="n", name="f", on_error="ignore")
            result = await Application(many).run({"ns": [1, 2, 3]})
            assert result.outcomes("f").failed == 3


@pytest.mark.parametrize("at", [1.0, 2.0, 2.5])
async def test_cancellation_from_outside_wins(at: float):
    """Before, in the very tick of the timeout, and during the cleanup after it."""
    hook = RecordingHook()

    @action(timeout=2)
    async def act() -> None:
        try:
            await anyio.sleep(10)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)

    with anyio.move_on_at(at) as scope:
        await Application(act, hooks=[hook]).run()
    assert scope.cancelled_caught
    (ended,) = hook.of(RunEnded)
    assert ended.status == "cancelled" or (at == 2.0 and isinstance(ended.error, StepTimeout))
    hook.assert_paired()


async def test_an_actions_own_children_are_cancelled_with_it():
    hook = RecordingHook()

    @action(timeout=2)
    async def act(context: Context) -> None:
        async with context.fan_out(name="f") as group:
            group.start_each(sleeper(), over=[1, 10], item="n")

    async with no_leaks():
        with pytest.raises(StepTimeout):
            await Application(act, hooks=[hook]).run()
    assert [type(e.outcome) for e in hook.of(ChildEnded)] == [Done, Cancelled]
    hook.assert_paired()


# -- of a child ------------------------------------------------------------------------------------


async def test_a_child_that_takes_too_long_fails_and_the_others_do_not():
    hook = RecordingHook()
    many = fan_out(
        Graph.chain(sleeper(), sleeper().bind(name="again"), name="twice"), over="ns", item="n",
        into="outs", take="out", key=str, each=Each(timeout=3), on_error="collect",
        errors_into="errors",
    )  # fmt: skip
    async with no_leaks():
        result = await Application(many, hooks=[hook]).run({"ns": [1, 2, 5]}, id="r")
    assert anyio.current_time() == 3
    assert result.state.to_plain()["outs"] == {"1": 1}
    failed = list(result.outcomes("outs"))
    assert [(o.key, o.elapsed, type(o)) for o in failed] == [("2", 3, Failed), ("5", 3, Failed)]
    assert isinstance(failed[0], Failed)
    expected = f"child '2' of fan-out 'outs', in 'again', run {failed[0].run_id}, took longer than"
    assert str(failed[0].error) == f"{expected} its timeout of 3 s"
    assert isinstance(failed[0].error, StepTimeout)
    hook.assert_paired()


@pytest.mark.parametrize("stores", [False, True], ids=["", "in a store of its own"])
@pytest.mark.parametrize("position", ["only", "first", "last"])
async def test_a_child_that_swallows_its_timeout_has_failed(position: str, stores: bool):
    hook, ends = RecordingHook(), list[object]()

    class Noting(NullStore):
        def save(self, batch: Batch) -> Any:
            ends.append(batch.ended)

    acts = {
        "only": [swallower()],
        "first": [swallower(), sleeper()],
        "last": [action(name="quick", executor="loop")(lambda: None), swallower()],
    }[position]
    many = fan_out(
        Graph.chain(*acts, name="child"), over="ns", item="n", into="outs", take="out", key=str,
        each=Each(timeout=2), on_error="collect", errors_into="errors",
        store=Noting() if stores else INHERIT,
    )  # fmt: skip
    async with no_leaks():
        result = await Application(many, hooks=[hook]).run({"ns": [3]})
    assert anyio.current_time() == 5
    assert result.state["outs"] == {}
    (failed,) = result.outcomes("outs")
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, StepTimeout)
    assert "in 'swallow'" in str(failed.error)
    statuses = {(e.step, e.status) for e in hook.of(StepEnded) if e.depth == 1}
    assert ("swallow", "failed") in statuses
    assert ("swallow", "succeeded") not in statuses
    hook.assert_paired()
    assert "succeeded" not in ends


async def test_the_time_of_a_child_begins_when_its_first_attempt_does():
    app = Application(
        fan_out(
            sleeper(), over="ns", item="n", into="outs", each=Each(timeout=2.5), on_error="ignore"
        ),
        limits=Limits(1),
    )
    async with no_leaks():
        result = await app.run({"ns": [1, 1, 1, 1]})
    assert result.outcomes("outs").done == 4
    assert anyio.current_time() == 4


async def test_the_time_of_a_child_begins_when_it_does():
    many = fan_out(
        sleeper(), over="ns", item="n", into="outs", each=Each(timeout=1.5), limits=Limits(1)
    )
    assert (await Application(many).run({"ns": [1, 1, 1, 1]})).state["outs"] == [1] * 4


async def test_a_child_with_no_time_for_another_attempt_fails_from_its_last_failure():
    last = ConnectionError("last")

    @action(reads=["n"], writes=["out"])
    async def act(n: int, context: Context) -> None:
        raise last if context.attempt == 2 else ConnectionError

    hook = RecordingHook()
    retry = Retry(9, on=ConnectionError, initial=1, factor=4, cap=60, jitter=0)
    each = Each(timeout=3, retry=retry)
    many = fan_out(act, over="ns", item="n", into="outs", each=each)
    async with no_leaks():
        with pytest.raises(ExceptionGroup) as caught:
            await Application(many, hooks=[hook]).run({"ns": [1]})
    assert anyio.current_time() == 1, "it is not waited for"
    (error,) = caught.value.exceptions
    assert isinstance(error, StepTimeout)
    assert error.__cause__ is last
    assert hook.of(ChildEnded)[0].outcome.attempts == 2
    assert [e.next_in for e in hook.of(AttemptEnded)] == [1, None]
    hook.assert_paired()


async def test_steps_that_a_child_had_completed_stay_completed():
    hook = RecordingHook()
    graph = Graph.chain(sleeper(), sleeper().bind(name="again"), name="twice")
    many = fan_out(
        graph, over="ns", item="n", into="outs", take="out", each=Each(timeout=3), on_error="ignore"
    )
    await Application(many, hooks=[hook]).run({"ns": [2]})
    assert [e.update.step for e in hook.of(StateUpdated) if e.depth == 1] == ["sleep"]
    steps = [(e.step, e.status) for e in hook.of(StepEnded) if e.depth == 1]
    assert steps == [("sleep", "succeeded"), ("again", "failed")]


# -- of a step -------------------------------------------------------------------------------------


class Sleeping(MapStates):
    reads = ("ns",)
    writes = ("outs",)
    timeout = 3

    def action(self, state: State, inputs: Any) -> Any:
        return sleeper()

    def states(self, state: State, inputs: Any) -> Any:
        return ({"n": n} for n in state["ns"])

    def reduce(self, state: State, outcome: Outcome) -> State:
        assert isinstance(outcome, Done)
        return state.append(outs=outcome.value)


def _number(element: Any) -> int:
    return element if isinstance(element, int) else element["n"]


STEPS: dict[str, Callable[[], Any]] = {
    "fan_out": lambda: fan_out(sleeper(), over="ns", item="n", into="outs", timeout=3),
    "by key": lambda: fan_out(
        sleeper(),
        over="ns",
        item="n",
        into="outs",
        key=str,
        timeout=3,
        take="out",
        limits=Limits(3),
    ),
    "class": Sleeping,
}


@pytest.mark.parametrize("kind", STEPS)
async def test_a_step_that_takes_too_long_keeps_what_was_applied(kind: str):
    hook, step = RecordingHook(), STEPS[kind]()
    async with no_leaks():
        with pytest.raises(StepTimeout) as caught:
            await Application(step, hooks=[hook]).run({"ns": [5, 1, 2, 7]}, id="r")
    assert anyio.current_time() == 3
    assert (
        str(caught.value) == f"fan-out {step.name!r} of run r took longer than its timeout of 3 s"
    )
    ended = {_number(e.outcome.element): e.outcome for e in hook.of(ChildEnded)}
    expected = {1: Done, 2: Done, 5: Cancelled, 7: Cancelled}
    assert {n: type(outcome) for n, outcome in ended.items()} == expected
    for outcome in ended.values():
        assert not isinstance(outcome, Cancelled) or outcome.reason == "timeout of 3 s"
    applied = [e.outcome.value for e in hook.of(StateUpdated) if isinstance(e.outcome, Done)]
    assert applied == [1, 2]
    hook.assert_paired()


@pytest.mark.parametrize("kind", STEPS)
async def test_a_step_in_time_is_not_touched(kind: str):
    result = await Application(STEPS[kind]()).run({"ns": [1, 2]})
    assert anyio.current_time() == 2
    assert len(result.state["outs"]) == 2


@pytest.mark.parametrize("cleanup", [0, 1])
async def test_a_steps_children_are_awaited_to_the_end_of_their_cleanup(cleanup: float):
    ended: list[float] = []

    @action(reads=["n"])
    async def act(n: int) -> None:
        try:
            await anyio.sleep(10)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(cleanup * n)
            ended.append(anyio.current_time())

    many = fan_out(act, over="ns", item="n", name="f", timeout=3)
    async with no_leaks():
        with pytest.raises(StepTimeout):
            await Application(many).run({"ns": [1, 2]})
    assert ended == [3 + cleanup, 3 + 2 * cleanup]


async def test_a_source_that_never_gives_anything_is_cut_short():
    closed = False

    async def never(state: State) -> AsyncIterator[int]:
        nonlocal closed
        try:
            await anyio.sleep_forever()
            yield 1
        finally:
            closed = True

    many = fan_out(sleeper(), over=never, reads=[], item="n", name="f", timeout=3)
    async with no_leaks():
        with pytest.raises(StepTimeout):
            await Application(many).run()
    assert closed
    assert anyio.current_time() == 3


async def test_a_step_with_children_that_never_wait_is_cut_short():
    """Nobody waits, but the loop's turn comes; and the clock is virtual: it is moved by another."""
    done = 0

    @action(reads=["n"], executor="loop")
    def act(n: int) -> None:
        nonlocal done
        done += 1

    def numbers(state: State) -> Any:
        yield from iter(int, 1)

    many = fan_out(act, over=numbers, reads=[], item="n", name="f", timeout=3)

    class Slow(NullStore):
        def save(self, batch: Batch) -> Any:
            return anyio.sleep(0.5)

    async with Runtime(store=Slow()) as runtime:
        with pytest.raises(StepTimeout):
            await runtime.run(Application(many))
    assert done > 100
    assert 3 <= anyio.current_time() < 6


async def test_a_failure_before_the_timeout_counts():
    @action(reads=["n"])
    async def act(n: int) -> None:
        try:
            await anyio.sleep(n)
            raise ValueError(n)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(5)

    many = fan_out(act, over="ns", item="n", name="f", timeout=8)
    with pytest.raises(ExceptionGroup) as caught:
        await Application(many).run({"ns": [2, 20]})
    assert caught.group_contains(ValueError)


@pytest.mark.parametrize("when", ["save", "save of a step", "hook"])
@pytest.mark.parametrize("level", ["attempt", "child", "step"])
async def test_a_timeout_in_the_middle_of_a_commit_tears_nothing(level: str, when: str):
    """A save takes two seconds, from one to three; the timeout comes in between."""
    saved: list[Batch] = []

    class Slow(NullStore):
        async def save(self, batch: Batch) -> None:
            if when != "hook" and (when == "save") == bool(batch.applied or not batch.path.depth):
                await anyio.sleep(2)
            saved.append(batch)

    class Hooked(Hook):
        async def on_state_updated(self, event: Any) -> None:
            if when == "hook":
                await anyio.sleep(2)

    hook = RecordingHook()
    graph = Graph.chain(
        sleeper(timeout=2 if level == "attempt" else None), sleeper().bind(name="again"), name="act"
    )
    many = fan_out(
        graph, over="ns", item="n", into="outs", take="out", on_error="ignore",
        each=Each(timeout=2) if level == "child" else None, timeout=2 if level == "step" else None,
    )  # fmt: skip
    async with no_leaks(), Runtime(store=Slow()) as runtime:
        try:
            result = await runtime.run(Application(many, hooks=[Hooked(), hook]), {"ns": [1]})
        except StepTimeout:
            assert level == "step"
        else:
            outcomes = list(result.outcomes("outs"))
            assert len(result.state["outs"]) + len(outcomes) == 1
    hook.assert_paired()
    received = {(e.path, e.update.number) for e in hook.of(StateUpdated)}
    kept = {(batch.path, update.number) for batch in saved for update in batch.updates}
    last = {
        (child.path, child.last_update.number)
        for batch in saved
        for child in (*batch.applied, *batch.unapplied)
        if child.last_update
    }
    assert received == kept | last, "all that is saved is published, and the other way round"


# -- of an action's own fan-out --------------------------------------------------------------------


@pytest.mark.parametrize("waits", ["leaving", "iterating", "elsewhere"])
async def test_an_own_fan_out_that_takes_too_long_is_raised_where_the_action_waits(waits: str):
    hook, caught = RecordingHook(), list[tuple[float, str]]()

    @action(writes=["out"])
    async def act(context: Context) -> int:
        done = 0
        try:
            async with context.fan_out(name="f", timeout=3) as group:
                group.start_each(sleeper(), over=[1, 2, 7], item="n")
                if waits == "elsewhere":
                    await anyio.sleep(5)
                if waits != "leaving":
                    async for outcome in group:
                        done += isinstance(outcome, Done)
        except StepTimeout as error:
            caught.append((anyio.current_time(), str(error)[:15]))
        return done

    async with no_leaks():
        result = await Application(act, hooks=[hook]).run()
    assert caught == [(5 if waits == "elsewhere" else 3, "fan-out 'act/f'")]
    assert result.state["out"] == (0 if waits == "leaving" else 2)
    ends = [e.outcome for e in hook.of(ChildEnded)]
    assert [type(end) for end in ends] == [Done, Done, Cancelled]
    assert isinstance(ends[2], Cancelled)
    assert ends[2].reason == "timeout of 3 s"
    hook.assert_paired()


# -- deadlines -------------------------------------------------------------------------------------


async def test_the_nearest_deadline_of_all_counts():
    seen: dict[str, float] = {}

    def noting(name: str, timeout: float | None = None) -> Any:
        @action(name=name, timeout=timeout, writes=["x"])
        async def act(context: Context) -> int:
            seen[name] = context.deadline
            return 1

        return act

    @action(name="own", writes=["x"])
    async def own(context: Context) -> int:
        async with context.fan_out(name="f", timeout=25, each=Each(timeout=18)) as group:
            group.start(noting("in own"))
            group.start(noting("in own, timed", timeout=7))
        async with context.fan_out(name="g", timeout=25) as group:
            group.start(noting("in own, untimed"))
        return 1

    inner = Graph.chain(noting("inner"), noting("inner, timed", timeout=5), own, name="inner")
    many = fan_out(inner, over="ns", name="many", each=Each(timeout=20), timeout=30)
    free = fan_out(
        Graph.chain(noting("free"), name="free"), over="ns", name="free", each=Each(timeout=50)
    )
    graph = Graph.chain(noting("outer"), many, free)
    with anyio.fail_after(40):
        await Application(graph).run({"ns": [1]})
    assert seen == {
        "outer": 40,
        "inner": 20,
        "inner, timed": 5,
        "in own": 18,
        "in own, timed": 7,
        "in own, untimed": 20,
        "free": 40,
    }
    seen.clear()
    await Application(noting("outer")).run()
    assert seen == {"outer": math.inf}


@pytest.mark.realtime
async def test_a_thread_knows_its_deadline():
    seen: list[float] = []

    @action(timeout=5, writes=["x"])
    def act(context: Context) -> int:
        seen.append(context.deadline)
        return 1

    began = anyio.current_time()
    await Application(act).run()
    await Application(fan_out(act, over="ns", name="f", timeout=3)).run({"ns": [1]})
    assert seen[0] == pytest.approx(began + 5, abs=0.5)
    assert seen[1] == pytest.approx(began + 3, abs=0.5)


# -- nested ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("soonest", ["attempt", "inner child", "inner", "child", "outer"])
async def test_of_nested_timeouts_the_soonest_cuts_short_what_it_is_written_on(soonest: str):
    def seconds(level: str) -> float:
        return 2 if level == soonest else 5

    hook = RecordingHook()
    inner = fan_out(
        sleeper(timeout=seconds("attempt")), over="below", item="n", into="found",
        each=Each(timeout=seconds("inner child")), timeout=seconds("inner"), on_error="ignore",
    )  # fmt: skip

    @action(reads=["item"], writes=["below"])
    async def spread(item: int) -> list[int]:
        return [1, 10]

    outer = fan_out(
        Graph.chain(spread, inner, name="child"), over="ns", into="outs", take="found",
        each=Each(timeout=seconds("child")), timeout=seconds("outer"), on_error="ignore",
    )  # fmt: skip
    async with no_leaks():
        if soonest == "outer":
            with pytest.raises(StepTimeout, match="'outs'"):
                await Application(outer, hooks=[hook]).run({"ns": [1]})
            return
        result = await Application(outer, hooks=[hook]).run({"ns": [1]})
    assert anyio.current_time() == 2
    hook.assert_paired()
    ends = {e.depth: e for e in hook.of(RunEnded) if e.status != "succeeded"}
    if soonest in ("inner", "child"):
        assert result.state["outs"] == []
        name = {"inner": "fan-out 'found'", "child": "child 0 of fan-out 'outs'"}[soonest]
        (outcome,) = result.outcomes("outs")
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.error, StepTimeout)
        assert str(outcome.error).startswith(name)
        assert ends[2].status == "cancelled"
    else:
        assert result.state["outs"] == [[1]]
        assert isinstance(ends[2].error, StepTimeout)
        assert str(ends[2].error).startswith("action" if soonest == "attempt" else "child 1 of")


@pytest.mark.parametrize(
    "options",
    [{"timeout": 0}, {"timeout": -1}, {"timeout": math.inf}, {"timeout": "5"}, {"timeout": True}],
    ids=str,
)
def test_what_is_no_timeout_is_refused(options: dict[str, Any]):
    with pytest.raises(DefinitionError, match="'sleep': timeout= takes a number of seconds"):
        sleeper(**options)
    with pytest.raises(DefinitionError, match="'f': timeout= takes a number of seconds"):
        fan_out(sleeper(), over="ns", item="n", name="f", **options)
    with pytest.raises(DefinitionError, match=r"Each.*takes a number of seconds"):
        Each(**options)
    with pytest.raises(DefinitionError, match="class Sub: timeout="):
        type("Sub", (Sleeping,), options)


def test_what_cannot_be_interrupted_has_no_timeout():
    with pytest.raises(DefinitionError, match="can't be interrupted"):

        @action(timeout=3, executor="loop")
        def act() -> None: ...


async def test_an_own_fan_out_refuses_what_is_no_policy():
    @action()
    async def act(context: Context) -> None:
        context.fan_out(name="f", timeout=0)

    @action()
    async def other(context: Context) -> None:
        context.fan_out(name="f", each=5)  # pyright: ignore[reportArgumentType]

    with pytest.raises(DefinitionError, match="timeout="):
        await Application(act).run()
    with pytest.raises(DefinitionError, match="takes Each"):
        await Application(other).run()


# -- cancelled everywhere --------------------------------------------------------------------------


@every_way
@pytest.mark.parametrize("level", ["attempt", "child", "step", "own"])
def test_timeouts_cancelled_everywhere(how: tuple[Backend, Any], level: str):
    @action(reads=["n"], writes=["out"], timeout=2 if level == "attempt" else None)
    async def act(n: int) -> int:
        try:
            await anyio.sleep(n)
            await checkpoint()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.5)
        return n

    @action(reads=["ns"], writes=["outs"])
    async def own(ns: list[int], context: Context) -> list[object]:
        async with context.fan_out(name="f", timeout=2) as group:
            group.start_each(act, over=ns, item="n")
            with suppress(StepTimeout):
                return [type(outcome) async for outcome in group]
        return []

    many = fan_out(
        act, over="ns", item="n", into="outs", on_error="ignore",
        each=Each(timeout=2) if level == "child" else None,
        timeout=2 if level == "step" else None,
    )  # fmt: skip

    async def scenario(attempt: Attempt) -> None:
        hook = RecordingHook()
        app = Application(own if level == "own" else many, hooks=[hook])
        try:
            ending = await attempt(app.run, {"ns": [1, 2, 3]})
        except StepTimeout:
            assert level in ("step", "own")
        else:
            if not ending.cancelled:
                assert level not in ("step", "own")
                assert ending.result is not None
                assert ending.result.state["outs"] in ([1], [1, 2])
        hook.assert_paired()

    backend, kind = how
    assert cancel_everywhere(scenario, backend=backend, how=kind) > 10


@pytest.mark.parametrize("seconds", [2, 0.1, 1.7])
async def test_a_timeout_is_shown_as_it_was_given(seconds: float):
    """Not as the seconds that are left of it, wherever it is measured from."""

    @action(reads=["n"], writes=["out"])
    async def breaks_off(n: float) -> AsyncIterator[float]:
        await anyio.sleep(n / 3)
        yield n
        await anyio.sleep(n / 3)
        raise ValueError("broke off")

    @action(reads=["n"], writes=["out"])
    async def late(n: float) -> AsyncIterator[float]:
        await anyio.sleep(n)
        yield n

    @action(writes=["out"])
    async def own(context: Context) -> None:
        async with context.fan_out(name="own", timeout=seconds) as group:
            group.start(sleeper(), {"n": 9})

    @action(writes=["out"], timeout=seconds)
    async def alone() -> None:
        await anyio.sleep(9)

    given: dict[str, Any] = {"over": "ns", "item": "n", "into": "outs"}
    each = Each(timeout=seconds)
    restart = first_item(on_break="restart")
    acts: list[Any] = [
        alone,
        own,
        fan_out(sleeper(), **given, timeout=seconds),
        fan_out(sleeper(), **given, each=each),
        race(breaks_off, late, into="out", until=restart, timeout=seconds),  # in its second round
    ]
    for act in acts:
        await anyio.sleep(0.1)  # a clock that differences of aren't exact
        began = anyio.current_time()
        with pytest.raises((StepTimeout, ExceptionGroup)) as caught:
            await Application(act).run({"ns": [9], "n": seconds}, id="r")
        assert anyio.current_time() == pytest.approx(began + seconds)
        error: Any = caught.value
        while isinstance(error, ExceptionGroup):
            (error,) = cast("Any", error).exceptions
        assert str(error).endswith(f"took longer than its timeout of {seconds} s"), act
