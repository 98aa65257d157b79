"""Types of answers, their JSON schemas, and what fits a schema."""

from __future__ import annotations

import enum
import json
import sys
from dataclasses import dataclass
from datetime import date
from typing import Annotated, Any, Literal, Required, TypedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter, ValidationError, field_validator

from shoal._state.answers import Unfit, answer_type
from shoal._state.json_schema import misfit
from shoal._state.plain import to_json
from shoal.errors import DefinitionError


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Decision(BaseModel):
    verdict: Literal["merge", "close"]
    stars: int = Field(default=3, ge=1, le=5)
    why: str | None = Field(default=None, max_length=10)

    @field_validator("why")
    @classmethod
    def no_shouting(cls, value: str | None) -> str | None:
        if value and value.isupper():
            raise ValueError("don't shout")
        return value


@dataclass
class Point:
    x: int
    y: float = 0.0


class Names(TypedDict):
    first: str
    last: str


class Some(TypedDict, total=False):
    n: Required[Annotated[int, Field(gt=2)]]
    note: str


class Tree(BaseModel):
    name: str
    children: list[Tree] = []


FITS: list[tuple[Any, Any, Any]] = [
    (bool, True, True),
    (int, 3, 3),
    (int, 3.0, 3),
    (float, 3, 3.0),
    (str, "a", "a"),
    (None, None, None),
    (Literal["a", 1], 1, 1),
    (Colour, "red", Colour.RED),
    (Colour, Colour.BLUE, Colour.BLUE),
    (Level, 2, Level.HIGH),
    (str | None, None, None),
    (int | str, "a", "a"),
    (int | float, 2, 2),
    (float | None, 2, 2.0),
    (list[Colour], ["red"], [Colour.RED]),
    (dict[str, float], {"a": 1}, {"a": 1.0}),
    (Decision, {"verdict": "merge"}, Decision(verdict="merge")),
    (Decision, Decision(verdict="close", stars=1), Decision(verdict="close", stars=1)),
    (Point, {"x": 1}, Point(1)),
    (Point, Point(1, 2.0), Point(1, 2.0)),
    (Names, {"first": "a", "last": "b"}, {"first": "a", "last": "b"}),
    (Some, {"n": 3}, {"n": 3}),
    (Annotated[int, Field(gt=2)], 3, 3),
    (date, date(2026, 12, 1), date(2026, 12, 1)),
    (list[Decision], [{"verdict": "merge"}], [Decision(verdict="merge")]),
    ({"type": "array", "items": {"type": "integer"}}, [1], [1]),
]


@pytest.mark.parametrize(("annotation", "value", "instance"), FITS)
def test_what_fits_becomes_an_instance(annotation: Any, value: Any, instance: Any):
    kind = answer_type(annotation)
    kept = to_json(value)
    assert misfit(kept, kind.schema) is None
    made = kind.read(kept)
    assert made == instance
    assert type(made) is type(instance)
    assert json.loads(json.dumps(kind.schema)) == kind.schema


MISFITS: list[tuple[Any, Any, str]] = [
    (bool, 1, "must be true or false"),
    (int, True, "must be a whole number"),
    (int, 1.5, "must be a whole number"),
    (float, "1", "must be a number"),
    (float, float("nan"), "must be a number"),
    (str, 1, "must be a text"),
    (Literal["a", 1], True, "must be one of 'a', 1"),
    (Literal["a"], "b", "must be 'a'"),
    (Colour, "green", "must be one of 'red', 'blue'"),
    (str | None, 1, "must be a text or null"),
    (list[int], [1, "a"], "1: must be a whole number"),
    (dict[str, int], {"a": None}, "a: must be a whole number"),
    (Decision, {}, "verdict: is missing"),
    (Decision, "merge", "must be an object"),
    (Decision, {"verdict": "no"}, "verdict: must be one of 'merge', 'close'"),
    (Decision, {"verdict": "merge", "stars": 9}, "stars: must be at most 5"),
    (Decision, {"verdict": "merge", "why": "x" * 11}, "why: must have at most 10 characters"),
    (Annotated[int, Field(gt=2)], 2, "must be more than 2"),
    (Names, {"first": "a"}, "last: is missing"),
    (Some, {"n": 2}, "n: must be more than 2"),
    (Some, {"note": "a"}, "n: is missing"),
    (Annotated[str, Field(pattern="^a+$")], "b", "must match ^a+$"),
    (Annotated[list[int], Field(min_length=1)], [], "must have at least 1 item"),
    (Annotated[int, Field(multiple_of=3)], 4, "must be a multiple of 3"),
    (tuple[int, str], [1, 2], "1: must be a text"),
    (Tree, {"name": "a", "children": [{"name": 1}]}, "children.0.name: must be a text"),
    (Decision | Point, {"x": "a"}, "x: must be a whole number"),
]


@pytest.mark.parametrize(("annotation", "value", "why"), MISFITS)
def test_what_does_not_fit_is_refused_by_the_schema_alone(annotation: Any, value: Any, why: str):
    kind = answer_type(annotation)
    found = misfit(to_json(value), kind.schema)
    assert found is not None
    assert found.text == why
    with pytest.raises(Unfit):
        kind.read(to_json(value))


def test_a_validator_that_the_schema_can_not_express_refuses_when_it_is_read():
    kind = answer_type(Decision)
    value = {"verdict": "merge", "why": "NO"}
    assert misfit(value, kind.schema) is None
    with pytest.raises(Unfit, match="why: Value error, don't shout"):
        kind.read(value)


@pytest.mark.parametrize("schema", [{}, {"$ref": "#/a"}, {"a": {"$ref": "#/a"}, "$ref": "#/a"},
    {"type": "nonsense"}, {"type": 3}, {"enum": 3}, {"pattern": "("}, {"anyOf": 3},
    {"required": 1}, {"properties": []}, {"minimum": "a"}])  # fmt: skip
def test_a_schema_that_is_none_allows_everything(schema: Any):
    values: list[Any] = [None, True, 1, "a", [], {}]
    for value in values:
        assert misfit(value, schema) is None


def test_what_is_no_type_of_answers_is_refused():
    with pytest.raises(DefinitionError, match="pydantic makes no JSON schema of it"):
        answer_type(object())
    with pytest.raises(DefinitionError, match="holds what JSON can hold"):
        answer_type({"enum": {1, 2}})


def test_without_pydantic_plain_types_are_known(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pydantic", None)

    class Other(BaseModel):
        n: int

    assert answer_type(list[Literal["x", "y"]]).read(["x"]) == ["x"]
    with pytest.raises(DefinitionError, match=r"needs pydantic: pip install 'shoal\[pydantic\]'"):
        answer_type(Other)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats(-2, 2) | st.sampled_from("ab"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("xyab"), inner),
    max_leaves=6,
)


class Strict(BaseModel, strict=True, extra="forbid"):
    x: Annotated[int, Field(ge=0, le=5)] | Literal["a"] | None
    y: list[dict[Literal["a", "b"], bool]] = []
    a: float = 0.0


@given(json_values)
@settings(max_examples=300, deadline=None)
def test_a_schema_refuses_what_its_model_refuses(value: Any):
    """pydantic is the judge, in its strict mode, on JSON."""
    adapter = TypeAdapter(Strict)
    try:
        adapter.validate_json(json.dumps(value))
        fits = True
    except ValidationError:
        fits = False
    found = misfit(value, answer_type(Strict).schema)
    if fits:
        assert found is None
    elif found is None:
        # The one thing that a schema says otherwise: 3.0 is a whole number.
        assert ".0" in json.dumps(value)
