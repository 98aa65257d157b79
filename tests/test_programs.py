"""The table of the six programs: what they lose when they are killed, fail or are cancelled."""

from __future__ import annotations

import re

import pytest

from tools.programs import KINDS, NAMES, PROGRAMS, measure

IN_FLIGHT = 4
TABLE = re.findall(
    r"^\| \[?(\w+)\]?(?:\(#\w+\))?, \**(asyncio|shoal)\** \| (\d+) \| (\d+) "
    r"\| (\d+|at most 4|a few) \| (\d+) \| (\d+) \| (\d+) \|$",
    (PROGRAMS / "index.md").read_text("utf-8"),
    re.MULTILINE,
)


def test_the_table_has_all_of_them() -> None:
    rows = [(name.lower(), kind) for name, kind, *_ in TABLE]
    assert rows == [(name, kind) for name in NAMES for kind in KINDS]


@pytest.mark.sweep  # not all places, but as long as a hundred other tests
@pytest.mark.timeout(300)  # seven processes
@pytest.mark.parametrize(
    "number", range(len(TABLE)), ids=lambda n: f"{NAMES[n // 2]}-{KINDS[n % 2]}"
)
def test_a_program_loses_what_the_table_says(number: int) -> None:
    _, kind, *cells = TABLE[number]
    lines, calls, kill, failure, cancellation, goes_on = cells
    row = measure(NAMES[number // 2], kind)
    assert (row.lines, row.calls) == (int(lines), int(calls))
    if kind == "shoal":
        assert row.after_kill <= (IN_FLIGHT if kill == "at most 4" else row.calls // 2)
        assert (row.after_failure, row.after_cancellation, row.goes_on) == (0, 0, 0)
        return
    shown = (int(kill), int(failure), int(cancellation), int(goes_on))
    measured = (row.after_kill, row.after_failure, row.after_cancellation, row.goes_on)
    for here, there in zip(measured, shown, strict=True):  # on a busy machine they vary
        assert here >= there / 2
        assert (here > 0) == (there > 0)
