"""What a store is asked to keep: whole batches, before anybody sees what is in them."""

# pyright: reportPrivateUsage=false
# Runs are put together by hand, to see their state after they failed.

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import anyio
import anyio.lowlevel
import pytest

from shoal import (
    Application,
    Done,
    Graph,
    Hook,
    Limits,
    MemoryStore,
    Outcome,
    RunPath,
    State,
    StoreFailed,
    action,
    fan_out,
    first,
    when,
)
from shoal._engine.config import RunConfig
from shoal._engine.execution import Execution
from shoal._engine.run import Run
from shoal._events.hooks import Hooks
from shoal._graph.graph import as_graph
from shoal._runtime.root_run import RootRun
from shoal._runtime.runtime import Runtime
from shoal._runtime.start import RunRequest, RunStart
from shoal.errors import CommitInDoubt, HookFailed, NoTransition
from shoal.events import (
    ChildEnded,
    Put,
    RunEnded,
    Set,
    StateUpdated,
    StepEnded,
    StepStarted,
    Update,
)
from shoal.stores import replay
from shoal.stores._protocol import Batch, Beginning, NullStore
from shoal.testing import RecordingHook, run_virtual
from shoal.types import FanOut

pytestmark = pytest.mark.anyio


# -- a store, and runs in it ---------------------------------------------------------------------


@dataclass
class Save:
    """What one batch held when it was handed over."""

    run_id: str
    updates: tuple[Update, ...]
    applied: tuple[Outcome, ...]
    unapplied: tuple[Outcome, ...]
    last_updates: dict[str, Update | None]
    step_completed: str | None
    ended: str | None

    @classmethod
    def of(cls, batch: Batch) -> Save:
        children = (*batch.applied, *batch.unapplied)
        return cls(
            run_id=batch.path.id,
            updates=tuple(batch.updates),
            applied=tuple(child.outcome for child in batch.applied),
            unapplied=tuple(child.outcome for child in batch.unapplied),
            last_updates={child.path.id: child.last_update for child in children},
            step_completed=batch.step_completed,
            ended=batch.ended,
        )

    def brief(self) -> str:
        numbers = ",".join(str(update.number) for update in self.updates)
        ends = "".join(
            f" {sign}{outcome.key}:{type(outcome).__name__}"
            for sign, outcomes in (("+", self.applied), ("-", self.unapplied))
            for outcome in outcomes
        )
        after = f" {self.step_completed} completed" if self.step_completed else ""
        return f"[{numbers}]{ends}{after}{' ' + self.ended if self.ended else ''}"


Acknowledge = Callable[[Save], Awaitable[None] | None]


@dataclass
class RecordingStore(NullStore):
    """Keeps what it was given; ``kept`` once it has acknowledged it."""

    acknowledge: Acknowledge = lambda _: None
    given: list[Save] = field(default_factory=list[Save])
    kept: list[Save] = field(default_factory=list[Save])

    def save(self, batch: Batch) -> Awaitable[None] | None:
        save = Save.of(batch)
        self.given.append(save)
        pending = self.acknowledge(save)
        if pending is None:
            self.kept.append(save)
            return None
        return self._later(pending, save)

    async def _later(self, pending: Awaitable[None], save: Save) -> None:
        await pending
        self.kept.append(save)

    def of(self, run_id: str) -> list[str]:
        return [save.brief() for save in self.given if save.run_id == run_id]

    def updates_of(self, run_id: str) -> list[Update]:
        """All kept updates of a run, by whomever they were saved."""
        own = [update for save in self.kept if save.run_id == run_id for update in save.updates]
        last = [save.last_updates.get(run_id) for save in self.kept]
        return own + [update for update in last if update is not None]

    def ends_of(self, run_id: str) -> list[Outcome]:
        outcomes = [o for save in self.kept for o in (*save.applied, *save.unapplied)]
        return [outcome for outcome in outcomes if outcome.run_id == run_id]


