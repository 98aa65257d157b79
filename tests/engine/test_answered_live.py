"""Questions that are answered while the run goes on: random programs, whose results are known."""

from __future__ import annotations

import random
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
    Limits,
    MemoryStore,
    Rate,
    Result,
    Retry,
    Runtime,
    action,
    fan_out,
    first_item,
    race,
)
from shoal.stores._watching import Command
from shoal.testing import Attempt, RecordingHook, cancel_everywhere, no_leaks
from shoal.types import Act
from shoal.watch import Queries

pytestmark = pytest.mark.anyio

prepared = Counter[str]()
tried = Counter[str]()


class Trouble(Exception):
    """What is retried."""


@action(reads=["item"], writes=["ready"])
async def prepare(item: dict[str, Any]) -> bool:
    prepared[item["name"]] += 1
    await anyio.sleep(item["first"])
    return True


@action(reads=["item", "ready"], writes=["said"])
async def consult(item: dict[str, Any], ready: bool, context: Context) -> str:  # a field
    assert ready
    name = item["name"]
    said = [await context.ask(f"{name}-{n}", {"of": name, "n": n}) for n in range(item["asks"])]
    await anyio.sleep(item["last"])
    tried[name] += 1
    if tried[name] <= item["fails"]:
        raise Trouble(name)
    return " ".join([name, *map(str, said)])


both = Graph.chain(prepare, consult, name="both")


def expected(item: dict[str, Any]) -> str:
    return " ".join(
        [item["name"], *(answer_to(f"{item['name']}-{n}") for n in range(item["asks"]))]
    )


def answer_to(name: str) -> str:
    return name.upper()


def program(random: random.Random) -> tuple[Any, dict[str, Any], list[dict[str, Any]]]:
    """Return a graph, its state, and the items in it."""
    each = Each(retry=Retry(attempts=3, on=Trouble)) if random.random() < 0.5 else None
    items = [
        {
            "name": f"i{n}",
            "first": random.choice([0.0, 0.1, 0.5, 1.0]),
            "asks": random.choice([0, 0, 1, 1, 2]),
            "last": random.choice([0.0, 0.2, 1.0, 3.0]),
            "fails": random.choice([0, 0, 1]) if each is not None else 0,
        }
        for n in range(random.randint(1, 8))
    ]
    rate = Rate(random.choice([3, 10])) if random.random() < 0.3 else None
    limits = Limits(random.choice([1, 2, 5]), rate=rate)
    kind = random.choice(["flat", "flat", "nested", "own"])
    if kind == "own":

        @action(reads=["items"], writes=["found"])
        async def own(items: list[dict[str, Any]], context: Context) -> list[str]:
            async with context.fan_out(name="own", limits=limits, each=each) as group:
                group.start_each(both, over=items, item="item", key=lambda one: one["name"])
                return sorted([one.state["said"] async for one in group if isinstance(one, Done)])

        return own, {"items": items}, items
    step = fan_out(
        both, over="items", item="item", key=name_of, take="said", into="found", limits=limits,
        each=each, name="step", stagger=random.choice([0.0, 0.3]),
    )  # fmt: skip
    if kind == "flat":
        return step, {"items": items}, items
    cut = random.randint(0, len(items))
    outer = fan_out(step, over="groups", item="items", take="found", into="all", name="outer")
    return outer, {"groups": [items[:cut], items[cut:]]}, items


def name_of(item: dict[str, Any]) -> str:
    return item["name"]


def found_in(state: Any) -> list[str]:
    if "all" in state:
        return sorted(said for one in state["all"] for said in one.values())
    found: Any = state["found"]
    said: list[str] = [*(found if isinstance(found, list) else found.values())]
    return sorted(said)


async def answer_some(store: MemoryStore, random: random.Random) -> None:
    """Leave answers for the run now and then."""
    queries = Queries(store)
    while True:
        await anyio.sleep(random.choice([0.05, 0.3, 0.7]))
        summary = await store.summary("r")
        if summary is None or not summary.holder:
            continue
        for one in (await queries.questions("r")).open:
            if random.random() < 0.5:
                arguments = {"question": one.id, "answer": answer_to(one.name)}
                await store.command(Command(run_id="r", kind="answer", arguments=arguments))


