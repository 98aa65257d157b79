"""The signal that a runtime takes no more runs."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import final

from anyio import Event

DRAINED = (
    "this runtime is being drained, because its process is about to stop; start it in another "
    "process, or later"
)
"""Why a run is refused then."""


@final
class DrainSignal:
    """Set once, when a runtime begins to drain; never unset.

    What would never end by itself, such as a stream of events to a client, ends then.
    """

    __slots__ = ("_calls", "event")

    def __init__(self) -> None:
        self.event: Event = Event()
        """Set with the signal, for tasks that wait."""
        self._calls: list[Callable[[], None]] = []

    @property
    def is_set(self) -> bool:
        """Whether the runtime takes no more runs."""
        return self.event.is_set()

    def set(self) -> None:
        """Wake the tasks that wait, and call the functions of ``calling``, once."""
        if not self.event.is_set():
            self.event.set()
            for call in tuple(self._calls):  # a copy: what is called may leave its block
                call()

    @contextmanager
    def calling(self, call: Callable[[], None]) -> Generator[None]:
        """Within the block, call ``call`` when the signal is set; at once if it is set already."""
        self._calls.append(call)
        if self.event.is_set():
            call()
        try:
            yield
        finally:
            self._calls.remove(call)
