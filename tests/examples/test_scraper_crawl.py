"""Crawls of sites that exist in memory only: what is fetched, followed, counted and written."""

import gzip
import io
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest

from examples.scraper import crawl
from examples.scraper.crawl import site_crawl
from examples.scraper.pages import Scope, start_link
from examples.scraper.progress import Tally
from examples.scraper.rows import RowWriter
from shoal import Application, State

SITE = "http://site.example"
Row = dict[str, Any]
Answer = httpx.Response | Exception | Callable[[httpx.Request], Awaitable[httpx.Response]]


def html(*links: str, title: str = "page", status: int = 200) -> httpx.Response:
    anchors = "".join(f'<a href="{link}">x</a>' for link in links)
    return httpx.Response(status, html=f"<title>{title}</title>{anchors}")


def redirect(target: str, status: int = 302) -> httpx.Response:
    return httpx.Response(status, headers={"Location": target})


class Crawled:
    """A crawl that has ended: its rows, what it asked the network for, and its tally."""

    def __init__(self, rows: list[Row], requests: Counter[str], tally: Tally) -> None:
        self.rows = {row["url"].removeprefix(SITE): row for row in rows}
        self.requests = requests
        self.tally = tally
        assert len(self.rows) == len(rows)


Crawl = Callable[..., Crawled]


@pytest.fixture(params=["asyncio", "trio"])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def crawled(backend: str) -> Crawl:
    """Crawl `site` (path -> answer) from its front page; anything else is a 404."""

    def run(
        site: Mapping[str, Answer],
        starts: tuple[str, ...] = ("/",),
        *,
        concurrency: int = 4,
        **options: int | None,
    ) -> Crawled:
        requests: Counter[str] = Counter()

        async def answer(request: httpx.Request) -> httpx.Response:
            url = str(request.url)
            requests[url.removeprefix(SITE)] += 1
            match site.get(url.removeprefix(SITE), httpx.Response(404)):
                case httpx.Response() as response:
                    return response
                case Exception() as error:
                    raise error
                case answer:
                    return await answer(request)

        async def main() -> State:
            links = [start_link(SITE + start) for start in starts]
            fan_out = site_crawl(concurrency=concurrency, **options)
            async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as client:
                result = await Application(fan_out, hooks=[RowWriter(file), tally]).run(
                    {"starts": links, "pages": 0, "failures": {}},
                    inputs={"client": client, "scope": Scope.of([SITE])},
                )
            return result.state

        file = io.StringIO()
        starting = State({"pages": 0, "failures": {}})
        tally = Tally(starting, known=len({start_link(SITE + start).key for start in starts}))
        state = anyio.run(main, backend=backend)
        assert tally.state["pages"] == state["pages"]
        assert tally.state["failures"] == state["failures"]
        return Crawled([json.loads(line) for line in file.getvalue().splitlines()], requests, tally)

    return run


def test_every_page_of_the_site_is_fetched_once_and_none_of_another(crawled: Crawl) -> None:
    outside = ["http://www.site.example/", "https://site.example/", f"{SITE}:8080/", "mailto:a@b"]
    done = crawled(
        {
            "/": html("a", "b", "a#x", "/", *outside, title="front"),
            "/a": html("b", "/deep/c", f"{SITE}/a", "HTTP://SITE.example:80/b"),
            "/b": html("/", "a", "?x=2&y=1", "?y=1&x=2"),
            "/deep/c": html("../a", "d"),
            "/deep/d": html(),
            "/b?x=2&y=1": html(),
        }
    )
    assert done.requests == dict.fromkeys(["/", "/a", "/b", "/b?x=2&y=1", "/deep/c", "/deep/d"], 1)
    assert set(done.rows) == set(done.requests)
    assert done.rows["/"] == {
        "url": f"{SITE}/",
        "final_url": f"{SITE}/",
        "status": 200,
        "depth": 0,
        "parent": None,
        "title": "front",
        "error": None,
    }
    assert done.rows["/deep/d"]["depth"] == 3
    assert done.rows["/deep/d"]["parent"] == f"{SITE}/deep/c"
    assert (done.tally.ended, done.tally.waiting, done.tally.failed) == (6, 0, 0)


