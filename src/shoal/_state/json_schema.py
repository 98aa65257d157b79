"""Hold a JSON value against a JSON schema, as far as pydantic and shoal write such schemas.

A process that gives an answer to another one has the schema of it, and none of its types. What a
schema says in words that aren't known here is not checked: the action that asks checks its answer
once more, by its own type.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from math import isclose
from typing import Any, NamedTuple, cast, final

from shoal._errors.exceptions import brief

_ROUNDS = 50
"""References that are followed without a step down in the value: they may go round in a circle."""
_NAMED = 12
"""Choices that a message names."""
_MISSING = "is missing"


@final
class Misfit(NamedTuple):
    """Why a value doesn't fit. Both texts hold nothing of the value itself."""

    place: str
    """Where in the value: keys and indices with dots between; empty: the whole value."""
    why: str

    @property
    def text(self) -> str:
        """Both, in one line."""
        return f"{self.place}: {self.why}" if self.place else self.why


def misfit(value: object, schema: Mapping[str, Any]) -> Misfit | None:
    """Return why a value isn't one that a schema allows; None if it is.

    Args:
        value: What JSON can hold.
        schema: A JSON schema. One that is none allows everything.
    """
    return _misfit(value, schema, schema, (), _ROUNDS)


Place = tuple[str | int, ...]
Schema = Mapping[str, Any]


def _misfit(
    value: object, schema: object, root: Schema, place: Place, rounds: int
) -> Misfit | None:
    if schema is False:
        return _at(place, "nothing is allowed here")
    if not isinstance(schema, Mapping) or not rounds:
        return None
    known = cast("Schema", schema)
    found = (
        _ref(value, known, root, place, rounds)
        or _type(value, known, place)
        or _choice(value, known, place)
        or _options(value, known, root, place, rounds)
    )
    if found is not None:
        return found
    match value:
        case bool():
            return None
        case int() | float():
            return _number(value, known, place)
        case str():
            return _text(value, known, place)
        case Mapping():
            return _object(cast("Mapping[str, object]", value), known, root, place)
        case list():
            return _array(cast("list[object]", value), known, root, place)
        case _:
            return None


def _at(place: Place, why: str) -> Misfit:
    return Misfit(".".join(map(str, place)), why)


def _ref(value: object, schema: Schema, root: Schema, place: Place, rounds: int) -> Misfit | None:
    found = _resolved(schema, root)
    return None if found is schema else _misfit(value, found, root, place, rounds - 1)


def _resolved(schema: object, root: Schema) -> object:
    """Return the schema that a schema refers to; itself if it refers to none."""
    ref = _get(schema, "$ref")
    if not isinstance(ref, str) or not ref.startswith("#/"):
        return schema
    found: object = root
    for part in ref[2:].split("/"):
        found = _get(found, part.replace("~1", "/").replace("~0", "~"))
    return found


def _get(schema: object, name: str) -> object:
    return cast("Schema", schema).get(name) if isinstance(schema, Mapping) else None


_TYPES: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    "null": ("null", lambda value: value is None),
    "boolean": ("true or false", lambda value: isinstance(value, bool)),
    "integer": (
        "a whole number",
        lambda value: (
            (isinstance(value, int) and not isinstance(value, bool))
            or (isinstance(value, float) and value.is_integer())
        ),
    ),
    "number": (
        "a number",
        lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    ),
    "string": ("a text", lambda value: isinstance(value, str)),
    "array": ("a list", lambda value: isinstance(value, list)),
    "object": ("an object", lambda value: isinstance(value, Mapping)),
}


def _type(value: object, schema: Schema, place: Place) -> Misfit | None:
    given = schema.get("type")
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list):
        return None
    wanted = [_TYPES[name] for name in cast("list[str]", names) if name in _TYPES]
    if not wanted or any(fits(value) for _, fits in wanted):
        return None
    return _at(place, f"must be {' or '.join(text for text, _ in wanted)}")


def _choice(value: object, schema: Schema, place: Place) -> Misfit | None:
    choices: object = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(choices, Sequence) or isinstance(choices, str):
        return None
    allowed = cast("Sequence[object]", choices)
    if any(_is_same(value, one) for one in allowed):
        return None
    named = ", ".join(brief(one) for one in allowed[:_NAMED])
    more = f" and {len(allowed) - _NAMED} more" if len(allowed) > _NAMED else ""
    return _at(place, f"must be {'one of ' * (len(allowed) > 1)}{named}{more}")


