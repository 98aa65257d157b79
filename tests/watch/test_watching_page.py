"""The programs of the pages about drawings and telemetry, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize("name", ["drawing", "telemetry"])
def test_a_pages_programs_print_what_it_shows(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)  # for the files they make
    text = (DOCS / f"{name}.md").read_text("utf-8")
    blocks: list[str] = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    assert blocks
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks:  # later ones go on where earlier ones stopped
        exec(compile(block, name, "exec", dont_inherit=True), names)
    shown = [
        line.removeprefix("#> ")
        for block in blocks
        for line in block.splitlines()
        if line.startswith("#> ")
    ]
    assert capsys.readouterr().out.splitlines() == shown


def test_the_picture_on_the_page_is_the_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "drawing.md").read_text("utf-8")
    block = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)[0]
    exec(compile(block, "drawing", "exec", dont_inherit=True), {"__name__": "page"})
    assert (tmp_path / "digest.svg").read_text() == (DOCS / "images" / "digest.svg").read_text()
