"""States: never changed, narrowed to what an action declares, and replayed from their updates."""

# pyright: reportPrivateUsage=false
# A narrowed state is made by the engine only; what operations cost can only be seen from inside.

from __future__ import annotations

import copy
import json
import pickle
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from math import inf, nan
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from shoal import (
    Application,
    ErrorInfo,
    Graph,
    PositionedList,
    State,
    StateList,
    StateMap,
    action,
    fan_out,
)
from shoal._state.state import NO_CHANGE, FieldAccess, change_between, make_state
from shoal.errors import BadResult, MissingField, StateError, UndeclaredRead, UndeclaredWrite
from shoal.events import Drop, Extend, Increment, Operation, Put, PutWithin, Set
from shoal.stores import replay

repeatable = settings(derandomize=True, deadline=None, max_examples=150)


def narrowed(
    data: Mapping[str, object], *, reads: set[str] | None = None, writes: set[str] | None = None
) -> State:
    access = FieldAccess("parse", frozenset(reads or ()), frozenset(writes or ()))
    return make_state(data, access)


def in_order(mapping: Any) -> list[Any]:
    return list(mapping.items())


def operations_between(base: State, result: State) -> tuple[Operation, ...]:
    return change_between(base, result, "the test").operations


# -- making and reading --------------------------------------------------------------------------


def test_a_state_holds_fields_and_keywords():
    assert State() == {}
    assert State({"a": 1}, b=2) == {"a": 1, "b": 2}
    assert State({"a": 1}, a=2) == {"a": 2}
    assert State(State(a=1)) == {"a": 1}


def test_a_state_holds_a_copy():
    fields = {"a": 1}
    state = State(fields)
    fields["b"] = 2
    assert state == {"a": 1}


def test_a_state_is_a_mapping():
    state = State(b=1, a=2)
    assert isinstance(state, Mapping)
    assert list(state) == ["b", "a"]
    assert list(state.items()) == [("b", 1), ("a", 2)]
    assert len(state) == 2
    assert "a" in state
    assert "c" not in state
    assert state.get("c", 7) == 7
    assert dict(state) == {**state} == {"b": 1, "a": 2}
    assert state == State(a=2, b=1)
    assert state != State(a=2)
    assert repr(state) == "State({'b': 1, 'a': 2})"


def test_field_names_are_strings():
    wrong: Any = {1: "one"}
    with pytest.raises(StateError, match="field names are strings, not 1"):
        State(wrong)
    with pytest.raises(StateError, match="field names are strings, not 1"):
        State().update(wrong)
    with pytest.raises(StateError, match="field names are strings, not 1"):
        State().put(wrong.popitem()[0], "key", "value")


def test_a_missing_field_is_named_and_so_is_what_there_is():
    with pytest.raises(MissingField) as caught:
        State(url="x", page="y")["urk"]
    assert str(caught.value) == "the state has no field 'urk' (it has: page, url)"
    assert isinstance(caught.value, KeyError)
    with pytest.raises(MissingField, match="it has: none"):
        State()["a"]


# -- immutability --------------------------------------------------------------------------------


def test_a_state_cannot_be_changed():
    state: Any = State(a=1)
    with pytest.raises(TypeError):
        state["a"] = 2
    with pytest.raises(TypeError):
        del state["a"]
    with pytest.raises(AttributeError):
        state.a = 2
    with pytest.raises(TypeError, match="unhashable"):
        hash(state)
    assert state == {"a": 1}


