"""A child that waits to start when a race is decided, or is cancelled by hand, never starts.

Whatever it waits for: a slot, a rate, its key, its turn, another attempt. It takes nothing with it,
and ends once, like everybody else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import pytest
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
    Hedge,
    Hook,
    Limits,
    Outcome,
    Rate,
    Result,
    Retry,
    RetryLater,
    RunCancelled,
    Runtime,
    State,
    StoreFailed,
    action,
    fan_out,
    first,
    first_item,
    quorum,
    race,
)
from shoal.errors import CommitInDoubt
from shoal.events import ChildEnded, ChildName, ChildStarted
from shoal.testing import RecordingHook, no_leaks
from tests.engine.test_cancellation import Keeping, Watched, seen_runs

from .test_until import losers, sleeper

pytestmark = pytest.mark.anyio

__all__ = ["seen_runs"]  # a fixture


class Bodies:
    """Acts that note when their bodies start, for which element."""

    def __init__(self) -> None:
        self.started: list[tuple[float, Any]] = []

    @property
    def elements(self) -> list[Any]:
        return [item for _, item in self.started]

    def note(self, item: Any) -> None:
        self.started.append((anyio.current_time(), item))

    def act(self, **options: Any) -> Any:
        """Sleep as long as the element says."""

        @action(reads=["item"], writes=["slept"], **options)
        async def sleep(item: float) -> float:
            self.note(item)
            await anyio.sleep(item)
            return item

        return sleep

    def stream(self, **options: Any) -> Any:
        """Give an item after as long as the element says; then go on for ten seconds."""

        @action(reads=["item"], writes=["slept"], **options)
        async def tell(item: float) -> AsyncIterator[Any]:
            self.note(item)
            await anyio.sleep(item)
            yield "first"
            await anyio.sleep(10)
            yield Result(item)

        return tell

    def untidy(self, **options: Any) -> Any:
        """Fail when it is cancelled."""

        @action(reads=["item"], writes=["slept"], **options)
        async def fail(item: float) -> None:
            self.note(item)
            try:
                await anyio.sleep(item)
            finally:
                raise OSError(item)

        return fail


def host(state: State) -> str:
    return "host"


def same(state: State) -> str:
    return "same"


TWO = Rate(1, per=50, burst=2)
WAITS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # two start, others wait: by what is given to the action, the fan-out, the application
    "for a slot of the action": ({"limits": Limits(2)}, {}, {}),
    "for a slot of the application": ({}, {}, {"limits": Limits(2)}),
    "for a rate": ({}, {"limits": Limits(9, rate=TWO)}, {}),
    "for a rate of the action": ({"limits": Limits(rate=TWO)}, {}, {}),
    "for its key": ({}, {"limits": Limits(9) & Limits(2, by=same)}, {}),
    "for the rate of its key": ({}, {"limits": Limits(9) & Limits(rate=TWO, by=same)}, {}),
    "for a place": ({}, {"limits": Limits(2)}, {}),
    "for its turn": ({}, {"stagger": 1.9}, {}),
}
UNPULLED = ("for a place", "for its turn")
"""Here no element is known before its child may start."""

ENDS: dict[str, tuple[Any, str]] = {
    "first": (first(), "decided fan-out 'out'"),
    "quorum": (quorum(1), "decided fan-out 'out'"),
    "callable": (lambda state, outcome: True, "decided fan-out 'out'"),  # pyright: ignore[reportUnknownLambdaType]
    "first item": (first_item(), "gave the first item of fan-out 'out'"),
}


def check_never_started(watched: Watched, outcomes: list[Outcome]) -> None:
    """They have ended once, as is recorded and told, and have never started."""
    started = {event.child.id for event in watched.hook.events if isinstance(event, ChildStarted)}
    received = [event.outcome for event in watched.hook.events if isinstance(event, ChildEnded)]
    for outcome in outcomes:
        assert isinstance(outcome, Cancelled)
        assert outcome.attempts == 0
        assert outcome.run_id not in started
        assert watched.store.child_ends[outcome.run_id] == 1
        assert received.count(outcome) == 1


# -- decided ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("until", ENDS)
@pytest.mark.parametrize("waits", WAITS)
async def test_when_it_is_decided(waits: str, until: str):
    of_action, of_fan_out, of_application = WAITS[waits]
    condition, reason = ENDS[until]
    bodies = Bodies()
    act = (bodies.stream if until == "first item" else bodies.act)(**of_action)
    step = fan_out(act, over="n", key=str, into="out", until=condition, take="slept", **of_fan_out)
    watched = Watched(step, **of_application)
    async with no_leaks():
        await watched.go({"n": [3, 2, 1, 1.5]})
    watched.check()
    assert bodies.elements == [3, 2]
    key = "3" if waits == "for its turn" else "2"
    assert anyio.current_time() == float(key) + (10 if until == "first item" else 0)
    outcomes = losers(watched)
    for outcome in outcomes:
        assert isinstance(outcome, Cancelled)
        assert outcome.winner == ChildName(act.name, key)
        assert outcome.reason == f"key {key!r} {reason}"
    assert len(outcomes) == (1 if waits in UNPULLED else 3)
    check_never_started(watched, outcomes[1:])


async def test_those_that_never_wait_start_one_after_the_other_until_it_is_decided():
    started = list[int]()

    @action(reads=["item"], writes=["square"])
    async def square(item: int) -> int:
        started.append(item)
        return item * item

    watched = Watched(fan_out(square, over="n", into="out", until=first(accept=lambda n: n > 8)))
    assert (await watched.go({"n": range(50)}))["out"] == 9
    assert started == [0, 1, 2, 3]
    watched.check()


@pytest.mark.parametrize("until", [*ENDS, "failure"])
async def test_while_the_decision_is_saved(until: str):
    """The time of the others comes meanwhile."""
    bodies = Bodies()
    if until == "failure":
        options: dict[str, Any] = {"on_error": "fail"}
        act = bodies.untidy(limits=Limits(rate=Rate(1, per=1.25, burst=1)))
    else:
        options = {"until": ENDS[until][0]}
        act = (bodies.stream if until == "first item" else bodies.act)(
            limits=Limits(rate=Rate(1, per=1.25, burst=1))
        )
    step = fan_out(act, over="n", key=str, into="out", take="slept", **options)
    watched = Watched(step, waits=lambda: anyio.sleep(0.5))
    watched.guard.waits = None
    if until == "failure":
        with pytest.raises(ExceptionGroup):
            await watched.go({"n": [1, 9, 8]})
    else:
        await watched.go({"n": [1, 9, 8]})
    assert bodies.elements == [1]
    watched.check()
    check_never_started(watched, [one for one in losers(watched) if isinstance(one, Cancelled)])


async def test_what_was_granted_in_the_moment_of_the_decision_is_given_back():
    bodies = Bodies()
    rate = Limits(9, rate=Rate(1, per=1000, burst=2))
    act = bodies.act(limits=Limits(1))
    app = Application(fan_out(act, over="n", key=str, into="out", until=first(), limits=rate))
    async with Runtime() as runtime:
        await runtime.run(app, {"n": [3, 9]})  # 9 has the slot and a unit, and never starts
        await runtime.run(app, {"n": [1]})
        assert bodies.started == [(0, 3), (3, 1)]


async def test_a_nested_fan_out():
    """It ends with its parent, which has lost: none of its children starts any more."""
    bodies = Bodies()
    for quick in (1.0, 2.0):
        bodies.started.clear()
        inner = fan_out(bodies.untidy(limits=Limits(2)), over="n", into="slept", name="inner")
        step = race(inner, sleeper("quick", quick), into="out", take=lambda state: "")
        watched = Watched(step)
        start = anyio.current_time()
        await watched.go({"n": [9, 8, 7, 6, 5]})
        assert anyio.current_time() == start + quick
        assert bodies.elements == [9, 8]
        watched.check()


async def test_a_race_inside_a_map_inside_a_race():
    bodies = Bodies()
    act = bodies.act(limits=Limits(2))
    inner = fan_out(act, over=lambda state: [state["m"], 9], reads=["m"], until=first(), into="x")
    outer = fan_out(inner, over="n", item="m", into="y")
    step = race(outer, sleeper("quick", 2.5), into="out", take=lambda state: "")
    watched = Watched(step)
    await watched.go({"n": [1, 2, 3, 4]})
    assert anyio.current_time() == 2.5
    assert all(at < 2.5 for at, _ in bodies.started)
    watched.check()


async def test_nothing_more_is_pulled():
    pulled = list[float]()

    async def source() -> AsyncIterator[float]:
        for item in (2.0, 1.0, 9.0, 9.0):
            pulled.append(item)
            yield item
            await checkpoint()

    bodies = Bodies()
    step = fan_out(
        bodies.stream(),
        over=lambda state: source(),  # pyright: ignore[reportUnknownLambdaType]
        reads=[],
        into="out",
        take="slept",
        until=first_item(),
        limits=Limits(2),
    )
    watched = Watched(step)
    await watched.go({})
    assert pulled == bodies.elements == [2, 1]
    watched.check()


# -- another attempt -------------------------------------------------------------------------------


def failing_once(bodies: Bodies, **options: Any) -> Any:
    failed = set[float]()

    @action(reads=["item"], writes=["slept"], **options)
    async def fail_once(item: float) -> float:
        bodies.note(item)
        await anyio.sleep(item)
        if item < 2 and item not in failed:
            failed.add(item)
            raise ValueError(item)
        return item

    return fail_once


@pytest.mark.parametrize("where", ["action", "child"])
async def test_a_child_that_waits_for_another_attempt(where: str):
    retry = Retry(3, on=ValueError, initial=3.0, jitter=0.0)
    bodies = Bodies()
    act = failing_once(bodies, **({"retry": retry} if where == "action" else {}))
    each = Each(retry=retry) if where == "child" else None
    watched = Watched(fan_out(act, over="n", key=str, into="out", until=first(), each=each))
    await watched.go({"n": [2, 1]})
    assert anyio.current_time() == 2
    assert bodies.elements == [2, 1]
    (outcome,) = losers(watched)
    assert isinstance(outcome, Cancelled)
    assert outcome.attempts == 1
    watched.check()


@pytest.mark.parametrize("where", ["action", "child"])
async def test_a_child_that_waits_for_another_attempt_and_is_cancelled_by_hand(where: str):
    retry = Retry(3, on=ValueError, initial=5.0, jitter=0.0)
    bodies = Bodies()
    act = failing_once(bodies, **({"retry": retry} if where == "action" else {}))
    each = Each(retry=retry) if where == "child" else None
    step = fan_out(act, over="n", key=str, into="out", each=each, limits=Limits(1))
    watched = Watched(step)
    watched.initial = State({"n": [1, 9]})
    async with watched.app.open({"n": [1, 9]}, id=watched.id) as run:
        await anyio.sleep(3)  # it has stepped aside for the other
        assert run.cancel_child("1", "no more")
        await run.result()
    assert bodies.started == [(0, 1), (1, 9)]
    assert watched.state["out"] == {"9": 9}
    watched.check()


def waiting_twice(what: str, log: list[str]) -> Any:
    """Make an act whose body starts in the moment 0, and again after a wait of a second."""
    retry = Retry(3, on=ValueError, initial=1.0, jitter=0.0)
    slot = Limits(1) if what == "for a slot" else None

    @action(reads=["item"], writes=["slept"], retry=retry if what == "of the action" else None)
    async def body(item: str) -> str:
        log.append(item)
        await checkpoint()
        if log.count(item) > 1:
            return item
        raise RetryLater(1.0) if what == "as it asked" else ValueError

    @action(reads=["item"], writes=["free"])
    async def free(item: str) -> None:
        await anyio.sleep(0.5 if item == "this" else 0)

    @action(reads=["item"], writes=["slept"], limits=slot)
    async def limited(item: str) -> None:
        log.append(item)
        await anyio.sleep(1)

    return Graph.chain(free, limited, name="both") if slot else body


@pytest.mark.parametrize("what", ["of the action", "of the child", "as it asked", "for a slot"])
@pytest.mark.parametrize("how", ["alone", "with all"])
async def test_cancelled_in_the_moment_in_which_its_wait_is_over(what: str, how: str):
    """On asyncio it is too late then to interrupt the wait, which goes on; but no further."""
    retry = Retry(3, on=ValueError, initial=1.0, jitter=0.0)
    each = Each(retry=retry) if what == "of the child" else None
    for turns in range(6):
        log = list[str]()
        act = waiting_twice(what, log)
        step = fan_out(act, over="n", key=str, into="out", each=each, take="slept")
        watched = Watched(step)
        given = {"n": ["other", "this"] if what == "for a slot" else ["this"]}
        watched.initial = State(given)
        opened = list[Any]()

        async def cancel(
            opened: list[Any] = opened, log: list[str] = log, turns: int = turns
        ) -> None:
            await anyio.sleep(1)
            for _ in range(turns):
                await checkpoint()
            log.append("cancelled")
            if how == "alone":
                opened[0].cancel_child("this", "in the very moment")
            else:
                opened[0].cancel("in the very moment")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cancel)
            await checkpoint()
            async with watched.app.open(given, id=watched.id) as run:
                opened.append(run)
                with suppress(RunCancelled):
                    await run.result()
        watched.check()
        assert "this" not in log[log.index("cancelled") :]


async def test_those_that_never_started_make_their_first_attempt_when_the_step_is_tried_again():
    bodies = Bodies()
    act = failing_once(bodies, limits=Limits(1))
    inner = fan_out(act, over="m", key=str, into="slept")
    retry = Each(retry=Retry(3, on=ValueError, initial=1.0, jitter=0.0))
    step = fan_out(inner, over=lambda state: [0], reads=["m"], into="out", each=retry, take="slept")
    watched = Watched(step)
    await watched.go({"m": [1, 3]})
    assert bodies.elements == [1, 1, 3]
    ended = [e.outcome for e in watched.of(ChildEnded, 1) if isinstance(e.outcome, Done)]
    assert {outcome.key: outcome.attempts for outcome in ended} == {"1": 2, "3": 1}


# -- cancelled by hand -----------------------------------------------------------------------------


async def by_hand(watched: Watched, given: dict[str, Any], act: Callable[[Any], Awaitable[None]]):
    """Run it, and let ``act`` do what it likes with the opened run."""
    watched.initial = State(given)
    async with watched.app.open(given, id=watched.id) as run:
        await act(run)
        await run.result()
    watched.check()


@pytest.mark.parametrize("waits", [name for name in WAITS if name not in UNPULLED])
async def test_one_that_waits_and_is_cancelled_by_hand(waits: str):
    of_action, of_fan_out, of_application = WAITS[waits]
    bodies = Bodies()
    step = fan_out(bodies.act(**of_action), over="n", key=str, into="out", **of_fan_out)
    watched = Watched(step, **of_application)

    async def cancel(run: Any) -> None:
        await anyio.sleep(1)
        assert run.cancel_child("4", "not this one")
        assert not run.cancel_child("4", "it has ended")

    async with no_leaks():
        await by_hand(watched, {"n": [3, 2, 4, 1]}, cancel)
    assert bodies.elements == [3, 2, 1]
    assert bodies.started[-1][0] == (50 if "rate" in waits else 2), "its turn is the next one's"
    assert list(watched.state["out"]) == ["3", "2", "1"]
    outcomes = losers(watched)
    check_never_started(watched, outcomes)
    assert [(one.key, getattr(one, "reason", "")) for one in outcomes] == [("4", "not this one")]
    (ended,) = [e for e in watched.of(ChildEnded) if e.outcome.key == "4"]
    assert (ended.outcome.elapsed, getattr(ended.outcome, "winner", "")) == (1, None)


async def test_all_that_wait_and_are_cancelled_by_hand():
    """What one gives back, another is granted, and gives back in turn."""
    bodies = Bodies()
    act = bodies.act(limits=Limits(1))
    watched = Watched(fan_out(act, over="n", key=str, into="out", ahead=3))

    async def cancel(run: Any) -> None:
        await anyio.sleep(1)
        for key in ("2", "3", "4", "5"):
            assert run.cancel_child(key, "not these")

    await by_hand(watched, {"n": [5, 2, 3, 4]}, cancel)
    assert bodies.elements == [5]
    assert watched.state["out"] == {}
    assert anyio.current_time() == 1


async def test_in_the_moment_in_which_it_was_let_in():
    """It has its slot, and no body yet."""
    bodies = Bodies()
    act = bodies.act(limits=Limits(1))
    handle = list[Any]()

    class Canceller(Hook):
        def on_child_ended(self, event: ChildEnded) -> None:
            if event.outcome.key == "1":
                handle[0].cancel_child("2", "now")

    watched = Watched(
        fan_out(act, over="n", key=str, into="out", until=first(3)), hooks=[Canceller()]
    )

    async def keep(run: Any) -> None:
        handle.append(run)

    await by_hand(watched, {"n": [1, 2, 3, 4]}, keep)
    assert bodies.started == [(0, 1), (1, 3), (4, 4)]
    check_never_started(watched, losers(watched))


async def test_a_hook_that_receives_its_start():
    bodies = Bodies()
    handle = list[Any]()

    class Canceller(Hook):
        def on_child_started(self, event: ChildStarted) -> None:
            if event.child.key == "2":
                assert handle[0].cancel_child("2", "seen")

    watched = Watched(fan_out(bodies.act(), over="n", key=str, into="out"), hooks=[Canceller()])

    async def keep(run: Any) -> None:
        handle.append(run)

    await by_hand(watched, {"n": [1, 2, 3]}, keep)
    assert bodies.elements == [1, 3]
    (outcome,) = losers(watched)
    assert getattr(outcome, "reason", "") == "seen"


@pytest.mark.parametrize("stagger", [1.0, float("inf"), Hedge(percentile=90, initial=1.0)])
async def test_a_contestant_whose_turn_has_not_come(stagger: Any):
    """The turn of the others comes no sooner."""
    started = list[tuple[float, str]]()

    def act(name: str, seconds: float) -> Any:
        @action(writes=["value"], name=name)
        async def answer() -> str:
            started.append((anyio.current_time(), name))
            await anyio.sleep(seconds)
            if name == "a":
                raise OSError
            return name

        return answer

    watched = Watched(race(act("a", 5), act("b", 1), act("c", 3), into="out", stagger=stagger))

    async def cancel(run: Any) -> None:
        await anyio.sleep(0.5)
        assert run.cancel_child("", "not b", act="b")
        assert not run.cancel_child("", "twice", act="b")

    await by_hand(watched, {}, cancel)
    assert watched.state["out"] == "c"
    assert started == [(0, "a"), (5 if stagger == float("inf") else 1, "c")]
    check_never_started(watched, [one for one in losers(watched) if one.act == "b"])


async def test_the_only_other_contestant():
    """A race that nobody can win any more is lost as soon as that is known."""
    watched = Watched(race(sleeper("a", 9, OSError()), sleeper("b", 1), into="out", stagger=20))

    async def cancel(run: Any) -> None:
        await anyio.sleep(0.5)
        assert run.cancel_child("", "not b", act="b")

    with pytest.raises(ExceptionGroup) as raised:
        await by_hand(watched, {}, cancel)
    assert anyio.current_time() == 9
    assert raised.value.subgroup(OSError) is not None
    watched.check()


async def test_a_loser_has_lost_whatever_is_done_by_hand_afterwards():
    @action(writes=["value"])
    async def slow() -> None:
        try:
            await anyio.sleep(9)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(5)

    watched = Watched(race(slow, sleeper("quick", 1), into="out"))

    async def cancel(run: Any) -> None:
        await anyio.sleep(3)
        assert run.cancel_child("", "too late to matter", act="slow")

    await by_hand(watched, {}, cancel)
    (outcome,) = losers(watched)
    assert getattr(outcome, "winner", None) == ChildName("quick", "")


@pytest.mark.parametrize("whose", ["run", "group"])
async def test_children_that_an_action_has_started(whose: str):
    bodies = Bodies()
    sleep = bodies.act(limits=Limits(1))
    handle = list[Any]()

    @action(writes=["out"])
    async def start(context: Context) -> dict[str, str]:
        async with context.fan_out(name="own", limits=Limits(3)) as group:
            for item in (4.0, 3.0, 2.0, 1.0):
                group.start(sleep, {"item": item}, key=str(item))
            await anyio.sleep(0.5)
            of = handle[0] if whose == "run" else group
            assert of.cancel_child("3.0", "it waits for its slot")
            assert of.cancel_child("1.0", "it waits for a place")
            assert not of.cancel_child("1.0", "twice")
            return {str(one.key): type(one).__name__ async for one in group}

    watched = Watched(start)

    async def keep(run: Any) -> None:
        handle.append(run)

    await by_hand(watched, {}, keep)
    assert bodies.started == [(0, 4), (4, 2)]
    ends = {"4.0": "Done", "2.0": "Done", "3.0": "Cancelled", "1.0": "Cancelled"}
    assert watched.state["out"] == ends
    received = [event.outcome for event in watched.of(ChildEnded)]
    assert sorted(str(outcome.key) for outcome in received) == sorted(ends)
    check_never_started(watched, [one for one in received if isinstance(one, Cancelled)])


async def test_a_probe_that_never_starts_leaves_its_circuit_to_the_next():
    bodies = Bodies()

    @action(reads=["item"], writes=["slept"], limits=Limits(1))
    async def visit(item: float) -> None:
        bodies.note(item)
        await anyio.sleep(item)
        if item == 1:
            raise OSError

    breaker = Breaker(failures=1, cool_down=1, by=host)
    app = Application(
        fan_out(
            visit, over="n", key=str, on_error="ignore", name="visits", each=Each(breaker=breaker)
        )
    )
    async with Runtime() as runtime, anyio.create_task_group() as tasks:
        await runtime.run(app, {"n": [1]})  # it is open now
        await anyio.sleep(2)
        tasks.start_soon(runtime.run, Application(visit), {"item": 9})  # has the slot
        await anyio.sleep(1)
        async with app.open({"n": [2]}, runtime=runtime) as run:
            await anyio.sleep(1)
            assert run.cancel_child("2", "the probe")
            await run.result()
        await runtime.run(app, {"n": [3]})
    assert bodies.elements == [1, 9, 3]


# -- all of them -----------------------------------------------------------------------------------


@pytest.mark.parametrize("waits", WAITS)
async def test_when_the_run_is_cancelled(waits: str):
    """Also where children fail in that very moment, and their slots go to others."""
    of_action, of_fan_out, of_application = WAITS[waits]
    bodies = Bodies()
    step = fan_out(
        bodies.untidy(**of_action), over="n", key=str, into="out", on_error="collect", **of_fan_out
    )
    watched = Watched(step, **of_application)

    async def cancel(run: Any) -> None:
        await anyio.sleep(2)
        run.cancel("enough")

    async with no_leaks():
        with pytest.raises(RunCancelled, match="enough"):
            await by_hand(watched, {"n": range(3, 12)}, cancel)
    watched.check()
    assert bodies.elements == [3, 4]


async def test_when_the_run_is_cancelled_while_a_result_is_saved():
    bodies = Bodies()
    act = bodies.act()
    step = fan_out(act, over="n", key=str, into="out", limits=Limits(2))
    for after in (1.0, 1.25, 1.5, 1.75, 2.0):
        bodies.started.clear()
        watched = Watched(step, waits=lambda: anyio.sleep(0.5))
        watched.guard.waits = None
        start = anyio.current_time()

        async def cancel(run: Any, after: float = after) -> None:
            await anyio.sleep(after)
            run.cancel("enough")

        with pytest.raises(RunCancelled, match="enough"):
            await by_hand(watched, {"n": [1, 9, 8, 7]}, cancel)
        watched.check()
        late = [item for at, item in bodies.started if at > start + after]
        assert not late


async def test_while_a_result_is_saved_that_decides_nothing():
    """Others go on to start."""
    bodies = Bodies()
    act = bodies.act(limits=Limits(2))
    step = fan_out(act, over="n", key=str, into="out", until=first(4))
    watched = Watched(step, waits=lambda: anyio.sleep(2))
    watched.guard.waits = None
    await watched.go({"n": [1, 2, 3, 4]})
    began = bodies.started[0][0]
    assert [(at - began, item) for at, item in bodies.started] == [(0, 1), (0, 2), (1, 3), (2, 4)]
    watched.check()


@pytest.mark.parametrize("how", ["alone", "with all", "by a winner"])
async def test_on_what_others_give_back_that_are_cancelled(how: str):
    """Their parent is busy, for a result is being saved: it can't stop it."""
    bodies = Bodies()
    inner = fan_out(
        bodies.untidy(limits=Limits(3)),
        over="m",
        limits=Limits(9, rate=Rate(5, per=1, burst=1)),
        on_error="collect",
        name="inner",
    )
    outer = fan_out(inner, over="n", key=str, into="outer", take=len, name="outer")
    step = race(outer, sleeper("quick", 4.25), into="out", take=len)
    hook = RecordingHook()
    app = Application(step if how == "by a winner" else outer, hooks=[hook])
    app.store = Keeping(lambda: anyio.sleep(0.25))
    async with no_leaks(), app.open({"n": ["x"], "m": [4, *range(90, 98)]}) as run:
        await anyio.sleep(4.75)
        if how == "alone":
            assert run.cancel_child("x", "enough")
        elif how == "with all":
            run.cancel("enough")
        with suppress(RunCancelled):
            await run.result()
    assert bodies.elements == [4, 90, 91, 92]
    received = [event for event in hook.events if isinstance(event, ChildStarted)]
    assert [event.element for event in received if event.step == "inner"] == bodies.elements


