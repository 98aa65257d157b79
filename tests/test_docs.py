"""The pages of the documentation: their programs do what they show, and their links lead somewhere.

A block of Python on a page is executed, and prints its ``#>`` lines. Comments above it change that:

- ``<!-- goes on -->``: it continues the block of Python before it.
- ``<!-- needs: MODULE -->``: it is skipped where the module is not installed.
- ``<!-- not run: REASON -->``: it is only compiled.
"""

from __future__ import annotations

import importlib.util
import re
import sys
import tomllib
from ast import PyCF_ALLOW_TOP_LEVEL_AWAIT
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import shoal.errors
from benchmarks import scaling
from tools.pages import DOCS, LISTED, ROOT, Block, blocks

PAGES = sorted(DOCS.rglob("*.md"))
NAMES = {str(page.relative_to(DOCS)): page for page in PAGES}
LANGUAGES = {"python", "text", "console", "sh", "sql", "toml", "json", "html"}
EXCUSED = {
    "ui.md": "tests/watch/test_watching_page.py mounts the page as it says",
    "watching.md": "parts of programs, which tests/watch/test_watching_page.py compiles",
}
"""Pages whose blocks of Python are tested elsewhere."""

ONE_PROGRAM = {"drawing.md", "telemetry.md"}
"""Pages on which each block continues the one before."""


def chains() -> Iterator[list[Block]]:
    """Yield the programs of all pages: each a block of Python, with those that continue it."""
    for name, page in NAMES.items():
        if name in EXCUSED:
            continue
        chain: list[Block] = []
        for block in blocks(page):
            if block.language != "python" or block.title:
                continue  # listings are run by test_tutorial and test_programs
            if block.mark("goes on") is not None or (chain and name in ONE_PROGRAM):
                assert chain, f"{name}:{block.line}: there is no block to continue"
                chain.append(block)
                continue
            if chain:
                yield chain
            chain = [block]
        if chain:
            yield chain


def place(block: Block) -> str:
    return f"{block.page.relative_to(ROOT)}:{block.line}"


CHAINS = list(chains())


@pytest.mark.parametrize("chain", CHAINS, ids=[place(chain[0]) for chain in CHAINS])
def test_a_program_prints_what_the_page_shows(
    chain: list[Block],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # for the files they make
    module = "page"
    monkeypatch.setitem(sys.modules, module, type(sys)(module))  # where pickles and models look
    namespace: dict[str, Any] = sys.modules[module].__dict__
    del namespace["__spec__"]  # it is None: Python 3.15 warns of that in tracebacks
    for block in chain:
        body = "\n" * block.line + block.body  # so that errors name the line of the page
        if block.mark("not run"):
            compile(body, str(block.page), "exec", PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
            continue
        code = compile(body, str(block.page), "exec", dont_inherit=True)
        needed = block.mark("needs")
        if needed and importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed")
        exec(code, namespace)  # that is the point
        lines = block.body.splitlines()
        shown = [
            line.removeprefix("#>").removeprefix(" ") for line in lines if line.startswith("#>")
        ]
        assert capsys.readouterr().out.splitlines() == shown, place(block)


@pytest.mark.parametrize("name", NAMES)
def test_blocks_are_of_known_languages(name: str) -> None:
    assert {block.language for block in blocks(NAMES[name])} <= LANGUAGES
    text = NAMES[name].read_text("utf-8")
    assert len(re.findall(r"^```", text, re.MULTILINE)) == 2 * len(list(blocks(NAMES[name])))


# -- links -----------------------------------------------------------------------------------------


def anchor(heading: str) -> str:
    """Return what Python-Markdown makes of a heading."""
    plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def anchors(page: Path) -> set[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return {anchor(one) for one in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


def links(page: Path) -> Iterator[tuple[str, str]]:
    """Yield the targets and anchors of a page's links to other files."""
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`\n]*`", "", text)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http://", "https://", "mailto:")):
            path, _, fragment = target.partition("#")
            yield path, fragment


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *PAGES], ids=lambda page: str(page.relative_to(ROOT))
)
def test_links_lead_somewhere(page: Path) -> None:
    for path, fragment in links(page):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{path} does not exist"
        if page != ROOT / "README.md" and path:
            assert target.is_relative_to(DOCS), f"the site does not have {path}"
        if fragment and target.suffix == ".md":
            assert fragment in anchors(target), f"{path or page.name} has no heading {fragment}"


# -- figures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", scaling.tables())
def test_the_page_of_scaling_shows_the_tables_of_its_program(name: str) -> None:
    assert "\n".join(scaling.tables()[name]) in NAMES["scaling.md"].read_text("utf-8")


