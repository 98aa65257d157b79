"""Show the progress of runs while they run: ``app.run(..., progress=True)``.

On a terminal, a live display of bars. In a notebook, the same as text that is replaced. Elsewhere,
a line every few seconds. It is written to stderr, and left as it was last when the run ends.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from threading import Lock, RLock
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, TextIO, final
from unicodedata import category

from shoal._errors.exceptions import brief
from shoal._events.report import Report
from shoal.errors import DefinitionError

from ._board import Board, Row

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
    from rich.live import Live

logger: logging.Logger = logging.getLogger("shoal")

EVERY = 5.0
"""Seconds between two lines where there is no terminal. A log of an hour has 720 of them."""
WIDTH = 24
"""Columns of a bar, if there is room for it and for all that is said beside it."""
NARROW = 4
"""Columns of a bar where the details are cut."""
FEW = 8
"""With fewer columns than that, no details are shown: they would say nothing."""
NAME = 32
"""Columns of the name of a fan-out, at most."""


class Display(Protocol):
    """Shows the progress of runs."""

    def start(self) -> None:
        """Begin to show it."""
        ...

    def update(self, run_id: str, name: str, report: Report, *, has_failed: bool = False) -> None:
        """Show a report about a run. Never raises because of what can't be written.

        Args:
            run_id: The root run.
            name: What it is called.
            report: The report.
            has_failed: Whether the run has ended without success.
        """
        ...

    def stop(self) -> None:
        """Show the last state, and leave the terminal as it was."""
        ...


def new_display(stream: TextIO | None = None) -> Display:
    """Return the display that suits the place: a terminal, a notebook, or a file.

    Args:
        stream: Where to write; by default stderr.

    Raises:
        DefinitionError: The package rich isn't installed.
    """
    if find_spec("rich") is None:
        msg = "a progress display needs rich, which isn't installed: pip install 'shoal[progress]'"
        raise DefinitionError(msg)
    out = sys.stderr if stream is None else stream
    if stream is None and _is_notebook():
        return Boards(Notebook())
    if not out.isatty():
        return Boards(Lines(out))
    if stream is not None:
        return Boards(Terminal(out))
    return _of_terminal(out)


_displays: dict[TextIO, Boards] = {}  # at most one, of the stream that stderr is now
_lock = Lock()


def _of_terminal(out: Any) -> Boards:
    """Return the one display of a terminal: several would draw over each other."""
    out = getattr(out, "rich_proxied_file", out)  # rich has put another stream in its place
    with _lock:
        if out not in _displays:
            _displays.clear()
            _displays[out] = Boards(Terminal(out))
        return _displays[out]


def _is_notebook() -> bool:
    ipython: Any = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


class Surface(Protocol):
    """Where boards are shown."""

    def start(self) -> None:
        """Begin."""
        ...

    def show(self, boards: Sequence[Board], *, is_last: bool) -> None:
        """Show the boards as they are now."""
        ...

    def stop(self) -> None:
        """End, whatever has happened."""
        ...


@final
class Boards:
    """A display of all runs that report, the running ones and those that have just ended.

    It may be started several times, also by other threads. It is shown until each has stopped it.
    """

    def __init__(self, surface: Surface) -> None:
        """Show nothing yet."""
        self._surface = surface
        self._boards: dict[str, Board] = {}
        self._is_on = False
        self._users = 0  # how often it was started, and not stopped
        self._lock = RLock()

    def start(self) -> None:
        """Begin to show it."""
        with self._lock:
            self._users += 1
            if self._users == 1:
                self._boards.clear()
                self._is_on = True
                self._try(self._surface.start)

    def update(self, run_id: str, name: str, report: Report, *, has_failed: bool = False) -> None:
        """Show a report about a run."""
        with self._lock:
            self._update(run_id, name, report, has_failed=has_failed)

    def _update(self, run_id: str, name: str, report: Report, *, has_failed: bool) -> None:
        board = self._boards.get(run_id)
        if board is None or (board.is_over and not report.is_over):
            board = self._boards[run_id] = Board(plain(name))
        board.update(report, has_failed=has_failed)
        self._show(is_last=False)
        # Of the runs of a service that have ended, only the last ones stay on the screen.
        over = [one for one, kept in self._boards.items() if kept.is_over]
        for one in over[:-LAST]:
            del self._boards[one]

    def stop(self) -> None:
        """Show the last state, and leave the terminal as it was."""
        with self._lock:
            self._users = max(0, self._users - 1)
            if not self._users and self._is_on:
                self._show(is_last=True)
                self._try(self._surface.stop)
                self._is_on = False

    def _show(self, *, is_last: bool) -> None:
        if self._is_on:
            boards = list(self._boards.values())
            self._try(lambda: self._surface.show(boards, is_last=is_last))

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 # no run fails because its progress isn't shown
            self._is_on = False
            with suppress(Exception):  # the run goes on without its display
                self._surface.stop()
            # Not if the stream is closed, or its reader is gone: that is what they want.
            if not isinstance(error, OSError | ValueError):
                logger.warning("progress is not shown any more: %s", brief(error))


LAST = 3
"""Runs that have ended and are still shown."""


@final
class Lines:
    """A line for each run, every few seconds."""

    def __init__(
        self, out: TextIO, every: float = EVERY, clock: Callable[[], float] = monotonic
    ) -> None:
        """Write to ``out``."""
        self._out = out
        self._every = every
        self._clock = clock
        self._next = clock() + every
        self._said: set[Board] = set()  # runs whose end was told

    def start(self) -> None:
        """Write nothing yet."""

    def show(self, boards: Sequence[Board], *, is_last: bool) -> None:
        """Write a line for each run, if it is time, or the run has ended."""
        is_due = self._clock() >= self._next
        if is_due:
            self._next = self._clock() + self._every
        for board in boards:
            if board in self._said or not (is_due or board.is_over or is_last):
                continue
            if board.is_over:
                self._said.add(board)
            self._out.write(f"{board.name}: {plain(board.headline)}\n")
        self._said.intersection_update(boards)
        self._out.flush()

    def stop(self) -> None:
        """Write nothing more."""


@final
class Terminal:
    """A live display in a terminal, by rich."""

    def __init__(self, out: TextIO) -> None:
        """Write to a terminal."""
        from rich.console import Console  # noqa: PLC0415 # optional

        self._console = Console(file=None if out is sys.stderr else out, stderr=out is sys.stderr)
        self._live = self._new()

    def _new(self) -> Live:
        from rich.live import Live  # noqa: PLC0415 # optional

        # Refreshed by reports alone: rich's own refreshing would need a thread.
        return Live(console=self._console, auto_refresh=False)

    def start(self) -> None:
        """Take the last lines of the terminal. What is printed meanwhile appears above them."""
        self._live = self._new()
        self._live.start()

    def show(self, boards: Sequence[Board], *, is_last: bool) -> None:
        """Redraw."""
        del is_last
        self._live.update(drawn(boards), refresh=True)

    def stop(self) -> None:
        """Leave the last state, and show the cursor again."""
        self._live.stop()


@final
class Notebook:
    """The display of a terminal as an output of a notebook's cell, replaced each time."""

    def __init__(self) -> None:
        """Show nothing yet."""
        self._handle: Any = None

    def start(self) -> None:
        """Show nothing yet."""

    def show(self, boards: Sequence[Board], *, is_last: bool) -> None:
        """Replace the output."""
        del is_last
        ipython: Any = sys.modules["IPython.display"]
        text = as_text(boards)
        data = {"text/plain": text, "text/html": _as_html(text)}
        if self._handle is None:
            self._handle = ipython.display(data, raw=True, display_id=True)
        else:
            self._handle.update(data, raw=True)

    def stop(self) -> None:
        """Leave the last state."""


