"""The breaker of one fan-out: it skips children for a while, and learns how the others end."""

from __future__ import annotations

from collections.abc import Hashable
from typing import final

from shoal._engine.run import Run
from shoal._limits.breaker import Circuits


@final
class GroupBreaker:
    """Asks the circuits of a fan-out about each child, and reports its end to them."""

    __slots__ = ("_circuits", "_keys")

    def __init__(self, circuits: Circuits) -> None:
        self._circuits = circuits
        # The key of each child that was let through, until its end is reported.
        self._keys: dict[Run, Hashable] = {}

    def consult(self, child: Run) -> None:
        """Skip ``child`` if its circuit is open."""
        # May call a user's function. What that raises ends the group, as for `by=` of limits.
        key = self._circuits.key(child.config.act, child.data)
        if self._circuits.admit(key):
            self._keys[child] = key
        else:
            child.pass_over(f"breaker open: {key}")

    def report(self, child: Run) -> None:
        """Report the end of ``child`` to its circuit, once, if the circuit let it through."""
        if child not in self._keys:
            return
        # Taken out first: `on_end` may raise, and an end is reported once all the same.
        key = self._keys.pop(child)
        if child.status == "failed" and child.error is not None:
            self._circuits.on_end(key, child.error)
        else:
            self._circuits.on_end(key, "done" if child.status == "succeeded" else "cancelled")
