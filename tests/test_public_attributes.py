"""What completion shows of public classes: an attribute more or less is decided here, on purpose.

Methods of public classes that only other packages of shoal call are left out of ``dir`` by
``hides``; everything else that has no underscore is a promise.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shoal import (
    Action,
    Application,
    Context,
    Done,
    Each,
    Graph,
    Limits,
    Rate,
    Retry,
    RunResult,
    Runtime,
    State,
    Tolerate,
    action,
    fan_out,
    first,
    race,
)
from shoal.types import ChildGroup


@action(reads=["n"], writes=["m"])
async def act(n: int) -> int:
    return n


class Plus(Action):
    reads = ("n",)
    writes = ("m",)

    async def run(self, n: int) -> int:
        return n


ACT = "bind name reads retry takes version writes"
FAN_OUT = "each executor hooks limits stagger store timeout title"
SHOWN: dict[Callable[[], object], str] = {
    lambda: act: f"{ACT} abandon cache executor function limits timeout",
    Plus: f"{ACT} abandon cache executor limits run timeout",
    lambda: fan_out(act, over="ns", item="n", into="ms"): f"{ACT} {FAN_OUT} item key over",
    lambda: race(act, into="m"): f"{ACT} {FAN_OUT} item key over",
    lambda: Graph.chain(act, act.bind(name="b")): f"{ACT} acts chain edges entry part typed",
    lambda: Application(act): (
        "fork graph hooks inputs limits max_depth max_live max_steps name open questions recover "
        "reopen retry_failed run run_sync secret start store take_over version"
    ),
    Runtime: (
        "can_recover circuits drain draining ended_runs executor find healthy inputs "
        "keep_recovering limiter limiters limits load on_draining recover run runs start store "
        "stores wait_draining watch"
    ),
    lambda: Limits(1): "n",
    first: "accept n",
    lambda: Retry(2, on=OSError): "attempts budget cap delay factor initial is_for jitter on total",
    lambda: Each(timeout=1): "breaker retry timeout work_timeout",
    lambda: Tolerate(count=1): "after count is_exceeded share",
    lambda: Rate(1): "burst k per",
    lambda: State(
        n=1
    ): "append data drop extend get increment items keys put to_plain update values",
}


CLASSES: dict[type, str] = {  # those that only a run makes
    Context: (
        "ask attempt charge deadline depth emit fan_out idempotency_key key learn note parent "
        "path run_id span step"
    ),
    ChildGroup: "cancel cancel_child start start_each",
    RunResult: (
        "all_outcomes outcomes questions raise_for_failures reason report run_id spent state status"
    ),
    Done: ("abandoned act attempts elapsed element key path position run_id state used value"),
}


def shown(thing: object) -> list[str]:
    return [name for name in dir(thing) if not name.startswith("_")]


@pytest.mark.parametrize("make", SHOWN)
def test_an_object_shows_what_a_user_may_want(make: Callable[[], object]):
    assert shown(make()) == sorted(SHOWN[make].split())


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_a_class_has_what_a_user_may_want(cls: type):
    assert shown(cls) == sorted(CLASSES[cls].split())


def test_what_is_hidden_can_be_used_and_a_users_attributes_are_shown():
    plus = Plus()
    plus.tally = 1  # pyright: ignore[reportAttributeAccessIssue]
    assert "tally" in dir(plus)
    assert not plus.takes_more
