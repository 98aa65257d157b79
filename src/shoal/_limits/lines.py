"""Lines: how many runs wait for a limit with ``waiting=``, and for how long.

Invariants:
- A run counts once, however much of it waits, because runs take turns: what a newcomer waits for
  are the turns of the other runs, and not all that these have waiting.
- A run that a limit has let in once, or that is in line, is never refused there.
"""

from __future__ import annotations

import math
from typing import Protocol, final

WINDOW = 10.0
"""Seconds over which the pace of a line fades.

A chosen number: long enough to span a few answers of a slow service, and short enough to follow an
outage within the seconds after which clients come back.
"""


class InLine(Protocol):
    """What stands in line: a run, with all that it has waiting."""

    let_in: set[object] | None
    """The limits with ``waiting=`` that have let it in; None: none has. Set by lines alone."""


@final
class Line:
    """The runs that wait at one gate of a limit with ``waiting=``."""

    __slots__ = ("_busy", "_level", "_level_at", "_since", "limit", "waiting")

    def __init__(self, limit: object) -> None:
        """Create an empty line of ``limit``, which may have one for each of its keys."""
        # Compared by identity: a run that was let in with one key is let in with all of them, since
        # it must not be refused half-way because it comes to another key.
        self.limit: object = limit
        self.waiting: dict[InLine, int] = {}
        """The runs that wait, and how many requests each of them has here."""
        # The seconds in which something has waited. Only these tell what the limit lets in if it
        # can: while nothing waits, it lets in what comes.
        self._busy: float = 0.0
        self._since: float = 0.0  # when something began to wait; only while something does
        # Requests that were let in after a wait, fading by the factor e in `WINDOW` busy seconds.
        # Without the buckets of a window, one number says how many there were of late.
        self._level: float = 0.0
        self._level_at: float = 0.0  # in busy seconds

    def join(self, run: InLine, now: float) -> None:
        """Count a request that begins to wait."""
        if not self.waiting:
            self._since = now
        self.waiting[run] = self.waiting.get(run, 0) + 1

    def leave(self, run: InLine, now: float) -> None:
        """Count off a request that waits no more."""
        # It may be missing: the limit got its `waiting=` while the request waited.
        left = self.waiting.get(run, 0) - 1
        if left > 0:
            self.waiting[run] = left
        elif left == 0:
            del self.waiting[run]
            if not self.waiting:
                self._busy += now - self._since

    def admit(self, run: InLine, now: float) -> None:
        """Note that a request was granted, before it leaves the line if it has waited."""
        if run.let_in is None:
            run.let_in = set()
        run.let_in.add(self.limit)
        if run in self.waiting:
            at = self._busy + now - self._since
            self._level = self._level * math.exp((self._level_at - at) / WINDOW) + 1.0
            self._level_at = at

    def is_over(self, run: InLine, most: int) -> bool:
        """Return whether a run that has just joined is one too many."""
        if run.let_in is not None and self.limit in run.let_in:
            return False
        return self.waiting.get(run) == 1 and len(self.waiting) > most

    def turns_in(self, runs: int, now: float, *, least: float | None = None) -> float:
        """Return the seconds in which so many runs have a turn, at the pace of late.

        Args:
            runs: How many.
            now: The time.
            least: The seconds that they need by the rate of the limit; None: it has none.
        """
        busy = self._busy + (now - self._since if self.waiting else 0.0)
        level = self._level * math.exp((self._level_at - busy) / WINDOW)
        if level * WINDOW < 1.0 or busy <= 0.0:
            # Nothing has moved of late: it won't sooner than after as long again.
            return max(1.0, busy - self._level_at) if least is None else least
        # A line that was busy for a moment has let in what it could in that moment, and not in a
        # whole window.
        pace = level / (WINDOW * -math.expm1(-busy / WINDOW))
        return max(runs / pace, least or 0.0)

    def __repr__(self) -> str:
        return f"<Line of {len(self.waiting)}>"
