"""A plugin of pytest's: which lines each test has executed, and how long it took.

``pytest -p tests.mutants.recorder`` appends a line for each test to the file that ``SHOAL_LINES``
names: its seconds, its id, and a number for each module, whose bits are the lines that it executed.
The interpreter reports each line once for a test (`sys.monitoring`, Python 3.12), so the tests take
hardly longer than without it. Coverage's contexts, which ask at each line, take twice as long.
"""

from __future__ import annotations

import json
import os
import sys
from collections import defaultdict
from collections.abc import Generator, Mapping
from pathlib import Path
from time import perf_counter
from types import CodeType
from typing import Any

import pytest

from .bench import PACKAGES, SOURCE

monitoring: Any = vars(sys)["monitoring"]  # type checkers look for it on Python 3.11
WATCHED = tuple(f"{SOURCE / package}{os.sep}" for package in PACKAGES)


class Recorder:
    """The lines that were executed since they were last taken."""

    def __init__(self) -> None:
        self._lines: dict[str, int] = defaultdict(int)
        self._tool = 4  # none of those that are reserved for debuggers, coverage and profilers
        monitoring.use_tool_id(self._tool, "shoal-mutants")
        events = monitoring.events
        monitoring.register_callback(self._tool, events.PY_START, self._on_start)
        monitoring.register_callback(self._tool, events.LINE, self._on_line)
        monitoring.set_events(self._tool, events.PY_START)

    def _on_start(self, code: CodeType, _: int) -> object:
        if code.co_filename.startswith(WATCHED):
            monitoring.set_local_events(self._tool, code, monitoring.events.LINE)
        return monitoring.DISABLE

    def _on_line(self, code: CodeType, line: int) -> object:
        self._lines[code.co_filename] |= 1 << line
        return monitoring.DISABLE

    def take(self) -> Mapping[str, int]:
        """Return the lines, and have each reported once more."""
        taken = {str(Path(name).relative_to(SOURCE)): lines for name, lines in self._lines.items()}
        self._lines.clear()
        monitoring.restart_events()
        return taken

    def close(self) -> None:
        # Before the interpreter ends, which calls destructors without the globals they need.
        for event in (monitoring.events.PY_START, monitoring.events.LINE):
            monitoring.register_callback(self._tool, event, None)
        monitoring.free_tool_id(self._tool)


recorder = Recorder()


def pytest_unconfigure() -> None:
    recorder.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    recorder.take()
    began = perf_counter()
    try:
        return (yield)
    finally:
        took = perf_counter() - began
        lines = {name: f"{bits:x}" for name, bits in recorder.take().items()}
        row = json.dumps([round(took, 4), item.nodeid, lines])
        # At once: several processes of pytest-xdist's write to the same file.
        file = os.open(os.environ["SHOAL_LINES"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(file, f"{row}\n".encode())
        os.close(file)
