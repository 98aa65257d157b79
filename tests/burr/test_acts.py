"""Actions of Burr's as acts: each kind, their states, and what holds for them as for ours."""

# Burr's own types are unknown in part.
# pyright: reportAssignmentType=false, reportUnknownLambdaType=false
# pyright: reportMissingTypeArgument=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false, reportIncompatibleMethodOverride=false
# pyright: reportUntypedFunctionDecorator=false, reportGeneralTypeIssues=false

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from typing import Any

import anyio
import pytest
from pydantic import BaseModel

from shoal import (
    Application,
    Each,
    Graph,
    Hook,
    Limits,
    MemoryStore,
    Retry,
    Runtime,
    StepTimeout,
    fan_out,
    first_item,
    race,
)
from shoal import action as our_action
from shoal.errors import MissingInput, SecretLeaked
from shoal.events import Drop, Extend, Increment, Item, Set, StateUpdated
from shoal.testing import RecordingHook, no_leaks

pytest.importorskip("burr", reason="needs Burr: pip install apache-burr")

from burr.core import Action, ApplicationContext, Result, State, action
from burr.core.action import AsyncStreamingAction, Input, StreamingAction, streaming_action
from burr.visibility import TracerFactory

from shoal.burr import act

pytestmark = pytest.mark.anyio


@action(reads=["n"], writes=["square"])
def square(state: State) -> State:
    return state.update(square=state["n"] ** 2)


async def ran(made: Any, given: dict[str, Any], **inputs: Any) -> dict[str, Any]:
    async with no_leaks():
        return (await Application(made).run(given, inputs=inputs)).state.to_plain()


# -- kinds of actions ------------------------------------------------------------------------------


@pytest.mark.realtime
async def test_a_plain_function_runs_in_a_thread_and_an_async_one_on_the_loop():
    @action(reads=[], writes=["plain"])
    def plain(state: State) -> tuple[dict[str, Any], State]:
        return {"where": "nobody asks"}, state.update(plain=threading.current_thread().name)

    @action(reads=[], writes=["awaited"])
    async def awaited(state: State) -> State:
        await anyio.lowlevel.checkpoint()
        return state.update(awaited=threading.current_thread().name)

    found = await ran(Graph.chain(act(plain), act(awaited)), {})
    here = threading.current_thread().name
    assert found["plain"] != here
    assert found["awaited"] == here
    loop = act(plain, executor="loop")
    assert (await ran(loop, {}))["plain"] == here


async def test_what_an_action_declares_is_what_the_act_declares():
    @action(reads=["n"], writes=["out"])
    def add(state: State, by: int, times: int = 1) -> State:
        """Add."""
        return state.update(out=state["n"] + by * times)

    made = act(add)
    assert (made.name, made.reads, made.writes, made.sure_writes) == (
        "add",
        {"n"},
        {"out"},
        {"out"},
    )
    assert {name: need.required for name, need in made.takes.items()} == {
        "by": True,
        "times": False,
    }
    assert made.__doc__ == "Add."
    assert await ran(made, {"n": 1}, by=2) == {"n": 1, "out": 3}
    assert await ran(made.bind(times=3), {"n": 1}, by=2) == {"n": 1, "out": 7}
    assert await ran(act(add.bind(by=5), name="five"), {"n": 1}) == {"n": 1, "out": 6}
    with pytest.raises(MissingInput, match="'by'"):
        await ran(made, {"n": 1})


class Counter(Action):
    @property
    def reads(self) -> list[str]:
        return ["count"]

    def run(self, state: State, by: int = 1) -> dict[str, int]:
        return {"count": state["count"] + by}

    @property
    def writes(self) -> list[str]:
        return ["count", "history"]

    @property
    def inputs(self) -> tuple[list[str], list[str]]:
        return [], ["by"]

    def update(self, result: dict[str, int], state: State) -> State:
        return state.update(**result).append(history=result["count"])


class Later(Counter):
    async def run(self, state: State, by: int = 1) -> dict[str, int]:
        await anyio.sleep(1)
        return {"count": state["count"] + by}


async def test_classes_of_two_steps():
    # The new state of the second step sees the history, which the first one doesn't read.
    both = Graph.chain(act(Counter()), act(Later(), name="later"), act(Result("count")))
    assert both.name == "Counter+later+Result"
    found = await ran(both, {"count": 1, "history": [0]}, by=2)
    assert found == {"count": 5, "history": [0, 3, 5]}


