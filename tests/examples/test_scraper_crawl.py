"""Crawls of sites that exist in memory only, in virtual time: what is fetched and followed."""

import gzip
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from itertools import pairwise
from typing import Any, Literal

import anyio
import httpx
import pytest

from examples.scraper import crawl
from examples.scraper.crawl import Crawler, site_crawl, sitemap_links
from examples.scraper.fetch import HttpxFetcher
from examples.scraper.frontier import Frontier, start_link
from examples.scraper.politeness import Politeness, Spacing
from examples.scraper.progress import Tally
from examples.scraper.rows import Row, row_of
from examples.scraper.settings import Settings
from shoal import Application, ChildEnded, Hook
from shoal.testing import run_virtual

SITE = "http://site.example"
Answer = httpx.Response | Exception | Callable[[httpx.Request], Awaitable[httpx.Response]]


class Chunks(httpx.AsyncByteStream):
    """A body as it comes from a network: bit by bit, once."""

    def __init__(self, body: bytes, size: int = 1000) -> None:
        self._left = [body[start : start + size] for start in range(0, len(body), size)]

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop(0)


def answer(
    body: str | bytes = b"", status: int = 200, kind: str = "text/html", **headers: str
) -> httpx.Response:
    """Give an answer as a server sends it: packed, and bit by bit."""
    head = {"content-type": kind} | {name.replace("_", "-"): headers[name] for name in headers}
    content = body.encode() if isinstance(body, str) else body
    return httpx.Response(status, stream=Chunks(content), headers=head)


def html(*links: str, title: str = "page", status: int = 200) -> httpx.Response:
    anchors = "".join(f'<a href="{link}">x</a>' for link in links)
    return answer(f"<title>{title}</title>{anchors}", status)


def redirect(target: str, status: int = 302) -> httpx.Response:
    return answer(status=status, location=target)


def in_turn(
    *answers: httpx.Response, seconds: float = 0.0
) -> Callable[[httpx.Request], Awaitable[httpx.Response]]:
    left = list(answers)

    async def give(_: httpx.Request) -> httpx.Response:
        await anyio.sleep(seconds)
        return left.pop(0)

    return give


