"""Define the store port: the ``Store`` protocol, and the values that cross it.

The engine calls stores through these protocols alone and never asks which implementation it has.
A store needs ``Store``; each further protocol (``ReadsInParts``, ``FindsOrphans``,
``CachesResults``, ``Prunes``, ``Browses``) is optional and enables one feature.
"""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Literal, NamedTuple, Protocol, final, runtime_checkable

from shoal._errors.exceptions import DefinitionError, brief, most_like
from shoal._events.events import ChildName, Decision, Outcome, Status, Update
from shoal._events.identity import Key, RunPath
from shoal._limits.flows import Priority
from shoal._state.state import Operation

from ._history import (
    BudgetLevel,
    Completed,
    Entry,
    QuestionAnswered,
    QuestionAsked,
    Rewound,
    Steered,
    StepBegun,
)

RunStatus = Status | Literal["running"]
"""The status of a root run. A run without a recorded end is running, even if its process died."""
ChildStatus = RunStatus | Literal["skipped"]
"""The status of a child."""

ENDED: tuple[RunStatus, ...] = ("succeeded", "failed", "cancelled")
"""The statuses that are final: ``prune`` deletes runs with these by default. A halted run is not
among them, because it waits for an answer."""


class SavedRun(Protocol):
    """The view of a run that the engine passes to a store."""

    @property
    def path(self) -> RunPath:
        """The run's identity."""
        ...

    @property
    def position(self) -> int:
        """The child's place in input order, counted from 0."""
        ...

    @property
    def element(self) -> object:
        """The element that the child works on."""
        ...

    @property
    def digest(self) -> str:
        """A hash of the child's input: its initial state, its act and the act's version."""
        ...

    @property
    def status(self) -> Status | None:
        """The run's final status; None while it runs, and for a child that was skipped."""
        ...

    @property
    def reason(self) -> str:
        """Why the run was cancelled or skipped; empty if it was neither."""
        ...

    @property
    def winner(self) -> ChildName | None:
        """The child that won the race, if this child was cancelled as a loser."""
        ...

    @property
    def error(self) -> BaseException | None:
        """The exception that the run failed with; None if it didn't fail."""
        ...

    @property
    def step(self) -> str | None:
        """The step at which the run stands, or in which it has ended; None if that isn't known."""
        ...

    @property
    def used(self) -> bool:
        """Whether the parent used the child's result."""
        ...

    @property
    def value(self) -> object:
        """The child's result, as its fan-out receives it; of a halted child, its questions."""
        ...

    @property
    def attempts(self) -> int:
        """The number of attempts of the step in which the child ended."""
        ...

    @property
    def elapsed(self) -> float:
        """Seconds from the run's start to its end."""
        ...

    @property
    def abandoned(self) -> bool:
        """Whether the child left a thread behind that was still running."""
        ...

    @property
    def crashes(self) -> int:
        """The number of consecutive executions that died while the child was executing its step.

        Saved with every record of the child. The engine counts a crash before the child starts,
        because a process that dies can't count it afterwards.
        """
        ...

    @property
    def outcome(self) -> Outcome:
        """The child's end as a value; created when it is first read."""
        ...

    @property
    def last_update(self) -> Update | None:
        """The child's last update, saved with its end; None if there is none."""
        ...

    @property
    def packed(self) -> object:
        """The return value of ``Store.pack``; None if the child didn't succeed."""
        ...


def _no_visits() -> Mapping[str, int]:
    return {}  # for each root run, and a call of ``dict[str, int]`` costs ten times as much


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """The start of a root run."""

    application: str
    """The application's name."""
    version: str
    """The application's version."""
    first: Mapping[str, object]
    """The fields of the initial state, without the secret ones."""
    after: str | None = None
    """The step after which the run starts; None if it starts before the first step."""
    visits: Mapping[str, int] = field(default_factory=_no_visits)
    """How many visits of each step count as completed when the run starts (a fork has some)."""
    forked_from: tuple[str, int] | None = None
    """The run whose state this one starts with, and the number of the update that led there."""
    secret: frozenset[str] = frozenset()
    """The names of the secret fields. Their values are never passed to a store."""
    spawned_by: tuple[RunPath, str] | None = None
    """The run whose action started this one, and the step of that action; None if none did."""
    owner: str = ""
    """Whose run it is, as the program calls them; empty if it has no owner."""
    priority: Priority | None = None
    """How urgent it is, unless an execution is asked to be otherwise; None: that isn't known."""


