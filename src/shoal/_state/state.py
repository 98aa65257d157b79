"""``State``, and the updates that lead from one state to the next.

Invariants:
- A state never changes. Every method returns a new state that remembers the operations which made
  it, so that an update, not a copy of the whole state, is saved and published.
- A state narrowed to an action shows the fields that the action reads (and those it has written
  itself) and takes the fields that it declares to write. Anything else is an error that names the
  action and the field.
- No bookkeeping lives among the user's fields.
- A secret field is read like any other. Showing, copying or pickling a state leaves it out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Collection, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, NoReturn, Protocol, cast, final

from shoal._errors.exceptions import (
    BadResult,
    MissingField,
    StateError,
    UndeclaredRead,
    UndeclaredWrite,
    brief,
    did_you_mean,
    kind_of,
)

from .collections import Growable, PositionedList, StateList, StateMap, growable
from .plain import HasPlainForm, to_json, to_plain
from .secrets import Secret, boxed, without_secrets

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    S = TypeVar("S", default=Any)
    S_co = TypeVar("S_co", covariant=True)
else:
    from typing import TypeVar

    S = TypeVar("S")
    S_co = TypeVar("S_co", covariant=True)

# Operations are named tuples, not frozen dataclasses: one is made per child of a fan-out, and a
# frozen dataclass takes three times as long to make. Calls of their classes are Python functions'.
as_named: Any = tuple.__new__  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]


@final
class Set(NamedTuple):
    """Give a field a value, in place of its value so far."""

    field: str
    value: object


@final
class Extend(NamedTuple):
    """Add values at the end of a list field."""

    field: str
    values: tuple[object, ...]


@final
class Put(NamedTuple):
    """Give a key of a mapping field a value; ``position`` says where it stands among the others."""

    field: str
    key: object
    value: object
    position: float | None = None


@final
class PutWithin(NamedTuple):
    """Put a value one level down: into the mapping under ``key``, which is made if missing."""

    field: str
    key: object
    inner_key: object
    value: object
    position: float | None = None
    """Where ``key`` stands among the others."""
    inner_position: float | None = None
    """Where ``inner_key`` stands in the mapping under ``key``."""


@final
class Increment(NamedTuple):
    """Add to a number."""

    field: str
    by: float


@final
class Drop(NamedTuple):
    """Remove a field."""

    field: str


Operation = Set | Extend | Put | PutWithin | Increment | Drop
"""One change to one field."""


@final
@dataclass(frozen=True, slots=True)
class FieldAccess:
    """The fields of a state that one action may read and write."""

    action: str
    reads: frozenset[str]
    writes: frozenset[str]
    # Every call of an action writes the same fields, so this saves making an access for each.
    _wider: dict[str, FieldAccess] = dataclasses.field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __reduce__(self) -> tuple[Any, ...]:
        # Without the others: what is sent to a worker must not depend on what was called before.
        return FieldAccess, (self.action, self.reads, self.writes)

    def reading(self, name: str) -> FieldAccess:
        """Return the access with the right to read one more field, which the action has written."""
        wider = self._wider.get(name)
        if wider is None:
            wider = FieldAccess(self.action, self.reads | {name}, self.writes)
            self._wider[name] = wider
        return wider


class _Every(frozenset[str]):
    __slots__ = ()

    def __contains__(self, field: object) -> bool:
        return True


EVERY_FIELD: frozenset[str] = _Every()
"""The writes of a state that is no run's state: what is made of it is given to children."""


class _Derivation(NamedTuple):
    """The operations that led here from a base state: a linked list, newest first."""

    base: State
    operation: Operation
    before: _Derivation | None


class Model(Protocol[S_co]):
    """A schema, as a typed state knows it."""

    name: str

    def build(self, data: Mapping[str, object]) -> S_co:
        """Make an instance of the user's model from the fields of a state."""
        ...


