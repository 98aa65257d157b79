"""Clients of shared budgets: ask for what waiting requests may cost, and return what isn't needed.

Invariants:
- For each backend one task has one call in progress, and none while there is nothing to say.
- The task is shielded from cancellation, because what is granted by a call that is cancelled would
  count as spent. It ends by itself: each call has a time limit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import final

from anyio import CancelScope, fail_after, sleep

from shoal._concurrency.backend import Clock
from shoal._concurrency.cancellation import ki_protected
from shoal._errors.exceptions import NotApplied, RateUnavailable

from .gates import Gate
from .shared_budgets import BudgetBackend, BudgetReply, BudgetRequest, Grant
from .shared_rate_client import CALL, FIRST_DELAY, LAST_DELAY, StartTask, failed_with

PATIENCE = 10.0
"""Seconds for which a failing backend is called again before requests are refused."""
ASKED = 64
"""The most requests that are asked for at once."""


@final
class SharedBudgetClients:
    """The clients of a runtime, by backend."""

    __slots__ = (
        "_by_backend",
        "clock",
        "is_closing",
        "is_kept",
        "judge",
        "refuse",
        "serve",
        "start",
    )

    def __init__(
        self,
        clock: Clock,
        start: StartTask | None,
        serve: Callable[[Gate], None],
        judge: Callable[[Gate], None],
        refuse: Callable[[Gate, Callable[[], Exception]], None],
        *,
        is_kept: Callable[[Gate], bool],
    ) -> None:
        """Create the registry, without clients.

        Args:
            clock: The loop's clock.
            start: Starts a task; None: no budget is shared.
            serve: Called with a gate that may have opened.
            judge: Called with a gate whose first request was not granted.
            refuse: Called with a gate whose backend fails, and a function that makes an error.
            is_kept: Whether a request that waits elsewhere needs what was granted at a gate.
        """
        self.clock: Clock = clock
        self.start: StartTask | None = start
        self.serve: Callable[[Gate], None] = serve
        self.judge: Callable[[Gate], None] = judge
        self.refuse: Callable[[Gate, Callable[[], Exception]], None] = refuse
        self.is_kept: Callable[[Gate], bool] = is_kept
        self.is_closing: bool = False
        # By identity, since backends need not be hashable.
        self._by_backend: dict[int, SharedBudgetClient] = {}

    def want(self, gate: Gate, grant: Grant) -> None:
        """Wake the client of a gate with waiting requests, or with units to return."""
        client = self._by_backend.get(id(grant.backend))
        if client is None:
            client = self._by_backend[id(grant.backend)] = SharedBudgetClient(grant.backend, self)
        if self.start is not None and client.want(gate):
            self.start(client.live)

    def close(self) -> None:
        """Return what is held; the tasks end after that."""
        self.is_closing = True
        self.start = None  # breaks a reference cycle with the runtime


@final
class SharedBudgetClient:
    """The client of one backend."""

    __slots__ = ("_backend", "_failing_since", "_gates", "_is_running", "_means")

    def __init__(self, backend: BudgetBackend, means: SharedBudgetClients) -> None:
        self._backend: BudgetBackend = backend
        self._means: SharedBudgetClients = means
        self._gates: dict[Gate, None] = {}  # with something to say
        self._is_running: bool = False
        self._failing_since: float | None = None

    @ki_protected
    def want(self, gate: Gate) -> bool:
        """Say something about ``gate`` soon; return whether the caller must start the task."""
        self._gates[gate] = None
        is_idle, self._is_running = not self._is_running, True
        return is_idle

    @ki_protected
    async def live(self) -> None:
        """Call the backend until there is nothing more to say."""
        delay = 0.0
        try:
            with CancelScope(shield=True):
                while self._gates:
                    await sleep(delay)
                    failed = await self._call()
                    delay = 0.0 if not failed else min(max(2 * delay, FIRST_DELAY), LAST_DELAY)
        finally:
            self._is_running = False

    async def _call(self) -> bool:
        """Send what there is to say of all gates; return whether that failed."""
        gates, self._gates = self._gates, {}
        asked: list[tuple[Gate, Grant, BudgetRequest]] = []
        for gate in gates:
            request = self._request(gate)
            if request is not None and gate.purse is not None:
                grant = gate.purse.account.grant
                assert grant is not None, "it has a request"
                asked.append((gate, grant, request))
        if not asked:
            return False
        began = self._means.clock()
        try:
            with fail_after(CALL):
                replies = list(await self._backend.spend([request for _, _, request in asked]))
            for (_, _, request), reply in zip(asked, replies, strict=True):
                _check(request, reply)
        except Exception as error:  # noqa: BLE001 # waiting requests fail with it, in the end
            self._fail(asked, error, began)
            return not self._means.is_closing
        self._failing_since = None
        for (gate, grant, request), reply in zip(asked, replies, strict=True):
            self._receive(gate, grant, request, reply)
        return False

    def _request(self, gate: Gate) -> BudgetRequest | None:
        purse = gate.purse
        grant = None if purse is None else purse.account.grant
        if purse is None or grant is None:
            return None
        terms, units = purse.account.terms, grant.units
        costs: tuple[float, ...] = ()
        if gate.posted and not self._means.is_closing:
            costs = tuple(gate.costs(ASKED))
            if not costs:
                # A slot that they need was taken by others since they came here, and they wait for
                # that now. See test_a_slot_that_was_taken_meanwhile_is_waited_for.
                self._means.serve(gate)
                costs = tuple(gate.costs(ASKED))
        # The units held are for the first requests.
        if costs and costs[0] <= units:
            return None
        if not costs and (not units or (not self._means.is_closing and self._means.is_kept(gate))):
            return None
        # All of them are returned, in the message that asks for the next ones: one sum is enough.
        grant.units = 0.0
        return BudgetRequest(
            key=grant.key,
            amount=terms.amount,
            per=terms.per,
            returned=units,
            since=grant.since,
            costs=costs,
        )

    def _receive(
        self, gate: Gate, grant: Grant, request: BudgetRequest, reply: BudgetReply
    ) -> None:
        assert gate.purse is not None
        if grant.since != reply.since:
            gate.purse.account.begin_window()
            grant.units = 0.0
            grant.since = reply.since
        grant.used = reply.used
        granted = math.fsum(request.costs[: reply.granted])
        grant.units += granted
        if reply.granted < len(request.costs):
            grant.deny(request.costs[reply.granted], self._means.clock())
        self._means.serve(gate)
        if gate.posted:
            self._means.judge(gate)
        elif grant.units:
            self._gates[gate] = None  # nothing waits for it any more

    def _fail(
        self, asked: list[tuple[Gate, Grant, BudgetRequest]], error: Exception, began: float
    ) -> None:
        now = self._means.clock()
        since = self._failing_since = began if self._failing_since is None else self._failing_since
        for gate, grant, request in asked:
            # The call may have been carried out: what frees units is not said again, unless the
            # backend knows better.
            is_sure = isinstance(error, NotApplied)
            grant.units += request.returned if is_sure else min(0.0, request.returned)
            if self._means.is_closing:
                continue
            self._gates[gate] = None
            if now - since >= PATIENCE:
                self._means.refuse(gate, partial(_unavailable, grant, now - since, error))
                if not gate.posted and not grant.units:
                    del self._gates[gate]


def _check(request: BudgetRequest, reply: BudgetReply) -> None:
    # Backends are users' code; an answer that doesn't fit counts as a failed call.
    if not isinstance(reply, BudgetReply) or not 0 <= reply.granted <= len(request.costs):
        msg = f"spend() answered {reply!r} to {request!r}; see shoal.rates.BudgetBackend"
        raise TypeError(msg)


def _unavailable(grant: Grant, seconds: float, error: Exception) -> Exception:
    what = failed_with(error)
    failure = RateUnavailable(
        f"the budget {grant.key!r} is shared through {grant.backend!r}, which has failed for "
        f"{seconds:.3g} s ({what}). Is it up, and can this process reach it? Resume the run when "
        f"it can"
    )
    failure.__cause__ = error
    return failure
