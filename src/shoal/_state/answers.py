"""Types of answers: the JSON schema of a type, and instances made of JSON.

Plain types are known here: ``bool``, ``int``, ``float``, ``str``, ``None``, ``Literal``, enums, and
lists, dicts and unions of these. pydantic knows all others (models, dataclasses, ``TypedDict``,
``Annotated``); it is imported when the first such type is asked for.
"""

from __future__ import annotations

import sys
import typing
from collections.abc import Callable, Mapping
from enum import Enum
from functools import lru_cache
from inspect import formatannotation
from typing import Any, cast, final

from shoal._errors.exceptions import BadAnswer, DefinitionError, brief, kind_of

from .json_schema import Misfit, misfit
from .plain import to_json

_REASONS = 3
"""Reasons that a message names: pydantic gives one for each field, and each option of a union."""


class Unfit(ValueError):
    """A value is no answer of a type."""

    def __init__(self, found: Misfit) -> None:
        super().__init__(found.text)
        self.found: Misfit = found


@final
class AnswerType:
    """A type that answers have."""

    __slots__ = ("_make", "name", "schema")

    def __init__(
        self, name: str, schema: Mapping[str, Any], make: Callable[[object], object]
    ) -> None:
        """Use ``answer_type``."""
        self.name: str = name
        """The type, for messages."""
        self.schema: Mapping[str, Any] = schema
        """Its JSON schema."""
        self._make = make

    def read(self, value: object) -> object:
        """Return an instance made of JSON.

        Raises:
            Unfit: The value is no answer of this type.
        """
        return self._make(value)


def answer_type(annotation: object) -> AnswerType:
    """Return the type of an answer.

    Args:
        annotation: A type, as an annotation has it; or a JSON schema.

    Raises:
        DefinitionError: There are no answers of this type, or it needs pydantic, which is not
            installed.
    """
    try:
        return _known(annotation)
    except TypeError:  # it isn't hashable: Annotated[int, [...]], say
        return _new(annotation)


@lru_cache(maxsize=256)
def _known(annotation: object) -> AnswerType:
    return _new(annotation)


def read_answer(kind: AnswerType, value: object, subject: str, name: str) -> object:
    """Return a saved answer as an instance of its type.

    Args:
        kind: The type.
        value: The answer as it was saved.
        subject: The action that asks, for the error.
        name: The name of the question.

    Raises:
        BadAnswer: The answer doesn't fit the type.
    """
    try:
        return kind.read(value)
    except Unfit as error:
        why, place = error.found.why, error.found.place
        msg = (
            f"{subject} asks {name!r} with answer={kind.name}, and the answer that was saved, "
            f"{brief(value)}, is none: {error.found.text}. Either the program has another type now "
            f"than when the answer was given, or a validator refuses it that the JSON schema of "
            f"the question can't express. Give another answer to the failed run: run(id=..., "
            f"answers=...); or let the program accept this one; or ask by another name"
        )
    raise BadAnswer(msg, None, why, place)


def _new(annotation: object) -> AnswerType:
    if isinstance(annotation, Mapping):
        return _by_schema(cast("Mapping[str, Any]", annotation))
    name = formatannotation(annotation) if annotation is not None else "None"
    schema = _plain_schema(annotation)
    if schema is None:
        return _by_pydantic(annotation, name)

    def make(value: object) -> object:
        found = misfit(value, schema)
        if found is not None:
            raise Unfit(found)
        return _converted(value, annotation)

    return AnswerType(name, schema, make)


def _by_schema(schema: Mapping[str, Any]) -> AnswerType:
    """Return the type of answers that a JSON schema describes, which stay as they are."""
    given = to_json(schema)
    if given != schema:
        msg = f"context.ask(answer={brief(schema)}): a JSON schema holds what JSON can hold"
        raise DefinitionError(msg)

    def make(value: object) -> object:
        found = misfit(value, schema)
        if found is not None:
            raise Unfit(found)
        return value

    return AnswerType(brief(schema), schema, make)


# -- plain types -----------------------------------------------------------------------------------

_NAMES: Mapping[object, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    None: "null",
    type(None): "null",
}