def test_a_server_that_is_too_slow_bounds_all_processes() -> None:
    quick = scaling.simulate(scaling.MEASURED, 0.0, "PostgreSQL", servers=1)
    assert quick.bound == "the server"
    assert quick.seconds >= scaling.ITEMS * scaling.MEASURED.server
    heavy = scaling.simulate(scaling.MEASURED, 0.05, "PostgreSQL", servers=1)
    assert heavy.bound == "cores"
    assert heavy.seconds >= scaling.ITEMS * 0.05 / scaling.CORES
    assert 0 < heavy.repeated < scaling.ITEMS / 10_000


# -- completeness ----------------------------------------------------------------------------------


def navigation() -> list[str]:
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    nav = text.partition("\nnav:\n")[2].partition("\ntheme:")[0]
    return re.findall(r"([\w./-]+\.md)$", nav, re.MULTILINE)


def test_each_page_is_in_the_navigation_once() -> None:
    assert sorted(navigation()) == sorted(NAMES)


def test_llms_txt_lists_the_pages_for_users() -> None:
    text = (DOCS / "llms.txt").read_text("utf-8")
    listed = re.findall(r"\]\(([\w./-]+\.md)\)", text)
    for_users = [one for one in navigation() if not one.startswith(("internals", "decisions"))]
    assert sorted(listed) == sorted(for_users)


def test_the_reference_has_each_public_name_once() -> None:
    import shoal.burr
    import shoal.events
    import shoal.fastapi
    import shoal.rates
    import shoal.stores
    import shoal.testing
    import shoal.types
    import shoal.watch

    found = [
        name
        for page in (DOCS / "reference").glob("*.md")
        for name in re.findall(r"^::: ([\w.]+)$", page.read_text("utf-8"), re.MULTILINE)
    ]
    assert len(found) == len(set(found))
    modules = (shoal, shoal.events, shoal.types, shoal.stores, shoal.rates, shoal.watch)
    modules = (*modules, shoal.errors, shoal.testing, shoal.fastapi, shoal.burr)
    whole = {name for name in found if name in sys.modules}
    for module in modules:
        if module.__name__ in whole:
            continue
        missing = [
            name
            for name in module.__all__
            if not name.startswith("__") and f"{module.__name__}.{name}" not in found
        ]
        assert not [
            name
            for name in missing
            if not (module is shoal and name in shoal.errors.__all__)  # in the reference of errors
        ], module.__name__


def test_the_catalogue_has_each_error_once() -> None:
    text = (DOCS / "errors.md").read_text("utf-8")
    headings = re.findall(r"^### (\w+)$", text, re.MULTILINE)
    assert sorted(headings) == sorted(shoal.errors.__all__)
    entries = re.split(r"^### \w+$", text, flags=re.MULTILINE)[1:]
    for name, entry in zip(headings, entries, strict=True):
        assert "**When.**" in entry, name
        assert "**What to do.**" in entry, name


def test_the_quickstart_names_extras_that_exist() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras = set(tomllib.load(file)["project"]["optional-dependencies"])
    for page in (ROOT / "README.md", *PAGES):
        for named in re.findall(r"shoal\[([\w,]+)\]", page.read_text("utf-8")):
            assert set(named.split(",")) <= extras, f"{page.name}: {named}"


def test_each_extra_is_in_the_reference_and_has_code_behind_it() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        extras: dict[str, list[str]] = tomllib.load(file)["project"]["optional-dependencies"]
    text = (DOCS / "reference/index.md").read_text("utf-8")
    listed = re.findall(r"^\| `shoal\[(\w+)\]` \|", text, re.MULTILINE)
    assert len(listed) == len(set(listed))
    # The extra of the executors on Ray is there before them.
    assert set(listed) | {"ray"} == {*extras, "ray"}
    code = "\n".join(path.read_text("utf-8") for path in (ROOT / "src").rglob("*.py"))
    for extra in set(listed) - {"examples"}:
        for requirement in extras[extra]:
            (package,) = re.findall(r"^[\w-]+", requirement)
            names = {"opentelemetry-api": "opentelemetry", "apache-burr": "burr"}
            module = names.get(package, package)
            assert re.search(rf"(from |import |\"){module}\b", code), requirement


@pytest.mark.parametrize("folder", LISTED, ids=lambda folder: folder.name)
def test_all_listings_are_shown(folder: Path) -> None:
    shown = {block.title for page in folder.glob("*.md") for block in blocks(page) if block.title}
    assert shown == {path.name for path in folder.glob("*.py")}
