"""Streaming actions and ``context.emit``: items told in order, generators closed every time."""

from __future__ import annotations

import asyncio
import functools
import gc
import math
import sys
import threading
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import count as count_up
from typing import Any, Literal, cast

import anyio
import anyio.from_thread
import pytest
from anyio.lowlevel import checkpoint
from pydantic import BaseModel

from shoal import (
    Action,
    Application,
    Context,
    Done,
    Graph,
    Hook,
    Limits,
    Retry,
    State,
    StepTimeout,
    action,
    fan_out,
)
from shoal import Result as StreamResult
from shoal._concurrency.closing import CLOSING_SECONDS, CLOSINGS
from shoal._engine import publish as _publish
from shoal._engine.fanout.children import child_config
from shoal._engine.run import Run
from shoal._engine.streaming import ITEMS
from shoal.errors import (
    BadResult,
    BadUse,
    HookFailed,
    IncompleteStream,
    InvalidState,
    SpuriousCancel,
    UndeclaredWrite,
)
from shoal.events import Event, Item, RunEnded, StepEnded, StepStarted
from shoal.testing import Attempt, RecordingHook, cancel_everywhere, no_leaks
from shoal.types import Act, FunctionAction

from .test_cancellation import Watched, seen_runs

__all__ = ["seen_runs"]  # a fixture

pytestmark = pytest.mark.anyio

Backend = Literal["asyncio", "trio"]
Stream = AsyncGenerator[Any, None]
Result = StreamResult[Any]


# -- actions, and what runs them -------------------------------------------------------------------


class Witness:
    """Sees generators begin and end, each in one task; knows what ended them."""

    def __init__(self) -> None:
        self.open = 0
        self.ends: list[str] = []

    @contextmanager
    def watch(self) -> Generator[None]:
        task = anyio.get_current_task().id
        self.open += 1
        end = "ended"
        try:
            yield
        except BaseException as error:
            end = type(error).__name__
            raise
        finally:
            assert anyio.get_current_task().id == task, "closed in another task"
            self.open -= 1
            self.ends.append(end)


@asynccontextmanager
async def nothing_left() -> AsyncGenerator[None]:
    """No task, thread or file; and no generator that the garbage collector has to close."""
    hooks = sys.get_asyncgen_hooks()
    forgotten: list[Any] = []
    sys.set_asyncgen_hooks(finalizer=forgotten.append)
    try:
        async with no_leaks(threads=False):
            yield
        gc.collect()
        assert not forgotten, "left to the garbage collector"
    finally:
        sys.set_asyncgen_hooks(*hooks)


def streaming(function: Callable[..., Any], **options: Any) -> Act:
    options = {"reads": [], "writes": ["out"], "name": "stream", **options}
    return action(**options)(function)


async def run(
    function: Callable[..., Any],
    *hooks: Hook,
    state: Mapping[str, Any] | None = None,
    **options: Any,
) -> Any:
    """Run an action made of ``function``, and return what it wrote."""
    recording = RecordingHook()
    async with nothing_left():
        app = Application(streaming(function, **options), hooks=[recording, *hooks])
        try:
            result = await app.run(state)
        finally:
            recording.assert_paired()
    return result.state["out"]


async def count_to(n: int) -> Stream:
    for number in range(n):
        await checkpoint()
        yield number
    yield Result(n)


class ItemHook(Hook):
    """Calls ``receive`` with every item."""

    def __init__(self, receive: Callable[[Item], Any]) -> None:
        self.receive = receive

    def on_item(self, event: Item) -> Any:
        return self.receive(event)


def cancellation() -> str:
    return anyio.get_cancelled_exc_class().__name__


def slow(seconds: float) -> Hook:
    """A hook that takes its time for every item."""

    async def sleep(event: Item) -> None:
        await anyio.sleep(seconds)

    return ItemHook(sleep)


# -- what is told ----------------------------------------------------------------------------------


async def test_items_are_published_in_order_between_start_and_end_of_the_step():
    hook = RecordingHook()
    app = Application(streaming(functools.partial(count_to, 3)), hooks=[hook])
    async with nothing_left():
        result = await app.run(id="root")
    assert result.state == {"out": 3}
    assert hook.names() == [
        "RunStarted", "StepStarted", "Item", "Item", "Item", "StateUpdated", "StepEnded", "RunEnded"
    ]  # fmt: skip
    items = hook.of(Item)
    assert [(event.item, event.index, event.attempt) for event in items] == [
        (0, 0, 1),
        (1, 1, 1),
        (2, 2, 1),
    ]
    assert {(event.run_id, event.step) for event in items} == {("root", "stream")}
    assert [type(event).__name__ for event in hook.events if event.provisional] == ["Item"] * 3


async def test_it_runs_on_the_loop_and_takes_no_thread():
    act = streaming(functools.partial(count_to, 1))
    assert isinstance(act, FunctionAction)
    assert (act.is_streaming, act.is_async, act.is_plain) == (True, False, False)


async def test_it_goes_on_only_after_all_hooks_have_returned():
    log: list[object] = []

    async def talk() -> Stream:
        for number in range(2):
            log.append(f"yields {number}")
            yield number
        log.append("ends")
        yield Result(None)

    async def receive(event: Item) -> None:
        await anyio.sleep(1)
        log.append(f"heard {event.item}")

    later = ItemHook(lambda event: log.append(f"later {event.item}"))
    await run(talk, ItemHook(receive), later)
    assert log == [
        "yields 0", "heard 0", "later 0", "yields 1", "heard 1", "later 1", "ends"
    ]  # fmt: skip


