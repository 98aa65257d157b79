"""Limiters: the gates of the limits that stand on one owner, by key. Imports the queue.

Invariants:
- One owner, one limiter, for as long as the owner and the runtime live: who shares a limit, shares
  its gates.
- Memory follows what is in use: the gate of a key that is as good as new is forgotten.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import final
from weakref import WeakKeyDictionary

from shoal._concurrency.cancellation import ki_unprotected
from shoal._errors.exceptions import BadResult, BadUse, DefinitionError, brief
from shoal._state.secrets import refuse_key
from shoal._state.state import State, make_state, refuse_awaitable

from .gates import Gate
from .limits import Limits, Part, Rate, SharedRate
from .scheduler import Queue

SWEEP = 64
"""Keys of a limit that are kept without looking whether some could be forgotten."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """How one part of a ``Limits`` is used: ``runtime.limiter(owner).statistics()``."""

    limits: str
    """The part."""
    keys: int
    """Keys that are known at the moment; 1 for a part without ``by=``."""
    in_use: int
    """Slots in use, of all keys together."""
    slots: float | None
    """Slots there are for each key; None: any number. What adapts says what the first key has."""
    waiting: int
    """How many wait and are kept by this part."""
    paused: int
    """Keys that are paused."""


@final
class Limiter:
    """The gates of the ``Limits`` that stand on one owner, for all runs of a runtime."""

    def __init__(self, limits: Limits, queue: Queue) -> None:
        """Have no gates yet, but those that there is one of."""
        self._queue: Queue = queue
        self.limits: Limits = limits
        self.parts: tuple[PartGates, ...] = tuple(map(PartGates, limits.parts))
        self.same: tuple[Gate, ...] | None = self._same()
        """The gates that all need who are limited by it; None if that depends on their states."""

    def _same(self) -> tuple[Gate, ...] | None:
        if any(part.by is not None or part.cost is not None for part in self.limits.parts):
            return None
        return tuple([gates.the_one() for gates in self.parts])

    def change(self, limits: Limits) -> None:
        """Have other numbers from now on; what waits is judged by them at once.

        What runs goes on: where there are fewer slots than are in use, nothing new starts until
        enough has ended. Parts at the same place keep what they have counted, if they are of the
        same kind: both with ``by=``, or both without. Another ``by=`` or ``cost=`` is asked about
        what comes from now on: what waits keeps the key and the cost that it came with.

        Raises:
            BadUse: They are no ``Limits``, or have other parts.
        """
        if not isinstance(limits, Limits):
            msg = f"limiter.change(limits) takes Limits(...), not {brief(limits)}"
            raise BadUse(msg)
        if len(limits.parts) != len(self.parts) or any(
            (part.by is None) != (gates.part.by is None)
            for part, gates in zip(limits.parts, self.parts, strict=True)
        ):
            msg = (
                f"{self.limits!r} can't be changed into {limits!r} while it is in use: the same "
                f"parts are needed, in the same order, with other numbers"
            )
            raise BadUse(msg)
        self.limits = limits
        self.same = self._same()
        for part, gates in zip(limits.parts, self.parts, strict=True):
            for gate in gates.change(part):
                self._queue.serve(gate)

    def statistics(self) -> tuple[Statistics, ...]:
        """Say how each part is used."""
        now = self._queue.clock()
        return tuple(gates.statistics(now) for gates in self.parts)

    def __repr__(self) -> str:
        used = ", ".join(f"{one.in_use} in use, {one.waiting} waiting" for one in self.statistics())
        return f"<Limiter of {self.limits!r}: {used}>"


@final
class PartGates:
    """The gates of one part of a limit, by key."""

    __slots__ = ("_sweep_at", "gates", "part")

    def __init__(self, part: Part) -> None:
        """Have none yet."""
        self.part: Part = part
        self.gates: dict[Hashable, Gate] = {}
        self._sweep_at: int = SWEEP

    def the_one(self) -> Gate:
        """Find the only gate of a part without ``by=``."""
        gate = self.gates.get(None)
        if gate is None:
            gate = self.gates[None] = Gate(self.part.n, self.part)
        return gate

    def find(self, state: State, now: float) -> tuple[Gate, float]:
        """Find the gate for what starts from ``state``, and what it costs there."""
        part = self.part
        cost = 1.0 if part.cost is None else _cost(part, state)
        key = None if part.by is None else _key(part, state)
        gate = self.gates.get(key)
        if gate is None:
            if len(self.gates) >= self._sweep_at:
                self._sweep(now)
            gate = self.gates[key] = Gate(part.n, part, key)
        return gate, cost

    def _sweep(self, now: float) -> None:
        """Forget the keys that are as good as new; each is looked at twice at most, on average."""
        self.gates = {key: gate for key, gate in self.gates.items() if not gate.is_new(now)}
        self._sweep_at = max(SWEEP, 2 * len(self.gates))

    def change(self, part: Part) -> list[Gate]:
        """Have other numbers, and return the gates, which have them too."""
        self.part = part
        for gate in self.gates.values():
            gate.part, gate.adapt = part, part.adapt
            gate.resize(part.n)
            meter = part.meter(gate.key)
            if meter is not None:
                meter.go_on_from(gate.meter)
            gate.meter = meter
        return list(self.gates.values())

    def statistics(self, now: float) -> Statistics:
        """Say how it is used."""
        gates = self.gates.values()
        return Statistics(
            limits=repr(self.part),
            keys=len(gates),
            in_use=sum(gate.used for gate in gates),
            slots=next((gate.size for gate in gates), self.part.n),
            waiting=sum(gate.waiting() for gate in gates),
            paused=sum(gate.paused_until > now for gate in gates),
        )


@final
class Limiters:
    """The limiters of all owners in a runtime."""

    def __init__(
        self, queue: Queue, threads: float | None = None, *, takes_foreign: bool = True
    ) -> None:
        """Have none yet.

        Args:
            queue: Where who is limited waits.
            threads: Worker threads there are; None: any number.
            takes_foreign: Whether rates that are not ours work here: they are made for asyncio.
        """
        self._queue: Queue = queue
        self._takes_foreign: bool = takes_foreign
        self.threads: Gate = Gate(threads)
        """The worker threads: a gate as well."""
        self.by_owner: WeakKeyDictionary[object, dict[str, Limiter]] = WeakKeyDictionary()

    def of(self, owner: object, limits: Limits, name: str = "") -> Limiter:
        """Find the gates of the limits that stand on ``owner``; make them if there are none yet.

        Args:
            owner: A runtime, an application, an action, a fan-out.
            limits: The limits.
            name: Tells several of one owner apart.

        Raises:
            DefinitionError: They have a rate that doesn't work here.
        """
        named = self.by_owner.get(owner)
        if named is None:
            named = self.by_owner[owner] = {}
        found = named.get(name)
        if found is None:
            if not self._takes_foreign:
                _refuse_foreign(limits)
            found = named[name] = Limiter(limits, self._queue)
        return found

    def of_attempt(
        self, scopes: tuple[Limiter, ...], owner: object, limits: Limits | None
    ) -> tuple[Limiter, ...]:
        """Find what limits an attempt of ``owner``, which has ``limits``, where ``scopes`` do."""
        if limits is None:
            return scopes
        return (*scopes, self.of(owner, limits))

    def gates(
        self, limiters: Sequence[Limiter], data: Mapping[str, object]
    ) -> tuple[tuple[Gate, ...], tuple[float, ...] | None]:
        """Find the gates that are needed to start from ``data``, and what it costs there.

        Raises:
            Exception: What ``by=`` or ``cost=`` raised.
            BadResult: They returned what is no key, or no cost.
        """
        same: tuple[Gate, ...] = ()
        for limiter in limiters:
            if limiter.same is None:
                break
            same += limiter.same
        else:
            return same, None
        parts = [gates for limiter in limiters for gates in limiter.parts]
        state, now = make_state(data), self._queue.clock()
        found = [gates.find(state, now) for gates in parts]
        return tuple([gate for gate, _ in found]), tuple([cost for _, cost in found])


@ki_unprotected
def _cost(part: Part, state: State) -> float:
    assert part.cost is not None
    cost = part.cost(state)
    if not isinstance(cost, int | float) or isinstance(cost, bool) or not 0 <= cost < math.inf:
        refuse_awaitable(cost, "Limits(cost=...)")
        msg = f"{part!r}: cost= returned {brief(cost)}; it returns a number of units, at least 0"
        raise BadResult(msg)
    if cost > part.burst:
        msg = (
            f"{part!r}: something costs {cost:g}, and no more than {part.burst:g} may go at once, "
            f"so it could never start; allow more: Rate(..., burst=...)"
        )
        raise BadResult(msg)
    return float(cost)


@ki_unprotected
def _key(part: Part, state: State) -> Hashable:
    assert part.by is not None
    key = part.by(state)
    try:
        hash(key)
    except TypeError:
        msg = f"{part!r}: by= returned {brief(key)}, which is not hashable; return a str, say"
        raise BadResult(msg) from None
    refuse_awaitable(key, "Limits(by=...)")
    refuse_key(key, state._data, f"by= of {part!r}")
    return key


def _refuse_foreign(limits: Limits) -> None:
    for part in limits.parts:
        rate = part.rate
        if rate is not None and not isinstance(rate, Rate | SharedRate):
            kind = type(rate)
            msg = (
                f"{limits!r}: {kind.__module__}.{kind.__qualname__} works on asyncio only; on trio "
                f"and asyncio alike does Rate({rate.max_rate:g}, per={rate.time_period:g})"
            )
            raise DefinitionError(msg)
