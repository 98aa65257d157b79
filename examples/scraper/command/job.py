"""A job: a folder with a crawl's settings and all of its results.

The crawl is one run of an `SQLiteStore`, and each row is saved together with the outcome that it
describes. So every page has exactly one row, however the process ends. Other programs may read the
file at any time through shoal's views.
"""

import json
import sqlite3
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

from examples.scraper.crawl import CRAWL
from examples.scraper.frontier.links import Link
from examples.scraper.output.locks import Locked, lock
from examples.scraper.output.rows import Row, failed_row, page_row
from examples.scraper.settings import Settings
from shoal import Codec, RunPath, SQLiteStore
from shoal.events import Update


class NoJob(Exception):
    """A job doesn't exist, or exists although a new one was requested."""


class JobBusy(Exception):
    """Another process works on a job."""


class Holder(NamedTuple):
    """The process that works on a job."""

    host: str
    pid: int
    seen_ago: float
    """Seconds since the process last showed that it is alive."""


class Job:
    """A folder with a crawl."""

    def __init__(self, path: Path, settings: Settings) -> None:
        """Use `Job.create` or `Job.open`."""
        self.path: Path = path
        self.settings: Settings = settings

    @classmethod
    def create(cls, path: Path, settings: Settings) -> Self:
        """Create a job.

        Raises:
            NoJob: The folder has a job already.
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
        """Open a job.

        Raises:
            NoJob: The folder has no job.
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
        """Make the crawl's store. A kill loses nothing, a loss of power the last moment."""
        return SQLiteStore(self.database, synchronous="normal")

    @contextmanager
    def held(self) -> Generator[None]:
        """Keep other processes from working on the job and writing to its output.

        Raises:
            JobBusy: Another process works on the job.
        """
        path = self.path / "job.json"
        with path.open("r+b") as file:
            try:
                lock(file, path)
            except Locked:
                by = self.holder
                holder = "another process" if by is None else f"process {by.pid} on {by.host}"
                message = f"{holder} works on {self.path}: wait until it is done, or end it"
                raise JobBusy(message) from None
            yield

    async def discovered(self) -> list[Link]:
        """Return the links that were found so far, without the start links."""
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
        """Open the file for reading, even while another process writes to it."""
        if not self.database.exists():
            yield None
            return
        uri = f"{self.database.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=10)) as sql:
            yield sql

    def rows(self, *, answered: bool = False) -> Iterator[Row]:
        """Yield all rows so far, in the order in which pages became part of the crawl.

        Args:
            answered: Omit pages without an answer: they are retried when the crawl is resumed,
                and get another row then.
        """
        codec = Codec()
        with self._reading() as sql:
            if sql is None:
                return
            # A page that arrived after the match was found was never applied.
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
        """The number of links that were tried and have no answer so far."""
        return self._count("status = 'failed'")

    @property
    def started(self) -> int:
        """The number of links that were tried, which `max_pages` limits."""
        return self._count("TRUE")

    @property
    def has_matched(self) -> bool:
        """Whether the crawl has ended because a page matched."""
        return self._count("status = 'succeeded' AND value ->> 'matched'") > 0

    def _count(self, where: str) -> int:
        with self._reading() as sql:
            if sql is None:
                return 0
            found = sql.execute(
                "SELECT count(*) FROM child_runs WHERE step = ? "
                f"AND parent = (SELECT id FROM root_runs WHERE run_id = ?) AND {where}",
                (CRAWL, CRAWL),
            )
            return found.fetchone()[0]

    def sitemaps(self, *, answered: bool = False) -> int:
        """Count the sitemaps, which are links but no pages, whether or not they could be read.

        Args:
            answered: Omit those without an answer, as in `rows`.
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
        """Whether the crawl has ended, with any result."""
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
        """The process that works on the job, or worked on it when it died."""
        with self._reading() as sql:
            if sql is None:
                return None
            found = sql.execute(
                "SELECT host, pid, seen_at FROM claims WHERE execution IS NOT NULL AND run_id = ?",
                (CRAWL,),
            ).fetchone()
            return None if found is None else Holder(found[0], found[1], time.time() - found[2])
