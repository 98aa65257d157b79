"""Output of rows: JSONL, CSV or SQLite. Each is a projection of the rows in the job's store.

During a crawl, each row is written after the store has saved it. When a crawl begins again, the
existing output is compared with the store from the top: the first line that is incomplete or
unknown to the store is cut off with everything after it, and then the missing rows are written. So
a file is correct after any crash, and contains no row twice.
"""

import csv
import io
import json
import sqlite3
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import IO, Protocol

import anyio
from anyio import to_thread

from examples.scraper.output.locks import Locked, lock
from examples.scraper.output.rows import COLUMNS, Row, row_of
from examples.scraper.settings import Format
from shoal import Hook
from shoal.events import ChildEnded

BACKLOG = 1000  # most rows that wait to be written


class Projection(Protocol):
    """An output for rows. Writing may block."""

    def complete(self, rows: Iterable[Row]) -> None:
        """Make the output hold exactly these rows."""
        ...

    def write(self, rows: Iterable[Row]) -> None:
        """Add rows, one after the other."""
        ...

    def close(self) -> None: ...


def projection(out: str, form: Format, *, columns: Sequence[str] = COLUMNS) -> Projection:
    """Open an output; `-` is standard output. JSON lines have all fields of a row, and no columns.

    Raises:
        OSError: The output can't be opened.
        ValueError: Standard output can't have that format.
    """
    if form == "sqlite":
        if out == "-":
            raise ValueError("an SQLite database can't be written to standard output")
        return Table(Path(out), columns)
    lines = JSON_LINES if form == "jsonl" else csv_lines(columns)
    if out == "-":
        return Stream(sys.stdout.buffer, *lines)
    path = Path(out)
    if path.exists() and not path.is_file():  # a device, a named pipe
        return Stream(path.open("wb"), *lines)
    return File(path, *lines)


Lines = tuple[bytes, Callable[[Row], bytes]]
"""Return the header, and a function that formats a row as a line."""


def _json_line(row: Row) -> bytes:
    return json.dumps(row).encode() + b"\n"


JSON_LINES: Lines = (b"", _json_line)


def csv_lines(columns: Iterable[str]) -> Lines:
    columns = tuple(columns)

    def line(values: Iterable[object]) -> bytes:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(values)
        return text.getvalue().encode("utf-8", "backslashreplace")

    return line(columns), lambda row: line(map(_cell, map(row.get, columns)))


def _cell(value: object) -> object:
    return json.dumps(value) if isinstance(value, dict | list) else value


class File:
    """Writes lines to a file."""

    def __init__(self, path: Path, top: bytes, line_of: Callable[[Row], bytes]) -> None:
        """Open the file, and leave its content unchanged.

        Raises:
            Locked: Another crawl writes to the file.
        """
        path.touch()
        self._file: IO[bytes] = path.open("r+b")
        _lock(self._file, path)
        self._top = top
        self._line_of = line_of

    def complete(self, rows: Iterable[Row]) -> None:
        self._file.seek(0)
        is_there = True
        for line in chain([self._top], map(self._line_of, rows)):
            if is_there:
                at = self._file.tell()
                is_there = self._file.read(len(line)) == line
                if is_there:
                    continue
                self._cut(at)
            self._file.write(line)
        if is_there:
            self._cut(self._file.tell())
        self._file.flush()

    def _cut(self, at: int) -> None:
        self._file.seek(at)
        self._file.truncate()

    def write(self, rows: Iterable[Row]) -> None:
        self._file.writelines(map(self._line_of, rows))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _lock(file: IO[bytes], path: Path) -> None:
    try:
        lock(file, path)
    except Locked:
        file.close()
        raise


class Stream:
    """Writes lines to a stream. Lines that were read can't be cut, and are not repeated."""

    def __init__(self, file: IO[bytes], top: bytes, line_of: Callable[[Row], bytes]) -> None:
        self._file = file
        self._top = top
        self._line_of = line_of

    def complete(self, rows: Iterable[Row]) -> None:
        self._file.write(self._top)
        self.write(rows)

    def write(self, rows: Iterable[Row]) -> None:
        self._file.writelines(map(self._line_of, rows))
        self._file.flush()

    def close(self) -> None:
        """Close the stream if this object opened it."""
        if self._file is not sys.stdout.buffer:
            self._file.close()