class Rows(Hook):
    """Keeps rows in memory."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def on_child_ended(self, event: ChildEnded) -> None:
        row = row_of(event.outcome)
        if row is not None:
            self.rows.append(row)


class Crawled:
    """A crawl that has ended: its rows, what it asked the network for, when, and its tally."""

    def __init__(self, rows: list[Row], asked: list[tuple[float, str]], tally: Tally) -> None:
        self.rows = {row["url"].removeprefix(SITE): row for row in rows}
        self.asked = asked
        self.requests = Counter(url for _, url in asked if url != "/robots.txt")
        self.tally = tally
        assert len(self.rows) == len(rows)
        assert len(rows) == tally.ended


Crawl = Callable[..., Crawled]


@pytest.fixture(params=["asyncio", "trio"])
def crawled(request: pytest.FixtureRequest) -> Crawl:
    """Crawl `site` (path -> answer) from its front page; anything else is a 404."""
    backend: Literal["asyncio", "trio"] = request.param

    def run(
        site: Mapping[str, Answer], starts: tuple[str, ...] = ("/",), **settings: Any
    ) -> Crawled:
        asked: list[tuple[float, str]] = []

        async def ask(request: httpx.Request) -> httpx.Response:
            url = str(request.url).removeprefix(SITE)
            asked.append((anyio.current_time(), url))
            match site.get(url, answer(status=404)):
                case httpx.Response() as response:
                    return response
                case Exception() as error:
                    raise error
                case give:
                    return await give(request)

        async def main() -> Tally:
            told = Settings(urls=tuple(SITE + start for start in starts), **settings)
            links = [start_link(url) for url in told.urls]
            frontier = Frontier(told, links)
            if told.sitemap:
                links += (sitemaps := sitemap_links(links))
                frontier.recall(sitemaps)
            politeness = Politeness(
                anyio.current_time, rate=told.rate, adaptive=told.adaptive, robots=told.robots
            )
            tally = Tally(frontier, politeness)
            async with httpx.AsyncClient(transport=httpx.MockTransport(ask)) as client:
                fetcher = HttpxFetcher(client, told.timeout)
                crawler = Crawler(told, fetcher, frontier, politeness)
                app = Application(site_crawl(crawler), hooks=[rows, tally])
                await app.run({"starts": links}, inputs={"crawler": crawler})
            return tally

        rows = Rows()
        tally = run_virtual(main, backend=backend)
        return Crawled(rows.rows, asked, tally)

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
    front = done.rows["/"]
    assert front.pop("fetched_at").endswith("+00:00")
    assert front.pop("elapsed_ms") >= 0
    assert front == {
        "url": f"{SITE}/",
        "final_url": f"{SITE}/",
        "status": 200,
        "depth": 0,
        "parent": None,
        "content_type": "text/html",
        "bytes": len("<title>front</title>") + sum(map(len, outside)) + 6 + 16 * 8,
        "attempts": 1,
        "title": "front",
        "selected": {},
        "links_n": 3,
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
        "/gone": answer(status=410),
        "/broken": answer(status=500),
        "/refused": httpx.ConnectError("refused"),
        "/cut": httpx.RemoteProtocolError("server disconnected"),
        "/slow": httpx.ReadTimeout(""),
        "/odd": RuntimeError("odd"),
    }
    done = crawled({"/": html("/missing", *failing), **failing}, retries=0)
    errors = {url: row["error"] for url, row in done.rows.items()}
    assert errors == {
        "/": None,
        "/missing": {"kind": "http", "message": "status 404"},
        "/gone": {"kind": "http", "message": "status 410"},
        "/broken": {"kind": "http", "message": "status 500"},
        "/refused": {"kind": "connect", "message": "refused"},
        "/cut": {"kind": "network", "message": "server disconnected"},
        "/slow": {"kind": "timeout", "message": "no answer: ReadTimeout"},
        "/odd": {"kind": "RuntimeError", "message": "odd"},
    }
    assert done.rows["/gone"]["status"] == 410
    assert done.rows["/broken"]["status"] == 500
    assert done.rows["/refused"]["status"] is None
    assert done.rows["/refused"]["parent"] == f"{SITE}/"
    assert done.tally.pages == 1
    assert done.tally.summary().startswith(
        "1 pages, 7 failed (RuntimeError 1, connect 1, http 3, network 1, timeout 1) in "
    )


def test_what_may_be_better_next_time_is_tried_again(crawled: Crawl) -> None:
    done = crawled(
        {
            "/": html("/flaky", "/down", "/missing"),
            "/flaky": in_turn(answer(status=502), answer(status=408), html(title="there")),
            "/down": httpx.ConnectError("refused"),
        },
        retries=2,
    )
    assert done.requests == {"/": 1, "/flaky": 3, "/down": 3, "/missing": 1}
    assert (done.rows["/flaky"]["title"], done.rows["/flaky"]["attempts"]) == ("there", 3)
    assert (done.rows["/down"]["error"]["kind"], done.rows["/down"]["attempts"]) == ("connect", 3)
    assert done.tally.retries == 4


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
    old = done.rows["/old"]
    assert (old["final_url"], old["status"], old["depth"]) == (f"{SITE}/new", 301, 1)
    assert (old["parent"], old["title"], old["error"]) == (f"{SITE}/", None, None)
    assert done.rows["/new"]["title"] == "new"


def test_the_target_of_a_redirect_is_as_deep_as_the_link_to_it(crawled: Crawl) -> None:
    done = crawled({"/": redirect("/home"), "/home": html("/a"), "/a": html()}, max_depth=0)
    assert {url: row["depth"] for url, row in done.rows.items()} == {"/": 0, "/home": 0}


@pytest.mark.parametrize(
    "target",
    [
        "http://else.example/",
        "https://site.example/",
        "http://site.example:81/",
        "http://[bad",
        "javascript:1",
    ],
)
def test_a_redirect_out_of_the_site_is_an_error_and_not_followed(
    crawled: Crawl, target: str
) -> None:
    done = crawled({"/": html("/out"), "/out": redirect(target)})
    assert done.requests == {"/": 1, "/out": 1}
    assert done.rows["/out"]["error"]["kind"] in {"redirect", "url"}  # httpx refuses some itself
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
    async def itself(_: httpx.Request) -> httpx.Response:
        return redirect("/self")

    done = crawled(
        {
            "/": html("/self", "/one"),
            "/self": itself,
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


def test_what_is_not_wanted_is_recorded_but_not_read(crawled: Crawl) -> None:
    async def unread() -> AsyncIterator[bytes]:
        raise AssertionError("the body was read")
        yield b""

    picture = httpx.Response(200, content=unread(), headers={"content-type": "image/png"})
    done = crawled({"/": html("/picture"), "/picture": picture})
    row = done.rows["/picture"]
    assert (row["status"], row["content_type"], row["bytes"]) == (200, "image/png", None)
    assert row["error"] is None


def test_what_says_nothing_of_its_type_is_looked_into(crawled: Crawl) -> None:
    done = crawled(
        {
            "/": answer(' <a href="/a">x</a>', kind=""),
            "/a": answer("\0\0<a href=/never>x</a>", kind=""),
        }
    )
    assert set(done.rows) == {"/", "/a"}


def two_members(body: bytes) -> bytes:
    return gzip.compress(body[:700]) + gzip.compress(body[700:])


def raw_deflate(body: bytes) -> bytes:
    """Pack as some servers do who say `deflate`."""
    return zlib.compress(body)[2:-4]


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        ("gzip", gzip.compress),
        ("x-gzip", two_members),
        ("deflate", zlib.compress),
        ("deflate", raw_deflate),
        ("identity", bytes),
    ],
    ids=["gzip", "two-members", "zlib", "raw-deflate", "identity"],
)
def test_a_body_is_read_up_to_a_limit_that_counts_it_unpacked(
    crawled: Crawl, encoding: str, pack: Callable[[bytes], bytes]
) -> None:
    done = crawled(
        {
            "/": html("/fits", "/bomb"),
            "/fits": answer(pack(b" " * 10_000), content_encoding=encoding),
            "/bomb": answer(pack(b" " * 10_001), content_encoding=encoding),
        },
        max_body=10_000,
    )
    assert (done.rows["/fits"]["error"], done.rows["/fits"]["bytes"]) == (None, 10_000)
    assert done.rows["/bomb"]["error"] == {"kind": "size", "message": "longer than 10,000 bytes"}
    assert done.rows["/bomb"]["status"] == 200


def test_a_bomb_is_not_unpacked_beyond_the_limit() -> None:
    from examples.scraper.fetch import Unpacker

    assert len(Unpacker().unpack(zlib.compress(b" " * 10_000_000), 1000)) == 1000


def test_a_packed_body_that_ends_early_or_is_none_is_no_page(crawled: Crawl) -> None:
    packed = gzip.compress(b"<p>" + bytes(range(256)) * 40)
    done = crawled(
        {
            "/": html("/short", "/lie", "/brotli"),
            "/short": answer(packed[:-20], content_encoding="gzip"),
            "/lie": answer("plain", content_encoding="gzip"),
            "/brotli": answer("?", content_encoding="br"),
        },
        retries=0,
    )
    kinds = {url: row["error"] and row["error"]["kind"] for url, row in done.rows.items()}
    assert kinds == {"/": None, "/short": "network", "/lie": "encoding", "/brotli": "encoding"}


def test_a_long_page_is_parsed_like_any_other(crawled: Crawl) -> None:
    big = html("/a", title="big" + " " * crawl.PARSE_INLINE)
    done = crawled({"/": big, "/a": html()})
    assert done.rows["/"]["title"] == "big"
    assert set(done.rows) == {"/", "/a"}


def test_a_page_that_drips_without_end_times_out(crawled: Crawl) -> None:
    async def drip() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await anyio.sleep(1)

    async def slow(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, content=drip(), headers={"content-type": "text/html"})

    done = crawled({"/": html("/slow", "/fast"), "/slow": slow, "/fast": html()}, retries=1)
    error = done.rows["/slow"]["error"]
    assert error == {"kind": "timeout", "message": "no whole answer in 30 s"}
    assert done.rows["/slow"]["attempts"] == 2
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


def test_links_are_left_alone_where_nobody_wants_them(crawled: Crawl) -> None:
    done = crawled({"/": html("/a")}, links=False)
    assert set(done.rows) == {"/"}
    assert done.rows["/"]["links_n"] == 1


def test_what_is_included_and_excluded_is_said_by_patterns(crawled: Crawl) -> None:
    paths = ["/docs/a", "/docs/b.pdf", "/blog/c"]
    site: dict[str, Answer] = {"/": html(*paths), **{path: html() for path in paths}}
    done = crawled(site, include=("/docs/",), exclude=(r"\.pdf$",))
    assert set(done.rows) == {"/", "/docs/a"}


def test_pages_are_fetched_at_once_but_no_more_than_allowed(crawled: Crawl) -> None:
    now = most = 0

    async def watched(_: httpx.Request) -> httpx.Response:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await anyio.sleep(1)
        now -= 1
        return html()

    wide = {f"/{n}": watched for n in range(30)}
    crawled({"/": html(*wide), **wide}, concurrency=9, per_host=7)
    assert most == 7
    most = 0
    crawled({"/": html(*wide), **wide}, concurrency=5, per_host=7)
    assert most == 5


def test_selectors_and_text_are_kept(crawled: Crawl) -> None:
    page = "<title>t</title><h2> A\n b</h2><p>x<h2>C</h2><script>no</script><style>no</style>"
    done = crawled({"/": answer(page)}, select={"heads": "h2", "none": "h3"}, text=True)
    row = done.rows["/"]
    assert row["selected"] == {"heads": ["A b", "C"], "none": []}
    assert row["text"] == "A b x C"


def test_the_first_page_that_matches_ends_the_crawl(crawled: Crawl) -> None:
    async def hangs(_: httpx.Request) -> httpx.Response:
        await anyio.sleep_forever()
        raise AssertionError

    found = answer("<p>the needle")
    done = crawled(
        {"/": html("/a", "/b", "/c"), "/a": hangs, "/b": found, "/c": hangs},
        until_match="need+le",
        timeout=1e6,
    )
    assert done.tally.matched == f"{SITE}/b"
    assert set(done.rows) == {"/", "/b"}


# -- robots.txt ----------------------------------------------------------------------------------


def test_robots_are_asked_first_and_obeyed(crawled: Crawl) -> None:
    rules = "User-agent: *\nDisallow: /private*/\nDisallow: /*.pdf$\nAllow: /private1/open"
    paths = ["/private1/x", "/private1/open", "/a.pdf", "/a.pdf.html"]
    done = crawled(
        {
            "/robots.txt": answer(rules, kind="text/plain"),
            "/": html(*paths),
            **{path: html() for path in paths},
        }
    )
    assert done.asked[0][1] == "/robots.txt"
    assert set(done.requests) == {"/", "/private1/open", "/a.pdf.html"}
    error = done.rows["/private1/x"]["error"]
    assert error == {"kind": "robots", "message": "robots.txt asks not to"}
    assert (done.tally.failed, done.tally.left_out["robots"]) == (0, 2)


def test_robots_may_be_ignored(crawled: Crawl) -> None:
    robots = answer("User-agent: *\nDisallow: /", kind="text/plain")
    done = crawled({"/robots.txt": robots, "/": html()}, robots=False)
    assert [url for _, url in done.asked] == ["/"]


@pytest.mark.parametrize("rule", ["Crawl-delay: 3", "Request-rate: 1/3"])
def test_a_crawl_delay_keeps_requests_apart(crawled: Crawl, rule: str) -> None:
    paths = [f"/{n}" for n in range(9)]
    robots = answer(f"User-agent: *\n{rule}\nDisallow: /x", kind="text/plain")
    site: dict[str, Answer] = {"/robots.txt": robots, **{path: html(*paths) for path in paths}}
    done = crawled(site, tuple(paths))
    times = [at for at, url in done.asked if url != "/robots.txt"]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert len(times) == 9
    assert all(gap == pytest.approx(3.0, abs=0.06) for gap in gaps)


def test_as_long_as_robots_cannot_be_read_nothing_is_fetched(crawled: Crawl) -> None:
    done = crawled({"/robots.txt": answer(status=503), "/": html()}, retries=1)
    assert "/" not in done.requests
    assert done.rows["/"]["error"]["kind"] == "robots"


def test_robots_are_read_once_they_can_be(crawled: Crawl) -> None:
    robots = in_turn(answer(status=500), answer("", kind="text/plain"))
    done = crawled({"/robots.txt": robots, "/": html()}, retry_wait=100.0, retries=2)
    assert done.rows["/"]["error"] is None


# -- politeness ----------------------------------------------------------------------------------


def test_a_rate_is_kept_to(crawled: Crawl) -> None:
    paths = [f"/{n}" for n in range(20)]
    done = crawled({path: html() for path in paths}, tuple(paths), rate=4.0)
    times = [at for at, url in done.asked if url != "/robots.txt"]
    assert times[-1] - times[0] == pytest.approx(19 / 4, rel=0.02)
    assert min(b - a for a, b in pairwise(times)) > 0.19


def test_retry_after_pauses_the_host_and_uses_up_no_retry(crawled: Crawl) -> None:
    paths = [f"/{n}" for n in range(6)]
    site: dict[str, Answer] = {path: html() for path in paths}
    # Both are asked before either has refused.
    site["/0"] = in_turn(answer(status=429, retry_after="7"), html(), seconds=0.1)
    site["/1"] = in_turn(answer(status=503, retry_after="7"), html(), seconds=0.1)
    done = crawled(site, tuple(paths), per_host=2, retries=0)
    times = [at for at, url in done.asked if url != "/robots.txt"]
    assert [at - times[0] >= 7 for at in times] == [False, False] + [True] * 6
    assert all(row["error"] is None for row in done.rows.values())
    assert [row["attempts"] for row in done.rows.values()].count(2) == 2, "those that were refused"
    assert done.tally.refusals == done.tally.retries == 2


@pytest.mark.parametrize("adaptive", [True, False])
def test_who_refuses_without_saying_how_long_is_left_alone_ever_longer(
    crawled: Crawl, adaptive: bool
) -> None:
    refusing = in_turn(*(answer(status=429) for _ in range(4)), html())
    done = crawled({"/": refusing}, adaptive=adaptive)
    times = [at for at, url in done.asked if url == "/"]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps == pytest.approx([1, 2, 4, 8] if adaptive else [1, 1, 1, 1], abs=0.1)
    assert done.rows["/"]["error"] is None


@pytest.mark.parametrize("status", [429, 503])
def test_who_refuses_for_ever_has_failed(crawled: Crawl, status: int) -> None:
    async def refuse(_: httpx.Request) -> httpx.Response:
        return answer(status=status, retry_after="1")

    done = crawled({"/": refuse})
    row = done.rows["/"]
    assert (row["status"], row["final_url"]) == (status, f"{SITE}/")
    assert row["error"]["kind"] == "refused"
    assert str(status) in row["error"]["message"]
    assert row["attempts"] == done.requests["/"] == 10
    assert done.tally.statuses == {str(status): 1}


def test_refusals_count_as_attempts_also_of_who_fails_otherwise(crawled: Crawl) -> None:
    refused, broken = answer(status=503, retry_after="1"), answer(status=500)
    done = crawled({"/": in_turn(refused, broken, answer(status=429), broken)}, retries=1)
    assert done.rows["/"]["status"] == 500
    assert done.rows["/"]["attempts"] == done.requests["/"] == 4


def spaced(*cycles: tuple[int, float], pause: float = 1.0) -> Spacing:
    """Refuse a host's requests: after so many, so many seconds after the first."""
    now = 0.0
    spacing = Spacing(lambda: now)
    for taken, seconds in cycles:
        for n in range(taken):
            spacing.takes(spacing.sends())
            now += seconds / taken if n else 0.0
        now = max(now, seconds)
        refused = spacing.sends()
        spacing.refuses(refused._replace(at=spacing._began + seconds), pause)
        now += pause
    return spacing