def _as_html(text: str) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f'<pre style="line-height: 1.2">{escaped}</pre>'


# -- drawing ---------------------------------------------------------------------------------------


def drawn(boards: Sequence[Board], *, names: bool = False, empty: str = "") -> RenderableType:
    """Return what a terminal shows of some runs, for rich.

    Args:
        boards: The runs.
        names: Whether to name a single run, too.
        empty: What to show if there is none.
    """
    from rich.console import Group  # noqa: PLC0415 # optional
    from rich.text import Text  # noqa: PLC0415

    parts: list[RenderableType] = []
    if not boards and empty:
        parts.append(Text(empty, style="dim"))
    for board in boards:
        if names or len(boards) > 1:
            parts.append(Text(plain(board.name), style="bold", no_wrap=True, overflow="ellipsis"))
        rows = board.rows()
        if rows:
            parts.append(_Bars(rows))
        parts += [
            Text(f"  {plain(line)}", style="dim", no_wrap=True, overflow="ellipsis")
            for line in _below(board)
        ]
    return Group(*parts)


@final
class _Bars:
    """A line with a bar for each row, in the width that there is.

    With little room the bars are cut first, then the details, then the names; the counts stay. See
    test_counts_are_whole_and_the_bar_shrinks.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows
        self._details = [plain(" · ".join(row.details)) for row in rows]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the rows, for rich."""
        del console
        from rich.cells import cell_len  # noqa: PLC0415 # optional
        from rich.progress_bar import ProgressBar  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        rows, width = self._rows, options.max_width
        count = max(cell_len(row.count) for row in rows)
        label = min(NAME, max(cell_len(_label(row)) for row in rows))
        label = max(1, min(label, width - count - 1))
        details = max(map(cell_len, self._details))
        left = width - label - count - 2  # of the bar, a space and the details
        bar = min(WIDTH, max(left - 1 - details, min(NARROW, left)))
        details = min(details, left - bar - 1)
        if details < FEW and details < max(map(cell_len, self._details)):
            bar, details = min(WIDTH, left), 0
        table = Table.grid(padding=(0, 1))
        table.add_column(no_wrap=True, overflow="ellipsis", width=label)
        if bar > 0:
            table.add_column(width=bar)
        table.add_column(justify="right", no_wrap=True, width=count)
        if details > 0:
            table.add_column(overflow="ellipsis", no_wrap=True, width=details)
        for row, told in zip(rows, self._details, strict=True):
            cells: list[RenderableType] = [Text(_label(row))]
            if bar > 0:
                known = row.total is not None
                cells.append(
                    ProgressBar(
                        total=float(row.total or 1) if known else None,
                        completed=float(row.ended) if row.total or not known else 1.0,
                        pulse=not known,
                        width=bar,
                    )
                )
            cells.append(Text(row.count))
            if details > 0:
                text = Text(told, style="dim")
                if row.failed:
                    text.stylize("red", 0, len(row.details[0]))
                cells.append(text)
            table.add_row(*cells)
        yield table


