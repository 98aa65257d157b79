"""Limits on actions, applications and runtimes: who may run when, and that no slot is ever lost."""

from __future__ import annotations

import gc
import threading
from collections import Counter
from collections.abc import AsyncGenerator, Generator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from random import Random
from typing import Any, Literal

import anyio
import anyio.from_thread
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from shoal import (
    Action,
    Application,
    Budget,
    Context,
    Done,
    Graph,
    Limits,
    MapStates,
    Outcome,
    Runtime,
    State,
    action,
    fan_out,
)
from shoal._limits.admission import AdmissionController
from shoal._limits.gates import Gate
from shoal._limits.permits import AttemptPermit
from shoal._limits.scheduler import FairScheduler
from shoal.errors import BadUse
from shoal.testing import Attempt, RecordingHook, cancel_everywhere, no_leaks, run_virtual
from shoal.types import Act

pytestmark = pytest.mark.anyio

Backend = Literal["asyncio", "trio"]
backends = pytest.mark.parametrize("backend", ["asyncio", "trio"])


# -- watching --------------------------------------------------------------------------------------


class Gauge:
    """Counts who is inside its blocks, by name, and the most there ever were."""

    def __init__(self) -> None:
        self.now: Counter[object] = Counter()
        self.peak: Counter[object] = Counter()

    @contextmanager
    def __call__(self, *names: object) -> Generator[None]:
        for name in names:
            self.now[name] += 1
            self.peak[name] = max(self.peak[name], self.now[name])
        try:
            yield
        finally:
            for name in names:
                self.now[name] -= 1


def sleeper(
    gauge: Gauge, *, limits: Limits | None = None, seconds: float = 1, name: str = "leaf"
) -> Any:
    """An action that sleeps; it is counted as ``leaf``, and by its name."""

    @action(reads=["n"], writes=["out"], limits=limits, name=name)
    async def sleep(n: int) -> int:
        with gauge(*{"leaf", name}):
            await anyio.sleep(seconds)
        return n

    return sleep


def many(act: Any, n: int = 100, name: str = "many") -> Any:
    """A fan-out over the field ``ns``."""
    return fan_out(act, over="ns", item="n", into="out", name=name, limits=Limits(n))


def gates_of(admission: AdmissionController) -> list[Gate]:
    """All gates that are known."""
    return [
        gate
        for named in admission.limiters.by_owner.values()
        for limiter in named.values()
        for part in limiter.parts
        for gate in part.gates.values()
    ]


def free(runtime: Runtime) -> bool:
    """Whether nobody holds a slot, and nobody waits for one."""
    admission = runtime._admission  # pyright: ignore[reportPrivateUsage]
    return not admission.scheduler.wait_queues and not any(
        gate.used for gate in gates_of(admission)
    )


@asynccontextmanager
async def freed_runtime(**options: Any) -> AsyncGenerator[Runtime]:
    """A runtime in which no slot may be taken when its block is left."""
    async with no_leaks(threads=False), Runtime(**options) as runtime:
        yield runtime
        assert free(runtime)


# -- admission, against a model that looks at everybody each time ----------------------------------


class Interrupted(BaseException):
    """A cancellation."""


class Pending:
    """A waiter that no event loop knows of."""

    def __init__(self) -> None:
        self.is_done = False

    def __await__(self) -> Generator[None]:
        while not self.is_done:
            yield

    def done(self) -> bool:
        return self.is_done

    def set_result(self, result: None, /) -> None:
        assert not self.is_done
        self.is_done = True


class Modelled:
    """A permit, and what the model knows of it."""

    def __init__(self, number: int, permit: AttemptPermit) -> None:
        self.permit = permit
        self.number = number  # of its last arrival
        self.ahead = False
        self.status: Literal["waiting", "granted", "running", "lent", "gone"] = "waiting"
        self.doomed = False  # its task is being cancelled and hasn't noticed
        self.beyond = False  # it was reclaimed though there may have been no room
        self.waits: Any = None  # the coroutine in which its task waits

    @property
    def holds(self) -> bool:
        return self.status in ("granted", "running")


SIZES = (1, 2, 3)


