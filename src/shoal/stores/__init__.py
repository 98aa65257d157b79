"""Stores keep runs, so that they can be resumed after a crash."""

from __future__ import annotations

from ._memory import MemoryStore

__all__ = ["MemoryStore"]
