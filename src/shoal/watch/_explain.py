"""Explain where the time of a run went, and what would make it faster.

The shares come from the last report about the root run, which its process has sampled. The critical
path and the slowest children come from the store.

Invariants:
- The shares add up to 1, or there are none.
- The advice names only what the report has measured, and says what would be the next limit if it
  was followed: the shares without the largest one, which then add up to 1 again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, inf
from typing import NamedTuple, Protocol, final

from shoal._errors.exceptions import brief
from shoal._events.identity import RunPath
from shoal._events.report import Doing, HedgeUse, LimitUse, Report, SecondCopy, SlowRun, Waited
from shoal.stores._protocol import RunSummary
from shoal.stores._watching import Row

from ._headline import EXECUTOR, Waiting, name_of, named, waits_of, worked
from ._words import length, many, percent

_NOTABLE = 0.1
"""A smaller part of the time is not worth a change of the program."""
_FEW = 20
"""With fewer samples the shares say little."""


@final
class Link(NamedTuple):
    """A run on the critical path."""

    row: Row
    step: str = ""
    """The step of the run from which the path leads down; empty for the last run."""
    seconds: float = 0.0
    """From the run's start to its end."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Where the time of a run went."""

    run_id: str
    """The root run."""
    seconds: float
    """The makespan: from the start of the execution to its end, or until the last report."""
    is_over: bool
    """Whether the execution has ended."""
    shares: Mapping[Doing, float] = field(default_factory=dict[Doing, float])
    """The part of the makespan for each thing done, the largest first. They add up to 1; empty if
    there is no report."""
    waited: Sequence[Waited] = ()
    """The limits and keys that were waited for longest, the longest first."""
    critical_path: Sequence[Link] = ()
    """The run, its child that ended last, that child's, and so on."""
    slowest: Sequence[Row] = ()
    """The children that took longest, with the time that they waited for limits; at most 5."""
    advice: str = ""
    """What would make it faster, computed from the shares; empty if there is no report."""
    notes: Sequence[str] = ()
    """What is missing, and why."""
    samples: int = 0
    """How often the run was looked at."""
    hedges: Sequence[HedgeUse] = ()
    """The second copies of late attempts (``Each(hedge=...)``), by fan-out."""
    copies: Sequence[SecondCopy] = ()
    """The last of them, and those at work; at most 20 of each."""

    @property
    def text(self) -> str:
        """The explanation for people, in several lines."""
        state = "took" if self.is_over else "has taken"
        looked = f", looked at {many(self.samples, 'time')}" if self.samples else ""
        lines = [f"run {self.run_id} {state} {length(self.seconds)}{looked}"]
        lines += [
            f"  {percent(share):>6}  {doing:8}  {_MEANING[doing]}"
            for doing, share in self.shares.items()
        ]
        if self.waited:
            lines.append("waited longest")
            lines += [
                f"  {length(one.seconds):>10}  {_named(one)}" for one in self.waited[:_MOST_LINES]
            ]
        if len(self.critical_path) > 1:
            lines.append("critical path")
            lines += [
                f"  {length(link.seconds):>10}  {_place(link.row.path)}"
                for link in self.critical_path
            ]
        if self.slowest:
            lines.append("slowest, with their waiting for limits")
            lines += [f"  {length(row.elapsed):>10}  {_place(row.path)}" for row in self.slowest]
        for hedge in self.hedges:
            lines.append(f"late attempts of {hedge.owner}: {hedge.text}")
        if self.copies:
            lines += [f"  {length(one.seconds):>10}  {told_copy(one)}" for one in self.copies[-5:]]
        if self.advice:
            lines.append(f"advice: {self.advice}")
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


def told_copy(copy: SecondCopy) -> str:
    """Name a second copy, and say what became of it."""
    how = {None: "at work", True: "gave the result", False: "not used"}[copy.used]
    return f"{_place(copy.path)}: {copy.step}, late after {length(copy.after)}; {how}"


_MOST_LINES = 5

_MEANING: Mapping[Doing, str] = {
    "action": "actions worked",
    "slot": "waiting for a slot",
    "rate": "waiting for a rate",
    "key": "waiting for a key that was busy or paused",
    "breaker": "waiting for an open breaker",
    "backoff": "waiting for the next attempt",
    "paused": "waiting because the run was paused",
    "store": "waiting for a save",
    "reducer": "applying results",
    "question": "waiting for an answer",
    "loop": "the event loop was busy",
    "other": "between steps, in sources, in hooks",
}


