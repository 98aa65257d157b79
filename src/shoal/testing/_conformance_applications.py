"""Tests of applications that go on from the content of a store; part of `StoreConformance`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from anyio.lowlevel import checkpoint

from shoal._events.events import Done
from shoal._graph.action import action
from shoal._graph.fan_out import fan_out
from shoal._graph.graph import Graph
from shoal._runtime.application import Application
from shoal._state.state import State
from shoal.stores._protocol import Store

from ._conformance_besides import OptionalConformance

LAST = 10
"""From this element on no element discovers another."""


async def broken_off(
    app: Application[Any], state: Mapping[str, object], kind: type[Exception]
) -> None:
    """Run ``"x"``, whose fan-out must fail, with errors of that kind alone."""
    failed = False
    try:
        await app.run(state, id="x")
    except* kind:
        failed = True
    assert failed


class ApplicationConformance(OptionalConformance):
    """Tests of whole applications on a store; part of ``StoreConformance``."""

    async def test_an_application_goes_on_where_it_failed(self, store: Store) -> None:
        fails = {2, 5}
        ran: list[int] = []

        @action(reads=["item"], writes=["half"])
        async def halve(item: int) -> float:
            await checkpoint()
            ran.append(item)
            return item / 2

        @action(reads=["half"], writes=["out"])
        async def refuse_some(half: float) -> tuple[str, float]:
            if 2 * half in fails:
                raise ValueError(half)
            return "half", half

        each = Graph.chain(halve, refuse_some, name="each")
        act = fan_out(each, over="items", item="item", key=int, into="outs", take="out")
        state = {"items": list(range(8))}
        app = Application(act, store=store, name="goes on")
        await broken_off(app, state, ValueError)
        fails.clear()
        again = Application(act, store=self.another(store), name="goes on")
        result = await again.run(state, id="x")
        expected = {item: ("half", item / 2) for item in range(8)}
        assert dict(result.state["outs"]) == expected
        assert list(result.state["outs"]) == list(range(8))
        assert len(ran) == len(set(ran)), "a completed step ran again"
        last = await app.run(id="x")
        assert dict(last.state["outs"]) == expected
        done = [one async for one in last.all_outcomes("outs")]
        assert all(isinstance(one, Done) for one in done)
        assert len(done) == 8
        fork = await app.fork("x", id="y", update={"more": 1})
        assert dict(fork.state["outs"]) == expected

    async def test_an_application_retries_what_it_collected(self, store: Store) -> None:
        fails = {1}

        @action(reads=["item"], writes=["out"])
        async def refuse_some(item: int) -> int:
            if item in fails:
                raise LookupError(item)
            return item

        act = fan_out(
            refuse_some,
            over="items",
            item="item",
            key=int,
            into="outs",
            errors_into="bad",
            on_error="collect",
        )
        app = Application(act, store=store, name="collects")
        first = await app.run({"items": [0, 1, 2]}, id="x")
        assert first.state["bad"][1].message == "1"
        fails.clear()
        again = Application(act, store=self.another(store), name="collects")
        result = await again.retry_failed("x")
        assert dict(result.state["outs"]) == {0: 0, 1: 1, 2: 2}
        assert not result.state["bad"]

    async def test_an_application_folds_and_discovers(self, store: Store) -> None:
        breaks = {6}

        @action(reads=["item"], writes=["out"])
        async def some(item: int) -> int:
            await checkpoint()
            if item in breaks:
                raise ConnectionError(item)
            return item

        def add(state: State, outcome: Any) -> State:
            return state.increment(total=outcome.value).append(seen=outcome.key)

        act = fan_out(
            some,
            over="items",
            item="item",
            key=int,
            reduce=add,
            grow=lambda _, outcome: [2 * outcome.element] if outcome.element < LAST else [],
            reads=["items", "total", "seen"],
            writes=["total", "seen"],
            name="frontier",
        )
        state = {"items": [1, 3], "total": 0, "seen": []}
        await broken_off(Application(act, store=store, name="folds"), state, ConnectionError)
        breaks.clear()
        again = Application(act, store=self.another(store), name="folds")
        result = await again.run(state, id="x")
        found = [1, 2, 3, 4, 6, 8, 12, 16]
        assert sorted(result.state["seen"]) == found
        assert result.state["total"] == sum(found)
