"""Tools for tests of programs on shoal: virtual time, recorded events, cancels, faults, crashes."""

from __future__ import annotations

from ._boundaries import Aftermath, Boundaries, BoundaryError, fail_everywhere
from ._clock import VirtualDeadlock, VirtualTimeLoop, run_virtual, virtual_backend
from ._conformance import StoreConformance
from ._crash import Recovery, crash_everywhere
from ._everywhere import Attempt, Ending, cancel_everywhere
from ._hand_made import HandMadeRun, child_run
from ._leaks import LeakError, no_leaks
from ._recording import RecordingHook

__all__ = [
    "Aftermath",
    "Attempt",
    "Boundaries",
    "BoundaryError",
    "Ending",
    "HandMadeRun",
    "LeakError",
    "RecordingHook",
    "Recovery",
    "StoreConformance",
    "VirtualDeadlock",
    "VirtualTimeLoop",
    "cancel_everywhere",
    "child_run",
    "crash_everywhere",
    "fail_everywhere",
    "no_leaks",
    "run_virtual",
    "virtual_backend",
]
