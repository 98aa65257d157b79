"""Order the children of a run for pages, and name the place where a page ends.

The parts of ``Inspects`` that all stores share.

Invariants:
- The order is total, and a child that has ended keeps its place in it. So a cursor is the place of
  the last row: the next page is right even if further children have ended meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple, cast, final

from shoal._errors.exceptions import brief
from shoal._events.identity import RunPath

from ._protocol import ChildStatus, RunSummary
from ._watching import Order, Row

STATUSES: tuple[ChildStatus, ...] = (
    "failed",
    "running",
    "halted",
    "cancelled",
    "succeeded",
    "skipped",
)
"""The statuses of children in the order "failed first"."""

Place = tuple[float, ...]
"""The place of a child in an order; a lower one comes first."""


@final
class Standing(NamedTuple):
    """What the place of a child depends on."""

    id: int
    """A number by which children with the same place are ordered: the one saved first is lower."""
    position: int
    status: ChildStatus
    applied: int | None
    elapsed: float
    ended_at: float | None

    def place(self, order: Order) -> Place:
        """Return the place in an order."""
        match order:
            case "failed first":
                return STATUSES.index(self.status), self.applied or 0, self.id
            case "position":
                return self.position, self.id
            case "slowest":
                return -self.elapsed, self.id
            case _:
                group = UNENDED if self.status == "running" else UNTIMED
                if self.ended_at is not None:
                    group = ENDED
                return group, -(self.ended_at or 0.0), -(self.applied or 0), -self.id


ENDED, UNTIMED, UNENDED = range(3)
"""The groups of the order "ended last": children with the time of their end, children that ended
in a time of which none was kept, and running ones."""


BOUNDLESS = 1 << 62
"""Above every part of a place."""
_PARTS: dict[Order, int] = {"failed first": 3, "position": 2, "ended last": 4, "slowest": 2}


def cursor_of(place: Place) -> str:
    """Return the place of the last row of a page as text."""
    return json.dumps(place)


def place_of(cursor: str | None, order: Order) -> Place | None:
    """Return the place that ``cursor_of`` was given; None without a cursor.

    Raises:
        ValueError: The text is not the cursor of a page in that order.
    """
    if cursor is None:
        return None
    try:
        place = json.loads(cursor)
    except (ValueError, RecursionError):
        place = None
    if isinstance(place, list) and len(cast("list[object]", place)) == _PARTS[order]:
        parts = cast("list[object]", place)
        known = [one for one in parts if isinstance(one, int | float) and abs(one) < BOUNDLESS]
        if len(known) == len(parts):
            return tuple(known)
    msg = (
        f"{brief(cursor)} is not the cursor of a page in the order {order!r}: pass RowPage.after "
        f"of the page before"
    )
    raise ValueError(msg)


def page(
    standings: Sequence[Standing], order: Order, after: Place | None, limit: int
) -> tuple[list[Standing], str | None]:
    """Sort children, and take a page of them; return it and the cursor of the next page."""
    placed = sorted((one.place(order), one) for one in standings)
    if after is not None:
        placed = [(place, one) for place, one in placed if place > after]
    taken = placed[:limit]
    more = cursor_of(taken[-1][0]) if taken and len(placed) > limit else None
    return [one for _, one in taken], more


def row_of(path: RunPath, summary: RunSummary, *, has_children: bool) -> Row:
    """Return the row of a root run."""
    ended_at = summary.ended_at
    kind, _, _ = summary.error.partition(":")
    return Row(
        path=path,
        status=summary.status,
        began_at=summary.began_at,
        ended_at=ended_at,
        elapsed=0.0 if ended_at is None else max(0.0, ended_at - summary.began_at),
        reason=summary.reason,
        error_type=kind,
        error=summary.error,
        has_children=has_children,
    )
