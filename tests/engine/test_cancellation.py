"""Cancellation, true and false, wherever it arrives: nothing torn, lost, or left alive.

`Watched` runs an application with a store and hooks that notice whatever is wrong; `check` says so.
Sweeps repeat one scenario and interrupt it some turns of the event loop later each time, until it
has ended before: see `at_any_turn`.
"""

import asyncio
import gc
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import nullcontext, suppress
from functools import partial
from itertools import count as count_up
from itertools import pairwise
from typing import Any, TypeVar

import anyio
import pytest
import trio
from anyio.lowlevel import checkpoint

from shoal import (
    Application,
    Cancelled,
    Context,
    Done,
    Failed,
    Graph,
    Hook,
    Limits,
    Outcome,
    State,
    action,
    fan_out,
)
from shoal._concurrency.background import BackgroundTask
from shoal._engine.run import Run
from shoal._runtime.root_run import RootRun
from shoal._runtime.runtime import Runtime
from shoal.errors import CommitInDoubt, HookFailed, SpuriousCancel
from shoal.events import (
    ChildEnded,
    ChildStarted,
    Decision,
    Event,
    RunEnded,
    RunStarted,
    StateUpdated,
    StepEnded,
    StepStarted,
    Update,
)
from shoal.stores import replay
from shoal.stores._protocol import Batch, NullStore
from shoal.testing import RecordingHook, VirtualTimeLoop, no_leaks, run_virtual
from tests.sweeps import EVERYWHERE, at_any_turn

pytestmark = pytest.mark.anyio

T = TypeVar("T")


# -- watching --------------------------------------------------------------------------------------


class Keeping(NullStore):
    """A store that keeps what it is given; with ``waits``, it waits before and after that."""

    def __init__(self, waits: Callable[[], Awaitable[object]] | None = None) -> None:
        self.waits = waits
        self.saved: dict[str, list[Update]] = {}
        self.ended: dict[str, int] = Counter()
        self.child_ends: dict[str, int] = Counter()
        self.decisions: list[tuple[str, Decision]] = []
        self.after_keeping: Callable[[Batch], object] = lambda batch: None

    def save(self, batch: Batch) -> Awaitable[None] | None:
        if self.waits is not None:
            return self._save(batch, self.waits)
        self._keep(batch)
        return None

    async def _save(self, batch: Batch, waits: Callable[[], Awaitable[object]]) -> None:
        await waits()
        self._keep(batch)
        await waits()

    def _keep(self, batch: Batch) -> None:
        self.saved.setdefault(batch.path.id, []).extend(batch.updates)
        for child in (*batch.applied, *batch.unapplied):
            self.child_ends[child.path.id] += 1
            if child.last_update is not None:
                self.saved.setdefault(child.path.id, []).append(child.last_update)
        if batch.decision is not None:
            self.decisions.append((batch.path.id, batch.decision))
            if batch.updates:  # else a partial item has decided it
                decisive = batch.applied[len(batch.updates) - 1].path
                named = decisive.act, decisive.key
                assert named == batch.decision.winner, "saved with its update"
        if batch.ended is not None:
            self.ended[batch.path.id] += 1
        self.after_keeping(batch)


class SavedFirst(Hook):
    """Notices updates and ends that are published before they are saved; and may wait itself."""

    def __init__(self, store: Keeping, waits: Callable[[], Awaitable[object]] | None) -> None:
        self.store = store
        self.waits = waits
        self.too_early: list[Event] = []

    async def _wait(self, event: Event) -> None:
        if self.waits is not None:
            await self.waits()

    on_run_started = on_step_started = on_child_started = on_step_ended = _wait  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    async def on_state_updated(self, event: StateUpdated) -> None:
        if event.update not in self.store.saved.get(event.run_id, ()):
            self.too_early.append(event)
        await self._wait(event)

    async def on_child_ended(self, event: ChildEnded) -> None:
        if event.outcome.run_id not in self.store.child_ends:
            self.too_early.append(event)
        await self._wait(event)

    async def on_run_ended(self, event: RunEnded) -> None:
        saved = event.run_id in self.store.ended
        if event.depth == 0 and event.status == "succeeded" and not saved:
            self.too_early.append(event)
        await self._wait(event)


COUNTER = count_up()
RUNS = dict[str, Run]()  # the engine's: what state they stand at is not public where `run` raises


@pytest.fixture(autouse=True)
def seen_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = Runtime.begin

    def spy(self: Runtime, root: RootRun, *, is_detached: bool = False) -> BackgroundTask:
        assert root.run is not None, "these stores are asked for nothing before a run begins"
        RUNS[root.path.id] = root.run
        return begin(self, root, is_detached=is_detached)

    monkeypatch.setattr(Runtime, "begin", spy)
    RUNS.clear()


class Watched:
    """An application, and everything that one run of it saved and told."""

    def __init__(
        self,
        graph: Any,
        *,
        waits: Callable[[], Awaitable[object]] | None = None,
        hooks: Any = (),
        **settings: Any,
    ) -> None:
        self.store = Keeping(waits)
        self.hook = RecordingHook()
        self.guard = SavedFirst(self.store, waits)
        self.app = Application(graph, hooks=[self.hook, self.guard, *hooks], **settings)
        self.app.store = self.store
        self.id = f"run {next(COUNTER)}"

    async def go(self, state: Mapping[str, Any]) -> State:
        self.initial = State(state)
        RUNS.pop(self.id, None)
        result = await self.app.run(state, id=self.id)
        assert result.state == self.state
        return result.state

    @property
    def run(self) -> Run | None:
        return RUNS.get(self.id)

    @property
    def state(self) -> State:
        """The root's state, also where ``run`` has raised."""
        assert self.run is not None
        return self.run.state

    def of(self, kind: type[T], depth: int = 0) -> list[T]:
        return [e for e in self.hook.events if isinstance(e, kind) and e.depth == depth]

    def check(self) -> None:
        """Assert all that holds after every run, however it ended."""
        events, store = self.hook.events, self.store
        self.hook.assert_paired()
        assert not self.guard.too_early, "seen before it was saved"
        published: dict[str, list[Update]] = {}
        for event in events:
            if isinstance(event, StateUpdated):
                published.setdefault(event.run_id, []).append(event.update)
        for run_id, updates in published.items():
            assert [update.number for update in updates] == list(range(1, len(updates) + 1)), run_id
        kept = {run_id: updates for run_id, updates in store.saved.items() if updates}
        assert kept == published, "a torn commit: not all that was saved was published"
        if self.run is not None:
            state = self.initial
            for update in published.get(self.id, ()):
                state = replay(state, update.operations)
            assert state == self.state, "the run's state is not what its updates say"
            assert store.ended == {self.id: 1}, "one end"
            assert self.run.status in ("succeeded", "failed", "cancelled")
            check_nothing_is_held(self.run)
        check_children(events, store)