def test_start_pages_are_fetched_once_however_often_they_are_named(crawled: Crawl) -> None:
    done = crawled({"/": html("/a"), "/a": html("/")}, ("/", "/#x", "/a"))
    assert done.requests == {"/": 1, "/a": 1}
    assert {row["depth"] for row in done.rows.values()} == {0}
    assert done.tally.waiting == 0


def test_failures_are_rows_and_counted_by_kind(crawled: Crawl) -> None:
    failing: dict[str, Answer] = {
        "/gone": httpx.Response(410),
        "/broken": html("/never", status=500),
        "/refused": httpx.ConnectError("refused"),
        "/cut": httpx.RemoteProtocolError("server disconnected"),
        "/slow": httpx.ReadTimeout(""),
        "/odd": RuntimeError("odd"),
    }
    done = crawled({"/": html("/missing", *failing), **failing})
    errors = {url: row["error"] for url, row in done.rows.items()}
    assert errors == {
        "/": None,
        "/missing": {"kind": "http", "message": "404 Not Found"},
        "/gone": {"kind": "http", "message": "410 Gone"},
        "/broken": {"kind": "http", "message": "500 Internal Server Error"},
        "/refused": {"kind": "connect", "message": "refused"},
        "/cut": {"kind": "network", "message": "server disconnected"},
        "/slow": {"kind": "timeout", "message": "ReadTimeout"},
        "/odd": {"kind": "RuntimeError", "message": "odd"},
    }
    assert done.rows["/gone"]["status"] == 410
    assert done.rows["/refused"]["status"] is None
    assert done.rows["/refused"]["parent"] == f"{SITE}/"
    assert done.tally.state["pages"] == 1
    assert done.tally.state["failures"] == {
        "http": 3,
        "connect": 1,
        "network": 1,
        "timeout": 1,
        "RuntimeError": 1,
    }
    assert done.tally.summary().startswith(
        "1 pages, 7 failed (RuntimeError 1, connect 1, http 3, network 1, timeout 1) in "
    )


def test_a_redirect_is_a_row_and_its_target_is_fetched_once(crawled: Crawl) -> None:
    done = crawled(
        {
            "/": html("/old", "/older", "/new"),
            "/old": redirect("/new", 301),
            "/older": redirect("old#x"),
            "/new": html("/leaf", title="new"),
            "/leaf": html(),
        }
    )
    assert done.requests == dict.fromkeys(["/", "/old", "/older", "/new", "/leaf"], 1)
    assert done.rows["/old"] == {
        "url": f"{SITE}/old",
        "final_url": f"{SITE}/new",
        "status": 301,
        "depth": 1,
        "parent": f"{SITE}/",
        "title": None,
        "error": None,
    }
    assert done.rows["/new"]["title"] == "new"


def test_the_target_of_a_redirect_is_as_deep_as_the_link_to_it(crawled: Crawl) -> None:
    done = crawled({"/": redirect("/home"), "/home": html("/a"), "/a": html()}, max_depth=0)
    assert {url: row["depth"] for url, row in done.rows.items()} == {"/": 0, "/home": 0}
    assert done.rows["/home"]["parent"] == f"{SITE}/"


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("http://else.example/", "redirect"),
        ("https://site.example/", "redirect"),
        ("http://site.example:81/", "redirect"),
        ("http://[bad", "redirect"),
        ("javascript:1", "url"),  # the client itself refuses this one
    ],
)
def test_a_redirect_out_of_the_site_is_an_error_and_not_followed(
    crawled: Crawl, target: str, kind: str
) -> None:
    done = crawled({"/": html("/out"), "/out": redirect(target)})
    assert done.requests == {"/": 1, "/out": 1}
    assert done.rows["/out"]["error"]["kind"] == kind
    assert done.tally.failed == 1


def test_a_redirect_to_another_spelling_of_itself_is_followed(crawled: Crawl) -> None:
    done = crawled(
        {
            "/": html("/p?b=2&a=1"),
            "/p?b=2&a=1": redirect("/p?a=1&b=2"),
            "/p?a=1&b=2": html("/leaf", title="sorted"),
            "/leaf": html(),
        }
    )
    row = done.rows["/p?b=2&a=1"]
    assert (row["status"], row["title"], row["final_url"]) == (200, "sorted", f"{SITE}/p?a=1&b=2")
    assert set(done.rows) == {"/", "/p?b=2&a=1", "/leaf"}
    assert done.rows["/leaf"]["parent"] == f"{SITE}/p?b=2&a=1"


