"""How a crawl treats hosts, in virtual time: robots.txt, rates and refusals."""

from itertools import pairwise

import anyio
import httpx
import pytest

from examples.scraper.politeness.spacing import Spacing
from tests.examples.memory_site import SITE, Answer, Crawl, answer, html, in_turn

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
def test_a_provider_that_refuses_without_a_time_is_paused_ever_longer(
    crawled: Crawl, adaptive: bool
) -> None:
    refusing = in_turn(*(answer(status=429) for _ in range(4)), html())
    done = crawled({"/": refusing}, adaptive=adaptive)
    times = [at for at, url in done.asked if url == "/"]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps == pytest.approx([1, 2, 4, 8] if adaptive else [1, 1, 1, 1], abs=0.1)
    assert done.rows["/"]["error"] is None


@pytest.mark.parametrize("status", [429, 503])
def test_a_provider_that_always_refuses_has_failed(crawled: Crawl, status: int) -> None:
    async def refuse(_: httpx.Request) -> httpx.Response:
        return answer(status=status, retry_after="1")

    done = crawled({"/": refuse})
    row = done.rows["/"]
    assert (row["status"], row["final_url"]) == (status, f"{SITE}/")
    assert row["error"]["kind"] == "refused"
    assert str(status) in row["error"]["message"]
    assert row["attempts"] == done.requests["/"] <= 10
    assert done.tally.statuses == {str(status): 1}


def test_refusals_count_as_attempts_beside_other_failures(crawled: Crawl) -> None:
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
        spacing.refuses(refused._replace(at=spacing._began + seconds), "/", pause)
        now += pause
    return spacing


def test_one_refusal_says_between_what_the_rate_is() -> None:
    guess = spaced((30, 0.1)).rate
    assert guess == pytest.approx((30 / 0.1 * 30 / 1.1) ** 0.5)


def test_two_refusals_say_what_the_rate_is() -> None:
    assert spaced((26, 0.1), (80, 1.0)).rate == pytest.approx(0.95 * 60)


def test_a_site_that_takes_nothing_after_a_pause_is_asked_half_as_often() -> None:
    before = spaced((26, 0.1), (80, 1.0)).rate
    assert spaced((26, 0.1), (80, 1.0), (0, 0.0)).rate == pytest.approx(before / 2)
    assert spaced((0, 0.0)).rate == 0.5
    assert spaced(*[(0, 0.0)] * 20).seconds == 60


@pytest.mark.parametrize(
    ("refused", "vouched", "is_forgotten"),
    [
        (["/a"], "/a", True),
        (["/a", "/b"], "/a", True),
        (["/a"], "/b", False),  # a host that has a limit, and a page that is refused by itself
        (["/a", "/b", "/c"], "/d", True),  # nothing was answered in between
        (["/a", None, "/b"], "/a", False),
        (["/a", None, "/b"], "/b", True),
    ],
)
def test_what_refusals_in_a_row_have_taught_is_forgotten(
    refused: list[str | None], vouched: str, is_forgotten: bool
) -> None:
    now = 0.0
    spacing = Spacing(lambda: now)
    spacing.takes(spacing.sends())
    rate = spacing.rate
    for url in refused:
        now += 2.0
        request = spacing.sends()
        if url is None:
            spacing.takes(request)
            rate = spacing.rate
        else:
            spacing.refuses(request, url, 1.0)
    learned = spacing.rate
    assert learned < rate
    spacing.unlearn(vouched)
    assert spacing.rate == (rate if is_forgotten else learned)


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
def test_a_rate_that_is_not_announced_is_found_out(
    crawled: Crawl, rate: int, burst: int, pages: int
) -> None:
    bucket = Bucket(rate, burst)
    paths = [f"/{n}" for n in range(pages)]
    done = crawled(dict.fromkeys(paths, bucket), tuple(paths))
    times = [at for at, url in done.asked if url != "/robots.txt"]
    assert done.tally.pages == pages
    assert bucket.refused <= 16
    assert times[-1] - times[0] <= 1.35 * (pages - burst) / rate
