"""What keeps rates that are shared: in this process, or at a server for several.

``shoal.rates.redis`` needs the extra ``redis``; it is imported by that name.
"""

from __future__ import annotations

from ._memory import MemoryRates

__all__ = ["MemoryRates"]
