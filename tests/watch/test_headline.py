"""One sentence says how far a run is, what failed, and what holds it up."""

from __future__ import annotations

import re
from typing import Any

import pytest

from shoal import RunPath
from shoal._events.report_text import parse_report, report_text
from shoal.watch import Headline, LiveRun, LiveStep, Report, StepTally, Waited
from shoal.watch._headline import headline, held_up
from shoal.watch._overview import bars_of
from shoal.watch._words import about, length, pace
from tests.watch.reporting import make_report

ROOT = RunPath(run_id="crawl-1")


def report(spent: dict[Any, float], **more: Any) -> Report:
    return make_report("crawl-1", spent, **more)


BUSY = report(
    {"action": 20.0, "rate": 66.4, "slot": 13.6},
    waited=(
        Waited(limit="Limits(20)", key="", seconds=13.6, doing="slot"),
        Waited(limit="Limits(rate=Rate(5))", key="openai", seconds=66.4, doing="rate"),
    ),
    steps=(LiveStep(path=ROOT, step="pages", visit=0, total=20_000, in_flight=20),),
)
TALLIES = (
    StepTally("pages", 0, "fetch", {"succeeded": 12_000, "failed": 312, "cancelled": 119}, 0),
)


def said(**more: Any) -> Headline:
    given: dict[str, Any] = {
        "status": "running",
        "is_lost": False,
        "why": "",
        "elapsed": 0.0,
        "bars": bars_of(ROOT, TALLIES, BUSY),
        "report": BUSY,
        "age": 0.2,
        "speed": 41.2,
        "costs": {},
    }
    given.update(more)
    return headline(**given)


def test_the_sentence_of_a_run_under_way():
    line = said()
    assert line.text == (
        "12,431 of 20,000 · 312 failed · 119 cancelled · 20 running · 41/s · about 3 min left · "
        'held up by rate "openai" (83 % of waiting)'
    )
    assert [name for name, _ in line.parts] == [
        *("done", "failed", "cancelled", "running", "pace", "left", "held up")
    ]
    assert (line.done, line.total, line.failed, line.running) == (12_431, 20_000, 312, 20)
    assert line.seconds_left == pytest.approx((20_000 - 12_431) / 41.2)
    assert line.held_up_by is not None
    assert line.held_up_by.share == pytest.approx(0.83)
    assert (line.held_up_by.doing, line.held_up_by.key) == ("rate", "openai")


def test_costs_and_the_age_of_an_old_report_are_said():
    line = said(costs={"openai": 1.25, "nothing": 0.0}, age=12.0)
    assert line.text.endswith(" · 1.25 spent at openai · as of 12 s ago")


def test_a_run_that_has_ended_says_how():
    line = said(status="succeeded", elapsed=192.4, report=None, age=3600.0, speed=64.6)
    assert (
        line.text
        == "succeeded after 3 min 12 s · 12,431 of 20,000 · 312 failed · 119 cancelled · 65/s"
    )
    failed = said(status="failed", why="OSError: no space\nat all", report=None, bars=())
    assert failed.text == "failed: OSError: no space"


def test_a_lost_run_is_told_from_a_running_one():
    line = said(is_lost=True, report=None, speed=None, bars=bars_of(ROOT, TALLIES, None))
    assert line.text.startswith("lost: it has no end, and no process executes it · 12,431 done")
    assert line.running == 0
    assert line.seconds_left is None


def test_the_numbers_are_those_of_the_fan_out_under_way():
    tallies = (StepTally("seeds", 0, "find", {"succeeded": 7}, 0), *TALLIES)
    line = said(bars=bars_of(ROOT, tallies, BUSY))
    assert line.step == "pages"
    assert line.text.startswith("pages · 12,431 of 20,000")
    over = said(bars=bars_of(ROOT, tallies, None), status="succeeded", report=None)
    assert over.step == ""
    assert over.done == 12_438


def test_a_fan_out_whose_children_have_not_ended_yet_has_a_bar():
    (bar,) = bars_of(ROOT, (), BUSY)
    assert (bar.step, bar.total, bar.in_flight, bar.done) == ("pages", 20_000, 20, 0)
    other = RunPath(parent=ROOT, step="pages", act="fetch", key="x")
    assert bars_of(other, (), BUSY) == []


