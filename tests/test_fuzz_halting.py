"""Random trees in which anybody may ask: answered bit by bit, they come to what they must."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
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
    Retry,
    State,
    Store,
    action,
    fan_out,
    first,
    quorum,
)
from shoal.testing import RecordingHook, no_leaks

pytestmark = [pytest.mark.anyio, pytest.mark.sweep]

SEEDS = range(8)  # thousands were tried by hand
RETRIED = Each(retry=Retry(9, on=Exception))
fails = set[str]()
"""Items whose next try fails."""


@pytest.fixture(autouse=True)
def nothing_fails() -> None:
    fails.clear()


@action(reads=["item"], writes=["value"])
async def leaf(item: str, context: Context, asks: Any) -> str:
    """Works and asks as its item says: digits are seconds, letters are questions, ! fails once."""
    value = ""
    for letter in item.partition(":")[0]:
        if letter.isdigit():
            await anyio.sleep(int(letter) / 10)
        elif letter == "!":
            if item in fails:
                fails.discard(item)
                raise ValueError(item)
        else:
            value += await context.ask(letter, item) if asks else answer(letter, item)
    return value


def answer(name: str, question: Any) -> str:
    return f"({name} {question})"


@action(reads=["items"], writes=["value"])
async def own(items: Sequence[str], context: Context, asks: Any) -> list[str]:
    async with context.fan_out(name="own", limits=Limits(2), each=RETRIED) as group:
        for item in items:
            group.start(leaf, {"item": item}, key=item)
        got = {outcome.key: getattr(outcome, "value", "?") async for outcome in group}
    return [got[item] for item in items]


def act(random: Random, depth: int) -> tuple[Any, Any]:
    """Make an act of the given depth, and what its elements are to be."""

    def item() -> str:
        letters = random.choices("012ab!", k=random.randint(0, 4))
        asked = list(dict.fromkeys(letters)) if random.random() < 0.8 else letters
        return f"{''.join(asked)}:{random.randint(0, 10**9)}"

    if depth == 0:
        return leaf, item
    if depth == 1 and random.random() < 0.2:
        return own, lambda: [item() for _ in range(random.randint(0, 4))]
    inner, element = act(random, depth - 1)
    name = "items" if inner is own or depth > 1 else "item"
    if inner is leaf:
        name = "item"
    fan = fan_out(
        inner,
        over="items",
        item=name,
        into="value",
        take="value",
        name=f"level{depth}",
        limits=random.choice([Limits(1), Limits(2), Limits(20)]),
        each=RETRIED,
    )
    made: Any = Graph.chain(fan, name=f"node{depth}") if random.random() < 0.3 else fan
    return made, lambda: [element() for _ in range(random.randint(1, 4))]


def leaves_of(items: Any) -> list[str]:
    return [items] if isinstance(items, str) else [one for each in items for one in leaves_of(each)]


@pytest.mark.parametrize("seed", SEEDS)
async def test_answered_bit_by_bit_a_tree_comes_to_the_same(seed: int):
    random = Random(seed)
    made, element = act(random, random.randint(1, 3))
    items = element()
    failing = {item for item in leaves_of(items) if "!" in item and random.random() < 0.5}

    async def ends(store: Store, *, asks: bool) -> State:
        fails.update(failing)
        hook = RecordingHook()
        app = Application(made, store=store, hooks=[hook])
        given = {"asks": asks}
        async with no_leaks():
            result = await app.run({"items": items}, id="x", inputs=given)
        rounds = 0
        while result.status == "halted":
            hook.assert_paired()
            assert list(await app.questions("x")) == list(result.questions)
            some = random.sample(result.questions, random.randint(0, len(result.questions)))
            answers = {one.address: answer(one.name, one.question) for one in some}
            if random.random() < 0.3:
                with anyio.move_on_after(random.random() / 4):
                    await app.run(id="x", inputs=given, answers=answers)
            result = await app.run(id="x", inputs=given, answers=await left(app, answers))
            rounds += 1
            assert rounds < 200
        assert result.questions == ()
        assert await app.questions("x") == []
        hook.assert_paired()
        return result.state

    expected = await ends(MemoryStore(), asks=False)
    assert (await ends(MemoryStore(), asks=True)).to_plain() == expected.to_plain()


async def left(app: Application[Any], answers: dict[Any, Any]) -> dict[Any, Any]:
    """Leave out what was answered by a run that was cancelled."""
    open_ = {one.address for one in await app.questions("x")}
    return {address: value for address, value in answers.items() if address in open_}


@pytest.mark.parametrize("seed", SEEDS)
async def test_races_in_which_somebody_asks_end_and_have_a_winner(seed: int):
    random = Random(seed)
    n = random.randint(1, 2)
    until = random.choice([first(n), quorum(n, by=lambda value: True)])
    items = [f"{''.join(random.choices('0123ab', k=random.randint(1, 3)))}:{at}" for at in range(5)]
    items = ["".join(dict.fromkeys(item)) for item in items]
    race = fan_out(
        leaf,
        over="items",
        item="item",
        key=str,
        into="value",
        take="value",
        until=until,
        stagger=random.choice([None, None, 0.1, float("inf")]),
        limits=random.choice([Limits(1), Limits(3), Limits(20)]),
    )
    hook = RecordingHook()
    app = Application(race, store=MemoryStore(), hooks=[hook])
    async with no_leaks():
        result = await app.run({"items": items}, id="x", inputs={"asks": True})
    while result.status == "halted":
        hook.assert_paired()
        assert list(await app.questions("x")) == list(result.questions)
        one = random.choice(result.questions)
        result = await app.run(id="x", inputs={"asks": True}, answers={one.address: "yes"})
    hook.assert_paired()
    ledger = result.outcomes("value")
    assert ledger.halted == 0
    assert ledger.done >= n
    recorded = [one async for one in result.all_outcomes("value")]
    assert len(recorded) == ledger.total