CHANGES: list[tuple[Callable[[State], State], dict[str, Any], Operation]] = [
    (lambda s: s.update(n=5), {"n": 5}, Set("n", 5)),
    (lambda s: s.update({"new": 1}), {"new": 1}, Set("new", 1)),
    (lambda s: s.append(log="c"), {"log": ["a", "b", "c"]}, Extend("log", ("c",))),
    (lambda s: s.append(new="c"), {"new": ["c"]}, Extend("new", ("c",))),
    (lambda s: s.extend(log=iter("cd")), {"log": [*"abcd"]}, Extend("log", ("c", "d"))),
    (lambda s: s.extend(new=()), {"new": []}, Extend("new", ())),
    (lambda s: s.put("by", "y", 2), {"by": {"x": 1, "y": 2}}, Put("by", "y", 2)),
    (lambda s: s.put("by", "x", 3, 4), {"by": {"x": 3}}, Put("by", "x", 3, 4)),
    (lambda s: s.put("new", 1, 2), {"new": {1: 2}}, Put("new", 1, 2)),
    (lambda s: s.increment(n=2), {"n": 3}, Increment("n", 2)),
    (lambda s: s.increment(n=-0.5), {"n": 0.5}, Increment("n", -0.5)),
    (lambda s: s.increment(new=1), {"new": 1}, Increment("new", 1)),
    (lambda s: s.drop("absent"), {}, Drop("absent")),
]


@pytest.mark.parametrize(("change", "expected", "operation"), CHANGES)
def test_every_change_makes_a_new_state(
    change: Callable[[State], State], expected: dict[str, Any], operation: Operation
):
    fields = {"n": 1, "log": ["a", "b"], "by": {"x": 1}}
    before = State(fields)
    after = change(before)
    assert after == {**fields, **expected}
    assert before == fields == {"n": 1, "log": ["a", "b"], "by": {"x": 1}}
    assert operations_between(before, after) == (operation,)
    assert type(operations_between(before, after)[0]) is type(operation)


def test_drop_removes_fields():
    before = State(a=1, b=2, c=3)
    after = before.drop("a", "c", "absent")
    assert after == {"b": 2}
    assert before == {"a": 1, "b": 2, "c": 3}
    assert operations_between(before, after) == (Drop("a"), Drop("c"), Drop("absent"))


def test_one_call_may_change_several_fields():
    assert State().update(a=1, b=2) == {"a": 1, "b": 2}
    assert State().update({"a": 1}, a=2) == {"a": 2}
    assert State().append(a=1, b=2) == {"a": [1], "b": [2]}
    assert State().extend(a=[1], b=[2, 3]) == {"a": [1], "b": [2, 3]}
    assert State(a=1).increment(a=1, b=2) == {"a": 2, "b": 2}


WRONG_KINDS: list[tuple[dict[str, Any], Callable[[Any], State], str]] = [
    ({"a": 1}, lambda s: s.append(a=2), r"append needs a list .*'a'.* 1 \(int"),
    ({"a": "ab"}, lambda s: s.append(a="c"), "append needs a list .*'a'"),
    ({"a": (1,)}, lambda s: s.extend(a=[2]), "extend needs a list .*'a'"),
    ({"a": {}}, lambda s: s.extend(a=[2]), "extend needs a list .*'a'"),
    ({"a": []}, lambda s: s.put("a", 0, 1), r"put needs a mapping .* 'a', .* \(list"),
    ({"a": None}, lambda s: s.put("a", 0, 1), "put needs a mapping .* 'a'"),
    ({"a": "1"}, lambda s: s.increment(a=1), "increment needs a number .*'a'"),
    ({"a": True}, lambda s: s.increment(a=1), "increment needs a number .*'a'"),
    ({"a": 1}, lambda s: s.increment(a="1"), r"increment needs a number .* '1' \(str"),
    ({"a": 1}, lambda s: s.increment(a=True), r"increment needs a number .* True \(bool"),
]


@pytest.mark.parametrize(("fields", "change", "message"), WRONG_KINDS)
def test_a_field_of_the_wrong_kind_is_refused_by_name(
    fields: dict[str, Any], change: Callable[[State], State], message: str
):
    state = State(fields)
    with pytest.raises(StateError, match=message):
        change(state)
    assert state == fields


def test_what_a_field_holds_is_shown_in_brief():
    with pytest.raises(StateError) as caught:
        State(a="x" * 10_000).append(a=1)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("more", [5, None, "text", b"bytes"])
