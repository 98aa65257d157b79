"""How long calls take, and so how many of them are sent ahead to a worker.

A worker that has ended a call waits for the next one for as long as a message takes both ways, some
200 microseconds. Calls that were sent ahead fill that time. And each answer that wakes the process
of the run costs that some 250 microseconds, since other processes have used its caches meanwhile;
the next answers in the same batch cost 70. So a pool looks at a worker that has enough to do after
some ``PAUSE``, and takes all answers together.

But a call that was sent ahead waits behind another one, although a worker elsewhere may be idle. So
there are as many as fill ``WINDOW`` seconds, at least one, at most ``MOST``, and none behind calls
that take longer than ``LONG``.
"""

from __future__ import annotations

import math
from typing import final

WINDOW = 0.03
"""Seconds of work that are sent ahead: what a worker has to do in a pause of the pool, and as much
again, since estimates are wrong and the pool may be busy."""
PAUSE = 0.015
"""Seconds for which a pool doesn't look at a worker that is busy for as long: three calls of 5 ms.
That is how much later a result may come, and only if others are at work behind it."""
LONG = 0.05
"""Seconds. A worker that has ended such a call and waits 200 microseconds loses 0.4 %. On a busy
machine it waits 10 ms for its turn and the pool's, and the same calls of 5 ms seem to take 30."""
MOST = 64
"""Calls that are sent ahead at the most, for quick functions: for one of 50 microseconds, more than
3 ms of work. Larger batches save nothing."""
_SLOWER = 0.1
_QUICKER = 0.3
"""Shares by which the estimate follows a call that took longer, and one that took less time. On a
busy machine any call may take several times what it needs, so the quick ones say more. Calls that
were sent behind one that really is long are taken back."""


@final
class Pace:
    """An estimate of how long a call takes."""

    __slots__ = ("seconds",)

    def __init__(self) -> None:
        self.seconds: float | None = None
        """The estimate; None before the first call has ended."""

    def learn(self, seconds: float) -> None:
        """Take into account that a call took so many seconds."""
        before = self.seconds
        if before is None:
            self.seconds = seconds
        else:
            self.seconds = before + (seconds - before) * (_SLOWER if seconds > before else _QUICKER)

    def ahead(self, window: float = WINDOW) -> int:
        """Return how many calls are sent ahead: none before the first one has ended."""
        seconds = self.seconds
        if seconds is None or seconds > LONG:
            return 0
        return max(1, min(MOST, math.ceil(window / seconds) if seconds > 0 else MOST))

    def __repr__(self) -> str:
        return f"<Pace {self.seconds}, {self.ahead()} ahead>"
