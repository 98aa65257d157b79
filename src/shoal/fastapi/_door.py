"""What is checked before anything else of a request: who may, and whether it is data.

Imports FastAPI, and ``_problems``.

Invariants:
- What ``authorize`` is told of the run is what the endpoint goes by: the id in the path, or the one
  that a run is started under. Nothing else in the request, such as its query, has a say in it.
- What no store could keep is refused once it is known that the client may ask at all, and before
  anything looks into it: what is no JSON, nesting that is too deep, numbers that JSON lacks or
  that have too many digits, halves of surrogate pairs. So the answer is the same whatever the
  store, and nothing fails later, FastAPI's own messages included.
- What doesn't fit is named, but never repeated (``_problems``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from functools import partial
from inspect import Parameter, Signature
from json import JSONDecodeError
from math import isfinite
from operator import is_
from typing import Annotated, Any, cast, final, get_args, get_origin

from fastapi import Depends, Request, Response, params
from fastapi.dependencies.utils import get_typed_signature
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import TypeAdapter, ValidationError

from shoal._errors.exceptions import DefinitionError

from ._models import RunId
from ._problems import refusal, without_values

Authorize = Callable[..., object]
"""A dependency, as FastAPI knows them: a function that raises where something isn't allowed."""

DEEPEST = 100
"""Lists and objects within each other that what is sent may have: as many as stores can save."""
# Refusals of a whole body: type and message. The types of numbers and texts are pydantic's.
TOO_DEEP = ("too_deep", f"what was sent is nested more than {DEEPEST} levels deep")
NO_NUMBER = (
    "finite_number",
    "what was sent has a number that is NaN, infinite, or, as a float, out of range",
)
TOO_LONG = (
    "int_parsing_size",
    f"what was sent has a whole number of more than {sys.get_int_max_str_digits():,} digits",
)
NO_TEXT = (
    "string_unicode",
    "what was sent has half of a surrogate pair in a text, which UTF-8 can't express",
)
NO_JSON = ("json_invalid", "JSON decode error")
_CONTAINERS = frozenset({dict, list})
_ANY_ID = TypeAdapter[str](RunId)

RUN_ID = "run_id"
"""What the run is called in paths, and by ``authorize`` and what that depends on."""


def authorizing(authorize: object, where: str) -> list[Any]:
    """Make the dependencies of a router of what was given to it.

    Raises:
        DefinitionError: That can't be called.
    """
    if authorize is None:
        return []
    if not callable(authorize):
        msg = (
            f"{where}(authorize=...) takes a function that raises HTTPException where something "
            f"isn't allowed, as a dependency does, or None; not {authorize!r}"
        )
        raise DefinitionError(msg)
    told = _told(authorize)
    if told is None:
        return [Depends(authorize)]
    asked = Depends(told, use_cache=False)

    async def allowed(_: object = asked) -> None:
        """Be allowed: of a dependency of its own, a router would not heed that it isn't cached."""

    return [Depends(allowed)]


@final
class _Told(partial[object]):
    """A dependency that is told what run the request is about, where it takes that.

    A partial, so that FastAPI sees what it is: async or not, a generator, a class or an instance.
    It is equal to what it stands for, for ``dependency_overrides`` to find it. FastAPI would take
    what that has returned elsewhere for this one's too, so it is never to be cached.
    """

    __signature__: Signature

    def __eq__(self, other: object) -> bool:
        return self.func == (other.func if isinstance(other, _Told) else other)

    def __hash__(self) -> int:
        return hash(self.func)


def _told(dependency: Callable[..., object]) -> _Told | None:
    """Have a dependency told of the run; None: neither it nor what it depends on takes that.

    FastAPI by itself would take it from the query where the path doesn't have it.
    """
    given = [*get_typed_signature(dependency).parameters.values()]
    parameters = [_of_run(each) for each in given]
    if all(map(is_, parameters, given)):
        return None
    told = _Told(dependency)
    told.__signature__ = Signature([_by_keyword(each) for each in parameters])
    return told


def _of_run(parameter: Parameter) -> Parameter:
    """Return what stands in for a parameter: itself, unless it has to do with the run."""
    annotation: Any = getattr(parameter.annotation, "__value__", parameter.annotation)  # `type X =`
    kind, *more = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    given = [one for one in (*more, parameter.default) if isinstance(one, params.Depends)]
    if given:
        dependency = given[-1].dependency or kind
        told = _told(dependency) if callable(dependency) else None
        if told is None:
            return parameter
        depends = replace(given[-1], dependency=told, use_cache=False)
    elif parameter.name == RUN_ID:
        kind, depends = Any, Depends(_about(cast("object", parameter.default)))
    else:
        return parameter
    return parameter.replace(default=depends, annotation=kind)


