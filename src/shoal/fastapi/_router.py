"""Define the endpoints.

Invariants:
- Every endpoint calls ``authorize``. A service that wants no check has to pass ``None``.
- A client can set the initial state of a run, never its inputs.
"""

# No ``from __future__ import annotations``: FastAPI has to see the annotations of endpoints as
# objects, because some name models that are local to a function.

import logging
from http import HTTPStatus
from itertools import dropwhile, islice
from time import time
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import quote

from anyio import CancelScope, fail_after
from fastapi import APIRouter, Depends, Header, HTTPException, Query, Request, Response
from fastapi.responses import PlainTextResponse
from pydantic import BaseModel

from shoal._errors.exceptions import DefinitionError, Draining
from shoal._events.events import in_short
from shoal._runtime.application import Application
from shoal._runtime.runtime import Runtime
from shoal.stores._protocol import Browses, NullStore, RunStatus, RunSummary

from ._disconnect import cancel_on_disconnect
from ._door import Authorize, authorizing, checked_route, refuse_no_data
from ._events import DESCRIPTION, MEDIA_TYPE, EventStreamResponse, RunEventStream
from ._lifespan import RuntimeDep
from ._looking import Runs, as_responses, refuse_overloaded, seen, status_of
from ._metrics import MEDIA_TYPE as METRICS_TYPE
from ._metrics import metrics_of
from ._models import (
    Answers,
    Health,
    Json,
    LimitUse,
    Models,
    Page,
    Problem,
    RunId,
    RunInfo,
    models_of,
)
from ._owners import Owner, refusing_others, whose_of
from ._problems import ANSWERS, printable
from ._starting import Begun, begin, begin_surely, wait_ended
from ._steering import add_steering

logger = logging.getLogger("shoal.fastapi")

OnDisconnect = Literal["cancel", "detach"]
"""Whether a run is cancelled or continues if its client disconnects while it waits for the end."""

MOST = 200
"""The most runs in one page of a list."""
PAGES = 20
"""The most pages of a store that one request reads to find runs of its application. It bounds the
time of a request if a store has many runs of others; the client then asks for the next page."""
PROBLEMS = (400, 404, 409, 422, 503)
"""The statuses of refusals. ``authorize`` may raise others."""
JOINED = (
    "a request with the `id` of a run that is running already, in whichever process, joins that "
    "run if it has no `state`, or the same `state`; with another `state`, the answer is 409."
)
"""The description of requests for a run that is running."""
BUSY_AT = 0.75
"""The share of the runs that may wait, from which on the service is not ready. Balancers look every
few seconds, so they have to be told while there is still room for the requests until then."""
STORE_DEADLINE = 2.0
"""Seconds that a store has for its answer to a readiness check. Probes mostly wait 1 to 10 s."""


def runs_router(
    app: Application[Any],
    *,
    authorize: Authorize | None,
    owner: Owner | None = None,
    prefix: str = "/runs",
    on_disconnect: OnDisconnect = "cancel",
    tags: list[str] | None = None,
) -> APIRouter:
    """Return a router with endpoints for the runs of an application, in the service's runtime.

    ``POST /runs`` starts a run and returns (202); ``POST /runs/wait`` starts a run and waits for
    its end; ``GET /runs`` lists runs, ``GET /runs/{id}`` returns one; ``GET /runs/{id}/events``
    sends its events as server-sent events; ``POST /runs/{id}/cancel`` cancels a run, and
    ``POST /runs/{id}/answers`` answers the questions of a halted run and resumes it;
    ``POST /runs/{id}/pause`` and ``/resume`` pause a run and let it go on, ``/drain`` starts
    nothing more in it, and ``POST /runs/{id}/limits`` changes a limit that it uses.

    If several workers share a store, each of them can answer every request. Without a store, only
    the process that executes a run knows it, and only while it runs.

    Requests and responses are described by models that are made from the application's state. A
    client sends fields of the state; inputs come from the application and the runtime.

    Args:
        app: The application. Add it to ``Runtime(apps=[...])``, so that its runs are recovered.
        authorize: A dependency of every endpoint, which raises ``HTTPException`` if the request is
            not allowed. It may have a parameter ``run_id: str = ""``, and others that FastAPI
            knows. ``run_id`` is the run in the path, or the ``id`` in the body of ``POST /runs``
            and ``POST /runs/wait``, whether that run exists or not; for the list, and for a run
            that is started without an id, it is ``""``. None allows every request.
        owner: A dependency that returns whose runs a request is about: a name, which is saved with
            the runs that it starts, and by which the list and all other endpoints know only runs of
            that owner; or None for a client that may see all. It is called after ``authorize``.
        prefix: The beginning of the endpoints' paths.
        on_disconnect: Whether a run is cancelled or continues if its client disconnects while it
            waits for the end.
        tags: The tags in the documentation; by default the application's name.

    Raises:
        DefinitionError: ``app`` is not an application, or another argument is invalid.

    Examples:
        >>> from fastapi import FastAPI, HTTPException
        >>> async def check_token(token: str = "") -> None:
        ...     if token != "secret":
        ...         raise HTTPException(401)
        >>> @action(reads=["n"], writes=["square"])
        ... async def square(n: int) -> int:
        ...     return n * n
        >>> squares = Application(square, store=MemoryStore())
        >>> service = FastAPI(lifespan=runtime_lifespan(Runtime(apps=[squares])))
        >>> service.include_router(runs_router(squares, authorize=check_token))
    """
    if not isinstance(app, Application):
        msg = f"runs_router(app) takes an Application, not {app!r}"
        raise DefinitionError(msg)
    if on_disconnect not in ("cancel", "detach"):
        msg = f'runs_router(on_disconnect=...) takes "cancel" or "detach", not {on_disconnect!r}'
        raise DefinitionError(msg)
    runs, models, whose = Runs(app), models_of(app), whose_of(owner)
    router = APIRouter(
        prefix=prefix,
        tags=[*(tags if tags is not None else [app.name])],
        dependencies=[
            *authorizing(authorize, "runs_router"),
            refusing_others(runs, whose),
            Depends(refuse_no_data),
        ],
        route_class=checked_route(app.secret),
        responses=_problems(*PROBLEMS),
    )
    _add_starting(router, runs, models, on_disconnect, whose)
    _add_looking(router, runs, models, whose)
    add_steering(router, runs)
    return router


