"""Tools for tests of programs on shoal: virtual time, recorded events, cancels, faults, crashes."""

from __future__ import annotations

from ._blocking import Blocked, BlockingError, no_blocking
from ._boundaries import Aftermath, Boundaries, BoundaryError, fail_everywhere
from ._clock import VirtualDeadlock, VirtualTimeLoop, run_virtual, virtual_backend
from ._conformance import StoreConformance
from ._conformance_executors import ExecutorConformance
from ._conformance_rates import RateBackendConformance
from ._crash import Recovery, crash_everywhere
from ._differences import Difference
from ._everywhere import Attempt, Ending, cancel_everywhere
from ._faulty_acts import InjectedFault
from ._hand_made import HandMadeRun, child_run
from ._leaks import LeakError, no_leaks
from ._lives import Life, SimulatedRun
from ._memory import MemoryGrows, flat_memory
from ._provider import ProviderRequest, Reply, ScriptedProvider
from ._recording import RecordingHook
from ._replay import ReplayDiffers, Replayed, replay
from ._scripts import HANGS, After, Script, ScriptedCall, flaky
from ._sequencer import Sequencer, SequencerBroken
from ._simulate import Simulation, SimulationFailed, simulate
from ._simulated import simulated
from ._well_formed import assert_run_well_formed, assert_well_formed

__all__ = [
    "HANGS",
    "After",
    "Aftermath",
    "Attempt",
    "Blocked",
    "BlockingError",
    "Boundaries",
    "BoundaryError",
    "Difference",
    "Ending",
    "ExecutorConformance",
    "HandMadeRun",
    "InjectedFault",
    "LeakError",
    "Life",
    "MemoryGrows",
    "ProviderRequest",
    "RateBackendConformance",
    "RecordingHook",
    "Recovery",
    "ReplayDiffers",
    "Replayed",
    "Reply",
    "Script",
    "ScriptedCall",
    "ScriptedProvider",
    "Sequencer",
    "SequencerBroken",
    "SimulatedRun",
    "Simulation",
    "SimulationFailed",
    "StoreConformance",
    "VirtualDeadlock",
    "VirtualTimeLoop",
    "assert_run_well_formed",
    "assert_well_formed",
    "cancel_everywhere",
    "child_run",
    "crash_everywhere",
    "fail_everywhere",
    "flaky",
    "flat_memory",
    "no_blocking",
    "no_leaks",
    "replay",
    "run_virtual",
    "simulate",
    "simulated",
    "virtual_backend",
]