@pytest.mark.parametrize("seed", range(40))
async def test_whatever_is_answered_meanwhile_the_results_are_the_same(seed: int):
    chance = random.Random(seed)  # a test's
    prepared.clear()
    tried.clear()
    graph, state, items = program(chance)
    store, hook = MemoryStore(), RecordingHook()
    app = Application(graph, name="answered", store=store, watch=True, hooks=[hook])
    results: list[Any] = []
    async with no_leaks(), Runtime() as runtime, anyio.create_task_group() as tasks:
        tasks.start_soon(answer_some, store, chance)
        results.append(await app.run(state, id="r", runtime=runtime))
        while results[-1].status == "halted":
            answers = {one.address: answer_to(one.name) for one in results[-1].questions}
            results.append(await app.run(id="r", answers=answers, runtime=runtime))
            assert len(results) < 20
        tasks.cancel_scope.cancel()
    hook.assert_paired()
    assert found_in(results[-1].state) == sorted(map(expected, items))
    assert prepared == dict.fromkeys((item["name"] for item in items), 1), "no step ran twice"


@pytest.mark.parametrize("kind", ["flat", "own"])
async def test_a_child_that_an_earlier_execution_left_halted_goes_on_when_it_is_answered(kind: str):
    prepared.clear()
    tried.clear()
    items = [
        {"name": "a", "first": 0.0, "asks": 2, "last": 0.1, "fails": 0},
        {"name": "b", "first": 0.0, "asks": 0, "last": 30.0, "fails": 0},
    ]

    @action(reads=["items"], writes=["found"])
    async def own(items: list[dict[str, Any]], context: Context) -> list[str]:
        async with context.fan_out(name="own") as group:
            group.start_each(both, over=items, item="item", key=lambda one: one["name"])
            return sorted([one.state["said"] async for one in group if isinstance(one, Done)])

    flat = fan_out(both, over="items", item="item", key=name_of, take="said", into="found")
    store, hook = MemoryStore(), RecordingHook()
    app = Application(flat if kind == "flat" else own, name="answered", watch=True, hooks=[hook])
    async with Runtime(store=store) as runtime:
        run = await app.start({"items": items}, id="r", runtime=runtime)
        await anyio.sleep(1)
        later = store.copy()
        run.cancel("its process dies")
        await run.wait_ended()
    queries = Queries(later)
    async with no_leaks(), Runtime(store=later) as runtime:
        run = await app.start(id="r", runtime=runtime)
        await anyio.sleep(1)
        for _ in range(2):
            (one,) = (await queries.questions("r")).open
            arguments = {"question": one.id, "answer": answer_to(one.name)}
            await later.command(Command(run_id="r", kind="answer", arguments=arguments))
            await anyio.sleep(1)
        assert tried["a"] == 1, "it goes on while its sibling does"
        assert found_in((await run.result()).state) == sorted(map(expected, items))
    hook.assert_paired()
    assert prepared == {"a": 1, "b": 1}


async def answer_all(store: MemoryStore) -> None:
    """Leave an answer to each open question of the run, and wait until the run has taken it."""
    for one in (await Queries(store).questions("r")).open:
        arguments = {"question": one.id, "answer": answer_to(one.name)}
        await store.command(Command(run_id="r", kind="answer", arguments=arguments))
    await anyio.sleep(1)


async def test_no_child_goes_on_once_its_action_has_halted():
    """Its action leaves the block, so the child would be cancelled at once."""
    begun = list[str]()

    @action(reads=["name"], writes=["said"])
    async def consult(name: str, context: Context) -> str:
        answer = str(await context.ask(name, name))
        begun.append(name)
        await anyio.sleep(30)
        return answer

    @action(writes=["found"])
    async def own(context: Context) -> list[str]:
        async with context.fan_out(name="own") as group:
            group.start(consult, {"name": "a"})
            try:
                return [one.state["said"] async for one in group if isinstance(one, Done)]
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(10)

    store, hook = MemoryStore(), RecordingHook()
    app = Application(own, name="halted", store=store, watch=True, hooks=[hook])
    async with no_leaks(), Runtime() as runtime:
        run = await app.start({}, id="r", runtime=runtime)
        await anyio.sleep(1)
        await answer_all(store)
        assert (await run.result()).status == "halted"
        assert begun == []
        assert (await app.run(id="r", runtime=runtime)).state["found"] == ["A"]
    hook.assert_paired()
    assert begun == ["a"]


