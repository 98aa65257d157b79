"""What goes over the wire, as pydantic models made of an application's state. Imports pydantic.

Models say what requests and responses look like. Requests are held to them; responses are written
by ``Json`` as they are, for a run that goes on has a state that may not yet be what its model asks
for, and a state may hold what pydantic has never seen.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from math import isfinite
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, Required, cast

from fastapi import Response
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, create_model
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic_core import to_json
from typing_extensions import TypedDict

from shoal._errors.exceptions import brief
from shoal._runtime.application import Application
from shoal._state.collections import PositionedList, StateList
from shoal._state.declaration import declaration
from shoal._state.secrets import without_secrets
from shoal._state.state import State, held
from shoal.stores._protocol import RunStatus

# Not `.` and `..`, which clients take for the address above; pydantic has no lookahead.
_ID = r"^(\.{0,2}[A-Za-z0-9_~:@+-]|\.{3})[A-Za-z0-9._~:@+-]*$"
RunId = Annotated[str, Field(min_length=1, max_length=200, pattern=_ID)]
"""The id of a run, as part of an address."""

SHOWN_LEVELS = 200
"""Levels of nesting that a response shows of what an action has made; stores keep 100."""
_LONGEST_INT = 3 * (sys.get_int_max_str_digits() or sys.maxsize)  # bits: a digit has 3.3

REASON = "asked for by a client"
"""Why a run is cancelled, if the client does not say."""


class RunInfo(BaseModel):
    """A run, without its state."""

    id: str
    application: str
    status: RunStatus
    reason: str = Field("", description="Why it was cancelled, or what it failed with.")


class Listed(RunInfo):
    """A run in a list."""

    version: str
    began_at: float = Field(description="Seconds since 1970.")
    ended_at: float | None = Field(None, description="Seconds since 1970; null: it goes on.")
    executed_by: str = Field("", description="Who executes it now; empty: nobody.")
    forked_from: str | None = None


class Page(BaseModel):
    """A part of the list of runs, those that have begun last first."""

    runs: list[Listed]
    next: str | None = Field(None, description="What to give as `after` for more; null: no more.")


class Cancel(BaseModel):
    """Why a run is to be cancelled."""

    model_config = ConfigDict(extra="forbid")

    reason: Annotated[str, Field(max_length=500)] = REASON


class Asked(BaseModel):
    """What a run waits for somebody to answer."""

    run_id: str = Field(description="The run that asks: it, or a descendant.")
    name: str
    step: str
    key: str | int = Field(description="That run's key within its fan-out.")
    question: Any


class Answer(BaseModel):
    """An answer to a question."""

    model_config = ConfigDict(extra="forbid")

    name: str
    value: Any
    run_id: str | None = Field(
        None, description="The run that asks. May be left out where one question has the name."
    )


class Answers(BaseModel):
    """Answers to questions of a run."""

    model_config = ConfigDict(extra="forbid")

    answers: list[Answer] = Field(min_length=1, max_length=1000)


class Problem(BaseModel):
    """Why a request could not be met."""

    detail: Any


class Health(BaseModel):
    """How the service is."""

    status: Literal["ok", "draining", "unhealthy"]
    detail: str = ""


class LimitUse(BaseModel):
    """How one part of a limit is used."""

    limits: str
    keys: int
    in_use: int
    slots: float | None
    waiting: int
    paused: int


class _View(BaseModel):
    id: str
    application: str
    number: int = Field(description="The number of the update that has led to `state`.")


class Models(NamedTuple):
    """The models of one application."""

    start: type[BaseModel]
    """What a run is started with."""
    view: Any
    """A run, with its state: a union told apart by ``status``."""


def models_of(app: Application[Any]) -> Models:
    """Make the models of an application, named after it."""
    name = "".join(word.capitalize() for word in re.findall(r"[A-Za-z0-9]+", app.name)) or "App"
    state: Any = _start_state(app, f"{name}Start")
    optional: Any = state | None
    start = create_model(
        f"{name}Request",
        __doc__="What a run is started with.",
        __config__=ConfigDict(extra="forbid"),
        state=(
            optional,
            Field(
                None, description="The fields that it starts with. May be left out if it is known."
            ),
        ),
        id=(
            RunId | None,
            Field(
                None,
                description=(
                    "Names the run. One that is known already goes on, or is found to be doing so."
                ),
            ),
        ),
    )
    schema = app.graph.schema
    # What is secret is in no response, though the model may ask for it.
    final: Any = dict[str, Any]
    if schema is not None and not app.secret:
        final = _final_state(schema.model, f"{name}State")
    partial: Any = dict[str, Any]

    def view(status: str, state: Any, doc: str, **more: Any) -> type[BaseModel]:
        model = create_model(
            f"{name}{status.capitalize()}",
            __base__=_View,
            __doc__=doc,
            status=(cast("Any", Literal[status]), ...),
            state=(state, ...),
            **more,
        )
        return cast("type[BaseModel]", model)

    reason = (str, ...)
    views = (
        view("running", partial, "A run that has not ended: its state so far."),
        view("succeeded", final, "A run that has succeeded."),
        view("failed", partial, "A run that has failed, and what with.", reason=reason),
        view("cancelled", partial, "A run that was cancelled, and why.", reason=reason),
        view("halted", partial, "A run that waits for answers.", questions=(list[Asked], ...)),
    )
    union: Any = views[0]
    for each in views[1:]:
        union = union | each
    return Models(start, Annotated[union, Field(discriminator="status")])


def _start_state(app: Application[Any], name: str) -> Any:
    """Make the type of the fields that a run is started with: a dict with what is needed.

    A ``TypedDict``: any field's name will do, and only what was given is in it.
    """
    schema = app.graph.schema
    # Where something is secret, a known run goes on with that alone; the engine says what lacks.
    needed = () if app.secret else app.graph.missing(())
    if schema is None:
        asked = sorted(app.graph.missing(()))
        fields: dict[str, Any] = dict.fromkeys(asked, object)
    else:
        declared = declaration(schema.model).fields
        fields = {field: each.annotation for field, each in declared.items()}
    needing = {
        field: (Required if field in needed else NotRequired)[kind]
        for field, kind in fields.items()
    }
    return _typed_dict(name, needing, "allow" if schema is None else "forbid")


def _final_state(model: Any, name: str) -> Any:
    """Return the type of a state that is as its model asks for: the model, if that says so itself.

    A state has the fields of its model by their own names, and nothing else. A model describes
    itself with its aliases, and with what it computes; then a ``TypedDict`` stands in for it.
    """
    declared = declaration(model).fields
    try:
        described = TypeAdapter(model).json_schema(mode="serialization")
    except PydanticInvalidForJsonSchema:  # FastAPI says so of the model itself
        return model
    if "$ref" in described:  # it is somewhere within itself
        described = described["$defs"][described["$ref"].rpartition("/")[2]]
    if described.get("properties", {}).keys() == declared.keys():
        return model
    fields: dict[str, Any] = {
        field: (Required if each.required else NotRequired)[each.annotation]
        for field, each in declared.items()
    }
    return _typed_dict(name, fields, "forbid")


def _typed_dict(name: str, fields: dict[str, Any], extra: Literal["allow", "forbid"]) -> Any:
    made: Any = TypedDict(name, fields)  # pyright: ignore  # noqa: PGH003 # it is made at run time
    made.__pydantic_config__ = ConfigDict(extra=extra, arbitrary_types_allowed=True)
    return made


class Json(Response):
    """A response in JSON, whatever it has to say: what has no form in JSON is shown as text."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Write it down."""
        return as_json(content)


