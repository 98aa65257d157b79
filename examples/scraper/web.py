"""The HTTP client, and its pool of connections.

The client uses its own connection pool. httpx's pool scans all of its connections for each request,
which took a third of the crawl's time with 32 of them, and it has no parameter for the connecting
code, which `addresses` must replace. The number of concurrent requests is limited elsewhere, so a
pool has little to do: it returns the free connection that was used last, or makes a new one.
"""

from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import suppress
from typing import Any, cast

from examples.scraper.addresses import CheckedBackend
from examples.scraper.cookies import BoundedJar
from examples.scraper.http import httpcore, httpx
from examples.scraper.settings import Settings
from shoal import shielded

ENCODINGS = "gzip, deflate"  # the encodings that `fetch` decompresses step by step
KEEP = 5.0  # seconds that an unused connection is kept, as in httpx
CLOSE = 2.0  # seconds that closing a connection may take


class Pool(httpx.AsyncBaseTransport):
    """Connections by origin; each is used by one request at a time."""

    def __init__(
        self, backend: httpcore.AsyncNetworkBackend, *, verify: bool = True, http2: bool = False
    ) -> None:
        self._backend = backend
        self._ssl = httpx.create_ssl_context(verify=verify)
        self._http2 = http2
        self._free: dict[tuple[bytes, bytes, int], list[httpcore.AsyncHTTPConnection]] = {}

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        url = request.url
        scheme = url.raw_scheme
        if scheme not in {b"http", b"https"}:
            raise httpx.UnsupportedProtocol(f"{url.scheme!r} is not http", request=request)
        port = url.port or (443 if scheme == b"https" else 80)
        origin = (scheme, url.raw_host, port)
        # The target `as_written` of a request is sent unchanged, instead of httpx's normalised one.
        extensions = dict(request.extensions)
        target = extensions.pop("as_written", url.raw_path)
        connection = await self._connection(origin)
        asking = httpcore.Request(
            method=request.method,
            url=httpcore.URL(scheme=scheme, host=url.raw_host, port=port, target=target),
            headers=request.headers.raw,
            content=request.stream,
            extensions=extensions,
        )
        try:
            response = await connection.handle_async_request(asking)
        except BaseException as error:
            await _close(connection)
            _raise_as_httpx(error, request)
            raise
        stream = cast("AsyncIterable[bytes]", response.stream)
        body = Body(stream, connection, self._free.setdefault(origin, []), request)
        told = cast("dict[str, Any]", response.extensions)
        return httpx.Response(
            response.status, headers=response.headers, stream=body, extensions=told
        )

    async def _connection(self, origin: tuple[bytes, bytes, int]) -> httpcore.AsyncHTTPConnection:
        free = self._free.get(origin, [])
        while free:
            connection = free.pop()
            if connection.is_available() and not connection.has_expired():
                return connection
            await _close(connection)
        scheme, host, port = origin
        return httpcore.AsyncHTTPConnection(
            httpcore.Origin(scheme, host, port),
            ssl_context=self._ssl,
            keepalive_expiry=KEEP,
            http2=self._http2,
            network_backend=self._backend,
        )

    async def aclose(self) -> None:
        """Close all connections that are free."""
        free, self._free = self._free, {}
        for connections in free.values():
            for connection in connections:
                await _close(connection)


class Body(httpx.AsyncByteStream):
    """The body of a response. Closing it frees its connection, or closes the connection, too.

    The class is its own iterator, because a generator that is left early would be closed only by
    the garbage collector.
    """

    def __init__(
        self,
        stream: AsyncIterable[bytes],
        connection: httpcore.AsyncHTTPConnection,
        free: list[httpcore.AsyncHTTPConnection],
        request: httpx.Request,
    ) -> None:
        self._stream = stream
        self._chunks = aiter(stream)
        self._is_under_way = False
        self._connection = connection
        self._free = free
        self._request = request

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        self._is_under_way = True
        try:
            return await anext(self._chunks)
        except StopAsyncIteration:
            self._is_under_way = False
            raise
        except Exception as error:
            _raise_as_httpx(error, self._request)
            raise

    async def aclose(self) -> None:
        try:
            await cast("Any", self._stream).aclose()
            if self._is_under_way:
                # The connection is closed, so this raises through all the generators that httpcore
                # has nested; if they were closed from outside, the inner ones would stay open.
                with suppress(Exception):  # this same error
                    while True:
                        await anext(self._chunks)
        finally:
            if self._connection.is_idle():
                self._free.append(self._connection)
            else:
                await _close(self._connection)


async def _close(connection: httpcore.AsyncHTTPConnection) -> None:
    async with shielded(CLOSE):
        await connection.aclose()


def _raise_as_httpx(error: BaseException, request: httpx.Request) -> None:
    """Raise httpx's error for httpcore's error of the same name; leave other errors alone."""
    kind = getattr(httpx, type(error).__name__, None)
    if type(error).__module__.startswith("httpcore") and kind is not None:
        raise kind(str(error), request=request) from error


def make_client(
    settings: Settings, named: Iterable[str], *, trust_env: bool = True
) -> httpx.AsyncClient:
    """Make the client of a crawl; the `named` hosts may have private addresses.

    If the environment configures a proxy, the proxy resolves names, and no address is checked.
    """
    backend = CheckedBackend(named, allow_all=settings.allow_private)
    verify = not settings.insecure
    return httpx.AsyncClient(
        headers={
            "User-Agent": settings.user_agent,
            "Accept": f"{', '.join(settings.accept)}, */*;q=0.1",
            "Accept-Encoding": ENCODINGS,
        },
        timeout=httpx.Timeout(settings.read_timeout, connect=settings.connect_timeout, pool=None),
        transport=Pool(backend, verify=verify, http2=settings.http2),
        cookies=BoundedJar(),
        verify=verify,
        http2=settings.http2,
        trust_env=trust_env,
    )