@final
class State(HasPlainForm, Mapping[str, Any], Generic[S]):
    """An immutable mapping of field names to values.

    Its methods return new states and leave this one as it is. Treat values as immutable too. Use
    ``append``, ``extend`` and ``put`` for collections that grow: a thousand of them in a row cost
    a thousand times one, because the collections behind them share structure.

    An action that may read a *secret* field reads it like any other. A secret is never saved,
    given to hooks, shown or pickled, nor is it in ``to_plain()``; a run that is resumed must be
    given it again. It stays secret in every state that is made from this one.

    Examples:
        >>> state = State({"count": 1}).increment(count=2).append(log="counted")
        >>> state["count"], state["log"]
        (3, ['counted'])
        >>> State({"url": "https://example.org", "token": "abc-123"}, secret={"token"})
        State({'url': 'https://example.org', 'token': <secret>})
    """

    __module__ = "shoal"  # pickles and stored values name it so, wherever it is defined

    __slots__ = ("_data", "_derivation", "_model", "_access")

    if TYPE_CHECKING:  # at run time they would be looked up in the module that __module__ names
        _data: Mapping[str, object]
        _model: Model[S] | None  # None unless the state's application has a model
        # None: a state outside of actions, which may read and write every field.
        _access: FieldAccess | None
        # None: a base, on which no operation was done.
        _derivation: _Derivation | None

    def __init__(
        self,
        fields: Mapping[str, object] | None = None,
        /,
        *,
        secret: Collection[str] = (),
        **more: object,
    ) -> None:
        """Make a state of ``fields`` and ``more``.

        Args:
            fields: Field names and their values. The secrets of a state stay secret.
            secret: Names of fields that are secret.
            more: Fields, as keywords.

        Raises:
            StateError: A field name is not a string, or ``secret`` names a field that is missing.
        """
        data = {**({} if fields is None else held(fields)), **more}
        for name in data:
            _check_name(name)
        self._data = boxed(data, _secret_names(secret, data)) if secret else data
        self._access = self._derivation = self._model = None

    if not TYPE_CHECKING:  # type checkers would take any attribute to exist

        def __getattr__(self, name):  # noqa: ANN001, ANN204
            msg = f"a state has no attribute {name!r}; its fields are items: state[{name!r}]"
            raise AttributeError(msg, name=name, obj=self)

    # -- changing -----------------------------------------------------------------------------

    def update(self, fields: Mapping[str, object] | None = None, /, **more: object) -> State[S]:
        """Return a state in which each named field has the given value."""
        state: State[S] = self
        changes = more if fields is None else {**held(fields), **more}
        for field, value in changes.items():
            # A secret field stays secret, whatever it is set to.
            kept = Secret(value) if type(self._data.get(field)) is Secret else value
            state = state._derive(Set(field, kept), kept)
        return state

    def append(self, /, **items: object) -> State[S]:
        """Return a state with each item at the end of the list field that its keyword names.

        A missing field starts as an empty list.

        Raises:
            StateError: The field is not a list.
        """
        state: State[S] = self
        for field, item in items.items():
            state = state._extend(field, (item,), "append")
        return state

    def extend(self, /, **items: Iterable[object]) -> State[S]:
        """Return a state with all the items at the end of the list field that the keyword names.

        A missing field starts as an empty list.

        Raises:
            StateError: The field is not a list, or the items are not an iterable (or a string).
        """
        state: State[S] = self
        for field, more in items.items():
            if not isinstance(more, Iterable) or isinstance(more, str | bytes):
                self._refuse("extend", field, "an iterable of items for", more)
            state = state._extend(field, tuple(more), "extend")
        return state

    def put(
        self, field: str, key: object, value: object, position: float | None = None
    ) -> State[S]:
        """Return a state in which ``key`` of the mapping in ``field`` has ``value``.

        A missing field starts as an empty mapping.

        Args:
            field: The field that holds the mapping.
            key: Any hashable.
            value: The new value of the key.
            position: Where the key stands among the others when the mapping is read. Without it,
                a new key stands last and a known key keeps its place.

        Raises:
            StateError: The field is not a mapping.
        """
        found = self._current(field, {})
        try:
            hash(key)
        except TypeError:
            self._refuse("put", field, "a hashable key for", key)
        match growable(found):
            case StateMap() as mapping:
                after: object = mapping.put(key, value, position)
            case PositionedList() as values if isinstance(key, int):
                after = values.put_all(((key, value, position),))
            case _:
                self._refuse("put", field, "a mapping in", found)
        return self._derive(Put(field, key, value, position), after)

    def _put_within(self, operation: PutWithin) -> State[S]:
        after = put_within(self._current(operation.field, {}), operation)
        if after is None:
            found = self._current(operation.field, {})
            self._refuse("put", operation.field, "a mapping of mappings in", found)
        return self._derive(operation, after)

    def increment(self, /, **by: float) -> State[S]:
        """Return a state with each named number raised by the given amount.

        A missing field starts at 0.

        Raises:
            StateError: The field or the amount is not a number.
        """
        state: State[S] = self
        for field, amount in by.items():
            number = self._current(field, 0)
            for operand in (number, amount):
                if not isinstance(operand, int | float) or isinstance(operand, bool):
                    self._refuse("increment", field, "a number for", operand)
            state = state._derive(Increment(field, amount), cast("float", number) + amount)
        return state

    def drop(self, *fields: str) -> State[S]:
        """Return a state without the named fields. Missing fields are ignored."""
        state: State[S] = self
        for field in fields:
            state = state._derive(Drop(field))
        return state

    def _extend(self, field: str, items: tuple[object, ...], verb: str) -> State[S]:
        found = self._current(field, [])
        match growable(found):
            case StateList() as values:
                after = values.extend(items)
            case PositionedList() as values:
                # A plain list from now on, in order of appending: appended items have no position.
                after = StateList[Any](values).extend(items)
            case _:
                self._refuse(verb, field, "a list in", found)
        return self._derive(Extend(field, items), after)

    def _current(self, field: str, missing: object) -> object:
        """Return the value that an operation changes. A declared write needs no right to read."""
        self._check_write(field)
        return self._data.get(field, missing)

    def _refuse(self, verb: str, field: str, wanted: str, found: object) -> NoReturn:
        msg = f"{verb} needs {wanted} field {field!r}, and found {_brief(found)}"
        raise StateError(msg)

    def _check_write(self, field: str) -> None:
        _check_name(field)
        access = self._access
        if access is not None and field not in access.writes:
            msg = (
                f"action {access.action!r} writes field {field!r}, which it does not declare; "
                f"add it to writes=[...] (declared: {_names(access.writes)})"
            )
            raise UndeclaredWrite(msg)

    def _derive(self, operation: Operation, *value: object) -> State[S]:
        """Return the state after ``operation``. ``value`` is the new value; without it, none."""
        field = operation.field
        self._check_write(field)
        data = dict(self._data)
        if value:
            data[field] = value[0]
        else:
            data.pop(field, None)
        access = self._access
        if access is not None and field not in access.reads:  # an action may read its own writes
            access = access.reading(field)
        before = self._derivation
        base = self if before is None else before.base
        derived = make_state(data, access, _Derivation(base, operation, before))
        derived._model = self._model
        return derived

    # -- reading ------------------------------------------------------------------------------

    def __getitem__(self, field: str) -> Any:  # an untyped state holds values of any type
        access = self._access
        if access is not None and field not in access.reads:
            msg = (
                f"action {access.action!r} reads field {field!r}, which it does not declare; "
                f"add it to reads=[...] (declared: {_names(access.reads)})"
            )
            raise UndeclaredRead(msg)
        try:
            value = self._data[field]
        except KeyError:
            subject = "" if access is None else f" that action {access.action!r} reads"
            msg = f"the state has no field {field!r}{subject} (it has: {_names(self)})"
            raise MissingField(msg) from None
        return value.value if type(value) is Secret else value

    def __iter__(self) -> Iterator[str]:
        access = self._access
        if access is None:
            return iter(self._data)
        return (field for field in self._data if field in access.reads)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"State({held(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return State, (without_secrets(held(self)),)

    @property
    def data(self) -> S:
        """The fields as an instance of the application's model; without one, as a plain dict.

        Made anew, and checked as a whole, at each access. The instance has the secret fields too,
        because it can't be made without them; the dict doesn't.

        Raises:
            StateError: The state is narrowed to an action, or lacks a field of the model.
            InvalidState: The model's own validators refuse the fields.
        """
        access = self._access
        if access is not None:
            msg = (
                f"action {access.action!r} sees only a part of the state, and a model needs all "
                f"of it; read its fields: state[...]"
            )
            raise StateError(msg)
        model = self._model
        if model is None:
            return cast("S", to_plain(without_secrets(held(self))))
        return model.build(self._data)

    def to_plain(self) -> dict[str, Any]:
        """Copy the state into what ``json.dumps`` writes: dicts, lists, strings, numbers.

        Secret fields are left out. Collections, states, and the errors that ``errors_into``
        collects become dicts and lists, as do dataclasses, models, tuples and sets; times become
        text as in ISO 8601, durations seconds, bytes base64, infinite numbers None, and keys
        strings. An object of any other type becomes a short text. For the values themselves, use
        ``data`` or ``dict(state)``.
        """
        return {field: to_json(value) for field, value in without_secrets(held(self)).items()}


