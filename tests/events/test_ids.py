"""Identity of runs: the same for ever, and never the same for two."""

# pyright: reportPrivateUsage=false
# Ids are made of paths by the engine alone.

from __future__ import annotations

import enum
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal import (
    Application,
    Context,
    Graph,
    MapStates,
    Outcome,
    RunPath,
    SQLiteStore,
    State,
    action,
    fan_out,
)
from shoal._events import identity as _ids
from shoal._events.identity import child_id, new_run_id, plain_key
from shoal.events import ChildEnded, ChildStarted
from shoal.testing import RecordingHook

repeatable = settings(derandomize=True, deadline=None, max_examples=300)


@pytest.mark.parametrize(
    ("identity", "expected"),
    [
        (("root", "titles", 0, "fetch", "a"), "1e88dc25f8a14663b0ad887aef27b8b2"),
        (("root", "titles", 0, "fetch", 1), "47994407deda0d5ee357c24a0934891c"),
        (("root", "titles", 0, "fetch", "1"), "00dbc4fbf2d9f59c9e0aa6efbb7c546e"),
        (("root", "titles", 1, "fetch", "a"), "8af78529bb5b6253dd156d9e26066cf3"),
        (("", "", 0, "", ""), "53d1503de78ecedd649ad65a5adab439"),
        (("wurzel-ü", "schritt", 12, "täter", "ключ"), "a2a555e3718b1a2c53ee66621cc6da3a"),
        (("root", "s", 0, "a", -(10**30)), "5136800c1c3938711ed9c8accd981899"),
        (("root", "s", 0, "a", "\udcff"), "5837542b87e386a99f2010dddc4115ce"),
    ],
)
def test_ids_never_change(identity: tuple[str, str, int, str, Any], expected: str):
    # Stores hold these: a version that gives others would find no child of an older one again.
    assert child_id(*identity) == expected


def test_one_and_its_text_are_told_apart():
    assert child_id("r", "s", 0, "a", 1) != child_id("r", "s", 0, "a", "1")


parts = st.text(max_size=4) | st.sampled_from(["", "1:", "s", "i1", "2:s1", ":", "0:"])
identities = st.tuples(
    parts, parts, st.integers(0, 20), parts, parts | st.integers(-20, 20) | st.sampled_from([1, 11])
)


@given(identities, identities)
@repeatable
def test_different_identities_have_different_ids(left: Any, right: Any):
    same = left == right and type(left[-1]) is type(right[-1])
    assert (child_id(*left) == child_id(*right)) == same


@given(st.lists(parts, min_size=5, max_size=5), st.data())
@repeatable
def test_what_moves_from_one_part_to_the_next_makes_another_id(texts: list[str], data: Any):
    parent, step, act, key, extra = texts
    if not extra:
        extra = "x"
    variants = [
        (parent + extra, step, act, key),
        (parent, extra + step, act, key),
        (parent, step + extra, act, key),
        (parent, step, extra + act, key),
        (parent, step, act + extra, key),
        (parent, step, act, extra + key),
    ]
    ids = {
        variant: child_id(variant[0], variant[1], 0, variant[2], variant[3]) for variant in variants
    }
    assert len(set(ids.values())) == len(ids)


class Colour(str, enum.Enum):  # noqa: UP042 # formats unlike a StrEnum
    RED = "red"


class Shade(enum.StrEnum):
    RED = "red"


class Number(enum.IntEnum):
    ONE = 1


class Loud(str):  # noqa: SLOT000 # what somebody may give
    def __str__(self) -> str:
        return "loud"

    def __format__(self, spec: str) -> str:
        return "louder"


@pytest.mark.parametrize(
    ("key", "same"),
    [(Colour.RED, "red"), (Shade.RED, "red"), (Number.ONE, 1), (Loud("red"), "red")],
)
def test_equal_keys_have_equal_ids(key: Any, same: Any):
    assert key == same
    assert child_id("r", "s", 0, "a", key) == child_id("r", "s", 0, "a", same)


