"""Questions to people: an attempt that asks and halts, and which answer belongs to which question.

Imports runs and commits; anyio.

Invariants:
- A question is saved before the attempt that asks it is halted.
- Once an attempt has asked what is not answered it is halted, however it ends; unless it is
  cancelled, which counts more.
- An answer belongs to one question, and a question to one visit of one step of one run. Within that
  every attempt gets the same answer, in whatever process. So does a child that runs from its start
  once more, if it comes to the same question in the same state.
- A step is not attempted while one of its questions is open: it would only come to that again.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import NoReturn, TypeVar

from anyio.lowlevel import checkpoint_if_cancelled

from shoal._concurrency.cancellation import (
    absorb_stray_cancel,
    cancelled,
    is_cancellation,
    is_fatal,
    ki_protected,
)
from shoal._errors.exceptions import BadUse, Halting, NotData, UnknownQuestion, brief, did_you_mean
from shoal._events.events import Question
from shoal._events.identity import Key, RunPath, new_run_id
from shoal._state.digest import digest, place_of_no_data
from shoal.stores._history import QuestionAnswered, QuestionAsked
from shoal.stores._protocol import NullStore

from .commit import Write, commit
from .progress import recorded_questions
from .publish import out_of_reach
from .run import Run

LISTED = 10
"""Questions that an error names."""

T = TypeVar("T")
Answers = (
    Mapping[str, object] | Mapping[tuple[str, str], object] | Mapping[str | tuple[str, str], object]
)
"""Answers by (run id, name), or by the name alone where one open question has it."""


def is_blocked(run: Run) -> bool:
    """Tell whether an attempt of the current step would only come to a question that is open.

    If so, it is halted.
    """
    questions = run.questions
    if questions is None or not questions.still_open(run.setting.execution.answers):
        return False
    questions.begin_attempt()
    questions.is_halting = True
    return True


async def ask(run: Run, step: str, name: str, question: object) -> object:
    """Return the answer to a question that an action of ``run`` asks, or halt; see ``Context.ask``.

    Raises:
        Halting: Nobody has answered yet.
        NotData: The question can't be kept.
        BadUse: It would not be kept, or the attempt has asked something else by that name.
    """
    await checkpoint_if_cancelled()
    who = f"action {step!r} of run {run.path.id}{_key(run.path)}"
    _refuse_unsaved(run, who, name)
    pending, answers = run.pending_questions(), run.setting.execution.answers
    if name in pending.posed and not _is_same(pending.posed[name], question):
        msg = (
            f"{who} asks {name!r} twice, and for different things: an answer belongs to the "
            f"name, so give each question its own"
        )
        raise BadUse(msg)
    try:
        asked = pending.asked.get(name)
        if asked is None:
            _require_data(question, "question")
            id_ = _question_id(run, step, name, question)
        else:
            id_ = asked.id
        if id_ in answers:
            pending.posed[name] = question
            return answers[id_]
        if asked is None or not _is_same(asked.question, question):
            _require_data(question, "question")
            asked = QuestionAsked(step, name, question, id_)
            await out_of_reach(run.setting.services, _pose(run, asked))
    except NotData as error:
        msg = f"{who} asks {name!r} with a question that can't be kept: {error}"
        raise NotData(msg) from error
    pending.posed[name] = question
    pending.is_halting = True
    raise Halting(f"{who} waits for the answer to {name!r}")


def _question_id(run: Run, step: str, name: str, question: object) -> str:
    """Make the id of a question that the step under way has not asked before.

    It is a hash of all that leads to the question, so a child of a race that runs from its
    start once more is not asked again what was answered (see
    test_a_contestant_that_runs_anew_is_not_asked_again). What is asked in another state, or
    after the run has gone back, has another id, and no answer yet.
    """
    number, data = run.head
    visit = run.visit(step)
    try:
        state = run.setting.digest(data, run.path.key)
    except NotData:  # nothing tells whether this state comes back
        return new_run_id()
    return digest([run.path.id, state, number, step, visit, name, question]).hex()


async def _pose(run: Run, asked: QuestionAsked) -> None:
    """Save a question; from then on the attempt comes to nothing, whatever interrupts it."""
    pending = run.pending_questions()
    await commit(run, Write(questions=(asked,)))
    pending.asked[asked.name] = asked
    pending.is_halting = True


def _refuse_unsaved(run: Run, who: str, name: str) -> None:
    setting = run.setting
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


def halt_for(run: Run, step: str, children: Iterable[Run]) -> NoReturn:
    """Halt, since children of ``step`` do, and nothing else of it is left.

    Raises:
        Halting: That is how the step ends.
    """
    ordered = sorted(children, key=lambda child: child.position)
    questions = run.pending_questions()
    questions.below[step] = tuple(
        one for child in ordered for one in recorded_questions(child.value, child.path)
    )
    questions.is_halting = True
    raise Halting(f"children of {step!r} in run {run.path.id} wait for answers")


def has_halted(run: Run, error: BaseException) -> bool:
    """Tell whether what came out of a run is only how an attempt has ended that waits.

    Not where it is a true cancellation, a KeyboardInterrupt or the like, which must travel on.
    """
    if not run.is_halting or is_fatal(error):
        return False
    return not (is_cancellation(error) and cancelled())


@ki_protected
async def halting_attempt(run: Run, attempt: Callable[[], Awaitable[T]]) -> T:
    """Make an attempt. Once it has asked what is not answered it is halted, however it ends.

    Raises:
        Halting: It is.
        BaseException: What it raised, if it is not; a cancellation in any case.
    """
    if run.questions is not None:
        run.questions.begin_attempt()
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