def test_children_that_run_again_after_a_resume_have_not_ended():
    now = report(
        {"action": 1.0},
        steps=(LiveStep(path=ROOT, step="pages", visit=0, total=100, ended=70, in_flight=20),),
    )
    tallies = (StepTally("pages", 0, "fetch", {"succeeded": 68, "failed": 4, "cancelled": 21}, 0),)
    (bar,) = bars_of(ROOT, tallies, now, is_resumed=True)
    # Two have succeeded since the report; it has no place for them, so two failures are kept.
    assert (bar.done, bar.cancelled, bar.failed, bar.in_flight) == (70, 0, 2, 20)
    (bar,) = bars_of(ROOT, tallies, now)
    assert (bar.done, bar.cancelled, bar.failed) == (93, 21, 4), "the store is exact otherwise"
    (bar,) = bars_of(ROOT, tallies, now, is_lost=True, is_resumed=True)
    assert (bar.done, bar.cancelled, bar.failed) == (93, 21, 4), "none of them is at work"


def test_losers_of_a_race_that_is_resumed_stay_what_they_are():
    now = report({"action": 1.0}, steps=(LiveStep(path=ROOT, step="ask", visit=0, total=4),))
    tallies = (StepTally("ask", 0, "slow", {"failed": 2, "cancelled": 1}, 3),)
    (bar,) = bars_of(ROOT, tallies, now, is_resumed=True)
    assert (bar.done, bar.lost, bar.failed) == (3, 3, 0)


def test_losers_of_a_race_have_not_failed():
    tallies = (
        StepTally("ask", 0, "fast", {"succeeded": 1}, 0),
        StepTally("ask", 0, "slow", {"failed": 2, "cancelled": 3}, 5),
        StepTally("ask", 1, "slow", {"failed": 2}, 0),
    )
    first, second = bars_of(ROOT, tallies, None)
    assert (first.failed, first.lost, first.done) == (0, 5, 6)
    assert (second.failed, second.lost) == (2, 0)


def test_little_waiting_holds_no_run_up():
    assert held_up(report({"action": 95.0, "slot": 5.0})) is None
    assert held_up(report({})) is None


@pytest.mark.parametrize(
    ("doing", "text"),
    [
        ("slot", "slots of Limits(3)"),
        ("rate", "rate of Limits(3)"),
        ("backoff", "backoff before further attempts"),
        ("store", "the store"),
        ("loop", "a busy event loop"),
        ("question", "open questions"),
    ],
)
def test_each_reason_to_wait_has_words(doing: Any, text: str):
    waited = (Waited(limit="Limits(3)", key="", seconds=50.0),)
    stuck = held_up(report({doing: 50.0, "action": 50.0}, waited=waited))
    assert stuck is not None
    assert stuck.text == text
    assert stuck.share == 1.0


def test_times_have_two_units_and_estimates_one():
    seconds = (0.0, 0.042, 5.26, 42.4, 59.7, 61.0, 192.0, 3600.0, 5400.0, 200_000.0)
    assert [length(one) for one in seconds] == [
        *("0 s", "42 ms", "5.3 s", "42 s", "1 min", "1 min 1 s", "3 min 12 s", "1 h"),
        *("1 h 30 min", "2 d 7 h"),
    ]
    left = (3.0, 17.0, 58.0, 100.0, 184.0, 3500.0, 9000.0, 200_000.0)
    assert [about(one) for one in left] == [
        *("a few seconds", "about 15 s", "about 1 min", "about 1.5 min", "about 3 min"),
        *("about 1 h", "about 2.5 h", "about 2.5 d"),
    ]
    assert [pace(one) for one in (1234.5, 41.2, 4.12, 0.5, 0.0055)] == [
        *("1,234/s", "41/s", "4.1/s", "30/min", "20/h")
    ]
    assert all(re.fullmatch(r"[\d,.]+/(s|min|h)", pace(2.0**n)) for n in range(-20, 20))


def waits(*seconds: float, doing: Any = "rate") -> tuple[Waited, ...]:
    limit = "Limits(rate=Rate(5), by=host)"
    return tuple(
        Waited(limit=limit, key=f"host {at}", seconds=one, doing=doing)
        for at, one in enumerate(seconds)
    )


