"""Rates that several processes share: what a backend implements, for its authors.

A ``RateBackend`` keeps a ``RateState`` for each key, at a server or in this process. It answers
each ``RateRequest`` with a ``RateReply``, and ``reckon`` is the arithmetic between them.
``MemoryRates`` shows all of it in a few lines. ``shoal.rates.redis`` needs the extra ``redis``, and
is imported by that name. Programs that only use a rate write ``shoal.SharedRate``.

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

from shoal._limits.shared_rates import RateBackend, RateReply, RateRequest, RateState, reckon

from ._memory import MemoryRates

__all__ = ["MemoryRates", "RateBackend", "RateReply", "RateRequest", "RateState", "reckon"]
