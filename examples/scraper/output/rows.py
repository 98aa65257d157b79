"""Rows: the result of each link for people and programs, one for each page, fetched or not.

With a parser of one's own, the output has its records instead.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from examples.scraper.crawl import Page
from examples.scraper.fetching.fetch import FetchError, LeftAlone
from examples.scraper.frontier.links import Link
from examples.scraper.settings import Settings
from shoal import Done, Failed, Outcome, RetryLater

Row = dict[str, Any]

COLUMNS = (
    "url",
    "final_url",
    "status",
    "depth",
    "parent",
    "content_type",
    "bytes",
    "elapsed_ms",
    "attempts",
    "fetched_at",
    "title",
    "selected",
    "links_n",
    "error",
)


def columns_of(settings: Settings) -> tuple[str, ...]:
    """The names of the fields that each row may have, in formats that need them."""
    if settings.spider is not None:
        return tuple(dict.fromkeys(("url", *settings.columns)))
    return (*COLUMNS, "text") if settings.text else COLUMNS


def lines_of(rows: Iterable[Row], settings: Settings) -> Iterable[Row]:
    """What the output has of pages: a row for each, or their records."""
    return rows if settings.spider is None else records_of(rows)


def row_of(outcome: Outcome) -> Row | None:
    """The row of a child that has ended; None if it has no row, such as a cancelled child."""
    if isinstance(outcome, Done) and outcome.used:
        return page_row(outcome.element, outcome.value)
    if isinstance(outcome, Failed):
        return failed_row(outcome.element, outcome.error, outcome.attempts, outcome.elapsed)
    return None


def page_row(link: Link, page: Page) -> Row | None:
    """The row of a link that was answered; None for a sitemap, which is no page."""
    if link.get("kind") is not None:
        return None
    row: Row = {
        "url": link["url"],
        "final_url": page["final_url"],
        "status": page["status"],
        "depth": link["depth"],
        "parent": link["parent"],
        "content_type": page["content_type"],
        "bytes": page["bytes"],
        "elapsed_ms": page["elapsed_ms"],
        "attempts": page["attempts"],
        "fetched_at": page["fetched_at"],
        "title": page["title"],
        "selected": page["selected"],
        "links_n": page["links_n"],
        "error": page["error"],
    }
    if "text" in page:
        row["text"] = page["text"]
    if "records" in page:
        row["records"] = page["records"]
    return row


def records_of(rows: Iterable[Row]) -> Iterator[Row]:
    """The records of pages, one row each, with the page's URL unless they have one of their own."""
    for row in rows:
        for record in row.get("records", ()):
            yield {"url": row["url"], **record}


def failed_row(link: Link, error: BaseException, attempts: int, elapsed: float) -> Row | None:
    """The row of a link without an answer."""
    if link.get("kind") is not None:
        return None
    row: Row = dict.fromkeys(COLUMNS)
    row |= {"url": link["url"], "depth": link["depth"], "parent": link["parent"]}
    row |= {"selected": {}, "links_n": 0, "attempts": attempts}
    row["elapsed_ms"] = round(elapsed * 1000)
    row["error"] = {"kind": kind_of(error), "message": str(error) or type(error).__name__}
    if isinstance(error, FetchError | LeftAlone):
        row |= {"final_url": error.final_url, "status": error.status}
        row["attempts"] = error.requests or attempts
    return row


def kind_of(error: BaseException) -> str:
    """The word that failures like `error` are counted by."""
    if isinstance(error, FetchError | LeftAlone):
        return error.kind
    if isinstance(error, RetryLater):
        return "refused"
    # SavedError keeps the original class name
    return getattr(error, "type", None) or type(error).__name__
