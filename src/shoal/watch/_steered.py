"""Find out how a run was steered from outside, as its history has it."""

from __future__ import annotations

import json
from collections.abc import Sequence

from shoal._events.identity import RunPath
from shoal.stores._history import Steered, pause_in
from shoal.stores._watching import Inspects

_PART = 1_000
"""Entries of a history that are read at once. There are hardly ever more than a few."""


async def steered_of(store: Inspects, path: RunPath) -> Sequence[Steered]:
    """Return how the root run of ``path`` was steered, in order."""
    found: list[Steered] = []
    number: int | None = 0
    while number is not None:
        part, number = await store.entries(
            path.root, kinds=("steered",), from_number=number, limit=_PART
        )
        found += (Steered(*json.loads(entry.data)) for entry in part)
    return found


async def pause_of(store: Inspects, path: RunPath) -> Steered | None:
    """Return the pause under which the root run of ``path`` is; None if it isn't paused."""
    return pause_in(await steered_of(store, path))
