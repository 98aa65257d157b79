"""The health of hosts: the crawl waits for a host that is down, instead of failing its pages.

If a page gets no answer, either the page is broken or its host is down. A *witness* tells the two
apart: a page that the host has answered before. After a few failures in a row, the witness is
requested. If it is answered, the pages are broken, and each one uses up an attempt. If not, the
host is down: it is left alone for a second, then longer and longer, and after each pause the
witness is requested first. Pages whose turn comes meanwhile use up no attempt.

The same witness tells a page that is always refused from a host that refuses all pages.

A host that stays down, or refuses all pages, for longer than the patience of the crawl is given up:
its pages fail at once, and are retried when the crawl is resumed. The host is still asked from time
to time, and used again once it answers.
"""

from collections.abc import Awaitable, Callable
from math import inf
from typing import NoReturn

import anyio

from examples.scraper.fetching.fetch import NO_ANSWER, FetchError, LeftAlone

SUSPICIOUS = 3  # failures in a row: pages that are broken themselves rarely come in a row
FIRST = 1.0  # seconds of the first pause; each pause is as long as the host has been down so far
PAUSES = 4  # a pause is at most this part of the patience, so a child is deferred 9 times, not 10
UNKNOWN = 12  # the part of the patience that a host gets which has never answered
LONG = 10.0  # seconds; before a longer pause, the witness is always requested
REFUSALS = 5  # pauses, each as long as the host asked for, before the host is given up

Ask = Callable[[str], Awaitable[int | None]]
"""Requests a page, and returns the status of the answer, or None if there is none."""


