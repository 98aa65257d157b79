"""Clients of shared rates: request units for waiting requests, and return units that lapse.

For each backend one task sends the requests of all gates in one call, waits for the answer, and
begins again. So a process has one call in progress, however many keys wait.

Invariants:
- The task runs while requests wait, units are held or messages are due; otherwise there is no task.
- The task is shielded from cancellation, because units granted by a call that is cancelled would be
  lost. It ends by itself: each call has a time limit, and at most one more follows ``close``.
- A message that frees units is never sent twice.
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
from shoal._errors.exceptions import NotApplied, RateUnavailable, brief

from .gates import Gate
from .shared_rates import RateBackend, RateReply, RateRequest, SharedMeter

CALL = 5.0
"""Seconds after which a call of a backend is cancelled.

Half of the default ``patience``, so that a call that hangs is tried once more within it; and far
above any healthy round trip.
"""
FIRST_DELAY = 0.05
"""Seconds before the call after a failure; doubled with each further failure..."""
LAST_DELAY = 1.0
"""...up to this, so that a backend that is up again is found within a second."""
CLOCKS = 16
"""The latest answers from which the difference of the clocks is estimated.

The estimate contains the time that an answer took, so the smallest of several is the best, and
never too small. Old ones are dropped because clocks drift.
"""

StartTask = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]
"""Starts a task of the runtime, which outlives the run that needs it."""


@final
class SharedRateClients:
    """The clients of a runtime, by backend."""

    __slots__ = ("_by_backend", "chance", "clock", "refuse", "serve", "start")

    def __init__(
        self,
        clock: Clock,
        start: StartTask | None,
        chance: Callable[[], float],
        serve: Callable[[Gate], None],
        refuse: Callable[[Gate, Callable[[], Exception]], None],
    ) -> None:
        """Create the registry, without clients.

        Args:
            clock: The loop's clock.
            start: Starts a task; None: no rate is shared.
            chance: Returns random numbers in [0, 1).
            serve: Called with a gate that may have opened.
            refuse: Called with a gate whose rate can't be had, and a function that makes an error
                for each request that waits there.
        """
        # None of these changes, but for `start`, which `close` sets to None.
        self.clock: Clock = clock
        self.start: StartTask | None = start
        self.chance: Callable[[], float] = chance
        self.serve: Callable[[Gate], None] = serve
        self.refuse: Callable[[Gate, Callable[[], Exception]], None] = refuse
        # By identity, since backends need not be hashable. Each client keeps its backend alive, so
        # the id stays its own.
        self._by_backend: dict[int, SharedRateClient] = {}

    def want(self, gate: Gate) -> None:
        """Wake the client of a gate with waiting requests, or whose meter has a message to send."""
        meter = gate.shared
        if meter is None or self.start is None:
            return
        client = self._by_backend.get(id(meter.backend))
        if client is None:
            client = self._by_backend[id(meter.backend)] = SharedRateClient(meter.backend, self)
        # The client says so once, and then its task runs until it finds nothing more to do.
        if client.want(gate):
            self.start(client.live)

    def close(self) -> None:
        """Return all units held, to all backends."""
        for client in self._by_backend.values():
            # While their tasks run: each makes one more call, which returns the units. Without a
            # task there is nothing that is held.
            client.close()
        self._by_backend.clear()
        self.start = None  # breaks a reference cycle with the runtime

    def __repr__(self) -> str:
        return f"<SharedRateClients {list(self._by_backend.values())}>"


@final
class SharedRateClient:
    """The client of one backend."""

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

    def __init__(self, backend: RateBackend, means: SharedRateClients) -> None:
        self._backend: RateBackend = backend
        self._means: SharedRateClients = means
        self._clocks: deque[float] = deque(maxlen=CLOCKS)  # the loop's clock less the backend's
        # Gates for which there may be something to do, in the order in which they came.
        self._gates: dict[Gate, None] = {}
        self._news: Event | None = None  # set by `want`; None while the task doesn't wait
        # Set by `want`, before the task starts: there is never a second one.
        self._is_running: bool = False
        self._closing: bool = False  # never unset
        self._failing_since: float | None = None  # the start of the first of the failed calls
        self._retry_at: float = -math.inf  # no call before this
        self._delay: float = FIRST_DELAY

    @ki_protected
    def want(self, gate: Gate) -> bool:
        """Look at ``gate`` in the next round; return whether the caller must start the task."""
        self._gates[gate] = None
        if self._news is not None:
            self._news.set()
        is_idle, self._is_running = not self._is_running, True
        return is_idle

    def close(self) -> None:
        """Return all units held, in one call, and end."""
        self._closing = True
        for gate in self._gates:
            meter = gate.shared
            if meter is not None:
                meter.return_held()
        if self._news is not None:
            self._news.set()

    @ki_protected
    async def live(self) -> None:
        """Send requests until there is nothing to request, to hold or to send."""
        try:
            with CancelScope(shield=True):
                while self._gates:
                    await self._turn()
        finally:
            # No await between the last look at `_gates` and this: a gate that comes later finds
            # the task ended and starts the next one.
            self._is_running = False
            self._failing_since, self._retry_at, self._delay = None, -math.inf, FIRST_DELAY

    async def _turn(self) -> None:
        """Make one call if there is something to send, else wait until there may be."""
        now = self._means.clock()
        wanted: list[tuple[Gate, SharedMeter, tuple[float, ...]]] = []
        until = math.inf
        # A copy: serving a gate grants requests, and their callbacks may bring gates here.
        for gate in list(self._gates):
            meter = gate.shared
            if meter is None or meter.backend is not self._backend:  # its limits were changed
                del self._gates[gate]
                continue
            if meter.lapses_at <= now:
                # The gate's own timer may be due in this loop iteration, after this task.
                self._means.serve(gate)
                meter.lapse(now)
            costs, at = self._wants(gate, meter, now)
            if gate.posted and not (costs or meter.is_busy or at < math.inf or self._closing):
                # A slot that they need was taken by others since they came here. They wait for that
                # slot now: nothing at this gate would tell that it is free again. See
                # test_a_slot_that_was_taken_meanwhile_is_waited_for.
                self._means.serve(gate)
                costs, at = self._wants(gate, meter, now)
            if costs or meter.has_news or meter.is_alone:
                wanted.append((gate, meter, costs))
            until = min(until, at, meter.lapses_at)
            if not (costs or meter.is_busy or at < math.inf):
                del self._gates[gate]
        # On closing, the last call is made at once: the runtime waits for it.
        if wanted and (self._closing or self._retry_at <= now):
            await self._call(wanted)
        elif self._gates:
            await self._wait(min(until, self._retry_at) if wanted else until)

    def _wants(self, gate: Gate, meter: SharedMeter, now: float) -> tuple[tuple[float, ...], float]:
        """Return the costs to request at ``gate``, and when to look again if it is too early."""
        if self._closing or not gate.posted:
            return (), math.inf
        asks_at = max(gate.paused_until, meter.again_at)
        if asks_at > now:
            return (), asks_at
        # Twice the batch: as many as `wants` may decide on.
        return meter.wants(gate.costs(2 * meter.batch), now), math.inf

    async def _wait(self, until: float) -> None:
        self._news = Event()
        try:
            with CancelScope(deadline=until):
                await self._news.wait()
        finally:
            self._news = None

    async def _call(self, wanted: list[tuple[Gate, SharedMeter, tuple[float, ...]]]) -> None:
        """Send the requests of several gates, and distribute the answers."""
        # All requests are made before the call: what comes meanwhile belongs to the next one.
        asked = [(gate, meter, meter.request(costs)) for gate, meter, costs in wanted]
        requests = [request for _, _, request in asked]
        began = self._means.clock()
        try:
            # The most impatient rate decides, since all of them wait for the same answer.
            with fail_after(min(CALL, *(meter.patience for _, meter, _ in asked))):
                replies = list(await self._backend.settle(requests))
            # All answers are checked before any is applied.
            for request, reply in zip(requests, replies, strict=True):
                _check(request, reply)
        except Exception as error:  # noqa: BLE001 # waiting requests fail with it, in the end
            for _, meter, request in asked:
                meter.fail(request, error)
            self._fail(error, began)
            return
        self._failing_since, self._retry_at, self._delay = None, -math.inf, FIRST_DELAY
        now = self._means.clock()
        for (_, meter, request), reply in zip(asked, replies, strict=True):
            self._clocks.append(now - reply.now)
            meter.receive(request, reply, min(self._clocks), self._means.chance())
            if self._closing:
                meter.return_held()
        # After all answers are applied: a grant may need units of several of these gates.
        for gate, _, _ in asked:
            self._means.serve(gate)

    def _fail(self, error: Exception, began: float) -> None:
        """Schedule the next call; where patience has ended, refuse requests or go on ``alone``."""
        now = self._means.clock()
        since = self._failing_since = began if self._failing_since is None else self._failing_since
        if self._closing:
            # Not called again: no request waits, and units that were held have lapsed by then. See
            # test_closing_does_not_wait_long_for_a_backend_that_hangs.
            self._gates.clear()
            return
        self._retry_at = now + self._delay
        self._delay = min(2 * self._delay, LAST_DELAY)
        for gate in list(self._gates):
            meter = gate.shared
            # By its own patience: other gates of this backend may have more, and wait on.
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
        return f"<SharedRateClient of {self._backend!r} of {len(self._gates)} keys>"


def _check(request: RateRequest, reply: RateReply) -> None:
    # Backends are users' code. An answer that doesn't fit counts as a failed call, so it is made
    # again and in the end named; see test_a_backend_that_answers_nonsense_is_named.
    if not isinstance(reply, RateReply) or len(reply.turns) > len(request.costs):
        msg = f"settle() answered {brief(reply)} to {brief(request)}; see shoal.rates.RateBackend"
        raise TypeError(msg)


def failed_with(error: Exception) -> str:
    """Return how a backend has failed, for messages."""
    if isinstance(error, NotApplied) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _unavailable(
    meter: SharedMeter, backend: RateBackend, seconds: float, error: Exception
) -> Exception:
    what = failed_with(error)
    failure = RateUnavailable(
        f"the rate {meter.key!r} is shared through {backend!r}, which has failed for "
        f"{seconds:.3g} s ({what}). Is it up, and can this process reach it? Resume the run when "
        f"it can; or let this process continue without it: SharedRate(..., alone=Rate(...))"
    )
    failure.__cause__ = error
    return failure
