"""The port to progress displays: they are above the runtime, and need an optional package."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Protocol

from shoal._events.report import Report

from .root_run import RootRun

Listen = Callable[[Callable[[RootRun, Report], None]], Callable[[], None]]
"""Calls a function with each report about a run; returns what ends that."""


class Display(Protocol):
    """Shows the progress of runs; see ``shoal.watch.progress``."""

    def start(self) -> None:
        """Begin to show it."""
        ...

    def update(self, run_id: str, name: str, report: Report, *, has_failed: bool = False) -> None:
        """Show a report about a run."""
        ...

    def stop(self) -> None:
        """Show the last state, and leave the terminal as it was."""
        ...


def new_display() -> Display:
    """Return a display that suits the place where the program runs.

    Raises:
        DefinitionError: A package that it needs isn't installed.
    """
    # By its name: what is above must not be imported here, and most programs show no progress.
    display: Display = importlib.import_module("shoal.watch.progress").new_display()
    return display


@contextmanager
def showing(display: Display, listen: Listen, only: RootRun | None = None) -> Generator[None]:
    """Show reports within the block, and leave the terminal as it was, however the block ends.

    Args:
        display: Where to show them.
        listen: Calls a function with each report.
        only: The run to show; None: all runs.
    """

    def show(root: RootRun, report: Report) -> None:
        if only is None or root is only:
            has_failed = report.is_over and (root.run is None or root.run.status != "succeeded")
            name = f"{root.path.act} {root.path.id}"
            display.update(root.path.id, name, report, has_failed=has_failed)

    try:
        display.start()  # within: Ctrl-C may come in the middle of it
        stop = listen(show)
        try:
            yield
        finally:
            stop()
    finally:
        display.stop()
