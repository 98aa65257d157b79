"""What an action is told about where it runs, and ``context.fan_out``, its own way to fan out."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import math
import sys
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, Literal

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
import trio
from anyio.lowlevel import checkpoint

from shoal import (
    END,
    Application,
    Cancelled,
    Context,
    Done,
    Failed,
    Graph,
    Hook,
    Limits,
    Outcome,
    RunResult,
    Runtime,
    State,
    StoreFailed,
    action,
    fan_out,
    when,
)
from shoal._engine.fanout.action_group import ChildGroup
from shoal.errors import (
    BadKey,
    BadResult,
    BadUse,
    CommitInDoubt,
    DefinitionError,
    DepthExceeded,
    HookFailed,
    MissingField,
    MissingInput,
    SpuriousCancel,
)
from shoal.events import ChildEnded, ChildStarted, RunEnded, SpanStarted, StateUpdated
from shoal.stores._protocol import Batch
from shoal.testing import Attempt, RecordingHook, cancel_everywhere, no_leaks, run_virtual
from shoal.types import Act
from tests.engine.test_cancellation import Keeping, Watched, seen_runs

__all__ = ["seen_runs"]  # a fixture

pytestmark = pytest.mark.anyio

Backend = Literal["asyncio", "trio"]
Body = Callable[[Context], Awaitable[Any]]


# -- actions, and what runs them -------------------------------------------------------------------


@action(reads=["item"], writes=["out"])
async def leaf(item: float) -> float:
    """Sleeps as long as its element says; fails for 13, and takes its time to clean up."""
    try:
        await anyio.sleep(item)
        if item == 13:
            raise ValueError(item)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.25)
    return item


@action(reads=["item"], writes=["out"])
async def quick(item: Any) -> Any:
    """Never waits."""
    return item


@action(reads=["item"], writes=["out"])
async def fails(item: Any) -> None:
    await checkpoint()
    raise ValueError(item)


@action(writes=["out"])
async def never() -> None:
    await anyio.sleep(math.inf)


def acting(body: Body, **options: Any) -> Act:
    """An action ``act`` that does ``body`` and writes what it returns to ``result``."""

    options = {"reads": [], "writes": ["result"], "name": "act", **options}

    @action(**options)
    async def act(context: Context) -> Any:
        return await body(context)

    return act


async def result_of(body: Body, state: Mapping[str, Any] | None = None, **options: Any) -> Any:
    """Run ``body`` as an action; nothing may be left, and all starts and ends are paired."""
    hook = RecordingHook()
    application = {name: options.pop(name) for name in ("limits", "inputs") if name in options}
    try:
        async with no_leaks():
            app = Application(acting(body, **options), hooks=[hook], **application)
            result = await app.run(state)
    finally:
        hook.assert_paired()
    return result.state["result"]


async def drained(group: ChildGroup) -> list[Outcome]:
    return [outcome async for outcome in group]


def values(outcomes: list[Outcome]) -> list[Any]:
    """Return the values of those that are Done, in the order in which they were started."""
    ordered = sorted(outcomes, key=lambda outcome: outcome.position)
    return [outcome.value for outcome in ordered if isinstance(outcome, Done)]


def kinds(outcomes: list[Outcome]) -> dict[Any, str]:
    """How each child ended, by key."""
    found = {outcome.key: type(outcome).__name__ for outcome in outcomes}
    assert len(found) == len(outcomes), "an outcome came twice"
    return found


# -- what an action is told ------------------------------------------------------------------------


async def test_it_says_which_run_and_step_this_is():
    received: list[tuple[Any, ...]] = []

    @action(reads=["item"], writes=["out"])
    async def tell(item: int, context: Context) -> int:
        parent = context.parent
        assert context.run_id == context.path.id
        received.append((parent and parent.id, context.key, context.depth, context.step))
        assert context.attempt == 1
        return item

    step = fan_out(tell, over="n", key=str, into="outs", take="out")
    await Application(Graph.chain(tell.bind(name="first"), step)).run(
        {"n": [7], "item": 1}, id="root"
    )
    assert received == [(None, "", 0, "first"), ("root", "7", 1, "tell")]


async def test_the_deadline_is_the_nearest_one_around_the_run_or_in_the_action():
    async def body(context: Context) -> tuple[float, float, float]:
        outside = context.deadline
        with anyio.fail_after(5):
            nearer = context.deadline
        with anyio.fail_after(500):
            farther = context.deadline
        return outside, nearer, farther

    start = anyio.current_time()
    assert await result_of(body) == (math.inf, start + 5, start + 500)
    with anyio.fail_after(60):
        assert await result_of(body) == (start + 60, start + 5, start + 60)


async def test_children_inherit_the_deadline_around_the_block_that_started_them():
    @action(writes=["out"])
    async def deadline(context: Context) -> float:
        return context.deadline

    async def within(context: Context) -> list[float]:
        async with context.fan_out(name="f") as group:
            group.start(deadline)
            found = [outcome.value async for outcome in group if isinstance(outcome, Done)]
        return [context.deadline, *found]

    async def body(context: Context) -> Any:
        with anyio.fail_after(7):
            async with context.fan_out(name="f") as group:
                with anyio.fail_after(3):  # around the start, not around the children
                    group.start(acting(within))
                (found,) = values([await anext(group)])
                return found

    start = anyio.current_time()
    assert await result_of(body) == [start + 7, start + 7]
    with anyio.fail_after(5):
        assert await result_of(body) == [start + 5, start + 5]


@pytest.mark.realtime
async def test_a_plain_function_in_a_thread_is_refused_too():
    @action(writes=["out"])
    def plain(context: Context) -> tuple[str, float]:
        return context.step, context.deadline

    start = anyio.current_time()
    with anyio.fail_after(60):
        result = await Application(plain).run()
    assert result.state["out"] == ("plain", pytest.approx(start + 60))
    assert (await Application(plain).run()).state["out"] == ("plain", math.inf)


# -- spans -----------------------------------------------------------------------------------------


class Spans(Hook):
    """Writes down which spans are entered and left; fails where told."""

    def __init__(self, name: str = "", fail_on: str = "") -> None:
        self.name = name
        self.fail_on = fail_on
        self.log: list[str] = []

    def fail(self, on: str) -> None:
        if on == self.fail_on:
            raise LookupError(on)

    @contextmanager
    def around_span(self, event: SpanStarted) -> Generator[None]:
        self.fail(f"enter {event.name}")
        self.log.append(f"{self.name}<{event.name} {dict(event.attributes)}")
        try:
            yield
        except BaseException as error:
            self.log.append(f"{self.name}!{type(error).__name__}")
            raise
        finally:
            self.log.append(f"{self.name}{event.name}>")
            self.fail(f"leave {event.name}")


class WatchingSpans(Spans):
    observer = True


async def spanning(context: Context) -> str:
    with context.span("outer", n=1):
        await checkpoint()
        with context.span("inner"):
            await checkpoint()
    return "done"


NESTED = ["<outer {'n': 1}", "<inner {}", "inner>", "outer>"]


async def test_spans_nest():
    spans = Spans()
    await Application(acting(spanning), hooks=[spans]).run()
    assert spans.log == NESTED


async def test_several_hooks_are_left_in_reverse():
    log: list[str] = []
    hooks = [Spans("a"), Spans("b")]
    for spans in hooks:
        spans.log = log

    async def body(context: Context) -> None:
        with context.span("s"):
            pass

    await Application(acting(body), hooks=hooks).run()
    assert log == ["a<s {}", "b<s {}", "bs>", "as>"]


@pytest.mark.realtime
async def test_spans_in_a_thread():
    spans = Spans()

    @action(writes=["result"])
    def plain(context: Context) -> str:
        with context.span("outer", n=1), context.span("inner"):
            return "done"

    await Application(plain, hooks=[spans]).run()
    assert spans.log == NESTED


async def test_what_the_block_raises_goes_through_spans_unchanged():
    spans = Spans()
    error = ValueError("mine")

    async def body(context: Context) -> None:
        with context.span("s"):
            raise error

    with pytest.raises(ValueError) as caught:
        await Application(acting(body), hooks=[spans]).run()
    assert caught.value is error
    assert spans.log == ["<s {}", "!ValueError", "s>"]


@pytest.mark.parametrize("fail_on", ["enter outer", "enter inner", "leave inner", "leave outer"])
@pytest.mark.parametrize("swallows", [False, True])
async def test_a_guard_that_fails_around_a_span_fails_the_run(fail_on: str, *, swallows: bool):
    hook = RecordingHook()

    async def body(context: Context) -> str:
        if not swallows:
            return await spanning(context)
        with suppress(HookFailed):
            await spanning(context)
        return "hidden"

    other = Spans()
    with pytest.raises(HookFailed) as caught:
        await Application(acting(body), hooks=[other, Spans(fail_on=fail_on), hook]).run()
    assert repr(caught.value.__cause__) == repr(LookupError(fail_on))
    assert sum(entry.startswith("<") for entry in other.log) == sum(
        entry.endswith(">") for entry in other.log
    )
    hook.assert_paired()


@pytest.mark.parametrize("fail_on", ["enter outer", "enter inner", "leave inner", "leave outer"])
async def test_an_observer_that_fails_around_a_span_does_not(
    fail_on: str, caplog: pytest.LogCaptureFixture
):
    other = Spans()
    result = await Application(
        acting(spanning), hooks=[WatchingSpans(fail_on=fail_on), other]
    ).run()
    assert result.state["result"] == "done"
    assert other.log == NESTED
    assert sum("WatchingSpans failed" in record.message for record in caplog.records) == 1


# -- starting --------------------------------------------------------------------------------------


async def test_start_is_plain_and_never_waits_and_only_the_limit_run_at_once():
    alive = peak = 0

    @action(reads=["item"], writes=["out"])
    async def count(item: int) -> int:
        nonlocal alive, peak
        alive += 1
        peak = max(peak, alive)
        await anyio.sleep(1)
        alive -= 1
        return item

    async def body(context: Context) -> list[Any]:
        start = anyio.current_time()
        async with context.fan_out(name="f", limits=Limits(3)) as group:
            for n in range(10):
                assert group.start(count, {"item": n}) is None
            assert alive == 0
            outcomes = await drained(group)
        assert anyio.current_time() == start + 4
        return values(outcomes)

    assert await result_of(body) == list(range(10))
    assert peak == 3


async def test_outside_of_the_block_everything_is_refused():
    async def body(context: Context) -> None:
        group = context.fan_out(name="f")

        async def refused(words: str) -> None:
            with pytest.raises(BadUse, match=f"'act/f' of action 'act' {words}"):
                group.start(quick, {"item": 1})
            with pytest.raises(BadUse, match=words):
                group.start_each(quick, over=[1])
            with pytest.raises(BadUse, match="outside of its block"):
                await anext(group)

        await refused("is used outside")
        async with group:
            pass
        await refused("is used outside")
        with pytest.raises(BadUse, match="entered a second time"):
            await group.__aenter__()

    await result_of(body)


@pytest.mark.realtime
async def test_in_a_worker_thread_everything_is_refused():
    """Else it would run in a loop of the thread's own, if in any, beside the one it belongs to."""

    @action(writes=["out"])
    def plain(context: Context) -> None:
        anyio.run(enter, context)

    async def enter(context: Context) -> None:
        async with context.fan_out(name="f") as group:
            group.start(quick, {"item": 1})

    with pytest.raises(
        BadUse, match=r"'plain' calls context\.fan_out in a worker thread.*async def"
    ):
        await Application(plain).run()

    async def body(context: Context) -> list[Any]:
        async with context.fan_out(name="f") as group:
            start = partial(group.start, quick, {"item": 1})
            with pytest.raises(BadUse, match=r"in another thread .*run_sync\(group.start, "):
                await anyio.to_thread.run_sync(start)
            await anyio.to_thread.run_sync(anyio.from_thread.run_sync, start)
            return values(await drained(group))

    assert await result_of(body) == [1]