async def test_nothing_is_built_that_nobody_listens_to(monkeypatch: pytest.MonkeyPatch):
    def refuse(**_: object) -> None:
        raise AssertionError("built for nobody")

    monkeypatch.setattr(_publish, "Item", refuse)
    recording = RecordingHook()

    class Other(Hook):
        def on_step_ended(self, event: StepEnded) -> None:
            recording.on_step_ended(event)

    async with nothing_left():
        await Application(streaming(functools.partial(count_to, 200)), hooks=[Other()]).run()
    assert recording.names() == ["StepEnded"]


# -- what it returns -------------------------------------------------------------------------------


async def test_a_result_is_what_a_coroutine_function_would_return():
    async def several() -> Stream:
        yield "item"
        yield Result({"out": 1, "more": 2})

    async def state_of(state: State) -> Stream:
        yield "item"
        yield Result(state.increment(out=5))

    async def nothing() -> Stream:
        yield "item"
        yield Result(None)

    assert await run(several, writes=["out", "more"]) == 1
    assert await run(state_of, reads=["out"], state={"out": 1}) == 6
    async with nothing_left():
        result = await Application(streaming(nothing, writes=[])).run()
    assert not result.state


async def test_a_result_is_checked_as_any_other():
    async def returns(value: Any) -> Stream:
        yield Result(value)

    async def inner() -> None: ...

    cases: list[tuple[dict[str, Any], object, type[Exception], str]] = [
        ({"writes": []}, 5, BadResult, "declares no writes and returned an int"),
        ({"writes": ["out", "b"]}, {"out": 1}, BadResult, "returned no value for b"),
        ({"writes": ["out", "b"]}, {"out": 1, "b": 1, "c": 1}, UndeclaredWrite, "a value for c"),
        ({}, inner(), BadResult, "a coroutine that nobody awaited: await .*inner"),
        ({"writes": ["out", "b"]}, {"out": inner(), "b": 1}, BadResult, "nobody awaited"),
        ({}, Result(5), BadResult, "returned a Result"),
    ]
    for options, value, error, message in cases:
        with pytest.raises(error, match=message):
            await run(functools.partial(returns, value), **options)


async def test_a_model_is_held_to_the_result_and_not_to_the_items():
    class Model(BaseModel):
        out: int = 0

    async def talk(answer: Any) -> Stream:
        yield "not a number"
        yield Result(answer)

    hook = RecordingHook()
    app = Application(streaming(talk), state=Model, hooks=[hook])
    async with nothing_left():
        assert (await app.run(Model(), inputs={"answer": "5"})).state.data == Model(out=5)
        with pytest.raises(InvalidState, match="out"):
            await app.run(Model(), inputs={"answer": "five"})
    assert [event.item for event in hook.of(Item)] == ["not a number"] * 2


@pytest.mark.parametrize("way", ["coroutine function", "plain function", "generator", "mapping"])
async def test_what_only_streams_yield_or_are_is_no_value_of_other_actions(way: str):
    async def coroutine() -> Any:
        return Result(5)

    def plain() -> Any:
        return Result(5)

    def generator() -> Any:
        return count_to(3)

    async def mapping() -> Any:
        return {"out": Result(5), "b": 5}

    function, message = {
        "coroutine function": (coroutine, "a Result, .*return the value itself"),
        "plain function": (plain, "a Result, .*return the value itself"),
        "generator": (generator, "an async generator; to stream, it has to be .* Result"),
        "mapping": (mapping, "a Result"),
    }[way]
    writes = ["out", "b"] if way == "mapping" else ["out"]
    with pytest.raises(BadResult, match=f"action 'stream' returned {message}"):
        await run(function, writes=writes, executor="loop")


# -- incomplete streams ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("none", "ended without a Result, after 2 items"),
        ("early", "ended without a Result, after 1 items"),
        ("after", "yielded 'more' after its Result"),
        ("twice", r"yielded Result\(value=2\) after its Result"),
    ],
)
async def test_it_yields_one_result_last(what: str, message: str):
    witness, hook = Witness(), RecordingHook()

    async def talk() -> Stream:
        with witness.watch():
            yield 1
            if what == "early":
                return
            yield 2
            if what != "none":
                yield Result(1)
                yield "more" if what == "after" else Result(2)
                yield "never asked for"

    with pytest.raises(IncompleteStream, match=message) as caught:
        await run(talk, hook)
    (ended,) = hook.of(RunEnded)
    assert f"streaming action 'stream' of run {ended.run_id}" in str(caught.value)
    assert "yields `Result(value)` once, as the last thing" in str(caught.value)
    assert "in action 'stream'" in caught.value.__notes__[0]
    assert witness.ends == ["ended" if what in ("none", "early") else "GeneratorExit"]
    assert "StateUpdated" not in hook.names()


# -- where it works --------------------------------------------------------------------------------


async def say(word: str) -> Stream:
    for letter in word:
        await checkpoint()
        yield letter
    yield Result(len(word))


class Saying(Action):
    reads = ("word",)
    writes = ("out",)
    name = "stream"

    async def run(self, word: str) -> AsyncIterator[str | StreamResult[int]]:
        async for item in say(word):
            yield item


class Speaker:
    async def __call__(self, word: str) -> Stream:
        async for item in say(word):
            yield item

    async def method(self, word: str) -> Stream:
        async for item in self(word):
            yield item


MADE: dict[str, Callable[[], Act]] = {
    "function": lambda: streaming(say, reads=["word"]),
    "partial": lambda: streaming(functools.partial(say), reads=["word"]),
    "object": lambda: streaming(Speaker(), reads=["word"]),
    "method": lambda: streaming(Speaker().method, reads=["word"]),
    "class": Saying,
    "bound": lambda: streaming(say, name="other").bind(name="stream", word="abc"),
    "declared again": lambda: action(reads=["word"], writes=["out"], name="stream")(
        action(name="first", reads=["word"])(say)  # pyright: ignore[reportArgumentType]
    ),
    "limited": lambda: streaming(say, reads=["word"], limits=Limits(1)),
}


