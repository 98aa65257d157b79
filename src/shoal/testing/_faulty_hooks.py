"""Hooks in a simulation: one that keeps all events, and a guard that fails."""

from __future__ import annotations

from typing import final

from shoal._events.events import Event
from shoal._events.hooks import Hook
from shoal.testing._faults import HOOK, Passes


class HookFault(ConnectionError):
    """The exception that a simulated hook raises."""


@final
class FaultyHook(Hook):
    """A guarding hook that raises where a plan says so."""

    def __init__(self, passes: Passes) -> None:
        self._passes = passes

    def on_event(self, event: Event) -> None:
        """Pass the place of the event."""
        fault = self._passes.at(HOOK + type(event).__name__)
        if fault is not None:
            msg = f"{fault} was injected"
            raise HookFault(msg)