def make_state(
    data: Mapping[str, object],
    access: FieldAccess | None = None,
    derivation: _Derivation | None = None,
) -> State:
    """Make a state on ``data`` itself, without a copy: the caller must never change it again."""
    state = State.__new__(State)
    state._data = data
    state._access = access
    state._derivation = derivation
    state._model = None  # set also if there is none: each miss would call `State.__getattr__`
    return state


def held(fields: Mapping[str, object]) -> Mapping[str, object]:
    """Return fields as runs hold them: the secrets of a state in their boxes."""
    if not isinstance(fields, State):
        return fields
    state = cast("State[Any]", fields)
    return {field: state._data[field] for field in state}


def typed(state: State, model: Model[S]) -> State[S]:
    """Return ``state`` with ``model``, of which its ``data`` makes instances."""
    held = cast("State[S]", make_state(state._data))
    held._model = model
    return held


@final
class Change:
    """The change that one action (or one reducer call) made to its state."""

    __slots__ = ("_operations", "dropped", "values")

    def __init__(
        self,
        operations: tuple[Operation, ...] | None,
        values: Mapping[str, object],
        dropped: tuple[str, ...] = (),
    ) -> None:
        """With ``operations`` None it gives fields these values, and nothing else."""
        self._operations = operations
        self.values: Mapping[str, object] = values
        """The values of the changed fields afterwards."""
        self.dropped: tuple[str, ...] = dropped
        """Changed fields that are missing afterwards."""

    @property
    def operations(self) -> tuple[Operation, ...]:
        """The operations, made when they are asked for: of most children nothing saves them."""
        if self._operations is None:
            values = self.values.items()
            self._operations = tuple([as_named(Set, one) for one in values])
        return self._operations

    def applied_to(self, data: Mapping[str, object]) -> Mapping[str, object]:
        """Return ``data`` after the change. Valid only for the data that the change was made on."""
        if not self.values and not self.dropped:
            return data
        after = {**data, **self.values}
        for field in self.dropped:
            after.pop(field, None)
        return after


