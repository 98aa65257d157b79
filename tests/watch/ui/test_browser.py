"""The page in a real browser, over runs that other processes have executed, or still do."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.examples.services import absent

pytestmark = [pytest.mark.services, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[3]
TOKEN = "a-token-of-some-length"
PROGRAM = [sys.executable, "-m", "tests.watch.ui.program"]
LIVE = 20_000
SMALL = "small%2520%253Cb%253Ecrawl%253C%252Fb%253E"


class Served(NamedTuple):
    address: str
    pid: int

    @property
    def cpu(self) -> float:
        """Seconds of the processor that the server has taken."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run_program(place: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*PROGRAM, str(place), *arguments], cwd=ROOT)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ui") / "runs.db"
    assert run_program(place, "prepare").wait() == 0
    return place


@contextmanager
def served(place: Path) -> Generator[Served]:
    command = [sys.executable, "-m", "shoal", "ui", "--db", str(place), "--port", "0"]
    command += ["--token", TOKEN, "--app", "tests.watch.ui.program:APPLICATIONS"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        address = server.stdout.readline().split()[-1]
        try:
            yield Served(address.partition("/?")[0], server.pid)
        finally:
            ended = server.poll()
            server.terminate()
            assert ended is None, f"the server has ended by itself: {ended}"
            assert server.wait(timeout=3) in (0, -15)


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Served]:
    with served(place) as server:
        yield server


@pytest.fixture(scope="module")
def address(server: Served) -> str:
    return server.address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium")
    if chromium is None:
        absent("chromium")
    try:
        playwright_api: Any = import_module("playwright.sync_api")
    except ImportError:
        absent("playwright")
    with playwright_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """A page of a browser that has the token. Whatever goes wrong in it fails the test."""
    with opened(browser, address) as page:
        yield page


@contextmanager
def opened(browser: Any, address: str, **options: Any) -> Generator[Any]:
    context = browser.new_context(base_url=address, **options)
    context.set_default_timeout(30_000)
    page = context.new_page()
    wrong: list[str] = []

    def listen(said: Any) -> None:
        if said.type != "log":
            wrong.append(said.text)

    def note(error: object) -> None:
        wrong.append(str(error))

    page.on("console", listen)
    page.on("pageerror", note)
    page.goto(f"/?token={TOKEN}")
    assert "token" not in page.url
    yield page
    context.close()
    assert wrong == []


def headline(page: Any) -> str:
    return page.locator(".headline").inner_text()


def wait_until(page: Any, condition: str) -> None:
    """Wait for a condition; ``page.wait_for_function`` needs a policy that allows ``eval``."""
    for _ in range(300):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(100)
    pytest.fail(f"not within 30 seconds: {condition}")


CUT = """[...document.querySelectorAll('main .card, main .card *:not(.hidden)')].filter(e => {
  const { overflowX, textOverflow } = getComputedStyle(e);
  return e.clientWidth > 1 && e.scrollWidth > e.clientWidth + 1
    && !['visible', 'auto', 'scroll'].includes(overflowX) && textOverflow != 'ellipsis';
}).map(e => e.innerText)"""


def assert_nothing_is_cut(page: Any) -> None:
    """Fail if something is wider than its place, and no dots say so."""
    assert page.evaluate(CUT) == []


def shot(page: Any, name: str) -> None:
    """Keep a picture, if somebody wants to look at it: with SHOAL_SHOTS, the folder for them."""
    if folder := os.environ.get("SHOAL_SHOTS"):
        page.screenshot(path=f"{folder}/{name}.png", full_page=True)


def test_following_a_link_down_to_a_failed_child_and_back(page: Any):
    page.get_by_role("link", name="crawl", exact=True).click()
    assert "15 failed" in headline(page)
    shot(page, "run")
    groups = page.locator(".failure")
    assert groups.count() == 5
    groups.nth(0).get_by_role("link").click()
    trace = page.locator("pre.trace").inner_text()
    assert "program.py:" in trace.splitlines()[0]
    assert ", in fetch" in trace.splitlines()[0]
    assert "https://docs.example/3: status 503" in trace
    assert page.locator("h1").inner_text().startswith("https://docs.example/")
    shot(page, "child")
    page.locator(".crumbs").get_by_role("link", name="crawl").click()
    assert "15 failed" in headline(page)
    page.go_back()
    page.go_back()
    assert "15 failed" in headline(page)