def check_nothing_is_held(run: Run) -> None:
    """No slot is lost, nobody waits for one, and no live child is still counted."""
    admission: Any = run.config.services.admission
    for owner, named in admission.limiters.by_owner.items():
        for limiter in named.values():
            in_use = [one.in_use for one in limiter.statistics()]
            assert not any(in_use), f"a slot of {owner!r} is lost"
    assert not admission.scheduler.wait_queues, "somebody still waits for a slot"
    assert run.config.execution.live.used == 0, "a permit of the live budget is lost"


def check_children(events: list[Event], store: Keeping) -> None:
    """Every key ends once, and across runs cause precedes effect."""
    assert set(store.child_ends.values()) <= {1}, "a child's end is saved once"
    started = Counter(e.child.id for e in events if isinstance(e, ChildStarted))
    ended = Counter(
        e.outcome.run_id for e in events if isinstance(e, ChildEnded) and e.outcome.attempts
    )
    assert started == ended
    assert set(ended.values()) <= {1}
    at: dict[tuple[str, str], int] = {}
    for index, event in enumerate(events):
        match event:
            case ChildStarted():
                at["started", event.child.id] = index
            case RunStarted() if event.depth:
                assert at["started", event.run_id] < index
            case StateUpdated():
                assert ("run ended", event.run_id) not in at
                assert not isinstance(event.outcome, Cancelled), "applied"
                if event.outcome is not None and event.outcome.attempts:
                    assert at["run ended", event.outcome.run_id] < index
                    at["applied", event.outcome.run_id] = index
            case RunEnded():
                at["run ended", event.run_id] = index
            case ChildEnded() if event.outcome.attempts:
                child = event.outcome.run_id
                assert at.get(("run ended", child), -1) < index  # it may never have begun
                used = isinstance(event.outcome, Done) and event.outcome.used
                by_hand = event.outcome.path.step != event.step  # the action takes it, no update
                assert ("applied", child) in at if used and not by_hand else True
            case _:
                pass


def cancellation() -> BaseException:
    """The backend's cancellation, made by somebody who should not."""
    kind = anyio.get_cancelled_exc_class()
    if kind is trio.Cancelled:
        create: Callable[..., BaseException] = getattr(kind, "_create")  # noqa: B009 # private
        return create(source="explicit")
    return kind()


# -- scenarios without timers ----------------------------------------------------------------------


@action(reads=["item"], writes=["leaf"])
async def leaf(item: int) -> int:
    """Waits a little, differently for each element; and waits in its cleanup too."""
    try:
        for _ in range(1 + item % 3):
            await checkpoint()
        if item == 13:
            raise ValueError(item)
    finally:
        with anyio.CancelScope(shield=True):
            await checkpoint()
    return item


@action(reads=["item"], writes=["below"])
async def spread(item: int) -> list[int]:
    return [10 * item + n for n in (1, 2, 3)]


@action(reads=[], writes=["first"])
async def first() -> str:
    await checkpoint()
    return "first"


@action(reads=["out"], writes=["last"])
async def last(out: Any) -> int:
    await checkpoint()
    return len(out)


def count(state: State, outcome: Outcome) -> State:
    return state.increment(count=1).append(order=outcome.position)


def flat(**options: Any) -> Graph:
    return Graph.chain(
        first, fan_out(leaf, over="n", key=str, into="out", limits=Limits(3), **options), last
    )


def nested(**options: Any) -> Graph:
    inner = fan_out(
        leaf, over="below", reduce=count, writes=["count", "order"], name="inner", limits=Limits(2)
    )
    children = Graph.chain(spread, inner, name="children")
    outer = fan_out(children, over="n", into="out", take=["count"], limits=Limits(2), **options)
    return Graph.chain(first, outer, last)


@action(reads=["item"], writes=["leaf"])
async def run_another(item: int) -> int:
    """Runs an application of its own, and gives it some of the time it takes."""
    with anyio.move_on_after(3600):
        result = await Application(flat()).run({"n": [item, item + 1]})
        return result.state["last"]
    raise TimeoutError


@action(reads=["n"], writes=["out"])
async def by_hand(n: list[int], context: Context) -> list[int]:
    """A race inside of a map; a part of the map is awaited only where its block is left."""
    async with context.fan_out(name="map", limits=Limits(2)) as group:
        group.start_each(leaf, over=n)
        first = await anext(group)
        async with context.fan_out(name="race") as race:
            race.start_each(leaf, over=n)
            second = await anext(race)
            race.cancel("have one")
        return [first.element, second.element]


SCENARIOS: dict[str, Callable[[], Graph]] = {
    "flat": flat,
    "nested": nested,
    "collecting": lambda: flat(on_error="collect", errors_into="errors"),
    "within": lambda: Graph.chain(
        first, fan_out(run_another, over="n", into="out", limits=Limits(2)), last
    ),
    "by hand": lambda: Graph.chain(first, by_hand, last),
}
STATES: dict[str, dict[str, Any]] = {
    "flat": {"n": [1, 2, 3, 5]},
    "nested": {"n": [0, 1, 2]},  # 13 is below 1: it fails
    "collecting": {"n": [1, 2, 3, 13, 4]},
    "within": {"n": [1, 2, 3]},
    "by hand": {"n": [1, 2, 3, 0, 1]},
}
waiting = pytest.mark.parametrize("waits", [None, checkpoint], ids=["", "slow"])
every_scenario = pytest.mark.parametrize(
    ("name", "waits"),
    [
        ("flat", None),
        ("nested", None),
        ("nested", checkpoint),
        ("collecting", checkpoint),
        ("within", None),
        ("by hand", None),
        pytest.param("by hand", checkpoint, marks=pytest.mark.slow),
    ],
    ids=["flat", "nested", "slow nested", "slow collecting", "within", "by hand", "slow by hand"],
)


# -- sweeps ----------------------------------------------------------------------------------------


