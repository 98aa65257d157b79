"""Tools for tests of programs on shoal: virtual time, recorded events, cancels and crashes."""

from __future__ import annotations

from ._blocking import Blocked, BlockingError, no_blocking
from ._clock import VirtualDeadlock, VirtualTimeLoop, run_virtual, virtual_backend
from ._conformance import StoreConformance
from ._conformance_executors import ExecutorConformance
from ._conformance_rates import RateBackendConformance
from ._crash import Recovery, crash_everywhere
from ._differences import Difference
from ._everywhere import Attempt, Ending, cancel_everywhere
from ._hand_made import HandMadeRun, child_run
from ._leaks import LeakError, no_leaks
from ._memory import MemoryGrows, flat_memory
from ._provider import ProviderRequest, Reply, ScriptedProvider
from ._recording import RecordingHook
from ._replay import ReplayDiffers, Replayed, replay
from ._scripts import HANGS, After, Script, ScriptedCall, flaky
from ._sequencer import Sequencer, SequencerBroken
from ._well_formed import assert_run_well_formed, assert_well_formed

__all__ = [
    "HANGS",
    "After",
    "Attempt",
    "Blocked",
    "BlockingError",
    "Difference",
    "Ending",
    "ExecutorConformance",
    "HandMadeRun",
    "LeakError",
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
    "StoreConformance",
    "VirtualDeadlock",
    "VirtualTimeLoop",
    "assert_run_well_formed",
    "assert_well_formed",
    "cancel_everywhere",
    "child_run",
    "crash_everywhere",
    "flaky",
    "flat_memory",
    "no_blocking",
    "no_leaks",
    "replay",
    "run_virtual",
    "virtual_backend",
]
