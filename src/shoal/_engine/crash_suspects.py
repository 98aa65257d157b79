"""Suspects: children that were at work when a process died. Imports errors and ids; anyio.

Who has brought a process down can't be known, only who was at work in it. So each child that is at
work is counted up, beforehand and in the store, by each execution that follows a crash; and down to
0 once it has got further. An execution that follows none counts nobody.

Invariants:
- One that was counted up so many times in a row is condemned: not given another chance.
- It has its last chance alone: nothing else that is counted is at work then. So of many that were
  at work each time the one that does it is condemned, and the others, which just were there, are
  not.
"""

from __future__ import annotations

from typing import final

from anyio import Event

from shoal._errors.exceptions import Poisoned, brief
from shoal._events.identity import RunPath

MAX_CRASHES = 3
"""Executions in a row that may die while a child is at work."""


@final
class Suspects:
    """What one execution needs to know of them."""

    __slots__ = ("_alone", "_at_work", "_change", "_most")

    def __init__(self, most: int) -> None:
        """Condemn those that were at work in ``most`` executions which died in a row."""
        self._most = most
        self._at_work: set[object] = set()
        self._alone = False  # whether that is one which has its last chance
        self._change = Event()  # set when somebody may have their turn

    def check(self, path: RunPath, crashes: int) -> None:
        """Refuse to let a child live that is condemned.

        Raises:
            Poisoned: It is.
        """
        if crashes < self._most:
            return
        msg = (
            f"key {brief(path.key)} of {path.step!r} (run {path.id}, which executes {path.act!r}) "
            f"was at work in {crashes} executions in a row whose process died, as did that of the "
            f"execution before these ({crashes + 1} crashes in all), so it is not started again; "
            f"find out what those have died of. Once that is set right: a run that has failed with "
            f"this tries it again when it is resumed, one that has collected it with "
            f"retry_failed({path.root.id!r}). Runtime(max_crashes=...) gives more chances"
        )
        raise Poisoned(msg, crashes)

    def _is_last(self, crashes: int) -> bool:
        return crashes + 1 >= self._most

    def is_free(self, crashes: int) -> bool:
        """Tell whether a child may be at work now."""
        return not (self._alone or (self._at_work and self._is_last(crashes)))

    async def wait_turn(self, who: object, crashes: int) -> None:
        """Wait until a child may be at work: alone, if one more crash condemns it."""
        while not self.is_free(crashes):
            await self._change.wait()
        self._alone = self._is_last(crashes)
        self._at_work.add(who)

    def leave(self, who: object) -> None:
        """Hear that a child is not at work any more, or no longer to blame; again is no error."""
        if who not in self._at_work:
            return
        self._at_work.remove(who)
        if not self._at_work:
            self._alone = False
            self._change.set()
            self._change = Event()
