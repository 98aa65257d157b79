"""What still runs long after it was cancelled: named, awaited; threads left behind, slots kept."""

from __future__ import annotations

import inspect
import logging
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import anyio
import anyio.from_thread
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal import (
    Action,
    Application,
    Cancelled,
    Context,
    Each,
    Failed,
    Graph,
    Hook,
    Limits,
    MemoryStore,
    Retry,
    Runtime,
    State,
    StepTimeout,
    action,
    fan_out,
)
from shoal._concurrency import watchdog as _watch
from shoal._concurrency.watchdog import SPARE, Part, Place, Watchdog, standing
from shoal._concurrency.worker_threads import Threads
from shoal.errors import DefinitionError
from shoal.events import ChildEnded, GraceExceeded, RunEnded, StepEnded
from shoal.testing import RecordingHook, no_leaks

pytestmark = pytest.mark.anyio


def stubborn(seconds: float, **options: Any) -> Any:
    """An action whose cleanup takes its time."""

    @action(reads=["n"], writes=["out"], name="stubborn", **options)
    async def act(n: int) -> int:
        try:
            await anyio.sleep(100)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(seconds)  # HERE
        return n

    return act


def line_of(function: Any, mark: str) -> str:
    """The place of the line that has a mark as its comment."""
    lines, first = inspect.getsourcelines(function)
    (at,) = (first + i for i, line in enumerate(lines) if line.rstrip().endswith(f"# {mark}"))
    return f"{__file__}:{at}, in "


HERE = line_of(stubborn, "HERE")


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


# -- coroutines ------------------------------------------------------------------------------------


async def test_a_run_that_still_runs_after_the_grace_is_named_and_awaited(
    caplog: pytest.LogCaptureFixture,
):
    hook = RecordingHook()
    many = fan_out(stubborn(8), over="ns", item="n", into="outs", key=str)
    async with no_leaks():
        with anyio.move_on_after(1):
            await Application(many, hooks=[hook]).run({"ns": [7]}, id="r")
    assert anyio.current_time() == 9, "it is awaited to its end"
    (event,) = hook.of(GraceExceeded)
    assert event.place == f"{HERE}act"
    assert (event.step, event.seconds, event.abandoned) == ("stubborn", 5, False)
    assert (event.what, event.name) == ("action", "")
    assert event.path.key == "7"
    (message,) = warnings_of(caplog)
    assert message == (
        f"action 'stubborn' of run {event.run_id} (key '7' of 'outs') was cancelled 5 s ago and "
        f"still runs, at {HERE}act; it is waited for"
    )
    at = hook.events.index(event)
    assert {type(e).__name__ for e in hook.events[at + 1 :]} == {
        "StepEnded",
        "RunEnded",
        "ChildEnded",
    }
    hook.assert_paired()


async def test_a_run_that_ends_in_time_is_not_named(caplog: pytest.LogCaptureFixture):
    hook = RecordingHook()
    many = fan_out(stubborn(4.9), over="ns", item="n", into="outs")
    with anyio.move_on_after(1):
        await Application(many, hooks=[hook]).run({"ns": range(20)})
    assert not hook.of(GraceExceeded)
    assert not warnings_of(caplog)


async def test_each_is_named_once_however_it_was_cancelled(caplog: pytest.LogCaptureFixture):
    """Its own timeout, the child's, the step's, the caller: all in the course of one cleanup."""
    hook = RecordingHook()
    act = stubborn(30, timeout=1)
    many = fan_out(act, over="ns", item="n", into="outs", each=Each(timeout=2), timeout=3)
    with anyio.move_on_after(4):
        await Application(many, hooks=[hook]).run({"ns": [1, 2, 3]})
    assert anyio.current_time() == 31
    assert sorted(e.path.key for e in hook.of(GraceExceeded)) == [0, 1, 2]
    assert len(warnings_of(caplog)) == 3


