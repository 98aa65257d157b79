"""Fan-outs, races and durable runs of async work, on asyncio and trio alike.

The ideas, in the order in which a program meets them:

- An action is a function that declares which fields of a state it reads, and which it writes
  (``action``). Parameters that are no fields are inputs, such as clients.
- A fan-out runs an action for each of many elements at once, and collects the results
  (``fan_out``). A race runs several actions and takes the first good result (``race``). A graph
  puts them in a row, or along conditions (``Graph``). All of these are acts, and an act can stand
  wherever an action can.
- An application runs an act (``Application``): ``await app.run(state)``, or ``app.run_sync(state)``
  in code without an event loop. With a store and an id, a run goes on where a crash, a failure or a
  cancellation left it (``SQLiteStore``).
- ``Limits``, ``Rate`` and ``Budget`` say how much runs at once, per second and in all; ``Retry``
  and ``Each`` which failures are tried again. A ``Runtime`` is what many runs share. A ``Hook``
  receives what happens.

Examples:
    >>> from shoal import Application, Limits, action, fan_out
    >>> @action(reads=["city"], writes=["weather"])
    ... async def look_up(city: str) -> str:
    ...     return f"rain in {city}"
    >>> reports = fan_out(
    ...     look_up, over="cities", item="city", key=str, into="reports", limits=Limits(20)
    ... )
    >>> result = Application(reports).run_sync({"cities": ["Oslo", "Bergen"]})
    >>> dict(result.state["reports"])
    {'Oslo': 'rain in Oslo', 'Bergen': 'rain in Bergen'}

``help(shoal.fan_out)`` describes a fan-out, and so on. This module has the names that applications
are written with. The others are at these addresses:

- ``shoal.errors``: every exception that shoal raises. Those that programs often catch are here too.
- ``shoal.events``: events, for hooks and for readers of a run's events.
- ``shoal.types``: classes that annotations name, but that programs get instead of making them.
- ``shoal.stores``: what a store implements, for authors of stores.
- ``shoal.executors``: where functions are called: threads, processes, clusters.
- ``shoal.rates``: what a rate backend implements, for authors of backends.
- ``shoal.watch``: queries about runs, for pages, commands and programs.
- ``shoal.testing``, ``shoal.fastapi``: tests of applications, and HTTP services.
- ``shoal.burr``: actions and graphs of Burr's as acts.

``docs/internals.md`` in the repository is the tour of the source.
"""

from __future__ import annotations

import importlib
import sys
import typing

from ._version import __version__

if typing.TYPE_CHECKING:  # at run time __getattr__ imports them, each when it is first asked for
    from shoal._concurrency.shielding import shielded
    from shoal._engine.fanout.context import Context
    from shoal._errors.exceptions import (
        Draining,
        MissingSecret,
        NobodyAccepted,
        RetryLater,
        RunCancelled,
        RunClaimed,
        RunConflict,
        ShoalError,
        StepTimeout,
        StoreFailed,
        UnknownQuestion,
        UnknownRun,
    )
    from shoal._events.events import (
        Cancelled,
        Done,
        ErrorInfo,
        Failed,
        Halted,
        Outcome,
        Question,
        Skipped,
    )
    from shoal._events.hooks import Hook
    from shoal._events.identity import RunPath
    from shoal._graph.action import action
    from shoal._graph.action_class import Action
    from shoal._graph.condition import when
    from shoal._graph.dataflow import END
    from shoal._graph.fan_out import fan_out
    from shoal._graph.graph import Graph
    from shoal._graph.policy import INHERIT, Each, Hedge, Stagger, Tolerate
    from shoal._graph.race import race
    from shoal._graph.task_classes import (
        MapActions,
        MapActionsAndStates,
        MapStates,
        ParallelAction,
        Task,
    )
    from shoal._graph.until import all_, first, first_item, quorum
    from shoal._limits.adaptive import AIMD
    from shoal._limits.breaker import Breaker
    from shoal._limits.budgets import Budget
    from shoal._limits.limits import Limits, Rate, SharedRate
    from shoal._limits.owners import OWNER
    from shoal._limits.retry import Retry, RetryBudget
    from shoal._runtime.application import Application
    from shoal._runtime.handle import RunHandle
    from shoal._runtime.result import RunResult
    from shoal._runtime.runtime import Runtime
    from shoal._state.collections import PositionedList, StateList, StateMap
    from shoal._state.result import Result
    from shoal._state.state import State
    from shoal.stores._codec.codec import Codec
    from shoal.stores._memory import MemoryStore
    from shoal.stores._postgres.store import PostgresStore
    from shoal.stores._sqlite.store import SQLiteStore

    from . import errors as errors
    from . import events as events
    from . import executors as executors
    from . import rates as rates
    from . import stores as stores
    from . import types as types