@pytest.mark.parametrize(
    ("key", "plain"),
    [
        ("red", "red"), (1, 1), (Colour.RED, "red"), (Shade.RED, "red"), (Number.ONE, 1),
        (Loud("red"), "red"), (True, None), (None, None), (1.0, None), (b"red", None),
    ],
)  # fmt: skip
def test_a_key_is_plain(key: Any, plain: Any):
    found = plain_key(key)
    assert (found, type(found)) == (plain, type(plain))


# -- paths ---------------------------------------------------------------------------------------


def child_of(parent: RunPath, **changes: Any) -> RunPath:
    given: dict[str, Any] = {"step": "titles", "visit": 0, "act": "fetch", "key": "a", **changes}
    return RunPath(parent=parent, **given)


def test_a_path_knows_its_id_and_its_parents():
    root = RunPath(run_id="root", act="crawl")
    child = child_of(root)
    grandchild = child_of(child, step="links", key=3)
    assert root.id == "root"
    assert root.parent_id is None
    assert child.id == child_id("root", "titles", 0, "fetch", "a")
    assert grandchild.id == child_id(child.id, "links", 0, "fetch", 3)
    assert (child.parent_id, grandchild.parent_id) == ("root", child.id)
    assert [path.depth for path in (root, child, grandchild)] == [0, 1, 2]
    assert repr(grandchild) == "<RunPath crawl root>/titles#0/fetch['a']/links#0/fetch[3]"


@pytest.mark.parametrize(
    "changes", [{"step": "other"}, {"visit": 1}, {"act": "parse"}, {"key": "b"}, {"key": 0}]
)
def test_every_part_of_a_path_counts(changes: dict[str, Any]):
    root = RunPath(run_id="root")
    assert child_of(root, **changes).id != child_of(root).id
    assert child_of(root, **changes) != child_of(root)
    assert child_of(RunPath(run_id="another")).id != child_of(root).id


def test_equal_paths_are_equal():
    root = RunPath(run_id="root", act="crawl")
    assert child_of(root) == child_of(RunPath(run_id="root", act="crawl"))
    assert len({child_of(root), child_of(root), root}) == 2
    assert child_of(root) != child_of(root).id


def test_an_id_is_32_hexadecimal_digits():
    for made in (new_run_id(), child_of(RunPath(run_id="root")).id):
        assert len(made) == 32
        assert int(made, 16) >= 0
    assert new_run_id() != new_run_id()


# -- runs ----------------------------------------------------------------------------------------


@action(reads=["item"], writes=["twice"])
async def double(item: int) -> int:
    return 2 * item


@action(reads=["twice"], writes=["out"])
async def negate(twice: int) -> int:
    return -twice


def ids_of(items: list[int], **arguments: Any) -> dict[Any, str]:
    hook = RecordingHook()
    chain = Graph.chain(double, negate, name="pair")
    act = fan_out(chain, over="items", key=str, into="out", **arguments)
    Application(act, hooks=[hook]).run_sync({"items": items}, id="fixed")
    started = {event.child.key: event.child.id for event in hook.of(ChildStarted)}
    assert started == {event.outcome.key: event.outcome.run_id for event in hook.of(ChildEnded)}
    return started


def test_ids_of_children_do_not_depend_on_order_or_company():
    assert ids_of([1, 2, 3]) == ids_of([3, 2, 1])
    assert ids_of([1]) == {"1": ids_of([1, 2, 3])["1"]}
    assert ids_of([1])["1"] == child_id("fixed", "out", 0, "pair", "1")
    assert ids_of([1])["1"] != ids_of([1], name="another")["1"]


def test_ids_are_the_same_in_every_process():
    script = f"import {_ids.__name__} as ids; print(ids.child_id('root', 's', 0, 'a', 'key'))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout.decode()
        for seed in ("1", "2")
    }
    assert outputs == {child_id("root", "s", 0, "a", "key") + "\n"}


