"""`RecordingHook`: a hook that keeps all events."""

from __future__ import annotations

from typing import TypeVar, final

from shoal._events.events import (
    ChildEnded,
    ChildHalted,
    ChildStarted,
    Event,
    RunEnded,
    RunStarted,
    StepEnded,
    StepStarted,
)
from shoal._events.hooks import Hook

E = TypeVar("E", bound=Event)


@final
class RecordingHook(Hook):
    """Keeps every event that it receives, in order, in ``events``.

    Examples:
        >>> @action(reads=["name"], writes=["greeting"])
        ... async def greet(name: str) -> str:
        ...     return f"hello, {name}"
        >>> hook = RecordingHook()
        >>> result = Application(greet, hooks=[hook]).run_sync({"name": "shoal"})
        >>> [type(event).__name__ for event in hook.events]
        ['RunStarted', 'StepStarted', 'StateUpdated', 'StepEnded', 'RunEnded']
    """

    def __init__(self) -> None:
        """Keep no events yet."""
        self.events: list[Event] = []

    def of(self, kind: type[E]) -> list[E]:
        """Return the events of one kind, in order."""
        return [event for event in self.events if isinstance(event, kind)]

    def names(self) -> list[str]:
        """Return the names of all events' classes, in order."""
        return [type(event).__name__ for event in self.events]

    def assert_paired(self) -> None:
        """Check that every run, step and child that started has ended, once, and in order.

        A child that is halted counts as ended. It may be reported as cancelled after that.

        Raises:
            AssertionError: The message names each start or end without its counterpart.
        """
        open_: dict[tuple[str, ...], int] = {}
        resting: set[tuple[str, str]] = set()
        for event in self.events:
            match event:
                case RunStarted():
                    _open(open_, "run", event.run_id)
                case StepStarted():
                    _open(open_, "step", event.run_id, event.step)
                case ChildStarted():
                    _open(open_, "child", event.run_id, event.child.id)
                    resting.discard((event.run_id, event.child.id))
                case StepEnded():
                    _close(open_, "step", event.run_id, event.step)
                case RunEnded():
                    _close(open_, "run", event.run_id)
                case ChildHalted():
                    _close(open_, "child", event.run_id, event.halted.run_id)
                    resting.add((event.run_id, event.halted.run_id))
                case ChildEnded() if (event.run_id, event.outcome.run_id) in resting:
                    resting.remove((event.run_id, event.outcome.run_id))
                case ChildEnded() if event.outcome.attempts:
                    _close(open_, "child", event.run_id, event.outcome.run_id)
                case _:
                    pass
        assert not open_, f"started and never ended: {sorted(open_)}"

    def on_event(self, event: Event) -> None:
        """Keep the event."""
        self.events.append(event)


def _open(open_: dict[tuple[str, ...], int], *what: str) -> None:
    assert what not in open_, f"started twice: {what}"
    open_[what] = 1


def _close(open_: dict[tuple[str, ...], int], *what: str) -> None:
    assert what in open_, f"ended without having started: {what}"
    del open_[what]
