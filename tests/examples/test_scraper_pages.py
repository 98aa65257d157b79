"""The scraper's values: which links count, which are the same, and what is read from HTML."""

import gzip
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from examples.scraper.fetching.urls import (
    absolute,
    host_of,
    key_of,
    name_of,
    origin_of,
    resolve,
    target_of,
)
from examples.scraper.frontier.links import Frontier, Link, key_of_link, start_link
from examples.scraper.frontier.scope import Scope
from examples.scraper.reading import pages
from examples.scraper.reading.document import Document
from examples.scraper.reading.pages import media_type, read_sitemap, sniffed
from examples.scraper.settings import ScopeName, Settings
from shoal import Done, RunPath, State

BASE = "http://example.org/dir/page.html?q=1"


def hrefs(*targets: str) -> bytes:
    return "".join(f'<a href="{target}">x</a>' for target in targets).encode()


def found(body: bytes, content_type: str = "text/html") -> list[str]:
    document = Document(body, content_type, BASE)
    return [url for one in document.hrefs() if (url := resolve(document.base, one))]


def frontier(**settings: Any) -> Frontier:
    return Frontier(Settings(**settings), [start_link(BASE)])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://example.org/a#top", "http://example.org/a#end"),
        ("http://example.org", "http://EXAMPLE.org/"),
        ("http://example.org:80/", "http://example.org/"),
        ("https://example.org:443/x", "https://example.org/x"),
        ("http://example.org/%7eme", "http://example.org/~me"),
        ("http://example.org/caf\u00e9", "http://example.org/caf%C3%A9"),
        ("http://b\u00fccher.example/", "http://xn--bcher-kva.example/"),
        (" http://example.org/x\n", "http://example.org/x"),
    ],
)
def test_spellings_of_one_page_have_one_key(one: str, other: str) -> None:
    assert key_of_link(start_link(one)) == key_of_link(start_link(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://example.org/A", "http://example.org/a"),
        ("http://example.org/a", "http://example.org/a/"),
        ("http://example.org/a", "https://example.org/a"),
        ("http://example.org/a", "http://example.org:81/a"),
        ("http://example.org/a", "http://example.org/a?x="),
        ("http://example.org/a%2Fb", "http://example.org/a/b"),
        ("http://example.org/?a=1&b=2", "http://example.org/?b=2&a=1"),
        ("http://example.org/?a&b", "http://example.org/?a=&b="),
        ("http://example.org/?a=1&a=2", "http://example.org/?a=2&a=1"),
        ("http://example.org/?q=%2B", "http://example.org/?q=+"),
        ("http://example.org/?q=+", "http://example.org/?q=%20"),
        ("http://example.org/a%3Db", "http://example.org/a=b"),
        ("http://example.org/a%", "http://example.org/a%25"),
        ("http://example.org/a;b", "http://example.org/a%3Bb"),
        ("http://example.org/a//b", "http://example.org/a/b"),
    ],
)
def test_different_pages_have_different_keys(one: str, other: str) -> None:
    assert key_of_link(start_link(one)) != key_of_link(start_link(other))


def test_the_url_that_is_fetched_keeps_the_order_of_its_query() -> None:
    assert start_link("http://example.org/?b=2&a=1#x")["url"] == "http://example.org/?b=2&a=1"


