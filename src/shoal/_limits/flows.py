"""Flows: what takes turns together, in a tree. Classes of priority, and the shares of limits.

Start-time fair queueing (P. Goyal, H. Vin, H. Cheng, 1996), hierarchically, as it was made for
sharing a processor (P. Goyal, X. Guo, H. Vin, A Hierarchical CPU Scheduler for Multimedia Operating
Systems, 1996). In each flow its members have turns by their weights: executions, which weigh 1, and
flows of their own. A member that has a turn is due again ``1 / weight`` rounds later. The rounds of
a flow go on with the turns of its members alone, so what happens elsewhere in the tree changes
nothing in it.

Without priorities and shares there is one flow, and every execution is a member of it.

Invariants:
- A flow has turns by its weight beside its siblings, however many requests, executions and flows
  are in it. What it didn't use while nothing of it waited is not saved up.
- Every member that waits has a turn some time, whatever its weight: nothing starves.
- Memory follows use: a flow in which nothing waits, and that has used no turn ahead of others, may
  be dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from itertools import count
from typing import Any, Literal, NamedTuple, Protocol, cast, final

from shoal._errors.arguments import is_positive
from shoal._errors.exceptions import DefinitionError, brief
from shoal._state.functions import require_plain

Priority = Literal["interactive", "normal", "batch"]
"""How urgent a run is, beside others that wait for the same limits."""

WEIGHTS: dict[Priority, float] = {"interactive": 64.0, "normal": 8.0, "batch": 1.0}
"""Turns of each class of priority beside the others.

Chosen numbers: each class has eight turns for one of the class below. So a batch run delays an
interactive one by next to nothing, and has one turn of 65 however many interactive runs wait.
"""
AT_ONCE = 8
"""Turns that a run may take in one go when it begins to wait.

A chosen number: as many small fan-outs have children, and so few that a large run that takes all of
them delays others by no more than eight attempts. See
test_small_units_are_served_one_after_the_other and
test_a_large_unit_that_others_keep_joining_has_its_turns_all_the_same.
"""
SWEEP = 64
"""Members of a flow that are kept before unused ones are dropped: too few to be worth the work."""

Weight = Mapping[Any, float] | Callable[[Any], float]
"""The weights of shares of a limit: by what ``share=`` returned, or a function of that."""

Key = tuple[bool, bool, float, int]
"""The position of a member of a flow among the others; the smallest goes first.

