"""Races by the first item whose contestants run from their start once more."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import Any

import anyio
import pytest

from shoal import (
    Application,
    Context,
    Each,
    Graph,
    Limits,
    MemoryStore,
    NobodyAccepted,
    Rate,
    Result,
    Retry,
    RunCancelled,
    RunPath,
    State,
    StepTimeout,
    action,
    fan_out,
    first_item,
    race,
)
from shoal._graph.until import OnBreak
from shoal.events import ChildEnded, ChildName, ChildRerun, Update
from shoal.stores import Entry, QuestionAsked
from shoal.testing import RecordingHook
from shoal.types import Act

pytestmark = pytest.mark.anyio

RESTART = first_item(on_break="restart")


@action(writes=["begun"])
async def begin() -> bool:
    return True


def contestant(name: str, ran: list[str], *, fails: bool = True) -> Act:
    """Make one that completes a step, gives an item, and breaks off."""

    @action(reads=["begun"], writes=["text"], name="tell")
    async def tell(begun: bool) -> AsyncIterator[str | Result[str]]:
        ran.append(name)
        yield name
        await anyio.sleep(1)
        if fails:
            raise ValueError(name)
        yield Result(name)

    return Graph.chain(begin, tell, name=name)


async def history_of(store: MemoryStore, act: str) -> Sequence[Entry]:
    """Return what is kept of a contestant."""
    return await store.read(RunPath(act=act, parent=RunPath(run_id="r"), step="race"))


@pytest.mark.parametrize("at_most", [None, 2])
async def test_a_contestant_that_does_not_come_up_in_a_round_begins_anew_in_the_next(
    at_most: int | None,
):
    """Resumed, a takes part again, and b behind it, which has not come up in that round.

    What was kept of b was not declared void, so its history had two beginnings.
    """
    store, ran, hook = MemoryStore(), list[str](), RecordingHook()
    acts = [contestant("a", ran), contestant("b", ran)]
    given: dict[str, Any] = {} if at_most is None else {"at_most": at_most}
    act = fan_out(
        acts, into="out", take="text", name="race", until=RESTART, limits=Limits(1), **given
    )
    app = Application(act, store=store, name="app", hooks=[hook])
    for _ in range(3):
        hook.events.clear()
        ran.clear()
        with pytest.raises(NobodyAccepted):
            await app.run(id="r")
        assert ran == ["a", "b"]
        for name in "ab":
            history = await history_of(store, name)
            assert [one.number for one in history if isinstance(one, Update)] == [1]
        hook.assert_paired()
    assert [event.child.act for event in hook.of(ChildRerun)] == ["a", "b"]


async def test_a_contestant_that_does_not_come_up_in_the_last_round_is_counted():
    """c comes too late in the second round, which b has won by then. It was in the first one."""

    @action(reads=["item"], writes=["text"])
    async def tell(item: str, context: Context) -> AsyncIterator[str | Result[str]]:
        await anyio.sleep({"a": 2, "b": 9 if context.attempt == 1 else 0.5, "c": 9}[item])
        yield item
        if item == "a":
            await anyio.sleep(0.5)
            raise ValueError(item)
        yield Result(item)

    async def items() -> AsyncIterator[str]:
        yield "a"
        yield "b"
        await anyio.sleep(1)
        yield "c"

    act = fan_out(
        tell, over=lambda state: items(), reads=[], item="item", key=str, into="out", name="race",
        until=RESTART,
    )  # fmt: skip
    app = Application(act, store=MemoryStore(), name="app")
    for _ in range(2):  # the second time, all is as recorded
        result = await app.run(id="r")
        assert result.state["out"] == "b"
        ledger = result.outcomes("race")
        ends = [(type(one).__name__, one.key) for one in ledger]
        assert ends == [("Failed", "a"), ("Cancelled", "c")]
        assert (ledger.done, ledger.failed, ledger.cancelled) == (1, 1, 1)


async def test_losers_of_an_earlier_execution_begin_anew_where_its_winner_breaks_off():
    """The race is run again from its start: they don't go on behind what they had completed."""
    store, begun, hook = MemoryStore(), list[str](), RecordingHook()

    def act_of(name: str) -> Act:
        @action(writes=["begun"], name="begin")
        async def begins() -> bool:
            begun.append(name)
            return True

        @action(reads=["begun"], writes=["text"], name="tell")
        async def tell(begun: bool, context: Context) -> AsyncIterator[str | Result[object]]:
            await anyio.sleep(0 if name == "a" else 1)
            yield name
            if name == "a":
                await context.ask("what", "What is it?")
                raise ConnectionError
            yield Result(name)

        return Graph.chain(begins, tell, name=name)

    act = race(
        act_of("a"), act_of("b"), into="out", take="text", name="race", until=RESTART
    )  # fmt: skip
    app = Application(act, store=store, name="app", hooks=[hook])
    halted = await app.run(id="r")
    assert (halted.status, begun) == ("halted", ["a", "b"])
    result = await app.run(id="r", answers={"what": "this"})
    assert (result.state["out"], begun) == ("b", ["a", "b", "b"])
    assert [event.child.act for event in hook.of(ChildRerun)] == ["b"]
    numbers = [one.number for one in await history_of(store, "b") if isinstance(one, Update)]
    assert numbers == [1, 2]


