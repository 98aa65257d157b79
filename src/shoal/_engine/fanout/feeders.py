"""The tasks of a group in which async sources feed it their elements."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import final

from anyio import CancelScope, Event
from anyio.lowlevel import checkpoint_if_cancelled

from .scope import GroupScope


@final
class Feeders:
    """Starts and ends the feeders of one group, and lets them wait for room."""

    __slots__ = ("_feeding", "_scope", "room")

    def __init__(self, scope: GroupScope) -> None:
        self._scope = scope
        self._feeding: tuple[CancelScope, ...] = ()  # one for each feeder, cancelled by `stop`
        # Read for each child by the group, so it is no property.
        self.room: Event | None = None
        """Set when there may be room; None unless a feeder waits for it."""

    @property
    def count(self) -> int:
        """Count the feeders that there are, or were."""
        return len(self._feeding)

    def start(self, feed: Callable[[], Awaitable[None]]) -> None:
        """Let a source feed its elements in a task of its own."""
        self._scope.start(partial(self._feed, feed))

    async def _feed(self, feed: Callable[[], Awaitable[None]]) -> None:
        feeding = CancelScope()
        self._feeding = (*self._feeding, feeding)
        if self._scope.closing:  # the group ended before this task, but the source must close
            feeding.cancel()
        try:
            with feeding:
                await feed()
        except BaseException as error:  # noqa: BLE001 # raised by ``ChildTaskGroup.run``
            self._scope.fail(error)
        self._scope.wake()

    async def wait(self, has_room: Callable[[], bool]) -> bool:
        """Wait until ``has_room`` returns true; return False if the group is closing."""
        scope = self._scope
        while not scope.closing and not has_room():
            # No await since the condition was looked at, so nothing that makes room is missed.
            self.room = Event()
            await self.room.wait()
        if scope.closing:
            # The event and the cancellation by `stop` come in one tick, and on trio either may win.
            # The feeder must be cancelled: a source that ended by itself may fail the group when it
            # is closed. See test_what_a_source_raises_in_closing_is_masked.
            await checkpoint_if_cancelled()
        return not scope.closing

    def wake(self) -> None:
        """Let the feeders look again whether there is room."""
        if self.room is not None:
            self.room.set()
            self.room = None

    def stop(self) -> None:
        """End all feeders, which close their sources."""
        self.wake()
        for feeding in self._feeding:
            feeding.cancel()
