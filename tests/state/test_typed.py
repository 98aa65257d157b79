"""Applications with a model of their state: held to it on every path, stored, told and returned."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, NotRequired, TypedDict

import anyio
import pytest
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from shoal import (
    END,
    Application,
    Context,
    Done,
    ErrorInfo,
    Failed,
    Graph,
    Limits,
    MapStates,
    ParallelAction,
    Runtime,
    State,
    StateList,
    Task,
    action,
    fan_out,
    when,
)
from shoal.errors import DefinitionError, InvalidState, MissingField, StateError
from shoal.events import Set, StateUpdated, Update
from shoal.stores import replay
from shoal.stores._protocol import Batch, NullStore
from shoal.testing import RecordingHook, no_leaks
from shoal.types import FanOut

pytestmark = pytest.mark.anyio


class Keeping(NullStore):
    """A store that keeps the updates of each run, those that its parent saves included."""

    def __init__(self) -> None:
        self.updates: dict[str, list[Update]] = {}

    def save(self, batch: Batch) -> None:
        for child in (*batch.applied, *batch.unapplied):
            if child.last_update is not None:
                self.updates.setdefault(child.path.act, []).append(child.last_update)
        self.updates.setdefault(batch.path.act, []).extend(batch.updates)

    def state(self, act: str, initial: Mapping[str, object]) -> dict[str, object]:
        """What the saved updates of the runs of ``act`` lead to."""
        operations = [one for update in self.updates[act] for one in update.operations]
        return dict(replay(State(initial), operations))


async def ran(
    application: Application[Any], given: Any, **inputs: object
) -> tuple[State[Any], Keeping, RecordingHook]:
    """Run it; what is stored, published and returned must be the same."""
    store, hook = Keeping(), RecordingHook()
    watched = Application(application.graph, hooks=[hook])
    async with no_leaks(), Runtime(store=store) as runtime:
        result = await watched.run(given, inputs=inputs, runtime=runtime)
    hook.assert_paired()
    schema = application.graph.schema
    assert schema is not None
    state: State[Any] = result.state
    first = schema.initial(given)
    assert repr(store.state(watched.name, first)) == repr(dict(state))
    received = [
        operation
        for event in hook.of(StateUpdated)
        if event.path.parent is None
        for operation in event.update.operations
    ]
    assert repr(dict(replay(State(first), received))) == repr(dict(state))
    return state, store, hook


async def refused(application: Application[Any], given: Any, *said: str) -> State[Any]:
    """Run it; it must fail with InvalidState. Return the state it stopped at."""
    async with no_leaks():
        opened = application.open(given)
        with pytest.raises(InvalidState) as caught:
            async with opened as run:
                await run.result()
    message = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    for part in said:
        assert part in message
    return opened.state


# -- models --------------------------------------------------------------------------------------


class Model(BaseModel):
    items: list[Any] = []
    n: int = 0
    ns: list[int] = []
    by: dict[str, int] = {}
    within: dict[str, dict[str, int]] = {}
    few: list[int] = Field(default=[], max_length=2)
    errors: dict[str, ErrorInfo] = {}


@dataclass
class Data:
    items: list[Any] = field(default_factory=list[Any])
    n: int = 0
    ns: list[int] = field(default_factory=list[int])
    by: dict[str, int] = field(default_factory=dict[str, int])


class Fields(TypedDict):
    items: list[Any]
    n: NotRequired[int]
    ns: NotRequired[list[int]]
    by: NotRequired[dict[str, int]]


KINDS: list[Any] = [Model, Data, Fields]
each_kind = pytest.mark.parametrize("model", KINDS)


@action(reads=["item"], writes=["out"])
async def out(item: object) -> object:
    await anyio.sleep(0)
    if item == "fail":
        raise LookupError(item)
    return item


# -- the model that comes out --------------------------------------------------------------------


@each_kind
async def test_the_result_is_of_the_models_class(model: Any):
    given: dict[str, Any] = {"items": ["1", 2]}
    application: Application[Any] = Application(fan_out(out, over="items", into="ns"), state=model)
    result = await application.run(given)
    data: Any = result.state.data
    if model is Fields:
        assert data == {"items": ["1", 2], "ns": [1, 2]}
        assert type(data["ns"]) is list
        assert type(data) is dict
    else:
        assert type(data) is model
        assert (data.items, data.ns, data.n, data.by) == (["1", 2], [1, 2], 0, {})
        again = await application.run(model(**given))
        assert again.state.data == data


async def test_an_opened_run_shows_the_model_at_every_moment():
    @action(reads=["n"], writes=["n"])
    async def more(n: int) -> object:
        return str(n + 1)

    application = Application(Graph((more, more, when(lambda n: n < 3)), (more, END)), state=Model)
    seen: list[Model] = []
    async with no_leaks(), application.open(Model(), stepwise=True) as run:
        seen.append(run.state.data)
        while await run.step() is not None:
            seen.append(run.state.data)
    assert [one.n for one in seen] == [0, 1, 2, 3]
    assert {type(one) for one in seen} == {Model}


async def test_a_graph_that_has_a_model_is_typed_without_saying_so_again():
    graph = Graph.chain(fan_out(out, over="items", into="ns"), state=Model)
    for application in (Application(graph), Application(graph, state=Model)):
        data: object = (await application.run({"items": ["3"]})).state.data
        assert data == Model(items=["3"], ns=[3])
    with pytest.raises(DefinitionError, match=r"a model of the state already, Model; leave out"):
        Application(graph, state=Data)


async def test_what_a_run_starts_with_is_held_to_the_model_before_any_action():
    started: list[int] = []

    @action(reads=["n"], writes=["n"])
    async def spy(n: int) -> int:
        started.append(n)
        return n

    application = Application(spy, state=Model)
    wrong: list[tuple[Any, type[Exception], str]] = [
        ({"n": "x"}, InvalidState, r"the initial state gives field 'n' 'x' \(str\)"),
        ({"m": 1}, StateError, "field 'm', which Model does not declare"),
        (Data(), StateError, "an instance of Model or a mapping"),
        (7, StateError, "not 7"),
    ]
    for given, kind, said in wrong:
        with pytest.raises(kind, match=said):
            await application.run(given)
        with pytest.raises(kind, match=said):
            application.open(given)
    assert not started


# -- steps ---------------------------------------------------------------------------------------


@each_kind
async def test_what_a_step_writes_is_stored_as_it_fits(model: Any):
    @action(writes=["n"])
    async def write() -> object:
        return "3"

    state, store, _ = await ran(Application(write, state=model), {"items": []})
    assert repr(state["n"]) == "3"
    assert store.updates["write"][0].operations == (Set("n", 3),)


OPERATIONS: dict[str, tuple[Callable[[State], State], dict[str, object]]] = {
    "update": (lambda state: state.update(n="3"), {"n": 3}),
    "append": (lambda state: state.append(ns="3"), {"ns": [1, 3]}),
    "extend": (lambda state: state.extend(ns=["3", 4]), {"ns": [1, 3, 4]}),
    "put": (lambda state: state.put("by", "b", "3"), {"by": {"a": 1, "b": 3}}),
    "increment": (lambda state: state.increment(n=2.0), {"n": 2}),
    "all": (
        lambda state: state.append(ns="3").update(n=True).append(ns=4).put("by", "a", b"5"),
        {"ns": [1, 3, 4], "n": 1, "by": {"a": 5}},
    ),
}
WRONG: dict[str, tuple[Callable[[State], State], str]] = {
    "update": (lambda state: state.update(n="x"), "field 'n' 'x' (str)"),
    "append": (lambda state: state.append(ns="x"), "an item of field 'ns' 'x' (str)"),
    "extend": (lambda state: state.extend(ns=[1, "x"]), "an item of field 'ns' 'x' (str)"),
    "put": (lambda state: state.put("by", "b", "x"), "an item of field 'by' 'x' (str)"),
    "key": (lambda state: state.put("by", 7, 1), "a key of field 'by' 7 (int)"),
    "increment": (lambda state: state.increment(n=0.5), "field 'n' 0.5 (float)"),
    "late": (lambda state: state.append(ns=3).update(n="x"), "field 'n' 'x' (str)"),
}
BEFORE: dict[str, Any] = {"items": ["1"], "ns": [1], "by": {"a": 1}, "n": 0}


@each_kind
@pytest.mark.parametrize("case", OPERATIONS)
@pytest.mark.parametrize("where", ["action", "reduce", "finish"])
async def test_what_functions_of_the_state_write_is_stored_as_it_fits(
    model: Any, case: str, where: str
):
    act, expected = OPERATIONS[case]
    state, _, _ = await ran(Application(changing(act, where), state=model), BEFORE)
    found = {name: state[name] for name in expected}
    assert repr(State(found).to_plain()) == repr(State(expected).to_plain())
    assert not isinstance(state.data, State)


@each_kind
@pytest.mark.parametrize("case", WRONG)
@pytest.mark.parametrize("where", ["action", "reduce", "finish"])
async def test_what_does_not_fit_fails_the_step_and_leaves_the_state_whole(
    model: Any, case: str, where: str
):
    act, said = WRONG[case]
    name = {"action": "action 'change'", "reduce": "for key 0", "finish": "'Change'"}[where]
    state = await refused(Application(changing(act, where), state=model), BEFORE, said, name)
    assert state.to_plain() == {**State(state).to_plain(), **BEFORE}
    assert all(type(one) is int for one in state["ns"])


def changing(change: Callable[[State], State], where: str) -> Any:
    """An act that makes a change: an action, a fan-out's reduce, a class's finish."""
    fields = ("n", "ns", "by")

    @action(reads=fields, writes=fields, name="change")
    async def act(state: State) -> State:
        return change(state)

    class Change(ParallelAction):
        reads = (*fields, "items")
        writes = fields

        def tasks(self, state: State, inputs: Mapping[str, Any]) -> Iterator[Task]:
            yield Task(out, {"item": 1})

        def reduce(self, state: State, outcome: Done | Failed) -> State:
            return state

        def finish(self, state: State) -> State:
            return change(state)

    if where == "action":
        return act
    if where == "finish":
        return Change()
    return fan_out(
        out, over="items", reduce=lambda state, _: change(state), writes=fields, name="change"
    )


# -- fan-outs ------------------------------------------------------------------------------------


ACTS = [out.bind(name="one"), out.bind(name="two")]
ONE = Limits(1)  # so that they end in order

COLLECTING: dict[str, tuple[Callable[[], FanOut], str, object]] = {
    "list": (lambda: fan_out(out, over="items", into="ns", limits=ONE), "ns", [1, 2]),
    "mapping": (
        lambda: fan_out(out, over="items", key=str, into="by", limits=ONE),
        "by",
        {"1": 1, "2": 2},
    ),
    "acts and items": (
        lambda: fan_out(ACTS, over="items", key=str, into="within", limits=ONE),
        "within",
        {"1": {"one": 1, "two": 1}, "2": {"one": 2, "two": 2}},
    ),
    "acts": (lambda: fan_out(ACTS, into="by"), "by", {"one": 5, "two": 5}),
}


class Wide(Model):
    item: object = "5"


@pytest.mark.parametrize("case", COLLECTING)
async def test_what_children_bring_is_stored_as_it_fits(case: str):
    make, name, expected = COLLECTING[case]
    state, _, _ = await ran(Application(make(), state=Wide), {"items": ["1", "2"]})
    assert repr(State({"x": state[name]}).to_plain()["x"]) == repr(expected)
    assert getattr(state.data, name) == expected


@pytest.mark.parametrize("case", COLLECTING)
async def test_a_child_that_brings_what_does_not_fit_is_named_and_earlier_ones_stay(case: str):
    make, name, _ = COLLECTING[case]
    state = await refused(
        Application(make(), state=Wide),
        {"items": ["1", "x"], "item": "x"},
        f"field {name!r} 'x' (str)",
        "for key ",
        f"Wide.{name}: ",
    )
    left = state.to_plain()[name]
    assert left == {"list": [1], "mapping": {"1": 1}, "acts": {}}.get(
        case, {"1": {"one": 1, "two": 1}}
    )


async def test_failures_that_are_collected_are_held_to_the_model():
    act = fan_out(out, over="items", key=str, into="by", errors_into="errors", on_error="collect")
    state, _, _ = await ran(Application(act, state=Model), {"items": ["1", "fail"]})
    data = state.data
    assert data.by == {"1": 1}
    assert data.errors["fail"].type == "LookupError"

    class Texts(BaseModel):
        items: list[str]
        by: dict[str, int] = {}
        errors: dict[str, str] = {}

    await refused(
        Application(act, state=Texts), {"items": ["fail"]}, "for key 'fail'", "Texts.errors: dict"
    )


async def test_keys_are_held_to_the_model_and_never_converted():
    class Numbered(BaseModel):
        items: list[str] = []
        by: dict[int, int] = {}

    given = {"items": ["1", "x"]}
    texts = Application(fan_out(out, over="items", key=str, into="by"), state=Numbered)
    state = await refused(texts, given, "puts '1' (str) into field 'by' as a key", "become 1 (int)")
    assert state["by"] == {}
    right = fan_out(out, over="items", key=int, into="by")
    state, _, _ = await ran(Application(right, state=Numbered), {"items": ["1", "3"]})
    assert state.data.by == {1: 1, 3: 3}


async def test_settings_of_a_model_hold_for_values_of_the_very_types_it_declares():
    """Such a value isn't given to pydantic, unless there is such a setting."""

    class Strict(BaseModel):
        model_config = ConfigDict(str_strip_whitespace=True, allow_inf_nan=False)
        items: list[Any] = []
        texts: dict[int, str] = {}
        numbers: dict[int, float] = {}

    texts = fan_out(out, over="items", key=len, into="texts")
    state, _, _ = await ran(Application(texts, state=Strict), {"items": [" a", "b"]})
    assert state["texts"] == {2: "a", 1: "b"}
    numbers = Application(fan_out(out, over="items", key=int, into="numbers"), state=Strict)
    state, _, _ = await ran(numbers, {"items": [2.0, 1.0]})
    assert state["numbers"] == {2: 2.0, 1: 1.0}
    numbers = Application(fan_out(out, over="items", key=lambda _: 1, into="numbers"), state=Strict)
    await refused(numbers, {"items": [math.inf]}, "for key 1", "finite number")