@pytest.mark.parametrize("waits", [False, True], ids=["at work", "waiting"])
async def test_what_an_attempt_has_left_takes_part_in_the_next_or_has_lost(waits: bool):
    """The source raises in the first attempt, and brings q too late in the second one."""
    store, is_first = MemoryStore(), True

    @action(reads=["item"], writes=["text"])
    async def tell(item: str, context: Context) -> AsyncIterator[str | Result[str]]:
        if item == "q" and waits:
            await context.ask("what", "What is it?")
        await anyio.sleep(1)
        yield item
        await anyio.sleep(1)
        yield Result(item)

    async def items() -> AsyncIterator[str]:
        nonlocal is_first
        if is_first:
            is_first = False
            yield "q"
            yield "b"
            await anyio.sleep(0.5)
            raise ConnectionError
        yield "b"
        await anyio.sleep(1.5)
        yield "q"

    inner = fan_out(
        Graph.chain(begin, tell, name="one"), over=lambda state: items(), reads=[], item="item",
        key=str, into="out", take="text", until=RESTART, name="race",
    )  # fmt: skip
    outer = fan_out(
        Graph.chain(inner, name="inner"), over="names", key=str, into="all", take="out",
        name="outer", each=Each(retry=Retry(attempts=2, on=ConnectionError, jitter=0)),
    )  # fmt: skip
    result = await Application(outer, store=store, name="app").run({"names": ["n"]}, id="r")
    assert result.state["all"] == {"n": "b"}
    around = RunPath(act="inner", parent=RunPath(run_id="r"), step="outer", key="n")
    records = {one.key: one for one in await store.children(around, "race", 0)}
    assert records["b"].status == "succeeded"
    assert records["q"].status == "cancelled"
    history = await store.read(RunPath(act="one", parent=around, step="race", key="b"))
    assert [one.number for one in history if isinstance(one, Update)] == [1, 2]


async def test_losers_that_were_never_started_for_at_most_have_no_outcome():
    """The winner rests over the end of an execution; only it was started, ever."""

    @action(writes=["text"])
    async def asks(context: Context) -> AsyncIterator[str | Result[object]]:
        yield "so"
        yield Result(await context.ask("what", "What is it?"))

    acts = [asks.bind(name=name) for name in "abc"]
    act = fan_out(acts, into="out", take="text", name="race", until=first_item(), at_most=1)
    app = Application(act, store=MemoryStore(), name="app")
    halted = await app.run(id="r")
    assert halted.status == "halted"
    result = await app.run(id="r", answers={"what": "this"})
    assert result.state["out"] == "this"
    assert list(result.outcomes("race")) == []


# -- what was answered -----------------------------------------------------------------------------


