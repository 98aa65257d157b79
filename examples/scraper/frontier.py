"""The frontier: links as values, which of them belong to a crawl, and which it knows already.

Nothing here waits or talks to a network, and nothing but `start_link` raises on bad input. A link
that is left out although it is in scope is counted, with the reason.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Literal, NotRequired, TypedDict

from examples.scraper.scope import Scope, domain_of
from examples.scraper.settings import Settings
from examples.scraper.urls import absolute, host_of, key_of, name_of, resolve, target_of
from shoal import Done, Outcome, State

MAX_URL = 2083  # characters; longer ones are made by machines, for machines (Scrapy's limit)
MAX_SEGMENTS = 20  # in a path
MAX_REPEATS = 3  # of one segment in a path: /calendar/next/next/next/next leads nowhere


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


def key_of_link(link: Link) -> str:
    return key_of(link["url"])


def start_link(url: str) -> Link:
    """The link a crawl begins with.

    Raises:
        ValueError: `url` is not a full http or https address.
    """
    found = absolute(url)
    if found is None:
        raise ValueError("not a full http:// or https:// address")
    return Link(url=found, depth=0, parent=None)


def looks_like_a_trap(url: str) -> bool:
    """Whether an address looks as if a machine could make ever more of its kind."""
    if len(url) > MAX_URL:
        return True
    path = target_of(url).partition("?")[0]
    segments = [segment for segment in path.split("/") if segment]
    return len(segments) > MAX_SEGMENTS or (
        len(segments) > MAX_REPEATS and max(Counter(segments).values()) > MAX_REPEATS
    )


def _are_of_one_site(one: str, other: str) -> bool:
    # Names that are in no list of domains, such as those of a company's own network, have `www.`.
    names = {name_of(url).removeprefix("www.") for url in (one, other)}
    return len(names) == 1 or domain_of(one) == domain_of(other)


class Frontier:
    """Decides which links a crawl takes, and remembers those that it has."""

    def __init__(self, settings: Settings, starts: Iterable[Link]) -> None:
        """Know the links that the crawl begins with."""
        self._scope = Scope(settings.scope)
        self._include = [re.compile(one) for one in settings.include]
        self._exclude = [re.compile(one) for one in settings.exclude]
        self._max_depth = settings.max_depth
        self._max_variants = settings.max_variants
        self._traps = settings.traps
        self._follows = settings.links
        self._known: set[str] = set()
        self._variants = Counter[str]()
        self._taken: dict[str, bool] = {}  # answers of `takes`: most links are met again
        self._dropped: set[str] = set()
        self.dropped = Counter[str]()
        """Links in scope that this execution has left out: `variants` and `traps`."""
        self.by_host = Counter[str]()
        """How many links there are to each host."""
        self.recall(starts)

    def resolve(self, base: str, href: str) -> str | None:
        """Where `href` leads from `base`, if that belongs to the crawl."""
        url = resolve(base, href)
        return url if url is not None and self.takes(url) else None

    def takes(self, url: str) -> bool:
        """Whether an address belongs to the crawl, known or not.

        It does if it is in scope, matches `--include`, doesn't match `--exclude`, and is no trap.
        """
        found = self._taken.get(url)
        if found is None:
            if len(self._taken) >= 65_536:  # bounded like the keys, and cheap to fill again
                self._taken.clear()
            found = self._taken[url] = self._belongs(url)
        return found

    def _belongs(self, url: str) -> bool:
        if url not in self._scope:
            return False
        if self._include and not any(one.search(url) for one in self._include):
            return False
        if any(one.search(url) for one in self._exclude):
            return False
        if self._traps and looks_like_a_trap(url):
            self._drop(key_of(url), "traps")
            return False
        return True

    def follow_start(self, link: Link, target: str) -> None:
        """Widen the scope to where a start page has moved: to https, to `www.`, to another port.

        Only within the registered domain, though: a start page that leads to a site of somebody
        else, to log in there for example, has not moved. See
        `test_a_start_that_redirects_takes_the_crawl_along`.
        """
        if link["parent"] is None and _are_of_one_site(link["url"], target):
            self._widen(target)

    def _widen(self, url: str) -> None:
        if url not in self._scope:
            self._scope.add(url)
            self._taken.clear()  # what was outside may be inside

    def unknown(self, urls: Iterable[str]) -> list[str]:
        """Those of `urls` that the crawl doesn't know yet, once each.

        What is known here has been saved, or is about to be, in a save before that of the page that
        asks: so a page that leaves out its links to it can't lose them.
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
        if key in self._known or self._is_one_too_many(key, link["url"]):
            return
        self._remember(key, link)
        yield link

    def _is_one_too_many(self, key: str, url: str) -> bool:
        path, query, _ = url.partition("?")
        if self._max_variants is None or not query:
            return False
        if self._variants[path] >= self._max_variants:
            self._drop(key, "variants")
            return True
        return False

    def _drop(self, key: str, reason: str) -> None:
        if key not in self._dropped:
            self._dropped.add(key)
            self.dropped[reason] += 1

    def _remember(self, key: str, link: Link) -> None:
        url = link["url"]
        self._known.add(key)
        self.by_host[host_of(url)] += 1
        if self._max_variants is not None:
            path, query, _ = url.partition("?")
            self._variants[path] += bool(query)

    def recall(self, links: Iterable[Link]) -> None:
        """Know links that the crawl begins with, or that an earlier execution has found.

        A link without a parent is a start page, or what a start page has moved to.
        """
        for link in links:
            if link["parent"] is None:
                self._widen(link["url"])
            if (key := key_of_link(link)) not in self._known:
                self._remember(key, link)

    @property
    def known(self) -> int:
        """How many links there are, fetched or not."""
        return len(self._known)
