"""Who leads a race by its first item: as an event, of a handle, and the items that count."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from shoal import (
    END,
    Application,
    Graph,
    Hook,
    MemoryStore,
    NobodyAccepted,
    Result,
    Retry,
    RetryLater,
    Runtime,
    action,
    fan_out,
    first_item,
    race,
    when,
)
from shoal.events import ChildEnded, ChildName, Event, Item, LeaderChanged, LeadingItems
from shoal.testing import RecordingHook
from shoal.types import Act

from .test_first_item import is_content, stream
from .test_until import sleeper

pytestmark = pytest.mark.anyio


class Reader(Hook):
    """Reads the items that count, and what it is told of the leader."""

    def __init__(self) -> None:
        self.items = LeadingItems("out")
        self.read = list[object]()
        self.led = list[str | None]()
        self.why = list[str]()

    def on_event(self, event: Event) -> None:
        if isinstance(event, LeaderChanged):
            self.led.append(None if event.leader is None else event.leader.act)
            self.why.append(event.reason)
        for news in self.items.on_event(event):
            self.read.append(news.item if isinstance(news, Item) else news.reason)


async def held(*acts: Act, hook: Reader | None = None, **options: Any) -> Reader:
    hook = Reader() if hook is None else hook
    until = first_item(
        **{name: options.pop(name) for name in ("when", "on_break") if name in options}
    )
    await Application(race(*acts, into="out", until=until, **options), hooks=[hook]).run()
    return hook


async def test_the_leader_is_published_once_and_before_the_others_are_cancelled() -> None:
    ended_at = list[int]()

    class Order(Reader):
        def on_child_ended(self, event: ChildEnded) -> None:
            ended_at.append(len(self.led))
            self.on_event(event)

    reader = await held(stream("a", [(1, "a"), (1, "b")]), stream("b", [(2, "c")]), hook=Order())
    assert (reader.led, reader.why) == (["a"], [""])
    assert ended_at == [1, 1]
    assert reader.read == ["a", "b"]
    assert reader.items.leader is not None
    assert reader.items.leader.act == "a"


async def test_items_before_the_one_that_decides_are_read_too() -> None:
    reader = await held(
        stream("a", [(0.1, 1), (1, "a")]),
        stream("b", [(0.2, 2), (0.1, 3), (0.3, "b"), (1, "c")]),
        when=is_content,
    )
    assert reader.read == [2, 3, "b", "c"]


async def test_a_contestant_that_succeeds_without_an_item_leads_as_well() -> None:
    reader = await held(sleeper("quick", 1), stream("b", [(2, "b")]))
    assert (reader.led, reader.read) == (["quick"], [])


async def test_a_leader_that_breaks_off_leads_no_more() -> None:
    reader = await held(
        stream("a", [(1, "a"), (1, ValueError("gone"))]),
        stream("b", [(1.5, "b"), (1, "c")]),
        on_break="restart",
    )
    assert reader.led == ["a", None, "b"]
    assert reader.why == ["", "'a' failed: ValueError('gone')", ""]
    assert reader.read == ["a", "'a' failed: ValueError('gone')", "b", "c"]


async def test_so_it_is_where_the_race_is_lost_with_it() -> None:
    reader = Reader()
    with pytest.raises(NobodyAccepted):
        await held(
            stream("a", [(1, "a"), (1, ValueError("gone"))]), stream("b", [(9, "b")]), hook=reader
        )
    assert reader.led == ["a", None]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ValueError("gone"), "an attempt failed: ValueError('gone')"),
        (RetryLater(1), "it begins from its start again"),
    ],
    ids=["retry", "later"],
)
async def test_items_of_an_attempt_that_failed_count_no_more(error: Exception, why: str) -> None:
    tried = list[int]()

    @action(writes=["text"], retry=Retry(2, on=ValueError, initial=1))
    async def a() -> AsyncIterator[str | Result[str]]:
        tried.append(1)
        await anyio.sleep(1)
        yield f"{len(tried)}"
        await anyio.sleep(1)
        if len(tried) == 1:
            raise error
        yield Result("done")

    reader = await held(a, stream("b", [(9, "b")]))
    assert reader.led == ["a"]
    assert reader.read == ["1", why, "2"]


async def test_items_from_below_a_contestant_count_as_its_own() -> None:
    chain = Graph.chain(sleeper("first", 0.5), stream("told", [(1, "a"), (1, "b")]), name="chain")
    reader = await held(chain, stream("b", [(9, "b")]), take="text")
    assert (reader.led, reader.read) == (["chain"], ["a", "b"])


async def test_several_races_of_one_name_are_told_apart_by_their_runs() -> None:
    @action(reads=["item"], writes=["text"])
    async def told(item: int) -> AsyncIterator[str | Result[str]]:
        await anyio.sleep(item)
        yield f"of {item}"
        yield Result("done")

    races = race(told, told.bind(name="other"), into="out", until=first_item())
    app = Application(fan_out(races, over="items", item="item", key=int, into="outs", take="out"))
    record = RecordingHook()
    app.hooks = (record,)
    await app.run({"items": [1, 2]})
    (_, second) = [event.path for event in record.of(LeaderChanged)]
    items = LeadingItems("out", of=second)
    read = [one for event in record.events for one in items.on_event(event)]
    assert [one.item for one in read if isinstance(one, Item)] == ["of 2"]


async def test_a_race_in_a_loop_is_read_again_and_again() -> None:
    @action(reads=["out"], writes=["rounds"])
    async def count(out: str, bodies: list[str]) -> int:
        bodies.append(out)
        return len(bodies)

    again = race(stream("a", [(1, "a")]), stream("b", [(2, "b")]), into="out", until=first_item())
    graph = Graph((again, count), (count, again, when(rounds=1)), (count, END), entry=again)
    reader = Reader()
    await Application(graph, hooks=[reader]).run(inputs={"bodies": []})
    assert reader.read == ["a", "a"]


async def test_a_handle_knows_who_leads_and_who_has_won() -> None:
    app = Application(
        race(
            stream("a", [(1, "a"), (1, "b")]),
            stream("b", [(9, "c")]),
            into="out",
            until=first_item(),
        )
    )
    async with Runtime() as runtime:
        run = await runtime.start(app)
        await anyio.sleep(0.5)
        assert run.winner("out") is None
        await anyio.sleep(1)
        assert run.winner("out") == ChildName("a", "")
        result = await run.result()
    assert run.winner("out") == result.outcomes("out").winner == ChildName("a", "")
    with pytest.raises(KeyError, match=r"has no step 'outt' \(it has: out\); did you mean 'out'"):
        run.winner("outt")


async def test_a_resumed_race_has_the_leader_that_it_had() -> None:
    store, reader = MemoryStore(), Reader()
    slow = stream("a", [(1, "a"), (5, "b")])
    app = Application(
        race(slow, stream("b", [(9, "c")]), into="out", until=first_item()), store=store
    )
    with anyio.move_on_after(2):
        await app.run(id="run")
    app.hooks = (reader,)
    await app.run(id="run")
    assert reader.led == ["a"]
    assert reader.read == ["a", "b"]


async def test_a_guard_that_refuses_the_leader_fails_the_run() -> None:
    class Refuses(Hook):
        def on_leader_changed(self, event: LeaderChanged) -> None:
            raise PermissionError(event.leader)

    app = Application(
        race(stream("a", [(1, "a")]), stream("b", [(9, "c")]), into="out", until=first_item()),
        hooks=[Refuses()],
    )
    with pytest.raises(Exception, match="PermissionError"):
        await app.run()
    assert anyio.current_time() == 1


async def test_watchers_see_who_leads() -> None:
    app = Application(
        race(
            stream("a", [(1, "a"), (9, "b")]),
            stream("b", [(9, "c")]),
            into="out",
            until=first_item(),
        )
    )
    async with Runtime(watch=True) as runtime:
        run = await runtime.start(app)
        await anyio.sleep(3)
        assert run.report is not None
        assert [step.leader for step in run.report.steps] == ["a"]
