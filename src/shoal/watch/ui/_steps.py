"""Draw the bars of a run's steps: of each fan-out, and of the steps that its children are at.

Losers of a race are grey in all of them, even those that had failed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from shoal._events.identity import RunPath
from shoal._events.report import LiveStep
from shoal.watch._overview import Overview, StepBar, nested_in

from . import _charts as charts

INNER = 8
"""Steps of children on the first view, in all; the rest is counted."""

Winners = Mapping[tuple[str, int], RunPath]
"""The winners of races, by step and visit."""


def whole_bar(overview: Overview) -> Markup:
    """Return the bar of a run: its steps together; nothing if it has no children."""
    counts: dict[str, float] = {**overview.counts}
    if overview.bars:
        drawn = [drawn_counts(bar) for bar in overview.bars]
        counts = {name: sum(each.get(name, 0) for each in drawn) for name in charts.ORDER}
    known = [bar.total for bar in overview.bars if bar.total is not None]
    total = sum(known) if known and len(known) == len(overview.bars) else None
    if not counts and not total:
        return Markup("")
    return charts.tally_bar(counts, total, css="big")


def steps_of(overview: Overview, bars: Sequence[StepBar], winners: Winners) -> list[dict[str, Any]]:
    """Return a bar for each step, and one for each step of its children under way."""
    found: list[dict[str, Any]] = []
    room = INNER
    for bar in bars:
        inner = {step: doing for step, doing in bar.at.items() if sum(doing.values())}
        shown = list(inner.items())[:room]
        nested = nested_in(overview, bar)
        room -= len(shown)
        whole = sum(sum(doing.values()) for doing in inner.values())
        waiting = bar.waiting if bar.is_under_way else 0
        found.append(
            {
                "bar": bar,
                "svg": charts.tally_bar({**drawn_counts(bar), "waiting": waiting}, bar.total),
                "failed": bar.failed,
                "running": _running(bar),
                "winner": winners.get((bar.step, bar.visit)) if has_one_winner(bar) else None,
                "at": [_inner(nested, step, doing, whole) for step, doing in shown],
                "omitted": len(inner) - len(shown),
            }
        )
    return found


def _inner(
    nested: Mapping[str, LiveStep], step: str, doing: Mapping[Any, int], whole: int
) -> tuple[str, Markup, Sequence[tuple[Any, int]], LiveStep | None]:
    """Return the bar of a step that children are at: how far it is, if it is a fan-out of theirs.

    Else it says what they do.
    """
    added = nested.get(step)
    if added is None:
        return step, charts.doing_bar(doing, whole), _most_first(doing), None
    counts = {
        "succeeded": added.ended - added.failed,
        "failed": added.failed,
        "halted": added.halted,
        "running": added.in_flight,
    }
    return step, charts.tally_bar(counts, added.total), _most_first(doing), added


def has_one_winner(bar: StepBar) -> bool:
    """Return whether a step is a race that one contestant has won."""
    return bar.lost > 0 and bar.counts.get("succeeded") == 1


def _most_first(doing: Mapping[Any, int]) -> list[tuple[Any, int]]:
    found = [(what, count) for what, count in doing.items() if count]
    return sorted(found, key=lambda each: -each[1])


def drawn_counts(bar: StepBar) -> dict[str, float]:
    """Return the counts of a bar. Losers of a race are grey, even those that had failed."""
    counts: dict[str, float] = {**bar.counts, "running": _running(bar)}
    lost = bar.counts.get("failed", 0) - bar.failed
    return {**counts, "failed": bar.failed, "cancelled": bar.counts.get("cancelled", 0) + lost}


def _running(bar: StepBar) -> int:
    if bar.gone:
        return 0  # the process that executed them is gone
    return bar.in_flight if bar.is_under_way else bar.counts.get("running", 0)