def _place(path: RunPath) -> str:
    if path.parent is None:
        return path.id
    return f"{path.step}/{path.act} {brief(path.key)}"


def _named(waited: Waited) -> str:
    if waited.others:
        return f"{many(waited.others, 'other key')} of {waited.limit}"
    if waited.doing != "other":
        return named(waited.doing, waited.limit, waited.key)
    return f'"{waited.key}" of {waited.limit}' if waited.key else waited.limit


class Reported(Protocol):
    """A run with a report: a ``RunResult``, a ``RunHandle``, an ``OpenRun``."""

    @property
    def run_id(self) -> str:
        """The root run."""
        ...

    @property
    def report(self) -> Report | None:
        """The last report about it; None if there is none."""
        ...


def explain(run: Reported | Report) -> Explanation:
    """Explain where the time of a run went, by its last report.

    ``Queries.explain`` says more, because it also reads the run's children from the store.

    Args:
        run: The result of a run, an open run or a handle; or a report.

    Examples:
        >>> from shoal.watch import Report, explain
        >>> report = Report(
        ...     run_id="crawl-1",
        ...     seconds=10.0,
        ...     samples=40,
        ...     every=0.25,
        ...     spent={"action": 3.0, "slot": 7.0},
        ... )
        >>> explain(report).shares
        {'slot': 0.7, 'action': 0.3}
    """
    report = run if isinstance(run, Report) else run.report
    if report is not None:
        return explained(report, RunPath(run_id=report.run_id))
    return Explanation(run_id=run.run_id, seconds=0.0, is_over=False, notes=(_NO_REPORT,))


_NO_REPORT = (
    "there is no report about the run, so where its time went is not known: reports are written "
    "for runs in a store that several processes read, or with watch=True"
)


def explained(
    report: Report,
    path: RunPath,
    critical_path: Sequence[Link] = (),
    slowest: Sequence[Row] = (),
    *,
    is_resumed: bool = False,
) -> Explanation:
    """Make an explanation of a report and of what the store knows.

    Args:
        report: The last report about the root run.
        path: The run to explain.
        critical_path: See ``Explanation``.
        slowest: See ``Explanation``.
        is_resumed: Whether there were executions before the one that has reported.
    """
    notes = list[str]()
    if is_resumed:
        notes.append(
            f"the run was resumed: the shares and the advice are those of its last execution, "
            f"which {'took' if report.is_over else 'has taken'} {length(report.seconds)}; children "
            f"that had ended before took their times then"
        )
    if path.parent is not None:
        notes.append(f"the shares are those of the whole root run {report.run_id}")
    if report.samples < _FEW:
        times = many(report.samples, "time")
        notes.append(f"the run was looked at only {times}, so the shares are rough")
    return Explanation(
        run_id=report.run_id,
        seconds=report.seconds,
        is_over=report.is_over,
        shares=shares_of(report),
        waited=sorted(report.waited, key=lambda one: -one.seconds),
        critical_path=critical_path,
        slowest=slowest or (_slowest_of(report) if path.parent is None else ()),
        advice=advice_on(report),
        notes=tuple(notes),
        samples=report.samples,
        hedges=report.hedges,
        copies=report.copies,
    )


def _slowest_of(report: Report) -> Sequence[Row]:
    return [
        Row(path=one.path, status=one.status, elapsed=one.seconds)
        for one in report.slowest
        if one.seconds
    ]


def unexplained(
    path: RunPath,
    row: Row,
    summary: RunSummary,
    critical_path: Sequence[Link],
    slowest: Sequence[Row],
) -> Explanation:
    """Make an explanation of a run about which there is no report."""
    end = summary.ended_at
    root_took = 0.0 if end is None else end - summary.began_at
    return Explanation(
        run_id=summary.run_id,
        seconds=root_took if path.parent is None else row.elapsed,
        is_over=row.status != "running",
        critical_path=critical_path,
        slowest=slowest,
        notes=(_NO_REPORT,),
    )


