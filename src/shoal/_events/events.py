"""Something that happened: outcomes of children, updates of states, and the events hooks are told.

Imports identity, states and their operations. All are values; nothing here does anything.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple, cast, final

from shoal._errors.exceptions import brief
from shoal._errors.inspection import leaves, message_of
from shoal._state.plain import HasPlainForm
from shoal._state.state import Operation, State

from .identity import Key, RunPath

LEAVES = 3
"""Errors of a group that its message as data names."""
SHORT = 1000
"""Characters that an error has in short."""

Status = Literal["succeeded", "failed", "cancelled", "halted"]
"""How an execution of a run ended. One that is halted waits: for a person, or to be run again."""


# -- questions -----------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What an action has asked a person, with ``context.ask``, and nobody has answered."""

    path: RunPath = field(repr=False)
    """The run that waits for the answer."""
    step: str
    """The action that asks."""
    name: str
    """What the question is called, within that execution of the action."""
    question: Any
    """What is asked: data of the application's own."""
    id: str = field(repr=False)
    """Tells it apart from every other one that was ever asked."""

    @property
    def run_id(self) -> str:
        """The id of the run that waits for the answer."""
        return self.path.id

    @property
    def key(self) -> Key:
        """The key of that run within its fan-out; empty for a root run."""
        return self.path.key

    @property
    def address(self) -> tuple[str, str]:
        """What ``run(answers={question.address: value})`` takes: the run's id and the name."""
        return self.path.id, self.name


# -- outcomes ------------------------------------------------------------------------------------


@final
class ChildName(NamedTuple):
    """Which child of a step."""

    act: str
    """The name of the act that it executes."""
    key: Key
    """Its key within the fan-out; empty where there is one child for each act."""


@final
class Decision(NamedTuple):
    """How a race was decided: saved with the update of the child that decided it."""

    step: str
    """The race."""
    winner: ChildName
    """The child whose result decided it."""
    winners: tuple[ChildName, ...]
    """All whose results count, in input order."""
    reason: str
    """Why the others are cancelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ended:
    """What every outcome says."""

    path: RunPath = field(repr=False)
    """Where the child stands in its family."""
    position: int
    """Its place among the elements, counted from 0: input order; under ``grow``, discovery."""
    element: Any
    """The element it worked on."""
    attempts: int = 1
    """Tries that it took: one, and one more for each further attempt of anything in it."""
    elapsed: float = 0.0
    """Seconds from its start to its end."""
    abandoned: bool = False
    """Whether it left a thread behind that went on after it was cancelled."""

    @property
    def key(self) -> Key:
        """The child's key within its fan-out; without ``key=``, its position."""
        return self.path.key

    @property
    def act(self) -> str:
        """The name of the act that it ran."""
        return self.path.act

    @property
    def run_id(self) -> str:
        """The id of the child's run."""
        return self.path.id


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Done(_Ended):
    """A child that succeeded."""

    value: Any
    """What ``take`` names; without ``take`` and ``into``, its only write if it has just one."""
    state: State = field(repr=False)
    """Its final state."""
    used: bool = True
    """Whether the parent took it. False where it came after the decision of a race, or where
    ``accept`` or ``by`` has refused it. A vote that a quorum has counted before its decision is
    used, also where it was not one of those that agreed: ``into`` has the value that won."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(_Ended):
    """A child that raised."""

    error: Exception
    """What it raised."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled(_Ended):
    """A child that was cancelled before its end."""

    reason: str
    """Who cancelled it, and why."""
    winner: ChildName | None = None
    """The child whose result decided the race that this one lost."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped(_Ended):
    """An element that needed no child."""

    reason: str
    """Why not."""
    attempts: int = 0


Outcome = Done | Failed | Cancelled | Skipped
"""How a child ended."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Halted(_Ended):
    """A child that rests, since it waits for answers. No outcome: it goes on when they come."""

    questions: tuple[Question, ...]
    """What it and its descendants have asked, in order of position."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorInfo(HasPlainForm):
    """An error as data: what ``errors_into`` collects."""

    __module__ = "shoal"  # pickles and stored values name it so, wherever it is defined

    type: str
    """The exception's class, with its module unless that is builtins."""
    message: str
    """Its text; of a group, also what the first few in it say."""
    traceback: str = field(repr=False)

    @classmethod
    def of(cls, error: BaseException) -> ErrorInfo:
        """Make an error into data."""
        kind = type(error)
        module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
        name, message = f"{module}{kind.__qualname__}", _message(error)
        try:
            lines = traceback.format_exception(error)
        except Exception:  # noqa: BLE001 # Python asks it, and its causes, whether they are true
            lines = [*traceback.format_tb(error.__traceback__), f"{name}: {message}\n"]
        return cls(type=name, message=message, traceback="".join(lines))

    def to_plain(self) -> dict[str, str]:
        """Copy it into a dict of texts, for JSON."""
        return {"type": self.type, "message": self.message, "traceback": self.traceback}


