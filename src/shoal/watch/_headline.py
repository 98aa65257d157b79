"""Say in one sentence how far a run is, what failed, and what holds it up.

``12,431 of 20,000 · 312 failed · 20 running · 41/s · about 3 min left · held up by rate "openai"
(83 % of waiting)``. Each part is data as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, final

from shoal._events.identity import RunPath
from shoal._events.report import Doing, HedgeUse, LimitUse, Report, Spending, Waited
from shoal.stores._protocol import ChildStatus

from ._words import about, length, many, number, pace, percent

Part = Literal[
    "status",
    "draining",
    "step",
    "done",
    "failed",
    "cancelled",
    "waiting",
    "leader",
    "paused",
    "running",
    "lost",
    "pace",
    "left",
    "held up",
    "cost",
    "copies",
    "age",
]
"""What a part of a headline tells."""

WAITING: tuple[Doing, ...] = (
    "slot",
    "rate",
    "key",
    "breaker",
    "backoff",
    "paused",
    "store",
    "question",
    "loop",
)
"""The doings in which nothing of a run goes on."""

_NOTABLE = 0.1
"""Less waiting than this part of the time holds no run up."""
_LEAST = 0.2
"""Seconds: a shorter wait is over before anybody has read of it."""
_OLD = 5.0
"""Seconds: a report is written several times per second, so an older one is worth a word."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class HeldUp:
    """What a run waits for most."""

    doing: Doing
    limit: str = ""
    """The limit, as it is written; empty if it waits for none."""
    key: str = ""
    """The key of that limit."""
    share: float = 0.0
    """Its part of all waiting, from 0 to 1; of a limit that ``is_full``, its part of the time."""
    text: str = ""
    """For people: ``rate "openai"``."""
    is_full: bool = False
    """Whether a limit of children in flight is full, and there are further elements. These are no
    runs yet, so nothing in flight waits for that limit."""

    @property
    def sentence(self) -> str:
        """``held up by rate "openai" (83 % of waiting)``."""
        part = "" if self.is_full else f" ({percent(self.share)} of waiting)"
        return f"held up by {self.text}{part}"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StepBar:
    """A step of the chain with its children: certain numbers, and what runs now."""

    step: str
    visit: int
    title: str = ""
    """What the fan-out calls itself, by ``title=``."""
    counts: Mapping[ChildStatus, int] = field(default_factory=dict[ChildStatus, int])
    """Its children by status, as the store has them."""
    failed: int = 0
    """How many have failed and are no losers of a race."""
    lost: int = 0
    """How many of the cancelled and failed ones had lost a race."""
    total: int | None = None
    """How many elements it has; None if that isn't known."""
    in_flight: int = 0
    """How many run now, by the last report."""
    waiting: int = 0
    """How many wait to start, by the last report."""
    at: Mapping[str, Mapping[Doing, int]] = field(default_factory=dict[str, Mapping[Doing, int]])
    """How many stand at each step of theirs, by what they do there; by the last report."""
    leader: str = ""
    """The contestant that leads a race by ``first_item`` now, by its key or its act."""
    is_under_way: bool = False
    gone: int = 0
    """How many were in flight in a process that is gone."""

    @property
    def halted(self) -> int:
        """How many wait for answers."""
        return self.counts.get("halted", 0)

    @property
    def cancelled(self) -> int:
        """How many were cancelled and are no losers of a race."""
        failed = self.counts.get("failed", 0) - self.failed
        return max(0, self.counts.get("cancelled", 0) - max(0, self.lost - failed))

    @property
    def done(self) -> int:
        """How many of its children have ended."""
        return sum(
            count for status, count in self.counts.items() if status not in ("running", "halted")
        )


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """One sentence about a run."""

    text: str
    parts: Sequence[tuple[Part, str]] = ()
    """The parts of the text, each with what it tells, in order."""
    step: str = ""
    """The fan-out that the numbers are about; empty if they are about all children."""
    done: int = 0
    """How many of its children have ended."""
    total: int | None = None
    """How many it has; None if that isn't known."""
    failed: int = 0
    """How many have failed, without losers of races."""
    running: int = 0
    """How many are in flight."""
    pace: float | None = None
    """How many end in a second; None if that isn't known."""
    seconds_left: float | None = None
    """None if that can't be estimated."""
    held_up_by: HeldUp | None = None


