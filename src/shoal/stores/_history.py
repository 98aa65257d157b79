"""Define the entries of a run's history, and replay them.

Invariants:
- A history only grows. A ``Rewound`` after some entries makes them void.
- Replaying a history yields the state that the run had committed, and the step that was under way.
- Replaying takes the memory of the states, however many updates there are: an update is dropped
  once its operations are part of the state (see
  test_what_is_played_back_takes_no_memory_for_each_update).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from time import localtime, strftime
from types import MappingProxyType
from typing import NamedTuple, cast, final

from shoal._events.events import Decision, Update
from shoal._state.state import replay_all


@final
class Completed(NamedTuple):
    """A step was completed. If an update completed it, that is the entry just before this one."""

    step: str
    number: int
    """The number of the run's last update before the save that completed the step."""


@final
class StepBegun(NamedTuple):
    """The declaration of a fan-out, written with its first save in an execution of the run.

    A later execution compares it with its own program, which may have changed. Stores written by
    older versions have no such entries.

    An action writes one too, when it is completed: it names those of its own fan-outs that have
    started no child. Fan-outs that have started children are known by them.
    """

    step: str
    declared: Mapping[str, object]
    """Plain data; see ``_takeup.Declared``, and ``own_declared`` for what an action declares."""


def own_declared(names: Sequence[str]) -> Mapping[str, object]:
    """Return the declaration of an action whose own fan-outs ``names`` have started no child."""
    return {"own": list(names)}


def own_of(begun: StepBegun | None) -> Sequence[str]:
    """Return the names that ``own_declared`` was given; empty for any other declaration."""
    return () if begun is None else cast("Sequence[str]", begun.declared.get("own", ()))


@final
class Rewound(NamedTuple):
    """The run went back into a step that it had completed; the entries after that step are void.

    The next update restores the state of that moment.
    """

    step: str
    visit: int
    """Which execution of the step, counted from 0."""


@final
class QuestionAsked(NamedTuple):
    """An action of the run has asked a question. A later entry of the same id replaces this one."""

    step: str
    name: str
    """The question's name, unique within this execution of the step."""
    question: object
    id: str
    """The question's identity, which answers refer to. If a run begins anew and asks again in the
    same state, the question has the same id."""
    schema: Mapping[str, object] | None = None
    """The JSON schema of its answers; None: any answer is one."""


@final
class QuestionAnswered(NamedTuple):
    """A question of the run or of a descendant was answered. Only root runs have these entries."""

    id: str
    value: object


@final
class BudgetLevel(NamedTuple):
    """What the run and its descendants have spent of a budget so far. Only root runs have these.

    A later entry of the same budget and key replaces this one.
    """

    budget: str
    """The budget's name, by default its unit."""
    key: str
    """The key that it is counted for, as ``repr`` writes it; empty without ``by=``."""
    unit: str
    spent: float
    aside: float
    """What was set aside for attempts under way. It counts as spent if no later entry follows."""
    by: Mapping[str, float]
    """What was spent, by the names of actions."""


RUN_AGAIN = "run again"
"""What ``Steered`` says of a cancelled run that a program has asked for once more."""


@final
class Steered(NamedTuple):
    """The run was steered from outside: paused, resumed, cancelled, a limit of it changed.

    Only root runs have these entries. They change no state, so a ``Rewound`` leaves them as they
    are.
    """

    what: str
    """The kind of the command, see ``Command``; or ``"run again"``: the run was cancelled from
    outside before that, and a program has asked for it once more."""
    by: str = ""
    """Who has asked for it, as far as that was told."""
    at: float = 0.0
    """When it was carried out, in seconds since 1970."""
    arguments: Mapping[str, object] = MappingProxyType({})
    """The arguments of the command, as JSON."""

    @property
    def reason(self) -> str:
        """Why; empty if that was not told."""
        return str(self.arguments.get("reason") or "")

    @property
    def sentence(self) -> str:
        """For people: ``paused since 2026-12-01 14:03:12 by ops (the service is down)``."""
        what = {"pause": "paused since", "resume": "resumed"}.get(self.what, self.what)
        at = strftime("%Y-%m-%d %H:%M:%S", localtime(self.at))
        by = f" by {self.by}" if self.by else ""
        return f"{what} {at}{by}" + (f" ({self.reason})" if self.reason else "")


Entry = (
    Update
    | Decision
    | Completed
    | Rewound
    | QuestionAsked
    | QuestionAnswered
    | StepBegun
    | BudgetLevel
    | Steered
)
"""An entry of a history. A decision follows the update that it is saved with."""


@final
@dataclass(frozen=True, slots=True)
class _Moment:
    """A run between two steps."""

    step: str | None
    """The step that was completed last; None before the first."""
    number: int
    data: Mapping[str, object]
    visits: Mapping[str, int]


_SAVED_AT_ONCE = 1_000
"""The most updates of one save: as many outcomes as a parent takes at once. The last so many
updates are not applied yet, because a later entry may say that their save completed the step, and
then the state before that save is needed."""