def as_json(content: object) -> bytes:
    """Write a value as JSON. Objects of unknown types are text; numbers that JSON lacks, null."""
    try:
        return to_json(content, bytes_mode="base64", inf_nan_mode="null", serialize_unknown=True)
    except Exception:  # noqa: BLE001 # serializers of users' classes run here
        # Half a character, a model that does not serialize itself, nesting that is too deep...
        return json.dumps(_simple(content, SHOWN_LEVELS), ensure_ascii=True).encode("ascii")


def _simple(value: object, levels: int) -> object:
    """Make what json.dumps can write, of whatever is in a state; it never raises."""
    match value:
        case None | bool():
            return value
        case int():  # Python writes no int with more digits
            return int(value) if value.bit_length() < _LONGEST_INT else hex(value)
        case str():
            return str.__str__(value)
        case float():
            return float(value) if isfinite(value) else None
        case Mapping() if levels:
            items = cast("Mapping[object, object]", value).items()
            return {_name(key): _simple(each, levels - 1) for key, each in items}
        case list() | tuple() | set() | frozenset() | StateList() | PositionedList() if levels:
            return [_simple(each, levels - 1) for each in cast("list[object]", value)]
        case _:
            return brief(value)


def _name(key: object) -> str:
    return key if isinstance(key, str) else brief(key)


def as_plain(state: State[Any]) -> object:
    """Copy a state for ``as_json``, which writes a state itself where that is nested too deep."""
    try:
        return state.to_plain()
    except RecursionError:
        return {**without_secrets(held(state))}