class AdmissionMachine(RuleBasedStateMachine):
    """Attempts that come, wait, release for children, leave and are cancelled over three limits."""

    tells_of_cancelled: bool
    """Whether a waiter knows that its task was cancelled before that task does."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = FairScheduler(Pending, float)
        self.slots = [Gate(size) for size in SIZES]
        self.permits: list[Modelled] = []
        self.arrivals = 0

    # -- the model

    def room(self, one: Modelled) -> bool:
        return all(
            sum(other.holds for other in self.permits if slots in other.permit.needed)
            < (slots.size or 0)
            for slots in one.permit.needed
        )

    def settle(self) -> None:
        """Grant whoever can be admitted, one after the other, always the one that is due first."""
        while able := [
            one
            for one in self.permits
            if one.status == "waiting"
            and not (one.doomed and self.tells_of_cancelled)
            and self.room(one)
        ]:
            first = min(able, key=lambda one: (not one.ahead, one.number))
            first.status = "granted"

    def arrive(self, one: Modelled, waits: Any, *, ahead: bool) -> None:
        self.arrivals += 1
        one.number, one.ahead, one.status = self.arrivals, ahead, "waiting"
        one.waits = waits
        self.settle()
        self.resume(one, at_once=True)

    def resume(self, one: Modelled, *, at_once: bool = False) -> None:
        """Let the task of a permit take its next step."""
        try:
            one.waits.send(None)
        except StopIteration:
            assert one.status == "granted", "it goes on, and must not"
            one.status = "running"
        else:
            assert at_once, "it was granted, and waits"
            assert one.status == "waiting", "it could be admitted, and waits"

    def those(self, *status: str) -> list[Modelled]:
        return [one for one in self.permits if one.status in status and not one.doomed]

    # -- what can happen

    @rule(wanted=st.sets(st.sampled_from(range(len(SIZES))), min_size=1))
    def enter(self, wanted: set[int]) -> None:
        needed = tuple(self.slots[index] for index in sorted(wanted))
        one = Modelled(0, AttemptPermit(self.scheduler, needed))
        self.permits.append(one)
        self.arrive(one, one.permit.wait(), ahead=False)

    @precondition(lambda self: self.those("running"))
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.those("running")))
        one.permit.leave()
        one.status, one.beyond = "gone", False
        self.settle()

    @precondition(lambda self: self.those("running"))
    @rule(data=st.data())
    def release_for_children(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.those("running")))
        one.permit.release_for_children()
        one.status, one.beyond = "lent", False
        self.settle()

    @precondition(lambda self: self.those("lent"))
    @rule(data=st.data(), reacquire_nowait=st.booleans())
    def come_back(self, data: st.DataObject, reacquire_nowait: bool) -> None:
        one = data.draw(st.sampled_from(self.those("lent")))
        if reacquire_nowait:
            one.permit.reacquire_nowait()
            one.status, one.beyond = "running", True
        else:
            self.arrive(one, one.permit.reacquire(), ahead=True)

    @precondition(lambda self: self.those("granted"))
    @rule(data=st.data())
    def wake(self, data: st.DataObject) -> None:
        self.resume(data.draw(st.sampled_from(self.those("granted"))))

    @precondition(lambda self: self.those("waiting", "granted"))
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.those("waiting", "granted")))
        one.doomed = True
        waiter = one.permit.waiter
        if one.status == "waiting" and self.tells_of_cancelled:
            assert isinstance(waiter, Pending)
            waiter.is_done = True

    @precondition(lambda self: any(one.doomed for one in self.permits))
    @rule(data=st.data())
    def notice(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from([one for one in self.permits if one.doomed]))
        with pytest.raises(Interrupted):
            one.waits.throw(Interrupted())
        one.doomed = False
        if one.ahead:  # an attempt that goes on, to its cleanup
            one.status, one.beyond = "running", True
        else:
            one.status = "gone"
        self.settle()

    # -- what must hold

    @invariant()
    def is_as_in_the_model(self) -> None:
        for one in self.permits:
            assert one.permit.granted == one.holds
        for slots in self.slots:
            holding = [one for one in self.permits if one.holds and slots in one.permit.needed]
            assert slots.used == len(holding)
            assert sum(not one.beyond for one in holding) <= (slots.size or 0)

    def teardown(self) -> None:
        """Let everybody end: nobody is forgotten, and nothing is taken then."""
        while left := [one for one in self.permits if one.status != "gone"]:
            if doomed := [one for one in left if one.doomed]:
                with pytest.raises(Interrupted):
                    doomed[0].waits.throw(Interrupted())
                doomed[0].beyond = doomed[0].ahead
                doomed[0].status = "running" if doomed[0].ahead else "gone"
                doomed[0].doomed = False
            elif granted := self.those("granted"):
                self.resume(granted[0])
            else:
                able = self.those("running", "lent")
                assert able, "all wait"
                able[0].permit.leave()
                able[0].status = "gone"
            self.settle()
            self.is_as_in_the_model()
        assert [slots.used for slots in self.slots] == [0] * len(SIZES)
        assert not self.scheduler.wait_queues


class AsOnAsyncio(AdmissionMachine):
    tells_of_cancelled = True


class AsOnTrio(AdmissionMachine):
    tells_of_cancelled = False


def as_test(machine: type[RuleBasedStateMachine], examples: int, steps: int) -> Any:
    case: Any = machine.TestCase
    case.settings = settings(
        derandomize=examples < 100,
        deadline=None,
        max_examples=examples,
        stateful_step_count=steps,
        database=None,
    )
    return case


TestAsOnAsyncio = as_test(AsOnAsyncio, 25, 25)
TestAsOnTrio = as_test(AsOnTrio, 25, 25)


class MoreAsOnAsyncio(AsOnAsyncio):
    pass


class MoreAsOnTrio(AsOnTrio):
    pass


TestMoreAsOnAsyncio = pytest.mark.slow(as_test(MoreAsOnAsyncio, 250, 50))
TestMoreAsOnTrio = pytest.mark.slow(as_test(MoreAsOnTrio, 250, 50))


# -- a permit and its tasks
# --------------------------------------------------------------------------


def permit_of(scheduler: FairScheduler, *slots: Gate) -> AttemptPermit:
    return AttemptPermit(scheduler, slots)


def test_those_in_line_that_were_cancelled_are_forgotten_at_once():
    scheduler, slots = FairScheduler(Pending, float), Gate(1)
    held = permit_of(scheduler, slots)
    lines = scheduler.wait_queues
    first = permit_of(scheduler, slots)
    for _ in range(10):
        waits = permit_of(scheduler, slots).wait()
        waits.send(None)
        with pytest.raises(Interrupted):
            waits.throw(Interrupted())
    assert [len(line.requests) for line in lines.values()] == [1]
    held.leave()
    assert first.granted
    assert not lines


def test_a_permit_released_again_by_another_task_of_the_attempt_is_not_granted():
    scheduler, slots = FairScheduler(Pending, float), Gate(1)
    permit = permit_of(scheduler, slots)
    permit.release_for_children()
    other = permit_of(scheduler, slots)
    reacquires = permit.reacquire()
    reacquires.send(None)
    permit.release_for_children()  # by another task
    with pytest.raises(StopIteration):
        reacquires.send(None)  # goes on
    other.leave()
    assert not permit.granted
    again = permit.reacquire()
    with pytest.raises(StopIteration):
        again.send(None)
    assert permit.granted


def test_a_permit_reacquired_after_its_attempt_ended_takes_nothing():
    scheduler, slots = FairScheduler(Pending, float), Gate(1)
    early, late = permit_of(scheduler, slots), permit_of(scheduler, slots)
    early.release_for_children()
    assert late.granted
    reacquires = early.reacquire()
    reacquires.send(None)
    early.leave()
    with pytest.raises(StopIteration):
        reacquires.send(None)
    late.release_for_children()
    late.leave()
    with pytest.raises(StopIteration):
        late.reacquire().send(None)
    late.release_for_children()
    late.reacquire_nowait()
    assert slots.used == 0


def test_a_permit_cancelled_while_it_was_reacquired_keeps_what_it_was_granted():
    scheduler, slots = FairScheduler(Pending, float), Gate(1)
    permit = permit_of(scheduler, slots)
    permit.release_for_children()
    other = permit_of(scheduler, slots)
    reacquires = permit.reacquire()
    reacquires.send(None)
    other.leave()
    third = permit_of(scheduler, slots)
    with pytest.raises(Interrupted):
        reacquires.throw(Interrupted())
    assert permit.granted
    assert not third.granted
    assert slots.used == 1


# -- recursion -------------------------------------------------------------------------------------


def nested(act: Any, levels: int, n: int = 100) -> Any:
    """So many fan-outs in each other, all over the field ``ns``."""
    for level in range(levels):
        act = many(act, n, name=f"level{level}")
    return act


def recursive(gauge: Gauge, fan: int, limits: Limits | None = None, n: int = 100) -> Any:
    """An action that fans out to itself, ``n`` levels deep; it is counted while it runs itself."""

    @action(reads=["depth"], writes=["out"], limits=limits)
    async def spread(depth: int, context: Context) -> int:
        with gauge("leaf"):
            await anyio.sleep(1)
        if depth == 0:
            return 1
        found = 0
        async with context.fan_out(name="deeper", limits=Limits(n)) as group:
            for key in range(fan):
                group.start(spread, {"depth": depth - 1}, key=key)
            async for outcome in group:
                assert isinstance(outcome, Done)
                found += outcome.value
        with gauge("leaf"):
            await anyio.sleep(1)
        return found

    return spread


@pytest.mark.parametrize("limit", [1, 2])
async def test_nested_fan_outs_under_a_limit_of_the_application(limit: int):
    gauge, hook = Gauge(), RecordingHook()
    app = Application(nested(sleeper(gauge), 4), limits=Limits(limit), hooks=[hook])
    async with freed_runtime() as runtime:
        result = await runtime.run(app, {"ns": range(4)})
    leaves = [n for a in result.state["out"] for b in a for c in b for n in c]
    assert leaves == [0, 1, 2, 3] * 64
    assert gauge.peak["leaf"] == limit
    assert anyio.current_time() == pytest.approx(256 / limit)  # nobody waits without need
    hook.assert_paired()


@pytest.mark.sweep
@pytest.mark.parametrize("limit", [1, 2])
@pytest.mark.parametrize("where", ["application", "action", "both"])
async def test_recursion_through_the_context_under_a_limit(limit: int, where: str):
    gauge, limits = Gauge(), Limits(limit)
    spread = recursive(gauge, 4, limits if where != "application" else None)
    app = Application(spread, limits=limits if where != "action" else None)
    async with freed_runtime() as runtime:
        result = await runtime.run(app, {"depth": 4})
    assert result.state["out"] == 256
    assert gauge.peak["leaf"] == limit
    sleeps = 256 + 2 * (64 + 16 + 4 + 1)
    assert anyio.current_time() >= sleeps / limit - 1e-6
    assert anyio.current_time() <= sleeps / limit + 4  # the first and some of the last go alone


async def test_a_step_that_is_a_graph_holds_no_slot():
    gauge = Gauge()
    inner = Graph.chain(sleeper(gauge, name="a"), many(sleeper(gauge, name="b")), name="inner")
    app = Application(Graph.chain(inner, name="outer"), limits=Limits(1))
    async with freed_runtime() as runtime:
        result = await runtime.run(app, {"ns": range(3), "n": 1})
    assert result.state["out"] == [0, 1, 2]
    assert gauge.peak["leaf"] == 1


async def test_an_attempt_takes_its_slot_again_ahead_of_new_ones():
    order: list[str] = []

    @action(reads=["n"], writes=["out"])
    async def child(n: int) -> int:
        order.append(f"child {n}")
        await anyio.sleep(1)
        return n

    @action(writes=["out"])
    async def parent(context: Context) -> None:
        async with context.fan_out(name="few") as group:
            group.start(child, {"n": 1})
            await anyio.sleep(0.5)
        order.append("parent")

    @action(writes=["out"])
    async def later() -> None:
        order.append("later")
        await anyio.sleep(1)

    app = Application(parent)
    async with freed_runtime(limits=Limits(1)) as runtime, anyio.create_task_group() as tasks:
        tasks.start_soon(runtime.run, app)
        await anyio.sleep(0.25)
        for _ in range(3):
            tasks.start_soon(runtime.run, Application(later))
    assert order == ["child 1", "later", "parent", "later", "later"]


async def test_tasks_of_one_attempt_that_fan_out_at_overlapping_times():
    """The second block is opened while the first one's task waits to take the slots again."""
    gauge = Gauge()
    leaf = sleeper(gauge)

    @action(writes=["out"], name="wide")
    async def wide(context: Context) -> None:
        async def block(name: str, delay: float) -> None:
            await anyio.sleep(delay)
            async with context.fan_out(name=name) as group:
                group.start(leaf, {"n": 1})
                group.start(leaf, {"n": 2})

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(block, "first", 0)
            tasks.start_soon(block, "second", 2.5)

    @action(writes=["out"])
    async def other() -> None:
        with gauge("leaf"):
            await anyio.sleep(5)

    async with freed_runtime(limits=Limits(1)) as runtime, anyio.create_task_group() as tasks:
        tasks.start_soon(runtime.run, Application(wide))
        await anyio.sleep(1.5)
        tasks.start_soon(runtime.run, Application(other))  # between the first block's children
    assert gauge.peak["leaf"] == 1


