"""A concurrency runtime for state-machine applications, on asyncio and trio alike.

The modules are a spine. Read them in this order, each imports only what stands before it: _errors,
_collections, _ids, _state, _model, _schema, _events, _retry, _policy; _action, _condition, _flow,
_graph; _cancel, _watch, _ports, _hooks, _stream, _execution, _attempts, _step, _run; _host,
_threads, _limits, _source, _group, _join, _parallel, _fanout, _tasks, _nest, _children, _context;
_runtime, _open, _application.
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
    InvalidState,
    MissingField,
    MissingInput,
    NoTransition,
    RunCancelled,
    ShoalError,
    SpuriousCancel,
    StateError,
    StepTimeout,
    StoreFailed,
    TooManySteps,
    UndeclaredRead,
    UndeclaredWrite,
)
from ._events import (
    AttemptEnded,
    Cancelled,
    ChildEnded,
    ChildStarted,
    Done,
    ErrorInfo,
    Event,
    Failed,
    GraceExceeded,
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
)
from ._fanout import FanOut, fan_out
from ._flow import END
from ._graph import Graph
from ._hooks import Hook
from ._ids import Key, RunPath
from ._join import Ledger
from ._open import OpenRun, RunResult
from ._policy import Each, Limits, OnError, Tolerate
from ._retry import Retry, RetryBudget
from ._runtime import Runtime
from ._state import Drop, Extend, Increment, Operation, Put, PutWithin, Set, State, replay
from ._tasks import MapActions, MapActionsAndStates, MapStates, ParallelAction, Task
from ._version import __version__

__all__ = [
    "END",
    "Act",
    "Action",
    "Application",
    "AttemptEnded",
    "BadKey",
    "BadResult",
    "BadUse",
    "Cancelled",
    "ChildEnded",
    "ChildGroup",
    "ChildStarted",
    "CommitInDoubt",
    "Condition",
    "Context",
    "DefinitionError",
    "DepthExceeded",
    "Done",
    "Drop",
    "Each",
    "ErrorInfo",
    "Event",
    "Extend",
    "Failed",
    "FanOut",
    "FunctionAction",
    "GraceExceeded",
    "Graph",
    "Hook",
    "HookFailed",
    "Increment",
    "Input",
    "InvalidState",
    "Key",
    "Ledger",
    "Limits",
    "MapActions",
    "MapActionsAndStates",
    "MapStates",
    "Missed",
    "MissingField",
    "MissingInput",
    "NoTransition",
    "OnError",
    "OpenRun",
    "Operation",
    "Outcome",
    "ParallelAction",
    "PositionedList",
    "Put",
    "PutWithin",
    "Retry",
    "RetryBudget",
    "RunCancelled",
    "RunEnded",
    "RunPath",
    "RunResult",
    "RunStarted",
    "Runtime",
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
    "StepEnded",
    "StepStarted",
    "StepTimeout",
    "StoreFailed",
    "Task",
    "Tolerate",
    "TooManySteps",
    "UndeclaredRead",
    "UndeclaredWrite",
    "Update",
    "__version__",
    "action",
    "fan_out",
    "replay",
    "when",
]

for _error in [globals()[name] for name in __all__]:  # tracebacks show the public names
    if isinstance(_error, type) and issubclass(_error, ShoalError):
        _error.__module__ = "shoal"