def as_text(boards: Sequence[Board]) -> str:
    """Return what ``drawn`` draws as plain text, as wide as it needs to be."""
    lines: list[str] = []
    for board in boards:
        if len(boards) > 1:
            lines.append(plain(board.name))
        rows = board.rows()
        width = max((len(_label(row)) for row in rows), default=0)
        counts = max((len(row.count) for row in rows), default=0)
        for row in rows:
            share = 0.0 if not row.total else min(1.0, row.ended / row.total)
            if row.total == 0:
                share = 1.0
            full = round(share * WIDTH)
            bar = "█" * full + "░" * (WIDTH - full)
            details = plain(" · ".join(row.details))
            lines.append(f"{_label(row):<{width}} {bar} {row.count:>{counts}} {details}".rstrip())
        lines += [f"  {plain(line)}" for line in _below(board)]
    return "\n".join(lines)


def _label(row: Row) -> str:
    indent = "  " * (len(row.steps) - 1)
    several = f" ({row.groups})" if row.groups > 1 else ""
    return plain(f"{indent}{row.name}{several}")


def _below(board: Board) -> list[str]:
    report = board.report
    lines: list[str] = []
    if not board.rows() and not board.is_over:
        lines.append(board.headline)
    elif report is not None and report.is_over:
        lines.append(board.headline.rpartition(" · ")[2])
    elif board.why:
        lines.append(board.why)
    if report is not None and report.omitted:
        lines.append(f"{report.omitted:,} more fan-outs under way")
    return lines + board.long_running()


def plain(text: str) -> str:
    """Replace characters that a terminal would act on: titles, notes and keys are users' texts."""
    return "".join("?" if category(one) in ("Cc", "Cf", "Cs", "Zl", "Zp") else one for one in text)