@pytest.mark.parametrize(
    ("waited", "text"),
    [
        (waits(50.0), 'rate "host 0"'),
        (waits(12.0, 13.0, 12.5, 12.5), "rate of 4 keys"),
        (waits(10.0, 30.0, 5.0, 5.0), 'rate "host 1"'),
        (
            (
                *waits(2.0),
                Waited(
                    limit="Limits(rate=Rate(5), by=host)",
                    key="",
                    seconds=48.0,
                    doing="rate",
                    others=900,
                ),
            ),
            "rate of 901 keys",
        ),
    ],
)
def test_a_key_is_named_if_most_waiting_is_for_it(waited: tuple[Waited, ...], text: str):
    stuck = held_up(report({"rate": 50.0, "action": 50.0}, waited=waited))
    assert stuck is not None
    assert stuck.text == text


def test_two_rates_share_the_waiting():
    waited = (
        *waits(30.0),
        Waited(limit="Limits(rate=Rate(9))", key="", seconds=20.0, doing="rate"),
    )
    stuck = held_up(report({"rate": 50.0, "action": 50.0}, waited=waited))
    assert stuck is not None
    assert stuck.sentence == 'held up by rate "host 0" (60 % of waiting)'


def test_a_few_milliseconds_hold_no_run_up():
    assert held_up(report({"store": 0.04, "action": 0.01})) is None


def test_a_child_is_held_up_by_its_own_waiting():
    child = RunPath(parent=ROOT, step="pages", act="fetch", key="x")
    other = RunPath(parent=ROOT, step="pages", act="fetch", key="y")
    step = LiveStep(path=other, step="parts", visit=0, at={"part": {"backoff": 3, "action": 1}})
    run = LiveRun(path=child, step="fetch", doing="rate", since=3.0, age=4.0, limit_key="openai")
    found = report(dict(BUSY.spent), waited=BUSY.waited, longest=(run,), steps=(step,))
    line = said(child=child, report=found)
    assert line.text.endswith('held up by rate "openai" (100 % of waiting)')
    line = said(child=other, report=found)
    assert line.text.endswith("held up by backoff before further attempts (100 % of waiting)")
    works = RunPath(parent=ROOT, step="pages", act="fetch", key="z")
    assert said(child=works, report=found).held_up_by is None


def test_children_that_wait_for_answers_are_not_done():
    tallies = (StepTally("ask", 0, "ask", {"succeeded": 3, "halted": 1, "cancelled": 4}, 0),)
    line = said(status="halted", bars=bars_of(ROOT, tallies, None), report=None, speed=None)
    assert line.text == (
        "halted: it waits for answers · 7 done · 4 cancelled · 1 waiting for an answer"
    )


def test_children_of_a_drained_run_wait_for_no_answer():
    tallies = (StepTally("ask", 0, "ask", {"succeeded": 3, "halted": 1}, 0),)
    bars = bars_of(ROOT, tallies, None)
    line = said(status="halted", why="enough", bars=bars, report=None, speed=None)
    assert line.text == "halted: enough · 3 done · 1 halted"


def test_a_run_that_starts_nothing_more_says_so():
    found = report({"action": 1.0}, draining="the week is over")
    assert said(report=found).text.startswith("starts nothing more: the week is over · 12,431 of")


def test_the_leader_of_a_race_is_named():
    race = LiveStep(path=ROOT, step="race", visit=0, in_flight=2, leader="gpt")
    found = parse_report(report_text(report({"action": 1.0}, steps=(race,))))
    line = said(bars=bars_of(ROOT, (), found), report=found, speed=None)
    assert "gpt leads" in line.text


def test_losers_of_a_race_are_not_told_as_cancelled():
    tallies = (StepTally("ask", 0, "slow", {"failed": 2, "cancelled": 3}, 5),)
    (bar,) = bars_of(ROOT, tallies, None)
    assert bar.cancelled == 0
    tallies = (StepTally("ask", 0, "slow", {"failed": 2, "cancelled": 3}, 3),)
    (bar,) = bars_of(ROOT, tallies, None)
    assert bar.cancelled == 2


def test_a_lost_run_has_the_total_and_the_children_of_its_last_report():
    tallies = (StepTally("pages", 0, "fetch", {"succeeded": 380, "running": 3}, 0),)
    step = LiveStep(path=ROOT, step="pages", visit=0, total=800, ended=377, in_flight=20)
    bars = bars_of(ROOT, tallies, report({"action": 9.0}, steps=(step,)), is_lost=True)
    (bar,) = bars
    assert (bar.total, bar.done, bar.gone, bar.in_flight) == (800, 380, 17, 0)
    line = said(is_lost=True, report=None, speed=None, bars=bars)
    assert line.text == ("lost: it has no end, and no process executes it · 380 of 800 · 17 lost")
