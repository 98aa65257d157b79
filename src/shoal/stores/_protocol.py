"""What a store is, and what the engine and it tell each other. Imports events, history and ids.

The port of whatever keeps runs. The engine never knows which implementation it talks to.
"""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Literal, NamedTuple, Protocol, final, runtime_checkable

from shoal._errors.exceptions import DefinitionError, brief
from shoal._events.events import ChildName, Decision, Outcome, Status, Update
from shoal._events.identity import Key, RunPath
from shoal._state.state import Operation

from ._history import Completed, Entry, QuestionAnswered, QuestionAsked, Rewound, StepBegun

RunStatus = Status | Literal["running"]
"""How it stands with a root run. What has no end is running, also where its process has died."""
ChildStatus = RunStatus | Literal["skipped"]
"""How it stands with a child."""

ENDED: tuple[RunStatus, ...] = ("succeeded", "failed", "cancelled")
"""Runs that wait for nobody: what is pruned unless something else is asked for."""


class SavedRun(Protocol):
    """A run, as stores see it."""

    @property
    def path(self) -> RunPath:
        """Its identity."""
        ...

    @property
    def position(self) -> int:
        """A child's place among the others, counted from 0."""
        ...

    @property
    def element(self) -> object:
        """What a child works on."""
        ...

    @property
    def digest(self) -> str:
        """A hash of what a child works on: what it starts with, its act and the act's version."""
        ...

    @property
    def status(self) -> Status | None:
        """How it ended; None while it goes on, and for a child that was skipped."""
        ...

    @property
    def reason(self) -> str:
        """Why it was cancelled or skipped, if it was."""
        ...

    @property
    def winner(self) -> ChildName | None:
        """Who decided the race that a child was cancelled for."""
        ...

    @property
    def error(self) -> BaseException | None:
        """What it failed with, if it did."""
        ...

    @property
    def used(self) -> bool:
        """Whether the parent took what a child returned."""
        ...

    @property
    def value(self) -> object:
        """What a child has come to, as its fan-out takes it; if it is halted, what it waits for."""
        ...

    @property
    def attempts(self) -> int:
        """Tries of the step that a child ended in."""
        ...

    @property
    def elapsed(self) -> float:
        """Seconds from its start to its end."""
        ...

    @property
    def abandoned(self) -> bool:
        """Whether a child has left a thread behind that still ran."""
        ...

    @property
    def crashes(self) -> int:
        """In how many executions in a row, which have died, a child was at work at its step.

        Kept with what is known of it, whenever anything of it is saved. Counted beforehand.
        """
        ...

    @property
    def outcome(self) -> Outcome:
        """How a child ended, as a value; made when first asked for."""
        ...

    @property
    def last_update(self) -> Update | None:
        """A child's last update, saved with its end; None if there is none."""
        ...

    @property
    def packed(self) -> object:
        """What ``Store.pack`` has made of it when it ended well; None: nothing, or it didn't."""
        ...


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """What a root run starts from."""

    application: str
    """The application's name."""
    version: str
    """The application's version."""
    first: Mapping[str, object]
    """The fields of the state that it starts with, but for those that are secret."""
    after: str | None = None
    """The step after which it starts; None: before the first."""
    visits: Mapping[str, int] = field(default_factory=dict[str, int])
    """How often it counts as having completed steps before."""
    forked_from: tuple[str, int] | None = None
    """The run whose state it starts with, and the number of the update that led there."""
    secret: frozenset[str] = frozenset()
    """The names of its secret fields. What they hold, no store is ever given."""


