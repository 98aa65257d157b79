"""What tests of programs on shoal need: virtual time, recorded events, a check for leaks."""

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
