"""Crawlee with its defaults, except the concurrency, in memory. VARIANT: `httpx` or `impit`."""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from crawlee import ConcurrencySettings
from crawlee.crawlers import ParselCrawler, ParselCrawlingContext
from crawlee.http_clients import HttpxHttpClient, ImpitHttpClient
from crawlee.storage_clients import MemoryStorageClient


async def crawl(start: str, concurrency: int, out: Path, variant: str) -> None:
    crawler = ParselCrawler(
        http_client=HttpxHttpClient() if variant == "httpx" else ImpitHttpClient(),
        concurrency_settings=ConcurrencySettings(
            min_concurrency=concurrency,
            desired_concurrency=concurrency,
            max_concurrency=concurrency,
        ),
        storage_client=MemoryStorageClient(),
        configure_logging=False,
    )
    with out.open("w", encoding="utf-8") as file:

        @crawler.router.default_handler
        async def page(context: ParselCrawlingContext) -> None:
            row = {
                "url": context.request.url,
                "status": context.http_response.status_code,
                "title": context.selector.css("title::text").get(),
            }
            file.write(json.dumps(row) + "\n")
            await context.enqueue_links()

        await crawler.run([start])


if __name__ == "__main__":
    asyncio.run(crawl(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]))