async def test_an_answered_contestant_starts_at_once_and_no_other_one_with_it():
    """It has had its delay: the next one has to wait for its own."""
    began = dict[str, float]()

    def contestant(name: str) -> Act:
        @action(writes=["text"], name=name)
        async def tells(context: Context) -> str:
            began[name] = anyio.current_time() - since
            if name == "a":
                await context.ask("a", "a")
            await anyio.sleep(60)
            return name

        return tells

    store = MemoryStore()
    step = race(*map(contestant, "abc"), into="text", take="text", stagger=20)
    app = Application(step, name="staggered", store=store, watch=True)
    async with no_leaks(), Runtime() as runtime:
        since = anyio.current_time()
        run = await app.start({}, id="r", runtime=runtime)
        await anyio.sleep(1)
        await answer_all(store)
        assert (await run.result()).state["text"] == "b"
    assert began["b"] == 0, "a has halted, so the next one begins"
    assert 1 <= began["a"] <= 2
    assert began["c"] == pytest.approx(began["a"] + 20)


async def test_no_contestant_goes_on_in_a_race_that_its_item_has_decided():
    """No child of that race starts any more, so the race would wait for it forever."""

    @action(writes=["text"])
    async def leads(context: Context) -> Any:
        await anyio.sleep(0.1)  # the other one begins meanwhile
        yield "begun"
        yield Result(str(await context.ask("a", "a")))

    @action(writes=["text"])
    async def loses() -> Any:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(4)
        yield Result("never")

    store, hook = MemoryStore(), RecordingHook()
    step = race(leads, loses, into="text", take="text", until=first_item())
    app = Application(step, name="led", store=store, watch=True, hooks=[hook])
    async with no_leaks(), Runtime() as runtime:
        run = await app.start({}, id="r", runtime=runtime)
        await anyio.sleep(1)
        await answer_all(store)
        with anyio.fail_after(60):
            assert (await run.result()).status == "halted"
        assert (await app.run(id="r", runtime=runtime)).state["text"] == "A"
    hook.assert_paired()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("how", ["scope", "native"])
def test_cancelled_everywhere_while_children_go_on(backend: Any, how: Any):
    if (backend, how) == ("trio", "native"):
        return

    async def scenario(attempt: Attempt) -> None:
        prepared.clear()
        tried.clear()
        store = MemoryStore()
        items = [
            {"name": "a", "first": 0.0, "asks": 1, "last": 0.1, "fails": 0},
            {"name": "b", "first": 0.0, "asks": 0, "last": 2.0, "fails": 0},
        ]
        step = fan_out(both, over="items", item="item", key=name_of, take="said", into="found")
        app = Application(step, name="answered", store=store, watch=True)

        async def live() -> None:
            async with Runtime() as runtime:
                handle = await app.start({"items": items}, id="r", runtime=runtime)
                await anyio.sleep(0.5)
                (one,) = (await Queries(store).questions("r")).open
                arguments = {"question": one.id, "answer": answer_to(one.name)}
                await store.command(Command(run_id="r", kind="answer", arguments=arguments))
                await handle.wait_ended()

        await attempt(live)
        async with Runtime() as runtime:
            result = await app.run({"items": items}, id="r", runtime=runtime)
            if result.status == "halted":
                answers = {one.address: answer_to(one.name) for one in result.questions}
                result = await app.run(id="r", answers=answers, runtime=runtime)
        assert found_in(result.state) == sorted(map(expected, items))

    assert cancel_everywhere(scenario, backend=backend, how=how) > 20
