"""What a user of Burr's gets wrong, and what the errors teach."""

# Burr's own types are unknown in part.
# pyright: reportAssignmentType=false, reportUnknownLambdaType=false
# pyright: reportMissingTypeArgument=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false, reportIncompatibleMethodOverride=false
# pyright: reportArgumentType=false, reportReturnType=false, reportGeneralTypeIssues=false

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

import shoal
from shoal import Application, Limits
from shoal.errors import (
    BadResult,
    ChangedInPlace,
    DefinitionError,
    IncompleteStream,
    MissingField,
    StateError,
    UndeclaredRead,
    UndeclaredWrite,
)

pytest.importorskip("burr", reason="needs Burr: pip install apache-burr")

from burr.core import Action, ApplicationBuilder, GraphBuilder, State, action, expr, when
from burr.core.action import Condition, SingleStepAction, streaming_action
from burr.core.parallelism import MapStates, RunnableGraph
from burr.lifecycle import PostRunStepHook

from shoal.burr import act, graph, parallel

pytestmark = pytest.mark.anyio


@action(reads=["n"], writes=["out"])
def double(state: State) -> State:
    return state.update(out=2 * state["n"])


@action(reads=["out"], writes=["text"])
def show(state: State) -> State:
    return state.update(text=str(state["out"]))


def undecorated(state: State) -> State:
    return state


def undecorated_stream(state: State) -> Any:
    yield state


@shoal.action(writes=["out"])
async def ours() -> int:
    return 1


class Two(Action):
    reads, writes = ["n"], ["out"]

    def run(self, state: State) -> dict[str, int]:
        return {"out": 1}

    def update(self, result: dict[str, int], state: State) -> State:
        return state.update(**result)


class Squares(MapStates):
    reads, writes = ["ns"], ["out"]

    def action(self, state: State, inputs: Any) -> Any:
        return double

    def states(self, state: State, context: Any, inputs: Any) -> Any:
        yield from ()

    def reduce(self, state: State, states: Any) -> State:
        return state


built = (
    ApplicationBuilder()
    .with_actions(double, show)
    .with_transitions(("double", "show"))
    .with_entrypoint("double")
    .build()
)


class TakesState(Two):
    inputs = ["state"]  # noqa: RUF012 # as Burr has it


class TakesOdd(Two):
    inputs = ["__odd"]  # noqa: RUF012 # as Burr code is written


class ReadsText(Two):
    reads = "n"


@streaming_action(reads=[], writes=["out"])
def stream_of_context(state: State, context: str) -> Any:
    yield {}, state.update(out=context)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: act(undecorated), "decorate it with Burr's @action(reads=[...], writes=[...])"),
        (lambda: act(undecorated_stream), "decorate it with Burr's @streaming_action(reads=["),
        (lambda: act(ours), "it is an act of shoal's already: use it as it is"),
        (lambda: act(Two), "it is a class: give an instance, act(Two())"),
        (lambda: act(built), "it is a whole graph: shoal.burr.graph(...)"),
        (lambda: act(built.graph), "it is a whole graph: shoal.burr.graph(...)"),
        (lambda: act(ApplicationBuilder()), "build the application, and give it to shoal.burr.gr"),
        (lambda: act(when(n=1)), "it is a condition, which shoal.burr.graph(...) takes over"),
        (lambda: act("double"), "give a function with Burr's @action"),
        (lambda: act(double, name=""), "act(name=...) takes a name, not ''"),
        (lambda: act(double, reads="n"), "reads='n' is one string; give a list"),
        (lambda: act(double, limits=3), "limits= takes Limits(n), not 3"),
        (lambda: act(TakesState()), "it takes an input 'state', and shoal gives it its own state"),
        (lambda: act(TakesOdd()), "names with two underscores are those that Burr gives itself"),
        (lambda: act(ReadsText()), "reads='n' is one string"),
        (lambda: act(stream_of_context), "it takes an input 'context', and shoal gives it its own"),
        (
            lambda: act(stream_of_context, executor="loop"),
            "streams from a plain generator, which would block the event loop",
        ),
        (lambda: act(Squares(), limits=Limits(3)), "shoal.burr.parallel(..., limits=..., each=..."),
        (lambda: parallel(double), "makes none: shoal.burr.act(...), and fan_out(...) to run it"),
        (lambda: parallel(Squares(), limits=3), "parallel 'Squares': limits= takes Limits(n)"),
        (lambda: graph(double), "it is an action: shoal.burr.act(double)"),
        (lambda: graph(Two()), "it is an action: shoal.burr.act(...)"),
        (
            lambda: graph(ApplicationBuilder()),
            "build the application first: graph(builder.build())",
        ),
        (lambda: graph(shoal.Graph.chain(ours)), "it is a graph of shoal's already"),
        (lambda: graph(3), "give a Graph, a GraphBuilder, an Application or a RunnableGraph"),
        (lambda: graph(built, entrypoint="dubble"), "no action 'dubble' (there are: double, show)"),
        (lambda: graph(built, halt_after=["shwo"]), "did you mean 'show'?"),
        (lambda: graph(built, halt_after=["@tag:x"]), "has no action '@tag:x'"),
        (lambda: graph(built, halt_after=[show]), "halt_after=...) takes a list of names"),
        (lambda: graph(built, acts={"shwo": ours}), "graph(acts=...): Burr's graph has no action"),
        (lambda: graph(built, acts={"show": show}), "acts={'show': ...} takes actions"),
        (lambda: graph(built, acts=[ours]), "acts= takes a mapping of names of actions to acts"),
        (lambda: Application(double), "it is Burr's: shoal.burr.act(...)"),
        (lambda: Application(built), "it is Burr's: shoal.burr.act(...) makes an act of it, or"),
    ],
)
def test_what_can_not_be_taken_over_is_refused_where_it_is_written(
    make: Callable[[], object], why: str
):
    with pytest.raises(DefinitionError, match=re.escape(why)):
        make()


