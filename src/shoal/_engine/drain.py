"""``Drain``: whether an execution starts nothing more, and what is called when that begins.

Invariants:
- Once an execution is drained it stays so: what it has left unstarted is started by the next one.
- The first reason counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final


@final
class Drain:
    """Whether an execution starts nothing more; there is one for each execution."""

    __slots__ = ("_calls", "has_cut", "leaves_open", "reason")

    def __init__(self) -> None:
        # Read before each step. Set once, by `begin`, and never reset.
        self.reason: str | None = None
        """Why nothing more is started; None as long as steps and children start."""
        self.has_cut: bool = False
        """Whether something was left unstarted because of that."""
        self.leaves_open: bool = False
        """Whether a run that halts for it has no end in its store, so that another process goes on.

        Set before ``reason``, if the process stops.
        """
        # Groups of children, permits that are waited for, and pauses before another attempt. In a
        # dict, since a set would call them in another order in each process.
        self._calls: dict[Callable[[], object], None] = {}

    def begin(self, reason: str) -> None:
        """Start nothing more from now on; further calls do nothing."""
        if self.reason is not None:
            return
        # First: what is called may look at it.
        self.reason = reason
        for call in tuple(self._calls):  # a copy: what is called may be removed meanwhile
            if call in self._calls:
                call()

    @property
    def halted_by(self) -> str:
        """Why a run that is halted has left something unstarted; empty if it only waits."""
        return (self.reason or "") if self.has_cut else ""

    def add(self, call: Callable[[], object]) -> None:
        """Have ``begin`` call ``call``, which must not raise."""
        self._calls[call] = None

    def remove(self, call: Callable[[], object]) -> None:
        """Have ``begin`` not call it any more."""
        self._calls.pop(call, None)
