"""Reads the body of an answer: the title of a page, its links and the selected texts.

The functions take and return plain data, because `parsing` may run them in another process.
"""

import gzip
import io
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, cast
from xml.etree import ElementTree as ET

from examples.scraper.reading.document import Document, Follow, Parse, Record
from examples.scraper.settings import HTML_TYPES, split_attribute

MAX_SITEMAP = 50 * 1024 * 1024  # bytes after decompression, the limit of sitemaps.org


class Wanted(NamedTuple):
    """The parts to read from each page of a crawl."""

    select: Mapping[str, str] = {}
    """CSS selectors by name."""
    text: bool = False
    match: str | None = None
    """A regular expression to search for."""
    parse: Parse | None = None
    """A parser that yields the records and the links, instead of all links."""


class Found(NamedTuple):
    """The parts that were read from one page."""

    base: str
    """The base of its relative links."""
    title: str | None = None
    hrefs: tuple[str, ...] = ()
    selected: Mapping[str, list[str]] = {}
    text: str | None = None
    matched: bool | None = None
    records: list[dict[str, Any]] | None = None
    """The records of a parser, if there is one."""


def read_page(body: bytes, content_type: str, url: str, wanted: Wanted) -> Found:
    """Read a page; if it isn't HTML, only search it for the match."""
    kind = media_type(content_type) or sniffed(body)
    if kind not in HTML_TYPES:
        return Found(url, matched=_matches(wanted, body.decode("utf-8", "replace")))
    document = Document(body, content_type, url)
    if wanted.parse is None:
        records, hrefs = None, list(document.hrefs())
    else:
        records, hrefs = _parsed(document, wanted.parse)
    select = {name: split_attribute(css) for name, css in wanted.select.items()}
    return Found(
        base=document.base,
        title=document.title,
        hrefs=tuple(hrefs),
        selected={name: document.select(*where) for name, where in select.items()},
        matched=_matches(wanted, document.html),
        records=records,
        text=document.visible_text() if wanted.text else None,  # last, because it removes scripts
    )


def _parsed(document: Document, parse: Parse) -> tuple[list[dict[str, Any]], list[str]]:
    records, hrefs = list[dict[str, Any]](), list[str]()
    for one in cast("Iterable[object]", parse(document)):  # whatever the types say
        match one:
            case Follow(href):
                hrefs.append(href.partition("#")[0])
            case Mapping():
                records.append(dict(cast("Record", one)))
            case _:
                raise TypeError(
                    f"{parse.__qualname__} yielded {one!r}: yield a mapping for a record, and "
                    f"Follow(href) for a link"
                )
    return records, hrefs


def _matches(wanted: Wanted, text: str) -> bool | None:
    return None if wanted.match is None else re.search(wanted.match, text) is not None


def media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def sniffed(body: bytes) -> str:
    """Guess the content type of a body without one: HTML if it looks like markup."""
    return HTML_TYPES[0] if body.lstrip()[:1] == b"<" else "application/octet-stream"


_LOC = re.compile(r"\{[^}]*\}loc$|^loc$")


def read_sitemap(body: bytes) -> tuple[list[str], list[str]]:
    """Return the sitemaps and pages that a sitemap names; it may be gzipped or a plain list.

    Raises:
        ValueError: It is no sitemap, or longer than `MAX_SITEMAP`.
    """
    if body[:2] == b"\x1f\x8b":
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(body)) as unpacked:
                body = unpacked.read(MAX_SITEMAP + 1)
        except (OSError, EOFError) as error:
            raise ValueError(f"no sitemap: {error}") from None
    if len(body) > MAX_SITEMAP:
        raise ValueError(f"a sitemap longer than {MAX_SITEMAP:,} bytes")
    if body.lstrip()[:1] != b"<":
        return [], body.decode("utf-8", "replace").split()
    # no sitemap has one, but every entity bomb does
    if b"<!DOCTYPE" in body or b"<!ENTITY" in body:
        raise ValueError("no sitemap: it has a document type")
    try:
        root = ET.fromstring(body)
    except ET.ParseError as error:
        raise ValueError(f"no sitemap: {error}") from None
    found = [node.text.strip() for node in root.iter() if _LOC.search(node.tag) and node.text]
    return (found, []) if root.tag.endswith("sitemapindex") else ([], found)
