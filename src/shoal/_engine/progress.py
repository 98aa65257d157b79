"""Records of a run that most runs never need: retries, questions, resume, counts of steps.

A fan-out makes one run per element, so a run has these records only from their first use on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast, final

from shoal._events.events import Question
from shoal._events.identity import RunPath
from shoal._graph.act import Act
from shoal._limits.permits import AttemptPermit
from shoal._state.state import Change
from shoal.stores._history import QuestionAsked, ReplayedHistory, Rewound
from shoal.stores._protocol import ChildRecord

MORE: Mapping[str, object] = {
    "type": "number",
    "minimum": 0,
    "description": "How much more of the budget there is; with 0, what doesn't fit fails.",
}
"""The JSON schema of answers to a budget's question for more."""


def asks_for_more(asked: QuestionAsked | Question) -> bool:
    """Return whether a question is a budget's. It asks another one when more is spent.

    Such a question holds up nothing in another execution, whose program may have more to spend: the
    attempt asks for its worst case again, and then the same question if that doesn't fit.
    """
    schema = asked.schema if isinstance(asked, QuestionAsked) else asked.answer_schema
    return schema == MORE


@final
class RetryState:
    """The attempts of a run, its crashes, and the state of its cached result."""

    __slots__ = (
        "abandoned",
        "at",
        "attempt",
        "before",
        "crashes",
        "further",
        "hedged",
        "is_cached",
        "is_repeated",
        "is_suspect",
        "is_undecided",
        "lacks_value",
        "last_permit",
        "needs_own_worker",
        "next_at",
        "noted",
        "own_deaths",
        "result_key",
        "retained",
    )

    def __init__(self) -> None:
        """Start with the first attempt, and no crash."""
        # Set back to `before + 1` when a step is completed; counted from 1.
        self.attempt: int = 1
        """The number of the current attempt of the current step."""
        # Only grows: an outcome has it as `attempts`.
        self.further: int = 0
        """Attempts of all steps, without the first one."""
        self.before: int = 0
        """Attempts among ``further`` that were made in earlier rounds of a race, at any step."""
        # Set when a resumable walk raises; None while no act was reached.
        self.at: Act | None = None
        """The act at which the next attempt of the run begins; None: at its first act."""
        # Only with `at`, and reset as soon as an edge was chosen.
        self.is_undecided: bool = False
        """Whether ``at`` is completed, and the conditions on its edges could not be evaluated."""
        self.lacks_value: bool = False
        """Whether all steps are completed, and the value of the run could not be taken or saved."""
        # Each entry is removed by the attempt that takes it.
        self.retained: dict[str, Any] = {}
        """The fan-outs of failed steps, for the next attempt to continue, by names of steps."""
        self.abandoned: bool = False  # never reset: the thread may still run
        """Whether a thread was left behind."""
        self.crashes: int = 0
        """Executions and workers in a row that died while the run was at work, with this execution
        if a suspect."""
        # Set before the save that says so, and reset with `crashes`.
        self.is_suspect: bool = False
        """Whether ``crashes`` includes the current execution, in which the run is at work."""
        # Both are reset with `crashes`.
        self.needs_own_worker: bool = False
        """Whether one more death of a worker would be one too many, so that the action has to be
        called in a worker without other calls."""
        self.own_deaths: int = 0
        """Deaths of workers in which it was called so."""
        # The store of the history may not have the run's end, which would reset the count there.
        self.noted: int = 0
        """The value of ``crashes`` in the store that keeps the run's history."""
        # Reset when the step is completed.
        self.is_repeated: bool = False
        """Whether the current attempt has called its action before: it raised ``RetryLater``, or
        its worker died. So the store may have children that the action has started."""
        self.next_at: float = 0.0
        """When the wait before the next attempt ends, by the loop's clock; past: it has ended."""
        # `Any`, since `hedged` imports runs; only while such an attempt is made.
        self.hedged: Any = None
        """The attempt that may have a second copy, in the run itself and in that of the copy."""
        # Only of the child of a fan-out, or of a root run; graphs that are nodes have theirs there.
        self.last_permit: AttemptPermit | None = None
        """The permit of the last attempt, if that has failed; it is over. The next attempt needs
        the same, so this tells when it can begin."""
        # Both belong to the current step. The key is set before each execution of an action with
        # `cache=`, and `is_cached` is reset once the end of the step is published.
        self.result_key: str = ""
        """The key under which the result of the current step is stored, with ``cache=``."""
        self.is_cached: bool = False
        """Whether the result of the current step was found, so that the action isn't executed."""

    def clear_crashes(self, crashes: int = 0) -> None:
        """Set the count to ``crashes``: the run has got further, so earlier crashes don't count."""
        self.crashes, self.is_suspect = crashes, False
        if not crashes:
            self.needs_own_worker = False
            self.own_deaths = 0


