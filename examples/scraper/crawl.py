"""The crawl: one fan-out over links that grows as links are found.

Each link is one child run of one action, `fetch`. A page's links join the frontier in the very save
that records the page, and a link whose key is known is dropped there, so every page is fetched
once. The state holds nothing but the links to begin with; what was fetched leaves through the
hooks, page by page, and stays in the store.

What a site answers, even that there is no such page, is what becomes of a link for good. What got
no answer has failed: it is tried again a few times, and once more when the crawl is resumed.
"""

import re
import time
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NotRequired, TypedDict

import anyio
from anyio import to_thread
from yarl import URL

from examples.scraper.fetch import TRANSIENT, Answer, Fetcher, FetchError, Refused
from examples.scraper.frontier import Frontier, Link, host_of, key_of, key_of_link, resolve
from examples.scraper.pages import MAX_SITEMAP, Document, media_type, read_sitemap, sniffed
from examples.scraper.politeness import Politeness
from examples.scraper.robots import Robots
from examples.scraper.settings import HTML_TYPES, Settings
from shoal import (
    Context,
    Done,
    Each,
    FanOut,
    Limits,
    Outcome,
    Retry,
    RetryBudget,
    RetryLater,
    State,
    action,
    fan_out,
)

CRAWL = "crawl"  # the name of the step, and the id of the run in its job
MAX_REDIRECTS = 10  # in a row
PARSE_INLINE = 256 * 1024  # bytes; smaller pages are parsed before a thread would have started


class Problem(TypedDict):
    """Why there is no page: a word to count by, and a sentence."""

    kind: str
    message: str


class Page(TypedDict):
    """What is kept of an answer: plain data, which is quickly saved; never the body."""

    status: int | None
    final_url: str | None
    content_type: str | None
    bytes: int | None
    elapsed_ms: int
    attempts: int
    fetched_at: str
    title: str | None
    selected: dict[str, list[str]]
    links_n: int
    error: Problem | None
    links: list[str]
    """Those that were new."""
    text: NotRequired[str]
    moved: NotRequired[str]
    """Where it is now, if it has moved."""
    sitemaps: NotRequired[list[str]]
    matched: NotRequired[bool]
    """Whether it has what the whole crawl looks for."""


class Brake:
    """Ends a crawl in good order: what is being fetched comes to its end, nothing new begins."""

    def __init__(self) -> None:
        self.is_on: bool = False
        self._busy = 0
        self._idle = anyio.Event()

    async def begin(self) -> None:
        """Begin to fetch; where the brake is on, wait to be cancelled."""
        if self.is_on:
            await anyio.sleep_forever()
        self._busy += 1

    def end(self) -> None:
        self._busy -= 1
        if self.is_on and not self._busy:
            self._idle.set()

    async def stop(self) -> None:
        """Put the brake on, and wait until nothing is being fetched any more."""
        self.is_on = True
        if self._busy:
            await self._idle.wait()


