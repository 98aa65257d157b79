"""Histories, and playing them back."""

from __future__ import annotations

import gc
import re
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal import PositionedList, StateList, StateMap
from shoal._state.state import make_state, replay, replay_all
from shoal.errors import StateError
from shoal.events import (
    ChildName,
    Decision,
    Drop,
    Extend,
    Increment,
    Operation,
    Put,
    PutWithin,
    Set,
    Update,
)
from shoal.stores import Completed, Entry, Rewound
from shoal.stores._history import ReplayedHistory, play


def update(number: int, step: str, **fields: object) -> Update:
    return Update(number, step, tuple(Set(name, value) for name, value in fields.items()))


def test_a_run_that_has_done_nothing_stands_at_the_beginning():
    played = play({"n": 1}, [])
    assert (played.data, played.number) == ({"n": 1}, 0)
    assert (played.began.step, played.began.number, dict(played.began.visits)) == (None, 0, {})
    assert played.under_way == []
    assert not played.undone


def test_updates_are_applied_in_order_and_belong_to_the_step_under_way():
    updates = [
        Update(1, "a", (Set("x", 1), Increment("n", 2))),
        Update(2, "a", (Extend("list", (7,)), Put("map", "k", 8))),
    ]
    played = play({"n": 1, "list": [], "map": StateMap[str, int]()}, updates)
    assert played.data == {"n": 3, "x": 1, "list": [7], "map": {"k": 8}}
    assert played.number == 2
    assert played.began.data == {"n": 1, "list": [], "map": {}}
    assert played.under_way == updates
    played.add(Update(3, "a", (Set("x", 3), Increment("n", 1))))
    assert played.under_way == updates, "the third says nothing more of the step than the first"


def test_a_completed_step_is_where_the_next_one_begins():
    entries: list[Entry] = [update(1, "a", x=1), Completed("a", 0), update(2, "b", y=1)]
    played = play({}, entries)
    assert played.data == {"x": 1, "y": 1}
    assert played.began.step == "a"
    assert played.began.data == {"x": 1}
    assert played.under_way == [update(2, "b", y=1)]
    assert (played.visit("a"), played.visit("b")) == (1, 0)


def test_a_step_that_changes_nothing_is_completed_too():
    played = play({}, [Completed("a", 0), Completed("b", 0), Completed("a", 0)])
    assert played.began.step == "a"
    assert played.visit("a") == 2
    assert list(played.completed_visits()) == [("a", 0, 0), ("b", 0, 0), ("a", 1, 0)]


def test_a_fork_begins_where_another_run_stood():
    played = play({"x": 1}, [Completed("b", 0)], after="a", visits={"a": 2})
    assert played.began.step == "b"
    assert (played.visit("a"), played.visit("b")) == (2, 1)
    assert play({}, [], after="a").began.step == "a"


def test_going_back_takes_up_the_step_where_it_was_before_its_last_save():
    entries: list[Entry] = [
        update(1, "a", x=1), Completed("a", 0),
        update(2, "map", m=1), update(3, "map", m=2), update(4, "map", done=1), Completed("map", 3),
        update(5, "c", z=1), Completed("c", 4), update(6, "d", w=1),
        Rewound("map", 0),
    ]  # fmt: skip
    played = play({}, entries)
    assert played.began.step == "a"
    assert played.under_way == entries[2:3]
    assert played.restored == {"x": 1, "m": 2}
    assert played.data == {"x": 1, "m": 2, "done": 1, "z": 1, "w": 1}, "until the next update"
    assert [played.is_undone(number) for number in range(1, 8)] == [
        False, False, False, True, True, True, False
    ]  # fmt: skip
    assert (played.visit("map"), played.visit("c")) == (0, 0)
    played.add(Update(7, "map", (Set("x", 7),)))
    assert (played.data["x"], played.number) == (7, 7)


def counted(many: int) -> Iterator[Entry]:
    yield Update(1, "map", (Set("found", 0),), ("a", "b"), 7)
    for number in range(2, many):
        operations = (Increment("n", 1), Set("last", number), Put("map", number % 5, number))
        yield Update(number, "map", operations)
    yield Update(many, "map", (), ("c",), 9)
    yield Update(many + 1, "map", (Set("done", True),))
    yield Completed("map", many)


@pytest.mark.parametrize("many", [10, 1_000, 1_249, 1_250, 1_251, 10_000])
def test_a_long_history_leads_where_a_short_one_does(many: int):
    played = play({"n": 0, "map": {}}, counted(many))
    assert (played.data["n"], played.data["last"]) == (many - 2, many - 1)
    assert played.data["map"] == {number % 5: number for number in range(2, many)}
    played.add(Rewound("map", 0))
    assert "done" not in played.restored
    assert played.restored["n"] == many - 2
    assert [(one.number, one.discovered) for one in played.under_way] == [
        (1, ("a", "b")), (2, ()), (many, ("c",))
    ]  # fmt: skip


