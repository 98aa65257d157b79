"""Draw bars, histograms and timelines as SVG, without a script.

A page's content security policy forbids inline styles, so lengths are attributes and colours are
classes. No element has an id: pages are morphed, and the library that does that can't recreate an
SVG element with one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from shoal.stores._watching import Bin, Row

from ._format import STATUSES, cut, duration, key_text, moment, number

ORDER = ("succeeded", "skipped", "failed", "cancelled", "halted", "running", "waiting")
"""The segments of a bar from left to right; the ends first, and their failures in sight."""

THINNEST = 0.5
"""Per cent of a bar's width that a segment has at least, so that one failure of 100,000 shows."""

ROW, THIN_ROW = 20, 7
"""Pixels of a row of a timeline: with a label, and without."""

LABELLED = 100
"""The most rows of a timeline with labels: each takes three elements of the page, instead of two.
With 200 rows the page would have more than 600."""

GUTTER = 24.0
"""Per cent of a timeline's width for labels of the greatest length."""

LABEL = 40
"""The greatest length of a label."""

HEIGHT = 150
"""Pixels of a histogram."""

TICKS = 4
"""More would touch each other on a phone."""


def tally_bar(counts: Mapping[str, float], total: float | None = None, *, css: str = "") -> Markup:
    """Draw one bar with a segment for each status.

    Args:
        counts: How many children have each status; "waiting" counts too.
        total: The length of the whole bar; by default the sum of the counts.
        css: Further classes.
    """
    shown = [(status, counts[status]) for status in ORDER if counts.get(status)]
    summed = sum(count for _, count in shown)
    whole = max(total or 0.0, summed)
    label = ", ".join(f"{number(count)} {status}" for status, count in shown) or "nothing yet"
    if total and total > summed:
        label += f", of {number(total)}"
    lengths = [max(100.0 * count / whole, THINNEST) for _, count in shown] if whole else []
    # Thin segments that were widened take their room from the others, if the bar is full.
    excess = max(sum(lengths) / 100.0, 1.0)
    rects: list[str] = []
    at = 0.0
    for (status, _), length in zip(shown, lengths, strict=True):
        wide = length / excess
        rects.append(
            f'<rect class="s-{status}" x="{at:.2f}%" width="{wide:.2f}%" height="100%"></rect>'
        )
        at += wide
    return Markup(  # noqa: S704 # made of numbers and of names that are ours
        f'<svg class="bar {css}" role="img" aria-label="{escape(label)}">{"".join(rects)}</svg>'
    )


def doing_bar(doing: Mapping[Any, int], total: float) -> Markup:
    """Draw a bar of what the children at one step do: work, wait for a limit, or for an attempt.

    Args:
        doing: How many do what.
        total: The length of the whole bar, so that the bars of several steps can be compared.
    """
    counts = Counter[str]()
    for each, count in doing.items():
        counts[KIND_OF.get(each, "other")] += count
    whole = max(total, sum(counts.values())) or 1
    rects: list[str] = []
    at = 0.0
    for kind in ("running", "other", "waiting", "backoff"):
        wide = 100.0 * counts[kind] / whole
        if wide:
            rects.append(
                f'<rect class="s-{kind}" x="{at:.2f}%" width="{wide:.2f}%" height="100%"></rect>'
            )
        at += wide
    svg = f'<svg class="bar" aria-hidden="true">{"".join(rects)}</svg>'
    return Markup(svg)  # noqa: S704 # made of numbers and of names that are ours


KIND_OF: Mapping[str, str] = {
    "action": "running",
    **dict.fromkeys(("slot", "rate", "key", "breaker", "question", "paused"), "waiting"),
    "backoff": "backoff",
}
"""The colours of what children do; of all else, it is grey."""


def share_bar(share: float, kind: str) -> Markup:
    """Draw a bar that is filled to a share of one, in the colour of a status."""
    wide = min(max(share, 0.0), 1.0) * 100
    return Markup(  # noqa: S704 # made of numbers and of names that are ours
        f'<svg class="bar" aria-hidden="true">'
        f'<rect class="s-{kind}" width="{wide:.2f}%" height="100%"></rect></svg>'
    )