@final
class Batch(NamedTuple):
    """The content of one save. A store keeps all of it or nothing.

    A child's last update and its outcome are saved in the parent's batch, with the parent's update
    that applies them; the child itself saves only its earlier steps. For a child that the store
    doesn't know yet, the batch creates a record: step, visit, act and key (from its path),
    position, element and digest.
    """

    run: SavedRun
    """The run whose state the updates change."""
    updates: Sequence[Update] = ()
    """The run's new updates, in the order of their numbers."""
    applied: Sequence[SavedRun] = ()
    """Children whose end is saved here; ``updates[i]`` applies ``applied[i]``."""
    unapplied: Sequence[SavedRun] = ()
    """Children that ended without an update of the parent: failed, cancelled, or too late."""
    step_completed: str | None = None
    """The step that this save completes; the last update, if there is one, completes it."""
    decision: Decision | None = None
    """How the last update decides a race. A later execution keeps that winner."""
    ended: Status | None = None
    """How this execution of the run ended, if this is its last save."""
    before: int = 0
    """The number of the run's last update before this save."""
    begun: Beginning | None = None
    """The start of the root run; in its first save only."""
    rewound: Rewound | None = None
    """The step that the run goes back into, before the updates of this save."""
    afresh: bool = False
    """Whether everything saved before of the run and its descendants is void."""
    holder: str = ""
    """The execution that saves: the one that has claimed the root run."""
    questions: Sequence[QuestionAsked | QuestionAnswered] = ()
    """Questions that the run asks with this save, or answers that arrived."""
    step_begun: StepBegun | None = None
    """The declaration of a fan-out, in its first save in this execution."""
    steered: Sequence[Steered] = ()
    """How the root run was steered from outside."""

    spent: Sequence[BudgetLevel] = ()
    """What the run has spent of budgets so far; of root runs only."""

    @property
    def path(self) -> RunPath:
        """The identity of the run whose state the updates change."""
        return self.run.path

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The entries that this save appends to the history of the run."""
        rewound = () if self.rewound is None else (self.rewound,)
        step = self.step_completed
        completed = () if step is None else (Completed(step, self.before),)
        decided = () if self.decision is None else (self.decision,)
        begun = () if self.step_begun is None else (self.step_begun,)
        asked, steered = self.questions, self.steered
        begins = (*rewound, *begun, *self.updates, *decided, *completed)
        return (*begins, *asked, *self.spent, *steered)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A root run, as ``Store.load`` returns it."""

    beginning: Beginning
    status: Status | None
    """How the last execution ended; None if the store has no end of it."""
    reason: str = ""
    """Why the run was cancelled; empty if it wasn't."""


@final
class Orphan(NamedTuple):
    """A root run that has begun and not ended, and that no process executes."""

    run_id: str
    application: str
    """The name of its application."""
    version: str
    """The version of its application."""
    secret: frozenset[str] = frozenset()
    """The names of its secret fields; a caller that resumes the run passes their values again."""
    is_paused: bool = False
    """Whether it is paused: then it isn't recovered until it is resumed.

    False if it was cancelled besides, so that it only lacks its end.
    """
    priority: Priority | None = None
    """How urgent it is; None: that isn't known."""


@final
class RunSummary(NamedTuple):
    """A root run, as a list of runs shows it."""

    run_id: str
    application: str
    """The name of its application."""
    version: str
    """The version of its application."""
    status: RunStatus
    began_at: float
    """Seconds since 1970."""
    ended_at: float | None = None
    """When the last execution ended, in seconds since 1970; None if it hasn't ended."""
    reason: str = ""
    """Why the run was cancelled; empty if it wasn't."""
    error: str = ""
    """The error in a line or a few; empty if the run didn't fail, or the store has no error."""
    holder: str = ""
    """The process that executes the run now, in words for people; empty if there is none."""
    forked_from: str | None = None
    """The run that this one was forked from."""
    spawned_by: tuple[RunPath, str] | None = None
    """The run whose action started this one, and the step of that action; None if none did."""
    owner: str = ""
    """Whose run it is; empty if it has no owner."""
    priority: Priority | None = None
    """How urgent it is; None: that isn't known."""