def shares_of(report: Report) -> Mapping[Doing, float]:
    """Return the part of the time for each thing done, the largest first. They add up to 1."""
    whole = sum(report.spent.values())
    if whole <= 0:
        return {}
    found = sorted(report.spent.items(), key=lambda one: -one[1])
    return {doing: seconds / whole for doing, seconds in found if seconds > 0}


# -- advice ----------------------------------------------------------------------------------------


@final
class _Constraint(NamedTuple):
    """A thing that takes the time of a run, and that could be changed."""

    doing: Doing
    share: float
    """The part of the time that it takes: what would be gained if it was no constraint at all."""
    waited: Waiting | None = None
    use: LimitUse | None = None
    taken: float = 0.0
    """The part of the time in which all slots were taken; 0 if that isn't known."""
    slow: SlowRun | None = None
    """A child that worked on when the others had ended."""


def advice_on(report: Report) -> str:
    """Return what would make the run faster: a sentence, computed from its shares.

    The largest constraint is taken away, or halved if it is slots, and what is left shows which
    limit would be next.
    """
    shares = shares_of(report)
    if not shares:
        return ""
    found = sorted(_constraints(report, shares), key=lambda one: -one.share)
    if not found or found[0].share < _NOTABLE:
        return _of_actions(report, shares)
    first, *others = found
    helps, factor = _remedy(first, shares, report)
    # The time that is left after the remedy, as a part of the time now.
    left = 1.0 - first.share * (1.0 - 1.0 / factor)
    if left < _NOTABLE:
        return helps
    if others and others[0].share / left >= _NOTABLE:
        rest = percent(others[0].share / left)
        return f"{helps}; {_noun(others[0])} would then be the next limit ({rest} of what is left)"
    return f"{helps}; then the actions themselves would take most of the time"


def _constraints(report: Report, shares: Mapping[Doing, float]) -> Sequence[_Constraint]:
    whole = sum(report.spent.values())
    waits = waits_of(report.spent, report.waited)
    found = list(_full(report, waits))
    seen = {one.use.limits for one in found if one.use is not None}
    uses = {use.limits: use for use in report.limits}
    for one in waits:
        if one.doing == "slot" and one.limit in seen:
            continue
        found.append(_Constraint(one.doing, one.seconds / whole, one, uses.get(one.limit)))
    found += [
        _Constraint("action", one.alone / whole, slow=one) for one in report.slowest if one.alone
    ]
    if "reducer" in shares:
        found.append(_Constraint("reducer", shares["reducer"]))
    return found


def _full(report: Report, waits: Sequence[Waiting]) -> Sequence[_Constraint]:
    """Return the limits whose slots were all taken while something waited for one."""
    whole = sum(report.spent.values())
    found = list[_Constraint]()
    for use in report.limits:
        if not use.full or not use.slots:
            continue
        waited = [one for one in waits if one.doing == "slot" and one.limit == use.limits]
        taken = min(1.0, use.full / whole)
        share = taken * worked(report.spent, report.waited, use)
        found.append(_Constraint("slot", share, waited[0] if waited else None, use, taken))
    return found


def _remedy(one: _Constraint, shares: Mapping[Doing, float], report: Report) -> tuple[str, float]:
    """Return what would help, and by how much the constraint's part of the time is divided."""
    part = percent(one.share)
    if one.slow is not None:
        return _sooner(one.slow, one.share, report), inf
    match one.doing:
        case "slot":
            return _more_slots(one, shares)
        case "rate":
            text = (
                f"{_noun(one)} is used up ({part} of the time is waiting for it): only a higher "
                f"rate or fewer calls would help, and more slots would not"
            )
        case "key":
            text = (
                f"{part} of the time is waiting for {_noun(one)}: spreading the work over more "
                f"keys, or more slots for each key, would help"
            )
        case "breaker":
            text = (
                f"{part} of the time is waiting for {_noun(one)} to close: the service behind it "
                f"fails, and the run goes on when it recovers"
            )
        case "backoff":
            text = (
                f"{part} of the time is waiting for further attempts: fewer failures, or a shorter "
                f"wait in Retry, would help"
            )
        case "paused":
            text = (
                f"{part} of the time the run was paused: its history says by whom (shoal show), "
                f"and it goes on when it is resumed"
            )
        case "store":
            text = (
                f"{part} of the time is waiting for saves: a faster disk or database, or "
                f"SQLiteStore(synchronous='normal'), would help"
            )
        case "reducer":
            text = (
                f"{part} of the time is applying results, one after another: a cheaper reduce, "
                f"grow or hook would help, and more children at once would not"
            )
        case "question":
            text = f"{part} of the time is waiting for answers to questions"
        case "loop":
            text = (
                f"the event loop was busy for {part} of the time: move computing into threads (a "
                f"plain def action is executed in one) or into processes (executor='processes')"
            )
        case "action" | "other":
            raise AssertionError("these are no waiting")
    return text, inf