async def test_an_attempt_interrupted_inside_its_block_is_counted_afterwards():
    gauge = Gauge()
    leaf = sleeper(gauge, seconds=60)

    @action(writes=["out"], name="hasty")
    async def hasty(context: Context) -> None:
        with anyio.move_on_after(1):
            async with context.fan_out(name="slow") as group:
                group.start(leaf, {"n": 1})
        with gauge("attempt"):
            await anyio.sleep(3)
        async with context.fan_out(name="again") as group:
            group.start(sleeper(gauge), {"n": 1})
        with gauge("attempt"):
            await anyio.sleep(1)

    @action(writes=["out"])
    async def other() -> None:
        with gauge("attempt"):
            await anyio.sleep(1)

    async with freed_runtime(limits=Limits(1)) as runtime, anyio.create_task_group() as tasks:
        tasks.start_soon(runtime.run, Application(hasty))
        await anyio.sleep(2)
        tasks.start_soon(runtime.run, Application(other))
    assert gauge.peak["attempt"] == 1


# -- who shares what -------------------------------------------------------------------------------


async def together(runtime: Runtime, *apps: Application[Any], each: int = 3) -> None:
    """Run applications at once, over so many elements each."""
    async with anyio.create_task_group() as tasks:
        for app in apps:
            tasks.start_soon(runtime.run, app, {"ns": range(each)})