class SeesOnlyWhatIsKept(Hook):
    """Checks at every event that the store has kept what it is told of."""

    def __init__(self, store: RecordingStore) -> None:
        self._store = store
        self.checked = 0

    def on_state_updated(self, event: StateUpdated) -> None:
        assert event.update in self._store.updates_of(event.run_id)
        self.checked += 1

    def on_step_ended(self, event: StepEnded) -> None:
        if event.status == "succeeded":
            completed = [s.step_completed for s in self._store.kept if s.run_id == event.run_id]
            ended = any(isinstance(o, Done) for o in self._store.ends_of(event.run_id))
            assert event.step in completed or ended
            self.checked += 1

    def on_child_ended(self, event: ChildEnded) -> None:
        assert event.outcome in self._store.ends_of(event.outcome.run_id)
        self.checked += 1

    def on_run_ended(self, event: RunEnded) -> None:
        if event.depth:
            assert len(self._store.ends_of(event.run_id)) == 1
        else:
            assert [s.ended for s in self._store.kept if s.ended] == [event.status]
        self.checked += 1


async def live(
    act: Any,
    state: Mapping[str, object],
    store: RecordingStore,
    *hooks: Hook,
    commit_deadline: float = 30,
    made: list[Run] | None = None,
) -> Run:
    """Run as an application does, and return the run itself, however it ended."""
    async with Runtime(store=store, commit_deadline=commit_deadline) as runtime:
        execution = Execution(runtime.services, Hooks(hooks), runtime.store)
        config = RunConfig(graph=as_graph(act, "live"), inputs={}, execution=execution, act="app")
        beginning = Beginning(application="app", version="1", first=state)
        request = RunRequest(RunStart.of(beginning), {}, RunPath(run_id="root", act="app"))
        root = RootRun(request, config, "app")
        task = runtime.begin(root)
        interruption = await task.wait() or task.fatal
    if made is not None and root.run is not None:
        made.append(root.run)
    if interruption is not None:
        raise interruption
    assert root.run is not None
    return root.run


def in_order(mapping: Any) -> list[Any]:
    return list(mapping.items())


@action(reads=["item"], writes=["twice"])
async def double(item: int) -> int:
    return 2 * item


@action(reads=["twice"], writes=["out"])
async def negate(twice: int) -> int:
    return -twice


@action(reads=["item"], writes=["out"])
async def no_twos(item: int) -> int:
    await anyio.lowlevel.checkpoint()
    if item == 2:
        raise LookupError("two")
    return item


@action(reads=["out"], writes=["last"])
async def negate_out(out: int) -> int:
    return -out


@action()
async def nothing() -> None: ...


@action()
async def pause() -> None:
    await anyio.sleep(1)


pair = Graph.chain(double, negate, name="pair")


def add_up(state: State, outcome: Outcome) -> State:
    if isinstance(outcome, Done):
        return state.increment(total=outcome.value).append(order=outcome.key)
    return state.append(failed=outcome.key)


def next_ones(state: State, outcome: Outcome) -> list[int]:
    element: int = outcome.element
    return [10 * element, 10 * element + 1, 1] if element < 30 else []


PROGRAMS: dict[str, FanOut | Graph] = {
    "steps": Graph.chain(nothing, pair.acts[0], pair.acts[1]),
    "list": fan_out(pair, over="items", into="out"),
    "mapping": fan_out(pair, over="items", key=str, into="out"),
    "collect": fan_out(no_twos, over="items", into="out", errors_into="bad", on_error="collect"),
    "reduce": fan_out(
        no_twos,
        over="items",
        reduce=add_up,
        writes=["total", "order", "failed"],
        on_error="collect",
        name="sum",
    ),
    "grow": fan_out(
        no_twos, over="items", key=str, into="out", grow=next_ones, at_most=9, on_error="collect"
    ),
    "nested": Graph.chain(
        nothing,
        fan_out(
            Graph.chain(
                fan_out(no_twos, over="group", into="inner", take="out", on_error="collect"),
                nothing,
                fan_out(pair, over="inner", item="item", into="more", take="out"),
            ),
            over="groups",
            item="group",
            into="outer",
            take="more",
        ),
        fan_out(pair, over="items", into="out"),
    ),
}
BEGINNING = {"item": 1, "items": [3, 2, 1], "groups": [[1, 2, 3], [4]], "out": {"3": "known"}}
all_programs = pytest.mark.parametrize("program", PROGRAMS)