def test_one_refusal_says_between_what_the_rate_is() -> None:
    guess = spaced((30, 0.1)).rate
    assert guess == pytest.approx((30 / 0.1 * 30 / 1.1) ** 0.5)


def test_two_refusals_say_what_the_rate_is() -> None:
    assert spaced((26, 0.1), (80, 1.0)).rate == pytest.approx(0.95 * 60)


def test_who_takes_nothing_after_a_pause_is_asked_half_as_often() -> None:
    before = spaced((26, 0.1), (80, 1.0)).rate
    assert spaced((26, 0.1), (80, 1.0), (0, 0.0)).rate == pytest.approx(before / 2)
    assert spaced((0, 0.0)).rate == 0.5
    assert spaced(*[(0, 0.0)] * 20).seconds == 60


class Bucket:
    """A server like nginx with limit_req: a token bucket, and 429 with Retry-After."""

    def __init__(self, rate: float, burst: int) -> None:
        self.rate, self.burst = rate, burst
        self.level, self.at = float(burst), 0.0
        self.refused = 0

    async def __call__(self, _: httpx.Request) -> httpx.Response:
        now = anyio.current_time()
        self.level = min(self.burst, self.level + (now - self.at) * self.rate)
        self.at = now
        if self.level < 1:
            self.refused += 1
            return answer(status=429, retry_after="1")
        self.level -= 1
        await anyio.sleep(0.008)
        return html()


