"""What is kept of a run, in the order of its saves, and playing it back. Imports states and events.

Invariants:
- A history is only added to. What counts no more is followed by a ``Rewound`` that says so.
- Played back, it leads to the state that the run had committed, and to the step it stood in.
- Played back, it takes the memory of the states that it leads to, however many updates it has: an
  update is let go once its operations are part of the state (see
  test_what_is_played_back_takes_no_memory_for_each_update).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, cast, final

from shoal._events.events import Decision, Update
from shoal._state.state import replay_all


@final
class Completed(NamedTuple):
    """A step was completed. Its last update, if that completed it, stands just before."""

    step: str
    number: int
    """The number of the run's last update before the save that completed the step."""


@final
class StepBegun(NamedTuple):
    """A fan-out saves something for the first time in an execution of the run: what it declares.

    A later execution compares that with its own program, which may have changed. Stores that were
    written before there was such an entry have none.

    An action declares the fan-outs of its own that have started nothing, when it is completed: of
    all others their children are kept.
    """

    step: str
    declared: Mapping[str, object]
    """Plain data; see ``_takeup.Declared``, and ``own_declared`` for what an action declares."""


def own_declared(names: Sequence[str]) -> Mapping[str, object]:
    """Declare an action's own fan-outs, by name: those that have started nothing."""
    return {"own": list(names)}


def own_of(begun: StepBegun | None) -> Sequence[str]:
    """Return an action's own fan-outs that have started nothing, if that is what was declared."""
    return () if begun is None else cast("Sequence[str]", begun.declared.get("own", ()))


@final
class Rewound(NamedTuple):
    """The run went back into a step that it had completed; what came after that counts no more.

    The state as it was then is brought back by the next update.
    """

    step: str
    visit: int
    """Which execution of the step, counted from 0."""


@final
class QuestionAsked(NamedTuple):
    """An action of the run has asked a person. One of the same id, later on, stands for it."""

    step: str
    name: str
    """What the question is called, within this execution of the step."""
    question: object
    id: str
    """Tells it apart from all others; answers name it. What is asked again in the same state, by a
    run that begins anew, is the same question."""


@final
class QuestionAnswered(NamedTuple):
    """A question of the run or of a descendant was answered; in the histories of root runs only."""

    id: str
    value: object


Entry = Update | Decision | Completed | Rewound | QuestionAsked | QuestionAnswered | StepBegun
"""What a history is made of. A decision stands behind the update that it is saved with."""


@final
@dataclass(frozen=True, slots=True)
class _Moment:
    """A run between two steps, as far as its history goes."""

    step: str | None
    """The step that was completed last."""
    number: int
    data: Mapping[str, object]
    visits: Mapping[str, int]


_SAVED_AT_ONCE = 1_000
"""Updates that may be those of one save, as many outcomes as a parent takes at once: they are not
played before it is known whether that save has completed the step."""

_MOST_KINDS = 100
"""Kinds of updates of which one is kept: ``reduce`` may change other fields each time."""


class _Ended(NamedTuple):
    """A step that was completed."""

    completed: Completed
    began: _Moment
    """The moment in which it began."""
    restored: Mapping[str, object]
    """The fields of the state before the save that completed it."""
    under_way: list[Update]
    declarations: list[tuple[int, StepBegun]]


