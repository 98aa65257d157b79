"""The scraper, Scrapy and Crawlee on a site in trouble: the pages that each has at the end.

``python -m benchmarks.crawl_trouble``, in the environment of ``benchmarks.crawl``. It prints a
table, and with ``--out FOLDER`` writes it there as crawl_trouble.md. The contenders are those of
``benchmarks.crawl``, with the same settings. The site is a server on loopback with 2,001 pages,
which fails for a while, beginning a second after its first page.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.crawl import CONTENDERS, NEEDS

PAGES = 2000
BEGIN = 1.0  # seconds after the first page
LONGEST = 400.0  # the most seconds of a crawl

Reply = tuple[str, str] | None
"""A status and more headers; None cuts the connection."""
OK: Reply = ("200 OK", "")
BAD: Reply = ("502 Bad Gateway", "")


@dataclass(frozen=True, slots=True)
class Trouble:
    """The answers of a site by the seconds since its first page, and its number of pages."""

    reply: Callable[[str, float], Reply]
    pages: int = PAGES
    lost: int = 0
    """Pages that can't be fetched."""


def outage(seconds: float, reply: Reply) -> Trouble:
    return Trouble(lambda _, now: reply if BEGIN < now < BEGIN + seconds else OK)


def flaky(share: float) -> Trouble:
    chance = random.Random(3)
    return Trouble(lambda _, __: BAD if chance.random() < share else OK)


def refused(after: int) -> Trouble:
    refusal: Reply = ("429 Too Many Requests", f"Retry-After: {after}\r\n")
    return Trouble(lambda path, _: refusal if path == "/page/7" else OK, pages=100, lost=1)


def limited(rate: float) -> Trouble:
    """Accept so many requests per second, and twenty at once; the others must wait a second."""
    level, last = 20.0, 0.0

    def reply(_: str, now: float) -> Reply:
        nonlocal level, last
        level, last = min(20.0, level + (now - last) * rate), now
        if level < 1:
            return "429 Too Many Requests", "Retry-After: 1\r\n"
        level -= 1
        return OK

    return Trouble(reply, pages=500)


TROUBLES = {
    "502 for 3 s": lambda: outage(3.0, BAD),
    "resets for 3 s": lambda: outage(3.0, None),
    "502 for 30 s": lambda: outage(30.0, BAD),
    "every fifth answer 502": lambda: flaky(0.2),
    "one page 429, Retry-After: 20": lambda: refused(20),
    "50 requests/s, else 429": lambda: limited(50.0),
}


class Server:
    """Serves a front page with links to all other pages."""

    def __init__(self, trouble: Trouble) -> None:
        self.trouble = trouble
        self.asked: int = 0
        self._began: float | None = None
        self._front = "".join(f'<a href="/page/{n}">x</a>' for n in range(trouble.pages))

    def _reply(self, path: str) -> Reply:
        if not path.startswith("/page/"):
            return OK if path == "/" else ("404 Not Found", "")
        now = time.monotonic()
        self._began = now if self._began is None else self._began
        return self.trouble.reply(path, now - self._began)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                path = head.split(b" ", 2)[1].decode()
                self.asked += 1
                reply = self._reply(path)
                if reply is None:
                    writer.transport.abort()
                    return
                body = f"<title>{path}</title>{self._front if path == '/' else ''}"
                status, headers = reply
                told = f"Content-Type: text/html\r\nContent-Length: {len(body)}\r\n{headers}"
                writer.write(f"HTTP/1.1 {status}\r\n{told}\r\n{body}".encode())
                await writer.drain()
        writer.close()


@contextmanager
def serving(server: Server) -> Generator[str]:
    """Serve in a thread while the block lasts; yield the URL."""
    loop = asyncio.new_event_loop()
    listening = loop.run_until_complete(asyncio.start_server(server.serve, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        listening.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()


def crawl(command: Sequence[str], url: str, concurrency: int) -> tuple[set[str], float]:
    """Run one contender; return the pages that it has, and the seconds it took."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.jsonl"
        given = {"URL": f"{url}/", "N": str(concurrency), "OUT": str(out), "JOB": f"{folder}/job"}
        began = time.monotonic()
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [given.get(word, word) for word in command],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=LONGEST,
                check=False,
            )
        seconds = time.monotonic() - began
        lines = out.read_text("utf-8").splitlines() if out.exists() else []
    rows = map(json.loads, lines)
    return {row["url"] for row in rows if row["status"] == 200}, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--only", nargs="*", help="names of contenders, or parts of them")
    parser.add_argument("--out", type=Path, help="folder for crawl_trouble.md")
    options = parser.parse_args()
    contenders = {
        name: command
        for name, command in CONTENDERS.items()
        if importlib.util.find_spec(NEEDS.get(name, "httpx")) is not None
        and (not options.only or any(part in name for part in options.only))
    }
    lines = [
        f"Pages lost by each contender (seconds, requests), {options.concurrency} at once:",
        "",
        f"| trouble | {' | '.join(contenders)} |",
        f"| --- |{' --- |' * len(contenders)}",
    ]
    for name, make in TROUBLES.items():
        cells: list[str] = []
        for contender, command in contenders.items():
            server = Server(make())
            with serving(server) as url:
                pages, seconds = crawl(command, url, options.concurrency)
            there = server.trouble.pages + 1 - server.trouble.lost
            cells.append(f"{there - len(pages)} ({seconds:.0f} s, {server.asked:,})")
            print(f"{name}: {contender}: {cells[-1]}", file=sys.stderr)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    text = "\n".join(lines)
    print(text)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "crawl_trouble.md").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
