"""Parallel actions of Burr's, in the shapes of its own examples: their tasks are children."""

# Burr's own types are unknown in part.
# pyright: reportAssignmentType=false, reportUnknownLambdaType=false
# pyright: reportMissingTypeArgument=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false, reportIncompatibleMethodOverride=false

from __future__ import annotations

import hashlib
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import anyio
import pytest

from shoal import Application, Each, Limits, MemoryStore, Retry
from shoal import action as our_action
from shoal.errors import (
    BadKey,
    BadResult,
    DefinitionError,
    MissingField,
    MissingInput,
    StepTimeout,
    UndeclaredRead,
    UndeclaredWrite,
)
from shoal.events import ChildEnded, StepStarted
from shoal.testing import Attempt, RecordingHook, cancel_everywhere, no_leaks

pytest.importorskip("burr", reason="needs Burr: pip install apache-burr")

from burr.core import ApplicationBuilder, ApplicationContext, GraphBuilder, State, action
from burr.core.action import create_action
from burr.core.parallelism import (
    MapActions,
    MapActionsAndStates,
    MapStates,
    RunnableGraph,
    SubGraphTask,
    TaskBasedParallelAction,
)

from shoal.burr import act, graph, parallel
from shoal.burr._parallel import _Graphs

pytestmark = pytest.mark.anyio

PROMPTS = ["meaning", "swallow", "steak"]


@action(reads=["prompt"], writes=["llm_output"])
def query_llm(state: State, model: str = "m") -> State:
    return state.update(llm_output=f"{model}: {state['prompt']}")


@action(reads=["prompt"], writes=["riddle"])
def as_riddle(state: State) -> State:
    return state.update(riddle=f"riddle of {state['prompt']}")


@action(reads=["riddle"], writes=["llm_output"])
async def answer_riddle(state: State, model: str) -> State:
    await anyio.sleep(1)
    return state.update(llm_output=f"{model}: {state['riddle']}")


riddles = RunnableGraph(
    GraphBuilder()
    .with_actions(as_riddle, answer_riddle)
    .with_transitions(("as_riddle", "answer_riddle"))
    .build(),
    entrypoint="as_riddle",
    halt_after=["answer_riddle"],
)


class Reduces:
    reads = property(lambda _: ["prompts"])
    writes = property(lambda _: ["all"])

    def reduce(self, state: State, states: Iterator[State]) -> State:
        return state.update(all=[(one["prompt"], one["llm_output"]) for one in states])


class OverPrompts(Reduces, MapStates):
    def action(self, state: State, inputs: dict[str, Any]) -> Any:
        return query_llm

    def states(self, state: State, context: ApplicationContext, inputs: Any) -> Iterator[State]:
        for prompt in state["prompts"]:
            yield state.update(prompt=prompt)


class OverRiddles(OverPrompts):
    @property
    def inputs(self) -> list[str]:
        return ["model", "__context"]

    def action(self, state: State, inputs: dict[str, Any]) -> Any:
        assert inputs["model"] == "m"
        return riddles


class OverModels(Reduces, MapActions):
    def actions(self, state: State, context: ApplicationContext, inputs: Any) -> Iterator[Any]:
        for model in ("gpt", "o1"):
            yield create_action(query_llm.bind(model=model), f"{model}_answer")
        yield RunnableGraph(
            GraphBuilder().with_actions(query_llm).build(), "query_llm", ["query_llm"]
        )

    def state(self, state: State, inputs: dict[str, Any]) -> State:
        return state.update(prompt=state["prompts"][0])


class OverBoth(Reduces, MapActionsAndStates):
    def actions(self, state: State, context: ApplicationContext, inputs: Any) -> Iterator[Any]:
        yield from OverModels().actions(state, context, inputs)

    states = OverPrompts.states


class OverTasks(Reduces, TaskBasedParallelAction):
    def tasks(
        self, state: State, context: ApplicationContext, inputs: Any
    ) -> Iterator[SubGraphTask]:
        for prompt in state["prompts"]:
            key = f"{context.app_id}:{prompt}"
            yield SubGraphTask(
                RunnableGraph.create(query_llm),
                inputs={"model": prompt[0]},
                state=state.update(prompt=prompt),
                application_id=hashlib.sha256(key.encode()).hexdigest(),
            )


