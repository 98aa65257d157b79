"""What the scraper sends, and what it makes of odd answers, byte by byte."""

import json
import time
from collections.abc import Mapping
from http.cookiejar import Cookie
from pathlib import Path
from typing import Any

import httpx
import pytest

from examples.scraper.command.cli import main
from examples.scraper.fetching.addresses import CheckedBackend
from examples.scraper.fetching.cookies import MOST, MOST_BYTES, BoundedJar
from examples.scraper.fetching.fetch import content_type_of, retry_after
from examples.scraper.fetching.http import httpcore
from examples.scraper.politeness.robots import MOST as ROBOTS_MOST
from tests.examples.raw_site import NOT_FOUND, Head, RawSite, links, reply, serving

pytestmark = [pytest.mark.timeout(90), pytest.mark.realtime]  # sockets


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def crawl(site: RawSite, out: Path, *flags: str) -> tuple[int, dict[str, Any]]:
    """Crawl a site from its front page; return the exit code, and the rows by their targets."""
    code = main([f"{site.url}/", "--out", str(out), "--progress", "none", *flags])
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    return code, {row["url"].removeprefix(site.url): row for row in rows}


def pages(site: Mapping[str, bytes]) -> Any:
    def give(target: str, _: Head) -> bytes:
        return site.get(target, NOT_FOUND)

    return give


@pytest.mark.parametrize(
    ("href", "target"),
    [
        ("/operator%3D.html", "/operator%3D.html"),
        ("/a=b", "/a=b"),
        ("/go?next=%2Flogin%3Fx%3D1", "/go?next=%2Flogin%3Fx%3D1"),
        ("/100%", "/100%"),
        ("/50%zz", "/50%zz"),
        ("/a%41%7e~", "/a%41%7e~"),
        ("/back\\slash", "/back/slash"),
        ("/?b=2&a=1&b=1&c", "/?b=2&a=1&b=1&c"),
        ("/?q=a+b%20c", "/?q=a+b%20c"),
        ("/x|y[1]{2}`?x|y[1]{2}^`'", "/x|y[1]%7B2%7D%60?x|y[1]{2}^`%27"),
        ("/caf\u00e9 x?\u00e9 x", "/caf%C3%A9%20x?%C3%A9%20x"),
        (" \n/spa\nced ", "/spaced"),
        ("//127.0.0.1:PORT//a//b", "//a//b"),
        ("/a/./b/../c;p=1", "/a/c;p=1"),
        ("/x?#y", "/x?"),
    ],
)
def test_an_address_is_asked_for_as_it_is_written(href: str, target: str, out: Path) -> None:
    def give(asked: str, _: Head) -> bytes:
        here = href.replace("PORT", site.url.rpartition(":")[2])
        return links(here) if asked == "/" else reply()

    with serving(give) as site:
        code, _ = crawl(site, out, "--ignore-robots")
        assert (code, site.targets) == (0, {"/": 1, target: 1})


def test_the_query_of_a_link_is_in_the_encoding_of_its_page(out: Path) -> None:
    body = '<meta charset="iso-8859-1"><a href="/\u00e9?q=\u00e9">x</a>'.encode("latin-1")
    head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {len(body)}\r\n\r\n"
    with serving(pages({"/": head.encode() + body})) as site:
        crawl(site, out)
        assert site.targets.keys() == {"/", "/%C3%A9?q=%E9"}


def test_links_of_drawings_are_followed(out: Path) -> None:
    drawing = '<title>t</title><svg><a xlink:href="/a">a</a><a href="/b">b</a><a>c</a></svg>'
    with serving(pages({"/": reply(drawing), "/a": reply(), "/b": reply()})) as site:
        code, rows = crawl(site, out)
    assert (code, set(rows), rows["/"]["title"]) == (0, {"/", "/a", "/b"}, "t")


