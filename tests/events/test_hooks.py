"""Hooks: told in order, in pairs, after the fact; guards stop a run, observers never hurt it."""

# pyright: reportPrivateUsage=false
# A store is given to an application from inside, until there is a public way.

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, cast

import anyio
import anyio.lowlevel
import pytest

from shoal import Application, Done, Failed, Graph, Hook, action, fan_out
from shoal._engine import publish as _publish
from shoal._engine import run as _run
from shoal._engine import walk as _walk
from shoal.errors import DefinitionError, HookFailed
from shoal.events import (
    ChildEnded,
    ChildStarted,
    Event,
    RunEnded,
    RunStarted,
    StateUpdated,
    StepEnded,
    StepStarted,
    Update,
)
from shoal.stores._protocol import Batch, NullStore
from shoal.testing import RecordingHook
from tests.engine.test_cancellation import cancellation

pytestmark = pytest.mark.anyio

METHODS = {
    "on_run_started": RunStarted,
    "on_step_started": StepStarted,
    "on_state_updated": StateUpdated,
    "on_child_started": ChildStarted,
    "on_child_ended": ChildEnded,
    "on_step_ended": StepEnded,
    "on_run_ended": RunEnded,
}
OF_CHILDREN = [
    "on_run_started",
    "on_step_started",
    "on_state_updated",
    "on_step_ended",
    "on_run_ended",
]
POINTS = [(method, 0) for method in METHODS] + [(method, 1) for method in OF_CHILDREN]


# -- programs and hooks --------------------------------------------------------------------------


@action(reads=["item"], writes=["twice"])
async def double(item: int) -> int:
    await anyio.sleep(item)
    return 2 * item


@action(reads=["twice"], writes=["out"])
async def negate(twice: int) -> int:
    return -twice


@action(reads=["item"], writes=["out"])
async def fail_at_two(item: int) -> int:
    await anyio.sleep(item)
    if item == 2:
        raise LookupError("two")
    return item


pair = Graph.chain(double, negate, name="pair")
pairs = fan_out(pair, over="items", into="out")


class Loud(Hook):
    """Calls ``say`` with every event."""

    def __init__(self, say: Callable[[Event], Any]) -> None:
        self._say = say

    def on_run_started(self, event: RunStarted) -> Any:
        return self._say(event)

    def on_step_started(self, event: StepStarted) -> Any:
        return self._say(event)

    def on_state_updated(self, event: StateUpdated) -> Any:
        return self._say(event)

    def on_child_started(self, event: ChildStarted) -> Any:
        return self._say(event)

    def on_child_ended(self, event: ChildEnded) -> Any:
        return self._say(event)

    def on_step_ended(self, event: StepEnded) -> Any:
        return self._say(event)

    def on_run_ended(self, event: RunEnded) -> Any:
        return self._say(event)


class LoudObserver(Loud):
    observer = True


class SavedUpdates(NullStore):
    """A store that keeps the numbers of what it saved."""

    def __init__(self) -> None:
        self.saved: set[tuple[str, int]] = set()

    def save(self, batch: Batch) -> None:
        self.saved.update((batch.path.id, update.number) for update in batch.updates)
        for child in batch.applied:
            if child.last_update is not None:
                self.saved.add((child.path.id, child.last_update.number))


def raising_at(method: str, depth: int, log: list[Event] | None = None) -> Callable[[Event], None]:
    def say(event: Event) -> None:
        if isinstance(event, METHODS[method]) and event.depth == depth:
            if log is not None:
                log.append(event)
            raise LookupError(f"at {method}")

    return say


def brief(event: Event) -> str:
    match event:
        case StateUpdated(update=Update(number=number)):
            what = f"updated {number}"
        case StepStarted(step=step):
            what = f"{step} started"
        case StepEnded(step=step, status=status):
            what = f"{step} {status}"
        case ChildStarted(child=child):
            what = f"child {child.key} started"
        case ChildEnded(outcome=outcome):
            what = f"child {outcome.key} {type(outcome).__name__.lower()}"
        case RunEnded(status=status):
            what = f"run {status}"
        case _:
            what = "run started"
    return f"{event.path.key!s:>2} {what}".strip()


