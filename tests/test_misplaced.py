"""Arguments that belong elsewhere: the error says where, and nothing else is changed."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable
from typing import Any

import pytest

import shoal
from shoal import Application, Each, Graph, Limits, Retry, State, action, fan_out, race
from shoal._errors.misplaced import _HINTS
from shoal.errors import BadUse, DefinitionError, MissingField
from shoal.testing import simulate


@action(reads=["n"], writes=["square"])
async def square(n: int) -> int:
    return n * n


app: Any = Application(square)


def found(label: str) -> Any:
    name, _, method = label.partition(".")
    return getattr(app, method) if method else getattr(shoal, name)


@pytest.mark.parametrize("label", _HINTS)
def test_each_hint_is_given(label: str):
    for names, hint in _HINTS[label].items():
        for name in names.split(" "):
            given = name or "xyz"
            with pytest.raises(TypeError) as caught:
                coroutine = found(label)(**{given: 1})
                coroutine.send(None)
            assert str(caught.value) == f"{label}() takes no {given}=; {hint.format(name=given)}"


def test_what_a_hint_says_can_be_written():
    """Each function takes the arguments that the hints name."""
    for label, names in {
        "fan_out": ("each", "limits", "until"),
        "race": ("each", "limits", "until", "stagger"),
        "action": ("retry", "limits"),
        "Each": ("retry", "breaker", "work_timeout", "hedge"),
        "Retry": ("on", "initial", "factor", "cap"),
        "Limits": ("rate", "by"),
        "Graph": ("entry",),
        "Application": ("store", "hooks", "secret", "executor", "max_live", "inputs"),
        "Application.run": ("id", "owner", "runtime", "progress", "inputs"),
    }.items():
        assert set(names) <= set(inspect.signature(found(label)).parameters)


def test_functions_stay_what_they_are():
    assert inspect.iscoroutinefunction(app.run)
    assert not inspect.iscoroutinefunction(app.run_sync)
    assert list(inspect.signature(fan_out).parameters)[:3] == ["act", "over", "item"]
    assert repr(inspect.signature(Each)).startswith("<Signature (*, timeout: 'float | None' = None")
    assert fan_out.__doc__ is not None
    assert fan_out.__module__ == "shoal._graph.fan_out"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: fan_out(square, over="ns", intoo="x"), r"fan_out\(\) .* did you mean into=\?"),  # pyright: ignore[reportCallIssue, reportUnknownLambdaType, reportArgumentType]
        (lambda: app.run_sync({"n": 1}, input={}), r"run_sync\(\) .* did you mean inputs=\?"),
        (lambda: app.run_sync(n=1), r"one mapping: \{'n': \.\.\.\}"),
        (lambda: fan_out(square, over="ns", whatever=1), "unexpected keyword argument 'whatever'"),  # pyright: ignore[reportCallIssue, reportUnknownLambdaType, reportArgumentType]
    ],
)
def test_other_names(wrong: Callable[[], object], says: str):
    with pytest.raises(TypeError, match=says):
        wrong()


def test_between_the_wrong_line_and_the_error_is_one_frame():
    with pytest.raises(DefinitionError) as caught:
        fan_out(square, over="ns", into="squares", limits=3)  # pyright: ignore[reportCallIssue, reportArgumentType]
    first, *others = traceback.extract_tb(caught.value.__traceback__)
    assert first.filename == __file__
    assert len(others) == 1


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: square.bind(n=3), "it is a field in reads=, and fields come from the state"),
        (lambda: Application(square, state={"n": 1}), r"no values: give those to each run"),
        (lambda: Application(square, inputs=3), "inputs= takes a mapping of names to values"),  # pyright: ignore[reportCallIssue, reportUnknownLambdaType, reportArgumentType]
        (lambda: Graph.chain([square]), r"acts in a row are Graph.chain\(\*acts\)"),  # pyright: ignore[reportCallIssue, reportUnknownLambdaType, reportArgumentType]
        (lambda: race(square, into="x", timeout=-1), "^race 'x': timeout= takes"),
        (lambda: race(square, into="x", limits=3), "^race 'x': limits= takes"),  # pyright: ignore[reportCallIssue, reportUnknownLambdaType, reportArgumentType]
        (lambda: race(square, square, into="x"), "^race 'x': two acts are named 'square'"),
        (lambda: race(square, into="x", accept=True), "^race 'x': accept= takes a function"),  # pyright: ignore[reportCallIssue, reportUnknownLambdaType, reportArgumentType]
    ],
)
def test_definitions(wrong: Callable[[], object], says: str):
    with pytest.raises(DefinitionError, match=says):
        wrong()


def test_a_field_is_no_attribute():
    state = State(n=1)
    with pytest.raises(AttributeError, match=r"its fields are items: state\['n'\]"):
        _ = state.n  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType]
    assert not hasattr(state, "__array__")


def test_a_simulation_of_a_run_that_can_not_start():
    with pytest.raises(MissingField, match=r"^application 'square': action 'square' reads"):
        simulate(app, {"m": 1}, seeds=1)
    with pytest.raises(BadUse, match=r"not <action square .*>: Application\(square\)"):
        simulate(square, {"n": 1}, seeds=1)  # pyright: ignore[reportArgumentType]


def test_a_group_as_data_says_once_what_repeats():
    @action(reads=["n"], writes=["out"])
    async def refuse(n: int) -> int:
        raise ConnectionError("busy" if n else "gone")

    tries = fan_out(refuse, over="ns", item="n", into="outs", name="tries", on_error="fail")
    outer = fan_out(
        [tries], into="all", take="outs", on_error="collect", errors_into="bad", limits=Limits(1)
    )
    with pytest.raises(ExceptionGroup) as caught:
        Application(tries).run_sync({"ns": [1]})
    assert caught.value.__notes__[0].startswith("shoal: in fan-out 'tries', run ")
    bad = Application(outer).run_sync({"ns": [1, 1, 0, 1]}).state["bad"]
    assert bad["tries"].message.endswith("failed: ConnectionError: busy")
    assert Retry(2, on=ConnectionError).attempts == 2


def test_a_lost_race_names_its_contestants():
    @action(reads=["n"], writes=["out"])
    async def refuse(n: int) -> int:
        raise ConnectionError("busy")

    lost = race(*(refuse.bind(name=name) for name in "abcd"), into="out")
    held = fan_out([lost], into="all", take="out", on_error="collect", errors_into="bad")
    error = Application(held).run_sync({"n": 1}).state["bad"]["out"]
    assert error.message.endswith("was accepted: ConnectionError: busy (4 times)")
    assert "shoal: in action 'a' of 'out', run " in error.traceback
