"""The demo site: real pages, none missing, and a crawl of it from the command line."""

import json
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from examples.scraper.demo_site import load_modules, module_names, render, render_index, serving

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(90)  # whole processes, on whatever machine


class Hrefs(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.update(value for name, value in attrs if name == "href" and value is not None)


def scrape(*args: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "examples.scraper", *args]
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False
    )


def test_the_list_names_no_module_twice() -> None:
    names = list(module_names())
    assert len(names) == len(set(names)) > 200
    assert "os" in names
    assert "xml.etree.ElementTree" in names
    parents = {name.rpartition(".")[0] for name in names} - {""}
    assert parents <= set(names)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of modules, as the site ignores it
def test_pages_link_to_nothing_that_is_not_served() -> None:
    modules = {name: module for name, module in load_modules().items() if name[0] in "chj"}
    assert "builtins" not in modules
    for page in (render_index(modules), *(render(name, modules) for name in modules)):
        targets = {href.partition("#")[0] for href in Hrefs(page).found}
        own = {href for href in targets if href and "//" not in href}
        assert own <= {".", *(f"{name}.html" for name in modules)}


def test_the_site_answers_and_is_gone_afterwards() -> None:
    with serving() as url:
        index = httpx.get(url, trust_env=False)
        assert index.status_code == 200
        assert 'href="json.html"' in index.text
        page = httpx.get(f"{url}json.html", trust_env=False)
        assert "Python: package json" in page.text
        assert (
            "PATH" not in httpx.get(f"{url}os.html", trust_env=False).text.partition("environ =")[2]
        )
        for missing in ("json", "antigravity.html", "nothing.html", "json.html.html", "..html"):
            assert httpx.get(url + missing, trust_env=False).status_code == 404
    with pytest.raises(httpx.ConnectError):
        httpx.get(url, trust_env=False)


@pytest.mark.slow  # as long as a hundred other tests; `nox -s examples` crawls all of it, too
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_demo_crawls_over_two_hundred_pages(tmp_path: Path, backend: str) -> None:
    out = tmp_path / "pages.jsonl"
    done = scrape("--demo", "--out", str(out), "--backend", backend)
    assert done.returncode == 0, done.stderr
    assert "0 failed in" in done.stderr
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    titles = {row["title"] for row in rows}
    assert len(rows) == len({row["url"] for row in rows}) == len(titles) > 200
    assert all(row["status"] == 200 and row["error"] is None for row in rows)
    assert "Python: module xml.etree.ElementTree" in titles


def test_a_page_limit_shows_in_the_exit_code() -> None:
    done = scrape("--demo", "--max-pages", "5", "--out", "-", "--progress", "none")
    assert done.returncode == 4
    assert len(done.stdout.splitlines()) == 5
    assert "known but not fetched" in done.stderr
    assert len(done.stderr.splitlines()) == 1
