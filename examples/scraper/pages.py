"""Links and pages as values: what is read from HTML, which links count, which are the same.

Nothing here waits or talks to a network, and nothing but `start_link` raises on bad input: what is
no usable link is left out, and no HTML is too broken to be parsed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from selectolax.lexbor import LexborHTMLParser
from w3lib.encoding import html_to_unicode
from w3lib.url import canonicalize_url
from yarl import URL

HTML_TYPES = frozenset({"text/html", "application/xhtml+xml"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """An address to fetch, and how it was found.

    `url` is the address as the site spells it, made absolute; `key` is its canonical spelling. Two
    links with one key are one page: the key is what is remembered, the URL is what is asked for.
    `hops` counts the redirects that led here, one straight after the other.
    """

    url: str
    key: str
    depth: int = 0
    parent: str | None = None
    hops: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What is kept of an answer: a few strings, never the body."""

    final_url: str
    status: int
    title: str | None = None
    links: tuple[Link, ...] = ()


@dataclass(frozen=True, slots=True)
class Scope:
    """The part of the web that belongs to a crawl: every http(s) address of a few origins."""

    origins: frozenset[tuple[str, str | None, int | None]]  # scheme, host, port

    @classmethod
    def of(cls, urls: Iterable[str]) -> "Scope":
        """The scope that `urls` span."""
        return cls(frozenset(_origin(URL(url)) for url in urls))

    def __contains__(self, url: URL) -> bool:
        return is_web(url) and _origin(url) in self.origins


def _origin(url: URL) -> tuple[str, str | None, int | None]:
    # Not `url.origin()`: to that, :80 spelt out is another origin than :80 left out.
    return url.scheme, url.raw_host, url.port


def is_web(url: URL) -> bool:
    """Whether this is a full http or https address."""
    return url.scheme in {"http", "https"} and bool(url.raw_host)


# A site repeats its navigation on every page, so most links have been spelt out before.
@lru_cache(maxsize=65_536)
def key_of(url: str) -> str:
    """The canonical spelling of an absolute URL: escapes alike, query sorted, no fragment."""
    return canonicalize_url(url)


def start_link(url: str) -> Link:
    """The link a crawl begins with.

    Raises:
        ValueError: `url` is not a full http or https address.
    """
    absolute = URL(url.strip()).with_fragment(None)
    if not is_web(absolute):
        raise ValueError("not a full http:// or https:// address")
    return Link(url=str(absolute), key=key_of(str(absolute)))


def resolve(base: URL, href: str) -> URL | None:
    """Where `href` leads from `base`, fragment dropped; None if it is no valid web address."""
    try:
        url = base.join(URL(href.strip())).with_fragment(None)
        # Some bad host names only show here, and must show before the crawl asks for a key.
        key_of(str(url))
    except ValueError:  # `http://[bad`, a port of 99999, a host label of 64 characters
        return None
    return url if is_web(url) else None


def links_to(urls: Iterable[URL], *, on: Link, scope: Scope) -> tuple[Link, ...]:
    """The links of a page to `urls`, as far as they stay in `scope`."""
    return tuple(
        Link(url=str(url), key=key_of(str(url)), depth=on.depth + 1, parent=on.url)
        for url in urls
        if url in scope
    )


def is_html(content_type: str) -> bool:
    """Whether a body of this type is to be parsed; one that names no type is."""
    media_type = content_type.partition(";")[0].strip().lower()
    return media_type in HTML_TYPES or not media_type


def read_html(body: bytes, content_type: str, url: str) -> tuple[str | None, list[URL]]:
    """The title of a document that was found at `url`, and every address that it links to."""
    _, html = html_to_unicode(content_type, body)
    tree = LexborHTMLParser(html)
    title = tree.css_first("title")
    return (
        " ".join(title.text().split()) if title is not None else None,
        list(_targets(tree, URL(url))),
    )


def _targets(tree: LexborHTMLParser, base: URL) -> Iterator[URL]:
    if (base_tag := tree.css_first("base[href]")) is not None:
        base = resolve(base, base_tag.attributes["href"] or "") or base
    hrefs = (node.attributes["href"] or "" for node in tree.css("a[href], area[href]"))
    # Without their fragments first: an index page links to each page some forty times.
    for href in dict.fromkeys(href.partition("#")[0] for href in hrefs):
        if (url := resolve(base, href)) is not None:
            yield url