class Crawler:
    """What the action works with: nothing of it is saved."""

    def __init__(
        self, settings: Settings, fetcher: Fetcher, frontier: Frontier, politeness: Politeness
    ) -> None:
        self.settings: Settings = settings
        self.fetcher: Fetcher = fetcher
        self.frontier: Frontier = frontier
        self.politeness: Politeness = politeness
        self.robots: Robots = Robots(fetcher, anyio.current_time)
        self.brake: Brake = Brake()
        self.refusals = Counter[str]()
        """Answers that said: later. By addresses of links of which there is no page yet."""
        self._types = frozenset(settings.accept)
        self._match = None if settings.until_match is None else re.compile(settings.until_match)

    async def obey(self, url: str, context: Context) -> bool:
        """Keep to what the site asks for; return whether it allows this page.

        Who had to wait while somebody else read it stands in line once more: nobody knew by then
        how far apart requests have to be.
        """
        rules, spacing = self.robots.of(url), self.politeness.of(host_of(url))
        if not rules.is_read:
            was_us = await self.robots.read(url)
            spacing.floor = max(spacing.floor, rules.delay(self.settings.user_agent))
            spacing.is_known = True
            if not was_us and spacing.floor:
                context.charge(0)
                raise RetryLater(0)
            context.charge(spacing.seconds)
        return rules.allows_all or rules.allow(url, self.settings.user_agent)

    async def ask(self, url: str, kind: str | None) -> Answer:
        """Ask once for `url`, and tell politeness how that went.

        Raises:
            Refused: The host wants to be left alone for a while.
            FetchError: There is no answer.
        """
        spacing = self.politeness.of(host_of(url))
        request = spacing.sends()
        most = self.settings.max_body if kind is None else MAX_SITEMAP
        answer = await self.fetcher.get(url, self.wants if kind is None else _any_type, most)
        if answer.status == 429 or (answer.status == 503 and answer.retry_after is not None):
            pause = self.politeness.refused(host_of(url), request, answer.retry_after)
            raise Refused(pause, answer.status, url)
        spacing.takes(request)
        if answer.status in TRANSIENT:
            raise FetchError(
                "http",
                f"status {answer.status}",
                status=answer.status,
                final_url=url,
                transient=True,
            )
        return answer

    def wants(self, status: int, content_type: str) -> bool:
        """Whether to read a body: decided on its head."""
        kind = media_type(content_type)
        return status < 300 and (not kind or kind in self._types or "*/*" in self._types)

    def read(self, answer: Answer, page: Page) -> None:
        """Read a page of the site."""
        assert answer.body is not None
        kind = media_type(answer.content_type) or sniffed(answer.body)
        if kind not in HTML_TYPES:
            if self._match is not None:
                page["matched"] = (
                    self._match.search(answer.body.decode("utf-8", "replace")) is not None
                )
            return
        settings = self.settings
        document = Document(answer.body, answer.content_type, answer.url)
        page["title"] = document.title
        base = document.base
        urls = [url for href in document.hrefs() if (url := self.frontier.resolve(base, href))]
        page["links_n"] = len(urls)
        page["links"] = self.frontier.unknown(urls)
        for name, css in settings.select.items():
            page["selected"][name] = document.select(css)
        if self._match is not None:
            page["matched"] = self._match.search(document.html) is not None
        if settings.text:
            page["text"] = document.text()

    def read_sitemap(self, answer: Answer, page: Page) -> None:
        """Read what a sitemap leads to, as far as that belongs to the crawl."""
        assert answer.body is not None
        base = URL(answer.url)
        try:
            sitemaps, pages = read_sitemap(answer.body)
        except ValueError as error:
            page["error"] = Problem(kind="sitemap", message=str(error))
            return
        page["sitemaps"] = [str(url) for one in sitemaps if (url := resolve(base, one)) is not None]
        urls = [url for one in pages if (url := self.frontier.resolve(base, one))]
        page["links_n"] = len(urls)
        page["links"] = self.frontier.unknown(urls)

    def moved(self, answer: Answer, link: Link, page: Page) -> str | None:
        """Follow a redirect, if it leads somewhere; return where that is the same page's address.

        A redirect is a page whose only link is its target: so the target is fetched once, however
        many addresses lead to it. Only from one spelling of a key to another it is followed at
        once: the frontier would drop its target as known.
        """
        assert answer.location is not None
        target = resolve(URL(answer.url), answer.location)
        if target is None:
            problem = f"redirect to no web address: {answer.location}"
        elif not self.frontier.takes(target):
            problem = f"redirect out of the crawl: {target}"
        elif key_of(str(target)) == key_of_link(link):
            return str(target)
        elif link.get("hops", 0) >= MAX_REDIRECTS:
            problem = f"more than {MAX_REDIRECTS} redirects in a row"
        else:
            page["final_url"] = page["moved"] = str(target)
            return None
        page["error"] = Problem(kind="redirect", message=problem)
        return None


def _any_type(status: int, _content_type: str) -> bool:
    return status < 300