@pytest.mark.parametrize("made", MADE)
async def test_however_it_is_made(made: str):
    hook = RecordingHook()
    async with nothing_left():
        result = await Application(MADE[made](), hooks=[hook]).run({"word": "abc"})
    assert result.state["out"] == 3
    assert [(event.step, event.item) for event in hook.of(Item)] == [
        ("stream", letter) for letter in "abc"
    ]


def word_graph() -> Graph:
    return Graph.chain(streaming(say, reads=["word"]), name="node")


@action(reads=["words"], writes=["outs"])
async def by_hand(words: list[str], context: Context) -> list[int]:
    async with context.fan_out(name="all") as group:
        for word in words:
            group.start(streaming(say, reads=["word"]), {"word": word})
        return sorted([outcome.value async for outcome in group if isinstance(outcome, Done)])


def over_words(act: Any) -> Act:
    return fan_out(act, over="words", item="word", into="outs", take="out")


STANDS: dict[str, Callable[[], Act]] = {
    "fan_out": lambda: over_words(streaming(say, reads=["word"])),
    "acts": lambda: over_words([streaming(say, reads=["word"]), Saying().bind(name="b")]),
    "nodes": lambda: over_words(Graph.chain(word_graph(), name="outer")),
    "fan-outs": lambda: fan_out(
        over_words(streaming(say, reads=["word"])), over="lists", item="words", into="all",
        take="outs",
    ),
    "context.fan_out": lambda: by_hand,
}  # fmt: skip


@pytest.mark.parametrize("place", STANDS)
async def test_wherever_it_stands(place: str):
    """Its items reach the hooks, and whoever opened the root run."""
    words, hook = ["ab", "cde"], RecordingHook()
    app, read = Application(STANDS[place](), hooks=[hook]), list[Event]()
    async with nothing_left(), app.open({"words": words, "lists": [words]}) as opened:
        async for event in opened:
            read.append(event)
        state = (await opened.result()).state.to_plain()
    outs = state["all"][0] if place == "fan-outs" else state["outs"]
    assert outs == ([{"stream": n, "b": n} for n in (2, 3)] if place == "acts" else [2, 3])
    assert read == hook.events
    received: dict[tuple[str, str], list[Item]] = {}
    for item in hook.of(Item):
        received.setdefault((item.run_id, item.step), []).append(item)
    for items in received.values():
        assert [item.index for item in items] == list(range(len(items)))
    said = sorted("".join(item.item for item in items) for items in received.values())
    assert said == sorted(words * (2 if place == "acts" else 1))


async def test_it_holds_its_slot_while_it_streams():
    running = peak = 0

    async def talk(item: int) -> Stream:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        for _ in range(3):
            await anyio.sleep(1)
            yield item
        yield Result(item)
        running -= 1

    act = streaming(talk, reads=["item"], limits=Limits(2))
    async with nothing_left():
        start = anyio.current_time()
        result = await Application(fan_out(act, over="n", into="outs")).run({"n": range(6)})
    assert (result.state["outs"], peak) == ([*range(6)], 2)
    assert anyio.current_time() - start == 9


async def test_it_streams_what_its_own_children_say():
    witness = Witness()

    async def talk(context: Context) -> Stream:
        with witness.watch():
            total = 0
            async with context.fan_out(name="words") as group:
                group.start_each(streaming(say, reads=["word"]), over=["a", "bcd"], item="word")
                async for outcome in group:
                    assert isinstance(outcome, Done)
                    yield outcome.value
                    total += outcome.value
            yield Result(total)

    hook = RecordingHook()
    assert await run(talk, hook) == 4
    assert [event.item for event in hook.of(Item) if event.depth == 0] == [1, 3]

    def fail(event: Item) -> None:
        if event.depth == 0:
            raise ValueError("at the first")

    with pytest.raises(HookFailed):
        await run(talk, ItemHook(fail))
    assert witness.ends == ["ended", "GeneratorExit"]


# -- closed on every way out -----------------------------------------------------------------------

Receiver = Callable[[Item], Any]


def raises(error: BaseException) -> Receiver:
    def receive(event: Item) -> None:
        if event.index == 2:
            raise error

    return receive


WAYS: dict[str, tuple[type[BaseException] | None, str]] = {  # what comes out, and what goes in
    "success": (None, "ended"),
    "failure": (LookupError, "LookupError"),
    "a guard fails": (HookFailed, "GeneratorExit"),
    "a guard fails later": (HookFailed, "GeneratorExit"),
    "a Ctrl-C in a hook": (KeyboardInterrupt, "KeyboardInterrupt"),
    "a Ctrl-C in a later hook": (KeyboardInterrupt, "KeyboardInterrupt"),
    "a Ctrl-C inside": (KeyboardInterrupt, "KeyboardInterrupt"),
    "no Result": (IncompleteStream, "ended"),
    "GeneratorExit": (SpuriousCancel, "GeneratorExit"),
}


