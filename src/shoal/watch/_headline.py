"""Say in one sentence how far a run is, what failed, and what holds it up.

``12,431 of 20,000 · 312 failed · 20 running · 41/s · about 3 min left · held up by rate "openai"
(83 % of waiting)``. Each part is data as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, final

from shoal._events.report import Doing, Report, Waited
from shoal.stores._protocol import ChildStatus

from ._words import about, length, number, pace, percent

Part = Literal[
    "status", "step", "done", "failed", "running", "pace", "left", "held up", "cost", "age"
]
"""What a part of a headline tells."""

WAITING: tuple[Doing, ...] = (
    "slot",
    "rate",
    "key",
    "breaker",
    "backoff",
    "store",
    "question",
    "loop",
)
"""The doings in which nothing of a run goes on."""

_NOTABLE = 0.1
"""Less waiting than this part of the time holds no run up."""
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
    """Its part of all waiting, from 0 to 1."""
    text: str = ""
    """For people: ``rate "openai"``."""


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
    is_under_way: bool = False

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


def held_up(report: Report) -> HeldUp | None:
    """Return what a run waits for most; None if it waits little."""
    spent = {doing: report.spent.get(doing, 0.0) for doing in WAITING}
    waiting = sum(spent.values())
    if waiting <= 0 or waiting < _NOTABLE * sum(report.spent.values()):
        return None
    doing = max(WAITING, key=lambda one: spent[one])
    waited = waited_for(report, doing)
    most = waited[0] if waited else None
    return HeldUp(
        doing=doing,
        limit="" if most is None else most.limit,
        key="" if most is None else most.key,
        share=spent[doing] / waiting,
        text=named(doing, most),
    )


def waited_for(report: Report, doing: Doing) -> Sequence[Waited]:
    """Return the limits and keys that were waited for in that way, the longest first."""
    if doing not in ("slot", "rate", "key", "breaker"):
        return ()
    found = [one for one in report.waited if one.doing in (doing, "other")]
    return sorted(found, key=lambda one: -one.seconds)


def named(doing: Doing, waited: Waited | None) -> str:
    """Name what is waited for, for people."""
    match doing:
        case "slot" | "rate" | "key" | "breaker":
            kind = {"slot": "slots", "breaker": "breaker"}.get(doing, doing)
            if waited is None:
                return kind
            if waited.key:
                return f'{kind} "{waited.key}"'
            return f"{kind} of {waited.limit}" if waited.limit else kind
        case "backoff":
            return "backoff before further attempts"
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
) -> Headline:
    """Make the sentence about a run.

    Args:
        status: The run's status.
        is_lost: Whether no process executes it, though it has no end.
        why: Why it failed or was cancelled.
        elapsed: Seconds from its start to its end; 0 if it has none.
        at: The step that it is at, if it has no live children.
        bars: Its steps with children.
        report: The last report about its root run.
        age: How old that is, in seconds.
        speed: How many children end in a second.
        costs: What was spent.
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
    stuck = held_up(report) if runs and report is not None else None

    parts = list[tuple[Part, str]]()
    if not runs:
        parts.append(("status", _status(status, is_lost, why, elapsed)))
    elif not about_now:
        parts.append(("status", f"running {at}" if at else "running"))
    if step:
        parts.append(("step", now[0].title or step))
    if about_now:
        parts.append(("done", f"{done:,} done" if total is None else f"{done:,} of {total:,}"))
    if failed:
        parts.append(("failed", f"{failed:,} failed"))
    if running:
        parts.append(("running", f"{running:,} running"))
    if speed and about_now:
        parts.append(("pace", pace(speed)))
    if left is not None:
        parts.append(("left", f"{about(left)} left"))
    if stuck is not None:
        parts.append(("held up", f"held up by {stuck.text} ({percent(stuck.share)} of waiting)"))
    for name, cost in costs.items():
        if cost:
            parts.append(("cost", f"{number(cost)} spent at {name}"))
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
