"""Say in one sentence how far a run is, what failed, and what holds it up.

``12,431 of 20,000 · 312 failed · 20 running · 41/s · about 3 min left · held up by rate "openai"
(83 % of waiting)``. Each part is data as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

from shoal._events.report import Doing

Part = Literal[
    "status", "step", "done", "failed", "running", "pace", "left", "held up", "cost", "age"
]
"""What a part of a headline tells."""


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
    """For people: ``rate "openai" (83 % of waiting)``."""


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
