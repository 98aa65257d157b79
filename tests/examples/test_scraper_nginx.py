"""The scraper on a real site of over 500 pages: Python's own documentation behind nginx.

What nginx was asked for is read from its own log; what there is to be found is computed from the
files, by another parser.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import pytest

from benchmarks._nginx import PYTHON_DOCS, Served

ROOT = Path(__file__).parents[2]
DOCS = PYTHON_DOCS


class Hrefs(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in {"a", "area"}:
            self.found += [value or "" for name, value in attrs if name == "href"]


def reachable(start: str) -> set[str]:
    """The paths that links lead to from `start`, whether or not there is a file."""
    known, todo = {start}, [start]
    while todo:
        path = todo.pop()
        file = DOCS / path.lstrip("/")
        if file.suffix != ".html" or not file.is_file():
            continue
        for href in Hrefs(file.read_text("utf-8")).found:
            target = urlsplit(urljoin(f"http://docs{path}", href))
            if target[:2] == ("http", "docs") and unquote(target.path) not in known:
                known.add(unquote(target.path))
                todo.append(unquote(target.path))
    return known


@pytest.mark.services
@pytest.mark.timeout(120)
@pytest.mark.parametrize("backend", ["asyncio", pytest.param("trio", marks=pytest.mark.slow)])
def test_every_reachable_page_once_and_none_outside(
    nginx: dict[str, Served], tmp_path: Path, backend: str
) -> None:
    docs = nginx["python"]
    docs.forget()
    out = tmp_path / "pages.jsonl"
    # Whatever is asked of another host would go through this proxy, and so be in the log.
    through = dict.fromkeys(["http_proxy", "https_proxy", "all_proxy"], docs.url)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "examples.scraper",
            f"{docs.url}/index.html",
            "--out",
            str(out),
            "--backend",
            backend,
        ],
        cwd=ROOT,
        env={**os.environ, **through, "no_proxy": "127.0.0.1"},
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stderr)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    paths = {unquote(row["url"].removeprefix(docs.url)): row for row in rows}
    expected = reachable("/index.html")

    assert paths.keys() == expected
    assert len(rows) == len(expected)
    pages = [path for path in expected if path.endswith(".html") and (DOCS / path[1:]).is_file()]
    assert len(pages) > 500
    assert all(paths[path]["title"] for path in pages)

    asked = Counter(one.path for one in docs.asked())
    assert {unquote(path) for path in asked} == expected | {"/robots.txt"}
    assert set(asked.values()) == {1}

    missing = {path for path in expected if not (DOCS / path[1:]).exists()}
    assert {path for path, row in paths.items() if row["error"]} == missing
    assert done.returncode == (3 if missing else 0)