Whether it comes behind attempts that reacquire their slots, whether it is new and no further
attempt, the round in which it is due, and a number that is unique.
"""
Turn = tuple[Key, ...]
"""The position of a request among all others: the keys of the flows around it, and its own."""

FIRST: Turn = ((False, False, -math.inf, 0),)
"""A turn before all others."""
LAST: Turn = ((True, True, math.inf, 0),)
"""A turn after all others."""


def check_priority(priority: object, what: str, kind: type[Exception]) -> Priority:
    """Return a user's ``priority=``, given as ``what``.

    Raises:
        Exception: It is none, and ``kind`` says which exception that is.
    """
    if isinstance(priority, str) and priority in WEIGHTS:
        return priority
    names = ", ".join(map(repr, WEIGHTS))
    msg = f"{what} takes one of {names}, not {brief(priority)}"
    raise kind(msg)


def check_weight(weight: object, share: object) -> None:
    """Check a user's ``weight=``.

    Raises:
        DefinitionError: It is neither a mapping nor a plain function, or there is no ``share=``.
    """
    if weight is None:
        return
    if share is None:
        msg = "Limits(weight=...) is the weight of a share; give share=... too"
        raise DefinitionError(msg)
    if isinstance(weight, Mapping):
        for key, value in cast("Mapping[object, object]", weight).items():
            if not is_positive(value):
                what = f"Limits(weight={{{brief(key)}: ...}})"
                msg = f"{what} takes a number above 0, not {brief(value)}"
                raise DefinitionError(msg)
    else:
        require_plain(weight, "Limits(weight=...)")


class Share(NamedTuple):
    """A share of a limit that a request belongs to."""

    limit: object
    """Stands for the limit with ``share=``, by its identity."""
    key: Hashable
    """What ``share=`` returned."""
    weight: float
    """Its turns beside the other shares of the limit."""


class Turns(Protocol):
    """The turns of an execution in one flow. All attributes are set by flows alone."""

    turn_due: float
    """The round in which its next request is due. Each waiting execution has one turn a round."""
    turns_since: float
    """The round in which it last began to wait after it had nothing waiting."""


@final
class _Turns:
    __slots__ = ("turn_due", "turns_since")

    def __init__(self) -> None:
        self.turn_due: float = 0.0
        self.turns_since: float = 0.0


_numbers = count(1)


@final
class Flow:
    """What takes turns together, beside other members of the flow above it."""

    __slots__ = (
        "_flows",
        "_members",
        "_number",
        "_sweep_at",
        "_turns",
        "active",
        "due",
        "is_first",
        "parent",
        "round",
        "weight",
    )

    def __init__(
        self, parent: Flow | None = None, weight: float = 1.0, *, is_first: bool = False
    ) -> None:
        """Create a flow in which nothing waits.

        Args:
            parent: The flow that it is a member of.
            weight: Its turns there, beside members of weight 1.
            is_first: Whether it is the flow of everything without a priority or a share. Executions
                have their turns there as attributes of their own, which costs nothing.
        """
        self.parent: Flow | None = parent
        self.weight: float = weight
        self.is_first: bool = is_first
        self.due: float = 0.0  # the round of the parent in which it has its next turn; only grows
        self.round: float = 0.0  # the virtual time of its members; only grows
        self.active: float = 0.0
        """The weights of the members that wait, together; a wait queue weighs 1."""
        self._members: int = 0  # those that wait
        self._number: int = next(_numbers)
        self._flows: dict[Hashable, Flow] = {}
        self._turns: dict[object, _Turns] = {}
        self._sweep_at: int = SWEEP

    # -- the tree -------------------------------------------------------------------------------

    def child(self, key: Hashable, weight: float) -> Flow:
        """Return a flow in this one, made on first use."""
        found = self._flows.get(key)
        if found is None:
            if len(self._flows) + len(self._turns) >= self._sweep_at:
                self._sweep()
            found = self._flows[key] = Flow(self, weight)
        elif found.weight != weight:
            if found._members:
                self.active += weight - found.weight
            found.weight = weight
        return found

    def move_below(self, parent: Flow, weight: float) -> None:
        """Make a flow without a parent a member of ``parent``."""
        self.parent, self.weight = parent, weight
        if self._members:
            parent.add(weight)

    def _sweep(self) -> None:
        """Drop what would be made anew with the same turns."""
        # Not due later than a new one: it would begin in the present round.
        self._flows = {
            key: flow for key, flow in self._flows.items() if flow._members or flow.due > self.round
        }
        self._turns = {
            unit: turns for unit, turns in self._turns.items() if turns.turn_due > self.round
        }
        self._sweep_at = max(SWEEP, 2 * (len(self._flows) + len(self._turns)))

    # -- what waits -----------------------------------------------------------------------------

    def add(self, weight: float = 1.0) -> None:
        """Count a member that begins to wait: a wait queue, or a flow of some weight."""
        self.active += weight
        self._members += 1
        parent = self.parent
        if self._members == 1 and parent is not None:
            # Turns that it didn't need while nothing of it waited are not saved up.
            self.due = max(self.due, parent.round)
            parent.add(self.weight)

    def remove(self, weight: float = 1.0) -> None:
        """Count off a member in which nothing waits any more."""
        self._members -= 1
        if self._members:
            self.active -= weight
            return
        self.active = 0.0  # without the rounding errors of the weights
        self._turns.clear()
        if self.parent is not None:
            self.parent.remove(self.weight)

    # -- turns ----------------------------------------------------------------------------------

    def join(self, unit: Turns, *, is_returning: bool) -> float:
        """Take a turn for a request of an execution that begins to wait; return when it is due.

        Args:
            unit: The execution.
            is_returning: Whether the request is for another attempt. It goes before new ones, and
                costs its execution a later turn: see
                test_a_run_whose_children_are_retried_takes_no_more_than_its_share.
        """
        turns: Turns = unit
        if not self.is_first:
            found = self._turns.get(unit)
            if found is None:
                if len(self._flows) + len(self._turns) >= self._sweep_at:
                    self._sweep()
                found = self._turns[unit] = _Turns()
            turns = found
        # A run that has used no turns ahead of the others begins now: turns that it didn't need
        # while nothing of it waited are not saved up.
        if turns.turn_due <= self.round:
            turns.turns_since = turns.turn_due = self.round
        is_early = turns.turn_due < turns.turns_since + AT_ONCE
        due = turns.turns_since if is_early else turns.turn_due
        turns.turn_due += 1.0
        return self.round if is_returning else due

    def on_turn(self, due: float) -> None:
        """Go on after a member had its turn, that was due in the round ``due``."""
        # By that turn's share of what waits. The round never falls behind the turn that is granted.
        self.round = max(self.round + 1.0 / (self.active or 1.0), due)
        if self.parent is not None:
            self.parent.on_turn(self._take_turn())

    def _take_turn(self) -> float:
        assert self.parent is not None
        due = self.due = max(self.due, self.parent.round) if not self._members else self.due
        self.due += 1.0 / self.weight
        return due

    def key(self) -> Key:
        """Return the position of the flow among the members of its parent."""
        due, parent = self.due, self.parent
        if not self._members and parent is not None:
            # As if it began to wait now: else each new share would go before what has waited long.
            due = max(due, parent.round)
        return True, True, due, self._number

    def path(self) -> Turn:
        """Return the keys of the flow and of those around it, the outermost first."""
        if self.parent is None:
            return ()
        return (*self.parent.path(), self.key())

    def __repr__(self) -> str:
        return f"<Flow of weight {self.weight:g}, {self._members} waiting>"