async def test_after_a_cancel_nothing_is_started():
    async def body(context: Context) -> None:
        async with context.fan_out(name="f") as group:
            group.cancel("enough")
            with pytest.raises(BadUse, match=r"was cancelled \(enough\)"):
                group.start(quick, {"item": 1})
            with pytest.raises(BadUse, match=r"was cancelled \(enough\)"):
                group.start_each(quick, over=[1])

    await result_of(body)


async def test_while_the_block_is_being_left_nothing_is_started():
    async def body(context: Context) -> None:
        group = context.fan_out(name="f")

        async def late() -> None:
            await anyio.sleep(1)
            with pytest.raises(BadUse, match="outside of its block"):
                group.start(quick, {"item": 1})

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(late)
            async with group:
                group.start(leaf, {"item": 2})

    await result_of(body)


async def test_once_the_action_has_ended_its_context_starts_nothing():
    kept: list[Context] = []

    async def keep(context: Context) -> None:
        kept.append(context)

    @action(writes=["later"])
    async def later() -> None:
        with pytest.raises(BadUse, match="after the action has ended"):
            await kept[0].fan_out(name="f").__aenter__()

    async with Runtime() as runtime:
        await runtime.run(Application(Graph.chain(acting(keep), later)))
        with pytest.raises(BadUse, match="after the action has ended"):
            await kept[0].fan_out(name="g").__aenter__()


@pytest.mark.parametrize("key", [1.5, True, b"x", ("a",)])
async def test_keys_are_str_or_int(key: Any):
    async def body(context: Context) -> list[str]:
        async with context.fan_out(name="f") as group:
            with pytest.raises(BadKey, match="keys are str or int"):
                group.start(quick, {"item": 1}, key=key)
        with pytest.raises(BadKey, match="keys are str or int"):
            async with context.fan_out(name="g") as group:
                group.start_each(quick, over=[1], key=lambda _: key)
        return []

    await result_of(body)


async def test_keys_are_told_apart_by_act_and_by_type():
    other = quick.bind(name="other")

    async def body(context: Context) -> list[Any]:
        async with context.fan_out(name="f") as group:
            group.start(quick, {"item": 1}, key="1")
            group.start(quick, {"item": 2}, key=1)
            group.start(other, {"item": 3}, key=1)
            with pytest.raises(BadKey, match="a child of 'quick' with the key 1 was started"):
                group.start(quick, {"item": 4}, key=1)
            outcomes = await drained(group)
        assert len({outcome.run_id for outcome in outcomes}) == 3
        return sorted((outcome.act, str(outcome.key)) for outcome in outcomes)

    assert await result_of(body) == [("other", "1"), ("quick", "1"), ("quick", "1")]


async def test_a_key_function_that_returns_none_fails_the_group():
    """None is no key, as in every other fan-out; only ``start`` takes it for none given."""

    async def body(context: Context) -> None:
        async with context.fan_out(name="f") as group:
            group.start(quick, {"item": 1}, key=None)
            group.start_each(quick, over=["a", "b"], key=lambda one: None if one == "b" else one)
            await drained(group)

    with pytest.raises(BadKey, match="keys are str or int, not None"):
        await result_of(body)


async def test_a_repeated_key_of_an_element_fails_the_group():
    async def body(context: Context) -> None:
        async with context.fan_out(name="f") as group:
            group.start_each(quick, over=["a", "b", "a"], key=str)
            await drained(group)

    with pytest.raises(BadKey, match="with the key 'a' was started before"):
        await result_of(body)


async def test_without_keys_positions_name_the_children():
    async def body(context: Context) -> Any:
        async with context.fan_out(name="f") as group:
            group.start(quick, {"item": "a"})
            group.start_each(quick, over=["b", "c"])
            outcomes = await drained(group)
        assert all(outcome.key == outcome.position for outcome in outcomes)
        return values(outcomes)

    assert await result_of(body) == ["a", "b", "c"]


async def test_what_cannot_be_started_is_refused_at_once_and_harms_nobody():
    @action(reads=["item"], writes=["out"])
    async def needs(item: int, client: str) -> str:
        return f"{client} {item}"

    async def body(context: Context) -> Any:
        async with context.fan_out(name="f") as group:
            with pytest.raises(MissingField, match=r"read field 'item'.*give it to group.start"):
                group.start(quick)
            with pytest.raises(MissingInput, match="'client'"):
                group.start(needs, {"item": 1})
            with pytest.raises(MissingInput, match="'client'"):
                group.start_each(needs, over=[1])
            with pytest.raises(MissingField, match="'item'"):
                group.start_each(quick, over=[1], item="another")
            with pytest.raises(DefinitionError):
                group.start(42, {})  # pyright: ignore[reportArgumentType]
            with pytest.raises(DefinitionError, match="takes a mapping"):
                group.start(quick, [("item", 1)])  # pyright: ignore[reportArgumentType]
            with pytest.raises(BadResult, match="gave an int"):
                group.start_each(quick, over=3)  # pyright: ignore[reportArgumentType]
            misspelt = {"client": "c", "cleint": "c"}
            with pytest.raises(DefinitionError, match=r"'cleint'.*did you mean 'client'"):
                group.start(needs, {"item": 1}, inputs=misspelt)
            with pytest.raises(DefinitionError, match=r"'cleint'.*did you mean 'client'"):
                group.start_each(needs, over=[1], inputs=misspelt)
            group.start(needs, {"item": 1}, inputs={"client": "c"})
            return [outcome.value async for outcome in group if isinstance(outcome, Done)]

    assert await result_of(body) == ["c 1"]