@final
class Waiting(NamedTuple):
    """The wait for one limit, whatever the keys."""

    doing: Doing
    seconds: float
    limit: str = ""
    owner: str = ""
    key: str = ""
    """The key that was waited for, or that has more than half of the waiting; else empty."""
    keys: int = 0
    """How many keys were waited for."""


def held_up(report: Report) -> HeldUp | None:
    """Return what a run waits for most in these seconds; None if it waits little."""
    spent, waited = report.spent, report.waited
    if report.recent:
        spent, waited = report.recent, report.recent_waited
    whole = sum(spent.values())
    least = max(_NOTABLE * whole, _LEAST)
    found = list[tuple[float, HeldUp]]()
    waiting = sum(spent.get(doing, 0.0) for doing in WAITING)
    if waiting >= least:
        for one in waits_of(spent, waited):
            stuck = HeldUp(
                doing=one.doing,
                limit=_name_in(report, one.limit),
                key=one.key,
                share=one.seconds / waiting,
                text=named(one.doing, _name_in(report, one.limit), one.key, one.keys),
            )
            found.append((one.seconds, stuck))
    for use in report.limits:
        seconds = use.recent if report.recent else use.full
        if use.part < 0 and use.slots and seconds:
            taken = min(1.0, seconds / whole) if whole else 0.0
            lost = taken * worked(spent, waited, use) * whole
            if lost >= least:
                name = name_of(use)
                stuck = HeldUp(doing="slot", limit=name, share=taken, text=name, is_full=True)
                found.append((lost, stuck))
    return max(found, key=lambda one: one[0])[1] if found else None


def held_up_at(report: Report, path: RunPath) -> HeldUp | None:
    """Return what a child waits for, or most of its own children do; None if they wait little."""
    for run in report.longest:
        if run.path == path:
            if run.doing not in WAITING or run.since < _LEAST:
                return None
            limit = _name_in(report, run.limit)
            return HeldUp(
                doing=run.doing,
                limit=limit,
                key=run.limit_key,
                share=1.0,
                text=named(run.doing, limit, run.limit_key),
            )
    at = Counter[Doing]()
    for step in report.steps:
        if step.path == path:
            for here in step.at.values():
                at.update(here)
    waiting = sum(at[doing] for doing in WAITING)
    if not waiting or waiting < _NOTABLE * at.total():
        return None
    doing = max(WAITING, key=lambda one: at[one])
    return HeldUp(doing=doing, share=at[doing] / waiting, text=named(doing))


def waits_of(spent: Mapping[Doing, float], waited: Sequence[Waited]) -> Sequence[Waiting]:
    """Divide the waiting among the limits that were waited for, the longest first.

    A limit is declared once, so it is what can be changed, not each of its keys.
    """
    found = list[Waiting]()
    for doing in WAITING:
        whole = spent.get(doing, 0.0)
        if not whole:
            continue
        limits = dict[str, list[Waited]]()
        if doing in _OF_LIMITS:
            for one in waited:
                if one.doing in (doing, "other"):
                    limits.setdefault(one.limit, []).append(one)
        told = sum(one.seconds for parts in limits.values() for one in parts)
        if not told:
            found.append(Waiting(doing, whole))
            continue
        for limit, parts in limits.items():
            seconds = sum(one.seconds for one in parts)
            keys = sum(one.others or bool(one.key) for one in parts)
            first = max(parts, key=lambda one: 0.0 if one.others else one.seconds)
            is_named = not first.others and (keys == 1 or first.seconds > seconds / 2)
            key = first.key if is_named else ""
            found.append(Waiting(doing, whole * seconds / told, limit, first.owner, key, keys))
    return sorted(found, key=lambda one: -one.seconds)