@final
class Batch(NamedTuple):
    """What one save holds: all of it or nothing is kept.

    A child's last update and its outcome are saved here, by the parent's update that applies it;
    the child itself saves only its earlier steps. What is kept of a child that was not known before
    is its step, visit, act and key (which are in its path), position, element and digest.
    """

    run: SavedRun
    """The run whose state the updates change."""
    updates: Sequence[Update] = ()
    """In the order of their numbers."""
    applied: Sequence[SavedRun] = ()
    """Children whose end is saved here, each applied by the update at the same place."""
    unapplied: Sequence[SavedRun] = ()
    """Children that ended without an update of the parent: failed, cancelled, come too late."""
    step_completed: str | None = None
    """The step that is completed with this: by the last of the updates, if there are any."""
    decision: Decision | None = None
    """How the last of the updates decides a race: who goes on after that has no other winner."""
    ended: Status | None = None
    """How this execution of the run ended, if this is its last save."""
    before: int = 0
    """The number of the run's last update before this save."""
    begun: Beginning | None = None
    """What a root run starts from: in its first save."""
    rewound: Rewound | None = None
    """Where the run goes back to, before the updates."""
    afresh: bool = False
    """Whether what was kept of the run and its descendants before counts no more."""
    holder: str = ""
    """The execution that saves: the one that has claimed the root run."""
    questions: Sequence[QuestionAsked | QuestionAnswered] = ()
    """What the run has asked with this, or what somebody has answered."""
    step_begun: StepBegun | None = None
    """What the fan-out declares whose first save in this execution this is."""

    @property
    def path(self) -> RunPath:
        """The identity of the run whose state the updates change."""
        return self.run.path

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What the save adds to the history of the run."""
        rewound = () if self.rewound is None else (self.rewound,)
        step = self.step_completed
        completed = () if step is None else (Completed(step, self.before),)
        decided = () if self.decision is None else (self.decision,)
        begun = () if self.step_begun is None else (self.step_begun,)
        return (*rewound, *begun, *self.updates, *decided, *completed, *self.questions)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """What a store says of a root run."""

    beginning: Beginning
    status: Status | None
    """How its last execution ended; None: that has not ended, as far as is known."""
    reason: str = ""
    """Why it was cancelled, if it was."""


@final
class Orphan(NamedTuple):
    """A root run that has begun and not ended, and that nobody executes."""

    run_id: str
    application: str
    """The name of its application."""
    version: str
    """The version of that."""
    secret: frozenset[str] = frozenset()
    """The names of its secret fields, which whoever resumes it has to give again."""


@final
class RunSummary(NamedTuple):
    """A root run, as a list of runs shows it."""

    run_id: str
    application: str
    """The name of its application."""
    version: str
    """The version of that."""
    status: RunStatus
    began_at: float
    """Seconds since 1970."""
    ended_at: float | None = None
    """When its last execution has ended; None: it has not."""
    reason: str = ""
    """Why it was cancelled, if it was."""
    error: str = ""
    """What it failed with, in a line or a few; empty where it didn't, or nobody has kept it."""
    holder: str = ""
    """Who executes it now, for people to read; empty: nobody."""
    forked_from: str | None = None
    """The run that it was forked from."""


@final
class FailedChild(NamedTuple):
    """A child that has failed, as a list of failures shows it. Its element isn't looked at."""

    step: str
    visit: int
    act: str
    key: Key
    position: int
    error: str
    """What it failed with, in a line or a few."""
    attempts: int = 1
    elapsed: float = 0.0
    """Seconds from its start to its end."""
    applied: int | None = None
    """The number of the parent's last update that applied it."""
    lost: bool = False
    """Whether a sibling has won: it is a loser of a race that was decided, which harms nobody."""


@final
class ChildRecord(NamedTuple):
    """What a store says of a child. Made for each child, so a named tuple: that costs a third."""

    step: str
    """The parent's step that started it..."""
    visit: int
    """...in which visit."""
    act: str
    key: Key
    position: int
    element: object
    digest: str
    status: Status | Literal["skipped"] | None
    """How it ended; None: it has not, as far as is known."""
    value: object = None
    """What it has come to, if it succeeded; what it waits for, if it is halted: plain data."""
    applied: int | None = None
    """The number of the parent's last update that applied it."""
    used: bool = True
    """Whether the parent took what it returned."""
    reason: str = ""
    """Why it was cancelled or skipped, if it was."""
    winner: ChildName | None = None
    """Who decided the race that it was cancelled for, if it was."""
    error: Exception | None = None
    """What it failed with, if it did."""
    attempts: int = 1
    elapsed: float = 0.0
    """Seconds from its start to its end, in the execution in which it ended."""
    abandoned: bool = False
    """Whether it has left a thread behind that still ran."""
    crashes: int = 0
    """In how many executions in a row, which have died, it was at work at its step."""