async def turns(count: int) -> None:
    for _ in range(count):
        await checkpoint()


@pytest.mark.realtime
@every_scenario
async def test_a_scope_cancelled_at_any_turn(
    name: str, waits: Callable[[], Awaitable[object]] | None
):
    async def once(turn: int) -> bool:
        watched = Watched(SCENARIOS[name](), waits=waits)
        ended = False
        tasks_before = len(anyio.get_running_tasks())

        async def cancel() -> None:
            await turns(turn)
            scope.cancel()

        scope = anyio.CancelScope()
        async with anyio.create_task_group() as others:
            with scope:
                others.start_soon(cancel)
                with suppress(ExceptionGroup):
                    await watched.go(STATES[name])
                ended = True
            assert scope.cancelled_caught != ended
            assert len(anyio.get_running_tasks()) - tasks_before <= 1, "alive afterwards"
            others.cancel_scope.cancel()
        watched.check()
        return ended and not scope.cancel_called

    async with no_leaks():
        await at_any_turn(once)


LOOPS: dict[str, dict[str, Any]] = {
    "plain": {"loop_factory": VirtualTimeLoop},
    "shuffled": {"loop_factory": lambda: VirtualTimeLoop(seed=1)},
    "uvloop": {"use_uvloop": True},
}


def eager_loop() -> asyncio.AbstractEventLoop:
    loop = VirtualTimeLoop()
    loop.set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009 # not on 3.11
    return loop


if sys.version_info >= (3, 12):
    LOOPS["eager"] = {"loop_factory": eager_loop}

every_loop = pytest.mark.parametrize("on", LOOPS)


def run_asyncio(on: str, function: Callable[..., Awaitable[T]], *args: object) -> T:
    """Run an asyncio test; what only the loop's exception handler hears of fails it too."""
    unheard: list[dict[str, Any]] = []

    async def main() -> T:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: unheard.append(context))
        async with no_leaks():
            return await function(*args)

    result = anyio.run(main, backend="asyncio", backend_options=LOOPS[on])
    gc.collect()
    assert not unheard
    return result


async def spin(turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


async def interrupted_at(
    turn: int, name: str, waits: Any, interrupt: Callable[[asyncio.Task[Any]], Awaitable[int]]
) -> bool:
    """Run a scenario in a task and interrupt it at ``turn``; return whether it ended before that.

    ``interrupt`` returns how many native cancels it has requested, until the task was done.
    """
    watched = Watched(SCENARIOS[name](), waits=waits)
    tasks_before = len(asyncio.all_tasks())
    task = asyncio.create_task(watched.go(STATES[name]))
    await spin(turn)
    requests = 0 if task.done() else await interrupt(task)
    with suppress(asyncio.CancelledError, ExceptionGroup):
        await task
    await spin(1)
    assert len(asyncio.all_tasks()) == tasks_before, "alive afterwards"
    watched.check()
    assert task.cancelling() == requests
    assert task.cancelled() == (requests > 0), "a cancel was lost, or came from nowhere"
    return not requests


async def sweep(
    name: str, waits: Any, interrupt: Callable[[asyncio.Task[Any]], Awaitable[int]]
) -> None:
    assert await at_any_turn(lambda turn: interrupted_at(turn, name, waits, interrupt)) >= 10


async def cancel_times(task: asyncio.Task[Any], times: int, apart: int) -> int:
    requests = 0
    for _ in range(times):
        requests += task.cancel()
        await spin(apart)
    return requests


@every_loop
@every_scenario
def test_a_native_cancel_at_any_turn(on: str, name: str, waits: Any):
    """The very tick of a child's end, of a commit, of the run's own end: all are among them."""
    run_asyncio(on, sweep, name, waits, partial(cancel_times, times=1, apart=0))


@every_loop
@every_scenario
@pytest.mark.parametrize(("times", "apart"), [(2, 0), (2, 1), (3, 2)])
def test_double_and_triple_native_cancels_at_any_turn(
    on: str, name: str, waits: Any, times: int, apart: int
):
    run_asyncio(on, sweep, name, waits, partial(cancel_times, times=times, apart=apart))


@every_loop
@every_scenario
def test_a_native_cancel_from_a_callback_at_any_turn(on: str, name: str, waits: Any):
    """From a callback it comes elsewhere in the tick than from a task."""

    async def interrupt(task: asyncio.Task[Any]) -> int:
        asked = asyncio.get_running_loop().create_future()

        def cancel() -> None:
            asked.set_result(task.cancel())

        asyncio.get_running_loop().call_soon(cancel)
        return int(await asked)

    run_asyncio(on, sweep, name, waits, interrupt)


@every_loop
@every_scenario
def test_a_failing_sibling_in_a_native_task_group_at_any_turn(on: str, name: str, waits: Any):
    async def once(turn: int) -> bool:
        watched = Watched(SCENARIOS[name](), waits=waits)
        ended = False

        async def fail() -> None:
            await spin(turn)
            raise LookupError

        async def run() -> None:
            nonlocal ended
            with suppress(ExceptionGroup):
                await watched.go(STATES[name])
            ended = True

        with pytest.RaisesGroup(LookupError):
            async with asyncio.TaskGroup() as group:
                group.create_task(run())
                group.create_task(fail())
        this_task().uncancel()  # 3.11's group leaves its own request behind
        watched.check()
        return ended

    run_asyncio(on, at_any_turn, once)


@every_loop
@pytest.mark.parametrize("name", ["flat", "nested"])
def test_a_native_cancel_and_a_scope_cancelled_around_each_other(on: str, name: str):
    """Whoever is first: the scope must not swallow the native cancel."""

    async def once(scope_at: int, native_at: int, *, native_first: bool) -> tuple[bool, bool]:
        watched = Watched(SCENARIOS[name](), waits=checkpoint)
        scope = anyio.CancelScope()
        left = asked = False

        async def caller() -> None:
            nonlocal left
            with scope:
                try:
                    await watched.go(STATES[name])
                except ExceptionGroup:
                    pass
                finally:
                    left = True

        async def cancel_scope() -> None:
            await spin(scope_at)
            scope.cancel()

        async def cancel_natively() -> None:
            nonlocal asked
            await spin(native_at)
            asked = not left and task.cancel()

        task = asyncio.create_task(caller())
        both = [cancel_scope(), cancel_natively()]
        others = [
            asyncio.create_task(other) for other in (reversed(both) if native_first else both)
        ]
        await asyncio.wait([task, *others])
        watched.check()
        assert task.cancelled() == asked, "the scope swallowed a native cancel"
        assert task.cancelling() == asked
        return asked, left

    async def go() -> None:
        for scope_at in range(0, 40, 3 if EVERYWHERE else 8):
            for native_at in range(scope_at, scope_at + 6):
                await once(scope_at, native_at, native_first=False)
                await once(native_at, scope_at, native_first=True)

    run_asyncio(on, go)


# -- timeouts at each moment at which something happens --------------------------------------------


@action(reads=["item"], writes=["leaf"])
async def timed_leaf(item: float) -> float:
    try:
        await anyio.sleep(item)
        if item == 2:
            raise ValueError(item)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.25)  # a cleanup that takes its time
    return item


