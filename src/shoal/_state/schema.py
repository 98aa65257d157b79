"""Typed states: check the fields of a run against a user's model.

A field of the model is a field of the state. pydantic does the checking, whatever the model is; it
is imported when a ``Schema`` is made, and not before.

Invariants:
- A check costs as much as the update: the new items of a list are checked, never the whole list.
- A value that fits as it is stays the same object, collections included.
- An update is checked against the types and constraints of the fields it changes. The model's own
  validators (``field_validator``, ``model_validator``, ``__post_init__``) check the whole in
  ``build``. Validators in an ``Annotated`` belong to the type, so they run again on values that
  passed them before.
"""

from __future__ import annotations

import dataclasses
from collections import abc
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from inspect import formatannotation
from math import inf
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, final, get_args, get_origin

from shoal._errors.exceptions import (
    DefinitionError,
    InvalidState,
    StateError,
    did_you_mean,
    kind_of,
)

from .collections import PositionedList
from .declaration import OURS, Declared, any_of, collections_in, declaration, explained, shown
from .plain import to_plain
from .secrets import Secret, reveal
from .state import Change, Drop, Extend, Operation, Put, Set, State, held, replay

if TYPE_CHECKING:
    from pydantic import ConfigDict, ValidationError

S = TypeVar("S")

_Check = Callable[[object], object]
"""Returns a value that fits: the same object, or one converted to fit. Else a ValidationError."""

_MAX_REASONS = 3  # in a message: pydantic gives one for each wrong item of a list