@final
class DoneChild(NamedTuple):
    """A child that is all about: it succeeded, its parent has taken what it returned, for good.

    That is what most records say of most children. What they worked on and have come to isn't read.
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
    """Seconds from its start to its end, in the execution in which it ended."""


class Store(Protocol):
    """Where runs are kept: what they start from, their updates, and how their children ended.

    A save is kept as a whole or not at all. Nothing that was kept changes; what counts no more is
    followed by a save that says so. All calls come from the event loop; those that wait may be
    cancelled, but for ``save``, ``claim`` and ``release``, which are shielded.
    """

    async def claim(self, run_id: str, holder: str) -> bool | None:
        """Let the execution ``holder`` have the root run, known or not, and all its descendants.

        Saves of other holders are refused from now on, with ``LeaseLost``.

        Returns whether the one that had it before has died, for it never gave it back. A store that
        can't tell returns None; then no child is ever ``Poisoned``.

        Raises:
            RunClaimed: Another execution has it.
        """
        ...

    async def load(self, run_id: str) -> RunRecord | None:
        """Say what is known of a root run; None if nothing is."""
        ...

    def pack(self, child: SavedRun) -> object:
        """Prepare to keep what a child has come to, which is about to end well.

        Called on the event loop, before the save that holds the end, where ``child.packed`` is what
        this has returned. A store that has nothing to prepare returns None.

        Raises:
            NotData: Its value, element or last update can't be kept: so the child fails.
            UpdateTooLarge: They are larger than the store takes: so the child fails.
        """
        ...

    def save(self, batch: Batch) -> Awaitable[None] | None:
        """Keep ``batch``, all or nothing.

        Returns None where it is safe already, else an awaitable that ends when it is; raises, at
        once or when awaited, where it could not be kept. That ends the execution, but for two
        errors raised at once, which are failures of the step that made what is in the batch.

        Raises:
            NotData: Something in it can't be kept.
            UpdateTooLarge: It is larger than the store takes.
            LeaseLost: Another execution has claimed the run.
        """
        ...

    async def read(self, path: RunPath, from_number: int = 0) -> Sequence[Entry]:
        """Return the history of a run, in order; nothing if it is not known.

        Args:
            path: The run.
            from_number: Leave out what came before the update of that number.
        """
        ...

    async def children(
        self, path: RunPath, step: str | None = None, visit: int | None = None
    ) -> Sequence[ChildRecord]:
        """Return what is known of the children of a run, in any order.

        Args:
            path: The run.
            step: Only those of that step.
            visit: Only those of that visit of the step.
        """
        ...

    async def release(self, run_id: str, holder: str) -> None:
        """Give the root run back, if ``holder`` has it."""
        ...


@runtime_checkable
class ReadsInParts(Protocol):
    """What a store may have besides: then a run is taken up again in parts of a bounded size.

    So the memory of that follows what is in flight, and not what has been done; from other stores
    everything is read at once. A child counts as *done* if it succeeded, an update of its parent's
    has applied it, and the parent uses what it returned (see ``DoneChild``).

    Nobody saves anything of the run between two calls for parts of the same thing, but for children
    that are done or end meanwhile, which may be left out or not.
    """

    async def read_part(
        self, path: RunPath, from_number: int = 0
    ) -> tuple[Sequence[Entry], int | None]:
        """Return a part of what ``read`` returns: its first entries, as many as are convenient.

        Returns them and the ``from_number`` of the next part; None: there is none. All entries of
        one number are in one part.
        """
        ...

    async def done(self, path: RunPath) -> Mapping[tuple[str, int], int]:
        """Count the children of a run that are done: by step and visit."""
        ...

    async def done_part(
        self, path: RunPath, step: str, visit: int | None = None, after: int = 0
    ) -> tuple[Sequence[DoneChild], int | None]:
        """Return some children of a step that are done, in the order in which they were applied.

        Args:
            path: The parent.
            step: The step's name.
            visit: Only those of that visit.
            after: Only those that a later update than that of this number has applied.

        Returns them and the ``after`` of the next part; None: there is none.
        """
        ...

    async def not_done(
        self, path: RunPath, step: str | None = None, visit: int | None = None
    ) -> Sequence[ChildRecord]:
        """Return what ``children`` returns, but for those that are done."""
        ...


@runtime_checkable
class FindsOrphans(Protocol):
    """What a store may have besides: then ``Runtime.recover`` finds what dead processes left."""

    async def orphans(self) -> Sequence[Orphan]:
        """Return the root runs that have begun, have no end, and that ``claim`` would give away.

        In any order. One of them may be claimed by the time that anybody looks at it.
        """
        ...


@runtime_checkable
class CachesResults(Protocol):
    """What a store may have besides: then it remembers results of actions with ``cache=``.

    All runs in it share them, whichever process they live in.
    """

    async def recall(self, key: str) -> Sequence[Operation] | None:
        """Return what was remembered under ``key``.

        None: nothing was, its time has run out, or it can't be read any more, for its types are
        gone.
        """
        ...

    async def remember(self, key: str, operations: Sequence[Operation], seconds: float) -> None:
        """Remember ``operations`` for that long; what was there before is replaced.

        What has run out goes in time, with later calls at the latest: so what is kept is bounded by
        what was remembered in the longest time to live. May be cancelled: then it was remembered or
        not.

        Args:
            key: A hash of what the action has read, of its name and its version.
            operations: What it has changed in its state.
            seconds: For how long that counts, by the clock that all processes share; ``math.inf``:
                until somebody deletes it.

        Raises:
            NotData: They can't be kept: so the action fails.
            UpdateTooLarge: They are larger than the store takes: so the action fails.
        """
        ...


@runtime_checkable
class Prunes(Protocol):
    """What a store may have besides: then ``shoal runs prune`` deletes old runs."""

    async def prune(
        self, older_than: float, statuses: Collection[RunStatus] = ENDED, *, dry_run: bool = False
    ) -> int:
        """Delete root runs, with all their descendants, and return how many they were.

        One that somebody has claimed is never deleted. Results whose time has run out go as well.
        It may be called while runs are executed, here and elsewhere, and holds none of them up for
        long. Cancelled or failed, it has deleted some of the runs, each of them as a whole for
        whoever looks; what else they take up goes with the next call.

        Args:
            older_than: Seconds since the run has ended; where it has no end, since it has given its
                last sign of life.
            statuses: Only runs that stand so. By default those that have ended, but for halted
                ones, which wait for somebody's answer; the others may be resumed by somebody.
            dry_run: Whether nothing is deleted, only counted.
        """
        ...


@runtime_checkable
class Browses(Protocol):
    """What a store may have besides: then runs in it can be listed, and looked into.

    Each call takes little time, however many runs and children there are and while they go on.
    """

    async def runs(
        self, *, status: RunStatus | None = None, limit: int = 50, after: str | None = None
    ) -> Sequence[RunSummary]:
        """Return root runs, those that have begun last first.

        Args:
            status: Only those that stand so.
            limit: At most so many.
            after: Only those behind the run of this id: the last of the page before. None at all if
                it is not known.
        """
        ...

    async def summary(self, run_id: str) -> RunSummary | None:
        """Return one root run; None if it is not known."""
        ...

    async def counts(self, path: RunPath) -> Mapping[ChildStatus, int]:
        """Return how many children of a run stand how; those of none are left out."""
        ...

    async def failures(
        self, path: RunPath, *, limit: int = 50, skip: int = 0
    ) -> Sequence[FailedChild]:
        """Return children of a run that have failed, in the order in which it has applied them.

        Those that it has not applied, since it failed itself then, come first. Types of elements
        and errors needn't be imported.

        Args:
            path: The run.
            limit: At most so many.
            skip: Leave out so many first.
        """
        ...


def check_store(store: object, where: str) -> None:
    """Refuse what is no store.

    Raises:
        DefinitionError: Naming the methods that it lacks.
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
            msg = f"{where} takes a store, and not where one is: {_named_by(str(store))}"
        raise DefinitionError(msg)


def _named_by(place: str) -> str:
    """Say how to write the store that a user has named by its file or URL, without a password."""
    if place.startswith(("postgresql://", "postgres://")):
        return "write PostgresStore(...) with that URL"
    return f"write SQLiteStore({place!r})"


class NullStore:
    """Keeps nothing: what runs use that have no store. A base for stores that only save."""

    __slots__ = ()

    async def claim(self, run_id: str, holder: str) -> None:
        """Let anybody have it."""

    async def load(self, run_id: str) -> RunRecord | None:
        """Know nothing."""

    def pack(self, child: SavedRun) -> object:
        """Prepare nothing."""

    def save(self, batch: Batch) -> Awaitable[None] | None:
        """Forget ``batch``."""

    async def read(self, path: RunPath, from_number: int = 0) -> Sequence[Entry]:
        """Know nothing."""
        return ()

    async def children(
        self, path: RunPath, step: str | None = None, visit: int | None = None
    ) -> Sequence[ChildRecord]:
        """Know nothing."""
        return ()

    async def release(self, run_id: str, holder: str) -> None:
        """Hold nothing."""
