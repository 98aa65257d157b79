"""The HTTP client, and its pool of connections.

The client uses its own connection pool. httpx's pool scans all of its connections for each request,
which took a third of the crawl's time with 32 of them, and it has no parameter for the connecting
code, which `addresses` must replace. The number of concurrent requests is limited elsewhere, so a
pool has little to do: it returns the free connection that was used last, or makes a new one.
"""

import os
from collections.abc import AsyncIterable, AsyncIterator, Generator, Iterable, Mapping
from contextlib import suppress
from ipaddress import ip_address
from typing import Any, cast
from urllib.request import getproxies

from examples.scraper.fetching.addresses import CheckedBackend
from examples.scraper.fetching.cookies import BoundedJar
from examples.scraper.fetching.http import httpcore, httpx
from examples.scraper.settings import Settings, expanded
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


class Credentials(httpx.Auth):
    """Adds the headers and the password of the user to requests to the hosts that the user named.

    Other hosts, to which a link or a redirect leads, must not see them.
    """

    def __init__(
        self, named: Iterable[str], headers: Mapping[str, str], auth: tuple[str, str] | None
    ) -> None:
        self._named = {host.lower() for host in named}
        self._headers = headers
        self._basic = None if auth is None else httpx.BasicAuth(*auth)

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        if request.url.host.lower() in self._named:
            request.headers.update(self._headers)
            if self._basic is not None:
                yield from self._basic.auth_flow(request)
                return
        yield request


def credentials(
    settings: Settings, named: Iterable[str], environ: Mapping[str, str]
) -> Credentials | None:
    """Make the credentials of a crawl, with the variables that its settings name.

    Raises:
        ValueError: A variable is not set.
    """
    headers = {name: expanded(value, environ) for name, value in settings.headers.items()}
    auth = None
    if settings.auth_env is not None:
        user, _, password = expanded(f"${settings.auth_env}", environ).partition(":")
        auth = (user, password)
    return Credentials(named, headers, auth) if headers or auth else None


def proxies(given: Mapping[str, str]) -> dict[str, str | None]:
    """Return proxies by patterns of URLs; None for hosts that are reached without one.

    Args:
        given: As `urllib.request.getproxies` returns them: `http`, `https`, `all` and `no`.
    """
    hosts = [host.strip() for host in given.get("no", "").split(",") if host.strip()]
    schemes = [scheme for scheme in ("http", "https", "all") if given.get(scheme)]
    if "*" in hosts or not schemes:
        return {}
    found: dict[str, str | None] = {}
    for scheme in schemes:
        url = given[scheme]
        found[f"{scheme}://"] = url if "://" in url else f"http://{url}"
    return found | dict.fromkeys(map(_pattern, hosts))


def _pattern(host: str) -> str:
    """The pattern of a host in `no_proxy`, and of its subdomains."""
    with suppress(ValueError):
        is_long = ip_address(host).version == 6
        return f"all://[{host}]" if is_long else f"all://{host}"
    return f"all://{host}" if host.lower() == "localhost" else f"all://*{host}"


def make_client(
    settings: Settings, named: Iterable[str], *, trust_env: bool = True
) -> httpx.AsyncClient:
    """Make the client of a crawl; the `named` hosts may have private addresses.

    With a proxy, the proxy resolves names, and no address is checked.

    Raises:
        ValueError: The settings name a variable that is not set.
    """
    named = set(named)
    backend = CheckedBackend(named, allow_all=settings.allow_private)
    verify = not settings.insecure
    # httpx itself reads no proxies from the environment if it is given a transport.
    through: Mapping[str, str] = getproxies() if trust_env else {}
    if settings.proxy is not None:
        through = {"all": expanded(settings.proxy, os.environ)}

    def transport(proxy: str | None) -> httpx.AsyncHTTPTransport | None:
        if proxy is None:
            return None
        return httpx.AsyncHTTPTransport(proxy=proxy, verify=verify, http2=settings.http2)

    return httpx.AsyncClient(
        headers={
            "User-Agent": settings.user_agent,
            "Accept": f"{', '.join(settings.accept)}, */*;q=0.1",
            "Accept-Encoding": ENCODINGS,
        },
        auth=credentials(settings, named, os.environ),
        timeout=httpx.Timeout(settings.read_timeout, connect=settings.connect_timeout, pool=None),
        transport=Pool(backend, verify=verify, http2=settings.http2),
        mounts={pattern: transport(proxy) for pattern, proxy in proxies(through).items()},
        cookies=BoundedJar(),
        verify=verify,
        http2=settings.http2,
        trust_env=trust_env,
    )
