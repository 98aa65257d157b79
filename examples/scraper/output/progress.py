"""Progress of a crawl: an exact tally, and displays that may fail.

All displays write to stderr, so that rows can go to stdout.
"""

import json
import sys
import time
import warnings
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any, Literal

import anyio
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from examples.scraper.fetching.urls import host_of
from examples.scraper.frontier.links import Frontier
from examples.scraper.output.rows import Row, row_of
from examples.scraper.politeness.health import Health
from examples.scraper.politeness.spacing import Politeness
from shoal import Done, Failed, Hook
from shoal.events import ChildEnded, ChildStarted

Style = Literal["rich", "plain", "json", "none"]
EVERY = {"rich": 0.2, "plain": 2.0, "json": 1.0}  # seconds
QUIET = 5.0  # seconds after which the tally is shown again even if no page has ended
LATENCIES = 2000  # number of pages that percentiles are computed from
SHOWN_HOSTS = 12


class HostTally:
    """The counts of one host."""

    def __init__(self) -> None:
        self.pages: int = 0
        self.failed: int = 0
        self.left_out: int = 0
        self.bytes: int = 0

    @property
    def ended(self) -> int:
        return self.pages + self.failed + self.left_out


class Tally(Hook):
    """Counts the pages of a crawl as their children end."""

    def __init__(
        self, frontier: Frontier, politeness: Politeness | None = None, health: Health | None = None
    ) -> None:
        """Begin empty; `recall` adds the counts of earlier executions."""
        self.frontier = frontier
        self.politeness = politeness
        self.health = health
        self.pages: int = 0
        self.failures = Counter[str]()
        self.left_out = Counter[str]()
        """Pages that robots.txt excludes: neither pages nor failures."""
        self.statuses = Counter[str]()
        self.hosts: dict[str, HostTally] = {}
        self.bytes: int = 0
        self.retries: int = 0
        self.sitemaps: int = 0
        self.in_flight: int = 0
        self.matched: str | None = None
        self._latencies = deque[int](maxlen=LATENCIES)
        self._before: int = 0  # from earlier executions
        self._began_at = time.perf_counter()

    def recall(self, rows: Iterable[Row], sitemaps: int = 0) -> None:
        """Count the pages of earlier executions."""
        for row in rows:
            self.count(row)
        self.sitemaps = sitemaps
        self._before = self.ended

    def on_child_started(self, event: ChildStarted) -> None:
        self.in_flight += 1

    def on_child_ended(self, event: ChildEnded) -> None:
        self.in_flight -= 1
        row = row_of(event.outcome)
        if row is not None:
            self.count(row)
            value: Any = getattr(event.outcome, "value", None)
            if value is not None and value.get("matched"):
                self.matched = row["url"]
        elif isinstance(event.outcome, Done | Failed) and "kind" in event.outcome.element:
            self.sitemaps += 1

    def count(self, row: Row) -> None:
        """Count one row."""
        name = host_of(row["url"])
        host = self.hosts.get(name)
        if host is None:
            host = self.hosts[name] = HostTally()
        self.statuses[str(row["status"] or "none")] += 1
        self.retries += max(0, (row["attempts"] or 1) - 1)
        self._latencies.append(row["elapsed_ms"])
        self.bytes += row["bytes"] or 0
        host.bytes += row["bytes"] or 0
        error = row["error"]
        if error is None:
            self.pages += 1
            host.pages += 1
        elif error["kind"] == "robots" and row["status"] is None and row["fetched_at"]:
            self.left_out["robots"] += 1
            host.left_out += 1
        else:
            self.failures[error["kind"]] += 1
            host.failed += 1

    @property
    def failed(self) -> int:
        return self.failures.total()

    @property
    def ended(self) -> int:
        return self.pages + self.failed + self.left_out.total()

    @property
    def known(self) -> int:
        return self.frontier.known

    @property
    def waiting(self) -> int:
        """Links that are known, but neither fetched nor failed."""
        return self.known - self.ended - self.sitemaps

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began_at

    @property
    def rate(self) -> float:
        """Pages per second in this execution, including failed ones."""
        return (self.ended - self._before) / self.seconds

    @property
    def refusals(self) -> int:
        """The number of answers that refused a page for now."""
        return 0 if self.politeness is None else self.politeness.refusals

    @property
    def silent(self) -> dict[str, str]:
        """The hosts that are left alone, and the reasons."""
        return {} if self.health is None else self.health.silent()

    def latency(self, percent: int) -> int:
        """The milliseconds within which this percentage of the last pages ended."""
        ordered = sorted(self._latencies)
        return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else 0

    def statistics(self) -> dict[str, Any]:
        """The crawl as data."""
        waiting = self.frontier.by_host
        return {
            "pages": self.pages,
            "failed": dict(sorted(self.failures.items())),
            "left_out": dict(self.left_out),
            "dropped": dict(self.frontier.dropped),
            "silent": self.silent,
            "waiting": self.waiting,
            "in_flight": self.in_flight,
            "retries": self.retries,
            "refusals": self.refusals,
            "bytes": self.bytes,
            "seconds": round(self.seconds, 3),
            "pages_per_second": round(self.rate, 1),
            "latency_ms": {"p50": self.latency(50), "p95": self.latency(95)},
            "statuses": dict(sorted(self.statuses.items())),
            "matched": self.matched,
            "hosts": {
                name: {
                    "pages": host.pages,
                    "failed": host.failed,
                    "waiting": waiting[name] - host.ended,
                    "bytes": host.bytes,
                }
                for name, host in sorted(self.hosts.items())
            },
        }

    def summary(self) -> str:
        """The crawl in one line."""
        kinds = sorted(self.failures.items())
        why = f" ({', '.join(f'{kind} {n}' for kind, n in kinds)})" if kinds else ""
        robots = f", {n} left out by robots.txt" if (n := self.left_out["robots"]) else ""
        dropped = "".join(f", {n} dropped as {why}" for why, n in self.frontier.dropped.items())
        left = f", {self.waiting} known but not fetched" if self.waiting else ""
        match = "" if self.matched is None else f"; the match is {self.matched}"
        return (
            f"{self.pages} pages, {self.failed} failed{why}{robots}{dropped}{left} "
            f"in {self.seconds:.1f} s: {self.rate:.1f} pages/s{match}"
        )


