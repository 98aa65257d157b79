"""What clients send and get: as it is described, whatever declares the state."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Annotated, Any, NotRequired

import pytest
from pydantic import BaseModel, ConfigDict, Field, computed_field, model_serializer
from typing_extensions import TypedDict

from shoal import Application, Graph, StateList, action
from shoal.fastapi._models import as_json
from shoal.stores._protocol import NullStore
from shoal.testing import no_leaks
from tests.fastapi.inside import client_of, doubled, jobs, say, service_of

pytestmark = pytest.mark.anyio


@dataclass
class AsDataclass:
    items: list[float]
    title: str = "job"
    outs: dict[str, float] = field(default_factory=dict[str, float])
    said: str = ""


class AsTypedDict(TypedDict):
    items: list[float]
    title: str
    outs: NotRequired[dict[str, float]]
    said: NotRequired[str]


@pytest.mark.parametrize("model", [AsDataclass, AsTypedDict, None])
async def test_states_of_every_kind_are_described_and_taken(model: Any):
    app = Application(Graph.chain(doubled, say), name="some-jobs", state=model)
    service, _ = service_of(app)
    described = service.openapi()["components"]["schemas"]
    start = next(schema for name, schema in described.items() if name.startswith("SomeJobsStart"))
    required = {"items"} if model is AsDataclass else {"items", "title"}
    assert set(start["required"]) == required
    assert {f"SomeJobs{end}" for end in ("Running", "Succeeded", "Failed", "Cancelled")} <= set(
        described
    )
    async with client_of(service) as client:
        state = {"items": [0.5], "title": "t"}
        found = (await client.post("/some-jobs/wait", json={"state": state})).json()
        assert found["state"]["said"] == "t: done"


class Line(BaseModel):
    amount: int = Field(alias="lineAmount")
    within: list[Line] = []


class WithAliases(BaseModel):
    user_name: str = Field(alias="userName")
    lines: list[Line] = []
    said: str = Field("", serialization_alias="SAID")


class WithMadeAliases(BaseModel):
    model_config = ConfigDict(alias_generator=str.upper)

    user_name: str
    lines: list[Line] = []
    said: str = ""

    @computed_field
    @property
    def length(self) -> int:
        return len(self.user_name)


@dataclass
class AnnotatedWithAliases:
    user_name: Annotated[str, Field(alias="userName")]
    lines: list[Line] = field(default_factory=list[Line])
    said: str = ""


@pytest.mark.parametrize("model", [WithAliases, WithMadeAliases, AnnotatedWithAliases])
async def test_states_are_described_by_the_names_they_are_sent_with(model: Any):
    @action(reads=["user_name"], writes=["said"])
    async def greet(user_name: str) -> str:
        return f"hello, {user_name}"

    service, _ = service_of(Application(greet, name="greetings", state=model))
    described = service.openapi()["components"]["schemas"]
    kind = described["GreetingsSucceeded"]["properties"]["state"]["$ref"].rpartition("/")[2]
    async with client_of(service) as client:
        line: dict[str, Any] = {"lineAmount": 2, "within": []}
        state: Any = {"user_name": "shoal", "lines": [line]}
        found = (await client.post("/greetings/wait", json={"state": state})).json()["state"]
        assert found == {**state, "said": "hello, shoal"}
        assert set(described[kind]["properties"]) == set(found)
        assert set(described["GreetingsStart"]["properties"]) == set(found)
        lines = described[kind]["properties"]["lines"]["items"]["$ref"].rpartition("/")[2]
        assert set(described[lines]["properties"]) == set(line)
        refused = await client.post("/greetings/wait", json={"state": {"userName": "shoal"}})
        assert refused.status_code == 422


async def test_a_model_that_goes_by_its_own_names_describes_itself():
    service, _ = service_of(jobs)
    described = service.openapi()["components"]["schemas"]
    ended = described["JobsSucceeded"]["properties"]["state"]
    assert ended == {"$ref": "#/components/schemas/Job"}


class Odd:
    def __repr__(self) -> str:
        return "<Odd>"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"a": [1, "x", None, True]}, {"a": [1, "x", None, True]}),
        (math.nan, None),
        ([math.inf, -math.inf], [None, None]),
        (b"\xff", "_w=="),
        ("\ud800", "\ud800"),
        (
            {"half": "\udc00", "list": [math.nan, Odd()]},
            {"half": "\udc00", "list": [None, "<Odd>"]},
        ),
        ({(1, 2): 3}, {"1,2": 3}),
    ],
)
def test_every_state_can_be_written(value: object, expected: object):
    assert json.loads(as_json(value)) == expected


def nested(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


class Broken(str):
    """What nothing may be asked for."""

    __slots__ = ()

    def __repr__(self) -> str:
        raise ValueError("no repr")

    __str__ = __repr__


class BrokenModel(BaseModel):
    @model_serializer
    def _serialized(self) -> dict[str, Any]:
        raise KeyError("no form")


@pytest.mark.parametrize(
    "value",
    [
        nested(300),
        nested(5000),
        {"a": nested(5000)},
        10**5000,
        [-(10**5000), math.nan],
        {Broken("k"): [Broken("v"), "\ud800"]},
        BrokenModel(),
        {"set": {1, Broken("b")}, "half": "\ud800"},
        {("a", Odd()): StateList([Odd()]), "half": "\udfff"},
    ],
    ids=lambda _: "",
)
async def test_whatever_an_action_returns_its_run_is_answered(value: Any):
    """Once a run has started, no response about it may fail."""

    @action(reads=["n"], writes=["out"])
    async def give(n: int) -> Any:
        return value

    app = Application(give, name="odd", store=NullStore())
    service, _ = service_of(app)
    async with no_leaks(), client_of(service) as client:
        done = await client.post("/odd/wait", json={"state": {"n": 1}})
        answered = json.loads(done.content, parse_int=str)  # Python refuses the longest ints
        assert (done.status_code, answered["status"]) == (200, "succeeded")
        assert "out" in answered["state"]


def test_what_has_no_form_in_json_is_text():
    assert "Odd" in json.loads(as_json(Odd()))
