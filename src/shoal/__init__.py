"""A concurrency runtime for state-machine applications, on asyncio and trio alike.

The modules are a spine. Read them in this order, each imports only what stands before it: _errors,
_collections, _ids, _state, _events, _policy; _action, _graph; _cancel, _ports, _hooks, _stream,
_execution, _step, _run; _source, _group, _join, _fanout; _runtime, _open, _application.
``docs/internals.md`` is the tour.
"""

from __future__ import annotations

from ._action import FunctionAction, action
from ._application import Application
from ._collections import PositionedList, StateList, StateMap
from ._errors import (
    BadKey,
    BadResult,
    BadUse,
    CommitInDoubt,
    DefinitionError,
    DepthExceeded,
    HookFailed,
    MissingField,
    MissingInput,
    RunCancelled,
    ShoalError,
    SpuriousCancel,
    StateError,
    StoreFailed,
    UndeclaredRead,
    UndeclaredWrite,
)
from ._events import (
    Cancelled,
    ChildEnded,
    ChildStarted,
    Done,
    ErrorInfo,
    Event,
    Failed,
    Missed,
    Outcome,
    RunEnded,
    RunStarted,
    Skipped,
    StateUpdated,
    StepEnded,
    StepStarted,
    Update,
)
from ._fanout import FanOut, fan_out
from ._graph import Graph
from ._hooks import Hook
from ._ids import Key, RunPath
from ._join import Ledger
from ._open import OpenRun, RunResult
from ._policy import Limits
from ._state import Drop, Extend, Increment, Operation, Put, Set, State, replay
from ._version import __version__

__all__ = [
    "Application",
    "BadKey",
    "BadResult",
    "BadUse",
    "Cancelled",
    "ChildEnded",
    "ChildStarted",
    "CommitInDoubt",
    "DefinitionError",
    "DepthExceeded",
    "Done",
    "Drop",
    "ErrorInfo",
    "Event",
    "Extend",
    "Failed",
    "FanOut",
    "FunctionAction",
    "Graph",
    "Hook",
    "HookFailed",
    "Increment",
    "Key",
    "Ledger",
    "Limits",
    "Missed",
    "MissingField",
    "MissingInput",
    "OpenRun",
    "Operation",
    "Outcome",
    "PositionedList",
    "Put",
    "RunCancelled",
    "RunEnded",
    "RunPath",
    "RunResult",
    "RunStarted",
    "Set",
    "ShoalError",
    "Skipped",
    "SpuriousCancel",
    "State",
    "StateError",
    "StateList",
    "StateMap",
    "StateUpdated",
    "StepEnded",
    "StepStarted",
    "StoreFailed",
    "UndeclaredRead",
    "UndeclaredWrite",
    "Update",
    "__version__",
    "action",
    "fan_out",
    "replay",
]

for _error in [globals()[name] for name in __all__]:  # tracebacks show the public names
    if isinstance(_error, type) and issubclass(_error, ShoalError):
        _error.__module__ = "shoal"