@pytest.mark.parametrize("on_break", ["fail", "restart"])
async def test_a_contestant_that_runs_anew_is_not_asked_again(on_break: OnBreak):
    """Its answer belongs to the question, which it comes to in the same state once more."""
    answers, is_down = list[object](), True

    @action(reads=["begun"], writes=["text"])
    async def asks(begun: bool, context: Context) -> AsyncIterator[str | Result[object]]:
        yield "so"
        answer = await context.ask("what", "What is it?")
        answers.append(answer)
        if is_down:
            raise ConnectionError
        yield Result(answer)

    act = race(
        Graph.chain(begin, asks, name="one"), into="out", take="text", name="race",
        until=first_item(on_break=on_break),
    )  # fmt: skip
    app = Application(act, store=MemoryStore(), name="app")
    halted = await app.run(id="r")
    assert halted.status == "halted"
    with pytest.raises(NobodyAccepted):
        await app.run(id="r", answers={"what": "this"})
    with pytest.raises(NobodyAccepted):
        await app.run(id="r")
    is_down = False
    result = await app.run(id="r")
    assert result.state["out"] == "this"
    assert answers == ["this", "this", "this"]


async def test_a_winner_that_an_earlier_execution_left_is_tried_for_the_first_time():
    """Attempts count on in further rounds alone, and this race has one."""
    tried, is_down = list[int](), True

    @action(writes=["text"], retry=Retry(2, on=ConnectionError))
    async def tell(context: Context) -> AsyncIterator[str | Result[str]]:
        tried.append(context.attempt)
        yield "so"
        if is_down:
            raise ConnectionError
        yield Result("this")

    act = race(tell, into="out", take="text", name="race", until=first_item())
    hook = RecordingHook()
    app = Application(act, store=MemoryStore(), name="app", hooks=[hook])
    with pytest.raises(NobodyAccepted):
        await app.run(id="r")
    is_down = False
    assert (await app.run(id="r")).state["out"] == "this"
    assert tried == [1, 2, 1]
    assert hook.of(ChildEnded)[-1].outcome.attempts == 1


async def test_a_contestant_that_waits_and_runs_anew_asks_the_same_question():
    """An item of another one decides, which breaks off: it asks once more in the next round."""
    store = MemoryStore()

    @action(writes=["text"])
    async def asks(context: Context) -> AsyncIterator[Result[object]]:
        yield Result(await context.ask("what", "What is it?"))

    acts = [asks, contestant("b", [])]
    act = race(*acts, into="out", take="text", name="race", until=RESTART)
    app = Application(act, store=store, name="app")
    async with app.open(id="r") as run:
        await anyio.sleep(0.5)
        (before,) = [e for e in await history_of(store, "asks") if isinstance(e, QuestionAsked)]
        halted = await run.result()
    (question,) = halted.questions
    assert question.id == before.id
    result = await app.run(id="r", answers={"what": "this"})
    assert result.state["out"] == "this"


@pytest.mark.parametrize("differs", ["state", "question"])
async def test_a_contestant_that_comes_to_another_question_is_asked_anew(differs: str):
    """An answer to what was shown before must not count for what nobody has seen."""
    drafts, is_down, answers = list[str](), True, list[object]()

    @action(writes=["draft"])
    async def write() -> str:
        drafts.append("x")
        return f"draft {len(drafts)}" if differs == "state" else "draft"

    @action(reads=["draft"], writes=["text"])
    async def asks(draft: str, context: Context) -> AsyncIterator[str | Result[object]]:
        yield "so"
        shown = "Is it good?" if differs == "state" else f"Is number {len(drafts)} good?"
        answers.append(await context.ask("good", shown))
        if is_down:
            raise ConnectionError
        yield Result(draft)

    act = race(
        Graph.chain(write, asks, name="one"), into="out", take="text", name="race",
        until=first_item(),
    )  # fmt: skip
    app = Application(act, store=MemoryStore(), name="app")
    assert (await app.run(id="r")).status == "halted"
    with pytest.raises(NobodyAccepted):
        await app.run(id="r", answers={"good": "yes"})
    is_down = False
    again = await app.run(id="r")
    assert again.status == "halted"
    result = await app.run(id="r", answers={"good": "no"})
    assert (result.status, answers) == ("succeeded", ["yes", "no"])