@action(reads=["item"], writes=["below"])
async def timed_spread(item: float) -> list[float]:
    await anyio.sleep(0.5)
    return [item, item + 1]


def timed(on_error: Any) -> Graph:
    inner = fan_out(timed_leaf, over="below", into="inner", take="leaf", limits=Limits(2))
    outer = fan_out(
        Graph.chain(timed_spread, inner),
        over="n",
        key=str,
        into="out",
        take="inner",
        limits=Limits(2),
        on_error=on_error,
    )
    return Graph.chain(outer, last)


TIMED = {"n": [0.5, 1.0, 3.0, 1.0 + 3]}


async def a_little() -> None:
    await anyio.sleep(0.125)


async def moments(waits: Any, on_error: Any) -> list[float]:
    """When anything happens in a run that nobody interrupts."""
    watched = Watched(timed(on_error), waits=waits)
    seen = set[float]()

    class Clocked(Hook):
        def on_step_started(self, event: StepStarted) -> None:
            seen.add(anyio.current_time())

        on_step_ended = on_child_ended = on_run_ended = on_state_updated = on_step_started  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride]

    watched.app.hooks = (Clocked(), *watched.app.hooks)
    start = anyio.current_time()
    with suppress(ExceptionGroup):
        await watched.go(TIMED)
    exact = sorted(at - start for at in seen)
    return sorted({*exact, *((at + after) / 2 for at, after in pairwise(exact)), exact[-1] + 1})


@pytest.mark.parametrize("on_error", ["fail", "collect"])
@pytest.mark.parametrize("waits", [None, a_little], ids=["", "slow"])
@pytest.mark.parametrize("seed", [None, 1])
def test_a_native_timeout_at_each_moment(seed: int | None, waits: Any, on_error: Any):
    async def go() -> None:
        me = asyncio.current_task()
        assert me is not None
        for after in await moments(waits, on_error):
            watched = Watched(timed(on_error), waits=waits)
            ended = False
            try:
                async with asyncio.timeout(after):
                    with suppress(ExceptionGroup):
                        await watched.go(TIMED)
                    ended = True
            except TimeoutError:
                assert not ended
            else:
                assert ended
            assert me.cancelling() == 0
            assert len(asyncio.all_tasks()) == 1, "alive afterwards"
            watched.check()

    run_virtual(go, seed=seed)


@pytest.mark.parametrize("on_error", ["fail", "collect"])
@pytest.mark.parametrize("waits", [None, a_little], ids=["", "slow"])
async def test_a_scope_that_ends_at_each_moment(waits: Any, on_error: Any):
    for after in await moments(waits, on_error):
        watched = Watched(timed(on_error), waits=waits)
        ended = False
        tasks_before = len(anyio.get_running_tasks())
        with anyio.move_on_after(after) as scope:
            with suppress(ExceptionGroup):
                await watched.go(TIMED)
            ended = True
        assert len(anyio.get_running_tasks()) == tasks_before, "alive afterwards"
        assert scope.cancelled_caught != ended
        watched.check()


def seeds(count: int) -> Iterator[tuple[Any, int]]:
    for backend in ("asyncio", "trio"):
        for seed in range(count):
            yield backend, seed


@pytest.mark.parametrize("kind", ["list", "mapping", "reduce"])
def test_children_cancelled_in_the_tick_of_anothers_end_are_never_applied(kind: str):
    """On some schedules the parent finds both in its inbox at once."""

    @action(reads=["item"], writes=["slept"])
    async def nap(item: int) -> int:
        await anyio.sleep(1 if item < 2 else 100)
        return item

    options: dict[str, Any] = {
        "list": {"into": "out"},
        "mapping": {"into": "out", "key": str},
        "reduce": {"reduce": count, "writes": ["count", "order"], "name": "f"},
    }[kind]

    async def go() -> None:
        watched = Watched(fan_out(nap, over="n", **options))

        async def cancel(scope: anyio.CancelScope) -> None:
            await anyio.sleep(1)
            scope.cancel()

        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(cancel, scope)
                await watched.go({"n": range(6)})
        watched.check()
        (end,) = watched.of(RunEnded)
        assert (end.status, end.error) == ("cancelled", None)
        for event in watched.of(StateUpdated):
            assert event.outcome is None or isinstance(event.outcome, Done)
        for event in watched.of(ChildEnded):
            assert isinstance(
                event.outcome, Cancelled if event.outcome.element > 1 else Done | Cancelled
            )

    for backend, seed in seeds(20):
        run_virtual(go, backend=backend, seed=seed)


# -- where it is cancelled -------------------------------------------------------------------------


class Cancelling(Hook):
    """Cancels a scope when told an event of some kind, and then has to wait."""

    def __init__(self, kind: type[Event], depth: int, scope: anyio.CancelScope) -> None:
        self.kind = kind
        self.depth = depth
        self.scope = scope
        self.told = list[Event]()

    async def on_run_started(self, event: Any) -> None:
        if isinstance(event, self.kind) and event.depth == self.depth:
            self.scope.cancel()
            await checkpoint()
            await checkpoint()
            self.told.append(event)

    on_step_started = on_state_updated = on_child_started = on_child_ended = on_run_started
    on_step_ended = on_run_ended = on_run_started


