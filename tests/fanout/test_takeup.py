"""Results of another program: which may have the digests of present ones, and under which name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from shoal import Graph, action
from shoal._engine.fanout.takeup import _may_have_made, as_recorded

CASES: list[tuple[dict[str, str], dict[str, str], bool]] = [
    ({"a": "1"}, {"a": "1"}, True),
    ({"a": "1"}, {"a": "2"}, False),
    ({"a": "1"}, {"b": "1"}, True),  # the name of an only act does not matter
    ({"a": "1"}, {"b": "2"}, False),
    ({"a": "1", "b": "2"}, {"c": "2"}, True),
    ({"a": "1", "b": "2"}, {"b": "2", "c": "3"}, True),
    ({"a": "1", "b": "2"}, {"a": "2", "b": "1"}, False),
    ({}, {"a": "1"}, True),  # it is not known
    ({"a": "1"}, {}, True),
]


@pytest.mark.parametrize(("then", "now", "may"), CASES)
def test_a_program_with_the_same_steps_may_have_made_a_result(
    then: dict[str, str], now: dict[str, str], may: bool
):
    def declared(acts: dict[str, str]) -> dict[str, Any]:
        return {"acts": [*acts], "versions": [*acts.values()]}

    assert _may_have_made(declared(then), declared(now)) is may


@action(writes=["out"])
async def act() -> int:
    return 1


class Recorded:
    """The children that an earlier program has recorded, none of which is done."""

    def __init__(self, acts: str) -> None:
        self.acts, self.acts_now = frozenset(acts), frozenset(acts)
        self.acts_done = frozenset[str]()
        self.renamed: object = None
        self.left_out = frozenset[str]()

    def folded(self) -> Any:
        return None, ()

    def leave_out(self, acts: frozenset[str]) -> None:
        self.left_out = acts


def names_of(now: str, shape: Any, run: Any, recorded: Any) -> str:
    graphs = [Graph.chain(act, name=name) for name in now]
    return "".join(graph.name for graph in as_recorded(graphs, shape, run, "step", recorded))


@pytest.mark.parametrize(
    ("then", "now", "shape", "found", "left_out"),
    [
        ("a", "a", "by key", "a", ""),
        ("a", "b", "by key", "a", ""),  # an only act keeps its results under another name
        ("a", "b", "by act", "b", "a"),  # its name is in the state
        ("ab", "ac", "by key", "ac", "b"),
        ("ab", "c", "by key", "c", "ab"),
        ("a", "bc", "by key", "bc", "a"),
    ],
)
def test_children_are_found_under_the_name_of_an_only_act(
    then: str, now: str, shape: str, found: str, left_out: str
):
    recorded = Recorded(then)
    assert names_of(now, shape, None, recorded) == found
    assert recorded.left_out == set(left_out)
    assert recorded.renamed == (None if found == now else (then, now))
    assert recorded.acts_now == set(found)


@pytest.mark.parametrize(
    ("then", "now", "shape", "found"),
    [("a", "b", "by key", "a"), ("a", "b", "by act", "b"), ("a", "bc", "by key", "bc")],
)
def test_a_winner_without_a_record_is_found_under_the_name_of_an_only_act(
    then: str, now: str, shape: str, found: str
):
    decision = SimpleNamespace(winner=SimpleNamespace(act=then))
    begun = SimpleNamespace(declared={"acts": [*then]})
    run = SimpleNamespace(playback=SimpleNamespace(decision=decision, begun=begun))
    assert names_of(now, shape, run, None) == found
    run.playback.decision = None
    assert names_of(now, shape, run, None) == now