@action(reads=[], writes=["prompt", "context"])
def hear(state: State, prompt: str, context: str = "none") -> State:
    return state.update(prompt=prompt, context=context)


# Fails where inputs are told from fields by their names, as for functions of ours.
async def test_an_input_may_have_the_name_of_a_field_or_of_our_context():
    assert await ran(act(hear), {"prompt": "old"}, prompt="new") == {
        "prompt": "new",
        "context": "none",
    }
    assert (await ran(act(hear), {}, prompt="new", context="c"))["context"] == "c"
    assert await ran(act(Input("prompt")), {}, prompt="new") == {"prompt": "new"}


class Note(BaseModel):
    n: int = 1
    square: int = 0


async def test_an_action_with_models():
    @action.pydantic(reads=["n"], writes=["square"])
    def squared(state: Note) -> Note:
        state.square = state.n**2
        return state

    assert await ran(act(squared), {"n": 4}) == {"n": 4, "square": 16}


async def test_burrs_own_inputs_are_given():
    seen: list[Any] = []

    @action(reads=[], writes=["id"])
    def where(state: State, __context: ApplicationContext, __tracer: TracerFactory) -> State:
        with __tracer("part") as span:
            span.log_attributes(n=1)
        seen.append(__context)
        return state.update(id=__context.app_id)

    class Where(Action):
        reads, writes, inputs = [], ["id"], ["__context"]

        def run(self, state: State, __context: ApplicationContext) -> dict[str, Any]:
            return {"id": __context.action_name}

        def update(self, result: dict[str, Any], state: State) -> State:
            return state.update(**result)

    run = await Application(act(where)).run({}, id="mine")
    assert run.state["id"] == "mine"
    assert (seen[0].action_name, seen[0].tracker) == ("where", None)
    assert await ran(act(Where()), {}) == {"id": "Where"}


# -- streams ---------------------------------------------------------------------------------------


@streaming_action(reads=["text"], writes=["out"])
def words(state: State) -> Generator[Any]:
    for word in state["text"].split():
        yield {"word": word}
    yield {"word": "all"}, state.update(out=state["text"].upper())


@streaming_action(reads=["text"], writes=["out"])
async def words_later(state: State) -> AsyncGenerator[Any]:
    for word in state["text"].split():
        await anyio.lowlevel.checkpoint()
        yield {"word": word}, None
    yield {"word": "all"}, state.update(out=state["text"].upper())


class Words(StreamingAction):
    reads, writes = ["text"], ["out"]

    def stream_run(self, state: State, **_: Any) -> Generator[dict[str, Any]]:
        for word in state["text"].split():
            yield {"word": word}
        yield {"out": state["text"].upper()}

    def update(self, result: dict[str, Any], state: State) -> State:
        return state.update(**result)


class WordsLater(AsyncStreamingAction):
    reads, writes = ["text"], ["out"]

    async def stream_run(self, state: State, **_: Any) -> AsyncIterator[dict[str, Any]]:
        for one in Words().stream_run(state):
            await anyio.lowlevel.checkpoint()
            yield one

    update = Words.update


@pytest.mark.realtime
@pytest.mark.parametrize(
    "streams",
    [words, words_later, Words(), WordsLater()],
    ids=["function", "async function", "class", "async class"],
)
async def test_a_streaming_action_gives_its_items(streams: Any):
    hook = RecordingHook()
    async with no_leaks():
        run = await Application(act(streams), hooks=[hook]).run({"text": "it depends"})
    assert run.state["out"] == "IT DEPENDS"
    assert [event.item for event in hook.of(Item)] == [{"word": "it"}, {"word": "depends"}]


@pytest.mark.realtime
@pytest.mark.parametrize(
    "streams",
    [words, words_later, Words(), WordsLater()],
    ids=["function", "async function", "class", "async class"],
)
async def test_the_first_item_of_a_stream_decides_a_race(streams: Any):
    @our_action(reads=["text"], writes=["out"])
    async def never(text: str) -> str:
        await anyio.sleep_forever()
        return text

    fastest = race(act(streams, name="words"), never, into="out", until=first_item())
    assert (await ran(fastest, {"text": "a b"}))["out"] == "A B"


