"""The crawl: one fan-out over links that grows as links are found.

Each link is one child run of one action, `fetch`. A page's links join the frontier in the same save
that records the page, and a link with a known key is dropped there, so every page is fetched once.
The state holds only the start links; fetched pages go to the hooks, one by one, and stay in the
store.

An answer is final, even if it says that there is no such page. A link without an answer has failed:
it is retried a few times, and again when the crawl is resumed. While its host is down, it waits
(see `health`).
"""

import time
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NotRequired, TypedDict

from anyio import to_thread

from examples.scraper.fetching.fetch import TRANSIENT, Answer, Fetcher, FetchError, LeftAlone
from examples.scraper.fetching.urls import host_of, key_of, origin_of, resolve
from examples.scraper.frontier.links import Frontier, Link, key_of_link
from examples.scraper.politeness.health import Health
from examples.scraper.politeness.robots import Robots
from examples.scraper.politeness.spacing import Politeness, Request, Spacing
from examples.scraper.reading.document import Parse
from examples.scraper.reading.pages import MAX_SITEMAP, media_type, read_sitemap
from examples.scraper.reading.parsing import Parsers
from examples.scraper.settings import Settings
from shoal import Context, Done, Each, Limits, Outcome, Retry, RetryLater, State, action, fan_out
from shoal.types import FanOut

CRAWL = "crawl"  # the name of the step, and the id of the run in its job
MAX_REDIRECTS = 10  # redirects in a row
MANY = 5000  # the number of links of one page that take 20 ms to resolve, so a thread does it


class Problem(TypedDict):
    """The reason why there is no page: a word for counting, and a sentence."""

    kind: str
    message: str


class Page(TypedDict):
    """The data kept of an answer, which is quick to save; never the body."""

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
    """The number of new links."""
    text: NotRequired[str]
    records: NotRequired[list[dict[str, Any]]]
    """The records that a parser has made of the page."""
    moved: NotRequired[str]
    """The new URL, if the page has moved."""
    sitemaps: NotRequired[list[str]]
    matched: NotRequired[bool]
    """Whether the page matches the crawl's `--until-match`."""


