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
from operator import itemgetter
from typing import NoReturn, Protocol, TypeVar

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
from shoal.stores._protocol import ChildRecord, NullStore

from .commit import Write, commit
from .disposition import RESTING
from .hedged import claim
from .progress import asks_for_more, recorded_questions
from .publish import out_of_reach
from .run import Run

T = TypeVar("T")


class RecordedChildren(Protocol):
    """The children of a step that earlier executions have recorded; see ``fanout.recorded``."""

    def rest(self) -> Sequence[ChildRecord]:
        """Return the records of the children that have not come up."""
        ...


def is_blocked(run: Run) -> bool:
    """Return whether a question of the current step is open; if so, the attempt is halted.

    A budget's question doesn't count, see ``asks_for_more``.
    """
    questions = run.questions
    if questions is None:
        return False
    if all(map(asks_for_more, questions.still_open(run.config.execution.answers))):
        return False
    questions.begin_attempt()
    questions.is_halting = True
    return True


def is_answered(run: Run) -> bool:
    """Return whether a halted run can go on in this execution, because it has its answers.

    A run that halted here goes on if all that it has asked is answered, and so is all that a graph
    that is a node of it has asked. It doesn't if descendants in a fan-out have asked, or if it
    stops at a breakpoint. One that an earlier execution has left goes on as it would after a
    resume: with an answer to any question, its own or that of a descendant.
    """
    questions = run.questions
    if run.disposition is RESTING:
        answers = run.config.execution.answers
        return any(one.id in answers for one in recorded_questions(run.value, run.path))
    if run.status != "halted" or not run.is_live or questions is None:
        return False
    if questions.still_open(run.config.execution.answers):
        return False
    if not questions.below:
        return bool(questions.asked)
    retained = {} if run.retries is None else run.retries.retained
    nodes = [retained.get(step) for step in questions.below]
    return all(isinstance(node, Run) and is_answered(node) for node in nodes)


async def ask(
    run: Run, step: str, name: str, question: object, schema: Mapping[str, object] | None = None
) -> object:
    """Return the answer to a question that an action of ``run`` asks, or halt; see ``Context.ask``.

    Args:
        run: The run.
        step: Its action.
        name: The name of the question.
        question: The question.
        schema: The JSON schema of its answers; None: any answer is one. The answer that is returned
            may have been given to an earlier program, with another schema.

    Raises:
        Halting: The question has no answer yet.
        NotData: The question can't be saved.
        BadUse: The run has no store, or the attempt has asked another question by that name.
    """
    await checkpoint_if_cancelled()
    subject = f"action {step!r} of run {run.path.id}{asker_key(run.path)}"
    # Before anything is noted: a question that can't be saved could never be answered.
    refuse_unsaved(run, subject, name)
    pending, answers = run.pending_questions(), run.config.execution.answers
    if name in pending.posed and not is_same_data(pending.posed[name], question):
        msg = (
            f"{subject} asks {name!r} twice, and for different things: an answer belongs to the "
            f"name, so give each question its own"
        )
        raise BadUse(msg)
    try:
        asked = pending.asked.get(name)
        if asked is None:
            require_data(question, "question")
            id_ = _question_id(run, step, name, question)
        else:
            # The id of the question as it was first asked, so that an answer to it still counts.
            id_ = asked.id
        if id_ in answers:
            pending.posed[name] = question
            # Also where there is an answer, so that a second question by this name is refused in
            # any attempt.
            if asked is not None and asked.schema != schema:
                # The program has changed since. If the answer no longer fits, another one is held
                # against what is asked today; see
                # test_an_answer_that_no_longer_fits_is_refused_and_can_be_replaced.
                now = asked._replace(schema=schema)
                await out_of_reach(run.config.services, _ask_anew(run, now))
            return answers[id_]
        # An attempt may word the question anew: it keeps its id, and the new words are saved. See
        # test_what_is_asked_may_have_changed_in_the_next_attempt.
        is_worded = asked is not None and is_same_data(asked.question, question)
        if asked is None or not is_worded or asked.schema != schema:
            require_data(question, "question")
            await claim(run)
            # In another task, since a native timeout around `ask` must not interrupt the save.
            asked = QuestionAsked(step, name, question, id_, schema)
            await out_of_reach(run.config.services, pose(run, asked))
    except NotData as error:
        msg = f"{subject} asks {name!r} with a question that can't be kept: {error}"
        raise NotData(msg) from error
    await claim(run)
    pending.posed[name] = question
    pending.is_halting = True
    raise Halting(f"{subject} waits for the answer to {name!r}")


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
        state = run.config.digest(data, run.path.key)
    except NotData:
        # Such a state can't be recognised when it comes back, so the question is a new one.
        return new_run_id()
    return digest([run.path.id, state, number, step, visit, name, question]).hex()


