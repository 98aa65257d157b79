"""Find the child that kills its process, among those that were at work in crashes.

Which child has brought a process down can't be known, only which ones were at work in it. So an
execution that follows a crash counts each child up, in the store, before the child is at work; and
down to 0 once the child has got further. An execution that follows no crash counts nothing.

Invariants:
- A child whose count reaches the limit is poisoned: it is not started again.
- A child that would be poisoned by one more crash is at work alone. So among children that were at
  work in the same crashes, only the one that causes them is poisoned; see
  test_nobody_else_of_many_is_condemned.
"""

from __future__ import annotations

from typing import final

from anyio import Event

from shoal._errors.exceptions import Poisoned, brief
from shoal._events.identity import RunPath

MAX_CRASHES = 3
"""Executions in a row that may die while a child is at work.

The crash before the first of them is not counted, since nothing was counted then. Two deaths in a
row may have causes of their own, a deployment and a full memory; three at the same child hardly do.
"""


@final
class CrashSuspects:
    """The suspects of one execution, and which of them are at work."""

    __slots__ = ("_alone", "_at_work", "_change", "_most")

    def __init__(self, most: int) -> None:
        """Refuse children that were at work in ``most`` executions in a row that died."""
        self._most = most
        self._at_work: set[object] = set()  # `RetryState`s, which belong to one run each
        self._alone = False  # whether the only one at work has its last chance
        # Set whenever nothing is at work any more, and replaced then: waiters look again.
        self._change = Event()

    def check(self, path: RunPath, crashes: int) -> None:
        """Refuse to start a poisoned child.

        Raises:
            Poisoned: The child was at work in too many crashes.
        """
        if crashes < self._most:
            return
        msg = (
            f"key {brief(path.key)} of {path.step!r} (run {path.id}, which executes {path.act!r}) "
            f"was at work in {crashes} executions in a row whose process died, or a worker of it, "
            f"as did that of the execution before these ({crashes + 1} crashes in all), so it is "
            f"not started again; find out why they died. Once that is mended: a run that has "
            f"failed with this error tries the key again when it is resumed, and a run that has "
            f"collected the error with retry_failed({path.root.id!r}). Runtime(max_crashes=...) "
            f"gives more chances"
        )
        raise Poisoned(msg, crashes)

    def _is_last(self, crashes: int) -> bool:
        return crashes + 1 >= self._most

    def is_free(self, crashes: int) -> bool:
        """Return whether a child with so many crashes may be at work now."""
        # Both ways: one with its last chance waits for all others, and all others wait for it; see
        # test_a_last_chance_waits_for_all_others_and_they_for_it.
        return not (self._alone or (self._at_work and self._is_last(crashes)))

    async def wait_turn(self, child: object, crashes: int) -> None:
        """Wait until a child may be at work: alone, if one more crash condemns it."""
        while not self.is_free(crashes):
            await self._change.wait()
        # No await between the test and these lines: else two could have their last chance at once.
        self._alone = self._is_last(crashes)
        self._at_work.add(child)

    def leave(self, child: object) -> None:
        """Note that a child is not at work any more. Its children may be, and are counted instead.

        Calling it again does nothing.
        """
        if child not in self._at_work:
            return  # `hand_blame_to_children` has called it before
        self._at_work.remove(child)
        if not self._at_work:
            self._alone = False
            # Set and replaced in one step, so that one that looks again and has to wait gets the
            # new one.
            self._change.set()
            self._change = Event()