@pytest.mark.realtime
async def test_a_stream_in_a_thread_is_closed_when_it_is_cancelled():
    closed = threading.Event()
    begun = anyio.Event()

    class Endless(Words):
        held: Any = None

        def stream_run(self, state: State, **_: Any) -> Generator[dict[str, Any]]:
            def endless() -> Generator[dict[str, Any]]:
                try:
                    while True:
                        yield {"more": 1}
                finally:
                    closed.set()

            self.held = endless()  # or Python would close it once nothing refers to it
            return self.held

    @our_action(writes=["out"])
    async def quick() -> int:
        await begun.wait()
        return 1

    class Begun(Hook):
        def on_item(self, event: Item) -> None:
            begun.set()

    async with no_leaks():
        app = Application(race(act(Endless()), quick, into="out"), hooks=[Begun()])
        assert (await app.run({})).state["out"] == 1
    assert closed.is_set()


# -- states ----------------------------------------------------------------------------------------


async def test_burrs_operations_are_ours():
    @action(reads=["n"], writes=["n", "log", "text"])
    def change(state: State) -> State:
        state = state.append(log="one").extend(log=["two", "three"]).increment(n=2)
        return state.update(text=f"{state['n']} {state['log']}")

    hook = RecordingHook()
    wiped = act(wipe, writes=["text"])
    app = Application(Graph.chain(act(change), wiped), hooks=[hook])
    run = await app.run({"n": 1, "log": ["zero"]})
    assert run.state == {"n": 3, "log": ["zero", "one", "two", "three"]}
    assert [list(event.update.operations) for event in hook.of(StateUpdated)] == [
        [
            Extend("log", ("one",)),
            Extend("log", ("two", "three")),
            Increment("n", 2),
            Set("text", "3 ['zero', 'one', 'two', 'three']"),
        ],
        [Drop("text")],
    ]


@action(reads=[], writes=[])
def wipe(state: State) -> State:
    return state.wipe(delete=["text", "nothing"])


async def test_other_ways_to_make_a_state():
    @action(reads=["a", "b"], writes=["a", "c"])
    def merge(state: State) -> State:
        part = state.subset("a", "b")
        assert (dict(part), len(state), state.keys()) == ({"a": [1], "b": 2}, 2, ["a", "b"])
        assert state.get_all() == state.data == state.serialize() == {"a": [1], "b": 2}
        assert "c" in state.update(c=1)
        assert state["a"] is state["a"]
        return state.merge(part).merge(State({"c": 3}))

    assert await ran(act(merge), {"a": [1], "b": 2}) == {"a": [1], "b": 2, "c": 3}

    @action(reads=[], writes=[])
    def keep(state: State) -> State:
        return state.wipe(keep=["b"])

    assert await ran(act(keep, writes=["a"]), {"a": 1, "b": 2}) == {"b": 2}


# Fails where the list of the state itself is given to Burr's code: two attempts would append twice.
async def test_a_list_that_is_changed_and_given_back_is_a_copy():
    attempts: list[int] = []

    @action(reads=["history"], writes=["history"])
    def add(state: State) -> State:
        history = state["history"]
        history.append("new")
        history[0]["role"] = "changed"
        attempts.append(1)
        if len(attempts) == 1:
            raise ConnectionError("again")
        return state.update(history=history)

    given = {"history": [{"role": "user"}]}
    done = act(add, retry=Retry(2, on=ConnectionError))
    assert await ran(done, given) == {"history": [{"role": "changed"}, "new"]}
    assert given == {"history": [{"role": "user"}]}


async def test_a_secret_is_read_and_never_written():
    @action(reads=["token"], writes=["out"])
    def use(state: State, leak: bool = False) -> State:
        return state.update(out=state["token"] if leak else len(state["token"]))

    app = Application(act(use), secret={"token"}, store=MemoryStore())
    assert (await app.run({"token": "abcdefgh"})).state["out"] == 8
    with pytest.raises(SecretLeaked):
        await app.run({"token": "abcdefgh"}, inputs={"leak": True})


# -- what holds for our actions --------------------------------------------------------------------