@pytest.mark.parametrize("name", ["", None, 3])
async def test_a_name_that_is_none_is_refused(name: Any):
    async def body(context: Context) -> None:
        with pytest.raises(DefinitionError, match="takes a name"):
            context.fan_out(name=name)
        with pytest.raises(DefinitionError, match="takes Limits"):
            context.fan_out(name="x", limits=3)  # pyright: ignore[reportArgumentType]

    await result_of(body)


async def test_inputs_of_a_task_count_before_those_of_the_run():
    @action(writes=["out"])
    async def show(a: str, b: str, c: str = "default") -> str:
        return f"{a} {b} {c}"

    async def body(context: Context) -> Any:
        async with context.fan_out(name="f") as group:
            group.start(show, inputs={"a": "task"})
            group.start(show)
            group.start(show.bind(a="bound"), inputs={"c": "task"})
            return values(await drained(group))

    app = Application(Graph.chain(show.bind(name="first"), acting(body)))
    result = await app.run(inputs={"a": "run", "b": "run"})
    assert result.state["result"] == ["task run default", "run run default", "bound run task"]


# -- what a child sees -----------------------------------------------------------------------------


@action(reads=["a", "b"], writes=["seen"])
async def see(a: Any, b: Any) -> dict[str, Any]:
    return {"a": a, "b": b}


async def seen_by(start: Callable[[ChildGroup], None], **options: Any) -> Any:
    async def body(context: Context) -> Any:
        async with context.fan_out(name="f") as group:
            start(group)
            outcome = await anext(group)
        assert isinstance(outcome, Done)
        return outcome.value

    state = {"a": 1, "b": 2, "hidden": 3}
    return await result_of(body, state, **options)


async def test_a_child_sees_what_the_action_and_its_own_act_read_and_what_it_is_given():
    everything = {"reads": ["a", "b", "hidden"]}
    assert await seen_by(lambda group: group.start(see), **everything) == {"a": 1, "b": 2}
    given: dict[str, Any] = {"b": 20, "more": 4}
    assert await seen_by(lambda group: group.start(see, given), **everything) == {"a": 1, "b": 20}
    given = {"a": 10}
    assert await seen_by(lambda group: group.start(see, given), reads=["b"]) == {"a": 10, "b": 2}
    with pytest.raises(MissingField, match=r"'b'.*add it to the reads=\[...\] of 'act'"):
        await seen_by(lambda group: group.start(see), reads=["a"])


async def test_a_child_is_given_an_element_before_the_actions_own_field():
    def start(group: ChildGroup) -> None:
        group.start_each(see, over=["element"], item="a")

    assert await seen_by(start, reads=["a", "b"]) == {"a": "element", "b": 2}


@pytest.mark.parametrize("reads", [["a", "b"], ["a"]])
async def test_a_state_that_was_updated_is_given_like_a_mapping(reads: list[str]):
    @action(reads=reads, writes=["b", "result"])
    async def act(state: State, context: Context) -> State:
        async with context.fan_out(name="f") as group:
            group.start(see, state.update(b=20))
            outcome = await anext(group)
        assert isinstance(outcome, Done)
        assert dict(state) == {field: {"a": 1, "b": 2}[field] for field in reads}, "as it was"
        return state.update(result=outcome.value)

    result = await Application(act).run({"a": 1, "b": 2})
    assert result.state["result"] == {"a": 1, "b": 20}
    assert result.state["b"] == 2


async def test_a_state_brings_nothing_that_the_action_does_not_read():
    @action(reads=["a"], writes=["result"])
    async def act(state: State, context: Context) -> State:
        async with context.fan_out(name="f") as group:
            with pytest.raises(MissingField, match="'b'"):
                group.start(see, state)
            group.start(see, State({"a": 5, "b": 6}))
            outcome = await anext(group)
        assert isinstance(outcome, Done)
        return state.update(result=outcome.value)

    result = await Application(act).run({"a": 1, "b": 2})
    assert result.state["result"] == {"a": 5, "b": 6}


async def test_the_parents_state_changes_once_when_the_action_returns():
    hook = RecordingHook()

    async def body(context: Context) -> int:
        async with context.fan_out(name="f") as group:
            group.start_each(quick, over=range(5))
            return len(await drained(group))

    result = await Application(acting(body), hooks=[hook]).run({"out": "mine"})
    own = [event.update.number for event in hook.of(StateUpdated) if event.depth == 0]
    assert own == [1]
    assert result.state.to_plain() == {"out": "mine", "result": 5}


async def test_children_may_be_graphs_and_fan_outs():
    chain = Graph.chain(quick, quick.bind(name="again"), name="chain")
    many = fan_out(quick, over="ns", into="outs", name="many")

    async def body(context: Context) -> Any:
        async with context.fan_out(name="f") as group:
            group.start(chain, {"item": 1})
            group.start(many, {"ns": [1, 2]})
            return {o.act: o.value async for o in group if isinstance(o, Done)}

    assert await result_of(body) == {"chain": 1, "many": [1, 2]}


# -- elements, pulled lazily -----------------------------------------------------------------------


class Pulled:
    """Elements of three kinds, without end or with an error there; counts what is pulled."""

    def __init__(self, stop: int | None = None, *, error: Exception | None = None) -> None:
        self.count = 0
        self.closed = 0
        self.stop = stop
        self.error = error

    def __call__(self, kind: str) -> Any:
        match kind:
            case "sync":
                return self.generate()
            case "async":
                return self.generate_async()
            case _:
                return self.generate_slowly()

    def generate(self) -> Generator[int]:
        try:
            while self.stop is None or self.count < self.stop:
                self.count += 1
                yield self.count
            if self.error is not None:
                raise self.error
        finally:
            self.closed += 1

    async def generate_async(self) -> AsyncIterator[int]:
        try:
            while self.stop is None or self.count < self.stop:
                self.count += 1
                yield self.count
            if self.error is not None:
                raise self.error
        finally:
            self.closed += 1

    async def generate_slowly(self) -> AsyncIterator[int]:
        try:
            while self.stop is None or self.count < self.stop:
                await anyio.sleep(0.125)
                self.count += 1
                yield self.count
            await anyio.sleep(1)
            if self.error is not None:
                raise self.error
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.125)
            self.closed += 1


every_source = pytest.mark.parametrize("kind", ["sync", "async", "slow"])
every_limit = pytest.mark.parametrize("limit", [1, 2, 7])


@every_source
@every_limit
@pytest.mark.parametrize("act", [quick, leaf])
@pytest.mark.parametrize("size", [0, 1, 2, 20])
async def test_every_element_has_one_outcome_and_the_loop_ends(
    kind: str, limit: int, act: Act, size: int
):
    pulled = Pulled(size)

    async def body(context: Context) -> int:
        async with context.fan_out(name="f", limits=Limits(limit)) as group:
            group.start_each(act, over=pulled(kind), key=lambda n: -n)
            outcomes = [o async for o in group if n_ends(o)]
            assert kinds(outcomes) == {-n - 1: "Failed" if act is leaf and n == 12 else "Done"
                                       for n in range(size)}  # fmt: skip
        return len(outcomes)

    def n_ends(outcome: Outcome) -> bool:
        assert outcome.element == -int(outcome.key)
        return True

    assert await result_of(body) == size
    assert pulled.closed == 1


@every_source
@every_limit
@pytest.mark.parametrize("consumes", [0, 5])
async def test_never_more_is_pulled_than_the_limit_allows_beyond_what_was_consumed(
    kind: str, limit: int, consumes: int
):
    pulled = Pulled()

    async def body(context: Context) -> None:
        async with context.fan_out(name="f", limits=Limits(limit)) as group:
            group.start_each(quick, over=pulled(kind))
            await anyio.sleep(10)
            assert pulled.count == limit
            for consumed in range(1, consumes + 1):
                await anext(group)
                assert pulled.count <= limit + consumed
                await anyio.sleep(10)
                assert pulled.count == limit + consumed
            group.cancel()

    await result_of(body)
    assert pulled.closed == 1


@every_source
async def test_a_slow_child_counts_as_pulled(kind: str):
    pulled = Pulled()

    async def body(context: Context) -> None:
        async with context.fan_out(name="f", limits=Limits(3)) as group:
            group.start(never)
            group.start_each(quick, over=pulled(kind))
            await anyio.sleep(10)
            assert pulled.count == 2
            group.cancel()

    await result_of(body)


@every_source
async def test_on_leaving_the_block_all_the_rest_is_pulled(kind: str):
    pulled = Pulled(50)

    async def body(context: Context) -> None:
        async with context.fan_out(name="f", limits=Limits(3)) as group:
            group.start_each(quick, over=pulled(kind))
            await anyio.sleep(10)
            assert pulled.count == 3

    await result_of(body)
    assert (pulled.count, pulled.closed) == (50, 1)