@pytest.mark.parametrize("place", ["step", "child"])
@pytest.mark.parametrize("way", WAYS)
async def test_it_is_closed_and_its_cleanup_awaited(way: str, place: str):
    witness = Witness()
    expected, end = WAYS[way]

    async def talk() -> Stream:
        try:
            with witness.watch():
                try:
                    for number in range(4):
                        await checkpoint()
                        yield number
                        if number == 2:
                            match way:
                                case "failure":
                                    raise LookupError
                                case "a Ctrl-C inside":
                                    raise KeyboardInterrupt
                                case "GeneratorExit":
                                    raise GeneratorExit
                                case "no Result":
                                    return
                                case _:
                                    pass
                    yield Result(5)
                finally:
                    await anyio.sleep(1)
        finally:
            await anyio.sleep(1)

    async def later(event: Item) -> None:
        await anyio.sleep(1)
        raises(KeyboardInterrupt() if "Ctrl-C" in way else ValueError())(event)

    ways: dict[str, Receiver] = {
        "a guard fails": raises(ValueError()),
        "a guard fails later": later,
        "a Ctrl-C in a hook": raises(KeyboardInterrupt()),
        "a Ctrl-C in a later hook": later,
    }
    act = streaming(talk)
    graph = act if place == "step" else fan_out([act], into="outs")
    recording = RecordingHook()
    async with nothing_left():
        app = Application(graph, hooks=[ItemHook(ways.get(way, lambda event: None)), recording])
        raised: BaseException | None = None
        try:
            await app.run()
        except BaseException as error:
            raised = error
            if isinstance(error, ExceptionGroup):  # of the fan-out
                (raised,) = cast("ExceptionGroup[Exception]", error).exceptions
        assert type(raised) is (expected or type(None)), raised
    assert (witness.open, witness.ends) == (0, [end])
    recording.assert_paired()


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("at", ["waiting", "item told"])
async def test_a_cancelled_one_is_closed(at: str, native: bool, anyio_backend_name: str):
    if native and anyio_backend_name == "trio":
        return
    witness, cleaned = Witness(), False

    async def talk() -> Stream:
        nonlocal cleaned
        with witness.watch():
            try:
                yield 1
                await anyio.sleep(math.inf)
            finally:
                with suppress(anyio.get_cancelled_exc_class()):
                    await anyio.sleep(1)
                    cleaned = True

    hook = RecordingHook()
    async with nothing_left():
        app = Application(streaming(talk), hooks=[hook, slow(3 if at == "item told" else 0)])
        if native:
            task = asyncio.create_task(app.run())
            await anyio.sleep(2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            with anyio.move_on_after(2) as scope:
                await app.run()
            assert scope.cancelled_caught
    # Where it waited, cancellation came there, and to its cleanup too, as to any coroutine's.
    assert cleaned == (at == "item told")
    assert (witness.open, witness.ends) == (
        0,
        [cancellation()] if not cleaned else ["GeneratorExit"],
    )
    assert hook.names().count("Item") == 1
    assert [event.status for event in hook.of(StepEnded)] == ["cancelled"]
    hook.assert_paired()


async def test_what_it_raises_in_its_cleanup_counts_as_in_any_action():
    async def talk() -> Stream:
        try:
            yield 1
            raise LookupError("first")
        finally:
            raise ValueError("then")

    with pytest.raises(ValueError, match="then") as caught:
        await run(talk)
    assert isinstance(caught.value.__context__, LookupError)


async def test_each_attempt_has_a_generator_and_counts_its_items_from_0():
    witness, hook = Witness(), RecordingHook()

    async def talk(context: Context) -> Stream:
        with witness.watch():
            yield "a"
            await context.emit("b")
            if context.attempt < 3:
                raise LookupError
            yield Result(context.attempt)

    assert await run(talk, hook, retry=Retry(3, on=LookupError)) == 3
    assert [(event.item, event.index, event.attempt) for event in hook.of(Item)] == [
        (item, index, attempt) for attempt in (1, 2, 3) for index, item in enumerate("ab")
    ]
    assert witness.ends == ["LookupError", "LookupError", "ended"]


@pytest.mark.parametrize("native", [False, True])
async def test_the_timeout_of_an_attempt_closes_it_at_its_yield(
    native: bool, anyio_backend_name: str
):
    """Also where a native timeout that it holds has gone off in the same tick."""
    if native and anyio_backend_name == "trio":
        return
    witness, hook, cleaned = Witness(), RecordingHook(), 0

    async def talk() -> Stream:
        nonlocal cleaned
        async with native_timeout(3) if native else scope_for(50):
            with witness.watch():
                try:
                    while True:
                        yield "more"
                finally:
                    await anyio.sleep(2)
                    cleaned += 1
        yield Result("too late")

    start = anyio.current_time()
    with pytest.raises(StepTimeout, match="action 'stream'"):
        await run(
            talk, slow(2), hook, timeout=3, retry=Retry(2, on=StepTimeout, initial=1, jitter=0)
        )
    assert witness.ends == ["GeneratorExit"] * 2
    assert cleaned == 2
    assert [event.index for event in hook.of(Item)] == [0, 1] * 2
    assert anyio.current_time() - start == 2 * (4 + 2) + 1


# -- generators that close badly -------------------------------------------------------------------


def fails_at_once(event: Item) -> None:
    raise LookupError("of the guard")


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        ("raises", "it raised ValueError('while closing')"),
        ("raises a cancellation", "it raised SpuriousCancel"),
        ("yields", "it yielded when it was told to exit"),
        ("yields twice", "it yielded when it was told to exit"),
        ("waits too long", f"it took longer than {CLOSING_SECONDS:g} s and was cancelled"),
        ("waits", ""),
    ],
)
@pytest.mark.parametrize("outside", [False, True])
async def test_what_goes_wrong_in_closing_hides_nothing(
    bad: str, told: str, outside: bool, caplog: pytest.LogCaptureFixture
):
    witness = Witness()

    async def talk() -> Stream:
        with witness.watch():
            try:
                yield 1
            finally:
                match bad:
                    case "raises":
                        raise ValueError("while closing")
                    case "raises a cancellation":
                        raise cancelled_by_nobody()
                    case "yields":
                        yield 2
                    case "yields twice":
                        try:
                            yield 2
                        except GeneratorExit:
                            yield 3
                    case "waits too long":
                        await anyio.sleep(math.inf)
                    case _:
                        await anyio.sleep(CLOSING_SECONDS - 1)

    start, hook = anyio.current_time(), RecordingHook()
    if outside:  # cancelled while the item is told
        with anyio.move_on_after(1) as scope:
            await run(talk, slow(2), hook)
        assert scope.cancelled_caught
        start += 2
    else:
        with pytest.raises(HookFailed) as caught:
            await run(talk, ItemHook(fails_at_once), hook)
        notes = "".join(caught.value.__notes__)
        assert f"while streaming action 'stream' was closed, {told}" in notes if told else True
    assert (witness.open, len(witness.ends)) == (0, 1)
    assert [event.status for event in hook.of(StepEnded)] == ["cancelled" if outside else "failed"]
    taken = {"waits": CLOSING_SECONDS - 1, "waits too long": CLOSING_SECONDS}
    assert anyio.current_time() - start == pytest.approx(taken.get(bad, 0))
    logged = [record.getMessage() for record in caplog.records]
    logged = [message for message in logged if "still runs" not in message]  # after the grace
    assert any(told in message for message in logged) if told else not logged


