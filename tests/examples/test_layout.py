"""The applications' packages import what their docstrings say."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

BUSINESS = ("examples.scraper.crawl", "examples.scraper.output", "examples.scraper.command")
ABOVE_FETCHING = ("crawl", "frontier", "politeness", "reading", "output", "command")
EXAMPLES = Path(__file__).parents[2] / "examples"


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize(
    ("package", "foreign"),
    [
        ("llm_race/client", ("shoal", "examples.llm_race.race", "examples.llm_race.gateway")),
        ("llm_race/race", ("examples.llm_race.gateway", "examples.llm_race.command")),
        ("llm_race/gateway", ("examples.llm_race.batch",)),
        ("scraper/fetching", tuple(f"examples.scraper.{name}" for name in ABOVE_FETCHING)),
        ("scraper/frontier", ("examples.scraper.politeness", *BUSINESS)),
        ("scraper/reading", ("examples.scraper.frontier", *BUSINESS)),
        ("scraper/politeness", BUSINESS),
        ("scraper/output", ("examples.scraper.command",)),
    ],
)
def test_a_package_knows_nothing_of_others(package: str, foreign: tuple[str, ...]) -> None:
    files = list((EXAMPLES / package).rglob("*.py"))
    assert files
    found = {(path.name, name) for path in files for name in imports(path)}
    assert not [one for one in found if f"{one[1]}.".startswith(tuple(f"{x}." for x in foreign))]


@pytest.mark.parametrize("path", ["scraper/tutorial.py", "llm_race/tutorial.py"])
def test_a_tutorial_is_short_and_needs_no_other_file(path: str) -> None:
    text = (EXAMPLES / path).read_text("utf-8")
    assert len(text.splitlines()) <= 120
    assert not [name for name in imports(EXAMPLES / path) if name.startswith("examples")]


def test_the_bot_is_short() -> None:
    files = (EXAMPLES / "pr_bot").glob("*.py")
    assert sum(len(path.read_text("utf-8").splitlines()) for path in files) <= 250