@pytest.mark.realtime
@pytest.mark.parametrize(
    ("kind", "depth"),
    [
        *((kind, 0) for kind in (RunStarted, StepStarted, ChildStarted, StateUpdated, ChildEnded)),
        *((kind, 1) for kind in (RunStarted, StepStarted, StateUpdated, StepEnded, RunEnded)),
        *((kind, 2) for kind in (RunStarted, RunEnded)),
        (StepEnded, 0),
        (RunEnded, 0),
    ],
)
async def test_cancelled_during_an_async_hook(kind: type[Event], depth: int):
    """The hook hears the event to its end."""
    scope = anyio.CancelScope()
    hook = Cancelling(kind, depth, scope)
    watched = Watched(nested(on_error="collect"), hooks=[hook])
    async with no_leaks():
        with scope:
            await watched.go({"n": [0, 2, 3]})
    assert scope.cancelled_caught
    watched.check()
    assert len(hook.told) == sum(
        isinstance(event, kind) and event.depth == depth for event in watched.hook.events
    )
    assert hook.told


@pytest.mark.realtime
@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("name", ["flat", "nested"])
async def test_cancelled_during_each_save(name: str, *, slow: bool):
    """The commit is whole: what was saved is published."""
    async with no_leaks():
        for nth in range(1, 100):
            watched = Watched(SCENARIOS[name](), waits=checkpoint if slow else None)
            scope, ended = anyio.CancelScope(), False
            left = iter([*[None] * (nth - 1), scope.cancel])

            def cancel(batch: Batch, left: Iterator[Any] = left) -> None:
                act = next(left, None)
                if act is not None:
                    act()

            watched.store.after_keeping = cancel
            with scope:
                with suppress(ExceptionGroup):
                    await watched.go(STATES[name])
                ended = True
            watched.check()
            if not scope.cancel_called:
                assert nth > 5
                return
            assert scope.cancelled_caught != ended


@pytest.mark.realtime
async def test_cancelled_while_the_run_is_finishing():
    """What has ended well is recorded as such; the caller is cancelled all the same."""
    scope = anyio.CancelScope()
    watched = Watched(flat(), hooks=[Cancelling(RunEnded, 0, scope)])
    async with no_leaks():
        with scope:
            await watched.go(STATES["flat"])
    assert scope.cancelled_caught
    watched.check()
    assert watched.run is not None
    assert watched.run.status == "succeeded"
    assert watched.state["last"] == 4


@pytest.mark.realtime
async def test_a_caller_that_is_cancelled_already():
    watched = Watched(flat())
    async with no_leaks():
        with anyio.CancelScope() as scope:
            scope.cancel()
            await watched.go(STATES["flat"])
    assert scope.cancelled_caught
    watched.check()
    assert not watched.of(ChildStarted)


# -- cleanup ---------------------------------------------------------------------------------------


async def test_cleanups_that_take_time_are_awaited():
    left = list[float]()

    @action(reads=["item"], writes=["-"])
    async def work(item: float) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(item)
            left.append(item)

    watched = Watched(fan_out(work, over="n", name="f"))
    async with no_leaks():
        with anyio.move_on_after(1) as scope:
            await watched.go({"n": [3, 1, 2]})
    assert scope.cancelled_caught
    assert left == [1, 2, 3]
    assert anyio.current_time() == 4
    watched.check()
    assert [type(event.outcome) for event in watched.of(ChildEnded)] == [Cancelled] * 3


async def test_a_cleanup_that_raises_fails_its_child_and_the_cancellation_goes_on():
    @action(reads=["item"], writes=["-"])
    async def work(item: int) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            if item == 1:
                raise OSError("cleanup")

    for graph, state in (fan_out(work, over="n", name="f"), {"n": [0, 1]}), (work, {"item": 1}):
        watched = Watched(graph)
        async with no_leaks():
            with anyio.move_on_after(1) as scope:
                await watched.go(state)
        assert scope.cancelled_caught
        watched.check()
    assert watched.run is not None
    assert watched.run.status == "failed"


@pytest.mark.parametrize("cause", ["outside", "sibling"])
async def test_a_child_that_swallows_its_cancellation_comes_too_late(cause: str):
    @action(reads=["item"], writes=["value"])
    async def work(item: int) -> int:
        if item == 0:
            await anyio.sleep(1)
            if cause == "sibling":
                raise ValueError
            await anyio.sleep_forever()
        with suppress(anyio.get_cancelled_exc_class()):
            await anyio.sleep_forever()
        return item

    watched = Watched(fan_out(work, over="n", into="out"))
    async with no_leaks():
        with anyio.move_on_after(2) as scope:
            with pytest.RaisesGroup(ValueError) if cause == "sibling" else nullcontext():
                await watched.go({"n": [0, 1, 2]})
    assert scope.cancelled_caught == (cause == "outside")
    watched.check()
    assert watched.state["out"] == []
    outcomes = {event.outcome.key: event.outcome for event in watched.of(ChildEnded)}
    for late in (outcomes[1], outcomes[2]):
        assert isinstance(late, Done)
        assert not late.used


async def test_a_run_that_swallows_its_cancellation_ends_well_but_its_caller_does_not():
    @action(reads=[], writes=["x"])
    async def work() -> int:
        with suppress(anyio.get_cancelled_exc_class()):
            await anyio.sleep_forever()
        return 1

    watched = Watched(work)
    async with no_leaks():
        with anyio.move_on_after(1) as scope:
            await watched.go({})
    assert scope.cancelled_caught
    watched.check()


# -- false cancellation ----------------------------------------------------------------------------


async def raise_cancellation() -> None:
    raise cancellation()


async def raise_cancellation_after_waiting() -> None:
    await checkpoint()
    raise cancellation()


async def raise_generator_exit() -> None:
    await checkpoint()
    raise GeneratorExit


async def raise_generator_exit_at_once() -> None:
    raise GeneratorExit


async def raise_stop_iteration() -> None:
    await checkpoint()
    raise StopIteration(1)


async def raise_in_a_task_group() -> None:
    async with anyio.create_task_group():
        await checkpoint()
        raise cancellation()


async def await_a_cancelled_future() -> None:
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.cancel)
    await future


def this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def cancel_own_task_and_wait() -> None:
    this_task().cancel()
    await checkpoint()
    await checkpoint()


async def cancel_own_task_and_go_on() -> None:
    this_task().cancel()


async def cancel_own_task_twice_and_swallow_it() -> None:
    this_task().cancel()
    with suppress(asyncio.CancelledError):
        await checkpoint()
    this_task().cancel()
    with suppress(asyncio.CancelledError):
        await checkpoint()