def by_burr(made: Any, **inputs: Any) -> Any:
    """Return what Burr itself makes of an action."""
    app = (
        ApplicationBuilder()
        .with_actions(made=made)
        .with_state(prompts=PROMPTS, more=["m"])
        .with_entrypoint("made")
        .build()
    )
    return app.run(halt_after=["made"], inputs=inputs)[2]["all"]


@pytest.mark.realtime
@pytest.mark.parametrize("cls", [OverPrompts, OverModels, OverBoth, OverTasks])
async def test_each_class_gives_what_it_gives_with_burr(cls: Any):
    hook = RecordingHook()
    async with no_leaks():
        run = await Application(act(cls()), hooks=[hook]).run({"prompts": PROMPTS})
    assert run.state["all"] == by_burr(cls())
    hook.assert_paired()
    assert len(hook.of(ChildEnded)) == len(run.state["all"])


async def test_a_graph_for_each_state_with_inputs():
    made = parallel(OverRiddles())
    assert set(made.takes) == {"model"}
    async with no_leaks():
        run = await Application(made).run({"prompts": PROMPTS}, inputs={"model": "m"})
    assert run.state["all"] == [(one, f"m: riddle of {one}") for one in PROMPTS]


class Later(OverPrompts):
    def is_async(self) -> bool:
        return True

    async def states(self, state: State, context: Any, inputs: Any) -> AsyncIterator[State]:
        for prompt in state["prompts"]:
            await anyio.lowlevel.checkpoint()
            yield state.update(prompt=prompt)

    def actions(self, state: State, context: Any, inputs: Any) -> Iterator[Any]:
        yield query_llm

    async def reduce(self, state: State, states: AsyncIterator[State]) -> State:
        return state.update(all=[(one["prompt"], one["llm_output"]) async for one in states])


async def test_one_that_is_async():
    run = await Application(act(Later())).run({"prompts": PROMPTS})
    assert run.state["all"] == [(one, f"m: {one}") for one in PROMPTS]


@pytest.mark.realtime
async def test_plain_code_of_the_class_runs_in_threads():
    threads: set[str] = set()

    class Asks(OverPrompts):
        def states(self, state: State, context: Any, inputs: Any) -> Iterator[State]:
            threads.add(threading.current_thread().name)
            yield state.update(prompt="x")

        def reduce(self, state: State, states: Iterator[State]) -> State:
            threads.add(threading.current_thread().name)
            return state.update(all=list(states))

    await Application(act(Asks())).run({"prompts": PROMPTS})
    assert threads
    assert threading.current_thread().name not in threads


async def test_a_whole_application_with_a_parallel_action():
    @action(reads=[], writes=["prompts"])
    def make(state: State) -> State:
        return state.update(prompts=PROMPTS)

    @action(reads=["all"], writes=["best"])
    def judge(state: State) -> State:
        return state.update(best=max(state["all"])[1])

    app = (
        ApplicationBuilder()
        .with_actions(make, judge, asks=OverPrompts())
        .with_transitions(("make", "asks"), ("asks", "judge"))
        .with_entrypoint("make")
        .build()
    )
    made = graph(app)
    assert (await Application(made).run({})).state["best"] == app.run(halt_after=["judge"])[2][
        "best"
    ]


async def test_the_reduction_sees_all_that_a_task_started_with():
    class Whole(OverPrompts):
        reads = property(lambda _: ["prompts", "mark"])

        def reduce(self, state: State, states: Iterator[State]) -> State:
            return state.update(all=[(one["mark"], sorted(one)) for one in states])

    run = await Application(act(Whole())).run({"prompts": ["a"], "mark": "x", "other": 1})
    assert run.state["all"] == [("x", ["llm_output", "mark", "prompt", "prompts"])]


# -- what holds for our fan-outs -------------------------------------------------------------------


