"""Working on a job: from its start, or where it was left; to its end, or to what ends it before."""

import json
import sys
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import anyio
from anyio import to_thread
from yarl import URL

from examples.interrupts import Interruptible
from examples.scraper.crawl import CRAWL, Crawler, site_crawl, sitemap_links
from examples.scraper.fetch import HttpxFetcher
from examples.scraper.frontier import Frontier, start_link
from examples.scraper.job import Job
from examples.scraper.output import Output, Projection, projection
from examples.scraper.politeness import Politeness
from examples.scraper.progress import Style, Tally, shown
from examples.scraper.web import make_client
from shoal import Application

ALL_FETCHED = 0
FAILED_PAGES = 3
LIMIT_REACHED = 4
INTERRUPTED = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How one execution shows itself: nothing of it belongs to the job."""

    progress: Style | Literal["auto"] = "auto"
    stats: Path | None = None
    trust_env: bool = True
    """Whether proxies of the environment are used."""

    @property
    def style(self) -> Style:
        if self.progress != "auto":
            return self.progress
        return "rich" if sys.stderr.isatty() else "plain"


async def work(job: Job, manner: Manner) -> int:
    """Crawl until the job is done, its deadline, a match or a Ctrl-C; return the exit code.

    What was there before counts as done: a page that has an answer isn't asked for again.

    Raises:
        OSError: Rows can't be written.
        RunClaimed: Another process works on the job.
    """
    settings = job.settings
    starts = [start_link(url) for url in settings.urls]
    frontier = Frontier(settings, starts)
    if settings.sitemap:
        starts += (sitemaps := sitemap_links(starts))
        frontier.recall(sitemaps)
    frontier.recall(await job.discovered())
    politeness = Politeness(
        anyio.current_time, rate=settings.rate, adaptive=settings.adaptive, robots=settings.robots
    )
    tally = Tally(frontier, politeness)
    rows = await to_thread.run_sync(_take_up, job, tally)
    named = {URL(url).raw_host or "" for url in settings.urls}
    client = make_client(settings, named, trust_env=manner.trust_env)
    with closing(rows), shown(tally, manner.style) as displays:
        async with client:
            fetcher = HttpxFetcher(client, settings.timeout)
            crawler = Crawler(settings, fetcher, frontier, politeness)
            output = Output()
            app = Application(
                site_crawl(crawler), name=CRAWL, store=job.store(), hooks=[output, tally, *displays]
            )
            run = partial(app.run, {"starts": starts}, id=CRAWL, inputs={"crawler": crawler})
            ended = await Interruptible(crawler.brake.stop, settings.deadline).do(
                partial(output.while_writing, rows, run)
            )
    # Where whatever reads stderr takes each line for JSON, so is the last one.
    told = json.dumps(tally.statistics()) if manner.style == "json" else tally.summary()
    print(told, file=sys.stderr)
    if manner.stats is not None:
        statistics = json.dumps(tally.statistics(), indent=2)
        await anyio.Path(manner.stats).write_text(f"{statistics}\n", encoding="utf-8")
    if ended == "interrupted":
        return INTERRUPTED
    if ended == "late" or tally.waiting or tally.matched is not None:
        return LIMIT_REACHED
    return FAILED_PAGES if tally.failed else ALL_FETCHED


def _take_up(job: Job, tally: Tally) -> Projection:
    """Count what earlier executions have done, and have it where rows go."""
    settings = job.settings
    answered = not job.is_finished  # what got no answer is tried again, and gets another row
    tally.recall(job.rows(answered=answered))
    rows = projection(settings.out, settings.format, with_text=settings.text)
    rows.complete(() if settings.out == "-" else job.rows(answered=answered))
    return rows