@every_source
@pytest.mark.parametrize("way", ["error", "cancel", "timeout", "cancel before it began", "other"])
async def test_an_infinite_source_is_closed_on_every_way_out(kind: str, way: str):
    pulled, other = Pulled(), Pulled(0, error=LookupError("other"))
    source = pulled(kind)

    async def body(context: Context) -> None:
        async with context.fan_out(name="f", limits=Limits(3)) as group:
            group.start_each(leaf, over=source)
            if way == "cancel before it began":
                group.cancel()
            if way == "other":
                group.start_each(leaf, over=other.generate())
                await drained(group)
            if way == "timeout":
                await anyio.sleep(math.inf)
            for _ in range(3 if way != "cancel before it began" else 0):
                await anext(group)
            if way == "error":
                raise LookupError
            group.cancel()

    with suppress(LookupError), anyio.move_on_after(3):
        await result_of(body)
    if kind == "sync":
        assert inspect.getgeneratorstate(source) == "GEN_CLOSED"
    else:
        assert pulled.closed or not pulled.count
        with pytest.raises(StopAsyncIteration):
            await anext(source)


@every_source
@pytest.mark.parametrize("consumes", [True, False])
async def test_a_source_that_raises_fails_the_group_and_is_raised_in_the_action(
    kind: str, *, consumes: bool
):
    pulled = Pulled(3, error=LookupError("source"))
    seen: list[Outcome] = []

    async def body(context: Context) -> None:
        async with context.fan_out(name="f") as group:
            group.start(never, key="never")
            group.start_each(quick, over=pulled(kind))
            if consumes:
                with pytest.raises(LookupError, match="source"):
                    async for outcome in group:
                        seen.append(outcome)  # noqa: PERF401 # it fails in the end
                with pytest.raises(BadUse, match="LookupError"):
                    group.start(quick, {"item": 1})

    with pytest.raises(LookupError, match="source"):
        await result_of(body)
    if consumes:
        found = kinds(seen)
        assert found.pop("never", "Cancelled") == "Cancelled"
        assert set(found.values()) <= {"Done", "Cancelled"}


async def test_the_failing_of_a_source_is_bare_and_its_key_function_is_blamed_too():
    error = LookupError("key")

    def key(_: int) -> str:
        raise error

    async def body(context: Context) -> None:
        async with context.fan_out(name="f") as group:
            group.start_each(quick, over=[1], key=key)

    with pytest.raises(LookupError) as caught:
        await result_of(body)
    assert caught.value is error


async def test_a_coroutine_function_as_key_is_refused():
    async def key(n: int) -> int:
        return n

    async def body(context: Context) -> None:
        async with context.fan_out(name="f") as group:
            with pytest.raises(DefinitionError):
                group.start_each(quick, over=[1], key=key)

    await result_of(body)


async def test_a_source_that_fails_to_close_hides_no_outcome():
    def stubborn() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            raise LookupError("closing")

    hook = RecordingHook()
    other = Pulled()
    seen: list[Outcome] = []

    async def body(context: Context) -> None:
        async with context.fan_out(name="f", limits=Limits(4)) as group:
            group.start_each(never, over=stubborn())
            group.start_each(never, over=(rest := other.generate()))
            group.start(never, key="last")
            await anyio.sleep(1)
            group.cancel("enough")
            with suppress(LookupError):
                async for outcome in group:
                    seen.append(outcome)  # noqa: PERF401 # it fails in the end
            assert inspect.getgeneratorstate(rest) == "GEN_CLOSED"

    with pytest.raises(LookupError, match="closing"):
        await Application(acting(body), hooks=[hook]).run()
    hook.assert_paired()
    assert set(kinds(seen).values()) == {"Cancelled"}
    assert len(seen) == 4


async def test_several_sources_take_turns_so_an_infinite_one_lets_others_pass():
    async def body(context: Context) -> Any:
        async with context.fan_out(name="f", limits=Limits(2)) as group:
            group.start_each(quick, over=Pulled()("sync"), key=lambda n: f"a{n}")
            group.start_each(quick, over=Pulled()("async"), key=lambda n: f"b{n}")
            group.start_each(quick, over=["x", "y"], key=str)
            group.start(quick, {"item": 0}, key="first")
            keys = list[Any]()
            while not {"x", "y", "a1", "b1"} <= set(keys):  # on trio tasks have no order
                keys.append((await anext(group)).key)
                assert len(keys) < 500
            group.cancel()
        return keys

    keys = await result_of(body)
    assert keys[0] == "first"


# -- consuming -------------------------------------------------------------------------------------


async def test_outcomes_come_as_they_end_failures_too_and_once():
    async def body(context: Context) -> Any:
        async with context.fan_out(name="f") as group:
            for n in (3, 13, 1, 2):
                group.start(leaf, {"item": n}, key=n)
            outcomes = await drained(group)
            assert await drained(group) == []
        assert isinstance(outcomes[-1], Failed)
        assert isinstance(outcomes[-1].error, ValueError)
        return [outcome.key for outcome in outcomes]

    assert await result_of(body) == [1, 2, 3, 13]


async def test_a_loop_over_nothing_ends_at_once():
    async def body(context: Context) -> Any:
        async with context.fan_out(name="f") as group:
            assert await drained(group) == []
            with pytest.raises(StopAsyncIteration):
                await anext(group)
        return anyio.current_time()

    assert await result_of(body) == anyio.current_time()


async def test_a_loop_can_be_resumed_after_more_was_started():
    async def body(context: Context) -> Any:
        found: list[Any] = []
        async with context.fan_out(name="f") as group:
            group.start(leaf, {"item": 1}, key="a")
            found.append([o.key for o in await drained(group)])
            group.start_each(quick, over=["b", "c"], key=str)
            found.append(sorted(kinds(await drained(group))))
            group.start(leaf, {"item": 1}, key="d")
            found.append((await anext(group)).key)
        return found

    assert await result_of(body) == [["a"], ["b", "c"], "d"]


@every_source
async def test_elements_may_be_started_long_after_the_block_began(kind: str):
    async def body(context: Context) -> Any:
        async with context.fan_out(name="f", limits=Limits(2)) as group:
            await anyio.sleep(1)
            group.start_each(quick, over=Pulled(3)(kind))
            first = await drained(group)
            group.start_each(quick, over=Pulled(3)(kind))
            return values(first + await drained(group))

    assert await result_of(body) == [1, 2, 3, 1, 2, 3]


async def test_a_frontier_by_hand():
    """Each outcome starts more, inside of the loop."""

    async def body(context: Context) -> Any:
        seen = {1}
        async with context.fan_out(name="f", limits=Limits(3)) as group:
            group.start(leaf, {"item": 1}, key=1)
            order: list[Any] = []
            async for outcome in group:
                order.append(outcome.key)
                for found in (2 * int(outcome.key), 2 * int(outcome.key) + 1, 3):
                    if found < 13 and found not in seen:
                        seen.add(found)
                        group.start(leaf, {"item": found % 3}, key=found)
        return order

    order = await result_of(body)
    assert sorted(order) == list(range(1, 13))


async def test_starting_while_another_task_consumes():
    async def body(context: Context) -> Any:
        async with context.fan_out(name="f") as group, anyio.create_task_group() as tasks:
            group.start(leaf, {"item": 1}, key="first")

            async def more() -> None:
                await anyio.sleep(1)
                group.start(leaf, {"item": 1}, key="more")

            tasks.start_soon(more)
            return [outcome.key async for outcome in group]

    assert await result_of(body) == ["first", "more"]


async def test_two_consumers_at_once_are_refused():
    async def body(context: Context) -> Any:
        async with context.fan_out(name="f") as group:
            group.start(leaf, {"item": 1}, key="a")
            refused = 0

            async def consume() -> None:
                nonlocal refused
                try:
                    await drained(group)
                except BadUse:
                    refused += 1

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(consume)
                tasks.start_soon(consume)
            group.start(quick, {"item": 1}, key="b")
            assert [o.key for o in await drained(group)] == ["b"]
            return refused

    assert await result_of(body) == 1


@pytest.mark.parametrize("how", ["scope", "native"])
async def test_one_that_is_interrupted_in_its_wait_misses_nothing(
    how: str, anyio_backend_name: str
):
    if how == "native" and anyio_backend_name == "trio":
        return

    async def body(context: Context) -> Any:
        found: list[Any] = []
        async with context.fan_out(name="f") as group:
            group.start_each(leaf, over=[1, 2, 13, 4], key=int)
            for _ in range(80):
                with suppress(TimeoutError, StopAsyncIteration):
                    if how == "native":
                        async with asyncio.timeout(0.25):
                            found.append((await anext(group)).key)
                    else:
                        with anyio.fail_after(0.25):
                            found.append((await anext(group)).key)
        return found

    assert await result_of(body) == [1, 2, 4, 13]


