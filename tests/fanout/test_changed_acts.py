"""Runs whose list of acts has changed when they are resumed, however much of them was done."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal

import anyio
import pytest

from shoal import Application, Limits, MemoryStore, StoreFailed, action, fan_out
from shoal.types import Act

pytestmark = pytest.mark.anyio

NS = [1, 2, 3, 4, 5]


def act(name: str, stop: int, end: str, reads: Sequence[str] = ("n",)) -> Act:
    """Make an act that is at work for longer the greater its number is, and fails at ``stop``."""

    @action(reads=reads, writes=["v"], name=name)
    async def work(n: int) -> str:
        await anyio.sleep(n)
        if n == stop:
            if end == "failed":
                raise ConnectionError(name)
            await anyio.sleep_forever()
        return f"{name}{n}"

    return work


class Dying:
    """A store whose process dies once so many saves were kept."""

    def __init__(self, store: Any, saves: int) -> None:
        self._store, self._left = store, saves

    def save(self, batch: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise OSError("the process is dead")
        return self._store.save(batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


CHANGES = ["A A", "A AY", "A ZA", "AB ABY", "AB ZAB", "AB AZB", "AB BA", "ABY YAB", "AB YBXA"]


@pytest.mark.parametrize("end", ["failed", "cancelled", "killed"])
@pytest.mark.parametrize("limit", [1, 2, 100])
@pytest.mark.parametrize("kind", ["key", "no key", "same elements", "no elements"])
@pytest.mark.parametrize("change", CHANGES)
async def test_acts_of_a_list_change_however_much_was_done(
    change: str, kind: str, limit: int, end: Literal["failed", "cancelled", "killed"]
):
    before, after = change.split()
    over: dict[str, Any] = {"over": "ns", "item": "n"}
    over = {"key": {**over, "key": str}, "no elements": {}}.get(kind, over)
    ns = [2] * 5 if kind == "same elements" else NS

    def application(names: str, store: Any, stop: int = 0) -> Application[Any]:
        acts = [act(name, stop, end) for name in names]
        if not over:
            acts = [act(name, stop, end, ()).bind(n="ABXYZ".index(name) + 1) for name in names]
        fan = fan_out(acts, into="out", limits=Limits(limit), name="fan", **over)
        return Application(fan, name="app", store=store)

    for stop in range(1, 20 if end == "killed" else 6):
        store = MemoryStore()
        if end == "killed":
            begins = application(before, Dying(store, stop))
        else:
            begins = application(before, store, stop)
        with suppress(ExceptionGroup, StoreFailed), anyio.move_on_after(60):
            await begins.run({"ns": ns}, id="x")
            break  # it came to its end
        result = await application(after, store).run({"ns": ns}, id="x")
        clean = await application(after, MemoryStore()).run({"ns": ns})
        assert result.state == clean.state
        assert repr(result.state) == repr(clean.state), "in the same order"


async def test_elements_that_are_the_same_are_not_taken_for_each_other():
    """Element 1 of act A now has the place that element 2, which is done, had then."""
    seconds = [1, 99, 1, 1]

    @action(reads=["n"], writes=["v"], name="A")
    async def work(n: int) -> int:
        await anyio.sleep(seconds.pop(0) if seconds else 0)
        return n

    def application(*acts: Act, store: Any) -> Application[Any]:
        return Application(fan_out(acts, over="ns", item="n", into="out", name="fan"), store=store)

    other, store = act("B", 0, ""), MemoryStore()
    dying = Dying(store, 3)
    with suppress(StoreFailed):
        await application(work, store=dying).run({"ns": [7] * 4}, id="x")
    result = await application(work, other, store=store).run(id="x")
    assert result.state["out"] == [{"A": 7, "B": "B7"}] * 4
