"""Backends for shared rates: one in this process, and one on a server for several processes.

Import ``shoal.rates.redis`` by that name; it needs the extra ``redis``.
"""

from __future__ import annotations

from ._memory import MemoryRates

__all__ = ["MemoryRates"]