__all__ = [
    "AIMD",
    "END",
    "INHERIT",
    "OWNER",
    "Action",
    "Application",
    "Breaker",
    "Budget",
    "Cancelled",
    "Codec",
    "Context",
    "Done",
    "Draining",
    "Each",
    "ErrorInfo",
    "Failed",
    "Graph",
    "Halted",
    "Hedge",
    "Hook",
    "Limits",
    "MapActions",
    "MapActionsAndStates",
    "MapStates",
    "MemoryStore",
    "MissingSecret",
    "NobodyAccepted",
    "Outcome",
    "ParallelAction",
    "PositionedList",
    "PostgresStore",
    "Question",
    "Rate",
    "Result",
    "Retry",
    "RetryBudget",
    "RetryLater",
    "RunCancelled",
    "RunClaimed",
    "RunConflict",
    "RunHandle",
    "RunPath",
    "RunResult",
    "Runtime",
    "SQLiteStore",
    "SharedRate",
    "ShoalError",
    "Skipped",
    "Stagger",
    "State",
    "StateList",
    "StateMap",
    "StepTimeout",
    "StoreFailed",
    "Task",
    "Tolerate",
    "UnknownQuestion",
    "UnknownRun",
    "__version__",
    "action",
    "all_",
    "fan_out",
    "first",
    "first_item",
    "quorum",
    "race",
    "shielded",
    "when",
]

_DEFINED = {
    "_concurrency.shielding": "shielded",
    "_engine.fanout.context": "Context",
    "_errors.exceptions": (
        "Draining MissingSecret NobodyAccepted RetryLater RunCancelled RunClaimed RunConflict "
        "ShoalError StepTimeout StoreFailed UnknownQuestion UnknownRun"
    ),
    "_events.events": "Cancelled Done ErrorInfo Failed Halted Outcome Question Skipped",
    "_events.hooks": "Hook",
    "_events.identity": "RunPath",
    "_graph.action": "action",
    "_graph.action_class": "Action",
    "_graph.condition": "when",
    "_graph.dataflow": "END",
    "_graph.fan_out": "fan_out",
    "_graph.graph": "Graph",
    "_graph.policy": "INHERIT Each Hedge Stagger Tolerate",
    "_graph.race": "race",
    "_graph.task_classes": "MapActions MapActionsAndStates MapStates ParallelAction Task",
    "_graph.until": "all_ first first_item quorum",
    "_limits.adaptive": "AIMD",
    "_limits.breaker": "Breaker",
    "_limits.budgets": "Budget",
    "_limits.limits": "Limits Rate SharedRate",
    "_limits.owners": "OWNER",
    "_limits.retry": "Retry RetryBudget",
    "_runtime.application": "Application",
    "_runtime.handle": "RunHandle",
    "_runtime.result": "RunResult",
    "_runtime.runtime": "Runtime",
    "_state.collections": "PositionedList StateList StateMap",
    "_state.result": "Result",
    "_state.state": "State",
    "stores._codec.codec": "Codec",
    "stores._memory": "MemoryStore",
    "stores._postgres.store": "PostgresStore",
    "stores._sqlite.store": "SQLiteStore",
}
"""The names of ``__all__``, by the module that defines them. A name is imported when it is first
asked for: a program that only catches errors doesn't pay for the engine, and only programs that
use a database load its driver."""