def test_circles_of_redirects_end(crawled: Crawl) -> None:
    done = crawled(
        {
            "/": html("/self", "/one"),
            "/self": redirect("/self"),
            "/one": redirect("/two"),
            "/two": redirect("/one"),
        }
    )
    assert done.requests == {"/": 1, "/self": 11, "/one": 1, "/two": 1}
    assert done.rows["/self"]["error"]["kind"] == "redirect"
    assert done.rows["/two"]["error"] is None


def test_an_endless_chain_of_redirects_ends(crawled: Crawl) -> None:
    done = crawled({"/": redirect("/1"), **{f"/{n}": redirect(f"/{n + 1}") for n in range(1, 99)}})
    assert sum(done.requests.values()) == 11
    assert done.rows["/10"]["error"]["kind"] == "redirect"


def test_what_is_no_html_is_recorded_but_not_parsed(crawled: Crawl) -> None:
    text = '<title>no</title><a href="/never">x</a>'
    done = crawled({"/": html("/file"), "/file": httpx.Response(200, text=text)})
    assert set(done.requests) == {"/", "/file"}
    assert (done.rows["/file"]["status"], done.rows["/file"]["title"]) == (200, None)
    assert done.rows["/file"]["error"] is None


def test_a_body_is_read_up_to_a_limit_that_counts_it_unpacked(
    crawled: Crawl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crawl, "MAX_BODY", 10_000)
    packed = {"Content-Type": "text/html", "Content-Encoding": "gzip"}
    done = crawled(
        {
            "/": html("/fits", "/bomb"),
            "/fits": httpx.Response(200, content=gzip.compress(b" " * 10_000), headers=packed),
            "/bomb": httpx.Response(200, content=gzip.compress(b" " * 10_001), headers=packed),
        }
    )
    assert done.rows["/fits"]["error"] is None
    assert done.rows["/bomb"]["error"] == {"kind": "size", "message": "longer than 10,000 bytes"}
    assert done.rows["/bomb"]["status"] == 200


def test_a_long_page_is_parsed_like_any_other(crawled: Crawl) -> None:
    big = html("/a", title="big" + " " * crawl.PARSE_INLINE)
    done = crawled({"/": big, "/a": html()})
    assert done.rows["/"]["title"] == "big"
    assert set(done.rows) == {"/", "/a"}


def test_a_page_that_does_not_come_to_an_end_times_out(
    crawled: Crawl, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(_: httpx.Request) -> httpx.Response:
        await anyio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(crawl, "PAGE_TIMEOUT", 0.01)
    done = crawled({"/": html("/slow", "/fast"), "/slow": never, "/fast": html()})
    assert done.rows["/slow"]["error"]["kind"] == "timeout"
    assert done.rows["/fast"]["error"] is None


def test_depth_is_limited(crawled: Crawl) -> None:
    chain: dict[str, Answer] = {f"/{n}": html(f"/{n + 1}") for n in range(9)}
    done = crawled(chain, ("/0",), max_depth=2)
    assert set(done.requests) == {"/0", "/1", "/2"}
    assert done.tally.waiting == 0


def test_the_number_of_pages_is_limited_and_what_is_left_is_known(crawled: Crawl) -> None:
    wide: dict[str, Answer] = {f"/{n}": html() for n in range(9)}
    done = crawled({"/": html(*wide), **wide}, max_pages=4)
    assert sum(done.requests.values()) == len(done.rows) == 4
    assert done.tally.waiting == 6
    assert "6 known but not fetched" in done.tally.summary()


def test_a_limit_that_is_just_enough_leaves_nothing(crawled: Crawl) -> None:
    done = crawled({"/": html("/a"), "/a": html("/")}, max_pages=2)
    assert done.tally.waiting == 0


def test_pages_are_fetched_at_once_but_no_more_than_allowed(crawled: Crawl) -> None:
    now = most = 0

    async def watched(_: httpx.Request) -> httpx.Response:
        nonlocal now, most
        now += 1
        most = max(most, now)
        for _tick in range(5):
            await anyio.lowlevel.checkpoint()
        now -= 1
        return html()

    wide = {f"/{n}": watched for n in range(30)}
    crawled({"/": html(*wide), **wide}, concurrency=7)
    assert most == 7
