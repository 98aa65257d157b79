"""Gates, the claims on them, and the lines in which claims wait. Imports rates.

A *gate* stands for one part of a ``Limits``, for one key of it: slots, a rate, or both. What wants
to start has a *claim* on several gates at once. Claims on the same gates, of the same unit, stand
in a *line*, which is posted at one gate that is shut to its first claim.

Invariants:
- A line waits at one gate, or at none; a gate knows which of its lines is due first.
- Memory follows what is in use: a gate that is as good as new may be forgotten.
"""

from __future__ import annotations

import math
import sys
from collections import OrderedDict
from collections.abc import Hashable
from heapq import heappop, heappush
from itertools import islice
from typing import Protocol, final

from .limits import Adaptive, Part
from .meters import ForeignMeter, Meter
from .shared_rates import SharedMeter

Turn = tuple[bool, float, int]
"""Whether it stands behind others, when it is due, and its arrival: what is less goes first."""


@final
class Gate:
    """One part of a limit, for one key: so many at once, so many per time."""

    __slots__ = (
        "_posts",
        "adapt",
        "alarm_at",
        "changed_at",
        "key",
        "meter",
        "part",
        "paused_until",
        "posted",
        "size",
        "slots",
        "used",
        "users",
    )

    def __init__(
        self, size: float | None = None, part: Part | None = None, key: Hashable = None
    ) -> None:
        """Have ``size`` slots (None: any number), all free, and the rate of ``part``."""
        self.resize(size)
        self.part: Part | None = part
        self.key: Hashable = key
        self.meter: Meter | ForeignMeter | SharedMeter | None = (
            None if part is None else part.meter(key)
        )
        self.adapt: Adaptive | None = None if part is None else part.adapt
        self.used: int = 0
        self.users: int = 0  # who needs it: granted, waiting or lent
        self.paused_until: float = -math.inf
        self.changed_at: float = -math.inf  # when its slots were last made fewer
        self.alarm_at: float = math.inf  # when it is served next, whatever happens
        self.posted: int = 0  # lines that wait here
        self._posts: list[tuple[Turn, int, Line]] = []  # a heap; lines that are gone stay a while

    def resize(self, size: float | None) -> None:
        """Have so many slots from now on; a fraction grants nothing yet."""
        self.size: float | None = size
        self.slots: float = math.inf if size is None else int(size)

    def opens_at(self, cost: float, *, paid: bool) -> float:
        """Return when it is open to something that costs so much.

        Args:
            cost: Units of its rate.
            paid: Whether these were paid before, so that only a slot is needed.

        Returns -inf or a time that has passed if it is open, inf if time alone won't do.
        """
        if self.used >= self.slots:
            return math.inf
        if paid:
            return -math.inf
        opens = self.paused_until
        if self.meter is not None:
            opens = max(opens, self.meter.opens_at(cost))
        return opens

    @property
    def shared(self) -> SharedMeter | None:
        """What measures its rate, if other processes have that too."""
        return self.meter if isinstance(self.meter, SharedMeter) else None

    @property
    def is_keyed(self) -> bool:
        """Whether it is one of many keys."""
        return self.part is not None and self.part.by is not None

    @property
    def has_cost(self) -> bool:
        """Whether what it is charged is the user's to say."""
        return self.part is not None and self.part.cost is not None

    def is_new(self, now: float) -> bool:
        """Tell whether it is as if it had never been used."""
        return (
            self.users == 0
            and self.paused_until <= now
            and (self.meter is None or self.meter.is_full(now))
        )

    def post(self, line: Line) -> None:
        """Have ``line`` wait here."""
        line.gate = self
        line.version += 1
        self.posted += 1
        heappush(self._posts, (line.turn(), line.version, line))

    def unpost(self, line: Line) -> None:
        """Let ``line`` wait here no more."""
        line.gate = None
        line.version += 1
        self.posted -= 1

    def first(self) -> Line | None:
        """Return the line whose turn it is, of those that wait here."""
        while self._posts:
            _, version, line = self._posts[0]
            if line.gate is self and line.version == version:
                return line
            heappop(self._posts)
        return None

    def first_turn(self) -> Turn:
        """Return when that line is due; if there is none, after all others."""
        line = self.first()
        return (True, math.inf, 0) if line is None else line.turn()

    def lines(self) -> list[Line]:
        """Return the lines that wait here; the one whose turn it is comes first."""
        return [
            line
            for _, version, line in self._posts
            if line.gate is self and line.version == version
        ]

    def waiting(self) -> int:
        """Count the claims that wait here."""
        return sum(len(line.claims) for line in self.lines())

    def costs(self, most: int) -> list[float]:
        """Return what claims cost that wait here for its rate, as far as there are slots for them.

        Args:
            most: Look at so many of them, at most.
        """
        found: list[float] = []
        for line in self.lines():
            looked_at = islice(line.claims, min(line.first().room, most - len(found)))
            found += [one.cost(one.needed.index(self)) for one in looked_at if not one.paid]
        return found

    def __repr__(self) -> str:
        size = "" if self.size is None else f" {self.used}/{self.size:g}"
        rate = "" if self.meter is None else " rated"
        return f"<Gate{size}{rate}, {self.posted} lines waiting>"


