"""Define what a store can tell to watchers of its runs, and carry between processes.

A page, a command or a test watches runs that other processes execute. The store has what is
certain: the runs, their children, and how these ended. What is going on right now is in *reports*:
the process that executes a run writes a small one a few times per second, and takes *commands* for
the run with the same call. Both protocols are optional extensions of a store.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, final, runtime_checkable

from shoal._events.identity import Key, RunPath

from ._history import QuestionAnswered, Steered
from ._protocol import Browses, ChildStatus, RunSummary

Order = Literal["failed first", "position", "ended last", "slowest"]
"""The order of a page of children."""


@final
class Row(NamedTuple):
    """A run as a watcher sees it, root or child. Made without decoding a user's value."""

    path: RunPath
    status: ChildStatus
    position: int = 0
    """The child's place in input order, counted from 0."""
    began_at: float | None = None
    """When it started, in seconds since 1970; None if that isn't known."""
    ended_at: float | None = None
    """When its end was saved, in seconds since 1970; None if it has none."""
    elapsed: float = 0.0
    """Seconds from its start to its end."""
    attempts: int = 1
    used: bool = True
    """Whether the parent used its result. False for a loser that succeeded."""
    reason: str = ""
    """Why it was cancelled or skipped."""
    winner: RunPath | None = None
    """The sibling that won the race which this child lost."""
    error_type: str = ""
    """The class of its error; empty if it didn't fail."""
    error: str = ""
    """Its error in a line or a few, beginning with the class."""
    failed_step: str = ""
    """The step of the child in which it failed; empty if it didn't fail, or has one step."""
    has_children: bool = False
    """Whether it has started children of its own."""
    applied: int | None = None
    """The number of the parent's update that applied it."""


@final
class RowPage(NamedTuple):
    """A page of children."""

    rows: Sequence[Row]
    after: str | None
    """The cursor of the next page; None after the last one."""
    left_out: str = ""
    """What a search has left out, as a phrase for people; empty if nothing. A search by key looks
    at a bounded number of keys, and finds a bounded number of children."""


@final
class StepTally(NamedTuple):
    """The children of one act in one visit of a step, counted by status."""

    step: str
    visit: int
    act: str
    counts: Mapping[ChildStatus, int]
    lost: int = 0
    """How many of the cancelled and failed ones had lost a race."""
    total: int | None = None
    """How many elements the step has, where the store knows that; else None. The stores of shoal
    don't: see ``LiveStep.total`` in the last report."""


@final
class Bin(NamedTuple):
    """A part of a timeline: the children whose ends were saved in it."""

    begins_at: float
    """Seconds since 1970."""
    ends_at: float
    counts: Mapping[ChildStatus, int]


EntryKind = Literal[
    "update", "decision", "completed", "rewound", "begun", "asked", "answered", "spent", "steered"
]
"""The kind of an entry of a history; see ``shoal.stores.Entry``."""


@final
class StoredEntry(NamedTuple):
    """An entry of a run's history, as it is stored. Made without decoding a user's value."""

    number: int
    """The number of the update; of another entry, that of the last update before it."""
    kind: EntryKind
    step: str
    data: str
    """JSON. Of an update: ``{"number", "do": [[kind, field, ...], ...], "step", "found", "at"}``;
    of a decision: ``[winner, winners, reason]``; of a question: ``[name, question, id]``, and the
    JSON schema of its answers if it has one; of an answer: ``[id, answer]``; of what was
    spent: ``[budget, key, unit, spent, aside, by]``; of a steered run:
    ``[what, by, at, arguments]``, as in ``Steered``; of a declaration, an object; else a number."""
    at: float | None = None
    """When it was saved, in seconds since 1970; None if that isn't known."""
    child: Row | None = None
    """The child that the update applied."""


@final
class StoredReport(NamedTuple):
    """The last report about a root run."""

    run_id: str
    at: float
    """When it was written, in seconds since 1970, by the clock of the store."""
    text: str
    """JSON, by ``report_text``; ``parse_report`` makes a ``Report`` of it."""


CommandKind = Literal[
    "cancel",
    "cancel child",
    "drain",
    "answer",
    "change limits",
    "pause",
    "resume",
    "pause limit",
    "resume limit",
]
"""What a command asks for; see ``Command``."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A request to the process that executes a run, by a watcher in another process.

    ====================  ===========================================================
    ``kind``              ``arguments``, as JSON
    ====================  ===========================================================
    ``"cancel"``          ``reason``
    ``"cancel child"``    ``path``: ``[step, visit, act, key]`` of each run from the
                          root's child down to the one that is meant (a number of
                          more than 64 bits as a list with its hexadecimal digits);
                          ``reason``
    ``"drain"``           ``reason``
    ``"answer"``          ``question``: its id, as in ``Question.id``; ``answer``
    ``"change limits"``   ``owner`` and ``part``, as in ``LimitUse``; new numbers:
                          ``n`` (slots), ``max_rate``, ``per`` and ``burst`` of its
                          rate; those that are left out stay
    ``"pause"``           ``reason``
    ``"resume"``          ``reason``
    ``"pause limit"``     ``owner`` and ``part``; ``key``: the only key that is paused,
                          as text; ``reason``
    ``"resume limit"``    the same
    ====================  ===========================================================

    Each may have ``by``, its sender's name, and ``id``, by which its sender finds in the history
    what became of it. An entry of the history (``Steered``) has both, and what was refused has
    ``"refused"`` in place of the kind, with ``command`` (the kind) and ``why``.
    """

    run_id: str
    """The root run."""
    kind: CommandKind
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """JSON; see the table above."""