# -- what is told --------------------------------------------------------------------------------


async def test_a_run_of_two_steps_is_published_from_start_to_end():
    hook = RecordingHook()
    result = await Application(pair, hooks=[hook]).run({"item": 1}, id="root")
    assert [brief(event) for event in hook.events] == [
        "run started",
        "double started",
        "updated 1",
        "double succeeded",
        "negate started",
        "updated 2",
        "negate succeeded",
        "run succeeded",
    ]
    assert {event.run_id for event in hook.events} == {"root"} == {result.run_id}
    assert {(event.parent_id, event.depth) for event in hook.events} == {(None, 0)}
    hook.assert_paired()


async def test_cause_precedes_effect():
    hook = RecordingHook()
    await Application(pairs, hooks=[hook]).run({"items": [2, 1]}, id="root")
    received = [brief(event) for event in hook.events]
    assert received[:3] == ["run started", "out started", "updated 1"]
    assert received[-2:] == ["out succeeded", "run succeeded"]
    for key, number in (("1", 2), ("0", 3)):
        ending = [
            f"{key} negate started",
            f"{key} updated 2",
            f"{key} negate succeeded",
            f"{key} run succeeded",
            f"updated {number}",
            f"child {key} done",
        ]
        begin = received.index(ending[1])
        assert received[begin : begin + 5] == ending[1:]
        assert received.index(ending[0]) < begin
        starting = [
            f"child {key} started",
            f"{key} run started",
            f"{key} double started",
            f"{key} updated 1",
            f"{key} double succeeded",
        ]
        positions = [received.index(line) for line in starting]
        assert positions == sorted(positions)
        assert positions[-1] < begin
    hook.assert_paired()


async def test_a_batch_is_published_child_by_child():
    @action(reads=["item"], writes=["out"])
    async def quick(item: int) -> int:
        return item

    hook = RecordingHook()
    await Application(fan_out(quick, over="items", into="out"), hooks=[hook]).run({"items": [1, 2]})
    received = [brief(event) for event in hook.events if not isinstance(event, StepStarted)]
    assert received[received.index("0 updated 1") : -2] == [
        "0 updated 1",
        "0 quick succeeded",
        "0 run succeeded",
        "updated 2",
        "child 0 done",
        "1 updated 1",
        "1 quick succeeded",
        "1 run succeeded",
        "updated 3",
        "child 1 done",
    ]


async def test_updates_name_the_outcome_they_apply():
    hook = RecordingHook()
    await Application(pairs, hooks=[hook]).run({"items": [1]})
    applied = [event.outcome for event in hook.of(StateUpdated) if event.depth == 0]
    assert applied[0] is None, "the collection begins"
    assert isinstance(applied[1], Done)
    assert (applied[1].key, applied[1].value, applied[1].state["out"]) == (0, -2, -2)
    (ended,) = hook.of(ChildEnded)
    assert ended.outcome == applied[1]


async def test_hooks_are_inherited_by_children_and_grandchildren():
    hook = RecordingHook()
    inner = fan_out(pair, over="item", item="item", into="inner", take="out", key=str)
    outer = fan_out(inner, over="groups", item="item", into="outer", take="inner")
    result = await Application(outer, hooks=[hook]).run({"groups": [[1, 2], [3]]}, id="root")
    assert result.state["outer"] == [{"1": -2, "2": -4}, {"3": -6}]
    started = hook.of(RunStarted)
    assert sorted(event.depth for event in started) == [0, 1, 1, 2, 2, 2]
    parents = {event.run_id: event.parent_id for event in started}
    for event in started:
        if event.depth:
            assert event.parent_id is not None
            assert (parents[event.parent_id] is None) == (event.depth == 1)
    hook.assert_paired()


