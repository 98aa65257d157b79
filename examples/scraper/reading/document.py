"""An HTML page, and the elements in it: what a parser of your own is given.

A parser is a plain function that yields records (mappings, a row of the output each) and links:

    def books(page: Document) -> Iterator[Record | Follow]:
        for book in page.css("article"):
            yield {"title": book.attribute("title", "h3 a"), "price": book.text(".price")}
        yield from page.follow(".next a, h3 a")
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple
from urllib.parse import quote

from selectolax.lexbor import LexborHTMLParser, LexborNode
from w3lib.encoding import html_to_unicode

from examples.scraper.fetching.urls import resolve

Record = Mapping[str, object]
"""A row of the output: plain data, so that it can be saved."""


class Follow(NamedTuple):
    """A link for the crawl to follow, if it belongs to the crawl."""

    href: str


Parse = Callable[["Document"], Iterable[Record | Follow]]
"""Takes a page apart. It is called in another process for large pages, so it must be importable."""


class Element:
    """An element of a page."""

    def __init__(self, node: LexborNode, base: str) -> None:
        self._node = node
        self._base = base

    def css(self, selector: str) -> "list[Element]":
        """All elements inside of this one that a selector finds."""
        return [Element(node, self._base) for node in self._node.css(selector)]

    def text(self, selector: str | None = None) -> str:
        """The text of the element, or of the first one that a selector finds; else ""."""
        node = self._find(selector)
        return "" if node is None else " ".join(node.text().split())

    def attribute(self, name: str, selector: str | None = None) -> str | None:
        """An attribute of the element, or of the first one that a selector finds."""
        node = self._find(selector)
        return None if node is None else node.attributes.get(name)

    def url(self, selector: str | None = None, attribute: str = "href") -> str | None:
        """A link as an absolute URL without its fragment; None if it is no address of the web."""
        href = self.attribute(attribute, selector)
        return None if href is None else resolve(self._base, href)

    def _find(self, selector: str | None) -> LexborNode | None:
        return self._node if selector is None else self._node.css_first(selector)


class Document:
    """An HTML page, decoded and parsed. The parser accepts broken HTML."""

    def __init__(self, body: bytes, content_type: str, url: str) -> None:
        """Parse the body of `url`."""
        # It handles byte order marks, meta tags, and the encoding names that browsers accept.
        self._encoding, self.html = html_to_unicode(content_type, body)
        self._tree = LexborHTMLParser(self.html)
        self.url: str = url
        """The address of the page."""

    @property
    def title(self) -> str | None:
        found = self._tree.css_first("title")
        return None if found is None else " ".join(found.text().split())

    @property
    def base(self) -> str:
        """The base URL of relative links."""
        tag = self._tree.css_first("base[href]")
        href = None if tag is None else tag.attributes.get("href")
        return resolve(self.url, href) or self.url if href else self.url

    @property
    def root(self) -> Element:
        """The outermost element. An empty page has one, too."""
        root = self._tree.root
        assert root is not None
        return Element(root, self.base)

    def css(self, selector: str) -> list[Element]:
        """All elements that a selector finds."""
        return self.root.css(selector)

    def text(self, selector: str) -> str:
        """The text of the first element that a selector finds; else ""."""
        return self.root.text(selector)

    def follow(self, selector: str = "a[href], area[href]") -> Iterator[Follow]:
        """The links of all elements that a selector finds, for the crawl to follow."""
        return map(Follow, dict.fromkeys(self._hrefs(selector)))

    def hrefs(self) -> Iterator[str]:
        """Return the links as written, without fragments and duplicates."""
        # An index page can link to each page forty times.
        return iter(dict.fromkeys(self._hrefs("a[href], area[href]")))

    def _hrefs(self, selector: str) -> Iterator[str]:
        for node in self._tree.css(selector):
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

    def select(self, css: str, attribute: str | None = None) -> list[str]:
        """Return the texts, or an attribute, of all elements that a selector finds."""
        found = self._tree.css(css)
        if attribute is None:
            return [" ".join(node.text().split()) for node in found]
        return [value for node in found if (value := node.attributes.get(attribute)) is not None]

    def visible_text(self) -> str:
        """Return the visible text in one line. This removes scripts and styles for good."""
        self._tree.strip_tags(["script", "style", "noscript", "template"])
        body = self._tree.body
        return "" if body is None else " ".join(body.text(separator=" ").split())


_ASCII = bytes(range(128)).decode()