# -- what a batch holds --------------------------------------------------------------------------


async def test_after_a_save_that_failed_nothing_more_is_saved_or_logged(
    caplog: pytest.LogCaptureFixture,
):
    @action(writes=["n"])
    async def one() -> int:
        return 1

    store = MemoryStore()
    save, saves = store.save, list[Batch]()

    def failing(batch: Batch) -> None:
        saves.append(batch)
        if len(saves) > 1:
            raise OSError("the disk is full")
        save(batch)

    store.save = failing  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(StoreFailed, match="the disk is full"):
        await Application(one, store=store).run({}, id="x")
    assert len(saves) == 2
    assert not caplog.records, "the caller has that failure already"


async def test_each_step_is_one_save_and_so_is_the_end():
    store = RecordingStore()
    await live(Graph.chain(double, nothing, negate), {"item": 1}, store, RecordingHook())
    assert store.of("root") == [
        "[1] double completed",
        "[] nothing completed",
        "[2] negate completed",
        "[] succeeded",
    ]
    assert [update.operations for save in store.kept for update in save.updates] == [
        (Set("twice", 2),),
        (Set("out", -2),),
    ]
    assert [update.step for save in store.kept for update in save.updates] == ["double", "negate"]


async def test_a_step_is_saved_as_completed_although_what_follows_it_cannot_be_found():
    store = RecordingStore()
    graph = Graph((double, negate, when(twice=0)), (negate, nothing))
    run = await live(graph, {"item": 1}, store)
    assert type(run.error) is NoTransition
    assert store.of("root") == ["[1] double completed", "[] failed"]
    assert run.state["twice"] == 2
    store = RecordingStore()
    each = fan_out(graph, over="items", name="each", on_error="collect")
    await live(each, {"items": [1]}, store)
    child, parent, *_ = [save.brief() for save in store.given if save.run_id]
    assert child == "[1] double completed"
    assert parent == "[1] +0:Failed"


async def test_many_outcomes_are_one_save_with_the_last_update_of_each_child():
    store = RecordingStore()
    run = await live(fan_out(double, over="items", into="out"), {"items": range(50)}, store)
    assert run.state["out"] == [2 * number for number in range(50)]
    batches = [save for save in store.given if save.applied]
    assert len(batches) <= 2, "children that end together are saved together"
    assert {save.run_id for save in store.given} == {"root"}, "and by nobody else"
    for save in batches:
        assert len(save.updates) == len(save.applied)
        positions = [outcome.position for outcome in save.applied]
        assert positions == sorted(positions)
        for update, outcome in zip(save.updates, save.applied, strict=True):
            assert isinstance(outcome, Done)
            value = 2 * outcome.position
            assert outcome.value == value
            assert update.operations == (Put("out", outcome.key, value, outcome.position),)
            last = save.last_updates[outcome.run_id]
            assert last == Update(1, "double", (Set("twice", value),))
    numbers = [update.number for save in store.given for update in save.updates]
    assert numbers == list(range(1, 52))
    assert store.of("root")[-1] == "[] out completed succeeded"


async def test_a_child_saves_its_earlier_steps_itself_and_its_last_with_its_parent():
    store = RecordingStore()
    await live(
        fan_out(Graph.chain(double, nothing, negate), over="items", into="out"),
        {"items": [1]},
        store,
    )
    assert [(save.run_id == "root", save.brief()) for save in store.given] == [
        (True, "[1]"),
        (False, "[1] double completed"),
        (False, "[] nothing completed"),
        (True, "[2] +0:Done"),
        (True, "[] out completed succeeded"),
    ]
    (last,) = store.given[3].last_updates.values()
    assert last == Update(2, "negate", (Set("out", -2),))


