"""Drained runs start nothing more: what runs is finished, and the next execution has the rest."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from math import inf
from typing import Any, Literal

import anyio
import pytest

from shoal import (
    Application,
    Context,
    Done,
    Each,
    Graph,
    Hedge,
    Hook,
    Limits,
    MapStates,
    MemoryStore,
    Outcome,
    Rate,
    Result,
    Retry,
    RetryLater,
    RunCancelled,
    RunHandle,
    Runtime,
    State,
    action,
    fan_out,
    first,
    first_item,
    quorum,
)
from shoal._engine.drain import Drain
from shoal.errors import BadUse, NotSteered
from shoal.events import ChildEnded, ChildHalted, ChildStarted, RunEnded, RunStarted
from shoal.stores import Store
from shoal.testing import RecordingHook, Recovery, cancel_everywhere, crash_everywhere, no_leaks
from shoal.types import Act
from shoal.watch import Control
from tests.sweeps import EVERYWHERE

pytestmark = pytest.mark.anyio


class Bodies:
    """What the bodies of actions did: when each began, and which have ended well."""

    def __init__(self) -> None:
        self.begun = list[tuple[float, str]]()
        self.done = list[str]()
        self.cut = list[str]()
        self._failed = set[str]()

    async def work(self, name: str, seconds: float = 1.0) -> None:
        self.begun.append((anyio.current_time(), name))
        try:
            await anyio.sleep(seconds)
        except BaseException:
            self.cut.append(name)
            raise
        self.done.append(name)

    def fails_once(self, name: str) -> bool:
        is_first = name not in self._failed
        self._failed.add(name)
        return is_first


@action(reads=["item"], writes=["a"])
async def one(item: int, bodies: Bodies) -> int:
    await bodies.work(f"one {item}", 1 + item / 10)
    return item


async def twice(a: int, bodies: Bodies) -> int:
    await bodies.work(f"two {a}")
    return 10 * a


async def at_second(item: int, bodies: Bodies) -> int:
    if bodies.fails_once(f"second {item}"):
        await anyio.sleep(0.3)
        raise ValueError(item)
    await bodies.work(f"second {item}")
    return 10 * item


two = action(reads=["a"], writes=["b"])(twice)
slow_two = action(reads=["a"], writes=["b"], limits=Limits(rate=Rate(1, per=2.0)))(twice)
narrow_two = action(reads=["a"], writes=["b"], limits=Limits(1))(twice)
second = action(reads=["item"], writes=["b"])(at_second)
tried = action(reads=["item"], writes=["b"], retry=Retry(2, on=ValueError, initial=3))(at_second)
pair = Graph.chain(one, two, name="pair")


@action(reads=["item"], writes=["b"])
async def later(item: int, bodies: Bodies) -> int:
    if bodies.fails_once(f"later {item}"):
        await anyio.sleep(0.3)
        raise RetryLater(2)
    await bodies.work(f"later {item}")
    return 10 * item


@action(reads=["items"], writes=["b"])
async def by_hand(items: list[int], bodies: Bodies, context: Context) -> int:
    total = 0
    async with context.fan_out(name="own", limits=Limits(2)) as group:
        for item in items[:2]:
            group.start(pair, {"item": item}, key=item)
        group.start_each(pair, over=items[2:], item="item", key=int)
        async for outcome in group:
            assert isinstance(outcome, Done)
            total += outcome.state["b"]
    return total


@action(reads=["items"], writes=["b"])
async def left_open(items: list[int], bodies: Bodies, context: Context) -> int:
    async with context.fan_out(name="own", limits=Limits(2)) as group:
        group.start_each(pair, over=items, item="item", key=int)
    return 7


@action(reads=["item"], writes=["b"])
async def streamed(item: int, bodies: Bodies) -> AsyncIterator[int | Result[int]]:
    await bodies.work(f"first of {item}", 1 + item / 10)
    yield item
    await bodies.work(f"rest of {item}")
    yield Result(item)


@action(reads=["item"], writes=["b"])
async def large(item: int, bodies: Bodies) -> int:
    await bodies.work(f"large {item}")
    if item < 3:
        raise ValueError(item)
    return item


@action(writes=["items"])
async def listed(bodies: Bodies) -> list[int]:
    await bodies.work("list")
    return [1, 2, 3]


@action(reads=["bs"], writes=["sum"])
async def add_up(bs: Mapping[int, int], bodies: Bodies) -> int:
    await bodies.work("sum")
    return sum(bs.values())


def two_of(state: State) -> list[int]:
    return [state["at"], state["at"] + 5]


async def slowly(state: State) -> AsyncIterator[int]:
    for item in state["items"]:
        await anyio.sleep(0.4)
        yield item


def grown(_: State, outcome: Outcome) -> Iterable[int]:
    return [outcome.element + 2] if outcome.element < 5 else []


def folded(state: State, outcome: Outcome) -> State:
    assert isinstance(outcome, Done)
    return state.update(b=state.get("b", 0) + outcome.state["b"])


class Tasks(MapStates):
    reads = ("items",)
    writes = ("b",)

    def action(self, state: State, inputs: Mapping[str, Any]) -> Act:
        return pair

    def states(self, state: State, inputs: Mapping[str, Any]) -> Iterator[State]:
        for item in state["items"]:
            yield State(item=item)

    def reduce(self, state: State, outcome: Outcome) -> State:
        return folded(state, outcome)


def over(act: Act, /, **options: Any) -> Any:
    settings: dict[str, Any] = {"over": "items", "item": "item", "key": int, "limits": Limits(2)}
    if "reduce" not in options:
        settings |= {"into": "bs", "take": "b"}
    return fan_out(act, **(settings | options))


PROGRAMS: dict[str, Act] = {
    "map": over(one, take="a"),
    "steps": over(pair),
    "chain": Graph.chain(listed, over(pair), add_up),
    "nested": over(
        over(pair, over=two_of, reads=["at"], into="b", name="inner"), item="at", name="outer"
    ),
    "node": Graph.chain(Graph.chain(over(pair), add_up, name="node"), name="root"),
    "reduced": over(pair, reduce=folded, reads=["items"], writes=["b"], name="fold"),
    "grown": over(pair, grow=grown, at_most=6),
    "tasks": Tasks(),
    "fed": over(pair, over=slowly, reads=["items"]),
    "rate": over(pair, limits=Limits(4, rate=Rate(1, per=2.0))),
    "action's rate": over(Graph.chain(one, slow_two)),
    "action's slots": over(Graph.chain(one, narrow_two), limits=Limits(4)),
    "retried action": over(tried),
    "retried child": over(second, each=Each(retry=Retry(2, on=ValueError, initial=3))),
    "put off": over(later),
    "put off by key": over(later, limits=Limits(2, by=lambda s: s["item"] % 2)),
    "by hand": by_hand,
    "left open": left_open,
    "first": over(large, until=first()),
    "staggered": over(large, until=first(), stagger=inf, limits=Limits(9)),
    "hedged": over(large, until=first(), stagger=Hedge(initial=0.5), limits=Limits(9)),
    "quorum": over(large, until=quorum(2, by=lambda value: value > 3)),
    "first item": over(streamed, until=first_item()),
    "first item of all": over(streamed, until=first_item(on_break="restart"), limits=Limits(9)),
}
ITEMS = [1, 2, 3, 4, 5]


async def run_whole(program: Act) -> dict[str, Any]:
    state = (await Application(program).run({"items": ITEMS}, inputs={"bodies": Bodies()})).state
    return state.to_plain()


@pytest.mark.parametrize("after", [0.2, 1.05, 2.25])
@pytest.mark.parametrize("name", PROGRAMS)
async def test_what_runs_is_finished_and_the_rest_is_left_to_the_next_execution(
    name: str, after: float
) -> None:
    program, bodies, record = PROGRAMS[name], Bodies(), RecordingHook()
    app = Application(program, name="app", store=MemoryStore(), hooks=[record])
    lives, began_at, status = 0, 0.0, "halted"
    state: Mapping[str, Any] = {}
    async with no_leaks(), Runtime() as runtime:
        while status != "succeeded":
            began_at, before = anyio.current_time(), len(bodies.begun)
            run: RunHandle[Any] = await runtime.start(
                app, {"items": ITEMS}, id="run", inputs={"bodies": bodies}
            )
            # Later and later, so that each life comes further than the one before.
            await anyio.sleep(after + lives)
            run.drain("enough")
            status, lives = await run.wait_ended(), lives + 1
            assert status in ("halted", "succeeded"), run.error
            now = began_at + after + lives - 1
            late = [one for at, one in bodies.begun[before:] if at > now and "rest" not in one]
            assert not late
            assert run.reason == ("enough" if status == "halted" else "")
            saved = await app.store.load("run")  # pyright: ignore[reportOptionalMemberAccess]
            assert saved is not None
            assert (saved.status, saved.reason) == (status, run.reason)
            assert lives < 30
            state = run.state.to_plain()
    if "first" not in name and name not in ("staggered", "hedged", "quorum"):
        assert not bodies.cut
        assert len(set(bodies.done)) == len(bodies.done), "nothing was done twice"
        assert state == await run_whole(program)
    record.assert_paired()


async def start(runtime: Runtime, app: Application[Any], bodies: Bodies) -> RunHandle[Any]:
    return await runtime.start(app, {"items": ITEMS}, id="run", inputs={"bodies": bodies})


async def test_what_has_not_started_has_no_event_and_what_stands_between_two_steps_is_halted() -> (
    None
):
    record, bodies = RecordingHook(), Bodies()
    app = Application(PROGRAMS["action's rate"], store=MemoryStore(), hooks=[record])
    async with Runtime() as runtime:
        run = await start(runtime, app, bodies)
        await anyio.sleep(2.5)  # the first is done, the second waits for the rate, two others run
        assert not run.draining
        run.drain("enough")
        run.drain("something else")
        assert run.draining
        assert await run.wait_ended() == "halted"
        assert not run.draining
        result = await run.result()
    assert (result.status, result.reason, result.questions) == ("halted", "enough", ())
    assert [event.child.key for event in record.of(ChildStarted)] == [1, 2, 3, 4]
    halted = {event.halted.path.key for event in record.of(ChildHalted)}
    ended = {event.outcome.path.key for event in record.of(ChildEnded)}
    assert (ended, halted) == ({1}, {2, 3, 4})
    ledger = result.outcomes("bs")
    assert (ledger.done, ledger.halted, ledger.total) == (1, 3, 1)
    last = record.of(RunEnded)[-1]
    assert (last.status, last.reason) == ("halted", "enough")


async def test_children_that_wait_to_start_are_known_to_be_left() -> None:
    bodies = Bodies()
    async with Runtime() as runtime:
        run = await start(runtime, Application(PROGRAMS["rate"]), bodies)
        await anyio.sleep(0.5)  # one is at work, and others wait for the rate
        run.drain()
        result = await run.result()
    assert (result.status, result.reason) == ("halted", "it was drained")
    assert [name for _, name in bodies.begun] == ["one 1"]
    assert result.outcomes("bs").left == 2  # as many as are read ahead; the others were not pulled


async def test_a_run_of_which_nothing_is_left_succeeds() -> None:
    bodies = Bodies()
    async with Runtime() as runtime:
        run = await start(runtime, Application(over(one, take="a", limits=Limits(9))), bodies)
        await anyio.sleep(0.5)
        run.drain()
        assert (await run.result()).state["bs"] == dict(zip(ITEMS, ITEMS, strict=True))
        assert run.reason == ""
        run.drain()  # does nothing any more
        assert not run.draining


async def test_a_run_that_is_drained_before_its_first_step_takes_none() -> None:
    class Slow(Hook):
        async def on_run_started(self, event: RunStarted) -> None:
            await anyio.sleep(1)

    bodies = Bodies()
    async with Runtime() as runtime:
        app = Application(PROGRAMS["chain"], store=MemoryStore(), hooks=[Slow()])
        run = await start(runtime, app, bodies)
        run.drain()
        assert await run.wait_ended() == "halted"
    assert not bodies.begun


async def test_failures_and_cancellations_count_more() -> None:
    @action(reads=["item"], writes=["b"])
    async def fails(item: int, bodies: Bodies) -> int:
        await bodies.work(f"fails {item}")
        raise ValueError(item)

    async with Runtime() as runtime:
        run = await start(runtime, Application(over(fails)), Bodies())
        await anyio.sleep(0.5)
        run.drain()
        with pytest.raises(ExceptionGroup, match="fan-out 'bs' failed"):
            await run.result()
        run = await start(runtime, Application(over(pair)), Bodies())
        await anyio.sleep(0.5)
        run.drain()
        run.cancel("now")
        with pytest.raises(RunCancelled, match="now"):
            await run.result()
        assert run.reason == "now"


async def test_a_race_that_could_still_be_won_is_not_lost() -> None:
    bodies, app = Bodies(), Application(PROGRAMS["staggered"], store=MemoryStore())
    async with Runtime() as runtime:
        run = await start(runtime, app, bodies)
        await anyio.sleep(1.5)  # the first has failed, the second will
        run.drain()
        assert await run.wait_ended() == "halted"
        result = await app.run(id="run", inputs={"bodies": bodies}, runtime=runtime)
    assert result.state["bs"] == 3


async def test_a_hook_may_drain_the_run_that_it_receives() -> None:
    drained = list[RunHandle[Any]]()

    class Enough(Hook):
        def on_child_ended(self, event: ChildEnded) -> None:
            drained[0].drain("enough")

    bodies = Bodies()
    app = Application(over(pair, limits=Limits(2)), store=MemoryStore(), hooks=[Enough()])
    async with Runtime() as runtime:
        drained.append(await start(runtime, app, bodies))
        result = await drained[0].result()
    assert (result.reason, len(result.state["bs"])) == ("enough", 2)


async def test_an_action_whose_children_are_left_halts_even_if_it_starts_more() -> None:
    began = list[int]()

    @action(reads=["items"], writes=["b"])
    async def slow(items: list[int], bodies: Bodies, context: Context) -> int:
        await bodies.work("slow")
        began.append(len(bodies.done))
        async with context.fan_out(name="own") as group:
            for item in items:
                group.start(pair, {"item": item}, key=item)
                await anyio.sleep(0.1)
            return sum([outcome.element["item"] async for outcome in group])
        return 0

    bodies, app = Bodies(), Application(slow, store=MemoryStore())
    async with Runtime() as runtime:
        run = await start(runtime, app, bodies)
        await anyio.sleep(0.5)
        run.drain()
        assert await run.wait_ended() == "halted"
        assert [name for _, name in bodies.begun] == ["slow"]
        assert (await app.run(id="run", inputs={"bodies": bodies}, runtime=runtime)).state[
            "b"
        ] == 15
    assert began == [1, 2]


async def test_open_questions_stay_known_though_their_children_do_not_come_up() -> None:
    @action(reads=["item"], writes=["b"])
    async def asks(item: int, bodies: Bodies, context: Context) -> int:
        answer = await context.ask("n", f"what for {item}?")
        await bodies.work(f"asks {item}")
        return answer

    inner = over(asks, over="parts", limits=Limits(1), name="inner", into="b")
    app = Application(over(inner, item="at", name="outer"), store=MemoryStore())
    inputs = {"bodies": Bodies()}
    async with Runtime() as runtime:
        state = {"items": [1], "parts": [1, 2]}
        before = await app.run(state, id="run", inputs=inputs, runtime=runtime)
        one_of_them, other = before.questions
        answers = {one_of_them.address: 5}
        run = await runtime.start(app, id="run", inputs=inputs, answers=answers)
        await anyio.sleep(0.5)  # the first is at work in the only place, the other has not come up
        run.drain()
        assert await run.wait_ended() == "halted"
        assert list(run.questions) == [other]
        assert await app.questions("run", runtime=runtime) == [other]
        answers = {other.address: 6}
        after = await app.run(id="run", answers=answers, inputs=inputs, runtime=runtime)
    assert after.state["bs"] == {1: {1: 5, 2: 6}}


async def test_a_breakpoint_is_not_passed_because_the_run_was_drained_at_it() -> None:
    app, bodies = Application(PROGRAMS["chain"], store=MemoryStore()), Bodies()
    inputs = {"bodies": bodies}
    async with Runtime() as runtime:
        run = await runtime.start(
            app, {"items": []}, id="run", inputs=inputs, halt_before=["add_up"]
        )
        await anyio.sleep(0.5)
        run.drain()
        assert await run.wait_ended() == "halted"
        assert run.reason == "it was drained"
        result = await app.run(id="run", inputs=inputs, halt_before=["add_up"], runtime=runtime)
        assert (result.status, result.reason, "bs" in result.state) == ("halted", "", True)


async def test_a_stepped_run_is_drained_where_it_waits_for_permission() -> None:
    app, bodies = Application(PROGRAMS["chain"], store=MemoryStore()), Bodies()
    opened = app.open({"items": []}, id="run", inputs={"bodies": bodies}, stepwise=True)
    async with no_leaks(), opened as run:
        assert await run.step() == "listed"
        run.drain("home")
        assert await run.step() is None
        assert (await run.result()).reason == "home"


def test_what_has_ended_is_not_called_when_a_run_is_drained() -> None:
    """Nor kept: a run has as many waits and groups as it lives long."""
    calls, drain = list[str](), Drain()
    drain.add(kept := lambda: calls.append("kept"))
    drain.add(ended := lambda: calls.append("ended"))
    drain.remove(ended)
    drain.remove(ended)  # again: nothing changes
    drain.begin("test")
    assert calls == ["kept"]
    drain.remove(kept)


async def test_a_reason_is_text() -> None:
    async with Runtime() as runtime:
        run = await start(runtime, Application(PROGRAMS["map"]), Bodies())
        with pytest.raises(TypeError, match="takes a string"):
            run.drain(3)  # pyright: ignore[reportArgumentType]


async def test_a_paused_run_is_drained_and_stays_paused() -> None:
    bodies, store = Bodies(), MemoryStore()
    app = Application(PROGRAMS["action's slots"], store=store)
    async with no_leaks(), Runtime() as runtime:
        run = await start(runtime, app, bodies)
        await anyio.sleep(0.5)
        await run.pause("the service is down")
        await anyio.sleep(60)  # what ran has ended, and its next steps are held
        begun = len(bodies.begun)
        run.drain("home")
        assert await run.wait_ended() == "halted"
        run = await start(runtime, app, bodies)
        await anyio.sleep(60)
        assert run.status is None
        assert len(bodies.begun) == begun
        await run.resume()
        assert (await run.result()).state["bs"] == {n: 10 * n for n in ITEMS}
    assert len(set(bodies.done)) == len(bodies.done)


async def test_another_process_drains_it_and_that_is_on_record() -> None:
    bodies, store = Bodies(), MemoryStore()
    async with Runtime(store=store, watch=True) as runtime:
        run = await start(runtime, Application(PROGRAMS["steps"]), bodies)
        await anyio.sleep(0.5)
        record = await Control(store, by="ops").drain("run", "a rollout")
        assert (record.what, record.by, record.reason) == ("drain", "ops", "a rollout")
        assert await run.wait_ended() == "halted"
        assert run.reason == "a rollout"
        with pytest.raises(NotSteered, match="no process executes run run now"):
            await Control(store).drain("run")
    assert not bodies.cut


# -- runtimes ------------------------------------------------------------------------------------


async def test_a_drained_runtime_lets_runs_start_things_for_a_while() -> None:
    store, bodies = MemoryStore(), Bodies()
    app = Application(PROGRAMS["steps"], store=store)
    kept_nowhere = Application(PROGRAMS["map"], name="nowhere")
    async with Runtime(apps=[app]) as runtime:
        run = await start(runtime, app, bodies)
        other = await runtime.start(kept_nowhere, {"items": ITEMS}, inputs={"bodies": Bodies()})
        await runtime.drain(60, starts_for=1.5)
        assert anyio.current_time() == pytest.approx(4.5, abs=0.6)
        assert (run.status, run.reason) == ("halted", "the runtime is being drained")
        assert run.is_interrupted
        assert other.status == "succeeded"  # nothing could resume it, so it goes on
    assert not bodies.cut
    saved = await store.load("run")
    assert saved is not None
    assert saved.status is None  # so it is recovered, as after a crash
    async with Runtime(apps=[app], inputs={"bodies": bodies}) as runtime:
        (recovered,) = await runtime.recover()
        assert recovered.error is None
    saved = await store.load("run")
    assert saved is not None
    assert saved.status == "succeeded"
    assert len(set(bodies.done)) == len(bodies.done) == 10


async def test_what_runs_too_long_is_cancelled_all_the_same() -> None:
    bodies, app = Bodies(), Application(PROGRAMS["steps"], store=MemoryStore())
    async with Runtime(apps=[app]) as runtime:
        run = await start(runtime, app, bodies)
        await runtime.drain(0.5, starts_for=0)
        assert anyio.current_time() == pytest.approx(0.5)
        assert (run.status, run.is_interrupted) == ("cancelled", True)


async def test_a_failure_while_a_runtime_is_drained_is_the_runs_own() -> None:
    @action(reads=["item"], writes=["b"])
    async def fails(item: int, bodies: Bodies) -> int:
        await bodies.work(f"fails {item}")
        raise ValueError(item)

    store = MemoryStore()
    async with Runtime() as runtime:
        run = await start(runtime, Application(over(fails), store=store), Bodies())
        await runtime.drain(starts_for=0)
        assert (run.status, run.is_interrupted) == ("failed", False)
    saved = await store.load("run")
    assert saved is not None
    assert saved.status == "failed"


async def test_seconds_to_start_things_are_seconds() -> None:
    async with Runtime() as runtime:
        with pytest.raises(BadUse, match=re.escape("drain(starts_for=...) takes a number of")):
            await runtime.drain(starts_for=-1)


RACES = ("first", "staggered", "hedged", "quorum", "first item", "first item of all")
SWEPT = (
    PROGRAMS if EVERYWHERE else ("nested", "fed", "action's rate", "put off", "by hand", "first")
)


@pytest.mark.sweep
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("name", SWEPT)
def test_wherever_it_is_drained_it_comes_to_the_same(
    name: str, backend: Literal["asyncio", "trio"]
) -> None:
    results = list[Any]()

    async def scenario(attempt: Any) -> None:
        bodies = Bodies()
        app = Application(PROGRAMS[name], name="app", store=MemoryStore())

        async def go_on(runtime: Runtime, run: RunHandle[Any]) -> None:
            if await run.wait_ended() == "halted":
                run = await start(runtime, app, bodies)
            assert await run.wait_ended() == "succeeded", run.error
            if name not in RACES:
                assert not bodies.cut
                assert len(set(bodies.done)) == len(bodies.done)
            results.append(run.state.to_plain())

        async def live() -> None:
            async with Runtime() as runtime:
                run = await start(runtime, app, bodies)
                try:
                    await run.wait_ended()
                except BaseException:
                    run.drain()  # at this place
                    with anyio.CancelScope(shield=True):
                        await go_on(runtime, run)
                    raise
                await go_on(runtime, run)

        await attempt(live)

    limit = None if EVERYWHERE else 12
    assert cancel_everywhere(scenario, backend=backend, limit=limit) > 5
    if name not in RACES:
        assert all(one == results[0] for one in results)


@pytest.mark.sweep
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("how", ["scope", "native"])
def test_a_drained_run_can_be_cancelled_at_any_moment(
    how: Literal["scope", "native"], backend: Literal["asyncio", "trio"]
) -> None:
    if (how, backend) == ("native", "trio"):
        return  # trio has no native cancels

    async def scenario(attempt: Any) -> None:
        app, bodies = Application(PROGRAMS["action's rate"], store=MemoryStore()), Bodies()

        async def drained() -> None:
            async with Runtime() as runtime:
                run = await start(runtime, app, bodies)
                await anyio.sleep(2.5)
                run.drain()
                await run.wait_ended()

        await attempt(drained)
        state, inputs = {"items": ITEMS}, {"bodies": bodies}
        result = await app.run(state, id="run", inputs=inputs)
        assert len(result.state["bs"]) == len(ITEMS)

    assert cancel_everywhere(scenario, how=how, backend=backend, limit=25) > 5


@pytest.mark.sweep
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_wherever_its_process_dies_while_it_is_drained_it_goes_on(
    backend: Literal["asyncio", "trio"],
) -> None:
    async def scenario(store: Store) -> Any:
        app, bodies = Application(PROGRAMS["nested"], name="app", store=store), Bodies()
        async with Runtime() as runtime:
            run = await start(runtime, app, bodies)
            await anyio.sleep(1.5)
            run.drain()
            await run.wait_ended()
            result = await app.run(id="run", inputs={"bodies": bodies}, runtime=runtime)
        return result.state.to_plain()

    def check(recovery: Recovery[Any]) -> None:
        assert recovery.result == recovery.clean

    assert crash_everywhere(scenario, check, backend=backend, limit=10) > 5