def worked(spent: Mapping[Doing, float], waited: Sequence[Waited], use: LimitUse) -> float:
    """Return how much of the runs in flight worked, of those that had a slot of a limit.

    More slots help only these. If those in flight waited for a rate, say, more of them would wait.
    """
    slots = [one for one in waited if one.doing == "slot" and one.limit == use.limits]
    others = sum(spent.values()) - sum(one.seconds for one in slots)
    return min(1.0, spent.get("action", 0.0) / others) if others > 0 else 0.0


def name_of(use: LimitUse) -> str:
    """Name a limit as it is written; the children in flight of a fan-out by its ``limits=``."""
    if use.owner == EXECUTOR:
        return f"{_WORKERS} {use.limits}"
    return f"Limits({number(use.slots or 0)}) of {use.owner}" if use.part < 0 else use.limits


_IN_FLIGHT = "in flight"
EXECUTOR = "executor"
"""The owner of workers, in ``LimitUse``."""
_WORKERS = "workers of"


def _name_in(report: Report, limit: str) -> str:
    """Name a limit of a report: children that wait for a place in flight wait for ``limits=``."""
    if any(use.owner == EXECUTOR and use.limits == limit for use in report.limits):
        return f"{_WORKERS} {limit}"
    if limit != _IN_FLIGHT:
        return limit
    uses = [use for use in report.limits if use.part < 0 and use.slots]
    fullest = max(uses, key=lambda use: (use.recent, use.full, use.waiting), default=None)
    return "limits= of the fan-out" if fullest is None else name_of(fullest)


_OF_LIMITS: tuple[Doing, ...] = ("slot", "rate", "key", "breaker")
"""What limits are waited for."""


def named(doing: Doing, limit: str = "", key: str = "", keys: int = 0) -> str:
    """Name what is waited for, for people.

    Args:
        doing: What the wait is.
        limit: The limit.
        key: The key of the limit, if one has most of the waiting.
        keys: How many keys were waited for.
    """
    match doing:
        case "slot" | "rate" | "key" | "breaker":
            kind = {"slot": "slots"}.get(doing, doing)
            if key:
                return f'{kind} "{key}"'
            if keys and doing == "key":
                return f"{keys:,} keys"
            if keys:
                return f"{kind} of {many(keys, 'key')}"
            if limit.startswith(_WORKERS):
                return limit
            return f"{kind} of {limit}" if limit else kind
        case "backoff":
            return "backoff before further attempts"
        case "paused":
            return "a pause"
        case "store":
            return "the store"
        case "question":
            return "open questions"
        case "loop":
            return "a busy event loop"
        case "action":
            return "the actions"
        case "reducer":
            return "applying results"
        case "other":
            return "other work"


