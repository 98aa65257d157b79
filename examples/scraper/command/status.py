"""Prints the progress of a job from another process, also while the crawl runs."""

from collections import Counter
from typing import Any

from examples.scraper.command.job import Job
from examples.scraper.crawl import sitemap_links
from examples.scraper.fetching.urls import host_of
from examples.scraper.frontier.links import Link, key_of_link, start_link


async def report(job: Job) -> None:
    """Print the progress of a job, in total and by host."""
    starts = [start_link(url) for url in job.settings.urls]
    links: list[Link] = [*starts, *(sitemap_links(starts) if job.settings.sitemap else ())]
    links += await job.discovered()
    known = Counter(
        host_of(link["url"]) for link in {key_of_link(one): one for one in links}.values()
    )
    done, failed = Counter[str](), Counter[str]()
    kinds = Counter[str]()
    for row in job.rows():
        error: Any = row["error"]
        (done if error is None else failed)[host_of(row["url"])] += 1
        if error is not None:
            kinds[error["kind"]] += 1
    sitemaps = job.sitemaps()
    waiting = known.total() - done.total() - failed.total() - sitemaps
    state = _state_of(job, waiting)
    print(f"{state}: {done.total()} done, {failed.total()} failed, {waiting} waiting")
    for kind, count in kinds.most_common():
        print(f"  failed: {kind} {count}")
    for host, count in known.most_common():
        left = count - done[host] - failed[host]
        print(f"  {host}: {done[host]} done, {failed[host]} failed, {left} waiting")


def _state_of(job: Job, waiting: int) -> str:
    holder = job.holder
    if holder is None:
        finished = "finished" if not waiting or job.has_matched else "limit reached"
        return {"succeeded": finished, "new": "new"}.get(job.status, "interrupted")
    ago = f"{holder.seen_ago:.0f} s ago"
    return f"claimed by process {holder.pid} on {holder.host}, which was last seen alive {ago}"
