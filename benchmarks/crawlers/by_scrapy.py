"""Scrapy with its defaults, except the concurrency. VARIANT `job` keeps its requests on disk."""

# pyright: basic, reportMissingImports=false

from __future__ import annotations

import sys
from typing import ClassVar

import scrapy
from scrapy.crawler import CrawlerProcess
from scrapy.linkextractors import LinkExtractor
from scrapy.spiders import CrawlSpider, Rule

START, CONCURRENCY, OUT, VARIANT = (*sys.argv[1:], "")[:4]
HOST = START.split("/")[2].partition(":")[0]

SETTINGS = {
    # the concurrency
    "CONCURRENT_REQUESTS": int(CONCURRENCY),
    "CONCURRENT_REQUESTS_PER_DOMAIN": int(CONCURRENCY),
    # the output of rows, without a log
    "FEEDS": {OUT: {"format": "jsonlines"}},
    "LOG_LEVEL": "CRITICAL",
    **({"JOBDIR": f"{OUT}.job"} if VARIANT == "job" else {}),
}


class Site(CrawlSpider):
    name = "site"
    start_urls: ClassVar = [START]
    allowed_domains: ClassVar = [HOST]
    rules: ClassVar = [Rule(LinkExtractor(), callback="page", follow=True)]

    def parse_start_url(self, response: scrapy.http.Response, **_: object) -> object:
        return self.page(response)

    def page(self, response: scrapy.http.Response) -> object:
        title = None
        if isinstance(response, scrapy.http.TextResponse):
            title = response.css("title::text").get()
        return {"url": response.url, "status": response.status, "title": title}


process = CrawlerProcess(SETTINGS)
process.crawl(Site)
process.start()
