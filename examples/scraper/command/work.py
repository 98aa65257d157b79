"""Works on a job: from its start or its last saved state, until it ends or is interrupted."""

import json
import sys
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import anyio
from anyio import to_thread

from examples.interrupts import Interruptible
from examples.scraper.command.job import Job
from examples.scraper.crawl import CRAWL, Crawler, site_crawl, sitemap_links
from examples.scraper.fetching.fetch import HttpxFetcher
from examples.scraper.fetching.urls import name_of
from examples.scraper.fetching.web import make_client
from examples.scraper.frontier.links import Frontier, start_link
from examples.scraper.output.files import Output, Projection, projection
from examples.scraper.output.progress import Style, Tally, showing, shown
from examples.scraper.output.rows import columns_of, lines_of
from examples.scraper.politeness.health import Health
from examples.scraper.politeness.spacing import Politeness
from examples.scraper.reading.document import Parse
from examples.scraper.reading.pages import Wanted
from examples.scraper.reading.parsing import Parsers
from shoal import Application, RunResult, Runtime

ALL_FETCHED = 0
FAILED_PAGES = 3
LIMIT_REACHED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """The display of one execution; it isn't part of the job."""

    progress: Style | Literal["auto"] = "auto"
    stats: Path | None = None
    trust_env: bool = True
    """Whether the environment's proxies are used."""

    @property
    def style(self) -> Style:
        if self.progress != "auto":
            return self.progress
        return "rich" if sys.stderr.isatty() else "plain"


async def work(job: Job, manner: Manner, parse: Parse | None = None) -> int:
    """Crawl until the job is done, its deadline, a match or a signal; return the exit code.

    Pages with an answer from earlier executions count as done, and are not requested again. Pages
    without an answer are, even if the job was finished.

    Raises:
        JobBusy: Another process works on the job.
        OSError: Rows can't be written.
        ValueError: The settings name a variable that is not set.
    """
    with job.held():  # before opening any file that another process might write to
        return await _work(job, manner, parse)


async def _work(job: Job, manner: Manner, parse: Parse | None) -> int:
    settings = job.settings
    named = {name_of(url) for url in settings.urls}
    client = make_client(settings, named, trust_env=manner.trust_env)
    starts = [start_link(url) for url in settings.urls]
    frontier = Frontier(settings, starts)
    if settings.sitemap:
        starts += (sitemaps := sitemap_links(starts))
        frontier.recall(sitemaps)
    frontier.recall(await job.discovered())
    politeness = Politeness(
        anyio.current_time, rate=settings.rate, adaptive=settings.adaptive, robots=settings.robots
    )
    health = Health(anyio.current_time, settings.patience)
    tally = Tally(frontier, politeness, health)
    goes_back = job.is_finished and _has_more(job, frontier)
    rows = await to_thread.run_sync(_take_up, job, tally, not job.is_finished or goes_back)
    result: RunResult[dict[str, Any]] | None = None
    wanted = Wanted(settings.select, settings.text, settings.until_match)
    with (
        closing(rows),
        Parsers(wanted, settings.timeout) as parsers,
        shown(tally, manner.style) as displays,
    ):
        async with client:
            fetcher = HttpxFetcher(client, settings.timeout)
            crawler = Crawler(
                settings, fetcher, frontier, politeness=politeness, health=health, parsers=parsers
            )
            output = Output(partial(lines_of, settings=settings))
            app = Application(
                site_crawl(crawler, parse=parse),
                name=CRAWL,
                store=job.store(),
                hooks=[output, tally, *displays],
            )
            async with Runtime(inputs={"crawler": crawler}) as runtime:

                async def crawl() -> None:
                    nonlocal result
                    if goes_back:
                        result = await app.reopen(CRAWL, step=CRAWL, runtime=runtime)
                    else:
                        result = await app.run({"starts": starts}, id=CRAWL, runtime=runtime)

                async def settle() -> None:
                    """Let pages that are being fetched end, and begin no other."""
                    run = runtime.find(CRAWL)
                    if run is not None:
                        run.drain(interruptible.asked)
                        await run.wait_ended()

                interruptible = Interruptible(settle, settings.deadline)
                ended = await interruptible.do(
                    partial(output.while_writing, rows, partial(showing, displays, crawl))
                )
    if ended == "done" and result is not None and result.status == "halted":
        ended = interruptible.asked
    # If stderr is JSON lines, so is the last one.
    told = json.dumps(tally.statistics()) if manner.style == "json" else tally.summary()
    print(told, file=sys.stderr)
    if manner.stats is not None:
        statistics = json.dumps(tally.statistics(), indent=2)
        await anyio.Path(manner.stats).write_text(f"{statistics}\n", encoding="utf-8")
    if ended == "interrupted":
        return interruptible.exit_code
    is_limited = ended == "late" or tally.waiting or frontier.dropped["variants"]
    if is_limited or tally.matched is not None:
        return LIMIT_REACHED
    return FAILED_PAGES if tally.failed else ALL_FETCHED


def _has_more(job: Job, frontier: Frontier) -> bool:
    """Whether a finished crawl has pages to request: failed ones, or a limit was raised."""
    if job.has_matched:
        return False
    most = job.settings.max_pages
    is_limited = most is not None and job.started >= most
    return job.failed > 0 or (not is_limited and job.started < frontier.known)


def _take_up(job: Job, tally: Tally, goes_on: bool) -> Projection:
    """Count the pages of earlier executions, and write their missing rows.

    If the crawl continues, pages without an answer are omitted, because they get another row.
    """
    settings = job.settings
    tally.recall(job.rows(answered=goes_on), job.sitemaps(answered=goes_on))
    rows = projection(settings.out, settings.format, columns=columns_of(settings))
    rows.complete(() if settings.out == "-" else lines_of(job.rows(answered=goes_on), settings))
    return rows
