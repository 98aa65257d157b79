"""What one life of a run leaves for the next: counts, skipped keys, discoveries, old results."""

# pyright: reportUnknownLambdaType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from shoal import (
    Application,
    BadKey,
    Context,
    Each,
    Graph,
    Key,
    MemoryStore,
    ParallelAction,
    Retry,
    State,
    Task,
    action,
    fan_out,
)

pytestmark = pytest.mark.anyio


@action(reads=["x"], writes=["y"])
async def work(x: int) -> int:
    await anyio.sleep(1)
    return x


# -- keys that are repeated ------------------------------------------------------------------------


class Tasks(ParallelAction):
    name = "tasks"
    reads = ()
    writes = ("seen",)

    def tasks(self, state: State, inputs: Any) -> Any:
        return [Task(work, {"x": n}, key=n) for n in (1, 2, 2, 3)]

    def reduce(self, state: State, outcome: Any) -> State:
        return state.update(seen=outcome.key)


def elements(over: Callable[[State], Any]) -> Any:
    return fan_out(work, over=over, item="x", key=int, reads=[], into="out", name="elements")


async def numbers() -> Any:
    for n in (1, 2, 2, 3):
        yield n


REPEATING = {
    "list": lambda: elements(lambda state: [1, 2, 2, 3]),
    "async": lambda: elements(lambda state: numbers()),
    "tasks": Tasks,
}


@pytest.mark.parametrize("source", REPEATING)
@pytest.mark.parametrize("attempts", [2, 3])
async def test_a_repeated_key_is_refused_in_each_attempt(source: str, attempts: int):
    """The second attempt took the repetition for the element that the first one had pulled."""
    around = fan_out(
        REPEATING[source](), over=lambda state: [0], item="o", key=int, reads=[], into="all",
        each=Each(retry=Retry(attempts, on=Exception, jitter=0)),
    )  # fmt: skip
    with pytest.raises(ExceptionGroup) as raised:
        await Application(around).run({})
    assert raised.group_contains(BadKey, match="an earlier")


# -- at_most ---------------------------------------------------------------------------------------


@action(writes=["out"])
async def own(context: Context) -> list[Key]:
    async with context.fan_out(name="own", store=None) as group:
        group.start_each(work, over=[1, 2], item="x", key=int)
        return sorted([outcome.key async for outcome in group])


AT_MOST: dict[str, tuple[Any, object]] = {
    "fan_out": (
        fan_out(
            work, over=lambda state: [1, 2, 3], item="x", key=int, reads=[], into="out",
            at_most=2, store=None, name="few",
        ),
        {1: 1, 2: 2},
    ),
    "own": (own, [1, 2]),
}  # fmt: skip


@pytest.mark.parametrize("form", AT_MOST)
async def test_a_child_that_is_kept_nowhere_begins_again_within_at_most(form: str):
    """It counts as started, so nobody else may be, and it has to run again itself."""
    act, wanted = AT_MOST[form]
    app = Application(act, store=MemoryStore())
    with anyio.move_on_after(0.5):
        await app.run({}, id="run")
    result = await app.run({}, id="run")
    assert result.state["out"] == wanted
    ledgers = [result.outcomes("few")] if form == "fan_out" else []
    assert [(one.done, one.cancelled) for one in ledgers] == [(2, 0)] * len(ledgers)


# -- skipped keys ----------------------------------------------------------------------------------


@pytest.mark.parametrize("attempts", [1, 2], ids=["another life", "another attempt"])
async def test_a_skipped_key_stays_skipped_where_until_raises_about_it(attempts: int):
    """It was kept as one that is to run when the run is resumed, and its value was overwritten."""
    asked, ran = Counter[object](), Counter[int]()

    @action(reads=["x"], writes=["y"], name="work")
    async def counted(x: int) -> int:
        ran[x] += 1
        return x

    @action(writes=["out"])
    async def prepare() -> dict[int, int]:
        return {1: 70}

    def until(state: State, outcome: Any) -> bool:
        asked[outcome.key] += 1
        if outcome.key == 1 and asked[1] == 1:
            raise ConnectionError
        return False

    step = fan_out(
        counted, over=lambda state: [1, 2], item="x", key=int, reads=[], into="out", until=until
    )
    both = Graph.chain(prepare, step, name="both")
    around = fan_out(
        both, over=lambda state: [0], item="o", key=int, reads=[], into="all", take="out",
        each=Each(retry=Retry(attempts, on=Exception, jitter=0)),
    )  # fmt: skip
    app = Application(around, store=MemoryStore())
    if attempts == 1:
        with pytest.raises(ExceptionGroup):
            await app.run({}, id="run")
    result = await app.run({}, id="run")
    assert result.state["all"] == {0: {1: 70, 2: 2}}
    assert set(ran) == {2}
