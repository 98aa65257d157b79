"""Politeness: the time between two requests to one host, and how a crawl learns it.

A server that answers 429 mostly has a token bucket: it accepts `burst` requests at once and `rate`
more in each second, and reveals neither number. At the end of a pause, the bucket is full again. Up
to the next refusal, the server accepts `n = burst + rate * t` requests in `t` seconds. One such
*cycle* shows that the rate is less than `n / t`, and more than `n / (t + pause)` because the bucket
was full after the pause; the guess lies between these bounds, by their ratio. Two cycles of
different lengths determine the rate: `(n2 - n1) / (t2 - t1)`. So a host that refuses is left alone
for as long as it says, then asked at the known or guessed rate. That rate grows slowly until the
next refusal, since servers change their limits.

The runtime does the waiting: each host has a rate limit of one second per second, and a start costs
its spacing in seconds. So a waiting page holds nothing, and delays no other host.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from examples.scraper.fetching.urls import host_of
from examples.scraper.frontier.links import Link
from examples.scraper.politeness.health import SUSPICIOUS
from shoal import AIMD, Limits, Rate, RetryLater, State

BURST = 0.05  # seconds of spacing that can be saved up
MARGIN = 0.95  # part of a known rate
GROWTH = 0.01  # growth of a rate in each second
RECOVERY = 0.1  # growth of a rate far below the one that the host has refused
SLOWEST = 1 / 60  # requests per second
LONGEST = 300.0  # longest Retry-After that is obeyed, in seconds


class Request(NamedTuple):
    """A request that was sent: its cycle, its number in that cycle, and its time."""

    cycle: int
    before: int
    at: float


_STALE = -1  # no cycle: the answer to this request teaches nothing


class Spacing:
    """One host: the seconds between two starts, and the observations behind them."""

    def __init__(
        self, clock: Callable[[], float], floor: float = 0.0, *, is_known: bool = True
    ) -> None:
        """Ask the host as fast as `floor` allows, until it refuses."""
        self._clock = clock
        self.floor: float = floor
        """The least seconds between two starts, from --rate and Crawl-delay."""
        self.is_known: bool = is_known
        """Whether robots.txt was read, if it is used."""
        self.rate: float = math.inf
        """The estimated requests per second that the host accepts."""
        self._ceiling = math.inf  # a rate that the host has refused
        self._cycle = 0
        self._sent = 0  # requests in this cycle
        self._began = 0.0  # the time of the cycle's first request
        self._paused_until = -math.inf
        self._last: tuple[int, float] | None = None  # the previous cycle: requests and seconds
        # Refusals in a row without an answered page in between: their URLs, the number of refusals
        # that changed the estimate, and the estimates from before the first one.
        self._row = set[str]()
        self._lessons = 0
        self._before: tuple[float, float, tuple[int, float] | None] | None = None

    @property
    def seconds(self) -> float:
        """The cost of one start, in seconds."""
        return max(self.floor, 1 / self.rate)

    def sends(self) -> Request:
        """Record that a request is about to be sent."""
        now = self._clock()
        if now < self._paused_until:  # it had passed the limits before the host refused another one
            return Request(_STALE, 0, now)
        if not self._sent:
            self._began = now
        self._sent += 1
        return Request(self._cycle, self._sent - 1, now)

    def takes(self, request: Request) -> None:
        """Record that a request was answered."""
        if request.cycle != self._cycle:
            return
        self._end_row()
        if self.rate < math.inf:
            near = self.rate > 0.8 * self._ceiling
            # With `rate` answers per second, the rate grows by this part of itself each second.
            self.rate += GROWTH if near else RECOVERY

    def refuses(self, request: Request, url: str, pause: float) -> None:
        """Record that a request for `url` was refused, and that the host is left alone for a while.

        All requests that were sent before this refusal belong to the same refusal.
        """
        self._paused_until = max(self._paused_until, self._clock() + pause)
        self._row.add(url)
        if request.cycle == self._cycle:
            if self._before is None:
                self._before = (self.rate, self._ceiling, self._last)
            self._lessons += 1
            self.rate = max(SLOWEST, self._learned(request, pause))
            self._cycle += 1
            self._sent = 0

    def unlearn(self, url: str) -> None:
        """Forget what the last refusals taught, because that of `url` was about the page.

        The other refusals may be about their pages, too; if they are not, they will teach the same
        again. A page that isn't among the refusals proves this only for a long row of them: a host
        that limits its rate answers some pages in between.
        """
        if self._before is not None and (url in self._row or self._lessons >= SUSPICIOUS):
            self.rate, self._ceiling, self._last = self._before
            self._end_row()

    def _end_row(self) -> None:
        self._row.clear()
        self._lessons = 0
        self._before = None

    def _learned(self, refused: Request, pause: float) -> float:
        taken, seconds = refused.before, max(refused.at - self._began, 0.001)
        if not taken:  # not even one request after a pause
            return 1 / 2 if self.rate == math.inf else self.rate / 2
        last, self._last = self._last, (taken, seconds)
        most, least = min(self.rate, taken / seconds), taken / (seconds + pause)
        if last is not None:
            more, longer = taken - last[0], seconds - last[1]
            # Between cycles of about the same length, the difference is only noise.
            if abs(longer) > 0.25 * seconds and least < more / longer < most:
                self._ceiling = more / longer
                return MARGIN * self._ceiling
        self._ceiling = most
        return math.sqrt(most * min(least, most))

    @property
    def patience(self) -> float:
        """The seconds to wait if the host doesn't say how long."""
        return min(60.0, 2.0 ** min(self._cycle, 6))