async def test_failures_are_applied_where_they_are_collected():
    store = RecordingStore()
    await live(PROGRAMS["collect"], {"items": [1, 2, 3]}, store)
    ends = {o.key: type(o).__name__ for save in store.kept for o in save.applied}
    assert ends == {0: "Done", 1: "Failed", 2: "Done"}
    assert [save for save in store.kept if save.unapplied] == []
    failed = next(o for save in store.kept for o in save.applied if o.key == 1)
    assert [save.last_updates[failed.run_id] for save in store.kept if failed in save.applied] == [
        None
    ]


async def test_what_ends_unapplied_is_saved_too():
    @action(reads=["item"], writes=["out"])
    async def sleep(item: int) -> int:
        await anyio.sleep(item)
        if item == 2:
            raise LookupError("two")
        return item

    store = RecordingStore()
    run = await live(fan_out(sleep, over="items", into="out"), {"items": [9, 2, 1]}, store)
    assert isinstance(run.error, ExceptionGroup)
    assert store.of("root") == [
        "[1]",
        "[2] +2:Done",
        "[] -1:Failed",
        "[] -0:Cancelled",
        "[] failed",
    ]


async def test_what_is_skipped_is_applied_and_what_is_discovered_is_saved_with_its_cause():
    store = RecordingStore()
    await live(PROGRAMS["mapping"], BEGINNING, store)
    ends = {o.key: type(o).__name__ for save in store.kept for o in save.applied}
    assert ends == {"3": "Skipped", "2": "Done", "1": "Done"}

    store = RecordingStore()
    await live(PROGRAMS["grow"], {"items": [1, 25]}, store)
    found = {
        outcome.element: update.discovered
        for save in store.kept
        for update, outcome in zip(save.updates, save.applied, strict=False)
        if save.applied
    }
    causes = {1: (10, 11), 25: (250, 251), 10: (100, 101), 11: (110, 111)}
    leaves = {250, 251, 100, 101, 110, 111}
    assert found.items() >= causes.items()
    assert len(found) == 9, "one of the leaves is one too many"
    assert all(key in leaves and found[key] == () for key in found.keys() - causes)


@all_programs
async def test_replaying_what_was_saved_gives_the_state(program: str):
    store = RecordingStore()
    run = await live(PROGRAMS[program], BEGINNING, store)
    assert run.error is None
    updates = store.updates_of("root")
    assert [update.number for update in updates] == list(range(1, run.number + 1))
    state = State(BEGINNING)
    for update in updates:
        state = replay(state, update.operations)
    assert state == run.state
    for name, value in run.state.items():
        if isinstance(value, Mapping):
            assert in_order(state[name]) == in_order(value)


@all_programs
async def test_the_updates_of_every_run_are_numbered_without_gaps(program: str):
    store = RecordingStore()
    await live(PROGRAMS[program], BEGINNING, store)
    runs = {save.run_id for save in store.kept} | {
        i for save in store.kept for i in save.last_updates
    }
    for run_id in runs:
        numbers = [update.number for update in store.updates_of(run_id)]
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(store.ends_of(run_id)) == (run_id != "root")


# -- before anybody sees it ----------------------------------------------------------------------


def at_once(_: Save) -> None: ...


async def slow(_: Save) -> None:
    await anyio.sleep(1)


async def turn(_: Save) -> None:
    await anyio.lowlevel.checkpoint()


@all_programs
@pytest.mark.parametrize("acknowledge", [at_once, slow, turn])
async def test_nothing_is_seen_before_it_is_saved(program: str, acknowledge: Acknowledge):
    store = RecordingStore(acknowledge)
    hook = SeesOnlyWhatIsKept(store)
    run = await live(PROGRAMS[program], BEGINNING, store, hook)
    assert run.error is None
    assert hook.checked > 5


async def test_a_slow_store_holds_the_run_back():
    store = RecordingStore(slow)
    at: list[tuple[str, float]] = []

    class Times(Hook):
        def on_step_started(self, event: StepStarted) -> None:
            at.append((event.step, anyio.current_time()))

    await live(Graph.chain(double, negate), {"item": 1}, store, Times())
    assert at == [("double", pytest.approx(0)), ("negate", pytest.approx(1))]
    assert anyio.current_time() == pytest.approx(2)


