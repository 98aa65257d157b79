"""Hosts that are down, for a while or for good, in virtual time: no page is lost by that."""

from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import pairwise

import anyio
import httpx
import pytest

from tests.examples.memory_site import SITE, Answer, Crawl, answer, html, in_turn

Give = Callable[[httpx.Request], Awaitable[httpx.Response]]
BEGIN = 1.0  # seconds into the crawl
RESET = httpx.ReadError("connection reset")
REFUSED = httpx.ConnectError("connection refused")


def failing(how: httpx.Response | Exception | int) -> httpx.Response:
    if isinstance(how, Exception):
        raise how
    return answer(status=how) if isinstance(how, int) else how


def site_of(pages: int, give: Give) -> dict[str, Answer]:
    paths = [f"/{n}" for n in range(pages)]
    return {"/": html(*paths), **dict.fromkeys(paths, give)}


@pytest.mark.parametrize("how", [502, 503, RESET, REFUSED, httpx.ReadTimeout("")], ids=repr)
@pytest.mark.parametrize(("seconds", "concurrency"), [(3.0, 1), (3.0, 16), (60.0, 4)])
def test_an_outage_loses_no_page(
    crawled: Crawl, how: Exception | int, seconds: float, concurrency: int
) -> None:
    async def give(_: httpx.Request) -> httpx.Response:
        await anyio.sleep(0.05 * concurrency)  # so that the site takes six seconds
        if BEGIN < anyio.current_time() < BEGIN + seconds:
            return failing(how)
        return html()

    site = site_of(120, give)
    done = crawled(site, concurrency=concurrency, per_host=concurrency)
    assert done.tally.pages == 121
    assert done.tally.waiting == 0
    meanwhile = [at for at, _ in done.asked if BEGIN < at < BEGIN + seconds]
    assert len(meanwhile) <= 3 * concurrency + 20, "the host is left alone"
    assert max(row["attempts"] for row in done.rows.values()) <= 3


@pytest.mark.parametrize("how", [502, RESET], ids=repr)
@pytest.mark.parametrize("pages", [1, 2, 3, 5])
def test_the_last_pages_outlast_an_outage_too(
    crawled: Crawl, how: Exception | int, pages: int
) -> None:
    async def give(_: httpx.Request) -> httpx.Response:
        return failing(how) if anyio.current_time() < 3.0 else html()

    assert crawled(site_of(pages, give)).tally.pages == pages + 1


@pytest.mark.parametrize("how", [500, 502, RESET], ids=repr)
def test_flaky_answers_leave_each_page_all_of_its_attempts(
    crawled: Crawl, how: Exception | int
) -> None:
    asked = Counter[str]()

    async def give(request: httpx.Request) -> httpx.Response:
        path = request.url.path
        asked[path] += 1
        return html() if asked[path] >= 4 else failing(how)

    assert crawled(site_of(60, give)).tally.pages == 61


def test_pages_that_are_broken_by_themselves_stop_no_other(crawled: Crawl) -> None:
    async def give(_: httpx.Request) -> httpx.Response:
        await anyio.sleep(0.01)
        return html()

    async def broken(_: httpx.Request) -> httpx.Response:
        return failing(RESET)

    bad = [f"/bad{n}" for n in range(30)]
    site = site_of(50, give) | dict.fromkeys(bad, broken)
    site["/"] = html(*bad, *(f"/{n}" for n in range(50)))
    done = crawled(site)
    assert (done.tally.pages, done.tally.failed) == (51, 30)
    assert {done.rows[path]["attempts"] for path in bad} == {4}
    assert done.asked[-1][0] < 60.0
    witnesses = sum(n - 1 for path, n in done.requests.items() if path not in bad)
    assert witnesses <= 30 * 4 / 3 + 1


def test_a_host_that_stays_down_is_given_up_and_its_pages_fail_at_once(crawled: Crawl) -> None:
    async def give(_: httpx.Request) -> httpx.Response:
        await anyio.sleep(0.05)
        return html() if anyio.current_time() < BEGIN else failing(REFUSED)

    done = crawled(site_of(500, give), patience=60.0)
    assert 10 < done.tally.pages < 200
    assert done.tally.failures["connect"] == 501 - done.tally.pages
    assert 61 <= done.asked[-1][0] <= 70
    messages = {row["error"]["message"] for row in done.rows.values() if row["error"]}
    assert "the host has not answered for 60 s: connection refused" in messages
    assert len(done.asked) < done.tally.pages + 40


def test_a_host_that_was_given_up_is_taken_up_again_once_it_answers(crawled: Crawl) -> None:
    async def give(_: httpx.Request) -> httpx.Response:
        now = anyio.current_time()
        await anyio.sleep(0.05)
        return failing(REFUSED) if BEGIN < now < BEGIN + 100 else html()

    # Another host keeps the crawl going meanwhile.
    other = [f"http://other.example/{n}" for n in range(150)]
    paths = [f"/{n}" for n in range(200)]

    async def slow(_: httpx.Request) -> httpx.Response:
        await anyio.sleep(4.0)
        return html(f"{SITE}/late") if anyio.current_time() > BEGIN + 130 else html()

    site: dict[str, Answer] = {"/": html(*paths, *other), "/late": give}
    site |= dict.fromkeys(paths, give) | dict.fromkeys(other, slow)
    done = crawled(site, scope="any", patience=40.0)
    assert done.tally.failed > 0
    assert done.rows["/late"]["error"] is None


