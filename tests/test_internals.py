"""The internals name what there is: modules, tests, classes and functions, and pages that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "shoal"
FIRST = ROOT / "docs" / "internals.md"
PAGES = (FIRST, *sorted((ROOT / "docs" / "internals").glob("*.md")), ROOT / "docs" / "decisions.md")

PACKAGES = {
    "concurrency": "_concurrency",
    "drawing": "_drawing",
    "state": "_state",
    "events": "_events",
    "limits": "_limits",
    "graph": "_graph",
    "engine": "_engine",
    "fanout": "_engine/fanout",
    "runtime": "_runtime",
    "executors": "executors",
}
"""The page that lists all modules of a package, in a table whose first column names them."""

FOREIGN = """
    AsyncSQLitePersister AsyncSqliteSaver BaseHTTPMiddleware BaseException Exception FastAPI
    GeneratorExit HTTPException KeyboardInterrupt Location RequestValidationError SQLitePersister
    SecretStr Semaphore SqliteSaver SystemExit TypedDict ChildPaused LangGraph add_signal_handler
    canonicalize_url child_paused on_child_paused handle_exit json_each pg_xact_status
"""
"""Names that belong to another library, or to an example on a page."""

NAME = r"(?<![\w/-])(?:_\w+|[a-z]+(?:_\w+)+|[A-Z][a-z]+[A-Z]\w+)"
"""Words that can only be names of Python: with an underscore, or with a capital inside."""


def spans(page: Path) -> Iterator[str]:
    """Yield what stands between backticks on ``page``, code blocks left out."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    yield from re.findall(r"`([^`\n]+)`", text)


@cache
def words() -> frozenset[str]:
    """Return all names in the source, the tests, the examples and the benchmarks."""
    here = Path(__file__)
    return frozenset(
        word
        for folder in ("src", "tests", "examples", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        if path != here
        for word in (path.stem, *re.findall(r"\w+", path.read_text()))
    )


def is_known(name: str) -> bool:
    """Return whether ``name`` is in the source, or part of a longer name such as a test's."""
    return name in words() or name in FOREIGN.split() or any(name in word for word in words())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_headings_that_exist(page: Path):
    for address in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" in address:
            continue
        path, _, anchor = address.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {address}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), flags=re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}
            assert anchor in slugs, f"{page.name} links to {address}"


def test_the_first_page_names_all_packages_and_few_are_public():
    """A newcomer learns at most a dozen names; the picture of the packages lacks none."""
    there = {
        path.name + "/" * path.is_dir()
        for path in SOURCE.iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    } - {"_version.py"}
    picture = FIRST.read_text().split("```")[1]
    assert {name for name in there if name not in picture} == set()
    assert len([name for name in there if not name.startswith("_")]) <= 12


@pytest.mark.parametrize(("page", "package"), PACKAGES.items())
def test_a_page_lists_each_module_of_its_package(page: str, package: str):
    text = (FIRST.with_suffix("") / f"{page}.md").read_text()
    table = text[text.index("| module |") :].split("\n\n")[0]
    rows = re.findall(r"^\| (`[^|]*`) \|", table, flags=re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`([\w/]+)`", row)}
    there = {path.stem for path in (SOURCE / package).glob("*.py")} - {"__init__"}
    assert there - listed == set(), "modules without a row"
    assert listed - there == set(), "rows without a module"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tests_that_are_named_exist(page: Path):
    for name in spans(page):
        path = re.match(r"((?:\w+/)?test_\w+)(?:\.py)?(?:: (\w+))?$", name)
        if path is None:
            continue
        found = list((ROOT / "tests").rglob(f"{path[1].rpartition('/')[2]}.py"))
        found = [one for one in found if str(one.with_suffix("")).endswith(path[1])]
        assert found, f"{page.name} names the test {name}"
        part = path[2] or ""
        assert part in found[0].read_text(), f"{page.name} names {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_classes_and_functions_that_are_named_exist(page: Path):
    unknown = set[str]()
    for span in spans(page):
        names: list[str] = re.findall(NAME, span)
        for name in names:
            if not is_known(name):
                unknown.add(f"{name} ({span})")
    assert not unknown, f"{page.name} names what is nowhere: {sorted(unknown)}"