def _add_starting(
    router: APIRouter, runs: Runs, models: Models, on_disconnect: OnDisconnect, whose: Owner
) -> None:
    request_model: Any = models.start
    asked = Depends(whose)

    async def start_run(
        request: Request, runtime: RuntimeDep, body: Any, owner: Any = asked
    ) -> Response:
        # Before the start: once the run is running, nothing here may fail (see
        # test_whatever_its_prefix_a_run_has_an_address).
        where = address(request)
        begun = await begin_surely(runs, runtime, body.state, body.id, owner)
        return Json(begun.run.info(), 202, {"Location": f"{where}/{begun.run.run_id}"})

    async def run_and_wait(
        request: Request, runtime: RuntimeDep, body: Any, owner: Any = asked
    ) -> Response:
        begun: Begun | None = None
        if on_disconnect == "detach":
            begun = await begin_surely(runs, runtime, body.state, body.id, owner)
        try:
            async with cancel_on_disconnect(request):
                if begun is None:
                    # Within: it may have to wait for its turn, and leaves the line with its client.
                    begun = await begin(runs, runtime, body.state, body.id, owner)
                ended = await wait_ended(runs, runtime, begun)
        except BaseException:
            is_ours = begun is not None and begun.is_new and on_disconnect == "cancel"
            if is_ours and begun is not None and begun.handle is not None:
                begun.handle.cancel("its client has gone")
                with CancelScope(shield=True):
                    await begun.handle.wait_ended()
            raise
        if begun.handle is not None:
            refuse_overloaded(begun.handle.error)
        return Json(ended.view())

    for endpoint in (start_run, run_and_wait):
        endpoint.__annotations__["body"] = request_model  # FastAPI reads it there
    router.add_api_route(
        "",
        start_run,
        methods=["POST"],
        status_code=202,
        response_model=RunInfo,
        summary="Start a run",
        description=(
            "Starts a run, and returns when its start is saved; the run continues by itself. "
            f"Repeating the request is harmless: {JOINED}"
        ),
    )
    router.add_api_route(
        "/wait",
        run_and_wait,
        methods=["POST"],
        response_model=models.view,
        summary="Run, and wait for the end",
        description={
            "cancel": "Starts a run and waits for its end. The run is cancelled if the client that "
            "started it disconnects. Other clients may wait, too: ",
            "detach": "Starts a run and waits for its end. The run continues if clients "
            "disconnect. Other clients may wait, too: ",
        }[on_disconnect]
        + JOINED,
    )


def address(request: Request) -> str:
    """Return the path of a request in a form that a header may have.

    The server has decoded the path, so it may hold any character; those that a URL's path allows
    are not escaped.
    """
    path = quote(request.scope["path"].encode("utf-8", "surrogatepass"), safe="/:@!$&'()*+,;=~")
    return f"/%2F{path[2:]}" if path.startswith("//") else path  # "//" would begin with a host