@final
class Schema(Generic[S]):
    """The fields of a run's state, as a pydantic model, a dataclass or a TypedDict declares them.

    State fields have the names of the model's attributes; aliases are for data from outside.
    Fields that the model doesn't declare are refused, whatever its ``extra`` setting says.

    Args:
        model: A pydantic model, a dataclass or a TypedDict.

    Raises:
        DefinitionError: The model is none of these, or has an annotation that can't be checked; or
            pydantic is not installed.
    """

    __slots__ = ("_fields", "_instances", "_make", "derived", "fields", "model", "name", "required")

    model: type[S]
    name: str
    """The model's name, for messages."""
    fields: frozenset[str]
    required: frozenset[str]
    """Fields without a default."""
    derived: frozenset[str]
    """Fields that an instance has although it can't be made with them: ``field(init=False)``."""

    def __init__(self, model: type[S]) -> None:
        declared = declaration(model)
        self.model = model
        self.name = model.__name__
        self._instances = declared.instances
        self._make = declared.make
        self._fields = {
            name: _field(f"{self.name}.{name}", each, declared.config)
            for name, each in declared.fields.items()
        }
        self.fields = frozenset(self._fields)
        self.derived = declared.derived
        self.required = frozenset(name for name, each in declared.fields.items() if each.required)

    def __repr__(self) -> str:
        return f"Schema({self.name})"

    # -- into the state -----------------------------------------------------------------------

    def initial(
        self, given: object, subject: str = "the initial state", *, complete: bool = False
    ) -> dict[str, object]:
        """Return the fields of an initial state: the given ones, checked, and the model's defaults.

        Args:
            given: An instance of the model, or a mapping.
            subject: The name of the state in messages.
            complete: Whether every required field must be there. Otherwise missing ones stay
                absent, for an action to write.

        Raises:
            StateError: ``given`` is neither, or has fields that the model doesn't declare; or, if
                ``complete``, a required field is missing.
            InvalidState: A value doesn't fit.
        """
        known = self.read(given)
        if not self.fields.issuperset(known):
            unknown = sorted((name for name in known if name not in self._fields), key=str)
            raise StateError(f"{subject} has {self._unknown(unknown)}")
        fields: dict[str, object] = {}
        for name, field in self._fields.items():
            if name in known:
                value = known[name]
                is_secret = type(value) is Secret
                fit = self._fit_secret if is_secret else self._fit
                fields[name] = fit(field.check, value, subject, name)
            elif field.default is not None:
                fields[name] = field.default({one: reveal(fields[one]) for one in fields})
        if complete:
            self._require(fields, subject)
        return fields

    def checked(self, change: Change, data: Mapping[str, object], subject: str) -> Change:
        """Return ``change`` with every value converted to fit: nearly always ``change`` itself.

        If a value had to be converted, the operations hold the converted one, and so do the
        values of the change. These are found by replaying the operations on the fields concerned,
        which copies the collection that items are added to: cheap if conversions are rare,
        expensive if every item of a long list needs one.

        Args:
            change: The change of ``data``.
            data: The fields before the change. They fit.
            subject: The author of the change, as messages name it: "action 'parse'".

        Raises:
            InvalidState: A value doesn't fit, a field isn't declared, or a required one is dropped.
        """
        given = change.operations
        operations = [self._operation(each, change, data, subject) for each in given]
        for name in change.dropped:
            if name in self.required:
                msg = f"{subject} drops field {name!r}, which {self.name} requires"
                raise InvalidState(msg)
        values = change.values
        # Replayed only where a value was converted: see the docstring for what a replay costs.
        converted = {
            now.field for was, now in zip(given, operations, strict=True) if was is not now
        }
        if converted:
            before = State({name: data[name] for name in converted if name in data})
            again = (each for each in operations if each.field in converted)
            values = {**values, **replay(before, again)}
        for each in tuple(operations):
            name = each.field
            if not isinstance(each, Set | Drop) and name in values:
                result = self._result(each, values[name], subject)
                if result is not values[name]:
                    # The operation itself stays: a Set behind it gives the field the fitting value.
                    operations.append(Set(name, result))
                    values = {**values, name: result}
        if values is change.values:
            return change
        return Change(tuple(operations), values, change.dropped)

    def item(self, field: str, value: object, subject: object) -> object:
        """Return ``value`` converted to fit the list in ``field``, or else the mapping.

        ``subject`` becomes text only if a message names it; so do those of the methods below.

        Raises:
            InvalidState: The value doesn't fit, or the field takes no items.
        """
        declared = self._field(field, subject)
        check = declared.listed_item or declared.mapped_item
        if check is None:
            msg = (
                f"{subject} gives field {field!r} an item, and {declared.label} takes none: "
                f"declare a list or a mapping"
            )
            raise InvalidState(msg)
        return self._fit(check, value, subject, field, "an item of ")

    def entry(self, field: str, key: object, value: object, subject: object) -> object:
        """Return ``value`` converted to fit the mapping in ``field`` under ``key``.

        Raises:
            InvalidState: The value doesn't fit, or the key would have to be converted: keys are
                identities, so they stay as they are.
        """
        declared = self._field(field, subject)
        self._hold_key(declared.key, field, key, subject)
        if declared.mapped_item is None:
            return self.item(field, value, subject)
        return self._fit(declared.mapped_item, value, subject, field, "an item of ")

    def exact_entry(self, field: str) -> tuple[type, type] | None:
        """Return the types of a key and a value that ``entry`` accepts for a field as they are."""
        declared = self._fields.get(field)
        return None if declared is None else declared.exact_entry

    def inner_entry(
        self, field: str, key: object, inner_key: object, value: object, subject: object
    ) -> object:
        """Return ``value`` converted to fit ``inner_key`` of the mapping under ``key``.

        Args:
            field: A field that holds a mapping of mappings, or a list of them.
            key: A key of the field's mapping; None if the field holds a list.
            inner_key: A key of the mapping inside.
            value: The value for that key.
            subject: The author of the change, as messages name it.

        Raises:
            InvalidState: The value doesn't fit, or a key would have to be converted.
        """
        declared = self._field(field, subject)
        if key is not None:
            self._hold_key(declared.key, field, key, subject)
        if declared.inner_item is None:
            raise InvalidState(f"{subject}: {self.why_not_grown(field, mapping=None, nested=True)}")
        self._hold_key(declared.inner_key, field, inner_key, subject)
        return self._fit(declared.inner_item, value, subject, field, "an item of an item of ")

    def _hold_key(self, check: _Check | None, field: str, key: object, subject: object) -> None:
        if check is None:
            return
        result = self._fit(check, key, subject, field, "a key of ")
        if result is not key:
            msg = (
                f"{subject} puts {shown(key)} into field {field!r} as a key, which does not fit "
                f"{self._fields[field].label}: keys stay as they are, and this one would have to "
                f"become {shown(result)}"
            )
            raise InvalidState(msg)

    def most(self, field: str) -> float:
        """Return the most items that a field may have."""
        return self._fields[field].most

    def why_not_grown(self, field: str, *, mapping: bool | None, nested: bool = False) -> str:
        """Return why a field can't collect items; "" if it can.

        Args:
            field: A field that the model declares.
            mapping: Whether the field must be a mapping, or a list; None if either will do.
            nested: Whether each item is a mapping in turn.
        """
        declared = self._fields[field]
        wanted = "a list" if mapping is False else "a mapping"
        fits = declared.key is not None if mapping else declared.listed or mapping is None
        if nested:
            wanted += " of mappings"
            fits = fits and declared.inner_item is not None
        if fits and declared.has_items:
            return ""
        return f"it collects {wanted} into {field!r}, and {declared.label} is none"

    def _operation(
        self, operation: Operation, change: Change, data: Mapping[str, object], subject: str
    ) -> Operation:
        """Return an operation with its values converted to fit: itself if all fit as they are."""
        name = operation.field
        field = self._field(name, subject)
        match operation:
            case Set(_, value) if value is not data.get(name, _NOTHING):
                result = self._fit(field.check, value, subject, name)
                return operation if result is value else Set(name, result)
            case Extend(_, values) if field.listed_item is not None:
                item = field.listed_item
                results = tuple(
                    self._fit(item, each, subject, name, "an item of ") for each in values
                )
                if all(map(_is, values, results)):
                    return operation
                return Extend(name, results)
            case Put(_, key, value, position) if field.has_items:
                item = field.mapped_item or field.listed_item
                if _positioned(change.values.get(name)):
                    item = field.listed_item or field.mapped_item
                elif field.key is not None:
                    key = self._fit(field.key, key, subject, name, "a key of ")
                assert item is not None, "a field with items has at least one of the checks"
                result = self._fit(item, value, subject, name, "an item of ")
                if key is operation.key and result is value:
                    return operation
                return Put(name, key, result, position)
            case _:  # checked in _result, by the value that it leads to
                return operation

    def _result(self, operation: Operation, value: object, subject: str) -> object:
        """Return the value of a field after an operation that isn't Set, converted to fit."""
        name = operation.field
        field = self._fields[name]
        match operation:
            case Extend() if field.listed:
                pass
            case Put() if field.key is not None or (field.listed and _positioned(value)):
                pass
            case _:  # a number, or a collection whose items differ in type: a tuple, a TypedDict
                return self._fit(field.check, value, subject, name)
        if isinstance(value, abc.Sized) and len(value) > field.most:
            msg = (
                f"{subject} makes field {name!r} {len(value)} items long, "
                f"and {field.label} takes at most {field.most}"
            )
            raise InvalidState(msg)
        return value

    # -- out of the state ---------------------------------------------------------------------

    def build(self, data: Mapping[str, object]) -> S:
        """Make an instance of the model, with all its validators; for a TypedDict, a plain dict.

        An exception of the model's own ``__init__`` or ``__post_init__`` is raised as it is.

        Args:
            data: The fields of a state. Those that the model doesn't declare are left out.
            data: A state's fields. Others than the model's are left out.

        Raises:
            StateError: A required field is missing.
            InvalidState: The model's validators refuse the fields.
        """
        self._require(data, "the state")
        fields = {
            name: self._plain(name, reveal(data[name]))
            for name in self._fields  # in the model's order
            if name in data
        }
        try:
            return cast("S", self._make(fields))
        except ValueError as error:
            refusal = _validation_error(error)
            if refusal is None:
                raise
            msg = f"the state does not make a valid {self.name}: {_reasons(refusal, 0)}"
            raise InvalidState(msg) from error

    def _plain(self, name: str, value: object) -> object:
        plain = to_plain(value)
        if type(plain) is not type(value):  # it has grown as a list, but may be declared a tuple
            return self._fit(self._fields[name].check, plain, "the state", name)
        return plain

    def _require(self, data: Mapping[str, object], subject: str) -> None:
        missing = sorted(name for name in self.required if name not in data)
        if missing:
            msg = (
                f"{subject} has no {_fields_named(missing)}, which {self.name} requires: "
                f"give a value at the start, let an action write one, or declare a default"
            )
            raise StateError(msg)

    # -- both ---------------------------------------------------------------------------------

    def read(self, given: object) -> Mapping[Any, object]:
        """Return the given fields as a mapping. The secrets of a state stay in their boxes.

        Raises:
            StateError: ``given`` is neither an instance of the model nor a mapping.
        """
        if type(given) is dict:  # as most are, for which the checks below would ask their ABCs
            return cast("dict[str, object]", given)
        if isinstance(given, self._instances):
            found: dict[str, object] = {
                name: value
                for name in self._fields
                if (value := getattr(given, name, _NOTHING)) is not _NOTHING
            }
            extra: Mapping[str, object] | None = getattr(given, "__pydantic_extra__", None)
            return {**found, **extra} if extra else found
        if isinstance(given, Mapping):
            return held(cast("Mapping[str, object]", given))
        wanted = f"an instance of {self.name} or a mapping" if self._instances else "a mapping"
        msg = f"give {wanted} of the fields of {self.name}, not {shown(given)}"
        raise StateError(msg)

    def _field(self, name: str, subject: object) -> _Field:
        try:
            return self._fields[name]
        except KeyError:
            raise InvalidState(f"{subject} writes {self._unknown([name])}") from None

    def _unknown(self, names: list[str]) -> str:
        for name in names:
            if name in self.derived:
                return f"{_fields_named([name])}, which {self.why_undeclared(name)}"
        hints: list[str] = []
        for name in names:
            hints += get_close_matches(str(name), self._fields, n=1)
        meant = f"; did you mean {' and '.join(map(repr, hints))}?" if hints else ""
        return (
            f"{_fields_named(names)}, which {self.name} does not declare{meant} "
            f"(it has: {', '.join(sorted(self._fields)) or 'none'})"
        )

    def why_undeclared(self, field: str) -> str:
        """Return why the model has no such field, and what to do, as the end of a sentence."""
        if field in self.derived:
            return (
                f"{self.name} sets by itself, since it is declared with init=False: a state holds "
                f"the fields that an instance is made with, so leave it out, or the field"
            )
        meant = did_you_mean(field, self.fields) or "; declare it there"
        return f"{self.name} does not declare{meant}"

    def _fit(
        self, check: _Check, value: object, subject: object, name: str, part: str = ""
    ) -> object:
        try:
            return check(value)
        except ValueError as error:
            refusal = _validation_error(error)
            if refusal is None:
                raise
            msg = (
                f"{subject} gives {part}field {name!r} {shown(value)}, which does not fit "
                f"{self._fields[name].label}: {_reasons(refusal, 1)}"
            )
            raise InvalidState(msg) from error

    def _fit_secret(self, check: _Check, value: object, subject: str, name: str) -> object:
        """Check the value in a box. If it doesn't fit, no error shows it, pydantic's included."""
        found = reveal(value)
        try:
            fitting = check(found)
        except ValueError as error:
            if _validation_error(error) is None:
                raise
        else:
            return value if fitting is found else Secret(fitting)
        msg = (
            f"{subject} gives secret field {name!r} {kind_of(found)} which does not fit "
            f"{self._fields[name].label}"
        )
        # Raised outside of the except clause: pydantic's error, which shows the value, would else
        # be the context of this one.
        raise InvalidState(msg)


