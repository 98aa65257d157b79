"""Calls of users' functions of limits, and checks of what they return.

The scheduler, which finds gates, is protected from Ctrl-C. These functions must be interruptible
all the same.

Each of them raises whatever the user's function raises, or ``BadResult`` if it returned nothing
that is valid.
"""

from __future__ import annotations

import math
from collections.abc import Hashable

from shoal._concurrency.cancellation import ki_unprotected
from shoal._errors.arguments import is_number
from shoal._errors.exceptions import BadResult, brief
from shoal._state.secrets import refuse_key
from shoal._state.state import State, refuse_awaitable

from .accounts import Worst
from .gates import FairShare
from .limits import Part
from .owners import OWNER


@ki_unprotected
def cost_of(part: Part, state: State) -> float:
    """Return the units that a start at a part with ``cost=`` charges."""
    assert part.cost is not None
    cost = part.cost(state)
    # 0 is allowed: such a start needs a slot, and takes nothing from the rate.
    if not isinstance(cost, int | float) or isinstance(cost, bool) or not 0 <= cost < math.inf:
        refuse_awaitable(cost, "Limits(cost=...)")
        msg = f"{part!r}: cost= returned {brief(cost)}; it returns a number of units, at least 0"
        raise BadResult(msg)
    # More than the burst at once would exceed the bound on windows of time.
    if cost > part.burst:
        msg = (
            f"{part!r}: cost= returned {cost:g}, but no more than {part.burst:g} may go at once, "
            f"so this could never start; allow more: Rate(..., burst=...)"
        )
        raise BadResult(msg)
    return float(cost)


@ki_unprotected
def worst_of(part: Part, worst: Worst, state: State) -> float:
    """Return what a start may cost at most at a budget."""
    if not callable(worst):
        return worst
    cost: object = worst(state)
    if not is_number(cost) or not 0 <= cost < math.inf:
        refuse_awaitable(cost, "Budget(worst=...)")
        msg = f"{part!r}: worst= returned {brief(cost)}; it returns a number of at least 0"
        raise BadResult(msg)
    return float(cost)


@ki_unprotected
def key_of(part: Part, state: State, unit: FairShare | None) -> Hashable:
    """Return the key of a start at a part with ``by=``."""
    assert part.by is not None
    if part.by is OWNER:
        return "" if unit is None else unit.owner
    return _checked(part.by(state), "by", part, state)


@ki_unprotected
def share_key_of(part: Part, state: State, unit: FairShare | None) -> Hashable:
    """Return the share of a start at a part with ``share=``."""
    assert part.share is not None
    if part.share is OWNER:
        return "" if unit is None else unit.owner
    return _checked(part.share(state), "share", part, state)


def _checked(key: Hashable, name: str, part: Part, state: State) -> Hashable:
    """Return a key that a user's function has returned, if it can be one."""
    try:
        hash(key)
    except TypeError:
        msg = f"{part!r}: {name}= returned {brief(key)}, which is not hashable; return a str, say"
        raise BadResult(msg) from None
    refuse_awaitable(key, f"Limits({name}=...)")  # a coroutine is hashable
    refuse_key(key, state._data, f"{name}= of {part!r}")
    return key


@ki_unprotected
def weight_of(part: Part, key: Hashable) -> float:
    """Return the turns of a share beside others of weight 1."""
    if part.weight is None:
        return 1.0
    of = part.weight
    weight: object = of(key) if callable(of) else of.get(key, 1.0)
    if not is_number(weight) or not 0 < weight < math.inf:
        refuse_awaitable(weight, "Limits(weight=...)")
        msg = f"{part!r}: weight= returned {brief(weight)} for {brief(key)}, no number above 0"
        raise BadResult(msg)
    return float(weight)
