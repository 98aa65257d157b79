"""A report is carried between processes as text."""

from __future__ import annotations

import json

import pytest

from shoal._events.identity import RunPath
from shoal._events.report import LimitUse, LiveRun, LiveStep, Report, Waited
from shoal._events.report_text import parse_report, report_text

ROOT = RunPath(run_id="r1", act="crawl")
CHILD = RunPath(act="fetch", parent=ROOT, step="pages", visit=2, key=7)


def test_a_report_is_the_same_after_it_was_written_and_read() -> None:
    report = Report(
        run_id="r1",
        seconds=2.5,
        samples=10,
        every=0.25,
        spent={"action": 1.5, "rate": 1.0},
        waited=(Waited(limit="Limits(rate=Rate(1))", key="openai", seconds=1.0),),
        steps=(
            LiveStep(
                path=ROOT,
                step="pages",
                visit=2,
                title="pages",
                total=20,
                ended=3,
                in_flight=2,
                at={"fetch": {"action": 1, "backoff": 1}},
            ),
        ),
        longest=(LiveRun(path=CHILD, step="fetch", doing="backoff", since=1, age=2, next_in=0.5),),
        limits=(LimitUse(owner="runtime", limits="Limits(2)", in_use=2, slots=2, waiting=1),),
        in_flight=2,
        peak=2,
        is_over=True,
        costs={"openai": 3.5},
    )
    again = parse_report(report_text(report))
    assert again == report
    assert again.longest[0].path.key == 7
    assert again.longest[0].path.id == CHILD.id
    assert again.steps[0].path.root == ROOT


def test_keys_that_are_texts_and_keys_that_are_numbers_stay_apart() -> None:
    for key in (1, "1", 10**5000, -(10**5000), 1 << 64):
        path = RunPath(act="a", parent=ROOT, step="s", key=key)
        run = LiveRun(path=path, step="a", doing="action", since=0, age=0)
        report = Report(run_id="r1", seconds=0, samples=1, every=1, spent={}, longest=(run,))
        assert parse_report(report_text(report)).longest[0].path.key == key
        assert type(parse_report(report_text(report)).longest[0].path.key) is type(key)


def test_attributes_of_a_later_version_are_ignored() -> None:
    report = Report(run_id="r1", seconds=1, samples=1, every=1, spent={"action": 1})
    data = json.loads(report_text(report)) | {"weather": "fine"}
    assert parse_report(json.dumps(data)) == report


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"run_id": "r1", "steps": [{}]}', "3"])
def test_a_text_that_is_no_report_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_report(text)