@pytest.mark.parametrize("where", ["runtime", "application", "action"])
async def test_runs_of_one_runtime_share_its_limits(where: str):
    gauge, limits = Gauge(), Limits(2)
    app = Application(
        many(sleeper(gauge, limits=limits if where == "action" else None)),
        limits=limits if where == "application" else None,
    )
    async with freed_runtime(limits=limits if where == "runtime" else None) as runtime:
        await together(runtime, app, app, app, app)
    assert gauge.peak["leaf"] == 2
    assert anyio.current_time() == pytest.approx(6)


@pytest.mark.parametrize("where", ["application", "action"])
async def test_runs_without_a_common_runtime_share_nothing(where: str):
    gauge, limits = Gauge(), Limits(2)
    app = Application(
        many(sleeper(gauge, limits=limits if where == "action" else None)),
        limits=limits if where == "application" else None,
    )
    async with no_leaks(), anyio.create_task_group() as tasks:
        tasks.start_soon(app.run, {"ns": range(4)})
        tasks.start_soon(app.run, {"ns": range(4)})
    assert gauge.peak["leaf"] == 4
    assert anyio.current_time() == pytest.approx(2)


async def test_equal_limits_on_two_owners_count_for_each():
    gauge = Gauge()
    one = Application(many(sleeper(gauge, name="one", limits=Limits(1))), limits=Limits(1))
    two = Application(many(sleeper(gauge, name="two", limits=Limits(1))), limits=Limits(1))
    async with freed_runtime() as runtime:
        await together(runtime, one, two)
    assert gauge.peak == {"leaf": 2, "one": 1, "two": 1}
    assert anyio.current_time() == pytest.approx(3)


async def test_bound_copies_of_an_action_share_its_limits():
    gauge = Gauge()

    @action(reads=["n"], writes=["out"], limits=Limits(2))
    async def leaf(n: int, seconds: float) -> int:
        with gauge("leaf"):
            await anyio.sleep(seconds)
        return n

    copies = [leaf.bind(name=f"copy{n}", seconds=1) for n in range(2)]
    act = many([leaf, *copies, copies[0].bind(name="copy of a copy")])
    async with freed_runtime() as runtime:
        await runtime.run(Application(act), {"ns": range(3)}, inputs={"seconds": 1})
    assert gauge.peak["leaf"] == 2
    assert anyio.current_time() == pytest.approx(6)