# -- leaving ---------------------------------------------------------------------------------------


async def test_leaving_awaits_what_was_not_consumed_and_raises_its_failures_in_order():
    hook = RecordingHook()

    async def body(context: Context) -> None:
        async with context.fan_out(name="f") as group:
            group.start(fails, {"item": "consumed"}, key="consumed")
            outcome = await anext(group)
            assert isinstance(outcome, Failed)
            group.start(leaf, {"item": 13}, key="slow")
            group.start(leaf, {"item": 1}, key="well")
            group.start(fails, {"item": "fast"}, key="fast")

    with pytest.raises(ExceptionGroup, match="2 children of fan-out 'act/f' failed") as caught:
        await Application(acting(body), hooks=[hook]).run(id="root")
    errors = caught.value.exceptions
    assert [error.args for error in errors] == [(13,), ("fast",)]
    for error, act, key in zip(errors, ("leaf", "fails"), ("slow", "fast"), strict=True):
        (note,) = error.__notes__
        assert f"in action {act!r} of 'act/f', key {key!r}, run " in note
    hook.assert_paired()
    assert len(hook.of(ChildEnded)) == 4


async def test_one_failure_is_in_a_group_too():
    async def body(context: Context) -> None:
        async with context.fan_out(name="f") as group:
            group.start(fails, {"item": 1})

    with pytest.RaisesGroup(ValueError):
        await result_of(body)


async def test_failures_that_were_consumed_are_the_actions():
    async def body(context: Context) -> Any:
        async with context.fan_out(name="f") as group:
            group.start_each(fails, over=range(5))
            return len(await drained(group))

    assert await result_of(body) == 5


@pytest.mark.parametrize("raises", [KeyError("mine"), ExceptionGroup("mine", [ValueError()])])
async def test_leaving_by_an_exception_cancels_awaits_cleanup_and_keeps_it_bare(raises: Exception):
    hook = RecordingHook()

    async def body(context: Context) -> None:
        async with context.fan_out(name="f", limits=Limits(3)) as group:
            group.start(fails, {"item": "not consumed"})
            group.start_each(leaf, over=[100, 200, 300, 400])
            await anyio.sleep(1)
            raise raises

    start = anyio.current_time()
    with pytest.raises(type(raises)) as caught:
        await Application(acting(body), hooks=[hook]).run()
    assert caught.value is raises
    assert anyio.current_time() == start + 1.25
    hook.assert_paired()
    reasons = [e.outcome.reason for e in hook.of(ChildEnded) if isinstance(e.outcome, Cancelled)]
    assert reasons == [f"the action raised {raises!r}"] * 2  # one place is that of the failure


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("where", ["in the block", "in leaving it"])
async def test_a_timeout_around_the_block_in_the_action(
    anyio_backend_name: str, where: str, *, native: bool
):
    if native and anyio_backend_name == "trio":
        return

    async def block(context: Context) -> None:
        async with context.fan_out(name="f") as group:
            group.start_each(leaf, over=[1, 100, 200])
            if where == "in the block":
                await anyio.sleep(math.inf)

    async def body(context: Context) -> float:
        with pytest.raises(TimeoutError):
            if native:
                async with asyncio.timeout(2):
                    await block(context)
            else:
                with anyio.fail_after(2):
                    await block(context)
        return anyio.current_time()

    hook = RecordingHook()
    start = anyio.current_time()
    async with no_leaks():
        result = await Application(acting(body), hooks=[hook]).run()
    assert result.state["result"] == start + 2.25
    ledger = result.outcomes("act/f")
    assert (ledger.done, ledger.cancelled) == (1, 2)
    hook.assert_paired()


# -- cancelling by hand ----------------------------------------------------------------------------


async def test_a_race_by_hand():
    async def body(context: Context) -> Any:
        async with context.fan_out(name="f", limits=Limits(3)) as group:
            for n in (3, 13, 1, 200, 300):
                group.start(leaf, {"item": n}, key=n)
            first = await anext(group)
            group.cancel("have one")
            assert isinstance(first, Done)
            rest = await drained(group)
            assert {o.key: o.reason for o in rest if isinstance(o, Cancelled)} == dict.fromkeys(
                (3, 13, 200, 300), "have one"
            )
            assert len(rest) == 4
            return first.key

    start = anyio.current_time()
    assert await result_of(body) == 1
    assert anyio.current_time() == start + 1.5


async def test_the_block_is_left_normally_and_the_action_returns():
    async def body(context: Context) -> str:
        async with context.fan_out(name="f", limits=Limits(2)) as group:
            group.start_each(leaf, over=Pulled()("sync"))
            await anext(group)
            group.cancel()
            return "returned"

    assert await result_of(body) == "returned"


@pytest.mark.parametrize("kind", ["sync", "async", "slow", "start"])
async def test_cancelled_before_it_has_begun_to_live(kind: str):
    async def body(context: Context) -> Any:
        async with context.fan_out(name="f") as group:
            if kind == "start":
                group.start(never, key="a")
                group.start(never, key="b")
            else:
                group.start_each(never, over=Pulled()(kind))
            group.cancel("at once")
            return [(o.key, o.reason) async for o in group if isinstance(o, Cancelled)]

    expected = [("a", "at once"), ("b", "at once")] if kind == "start" else []
    assert await result_of(body) == expected


async def test_cancelled_twice_the_first_reason_counts():
    async def body(context: Context) -> Any:
        async with context.fan_out(name="f", limits=Limits(1)) as group:
            group.start(never)
            group.start(never)
            await anyio.sleep(1)
            group.cancel("first")
            group.cancel("second")
            await checkpoint()
            group.cancel("third")
            found = [o.reason async for o in group if isinstance(o, Cancelled)]
            group.cancel("after the end")
        group.cancel("after the block")
        return found

    assert await result_of(body) == ["first", "first"]


async def test_cancelled_before_and_again_the_first_reason_counts():
    async def body(context: Context) -> Any:
        async with context.fan_out(name="f") as group:
            group.start(never)
            group.cancel("first")
            group.cancel("second")
            return [o.reason async for o in group if isinstance(o, Cancelled)]

    assert await result_of(body) == ["first"]


async def test_cancelled_before_the_block_it_does_nothing():
    async def body(context: Context) -> Any:
        group = context.fan_out(name="f")
        group.cancel("too early")
        async with group:
            group.start(quick, {"item": 1})
            return [type(o).__name__ for o in await drained(group)]

    assert await result_of(body) == ["Done"]


async def test_a_child_may_cancel_its_own_group():
    async def body(context: Context) -> Any:
        async with context.fan_out(name="f") as group:

            @action(writes=["out"])
            async def stop() -> None:
                await anyio.sleep(1)
                group.cancel("by a child")
                await anyio.sleep(math.inf)

            group.start(stop)
            group.start(never)
            return [o.reason async for o in group if isinstance(o, Cancelled)]

    assert await result_of(body) == ["by a child", "by a child"]


async def test_failures_before_and_during_the_cancel_are_raised_if_nobody_consumed_them():
    @action(writes=["out"])
    async def falls() -> None:
        try:
            await anyio.sleep(math.inf)
        finally:
            raise LookupError("cleanup")

    async def body(context: Context) -> None:
        async with context.fan_out(name="f") as group:
            group.start(falls)
            group.start(fails, {"item": 1})
            await anyio.sleep(1)
            group.cancel()

    with pytest.RaisesGroup(LookupError, ValueError):
        await result_of(body)


async def test_a_child_that_swallows_its_cancellation_ends_well():
    @action(writes=["out"])
    async def stubborn() -> str:
        try:
            await anyio.sleep(math.inf)
        except anyio.get_cancelled_exc_class():
            pass
        return "anyway"

    async def body(context: Context) -> Any:
        async with context.fan_out(name="f") as group:
            group.start(stubborn)
            group.start(never)
            await anyio.sleep(1)
            group.cancel("enough")
            outcomes = await drained(group)
        assert [o.reason for o in outcomes if isinstance(o, Cancelled)] == ["enough"]
        return values(outcomes)

    assert await result_of(body) == ["anyway"]


# -- several groups, and who their children are ----------------------------------------------------


async def test_a_name_is_used_once_in_an_attempt():
    async def body(context: Context) -> None:
        async with context.fan_out(name="f"):
            pass
        with pytest.raises(DefinitionError, match="opens two fan-outs named 'f'"):
            context.fan_out(name="f")

    await result_of(body)


