"""Forms made of JSON schemas, and answers made of forms."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel, Field

from shoal.watch.ui._forms import BadAnswer, answer_from, fields_of, schema_of
from shoal.watch.ui._rendering import _environment
from tests.watch.ui.clients import Page
from tests.watch.ui.fakes import SCHEMA

SENT = {
    "answer.verdict": "reject",
    "answer.comment": "no\r\ntests",
    "answer.severity": "3",
    "answer.labels": "a\n\n b ",
    "answer.notify": "yes",
}


class Author(BaseModel):
    name: str
    age: int | None = None


class Decision(BaseModel):
    verdict: Literal["yes", "no"]
    author: Author
    score: float = Field(ge=0, le=1)
    extra: dict[str, int] = {}
    comment: str | None = None


def test_a_schema_makes_a_field_for_each_property():
    kinds = {field.label: field.kind for field in fields_of(SCHEMA)}
    assert kinds == {
        "Verdict": "choice",
        "Comment": "lines",
        "Severity": "integer",
        "Labels": "list",
        "Notify": "yes or no",
    }


def test_what_was_sent_becomes_the_answer():
    assert answer_from(SCHEMA, SENT) == {
        "verdict": "reject",
        "comment": "no\ntests",
        "severity": 3,
        "labels": ["a", "b"],
        "notify": True,
    }
    assert answer_from(SCHEMA, {"answer.verdict": "later", "answer.severity": "1"}) == {
        "verdict": "later",
        "severity": 1,
    }


TEXTS = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "why": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "more": {"type": "array", "items": {"type": "string"}},
        "sure": {"type": "boolean"},
    },
    "required": ["name", "why", "tags", "more", "sure"],
}


@pytest.mark.parametrize("missing", ["name", "why", "tags"])
def test_a_required_text_is_not_empty(missing: str):
    sent = {f"answer.{name}": "x" for name in ("name", "why", "tags")} | {"answer.more": ""}
    whole = {"name": "x", "why": "x", "tags": ["x"], "more": [], "sure": False}
    assert answer_from(TEXTS, sent) == whole
    with pytest.raises(BadAnswer, match="a value is needed"):
        answer_from(TEXTS, sent | {f"answer.{missing}": " "})


def test_the_browser_refuses_an_empty_required_field():
    fields = {field.label: field for field in fields_of(TEXTS)}
    form = "{% for f in fields %}{{ field(f) }}{% endfor %}"
    template = _environment().from_string("{% from 'parts.html' import field %}" + form)
    page = Page(template.render(fields=[*fields.values()]))
    required = {a["name"] for _, a in page.tags if "required" in a}
    assert required == {"answer.name", "answer.why", "answer.tags"}


def test_no_choice_is_made_for_people_unless_the_schema_has_a_default():
    properties = {
        "free": {"enum": ["merge", "close"]},
        "set": {"enum": ["merge", "close"], "default": "close"},
        "only": {"const": "merge"},
    }
    schema = {"type": "object", "properties": properties, "required": [*properties]}
    template = _environment().from_string(
        "{% from 'parts.html' import field %}{% for f in fields %}{{ field(f) }}{% endfor %}"
    )
    page = Page(template.render(fields=fields_of(schema)))
    selects = [attributes for tag, attributes in page.tags if tag == "select"]
    assert all("required" in each for each in selects)
    options = [attributes for tag, attributes in page.tags if tag == "option"]
    assert options == [{"value": ""}, {}, {}, {}, {"selected": ""}, {}]


def test_a_group_that_is_not_required_can_be_left_empty_as_a_whole():
    inner = {"name": {"type": "string"}, "age": {"type": "integer"}}
    author = {"type": "object", "properties": inner, "required": ["name"]}
    schema = {"type": "object", "properties": {"author": author}}
    empty = {"answer.author.name": "", "answer.author.age": ""}
    assert answer_from(schema, empty) == {}
    [group] = fields_of(schema)
    assert not any(field.is_forced for field in group.fields)
    assert answer_from(schema, empty | {"answer.author.name": "Ann"}) == {"author": {"name": "Ann"}}
    with pytest.raises(BadAnswer, match="Name: a value is needed"):
        answer_from(schema, empty | {"answer.author.age": "3"})


def test_what_is_not_required_can_be_left_out_and_denied():
    needed = {"answer.verdict": "later", "answer.severity": "1"}
    left_out: Any = answer_from(SCHEMA, needed | {"answer.notify": ""})
    assert "notify" not in left_out
    denied: Any = answer_from(SCHEMA, needed | {"answer.notify": "no"})
    assert denied["notify"] is False


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("answer.severity", "9", "at most 5"),
        ("answer.severity", "0", "at least 1"),
        ("answer.severity", "x", "not a number"),
        ("answer.severity", "", "needed"),
        ("answer.verdict", "maybe", "not one of the choices"),
    ],
)
def test_what_the_schema_does_not_allow_is_refused(name: str, value: str, why: str):
    with pytest.raises(BadAnswer, match=why):
        answer_from(SCHEMA, SENT | {name: value})


def test_a_schema_of_pydantic_round_trips():
    schema = Decision.model_json_schema()
    sent = {
        "answer.verdict": "no",
        "answer.author.name": "Ann",
        "answer.author.age": "",
        "answer.score": "0.5",
        "answer.extra": '{"a": 1}',
        "answer.comment": "",
    }
    answer: Any = answer_from(schema, sent)
    assert Decision.model_validate(answer) == Decision(
        verdict="no", author=Author(name="Ann"), score=0.5, extra={"a": 1}
    )


def test_an_answer_without_a_schema_is_text_or_json():
    assert answer_from(None, {"answer": "[1]"}) == "[1]"
    assert answer_from(None, {"answer": "[1]", "as_json": "yes"}) == [1]
    with pytest.raises(BadAnswer, match="not JSON"):
        answer_from(None, {"answer": "[1", "as_json": "yes"})


@pytest.mark.parametrize(
    "question", [None, "why?", 3, {"schema": "x"}, {"schema": {}}, {"draft": "a"}]
)
def test_a_question_without_a_schema_of_its_answer_has_none(question: object):
    assert schema_of(question) is None
    [field] = fields_of(None)
    assert field.kind == "lines"


@pytest.mark.parametrize("text", ["nan", "-inf", "1e999"])
def test_an_answer_has_no_number_that_json_lacks(text: str):
    with pytest.raises(BadAnswer, match="not a number"):
        answer_from({"type": "number"}, {"answer": text})


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "[" * 100_000, "1" * 5000])
def test_an_answer_is_no_json_that_other_programs_refuse(text: str):
    with pytest.raises(BadAnswer, match="not JSON"):
        answer_from(None, {"answer": text, "as_json": "yes"})


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"a": True}},
        {"type": "object", "properties": ["a"]},
        {"type": "array", "items": True},
        {"type": "string", "maxLength": "x"},
        {"anyOf": [True, {"type": "null"}]},
        {"$ref": "#/$defs/a", "$defs": {"a": 3}},
    ],
    ids=range(6),
)
def test_a_schema_that_is_none_takes_json(schema: dict[str, Any]):
    [field] = fields_of(schema)
    assert field.kind == "json"
    assert answer_from(schema, {field.name: "[1]"}) == [1]
