"""Make a form of the JSON schema of an answer, and an answer of what was sent with the form.

A question is data of an application's own. If it is an object with a JSON schema under ``schema``,
the form has a field for each property; otherwise it has one field, for text or JSON. A schema may
be one that pydantic writes: references to ``$defs`` are followed. What a form has no field for, is
written as JSON.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, final

DEEPEST = 3
"""Objects inside objects that have fields of their own; deeper ones are written as JSON."""

LONG = 80
"""A text that may be longer than this, or has no bound, gets a field of several lines."""

Kind = Literal["text", "lines", "number", "integer", "yes or no", "choice", "list", "json", "group"]


class BadAnswer(ValueError):
    """What was sent with a form is not an answer that its schema allows."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A field of a form, or a group of fields."""

    name: str
    """The name in the form: the properties that lead to it, with dots between."""
    label: str
    kind: Kind
    hint: str = ""
    is_required: bool = True
    may_be_null: bool = False
    choices: Sequence[object] = ()
    default: object = None
    least: float | None = None
    most: float | None = None
    longest: int | None = None
    may_be_empty: bool = False
    """Whether a list may have no items. An empty text is none."""
    fields: Sequence[Field] = ()
    """Of a group."""
    is_certain: bool = True
    """Whether all groups around it are required; one that isn't may be left empty as a whole."""

    @property
    def is_forced(self) -> bool:
        """Whether the form can't be sent without it."""
        return self.is_required and self.is_certain

    @property
    def needs_text(self) -> bool:
        """Whether its field in the form can't be left empty."""
        return self.is_required and not self.may_be_empty

    @property
    def shown_default(self) -> str:
        """The default as the form's field has it."""
        if self.default is None:
            return ""
        if self.kind == "list" and isinstance(self.default, list):
            return "\n".join(map(str, cast("list[object]", self.default)))
        return self.default if isinstance(self.default, str) else json.dumps(self.default)


def schema_of(question: object) -> Mapping[str, Any] | None:
    """Return the JSON schema that a question has for its answer; None if it has none."""
    if isinstance(question, Mapping):
        schema = cast("Mapping[str, Any]", question).get("schema")
        words = ("type", "properties", "enum", "anyOf", "$ref", "oneOf")
        if isinstance(schema, Mapping) and any(word in schema for word in words):
            return cast("Mapping[str, Any]", schema)
    return None


def fields_of(schema: Mapping[str, Any] | None) -> Sequence[Field]:
    """Return the fields of the form for an answer."""
    if schema is None:
        return (Field(name="answer", label="Answer", kind="lines", is_required=False),)
    field = _whole(schema)
    return field.fields if field.kind == "group" else (field,)


def _whole(schema: Mapping[str, Any]) -> Field:
    """Return the field for the whole answer."""
    try:
        return _field("answer", schema, schema, is_required=True, depth=0)
    except (AttributeError, LookupError, TypeError, ValueError):
        # A schema is data of an application's own, so it may be none: JSON takes any answer.
        return Field(name="answer", label="Answer", kind="json")


def _field(
    name: str,
    given: Mapping[str, Any],
    root: Mapping[str, Any],
    *,
    is_required: bool,
    depth: int,
    is_certain: bool = True,
) -> Field:
    schema, may_be_null = _resolved(given, root)
    label = str(schema.get("title") or name.rpartition(".")[2].replace("_", " "))
    most, longest = schema.get("maximum"), schema.get("maxLength")
    kind = _kind(schema, depth)
    fields: Sequence[Field] = ()
    if kind == "group":
        required = schema.get("required", ())
        is_whole = is_certain and is_required and not may_be_null
        fields = [
            _field(
                f"{name}.{each}",
                inner,
                root,
                is_required=each in required,
                depth=depth + 1,
                is_certain=is_whole,
            )
            for each, inner in schema["properties"].items()
        ]
    return Field(
        name=name,
        label=label[:1].upper() + label[1:],
        kind=kind,
        hint=str(schema.get("description", "")),
        is_required=is_required and not may_be_null,
        may_be_null=may_be_null,
        choices=[schema["const"]] if "const" in schema else schema.get("enum", ()),
        default=schema.get("default"),
        least=schema.get("minimum"),
        most=most,
        longest=longest,
        may_be_empty=kind == "list" and not schema.get("minItems"),
        fields=fields,
        is_certain=is_certain,
    )