def _sooner(slow: SlowRun, share: float, report: Report) -> str:
    text = (
        f"{_child(slow)} took {length(slow.seconds)} of {length(report.seconds)}, and for "
        f"{percent(share)} of the time hardly anything else was left to do"
    )
    if slow.began < _NOTABLE * report.seconds:
        return f"{text}: making it faster would help, and higher limits would not"
    return f"{text}: making it faster, or starting it earlier, would help"


def _child(slow: SlowRun) -> str:
    path = slow.path
    return f"child {brief(path.act if path.key == '' else path.key)} of {path.step}"


def _more_slots(one: _Constraint, shares: Mapping[Doing, float]) -> tuple[str, float]:
    """Return which limit to raise to what: to twice as many at most.

    What happens with more than twice as many can't be told from a run with so few.
    """
    use, working = one.use, shares.get("action", 0.0)
    part = percent(one.share)
    if use is None or not use.slots:
        limit = one.waited.limit if one.waited is not None else ""
        what = f"raising {limit}" if limit else "more slots or children in flight"
        if limit == "in flight":
            what = "more children in flight, by limits= of the fan-out,"
        return f"{what} would help: {part} of the time is waiting for a slot", 2.0
    slots, factor = int(use.slots), 2.0
    if one.taken:
        why = f"all its slots were taken for {percent(one.taken)} of the time"
    else:
        why = f"waiting for its slots is {part} of the time"
        if working:  # as many as all that worked or waited
            factor = min(2.0, (working + one.share) / working)
    if use.owner == EXECUTOR:
        how = _MORE_WORKERS.get(use.limits, "where it is declared")
        if one.taken:
            why = f"all were taken for {percent(one.taken)} of the time"
        return f"more {name_of(use)} would help, {how}: {why}", factor
    more = max(slots + 1, ceil(slots * factor))
    return f"raising {name_of(use)} to {more:,} would help: {why}", more / slots


_MORE_WORKERS = {
    "threads": "by Runtime(threads=...)",
    "processes": "by Processes(max_workers=...)",
    "interpreters": "by Interpreters(max_workers=...)",
    "ray": "by Ray(actors=...)",
}
"""Where the number of workers is given, by the name of the executor."""


def _noun(one: _Constraint) -> str:
    if one.slow is not None:
        return _child(one.slow)
    key = "" if one.waited is None else one.waited.key
    limit = "" if one.waited is None else one.waited.limit
    keys = 0 if one.waited is None else one.waited.keys
    match one.doing:
        case "rate" if key:
            return f"the rate of {key}"
        case "key" if key:
            return f"key {key!r}"
        case "breaker" if key:
            return f"breaker {key!r}"
        case "rate" if keys:
            return f"the rate of {keys:,} keys"
        case "key" if keys:
            return f"{keys:,} keys"
        case "breaker" if keys:
            return f"the breakers of {keys:,} keys"
        case "slot" if one.use is not None:
            return name_of(one.use)
        case "slot" if limit:
            return limit
        case "slot":
            return "the number of slots"
        case "rate" if limit:
            return f"the rate in {limit}"
        case "loop":
            return "the event loop"
        case "backoff":
            return "the wait between attempts"
        case "paused":
            return "the pause"
        case "question":
            return "the open questions"
        case "reducer":
            return "applying results"
        case _:
            return f"the {one.doing}"


def _of_actions(report: Report, shares: Mapping[Doing, float]) -> str:
    working = percent(shares.get("action", 0.0))
    if report.peak <= 1:
        return (
            f"the actions themselves take {working} of the time, one at a time: faster actions "
            f"would help, or a fan-out if they don't need each other"
        )
    return (
        f"the actions themselves take {working} of the time, and at most {report.peak:,} ran at "
        f"once without waiting: faster actions would help, and higher limits would not"
    )
