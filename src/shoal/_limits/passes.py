"""Passes: what a child takes of limits that are open, where nobody waits, past a request for it.

A request is an object that can wait, be refused, returned and taken up again. Most requests are
granted at once and do none of that. Where the gates of a child or an attempt are all known, open
and free of others that wait, its units are taken at once, and one small object says what was taken.

Invariants:
- A pass takes what the request would have been granted in that moment, and nothing else: all gates
  in one moment, and never where a request would have waited.
- No request that waits is passed: no pass is given at a gate where one is posted.
- The units of a pass are given back once, on every way out. ``Run.passed`` holds the pass.
- A pass can become the permits of a request at any time, for all that a pass can't do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol, final

from shoal._concurrency.cancellation import ki_protected

from .gates import FairShare, Gate
from .limiters import Limiter, Limiters
from .limits import Limits
from .scheduler import FairScheduler

START = ""
"""Stands for the first act of a child, together with what its fan-out counts: no act's name."""


@final
class Pass:
    """The units that one run has taken past its requests, and not given back.

    It never changes, and where no rate is charged, all children of one kind share one.
    """

    __slots__ = ("gates", "own", "taken_at")

    def __init__(
        self, gates: tuple[Gate, ...], own: tuple[Gate, ...] = (), taken_at: float = -math.inf
    ) -> None:
        """Note what was taken.

        Args:
            gates: Of the attempt: they count it until it ends.
            own: Of the fan-out: they count the child until it ends.
            taken_at: When rates were charged, if any was.
        """
        self.gates: tuple[Gate, ...] = gates
        self.own: tuple[Gate, ...] = own
        self.taken_at: float = taken_at


_Needs = tuple[tuple[Gate, ...], Pass]
"""All gates that are needed, and the pass of those where no rate is charged."""


class Passing(Protocol):
    """A run, which takes a pass."""

    passed: Pass | None
    """The units that it has taken and not given back; None: none. Set by ``Passes``."""


class Limited(Protocol):
    """An action, which an attempt calls."""

    name: str
    limits: Limits | None
    definition: object


@final
class Passes:
    """The passes of all children of one kind: one act of one fan-out under way."""

    __slots__ = (
        "_acts",
        "_changes",
        "_gates",
        "_limiters",
        "_own",
        "_scheduler",
        "_scopes",
        "_unit",
    )

    def __init__(
        self,
        scheduler: FairScheduler,
        limiters: Limiters,
        acts: Sequence[Limited],
        *,
        scopes: tuple[Limiter, ...],
        own: tuple[Limiter, ...],
        unit: FairShare,
    ) -> None:
        """Describe the children.

        Args:
            scheduler: Where requests wait.
            limiters: The limiters of the runtime.
            acts: What their attempts call.
            scopes: The limiters of all their attempts.
            own: The limiters that count their starts.
            unit: Their execution.
        """
        self._scheduler = scheduler
        self._limiters = limiters
        self._acts = acts
        self._scopes = scopes
        self._own = own
        self._unit = unit
        self._changes: int = -1  # of the limits, when the gates below were looked up
        # By the name of an act; it is missing where only a request will do.
        self._gates: Mapping[str, _Needs] = {}

    # By position alone: Python 3.13 doesn't specialize calls with names.
    @ki_protected
    def take(self, run: Passing, act: str) -> bool:
        """Take what an attempt needs, and return True, if all is open.

        Args:
            run: The run, which holds nothing of an attempt.
            act: The name of what the attempt calls; ``START``: what the child needs to start, but
                for its place.
        """
        unit, scheduler = self._unit, self._scheduler
        if scheduler.changes != self._changes:
            self._look()
        found = self._gates.get(act)
        if found is None:
            return False
        needed, usual = found
        # Where others wait, a grant counts as a turn of the flow of an execution that has one.
        # There is none around normal runs as long as no other has a priority.
        if scheduler.has_shares:
            return False
        has_classes = unit.priority != "normal" or scheduler.first_flow.parent is not None
        if has_classes and scheduler.wait_queues:
            return False
        if unit.held_at is not None:
            return False
        now = -math.inf
        for gate in needed:
            if gate.posted or gate.used >= gate.slots or gate.is_shut:
                return False
            meter = gate.meter
            if meter is None:
                # Most were never paused, and their clock is not read.
                if gate.paused_until > now and gate.paused_until > scheduler.clock():
                    return False
            else:
                now = scheduler.clock() if now == -math.inf else now
                if gate.paused_until > now or meter.opens_at(1.0) > now:
                    return False
        # From here on nothing raises.
        for gate in needed:
            gate.used += 1
            meter = gate.meter
            if meter is not None:
                meter.take(now, 1.0)
        passed = run.passed
        if passed is not None:
            run.passed = Pass(usual.gates, passed.own, passed.taken_at)  # of a further attempt
        elif needed:
            run.passed = usual if now == -math.inf else Pass(usual.gates, usual.own, now)
        return True

    @ki_protected
    def leave(self, run: Passing) -> None:
        """Give back what an attempt has taken, if it has; what rates were charged stays."""
        passed = run.passed
        if passed is None:
            return
        run.passed = Pass((), passed.own, passed.taken_at) if passed.own else None
        # All before any is granted on: what waits may need several.
        for gate in passed.gates:
            gate.used -= 1
        if self._scheduler.wait_queues:
            self._scheduler.serve(*passed.gates)

    @ki_protected
    def leave_last(self, run: Passing) -> None:
        """Give back all that the last attempt of a child has taken, and the child: it ends."""
        passed, run.passed = run.passed, None
        if passed is None:
            return
        gates = passed.own + passed.gates if passed.own else passed.gates
        for gate in gates:
            gate.used -= 1
        if self._scheduler.wait_queues:
            self._scheduler.serve(*gates)

    @ki_protected
    def end(self, run: Passing, *, refunds: bool) -> None:
        """Give back what a child has taken that ends before its last attempt has.

        Args:
            run: The child.
            refunds: Whether the rates of its attempt are given back, too, as it never began.
        """
        passed = run.passed
        if passed is not None and refunds:
            for gate in passed.gates:
                if gate.meter is not None:
                    gate.meter.give_back(1.0, passed.taken_at)
        self.leave_last(run)

    def _look(self) -> None:
        """Look up the gates again, after limits have changed."""
        own = _passing(self._own)
        found: dict[str, _Needs] = {}
        for act in self._acts:
            gates = _passing(self._limiters.of_attempt(self._scopes, act.definition, act.limits))
            if gates is None:
                continue
            found[act.name] = needs = gates, Pass(gates)
            if act is self._acts[0] and own is not None:
                found[START] = ((*own, *gates), Pass(gates, own)) if own else needs
        self._gates = found
        # Only now: limiters that were made for this have counted as changes.
        self._changes = self._scheduler.changes


def _passing(limiters: Sequence[Limiter]) -> tuple[Gate, ...] | None:
    """Return the gates of some limiters, each once; None: only a request will do."""
    found: dict[Gate, None] = {}
    for limiter in limiters:
        if limiter.passing is None:
            return None
        found.update(dict.fromkeys(limiter.passing))
    return tuple(found)
