"""Hold an execution: nothing new starts in it, and what is under way goes on to its end.

Invariants:
- While an execution is held, no attempt of an action begins in it, and no child is taken from a
  source. Attempts that have begun go on, their results are applied, and steps that need no attempt
  are completed.
- A run that waits for the end of a hold keeps no slot and no rate that another execution could use.
- The timeouts of fan-outs and of children stand still meanwhile; those of attempts go on.
- Holds have reasons, and the execution is held until the last of them is gone: a run that is paused
  stays so although its process has stopped to drain.
"""

from __future__ import annotations

from typing import Protocol, final

from anyio import Event

from shoal._concurrency.backend import Clock


class Held(Protocol):
    """What a hold stops, besides attempts: the group of a fan-out, the clock of a child."""

    def on_hold(self) -> None:
        """Stop its clock."""
        ...

    def on_release(self) -> None:
        """Start its clock again, and whatever has waited."""
        ...


_NONE: frozenset[str] = frozenset()  # one for all executions: few are ever held


@final
class Hold:
    """Whether anything new may start in an execution; see ``Execution.hold_up``."""

    __slots__ = ("_clock", "_released", "_seconds", "_since", "is_on", "members", "reasons")

    def __init__(self, clock: Clock) -> None:
        """Hold nothing."""
        self._clock = clock
        # Read for each attempt and each child, so it is an attribute and no property.
        self.is_on: bool = False
        """Whether there is a reason; changed by ``add`` and ``remove`` alone."""
        self.reasons: frozenset[str] = _NONE
        # They enter and leave by themselves, and while held as well.
        self.members: set[Held] = set()
        """The groups and clocks that stand still meanwhile."""
        self._released: Event | None = None  # None unless something waits
        self._since = 0.0  # when it began, by the loop's clock
        self._seconds = 0.0  # of the holds that have ended

    def add(self, reason: str) -> bool:
        """Add a reason; return whether the hold has begun with it."""
        self.reasons |= {reason}
        if self.is_on:
            return False
        self.is_on, self._since = True, self._clock()
        # A copy, here and below: what is called may let others enter or leave.
        for member in tuple(self.members):
            member.on_hold()
        return True

    def remove(self, reason: str) -> bool:
        """Remove a reason; return whether the hold has ended with it."""
        self.reasons -= {reason}
        if not self.is_on or self.reasons:
            return False
        self.is_on = False
        self._seconds += self._clock() - self._since
        released, self._released = self._released, None
        if released is not None:
            released.set()
        return True

    def release_members(self) -> None:
        """Let groups and clocks go on: the hold has ended."""
        for member in tuple(self.members):
            member.on_release()

    def seconds(self) -> float:
        """Return for how long the execution was held so far, in all holds together."""
        return self._seconds + (self._clock() - self._since if self.is_on else 0.0)

    async def wait(self) -> None:
        """Wait until nothing is held; another hold may begin before the caller goes on."""
        while self.is_on:
            if self._released is None:
                self._released = Event()
            await self._released.wait()
