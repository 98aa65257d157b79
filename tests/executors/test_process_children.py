"""``context.fan_out`` of an action in a worker: its children run where the run is."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest

from shoal import Cancelled, fan_out
from shoal.errors import Poisoned
from shoal.events import ChildEnded
from shoal.testing import RecordingHook
from tests.executors import work
from tests.executors.test_processes import ONE, TWO, run, runtime_of

pytestmark = [pytest.mark.anyio, pytest.mark.realtime, pytest.mark.services]


@pytest.fixture(name="anyio_backend", params=["asyncio", "trio"])
def on_both(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    return request.param, {}


async def test_an_action_in_a_worker_starts_children():
    async with runtime_of() as runtime:
        found = (await run(runtime, work.fan_out_there, {"n": 5}, TWO))["found"]
        assert found == [
            ("0", 0),
            ("1", 1),
            ("2", 4),
            ("3", "tests.executors.work.Locked: three"),
            ("4", 16),
            ("hundred", 10_000),
        ]


async def test_children_are_cancelled_from_there():
    hook = RecordingHook()
    async with runtime_of() as runtime:
        with anyio.fail_after(20):
            assert (await run(runtime, work.race_there, {"n": 5}, ONE, hooks=[hook]))["found"] == 25
    kinds = sorted(type(event.outcome).__name__ for event in hook.of(ChildEnded))
    assert kinds == [Cancelled.__name__, "Done"]


# -- a worker dies ---------------------------------------------------------------------------------


def asking_below(folder: Path, deaths: int) -> tuple[object, dict[str, object]]:
    for number in range(deaths):
        (folder / str(number)).touch()
    asking = fan_out(work.ask_below, over="ms", item="m", into="found", take="out", key=str)
    return asking, {"ms": range(3), "marks": str(folder)}


async def test_a_call_that_is_alone_in_the_only_worker_lets_its_children_in(tmp_path: Path):
    """It is called alone after two deaths, and they have no other worker."""
    act, fields = asking_below(tmp_path, deaths=2)
    async with runtime_of() as runtime:
        with anyio.fail_after(30):
            found = (await run(runtime, act, fields, ONE))["found"]
    assert found == {"0": 2, "1": 2, "2": 2}
    assert not list(tmp_path.iterdir())


async def test_a_child_that_kills_the_only_worker_again_and_again(tmp_path: Path):
    act, fields = asking_below(tmp_path, deaths=100)
    async with runtime_of() as runtime:
        with anyio.fail_after(50), pytest.raises(ExceptionGroup) as caught:
            await run(runtime, act, fields, ONE)
    assert caught.group_contains(Poisoned)
    assert 100 - len(list(tmp_path.iterdir())) <= 2 * 3
