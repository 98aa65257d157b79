"""What the engine needs from outside, as protocols. Imports values, acts and what they pass on.

A port is bound by the runtime; the engine never knows which implementation it talks to.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, final, runtime_checkable
from weakref import WeakKeyDictionary

from ._action import FunctionAction
from ._breaker import Circuits
from ._errors import DefinitionError, brief
from ._events import ChildName, Decision, Outcome, Status, Update
from ._history import Completed, Entry, Rewound
from ._ids import Key, RunPath
from ._items import Items
from ._rate import Limits
from ._retry import Account, RetryBudget
from ._state import Change
from ._watch import Part, Watched


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
        """What a child has come to, as its fan-out takes it."""
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
    """The fields of the state that it starts with."""
    after: str | None = None
    """The step after which it starts; None: before the first."""
    visits: Mapping[str, int] = field(default_factory=dict[str, int])
    """How often it counts as having completed steps before."""
    forked_from: tuple[str, int] | None = None
    """The run whose state it starts with, and the number of the update that led there."""


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
        return (*rewound, *self.updates, *decided, *completed)


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
    """What it has come to, if it succeeded."""
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
class FindsOrphans(Protocol):
    """What a store may have besides: then ``Runtime.recover`` finds what dead processes left."""

    async def orphans(self) -> Sequence[Orphan]:
        """Return the root runs that have begun, have no end, and that ``claim`` would give away.

        In any order. One of them may be claimed by the time that anybody looks at it.
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
        msg = f"{where} takes a store; {brief(store)} has no {', '.join(lacking)} (see shoal.Store)"
        raise DefinitionError(msg)


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


class Clock(Protocol):
    """Tells the time."""

    def __call__(self) -> float:
        """Return seconds since some fixed moment; never goes back."""
        ...


class Waiter(Protocol):
    """What one task waits for and another one sets: shaped as ``asyncio.Future``, and often one."""

    def __await__(self) -> Generator[Any, Any, None]:
        """Wait until the result is set."""
        ...

    def done(self) -> bool:
        """Tell whether the result is set, or the waiting task was cancelled."""
        ...

    def set_result(self, result: None, /) -> None:
        """Let the waiting task go on. Only when not ``done``."""
        ...


class Thread(Protocol):
    """What runs one plain function, so that the event loop stays free."""

    async def call(
        self,
        function: Callable[..., object],
        kwargs: Mapping[str, Any],
        *,
        abandon: bool,
        on_cancelled: Callable[[], None] | None = None,
    ) -> object:
        """Call ``function(**kwargs)``, and return or raise what it does.

        Cancellation waits for the function to return, as long as the grace; or, where that is to
        ``abandon`` it, doesn't. Its result is then dropped. ``on_cancelled`` is called at once.
        """
        ...

    @property
    def grace(self) -> float:
        """Seconds for which it was waited after a cancellation."""
        ...

    @property
    def is_running(self) -> bool:
        """Whether the function is under way."""
        ...

    @property
    def place(self) -> str:
        """Where it stands."""
        ...

    def leave(self, call: Callable[[], None]) -> None:
        """Have ``call`` called as soon as the function has ended: now, if it doesn't run."""
        ...


class Threads(Protocol):
    """Worker threads."""

    def turn(self) -> Thread:
        """Make what calls one function, for whoever has a seat in a thread."""
        ...


class Watchdog(Protocol):
    """Names what doesn't end though it was cancelled."""

    def watch(
        self, parts: Callable[[], Iterable[Part]], cancelled_at: float | None = None
    ) -> Watched:
        """Expect ``parts`` to end: they are cancelled now, or will be at ``cancelled_at``."""
        ...

    def forget(self, watched: Watched) -> None:
        """Hear that it has ended."""
        ...


class Retries(Protocol):
    """What all that is tried again shares."""

    @property
    def chance(self) -> Callable[[], float]:
        """Makes random numbers from 0 up to, but not, 1."""
        ...

    def account(self, budget: RetryBudget) -> Account:
        """Find the account of a budget; open it if there is none yet."""
        ...


class Seat(Protocol):
    """What an attempt holds while it runs: a slot of every limit that applies to it, a thread."""

    @property
    def granted(self) -> bool:
        """Whether it holds them now."""
        ...

    @property
    def since(self) -> float | None:
        """When it was granted, where something adapts to how attempts end."""
        ...

    @property
    def awaited(self) -> tuple[str, object]:
        """What keeps it waiting: the limit, and which key of it."""
        ...

    @property
    def refusal(self) -> Exception | None:
        """Why it waits in vain, if it does."""
        ...

    def cancel(self) -> None:
        """Give back what was never used: what was charged for it, too."""
        ...

    async def wait(self) -> None:
        """Wait until it holds them, or is lent; interrupted meanwhile, it stays in line.

        Raises:
            RateUnavailable: A rate it needs can't be had.
        """
        ...

    def leave(self) -> None:
        """Give back what it holds, for good. Nothing to do if that is nothing."""
        ...

    def lend(self) -> None:
        """Give back what it holds for a while: the attempt waits for work that it started."""
        ...

    async def regain(self) -> None:
        """Take the slots again, ahead of new attempts; cancelled meanwhile, reclaim them."""
        ...

    def reclaim(self) -> None:
        """Take the slots again at once: for an attempt that is cancelled, and can't wait.

        It runs, so it counts, though there may be no room: then no new attempt starts until enough
        others have ended.
        """
        ...