def _resolved(given: Mapping[str, Any], root: Mapping[str, Any]) -> tuple[Mapping[str, Any], bool]:
    """Follow references, and take the one alternative that isn't null."""
    may_be_null = False
    schema = dict(given)
    for _ in range(10):  # references may go round in a circle
        if isinstance(ref := schema.get("$ref"), str) and ref.startswith("#/$defs/"):
            found = root.get("$defs", {}).get(ref.removeprefix("#/$defs/"), {})
            schema = {**found, **{k: v for k, v in schema.items() if k != "$ref"}}
            continue
        options = schema.get("anyOf") or schema.get("oneOf") or ()
        others = [each for each in options if each.get("type") != "null"]
        if options and len(others) < len(options):
            may_be_null = True
        if len(others) == 1:
            kept = {k: v for k, v in schema.items() if k not in ("anyOf", "oneOf")}
            schema = {**others[0], **kept}
            continue
        break
    types = schema.get("type")
    if isinstance(types, list):
        given_types = cast("list[str]", types)
        kinds = [each for each in given_types if each != "null"]
        may_be_null = may_be_null or len(kinds) < len(given_types)
        if len(kinds) == 1:
            schema["type"] = kinds[0]
    return schema, may_be_null


def _kind(schema: Mapping[str, Any], depth: int) -> Kind:
    if "enum" in schema or "const" in schema:
        return "choice"
    match schema.get("type"):
        case "string":
            longest = schema.get("maxLength")
            is_short = schema.get("format") or (longest is not None and longest <= LONG)
            return "text" if is_short else "lines"
        case "number":
            return "number"
        case "integer":
            return "integer"
        case "boolean":
            return "yes or no"
        case "array" if schema.get("items", {}).get("type") == "string":
            return "list"
        case "object" if schema.get("properties") and depth < DEEPEST:
            return "group"
        case _:
            return "json"


def answer_from(schema: Mapping[str, Any] | None, sent: Mapping[str, str]) -> object:
    """Return the answer that was sent with a form.

    Args:
        schema: The schema that the form was made of.
        sent: The form's fields.

    Raises:
        BadAnswer: A field is missing, or has a value that the schema doesn't allow.
    """
    if schema is None:
        text = sent.get("answer", "")
        return _json(text, "The answer") if sent.get("as_json") else text
    return _value(_whole(schema), sent)


def _value(field: Field, sent: Mapping[str, str]) -> object:
    if field.kind == "group":
        values = {
            inner.name.rpartition(".")[2]: _value(inner, sent)
            for inner in field.fields
            if inner.is_required or _is_given(inner, sent)
        }
        # A field that may be null, and has no default, is null if it is left empty.
        for inner in field.fields:
            if inner.may_be_null and inner.default is None:
                values.setdefault(inner.name.rpartition(".")[2], None)
        return values
    text = sent.get(field.name, "")
    if field.kind == "yes or no" and field.is_required:
        return text == "yes"  # a checkbox, of which nothing is sent if it isn't ticked
    if not text.strip():
        if field.may_be_null:
            return None
        if field.needs_text:
            raise BadAnswer(f"{field.label}: a value is needed")
    match field.kind:
        case "yes or no":
            return text == "yes"
        case "number" | "integer":
            return _number(field, text)
        case "choice":
            for choice in field.choices:
                if str(choice) == text:
                    return choice
            raise BadAnswer(f"{field.label}: {text!r} is not one of the choices")
        case "list":
            return [line.strip() for line in text.splitlines() if line.strip()]
        case "json":
            return _json(text, field.label)
        case _:
            if field.longest is not None and len(text) > field.longest:
                raise BadAnswer(f"{field.label}: at most {field.longest} characters")
            return text.replace("\r\n", "\n")


def _is_given(field: Field, sent: Mapping[str, str]) -> bool:
    if field.kind == "group":
        return any(_is_given(inner, sent) for inner in field.fields)
    return bool(sent.get(field.name, "").strip())


def _number(field: Field, text: str) -> float:
    try:
        value = int(text) if field.kind == "integer" else float(text)
    except ValueError:
        raise BadAnswer(f"{field.label}: {text!r} is not a number") from None
    if not -sys.float_info.max <= value <= sys.float_info.max:  # JSON has no infinity, and no NaN
        raise BadAnswer(f"{field.label}: {text!r} is not a number that JSON has")
    if field.least is not None and value < field.least:
        raise BadAnswer(f"{field.label}: at least {field.least}")
    if field.most is not None and value > field.most:
        raise BadAnswer(f"{field.label}: at most {field.most}")
    return value


def _json(text: str, label: str) -> object:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"{label}: this is not JSON: {error}") from None


def _no_constant(name: str) -> object:
    raise ValueError(f"it has no {name}")
