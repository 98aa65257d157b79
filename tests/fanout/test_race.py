"""Races: who wins, what becomes of the losers, in what order, and under any caller."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import anyio
import pytest
import trio
from anyio.lowlevel import checkpoint

from shoal import (
    Application,
    Breaker,
    Cancelled,
    Context,
    Done,
    Each,
    Failed,
    Graph,
    Hook,
    Limits,
    NobodyAccepted,
    Outcome,
    Retry,
    Runtime,
    State,
    StepTimeout,
    action,
    fan_out,
    first,
    quorum,
    race,
)
from shoal.errors import BadResult, DefinitionError, HookFailed, SpuriousCancel, TooFewChildren
from shoal.events import ChildEnded, ChildName, GraceExceeded, RunEnded, StateUpdated
from shoal.testing import RecordingHook, no_leaks, run_virtual
from shoal.types import Act
from tests.engine.test_cancellation import Watched, seen_runs, this_task

from .test_until import losers, saved_decisions, sleeper

pytestmark = pytest.mark.anyio

__all__ = ["seen_runs"]  # a fixture


class Times(Hook):
    """Notes when a race is won and when each child ends."""

    def __init__(self) -> None:
        self.won: list[float] = []
        self.ended: dict[str, float] = {}

    def on_state_updated(self, event: StateUpdated) -> None:
        if event.depth == 0:
            self.won.append(anyio.current_time())

    def on_child_ended(self, event: ChildEnded) -> None:
        self.ended[event.outcome.act] = anyio.current_time()


class Cleaner:
    """Makes acts that clean up for some time when they are cancelled."""

    def __init__(self) -> None:
        self.cancelled: dict[str, float] = {}
        self.cleaned: dict[str, float] = {}

    def act(self, name: str, seconds: float, cleanup: float) -> Act:
        @action(writes=["value"], name=name)
        async def clean() -> str:
            try:
                await anyio.sleep(seconds)
            except anyio.get_cancelled_exc_class():
                self.cancelled[name] = anyio.current_time()
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(cleanup)
                self.cleaned[name] = anyio.current_time()
                raise
            return name

        return clean


def raising_in_cleanup(error: BaseException, name: str = "loser") -> Act:
    @action(writes=["value"], name=name)
    async def lose() -> str:
        try:
            await anyio.sleep(99)
        finally:
            raise error

    return lose


# -- what it is ------------------------------------------------------------------------------------


async def test_it_is_a_fan_out_over_acts_until_the_first_is_accepted():
    acts = [sleeper("a", 2), sleeper("b", 1)]
    short = race(*acts, into="out", accept=str.isalpha)
    long = fan_out(acts, into="out", until=first(accept=str.isalpha))
    assert short.join == long.join
    assert repr(short) == repr(long) == "<fan_out out of a, b>"
    assert (await Watched(short).go({}))["out"] == "b"
    assert (await Watched(race(sleeper("alone", 1), into="out")).go({}))["out"] == "alone"


async def test_all_start_at_once_however_many():
    acts = [sleeper(f"a{n}", 1) for n in range(150)]
    watched = Watched(race(*acts, into="out", accept=lambda value: value == "a149"))
    await watched.go({})
    assert anyio.current_time() == 1
    watched = Watched(race(*acts[:3], into="out", accept="a2".__eq__, limits=Limits(1)))
    await watched.go({})
    assert anyio.current_time() == 1 + 3
    watched.check()


async def test_the_acts_may_be_chosen_by_the_state():
    def chosen(state: State) -> Sequence[Act]:
        return [sleeper(name, at + 1) for at, name in enumerate(state["names"])]

    watched = Watched(race(chosen, into="out", reads=["names"]))
    assert (await watched.go({"names": ["x", "y"]}))["out"] == "x"
    watched.check()
    with pytest.raises(BadResult, match="at least one act"):
        await Watched(race(chosen, into="out", reads=["names"])).go({"names": []})
    with pytest.raises(DefinitionError, match="reads="):
        race(chosen, into="out")


async def test_its_other_ends():
    acts = [sleeper("a", 3, "x"), sleeper("b", 1, "y"), sleeper("c", 2, "x")]
    assert (await Watched(race(*acts, into="out", until=quorum(2))).go({}))["out"] == "x"
    two = await Watched(race(*acts, into="out", until=first(2))).go({})
    assert two["out"] == {"b": "y", "c": "x"}

    def after_c(state: State, outcome: Outcome) -> bool:
        return outcome.act == "c"

    asked = await Watched(race(*acts, into="out", until=after_c)).go({})
    assert asked["out"] == {"b": "y", "c": "x"}

    def note(state: State, outcome: Done) -> State:
        return state.update(won=outcome.act)

    reduced = race(*acts, reduce=note, writes=["won"], name="race")
    assert (await Watched(reduced).go({}))["won"] == "b"


def test_what_is_refused():
    a, b = sleeper("a", 1), sleeper("b", 1)
    with pytest.raises(DefinitionError, match=r"race 'out': there are no contestants"):
        race(into="out")
    with pytest.raises(DefinitionError, match=r"race 'out' takes acts one by one.*race\(\*acts\)"):
        race([a, b], into="out")  # pyright: ignore[reportArgumentType]
    with pytest.raises(DefinitionError, match=r"give accept= to it: until=first\(n, acc"):
        race(a, b, into="out", until=first(2), accept=bool)
    with pytest.raises(DefinitionError, match=r"needs a name"):
        race(a, b)
    with pytest.raises(DefinitionError, match=r"two acts are named 'a'"):
        race(a, a, into="out")
    with pytest.raises(DefinitionError, match=r"'out'"):
        race(a, 7, into="out")  # pyright: ignore[reportArgumentType]
    with pytest.raises(DefinitionError, match=r"first\(3\) can't be reached by at most 2"):
        race(a, b, into="out", until=first(3))


# -- the order of a decision -----------------------------------------------------------------------


async def test_the_winner_is_seen_before_the_losers_are_cancelled_and_they_are_awaited():
    """X12."""
    cleaner, times = Cleaner(), Times()
    watched = Watched(
        race(cleaner.act("slow", 9, 0.75), sleeper("quick", 1), cleaner.act("slower", 99, 0.5),
             into="out"),
        hooks=[times],
    )  # fmt: skip
    state = await watched.go({})
    assert state["out"] == "quick"
    assert times.won == [1]
    assert cleaner.cancelled == {"slow": 1, "slower": 1}
    assert cleaner.cleaned == {"slow": 1.75, "slower": 1.5}
    assert anyio.current_time() == 1.75
    assert times.ended == {"quick": 1, "slow": 1.75, "slower": 1.75}, "recorded in one save"
    order = [
        (type(event).__name__, event.path.act)
        for event in watched.hook.events
        if isinstance(event, StateUpdated | RunEnded)
    ]
    first_loser = min(order.index(("RunEnded", name)) for name in ("slow", "slower"))
    assert order.index(("StateUpdated", watched.app.name)) < first_loser
    watched.check()


async def test_nobody_is_cancelled_before_the_decision_is_saved():
    cleaner, times = Cleaner(), Times()

    async def slowly() -> None:
        await anyio.sleep(0.5)

    watched = Watched(
        race(cleaner.act("slow", 9, 0), sleeper("quick", 1), into="out"), waits=slowly
    )
    watched.app.hooks = (*watched.app.hooks, times)
    await watched.go({})
    assert times.won[0] >= 2, "saved, then seen"
    assert cleaner.cancelled["slow"] >= times.won[0]
    watched.check()


async def test_a_child_that_ends_while_the_decision_is_saved_is_too_late():
    watched = Watched(
        race(sleeper("quick", 1), sleeper("late", 1.25), sleeper("fails", 1.25, ValueError()),
             sleeper("slow", 9), into="out"),
        waits=lambda: anyio.sleep(0.5),
    )  # fmt: skip
    watched.guard.waits = None
    assert (await watched.go({}))["out"] == "quick"
    late, failed, slow = losers(watched)
    assert isinstance(late, Done)
    assert not late.used
    assert isinstance(failed, Failed)
    assert isinstance(slow, Cancelled)
    assert slow.winner == ChildName("quick", "")
    watched.check()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_ties_have_one_winner_and_it_is_the_lowest(backend: Any):
    """X01: whatever the order in which tasks run, those that end in one batch are sorted."""

    async def main() -> str:
        acts = [sleeper(name, 1) for name in "abc"]
        watched = Watched(race(*acts, into="out"))
        state = await watched.go({})
        watched.check()
        assert len(watched.store.decisions) == 1
        assert sum(e.outcome is not None for e in watched.of(StateUpdated)) == 1
        return state["out"]

    winners = {run_virtual(main, backend=backend, seed=seed) for seed in range(100)}
    assert winners <= {"a", "b", "c"}
    assert "a" in winners


async def test_a_hook_that_fails_on_the_decision_fails_the_run_and_the_winner_stays():
    """X05."""

    class Guard(Hook):
        def on_state_updated(self, event: StateUpdated) -> None:
            if event.depth == 0:
                raise OSError

    watched = Watched(race(sleeper("a", 1), sleeper("b", 9), into="out"), hooks=[Guard()])
    with pytest.raises(HookFailed):
        await watched.go({})
    assert watched.state["out"] == "a"
    assert [type(outcome) for outcome in losers(watched)] == [Cancelled]


# -- losers ----------------------------------------------------------------------------------------


async def test_what_a_loser_raises_in_its_cleanup_never_hides_the_winner():
    """X04, R2."""
    group = ExceptionGroup("several", [OSError(1), OSError(2)])
    watched = Watched(
        race(sleeper("quick", 1), raising_in_cleanup(OSError("late")),
             raising_in_cleanup(group, "other"), into="out")
    )  # fmt: skip
    assert (await watched.go({}))["out"] == "quick"
    first_, second = losers(watched)
    assert isinstance(first_, Failed)
    assert isinstance(first_.error, OSError)
    assert isinstance(second, Failed)
    assert second.error is group
    assert group.__traceback__ is None, "kept as data"
    watched.check()


@pytest.mark.parametrize("fatal", [KeyboardInterrupt(), SystemExit(3)])
async def test_an_interrupt_in_a_losers_cleanup_goes_through(fatal: BaseException):
    watched = Watched(race(sleeper("quick", 1), raising_in_cleanup(fatal), into="out"))
    with pytest.raises(type(fatal)):
        await watched.go({})
    assert watched.state["out"] == "quick"
    watched.hook.assert_paired()


async def test_a_loser_that_swallows_its_cancellation_comes_too_late():
    """C10."""

    @action(writes=["value"])
    async def stubborn() -> str:
        with suppress(anyio.get_cancelled_exc_class()):
            await anyio.sleep(99)
        return "stubborn"

    watched = Watched(race(sleeper("quick", 1), stubborn, into="out"))
    assert (await watched.go({}))["out"] == "quick"
    (outcome,) = losers(watched)
    assert isinstance(outcome, Done)
    assert not outcome.used
    assert outcome.value == "stubborn"
    watched.check()


async def test_a_false_cancellation_only_removes_a_contestant():
    @action(writes=["value"])
    async def spurious() -> str:
        raise GeneratorExit

    watched = Watched(race(spurious, sleeper("b", 1), into="out"))
    assert (await watched.go({}))["out"] == "b"
    (outcome,) = losers(watched)
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, SpuriousCancel)
    watched.check()


async def test_the_result_has_the_losers():
    app = Application(
        race(sleeper("won", 1), sleeper("slow", 9), sleeper("failed", 0, ValueError()), into="out")
    )
    result = await app.run()
    outcomes = result.outcomes("out")
    assert (outcomes.done, outcomes.failed, outcomes.cancelled, outcomes.total) == (1, 1, 1, 3)
    assert [(type(o).__name__, o.act) for o in outcomes] == [
        ("Cancelled", "slow"),
        ("Failed", "failed"),
    ]


# -- from outside ----------------------------------------------------------------------------------


async def test_cancelled_from_outside_nobody_is_judged():
    watched = Watched(race(sleeper("a", 9), sleeper("b", 1, ValueError()), into="out"))
    with anyio.move_on_after(2) as scope:
        await watched.go({})
    assert scope.cancelled_caught
    assert [type(outcome) for outcome in losers(watched)] == [Cancelled, Failed]
    watched.check()
    assert not watched.store.decisions
    assert all(o.winner is None for o in losers(watched) if isinstance(o, Cancelled))


@pytest.mark.parametrize("after", [1.125, 1.5, 1.75, 2.125])
async def test_cancelled_while_the_decision_is_saved_it_is_decided_all_the_same(after: float):
    """Whole or not at all: the winner is saved, and so seen; then the run is cancelled."""
    cleaner = Cleaner()
    watched = Watched(
        Graph.chain(
            race(sleeper("quick", 1), cleaner.act("slow", 9, 1), into="out"), sleeper("next", 9)
        ),
        waits=lambda: anyio.sleep(0.5),
    )
    watched.guard.waits = None
    with anyio.move_on_after(after) as scope:
        await watched.go({})
    assert scope.cancelled_caught
    assert watched.state["out"] == "quick"
    (decision,) = saved_decisions(watched)
    assert decision.winner == ChildName("quick", "")
    assert cleaner.cancelled["slow"] == min(after, 2)
    watched.check()


ENDS = 1.5


async def every_time(
    around: Callable[[float, Callable[[], Awaitable[object]]], Awaitable[object]],
) -> None:
    """Cancel a race at each of its moments, and between; the caller notices each time."""
    for moment in [0, 0.5, 1, 1.25, 1.5, 1.75]:
        cleaner = Cleaner()
        inner = race(
            sleeper("quick", 1), cleaner.act("slow", 9, 0.5), raising_in_cleanup(OSError()),
            into="value",
        )  # fmt: skip
        outer = race(Graph.chain(inner, name="inner"), cleaner.act("other", 1.25, 0.25), into="out")
        watched = Watched(outer)
        begun = anyio.current_time()
        async with no_leaks():
            await around(moment, lambda watched=watched: watched.go({}))
        watched.check()
        assert anyio.current_time() - begun <= 2


async def test_in_a_scope():
    async def around(moment: float, go: Callable[[], Awaitable[object]]) -> None:
        with anyio.move_on_after(moment) as scope:
            await go()
        assert scope.cancelled_caught or moment >= ENDS
        assert not scope.cancelled_caught or moment <= ENDS

    await every_time(around)


async def test_in_fail_after():
    async def around(moment: float, go: Callable[[], Awaitable[object]]) -> None:
        with suppress(TimeoutError):
            with anyio.fail_after(moment):
                await go()
            assert moment >= ENDS

    await every_time(around)


def test_in_asyncio_timeout():
    """C02."""

    async def around(moment: float, go: Callable[[], Awaitable[object]]) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(moment):
                await go()
            assert moment >= ENDS
        assert this_task().cancelling() == 0

    run_virtual(every_time, around, backend="asyncio")


def test_in_an_asyncio_task_group():
    """C03: a sibling fails."""

    async def around(moment: float, go: Callable[[], Awaitable[object]]) -> None:
        async def fail() -> None:
            await asyncio.sleep(moment)
            raise LookupError

        async def both() -> None:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(fail())
                await go()

        task = asyncio.create_task(both())  # 3.11's group leaves its own cancel pending, if late
        await asyncio.wait([task])
        with pytest.raises(ExceptionGroup) as raised:
            task.result()
        assert [type(error) for error in raised.value.exceptions] == [LookupError]
        assert task.cancelling() == 0 or moment >= ENDS

    run_virtual(every_time, around, backend="asyncio")


def test_in_a_trio_nursery():
    async def around(moment: float, go: Callable[[], Awaitable[object]]) -> None:
        async def fail() -> None:
            await trio.sleep(moment)
            raise LookupError

        with pytest.raises(ExceptionGroup) as raised:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail)
                await go()
        assert [type(error) for error in raised.value.exceptions] == [LookupError]

    run_virtual(every_time, around, backend="trio")


def test_cancelled_natively():
    async def around(moment: float, go: Callable[[], Awaitable[object]]) -> None:
        task = asyncio.ensure_future(go())
        await asyncio.sleep(moment)
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        await asyncio.wait([task])
        if moment < ENDS:
            assert task.cancelled()

    run_virtual(every_time, around, backend="asyncio")


@pytest.mark.parametrize("fatal", [KeyboardInterrupt, SystemExit])
async def test_interrupted(fatal: type[BaseException]):
    """By whoever races, and by what is around."""

    @action(writes=["value"])
    async def interrupt() -> None:
        await anyio.sleep(0.5)
        raise fatal

    for acts in ([interrupt, sleeper("a", 9)], [sleeper("a", 0.5), interrupt]):
        watched = Watched(race(*acts, into="out"))
        with suppress(fatal):
            await watched.go({})
        watched.hook.assert_paired()

    watched = Watched(race(sleeper("a", 9), sleeper("b", 9), into="out"))
    watched.initial = State()
    async with no_leaks():
        with pytest.raises(fatal):
            async with watched.app.open(id=watched.id):
                await anyio.sleep(1)
                raise fatal
    watched.check()
    assert [type(outcome) for outcome in losers(watched)] == [Cancelled, Cancelled]


# -- inside of each other --------------------------------------------------------------------------


@action(reads=["item"], writes=["answer"])
async def careful(item: float) -> str:
    await anyio.sleep(1 + item)
    return f"careful {item}"


@action(reads=["item"], writes=["answer"])
async def hasty(item: float) -> str:
    await anyio.sleep(2 * item)
    if item == 2:
        raise ValueError(item)
    return f"hasty {item}"


async def test_a_race_for_each_element():
    each = race(careful, hasty, into="answer")
    watched = Watched(fan_out(each, over="n", key=str, into="answers", take="answer"))
    state = await watched.go({"n": [0.5, 2, 3]})
    assert state["answers"] == {"0.5": "hasty 0.5", "2": "careful 2", "3": "careful 3"}
    watched.check()


async def test_a_race_inside_a_map_inside_a_race():
    inner = race(careful, hasty, into="answer")
    mapped = fan_out(inner, over="n", key=str, into="answers", take="answer")
    whole = Graph.chain(mapped, name="whole")
    watched = Watched(race(whole, sleeper("other", 3.5), into="out", take=dict))
    state = await watched.go({"n": [0.5, 2]})
    assert state["out"]["answers"] == {"0.5": "hasty 0.5", "2": "careful 2"}
    watched.check()

    watched = Watched(race(whole, sleeper("other", 1.5), into="out", take=dict))
    state = await watched.go({"n": [0.5, 2]})
    assert state["out"] == {"value": "other"}
    watched.check()
    ends = {e.outcome.key: e.outcome for e in watched.of(ChildEnded, depth=1)}
    assert isinstance(ends["0.5"], Done)
    assert isinstance(ends["2"], Cancelled), "its race was cancelled with the loser it belongs to"


async def test_a_race_of_races():
    deep: Act = race(sleeper("a", 3), sleeper("b", 1), into="value", name="deep")
    for level in range(5):
        deep = race(deep, sleeper(f"slow{level}", 9), into="value", name=f"level{level}")
    watched = Watched(deep)
    assert (await watched.go({}))["value"] == "b"
    assert anyio.current_time() == 1
    watched.check()


async def test_under_one_slot_they_take_turns_and_none_is_lost():
    watched = Watched(
        race(sleeper("a", 1, ValueError()), sleeper("b", 1), sleeper("c", 1), into="out"),
        limits=Limits(1),
    )
    assert (await watched.go({}))["out"] == "b"
    assert anyio.current_time() == 2
    watched.check()


async def test_in_an_actions_own_fan_out():
    @action(writes=["out"])
    async def by_hand(context: Context) -> list[str]:
        found = list[str]()
        async with context.fan_out(name="races") as group:
            group.start(race(sleeper("a", 2), sleeper("b", 1), into="value"), key=1)
            group.start(race(sleeper("c", 1), sleeper("d", 2), into="value"), key=2)
            async for outcome in group:
                assert isinstance(outcome, Done)
                found.append(outcome.value)
        return sorted(found)

    watched = Watched(by_hand)
    assert (await watched.go({}))["out"] == ["b", "c"]
    watched.check()


# -- attempts and timeouts -------------------------------------------------------------------------


def flaky(name: str, *failures: Exception | None, seconds: float = 0.5) -> Act:
    """Make an act that raises these first, one after the other, then returns its name."""
    left = list(failures)

    @action(writes=["value"], name=name)
    async def try_() -> str:
        await anyio.sleep(seconds)
        failure = left.pop(0) if left else None
        if failure is not None:
            raise failure
        return name

    return try_


def retrying(attempts: int = 3, on: Any = ValueError) -> Each:
    return Each(retry=Retry(attempts, on=on, initial=1.0, jitter=0.0))


async def test_a_child_that_waits_for_another_attempt_may_still_win():
    """Though it is not in flight meanwhile, and nobody else is left."""
    watched = Watched(
        race(flaky("a", ValueError()), flaky("b", OSError()), into="out", each=retrying())
    )
    assert (await watched.go({}))["out"] == "a"
    assert anyio.current_time() == 2
    watched.check()


async def test_a_contestant_that_takes_too_long_is_out():
    watched = Watched(
        race(sleeper("a", 9), sleeper("b", 9), into="out", each=Each(timeout=1), stagger=3)
    )
    with pytest.raises(NobodyAccepted) as raised:
        await watched.go({})
    assert [type(error) for error in raised.value.exceptions] == [StepTimeout, StepTimeout]
    assert anyio.current_time() == 2, "the next starts at once"
    watched.check()


async def test_a_race_that_takes_too_long():
    cleaner = Cleaner()
    watched = Watched(race(cleaner.act("a", 9, 0.5), sleeper("b", 9), into="out", timeout=2))
    with pytest.raises(StepTimeout, match="'out'"):
        await watched.go({})
    assert cleaner.cancelled == {"a": 2}
    assert anyio.current_time() == 2.5
    assert not watched.store.decisions
    watched.check()


async def test_a_race_that_is_decided_in_time_waits_for_cleanup():
    cleaner = Cleaner()
    watched = Watched(race(cleaner.act("a", 9, 3), sleeper("b", 1), into="out", timeout=2))
    assert (await watched.go({}))["out"] == "b"
    assert anyio.current_time() == 4
    watched.check()


async def test_a_lost_race_that_is_tried_again_goes_on():
    """What was accepted counts; who failed or was refused has another chance."""
    accepted = list[str]()

    def accept(value: str) -> bool:
        accepted.append(value)
        return value != "picky" or accepted.count("picky") > 1

    acts = [flaky("good"), flaky("once", ValueError()), flaky("picky"), flaky("bad", OSError())]
    inner = race(*acts, into="value", until=first(3, accept=accept))
    each = Each(retry=Retry(2, on=NobodyAccepted, initial=1.0, jitter=0.0))
    watched = Watched(fan_out(inner, over="n", into="out", each=each))
    state = await watched.go({"n": [1]})
    assert list(state["out"][0]) == ["good", "once", "picky"]
    assert accepted.count("good") == 1, "it was not run again"
    assert anyio.current_time() == 2


async def test_a_poll_that_is_tried_again_keeps_its_votes():
    votes = [flaky("yes"), flaky("fails", ValueError()), flaky("other", ValueError())]
    inner = race(*votes, into="value", until=quorum(2, by=lambda value: value != "other"))
    each = Each(retry=Retry(2, on=NobodyAccepted, initial=1.0, jitter=0.0))
    watched = Watched(fan_out(inner, over="n", into="out", each=each, take="value"))
    assert (await watched.go({"n": [1]}))["out"] == ["yes"]


async def test_a_contestant_whose_circuit_is_open_is_skipped():
    """Another starts at once; if all are skipped, nobody can be accepted."""
    breaker = Each(breaker=Breaker(failures=1))  # each has a circuit of its own
    bad = [flaky(f"bad{n}", *[ValueError()] * 9) for n in range(2)]
    app = Application(race(*bad, into="out", each=breaker, stagger=30))
    async with Runtime() as runtime:
        with pytest.raises(NobodyAccepted):
            await app.run(runtime=runtime)
        began = anyio.current_time()
        with pytest.raises(NobodyAccepted) as raised:
            await app.run(runtime=runtime)
        assert anyio.current_time() == began
    assert isinstance(raised.value.exceptions[0], TooFewChildren)


async def test_a_loser_that_takes_long_to_clean_up_is_named():
    hook = RecordingHook()
    cleaner = Cleaner()
    app = Application(race(sleeper("a", 1), cleaner.act("b", 9, 8), into="out"), hooks=[hook])
    await app.run()
    (event,) = hook.of(GraceExceeded)
    assert event.path.act == "b"
    assert anyio.current_time() == 9


# -- without timers --------------------------------------------------------------------------------


@contextmanager
def counting(counts: dict[str, int], name: str) -> Generator[None]:
    counts[name] = counts.get(name, 0) + 1
    try:
        yield
    finally:
        counts[name] -= 1


@pytest.mark.realtime
async def test_on_real_loops():
    running: dict[str, int] = {}
    gate = anyio.Event()

    @action(writes=["value"])
    async def quick() -> str:
        await gate.wait()
        return "quick"

    @action(writes=["value"])
    async def slow() -> str:
        with counting(running, "slow"):
            gate.set()
            await anyio.sleep_forever()
        return "never"

    @action(writes=["value"])
    async def fails() -> str:
        await checkpoint()
        raise ValueError

    for _ in range(20):
        gate = anyio.Event()
        watched = Watched(race(fails, slow, quick, into="out"))
        async with no_leaks():
            assert (await watched.go({}))["out"] == "quick"
        assert running == {"slow": 0}
        watched.check()

    watched = Watched(race(fails, fails.bind(name="again"), into="out"))
    with pytest.raises(NobodyAccepted):
        await watched.go({})
    watched.check()


@pytest.mark.realtime
async def test_cancelled_on_real_loops():
    started = anyio.Event()

    @action(writes=["value"])
    async def slow() -> None:
        started.set()
        await anyio.sleep_forever()

    watched = Watched(race(slow, slow.bind(name="other"), into="out"))
    async with no_leaks(), anyio.create_task_group() as tasks:
        tasks.start_soon(watched.go, dict[str, object]())
        await started.wait()
        tasks.cancel_scope.cancel()
    watched.check()
    assert [type(outcome) for outcome in losers(watched)] == [Cancelled, Cancelled]
