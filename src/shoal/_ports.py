"""What the engine needs from outside, as protocols. Imports values and acts only.

A port is bound by the runtime; the engine never knows which implementation it talks to.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, final
from weakref import WeakKeyDictionary

from ._action import FunctionAction
from ._events import Decision, Outcome, Status, Update
from ._ids import RunPath
from ._state import Change


class EndedChild(Protocol):
    """A child run that has ended."""

    @property
    def path(self) -> RunPath:
        """Its identity."""
        ...

    @property
    def outcome(self) -> Outcome:
        """How it ended; made when first asked for."""
        ...

    @property
    def last_update(self) -> Update | None:
        """Its last update, saved with its end; None if there is none."""
        ...


@final
class Batch(NamedTuple):
    """What one save holds: all of it or nothing is kept.

    A child's last update and its outcome are saved here, by the parent's update that applies it;
    the child itself saves only its earlier steps.
    """

    path: RunPath
    """The run whose state the updates change."""
    updates: Sequence[Update] = ()
    """In the order of their numbers."""
    applied: Sequence[EndedChild] = ()
    """Children whose end is saved here, each applied by the update at the same place."""
    unapplied: Sequence[EndedChild] = ()
    """Children that ended without an update of the parent: failed, cancelled, come too late."""
    step_completed: str | None = None
    """The step that the last of the updates completes."""
    decision: Decision | None = None
    """How the last of the updates decides a race: who is resumed after that has no other winner."""
    ended: Status | None = None
    """How this execution of the run ended, if this is its last save."""


class Store(Protocol):
    """Where updates are kept."""

    def save(self, batch: Batch) -> Awaitable[None] | None:
        """Keep ``batch``, all or nothing.

        Returns None where it is safe already, else an awaitable that ends when it is; raises, at
        once or when awaited, where it could not be kept.
        """
        ...


@final
class NullStore:
    """Keeps nothing: what runs use that have no store."""

    __slots__ = ()

    def save(self, batch: Batch) -> None:
        """Forget ``batch``."""


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


class Executor(Protocol):
    """Runs a plain function so that the event loop stays free."""

    async def __call__(self, function: Callable[..., object], kwargs: Mapping[str, Any]) -> object:
        """Call ``function(**kwargs)``, and return or raise what it does.

        Cancellation waits for the function to return; its result is then dropped.
        """
        ...


class Seat(Protocol):
    """What an attempt holds while it runs: a slot of every limit that applies to it."""

    @property
    def granted(self) -> bool:
        """Whether it holds them now."""
        ...

    async def wait(self) -> None:
        """Wait until it holds them, or is lent; interrupted meanwhile, it stays in line."""
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


class Admission(Protocol):
    """Lets attempts start."""

    def seat(self, scopes: tuple[object, ...], action: FunctionAction[..., Any]) -> Seat | None:
        """Take a seat for an attempt, granted at once where there is room.

        Args:
            scopes: What limits the run that the attempt belongs to.
            action: May have limits of its own.

        Returns None where nothing limits it.
        """
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

    store: Store
    clock: Clock
    waiter: Callable[[], Waiter]
    """Makes a waiter."""
    threads: Executor
    admission: Admission
    host: Callable[[Callable[[], Awaitable[None]], Callable[[str], None]], Hosted]
    """Starts work in a task of the runtime's; the second function hears why it is cancelled."""
    enter: Callable[[Any, Any], Awaitable[Change]]
    """Has a run execute a graph that is a node of its own graph."""
    context: Callable[[Any, FunctionAction[..., Any], Seat | None], object]
    """Makes what an action's parameter ``context`` gets."""
    native_cancels: Callable[[], Callable[[], int]]
    """Called in a task, gives what counts the native cancellations pending on that task."""
    commit_deadline: float
    """Seconds that the store has to acknowledge a save."""
    learned: WeakKeyDictionary[object, Any] = field(default_factory=WeakKeyDictionary)
    """What was learned of a definition, by that definition, for as long as it lives."""