async def test_limits_retries_and_timeouts_hold():
    at_once, most, failing = 0, 0, {3}

    @action(reads=["n"], writes=["out"])
    async def slow(state: State) -> State:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        try:
            await anyio.sleep(1)
            if state["n"] in failing:
                failing.clear()
                raise ConnectionError
            if state["n"] == 100:
                await anyio.sleep_forever()
            return state.update(out=state["n"])
        finally:
            at_once -= 1

    limited = act(slow, limits=Limits(2), retry=Retry(2, on=ConnectionError), timeout=5)
    many = fan_out(limited, over="ns", item="n", into="outs")
    assert (await ran(many, {"ns": [1, 2, 3, 4]}))["outs"] == [1, 2, 3, 4]
    assert most == 2
    with pytest.raises(StepTimeout, match="'slow'"):
        await ran(limited, {"n": 100})


async def test_a_result_is_cached_by_what_the_action_reads():
    calls: list[int] = []

    @action(reads=["n"], writes=["out"])
    def count(state: State) -> State:
        calls.append(state["n"])
        return state.update(out=state["n"] * 10)

    async with Runtime(store=MemoryStore()) as runtime:
        app = Application(act(count, cache=60))
        for n in (1, 2, 1):
            assert (await runtime.run(app, {"n": n, "other": n})).state["out"] == n * 10
    assert calls == [1, 2]


async def test_the_first_of_two_actions_wins_and_the_other_is_cancelled():
    ended: list[str] = []

    def answering(name: str, seconds: float) -> Any:
        @action(reads=["question"], writes=["answer"])
        async def answer(state: State) -> State:
            try:
                await anyio.sleep(seconds)
            finally:
                ended.append(name)
            return state.update(answer=f"{name}: {state['question']}")

        return act(answer, name=name)

    fastest = race(answering("slow", 10), answering("fast", 1), into="answer")
    assert (await ran(fastest, {"question": "why"}))["answer"] == "fast: why"
    assert ended == ["fast", "slow"]


async def test_a_run_goes_on_behind_the_actions_that_are_done():
    calls: list[str] = []

    @action(reads=["n"], writes=["square", "log"])
    def first(state: State) -> State:
        calls.append("first")
        return state.update(square=state["n"] ** 2).append(log="first")

    @action(reads=["square"], writes=["text", "log"])
    async def second(state: State) -> State:
        calls.append("second")
        if calls.count("second") == 1:
            raise ConnectionError("down")
        return state.update(text=str(state["square"])).append(log="second")

    app = Application(Graph.chain(act(first), act(second)), store=MemoryStore())
    with pytest.raises(ConnectionError):
        await app.run({"n": 7}, id="a")
    run = await app.run(id="a")
    assert run.state == {"n": 7, "square": 49, "text": "49", "log": ["first", "second"]}
    assert calls == ["first", "second", "second"]


async def test_a_fan_out_over_an_action_keeps_what_is_done():
    calls: list[int] = []

    @action(reads=["n"], writes=["square"])
    def squared(state: State) -> State:
        calls.append(state["n"])
        if state["n"] == 3 and calls.count(3) == 1:
            raise ConnectionError("down")
        return state.update(square=state["n"] ** 2)

    many = fan_out(act(squared), over="ns", item="n", key=str, into="squares", limits=Limits(1))
    app = Application(many, store=MemoryStore())
    with pytest.raises(ExceptionGroup):
        await app.run({"ns": [1, 2, 3, 4]}, id="a")
    run = await app.run(id="a")
    assert run.state["squares"] == {"1": 1, "2": 4, "3": 9, "4": 16}
    assert calls == [1, 2, 3, 3, 4]


async def test_a_child_is_tried_again_by_its_policy():
    fails = [2]

    @action(reads=["n"], writes=["square"])
    async def squared(state: State) -> State:
        if state["n"] in fails:
            fails.clear()
            raise ConnectionError
        return state.update(square=state["n"] ** 2)

    policy = Each(retry=Retry(2, on=ConnectionError))
    many = fan_out(act(squared), over="ns", item="n", into="squares", each=policy)
    assert (await ran(many, {"ns": [1, 2]}))["squares"] == [1, 4]


async def test_an_act_is_called_like_a_function():
    import shoal

    assert act(square)(state=shoal.State({"n": 3}))["square"] == 9
    assert repr(act(square)) == "<action square reads=['n'] writes=['square']>"
