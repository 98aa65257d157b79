"""The examples in docstrings do what they show."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
from types import ModuleType

import pytest

import shoal
import shoal.fastapi
import shoal.testing

MODULES = [
    shoal.__name__,
    *(module.name for module in pkgutil.walk_packages(shoal.__path__, f"{shoal.__name__}.")),
]
NAMES = {
    name: getattr(home, name)
    for home in (shoal, shoal.testing, shoal.fastapi)
    for name in home.__all__
}
"""What examples use without importing it; other names they import from their homes."""


def found_in(module: ModuleType) -> list[doctest.DocTest]:
    """Find what is written in a module, those classes included that name a public one as theirs."""
    finder, names = doctest.DocTestFinder(), {**NAMES, **vars(module)}
    tests = finder.find(module, globs=names)
    for node in ast.parse(inspect.getsource(module)).body:
        written = vars(module)[node.name] if isinstance(node, ast.ClassDef) else None
        if written is not None and written.__module__ != module.__name__:
            name = f"{module.__name__}.{written.__name__}"
            tests += finder.find(written, name, module, globs=names)
    return tests


@pytest.mark.parametrize("name", MODULES)
def test_examples_hold(name: str) -> None:
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in found_in(importlib.import_module(name)):
        runner.run(test)
    assert runner.summarize().failed == 0


def test_there_are_examples() -> None:
    modules = map(importlib.import_module, MODULES)
    shown = {test.name for module in modules for test in found_in(module) if test.examples}
    assert len(shown) >= 50
    assert {"fan_out", "State", "SQLiteStore"} <= {name.rpartition(".")[2] for name in shown}
