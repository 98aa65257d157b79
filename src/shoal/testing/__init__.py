"""Tools for tests of programs on shoal: virtual time, recorded events, cancels, faults, crashes."""

from __future__ import annotations

from ._boundaries import Aftermath, Boundaries, BoundaryError, fail_everywhere
from ._clock import VirtualDeadlock, VirtualTimeLoop, run_virtual, virtual_backend
from ._conformance import StoreConformance
from ._crash import Recovery, crash_everywhere
from ._everywhere import Attempt, Ending, cancel_everywhere
from ._faulty_acts import InjectedFault
from ._hand_made import HandMadeRun, child_run
from ._leaks import LeakError, no_leaks
from ._lives import Life, SimulatedRun
from ._recording import RecordingHook
from ._replay import ReplayDiffers, Replayed, replay
from ._simulate import Simulation, SimulationFailed, simulate
from ._simulated import simulated

__all__ = [
    "Aftermath",
    "Attempt",
    "Boundaries",
    "BoundaryError",
    "Ending",
    "HandMadeRun",
    "InjectedFault",
    "LeakError",
    "Life",
    "RecordingHook",
    "Recovery",
    "ReplayDiffers",
    "Replayed",
    "SimulatedRun",
    "Simulation",
    "SimulationFailed",
    "StoreConformance",
    "VirtualDeadlock",
    "VirtualTimeLoop",
    "cancel_everywhere",
    "child_run",
    "crash_everywhere",
    "fail_everywhere",
    "no_leaks",
    "replay",
    "run_virtual",
    "simulate",
    "simulated",
    "virtual_backend",
]
