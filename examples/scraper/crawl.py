"""The crawl: one fan-out over links that grows as links are found.

Each link is one child run of one action, `fetch`. A page's links join the frontier the moment its
result is applied, and a link whose key is known is dropped there, so every page is fetched once.
The state holds nothing but counts; what was fetched leaves through the hooks, page by page.
"""

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import replace
from typing import cast

import anyio
import httpx
from anyio import to_thread
from yarl import URL

from examples.scraper.pages import Link, Page, Scope, is_html, links_to, read_html, resolve
from shoal import Done, Failed, FanOut, Limits, Outcome, State, action, fan_out

PAGE_TIMEOUT = 30.0  # seconds for one page, from connecting to its last byte
MAX_BODY = 5 * 1024 * 1024  # bytes of HTML after decompression
MAX_REDIRECTS = 10  # in a row
PARSE_INLINE = 256 * 1024  # bytes; smaller pages are parsed before a thread would have started


class FetchError(Exception):
    """An answer came, but no page.

    `kind` is a word to count by: `http` for a status of 400 or more, `redirect` for one that leads
    out of the site or in circles, `size` for a body that is too long.
    """

    def __init__(self, kind: str, message: str, *, status: int, final_url: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status
        self.final_url = final_url


def kind_of(error: Exception) -> str:
    """The word that failures like `error` are counted under."""
    match error:
        case FetchError():
            return error.kind
        case TimeoutError() | httpx.TimeoutException():
            return "timeout"
        case httpx.ConnectError():
            return "connect"
        case httpx.TransportError():  # a connection that broke, an answer that isn't HTTP
            return "network"
        case httpx.InvalidURL():
            return "url"
        case _:
            return type(error).__name__


@action(reads=["link"], writes=["page"])
async def fetch(link: Link, client: httpx.AsyncClient, scope: Scope) -> Page:
    """Fetch one link and read what it leads to.

    A redirect is a page whose only link is its target, so the target is fetched once, however many
    addresses lead to it, and none is fetched outside the site. Only a redirect between two
    spellings of one key is followed right here: the frontier would drop its target as known.

    Raises:
        FetchError: There was an answer, but not a page of this site.
        httpx.HTTPError, httpx.InvalidURL: There was no answer.
        TimeoutError: The page took longer than `PAGE_TIMEOUT`.
    """
    target = link
    with anyio.fail_after(PAGE_TIMEOUT):
        while True:
            async with client.stream("GET", target.url) as response:
                if not response.has_redirect_location:
                    return await read_page(response, link, scope)
                target = redirect_target(response, link, target.hops, scope)
            if target.key != link.key:
                return Page(final_url=target.url, status=response.status_code, links=(target,))


async def read_page(response: httpx.Response, link: Link, scope: Scope) -> Page:
    """Read an answer that is no redirect; only HTML is read beyond its head."""
    url, status = str(response.url), response.status_code
    if response.is_error:
        message = f"{status} {response.reason_phrase}".strip()
        raise FetchError("http", message, status=status, final_url=url)
    content_type = response.headers.get("content-type", "")
    if not is_html(content_type):
        return Page(final_url=url, status=status)
    body = await read_body(response)
    if body is None:
        raise FetchError("size", f"longer than {MAX_BODY:,} bytes", status=status, final_url=url)
    if len(body) <= PARSE_INLINE:
        title, targets = read_html(body, content_type, url)
    else:
        title, targets = await to_thread.run_sync(read_html, body, content_type, url)
    return Page(
        final_url=url, status=status, title=title, links=links_to(targets, on=link, scope=scope)
    )


async def read_body(response: httpx.Response) -> bytes | None:
    """Read a body of at most `MAX_BODY` bytes as they are after decompression; None if longer."""
    body = bytearray()
    # A generator that is left early is closed here, not by the garbage collector at some time.
    async with aclosing(cast("AsyncGenerator[bytes, None]", response.aiter_bytes())) as chunks:
        async for chunk in chunks:
            body += chunk
            if len(body) > MAX_BODY:
                return None
    return bytes(body)


def redirect_target(response: httpx.Response, link: Link, hops: int, scope: Scope) -> Link:
    """Where a redirect leads, `hops` redirects after the last page: as deep as `link` itself."""
    here, location = str(response.url), response.headers["location"]
    target = resolve(URL(here), location)
    if target is None:
        problem = f"redirect to no web address: {location}"
    elif target not in scope:
        problem = f"redirect out of the site: {target}"
    elif hops == MAX_REDIRECTS:
        problem = f"more than {MAX_REDIRECTS} redirects in a row"
    else:
        [found] = links_to([target], on=link, scope=scope)
        return replace(found, depth=link.depth, hops=hops + 1)
    raise FetchError("redirect", problem, status=response.status_code, final_url=here)


def count(state: State, outcome: Outcome) -> State:
    """Count one page, or one failure by its kind."""
    if not isinstance(outcome, Failed):
        return state.increment(pages=1)
    kind = kind_of(outcome.error)
    return state.put("failures", kind, state["failures"].get(kind, 0) + 1)


def site_crawl(
    *, concurrency: int, max_pages: int | None = None, max_depth: int | None = None
) -> FanOut:
    """The fan-out that crawls a site, from the links in the field `starts`.

    It begins at most `max_pages` fetches and follows links up to `max_depth` away from the start,
    each counted along the way on which it was found first.
    """

    def found_links(_: State, outcome: Outcome) -> Iterable[Link]:
        if not isinstance(outcome, Done):
            return ()
        page: Page = outcome.value
        return (link for link in page.links if max_depth is None or link.depth <= max_depth)

    return fan_out(
        fetch,
        over="starts",
        item="link",
        key="key",
        grow=found_links,
        reduce=count,
        reads=["failures"],
        writes=["pages", "failures"],
        at_most=max_pages,
        on_error="collect",
        take="page",
        limits=Limits(concurrency),
        name="crawl",
    )
