"""Events: what hooks receive and ``run.events()`` yields, for authors of hooks and for readers.

A ``StateUpdated`` has an ``Update``, which lists its operations: ``Set``, ``Extend``, ``Put``,
``PutWithin``, ``Increment`` and ``Drop``. How a child ended (``Done``, ``Failed``, ``Cancelled``,
``Skipped``), and ``Hook`` itself, are in ``shoal``.

Examples:
    >>> from shoal import Application, Hook, action
    >>> from shoal.events import StepEnded
    >>> class Steps(Hook):
    ...     def on_step_ended(self, event: StepEnded) -> None:
    ...         print(event.step)
    >>> @action(reads=["text"], writes=["length"])
    ... async def measure(text: str) -> int:
    ...     return len(text)
    >>> result = Application(measure, hooks=[Steps()]).run_sync({"text": "shoal"})
    measure
"""

from __future__ import annotations

from shoal._events.events import (
    AttemptEnded,
    ChildEnded,
    ChildHalted,
    ChildName,
    ChildRerun,
    ChildStarted,
    Decision,
    Event,
    GraceExceeded,
    Item,
    LeaderChanged,
    Missed,
    RunEnded,
    RunStarted,
    RunSteered,
    SpanStarted,
    Spent,
    StateUpdated,
    StepEnded,
    StepStarted,
    Update,
    WaitEnded,
    Waiting,
)
from shoal._events.leading import LeadingItems
from shoal._state.state import Drop, Extend, Increment, Operation, Put, PutWithin, Set

__all__ = [
    "AttemptEnded",
    "ChildEnded",
    "ChildHalted",
    "ChildName",
    "ChildRerun",
    "ChildStarted",
    "Decision",
    "Drop",
    "Event",
    "Extend",
    "GraceExceeded",
    "Increment",
    "Item",
    "LeaderChanged",
    "LeadingItems",
    "Missed",
    "Operation",
    "Put",
    "PutWithin",
    "RunEnded",
    "RunStarted",
    "RunSteered",
    "Set",
    "SpanStarted",
    "Spent",
    "StateUpdated",
    "StepEnded",
    "StepStarted",
    "Update",
    "WaitEnded",
    "Waiting",
]
