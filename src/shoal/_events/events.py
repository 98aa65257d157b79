"""The values that report what happened: outcomes of children, updates of states, and events."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, cast, final

from shoal._errors.exceptions import brief
from shoal._errors.inspection import leaves, message_of
from shoal._state.digest import ADDED
from shoal._state.plain import HasPlainForm
from shoal._state.state import Change, Model, Operation, State, make_state, typed

from .identity import Key, RunPath

LEAVES = 3
"""Different errors of a group that its message as data names: enough to see the kinds in it."""
LEAVES_READ = 100
"""Errors of a group whose texts are made for that: enough to count what repeats, and soon done."""
SHORT = 1000
"""Characters of a shortened error: several lines of text, and a bounded row in a store."""

Status = Literal["succeeded", "failed", "cancelled", "halted"]
"""How an execution of a run ended. A halted one waits for an answer, or to be run again."""


# -- questions -----------------------------------------------------------------------------------


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question that an action has asked with ``context.ask``, and that has no answer yet."""

    path: RunPath = field(repr=False)
    """The run that waits for the answer."""
    step: str
    """The action that asks."""
    name: str
    """The name of the question within that execution of the action."""
    question: Any
    """The question itself: data of the application's own."""
    id: str = field(repr=False)
    """Different for every question that was ever asked."""
    answer_schema: Mapping[str, Any] | None = field(default=None, repr=False, metadata=ADDED)
    """The JSON schema of its answers, by ``context.ask(answer=...)``; None: any answer is one."""

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
        """The key for ``run(answers={question.address: value})``: the run's id and the name."""
        return self.path.id, self.name


# -- outcomes ------------------------------------------------------------------------------------


@final
class ChildName(NamedTuple):
    """The name of a child within its step."""

    act: str
    """The name of the act that the child executes."""
    key: Key
    """Its key within the fan-out; empty if the step has one child for each act."""


@final
class Decision(NamedTuple):
    """How a race was decided. Saved with the update of the child that decided it.

    A race by ``first_item`` is decided by an item, so its decision is saved before the winner's
    result. If the winner breaks off and the race is run again, another decision follows, and counts
    in place of it.
    """

    step: str
    """The step that is the race."""
    winner: ChildName
    """The child whose result, or first item, decided it."""
    winners: tuple[ChildName, ...]
    """All children whose results count, in input order."""
    reason: str
    """The reason with which the others are cancelled."""


class _MadeLater:
    """Makes the final state of a child when it is first asked for; see ``making.make_done``."""

    __slots__ = ("_later",)
    _later: tuple[Mapping[str, object], Change | None, Model[Any] | None]

    if not TYPE_CHECKING:  # else every attribute would be known to type checkers

        def __getattr__(self, name: str) -> State:
            """Called for an attribute that is not set: only ``Done.state`` may be missing."""
            if name != "state":
                msg = f"{type(self).__name__!r} object has no attribute {name!r}"
                raise AttributeError(msg)
            data, change, model = self._later
            state = make_state(data if change is None else change.applied_to(data))
            if model is not None:
                state = typed(state, model)
            object.__setattr__(self, "state", state)
            return state


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended(_MadeLater):
    """The fields of every outcome."""

    path: RunPath = field(repr=False)
    """The path of the child's run."""
    position: int
    """Its place among the elements, counted from 0: in input order, or of discovery by ``grow``."""
    element: Any
    """The element it worked on."""
    attempts: int = 1
    """How many attempts it took: 1, and 1 more for each further attempt of anything in it."""
    elapsed: float = 0.0
    """Seconds from its start to its end."""
    abandoned: bool = False
    """Whether it left a thread behind that still ran after the child was cancelled."""

    @property
    def key(self) -> Key:
        """The child's key within its fan-out; its position if there is no ``key=``."""
        return self.path.key

    @property
    def act(self) -> str:
        """The name of the act that the child executed."""
        return self.path.act

    @property
    def run_id(self) -> str:
        """The id of the child's run."""
        return self.path.id


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Done(Ended):
    """A child that succeeded."""

    value: Any
    """The result that ``take`` selects; without ``take`` and ``into``, its only write, if one."""
    state: State = field(repr=False)
    """Its final state."""
    used: bool = True
    """Whether the parent used the result. False if it came after the decision of a race, or if
    ``accept`` or ``by`` refused it. Every vote that a quorum counted before its decision is used,
    also one that disagreed: ``into`` has the value that won."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Failed(Ended):
    """A child that raised."""

    error: Exception
    """The exception that it raised."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Cancelled(Ended):
    """A child that was cancelled before its end."""

    reason: str
    """Why it was cancelled, and by whom."""
    winner: ChildName | None = None
    """The child whose result decided the race that this one lost."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped(Ended):
    """An element that needed no child."""

    reason: str
    """Why it needed none."""
    attempts: int = 0


Outcome = Done | Failed | Cancelled | Skipped
"""How a child ended."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Halted(Ended):
    """A child that waits for answers. It is no outcome: the child goes on when they arrive."""

    questions: tuple[Question, ...]
    """The open questions of the child and its descendants, in order of position."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorInfo(HasPlainForm):
    """An error as data, as ``errors_into`` collects it."""

    __module__ = "shoal"  # pickles and stored values name it so, wherever it is defined

    type: str
    """The exception's class, with its module unless that is ``builtins``."""
    message: str
    """Its text; for a group, also the first few errors in it."""
    traceback: str = field(repr=False)

    @classmethod
    def of(cls, error: BaseException) -> ErrorInfo:
        """Return an error as data."""
        kind = type(error)
        module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
        name, message = f"{module}{kind.__qualname__}", _message(error)
        try:
            lines = traceback.format_exception(error)
        except Exception:  # noqa: BLE001 # Python calls bool() on it and its causes: user code
            lines = [*_frames_of(error), f"{name}: {message}\n"]
        return cls(type=name, message=message, traceback="".join(lines))

    def to_plain(self) -> dict[str, str]:
        """Copy it into a dict of strings, for JSON."""
        return {"type": self.type, "message": self.message, "traceback": self.traceback}