@final
@dataclass(slots=True)
class Playback:
    """Where a history has led to so far."""

    _data: Mapping[str, object]
    _unplayed: list[Update] = field(default_factory=list[Update])  # which come after that
    number: int = 0
    """The number of the last update."""
    first_after: str | None = None
    """The step after which the run started; None: before its first."""
    began: _Moment = field(init=False)
    """The moment in which the step under way began."""
    under_way: list[Update] = field(default_factory=list[Update])
    """Of the updates that the step under way has made: the first of each kind, by the fields and
    operations, and those that have discovered elements. The others are in the state, and nothing
    else is asked of them."""
    _kinds: set[tuple[object, ...]] = field(default_factory=set[tuple[object, ...]])
    declarations: list[tuple[int, StepBegun]] = field(default_factory=list[tuple[int, StepBegun]])
    """What the step under way has declared, if it is a fan-out that has saved something: once for
    each program that has executed it, with the number of the last update before that."""
    decision: Decision | None = None
    """How the step under way was decided, if it is a race and was."""
    decided: dict[tuple[str, int], Decision] = field(
        default_factory=dict[tuple[str, int], Decision]
    )
    """How visits of steps were decided, of those that were."""
    own: dict[tuple[str, int], Sequence[str]] = field(
        default_factory=dict[tuple[str, int], Sequence[str]]
    )
    """By visits of actions: their own fan-outs that have started nothing, if there were some."""
    undone: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """Ranges of updates that count no more: those behind the first number, up to the second."""
    restored: Mapping[str, object] = field(default_factory=dict[str, object])
    """The fields of the state as they were where the history last went back to."""
    asked: dict[str, QuestionAsked] = field(default_factory=dict[str, QuestionAsked])
    """What the step under way has asked, by name."""
    answers: dict[str, object] = field(default_factory=dict[str, object])
    """All answers that were ever given, by the questions' ids."""
    _ended: list[_Ended] = field(default_factory=list[_Ended])

    @property
    def begun(self) -> StepBegun | None:
        """What the step under way declared last; None if it is no fan-out that has saved."""
        return self.declarations[-1][1] if self.declarations else None

    @property
    def step_under_way(self) -> str | None:
        """The step under way, as far as it has saved anything of its own."""
        if self.begun is not None:
            return self.begun.step
        return self.under_way[0].step if self.under_way else None

    @property
    def data(self) -> Mapping[str, object]:
        """The fields of the state after all updates."""
        self._play(self.number)
        return self._data

    def _play(self, upto: int) -> None:
        """Let the state follow the updates up to that number."""
        size = bisect_right(self._unplayed, upto, key=lambda update: update.number)
        if size:
            some, self._unplayed = self._unplayed[:size], self._unplayed[size:]
            operations = (one for update in some for one in update.operations)
            self._data = replay_all(self._data, operations)

    def is_undone(self, number: int) -> bool:
        """Tell whether the update of that number counts no more."""
        return any(first < number <= last for first, last in self.undone)

    def add(self, entry: Entry) -> None:
        """Go on by one entry."""
        match entry:
            case Update():
                self._unplayed.append(entry)
                self.number = entry.number
                if entry.discovered or self._is_of_a_new_kind(entry):
                    self.under_way.append(entry)
                if len(self._unplayed) >= _SAVED_AT_ONCE * 5 // 4:  # not each by itself
                    self._play(entry.number - _SAVED_AT_ONCE)
            case Decision():
                self.decision = entry
                self.decided[entry.step, self.visit(entry.step)] = entry
            case StepBegun():
                self.declarations.append((self.number, entry))
            case Completed():
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

    def _is_of_a_new_kind(self, update: Update) -> bool:
        """Tell whether the step under way has made no update of the same fields and operations."""
        if not self.under_way:
            self._kinds.clear()
        kind = (update.step, *((type(one), one.field) for one in update.operations))
        if kind in self._kinds or len(self._kinds) >= _MOST_KINDS:
            return False
        self._kinds.add(kind)
        return True

    def visit(self, step: str) -> int:
        """Return how often ``step`` was completed."""
        return self.began.visits.get(step, 0)

    def completed_visits(self) -> Iterator[tuple[str, int, int]]:
        """Go through the steps that were completed, in order.

        With the visit of each, and the number of the last update before it.
        """
        for ended in self._ended:
            step = ended.completed.step
            yield step, ended.began.visits.get(step, 0), ended.began.number

    def last_behind(self, is_known: Callable[[str], object]) -> int | None:
        """Return the last number at which the run stood behind a step that is known, or began.

        None: it began behind one that isn't.
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
                self.asked = {}  # only steps of children are gone back into: they ask nothing
                self.decided = {
                    (step, visit): decision
                    for (step, visit), decision in self.decided.items()
                    if visit < self.visit(step)
                }
                self.own = {at: own for at, own in self.own.items() if at[1] < self.visit(at[0])}
                return
        msg = f"a history goes back into {entry.step!r}, which it never completed"
        raise ValueError(msg)


def play(
    first: Mapping[str, object],
    entries: Iterable[Entry],
    *,
    after: str | None = None,
    visits: Mapping[str, int] | None = None,
) -> Playback:
    """Play a history back.

    Args:
        first: The fields of the state that the run started with.
        entries: All that is kept, in order.
        after: The step after which it started; None: before its first.
        visits: How often it counts as having completed steps before.
    """
    playback = Playback(first, first_after=after)
    playback.began = _Moment(after, 0, first, dict(visits or {}))
    for entry in entries:
        playback.add(entry)
    return playback