def _is_same(one: object, other: object) -> bool:
    # In JSON true is not 1, although Python's are equal.
    return isinstance(one, bool) is isinstance(other, bool) and one == other


def _options(
    value: object, schema: Schema, root: Schema, place: Place, rounds: int
) -> Misfit | None:
    for one in _list(schema.get("allOf")):
        found = _misfit(value, one, root, place, rounds - 1)
        if found is not None:
            return found
    options = _list(schema.get("anyOf")) or _list(schema.get("oneOf"))
    meant: list[Misfit] = []
    others: list[Misfit] = []
    for one in options:
        found = _misfit(value, one, root, place, rounds - 1)
        if found is None:
            return None
        inner = _resolved(one, root)
        is_meant = isinstance(inner, Mapping) and not _type(value, cast("Schema", inner), place)
        (meant if is_meant else others).append(found)
    if meant:  # of the right type, so one of them was meant: that which lacks nothing, if any
        return min(meant, key=lambda one: one.why == _MISSING)
    if not others:
        return None
    reasons = [one.why.removeprefix("must be ") for one in others]
    return _at(place, f"must be {' or '.join(dict.fromkeys(reasons))}")


_BOUNDS: Mapping[str, tuple[str, Callable[[float, float], bool]]] = {
    "minimum": ("at least", operator.ge),
    "maximum": ("at most", operator.le),
    "exclusiveMinimum": ("more than", operator.gt),
    "exclusiveMaximum": ("less than", operator.lt),
}


def _number(value: float, schema: Schema, place: Place) -> Misfit | None:
    for name, (text, fits) in _BOUNDS.items():
        bound = schema.get(name)
        if isinstance(bound, bool) or not isinstance(bound, int | float):
            continue
        if not fits(value, bound):
            return _at(place, f"must be {text} {bound:g}")
    step = schema.get("multipleOf")
    if isinstance(step, int | float) and step > 0:
        times = value / step
        if not isclose(times, round(times), rel_tol=1e-9, abs_tol=1e-9):
            return _at(place, f"must be a multiple of {step:g}")
    return None


def _text(value: str, schema: Schema, place: Place) -> Misfit | None:
    least, most = schema.get("minLength"), schema.get("maxLength")
    if isinstance(least, int) and len(value) < least:
        return _at(place, f"must have at least {_many(least, 'character')}")
    if isinstance(most, int) and len(value) > most:
        return _at(place, f"must have at most {_many(most, 'character')}")
    pattern = schema.get("pattern")
    if isinstance(pattern, str):
        try:
            fits = re.search(pattern, value) is not None
        except re.error:  # it may be one of JavaScript's, as JSON schemas have them
            return None
        if not fits:
            return _at(place, f"must match {pattern}")
    return None


def _object(
    value: Mapping[str, object], schema: Schema, root: Schema, place: Place
) -> Misfit | None:
    given: object = schema.get("properties")
    properties: Schema = cast("Schema", given) if isinstance(given, Mapping) else {}
    for name in _list(schema.get("required")):
        if name not in value:
            return _at((*place, str(name)), _MISSING)
    for name, one in value.items():
        if name in properties:
            found = _misfit(one, properties[name], root, (*place, name), _ROUNDS)
        elif "patternProperties" in schema:
            found = None
        else:
            more = schema.get("additionalProperties")
            if more is False:
                known = ", ".join(list(properties)[:_NAMED])
                return _at((*place, brief(name)), f"is not known (known are: {known})")
            found = _misfit(one, more, root, (*place, str(name)), _ROUNDS)
        if found is not None:
            return found
    return None


def _array(value: list[object], schema: Schema, root: Schema, place: Place) -> Misfit | None:
    least, most = schema.get("minItems"), schema.get("maxItems")
    if isinstance(least, int) and len(value) < least:
        return _at(place, f"must have at least {_many(least, 'item')}")
    if isinstance(most, int) and len(value) > most:
        return _at(place, f"must have at most {_many(most, 'item')}")
    first = _list(schema.get("prefixItems"))
    for number, one in enumerate(value):
        inner = first[number] if number < len(first) else schema.get("items")
        found = _misfit(one, inner, root, (*place, number), _ROUNDS)
        if found is not None:
            return found
    return None


def _list(value: object) -> Sequence[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else ()


def _many(count: int, name: str) -> str:
    return f"{count} {name}{'' if count == 1 else 's'}"