@final
class FailedChild(NamedTuple):
    """A failed child, as a list of failures shows it. Made without decoding its element."""

    step: str
    visit: int
    act: str
    key: Key
    position: int
    error: str
    """The error, in a line or a few."""
    attempts: int = 1
    elapsed: float = 0.0
    """Seconds from the child's start to its end."""
    applied: int | None = None
    """The number of the parent's last update that applied it."""
    lost: bool = False
    """Whether a sibling won the race that the child was in; then its failure is harmless."""


@final
class ChildRecord(NamedTuple):
    """A child, as a store returns it.

    A named tuple, because there is one for each child: it costs a third of a frozen dataclass.
    """

    step: str
    """The parent's step that started the child."""
    visit: int
    """The visit of that step, counted from 0."""
    act: str
    key: Key
    position: int
    element: object
    digest: str
    status: Status | Literal["skipped"] | None
    """How the child ended; None if the store has no end of it."""
    value: object = None
    """The result of a succeeded child, or the questions of a halted one, as plain data."""
    applied: int | None = None
    """The number of the parent's last update that applied it."""
    used: bool = True
    """Whether the parent used the child's result."""
    reason: str = ""
    """Why the child was cancelled or skipped; empty if it was neither."""
    winner: ChildName | None = None
    """The child that won the race, if this child was cancelled as a loser."""
    error: Exception | None = None
    """The exception that the child failed with; None if it didn't fail."""
    attempts: int = 1
    elapsed: float = 0.0
    """Seconds from the child's start to its end, in the execution in which it ended."""
    abandoned: bool = False
    """Whether the child left a thread behind that was still running."""
    crashes: int = 0
    """The number of consecutive executions that died while the child was executing its step."""


@final
class DoneChild(NamedTuple):
    """A child that is done: it succeeded, and its parent has applied and used its result.

    Most children of a long step are done. Their elements and values are not read when a run is
    resumed.
    """

    step: str
    visit: int
    act: str
    key: Key
    position: int
    digest: str
    applied: int
    """The number of the parent's last update that applied it."""
    elapsed: float = 0.0
    """Seconds from the child's start to its end, in the execution in which it ended."""


class Store(Protocol):
    """The place where runs are saved: their starts, their updates, and the ends of their children.

    A save is kept as a whole or not at all. Saved entries never change; to void some of them, the
    engine saves a further entry that says so. All calls come from the event loop. Calls that wait
    may be cancelled, except ``save``, ``claim`` and ``release``, which the engine shields.
    """

    async def claim(self, run_id: str, holder: str) -> bool | None:
        """Give the execution ``holder`` the root run, known or not, and all its descendants.

        From now on the store refuses saves of other holders with ``LeaseLost``.

        Returns whether the previous holder died, because it never released the run. A store that
        can't tell returns None; then no child is ever ``Poisoned``.

        Raises:
            RunClaimed: Another execution holds the run.
        """
        ...

    async def load(self, run_id: str) -> RunRecord | None:
        """Return a root run; None if the store doesn't know it."""
        ...

    def pack(self, child: SavedRun) -> object:
        """Prepare the result of a child that is about to succeed for the save of its end.

        Called on the event loop, before the save that holds the child's end; in that save,
        ``child.packed`` is the return value. A store that has nothing to prepare returns None.

        Raises:
            NotData: The value, element or last update can't be saved; the child fails.
            UpdateTooLarge: They are larger than the store accepts; the child fails.
        """
        ...

    def save(self, batch: Batch) -> Awaitable[None] | None:
        """Save all of ``batch``, or nothing.

        Returns None if the batch is durable already, else an awaitable that ends when it is. An
        error, raised at once or when awaited, means that the batch wasn't saved. It ends the
        execution, with two exceptions: ``NotData`` and ``UpdateTooLarge``, raised at once, are
        failures of the step that made the values in the batch.

        Raises:
            NotData: A value in the batch can't be saved.
            UpdateTooLarge: The batch is larger than the store accepts.
            LeaseLost: Another execution has claimed the run.
        """
        ...

    async def read(self, path: RunPath, from_number: int = 0) -> Sequence[Entry]:
        """Return the history of a run, in order; empty if the run is not known.

        Args:
            path: The run.
            from_number: Leave out the entries before the update of that number.
        """
        ...

    async def children(
        self, path: RunPath, step: str | None = None, visit: int | None = None
    ) -> Sequence[ChildRecord]:
        """Return the records of a run's children, in any order.

        Args:
            path: The run.
            step: Only children of that step.
            visit: Only children of that visit of the step.
        """
        ...

    async def release(self, run_id: str, holder: str) -> None:
        """Release the root run, if ``holder`` holds it; else do nothing."""
        ...


