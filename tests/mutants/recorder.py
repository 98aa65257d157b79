"""A plugin of pytest's: which test has executed which lines, and how long it took.

``coverage run -m pytest -p tests.mutants.recorder`` stores each test's lines as a context that is
named by the test's id, and appends the durations to the file that ``SHOAL_DURATIONS`` names.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from time import perf_counter

import coverage
import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    measured = coverage.Coverage.current()
    assert measured is not None, "the tests run under `coverage run`"
    measured.switch_context(item.nodeid)
    began = perf_counter()
    try:
        return (yield)
    finally:
        took = perf_counter() - began
        measured.switch_context("")
        with Path(os.environ["SHOAL_DURATIONS"]).open("a") as file:
            file.write(f"{took:.4f}\t{item.nodeid}\n")
