"""Stores: what a store implements, for authors of stores and for programs that read them.

``Store`` is the port. It has few methods, and a store that can do more also implements ``Browses``,
``Inspects``, ``KeepsReports``, ``Prunes``, ``FindsOrphans``, ``ReadsInParts`` or ``CachesResults``.
A ``Batch`` is what one save holds, and the other classes are its parts, or what is read back. The
stores of shoal itself are in ``shoal``: ``MemoryStore``, ``SQLiteStore`` and ``PostgresStore``.
``shoal.testing.StoreConformance`` tests a store.

Examples:
    >>> from shoal.events import Increment
    >>> from shoal.stores import replay
    >>> from shoal import State
    >>> replay(State(count=1), [Increment("count", 2)])["count"]
    3
"""

from __future__ import annotations

from shoal._state.state import replay
from shoal.stores._history import (
    BudgetLevel,
    Completed,
    Entry,
    QuestionAnswered,
    QuestionAsked,
    Rewound,
    Steered,
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
from shoal.stores._watching import (
    Bin,
    Command,
    CommandKind,
    EntryKind,
    Inspects,
    KeepsReports,
    Row,
    RowPage,
    Steers,
    StepTally,
    StoredEntry,
    StoredReport,
)

__all__ = [
    "Batch",
    "Beginning",
    "Bin",
    "Browses",
    "BudgetLevel",
    "CachesResults",
    "ChildRecord",
    "Command",
    "CommandKind",
    "Completed",
    "DoneChild",
    "Entry",
    "EntryKind",
    "FailedChild",
    "FindsOrphans",
    "Inspects",
    "KeepsReports",
    "Orphan",
    "Prunes",
    "QuestionAnswered",
    "QuestionAsked",
    "ReadsInParts",
    "Rewound",
    "Row",
    "RowPage",
    "RunRecord",
    "RunSummary",
    "SavedRun",
    "Steered",
    "Steers",
    "StepBegun",
    "StepTally",
    "Store",
    "StoredEntry",
    "StoredReport",
    "replay",
]
