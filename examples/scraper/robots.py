"""robots.txt: what each site asks crawlers not to do, and how long to wait in between.

Each site is asked once. As RFC 9309 has it, a site without one (4xx) allows everything, and one
that can't say (5xx, no answer) nothing: then its pages are tried again later, and so is this.
"""

from collections.abc import Callable, Sequence
from urllib.parse import urljoin, urlsplit

import anyio
from protego import Protego

from examples.scraper.fetch import Fetcher, FetchError

MOST = 512 * 1024  # bytes that are read of it; RFC 9309 asks for 500 KiB
HOPS = 5  # redirects that are followed
AGAIN_AFTER = 30.0  # seconds before a site that couldn't say is asked again


class Rules:
    """What one site asks for; as long as nobody has read it, nothing is allowed."""

    def __init__(self) -> None:
        self._reading = anyio.Lock()
        self._parsed: Protego | None = None
        self._failure: FetchError | None = None
        self._failed_at = 0.0
        self.is_read: bool = False
        self.allows_all: bool = False
        """Whether there is nothing to be checked."""

    def allow(self, url: str, user_agent: str) -> bool:
        return self._parsed is None or self._parsed.can_fetch(url, user_agent)

    def delay(self, user_agent: str) -> float:
        """Seconds from one request to the next."""
        if self._parsed is None:
            return 0.0
        every = self._parsed.request_rate(user_agent)
        by_rate = every.seconds / every.requests if every is not None and every.requests else 0.0
        return max(float(self._parsed.crawl_delay(user_agent) or 0), by_rate)

    @property
    def sitemaps(self) -> Sequence[str]:
        return () if self._parsed is None else tuple(self._parsed.sitemaps)

    async def read(self, fetcher: Fetcher, url: str, clock: Callable[[], float]) -> bool:
        """Read it, unless somebody else does meanwhile; return whether it was this call that did.

        Raises:
            FetchError: It can't be read.
        """
        async with self._reading:
            if self.is_read:
                return False
            if self._failure is not None and clock() < self._failed_at + AGAIN_AFTER:
                raise _as_robots(self._failure)
            try:
                text = await _text_of(fetcher, url)
            except FetchError as error:
                self._failure, self._failed_at = error, clock()
                raise _as_robots(error) from error
            self._parsed = None if text is None else Protego.parse(text)
            self.allows_all = self._parsed is None or not text or "disallow" not in text.lower()
            self.is_read = True
            return True


class Robots:
    """The rules of all sites of a crawl."""

    def __init__(self, fetcher: Fetcher, clock: Callable[[], float]) -> None:
        """Know none yet."""
        self._fetcher = fetcher
        self._clock = clock
        self._rules: dict[str, Rules] = {}

    def of(self, url: str) -> Rules:
        """The rules for a page, which may have to be read first."""
        site = _site(url)
        rules = self._rules.get(site)
        if rules is None:
            rules = self._rules[site] = Rules()
        return rules

    async def read(self, url: str) -> bool:
        """Read the rules for a page; see `Rules.read`."""
        return await self.of(url).read(self._fetcher, f"{_site(url)}/robots.txt", self._clock)


def _site(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def _as_robots(error: FetchError) -> FetchError:
    # A host that doesn't answer has that problem with all of its pages.
    kind = error.kind if error.status is None else "robots"
    return FetchError(kind, f"robots.txt can't be read: {error}", transient=True)


async def _text_of(fetcher: Fetcher, url: str) -> str | None:
    """The text of a robots.txt; None if the site has none."""
    for _ in range(HOPS + 1):
        try:
            answer = await fetcher.get(url, _is_there, MOST)
        except FetchError as error:
            if error.kind in {"size", "encoding", "private", "url"}:
                return None  # nothing that one could keep to
            raise
        if answer.location is None:
            break
        url = urljoin(url, answer.location)
    else:
        return None  # RFC 9309: as if there were none
    if answer.status == 429 or answer.status >= 500:
        raise FetchError("http", f"status {answer.status}", status=answer.status)
    return None if answer.body is None else answer.body.decode("utf-8-sig", "replace")


def _is_there(status: int, _content_type: str) -> bool:
    return status < 300