@pytest.mark.parametrize("how", ["sequential", "nested", "concurrent"])
async def test_two_groups_in_one_action(how: str):
    hook = RecordingHook()

    async def body(context: Context) -> Any:
        found: dict[str, list[Any]] = {}

        async def one(name: str, base: int, inside: Body | None = None) -> None:
            async with context.fan_out(name=name, limits=Limits(2)) as group:
                group.start_each(leaf, over=range(base, base + 4), key=int)
                if inside is not None:
                    await inside(context)
                found[name] = sorted(kinds(await drained(group)))

        match how:
            case "sequential":
                await one("a", 0)
                await one("b", 2)
            case "nested":
                await one("a", 0, lambda _: one("b", 2))
            case _:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(one, "a", 0)
                    tasks.start_soon(one, "b", 2)
        return found

    result = await Application(acting(body), hooks=[hook]).run()
    assert result.state["result"] == {"a": [0, 1, 2, 3], "b": [2, 3, 4, 5]}
    assert result.outcomes("act/a").done == result.outcomes("act/b").done == 4
    hook.assert_paired()
    assert len({event.outcome.run_id for event in hook.of(ChildEnded)}) == 8


async def test_one_of_two_is_cancelled_alone():
    async def body(context: Context) -> Any:
        async with context.fan_out(name="a") as a, context.fan_out(name="b") as b:
            a.start(never)
            b.start(leaf, {"item": 5})
            await anyio.sleep(1)
            a.cancel()
            assert set(kinds(await drained(a)).values()) == {"Cancelled"}
            assert set(kinds(await drained(b)).values()) == {"Done"}

    await result_of(body)


async def test_one_of_two_that_fails_in_leaving_cancels_the_other():
    async def body(context: Context) -> None:
        async with context.fan_out(name="a") as a:
            a.start(never)
            async with context.fan_out(name="b") as b:
                b.start(fails, {"item": 1})

    with pytest.RaisesGroup(ValueError):
        await result_of(body)


async def test_the_ledger_counts_by_kind():
    async def body(context: Context) -> None:
        async with context.fan_out(name="f", limits=Limits(3)) as group:
            for n in (0, 1, 13, 200, 300, 400):
                group.start(leaf, {"item": n})
            await anyio.sleep(20)
            await drain_failures(group)
            group.cancel()

    async def drain_failures(group: ChildGroup) -> None:
        for _ in range(3):
            await anext(group)

    result = await Application(acting(body)).run()
    ledger = result.outcomes("act/f")
    assert (ledger.done, ledger.failed, ledger.cancelled, ledger.skipped) == (2, 1, 3, 0)
    assert ledger.total == 6
    assert (len(ledger), list(ledger)) == (0, []), "also of what it has not consumed"
    with pytest.raises(KeyError, match="act/f"):
        result.outcomes("act/g")


@action(reads=["turn"], writes=["turn", "ids"])
async def looping(turn: int, context: Context) -> dict[str, Any]:
    async with context.fan_out(name="f") as group:
        group.start(quick, {"item": turn}, key="same")
        group.start(quick, {"item": turn})
        return {"turn": turn + 1, "ids": sorted([o.run_id async for o in group])}


async def test_the_ids_of_children_depend_on_run_step_visit_name_act_and_key_alone():
    ids: list[list[str]] = []

    @action(reads=["ids"], writes=[])
    async def note_ids(ids: list[str], seen: list[list[str]]) -> None:
        seen.append(ids)

    def loop(name: str = "looping") -> Graph:
        turn, note = looping.bind(name=name), note_ids
        return Graph(
            (turn, note), (note, turn, when(lambda turn: turn < 3)), (note, END), entry=turn
        )

    async def run(name: str = "looping", run_id: str = "root") -> RunResult[Any]:
        return await Application(loop(name)).run({"turn": 0}, id=run_id, inputs={"seen": ids})

    result = await run()
    assert len(ids) == 3
    assert len({child for each in ids for child in each}) == 6, "a visit's children are fresh"
    assert [result.outcomes("looping/f", visit).done for visit in range(3)] == [2, 2, 2]
    first, ids[:] = list(ids), []
    await run()
    assert ids == first, "the same run has the same children"
    ids[:] = []
    await run(run_id="another")
    await run("other")
    assert len({child for each in (*first, *ids) for child in each}) == 18


async def test_a_group_in_the_children_of_a_group():
    @action(reads=["item"], writes=["out"])
    async def count(item: int, context: Context) -> int:
        """How many there are in a tree in which ``item`` has children below it."""
        async with context.fan_out(name="below", limits=Limits(2)) as group:
            group.start_each(count, over=range(item))
            return 1 + sum([o.value async for o in group if isinstance(o, Done)])

    hook = RecordingHook()
    result = await Application(count, hooks=[hook]).run({"item": 6})
    assert result.state["out"] == 2**6
    hook.assert_paired()
    assert max(event.depth for event in hook.events) == 6


async def test_recursion_that_never_ends_is_refused():
    @action(writes=["out"])
    async def forever(context: Context) -> None:
        async with context.fan_out(name="below") as group:
            group.start(forever)
            outcome = await anext(group)
        if isinstance(outcome, Failed):
            raise outcome.error

    async with no_leaks():
        with pytest.raises(DepthExceeded, match="at most 5 are allowed"):
            await Application(forever, max_depth=5).run()


async def test_children_have_context_variables_of_their_own():
    variable = contextvars.ContextVar("variable", default="none")

    @action(reads=["item"], writes=["out"])
    async def change(item: int) -> str:
        before = variable.get()
        variable.set(f"child {item}")
        await checkpoint()
        return f"{before} {variable.get()}"

    async def body(context: Context) -> Any:
        variable.set("action")
        async with context.fan_out(name="f") as group:
            group.start_each(change, over=range(3))
            found = sorted([o.value async for o in group if isinstance(o, Done)])
        assert variable.get() == "action"
        return found

    assert await result_of(body) == [f"action child {n}" for n in range(3)]


# -- slots -----------------------------------------------------------------------------------------


async def test_recursion_under_a_limit_of_one_does_not_deadlock():
    alive = 0

    @action(reads=["item"], writes=["out"])
    async def walk(item: int, context: Context) -> int:
        nonlocal alive
        alive += 1
        assert alive == 1
        await anyio.sleep(1)
        alive -= 1
        async with context.fan_out(name="below") as group:
            group.start_each(walk, over=range(item))
            total = 1 + sum([o.value async for o in group if isinstance(o, Done)])
        alive += 1
        assert alive == 1
        await anyio.sleep(1)
        alive -= 1
        return total

    assert (await Application(walk, limits=Limits(1)).run({"item": 3})).state["out"] == 8


class Alone:
    """Asserts that what runs in it runs alone, as under a limit of one."""

    def __init__(self) -> None:
        self.inside = 0
        self.log: list[str] = []

    async def run(self, name: str, seconds: float = 1) -> None:
        self.log.append(name)
        self.inside += 1
        assert self.inside == 1, self.log
        try:
            await anyio.sleep(seconds)
            assert self.inside == 1, self.log
        finally:
            self.inside -= 1


@pytest.mark.parametrize("way", ["normally", "by an exception", "by group.cancel", "by failing"])
async def test_after_the_block_the_action_has_its_slot_again_before_new_attempts(way: str):
    alone = Alone()

    @action(reads=["item"], writes=["out"])
    async def work(item: int, context: Context) -> None:
        await alone.run(f"{item} before")
        if item:
            return
        with suppress(KeyError, ExceptionGroup):
            async with context.fan_out(name="f") as group:
                for n in range(3):
                    group.start(other, {"item": n})
                if way == "by an exception":
                    await anext(group)
                    raise KeyError
                if way == "by group.cancel":
                    await anext(group)
                    group.cancel()
                if way == "by failing":
                    group.start(fails, {"item": 1})
        await alone.run(f"{item} after")

    @action(reads=["item"], writes=["out"])
    async def other(item: int) -> None:
        await alone.run(f"child {item}")

    many = fan_out(work, over=range_of(4), reads=[], into="outs", take="out")
    async with no_leaks():
        await Application(many, limits=Limits(1)).run()
    assert alone.log[0] == "0 before"
    assert set(alone.log) >= {"0 after", "1 before", "2 before", "3 before"}


def range_of(n: int) -> Callable[[State], range]:
    return lambda _: range(n)