async def test_of_results_at_once_those_before_one_that_does_not_fit_are_applied():
    class Texts(BaseModel):
        items: list[Any] = []
        by: dict[int, str] = {}

    @action(reads=["item"], writes=["out"])
    async def given_back(item: Any) -> object:
        return item

    act = fan_out(given_back, over="items", key=lambda item: len(str(item)), into="by")
    given = {"items": ["a", "bb", 100, "dddd"]}
    state = await refused(Application(act, state=Texts), given, "for key 3", "applying key 3")
    assert state["by"] == {1: "a", 2: "bb"}


@pytest.mark.parametrize("key", [None, str])
async def test_no_more_is_collected_than_the_model_allows(key: Callable[[Any], str] | None):
    class Few(BaseModel):
        items: list[int] = []
        outs: Annotated[list[int] | dict[str, int], Field(max_length=2)] = []

    class FewKeyed(BaseModel):
        items: list[int] = []
        outs: dict[str, int] = Field(default={}, max_length=2)

    model: Any = Few if key is None else FewKeyed
    application: Application[Any] = Application(
        fan_out(out, over="items", key=key, into="outs", limits=Limits(1)), state=model
    )
    result = await application.run({"items": [1, 2]})
    assert len(result.state["outs"]) == 2
    state = await refused(application, {"items": [1, 2, 3]}, "3 items long", "at most 2")
    assert len(state["outs"]) == 2
    if key is not None:  # those that are there and need no child count once
        result = await application.run({"items": [1, 2], "outs": {"1": 7}})
        assert result.state["outs"] == {"1": 7, "2": 2}


