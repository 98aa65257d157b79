"""Stands in for the Internet: pages of a newspaper, and two models that summarise texts."""

from __future__ import annotations

import os
import signal

import anyio

ARTICLES = {
    "news/tide": "The tide comes earlier. Boats wait. Nobody minds.",
    "news/rain": "Rain falls on Monday. Umbrellas are sold. It stops.",
    "news/fish": "Fish swim in shoals. Each watches its neighbours. None leads.",
    "news/busy": "The harbour is busy. Cranes move. Gulls look on.",
}
downloads: list[str] = []  # every page that was asked for, in order
at_once = 0  # downloads that run at this moment
most_at_once = 0  # and the most that ever did


async def download(url: str) -> str:
    """Return the text of a page; ``news/busy`` answers only when asked a third time."""
    global at_once, most_at_once
    downloads.append(url)
    if os.environ.get("POWER_CUT_AT") == str(len(downloads)):
        os.kill(os.getpid(), signal.SIGKILL)
    at_once += 1
    most_at_once = max(most_at_once, at_once)
    try:
        await anyio.sleep(0.02)
    finally:
        at_once -= 1
    if url not in ARTICLES:
        raise LookupError(f"there is no page {url}")
    if url == "news/busy" and downloads.count(url) < 3:
        raise ConnectionError("too many readers")
    return ARTICLES[url]


class Model:
    """Takes its time, and returns the first sentence of a text."""

    def __init__(self, name: str, seconds: float) -> None:
        self.name = name
        self.seconds = seconds

    async def summarise(self, text: str) -> str:
        await anyio.sleep(self.seconds)
        return text.partition(".")[0] + "."


small = Model("small", seconds=0.02)
large = Model("large", seconds=30)