async def test_a_hold_during_the_cleanup_has_it_watched_no_second_time():
    """The time that has run out does not begin once more when the run goes on."""
    hook = RecordingHook()
    many = fan_out(
        stubborn(20), over="ns", item="n", into="outs", each=Each(timeout=1), on_error="ignore"
    )
    async with Runtime() as runtime:
        run = await Application(many, hooks=[hook]).start({"ns": [1]}, runtime=runtime)
        await anyio.sleep(3)
        execution = run._run.config.execution  # pyright: ignore[reportPrivateUsage]
        watchdog = execution.services.watchdog
        watched = watchdog._watched  # pyright: ignore[reportPrivateUsage]
        execution.hold_up("test")
        execution.let_go("test")
        assert watchdog._watched == watched  # pyright: ignore[reportPrivateUsage]
        await run.result()
        assert not watchdog._watched  # pyright: ignore[reportPrivateUsage]
        assert not watchdog._named  # pyright: ignore[reportPrivateUsage]
    assert len(hook.of(GraceExceeded)) == 1


async def test_how_long_is_up_to_the_runtime():
    hook = RecordingHook()
    async with Runtime(grace=0.5) as runtime:
        with anyio.move_on_after(1):
            await runtime.run(Application(stubborn(1), hooks=[hook]), {"n": 1})
    assert [e.seconds for e in hook.of(GraceExceeded)] == [0.5]
    for wrong in (0, -1, "5", float("inf")):
        with pytest.raises(DefinitionError, match="grace="):
            Runtime(grace=wrong)  # pyright: ignore[reportArgumentType]


Cancels = Callable[[], Any]


@action(reads=["n"], writes=["out"])
async def failing(n: int) -> int:
    await anyio.sleep(1)
    raise ValueError(n)


@action()
async def by_hand(context: Context) -> None:
    async with context.fan_out(name="f") as group:
        group.start(stubborn(8), {"n": 1}, key="k")
        await anyio.sleep(1)
        group.cancel("by hand")


@action()
async def by_scope(context: Context) -> None:
    with anyio.move_on_after(1):
        async with context.fan_out(name="f") as group:
            group.start(stubborn(8), {"n": 1}, key="k")


@action()
async def by_raising(context: Context) -> None:
    async with context.fan_out(name="f") as group:
        group.start(stubborn(8), {"n": 1}, key="k")
        await anyio.sleep(1)
        raise ValueError


@action()
async def own_children(context: Context) -> None:
    async with context.fan_out(name="f") as group:
        group.start(Graph.chain(stubborn(8), name="deep"), {"n": 1}, key="k")


def fan(act: Any, **options: Any) -> Any:
    return fan_out(act, over=lambda state: [1], reads=[], item="n", name="f", **options)


CANCELS: dict[str, Cancels] = {
    "a timeout of the action": lambda: fan(stubborn(8, timeout=1)),
    "a timeout of the child": lambda: fan(stubborn(8), each=Each(timeout=1)),
    "a timeout of the step": lambda: fan(stubborn(8), timeout=1),
    "a sibling": lambda: fan_out(
        [stubborn(8), failing], over=lambda s: [1], reads=[], item="n", name="f"
    ),
    "the action, by hand": lambda: by_hand,
    "the action, by a scope": lambda: by_scope,
    "the action, by raising": lambda: by_raising,
    "a timeout two levels up": lambda: fan(Graph.chain(fan(stubborn(8)), name="g"), timeout=1),
    "a timeout above a node": lambda: fan(
        Graph.chain(Graph.chain(stubborn(8), name="node"), name="g"), each=Each(timeout=1)
    ),
    "a timeout above an action's children": lambda: fan(own_children, each=Each(timeout=1)),
    "a timeout of an action with children": lambda: own_children.__class__(
        own_children.function, reads=frozenset(), writes=frozenset(), name="own", timeout=1
    ),
}


@pytest.mark.sweep
@pytest.mark.parametrize("cancels", CANCELS)
async def test_whatever_cancels_it_it_is_named(cancels: str):
    hook = RecordingHook()
    async with no_leaks():
        with anyio.move_on_after(20):
            with suppress(StepTimeout, ValueError, ExceptionGroup):
                await Application(CANCELS[cancels](), hooks=[hook]).run()
    assert anyio.current_time() == 9
    (event,) = hook.of(GraceExceeded)
    assert event.place == f"{HERE}act"
    assert event.step == "stubborn"
    hook.assert_paired()


