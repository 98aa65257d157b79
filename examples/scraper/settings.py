"""The settings of a crawl: one value, its parsers, and its saved form in a job."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self, cast

ScopeName = Literal["origin", "host", "domain", "any"]
Format = Literal["jsonl", "csv", "sqlite"]

HTML_TYPES = ("text/html", "application/xhtml+xml")
USER_AGENT = "shoal-example-scraper"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of a crawl, decided before it begins. Plain data, saved as JSON."""

    urls: tuple[str, ...] = ()
    # which pages belong to the crawl
    scope: ScopeName = "origin"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    max_pages: int | None = None
    max_depth: int | None = None
    max_variants: int | None = None  # queries of one path
    traps: bool = True  # whether to skip URLs that look like traps
    sitemap: bool = False
    links: bool = True
    # when it ends early
    deadline: float | None = None  # seconds
    until_match: str | None = None
    # which parts of a page are kept
    select: Mapping[str, str] = field(default_factory=dict[str, str])  # name -> CSS[@NAME]
    spider: str | None = None  # the name of a parser, which makes records of pages
    columns: tuple[str, ...] = ()  # of its records, for formats that need them
    text: bool = False
    accept: tuple[str, ...] = HTML_TYPES
    max_body: int = 5 * 1024 * 1024  # bytes after decompression
    # concurrency and speed
    concurrency: int = 16
    per_host: int = 4
    rate: float | None = None  # requests per second and host
    adaptive: bool = True
    robots: bool = True
    # timeouts and retries
    retries: int = 3
    retry_wait: float = 1.0  # seconds before the first retry, doubled for each further one
    patience: float = 120.0  # seconds to wait for a host that is down
    connect_timeout: float = 5.0
    read_timeout: float = 15.0  # between two chunks
    timeout: float = 30.0  # of a whole page
    # requests
    user_agent: str = USER_AGENT
    allow_private: bool = False
    insecure: bool = False
    http2: bool = False
    headers: Mapping[str, str] = field(default_factory=dict[str, str])  # may name variables: $TOKEN
    auth_env: str | None = None  # the variable that holds USER:PASSWORD
    proxy: str | None = None  # may name variables
    # output
    out: str = "pages.jsonl"
    format: Format = "jsonl"

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_json(cls, saved: Mapping[str, Any]) -> Self:
        """Make settings from the result of `to_json`; fields of later versions are ignored."""
        known = {one.name for one in fields(cls)}
        given: dict[str, Any] = {name: saved[name] for name in saved.keys() & known}
        for name, value in given.items():
            if isinstance(value, list):
                given[name] = tuple(cast("list[str]", value))
        return cls(**given)


_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_BYTES = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "kib": 1024,
    "mib": 1024**2,
    "gib": 1024**3,
}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def _quantity(text: str, units: Mapping[str, float], example: str) -> float:
    found = _QUANTITY.fullmatch(text)
    unit = found[2].lower() if found else ""
    if found is None or unit not in units or not float(found[1]) > 0:
        raise ValueError(f"{text!r} can't be read; write it like {example}")
    return float(found[1]) * units[unit]


def seconds(text: str) -> float:
    """Read a duration: `10m`, `1.5h`, or `30` for seconds."""
    return _quantity(text, _SECONDS, "30, 90s, 10m or 2h")


def size(text: str) -> int:
    """Read a number of bytes: `5MiB`, `200kB`, `1000`."""
    return int(_quantity(text, _BYTES, "1000, 200kB or 5MiB"))


def rate(text: str) -> float:
    """Read a rate, and return it per second: `10/s`, `100/m`, or `2` for 2/s."""
    count, _, per = text.partition("/")
    try:
        return float(_quantity(count, {"": 1.0}, "10")) / _SECONDS[per.strip() or "s"]
    except (ValueError, KeyError):
        raise ValueError(f"{text!r} is no rate; write it like 10/s or 100/m") from None


_ATTRIBUTE = re.compile(r"(?P<css>.*[^@\s])\s*@(?P<name>[a-z][\w:-]*)", re.IGNORECASE | re.DOTALL)


def split_attribute(css: str) -> tuple[str, str | None]:
    """Split `img.cover@src` into a selector and the name of an attribute, if it names one."""
    found = _ATTRIBUTE.fullmatch(css)
    return (css, None) if found is None else (found["css"], found["name"].lower())


def header(text: str) -> tuple[str, str]:
    """Read a header: `Accept-Language: en`, or `Authorization: Bearer $TOKEN`."""
    name, colon, value = text.partition(":")
    if not (colon and re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", name.strip()) and value.strip()):
        raise ValueError(f"{text!r} is no header; write it like 'Accept-Language: en'")
    return name.strip(), value.strip()


_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


def expanded(text: str, environ: Mapping[str, str]) -> str:
    """Replace `$NAME` and `${NAME}` by variables, so that secrets needn't be in a job's file.

    Raises:
        ValueError: A variable is not set.
    """

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if name not in environ:
            raise ValueError(f"the environment variable {name} is not set, which {text!r} names")
        return environ[name]

    return _VARIABLE.sub(value, text)


def selector(text: str) -> tuple[str, str]:
    """Read a named selector: `price=.product > .price`, or `cover=img.cover@src`."""
    name, equals, css = text.partition("=")
    if not (name.strip() and equals and css.strip()):
        raise ValueError(
            f"{text!r} has no name or no selector; write NAME=CSS, like price=.product>.price, "
            f"or NAME=CSS@ATTRIBUTE, like cover=img.cover@src"
        )
    from selectolax.lexbor import LexborHTMLParser  # noqa: PLC0415 - not needed for --help

    try:
        LexborHTMLParser("").css(split_attribute(css)[0])
    except Exception as error:  # noqa: BLE001 - it raises no specific class
        raise ValueError(f"{css!r} is no CSS selector: {error}") from None
    return name.strip(), css.strip()


def pattern(text: str) -> str:
    """Check a regular expression, and return it."""
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is no regular expression: {error}") from None
    return text
