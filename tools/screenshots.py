"""Take the pictures of the page that the README and docs/ui.md show.

    python -m tools.screenshots            # writes docs/images/ui-*.png
    python -m tools.screenshots --all OUT  # each kind of page, wide, narrow and dark, to look at

A process executes a run of 20,000 children, `shoal ui` serves its store from another one, and a
headless Chromium looks at it. Needs playwright, and a `chromium` on PATH.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import anyio

from shoal import (
    Application,
    Breaker,
    Budget,
    Context,
    Each,
    Graph,
    Limits,
    Rate,
    Retry,
    RetryBudget,
    SQLiteStore,
    action,
    fan_out,
    race,
)

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs" / "images"
TOKEN = "a-token-for-the-screenshots"
PAGES = 20_000
HOSTS = ("docs", "docs", "docs", "docs", "blog", "api", "cdn")


class ReadTimeout(Exception):
    """No answer came."""


class HTTPStatusError(Exception):
    """The answer was not 200."""


class ParserError(Exception):
    """The page is broken."""


# -- the programs ----------------------------------------------------------------------------------


def host_of(url: str) -> str:
    """Return the host of a URL."""
    return url.split("/")[2]


RATE = Limits(rate=Rate(60, burst=10), by=lambda state: host_of(state["url"]))
AGAIN = Retry(3, on=(ConnectionError,), initial=3.0, factor=1.5)


@action(reads=["pages"], writes=["urls"])
async def read_sitemaps(pages: int) -> list[str]:
    """List the pages."""
    await anyio.sleep(0.2)
    return [
        f"https://{HOSTS[n % len(HOSTS)]}.example/library/module-{n:05d}.html" for n in range(pages)
    ]


@action(reads=["url"], writes=["page"], limits=RATE, retry=AGAIN)
async def fetch(url: str, context: Context) -> str:
    """Fetch a page; some are slow, some fail."""
    n = int(url[-10:-5])
    await anyio.sleep(0.02 + n % 7 / 100)
    if n % 401 == 7:
        for part in range(1, 10):
            context.note(f"part {part} of 9")
            await anyio.sleep(1.5)
    if n % 97 == 11 and context.attempt < 3:
        raise ConnectionError(f"{host_of(url)} has closed the connection")
    if n % 64 == 11:
        raise ReadTimeout(f"GET {url}: no answer within {10 + n % 3} s")
    if n % 104 == 13:
        raise HTTPStatusError(f"GET {url}: {502 + n % 2} Service Unavailable")
    return f"<h1>module {n}</h1>" + "<p>text</p>" * (n % 40)


@action(reads=["page"], writes=["title"])
async def parse(page: str) -> str:
    """Read the title."""
    await anyio.sleep(0.01)
    if page.count("<p>") == 39:
        raise ParserError(f"unexpected end of the document at byte {len(page)}")
    return page[4:].partition("</h1>")[0]


@action(reads=["titles"], writes=["index"])
async def index(titles: list[str]) -> int:
    """Count the titles."""
    return len(titles)


crawl = Application(
    Graph.chain(
        read_sitemaps,
        fan_out(
            Graph.chain(fetch, parse, name="page"),
            over="urls",
            item="url",
            key=str,
            into="titles",
            take="title",
            on_error="collect",
            errors_into="failed",
            limits=Limits(60),
            name="pages",
            title="pages of four sites",
        ),
        index,
    ),
    name="crawl docs",
)


@action(reads=["question"], writes=["answer"])
async def ask(question: str, model: str, seconds: float) -> str:
    """Ask a model."""
    await anyio.sleep(seconds)
    if model == "tiny-1":
        raise ConnectionError("overloaded")
    return f"{model}: {question}"


contest = Application(
    race(
        ask.bind(name="tiny", model="tiny-1", seconds=0.1),
        ask.bind(name="huge", model="huge-9", seconds=30.0),
        ask.bind(name="local", model="local-2", seconds=0.6),
        into="answer",
    ),
    name="ask models",
)

VERDICT = {
    "type": "object",
    "properties": {
        "verdict": {"enum": ["merge", "change", "close"], "title": "Verdict"},
        "comment": {"type": "string", "description": "The author sees it"},
        "severity": {"type": "integer", "minimum": 1, "maximum": 5, "default": 2},
        "labels": {"type": "array", "items": {"type": "string"}, "title": "Labels"},
        "notify": {"type": "boolean", "default": True, "title": "Notify the author"},
    },
    "required": ["verdict", "severity", "notify"],
}


@action(reads=["file"], writes=["comments"])
async def read_comments(file: str) -> list[str]:
    """Find what to comment on."""
    return [f"{file}:{line}" for line in (12, 40, 88)]


@action(reads=["comment"], writes=["reply"])
async def reply(comment: str, context: Context) -> str:
    """Write a reply, or ask a human."""
    await anyio.sleep(0.05)
    if comment != "parser.py:40":
        return f"{comment} is fine"
    draft = "This loop reads the whole file again for each line."
    question = {"question": f"Post this comment on {comment}?", "draft": draft, "schema": VERDICT}
    return str(await context.ask("post", question))


@action(reads=["file"], writes=["verdicts"])
async def second_opinion(file: str) -> str:
    """Start an application by hand."""
    result = await contest.run({"question": f"Is {file} sound?"}, id=f"opinion on {file}")
    return str(result.state["answer"])


replies = fan_out(reply, over="comments", item="comment", key=str, into="replies", take="reply")
review = Application(
    fan_out(
        Graph.chain(read_comments, replies, second_opinion, name="review_file"),
        over="files",
        item="file",
        key=str,
        into="reviews",
        take="replies",
        on_error="collect",
    ),
    name="review",
)

SOURCES = ("docs", "blog", "api", "forum")


def source_of(state: Any) -> str:
    """Return the source of a page."""
    return SOURCES[int(state["n"]) % len(SOURCES)]


@action(reads=["section"], writes=["ns"])
async def list_pages(section: str) -> list[int]:
    """List the pages of a section."""
    return [*range(len(section) * 60)]


@action(
    reads=["n"],
    writes=["page"],
    limits=Limits(3, by=source_of),
    retry=Retry(3, on=(ConnectionError,), initial=2.0, budget=RetryBudget(share=0.1)),
)
async def load(n: int, context: Context) -> str:
    """Load a page; the forum is down."""
    await anyio.sleep(0.8 + n % 7 * 0.3)
    if n % 4 == 3:
        raise ConnectionError("forum has closed the connection")
    context.note(f"{40 + n} lines")
    return f"page {n}"


@action(reads=["page"], writes=["summary"], limits=Budget(20, "USD", worst=0.05))
async def summarise(page: str, context: Context) -> str:
    """Let a model summarise a page."""
    await anyio.sleep(0.5 + len(page) % 3)
    context.charge(0.011, unit="USD")
    return f"summary of {page}"


summaries = fan_out(
    Graph.chain(load, summarise, name="page"),
    over="ns",
    item="n",
    key=str,
    into="summaries",
    take="summary",
    on_error="collect",
    limits=Limits(8),
    each=Each(breaker=Breaker(by=source_of, failures=3, cool_down=20)),
    name="summaries",
    title=lambda state: f"page {state['n']}",
)
digest = Application(
    fan_out(
        Graph.chain(list_pages, summaries, name="section"),
        over="sections",
        item="section",
        key=str,
        into="digests",
        take="summaries",
        on_error="collect",
        name="sections",
    ),
    name="digest of the handbook",
)

APPLICATIONS = [crawl, contest, review, digest]


async def execute(place: str) -> None:
    """Leave runs of all kinds in the store, then execute the large one."""
    for app in APPLICATIONS:
        app.store = SQLiteStore(place)
    await crawl.run({"pages": 150}, id="crawl-2026-11-29")
    await contest.run({"question": "Why is the sea salty?"}, id="sea")
    await review.run({"files": ["lexer.py", "parser.py"]}, id="review-481")
    async with anyio.create_task_group() as tasks:
        sections = {"sections": ["guide", "reference", "forum"]}
        tasks.start_soon(partial(digest.run, sections, id="digest-48"))
        await crawl.run({"pages": PAGES}, id="crawl-2026-11-30")


# -- the pictures ----------------------------------------------------------------------------------

SHOTS = {
    "runs": "/",
    "run": "/runs/crawl-2026-11-30",
    "timeline": "/runs/crawl-2026-11-30?view=timeline",
    "history": "/runs/crawl-2026-11-30?view=history",
    "values": "/runs/crawl-2026-11-30?view=values",
    "time": "/runs/crawl-2026-11-30?view=time",
    "graph": "/runs/crawl-2026-11-30?view=graph",
    "bars": "/runs/crawl-2026-11-29?view=timeline",
    "ended": "/runs/crawl-2026-11-29",
    "race": "/runs/sea",
    "race-bars": "/runs/sea?view=timeline",
    "question": "/runs/review-481",
    "nested": "/runs/digest-48",
    "limits": "/limits",
    "missing": "/runs/nothing",
}
"""Each kind of page, by the name of its picture."""

SHOWN = (
    ("ui-run", "run", 1180, 1180, "light"),
    ("ui-time", "time", 1180, 840, "light"),
    ("ui-timeline", "timeline", 1180, 580, "dark"),
    ("ui-question", "question", 1180, 800, "light"),
    ("ui-race", "race", 1180, 580, "light"),
    ("ui-nested", "nested", 1180, 880, "light"),
    ("ui-limits", "limits", 1180, 960, "light"),
    ("ui-phone", "run", 390, 844, "dark"),
)
"""The pictures in the docs: of which page, how wide and high, in which colours."""

BEFORE = 7_000
"""Children that have ended when the pictures are taken."""


@contextmanager
def served(place: str) -> Generator[str]:
    """Execute the programs, and serve their store, in processes of their own; yield the address."""
    begin = [sys.executable, "-m"]
    program = [*begin, "tools.screenshots", "--execute", place]
    page = [*begin, "shoal", "ui", "--db", place, "--port", "0", "--token", TOKEN]
    page += ["--app", "tools.screenshots:APPLICATIONS"]
    with subprocess.Popen(program, cwd=ROOT) as writer:
        while not Path(place).exists():
            time.sleep(0.2)
        with subprocess.Popen(page, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            try:
                yield server.stdout.readline().split()[-1].partition("/?")[0]
            finally:
                server.terminate()
                writer.kill()


@contextmanager
def opened(browser: Any, address: str, width: int, height: int, theme: str) -> Generator[Any]:
    """Yield a page of a browser that has the token."""
    size = {"width": width, "height": height}
    context = browser.new_context(
        base_url=address, viewport=size, color_scheme=theme, reduced_motion="reduce"
    )
    page = context.new_page()
    page.goto(f"/?token={TOKEN}")
    yield page
    context.close()


def take_all(browser: Any, address: str, folder: Path) -> None:
    """Take pictures of each kind of page, to look at."""
    for width, height, theme in ((1180, 900, "light"), (390, 820, "light"), (1180, 900, "dark")):
        with opened(browser, address, width, height, theme) as page:
            page.goto(SHOTS["run"])
            child = page.locator(".failure a").nth(0).get_attribute("href")
            for name, place in {**SHOTS, "child": child}.items():
                page.goto(place)
                page.wait_for_timeout(500)
                page.screenshot(path=folder / f"{name}-{width}-{theme}.png", full_page=True)


def take_shown(browser: Any, address: str) -> None:
    """Take the pictures in the docs."""
    for name, shot, width, height, theme in SHOWN:
        with opened(browser, address, width, height, theme) as page:
            page.goto(SHOTS[shot])
            page.wait_for_timeout(1500)
            while "ago" in page.locator("body").inner_text().partition("Running longest")[0]:
                page.wait_for_timeout(200)  # the machine is busy, and its reports are late
            page.screenshot(path=IMAGES / f"{name}.png")


def wait_until_half(browser: Any, address: str) -> None:
    """Wait until enough children have ended."""
    with opened(browser, address, 1180, 900, "light") as page:
        page.wait_for_timeout(20_000)  # the first run takes some time
        page.goto(SHOTS["run"])
        while True:
            more = page.locator("#h-children .more")
            if more.count() and int(more.inner_text().split()[0].replace(",", "")) > BEFORE:
                return
            page.wait_for_timeout(1000)


def main() -> None:
    """Take the pictures, as the arguments say."""
    parser = argparse.ArgumentParser(prog="python -m tools.screenshots", description=__doc__)
    parser.add_argument("--all", metavar="FOLDER", type=Path)
    parser.add_argument("--execute", metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.execute:
        anyio.run(execute, options.execute)
        return
    playwright_api: Any = import_module("playwright.sync_api")  # the programs don't need it
    with (
        tempfile.TemporaryDirectory() as folder,
        served(f"{folder}/runs.db") as address,
        playwright_api.sync_playwright() as playwright,
    ):
        browser: Any = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        wait_until_half(browser, address)
        if options.all:
            take_all(browser, address, options.all)
        else:
            take_shown(browser, address)
        browser.close()


if __name__ == "__main__":
    main()
