"""What tests of shoal, and of programs that use it, need: virtual time, recorded events, no leaks."""

from __future__ import annotations

from ._clock import VirtualDeadlock, VirtualTimeLoop, run_virtual, virtual_backend
from ._leaks import LeakError, no_leaks
from ._recording import RecordingHook

__all__ = [
    "LeakError",
    "RecordingHook",
    "VirtualDeadlock",
    "VirtualTimeLoop",
    "no_leaks",
    "run_virtual",
    "virtual_backend",
]
