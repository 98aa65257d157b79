"""A concurrency runtime for state-machine applications, on asyncio and trio alike.

The modules are a spine. Read them in this order, each imports only what stands before it: _errors,
_collections, _ids, _digest, _state, _model, _schema, _events, _history, _policy; _action,
_condition, _flow, _graph; _cancel, _ports, _hooks, _stream, _execution, _step, _run; _host,
_limits, _recorded, _source, _group, _join, _parallel, _fanout, _tasks, _ledgers, _nest, _children,
_context; _root, _runtime, _open, _application; then the stores.
``docs/internals.md`` is the tour.
"""

from __future__ import annotations

from ._action import Act, Action, FunctionAction, Input, action
from ._application import Application
from ._children import ChildGroup
from ._collections import PositionedList, StateList, StateMap
from ._condition import Condition, when
from ._context import Context
from ._errors import (
    BadKey,
    BadResult,
    BadUse,
    CommitInDoubt,
    DefinitionError,
    DepthExceeded,
    HookFailed,
    InputChanged,
    InvalidState,
    LeaseLost,
    MissingField,
    MissingInput,
    NotData,
    NoTransition,
    RetryLater,
    RunCancelled,
    RunClaimed,
    RunConflict,
    ShoalError,
    SpuriousCancel,
    StateError,
    StoreFailed,
    TooManySteps,
    UndeclaredRead,
    UndeclaredWrite,
    UnknownRun,
)
from ._events import (
    Cancelled,
    ChildEnded,
    ChildRerun,
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
    SpanStarted,
    StateUpdated,
    StepEnded,
    StepStarted,
    Update,
    Waiting,
)
from ._fanout import FanOut, fan_out
from ._flow import END
from ._graph import Graph
from ._history import Completed, Entry, Rewound
from ._hooks import Hook
from ._ids import Key, RunPath
from ._join import Ledger
from ._limits import Limiter, Statistics
from ._open import OpenRun, RunResult
from ._policy import INHERIT, Inherit, OnError, Tolerate
from ._ports import Batch, Beginning, ChildRecord, RunRecord, SavedRun, Store
from ._rate import AIMD, Adaptive, Ended, Limits, Rate
from ._runtime import Runtime
from ._state import Drop, Extend, Increment, Operation, Put, PutWithin, Set, State, replay
from ._tasks import MapActions, MapActionsAndStates, MapStates, ParallelAction, Task
from ._version import __version__
from .stores import MemoryStore

__all__ = [
    "AIMD",
    "END",
    "INHERIT",
    "Act",
    "Action",
    "Adaptive",
    "Application",
    "BadKey",
    "BadResult",
    "BadUse",
    "Batch",
    "Beginning",
    "Cancelled",
    "ChildEnded",
    "ChildGroup",
    "ChildRecord",
    "ChildRerun",
    "ChildStarted",
    "CommitInDoubt",
    "Completed",
    "Condition",
    "Context",
    "DefinitionError",
    "DepthExceeded",
    "Done",
    "Drop",
    "Ended",
    "Entry",
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
    "Inherit",
    "Input",
    "InputChanged",
    "InvalidState",
    "Key",
    "LeaseLost",
    "Ledger",
    "Limiter",
    "Limits",
    "MapActions",
    "MapActionsAndStates",
    "MapStates",
    "MemoryStore",
    "Missed",
    "MissingField",
    "MissingInput",
    "NoTransition",
    "NotData",
    "OnError",
    "OpenRun",
    "Operation",
    "Outcome",
    "ParallelAction",
    "PositionedList",
    "Put",
    "PutWithin",
    "Rate",
    "RetryLater",
    "Rewound",
    "RunCancelled",
    "RunClaimed",
    "RunConflict",
    "RunEnded",
    "RunPath",
    "RunRecord",
    "RunResult",
    "RunStarted",
    "Runtime",
    "SavedRun",
    "Set",
    "ShoalError",
    "Skipped",
    "SpanStarted",
    "SpuriousCancel",
    "State",
    "StateError",
    "StateList",
    "StateMap",
    "StateUpdated",
    "Statistics",
    "StepEnded",
    "StepStarted",
    "Store",
    "StoreFailed",
    "Task",
    "Tolerate",
    "TooManySteps",
    "UndeclaredRead",
    "UndeclaredWrite",
    "UnknownRun",
    "Update",
    "Waiting",
    "__version__",
    "action",
    "fan_out",
    "replay",
    "when",
]

for _error in [globals()[name] for name in __all__]:  # tracebacks show the public names
    if isinstance(_error, type) and issubclass(_error, ShoalError):
        _error.__module__ = "shoal"
