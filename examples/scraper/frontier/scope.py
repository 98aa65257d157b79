"""The scope of a crawl: the part of the web around its start pages."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from examples.scraper.fetching.urls import name_of, origin_of
from examples.scraper.settings import ScopeName


class Scope:
    """The places that belong to a crawl.

    A place is an origin (scheme, host and port), a host, or a registered domain such as
    example.co.uk. Without places, every URL belongs to the crawl.
    """

    def __init__(self, name: ScopeName) -> None:
        """Begin without places."""
        place_of: dict[ScopeName, Callable[[str], str]] = {
            "origin": origin_of,
            "host": name_of,
            "domain": domain_of,
        }
        self._place_of = place_of.get(name)
        self._places: set[str] = set()

    def add(self, url: str) -> None:
        """Add the place of a page."""
        if self._place_of is not None:
            self._places.add(self._place_of(url))

    def __contains__(self, url: str) -> bool:
        return self._place_of is None or self._place_of(url) in self._places


def domain_of(url: str) -> str:
    """Return the registered domain of a host; an IP address or a bare name is its own domain."""
    host = name_of(url)
    return _registered(host) or host


@lru_cache(maxsize=1024)
def _registered(host: str) -> str:
    return _suffixes()(host).top_domain_under_public_suffix


@lru_cache(maxsize=1)
def _suffixes() -> Any:
    from tldextract import TLDExtract  # noqa: PLC0415 - slow to import, and rarely needed

    return TLDExtract(suffix_list_urls=(), cache_dir=None)  # the list that the package contains