@runtime_checkable
class KeepsReports(Protocol):
    """An optional extension of a store: processes report about the runs that they execute."""

    @property
    def is_shared(self) -> bool:
        """Whether other processes can read the reports; then runs are watched by default."""
        ...

    async def report(self, reports: Mapping[str, str]) -> Sequence[Command]:
        """Replace the reports of root runs, and take the commands that were left for them.

        Args:
            reports: The text of a report by the id of its root run. A run without a new report
                has an empty text: only its commands are taken.

        A command is returned once. If the call is cancelled, or fails, commands may be lost, but
        none is returned twice. Runs that the store doesn't know yet, and runs that another process
        executes, are left out. A report may be lost if the machine loses power.
        """
        ...

    async def reported(self, run_id: str) -> StoredReport | None:
        """Return the last report about a root run; None if there was none."""
        ...

    async def command(self, command: Command) -> None:
        """Leave a command for the process that executes the run.

        It is dropped when the run is claimed anew: it was meant for the execution that it saw. It
        is dropped at once if no process executes the run.
        """
        ...


@runtime_checkable
class Steers(Protocol):
    """An optional extension of a store: runs are steered although no process executes them.

    What was asked for, a pause for example, waits in the history for the next execution; so does an
    answer to a question.
    """

    async def steer(self, run_id: str, entries: Sequence[Steered | QuestionAnswered]) -> bool:
        """Append to the history of a root run that no process executes: all entries, or nothing.

        Returns False, and does nothing, if a process executes the run, or if there is no such run.
        May be cancelled; then the entries were made or not.

        Raises:
            NotData: An answer can't be saved.
        """
        ...


@runtime_checkable
class Inspects(Browses, Protocol):
    """An optional extension of a store: its runs can be watched in detail while they run.

    Each call takes time in proportion to what it returns, or a scan of an index of one run's
    children. No value of a user is decoded; texts of JSON are returned as they are stored.
    """

    async def mark(self) -> object:
        """Return a value that differs from the one before if anything was saved in between."""
        ...

    async def row(self, path: RunPath) -> Row | None:
        """Return one run, root or child; None if the store doesn't know it."""
        ...

    async def rows(
        self,
        path: RunPath,
        *,
        step: str | None = None,
        status: ChildStatus | None = None,
        key: str | None = None,
        order: Order = "failed first",
        after: str | None = None,
        limit: int = 50,
    ) -> RowPage:
        """Return a page of a run's children.

        Args:
            path: The parent.
            step: Only children of that step.
            status: Only children with that status.
            key: Only children whose key contains this text.
            order: The order; "failed first" is failed, running, halted, cancelled, succeeded,
                skipped, and within each the order of application.
            after: The cursor of the page before.
            limit: At most so many.
        """
        ...

    async def tallies(self, path: RunPath) -> Sequence[StepTally]:
        """Count a run's children by step, visit, act and status, in the order of their steps."""
        ...

    async def failed_rows(self, path: RunPath, *, limit: int = 10_000) -> Sequence[Row]:
        """Return the failed children of a run, for grouping; losers of races are left out."""
        ...

    async def times(
        self, path: RunPath, *, after: int = 0, limit: int = 1000
    ) -> Sequence[tuple[int, float]]:
        """Return when a run's updates were saved: numbers of updates, each with a time.

        An update that isn't named was saved together with the next one that is. Times are in
        seconds since 1970; updates of earlier versions of shoal have none.

        Args:
            path: The run.
            after: Only updates with a higher number.
            limit: At most so many.
        """
        ...

    async def timeline(self, path: RunPath, *, bins: int = 60) -> Sequence[Bin]:
        """Return when the ends of a run's children were saved, from the first to the last."""
        ...

    async def text(
        self, path: RunPath, what: Literal["element", "value", "error", "first"]
    ) -> str | None:
        """Return a value of a run as its stored JSON; None if there is none.

        "element", "value" and "error" are of children, "first" is the initial state of a root run.
        """
        ...

    async def children_of_key(self, path: RunPath, step: str, key: Key) -> Sequence[Row]:
        """Return the children of one key in all visits and acts of a step."""
        ...

    async def entries(
        self,
        path: RunPath,
        *,
        kinds: Collection[EntryKind] | None = None,
        from_number: int = 0,
        limit: int = 100,
    ) -> tuple[Sequence[StoredEntry], int | None]:
        """Return a part of a run's history, in order.

        Args:
            path: The run.
            kinds: Only entries of these kinds. A page looks for open questions ("asked",
                "answered") each time it is made, and a history may have 100,000 updates.
            from_number: Leave out the entries before the update of that number.
            limit: About so many entries: all entries of one number are in one part.

        Returns the entries and the ``from_number`` of the next part, or None after the last part.
        """
        ...

    async def spawned(self, path: RunPath) -> Sequence[RunSummary]:
        """Return the root runs that an action of this run has started, the newest first.

        At most the first 1,000.
        """
        ...