@pytest.mark.parametrize(
    ("rate", "burst", "pages"),
    [
        (20, 20, 200),
        (10, 5, 120),
        pytest.param(5, 1, 200, marks=pytest.mark.slow),
        pytest.param(50, 10, 600, marks=pytest.mark.slow),
        pytest.param(100, 20, 1144, marks=pytest.mark.slow),
        pytest.param(250, 100, 3000, marks=pytest.mark.slow),
    ],
)
def test_a_rate_that_nobody_tells_is_found_out(
    crawled: Crawl, rate: int, burst: int, pages: int
) -> None:
    bucket = Bucket(rate, burst)
    paths = [f"/{n}" for n in range(pages)]
    done = crawled(dict.fromkeys(paths, bucket), tuple(paths))
    times = [at for at, url in done.asked if url != "/robots.txt"]
    assert done.tally.pages == pages
    assert bucket.refused <= 16
    assert times[-1] - times[0] <= 1.35 * (pages - burst) / rate


# -- sitemaps ------------------------------------------------------------------------------------


def sitemap(*urls: str, tag: str = "url") -> str:
    found = "".join(f"<{tag}><loc> {SITE}{url}\n</loc></{tag}>" for url in urls)
    root = "urlset" if tag == "url" else "sitemapindex"
    return f'<?xml version="1.0"?><{root} xmlns="http://www.sitemaps.org/schemas">{found}</{root}>'


