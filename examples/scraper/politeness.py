"""Politeness: how long a crawl waits between two requests to one host, and what it learns of that.

A server that answers 429 mostly has a token bucket: it takes `burst` requests at once and `rate`
more in each second, and says neither. So from the end of a pause, when the bucket is full again,
to the next refusal it takes `n = burst + rate * t` requests in `t` seconds. One such *cycle* says
that the rate is less than `n / t`, and more than `n / (t + pause)`, as the bucket was full after
the pause: what lies between them, by their ratio, is a fair guess. Two cycles of different lengths
say what the rate is: `(n2 - n1) / (t2 - t1)`. So a host that refuses is left alone for as long as
it says, then asked at the rate that is known or guessed; that grows slowly until the next refusal,
since servers change their minds.

The waiting itself is the runtime's: what a start costs of a rate of one second per second, by host,
is its spacing. So who waits holds nothing, and delays no other host.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from examples.scraper.frontier import Link
from examples.scraper.health import SUSPICIOUS
from examples.scraper.urls import host_of
from shoal import AIMD, Limits, Rate, RetryLater, State

BURST = 0.05  # seconds of spacing that may be made up for at once
MARGIN = 0.95  # of a rate that is known
GROWTH = 0.01  # of a rate, each second
RECOVERY = 0.1  # the same, far below what the host has refused
SLOWEST = 1 / 60  # requests a second
LONGEST = 300.0  # seconds that Retry-After may ask for


class Request(NamedTuple):
    """A request that was sent: in which cycle, after how many others, and when."""

    cycle: int
    before: int
    at: float


_STALE = -1  # no cycle: what is said of it teaches nothing


class Spacing:
    """One host: the seconds between two starts, and what they follow from."""

    def __init__(
        self, clock: Callable[[], float], floor: float = 0.0, *, is_known: bool = True
    ) -> None:
        """Ask it as fast as `floor` allows, as long as it doesn't refuse."""
        self._clock = clock
        self.floor: float = floor
        """Seconds that are never undercut: --rate, and Crawl-delay."""
        self.is_known: bool = is_known
        """Whether robots.txt has been read, where it is."""
        self.rate: float = math.inf
        """Requests a second that it seems to stand."""
        self._ceiling = math.inf  # a rate that was too much
        self._cycle = 0
        self._sent = 0  # in this cycle
        self._began = 0.0  # with its first request
        self._paused_until = -math.inf
        self._last: tuple[int, float] | None = None  # the cycle before: requests, and seconds
        # Refusals in a row, with no page answered in between: of which pages, how many have taught
        # something, and what was known of the host before the first one.
        self._row = set[str]()
        self._lessons = 0
        self._before: tuple[float, float, tuple[int, float] | None] | None = None

    @property
    def seconds(self) -> float:
        """What one start takes."""
        return max(self.floor, 1 / self.rate)

    def sends(self) -> Request:
        """Hear that a request is about to be sent."""
        now = self._clock()
        if now < self._paused_until:  # it had been let through when the host refused another
            return Request(_STALE, 0, now)
        if not self._sent:
            self._began = now
        self._sent += 1
        return Request(self._cycle, self._sent - 1, now)

    def takes(self, request: Request) -> None:
        """Hear that a request was answered."""
        if request.cycle != self._cycle:
            return
        self._end_row()
        if self.rate < math.inf:
            near = self.rate > 0.8 * self._ceiling
            # As it comes `rate` times a second, that is so much of the rate in a second.
            self.rate += GROWTH if near else RECOVERY

    def refuses(self, request: Request, url: str, pause: float) -> None:
        """Hear that a request for `url` was refused, and that none is sent for a while.

        Whatever was under way with it belongs to the same refusal.
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
        """Forget what refusals in a row have taught: that of `url` says nothing about the host.

        It was of the page. So the others may be, too; those that are not teach the same again. A
        page that is none of the row proves that only of a long row: a host that limits its rate
        answers something in between.
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
        if not taken:  # not even one after a pause
            return 1 / 2 if self.rate == math.inf else self.rate / 2
        last, self._last = self._last, (taken, seconds)
        most, least = min(self.rate, taken / seconds), taken / (seconds + pause)
        if last is not None:
            more, longer = taken - last[0], seconds - last[1]
            # Of cycles of about the same length, the difference says nothing but noise.
            if abs(longer) > 0.25 * seconds and least < more / longer < most:
                self._ceiling = more / longer
                return MARGIN * self._ceiling
        self._ceiling = most
        return math.sqrt(most * min(least, most))

    @property
    def patience(self) -> float:
        """Seconds to wait where the host doesn't say how long."""
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
        """Know none yet.

        Args:
            clock: The event loop's.
            rate: Requests a second that no host gets more of.
            adaptive: Whether to learn from refusals.
            robots: Whether robots.txt is read, which may ask for more spacing.
        """
        self._clock = clock
        self._robots = robots
        self._floor = 0.0 if rate is None else 1 / rate
        self.adaptive: bool = adaptive
        self.hosts: dict[str, Spacing] = {}
        self.refusals: int = 0
        """Answers that said: later."""

    def of(self, host: str) -> Spacing:
        found = self.hosts.get(host)
        if found is None:
            found = self.hosts[host] = Spacing(self._clock, self._floor, is_known=not self._robots)
        return found

    def pause(self, host: str, after: float | None) -> float:
        """The seconds for which to leave a host alone that has refused; `after`, if it says so."""
        return min(LONGEST, self.of(host).patience if after is None else after)

    def refused(self, host: str, request: Request, url: str, pause: float) -> None:
        """Learn from a refusal after which the host is left alone."""
        if self.adaptive:
            self.of(host).refuses(request, url, pause)

    def unlearn(self, host: str, url: str) -> None:
        """Forget the last refusals of a host: that of `url` was of the page, not of the host."""
        if self.adaptive:
            self.of(host).unlearn(url)

    def cost(self, state: State) -> float:
        """What a start is charged beforehand; the rest is charged when it has begun.

        Who comes before robots.txt is read may begin after that: for nothing, all would at once.
        """
        spacing = self.of(host_of(state["link"]["url"]))
        return min(BURST, spacing.seconds) if spacing.is_known else BURST

    def limits(self, per_host: int) -> Limits:
        """The limits by host of the action that asks: so many at once, and so far apart."""
        return Limits(
            per_host,
            rate=Rate(1.0, per=1.0, burst=BURST),  # seconds of spacing, a second
            by=_host,
            cost=self.cost,
            adapt=AIMD(most=per_host, overload=is_overload) if self.adaptive else None,
        )


def _host(state: State) -> str:
    link: Link = state["link"]
    return host_of(link["url"])


def is_overload(error: BaseException) -> bool:
    """Whether a failed request says that the host has too much to do."""
    if isinstance(error, RetryLater):
        return error.after > 0
    return isinstance(error, TimeoutError) or getattr(error, "kind", None) == "timeout"