@pytest.mark.parametrize("where", ["in the block", "in waiting for the slot"])
@pytest.mark.parametrize("native", [False, True])
async def test_after_a_timeout_around_the_block_the_action_is_next_to_have_its_slot(
    anyio_backend_name: str, where: str, *, native: bool
):
    """It can't wait for it in a scope that is cancelled; but it doesn't go without for ever."""
    if native and anyio_backend_name == "trio":
        return
    starts: list[tuple[float, Any]] = []
    start = anyio.current_time()

    def log(subject: Any) -> None:
        starts.append((anyio.current_time() - start, subject))

    async def block(context: Context) -> None:
        async with context.fan_out(name="f"):
            await anyio.sleep(1 if where == "in waiting for the slot" else math.inf)

    @action(reads=["item"], writes=["out"])
    async def work(item: int, context: Context) -> None:
        log(item)
        if item:
            await anyio.sleep(4)
            return
        with suppress(TimeoutError):
            if native:
                async with asyncio.timeout(2):
                    await block(context)
            else:
                with anyio.fail_after(2):
                    await block(context)
        log("interrupted")
        await anyio.sleep(4)

    many = fan_out(work, over=range_of(4), reads=[], into="outs", take="out")
    async with no_leaks():
        await Application(many, limits=Limits(1)).run()
    # 1 has the slot until 4; from then on 0 has it again, until its end at 6
    assert starts == [(0, 0), (0, 1), (2, "interrupted"), (6, 2), (10, 3)]


async def test_a_second_block_that_is_entered_while_the_slot_is_waited_for():
    """The action is inside a block again, so it must not be given a slot."""

    async def body(context: Context) -> None:
        async def first() -> None:
            async with context.fan_out(name="a"):
                pass  # waits for the slot, which the other run has

        async def second() -> None:
            await anyio.sleep(1)
            async with context.fan_out(name="b") as group:
                group.start(leaf, {"item": 1})

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first)
            tasks.start_soon(second)

    async with Runtime(limits=Limits(1)) as runtime, anyio.create_task_group() as tasks:
        tasks.start_soon(runtime.run, Application(acting(body)))
        for item in (5, 6):
            tasks.start_soon(runtime.run, Application(leaf), {"item": item})


async def test_a_cancelled_action_gives_its_slot_to_others():
    async def body(context: Context) -> None:
        async with context.fan_out(name="f") as group:
            group.start(never)

    async with Runtime(limits=Limits(1)) as runtime, anyio.create_task_group() as tasks:
        tasks.start_soon(runtime.run, Application(leaf), {"item": 5})
        with anyio.move_on_after(7):
            await runtime.run(Application(acting(body)))
        with anyio.fail_after(1):
            await runtime.run(Application(quick), {"item": 1})


# -- failures that are not the children's ----------------------------------------------------------


def kept_by(store: Keeping, act: Act, *hooks: Hook) -> Application:
    app = Application(act, hooks=hooks)
    app.store = store
    return app


async def many_children(context: Context) -> int:
    async with context.fan_out(name="f", limits=Limits(3)) as group:
        group.start_each(quick, over=range(4))
        group.start_each(leaf, over=[1, 2, 3, 13, 1, 100, 200])
        return sum([isinstance(outcome, Done) async for outcome in group])


async def swallowing(context: Context) -> str:
    with suppress(Exception):
        await many_children(context)
    return "swallowed"


async def hiding(context: Context) -> str:
    try:
        await many_children(context)
    except Exception as error:
        raise LookupError("another") from error
    return "unreached"


@pytest.mark.parametrize("body", [many_children, swallowing, hiding])
@pytest.mark.parametrize("failing_save", [1, 2, 4, 6])
@pytest.mark.parametrize("how", ["raises", "raises when awaited", "hangs"])
async def test_a_store_that_fails_ends_the_execution_whatever_the_action_does(
    body: Body, failing_save: int, how: str
):
    saves = 0

    class Failing(Keeping):
        def save(self, batch: Batch) -> Awaitable[None] | None:
            nonlocal saves
            saves += 1
            assert saves <= failing_save, "nothing is saved after a save that failed"
            if saves < failing_save:
                return super().save(batch)
            if how == "raises":
                raise OSError("full")
            return self.fail()

        async def fail(self) -> None:
            await anyio.sleep(1 if how == "raises when awaited" else math.inf)
            raise OSError("full")

    hook = RecordingHook()
    expected = {"hangs": CommitInDoubt}.get(how, StoreFailed)
    hidden = LookupError if body is hiding else expected
    async with no_leaks():
        with pytest.raises((expected, hidden)):
            await kept_by(Failing(), acting(body), hook).run({})
    hook.assert_paired()
    lost = [
        event.outcome
        for event in hook.of(ChildEnded)
        if isinstance(event.outcome, Cancelled) and "not be saved" in event.outcome.reason
    ]
    assert lost
    assert not any(isinstance(o, Done) and o.run_id in {x.run_id for x in lost} for o in lost)
    (end,) = (event for event in hook.of(RunEnded) if event.depth == 0)
    assert end.status == "failed"


async def test_no_on_error_tolerates_what_an_action_hides_of_a_failed_store():
    class Failing(Keeping):
        def save(self, batch: Batch) -> None:
            if batch.unapplied and batch.path.depth == 1:
                raise OSError("full")

    hook = RecordingHook()
    many = fan_out(
        acting(hiding).bind(name="act"), over=range_of(3), reads=[], into="outs", take="result",
        on_error="collect",
    )  # fmt: skip
    with pytest.raises(StoreFailed):
        await kept_by(Failing(), many, hook).run({})
    hook.assert_paired()


class Guard(Hook):
    """Fails on the n-th event of a kind of a child."""

    def __init__(self, method: str, at: int) -> None:
        self.method = method
        self.left = at

    def receive(self, method: str, event: Any) -> None:
        of_a_child = event.depth == (0 if method.startswith("on_child") else 1)
        if method == self.method and of_a_child:
            self.left -= 1
            if self.left == 0:
                raise LookupError(method)

    def on_child_started(self, event: Any) -> None:
        self.receive("on_child_started", event)

    def on_run_started(self, event: Any) -> None:
        self.receive("on_run_started", event)

    def on_step_started(self, event: Any) -> None:
        self.receive("on_step_started", event)

    def on_step_ended(self, event: Any) -> None:
        self.receive("on_step_ended", event)

    def on_state_updated(self, event: Any) -> None:
        self.receive("on_state_updated", event)

    def on_run_ended(self, event: Any) -> None:
        self.receive("on_run_ended", event)

    def on_child_ended(self, event: Any) -> None:
        self.receive("on_child_ended", event)


METHODS = [name for name in vars(Guard) if name.startswith("on_")]


@pytest.mark.parametrize("body", [many_children, swallowing, hiding])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("at", [1, 5])
async def test_a_guard_that_fails_ends_the_run_whatever_the_action_does(
    body: Body, method: str, at: int
):
    hook, store = RecordingHook(), Keeping()
    async with no_leaks():
        with pytest.raises(LookupError if body is hiding else HookFailed):
            await kept_by(store, acting(body), Guard(method, at), hook).run({})
    hook.assert_paired()
    assert set(store.child_ends.values()) == {1}
    assert {e.outcome.run_id for e in hook.of(ChildEnded)} == set(store.child_ends)


async def test_outcomes_that_a_failing_guard_received_are_still_delivered():
    hook = RecordingHook()
    seen: list[str] = []

    async def body(context: Context) -> None:
        async with context.fan_out(name="f") as group:
            group.start_each(quick, over=range(5))
            async for outcome in group:
                seen.append(outcome.run_id)  # noqa: PERF401 # it fails in the end

    with pytest.raises(HookFailed):
        await Application(acting(body), hooks=[Guard("on_child_ended", 1), hook]).run()
    assert seen
    assert sorted(seen) == sorted(event.outcome.run_id for event in hook.of(ChildEnded))


async def test_a_spurious_cancellation_fails_its_child_alone():
    @action(writes=["out"])
    async def spoilt() -> None:
        await checkpoint()
        kind = anyio.get_cancelled_exc_class()
        if kind is trio.Cancelled:
            raise getattr(kind, "_create")(source="explicit")  # noqa: B009 # private
        raise kind

    async def body(context: Context) -> Any:
        async with context.fan_out(name="f") as group:
            group.start(spoilt, key="spoilt")
            group.start(leaf, {"item": 1}, key="well")
            outcomes = {outcome.key: outcome async for outcome in group}
        assert isinstance(outcomes["well"], Done)
        spoilt_one = outcomes["spoilt"]
        assert isinstance(spoilt_one, Failed)
        assert isinstance(spoilt_one.error, SpuriousCancel)

    await result_of(body)


class Panic(BaseException):
    """What an extension module may raise."""


@pytest.mark.parametrize("where", ["looping", "sleeping", "leaving"])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, Panic])
async def test_an_interrupt_in_a_child_comes_bare_out_of_run(where: str, kind: type[BaseException]):
    hook = RecordingHook()

    @action(writes=["out"])
    async def interrupts() -> None:
        await anyio.sleep(1)
        raise kind("now")

    async def body(context: Context) -> None:
        async with context.fan_out(name="f") as group:
            group.start(interrupts)
            group.start_each(leaf, over=[100, 200])
            if where == "looping":
                async for _ in group:
                    pass
            if where == "sleeping":
                await anyio.sleep(2)

    async with no_leaks():
        with pytest.raises(kind, match="now"):
            await Application(acting(body), hooks=[hook]).run()
    hook.assert_paired()