def _add_looking(router: APIRouter, runs: Runs, models: Models, whose: Owner) -> None:
    owner_of_request = Depends(whose)

    @router.get("", summary="List runs", response_model=Page)
    async def list_runs(  # noqa: PLR0917 # FastAPI passes them by name
        runtime: RuntimeDep,
        status: RunStatus | None = None,
        limit: Annotated[int, Query(ge=1, le=MOST)] = 50,
        after: Annotated[
            RunId | None,
            Query(
                description="The last run of the previous page. If it is not known, the page is "
                "empty."
            ),
        ] = None,
        owner: Annotated[str | None, Query(description="Only runs of that owner.")] = None,
        whose: Any = owner_of_request,
    ) -> Response:
        if None not in (owner, whose) and owner != whose:
            return Json({"runs": [], "next": None})
        wanted = Wanted(status, limit, after, owner if whose is None else whose)
        return Json(await _page(runs, runtime, wanted))

    @router.get("/{run_id}", summary="Get a run", response_model=models.view)
    async def get_run(runtime: RuntimeDep, run_id: RunId) -> Response:
        return Json((await runs.find(runtime, run_id)).view())

    async def stream_of(
        runtime: RuntimeDep,
        run_id: RunId,
        last_event_id: Annotated[int | None, Header(ge=0)] = None,
    ) -> RunEventStream:
        # A dependency, so that errors are raised before the response begins.
        _refuse_draining(runtime)
        found = await runs.find(runtime, run_id)
        return RunEventStream(runs, runtime, found, last_event_id)

    @router.get(
        "/{run_id}/events",
        summary="Follow a run",
        description=DESCRIPTION,
        response_class=EventStreamResponse,
        responses={200: {"content": _EVENTS}, **_problems_in_json(*PROBLEMS)},
    )
    async def follow_run(
        request: Request, stream: Annotated[RunEventStream, Depends(stream_of)]
    ) -> Response:
        return EventStreamResponse(request, stream)

    @router.post(
        "/{run_id}/answers", status_code=202, summary="Answer questions", response_model=RunInfo
    )
    async def answer_run(runtime: RuntimeDep, run_id: RunId, body: Answers) -> Response:
        await runs.find(runtime, run_id)  # raises if it isn't a run of this application
        answers = {
            one.name if one.run_id is None else (one.run_id, one.name): one.value
            for one in body.answers
        }
        if isinstance(runs.store(runtime), NullStore):
            raise HTTPException(409, "the service saves no runs, so none of them waits for answers")
        with as_responses(ANSWERS, [*answers]):
            handle = await runtime.start(runs.app, id=run_id, answers=answers)
        return Json(seen(handle).info(), 202)


class Wanted(NamedTuple):
    """The page of a list of runs that a client asks for."""

    status: RunStatus | None
    limit: int
    after: str | None
    owner: str | None


async def _page(runs: Runs, runtime: Runtime, wanted: Wanted) -> dict[str, object]:
    """Collect a page of runs of one application from all runs that the store lists."""
    status, limit, after, owner = wanted
    store = runs.store(runtime)
    if not isinstance(store, Browses):
        return _page_of_here(runs, runtime, wanted)
    whose = {} if owner is None else {"owner": owner}
    found: list[RunSummary] = []
    page: list[RunSummary] = []
    with as_responses():
        for _ in range(PAGES):
            page = [*await store.runs(status=status, limit=MOST, after=after, **whose)]
            for run in page:
                after = run.run_id
                if run.application == runs.app.name:
                    found.append(run)
                if len(found) == limit:
                    break
            if len(found) == limit or len(page) < MOST:
                break
    is_over = len(page) < MOST and len(found) < limit
    return {"runs": [_listed(run) for run in found], "next": None if is_over else after}


def _page_of_here(runs: Runs, runtime: Runtime, wanted: Wanted) -> dict[str, object]:
    """Collect a page of runs of this process, if no store can list any."""
    status, limit, after, owner = wanted
    newest = [one for one in reversed(runtime.runs()) if one.application == runs.app.name]
    if after is not None:
        behind = dropwhile(lambda handle: handle.run_id != after, newest)
        newest = [*islice(behind, 1, None)]
    found = [
        one for one in newest if status in (None, seen(one).status) and owner in (None, one.owner)
    ]
    now = time()
    more = {"version": runs.app.version, "executed_by": "this process"}
    page = [
        {**seen(one).info(), **more, "began_at": now - one._run.age, "owner": one.owner}
        for one in found[:limit]
    ]
    return {"runs": page, "next": found[limit - 1].run_id if len(found) > limit else None}


def _listed(run: RunSummary) -> dict[str, object]:
    return {
        "id": run.run_id,
        "application": run.application,
        "status": status_of(run),
        "reason": run.reason or run.error,
        "version": run.version,
        "began_at": run.began_at,
        "ended_at": run.ended_at,
        "executed_by": run.holder,
        "forked_from": run.forked_from,
        "owner": run.owner,
    }


