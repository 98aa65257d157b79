"""A simple program with httpx and a semaphore. It retries nothing, and saves nothing."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx
from selectolax.lexbor import LexborHTMLParser


async def crawl(start: str, concurrency: int, out: Path) -> None:
    site = urlsplit(start)[:2]  # scheme and host
    seen = {start}
    semaphore = asyncio.Semaphore(concurrency)
    limits = httpx.Limits(max_connections=concurrency)
    with out.open("w", encoding="utf-8") as file:
        async with httpx.AsyncClient(limits=limits) as client, asyncio.TaskGroup() as tasks:

            async def visit(url: str) -> None:
                async with semaphore:
                    answer = await client.get(url)
                row = {"url": url, "status": answer.status_code, "title": None}
                hrefs: list[str] = []
                if answer.headers.get("content-type", "").startswith("text/html"):
                    tree = LexborHTMLParser(answer.text)
                    title = tree.css_first("title")
                    row["title"] = None if title is None else title.text()
                    hrefs = [a.attributes["href"] or "" for a in tree.css("a[href]")]
                file.write(json.dumps(row) + "\n")
                for href in dict.fromkeys(href.partition("#")[0] for href in hrefs):
                    try:
                        found = urljoin(url, href)
                        is_here = urlsplit(found)[:2] == site
                    except ValueError:  # a link to nowhere
                        continue
                    if is_here and found not in seen:
                        seen.add(found)
                        tasks.create_task(visit(found))

            tasks.create_task(visit(start))


if __name__ == "__main__":
    asyncio.run(crawl(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
