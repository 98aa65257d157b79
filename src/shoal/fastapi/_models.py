"""Define requests and responses as pydantic models, made from an application's state.

Requests are validated by their models. Responses are only described by them, and written by
``Json`` without validation: the state of a run under way may not fit its model yet, and a state may
hold types that pydantic doesn't know.
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
from shoal._state.plain import to_plain
from shoal._state.secrets import without_secrets
from shoal._state.state import State, held
from shoal.stores._protocol import RunStatus

# Excludes `.` and `..`, which clients resolve as parts of a path; pydantic's patterns have no
# lookahead, which would say so more simply.
_ID = r"^(\.{0,2}[A-Za-z0-9_~:@+-]|\.{3})[A-Za-z0-9._~:@+-]*$"
RunId = Annotated[str, Field(min_length=1, max_length=200, pattern=_ID)]
"""The id of a run, as part of a URL."""

SHOWN_LEVELS = 200
"""Levels of nesting that a response shows. Stores save 100; without one, a state may be deeper."""
_LONGEST_INT = 3 * (sys.get_int_max_str_digits() or sys.maxsize)  # in bits: a digit has 3.3

REASON = "asked for by a client"
"""The reason of a cancellation, if the client gives none."""


class Paused(BaseModel):
    """The pause under which a run is."""

    since: float = Field(description="Seconds since 1970.")
    by: str = Field("", description="Who has asked for it, as far as that was told.")
    reason: str = ""


class RunInfo(BaseModel):
    """A run, without its state."""

    id: str
    application: str
    status: RunStatus
    reason: str = Field("", description="Why the run was cancelled, or the error it failed with.")
    paused: Paused | None = Field(None, description="Left out if the run isn't paused.")


class Listed(RunInfo):
    """A run in a list."""

    version: str
    began_at: float = Field(description="Seconds since 1970.")
    ended_at: float | None = Field(None, description="Seconds since 1970; null while it runs.")
    executed_by: str = Field(
        "", description="The process that executes the run now; empty if there is none."
    )
    forked_from: str | None = None
    owner: str = Field("", description="Whose run it is; empty if it has no owner.")


class Page(BaseModel):
    """A part of the list of runs, the ones that began last first."""

    runs: list[Listed]
    next: str | None = Field(
        None, description="The value of `after` for the next page; null on the last page."
    )


class Steer(BaseModel):
    """Who steers a run, and why, for the record in its history."""

    model_config = ConfigDict(extra="forbid")

    by: str = Field(
        default="",
        max_length=200,
        description="Who asks, for the record. The service doesn't check it.",
    )
    reason: Annotated[str, Field(max_length=500)] = ""

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of the command."""
        return {"reason": self.reason} if self.reason else {}


class Cancel(Steer):
    """The sender of a cancellation, and the reason."""

    reason: Annotated[str, Field(max_length=500)] = REASON


class ChangeLimit(Steer):
    """New numbers of a limit, or whether it is paused."""

    owner: str = Field(
        description="Where the limit stands: `runtime`, or the name of the application, of an "
        "action or of a fan-out."
    )
    part: int = Field(
        0, description="Which part of its limits, from 0; -1: the children in flight of a fan-out."
    )
    n: Annotated[int, Field(ge=1)] | None = Field(None, description="Slots.")
    rate: Annotated[float, Field(gt=0)] | None = Field(None, description="Units of the rate...")
    per: Annotated[float, Field(gt=0)] | None = Field(None, description="...in so many seconds.")
    burst: Annotated[float, Field(gt=0)] | None = Field(
        None, description="Units that may go at once."
    )
    paused: bool | None = Field(
        None, description="Whether nothing more starts that needs the limit; null: as it is."
    )
    key: str | None = Field(None, description="The only key that is paused, or goes on.")


class Asked(BaseModel):
    """A question that a run waits for an answer to."""

    run_id: str = Field(description="The run that asks: the run itself, or a descendant.")
    name: str
    step: str
    key: str | int = Field(description="That run's key within its fan-out.")
    question: Any
    answer_schema: dict[str, Any] | None = Field(
        None, description="The JSON schema of its answers; null: any JSON is one."
    )


class Answer(BaseModel):
    """An answer to a question."""

    model_config = ConfigDict(extra="forbid")

    name: str
    value: Any
    run_id: str | None = Field(
        None, description="The run that asks. May be left out if only one question has this name."
    )


class Answers(BaseModel):
    """Answers to questions of a run."""

    model_config = ConfigDict(extra="forbid")

    answers: list[Answer] = Field(min_length=1, max_length=1000)


class Problem(BaseModel):
    """The reason why a request was refused or failed."""

    detail: Any


class Health(BaseModel):
    """The health of the service."""

    status: Literal["ok", "busy", "draining", "unhealthy"]
    detail: str = ""


