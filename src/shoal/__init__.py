"""A concurrency runtime for state-machine applications, on asyncio and trio alike.

The modules are a spine. Read them in this order, each imports only what stands before it: _raised,
_arguments, _errors, _functions, _collections, _plain, _ids, _digest, _secret, _state, _typenames,
_tags, _objects, _codec, _model, _schema, _events, _history, _meters, _shared, _rate, _retry,
_breaker, _policy; _action, _action_class, _until, _condition, _flow, _graph; _cancel, _backend,
_closing, _items, _watch, _leftovers, _shielded, _host, _threads, _gate, _alarms, _supply, _queue,
_seat, _limiter, _admission, _store, _results, _ports, _hooks, _stream, _suspects, _execution,
_attempts, _setting, _trials, _holding, _recalling, _telling, _halting, _ending, _committing,
_resuming, _step, _run; _recorded, _checks, _child, _entries, _source, _stopping, _entrance, _lobby,
_pulling, _group, _hedge, _stagger, _contest, _ledger, _join, _takeup, _rounds, _parallel, _acts,
_fanout, _race, _tasks, _ledgers, _nest, _children, _context; _start, _root, _roots, _result,
_handle, _recovery, _runtime, _open, _given, _launching, _application; then the stores and the
rates.
``docs/internals.md`` is the tour.
"""

from __future__ import annotations

import importlib
import typing