def test_filters_a_search_and_a_value_on_click(page: Any):
    page.goto("/runs/crawl")
    page.get_by_role("link", name="succeeded 285").click()
    assert page.locator("tbody .pill.failed").count() == 0
    page.get_by_role("searchbox").fill("example/12")
    page.get_by_role("button", name="Find").click()
    assert page.locator("tbody tr").count() == 10  # 12 and 120 to 129, without 123
    page.locator("tbody tr").nth(0).get_by_role("link", name="result").click()
    page.locator("#peek pre").wait_for()
    assert "page 12" in page.locator("#peek pre").inner_text()
    shot(page, "peek")


def test_a_bar_of_a_timeline_says_which_child_it_is(page: Any):
    page.goto("/runs/race?view=timeline")
    page.locator(".timeline a rect").nth(0).hover()
    assert page.locator("#told").inner_text().startswith("tiny: failed, ")
    page.locator(".timeline a").nth(1).focus()
    assert page.locator("#told").inner_text().startswith(("huge: cancelled", "local: succeeded"))


def test_pages_of_children_follow_each_other(page: Any):
    page.goto("/runs/crawl")
    keys: list[str] = []
    for _ in range(3):
        keys += page.locator("tbody a.key").all_inner_texts()
        page.get_by_role("link", name="Next page").click()
    assert len(set(keys)) == len(keys) == 75


def test_a_race_has_grey_losers_with_a_link_to_the_winner(page: Any):
    page.goto("/runs/race")
    losers = page.locator("tr.loser")
    assert losers.count() == 2
    assert page.locator("tr.loser .pill.failed").count() == 0
    shot(page, "race")
    losers.nth(0).locator("a.won").click()
    assert page.locator("h1").inner_text() == "local"


@pytest.mark.parametrize("view", ["timeline", "history", "values", "graph"])
@pytest.mark.parametrize(
    "run", ["crawl", "small%20%3Cb%3Ecrawl%3C%2Fb%3E".replace("%", "%25"), "race"]
)
def test_views_of_a_run(page: Any, run: str, view: str):
    page.goto(f"/runs/{run}?view={view}")
    assert page.locator(".tabs [aria-current]").inner_text().lower() == view
    assert page.evaluate("document.getElementsByTagName('*').length") < 600
    shot(page, f"{view}-{run[:5]}")


@pytest.mark.slow
def test_a_page_follows_a_run_of_20000_children_in_another_process(
    page: Any, place: Path, server: Served
):
    writer = run_program(place, "crawl", str(LIVE), "12")
    try:
        page.get_by_role("link", name="live", exact=True).click(timeout=60_000)  # the list follows
        more = page.locator("#h-children .more")
        more.wait_for()
        page.get_by_role("searchbox").fill("typed")
        page.get_by_role("searchbox").focus()
        page.evaluate("window.scrollTo(0, 300); window.title = document.querySelector('h1')")
        counts: list[int] = []
        began, cpu = time.monotonic(), server.cpu
        for _ in range(8):
            counts.append(int(more.inner_text().split()[0].replace(",", "")))
            page.wait_for_timeout(600)
        assert (server.cpu - cpu) / (time.monotonic() - began) < 0.2
        assert counts == sorted(counts)
        assert len(set(counts)) >= 3
        assert page.evaluate("window.title === document.querySelector('h1')")
        assert page.evaluate("document.activeElement.value") == "typed"
        assert page.evaluate("window.scrollY") == 300
        assert page.evaluate("document.getElementsByTagName('*').length") < 600
        assert page.locator(".step.inner .bar").count() >= 1
        assert_nothing_is_cut(page)
        page.set_viewport_size({"width": 390, "height": 820})
        assert_nothing_is_cut(page)
        shot(page, "live")
        assert writer.wait(timeout=100) == 0
        page.locator(".title .pill.succeeded").wait_for(timeout=60_000)
        assert more.inner_text().startswith(f"{LIVE:,}")
    finally:
        writer.kill()
        writer.wait()


