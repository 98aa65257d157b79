"""Reads the body of an answer: the title of a page, its links and the selected texts.

The functions take and return plain data, because `parsing` may run them in another process.
"""

import gzip
import io
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple
from urllib.parse import quote
from xml.etree import ElementTree as ET

from selectolax.lexbor import LexborHTMLParser
from w3lib.encoding import html_to_unicode

from examples.scraper.settings import HTML_TYPES
from examples.scraper.urls import resolve

MAX_SITEMAP = 50 * 1024 * 1024  # bytes after decompression, the limit of sitemaps.org


class Wanted(NamedTuple):
    """The parts to read from each page of a crawl."""

    select: Mapping[str, str] = {}
    """CSS selectors by name."""
    text: bool = False
    match: str | None = None
    """A regular expression to search for."""


class Found(NamedTuple):
    """The parts that were read from one page."""

    base: str
    """The base of its relative links."""
    title: str | None = None
    hrefs: tuple[str, ...] = ()
    selected: Mapping[str, list[str]] = {}
    text: str | None = None
    matched: bool | None = None


def read_page(body: bytes, content_type: str, url: str, wanted: Wanted) -> Found:
    """Read a page; if it isn't HTML, only search it for the match."""
    kind = media_type(content_type) or sniffed(body)
    if kind not in HTML_TYPES:
        return Found(url, matched=_matches(wanted, body.decode("utf-8", "replace")))
    document = Document(body, content_type, url)
    return Found(
        base=document.base,
        title=document.title,
        hrefs=tuple(document.hrefs()),
        selected={name: document.select(css) for name, css in wanted.select.items()},
        matched=_matches(wanted, document.html),
        text=document.text() if wanted.text else None,  # the last, because it removes scripts
    )


def _matches(wanted: Wanted, text: str) -> bool | None:
    return None if wanted.match is None else re.search(wanted.match, text) is not None


class Document:
    """An HTML page, decoded and parsed. The parser accepts broken HTML."""

    def __init__(self, body: bytes, content_type: str, url: str) -> None:
        """Parse the body of `url`."""
        # It handles byte order marks, meta tags, and the encoding names that browsers accept.
        self._encoding, self.html = html_to_unicode(content_type, body)
        self._tree = LexborHTMLParser(self.html)
        self._url = url

    @property
    def title(self) -> str | None:
        found = self._tree.css_first("title")
        return None if found is None else " ".join(found.text().split())

    @property
    def base(self) -> str:
        """The base URL of relative links."""
        tag = self._tree.css_first("base[href]")
        href = None if tag is None else tag.attributes.get("href")
        return resolve(self._url, href) or self._url if href else self._url

    def hrefs(self) -> Iterator[str]:
        """Return the links as written, without fragments and duplicates."""
        # An index page can link to each page forty times.
        return iter(dict.fromkeys(self._hrefs()))

    def _hrefs(self) -> Iterator[str]:
        for node in self._tree.css("a[href], area[href]"):
            # It also finds `xlink:href`, which links of an SVG may have instead, as in those that
            # Graphviz, PlantUML and Doxygen make.
            attributes = node.attributes
            href = attributes.get("href", attributes.get("xlink:href"))
            yield self._encoded((href or "").partition("#")[0])

    def _encoded(self, href: str) -> str:
        """Escape a query as browsers do: in the page's encoding, if that isn't UTF-8."""
        if href.isascii() or self._encoding == "utf-8":
            return href
        path, mark, query = href.partition("?")
        try:
            return path + mark + quote(query.encode(self._encoding), safe=_ASCII)
        # characters that the encoding lacks are written as UTF-8
        except (LookupError, UnicodeEncodeError):
            return href

    def select(self, css: str) -> list[str]:
        """Return the texts of all elements that a selector finds."""
        return [" ".join(node.text().split()) for node in self._tree.css(css)]

    def text(self) -> str:
        """Return the visible text in one line. This removes scripts and styles for good."""
        self._tree.strip_tags(["script", "style", "noscript", "template"])
        body = self._tree.body
        return "" if body is None else " ".join(body.text(separator=" ").split())


_ASCII = bytes(range(128)).decode()


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
