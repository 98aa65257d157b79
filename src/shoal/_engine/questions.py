"""Questions to people: an attempt asks, and halts until it is answered.

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

from collections.abc import Awaitable, Callable, Iterable
from typing import NoReturn, TypeVar

from anyio.lowlevel import checkpoint_if_cancelled

from shoal._concurrency.cancellation import (
    absorb_stray_cancel,
    cancelled,
    is_cancellation,
    is_fatal,
    ki_protected,
)
from shoal._errors.exceptions import BadUse, Halting, NotData, brief
from shoal._events.identity import Key, RunPath, new_run_id
from shoal._state.digest import digest, place_of_no_data
from shoal.stores._history import QuestionAsked
from shoal.stores._protocol import NullStore

from .commit import Write, commit
from .progress import recorded_questions
from .publish import out_of_reach
from .run import Run

T = TypeVar("T")


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
    who = f"action {step!r} of run {run.path.id}{asker_key(run.path)}"
    _refuse_unsaved(run, who, name)
    pending, answers = run.pending_questions(), run.setting.execution.answers
    if name in pending.posed and not is_same_data(pending.posed[name], question):
        msg = (
            f"{who} asks {name!r} twice, and for different things: an answer belongs to the "
            f"name, so give each question its own"
        )
        raise BadUse(msg)
    try:
        asked = pending.asked.get(name)
        if asked is None:
            require_data(question, "question")
            id_ = _question_id(run, step, name, question)
        else:
            id_ = asked.id
        if id_ in answers:
            pending.posed[name] = question
            return answers[id_]
        if asked is None or not is_same_data(asked.question, question):
            require_data(question, "question")
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


def require_data(value: object, root: str) -> None:
    """Refuse what no durable store could keep, whatever this one does.

    Raises:
        NotData: Naming where in it.
    """
    try:
        digest(value)
    except NotData as error:
        msg = f"{place_of_no_data(value, root)}: {error}"
        raise NotData(msg) from error


def is_same_data(one: object, other: object) -> bool:
    """Whether two values are saved as the same data; False if one can't be saved."""
    try:
        return one is other or digest(one) == digest(other)
    except NotData:  # refused later, where it would be saved
        return False


def asker_key(path: RunPath) -> str:
    """Return the key of the child that asks, for an error; empty for a root run."""
    key: Key = path.key
    return "" if path.parent is None else f" (key {brief(key)} of {path.step!r})"