_NOTHING = object()
_EXACT: Mapping[type, str] = {str: "str_", int: "", bool: "", float: "allow_inf_nan"}
"""Types whose values fit as they are, unless there is a setting whose name begins so; empty: none
changes that."""


def _is(one: object, other: object) -> bool:
    return one is other


def _positioned(value: object) -> bool:
    """Return whether ``value`` is a list put by position: the engine has chosen its keys."""
    return isinstance(value, PositionedList)


def _fields_named(names: list[str]) -> str:
    return f"field{'s' * (len(names) > 1)} {', '.join(map(repr, names))}"


def _validation_error(error: ValueError) -> ValidationError | None:
    """Return ``error`` if pydantic refused a value; None if it only passed through pydantic."""
    from pydantic import ValidationError  # noqa: PLC0415 # optional

    return error if isinstance(error, ValidationError) else None


def _reasons(error: ValidationError, depth: int) -> str:
    """Return pydantic's reasons and their places, without the ``depth`` levels of our wrapping."""
    reasons: list[str] = []
    for each in error.errors(include_url=False, include_context=False, include_input=False):
        where = ".".join(str(step) for step in each["loc"][depth:])
        reasons.append(f"at {where}: {each['msg']}" if where else each["msg"])
    more = len(reasons) - _MAX_REASONS
    return "; ".join(reasons[:_MAX_REASONS]) + (f" (and {more} more)" if more > 0 else "")