async def test_a_slow_store_holds_the_source_back():
    pulled: list[int] = []

    def source(state: State) -> Any:
        for number in range(100):
            pulled.append(number)
            yield number

    async def very_slow(save: Save) -> None:
        if save.applied:
            seen.append(len(pulled))
            await anyio.sleep(10)

    seen: list[int] = []
    act = fan_out(double, over=source, reads=[], into="out", limits=Limits(5))
    await live(act, {}, RecordingStore(very_slow))
    assert len(pulled) == 100
    assert seen[0] <= 6, "five in flight until they are saved"
    assert all(later - earlier <= 6 for earlier, later in pairwise(seen))


@action(reads=["item"], writes=["turns"])
async def take_turns(item: int) -> int:
    for _ in range(item):
        await anyio.lowlevel.checkpoint()
    return item


@pytest.mark.parametrize("turns", [0, 1])
async def test_quick_children_are_saved_as_many_at_once_as_are_in_flight(turns: int):
    store = RecordingStore(slow)
    act = fan_out(take_turns, over="items", into="out", limits=Limits(10))
    await live(act, {"items": [turns] * 100}, store)
    sizes = [len(save.applied) for save in store.given if save.applied]
    assert sum(sizes) == 100
    assert len(sizes) <= 11


async def test_children_that_end_later_are_not_awaited_for_longer_than_a_few_turns():
    store = RecordingStore(slow)
    act = fan_out(take_turns, over="items", into="out", limits=Limits(400))
    await live(act, {"items": [turns for turns in range(20, 60) for _ in range(10)]}, store)
    saved = next(save for save in store.given if save.applied)
    assert len(saved.applied) < 200


def one_after_the_other(count: int, **options: Any) -> Graph:
    """Children that begin to count in the same turn of the event loop, and end turn by turn."""
    away = count
    all_are_here = anyio.Event()

    @action(reads=["item"], writes=["turns"])
    async def take_turns_together(item: int) -> int:
        nonlocal away
        away -= 1
        if not away:
            all_are_here.set()
        await all_are_here.wait()
        return await take_turns.function(item)

    act = take_turns_together
    step = fan_out(act, over="items", into="out", limits=Limits(count), **options)
    return Graph.chain(nothing, step)  # before the children there was a save


async def test_where_no_save_is_waited_for_nobody_waits_for_more_to_end():
    store = RecordingStore()
    await live(one_after_the_other(20), {"items": range(10, 30)}, store)
    sizes = [len(save.applied) for save in store.given if save.applied]
    assert sum(sizes) == 20
    assert max(sizes) <= 2


async def test_an_end_that_may_decide_is_judged_before_more_end():
    store = RecordingStore(slow)
    graph = one_after_the_other(20, until=first())
    run = await live(graph, {"items": range(10, 30)}, store)
    assert run.state["out"] == 10
    saved = next(save for save in store.given if save.applied)
    assert len(saved.applied) + len(saved.unapplied) <= 2


async def test_a_child_is_in_flight_until_its_end_is_saved():
    """Children are quicker than saves: no more begin than there are places."""
    begun = unsaved = most = 0

    async def slowly(save: Save) -> None:
        nonlocal unsaved
        await anyio.sleep(1)
        unsaved -= len(save.applied)

    @action(reads=["item"], writes=["twice"])
    async def quick(item: int) -> int:
        nonlocal begun, unsaved, most
        begun, unsaved = begun + 1, unsaved + 1
        most = max(most, unsaved)
        await anyio.sleep(0.25 * (1 + item % 2))
        return 2 * item

    step = fan_out(quick, over="items", into="out", limits=Limits(3))
    await live(step, {"items": list(range(12))}, RecordingStore(slowly))
    assert (begun, most) == (12, 3)


async def test_a_save_may_take_as_long_as_the_deadline():
    async def just_in_time(_: Save) -> None:
        await anyio.sleep(29.9)

    run = await live(double, {"item": 1}, RecordingStore(just_in_time))
    assert run.status == "succeeded"


