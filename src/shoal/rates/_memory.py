"""Rates kept in memory: the shortest answer to what a backend must do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from anyio import current_time
from anyio.lowlevel import checkpoint

from shoal._limits.shared_rates import RateReply, RateRequest, RateState, reckon

SWEEP = 64
"""Keys that are kept without looking whether some could be forgotten."""


@final
class MemoryRates:
    """Keeps rates in this process, for several runtimes of one event loop; for tests, above all.

    Nothing fails and nothing is lost, but for what is lost with the process. Its clock is the
    loop's, virtual ones included.

    Examples:
        >>> from shoal import Limits, Rate, SharedRate
        >>> openai = SharedRate(Rate(100, per=1.0, burst=10), "openai", MemoryRates())
        >>> limits = Limits(20) & Limits(rate=openai)
    """

    def __init__(self) -> None:
        """Keep nothing yet."""
        self._states: dict[str, RateState] = {}
        self._sweep_at = SWEEP

    async def settle(self, requests: Sequence[RateRequest]) -> Sequence[RateReply]:
        """Apply requests; see ``RateBackend``."""
        await checkpoint()
        now = current_time()
        replies: list[RateReply] = []
        for request in requests:
            self._states[request.key], reply = reckon(self._states.get(request.key), now, request)
            replies.append(reply)
        if len(self._states) >= self._sweep_at:
            self._states = {
                key: state
                for key, state in self._states.items()
                if max(state.tat, state.last) > now
            }
            self._sweep_at = max(SWEEP, 2 * len(self._states))
        return replies

    def __repr__(self) -> str:
        return "MemoryRates()"