NO_PLACE: dict[str, tuple[Callable[[], FanOut], str]] = {
    "a list into a mapping": (
        lambda: fan_out(out, over="items", into="by"),
        "collects a list into 'by', and Model.by: dict[str, int] is none; declare one, or give key",
    ),
    "a mapping into a list": (
        lambda: fan_out(out, over="items", key=str, into="ns"),
        "collects a mapping into 'ns', and Model.ns: list[int] is none; declare one, or leave out",
    ),
    "into a number": (lambda: fan_out(out, over="items", into="n"), "and Model.n: int is none"),
    "acts into a list": (lambda: fan_out(ACTS, into="ns"), "collects a mapping into 'ns'"),
    "acts and items": (
        lambda: fan_out(ACTS, over="items", key=str, into="by"),
        "collects a mapping of mappings into 'by'",
    ),
    "errors": (
        lambda: fan_out(out, over="items", into="ns", errors_into="few", on_error="collect"),
        "collects a mapping into 'few'",
    ),
    "no such field": (
        lambda: fan_out(out, over="itens", into="ns"),
        "'ns' does not fit: it reads field 'itens', which Model does not declare; did you mean",
    ),
}


@pytest.mark.parametrize("case", NO_PLACE)
def test_a_model_that_can_not_hold_what_is_collected_is_refused_when_built(case: str):
    class WithItem(Model):
        item: object = None

    WithItem.__name__ = "Model"
    make, said = NO_PLACE[case]
    with pytest.raises(DefinitionError) as caught:
        Application(make(), state=WithItem if "acts into" in case else Model)
    assert said in str(caught.value)