async def test_of_a_nested_fan_out_whose_parent_is_cancelled_alone():
    bodies = Bodies()
    act = bodies.untidy(limits=Limits(2))
    inner = fan_out(act, over=lambda state: range(4, 9), reads=[], into="slept", name="inner")
    watched = Watched(fan_out(inner, over="n", key=str, into="out", take=len))

    async def cancel(run: Any) -> None:
        await anyio.sleep(1)
        assert run.cancel_child("x", "with all of its own")

    await by_hand(watched, {"n": ["x"]}, cancel)
    assert bodies.elements == [4, 5]


# -- what could not be saved -----------------------------------------------------------------------


@pytest.mark.parametrize("hangs", [False, True])
@pytest.mark.parametrize("breaker", [None, Breaker(failures=1)])
async def test_a_child_that_is_passed_over_and_not_saved_is_published_as_cancelled(
    hangs: bool, breaker: Breaker | None
):
    """Nobody is told that a child was skipped, or deferred, of whom the store knows nothing."""

    class Failing(Keeping):
        def save(self, batch: Any) -> Any:
            if any(child.status is None for child in (*batch.applied, *batch.unapplied)):
                return anyio.sleep_forever() if hangs else self.refuse()
            return super().save(batch)

        async def refuse(self) -> None:
            raise OSError("no room")

    @action(reads=["item"], writes=["out"])
    async def fail(item: int) -> int:
        raise ValueError(item)

    hook = RecordingHook()
    act = fan_out(
        fail, over="n", key=str, into="outs", take="out", on_error="collect", name="f",
        each=Each(timeout=99, breaker=breaker), limits=Limits(1),
    )  # fmt: skip
    known = {"1": 1} if breaker is None else {}
    app = Application(act, hooks=[hook])
    app.store = Failing()
    with pytest.raises((StoreFailed, CommitInDoubt)):
        await app.run({"n": [1, 2, 3], "outs": known})
    ended = [e.outcome for e in hook.of(ChildEnded) if not isinstance(e.outcome, Failed)]
    assert ended, "nobody was passed over"
    reasons = [one.reason for one in ended if isinstance(one, Cancelled)]
    assert len(reasons) == len(ended)
    assert set(reasons) == {"its outcome could not be saved"}
    hook.assert_paired()