def cancelled_by_nobody() -> BaseException:
    from .test_cancellation import cancellation

    return cancellation()


async def test_a_generator_that_never_stops_yielding_is_given_up(caplog: pytest.LogCaptureFixture):
    async def talk() -> Stream:
        while not done:
            with suppress(GeneratorExit):
                yield 1

    done, made = False, list[Any]()

    @functools.wraps(talk)
    def keeping() -> Stream:
        made.append(talk())
        return made[0]

    act: Any = streaming(talk)
    act.function = keeping
    with pytest.raises(HookFailed) as caught:
        await Application(act, hooks=[ItemHook(fails_at_once)]).run()
    assert f"it did so {CLOSINGS} times, and is left as it is" in caught.value.__notes__[1]
    done = True
    await made[0].aclose()


async def test_a_ctrl_c_while_it_is_closed_outranks_what_ended_it():
    async def talk() -> Stream:
        try:
            yield 1
        finally:
            raise KeyboardInterrupt("while closing")

    with pytest.raises(KeyboardInterrupt, match="while closing"):
        await run(talk, ItemHook(fails_at_once))


@pytest.mark.parametrize("then", ["yields", "returns", "results"])
async def test_one_that_swallows_its_cancellation_is_cancelled_all_the_same(then: str):
    witness = Witness()

    async def talk() -> Stream:
        with witness.watch():
            while True:
                try:
                    await anyio.sleep(math.inf)
                except anyio.get_cancelled_exc_class():
                    if then == "returns":
                        return
                    if then == "results":
                        yield Result(5)
                        return
                yield 1

    hook = RecordingHook()
    with anyio.move_on_after(1) as scope:
        await run(talk, hook)
    assert scope.cancel_called
    assert (witness.open, witness.ends) == (0, ["GeneratorExit" if then == "yields" else "ended"])
    if then != "results":  # then it has come to its end in time, as a coroutine that returns has
        assert [event.status for event in hook.of(StepEnded)] == ["cancelled"]


# -- scopes that a generator holds across a yield --------------------------------------------------


async def test_a_generator_that_holds_a_scope_is_closed_inside_it(caplog: pytest.LogCaptureFixture):
    witness = Witness()

    async def talk() -> Stream:
        with anyio.fail_after(50):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.sleep, 0.5)
                with witness.watch():
                    try:
                        yield 1
                        yield 2
                    finally:
                        await anyio.sleep(3)

    hook = RecordingHook()
    with pytest.raises(HookFailed):
        await run(talk, hook, ItemHook(raises(ValueError())), ItemHook(fails_at_once))
    with anyio.move_on_after(1):
        await run(talk, slow(2), hook)
    assert witness.ends == ["GeneratorExit"] * 2
    assert not caplog.records, "what a task group makes of the GeneratorExit is no failure"


@asynccontextmanager
async def scope_for(seconds: float) -> AsyncGenerator[None]:
    with anyio.move_on_after(seconds):
        yield


@asynccontextmanager
async def native_timeout(seconds: float) -> AsyncGenerator[None]:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            yield


@pytest.mark.parametrize("timeout", [scope_for, native_timeout])
@pytest.mark.parametrize("pace", ["slow hook", "never waits", "slow hooks"])
async def test_its_own_timeout_arrives_at_the_yield(
    timeout: Any, pace: str, anyio_backend_name: str
):
    """A slow consumer's time counts; what the timeout cancels is the generator, not who is told."""
    if timeout is native_timeout and anyio_backend_name == "trio":
        return
    received: list[object] = []

    async def receive(event: Item) -> None:
        await anyio.sleep(2)
        received.append(event.item)

    async def talk() -> Stream:
        given = 0
        async with timeout(0 if pace == "never waits" else 3):
            while True:
                given += 1
                yield given
        yield "enough"
        yield Result(given)

    hooks = {"slow hook": [ItemHook(receive)], "slow hooks": [ItemHook(receive), slow(0.25)]}
    given = await run(talk, *hooks.get(pace, []))
    if pace == "never waits":
        assert given <= ITEMS + 1
    else:
        assert (given, received) == (2, [1, 2, "enough"])


async def test_a_failure_in_its_own_task_group_arrives_at_the_yield():
    async def fail() -> None:
        await anyio.sleep(1)
        raise LookupError("beside it")

    async def talk() -> Stream:
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(fail)
                while True:
                    yield 1
        except* LookupError:
            pass
        yield Result("caught")

    assert await run(talk, slow(2)) == "caught"


# -- fairness and pace -----------------------------------------------------------------------------


@pytest.mark.parametrize("listens", [False, True])
@pytest.mark.parametrize("emits", [False, True])
async def test_one_that_never_waits_can_be_cancelled(listens: bool, emits: bool):
    given = 0

    async def talk() -> Stream:
        nonlocal given
        while True:
            given += 1
            yield given

    async def emitting(context: Context) -> None:
        nonlocal given
        while True:
            given += 1
            await context.emit(given)

    with anyio.move_on_after(0) as scope:
        await run(emitting if emits else talk, *[ItemHook(lambda event: None)] * listens)
    assert scope.cancelled_caught
    assert given <= ITEMS


