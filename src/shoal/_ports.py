"""What the engine needs from outside, as protocols. Imports values, acts and what they pass on.

A port is bound by the runtime; the engine never knows which implementation it talks to.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, final
from weakref import WeakKeyDictionary

from ._action import FunctionAction
from ._breaker import Circuits
from ._rate import Limits
from ._results import Results
from ._retry import Account, RetryBudget
from ._state import Change
from ._watch import Part, Watched


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
    returns: bool
    """Whether it is held again before children that have not started, if it has to wait."""

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

    def stake(self, child: Any) -> Stake:
        """Make what a child holds that was not admitted, since nothing limits its start."""
        ...

    def adapt(self, child: Any) -> None:
        """Hear how a child ended.

        Raises:
            Exception: What a user's policy raised that was told.
        """
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
        """Hear how an attempt ended, before it leaves its seat.

        Raises:
            Exception: What a user's policy raised that was told.
        """
        ...


class Hosted(Protocol):
    """Work in a task of its own, and whoever waits for its end."""

    @property
    def fatal(self) -> BaseException | None:
        """The KeyboardInterrupt, or the like, that came out of the work."""
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
    call: Callable[[Any, FunctionAction[..., Any]], Awaitable[Change]]
    """Has a run execute a function action."""
    enter: Callable[[Any, Any], Awaitable[Change]]
    """Has a run execute a graph that is a node of its own graph."""
    context: Callable[..., object]
    """Makes what an action's parameter ``context`` gets."""
    native_cancels: Callable[[], Callable[[], int]]
    """Called in a task, gives what counts the native cancellations pending on that task."""
    commit_deadline: float
    """Seconds that the store has to acknowledge a save."""
    max_crashes: int
    """Executions in a row that may die while a child is at work."""
    results: Results
    """What actions have come to in runs whose store doesn't remember it."""
    learned: WeakKeyDictionary[object, Any] = field(default_factory=WeakKeyDictionary)
    """What was learned of a definition, by that definition, for as long as it lives."""
    circuits: WeakKeyDictionary[object, dict[str, Circuits]] = field(
        default_factory=WeakKeyDictionary
    )
    """Of fan-outs with a breaker, by their definitions and names."""
