"""Turn saves into rows that any database can keep. ``unpacking`` is the way back.

Names of tables, keys as columns and transactions differ between databases and are not here.

Invariants:
- Everything is encoded when a save is handed over, on the event loop. So a value that can't be
  encoded fails the step that made it, and later changes of an object don't change the save.
- A child's result is written once, although it occurs three times: in the child's last update, in
  its outcome, and in the parent's update that applies it. Where the updates follow from the result,
  the row refers to a *form*, which all children of a fan-out share.
- A save takes time and space in proportion to what it changes: it has the items that were added to
  a collection, never the whole collection.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, final

from shoal._errors.exceptions import NotEncodable, brief, note
from shoal._events.events import Status, Update, in_short
from shoal._events.identity import Key, RunPath
from shoal._state.state import Drop, Extend, Increment, Operation, Put, PutWithin, Set
from shoal.stores._codec.codec import Codec
from shoal.stores._history import QuestionAnswered, QuestionAsked, Steered
from shoal.stores._protocol import Batch, Beginning, SavedRun

from .error_texts import with_trace
from .sizes import LARGE, UpdateSizes

FORMS = 1000
"""Forms, and names, that are cached. A program has a few, but forms hold numbers of updates, so a
loop makes new ones with each visit."""

Kind = Literal[
    "update", "decision", "completed", "rewound", "asked", "answered", "begun", "spent", "steered"
]
"""The kind of an entry in the table ``history``."""


@final
class Place(NamedTuple):
    """The place of children: all that execute one act in one visit of a step share it."""

    step: str
    visit: int
    act: str


@final
class Begun(NamedTuple):
    """The start of a root run, as columns."""

    application: str
    version: str
    first: str
    """JSON of the fields of the initial state."""
    after: str | None
    visits: str
    forked_from: str | None
    forked_at: int | None
    secret: str
    """JSON of the names of its secret fields."""
    spawned_by: str | None
    """JSON: the run whose action started it; see ``spawner_text``."""
    spawner: str | None
    """The id of that run."""
    owner: str | None
    """Whose run it is; None: nobody's."""
    priority: str | None
    """How urgent it is; None: that isn't known."""


@final
class History(NamedTuple):
    """One entry in the history of a run, as columns."""

    number: int
    """The number of the update; for other kinds, of the last update before the entry."""
    kind: Kind
    step: str
    data: str


@final
class Child(NamedTuple):
    """A child, as its row has it. Texts are plain unless they are described as JSON."""

    step: str
    visit: int
    act: str
    key: Key
    position: int
    element: str
    """JSON."""
    digest: str
    status: str | None = None
    applied: int | None = None
    used: int = 1
    value: str | None = None
    """JSON; None if the child has no value."""
    form: str | None = None
    """JSON: how its last update, and the parent's update that applied it, follow from the value."""
    change: str | None = None
    """JSON: the parent's update that applied it, if that doesn't follow from the value."""
    own: str | None = None
    """JSON: its own last update, if that doesn't follow from the value."""
    reason: str | None = None
    winner_act: str | None = None
    winner_key: Key | None = None
    error: str | None = None
    """JSON."""
    attempts: int = 1
    elapsed: float = 0.0
    abandoned: int = 0
    crashes: int = 0
    ended_at: float | None = None
    """When its end was saved, if no update applied it. For the others, ``saves`` has the time: one
    row for all children of a save."""
    failed_step: str | None = None
    """The step in which it failed, if it has several."""


@final
class Applied(NamedTuple):
    """The columns of a child's row from which the parent's update that applied it is made."""

    step: str
    act: str
    key: Key
    position: int
    applied: int | None
    value: str | None
    form: str | None
    change: str | None


@final
class Rows(NamedTuple):
    """All rows that one save writes."""

    root: str
    """The id of the root run."""
    holder: str
    """The execution that saves."""
    path: tuple[tuple[Place, Key], ...]
    """The run's ancestors and itself, from the root's child down; empty for a root run."""
    run: Child | None
    """The row of the run itself, as a child under way; None for a root run."""
    begun: Begun | None
    status: Status | None
    """How the execution of a root run ended; None if it has not."""
    reason: str
    error: str | None
    """A short text of the error that a root run failed with."""
    afresh: bool
    history: Sequence[History]
    children: Sequence[Child]
    at: float
    """The time of the save, in seconds since 1970."""
    applied: int | None
    """The number of the last update that applies a child; None if none does."""


