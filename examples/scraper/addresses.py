"""Private addresses: a page of the open web shall not make this machine ask its own network.

A name is resolved once; what it resolves to is checked; and to that address the connection is made.
To check the name, or to resolve it twice, would let a DNS server answer differently the second
time. The strings of URLs are not looked at either: `http://127.1/` is an address that only the
resolver recognizes.
"""

import socket
from collections.abc import Iterable
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, cast

import anyio

from examples.scraper.http import httpcore

_NAT64 = ip_network("64:ff9b::/96")


class PrivateAddress(Exception):
    """A host of the open web has an address that isn't."""


def is_public(address: str) -> bool:
    """Whether anybody on the internet means the same machine by this address."""
    ip: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    # An IPv4 address may come wrapped: it is as public as what is inside.
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
        """Let `named` hosts have any address; with `allow_all`, all of them."""
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
            except UnicodeError as error:  # of a label of more than 63 characters, say
                raise httpcore.ConnectError(f"{host}: {error}") from None
        try:
            with anyio.fail_after(timeout):
                failure: Exception = httpcore.ConnectError(f"{host} has no address")
                for address in await public_addresses(host, port):
                    try:
                        return await connect(address)
                    except httpcore.ConnectError as error:
                        failure = error  # the next one may answer
                raise failure
        except TimeoutError:
            raise httpcore.ConnectTimeout(f"{host} did not answer in {timeout} s") from None

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


async def public_addresses(host: str, port: int) -> list[str]:
    """Resolve a name.

    Raises:
        PrivateAddress: One of its addresses is private: then none is to be trusted.
        httpcore.ConnectError: There is no such name.
    """
    try:
        found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise httpcore.ConnectError(f"{host}: {error.strerror or error}") from error
    except UnicodeError as error:  # of a label of more than 63 characters, say
        raise httpcore.ConnectError(f"{host}: {error}") from None
    addresses = list(dict.fromkeys(address[0] for *_, address in found))
    for address in addresses:
        if not is_public(address):
            raise PrivateAddress(f"{host} has the private address {address}")
    return addresses
