"""Rivals: the flows whose request is next at a gate, behind the one that the gate keeps waiting.

A request that costs little may fit where the one before it does not, and it waits its turn all the
same. But turns change while requests wait: each turn that a flow has, at whatever gate, puts off
all else that waits in it. So a request may become the first one at a gate that is open to it and
at which nothing has happened. Where all requests cost the same there is nothing to find: a gate
that is shut to one of them is shut to the next one.

Invariants:
- Between two calls of the scheduler the first request of each gate is one that the gate, or another
  one, keeps waiting. See test_the_scheduler_grants_what_the_model_grants.
- Memory follows use: a flow in which nothing waits is forgotten.
"""

from __future__ import annotations

from typing import final

from .flows import Flow, Key
from .gates import Gate


@final
class Rivals:
    """Finds the gates at which another request is the first one since a flow had its turn."""

    __slots__ = ("_by_flow",)

    def __init__(self) -> None:
        # By the flow of the first request at a gate: the position of the next member, there, of the
        # flow around it. It may be too early, as the entries of a gate may; then the gate is looked
        # at once too often, and noted again with a later one.
        self._by_flow: dict[Flow, dict[Gate, Key]] = {}

    def note(self, gate: Gate) -> None:
        """Note the order at ``gate``, which is shut to the first request that waits there."""
        if gate.meter is None and gate.purse is None:
            return
        for flow, key in gate.rivals():
            self._by_flow.setdefault(flow, {})[gate] = key

    def after_turn(self, flow: Flow) -> list[Gate]:
        """Return the gates at which ``flow``, or a flow around it, is behind another one by now.

        Args:
            flow: It has just had a turn.
        """
        found: list[Gate] = []
        around: Flow | None = flow if self._by_flow else None
        while around is not None:
            gates = self._by_flow.get(around)
            if gates:
                key = around.key()
                late = [gate for gate, other in gates.items() if other < key]
                for gate in late:
                    del gates[gate]
                found += late
            around = around.parent
        return found

    def forget(self, flow: Flow) -> None:
        """Forget ``flow`` and the flows around it in which nothing waits any more."""
        around: Flow | None = flow if self._by_flow else None
        while around is not None and not around.active:
            self._by_flow.pop(around, None)
            around = around.parent

    def __repr__(self) -> str:
        return f"<Rivals of {len(self._by_flow)} flows>"