ANYWHERE = [
    raise_cancellation,
    raise_cancellation_after_waiting,
    raise_generator_exit,
    raise_generator_exit_at_once,
    raise_stop_iteration,
    raise_in_a_task_group,
]
ON_ASYNCIO = [
    await_a_cancelled_future,
    cancel_own_task_and_wait,
    cancel_own_task_and_go_on,
    cancel_own_task_twice_and_swallow_it,
]
MAY_SUCCEED = (
    cancel_own_task_and_go_on,
    cancel_own_task_twice_and_swallow_it,
    raise_in_a_task_group,  # trio's nurseries swallow it
)
Spoil = Callable[[], Coroutine[Any, Any, None]]


async def spoiled_child(spoil: Spoil, limit: int, waits: Any, *, steps: int) -> None:
    @action(reads=["item"], writes=["one"])
    async def one(item: int) -> int:
        if item == 4:
            await spoil()
        else:
            await checkpoint()
        return item

    @action(reads=["one"], writes=["two"])
    async def two(one: int) -> int:
        await checkpoint()
        return one

    graph = one if steps == 1 else Graph.chain(one, two)
    watched = Watched(
        fan_out(
            graph,
            over="n",
            into="out",
            take="one" if steps == 1 else "two",
            on_error="collect",
            errors_into="errors",
            limits=Limits(limit),
        ),
        waits=waits,
    )
    state = await watched.go({"n": range(12)})
    watched.check()
    assert [value for value in state["out"] if value != 4] == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]
    (outcome,) = (e.outcome for e in watched.of(ChildEnded) if e.outcome.element == 4)
    if isinstance(outcome, Failed):
        expected = RuntimeError if spoil is raise_stop_iteration else SpuriousCancel
        assert isinstance(outcome.error, expected)
        assert "key 4" in outcome.error.__notes__[0]
    else:
        assert isinstance(outcome, Done)
        assert spoil in MAY_SUCCEED


@pytest.mark.realtime
@pytest.mark.parametrize("spoil", ANYWHERE)
@waiting
async def test_a_child_that_raises_cancellation_fails_alone(spoil: Spoil, waits: Any):
    async with no_leaks():
        for limit in (1, 3, 20):
            for steps in (1, 2):
                await spoiled_child(spoil, limit, waits, steps=steps)


@every_loop
@pytest.mark.parametrize("spoil", ON_ASYNCIO)
@waiting
def test_a_child_that_cancels_natively_fails_alone(on: str, spoil: Spoil, waits: Any):
    async def go() -> None:
        for limit in (1, 3, 20):
            for steps in (1, 2):
                await spoiled_child(spoil, limit, waits, steps=steps)

    run_asyncio(on, go)


async def spoiled_step(spoil: Spoil, waits: Any) -> None:
    @action(reads=[], writes=["one"])
    async def one() -> int:
        await spoil()
        return 1

    @action(reads=["one"], writes=["two"])
    async def two(one: int) -> int:
        await checkpoint()
        return one + 1

    watched = Watched(Graph.chain(first, one, two, *flat().acts[1:]), waits=waits)
    raised = None
    try:
        await watched.go(STATES["flat"])
    except Exception as error:
        raised = error
    watched.check()
    if raised is None:
        assert spoil in MAY_SUCCEED
        assert watched.state["last"] == 4
        return
    expected = RuntimeError if spoil is raise_stop_iteration else SpuriousCancel
    assert isinstance(raised, expected)
    (end,) = watched.of(RunEnded)
    assert (end.status, end.error) == ("failed", raised)
    assert "action 'one'" in raised.__notes__[0]
    assert "two" not in watched.state


@pytest.mark.realtime
@pytest.mark.parametrize("spoil", ANYWHERE)
@waiting
async def test_a_sequential_step_that_raises_cancellation_fails_its_run(spoil: Spoil, waits: Any):
    async with no_leaks():
        await spoiled_step(spoil, waits)


@every_loop
@pytest.mark.parametrize("spoil", ON_ASYNCIO)
@waiting
def test_a_sequential_step_that_cancels_natively_fails_its_run(on: str, spoil: Spoil, waits: Any):
    run_asyncio(on, spoiled_step, spoil, waits)


@every_loop
@waiting
@pytest.mark.parametrize("fails", [False, True])
def test_an_action_that_cancels_its_own_task_while_all_is_cancelled(
    on: str, waits: Any, fails: bool
):
    """What it leaves behind hits neither a save nor a hook: all that has begun has its end."""
    scopes: list[anyio.CancelScope] = []

    @action(reads=["item"], writes=["one"])
    async def one(item: int) -> int:
        scopes[-1].cancel()
        with anyio.CancelScope(shield=True):
            for _ in range(5):  # until the run is cancelled
                await checkpoint()
        this_task().cancel()
        if fails:
            raise ValueError(item)
        return item

    @action(reads=["one"], writes=["two"])
    async def two(one: int) -> int:
        await checkpoint()
        return one

    chain = Graph.chain(one, two, name="chain")
    wide = fan_out(chain, over="n", into="out", take="two", on_error="collect", name="wide")
    below = fan_out(wide, over="m", item="n", into="outs", take="out", on_error="collect")
    inner = Graph.chain(first, chain, name="inner")

    async def go() -> None:
        for act in (one, chain, wide, below, inner):
            watched = Watched(act, waits=waits)
            with suppress(ValueError), anyio.CancelScope() as scope:
                scopes.append(scope)
                await watched.go({"item": 1, "n": [1, 2], "m": [[1, 2], [3]]})
            watched.check()
            assert [event.status for event in watched.of(RunEnded)] != []

    run_asyncio(on, go)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("limit", [2, 5])
def test_a_stale_native_cancel_never_ends_a_fan_out_early(seed: int, limit: int):
    """A child that has long ended left a timer behind, which cancels the task it had run in."""

    @action(reads=["item"], writes=["value"])
    async def work(item: int) -> int:
        if item == 0:
            asyncio.get_running_loop().call_later(5, this_task().cancel)
            await anyio.sleep(1)
        else:
            await anyio.sleep(10)
        return item

    async def go() -> None:
        watched = Watched(
            fan_out(work, over="n", into="out", on_error="collect", limits=Limits(limit))
        )
        async with no_leaks():
            state = await watched.go({"n": range(4)})
        watched.check()
        # it may hit whoever is in that task by then, and nobody else
        assert len(watched.of(ChildEnded)) == 4
        assert len(state["out"]) >= (3 if limit == 2 else 4)
        outcomes = [event.outcome for event in watched.of(ChildEnded)]
        for outcome in outcomes:
            if isinstance(outcome, Failed):
                assert isinstance(outcome.error, SpuriousCancel)

    run_virtual(go, seed=seed)