async def test_leaving_a_runtime_names_the_runs_that_hold_it_up():
    hook = RecordingHook()
    with pytest.raises(LookupError):
        async with Runtime() as runtime, anyio.create_task_group() as tasks:

            async def run() -> None:
                await runtime.run(Application(stubborn(8), hooks=[hook]), {"n": 1})

            tasks.start_soon(run)
            await anyio.sleep(1)
            tasks.cancel_scope.cancel()
        raise LookupError
    assert [e.step for e in hook.of(GraceExceeded)] == ["stubborn"]


async def test_where_it_stands_is_said_of_its_own_code_however_deep():
    hook = RecordingHook()

    async def deeper() -> None:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(8)  # DEEP

    @action()
    async def act() -> None:
        try:
            await anyio.sleep(100)
        finally:
            await deeper()

    with anyio.move_on_after(1):
        await Application(act, hooks=[hook]).run()
    (event,) = hook.of(GraceExceeded)
    place = line_of(test_where_it_stands_is_said_of_its_own_code_however_deep, "DEEP")
    assert event.place == f"{place}deeper"


async def test_a_source_that_does_not_end_is_named(caplog: pytest.LogCaptureFixture):
    async def elements(state: State) -> AsyncIterator[int]:
        try:
            await anyio.sleep(100)
            yield 1
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(4.5)
                await anyio.sleep(4.5)

    many = fan_out(stubborn(0), over=elements, reads=[], item="n", name="f")
    hook = RecordingHook()
    with anyio.move_on_after(1):
        await Application(many, hooks=[hook]).run(id="r")
    (event,) = hook.of(GraceExceeded)
    assert (event.run_id, event.step) == ("r", "f")


async def test_a_hook_that_fails_at_an_event_ends_the_run_and_hides_nothing():
    class Guard(Hook):
        def on_grace_exceeded(self, event: GraceExceeded) -> None:
            raise ValueError

    hook = RecordingHook()
    with anyio.move_on_after(1) as scope:
        await Application(stubborn(8), hooks=[Guard(), hook]).run({"n": 1})
    assert scope.cancelled_caught
    hook.assert_paired()


async def test_an_opened_run_reads_of_it():
    async with Application(stubborn(8)).open({"n": 1}) as run:
        await anyio.sleep(1)
        run.cancel("enough")
        names = [type(event).__name__ async for event in run]
    assert names == ["RunStarted", "StepStarted", "GraceExceeded", "StepEnded", "RunEnded"]


class StuckStore:
    """Needs eight seconds for the save of an update."""

    def __init__(self) -> None:
        self._kept = MemoryStore()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kept, name)

    def save(self, batch: Any) -> Any:
        self._kept.save(batch)
        return self.wait() if batch.updates else None

    async def wait(self) -> None:
        await anyio.sleep(8)  # SAVING


async def test_a_save_or_a_hook_that_does_not_end_is_named_and_not_the_action(
    caplog: pytest.LogCaptureFixture,
):
    """Both are shielded, so the action's cancellation doesn't reach them."""

    class Slow(Hook):
        async def on_step_ended(self, event: StepEnded) -> None:
            await anyio.sleep(8)  # HOOKED

    @action(writes=["out"])
    async def quick() -> int:
        return 1

    hook = RecordingHook()
    stuck: Any = StuckStore()
    for hooks, store in (([hook], stuck), ([Slow(), hook], MemoryStore())):
        with anyio.move_on_after(1):
            await Application(quick, hooks=hooks, store=store).run(id="r")
    saving, hooked = hook.of(GraceExceeded)
    assert (saving.what, saving.name, saving.step) == ("store", "StuckStore", "quick")
    assert saving.place == f"{line_of(StuckStore, 'SAVING')}wait"
    assert (hooked.what, hooked.name, hooked.step) == ("hook", "Slow", "")  # between steps
    first, second = warnings_of(caplog)
    assert first == (
        "run r was cancelled 5 s ago and still runs, in a call of its store StuckStore during step "
        f"'quick', at {saving.place}; it is waited for"
    )
    assert "still runs, in a call of its hook Slow, at " in second


