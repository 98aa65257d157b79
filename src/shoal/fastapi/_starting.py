"""Starting a run, or finding that it goes on already; and its end. Imports anyio, and ``_looking``.

Invariants:
- Asking twice does no harm: who asks for a run that goes on is told of that one.
- Nobody is told of a run that was started with something else than what is asked for.
- A run that has ended is never answered as one that goes on, also while its store is still told
  that it has been given back.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from anyio import move_on_after, sleep
from fastapi import HTTPException

from shoal._errors.exceptions import NotData, RunClaimed, RunConflict
from shoal._runtime.handle import RunHandle
from shoal._runtime.runtime import Runtime
from shoal._runtime.start import RunStart
from shoal.stores._protocol import Beginning, RunRecord

from ._looking import RETRY_AFTER, Runs, Seen, as_responses, ask, seen

POLL = 0.25
"""Seconds from one look into the store to the next, for a run that another process executes."""
TRIES = 20
"""Looks at a run that somebody has claimed, and of which there is nothing to be seen yet."""


class Begun(NamedTuple):
    """A run that a client has asked for."""

    run: Seen
    handle: RunHandle[Any] | None
    """It, if it was found here."""
    is_new: bool
    """Whether it goes on because of this request, and didn't before."""


async def begin(runs: Runs, runtime: Runtime, state: Any, run_id: str | None) -> Begun:
    """Start a run, or have one that is known go on; if it does already, find it.

    Raises:
        HTTPException: It can't be, or goes on and was started with something else.
    """
    tries = TRIES
    with as_responses():  # before the id is looked up, and may be named in another refusal
        runs.app._check.refuse_in_id(run_id, state)
    while True:
        handle = None if run_id is None else runs.here(runtime, run_id)
        with as_responses():
            if handle is not None:
                _refuse_other(runs, handle.run_id, state, _record(runs, handle))
                if await _goes_on_or_has_succeeded(handle):
                    return Begun(seen(handle), handle, is_new=False)
                continue  # it has ended otherwise, so it can go on
            try:
                handle = await runtime.start(runs.app, state, id=run_id)
                is_new = handle._run.status is None  # else it had succeeded before
                if not is_new:
                    await handle.wait_ended()
                return Begun(seen(handle), handle, is_new=is_new)
            except RunClaimed:  # somebody executes it, whom the store may know by now
                tries -= 1
                if run_id is None or not tries:
                    raise
            known = await ask(runs.store(runtime).load(run_id))
            if known is not None:
                _refuse_other(runs, run_id, state, known)
                found = await runs.find(runtime, run_id)
                if not found.has_ended or found.status == "succeeded":
                    return Begun(found, None, is_new=False)
        await sleep(POLL)  # it is about to begin, or to be given back


async def begin_surely(runs: Runs, runtime: Runtime, state: Any, run_id: str | None) -> Begun:
    """Do the same in a task of the runtime's, so that no client takes the run along.

    Some servers (granian, hypercorn) cancel a request's task when its client hangs up. Once this
    is called the run begins all the same, though nobody may be there any more to be told
    (see test_a_run_that_outlives_its_request_begins_whatever_cancels_that).

    Raises:
        HTTPException: As ``begin``.
    """
    found: list[Begun | Exception] = []

    async def work() -> None:
        try:
            found.append(await begin(runs, runtime, state, run_id))
        except Exception as error:  # noqa: BLE001 # raised in the request's task
            found.append(error)

    hosted = runtime._host(work, _say_nothing)
    await hosted.ended.wait()
    if not found:  # the runtime has been cancelled
        raise _stopping(run_id or "that was asked for")
    result = found.pop()
    if isinstance(result, Exception):
        try:
            raise result
        finally:
            del result  # no cycle from the exception to this frame
    return result


def _say_nothing(_reason: str) -> None:
    """Hear why the beginning is cancelled: nobody cancels it alone."""


async def _goes_on_or_has_succeeded(handle: RunHandle[Any]) -> bool:
    """Tell what there is to say of a run found here, once its status is known for good.

    The handle has no status yet while the run is given back to its store, though nothing happens
    in it any more: that may take as long as the store does (see test_a_run_that_is_given_back).
    """
    if handle._run.status is not None:
        await handle.wait_ended()
    return handle.status in (None, "succeeded")


async def wait_ended(runs: Runs, runtime: Runtime, begun: Begun) -> Seen:
    """Wait until a run has ended, whoever executes it.

    Raises:
        HTTPException: The service stops.
    """
    handle, run_id = begun.handle, begun.run.run_id
    while True:
        handle = handle or runs.here(runtime, run_id)
        if handle is not None:
            await handle.wait_ended()
            if handle.is_interrupted:
                raise _stopping(run_id)
            return seen(handle)
        found = await runs.find(runtime, run_id)
        if found.has_ended:
            return found
        with move_on_after(POLL):
            await runtime.wait_draining()
            raise _stopping(run_id)


def _stopping(run_id: str) -> HTTPException:
    msg = f"the service stops, and run {run_id} is left to another process"
    return HTTPException(503, msg, {"Retry-After": RETRY_AFTER})


def _record(runs: Runs, handle: RunHandle[Any]) -> RunRecord:
    """Say what a run that goes on here was started with, also where no store knows."""
    first = handle._run.initial
    begun = Beginning(application=handle.application, version=runs.app.version, first=first)
    return RunRecord(beginning=RunStart.of(begun).beginning, status=None)


def _refuse_other(runs: Runs, run_id: str, state: Any, known: RunRecord) -> None:
    try:
        runs.app._check.refuse_other(run_id, state, known)
    except NotData as error:
        what = f"run {run_id} exists, and whether it was started with the same can't be told"
        raise RunConflict(str(error), what) from error
