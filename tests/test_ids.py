"""Identity of runs: the same for ever, and never the same for two."""

# pyright: reportPrivateUsage=false
# Ids are made of paths by the engine alone.

from __future__ import annotations

import enum
import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal import Application, ChildEnded, ChildStarted, Graph, RunPath, action, fan_out
from shoal._ids import child_id, new_run_id
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
    script = "from shoal._ids import child_id; print(child_id('root', 's', 0, 'a', 'key'))"
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
