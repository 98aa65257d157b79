"""Crawls of sites that exist in memory only, in virtual time: what is fetched and followed."""

import gzip
import zlib
from collections.abc import AsyncIterator, Callable

import anyio
import httpx
import pytest

from examples.scraper import crawl
from examples.scraper.frontier.links import Frontier, Link, start_link
from examples.scraper.reading import parsing
from examples.scraper.settings import Settings
from tests.examples.memory_site import SITE, Answer, Crawl, answer, html, in_turn, redirect


def test_every_page_of_the_site_is_fetched_once_and_none_of_another(crawled: Crawl) -> None:
    outside = ["http://www.site.example/", "https://site.example/", f"{SITE}:8080/", "mailto:a@b"]
    done = crawled(
        {
            "/": html("a", "b", "a#x", "/", *outside, title="front"),
            "/a": html("b", "/deep/c", f"{SITE}/a", "HTTP://SITE.example:80/b"),
            "/b": html("/", "a", "?x=2&y=1", "?%78=2&y=1"),
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


@pytest.mark.parametrize(
    "place",
    ["https://site.example", "http://www.site.example", "https://www.site.example", ":8080"],
)
@pytest.mark.parametrize("sitemap", [True, False])
def test_a_start_that_redirects_takes_the_crawl_along(
    crawled: Crawl, place: str, sitemap: bool
) -> None:
    base = SITE if place.startswith(":") else ""
    site: dict[str, Answer] = {
        "/": redirect(f"{base}{place}/home"),
        f"{place}/home": html("/a", f"{SITE}/b", "http://else.example/"),
        f"{place}/a": redirect("http://more.site.example/"),
        "/b": html(),
        "/sitemap.xml": redirect(f"{base}{place}/sitemap.xml"),
        f"{place}/sitemap.xml": answer(f"<urlset><url><loc>{base}{place}/c</loc></url></urlset>"),
        f"{place}/c": html(),
    }
    done = crawled(site, sitemap=sitemap)
    assert set(done.rows) == {"/", f"{place}/home", f"{place}/a", "/b"} | (
        {f"{place}/c"} if sitemap else set()
    )
    assert done.rows[f"{place}/a"]["error"]["kind"] == "redirect", "it is no start"
    assert done.tally.failed == 1


def test_a_start_that_leads_to_a_site_of_somebody_else_ends_there(crawled: Crawl) -> None:
    done = crawled({"/": redirect("https://login.example/"), "https://login.example/": html()})
    assert done.rows["/"]["error"]["kind"] == "redirect"
    assert done.requests == {"/": 1}


def test_where_a_start_has_moved_is_recalled() -> None:
    settings = Settings(urls=(f"{SITE}/",))
    first = Frontier(settings, [start_link(f"{SITE}/")])
    first.follow_start(start_link(f"{SITE}/"), "https://www.site.example/")
    assert first.takes("https://www.site.example/x")
    resumed = Frontier(settings, [start_link(f"{SITE}/")])
    resumed.recall([Link(url="https://www.site.example/", depth=0, parent=None, hops=1)])
    assert resumed.takes("https://www.site.example/x")
    assert not resumed.takes("https://site.example/x")


def test_a_redirect_to_another_spelling_of_itself_is_followed(crawled: Crawl) -> None:
    done = crawled(
        {
            "/": html("/%7eme"),
            "/%7eme": redirect("/~me"),
            "/~me": html("/leaf", title="plain"),
            "/leaf": html(),
        }
    )
    row = done.rows["/%7eme"]
    assert (row["status"], row["title"], row["final_url"]) == (200, "plain", f"{SITE}/~me")
    assert set(done.rows) == {"/", "/%7eme", "/leaf"}
    assert done.rows["/leaf"]["parent"] == f"{SITE}/%7eme"


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
    from examples.scraper.fetching.fetch import Unpacker

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


@pytest.mark.parametrize("links", [1, crawl.MANY])
@pytest.mark.parametrize(
    "filling", [" " * parsing.INLINE, "<p>" * parsing.FEW_TAGS], ids=["long", "tags"]
)
def test_a_page_is_parsed_in_a_thread_or_a_process_like_any_other(
    crawled: Crawl, filling: str, links: int
) -> None:
    big = html(*(f"/{n}" for n in range(links)), title=f"big</title>{filling}<title>")
    done = crawled({"/": big, "/0": html()}, select={"titles": "title"}, text=True, max_pages=2)
    row = done.rows["/"]
    assert (row["title"], row["selected"]["titles"][0]) == ("big", "big")
    assert (row["text"], row["links_n"]) == (" ".join("x" * links), links)
    assert done.tally.known == links + 1


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
