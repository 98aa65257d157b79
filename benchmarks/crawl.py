"""The scraper, Scrapy, Crawlee and a loop by hand, on real sites behind nginx on loopback.

``python -m benchmarks.crawl``, in an environment with the groups `crawlers` and `bench` and the
extra `examples`, and with nginx, postgresql-doc-17 and python3.13-doc of Debian. It prints a table,
and with ``--out FOLDER`` writes it there as crawl.md, with a plot as crawl.png.

The contenders run in turn, each in its own process, on the same sites, with the same number of
concurrent requests. Ours keeps a durable job, obeys robots.txt and is polite, which are its
defaults, so only ours could be killed at any moment. The others differ from their defaults only in
the concurrency, the output of rows, and disabled logs; see `benchmarks.crawlers`.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._nginx import POSTGRES_DOCS, PYTHON_DOCS, Site, serving

SITES = {"postgresql-doc-17": Site(POSTGRES_DOCS), "python3.13-doc": Site(PYTHON_DOCS)}
LIMITED = {"100 requests/s": Site(POSTGRES_DOCS, rate=100)}
NEEDS = {"scrapy": "scrapy", "crawlee httpx": "crawlee", "crawlee impit": "impit"}


def module(name: str, *variant: str) -> list[str]:
    return [sys.executable, "-m", f"benchmarks.crawlers.{name}", "URL", "N", "OUT", *variant]


OURS = [
    *(sys.executable, "-m", "examples.scraper", "URL", "-c", "N", "--per-host", "N"),
    *("--out", "OUT", "--job", "JOB", "--progress", "none"),
]
CONTENDERS = {
    "shoal scraper, durable": OURS,
    "httpx + semaphore by hand": module("by_hand"),
    "scrapy": module("by_scrapy"),
    "crawlee httpx": module("by_crawlee", "httpx"),
    "crawlee impit": module("by_crawlee", "impit"),
}


@dataclass(frozen=True, slots=True)
class Measured:
    """The figures of one crawl."""

    pages: int
    seconds: float
    cpu: float
    megabytes: float

    @property
    def rate(self) -> float:
        return self.pages / self.seconds

    @property
    def cpu_per_page(self) -> float:
        return self.cpu / max(1, self.pages) * 1000


def measure(command: Sequence[str], url: str, concurrency: int) -> Measured:
    """Run one contender to its end."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.jsonl"
        given = {"URL": url, "N": str(concurrency), "OUT": str(out), "JOB": f"{folder}/job"}
        began = time.perf_counter()
        process = subprocess.Popen(
            [given.get(word, word) for word in command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0  # the child processes that were waited for
        seconds = time.perf_counter() - began
        titled = sum(b'"title": null' not in line for line in out.open("rb"))
    return Measured(titled, seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def median(runs: Iterable[Measured]) -> Measured:
    runs = list(runs)
    return Measured(
        round(statistics.median(run.pages for run in runs)),
        statistics.median(run.seconds for run in runs),
        statistics.median(run.cpu for run in runs),
        statistics.median(run.megabytes for run in runs),
    )


def table(site: str, runs: Mapping[str, Sequence[Measured]]) -> str:
    """Make a table of medians, with ranges for the pages per second."""
    lines = [
        f"**{site}**, whole processes, median of {len(next(iter(runs.values())))}",
        "",
        "| crawler | pages | pages/s (range) | CPU ms/page | peak MB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, measured in runs.items():
        one = median(measured)
        rates = [run.rate for run in measured]
        lines.append(
            f"| {name} | {one.pages} | {one.rate:.0f} ({min(rates):.0f}-{max(rates):.0f}) "
            f"| {one.cpu_per_page:.2f} | {one.megabytes:.0f} |"
        )
    return "\n".join(lines)


def plot(results: Mapping[str, Mapping[str, Sequence[Measured]]], path: Path) -> None:
    drawing: Any = importlib.import_module("matplotlib.pyplot")  # only needed for the plot
    figure, axes = drawing.subplots(
        len(results), 3, figsize=(12, 2.6 * len(results)), squeeze=False
    )
    for row, (site, runs) in zip(axes, results.items(), strict=True):
        names = list(runs)[::-1]
        ones = [median(runs[name]) for name in names]
        for axis, title, values in (
            (row[0], "pages per second", [one.rate for one in ones]),
            (row[1], "CPU milliseconds per page", [one.cpu_per_page for one in ones]),
            (row[2], "peak memory, MB", [one.megabytes for one in ones]),
        ):
            colours = ["tab:orange" if name.startswith("shoal") else "tab:gray" for name in names]
            bars = axis.barh(names, values, color=colours)
            axis.bar_label(bars, fmt="%.3g", padding=3)
            axis.margins(x=0.2)
            axis.set_title(title if axis is not row[0] else f"{site}: {title}", fontsize=9)
            axis.tick_params(labelleft=axis is row[0])
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--only", nargs="*", help="names of contenders, or parts of them")
    parser.add_argument("--limited", action="store_true", help="against a server that says 429")
    parser.add_argument("--out", type=Path, help="folder for crawl.md and crawl.png")
    options = parser.parse_args()
    contenders = {
        name: command
        for name, command in CONTENDERS.items()
        if importlib.util.find_spec(NEEDS.get(name, "httpx")) is not None
        and (not options.only or any(part in name for part in options.only))
    }
    results: dict[str, dict[str, list[Measured]]] = {}
    sites = LIMITED if options.limited else SITES
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        served = stack.enter_context(serving(folder, dict(zip("ab", sites.values(), strict=False))))
        for name, site in zip(sites, served.values(), strict=True):
            runs: dict[str, list[Measured]] = {contender: [] for contender in contenders}
            results[name] = runs
            for _ in range(options.rounds):
                # in turn, so that noise affects all of them
                for contender, command in contenders.items():
                    url = f"{site.url}/index.html"
                    site.forget()
                    measured = measure(command, url, options.concurrency)
                    refused = sum(one.status == 429 for one in site.asked())
                    runs[contender].append(measured)
                    print(f"{name}: {contender}: {measured}, {refused} refused", file=sys.stderr)
    versions = (
        f"Python {platform.python_version()}, {os.cpu_count()} cores, {options.concurrency} at once"
    )
    text = "\n\n".join(table(site, runs) for site, runs in results.items())
    print(f"{versions}\n\n{text}")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "crawl.md").write_text(f"{versions}\n\n{text}\n", encoding="utf-8")
        plot(results, options.out / "crawl.png")


if __name__ == "__main__":
    main()