class Stake(Protocol):
    """What a child of a fan-out holds while it is in flight, unless it has stepped aside."""

    @property
    def is_held(self) -> bool:
        """Whether it holds it now."""
        ...

    is_due: bool
    """Whether it is charged anew when it is held next."""

    def step_aside(self) -> None:
        """Give it back; it is held again with the next seat of the child."""
        ...

    def resume(self) -> None:
        """Hold it again, whether or not there is room: for a child that is about to end."""
        ...


class Place(Protocol):
    """Places in flight of one fan-out."""

    used: int
    """How many are taken."""

    @property
    def slots(self) -> float:
        """How many there are."""
        ...


class Entrance(Protocol):
    """What lets the children of one fan-out start, while it lasts."""

    @property
    def place(self) -> Place:
        """What counts those in flight. Who has no stake is counted by the group."""
        ...

    @property
    def parent(self) -> Any:
        """The run whose children they are; None once the fan-out has ended."""
        ...

    @property
    def governs_all(self) -> bool:
        """Whether every child has to be admitted: else only those that execute what is limited."""
        ...

    def admit(self, child: Any, on_granted: Callable[[], None]) -> Seat:
        """Take all that a child needs to start, or have it stand in line for it.

        Args:
            child: The run.
            on_granted: Called when it may start, if it has to wait, or when its seat was refused.
        """
        ...

    def stake(self) -> Stake:
        """Make what a child holds that was not admitted, since nothing limits its start."""
        ...

    def adapt(self, child: Any) -> None:
        """Hear how a child ended."""
        ...

    def leave(self, children: Sequence[Any]) -> None:
        """Give back what children held in flight."""
        ...

    def give_up(self, child: Any, seat: Any) -> None:
        """Give back what a child took, or stood in line for, that never started."""
        ...

    def close(self) -> None:
        """Give back what is held by children that nobody has applied."""
        ...


class Admission(Protocol):
    """Lets attempts and children start."""

    def entrance(
        self,
        owner: object,
        limits: Limits,
        places: int,
        on_aside: Callable[[int], None],
        *,
        among: str = "",
        parent: Any = None,
    ) -> Entrance:
        """Make what lets the children of one execution of a fan-out start.

        Args:
            owner: What all executions have in common...
            limits: ...and what stands on it.
            places: How many may be in flight.
            on_aside: Called with 1 when a child has stepped aside, with -1 when it is back.
            among: Tells several of one owner apart.
            parent: The run whose children they are.
        """
        ...

    def seat(
        self,
        scopes: tuple[object, ...],
        action: FunctionAction[..., Any],
        data: Mapping[str, object],
        party: Any,
    ) -> Seat | None:
        """Take a seat for an attempt, granted at once where there is room.

        Args:
            scopes: What limits the run that the attempt belongs to.
            action: May have limits of its own.
            data: The fields of the state that it starts from.
            party: The run that takes it: the child of a fan-out, if it is part of one.

        Returns None where nothing limits it.
        """
        ...

    def place(self, party: Any) -> Seat:
        """Take again what a child holds in flight, which has stepped aside."""
        ...

    def charge(self, seat: Any, stake: Any, actual: float) -> None:
        """Correct what was charged for an attempt and its child, wherever ``cost=`` said it."""
        ...

    def pause(self, seat: Any, party: Any, seconds: float) -> bool:
        """Let nothing start for a while with the keys of an attempt.

        These are those of its action, application and runtime, of the child that ``party`` is, and
        of the children which that is part of. Returns whether they keep the next attempt waiting:
        whether the first two have any. Those further up only keep others.
        """
        ...

    def adapt(self, held: Any, error: BaseException | None) -> None:
        """Hear how an attempt ended, before it leaves its seat."""
        ...


class Hosted(Protocol):
    """Work in a task of its own, and whoever waits for its end."""

    @property
    def fatal(self) -> BaseException | None:
        """The KeyboardInterrupt or SystemExit that came out of the work."""
        ...

    async def wait(self) -> BaseException | None:
        """Wait for the end of the work, cancelling it where the wait is interrupted.

        Returns the first interruption, for the caller to raise; None if there was none.
        """
        ...


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What all runs of a runtime share: the ports, bound."""

    clock: Clock
    waiter: Callable[[], Waiter]
    """Makes a waiter."""
    threads: Threads
    watchdog: Watchdog
    retries: Retries
    admission: Admission
    host: Callable[[Callable[[], Coroutine[Any, Any, None]], Callable[[str], None]], Hosted]
    """Starts work in a task of the runtime's; the second function hears why it is cancelled."""
    enter: Callable[[Any, Any], Awaitable[Change]]
    """Has a run execute a graph that is a node of its own graph."""
    context: Callable[[Any, FunctionAction[..., Any], Seat | None, Items], object]
    """Makes what an action's parameter ``context`` gets."""
    native_cancels: Callable[[], Callable[[], int]]
    """Called in a task, gives what counts the native cancellations pending on that task."""
    commit_deadline: float
    """Seconds that the store has to acknowledge a save."""
    max_crashes: int
    """Executions in a row that may die while a child is at work."""
    learned: WeakKeyDictionary[object, Any] = field(default_factory=WeakKeyDictionary)
    """What was learned of a definition, by that definition, for as long as it lives."""
    circuits: WeakKeyDictionary[object, dict[str, Circuits]] = field(
        default_factory=WeakKeyDictionary
    )
    """Of fan-outs with a breaker, by their definitions and names."""
