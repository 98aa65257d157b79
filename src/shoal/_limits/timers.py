"""Alarms: one timer for all gates that open by themselves. Imports gates.

Invariants:
- At most one timer runs, for the gate that opens next; none while nobody waits for a time.
- A gate has one time at which it is looked at. An earlier one replaces it; a later one is found out
  when it is looked at.
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
"""Has a function called at a time, and returns what takes that back."""


@final
class Alarms:
    """Has gates looked at when their time has come."""

    __slots__ = ("_clock", "_due", "_look", "_numbers", "_set", "_silence")

    def __init__(
        self, clock: Clock, set_alarm: SetAlarm | None, look: Callable[[Gate, float], None]
    ) -> None:
        """Wait for nothing.

        Args:
            clock: The loop's.
            set_alarm: Sets the timer; None: nothing will be waited for.
            look: Called with a gate, and the time at which that was to happen.
        """
        self._clock: Clock = clock
        self._set: SetAlarm | None = set_alarm
        self._look: Callable[[Gate, float], None] = look
        self._due: list[tuple[float, int, Gate]] = []  # a heap
        self._numbers: count[int] = count()
        self._silence: Callable[[], object] | None = None  # takes back the timer

    def set(self, when: float, gate: Gate) -> None:
        """See to it that ``gate`` is looked at then, or before."""
        if gate.alarm_at <= when:
            return
        gate.alarm_at = when
        is_next = not self._due or when < self._due[0][0]
        heappush(self._due, (when, next(self._numbers), gate))
        if is_next:
            self._set_timer()

    def clear(self) -> None:
        """Forget all: nobody waits for a time any more."""
        for _, _, gate in self._due:
            gate.alarm_at = math.inf
        self._due.clear()
        self._stop_timer()

    def close(self) -> None:
        """Look at the clock no more."""
        self._stop_timer()
        self._set = None  # which leads back to the runtime

    def _set_timer(self) -> None:
        self._stop_timer()
        if self._due and self._set is not None:
            self._silence = self._set(self._due[0][0], self._ring)

    def _stop_timer(self) -> None:
        silence, self._silence = self._silence, None
        if silence is not None:
            silence()

    @ki_protected
    def _ring(self) -> None:
        self._silence = None
        now = self._clock()
        while self._due and self._due[0][0] <= now:
            when, _, gate = heappop(self._due)
            if gate.alarm_at == when:
                gate.alarm_at = math.inf
                self._look(gate, when)
        self._set_timer()

    def __repr__(self) -> str:
        return f"<Alarms, {len(self._due)} set>"