from shoal._concurrency.shielding import shielded
from shoal._engine.fanout.action_group import ChildGroup
from shoal._engine.fanout.context import Context
from shoal._engine.fanout.ledger import Ledger
from shoal._errors.exceptions import (
    BadKey,
    BadResult,
    BadUse,
    CommitInDoubt,
    DefinitionError,
    DepthExceeded,
    Draining,
    Halting,
    HookFailed,
    IncompleteStream,
    InputChanged,
    InvalidState,
    LeaseLost,
    MissingField,
    MissingInput,
    MissingSecret,
    NoApplication,
    NobodyAccepted,
    NotData,
    NotDecodable,
    NotEncodable,
    NoTransition,
    Poisoned,
    RateUnavailable,
    Rejected,
    RetryLater,
    RunCancelled,
    RunClaimed,
    RunConflict,
    SavedError,
    SecretLeaked,
    ShoalError,
    SpuriousCancel,
    StateError,
    StepTimeout,
    StoreFailed,
    TooFewChildren,
    TooManySteps,
    UndeclaredRead,
    UndeclaredWrite,
    UnknownQuestion,
    UnknownRun,
    UpdateTooLarge,
)
from shoal._events.events import (
    AttemptEnded,
    Cancelled,
    ChildEnded,
    ChildHalted,
    ChildName,
    ChildRerun,
    ChildStarted,
    Decision,
    Done,
    ErrorInfo,
    Event,
    Failed,
    GraceExceeded,
    Halted,
    Item,
    Missed,
    Outcome,
    Question,
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
from shoal._events.hooks import Hook
from shoal._events.identity import Key, RunPath
from shoal._graph.action import Act, FunctionAction, Input, Result, action
from shoal._graph.action_class import Action
from shoal._graph.condition import Condition, when
from shoal._graph.dataflow import END
from shoal._graph.fan_out import FanOut, fan_out
from shoal._graph.graph import Graph
from shoal._graph.policy import INHERIT, Each, Hedge, Inherit, OnError, Stagger, Tolerate
from shoal._graph.race import race
from shoal._graph.task_classes import (
    MapActions,
    MapActionsAndStates,
    MapStates,
    ParallelAction,
    Task,
)
from shoal._graph.until import All, First, FirstItem, Quorum, Until, all_, first, first_item, quorum
from shoal._limits.breaker import Breaker, BreakerStatistics, Circuits
from shoal._limits.limiters import Limiter, Statistics
from shoal._limits.limits import AIMD, Adaptive, Ended, Limits, Rate, SharedRate
from shoal._limits.retry import Retry, RetryBudget
from shoal._limits.shared_rates import RateBackend, RateReply, RateRequest, RateState, reckon
from shoal._runtime.application import Application
from shoal._runtime.handle import RunEvents, RunHandle
from shoal._runtime.open_run import OpenRun
from shoal._runtime.recovery import Recovered
from shoal._runtime.result import RunResult
from shoal._runtime.runtime import Runtime
from shoal._state.collections import PositionedList, StateList, StateMap
from shoal._state.state import (
    Drop,
    Extend,
    Increment,
    Operation,
    Put,
    PutWithin,
    Set,
    State,
    replay,
)
from shoal.stores._history import (
    Completed,
    Entry,
    QuestionAnswered,
    QuestionAsked,
    Rewound,
    StepBegun,
)
from shoal.stores._protocol import (
    Batch,
    Beginning,
    Browses,
    CachesResults,
    ChildRecord,
    DoneChild,
    FailedChild,
    FindsOrphans,
    Orphan,
    Prunes,
    ReadsInParts,
    RunRecord,
    RunSummary,
    SavedRun,
    Store,
)

from ._version import __version__
from .stores import MemoryStore

if typing.TYPE_CHECKING:
    from shoal.stores._codec.codec import Codec
    from shoal.stores._postgres.store import PostgresStore
    from shoal.stores._sqlite.store import SQLiteStore

__all__ = [
    "AIMD",
    "END",
    "INHERIT",
    "Act",
    "Action",
    "Adaptive",
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
    "Browses",
    "CachesResults",
    "Cancelled",
    "ChildEnded",
    "ChildGroup",
    "ChildHalted",
    "ChildName",
    "ChildRecord",
    "ChildRerun",
    "ChildStarted",
    "Circuits",
    "Codec",
    "CommitInDoubt",
    "Completed",
    "Condition",
    "Context",
    "Decision",
    "DefinitionError",
    "DepthExceeded",
    "Done",
    "DoneChild",
    "Draining",
    "Drop",
    "Each",
    "Ended",
    "Entry",
    "ErrorInfo",
    "Event",
    "Extend",
    "Failed",
    "FailedChild",
    "FanOut",
    "FindsOrphans",
    "First",
    "FirstItem",
    "FunctionAction",
    "GraceExceeded",
    "Graph",
    "Halted",
    "Halting",
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
    "Limiter",
    "Limits",
    "MapActions",
    "MapActionsAndStates",
    "MapStates",
    "MemoryStore",
    "Missed",
    "MissingField",
    "MissingInput",
    "MissingSecret",
    "NoApplication",
    "NoTransition",
    "NobodyAccepted",
    "NotData",
    "NotDecodable",
    "NotEncodable",
    "OnError",
    "OpenRun",
    "Operation",
    "Orphan",
    "Outcome",
    "ParallelAction",
    "Poisoned",
    "PositionedList",
    "PostgresStore",
    "Prunes",
    "Put",
    "PutWithin",
    "Question",
    "QuestionAnswered",
    "QuestionAsked",
    "Quorum",
    "Rate",
    "RateBackend",
    "RateReply",
    "RateRequest",
    "RateState",
    "RateUnavailable",
    "ReadsInParts",
    "Recovered",
    "Rejected",
    "Result",
    "Retry",
    "RetryBudget",
    "RetryLater",
    "Rewound",
    "RunCancelled",
    "RunClaimed",
    "RunConflict",
    "RunEnded",
    "RunEvents",
    "RunHandle",
    "RunPath",
    "RunRecord",
    "RunResult",
    "RunStarted",
    "RunSummary",
    "Runtime",
    "SQLiteStore",
    "SavedError",
    "SavedRun",
    "SecretLeaked",
    "Set",
    "SharedRate",
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
    "Statistics",
    "StepBegun",
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
    "UnknownQuestion",
    "UnknownRun",
    "Until",
    "Update",
    "UpdateTooLarge",
    "Waiting",
    "__version__",
    "action",
    "all_",
    "fan_out",
    "first",
    "first_item",
    "quorum",
    "race",
    "reckon",
    "replay",
    "shielded",
    "when",
]

# Imported when they are asked for, so that `import shoal` loads no database driver.
_LATER = {
    "Codec": "shoal.stores._codec.codec",
    "PostgresStore": "shoal.stores._postgres.store",
    "SQLiteStore": "shoal.stores._sqlite.store",
}
_EXTRAS = {
    "Codec": "'shoal[sqlite]'",
    "PostgresStore": "'shoal[postgres]' 'psycopg[binary]'",
    "SQLiteStore": "'shoal[sqlite]'",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = importlib.import_module(_LATER[name])
    except ImportError as error:
        return _stand_in(name, error)
    return getattr(module, name)


def _stand_in(name: str, error: ImportError) -> type:
    """Make a class in the place of one whose extra isn't installed; calling it says how to get it.

    Not raised here already: `from shoal import *` asks for every name, used or not
    (see test_all_names_can_be_imported_without_the_extras).
    """
    why, missing = str(error), error.name

    def refuse(_: object, *_args: object, **_more: object) -> typing.NoReturn:
        what = why if "pip install" in why else f"what isn't installed ({why})"
        how = "" if "pip install" in why else f": pip install {_EXTRAS[name]}"
        raise ImportError(f"{name} needs {what}{how}", name=missing)

    return type(name, (), {"__init__": refuse, "__module__": "shoal"})


# The public names are what tracebacks show of errors, and what pickles hold of data, so that those
# are read wherever a class is defined by then (see test_pickles_hold_public_names). Not of all
# classes: the annotations of a class are looked up in the module that it names, and those of most
# need more names than are public.
_End = type(END)
_NAMED = (ShoalError, Halting, State, StateList, StateMap, PositionedList, ErrorInfo, Inherit, _End)
for _class in (_End, *[globals().get(name) for name in __all__]):
    if isinstance(_class, type) and issubclass(_class, _NAMED):
        _class.__module__ = "shoal"