class Politeness:
    """The hosts of a crawl."""

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        rate: float | None = None,
        adaptive: bool = True,
        robots: bool = True,
    ) -> None:
        """Begin without hosts.

        Args:
            clock: Returns the event loop's time.
            rate: Most requests per second to one host.
            adaptive: Whether to learn from refusals.
            robots: Whether robots.txt is read; it may ask for more spacing.
        """
        self._clock = clock
        self._robots = robots
        self._floor = 0.0 if rate is None else 1 / rate
        self.adaptive: bool = adaptive
        self.hosts: dict[str, Spacing] = {}
        self.refusals: int = 0
        """The number of answers that refused a page for now."""

    def of(self, host: str) -> Spacing:
        found = self.hosts.get(host)
        if found is None:
            found = self.hosts[host] = Spacing(self._clock, self._floor, is_known=not self._robots)
        return found

    def pause(self, host: str, after: float | None) -> float:
        """Return how long to leave a host alone after a refusal; `after`, if the host named it."""
        return min(LONGEST, self.of(host).patience if after is None else after)

    def refused(self, host: str, request: Request, url: str, pause: float) -> None:
        """Record a refusal after which the host is left alone."""
        if self.adaptive:
            self.of(host).refuses(request, url, pause)

    def unlearn(self, host: str, url: str) -> None:
        """Forget the last refusals of a host, because that of `url` was about the page."""
        if self.adaptive:
            self.of(host).unlearn(url)

    def cost(self, state: State) -> float:
        """Return the cost of a start that is charged beforehand; `charge` adds the rest later.

        Before robots.txt is read, starts must cost something, or else all pages would start at
        once.
        """
        spacing = self.of(host_of(state["link"]["url"]))
        return min(BURST, spacing.seconds) if spacing.is_known else BURST

    def limits(self, per_host: int) -> Limits:
        """Make the limits by host for the fetching action: concurrency and spacing."""
        return Limits(
            per_host,
            rate=Rate(1.0, per=1.0, burst=BURST),  # seconds of spacing per second
            by=_host,
            cost=self.cost,
            adapt=AIMD(most=per_host, overload=is_overload) if self.adaptive else None,
        )


def _host(state: State) -> str:
    link: Link = state["link"]
    return host_of(link["url"])


def is_overload(error: BaseException) -> bool:
    """Whether a failed request shows that the host is overloaded."""
    if isinstance(error, RetryLater):
        return error.after > 0
    return isinstance(error, TimeoutError) or getattr(error, "kind", None) == "timeout"
