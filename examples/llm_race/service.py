"""The race as a service: OpenAI's chat completions, and a race to look at.

All requests share one runtime: what providers can take, when they want to be left alone, and what
may be spent counts for all together. A request is a race; whose client hangs up is cancelled, with
every request that it has sent.
"""

import json
import os
import secrets
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Annotated, Any

import httpx
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import Receive, Scope, Send

from examples.llm_race.config import ConfigError
from examples.llm_race.contestant import Contestants
from examples.llm_race.exchange import Chunk, Prompt
from examples.llm_race.leader import Leader
from examples.llm_race.openai_api import (
    ChatRequest,
    Problem,
    chunk,
    completion,
    counting,
    finish_reason,
    lost,
    stopping,
    usage_chunk,
)
from examples.llm_race.prices import Purse
from examples.llm_race.providers import Provider
from examples.llm_race.racing import Race, Report, new_client, scoreboard
from examples.llm_race.strategies import STRATEGIES, Rules, Strategy, is_decided_by_token
from shoal import Draining, Event, Item, RunCancelled, Runtime
from shoal.fastapi import RuntimeDep, cancel_on_disconnect, runtime_lifespan, service_router

WITHIN = 2.0
"""Seconds that races have to end by themselves when the service stops."""
DEFAULT = "race"
"""The model that races by the service's own strategy; `race:hedge` and so on name one."""