async def test_others_run_while_it_streams_and_never_waits():
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await checkpoint()
            turns += 1

    async def talk() -> Stream:
        for number in range(10 * ITEMS):
            yield number
        yield Result(turns)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(others)
        app = Application(streaming(talk), hooks=[ItemHook(lambda event: None)])
        assert (await app.run()).state["out"] >= 9
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("emits", [False, True])
async def test_a_slow_reader_holds_it_back(emits: bool):
    given = 0

    async def talk() -> Stream:
        nonlocal given
        for number in range(50):
            given += 1
            yield number
        yield Result(None)

    async def emitting(context: Context) -> None:
        nonlocal given
        for number in range(50):
            given += 1
            await context.emit(number)

    read: list[object] = []
    async with nothing_left():
        app = Application(streaming(emitting if emits else talk))
        async with app.open(buffer=3) as opened:
            async for event in opened:
                await anyio.sleep(1)
                if isinstance(event, Item):
                    read.append(event.item)
                    assert given <= len(read) + 4
    assert read == list(range(50))


async def test_leaving_an_opened_run_closes_the_generator():
    witness = Witness()

    async def talk() -> Stream:
        with witness.watch():
            while True:
                yield "more"

    async with nothing_left():
        async with Application(streaming(talk)).open(buffer=3) as opened:
            async for event in opened:
                if isinstance(event, Item) and event.index == 20:
                    break
        assert (opened.status, witness.open, witness.ends) == ("cancelled", 0, ["GeneratorExit"])


# -- context.emit ----------------------------------------------------------------------------------


async def test_an_ordinary_action_emits():
    hook = RecordingHook()

    async def talk(context: Context) -> int:
        for number in range(3):
            await context.emit(number)
        return 5

    assert await run(talk, hook) == 5
    assert [(event.item, event.index, event.attempt) for event in hook.of(Item)] == [
        (number, number, 1) for number in range(3)
    ]
    assert hook.names().index("Item") == hook.names().index("StepStarted") + 1


async def test_a_generator_may_emit_as_well():
    hook = RecordingHook()

    async def talk(context: Context) -> Stream:
        yield 0
        await context.emit(1)
        yield 2
        yield Result(None)

    await run(talk, hook, slow(1))
    assert [(event.item, event.index) for event in hook.of(Item)] == [(0, 0), (1, 1), (2, 2)]


async def test_tasks_of_an_action_emit_one_at_a_time():
    """Whoever is told second is told in the same order, though the first is slow."""
    hook = RecordingHook()

    async def talk(context: Context) -> None:
        async def emit(name: str) -> None:
            for number in range(5):
                await anyio.sleep(0.5)
                await context.emit((name, number))

        async with anyio.create_task_group() as tasks:
            for name in "abc":
                tasks.start_soon(emit, name)

    times = Counter[float]()

    async def uneven(event: Item) -> None:
        times[anyio.current_time()] += 1
        await anyio.sleep(1.25 if event.index % 2 else 0.25)

    app = Application(streaming(talk, writes=[]), hooks=[ItemHook(uneven), hook])
    async with nothing_left():
        await app.run()
    items = hook.of(Item)
    assert [event.index for event in items] == list(range(15))
    assert set(times.values()) == {1}
    for name in "abc":
        assert [event.item[1] for event in items if event.item[0] == name] == list(range(5))


async def test_an_item_that_is_cancelled_before_its_turn_is_not_published():
    hook = RecordingHook()

    async def talk(context: Context) -> int:
        async def second() -> None:
            with anyio.move_on_after(1):
                await context.emit("never")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(second)
            with anyio.move_on_after(2):
                await context.emit("first")
                raise AssertionError("cancelled after everybody has heard")
        await context.emit("last")
        return 1

    start = anyio.current_time()
    await run(talk, slow(4), hook)
    assert [(event.item, event.index) for event in hook.of(Item)] == [("first", 0), ("last", 1)]
    assert anyio.current_time() - start == 8


async def test_a_native_timeout_of_the_action_does_not_reach_hooks(anyio_backend_name: str):
    if anyio_backend_name == "trio":
        return
    received: list[object] = []

    async def receive(event: Item) -> None:
        await anyio.sleep(2)
        received.append(event.item)

    async def talk(context: Context) -> str:
        try:
            async with asyncio.timeout(1):
                await context.emit("slow")
        except TimeoutError:
            await context.emit("late")
            return "timed out"
        return "in time"

    assert await run(talk, ItemHook(receive)) == "timed out"
    assert received == ["slow", "late"]


async def test_a_task_left_by_an_action_publishes_nothing_after_its_end(anyio_backend_name: str):
    """``asyncio.gather`` leaves the others running when one fails."""
    if anyio_backend_name == "trio":
        return
    hook, left = RecordingHook(), list[asyncio.Task[None]]()

    async def talk(context: Context) -> None:
        async def emit(name: str) -> None:
            await context.emit(name)

        for name in ("told", "too late"):
            left.append(asyncio.create_task(emit(name)))
            await anyio.sleep(0.5)
        raise LookupError

    app = Application(streaming(talk), hooks=[slow(2), hook])
    with pytest.raises(LookupError):
        await app.run()
    assert [event.item for event in hook.of(Item)] == ["told"]
    assert hook.names()[-3:] == ["Item", "StepEnded", "RunEnded"]
    await left[0]
    with pytest.raises(BadUse, match=r"action 'stream' of run .* has ended, and something"):
        await left[1]


async def test_a_guard_that_fails_ends_the_run_also_where_the_action_hides_it():
    async def talk(context: Context) -> int:
        with suppress(HookFailed):
            await context.emit(1)
        return 1

    with pytest.raises(HookFailed, match="on Item of run"):
        await run(talk, ItemHook(fails_at_once))


