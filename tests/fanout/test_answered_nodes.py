"""Children in which a graph as a node asks, and that are answered while their siblings go on."""

from __future__ import annotations

from collections import Counter
from typing import Any

import anyio
import pytest

from shoal import (
    Application,
    Context,
    Done,
    Each,
    Graph,
    MemoryStore,
    Retry,
    Runtime,
    action,
    fan_out,
    first,
)
from shoal.testing import (
    Attempt,
    RecordingHook,
    assert_run_well_formed,
    cancel_everywhere,
    no_leaks,
)
from shoal.watch import Control, Queries

pytestmark = pytest.mark.anyio

ran = Counter[str]()


class Trouble(Exception):
    """Raised by steps that are retried."""


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()


@action(reads=["item"], writes=["begun"])
async def begin(item: str) -> bool:
    ran[f"begin {item}"] += 1
    return True


@action(reads=["item", "begun"], writes=["text"])
async def tell(item: str, begun: bool, context: Context) -> str:
    """Those in capitals ask two questions; ``!`` fails once behind them."""
    ran[item] += 1
    if item.isupper():
        said = [await context.ask(f"q{n}", item) for n in range(2)]
        if "!" in item and ran[item] == 3:
            raise Trouble(item)
        return f"{item}={''.join(map(str, said))}"
    await anyio.sleep(10)
    return item


@action(reads=["text"], writes=["text"], name="end")
async def end(text: str) -> str:
    ran["end"] += 1
    return f"{text}."


NODES = {
    "node": Graph.chain(begin, Graph.chain(tell, name="node"), end, name="all"),
    "first": Graph.chain(Graph.chain(begin, tell, name="node"), end, name="all"),
    "nested": Graph.chain(
        begin, Graph.chain(Graph.chain(tell, name="inner"), end, name="outer"), name="all"
    ),
}


def step(node: str, **options: Any) -> Any:
    return fan_out(
        NODES[node], over="items", item="item", key=str, into="out", take="text", name="step",
        **options,
    )  # fmt: skip


@action(reads=["items"], writes=["out"])
async def by_hand(items: list[str], context: Context) -> dict[str, str]:
    async with context.fan_out(name="step") as group:
        group.start_each(NODES["nested"], over=items, item="item", key=str)
        return {str(one.key): one.state["text"] async for one in group if isinstance(one, Done)}


async def answer_all(store: MemoryStore) -> None:
    for one in (await Queries(store).questions("r")).open:
        await Control(store).answer(one, one.name)


@pytest.mark.parametrize("until", ["all", "first", "by hand"])
@pytest.mark.parametrize("node", NODES)
async def test_it_goes_on_where_it_stood(node: str, until: str):
    """It stayed halted until a resume, though its run went on, and a race was lost for that."""
    store, hook = MemoryStore(), RecordingHook()
    options: dict[str, Any] = {"until": first()} if until == "first" else {}
    act = by_hand if until == "by hand" else step(node, **options)
    app = Application(act, name="app", store=store, watch=True, hooks=[hook])
    async with no_leaks(), Runtime() as runtime:
        run = await app.start({"items": ["A", "b"]}, id="r", runtime=runtime)
        for _ in range(2):
            await anyio.sleep(1)
            await answer_all(store)
        result = await run.result()
    out = "A=q0q1." if until == "first" else {"A": "A=q0q1.", "b": "b."}
    assert (result.status, result.state["out"]) == ("succeeded", out)
    assert (ran["begin A"], ran["A"]) == (1, 3), "no step runs twice but the asking one"
    hook.assert_paired()
    await assert_run_well_formed(store, "r")


async def test_it_is_retried_behind_its_answers():
    store = MemoryStore()
    each = Each(retry=Retry(3, on=Trouble))
    app = Application(step("nested", each=each), name="app", store=store, watch=True)
    async with no_leaks(), Runtime() as runtime:
        run = await app.start({"items": ["A!", "b"]}, id="r", runtime=runtime)
        for _ in range(2):
            await anyio.sleep(1)
            await answer_all(store)
        result = await run.result()
    assert result.state["out"] == {"A!": "A!=q0q1.", "b": "b."}
    assert (ran["begin A!"], ran["A!"]) == (1, 4)


async def test_one_whose_process_dies_meanwhile_goes_on_in_the_next():
    store = MemoryStore()
    app = Application(step("nested"), name="app", watch=True)
    async with Runtime(store=store) as runtime:
        run = await app.start({"items": ["A", "b"]}, id="r", runtime=runtime)
        await anyio.sleep(1)
        await answer_all(store)
        await anyio.sleep(1)
        later = store.copy()
        run.cancel("this call is not kept")
        await run.wait_ended()
    async with no_leaks(), Runtime(store=later) as runtime:
        run = await app.start(id="r", runtime=runtime)
        await anyio.sleep(1)
        await answer_all(later)
        assert (await run.result()).status == "succeeded"
    assert ran["begin A"] == 1
    await assert_run_well_formed(later, "r")


async def test_one_with_a_fan_out_in_its_node_waits_for_a_resume():
    store, hook = MemoryStore(), RecordingHook()
    node = Graph.chain(Graph.chain(step("node"), name="node"), name="all")
    act = fan_out(node, over="groups", item="items", take="out", into="all", name="outer")
    app = Application(act, name="app", store=store, watch=True, hooks=[hook])
    async with no_leaks(), Runtime() as runtime:
        run = await app.start({"groups": [["A"], ["b"]]}, id="r", runtime=runtime)
        await anyio.sleep(1)
        await answer_all(store)
        result = await run.result()
        assert result.status == "halted"
        for _ in range(2):
            answers = {one.address: one.name for one in result.questions}
            result = await app.run(id="r", answers=answers, runtime=runtime)
    assert result.state["all"] == [{"A": "A=q0q1."}, {"b": "b."}]
    hook.assert_paired()


@pytest.mark.sweep
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("how", ["scope", "native"])
def test_cancelled_everywhere(backend: Any, how: Any):
    if (backend, how) == ("trio", "native"):
        return

    async def scenario(attempt: Attempt) -> None:
        ran.clear()
        store = MemoryStore()
        app = Application(step("nested"), name="app", store=store, watch=True)

        async def live() -> None:
            async with Runtime() as runtime:
                run = await app.start({"items": ["A", "b"]}, id="r", runtime=runtime)
                await anyio.sleep(0.5)
                await answer_all(store)
                await run.wait_ended()

        await attempt(live)
        async with Runtime() as runtime:
            result = await app.run({"items": ["A", "b"]}, id="r", runtime=runtime)
            while result.status == "halted":
                answers = {one.address: one.name for one in result.questions}
                result = await app.run(id="r", answers=answers, runtime=runtime)
        assert result.state["out"] == {"A": "A=q0q1.", "b": "b."}
        await assert_run_well_formed(store, "r")

    assert cancel_everywhere(scenario, backend=backend, how=how) > 20
