"""A concurrency runtime for state-machine applications, on asyncio and trio alike.

The modules are a spine. Read them in this order, each imports only what stands before it:
_errors,_collections, _ids, _digest, _state, _model, _schema, _events, _history, _retry, _policy;
_action, _until, _condition, _flow, _graph; _cancel, _items, _watch, _ports, _hooks, _stream,
_execution, _attempts, _step, _run; _host, _threads, _limits, _recorded, _source, _group, _hedge,
_stagger, _contest, _join, _parallel, _fanout, _race, _tasks, _ledgers, _nest, _children, _context;
_root, _runtime, _open, _application; then the stores.
``docs/internals.md`` is the tour.
"""

from __future__ import annotations

from ._action import Act, Action, FunctionAction, Input, Result, action
from ._application import Application
from ._breaker import Breaker, BreakerStatistics, Circuits
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
    IncompleteStream,
    InputChanged,
    InvalidState,
    LeaseLost,
    MissingField,
    MissingInput,
    NobodyAccepted,
    NotData,
    NoTransition,
    Rejected,
    RunCancelled,
    RunClaimed,
    RunConflict,
    ShoalError,
    SpuriousCancel,
    StateError,
    StepTimeout,
    StoreFailed,
    TooFewChildren,
    TooManySteps,
    UndeclaredRead,
    UndeclaredWrite,
    UnknownRun,
)
from ._events import (
    AttemptEnded,
    Cancelled,
    ChildEnded,
    ChildName,
    ChildRerun,
    ChildStarted,
    Decision,
    Done,
    ErrorInfo,
    Event,
    Failed,
    GraceExceeded,
    Item,
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
from ._history import Completed, Entry, Rewound
from ._hooks import Hook
from ._ids import Key, RunPath
from ._join import Ledger
from ._open import OpenRun, RunResult
from ._policy import INHERIT, Each, Hedge, Inherit, Limits, OnError, Stagger, Tolerate
from ._ports import Batch, Beginning, ChildRecord, RunRecord, SavedRun, Store
from ._race import race
from ._retry import Retry, RetryBudget
from ._runtime import Runtime
from ._state import Drop, Extend, Increment, Operation, Put, PutWithin, Set, State, replay
from ._tasks import MapActions, MapActionsAndStates, MapStates, ParallelAction, Task
from ._until import All, First, Quorum, Until, all_, first, quorum
from ._version import __version__
from .stores import MemoryStore

__all__ = [
    "END",
    "INHERIT",
    "Act",
    "Action",
    "All",
    "Application",
    "AttemptEnded",
    "BadKey",
    "BadResult",
    "BadUse",
    "Batch",
    "Beginning",
    "Breaker",
    "BreakerStatistics",
    "Cancelled",
    "ChildEnded",
    "ChildGroup",
    "ChildName",
    "ChildRecord",
    "ChildRerun",
    "ChildStarted",
    "Circuits",
    "CommitInDoubt",
    "Completed",
    "Condition",
    "Context",
    "Decision",
    "DefinitionError",
    "DepthExceeded",
    "Done",
    "Drop",
    "Each",
    "Entry",
    "ErrorInfo",
    "Event",
    "Extend",
    "Failed",
    "FanOut",
    "First",
    "FunctionAction",
    "GraceExceeded",
    "Graph",
    "Hedge",
    "Hook",
    "HookFailed",
    "IncompleteStream",
    "Increment",
    "Inherit",
    "Input",
    "InputChanged",
    "InvalidState",
    "Item",
    "Key",
    "LeaseLost",
    "Ledger",
    "Limits",
    "MapActions",
    "MapActionsAndStates",
    "MapStates",
    "MemoryStore",
    "Missed",
    "MissingField",
    "MissingInput",
    "NoTransition",
    "NobodyAccepted",
    "NotData",
    "OnError",
    "OpenRun",
    "Operation",
    "Outcome",
    "ParallelAction",
    "PositionedList",
    "Put",
    "PutWithin",
    "Quorum",
    "Rejected",
    "Result",
    "Retry",
    "RetryBudget",
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
    "Stagger",
    "State",
    "StateError",
    "StateList",
    "StateMap",
    "StateUpdated",
    "StepEnded",
    "StepStarted",
    "StepTimeout",
    "Store",
    "StoreFailed",
    "Task",
    "Tolerate",
    "TooFewChildren",
    "TooManySteps",
    "UndeclaredRead",
    "UndeclaredWrite",
    "UnknownRun",
    "Until",
    "Update",
    "__version__",
    "action",
    "all_",
    "fan_out",
    "first",
    "quorum",
    "race",
    "replay",
    "when",
]

for _error in [globals()[name] for name in __all__]:  # tracebacks show the public names
    if isinstance(_error, type) and issubclass(_error, ShoalError):
        _error.__module__ = "shoal"