@pytest.mark.parametrize(
    "url",
    ["", "example.org", "/path", "ftp://example.org/", "http://", "http://[bad", "http://a:x/"],
)
def test_a_crawl_begins_with_full_addresses_only(url: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        start_link(url)


def scope_of(*urls: str, name: ScopeName = "origin") -> Scope:
    scope = Scope(name)
    for url in urls:
        scope.add(url)
    return scope


def within(scope: Scope, url: str) -> bool:
    found = absolute(url)
    return found is not None and found in scope


def test_a_scope_is_the_origins_of_its_urls() -> None:
    scope = scope_of("http://example.org/deep/page", "https://other.example:8443/")
    inside = ["http://EXAMPLE.org:80/x", "https://other.example:8443/y", "http://me@example.org/"]
    outside = [
        "https://example.org/",
        "http://example.org:8080/",
        "http://www.example.org/",
        "http://example.org.evil.example/",
        "https://other.example/",
        "ftp://example.org/",
        "mailto:me@example.org",
        "/relative",
    ]
    assert [url for url in inside + outside if within(scope, url)] == inside


@pytest.mark.parametrize(
    ("href", "url"),
    [
        ("other.html", "http://example.org/dir/other.html"),
        ("/top#part", "http://example.org/top"),
        ("../../up", "http://example.org/up"),
        ("?p=2", "http://example.org/dir/page.html?p=2"),
        ("", "http://example.org/dir/page.html?q=1"),
        ("#part", "http://example.org/dir/page.html?q=1"),
        ("//cdn.example/x", "http://cdn.example/x"),
        ("  spaced out.html\n", "http://example.org/dir/spaced%20out.html"),
        ("a%2Fb", "http://example.org/dir/a%2Fb"),
        ("operator%3D", "http://example.org/dir/operator%3D"),
        ("/go?next=%2Flogin%3Fx%3D1", "http://example.org/go?next=%2Flogin%3Fx%3D1"),
        ("/100%", "http://example.org/100%"),
        ("/50%zz", "http://example.org/50%zz"),
        ("/a%41%7e", "http://example.org/a%41%7e"),
        ("?b=2&a=1&b", "http://example.org/dir/page.html?b=2&a=1&b"),
        (" \t?p=2\n", "http://example.org/dir/page.html?p=2"),
        ("a\n\tb", "http://example.org/dir/ab"),
        ("\\up\\x", "http://example.org/up/x"),
        ("http://example.org\\@evil.example/", "http://example.org/@evil.example/"),
        ("http:other", "http://example.org/dir/other"),
    ],
)
def test_hrefs_are_resolved_against_their_page(href: str, url: str) -> None:
    assert resolve(BASE, href) == url


@pytest.mark.parametrize(
    "href",
    [
        "javascript:void(0)",
        "mailto:me@example.org",
        "tel:+123",
        "data:text/html,hi",
        "http://[bad",
        "http://example.org:99999/",
        "http://example.org:port/",
        "http://exa mple.org/",
        "http://exa%00mple.org/",
    ],
)
def test_what_is_no_web_address_is_no_link(href: str) -> None:
    assert resolve(BASE, href) is None
    assert found(hrefs(href, "good")) == ["http://example.org/dir/good"]


FRONTIER = frontier()


@given(st.text())
def test_no_href_breaks_the_crawl(href: str) -> None:
    url = FRONTIER.resolve(BASE, href)
    assert url is None or key_of(url)


def test_links_are_those_of_anchors_and_areas_once_each() -> None:
    body = b"""<!doctype html><title>T</title><link href=style.css><a name=top></a><a href></a>
        <map><area href=area><area></map><a href=one#x>1</a><a href=one#y>1</a><a href=./one>1</a>
        <img src=pic.png><A HREF='two'>2</A><base target=_blank>"""
    assert dict.fromkeys(found(body)) == dict.fromkeys(
        [
            BASE,
            "http://example.org/dir/area",
            "http://example.org/dir/one",
            "http://example.org/dir/two",
        ]
    )


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("/other/", "http://example.org/other/x"),
        ("http://cdn.example/a/b", "http://cdn.example/a/x"),
        ("http://[bad", "http://example.org/dir/x"),
        ("javascript:1", "http://example.org/dir/x"),
        ("", "http://example.org/dir/x"),
    ],
)
def test_a_base_tag_moves_relative_links_if_it_is_valid(base: str, url: str) -> None:
    assert found(f'<base href="{base}"><a href=x>x</a>'.encode()) == [url]


@pytest.mark.parametrize(
    ("body", "content_type", "title"),
    [
        (b"<title> A\n  title </title>", "text/html", "A title"),
        (b"<title>&lt;b&gt; &amp; &eacute;</title>", "text/html", "<b> & \u00e9"),
        ("<title>\u00e9</title>".encode("latin-1"), "text/html; charset=latin-1", "\u00e9"),
        ("<meta charset=latin-1><title>\u00e9</title>".encode("latin-1"), "text/html", "\u00e9"),
        (
            "<title>\u65e5\u672c</title>".encode("shift_jis"),
            "text/html;charset=x-sjis",
            "\u65e5\u672c",
        ),
        (b"\xef\xbb\xbf" + "<title>\u00e9</title>".encode(), "text/html;charset=latin-1", "\u00e9"),
        ("<title>\u00e9</title>".encode(), "text/html; charset=nonsense", "\u00e9"),
        (b"<title>\xff</title>", "text/html", "\ufffd"),
        (b"<title></title>", "text/html", ""),
        (b"<p>no title", "text/html", None),
        (b"", "text/html", None),
        (b"<html><<body><p <title>x</p></html></title", "text/html", None),
    ],
)
def test_titles(body: bytes, content_type: str, title: str | None) -> None:
    assert Document(body, content_type, BASE).title == title


