"""Races of streaming actions: the first partial item decides, and who gave it streams on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import anyio
import pytest

from shoal import (
    Application,
    Cancelled,
    Context,
    Done,
    Failed,
    Graph,
    Hedge,
    Hook,
    Limits,
    NobodyAccepted,
    Result,
    Runtime,
    State,
    action,
    fan_out,
    first_item,
    race,
)
from shoal.errors import BadResult, DefinitionError, IncompleteStream, TooFewChildren
from shoal.events import ChildEnded, ChildName, ChildRerun, Item
from shoal.testing import RecordingHook, no_leaks
from shoal.types import Act
from tests.engine.test_cancellation import Watched, seen_runs

from .test_until import losers, saved_decisions, sleeper

pytestmark = pytest.mark.anyio

__all__ = ["seen_runs"]  # a fixture


class Items(Hook):
    """Notes the items that are told, when, and of whom; and when children end."""

    def __init__(self) -> None:
        self.told: list[tuple[float, str, object]] = []
        self.ended: dict[str, float] = {}

    def on_item(self, event: Item) -> None:
        self.told.append((anyio.current_time(), event.path.act, event.item))

    def on_child_ended(self, event: ChildEnded) -> None:
        if not event.depth:
            self.ended[event.outcome.act] = anyio.current_time()


def stream(
    name: str,
    items: Sequence[tuple[float, object]],
    *,
    cleanup: float = 0,
    starts: list[str] | None = None,
) -> Act:
    """Make an act that gives items after so many seconds each; raises what is an exception."""

    @action(writes=["text"], name=name)
    async def tell() -> AsyncIterator[Any]:
        if starts is not None:
            starts.append(name)
        given = list[object]()
        try:
            for seconds, item in items:
                await anyio.sleep(seconds)
                if isinstance(item, Exception):
                    raise item
                yield item
                given.append(item)
            yield Result(f"{name}: {given}")
        finally:
            if cleanup:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(cleanup)

    return tell


def is_content(item: object) -> bool:
    return isinstance(item, str)


def watched_race(*acts: Act, **options: Any) -> tuple[Watched, Items]:
    items = Items()
    until = first_item(
        **{name: options.pop(name) for name in ("when", "on_break") if name in options}
    )
    return Watched(race(*acts, into="out", until=until, **options), hooks=[items]), items


# -- who wins --------------------------------------------------------------------------------------


async def test_the_first_item_decides_and_its_stream_goes_on():
    slow = stream("slow", [(3, "x"), (1, "y")], cleanup=0.5)
    quick = stream("quick", [(1, "a"), (3, "b"), (3, "c")])
    watched, items = watched_race(slow, quick)
    state = await watched.go({})
    assert state["out"] == "quick: ['a', 'b', 'c']"
    assert anyio.current_time() == 7
    watched.check()
    assert items.told == [(1, "quick", "a"), (4, "quick", "b"), (7, "quick", "c")]
    assert items.ended == {"slow": 1.5, "quick": 7}, "cancelled at once, cleanup awaited"
    (outcome,) = losers(watched)
    assert isinstance(outcome, Cancelled)
    assert outcome.reason == "'quick' gave the first item of fan-out 'out'"
    assert outcome.winner == ChildName("quick", "")
    (decision,) = saved_decisions(watched)
    assert decision.winner == ChildName("quick", "")
    assert decision.winners == (ChildName("quick", ""),)


async def test_a_child_that_ends_later_may_have_begun_earlier():
    """The one whose item came first has won, however long it takes."""
    watched, _ = watched_race(stream("a", [(1, "a"), (50, "b")]), stream("b", [(1.5, "x")]))
    assert (await watched.go({}))["out"] == "a: ['a', 'b']"
    watched.check()


async def test_nobody_is_cancelled_before_the_decision_is_saved():
    cancelled = list[float]()

    @action(writes=["text"])
    async def other() -> None:
        try:
            await anyio.sleep(9)
        finally:
            cancelled.append(anyio.current_time())

    items = Items()
    watched = Watched(
        race(stream("quick", [(1, "a"), (5, "b")]), other, into="out", until=first_item()),
        hooks=[items],
        waits=lambda: anyio.sleep(0.5),
    )
    watched.guard.waits = None
    await watched.go({})
    assert items.told[0] == (1, "quick", "a"), "provisional: it is told before"
    assert cancelled == [2], "the save takes a second"
    watched.check()


async def test_only_items_that_count_decide():
    watched, items = watched_race(
        stream("a", [(1, 1), (1, 2), (9, "late")]),
        stream("b", [(1, 1), (2, "content"), (1, 5)]),
        when=is_content,
    )
    assert (await watched.go({}))["out"] == "b: [1, 'content', 5]"
    assert [item for _, _, item in items.told] == [1, 1, 2, "content", 5]
    watched.check()


async def test_of_items_in_one_moment_one_decides():
    watched, items = watched_race(*(stream(name, [(1, name), (1, name)]) for name in "abc"))
    state = await watched.go({})
    (decision,) = saved_decisions(watched)
    winner = decision.winner.act
    assert state["out"] == f"{winner}: ['{winner}', '{winner}']"
    assert [act for at, act, _ in items.told if at == 2] == [winner]
    assert sum(isinstance(outcome, Cancelled) for outcome in losers(watched)) == 2
    watched.check()


async def test_a_child_that_succeeds_without_an_item_has_won():
    watched, _ = watched_race(stream("a", [(2, "a")]), sleeper("cached", 1).bind(name="b"))
    assert (await watched.go({}))["out"] == "cached"
    watched.check()
    watched, _ = watched_race(
        stream("a", [(1, 1)]), stream("b", [(5, "b")]), when=is_content, take="text"
    )
    assert (await watched.go({}))["out"] == "a: [1]"
    watched.check()


async def test_a_child_that_succeeds_after_the_item_of_another_is_too_late():
    watched, _ = watched_race(stream("a", [(1, "a"), (3, "b")]), sleeper("b", 1), take=len)
    await watched.go({})
    (outcome,) = losers(watched)
    assert outcome.act == "b"
    watched.check()


async def test_a_failure_only_removes_a_contestant():
    watched, _ = watched_race(
        stream("a", [(0.5, ValueError())]), stream("b", [(1, "b")]), stream("c", [(2, "c")])
    )
    assert (await watched.go({}))["out"] == "b: ['b']"
    assert [type(outcome) for outcome in losers(watched)] == [Failed, Cancelled]
    watched.check()


async def test_when_nobody_gives_an_item_all_failures_are_raised():
    @action(writes=["text"])
    async def incomplete() -> AsyncIterator[str]:
        await anyio.sleep(1)
        return
        yield ""

    watched, _ = watched_race(incomplete, stream("b", [(0.5, ValueError())]))
    with pytest.raises(NobodyAccepted, match="none of its 2 children gave an item") as raised:
        await watched.go({})
    assert [type(error) for error in raised.value.exceptions] == [IncompleteStream, ValueError]
    watched.check()


async def test_a_when_that_raises_fails_its_child():
    def when(item: object) -> bool:
        return bool(item / 2)  # pyright: ignore[reportOperatorIssue, reportUnknownArgumentType]

    watched, _ = watched_race(stream("a", [(1, "text")]), stream("b", [(2, 4)]), when=when)
    assert (await watched.go({}))["out"] == "b: [4]"
    (outcome,) = losers(watched)
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, TypeError)
    watched.check()


async def test_items_that_are_emitted_or_come_from_further_below():
    @action(writes=["text"])
    async def emits(context: Context) -> str:
        await anyio.sleep(1)
        await context.emit("first")
        await anyio.sleep(3)
        return "emitted"

    deep = Graph.chain(Graph.chain(emits, name="node"), name="deep")
    watched, _ = watched_race(stream("a", [(2, "a")]), deep)
    assert (await watched.go({}))["out"] == "emitted"
    watched.check()
    mapped = fan_out(stream("each", [(1, "x"), (3, "y")]), over="n", into="text")
    watched, _ = watched_race(stream("a", [(2, "a")]), mapped)
    assert (await watched.go({"n": [1, 2]}))["out"] == ["each: ['x', 'y']"] * 2
    watched.check()


async def test_over_elements():
    @action(reads=["item"], writes=["text"])
    async def tell(item: float) -> AsyncIterator[Any]:
        await anyio.sleep(item)
        yield "began"
        await anyio.sleep(5)
        yield Result(f"text {item}")

    watched = Watched(
        fan_out(tell, over="n", key=str, into="out", until=first_item(), limits=Limits(2))
    )
    assert (await watched.go({"n": [3, 2, 1]}))["out"] == "text 2"
    assert anyio.current_time() == 7
    (loser,) = losers(watched)
    assert loser.key == "3", "the third never began"
    watched.check()


async def test_over_elements_that_are_waited_for():
    @action(reads=["item"], writes=["text"])
    async def tell(item: float) -> AsyncIterator[Any]:
        yield item
        await anyio.sleep(5)
        yield Result(f"text {item}")

    closed = list[float]()

    async def numbers(state: State) -> AsyncIterator[int]:
        try:
            for n in range(100):
                await anyio.sleep(1)
                yield n
        finally:
            closed.append(anyio.current_time())

    step = fan_out(tell, over=numbers, reads=[], into="out", until=first_item())
    watched = Watched(step)
    assert (await watched.go({}))["out"] == "text 0"
    assert not losers(watched)
    assert closed
    watched.check()


async def test_staggered_by_the_time_until_the_first_item():
    watched, items = watched_race(
        stream("a", [(9, "a")]), stream("b", [(1, "b"), (9, "c")]), stagger=0.5
    )
    assert (await watched.go({}))["out"] == "b: ['b', 'c']"
    assert items.told[0][0] == 1.5
    watched.check()
    hedged = race(
        stream("a", [(1, "a"), (50, "b")]), stream("b", [(1, "b")]),
        into="out", until=first_item(), stagger=Hedge(initial=2),
    )  # fmt: skip
    async with Runtime() as runtime:
        await Application(hedged).run(runtime=runtime)
        latencies: Any = runtime.services.hedge_statistics[hedged.definition].of().known
        assert list(latencies) == [1], "the first item counts, not the end"


# -- when the winner breaks off --------------------------------------------------------------------


async def test_a_winner_that_breaks_off_fails_the_step():
    watched, _ = watched_race(
        stream("a", [(1, "a"), (1, ValueError("broke"))]), stream("b", [(9, "b")])
    )
    with pytest.raises(NobodyAccepted, match="'a' gave the first item, and then broke") as raised:
        await watched.go({})
    (error,) = raised.value.exceptions
    assert error.args == ("broke",)
    assert error.__traceback__ is not None
    watched.check()


async def test_or_the_race_is_run_again_from_its_start_among_the_rest():
    starts = list[str]()
    watched, items = watched_race(
        stream("a", [(1, "a"), (1, ValueError())], starts=starts),
        stream("failed", [(0.5, OSError())], starts=starts),
        stream("b", [(3, "b")], starts=starts),
        stream("c", [(2, "c"), (1, "d")], starts=starts),
        on_break="restart",
    )
    state = await watched.go({})
    assert state["out"] == "c: ['c', 'd']"
    assert starts == ["a", "failed", "b", "c", "b", "c"]
    assert anyio.current_time() == 5
    assert items.told == [(1, "a", "a"), (4, "c", "c"), (5, "c", "d")]
    assert [decision.winner.act for decision in saved_decisions(watched)] == ["a", "c"]
    assert watched.run is not None
    (ledger,) = watched.run.ledgers["out"]
    assert [(type(o), o.act) for o in ledger] == [
        (Failed, "a"),
        (Failed, "failed"),
        (Cancelled, "b"),
    ]
    assert (ledger.done, ledger.failed, ledger.cancelled) == (1, 2, 1)
    watched.hook.assert_paired()
    reruns = [e.child.act for e in watched.hook.events if isinstance(e, ChildRerun)]
    assert reruns == ["b", "c"]


@pytest.mark.parametrize("chain", [False, True], ids=["an action", "a chain"])
async def test_what_runs_again_counts_its_tries_on(chain: bool):
    """Three rounds: "c" is cancelled twice, after an item that doesn't count each time."""
    hook = RecordingHook()
    last = stream("c", [(0.5, 0), (3, "c"), (1, "d")])
    acts = {
        "a": stream("a", [(1, "a"), (1, ValueError("a"))]),
        "b": stream("b", [(2, "b"), (1, ValueError("b"))]),
        "c": Graph.chain(action(name="first", executor="loop")(lambda: None), last, name="c"),
    }
    until = first_item(when=is_content, on_break="restart")
    act = race(acts["a"], acts["b"], acts["c"] if chain else last, into="out", until=until)
    async with no_leaks():
        result = await Application(act, hooks=[hook]).run()
    assert result.state["out"] == "c: [0, 'c', 'd']"
    items = [(e.item, e.attempt, e.index) for e in hook.of(Item) if e.path.act == "c"]
    assert items == [(0, 1, 0), (0, 2, 0), (0, 3, 0), ("c", 3, 1), ("d", 3, 2)]
    ends = [e.outcome for e in hook.of(ChildEnded) if e.outcome.act == "c"]
    assert [(type(end), end.attempts) for end in ends] == [
        (Cancelled, 1),
        (Cancelled, 2),
        (Done, 3),
    ]


