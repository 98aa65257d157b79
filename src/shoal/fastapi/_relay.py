"""Cancelling a run that another process executes: asked for in the store, heeded there.

Imports stores' ports and runtimes; anyio. What is asked for is kept as a result is that actions
remember (``CachesResults``), for a while: so any store that has those can do it. One key says that
anything was asked for at all; so whoever has nothing to heed looks at that alone.
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
"""Seconds from one look to the next."""
KEPT = 30.0
"""Seconds for which it counts: as long as it may take to have a dead process's run go on."""

ANY = "shoal.fastapi cancel"
"""The key that changes whenever a run is to be cancelled."""


async def ask_to_cancel(store: Store, run_id: str, reason: str) -> bool:
    """Have whoever executes a run cancel it, soon; return whether the store can pass that on."""
    if not isinstance(store, CachesResults):
        return False
    await store.remember(_key(run_id), (Set("reason", reason),), KEPT)
    await store.remember(ANY, (Set("token", new_run_id()),), KEPT)  # behind what it tells of
    return True


async def heed_cancels(runtime: Runtime) -> None:
    """Cancel what other processes were asked to cancel and this one executes, until it drains."""
    heeding = [_Heeding(store) for store in runtime.stores() if isinstance(store, CachesResults)]
    is_well = True
    while heeding and not runtime.draining:
        with move_on_after(POLL):
            await runtime.wait_draining()
            return
        try:
            for each in heeding:
                await each.look(runtime)
        except Exception as error:  # noqa: BLE001 # the next look may do better
            if is_well:
                logger.warning("what is to be cancelled is not known now: %s", in_short(error))
            is_well = False
        else:
            is_well = True


class _Heeding:
    """What one store passes on."""

    def __init__(self, store: CachesResults) -> None:
        self._store = store
        self._token: Sequence[Operation] | None = None
        self._checked: set[str] = set()  # runs that nobody has asked to cancel by that token

    async def look(self, runtime: Runtime) -> None:
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
                if asked:  # forgotten first: who starts it again then wants it to go on
                    await self._store.remember(_key(run.run_id), (), KEPT)
                for operation in asked or ():
                    if isinstance(operation, Set):
                        run.cancel(str(operation.value))


def _key(run_id: str) -> str:
    return f"{ANY} {run_id}"
