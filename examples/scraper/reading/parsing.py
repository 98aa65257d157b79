"""Runs the parser: directly, or in a process that can be killed.

The parser's time grows with the square of the nesting depth: 2 MB of `<div>` take minutes, and the
parser holds the interpreter's lock meanwhile, which blocks threads, timeouts and Ctrl-C. A page
with few tags can't be nested deeply, and is parsed directly, like most pages. Pages with more tags
go to another process, which is killed if it takes too long.
"""

import multiprocessing
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, Self

import anyio
from anyio import from_thread, to_thread

from examples.scraper.fetching.fetch import FetchError
from examples.scraper.reading.document import Parse
from examples.scraper.reading.pages import Found, Wanted, read_page

# tags; if all of them are nested, they take 40 ms. 97 of 100 pages of real sites have fewer
FEW_TAGS = 4096
INLINE = 256 * 1024  # bytes; smaller pages are parsed before a thread would have started
LONGEST = 10.0  # seconds for one page; the largest of Python's documentation takes 0.3
STARTING = 60.0  # seconds that a process may take to start, which don't count for the page
LOOK = 0.1  # seconds between two checks whether the crawl was cancelled
MEMORY = 1024**3  # bytes that a process may use: unclosed tags can multiply elements without end


class Parsers:
    """Parses pages. As a context manager, it stops its processes."""

    def __init__(self, wanted: Wanted, timeout: float = LONGEST) -> None:
        """Read the `wanted` parts of each page, in at most `timeout` seconds."""
        self._wanted = wanted
        self._longest = min(LONGEST, timeout)
        self._free: list[Parser] = []
        self._places = anyio.CapacityLimiter(multiprocessing.cpu_count())

    async def read(
        self, body: bytes, content_type: str, url: str, parse: Parse | None = None
    ) -> Found:
        """Read a page; `parse` makes its records and links, if it is given.

        Raises:
            FetchError: The page takes too long or too much memory.
            Exception: Any exception of `parse`.
        """
        wanted = self._wanted if parse is None else self._wanted._replace(parse=parse)
        page = (body, content_type, url, wanted)
        if body.count(b"<") > FEW_TAGS:
            return await to_thread.run_sync(self._read, page, limiter=self._places)
        if len(body) > INLINE:
            return await to_thread.run_sync(read_page, *page)
        return read_page(*page)

    def _read(self, page: tuple[bytes, str, str, Wanted]) -> Found:
        with self._parser() as parser:
            return parser.read(page, self._longest)

    @contextmanager
    def _parser(self) -> Generator["Parser"]:
        """Lend a process. A process that has failed isn't used again."""
        parser = self._free.pop() if self._free else Parser()
        try:
            yield parser
        except BaseException:
            parser.kill()
            raise
        self._free.append(parser)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._free:
            self._free.pop().kill()


class Parser:
    """A process that parses one page at a time."""

    _starting = threading.Lock()

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        with self._starting:  # two processes started at once would share each other's descriptors
            self._process.start()
        theirs.close()
        self._has_started = False

    def read(self, page: tuple[bytes, str, str, Wanted], longest: float) -> Found:
        """Read one page, in a thread.

        Raises:
            FetchError: The process takes too long, or has died.
        """
        try:
            if not self._has_started:
                self._receive(STARTING)
                self._has_started = True
            self._ours.send(page)
            found: Found | Exception = self._receive(longest)
        except (EOFError, OSError):
            raise FetchError("parse", "the process that parsed it has died") from None
        if isinstance(found, Exception):
            raise found
        return found

    def _receive(self, longest: float) -> Any:
        waited = 0.0
        while not self._ours.poll(LOOK):
            from_thread.check_cancelled()
            waited += LOOK
            if waited >= longest:
                raise FetchError("parse", f"not parsed in {longest:g} s")
        return self._ours.recv()

    def kill(self) -> None:
        self._process.kill()
        self._process.join()
        self._ours.close()


def _serve(requests: Connection) -> None:
    """Parse pages until the pipe is closed: the main loop of the other process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the crawl handles a Ctrl-C
    _limit_memory()
    with suppress(EOFError, OSError):
        requests.send(None)  # reports that it has started
        while True:
            page: Any = requests.recv()
            try:
                found: Found | Exception = read_page(*page)
            except MemoryError:
                found = FetchError("parse", f"takes more than {MEMORY:,} bytes to parse")
            except Exception as error:  # noqa: BLE001 - raised in the process that wants the page
                found = error
            requests.send(found)


def _limit_memory() -> None:
    try:
        import resource  # noqa: PLC0415 - POSIX only
    except ImportError:
        return
    with suppress(ValueError, OSError):  # a lower limit is set already
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