def _frames_of(error: BaseException) -> list[str]:
    """Return where an error was raised, as a traceback shows it."""
    try:
        return traceback.format_tb(error.__traceback__)
    except Exception:  # noqa: BLE001 # the source is read by the module's own loader: user code
        # Python 3.15 also warns of modules without a spec, and warnings may be errors.
        return [
            f'  File "{frame.f_code.co_filename}", line {line}, in {frame.f_code.co_name}\n'
            for frame, line in traceback.walk_tb(error.__traceback__)
        ]


def in_short(error: BaseException) -> str:
    """Return the class and the text of an error, shortened, for a list."""
    return shortened(f"{type(error).__name__}: {_message(error)}")


def shortened(text: str) -> str:
    """Return the first ``SHORT`` characters of a text."""
    return text if len(text) <= SHORT else f"{text[: SHORT - 3]}..."


def _message(error: BaseException) -> str:
    try:
        message = str(error)
    except Exception as failure:  # noqa: BLE001 # its own str() must not hide the error
        return f"<str() of it failed: {brief(failure)}>"
    if isinstance(error, BaseExceptionGroup):
        found = list(leaves(cast("BaseException", error)))
        texts = (f"{type(leaf).__name__}: {_message(leaf)}" for leaf in found[:LEAVES_READ])
        counts = Counter(texts).items()  # in the order in which they come up
        parts = [text if n == 1 else f"{text} ({n} times)" for text, n in islice(counts, LEAVES)]
        more = len(found) - sum(n for _, n in islice(counts, LEAVES))
        shown = "; ".join([*parts, f"and {more} more"] if more else parts)
        group = cast("BaseExceptionGroup[BaseException]", error)
        message = f"{message_of(group)}: {shown}"
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
    """The operations of the change; ``shoal.stores.replay(state, operations)`` applies them."""
    discovered: Sequence[object] = ()
    """New elements that ``grow`` returned for the child whose result this update applies."""
    discovered_at: int = 0
    """The position of the first of these elements."""


# -- events --------------------------------------------------------------------------------------


