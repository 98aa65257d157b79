"""What the command ``shoal`` can do, a module for each of its commands."""

from __future__ import annotations

from ._lines import Unwritten, flush, shown
from ._store import Refused, open_store

__all__ = ["Refused", "Unwritten", "flush", "open_store", "shown"]