# -- what is told and saved ------------------------------------------------------------------------


async def busy(context: Context) -> list[Any]:
    """A map, a cancelled race inside of it, and a frontier, all at once."""
    async with context.fan_out(name="map", limits=Limits(2)) as group:
        group.start_each(leaf, over=[1, 2, 13, 1])
        async with context.fan_out(name="race") as race:
            race.start_each(leaf, over=[1, 3, 2], key=str)
            race.start(Graph.chain(quick, leaf, name="two steps"), {"item": 1})
            winner = await anext(race)
            race.cancel(f"{winner.key} was first")
        keys: list[Any] = [winner.key]
        async with context.fan_out(name="frontier") as frontier:
            frontier.start(quick, {"item": 0}, key=0)
            async for outcome in frontier:
                keys.append(outcome.key)
                if isinstance(outcome.key, int) and outcome.key < 3:
                    frontier.start(quick, {"item": 0}, key=outcome.key + 1)
        keys += [outcome.position async for outcome in group]
    return keys


@pytest.mark.parametrize("waits", [None, checkpoint], ids=["", "slow"])
async def test_events_are_paired_and_ordered_and_every_child_is_saved_once(waits: Any):
    watched = Watched(acting(busy), waits=waits)
    async with no_leaks():
        state = await watched.go({})
    watched.check()
    assert sorted(state["result"][1:], key=str) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len(watched.store.child_ends) == 12
    steps = Counter(e.outcome.path.step for e in watched.of(ChildEnded))
    assert steps == {"act/map": 4, "act/race": 4, "act/frontier": 4}
    assert {e.step for e in watched.of(ChildStarted)} == {"act"}
    two_steps = next(e.outcome for e in watched.of(ChildEnded) if e.outcome.act == "two steps")
    assert len(watched.store.saved[two_steps.run_id]) in (1, 2)


async def test_children_that_never_began_are_recorded_and_published_as_ended():
    hook, store = RecordingHook(), Keeping()

    async def body(context: Context) -> int:
        async with context.fan_out(name="f", limits=Limits(1)) as group:
            for n in range(3):
                group.start(never, key=n)
            await checkpoint()
            await checkpoint()
            await checkpoint()
            group.cancel()
            return len(await drained(group))

    result = await kept_by(store, acting(body), hook).run({})
    hook.assert_paired()
    assert result.state["result"] == 3
    assert len(store.child_ends) == len(hook.of(ChildEnded)) == 3
    assert len(hook.of(ChildStarted)) <= 1
    assert sorted(event.outcome.attempts for event in hook.of(ChildEnded))[:2] == [0, 0]
    assert {event.outcome.key for event in hook.of(ChildEnded)} == {0, 1, 2}
    assert result.outcomes("act/f").cancelled == 3


# -- many ------------------------------------------------------------------------------------------


def many_at_once(count: int, *, started_each: bool) -> Act:
    async def body(context: Context) -> int:
        done = 0
        async with context.fan_out(name="f") as group:
            if started_each:
                group.start_each(quick, over=range(count))
            else:
                for n in range(count):
                    group.start(quick, {"item": n})
            async for outcome in group:
                done += isinstance(outcome, Done)
        return done

    return acting(body)


def peak_of(count: int) -> int:
    gc.collect()
    tracemalloc.start()
    try:
        result = run_virtual(Application(many_at_once(count, started_each=True)).run)
        assert result.state["result"] == count
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_follows_what_is_in_flight():
    per_key = 200  # bytes: that a key was used is a result
    assert peak_of(3000) - peak_of(300) < 2700 * per_key + 100_000


@pytest.mark.slow
def test_memory_of_ten_thousand_follows_what_is_in_flight():
    per_key = 200
    assert peak_of(10_000) - peak_of(1_000) < 9_000 * per_key + 100_000


@pytest.mark.parametrize("started_each", [True, False])
@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
async def test_the_work_grows_with_the_number_of_children(count: int, *, started_each: bool):
    """Counted in calls of Python functions, which no other process can slow down."""

    async def calls(count: int) -> int:
        made = 0

        def profile(frame: Any, event: str, argument: Any) -> None:
            nonlocal made
            made += event in ("call", "c_call")

        app = Application(many_at_once(count, started_each=started_each))
        sys.setprofile(profile)
        try:
            await app.run()
        finally:
            sys.setprofile(None)
        return made

    few, many = await calls(count // 10), await calls(count)
    assert many < 12 * few


# -- callers that go away --------------------------------------------------------------------------


def one_map() -> Act:
    @action(reads=[], writes=["result"], name="act")
    async def act(context: Context) -> int:
        count = 0
        async with context.fan_out(name="map", limits=Limits(2)) as group:
            group.start_each(leaf, over=[1, 2, 13, 1])
            async for outcome in group:
                count += isinstance(outcome, Done)
        return count

    return act


def nested_groups() -> Act:
    inner = acting(nested_body, reads=["item"])

    async def body(context: Context) -> int:
        total = 0
        async with context.fan_out(name="outer", limits=Limits(2)) as group:
            group.start_each(inner, over=[1, 2])
            async for outcome in group:
                total += outcome.value if isinstance(outcome, Done) else 0
        return total

    return acting(body)


async def nested_body(context: Context) -> int:
    async with context.fan_out(name="inner", limits=Limits(2)) as group:
        group.start_each(leaf, over=[0, 1, 2])
        return len(await drained(group))


async def frontier_body(context: Context) -> int:
    count = 0
    async with context.fan_out(name="frontier", limits=Limits(3)) as group:
        group.start(leaf, {"item": 1}, key=1)
        async for outcome in group:
            count += 1
            for n in (2 * int(outcome.key), 2 * int(outcome.key) + 1):
                if n < 7:
                    group.start(leaf, {"item": n % 2}, key=n)
    return count


async def race_body(context: Context) -> Any:
    async with context.fan_out(name="race") as group:
        group.start_each(leaf, over=Pulled(6)("async"))
        first = await anext(group)
        group.cancel("have one")
    return first.position


async def timed_body(context: Context) -> int:
    """Timeouts around one wait, and around a group; the next group is not touched by them."""
    count = 0
    async with context.fan_out(name="a") as group:
        group.start_each(leaf, over=[1, 2])
        while count < 2:
            with anyio.move_on_after(0.75):
                await anext(group)
                count += 1
    with anyio.move_on_after(1):
        async with context.fan_out(name="b") as group:
            group.start_each(leaf, over=[2, 3])
    async with context.fan_out(name="c") as group:
        group.start(leaf, {"item": 1})
    return count


async def unconsumed_body(context: Context) -> None:
    async with context.fan_out(name="f") as group:
        group.start_each(leaf, over=[1, 2, 1])


SCENARIOS: dict[str, Callable[[], Act]] = {
    "map": one_map,
    "nested": nested_groups,
    "frontier": lambda: acting(frontier_body),
    "race": lambda: acting(race_body),
    "timeouts": lambda: acting(timed_body),
    "unconsumed": lambda: acting(unconsumed_body),
    "busy": lambda: acting(busy),
    "among others": lambda: fan_out(
        acting(frontier_body), over=range_of(2), reads=[], into="outs", take="result"
    ),
}
every_scenario = pytest.mark.parametrize("name", SCENARIOS)
every_way = pytest.mark.parametrize(
    "how", [("asyncio", "scope"), ("asyncio", "native"), ("trio", "scope")], ids=" ".join
)


def sweep(name: str, how: tuple[Any, Any], waits: Any, seed: int | None, limit: int | None) -> int:
    whole: State | None = None

    async def scenario(attempt: Attempt) -> None:
        nonlocal whole
        watched = Watched(SCENARIOS[name](), waits=waits)
        ending = await attempt(watched.go, dict[str, Any]())
        watched.check()
        if ending.place == 0:
            whole = ending.result
        if watched.run is None:
            assert ending.cancelled
        elif watched.run.status == "succeeded":
            assert watched.state == whole
        else:
            assert ending.cancelled
            assert watched.run.status == "cancelled"

    backend, kind = how
    return cancel_everywhere(scenario, backend=backend, how=kind, seed=seed, limit=limit)


@every_scenario
@every_way
def test_cancelled_at_some_places(name: str, how: tuple[Any, Any]):
    assert sweep(name, how, waits=None, seed=1, limit=20) > 5


async def nap() -> None:
    await anyio.sleep(0.25)


@pytest.mark.slow
@every_scenario
@every_way
@pytest.mark.parametrize("waits", [None, checkpoint, nap], ids=["", "slow", "slower"])
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_cancelled_everywhere(name: str, how: tuple[Any, Any], waits: Any, seed: int | None):
    assert sweep(name, how, waits, seed, limit=None) > 5