# -- cancellation --------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", [0.5, 1.5, 2.5, 3.5])
async def test_a_save_is_not_cancelled(moment: float):
    store = RecordingStore(slow)
    hook = RecordingHook()
    act = Graph.chain(fan_out(pair, over="items", into="out"), pause)
    with anyio.move_on_after(moment) as scope:
        await live(act, {"items": [1, 2]}, store, hook, SeesOnlyWhatIsKept(store))
    assert scope.cancelled_caught
    assert len(store.kept) == len(store.given), "what was begun was acknowledged"
    assert store.given[-1].ended == "cancelled"
    received = [(event.run_id, event.update) for event in hook.of(StateUpdated)]
    for save in store.kept:
        for update in save.updates:
            assert (save.run_id, update) in received, "and told"
    hook.assert_paired()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("program", ["sleepy", "sleepy nested"])
def test_cancelled_at_any_moment_nothing_unsaved_is_seen_and_nothing_is_torn(
    program: str, backend: Literal["asyncio", "trio"]
):
    # all waits are whole seconds, so that ends, saves and the cancellation fall into one tick
    for seed in range(40):
        chance = random.Random(seed)
        waits = [chance.randint(0, 3) for _ in range(200)]

        @action(reads=["item"], writes=["out"])
        async def sleep(item: int, waits: list[int] = waits) -> int:
            await anyio.sleep(waits[item])
            return item

        async def some_time(_: Save, chance: random.Random = chance) -> None:
            await anyio.sleep(chance.choice([0, 0, 1, 2]))

        each = fan_out(
            Graph.chain(sleep, negate_out),
            over="items",
            into="all",
            take="last",
            limits=Limits(chance.choice([2, 4, 100])),
        )
        act = each
        if program == "sleepy nested":
            act = fan_out(each, over="groups", item="items", into="both", take="all")

        async def cancel_somewhen(
            act: FanOut, store: RecordingStore, hook: RecordingHook, runs: list[Run], moment: int
        ) -> bool:
            with anyio.move_on_after(moment) as scope:
                state = {"items": list(range(9)), "groups": [[0, 1, 2], [3], [4, 5, 6, 7]]}
                await live(act, state, store, hook, SeesOnlyWhatIsKept(store), made=runs)
            return scope.cancelled_caught

        store = RecordingStore(chance.choice([at_once, some_time]))
        hook, runs = RecordingHook(), list[Run]()
        moment = chance.randint(1, 6)
        cancelled = run_virtual(
            cancel_somewhen, act, store, hook, runs, moment, backend=backend, seed=seed
        )
        if not runs:
            continue  # before it began
        (run,) = runs
        assert len(store.kept) == len(store.given), seed
        assert run.status == store.given[-1].ended == hook.of(RunEnded)[-1].status, seed
        assert run.status in {"succeeded", "cancelled"}, (seed, run.error)
        assert cancelled or run.status == "succeeded", seed
        hook.assert_paired()
        state = State(items=list(range(9)), groups=[[0, 1, 2], [3], [4, 5, 6, 7]])
        for update in store.updates_of("root"):
            state = replay(state, update.operations)
        assert run.state == state, seed
        if run.status == "succeeded":
            complete = [-n for n in range(9)], [[0, -1, -2], [-3], [-4, -5, -6, -7]]
            assert run.state.get("all", run.state.get("both")) in complete, seed


# -- stores that fail ----------------------------------------------------------------------------


def refuse(_: Save) -> None:
    raise OSError("disk full")


async def refuse_later(_: Save) -> None:
    await anyio.sleep(1)
    raise OSError("disk full")


async def never(_: Save) -> None:
    await anyio.sleep_forever()


async def cancelled_elsewhere(_: Save) -> None:
    """Raise the backend's cancellation, though nobody cancels the run."""
    stray: list[BaseException] = []
    with anyio.CancelScope() as scope:
        scope.cancel()
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class() as error:
            stray.append(error)
            raise
    raise stray[0]