class Display(Hook):
    """Shows the tally from time to time."""

    observer = True

    def __init__(self, tally: Tally, every: float) -> None:
        self.tally = tally
        self.every = every
        self._shown_at = time.perf_counter()

    def on_child_ended(self, event: ChildEnded) -> None:
        self.show_after(self.every)

    def show_after(self, seconds: float) -> None:
        """Show the tally if the last time was so many seconds ago."""
        now = time.perf_counter()
        if now - self._shown_at >= seconds:
            self._shown_at = now
            self.show()

    def show(self) -> None:
        raise NotImplementedError


class Plain(Display):
    """Prints a line."""

    def show(self) -> None:
        tally = self.tally
        silent = "".join(f"; {host} is {why}" for host, why in islice(tally.silent.items(), 3))
        print(
            f"{tally.pages} pages, {tally.failed} failed, {tally.waiting} waiting, "
            f"{tally.rate:.1f} pages/s{silent}",
            file=sys.stderr,
        )


class JsonLines(Display):
    """Prints the statistics as a JSON object."""

    def show(self) -> None:
        print(json.dumps(self.tally.statistics()), file=sys.stderr)


class Bars(Display):
    """Shows a progress bar, whose end moves as pages are found, above a table of hosts."""

    def __init__(self, tally: Tally, every: float, bar: Progress, live: Live | None = None) -> None:
        super().__init__(tally, every)
        self._bar = bar
        self._live = live
        self._task = bar.add_task("crawl", total=tally.known, completed=0, failed=0, rate=0.0)

    def show(self) -> None:
        tally = self.tally
        ended = tally.ended + tally.sitemaps
        self._bar.update(
            self._task, completed=ended, total=tally.known, failed=tally.failed, rate=tally.rate
        )
        if self._live is not None and len(tally.hosts) > 1:
            self._live.update(Group(self._bar, self._hosts()))

    def _hosts(self) -> Table:
        table = Table("host", "pages", "failed", "waiting", "MB", box=None)
        known = self.tally.frontier.by_host
        busiest = sorted(self.tally.hosts.items(), key=lambda one: -one[1].ended)
        for name, host in busiest[:SHOWN_HOSTS]:
            counts = (host.pages, host.failed, known[name] - host.ended)
            table.add_row(name, *map(str, counts), f"{host.bytes / 1e6:.1f}")
        return table


def _warn_as_json(message: Warning | str, category: type[Warning], *_: object) -> None:
    """Print a warning, of shoal or another library, as a line of JSON, like all of stderr then."""
    print(json.dumps({"warning": str(message), "category": category.__name__}), file=sys.stderr)


async def showing(displays: Iterable[Hook], work: Callable[[], Awaitable[object]]) -> None:
    """Do `work`, and show the tally from time to time even if no page ends, as in a pause.

    Raises:
        Exception: Any exception of `work`.
    """
    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_show_on, [one for one in displays if isinstance(one, Display)])
        try:
            await work()
        except Exception as error:  # noqa: BLE001 - raised below, outside of the group
            failure = error
        tasks.cancel_scope.cancel()
    if failure is not None:
        raise failure


async def _show_on(displays: Iterable[Display]) -> None:
    while True:
        await anyio.sleep(QUIET / 2)
        for display in displays:
            # Like a failing hook, a broken display doesn't stop the crawl.
            with suppress(Exception):
                display.show_after(QUIET)


@contextmanager
def shown(tally: Tally, style: Style) -> Generator[list[Hook]]:
    """Return the hooks that show `tally` while the block lasts."""
    if style == "none":
        yield []
    elif style == "plain":
        yield [Plain(tally, EVERY[style])]
    elif style == "json":
        with warnings.catch_warnings():
            warnings.showwarning = _warn_as_json
            yield [JsonLines(tally, EVERY[style])]
    else:
        bar = Progress(
            SpinnerColumn(),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]} failed, {task.fields[rate]:.1f} pages/s"),
            auto_refresh=False,
        )
        # The summary replaces it.
        with Live(bar, console=Console(stderr=True), transient=True, refresh_per_second=5) as live:
            yield [Bars(tally, EVERY[style], bar, live)]
