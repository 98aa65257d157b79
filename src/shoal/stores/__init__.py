"""Stores: where runs are kept, so that they can go on after a crash."""

from __future__ import annotations

from ._memory import MemoryStore

__all__ = ["MemoryStore"]