async def fail_at_the_deadline(save: Save) -> None:
    """Answer the end of the wait as some drivers do: by an error of theirs."""
    try:
        await anyio.sleep_forever()
    except anyio.get_cancelled_exc_class():
        raise OSError("connection lost") from None


FAILURES: dict[str, tuple[Acknowledge, type[Exception]]] = {
    "raises": (refuse, StoreFailed),
    "raises later": (refuse_later, StoreFailed),
    "is cancelled elsewhere": (cancelled_elsewhere, CommitInDoubt),
    "never answers": (never, CommitInDoubt),
    "fails at the deadline": (fail_at_the_deadline, CommitInDoubt),
}
all_failures = pytest.mark.parametrize("failure", FAILURES)


def failing_from(number: int, failure: str) -> Acknowledge:
    """Acknowledge what comes before the save with that number; fail ever after."""
    count = 0

    def acknowledge(save: Save) -> Awaitable[None] | None:
        nonlocal count
        count += 1
        return FAILURES[failure][0](save) if count >= number else None

    return acknowledge


@all_failures
async def test_a_failing_store_ends_the_run_at_its_last_saved_state(failure: str):
    store, hook = RecordingStore(failing_from(2, failure)), RecordingHook()
    run = await live(Graph.chain(double, negate, nothing), {"item": 1}, store, hook)
    assert type(run.error) is FAILURES[failure][1]
    assert "run root" in str(run.error)
    assert run.status == "failed"
    assert run.state == {"item": 1, "twice": 2}, "memory does not advance"
    assert run.number == 1
    assert store.of("root") == ["[1] double completed", "[2] negate completed"], "nothing follows"
    assert [event.step for event in hook.of(StepStarted)] == ["double", "negate"]
    assert [event.update.number for event in hook.of(StateUpdated)] == [1], "nothing is published"
    hook.assert_paired()


async def test_what_the_store_raised_is_the_cause():
    for failure in ("raises", "raises later"):
        run = await live(double, {"item": 1}, RecordingStore(FAILURES[failure][0]))
        assert isinstance(run.error, StoreFailed)
        assert isinstance(run.error.__cause__, OSError)
        assert "disk full" in str(run.error)


async def test_a_save_never_acknowledged_ends_the_run_at_the_deadline():
    for act in (double, PROGRAMS["list"], PROGRAMS["nested"]):
        before = anyio.current_time()
        run = await live(act, BEGINNING, RecordingStore(never))
        assert isinstance(run.error, CommitInDoubt)
        assert "within 30 s" in str(run.error)
        assert anyio.current_time() - before == pytest.approx(30)


async def test_the_deadline_is_the_runtimes():
    run = await live(double, {"item": 1}, RecordingStore(never), commit_deadline=5)
    assert isinstance(run.error, CommitInDoubt)
    assert anyio.current_time() == pytest.approx(5)


async def test_an_application_raises_it():
    application = Application(Graph.chain(double, negate))
    application.store = RecordingStore(never)
    with pytest.raises(CommitInDoubt) as caught:
        await application.run({"item": 1}, id="run-7")
    assert "run-7" in str(caught.value)
    assert anyio.current_time() == pytest.approx(30)


async def test_an_end_that_was_not_saved_is_not_published_as_success():
    store, hook = RecordingStore(failing_from(2, "raises")), RecordingHook()
    run = await live(double, {"item": 1}, store, hook)
    assert isinstance(run.error, StoreFailed)
    assert [event.status for event in hook.of(RunEnded)] == ["failed"]
    assert [event.status for event in hook.of(StepEnded)] == ["succeeded"], "that was saved"
    assert run.state["twice"] == 2


async def test_a_store_that_fails_a_childs_own_save_is_not_collected():
    def acknowledge(save: Save) -> None:
        if save.run_id != "root":
            raise OSError("disk full")

    hook = RecordingHook()
    act = fan_out(pair, over="items", into="out", errors_into="bad", on_error="collect")
    run = await live(act, {"items": [1, 2]}, RecordingStore(acknowledge), hook)
    assert isinstance(run.error, StoreFailed)
    hook.assert_paired()


