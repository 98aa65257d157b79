"""The catalogue of interruptions has every cell, and names tests that exist."""

from __future__ import annotations

import ast
import re
from itertools import product
from pathlib import Path

HERE = Path(__file__).parent
TEXT = (HERE / "catalogue.md").read_text("utf-8")

CONSTRUCTS = ("map", "nested map", "race", "frontier", "stream", "question", "hedge", "budget")
PLACES = (
    *("pulling the source", "admission", "child body", "hand-over", "reduce", "decision", "save"),
    *("publish", "loser's cleanup", "finish", "close", "executor's send and receive"),
)
INTERRUPTIONS = (
    *("native cancel", "scope cancel", "exception", "hang", "late exception"),
    *("KeyboardInterrupt", "kill"),
)


def section(name: str) -> str:
    """Return what stands below a heading, up to the next one."""
    (text,) = re.findall(rf"^## {name}\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    return text


def rows(text: str) -> list[list[str]]:
    """Return the cells of a table, without the line below its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [cells[0], *cells[2:]]


def cells() -> dict[tuple[str, str, str], list[str]]:
    """Return the words of each cell, by construct, place and interruption."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for construct in CONSTRUCTS:
        head, *table = rows(section(construct.capitalize()))
        for place, *words in table:
            for interruption, cell in zip(head[1:], words, strict=True):
                found[construct, place, interruption] = cell.split()
    return found


def names_in(path: Path) -> set[str]:
    """Return the names of the test functions in a module, also of those in classes."""
    tree = ast.walk(ast.parse(path.read_text("utf-8")))
    return {one.name for one in tree if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_no_cell_is_missing():
    found = cells()
    assert set(found) == set(product(CONSTRUCTS, PLACES, INTERRUPTIONS))
    assert all(found.values()), [where for where, words in found.items() if not words]


def test_each_word_is_explained_and_each_explanation_is_needed():
    used = {word for words in cells().values() for word in words}
    tests = {word for word, _ in rows(section("Tests"))[1:]}
    reasons = set(re.findall(r"^- \*\*(\w)\*\*: ", section("Reasons"), re.MULTILINE))
    assert used == tests | reasons


def test_a_reason_stands_alone():
    for where, words in cells().items():
        assert len(words) == 1 or all(len(word) > 1 for word in words), where


def test_each_test_exists():
    for word, named in rows(section("Tests"))[1:]:
        found = re.match(r"`([\w/]+\.py)::(\w+)`", named)
        assert found is not None, f"{word} names no test"
        path, test = HERE / found[1], found[2]
        assert path.exists(), f"{word} names a file that does not exist: {found[1]}"
        assert test in names_in(path), f"{word} names a test that does not exist: {test}"


def test_each_construct_has_a_program():
    program = (HERE / "constructs.py").read_text("utf-8")
    for construct in CONSTRUCTS:
        assert f'"{construct}": Construct(' in program
