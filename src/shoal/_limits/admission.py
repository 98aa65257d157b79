"""Admission control of a runtime: one scheduler, and the limits of all owners in front of it.

The path of an attempt: its *limiters*, one for each owner of limits that apply, have *gates*, one
for each key. The attempt acquires a *permit* for all of these gates together, or waits for it in
the *scheduler*. The children of a fan-out are admitted through the same parts, by the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from random import random
from typing import Any, final

from shoal._concurrency.backend import Clock, Waiter
from shoal._errors.exceptions import BadUse

from .flows import Flow, Share
from .gates import FairShare, Gate
from .headers import read_headers
from .limiters import Limiter, Limiters
from .limits import Limits
from .permits import AttemptPermit, HeldPermits, InFlightSlot
from .refusals import overload
from .scheduler import FairScheduler
from .shared_rate_client import StartTask
from .timers import SetAlarm


def _no_fields(_run: object) -> Mapping[str, object]:
    return {}


@final
class AdmissionController:
    """Admits attempts as the limits of a runtime allow."""

    def __init__(
        self,
        waiter: Callable[[], Waiter],
        clock: Clock,
        alarm: SetAlarm | None = None,
        start_task: StartTask | None = None,
        chance: Callable[[], float] = random,
        *,
        takes_foreign: bool = True,
        fields_around: Callable[[Any], Mapping[str, object]] = _no_fields,
    ) -> None:
        """Create the admission control of a runtime, with no limits yet.

        Args:
            waiter: Makes the future that an attempt's task awaits.
            clock: The loop's clock.
            alarm: Schedules a call at a time; None: attempts wait for slots only, never for time.
            start_task: Starts a task; None: no rate is shared with other processes.
            chance: Returns random numbers in [0, 1).
            takes_foreign: Whether limiters of other libraries work here; they need asyncio.
            fields_around: Returns the fields of a run, and of the runs around it, which are unknown
                here. Called for limits with ``share=`` only.
        """
        # One for all owners: only what sees all gates that a request needs can grant them in one
        # moment. Neither attribute is ever replaced.
        self.scheduler: FairScheduler = FairScheduler(waiter, clock, alarm, start_task, chance)
        self._fields_around = fields_around
        self.limiters: Limiters = Limiters(self.scheduler, takes_foreign=takes_foreign)

    def limiter(self, owner: object, limits: Limits, name: str = "") -> Limiter:
        """Return the limiter of ``owner``, creating it on first use; see ``Limiters.of``."""
        return self.limiters.of(owner, limits, name)

    def permit(
        self,
        scopes: tuple[Limiter, ...],
        data: Mapping[str, object],
        holder: HeldPermits | None = None,
        *,
        owner: object,
        limits: Limits | None,
        worker: Gate | None,
        keeps_worker: bool = True,
        run: object = None,
    ) -> AttemptPermit | None:
        """Return a permit for an attempt: granted if there is room, else waiting in the scheduler.

        Args:
            scopes: The limiters of the runtime and the application that the run belongs to.
            data: The fields of the state that the attempt starts from.
            holder: The permits of the run that the attempt belongs to.
            owner: The definition of the action, by which its limits are counted.
            limits: The limits of the action, if it has any.
            worker: The gate of the workers that the attempt needs one of; None: it needs none.
            keeps_worker: Whether the worker can do nothing else while the attempt's children run.
            run: The run, for ``fields_around``.

        Returns None if nothing limits the attempt.

        Raises:
            Overloaded: It would have to wait for a limit for which enough runs wait. Not for the
                attempt of a child, which has begun.
        """
        # None also for a child in flight that never needed one: the group counts it.
        slot = None if holder is None else holder.slot
        limiters = self.limiters.of_attempt(scopes, owner, limits)
        # An in-flight slot that was released while the child waited is reacquired with the permit.
        if not limiters and worker is None and (slot is None or slot.is_held):
            return None
        # Before the permit, because it may call users' functions: what they raise leaves nothing
        # behind.
        unit = None if holder is None else holder.unit
        needed, costs = self.limiters.gates(limiters, data, unit)
        flow: Flow | None = None
        if holder is not None and (self.scheduler.has_shares or holder.unit.priority != "normal"):
            flow = self.flow(scopes, limiters, holder, run)
        permit = AttemptPermit(
            self.scheduler,
            needed,
            costs,
            holder,
            slot=slot,
            worker=worker,
            keeps_worker=keeps_worker,
            flow=flow,
        )
        if holder is not None and holder.in_flight is None:
            bounds = self.scheduler.bounds_waiting
            refusal = overload(permit, self.scheduler.clock) if bounds else None
            if refusal is not None:
                permit.cancel()
                raise refusal
        return permit

    def place(self, scopes: tuple[Limiter, ...], holder: HeldPermits, run: object) -> AttemptPermit:
        """Return a permit for the in-flight slot alone, of a child that has stepped aside."""
        flow = self.flow(scopes, scopes, holder, run)
        # No gates but those of the slot, which keeps them when the permit is granted.
        return AttemptPermit(self.scheduler, (), None, holder, slot=holder.slot, flow=flow)

    def flow(
        self,
        scopes: tuple[Limiter, ...],
        limiters: tuple[Limiter, ...],
        holder: HeldPermits,
        run: object,
    ) -> Flow | None:
        """Return where an attempt takes turns: by its priority, and by its shares of limits.

        Args:
            scopes: The limiters of the runtime and the application.
            limiters: These, and the limiter of the action, if it has one.
            holder: The permits of its run, which belongs to shares of the fan-outs around it.
            run: The run, for ``fields_around``.

        Raises:
            Exception: Whatever ``share=`` or ``weight=`` raises.
            BadResult: They returned nothing valid.
        """
        if not self.scheduler.has_shares:
            return self.scheduler.flow_of(holder.unit, ())
        outside = self.shares(scopes, run, holder.unit)
        inside = self.shares(limiters[len(scopes) :], run, holder.unit)
        # Each once: one object may limit the action, the application and the runtime.
        shares = tuple(dict.fromkeys((*outside, *holder.shares, *inside)))
        return self.scheduler.flow_of(holder.unit, shares)

    def shares(
        self, limiters: tuple[Limiter, ...], run: object, unit: FairShare
    ) -> tuple[Share, ...]:
        """Return the shares of these limiters that an attempt or a child belongs to."""
        return self.limiters.shares(limiters, partial(self._fields_around, run), unit)

    def charge(
        self,
        permit: AttemptPermit | None,
        slot: InFlightSlot | None,
        actual: float,
        unit: FairShare | None = None,
        *,
        named: str | None = None,
    ) -> None:
        """Replace the units that ``cost=`` functions charged an attempt and its child.

        Args:
            permit: The permit of the attempt.
            slot: The in-flight slot of the child.
            actual: The units.
            unit: The execution that pays.
            named: What is charged; None: the only cost that there is.

        Raises:
            BadUse: There are several costs and none is named, or one whose name is misspelled.
        """
        # Both may have a gate with `cost=`, and each remembers what it was charged.
        charged = [held for held in (permit, slot) if held is not None]
        units = {gate.unit for held in charged for gate in held.needed if gate.has_cost}
        units |= {stake.account.terms.unit for held in charged for stake in held.stakes}
        check_unit(units, named)
        for held in charged:
            self.scheduler.charge(held, actual, unit, named=named)

    def learn(
        self, permit: AttemptPermit | None, holder: HeldPermits, headers: Mapping[str, str]
    ) -> None:
        """Adjust all rates that an attempt was charged to what the headers of a response say.

        Raises:
            BadUse: ``headers`` is no mapping.
        """
        said = read_headers(headers)
        # Of its permit, of its child, and of the children around it: each may stand for the server.
        held: list[AttemptPermit | InFlightSlot | None] = [permit, holder.slot]
        above = holder.above
        while above is not None:
            held.append(above.slot)
            above = above.above
        for one in held:
            if one is not None:
                self.scheduler.learn(one, said)

    def pause(self, permit: AttemptPermit | None, holder: HeldPermits, seconds: float) -> bool:
        """Pause the keys of an attempt: those of its permit, its child, and enclosing children.

        Returns whether the pause also delays the next attempt of this one. The keys of the permit
        and of the child do. Those of enclosing children only delay other children, because the
        enclosing children are in flight already.
        """
        until = self.scheduler.clock() + seconds
        # A list, not a generator: `any` would stop at the first, and all must be paused.
        paused = [
            self.scheduler.pause(held, until) for held in (permit, holder.slot) if held is not None
        ]
        # All the way up, since the key may be that of a fan-out far above; see
        # test_trying_later_pauses_the_keys_of_all_fan_outs_around_it.
        above = holder.above
        while above is not None:
            if above.slot is not None:
                self.scheduler.pause(above.slot, until)
            above = above.above
        return any(paused)

    def adapt(self, held: AttemptPermit | InFlightSlot, error: BaseException | None) -> None:
        """Let ``adapt=`` policies adjust the slots, before ``held`` is released.

        Raises:
            Exception: Whatever a user's policy raises.
        """
        self.scheduler.adapt(held, error)

    def close(self) -> None:
        """Stop the timer, and return unused units of shared rates to their backends."""
        self.scheduler.close()

    def __repr__(self) -> str:
        return f"<AdmissionController, {self.scheduler}>"


def check_unit(units: Collection[str | None], named: str | None) -> None:
    """Check the unit in which an attempt says its cost.

    Args:
        units: The units of the costs that apply; None: one without a name.
        named: The unit that was given; None: none was.

    Raises:
        BadUse: There are several and none was given, or one that is misspelled.
    """
    known = sorted(repr(unit) for unit in units if unit is not None)
    if named is None and len(units) > 1:
        others = "" if None not in units else ", and a cost without unit="
        msg = (
            f"context.charge(actual) does not say what it charges, and several costs apply: "
            f"{', '.join(known)}{others}; give its name: context.charge(actual, unit={known[0]})"
        )
        raise BadUse(msg)
    # Another unit is none of these limits' business, unless it is one of theirs, misspelled: an
    # action says what it has cost also where nothing limits it.
    if (
        named is not None
        and named not in units
        and named.lower() in {str(one).lower() for one in units}
    ):
        msg = f"context.charge(..., unit={named!r}): the costs that apply are in {', '.join(known)}"
        raise BadUse(msg)