async def test_acts_that_a_function_chooses_find_out_before_any_child_starts():
    started: list[object] = []

    @action(reads=["item"], writes=["out"])
    async def spy(item: object) -> object:
        started.append(item)
        return item

    act = fan_out(lambda _: [spy], over="items", key=str, into="by", reads=[])
    await refused(
        Application(act, state=Model), {"items": [1]}, "collects a mapping of mappings into 'by'"
    )
    assert not started


async def test_results_that_are_there_already_are_kept_as_they_fit():
    act = fan_out(out, over="items", key=str, into="by")
    state, _, _ = await ran(Application(act, state=Model), {"items": ["1", "2"], "by": {"2": "7"}})
    assert state.data.by == {"1": 1, "2": 7}


class Adding(MapStates):
    reads = ("items",)
    writes = ("ns",)

    def action(self, state: State, inputs: Mapping[str, Any]) -> Any:
        return out

    def states(self, state: State, inputs: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        return ({"item": item} for item in state["items"])

    def reduce(self, state: State, outcome: Done | Failed) -> State:
        assert isinstance(outcome, Done)
        return state.append(ns=outcome.value)


@each_kind
async def test_reduce_of_a_class_sees_what_it_wrote_before_as_it_fits(model: Any):
    state, _, _ = await ran(Application(Adding(), state=model), {"items": ["1", "2"]})
    assert repr(list(state["ns"])) == "[1, 2]"
    left = await refused(
        Application(Adding(), state=model), {"items": ["1", "x"]}, "for key 1", "field 'ns' 'x'"
    )
    assert list(left["ns"]) == [1]


async def test_children_of_an_action_are_not_held_to_its_runs_model():
    @action(reads=["items"], writes=["ns"])
    async def by_hand(items: list[Any], context: Context) -> list[object]:
        async with context.fan_out(name="all") as group:
            group.start_each(out, over=items, item="item")
            return sorted([outcome.value async for outcome in group if isinstance(outcome, Done)])

    state, store, _ = await ran(Application(by_hand, state=Model), {"items": ["1", "2"]})
    assert state.data.ns == [1, 2]
    assert [one.operations for one in store.updates["out"]] == [
        (Set("out", "1"),),
        (Set("out", "2"),),
    ]


async def test_a_check_costs_the_same_whatever_is_there_already():
    checked: list[int] = []

    def note(value: int) -> int:
        checked.append(value)
        return value

    class Noted(BaseModel):
        items: list[int]
        ns: list[Annotated[int, AfterValidator(note)]] = []
        by: dict[str, Annotated[int, AfterValidator(note)]] = {}

    def reduce(state: State, outcome: Done) -> State:
        return state.append(ns=outcome.value).put("by", str(outcome.key), outcome.value)

    many = 50
    reducing = fan_out(out, over="items", reduce=reduce, writes=["ns", "by"], name="reducing")
    for act, times in ((reducing, 2), (fan_out(out, over="items", into="ns"), 1)):
        checked.clear()
        held = {"items": [*range(many)], "ns": [0] * 1000}
        application = Application(act, state=Noted)
        del checked[:]
        await application.run(held)
        assert len(checked) == 1000 + times * many


# -- children with a model of their own ----------------------------------------------------------


class Item(BaseModel):
    item: int
    base: int = 7
    out: int = 0


@action(reads=["item", "base"], writes=["out"])
async def add(item: int, base: int) -> object:
    return str(item + base)


child = Graph.chain(add, name="child", state=Item)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"items": ["1", 2]}, [8, 9]),
        ({"items": ["1", 2], "base": "10"}, [11, 12]),
        ({"items": [1], "item": "unused"}, [8]),
    ],
)
async def test_a_childs_model_is_filled_from_element_parent_and_defaults(
    given: dict[str, object], expected: list[int]
):
    act = fan_out(child, over="items", into="outs", take=lambda state: state.data)
    result = await Application(act).run(given)
    found = list(result.state["outs"])
    assert {type(one) for one in found} == {Item}
    assert [one.out for one in found] == expected


