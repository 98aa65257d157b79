"""Answers to the questions of a run: which answer belongs to which question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from shoal._engine.progress import unique
from shoal._engine.questions import asker_key, is_same_data, require_data
from shoal._errors.exceptions import BadAnswer, NotData, UnknownQuestion, brief, did_you_mean
from shoal._events.events import Question
from shoal._events.identity import RunPath
from shoal._state.json_schema import Misfit, misfit
from shoal._state.plain import to_json
from shoal.stores._history import QuestionAnswered

LISTED = 10
"""Open questions that an error names: enough to recognise what the run has asked."""

Answers = (
    Mapping[str, object] | Mapping[tuple[str, str], object] | Mapping[str | tuple[str, str], object]
)
"""Answers by (run id, name), or by the name alone where one open question has it."""


def resolve_answers(
    answers: Answers,
    asked: Sequence[Question],
    known: Mapping[str, object],
    run_id: str,
    *,
    has_failed: bool = False,
) -> list[QuestionAnswered]:
    """Find the question that each answer belongs to.

    An answer that was given before, and was not used yet, may be given again, so that a caller that
    doesn't know whether its call has arrived can repeat it. If the run has failed with an answer,
    another one may replace it.

    Args:
        answers: By (run id, name), or name.
        asked: All questions of the steps under way.
        known: Answers that were given before, by the questions' ids.
        run_id: The root run's id.
        has_failed: Whether that run has failed when it was executed last.

    Raises:
        UnknownQuestion: An answer belongs to no question, or to several.
        NotData: An answer can't be saved.
        BadAnswer: An answer isn't one that the schema of its question allows.
    """
    open_ = [one for one in asked if one.id not in known]
    found: dict[str, QuestionAnswered] = {}
    for at, value in answers.items():
        meant = unique(one for one in open_ if at in (one.address, one.name))
        if not meant:
            meant = unique(one for one in asked if at in (one.address, one.name))
            if len(meant) == 1 and is_same_data(known[meant[0].id], kept_answer(meant[0], value)):
                continue
        if len(meant) != 1 or (meant[0].id in known and not has_failed):
            message, why = _why_unknown(at, meant, open_, known, run_id)
            raise UnknownQuestion(message, at, why)
        question = meant[0]
        if question.id in found and is_same_data(found[question.id].value, value):
            continue
        if question.id in found:
            msg = (
                f"run {run_id}: answers= has two for {question.address!r}, one by its name alone; "
                f"leave out one"
            )
            raise UnknownQuestion(msg, at, "the question is answered twice here")
        try:
            require_data(value, "answer")
        except NotData as error:
            msg = f"run {run_id}: the answer to {question.address!r} can't be kept: {error}"
            raise NotData(msg) from error
        wrong = refusal_of(question, value)
        if wrong is not None:
            msg = (
                f"run {run_id}: {brief(value)} is no answer to {question.address!r}: {wrong.text} "
                f"(question.answer_schema says what is)"
            )
            raise BadAnswer(msg, at, wrong.why, wrong.place)
        found[question.id] = QuestionAnswered(question.id, kept_answer(question, value))
    return list(found.values())


class Asked(Protocol):
    """A question, as far as its answer can be judged and given to it."""

    @property
    def path(self) -> RunPath:
        """The run that asks."""
        ...

    @property
    def id(self) -> str:
        """Different for every question that was ever asked."""
        ...

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def answer_schema(self) -> Mapping[str, Any] | None:
        """The JSON schema of its answers; None: any answer is one."""
        ...


def refusal_of(question: Asked, value: object) -> Misfit | None:
    """Return why a value is no answer to a question, as far as its schema says; None if it is."""
    schema = question.answer_schema
    return None if schema is None else misfit(to_json(value), schema)


def kept_answer(question: Asked, value: object) -> object:
    """Return an answer as it is saved: as the JSON that its schema describes, if it has one."""
    return value if question.answer_schema is None else to_json(value)


def _why_unknown(
    at: object,
    meant: Sequence[Question],
    open_: Sequence[Question],
    known: Mapping[str, object],
    run_id: str,
) -> tuple[str, str]:
    """Return why an answer belongs to no question: a text with names and values, and one without.

    The second can be shown to clients.
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
    """Name the first ``LISTED`` questions, and how many more there are."""
    shown = [f"{one.address!r}{asker_key(one.path)}" for one in questions[:LISTED]]
    more = len(questions) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
