"""Make the values that a commit publishes for each child: its outcome, and updates of states.

A frozen dataclass sets each of its fields by a call that looks up the field's name. Here a twin of
the class, which has the same slots and is not frozen, is filled by plain assignments, and then
becomes an instance of the frozen class: that takes a third to a fifth of the time. Nothing else has
seen it before, so it is as immutable as one that was made by a call of that class. Python refuses
to do this with two classes whose slots differ; see
test_what_commits_publish_equals_what_the_classes_make.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from shoal._state.state import Change, Model

from .events import Done, Ended, Event, Outcome, StateUpdated, Update
from .identity import RunPath

_new = object.__new__  # sets no field

COMMON = "path", "position", "element", "attempts", "elapsed", "abandoned"
"""The fields of every outcome."""


class Succeeded(Protocol):
    """A run that has succeeded, as its outcome reports it."""

    position: int
    element: object
    elapsed: float
    value: object
    used: bool
    pending: Change | None
    """The last change, which its parent's commit saves."""

    head: tuple[int, Mapping[str, object]]
    """The number of the last update before that change, and the fields after it."""

    @property
    def retries(self) -> object:
        """The record of its attempts; None: there was one, which left nothing behind."""
        ...

    @property
    def path(self) -> RunPath:
        """Its identity."""
        ...

    @property
    def attempts(self) -> int:
        """How many attempts it took."""
        ...

    @property
    def abandoned(self) -> bool:
        """Whether it has left a thread behind."""
        ...


class _Done(Ended):
    """The twin of ``Done``."""

    __slots__ = ("state", "used", "value")
    # Both: with either of a frozen class, Python would call one for each assignment.
    __setattr__ = object.__setattr__
    __delattr__ = object.__delattr__


class _StateUpdated(Event):
    """The twin of ``StateUpdated``."""

    __slots__ = ("outcome", "update")
    __setattr__ = object.__setattr__
    __delattr__ = object.__delattr__


def make_done(child: Succeeded, model: Model[Any] | None) -> Done:
    """Return the outcome of a child that succeeded.

    Its state is made when it is first asked for, since most hooks read the value alone: from the
    committed fields, the last change, and the model.
    """
    made: Any = _new(_Done)
    made.path = child.path
    made.position = child.position
    made.element = child.element
    if child.retries is None:  # no call, then
        made.attempts = 1
        made.abandoned = False
    else:
        made.attempts = child.attempts
        made.abandoned = child.abandoned
    made.elapsed = child.elapsed
    made.value = child.value
    made.used = child.used
    # Not the child itself, which is released and may be executed again: these three don't change.
    made._later = child.head[1], child.pending, model
    made.__class__ = Done
    return made


def make_state_updated(path: RunPath, update: Update, outcome: Outcome | None) -> StateUpdated:
    """Return the event of an update."""
    made: Any = _new(_StateUpdated)
    made.path = path
    made.update = update
    made.outcome = outcome
    made.__class__ = StateUpdated
    return made
