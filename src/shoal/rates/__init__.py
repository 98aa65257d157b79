"""Shared rates: the interface of a backend, for its authors, and a backend in this process.

A ``RateBackend`` keeps a ``RateState`` for each key, on a server or in this process. It answers
each ``RateRequest`` with a ``RateReply``, and ``reckon`` is the arithmetic between them.
A ``BudgetBackend`` does the same for ``shoal.Budget(backend=...)``, with ``reckon_budget``.
``MemoryRates`` is the shortest example of one. Import ``shoal.rates.redis`` and
``shoal.rates.postgres`` by these names; they need the extras ``redis`` and ``postgres``. Programs
that only use a rate write ``shoal.SharedRate``.

Examples:
    >>> import anyio
    >>> from shoal.rates import MemoryRates, RateBackend, RateReply, RateRequest
    >>> from collections.abc import Sequence
    >>> class Printing:
    ...     def __init__(self, backend: RateBackend) -> None:
    ...         self.backend = backend
    ...
    ...     async def settle(self, requests: Sequence[RateRequest]) -> Sequence[RateReply]:
    ...         print(f"{len(requests)} requests")
    ...         return await self.backend.settle(requests)
"""

from __future__ import annotations

from shoal._limits.headers import RateHeaders, Remaining, read_headers
from shoal._limits.shared_budgets import (
    BudgetBackend,
    BudgetReply,
    BudgetRequest,
    BudgetState,
    reckon_budget,
)
from shoal._limits.shared_rates import RateBackend, RateReply, RateRequest, RateState, reckon

from ._memory import MemoryRates

__all__ = [
    "BudgetBackend",
    "BudgetReply",
    "BudgetRequest",
    "BudgetState",
    "MemoryRates",
    "RateBackend",
    "RateHeaders",
    "RateReply",
    "RateRequest",
    "RateState",
    "Remaining",
    "read_headers",
    "reckon",
    "reckon_budget",
]
