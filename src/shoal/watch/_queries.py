"""``Queries``: the questions that pages, commands and programs ask about runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, final

from shoal._events.identity import RunPath
from shoal._events.report import LimitUse
from shoal.stores._protocol import Browses, ChildStatus, RunStatus, RunSummary
from shoal.stores._watching import Inspects, Order, RowPage

from ._explain import Explanation
from ._history import HistoryPage
from ._overview import Overview
from ._timeline import Timeline
from ._values import Value, What


@final
class RunsPage(NamedTuple):
    """A page of root runs, the newest first."""

    runs: Sequence[RunSummary]
    after: str | None
    """The cursor of the next page; None after the last one."""


@final
class Queries:
    """Answers questions about the runs in a store, while they run and afterwards.

    Counts are those of the store at the moment of the call. What runs at that moment is known from
    the last report, which the executing process writes a few times per second; without one, an
    answer has only what the store knows. No method changes anything, and none decodes a value, so
    the types of the program needn't be imported. All may be cancelled.

    Examples:
        >>> from shoal import Application, MemoryStore, action, fan_out
        >>> from shoal.watch import Queries
    """

    def __init__(self, store: Browses) -> None:
        """Ask ``store``.

        Args:
            store: A store that implements ``shoal.stores.Browses``. If it implements ``Inspects``
                too, as the stores of shoal do, answers take time in proportion to what they show.
        """
        self._store: Browses = store

    @property
    def inspected(self) -> Inspects:
        """The store, or what stands in for it if it doesn't implement ``Inspects``."""
        raise NotImplementedError

    async def mark(self) -> object:
        """Return a value that differs from the one before if anything was saved in between."""
        raise NotImplementedError

    async def runs(
        self,
        *,
        status: RunStatus | None = None,
        application: str | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> RunsPage:
        """Return a page of root runs, the newest first.

        Args:
            status: Only runs with that status.
            application: Only runs of the application of that name.
            after: The cursor of the page before.
            limit: At most so many.
        """
        raise NotImplementedError

    async def overview(self, path: RunPath | str) -> Overview:
        """Return the first view of a run.

        Args:
            path: The run, as a path or as text (see ``path_text``). So in all methods.

        Raises:
            UnknownRun: The store doesn't know the run. So all methods that take one.
        """
        raise NotImplementedError

    async def children(
        self,
        path: RunPath | str,
        *,
        step: str | None = None,
        status: ChildStatus | None = None,
        key: str | None = None,
        order: Order = "failed first",
        after: str | None = None,
        limit: int = 50,
    ) -> RowPage:
        """Return a page of a run's children; see ``Inspects.rows``."""
        raise NotImplementedError

    async def timeline(self, path: RunPath | str, *, bins: int = 60) -> Timeline:
        """Return a run's children in time: bars for at most 200, else so many bins."""
        raise NotImplementedError

    async def history(
        self, path: RunPath | str, *, after: str | None = None, limit: int = 100
    ) -> HistoryPage:
        """Return a page of a run's history, from its first entry on.

        Args:
            path: The run.
            after: The cursor of the page before.
            limit: About so many entries: those of one save are not divided.
        """
        raise NotImplementedError

    async def value(
        self, path: RunPath | str, what: What, *, characters: int | None = 10_000
    ) -> Value | None:
        """Return a value of a run as JSON text; None if it has none.

        Args:
            path: The run.
            what: Which value.
            characters: Shorten it to so many characters; None for all of it.
        """
        raise NotImplementedError

    async def limits(self, run_id: str | None = None) -> Sequence[LimitUse]:
        """Return the limits in use, by the last reports.

        Args:
            run_id: Only those that this root run uses; by default those of all running runs, each
                limit of a process once.
        """
        raise NotImplementedError

    async def explain(self, path: RunPath | str) -> Explanation:
        """Explain where the time of a run went, and what would make it faster.

        The shares of a child's page are those of its whole root run, because there is one report
        for each root run.
        """
        raise NotImplementedError
