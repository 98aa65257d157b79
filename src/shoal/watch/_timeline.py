"""Lay out a run's children in time: a bar for each, or a histogram if there are many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

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
    """The children with a known start, in the order of their starts, if there are few enough."""
    bins: Sequence[Bin] = ()
    """When children have ended, if there are many."""
    total: int = 0
    """How many children there are."""
    omitted: int = 0
    """How many of them have no bar, because their times aren't known; with bins, 0."""
