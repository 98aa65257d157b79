"""The path of a run is written as text and read again."""

from __future__ import annotations

import pytest

from shoal import RunPath
from shoal._events.paths import parse_path, path_text
from shoal.errors import UnknownRun

ROOT = RunPath(run_id="crawl/1")
CHILD = RunPath(parent=ROOT, step="pages", visit=2, act="fetch", key=12)


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


@pytest.mark.parametrize(
    "text",
    [
        *("", "/a", "run/", "run/a:b", "run/a:b:c:d", "run/a:0:c:#x"),
        *("%ff", "run/%ff:0:c:d", "run/a:0:c:%C3", "run/a:²:c:d"),
        *(f"run/a:{'9' * digits}:c:d" for digits in (19, 30, 5000)),
    ],
)
def test_text_that_is_no_path_is_an_unknown_run(text: str):
    with pytest.raises(UnknownRun, match="not the path of a run"):
        parse_path(text)
