"""Where pages are parsed: at once, or in a process that can be stopped.

The parser takes time that grows with the square of how deep elements are nested: 2 MB of `<div>`
take it minutes, in which it holds the interpreter's lock, so that no thread, timeout or Ctrl-C has
a chance. A page with few tags can't be nested deep, and is parsed where it is; so are most pages.
What has more of them goes to another process, which is killed if it takes too long.
"""

import multiprocessing
import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Self

import anyio
from anyio import from_thread, to_thread

from examples.scraper.fetch import FetchError
from examples.scraper.pages import Found, Wanted, read_page

FEW_TAGS = 4096  # nested into one another, they take 40 ms; 97 of 100 pages of real sites have less
INLINE = 256 * 1024  # bytes; smaller pages are parsed before a thread would have started
LONGEST = 10.0  # seconds for one page; the largest of Python's documentation takes 0.3
STARTING = 60.0  # seconds that a process may take to start, which is no matter of the page
LOOK = 0.1  # seconds from one look at whether the crawl has been cancelled to the next
MEMORY = 1024**3  # bytes that a process may use: unclosed tags multiply elements without end


class Parsers:
    """Parses pages. As a context manager, it ends its processes."""

    def __init__(self, wanted: Wanted, timeout: float = LONGEST) -> None:
        """Read what is `wanted` of each page, in at most `timeout` seconds."""
        self._wanted = wanted
        self._longest = min(LONGEST, timeout)
        self._free: list[Parser] = []
        self._places = anyio.CapacityLimiter(multiprocessing.cpu_count())

    async def read(self, body: bytes, content_type: str, url: str) -> Found:
        """Read a page.

        Raises:
            FetchError: It takes too long, or more memory than there is for it.
        """
        if body.count(b"<") > FEW_TAGS:
            read = partial(self._read, body, content_type, url)
            return await to_thread.run_sync(read, limiter=self._places)
        if len(body) > INLINE:
            return await to_thread.run_sync(read_page, body, content_type, url, self._wanted)
        return read_page(body, content_type, url, self._wanted)

    def _read(self, body: bytes, content_type: str, url: str) -> Found:
        with self._parser() as parser:
            return parser.read((body, content_type, url, self._wanted), self._longest)

    @contextmanager
    def _parser(self) -> Generator["Parser"]:
        """Lend a process. One that has failed isn't lent again."""
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
        with self._starting:  # two at once would share each other's descriptors
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
    """Parse what comes until nobody is there any more: the work of the other process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the crawl to answer
    _limit_memory()
    with suppress(EOFError, OSError):
        requests.send(None)  # it has started
        while True:
            page: Any = requests.recv()
            try:
                found: Found | Exception = read_page(*page)
            except MemoryError:
                found = FetchError("parse", f"takes more than {MEMORY:,} bytes to parse")
            except Exception as error:  # noqa: BLE001 - raised where the page is wanted
                found = error
            requests.send(found)


def _limit_memory() -> None:
    try:
        import resource  # noqa: PLC0415 - POSIX only
    except ImportError:
        return
    with suppress(ValueError, OSError):  # there is a lower limit already
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
