"""Races mirrors of one file: the first complete body with the right checksum wins.

Each mirror is a contestant of a race, and writes to its own file. The winner's file is renamed. The
losers are cancelled and awaited, and their files are deleted. A mirror that fails, or sends a wrong
body, leaves the race, and the next one starts at once.
"""

import hashlib
import sys
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import TypedDict, cast
from urllib.parse import urlsplit

import anyio

from examples.interrupts import Interruptible
from examples.scraper.fetching.addresses import PrivateAddress
from examples.scraper.fetching.fetch import FetchError
from examples.scraper.fetching.http import httpx
from examples.scraper.fetching.urls import name_of
from examples.scraper.fetching.web import make_client
from examples.scraper.settings import Settings
from shoal import Application, NobodyAccepted, action, fan_out, first
from shoal.types import FanOut


class Copy(TypedDict):
    """A body that was received completely."""

    url: str
    sha256: str
    bytes: int
    file: str


class Mirrors:
    """The inputs of the contestants."""

    def __init__(self, client: httpx.AsyncClient, folder: Path, timeout: float) -> None:
        self.client: httpx.AsyncClient = client
        self.folder: Path = folder
        self.timeout: float = timeout


@action(reads=["url"], writes=["copy"])
async def download(url: str, mirrors: Mirrors) -> Copy:
    """Download from one mirror.

    Raises:
        FetchError: The mirror did not send the file.
    """
    digest, written = hashlib.sha256(), 0
    part = mirrors.folder / hashlib.sha256(url.encode()).hexdigest()
    try:
        with anyio.fail_after(mirrors.timeout):
            async with (
                mirrors.client.stream("GET", url, follow_redirects=True) as response,
                await anyio.open_file(part, "wb") as file,
            ):
                if response.is_error:
                    message = f"status {response.status_code}"
                    raise FetchError("http", message, status=response.status_code)
                # Undecoded, because the checksum is that of the stored file, not of its
                # decompressed content.
                stream = aiter(cast("AsyncIterable[bytes]", response.stream))
                async with aclosing(cast("AsyncGenerator[bytes, None]", stream)) as chunks:
                    async for chunk in chunks:
                        digest.update(chunk)
                        written += len(chunk)
                        await file.write(chunk)
    except TimeoutError:
        raise FetchError("timeout", f"{url}: no whole body in {mirrors.timeout:g} s") from None
    except (httpx.TransportError, httpx.InvalidURL, PrivateAddress) as error:
        raise FetchError("network", f"{url}: {str(error) or type(error).__name__}") from None
    return Copy(url=url, sha256=digest.hexdigest(), bytes=written, file=str(part))


def mirror_race(sha256: str | None, stagger: float | None) -> FanOut:
    """Make the race over the field `urls`; without a checksum, the first complete body wins."""

    def is_right(copy: Copy) -> bool:
        return sha256 is None or copy["sha256"] == sha256.lower()

    return fan_out(
        download,
        over="urls",
        item="url",
        key=str,
        into="copy",
        until=first(accept=is_right),
        stagger=stagger,
    )


async def fetch_from_mirrors(
    urls: list[str],
    client: httpx.AsyncClient,
    target: Path,
    *,
    sha256: str | None = None,
    stagger: float | None = None,
    timeout: float = 3600.0,  # noqa: ASYNC109 - it applies to each mirror
) -> Copy:
    """Download one file from the fastest mirror.

    Raises:
        NobodyAccepted: No mirror sent the file; an exception group with the reasons.
    """
    app = Application(mirror_race(sha256, stagger))
    # Beside the target, so that the final rename is atomic. It is deleted in any case.
    async with anyio.TemporaryDirectory(dir=str(target.parent), prefix=".mirror-") as folder:
        mirrors = Mirrors(client, Path(folder), timeout)
        result = await app.run({"urls": urls}, inputs={"mirrors": mirrors})
        copy: Copy = result.state["copy"]
        await anyio.Path(copy["file"]).replace(target)
    return copy


def default_name(url: str) -> str:
    return Path(urlsplit(url).path).name or "index.html"


def explain(failed: NobodyAccepted) -> None:
    """Print why no mirror sent the file."""
    for error in failed.exceptions:
        print(f"  {error}", file=sys.stderr)


async def fetch_all(
    settings: Settings, target: Path, *, sha256: str | None, stagger: float | None
) -> int:
    """Run the command, and return the exit code."""
    named = {name_of(url) for url in settings.urls}
    async with make_client(settings, named) as client:
        client.headers["Accept-Encoding"] = "identity"
        fetch = partial(
            fetch_from_mirrors,
            list(settings.urls),
            client,
            target,
            sha256=sha256,
            stagger=stagger,
            timeout=settings.timeout,
        )
        copy: Copy | None = None

        async def race() -> None:
            nonlocal copy
            copy = await fetch()

        try:
            if await Interruptible().do(race) != "done":
                return 130
        except NobodyAccepted as failed:
            print("no mirror sent the file:", file=sys.stderr)
            explain(failed)
            return 3
    assert copy is not None
    print(
        f"{target}: {copy['bytes']:,} bytes from {copy['url']}, {copy['sha256']}", file=sys.stderr
    )
    return 0