def test_a_transition_that_is_never_tried_is_refused():
    builder = GraphBuilder().with_actions(double, show, Two().with_name("two"))
    dead = builder.with_transitions(("double", "show"), ("double", "two", when(out=2)))
    with pytest.raises(DefinitionError, match=r"'double' -> 'two' is never tried"):
        graph(dead, entrypoint="double")


def test_where_a_graph_begins_must_be_clear():
    around = GraphBuilder().with_actions(double, show)
    around = around.with_transitions(("double", "show"), ("show", "double", expr("out < 9")))
    with pytest.raises(DefinitionError, match=r"only its application does; each follows another: "):
        graph(around.build())
    alone = GraphBuilder().with_actions(double, show).build()
    with pytest.raises(DefinitionError, match=r"no transition leads to: double, show: give graph"):
        graph(alone)


class Told(PostRunStepHook):
    def post_run_step(self, **future_kwargs: Any) -> None: ...


def test_what_shoal_would_not_call_is_named_with_what_to_use():
    app = (
        ApplicationBuilder()
        .with_actions(double)
        .with_entrypoint("double")
        .with_hooks(Told())
        .with_parallel_executor(lambda: None)
        .build()
    )
    with pytest.raises(DefinitionError) as refused:
        graph(app)
    text = str(refused.value)
    assert "the application has an executor and hooks, which Burr calls" in text
    assert "take over its graph alone: graph(application.graph)" in text
    assert "Instead of hooks: Application(..., hooks=[...])" in text
    assert graph(app.graph).name == "double"


@pytest.mark.parametrize("method", ["tracker", "state_persister", "state_initializer"])
def test_what_the_children_would_have_of_burrs_is_refused(method: str):
    cls = type("Own", (Squares,), {method: lambda _: object()})
    with pytest.raises(DefinitionError, match=rf"action 'Own': {method}\(\) is Burr's"):
        act(cls())


# -- what an action does ---------------------------------------------------------------------------


def burrs(function: Callable[[State], object]) -> Any:
    return act(action(reads=["n", "log"], writes=["out", "log"])(function))


def reads_more(state: State) -> State:
    return state.update(out=state["other"])


def asks_for_more(state: State) -> State:
    return state.update(out=state.get("other", 1))


def writes_more(state: State) -> State:
    return state.update(other=1)


def forgets(state: State) -> State:
    return state


def returns_a_dict(state: State) -> Any:
    return {"out": 1}


def returns_nothing(state: State) -> None: ...


def returns_three(state: State) -> Any:
    return {}, state, 1


def returns_another(state: State) -> State:
    return State({"out": 1})


def returns_a_part(state: State) -> State:
    return state.update(out=1).subset("out")


def changes_in_place(state: State) -> State:
    state["log"].append("lost")
    return state.update(out=1)


def changes_and_appends(state: State) -> State:
    state["log"].append("lost")
    return state.update(out=1).append(log="kept")


def wipes_more(state: State) -> State:
    return state.update(out=1).wipe(keep=["out", "log"])


def reads_what_is_missing(state: State) -> State:
    return state.update(out=state["n"])


def increments_text(state: State) -> State:
    return state.update(out="a").increment(out=1)


