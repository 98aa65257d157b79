"""The port of transports: how a pool reaches its workers.

A transport starts workers and carries batches of messages to and from them; what the messages mean
is none of its business. ``RemotePool`` is above it, ``WorkerCore`` at the other end of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from ._messages import Message

OnBatch = Callable[[list[Message]], None]
OnDied = Callable[[str], None]


class Link(Protocol):
    """One worker, as its pool reaches it. All methods are called on the pool's loop."""

    @property
    def name(self) -> str:
        """How people find the worker: "process 4711"."""
        ...

    def send(self, batch: list[Message]) -> None:
        """Send a batch. Never blocks and never raises: what can't be sent now is kept."""
        ...

    def listen(self, is_on: bool) -> None:
        """Look for batches from now on, or no more. Off at first.

        The pool listens only while the worker starts, or has calls. So virtual clocks of tests,
        which let real time pass while something outside is waited for, may jump otherwise. A worker
        that dies meanwhile is reported when the pool listens again.
        """
        ...

    def pause(self, seconds: float) -> None:
        """Look for nothing for so long, although it listens: what comes is taken together then.

        It may look sooner. Nothing if it pauses already.
        """
        ...

    def begun(self) -> Collection[int] | None:
        """Return which calls of the lane had begun and not ended when the worker died.

        None if that isn't known: all that were sent may have begun then. Asked once, in
        ``on_died``.
        """
        ...

    def kill(self) -> None:
        """End the worker at once, whatever it does. ``on_died`` is called when it has ended."""
        ...


class Transport(Protocol):
    """Starts workers."""

    def start(self, on_batch: OnBatch, on_died: OnDied) -> Link:
        """Start a worker, and return its link at once. Never blocks.

        Args:
            on_batch: Called on the loop with each batch that the worker sends, in order.
            on_died: Called on the loop, once, with the reason in a few words, when the worker has
                ended or could not be started. Nothing is called after that. Not called before this
                method returns.

        Raises:
            OSError: The system refuses, for now.
        """
        ...

    async def aclose(self) -> None:
        """End all workers that are left, and everything else of the transport.

        Called once, shielded from cancellation. It takes a few seconds at most.
        """
        ...
