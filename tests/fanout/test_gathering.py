"""How many children end before the parent commits them."""

from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from shoal import Application, Graph, Hook, Limits, Runtime, action, fan_out
from shoal._engine.fanout.batch import BatchJoin
from shoal.events import StateUpdated
from shoal.testing import cancel_everywhere, no_leaks

pytestmark = pytest.mark.anyio


def steps(count: int) -> Graph:
    """Children of so many steps, each of which passes one turn of the loop."""

    def step(number: int) -> Any:
        @action(reads=["n"], writes=["out"], name=f"step{number}")
        async def pass_a_turn(n: int) -> int:
            await checkpoint()
            return n

        return pass_a_turn

    return Graph.chain(*map(step, range(count)), name="steps")


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all batches that are committed."""
    sizes: list[int] = []
    add_all = BatchJoin.add_all

    def noting(self: BatchJoin, batch: Any) -> BaseException | None:
        sizes.append(len(batch))
        return add_all(self, batch)

    monkeypatch.setattr(BatchJoin, "add_all", noting)
    return sizes


@pytest.mark.parametrize("count", [1, 2, 4])
async def test_few_children_of_some_steps_are_committed_many_at_once(
    count: int, batches: list[int]
):
    """They end together, a turn apart for each step: a commit for each five of them is dear."""
    app = Application(fan_out(steps(count), over="ns", item="n", into="out", limits=Limits(5)))
    async with no_leaks():
        result = await app.run({"ns": range(300)})
    assert list(result.state["out"]) == list(range(300))
    assert sum(batches) == 300
    assert len(batches) <= 15


class Opening(Hook):
    """Sets an event when some updates are published."""

    def __init__(self, after: int) -> None:
        self.left = after
        self.event = anyio.Event()

    def on_state_updated(self, event: StateUpdated) -> None:
        self.left -= event.outcome is not None
        if not self.left:
            self.event.set()


@pytest.mark.parametrize("quick", [1, 2, 7])
async def test_ends_are_committed_though_no_other_child_ends(quick: int):
    """The others wait for that commit: if the parent waited for more ends, it would be for good."""
    opening = Opening(quick)

    @action(reads=["n"], writes=["-"])
    async def work(n: int) -> None:
        await checkpoint()
        if n >= quick:
            await opening.event.wait()

    app = Application(
        fan_out(work, over="ns", item="n", into="out", take=lambda _: 0, limits=Limits(20)),
        hooks=[opening],
    )
    with anyio.fail_after(5):
        await app.run({"ns": range(20)})


async def test_a_failure_is_judged_at_once(batches: list[int]):
    started: list[int] = []

    @action(reads=["n"], writes=["-"])
    async def work(n: int) -> None:
        started.append(n)
        await checkpoint()
        if n == 6:
            raise ConnectionError

    app = Application(
        fan_out(work, over="ns", item="n", into="out", take=lambda _: 0, limits=Limits(5))
    )
    with pytest.raises(ExceptionGroup):
        await app.run({"ns": range(100)})
    assert len(started) <= 15
    assert sum(batches) <= 15


def test_a_cancellation_in_the_middle_leaves_nothing_behind(anyio_backend_name: Any):
    app = Application(fan_out(steps(2), over="ns", item="n", into="out", limits=Limits(3)))

    async def scenario() -> None:
        async with no_leaks(), Runtime() as runtime:
            try:
                await app.run({"ns": range(12)}, runtime=runtime)
            finally:
                # The runtime works as before: no count of the group is left in it.
                with anyio.CancelScope(shield=True):
                    result = await app.run({"ns": range(4)}, runtime=runtime)
                    assert list(result.state["out"]) == list(range(4))

    cancel_everywhere(scenario, lambda _: None, backend=anyio_backend_name)
