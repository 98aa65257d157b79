"""Timers: one timer of the loop for all gates that open at a known time.

Invariants:
- At most one timer of the loop is set, for the gate that opens next; none if no gate needs one.
- A gate has at most one alarm. An earlier time replaces it. A later time doesn't: when the alarm
  rings, the scheduler finds the gate closed and sets the next one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from typing import final

from shoal._concurrency.backend import Clock
from shoal._concurrency.cancellation import ki_protected

from .gates import Gate

SetAlarm = Callable[[float, Callable[[], None]], Callable[[], object]]
"""Schedules a call at a time, and returns a function that cancels it."""


@final
class GateTimers:
    """Serves gates at the times at which they open."""

    __slots__ = ("_clock", "_due", "_look", "_numbers", "_set", "_silence")

    def __init__(
        self, clock: Clock, set_alarm: SetAlarm | None, look: Callable[[Gate, float], None]
    ) -> None:
        """Create a timer that is not set.

        Args:
            clock: The loop's clock.
            set_alarm: Schedules a call; None: no alarm ever rings.
            look: Called with a gate and the time for which its alarm was set.
        """
        self._clock: Clock = clock
        self._set: SetAlarm | None = set_alarm
        self._look: Callable[[Gate, float], None] = look
        # A heap. An alarm that was replaced stays in it; its time is no longer `gate.alarm_at`.
        self._due: list[tuple[float, int, Gate]] = []
        self._numbers: count[int] = count()  # break ties, since gates can't be compared
        self._silence: Callable[[], object] | None = None  # cancels the timer of the loop

    def set(self, when: float, gate: Gate) -> None:
        """Serve ``gate`` at ``when``, unless it is served before that anyway."""
        if gate.alarm_at <= when:
            return
        # The old entry stays in the heap, and is told apart by this time.
        gate.alarm_at = when
        # Most alarms are later than the first, so the timer of the loop rarely changes.
        is_next = not self._due or when < self._due[0][0]
        heappush(self._due, (when, next(self._numbers), gate))
        if is_next:
            self._set_timer()

    def clear(self) -> None:
        """Remove all alarms: no request waits any more."""
        for _, _, gate in self._due:
            gate.alarm_at = math.inf
        self._due.clear()
        self._stop_timer()

    def close(self) -> None:
        """Stop the timer for good."""
        self._stop_timer()
        self._set = None  # breaks a reference cycle with the runtime

    def _set_timer(self) -> None:
        self._stop_timer()
        if self._due and self._set is not None:
            self._silence = self._set(self._due[0][0], self._ring)

    def _stop_timer(self) -> None:
        # Forgotten before it is called, so that a timer is cancelled once.
        silence, self._silence = self._silence, None
        if silence is not None:
            silence()

    @ki_protected
    def _ring(self) -> None:
        self._silence = None
        # Read once: a gate that opens while others are served is left to the next timer.
        now = self._clock()
        while self._due and self._due[0][0] <= now:
            when, _, gate = heappop(self._due)
            if gate.alarm_at == when:  # else it was replaced
                # Before the look, which may set the next alarm of this gate.
                gate.alarm_at = math.inf
                self._look(gate, when)
        self._set_timer()

    def __repr__(self) -> str:
        return f"<GateTimers, {len(self._due)} set>"
