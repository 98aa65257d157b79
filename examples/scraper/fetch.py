"""Fetching one address: one request, one answer, within its time and size.

Redirects are answers like any others; who asked decides where to go from there. So each hop is
checked as if it were a link: scope, robots.txt, private addresses, politeness.
"""

import zlib
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from contextlib import aclosing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple, Protocol, cast

import anyio

from examples.scraper.addresses import PrivateAddress
from examples.scraper.http import httpx
from examples.scraper.urls import target_of
from shoal import RetryLater

TRANSIENT = frozenset({408, 500, 502, 503, 504, 522, 524})  # it may well be better next time
NO_ANSWER = TRANSIENT - {408, 500}  # said by a proxy, about a server behind it that doesn't answer


class FetchError(Exception):
    """There is no page to be had. `kind` is a word to count by.

    `http` for a status of 400 or more, `refused` for one that says: later; `redirect` for one that
    leads out of the crawl or in circles, `size` for a body that is too long, `encoding` for one
    that can't be unpacked, `parse` for one that takes too long to parse; without an answer,
    `timeout`, `connect`, `network`, `private` and `url`; and `robots`.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        status: int | None = None,
        final_url: str | None = None,
        transient: bool = False,
        is_host: bool = False,
    ) -> None:
        super().__init__(kind, message)
        self.kind: str = kind
        self.message: str = message
        self.status: int | None = status
        self.final_url: str | None = final_url
        self.transient: bool = transient
        """Whether it may be worth trying again, now or when the crawl is resumed."""
        self.is_host: bool = is_host
        """Whether the host has been given up: then there is no use in trying again now."""
        self.requests: int = 0
        """How often the page was asked for by then."""

    @property
    def is_silence(self) -> bool:
        """Whether the host as a whole may be at fault: it gave no answer, or a proxy says so."""
        return self.transient and (self.status is None or self.status in NO_ANSWER)

    def __str__(self) -> str:
        return self.message


class LeftAlone(RetryLater):
    """A host is left alone for `after` seconds because of `cause`, then the page is tried again."""

    def __init__(self, after: float, cause: FetchError) -> None:
        super().__init__(after)
        self.kind: str = cause.kind
        self.status: int | None = cause.status
        self.final_url: str | None = cause.final_url
        self.cause: str = str(cause)
        self.requests: int = 0
        """How often the page was asked for by then."""

    def __str__(self) -> str:
        return f"{self.cause}; {super().__str__()}"


class Answer(NamedTuple):
    """What a server said."""

    url: str
    status: int
    content_type: str
    location: str | None
    """Where a redirect leads, as it is written."""
    retry_after: float | None
    """Seconds that the server wants to be left alone."""
    body: bytes | None
    """None where nobody wanted to read it."""


Wants = Callable[[int, str], bool]
"""Whether to read a body, by status and content type."""


class Fetcher(Protocol):
    """What the crawl needs of an HTTP client; another one can be plugged in here."""

    async def get(self, url: str, wants: Wants, most: int, *, cut: bool = False) -> Answer:
        """Ask for `url` once, and read its body if it `wants` to, up to `most` bytes unpacked.

        Of a longer one, the first `most` bytes are read if it is to be `cut`.

        Raises:
            FetchError: There was no answer in time, or it can't be read.
        """
        ...


class HttpxFetcher:
    """Asks by httpx."""

    def __init__(self, client: httpx.AsyncClient, timeout: float) -> None:
        """Give an answer `timeout` seconds, to its last byte.

        The client's own timeouts bound each read: who sends a byte now and then never meets them.
        """
        self._client = client
        self._timeout = timeout

    async def get(self, url: str, wants: Wants, most: int, *, cut: bool = False) -> Answer:
        # httpx escapes what it takes for unescaped, such as a stray %.
        as_written = {"as_written": target_of(url).encode()}
        try:
            with anyio.fail_after(self._timeout):
                async with self._client.stream("GET", url, extensions=as_written) as response:
                    return await _answer(url, response, wants, most, cut=cut)
        except TimeoutError:
            message = f"no whole answer in {self._timeout:g} s"
            raise FetchError("timeout", message, transient=True) from None
        except httpx.TimeoutException as error:
            message = f"no answer: {type(error).__name__}"
            raise FetchError("timeout", message, transient=True) from None
        except httpx.ConnectError as error:
            raise FetchError("connect", _text(error), transient=True) from None
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise FetchError("url", _text(error)) from None
        except httpx.TransportError as error:  # a connection that broke, what isn't HTTP
            raise FetchError("network", _text(error), transient=True) from None
        except PrivateAddress as error:
            raise FetchError("private", _text(error)) from None


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__


async def _answer(
    url: str, response: httpx.Response, wants: Wants, most: int, *, cut: bool
) -> Answer:
    headers, status = response.headers, response.status_code
    content_type = content_type_of(headers.get_list("content-type", split_commas=True))
    location = _first(headers.get_list("location")) if response.has_redirect_location else None
    body = None
    if location is None and wants(status, content_type):
        body = await _read(url, response, most, cut=cut)
    return Answer(
        url=url,
        status=status,
        content_type=content_type,
        location=location,
        retry_after=retry_after(_first(headers.get_list("retry-after"))),
        body=body,
    )


def _first(values: list[str]) -> str | None:
    return values[0] if values else None


def content_type_of(values: Iterable[str]) -> str:
    """The type that headers name, if there are several: the last valid one, as in browsers.

    Its charset may be in one before it (WHATWG Fetch, "extract a MIME type").
    """
    found, charset = "", ""
    for value in values:
        essence, _, parameters = value.partition(";")
        essence = essence.strip().lower()
        if "/" not in essence or essence == "*/*":
            continue
        if essence != found.partition(";")[0].strip().lower():
            charset = ""
        found = value.strip()
        if "charset=" in parameters.lower():
            charset = parameters
        elif charset:
            found = f"{essence};{charset}"
    return found


async def _read(url: str, response: httpx.Response, most: int, *, cut: bool) -> bytes:
    """Read a body of at most `most` bytes as they are after decompression."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in _PACKED and encoding not in {"", "identity"}:
        message = f"a body in the encoding {encoding!r}, which nobody asked for"
        raise FetchError("encoding", message, status=response.status_code, final_url=url)
    unpacker = Unpacker() if encoding in _PACKED else None
    body = bytearray()
    # Straight from the stream: what `aiter_raw` iterates over, it wouldn't close if left early.
    stream = aiter(cast("AsyncIterable[bytes]", response.stream))
    async with aclosing(cast("AsyncGenerator[bytes, None]", stream)) as chunks:
        async for chunk in chunks:
            try:
                body += chunk if unpacker is None else unpacker.unpack(chunk, most + 1 - len(body))
            except zlib.error as error:
                message = f"no {encoding}: {error}"
                raise FetchError("encoding", message, status=response.status_code) from None
            if len(body) > most:
                if cut:
                    return bytes(body[:most])
                message = f"longer than {most:,} bytes"
                raise FetchError("size", message, status=response.status_code, final_url=url)
    if unpacker is not None and not unpacker.is_whole:
        raise FetchError("network", f"the {encoding} ends early", transient=True)
    return bytes(body)


