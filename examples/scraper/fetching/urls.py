"""URLs, parsed as browsers parse them, and otherwise left as written.

Every URL in a crawl has gone through `absolute` or `resolve`, which parse it by the WHATWG URL
standard, in Ada, the parser of Node.js. A parsed URL has a fixed form, so the other functions only
cut strings: the scheme and the host are in lower case, a default port is omitted, and the path
begins with a slash. Escapes stay as the site has written them, also `%2F` and a stray `%`, because
only the server knows their meaning.
"""

import re
from functools import lru_cache

from ada_url import join_url, normalize_url

WEB = ("http://", "https://")
_ESCAPE = re.compile("%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset("-._~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


def absolute(text: str) -> str | None:
    """Parse a full URL, without its fragment; None if it is no http or https URL."""
    try:
        url = normalize_url(text)
    except ValueError:
        return None
    return _on_the_web(url)


def resolve(base: str, href: str) -> str | None:
    """Resolve `href` on the page `base`; None if the result is no http or https URL."""
    try:
        url = join_url(base, href)
    except ValueError:  # `http://[bad`, a port of 99999
        return None
    return _on_the_web(url)


def _on_the_web(url: str) -> str | None:
    return url.partition("#")[0] if url.startswith(WEB) else None


# A site repeats its navigation on every page, so most links were parsed before.
@lru_cache(maxsize=65_536)
def key_of(url: str) -> str:
    """Return the part that all spellings of one URL share, by RFC 3986 (6.2.2) alone.

    Unnecessary escapes are replaced by their characters, and hexadecimal digits become capitals.
    Nothing else counts as equal, because servers distinguish it: queries in a different order, `?a`
    and `?a=`, or `%2F` and a slash.
    """
    return _ESCAPE.sub(_plain, url) if "%" in url else url


def _plain(escape: "re.Match[str]") -> str:
    character = chr(int(escape[1], 16))
    return character if character in _UNRESERVED else escape[0].upper()


def origin_of(url: str) -> str:
    """Scheme, host and port: `https://example.org:8443`."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{_authority(rest)}"


@lru_cache(maxsize=4096)
def host_of(url: str) -> str:
    """Host and port, whatever the scheme. Limits use it as their key."""
    return _authority(url.partition("://")[2])


def name_of(url: str) -> str:
    """The host without its port: a name, or an address without its brackets."""
    host = host_of(url)
    if host.startswith("["):
        return host[1 : host.index("]")]
    return host.partition(":")[0]


def target_of(url: str) -> str:
    """The path and the query, as in the first line of a request."""
    _, slash, rest = url.partition("://")[2].partition("/")
    return slash + rest


def _authority(rest: str) -> str:
    return rest.partition("/")[0].rpartition("@")[2]