def headline(
    *,
    status: ChildStatus,
    is_lost: bool,
    why: str,
    elapsed: float,
    at: str = "",
    bars: Sequence[StepBar],
    report: Report | None,
    age: float | None,
    speed: float | None,
    costs: Mapping[str, float],
    spending: Sequence[Spending] = (),
    hedges: Sequence[HedgeUse] = (),
    child: RunPath | None = None,
    paused: str = "",
) -> Headline:
    """Make the sentence about a run.

    Args:
        status: The run's status.
        is_lost: Whether no process executes it, though it has no end.
        why: Why it failed, was cancelled or was drained.
        elapsed: Seconds from its start to its end; 0 if it has none.
        at: The step that it is at, if it has no live children.
        bars: Its steps with children.
        report: The last report about its root run.
        age: How old that is, in seconds.
        speed: How many children end in a second.
        costs: What was charged at limits with ``cost=``.
        spending: What was spent of budgets.
        hedges: The second copies of late attempts.
        child: The run, if it is no root run. The report tells of the whole root run.
        paused: Since when its root run is paused, and by whom, for people; empty if it isn't.
    """
    runs = status == "running" and not is_lost
    now = [bar for bar in bars if bar.is_under_way] if runs else []
    about_now = now or bars
    step = now[0].step if len({bar.step for bar in bars}) > 1 and now else ""
    totals = [bar.total for bar in about_now]
    total = None if None in totals or not totals else sum(one or 0 for one in totals)
    done = sum(bar.done for bar in about_now)
    failed = sum(bar.failed for bar in about_now)
    running = 0
    if runs and report is not None:
        running = sum(bar.in_flight for bar in about_now)
    elif runs:
        running = sum(bar.counts.get("running", 0) for bar in about_now)
    left = None
    if runs and speed and total is not None and total > done:
        left = (total - done) / speed
    stuck = None
    if runs and report is not None:
        stuck = held_up(report) if child is None else held_up_at(report, child)

    parts = list[tuple[Part, str]]()
    if not runs:
        parts.append(("status", _status(status, is_lost, why, elapsed)))
    elif not about_now:
        parts.append(("status", f"running {at}" if at else "running"))
    if runs and report is not None and report.draining:
        parts.append(("draining", f"starts nothing more: {report.draining}"))
    if step:
        parts.append(("step", now[0].title or step))
    if about_now:
        parts.append(("done", f"{done:,} done" if total is None else f"{done:,} of {total:,}"))
    if failed:
        parts.append(("failed", f"{failed:,} failed"))
    cancelled = sum(bar.cancelled for bar in about_now)
    if cancelled:
        parts.append(("cancelled", f"{cancelled:,} cancelled"))
    halted = sum(bar.halted for bar in about_now)
    if halted:
        # A run that was drained has a reason, and its children were drained with it.
        what = "halted" if status == "halted" and why else "waiting for an answer"
        parts.append(("waiting", f"{halted:,} {what}"))
    leader = next((bar.leader for bar in now if bar.leader), "")
    if leader:
        parts.append(("leader", f"{leader} leads"))
    if paused:
        parts.append(("paused", paused))
    gone = sum(bar.gone for bar in about_now)
    if gone:
        parts.append(("lost", f"{gone:,} lost"))
    if running:
        parts.append(("running", f"{running:,} running"))
    if speed and about_now:
        parts.append(("pace", pace(speed)))
    if left is not None:
        parts.append(("left", f"{about(left)} left"))
    if stuck is not None and not (paused and stuck.doing == "paused"):
        parts.append(("held up", stuck.sentence))
    for name, cost in costs.items():
        if cost:
            parts.append(("cost", f"{number(cost)} spent at {name}"))
    for one in spending:
        if one.spent or one.aside:
            parts.append(("cost", one.text))
    copies = sum(one.copies for one in hedges)
    if copies:
        used, at_work = sum(one.used for one in hedges), sum(one.running for one in hedges)
        all_of_them = HedgeUse(owner="", copies=copies, used=used, running=at_work if runs else 0)
        parts.append(("copies", all_of_them.text))
    if runs and age is not None and age > _OLD:
        parts.append(("age", f"as of {length(age)} ago"))
    return Headline(
        text=" · ".join(text for _, text in parts),
        parts=parts,
        step=step,
        done=done,
        total=total,
        failed=failed,
        running=running,
        pace=speed,
        seconds_left=left,
        held_up_by=stuck,
    )


def _status(status: ChildStatus, is_lost: bool, why: str, elapsed: float) -> str:
    if is_lost:
        return "lost: it has no end, and no process executes it"
    text = status if not elapsed else f"{status} after {length(elapsed)}"
    first = why.partition("\n")[0]
    if status == "halted" and not first:
        first = "it waits for answers"
    return f"{text}: {first}" if first else text
