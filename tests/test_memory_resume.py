"""To take a run up again, or to look up one that has succeeded, takes the memory of its state.

Not that of all its children that are done: of these there is a number, and, while their step is
under way, some 20 bytes of each that say whether its input is what it was.
"""

# pyright: reportPrivateUsage=false
# The parts that a store is read in are made small beside the numbers of children.

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from shoal import Application, Done, Limits, SQLiteStore, State, action, fan_out
from shoal.stores import _history
from shoal.stores._sql import reading as _reading
from shoal.types import FanOut

Backend = Literal["asyncio", "trio"]

FEW, MANY = 500, 2_500


def count(state: State, _: Done) -> State:
    return state.increment(count=1)


def fan_out_of(kind: str, *, fails: bool) -> FanOut:
    """Make a step of ``n`` children, and one more that fails if it ``fails``."""

    @action(reads=["item"], writes=["out"], executor="loop")
    def work(item: int | str) -> int:
        if item in (-1, "-1") and fails:
            raise RuntimeError("stop")
        return int(item)

    def over(state: State) -> Iterator[int | str]:
        for number in (*range(state["n"]), -1):
            yield str(number) if kind == "names" else number

    common: dict[str, Any] = {"reads": ["n"], "name": "f", "limits": Limits(100)}
    if kind == "into":
        return fan_out(work, over=over, key=int, into="outs", **common)
    key = {"no keys": None, "numbers": int, "names": str}[kind]
    return fan_out(work, over=over, key=key, reduce=count, writes=["count"], **common)


def application(path: Path, kind: str, *, fails: bool = False) -> Application:
    store = SQLiteStore(path, synchronous="normal")
    return Application(fan_out_of(kind, fails=fails), name="app", store=store)


def peak(work: Callable[[], object]) -> int:
    """Return the most bytes that Python has had at once meanwhile."""
    gc.collect()
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_reading, "PART", 100)
    monkeypatch.setattr(_history, "_SAVED_AT_ONCE", 100)


def state_of(n: int) -> dict[str, int]:
    return {"n": n, "count": 0}


def test_a_run_that_has_succeeded_is_looked_up_in_the_memory_of_its_state(tmp_path: Path) -> None:
    def looked_up(n: int) -> int:
        app = application(tmp_path / f"{n}.db", "no keys")
        app.run_sync(state_of(n), id="x")

        def look() -> None:
            result = app.run_sync(id="x")
            assert result.state["count"] == n + 1
            assert (result.outcomes("f").done, len(result.outcomes("f"))) == (n + 1, 0)

        return peak(look)

    looked_up(100)  # imports and caches
    few, many = looked_up(FEW), looked_up(MANY)
    assert many < few + 200_000  # as garbage is collected now and then


@pytest.mark.parametrize(("kind", "bound"), [("no keys", 100), ("numbers", 120), ("names", 300)])
def test_a_step_is_taken_up_again_in_little_more_than_a_fresh_one_takes(
    tmp_path: Path, kind: str, bound: int
) -> None:
    def taken(n: int) -> tuple[int, int]:
        path = tmp_path / f"{n}.db"

        def stop() -> None:
            with pytest.raises(ExceptionGroup):
                application(path, kind, fails=True).run_sync(state_of(n), id="x")

        def go_on() -> None:
            result = application(path, kind).run_sync(state_of(n), id="x")
            assert result.state["count"] == n + 1
            assert (result.outcomes("f").done, len(result.outcomes("f"))) == (n + 1, 0)

        return peak(stop), peak(go_on)

    taken(100)  # imports and caches
    few, many = taken(FEW), taken(MANY)
    fresh, resumed = (most - least for least, most in zip(few, many, strict=True))
    assert resumed < fresh + bound * (MANY - FEW), "bytes for each child"
