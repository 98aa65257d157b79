"""A help desk of Burr's is moved action by action, and does the same after each step."""

# Burr's own types are unknown in part.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from shoal import Application, MemoryStore, Retry
from shoal.events import Item
from shoal.testing import RecordingHook, no_leaks
from shoal.types import Act

pytest.importorskip("burr", reason="needs Burr: pip install apache-burr")

from burr.core import action

from shoal.burr import act, graph
from tests.burr import desk

pytestmark = pytest.mark.anyio

HALTS = ["clarify", "hear"]
TURNS: tuple[Mapping[str, Any], ...] = (
    {"letter": "help", "languages": ["de", "fr"]},
    {"replies": ["a refund"]},
    {"feedback": "shorter"},
    {"feedback": ""},
)
"""What the desk is told each time that it halts."""

MOVED = [dict(list(desk.OURS.items())[:number]) for number in range(len(desk.OURS) + 1)]


@pytest.fixture(scope="module")
def by_burr() -> Mapping[str, Any]:
    """Return the fields that Burr itself ends with."""

    async def run() -> Any:
        app = desk.burrs()
        for number, inputs in enumerate(TURNS):
            halts = HALTS if number < len(TURNS) - 1 else []
            await app.arun(halt_before=halts, halt_after=["send"], inputs=dict(inputs))
        return app.state

    return {name: value for name, value in asyncio.run(run()).items() if not name.startswith("__")}


def ours(moved: Mapping[str, Act], **more: Any) -> Application[Any]:
    return Application(graph(desk.burrs(), acts=moved), name="desk", **more)


async def told(app: Application[Any], inputs: Mapping[str, Any]) -> Any:
    # Not from the state of Burr's application: the run has its own from the first turn on.
    start = desk.burrs().state.get_all() if "letter" in inputs else None
    return await app.run(start, id="letter-1", inputs=inputs, halt_before=HALTS)


@pytest.mark.parametrize("moved", MOVED, ids=lambda moved: "+".join(moved) or "nothing")
async def test_it_does_the_same_whatever_has_moved(
    moved: Mapping[str, Act], by_burr: Mapping[str, Any]
):
    hook = RecordingHook()
    app = ours(moved, store=MemoryStore(), hooks=[hook])
    async with no_leaks():
        for inputs in TURNS[:-1]:
            assert (await told(app, inputs)).status == "halted"
        run = await told(app, TURNS[-1])
    assert run.status == "succeeded"
    assert run.state.to_plain() == by_burr
    assert [event.item["word"] for event in hook.of(Item)] == run.state["sent"].split()


async def test_a_run_that_began_with_burrs_actions_goes_on_with_ours(by_burr: Mapping[str, Any]):
    store, run = MemoryStore(), None
    async with no_leaks():
        for inputs, moved in zip(TURNS, (MOVED[0], MOVED[2], MOVED[3], MOVED[5]), strict=True):
            run = await told(ours(moved, store=store), inputs)
    assert run is not None
    assert (run.status, run.state.to_plain()) == ("succeeded", by_burr)


async def test_what_an_action_lacked_with_burr_it_gets_before_it_has_moved(
    by_burr: Mapping[str, Any],
):
    fails = [ConnectionError("down"), ConnectionError("down")]

    def shaky(state: Any) -> Any:
        if fails:
            raise fails.pop()
        return desk.draft(state)

    shaken = action(reads=list(desk.OURS["draft"].reads), writes=["draft", "drafts"])(shaky)
    patient = act(shaken, name="draft", retry=Retry(3, on=ConnectionError))
    app, run = ours({"draft": patient}, store=MemoryStore()), None
    async with no_leaks():
        for inputs in TURNS:
            run = await told(app, inputs)
    assert run is not None
    assert (fails, run.state.to_plain()) == ([], by_burr)
