"""Budgets that several processes share: what a backend is asked, how it reckons, what is granted.

A *backend* keeps for each key how much is used. A process asks for what its requests may cost in
the worst case, and returns what it was granted and didn't need. What a process holds when it dies
stays used: those are the worst cases of its attempts under way.

Invariants:
- What all processes together hold and have spent is at most the amount.
- A message that frees units is never sent twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, final, runtime_checkable

AGAIN = 1.0
"""Seconds for which a request is refused without asking again, if a smaller one was just denied."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRequest:
    """What a process returns, reports and asks for of one key; applied in this order."""

    key: str
    """Identifies the budget and, with ``by=``, the key."""
    amount: float
    """How much there is."""
    per: float | None = None
    """The seconds of a window; None: there is one for ever."""
    returned: float = 0.0
    """Units that were granted and not used; negative: units used beyond what was granted."""
    since: float | None = None
    """The window in which those were granted, by its beginning. In another one nothing changes."""
    costs: tuple[float, ...] = ()
    """The units that each waiting request asks for, in order."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetReply:
    """The answer of a backend to a ``BudgetRequest``."""

    since: float
    """When the present window began, by the backend's clock."""
    used: float
    """What all processes hold and have spent in it, what is granted here included."""
    granted: int = 0
    """How many of ``costs`` are granted: the first ones."""


@final
@dataclass(frozen=True, slots=True)
class BudgetState:
    """The state that a backend keeps for one key. With ``per`` it may be dropped after that."""

    used: float
    since: float


@runtime_checkable
class BudgetBackend(Protocol):
    """Keeps budgets that several processes share: a rate backend that has this method as well.

    A backend applies ``reckon_budget`` to the state of each key, atomically, one request after the
    other, and with one clock for all processes. It keeps the state of a budget without ``per`` for
    good.
    """

    async def spend(self, requests: Sequence[BudgetRequest]) -> Sequence[BudgetReply]:
        """Apply requests, each for a different key, and return the replies in the same order.

        Each runtime has at most one call in progress. A call that takes some seconds is cancelled.

        Args:
            requests: At least one.

        Raises:
            Exception: The requests could not be applied. The backend is called again.
            NotApplied: It is certain that none was, so what is returned is said once more.
        """
        ...


def reckon_budget(
    state: BudgetState | None, now: float, request: BudgetRequest
) -> tuple[BudgetState, BudgetReply]:
    """Apply a request to the state of its key, as every ``BudgetBackend`` does.

    Args:
        state: The stored state of the key; None if there is none.
        now: The backend's clock, in seconds.
        request: The request of a process.

    Returns the new state and the reply.

    Examples:
        >>> request = BudgetRequest(key="openai", amount=5.0, costs=(3.0, 3.0))
        >>> state, reply = reckon_budget(None, 100.0, request)
        >>> reply.granted, reply.used
        (1, 3.0)
    """
    used, since = (0.0, now) if state is None else (state.used, state.since)
    if request.per is not None and now >= since + request.per:
        used, since = 0.0, now
    if request.since == since:
        used = max(0.0, used - request.returned)
    granted = 0
    for cost in request.costs:
        # As much as rounding errors of many sums may come to.
        if used + cost > request.amount + 1e-9 * max(1.0, request.amount):
            break  # in order: a cheaper request further on doesn't overtake
        used += cost
        granted += 1
    return BudgetState(used, since), BudgetReply(since=since, used=used, granted=granted)


@final
class Grant:
    """What this process was granted of one key of a shared budget, and doesn't use yet."""

    __slots__ = ("_denied", "_denied_at", "backend", "key", "since", "units", "used")

    def __init__(self, backend: BudgetBackend, key: str) -> None:
        """Create a grant of nothing.

        Args:
            backend: The backend.
            key: The name of the budget and key there.
        """
        self.backend: BudgetBackend = backend
        self.key: str = key
        self.units: float = 0.0
        """Units granted and not set aside; negative: used beyond what was granted."""
        self.since: float | None = None
        """The window in which they were granted; None before the first answer."""
        self.used: float = 0.0
        """What all processes hold and have spent, by the last answer."""
        self._denied: float = math.inf
        self._denied_at: float = -math.inf

    def deny(self, cost: float, now: float) -> None:
        """Note that the backend has nothing left for a request of this cost."""
        self._denied, self._denied_at = cost, now

    def is_denied(self, cost: float, now: float) -> bool:
        """Return whether a request of this cost was denied, or a smaller one was just now."""
        return cost >= self._denied and now - self._denied_at < AGAIN

    def __repr__(self) -> str:
        return f"<Grant of {self.key!r}: {self.units:g} of {self.used:g} used>"