async def pose(run: Run, asked: QuestionAsked) -> None:
    """Save a question, and halt the attempt from then on, whatever interrupts it."""
    pending = run.pending_questions()
    await commit(run, Write(questions=(asked,)))
    # After the save: a question that is not saved must neither halt the attempt nor be listed.
    pending.asked[asked.name] = asked
    pending.is_halting = True


async def _ask_anew(run: Run, asked: QuestionAsked) -> None:
    """Save a question that has an answer, since its schema has changed."""
    await commit(run, Write(questions=(asked,)))
    run.pending_questions().asked[asked.name] = asked


def refuse_unsaved(run: Run, subject: str, name: str) -> None:
    """Refuse a question that nothing would keep until it is answered.

    Raises:
        BadUse: The run, or its root run, has no store.
    """
    config = run.config
    # Both are needed: the root run's store has the answers, the child's own the question.
    for store, why, where in (
        (config.execution.store, "this run has no store", "Application(..., store=...)"),
        (config.store, "this child is kept nowhere", "its fan-out another store= than None"),
    ):
        if isinstance(store, NullStore):
            msg = (
                f"{subject} asks {name!r}, and {why}: nothing would remember the question until "
                f"it is answered. Give it one: {where}"
            )
            raise BadUse(msg)


def halt_for(
    run: Run, step: str, children: Iterable[Run], unreached: RecordedChildren | None = None
) -> NoReturn:
    """Halt ``run``, since children of ``step`` are halted and no other child may go on.

    Args:
        run: The parent.
        step: The step.
        children: Its halted children.
        unreached: Children of an earlier execution that have not come up in this one, which starts
            nothing more. Some may be halted as well.

    Raises:
        Halting: Always.
    """
    halted = [(child.position, child.value) for child in children]
    rest = () if unreached is None else unreached.rest()
    halted += [(one.position, one.value) for one in rest if one.status == "halted"]
    # By position and not by time, so that callers see one order; see
    # test_questions_come_in_order_of_positions_and_not_of_time.
    halted.sort(key=itemgetter(0))
    questions = run.pending_questions()
    questions.below[step] = tuple(
        one for _, value in halted for one in recorded_questions(value, run.path)
    )
    questions.is_halting = True
    # The halt outlives whatever the action makes of the exception.
    raise Halting(f"children of {step!r} in run {run.path.id} wait for answers")


def has_halted(run: Run, error: BaseException) -> bool:
    """Return whether ``error`` is only how an attempt that waits for an answer has ended.

    A real cancellation, a KeyboardInterrupt and the like are not: they must propagate.
    """
    if not run.is_halting or is_fatal(error):
        return False
    # A cancellation that has no scope behind it is one of the action's own, which is no reason.
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
    await absorb_stray_cancel(run.config.services.native_cancels)
    msg = "the attempt has asked a question that is not answered yet"
    raise Halting(msg)


def require_data(value: object, root: str) -> None:
    """Refuse a value that a durable store could not keep, also if this run's store could.

    Raises:
        NotData: It names the place in the value.
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
