"""Each construct of the catalogue, interrupted everywhere in each way: it goes on to its result."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from shoal import MemoryStore, State
from shoal.stores import Store
from shoal.testing import (
    Aftermath,
    Attempt,
    Boundaries,
    RecordingHook,
    Recovery,
    cancel_everywhere,
    crash_everywhere,
    fail_everywhere,
    run_virtual,
)

from .constructs import CONSTRUCTS, Construct, live

Backend = Literal["asyncio", "trio"]

SOME = 2  # places of each sweep in the gate

pytestmark = pytest.mark.sweep


def sweeps(*ways: str) -> pytest.MarkDecorator:
    """Every construct in each of these ways, on each backend.

    The gate tries some places of each, on one backend of the two; `nox -s soak` tries all of them.
    """
    given = [(name, how) for name in CONSTRUCTS for how in ways]
    quick = [(*one, ("asyncio", "trio")[at % 2], SOME) for at, one in enumerate(given)]
    whole = [(*one, backend, None) for one in given for backend in ("asyncio", "trio")]
    marks = [pytest.mark.slow, pytest.mark.timeout(900)]
    every = [*quick, *(pytest.param(*one, marks=marks) for one in whole)]
    return pytest.mark.parametrize(("name", "how", "backend", "limit"), every)


def untouched() -> Boundaries:
    return Boundaries(0, "raises")


@sweeps("scope", "native")
def test_cancelled_everywhere(
    name: str, how: Literal["scope", "native"], backend: Backend, limit: int | None
):
    construct = CONSTRUCTS[name]

    async def scenario(attempt: Attempt) -> None:
        store, hook = MemoryStore(), RecordingHook()
        await attempt(live, construct, untouched(), store, hook)
        hook.assert_paired()
        await live(construct, untouched(), store)

    if how == "native":
        backend = "asyncio"
    assert cancel_everywhere(scenario, backend=backend, how=how, seed=1, limit=limit) >= SOME


@sweeps("dies", "fails", "hangs")
def test_its_store_goes_wrong_everywhere(name: str, how: Any, backend: Backend, limit: int | None):
    construct = CONSTRUCTS[name]

    async def scenario(store: Store) -> State:
        hook = RecordingHook()
        try:
            return await live(construct, untouched(), store, hook)
        finally:
            hook.assert_paired()

    def check(recovery: Recovery[State]) -> None:
        assert construct.ends(recovery.result)

    assert crash_everywhere(scenario, check, how=how, backend=backend, seed=1, limit=limit) >= SOME


@sweeps("raises", "hangs", "late", "interrupts")
def test_its_functions_go_wrong_everywhere(
    name: str, how: Any, backend: Backend, limit: int | None
):
    construct = CONSTRUCTS[name]
    stores: list[MemoryStore] = []
    called: set[str] = set()

    async def scenario(b: Boundaries) -> State:
        stores[:], hook = [MemoryStore()], RecordingHook()
        try:
            return await live(construct, b, stores[0], hook)
        finally:
            hook.assert_paired()

    def check(aftermath: Aftermath[State]) -> None:
        called.add(aftermath.call.partition(",")[0])
        again: Any = run_virtual(live, construct, untouched(), stores[0].copy(), backend=backend)
        assert construct.ends(again)

    tried = fail_everywhere(scenario, check, how=how, backend=backend, seed=1, limit=limit)
    assert tried >= SOME
    if limit is None:
        check_places(construct, how, called)


def check_places(construct: Construct, how: str, called: set[str]) -> None:
    """Assert that each place of the construct was tried, as far as its function can go wrong."""
    plain = {"admission", "hand-over", "reduce", "decision", "finish"}
    expected = construct.places if how in ("raises", "interrupts") else construct.places - plain
    if construct.make.__name__ in ("nested", "frontier") and how in ("hangs", "late"):
        expected -= {"pull"}  # a plain generator
    assert expected <= called, f"never called: {sorted(expected - called)}"
    assert {"on_child_ended", "on_state_updated", "on_run_ended"} <= called
