"""Runs whose program has changed when they are resumed, in the middle of a fan-out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from shoal import Act, Application, Limits, MemoryStore, RunConflict, action, fan_out

pytestmark = pytest.mark.anyio

mended = list[bool]()


@pytest.fixture(autouse=True)
def nothing_is_mended() -> None:
    mended.clear()


@action(reads=["n"], writes=["out"])
async def tenfold(n: int) -> int:
    if n == 2 and not mended:
        raise ValueError("two is bad")
    return 10 * n


@action(reads=["n"], writes=["out"])
async def negative(n: int) -> int:
    return -n


def over(act: Any = tenfold, **how: Any) -> Act:
    given: dict[str, Any] = {"key": str, "into": "outs", "limits": Limits(1), **how}
    return fan_out(act, over="ns", item="n", name="fan", **given)


async def begun(act: Act) -> MemoryStore:
    """Have a run fail in the middle of its fan-out."""
    store = MemoryStore()
    with pytest.raises(ExceptionGroup):
        await Application(act, store=store, name="app").run({"ns": [1, 2, 3]}, id="x")
    return store


async def test_failures_are_collected_that_ended_it_before():
    store = await begun(over())
    collecting = over(on_error="collect", errors_into="bad")
    result = await Application(collecting, store=store, name="app").run(id="x")
    assert dict(result.state["outs"]) == {"1": 10, "3": 30}
    assert [info.message for info in result.state["bad"].values()] == ["two is bad"]
    mended.append(True)
    result = await Application(collecting, store=store, name="app").retry_failed("x")
    assert dict(result.state["outs"]) == {"1": 10, "2": 20, "3": 30}
    assert dict(result.state["bad"]) == {}


CHANGES: dict[str, tuple[Callable[[], Act], str]] = {
    "another field": (lambda: over(into="results"), "did not collect into 'results', and"),
    "a list": (lambda: over(key=None), "did not collect into 'outs' by position"),
    "by act too": (lambda: over([tenfold, negative]), "did not collect into 'outs' by key and act"),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_results_that_are_elsewhere_are_not_lost_unnoticed(change: str):
    made, message = CHANGES[change]
    store = await begun(over())
    mended.append(True)
    changed = Application(made(), store=store, name="app")
    with pytest.raises(RunConflict) as caught:
        await changed.run(id="x")
    assert message in str(caught.value)
    assert str(caught.value).startswith("fan-out 'fan' of run x was begun by a program in which it")
    forked = await changed.fork("x", id="y", number=0)
    assert forked.status == "succeeded"
    result = await Application(over(), store=store, name="app").run(id="x")
    assert dict(result.state["outs"]) == {"1": 10, "2": 20, "3": 30}