_MOVED = {
    "errors": (
        "BadAnswer BadKey BadResult BadUse BudgetExceeded ChangedInPlace CommitInDoubt "
        "DefinitionError DepthExceeded Halting HookFailed IncompleteStream InputChanged "
        "InvalidState LeaseLost MissingField MissingInput NoApplication NoTransition NoWorker "
        "NotApplied NotData NotDecodable NotEncodable NotSendable NotSteered Overloaded Poisoned "
        "RateUnavailable Rejected RemoteError SavedError SecretLeaked SpuriousCancel StateError "
        "TooFewChildren TooManySteps UndeclaredRead UndeclaredWrite UpdateTooLarge WorkerDied"
    ),
    "events": (
        "AttemptEnded ChildEnded ChildHalted ChildName ChildRerun ChildStarted Decision Drop "
        "Event Extend GraceExceeded HedgeEnded HedgeStarted Increment Item LeaderChanged "
        "LeadingItems Missed Operation Put PutWithin RunEnded RunStarted RunSteered Set "
        "SpanStarted Spent StateUpdated StepEnded StepStarted Update WaitEnded Waiting"
    ),
    "executors": "Executor ExecutorName Interpreters Processes Ray Threads",
    "rates": (
        "BudgetBackend BudgetReply BudgetRequest BudgetState RateBackend RateHeaders RateReply "
        "RateRequest RateState Remaining read_headers reckon reckon_budget"
    ),
    "stores": (
        "Batch Beginning Bin Browses BudgetLevel CachesResults ChildRecord Command CommandKind "
        "Completed DoneChild Entry EntryKind FailedChild FindsOrphans Inspects KeepsReports "
        "Orphan Prunes QuestionAnswered QuestionAsked ReadsInParts Rewound Row RowPage RunRecord "
        "RunSummary SavedRun Steered Steers StepBegun StepTally Store StoredEntry StoredReport "
        "replay"
    ),
    "types": (
        "Act Adaptive All BreakerStatistics ChildGroup Circuits Condition Ended FanOut First "
        "FirstItem FunctionAction Inherit Input Key Ledger Limiter OnError OpenRun Priority "
        "Quorum Recovered RunEvents RunLoad Statistics Until"
    ),
}
"""Names that stood in ``shoal`` before, or that are looked for there, by the module that has them
now. Stores write them as ``shoal:Name``."""

_OF_BURR = {
    "ApplicationBuilder": "Application(Graph((a, b), ...))",
    "GraphBuilder": "Graph((a, b), (b, c, when(...)))",
    "RunnableGraph": "Graph, or graph.part(entry=..., ends_after=[...])",
    "SubGraphTask": "Task(act, {field: ...}, key=...)",
    "TaskBasedParallelAction": "ParallelAction",
    "default": "an edge without a condition",
    "expr": "when(lambda n: n < 3)",
    "streaming_action": "@action on an async generator function",
}
"""Names of Burr's that are looked for here, and what is written instead."""

_HOMES = {
    name: f"{__name__}.{module}"
    for table in (_DEFINED, _MOVED)
    for module, names in table.items()
    for name in names.split()
}
_EXTRAS = {
    "Codec": "'shoal[sqlite]'",
    "PostgresStore": "'shoal[postgres]' 'psycopg[binary]'",
    "SQLiteStore": "'shoal[sqlite]'",
}


def _get(name: str) -> object:
    """Return what ``shoal`` has by that name, imported now.

    Raises:
        AttributeError: There is nothing of that name; if it has moved, the message says where.
        ImportError: The same about a moved name, in ``from shoal import ...``, because that
            statement replaces the message of an ``AttributeError``.
    """
    home = _HOMES.get(name)
    if home is None and name in _MOVED:
        return importlib.import_module(f"{__name__}.{name}")
    if home is None and name in _OF_BURR:
        msg = f"{__name__} has no {name}; instead of Burr's, write: {_OF_BURR[name]}"
        if sys._getframe(2).f_code.co_name == "_handle_fromlist":
            raise ImportError(msg, name=__name__)
        raise AttributeError(msg)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in __all__ and not _is_pickled(name):
        moved = f"{__name__}.{name} moved to {home}"
        caller = sys._getframe(2)  # past __getattr__
        if caller.f_code.co_name == "_handle_fromlist":
            raise ImportError(f"{moved}: from {home} import {name}", name=__name__)
        raise AttributeError(moved)
    try:
        module = importlib.import_module(home)
    except ImportError as error:
        if name not in _EXTRAS:
            raise
        return _stand_in(name, error)
    found = globals()[name] = getattr(module, name)
    return found


if not typing.TYPE_CHECKING:  # type checkers would take any name to exist

    def __getattr__(name):  # noqa: ANN001, ANN202
        """Import a name when it is first asked for."""
        return _get(name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _is_pickled(name: str) -> bool:
    """Tell whether pickles hold the moved name as one of ``shoal``, so that it must be found here.

    These are the errors, whose tracebacks show it too, and the class of ``INHERIT``.
    """
    return name == "Inherit" or _HOMES.get(name) == f"{__name__}.errors"


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
