"""Find the open questions of a run and its descendants, as the store has them.

No value of a user is decoded: questions are JSON, as the store has it.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from shoal._engine.progress import recorded_questions
from shoal._events.identity import RunPath
from shoal.stores._watching import EntryKind, Inspects, StoredEntry

LOOKED_AT = 50
"""Runs that are looked at: a run may be halted because of its children alone."""
_PART = 1_000
"""Entries of a history that are read at once."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OpenQuestion:
    """A question without an answer."""

    path: RunPath
    """The run that waits for the answer."""
    name: str
    question: object
    """What is asked, as it is stored: plain JSON."""
    id: str
    """As in ``Question.id``."""
    answer_schema: Mapping[str, Any] | None = None
    """As in ``Question.answer_schema``."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """The open questions of a run and its descendants, those of the run itself first."""

    open: Sequence[OpenQuestion] = ()
    is_more: bool = False
    """Whether there may be more: not all halted descendants were looked at."""
    answered: Sequence[RunPath] = ()
    """Runs among those looked at that are halted although their own questions are answered: they
    go on when the run is resumed, unless the process that executes it goes on with them."""


async def questions_of(
    store: Inspects, path: RunPath, *, asking: Sequence[RunPath] = (), limit: int
) -> Questions:
    """Return the first open questions of a run and its descendants.

    Args:
        store: What the store has.
        path: The run.
        asking: Its descendants under way that have halted children. They are not halted themselves,
            so nothing that the store counts leads to them.
        limit: At most so many questions.
    """
    answers = await _answered(store, path.root)
    found, answered, halted = list[OpenQuestion](), list[RunPath](), set[RunPath]()
    row = await store.row(path)
    if row is not None and row.status == "halted":
        halted.add(path)
    waiting = deque([path, *asking])
    for _ in range(LOOKED_AT):
        if not waiting or len(found) > limit:
            break
        at = waiting.popleft()
        asked = await _asked_by(store, at) or (await _recorded(store, at) if at in halted else ())
        opened = [one for one in asked if one.id not in answers]
        # Once each: runs that wait for more of one budget have asked one question.
        known = {one.id for one in found}
        found += [one for one in opened if one.id not in known]
        if asked and not opened and at in halted:
            answered.append(at)
        page = await store.rows(at, status="halted", order="position", limit=LOOKED_AT)
        halted.update(row.path for row in page.rows)
        waiting += [row.path for row in page.rows]
    return Questions(
        open=found[:limit], is_more=len(found) > limit or bool(waiting), answered=answered
    )


async def question_of(store: Inspects, path: RunPath, id_: str) -> OpenQuestion | None:
    """Return the open question of a run that has an id; None if it is gone."""
    if id_ in await _answered(store, path.root):
        return None
    asked = await _asked_by(store, path) or await _recorded(store, path)
    return next((one for one in asked if one.id == id_), None)


async def _asked_by(store: Inspects, path: RunPath) -> Sequence[OpenQuestion]:
    """Return what a run has asked in the step that it is at, answered or not."""
    asked: dict[str, OpenQuestion] = {}
    for entry in await _entries(store, path, ("asked", "completed")):
        if entry.kind == "completed":
            asked.clear()  # the step that asked has ended, so its questions are answered
        else:
            name, question, id_, *more = json.loads(entry.data)
            schema = more[0] if more else None
            asked[id_] = OpenQuestion(
                path=path, name=name, question=question, id=id_, answer_schema=schema
            )
    return [*asked.values()]


async def _recorded(store: Inspects, path: RunPath) -> Sequence[OpenQuestion]:
    """Return the own questions of a halted child as its parent's store has them.

    A child of a fan-out with a store of its own has its history there, and that isn't asked.
    """
    text = None if path.parent is None else await store.text(path, "value")
    try:
        found = recorded_questions(None if text is None else json.loads(text), path)
    except (AttributeError, TypeError, ValueError):  # the value of a child that isn't halted
        return ()
    return [
        OpenQuestion(
            path=path,
            name=one.name,
            question=one.question,
            id=one.id,
            answer_schema=one.answer_schema,
        )
        for one in found
        if one.path == path
    ]


async def _answered(store: Inspects, root: RunPath) -> set[str]:
    """Return the ids of answered questions: the root run's history has all answers."""
    return {json.loads(entry.data)[0] for entry in await _entries(store, root, ("answered",))}


async def _entries(
    store: Inspects, path: RunPath, kinds: Collection[EntryKind]
) -> Sequence[StoredEntry]:
    found: list[StoredEntry] = []
    number: int | None = 0
    while number is not None:
        part, number = await store.entries(path, kinds=kinds, from_number=number, limit=_PART)
        found += part
    return found