def test_extend_says_what_it_cannot_extend_with(more: Any):
    with pytest.raises(StateError, match=r"extend .*'log'"):
        State(log=[]).extend(log=more)


def test_put_refuses_an_unhashable_key():
    with pytest.raises(StateError, match=r"put .*'by'"):
        State(by={}).put("by", [], 1)


@pytest.mark.parametrize("name", ["self", "fields", "field", "items", "by", "", "a b", "__class__"])
def test_any_name_is_a_field(name: str):
    state = State({name: 1})
    assert state[name] == 1
    assert state.update({name: 2}).increment(**{name: 1}) == {name: 3}
    assert State().append(**{name: 1}).extend(**{name: [2]}) == {name: [1, 2]}
    assert state.drop(name).put(name, "k", "v") == {name: {"k": "v"}}
    operations = (Extend(name, (1, 2)), Drop(name), Increment(name, 3), Set(name, 4))
    assert replay(State(), operations) == {name: 4}


def test_positioned_values_are_put_by_position():
    empty = State(out=PositionedList[str](StateMap[int, str]()))
    after = empty.put("out", 2, "c", 2).put("out", 0, "a", 0).put("out", 1, "b", 1)
    assert after["out"] == ["a", "b", "c"]
    assert empty["out"] == []
    appended = after.append(out="d")
    assert appended["out"] == ["a", "b", "c", "d"]
    assert after["out"] == ["a", "b", "c"]
    with pytest.raises(StateError, match=r"put needs a mapping .* 'out'"):
        empty.put("out", "key", "a")


# -- the way out ---------------------------------------------------------------------------------


def test_to_plain_is_ready_for_json():
    state = State(n=1, log=["a"]).append(log="b").put("by", "x", StateList([1])).put("by", "y", {})
    state = state.update(nested={"inner": StateMap({"k": StateList([State])})}).drop("nested")
    plain = state.to_plain()
    assert plain == {"n": 1, "log": ["a", "b"], "by": {"x": [1], "y": {}}}
    assert type(plain["log"]) is type(plain["by"]["x"]) is list
    assert type(plain["by"]) is dict
    assert json.loads(json.dumps(plain)) == plain


def test_to_plain_makes_json_of_whatever_the_library_puts_into_a_state():
    error = ErrorInfo.of(ValueError("no"))
    errors = {"type": "ValueError", "message": "no", "traceback": error.traceback}
    state = State(
        errors=StateMap({"a": error, "b": StateMap({"act": error})}),
        states=StateList([State(inner=State(n=1).append(log="x"))]),
    )
    plain = state.to_plain()
    assert json.loads(json.dumps(plain)) == plain
    assert plain == {
        "errors": {"a": errors, "b": {"act": errors}},
        "states": [{"inner": {"n": 1, "log": ["x"]}}],
    }


@dataclass
class Point:
    x: float
    y: tuple[int, ...] = ()


class Model(BaseModel):
    at: datetime
    name: str = "m"


class Colour(Enum):
    RED = "red"


NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ((1, (2,)), [1, [2]]),
        ({3, 1, 2}, [1, 2, 3]),
        (
            {1: "a", None: "b", False: "c", (1, 2): "d"},
            {"1": "a", "null": "b", "false": "c", "(1, 2)": "d"},
        ),
        ([inf, nan, -0.5], [None, None, -0.5]),
        (Point(1.5, (2,)), {"x": 1.5, "y": [2]}),
        (Model(at=NOON), {"at": "2026-11-30T12:00:00Z", "name": "m"}),
        (
            {"at": NOON, "day": NOON.date()},
            {"at": "2026-11-30T12:00:00+00:00", "day": "2026-11-30"},
        ),
        (timedelta(minutes=2), 120.0),
        ((Colour.RED, IntEnum("Level", "LOW")(1)), ["red", 1]),
        (
            (b"\xff", Path("a/b"), Decimal("1.50"), UUID(int=1)),
            ["/w==", "a/b", "1.50", str(UUID(int=1))],
        ),
        (range(3), [0, 1, 2]),
        (deque([1]), [1]),
        (State, "<class 'shoal.State'>"),
    ],
    ids=range(13),
)
def test_to_plain_is_json_whatever_a_state_holds(value: object, expected: object):
    plain = State(value=value, deep=[{"in": value}]).to_plain()
    assert plain["deep"][0]["in"] == plain["value"]
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    if value is not State:
        assert plain["value"] == expected