def test_a_run_of_another_process_is_cancelled_from_the_page(page: Any, place: Path):
    writer = run_program(place, "crawl", "2000", "60", "endless")
    try:
        page.get_by_role("link", name="endless", exact=True).click(timeout=60_000)
        page.get_by_text("Running longest now").wait_for(timeout=60_000)
        assert "20 running" in headline(page)
        page.get_by_text("Cancel …").click()
        page.locator("#cancel").get_by_label("Reason").fill("enough seen")
        page.wait_for_timeout(700)  # an update must neither close the form nor empty it
        page.get_by_role("button", name="Cancel the run").click()
        page.locator(".title .pill.cancelled").wait_for(timeout=60_000)
        assert "enough seen" in page.locator("main").inner_text()
        writer.wait(timeout=60)
    finally:
        writer.kill()
        writer.wait()


@pytest.mark.parametrize("width", [1280, 390])
def test_the_form_that_cancels_a_run_is_on_the_screen(
    browser: Any, address: str, place: Path, width: int
):
    name = f"asked at {width}"
    writer = run_program(place, "crawl", "2000", "60", name)
    try:
        with opened(browser, address, viewport={"width": width, "height": 820}) as page:
            page.get_by_role("link", name=name, exact=True).click(timeout=30_000)
            page.get_by_text("Cancel …").click()
            box = page.locator("#cancel .pop").bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= width
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            shot(page, f"cancel-{width}")
    finally:
        writer.kill()
        writer.wait()


def test_a_limit_of_another_process_is_changed_from_the_page(page: Any, place: Path):
    writer = run_program(place, "crawl", "4000", "120", "limited")
    try:
        page.get_by_role("link", name="Limits").click()
        page.get_by_text("20 of 20 in use").wait_for(timeout=60_000)
        assert_nothing_is_cut(page)
        shot(page, "limits")
        page.get_by_text("Change", exact=True).click()
        page.get_by_label("slots").fill("7")
        page.get_by_role("button", name="Change it in that process").click()
        page.get_by_text("of 7 in use").wait_for(timeout=60_000)
    finally:
        writer.kill()
        writer.wait()


def test_a_question_is_answered_with_a_form_of_its_schema(page: Any):
    page.goto("/runs/review")
    assert "Merge b.py:2?" in page.locator(".question").inner_text()
    shot(page, "question")
    page.get_by_role("combobox", name="Verdict").select_option("change")
    page.get_by_label("Comment").fill("Add a test.")
    page.get_by_label("Severity").fill("4")
    page.get_by_role("button", name="Answer").click()
    page.locator(".title .pill.succeeded").wait_for()
    page.goto("/runs/review?view=history")
    assert "change: Add a test. (4)" in page.locator("main").inner_text()


def test_failed_children_are_run_again_from_the_page(page: Any):
    page.goto(f"/runs/{SMALL}")
    assert "3 failed" in headline(page)
    page.get_by_role("button", name="Run the 3 failed again").click()
    page.locator(".failure").nth(0).wait_for()
    assert "3 failed" in headline(page)  # they fail again


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1180, 390])
def test_nothing_that_axe_finds_is_in_the_way_of_people(
    browser: Any, address: str, theme: str, width: int
):
    axe: Any = import_module("axe_playwright_python.sync_playwright").Axe()
    size = {"width": width, "height": 820}
    with opened(browser, address, color_scheme=theme, viewport=size) as page:
        places = ["/", "/runs/crawl", "/runs/review", "/runs/race?view=timeline"]
        if (theme, width) == ("light", 1180):  # the others differ in colours and columns alone
            places += [f"/runs/crawl?view={view}" for view in ("timeline", "history", "values")]
            places += ["/limits", "/runs/race", "/runs/crawl?view=time", "/runs/crawl?view=graph"]
        for place in places:
            page.goto(place)
            found = axe.run(page)
            assert found.violations_count == 0, found.generate_report()
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            cells = "[...document.querySelectorAll('.c-took, .stack .why')]"
            assert page.evaluate(f"{cells}.every(c => c.getBoundingClientRect().right <= {width})")
            assert_nothing_is_cut(page)
            shot(
                page, f"{theme}-{width}-{place.strip('/').replace('/', '-').replace('?view=', '-')}"
            )


