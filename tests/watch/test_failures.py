"""Failures are grouped by what they say, not by whom they are about."""

from __future__ import annotations

import pytest

from shoal import RunPath
from shoal.watch import Row
from shoal.watch._failures import MOST_GROUPS, grouped, normalised

ROOT = RunPath(run_id="a")


def row(key: int, error: str, failed_step: str = "", step: str = "pages") -> Row:
    return Row(
        path=RunPath(parent=ROOT, step=step, act="fetch", key=key),
        status="failed",
        error_type=error.partition(":")[0],
        error=error,
        failed_step=failed_step,
    )


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("no page 17 of 1,234.5", "no page <n> of <n>"),
        ("waited 1.5s, -3 left", "waited <n>s, -<n> left"),
        ("no 'a b' in \"c\" or `d`", "no <text> in <text> or <text>"),
        ("it can't, and won't", "it can't, and won't"),
        ("at 0x7f3a00", "at <hex>"),
        ("commit deadbeef12 is bad, deadbeef is a word", "commit <hex> is bad, deadbeef is a word"),
        ("id 123E4567-e89b-12d3-a456-426614174000!", "id <id>!"),
        ("GET https://a.example/items/17?page=2: 503", "GET https://a.example/<path>: <n>"),
        ("see http://b.example/ or http://b.example.", "see http://b.example or http://b.example."),
        ("postgresql://user:word@db.example/x is down", "postgresql://db.example/<path> is down"),
        ("two\n  lines", "two lines"),
    ],
)
def test_what_varies_is_replaced(message: str, expected: str):
    assert normalised(message) == expected


def test_failures_are_grouped_the_largest_group_first():
    rows = [
        row(1, "LookupError: no page 1"),
        row(2, "TimeoutError: after 5 s", failed_step="parse"),
        row(3, "TimeoutError: after 7 s", failed_step="parse"),
        row(4, "TimeoutError: after 7 s"),
    ]
    found = grouped(rows, 9)
    assert [(one.step, one.error_type, one.message, one.count) for one in found.groups] == [
        ("pages/parse", "TimeoutError", "after <n> s", 2),
        ("pages", "LookupError", "no page 1", 1),
        ("pages", "TimeoutError", "after 7 s", 1),
    ]
    assert found.groups[0].example.path.key == 2, "the first of the group"
    assert (found.counted, found.total, found.omitted) == (4, 9, 0)


def messages(*errors: str) -> list[tuple[int, str]]:
    rows = [row(at, error) for at, error in enumerate(errors)]
    return [(group.count, group.message) for group in grouped(rows).groups]


def test_the_parts_that_all_members_share_are_shown():
    timeouts = [f"StepTimeout: step 'fetch' of {at} took longer than 30 s" for at in range(3)]
    assert messages(*timeouts) == [(3, "step 'fetch' of <n> took longer than 30 s")]
    long = "x" * 100
    assert messages(f"E: no '{long}' at 1") == [(1, "no <text> at 1")]


def test_quotes_around_a_whole_message_hide_nothing():
    found = messages(
        *(f"KeyError: 'no <h1> in https://a.example/{at}'" for at in range(3)),
        "KeyError: 'no title in https://a.example/1'",
        "KeyError: 'name'",
    )
    assert found == [
        (3, "no <h1> in https://a.example/<path>"),
        (1, "no title in https://a.example/1"),
        (1, "'name'"),
    ]


def test_the_same_error_of_several_hosts_is_one_group():
    hosts = [f"OSError: GET https://me:word@{host}.example/x: 503" for host in "abcd"]
    assert messages(*hosts) == [(4, "GET https://<host>/x: 503")]
    assert messages(hosts[0], hosts[0]) == [(2, "GET https://a.example/x: 503")]


def test_quoted_texts_that_many_members_share_tell_groups_apart():
    few = ["KeyError: 'name'"] * 5 + ["KeyError: 'id'"]
    assert messages(*few) == [(5, "'name'"), (1, "'id'")]
    assert messages(*(f"KeyError: 'name{at}'" for at in range(9))) == [(9, "<text>")]


def test_groups_that_are_left_out_are_counted():
    rows = [row(at, f"Error{at}: x") for at in range(MOST_GROUPS + 3)]
    found = grouped(rows)
    assert len(found.groups) == MOST_GROUPS
    assert found.omitted == 3
    assert found.total == MOST_GROUPS + 3
