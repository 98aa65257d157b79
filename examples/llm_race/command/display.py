"""The display of a race: its answer on stdout, the providers' results on stderr.

On a terminal, stderr shows a table that is updated during the race. Elsewhere, it gets one JSON
object per line, for programs.
"""

import json
import sys
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TextIO

from anyio import to_thread
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from examples.llm_race.client.exchange import Chunk
from examples.llm_race.race.racing import Report
from examples.llm_race.race.scoreboard import Lane, Scoreboard, Status
from shoal import Hook
from shoal.events import AttemptEnded, ChildEnded, Event, Item, LeaderChanged, LeadingItems

COLOURS: dict[Status, str] = {
    "won": "bold green",
    "answered": "green",
    "streaming": "cyan",
    "asked": "blue",
    "waiting": "yellow",
    "rejected": "magenta",
    "failed": "red",
    "skipped": "dim",
    "cancelled": "dim",
    "not started": "dim",
}


def table_of(lanes: Sequence[Lane], now: float | None = None) -> Table:
    """The race as a table; `now` is the time since its start, while it runs."""
    table = Table(box=None, pad_edge=False)
    for heading in ("provider", "status"):
        table.add_column(heading, no_wrap=True)
    for heading in ("first token", "total", "tokens", "cost"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", overflow="ellipsis", no_wrap=True, style="dim")
    for lane in lanes:
        usage = lane.usage
        about = "" if usage.is_reported else "~"
        is_under_way = lane.started is not None and lane.ended is None
        table.add_row(
            lane.name,
            Text(lane.status, style=COLOURS[lane.status]),
            seconds(lane.ttft),
            seconds(now if is_under_way and now is not None else lane.ended),
            f"{about}{usage.input_tokens} + {usage.output_tokens}" if lane.attempts else "",
            about + money(lane.cost) if lane.attempts else "",
            Text(lane.detail),
        )
    return table


def seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} s"


def money(value: float | None) -> str:
    return "?" if value is None else f"${value:.6f}"


@contextmanager
def live_table(board: Scoreboard, *, with_text: bool) -> Generator[None]:
    """Show the race on the terminal while the block lasts.

    With `with_text`, the display includes the end of the leader's text, because it uses the whole
    terminal, so the answer can't be written there until it ends.
    """
    began: float | None = None
    console = Console(stderr=True)

    def picture() -> RenderableType:
        nonlocal began
        lanes = [lane for run in list(board.races) for lane in board.lanes(run)]
        if lanes and began is None:
            began = time.perf_counter()
        table = table_of(lanes, None if began is None else time.perf_counter() - began)
        leading = [lane.text for lane in lanes if lane.status == "streaming"]
        if not with_text or len(leading) != 1:
            return table
        rows = max(3, console.height - len(lanes) - 3)
        return Group(table, Text("\n".join(leading[0].splitlines()[-rows:])))

    with Live(get_renderable=picture, console=console, transient=True, refresh_per_second=10):
        yield


def print_report(report: Report, *, as_json: bool) -> None:
    """Print the result of a race: as JSON on stdout, or the providers' results on stderr."""
    if as_json:
        said = {
            **report.totals(),
            "answer": None if report.answer is None else report.answer.text,
            "answers": {name: answer.text for name, answer in report.answers.items()},
            "lanes": [lane.row() for lane in report.lanes],
        }
        print(json.dumps(said))
        return
    if not sys.stderr.isatty():
        print_rows(report)
    elif report.lanes or report.answer is None:
        Console(stderr=True).print(table_of(report.lanes))
    else:
        print("it was answered before: no provider was asked now", file=sys.stderr)
    if report.error is not None and sys.stderr.isatty():
        print(f"no acceptable answer: {report.totals()['error']}", file=sys.stderr)


def print_rows(report: Report) -> None:
    for lane in report.lanes:
        print(json.dumps(lane.row()), file=sys.stderr)
    print(json.dumps(report.totals()), file=sys.stderr)


class Printer(Hook):
    """Prints the leader's answer as it streams.

    An answer that starts again is printed again, after a note on stderr.
    """

    def __init__(self, file: TextIO) -> None:
        self.file = file
        self.items = LeadingItems("race")
        self.has_printed = False
        self.broke_off = False

    async def on_item(self, event: Item) -> None:
        await self._follow(event)

    async def on_attempt_ended(self, event: AttemptEnded) -> None:
        await self._follow(event)

    async def on_leader_changed(self, event: LeaderChanged) -> None:
        await self._follow(event)

    async def on_child_ended(self, event: ChildEnded) -> None:
        await self._follow(event)

    async def _follow(self, event: Event) -> None:
        text = ""
        for news in self.items.on_event(event):
            if isinstance(news, LeaderChanged):
                print(f"the answer breaks off: {news.reason}", file=sys.stderr)
                self.broke_off = True
            elif isinstance(news.item, Chunk):
                text += news.item.text
        if not text:
            return
        self.has_printed = True
        if self.broke_off:
            print("it starts again", file=sys.stderr)
            self.broke_off, text = False, f"\n{text}"
        # In a thread, because stdout may be a pipe whose reader is slow.
        await to_thread.run_sync(self._write, text)

    def _write(self, text: str) -> None:
        self.file.write(text)
        self.file.flush()


class Tracer:
    """Prints every event of a race on stderr, one line each, with the seconds since its start."""

    def __init__(self) -> None:
        self.began = time.perf_counter()

    async def __call__(self, event: Event) -> None:
        print(f"{time.perf_counter() - self.began:8.3f}  {event}", file=sys.stderr)
