"""Crawl websites: `python -m examples.scraper https://example.org/ --max-pages 100`.

Fetches every page of the given sites once and none of any other; a site is a scheme, host and port.
Writes one JSON object a line to --out and a summary to stderr. --demo crawls a site of its own on
this machine and needs no network.

Exit codes: 0 all fetched, 1 the output can't be written, 2 wrong usage, 3 finished with failed
pages, 4 page limit reached with links left, 130 interrupted (what was fetched is written).
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Literal, TextIO, cast

import anyio
import httpx

from examples.interrupt import until_interrupted
from examples.scraper.crawl import site_crawl
from examples.scraper.demo_site import serving
from examples.scraper.pages import Link, Scope, start_link
from examples.scraper.progress import Style, Tally, shown
from examples.scraper.rows import RowWriter
from shoal import Application, HookFailed, State


class Options(argparse.Namespace):
    """The command line, parsed."""

    urls: list[Link]
    demo: bool
    max_pages: int | None
    max_depth: int | None
    concurrency: int
    out: str
    progress: Style | Literal["auto"]
    backend: str


def parse_options(args: Sequence[str] | None) -> Options:
    about, _, exits = cast("str", __doc__).partition("\n\n")[2].partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m examples.scraper", description=about, epilog=exits
    )
    add = parser.add_argument
    add("urls", metavar="URL", nargs="*", type=_url, help="page to begin with")
    add("--demo", action="store_true", help="crawl the built-in demo site")
    add("--max-pages", type=_at_least(1), metavar="N", help="fetch no more pages than this")
    add("--max-depth", type=_at_least(0), metavar="N", help="links to follow away from the URLs")
    add("--concurrency", type=_at_least(1), metavar="N", default=16, help="pages at once (16)")
    add("--out", default="pages.jsonl", help="file to write, - for stdout (pages.jsonl)")
    add("--progress", choices=["auto", "bar", "lines", "none"], default="auto")
    add("--backend", choices=["asyncio", "trio"], default="asyncio")
    options = parser.parse_args(args, Options())
    if bool(options.urls) == options.demo:
        parser.error("give either URLs or --demo")
    return options


def _url(text: str) -> Link:
    try:
        return start_link(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def _at_least(smallest: int) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        if not text.isdecimal() or int(text) < smallest:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {smallest} up")
        return int(text)

    return whole_number


def main(args: Sequence[str] | None = None) -> int:
    options = parse_options(args)
    try:
        with ExitStack() as stack:
            file = sys.stdout
            if options.out != "-":
                file = stack.enter_context(Path(options.out).open("w", encoding="utf-8"))
            if options.demo:
                options.urls = [start_link(stack.enter_context(serving()))]
            return anyio.run(scrape, options, file, backend=options.backend)
    except BrokenPipeError:  # whoever reads our rows has seen enough
        # What could not be written is still buffered; it must not fail the exit as well.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # before the crawl began, or a second time
        return 130


async def scrape(options: Options, file: TextIO) -> int:
    """Crawl from `options.urls`, write rows to `file`, and return the exit code."""
    state = State({"starts": options.urls, "pages": 0, "failures": {}})
    tally = Tally(state, known=len({link.key for link in options.urls}))
    crawl = site_crawl(
        concurrency=options.concurrency, max_pages=options.max_pages, max_depth=options.max_depth
    )
    style = options.progress
    if style == "auto":
        style = "bar" if sys.stderr.isatty() else "lines"
    client = httpx.AsyncClient(
        headers={"User-Agent": "shoal-example-scraper"},
        timeout=httpx.Timeout(15.0, connect=5.0),
        limits=httpx.Limits(max_connections=options.concurrency),
        trust_env=not options.demo,  # the demo site is on this machine, behind no proxy
    )
    async with client:
        with shown(tally, style) as displays:
            app = Application(crawl, hooks=[RowWriter(file), tally, *displays])
            inputs = {"client": client, "scope": Scope.of(link.url for link in options.urls)}
            try:
                interrupted = await until_interrupted(partial(app.run, state, inputs=inputs))
            except HookFailed as failure:  # a row could not be written: say that, not who noticed
                raise failure.__cause__ or failure from None
    print(tally.summary(), file=sys.stderr)
    if interrupted:
        return 130
    if tally.waiting:
        return 4
    return 3 if tally.failed else 0


if __name__ == "__main__":
    sys.exit(main())
