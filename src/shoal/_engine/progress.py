"""How far a run has come, as far as most runs never need to say it: records made on first use.

Imports acts, events and history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast, final

from shoal._events.events import Question
from shoal._events.identity import RunPath
from shoal._graph.action import Act
from shoal._state.state import Change
from shoal.stores._history import Playback, QuestionAsked, Rewound
from shoal.stores._protocol import ChildRecord


@final
class RetryState:
    """What a run keeps that may be tried again, or whose result or crashes are counted."""

    __slots__ = (
        "abandoned",
        "at",
        "attempt",
        "before",
        "crashes",
        "further",
        "is_cached",
        "is_suspect",
        "is_undecided",
        "lacks_value",
        "noted",
        "result_key",
        "retained",
    )

    def __init__(self) -> None:
        """Have nothing to keep yet."""
        self.attempt: int = 1
        """Which attempt of the current step this is."""
        self.further: int = 0
        """Attempts beside the first, of all steps."""
        self.before: int = 0
        """Of these, how many were made in earlier rounds of a race, of whichever step."""
        self.at: Act | None = None
        """The act that failed, or was to come next; None: it has not come to any."""
        self.is_undecided: bool = False
        """Whether that act is completed, and only its edges could not be judged."""
        self.lacks_value: bool = False
        """Whether all of its steps are completed, and only its value could not be taken."""
        self.retained: dict[str, Any] = {}
        """What steps that failed are to go on with, by their names."""
        self.abandoned: bool = False
        """Whether a thread was left behind."""
        self.crashes: int = 0
        """Executions that have died while it was at work at its step, this one included..."""
        self.is_suspect: bool = False
        """...if this is set: then the store knows that it is at work."""
        self.noted: int = 0
        """How many of them the store has that keeps its history, which may not have its end."""
        self.result_key: str = ""
        """Under which key the result of its current step is stored, with ``cache=``..."""
        self.is_cached: bool = False
        """...and whether it was, so that the step is not executed."""

    def clear_crashes(self, crashes: int = 0) -> None:
        """Count ``crashes`` from now on: the run has got further, so none is held against it."""
        self.crashes, self.is_suspect = crashes, False


@final
class PendingQuestions:
    """What a run waits for, in the step under way and in its current attempt."""

    __slots__ = ("asked", "below", "is_halting", "posed")

    def __init__(self, asked: dict[str, QuestionAsked] | None = None) -> None:
        """Have ``asked`` so much before."""
        self.asked: dict[str, QuestionAsked] = {} if asked is None else asked
        """Its own questions in the step under way, by name."""
        self.posed: dict[str, object] = {}
        """What this attempt has asked so far."""
        self.below: dict[str, tuple[Question, ...]] = {}
        """What its children wait for, by the step that they belong to."""
        self.is_halting: bool = False
        """Whether this attempt comes to nothing, since something has yet to be answered."""

    def still_open(self, answers: Mapping[str, object]) -> list[QuestionAsked]:
        """Return its own questions that ``answers`` has nothing for, by their ids."""
        return [asked for asked in self.asked.values() if asked.id not in answers]

    def in_order(self, path: RunPath, answers: Mapping[str, object]) -> tuple[Question, ...]:
        """Return what is open: the own questions of the run at ``path``, then its children's."""
        own = own_questions(path, self.still_open(answers))
        below = [one for step in sorted(self.below) for one in self.below[step]]
        return (*own, *below)

    def begin_attempt(self) -> None:
        """Drop what the attempt before has come to."""
        self.posed.clear()
        self.below.clear()
        self.is_halting = False


@final
class ResumeState:
    """What earlier executions have left of a run, for this one to go on from."""

    __slots__ = ("has_halted_here", "is_afresh", "is_undone", "record", "replayed", "rewind")

    def __init__(self) -> None:
        """Have nothing to go on from."""
        self.record: ChildRecord | None = None
        """What the store has of a child."""
        self.is_afresh: bool = False
        """Whether what the store has of it is to count no more."""
        self.replayed: Playback | None = None
        """Its history, as long as it is at the step that was under way there."""
        self.is_undone: Callable[[int], bool] | None = None
        """Tells which of its updates count no more, since it has gone back; None: all count."""
        self.rewind: tuple[Rewound, Change] | None = None
        """Where to go back to first, and the change that brings the state back as it was."""
        self.has_halted_here: bool = False
        """Whether a root run was halted where it goes on."""


@final
class StepCounts:
    """Which steps a run has completed, and how the children of its fan-outs ended."""

    __slots__ = ("ledgers", "visits")

    def __init__(self) -> None:
        """Have completed none."""
        self.visits: dict[str, int] = {}
        """How often each step was completed."""
        self.ledgers: dict[str, list[Any]] = {}
        """A ledger for each visit of a fan-out, by the step's name."""

    def all_ledgers(self) -> Iterator[Any]:
        """Go through the ledgers of all steps."""
        for of_step in self.ledgers.values():
            yield from of_step


# -- as data -------------------------------------------------------------------------------------


def plain(questions: Iterable[Question]) -> list[object]:
    """Write questions as plain data that any store keeps; see ``recorded_questions``."""
    return [
        [_links(one.path), one.step, one.name, one.question, one.id]  # from below the root down
        for one in questions
    ]


def recorded_questions(value: object, path: RunPath) -> tuple[Question, ...]:
    """Read what a child waits for from its record.

    Args:
        value: As ``plain`` has written it.
        path: The child's, or that of any other run of the same root.
    """
    found: list[Question] = []
    for links, step, name, question, id_ in cast("Sequence[Any]", value or ()):
        at = path.root
        for of_step, visit, act, key in links:
            at = RunPath(parent=at, step=of_step, visit=visit, act=act, key=key)
        found.append(Question(path=at, step=step, name=name, question=question, id=id_))
    return tuple(found)


def _links(path: RunPath) -> list[list[object]]:
    links: list[list[object]] = []
    while path.parent is not None:
        links.append([path.step, path.visit, path.act, path.key])
        path = path.parent
    return links[::-1]


def _question(path: RunPath, asked: QuestionAsked) -> Question:
    return Question(
        path=path, step=asked.step, name=asked.name, question=asked.question, id=asked.id
    )


def own_questions(path: RunPath, asked: Iterable[QuestionAsked]) -> list[Question]:
    """Return what a run has asked by itself."""
    return [_question(path, one) for one in asked]
