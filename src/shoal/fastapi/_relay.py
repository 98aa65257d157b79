"""Cancel a run that another process executes, by a request that both find in the store.

A request is an entry of the store's cache of results (``CachesResults``) that expires after a
while, so any store with such a cache can pass it on. One further key changes with each request, so
a process that has nothing to cancel polls only that key.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from anyio import move_on_after

from shoal._events.events import in_short
from shoal._events.identity import new_run_id
from shoal._runtime.runtime import Runtime
from shoal._state.state import Operation, Set
from shoal.stores._protocol import CachesResults, Store

logger = logging.getLogger("shoal.fastapi")

POLL = 0.25
"""Seconds between two polls: a client that cancels barely notices the delay."""
KEPT = 30.0
"""Seconds until a request expires: as long as another process may take to recover the run of a dead
one."""

ANY = "shoal.fastapi cancel"
"""The key that changes with each request."""


async def ask_to_cancel(store: Store, run_id: str, reason: str) -> bool:
    """Ask the process that executes a run to cancel it; return whether the store can do that."""
    if not isinstance(store, CachesResults):
        return False
    await store.remember(_key(run_id), (Set("reason", reason),), KEPT)
    # Last: a process that sees the new token has to find the request.
    await store.remember(ANY, (Set("token", new_run_id()),), KEPT)
    return True


async def relay_cancels(runtime: Runtime) -> None:
    """Cancel runs of this process that other processes have asked to cancel, until it drains."""
    requests = [
        _CancelRequests(store) for store in runtime.stores() if isinstance(store, CachesResults)
    ]
    is_well = True
    while requests and not runtime.draining:
        with move_on_after(POLL):
            await runtime.wait_draining()
            return
        try:
            for each in requests:
                await each.poll(runtime)
        except Exception as error:  # noqa: BLE001 # the next poll may succeed
            if is_well:  # log an outage once
                logger.warning("can't look for runs to cancel: %s", in_short(error))
            is_well = False
        else:
            is_well = True


class _CancelRequests:
    """The requests in one store."""

    def __init__(self, store: CachesResults) -> None:
        self._store = store
        self._token: Sequence[Operation] | None = None  # the value of ``ANY`` at the last poll
        self._checked: set[str] = set()  # runs looked up since; cleared when the token changes

    async def poll(self, runtime: Runtime) -> None:
        runs = runtime.runs()
        if not runs:
            return
        token = await self._store.recall(ANY)
        if token != self._token:
            self._token = token
            self._checked.clear()
        if token is None:
            return
        for run in runs:
            if run.run_id not in self._checked:
                self._checked.add(run.run_id)
                asked = await self._store.recall(_key(run.run_id))
                if asked:  # delete the request first, so that it can't cancel a later execution
                    await self._store.remember(_key(run.run_id), (), KEPT)
                for operation in asked or ():
                    if isinstance(operation, Set):
                        run.cancel(str(operation.value))


def _key(run_id: str) -> str:
    return f"{ANY} {run_id}"
