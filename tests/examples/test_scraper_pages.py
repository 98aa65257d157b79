"""The scraper's values: which links count, which are the same, and what is read from HTML."""

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from examples.scraper.pages import (
    Link,
    Scope,
    is_html,
    key_of,
    links_to,
    read_html,
    resolve,
    start_link,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

BASE = URL("http://example.org/dir/page.html?q=1")


def hrefs(*targets: str) -> bytes:
    return "".join(f'<a href="{target}">x</a>' for target in targets).encode()


def found(body: bytes, content_type: str = "text/html") -> list[str]:
    return strings(read_html(body, content_type, str(BASE))[1])


def strings(urls: "Iterable[URL]") -> list[str]:
    return [str(url) for url in urls]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://example.org/a#top", "http://example.org/a#end"),
        ("http://example.org/?a=1&b=2", "http://example.org/?b=2&a=1"),
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
    assert start_link(one).key == start_link(other).key


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://example.org/A", "http://example.org/a"),
        ("http://example.org/a", "http://example.org/a/"),
        ("http://example.org/a", "https://example.org/a"),
        ("http://example.org/a", "http://example.org:81/a"),
        ("http://example.org/a", "http://example.org/a?x="),
        ("http://example.org/a%2Fb", "http://example.org/a/b"),
    ],
)
def test_different_pages_have_different_keys(one: str, other: str) -> None:
    assert start_link(one).key != start_link(other).key


def test_the_url_that_is_fetched_keeps_the_order_of_its_query() -> None:
    assert start_link("http://example.org/?b=2&a=1#x").url == "http://example.org/?b=2&a=1"


@pytest.mark.parametrize(
    "url",
    ["", "example.org", "/path", "ftp://example.org/", "http://", "http://[bad", "http://a:x/"],
)
def test_a_crawl_begins_with_full_addresses_only(url: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        start_link(url)


def test_a_scope_is_the_origins_of_its_urls() -> None:
    scope = Scope.of(["http://example.org/deep/page", "https://other.example:8443/"])
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
    assert [url for url in inside + outside if URL(url) in scope] == inside


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
    ],
)
def test_hrefs_are_resolved_against_their_page(href: str, url: str) -> None:
    assert str(resolve(BASE, href)) == url


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
        "http://example.org\\@evil.example/",
        f"http://{'x' * 64}.example\u00fc/",
    ],
)
def test_what_is_no_web_address_is_no_link(href: str) -> None:
    assert resolve(BASE, href) is None
    assert found(hrefs(href, "good")) == ["http://example.org/dir/good"]


@given(st.text())
def test_no_href_breaks_the_crawl(href: str) -> None:
    url = resolve(BASE, href)
    if url is not None:
        links_to([url], on=start_link(str(BASE)), scope=Scope.of([str(BASE)]))


def test_links_are_those_of_anchors_and_areas_once_each() -> None:
    body = b"""<!doctype html><title>T</title><link href=style.css><a name=top></a><a href></a>
        <map><area href=area><area></map><a href=one#x>1</a><a href=one#y>1</a><a href=./one>1</a>
        <img src=pic.png><A HREF='two'>2</A><base target=_blank>"""
    assert dict.fromkeys(found(body)) == dict.fromkeys(
        [
            str(BASE),
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


def test_links_know_their_depth_and_parent_and_stay_in_scope() -> None:
    page = Link(url="http://example.org/p", key="http://example.org/p", depth=2, hops=3)
    links = links_to(
        [URL("http://example.org/?b=1&a=2"), URL("http://else.example/")],
        on=page,
        scope=Scope.of(["http://example.org/"]),
    )
    assert links == (
        Link(
            url="http://example.org/?b=1&a=2",
            key="http://example.org/?a=2&b=1",
            depth=3,
            parent="http://example.org/p",
        ),
    )


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
    assert read_html(body, content_type, str(BASE))[0] == title


@given(
    st.binary(),
    st.sampled_from(
        ["", "text/html", "text/html; charset=utf-7", "text/html;charset=utf-16", ";;="]
    ),
)
def test_no_body_is_too_broken(body: bytes, content_type: str) -> None:
    read_html(b"<title>" + body + b"</title><a href='" + body + b"'>", content_type, str(BASE))


@pytest.mark.parametrize(
    ("content_type", "html"),
    [
        ("text/html", True),
        ("Text/HTML ; charset=utf-8", True),
        ("application/xhtml+xml", True),
        ("", True),
        ("text/plain", False),
        ("application/json", False),
        ("text/htmlx", False),
    ],
)
def test_only_html_is_parsed(content_type: str, html: bool) -> None:
    assert is_html(content_type) is html


def test_keys_forget_fragments() -> None:
    assert key_of("http://example.org/a#b") == "http://example.org/a"