@given(
    st.binary(),
    st.sampled_from(
        ["", "text/html", "text/html; charset=utf-7", "text/html;charset=utf-16", ";;="]
    ),
)
def test_no_body_is_too_broken(body: bytes, content_type: str) -> None:
    document = Document(b"<title>" + body + b"</title><a href='" + body, content_type, BASE)
    assert isinstance(document.title, str | None)
    list(document.hrefs())
    document.visible_text()


def test_types_are_read_off_their_headers() -> None:
    assert media_type("Text/HTML ; charset=utf-8") == "text/html"
    assert (sniffed(b"\n <p>"), sniffed(b"GIF89a")) == ("text/html", "application/octet-stream")


# -- the frontier --------------------------------------------------------------------------------


def page(*links: str) -> dict[str, object]:
    return {"links": list(links)}


def grown(frontier: Frontier, link: Link, value: dict[str, object]) -> list[Link]:
    path = RunPath(run_id="x")
    done = Done(path=path, position=0, element=link, value=value, state=State({}))
    return list(frontier.grow(State({}), done))


def test_links_know_their_depth_and_parent_and_come_once() -> None:
    start = start_link(BASE)
    ours = frontier()
    first = "http://example.org/?b=1&a=2"
    assert grown(ours, start, page(first, "http://example.org/?b=1&%61=2", BASE)) == [
        Link(url=first, depth=1, parent=BASE)
    ]
    assert grown(ours, start, page(first)) == []
    assert ours.unknown([first, "http://example.org/new", "http://example.org/ne%77"]) == [
        "http://example.org/new"
    ]
    assert (ours.known, ours.by_host["example.org"]) == (2, 2)


def test_what_was_found_before_is_recalled() -> None:
    ours = frontier()
    ours.recall([Link(url="http://example.org/a?x", depth=3, parent=None)])
    assert grown(ours, start_link(BASE), page("http://example.org/a?x")) == []
    assert ours.known == 2


@pytest.mark.parametrize(
    ("scope", "inside"),
    [
        ("origin", ["http://example.org/x"]),
        ("host", ["http://example.org/x", "https://example.org:8443/"]),
        (
            "domain",
            ["http://example.org/x", "https://example.org:8443/", "http://www.example.org/"],
        ),
        (
            "any",
            [
                "http://example.org/x",
                "https://example.org:8443/",
                "http://www.example.org/",
                "http://example.org.uk/",
                "http://127.0.0.1/",
            ],
        ),
    ],
)
def test_a_scope_may_be_wider(scope: ScopeName, inside: list[str]) -> None:
    urls = [
        "http://example.org/x",
        "https://example.org:8443/",
        "http://www.example.org/",
        "http://example.org.uk/",
        "http://127.0.0.1/",
        "ftp://example.org/",
    ]
    assert [url for url in urls if within(scope_of(BASE, name=scope), url)] == inside


@pytest.mark.parametrize(
    ("path", "taken"),
    [
        ("/a/b/a/b/a/b/c", True),
        ("/next/next/next", True),
        ("/next/next/next/next", False),
        ("/" + "/".join(map(str, range(20))), True),
        ("/" + "/".join(map(str, range(21))), False),
        ("/" + "x" * 2000, True),
        ("/" + "x" * 2083, False),
    ],
)
def test_traps_are_known_by_their_shape(path: str, taken: bool) -> None:
    assert (frontier().resolve(BASE, path) is not None) is taken


