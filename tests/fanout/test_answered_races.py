"""Contestants that ask a question, and are answered while their race goes on."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from shoal import (
    Application,
    Cancelled,
    Context,
    Each,
    Graph,
    Limits,
    MemoryStore,
    Outcome,
    Result,
    Retry,
    RunPath,
    Runtime,
    State,
    StepTimeout,
    action,
    fan_out,
    first,
    first_item,
    quorum,
)
from shoal.errors import NotSteered
from shoal.events import ChildEnded, ChildHalted, ChildName, ChildStarted, Item, LeadingItems
from shoal.stores import Store
from shoal.testing import Attempt, RecordingHook, cancel_everywhere, no_leaks
from shoal.watch import Control, OpenQuestion, Queries

pytestmark = pytest.mark.anyio

ran = Counter[str]()


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()


def enough(state: State, outcome: Outcome) -> bool:
    return bool(state["out"])


CONDITIONS: dict[str, Any] = {
    "first_item": first_item(),
    "restart": first_item(on_break="restart"),
    "first": first(),
    "quorum": quorum(1),
    "function": enough,
}


@action(reads=["item"], writes=["begun"])
async def begin(item: str) -> bool:
    ran[f"begin {item}"] += 1
    return True


@action(reads=["item"], writes=["text"], name="tell")
async def stream(item: str, context: Context) -> AsyncIterator[str | Result[str]]:
    """Those in capitals ask before they give an item; a dash stands for 20 seconds."""
    ran[item] += 1
    if item.isupper():
        answer = await context.ask("word", item)
        yield f"{item}: {answer}"
        yield Result(f"{item}={answer}")
        return
    await anyio.sleep(10 + 20 * item.count("-"))
    yield item
    await anyio.sleep(1)
    yield Result(item)


@action(reads=["item"], writes=["text"], name="tell")
async def plain(item: str, context: Context) -> str:
    ran[item] += 1
    if item.isupper():
        return f"{item}={await context.ask('word', item)}"
    await anyio.sleep(11 + 20 * item.count("-"))
    return item


ACTS = {"stream": stream, "plain": plain, "graph": Graph.chain(begin, stream, name="tell")}


def contest(act: str = "stream", until: str = "first_item", **options: Any) -> Any:
    return fan_out(
        ACTS[act], over="items", item="item", key=str, into="out", take="text", name="race",
        until=CONDITIONS[until], **options,
    )  # fmt: skip


async def open_questions(store: Any) -> list[OpenQuestion]:
    return list((await Queries(store).questions("r")).open)


async def answer_all(store: Any, value: str = "yes") -> None:
    for one in await open_questions(store):
        await Control(store).answer(one, value)


def losers(result: Any) -> dict[Any, ChildName | None]:
    ends = result.outcomes("race")
    assert all(isinstance(one, Cancelled) for one in ends)
    return {one.key: one.winner for one in ends}


async def ends_of(store: Store) -> dict[Any, str | None]:
    children = await store.children(RunPath(run_id="r", act="app"), "race", 0)
    return {one.key: one.status for one in children}


@pytest.mark.parametrize("until", CONDITIONS)
@pytest.mark.parametrize("act", ACTS)
async def test_a_contestant_that_is_answered_goes_on_and_may_win(act: str, until: str) -> None:
    store, hook = MemoryStore(), RecordingHook()
    app = Application(contest(act, until), name="app", store=store, watch=True, hooks=[hook])
    async with no_leaks(), Runtime() as runtime:
        run = await app.start({"items": ["A", "b"]}, id="r", runtime=runtime)
        await anyio.sleep(1)
        began = anyio.current_time()
        await answer_all(store)
        result = await run.result()
        assert anyio.current_time() - began < 2, "before b"
    out = {"A": "A=yes"} if until == "function" else "A=yes"
    assert (result.status, result.state["out"]) == ("succeeded", out)
    assert losers(result) == {"b": ChildName("tell", "A")}
    assert ran["A"] == 2
    assert ran["begin A"] == (act == "graph"), "no step runs twice"
    hook.assert_paired()
    items = LeadingItems("race")
    read = [one for event in hook.events for one in items.on_event(event)]
    if CONDITIONS[until] is not enough and "item" in str(CONDITIONS[until]) and act != "plain":
        assert [one.item for one in read if isinstance(one, Item)] == ["A: yes"]
    assert await ends_of(store) == {"A": "succeeded", "b": "cancelled"}


@pytest.mark.parametrize("until", CONDITIONS)
@pytest.mark.parametrize("act", ["stream", "graph"])
async def test_so_does_one_that_an_earlier_execution_has_left(act: str, until: str) -> None:
    store, hook = MemoryStore(), RecordingHook()
    app = Application(contest(act, until), name="app", watch=True, hooks=[hook])
    async with Runtime(store=store) as runtime:
        run = await app.start({"items": ["A", "b"]}, id="r", runtime=runtime)
        await anyio.sleep(1)
        later = store.copy()
        run.cancel("its process dies")
        await run.wait_ended()
    async with no_leaks(), Runtime(store=later) as runtime:
        run = await app.start(id="r", runtime=runtime)
        await anyio.sleep(1)
        assert ran["A"] == 1, "it rests"
        await answer_all(later)
        began = anyio.current_time()
        result = await run.result()
        assert anyio.current_time() - began < 2, "before b"
    assert losers(result) == {"b": ChildName("tell", "A")}
    assert ran["A"] == 2
    assert ran["begin A"] == (act == "graph")
    hook.assert_paired()


@pytest.mark.parametrize("until", CONDITIONS)
async def test_a_second_answer_is_refused_and_changes_nothing(until: str) -> None:
    store = MemoryStore()
    # In a map around it, so that the run goes on when the race is over.
    act = Graph.chain(contest(until=until), action(writes=["end"], name="end")(rest))
    app = Application(act, name="app", store=store, watch=True)
    async with no_leaks(), Runtime() as runtime:
        run = await app.start({"items": ["A", "b", "C"]}, id="r", runtime=runtime)
        await anyio.sleep(1)
        asked = await open_questions(store)
        (of_a,) = [one for one in asked if one.question == "A"]
        refused = list[str]()
        async with anyio.create_task_group() as tasks:
            for value in ("yes", "no", "yes"):
                tasks.start_soon(answer_once, store, of_a, value, refused)
        assert len(refused) == 2
        result = await run.result()
    out = result.state["out"]
    assert (out if isinstance(out, str) else out["A"]) in ("A=yes", "A=no")
    assert ran == {"A": 2, "b": 1, "C": 1}
    assert losers(result) == dict.fromkeys("bC", ChildName("tell", "A"))


async def rest() -> bool:
    await anyio.sleep(10)
    return True


async def answer_once(store: Any, asked: OpenQuestion, value: str, refused: list[str]) -> None:
    try:
        await Control(store).answer(asked, value)
    except NotSteered as error:
        refused.append(str(error))


@pytest.mark.parametrize("until", CONDITIONS)
async def test_a_contestant_that_is_answered_and_has_no_place_has_lost(until: str) -> None:
    """It waits for the place of b, and b wins. It had no outcome."""
    store, hook = MemoryStore(), RecordingHook()
    app = Application(
        contest(until=until, limits=Limits(1)), name="app", store=store, watch=True, hooks=[hook]
    )
    async with no_leaks(), Runtime() as runtime:
        run = await app.start({"items": ["A", "b", "c"]}, id="r", runtime=runtime)
        await anyio.sleep(1)
        await answer_all(store)
        result = await run.result()
    assert losers(result) == {"A": ChildName("tell", "b")}
    ledger = result.outcomes("race")
    assert (ledger.total, ledger.halted, ran["A"]) == (2, 0, 1)
    hook.assert_paired()
    assert [event.outcome.key for event in hook.of(ChildEnded)] == ["b", "A"]
    assert await ends_of(store) == {"A": "cancelled", "b": "succeeded"}


async def test_an_answer_that_comes_behind_the_first_item_is_too_late() -> None:
    store = MemoryStore()

    @action(reads=["item"], writes=["text"], name="tell")
    async def tell(item: str, context: Context) -> AsyncIterator[str | Result[str]]:
        ran[item] += 1
        if item == "A":
            await context.ask("word", item)
        yield item
        await anyio.sleep(10)
        yield Result(item)

    act = fan_out(
        tell, over="items", item="item", key=str, into="out", take="text", name="race",
        until=first_item(),
    )  # fmt: skip
    app = Application(act, name="app", store=store, watch=True)
    async with no_leaks(), Runtime() as runtime:
        run = await app.start({"items": ["A", "b"]}, id="r", runtime=runtime)
        await anyio.sleep(1)
        await answer_all(store)
        result = await run.result()
    assert (result.state["out"], ran["A"]) == ("b", 1)
    assert losers(result) == {"A": ChildName("tell", "b")}


async def test_one_that_is_put_back_begins_anew_in_the_next_round() -> None:
    """It has no place before b decides, and b breaks off."""
    store, hook = MemoryStore(), RecordingHook()

    @action(reads=["item", "begun"], writes=["text"], name="tell")
    async def tell(item: str, begun: bool, context: Context) -> AsyncIterator[str | Result[str]]:
        ran[item] += 1
        answer = await context.ask("word", item) if item == "A" else ""
        await anyio.sleep(5)
        yield item
        await anyio.sleep(1)
        if item == "b":
            raise ValueError(item)
        yield Result(item + answer)

    act = fan_out(
        Graph.chain(begin, tell, name="tell"), over="items", item="item", key=str, into="out",
        take="text", name="race", until=CONDITIONS["restart"], limits=Limits(1),
    )  # fmt: skip
    app = Application(act, name="app", store=store, watch=True, hooks=[hook])
    async with no_leaks(), Runtime() as runtime:
        run = await app.start({"items": ["A", "b"]}, id="r", runtime=runtime)
        await anyio.sleep(1)
        await answer_all(store)
        result = await run.result()
    assert (result.state["out"], ran["begin A"], ran["A"], ran["b"]) == ("Ayes", 2, 2, 1)
    hook.assert_paired()
    root = RunPath(run_id="r", act="app")
    history = await store.read(RunPath(act="tell", parent=root, step="race", key="A"))
    assert [getattr(one, "number", 0) for one in history].count(1) == 1, "it has one beginning"


@pytest.mark.parametrize("until", CONDITIONS)
@pytest.mark.parametrize("how", ["cancelled", "drained", "fails"])
async def test_while_it_waits_for_a_place(until: str, how: str) -> None:
    store, hook = MemoryStore(), RecordingHook()
    act = contest(until=until, limits=Limits(1))
    app = Application(act, name="app", store=store, watch=True, hooks=[hook])
    async with no_leaks(), Runtime() as runtime:
        run = await app.start({"items": ["A", "b-", "c"]}, id="r", runtime=runtime)
        await anyio.sleep(1)
        await answer_all(store)
        if how == "cancelled":
            root = RunPath(run_id="r", act="app")
            assert run.cancel_child(RunPath(act="tell", parent=root, step="race", key="A"), "no")
            result = await run.result()
            (end,) = result.outcomes("race")
            assert isinstance(end, Cancelled)
            assert (end.key, end.reason) == ("A", "no")
            hook.assert_paired()
            return
        if how == "drained":
            run.drain()
            result = await run.result()  # b- wins, as it was at work
            assert losers(result) == {"A": ChildName("tell", "b-")}
        else:
            run.cancel("its process dies")
            await run.wait_ended()
            assert (await ends_of(store))["A"] == "halted"
            result = await app.run(id="r", runtime=runtime)
            out = result.state["out"]
            assert (out if isinstance(out, str) else out["A"]) == "A=yes"
    hook.assert_paired()


async def test_each_question_of_a_contestant_is_answered_while_its_race_goes_on() -> None:
    @action(reads=["item"], writes=["text"], name="tell")
    async def tell(item: str, context: Context) -> AsyncIterator[str | Result[str]]:
        ran[item] += 1
        if item == "A":
            said = [await context.ask(f"q{n}", n) for n in range(3)]
            yield "item"
            yield Result("".join(map(str, said)))
        else:
            await anyio.sleep(60)
            yield Result(item)

    store, hook = MemoryStore(), RecordingHook()
    act = fan_out(
        tell, over="items", item="item", key=str, into="out", take="text", name="race",
        until=first_item(), stagger=0.5,
    )  # fmt: skip
    app = Application(act, name="app", store=store, watch=True, hooks=[hook])
    async with no_leaks(), Runtime() as runtime:
        run = await app.start({"items": ["A", "b"]}, id="r", runtime=runtime)
        for n in range(3):
            await anyio.sleep(1)
            await answer_all(store, str(n))
        result = await run.result()
    assert (result.state["out"], ran["A"]) == ("012", 4)
    assert len(hook.of(ChildStarted)) == 5
    assert len(hook.of(ChildHalted)) == 3
    hook.assert_paired()


async def test_the_step_is_tried_again_with_a_contestant_that_waits_for_a_place() -> None:
    store, hook = MemoryStore(), RecordingHook()

    @action(reads=["item"], writes=["text"], name="tell")
    async def tell(item: str, context: Context) -> AsyncIterator[str | Result[str]]:
        ran[item] += 1
        if item == "A":
            yield Result(f"A={await context.ask('word', item)}")
            return
        if ran[item] > 1:
            raise ConnectionError
        await anyio.sleep(5)
        yield Result(item)

    inner = fan_out(
        tell, over="items", item="item", key=str, into="out", take="text", name="race",
        until=first_item(), limits=Limits(1), timeout=3,
    )  # fmt: skip
    outer = fan_out(
        inner, over="groups", item="items", into="outs", take="out", name="outer",
        each=Each(retry=Retry(2, on=StepTimeout, initial=1, jitter=0)),
    )  # fmt: skip
    app = Application(outer, name="app", store=store, watch=True, hooks=[hook])
    async with no_leaks(), Runtime() as runtime:
        run = await app.start({"groups": [["A", "b"]]}, id="r", runtime=runtime)
        await anyio.sleep(1)
        await answer_all(store)
        result = await run.result()
    assert list(result.state["outs"]) == ["A=yes"]
    assert ran == {"A": 2, "b": 2}
    hook.assert_paired()


@pytest.mark.sweep
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("how", ["scope", "native"])
@pytest.mark.parametrize("limit", [1, 5])
@pytest.mark.parametrize("until", CONDITIONS)
def test_cancelled_everywhere_while_it_is_answered(
    backend: Any, how: Any, limit: int, until: str
) -> None:
    if (backend, how) == ("trio", "native"):
        return

    async def scenario(attempt: Attempt) -> None:
        store, hook = MemoryStore(), RecordingHook()
        act = contest("graph", until, limits=Limits(limit))
        app = Application(act, name="app", store=store, watch=True, hooks=[hook])

        async def live() -> None:
            async with Runtime() as runtime:
                handle = await app.start({"items": ["A", "b"]}, id="r", runtime=runtime)
                await anyio.sleep(0.5)
                await answer_all(store)
                await handle.wait_ended()

        await attempt(live)
        hook.assert_paired()
        async with Runtime() as runtime:
            result = await app.run({"items": ["A", "b"]}, id="r", runtime=runtime)
            if result.status == "halted":
                answers = {one.address: "yes" for one in result.questions}
                result = await app.run(id="r", answers=answers, runtime=runtime)
        out = result.state["out"]
        winner = out if isinstance(out, str) else next(iter(out.values()))
        assert winner in ("A=yes", "b")
        hook.assert_paired()
        assert result.outcomes("race").total <= 2

    assert cancel_everywhere(scenario, backend=backend, how=how, limit=60) > 20
