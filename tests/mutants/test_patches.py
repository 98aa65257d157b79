"""Each patch still applies, names a test that exists, and breaks an invariant that is listed."""

from __future__ import annotations

import ast
import re
from collections import Counter

import pytest

from .bench import ROOT, SOURCE
from .operators import defects
from .patches import Patch, read

PATCHES = tuple(read())
WITHOUT = {
    "Children are cheap": "a benchmark shows it, `nox -s bench -- map`, and no test",
    "The core imports anyio alone": "a contract of import-linter's shows it, `nox -s layers`",
}
"""Rows of the table of invariants that no patch breaks, and why."""


def invariants() -> list[str]:
    text = (ROOT / "docs" / "internals.md").read_text("utf-8")
    table = text[text.index("| invariant |") :].split("\n\n")[0]
    return re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)[2:]


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.name)
def test_a_patch_applies_and_its_test_exists(patch: Patch):
    for name, text in patch.changed().items():
        assert text != (SOURCE / name).read_text()
        compile(text, name, "exec")
    path, _, test = patch.red.partition("::")
    tree = ast.walk(ast.parse((ROOT / "tests" / path).read_text("utf-8")))
    assert test in {getattr(one, "name", None) for one in tree}


def test_names_are_unique():
    assert max(Counter(patch.name for patch in PATCHES).values()) == 1


def test_each_invariant_is_broken_in_some_way_or_has_a_reason():
    rows = invariants()
    assert len(rows) > 30
    broken = {patch.invariant for patch in PATCHES}
    for start in (*broken, *WITHOUT):
        assert any(row.startswith(start) for row in rows), f"no row of the table: {start}"
    for row in rows:
        starts = [start for start in (*broken, *WITHOUT) if row.startswith(start)]
        assert len(starts) == 1, f"no patch breaks it: {row}"


def test_small_defects_of_all_kinds_are_found_and_applied():
    text = '''
def count(items, most=3):
    """Count some items."""
    n = 0
    for item in items:
        if item is not None and not item.hidden:
            n += 1
            item.counted = True
        if n >= most:
            break
    log(n)
    return n
'''
    found = {(one.before, one.after): one for one in defects("module.py", text)}
    expected = [
        ("is not", "is"), ("and", "or"), ("not ", ""), ("item.counted = True", "pass"),
        (">=", ">"), ("break", "pass"), ("log(n)", "pass"), ("True", "False"), ("0", "1"),
    ]  # fmt: skip
    assert set(expected) <= set(found)
    assert found["0", "1"].apply(text) == text.replace("n = 0", "n = 1")
    assert found[">=", ">"].key == "module.py: count: `>=` -> `>`"
    for one in found.values():
        compile(one.apply(text), "module.py", "exec")