# -- the watchdog by itself ------------------------------------------------------------------------


class Alarms:
    """A clock and its alarms, set by hand."""

    def __init__(self) -> None:
        self.now = 0.0
        self.set: list[tuple[float, Callable[[], None]]] = []
        self.count = 0

    def __call__(self, at: float, call: Callable[[], None]) -> Callable[[], object]:
        self.count += 1
        alarm = at, call
        self.set.append(alarm)
        return lambda: self.set.remove(alarm)

    def move(self, seconds: float) -> None:
        until = self.now + seconds
        while self.set and min(self.set)[0] <= until:
            due = min(self.set, key=lambda alarm: alarm[0])
            self.set.remove(due)
            self.now = max(self.now, due[0])
            due[1]()
        self.now = until


async def report(run: object, place: Place, seconds: float) -> None:
    raise NotImplementedError


async def forever() -> None:
    await anyio.sleep_forever()


class Beginning:
    """As good as a coroutine that stands at its beginning."""

    cr_frame = inspect.currentframe()
    cr_await = None


BEGINNING = Beginning()


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("watch"), st.floats(0, 20)),
            st.tuples(st.just("forget"), st.integers(0, 5)),
            st.tuples(st.just("pass"), st.floats(0, 8)),
        ),
        max_size=60,
    )
)
@settings(deadline=None)
def test_the_watchdog_names_exactly_what_has_not_ended(steps: list[tuple[str, Any]]):
    """Against a list that is looked through at every moment."""
    alarms, named = Alarms(), list[object]()

    def start(work: Any) -> None:
        named.append(work.args[0])

    dog = Watchdog(lambda: alarms.now, 5.0, alarms, start, report)
    watched: list[tuple[float, Any, object]] = []
    due: list[tuple[float, object]] = []
    expected: list[object] = []

    def collect() -> None:
        for entry in sorted((e for e in due if e[0] <= alarms.now), key=lambda e: e[0]):
            due.remove(entry)
            expected.append(entry[1])

    for what, value in steps:
        if what == "watch":
            run = object()
            at = alarms.now + value
            watched.append((at, dog.watch(partial(tuple, [Part(run, BEGINNING)]), at), run))
            due.append((at + 5, run))
        elif what == "forget" and value < len(watched):
            _, entry, run = watched.pop(value)
            dog.forget(entry)
            due = [one for one in due if one[1] is not run]
        elif what == "pass":
            alarms.move(value)
            collect()
        assert len(alarms.set) <= bool(watched), "one alarm, and none if nothing is watched"
        assert not due or min(at for at, _ in alarms.set) <= min(at for at, _ in due)
        assert len(dog._entries) <= SPARE + 2 * len(watched) + 1  # pyright: ignore[reportPrivateUsage]
    assert set(map(id, named)) == set(map(id, expected))
    assert len(named) == len(expected)


def test_an_alarm_is_not_set_anew_for_each_timeout():
    alarms = Alarms()
    dog = Watchdog(lambda: alarms.now, 5.0, alarms, lambda work: None, report)
    first = dog.watch(tuple, 30)
    for _ in range(1000):
        alarms.move(0.01)
        dog.forget(dog.watch(tuple, alarms.now + 30))
    assert alarms.count == 1
    dog.forget(first)
    assert not alarms.set


def test_what_has_ended_stands_nowhere():
    coroutine = forever()
    coroutine.close()
    assert not list(standing(Part(None, coroutine)))
    assert not list(standing(Part(None, object())))


class Pause:
    """Suspends whatever awaits it."""

    def __await__(self) -> Generator[None]:
        yield


def test_a_function_may_be_the_life_of_a_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_watch, "_lives", {})

    @_watch.is_life_of("walker")
    async def walk(walker: object) -> None:
        await Pause()

    run = object()
    coroutine = walk(run)
    coroutine.send(None)
    ((found, place),) = standing(Part(None, coroutine))
    coroutine.close()
    assert found is run
    assert place.where.endswith("in __await__")


