"""A tolerated share counts a child that is Done from its end on, in later attempts as well.

The first attempt, or execution, fails while it applies the first of four results, so children are
Done and not applied. The next one applies them, and other children fail meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio
import pytest

from shoal import (
    Application,
    Done,
    Each,
    MemoryStore,
    Outcome,
    Retry,
    RunPath,
    RunResult,
    State,
    Tolerate,
    action,
    fan_out,
)
from shoal.stores._history import Entry

pytestmark = pytest.mark.anyio

ITEMS = ["b", "a", "c", "d"]


class SlowToRead(MemoryStore):  # pyright: ignore[reportGeneralTypeIssues] # a test's own
    """Takes a second to read the history of a run."""

    async def read(self, path: RunPath, from_number: int = 0) -> Sequence[Entry]:
        await anyio.sleep(1)
        return await super().read(path, from_number)


class Folding:
    """A fan-out over four items whose ``reduce`` raises OSError when it is called first."""

    def __init__(self, *bad: str, tolerates: float) -> None:
        self.ran = list[str]()
        self.calls = 0

        @action(reads=["item"], writes=["out"])
        async def work(item: str) -> str:
            self.ran.append(item)
            if self.ran.count(item) == 1:
                await anyio.sleep(1)  # so all end in one tick, and are one batch
            if item in bad:
                raise ValueError(item)
            return item.upper()

        def reduce(state: State, outcome: Outcome) -> State:
            self.calls += 1
            if self.calls == 1:
                raise OSError(outcome.key)
            value = outcome.value if isinstance(outcome, Done) else "failed"
            return state.put("told", outcome.key, value)

        self.step = fan_out(
            work, over=lambda _: ITEMS, reads=[], key=str, reduce=reduce, writes=["told"],
            on_error=Tolerate(share=tolerates, after=2), name="fold",
        )  # fmt: skip

    async def run_twice(self, store: MemoryStore) -> RunResult[Any]:
        """Run it in two executions."""
        app = Application(self.step, store=store)
        with pytest.raises(OSError, match="b"):
            await app.run({}, id="x")
        assert sorted(self.ran) == sorted(ITEMS)
        return await app.run({}, id="x")

    async def try_twice(self, store: MemoryStore | None) -> RunResult[Any]:
        """Run it in two attempts of one execution, as the child of another fan-out."""
        each = Each(retry=Retry(2, on=OSError, initial=0.25, jitter=0))
        outer = fan_out(
            self.step, over=lambda _: [1], reads=[], into="out", take="told", each=each,
            name="outer",
        )  # fmt: skip
        return await Application(outer, store=store).run({})


@pytest.mark.parametrize("kind", [MemoryStore, SlowToRead])
async def test_children_that_an_earlier_execution_left_done_have_ended(kind: type[MemoryStore]):
    """They have ended also on their way: taken from the source, and not applied yet."""
    folding = Folding("b", tolerates=0.25)
    result = await folding.run_twice(kind())
    assert folding.ran[4:] == ["b"]
    assert result.state["told"] == {"b": "failed", "a": "A", "c": "C", "d": "D"}
    ledger = result.outcomes("fold")
    assert (ledger.done, ledger.failed) == (3, 1)


@pytest.mark.parametrize("kind", [None, MemoryStore])
async def test_children_that_an_earlier_attempt_left_done_have_ended(
    kind: type[MemoryStore] | None,
):
    folding = Folding("b", tolerates=0.25)
    result = await folding.try_twice(kind and kind())
    assert folding.ran[4:] == ["b"]
    assert result.state["out"] == [{"b": "failed", "a": "A", "c": "C", "d": "D"}]


@pytest.mark.parametrize("kind", [MemoryStore, SlowToRead])
async def test_children_that_an_earlier_execution_left_done_count_once(kind: type[MemoryStore]):
    folding = Folding("b", "a", tolerates=0.45)
    with pytest.raises(ExceptionGroup, match="2 children of fan-out 'fold' failed"):
        await folding.run_twice(kind())
    assert sorted(folding.ran[4:]) == ["a", "b"]


@pytest.mark.parametrize("kind", [None, MemoryStore])
async def test_children_that_an_earlier_attempt_left_done_count_once(
    kind: type[MemoryStore] | None,
):
    folding = Folding("b", "a", tolerates=0.45)
    with pytest.raises(ExceptionGroup) as raised:
        await folding.try_twice(kind and kind())
    assert raised.value.subgroup(ValueError) is not None
    assert sorted(folding.ran[4:]) == ["a", "b"]
