"""Supply: has shared rates granted what is waited for, and gives back what isn't. Imports gates.

One task for each backend says what there is to say of all gates in one message, waits for the
answer, and begins again; so a process has one call under way, however many keys wait.

Invariants:
- It lives while something is waited for, held, or yet to be told; else there is no task.
- Nobody's cancellation reaches it: what it has asked for would be lost. Each call has its time, and
  after ``close`` there is one more at most; so it ends by itself.
- Nothing that frees units is said twice.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, final

from anyio import CancelScope, Event, fail_after

from shoal._concurrency.backend import Clock
from shoal._concurrency.cancellation import ki_protected
from shoal._errors.exceptions import RateUnavailable, brief

from .gates import Gate
from .shared_rates import RateBackend, RateReply, RateRequest, SharedMeter

CALL = 5.0
"""Seconds in which a backend has to answer."""
FIRST_DELAY = 0.05
"""Seconds before it is asked again after a failure; twice as many after the next..."""
LAST_DELAY = 1.0
"""...up to this."""
CLOCKS = 16
"""Answers by which clocks are compared: by the quickest of them, so nothing goes too soon."""

StartTask = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]
"""Starts a task of the runtime's own."""


@final
class Supplies:
    """What a runtime is supplied with, by backend."""

    __slots__ = ("_by_backend", "chance", "clock", "refuse", "serve", "start")

    def __init__(
        self,
        clock: Clock,
        start: StartTask | None,
        chance: Callable[[], float],
        serve: Callable[[Gate], None],
        refuse: Callable[[Gate, Callable[[], Exception]], None],
    ) -> None:
        """Be supplied with nothing.

        Args:
            clock: The loop's.
            start: Starts a task; None: nothing will be waited for.
            chance: Makes random numbers from 0 up to, but not, 1.
            serve: Called with a gate that may have opened.
            refuse: Called with one that won't, and what makes the error for each who waits there.
        """
        self.clock: Clock = clock
        self.start: StartTask | None = start
        self.chance: Callable[[], float] = chance
        self.serve: Callable[[Gate], None] = serve
        self.refuse: Callable[[Gate, Callable[[], Exception]], None] = refuse
        self._by_backend: dict[int, Supply] = {}  # by identity; each keeps its backend alive

    def want(self, gate: Gate) -> None:
        """See to a gate with a shared rate: somebody waits there, or the backend is to be told."""
        meter = gate.shared
        if meter is None or self.start is None:
            return
        supply = self._by_backend.get(id(meter.backend))
        if supply is None:
            supply = self._by_backend[id(meter.backend)] = Supply(meter.backend, self)
        if supply.want(gate):
            self.start(supply.live)

    def close(self) -> None:
        """Give back what is held."""
        for supply in self._by_backend.values():
            supply.close()
        self._by_backend.clear()
        self.start = None  # which leads back to the runtime

    def __repr__(self) -> str:
        return f"<Supplies {list(self._by_backend.values())}>"