async def test_the_outcomes_state_is_of_the_childs_model():
    seen: list[object] = []

    def reduce(state: State, outcome: Done) -> State:
        seen.append(outcome.state.data)
        return state.append(ns=outcome.value)

    act = fan_out(child, over="items", reduce=reduce, writes=["ns"], name="f")
    await Application(act).run({"items": ["1"]})
    assert seen == [Item(item=1, base=7, out=8)]


async def test_an_element_that_does_not_fit_fails_its_child_alone():
    act = fan_out(child, over="items", key=str, into="by", errors_into="errors", on_error="collect")
    hook = RecordingHook()
    result = await Application(act, hooks=[hook]).run({"items": ["1", "x", "3"]})
    hook.assert_paired()
    assert result.state["by"] == {"1": 8, "3": 10}
    (info,) = result.state["errors"].values()
    assert info.type == "shoal.InvalidState"
    assert "the first state of 'child' gives field 'item' 'x' (str)" in info.message
    with pytest.raises(ExceptionGroup) as caught:
        await Application(fan_out(child, over="items", into="outs")).run({"items": ["x"]})
    (error,) = caught.value.exceptions
    assert isinstance(error, InvalidState)
    assert "key 0" in error.__notes__[0]


class Needy(BaseModel):
    item: int
    base: int
    out: int = 0


