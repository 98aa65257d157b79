"""What the command ``shoal`` can do, a module for each of its commands."""

from __future__ import annotations

from ._store import Refused, open_store

__all__ = ["Refused", "open_store"]
