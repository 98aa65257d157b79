"""Losers of races that were decided: how they differ from children that have failed the run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from shoal import (
    END,
    Application,
    Done,
    Failed,
    Graph,
    MemoryStore,
    NobodyAccepted,
    Result,
    RunPath,
    Runtime,
    SQLiteStore,
    action,
    fan_out,
    first,
    first_item,
    quorum,
    race,
    when,
)
from shoal.testing import no_leaks

pytestmark = pytest.mark.anyio

RESTART = first_item(on_break="restart")


@action(reads=["q"], writes=["a"])
async def answer(q: str, seconds: float, text: str = "yes") -> str:
    await anyio.sleep(seconds)
    if text == "fails":
        raise ConnectionError(q)
    return text


def act(name: str, seconds: float, text: str = "yes") -> Any:
    return answer.bind(name=name, seconds=seconds, text=text)


def decides(_: object, outcome: object) -> bool:
    return isinstance(outcome, Done)


UNTIL: dict[str, Any] = {
    "first": first(),
    "quorum": quorum(2),
    "first_item": first_item(),
    "function": decides,
}


def decided(until: Any) -> Any:
    acts = [act("f", 0.1, "fails"), act("g", 0.2), act("h", 0.3), act("i", 9.0)]
    return race(*acts, until=until, into="a", reduce=None)


@pytest.mark.parametrize("how", UNTIL)
@pytest.mark.parametrize("again", [False, True])
async def test_a_race_that_was_won_has_no_failures_to_raise(how: str, again: bool):
    until = UNTIL[how]
    step = decided(until)
    if how == "function":
        acts = [act("f", 0.1, "fails"), act("g", 0.2), act("i", 9.0)]
        step = fan_out(acts, into="a", until=until, on_error="collect")
    app = Application(step, store=MemoryStore())
    async with no_leaks():
        result = await app.run({"q": "x"}, id="a")
        if again:  # read from the store
            result = await app.run(id="a")
        result.raise_for_failures()
        ledger = result.outcomes("a")
        assert ledger.is_decided
        assert [one.act for one in ledger if isinstance(one, Failed)] == ["f"]


@pytest.mark.parametrize("again", [False, True])
async def test_what_failed_besides_a_race_is_still_raised(again: bool):
    @action(reads=["turn"], writes=["turn"])
    async def count(turn: int) -> int:
        return turn + 1

    lost = race(act("f", 0.1, "fails"), act("g", 0.2), into="a", name="lost")
    collected = fan_out(
        [act("bad", 0.1, "fails"), act("good", 0.1)],
        into="all",
        on_error="collect",
        name="collected",
    )
    graph = Graph(
        (lost, collected), (collected, count), (count, END, when(turn=2)), (count, lost), entry=lost
    )
    inner = Graph.chain(lost, name="inner")
    store = MemoryStore()
    for app, failures in (
        (Application(graph, name="loop", store=store), 2),
        (Application(Graph.chain(inner, collected), name="nested", store=store), 1),
    ):
        result = await app.run({"q": "x", "turn": 0}, id=app.name)
        if again:
            result = await app.run(id=app.name)
        with pytest.raises(ExceptionGroup) as raised:
            result.raise_for_failures()
        assert len(raised.value.exceptions) == failures


@pytest.mark.parametrize("again", [False, True])
async def test_a_vote_that_a_quorum_has_counted_is_used(again: bool):
    acts = [act("no", 0.1, "no"), act("one", 0.2), act("two", 0.3), act("late", 9.0)]
    app = Application(race(*acts, until=quorum(2), into="a"), store=MemoryStore())
    result = await app.run({"q": "x"}, id="a")
    if again:
        result = await app.run(id="a")
    assert [one.act for one in result.outcomes("a")] == ["late"]
    found = [one async for one in result.all_outcomes("a")]
    assert [(one.act, one.used) for one in found if isinstance(one, Done)] == [
        ("no", True),
        ("one", True),
        ("two", True),
    ]


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_store_tells_losers_apart_from_failures(kind: str, tmp_path: Path):
    store: Any = MemoryStore() if kind == "memory" else SQLiteStore(tmp_path / "runs.db")
    turns = 2
    lost = race(act("f", 0.1, "fails"), act("g", 0.2), into="a", name="lost")
    streams = race(act("f", 0.1, "fails"), act("g", 0.2), until=first_item(), into="a", name="item")
    collected = fan_out(
        [act("bad", 0.1, "fails"), act("good", 0.1)], into="all", on_error="collect", name="all"
    )

    @action(reads=["turn"], writes=["turn"])
    async def count(turn: int) -> int:
        return turn + 1

    graph = Graph(
        (lost, streams),
        (streams, collected),
        (collected, count),
        (count, END, when(turn=turns)),
        (count, lost),
        entry=lost,
    )
    async with Runtime(store=store) as runtime:
        await runtime.run(Application(graph, name="loop"), {"q": "x", "turn": 0}, id="a")
        unwon = race(act("f", 0.1, "fails"), act("h", 0.2, "fails"), into="a", name="unwon")
        with pytest.raises(NobodyAccepted):
            await runtime.run(Application(unwon, name="unwon"), {"q": "x"}, id="b")
        found = await store.failures(RunPath(run_id="a"))
        assert sorted((one.step, one.visit, one.lost) for one in found) == [
            ("all", 0, False),
            ("all", 1, False),
            ("item", 0, True),
            ("item", 1, True),
            ("lost", 0, True),
            ("lost", 1, True),
        ]
        assert [one.lost for one in await store.failures(RunPath(run_id="b"))] == [False, False]


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_winner_that_has_broken_off_has_beaten_nobody(kind: str, tmp_path: Path):
    """Its failure, and those before its first item, are why the race is lost."""
    store: Any = MemoryStore() if kind == "memory" else SQLiteStore(tmp_path / "runs.db")

    @action(reads=["q"], writes=["a"])
    async def tell(q: str, seconds: float, breaks: bool) -> AsyncIterator[str | Result[str]]:
        await anyio.sleep(seconds)
        yield q
        await anyio.sleep(0.5)
        if breaks:
            raise ConnectionError(q)
        yield Result(q)

    frail = tell.bind(name="frail", seconds=1, breaks=True)
    sound = tell.bind(name="sound", seconds=2, breaks=False)
    acts = [act("f", 0.1, "fails"), frail, sound]
    async with Runtime(store=store) as runtime:
        unwon = Application(race(*acts, into="a", name="race", until=first_item()))
        with pytest.raises(NobodyAccepted):
            await runtime.run(unwon, {"q": "x"}, id="unwon")
        again = Application(race(*acts, into="a", name="race", until=RESTART))
        await runtime.run(again, {"q": "x"}, id="again")
        for run_id, lost in ("unwon", False), ("again", True):
            path = RunPath(run_id=run_id)
            found = await store.failures(path)
            assert sorted((one.act, one.lost) for one in found) == [("f", lost), ("frail", lost)]
            rows = await store.failed_rows(path)
            assert sorted(row.path.act for row in rows) == ([] if lost else ["f", "frail"])
