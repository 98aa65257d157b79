"""The programs of the pages about watching, as they stand there."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import anyio
import pytest

from shoal import Application, SQLiteStore, action
from tests.watch.ui.clients import client_of

DOCS = Path(__file__).parents[2] / "docs"


@action(writes=["n"])
async def one() -> int:
    return 1


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


def blocks_of(name: str) -> list[str]:
    text = (DOCS / f"{name}.md").read_text("utf-8")
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


WHOLE = [block for block in blocks_of("watching") if "#> " in block]


@pytest.mark.parametrize("block", WHOLE, ids=lambda block: block.count("\n"))
def test_whole_programs_print_what_the_page_shows(block: str, capsys: pytest.CaptureFixture[str]):
    exec(compile(block, "watching", "exec", dont_inherit=True), {"__name__": "page"})
    shown = [line.removeprefix("#> ") for line in block.splitlines() if line.startswith("#> ")]
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert printed == shown


@pytest.mark.parametrize("name", ["watching", "ui"])
def test_parts_of_programs_are_python(name: str):
    for block in blocks_of(name):
        compile(block, name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


def test_the_page_is_mounted_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Application(one, store=SQLiteStore("runs.db")).run_sync({}, id="a")
    [block] = [block for block in blocks_of("ui") if "FastAPI" in block]
    names: dict[str, Any] = {"__name__": "page"}
    exec(compile(block, "ui", "exec", dont_inherit=True), names)

    async def look() -> None:
        service = names["service"]
        async with client_of(service, token=None, base="http://intern.example") as client:
            page = await client.get("/shoal/runs/a")
            assert (page.status_code, "succeeded" in page.text) == (200, True)
            assert '<form method="post"' not in page.text  # there is no token
        async with client_of(service, token=None, base="http://other.example") as client:
            assert (await client.get("/shoal/runs/a")).status_code == 400

    anyio.run(look)


def test_the_picture_on_the_page_is_the_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "drawing.md").read_text("utf-8")
    block = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)[0]
    exec(compile(block, "drawing", "exec", dont_inherit=True), {"__name__": "page"})
    assert (tmp_path / "digest.svg").read_text() == (DOCS / "images" / "digest.svg").read_text()
