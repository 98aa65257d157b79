"""Check each request first: call ``authorize``, and refuse bodies that no store could save.

Invariants:
- ``authorize`` gets the id of the run that the endpoint uses: the one in the path, or the one that
  a run is started with. Nothing else in the request, such as its query, can change it.
- Bodies that no store could save are refused after ``authorize`` has allowed the request, and
  before anything else reads them: invalid JSON, too deep nesting, numbers that JSON lacks or that
  have too many digits, halves of surrogate pairs. So the answer doesn't depend on the store, and
  nothing fails later, including FastAPI's own messages.
- Refusals name the invalid part, but never repeat its value (``_problems``).
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
"""A dependency of FastAPI: a function that raises if the request isn't allowed."""

DEEPEST = 100
"""The deepest nesting of a body: as deep as stores can save."""
# Refusals of a whole body: type and message. The types of numbers and texts are pydantic's.
TOO_DEEP = ("too_deep", f"the body is nested more than {DEEPEST} levels deep")
NO_NUMBER = (
    "finite_number",
    "the body has a number that is NaN, infinite, or, as a float, out of range",
)
TOO_LONG = (
    "int_parsing_size",
    f"the body has a whole number of more than {sys.get_int_max_str_digits():,} digits",
)
NO_TEXT = (
    "string_unicode",
    "the body has half of a surrogate pair in a text, which UTF-8 can't express",
)
NO_JSON = ("json_invalid", "JSON decode error")
_CONTAINERS = frozenset({dict, list})
_ANY_ID = TypeAdapter[str](RunId)

RUN_ID = "run_id"
"""The name of the run's id in paths, and in parameters of ``authorize`` and its dependencies."""


def authorizing(authorize: object, where: str) -> list[Any]:
    """Return the dependencies of a router for its argument ``authorize``.

    Raises:
        DefinitionError: The argument can't be called.
    """
    if authorize is None:
        return []
    if not callable(authorize):
        msg = (
            f"{where}(authorize=...) takes a function that raises HTTPException if the request "
            f"isn't allowed, as a dependency does, or None; not {authorize!r}"
        )
        raise DefinitionError(msg)
    wrapped = _with_run_id(authorize)
    if wrapped is None:
        return [Depends(authorize)]
    asked = Depends(wrapped, use_cache=False)

    async def allowed(_: object = asked) -> None:
        """Do nothing: FastAPI ignores ``use_cache=False`` of a router's own dependencies."""

    return [Depends(allowed)]


@final
class _WithRunId(partial[object]):
    """A dependency that gets the id of the run for its parameter ``run_id``.

    It is a partial, so that FastAPI recognizes the kind of the function: async or not, a generator,
    a class or an instance. It equals that function, so that ``dependency_overrides`` finds it. For
    the same reason FastAPI must never cache it: it would use a result of the plain function.
    """

    __signature__: Signature

    def __eq__(self, other: object) -> bool:
        return self.func == (other.func if isinstance(other, _WithRunId) else other)

    def __hash__(self) -> int:
        return hash(self.func)


def _with_run_id(dependency: Callable[..., object]) -> _WithRunId | None:
    """Wrap a dependency so that it gets the id of the run; None if it takes no such id.

    Its own dependencies are wrapped, too. By itself FastAPI would read the id from the query if the
    path doesn't have it.
    """
    given = [*get_typed_signature(dependency).parameters.values()]
    parameters = [_of_run(each) for each in given]
    if all(map(is_, parameters, given)):
        return None
    wrapped = _WithRunId(dependency)
    wrapped.__signature__ = Signature([_by_keyword(each) for each in parameters])
    return wrapped


def _of_run(parameter: Parameter) -> Parameter:
    """Return the replacement of a parameter; the same object if it doesn't concern the run."""
    annotation: Any = getattr(parameter.annotation, "__value__", parameter.annotation)  # `type X =`
    kind, *more = get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)
    given = [one for one in (*more, parameter.default) if isinstance(one, params.Depends)]
    if given:
        dependency = given[-1].dependency or kind
        wrapped = _with_run_id(dependency) if callable(dependency) else None
        if wrapped is None:
            return parameter
        depends = replace(given[-1], dependency=wrapped, use_cache=False)
    elif parameter.name == RUN_ID:
        kind, depends = Any, Depends(_about(cast("object", parameter.default)))
    else:
        return parameter
    return parameter.replace(default=depends, annotation=kind)


def _by_keyword(parameter: Parameter) -> Parameter:
    """Make a parameter keyword-only, so that one with a default may precede one without.

    FastAPI passes all arguments by keyword anyway.
    """
    is_either = parameter.kind is Parameter.POSITIONAL_OR_KEYWORD
    return parameter.replace(kind=Parameter.KEYWORD_ONLY) if is_either else parameter


def _about(default: object) -> Callable[[Request], Any]:
    """Make a dependency that returns the id of the run, or else ``default`` or an empty text."""
    nothing = default if default is None or isinstance(default, str) else ""

    async def about(request: Request) -> object:
        return await _run_id(request) or nothing

    return about


async def _run_id(request: Request) -> str:
    """Return the id of the run; empty if the given one is invalid, which the endpoint refuses.

    So ``authorize`` may use the id in a message, a header or a query of a database (see
    test_authorize_receives_only_what_can_be_an_id).
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
    """Return the parsed body, as the endpoint gets it; None if there is none."""
    return await request.json() if request.method == "POST" else None


@final
class CheckedRequest(Request):
    """A request that defers the refusal of an unparsable body until ``authorize`` has been called.

    FastAPI parses the body, with ``json`` of this class, before it calls any dependency (see
    test_a_client_that_may_not_ask_is_refused_whatever_it_sends).
    """

    unreadable: RequestValidationError | None = None
    """The refusal of the body, set by ``json`` if the body can't be parsed."""

    async def json(self) -> Any:
        """Parse the body, once; return None if there is none or it can't be parsed."""
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
    """Refuse a body that can't be saved, or can't be sent to clients as JSON. A dependency.

    Raises:
        RequestValidationError: The body is refused.
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
    """Check the leaves of a list or object; return the lists and objects in it."""
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
    r"""Refuse numbers that JSON lacks, and texts that UTF-8 can't express.

    Python's parser accepts ``NaN``, ``1e999`` and ``"\ud800"``; stores and clients don't.

    Raises:
        RequestValidationError: There is such a value.
    """
    if any(type(one) is float and not isfinite(one) for one in values):
        raise _no_data(NO_NUMBER)
    try:
        # All texts with one call, which is much faster than one call for each.
        "".join([one for one in values if type(one) is str]).encode()
    except UnicodeEncodeError:
        raise _no_data(NO_TEXT) from None


def checked_route(secret: frozenset[str]) -> type[APIRoute]:
    """Return the class of a router's endpoints, for a state with these secret fields."""

    @final
    class CheckedRoute(APIRoute):
        """An endpoint whose refusals never repeat sent values, and never are a 500."""

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            """Return FastAPI's handler, wrapped to remove values from its refusals."""
            handle = super().get_route_handler()

            async def handle_checked(request: Request) -> Response:
                try:
                    # This request replaces FastAPI's, whose ``receive`` hasn't been called yet.
                    return await handle(CheckedRequest(request.scope, request.receive))
                except RequestValidationError as error:
                    refused = without_values(error, secret)
                raise refused  # outside of the handler, because __context__ would hold the values

            return handle_checked

    return CheckedRoute