needy = Graph.chain(out, name="needy", state=Needy)


def test_a_required_field_without_a_source_is_refused_when_the_typed_parent_is_built():
    act = fan_out(needy, over="items", into="ns")
    with pytest.raises(DefinitionError, match="'ns' does not fit: it reads field 'base', which M"):
        Application(act, state=Model)
    with pytest.raises(DefinitionError, match="'ns' does not fit: it reads field 'base'"):
        Graph.chain(act, state=Model)
    with pytest.raises(DefinitionError, match="Needy of graph 'needy', which has no default for"):
        Application(act, state=["items"])


async def test_a_required_field_without_a_source_is_missed_before_the_first_action():
    started: list[int] = []

    @action(writes=["items"])
    async def spy() -> list[int]:
        started.append(1)
        return [1]

    application = Application(Graph.chain(spy, fan_out(needy, over="items", into="ns")))
    for _ in range(2):
        with pytest.raises(MissingField, match=r"Needy of graph 'needy'.*in fan-out 'ns'.*'base'"):
            await application.run()
        with pytest.raises(MissingField, match="'base'"):
            application.open()
    assert not started
    result = await application.run({"base": "3"})
    assert result.state["ns"] == [1]
    assert result.state["base"] == "3"  # the parent has no model


async def test_a_required_field_may_come_as_the_element_or_from_an_earlier_step():
    @action(writes=["base"])
    async def base() -> str:
        return "5"

    by_element = Graph.chain(add.bind(name="add"), name="g", state=Item)
    act = fan_out(by_element, over="items", item="base", into="outs")
    result = await Application(act).run({"items": ["1"], "item": 2})
    assert result.state["outs"] == [3]
    earlier = Graph.chain(base, fan_out(needy, over="items", into="ns"))
    assert (await Application(earlier).run({"items": [4]})).state["ns"] == [4]


@each_kind
async def test_typed_and_untyped_within_each_other(model: Any):
    untyped = fan_out(out, over="items", into="ns")
    typed_child = fan_out(child, over="items", into="ns", take="out")
    for inner, ns in ((untyped, [1, 2]), (typed_child, [8, 9])):
        if inner is typed_child and model is not Model:
            continue

        class WithBase(Model):
            base: int = 7

        parent: Any = WithBase if inner is typed_child else model
        state, _, _ = await ran(Application(inner, state=parent), {"items": ["1", "2"]})
        assert repr(list(state["ns"])) == repr(ns)
    graph = Graph.chain(untyped, name="inner", state=model)
    result = await Application(Graph.chain(graph, name="outer")).run({"items": ["1"]})
    assert repr(list(result.state["ns"])) == "[1]"
    assert isinstance(result.state.data, dict)  # the parent has none


async def test_what_an_untyped_node_writes_is_held_to_its_parents_model():
    @action(reads=["item"], writes=["n"])
    async def write(item: object) -> object:
        return item

    graph = Graph.chain(Graph.chain(write, name="inner"), state=Wide)
    state, _, _ = await ran(Application(graph), {"item": "3"})
    assert repr(state["n"]) == "3"
    left = await refused(
        Application(graph), {"item": "x"}, "graph 'inner' gives field 'n' 'x' (str)"
    )
    assert left["n"] == 0


async def test_a_collection_that_grows_in_the_model_stays_the_same_object():
    act = fan_out(out, over="items", into="ns")
    state, _, _ = await ran(Application(act, state=Model), {"items": [1, 2]})
    assert not isinstance(state["ns"], list)

    @action(reads=["ns"], writes=["ns"])
    async def append(state: State) -> State:
        return state.append(ns=1)

    state, _, _ = await ran(Application(append, state=Model), {"ns": StateList([1])})
    assert type(state["ns"]) is StateList
