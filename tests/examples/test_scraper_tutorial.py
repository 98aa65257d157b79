"""The crawler in one file: against a real server, in both event loops, and killed."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import anyio
import pytest

from examples.scraper import tutorial
from tests.examples.raw_site import NOT_FOUND, Head, reply, serving

ROOT = Path(__file__).parents[2]
MORE = [f"/{number}" for number in range(6)]
BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])

pytestmark = [pytest.mark.timeout(120), pytest.mark.realtime]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


def page(title: str, *links: str) -> bytes:
    anchors = "".join(f'<a href="{link}">x</a>' for link in links)
    return reply(f"<title>{title}</title>{anchors}")


class Shop:
    """A little site. `/busy` is answered when it is asked again, `/broken` when it is mended."""

    def __init__(self) -> None:
        self.asked = Counter[str]()
        self.is_mended = False

    def answer(self, target: str, _: Head) -> bytes:
        self.asked[target] += 1
        match target:
            case "/":
                outside = ("https://elsewhere.example/", "mailto:ann@example.org")
                return page("Home", "a#top", "/a", "/busy", "/gone", "/broken", "/image", *outside)
            case "/a":
                return page("A", "/", "./b", "b#end")
            case "/b":
                return page("B")
            case "/busy" if self.asked[target] == 1:
                return reply("", "Retry-After: 0", status="429 Too Many Requests")
            case "/busy":
                return page("Busy")
            case "/image":
                return reply("<a href='/not'>", kind="image/png")
            case "/broken" if not self.is_mended:
                return reply(status="500 Internal Server Error")
            case "/broken":
                return page("Mended", "/late")
            case "/late":
                return page("Late")
            case _:
                return NOT_FOUND


@BACKENDS
def test_a_site_is_crawled_and_what_failed_is_tried_again(
    backend: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop, database = Shop(), str(tmp_path / "pages.db")

    def crawled(again: bool = False) -> dict[str, str]:
        found = anyio.run(tutorial.crawl_site, start, database, again, backend=backend)
        return {url.removeprefix(site.url): found[url]["title"] for url in found}

    with serving(shop.answer) as site:
        start = f"{site.url}/"
        titles = {"/": "Home", "/a": "A", "/b": "B", "/busy": "Busy", "/image": ""}
        assert crawled() == titles
        assert shop.asked["/busy"] == 2
        assert shop.asked["/broken"] == 3, "it may be better after a retry"
        assert shop.asked["/gone"] == 1, "that won't change"
        assert set(shop.asked) <= {*titles, "/gone", "/broken"}
        printed = capsys.readouterr().out
        assert f"{site.url}/a: A\n" in printed
        assert "404" in printed

        shop.is_mended = True
        before = shop.asked.copy()
        assert "/broken" not in crawled(), "a crawl that is done returns its result"
        assert shop.asked == before
        assert {"/broken": "Mended", "/late": "Late"}.items() <= crawled(again=True).items()
        assert shop.asked - before == Counter({"/broken": 1, "/late": 1, "/gone": 1})


@pytest.mark.crash
def test_a_killed_crawl_continues_with_the_command_that_began_it(tmp_path: Path) -> None:
    answered = Counter[str]()
    crawls: list[subprocess.Popen[str]] = []

    def answer(target: str, _: Head) -> bytes | None:
        if len(answered) == 4 and len(crawls) == 1:
            crawls[0].kill()
            return None
        answered[target] += 1
        return page(target, *MORE)

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "examples.scraper.tutorial", f"{site.url}/", database]
        crawls.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        return crawls[-1]

    database = str(tmp_path / "pages.db")
    with serving(answer) as site:
        with start() as killed:
            first, _ = killed.communicate(timeout=60)
        assert killed.returncode == -9
        with start() as resumed:
            second, _ = resumed.communicate(timeout=60)
        assert resumed.returncode == 0
        asked = answered.total()
        found = anyio.run(tutorial.crawl_site, f"{site.url}/", database)
    assert {page["title"] for page in found.values()} == {"/", *MORE}
    assert answered.total() == asked, "the crawl was done"
    # A page that was printed was saved. One may be saved, and its process die before it prints.
    shown, shown_again = first.splitlines(), second.splitlines()
    assert not set(shown) & set(shown_again), "a saved page was asked for again"
    assert f"{site.url}/: /" in shown
    assert answered["/"] == 1