def _plain_schema(annotation: Any) -> dict[str, Any] | None:
    """Return the schema of a plain type; None if it is none."""
    if annotation is None or (isinstance(annotation, type) and annotation in _NAMES):
        return {"type": _NAMES[annotation]}
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return _schema_of_choices([to_json(one.value) for one in annotation])
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return _schema_of_choices([to_json(one) for one in args])
    if _is_union(origin):
        options = [_plain_schema(one) for one in args]
        return None if None in options else {"anyOf": options}
    if origin is list and len(args) == 1:
        items = _plain_schema(args[0])
        return None if items is None else {"type": "array", "items": items}
    if origin is dict and len(args) == 2 and args[0] is str:  # noqa: PLR2004 # key and value
        values = _plain_schema(args[1])
        return None if values is None else {"type": "object", "additionalProperties": values}
    return None


def _schema_of_choices(choices: list[object]) -> dict[str, Any]:
    types = {_NAMES.get(type(one)) for one in choices}
    known = {"type": next(iter(types))} if len(types) == 1 and None not in types else {}
    return {**known, "enum": choices}


def _is_union(origin: object) -> bool:
    return origin is typing.Union or getattr(origin, "__name__", None) == "UnionType"


def _converted(value: Any, annotation: Any) -> object:
    """Return a value that fits a plain type as an instance of it."""
    if annotation is float:
        return float(value)
    if annotation is int:
        return int(value)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return next(one for one in annotation if _is_same(to_json(one.value), value))
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return next(one for one in args if _is_same(to_json(one), value))
    if _is_union(origin):
        fitting = [one for one in args if misfit(value, _plain_schema(one) or {}) is None]
        # An int is no float unless there is nothing else: int | float keeps it as it is.
        exact = [one for one in fitting if type(value) is one]
        return _converted(value, (exact or fitting)[0])
    if origin is list:
        return [_converted(one, args[0]) for one in value]
    if origin is dict:
        return {key: _converted(one, args[1]) for key, one in value.items()}
    return value


def _is_same(one: object, other: object) -> bool:
    return isinstance(one, bool) is isinstance(other, bool) and one == other


# -- all others ------------------------------------------------------------------------------------


def _by_pydantic(annotation: Any, name: str) -> AnswerType:
    try:
        import pydantic  # noqa: PLC0415 # only for those that use it
        from pydantic.errors import PydanticUserError  # noqa: PLC0415 # only for those that use it
    except ImportError as error:
        msg = (
            f"answer={name} needs pydantic: pip install 'shoal[pydantic]'. Without it an answer is "
            f"a bool, int, float, str, Literal or Enum, or a list or union of these"
        )
        raise DefinitionError(msg) from error
    try:
        adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(_readable(annotation))
        schema = adapter.json_schema()
    except (
        pydantic.PydanticSchemaGenerationError,
        PydanticUserError,
        NameError,
        TypeError,
    ) as error:
        what = kind_of(annotation) if not isinstance(annotation, type) else name
        msg = (
            f"context.ask(answer={what}): pydantic makes no JSON schema of it: "
            f"{brief(str(error).partition(chr(10))[0])}. An answer is a model, a dataclass, a "
            f"TypedDict, or a plain type"
        )
        raise DefinitionError(msg) from error

    def make(value: object) -> object:
        try:
            return adapter.validate_python(value)
        except pydantic.ValidationError as error:
            found = error.errors(include_url=False, include_input=False, include_context=False)
            texts = [
                Misfit(".".join(map(str, one["loc"])), one["msg"]).text for one in found[1:_REASONS]
            ]
            first = found[0]
            why = "; ".join([first["msg"], *texts])
            raise Unfit(Misfit(".".join(map(str, first["loc"])), why)) from None

    return AnswerType(name, cast("Mapping[str, Any]", schema), make)


def _readable(annotation: Any) -> Any:
    """Return what pydantic reads in place of a ``TypedDict`` of Python 3.11: the same with more."""
    if sys.version_info >= (3, 12) or not typing.is_typeddict(annotation):
        return annotation
    import typing_extensions  # noqa: PLC0415 # pydantic needs it too

    made: Any = typing_extensions.TypedDict  # made at run time, so a type checker can't follow
    required: frozenset[str] = annotation.__required_keys__
    hints = typing_extensions.get_type_hints(annotation, include_extras=True)
    kinds = (typing_extensions.NotRequired, typing_extensions.Required)
    fields = {
        name: hint
        if typing.get_origin(hint) in (typing.Required, typing.NotRequired)
        else kinds[name in required][hint]
        for name, hint in hints.items()
    }
    return made(annotation.__name__, fields)
