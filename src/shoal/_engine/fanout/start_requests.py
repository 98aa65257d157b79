"""Requests for what a child needs to start: its place, its fan-out's limits, its first attempt's.

All of it is requested at once, as the permit of the first attempt with the in-flight slot in it.
The scheduler grants both in one moment, so a child never holds one while it waits for the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from shoal._engine.config import RunConfig
from shoal._engine.run import Run
from shoal._graph.action import FunctionAction
from shoal._limits.admission import AdmissionController
from shoal._limits.flows import Flow
from shoal._limits.gates import Gate
from shoal._limits.limiters import Limiter
from shoal._limits.permits import AttemptPermit, HeldPermits, InFlight


@final
class StartRequests:
    """Requests what the children of one group need to start, from the limits of its runtime."""

    __slots__ = ("_controller", "_in_flight", "_own")

    def __init__(
        self, controller: AdmissionController, in_flight: InFlight, own: tuple[Limiter, ...]
    ) -> None:
        """Request on behalf of one group.

        Args:
            controller: The limits of the runtime.
            in_flight: The group's places.
            own: The limiters of the fan-out that count starts of its children.
        """
        self._controller = controller
        self._in_flight = in_flight
        self._own = own

    def for_child(self, child: Run, on_granted: Callable[[], None]) -> AttemptPermit:
        """Acquire everything that ``child`` needs to start, or queue a request for it.

        The permit that is returned is also the one of the child's first attempt.

        Raises:
            Exception: ``by=`` or ``cost=`` of the fan-out's limits raised it.
        """
        controller, config, in_flight = self._controller, child.config, self._in_flight
        limiters, scheduler = controller.limiters, controller.scheduler
        gates, costs = limiters.gates(self._own, child.data, config.execution)
        if costs is None:
            costs = (1.0,) * len(gates)
        permits = child.permits = HeldPermits(config.execution, in_flight)
        if scheduler.has_shares:
            permits.belong_to(controller.shares(self._own, child, permits.unit))
        permits.slot = in_flight.make_slot(permits, gates, costs, is_held=False)
        needed: tuple[Gate, ...] = ()
        own: tuple[float, ...] | None = None
        worker: Gate | None = None
        flow: Flow | None = None
        action = config.entry
        # A child that continues may begin at another action, which takes its permit by itself.
        begins_with_action = action is not None and child.begins_anew
        applying = config.scopes
        try:
            if action is not None and begins_with_action:
                applying = limiters.of_attempt(config.scopes, action.definition, action.limits)
                needed, own = limiters.gates(applying, child.data, config.execution)
                worker = _worker_of(config)
            if scheduler.has_shares or permits.unit.priority != "normal":
                flow = controller.flow(config.scopes, applying, permits, child)
        except Exception:  # noqa: BLE001 # raised again by the attempt, which it fails
            needed, own, worker = (), None, None
        return self._permit(
            config, permits, needed, own, worker=worker, flow=flow, on_granted=on_granted
        )

    def for_any(
        self,
        kind: RunConfig,
        gates: tuple[Gate, ...],
        needed: tuple[Gate, ...],
        on_granted: Callable[[], None],
    ) -> tuple[HeldPermits, AttemptPermit]:
        """Request what every child of one kind needs to start, for one that is not known yet.

        Args:
            kind: What its children have in common.
            gates: The gates of the fan-out's limits, each of which charges 1.
            needed: The gates of the first attempt.
            on_granted: Called when the permit is granted or refused later.
        """
        controller, in_flight = self._controller, self._in_flight
        permits = HeldPermits(kind.execution, in_flight)
        costs = (1.0,) * len(gates)
        permits.slot = in_flight.make_slot(permits, gates, costs, is_held=False)
        permit = self._permit(
            kind,
            permits,
            needed,
            None,
            worker=_worker_of(kind),
            flow=controller.flow(kind.scopes, (), permits, None),
            on_granted=on_granted,
        )
        return permits, permit

    def for_copy(self, copy: Run, action: FunctionAction[..., Any]) -> AttemptPermit:
        """Request what a second copy of a child's attempt needs to start; its task waits for it.

        Raises:
            Exception: ``by=`` or ``cost=`` raised it.
        """
        controller, config, in_flight = self._controller, copy.config, self._in_flight
        limiters, scheduler = controller.limiters, controller.scheduler
        # By the state with which the child started: its slot counts under the same key.
        gates, costs = limiters.gates(self._own, copy.initial, config.execution)
        applying = limiters.of_attempt(config.scopes, action.definition, action.limits)
        needed, own = limiters.gates(applying, copy.data, config.execution)
        pool = config.pool_of(action)
        permits = copy.permits = HeldPermits(config.execution, in_flight)
        if costs is None:
            costs = (1.0,) * len(gates)
        if scheduler.has_shares:
            permits.belong_to(controller.shares(self._own, copy, permits.unit))
        permits.slot = in_flight.make_slot(permits, gates, costs, is_held=False)
        return AttemptPermit(
            scheduler,
            needed,
            own,
            permits,
            flow=controller.flow(config.scopes, applying, permits, copy),
            slot=permits.slot,
            worker=None if pool is None else pool.gate,
            keeps_worker=action.is_plain,
        )

    def _permit(
        self,
        kind: RunConfig,
        permits: HeldPermits,
        needed: tuple[Gate, ...],
        costs: tuple[float, ...] | None,
        *,
        worker: Gate | None,
        flow: Flow | None,
        on_granted: Callable[[], None],
    ) -> AttemptPermit:
        """Request the permit of a child's first attempt, together with its slot in ``permits``."""
        permit = AttemptPermit(
            self._controller.scheduler,
            needed,
            costs,
            permits,
            flow=flow,
            on_granted=on_granted,
            slot=permits.slot,
            worker=worker,
            keeps_worker=kind.entry is None or kind.entry.is_plain,
        )
        # None if it holds the slot alone: then the first attempt has nothing to take over.
        permits.first_permit = None if worker is None and not needed else permit
        return permit

    def __repr__(self) -> str:
        return f"<StartRequests, limited by {self._own}>"


def _worker_of(kind: RunConfig) -> Gate | None:
    """Return the gate of the workers that call the first action; None: it needs none."""
    pool = None if kind.entry is None else kind.pool_of(kind.entry)
    return None if pool is None else pool.gate