class Table:
    """Writes the table `pages` of an SQLite database."""

    def __init__(self, path: Path, columns: Iterable[str]) -> None:
        """Open the database, and leave its content unchanged.

        Raises:
            Locked: Another crawl writes to the file.
        """
        self._columns = tuple(columns)
        # Kept open until the database is closed: when a process closes any descriptor of the file,
        # SQLite loses its own locks, which are of a different kind.
        path.touch()
        self._locked: IO[bytes] = path.open("r+b")
        _lock(self._locked, path)
        # Threads use it one after the other.
        self._sql = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        # If a loss of power removes rows, the next `complete` restores them.
        self._sql.execute("PRAGMA journal_mode = WAL")
        self._sql.execute("PRAGMA synchronous = OFF")

    def complete(self, rows: Iterable[Row]) -> None:
        self._sql.execute("BEGIN")
        self._sql.execute("DROP TABLE IF EXISTS pages")
        names = [name.replace('"', '""') for name in self._columns]
        columns = ", ".join(f'"{name}"' for name in names)
        self._sql.execute(f"CREATE TABLE pages ({columns})")
        self._insert(rows)
        self._sql.execute("COMMIT")

    def write(self, rows: Iterable[Row]) -> None:
        self._sql.execute("BEGIN")
        self._insert(rows)
        self._sql.execute("COMMIT")

    def _insert(self, rows: Iterable[Row]) -> None:
        cells = ([_cell(row.get(name)) for name in self._columns] for row in rows)
        marks = ", ".join("?" * len(self._columns))
        self._sql.executemany(f"INSERT INTO pages VALUES ({marks})", cells)

    def close(self) -> None:
        self._sql.close()
        self._locked.close()


class Output(Hook):
    """Writes the row of every page, in the order in which pages became part of the crawl.

    Writing waits for a disk or a reader, so a separate task does it, and writes all rows that have
    arrived meanwhile at once. If writing fails, so does the crawl; if it is slow, so is the crawl.
    """

    def __init__(self, lines: Callable[[Iterable[Row]], Iterable[Row]] = iter) -> None:
        """Write the `lines` of each page's row; by default the row itself."""
        self._lines = lines
        self._send, self._receive = anyio.create_memory_object_stream[Row](BACKLOG)
        self._failure: Exception | None = None

    async def on_child_ended(self, event: ChildEnded) -> None:
        row = row_of(event.outcome)
        for line in self._lines([] if row is None else [row]):
            try:
                self._send.send_nowait(line)
            except anyio.WouldBlock:
                await self._send.send(line)

    async def write(self, projection: Projection) -> None:
        """Write rows until the stream of rows is closed."""
        # also when cancelled: the rows of fetched pages are written
        with anyio.CancelScope(shield=True), self._receive as rows:
            async for row in rows:
                batch = [row]
                with suppress(anyio.WouldBlock, anyio.EndOfStream):  # no more rows at the moment
                    while True:
                        batch.append(rows.receive_nowait())
                try:
                    await to_thread.run_sync(projection.write, batch)
                except Exception as error:  # noqa: BLE001 - raised by `while_writing`
                    self._failure = error
                    return

    async def while_writing(
        self, projection: Projection, work: Callable[[], Awaitable[object]]
    ) -> None:
        """Do `work`, and write the rows that it makes; all of them, however it ends.

        Raises:
            OSError: The rows can't be written.
            Exception: Any exception of `work`.
        """
        failure: Exception | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.write, projection)
            with self._send:
                try:
                    await work()
                except Exception as error:  # noqa: BLE001 - raised below, outside of the group
                    failure = error
        # The hook's failure to pass on a row is only a consequence of `failure`.
        if self._failure is not None or failure is not None:
            raise self._failure or failure  # pyright: ignore[reportGeneralTypeIssues] - not None
