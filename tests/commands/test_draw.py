"""The command `shoal draw`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from shoal.__main__ import main
from shoal.watch import draw

PROGRAM = """
from shoal import Application, action, fan_out

@action(reads=["url"], writes=["page"])
async def fetch(url: str) -> str:
    return url

pages = fan_out(fetch, over="urls", item="url", into="pages")
app = Application(pages, name="app")

def make_app():
    return app
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with modules, in which the command is given."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", {**sys.modules})
    (tmp_path / "drawn.py").write_text(PROGRAM)
    (tmp_path / "empty.py").write_text("x = 1")
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "needy.py").write_text("import nowhere_to_be_found")
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert main(["draw", *arguments]) == code
    out, err = capsys.readouterr()
    return err if code else out


@pytest.mark.parametrize("what", ["drawn:app", "drawn:pages"])
@pytest.mark.parametrize("language", ["mermaid", "dot", "svg"])
def test_it_draws_applications_and_acts(what: str, language: str, capsys: Any):
    found = said(capsys, what, "--format", language)
    module: Any = sys.modules["drawn"]
    assert found == getattr(draw, language)(module.pages)


def test_it_draws_mermaid_unless_told(capsys: Any):
    assert "flowchart" in said(capsys, "drawn:app")
    assert "1 act inside" in said(capsys, "drawn:app", "--depth", "0")


@pytest.mark.parametrize(
    ("name", "begin"),
    [
        ("a.svg", "<svg"),
        ("a.SVG", "<svg"),
        ("a.dot", "digraph"),
        ("a.gv", "digraph"),
        ("a.x", "%%"),
    ],
)
def test_the_name_of_the_file_gives_the_format(name: str, begin: str, folder: Path, capsys: Any):
    assert said(capsys, "drawn:app", "-o", name) == ""
    assert (folder / name).read_text().startswith(begin)
    said(capsys, "drawn:app", "-o", name, "--format", "dot")
    assert (folder / name).read_text().startswith("digraph")


def test_the_output_is_utf_8_whatever_the_terminal(capfdbinary: Any, monkeypatch: Any):
    monkeypatch.setattr(sys, "stdout", open(1, "w", encoding="ascii", closefd=False))  # noqa: SIM115
    assert main(["draw", "drawn:app"]) == 0
    assert b"over urls" in capfdbinary.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["nowhere:app"], "there is no module 'nowhere', looking from "),
        (["drawn.app:app"], "there is no module 'drawn.app', looking from "),
        (["drawn:ap"], "module drawn has no 'ap'; did you mean 'app'?; what can be drawn in it: "),
        (["drawn:nothing"], "what can be drawn in it: fetch, pages, app"),
        (["drawn"], "give the name in it too: drawn:fetch, drawn:pages, drawn:app"),
        (["empty"], "give the name in it too: empty:NAME, but nothing in it can be drawn"),
        (["drawn:make_app"], "call it in a module of yours, and name the result"),
        (["empty:x"], "empty:x is neither an application nor a graph nor another act, but 1"),
        (["drawn.py:app"], "drawn.py is a file; give the module's name: drawn:app"),
        (["./a/b.py"], "give the module's name: a.b:app"),
        (["a b:app"], "'a b:app' names no module; write MODULE:NAME, such as myproject.app:app"),
        ([":app"], "':app' names no module"),
        (["broken:app"], "importing broken fails:"),
        (["broken:app"], "ZeroDivisionError"),
        (["needy:app"], "module needy needs 'nowhere_to_be_found', which isn't installed here"),
        (["drawn:app", "-o", "no/such/folder.svg"], "no/such/folder.svg can't be written: No such"),
    ],
)
def test_mistakes_are_explained(arguments: list[str], why: str, capsys: Any):
    assert why in said(capsys, *arguments, code=2)


def test_a_depth_is_a_number(capsys: Any):
    with pytest.raises(SystemExit):
        main(["draw", "drawn:app", "--depth", "x"])
    assert "'x' is not a whole number" in capsys.readouterr().err
