"""The endpoints. Imports FastAPI, anyio, and the rooms before.

Invariants:
- Nothing is reachable without what ``authorize`` allows; who wants none says so: ``None``.
- What a run is given from outside of its service is its state, never its inputs.
"""

# Annotations are evaluated where they stand: those of endpoints name what is made for each router.

import logging
from http import HTTPStatus
from itertools import dropwhile, islice
from time import time
from typing import Annotated, Any, Literal
from urllib.parse import quote

from anyio import CancelScope, fail_after
from fastapi import APIRouter, Depends, Header, HTTPException, Query, Request, Response
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
from ._looking import Runs, as_responses, seen, status_of
from ._models import (
    REASON,
    Answers,
    Cancel,
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
from ._problems import ANSWERS, printable
from ._relay import ask_to_cancel
from ._starting import begin, begin_surely, wait_ended

logger = logging.getLogger("shoal.fastapi")

OnDisconnect = Literal["cancel", "detach"]
"""What becomes of a run whose client goes away while it waits: it is cancelled, or goes on."""

MOST = 200
"""Runs in one page of a list."""
PAGES = 20
"""Pages of a store that are looked through for one of an application."""
PROBLEMS = (400, 404, 409, 422, 503)
"""Statuses of requests that could not be met; what else ``authorize`` raises is its own."""
JOINED = (
    "one with the `id` of a run that goes on already, in whichever process, and without a `state` "
    "or with the one that it was started with, is answered for that run; with another `state`, "
    "409."
)
"""What becomes of a request for a run that is under way."""
STORE_DEADLINE = 2.0
"""Seconds that a store has to show that it is there."""


def runs_router(
    app: Application[Any],
    *,
    authorize: Authorize | None,
    prefix: str = "/runs",
    on_disconnect: OnDisconnect = "cancel",
    tags: list[str] | None = None,
) -> APIRouter:
    """Make endpoints for the runs of an application, in the service's runtime.

    ``POST /runs`` starts one and returns (202); ``POST /runs/wait`` starts one and waits for its
    end; ``GET /runs`` lists them, ``GET /runs/{id}`` looks at one; ``GET /runs/{id}/events`` sends
    what happens in it, as server-sent events; ``POST /runs/{id}/cancel`` cancels it, and
    ``POST /runs/{id}/answers`` has one that is halted go on.

    With a store that several workers share, any of them may be asked. Without a store a run is
    known only to the process in which it goes on, and only as long.

    What a client may send and gets is described by models that are made of the application's.
    A client gives the fields of the state; inputs come from the application and the runtime.

    Args:
        app: The application. Name it in ``Runtime(apps=[...])``, so that its runs are recovered.
        authorize: A dependency that every endpoint here has, and that raises ``HTTPException``
            where something isn't allowed; it may have ``run_id: str = ""`` as a parameter, and
            others that FastAPI knows. That is the run in the path, or the one that ``POST /runs``
            and ``POST /runs/wait`` are given as ``id``, whether there is one yet or not; and ``""``
            for the list, and for a run that is started without an id. None: everybody may do
            everything.
        prefix: Where they are.
        on_disconnect: What becomes of a run whose client goes away while it waits for the end.
        tags: For the documentation; by default the application's name.

    Raises:
        DefinitionError: ``app`` is no application, or another argument not what it has to be.

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
    router = APIRouter(
        prefix=prefix,
        tags=[*(tags if tags is not None else [app.name])],
        dependencies=[*authorizing(authorize, "runs_router"), Depends(refuse_no_data)],
        route_class=checked_route(app.secret),
        responses=_problems(*PROBLEMS),
    )
    runs, models = Runs(app), models_of(app)
    _add_starting(router, runs, models, on_disconnect)
    _add_looking(router, runs, models)
    return router


def _add_starting(
    router: APIRouter, runs: Runs, models: Models, on_disconnect: OnDisconnect
) -> None:
    request_model: Any = models.start

    async def start_run(request: Request, runtime: RuntimeDep, body: Any) -> Response:
        # Before the start: once the run goes on, nothing here may fail
        # (see test_whatever_its_prefix_a_run_has_an_address).
        where = address(request)
        begun = await begin_surely(runs, runtime, body.state, body.id)
        return Json(begun.run.info(), 202, {"Location": f"{where}/{begun.run.run_id}"})

    async def run_and_wait(request: Request, runtime: RuntimeDep, body: Any) -> Response:
        starting = begin_surely if on_disconnect == "detach" else begin
        begun = await starting(runs, runtime, body.state, body.id)
        try:
            async with cancel_on_disconnect(request):
                ended = await wait_ended(runs, runtime, begun)
        except BaseException:
            if on_disconnect == "cancel" and begun.is_new and begun.handle is not None:
                begun.handle.cancel("its client has gone")
                with CancelScope(shield=True):
                    await begun.handle.wait_ended()
            raise
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
            "Starts a run, and returns when its beginning is saved. It goes on by itself. Asking "
            f"again is no error: {JOINED}"
        ),
    )
    router.add_api_route(
        "/wait",
        run_and_wait,
        methods=["POST"],
        response_model=models.view,
        summary="Run, and wait for the end",
        description={
            "cancel": "Starts a run and waits for its end. The client whose request has started it "
            "cancels it by hanging up. Others may wait too: ",
            "detach": "Starts a run and waits for its end. It goes on when clients hang up. Others "
            "may wait too: ",
        }[on_disconnect]
        + JOINED,
    )


def address(request: Request) -> str:
    """Return the path that was asked for, as a header may have it.

    The server has decoded it, so it may hold anything; what a path may hold stays as it is.
    """
    path = quote(request.scope["path"].encode("utf-8", "surrogatepass"), safe="/:@!$&'()*+,;=~")
    return f"/%2F{path[2:]}" if path.startswith("//") else path  # "//" would begin with a host


def _add_looking(router: APIRouter, runs: Runs, models: Models) -> None:
    @router.get("", summary="List runs", response_model=Page)
    async def list_runs(
        runtime: RuntimeDep,
        status: RunStatus | None = None,
        limit: Annotated[int, Query(ge=1, le=MOST)] = 50,
        after: Annotated[
            RunId | None,
            Query(description="The last run of the page before. None come after one not known."),
        ] = None,
    ) -> Response:
        return Json(await _page(runs, runtime, status, limit, after))

    @router.get("/{run_id}", summary="Look at a run", response_model=models.view)
    async def get_run(runtime: RuntimeDep, run_id: RunId) -> Response:
        return Json((await runs.find(runtime, run_id)).view())

    async def stream_of(
        runtime: RuntimeDep,
        run_id: RunId,
        last_event_id: Annotated[int | None, Header(ge=0)] = None,
    ) -> RunEventStream:
        # A dependency, so that who asks for what isn't there is told so before anything is sent.
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
        "/{run_id}/cancel", status_code=202, summary="Cancel a run", response_model=RunInfo
    )
    async def cancel_run(
        runtime: RuntimeDep, run_id: RunId, body: Cancel | None = None
    ) -> Response:
        # Soon: `status` is what it is now.
        reason = REASON if body is None else body.reason
        handle = runs.here(runtime, run_id)
        if handle is not None:
            handle.cancel(reason)
            return Json(seen(handle).info(), 202)
        found = await runs.find(runtime, run_id)
        if found.has_ended:
            return Json(found.info(), 202)
        with as_responses():
            if await ask_to_cancel(runs.store(runtime), run_id, reason):
                return Json(found.info(), 202)
        msg = (
            f"run {run_id!r} goes on in another process, and its store can't pass on that it is to "
            f"be cancelled (see shoal.stores.CachesResults)"
        )
        raise HTTPException(409, msg)

    @router.post(
        "/{run_id}/answers", status_code=202, summary="Answer questions", response_model=RunInfo
    )
    async def answer_run(runtime: RuntimeDep, run_id: RunId, body: Answers) -> Response:
        await runs.find(runtime, run_id)  # of this application
        answers = {
            one.name if one.run_id is None else (one.run_id, one.name): one.value
            for one in body.answers
        }
        if isinstance(runs.store(runtime), NullStore):
            raise HTTPException(409, "the service keeps no runs, so none of them waits for answers")
        with as_responses(ANSWERS, [*answers]):
            handle = await runtime.start(runs.app, id=run_id, answers=answers)
        return Json(seen(handle).info(), 202)


async def _page(
    runs: Runs, runtime: Runtime, status: RunStatus | None, limit: int, after: str | None
) -> dict[str, object]:
    """Collect a page of the runs of one application, out of all that the store lists."""
    store = runs.store(runtime)
    if not isinstance(store, Browses):
        return _page_of_here(runs, runtime, status, limit, after)
    found: list[RunSummary] = []
    page: list[RunSummary] = []
    with as_responses():
        for _ in range(PAGES):
            page = [*await store.runs(status=status, limit=MOST, after=after)]
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


def _page_of_here(
    runs: Runs, runtime: Runtime, status: RunStatus | None, limit: int, after: str | None
) -> dict[str, object]:
    """Collect the same of what goes on here, where no store lists any."""
    newest = [one for one in reversed(runtime.runs()) if one.application == runs.app.name]
    if after is not None:
        behind = dropwhile(lambda handle: handle.run_id != after, newest)
        newest = [*islice(behind, 1, None)]
    found = [one for one in newest if status in (None, seen(one).status)]
    now = time()
    more = {"version": runs.app.version, "executed_by": "this process"}
    page = [{**seen(one).info(), **more, "began_at": now - one._run.age} for one in found[:limit]]
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
    }


def service_router(
    *, authorize: Authorize | None, prefix: str = "", tags: list[str] | None = None
) -> APIRouter:
    """Make endpoints that tell how the service is.

    ``GET /healthz``: whether the process is to be left alone (200) or replaced (503).
    ``GET /readyz``: whether it is to be sent requests: it isn't drained, and its stores answer.
    What is wrong with a store is logged, and told only where ``authorize`` is given: it names the
    database.
    ``GET /limits``: how limits are used in this process.

    Args:
        authorize: As for ``runs_router``. What probes a service may have no token: then give it
            a router of its own, ``service_router(authorize=None)``, where only probes get to.
        prefix: Where they are.
        tags: For the documentation.
    """
    router = APIRouter(
        prefix=prefix,
        tags=[*(tags if tags is not None else ["service"])],
        dependencies=authorizing(authorize, "service_router"),
    )
    poorly: dict[int | str, dict[str, Any]] = {503: {"model": Health}}
    said = ""  # the last problem that was logged

    @router.get("/healthz", response_model=Health, responses=poorly)
    async def health(runtime: RuntimeDep) -> Response:
        if runtime.healthy:
            return Json({"status": "draining" if runtime.draining else "ok", "detail": ""})
        return Json({"status": "unhealthy", "detail": "the runtime has broken down"}, 503)

    @router.get("/readyz", response_model=Health, responses=poorly)
    async def readiness(runtime: RuntimeDep) -> Response:
        if runtime.draining:
            return Json({"status": "draining", "detail": "it takes no more runs"}, 503)
        if not runtime.healthy:
            return Json({"status": "unhealthy", "detail": "the runtime has broken down"}, 503)
        nonlocal said
        why = await _store_problem(runtime)
        if why and why != said:
            logger.warning("the service is not ready: a store does not answer: %s", why)
        said = why
        if not why:
            return Json({"status": "ok", "detail": ""})
        # What a store says names its database: that is for the log, and for clients that may ask.
        detail = "a store does not answer" + (f": {why}" if authorize is not None else "")
        return Json({"status": "unhealthy", "detail": detail}, 503)

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
    """Ask each store something; say what is wrong with one."""
    for store in runtime.stores():
        try:
            with fail_after(STORE_DEADLINE):
                await store.load("readiness")
        except Exception as error:  # noqa: BLE001 # whatever it is, it is the answer
            return printable(in_short(error))
    return ""


def _refuse_draining(runtime: Runtime) -> None:
    if runtime.draining:
        with as_responses():
            msg = "the service stops; what happens in the run can be followed elsewhere"
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
"""What the events look like, in the words of OpenAPI 3.2."""


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    problem: type[BaseModel] = Problem
    return {status: {"model": problem} for status in statuses}


def _problems_in_json(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe them where all else is no JSON; the model is known by the other endpoints."""
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": content}
        for status in statuses
    }
