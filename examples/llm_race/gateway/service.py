"""The race as a service: OpenAI's chat completions, and an endpoint to watch a race.

All requests share one runtime, so the providers' limits and pauses and the budget apply to all of
them together. Each request is a race. If its client disconnects, the race is cancelled with all
requests to providers.
"""

import os
import secrets
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

from examples.llm_race.client.config import ConfigError
from examples.llm_race.gateway.offer import DEFAULT, Offer, Races
from examples.llm_race.gateway.openai_api import ChatRequest, Problem, completion, lost
from examples.llm_race.gateway.streams import CompletionStream, RaceStream, Streamed
from shoal import Runtime
from shoal.fastapi import RuntimeDep, cancel_on_disconnect, runtime_lifespan, service_router

WITHIN = 2.0
"""Seconds for running races to finish when the service stops."""


def make_service(offer: Offer) -> FastAPI:
    """Make the service.

    Raises:
        ValueError: The default race is impossible with these providers, or its schema is invalid.
        ConfigError: The variable for the service's key is not set.
    """
    races = Races(offer)
    if offer.key_env is not None and not service_key(offer.key_env):
        raise ConfigError(f"{offer.key_env} must hold the key of this service, but is not set")

    @asynccontextmanager
    async def lifespan(service: FastAPI) -> AsyncGenerator[dict[str, Any]]:
        async with offer.client() as client:
            races.client = client
            # The runtime has the budget, so that all requests share it.
            money = Runtime(limits=offer.budget)
            async with runtime_lifespan(money, within=WITHIN)(service) as state:
                yield {**state}

    service = FastAPI(title="LLM race", lifespan=lifespan)
    service.state.races = races
    may = [Depends(doorkeeper(offer.key_env))]
    service.include_router(completions_router(races), prefix="/v1", dependencies=may)
    service.include_router(race_router(races), prefix="/race", dependencies=may)
    # answers to probes contain nothing about races
    service.include_router(service_router(authorize=None))
    service.add_exception_handler(Problem, answer_problem)
    service.add_exception_handler(RequestValidationError, answer_misuse)
    service.add_exception_handler(StarletteHTTPException, answer_http)
    service.add_exception_handler(Exception, answer_failure)
    return service


def service_key(name: str) -> str:
    return os.environ.get(name, "").strip()


def doorkeeper(key_env: str | None) -> Callable[[Request], Awaitable[None]]:
    """Make the dependency that checks a request's key."""

    async def check(request: Request) -> None:
        if key_env is None:
            # Without a key, any page in a browser on this machine could spend the owner's money.
            if request.headers.get("sec-fetch-site", "none") in ("cross-site", "same-site"):
                raise Problem(
                    403, "requests from pages of other sites are refused; set a key: --key-env NAME"
                )
            return
        kind, _, shown = request.headers.get("authorization", "").partition(" ")
        key = service_key(key_env)
        fits = secrets.compare_digest(shown.strip().encode(), key.encode())
        if kind.lower() != "bearer" or not key or not fits:
            headers = {"WWW-Authenticate": "Bearer"}
            message = "wrong or missing key; send Authorization: Bearer KEY"
            raise Problem(401, message, code="invalid_api_key", headers=headers)

    return check


def completions_router(races: Races) -> APIRouter:
    """The endpoints of OpenAI's API."""
    router = APIRouter(tags=["OpenAI"])

    @router.get("/models", summary="List strategies, as models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [model_of(name) for name in races.models]}

    @router.get("/models/{name}", summary="Look at one")
    async def get_model(name: str) -> dict[str, Any]:
        races.find(name, races.offer.defaults, streams=False)
        return model_of(name)

    @router.post("/chat/completions", summary="Race for an answer")
    async def complete(request: Request, runtime: RuntimeDep, body: ChatRequest) -> Response:
        prompt = body.prompt(races.offer.defaults)
        race = races.find(body.model, prompt, streams=body.stream)
        name = f"chatcmpl-{uuid.uuid4().hex}"
        if body.stream:
            stream = CompletionStream(races, race, name, body)
            return Streamed(request, lambda say: stream.write(prompt, runtime, say))
        async with cancel_on_disconnect(request):
            report = await races.hold(race, name, prompt, runtime)
        if report.answer is None:
            assert report.error is not None
            raise lost(report.error)
        return JSONResponse(completion(name, body.model, report))

    return router


def model_of(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "llm_race"}


# -- a race to look at ----------------------------------------------------------------------------

EVENTS = """\
Server-sent events, each with JSON as its data:

- `race`: the race has begun: `id`, `model`, `strategy`, `lanes` (the providers).
- `lane`: a provider's or the judge's part has changed: `provider`, `status`, `detail`,
  `attempts`, ...
- `text`: a provider has sent text: `provider`, `text`. When its lane's `attempts` grows, its text
  starts again.
- `end`: the result: `winner`, `answer`, `answers`, `cost_usd`, `lanes`, ...; and `status`, 200
  or the status that a completion would have had.
- `error`: the service stops.

Disconnecting cancels the race.
"""


class RaceRequest(BaseModel):
    """The body of `POST /race`."""

    prompt: str = Field(min_length=1)
    model: str = DEFAULT
    system: str | None = None
    max_tokens: int | None = Field(None, ge=1)


def race_router(races: Races) -> APIRouter:
    """The endpoints that show a race as it happens."""
    router = APIRouter(tags=["race"])

    def stream(request: Request, runtime: Runtime, asked: RaceRequest) -> Response:
        defaults = races.offer.defaults
        prompt = replace(
            defaults,
            text=asked.prompt,
            system=defaults.system if asked.system is None else asked.system,
            max_tokens=asked.max_tokens or defaults.max_tokens,
            may_be_cut=asked.max_tokens is not None,
        )
        # The text of every provider is sent, whichever wins.
        race = races.find(asked.model, prompt, streams=False)
        stream = RaceStream(races, race, asked.model)
        return Streamed(request, lambda say: stream.write(prompt, runtime, say))

    @router.post("", summary="Race, and watch", description=EVENTS)
    async def post_race(request: Request, runtime: RuntimeDep, body: RaceRequest) -> Response:
        return stream(request, runtime, body)

    @router.get("", summary="Race, and watch (for browsers)", description=EVENTS)
    async def get_race(
        request: Request, runtime: RuntimeDep, asked: Annotated[RaceRequest, Query()]
    ) -> Response:
        return stream(request, runtime, asked)

    return router


# -- failures, as OpenAI's clients know them ------------------------------------------------------


async def answer_problem(_: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    return JSONResponse(problem.body(), problem.status, problem.headers)


async def answer_misuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors: Sequence[Any] = error.errors()
    deepest = max(errors, key=lambda one: len(one["loc"]))  # of a field that may have several types
    where = ".".join(str(part) for part in deepest["loc"][1:])
    message = f"{where}: {deepest['msg']}" if where else str(deepest["msg"])
    return await answer_problem(request, Problem(400, message, param=where or None))


async def answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    return await answer_problem(
        request, Problem(error.status_code, error.detail, headers=error.headers)
    )


async def answer_failure(request: Request, _: Exception) -> Response:
    """Report an internal error, whose details are only in the log."""
    return await answer_problem(request, Problem(500, HTTPStatus(500).phrase))
