"""A job: a folder with the settings of a crawl, and all that has become of it.

The crawl is one run of an `SQLiteStore`, and each row is in the save of the outcome that it tells
of: so there is no page without its row, no row without its page, and none twice, whatever ends the
process. Other programs may read the file at any time; its views are shoal's.
"""

import json
import sqlite3
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

from examples.scraper.crawl import CRAWL
from examples.scraper.frontier import Link
from examples.scraper.locks import Locked, lock
from examples.scraper.rows import Row, failed_row, page_row
from examples.scraper.settings import Settings
from shoal import Codec, RunPath, SQLiteStore
from shoal.events import Update


class NoJob(Exception):
    """There is no job where one is looked for, or one where there should be none."""


class JobBusy(Exception):
    """Another process works on a job."""


class Holder(NamedTuple):
    """The process that works on a job."""

    host: str
    pid: int
    seen_ago: float
    """Seconds since its last sign of life."""


class Job:
    """A folder that a crawl is kept in."""

    def __init__(self, path: Path, settings: Settings) -> None:
        """Use `Job.create` or `Job.open`."""
        self.path: Path = path
        self.settings: Settings = settings

    @classmethod
    def create(cls, path: Path, settings: Settings) -> Self:
        """Begin a job.

        Raises:
            NoJob: There is one already.
        """
        path.mkdir(parents=True, exist_ok=True)
        text = json.dumps(settings.to_json(), indent=2)
        try:
            with (path / "job.json").open("x", encoding="utf-8") as file:
                file.write(text + "\n")
        except FileExistsError:
            message = f"{path} holds a job already: resume it, or name another folder"
            raise NoJob(message) from None
        return cls(path, settings)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Find a job.

        Raises:
            NoJob: There is none.
        """
        try:
            saved = json.loads((path / "job.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise NoJob(f"{path} holds no job: {error}") from None
        return cls(path, Settings.from_json(saved))

    @property
    def database(self) -> Path:
        return self.path / "crawl.db"

    def store(self) -> SQLiteStore:
        """What the crawl is kept in. A kill takes nothing away, a loss of power a moment."""
        return SQLiteStore(self.database, synchronous="normal")

    @contextmanager
    def held(self) -> Generator[None]:
        """Keep other processes from working on it, and from touching what this one writes.

        Raises:
            JobBusy: One does already.
        """
        path = self.path / "job.json"
        with path.open("r+b") as file:
            try:
                lock(file, path)
            except Locked:
                by = self.holder
                who = "another process" if by is None else f"process {by.pid} on {by.host}"
                message = f"{who} works on {self.path}: wait until it is done, or end it"
                raise JobBusy(message) from None
            yield

    async def discovered(self) -> list[Link]:
        """The links that were found so far, but for those that it began with."""
        if not self.database.exists():
            return []
        async with self.store() as store:
            history = await store.read(RunPath(run_id=CRAWL, act=CRAWL), 0)
        found: list[Any] = []
        for entry in history:
            if isinstance(entry, Update):
                found.extend(entry.discovered)
        return found

    @contextmanager
    def _reading(self) -> Generator[sqlite3.Connection | None]:
        """Read the file as it is, whether or not somebody writes to it."""
        if not self.database.exists():
            yield None
            return
        uri = f"{self.database.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=10)) as sql:
            yield sql

    def rows(self, *, answered: bool = False) -> Iterator[Row]:
        """All rows so far, in the order in which pages became part of the crawl.

        Args:
            answered: Leave out what got no answer: it is tried again when the crawl goes on, and
                gets another row then.
        """
        codec = Codec()
        with self._reading() as sql:
            if sql is None:
                return
            # A page that had come in too late, when the match was found, was never applied.
            found = sql.execute(
                "SELECT status, element, value, error, attempts, elapsed FROM child_runs "
                "WHERE parent = (SELECT id FROM root_runs WHERE run_id = ?) AND step = ? "
                "AND status IN ('succeeded', 'failed') AND applied IS NOT NULL ORDER BY applied",
                (CRAWL, CRAWL),
            )
            for status, element, value, error, attempts, elapsed in found:
                link = codec.decode(element)
                if status == "succeeded":
                    row = page_row(link, codec.decode(value))
                elif answered:
                    continue
                else:
                    row = failed_row(link, codec.decode(error), attempts, elapsed)
                if row is not None:
                    yield row

    @property
    def failed(self) -> int:
        """How many links have no answer yet, although they were tried."""
        with self._reading() as sql:
            if sql is None:
                return 0
            found = sql.execute(
                "SELECT count(*) FROM child_runs WHERE step = ? AND status = 'failed' "
                "AND parent = (SELECT id FROM root_runs WHERE run_id = ?)",
                (CRAWL, CRAWL),
            )
            return found.fetchone()[0]

    def sitemaps(self, *, answered: bool = False) -> int:
        """Sitemaps that were read, or could not be: links, but no pages.

        Args:
            answered: Leave out those that got no answer, as in `rows`.
        """
        with self._reading() as sql:
            if sql is None:
                return 0
            found = sql.execute(
                "SELECT count(*) FROM child_runs WHERE step = ? AND applied IS NOT NULL "
                "AND element ->> 'kind' = 'sitemap' AND (status = 'succeeded' OR NOT ?)",
                (CRAWL, answered),
            )
            return found.fetchone()[0]

    @property
    def is_finished(self) -> bool:
        """Whether the crawl came to its end, whatever that was."""
        return self.status == "succeeded"

    @property
    def status(self) -> str:
        """How the last execution ended; `new` if there was none, `running` if it was killed."""
        with self._reading() as sql:
            if sql is None:
                return "new"
            found = sql.execute(
                "SELECT status FROM root_runs WHERE run_id = ?", (CRAWL,)
            ).fetchone()
            return "new" if found is None else found[0]

    @property
    def holder(self) -> Holder | None:
        """Who works on it, or did when it died."""
        with self._reading() as sql:
            if sql is None:
                return None
            found = sql.execute(
                "SELECT host, pid, seen_at FROM claims WHERE execution IS NOT NULL AND run_id = ?",
                (CRAWL,),
            ).fetchone()
            return None if found is None else Holder(found[0], found[1], time.time() - found[2])
