"""The programs of the page about watching do what it shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "watching.md"
PROGRAMS = [
    block
    for block in re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    if "#> " in block  # the others are parts of programs
]


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
def test_prints_what_the_page_shows(program: str, capsys: pytest.CaptureFixture[str]):
    shown = [line.removeprefix("#> ") for line in program.splitlines() if line.startswith("#> ")]
    exec(compile(program, str(PAGE), "exec", dont_inherit=True), {"__name__": "page"})
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == shown


def test_it_has_programs():
    assert len(PROGRAMS) >= 2
