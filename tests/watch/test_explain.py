"""Where the time of a run went, and the advice that follows from it, for reports made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from shoal import RunPath
from shoal.watch import LimitUse, Link, Report, Row, Waited, explain
from shoal.watch._explain import advice_on, explained
from tests.watch.reporting import make_report


def report(spent: dict[Any, float], **more: Any) -> Report:
    return make_report("a", spent, **{"is_over": True, "peak": 20, **more})


def use(limits: str, slots: float | None) -> LimitUse:
    return LimitUse(owner="crawl", limits=limits, in_use=0, slots=slots, waiting=0)


SLOTS = Waited(limit="Limits(20)", key="", seconds=60.0, doing="slot")
RATE = Waited(limit="Limits(rate=Rate(5))", key="openai", seconds=20.0, doing="rate")


def test_shares_add_up_to_one_the_largest_first():
    found = explain(report({"action": 2.0, "slot": 5.0, "loop": 0.5, "other": 0.1, "rate": 0.0}))
    assert list(found.shares) == ["slot", "action", "loop", "other"]
    assert sum(found.shares.values()) == pytest.approx(1.0)
    assert found.shares["slot"] == pytest.approx(5.0 / 7.6)
    assert found.seconds == pytest.approx(7.6)
    assert found.is_over


def test_slots_come_first_and_then_the_rate():
    found = report(
        {"action": 20.0, "slot": 60.0, "rate": 20.0},
        waited=(RATE, SLOTS),
        limits=(use("Limits(20)", 20), use("Limits(rate=Rate(5))", None)),
    )
    assert advice_on(found) == (
        "raising Limits(20) to 40 would help: waiting for its slots is 60 % of the time; "
        "the rate of openai would then be the next limit (29 % of what is left)"
    )


def test_children_that_have_not_started_wait_for_a_full_limit():
    """A fan-out reads its source as slots get free, so nothing in flight waits for them."""
    full = LimitUse(
        owner="pages", part=-1, limits="in flight", in_use=0, slots=20, waiting=0, full=95.0
    )
    found = report({"action": 60.0, "rate": 40.0}, waited=(RATE,), limits=(full,))
    # More children in flight would halve the time of the actions, and wait for the rate as long.
    assert advice_on(found) == (
        "raising Limits(20) of pages to 40 would help: all its slots were taken for 95 % of the "
        "time; the rate of openai would then be the next limit (56 % of what is left)"
    )
    used_up = report({"action": 4.0, "rate": 96.0}, waited=(RATE,), limits=(full,))
    assert "more slots would not" in advice_on(used_up)


def test_fewer_slots_than_twice_are_enough_if_little_waits():
    found = report({"action": 80.0, "slot": 20.0}, waited=(SLOTS,), limits=(use("Limits(20)", 20),))
    assert advice_on(found) == (
        "raising Limits(20) to 25 would help: waiting for its slots is 20 % of the time; then the "
        "actions themselves would take most of the time"
    )


def test_a_used_up_rate_makes_more_slots_useless():
    found = report({"action": 5.0, "rate": 95.0}, waited=(RATE,))
    assert advice_on(found) == (
        "the rate of openai is used up (95 % of the time is waiting for it): only a higher rate or "
        "fewer calls would help, and more slots would not"
    )


def test_two_limits_of_one_kind_are_two_constraints():
    waited = (
        Waited(limit="Limits(2)", key="", seconds=10.0, doing="slot"),
        Waited(limit="Limits(8)", key="", seconds=30.0, doing="slot"),
    )
    found = report(
        {"action": 10.0, "slot": 40.0},
        waited=waited,
        limits=(use("Limits(2)", 2), use("Limits(8)", 8)),
    )
    assert advice_on(found) == (
        "raising Limits(8) to 16 would help: waiting for its slots is 60 % of the time; "
        "Limits(2) would then be the next limit (29 % of what is left)"
    )


@pytest.mark.parametrize(
    ("doing", "words"),
    [
        ("key", "more slots for each key"),
        ("breaker", "the service behind it fails"),
        ("backoff", "fewer failures, or a shorter wait in Retry"),
        ("store", "a faster disk or database"),
        ("reducer", "a cheaper reduce, grow or hook"),
        ("question", "waiting for answers to questions"),
        ("loop", "move computing into threads"),
        ("slot", "more slots or children in flight would help"),
        ("rate", "only a higher rate or fewer calls"),
    ],
)
def test_each_constraint_has_its_remedy(doing: str, words: str):
    assert words in advice_on(report({"action": 30.0, doing: 70.0}))


def test_where_nothing_waits_only_the_actions_are_left():
    found = report({"action": 95.0, "slot": 5.0}, peak=8)
    assert advice_on(found) == (
        "the actions themselves take 95 % of the time, and at most 8 ran at once without waiting: "
        "faster actions would help, and higher limits would not"
    )
    one = report({"action": 9.0, "other": 1.0}, peak=1)
    assert "one at a time: faster actions would help, or a fan-out" in advice_on(one)


def test_what_is_missing_is_said():
    assert advice_on(report({})) == ""
    assert explain(report({})).shares == {}

    class Ended:
        run_id = "b"
        report: Report | None = None

    found = explain(Ended())
    assert found.run_id == "b"
    assert found.shares == {}
    assert "there is no report about the run" in found.notes[0]
    assert "note: there is no report" in found.text
    rough = explain(report({"action": 1.0}, samples=3))
    assert rough.notes == ("the run was looked at only 3 times, so the shares are rough",)


def test_the_text_has_a_line_for_each_share():
    root = RunPath(run_id="a")
    child = RunPath(parent=root, step="pages", act="fetch", key="x")
    links = [
        Link(Row(path=root, status="succeeded", has_children=True), "pages", 100.0),
        Link(Row(path=child, status="succeeded"), seconds=12.0),
    ]
    given = report({"action": 20.0, "slot": 60.0, "rate": 20.0}, waited=(RATE, SLOTS))
    found = explained(given, root, links, [links[1].row._replace(elapsed=12.0)])
    assert found.text.splitlines() == [
        "run a took 1 min 40 s, looked at 400 times",
        "    60 %  slot      waiting for a slot",
        "    20 %  action    actions worked",
        "    20 %  rate      waiting for a rate",
        "waited longest",
        "       1 min  slots of Limits(20)",
        '        20 s  rate "openai"',
        "critical path",
        "  1 min 40 s  a",
        "        12 s  pages/fetch 'x'",
        "slowest, with their waiting for limits",
        "        12 s  pages/fetch 'x'",
        f"advice: {found.advice}",
    ]
    assert found.advice == (
        "raising Limits(20) would help: 60 % of the time is waiting for a slot; the rate of openai "
        "would then be the next limit (29 % of what is left)"
    )
    assert explained(given, child).notes == ("the shares are those of the whole root run a",)


def test_children_in_flight_are_named_by_the_limits_of_the_fan_out():
    waited = (Waited(limit="in flight", key="", seconds=90.0, doing="slot"),)
    assert advice_on(report({"slot": 90.0, "action": 10.0}, waited=waited)).startswith(
        "more children in flight, by limits= of the fan-out, would help"
    )
