"""What a store has kept, read in parts where the store can do that. Imports executions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from shoal._events.identity import RunPath
from shoal.stores._history import Entry
from shoal.stores._protocol import ChildRecord, DoneChild, ReadsInParts, Store

from .execution import Execution


async def read_history(
    execution: Execution, store: Store, path: RunPath, take: Callable[[Sequence[Entry]], object]
) -> None:
    """Hand the history of a run to ``take``, part by part.

    Args:
        execution: Who asks.
        store: Who is asked.
        path: The run.
        take: Gets the entries in order.

    Raises:
        StoreFailed: The store did not say.
    """
    what = f"the history of run {path.id}"
    if not isinstance(store, ReadsInParts):
        take(await execution.ask(store.read(path), what))
        return
    number: int | None = 0
    while number is not None:
        part, number = await execution.ask(store.read_part(path, number), what)
        take(part)


async def read_done(
    execution: Execution,
    store: Store,
    path: RunPath,
    step: str,
    visit: int | None,
    *,
    take: Callable[[Sequence[DoneChild]], object],
) -> None:
    """Hand children of a step that are done to ``take``, part by part.

    Args:
        execution: Who asks.
        store: Who is asked.
        path: Their parent.
        step: The step's name.
        visit: Which visit of it; None: all.
        take: Gets them.

    Raises:
        StoreFailed: The store did not say.
    """
    what = f"the children of step {step!r} of run {path.id}"
    if not isinstance(store, ReadsInParts):
        children = await execution.ask(store.children(path, step, visit), what)
        take([_as_done(one) for one in children if is_done(one)])
        return
    after: int | None = 0
    while after is not None:
        part, after = await execution.ask(store.done_part(path, step, visit, after), what)
        take(part)


async def read_children(
    execution: Execution, store: Store, path: RunPath
) -> tuple[Mapping[tuple[str, int], int], Sequence[ChildRecord]]:
    """Return how many children of a run are done, by step and visit, and what is said of others.

    Raises:
        StoreFailed: The store did not say.
    """
    what = f"the children of run {path.id}"
    if isinstance(store, ReadsInParts):
        done = await execution.ask(store.done(path), what)
        return done, await execution.ask(store.not_done(path), what)
    children = await execution.ask(store.children(path), what)
    counted = Counter((one.step, one.visit) for one in children if is_done(one))
    return counted, [one for one in children if not is_done(one)]


def is_done(record: ChildRecord) -> bool:
    """Tell whether a child is done, as ``ReadsInParts`` says it."""
    return record.status == "succeeded" and record.applied is not None and record.used


def _as_done(record: ChildRecord) -> DoneChild:
    assert record.applied is not None, "it is done"
    return DoneChild(*record[:5], record.digest, record.applied, record.elapsed)
