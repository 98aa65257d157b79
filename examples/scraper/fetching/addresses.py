"""Private addresses: a public page must not make this machine send requests to its own network.

A name is resolved once, the address is checked, and the connection goes to that address. If the
name were checked, or resolved twice, a DNS server could answer differently the second time. The
text of URLs is not checked either: only the resolver recognises `http://127.1/` as an address.
"""

import socket
from collections.abc import Iterable
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, cast

import anyio

from examples.scraper.fetching.http import httpcore

_NAT64 = ip_network("64:ff9b::/96")


class PrivateAddress(Exception):
    """A public host name has a private address."""


def is_public(address: str) -> bool:
    """Whether an address means the same machine everywhere on the internet."""
    ip: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    # An IPv4 address may be embedded: it is as public as the embedded address.
    inner = None
    if isinstance(ip, IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = IPv4Address(int(ip) & 0xFFFF_FFFF)
    if inner is not None:
        return is_public(str(inner))
    return ip.is_global and not ip.is_multicast


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Connects to public addresses, and to the hosts that the user has named."""

    def __init__(self, named: Iterable[str] = (), *, allow_all: bool = False) -> None:
        """Allow `named` hosts any address; with `allow_all`, all hosts."""
        self._network = cast("httpcore.AsyncNetworkBackend", httpcore.AnyIOBackend())
        self._named = {host.lower() for host in named}
        self._allow_all = allow_all

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the base's name
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.AsyncNetworkStream:
        connect = partial(
            self._network.connect_tcp,
            port=port,
            local_address=local_address,
            socket_options=socket_options,
        )
        if self._allow_all or host.lower() in self._named:
            try:
                return await connect(host, timeout=timeout)
            except UnicodeError as error:  # for example a label of more than 63 characters
                raise httpcore.ConnectError(f"{host}: {error}") from None
        try:
            with anyio.fail_after(timeout):
                failure: Exception = httpcore.ConnectError(f"{host} has no address")
                for address in await public_addresses(host, port):
                    try:
                        return await connect(address)
                    except httpcore.ConnectError as error:
                        failure = error  # the next address may answer
                raise failure
        except TimeoutError:
            raise httpcore.ConnectTimeout(f"{host} did not answer in {timeout} s") from None

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


async def public_addresses(host: str, port: int) -> list[str]:
    """Resolve a name.

    Raises:
        PrivateAddress: One of its addresses is private, so none is trusted.
        httpcore.ConnectError: There is no such name.
    """
    try:
        found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise httpcore.ConnectError(f"{host}: {error.strerror or error}") from error
    except UnicodeError as error:  # for example a label of more than 63 characters
        raise httpcore.ConnectError(f"{host}: {error}") from None
    addresses = list(dict.fromkeys(address[0] for *_, address in found))
    for address in addresses:
        if not is_public(address):
            raise PrivateAddress(f"{host} has the private address {address}")
    return addresses