def in_short(error: BaseException) -> str:
    """Say what an error is, for a list: its class and its text, but no more than fits."""
    return shortened(f"{type(error).__name__}: {_message(error)}")


def shortened(text: str) -> str:
    """Leave out what is too much."""
    return text if len(text) <= SHORT else f"{text[: SHORT - 3]}..."


def _message(error: BaseException) -> str:
    try:
        message = str(error)
    except Exception as failure:  # noqa: BLE001 # an error about an error must not hide it
        return f"<str() of it failed: {brief(failure)}>"
    if isinstance(error, BaseExceptionGroup):
        found = list(leaves(cast("BaseException", error)))
        shown = [f"{type(leaf).__name__}: {_message(leaf)}" for leaf in found[:LEAVES]]
        more = f"; and {len(found) - LEAVES} more" if len(found) > LEAVES else ""
        group = cast("BaseExceptionGroup[BaseException]", error)
        message = f"{message_of(group)}: {'; '.join(shown)}{more}"
    return message


# -- updates -------------------------------------------------------------------------------------


@final
class Update(NamedTuple):
    """One numbered change of a run's state, as it is saved and published."""

    number: int
    """Counts the updates of its run from 1."""
    step: str
    """The step that made it."""
    operations: tuple[Operation, ...]
    """What changed; ``shoal.stores.replay(state, operations)`` applies them."""
    discovered: Sequence[object] = ()
    """New elements that ``grow`` returned for the child that it applies."""
    discovered_at: int = 0
    """The position of the first of them."""


# -- events --------------------------------------------------------------------------------------


