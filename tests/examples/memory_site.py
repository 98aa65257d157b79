"""Sites that exist in memory only, and crawls of them in virtual time."""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Literal

import anyio
import httpx

from examples.scraper.crawl import Crawler, site_crawl, sitemap_links
from examples.scraper.fetching.fetch import HttpxFetcher
from examples.scraper.frontier.links import Frontier, start_link
from examples.scraper.output.progress import Tally
from examples.scraper.output.rows import Row, row_of
from examples.scraper.politeness.health import Health
from examples.scraper.politeness.spacing import Politeness
from examples.scraper.reading.document import Parse
from examples.scraper.reading.pages import Wanted
from examples.scraper.reading.parsing import Parsers
from examples.scraper.settings import Settings
from shoal import Application, Hook
from shoal.events import ChildEnded
from shoal.testing import run_virtual

SITE = "http://site.example"
Answer = httpx.Response | Exception | Callable[[httpx.Request], Awaitable[httpx.Response]]


class Chunks(httpx.AsyncByteStream):
    """A body as it comes from a network: bit by bit, once."""

    def __init__(self, body: bytes, size: int = 1000) -> None:
        self._left = [body[start : start + size] for start in range(0, len(body), size)]

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop(0)


def answer(
    body: str | bytes = b"", status: int = 200, kind: str = "text/html", **headers: str
) -> httpx.Response:
    """Give an answer as a server sends it: packed, and bit by bit."""
    head = {"content-type": kind} | {name.replace("_", "-"): headers[name] for name in headers}
    content = body.encode() if isinstance(body, str) else body
    return httpx.Response(status, stream=Chunks(content), headers=head)


def html(*links: str, title: str = "page", status: int = 200) -> httpx.Response:
    anchors = "".join(f'<a href="{link}">x</a>' for link in links)
    return answer(f"<title>{title}</title>{anchors}", status)


def redirect(target: str, status: int = 302) -> httpx.Response:
    return answer(status=status, location=target)


def in_turn(
    *answers: httpx.Response, seconds: float = 0.0
) -> Callable[[httpx.Request], Awaitable[httpx.Response]]:
    left = list(answers)

    async def give(_: httpx.Request) -> httpx.Response:
        await anyio.sleep(seconds)
        return left.pop(0)

    return give


class Rows(Hook):
    """Keeps rows in memory."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def on_child_ended(self, event: ChildEnded) -> None:
        row = row_of(event.outcome)
        if row is not None:
            self.rows.append(row)


class Crawled:
    """A crawl that has ended: its rows, what it asked the network for, when, and its tally."""

    def __init__(self, rows: list[Row], asked: list[tuple[float, str]], tally: Tally) -> None:
        self.rows = {row["url"].removeprefix(SITE): row for row in rows}
        self.asked = asked
        self.requests = Counter(url for _, url in asked if url != "/robots.txt")
        self.tally = tally
        assert len(self.rows) == len(rows)
        assert len(rows) == tally.ended


Crawl = Callable[..., Crawled]


def crawl_by(backend: Literal["asyncio", "trio"]) -> Crawl:
    """Make a function that crawls `site` (path -> answer) from its front page; others are 404s."""

    def run(
        site: Mapping[str, Answer],
        starts: tuple[str, ...] = ("/",),
        parse: Parse | None = None,
        **settings: Any,
    ) -> Crawled:
        asked: list[tuple[float, str]] = []

        async def ask(request: httpx.Request) -> httpx.Response:
            url = str(request.url).removeprefix(SITE)
            asked.append((anyio.current_time(), url))
            match site.get(url, answer(status=404)):
                case httpx.Response() as response:
                    return response
                case Exception() as error:
                    raise error
                case give:
                    return await give(request)

        async def main() -> Tally:
            received = Settings(urls=tuple(SITE + start for start in starts), **settings)
            links = [start_link(url) for url in received.urls]
            frontier = Frontier(received, links)
            if received.sitemap:
                links += (sitemaps := sitemap_links(links))
                frontier.recall(sitemaps)
            politeness = Politeness(
                anyio.current_time,
                rate=received.rate,
                adaptive=received.adaptive,
                robots=received.robots,
            )
            health = Health(anyio.current_time, received.patience)
            tally = Tally(frontier, politeness, health)
            wanted = Wanted(received.select, received.text, received.until_match)
            transport = httpx.MockTransport(ask)
            async with httpx.AsyncClient(transport=transport) as client:
                with Parsers(wanted) as parsers:
                    crawler = Crawler(
                        received,
                        HttpxFetcher(client, received.timeout),
                        frontier,
                        politeness=politeness,
                        health=health,
                        parsers=parsers,
                    )
                    app = Application(site_crawl(crawler, parse=parse), hooks=[rows, tally])
                    await app.run({"starts": links}, inputs={"crawler": crawler})
            return tally

        rows = Rows()
        tally = run_virtual(main, backend=backend)
        return Crawled(rows.rows, asked, tally)

    return run