def test_what_is_left_out_of_a_site_is_counted_once_with_its_reason() -> None:
    ours = frontier(max_variants=1000)
    urls = [f"http://example.org/calendar?day={n}" for n in range(1050)]
    links = grown(ours, start_link(BASE), page(*urls, "http://example.org/other?day=1"))
    assert len(links) == 1001
    assert grown(ours, start_link(BASE), page(*urls)) == []
    for trap in ("/a/a/a/a", "/a/a/a/a#again", "/" + "x" * 3000, "http://else.example/a/a/a/a"):
        assert ours.resolve(BASE, trap) is None
    assert ours.dropped == {"variants": 50, "traps": 2}


def test_nothing_is_left_out_unless_that_is_asked_for() -> None:
    ours = frontier(traps=False)
    urls = [f"http://example.org/topic?id={n}" for n in range(3000)]
    assert len(grown(ours, start_link(BASE), page(*urls))) == 3000
    assert ours.resolve(BASE, "/v/1/1/1/1") == "http://example.org/v/1/1/1/1"
    assert ours.dropped == {}


def test_an_earlier_execution_counts_for_the_limit_of_queries() -> None:
    ours = frontier(max_variants=2)
    ours.recall([Link(url="http://example.org/a?x", depth=3, parent="http://example.org/")])
    urls = [f"http://example.org/a?{n}" for n in range(3)]
    assert len(grown(ours, start_link(BASE), page(*urls))) == 1


@given(
    st.sampled_from(
        [
            "http://example.org/a/b",
            "http://example.org/a/c?q",
            "https://example.org/a/b",
            "http://me@example.org/a/b",
            "http://example.org:81/a/b",
            "http://example.org/c",
        ]
    ),
    st.sampled_from(
        ["", " ", "x", "?p", " ?p", "\n?p", "../x", "/x", "//example.org/y", "#f", "%3D"]
    ),
)
def test_where_a_link_leads_does_not_depend_on_links_before(base: str, href: str) -> None:
    assert ANYWHERE.resolve(base, href) == resolve(base, href)


ANYWHERE = frontier(scope="any")


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("http://Me@Example.org:8080/x", ("http://example.org:8080", "example.org", "/x")),
        ("https://example.org:443?a/b@c", ("https://example.org", "example.org", "/?a/b@c")),
        ("http://[::1]:8000/a?b#c", ("http://[::1]:8000", "::1", "/a?b")),
        ("http://[::1]", ("http://[::1]", "::1", "/")),
        ("http://127.1", ("http://127.0.0.1", "127.0.0.1", "/")),
    ],
)
def test_parts_of_addresses(url: str, parts: tuple[str, str, str]) -> None:
    found = absolute(url)
    assert found is not None
    assert (origin_of(found), name_of(found), target_of(found)) == parts
    assert host_of(found) == parts[0].partition("://")[2]


# -- sitemaps ------------------------------------------------------------------------------------


def test_sitemaps_are_xml_gzip_or_plain() -> None:
    xml = b"<urlset><url><loc> http://a/x?1&amp;2 </loc></url><url><x>1</x></url></urlset>"
    index = b'<sitemapindex xmlns="s"><sitemap><loc>http://a/s.xml</loc></sitemap></sitemapindex>'
    assert read_sitemap(xml) == ([], ["http://a/x?1&2"])
    assert read_sitemap(gzip.compress(xml)) == ([], ["http://a/x?1&2"])
    assert read_sitemap(index) == (["http://a/s.xml"], [])
    assert read_sitemap(b"http://a/x\r\nhttp://a/y\n") == ([], ["http://a/x", "http://a/y"])


@pytest.mark.parametrize(
    "body",
    [
        b"<urlset><url>",
        b'<!DOCTYPE x [<!ENTITY a "aa">]><urlset>&a;</urlset>',
        gzip.compress(b"<urlset/>")[:-9],
        gzip.compress(b" " * 1001),
    ],
    ids=["cut", "entities", "cut-gzip", "bomb"],
)
def test_what_is_no_sitemap_is_said(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "MAX_SITEMAP", 1000)
    with pytest.raises(ValueError, match="sitemap"):
        read_sitemap(body)


@given(st.binary())
def test_no_sitemap_breaks_the_crawl(body: bytes) -> None:
    for prefix in (b"", b"<urlset>", b"\x1f\x8b"):
        with suppress(ValueError):  # which is what the crawl expects
            read_sitemap(prefix + body)
