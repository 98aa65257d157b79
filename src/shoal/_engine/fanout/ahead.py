"""How far a source is read ahead of what can start.

An element is pulled as there is room for its child. It may turn out then that the child can't start
yet, because its limits are closed. Reading on helps only if a later child could start before it: if
the limits count by key, or the children have several acts. Otherwise all of them wait for the same,
and what was pulled for them waits in this process for nothing: a message that other consumers could
have, a page of a paid API.

Invariants:
- At most ``beyond`` more elements than places are pulled and not ended, those included whose
  children have started and wait for another attempt.
- At most ``waiting`` of them have children that have not started.
"""

from __future__ import annotations

from typing import final

from shoal._engine.config import RunConfig
from shoal._limits.gates import Gate
from shoal._limits.limiters import Limiter, Limiters

PER_PLACE = 4
"""Elements that are read ahead for each place in flight, by default: so memory is in proportion to
the limit."""
LEAST = 64
"""Elements that are always read ahead by default, where that helps.

So a fan-out with few places still finds children whose limits have room.
"""
ALIKE = 2
"""Elements that are read ahead by default where all children wait for the same.

One of them starts the moment that a limit opens, and the other keeps the run's turn meanwhile: a
run of which nothing waits, for however short a time, begins again among the runs that share its
limits. See test_runs_that_share_a_rate_take_turns.
"""


@final
class ReadAhead:
    """The elements of one source that may be pulled before their children can start."""

    __slots__ = ("_limiters", "_own", "_scopes", "beyond", "given")

    def __init__(
        self,
        given: int | None,
        places: int,
        limiters: Limiters,
        own: tuple[Limiter, ...],
        scopes: tuple[Limiter, ...] | None,
    ) -> None:
        """Describe one fan-out.

        Args:
            given: The user's ``ahead=``.
            places: How many children may be in flight.
            limiters: The limiters of the runtime.
            own: Those of the fan-out that count starts of its children.
            scopes: Those that count all attempts below it; None: those that the children have.
        """
        self._limiters = limiters
        self._own = own
        self._scopes = scopes
        self.given: int | None = given
        self.beyond: int = max(LEAST, PER_PLACE * places) if given is None else given
        """Elements that may be pulled and not ended, besides as many as there are places."""

    def waiting(self, kind: RunConfig | None) -> int:
        """Return how many children may wait to start.

        At least 1: where limits depend on the element, only a pulled element tells.

        Args:
            kind: What all children have in common; None: they may have different acts.
        """
        if self.given is not None:
            return max(1, self.given)
        return ALIKE if kind is not None and not self._needs_many(kind) else self.beyond

    def _needs_many(self, kind: RunConfig) -> bool:
        """Whether others may start before those that wait, or as many are granted as wait."""
        # Asked for each child that waits, so the limiters have worked it out.
        for limiter in self._own:
            if limiter.tells_apart:
                return True
        for limiter in self._of_attempt(kind):  # noqa: SIM110 # no generator, for the same reason
            if limiter.tells_apart:
                return True
        return False

    def gates(self, kind: RunConfig) -> tuple[tuple[Gate, ...], tuple[Gate, ...]] | None:
        """Return the gates of the fan-out, and those of the first attempt, that every child needs.

        Returns None if they, or what they charge, depend on the element.
        """
        own, of_attempt = self._own, self._of_attempt(kind)
        if any(limiter.same is None for limiter in (*own, *of_attempt)):
            return None
        return self._limiters.gates(own, {})[0], self._limiters.gates(of_attempt, {})[0]

    def _of_attempt(self, kind: RunConfig) -> tuple[Limiter, ...]:
        action = kind.entry
        if action is None:
            return ()
        scopes = kind.scopes if self._scopes is None else self._scopes
        return self._limiters.of_attempt(scopes, action.definition, action.limits)

    def __repr__(self) -> str:
        return f"<ReadAhead of {self.beyond}>"