class Counted(OverPrompts):
    """Asks slowly, and fails as long as it should."""

    def __init__(self, *failing: str) -> None:
        super().__init__()
        self.calls: list[str] = []
        self.failing = set(failing)
        self.now = self.most = 0

        @action(reads=["prompt"], writes=["llm_output"])
        async def ask(state: State) -> State:
            prompt = state["prompt"]
            self.calls.append(prompt)
            self.now += 1
            self.most = max(self.most, self.now)
            try:
                await anyio.sleep(1 if prompt in self.failing else 2)
                if prompt in self.failing:
                    raise ConnectionError(prompt)
                return state.update(llm_output=prompt.upper())
            finally:
                self.now -= 1

        self.ask = ask

    def action(self, state: State, inputs: dict[str, Any]) -> Any:
        return self.ask


async def test_limits_say_how_many_run_at_once():
    counted = Counted()
    await Application(parallel(counted, limits=Limits(2))).run({"prompts": list("abcdef")})
    assert (counted.most, len(counted.calls)) == (2, 6)


async def test_the_first_failure_cancels_the_others():
    counted = Counted("b")
    async with no_leaks():
        with pytest.raises(ExceptionGroup, match="a child of fan-out 'Counted' failed") as failed:
            await Application(parallel(counted)).run({"prompts": list("abc")})
    assert [str(one) for one in failed.value.exceptions] == ["b"]
    assert counted.now == 0


async def test_a_run_that_died_keeps_the_children_that_are_done():
    counted = Counted("c")
    app = Application(parallel(counted, limits=Limits(1)), store=MemoryStore())
    with pytest.raises(ExceptionGroup):
        await app.run({"prompts": list("abcd")}, id="a")
    counted.failing.clear()
    run = await app.run(id="a")
    assert run.state["all"] == [(one, one.upper()) for one in "abcd"]
    assert [counted.calls.count(one) for one in "ab"] == [1, 1]


async def test_a_task_is_found_again_by_its_application_id():
    class Turned(OverTasks):
        order = 1
        calls = 0

        def tasks(self, state: State, context: Any, inputs: Any) -> Iterator[SubGraphTask]:
            yield from list(super().tasks(state, context, inputs))[:: self.order]

        def reduce(self, state: State, states: Iterator[State]) -> State:
            Turned.calls += 1
            if Turned.calls == 1:
                raise ConnectionError
            return super().reduce(state, states)

    hook = RecordingHook()
    app = Application(act(Turned()), store=MemoryStore(), hooks=[hook])
    with pytest.raises(ConnectionError):
        await app.run({"prompts": PROMPTS}, id="a")
    Turned.order = -1
    before = len(hook.of(StepStarted))
    run = await app.run(id="a")
    assert [one for one, _ in run.state["all"]] == PROMPTS[::-1]
    assert [event.step for event in hook.of(StepStarted)[before:]] == ["Turned"]


async def test_the_children_have_a_policy_and_acts_of_ours():
    counted = Counted("b")

    @our_action(reads=["prompt"], writes=["llm_output"])
    async def ask(prompt: str) -> str:
        if counted.failing:
            counted.failing.clear()
            raise ConnectionError
        return f"ours: {prompt}"

    each = Each(retry=Retry(2, on=ConnectionError))
    made = parallel(counted, each=each, acts={"ask": ask})
    run = await Application(made).run({"prompts": ["a", "b"]})
    assert run.state["all"] == [("a", "ours: a"), ("b", "ours: b")]
    assert counted.calls == []


async def test_a_timeout_and_a_retry_of_the_whole():
    with pytest.raises(StepTimeout):
        await Application(parallel(Counted(), timeout=1)).run({"prompts": ["a"]})
    counted = Counted("a")
    made = parallel(counted, retry=Retry(3, on=ConnectionError))
    with pytest.raises(ExceptionGroup):
        await Application(made).run({"prompts": ["a"]})
    assert counted.calls == ["a"] * 3


async def test_children_whose_state_is_not_persisted_have_no_store():
    class Alone(OverPrompts):
        def state_persister(self, **_: Any) -> None:
            return None

    store = MemoryStore()
    run = await Application(act(Alone()), store=store).run({"prompts": ["a"]}, id="a")
    assert run.state["all"] == [("a", "m: a")]