@final
class Packed(NamedTuple):
    """The encoded result of a succeeded child, without the parent's update that applies it."""

    element: str
    value: str | None
    own: str | None
    """JSON of its last update; None if the update follows from the value by ``form``."""
    form: tuple[int, str, str] | None
    """The number of the last update, its step and its field, if it only sets that field to the
    value."""


@final
class Packer:
    """Turns saves into rows."""

    def __init__(self, codec: Codec, sizes: UpdateSizes) -> None:
        """Encode with ``codec``, and refuse updates that are too large for ``sizes``."""
        self._encode: Callable[[object, str], str] = codec.encode
        self._sizes = sizes
        # Texts of at most so many characters need no check of their size: UTF-8 has at most 4 bytes
        # for each.
        self._small = min(LARGE, sizes.max_update) // 4
        # A cache: all children of one fan-out have the same form.
        self._forms: dict[tuple[object, ...], str] = {}
        # A cache of names of steps and acts that every database accepts: each save names some.
        self._names = set[str]()

    def pack(self, child: SavedRun) -> Packed:
        """Encode the result of a child.

        Raises:
            NotEncodable: A part of it can't be saved.
            UpdateTooLarge: It is too large.
        """
        value, update = child.value, child.last_update
        element = self._encode(child.element, "element")
        form: tuple[int, str, str] | None = None
        own: str | None = None
        encoded: str | None = None
        if update is not None:
            operations = update.operations
            first = operations[0]
            if len(operations) == 1 and type(first) is Set and first.value is value:
                form = update.number, update.step, first.field
                encoded = self._encode(value, f"state[{first.field!r}]")
            else:
                own = self._update(update)
                self._check(own, child.path, update.step)
        if encoded is None and value is not None:
            encoded = self._encode(value, "value")
        if encoded is not None and len(encoded) > self._small:  # as `_check` asks: saves a call
            self._check(encoded, child.path, "" if update is None else update.step)
        return Packed(element, encoded, own, form)

    def save(self, batch: Batch) -> Rows:
        """Encode a save.

        Raises:
            NotEncodable: A part of it can't be saved.
            UpdateTooLarge: An update is too large.
        """
        run, updates, applied = batch.run, batch.updates, batch.applied
        path = run.path
        if batch.begun is not None:
            self._check_names(batch.begun.application, batch.begun.version)
        if batch.step_completed is not None:
            self._check_names(batch.step_completed)
        for update in updates:
            if update.step not in self._names:
                self._check_names(update.step)
        if path.step not in self._names or path.act not in self._names:
            self._check_names(path.step, path.act)
        children: list[Child] = []
        plain, at, last = updates, time.time(), None
        if applied or batch.unapplied:
            plain = updates[len(applied) :]
            children = [
                self._ended(child, update, None)
                for child, update in zip(applied, updates, strict=False)
            ]
            last = children[-1].applied if children else None
            children += [self._ended(child, None, at) for child in batch.unapplied]
        is_root = path.parent is None
        return Rows(
            root=path.root.id,
            holder=batch.holder,
            path=() if is_root else chain(path),
            run=None if is_root else self._under_way(run),
            begun=None if batch.begun is None else self._begun(batch.begun),
            status=batch.ended,
            reason=_clean(run.reason) if is_root and batch.ended is not None else "",
            error=_failure(run) if is_root and batch.ended == "failed" else None,
            afresh=batch.afresh,
            history=self._history(batch, plain),
            children=children,
            at=at,
            applied=last,
        )

    def _check_names(self, *names: str) -> None:
        """Refuse names that some database can't store, before they reach the writer.

        There they would fail the transaction, and with it the saves of other runs.
        """
        for name in names:
            if _clean(name) != name:
                msg = (
                    f"the name {name!r}, of a step, an act, an application or its version, holds "
                    f"half a surrogate pair or a NUL, which databases can't store in names: choose "
                    f"another name; values and keys may hold both"
                )
                raise NotEncodable(msg)
        if len(self._names) > FORMS:
            self._names.clear()
        self._names.update(names)

    def result(self, operations: Sequence[Operation]) -> str:
        """Encode the result of an action for the cache.

        Raises:
            NotEncodable: A part of it can't be saved.
            UpdateTooLarge: It is too large.
        """
        text = self._update(Update(0, "", tuple(operations)))
        if len(text) > self._small:
            self._sizes.check(text, "the result of an action with cache=")
        return text

    def _history(self, batch: Batch, plain: Sequence[Update]) -> list[History]:
        rows: list[History] = []
        updates, rewound, completed = batch.updates, batch.rewound, batch.step_completed
        before = updates[0].number - 1 if updates else batch.before
        last = updates[-1].number if updates else batch.before
        if rewound is not None:
            rows.append(History(before, "rewound", rewound.step, str(rewound.visit)))
        if batch.step_begun is not None:
            step, declared = batch.step_begun
            text = self._encode(declared, "the declaration of a fan-out")
            rows.append(History(before, "begun", step, text))
        for update in plain:
            text = self._update(update)
            self._check(text, batch.path, update.step)
            rows.append(History(update.number, "update", update.step, text))
        decision = batch.decision
        if decision is not None:
            data = [list(decision.winner), list(map(list, decision.winners)), decision.reason]
            rows.append(History(last, "decision", decision.step, self._encode(data, "decision")))
        if completed is not None:
            rows.append(History(last, "completed", completed, str(batch.before)))
        for one in batch.questions:
            if isinstance(one, QuestionAsked):
                rows.append(self._asked(last, one))
                self._check(rows[-1].data, batch.path, one.step)
            else:
                rows.append(self._answered(last, one))
                self._sizes.check(rows[-1].data, f"an answer to a question of run {batch.path.id}")
        for level in batch.spent:
            text = self._encode([*level[:-1], dict(level.by)], "what is spent of a budget")
            rows.append(History(last, "spent", "", text))
        rows += [steered_row(last, one) for one in batch.steered]
        return rows

    def steered(self, run_id: str, entries: Iterable[Steered | QuestionAnswered]) -> list[History]:
        """Encode entries that a run gets while no process executes it; their number is 0.

        Raises:
            NotEncodable: An answer can't be saved.
            UpdateTooLarge: It is too large.
        """
        rows: list[History] = []
        for one in entries:
            if isinstance(one, Steered):
                rows.append(steered_row(0, one))
            else:
                rows.append(self._answered(0, one))
                self._sizes.check(rows[-1].data, f"an answer to a question of run {run_id}")
        return rows

    def _asked(self, number: int, asked: QuestionAsked) -> History:
        question = self._encode(asked.question, "question")
        name = self._encode(asked.name, "the name of a question")
        schema = "" if asked.schema is None else f",{self._encode(asked.schema, 'schema')}"
        data = f"[{name},{question},{json.dumps(asked.id)}{schema}]"
        return History(number, "asked", asked.step, data)

    def _answered(self, number: int, answered: QuestionAnswered) -> History:
        data = f"[{json.dumps(answered.id)},{self._encode(answered.value, 'answer')}]"
        return History(number, "answered", "", data)

    def _begun(self, begun: Beginning) -> Begun:
        run_id, number = begun.forked_from or (None, None)
        spawner = begun.spawned_by
        return Begun(
            application=begun.application,
            version=begun.version,
            first=self._encode(dict(begun.first), "state"),
            after=begun.after,
            visits=json.dumps(dict(begun.visits)),
            forked_from=run_id,
            forked_at=number,
            secret=json.dumps(sorted(begun.secret)),
            spawned_by=None if spawner is None else spawner_text(*spawner),
            spawner=None if spawner is None else spawner[0].id,
            owner=begun.owner or None,
            priority=begun.priority,
        )

    def _under_way(self, run: SavedRun) -> Child:
        path = run.path
        return Child(
            path.step,
            path.visit,
            path.act,
            path.key,
            run.position,
            self._encode(run.element, "element"),
            run.digest,
            crashes=run.crashes,
        )

    def _ended(self, child: SavedRun, update: Update | None, at: float | None) -> Child:
        """Make the row of a child that has ended.

        Args:
            child: The child.
            update: The update that applied it, if any.
            at: When it ended, if no update applied it.
        """
        path, status = child.path, child.status
        if path.step not in self._names or path.act not in self._names:
            self._check_names(path.step, path.act)
        failed_step = child.step if status == "failed" and child.step != path.act else None
        packed = child.packed if status == "succeeded" else None
        if not isinstance(packed, Packed):  # the child's own store, of another kind, has packed it
            packed = self.pack(child) if status == "succeeded" else self._what_is_left(child)
        form: str | None = None
        change: str | None = None
        if update is not None:
            put = _put_of(child, path, update)
            if put is not None:
                form = self._form(put, packed.form)
            else:
                change = self._update_for(update, path)
        if form is None and packed.form is not None:
            form = self._form(None, packed.form)
        winner = child.winner
        return Child(
            path.step,
            path.visit,
            path.act,
            path.key,
            child.position,
            packed.element,
            child.digest,
            "skipped" if status is None else status,
            None if update is None else update.number,
            int(child.used),
            packed.value,
            form,
            change,
            packed.own,
            _clean(child.reason) if child.reason else None,
            None if winner is None else winner.act,
            None if winner is None else winner.key,
            self._error(child.error) if isinstance(child.error, Exception) else None,
            child.attempts,
            child.elapsed,
            int(child.abandoned),
            child.crashes,
            at,
            failed_step,
        )

    def _error(self, error: Exception) -> str:
        return with_trace(self._encode(error, "error"), error)

    def _what_is_left(self, child: SavedRun) -> Packed:
        """Encode a child that did not succeed, perhaps because its element can't be encoded."""
        try:
            element = self._encode(child.element, "element")
        except NotEncodable:  # the child failed for this reason; its error says so
            element = "null"
        value = None if child.value is None else self._encode(child.value, "value")
        update = child.last_update
        return Packed(element, value, None if update is None else self._update(update), None)

    def _form(self, put: tuple[str, str] | None, own: tuple[int, str, str] | None) -> str:
        known = self._forms.get((put, own))
        if known is None:
            if len(self._forms) > FORMS:
                self._forms.clear()
            known = self._forms[put, own] = json.dumps({"applied": put, "own": own})
        return known

    def _update_for(self, update: Update, child: RunPath) -> str:
        try:
            text = self._update(update)
            self._check(text, child, update.step)
        except Exception as error:
            note(error, f"shoal: in the update of step {update.step!r} for key {brief(child.key)}")
            raise
        return text

    def _update(self, update: Update) -> str:
        operations = [_operation(one) for one in update.operations]
        data: dict[str, object] = {"number": update.number, "do": operations}
        data["step"] = update.step
        if update.discovered:
            data["found"], data["at"] = list(update.discovered), update.discovered_at
        try:
            return self._encode(data, "update")
        except NotEncodable:
            return self._in_parts(update)

    def _in_parts(self, update: Update) -> str:
        """Encode an update value by value, so that an error names the value as users know it.

        The nesting depth of each value is counted from the value, too, and not from the update.
        """
        operations = ",".join(map(self._operation_in_parts, update.operations))
        step = self._encode(update.step, "step")
        text = f'{{"number":{update.number},"do":[{operations}],"step":{step}'
        if update.discovered:
            found = self._list(update.discovered, "what grow returned")
            text += f',"found":{found},"at":{update.discovered_at}'
        return f"{text}}}"

    def _operation_in_parts(self, operation: Operation) -> str:
        texts = [self._encode(_NAMES[type(operation)], "operation")]
        for path, part in _parts(operation):
            is_list = isinstance(operation, Extend) and part is operation.values
            texts.append(self._list(part, path) if is_list else self._encode(part, path))
        return f"[{','.join(texts)}]"

    def _list(self, values: Iterable[object], path: str) -> str:
        texts = [self._encode(value, f"{path}[{at}]") for at, value in enumerate(values)]
        return f"[{','.join(texts)}]"

    def _check(self, text: str, path: RunPath, step: str) -> None:
        if len(text) > self._small:
            child = f", key {brief(path.key)} of {path.step!r}" if path.parent is not None else ""
            self._sizes.check(text, f"the update of step {step!r} of run {path.id}{child}")


