"""Gathering: the parent lets more children end before it commits those that have.

A commit costs as much as a few small children, so it should have the ends of many.

Invariants:
- An end waits for `MOST` turns of the event loop at most, then its commit begins.
- An end that may decide the step waits for no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from anyio.lowlevel import checkpoint

from shoal._engine.run import Run

from .admission import ChildAdmission
from .scope import GroupScope

TURNS = 4
"""Turns of the event loop that a save waits for more ends, at most.

The wait stops at the first turn that changes nothing. The limit is there so that a steady stream of
ends can't put a save off: see
test_children_that_end_later_are_not_awaited_for_longer_than_a_few_turns.
"""
ENOUGH = 64
"""Ended children that a group whose children give their places early commits without waiting.

A commit costs as much as a few small children, which is little for each of so many.
"""
QUIET = 4
"""Turns in a row without an end after which such a group commits those that it has.

Children of several steps that began together end together, a turn apart for each step. If one turn
were enough, five children of two steps in flight would be committed five at a time.
"""
MOST = 64
"""Turns that such a group waits for ``ENOUGH``, at most: five in flight with five steps need these.
"""


@final
class Gathering:
    """The wait for more ends of one group."""

    __slots__ = (
        "_admission",
        "_gives_early",
        "_inbox",
        "_is_looking",
        "_next_turn",
        "_quiet",
        "_scope",
        "_seen",
        "_turns",
        "enough",
        "is_held",
    )

    def __init__(
        self,
        parent: Run,
        inbox: Sequence[Run],
        scope: GroupScope,
        admission: ChildAdmission,
        *,
        gives_early: bool,
    ) -> None:
        """Prepare the waits of a group.

        Args:
            parent: The run that commits.
            inbox: The children that have ended, and that it has not taken.
            scope: Wakes its task.
            admission: Counts the children in flight.
            gives_early: Whether children give their places to others before they are committed.
        """
        self._inbox = inbox
        self._scope = scope
        self._admission = admission
        self._gives_early = gives_early
        # None on trio, where turns are only seen by passing them.
        self._next_turn = parent.config.services.next_turn
        self.is_held: bool = False
        """Whether the inbox has an end that may decide the step: no child starts until that is
        judged."""
        self.enough: int = 1
        """The ends in the inbox for which the parent is woken.

        More than one only while the parent waits for more; then ``_look`` wakes it, if no end does.
        """
        self._is_looking = False  # the loop will call `_look` in its next turn
        # Of the wait under way: ends at the last look, turns since one, and turns in all.
        self._seen = self._quiet = self._turns = 0

    async def wait(self, *, saves_wait: bool) -> None:
        """Let other children end, if the inbox has too few ends for a commit.

        Args:
            saves_wait: Whether saves take time. Quick children would then end just after a save
                began, again and again, and every second batch would be a small one; see
                test_quick_children_are_saved_as_many_at_once_as_are_in_flight.
        """
        if not self._gives_early:
            if saves_wait:
                await self._pass_turns()
            return
        # A single end comes from children that take their time, and few ends are left to come if
        # none is at work.
        if not 1 < len(self._inbox) < ENOUGH or self._admission.place.used <= 0 or self.is_held:
            return
        self._seen, self._quiet, self._turns = len(self._inbox), 0, 0
        if self._next_turn is None:
            while not self._is_over() and not self.is_held:
                await checkpoint()
            return
        # A turn costs a callback then, and the parent isn't resumed in each.
        if not self._is_looking:
            self._is_looking = True
            self._next_turn(self._look)
        self.enough = ENOUGH
        try:
            await self._scope.wait()
        finally:
            self.enough = 1

    async def _pass_turns(self) -> None:
        inbox, admission = self._inbox, self._admission
        for _ in range(TURNS):
            before = len(inbox), admission.in_flight + admission.uncommitted
            # One may decide, and no child starts before that; or none is left that could end.
            if self.is_held or (before[0] >= before[1] and not admission.has_room):
                return
            await checkpoint()
            if before == (len(inbox), admission.in_flight + admission.uncommitted):
                return

    def _look(self) -> None:
        """Count a turn of the event loop, and wake the parent if it has waited for long enough."""
        self._is_looking = False
        if self.enough == 1:
            return  # an end has woken it
        if self._is_over():
            self._scope.wake()
        elif self._next_turn is not None:
            self._is_looking = True
            self._next_turn(self._look)

    def _is_over(self) -> bool:
        """Count a turn; return whether there are enough ends, or has been none for some turns."""
        ends = len(self._inbox)
        self._quiet = self._quiet + 1 if ends == self._seen else 0
        self._seen = ends
        self._turns += 1
        return (
            ends >= ENOUGH
            or self._quiet > QUIET
            or self._turns > MOST
            or self._admission.place.used <= 0
        )