# -- threads ---------------------------------------------------------------------------------------


class Gate:
    """Threads that wait until they are let go; how many are inside."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.inside = 0
        self.most = 0
        self.results: list[object] = []
        self.lock = threading.Lock()

    def wait(self, result: object = None) -> object:
        with self.lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        assert self.opened.wait(10)
        with self.lock:
            self.inside -= 1
            self.results.append(result)
        return result


@pytest.fixture
def gate() -> Any:
    gate = Gate()
    yield gate
    gate.opened.set()
    deadline = time.monotonic() + 5
    while gate.inside and time.monotonic() < deadline:
        time.sleep(0.001)
    assert not gate.inside


def waiting(gate: Gate, **options: Any) -> Any:
    @action(reads=["n"], writes=["out"], name="waiting", **options)
    def act(n: int) -> object:
        return gate.wait(n)

    return act


@asynccontextmanager
async def cancelled_inside(gate: Gate) -> AsyncGenerator[None]:
    """Around what is cancelled as soon as its thread waits at the gate."""
    already = gate.inside
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:

            async def cancel() -> None:
                await settled(lambda: gate.inside > already)
                scope.cancel()

            tasks.start_soon(cancel)
            yield
    assert scope.cancelled_caught


async def settled(condition: Callable[[], object]) -> None:
    with anyio.fail_after(5):
        while not condition():
            await anyio.sleep(0.001)


@pytest.mark.realtime
async def test_a_thread_is_left_behind_at_once_where_its_action_says_so(
    gate: Gate, caplog: pytest.LogCaptureFixture
):
    hook = RecordingHook()
    app = Application(waiting(gate, abandon=True), hooks=[hook])
    async with cancelled_inside(gate):
        await app.run({"n": 1})
    assert gate.inside == 1
    (event,) = hook.of(GraceExceeded)
    assert event.abandoned
    assert event.seconds == 0
    assert ".py:" in event.place, "wherever: in the lock it waits for, say"
    assert not warnings_of(caplog), "it was asked for"
    hook.assert_paired()


@pytest.mark.realtime
async def test_a_thread_is_left_behind_after_the_grace(
    gate: Gate, caplog: pytest.LogCaptureFixture
):
    hook = RecordingHook()
    began = anyio.current_time()
    async with Runtime(grace=0.1) as runtime, cancelled_inside(gate):
        await runtime.run(Application(waiting(gate), hooks=[hook]), {"n": 1})
    assert anyio.current_time() - began >= 0.1
    assert gate.inside == 1
    (event,) = hook.of(GraceExceeded)
    assert (event.abandoned, event.seconds) == (True, 0.1)
    (message,) = warnings_of(caplog)
    assert "; it is left behind" in message
    assert hook.of(RunEnded)[0].status == "cancelled"


@pytest.mark.realtime
async def test_a_thread_that_ends_within_the_grace_is_awaited(gate: Gate):
    hook = RecordingHook()
    async with Runtime(grace=30) as runtime, anyio.create_task_group() as tasks:

        async def release() -> None:
            await settled(lambda: gate.inside)
            scope.cancel()
            await anyio.sleep(0.05)
            gate.opened.set()

        tasks.start_soon(release)
        with anyio.CancelScope() as scope:
            await runtime.run(Application(waiting(gate), hooks=[hook]), {"n": 1})
    assert gate.results == [1], "it is over when the run is"
    assert not hook.of(GraceExceeded)


@pytest.mark.realtime
@pytest.mark.parametrize("where", ["action", "runtime"])
async def test_the_slots_of_a_thread_that_was_left_behind_are_kept_until_it_returns(
    gate: Gate, where: str
):
    limits = Limits(1)
    act = waiting(gate, abandon=True, timeout=0.15, limits=limits if where == "action" else None)
    hook = RecordingHook()
    async with Runtime(limits=limits if where == "runtime" else None) as runtime:
        app = Application(act, hooks=[hook])
        with pytest.raises(StepTimeout):
            await runtime.run(app, {"n": 1})
        assert gate.inside == 1
        with anyio.move_on_after(0.1) as scope:
            await runtime.run(app, {"n": 2})
        assert scope.cancelled_caught
        assert gate.most == 1, "the second has never begun"
        gate.opened.set()
        assert (await runtime.run(app, {"n": 3})).state["out"] == 3
        limiters = runtime._admission.limiters.by_owner.values()  # pyright: ignore[reportPrivateUsage]
        found = [one for named in limiters for it in named.values() for one in it.statistics()]
        assert not any(one.in_use for one in found)
    assert gate.results == [1, 3], "the first one's result is dropped"


@pytest.mark.realtime
async def test_a_thread_that_was_left_behind_counts_until_it_returns(gate: Gate):
    act = waiting(gate, abandon=True, timeout=0.15)
    async with Runtime(threads=2) as runtime:
        many = Application(fan_out(act, over="ns", item="n", name="f", on_error="ignore"))
        result = await runtime.run(many, {"ns": [1, 2]})
        assert result.outcomes("f").failed == 2
        with anyio.move_on_after(0.1):
            await runtime.run(many, {"ns": [3, 4]})
        assert gate.most == 2
        gate.opened.set()
        result = await runtime.run(many, {"ns": [5, 6]})
        assert result.outcomes("f").done == 2
        await settled(lambda: not gate.inside)
    assert sorted(map(str, gate.results)) == ["1", "2", "5", "6"]


@pytest.mark.realtime
async def test_outcomes_say_that_a_thread_was_left_behind(gate: Gate):
    act = waiting(gate, abandon=True, timeout=0.15)
    many = fan_out(act, over="ns", item="n", name="f", on_error="ignore")
    hook = RecordingHook()
    app = Application(many, hooks=[hook], store=MemoryStore())
    for _ in range(2):  # the second time, that is what is remembered
        result = await app.run({"ns": [1]}, id="x")
        read = [one async for one in result.all_outcomes("f")]
        for outcome in (*result.outcomes("f"), *read):
            assert isinstance(outcome, Failed)
            assert isinstance(outcome.error, StepTimeout)
            assert outcome.abandoned
    patient = fan_out(waiting(gate), over="ns", item="n", name="f")
    async with Runtime(grace=0.05) as runtime, cancelled_inside(gate):
        await runtime.run(Application(patient, hooks=[hook]), {"ns": [2]})
    ended = hook.of(ChildEnded)[-1].outcome
    assert isinstance(ended, Cancelled)
    assert ended.abandoned


@pytest.mark.realtime
async def test_a_thread_that_has_timed_out_is_tried_again_in_another(gate: Gate):
    attempts: list[int] = []

    @action(writes=["out"], abandon=True, timeout=0.15, retry=Retry(2, on=StepTimeout, initial=0))
    def act(context: Context) -> object:
        attempts.append(context.attempt)
        return gate.wait() if context.attempt == 1 else "done"

    assert (await Application(act).run()).state["out"] == "done"
    assert attempts == [1, 2]


@pytest.mark.realtime
async def test_a_function_that_has_not_begun_never_does(gate: Gate):
    """Cancelled while it waits for a thread, or for its turn: nothing is left behind."""
    begun: list[int] = []

    @action(reads=["n"])
    def act(n: int) -> None:
        begun.append(n)

    hook = RecordingHook()
    async with Runtime(threads=1, grace=0.2) as runtime, anyio.create_task_group() as tasks:
        tasks.start_soon(runtime.run, Application(waiting(gate)), {"n": 1})
        await settled(lambda: gate.inside)
        with anyio.move_on_after(0.02):
            await runtime.run(Application(act, hooks=[hook]), {"n": 1})
        for _ in range(50):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await runtime.run(Application(act, hooks=[hook]), {"n": 2})
        gate.opened.set()
    assert not begun
    assert not hook.of(GraceExceeded)


@pytest.mark.realtime
async def test_a_function_whose_turn_comes_too_late_is_not_called():
    called: list[int] = []
    thread = Threads(5.0, lambda call: None).turn()
    assert not thread.is_running, "it hasn't begun, and now never will"
    thread._work(called.append, {"object": 1})  # pyright: ignore[reportPrivateUsage]
    assert not called
    left: list[None] = []
    thread.leave(lambda: left.append(None))
    assert left


@pytest.mark.realtime
async def test_a_cooperative_thread_notices_its_cancellation():
    hook, stopped = RecordingHook(), threading.Event()

    @action(timeout=0.15)
    def act() -> None:
        try:
            while True:
                anyio.from_thread.check_cancelled()
                time.sleep(0.001)
        finally:
            stopped.set()

    async with no_leaks(threads=False):
        with pytest.raises(StepTimeout):
            await Application(act, hooks=[hook]).run()
    assert stopped.is_set()
    assert not hook.of(GraceExceeded)


@pytest.mark.realtime
async def test_what_a_thread_raises_too_late_is_dropped(gate: Gate):
    @action(abandon=True, timeout=0.15)
    def act() -> None:
        gate.wait()
        raise LookupError

    async with Runtime() as runtime:
        with pytest.raises(StepTimeout):
            await runtime.run(Application(act))
        gate.opened.set()
        await settled(lambda: not gate.inside)
        await anyio.sleep(0.02)  # an error that nobody retrieves would be reported now


@pytest.mark.realtime
async def test_nothing_waits_for_a_thread_that_was_left_behind(gate: Gate):
    """Neither the run, nor the runtime's block, nor the loop when it is closed."""
    async with no_leaks(threads=False):
        async with Runtime() as runtime:
            act = waiting(gate, abandon=True)
            async with cancelled_inside(gate):
                await runtime.run(Application(act), {"n": 1})
        assert gate.inside == 1


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_loop_ends_before_a_thread_that_was_left_behind(gate: Gate, backend: str):
    async def main() -> None:
        async with cancelled_inside(gate):
            await Application(waiting(gate, abandon=True, limits=Limits(1))).run({"n": 1})

    anyio.run(main, backend=backend)
    assert gate.inside == 1
    gate.opened.set()
    deadline = time.monotonic() + 5
    while gate.inside and time.monotonic() < deadline:
        time.sleep(0.001)
    assert gate.results == [1]


