"""The queue: who waits at gates, and whose turn it is. Imports gates and their alarms.

Invariants:
- What starts, starts at the moment in which all gates it needs are open to it; while it waits it
  takes up none of them. So two limits can't be taken in two orders, and a gate that is shut delays
  nobody who doesn't need it.
- Nobody waits who could start, and nobody overtakes at a gate: who finds others there, waits.
- Lines of one run are served first come, first served, but for a child that comes back for another
  attempt: that goes before children that have not started, of which a fan-out reads many ahead.
- Lines of different runs take turns, however many each has waiting (start-time fair queueing:
  P. Goyal, H. Vin, H. Cheng, 1996). A turn that a returning child takes early is a turn of its run
  like any other, so a run whose children fail takes no more than its share. Its first few
  turns a run has in one go: so small runs are served one after the other, rather than all at a time
  and all of them late; a large one gets no more by that than it would have had a little later.
- Nothing is lost: no slot and no unit of a rate, not when what took it fails, is cancelled, or is
  cancelled in the very moment in which it is granted.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Hashable, Sequence
from itertools import count
from random import random
from typing import final

from shoal._concurrency.backend import Clock, Waiter
from shoal._concurrency.cancellation import ki_protected, ki_unprotected
from shoal._errors.arguments import is_number
from shoal._errors.exceptions import BadResult, brief
from shoal._state.state import refuse_awaitable

from .gates import Claim, Gate, Held, Line, Turn
from .limits import Adaptive, Ended
from .meters import CREDIT, ForeignMeter
from .shared_rate_client import StartTask, Supplies
from .timers import Alarms, SetAlarm

AT_ONCE = 8
"""Claims of a run that need not wait for others to have their turns in between."""


@final
class Queue:
    """Grants claims on gates, in turn. Belongs to one event loop."""

    __slots__ = ("_alarms", "_arrivals", "_round", "_supplies", "clock", "lines", "waiter")

    def __init__(
        self,
        waiter: Callable[[], Waiter],
        clock: Clock,
        set_alarm: SetAlarm | None = None,
        start_task: StartTask | None = None,
        chance: Callable[[], float] = random,
    ) -> None:
        """Have nobody wait.

        Args:
            waiter: Makes what is awaited by whoever waits in a task.
            clock: The loop's.
            set_alarm: Has a function called at a time; None: nothing but slots is waited for.
            start_task: Starts a task; None: nothing is waited for that other processes share.
            chance: Makes random numbers from 0 up to, but not, 1.
        """
        self.waiter: Callable[[], Waiter] = waiter
        self.clock: Clock = clock
        self.lines: dict[Hashable, Line] = {}  # only where somebody waits
        self._arrivals: count[int] = count()
        self._round: float = 0.0  # how many turns each of those who wait has had
        self._alarms: Alarms = Alarms(clock, set_alarm, self._open)
        self._supplies: Supplies = Supplies(clock, start_task, chance, self.serve, self._refuse)

    # -- coming and going -----------------------------------------------------------------------

    @ki_protected
    def enter(self, claim: Claim, *, ahead: bool = False) -> None:
        """Grant ``claim`` what it needs, or have it wait: ``ahead`` of those that are not."""
        gate: Gate | None = None
        kind = ahead, claim.is_returning, claim.unit
        line = self.lines.get((*kind, claim.needed)) if self.lines else None
        # The last of those that come before it, whatever their arrival.
        turn = not ahead, self._early() if claim.is_returning else math.inf, sys.maxsize
        if line is None:
            gate = self._shut(claim, turn)
            if gate is None:
                self.take(claim)
                return
        if not ahead and claim.load():
            line = self.lines.get((*kind, claim.needed))
        if line is None:
            gate = gate or self._shut(claim, turn)
            assert gate is not None, "others wait in front of it"
            key = *kind, claim.needed
            line = self.lines[key] = Line(key, is_behind=not ahead)
            self._join(claim, line)
            self._post(line, gate)
        else:
            self._join(claim, line)
        claim.stand()

    def _join(self, claim: Claim, line: Line) -> None:
        unit = claim.unit
        if unit is not None:
            if unit.turn_due <= self._round:  # it has had no more than its turns
                unit.turns_since = unit.turn_due = self._round
            is_early = unit.turn_due < unit.turns_since + AT_ONCE
            claim.due = unit.turns_since if is_early else unit.turn_due
            if claim.is_returning:
                claim.due = min(claim.due, self._early())
            unit.turn_due += 1.0
        line.claims[claim] = next(self._arrivals)
        claim.line = line

    def _early(self) -> float:
        """Return the round in which a child is due that comes back: before the run's waiting ones.

        The first of these is due ``AT_ONCE`` rounds ago, at the earliest: so many turns a run has
        in one go, and each grant moves the round on by one turn at most. See
        test_a_retry_waits_for_one_turn_and_not_for_what_was_read_ahead.
        """
        return self._round - AT_ONCE

    def _shut(self, claim: Claim, turn: Turn, *, but: Gate | None = None) -> Gate | None:
        """Find a gate that keeps ``claim`` waiting; None if all are open, ``but`` set aside.

        One that is shared is found last: nothing is asked for there that could not be used.
        """
        shared: Gate | None = None
        now: float | None = None
        for at, gate in enumerate(claim.needed):
            if gate is but:
                continue
            if gate.posted:
                first = gate.first()
                if first is not None and first.turn() < turn:  # nobody overtakes
                    return gate
            opens = gate.opens_at(claim.cost(at), paid=claim.paid)
            if opens == -math.inf:
                continue
            now = self.clock() if now is None else now
            if opens > now:
                if gate.shared is None:
                    return gate
                shared = gate
        return shared

    @ki_protected
    def take(self, claim: Claim, *, at: Gate | None = None, credit: float = 0.0) -> None:
        """Count what ``claim`` needs as taken, whether or not there is room.

        Args:
            claim: Is granted.
            at: The gate that kept it waiting...
            credit: ...and seconds for which that was open before anybody looked.
        """
        claim.granted = True
        if claim.paid:
            for gate in claim.needed:
                gate.used += 1
            return
        claim.paid = True
        now: float | None = None
        since: float | None = None
        for index, gate in enumerate(claim.needed):
            gate.used += 1
            if gate.adapt is not None:
                since = now = self.clock() if now is None else now
            if gate.meter is not None:
                claim.taken_at = now = self.clock() if now is None else now
                gate.meter.take(now, claim.cost(index), credit if gate is at else 0.0)
        claim.settle(since)

    @ki_protected
    def leave(self, claim: Claim) -> None:
        """Take back what ``claim`` holds, and grant it to who waits; or let it wait no more."""
        if claim.granted:
            claim.granted = False
            for gate in claim.needed:
                gate.used -= 1
            if self.lines:
                self.serve(*claim.needed)
        elif claim.line is not None:
            self._drop(claim, claim.line)

    def _drop(self, claim: Claim, line: Line) -> None:
        """Take a claim out of its line, whose turn may come later by that."""
        gate = line.gate
        assert gate is not None, "who waits, waits somewhere"
        gate.unpost(line)
        del line.claims[claim]
        claim.line = None
        if line.claims:
            gate.post(line)
        else:
            self._end(line)
        self.serve(gate)

    def _end(self, line: Line) -> None:
        del self.lines[line.key]
        if not self.lines:
            self._alarms.clear()

    # -- opening --------------------------------------------------------------------------------

    @ki_protected
    def serve(self, *gates: Gate, due: float = math.inf) -> None:
        """Grant what can be granted of what waits at ``gates``, in turn.

        Args:
            gates: They may have opened.
            due: When that was to happen, if it is time that has opened one. A rate doesn't lose the
                seconds by which timers are late.
        """
        serving = [gate for gate in gates if gate.posted]
        while serving:
            gate = serving[0]
            if len(serving) > 1:
                gate = min(serving, key=Gate.first_turn)
            line = gate.first()
            if line is None:
                serving.remove(gate)
                continue
            claim = line.first()
            opens = gate.opens_at(claim.cost(claim.needed.index(gate)), paid=claim.paid)
            now = self.clock()
            is_shut = opens > now and not claim.is_gone
            other: Gate | None = None
            if not claim.is_gone and (not is_shut or gate.shared is not None):
                other = self._shut(claim, line.turn(), but=gate)
            if is_shut and (other is None or other.shared is not None):
                self._set_alarm(gate, claim)
                serving.remove(gate)
                continue
            gate.unpost(line)
            if other is not None:
                self._post(line, other)
                continue
            if not claim.is_gone:
                self._round = max(self._round + 1.0 / len(self.lines), claim.due)
                credit = min(now - opens, CREDIT) if opens >= due else 0.0
                self.take(claim, at=gate, credit=credit)
            del line.claims[claim]
            claim.line = None
            if line.claims:
                gate.post(line)  # looked at again, when it is its turn
            else:
                self._end(line)
            claim.wake()

    def _open(self, gate: Gate, due: float) -> None:
        self.serve(gate, due=due)

    def _post(self, line: Line, gate: Gate) -> None:
        """Have ``line`` wait at ``gate``, and look again when that opens by itself."""
        gate.post(line)
        if gate.first() is line:
            self._set_alarm(gate, line.first())

    def _set_alarm(self, gate: Gate, claim: Claim) -> None:
        at = claim.needed.index(gate)
        opens = gate.opens_at(claim.cost(at), paid=claim.paid)
        if gate.shared is not None:
            self._supplies.want(gate)
        if opens == math.inf and isinstance(gate.meter, ForeignMeter):
            opens = self.clock() + gate.meter.pause
        if -math.inf < opens < math.inf:
            self._alarms.set(opens, gate)

    @ki_protected
    def _refuse(self, gate: Gate, make_error: Callable[[], Exception]) -> None:
        """Have nobody wait at ``gate`` for its rate: that would be in vain."""
        for line in gate.lines():
            for claim in list(line.claims):
                if not claim.paid and claim.line is line:
                    self._drop(claim, line)
                    claim.refuse(make_error())

    def close(self) -> None:
        """Look at the clock no more, and give back what is held of shared rates."""
        self._alarms.close()
        self._supplies.close()

    # -- what those who hold gates have found out -----------------------------------------------

    def correct(self, held: Held, by: Sequence[float]) -> None:
        """Count so much more as gone at each of the gates that are held, or less."""
        for gate, cost in zip(held.needed, by, strict=True):
            if gate.meter is not None and cost:
                gate.meter.correct(cost, held.taken_at)
                self._look(gate)

    def refund(self, held: Held) -> None:
        """Give back what was charged for something that never started."""
        for at, gate in enumerate(held.needed):
            if gate.meter is not None:
                gate.meter.give_back(1.0 if held.costs is None else held.costs[at], held.taken_at)
                self._look(gate)

    def _look(self, gate: Gate) -> None:
        """See who may start now, and tell those who share the rate."""
        if gate.posted:
            self.serve(gate)
        if gate.shared is not None:
            self._supplies.want(gate)

    def charge(self, held: Held, actual: float) -> None:
        """Correct what was charged, wherever ``cost=`` said it."""
        if held.costs is None:
            return
        due = tuple(
            actual if gate.has_cost else cost
            for gate, cost in zip(held.needed, held.costs, strict=True)
        )
        self.correct(held, [new - old for new, old in zip(due, held.costs, strict=True)])
        held.costs = due

    def pause(self, held: Held, until: float) -> bool:
        """Let nothing start until then at those gates that are one of many keys.

        Returns whether there are any.
        """
        keyed = [gate for gate in held.needed if gate.is_keyed]
        for gate in keyed:
            gate.paused_until = max(gate.paused_until, until)
            if gate.posted:
                self.serve(gate)  # which waits for the new time
        return bool(keyed)

    def adapt(self, held: Held, error: BaseException | None) -> None:
        """Hear how something ended, before it gives back what it holds.

        Raises:
            Exception: What a user's policy raised.
            BadResult: It returned what is no number of slots.
        """
        if held.since is None:
            return
        now = self.clock()
        for gate in held.needed:
            if gate.adapt is None or gate.size is None:
                continue
            ended = Ended(error, now - held.since, held.since, now, gate.used)
            size = _size_after(gate.adapt, gate.size, gate.changed_at, ended)
            if size < gate.size:
                gate.changed_at = now
            gate.resize(max(1.0, size))
            if gate.posted:
                self.serve(gate)

    def __repr__(self) -> str:
        return f"<Queue, {sum(len(line.claims) for line in self.lines.values())} waiting>"


@ki_unprotected
def _size_after(adapt: Adaptive, n: float, changed_at: float, ended: Ended) -> float:
    """Ask the policy, which may be the user's."""
    size: object = adapt.after(n, changed_at, ended)
    if not is_number(size) or not -math.inf < size < math.inf:
        refuse_awaitable(size, "Limits(adapt=...).after")
        msg = (
            f"Limits(adapt=...): {type(adapt).__name__}.after returned {brief(size)}; it returns "
            f"a number of slots"
        )
        raise BadResult(msg)
    return size
