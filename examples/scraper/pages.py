"""What is read from the body of an answer: the title of a page, its links, what was asked for.

The functions take and return plain data, since `parsing` may have them done in another process.
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

MAX_SITEMAP = 50 * 1024 * 1024  # bytes, unpacked: what sitemaps.org allows


class Wanted(NamedTuple):
    """What is read from each page of a crawl."""

    select: Mapping[str, str] = {}
    """Names, and CSS selectors."""
    text: bool = False
    match: str | None = None
    """A regular expression."""


class Found(NamedTuple):
    """What was read from one page."""

    base: str
    """What its links are relative to."""
    title: str | None = None
    hrefs: tuple[str, ...] = ()
    selected: Mapping[str, list[str]] = {}
    text: str | None = None
    matched: bool | None = None


def read_page(body: bytes, content_type: str, url: str, wanted: Wanted) -> Found:
    """Read a page; of one that is no HTML, nothing but whether it matches."""
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
        text=document.text() if wanted.text else None,  # the last: it takes scripts away
    )


def _matches(wanted: Wanted, text: str) -> bool | None:
    return None if wanted.match is None else re.search(wanted.match, text) is not None


class Document:
    """A page of HTML, decoded and parsed. No HTML is too broken for that."""

    def __init__(self, body: bytes, content_type: str, url: str) -> None:
        """Parse what was found at `url`."""
        # It knows byte order marks, meta tags, and which names browsers take for which encoding.
        self._encoding, self.html = html_to_unicode(content_type, body)
        self._tree = LexborHTMLParser(self.html)
        self._url = url

    @property
    def title(self) -> str | None:
        found = self._tree.css_first("title")
        return None if found is None else " ".join(found.text().split())

    @property
    def base(self) -> str:
        """What its links are relative to."""
        tag = self._tree.css_first("base[href]")
        href = None if tag is None else tag.attributes.get("href")
        return resolve(self._url, href) or self._url if href else self._url

    def hrefs(self) -> Iterator[str]:
        """What it links to, as it is written, but without fragments and once each."""
        # An index page links to each page some forty times.
        return iter(dict.fromkeys(self._hrefs()))

    def _hrefs(self) -> Iterator[str]:
        for node in self._tree.css("a[href], area[href]"):
            # It finds `xlink:href` as well, which the links of an SVG may have instead: Graphviz,
            # PlantUML and Doxygen make those.
            attributes = node.attributes
            href = attributes.get("href", attributes.get("xlink:href"))
            yield self._encoded((href or "").partition("#")[0])

    def _encoded(self, href: str) -> str:
        """Escape a query as browsers do: in the encoding of the page, where that isn't UTF-8."""
        if href.isascii() or self._encoding == "utf-8":
            return href
        path, mark, query = href.partition("?")
        try:
            return path + mark + quote(query.encode(self._encoding), safe=_ASCII)
        except (LookupError, UnicodeEncodeError):  # what the encoding lacks is left to UTF-8
            return href

    def select(self, css: str) -> list[str]:
        """The texts of all elements that a selector finds."""
        return [" ".join(node.text().split()) for node in self._tree.css(css)]

    def text(self) -> str:
        """What a reader sees, in one line. Scripts and styles are gone for good after this."""
        self._tree.strip_tags(["script", "style", "noscript", "template"])
        body = self._tree.body
        return "" if body is None else " ".join(body.text(separator=" ").split())


_ASCII = bytes(range(128)).decode()


def media_type(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def sniffed(body: bytes) -> str:
    """The type of a body that came without one: HTML if it looks like markup."""
    return HTML_TYPES[0] if body.lstrip()[:1] == b"<" else "application/octet-stream"


_LOC = re.compile(r"\{[^}]*\}loc$|^loc$")


def read_sitemap(body: bytes) -> tuple[list[str], list[str]]:
    """The sitemaps and the pages that a sitemap names; it may be gzipped, or a plain list.

    Raises:
        ValueError: It is neither of these, or longer than `MAX_SITEMAP`.
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
    if b"<!DOCTYPE" in body or b"<!ENTITY" in body:  # no sitemap has one, every entity bomb does
        raise ValueError("no sitemap: it has a document type")
    try:
        root = ET.fromstring(body)
    except ET.ParseError as error:
        raise ValueError(f"no sitemap: {error}") from None
    found = [node.text.strip() for node in root.iter() if _LOC.search(node.tag) and node.text]
    return (found, []) if root.tag.endswith("sitemapindex") else ([], found)