def test_data_keeps_the_values_themselves():
    state = State(at=NOON, pair=(1, 2), log=StateList([1]))
    assert state.data == {"at": NOON, "pair": (1, 2), "log": [1]}
    assert type(state.data["log"]) is list


def test_what_fan_outs_collect_is_json():
    @action(reads=["n"], writes=["m"])
    async def half(n: int) -> float:
        return 1 / n

    def collecting(name: str, **more: Any) -> Any:
        into, errors = f"{name}_outs", f"{name}_errors"
        options: dict[str, Any] = {"into": into, "errors_into": errors, "name": name, **more}
        return fan_out(half, over="ns", item="n", key=str, on_error="collect", **options)

    steps = Graph.chain(collecting("plain"), collecting("whole", take=State), collecting("take"))
    result = Application(steps).run_sync({"ns": [0, 1]})
    plain = result.state.to_plain()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["whole_errors"]["0"]["type"] == "ZeroDivisionError"


def test_to_plain_shows_only_what_may_be_read():
    assert narrowed({"a": [1], "b": 2}, reads={"a"}).to_plain() == {"a": [1]}


COPIES: list[Callable[[Any], Any]] = [
    copy.copy,
    copy.deepcopy,
    lambda state: pickle.loads(pickle.dumps(state)),
]


@pytest.mark.parametrize("copied", COPIES)
def test_a_copied_state_is_equal_and_goes_on(copied: Callable[[State], State]):
    state = State(n=1).append(log="a").put("by", "b", 2, 5)
    assert copied(state) == state
    assert copied(state).append(log="b").put("by", "a", 1, 2) == {
        "n": 1,
        "log": ["a", "b"],
        "by": {"a": 1, "b": 2},
    }


def test_a_pickled_state_shows_no_more_than_the_narrowed_one_did():
    dumped = pickle.dumps(narrowed({"a": 1, "secret": "hidden"}, reads={"a"}))
    assert b"hidden" not in dumped
    assert pickle.loads(dumped) == {"a": 1}


# -- what an action may do -----------------------------------------------------------------------


LOOKS: list[Callable[[State], object]] = [
    lambda s: s["b"],
    lambda s: s.get("b"),
    lambda s: s.get("b", 7),
    lambda s: "b" in s,
    lambda s: s["absent"],
    lambda s: s.get("absent"),
    lambda s: "absent" in s,
]


@pytest.mark.parametrize("look", LOOKS)
def test_an_undeclared_read_is_an_error_that_nothing_hides(look: Callable[[State], object]):
    state = narrowed({"a": 1, "b": 2}, reads={"a", "z"})
    with pytest.raises(UndeclaredRead) as caught:
        look(state)
    message = str(caught.value)
    assert "action 'parse' reads field 'b'" in message or "reads field 'absent'" in message
    assert "reads=[...]" in message
    assert "(declared: a, z)" in message
    assert not isinstance(caught.value, KeyError)


def test_a_narrowed_state_shows_what_is_declared():
    state = narrowed({"a": 1, "b": 2, "c": 3}, reads={"a", "c"})
    assert dict(state) == {"a": 1, "c": 3}
    assert len(state) == 2
    assert repr(state) == "State({'a': 1, 'c': 3})"
    assert state == {"a": 1, "c": 3}


def test_a_declared_read_may_be_missing():
    state = narrowed({"b": 1}, reads={"a"})
    assert state.get("a", 7) == 7
    assert "a" not in state
    with pytest.raises(MissingField) as caught:
        state["a"]
    assert str(caught.value) == (
        "the state has no field 'a' that action 'parse' reads (it has: none)"
    )


