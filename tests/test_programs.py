"""The table of the six programs: what they lose when they are killed, fail or are cancelled."""

from __future__ import annotations

import re
from importlib.util import find_spec

import pytest

from tests.examples.services import absent
from tools.programs import NAMES, PROGRAMS, kinds, measure

IN_FLIGHT = 4
OURS = ("asyncio", "shoal")
TABLE = re.findall(
    r"^\| \[?(\w+)\]?(?:\(#\w+\))?, \**(\w+?)\** \| (\d+) \| (\d+) "
    r"\| (\d+|at most 4|a few) \| (\d+) \| (\d+) \| (\d+) \| (\d) \|$",
    (PROGRAMS / "index.md").read_text("utf-8"),
    re.MULTILINE,
)
ROWS = [(name, kind) for name in NAMES for kind in kinds(name)]


def test_the_table_has_all_of_them() -> None:
    assert [(name.lower(), kind) for name, kind, *_ in TABLE] == ROWS


@pytest.mark.timeout(300)  # seven processes
@pytest.mark.parametrize(
    "number",
    [
        # They take as long as a hundred tests, and the gate has no peers.
        pytest.param(n, marks=pytest.mark.sweep if kind in OURS else pytest.mark.slow)
        for n, (_, kind) in enumerate(ROWS)
    ],
    ids=["-".join(row) for row in ROWS],
)
def test_a_program_loses_what_the_table_says(number: int) -> None:
    name, kind = ROWS[number]
    if kind not in OURS and find_spec(kind) is None:
        absent(kind)
    lines, calls, kill, failure, cancellation, goes_on, right = TABLE[number][2:]
    row = measure(name, kind)
    assert (row.lines, row.calls, row.right) == (int(lines), int(calls), int(right))
    if kind == "shoal":
        assert row.after_kill <= (IN_FLIGHT if kill == "at most 4" else row.calls // 2)
        assert (row.after_failure, row.after_cancellation, row.goes_on) == (0, 0, 0)
        return
    shown = (int(kill), int(failure), int(cancellation), int(goes_on))
    measured = (row.after_kill, row.after_failure, row.after_cancellation, row.goes_on)
    for here, there in zip(measured, shown, strict=True):  # on a busy machine they vary
        if kind == "asyncio":
            assert (here > 0) == (there > 0)
        else:
            assert abs(here - there) <= max(3, there / 2)