async def test_instances_of_an_action_class_share_its_limits_and_subclasses_do_not():
    gauge = Gauge()

    class Leaf(Action):
        reads = ("n",)
        writes = ("out",)
        limits = Limits(2)

        def __init__(self, number: int) -> None:
            self.number = number

        async def run(self, n: int) -> int:
            with gauge(type(self)):
                await anyio.sleep(1)
            return n

    class Other(Leaf):
        limits = Limits(1)

    acts = [Leaf(1), Leaf(2).bind(name="two"), Leaf(3).bind(name="three"), Other(4)]
    async with freed_runtime() as runtime:
        await runtime.run(Application(many(acts)), {"ns": range(4)})
    assert gauge.peak == {Leaf: 2, Other: 1}
    assert anyio.current_time() == pytest.approx(6)


async def test_children_of_a_class_based_parallel_step_are_limited():
    gauge = Gauge()
    leaf = sleeper(gauge, limits=Limits(1))

    class Each(MapStates):
        reads = ("ns",)
        writes = ("total",)

        def states(self, state: State, inputs: Mapping[str, Any]) -> Iterator[dict[str, int]]:
            for n in state["ns"]:
                yield {"n": n}

        def action(self, state: State, inputs: Mapping[str, Any]) -> Act:
            return leaf

        def reduce(self, state: State, outcome: Outcome) -> State:
            return state.increment(total=1)

    async with freed_runtime() as runtime:
        app = Application(Each(), limits=Limits(2))
        result = await runtime.run(app, {"ns": range(5), "total": 0})
    assert result.state["total"] == 5
    assert gauge.peak["leaf"] == 1


def test_limits_are_not_bound_to_an_event_loop():
    gauge = Gauge()
    app = Application(many(sleeper(gauge, limits=Limits(2))), limits=Limits(3))
    runtime = Runtime(limits=Limits(4))

    async def main() -> float:
        async with no_leaks(), runtime:
            await together(runtime, app, app, each=4)
            assert free(runtime)
        return anyio.current_time()

    for backend in ("asyncio", "trio", "asyncio", "trio"):
        gauge.peak.clear()
        assert run_virtual(main, backend=backend) == pytest.approx(4)
        assert gauge.peak["leaf"] == 2


# -- order -----------------------------------------------------------------------------------------


async def test_first_come_first_served():
    order: list[int] = []

    @action(reads=["n"], writes=["out"])
    async def note(n: int) -> None:
        order.append(n)
        await anyio.sleep(1)

    app = Application(Graph.chain(note), limits=Limits(2))
    async with freed_runtime() as runtime, anyio.create_task_group() as tasks:
        for n in range(20):
            tasks.start_soon(runtime.run, app, {"n": n})
            await anyio.sleep(0.01)
    assert order == list(range(20))


async def test_a_child_that_waits_for_a_full_limit_lets_others_pass():
    gauge, ended = Gauge(), Counter[float]()

    @action(reads=["n"], writes=["out"], limits=Limits(1))
    async def narrow(n: int) -> None:
        with gauge("leaf"):
            await anyio.sleep(10)
        ended[anyio.current_time()] += 1

    wide = sleeper(gauge)
    async with freed_runtime(limits=Limits(2)) as runtime, anyio.create_task_group() as tasks:
        tasks.start_soon(runtime.run, Application(many(narrow, name="narrow")), {"ns": range(5)})
        await anyio.sleep(0.5)
        result = await runtime.run(Application(many(wide)), {"ns": range(9)})
        assert result.state["out"] == list(range(9))
        assert anyio.current_time() == pytest.approx(9.5)
    assert ended == {10: 1, 20: 1, 30: 1, 40: 1, 50: 1}
    assert gauge.peak["leaf"] == 2