class Crawler:
    """The inputs of the action: nothing of it is saved."""

    def __init__(
        self,
        settings: Settings,
        fetcher: Fetcher,
        frontier: Frontier,
        *,
        politeness: Politeness,
        health: Health,
        parsers: Parsers,
    ) -> None:
        self.settings: Settings = settings
        self.fetcher: Fetcher = fetcher
        self.frontier: Frontier = frontier
        self.politeness: Politeness = politeness
        self.health: Health = health
        self.parsers: Parsers = parsers
        self.robots: Robots = Robots(fetcher)
        self.requests = Counter[str]()
        """The number of requests by URL, for links without a page so far."""
        self._refused: set[str] = set()  # links that were refused and have no page so far
        self._types = frozenset(settings.accept)

    async def obey(self, url: str, context: Context) -> bool:
        """Wait for robots.txt; return whether it allows this page.

        A page that waited while robots.txt was read for another page goes back to the queue once:
        it had passed the limits before the crawl delay was known.

        Raises:
            RetryLater: The page goes back to the queue, or robots.txt can't be read for now.
            FetchError: robots.txt could not be read for too long.
        """
        name = host_of(url)
        rules, spacing = self.robots.of(url), self.politeness.of(name)
        if not rules.is_read:
            was_us = await self.robots.read(url, self.health.of(name))
            spacing.floor = max(spacing.floor, rules.delay(self.settings.user_agent))
            spacing.is_known = True
            if not was_us and spacing.floor:
                context.charge(0)
                raise RetryLater(0)
            context.charge(spacing.seconds)
        return rules.allows_all or rules.allow(url, self.settings.user_agent)

    async def ask(self, url: str, link: Link) -> Answer:
        """Request `url` once, and record the result in politeness and health.

        Raises:
            LeftAlone: The host is left alone for a while.
            FetchError: There was no answer.
        """
        name, kind = host_of(url), link.get("kind")
        spacing, host = self.politeness.of(name), self.health.of(name)
        await host.admit(url, self._ask_witness)
        request = spacing.sends()
        most = self.settings.max_body if kind is None else MAX_SITEMAP
        self.requests[link["url"]] += 1
        try:
            answer = await self.fetcher.get(url, self.wants if kind is None else _any_type, most)
        except FetchError as error:
            if error.transient:
                await host.failed(error, url, self._ask_witness)
            raise
        if answer.status == 429 or (answer.status == 503 and answer.retry_after is not None):
            await self._refuse(answer, link, request)
        if answer.status in TRANSIENT:
            error = _status_error(answer, "http", f"status {answer.status}")
            await host.failed(error, url, self._ask_witness)
            raise error
        host.answered(url, answer.status)
        spacing.takes(request)
        return answer

    async def _refuse(self, answer: Answer, link: Link, request: Request) -> None:
        """Leave a host alone after it refused a page, or give up this attempt of the page."""
        name = host_of(answer.url)
        error = _status_error(answer, "refused", f"status {answer.status}, which says: later")
        pause = self.politeness.pause(name, answer.retry_after)
        again = link["url"] in self._refused
        self._refused.add(link["url"])
        self.politeness.refusals += 1
        host = self.health.of(name)
        try:
            await host.refused(error, answer.url, pause, self._ask_witness, again=again)
        except LeftAlone:
            self.politeness.refused(name, request, link["url"], pause)
            raise
        self.politeness.unlearn(name, link["url"])
        raise error

    async def _ask_witness(self, url: str) -> int | None:
        """Request a witness page, whose answer shows the state of the host; see `health`."""
        spacing: Spacing = self.politeness.of(host_of(url))
        spacing.sends()
        try:
            answer = await self.fetcher.get(url, _no_type, 0)
        except FetchError as error:
            return None if error.transient else 0
        return answer.status

    def forget(self, link: Link) -> None:
        """Forget the counts of a link, because it has a page now."""
        self.requests.pop(link["url"], None)
        self._refused.discard(link["url"])

    def wants(self, status: int, content_type: str) -> bool:
        """Whether to read a body, decided by its headers."""
        kind = media_type(content_type)
        return status < 300 and (not kind or kind in self._types or "*/*" in self._types)

    async def read(self, answer: Answer, page: Page, parse: Parse | None) -> None:
        """Read a page of the site into `page`."""
        assert answer.body is not None
        found = await self.parsers.read(answer.body, answer.content_type, answer.url, parse)
        if found.records is not None:
            page["records"] = found.records
        page["title"] = found.title
        page["selected"] = dict(found.selected)
        if found.matched is not None:
            page["matched"] = found.matched
        if found.text is not None:
            page["text"] = found.text
        if len(found.hrefs) < MANY:
            self._follow(found.base, found.hrefs, page)
        else:
            await to_thread.run_sync(self._follow, found.base, found.hrefs, page)

    def _follow(self, base: str, hrefs: Iterable[str], page: Page) -> None:
        urls = [url for href in hrefs if (url := self.frontier.resolve(base, href))]
        page["links_n"] = len(dict.fromkeys(urls))
        page["links"] = self.frontier.unknown(urls)

    def read_sitemap(self, answer: Answer, page: Page) -> None:
        """Read the links of a sitemap that belong to the crawl."""
        assert answer.body is not None
        try:
            sitemaps, pages = read_sitemap(answer.body)
        except ValueError as error:
            page["error"] = Problem(kind="sitemap", message=str(error))
            return
        found = [resolve(answer.url, one) for one in sitemaps]
        page["sitemaps"] = [url for url in found if url is not None]
        self._follow(answer.url, pages, page)

    def moved(self, answer: Answer, link: Link, page: Page) -> str | None:
        """Follow a redirect within the crawl; return its URL if it has the same key.

        A redirect is a page whose only link is its target, so the target is fetched once, even if
        many URLs redirect to it. A redirect to another spelling of the same key is followed at
        once, because the frontier would drop its target as known.
        """
        assert answer.location is not None
        target = resolve(answer.url, answer.location)
        if target is not None:
            self.frontier.follow_start(link, target)
        if target is None:
            problem = f"redirect to no web address: {answer.location}"
        elif not self.frontier.takes(target):
            problem = f"redirect out of the crawl: {target}"
        elif key_of(target) == key_of_link(link):
            return target
        elif link.get("hops", 0) >= MAX_REDIRECTS:
            problem = f"more than {MAX_REDIRECTS} redirects in a row"
        else:
            page["final_url"] = page["moved"] = target
            return None
        page["error"] = Problem(kind="redirect", message=problem)
        return None


