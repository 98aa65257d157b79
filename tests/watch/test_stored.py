"""Stored histories are replayed on JSON, and lead to the state that the run had."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from shoal import State
from shoal._events.events import Update
from shoal._state.plain import to_plain
from shoal._state.state import Drop, Extend, Increment, Operation, Put, PutWithin, Set, replay
from shoal.stores._codec.codec import Codec
from shoal.stores._inspecting import entries
from shoal.watch._history import FieldChange, entry_of
from shoal.watch._stored import apply, closed, opened

FIRST: dict[str, Any] = {"a": 1, "list": [1], "map": {"x": {"y": 1}}, "odd": {1: "one"}}
OPERATIONS: list[Operation] = [
    Set("a", {"@tag": [1, {"b": 2}]}),
    Set("empty", {}),
    Put("empty", "k", [1, 2]),
    Put("empty", 7, None),
    Put("map", "z", 3, 0),
    PutWithin("map", "x", "w", 4),
    PutWithin("map", "new", 5, 6),
    Put("odd", (1, 2), "two"),
    Extend("list", (2, "three")),
    Extend("list", ({"four": 4},)),
    Set("n", 1.5),
    Increment("n", 2),
    Set("gone", 1),
    Drop("gone"),
]


def named(value: Any) -> Any:
    """Return a state as JSON has it: keys that are no texts as JSON."""
    if isinstance(value, dict):
        pairs = cast("dict[Any, Any]", value).items()
        return {key if isinstance(key, str) else written(key): named(one) for key, one in pairs}
    if isinstance(value, list):
        return [named(one) for one in cast("list[Any]", value)]
    return value


def written(key: Any) -> str:
    return json.dumps(json.loads(Codec().encode(key)))


@pytest.mark.parametrize("count", range(len(OPERATIONS) + 1))
def test_a_replay_on_json_leads_to_the_state(count: int):
    history = [Update(number, "s", (one,)) for number, one in enumerate(OPERATIONS[:count], 1)]
    stored, _ = entries(history, (), {}, kinds=None, from_number=0, limit=1000)
    first = json.loads(Codec().encode(FIRST))
    state = {name: opened(value) for name, value in first.items()}
    for entry in stored:
        for operation in json.loads(entry.data)["do"]:
            apply(state, *operation)
    found = {name: closed(value) for name, value in state.items()}
    expected = named(to_plain(dict(replay(State(FIRST), OPERATIONS[:count]))))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name != "a":  # values that are put nowhere stay as they are stored
            assert found[name] == value, name


def test_an_operation_of_a_later_version_is_passed_over():
    state: dict[str, Any] = {"a": 1}
    apply(state, "shuffle", "a", [1, 2])
    assert state == {"a": 1}


def test_changes_are_read_without_decoding_values():
    history = [Update(number, "s", (one,)) for number, one in enumerate(OPERATIONS, 1)]
    stored, _ = entries(history, (), {}, kinds=None, from_number=0, limit=1000)
    shown = [str(change) for entry in stored for change in entry_of(entry).changes]
    assert shown == [
        'a = {"@@tag":[1,{"b":2}]}',
        "empty = {}",
        'empty["k"] = [1,2]',
        "empty[7] = null",
        'map["z"] = 3',
        'map["x"]["w"] = 4',
        'map["new"][5] = 6',
        'odd[[1, 2]] = "two"',
        'list += [2,"three"]',
        'list += [{"four":4}]',
        "n = 1.5",
        "n += 2",
        "gone = 1",
        "gone removed",
    ]


def test_long_values_are_shortened_and_their_size_is_told():
    (stored,), _ = entries(
        [Update(1, "s", (Set("text", "x" * 1_000_000),))],
        (),
        {},
        kinds=None,
        from_number=0,
        limit=1,
    )
    (change,) = entry_of(stored).changes
    assert change == FieldChange("text", "set", "", f'"{"x" * 198}…', 1_000_002)