@runtime_checkable
class ReadsInParts(Protocol):
    """An optional extension of a store: runs are resumed in parts of a bounded size.

    With it, the memory that resuming takes grows with the children in flight, and not with those
    that are done; without it, the engine reads everything at once. A child is *done* if it
    succeeded, an update of its parent has applied it, and the parent uses its result (see
    ``DoneChild``).

    Between two calls for parts of the same thing nothing of the run is saved, except children that
    are done or end meanwhile. The store may return those or leave them out.
    """

    async def read_part(
        self, path: RunPath, from_number: int = 0
    ) -> tuple[Sequence[Entry], int | None]:
        """Return the first part of the entries that ``read`` returns, of a size the store likes.

        Returns the entries and the ``from_number`` of the next part, or None after the last part.
        All entries of one number are in one part.
        """
        ...

    async def done(self, path: RunPath) -> Mapping[tuple[str, int], int]:
        """Count the children of a run that are done, by step and visit."""
        ...

    async def done_part(
        self, path: RunPath, step: str, visit: int | None = None, after: int = 0
    ) -> tuple[Sequence[DoneChild], int | None]:
        """Return some children of a step that are done, in the order in which they were applied.

        Args:
            path: The parent.
            step: The step's name.
            visit: Only children of that visit.
            after: Only children that were applied by an update with a higher number.

        Returns the children and the ``after`` of the next part, or None after the last part.
        """
        ...

    async def not_done(
        self, path: RunPath, step: str | None = None, visit: int | None = None
    ) -> Sequence[ChildRecord]:
        """Return the records that ``children`` returns, without those that are done."""
        ...


@runtime_checkable
class FindsOrphans(Protocol):
    """An optional extension of a store: ``Runtime.recover`` finds the runs of dead processes."""

    async def orphans(self) -> Sequence[Orphan]:
        """Return the root runs that have begun, have no end, and can be claimed.

        In any order. Another process may claim one of them before the caller does.
        """
        ...


@runtime_checkable
class CachesResults(Protocol):
    """An optional extension of a store: it caches the results of actions with ``cache=``.

    All runs in the store share the cache, in whichever process they are executed.
    """

    async def recall(self, key: str) -> Sequence[Operation] | None:
        """Return the operations that are cached under ``key``.

        None if there are none, if they have expired, or if they can't be decoded any more because
        their types are gone.
        """
        ...

    async def remember(self, key: str, operations: Sequence[Operation], seconds: float) -> None:
        """Cache ``operations`` for that long; they replace an earlier entry of the key.

        Later calls delete expired entries, so the cache is bounded by the number of entries made
        within the longest time to live. May be cancelled; then the entry was made or not.

        Args:
            key: A hash of the fields that the action read, of its name and its version.
            operations: The changes that the action made to its state.
            seconds: The time to live, by the clock that all processes share; ``math.inf`` if the
                entry never expires.

        Raises:
            NotData: The operations can't be saved; the action fails.
            UpdateTooLarge: They are larger than the store accepts; the action fails.
        """
        ...


@runtime_checkable
class Prunes(Protocol):
    """An optional extension of a store: ``shoal prune`` deletes old runs."""

    async def prune(
        self, older_than: float, statuses: Collection[RunStatus] = ENDED, *, dry_run: bool = False
    ) -> int:
        """Delete old root runs with all their descendants, and return their number.

        Claimed runs are never deleted. Expired cache entries are deleted as well. May be called
        while runs are executed, in this process and others, and delays none of them for long. If it
        is cancelled or fails, some of the runs are deleted: readers see each run as a whole or not
        at all, and the next call frees the remaining space.

        Args:
            older_than: Seconds since the run ended, or, if it has no end, since its last sign of
                life.
            statuses: Only runs with one of these statuses. By default those that have ended. Halted
                runs are not among them, because they wait for an answer; the others may be
                resumed.
            dry_run: Count the runs, and delete nothing.
        """
        ...