@every_loop
@waiting
def test_a_native_cancel_that_a_child_leaves_for_the_next_turn_is_never_passed_over(
    on: str, waits: Any
):
    """It hits whatever is in that task by then: another child, or a save. Somebody fails of it."""

    @action(reads=["item"], writes=["one"])
    async def one(item: int) -> int:
        if item == 4:
            asyncio.get_running_loop().call_soon(this_task().cancel)
        else:
            await checkpoint()
        return item

    async def go() -> None:
        for limit in (1, 3, 20):
            for chain in (Graph.chain(one), Graph.chain(one, first)):
                watched = Watched(
                    fan_out(
                        chain,
                        over="n",
                        into="out",
                        take="one",
                        on_error="collect",
                        limits=Limits(limit),
                    ),
                    waits=waits,
                )
                try:
                    await watched.go({"n": range(12)})
                except CommitInDoubt:
                    watched.hook.assert_paired()
                else:
                    watched.check()
                    assert len(watched.of(ChildEnded)) == 12
                    failed = [e for e in watched.of(ChildEnded) if isinstance(e.outcome, Failed)]
                    assert len(failed) <= 1

    run_asyncio(on, go)


@pytest.mark.parametrize("seed", range(8))
def test_a_stale_native_cancel_of_the_runs_own_task_is_a_failure(seed: int):
    @action(reads=[], writes=["left"])
    async def leave_a_timer() -> None:
        asyncio.get_running_loop().call_later(5, this_task().cancel)

    @action(reads=["item"], writes=["value"])
    async def work(item: int) -> int:
        await anyio.sleep(10)
        return item

    async def go() -> None:
        watched = Watched(Graph.chain(leave_a_timer, fan_out(work, over="n", into="out")))
        async with no_leaks():
            with pytest.raises(SpuriousCancel):
                await watched.go({"n": range(3)})
        watched.check()
        (end,) = watched.of(RunEnded)
        assert end.status == "failed"
        assert anyio.current_time() == 5

    run_virtual(go, seed=seed)


@pytest.mark.realtime
@pytest.mark.parametrize("observer", [False, True])
@pytest.mark.parametrize(
    "kind", [RunStarted, StepStarted, ChildStarted, StateUpdated, ChildEnded, StepEnded, RunEnded]
)
async def test_a_hook_that_raises_cancellation_is_a_hook_that_fails(
    kind: type[Event], *, observer: bool
):
    class Broken(Hook):
        async def on_run_started(self, event: Any) -> None:
            if isinstance(event, kind):
                raise cancellation()

        on_step_started = on_state_updated = on_child_started = on_child_ended = on_run_started
        on_step_ended = on_run_ended = on_run_started

    Broken.observer = observer
    watched = Watched(flat())
    watched.app.hooks = (Broken(), *watched.app.hooks)
    async with no_leaks():
        with nullcontext() if observer else pytest.raises(HookFailed):
            await watched.go(STATES["flat"])
    watched.check()


# -- KeyboardInterrupt and SystemExit --------------------------------------------------------------


PLACES = [
    "action",
    "child",
    "cleanup after a failure",
    "cleanup after a reducer's failure",
    "cleanup after a cancellation",
    "over",
    "async over",
    "key",
    "take",
    "reduce",
    "grow",
    "hook: RunStarted",
    "hook: ChildStarted",
    "hook: StateUpdated",
    "hook: ChildEnded",
    "hook: RunEnded",
]


def interrupted(place: str, kind: type[BaseException]) -> tuple[Watched, list[int]]:
    """An application in which ``kind`` is raised in ``place``, and what its children cleaned up."""
    cleaned = list[int]()

    def boom(here: str) -> None:
        if here == place:
            raise kind("stop")

    @action(reads=[], writes=["begun"])
    async def begin() -> None:
        await checkpoint()
        boom("action")

    @action(reads=["item"], writes=["value"])
    async def work(item: int) -> int:
        try:
            await checkpoint()
            if item == 2:
                if place == "cleanup after a failure":
                    raise ValueError
                boom("child")
            if item == 3:
                await anyio.sleep_forever()
            if item == 4 and "cancellation" in place:
                await anyio.sleep_forever()
        finally:
            cleaned.append(item)
            if item == 3 and "cleanup" in place:
                boom(place)
        return item

    def numbers(state: State) -> Iterator[int]:
        yield from range(5)
        boom("over")

    async def numbers_async(state: State) -> AsyncIterator[int]:
        for n in range(5):
            yield n
        await checkpoint()
        boom("async over")

    def key(element: int) -> int:
        if element == 4:
            boom("key")
        return element

    def take(state: State) -> int:
        boom("take")
        return state["value"]

    def reduce(state: State, outcome: Outcome) -> State:
        if outcome.position == 1:
            boom("reduce")
            if "reducer" in place:
                raise LookupError
        return state.append(out=outcome.position)

    def grow(state: State, outcome: Outcome) -> list[int]:
        boom("grow")
        return []

    class Booming(Hook):
        def on_run_started(self, event: Any) -> None:
            boom(f"hook: {type(event).__name__}")

        on_state_updated = on_child_started = on_child_ended = on_run_ended = on_run_started

    work_all = fan_out(
        work,
        over=numbers_async if place == "async over" else numbers,
        reads=["-"],
        key=key,
        take=take,
        reduce=reduce,
        grow=grow,
        writes=["out"],
        name="f",
    )
    return Watched(Graph.chain(begin, work_all), hooks=[Booming()]), cleaned


class Panic(BaseException):
    """What an extension module may raise."""


every_fatal = pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, Panic])


@pytest.mark.realtime
@every_fatal
@pytest.mark.parametrize("place", PLACES)
async def test_keyboard_interrupt_and_system_exit_come_bare_out_of_run(
    place: str, kind: type[BaseException]
):
    watched, cleaned = interrupted(place, kind)
    caught: BaseException | None = None
    async with no_leaks(), anyio.create_task_group() as tasks:
        if "cancellation" in place:
            tasks.start_soon(cancel_in_time, watched, tasks.cancel_scope)
        try:
            await watched.go({"-": None})
        except BaseException as error:
            caught = error
        tasks.cancel_scope.cancel()
    assert repr(caught) == f"{kind.__name__}('stop')"
    if not place.startswith("hook"):
        watched.check()
        assert sorted(cleaned) == sorted(event.element for event in watched.of(ChildStarted))