# -- a field -------------------------------------------------------------------------------------


@final
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Field:
    """How one field is checked."""

    label: str
    """The field and its type in messages: "Crawl.title: str"."""
    check: _Check
    """Checks the whole value."""
    listed_item: _Check | None
    """Checks one item, if the field may be a list."""
    mapped_item: _Check | None
    """Checks one value, if the field may be a mapping."""
    key: _Check | None
    """Checks a key, if the field may be a mapping."""
    exact_entry: tuple[type, type] | None
    """The types of which a key and a value of a mapping fit as they are; None: it isn't known."""
    inner_item: _Check | None
    """Checks one value of an item, if items may be mappings."""
    inner_key: _Check | None
    """Checks a key of an item, if items may be mappings."""
    most: float
    """The most items that the field may have."""
    default: Callable[[dict[str, object]], object] | None
    """Makes the default, given the fields before this one."""

    @property
    def has_items(self) -> bool:
        """Whether the field may be a list or a mapping."""
        return self.listed_item is not None or self.mapped_item is not None

    @property
    def listed(self) -> bool:
        """Whether the field may be a list."""
        return self.listed_item is not None


def _field(place: str, declared: Declared, config: ConfigDict) -> _Field:
    annotation = declared.annotation
    label = f"{place}: {formatannotation(annotation)}"
    try:
        kinds = list(collections_in(annotation))
        listed = [each.item for each in kinds if not each.mapping]
        mapped = [each.item for each in kinds if each.mapping]
        keys = [each.key for each in kinds if each.mapping]
        inner = [one for each in kinds for one in collections_in(each.item) if one.mapping]
        return _Field(
            label=label,
            check=_checker(annotation, config),
            listed_item=_checker(any_of(listed), config) if listed else None,
            mapped_item=_checker(any_of(mapped), config) if mapped else None,
            key=_checker(any_of(keys), config) if keys else None,
            exact_entry=_exact_entry(keys, mapped, config),
            inner_item=_checker(any_of([one.item for one in inner]), config) if inner else None,
            inner_key=_checker(any_of([one.key for one in inner]), config) if inner else None,
            most=max((each.most for each in kinds), default=inf),
            default=declared.default,
        )
    except DefinitionError as error:
        raise DefinitionError(f"field {label} {error}") from None
    except Exception as error:  # pydantic raises several kinds, and an annotation may raise any
        msg = f"field {label} can't be checked: {explained(error)}"
        raise DefinitionError(msg) from error


