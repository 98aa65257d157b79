"""Define the endpoints that steer a run: pause, resume, drain, cancel, and change its limits.

A run that this process executes is steered here; one of another process by a command in its store.
The effect of a command is on record in the run's history.
"""

# No ``from __future__ import annotations``: FastAPI has to see the annotations of endpoints as
# objects.

from typing import Any

from fastapi import APIRouter, HTTPException, Response

from shoal._errors.exceptions import BadUse, DefinitionError
from shoal._runtime.runtime import Runtime
from shoal._runtime.steering import NUMBERS, Control
from shoal.stores._protocol import Browses
from shoal.stores._watching import Command, CommandKind, KeepsReports

from ._lifespan import RuntimeDep
from ._looking import Runs, as_responses, ask, seen
from ._models import Cancel, ChangeLimit, Json, RunId, RunInfo, Steer
from ._problems import printable, refusal

PATIENCE = 3.0
"""Seconds to wait until another process has carried out what was asked: the client waits, too."""


def add_steering(router: APIRouter, runs: Runs) -> None:
    """Add the endpoints that steer a run."""

    @router.post("/{run_id}/pause", status_code=202, summary="Pause a run", response_model=RunInfo)
    async def pause_run(runtime: RuntimeDep, run_id: RunId, body: Steer | None = None) -> Response:
        """Start nothing more in the run until it is resumed.

        What is under way goes on to its end. The pause outlasts the process that executes the run.
        Repeating the request changes nothing.
        """
        given, found = body or Steer(), await runs.find(runtime, run_id)
        if found.paused is None:
            await _steer(runs, runtime, run_id, "pause", given.arguments(), given.by)
            found = await runs.find(runtime, run_id)
        return Json(found.info(), 202)

    @router.post(
        "/{run_id}/resume", status_code=202, summary="Resume a paused run", response_model=RunInfo
    )
    async def resume_run(runtime: RuntimeDep, run_id: RunId, body: Steer | None = None) -> Response:
        """Let a paused run go on. If the run isn't paused, nothing happens."""
        given, found = body or Steer(), await runs.find(runtime, run_id)
        if found.paused is not None:
            await _steer(runs, runtime, run_id, "resume", given.arguments(), given.by)
            found = await runs.find(runtime, run_id)
        return Json(found.info(), 202)

    @router.post("/{run_id}/drain", status_code=202, summary="Drain a run", response_model=RunInfo)
    async def drain_run(runtime: RuntimeDep, run_id: RunId, body: Steer | None = None) -> Response:
        """Start nothing more in the run, and halt it when what is under way has ended.

        It goes on with the rest when it is started again by its id. If it has ended, nothing
        happens.
        """
        given, found = body or Steer(), await runs.find(runtime, run_id)
        if not found.has_ended:
            await _steer(runs, runtime, run_id, "drain", given.arguments(), given.by)
            found = await runs.find(runtime, run_id)
        return Json(found.info(), 202)

    @router.post(
        "/{run_id}/cancel", status_code=202, summary="Cancel a run", response_model=RunInfo
    )
    async def cancel_run(
        runtime: RuntimeDep, run_id: RunId, body: Cancel | None = None
    ) -> Response:
        # The response has the present status: cancelling takes a moment.
        given = body or Cancel()
        handle = runs.here(runtime, run_id)
        if handle is not None:
            handle.cancel(given.reason)
            return Json(seen(handle).info(), 202)
        found = await runs.find(runtime, run_id)
        if not found.has_ended:
            if await _is_abandoned(runs, runtime, run_id):
                # Its process has died, so this one takes it up to end it. Left to a process that
                # recovers it, it would go on until that has seen the request.
                with as_responses():
                    handle = await runtime.start(runs.app, id=run_id)
                handle.cancel(given.reason)
                return Json(seen(handle).info(), 202)
            arguments = {"reason": given.reason}
            await _steer(runs, runtime, run_id, "cancel", arguments, given.by)
        return Json(found.info(), 202)

    @router.post(
        "/{run_id}/limits",
        status_code=202,
        summary="Change or pause a limit that a run uses",
        response_model=RunInfo,
    )
    async def change_limit(runtime: RuntimeDep, run_id: RunId, body: ChangeLimit) -> Response:
        """Change numbers of a limit, or pause it, in the process that executes the run.

        Both last as long as the process. A limit of the service, the application or an action is
        changed for all runs of that process.
        """
        await runs.find(runtime, run_id)
        numbers = {NUMBERS[name]: getattr(body, name) for name in NUMBERS}
        numbers = {name: number for name, number in numbers.items() if number is not None}
        if not numbers and body.paused is None:
            raise refusal("missing", ("body",), "say a new number (n, rate, per, burst), or paused")
        at = {"owner": body.owner, "part": body.part}
        if numbers:
            arguments = {**at, **numbers, **body.arguments()}
            await _steer(runs, runtime, run_id, "change limits", arguments, body.by)
        if body.paused is not None:
            kind: CommandKind = "pause limit" if body.paused else "resume limit"
            keyed = {} if body.key is None else {"key": body.key}
            arguments = {**at, **keyed, **body.arguments()}
            await _steer(runs, runtime, run_id, kind, arguments, body.by)
        return Json((await runs.find(runtime, run_id)).info(), 202)


async def _is_abandoned(runs: Runs, runtime: Runtime, run_id: str) -> bool:
    """Return whether a run has no end and no process executes it, as far as its store knows."""
    store = runs.store(runtime)
    if not isinstance(store, Browses):
        return False
    with as_responses():
        summary = await ask(store.summary(run_id))
    return summary is not None and summary.status == "running" and not summary.holder


async def _steer(  # noqa: PLR0917 # one call for each endpoint
    runs: Runs, runtime: Runtime, run_id: str, kind: CommandKind, arguments: Any, by: str
) -> None:
    """Have a command carried out, here or by the process that executes the run.

    Raises:
        HTTPException: That is not possible.
    """
    handle = runs.here(runtime, run_id)
    if handle is not None and handle.status is None:
        told = {**arguments, "by": by} if by else arguments
        try:
            with as_responses():
                await runtime.carry_out(Command(run_id=run_id, kind=kind, arguments=told))
        except HTTPException as refused:
            # What the run says is for its client: it names limits, and holds no value.
            if isinstance(refused.__cause__, BadUse | DefinitionError):
                raise HTTPException(409, printable(str(refused.__cause__))) from refused
            raise
        return
    store = runs.store(runtime)
    if not isinstance(store, Browses) or not isinstance(store, KeepsReports):
        msg = (
            f"run {run_id!r} is not executed by this process, and its store carries no requests to "
            f"another one (see shoal.stores.KeepsReports)"
        )
        raise HTTPException(409, msg)
    with as_responses():
        await Control(store, by=by, patience=PATIENCE).have_done(run_id, kind, arguments)