async def test_an_observer_that_fails_is_notified_no_more(caplog: pytest.LogCaptureFixture):
    class Observer(ItemHook):
        observer = True

    told: list[object] = []

    async def receive(event: Item) -> None:
        told.append(event.item)
        raise ValueError

    hook = RecordingHook()

    def receive_at_once(event: Item) -> None:
        receive(event).send(None)

    for made in receive, receive_at_once:
        assert await run(functools.partial(count_to, 3), Observer(made), hook) == 3
    assert told == [0, 0]
    assert len(hook.of(Item)) == 6
    assert "observer Observer failed on Item" in caplog.text


async def test_all_are_notified_though_a_guard_fails():
    hooks = [ItemHook(fails_at_once), slow(1), ItemHook(fails_at_once), RecordingHook()]
    with pytest.raises(HookFailed):
        await run(functools.partial(count_to, 3), *hooks)
    assert isinstance(hooks[-1], RecordingHook)
    assert len(hooks[-1].of(Item)) == 1


async def test_emitting_a_result_is_refused():
    async def talk(context: Context) -> None:
        await context.emit(Result(5))

    with pytest.raises(BadResult, match=r"'stream' emits a Result, .* return its value"):
        await run(talk)


@pytest.mark.realtime
@pytest.mark.parametrize("where", ["threads", "loop"])
async def test_a_plain_function_is_taught_how_to_emit(where: Literal["threads", "loop"]):
    def talk(context: Context) -> None:
        context.emit(5)  # pyright: ignore[reportUnusedCoroutine] # the mistake

    with pytest.raises(BadUse, match=r"is a plain function.*from_thread.run\(context.emit, item\)"):
        await run(talk, executor=where)


@pytest.mark.realtime
async def test_a_thread_emits_by_way_of_the_loop():
    hook, tasks = RecordingHook(), set[int]()

    def talk(item: int, context: Context) -> int:
        assert threading.current_thread() is not threading.main_thread()
        for number in range(3):
            anyio.from_thread.run(context.emit, (item, number))
        return item

    async def receive(event: Item) -> None:
        tasks.add(anyio.get_current_task().id)
        await checkpoint()

    act = streaming(talk, reads=["item"])
    async with no_leaks(threads=False):
        app = Application(fan_out(act, over="n", into="outs"), hooks=[ItemHook(receive), hook])
        assert (await app.run({"n": range(5)})).state["outs"] == [*range(5)]
    hook.assert_paired()
    for key in range(5):
        items = [event for event in hook.of(Item) if event.path.key == key]
        assert [event.item for event in items] == [(key, 0), (key, 1), (key, 2)]
        assert [event.index for event in items] == [0, 1, 2]


@pytest.mark.realtime
@pytest.mark.parametrize("hooks", [[], [ItemHook(lambda event: None)], [slow(0)]])
async def test_a_thread_that_emits_learns_of_a_cancellation(hooks: list[Hook]):
    started, ends = anyio.Event(), list[str]()

    def talk(context: Context) -> None:
        try:
            for number in count_up():
                anyio.from_thread.run(context.emit, number)
                if number == 100:
                    anyio.from_thread.run_sync(started.set)
        except BaseException as error:
            ends.append(type(error).__name__)
            raise

    class Ends(Hook):
        def on_step_ended(self, event: StepEnded) -> None:
            ends.append(event.status)

    async with no_leaks(threads=False):
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(Application(streaming(talk), hooks=[*hooks, Ends()]).run)
                await started.wait()
                scope.cancel()
        assert scope.cancelled_caught
    assert ends in ([cancellation(), "cancelled"], ["RunCancelled", "cancelled"])


# -- who starts a run listens ----------------------------------------------------------------------


class Listening(Act):
    """Runs a graph as a child, whose items it hears."""

    def __init__(self, graph: Graph, receive: Callable[[Run, object], None]) -> None:
        self.name = "listening"
        self.graph = graph
        self.receive = receive
        self.reads = graph.reads

    @property
    def takes(self) -> Mapping[str, Any]:
        return {}

    def _bind(self, name: str, inputs: Mapping[str, object]) -> None:
        raise NotImplementedError

    async def perform(self, run: Any) -> Any:
        from shoal._engine.commit import Write, commit
        from shoal._engine.fanout.group import ChildTaskGroup
        from shoal._engine.fanout.source import ChildTemplate, ElementSource
        from shoal._state.state import NO_CHANGE

        config = child_config(run, self.name, self.graph, on_item=self.receive)
        source = ElementSource(
            [1], name=self.name, kinds=[ChildTemplate(config, dict(run.data))], item="item"
        )
        self.group = group = ChildTaskGroup(run, source, Limits(1), name="listening", owner=self)

        async def apply(batch: list[Run]) -> None:
            await commit(run, Write(unapplied=batch))

        await group.run(apply)
        await commit(run, Write(unapplied=[*group.inbox]))
        return NO_CHANGE


def listeners() -> list[Graph]:
    return [
        Graph.chain(streaming(say, reads=["word"])),
        Graph.chain(word_graph(), name="outer"),
        Graph.chain(over_words(streaming(say, reads=["word"]))),
        Graph.chain(by_hand),
    ]


@pytest.mark.parametrize("which", range(4))
async def test_the_parent_of_a_child_receives_its_items_first(which: int):
    log: list[object] = []

    def receive(run: Run, item: object) -> None:
        log.append(("listener", run.path.depth, run.path.step, item))

    tell = ItemHook(lambda event: log.append(("hook", event.item)))
    act = Listening(listeners()[which], receive)
    async with nothing_left():
        await Application(act, hooks=[tell]).run({"word": "ab", "words": ["ab"]})
    assert log == [
        ("listener", 1, "listening", "a"),
        ("hook", "a"),
        ("listener", 1, "listening", "b"),
        ("hook", "b"),
    ]