def test_it_is_usable_by_keyboard_alone(page: Any):
    page.goto("/runs/crawl")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('main') !== null")
    outline = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(outline) == "solid"


def test_without_a_script_the_pages_are_whole(browser: Any, address: str):
    with opened(browser, address, java_script_enabled=False) as page:
        page.goto("/runs/crawl")
        page.get_by_role("link", name="failed 15").click()
        page.locator("tbody a.key").nth(0).click()
        assert "https://docs.example/" in page.locator("pre.trace").inner_text()


def test_a_signal_ends_the_server_although_streams_are_open(browser: Any, place: Path):
    context = browser.new_context()
    page = None
    with served(place) as server:  # leaving the block checks how long it takes
        for each in ("/runs/crawl", "/limits", "/"):
            page = context.new_page()
            page.goto(f"{server.address}{each}?token={TOKEN}")
            wait_until(page, "document.querySelector('main')._htmx?.sse != null")
    assert page is not None
    page.get_by_role("alert").wait_for()
    assert "Connection lost, trying again" in page.get_by_role("alert").inner_text()
    context.close()


STREAMS = re.compile("as=stream")


@pytest.fixture
def watcher(browser: Any, address: str) -> Iterator[Any]:
    """A page that has the token, and whose console may have errors."""
    context = browser.new_context(base_url=address)
    context.set_default_timeout(30_000)
    page = context.new_page()
    page.goto(f"/?token={TOKEN}")
    yield page
    context.close()


def test_a_page_whose_first_connection_fails_follows_in_the_end(watcher: Any, address: str):
    page, attempts = watcher, list[str]()

    def fail(route: Any) -> None:
        attempts.append(" ".join(page.locator(".offline p:visible").all_inner_texts()))
        match len(attempts):
            case 1:
                route.abort()
            case 2:
                route.fulfill(status=503, content_type="text/html", body="<h1>not now</h1>")
            case 3:
                route.fulfill(status=404, content_type="text/html", body="<h1>gone</h1>")
            case _:
                route.continue_()

    page.route(STREAMS, fail)
    page.goto("/runs/crawl")
    wait_until(page, "document.querySelector('main')._htmx?.sse != null")
    assert page.locator("h1").inner_text() == "crawl docs"
    assert not page.get_by_role("alert").is_visible()
    assert attempts[0] == ""
    assert all("Connection lost, trying again" in text for text in attempts[1:3])
    assert "no longer gives this page" in attempts[3]
    assert len(attempts) == 4


def test_a_page_notices_that_nothing_comes_any_more(browser: Any, place: Path):
    context = browser.new_context()
    page = context.new_page()
    with served(place) as server:
        page.clock.install()
        page.goto(f"{server.address}/runs/crawl?token={TOKEN}")
        wait_until(page, "document.querySelector('main')._htmx?.sse?.reader != null")
        os.kill(server.pid, signal.SIGSTOP)  # connections stay open, and nothing comes
        try:
            page.clock.run_for(50_000)
            page.get_by_role("alert").wait_for()
        finally:
            os.kill(server.pid, signal.SIGCONT)
        for _ in range(100):
            page.clock.run_for(1_000)
            if not page.get_by_role("alert").is_visible():
                break
        assert not page.get_by_role("alert").is_visible()
    context.close()


def test_a_value_that_can_not_be_shown_leads_to_the_page_that_says_why(watcher: Any):
    page = watcher
    page.goto("/runs/crawl?status=succeeded")

    def fail(route: Any) -> None:
        if "hx-request" in route.request.headers:
            route.fulfill(status=503, content_type="text/html", body="<h1>not now</h1>")
        else:
            route.continue_()

    page.route(re.compile("/values/"), fail)
    page.locator("tbody tr").nth(0).get_by_role("link", name="result").click()
    page.wait_for_url(re.compile("/values/"))