@all_failures
async def test_starts_and_ends_are_paired_when_the_store_refuses_a_batch(failure: str):
    store, hook = RecordingStore(failing_from(2, failure)), RecordingHook()
    run = await live(fan_out(double, over="items", into="out"), {"items": [1, 2, 3]}, store, hook)
    assert type(run.error) is FAILURES[failure][1]
    assert run.state["out"] == []
    assert [event.update.number for event in hook.of(StateUpdated)] == [1]
    hook.assert_paired()
    assert [type(event.outcome) for event in hook.of(ChildEnded)].count(Done) == 0
    assert len(hook.of(ChildEnded)) == 3


@all_failures
@pytest.mark.parametrize("program", ["collect", "mapping", "nested"])
async def test_wherever_a_store_fails_nothing_unsaved_is_seen_and_all_ends_are_published(
    failure: str, program: str
):
    number = 1
    while True:
        store, hook = RecordingStore(failing_from(number, failure)), RecordingHook()
        began = anyio.current_time()
        run = await live(PROGRAMS[program], BEGINNING, store, hook)
        if len(store.given) < number:
            assert run.error is None
            assert number > 4
            break
        assert type(run.error) is FAILURES[failure][1], number
        assert anyio.current_time() - began <= 30.001, number
        together = store.given[number - 1 :]
        own = {save.run_id for save in together}
        assert len(own) == len(together), "nothing but what was under way beside it"
        for event in hook.events:
            match event:
                case StateUpdated(update=update, run_id=run_id):
                    assert update in store.updates_of(run_id), number
                case ChildEnded(outcome=Done() as outcome):
                    assert outcome in store.ends_of(outcome.run_id), number
                case RunEnded(status="succeeded", run_id=run_id):
                    assert store.ends_of(run_id), number
                case _:
                    pass
        hook.assert_paired()
        state = State(BEGINNING)
        for update in store.updates_of("root"):
            state = replay(state, update.operations)
        assert run.state == state, number
        number += 1


@all_failures
async def test_a_failing_store_does_not_hide_a_cancellation(failure: str):
    @action()
    async def sleep() -> None:
        await anyio.sleep(60)

    with anyio.move_on_after(1) as scope:
        await live(sleep, {}, RecordingStore(FAILURES[failure][0]))
    assert scope.cancelled_caught


# -- results that are not applied ----------------------------------------------------------------


@pytest.mark.parametrize("what", ["reduce", "grow"])
async def test_what_reduce_refused_is_not_in_the_state(what: str):
    def refuse_two(state: State, outcome: Outcome) -> Any:
        if outcome.element == 2:
            raise BufferError("not this one")
        return state if what == "reduce" else ()

    arguments: dict[str, Any] = {what: refuse_two}
    if what == "reduce":
        arguments |= {"name": "sum", "writes": ["total"]}
    else:
        arguments |= {"into": "out", "key": str}
    act = fan_out(no_twos, over="items", errors_into="bad", on_error="collect", **arguments)
    store = RecordingStore()
    run = await live(act, {"items": [1, 2, 3]}, store)
    assert isinstance(run.error, BufferError)
    state = State({"items": [1, 2, 3]})
    for update in store.updates_of("root"):
        state = replay(state, update.operations)
    assert run.state == state
    assert run.state["bad"] == {}


async def test_a_guard_that_raises_after_a_save_leaves_what_was_saved():
    class Guard(Hook):
        def on_child_ended(self, event: ChildEnded) -> None:
            raise LookupError

    store = RecordingStore()
    act = fan_out(double, over="items", into="out")
    run = await live(act, {"items": [1, 2]}, store, Guard())
    assert isinstance(run.error, HookFailed)
    state = State({"items": [1, 2]})
    for update in store.updates_of("root"):
        state = replay(state, update.operations)
    assert run.state == state
    assert store.given[-1].ended == "failed"


def test_an_update_is_a_value():
    update = Update(1, "double", (Set("a", 1),))
    assert update == Update(1, "double", (Set("a", 1),), ())
    changed: Any = update
    with pytest.raises(AttributeError):
        changed.number = 2