async def test_hooks_are_notified_one_after_the_other_in_their_order():
    log: list[tuple[str, str]] = []

    def named(name: str) -> Loud:
        async def say(event: Event) -> None:
            log.append((name, f"{type(event).__name__} begins"))
            await anyio.sleep(1)
            log.append((name, f"{type(event).__name__} ends"))

        return Loud(say)

    await Application(double, hooks=[named("a"), named("b")]).run({"item": 1})
    kinds = ["RunStarted", "StepStarted", "StateUpdated", "StepEnded", "RunEnded"]
    assert log == [
        (name, f"{kind} {when}")
        for kind in kinds
        for name in ("a", "b")
        for when in ("begins", "ends")
    ]


async def test_methods_may_be_plain_or_not():
    log: list[str] = []

    class Mixed(Hook):
        def on_run_started(self, event: RunStarted) -> None:
            log.append("plain")

        async def on_run_ended(self, event: RunEnded) -> None:
            await anyio.lowlevel.checkpoint()
            log.append("async")

    await Application(double, hooks=[Mixed()]).run({"item": 1})
    assert log == ["plain", "async"]


async def test_events_cannot_be_changed():
    hook = RecordingHook()
    await Application(pairs, hooks=[hook]).run({"items": [1]})
    for event in hook.events:
        changed: Any = event
        with pytest.raises(dataclasses.FrozenInstanceError):
            changed.path = None


def _maker(kind: type) -> str:
    """Name what makes values of that kind: their class, or a function for those of each child."""
    made_by = {StateUpdated: "make_state_updated", Done: "make_done"}
    name = made_by.get(kind, kind.__name__)
    (home,) = (one for one in (_walk, _publish, _run) if hasattr(one, name))
    return f"{home.__name__}.{name}"


@pytest.mark.parametrize("method", METHODS)
async def test_nothing_is_built_that_nobody_listens_to(
    method: str, monkeypatch: pytest.MonkeyPatch
):
    received: list[Event] = []
    # a class with one method of its own, beside one that has none
    listener = type("Listener", (Hook,), {method: lambda self, event: received.append(event)})  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("built for nobody")

    for kind in METHODS.values():
        if kind is not METHODS[method]:
            monkeypatch.setattr(_maker(kind), refuse)
    result = await Application(pairs, hooks=[listener(), Hook()]).run({"items": [1, 2]})
    assert result.state["out"] == [-2, -4]
    assert received
    assert {type(event) for event in received} == {METHODS[method]}


