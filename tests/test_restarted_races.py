"""Races by the first item whose contestants run from their start once more."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import anyio
import pytest

from shoal import (
    Act,
    Application,
    ChildRerun,
    Context,
    Entry,
    Graph,
    Limits,
    MemoryStore,
    NobodyAccepted,
    QuestionAsked,
    Result,
    RunPath,
    Update,
    action,
    fan_out,
    first_item,
    race,
)
from shoal._until import OnBreak
from shoal.testing import RecordingHook

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
