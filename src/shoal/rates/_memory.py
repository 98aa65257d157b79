"""A backend that keeps shared rates and budgets in memory: the shortest example of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from anyio import current_time
from anyio.lowlevel import checkpoint

from shoal._limits.shared_budgets import BudgetReply, BudgetRequest, BudgetState, reckon_budget
from shoal._limits.shared_rates import RateReply, RateRequest, RateState, reckon

SWEEP = 64
"""Keys that are kept before the first search for idle ones: few keys are not worth a search."""


@final
class MemoryRates:
    """Keeps shared rates in this process, for several runtimes of one event loop. Made for tests.

    It never fails, and forgets everything when the process ends. Its clock is the loop's, virtual
    ones included.

    Examples:
        >>> from shoal import Limits, Rate, SharedRate
        >>> openai = SharedRate(Rate(100, per=1.0, burst=10), "openai", MemoryRates())
        >>> limits = Limits(20) & Limits(rate=openai)
    """

    def __init__(self) -> None:
        """Start with no rates."""
        self._states: dict[str, RateState] = {}
        self._budgets: dict[str, BudgetState] = {}
        self._sweep_at = SWEEP

    async def settle(self, requests: Sequence[RateRequest]) -> Sequence[RateReply]:
        """Apply requests in order; see ``RateBackend``."""
        await checkpoint()
        now = current_time()
        replies: list[RateReply] = []
        for request in requests:
            self._states[request.key], reply = reckon(self._states.get(request.key), now, request)
            replies.append(reply)
        # A key whose turns are all in the past is as good as unknown: forgetting it changes no
        # reply. The next search comes after as many new keys as were kept: O(1) for each.
        if len(self._states) >= self._sweep_at:
            self._states = {
                key: state
                for key, state in self._states.items()
                if max(state.tat, state.last) > now
            }
            self._sweep_at = max(SWEEP, 2 * len(self._states))
        return replies

    async def spend(self, requests: Sequence[BudgetRequest]) -> Sequence[BudgetReply]:
        """Apply requests in order; see ``BudgetBackend``."""
        await checkpoint()
        replies: list[BudgetReply] = []
        for one in requests:
            state = self._budgets.get(one.key)
            self._budgets[one.key], reply = reckon_budget(state, current_time(), one)
            replies.append(reply)
        return replies

    def __repr__(self) -> str:
        return "MemoryRates()"
