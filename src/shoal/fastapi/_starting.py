"""Start a run, or join one that is running, and wait for its end.

Invariants:
- Repeating a request is harmless: a request for a run that is running is answered with that run.
- A request with another initial state than that of the existing run is refused.
- A run that has ended is never answered as a running one, even while it is still being released in
  its store.
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
from ._owners import refuse_taken

POLL = 0.25
"""Seconds between two polls of the store, for a run that another process executes."""
TRIES = 20
"""Polls for a run that is claimed but not saved yet: 5 seconds in all."""


class Begun(NamedTuple):
    """A run that a client has asked for."""

    run: Seen
    handle: RunHandle[Any] | None
    """The handle of the run, if this process executes it."""
    is_new: bool
    """Whether this request has started or resumed the run."""


async def begin(
    runs: Runs, runtime: Runtime, state: Any, run_id: str | None, owner: str | None = None
) -> Begun:
    """Start a run, resume one that exists, or find one that is running.

    Raises:
        HTTPException: The run can't be started or resumed, or exists with another initial state.
    """
    tries = TRIES
    # First of all: an id with the text of a secret must not appear in another refusal.
    with as_responses():
        runs.app._check.refuse_in_id(run_id, state)
    while True:
        await refuse_taken(runs, runtime, run_id, owner)
        handle = None if run_id is None else runs.here(runtime, run_id)
        with as_responses():
            if handle is not None:
                _refuse_other(runs, handle.run_id, state, _record(runs, handle))
                if await _is_running_or_has_succeeded(handle):
                    return Begun(seen(handle), handle, is_new=False)
                continue  # it has failed, halted or been cancelled, so it can be resumed
            try:
                handle = await runtime.start(runs.app, state, id=run_id, owner=owner)
                is_new = handle._run.status is None  # a status means that it had succeeded before
                if not is_new:
                    await handle.wait_ended()
                return Begun(seen(handle), handle, is_new=is_new)
            except RunClaimed:  # another execution has it; the store may know the run by now
                tries -= 1
                if run_id is None or not tries:
                    raise
            known = await ask(runs.store(runtime).load(run_id))
            if known is not None:
                _refuse_other(runs, run_id, state, known)
                found = await runs.find(runtime, run_id)
                if not found.has_ended or found.status == "succeeded":
                    return Begun(found, None, is_new=False)
        await sleep(POLL)  # the other execution is about to save its start, or to release the run


async def begin_surely(
    runs: Runs, runtime: Runtime, state: Any, run_id: str | None, owner: str | None = None
) -> Begun:
    """Call ``begin`` in a task of the runtime, so that a disconnecting client can't cancel it.

    Some servers (granian, hypercorn) cancel the task of a request when its client disconnects. The
    run begins all the same, even if the response can't be sent any more (see
    test_a_run_that_outlives_its_request_begins_whatever_cancels_that).

    Raises:
        HTTPException: As ``begin``.
    """
    found: list[Begun | Exception] = []

    async def work() -> None:
        try:
            found.append(await begin(runs, runtime, state, run_id, owner))
        except Exception as error:  # noqa: BLE001 # raised in the request's task
            found.append(error)

    hosted = runtime._host(work, _ignore_reason)
    await hosted.ended.wait()
    if not found:  # the runtime has been cancelled
        raise _stopping(run_id or "that was asked for")
    result = found.pop()
    if isinstance(result, Exception):
        try:
            raise result
        finally:
            del result  # breaks the traceback cycle
    return result


def _ignore_reason(_reason: str) -> None:
    """Ignore the reason of a cancellation: ``work`` is cancelled only together with the runtime."""


async def _is_running_or_has_succeeded(handle: RunHandle[Any]) -> bool:
    """Return whether a run of this process is running or has succeeded.

    While the store releases the run, its handle has no status yet, although the run has ended. So
    wait for the final status, which may take as long as the store does (see
    test_a_run_that_is_given_back).
    """
    if handle._run.status is not None:
        await handle.wait_ended()
    return handle.status in (None, "succeeded")


async def wait_ended(runs: Runs, runtime: Runtime, begun: Begun) -> Seen:
    """Wait until a run has ended, in this process or another one.

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
    """Return the start of a run of this process, which needn't be kept in a store."""
    first = handle._run.initial
    begun = Beginning(application=handle.application, version=runs.app.version, first=first)
    return RunRecord(beginning=RunStart.of(begun).beginning, status=None)


def _refuse_other(runs: Runs, run_id: str, state: Any, known: RunRecord) -> None:
    try:
        runs.app._check.refuse_other(run_id, state, known)
    except NotData as error:
        what = f"run {run_id} exists, and its initial state can't be compared with the given one"
        raise RunConflict(str(error), what) from error
