"""A cookie jar that drops the oldest cookies, because servers accept only a few.

If a site sets another cookie on each page, each request would send all of them, until the server
refuses the header: nginx and Apache accept 8 KiB.
"""

from collections import defaultdict
from contextlib import suppress
from http.cookiejar import Cookie, CookieJar
from typing import NamedTuple

MOST_BYTES = 4096  # of all cookies for one host; RFC 6265 (6.1) requires as much for a single one
MOST = 3000  # cookies in total (the same section)


class _Place(NamedTuple):
    domain: str
    path: str
    name: str

    @property
    def family(self) -> str:
        """The part of a domain that all domains above and below it share."""
        return ".".join(self.domain.rsplit(".", 2)[-2:])

    def is_related_to(self, other: "_Place") -> bool:
        """Whether a host exists that would get both cookies."""
        ours, theirs = f".{self.domain.lstrip('.')}", f".{other.domain.lstrip('.')}"
        return ours.endswith(theirs) or theirs.endswith(ours)


class BoundedJar(CookieJar):
    """A jar whose cookies for any single host have at most `MOST_BYTES` bytes."""

    def __init__(self) -> None:
        super().__init__()
        self._all: dict[_Place, None] = {}  # the oldest first
        # by family, in the same order
        self._sizes: dict[str, dict[_Place, int]] = defaultdict(dict)

    def set_cookie(self, cookie: Cookie) -> None:
        place = _Place(cookie.domain, cookie.path, cookie.name)
        size = len(cookie.name) + len(cookie.value or "") + len("=; ")
        self._forget(place)
        if size > MOST_BYTES:
            return
        self._all[place] = None
        family = self._sizes[place.family]
        family[place] = size
        super().set_cookie(cookie)
        together = [(one, size) for one, size in family.items() if one.is_related_to(place)]
        total = sum(size for _, size in together)
        for oldest, size in together:
            if total <= MOST_BYTES:
                break
            self._forget(oldest)
            total -= size
        while len(self._all) > MOST:
            self._forget(next(iter(self._all)))

    def _forget(self, place: _Place) -> None:
        if place not in self._all:
            return
        del self._all[place]
        family = self._sizes[place.family]
        del family[place]
        if not family:
            del self._sizes[place.family]
        with suppress(KeyError):  # it has expired
            self.clear(*place)