Watch = Callable[[Event], Awaitable[None]]
Say = Callable[[str], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What the service does, and for whom."""

    providers: Sequence[Provider]
    rules: Rules = field(default_factory=Rules)
    strategy: Strategy | None = None
    """Of the model `race`; by default `first-token` where it streams, else `first`."""
    defaults: Prompt = field(default_factory=lambda: Prompt(text=""))
    """What requests don't say."""
    key_env: str | None = None
    """The variable of the environment that holds the key clients have to show; None: no key."""
    purse: Purse = field(default_factory=Purse)
    client: Callable[[], httpx.AsyncClient] = new_client


class Races:
    """The races that are offered, by the name of the model that stands for each.

    Raises:
        ValueError: The default one can't be held with these providers.
    """

    def __init__(self, offer: Offer) -> None:
        self.offer = offer
        self.client: httpx.AsyncClient | None = None
        self.board = scoreboard(offer.providers, offer.rules)
        contestants = Contestants()

        def race(name: Strategy | None, *, streams: bool) -> Race:
            usual = "first-token" if streams and offer.rules.accept is None else "first"
            rules = replace(offer.rules, strategy=name or usual, streams=streams)
            if streams:  # what was sent can't be taken back
                rules = replace(rules, on_broken_stream="fail")
            return Race(offer.providers, rules, board=self.board, contestants=contestants)

        self.whole = {DEFAULT: race(offer.strategy, streams=False)}
        self.streamed = {DEFAULT: race(offer.strategy, streams=True)}
        for how in STRATEGIES:
            with suppress(ValueError):  # by these rules nobody can race so; it isn't offered
                whole, streamed = race(how, streams=False), race(how, streams=True)
                self.whole[f"{DEFAULT}:{how}"], self.streamed[f"{DEFAULT}:{how}"] = whole, streamed

    def find(self, model: str, *, streams: bool) -> Race:
        """The race of a name.

        Raises:
            Problem: There is none.
        """
        found = (self.streamed if streams else self.whole).get(model)
        if found is None:
            message = f"there is no model {model!r}; there are {', '.join(self.whole)}"
            raise Problem(404, message, code="model_not_found", param="model")
        return found

    async def hold(
        self, race: Race, name: str, prompt: Prompt, runtime: Runtime, watch: Watch | None = None
    ) -> Report:
        """Hold a race, under a name of its own.

        Raises:
            Problem: The service stops.
        """
        assert self.client is not None, "the lifespan has begun"
        try:
            return await race.hold(
                prompt, runtime, self.client, self.offer.purse, name, watch=watch
            )
        except (Draining, RunCancelled):
            raise stopping() from None
        finally:
            self.board.take(name, None)  # whatever has become of it: nobody asks any more


class Streamed(Response):
    """A response that is sent while something goes on, and begins with its first words.

    What fails before those has a status of its own. Whose client hangs up is cancelled.
    """

    media_type = "text/event-stream"

    def __init__(self, request: Request, tell: Callable[[Say], Awaitable[None]]) -> None:
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.request = request
        self.tell = tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def say(text: str) -> None:
            nonlocal has_begun
            if not has_begun:
                has_begun = True
                start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
                await send(start)
            body = text.encode()
            await send({"type": "http.response.body", "body": body, "more_body": True})

        try:
            async with cancel_on_disconnect(self.request):
                try:
                    await self.tell(say)
                except Problem as problem:
                    if not has_begun:
                        raise
                    await say(sse(problem.body()))
        except HTTPException:  # the client has gone: nobody is left to be told
            return
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def sse(data: object, event: str = "") -> str:
    name = f"event: {event}\n" if event else ""
    return f"{name}data: {json.dumps(data)}\n\n"


# -- the service ---------------------------------------------------------------------------------


def make_service(offer: Offer) -> FastAPI:
    """Make the service.

    Raises:
        ValueError: The default race can't be held with these providers.
        ConfigError: The variable that holds the service's key doesn't.
    """
    races = Races(offer)
    if offer.key_env is not None and not service_key(offer.key_env):
        raise ConfigError(f"{offer.key_env} is to hold the key of this service, and is not set")

    @asynccontextmanager
    async def lifespan(service: FastAPI) -> AsyncGenerator[dict[str, Any]]:
        async with offer.client() as client:
            races.client = client
            async with runtime_lifespan(Runtime(), within=WITHIN)(service) as state:
                yield {**state}

    service = FastAPI(title="LLM race", lifespan=lifespan)
    service.state.races = races
    may = [Depends(doorkeeper(offer.key_env))]
    service.include_router(completions_router(races), prefix="/v1", dependencies=may)
    service.include_router(race_router(races), prefix="/race", dependencies=may)
    service.include_router(service_router(authorize=None))  # what probes ask tells nothing of races
    service.add_exception_handler(Problem, tell_problem)
    service.add_exception_handler(RequestValidationError, tell_misuse)
    service.add_exception_handler(StarletteHTTPException, tell_http)
    service.add_exception_handler(Exception, tell_failure)
    return service


def service_key(name: str) -> str:
    return os.environ.get(name, "").strip()


def doorkeeper(key_env: str | None) -> Callable[[Request], None]:
    """The dependency that lets in who may."""

    def check(request: Request) -> None:
        if key_env is None:
            # Without a key any page in a browser on this machine could spend somebody's money.
            if request.headers.get("sec-fetch-site", "none") in ("cross-site", "same-site"):
                raise Problem(403, "pages of other sites may not ask; set a key: --key-env NAME")
            return
        kind, _, shown = request.headers.get("authorization", "").partition(" ")
        key = service_key(key_env)
        fits = secrets.compare_digest(shown.strip().encode(), key.encode())
        if kind.lower() != "bearer" or not key or not fits:
            headers = {"WWW-Authenticate": "Bearer"}
            message = "the key is not the one of this service: Authorization: Bearer KEY"
            raise Problem(401, message, code="invalid_api_key", headers=headers)

    return check


def completions_router(races: Races) -> APIRouter:
    """What OpenAI's clients ask."""
    router = APIRouter(tags=["OpenAI"])

    @router.get("/models", summary="List strategies, as models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [model_of(name) for name in races.whole]}

    @router.get("/models/{name}", summary="Look at one")
    async def get_model(name: str) -> dict[str, Any]:
        races.find(name, streams=False)
        return model_of(name)

    @router.post("/chat/completions", summary="Race for an answer")
    async def complete(request: Request, runtime: RuntimeDep, body: ChatRequest) -> Response:
        race, prompt = (
            races.find(body.model, streams=body.stream),
            body.prompt(races.offer.defaults),
        )
        name = f"chatcmpl-{uuid.uuid4().hex}"
        if body.stream:
            telling = CompletionStream(races, race, name, body)
            return Streamed(request, lambda say: telling.tell(prompt, runtime, say))
        async with cancel_on_disconnect(request):
            report = await races.hold(race, name, prompt, runtime)
        if report.answer is None:
            assert report.error is not None
            raise lost(report.error)
        return JSONResponse(completion(name, body.model, report))

    return router


def model_of(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "llm_race"}


class CompletionStream:
    """One answer, told as it comes where the first token decides, else when it is there.

    Texts of two are never mixed: when the leader breaks off, so does this.
    """

    def __init__(self, races: Races, race: Race, name: str, body: ChatRequest) -> None:
        self.races = races
        self.race = race
        self.name = name
        self.body = body
        self.leader = Leader() if is_decided_by_token(race.rules) else None
        self.sent = ""
        self.broke_off = False

    async def tell(self, prompt: Prompt, runtime: Runtime, say: Say) -> None:
        """Hold the race, and send what is to be.

        Raises:
            Problem: It is lost, or the service stops.
        """

        async def watch(event: Event) -> None:
            if self.leader is None or self.broke_off:
                return
            self.broke_off = self.leader.hear(event) is not None
            text = "" if self.broke_off else self.leader.take()
            if text:
                await self._say_text(say, text)

        report = await self.races.hold(self.race, self.name, prompt, runtime, watch)
        if report.answer is None:
            assert report.error is not None
            raise lost(report.error)
        if not report.answer.text.startswith(self.sent):
            raise Problem(502, "the answer broke off", code="race_lost")
        for n, answer in enumerate(counting(report)):
            rest = answer.text[len(self.sent) if n == 0 else 0 :]
            if rest:
                await self._say_text(say, rest, n)
            await say(sse(self._chunk({}, finish_reason(answer.finish), n)))
        if self.body.with_usage:
            await say(sse(usage_chunk(self.name, self.body.model, report)))
        await say("data: [DONE]\n\n")

    async def _say_text(self, say: Say, text: str, index: int = 0) -> None:
        delta = (
            {"content": text}
            if index == 0 and self.sent
            else {"role": "assistant", "content": text}
        )
        if index == 0:
            self.sent += text
        await say(sse(self._chunk(delta, index=index)))

    def _chunk(
        self, delta: dict[str, str], finish: str | None = None, index: int = 0
    ) -> dict[str, Any]:
        return chunk(self.name, self.body.model, delta, finish, index)


# -- a race to look at ----------------------------------------------------------------------------

EVENTS = """\
Server-sent events, each with JSON as its data:

- `race`: it has begun: `id`, `model`, `strategy`, `lanes` (who races).
- `lane`: a provider's part in it has changed, or the judge's: `provider`, `status`, `detail`,
  `attempts`, ...
- `text`: a provider has said something: `provider`, `text`. With its lane's next `attempts`, it
  begins anew.
- `end`: how it came out: `winner`, `answer`, `answers`, `cost_usd`, `lanes`, ...; and `status`, 200
  or what a completion would have had.
- `error`: the service stops.

Who hangs up cancels it.
"""


class RaceRequest(BaseModel):
    """The body of `POST /race`."""

    prompt: str = Field(min_length=1)
    model: str = DEFAULT
    system: str | None = None
    max_tokens: int | None = Field(None, ge=1)


def race_router(races: Races) -> APIRouter:
    """Races with all that happens in them."""
    router = APIRouter(tags=["race"])

    def stream(request: Request, runtime: Runtime, asked: RaceRequest) -> Response:
        race = races.find(asked.model, streams=False)  # everybody's text is told, whoever wins
        defaults = races.offer.defaults
        prompt = replace(
            defaults,
            text=asked.prompt,
            system=defaults.system if asked.system is None else asked.system,
            max_tokens=asked.max_tokens or defaults.max_tokens,
        )
        telling = RaceStream(races, race, asked.model)
        return Streamed(request, lambda say: telling.tell(prompt, runtime, say))

    @router.post("", summary="Race, and look on", description=EVENTS)
    async def post_race(request: Request, runtime: RuntimeDep, body: RaceRequest) -> Response:
        return stream(request, runtime, body)

    @router.get("", summary="Race, and look on (for browsers)", description=EVENTS)
    async def get_race(
        request: Request, runtime: RuntimeDep, asked: Annotated[RaceRequest, Query()]
    ) -> Response:
        return stream(request, runtime, asked)

    return router


class RaceStream:
    """One race, told event by event."""

    def __init__(self, races: Races, race: Race, model: str) -> None:
        self.races = races
        self.race = race
        self.model = model
        self.name = f"race-{uuid.uuid4().hex}"
        self.known: dict[str, tuple[object, ...]] = {}  # what was told of lanes

    async def tell(self, prompt: Prompt, runtime: Runtime, say: Say) -> None:
        """Hold the race, and send all that happens."""

        async def watch(event: Event) -> None:
            lanes = self.races.board.lanes(self.name)
            if not self.known and lanes:
                await say(sse(self._beginning([lane.name for lane in lanes]), "race"))
            for lane in lanes:
                now = (lane.status, lane.detail, lane.attempts)
                if self.known.get(lane.name) != now:
                    self.known[lane.name] = now
                    await say(sse(lane.row(), "lane"))
            if isinstance(event, Item) and isinstance(event.item, Chunk) and event.item.text:
                text = {"provider": event.path.act, "text": event.item.text}
                await say(sse(text, "text"))

        try:
            report = await self.races.hold(self.race, self.name, prompt, runtime, watch)
        except Problem as problem:
            if not self.known:
                raise
            await say(sse(problem.body(), "error"))
            return
        answers = {name: answer.text for name, answer in report.answers.items()}
        end = {
            **report.totals(),
            "status": 200 if report.error is None else lost(report.error).status,
            "answer": None if report.answer is None else report.answer.text,
            "answers": answers,
            "lanes": [lane.row() for lane in report.lanes],
        }
        await say(sse(end, "end"))

    def _beginning(self, lanes: Sequence[str]) -> dict[str, Any]:
        strategy = self.race.rules.strategy
        return {"id": self.name, "model": self.model, "strategy": strategy, "lanes": lanes}


# -- failures, as OpenAI's clients know them ------------------------------------------------------


async def tell_problem(_: Request, problem: Exception) -> Response:
    assert isinstance(problem, Problem)
    return JSONResponse(problem.body(), problem.status, problem.headers)


async def tell_misuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors: Sequence[Any] = error.errors()
    deepest = max(errors, key=lambda one: len(one["loc"]))  # of what may be this or that
    where = ".".join(str(part) for part in deepest["loc"][1:])
    message = f"{where}: {deepest['msg']}" if where else str(deepest["msg"])
    return await tell_problem(request, Problem(400, message, param=where or None))


async def tell_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    return await tell_problem(
        request, Problem(error.status_code, error.detail, headers=error.headers)
    )


async def tell_failure(request: Request, _: Exception) -> Response:
    """Tell of a mistake of ours, of which only the log has more."""
    return await tell_problem(request, Problem(500, HTTPStatus(500).phrase))