class Host:
    """The health of one host."""

    def __init__(self, clock: Callable[[], float], patience: float) -> None:
        """Begin as healthy."""
        self._clock = clock
        self._patience = patience
        self._finding_out = anyio.Lock()
        self._witness: str | None = None  # a page or the robots.txt that the host has answered
        self._page: str | None = None  # only a page, because robots.txt is often exempt from limits
        self._has_spoken = False
        self._failures = 0  # failures in a row
        # the last time that it was healthy, if it is down or refuses pages
        self._since: float | None = None
        self._cause: FetchError | None = None  # the reason why it is left alone
        self._until = -inf  # the time until which it is left alone
        self._pauses = 0
        self._is_down = False
        self._is_given_up = False
        self._refuses_pages = False  # whether the last refusal was about a single page

    # -- results of requests -------------------------------------------------------------------

    def answered(self, url: str, status: int, *, is_page: bool = True) -> None:
        """Record an answer that is no refusal."""
        self._has_spoken = True
        if not _is_well(status):
            return
        if status < 500:
            self._page = url if is_page else self._page
            self._witness = self._page or url
        self._failures = self._pauses = 0
        self._is_down = self._is_given_up = False
        self._since = None

    async def failed(self, error: FetchError, url: str, ask: Ask) -> None:
        """Raise if the host is to blame for a missing answer; return if the page is.

        Raises:
            LeftAlone: The host is down, and the crawl waits for it.
            FetchError: The host is down, and was given up.
        """
        self._has_spoken = self._has_spoken or error.status is not None
        if not error.is_silence:  # a status of 500, for example: the host works
            self._failures = 0
            return
        self._failures += 1
        async with self._finding_out:
            if not self._is_down:
                if self._failures < SUSPICIOUS:
                    return
                if await self._is_vouched_for(self._witness, url, ask):
                    self._failures = 0
                    return
                self._goes_down(error)
            raise self._trouble()

    def robots_failed(self, error: FetchError, after: float | None) -> NoReturn:
        """Record that robots.txt can't be read, so no page may be requested until it can.

        Raises:
            LeftAlone: robots.txt is requested again after a pause.
            FetchError: The host was given up, or may not exist, because it has never answered.
        """
        self._has_spoken = self._has_spoken or error.status is not None
        self._failures += 1
        if not self._has_spoken and self._failures < SUSPICIOUS:
            raise error
        self._goes_down(error)
        if after is not None and not self._is_given_up:
            self._until = max(self._until, self._clock() + after)
        raise self._trouble()

    async def refused(
        self, error: FetchError, url: str, pause: float, ask: Ask, *, again: bool
    ) -> None:
        """Raise if the host is to blame for a refusal; return if the page is.

        A witness is requested if the page, or others, may always be refused, for example after a
        few pauses in a row without any answer, or if an answer would save a long pause. Otherwise a
        host that refuses for now is not asked again.

        Args:
            error: The refusal.
            url: The refused page.
            pause: Seconds for which the host is left alone, if the host is to blame.
            ask: Requests the witness.
            again: Whether the page has been refused before.

        Raises:
            LeftAlone: The host is to blame, as for most refusals.
            FetchError: The host is down, and was given up.
        """
        self._has_spoken = True
        is_open = again or self._refuses_pages or pause >= LONG or self._pauses >= SUSPICIOUS
        if is_open:
            async with self._finding_out:
                # If the host is left alone meanwhile, it would refuse the witness as well.
                if self._clock() >= self._until:
                    self._refuses_pages = await self._is_vouched_for(self._page, url, ask)
                    if self._refuses_pages:
                        return
        now = self._clock()
        self._cause = error
        if self._since is None:
            self._since = now
        if now >= self._until:  # not sent before the refusal arrived
            self._pauses += 1
        if self._pauses > REFUSALS and now - self._since >= self._patience:
            self._give_up()
            raise self._trouble()
        self._until = max(self._until, now + pause)
        raise LeftAlone(pause, error)

    # -- before a request ----------------------------------------------------------------------

    def check(self) -> None:
        """Let no page be requested while the host is left alone because it is down.

        Raises:
            LeftAlone: It is.
            FetchError: It has been given up.
        """
        if self._is_down and self._clock() < self._until:
            raise self._trouble()

    async def admit(self, url: str, ask: Ask) -> None:
        """Let a page be requested once a host that was down answers again.

        Raises:
            LeftAlone: It doesn't yet.
            FetchError: It has been given up.
        """
        if not self._is_down:
            return
        async with self._finding_out:
            self.check()
            if not self._is_down:
                return
            refuses = self._cause is not None and self._cause.kind == "refused"
            witness = self._page if refuses else self._witness
            if not await self._is_answered(ask, witness or url):
                self._pause()
                raise self._trouble()

    async def _is_vouched_for(self, witness: str | None, url: str, ask: Ask) -> bool:
        """Whether the witness is a page other than `url`, and is answered."""
        return witness is not None and witness != url and await self._is_answered(ask, witness)

    async def _is_answered(self, ask: Ask, witness: str) -> bool:
        status = await ask(witness)
        if status is None or not _is_well(status):
            return False
        self.answered(witness, status, is_page=witness == self._page)
        return True

    # -- down, and given up --------------------------------------------------------------------

    def _goes_down(self, error: FetchError) -> None:
        self._cause = error
        if not self._is_down:
            self._is_down = True
            self._since = self._clock() if self._since is None else self._since
        self._pause()

    def _pause(self) -> None:
        assert self._since is not None
        now = self._clock()
        patience = self._patience if self._has_spoken else self._patience / UNKNOWN
        left = self._since + patience - now
        if left <= 0.0:
            self._give_up()
        else:
            pause = min(max(FIRST, now - self._since), max(FIRST, patience / PAUSES), left)
            self._until = now + pause

    def _give_up(self) -> None:
        self._is_down = self._is_given_up = True
        self._until = self._clock() + max(FIRST, self._patience / PAUSES)

    def _trouble(self) -> LeftAlone | FetchError:
        cause, now = self._cause, self._clock()
        assert cause is not None
        assert self._since is not None
        if not self._is_given_up:
            return LeftAlone(max(0.0, self._until - now), cause)
        message = f"the host has not answered for {now - self._since:.0f} s: {cause}"
        return FetchError(
            cause.kind,
            message,
            status=cause.status,
            final_url=cause.final_url,
            transient=True,
            is_host=True,
        )

    @property
    def silence(self) -> str | None:
        """The reason why the host is left alone, if it is."""
        left = self._until - self._clock()
        if left <= 0.0 or self._cause is None:
            return None
        given_up = "given up, " if self._is_given_up else ""
        return f"{given_up}left alone for {left:.0f} s: {self._cause}"


def _is_well(status: int) -> bool:
    return status not in NO_ANSWER and status != 429


class Health:
    """The hosts of a crawl."""

    def __init__(self, clock: Callable[[], float], patience: float) -> None:
        """Begin without hosts; wait `patience` seconds for a host that is down."""
        self._clock = clock
        self._patience = patience
        self._hosts: dict[str, Host] = {}

    def of(self, host: str) -> Host:
        found = self._hosts.get(host)
        if found is None:
            found = self._hosts[host] = Host(self._clock, self._patience)
        return found

    def silent(self) -> dict[str, str]:
        """The hosts that are left alone, and the reasons."""
        found = {name: host.silence for name, host in self._hosts.items()}
        return {name: why for name, why in found.items() if why is not None}