_MOST_KINDS = 100
"""The most kinds of updates of which one example is kept. A step has a handful of kinds, except
where ``reduce`` changes other fields each time; the bound keeps that from taking memory."""


class _Ended(NamedTuple):
    """A step that was completed."""

    completed: Completed
    began: _Moment
    """The moment when the step began."""
    restored: Mapping[str, object]
    """The fields of the state before the save that completed the step."""
    under_way: list[Update]
    declarations: list[tuple[int, StepBegun]]


@final
@dataclass(slots=True)
class ReplayedHistory:
    """The position of a replay: the state, the step under way, and what it has saved so far."""

    _data: Mapping[str, object]
    _unplayed: list[Update] = field(default_factory=list[Update])  # newer than ``_data``
    number: int = 0
    """The number of the last update."""
    first_after: str | None = None
    """The step after which the run started; None if it started before its first step."""
    began: _Moment = field(init=False)
    """The moment when the step under way began."""
    under_way: list[Update] = field(default_factory=list[Update])
    """Some updates of the step under way: the first of each kind (by fields and operations), and
    those that have discovered elements. The others are part of the state and not needed again."""
    # The kinds of updates that ``under_way`` has; cleared when a step begins.
    _kinds: set[tuple[object, ...]] = field(default_factory=set[tuple[object, ...]])
    declarations: list[tuple[int, StepBegun]] = field(default_factory=list[tuple[int, StepBegun]])
    """The declarations of the step under way, if it is a fan-out that has saved: one for each
    program that executed it, with the number of the last update before it."""
    decision: Decision | None = None
    """How the step under way was decided, if it is a race that has been decided."""
    decided: dict[tuple[str, int], Decision] = field(
        default_factory=dict[tuple[str, int], Decision]
    )
    """The decisions of races, by step and visit."""
    own: dict[tuple[str, int], Sequence[str]] = field(
        default_factory=dict[tuple[str, int], Sequence[str]]
    )
    """The own fan-outs of actions that have started no child, by step and visit."""
    undone: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """Ranges of void updates: those after the first number, up to and including the second."""
    restored: Mapping[str, object] = field(default_factory=dict[str, object])
    """The fields of the state at the moment that the last ``Rewound`` went back to."""
    asked: dict[str, QuestionAsked] = field(default_factory=dict[str, QuestionAsked])
    """The questions of the step under way, by name."""
    answers: dict[str, object] = field(default_factory=dict[str, object])
    """All answers, by the questions' ids."""
    spent: dict[tuple[str, str], BudgetLevel] = field(
        default_factory=dict[tuple[str, str], BudgetLevel]
    )
    """What was spent of each budget, by its name and key. Nothing makes it void."""
    paused: Steered | None = None
    """The pause under which the run is; None: it isn't paused."""
    cancelled: Steered | None = None
    """The cancellation from outside that no later execution has overruled; None: there is none."""
    _ended: list[_Ended] = field(default_factory=list[_Ended])  # the completed steps, in order

    @property
    def begun(self) -> StepBegun | None:
        """The last declaration of the step under way; None if there is none."""
        return self.declarations[-1][1] if self.declarations else None

    @property
    def step_under_way(self) -> str | None:
        """The name of the step under way; None if it has saved nothing of its own."""
        if self.begun is not None:
            return self.begun.step
        return self.under_way[0].step if self.under_way else None

    @property
    def data(self) -> Mapping[str, object]:
        """The fields of the state after all updates."""
        self._play(self.number)
        return self._data

    def _play(self, upto: int) -> None:
        """Apply the updates up to that number to the state."""
        size = bisect_right(self._unplayed, upto, key=lambda update: update.number)
        if size:
            some, self._unplayed = self._unplayed[:size], self._unplayed[size:]
            operations = (one for update in some for one in update.operations)
            self._data = replay_all(self._data, operations)

    def is_undone(self, number: int) -> bool:
        """Return whether the update of that number is void."""
        return any(first < number <= last for first, last in self.undone)

    def add(self, entry: Entry) -> None:
        """Replay one more entry."""
        match entry:
            case Update():
                self._unplayed.append(entry)
                self.number = entry.number
                if entry.discovered or self._is_of_a_new_kind(entry):
                    self.under_way.append(entry)
                # Applying a quarter of a save at a time is cheaper than each update by itself.
                if len(self._unplayed) >= _SAVED_AT_ONCE * 5 // 4:
                    self._play(entry.number - _SAVED_AT_ONCE)
            case Decision():
                self.decision = entry
                self.decided[entry.step, self.visit(entry.step)] = entry
            case StepBegun():
                self.declarations.append((self.number, entry))
            case Completed():
                # First up to the save that completed the step, then (by ``self.data``) all of it:
                # ``before`` is the state that a later ``Rewound`` restores.
                self._play(entry.number)
                before = self._data
                ended = _Ended(entry, self.began, before, self.under_way, self.declarations)
                self._ended.append(ended)
                own = own_of(self.begun)
                if own:
                    self.own[entry.step, self.visit(entry.step)] = own
                visits = {**self.began.visits, entry.step: self.visit(entry.step) + 1}
                self.began = _Moment(entry.step, self.number, self.data, visits)
                self.under_way = []
                self.declarations = []
                self.decision = None
                self.asked = {}
            case Rewound():
                self._rewind(entry)
            case QuestionAsked():
                self.asked[entry.name] = entry
            case QuestionAnswered():
                self.answers[entry.id] = entry.value
            case BudgetLevel():
                self.spent[entry.budget, entry.key] = entry
            case Steered():
                self.paused = paused_by(self.paused, entry)
                self.cancelled = cancelled_by(self.cancelled, entry)

    def _is_of_a_new_kind(self, update: Update) -> bool:
        """Return whether this is the step's first update with these fields and operations."""
        if not self.under_way:
            self._kinds.clear()
        kind = (update.step, *((type(one), one.field) for one in update.operations))
        if kind in self._kinds or len(self._kinds) >= _MOST_KINDS:
            return False
        self._kinds.add(kind)
        return True

    def visit(self, step: str) -> int:
        """Return the number of completed visits of ``step``."""
        return self.began.visits.get(step, 0)

    def completed_visits(self) -> Iterator[tuple[str, int, int]]:
        """Yield the completed steps in order: name, visit, and the last update's number before."""
        for ended in self._ended:
            step = ended.completed.step
            yield step, ended.began.visits.get(step, 0), ended.began.number

    def last_behind(self, is_known: Callable[[str], object]) -> int | None:
        """Return the number of the last moment after a step that is known, or at the run's start.

        None if the run started after a step that is not known, and completed no known one.
        """
        moments = (self.began, *(ended.began for ended in reversed(self._ended)))
        return next((at.number for at in moments if at.step is None or is_known(at.step)), None)

    def _rewind(self, entry: Rewound) -> None:
        while self._ended:
            completed, self.began, restored, updates, self.declarations = self._ended.pop()
            if completed.step == entry.step and self.visit(entry.step) == entry.visit:
                self.undone.append((completed.number, self.number))
                self.under_way = [one for one in updates if one.number <= completed.number]
                self.restored = restored
                self.decision = None
                self.asked = {}  # runs go back only into fan-outs, which ask nothing themselves
                self.decided = {
                    (step, visit): decision
                    for (step, visit), decision in self.decided.items()
                    if visit < self.visit(step)
                }
                self.own = {at: own for at, own in self.own.items() if at[1] < self.visit(at[0])}
                return
        msg = f"a history goes back into {entry.step!r}, which it never completed"
        raise ValueError(msg)