@final
class PendingQuestions:
    """The questions that a run waits for, in its current step."""

    __slots__ = ("asked", "below", "is_halting", "posed")

    def __init__(self, asked: dict[str, QuestionAsked] | None = None) -> None:
        """Start with the questions that the history has for the current step."""
        # Only questions that are saved, from this execution and earlier ones.
        self.asked: dict[str, QuestionAsked] = {} if asked is None else asked
        """The run's own questions in the current step, by name, answered or not."""
        self.posed: dict[str, object] = {}
        """The questions that the current attempt has asked, by name."""
        # By step, since an action may have several fan-outs of its own that halt.
        self.below: dict[str, tuple[Question, ...]] = {}
        """The questions of children, by the step that the children belong to."""
        # Once set it stays for the attempt, whatever the action raises or returns then.
        self.is_halting: bool = False
        """Whether the current attempt is halted, since a question has no answer yet."""

    def still_open(self, answers: Mapping[str, object]) -> list[QuestionAsked]:
        """Return the run's own questions that have no answer in ``answers``."""
        return [asked for asked in self.asked.values() if asked.id not in answers]

    def in_order(self, path: RunPath, answers: Mapping[str, object]) -> tuple[Question, ...]:
        """Return the open questions: first those of the run at ``path``, then its children's."""
        own = own_questions(path, self.still_open(answers))
        # A watcher may have answered one of a child while siblings of the child went on.
        below = [
            one for step in sorted(self.below) for one in self.below[step] if one.id not in answers
        ]
        return unique((*own, *below))

    def begin_attempt(self) -> None:
        """Forget what the attempt before has asked; questions that are saved stay."""
        self.posed.clear()
        self.below.clear()
        self.is_halting = False


@final
class ResumeState:
    """The work of earlier executions on a run, from which this one resumes."""

    __slots__ = ("has_halted_here", "is_afresh", "is_undone", "record", "replayed", "rewind")

    def __init__(self) -> None:
        """Start without any earlier work."""
        # None in a root run, and in a child of which the store has nothing or nothing valid.
        self.record: ChildRecord | None = None
        """The store's record of a child."""
        # Reset by the save that makes the history void; until then the history must not be read.
        self.is_afresh: bool = False
        """Whether the run's saved history must be made void, since its input has changed."""
        # None again after the first step: it describes only the step that was under way.
        self.replayed: ReplayedHistory | None = None
        """The run's history, while the run is at the step that was under way in it."""
        self.is_undone: Callable[[int], bool] | None = None
        """Returns whether an update was undone by going back; None: none was."""
        # Carried out by the first walk, once, before any step.
        self.rewind: tuple[Rewound, Change] | None = None
        """The place to go back to, and the change that restores the state as it was there."""
        # Else the run would halt at the same breakpoint again and never pass it.
        self.has_halted_here: bool = False
        """Whether a root run was halted at the place where it resumes."""


@final
class StepCounts:
    """How often a run has completed each step, and how the children of its fan-outs ended."""

    __slots__ = ("ledgers", "visits")

    def __init__(self) -> None:
        """Start with no step completed."""
        # A step that is under way isn't counted, so the count is the number of its visit.
        self.visits: dict[str, int] = {}
        """How often each step was completed, by name."""
        # `Any`, since ledgers belong to `fanout`, which is above; here they are only passed on.
        self.ledgers: dict[str, list[Any]] = {}
        """One ledger for each visit of a fan-out, by the step's name."""

    def all_ledgers(self) -> Iterator[Any]:
        """Yield the ledgers of all steps and visits."""
        for of_step in self.ledgers.values():
            yield from of_step


# -- as data -------------------------------------------------------------------------------------


def unique(questions: Iterable[Question]) -> tuple[Question, ...]:
    """Leave out questions that were asked before: an answer to one is an answer to all of them.

    All attempts that don't fit into a budget ask for more in one question.
    """
    found: dict[str, Question] = {}
    for one in questions:
        found.setdefault(one.id, one)
    return tuple(found.values())


def plain(questions: Iterable[Question]) -> list[object]:
    """Return questions as plain data that any store keeps; ``recorded_questions`` reads it."""
    # A stored format: `recorded_questions` must read what any release has written.
    return [
        [
            *(_links(one.path), one.step, one.name, one.question, one.id),
            *(() if one.answer_schema is None else (one.answer_schema,)),
        ]
        for one in questions
    ]


def recorded_questions(value: object, path: RunPath) -> tuple[Question, ...]:
    """Return the questions in a child's record.

    Args:
        value: The data that ``plain`` made.
        path: The path of any run below the same root run, the child's for example.
    """
    found: list[Question] = []
    for links, step, name, question, id_, *more in cast("Sequence[Any]", value or ()):
        at = path.root
        for of_step, visit, act, key in links:
            at = RunPath(parent=at, step=of_step, visit=visit, act=act, key=key)
        schema = more[0] if more else None  # questions of earlier versions have none
        found.append(
            Question(path=at, step=step, name=name, question=question, id=id_, answer_schema=schema)
        )
    return tuple(found)


def _links(path: RunPath) -> list[list[object]]:
    # From below the root down, without the root's id: a fork has another one.
    links: list[list[object]] = []
    while path.parent is not None:
        links.append([path.step, path.visit, path.act, path.key])
        path = path.parent
    return links[::-1]


def _question(path: RunPath, asked: QuestionAsked) -> Question:
    return Question(
        path=path,
        step=asked.step,
        name=asked.name,
        question=asked.question,
        id=asked.id,
        answer_schema=asked.schema,
    )


def own_questions(path: RunPath, asked: Iterable[QuestionAsked]) -> list[Question]:
    """Return the run's own questions, as hooks and callers receive them."""
    return [_question(path, one) for one in asked]