def _any_type(status: int, _content_type: str) -> bool:
    return status < 300


def _no_type(_status: int, _content_type: str) -> bool:
    return False


def _status_error(answer: Answer, kind: str, message: str) -> FetchError:
    return FetchError(kind, message, status=answer.status, final_url=answer.url, transient=True)


async def fetch(link: Link, crawler: Crawler, context: Context, parse: Parse | None = None) -> Page:
    """Fetch one link, and read the links of its page.

    Raises:
        RetryLater: The host is left alone for a while, or needs more spacing.
        FetchError: There was no answer, or one that may be better after a retry.
        Exception: Any exception of `parse`. The page has failed then, so a resumed crawl, whose
            parser may be mended, fetches it again.
    """
    context.charge(crawler.politeness.of(host_of(link["url"])).seconds)
    began = time.perf_counter()
    page, before = _new_page(), crawler.requests[link["url"]]
    try:
        await _fetch(link, crawler, context, page, parse)
    except (LeftAlone, FetchError) as error:
        error.requests = crawler.requests[link["url"]]
        if error.requests == before:
            context.charge(0)  # nothing was asked
        if isinstance(error, LeftAlone) or error.transient:
            raise
        page["status"], page["final_url"] = error.status, error.final_url
        page["error"] = Problem(kind=error.kind, message=str(error))
    page["elapsed_ms"] = round((time.perf_counter() - began) * 1000)
    page["attempts"] = max(1, crawler.requests[link["url"]])
    crawler.forget(link)
    return page


def _new_page() -> Page:
    return Page(
        status=None,
        final_url=None,
        content_type=None,
        bytes=None,
        elapsed_ms=0,
        attempts=1,
        fetched_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        title=None,
        selected={},
        links_n=0,
        error=None,
        links=[],
    )


async def _fetch(
    link: Link, crawler: Crawler, context: Context, page: Page, parse: Parse | None
) -> None:
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
        answer = await crawler.ask(url, link)
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
        else:
            await crawler.read(answer, page, parse)


def _is_guess(link: Link) -> bool:
    """Whether this sitemap's URL is a guess, which robots.txt may correct."""
    return link["parent"] is None


def sitemap_links(starts: Iterable[Link]) -> list[Link]:
    """Return the default sitemaps of sites, for robots.txt files that name none."""
    sites = dict.fromkeys(origin_of(link["url"]) for link in starts)
    return [Link(url=f"{site}/sitemap.xml", depth=0, parent=None, kind="sitemap") for site in sites]


def is_tried_again(error: Exception) -> bool:
    return isinstance(error, FetchError) and error.transient and not error.is_host


def has_match(_: State, outcome: Outcome) -> bool:
    return isinstance(outcome, Done) and outcome.value.get("matched") is True


def site_crawl(crawler: Crawler, *, parse: Parse | None = None) -> FanOut:
    """Make the fan-out that crawls from the links in the field `starts`.

    Args:
        crawler: The crawl's parts; also an input of its runs.
        parse: Makes records of each page, and says which of its links are followed; by default
            pages have no records, and all links are followed.
    """
    settings = crawler.settings
    asking = action(
        reads=["link"], writes=["page"], limits=crawler.politeness.limits(settings.per_host)
    )
    retry = Retry(
        settings.retries + 1, on=is_tried_again, initial=settings.retry_wait, cap=30.0
    )  # without a budget: in an outage `health` holds pages back, and every page must be retried
    return fan_out(
        asking(fetch) if parse is None else asking(fetch).bind(parse=parse),
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
