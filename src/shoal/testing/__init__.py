"""What tests of programs on shoal need: virtual time, recorded events, leaks and cancels found."""

from __future__ import annotations

from ._clock import VirtualDeadlock, VirtualTimeLoop, run_virtual, virtual_backend
from ._everywhere import Attempt, Ending, cancel_everywhere
from ._leaks import LeakError, no_leaks
from ._recording import RecordingHook

__all__ = [
    "Attempt",
    "Ending",
    "LeakError",
    "RecordingHook",
    "VirtualDeadlock",
    "VirtualTimeLoop",
    "cancel_everywhere",
    "no_leaks",
    "run_virtual",
    "virtual_backend",
]