async def test_a_child_that_had_not_started_is_tried_for_the_first_time():
    """One at a time: the first breaks off before others have begun."""
    hook = RecordingHook()
    acts = [stream("a", [(1, "a"), (1, ValueError("a"))]), stream("b", [(1, "b")])]
    act = race(*acts, into="out", until=first_item(on_break="restart"), limits=Limits(1))
    await Application(act, hooks=[hook]).run()
    assert [(e.item, e.attempt) for e in hook.of(Item)] == [("a", 1), ("b", 1)]


async def test_until_nobody_is_left():
    watched, _ = watched_race(
        *(stream(name, [(1, name), (1, ValueError(name))]) for name in "abc"), on_break="restart"
    )
    with pytest.raises(NobodyAccepted, match="none of its 3 children gave an item") as raised:
        await watched.go({})
    assert {error.args[0] for error in raised.value.exceptions} == set("abc")
    assert anyio.current_time() == 6


async def test_a_winner_that_is_cancelled_by_hand_breaks_off_too():
    for on_break, expected in (("fail", None), ("restart", "b: ['b']")):
        app = Application(
            race(
                stream("a", [(1, "a"), (9, "x")]), stream("b", [(2, "b")]),
                into="out", until=first_item(on_break=on_break),  # pyright: ignore[reportArgumentType]
            )
        )  # fmt: skip
        result = None
        try:
            async with app.open({}) as run:
                await anyio.sleep(1.5)
                assert run.cancel_child("", "by hand", act="a")
                result = await run.result()
        except NobodyAccepted as error:
            assert isinstance(error.exceptions[0], TooFewChildren)  # noqa: PT017 # both are right
        assert (result and result.state["out"]) == expected