def histogram(bins: Sequence[Bin]) -> Markup:
    """Draw when children have ended: a column for each bin, with a segment for each status."""
    highest = max((sum(each.counts.values()) for each in bins), default=0) or 1
    wide = 100.0 / max(len(bins), 1)
    rects: list[str] = []
    for place, each in enumerate(bins):
        top = float(HEIGHT)
        counts: dict[str, int] = {**each.counts}
        segments = [(status, counts[status]) for status in ORDER if counts.get(status)]
        told = ", ".join(f"{number(count)} {status}" for status, count in segments)
        for index, (status, count) in enumerate(segments):
            tall = max(count / highest * (HEIGHT - 4), 1.5)
            top -= tall
            title = ""
            if index == len(segments) - 1:
                title = f"<title>{moment(each.begins_at)}: {told}</title>"
            rects.append(
                f'<rect class="s-{status}" x="{place * wide:.2f}%" width="{wide * 0.86:.2f}%"'
                f' y="{max(top, 0.0):.1f}" height="{tall:.1f}">{title}</rect>'
            )
    label = f"when children have ended; at most {number(highest)} in one of {len(bins)} parts"
    axis = ""
    if bins:
        axis = _axis(bins[0].begins_at, bins[-1].ends_at, 0.0, HEIGHT)
    return Markup(  # noqa: S704 # made of numbers and of names that are ours
        f'<svg class="timeline" height="{HEIGHT + 22}" role="img" aria-label="{label}">'
        f"{axis}{''.join(rects)}</svg>"
    )


def gantt(
    rows: Sequence[Row],
    begins: float,
    ends: float,
    href: Callable[[Row], str],
    *,
    is_lost: bool = False,
) -> Markup:
    """Draw a bar for each child, from its start to its end, with a link to its page.

    Args:
        rows: The children; each has a start.
        begins: The left end, in seconds since 1970.
        ends: The right end; a child without an end reaches it.
        href: Returns the address of a child's page.
        is_lost: Whether the process that executed them is gone. Then none of them runs.
    """
    is_labelled = len(rows) <= LABELLED
    tall = ROW if is_labelled else THIN_ROW
    labels = [cut(key_text(row.path), LABEL) for row in rows]
    longest = max(map(len, labels), default=0)
    left = 2.0 + GUTTER * longest / LABEL if is_labelled else 0.0
    room, span = 100.0 - left, max(ends - begins, 1e-6)
    drawn: list[str] = []
    for place, row in enumerate(rows):
        start = row.began_at if row.began_at is not None else begins
        end = row.ended_at
        if end is None:
            end = ends if row.status == "running" else start + row.elapsed
        x = left + room * min(max((start - begins) / span, 0.0), 1.0)
        wide = min(max(room * (end - start) / span, 0.35), 100.0 - x)
        status: str = row.status
        if status == "running" and is_lost:
            status = "lost"
        told = f"{key_text(row.path)}: {status}, {duration(max(end - start, 0.0))}"
        if is_loser(row):
            status = "cancelled"
        text = ""
        if is_labelled:
            label = escape(labels[place])
            text = (
                f'<text x="{left - 1:.1f}%" y="{place * tall + 14}" text-anchor="end">'
                f"{label}</text>"
            )
        drawn.append(
            f'<a href="{escape(href(row))}" aria-label="{escape(told)}">{text}'
            f'<rect class="s-{status}" x="{x:.2f}%" width="{wide:.2f}%"'
            f' y="{place * tall + (4 if is_labelled else 1)}" rx="2"'
            f' height="{tall - (8 if is_labelled else 2)}"></rect></a>'
        )
    height = len(rows) * tall
    axis = _axis(begins, ends, left, height)
    return Markup(  # noqa: S704 # names and keys are escaped above
        f'<svg class="timeline" height="{height + 24}" role="group"'
        f' aria-label="{len(rows)} children in time">{axis}{"".join(drawn)}</svg>'
    )


def is_loser(row: Row) -> bool:
    """Return whether a row is a loser of a race, or its result was not used: these are grey."""
    return row.winner is not None or not row.used


def _axis(begins: float, ends: float, left: float, height: float) -> str:
    """Draw lines at round parts of the span, with the time since its start."""
    parts: list[str] = []
    for tick in range(TICKS + 1):
        share = tick / TICKS
        x = left + (100.0 - left) * share
        anchor = "start" if not tick else "end" if tick == TICKS else "middle"
        at = "0" if not tick else duration((ends - begins) * share)
        minor = ' class="minor"' if tick % 2 else ""  # these would touch the others on a phone
        parts.append(
            f'<line class="grid" x1="{x:.2f}%" x2="{x:.2f}%" y1="0" y2="{height}"></line>'
            f'<text{minor} x="{x:.2f}%" y="{height + 16}" text-anchor="{anchor}">{at}</text>'
        )
    return "".join(parts)


def all_statuses(counts: Mapping[Any, int]) -> list[tuple[str, int]]:
    """Return the statuses that some child has with their counts, in the order of a page."""
    return [(status, counts[status]) for status in STATUSES if counts.get(status)]