async def cancel_in_time(watched: Watched, scope: anyio.CancelScope) -> None:
    """Cancel once child 3 waits for ever."""
    while 3 not in [event.element for event in watched.of(ChildStarted)]:
        await checkpoint()
    for _ in range(10):
        await checkpoint()
    scope.cancel()


@every_fatal
@pytest.mark.parametrize("children", [False, True])
async def test_they_outrank_a_cancellation_that_is_under_way(
    kind: type[BaseException], *, children: bool
):
    @action(reads=["item"], writes=["-"])
    async def work(item: int) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise kind("stop")

    watched = Watched(fan_out(work, over="n", name="f") if children else work)
    async with no_leaks():
        with pytest.raises(kind, match="stop"), anyio.move_on_after(1):
            await watched.go({"item": 1, "n": range(3)})
    watched.check()


@every_loop
def test_an_interrupt_is_not_lost_to_a_native_cancel_at_any_turn(on: str):
    async def once(turn: int) -> bool:
        raised = caught = False

        @action(reads=["item"], writes=["-"])
        async def work(item: int) -> None:
            nonlocal raised
            for _ in range(5):
                await checkpoint()
            if item == 1:
                raised = True
                raise KeyboardInterrupt

        async def caller() -> None:
            nonlocal caught
            try:
                await watched.go({"n": range(3)})
            except KeyboardInterrupt:
                caught = True

        watched = Watched(fan_out(work, over="n", name="f"), waits=checkpoint)
        task = asyncio.create_task(caller())
        await spin(turn)
        ended = not task.cancel()
        await asyncio.wait([task])
        watched.check()
        assert caught == raised
        assert task.cancelled() == (not caught)
        return ended

    run_asyncio(on, at_any_turn, once)


@every_fatal
@pytest.mark.parametrize("place", [place for place in PLACES if "cancellation" not in place])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_keyboard_interrupt_and_system_exit_come_bare_out_of_run_sync(
    place: str, kind: type[BaseException], backend: Any
):
    watched, _ = interrupted(place, kind)
    with pytest.raises(kind) as caught:
        watched.app.run_sync({"-": None}, backend=backend)
    assert caught.value.args == ("stop",)


def kept_before_the_interrupt(backend: str) -> tuple[Watched, BaseException | None]:
    """Ctrl-C in the middle of a commit: the store has just kept a batch."""
    watched = Watched(flat())
    pressed = False

    def press(batch: Batch) -> None:
        nonlocal pressed
        if not pressed and batch.applied:
            pressed = True
            signal.raise_signal(signal.SIGINT)

    watched.store.after_keeping = press
    try:
        anyio.run(watched.go, STATES["flat"], backend=backend)
    except BaseException as error:
        return watched, error
    return watched, None


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_interrupt_in_the_middle_of_a_commit_does_not_tear_it(backend: str):
    watched, error = kept_before_the_interrupt(backend)
    assert type(error) is KeyboardInterrupt
    watched.check()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_interrupt_in_a_condition_comes_out_of_the_run_and_leaves_the_step_completed(
    backend: Any,
):
    hook = RecordingHook()
    stopped: list[str] = []

    def press(item: int) -> bool:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:  # on trio; asyncio delivers it at the run's next wait
            stopped.append("at once")
            raise
        return True

    @action(reads=["item"])
    async def act(item: int) -> None: ...

    @action()
    async def wait() -> None:
        await anyio.sleep(60)

    graph = Graph((act, wait, press), (wait, act), entry=act)
    app = Application(graph, hooks=[hook])
    with pytest.raises(KeyboardInterrupt):
        app.run_sync({"item": 1}, backend=backend)
    hook.assert_paired()
    ended = [(event.step, event.status) for event in hook.of(StepEnded)]
    assert ended[0] == ("act", "succeeded")
    assert stopped == (["at once"] if backend == "trio" else [])


PROGRAM = """
    import signal, sys
    import anyio
    from shoal import Application, action, fan_out
    from shoal.testing import RecordingHook

    cleaned = []

    @action(reads=["item"], writes=["-"])
    async def work(item: int) -> None:
        try:
            if item == 4:
                print("ready", flush=True)
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)
            cleaned.append(item)

    hook = RecordingHook()
    app = Application(fan_out(work, over="n", name="f"), hooks=[hook])
    try:
        app.run_sync({"n": range(5)}, backend=sys.argv[1])
    except KeyboardInterrupt:
        hook.assert_paired()
        print("interrupted", sorted(cleaned), hook.events[-1].status, flush=True)
        raise
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_ctrl_c_ends_a_program_cleanly(backend: str):
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(PROGRAM), backend]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        program.send_signal(signal.SIGINT)
        out, error = program.communicate()
    assert out == "interrupted [0, 1, 2, 3, 4] cancelled\n"
    assert "ExceptionGroup" not in error
    assert error.rstrip().splitlines()[-1].startswith("KeyboardInterrupt")
    assert program.returncode == -signal.SIGINT


# -- other frames around ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_failing_sibling_in_a_trio_nursery_at_any_turn(name: str):
    async def once(turn: int) -> bool:
        watched = Watched(SCENARIOS[name](), waits=checkpoint)
        ended = False

        async def fail() -> None:
            await turns(turn)
            raise LookupError

        async def run() -> None:
            nonlocal ended
            with suppress(ExceptionGroup):
                await watched.go(STATES[name])
            ended = True

        with pytest.RaisesGroup(LookupError):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run)
                nursery.start_soon(fail)
        watched.check()
        return ended

    run_virtual(at_any_turn, once, backend="trio", seed=1)


@pytest.mark.realtime
async def test_two_runs_side_by_side_are_cancelled_apart():
    kept, stopped = Watched(nested(on_error="collect")), Watched(nested(on_error="collect"))
    scope = anyio.CancelScope()

    async def stop() -> None:
        with scope:
            await stopped.go(STATES["nested"])

    async with no_leaks(), anyio.create_task_group() as tasks:
        tasks.start_soon(kept.go, STATES["nested"])
        tasks.start_soon(stop)
        await turns(6)
        scope.cancel()
    kept.check()
    assert kept.state["last"] == 2
    stopped.check()
    assert scope.cancelled_caught
