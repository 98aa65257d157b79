"""Refusals: which requests that wait are not to wait, because of others or of their deadlines.

Nothing is changed here: the task that has made a request asks, and takes it back.
"""

from __future__ import annotations

import math

from shoal._concurrency.backend import Clock
from shoal._errors.exceptions import Overloaded, brief

from .gates import Gate, PermitRequest
from .meters import Meter


def overload(request: PermitRequest, clock: Clock) -> Overloaded | None:
    """Return why ``request``, which has just begun to wait, is refused; None if it isn't."""
    unit = request.unit
    # A returning request was let in before: a run is not refused half-way.
    if unit is None or request.granted or request.is_returning:
        return None
    for gate in request.needed:
        line, most = gate.line, None if gate.part is None else gate.part.waiting
        if line is None or most is None or not line.is_over(unit, most):
            continue
        now = clock()
        # Those that wait without it, or what runs: one of these must end.
        before = max(1, len(line.waiting) - 1)
        least = None
        if isinstance(gate.meter, Meter):
            least = max(0.0, gate.meter.opens_at(before) - now)
        seconds = max(line.turns_in(before, now, least=least), gate.paused_until - now)
        plural = "s wait" if most > 1 else " waits"
        many = f"{most} run{plural} already" if most else "no run waits"
        at = f", key {brief(gate.key)}" if gate.is_keyed else ""
        msg = f"{many} for {gate.part!r}{at}, and no more may; try again in {seconds:.3g} s"
        return Overloaded(msg, seconds)
    return None


def starts_at(request: PermitRequest) -> tuple[float, Gate | None]:
    """Return when ``request``, the last in its wait queue, can start at the earliest.

    As far as that is known: by pauses, by the next turns of rates, and by the requests of its
    own run that are ahead of it. Returns the gate that says so, too.
    """
    starts, by = -math.inf, None
    wait_queue = request.wait_queue
    for index, gate in enumerate(request.needed):
        cost = request.cost(index)
        opens = gate.paused_until
        if isinstance(gate.meter, Meter) and not request.paid:
            ahead = 0
            # With `cost=`, those ahead may need any number of units.
            if not gate.has_cost and wait_queue is not None and wait_queue.gate is gate:
                ahead = len(wait_queue.requests) - 1
            opens = max(opens, gate.meter.opens_at(cost + ahead))
        if opens > starts:
            starts, by = opens, gate
    return starts, by