class CountedLater(Counted):
    is_async = Later.is_async
    states = Later.states
    reduce = Later.reduce


@pytest.mark.sweep
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_cancelled_at_some_places_a_run_goes_on(backend: Literal["asyncio", "trio"]):
    counted = CountedLater()  # Burr reads its source file

    async def scenario(attempt: Attempt) -> None:
        counted.calls.clear()
        app = Application(parallel(counted, limits=Limits(1)), store=MemoryStore())

        async def run() -> Any:
            return await app.run({"prompts": ["a", "b"]}, id="a")

        await attempt(run)
        assert (await run()).state["all"] == [("a", "A"), ("b", "B")]
        # The one that was at work when it was cancelled is asked again, at most.
        assert len(counted.calls) <= 3

    assert cancel_everywhere(scenario, backend=backend, seed=1, limit=8) > 5


def test_tasks_of_the_same_actions_share_a_graph():
    graphs = _Graphs(graph)
    bound = RunnableGraph.create(create_action(query_llm.bind(model="x"), "query_llm"))
    made = [graphs.of(RunnableGraph.create(query_llm)), graphs.of(riddles), graphs.of(bound)]
    assert graphs.of(RunnableGraph.create(query_llm)) is made[0]
    assert len({id(one) for one in made}) == 3


# -- mistakes --------------------------------------------------------------------------------------


async def test_a_child_that_reads_what_the_parent_does_not_declare():
    @action(reads=["prompt", "tone"], writes=["llm_output"])
    def toned(state: State) -> State:
        return state.update(llm_output=state["tone"])

    class Toned(OverPrompts):
        def action(self, state: State, inputs: Any) -> Any:
            return toned

    with pytest.raises(UndeclaredRead, match=r"'toned' reads field 'tone'.*\(declared: prompts\)"):
        await Application(act(Toned())).run({"prompts": ["a"], "tone": "kind"})
    with pytest.raises(ExceptionGroup) as failed:
        await Application(act(Toned())).run({"prompts": ["a"]})
    assert isinstance(failed.value.exceptions[0], MissingField)


async def test_a_child_that_takes_an_input_which_the_parent_does_not_name():
    class Needs(OverPrompts):
        def action(self, state: State, inputs: Any) -> Any:
            return riddles

    with pytest.raises(MissingInput, match=r"a task gets the inputs that 'Needs' names among its"):
        await Application(act(Needs())).run({"prompts": ["a"]})


async def test_tasks_that_are_none():
    class Odd(OverTasks):
        def tasks(self, state: State, context: Any, inputs: Any) -> Any:
            yield "task"

    class Twice(OverTasks):
        def tasks(self, state: State, context: Any, inputs: Any) -> Any:
            made = list(super().tasks(state, context, inputs))
            yield from (made[0], made[0])

    class Tracked(OverTasks):
        def tasks(self, state: State, context: Any, inputs: Any) -> Any:
            for task in super().tasks(state, context, inputs):
                setattr(task, "tracker", object())  # noqa: B010 # no checker knows the attribute
                yield task

    class NotAsync(Later):
        is_async = OverPrompts.is_async

        def tasks(self, state: State, context: Any, inputs: Any) -> Any:
            return self.states(state, context, inputs)

    for cls, error, why in (
        (Odd, BadResult, "its tasks are Burr's SubGraphTasks, not 'task'"),
        (Twice, BadKey, "give each its own key"),
        (Tracked, DefinitionError, r"SubGraphTask\(tracker=...\) is Burr's, and shoal wouldn't"),
        (NotAsync, BadResult, "def is_async"),
    ):
        with pytest.raises(error, match=why):
            await Application(act(cls())).run({"prompts": PROMPTS})


async def test_a_reduction_that_writes_what_it_does_not_declare():
    class Odd(OverPrompts):
        def reduce(self, state: State, states: Iterator[State]) -> State:
            return state.update(other=1)

    with pytest.raises(UndeclaredWrite, match="'other'"):
        await Application(act(Odd())).run({"prompts": []})
