"""A crawler in one file: every page of a site once, politely, and a crash loses nothing.

    python -m examples.scraper.tutorial https://example.org/ pages.db

prints each page when it is saved. Interrupt it or kill it, and give the same command again: it
continues where it was. With `retry` at its end, the command tries the pages that have failed again.
The application around this file also heeds robots.txt, and waits for hosts that are down.
"""

import sys
from collections.abc import Iterable
from typing import TypedDict
from urllib.parse import urldefrag, urljoin, urlsplit

import anyio
import httpx
from selectolax.lexbor import LexborHTMLParser

from shoal import (
    Application,
    Done,
    Each,
    Failed,
    Hook,
    Limits,
    Outcome,
    Rate,
    Retry,
    RetryLater,
    SQLiteStore,
    State,
    action,
    fan_out,
)
from shoal.events import ChildEnded


class Page(TypedDict):
    title: str
    links: list[str]


def host_of(state: State) -> str:
    return httpx.URL(state["url"]).netloc.decode()


# For each host at most 4 requests at once, and 10 in a second. A request that waits holds nothing.
PER_HOST = Limits(4, rate=Rate(10, per=1.0, burst=4), by=host_of)


# An action is one step: it reads fields of its state, and writes others.
@action(reads=["url"], writes=["page"], limits=PER_HOST)
async def fetch(url: str, client: httpx.AsyncClient) -> Page:
    response = await client.get(url)
    if response.status_code in (429, 503):  # "later": the host is paused, the page keeps its turn
        seconds = response.headers.get("retry-after", "")
        raise RetryLater(float(seconds) if seconds.isdecimal() else 5.0)
    response.raise_for_status()
    if "html" not in response.headers.get("content-type", ""):
        return Page(title="", links=[])
    tree = LexborHTMLParser(response.content)
    title, host = tree.css_first("title"), httpx.URL(url).netloc
    hrefs = (node.attributes.get("href") or "" for node in tree.css("a[href]"))
    found = dict.fromkeys(urldefrag(urljoin(str(response.url), href)).url for href in hrefs)
    links = [link for link in found if urlsplit(link).netloc.encode() == host]
    return Page(title="" if title is None else title.text(strip=True), links=links)


def may_pass(error: Exception) -> bool:
    """Whether another attempt may help: after a broken connection or a server's fault."""
    if isinstance(error, httpx.HTTPStatusError):
        return error.response.status_code >= 500
    return isinstance(error, httpx.TransportError)


def found_on(_: State, outcome: Outcome) -> Iterable[str]:
    return outcome.value["links"] if isinstance(outcome, Done) else ()


# A fan-out runs an act for many elements: each page is a child run with a state of its own.
crawl = fan_out(
    fetch,
    over="starts",  # the elements to begin with: a field of the state
    item="url",  # the field in which a child finds its element
    key=str,  # pages with the same key are one page
    grow=found_on,  # each page adds its links; those with a known key are dropped
    at_most=1000,  # pages in all, however often the crawl is resumed
    into="pages",  # the state's field for the results: {url: page}
    errors_into="failed",  # and for the failures: {url: error}
    on_error="collect",  # a page that failed doesn't end the crawl
    each=Each(timeout=60, retry=Retry(3, on=may_pass)),
    limits=Limits(16),  # pages in flight, over all hosts
)


class Shown(Hook):
    """Prints each page. A hook is called after the page is saved."""

    def on_child_ended(self, event: ChildEnded) -> None:
        outcome = event.outcome
        if isinstance(outcome, Done | Failed):
            text = outcome.value["title"] if isinstance(outcome, Done) else str(outcome.error)
            print(f"{outcome.key}: {text}", flush=True)


async def crawl_site(start: str, database: str, again: bool = False) -> dict[str, Page]:
    """Crawl a site, or continue; return all its pages."""
    app = Application(crawl, name="tutorial", store=SQLiteStore(database), hooks=[Shown()])
    async with httpx.AsyncClient(follow_redirects=True, timeout=15.0) as client:
        inputs = {"client": client}  # the actions get it by name; inputs are not saved
        if again:
            result = await app.retry_failed(start, inputs=inputs)
        else:  # the id makes it resumable: the same start is the same run
            result = await app.run({"starts": [start]}, id=start, inputs=inputs)
    return result.state.to_plain()["pages"]


if __name__ == "__main__":
    _, address, file, *more = sys.argv
    anyio.run(crawl_site, address, file, more == ["retry"])
