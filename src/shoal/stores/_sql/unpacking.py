"""Turn rows of a database into the values that a store returns.

Invariants:
- Moving updates from a row into ``history`` copies their encoded text without decoding it, so no
  update is lost if its types are gone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, cast, final

from shoal._events.events import ChildName, Decision, Status, Update
from shoal._limits.flows import Priority
from shoal._state.state import Extend, Operation, Put, PutWithin, Set
from shoal.stores._codec.codec import Codec
from shoal.stores._history import (
    BudgetLevel,
    Completed,
    Entry,
    QuestionAnswered,
    QuestionAsked,
    Rewound,
    Steered,
    StepBegun,
)
from shoal.stores._protocol import Beginning, ChildRecord, FailedChild, RunRecord

from .error_texts import error_in_short
from .rows import FORMS, OPERATIONS, Applied, Begun, Child, History, names_of, spawner_of


@final
class Unpacker:
    """Turns rows into the values that a store returns."""

    def __init__(self, codec: Codec) -> None:
        """Decode with ``codec``."""
        self._decode: Callable[[str], Any] = codec.decode

    def run(self, begun: Begun, status: Status | None, reason: str) -> RunRecord:
        """Return a root run."""
        forked = None
        if begun.forked_from is not None and begun.forked_at is not None:
            forked = begun.forked_from, begun.forked_at
        beginning = Beginning(
            application=begun.application,
            version=begun.version,
            first=self._decode(begun.first),
            after=begun.after,
            visits=cast("Mapping[str, int]", json.loads(begun.visits)),
            forked_from=forked,
            secret=names_of(begun.secret),
            spawned_by=None if begun.spawned_by is None else spawner_of(begun.spawned_by),
            owner=begun.owner or "",
            priority=cast("Priority | None", begun.priority),
        )
        return RunRecord(beginning=beginning, status=status, reason=reason)

    def result(self, text: str) -> Sequence[Operation]:
        """Return the operations of a cached result."""
        return self._update(text).operations

    def child(self, row: Child) -> ChildRecord:
        """Return the record of a child."""
        winner = None
        if row.winner_act is not None and row.winner_key is not None:
            winner = ChildName(row.winner_act, row.winner_key)
        return ChildRecord(
            step=row.step,
            visit=row.visit,
            act=row.act,
            key=row.key,
            position=row.position,
            element=self._decode(row.element),
            digest=row.digest,
            status=cast("Status", row.status),
            value=None if row.value is None else self._decode(row.value),
            applied=row.applied,
            used=bool(row.used),
            reason=row.reason or "",
            winner=winner,
            error=None if row.error is None else self._decode(row.error),
            attempts=row.attempts,
            elapsed=row.elapsed,
            abandoned=bool(row.abandoned),
            crashes=row.crashes,
        )

    def failure(self, row: Child) -> FailedChild:
        """Return a failed child for a list of failures, without decoding its values."""
        return FailedChild(
            step=row.step,
            visit=row.visit,
            act=row.act,
            key=row.key,
            position=row.position,
            error="" if row.error is None else error_in_short(json.loads(row.error)),
            attempts=row.attempts,
            elapsed=row.elapsed,
            applied=row.applied,
        )

    def history(self, rows: Iterable[History], children: Iterable[Applied]) -> list[Entry]:
        """Return the history of a run: its own entries, and the updates that applied children.

        Args:
            rows: The entries, by number; entries of one number in the order of their saves.
            children: The applied children, in the order in which they were applied.
        """
        applied = [self.applied(child) for child in children]
        entries: list[Entry] = []
        at = 0
        for row in rows:
            behind = row.number - (row.kind == "update")
            while at < len(applied) and applied[at].number <= behind:
                entries.append(applied[at])
                at += 1
            entries.append(self._entry(row))
        return entries + applied[at:]

    def _entry(self, row: History) -> Entry:
        match row.kind:
            case "decision":
                winner, winners, reason = self._decode(row.data)
                names = tuple(ChildName(*one) for one in winners)
                return Decision(row.step, ChildName(*winner), names, reason)
            case "completed":
                return Completed(row.step, int(row.data))
            case "rewound":
                return Rewound(row.step, int(row.data))
            case "begun":
                return StepBegun(row.step, self._decode(row.data))
            case "asked":
                return QuestionAsked(row.step, *self._decode(row.data))
            case "answered":
                return QuestionAnswered(*self._decode(row.data))
            case "spent":
                return BudgetLevel(*self._decode(row.data))
            case "steered":
                return Steered(*json.loads(row.data))
            case _:
                return self._update(row.data)

    def _update(self, text: str) -> Update:
        data = self._decode(text)
        operations = tuple(_operation_of(*one) for one in data["do"])
        found, at = tuple(data.get("found", ())), data.get("at", 0)
        return Update(data["number"], data["step"], operations, found, at)

    def applied(self, row: Applied) -> Update:
        """Return the update that applied a child."""
        if row.change is not None:
            return self._update(row.change)
        assert row.form is not None, "it was applied"
        assert row.applied is not None, "it was applied"
        how, field = _form_of(row.form)["applied"]
        value = None if row.value is None else self._decode(row.value)
        operation: Operation
        if how == "within":
            operation = PutWithin(field, row.key, row.act, value, row.position, row.position)
        else:
            operation = Put(field, row.act if how == "act" else row.key, value, row.position)
        return Update(row.applied, row.step, (operation,))

    def own(self, row: Child) -> Update | None:
        """Return a child's own last update; None if none was saved with its end."""
        if row.own is not None:
            return self._update(row.own)
        own = None if row.form is None else _form_of(row.form)["own"]
        if own is None:
            return None
        number, step, field = own
        value = None if row.value is None else self._decode(row.value)
        return Update(number, step, (Set(field, value),))


@lru_cache(FORMS)  # all children of a fan-out have the same
def _form_of(text: str) -> Mapping[str, Any]:
    return json.loads(text)


def outlived(row: Child, codec: Codec) -> list[tuple[bool, History]]:
    """Return the entries of histories that a child's row holds, before it is overwritten.

    These are the parent's update that applied it, marked with True, and the child's own last
    update. Encoded values are copied without decoding them, because their types may be gone.
    """
    value, found = row.value or "null", list[tuple[bool, History]]()
    form: Mapping[str, Any] = {} if row.form is None else _form_of(row.form)
    if row.applied is not None:
        text = row.change
        if text is None:
            how, field = form["applied"]
            key, act, at = codec.encode(row.key), json.dumps(row.act), row.position
            keys = {"put": key, "act": act, "within": f"{key},{act}"}[how]
            more = f",{at}" if how == "within" else ""
            kind = "within" if how == "within" else "put"
            operation = f"[{json.dumps(kind)},{json.dumps(field)},{keys},{value},{at}{more}]"
            text = _update_text(row.applied, operation, row.step)
        found.append((True, History(row.applied, "update", row.step, text)))
    if row.own is not None:
        number, step = json.loads(row.own)["number"], json.loads(row.own)["step"]
        found.append((False, History(number, "update", step, row.own)))
    elif form.get("own") is not None:
        number, step, field = form["own"]
        text = _update_text(number, f'["set",{json.dumps(field)},{value}]', step)
        found.append((False, History(number, "update", step, text)))
    return found


def _update_text(number: int, operation: str, step: str) -> str:
    return f'{{"number":{number},"do":[{operation}],"step":{json.dumps(step)}}}'


def _operation_of(kind: str, *parts: Any) -> Operation:
    if kind == "extend":
        field, values = parts
        return Extend(field, tuple(values))
    return OPERATIONS[kind](*parts)
