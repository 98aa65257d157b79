"""Private addresses: what is public; that names are resolved once, checked, and connected to."""

import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import anyio
import pytest

from examples.scraper.fetching.addresses import CheckedBackend, PrivateAddress, is_public
from examples.scraper.fetching.http import httpcore, httpx
from examples.scraper.fetching.web import make_client
from examples.scraper.settings import Settings


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.215.14", True),
        ("2606:2800:21f:cb07:6820:80da:af6b:8b2c", True),
        ("64:ff9b::5db8:d70e", True),  # the first, as an IPv6 network sees it
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),  # where clouds keep credentials
        ("100.64.0.1", False),  # behind a carrier's NAT
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("2002:7f00:1::", False),  # 6to4 of 127.0.0.1
        ("64:ff9b::7f00:1", False),
        ("64:ff9b::a00:1", False),
    ],
)
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public


class Network(httpcore.AsyncNetworkBackend):
    """A network that notes what was connected to, and lets nobody through."""

    def __init__(self) -> None:
        self.connected: list[str] = []

    async def connect_tcp(self, host: str, *args: Any, **options: Any) -> Any:
        self.connected.append(host)
        raise httpcore.ConnectError("nobody there")


Resolve = Callable[[dict[str, list[str]]], None]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Resolve:
    """Say what names resolve to; each answer is given once."""

    def resolve(known: dict[str, list[str]]) -> None:
        async def getaddrinfo(host: str, port: int, **options: Any) -> list[Any]:
            found = known.pop(host)
            return [(socket.AF_INET, 1, 6, "", (address, port)) for address in found]

        monkeypatch.setattr(anyio, "getaddrinfo", getaddrinfo)

    return resolve


async def connect(host: str, **options: Any) -> list[str]:
    backend = CheckedBackend(**options)
    network = backend._network = Network()
    with suppress(httpcore.ConnectError):  # as nobody is there
        await backend.connect_tcp(host, 80, timeout=5)
    return network.connected


@pytest.mark.anyio
@pytest.mark.realtime  # sockets
async def test_a_name_is_resolved_once_and_that_is_connected_to(names: Resolve) -> None:
    names({"a.example": ["93.184.215.14", "93.184.215.15"]})  # the second time: KeyError
    assert await connect("a.example") == ["93.184.215.14", "93.184.215.15"]


@pytest.mark.parametrize("found", [["10.0.0.1"], ["93.184.215.14", "127.0.0.1"]])
@pytest.mark.anyio
@pytest.mark.realtime  # sockets
async def test_what_is_private_is_not_connected_to(names: Resolve, found: list[str]) -> None:
    names({"a.example": found})
    with pytest.raises(PrivateAddress, match=r"a\.example has the private address"):
        await connect("a.example")


@pytest.mark.anyio
@pytest.mark.realtime  # sockets
async def test_a_named_address_may_be_private(names: Resolve) -> None:
    names({})
    assert await connect("Localhost", named=["localhost"]) == ["Localhost"]
    assert await connect("localhost", allow_all=True) == ["localhost"]


@pytest.mark.anyio
@pytest.mark.realtime  # sockets
async def test_a_name_that_nobody_knows_is_a_connection_that_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def getaddrinfo(*_: Any, **options: Any) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    monkeypatch.setattr(anyio, "getaddrinfo", getaddrinfo)
    backend = CheckedBackend()
    with pytest.raises(httpcore.ConnectError, match="no such name"):
        await backend.connect_tcp("nowhere.example", 80)


@pytest.mark.anyio
@pytest.mark.realtime  # sockets
async def test_a_resolver_that_hangs_is_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(*_: Any, **options: Any) -> list[Any]:
        await anyio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(anyio, "getaddrinfo", hang)
    with pytest.raises(httpcore.ConnectTimeout):
        await CheckedBackend().connect_tcp("slow.example", 80, timeout=0.01)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/", "http://127.1:1/", "http://0x7f.1:1/"])
@pytest.mark.anyio
@pytest.mark.realtime  # sockets
async def test_the_client_asks_nothing_private(url: str) -> None:
    async with make_client(Settings(), []) as client:
        with pytest.raises(PrivateAddress):
            await client.get(url)


@pytest.mark.anyio
@pytest.mark.realtime  # sockets
async def test_the_client_connects_to_the_named_address() -> None:
    async with make_client(Settings(), ["127.0.0.1"]) as client:
        with pytest.raises(httpx.ConnectError):
            await client.get("http://127.0.0.1:1/")