@runtime_checkable
class Browses(Protocol):
    """An optional extension of a store: its runs can be listed and inspected.

    Each call is quick, however many runs and children there are, and also while they run.
    """

    async def runs(
        self,
        *,
        status: RunStatus | None = None,
        limit: int = 50,
        after: str | None = None,
        owner: str | None = None,
    ) -> Sequence[RunSummary]:
        """Return root runs, the ones that began last first.

        Args:
            status: Only runs with that status.
            limit: At most so many.
            after: Only runs behind the run of this id, which is the last one of the previous page.
                If that run is not known, the result is empty.
            owner: Only runs of that owner. Passed only if it is given.
        """
        ...

    async def summary(self, run_id: str) -> RunSummary | None:
        """Return one root run; None if the store doesn't know it."""
        ...

    async def counts(self, path: RunPath) -> Mapping[ChildStatus, int]:
        """Return the number of a run's children by status, without the statuses that none has."""
        ...

    async def failures(
        self, path: RunPath, *, limit: int = 50, skip: int = 0
    ) -> Sequence[FailedChild]:
        """Return the failed children of a run, in the order in which the run applied them.

        Children that the run has not applied (because it failed itself at that moment) come first.
        The types of elements and errors needn't be imported.

        Args:
            path: The run.
            limit: At most so many.
            skip: Leave out that many first.
        """
        ...


async def similar_run(store: object, run_id: str) -> str:
    """Return the id among the latest runs that is most like a mistyped one; "" if none is.

    A store that can't list its runs, or fails to, has none: this completes an error, and must not
    hide it.
    """
    if not isinstance(store, Browses):
        return ""
    try:
        latest = await store.runs(limit=_LATEST)
    except Exception:  # noqa: BLE001 # see above
        return ""
    return most_like(run_id, [one.run_id for one in latest])


_LATEST = 200
"""Runs that a mistyped id is compared with: one page of a store's list, so one query."""


def check_store(store: object, where: str) -> None:
    """Refuse an object that is not a store.

    Raises:
        DefinitionError: The object lacks methods of a store; the message names them.
    """
    calls = ("claim", "load", "pack", "save", "read", "children", "release")
    lacking = [name for name in calls if not callable(getattr(store, name, None))]
    if isinstance(store, type):
        msg = f"{where} takes a store, and {store.__name__} is a class: write it with ()"
        raise DefinitionError(msg)
    if lacking:
        lacks = ", ".join(lacking)
        msg = f"{where} takes a store; {brief(store)} has no {lacks} (see shoal.stores.Store)"
        if isinstance(store, str | PurePath):
            msg = f"{where} takes a store, not its location: {_named_by(str(store))}"
        raise DefinitionError(msg)


def _named_by(place: str) -> str:
    """Return how to write the store that a user named by its file or URL, without a password."""
    if place.startswith(("postgresql://", "postgres://")):
        return "write PostgresStore(...) with that URL"
    return f"write SQLiteStore({place!r})"


class NullStore:
    """Keeps nothing. Runs without a store use it; stores that only save derive from it."""

    __slots__ = ()

    async def claim(self, run_id: str, holder: str) -> None:
        """Accept every claim."""

    async def load(self, run_id: str) -> RunRecord | None:
        """Return None: no run is known."""

    def pack(self, child: SavedRun) -> object:
        """Prepare nothing."""

    def save(self, batch: Batch) -> Awaitable[None] | None:
        """Drop ``batch``."""

    async def read(self, path: RunPath, from_number: int = 0) -> Sequence[Entry]:
        """Return an empty history."""
        return ()

    async def children(
        self, path: RunPath, step: str | None = None, visit: int | None = None
    ) -> Sequence[ChildRecord]:
        """Return no children."""
        return ()

    async def release(self, run_id: str, holder: str) -> None:
        """Do nothing."""