def test_a_host_that_never_was_there_is_not_waited_for_long(crawled: Crawl) -> None:
    async def nobody(_: httpx.Request) -> httpx.Response:
        return failing(REFUSED)

    paths = tuple(f"/{n}" for n in range(50))
    done = crawled(dict.fromkeys((*paths, "/robots.txt"), nobody), paths)
    assert done.tally.failures == {"connect": 50}
    assert done.asked[-1][0] <= 15


# -- robots.txt ------------------------------------------------------------------------------------


@pytest.mark.parametrize("retries", [0, 3])
@pytest.mark.parametrize("how", [500, 503, 429], ids=repr)
def test_a_hiccup_of_robots_ends_nothing(crawled: Crawl, how: int, retries: int) -> None:
    robots = in_turn(
        answer(status=how, retry_after="1"),
        answer(status=how),
        answer("User-agent: *\nDisallow: /private", kind="text/plain"),
    )
    site: dict[str, Answer] = {"/robots.txt": robots, "/": html("/a", "/private"), "/a": html()}
    done = crawled(site, retries=retries)
    assert (done.tally.pages, done.tally.failed, done.tally.left_out["robots"]) == (2, 0, 1)
    asked = [at for at, url in done.asked if url == "/robots.txt"]
    assert all(later - earlier >= 1 for earlier, later in pairwise(asked))


@pytest.mark.parametrize("how", [RESET, REFUSED], ids=repr)
def test_robots_that_get_no_answer_at_first_are_asked_for_again(
    crawled: Crawl, how: Exception
) -> None:
    async def robots(_: httpx.Request) -> httpx.Response:
        return failing(how) if anyio.current_time() < 3.0 else answer(status=404)

    done = crawled({"/robots.txt": robots, "/": html("/a"), "/a": html()})
    assert (done.tally.pages, done.tally.failed) == (2, 0)


def test_as_long_as_robots_cannot_be_read_nothing_is_asked_for(crawled: Crawl) -> None:
    async def down(_: httpx.Request) -> httpx.Response:
        return answer(status=503)

    done = crawled({"/robots.txt": down, "/": html()}, patience=30.0)
    assert done.requests == {}
    assert done.rows["/"]["error"]["kind"] == "robots"
    assert 25 <= done.asked[-1][0] <= 45


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("after", ["1", "20", "300", "99999999999", None])
def test_a_page_that_is_always_refused_does_not_stall_its_host(
    crawled: Crawl, after: str | None
) -> None:
    headers = {} if after is None else {"retry_after": after}

    async def refuse(_: httpx.Request) -> httpx.Response:
        return answer(status=429, **headers)

    async def give(_: httpx.Request) -> httpx.Response:
        await anyio.sleep(0.01)
        return html()

    site = site_of(30, give)
    site |= {"/": html("/export", *(f"/{n}" for n in range(30))), "/export": refuse}
    done = crawled(site)
    assert done.tally.pages == 31
    assert done.tally.failures == {"refused": 1}
    assert (done.rows["/export"]["status"], done.rows["/export"]["error"]["kind"]) == (
        429,
        "refused",
    )
    others = [at for at, url in done.asked if url != "/export"]
    assert others[-1] <= 20


def test_many_pages_that_are_always_refused_do_not_stall_their_host(crawled: Crawl) -> None:
    async def refuse(_: httpx.Request) -> httpx.Response:
        return answer(status=429, retry_after="1")

    async def give(_: httpx.Request) -> httpx.Response:
        return html()

    bad = [f"/bad{n}" for n in range(20)]
    site = site_of(30, give) | dict.fromkeys(bad, refuse)
    site["/"] = html(*bad, *(f"/{n}" for n in range(30)))
    done = crawled(site)
    assert (done.tally.pages, done.tally.failures) == (31, {"refused": 20})
    assert done.asked[-1][0] <= 120


@pytest.mark.parametrize(("slow", "within"), [(0.0, 20), (0.3, 20), (3.0, 60)])
@pytest.mark.parametrize("pages", [5, 10, 60])
def test_pages_that_are_all_refused_do_not_slow_their_host_down(
    crawled: Crawl, pages: int, slow: float, within: float
) -> None:
    """The front page is answered, so the others' refusals say nothing about the host's rate."""
    paths = [f"/{n}" for n in range(pages)]
    beginning = iter([slow])

    async def front(_: httpx.Request) -> httpx.Response:
        await anyio.sleep(next(beginning, 0.0))
        return html(*paths)

    async def refuse(_: httpx.Request) -> httpx.Response:
        await anyio.sleep(0.02)  # so that the next one is asked for after it has been heeded
        return answer(status=429, retry_after="1")

    done = crawled({"/": front, **dict.fromkeys(paths, refuse)})
    assert (done.tally.pages, done.tally.failures) == (1, {"refused": pages})
    assert done.asked[-1][0] <= within


def test_a_host_that_refuses_everything_is_given_up(crawled: Crawl) -> None:
    async def refuse(_: httpx.Request) -> httpx.Response:
        return answer(status=429, retry_after="5")

    paths = tuple(f"/{n}" for n in range(500))
    done = crawled(dict.fromkeys(paths, refuse), paths, patience=60.0)
    assert done.tally.failures == {"refused": 500}
    assert done.asked[-1][0] <= 200
    assert len(done.asked) <= 60
