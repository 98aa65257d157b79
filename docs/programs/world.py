"""Stands in for pages, models and machines: each call costs money, and is written down."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from zlib import crc32

LOG = Path("calls.log")
begun = 0


async def call(name: str, seconds: float = 0) -> str:
    """Do something that takes a few milliseconds, or so many seconds; return its name."""
    global begun
    begun += 1
    if begun == int(os.environ.get("KILL_AT", "0")):
        os.kill(os.getpid(), signal.SIGKILL)
    note("begin", name)
    if name == os.environ.get("FAIL"):
        await asyncio.sleep(0.02)
        raise ConnectionError(f"no route to {name}")
    await asyncio.sleep(seconds or 0.005 + crc32(name.encode()) % 20 / 1000)
    note("end", name)
    return name


def note(what: str, name: str) -> None:
    with LOG.open("a") as log:
        log.write(f"{what} {name}\n")
