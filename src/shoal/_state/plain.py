"""Copy the content of a state into plain dicts and lists, or into what JSON can hold."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from math import isfinite
from pathlib import PurePath
from typing import Any, cast
from uuid import UUID

from shoal._errors.exceptions import brief

from .collections import PositionedList, StateList, StateMap


class HasPlainForm:
    """A value of the library's own that is no collection but can be written as JSON."""

    __slots__ = ()

    def to_plain(self) -> dict[str, Any]:
        """Copy the value into a plain dict."""
        raise NotImplementedError


def to_plain(value: object, *, is_whole: bool = False) -> object:
    """Copy the library's collections in ``value`` into lists and dicts, all the way down.

    Values of other types stay as they are.

    Args:
        value: The value to copy.
        is_whole: Whether states, and errors as data, become dicts too.
    """
    match value:
        case StateList() | PositionedList() | list():
            items = cast("Sequence[object]", value)
            return [to_plain(item, is_whole=is_whole) for item in items]
        case StateMap() | dict():
            pairs = cast("Mapping[object, object]", value).items()
            return {key: to_plain(item, is_whole=is_whole) for key, item in pairs}
        case HasPlainForm() if is_whole:
            return value.to_plain()
        case _:
            return value


_AS_IT_IS = frozenset({str, int, bool, type(None)})
"""The types whose values ``json.dumps`` writes as they are. Not those of subclasses, as enums."""


def to_json(value: object) -> object:
    """Copy ``value`` into what ``json.dumps`` writes: dicts by string, lists, strings, numbers.

    Numbers that JSON lacks become null, bytes base64, a set a list, a dataclass or a pydantic model
    a dict, times text as in ISO 8601, a duration its seconds. Anything else becomes a short text.
    """
    kind = type(value)
    if kind in _AS_IT_IS:  # most values are: spares them the search below
        return value
    if kind is list:
        return [to_json(item) for item in cast("list[object]", value)]
    if kind is dict or kind is StateMap:
        pairs = cast("Mapping[object, object]", value).items()
        return {key if type(key) is str else _name(key): to_json(item) for key, item in pairs}
    match value:
        case None | bool() | str() if not isinstance(value, Enum):
            return str(value) if isinstance(value, str) else value
        case Enum():
            return to_json(value.value)
        case int():
            return int(value)
        case float():
            return float(value) if isfinite(value) else None
        case HasPlainForm():
            return value.to_plain()
        case Mapping():
            pairs = cast("Mapping[object, object]", value).items()
            return {_name(key): to_json(item) for key, item in pairs}
        case set() | frozenset():
            return [to_json(item) for item in _in_order(cast("frozenset[object]", value))]
        case bytes() | bytearray():
            return b64encode(value).decode()
        case Sequence():
            return [to_json(item) for item in cast("Sequence[object]", value)]
        case date() | time():  # a datetime is a date
            return value.isoformat()
        case timedelta():
            return value.total_seconds()
        case UUID() | PurePath() | Decimal():
            return str(value)
        case _:
            return _object(value)


def _object(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return {one.name: to_json(getattr(value, one.name)) for one in fields(value)}
    # A model of pydantic, which is not imported for this.
    dump = cast("Callable[..., object] | None", getattr(type(value), "model_dump", None))
    if callable(dump):
        return to_json(dump(value, mode="json"))
    return brief(value)


def _name(key: object) -> str:
    """Return the name of a key of a mapping, as ``json.dumps`` writes it where it can."""
    plain = to_json(key)
    if plain is None or isinstance(plain, bool):
        return {None: "null", True: "true", False: "false"}[plain]
    return brief(key) if isinstance(plain, list | dict) else str(plain)


def _in_order(items: Iterable[object]) -> Sequence[object]:
    """Return the items of a set in an order that is the same in each process."""
    return sorted(items, key=lambda item: (type(item).__name__, repr(item)))
