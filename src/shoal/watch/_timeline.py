"""Lay out a run's children in time: a bar for each, or a histogram if there are many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from shoal._events.identity import RunPath
from shoal._events.report import Report
from shoal.stores._watching import Bin, Row

MOST_BARS = 200
"""With more children there are bins: more bars can't be told from each other, and a browser needs
several elements for each."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """A run's children in time."""

    begins_at: float | None
    """Seconds since 1970; None if nothing is known yet."""
    ends_at: float | None
    bars: Sequence[Row] = ()
    """The children with a known start, in the order of their starts, if there are few enough. Those
    in flight have no end; if their process has died, they were in flight when it reported last."""
    bins: Sequence[Bin] = ()
    """When children have ended, if there are many."""
    total: int = 0
    """How many children there are."""
    omitted: int = 0
    """How many of them have no bar, because their times aren't known; with bins, 0."""


def in_flight(path: RunPath, report: Report, at: float) -> Mapping[RunPath, float]:
    """Return when the children of a run in flight began, as far as a report tells.

    Args:
        path: The run.
        report: The report about its root run.
        at: When that was made, in seconds since 1970.
    """
    starts = {one.path: at - one.age for one in report.longest if one.path.parent == path}
    # Children that wait for their own children are among the fan-outs.
    starts |= {one.path: at - one.age for one in report.steps if one.path.parent == path}
    return starts


def in_bars(
    rows: Sequence[Row], total: int, starts: Mapping[RunPath, float], until: float | None
) -> Timeline:
    """Lay out children as bars.

    Args:
        rows: Those that the store has.
        total: How many it has.
        starts: When children in flight began; see ``in_flight``.
        until: Until when these were seen in flight.
    """
    total = max(total, len(rows))  # some may have begun to be known since it was counted
    known = {row.path for row in rows}
    new = [
        Row(path=path, status="running", began_at=began)
        for path, began in starts.items()
        if path not in known
    ]
    seen = [
        row._replace(began_at=starts.get(row.path))
        if row.status == "running" and row.began_at is None
        else row
        for row in (*rows, *new)
    ]
    bars = sorted(
        (row for row in seen if row.began_at is not None), key=lambda row: row.began_at or 0.0
    )[:MOST_BARS]
    begins = [row.began_at for row in bars if row.began_at is not None]
    ends = [at for row in bars for at in (row.began_at, row.ended_at) if at is not None]
    if until is not None and any(row.status == "running" for row in bars):
        ends.append(until)
    return Timeline(
        begins_at=min(begins, default=None),
        ends_at=max(ends, default=None),
        bars=bars,
        total=total + len(new),
        omitted=total + len(new) - len(bars),
    )