def spawner_text(path: RunPath, step: str) -> str:
    """Return the JSON of a run and a step of it: what started a root run."""
    links = [[*place, _plain(key)] for place, key in chain(path)]
    root = path.root
    data = {"run": root.id, "application": root.act, "path": links, "step": step}
    return json.dumps(data)


def spawner_of(text: str) -> tuple[RunPath, str]:
    """Return the run and the step that ``spawner_text`` has described."""
    data: dict[str, Any] = json.loads(text)
    path = RunPath(run_id=data["run"], act=data["application"])
    for step, visit, act, key in data["path"]:
        name: Key = int(key["int"], 0) if isinstance(key, dict) else key  # pyright: ignore[reportUnknownArgumentType] # as written below
        path = RunPath(parent=path, step=step, visit=visit, act=act, key=name)
    return path, data["step"]


def _plain(key: Key) -> object:
    """Return a key as JSON has it. Not every reader takes integers of any length."""
    if isinstance(key, int) and key.bit_length() > 63:  # noqa: PLR2004 # more than an int64 has
        return {"int": hex(key)}
    return key


def names_of(secret: str) -> frozenset[str]:
    """Return the names of the secret fields from their column."""
    return frozenset(json.loads(secret))


def _failure(run: SavedRun) -> str | None:
    return None if run.error is None else _clean(in_short(run.error))