# -- cancelled -------------------------------------------------------------------------------------


async def test_cancelled_from_outside():
    for after in (0.5, 1, 1.25, 2.5):
        watched, _ = watched_race(
            stream("a", [(1, "a"), (9, "b")], cleanup=0.25), stream("b", [(2, "b")], cleanup=0.5)
        )
        async with no_leaks():
            with anyio.move_on_after(after) as scope:
                await watched.go({})
        assert scope.cancelled_caught
        watched.check()
        assert "out" not in watched.state


# -- what is refused -------------------------------------------------------------------------------


def test_what_is_refused():
    async def when(item: object) -> bool:
        return True

    with pytest.raises(DefinitionError, match=r"first_item\(when=...\).*coroutine"):
        first_item(when=when)
    with pytest.raises(DefinitionError, match=r"on_break=...\) is 'fail' or 'restart'"):
        first_item(on_break="again")  # pyright: ignore[reportArgumentType]
    make: list[tuple[str, Callable[[], object]]] = [
        ("on_error= can't be given", lambda: race_over(on_error="collect")),
        ("grow=", lambda: race_over(grow=lambda state, outcome: [])),  # pyright: ignore[reportUnknownLambdaType]
        ("call it: until=first_item()", lambda: race_over(until=first_item)),
    ]
    for match, one in make:
        with pytest.raises(DefinitionError) as raised:
            one()
        assert match in str(raised.value)


def race_over(**options: Any) -> object:
    given: dict[str, Any] = {"until": first_item(), **options}
    return fan_out(stream("a", []), over="n", key=str, into="out", **given)


async def test_a_when_that_must_be_awaited_fails():
    async def awaited(item: object) -> bool:
        return True

    def when(item: object) -> Any:
        return awaited(item)

    watched, _ = watched_race(stream("a", [(1, "a")]), when=when)
    with pytest.raises(NobodyAccepted) as raised:
        await watched.go({})
    assert isinstance(raised.value.exceptions[0], BadResult)
