"""Reports are written as JSON and read again, also by other versions of shoal."""

from __future__ import annotations

import json

import pytest

from shoal import RunPath
from shoal._events.paths import parse_path, path_text
from shoal._events.report import LimitUse, LiveRun, LiveStep, Report, Waited
from shoal._events.report_text import parse_report, report_text
from shoal.errors import UnknownRun

ROOT = RunPath(run_id="crawl/1")
CHILD = RunPath(parent=ROOT, step="pages", visit=2, act="fetch", key=12)

FULL = Report(
    run_id="crawl/1",
    seconds=12.5,
    samples=50,
    every=0.25,
    spent={"action": 10.0, "rate": 2.5},
    waited=(Waited(limit="Limits(rate=...)", key="openai", seconds=2.5),),
    steps=(
        LiveStep(
            path=ROOT, step="pages", visit=2, total=20, at={"fetch": {"action": 3, "rate": 1}}
        ),
    ),
    longest=(LiveRun(path=CHILD, step="fetch", doing="rate", since=0.5, age=3.0, limit="rate"),),
    limits=(
        LimitUse(owner="app", limits="Limits(20)", in_use=3, slots=20, waiting=1, holders=("a",)),
    ),
    in_flight=4,
    costs={"openai": 1.25},
)


def test_a_report_is_what_was_written():
    again = parse_report(report_text(FULL))
    assert again == FULL
    assert again.longest[0].path.key == 12
    bare = Report(run_id="a", seconds=0.0, samples=0, every=0.05, spent={})
    assert parse_report(report_text(bare)) == bare
    assert len(report_text(bare)) < 80, "defaults are left out"


def test_fields_of_another_version_do_no_harm():
    data = json.loads(report_text(FULL))
    data["weather"] = "fine"
    data["longest"][0]["mood"] = 3
    del data["steps"]
    again = parse_report(json.dumps(data))
    assert again.steps == ()
    assert again.longest == FULL.longest


@pytest.mark.parametrize(
    "key", ["a", "a:b/c%#?&", "", "#5", "ü", "\ud800", 12, -3, 10**5000, "\n", "a b"], ids=range(11)
)
def test_a_path_is_text_and_back(key: str | int):
    path = RunPath(parent=CHILD, step="a/b", visit=3, act="re:ad", key=key)
    text = path_text(path)
    assert parse_path(text) == path
    assert parse_path(text).key == key
    assert text.isascii()
    assert text.isprintable()
    assert " " not in text


@pytest.mark.parametrize("text", ["", "/a", "run/", "run/a:b", "run/a:b:c:d", "run/a:0:c:#x"])
def test_text_that_is_no_path_is_an_unknown_run(text: str):
    with pytest.raises(UnknownRun, match="not the path of a run"):
        parse_path(text)