async def fetch(link: Link, crawler: Crawler, context: Context) -> Page:
    """Fetch one link, and read what it leads to.

    Raises:
        RetryLater: The host wants to be left alone, or further apart.
        FetchError: There was no answer, or one that may be better next time.
    """
    await crawler.brake.begin()
    try:
        context.charge(crawler.politeness.of(host_of(link["url"])).seconds)
        began = time.perf_counter()
        refusals = crawler.refusals[link["url"]]  # they use up no attempt, but each was one
        page = _new_page(context.attempt + refusals)
        try:
            await _fetch(link, crawler, context, page)
        except Refused as error:
            error.refusals = refusals
            crawler.refusals[link["url"]] += 1
            raise
        except FetchError as error:
            if error.transient:
                error.refusals = refusals
                raise
            page["status"], page["final_url"] = error.status, error.final_url
            page["error"] = Problem(kind=error.kind, message=str(error))
        page["elapsed_ms"] = round((time.perf_counter() - began) * 1000)
        crawler.refusals.pop(link["url"], None)
        return page
    finally:
        crawler.brake.end()


def _new_page(attempts: int) -> Page:
    return Page(
        status=None,
        final_url=None,
        content_type=None,
        bytes=None,
        elapsed_ms=0,
        attempts=attempts,
        fetched_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        title=None,
        selected={},
        links_n=0,
        error=None,
        links=[],
    )


async def _fetch(link: Link, crawler: Crawler, context: Context, page: Page) -> None:
    url: str | None = link["url"]
    kind = link.get("kind")
    for _ in range(MAX_REDIRECTS + 1):
        if crawler.settings.robots and not await crawler.obey(url, context):
            context.charge(0)  # nothing was asked
            page["error"] = Problem(kind="robots", message="robots.txt asks not to")
            return
        if kind == "sitemap" and _is_guess(link):
            named = crawler.robots.of(url).sitemaps
            if named:
                page["sitemaps"] = list(named)
                return
        answer = await crawler.ask(url, kind)
        page["status"], page["final_url"] = answer.status, url
        page["content_type"] = answer.content_type or None
        if answer.location is None:
            break
        url = crawler.moved(answer, link, page)
        if url is None:
            return
    else:
        problem = f"more than {MAX_REDIRECTS} redirects in a row"
        page["error"] = Problem(kind="redirect", message=problem)
        return
    if answer.status >= 400:
        page["error"] = Problem(kind="http", message=f"status {answer.status}")
    elif answer.body is not None:
        page["bytes"] = len(answer.body)
        if kind == "sitemap":
            await to_thread.run_sync(crawler.read_sitemap, answer, page)
        elif len(answer.body) <= PARSE_INLINE:
            crawler.read(answer, page)
        else:
            await to_thread.run_sync(crawler.read, answer, page)


def _is_guess(link: Link) -> bool:
    """Whether nobody has named this sitemap: then robots.txt may know better."""
    return link["parent"] is None


def sitemap_links(starts: Iterable[Link]) -> list[Link]:
    """Where the sitemaps of sites are, if robots.txt doesn't say."""
    sites = dict.fromkeys(str(URL(link["url"]).origin()) for link in starts)
    return [Link(url=f"{site}/sitemap.xml", depth=0, parent=None, kind="sitemap") for site in sites]


def is_transient(error: Exception) -> bool:
    return isinstance(error, FetchError) and error.transient


def has_match(_: State, outcome: Outcome) -> bool:
    return isinstance(outcome, Done) and outcome.value.get("matched") is True


def site_crawl(crawler: Crawler) -> FanOut:
    """The fan-out that crawls from the links in the field `starts`."""
    settings = crawler.settings
    asking = action(
        reads=["link"], writes=["page"], limits=crawler.politeness.limits(settings.per_host)
    )
    retry = Retry(
        settings.retries + 1,
        on=is_transient,
        initial=settings.retry_wait,
        cap=30.0,
        budget=RetryBudget(share=0.2),  # an outage shall not be answered by a storm
    )
    return fan_out(
        asking(fetch),
        over="starts",
        item="link",
        key=key_of_link,
        grow=crawler.frontier.grow,
        at_most=settings.max_pages,
        until=None if settings.until_match is None else has_match,
        on_error="collect",
        take="page",
        each=Each(retry=retry),
        limits=Limits(settings.concurrency),
        name=CRAWL,
    )