@pytest.mark.parametrize(
    ("function", "error", "why"),
    [
        (reads_more, UndeclaredRead, "reads field 'other', which it does not declare; add it to"),
        (asks_for_more, UndeclaredRead, "add it to reads=[...] (declared: log, n)"),
        (writes_more, UndeclaredWrite, "add it to writes=[...] (declared: log, out)"),
        (forgets, BadResult, "declares to write out, and the state that it returned doesn't have"),
        (returns_a_dict, BadResult, "returned a dict; an action of Burr returns the new state"),
        (returns_nothing, BadResult, "returned None; an action of Burr returns the new state"),
        (returns_three, BadResult, "return {...}, state.update(...)"),
        (returns_another, BadResult, "not made from the one it was given"),
        (returns_a_part, BadResult, "not State(...) or state.subset(...)"),
        (changes_in_place, ChangedInPlace, "return state.update(log=log), or state.append(log="),
        (changes_and_appends, ChangedInPlace, "changed field 'log' in place"),
        (wipes_more, UndeclaredWrite, "writes field 'n', which it does not declare"),
        (increments_text, StateError, "increment needs a number for field 'out'"),
    ],
)
async def test_what_shoal_can_not_save_is_refused_with_what_to_write(
    function: Callable[[State], object], error: type[Exception], why: str
):
    app = Application(burrs(function))
    with pytest.raises(error, match=re.escape(why)):
        await app.run({"n": 1, "log": [], "other": 2})


async def test_a_field_that_is_missing_is_named():
    with pytest.raises(
        MissingField, match="no field 'n' that action 'reads_what_is_missing' reads"
    ):
        await Application(burrs(reads_what_is_missing)).run({})


async def test_an_action_of_two_steps_returns_a_dict():
    class Odd(Two):
        def run(self, state: State) -> Any:
            return state

    with pytest.raises(BadResult, match="actions of two steps return a dict, which their update"):
        await Application(act(Odd())).run({"n": 1})


async def test_a_plain_action_that_returns_a_coroutine_is_refused():
    class Odd(SingleStepAction):
        reads, writes = [], []

        def run_and_update(self, state: State, **_: Any) -> Any:
            async def later() -> State:
                return state

            return later()

    with pytest.raises(BadResult, match="only actions may be coroutine functions"):
        await Application(act(Odd())).run({})


def ends_without_state(state: State) -> Any:
    yield {"word": 1}


def yields_a_text(state: State) -> Any:
    yield "word"


def yields_three(state: State) -> Any:
    yield {}, None, None


@pytest.mark.parametrize(
    ("function", "error", "why"),
    [
        (
            ends_without_state,
            IncompleteStream,
            "ended without a result; it yields last: its result",
        ),
        (yields_a_text, BadResult, "yields a dict for each item, and its result and the new state"),
        (yields_three, BadResult, "yield {...}, state.update(...)"),
    ],
)
async def test_a_stream_that_is_none_of_burrs_is_refused(
    function: Any, error: type[Exception], why: str
):
    made = act(streaming_action(reads=[], writes=["out"])(function))
    with pytest.raises(error, match=re.escape(why)):
        await Application(made).run({})


async def test_a_condition_sees_the_fields_that_it_names():
    hasty = Condition.lmda(lambda state: state["n"] > 0, ["out"])
    made = graph(
        GraphBuilder().with_actions(double, show).with_transitions(("double", "show", hasty)),
        entrypoint="double",
    )
    with pytest.raises(UndeclaredRead, match="reads a field that it does not name"):
        await Application(made).run({"n": 1})
    late = when(missing=1)
    made = graph(
        GraphBuilder().with_actions(double, show).with_transitions(("double", "show", late)),
        entrypoint="double",
    )
    with pytest.raises(MissingField, match="'missing'"):
        await Application(made).run({"n": 1})


def test_a_text_where_burr_takes_a_list_is_a_list_of_one():
    whole = RunnableGraph(built.graph, "double", "double")
    assert [one.name for one in graph(whole).acts] == ["double"]


# Fails where only the list itself is looked at.
async def test_a_shallow_copy_of_a_history_changes_the_history():
    @action(reads=["history"], writes=["out"])
    def answer(state: State) -> State:
        history = state["history"].copy()
        history[-1]["content"] = f"politely: {history[-1]['content']}"
        return state.update(out=history[-1]["content"])

    with pytest.raises(ChangedInPlace, match=r"a list's copy\(\) shares what is in it"):
        await Application(act(answer)).run({"history": [{"content": "why"}]})