def test_what_is_played_back_takes_no_memory_for_each_update():
    def peak(many: int) -> int:
        gc.collect()
        tracemalloc.start()
        try:
            play({"n": 0, "map": {}}, counted(many))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(6_000)  # caches
    assert peak(60_000) < peak(6_000) + 200_000


values = st.integers(-3, 3) | st.text(max_size=2)
operations = st.lists(
    st.builds(Set, st.just("n"), values)
    | st.builds(Set, st.just("items"), st.just([]) | st.just([1]))
    | st.builds(Increment, st.sampled_from(["n", "m"]), st.integers(-3, 3))
    | st.builds(Extend, st.just("items"), st.tuples(values))
    | st.builds(Put, st.sampled_from(["map", "listed"]), st.integers(0, 3), values, st.floats(0, 3))
    | st.builds(PutWithin, st.just("map"), st.just(9), st.text(max_size=1), values)
    | st.builds(Drop, st.sampled_from(["m", "map", "items"])),
    max_size=30,
)


@given(operations)
def test_all_at_once_operations_come_to_what_they_come_to_one_by_one(some: list[Operation]):
    data = {"n": 0, "listed": PositionedList(StateMap[int, object]()), "kept": StateList([1])}
    try:
        expected = replay(make_state(data), some)
    except StateError as error:
        with pytest.raises(StateError, match=re.escape(str(error))):
            replay_all(data, some)
    else:
        found = replay_all(data, some)
        assert found == dict(expected)
        assert {name: type(value) for name, value in found.items()} == {
            name: type(value) for name, value in expected.items()
        }
    assert list(data) == ["n", "listed", "kept"]
    assert data["n"] == 0


def test_going_back_to_one_of_several_visits():
    entries: list[Entry] = []
    for number in (1, 2, 3):
        entries += [update(number, "map", turn=number), Completed("map", number - 1)]
    played = play({"turn": 0}, [*entries, Rewound("map", 1)])
    assert played.restored == {"turn": 1}
    assert played.visit("map") == 1
    assert list(played.completed_visits()) == [("map", 0, 0)]
    # And once more, further back: what was undone before stays undone.
    played.add(update(4, "map", turn=1))
    played.add(Completed("map", 4))
    played.add(Rewound("map", 0))
    assert played.restored == {"turn": 0}
    assert [played.is_undone(number) for number in (1, 2, 3, 4)] == [True] * 4


def test_decisions_that_were_left_behind_count_no_more():
    winner = ChildName("leaf", 1)
    race = Decision("race", winner, (winner,), "it was first")
    entries: list[Entry] = [
        update(1, "map", m=1), Completed("map", 1),
        update(2, "race", r=1), race, Completed("race", 1),
        update(3, "race", r=2), race,
    ]  # fmt: skip
    played = play({}, entries)
    assert played.decision is race
    assert set(played.decided) == {("race", 0), ("race", 1)}
    played.add(Rewound("map", 0))
    assert played.decision is None
    assert played.decided == {}


def test_going_back_to_what_never_was_is_refused():
    with pytest.raises(ValueError, match="goes back into 'b', which it never completed"):
        play({}, [Completed("a", 0), Rewound("b", 0)])


steps = st.sampled_from("abc")


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(steps, st.booleans(), st.integers(0, 3))), st.integers(0))
def test_playing_back_in_two_parts_comes_to_the_same(moves: list[tuple[str, bool, int]], cut: int):
    entries, number = list[Entry](), 0
    for step, completes, value in moves:
        before = number
        if value:
            number += 1
            entries.append(update(number, step, **{step: value}))
        if completes:
            entries.append(Completed(step, before))
    whole = play({"z": 0}, entries)
    cut %= len(entries) + 1
    parts = play({"z": 0}, entries[:cut])
    for entry in entries[cut:]:
        parts.add(entry)

    def received(played: ReplayedHistory) -> Any:
        return played.data, played.number, played.began, played.under_way, played.undone

    assert received(whole) == received(parts)
    completed = list(whole.completed_visits())
    if completed:
        step, visit, _ = completed[-1]
        entry = next(e for e in reversed(entries) if isinstance(e, Completed) and e.step == step)
        at = len(entries) - 1 - entries[::-1].index(entry)
        whole.add(Rewound(step, visit))
        kept = [e for e in entries[:at] if not isinstance(e, Update) or e.number <= entry.number]
        assert whole.restored == play({"z": 0}, kept).data