def paused_by(paused: Steered | None, entry: Steered) -> Steered | None:
    """Return the pause under which a run is after an entry.

    Args:
        paused: The pause before; None: it was not paused.
        entry: The entry.
    """
    if entry.what == "pause":
        return paused or entry  # a second one changes nothing: the first says since when
    return None if entry.what == "resume" else paused


def pause_in(entries: Iterable[Entry]) -> Steered | None:
    """Return the pause under which a run is, given some of its history; None if it isn't paused."""
    paused: Steered | None = None
    for entry in entries:
        if isinstance(entry, Steered):
            paused = paused_by(paused, entry)
    return paused


def cancelled_by(cancelled: Steered | None, entry: Steered) -> Steered | None:
    """Return the cancellation that counts for a run after an entry.

    Args:
        cancelled: The cancellation before; None: there was none.
        entry: The entry.
    """
    if entry.what == "cancel":
        return cancelled or entry  # as with pauses: the first reason counts
    return None if entry.what == RUN_AGAIN else cancelled


def is_resting(entries: Iterable[Entry]) -> bool:
    """Return whether a run without an end is left alone by those that recover runs.

    It is if it is paused, given all that steered it. If it was cancelled besides, it only lacks its
    end: its process has died before that was saved.
    """
    paused: Steered | None = None
    cancelled: Steered | None = None
    for entry in entries:
        if isinstance(entry, Steered):
            paused = paused_by(paused, entry)
            cancelled = cancelled_by(cancelled, entry)
    return paused is not None and cancelled is None


def play(
    first: Mapping[str, object],
    entries: Iterable[Entry],
    *,
    after: str | None = None,
    visits: Mapping[str, int] | None = None,
) -> ReplayedHistory:
    """Replay a history.

    Args:
        first: The fields of the state that the run started with.
        entries: All entries of the history, in order.
        after: The step after which the run started; None if it started before its first step.
        visits: How many visits of each step counted as completed when the run started.
    """
    playback = ReplayedHistory(first, first_after=after)
    playback.began = _Moment(after, 0, first, dict(visits or {}))
    for entry in entries:
        playback.add(entry)
    return playback
