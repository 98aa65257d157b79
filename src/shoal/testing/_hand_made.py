"""Runs and saves made by hand, for tests of stores."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
from anyio.lowlevel import checkpoint

from shoal._events.events import ChildName, Outcome, Status, Update
from shoal._events.identity import Key, RunPath
from shoal._state.state import Set
from shoal.stores._history import Entry
from shoal.stores._protocol import Batch, Beginning, SavedRun, Store

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

ROOT = RunPath(run_id="root", act="app")
BEGINNING = Beginning(application="app", version="1", first={"n": 1})


@dataclass(kw_only=True)
class HandMadeRun:
    """A run as stores see it, made by hand. Tests of stores save it in a ``Batch``.

    ``child_run`` makes a child of ``"root"``.
    """

    path: RunPath = ROOT
    position: int = 0
    element: object = None
    digest: str = "digest"
    status: Status | None = None
    step: str | None = None
    reason: str = ""
    winner: ChildName | None = None
    error: BaseException | None = None
    used: bool = True
    value: object = None
    attempts: int = 1
    elapsed: float = 0.5
    abandoned: bool = False
    crashes: int = 0
    last_update: Update | None = None
    packed: object = None

    @property
    def outcome(self) -> Outcome:
        """Raise: no store reads it."""
        raise NotImplementedError


def has(store: Store, protocol: type[object]) -> Any:
    """Return ``store`` if it implements ``protocol``; skip the test otherwise."""
    if isinstance(store, protocol):
        return store
    from unittest import SkipTest  # noqa: PLC0415 # programs that import this need no unittest

    raise SkipTest(f"{type(store).__name__} is no {protocol.__name__}")


def child_run(
    key: Key,
    *,
    parent: RunPath = ROOT,
    step: str = "map",
    visit: int = 0,
    act: str = "leaf",
    **more: Any,
) -> HandMadeRun:
    """Return a child made by hand. It has succeeded unless ``more`` says otherwise."""
    path = RunPath(parent=parent, step=step, visit=visit, act=act, key=key)
    given: dict[str, Any] = {"status": "succeeded", "element": key, **more}
    return HandMadeRun(path=path, **given)


def update_of(number: int, step: str = "map") -> Update:
    """Return an update that sets one field."""
    return Update(number, step, (Set(f"f{number}", number),))


async def saved(store: Store, batch: Batch) -> None:
    """Save a batch, and wait until the store has acknowledged it."""
    pending = store.save(batch)
    if pending is not None:
        await pending


async def save(
    store: Store, run: SavedRun | None = None, *, holder: str = "me", **more: Any
) -> None:
    """Save a batch made of ``more``, for the root run or another one."""
    await saved(store, Batch(HandMadeRun() if run is None else run, **more, holder=holder))


@asynccontextmanager
async def claimed(
    store: Store, run: HandMadeRun | None = None, *, begin: bool = True
) -> AsyncGenerator[None]:
    """Claim a run for the block, and save its beginning."""
    run = HandMadeRun() if run is None else run
    run_id = run.path.root.id
    await store.claim(run_id, "me")
    try:
        if begin:
            await save(store, run, begun=BEGINNING)
        yield
    finally:
        with anyio.CancelScope(shield=True):
            await store.release(run_id, "me")


async def refused(kind: type[Exception], call: Callable[[], Awaitable[object]]) -> None:
    """Call ``call``, and fail unless it raises an exception of that kind."""
    try:
        await call()
    except kind:
        return
    raise AssertionError(f"not refused with {kind.__name__}")


async def known(store: Store) -> tuple[Beginning, Status | None, str]:
    """Return the beginning, the status and the reason of the root run."""
    record = await store.load("root")
    assert record is not None
    return record.beginning, record.status, record.reason


async def keys(store: Store, *where: Any, path: RunPath = ROOT) -> list[Any]:
    """Return the keys of a run's children, strings before ints."""
    found = [record.key for record in await store.children(path, *where)]
    return sorted(found, key=lambda key: (isinstance(key, int), key))


async def cancelled_after(turns: int, call: Callable[[], Awaitable[object]]) -> bool:
    """Call ``call``, and cancel it after some turns of the loop; return whether it had ended."""
    scope = anyio.CancelScope()
    ended = False

    async def live() -> None:
        nonlocal ended
        with scope:
            await call()
            ended = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(live)
        for _ in range(turns):
            await checkpoint()
        scope.cancel()
    return ended


def update_at(entries: Sequence[Entry], number: int) -> Update:
    """Return the update of that number."""
    return next(one for one in entries if isinstance(one, Update) and one.number == number)