class Unit(Protocol):
    """What takes turns with others: an execution."""

    turn_due: float
    """The round in which its next claim is due; in each, those who wait have one turn."""
    turns_since: float
    """The round in which it began to wait, this time."""


class Held:
    """What holds gates, or will: which, what that costs, and since when."""

    __slots__ = ("costs", "needed", "since", "taken_at")

    def __init__(self, needed: tuple[Gate, ...], costs: tuple[float, ...] | None) -> None:
        """Hold nothing yet.

        Args:
            needed: The gates, no two the same.
            costs: What it costs at each of them; None: 1.
        """
        self.needed: tuple[Gate, ...] = needed
        self.costs: tuple[float, ...] | None = costs
        self.since: float | None = None  # when it was granted, where something adapts to its end
        self.taken_at: float = -math.inf  # when it was charged, where there are rates


class Claim(Held):
    """What is granted all the gates it needs at once, or waits for them in line."""

    __slots__ = ("due", "granted", "is_returning", "line", "paid", "unit")

    def __init__(
        self,
        needed: tuple[Gate, ...],
        costs: tuple[float, ...] | None = None,
        unit: Unit | None = None,
    ) -> None:
        """Be granted nothing, and not stand in line either.

        Args:
            needed: The gates, no two the same.
            costs: What it costs at each of them; None: 1.
            unit: What it takes turns for with others.
        """
        super().__init__(needed, costs)
        self.unit: Unit | None = unit
        self.is_returning: bool = False  # a child under way comes back: it goes before new ones
        self.due: float = 0.0
        self.paid: bool = False  # whether its rates were charged
        self.granted: bool = False
        self.line: Line | None = None

    def cost(self, at: int) -> float:
        """Return what it costs at one of the gates it needs."""
        return 1.0 if self.costs is None else self.costs[at]

    @property
    def room(self) -> int:
        """How many like it there are slots for, all gates it needs taken together."""
        room = min(gate.slots - gate.used for gate in self.needed)
        return int(max(0.0, min(room, sys.maxsize)))

    @property
    def is_gone(self) -> bool:
        """Whether whoever waits for it is being cancelled."""
        return False

    def load(self) -> bool:
        """Hear that it has to wait, and say whether it needs more gates by that."""
        return False

    def stand(self) -> None:
        """Hear that it stands in line."""

    def settle(self, since: float | None) -> None:
        """Hear that it was granted and charged for the first time."""
        self.since = since

    def wake(self) -> None:
        """Hear that it stands in line no more."""

    def refuse(self, error: Exception) -> None:
        """Hear that it stands in line no more, since that would be in vain."""


@final
class Line:
    """Claims of one unit on the same gates, by the number of their arrival."""

    __slots__ = ("claims", "gate", "is_behind", "key", "version")

    def __init__(self, key: Hashable, *, is_behind: bool) -> None:
        """Be empty; ``is_behind`` those that are not."""
        self.key: Hashable = key
        self.is_behind: bool = is_behind
        self.claims: OrderedDict[Claim, int] = OrderedDict()  # a dict is slow to find its first
        self.gate: Gate | None = None  # where it waits
        self.version: int = 0  # of its post there

    def first(self) -> Claim:
        """Return the first claim."""
        return next(iter(self.claims))

    def turn(self) -> Turn:
        """Say when the first claim is due, compared to those of other lines."""
        claim, arrival = next(iter(self.claims.items()))
        return self.is_behind, claim.due, arrival

    def __repr__(self) -> str:
        return f"<Line of {len(self.claims)} at {self.gate}>"