HOOK_METHODS: dict[str, type[Event]] = {}
"""The methods of ``Hook`` that receive events, each with its class of events."""
COMMIT_METHODS: set[str] = set()
"""Those that receive the events of a commit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened in a run.

    A class of events names its method of ``Hook``, and says whether a commit publishes it:
    ``class ChildEnded(Event, hook="on_child_ended", by_commit=True)``. ``HOOK_METHODS`` and
    ``COMMIT_METHODS`` are made from that, and the listeners of an execution from those.
    """

    provisional: ClassVar[bool] = False
    """Whether it reports something that isn't saved, and that may be undone or happen again."""
    _hook: ClassVar[tuple[str, bool] | None] = None

    def __init_subclass__(cls, *, hook: str | None = None, by_commit: bool = False) -> None:
        """Enter the class in the table of events, if it names a method of ``Hook``."""
        if hook is not None:
            cls._hook = hook, by_commit
        # Called twice: a dataclass with slots is a copy of the written class, made without its
        # keywords. The copy has the attribute, and replaces the written class in the table.
        if cls._hook is not None:
            name, commits = cls._hook
            HOOK_METHODS[name] = cls
            if commits:
                COMMIT_METHODS.add(name)

    path: RunPath
    """The path of the run it happened in."""

    @property
    def run_id(self) -> str:
        """The id of that run."""
        return self.path.id

    @property
    def parent_id(self) -> str | None:
        """The id of the run that started this one; None for a root run."""
        return self.path.parent_id

    @property
    def depth(self) -> int:
        """How deep the run is nested: 0 for a root run."""
        return self.path.depth


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event, hook="on_run_started"):
    """An execution of a run began."""

    resumed: bool = False
    """Whether it continues an earlier execution that the store has saved."""
    spawned_by: tuple[RunPath, str] | None = None
    """The run, and its step, whose action has started this root run by hand; None: no action."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StepStarted(Event, hook="on_step_started"):
    """A run is about to execute an action."""

    step: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SpanStarted(Event):
    """An action begins a part of its work that it names with ``context.span``."""

    step: str
    name: str
    attributes: Mapping[str, object]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting(Event, hook="on_waiting"):
    """An attempt of an action, or a child, can't start yet because a limit has no room for it."""

    step: str
    """The action; empty for a child that has not started."""
    limit: str
    """The limit, written as in code; ``"in flight"``; or the name of the executor whose workers are
    all taken, such as ``"threads"``."""
    key: object
    """The key of the limit, if it has ``by=``."""
    since: float
    """When it began to wait, by the event loop's clock."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class WaitEnded(Event, hook="on_wait_ended"):
    """An attempt of an action has waited for a limit, which now has room for it.

    It follows the attempt's ``Waiting``, unless the wait was cancelled. For a child that has
    waited, ``ChildStarted`` says the same.
    """

    step: str
    """The action."""
    limit: str
    """The limit, as in ``Waiting``; the attempt may have waited for others too."""
    key: object
    """The key of the limit, if it has ``by=``."""
    seconds: float
    """How long it has waited, for all limits together."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class HedgeStarted(Event, hook="on_hedge_started"):
    """A second copy of an attempt has begun, since the attempt is late: ``Each(hedge=...)``."""

    step: str
    """The action."""
    attempt: int
    """The number of the attempt; its copy has the same."""
    after: float
    """Seconds after which an attempt of this step counts as late."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class HedgeEnded(Event, hook="on_hedge_ended"):
    """A second copy of an attempt has ended. It follows its ``HedgeStarted``."""

    step: str
    """The action."""
    attempt: int
    """The number of the attempt."""
    used: bool
    """Whether the step goes on with the result of the copy. If not, the copy was cancelled, has
    failed, or came too late."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Item(Event, hook="on_item"):
    """An action gave a partial item: it yielded the item, or called ``context.emit``.

    Provisional: only the update that completes the step counts. The action may still fail, and be
    executed again from its start.
    """

    provisional: ClassVar[bool] = True

    step: str
    item: Any
    attempt: int
    """The attempt of the step that gave it, counted from 1."""
    index: int
    """How many items that attempt had given before."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderChanged(Event, hook="on_leader_changed"):
    """A contestant leads a race by ``first_item``: its items count, and those of no other.

    The decision for it is saved. Its first items came before this event, since they are what has
    decided; ``LeadingItems`` keeps them for that long. If it succeeds, it has won.
    """

    step: str
    """The race, which is a step of this run."""
    leader: RunPath | None
    """The contestant; None if it broke off, so that its items count no more. With
    ``on_break="restart"`` another one may lead then, else the race is lost."""
    reason: str = ""
    """Why none leads any more."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StateUpdated(Event, hook="on_state_updated", by_commit=True):
    """A run's state changed, and the change is saved."""

    update: Update
    outcome: Outcome | None = None
    """The outcome of the child whose result the update applies, if it applies one."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StepEnded(Event, hook="on_step_ended", by_commit=True):
    """An action ended, successfully or not. There is one for every ``StepStarted``."""

    step: str
    status: Status
    error: BaseException | None = None
    cached: bool = False
    """Whether the action was not executed because its result was in the cache; see ``cache=``."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnded(Event, hook="on_attempt_ended"):
    """One attempt ended of a step that may have several: its action or its child has a ``retry``.

    It comes between the step's ``StepStarted`` and its ``StepEnded``. A cancelled attempt has none:
    the ``StepEnded`` reports it.
    """

    step: str
    attempt: int
    """The attempt of the step, counted from 1."""
    error: Exception | None = None
    """Its failure; None if it succeeded."""
    next_in: float | None = None
    """Seconds until the next attempt can begin; None if there is none.

    That is its delay, or longer if the pause of its key ends later, or its rate has its next turn
    later. It begins then if slots are free: it goes ahead of all that has not started.
    """


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Spent(Event, hook="on_spent"):
    """An attempt has cost something of a budget: what it charged, or else its worst case.

    One for each budget that applies, for attempts that failed or were cancelled as well.
    """

    step: str
    attempt: int
    """The attempt of the step, counted from 1."""
    budget: str
    """The budget's name, by default its unit."""
    key: str
    """The key that it is counted for, as ``repr`` writes it; empty without ``by=``."""
    unit: str
    cost: float
    """What the attempt has cost."""
    charged: bool
    """Whether the attempt said so; else it is the worst case."""
    spent: float
    """What is spent of the budget in all, this attempt included."""
    left: float
    """What is neither spent nor set aside."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GraceExceeded(Event, hook="on_grace_exceeded"):
    """An action that was cancelled still runs after the grace of the runtime.

    The run goes on waiting for a coroutine; it leaves a thread behind. Where ``what`` is not
    ``"action"``, the run waits for its store or for a hook instead.
    """

    step: str
    place: str
    """Where the code stands: file, line and function of the innermost frame."""
    seconds: float
    """How long it has run since it was cancelled."""
    abandoned: bool = False
    """Whether it is a thread that was left behind, whose result will be dropped."""
    what: str = "action"
    """Whose code it is: ``"action"``, ``"store"`` or ``"hook"``."""
    name: str = ""
    """The class of that store or hook, if known."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RunSteered(Event, hook="on_run_steered"):
    """A root run was paused, resumed, cancelled or changed from outside, and that is on record."""

    what: str
    """What was done: ``"pause"``, ``"resume"`` and so on; see ``shoal.stores.Command``."""
    by: str = ""
    """Who has asked for it, as far as that was told."""
    reason: str = ""
    """Why, as far as that was told."""
    arguments: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The arguments of the command, as JSON."""


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
    """A child that the store knows runs again from its start; what was saved of it is discarded.

    Its input has changed: its act has another ``version``, or its element or a field that it reads
    is different. Or it is a contestant by ``first_item`` whose race runs again. ``ChildStarted``
    follows; or ``ChildEnded`` if the child is cancelled or skipped before it starts.
    """

    step: str
    child: RunPath
    position: int
    element: Any


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ChildHalted(Event, hook="on_child_halted", by_commit=True):
    """A child of this run waits for answers, and that is saved. Its siblings go on.

    Or the run is drained (see ``RunHandle.drain``), and the child would have begun another attempt.

    It takes the place of the ``ChildEnded`` for its ``ChildStarted``. A ``ChildEnded`` follows it
    only if the child is no longer needed, because a race was decided without it.
    """

    step: str
    halted: Halted


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ChildEnded(Event, hook="on_child_ended", by_commit=True):
    """A child of this run ended, and its outcome is saved.

    There is one for every ``ChildStarted``, unless the child is halted, and one for every skipped
    element. If a child is Done but could not be applied, there is no second one when it is applied
    later: the ``StateUpdated`` has its outcome.
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
    """The reason, if it was cancelled; or if it halted because it was drained."""
    questions: tuple[Question, ...] = ()
    """The open questions of the run and its descendants, if it is halted."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Missed(Event):
    """Stands in place of events of an opened run that were dropped because they were not read."""

    count: int
    """How many events were dropped."""
