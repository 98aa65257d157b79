"""Halting: an attempt that waits for a person, and a run that is told to stop between two steps.

Imports settings, trials and the telling of events; anyio.

Invariants:
- A question is saved before the attempt that asks it is halted.
- Once an attempt has asked in vain it is halted, however it ends; unless it is cancelled, which
  counts more.
- An answer belongs to one question, and a question to one visit of one step of one run. Within that
  every attempt gets the same answer, in whatever process.
- A step is not attempted while one of its questions is open: it would only come to that again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn, Protocol, TypeVar, cast

from anyio.lowlevel import checkpoint_if_cancelled

from ._cancel import absorb_stray_cancel, cancelled, is_cancellation, is_fatal, ki_protected
from ._digest import digest, place_of_no_data
from ._errors import BadUse, Halting, NotData, UnknownQuestion, brief, did_you_mean
from ._events import Question
from ._history import QuestionAnswered, QuestionAsked
from ._ids import Key, RunPath, new_run_id
from ._setting import Setting
from ._store import NullStore
from ._telling import out_of_reach
from ._trials import PendingQuestions

LISTED = 10
"""Questions that an error names."""

T = TypeVar("T")
Answers = (
    Mapping[str, object] | Mapping[tuple[str, str], object] | Mapping[str | tuple[str, str], object]
)
"""Answers by (run id, name), or by the name alone where one open question has it."""


class Halter(ABC):
    """The part of a run that asks, and waits."""

    __slots__ = ()
    setting: Setting
    value: object
    questions: PendingQuestions | None

    @property
    @abstractmethod
    def path(self) -> RunPath:
        """Its identity."""

    @abstractmethod
    def pending_questions(self) -> PendingQuestions:
        """Return what it waits for, which it has from now on if it had nothing."""

    @abstractmethod
    def commit_questions(self, questions: Sequence[QuestionAsked]) -> Awaitable[None]:
        """Save what it asks."""

    @property
    def is_halting(self) -> bool:
        """Whether the attempt under way comes to nothing, since it waits for something."""
        return self.questions is not None and self.questions.is_halting

    def begin_asking(self) -> None:
        """Hear that an attempt of the current step begins."""
        if self.questions is not None:
            self.questions.begin_attempt()

    def rests(self) -> bool:
        """Tell whether an attempt of the current step would only come to a question that is open.

        If so, it is halted.
        """
        waits = self.questions
        if waits is None or not self._open(waits):
            return False
        waits.begin_attempt()
        waits.is_halting = True
        return True

    def _open(self, waits: PendingQuestions) -> list[QuestionAsked]:
        answers = self.setting.execution.answers
        return [asked for asked in waits.asked.values() if asked.id not in answers]

    @property
    def open_questions(self) -> tuple[Question, ...]:
        """What it and its descendants wait for: its own first, then those of its children."""
        waits = self.questions
        if waits is None:
            return ()
        own = [_question(self.path, asked) for asked in self._open(waits)]
        below = [one for step in sorted(waits.below) for one in waits.below[step]]
        return (*own, *below)

    async def ask(self, step: str, name: str, question: object) -> object:
        """Return the answer to a question, or halt; see ``Context.ask``."""
        await checkpoint_if_cancelled()
        who = f"action {step!r} of run {self.path.id}{_key(self.path)}"
        self._refuse_unsaved(who, name)
        waits, answers = self.pending_questions(), self.setting.execution.answers
        if name in waits.posed and not _is_same(waits.posed[name], question):
            msg = (
                f"{who} asks {name!r} twice, and for different things: an answer belongs to the "
                f"name, so give each question its own"
            )
            raise BadUse(msg)
        try:
            asked = waits.asked.get(name)
            if asked is not None and asked.id in answers:
                waits.posed[name] = question
                return answers[asked.id]
            if asked is None or not _is_same(asked.question, question):
                _require_data(question, "question")
                asked = QuestionAsked(
                    step, name, question, new_run_id() if asked is None else asked.id
                )
                await out_of_reach(self.setting.services, self._pose(waits, asked))
        except NotData as error:
            msg = f"{who} asks {name!r} with a question that can't be kept: {error}"
            raise NotData(msg) from error
        waits.posed[name] = question
        waits.is_halting = True
        raise Halting(f"{who} waits for the answer to {name!r}")

    async def _pose(self, waits: PendingQuestions, asked: QuestionAsked) -> None:
        """Save a question; from then on the attempt comes to nothing, whatever interrupts it."""
        await self.commit_questions((asked,))
        waits.asked[asked.name] = asked
        waits.is_halting = True

    def _refuse_unsaved(self, who: str, name: str) -> None:
        setting = self.setting
        for store, why, where in (
            (setting.execution.store, "this run has no store", "Application(..., store=...)"),
            (setting.store, "this child is kept nowhere", "its fan-out another store= than None"),
        ):
            if isinstance(store, NullStore):
                msg = (
                    f"{who} asks {name!r}, and {why}: nothing would remember the question until "
                    f"somebody has answered. Give it one: {where}"
                )
                raise BadUse(msg)

    def halt_below(self, step: str, children: Iterable[Resting]) -> NoReturn:
        """Halt, since children of ``step`` do, and nothing else of it is left.

        Raises:
            Halting: That is how the step ends.
        """
        ordered = sorted(children, key=lambda child: child.position)
        waits = self.pending_questions()
        waits.below[step] = tuple(one for child in ordered for one in child.waits_for)
        waits.is_halting = True
        raise Halting(f"children of {step!r} in run {self.path.id} wait for answers")

    @property
    def waits_for(self) -> tuple[Question, ...]:
        """What a child that is halted waits for, also where an earlier execution has halted it."""
        return recorded_questions(self.value, self.path)


class Resting(Protocol):
    """A child that is halted: a run."""

    @property
    def position(self) -> int:
        """Its place among the others."""
        ...

    @property
    def waits_for(self) -> tuple[Question, ...]:
        """What it waits for."""
        ...


class Waiting(Protocol):
    """What may wait for something: a run."""

    @property
    def is_halting(self) -> bool:
        """Whether its attempt comes to nothing, since it waits for something."""
        ...


def has_halted(run: Waiting, error: BaseException) -> bool:
    """Tell whether what came out of a run is only how an attempt has ended that waits.

    Not where it is a true cancellation, a KeyboardInterrupt or the like, which must travel on.
    """
    if not run.is_halting or is_fatal(error):
        return False
    return not (is_cancellation(error) and cancelled())


class Asking(Waiting, Protocol):
    """What makes attempts that may be halted: a run."""

    def begin_asking(self) -> None:
        """Hear that an attempt begins."""
        ...

    @property
    def setting(self) -> Setting:
        """What it has in common with others."""
        ...


@ki_protected
async def or_halt(run: Asking, attempt: Callable[[], Awaitable[T]]) -> T:
    """Make an attempt. If it has asked in vain it is halted, whatever it does about that.

    Raises:
        Halting: It is.
        BaseException: What it raised, if it is not; a cancellation in any case.
    """
    run.begin_asking()
    try:
        result = await attempt()
    except BaseException as error:
        if not has_halted(run, error):
            raise
    else:
        if not run.is_halting:
            return result
    await absorb_stray_cancel(run.setting.services.native_cancels)
    msg = "the attempt has asked, and was not answered yet"
    raise Halting(msg)


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


# -- answers -------------------------------------------------------------------------------------


def resolved(
    answers: Answers,
    asked: Sequence[Question],
    known: Mapping[str, object],
    run_id: str,
    *,
    has_failed: bool = False,
) -> list[QuestionAnswered]:
    """Find out which question each answer belongs to.

    An answer that was given before, and has yet to be taken, may be given again: so whoever doesn't
    know whether a call has come through repeats it. Where the run has failed with it, another one
    may take its place.

    Args:
        answers: By (run id, name), or name.
        asked: All that the steps under way have asked.
        known: Answers that were given before, by the questions' ids.
        run_id: The root run's id.
        has_failed: Whether that has failed when it was executed last.

    Raises:
        UnknownQuestion: One belongs to no question, or to several.
        NotData: One is nothing that can be kept.
    """
    open_ = [one for one in asked if one.id not in known]
    found: dict[str, QuestionAnswered] = {}
    for at, value in answers.items():
        meant = [one for one in open_ if at in (one.address, one.name)]
        if not meant:
            meant = [one for one in asked if at in (one.address, one.name)]
            if len(meant) == 1 and _is_same(known[meant[0].id], value):
                continue
        if len(meant) != 1 or (meant[0].id in known and not has_failed):
            message, why = _why_unknown(at, meant, open_, known, run_id)
            raise UnknownQuestion(message, at, why)
        question = meant[0]
        if question.id in found:
            msg = (
                f"run {run_id}: answers= has two for {question.address!r}, one by its name alone; "
                f"leave out one"
            )
            raise UnknownQuestion(msg, at, "the question is answered twice here")
        try:
            _require_data(value, "answer")
        except NotData as error:
            msg = f"run {run_id}: the answer to {question.address!r} can't be kept: {error}"
            raise NotData(msg) from error
        found[question.id] = QuestionAnswered(question.id, value)
    return list(found.values())


def _why_unknown(
    at: object,
    meant: Sequence[Question],
    open_: Sequence[Question],
    known: Mapping[str, object],
    run_id: str,
) -> tuple[str, str]:
    """Say why an answer belongs to no question: with names and values, and without any."""
    if len(meant) == 1:
        value, why = brief(known[meant[0].id]), "was answered before"
        not_used = "and that has not been used"
        return f"run {run_id}: {at!r} {why}, with {value}, {not_used}", f"{why}, {not_used}"
    if meant:
        return (
            f"run {run_id}: {len(meant)} questions are called {at!r}; say which is answered, by "
            f"run id and name: {_listed(meant)}"
        ), f"{len(meant)} questions have this name: give the run_id of the one that is meant"
    if not open_:
        msg = f"run {run_id} has no open question, so {at!r} can't be answered"
        return msg, "the run has no open question"
    hint = did_you_mean(at, {one.name for one in open_}) if isinstance(at, str) else ""
    msg = f"run {run_id} has not asked {at!r}{hint}; its open questions are {_listed(open_)}"
    return msg, "is none of the open questions of the run"


def _listed(questions: Sequence[Question]) -> str:
    """Name some, so many that one sees what they are."""
    shown = [f"{one.address!r}{_key(one.path)}" for one in questions[:LISTED]]
    more = len(questions) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _require_data(value: object, root: str) -> None:
    """Refuse what no durable store could keep, whatever this one does.

    Raises:
        NotData: Naming where in it.
    """
    try:
        digest(value)
    except NotData as error:
        msg = f"{place_of_no_data(value, root)}: {error}"
        raise NotData(msg) from error


def _is_same(one: object, other: object) -> bool:
    try:
        return one is other or digest(one) == digest(other)
    except NotData:  # which is refused where it is to be kept
        return False


def _key(path: RunPath) -> str:
    key: Key = path.key
    return "" if path.parent is None else f" (key {brief(key)} of {path.step!r})"