async def test_items_arrive_without_any_hook(monkeypatch: pytest.MonkeyPatch):
    def refuse(**_: object) -> None:
        raise AssertionError("built for nobody")

    monkeypatch.setattr(_publish, "Item", refuse)
    received: list[object] = []
    act = Listening(listeners()[0], lambda run, item: received.append(item))
    async with nothing_left():
        await Application(act).run({"word": "abc"})
    assert received == ["a", "b", "c"]


async def test_a_listener_above_is_called_after_the_one_below():
    log: list[object] = []

    def listening(name: str, graph: Graph) -> Listening:
        return Listening(graph, lambda run, item: log.append((name, run.path.depth, item)))

    outer = listening("outer", Graph.chain(listening("inner", listeners()[0])))
    async with nothing_left():
        await Application(outer).run({"word": "a"})
    assert log == [("inner", 2, "a"), ("outer", 1, "a")]


@pytest.mark.parametrize("how", ["cancels", "raises"])
async def test_a_listener_may_end_it(how: str):
    witness, hook = Witness(), RecordingHook()

    async def talk() -> Stream:
        with witness.watch():
            try:
                while True:
                    yield 1
            finally:
                await anyio.sleep(1)

    def receive(run: Run, item: object) -> None:
        if how == "raises":
            raise LookupError("of the listener")
        act.group.scope.cancel("decided")

    act = Listening(Graph.chain(streaming(talk)), receive)
    async with nothing_left():
        await Application(act, hooks=[hook]).run()
    assert (witness.open, witness.ends) == (0, ["GeneratorExit"])
    told = 1 if how == "cancels" else 0
    assert len(hook.of(Item)) == told
    status = "cancelled" if how == "cancels" else "failed"
    assert [event.status for event in hook.of(RunEnded) if event.depth == 1] == [status]


# -- cancelled everywhere --------------------------------------------------------------------------

How = tuple[Backend, Literal["scope", "native"]]
every_way = pytest.mark.parametrize(
    "how", [("asyncio", "scope"), ("asyncio", "native"), ("trio", "scope")], ids=" ".join
)


async def read_slowly(watched: Watched, fields: Mapping[str, object]) -> State:
    watched.initial = State(fields)
    async with watched.app.open(fields, id=watched.id, buffer=1) as opened:
        async for event in opened:
            if isinstance(event, Item):
                await anyio.sleep(1)
        return (await opened.result()).state


async def just_run(watched: Watched, fields: Mapping[str, object]) -> State:
    return await watched.go(fields)


Life = Callable[[Watched, Mapping[str, object]], Awaitable[State]]
LIVES: dict[str, tuple[str, Life, list[Hook]]] = {
    "step": ("step", just_run, []),
    "step, told slowly": ("step", just_run, [slow(0.5)]),
    "map": ("map", just_run, []),
    "map, told slowly": ("map", just_run, [slow(0.5)]),
    "emitting": ("emitting", just_run, [slow(0.5)]),
    "opened step": ("step", read_slowly, []),
    "opened map": ("map", read_slowly, []),
}


PLACES = 16  # of each sweep in the gate; `nox -s soak` tries them all


@pytest.mark.parametrize("name", LIVES)
@every_way
def test_cancelled_at_some_places(name: str, how: How):
    assert sweep(name, how, seed=1, limit=PLACES) > 5


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", LIVES)
@every_way
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_cancelled_everywhere(name: str, how: How, seed: int | None):
    assert sweep(name, how, seed=seed, limit=None) > 5


def sweep(name: str, how: How, *, seed: int | None, limit: int | None) -> int:
    what, live, hooks = LIVES[name]

    async def scenario(attempt: Attempt) -> None:
        witness, cleaned = Witness(), 0

        async def talk(item: int) -> Stream:
            nonlocal cleaned
            with witness.watch():
                try:
                    yield "at once"
                    for number in range(2):
                        await anyio.sleep(1 + item % 2)
                        yield number
                        await checkpoint()
                    yield Result(item)
                finally:
                    with anyio.CancelScope(shield=True):
                        await anyio.sleep(0.5)
                    cleaned += 1

        async def emitting(item: int, context: Context) -> int:
            with witness.watch():
                for number in range(3):
                    await context.emit(number)
            cleaned_up()
            return item

        def cleaned_up() -> None:
            nonlocal cleaned
            cleaned += 1

        act = streaming(talk, reads=["item"], limits=Limits(2))
        match what:
            case "map":
                graph: Act = fan_out(act, over="n", item="item", into="outs", limits=Limits(3))
            case "emitting":
                graph = streaming(emitting, reads=["item"], limits=Limits(1))
            case _:
                graph = Graph.chain(act, act.bind(name="again"))
        watched = Watched(graph, hooks=hooks)
        finalized: list[Any] = []
        asyncgens = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(finalizer=finalized.append)
        try:
            ending = await attempt(live, watched, {"n": [1, 2, 3, 4], "item": 1})
        finally:
            sys.set_asyncgen_hooks(*asyncgens)
        watched.check()
        assert not finalized
        assert witness.open == 0
        assert cleaned == len(witness.ends) or what == "emitting"
        steps = [event for event in watched.hook.of(StepEnded) if event.step in ("stream", "again")]
        assert len(witness.ends) <= len(steps)
        check_items(watched.hook.events)
        if ending.place == 0:
            assert len(witness.ends) == len(steps) == {"map": 4, "step": 2, "emitting": 1}[what]

    backend, kind = how
    return cancel_everywhere(scenario, backend=backend, how=kind, seed=seed, limit=limit)


def check_items(events: list[Event]) -> None:
    """Items come between the start and the end of their step, counted from 0."""
    counts: dict[tuple[str, str], int] = {}
    for event in events:
        match event:
            case StepStarted():
                counts[event.run_id, event.step] = 0
            case Item():
                assert event.index == counts[event.run_id, event.step]
                counts[event.run_id, event.step] += 1
            case StepEnded():
                del counts[event.run_id, event.step]
            case _:
                pass