def _checker(annotation: object, config: ConfigDict) -> _Check:
    """Return a function that checks values against a type.

    The type is wrapped in a tuple of one, because pydantic takes no settings for a bare model. The
    wrapper has the settings, and they apply inside it, unless the type has its own, as they would
    to a model's field.
    """
    from pydantic import TypeAdapter  # noqa: PLC0415 # optional

    wrapper = cast("Any", tuple)[annotation]
    adapter = TypeAdapter[tuple[object]](wrapper, config=config)
    validate = adapter.validator.validate_python

    def check(value: object) -> object:
        plain = to_plain(value) if type(value) in OURS else value
        (result,) = validate((plain,))
        return value if result is plain or _same(plain, result) else result

    exact, fits = _exact(annotation, config), _exact_items(annotation, config)
    if exact is not None:
        return lambda value: value if type(value) is exact else check(value)
    return check if fits is None else lambda value: value if fits(value) else check(value)


def _exact(annotation: object, config: ConfigDict) -> type | None:
    """Return the type whose values pydantic returns as they are; None if there is none.

    They need not be given to pydantic then. Most values that a run writes are of such a type.
    """
    for kind, changed_by in _EXACT.items():
        if annotation is kind:
            is_changed = changed_by and any(name.startswith(changed_by) for name in config)
            return None if is_changed else kind
    return None


def _exact_items(annotation: object, config: ConfigDict) -> Callable[[Any], bool] | None:
    """Return whether a value of a type like ``list[str]`` or ``dict[str, int]`` fits as it is.

    None: not for a type like these. pydantic would copy the collection, only to be compared with
    it.
    """
    origin = get_origin(annotation)
    kinds = [_exact(one, config) for one in get_args(annotation)]
    if origin not in (list, dict) or not kinds or None in kinds:
        return None
    only = [frozenset((kind,)) for kind in kinds]
    if origin is list:
        return lambda value: type(value) is list and only[0].issuperset(_types(value))
    keys, values = only
    return lambda value: (
        type(value) is dict
        and keys.issuperset(_types(value))
        and values.issuperset(_types(cast("dict[object, object]", value).values()))
    )


def _types(values: Any) -> Iterable[type]:
    return map(type, values)


def _exact_entry(
    keys: Sequence[object], values: Sequence[object], config: ConfigDict
) -> tuple[type, type] | None:
    if len(keys) != 1 or len(values) != 1:
        return None
    key, value = _exact(keys[0], config), _exact(values[0], config)
    return None if key is None or value is None else (key, value)


def _same(given: Any, result: Any) -> bool:
    """Return whether checking only made a copy. 1, 1.0 and True are not the same."""
    kind = type(given)  # pyright: ignore[reportUnknownVariableType] # of any value
    if kind is not type(result):
        return False
    if kind in (int, float, complex, str, bytes):
        return given == result
    if kind in (list, tuple):
        return len(given) == len(result) and _are_same(given, result)
    if kind is dict:
        # With their order, which a mapping keeps.
        return len(given) == len(result) and (
            _are_same(given, result) and _are_same(given.values(), result.values())
        )
    return False


def _are_same(given: Iterable[Any], result: Iterable[Any]) -> bool:
    # Without a generator: each value that a run writes is compared.
    for one, other in zip(given, result, strict=True):
        if one is not other and not _same(one, other):
            return False
    return True
