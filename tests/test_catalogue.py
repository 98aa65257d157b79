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


def marks_in(path: Path) -> dict[str, set[str]]:
    """Return the tests that pytest collects from a module, also from classes, with their marks."""
    found: dict[str, set[str]] = {}

    def collect(body: list[ast.stmt], marks: set[str]) -> None:
        for one in body:
            if isinstance(one, ast.Assign) and ast.unparse(one.targets[0]) == "pytestmark":
                marks = marks | marks_of(one.value)
        for one in body:
            if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                mine = marks.union(*map(marks_of, one.decorator_list))
                if isinstance(one, ast.ClassDef):
                    collect(one.body if one.name.startswith("Test") else [], mine)
                elif one.name.startswith("test_"):
                    found[one.name] = mine

    collect(ast.parse(path.read_text("utf-8")).body, set())
    return found


def marks_of(expression: ast.expr) -> set[str]:
    """Return the names of pytest's marks: ``crash`` of `pytest.mark.crash`, or of a list of them.

    Marks of single parameters don't count, because the test is run with the others.
    """
    if isinstance(expression, ast.List | ast.Tuple):
        return set[str]().union(*map(marks_of, expression.elts))
    mark = expression.func if isinstance(expression, ast.Call) else expression
    return {*re.findall(r"^pytest\.mark\.(\w+)$", ast.unparse(mark))}


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


def test_each_test_exists_and_is_run():
    slow: set[str] = set()
    for word, named in rows(section("Tests"))[1:]:
        found = re.match(r"`([\w/]+\.py)::(\w+)`", named)
        assert found is not None, f"{word} names no test"
        path, test = HERE / found[1], found[2]
        assert path.exists(), f"{word} names a file that does not exist: {found[1]}"
        marks = marks_in(path)
        assert test in marks, f"{word} names a test that does not exist: {test}"
        assert not marks[test] & {"skip", "xfail"}, f"{word} names a test that isn't run: {test}"
        slow |= {word} if "slow" in marks[test] else set()
        assert ("`nox -s soak`" in named) == (word in slow), f"{word} says wrongly where it is run"
    # The gate runs `sweep`, `crash` and `services` on one Python, and `slow` on none.
    soaked = [where for where, words in cells().items() if slow.issuperset(words)]
    assert not soaked, f"no test of the gate is named for {soaked}"


def test_each_construct_has_a_program():
    program = (HERE / "constructs.py").read_text("utf-8")
    for construct in CONSTRUCTS:
        assert f'"{construct}": Construct(' in program
