"""Ask people questions: an attempt asks and halts, and a later one receives the answer.

Invariants:
- A question is saved before the attempt that asks it is halted.
- An attempt that has asked a question without an answer is halted, whatever it returns or raises
  then. Only a cancellation outranks that.
- An answer belongs to one question, and a question to one visit of one step of one run. Within that
  visit all attempts get the same answer, in any process. A child that runs again from its start
  gets the answer too, if it asks the same question in the same state.
- A step is not attempted while one of its questions is open: it would only ask it again.
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
"""Questions that an error names: enough to see which ones they are, in a message one can read."""

T = TypeVar("T")
Answers = (
    Mapping[str, object] | Mapping[tuple[str, str], object] | Mapping[str | tuple[str, str], object]
)
"""Answers by (run id, name), or by the name alone where one open question has it."""


def is_blocked(run: Run) -> bool:
    """Return whether a question of the current step is open; if so, the attempt is halted."""
    questions = run.questions
    if questions is None or not questions.still_open(run.setting.execution.answers):
        return False
    questions.begin_attempt()
    questions.is_halting = True
    return True


async def ask(run: Run, step: str, name: str, question: object) -> object:
    """Return the answer to a question that an action of ``run`` asks, or halt; see ``Context.ask``.

    Raises:
        Halting: The question has no answer yet.
        NotData: The question can't be saved.
        BadUse: The run has no store, or the attempt has asked another question by that name.
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
        # An attempt may word the question anew: it keeps its id, and the new words are saved. See
        # test_what_is_asked_may_have_changed_in_the_next_attempt.
        if asked is None or not _is_same(asked.question, question):
            _require_data(question, "question")
            # In another task, since a native timeout around `ask` must not interrupt the save.
            asked = QuestionAsked(step, name, question, id_)
            await out_of_reach(run.setting.services, _pose(run, asked))
    except NotData as error:
        msg = f"{who} asks {name!r} with a question that can't be kept: {error}"
        raise NotData(msg) from error
    pending.posed[name] = question
    pending.is_halting = True
    raise Halting(f"{who} waits for the answer to {name!r}")


def _question_id(run: Run, step: str, name: str, question: object) -> str:
    """Return the id of a question that the current step has not asked before.

    It is a hash of everything that leads to the question. So a contestant that runs again from its
    start finds the answers to its questions (see
    test_a_contestant_that_runs_anew_is_not_asked_again). A question in another state, or after the
    run has gone back, has another id and no answer yet.
    """
    number, data = run.head
    visit = run.visit(step)
    try:
        state = run.setting.digest(data, run.path.key)
    except NotData:
        # Such a state can't be recognised when it comes back, so the question is a new one.
        return new_run_id()
    return digest([run.path.id, state, number, step, visit, name, question]).hex()


async def _pose(run: Run, asked: QuestionAsked) -> None:
    """Save a question, and halt the attempt from then on, whatever interrupts it."""
    pending = run.pending_questions()
    await commit(run, Write(questions=(asked,)))
    # After the save: a question that is not saved must neither halt the attempt nor be listed.
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
                f"it is answered. Give it one: {where}"
            )
            raise BadUse(msg)


def halt_for(run: Run, step: str, children: Iterable[Run]) -> NoReturn:
    """Halt ``run``, since children of ``step`` are halted and no other child is left.

    Raises:
        Halting: Always.
    """
    # By position and not by time, so that callers see one order; see
    # test_questions_come_in_order_of_positions_whoever_asked_first.
    ordered = sorted(children, key=lambda child: child.position)
    questions = run.pending_questions()
    questions.below[step] = tuple(
        one for child in ordered for one in recorded_questions(child.value, child.path)
    )
    questions.is_halting = True
    raise Halting(f"children of {step!r} in run {run.path.id} wait for answers")


def has_halted(run: Run, error: BaseException) -> bool:
    """Return whether ``error`` is only how an attempt that waits for an answer has ended.

    A real cancellation, a KeyboardInterrupt and the like are not: they must propagate.
    """
    if not run.is_halting or is_fatal(error):
        return False
    return not (is_cancellation(error) and cancelled())


@ki_protected
async def halting_attempt(run: Run, attempt: Callable[[], Awaitable[T]]) -> T:
    """Make an attempt, and halt it if it has asked a question without an answer.

    Raises:
        Halting: It has, whatever it returned or raised; see
            test_an_attempt_that_has_asked_is_halted_however_it_ends.
        BaseException: The attempt raised it and has not asked, or was cancelled.
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
    # Outside of `except`: the action's error must not become the context of `Halting`. A native
    # cancel that the action left on the task would interrupt the commits that follow.
    await absorb_stray_cancel(run.setting.services.native_cancels)
    msg = "the attempt has asked a question that is not answered yet"
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
    """Return each answer with the id of the question that it belongs to.

    An answer that was given before and is not used yet may be given again, so a caller can repeat a
    call whose result was lost. If the run has failed with an answer, another one may replace it.

    Args:
        answers: Answers by (run id, name), or by name.
        asked: All questions of the steps under way.
        known: Answers that were given before, by the ids of their questions.
        run_id: The id of the root run.
        has_failed: Whether the last execution of the root run has failed.

    Raises:
        UnknownQuestion: An answer belongs to no question, or to several.
        NotData: An answer can't be saved.
    """
    open_ = [one for one in asked if one.id not in known]
    found: dict[str, QuestionAnswered] = {}
    for at, value in answers.items():
        # Open questions first: an answered one of the same name must not make a name ambiguous.
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
    """Return why an answer belongs to no question: for the caller, and without data of the run.

    The second text may go to a client over HTTP, so it has no ids, names or values.
    """
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
    shown = [f"{one.address!r}{_key(one.path)}" for one in questions[:LISTED]]
    more = len(questions) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _require_data(value: object, root: str) -> None:
    """Refuse a value that a durable store could not keep, also if this run's store could.

    Raises:
        NotData: It names the place in the value.
    """
    try:
        digest(value)
    except NotData as error:
        msg = f"{place_of_no_data(value, root)}: {error}"
        raise NotData(msg) from error


def _is_same(one: object, other: object) -> bool:
    try:
        return one is other or digest(one) == digest(other)
    except NotData:  # `_require_data` refuses the value, with a better message
        return False


def _key(path: RunPath) -> str:
    key: Key = path.key
    return "" if path.parent is None else f" (key {brief(key)} of {path.step!r})"
