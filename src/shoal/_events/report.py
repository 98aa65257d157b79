"""Define a report: what a root run and its descendants do at one moment, and did until then.

The process that executes a run makes one a few times per second, by looking at the runs in flight.
So a report costs nothing per child; its shares of time are those of a sampling profiler.

Invariants:
- ``spent`` adds up to ``seconds``: each interval between two samples is divided among what the
  runs in flight did at its end.
- A report has a bounded size, however many runs are in flight. What is left out is counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, final

from .identity import RunPath

Doing = Literal[
    "action",  # an attempt is executed
    "slot",  # waits for a slot: of a Limits, of threads, or in flight
    "rate",  # waits for a rate
    "key",  # waits for a key that is busy or paused
    "breaker",  # waits for an open breaker
    "backoff",  # waits for its next attempt
    "paused",  # waits because the run is paused
    "store",  # waits for a save
    "reducer",  # applies results: reduce, grow, take, hooks
    "question",  # waits for an answer
    "loop",  # the event loop was busy with something else, so nothing of the run could go on
    "other",  # between steps, in a source, in a hook
]
"""What a run does at one moment."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRun:
    """A run in flight."""

    path: RunPath
    step: str
    """The step that it is at; empty if it has not started."""
    doing: Doing
    since: float
    """Seconds that it has been doing that."""
    age: float
    """Seconds since its start."""
    attempt: int = 1
    """The attempt of the step, counted from 1."""
    attempts: int | None = None
    """How many attempts there may be; None if there is no bound."""
    next_in: float | None = None
    """Seconds until its next attempt; None if it isn't in backoff."""
    limit: str = ""
    """The limit that it waits for, as written."""
    limit_key: str = ""
    """The key of that limit."""
    title: str = ""
    """What its fan-out calls it, by ``title=``."""
    note: str = ""
    """What it says about itself, by ``context.note``."""
    copied: float | None = None
    """Seconds that a second copy of its attempt has been at work; None: it has none."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LiveStep:
    """A fan-out that is under way."""

    path: RunPath
    """The run whose step it is."""
    step: str
    visit: int
    age: float = 0.0
    """Seconds since the start of that run."""
    title: str = ""
    """What its ``title=`` says, if that is a text."""
    note: str = ""
    """What the action says about itself whose own fan-out it is, by ``context.note``."""
    total: int | None = None
    """How many elements it has, as far as that is known."""
    ended: int = 0
    """How many of its children have ended, or were done before."""
    failed: int = 0
    """How many of those have failed."""
    halted: int = 0
    """How many wait for an answer. They have not ended, and are not in flight."""
    in_flight: int = 0
    """How many have started, and their end is not saved."""
    waiting: int = 0
    """How many have been read from its source and have not started."""
    leader: str = ""
    """The contestant that leads a race by ``first_item``, by its key or its act."""
    at: Mapping[str, Mapping[Doing, int]] = field(default_factory=dict[str, Mapping[Doing, int]])
    """How many children in flight stand at each step of theirs, by what they do there."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LimitUse:
    """A limit in use, as ``runtime.limiter(owner).statistics()`` has it, and its waits."""

    owner: str
    """Where the limit stands: ``"runtime"``, or the name of an application, action or fan-out;
    ``"executor"`` if it is the workers of one."""
    part: int = 0
    """Which part of the owner's limits it is, counted from 0; -1: the children in flight of a
    fan-out under way."""
    limits: str
    """The part, as it is written; ``"in flight"`` for children in flight; the name of an executor
    for its workers."""
    in_use: int
    slots: float | None
    waiting: int
    paused: int = 0
    keys: int = 1
    """How many keys it has; of children in flight that were added up, executions of the fan-out."""
    full: float = 0.0
    """Seconds of the makespan in which all its slots were taken, and something waited for one."""
    recent: float = 0.0
    """Of that, what counts as recent; see ``Report.recent``."""
    waits: Mapping[str, int] = field(default_factory=dict[str, int])
    """How many wait for each key, the busiest keys first."""
    holders: tuple[str, ...] = ()
    """Ids of root runs that hold its slots."""
    cost: float | None = None
    """What was spent of a budget or a rate with ``cost=``."""
    unit: str | None = None
    """What a budget or ``cost=`` counts; None if that isn't said."""
    amount: float | None = None
    """How much a budget has, for each key and run; None: it is no budget."""
    aside: float = 0.0
    """What is set aside of a budget for attempts under way."""

    @property
    def capacity(self) -> float | None:
        """The slots of all keys together; None if it has no slots."""
        return self.slots if self.slots is None or self.part < 0 else self.slots * self.keys


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """What a run and its descendants have spent of a ``Budget``."""

    budget: str
    """The budget's name, by default its unit."""
    unit: str
    spent: float
    aside: float = 0.0
    """What is set aside for attempts under way."""
    amount: float | None = None
    """How much there is in all, of all keys together; None if other runs spend it too, or the run
    hasn't come to it in this process."""

    @property
    def text(self) -> str:
        """What displays say: ``0.46 of 5 USD spent``."""
        of = "" if self.amount is None else f" of {self.amount:.6g}"
        name = "" if self.budget == self.unit else f" ({self.budget})"
        return f"{self.spent:.6g}{of} {self.unit} spent{name}"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class HedgeUse:
    """How many second copies of late attempts the fan-outs of one name have made."""

    owner: str
    """The name of the fan-out."""
    copies: int
    """How many have begun in this execution."""
    used: int = 0
    """How many of them gave the result of their step."""
    running: int = 0
    """How many are at work."""

    @property
    def text(self) -> str:
        """What displays say: ``12 second copies, 9 used``."""
        what = "second copy" if self.copies == 1 else "second copies"
        now = f", {self.running:,} at work" if self.running else ""
        return f"{self.copies:,} {what}, {self.used:,} used{now}"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SecondCopy:
    """One second copy of an attempt that was late."""

    path: RunPath
    """The child."""
    step: str
    """The action."""
    attempt: int = 1
    """The number of the attempt; its copy has the same."""
    after: float = 0.0
    """Seconds after which the attempt counted as late."""
    seconds: float = 0.0
    """How long the copy has been at work, or was."""
    used: bool | None = None
    """Whether the step goes on with its result. If not, it was cancelled, has failed, or came too
    late. None: it is at work."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetUse:
    """A budget of retries that has been used in the process."""

    part: int
    """Which of the budgets of the process it is, counted from 0."""
    budget: str
    """The budget, as it is written."""
    left: float
    """How many retries it allows now."""
    refused: int = 0
    """How many retries it has refused so far: those attempts have failed for good."""
    holders: tuple[str, ...] = ()
    """Ids of the root runs whose reports have it."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class CircuitUse:
    """The circuit of one key of a breaker. The key has failed since its last success."""

    key: str
    state: Literal["closed", "open", "half open"]
    failures: int
    """How often it has failed in a row."""
    next_in: float | None = None
    """Seconds until a child may start as a probe; None unless the circuit is open."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerUse:
    """A breaker of a fan-out that has run in the process."""

    owner: str
    """The name of the fan-out."""
    breaker: str
    """The breaker, as it is written."""
    failing: int = 0
    """How many keys have failed since their last success; the circuits of all others are closed."""
    open: int = 0
    """How many of the circuits are open or half open."""
    skipped: int = 0
    """How many children it has skipped so far."""
    circuits: tuple[CircuitUse, ...] = ()
    """Circuits of keys that have failed, open ones first; at most 10."""
    holders: tuple[str, ...] = ()
    """Ids of the root runs whose reports have it."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Waited:
    """How much of the run's time was spent waiting for one limit, or one key of it."""

    limit: str
    key: str
    owner: str = ""
    """Where the limit stands, as in ``LimitUse``; empty if that isn't known."""
    seconds: float
    """As in ``Report.spent``: shares of the makespan, not of each child's time."""
    doing: Doing = "other"
    """What was waited for: a slot, the rate, the key or the breaker of that limit; "other" in
    reports that don't tell."""
    others: int = 0
    """For how many further keys of that limit it stands together; 0: for ``key`` alone."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SlowRun:
    """One of the children, at any depth, that took longest; without those that have children."""

    path: RunPath
    seconds: float
    """From its start to its end, or to the report. Waiting for limits is included."""
    began: float
    """Seconds after the execution began."""
    alone: float = 0.0
    """Seconds of the makespan in which it worked and was the oldest of the last: its fan-out had no
    further elements, and a tenth of those that it may have in flight, or fewer."""
    status: Literal["running", "succeeded", "failed", "cancelled", "skipped", "halted"] = "running"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a root run and its descendants do at one moment, and did until then."""

    run_id: str
    seconds: float
    """Since the execution began."""
    samples: int
    every: float
    """Seconds between two samples, at present."""
    spent: Mapping[Doing, float]
    """Seconds of the makespan by what was done; they add up to ``seconds``."""
    waited: tuple[Waited, ...] = ()
    """The limits and keys that were waited for longest."""
    recent: Mapping[Doing, float] = field(default_factory=dict[Doing, float])
    """As ``spent``, of the last few seconds: what is older counts less, by ``exp(-age / 3 s)``."""
    recent_waited: tuple[Waited, ...] = ()
    """As ``waited``, of the last few seconds."""
    steps: tuple[LiveStep, ...] = ()
    """Fan-outs under way, the outermost first, at most 50."""
    unfinished: tuple[LiveStep, ...] = ()
    """In the last report: the fan-outs that were under way in the one before, with their totals.
    Those that the run has not completed are known from here alone."""
    longest: tuple[LiveRun, ...] = ()
    """The runs in flight that have been so longest, at most 50."""
    slowest: tuple[SlowRun, ...] = ()
    """The children that took longest of all that were sampled, ended or not; at most 5."""
    limits: tuple[LimitUse, ...] = ()
    breakers: tuple[BreakerUse, ...] = ()
    """The breakers of fan-outs that have run in the process; at most 50."""
    budgets: tuple[BudgetUse, ...] = ()
    """The budgets of retries that have been used in the process; at most 50."""
    in_flight: int = 0
    """How many runs without live children are in flight."""
    peak: int = 0
    """The most that were in flight in any sample."""
    omitted: int = 0
    """How many fan-outs under way are left out of ``steps``."""
    is_over: bool = False
    """Whether the execution has ended: this is its last report."""
    draining: str = ""
    """Why the run starts nothing more (see ``RunHandle.drain``); empty as long as it does."""
    costs: Mapping[str, float] = field(default_factory=dict[str, float])
    """What was charged so far, by the name of the limit with ``cost=``."""
    spending: tuple[Spending, ...] = ()
    """What was spent of budgets so far, in the whole root run."""
    hedges: tuple[HedgeUse, ...] = ()
    """The second copies of late attempts (``Each(hedge=...)``), by fan-out; at most 51."""
    copies: tuple[SecondCopy, ...] = ()
    """The last of these that have ended, and those at work; at most 20 of each."""