def service_router(
    *,
    authorize: Authorize | None,
    prefix: str = "",
    tags: list[str] | None = None,
    busy_at: float = BUSY_AT,
    metrics: bool = False,
) -> APIRouter:
    """Return a router with endpoints for the health of the service.

    ``GET /healthz`` says whether the process is healthy (200) or should be replaced (503).
    ``GET /readyz`` says whether the process accepts requests: it isn't draining, its stores answer,
    and it isn't busy: less than ``busy_at`` of the runs that may wait (``Runtime(waiting=)``) do.
    The error of a store is logged. Clients get it only if ``authorize`` is given, because it names
    the database.
    ``GET /limits`` returns the use of limits in this process.

    Args:
        authorize: As for ``runs_router``. If probes of the service have no token, give them a
            router of their own, ``service_router(authorize=None)``, that only they can reach.
        prefix: The beginning of the endpoints' paths.
        tags: The tags in the documentation.
        busy_at: The share of ``Runtime(waiting=)`` from which on ``/readyz`` answers 503, so that a
            balancer sends requests elsewhere before any is refused: above 0, and at most 1.
        metrics: Whether there is ``GET /metrics``: runs, limits and breakers of this process, in
            the text format of Prometheus.

    Raises:
        DefinitionError: ``busy_at`` is no such share, or ``authorize`` is invalid.
    """
    if type(busy_at) not in (int, float) or not 0 < busy_at <= 1:
        msg = f"service_router(busy_at=...) takes a share, above 0 and at most 1, not {busy_at!r}"
        raise DefinitionError(msg)
    router = APIRouter(
        prefix=prefix,
        tags=[*(tags if tags is not None else ["service"])],
        dependencies=authorizing(authorize, "service_router"),
    )
    poorly: dict[int | str, dict[str, Any]] = {503: {"model": Health}}
    logged = ""  # the last problem that was logged, so that each is logged once

    @router.get("/healthz", response_model=Health, responses=poorly)
    async def health(runtime: RuntimeDep) -> Response:
        if runtime.healthy:
            return Json({"status": "draining" if runtime.draining else "ok", "detail": ""})
        return Json({"status": "unhealthy", "detail": "the runtime has broken down"}, 503)

    @router.get("/readyz", response_model=Health, responses=poorly)
    async def readiness(runtime: RuntimeDep) -> Response:
        if runtime.draining:
            return Json({"status": "draining", "detail": "it accepts no more runs"}, 503)
        if not runtime.healthy:
            return Json({"status": "unhealthy", "detail": "the runtime has broken down"}, 503)
        load = runtime.load
        if load.is_busy(busy_at):
            detail = f"{load.running} runs execute, and {load.waiting} wait for their turn"
            return Json({"status": "busy", "detail": detail}, 503)
        nonlocal logged
        why = await _store_problem(runtime)
        if why and why != logged:
            logger.warning("the service is not ready: a store does not answer: %s", why)
        logged = why
        if not why:
            return Json({"status": "ok", "detail": ""})
        # The error of a store names its database. Only the log and authorized clients get it.
        detail = "a store does not answer" + (f": {why}" if authorize is not None else "")
        return Json({"status": "unhealthy", "detail": detail}, 503)

    if metrics:

        @router.get("/metrics", summary="Metrics for Prometheus", response_class=PlainTextResponse)
        async def get_metrics(runtime: RuntimeDep) -> Response:
            return Response(metrics_of(runtime), media_type=METRICS_TYPE)

    @router.get("/limits", response_model=dict[str, list[LimitUse]])
    async def limits(runtime: RuntimeDep) -> Response:
        named = runtime.limiters()
        return Json(
            {name: [_use(part) for part in one.statistics()] for name, one in named.items()}
        )

    return router


def _use(part: Any) -> dict[str, object]:
    fields = LimitUse.model_fields
    return {field: getattr(part, field) for field in fields}


async def _store_problem(runtime: Runtime) -> str:
    """Query each store; return the error of the first that fails, or an empty text."""
    for store in runtime.stores():
        try:
            with fail_after(STORE_DEADLINE):
                await store.load("readiness")
        except Exception as error:  # noqa: BLE001 # any error means that the store doesn't answer
            return printable(in_short(error))
    return ""


def _refuse_draining(runtime: Runtime) -> None:
    if runtime.draining:
        with as_responses():
            msg = "the service stops; another process can send the events of the run"
            raise Draining(msg)


_TEXT = {"type": "string"}
_EVENTS = {
    MEDIA_TYPE: {
        "itemSchema": {
            "type": "object",
            "properties": {"event": _TEXT, "data": _TEXT, "id": _TEXT},
            "required": ["event", "data"],
        }
    }
}
"""The schema of the events, by OpenAPI 3.2."""


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    problem: type[BaseModel] = Problem
    return {status: {"model": problem} for status in statuses}


def _problems_in_json(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe problems as JSON for an endpoint whose other responses are not JSON.

    The schema refers to the model that the other endpoints define.
    """
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": content}
        for status in statuses
    }