def _by_keyword(parameter: Parameter) -> Parameter:
    """Have it given by keyword, as FastAPI does: so one with a default may precede one without."""
    is_either = parameter.kind is Parameter.POSITIONAL_OR_KEYWORD
    return parameter.replace(kind=Parameter.KEYWORD_ONLY) if is_either else parameter


def _about(default: object) -> Callable[[Request], Any]:
    """Make a dependency that is the id of the run; ``default``, or "", where there is none."""
    nothing = default if default is None or isinstance(default, str) else ""

    async def about(request: Request) -> object:
        return await _run_id(request) or nothing

    return about


async def _run_id(request: Request) -> str:
    """Return the id; "" for what can be none, which the endpoint refuses.

    So ``authorize`` may repeat it in a message or a header, or ask a database for it
    (see test_authorize_is_told_only_what_can_be_an_id).
    """
    if RUN_ID in request.path_params:
        run_id: object = request.path_params[RUN_ID]
    else:
        body = await _body(request)
        run_id = cast("dict[str, object]", body).get("id") if isinstance(body, dict) else None
    try:
        return _ANY_ID.validate_python(run_id, strict=True)
    except ValidationError:
        return ""


async def _body(request: Request) -> object:
    """Return the JSON that is sent, as the endpoint is given it; None: there is none."""
    return await request.json() if request.method == "POST" else None


@final
class CheckedRequest(Request):
    """A request whose body is refused behind ``authorize`` if it can't be parsed, not before.

    FastAPI parses a body before it asks any dependency, so this is what it parses with
    (see test_a_client_that_may_not_ask_is_told_that_whatever_it_sends).
    """

    unreadable: RequestValidationError | None = None
    """Why the body can't be parsed, once that was tried."""

    async def json(self) -> Any:
        """Parse the body, once; None: there is none, or it can't be parsed."""
        if self.unreadable is not None or not await self.body():
            return None
        try:
            return await super().json()
        except JSONDecodeError as error:
            where, why = ("body", error.pos), NO_JSON
        except RecursionError:
            where, why = ("body",), TOO_DEEP
        except UnicodeDecodeError:
            where, why = ("body",), NO_JSON
        except ValueError:
            where, why = ("body",), TOO_LONG
        kind, message = why
        self.unreadable = refusal(kind, where, message)
        return None


async def refuse_no_data(request: Request) -> None:
    """Be a dependency that refuses what can't be kept, and can't be sent again as JSON.

    Raises:
        RequestValidationError: It is.
    """
    body = await _body(request)
    if isinstance(request, CheckedRequest) and request.unreadable is not None:
        raise request.unreadable
    _refuse_leaves([body])
    level = [body]
    for _ in range(DEEPEST):
        level = [inner for outer in level for inner in _containers(outer)]
        if not level:
            return
    raise _no_data(TOO_DEEP)


def _no_data(why: tuple[str, str]) -> RequestValidationError:
    kind, message = why
    return refusal(kind, ("body",), message)


def _containers(value: object) -> Sequence[object]:
    """Return the lists and objects in a value, whose other parts are checked."""
    inner: Iterable[object] = ()
    if isinstance(value, dict):
        members = cast("dict[str, object]", value)
        inner = members.values()
        _refuse_leaves(members)
    elif isinstance(value, list):
        inner = cast("list[object]", value)
    _refuse_leaves(inner)
    return [one for one in inner if type(one) in _CONTAINERS]


def _refuse_leaves(values: Iterable[object]) -> None:
    r"""Refuse numbers that JSON lacks, and text that UTF-8 does.

    Python's parser takes ``NaN``, ``1e999`` and ``"\ud800"``; stores don't, and neither do the
    clients that would be sent them.

    Raises:
        RequestValidationError: There are some.
    """
    if any(type(one) is float and not isfinite(one) for one in values):
        raise _no_data(NO_NUMBER)
    try:
        "".join([one for one in values if type(one) is str]).encode()  # at once, that is quick
    except UnicodeEncodeError:
        raise _no_data(NO_TEXT) from None


def checked_route(secret: frozenset[str]) -> type[APIRoute]:
    """Make the class of a router's endpoints, whose state has these secret fields."""

    @final
    class CheckedRoute(APIRoute):
        """An endpoint that refuses with nothing of what was sent, and never with a 500."""

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            """Return what FastAPI makes of it, with values taken out of what that refuses."""
            handle = super().get_route_handler()

            async def handle_checked(request: Request) -> Response:
                try:
                    # As FastAPI's own: the messages of a request are received once, here.
                    return await handle(CheckedRequest(request.scope, request.receive))
                except RequestValidationError as error:
                    refused = without_values(error, secret)
                raise refused  # here, so that it has no context: that is what holds the values

            return handle_checked

    return CheckedRoute
