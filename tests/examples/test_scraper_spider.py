"""A spider of one's own: a parser's records and links, and what requests carry."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import examples.scraper
from examples.scraper.command.cli import main
from examples.scraper.command.job import Job
from examples.scraper.fetching.web import proxies
from examples.scraper.reading.document import Document, Follow, Record
from examples.scraper.settings import Settings, expanded, header, split_attribute
from examples.scraper.spider import Spider
from tests.examples.memory_site import Crawl, answer
from tests.examples.raw_site import NOT_FOUND, Head, reply, serving

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.timeout(120), pytest.mark.realtime]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("NO_PROXY", "*")


def book(number: int) -> str:
    return (
        f'<article class=product><h3><a title="Book {number}" href="/book/{number}">B...</a></h3>'
        f'<p class=price> £{number} </p><img src="/{number}.png"></article>'
    )


PAGES = {
    "/": book(1) + book(2) + '<p class=next><a href="page2?x=1#top">next</a></p><a href=/about>',
    "/page2?x=1": book(3) + "<a href=/about>",
    "/empty": "",
}


def shop(target: str, _: Head) -> bytes:
    return reply(PAGES[target]) if target in PAGES else NOT_FOUND


def books(page: Document) -> Iterator[Record | Follow]:
    for one in page.css("article.product"):
        yield {"title": one.attribute("title", "h3 a"), "price": one.text(".price")}
    yield from page.follow(".next a")


def wrong(page: Document) -> Iterator[Any]:
    yield page.title


def broken(page: Document) -> Iterator[Record | Follow]:
    if page.url.endswith("x=1"):
        raise ValueError("no price")
    yield from books(page)


def rows_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_the_spider_of_the_readme(tmp_path: Path) -> None:
    readme = Path(examples.scraper.__file__).with_name("README.md").read_text("utf-8")
    [program] = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    assert len(program.splitlines()) <= 20
    (tmp_path / "books.py").write_text(program, "utf-8")
    wide = "<i>x</i>" * 5000  # so many tags are parsed in another process

    def give(target: str, head: Head) -> bytes:
        return reply(PAGES[target] + wide) if target == "/" else shop(target, head)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"}
        return subprocess.run(
            [sys.executable, "books.py", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    with serving(give) as site:
        done = run(f"{site.url}/", "--job", "books", "-o", "books.jsonl", "--progress", "none")
        assert done.returncode == 0, done.stderr
        assert "/about" not in site.targets
    assert rows_in(tmp_path / "books.jsonl") == [
        {
            "url": f"{site.url}{page}",
            "title": f"Book {number}",
            "price": f"£{number}",
            "cover": f"{site.url}/{number}.png",
        }
        for number, page in ((1, "/"), (2, "/"), (3, "/page2?x=1"))
    ]
    exported = run("export", "books", "-f", "csv").stdout.splitlines()
    assert exported[0] == "url,title,price,cover"
    assert exported[3] == f"{site.url}/page2?x=1,Book 3,£3,{site.url}/3.png"
    plain = subprocess.run(
        [sys.executable, "-m", "examples.scraper", "resume", str(tmp_path / "books")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert plain.returncode == 1
    assert "was begun by the spider 'books'" in plain.stderr


def test_a_fan_out_takes_a_parser(crawled: Crawl) -> None:
    site = {path: answer(body) for path, body in PAGES.items()}
    done = crawled(site, parse=books)
    assert [row["title"] for row in done.rows["/"]["records"]] == ["Book 1", "Book 2"]
    assert set(done.rows) == {"/", "/page2?x=1"}


def test_a_parser_that_raises_fails_its_page_and_a_mended_one_is_asked_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job, out = str(tmp_path / "job"), tmp_path / "rows.jsonl"
    spider, mended = Spider(broken), Spider(books)
    mended.name = spider.name  # the same function, after an edit
    with serving(shop) as site:
        flags = [f"{site.url}/", "--job", job, "-o", str(out), "--progress", "none"]
        assert main(flags, spider) == 3
        assert len(rows_in(out)) == 2
        assert site.targets["/page2?x=1"] == 1, "the parser won't change its mind"
        [failed] = [row for row in Job.open(Path(job)).rows() if row["error"]]
        assert failed["error"]["message"] == "no price"
        assert main(["resume", job, "--progress", "none"], Spider(books)) == 1
        assert "spider 'broken'" in capsys.readouterr().err
        assert main(["resume", job, "--progress", "none"], mended) == 0
        assert [row["title"] for row in rows_in(out)] == ["Book 1", "Book 2", "Book 3"]
        assert site.targets["/"] == 1


def test_a_parser_that_yields_something_else_is_told(tmp_path: Path) -> None:
    job = tmp_path / "job"
    with serving(shop) as site:
        flags = [f"{site.url}/", "--job", str(job), "-o", str(tmp_path / "out")]
        assert main([*flags, "--progress", "none"], Spider(wrong)) == 3
    [row] = Job.open(job).rows()
    assert row["error"]["message"] == (
        "wrong yielded None: yield a mapping for a record, and Follow(href) for a link"
    )


def test_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, job = tmp_path / "books.db", tmp_path / "job"
    with serving(shop) as site:
        flags = [f"{site.url}/", "--progress", "none", "-f", "sqlite", "-o", str(out)]
        assert main(flags, Spider(books)) == 2
        assert "sqlite needs the names of the columns" in capsys.readouterr().err
        spider = Spider(books, columns=["title", 'odd "name"'])
        assert main([*flags, "--job", str(job)], spider) == 0
        with sqlite3.connect(out) as sql:
            found = sql.execute("SELECT * FROM pages").fetchall()
        sql.close()
        assert found[0] == (f"{site.url}/", "Book 1", None)
        assert main(["export", str(job), "-o", str(tmp_path / "plain")]) == 0
    assert {*rows_in(tmp_path / "plain")[0]} == {"url", "title", "price"}


def test_parsers_must_be_importable() -> None:
    with pytest.raises(ValueError, match="at the top of a module"):
        Spider(lambda _: ())

    async def late(_: Document) -> None: ...

    with pytest.raises(ValueError, match="late is async"):
        Spider(late)  # pyright: ignore[reportArgumentType] - as a user might


def test_elements() -> None:
    body = b'<base href="/in/"><p id=a> x <b>y</b></p><a href="z?q#f">go</a><a href="mailto:m">'
    page = Document(body, "text/html", "http://a.example/")
    assert page.text("p") == "x y"
    assert page.text(".none") == ""
    assert [one.attribute("id") for one in page.css("p")] == ["a"]
    assert [one.url() for one in page.css("a")] == ["http://a.example/in/z?q", None]
    assert list(page.follow()) == [Follow("z?q"), Follow("mailto:m")]
    assert page.css("p")[0].css("b")[0].text() == "y"
    assert page.css("p")[0].attribute("none", "b") is None
    assert page.css("p")[0].attribute("none", "i") is None
    assert Document(b"", "text/html", "http://a.example/").css("p") == []


# -- selectors, headers, passwords, proxies --------------------------------------------------------


@pytest.mark.parametrize(
    ("css", "parts"),
    [
        ("img.cover@src", ("img.cover", "src")),
        ("a > b @data-x", ("a > b", "data-x")),
        ("h1", ("h1", None)),
        ('a[href="m@b"]', ('a[href="m@b"]', None)),
        ('a[href="m@b"]@href', ('a[href="m@b"]', "href")),
    ],
)
def test_attributes_of_selectors(css: str, parts: tuple[str, str | None]) -> None:
    assert split_attribute(css) == parts


def test_an_attribute_is_kept(crawled: Crawl) -> None:
    site = {"/": answer(PAGES["/"])}
    select = {"covers": "article img@src", "prices": ".price"}
    done = crawled(site, select=select, links=False)
    assert done.rows["/"]["selected"] == {"covers": ["/1.png", "/2.png"], "prices": ["£1", "£2"]}


def test_headers_and_variables() -> None:
    assert header("Accept-Language:  en ") == ("Accept-Language", "en")
    for text in ("x", "a b: c", ": c", "a:"):
        with pytest.raises(ValueError, match="is no header"):
            header(text)
    assert expanded("Bearer $A, ${B}c, 5$", {"A": "1", "B": "2"}) == "Bearer 1, 2c, 5$"
    with pytest.raises(ValueError, match="TOKEN is not set"):
        expanded("Bearer $TOKEN", {})


def test_secrets_go_to_the_named_hosts_alone_and_to_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TOKEN", "s3cret")
    monkeypatch.setenv("LOGIN", "ann:p4ssword")
    job = tmp_path / "job"
    with (
        serving(lambda _target, _head: reply("elsewhere")) as other,
        serving(
            lambda target, _: (
                reply("", f"Location: {elsewhere}", status="302 Found")
                if target == "/moved"
                else reply(f'<a href="{elsewhere}/link">x</a><a href=/moved>y</a>')
            )
        ) as site,
    ):
        elsewhere = other.url.replace("127.0.0.1", "localhost")
        flags = [f"{site.url}/", "--job", str(job), "-o", str(tmp_path / "rows")]
        flags += ["--scope", "any", "--allow-private", "--progress", "none"]
        flags += ["--header", "X-Token: Bearer $TOKEN", "--auth-env", "LOGIN"]
        assert main(flags) == 0
        monkeypatch.delenv("TOKEN")
        assert main(["resume", str(job), "--progress", "none"]) == 1
        assert "TOKEN is not set" in capsys.readouterr().err
    assert site.targets.keys() >= {"/", "/moved"}
    assert all(head["x-token"] == ["Bearer s3cret"] for _, head in site.asked)
    assert all(head["authorization"] == ["Basic YW5uOnA0c3N3b3Jk"] for _, head in site.asked)
    assert "/link" in other.targets
    assert not any({"x-token", "authorization"} & head.keys() for _, head in other.asked)
    for path in job.iterdir():
        assert b"s3cret" not in path.read_bytes()
        assert b"p4ssword" not in path.read_bytes()


def test_a_proxy_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crawl(*flags: str) -> list[str]:
        with serving(lambda _target, _head: reply("through")) as proxy:
            monkeypatch.setenv("WHERE", proxy.url)
            if not flags:
                monkeypatch.setenv("HTTP_PROXY", proxy.url)
                monkeypatch.delenv("http_proxy", raising=False)
            words = ["http://shop.example/a%7eb", *flags, "-o", str(tmp_path / "rows")]
            assert main([*words, "--progress", "none", "--ignore-robots", "--retries", "0"]) == 0
        return [target for target, _ in proxy.asked]

    assert crawl("--proxy", "$WHERE") == ["http://shop.example/a%7eb"]
    monkeypatch.delenv("NO_PROXY")
    assert crawl() == ["http://shop.example/a%7eb"]


def test_proxies_of_the_environment() -> None:
    given = {"http": "p.example:3128", "https": "http://q.example", "ftp": "x", "no": ""}
    found = {"http://": "http://p.example:3128", "https://": "http://q.example"}
    assert proxies(given) == found
    hosts = "a.example, .b.example,10.0.0.1,::1,LOCALHOST,"
    without = ["*a.example", "*.b.example", "10.0.0.1", "[::1]", "LOCALHOST"]
    assert proxies(given | {"no": hosts}) == found | {f"all://{one}": None for one in without}
    assert proxies(given | {"no": "x,*"}) == {}
    assert proxies({"no": "x"}) == {}
    for pattern in proxies(given | {"no": hosts}):
        httpx.AsyncClient(mounts={pattern: None})  # takes it


def test_settings_of_older_jobs_have_none_of_it() -> None:
    old = {"urls": ["http://a/"], "out": "-"}
    assert Settings.from_json(old).spider is None
    assert Settings.from_json(Settings(columns=("a",)).to_json()).columns == ("a",)
