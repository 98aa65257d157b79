"""``context.fan_out`` of an action in a worker: its children run where the run is."""

from __future__ import annotations

import anyio
import pytest

from shoal import Cancelled
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
