"""Fetches one URL: one request, one answer, within limits of time and size.

Redirects are answers like any others, and the caller decides whether to follow them. So each hop is
checked like a link: scope, robots.txt, private addresses, politeness.
"""

import zlib
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable
from contextlib import aclosing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple, Protocol, cast

import anyio

from examples.scraper.fetching.addresses import PrivateAddress
from examples.scraper.fetching.http import httpx
from examples.scraper.fetching.urls import target_of
from shoal import RetryLater

# statuses that may be better after a retry
TRANSIENT = frozenset({408, 500, 502, 503, 504, 522, 524})
# statuses that a proxy sends if the server behind it doesn't answer
NO_ANSWER = TRANSIENT - {408, 500}


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
        """Whether a retry may help, now or when the crawl is resumed."""
        self.is_host: bool = is_host
        """Whether the host was given up: then a retry doesn't help now."""
        self.requests: int = 0
        """The number of requests for the page so far."""

    @property
    def is_silence(self) -> bool:
        """Whether the whole host may be at fault: it gave no answer, or a proxy says so."""
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
        """The number of requests for the page so far."""

    def __str__(self) -> str:
        return f"{self.cause}; {super().__str__()}"


class Answer(NamedTuple):
    """A server's answer."""

    url: str
    status: int
    content_type: str
    location: str | None
    """The target of a redirect, as written."""
    retry_after: float | None
    """Seconds for which the server asks to be left alone."""
    body: bytes | None
    """None if the body was not wanted."""


Wants = Callable[[int, str], bool]
"""Whether to read a body, by status and content type."""


class Fetcher(Protocol):
    """The crawl's interface to an HTTP client; another client can implement it."""

    async def get(self, url: str, wants: Wants, most: int, *, cut: bool = False) -> Answer:
        """Request `url` once, and read its body if `wants` says so, up to `most` bytes.

        `most` counts bytes after decompression. If `cut` is true, only the first `most` bytes of a
        longer body are read.

        Raises:
            FetchError: There was no answer in time, or it can't be read.
        """
        ...


class HttpxFetcher:
    """Sends requests with httpx."""

    def __init__(self, client: httpx.AsyncClient, timeout: float) -> None:
        """Allow `timeout` seconds for an answer, up to its last byte.

        The client's own timeouts limit each read: a server that sends a byte now and then never
        exceeds them.
        """
        self._client = client
        self._timeout = timeout

    async def get(self, url: str, wants: Wants, most: int, *, cut: bool = False) -> Answer:
        # httpx escapes characters that look unescaped, such as a stray %.
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
        except httpx.TransportError as error:  # a broken connection, or an answer that isn't HTTP
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
    """Return the content type; if headers name several, the last valid one, as in browsers.

    Its charset may come from an earlier one (WHATWG Fetch, "extract a MIME type").
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
    """Read a body of at most `most` bytes after decompression."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in _PACKED and encoding not in {"", "identity"}:
        message = f"a body in the encoding {encoding!r}, which was not requested"
        raise FetchError("encoding", message, status=response.status_code, final_url=url)
    unpacker = Unpacker() if encoding in _PACKED else None
    body = bytearray()
    # Directly from the stream: `aiter_raw` would not close its stream if left early.
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
    """Decompresses gzip and deflate, never more than requested, so a bomb stays compressed."""

    def __init__(self) -> None:
        self._inflating = zlib.decompressobj(zlib.MAX_WBITS | 32)  # detects gzip and zlib
        self._has_begun = False

    def unpack(self, chunk: bytes, most: int) -> bytes:
        """Decompress `chunk`, or the first `most` bytes of its content.

        Raises:
            zlib.error: It is nothing of the kind.
        """
        if not self._has_begun and chunk:
            self._has_begun = True
            try:
                return self._inflate(chunk, most)
            # "deflate" means zlib by the standard, but many servers send raw deflate
            except zlib.error:
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
        """Whether the compressed data was complete."""
        return self._inflating.eof or not self._has_begun


def retry_after(value: str | None) -> float | None:
    """Return the seconds of a Retry-After header; None if it has neither seconds nor a date."""
    if value is None:
        return None
    value = value.strip()
    if value.isdecimal():
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except (ValueError, OverflowError):  # neither seconds nor a date, so it is ignored
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())