@final
class Supply:
    """What a runtime is supplied with by one backend."""

    __slots__ = (
        "_backend",
        "_clocks",
        "_closing",
        "_delay",
        "_failing_since",
        "_gates",
        "_is_running",
        "_means",
        "_news",
        "_retry_at",
    )

    def __init__(self, backend: RateBackend, means: Supplies) -> None:
        """Have nothing to do."""
        self._backend: RateBackend = backend
        self._means: Supplies = means
        self._clocks: deque[float] = deque(maxlen=CLOCKS)
        self._gates: dict[Gate, None] = {}  # what there may be something to do for
        self._news: Event | None = None  # set when there is more; None: nobody waits for that
        self._is_running: bool = False
        self._closing: bool = False
        self._failing_since: float | None = None
        self._retry_at: float = -math.inf
        self._delay: float = FIRST_DELAY

    @ki_protected
    def want(self, gate: Gate) -> bool:
        """See to ``gate``, soon; return whether a task has to be started for that."""
        self._gates[gate] = None
        if self._news is not None:
            self._news.set()
        is_idle, self._is_running = not self._is_running, True
        return is_idle

    def close(self) -> None:
        """Give back what is held, in one call, and end."""
        self._closing = True
        for gate in self._gates:
            meter = gate.shared
            if meter is not None:
                meter.let_go()
        if self._news is not None:
            self._news.set()

    @ki_protected
    async def live(self) -> None:
        """Say what there is to say, until there is nothing more."""
        try:
            with CancelScope(shield=True):
                while self._gates:
                    await self._turn()
        finally:
            self._is_running = False
            self._failing_since, self._retry_at, self._delay = None, -math.inf, FIRST_DELAY

    async def _turn(self) -> None:
        """Make one call, if there is something to say; else wait until there may be."""
        now = self._means.clock()
        wanted: list[tuple[Gate, SharedMeter, tuple[float, ...]]] = []
        until = math.inf
        for gate in list(self._gates):
            meter = gate.shared
            if meter is None or meter.backend is not self._backend:  # its limits were changed
                del self._gates[gate]
                continue
            if meter.lapses_at <= now:
                self._means.serve(gate)  # in case that it was to be served now, too
                meter.lapse(now)
            costs, at = self._wants(gate, meter, now)
            if costs or meter.has_news or meter.is_alone:
                wanted.append((gate, meter, costs))
            until = min(until, at, meter.lapses_at)
            if not (costs or meter.is_busy or at < math.inf):
                del self._gates[gate]
        if wanted and (self._closing or self._retry_at <= now):
            await self._call(wanted)
        elif self._gates:
            await self._wait(min(until, self._retry_at) if wanted else until)

    def _wants(self, gate: Gate, meter: SharedMeter, now: float) -> tuple[tuple[float, ...], float]:
        """Say what is to be asked for at ``gate``, and when that has to be looked at again."""
        if self._closing or not gate.posted:
            return (), math.inf
        asks_at = max(gate.paused_until, meter.again_at)
        if asks_at > now:
            return (), asks_at
        return meter.wants(gate.costs(2 * meter.batch), now), math.inf

    async def _wait(self, until: float) -> None:
        self._news = Event()
        try:
            with CancelScope(deadline=until):
                await self._news.wait()
        finally:
            self._news = None

    async def _call(self, wanted: list[tuple[Gate, SharedMeter, tuple[float, ...]]]) -> None:
        """Say what there is to say, and hear the answer."""
        asked = [(gate, meter, meter.request(costs)) for gate, meter, costs in wanted]
        requests = [request for _, _, request in asked]
        began = self._means.clock()
        try:
            with fail_after(min(CALL, *(meter.patience for _, meter, _ in asked))):
                replies = list(await self._backend.settle(requests))
            for request, reply in zip(requests, replies, strict=True):
                _check(request, reply)
        except Exception as error:  # noqa: BLE001 # told to those who wait, in the end
            for _, meter, request in asked:
                meter.fail(request)
            self._fail(error, began)
            return
        self._failing_since, self._retry_at, self._delay = None, -math.inf, FIRST_DELAY
        now = self._means.clock()
        for (_, meter, request), reply in zip(asked, replies, strict=True):
            self._clocks.append(now - reply.now)
            meter.receive(request, reply, min(self._clocks), self._means.chance())
            if self._closing:
                meter.let_go()
        for gate, _, _ in asked:
            self._means.serve(gate)

    def _fail(self, error: Exception, began: float) -> None:
        """Be patient, or tell those who wait that there is no sense in it."""
        now = self._means.clock()
        since = self._failing_since = began if self._failing_since is None else self._failing_since
        if self._closing:  # nobody waits; what was held has lapsed by the time it could be said
            self._gates.clear()
            return
        self._retry_at = now + self._delay
        self._delay = min(2 * self._delay, LAST_DELAY)
        for gate in list(self._gates):
            meter = gate.shared
            if meter is None or meter.is_alone or now - since < meter.patience:
                continue
            if meter.alone is None:
                self._means.refuse(
                    gate, partial(_unavailable, meter, self._backend, now - since, error)
                )
            else:
                meter.is_alone = True
                self._means.serve(gate)

    def __repr__(self) -> str:
        return f"<Supply by {self._backend!r} of {len(self._gates)} keys>"


def _check(request: RateRequest, reply: RateReply) -> None:
    if not isinstance(reply, RateReply) or len(reply.turns) > len(request.costs):
        msg = f"settle() answered {brief(reply)} to {brief(request)}; see shoal.rates.RateBackend"
        raise TypeError(msg)


def _unavailable(
    meter: SharedMeter, backend: RateBackend, seconds: float, error: Exception
) -> Exception:
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    failure = RateUnavailable(
        f"the rate {meter.key!r} is shared through {backend!r}, of which nothing was to be had for "
        f"{seconds:.3g} s ({what}). Is it up, and does this process reach it? Resume the run when "
        f"it does; or let this process go on by itself meanwhile: SharedRate(..., alone=Rate(...))"
    )
    failure.__cause__ = error
    return failure