class LimitUse(BaseModel):
    """The use of one part of a limit."""

    limits: str
    keys: int
    in_use: int
    slots: float | None
    waiting: int
    paused: int


class _View(BaseModel):
    id: str
    application: str
    number: int = Field(description="The number of the last update of `state`.")
    paused: Paused | None = Field(None, description="Left out if the run isn't paused.")


class Models(NamedTuple):
    """The models of one application."""

    start: type[BaseModel]
    """The request that starts a run."""
    view: Any
    """A run with its state: a union, discriminated by ``status``."""


def models_of(app: Application[Any]) -> Models:
    """Create the models of an application, named after it."""
    name = "".join(word.capitalize() for word in re.findall(r"[A-Za-z0-9]+", app.name)) or "App"
    state: Any = _start_state(app, f"{name}Start")
    optional: Any = state | None
    start = create_model(
        f"{name}Request",
        __doc__="The start of a run.",
        __config__=ConfigDict(extra="forbid"),
        state=(
            optional,
            Field(
                None,
                description=(
                    "The fields of the initial state. May be left out if the run exists already."
                ),
            ),
        ),
        id=(
            RunId | None,
            Field(
                None,
                description=(
                    "The id of the run. If a run with this id exists, it is resumed, or joined if "
                    "it is running."
                ),
            ),
        ),
    )
    schema = app.graph.schema
    # Responses lack the secret fields, which the user's model may require.
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
        view("running", partial, "A run that has not ended, with its state so far."),
        view("succeeded", final, "A run that has succeeded."),
        view("failed", partial, "A run that has failed, with its error.", reason=reason),
        view("cancelled", partial, "A run that was cancelled, with the reason.", reason=reason),
        view(
            "halted",
            partial,
            "A run that waits for answers; or to be resumed, if it was drained for a reason.",
            reason=reason,
            questions=(list[Asked], ...),
        ),
    )
    union: Any = views[0]
    for each in views[1:]:
        union = union | each
    return Models(start, Annotated[union, Field(discriminator="status")])


def _start_state(app: Application[Any], name: str) -> Any:
    """Create the type of the initial state in a request.

    A ``TypedDict``, because it allows any name of a field, and has only the fields that were given.
    """
    schema = app.graph.schema
    # With secret fields no field is required: an existing run is resumed with its secrets alone.
    # The engine refuses a new run that lacks fields.
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
    """Return the type of a final state: the model itself, or a ``TypedDict`` with its fields.

    A response has the fields of the model by their own names, and nothing else. If the model's own
    description has aliases or computed fields, it would be wrong, and the ``TypedDict`` replaces
    it.
    """
    declared = declaration(model).fields
    try:
        described = TypeAdapter(model).json_schema(mode="serialization")
    except PydanticInvalidForJsonSchema:  # FastAPI then reports the error, with the model's name
        return model
    if "$ref" in described:  # a recursive model
        described = described["$defs"][described["$ref"].rpartition("/")[2]]
    if described.get("properties", {}).keys() == declared.keys():
        return model
    fields: dict[str, Any] = {
        field: (Required if each.required else NotRequired)[each.annotation]
        for field, each in declared.items()
    }
    return _typed_dict(name, fields, "forbid")


def _typed_dict(name: str, fields: dict[str, Any], extra: Literal["allow", "forbid"]) -> Any:
    made: Any = TypedDict(name, fields)  # pyright: ignore  # noqa: PGH003 # made at run time
    made.__pydantic_config__ = ConfigDict(extra=extra, arbitrary_types_allowed=True)
    return made


class Json(Response):
    """A response in JSON. Values that JSON lacks are shown as text."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return ``content`` as JSON."""
        return as_json(content)


def as_json(content: object) -> bytes:
    """Write a value as JSON. Objects of unknown types are text; numbers that JSON lacks, null."""
    try:
        return to_json(content, bytes_mode="base64", inf_nan_mode="null", serialize_unknown=True)
    except Exception:  # noqa: BLE001 # serializers of users' classes run here
        # Half a surrogate pair, a model whose serializer fails, nesting that is too deep...
        return json.dumps(_simple(content, SHOWN_LEVELS), ensure_ascii=True).encode("ascii")


def _simple(value: object, levels: int) -> object:
    """Convert any value of a state to types that json.dumps can write. Never raises."""
    match value:
        case None | bool():
            return value
        case int():  # Python converts no int with more digits to decimal text
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
    """Copy a state for ``as_json``. A state that is nested too deeply is copied only one level."""
    fields = without_secrets(held(state))
    try:
        # Not `state.to_plain()`: the response's model writes models and dates as it declares them.
        return {name: to_plain(value, is_whole=True) for name, value in fields.items()}
    except RecursionError:
        return {**fields}