@pytest.mark.realtime
async def test_the_native_cancellation_of_its_own_task_waits_for_the_thread(gate: Gate):
    asyncio = pytest.importorskip("asyncio")
    if "asyncio" not in anyio.get_cancelled_exc_class().__module__:
        pytest.skip("trio has no native cancellation")
    task: Any = None

    @action()
    async def first() -> None:
        nonlocal task
        task = asyncio.current_task()

    async with Runtime(grace=0.02) as runtime, anyio.create_task_group() as tasks:

        async def interfere() -> None:
            await settled(lambda: gate.inside)
            for _ in range(5):
                task.cancel()
                await anyio.sleep(0.02)
            gate.opened.set()

        tasks.start_soon(interfere)
        graph = Graph.chain(first, waiting(gate))
        with pytest.raises(Exception, match="was not cancelled"):
            await runtime.run(Application(graph), {"n": 1})
        assert gate.results == [1], "nobody cancelled it, so it is waited for, whatever the grace"


def test_only_a_thread_can_be_left_behind():
    with pytest.raises(DefinitionError, match="only a function in a worker can be abandoned"):

        @action(abandon=True)
        async def act() -> None: ...

    with pytest.raises(DefinitionError, match="only a function in a worker can be abandoned"):
        action(abandon=True, executor="loop", name="f")(lambda: None)

    class Thread(Action):
        abandon = True
        timeout = 3
        retry = Retry(2, on=StepTimeout)

        def run(self) -> None: ...

    assert Thread()._function.abandon  # pyright: ignore[reportPrivateUsage]
    assert Thread()._function.timeout == 3  # pyright: ignore[reportPrivateUsage]
    assert Thread()._function.retry is Thread.retry  # pyright: ignore[reportPrivateUsage]
