"""The scraper on cppreference, whose addresses have escapes of all kinds, beside another walk.

The pages are those of Debian's package cppreference-doc-en-html, behind nginx. The walk shares
nothing with the scraper: Python's own HTML parser, and the resolution of RFC 3986 (5.2), written
out. What is compared are the targets of requests, byte by byte, as nginx has logged them.
"""

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from benchmarks._nginx import Site, find_nginx, serving
from tests.examples.services import absent

ROOT = Path(__file__).parents[2]
DOCS = Path("/usr/share/cppreference/doc/html")
START = "/en/index.html"


class Hrefs(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in {"a", "area"}:
            self.found += [value or "" for name, value in attrs if name in {"href", "xlink:href"}]


def targets(page: str, site: str) -> Iterator[str]:
    """The targets on this site that a page links to, as they are written."""
    for found in Hrefs((DOCS / unquote(page).lstrip("/")).read_text("utf-8")).found:
        href = found.strip().partition("#")[0].removeprefix(site)
        if not href or href.startswith("//") or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", href):
            continue
        assert re.fullmatch(r"[!-~]+", href), "what needs escapes is another test's matter"
        path, mark, query = href.partition("?")
        whole = path if path.startswith("/") else page.rpartition("/")[0] + "/" + path
        kept: list[str] = []
        for segment in whole.split("/")[1:]:
            if segment == "..":
                kept = kept[:-1]
            elif segment != ".":
                kept.append(segment)
        yield "/" + "/".join(kept) + mark + query


def walk(site: str) -> set[str]:
    known, todo = {START}, [START]
    while todo:
        page = todo.pop()
        if page.endswith(".html") and (DOCS / unquote(page).lstrip("/")).is_file():
            new = set(targets(page, site)) - known
            known |= new
            todo += new
    return known


@pytest.mark.services
@pytest.mark.slow
@pytest.mark.timeout(600)  # a minute, on a machine that has nothing else to do
def test_each_address_of_cppreference_is_asked_for_once_and_as_it_is_written(
    tmp_path: Path,
) -> None:
    if find_nginx() is None:
        absent("nginx")
    if not DOCS.is_dir():
        absent("cppreference-doc-en-html")
    out = tmp_path / "pages.jsonl"
    with serving(tmp_path, {"docs": Site(DOCS)}) as served:
        docs = served["docs"]
        flags = ["--out", str(out), "--progress", "none", "-c", "32", "--per-host", "32"]
        command = [sys.executable, "-m", "examples.scraper", docs.url + START, *flags]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        print(done.stderr)
        asked = Counter(one.path for one in docs.asked() if one.path != "/robots.txt")
        expected = walk(docs.url)
        rows = {row["url"]: row for row in map(json.loads, out.read_text().splitlines())}

    assert set(asked) == expected
    assert set(asked.values()) == {1}
    assert len(expected) > 4000
    assert rows.keys() == {docs.url + target for target in expected}
    missing = {target for target in expected if not (DOCS / unquote(target).lstrip("/")).is_file()}
    failed = {url.removeprefix(docs.url) for url, row in rows.items() if row["error"]}
    assert failed == missing
    assert all(row["title"] for row in rows.values() if not row["error"])
