"""The HTTP client, and the pool of its connections.

The client keeps connections in a pool of ours. httpx's own looks at all of its connections for each
request, which was a third of the crawl's time with 32 of them; and it has no parameter for how to
connect, which `addresses` must have a say in. How many requests there are at once is decided
elsewhere, so a pool has little to do: a connection that is free is taken, the warmest first, or
else a new one is made.
"""

from collections.abc import AsyncIterable, AsyncIterator, Iterable
from contextlib import suppress
from typing import Any, cast

from examples.scraper.addresses import CheckedBackend
from examples.scraper.http import httpcore, httpx
from examples.scraper.settings import Settings
from shoal import shielded

ENCODINGS = "gzip, deflate"  # what `fetch` unpacks, a little at a time
KEEP = 5.0  # seconds that a connection is kept unused, as httpx does
CLOSE = 2.0  # seconds that one may take to say goodbye


class Pool(httpx.AsyncBaseTransport):
    """Connections, by origin, each used by one request at a time."""

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
        connection = await self._connection(origin)
        asking = httpcore.Request(
            method=request.method,
            url=httpcore.URL(scheme=scheme, host=url.raw_host, port=port, target=url.raw_path),
            headers=request.headers.raw,
            content=request.stream,
            extensions=request.extensions,
        )
        try:
            response = await connection.handle_async_request(asking)
        except BaseException as error:
            await _close(connection)
            _raise_as_httpx(error, request)
            raise
        stream = cast("AsyncIterable[bytes]", response.stream)
        body = Body(stream, connection, self._free.setdefault(origin, []), request)
        extensions = cast("dict[str, Any]", response.extensions)
        return httpx.Response(
            response.status, headers=response.headers, stream=body, extensions=extensions
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
    """The body of a response. When it is closed, its connection is free, or closed as well.

    It is its own iterator: a generator that is left early would wait for the garbage collector.
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
                # The connection is closed, so this ends by an error, through all the generators
                # that httpcore has nested; closed from outside, the inner ones would stay open.
                with suppress(Exception):  # that very error
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
    """Raise the error of httpx that has the name of httpcore's; let any other be."""
    kind = getattr(httpx, type(error).__name__, None)
    if type(error).__module__.startswith("httpcore") and kind is not None:
        raise kind(str(error), request=request) from error


def make_client(
    settings: Settings, named: Iterable[str], *, trust_env: bool = True
) -> httpx.AsyncClient:
    """Make the client of a crawl; `named` are hosts that may have private addresses.

    Where the environment names a proxy, it is that which resolves names: then nothing is checked.
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
        verify=verify,
        http2=settings.http2,
        trust_env=trust_env,
    )