NO_CHANGE = Change((), {})


def change_between(base: State, result: object, subject: str, name: str = "") -> Change:
    """Return the change that led from ``base`` to ``result``, which ``subject`` has returned.

    Raises:
        BadResult: ``result`` is not a State made from ``base``.
    """
    if not isinstance(result, State):
        subject = f"{subject} {name!r}" if name else subject  # only for messages
        refuse_awaitable(result, subject)
        hint = "return state.update(...), or the state as it was"
        if isinstance(result, tuple) and State in map(type, cast("Sequence[object]", result)):
            hint = "return the state alone; a result besides it, as with Burr, has no place here"
        msg = (
            f"{subject} returned {_brief(cast('object', result))}, but it takes the state and so "
            f"must return one: {hint}"
        )
        raise BadResult(msg)
    if result is base:
        return NO_CHANGE
    # Compared by identity: an equal state made elsewhere has no operations to save.
    link = result._derivation
    if link is None or link.base is not base:
        subject = f"{subject} {name!r}" if name else subject
        msg = (
            f"{subject} returned a State that was not made from the one it was given, so its "
            "changes can't be known: return state.update(...) of the state passed in"
        )
        raise BadResult(msg)
    if link.before is None and link.operation.field in result._data:
        # One operation, as most actions do.
        operation = link.operation
        return Change((operation,), {operation.field: result._data[operation.field]})
    operations: list[Operation] = []
    while link is not None:
        operations.append(link.operation)
        link = link.before
    operations.reverse()
    return _change_to(result._data, tuple(operations))


def change_of(data: Mapping[str, object], operations: Sequence[Operation]) -> Change:
    """Return the change that ``operations`` make on ``data``."""
    return _change_to(replay(make_state(data), operations)._data, tuple(operations))


def _change_to(after: Mapping[str, object], operations: tuple[Operation, ...]) -> Change:
    fields = dict.fromkeys(operation.field for operation in operations)
    return Change(
        operations,
        {field: after[field] for field in fields if field in after},
        tuple(field for field in fields if field not in after),
    )