def test_a_type_that_is_said_twice_is_a_type(out: Path) -> None:
    types = ["Content-Type: text/html", "Content-Type: text/html; charset=utf-8"]
    twice = reply('<title>t</title><a href="/a">', *types, kind="")
    with serving(pages({"/": twice, "/a": reply()})) as site:
        code, rows = crawl(site, out)
    assert (code, set(rows), rows["/"]["title"]) == (0, {"/", "/a"}, "t")


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ([], ""),
        (["text/html"], "text/html"),
        (["text/html", "text/html; charset=latin-1"], "text/html; charset=latin-1"),
        (["text/html; charset=latin-1", "text/html"], "text/html; charset=latin-1"),
        (["text/plain; charset=latin-1", "text/html"], "text/html"),
        (["text/html", "nonsense", "*/*"], "text/html"),
    ],
)
def test_of_several_types_the_last_valid_one_counts(values: list[str], found: str) -> None:
    assert content_type_of(values) == found


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("9" * 400, float("inf")),
        ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0),
        ("Fri, 31 Dec 99999999999999999999 23:59:59 GMT", None),
        ("Fri, 31 Dec 1999 99:59:59 GMT", None),
        ("soon", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_or_nothing(value: str | None, seconds: object) -> None:
    assert retry_after(value) == seconds


@pytest.mark.parametrize(
    "date", ["Fri, 31 Dec 99999999999999999999 23:59:59 GMT", "9" * 400, "soon"]
)
def test_an_odd_retry_after_costs_no_page(date: str, out: Path) -> None:
    with serving(pages({"/": reply("<title>t</title>", f"Retry-After: {date}")})) as site:
        code, rows = crawl(site, out)
    assert (code, rows["/"]["title"]) == (0, "t")


# -- cookies ---------------------------------------------------------------------------------------


def test_cookies_stay_few_enough_for_servers(out: Path) -> None:
    def give(target: str, head: Head) -> bytes:
        if sum(map(len, head.get("cookie", []))) > 8000:
            return reply(status="400 Bad Request")
        if target == "/":
            body = "".join(f"<a href=/{n}>x</a>" for n in range(200))
            return reply(body, "Set-Cookie: session=kept; Path=/")
        return reply("", f"Set-Cookie: viewed{target[1:]}={'x' * 100}; Path=/")

    with serving(give) as site:
        code, rows = crawl(site, out, "--ignore-robots")
    assert (code, len(rows)) == (0, 201)
    cookies = [value for _, head in site.asked for value in head.get("cookie", [])]
    assert len(cookies) > 150
    assert max(map(len, cookies)) <= MOST_BYTES


def cookie(name: str, value: str, domain: str = "example.org") -> Cookie:
    return Cookie(
        version=0,
        name=name,
        value=value,
        port=None,
        port_specified=False,
        domain=domain,
        domain_specified=domain.startswith("."),
        domain_initial_dot=domain.startswith("."),
        path="/",
        path_specified=True,
        secure=False,
        expires=None,
        discard=True,
        comment=None,
        comment_url=None,
        rest={},
    )


def sent(jar: BoundedJar, host: str) -> str:
    request = httpx.Request("GET", f"http://{host}/")
    httpx.Cookies(jar).set_cookie_header(request)
    return request.headers.get("cookie", "")


def test_no_host_is_sent_more_cookies_than_it_stands() -> None:
    jar = BoundedJar()
    for n in range(100):
        jar.set_cookie(cookie(f"a{n}", "x" * 100, ".example.org"))
        jar.set_cookie(cookie(f"b{n}", "x" * 100, "www.example.org"))
        jar.set_cookie(cookie(f"c{n}", "x" * 100, "other.example"))
    for host in ("www.example.org", "example.org", "other.example"):
        assert 1000 < len(sent(jar, host)) <= MOST_BYTES
    assert "c99=" in sent(jar, "other.example")
    jar.set_cookie(cookie("c99", "new", "other.example"))
    assert "c99=new" in sent(jar, "other.example")
    jar.set_cookie(cookie("c99", "x" * MOST_BYTES, "other.example"))
    assert "c99=" not in sent(jar, "other.example")
    assert "c98=" in sent(jar, "other.example")


def test_there_are_not_more_cookies_than_one_can_keep() -> None:
    jar = BoundedJar()
    for n in range(MOST + 10):
        jar.set_cookie(cookie("a", "x", f"host{n}.example"))
    assert len(jar) == MOST
    assert sent(jar, "host0.example") == ""
    assert sent(jar, f"host{MOST}.example") == "a=x"


# -- robots.txt ------------------------------------------------------------------------------------


def test_of_a_long_robots_as_much_is_read_as_must_be(out: Path) -> None:
    rules = "User-agent: *\nDisallow: /secret\n"
    rules += "".join(f"Disallow: /zz{n:06}/\n" for n in range(30_000))
    assert len(rules) > ROBOTS_MOST
    cut = rules[: ROBOTS_MOST - 3].rpartition("/zz")[2]  # its rule would read Disallow: /zz01
    assert cut
    site = {"/robots.txt": reply(rules, kind="text/plain"), "/": links("/secret/1", "/zz0", "/x")}
    with serving(pages(site)) as served:
        _, rows = crawl(served, out)
        assert served.targets.keys() == {"/", "/zz0", "/x"}
    assert rows["/secret/1"]["error"]["kind"] == "robots"


# -- bodies that are hard to parse -----------------------------------------------------------------


def test_a_page_that_is_nested_too_deep_fails_alone(out: Path) -> None:
    site = {f"/{n}": reply("<title>t</title>") for n in range(20)}
    site |= {"/": links("/deep", *site), "/deep": reply("<div>" * 400_000)}
    began = time.monotonic()
    with serving(pages(site)) as served:
        code, rows = crawl(served, out, "--timeout", "2s", "-c", "2")
    assert time.monotonic() - began < 20
    assert code == 3
    assert {path for path, row in rows.items() if row["error"]} == {"/deep"}
    assert rows["/deep"]["error"]["kind"] == "parse"


# -- names -----------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("named", [True, False])
async def test_a_name_that_no_resolver_takes_is_a_connection_that_failed(named: bool) -> None:
    host = f"{'x' * 64}.example"
    backend = CheckedBackend([host] if named else [])
    with pytest.raises(httpcore.ConnectError):
        await backend.connect_tcp(host, 80, timeout=5)