def test_a_run_without_an_id_is_given_a_new_one():
    application = Application(double)
    first, second = (application.run_sync({"item": 1}).run_id for _ in range(2))
    assert first != second
    assert len(first) == 32
    assert application.run_sync({"item": 1}, id="mine").run_id == "mine"


@pytest.mark.parametrize("run_id", [Colour.RED, Shade.RED, Loud("red")])
def test_the_id_of_a_run_is_plain(run_id: str):
    hook = RecordingHook()
    act = fan_out(double, over="items", into="out")
    result = Application(act, hooks=[hook]).run_sync({"items": [1]}, id=run_id)
    (child,) = [event.child for event in hook.of(ChildStarted)]
    assert (result.run_id, type(result.run_id)) == ("red", str)
    assert child.id == child_id("red", "out", 0, "double", 0)


# -- keys that are members of enums ----------------------------------------------------------------

GIVEN = [Colour.RED, Number.ONE, Loud("blue")]


class Mapping(MapStates):
    reads = ("items",)
    writes = ("out",)

    def action(self, state: State, inputs: Any) -> Any:
        return measure

    def states(self, state: State, inputs: Any) -> Any:
        return ({"item": item} for item in state["items"])

    def key(self, state: Any) -> Any:
        return state["item"]

    def reduce(self, state: State, outcome: Outcome) -> State:
        return state.put("out", outcome.key, 1)


@action(reads=["item"], writes=["size"])
async def measure(item: Any) -> int:
    return 1


def own(*, each: bool) -> Any:
    @action(reads=["items"], writes=["out"])
    async def act(items: list[Any], context: Context) -> dict[Any, Any]:
        async with context.fan_out(name="f") as group:
            if each:
                group.start_each(measure, over=items, key=lambda item: item)
            else:
                for item in items:
                    group.start(measure, {"item": item}, key=item)
            return {outcome.key: 1 async for outcome in group}

    return act


WAYS: dict[str, Callable[[], Any]] = {
    "fan_out": lambda: fan_out(measure, over="items", key=lambda item: item, into="out"),
    "several acts": lambda: fan_out(
        [measure, measure.bind(name="again")], over="items", key=lambda item: item, into="out"
    ),
    "grow": lambda: fan_out(
        measure, over="none", key=lambda item: item, into="out", name="f",
        grow=lambda state, outcome: GIVEN if outcome.key == 0 else (),
    ),
    "tasks": Mapping,
    "start": lambda: own(each=False),
    "start_each": lambda: own(each=True),
}  # fmt: skip


@pytest.mark.anyio
@pytest.mark.parametrize("way", WAYS)
async def test_keys_that_are_members_of_enums_become_plain(way: str):
    hook = RecordingHook()
    app = Application(WAYS[way](), hooks=[hook])
    result = await app.run({"items": GIVEN, "none": [0], "out": {}}, id="r")
    keys = [key for key in result.state["out"] if key != 0]
    assert sorted(map(str, keys)) == ["1", "blue", "red"]
    ended = [event.outcome.key for event in hook.of(ChildEnded)]
    assert {type(key) for key in (*keys, *ended)} == {str, int}


def test_keys_are_the_same_after_a_resume(tmp_path: Path):
    fails = True

    @action(reads=["out"], writes=["types"])
    async def look(out: Any) -> list[str]:
        if fails:
            raise LookupError
        return [type(key).__name__ for key in out]

    graph = Graph.chain(WAYS["fan_out"](), look, name="g")
    app = Application(graph, store=SQLiteStore(tmp_path / "runs.db"))
    with pytest.raises(LookupError):
        app.run_sync({"items": [Colour.RED, Number.ONE]}, id=Shade.RED)
    fails = False
    resumed = app.run_sync(id="red").state
    straight = app.run_sync({"items": [Colour.RED, Number.ONE]}, id="straight").state
    assert resumed["types"] == straight["types"] == ["str", "int"]
    assert resumed["out"] == straight["out"]
