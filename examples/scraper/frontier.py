"""The frontier: links as values, which of them belong to a crawl, and which are the same page.

Nothing here waits or talks to a network, and nothing but `start_link` raises on bad input: what is
no usable link is left out.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, Literal, NotRequired, TypedDict
from urllib.parse import urlsplit

from w3lib.url import canonicalize_url
from yarl import URL

from examples.scraper.settings import ScopeName, Settings
from shoal import Done, Outcome, State

MAX_URL = 2083  # characters; longer ones are made by machines, for machines
MAX_SEGMENTS = 20  # in a path
MAX_REPEATS = 3  # of one segment in a path: /calendar/next/next/next/next leads nowhere
MAX_VARIANTS = 1000  # queries that one path is asked for


class Link(TypedDict):
    """An address to fetch, and how it was found: plain data, which is quickly saved.

    `url` is the address as the site spells it, made absolute; that is what is asked for. What is
    remembered is `key_of(url)`: two links with one key are one page.
    """

    url: str
    depth: int
    parent: str | None
    hops: NotRequired[int]
    """Redirects that led here, one straight after the other."""
    kind: NotRequired[Literal["sitemap"]]


# A site repeats its navigation on every page, so most links have been spelt out before.
@lru_cache(maxsize=65_536)
def key_of(url: str) -> str:
    """The canonical spelling of an absolute URL: escapes alike, query sorted, no fragment."""
    return canonicalize_url(url)


def key_of_link(link: Link) -> str:
    return key_of(link["url"])


@lru_cache(maxsize=4096)
def host_of(url: str) -> str:
    """What is asked: host and port, whatever the scheme. Limits count by it."""
    return urlsplit(url).netloc.rpartition("@")[2].lower()


def is_web(url: URL) -> bool:
    """Whether this is a full http or https address."""
    return url.scheme in {"http", "https"} and bool(url.raw_host)


def start_link(url: str) -> Link:
    """The link a crawl begins with.

    Raises:
        ValueError: `url` is not a full http or https address.
    """
    absolute = URL(url.strip()).with_fragment(None)
    if not is_web(absolute):
        raise ValueError("not a full http:// or https:// address")
    key_of(str(absolute))
    return Link(url=str(absolute), depth=0, parent=None)


def resolve(base: URL, href: str) -> URL | None:
    """Where `href` leads from `base`, fragment dropped; None if it is no valid web address."""
    try:
        url = base.join(URL(href.strip())).with_fragment(None)
        # Some bad host names only show here, and must show before the crawl asks for a key.
        key_of(str(url))
    except ValueError:  # `http://[bad`, a port of 99999, a host label of 64 characters
        return None
    return url if is_web(url) else None


class Scope:
    """The part of the web that belongs to a crawl."""

    def __init__(self, urls: Iterable[str], name: ScopeName = "origin") -> None:
        """Span what `urls` do.

        Args:
            urls: Where the crawl begins.
            name: How far around them it goes: to pages of the same scheme, host and port; of the
                same host; of the same registered domain, as example.co.uk; or anywhere.
        """
        self._place_of = {"origin": _origin, "host": _host, "domain": _domain}.get(name)
        if self._place_of is not None:
            self._places = {self._place_of(URL(url)) for url in urls}

    def __contains__(self, url: URL) -> bool:
        return is_web(url) and (self._place_of is None or self._place_of(url) in self._places)


def _origin(url: URL) -> object:
    # Not `url.origin()`: to that, :80 spelt out is another origin than :80 left out.
    return url.scheme, url.raw_host, url.port


def _host(url: URL) -> object:
    return url.raw_host


def _domain(url: URL) -> object:
    host = url.raw_host or ""
    return _registered(host) or host  # an address or a bare name is a domain by itself


@lru_cache(maxsize=1024)
def _registered(host: str) -> str:
    return _suffixes()(host).top_domain_under_public_suffix


@lru_cache(maxsize=1)
def _suffixes() -> Any:
    from tldextract import TLDExtract  # noqa: PLC0415 - only who asks for domains needs it

    return TLDExtract(suffix_list_urls=(), cache_dir=None)  # the list that it brings along


def looks_like_a_trap(url: str) -> bool:
    """Whether an address looks as if a machine could make ever more of its kind."""
    if len(url) > MAX_URL:
        return True
    segments = [segment for segment in urlsplit(url).path.split("/") if segment]
    return len(segments) > MAX_SEGMENTS or (
        len(segments) > MAX_REPEATS and max(Counter(segments).values()) > MAX_REPEATS
    )


class Frontier:
    """Decides which links a crawl takes, and remembers those that it has."""

    def __init__(self, settings: Settings, starts: Iterable[Link]) -> None:
        """Know the links that the crawl begins with."""
        starts = list(starts)
        self._scope = Scope((link["url"] for link in starts), settings.scope)
        self._include = [re.compile(one) for one in settings.include]
        self._exclude = [re.compile(one) for one in settings.exclude]
        self._max_depth = settings.max_depth
        self._follows = settings.links
        self._known: set[str] = set()
        self._variants = Counter[str]()
        self.by_host = Counter[str]()
        """How many links there are to each host."""
        for link in starts:
            if (key := key_of_link(link)) not in self._known:
                self._remember(key, link)
        # Most links are met again on the next page: so is the answer, by base directory and href.
        self._resolved: dict[tuple[str, str], str | None] = {}

    def resolve(self, base: URL, href: str) -> str | None:
        """Where `href` leads from `base`, if that belongs to the crawl.

        A start page belongs to it in any case; so does whatever is in scope, matches `--include`,
        doesn't match `--exclude`, and is no trap.
        """
        href = href.partition("#")[0]
        # What follows the last slash of the base matters to an empty href or a bare query alone.
        place = str(base) if not href or href[0] == "?" else base.raw_path.rpartition("/")[0]
        asked = (f"{base.raw_authority}{place}", href)
        try:
            return self._resolved[asked]
        except KeyError:
            pass  # not met before
        url = resolve(base, href)
        found = str(url) if url is not None and self.takes(url) else None
        if len(self._resolved) >= 65_536:  # bounded like the keys, and cheaper to fill again
            self._resolved.clear()
        self._resolved[asked] = found
        return found

    def takes(self, url: URL) -> bool:
        """Whether an address belongs to the crawl, known or not."""
        if url not in self._scope:
            return False
        text = str(url)
        if self._include and not any(one.search(text) for one in self._include):
            return False
        return not any(one.search(text) for one in self._exclude) and not looks_like_a_trap(text)

    def unknown(self, urls: Iterable[str]) -> list[str]:
        """Those of `urls` that the crawl doesn't know yet, once each.

        What is known here has been saved, or is about to be, in a save before that of whoever asks:
        a page that leaves out its links to it can't lose them.
        """
        if not self._follows:
            return []
        by_key: dict[str, str] = {}
        for url in urls:
            by_key.setdefault(key_of(url), url)  # as it is spelt first
        return [url for key, url in by_key.items() if key not in self._known]

    def grow(self, _: State, outcome: Outcome) -> Iterator[Link]:
        """The links that a page adds to the crawl."""
        if not isinstance(outcome, Done):
            return
        link, page = outcome.element, outcome.value
        target = page.get("moved")
        if target is not None:
            moved = Link(url=target, depth=link["depth"], parent=link["parent"])
            moved["hops"] = link.get("hops", 0) + 1
            if (kind := link.get("kind")) is not None:
                moved["kind"] = kind
            yield from self._new(moved)
        for sitemap in page.get("sitemaps", ()):
            yield from self._new(Link(url=sitemap, depth=0, parent=link["url"], kind="sitemap"))
        depth = link["depth"] + 1 if link.get("kind") is None else 0
        if self._max_depth is None or depth <= self._max_depth:
            for url in page["links"]:
                yield from self._new(Link(url=url, depth=depth, parent=link["url"]))

    def _new(self, link: Link) -> Iterator[Link]:
        key = key_of_link(link)
        if key in self._known:
            return
        path, query, _ = link["url"].partition("?")
        if query:
            self._variants[path] += 1
            if self._variants[path] > MAX_VARIANTS:
                return
        self._remember(key, link)
        yield link

    def _remember(self, key: str, link: Link) -> None:
        self._known.add(key)
        self.by_host[host_of(link["url"])] += 1

    def recall(self, links: Iterable[Link]) -> None:
        """Know the links that an earlier execution has found."""
        for link in links:
            path, query, _ = link["url"].partition("?")
            self._variants[path] += bool(query)
            self._remember(key_of_link(link), link)

    @property
    def known(self) -> int:
        """How many links there are, fetched or not."""
        return len(self._known)
