"""robots.txt: the pages that a site excludes, and the delay that it asks for.

Each site is asked once. By RFC 9309, a site without a robots.txt (4xx) allows every page, and a
site that can't answer (5xx, no answer) allows none for now: its pages wait until it can, like those
of a host that is down.
"""

import math
from collections.abc import Sequence

import anyio
from protego import Protego

from examples.scraper.fetching.fetch import Fetcher, FetchError
from examples.scraper.fetching.urls import origin_of, resolve
from examples.scraper.politeness.health import Host
from examples.scraper.politeness.spacing import LONGEST

MOST = 500 * 1024  # bytes that are read; the rest is ignored, as RFC 9309 allows
HOPS = 5  # redirects that are followed


class Rules:
    """The rules of one site; before they are read, no page is allowed."""

    def __init__(self) -> None:
        self._reading = anyio.Lock()
        self._parsed: Protego | None = None
        self.is_read: bool = False
        self.allows_all: bool = False
        """Whether robots.txt is ignored."""

    def allow(self, url: str, user_agent: str) -> bool:
        return self._parsed is None or self._parsed.can_fetch(url, user_agent)

    def delay(self, user_agent: str) -> float:
        """The least seconds between two requests."""
        if self._parsed is None:
            return 0.0
        every = self._parsed.request_rate(user_agent)
        by_rate = every.seconds / every.requests if every is not None and every.requests else 0.0
        delay = max(float(self._parsed.crawl_delay(user_agent) or 0), by_rate)
        return min(delay, LONGEST) if math.isfinite(delay) else 0.0

    @property
    def sitemaps(self) -> Sequence[str]:
        return () if self._parsed is None else tuple(self._parsed.sitemaps)

    async def read(self, fetcher: Fetcher, site: str, host: Host) -> bool:
        """Read robots.txt, unless another page does; return whether this call read it.

        Raises:
            LeftAlone: robots.txt can't be read now.
            FetchError: robots.txt was unreadable for too long, or its host may not exist.
        """
        async with self._reading:
            if self.is_read:
                return False
            host.check()
            try:
                text = await _text_of(fetcher, f"{site}/robots.txt", host)
            except Unreadable as error:
                host.robots_failed(error.cause, error.retry_after)
            self._parsed = None if text is None else Protego.parse(text)
            self.allows_all = self._parsed is None or not text or "disallow" not in text.lower()
            self.is_read = True
            return True


class Robots:
    """The rules of all sites of a crawl."""

    def __init__(self, fetcher: Fetcher) -> None:
        """Begin without rules."""
        self._fetcher = fetcher
        self._rules: dict[str, Rules] = {}

    def of(self, url: str) -> Rules:
        """Return the rules for a page; they may not be read yet."""
        site = origin_of(url)
        rules = self._rules.get(site)
        if rules is None:
            rules = self._rules[site] = Rules()
        return rules

    async def read(self, url: str, host: Host) -> bool:
        """Read the rules for a page; see `Rules.read`."""
        return await self.of(url).read(self._fetcher, origin_of(url), host)


class Unreadable(Exception):
    """A site's robots.txt can't be read for now."""

    def __init__(self, error: FetchError, retry_after: float | None = None) -> None:
        super().__init__(str(error))
        # If a host doesn't answer, this concerns all of its pages.
        kind = error.kind if error.status is None else "robots"
        message = f"robots.txt can't be read: {error}"
        self.cause: FetchError = FetchError(kind, message, status=error.status, transient=True)
        self.retry_after: float | None = retry_after


async def _text_of(fetcher: Fetcher, url: str, host: Host) -> str | None:
    """Fetch the text of a robots.txt; None if the site has none.

    Raises:
        Unreadable: It can't be read for now.
    """
    target: str | None = url
    for _ in range(HOPS + 1):
        try:
            answer = await fetcher.get(target, _is_there, MOST, cut=True)
        except FetchError as error:
            if not error.transient:  # a redirect to a place that can't be read
                return None
            raise Unreadable(error) from error
        if answer.status == 429 or answer.status >= 500:
            error = FetchError("http", f"status {answer.status}", status=answer.status)
            after = None if answer.retry_after is None else min(answer.retry_after, LONGEST)
            raise Unreadable(error, after)
        host.answered(url, answer.status, is_page=False)
        if answer.location is None:
            return None if answer.body is None else _text(answer.body)
        target = resolve(target, answer.location)
        if target is None:
            return None
    return None  # RFC 9309: treated like a missing robots.txt


def _text(body: bytes) -> str:
    if len(body) >= MOST:  # the last line may be incomplete, and mean something different
        body = body.rpartition(b"\n")[0]
    return body.decode("utf-8-sig", "replace")


def _is_there(status: int, _content_type: str) -> bool:
    return status < 300
