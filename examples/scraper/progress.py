"""What a crawl shows of itself: a tally that is always right, and displays that may fail.

All go to stderr, so that rows can go to stdout.
"""

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn

from shoal import ChildEnded, Hook, State, StateUpdated, replay

Style = Literal["bar", "lines", "none"]


class Tally(Hook):
    """Follows a crawl from outside: its state, and how many pages are known by now.

    It tells what has been done at any moment, so also after an interruption.
    """

    def __init__(self, state: State, known: int) -> None:
        self.state = state
        self.known = known
        self.started_at = time.perf_counter()

    def on_state_updated(self, event: StateUpdated) -> None:
        if event.depth == 0:  # the crawl's own state, not one of its pages'
            self.state = replay(self.state, event.update.operations)
            self.known += len(event.update.discovered)

    @property
    def failed(self) -> int:
        return sum(self.state["failures"].values())

    @property
    def ended(self) -> int:
        return self.state["pages"] + self.failed

    @property
    def waiting(self) -> int:
        """Pages that are known but not fetched, nor have failed."""
        return self.known - self.ended

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started_at

    @property
    def rate(self) -> float:
        """Pages per second from the beginning, failed ones included."""
        return self.ended / self.seconds

    def summary(self) -> str:
        """The crawl in one line."""
        kinds = sorted(self.state["failures"].items())
        why = f" ({', '.join(f'{kind} {n}' for kind, n in kinds)})" if kinds else ""
        left = f", {self.waiting} known but not fetched" if self.waiting else ""
        return (
            f"{self.state['pages']} pages, {self.failed} failed{why}{left} "
            f"in {self.seconds:.1f} s: {self.rate:.1f} pages/s"
        )


class Lines(Hook):
    """Prints a line now and then."""

    observer = True

    def __init__(self, tally: Tally, every: float = 2.0) -> None:
        self.tally = tally
        self.every = every
        self.printed_at = time.perf_counter()

    def on_child_ended(self, event: ChildEnded) -> None:
        now = time.perf_counter()
        if now - self.printed_at >= self.every:
            self.printed_at = now
            tally = self.tally
            print(
                f"{tally.state['pages']} pages, {tally.failed} failed, {tally.waiting} waiting, "
                f"{tally.rate:.1f} pages/s",
                file=sys.stderr,
            )


class Bar(Hook):
    """Moves a progress bar, whose end moves too as pages are found."""

    observer = True

    def __init__(self, tally: Tally, bar: Progress) -> None:
        self.tally = tally
        self.bar = bar
        self.task = bar.add_task("crawl", total=tally.known, failed=0, rate=0.0)

    def on_child_ended(self, event: ChildEnded) -> None:
        tally = self.tally
        self.bar.update(
            self.task,
            completed=tally.ended,
            total=tally.known,
            failed=tally.failed,
            rate=tally.rate,
        )


@contextmanager
def shown(tally: Tally, style: Style) -> Generator[list[Hook]]:
    """The hooks that show `tally` while the block lasts."""
    if style == "none":
        yield []
    elif style == "lines":
        yield [Lines(tally)]
    else:
        with Progress(
            SpinnerColumn(),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[failed]} failed, {task.fields[rate]:.1f} pages/s"),
            console=Console(stderr=True),
            transient=True,  # the summary takes its place
        ) as bar:
            yield [Bar(tally, bar)]
