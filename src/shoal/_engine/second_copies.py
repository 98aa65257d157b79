"""The second copies that the fan-outs of one root run have made, for reports about it.

Invariants:
- Memory is bounded: counts by the name of the fan-out, and the last copies.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import final

from shoal._events.identity import RunPath
from shoal._events.report import HedgeUse, SecondCopy

NAMES = 50
"""Fan-outs that are told apart; an action may name its own as it likes."""
OTHERS = "others"
LAST = 20
"""Copies of which a report tells each, besides those at work."""


@final
class Copied:
    """One second copy."""

    __slots__ = ("after", "attempt", "began_at", "ended_at", "owner", "path", "step", "used")

    def __init__(self, owner: str, path: RunPath, step: str, now: float) -> None:
        """Begin with it at work; see ``SecondCopy``."""
        self.owner: str = owner
        self.path: RunPath = path
        self.step: str = step
        self.attempt: int = 1
        self.after: float = 0.0
        self.began_at: float = now
        self.ended_at: float | None = None
        self.used: bool | None = None

    def told(self, now: float) -> SecondCopy:
        """Return it as a report tells it."""
        until = now if self.ended_at is None else self.ended_at
        return SecondCopy(
            path=self.path,
            step=self.step,
            attempt=self.attempt,
            after=self.after,
            seconds=max(0.0, until - self.began_at),
            used=self.used,
        )


@final
class SecondCopies:
    """The second copies of one execution of a root run."""

    __slots__ = ("_clock", "_counts", "_last", "_running")

    def __init__(self, clock: Callable[[], float]) -> None:
        """Begin without any."""
        self._clock = clock
        self._counts: dict[str, list[int]] = {}  # how many, how many of them used and at work
        self._running: OrderedDict[Copied, None] = OrderedDict()
        self._last: list[Copied] = []

    def began(self, owner: str, path: RunPath, step: str) -> Copied:
        """Count a copy that begins to work; ``ended`` counts its end.

        Args:
            owner: The name of the fan-out.
            path: The child.
            step: The action.
        """
        if owner not in self._counts and len(self._counts) >= NAMES:
            owner = OTHERS
        counts = self._counts.setdefault(owner, [0, 0, 0])
        counts[0] += 1
        counts[2] += 1
        copied = Copied(owner, path, step, self._clock())
        self._running[copied] = None
        return copied

    def ended(self, copied: Copied, *, used: bool) -> None:
        """Count the end of a copy, and whether the step goes on with its result."""
        counts = self._counts[copied.owner]
        counts[1] += used
        counts[2] -= 1
        copied.used, copied.ended_at = used, self._clock()
        del self._running[copied]
        self._last.append(copied)
        if len(self._last) > 2 * LAST:
            del self._last[:LAST]

    def uses(self) -> tuple[HedgeUse, ...]:
        """Return how many there were, by fan-out."""
        return tuple(
            HedgeUse(owner=owner, copies=copies, used=used, running=running)
            for owner, (copies, used, running) in self._counts.items()
        )

    def all(self) -> tuple[SecondCopy, ...]:
        """Return the last copies that have ended, and those at work, at most 20 of each."""
        now = self._clock()
        running = list(self._running)[:LAST]
        return tuple([one.told(now) for one in (*self._last[-LAST:], *running)])
