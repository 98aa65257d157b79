"""Read saved data from a store, in parts if the store can read in parts.

A history or a set of children may be larger than memory should hold at once. Stores that don't
have ``ReadsInParts`` return all of it, and the functions here give the same result either way.
"""

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
    """Pass the history of a run to ``take``, part by part.

    Args:
        execution: Asks the store; a store that fails ends it.
        store: Keeps the history.
        path: The run.
        take: Receives the entries in order.

    Raises:
        StoreFailed: The store raised, or did not answer in time.
    """
    what = f"the history of run {path.id}"
    if not isinstance(store, ReadsInParts):
        # One answer, which has to be in time as a whole: a store with long histories implements
        # `ReadsInParts`.
        take(await execution.ask(store.read(path), what))
        return
    # Each part has its own deadline, so a long history may take longer than one answer may.
    number: int | None = 0  # of the first update to read; None after the last part
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
    """Pass the children of a step that are done to ``take``, part by part.

    Args:
        execution: Asks the store; a store that fails ends it.
        store: Keeps the records of the children.
        path: The parent of the children.
        step: The step's name.
        visit: A visit of the step; None: all of them.
        take: Receives the children.

    Raises:
        StoreFailed: The store raised, or did not answer in time.
    """
    what = f"the children of step {step!r} of run {path.id}"
    if not isinstance(store, ReadsInParts):
        children = await execution.ask(store.children(path, step, visit), what)
        # Callers ask for the other children apart from these.
        take([_as_done(one) for one in children if is_done(one)])
        return
    after: int | None = 0  # the update that applied the last child read; None at the end
    while after is not None:
        part, after = await execution.ask(store.done_part(path, step, visit, after), what)
        take(part)


async def read_children(
    execution: Execution, store: Store, path: RunPath
) -> tuple[Mapping[tuple[str, int], int], Sequence[ChildRecord]]:
    """Return how many children of a run are done, by step and visit, and the records of the others.

    Raises:
        StoreFailed: The store raised, or did not answer in time.
    """
    what = f"the children of run {path.id}"
    if isinstance(store, ReadsInParts):
        # Two questions see two moments, which is safe: this execution holds the lease.
        done = await execution.ask(store.done(path), what)
        return done, await execution.ask(store.not_done(path), what)
    children = await execution.ask(store.children(path), what)
    # By visit too, because a step in a loop has other children in each of its visits.
    counted = Counter((one.step, one.visit) for one in children if is_done(one))
    return counted, [one for one in children if not is_done(one)]


def is_done(record: ChildRecord) -> bool:
    """Return whether a child is done, by the same definition as ``ReadsInParts.done``."""
    # A success that isn't applied yet needs its value and state for that, and one that isn't used
    # may take part in another round of its race. Both are read as whole records.
    return record.status == "succeeded" and record.applied is not None and record.used


def _as_done(record: ChildRecord) -> DoneChild:
    assert record.applied is not None, "it is done"
    return DoneChild(*record[:5], record.digest, record.applied, record.elapsed)