HOOK_METHODS: dict[str, type[Event]] = {}
"""The methods of ``Hook`` that are told of events, and the class of events each is told."""
COMMIT_METHODS: set[str] = set()
"""Those whose events a commit publishes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened in a run.

    A class of events that hooks are told says by which method of ``Hook``, and whether a commit
    publishes it: ``class ChildEnded(Event, hook="on_child_ended", by_commit=True)``. From that,
    ``HOOK_METHODS`` and ``COMMIT_METHODS`` are made, and from those the listeners of an execution.
    """

    provisional: ClassVar[bool] = False
    """Whether it tells of something that isn't saved, and may come to nothing or come again."""
    _hook: ClassVar[tuple[str, bool] | None] = None

    def __init_subclass__(cls, *, hook: str | None = None, by_commit: bool = False) -> None:
        """Enter the class in the table of events, if hooks are told of them."""
        if hook is not None:
            cls._hook = hook, by_commit
        # Called twice: a dataclass with slots is a copy of the class that was written, made
        # without its keywords; the copy has the attribute, and is the one that counts.
        if cls._hook is not None:
            name, commits = cls._hook
            HOOK_METHODS[name] = cls
            if commits:
                COMMIT_METHODS.add(name)

    path: RunPath
    """The run it happened in."""

    @property
    def run_id(self) -> str:
        """The id of that run."""
        return self.path.id

    @property
    def parent_id(self) -> str | None:
        """The id of the run that started that run; None for a root run."""
        return self.path.parent_id

    @property
    def depth(self) -> int:
        """How deep that run is nested: 0 for a root run."""
        return self.path.depth


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event, hook="on_run_started"):
    """An execution of a run began."""

    resumed: bool = False
    """Whether it goes on where an earlier one has come to, as the store says."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StepStarted(Event, hook="on_step_started"):
    """A run is about to execute an action."""

    step: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SpanStarted(Event):
    """An action begins a part of its work that it has named: ``context.span``."""

    step: str
    name: str
    attributes: Mapping[str, object]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting(Event, hook="on_waiting"):
    """An attempt of an action, or a child, can't start yet: what limits it has no room."""

    step: str
    """The action; empty for a child that has not started."""
    limit: str
    """What it waits for, as it would be written; else ``"threads"`` or ``"in flight"``."""
    key: object
    """Which key of that, if it has ``by=``."""
    since: float
    """Since when, by the event loop's clock."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Item(Event, hook="on_item"):
    """An action gave a partial item: it yielded it, or called ``context.emit``.

    Provisional: what counts is the update when the step is completed. The action may fail after it,
    and be executed again, from its start.
    """

    provisional: ClassVar[bool] = True

    step: str
    item: Any
    attempt: int
    """Which try of the step gave it, counted from 1."""
    index: int
    """How many that try had given before."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StateUpdated(Event, hook="on_state_updated", by_commit=True):
    """A run's state changed, and the change is saved."""

    update: Update
    outcome: Outcome | None = None
    """The outcome of a child that the update applies, if it does."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StepEnded(Event, hook="on_step_ended", by_commit=True):
    """An action ended, well or not. There is one for every ``StepStarted``."""

    step: str
    status: Status
    error: BaseException | None = None
    cached: bool = False
    """Whether it was not executed, since what it comes to was remembered; see ``cache=``."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnded(Event, hook="on_attempt_ended"):
    """One try of a step ended that has several: its action or its child has a ``retry``.

    They come between the step's ``StepStarted`` and its ``StepEnded``. One that was cancelled is
    told by ``StepEnded`` alone.
    """

    step: str
    attempt: int
    """Which try of the step it was, counted from 1."""
    error: Exception | None = None
    """What it failed with; None if it succeeded."""
    next_in: float | None = None
    """Seconds until the next attempt; None if there is none."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GraceExceeded(Event, hook="on_grace_exceeded"):
    """An action that was cancelled still runs, longer than the grace of the runtime.

    A coroutine is waited for nevertheless; a thread is left behind.
    """

    step: str
    place: str
    """Where it stands: file, line and function of the innermost frame."""
    seconds: float
    """For how long it has run since it was cancelled."""
    abandoned: bool = False
    """Whether it is a thread, which nobody waits for any more: its result will be dropped."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ChildStarted(Event, hook="on_child_started"):
    """A fan-out of this run started a child."""

    step: str
    child: RunPath
    position: int
    element: Any


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ChildRerun(Event, hook="on_child_rerun"):
    """A child that the store knows runs anew, from its start: what was kept of it counts no more.

    What it works on is not what it was: its act has another ``version``, or its element or what it
    reads has changed. Or it is a contestant by ``first_item`` whose race is run again.
    ``ChildStarted`` follows, or else ``ChildEnded`` where it is cancelled or skipped before it
    starts.
    """

    step: str
    child: RunPath
    position: int
    element: Any


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ChildHalted(Event, hook="on_child_halted", by_commit=True):
    """A child of this run waits for answers, and that is saved; its siblings go on.

    It stands for the ``ChildEnded`` of its ``ChildStarted``. One more ``ChildEnded`` follows only
    where the child is not needed any more: where a race is decided without it.
    """

    step: str
    halted: Halted


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ChildEnded(Event, hook="on_child_ended", by_commit=True):
    """A child of this run ended, and what becomes of it is saved.

    There is one for every ``ChildStarted``, unless the child is halted, and one for every element
    that was skipped. A child that is Done and could not be applied has none when it is, later on:
    the ``StateUpdated`` that applies it has its outcome.
    """

    step: str
    outcome: Outcome


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded(Event, hook="on_run_ended", by_commit=True):
    """An execution of a run ended. There is one for every ``RunStarted``."""

    status: Status
    error: BaseException | None = None
    reason: str = ""
    """Why it was cancelled, if it was."""
    questions: tuple[Question, ...] = ()
    """What it and its descendants wait for, if it is halted."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Missed(Event):
    """Events of an opened run that nobody read in time are gone; this stands in their place."""

    count: int
    """How many."""
