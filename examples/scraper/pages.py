"""What is read from the text of a page: its title, its links, and what was asked for besides."""

import gzip
import io
import re
from collections.abc import Iterator
from xml.etree import ElementTree as ET

from selectolax.lexbor import LexborHTMLParser
from w3lib.encoding import html_to_unicode
from yarl import URL

from examples.scraper.frontier import resolve
from examples.scraper.settings import HTML_TYPES

MAX_SITEMAP = 50 * 1024 * 1024  # bytes, unpacked: what sitemaps.org allows


class Document:
    """A page of HTML, decoded and parsed. No HTML is too broken for that."""

    def __init__(self, body: bytes, content_type: str, url: str) -> None:
        """Parse what was found at `url`."""
        # It knows byte order marks, meta tags, and which names browsers take for which encoding.
        _, self.html = html_to_unicode(content_type, body)
        self._tree = LexborHTMLParser(self.html)
        self._url = url

    @property
    def title(self) -> str | None:
        found = self._tree.css_first("title")
        return None if found is None else " ".join(found.text().split())

    @property
    def base(self) -> URL:
        """What its links are relative to."""
        base = URL(self._url)
        tag = self._tree.css_first("base[href]")
        return base if tag is None else resolve(base, tag.attributes["href"] or "") or base

    def hrefs(self) -> Iterator[str]:
        """What it links to, as it is written, but without fragments and once each."""
        found = (node.attributes["href"] or "" for node in self._tree.css("a[href], area[href]"))
        # An index page links to each page some forty times.
        return iter(dict.fromkeys(href.partition("#")[0] for href in found))

    def select(self, css: str) -> list[str]:
        """The texts of all elements that a selector finds."""
        return [" ".join(node.text().split()) for node in self._tree.css(css)]

    def text(self) -> str:
        """What a reader sees, in one line. Scripts and styles are gone for good after this."""
        self._tree.strip_tags(["script", "style", "noscript", "template"])
        body = self._tree.body
        return "" if body is None else " ".join(body.text(separator=" ").split())


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