@pytest.mark.parametrize("at_most", [None, 3])
async def test_a_contestant_that_is_done_stays_so_though_it_is_cancelled(at_most: int | None):
    """It is cancelled while it waits, which changes nothing, and then the attempt times out."""
    store, ran, cancels = MemoryStore(), list[str](), list[Callable[[str], None]]()

    @action(writes=["text"])
    async def slow(context: Context) -> str:
        ran.append(context.path.act)
        await anyio.sleep(9 if len(ran) < 5 else 0.5)
        raise ConnectionError

    @action(writes=["text"])
    async def quick() -> str:
        ran.append("c")
        for cancel in cancels:
            cancel("before its result can be applied")
        return "c"

    def application(limit: int) -> Application[Any]:
        given: dict[str, Any] = {} if at_most is None else {"at_most": at_most}
        inner = fan_out(
            [slow.bind(name="a"), slow.bind(name="b"), quick.bind(name="c")], into="out",
            take="text", name="race", until=RESTART, limits=Limits(limit), timeout=2, **given,
        )  # fmt: skip
        outer = fan_out(
            Graph.chain(inner, name="inner"), over="names", key=str, into="all", take="out",
            name="outer", each=Each(retry=Retry(attempts=2, on=StepTimeout, jitter=0)),
        )  # fmt: skip
        return Application(outer, store=store, name="app")

    with pytest.raises(RunCancelled):
        async with application(3).open({"names": ["n"]}, id="r") as handle:
            cancels.append(handle.cancel)
            await handle.result()
    cancels.clear()
    around = RunPath(act="inner", parent=RunPath(run_id="r"), step="outer", key="n")
    done = RunPath(act="c", parent=around, step="race", key="")
    records = {one.act: one for one in await store.children(around, "race", 0)}
    assert (records["c"].status, records["c"].applied) == ("succeeded", None)
    assert ran == ["a", "b", "c"]
    async with application(1).open(id="r") as handle:
        await anyio.sleep(1)
        assert not handle.cancel_child(done, "by hand"), "it has ended already"
        result = await handle.result()
    assert ran == ["a", "b", "c", "a", "a", "b"], "c is Done"
    assert result.state["all"] == {"n": "c"}


@pytest.mark.parametrize("waits", [False, True], ids=["at work", "waiting"])
@pytest.mark.parametrize("at_most", [None, 2])
async def test_a_contestant_that_was_put_back_unstarted_has_lost_if_it_does_not_come_up_again(
    at_most: int | None, waits: bool
):
    """Asking what q costs fails in the first attempt; p wins the second one, before q is pulled."""
    store, ran, fails = MemoryStore(), list[str](), list[Exception]()
    elements, cancels = [["q"], ["q"], ["p", "q"]], list[Callable[[str], None]]()

    @action(reads=["item"], writes=["text"])
    async def tell(item: str, context: Context) -> AsyncIterator[str | Result[str]]:
        ran.append(item)
        if item == "q" and waits:
            await context.ask("what", "What is it?")
        for cancel in cancels:
            cancel("by hand")
        await anyio.sleep(1)
        yield item
        yield Result(item)

    async def items() -> AsyncIterator[str]:
        for item in elements.pop(0):
            yield item
            await anyio.sleep(9)

    def cost(state: State) -> float:
        if fails:
            raise fails.pop()
        return 1

    given: dict[str, Any] = {} if at_most is None else {"at_most": at_most}
    inner = fan_out(
        tell, over=lambda state: items(), reads=[], item="item", key=str, into="out", take="text",
        until=RESTART, name="race", limits=Limits(rate=Rate(9), cost=cost), **given,
    )  # fmt: skip
    outer = fan_out(
        Graph.chain(inner, name="inner"), over="names", key=str, into="all", take="out",
        name="outer", each=Each(retry=Retry(attempts=2, on=KeyError, jitter=0)),
    )  # fmt: skip
    app = Application(outer, store=store, name="app")
    with suppress(RunCancelled):
        async with app.open({"names": ["n"]}, id="r") as handle:
            cancels.append(handle.cancel)
            await handle.result()
    cancels.clear()
    fails.append(KeyError("q"))
    answers = {"what": "this"} if waits else None
    result = await app.run(id="r", answers=answers)
    assert (result.state["all"], ran) == ({"n": "p"}, ["q", "p"])
    around = RunPath(act="inner", parent=RunPath(run_id="r"), step="outer", key="n")
    records = {one.key: one for one in await store.children(around, "race", 0)}
    assert {key: one.status for key, one in records.items()} == {"p": "succeeded", "q": "cancelled"}
    assert records["q"].winner == ChildName("tell", "p")