_PACKED = frozenset({"gzip", "x-gzip", "deflate"})


class Unpacker:
    """Unpacks gzip and deflate, never more than is asked for: a bomb stays packed."""

    def __init__(self) -> None:
        self._inflating = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib, whichever it is
        self._has_begun = False

    def unpack(self, chunk: bytes, most: int) -> bytes:
        """Unpack what `chunk` adds, or the first `most` bytes of that.

        Raises:
            zlib.error: It is nothing of the kind.
        """
        if not self._has_begun and chunk:
            self._has_begun = True
            try:
                return self._inflate(chunk, most)
            except zlib.error:  # "deflate" is zlib by the standard, and often is not
                self._inflating = zlib.decompressobj(-zlib.MAX_WBITS)
        return self._inflate(chunk, most)

    def _inflate(self, chunk: bytes, most: int) -> bytes:
        found = self._inflating.decompress(chunk, most)
        while self._inflating.eof and (rest := self._inflating.unused_data) and len(found) < most:
            if rest[:2] != b"\x1f\x8b":
                break  # padding
            self._inflating = zlib.decompressobj(zlib.MAX_WBITS | 32)
            found += self._inflating.decompress(rest, most - len(found))
        return found

    @property
    def is_whole(self) -> bool:
        """Whether the end of it was there."""
        return self._inflating.eof or not self._has_begun


def retry_after(value: str | None) -> float | None:
    """The seconds that a Retry-After header asks for; it may be a date, or nothing."""
    if value is None:
        return None
    value = value.strip()
    if value.isdecimal():
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except (ValueError, OverflowError):  # neither seconds nor a date, so it says nothing
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())