WRITES: list[Callable[[State], State]] = [
    lambda s: s.update(a=1),
    lambda s: s.update({"a": 1}),
    lambda s: s.append(a=1),
    lambda s: s.extend(a=[1]),
    lambda s: s.put("a", "k", 1),
    lambda s: s.increment(a=1),
    lambda s: s.drop("a"),
    lambda s: s.update(out=1, a=1),
]


@pytest.mark.parametrize("write", WRITES)
def test_an_undeclared_write_names_action_and_field(write: Callable[[State], State]):
    state = narrowed({"a": []}, reads={"a"}, writes={"out", "log"})
    with pytest.raises(UndeclaredWrite) as caught:
        write(state)
    message = str(caught.value)
    assert "action 'parse' writes field 'a'" in message
    assert "writes=[...]" in message
    assert "(declared: log, out)" in message


def test_the_permit_outlives_every_change():
    state = narrowed({}, writes={"out"}).update(out=1).increment(out=1).drop("out").append(out=3)
    with pytest.raises(UndeclaredWrite):
        state.update(a=1)
    with pytest.raises(UndeclaredRead):
        state["a"]


def test_own_writes_can_be_read():
    state = narrowed({"out": 1, "b": 2}, writes={"out", "log"})
    with pytest.raises(UndeclaredRead):
        state["out"]
    after = state.update(out=5)
    assert after["out"] == 5
    assert dict(after) == {"out": 5}
    assert after.append(log="a")["log"] == ["a"]
    assert "out" not in after.drop("out")
    with pytest.raises(UndeclaredRead):
        state["out"]  # the state before it is as blind as it was


def test_a_declared_write_is_changed_without_being_read():
    state = narrowed({"n": 1, "log": ["a"], "by": {"x": 1}}, writes={"n", "log", "by"})
    after = state.increment(n=1).append(log="b").put("by", "y", 2)
    assert dict(after) == {"n": 2, "log": ["a", "b"], "by": {"x": 1, "y": 2}}


# -- replay --------------------------------------------------------------------------------------

fields = st.sampled_from(["n", "log", "by", "self", "fresh"])
numbers = st.integers(-3, 3) | st.sampled_from([0.5, -0.25])
some_values = numbers | st.sampled_from(["text", None]) | st.lists(numbers, max_size=2)
map_keys = st.sampled_from([0, 1, "0", "1", "a"])
operations = (
    st.builds(Set, fields, some_values | st.dictionaries(map_keys, numbers, max_size=2))
    | st.builds(Extend, fields, st.lists(numbers, max_size=2).map(tuple))
    | st.builds(Put, fields, map_keys, some_values, st.none() | st.integers(0, 4))
    | st.builds(Increment, fields, numbers)
    | st.builds(Drop, fields)
)
initial = st.fixed_dictionaries(
    {"n": numbers, "log": st.lists(numbers, max_size=2)},
    optional={"by": st.dictionaries(map_keys, numbers, max_size=2), "self": numbers},
)


def apply(state: State, operation: Operation) -> State:
    """As a user would write it."""
    match operation:
        case Set(field, value):
            return state.update({field: value})
        case Extend(field, (item,)):
            return state.append(**{field: item})
        case Extend(field, items):
            return state.extend(**{field: items})
        case Put(field, key, value, position):
            return state.put(field, key, value, position)
        case PutWithin():
            return replay(state, [operation])  # users have no other way
        case Increment(field, by):
            return state.increment(**{field: by})
        case Drop(field):
            return state.drop(field)


@given(initial, st.lists(operations, max_size=12))
@repeatable
def test_replaying_the_operations_of_a_state_gives_that_state(
    data: dict[str, Any], wanted: list[Operation]
):
    before = copy.deepcopy(data)
    base = state = State(data)
    applied: list[Operation] = []
    versions: list[tuple[State, dict[str, Any]]] = []
    for operation in wanted:
        try:
            state = apply(state, operation)
        except StateError:
            continue  # of the wrong kind: nothing happened
        applied.append(operation)
        versions.append((state, copy.deepcopy(state.to_plain())))
    change = change_between(base, state, "the test")
    assert list(change.operations) == applied
    replayed = replay(State(before), change.operations)
    assert replayed == state
    for name, value in state.items():
        if isinstance(value, Mapping):
            assert in_order(replayed[name]) == in_order(value)
    assert change.applied_to(before) == state
    assert base == before == data
    for version, was in versions:
        assert version.to_plain() == was