def refuse_awaitable(result: object, subject: str) -> None:
    """Raise if a plain function returned an awaitable; close it if it is a coroutine.

    Raises:
        BadResult: ``result`` is an awaitable.
    """
    if isinstance(result, Awaitable):
        if isinstance(result, Coroutine):
            # Closed, or Python would warn that the coroutine was never awaited.
            cast("Coroutine[Any, Any, Any]", result).close()
        msg = (
            f"{subject} is a plain function and returned something to be awaited; "
            f"only actions may be coroutine functions, declared as such with async def"
        )
        raise BadResult(msg)


def put_within(collection: object, operation: PutWithin) -> Growable | None:
    """Return ``collection`` after the operation; None if it is no mapping of mappings."""
    _, key, inner_key, value, position, inner_position = operation
    outer = growable(collection)
    if isinstance(outer, StateMap):
        inner = growable(outer.get(key, {}))
    elif isinstance(outer, PositionedList) and isinstance(key, int):
        inner = growable(outer.at(key, {}))
    else:
        return None
    if not isinstance(inner, StateMap):
        return None
    inner = inner.put(inner_key, value, inner_position)
    entry: tuple[Any, StateMap[Any, Any], float | None] = (key, inner, position)
    return outer.put_all((entry,))


def replay(state: State, operations: Iterable[Operation]) -> State:
    """Apply the operations of an update event, or of a store, to ``state``."""
    for operation in operations:
        match operation:
            case Set(field, value):
                state = state.update({field: value})
            case Extend(field, values):
                state = state.extend(**{field: values})
            case Put(field, key, value, position):
                state = state.put(field, key, value, position)
            case PutWithin():
                state = state._put_within(operation)
            case Increment(field, by):
                state = state.increment(**{field: by})
            case Drop(field):
                state = state.drop(field)
    return state


def replay_all(data: Mapping[str, object], operations: Iterable[Operation]) -> Mapping[str, object]:
    """Apply a long history to the fields of a state, without a state for each operation.

    Puts into one collection that follow each other are done in one call. ``data`` is not changed.
    """
    after = dict(data)
    for field, some in groupby(operations, _put_into):
        collection = None if field is None else growable(after.get(field, {}))
        if field is not None and isinstance(collection, StateMap | PositionedList):
            entries = cast("Iterable[Any]", (operation[1:] for operation in some))
            after[field] = collection.put_all(entries)
            continue
        for operation in some:
            if not _applied_in_place(after, operation):
                after = dict(replay(make_state(after), (operation,))._data)
    return after


def _applied_in_place(data: dict[str, Any], operation: Operation) -> bool:
    """Apply a simple operation to ``data``; return False if ``replay`` must check and apply it."""
    field = operation.field
    match operation:
        case Set():
            data[field] = operation.value
        case Increment(_, by):
            number = data.get(field, 0)
            if type(number) not in _NUMBERS:
                return False
            data[field] = number + by
        case Extend(_, values):
            found = data.get(field)
            if type(found) is not StateList:
                return False
            data[field] = cast("StateList[object]", found).extend(values)
        case Drop():
            data.pop(field, None)
        case _:
            return False
    return True


_NUMBERS = (int, float)  # no subclasses: True is an int, and replay refuses it


def _put_into(operation: Operation) -> str | None:
    return operation.field if type(operation) is Put else None


def _check_name(field: object) -> None:
    if not isinstance(field, str):
        msg = f"field names are strings, not {field!r}"
        raise StateError(msg)


def _secret_names(secret: object, data: Mapping[str, object]) -> Collection[str]:
    """Check the argument ``secret`` of a state and return it.

    Raises:
        StateError: It is not a collection of names, or names a field that is missing.
    """
    if isinstance(secret, str) or not isinstance(secret, Collection):
        msg = f"State(secret=...) takes a set of field names, not {kind_of(secret)}"
        raise StateError(msg)
    names = cast("Collection[str]", secret)
    for name in names:
        _check_name(name)
        if name not in data:
            msg = f"secret= names field {name!r}, and the state does not have it"
            raise StateError(f"{msg} (it has: {_names(data)}){did_you_mean(name, data)}")
    return names


def _names(fields: Iterable[str]) -> str:
    return ", ".join(sorted(fields)) or "none"


def _brief(value: object) -> str:
    return f"{brief(value)} ({type(value).__name__})"