def test_sitemaps_add_pages_that_nobody_links_to(crawled: Crawl) -> None:
    robots = f"Sitemap: {SITE}/index.xml\nSitemap: {SITE}/list.txt"
    packed = gzip.compress(sitemap("/lonely", "/").encode())
    done = crawled(
        {
            "/robots.txt": answer(robots, kind="text/plain"),
            "/": html(),
            "/index.xml": answer(sitemap("/one.xml.gz", tag="sitemap"), kind="text/xml"),
            "/one.xml.gz": answer(packed, kind="application/octet-stream"),
            "/list.txt": answer(f"{SITE}/listed\nhttp://else.example/x", kind="text/plain"),
            "/lonely": html("/linked"),
            "/listed": html(),
            "/linked": html(),
        },
        sitemap=True,
    )
    assert set(done.rows) == {"/", "/lonely", "/listed", "/linked"}
    assert (done.tally.waiting, done.tally.sitemaps) == (0, 4)


def test_a_site_without_a_sitemap_is_crawled_all_the_same(crawled: Crawl) -> None:
    done = crawled({"/": html("/a"), "/a": html()}, sitemap=True)
    assert set(done.rows) == {"/", "/a"}
    assert done.requests["/sitemap.xml"] == 1
    assert (done.tally.failed, done.tally.waiting) == (0, 0)