@pytest.mark.parametrize("what", ["a slot", "a key", "a budget", "a pause"])
async def test_a_child_that_may_wait_long_gives_its_place_to_others(what: str):
    """A slot is free again when one attempt ends: no other child starts for so short a time."""
    began = list[int]()
    limits = {
        "a slot": Limits(1),
        "a key": Limits(1, by=lambda state: state["n"] // 10),
        "a budget": Budget(1, "USD", worst=1),
        "a pause": Limits(5),
    }[what]

    @action(reads=["n"], writes=["begun"])
    async def first(n: int) -> bool:
        began.append(n)
        return True

    @action(reads=["n"], writes=["out"], limits=limits)
    async def second(n: int, context: Context) -> int:
        await anyio.sleep(10)
        if what == "a budget":
            context.charge(0, unit="USD")
        return n

    both = Graph.chain(first, second, name="both")
    async with freed_runtime() as runtime:
        if what == "a pause":
            runtime.limiter(second).pause()
        step = fan_out(both, over="ns", item="n", take="out", into="out", limits=Limits(2))
        run = await Application(step).start({"ns": [1, 2, 3, 4]}, runtime=runtime)
        await anyio.sleep(5)
        assert began == ([1, 2] if what == "a slot" else [1, 2, 3, 4])
        if what == "a pause":
            runtime.limiter(second).resume()
        assert (await run.result()).state["out"] == [1, 2, 3, 4]


@pytest.mark.parametrize("items", [500, pytest.param(5000, marks=pytest.mark.slow)])
async def test_a_big_fan_out_does_not_starve_a_later_small_one(items: int):
    took: list[float] = []
    app = Application(many(sleeper(Gauge())), limits=Limits(100))

    async def small(runtime: Runtime) -> float:
        began = anyio.current_time()
        await runtime.run(app, {"ns": range(10)})
        return anyio.current_time() - began

    async with freed_runtime() as runtime, anyio.create_task_group() as tasks:
        alone = await small(runtime)
        tasks.start_soon(runtime.run, app, {"ns": range(items)})
        await anyio.sleep(1.5)
        took.append(await small(runtime))
        assert took[0] < 3 * alone


# -- no slot is lost -------------------------------------------------------------------------------


async def is_whole(runtime: Runtime, app: Application[Any], limit: int, gauge: Gauge) -> None:
    """Check that ``limit`` attempts can run at once, and no more."""
    assert free(runtime)
    gauge.peak.clear()
    await runtime.run(app, {"ns": range(3 * limit)})
    assert gauge.peak["leaf"] == limit
    assert free(runtime)


async def test_attempts_that_fail_give_back_their_slots():
    gauge = Gauge()

    @action(reads=["n"], writes=["out"], limits=Limits(2))
    async def leaf(n: int, failing: bool = False) -> Any:
        with gauge("leaf"):
            await anyio.sleep(1)
            if failing and n % 3 == 0:
                raise ValueError(n)
        if failing and n % 3 == 1:
            return None if n % 2 else object()
        return n

    @action(reads=["n"], writes=["out"], limits=Limits(2))
    async def needy(n: int, missing: int) -> None:
        raise AssertionError("never called")

    app = Application(many(leaf), limits=Limits(3))
    failing = fan_out(
        [leaf.bind(name="failing", failing=True), Graph.chain(leaf, name="well")],
        over="ns",
        item="n",
        into="out",
        on_error="collect",
    )
    async with freed_runtime(limits=Limits(4)) as runtime:
        await runtime.run(Application(failing, limits=Limits(3)), {"ns": range(9)})
        await is_whole(runtime, app, 2, gauge)


@pytest.mark.parametrize(
    ("backend", "how"), [("asyncio", "scope"), ("asyncio", "native"), ("trio", "scope")]
)
@pytest.mark.parametrize(
    ("seed", "places"),
    [(None, 30), *(pytest.param(seed, None, marks=pytest.mark.slow) for seed in range(10))],
)
def test_a_cancelled_run_gives_back_its_slots(
    backend: Backend, how: Literal["scope", "native"], seed: int | None, places: int | None
):
    """Wherever it is: before it waits, while it does, in the tick of the grant, inside a block."""

    async def scenario(attempt: Attempt) -> None:
        gauge = Gauge()
        leaf = sleeper(gauge, limits=Limits(2))

        @action(reads=["ns"], writes=["out"], limits=Limits(1))
        async def parent(ns: range, context: Context) -> int:
            async with context.fan_out(name="few") as group:
                group.start_each(leaf, over=ns, item="n")
            return 0

        act = fan_out([leaf, parent], over="ns", item="n", into="out", name="both")
        app = Application(Graph.chain(act), limits=Limits(3))
        hook = RecordingHook()
        watched = Application(Graph.chain(act), limits=Limits(1), hooks=[hook])
        ended: list[Any] = []

        async def both(runtime: Runtime) -> None:
            async def unharmed() -> None:
                with anyio.CancelScope(shield=True):
                    ended.append((await runtime.run(app, {"ns": range(2)})).state["out"])

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(unharmed)
                await checkpoint()
                await runtime.run(watched, {"ns": range(2)})

        async with Runtime(limits=Limits(2)) as runtime:
            await attempt(both, runtime)
            assert free(runtime)
        if ended:  # else it was cancelled before it began
            assert len(ended[0]) == 2
        assert gauge.peak["leaf"] <= 2
        hook.assert_paired()

    assert cancel_everywhere(scenario, backend=backend, how=how, seed=seed, limit=places) >= 30


async def test_a_cancel_in_the_tick_of_the_grant():
    gauge = Gauge()
    leaf = sleeper(gauge)
    app = Application(Graph.chain(leaf), limits=Limits(1))
    async with freed_runtime() as runtime:
        for turns in range(12):
            async with anyio.create_task_group() as tasks:
                scope = anyio.CancelScope()

                async def run_cancelled(scope: anyio.CancelScope = scope) -> None:
                    with scope:
                        await runtime.run(app, {"n": 1})

                async def cancel(scope: anyio.CancelScope = scope, turns: int = turns) -> None:
                    await anyio.sleep(1)  # as long as the attempt that holds the slot
                    for _ in range(turns):
                        await checkpoint()
                    scope.cancel()

                tasks.start_soon(runtime.run, app, {"n": 0})
                await anyio.sleep(0)
                tasks.start_soon(cancel)
                tasks.start_soon(run_cancelled)
                await anyio.sleep(0.5)
                tasks.start_soon(runtime.run, app, {"n": 2})
            assert free(runtime)
    assert gauge.peak["leaf"] == 1


async def test_a_request_behind_a_cancelled_one_is_next():
    order: list[int] = []

    @action(reads=["n"], writes=["out"])
    async def note(n: int) -> None:
        order.append(n)
        await anyio.sleep(1)

    app = Application(Graph.chain(note), limits=Limits(1))
    async with freed_runtime() as runtime, anyio.create_task_group() as tasks:
        scopes = [anyio.CancelScope() for _ in range(6)]

        async def run(n: int) -> None:
            with scopes[n]:
                await runtime.run(app, {"n": n})

        for n in range(6):
            tasks.start_soon(run, n)
            await anyio.sleep(0.01)
        scopes[1].cancel()
        scopes[3].cancel()
    assert order == [0, 2, 4, 5]
    assert anyio.current_time() == pytest.approx(4)


async def test_an_action_that_swallows_its_cancellation_keeps_its_slot_until_it_returns():
    gauge = Gauge()

    @action(reads=["n"], writes=["out"], limits=Limits(1))
    async def stubborn(n: int) -> int:
        with gauge("leaf"):
            try:
                await anyio.sleep(60)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(5)
        return n

    app = Application(Graph.chain(stubborn))
    async with freed_runtime() as runtime, anyio.create_task_group() as tasks:

        async def hasty() -> None:
            with anyio.move_on_after(1):
                await runtime.run(app, {"n": 1})

        for _ in range(3):
            tasks.start_soon(hasty)
            await anyio.sleep(0.5)
    assert gauge.peak["leaf"] == 1
    assert anyio.current_time() == pytest.approx(6)  # the others gave up


@pytest.mark.realtime
async def test_a_thread_keeps_its_slot_until_it_returns():
    started, may_end = anyio.Event(), threading.Event()
    running = threading.Semaphore(1)
    order: list[str] = []

    @action(reads=["n"], writes=["out"], limits=Limits(1))
    def work(n: int) -> int:
        assert running.acquire(blocking=False), "two at once"
        anyio.from_thread.run_sync(started.set)
        assert may_end.wait(10)
        order.append(f"thread {n}")
        running.release()
        return n

    app = Application(Graph.chain(work))
    async with freed_runtime() as runtime, anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()

        async def run_cancelled() -> None:
            with scope:
                await runtime.run(app, {"n": 1})

        async def run_next() -> None:
            await runtime.run(app, {"n": 2})
            order.append("second run")

        tasks.start_soon(run_cancelled)
        await started.wait()
        tasks.start_soon(run_next)
        for _ in range(5):
            await checkpoint()
        scope.cancel()
        for _ in range(20):
            await checkpoint()
        assert not free(runtime)
        assert order == []
        may_end.set()
    assert order == ["thread 1", "thread 2", "second run"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
async def test_a_keyboard_interrupt_costs_no_slot(kind: type[BaseException]):
    gauge = Gauge()
    leaf = sleeper(gauge, limits=Limits(2))

    @action(reads=["n"], writes=["out"])
    async def interrupted(n: int) -> None:
        await anyio.sleep(0.5)
        if n == 1:
            raise kind

    @action(reads=["ns"], writes=["out"])
    async def parent(ns: range, context: Context) -> None:
        async with context.fan_out(name="few") as group:
            group.start_each(interrupted, over=ns, item="n")

    acts = [leaf, interrupted, parent]
    async with freed_runtime(limits=Limits(3)) as runtime:
        for act in acts[1:]:
            both = fan_out([leaf, act], over="ns", item="n", into="out")
            with pytest.raises(kind):
                await runtime.run(Application(both), {"ns": range(4)})
        await is_whole(runtime, Application(many(leaf)), 2, gauge)


# -- random programs -------------------------------------------------------------------------------


class Maze:
    """A random graph of actions, graphs and fan-outs, with random limits on everything."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self.gauge = Gauge()
        self.sizes: dict[object, int] = {}
        self.acts = 0
        self.limited = [self.limit(f"action {n}") for n in range(3)]
        self.leaves = [self.leaf(n) for n in range(3)]

    def limit(self, name: str) -> Limits | None:
        if self.random.random() < 0.4:
            return None
        size = self.random.choice([1, 1, 2, 5])
        self.sizes[name] = self.sizes[name.replace("action", "spread")] = size
        return Limits(size)

    def leaf(self, number: int) -> Any:
        random, gauge = self.random, self.gauge

        @action(reads=["n"], writes=["out"], limits=self.limited[number], name=f"action {number}")
        async def leaf(n: int, where: str) -> int:
            with gauge("runtime", where, f"action {number}"):
                for _ in range(random.randrange(3)):
                    await anyio.sleep(random.choice([0, 0.5, 1]))
                if random.random() < 0.05:
                    raise ValueError
            return n

        @action(reads=["n"], writes=["out"], limits=self.limited[number])
        async def spread(n: int, where: str, context: Context) -> int:
            leaves = [leaf, spread] if context.depth < 4 else [leaf]
            names = ["runtime", where, f"spread {number}"]
            for block in range(random.randrange(1, 3)):
                with gauge(*names):
                    await anyio.sleep(random.choice([0, 0.5]))
                with suppress(ExceptionGroup), anyio.move_on_after(random.choice([1, 99])) as scope:
                    async with context.fan_out(name=f"block {block}") as group:
                        for key in range(random.randrange(4)):
                            group.start(random.choice(leaves), {"n": key})
                        if random.random() < 0.5:
                            async for _ in group:
                                await checkpoint()
                if scope.cancelled_caught:  # counted, but admitted without waiting
                    names = []
            with gauge(*names):
                await anyio.sleep(random.choice([0, 0.5]))
            return n

        return leaf, spread

    def act(self, depth: int) -> Any:
        random = self.random
        self.acts += 1
        name = f"act {self.acts}"
        kind = random.random()
        if depth == 0 or kind < 0.3:
            leaf, spread = random.choice(self.leaves)
            return random.choice([leaf, leaf, spread]).bind(name=name)
        if kind < 0.5:
            return Graph.chain(self.act(depth - 1), self.act(depth - 1), name=name)
        return fan_out(
            [self.act(depth - 1) for _ in range(random.randrange(1, 3))],
            over="ns",
            item="n",
            reduce=lambda state, outcome: state,
            writes=["out"],
            on_error="collect",
            limits=Limits(random.choice([1, 2, 100])),
            name=name,
        )


def run_maze(seed: int, backend: Backend) -> tuple[int, ...]:
    """Run a random program to its end; return by how much each limit was missed."""
    maze = Maze(Random(seed))
    acts = [maze.act(3) for _ in range(2)]
    live = maze.random.choice([1, 3, 1000])
    apps = [
        Application(act, limits=maze.limit(f"app {n}"), max_live=live) for n, act in enumerate(acts)
    ]

    async def main() -> None:
        async with (
            freed_runtime(limits=maze.limit("runtime")) as runtime,
            anyio.create_task_group() as tasks,
        ):

            async def run(app: Application[Any], where: str, patience: float) -> None:
                with anyio.move_on_after(patience), suppress(ValueError):
                    await runtime.run(app, {"ns": range(3), "n": 0}, inputs={"where": where})

            for turn in range(2):
                for n, app in enumerate(apps):
                    patience = maze.random.choice([1, 10**9]) if turn else 10**9
                    tasks.start_soon(run, app, f"app {n}", patience)

    run_virtual(main, backend=backend, seed=seed)
    return tuple(maze.gauge.peak[name] - size for name, size in maze.sizes.items())


@backends
def test_random_programs_end_and_keep_their_limits(backend: Backend):
    for seed in range(3):
        assert max(run_maze(seed, backend), default=0) <= 0


@pytest.mark.slow
@backends
@pytest.mark.timeout(300)
def test_many_random_programs_end_and_keep_their_limits(backend: Backend):
    missed = [run_maze(seed, backend) for seed in range(300)]
    assert max(max(one, default=0) for one in missed) == 0  # and reach them


# -- runtimes --------------------------------------------------------------------------------------


@action(reads=["n"], writes=["out"])
async def second(n: int) -> int:
    await anyio.sleep(1)
    return n


@pytest.mark.parametrize("limits", [None, Limits(1)])
async def test_a_runtime_is_used_inside_its_block_only(limits: Limits | None):
    runtime, app = Runtime(limits=limits), Application(second, limits=limits)
    async with no_leaks():
        for how in ("not open yet", "closed"):
            with pytest.raises(BadUse, match=rf"the runtime is {how}.*async with Runtime"):
                await runtime.run(app, {"n": 1})
            with pytest.raises(BadUse, match=rf"the runtime is {how}.*async with Runtime"):
                async with app.open({"n": 1}, runtime=runtime):
                    pass
            async with runtime:
                with pytest.raises(BadUse, match="open already"):
                    await runtime.__aenter__()
                assert (await runtime.run(app, {"n": 1})).state["out"] == 1
    assert anyio.current_time() == pytest.approx(2)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
async def test_what_the_block_of_a_runtime_raises_is_not_wrapped(kind: type[BaseException]):
    failure = kind("in the block")
    with pytest.raises(kind) as caught:
        async with no_leaks(), Runtime(), Runtime():
            raise failure
    assert caught.value is failure


async def test_a_runtime_whose_block_is_cancelled_lets_the_cancellation_through():
    runtime = Runtime(limits=Limits(1))
    async with no_leaks():
        with anyio.move_on_after(0.5) as scope:
            async with runtime:
                await runtime.run(Application(second), {"n": 1})
        assert scope.cancelled_caught
        assert free(runtime)
    assert anyio.current_time() == pytest.approx(0.5)


async def test_actions_made_dynamically_leave_nothing_in_a_long_lived_runtime():
    admission: Any
    fixed = Application(many(sleeper(Gauge(), limits=Limits(1))), limits=Limits(1))
    async with freed_runtime(limits=Limits(3)) as runtime:
        admission = runtime._admission  # pyright: ignore[reportPrivateUsage]

        async def turn() -> None:
            made = sleeper(Gauge(), limits=Limits(1), name="made")
            app = Application(many([made, made.bind(name="copy")]), limits=Limits(2))
            await together(runtime, app, app, fixed)

        for _ in range(30):
            await turn()
        gc.collect()
        assert len(admission.limiters.by_owner) == 3  # of the runtime, and of what is still there
        assert not admission.scheduler.wait_queues


async def test_limits_of_one_owner_are_not_found_by_a_later_one():
    """Owners may get the address of one that is gone, and equal owners are two."""
    gauge = Gauge()
    async with freed_runtime() as runtime:
        for size in (1, 3, 2, 5):
            app = Application(many(sleeper(gauge, limits=Limits(size))), limits=Limits(size))
            gauge.peak.clear()
            await runtime.run(app, {"ns": range(6)})
            assert gauge.peak["leaf"] == size
            del app
            gc.collect()
