"""Delete runs that ended long ago, while the service is up.

Invariants:
- Only runs that have ended are deleted: halted ones wait for an answer, and unended ones for a
  process.
- It never ends the service: a store that fails is asked again later, and logged once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import timedelta
from random import random

from anyio import create_task_group, sleep

from shoal._errors.exceptions import BadUse, DefinitionError, brief
from shoal._events.events import in_short
from shoal._runtime.runtime import Runtime
from shoal.stores._protocol import Prunes

logger = logging.getLogger("shoal.fastapi")

FIRST = 60.0
"""The most seconds until the first look. It comes soon, because a service that is deployed often
would never get to a late one, and at a random time, because workers start together."""
EVERY = 3600.0
"""The most seconds between two looks: what is deleted at once stays small, and its age exact
enough for days."""
PARTS = 10
"""Looks within the time that runs are kept, if that is short: they are at most a tenth older."""


def check_keep(keep: object) -> timedelta | None:
    """Return the time that runs are kept.

    Raises:
        DefinitionError: It is no time.
    """
    if keep is None:
        return None
    if not isinstance(keep, timedelta) or keep <= timedelta(0):
        msg = (
            f"runtime_lifespan(keep=...) takes a time that is longer than none, such as "
            f"timedelta(days=30), not {keep!r}"
        )
        raise DefinitionError(msg)
    return keep


def pruning(runtime: Runtime) -> Sequence[Prunes]:
    """Return the stores of a runtime.

    Raises:
        BadUse: There is none, or one of them can't delete old runs.
    """
    found: list[Prunes] = []
    for store in runtime.stores():
        if not isinstance(store, Prunes):
            msg = (
                f"runtime_lifespan(keep=...) deletes old runs, and {brief(store)} can't: it has no "
                f"prune(); see shoal.stores.Prunes"
            )
            raise BadUse(msg)
        found.append(store)
    if not found:
        msg = (
            "runtime_lifespan(keep=...) deletes old runs, and this runtime saves none: give it a "
            "store, or name the applications that have one in Runtime(apps=[...])"
        )
        raise BadUse(msg)
    return found


async def keep_pruning(runtime: Runtime, stores: Sequence[Prunes], keep: timedelta) -> None:
    """Delete the runs that ended longer ago than ``keep``, again and again, until it drains."""
    async with create_task_group() as tasks:
        tasks.start_soon(_prune, stores, keep.total_seconds())
        await runtime.wait_draining()
        tasks.cancel_scope.cancel()  # each run is deleted as a whole, and the next look goes on


async def _prune(stores: Sequence[Prunes], seconds: float) -> None:
    every = min(EVERY, seconds / PARTS)
    is_well = True
    await sleep(random() * min(FIRST, every))  # noqa: S311 # no secret
    while True:
        try:
            for store in stores:
                count = await store.prune(seconds)
                if count:
                    logger.info("deleted %d runs that ended over %g s ago", count, seconds)
        except Exception as error:  # noqa: BLE001 # the next look may succeed
            if is_well:  # log an outage once
                logger.warning("can't delete old runs now: %s", in_short(error))
            is_well = False
        else:
            is_well = True
        await sleep(every)
