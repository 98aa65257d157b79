"""Find the open questions of a run and its descendants, as the store has them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import cast, final

from shoal._events.identity import RunPath
from shoal.stores._watching import EntryKind, Inspects, StoredEntry
from shoal.watch._queries import Queries

from ._forms import Field, fields_of, schema_of

MOST = 5
"""Questions that a page shows; a form has several elements."""

PARTS = 8
"""Parts of a question that are shown one by one; each takes three elements."""

LOOKED_AT = 50
"""Runs that are looked at, for questions: halted runs may have halted children only."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class OpenQuestion:
    """A question without an answer."""

    path: RunPath
    """The run that waits."""
    name: str
    question: object
    id: str

    @property
    def fields(self) -> Sequence[Field]:
        """The fields of the form for its answer."""
        return fields_of(schema_of(self.question))

    @property
    def has_schema(self) -> bool:
        """Whether it says of what form its answer is."""
        return schema_of(self.question) is not None

    @property
    def parts(self) -> Mapping[str, str]:
        """The parts of a question that is a mapping of short texts and numbers; else nothing."""
        given: object = self.question
        if not isinstance(given, dict) or not self.has_schema or len(given) > PARTS:  # pyright: ignore[reportUnknownArgumentType]
            return {}
        shown = cast("dict[str, object]", given)
        found = {name: part for name, part in shown.items() if name != "schema"}
        if not all(isinstance(part, str | int | float) for part in found.values()):
            return {}
        return {
            name: part if isinstance(part, str) else json.dumps(part)
            for name, part in found.items()
        }

    @property
    def asked(self) -> str:
        """The question itself as text, without the schema of its answer."""
        shown = self.question
        if isinstance(shown, dict) and self.has_schema:
            shown = {name: value for name, value in shown.items() if name != "schema"}  # pyright: ignore[reportUnknownVariableType]
            if len(shown) == 1:  # pyright: ignore[reportUnknownArgumentType]
                [shown] = shown.values()  # pyright: ignore[reportUnknownVariableType]
        return shown if isinstance(shown, str) else json.dumps(shown, indent=2, ensure_ascii=False)


async def open_questions(queries: Queries, path: RunPath) -> tuple[list[OpenQuestion], bool]:
    """Return the first open questions of a run and its descendants, and whether there are more."""
    store = queries.inspected
    answered = await _answered(store, path.root)
    found: list[OpenQuestion] = []
    waiting = [path]
    for _ in range(LOOKED_AT):
        if not waiting or len(found) > MOST:
            break
        at = waiting.pop(0)
        found += [one for one in await _asked_by(store, at) if one.id not in answered]
        page = await queries.children(at, status="halted", order="position", limit=MOST + 1)
        waiting += [row.path for row in page.rows]
    return found[:MOST], len(found) > MOST or bool(waiting)


async def question_of(queries: Queries, path: RunPath, id_: str) -> OpenQuestion | None:
    """Return the open question with an id; None if it is gone."""
    store = queries.inspected
    answered = await _answered(store, path.root)
    return next((q for q in await _asked_by(store, path) if q.id == id_ not in answered), None)


async def _asked_by(store: Inspects, path: RunPath) -> list[OpenQuestion]:
    asked: dict[str, OpenQuestion] = {}
    for entry in await _entries(store, path, ("asked", "completed")):
        if entry.kind == "completed":
            asked.clear()  # the step that asked has ended, so its questions are answered
        else:
            name, question, id_ = json.loads(entry.data)
            asked[id_] = OpenQuestion(path=path, name=name, question=question, id=id_)
    return [*asked.values()]


async def _answered(store: Inspects, root: RunPath) -> set[str]:
    return {json.loads(entry.data)[0] for entry in await _entries(store, root, ("answered",))}


async def _entries(
    store: Inspects, path: RunPath, kinds: Collection[EntryKind]
) -> list[StoredEntry]:
    found: list[StoredEntry] = []
    from_number: int | None = 0
    while from_number is not None:
        part, from_number = await store.entries(
            path, kinds=kinds, from_number=from_number, limit=1000
        )
        found += part
    return found