async def test_without_hooks_no_event_and_no_outcome_is_built(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("built for nobody")

    for kind in (*METHODS.values(), Done):
        monkeypatch.setattr(_maker(kind), refuse)
    result = await Application(pairs).run({"items": [1, 2]})
    assert result.state["out"] == [-2, -4]


# -- pairs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_error", ["fail", "collect"])
async def test_starts_and_ends_are_paired_when_a_child_fails(on_error: Any):
    hook = RecordingHook()
    act = fan_out(fail_at_two, over="items", into="out", on_error=on_error)
    application = Application(act, hooks=[hook])
    if on_error == "fail":
        with pytest.raises(ExceptionGroup):
            await application.run({"items": [1, 2, 3]})
    else:
        await application.run({"items": [1, 2, 3]})
    hook.assert_paired()
    ends = {event.outcome.key: type(event.outcome).__name__ for event in hook.of(ChildEnded)}
    assert ends == {0: "Done", 1: "Failed", 2: "Cancelled" if on_error == "fail" else "Done"}
    failed = [event for event in hook.of(ChildEnded) if isinstance(event.outcome, Failed)]
    statuses = {event.path.key: (event.status, str(event.error)) for event in hook.of(RunEnded)}
    assert len(failed) == 1
    assert statuses[1] == ("failed", "two")
    assert statuses[""][0] == ("failed" if on_error == "fail" else "succeeded")


async def test_starts_and_ends_are_paired_when_a_step_fails():
    hook = RecordingHook()
    with pytest.raises(LookupError) as caught:
        await Application(Graph.chain(fail_at_two, negate), hooks=[hook]).run(
            {"item": 2, "twice": 4}
        )
    hook.assert_paired()
    assert [brief(event) for event in hook.events] == [
        "run started",
        "fail_at_two started",
        "fail_at_two failed",
        "run failed",
    ]
    assert {event.error for event in (*hook.of(StepEnded), *hook.of(RunEnded))} == {caught.value}


@pytest.mark.parametrize("moment", [0.5, 1, 1.5, 2, 2.5])
async def test_starts_and_ends_are_paired_when_the_caller_is_cancelled(moment: float):
    hook = RecordingHook()
    with anyio.move_on_after(moment) as scope:
        await Application(pairs, hooks=[hook]).run({"items": [1, 2, 3, 60]})
    assert scope.cancelled_caught
    hook.assert_paired()
    assert hook.of(RunEnded)[-1].status == "cancelled"
    cancelled = [event for event in hook.of(RunEnded) if event.status == "cancelled"]
    assert len(cancelled) >= 3
    assert {type(event) for event in hook.events[-2:]} == {StepEnded, RunEnded}


async def test_starts_and_ends_are_paired_when_reduce_raises():
    def reduce(state: Any, outcome: Any) -> Any:
        if outcome.key == 1:
            raise LookupError("no")
        return state.increment(total=outcome.state["out"])

    hook = RecordingHook()
    act = fan_out(pair, over="items", reduce=reduce, writes=["total"], name="sum")
    with pytest.raises(LookupError):
        await Application(act, hooks=[hook]).run({"items": [1, 2, 3]})
    hook.assert_paired()


# -- guards --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "depth"), POINTS)
@pytest.mark.parametrize("on_error", ["fail", "collect"])
async def test_a_guard_that_raises_fails_the_run(method: str, depth: int, on_error: Any):
    before, after, store = RecordingHook(), RecordingHook(), SavedUpdates()
    raised: list[Event] = []
    hooks = [before, Loud(raising_at(method, depth, raised)), after]
    act = fan_out(pair, over="items", into="out", on_error=on_error)
    application = Application(Graph.chain(act, double), hooks=hooks)
    application.store = store
    with pytest.raises(HookFailed) as caught:
        await application.run({"items": [1, 2, 3], "item": 0})
    message = str(caught.value)
    assert "hook Loud raised LookupError" in message
    assert f"at {method}" in message
    assert f"{METHODS[method].__name__} of run {raised[0].run_id}" in message
    assert isinstance(caught.value.__cause__, LookupError)
    for hook in (before, after):
        hook.assert_paired()
        for event in hook.of(StateUpdated):
            assert (event.run_id, event.update.number) in store.saved
    assert before.events == after.events, "everybody is told the same"


async def test_a_change_that_a_guard_received_stays():
    hook, store = RecordingHook(), SavedUpdates()
    application = Application(
        Graph.chain(double, negate), hooks=[Loud(raising_at("on_state_updated", 0)), hook]
    )
    application.store = store
    with pytest.raises(HookFailed):
        await application.run({"item": 1}, id="root")
    assert store.saved == {("root", 1)}
    assert [event.update.number for event in hook.of(StateUpdated)] == [1]
    assert [event.step for event in hook.of(StepStarted)] == ["double"]


@pytest.mark.parametrize("method", OF_CHILDREN)
async def test_a_guard_that_raises_in_a_child_is_not_collected(method: str):
    act = fan_out(pair, over="items", into="out", errors_into="errors", on_error="collect")
    nested = fan_out(act, over="groups", item="items", into="all", take="out", on_error="collect")
    application = Application(nested, hooks=[Loud(raising_at(method, 2))])
    with pytest.raises(HookFailed):
        await application.run({"groups": [[1], [2]]})


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_a_ctrl_c_in_a_hook_keeps_the_event_from_no_other(method: str, *, asynchronous: bool):
    """A loop without a handler of its own raises KeyboardInterrupt wherever the signal arrives."""

    async def press_later(self: Hook, event: Event) -> None:
        await anyio.lowlevel.checkpoint()
        press(self, event)

    def press(_self: Hook, _event: Event) -> None:
        raise KeyboardInterrupt

    pressing = type("Pressing", (Hook,), {method: press_later if asynchronous else press})()
    before, behind = RecordingHook(), RecordingHook()
    app = Application(pairs, hooks=[before, pressing, behind])
    with pytest.raises(KeyboardInterrupt):
        await app.run({"items": [1]})
    assert before.events == behind.events
    assert any(isinstance(event, METHODS[method]) for event in behind.events)


async def test_a_guard_that_returns_something_else_is_refused():
    class Returning(Hook):
        def on_run_started(self, event: RunStarted) -> Any:
            return True

    with pytest.raises(HookFailed, match=r"hook Returning .*returned a bool"):
        await Application(double, hooks=[Returning()]).run({"item": 1})


async def test_a_guard_that_hangs_fails_the_run():
    async def hang(event: Event) -> None:
        if isinstance(event, StepStarted):
            await anyio.sleep_forever()

    before = anyio.current_time()
    hook = RecordingHook()
    with pytest.raises(HookFailed, match="hook Loud took longer than 30 s on StepStarted"):
        await Application(double, hooks=[Loud(hang), hook]).run({"item": 1})
    assert anyio.current_time() - before == pytest.approx(30)
    hook.assert_paired()


async def test_a_guard_that_times_out_by_itself_is_not_called_slow():
    async def give_up(event: Event) -> None:
        raise TimeoutError("mine")

    with pytest.raises(HookFailed, match=r"raised TimeoutError\('mine'\)"):
        await Application(double, hooks=[Loud(give_up)]).run({"item": 1})


async def test_a_failing_step_keeps_its_error_though_a_guard_raises_on_its_end(
    caplog: pytest.LogCaptureFixture,
):
    hook = RecordingHook()
    with pytest.raises(LookupError, match="two"):
        await Application(fail_at_two, hooks=[Loud(raising_at("on_run_ended", 0)), hook]).run(
            {"item": 2}
        )
    hook.assert_paired()
    assert "on_run_ended" in caplog.text, "the guard's failure is not lost"


# -- observers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "depth"), POINTS)
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_observer_that_raises_is_logged_once_and_detached(
    method: str, depth: int, asynchronous: bool, caplog: pytest.LogCaptureFixture
):
    raised: list[Event] = []
    received_later: list[Event] = []
    raise_there = raising_at(method, depth, raised)

    def say(event: Event) -> None:
        if raised:
            received_later.append(event)
        raise_there(event)

    async def say_later(event: Event) -> None:
        if raised:
            received_later.append(event)
        await anyio.lowlevel.checkpoint()
        raise_there(event)

    hook = RecordingHook()
    observer = LoudObserver(say_later if asynchronous else say)
    result = await Application(pairs, hooks=[observer, hook]).run({"items": [0, 1]})
    assert result.state["out"] == [0, -2]
    hook.assert_paired()
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1
    assert errors[0].name == "shoal.hooks"
    assert f"observer LoudObserver failed on {METHODS[method].__name__}" in errors[0].getMessage()
    assert errors[0].exc_info is not None
    assert isinstance(errors[0].exc_info[1], LookupError)
    assert raised
    assert received_later == []


async def test_an_observer_failing_in_many_children_at_once_is_logged_once(
    caplog: pytest.LogCaptureFixture,
):
    received: list[Event] = []
    together = anyio.Event()

    async def say(event: Event) -> None:
        if event.depth and isinstance(event, StepStarted):
            received.append(event)
            if len(received) == 10:
                together.set()
            await together.wait()
            raise LookupError

    act = fan_out(pair, over="items", into="out")
    result = await Application(act, hooks=[LoudObserver(say)]).run({"items": [1] * 10})
    assert result.state["out"] == [-2] * 10
    assert len(received) == 10
    assert len(caplog.records) == 1


async def test_a_detached_observer_does_not_receive_the_rest_of_an_end():
    received: list[str] = []

    def say(event: Event) -> None:
        if event.depth and isinstance(event, StateUpdated | StepEnded | RunEnded):
            received.append(type(event).__name__)
            raise LookupError

    act = fan_out(double, over="items", into="out")
    await Application(act, hooks=[LoudObserver(say)]).run({"items": [1, 2]})
    assert received == ["StateUpdated"]


async def test_an_observer_is_detached_from_one_run_only():
    received: list[Event] = []

    def say(event: Event) -> None:
        received.append(event)
        raise LookupError

    application = Application(double, hooks=[LoudObserver(say)])
    for runs in (1, 2):
        await application.run({"item": 1})
        assert len(received) == runs


async def test_an_observer_that_hangs_is_detached(caplog: pytest.LogCaptureFixture):
    async def hang(event: Event) -> None:
        await anyio.sleep_forever()

    before = anyio.current_time()
    result = await Application(double, hooks=[LoudObserver(hang)]).run({"item": 1})
    assert result.state["twice"] == 2
    assert anyio.current_time() - before == pytest.approx(31)
    assert len(caplog.records) == 1


async def cancelled_elsewhere(event: Event) -> None:
    """Raise the backend's cancellation, though nobody cancels the run."""
    if not isinstance(event, StepStarted | StateUpdated):
        return
    stray: list[BaseException] = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class() as error:
            stray.append(error)
            raise
    raise stray[0]


async def test_an_observer_whose_future_was_cancelled_is_detached(caplog: pytest.LogCaptureFixture):
    hook = RecordingHook()
    hooks = [LoudObserver(cancelled_elsewhere), hook]
    result = await Application(pairs, hooks=hooks).run({"items": [1, 2]})
    assert result.state["out"] == [-2, -4]
    assert len(caplog.records) == 1
    hook.assert_paired()


async def test_a_guard_whose_future_was_cancelled_fails_the_run():
    with pytest.raises(HookFailed, match="hook Loud raised"):
        await Application(pairs, hooks=[Loud(cancelled_elsewhere)]).run({"items": [1, 2]})


async def generator_exit_later(event: Event) -> None:
    await anyio.lowlevel.checkpoint()
    raise GeneratorExit


def generator_exit(event: Event) -> None:
    raise GeneratorExit


@contextmanager
def generator_exit_around() -> Generator[None]:
    try:
        yield
    finally:
        raise GeneratorExit


def cancellation_made(event: Event) -> None:
    raise cancellation()


RUDE: list[Callable[[Event], Any]] = [
    generator_exit, generator_exit_later, cancellation_made, cancelled_elsewhere,
]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("say", RUDE)
async def test_an_observer_that_raises_a_cancellation_while_all_is_cancelled(
    method: str, say: Callable[[Event], Any], caplog: pytest.LogCaptureFixture
):
    """It is the observer's failure: the run ends as cancelled, and so does its caller."""

    def say_there(event: Event) -> Any:
        return say(event) if isinstance(event, METHODS[method]) else None

    for spoil in (LoudObserver(say_there), AroundObserver(generator_exit_around)):
        hook = RecordingHook()
        caplog.clear()
        with anyio.move_on_after(1.5) as scope:
            await Application(pairs, hooks=[spoil, hook]).run({"items": [1, 2]})
        assert scope.cancelled_caught
        hook.assert_paired()
        (end,) = [event for event in hook.of(RunEnded) if event.depth == 0]
        assert (end.status, end.error) == ("cancelled", None)
        if say is not cancelled_elsewhere:  # of two events only
            assert len(caplog.records) == 1


# -- cancellation --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [StepStarted, StateUpdated, StepEnded, RunEnded])
async def test_an_async_hook_is_shielded_from_cancellation(kind: type[Event]):
    log: list[str] = []

    async def say(event: Event) -> None:
        if isinstance(event, kind):
            log.append("begins")
            await anyio.sleep(5)
            log.append("ends")

    with anyio.move_on_after(2) as scope:  # within the hook's five seconds
        await Application(double, hooks=[Loud(say)]).run({"item": 1})
        await anyio.sleep(10)
    assert scope.cancelled_caught
    assert log == ["begins", "ends"]


# -- around_step ---------------------------------------------------------------------------------

span: ContextVar[str] = ContextVar("span", default="")


class Spans(Hook):
    """Keeps the way to where it is in a context variable, as tracing does."""

    def __init__(self, name: str, log: list[str]) -> None:
        self._name = name
        self._log = log

    @contextmanager
    def around_step(self, event: StepStarted) -> Generator[None]:
        token = span.set(f"{span.get()}/{self._name}:{event.step}")
        self._log.append(f"enter {span.get()}")
        try:
            yield
        except BaseException as error:
            self._log.append(f"raised {type(error).__name__}")
            raise
        finally:
            self._log.append(f"leave {span.get()}")
            span.reset(token)


async def test_around_step_nests_and_its_variables_are_seen():
    log: list[str] = []

    @action(reads=["item"], writes=["where"])
    async def look(item: int) -> str:
        await anyio.lowlevel.checkpoint()
        return span.get()

    @action(reads=["where"], writes=["also"])
    async def look_again(where: str) -> str:
        return span.get()

    act = fan_out(Graph.chain(look, look_again), over="items", into="out", take=["where", "also"])
    hooks = [Spans("a", log), Spans("b", log)]
    result = await Application(act, hooks=hooks).run({"items": [1]})
    root = "/a:out/b:out"
    assert result.state["out"] == [
        {"where": f"{root}/a:look/b:look", "also": f"{root}/a:look_again/b:look_again"}
    ]
    assert log == [
        "enter /a:out",
        f"enter {root}",
        f"enter {root}/a:look",
        f"enter {root}/a:look/b:look",
        f"leave {root}/a:look/b:look",
        f"leave {root}/a:look",
        f"enter {root}/a:look_again",
        f"enter {root}/a:look_again/b:look_again",
        f"leave {root}/a:look_again/b:look_again",
        f"leave {root}/a:look_again",
        f"leave {root}",
        "leave /a:out",
    ]
    assert span.get() == ""


@pytest.mark.realtime
async def test_around_step_is_seen_in_a_thread():
    @action(writes=["where"])
    def look() -> str:
        return span.get()

    result = await Application(look, hooks=[Spans("a", [])]).run()
    assert result.state["where"] == "/a:look"


async def test_around_step_sees_what_the_step_raises():
    log: list[str] = []
    with pytest.raises(LookupError):
        await Application(fail_at_two, hooks=[Spans("a", log)]).run({"item": 2})
    assert log == ["enter /a:fail_at_two", "raised LookupError", "leave /a:fail_at_two"]
    log.clear()
    with anyio.move_on_after(1):
        await Application(fail_at_two, hooks=[Spans("a", log)]).run({"item": 2})
    assert log == [
        "enter /a:fail_at_two",
        f"raised {anyio.get_cancelled_exc_class().__name__}",
        "leave /a:fail_at_two",
    ]


class Around(Hook):
    def __init__(self, manager: Callable[[], AbstractContextManager[object]]) -> None:
        self._manager = manager

    def around_step(self, event: StepStarted) -> AbstractContextManager[object]:
        return self._manager()


class AroundObserver(Around):
    observer = True


class Reraising(AbstractContextManager[None]):
    """Raises the error of the step itself, as a manager that is written by hand may do."""

    def __exit__(self, kind: object, error: BaseException | None, frames: object) -> None:
        if error is not None:
            raise error


async def test_a_manager_that_raises_the_error_of_the_step_has_not_failed():
    with pytest.raises(LookupError):
        await Application(fail_at_two, hooks=[Around(Reraising)]).run({"item": 2})


@contextmanager
def fails_entering() -> Generator[None]:
    raise BufferError("entering")
    yield


@contextmanager
def fails_leaving() -> Generator[None]:
    yield
    raise BufferError("leaving")


@contextmanager
def fails_leaving_in_any_case() -> Generator[None]:
    try:
        yield
    finally:
        raise BufferError("leaving")


@contextmanager
def fails_at_all_lookup_errors() -> Generator[None]:
    try:
        yield
    except LookupError:
        raise BufferError("leaving") from None


def fails_making() -> AbstractContextManager[object]:
    raise BufferError("making")


def makes_none() -> AbstractContextManager[object]:
    return cast("Any", None)


FAILING = [fails_entering, fails_leaving, fails_leaving_in_any_case, fails_making, makes_none]


@pytest.mark.parametrize("manager", FAILING)
async def test_an_observer_that_raises_leaving_a_step_is_detached(
    manager: Callable[[], AbstractContextManager[object]], caplog: pytest.LogCaptureFixture
):
    log: list[str] = []
    hooks = [Spans("a", log), AroundObserver(manager), Spans("b", log)]
    result = await Application(pair, hooks=hooks).run({"item": 1})
    assert result.state["out"] == -2
    assert len(caplog.records) == 1
    assert [line.split()[0] for line in log] == ["enter", "enter", "leave", "leave"] * 2


@pytest.mark.parametrize("manager", FAILING)
async def test_a_guard_that_raises_leaving_a_step_fails_the_run(
    manager: Callable[[], AbstractContextManager[object]],
):
    log: list[str] = []
    hook = RecordingHook()
    hooks = [Spans("a", log), Around(manager), Spans("b", log), hook]
    with pytest.raises(HookFailed, match="hook Around raised"):
        await Application(pair, hooks=hooks).run({"item": 1})
    hook.assert_paired()
    entered = [line.removeprefix("enter ") for line in log if line.startswith("enter")]
    left = [line.removeprefix("leave ") for line in log if line.startswith("leave")]
    assert left == entered[::-1], "what was entered is left"
    assert hook.of(StateUpdated) == []


@pytest.mark.parametrize("manager", [fails_leaving_in_any_case, fails_at_all_lookup_errors])
async def test_an_observer_cannot_replace_what_a_step_raises(
    manager: Callable[[], AbstractContextManager[object]],
):
    with pytest.raises(LookupError, match="two"):
        await Application(fail_at_two, hooks=[AroundObserver(manager)]).run({"item": 2})


@pytest.mark.parametrize("hook_class", [Around, AroundObserver])
async def test_a_hook_cannot_swallow_what_a_step_raises(hook_class: type[Around]):
    def swallow() -> AbstractContextManager[object]:
        return contextlib.suppress(Exception)

    graph = Graph.chain(fail_at_two, negate)
    with pytest.raises(LookupError, match="two"):
        await Application(graph, hooks=[hook_class(swallow)]).run({"item": 2})


# -- giving them ---------------------------------------------------------------------------------


NO_HOOKS: list[tuple[Any, str]] = [
    ([RecordingHook], "RecordingHook.*class.*with ()"),
    ([None], "None is not one"),
    ([lambda event: None], "lambda.*is not one"),  # pyright: ignore[reportUnknownLambdaType]
    (RecordingHook(), r"hooks=\[RecordingHook"),
]


@pytest.mark.parametrize(("hooks", "message"), NO_HOOKS)
def test_what_is_no_hook_is_refused(hooks: Any, message: str):
    with pytest.raises(DefinitionError, match=message):
        Application(double, hooks=hooks)


async def test_hooks_may_be_any_iterable():
    hook = RecordingHook()
    application = Application(double, hooks=iter([hook]))
    for runs in (1, 2):
        await application.run({"item": 1})
        assert len(hook.of(RunEnded)) == runs


async def test_hooks_need_no_hash():
    @dataclasses.dataclass
    class Equal(Hook):
        observer = True
        fails: bool = dataclasses.field(compare=False)
        log: list[Event] = dataclasses.field(default_factory=list[Event], compare=False)

        def on_step_ended(self, event: StepEnded) -> None:
            self.log.append(event)
            if self.fails:
                raise LookupError

        def around_step(self, event: StepStarted) -> AbstractContextManager[object]:
            return contextlib.nullcontext()

    failing, fine = Equal(fails=True), Equal(fails=False)
    assert failing == fine
    await Application(pair, hooks=[failing, fine]).run({"item": 1})
    assert len(failing.log) == 1
    assert len(fine.log) == 2


async def test_one_hook_may_watch_several_runs_at_once():
    hook = RecordingHook()
    application = Application(double, hooks=[hook])
    async with anyio.create_task_group() as tasks:
        for item in (2, 1):
            tasks.start_soon(partial(application.run, {"item": item}, id=str(item)))
    hook.assert_paired()
    assert {event.run_id for event in hook.of(RunStarted)} == {"1", "2"}
    assert [event.run_id for event in hook.of(RunEnded)] == ["1", "2"]
