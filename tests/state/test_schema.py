"""Typed states: what a model declares, and how updates are held to it."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import dataclasses
import subprocess
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from datetime import date
from typing import Annotated, Any, ClassVar, Generic, Literal, NotRequired, Required, TypeVar

import pydantic.dataclasses
import pytest
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    ValidationError,
    field_validator,
    model_validator,
)
from typing_extensions import TypeAliasType, TypedDict

from shoal import Application, ErrorInfo, PositionedList, State, StateList, StateMap, action
from shoal._state import schema as _schema
from shoal._state.schema import Schema
from shoal._state.state import Change, change_between
from shoal.errors import DefinitionError, InvalidState, StateError
from shoal.events import Drop, Extend, Increment, Put, Set
from shoal.stores import replay

T = TypeVar("T")
Links = TypeAliasType("Links", list[int])
Tags = typing.NewType("Tags", list[str])


class Client:
    """A class that pydantic knows nothing of."""


class Page(BaseModel):
    url: str
    size: int = 0


class Meta(TypedDict, total=False):
    n: int
    on: date


class Crawl(BaseModel):
    title: str
    count: int = 0
    ratio: float = Field(default=0.5, gt=0)
    tags: list[str] = []
    sizes: dict[str, int] = Field(default_factory=dict[str, int])
    pages: list[Page] = []
    errors: dict[str, ErrorInfo] = {}
    few: list[Annotated[int, Field(gt=0)]] | None = Field(default=None, max_length=3)
    meta: Meta = {}
    client: Any = None


@dataclass
class Job:
    title: str
    count: int = 0
    ratio: Annotated[float, Field(gt=0)] = 0.5
    tags: list[str] = field(default_factory=list[str])
    sizes: dict[str, int] = field(default_factory=dict[str, int])
    seen: tuple[int, ...] = ()
    client: Client | None = None


class Task(TypedDict):
    title: str
    count: NotRequired[int]
    ratio: NotRequired[Annotated[float, Field(gt=0)]]
    tags: NotRequired[list[str]]
    sizes: NotRequired[dict[str, int]]


MODELS: list[type[Any]] = [Crawl, Job, Task]
each_kind = pytest.mark.parametrize("model", MODELS)


def changed(
    schema: Schema[Any], before: Mapping[str, object], act: Callable[[State], State]
) -> tuple[Change, Change]:
    """What `act` did, as it is and as it is after the check; they must lead to what they say."""
    base = State(before)
    change = change_between(base, act(base), "the test")
    result = schema.checked(change, before, "action 'parse'")
    assert dict(replay(base, result.operations)) == dict(result.applied_to(before))
    return change, result


def refusal(model: type[Any], act: Callable[[State], State], **before: object) -> str:
    with pytest.raises(InvalidState) as caught:
        changed(Schema(model), before, act)
    return str(caught.value)


# -- what a model declares -------------------------------------------------------------------------


def test_fields_of_a_pydantic_model():
    schema = Schema(Crawl)
    assert schema.model is Crawl
    assert schema.name == "Crawl"
    assert schema.fields == {*Crawl.model_fields}
    assert schema.required == {"title"}
    assert repr(schema) == "Schema(Crawl)"


def test_fields_of_a_dataclass():
    schema = Schema(Job)
    assert schema.fields == {"title", "count", "ratio", "tags", "sizes", "seen", "client"}
    assert schema.required == {"title"}


def test_fields_of_a_typed_dict():
    schema = Schema(Task)
    assert schema.fields == {"title", "count", "ratio", "tags", "sizes"}
    assert schema.required == {"title"}


def test_fields_of_the_standard_librarys_typed_dict():
    class Base(typing.TypedDict):
        a: int
        b: NotRequired[int]
        e: Annotated[NotRequired[int], Field(gt=0)]

    class Child(Base, total=False):
        c: str
        d: Required[str]

    schema = Schema(Child)
    assert schema.fields == {"a", "b", "c", "d", "e"}
    assert schema.required == {"a", "d"}
    assert schema.initial({"a": "1"}) == {"a": 1}
    with pytest.raises(InvalidState, match=r"Child\.e: .*greater than 0"):
        schema.initial({"e": 0})


def test_inherited_fields():
    class Deep(Crawl):
        depth: int
        title: str = "none"

    @dataclass(kw_only=True)
    class LongJob(Job):
        hours: float

    assert Schema(Deep).required == {"depth"}
    assert Schema(Deep).fields == {*Schema(Crawl).fields, "depth"}
    assert Schema(LongJob).required == {"title", "hours"}
    made = Schema(LongJob).build({"title": "t", "hours": 2.0})
    assert made == LongJob(title="t", hours=2.0)


def test_class_variables_and_computed_fields_are_no_state():
    @dataclass(slots=True)
    class Box:
        width: int
        limit: ClassVar[int] = 3
        area: int = field(init=False)

        def __post_init__(self) -> None:
            self.area = self.width**2

    schema = Schema(Box)
    assert schema.fields == {"width"}
    said = "field 'area', which Box sets by itself, since it is declared with init=False"
    with pytest.raises(StateError, match=said):
        schema.initial({"width": 3, "area": 9})
    with pytest.raises(InvalidState, match=said):
        changed(schema, {"width": 3}, lambda s: s.update(area=4))

    @action(reads=["width"], writes=["area"])
    def act(width: int) -> int:
        return width

    with pytest.raises(DefinitionError, match=f"it writes {said}"):
        Application(act, state=Box)
    assert schema.initial(Box(3)) == {"width": 3}
    assert schema.build({"width": 3}).area == 9


def test_a_generic_pydantic_model():
    class Found(BaseModel, Generic[T]):
        best: T
        rest: list[T] = []

    schema = Schema(Found[int])
    assert schema.name == "Found[int]"
    assert schema.initial({"best": "3", "rest": ["4"]}) == {"best": 3, "rest": [4]}
    with pytest.raises(InvalidState, match=r"Found\[int\].best: int"):
        schema.initial({"best": "x"})
    assert Schema(Found).item("rest", "anything", "it") == "anything"  # pyright: ignore[reportUnknownArgumentType] # an open type variable


def test_a_model_that_names_a_later_class_is_completed(monkeypatch: pytest.MonkeyPatch):
    source = (
        "from __future__ import annotations\n"
        "from pydantic import BaseModel\n"
        "class First(BaseModel):\n    second: Second\n"
        "class Second(BaseModel):\n    n: int\n"
    )
    module = types.ModuleType("later")
    monkeypatch.setitem(sys.modules, "later", module)
    exec(source, vars(module))
    fields = Schema[Any](module.First).initial({"second": {"n": 1}})
    assert fields == {"second": module.Second(n=1)}


class Plain:
    n: int


@dataclass
class Box(Generic[T]):
    n: T


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Plain, r"pydantic model, a dataclass or a TypedDict, not the class Plain"),
        (dict, "not the class dict"),
        (3, r"not 3 \(int\)"),
        (Page(url="u"), "give the class, not an instance"),
        (Job("t"), "give the class, not an instance"),
        (Box[int], r"Box\[int\]: make a subclass"),
        (RootModel[list[int]], "RootModel.*no fields"),
    ],
)
def test_what_is_no_model(model: Any, said: str):
    with pytest.raises(DefinitionError, match=said):
        Schema(model)


def test_annotations_that_can_not_be_resolved():
    @dataclass
    class Lost:
        n: Nowhere  # pyright: ignore[reportUndefinedVariable, reportUnknownVariableType] # noqa: F821

    class LostModel(BaseModel):
        n: Nowhere  # pyright: ignore[reportUndefinedVariable, reportUnknownVariableType] # noqa: F821

    class LostDict(typing.TypedDict):
        n: Nowhere  # pyright: ignore[reportUndefinedVariable, reportUnknownVariableType] # noqa: F821

    models: list[type[Any]] = [Lost, LostModel, LostDict]
    for model in models:
        with pytest.raises(DefinitionError) as caught:
            Schema(model)
        said = str(caught.value)
        assert f"model {model.__name__} can't be read: name 'Nowhere' is not defined" in said


def made_of(annotation: object) -> type[Any]:
    return dataclasses.make_dataclass("Made", [("x", annotation)])


class Unchecked(typing.Protocol):
    def go(self) -> None: ...


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        (Iterable[int], r"field Made.x: .*Iterable\[int\] could be read only once: say list"),
        (StateList[int], r"is plain in the model .*: say list\[...\]"),
        (StateMap[str, int] | None, r"is plain in the model .*: say dict\[...\]"),
        (Unchecked, "field Made.x: .* can't be checked"),
    ],
)
def test_annotations_that_can_not_be_checked(annotation: object, said: str):
    with pytest.raises(DefinitionError, match=said) as caught:
        Schema(made_of(annotation))
    assert "errors.pydantic.dev" not in str(caught.value)


def test_an_init_var_is_refused():
    @dataclass
    class Seeded:
        n: int
        seed: InitVar[int]

    with pytest.raises(DefinitionError, match=r"Seeded has 'seed' as an InitVar.*make it a field"):
        Schema(Seeded)


def test_without_pydantic(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pydantic", None)
    with pytest.raises(DefinitionError, match=r"pip install shoal\[pydantic\]"):
        Schema(Job)


def test_the_module_loads_no_pydantic_before_it_is_used():
    program = (
        f"import sys, {_schema.__name__} as s\n"
        "from dataclasses import dataclass\n"
        "assert 'pydantic' not in sys.modules\n"
        "@dataclass\n"
        "class A: n: int\n"
        "s.Schema(A)\n"
        "assert 'pydantic' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# -- the first state -------------------------------------------------------------------------------


@each_kind
def test_a_mapping_is_checked_and_converted(model: type[Any]):
    fields = Schema(model).initial({"title": "t", "count": "3", "tags": ("a", "b")})
    assert (fields["title"], fields["count"], fields["tags"]) == ("t", 3, ["a", "b"])


def test_defaults_are_filled_in_anew():
    for model in (Crawl, Job):
        schema = Schema[Any](model)
        one, other = schema.initial({}), schema.initial({})
        assert "title" not in one
        assert (one["count"], one["ratio"], one["tags"], one["sizes"]) == (0, 0.5, [], {})
        assert one["tags"] is not other["tags"]
        assert one["sizes"] is not other["sizes"]
    assert Schema(Task).initial({}) == {}


def test_a_default_made_of_the_fields_before():
    class Doubled(BaseModel):
        n: int
        twice: int = Field(default_factory=lambda fields: fields["n"] * 2)

    assert Schema(Doubled).initial({"n": "4"}) == {"n": 4, "twice": 8}


@pytest.mark.parametrize("model", [Crawl, Job])
def test_an_instance_is_read(model: type[Any]):
    schema = Schema(model)
    given = model(title="t", tags=["a"])
    fields = schema.initial(given)
    assert fields == {name: getattr(given, name) for name in schema.fields}
    assert fields["tags"] is given.tags


def test_an_instance_that_does_not_fit():
    with pytest.raises(InvalidState, match=r"the initial state gives field 'count' 'x' \(str\)"):
        Schema(Job).initial(Job("t", count="x"))  # pyright: ignore[reportArgumentType] # the point
    half = Crawl.model_construct(count=1)
    assert "title" not in Schema(Crawl).initial(half)


def test_a_state_is_a_mapping_too():
    held = StateList(["a"])
    assert Schema(Crawl).initial(State(title="t", tags=held))["tags"] is held


@each_kind
def test_unknown_fields_are_named(model: type[Any]):
    with pytest.raises(StateError) as caught:
        Schema(model).initial({"titel": "t", "zzz": 1})
    said = str(caught.value)
    assert f"fields 'titel', 'zzz', which {model.__name__} does not declare" in said
    assert "did you mean 'title'?" in said
    assert not isinstance(caught.value, InvalidState)


def test_unknown_fields_are_refused_whatever_extra_says():
    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")
        n: int = 0

    for given in ({"m": 1}, Open.model_validate({"m": 1})):
        with pytest.raises(StateError, match=r"field 'm', which Open does not declare"):
            Schema(Open).initial(given)
    with pytest.raises(StateError, match="field 3,"):
        Schema(Open).initial({3: 1})


@each_kind
def test_completeness_is_asked_for(model: type[Any]):
    schema = Schema(model)
    with pytest.raises(StateError, match=f"field 'title', which {model.__name__} requires"):
        schema.initial({"count": 1}, complete=True)
    assert schema.initial({"title": "t"}, complete=True)["title"] == "t"


def test_what_is_neither_instance_nor_mapping():
    with pytest.raises(StateError, match=r"an instance of Job or a mapping .* not 3 \(int\)"):
        Schema(Job).initial(3)
    with pytest.raises(StateError, match="give a mapping of the fields of Task"):
        Schema(Task).initial([("title", "t")])


# -- updates ---------------------------------------------------------------------------------------


def test_what_fits_stays_the_very_change():
    page = Page(url="u")
    acts: list[Callable[[State], State]] = [
        lambda s: s,
        lambda s: s.update(title="t", ratio=1.5, tags=["a"], sizes={"a": 10**6}, client=Client()),
        lambda s: s.append(tags="a", pages=page).extend(tags=["b", "c"]),
        lambda s: s.put("sizes", "a", 10**6).put("sizes", "b", 1, 3.0),
        lambda s: s.increment(count=2),
        lambda s: s.drop("tags"),
        lambda s: s.update(tags=StateList(["a"]), sizes=StateMap({"a": 1})),
        lambda s: s.put("meta", "n", 1),
    ]
    before = Schema(Crawl).initial({"title": "t"})
    for act in acts:
        change, result = changed(Schema(Crawl), before, act)
        assert result is change


@each_kind
def test_a_value_that_does_not_fit(model: type[Any]):
    said = refusal(model, lambda s: s.update(title=3))
    assert said == (
        f"action 'parse' gives field 'title' 3 (int), which does not fit "
        f"{model.__name__}.title: str: Input should be a valid string"
    )


@each_kind
def test_a_constraint_holds_for_every_update(model: type[Any]):
    assert "ratio" in refusal(model, lambda s: s.update(ratio=0))
    assert "greater than 0" in refusal(model, lambda s: s.increment(ratio=-2), ratio=1.0)


def test_the_error_has_pydantics_own_as_its_cause():
    with pytest.raises(InvalidState) as caught:
        changed(Schema(Crawl), {}, lambda s: s.update(title=3))
    assert isinstance(caught.value.__cause__, ValidationError)


def test_a_message_says_where_and_keeps_short():
    said = refusal(Crawl, lambda s: s.update(pages=[{"url": "u"}, {"url": 1}]))
    assert said.endswith(": at 1.url: Input should be a valid string")
    said = refusal(Crawl, lambda s: s.update(tags=[1] * 9))
    assert "(and 6 more)" in said


@each_kind
def test_a_value_is_converted_in_operation_and_result(model: type[Any]):
    _, result = changed(
        Schema(model), {"count": 1}, lambda s: s.update(count="3").update(title="t")
    )
    assert result.operations == (Set("count", 3), Set("title", "t"))
    assert result.values == {"count": 3, "title": "t"}


def test_items_are_converted_in_operations_and_results():
    before = {"pages": StateList([Page(url="a")]), "sizes": StateMap({"a": 1})}
    page = Page(url="b")
    _, result = changed(
        Schema(Crawl),
        before,
        lambda s: s.append(pages={"url": "b"}).put("sizes", "b", "2", 7.0).increment(count=1),
    )
    assert result.operations == (
        Extend("pages", (page,)),
        Put("sizes", "b", 2, 7.0),
        Increment("count", 1),
    )
    assert result.values == {
        "pages": [*before["pages"], page],
        "sizes": {"a": 1, "b": 2},
        "count": 1,
    }
    assert isinstance(result.values["pages"], StateList)
    assert before == {"pages": [Page(url="a")], "sizes": {"a": 1}}


def test_one_and_true_and_one_point_zero_are_told_apart():
    _, result = changed(Schema(Crawl), {}, lambda s: s.update(sizes={"a": 1.0}, tags=["a"]))
    sizes = result.values["sizes"]
    assert isinstance(sizes, dict)
    assert type(typing.cast("dict[str, object]", sizes)["a"]) is int
    _, result = changed(
        Schema(made_of(tuple[float, list[bool]])), {}, lambda s: s.update(x=(1, [1]))
    )
    assert repr(result.values["x"]) == "(1.0, [True])"


def test_items_that_do_not_fit():
    said = refusal(Crawl, lambda s: s.append(tags=3), tags=[])
    assert said.startswith("action 'parse' gives an item of field 'tags' 3 (int), which does not")
    said = refusal(Crawl, lambda s: s.put("sizes", 3, 3))
    assert said.startswith("action 'parse' gives a key of field 'sizes' 3 (int), which does not")
    said = refusal(Crawl, lambda s: s.put("sizes", "a", "b"))
    assert said.startswith("action 'parse' gives an item of field 'sizes' 'b' (str), which does")
    assert "greater than 0" in refusal(Crawl, lambda s: s.append(few=0))


def test_a_length_holds_while_a_list_grows():
    changed(Schema(Crawl), {"few": [1, 2]}, lambda s: s.append(few=3))
    said = refusal(Crawl, lambda s: s.append(few=4), few=[1, 2, 3])
    assert "makes field 'few' 4 items long" in said
    assert "takes at most 3" in said
    assert "at most 3 items" in refusal(Crawl, lambda s: s.update(few=[1, 2, 3, 4]))
    model = made_of(typing.Optional[Annotated[list[int], Field(max_length=1)]])  # noqa: UP045 # on 3.11
    assert "takes at most 1" in refusal(model, lambda s: s.extend(x=[1, 2]))
    changed(Schema(Crawl), {"few": [1, 2, 3]}, lambda s: s.append(few=4).update(few=None))


def test_an_absent_field_does_not_become_what_it_is_not():
    assert "valid integer" in refusal(Crawl, lambda s: s.append(count=1))
    assert "valid dictionary" in refusal(Crawl, lambda s: s.append(sizes=1))
    assert "valid list" in refusal(Crawl, lambda s: s.put("tags", "a", "b"))
    assert "valid string" in refusal(Crawl, lambda s: s.increment(title=1))


def test_a_number_is_judged_by_what_it_becomes():
    assert "fractional part" in refusal(Crawl, lambda s: s.increment(count=0.5), count=1)
    _, result = changed(Schema(Crawl), {"count": 1}, lambda s: s.increment(count=1.0))
    assert result.operations == (Increment("count", 1.0), Set("count", 2))
    assert type(result.values["count"]) is int


def test_items_that_differ_in_type_are_checked_together():
    assert "at n: Input should be a valid integer" in refusal(
        Crawl, lambda s: s.put("meta", "n", "x"), meta={}
    )
    _, result = changed(Schema(Crawl), {}, lambda s: s.put("meta", "on", "2026-01-02"))
    assert result.operations[-1] == Set("meta", {"on": date(2026, 1, 2)})


def test_undeclared_and_required_fields():
    said = refusal(Crawl, lambda s: s.update(titel="t"))
    assert said.startswith("action 'parse' writes field 'titel', which Crawl does not declare; did")
    assert "'zzz'" in refusal(Crawl, lambda s: s.append(zzz=1))
    assert "'zzz'" in refusal(Crawl, lambda s: s.drop("zzz"))
    said = refusal(Crawl, lambda s: s.drop("title"), title="t")
    assert said == "action 'parse' drops field 'title', which Crawl requires"
    change, result = changed(
        Schema(Crawl), {"title": "t"}, lambda s: s.drop("title", "count").update(title="u")
    )
    assert result is change
    assert change.operations[:2] == (Drop("title"), Drop("count"))


def test_what_is_there_already_is_not_checked_again():
    held = object()
    changed(Schema(Crawl), {"tags": held}, lambda s: s.update(tags=held))
    wrong = StateList([1, 2])
    assert "at 0" in refusal(Crawl, lambda s: s.update(tags=wrong))
    changed(Schema(Crawl), {"tags": wrong}, lambda s: s.append(tags="a"))


def test_a_persistent_collection_that_must_be_converted_comes_out_plain():
    positioned = PositionedList(StateMap[int, str]()).put_all([(1, "2", 1.0), (0, "1", 0.0)])
    _, result = changed(Schema(made_of(list[int])), {}, lambda s: s.update(x=positioned))
    assert result.values["x"] == [1, 2]
    assert type(result.values["x"]) is list
    _, result = changed(
        Schema(made_of(dict[int, int])), {}, lambda s: s.update(x=StateMap({"1": 2}))
    )
    assert result.values["x"] == {1: 2}
    change, result = changed(Schema(made_of(list[str])), {}, lambda s: s.update(x=positioned))
    assert result is change


def test_keys_of_a_list_by_position_are_the_engines():
    before = {"x": PositionedList(StateMap[int, int]())}
    for annotation in (list[int], list[int] | dict[str, int]):
        _, result = changed(Schema(made_of(annotation)), before, lambda s: s.put("x", 4, "5", 4.0))
        assert result.operations == (Put("x", 4, 5, 4.0),)
        assert result.values["x"] == [5]


def test_a_check_costs_what_the_operation_costs():
    looked_at: list[int] = []

    def looked(n: int) -> int:
        looked_at.append(n)
        return n

    Looked = Annotated[int, AfterValidator(looked)]  # noqa: N806 # a type
    model = dataclasses.make_dataclass("Made", [("xs", list[Looked]), ("ys", dict[int, Looked])])
    before = {"xs": list(range(1000)), "ys": dict.fromkeys(range(1000), 0)}
    changed(Schema(model), before, lambda s: s.append(xs=1).extend(xs=[2, 3]).put("ys", 5, 4))
    assert looked_at == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "annotation",
    [
        list[int],
        Sequence[int],
        set[int],
        frozenset[int],
        tuple[int, ...],
        list[int] | None,
        dict[str, int] | list[int],
        Annotated[list[int], Field(max_length=9)],
        Links,
        dict[str, int],
        Mapping[str, int],
        Annotated[Mapping[str, int] | None, "a note"],
    ],
)
def test_items_of_a_field(annotation: object):
    schema = Schema(made_of(annotation))
    assert schema.item("x", "3", "child 'a'") == 3
    with pytest.raises(InvalidState, match=r"child 'a' gives an item of field 'x' 'b' \(str\)"):
        schema.item("x", "b", "child 'a'")


def test_items_of_a_list_or_a_mapping_are_those_of_what_it_is():
    schema = Schema(made_of(list[str] | dict[str, int]))
    assert schema.item("x", "b", "it") == "b"
    assert schema.entry("x", "b", 2, "it") == 2
    with pytest.raises(InvalidState, match="an item of field 'x' 1"):
        schema.item("x", 1, "it")
    with pytest.raises(InvalidState, match="an item of field 'x' 'b'"):
        schema.entry("x", "b", "b", "it")
    acts: list[tuple[object, Callable[[State], State]]] = [
        (StateList(["a"]), lambda s: s.append(x=1)),
        (PositionedList(StateMap[int, str]()), lambda s: s.put("x", 4, 5, 4.0)),
        (StateMap({"a": 1}), lambda s: s.put("x", "b", "b")),
    ]
    for held, act in acts:
        with pytest.raises(InvalidState, match="an item of field 'x'"):
            changed(schema, {"x": held}, act)


@pytest.mark.parametrize("annotation", [Any, object, list, dict, list[Any], TypeVar("U"), Tags])
def test_items_of_any_kind(annotation: object):
    item = object() if annotation is not Tags else "a tag"
    assert Schema(made_of(annotation)).item("x", item, "child 'a'") is item


@pytest.mark.parametrize("annotation", [int, tuple[int, str], Meta, Page, Literal["a"]])
def test_fields_without_items(annotation: object):
    with pytest.raises(InvalidState, match=r"gives field 'x' an item, and Made\.x: .* takes none"):
        Schema(made_of(annotation)).item("x", 1, "child 'a'")


def test_an_item_of_an_undeclared_field():
    with pytest.raises(InvalidState, match=r"child 'a' writes field 'y', which Made does not"):
        Schema(made_of(int)).item("y", 1, "child 'a'")


def test_items_that_are_models():
    schema = Schema(Crawl)
    page, info = Page(url="u"), ErrorInfo(type="ValueError", message="m", traceback="t")
    assert schema.item("pages", page, "it") is page
    assert schema.item("pages", {"url": "u"}, "it") == page
    assert schema.item("errors", info, "it") is info
    with pytest.raises(InvalidState, match=r"errors: dict\[str, shoal\._?\w*\.?ErrorInfo\]"):
        schema.item("errors", "oops", "it")


def test_an_item_that_is_a_persistent_collection():
    held = StateList(["a"])
    assert Schema(made_of(dict[str, list[str]])).item("x", held, "it") is held


def test_arbitrary_classes_are_checked_by_isinstance():
    client = Client()
    schema = Schema(Job)
    assert schema.initial({"client": client})["client"] is client
    with pytest.raises(InvalidState, match="instance of Client"):
        schema.initial({"client": 3})


def test_the_settings_of_the_model_hold_for_its_fields():
    class Strict(BaseModel):
        model_config = ConfigDict(strict=True, str_strip_whitespace=True)
        n: int = 0
        names: list[str] = []

    assert "valid integer" in refusal(Strict, lambda s: s.update(n="3"))
    schema = Schema(Strict)
    assert schema.item("names", " a ", "it") == "a"
    assert schema.initial({"names": StateList(["a"])}) == {"names": ["a"], "n": 0}
    assert schema.build({"names": StateList(["a"])}) == Strict(names=["a"])


def test_a_discriminated_union():
    class Cat(BaseModel):
        kind: Literal["cat"]

    class Dog(BaseModel):
        kind: Literal["dog"]

    class Owner(BaseModel):
        pet: Cat | Dog = Field(discriminator="kind")

    assert Schema(Owner).initial({"pet": {"kind": "dog"}}) == {"pet": Dog(kind="dog")}
    with pytest.raises(InvalidState, match="expected tags: 'cat', 'dog'"):
        Schema(Owner).initial({"pet": {"kind": "cow"}})


def test_an_error_that_a_type_raises_by_itself_is_left_alone():
    def look(value: object) -> object:
        raise LookupError(value)

    with pytest.raises(LookupError):
        Schema(made_of(Annotated[int, AfterValidator(look)])).initial({"x": 3})


# -- the instance at the end -----------------------------------------------------------------------


@each_kind
def test_build_gives_a_plain_instance(model: type[Any]):
    state = State(title="t").append(tags="a").put("sizes", "b", 2, 1.0).put("sizes", "a", 1, 0.0)
    schema = Schema(model)
    made = schema.build({**state, "of_another": 1})
    fields = typing.cast("dict[str, Any]", made if model is Task else vars(made))
    assert fields["title"] == "t"
    assert type(fields["tags"]) is list
    sizes: Any = fields["sizes"]
    assert type(sizes) is dict
    assert [*sizes] == ["a", "b"]
    assert type(made) is (dict if model is Task else model)


@each_kind
def test_build_needs_what_is_required(model: type[Any]):
    with pytest.raises(StateError) as caught:
        Schema(model).build({"count": 1})
    assert f"the state has no field 'title', which {model.__name__} requires" in str(caught.value)


def test_a_list_that_grew_becomes_what_was_declared():
    grown = StateList([3, 3])
    for annotation, wanted in ((tuple[int, ...], (3, 3)), (set[int], {3}), (Sequence[int], [3, 3])):
        assert Schema(made_of(annotation)).build({"x": grown}).x == wanted


def test_the_models_own_validators_run_in_build_alone():
    class Range(BaseModel):
        low: int = 0
        high: int = 9
        name: str = ""

        @field_validator("name")
        @classmethod
        def title(cls, name: str) -> str:
            return name.title()

        @model_validator(mode="after")
        def ordered(self) -> Range:
            if self.low > self.high:
                raise ValueError("low is above high")
            return self

    schema = Schema(Range)
    change, result = changed(schema, {}, lambda s: s.update(low=10, high=3, name="a b"))
    assert result is change
    with pytest.raises(InvalidState) as caught:
        schema.build(result.values)
    assert "does not make a valid Range: Value error, low is above high" in str(caught.value)
    assert schema.build({"name": "a b"}).name == "A B"


def test_what_post_init_raises_is_left_alone():
    @dataclass
    class Range:
        low: int
        high: int

        def __post_init__(self) -> None:
            if self.low > self.high:
                raise ValueError("low is above high")

    with pytest.raises(ValueError, match=r"^low is above high$") as caught:
        Schema(Range).build({"low": 3, "high": 1})
    assert type(caught.value) is ValueError


def test_aliases_are_for_the_world_outside():
    class Aliased(BaseModel):
        model_config = ConfigDict(frozen=True, extra="forbid")
        a: int = Field(alias="b")
        b: int = Field(alias="a", default=2)
        c: list[int] = Field(validation_alias="C", default=[])

    schema = Schema(Aliased)
    assert schema.fields == {"a", "b", "c"}
    fields = schema.initial({"a": 1})
    assert fields == {"a": 1, "b": 2, "c": []}
    made = schema.build(State(fields).append(c=3))
    assert (made.a, made.b, made.c) == (1, 2, [3])
    assert schema.initial(made) == {"a": 1, "b": 2, "c": [3]}

    class AliasedDict(TypedDict):
        n: Annotated[int, Field(alias="N")]

    assert Schema(AliasedDict).build(Schema(AliasedDict).initial({"n": "1"})) == {"n": 1}


def test_a_pydantic_dataclass():
    @pydantic.dataclasses.dataclass(config=ConfigDict(str_strip_whitespace=True))
    class Item:
        name: str
        n: int = Field(alias="N", gt=0, default=1)
        sizes: list[int] = Field(default_factory=list[int])
        fixed: int = Field(default=3, init=False)

    schema = Schema(Item)
    assert schema.fields == {"name", "n", "sizes"}
    assert schema.required == {"name"}
    fields = schema.initial({"name": " a "})
    assert fields == {"name": "a", "n": 1, "sizes": []}
    assert "greater than 0" in refusal(Item, lambda s: s.update(n=0))
    made = schema.build(State(fields).update(n=4).append(sizes=3))
    assert (made.name, made.n, made.sizes, made.fixed) == ("a", 4, [3], 3)
    with pytest.raises(InvalidState, match="does not make a valid Item: at n"):
        schema.build({"name": "a", "n": 0})


def test_nested_models_are_kept_as_they_are():
    page = Page(url="u")
    made = Schema(Crawl).build({"title": "t", "pages": StateList([page])})
    assert made.pages[0] is page


class Texts(BaseModel):
    texts: list[str] = []
    numbers: dict[str, int] = {}


class Stripped(BaseModel):
    model_config = ConfigDict(str_strip_whitespace=True)
    texts: list[str] = []


class Name(str):
    __slots__ = ()


def test_a_plain_collection_of_the_declared_types_stays_the_same_object():
    given = {"texts": ["a", "b"], "numbers": {"a": 1}}
    fields = Schema(Texts).initial(given)
    assert fields["texts"] is given["texts"]
    assert fields["numbers"] is given["numbers"]


@pytest.mark.parametrize(
    ("field", "value", "fitting"),
    [
        ("texts", ("a", "b"), ["a", "b"]),
        ("texts", [Name("a")], ["a"]),
        ("numbers", {"a": True}, {"a": 1}),
        ("numbers", {"a": "1"}, {"a": 1}),
    ],
)
def test_other_items_are_given_to_pydantic(field: str, value: object, fitting: object):
    assert Schema(Texts).initial({field: value})[field] == fitting


@pytest.mark.parametrize(
    ("field", "value"), [("texts", ["a", 1]), ("numbers", {1: 1}), ("numbers", {"a": "b"})]
)
def test_an_item_that_does_not_fit_is_refused(field: str, value: object):
    with pytest.raises(InvalidState):
        Schema(Texts).initial({field: value})


def test_settings_of_the_model_apply_to_items():
    assert Schema(Stripped).initial({"texts": [" a "]})["texts"] == ["a"]