def _clean(text: str) -> str:
    """Escape the characters that databases refuse: halves of surrogate pairs, and NUL."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def chain(path: RunPath) -> tuple[tuple[Place, Key], ...]:
    links: list[tuple[Place, Key]] = []
    at = path
    while at.parent is not None:
        links.append((Place(at.step, at.visit, at.act), at.key))
        at = at.parent
    return tuple(reversed(links))


def _put_of(child: SavedRun, path: RunPath, update: Update) -> tuple[str, str] | None:
    """Return how an update follows from the value of the child that it applies; None if not.

    Values are compared by identity: an equal value of another type would be decoded as the child's.
    """
    operations = update.operations
    if len(operations) != 1 or update.discovered or update.step != path.step:
        return None
    first = operations[0]
    if child.status != "succeeded":
        return None
    position = child.position
    if type(first) is Put:
        field, key, value, place = first
        if value is child.value and place == position:
            if key is path.key:
                return "put", field
            if key is path.act:
                return "act", field
    elif (
        type(first) is PutWithin
        and first.value is child.value
        and first.position == position
        and first.inner_position == position
        and first.key is path.key
        and first.inner_key is path.act
    ):
        return "within", first.field
    return None


_NAMES: dict[type, str] = {
    Set: "set",
    Extend: "extend",
    Put: "put",
    PutWithin: "within",
    Increment: "add",
    Drop: "drop",
}
OPERATIONS: dict[str, Callable[..., Operation]] = {name: kind for kind, name in _NAMES.items()}


def _operation(operation: Operation) -> list[object]:
    kind = _NAMES[type(operation)]
    if isinstance(operation, Extend):
        return [kind, operation.field, list(operation.values)]
    return [kind, *operation]


def _parts(operation: Operation) -> Iterator[tuple[str, Any]]:
    """Yield the parts of an operation, each with its place in the state for messages."""
    path = place = f"state[{operation.field!r}]"
    match operation:
        case Put(_, key):
            place = f"{path}[{brief(key)}]"
        case PutWithin(_, key, inner_key):
            place = f"{path}[{brief(key)}][{brief(inner_key)}]"
        case _:  # the other operations have no inner place
            pass
    for name, part in zip(operation._fields, operation, strict=True):
        yield f"a key of {path}" if name in ("key", "inner_key") else place, part


def steered_row(number: int, one: Steered) -> History:
    """Return the row of an entry that says how a run was steered."""
    data = json.dumps([one.what, one.by, one.at, dict(one.arguments)])
    return History(number, "steered", "", data)
