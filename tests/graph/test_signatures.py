"""Classes of parallel actions: what their methods take, and how one written for Burr is mended."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import pytest

import shoal
from shoal import (
    Application,
    Graph,
    MapActions,
    MapStates,
    ParallelAction,
    State,
    Task,
    action,
    fan_out,
    when,
)
from shoal.errors import BadResult, DefinitionError, UndeclaredRead

pytestmark = pytest.mark.anyio


@action(reads=["prompt"], writes=["answer"])
async def ask(prompt: str, model: str) -> str:
    return f"{model}: {prompt}"


class Ask(MapStates):
    def action(self, state: State, inputs: Any) -> Any:
        return ask

    def states(self, state: State, inputs: Any) -> Iterator[Mapping[str, Any]]:
        for prompt in state["prompts"]:
            yield state.update(prompt=prompt)

    def reduce(self, state: State, outcome: Any) -> State:
        return state.append(answers=outcome.value)

    @property
    def reads(self) -> list[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return ["prompts"]

    @property
    def writes(self) -> list[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return ["answers"]

    @property
    def inputs(self) -> list[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return ["model"]


async def test_what_a_class_reads_and_writes_may_be_properties_as_with_burr():
    act = Ask()
    assert (act.reads, act.writes, set(act.takes)) == ({"prompts"}, {"answers"}, {"model"})
    result = await Application(act).run({"prompts": ["a", "b"]}, inputs={"model": "m"})
    assert result.state["answers"] == ["m: a", "m: b"]


async def test_a_property_is_checked_when_it_is_read():
    class Bad(Ask):
        @property
        def writes(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
            return "answers"

    with pytest.raises(DefinitionError, match=r"class Bad: writes='answers' is one string"):
        Application(Bad())


# Fails where the states of children are held to what the parent writes.
async def test_what_a_child_starts_with_is_no_write_of_its_parent():
    class Late(ParallelAction):
        reads = ("prompts",)
        writes = ("answers",)

        def tasks(self, state: State, inputs: Any) -> Iterator[Task]:
            yield Task(ask, state.update(prompt="late").drop("prompts"), inputs={"model": "m"})
            yield Task(ask, {"prompt": state["other"]})

        def reduce(self, state: State, outcome: Any) -> State:
            return state.append(answers=outcome.value)

    with pytest.raises(UndeclaredRead, match="'other'"):
        await Application(Late()).run({"prompts": []})


def define(method: str, function: Any, base: type[Any] = MapStates) -> None:
    body = {"writes": ["answers"], method: function}
    type("Mine", (base,), body)


def burrs_states(self: Any, state: Any, context: Any, inputs: Any) -> Any: ...
def burrs_states_too(self: Any, state: Any, inputs: Any, context: Any) -> Any: ...
def burrs_reduce(self: Any, state: Any, states: Any) -> Any: ...
def burrs_reduce_too(self: Any, state: Any, results: Generator[State, None, None]) -> Any: ...
def too_short(self: Any, state: Any) -> Any: ...


@pytest.mark.parametrize(
    ("method", "function", "mended"),
    [
        ("states", burrs_states, "no context; instead, you want: def states(self, state, inputs)"),
        ("states", burrs_states_too, "make an act of it as it is: shoal.burr.act(Mine())"),
        ("tasks", burrs_states, "instead, you want: def tasks(self, state, inputs)"),
        ("action", too_short, "it state and inputs, in this order; instead, you want: def action("),
        ("reduce", too_short, "instead, you want: def reduce(self, state, outcome)"),
        ("reduce", burrs_reduce, "def reduce(self, state, outcome): return state.append(answers="),
        ("reduce", burrs_reduce_too, "as it is: shoal.burr.act(Mine())"),
    ],
)
def test_a_method_written_for_burr_is_refused_with_the_mended_line(
    method: str, function: Any, mended: str
):
    with pytest.raises(DefinitionError, match=re.escape(mended)):
        define(method, function)


def test_other_ways_to_write_a_method_stay():
    define("states", lambda self, state, inputs, more=None: ())  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    define("actions", lambda *given: (), MapActions)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    define("reduce", staticmethod(lambda state, outcome: state))  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]


class BurrsCondition:
    __module__ = "burr.core.action"


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: action(["n"], ["out"]), "instead, you want: @action(reads=['n'], writes=['out'])"),  # pyright: ignore[reportArgumentType]
        (lambda: action(["n"]), "instead, you want: @action(reads=['n'])"),  # pyright: ignore[reportArgumentType]
        (lambda: when(age__gte=18), "instead, you want: when(lambda age: age >= 18)"),
        (lambda: when(tags__contains="x"), "instead, you want: when(lambda tags: 'x' in tags)"),
        (lambda: Graph((ask, Ask(), BurrsCondition())), "take `when` from shoal, and leave out `d"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_a_line_of_burrs_is_shown_mended(make: Any, why: str):
    with pytest.raises(DefinitionError, match=re.escape(why)):
        make()
    assert repr(when(age_gte=18, __in=3)) == "when(age_gte=18, __in=3)"


async def test_a_result_besides_the_state_has_no_place():
    @action(reads=["n"], writes=["out"])
    async def add(state: State) -> Any:
        return {"n": 1}, state.update(out=1)

    with pytest.raises(BadResult, match="return the state alone; a result besides it, as with Bu"):
        await Application(add).run({"n": 1})


def test_names_of_burrs_say_what_to_write():
    with pytest.raises(AttributeError, match=r"shoal has no expr; instead of Burr's, write: when"):
        _ = shoal.expr  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType, reportUnknownMemberType]
    with pytest.raises(ImportError, match=r"no ApplicationBuilder; instead of Burr's, write: App"):
        exec("from shoal import ApplicationBuilder")


def test_what_belongs_to_burr_is_told_how_it_becomes_an_act():
    def decorated(state: State) -> None: ...

    decorated.action_function = object()  # pyright: ignore[reportFunctionMemberAccess] # as Burr's decorator leaves it
    with pytest.raises(DefinitionError, match=r"it is Burr's: shoal\.burr\.act\(\.\.\.\) makes an"):
        Graph.chain(decorated)  # pyright: ignore[reportArgumentType]
    with pytest.raises(DefinitionError, match=r"it is Burr's"):
        fan_out(decorated, over="ns", into="outs", reads=["ns"])  # pyright: ignore[reportArgumentType]
