"""A store with reports that a test writes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from shoal import MemoryStore
from shoal._events.report_text import report_text
from shoal.stores._watching import Command, StoredReport
from shoal.watch import Report
from shoal.watch._any_store import Inspection


def make_report(run_id: str, spent: Mapping[Any, float], **more: Any) -> Report:
    """Make a report of a run that was looked at 400 times."""
    values: dict[str, Any] = {"seconds": sum(spent.values()), "samples": 400, "every": 0.25}
    values.update(more)
    return Report(run_id=run_id, spent=spent, **values)


class Reporting(Inspection):
    """A memory store, and the reports that a test has written about its runs."""

    is_shared = False

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self.reports = dict[str, StoredReport]()

    def write(self, report: Report, age: float = 0.0) -> None:
        """Write a report that is some seconds old."""
        run_id = report.run_id
        self.reports[run_id] = StoredReport(run_id, time.time() - age, report_text(report))

    async def report(self, reports: Mapping[str, str]) -> Sequence[Command]:
        raise AssertionError("no process executes a run")

    async def reported(self, run_id: str) -> StoredReport | None:
        return self.reports.get(run_id)

    async def command(self, command: Command) -> None:
        raise AssertionError("queries leave no commands")


class Listing:
    """A store that lists its runs, and implements nothing else of what watchers ask."""

    def __init__(self) -> None:
        self.kept = MemoryStore()


def _delegated(name: str) -> Any:
    def call(self: Listing, *args: Any, **more: Any) -> Any:
        return getattr(self.kept, name)(*args, **more)

    return call


for _name in (
    *("claim", "load", "pack", "save", "read", "children", "release"),
    *("runs", "summary", "counts", "failures"),
):
    setattr(Listing, _name, _delegated(_name))