@given(initial, st.lists(operations, max_size=12))
@repeatable
def test_recorded_operations_survive_pickling(data: dict[str, Any], wanted: list[Operation]):
    base = state = State(data).update(out=PositionedList[Any](StateMap[int, Any]()))
    recorded: list[Operation] = [Set("out", base["out"])]
    for operation in [Put("out", 3, "d", 3), Put("out", 1, "b", 1), *wanted]:
        try:
            state = apply(state, operation)
        except StateError:
            continue
        recorded.append(operation)
    loaded = pickle.loads(pickle.dumps(recorded))
    assert replay(pickle.loads(pickle.dumps(State(data))), loaded) == state


def test_operations_are_values():
    assert Set("a", 1) == Set("a", 1)
    assert Put("a", "k", 1) != Put("a", "k", 1, 0)
    one: Any = Increment("a", 1)
    with pytest.raises(AttributeError):
        one.by = 2


# -- what an action returns ----------------------------------------------------------------------


def test_an_unchanged_state_is_no_change():
    base = State(a=1)
    assert change_between(base, base, "who") is NO_CHANGE
    assert NO_CHANGE.applied_to({"a": 1}) == {"a": 1}


def test_a_change_knows_what_fields_hold_afterwards():
    base = State(a=1, b=2, c=3)
    change = change_between(base, base.update(a=5).drop("a", "b").update(b=6, d=7), "who")
    assert change.values == {"b": 6, "d": 7}
    assert change.dropped == ("a",)
    assert change.applied_to(base) == {"b": 6, "c": 3, "d": 7}


@pytest.mark.parametrize("returned", [None, 5, {"a": 2}, [State()], State])
def test_something_other_than_a_state_is_refused(returned: object):
    with pytest.raises(BadResult) as caught:
        change_between(State(a=1), returned, "action 'parse'")
    message = str(caught.value)
    assert message.startswith("action 'parse' returned")
    assert type(returned).__name__ in message
    assert "return state.update(...)" in message


OTHERS: list[Callable[[State], State]] = [
    State,
    copy.copy,
    lambda _: State(a=1),
    lambda _: State(a=1).update(a=2),
    lambda base: State(base).update(a=2),
]


@pytest.mark.parametrize("returned", OTHERS)
def test_a_state_made_from_another_is_refused(returned: Callable[[State], State]):
    base = State(a=1)
    with pytest.raises(BadResult, match=r"action 'parse' .* not made from the one it was given"):
        change_between(base, returned(base), "action 'parse'")


# -- cost ----------------------------------------------------------------------------------------


def test_n_appends_and_puts_to_a_state_share_structure():
    state = State(log=["there"], by={"there": 0})
    first = state.append(log=0).put("by", 0, 0)
    last = first
    for number in range(1, 1_000):
        last = last.append(log=number).put("by", number, number)
    assert last["log"]._journal is first["log"]._journal
    assert last["by"]._journal is first["by"]._journal
    assert last["log"] == ["there", *range(1_000)]
    assert state == {"log": ["there"], "by": {"there": 0}}


def test_a_state_without_a_model_looks_for_no_attribute_that_is_missing(
    monkeypatch: pytest.MonkeyPatch,
):
    """Each miss would make an error and its message, for each update of each child."""

    def miss(self: State, name: str) -> object:
        raise AssertionError(name)

    monkeypatch.setattr(State, "__getattr__", miss, raising=False)
    state = State(a=1).update(a=2).increment(a=1)
    assert state.data == {"a": 3}
    assert make_state({"a": 3}).update(b=4) == {"a": 3, "b": 4}
