"""Shares and priorities: turns by weight, in a tree of flows, against a model and in real runs."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from random import Random
from statistics import quantiles
from typing import Any, Literal

import anyio
import pytest

from shoal import (
    Application,
    Context,
    Graph,
    Limits,
    MemoryStore,
    Rate,
    Retry,
    Runtime,
    State,
    action,
    fan_out,
)
from shoal._errors.inspection import leaves
from shoal._limits.flows import AT_ONCE, SWEEP, WEIGHTS, Flow, Priority, Share
from shoal._limits.gates import Gate
from shoal._limits.permits import AttemptPermit, HeldPermits
from shoal._limits.scheduler import FairScheduler
from shoal._limits.user_functions import weight_of
from shoal.errors import BadResult, BadUse, DefinitionError, SecretLeaked
from shoal.testing import Attempt, cancel_everywhere, no_leaks
from tests.limits.test_scheduler import Clock, Modelled, Program, Unit

Backend = Literal["asyncio", "trio"]
PRIORITIES: list[Priority] = ["interactive", "normal", "batch"]


def scheduler_of(clock: Clock) -> FairScheduler:
    return FairScheduler(None, clock, clock.alarm)  # pyright: ignore[reportArgumentType]


# -- against a model -------------------------------------------------------------------------------


class SharedProgram(Program):
    """The same program, of runs with priorities and shares: what must hold there holds here."""

    may_overtake = True

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.units = [Unit(self.random.choice(PRIORITIES)) for _ in range(5)]

    def flow_of(self, unit: Unit) -> Flow | None:
        shares = [
            Share(level, self.random.choice("ab"), self.random.choice([1.0, 2.0, 4.0]))
            for level in range(self.random.choice([0, 0, 1, 2]))
        ]
        return self.scheduler.flow_of(unit, shares)

    def rank(self, one: Modelled) -> Any:
        return one.number

    def turn(self, one: Modelled) -> Any:
        wait_queue = one.permit.wait_queue
        assert wait_queue is not None
        return *wait_queue.flow.path(), (True, not one.permit.is_returning, one.due, one.number)

    def settle(self) -> None:
        # In one flow alone requests come first that came first; see `Program.settle`.
        for one in self.waiting:
            one.unit = one.unit if one.permit.flow is None else object()  # type: ignore[assignment] # a stand-in
        super().settle()


@pytest.mark.parametrize(
    "seeds", [range(150), pytest.param(range(150, 4000), marks=pytest.mark.slow)]
)
def test_the_scheduler_grants_what_the_model_grants(seeds: range):
    for seed in seeds:
        SharedProgram(seed).run()


class Node:
    """A flow of the naive model: all that is in it is looked through each time."""

    def __init__(self, weight: float, number: int) -> None:
        self.weight = weight
        self.number = number
        self.due = self.round = 0.0
        self.flows: dict[Any, Node] = {}
        self.turns: dict[Unit, list[float]] = {}
        self.queue: list[tuple[bool, float, int, Unit]] = []

    @property
    def waits(self) -> bool:
        return bool(self.queue) or any(flow.waits for flow in self.flows.values())

    @property
    def active(self) -> float:
        units = {(unit, is_new) for is_new, _, _, unit in self.queue}
        return len(units) + sum(flow.weight for flow in self.flows.values() if flow.waits)

    def first(self) -> tuple[list[Node], tuple[bool, float, int, Unit]]:
        """Return the flows that lead to the next request, and that request."""
        keys: list[Any] = [(*entry[:3], entry) for entry in self.queue]
        keys += [(True, flow.due, flow.number, flow) for flow in self.flows.values() if flow.waits]
        _, _, _, found = min(keys, key=lambda key: key[:3])
        if isinstance(found, Node):
            nodes, entry = found.first()
            return [self, *nodes], entry
        return [self], found


@pytest.mark.parametrize("seed", range(60))
def test_turns_are_those_of_the_naive_model(seed: int):
    """One slot, and a tree of classes, shares and runs: each grant is the one of the model."""
    random, clock = Random(seed), Clock()
    scheduler, gate = scheduler_of(clock), Gate(1)
    scheduler.flow_of(Unit("batch"), ())  # now there are classes
    units = [(Unit(random.choice(PRIORITIES)), random.choice("ab")) for _ in range(6)]
    weights = {"a": 1.0, "b": random.choice([1.0, 2.0, 5.0])}
    waiting: list[tuple[AttemptPermit, list[Node], Any]] = []
    known: dict[Flow, Node] = {}
    held = AttemptPermit(scheduler, (gate,))

    def nodes_of(flow: Flow) -> list[Node]:
        above = [] if flow.parent is None else nodes_of(flow.parent)
        if flow not in known:
            # Ties go by this number.
            known[flow] = Node(flow.weight, flow.key()[-1])
            if above:
                above[-1].flows[flow] = known[flow]
        return [*above, known[flow]]

    first = nodes_of(scheduler.first_flow)
    root = first[0]

    def come() -> None:
        unit, share = random.choice(units)
        is_new = random.random() < 0.8
        shares = [Share("limit", share, weights[share])] if random.random() < 0.7 else []
        flow = scheduler.flow_of(unit, shares)
        nodes = nodes_of(flow or scheduler.first_flow)
        for above, node in zip(nodes[-2::-1], nodes[:0:-1], strict=True):
            if node.waits:
                break
            node.due = max(node.due, above.round)
        holder = HeldPermits(unit)
        holder.returns = not is_new
        permit = AttemptPermit(scheduler, (gate,), None, holder, flow=flow)
        assert permit.wait_queue is not None
        arrival = permit.wait_queue.requests[permit]
        last = nodes[-1]
        turns = last.turns.setdefault(unit, [0.0, 0.0])
        if turns[0] <= last.round:
            turns[0] = turns[1] = last.round
        due = turns[1] if turns[0] < turns[1] + AT_ONCE else turns[0]
        turns[0] += 1
        entry = is_new, last.round if not is_new else due, arrival, unit
        last.queue.append(entry)
        waiting.append((permit, nodes, entry))

    def grant() -> None:
        nonlocal held
        if not waiting:
            return
        nodes, entry = root.first()
        due = entry[1]
        for node in reversed(nodes):
            node.round = max(node.round + 1 / node.active, due)
            due, node.due = node.due, node.due + 1 / node.weight
        remove(nodes, entry)
        held.leave()
        granted = [one for one in waiting if one[0].granted]
        assert [one[2] for one in granted] == [entry]
        waiting.remove(granted[0])
        held = granted[0][0]

    def remove(nodes: list[Node], entry: Any) -> None:
        nodes[-1].queue.remove(entry)
        for node in reversed(nodes):
            if not node.waits and node is not first[-1]:
                node.turns.clear()  # the first flow keeps them, as attributes of its runs

    for _ in range(300):
        what = random.random()
        if what < 0.55:
            come()
        elif what < 0.95:
            grant()
        elif waiting:
            one = waiting.pop(random.randrange(len(waiting)))
            remove(one[1], one[2])
            one[0].cancel()


@pytest.mark.parametrize("seed", range(10))
def test_flows_that_always_wait_get_what_their_weights_say(seed: int):
    """At each level of the tree, however many runs and requests each flow has."""
    random, clock = Random(seed), Clock()
    scheduler, gate = scheduler_of(clock), Gate(1)
    weights = {"a": 1.0, "b": 3.0, "c": 0.5}
    served: Counter[tuple[Any, ...]] = Counter()
    permits: list[tuple[tuple[Any, ...], AttemptPermit]] = []
    for priority in PRIORITIES:
        for share, weight in weights.items():
            for _ in range(random.choice([1, 1, 7])):
                unit = Unit(priority)
                flow = scheduler.flow_of(unit, [Share("limit", share, weight)])
                for _ in range(random.choice([400, 500])):
                    permit = AttemptPermit(scheduler, (gate,), None, HeldPermits(unit), flow=flow)
                    permits.append(((priority, share), permit))
    turn = {id(permit): name for name, permit in permits}
    waiting = {id(permit): permit for _, permit in permits}
    for _ in range(500):
        granted = next(permit for permit in waiting.values() if permit.granted)
        served[turn[id(granted)]] += 1
        del waiting[id(granted)]
        granted.leave()
    of_class = Counter[Priority]()
    for (priority, _), many in served.items():
        of_class[priority] += many
    total = sum(WEIGHTS.values())
    for priority, many in of_class.items():
        assert many == pytest.approx(500 * WEIGHTS[priority] / total, abs=3)
        for share, weight in weights.items():
            mine = served[priority, share]
            assert mine == pytest.approx(many * weight / 4.5, abs=3), (priority, share)


# -- a light tenant beside a heavy one -------------------------------------------------------------


def latencies(scheduler: FairScheduler, clock: Clock, *, heavy: int, shares: bool) -> list[float]:
    """Let a light tenant come twice a second; the other has so many requests of 50 runs waiting."""
    random = Random(1)
    gate, took = Gate(20), list[float]()

    def flow(unit: Unit, tenant: str) -> Flow | None:
        return scheduler.flow_of(unit, [Share("limit", tenant, 1.0)] if shares else [])

    def begin(unit: Unit, tenant: str) -> None:
        came, seconds = clock.now, random.uniform(0.5, 1.5)

        def on_granted() -> None:
            clock.alarm(clock.now + seconds, end)

        def end() -> None:
            permit.leave()
            if tenant == "light":
                took.append(clock.now - came)

        permit = AttemptPermit(
            scheduler, (gate,), None, HeldPermits(unit), on_granted=on_granted,
            flow=flow(unit, tenant),
        )  # fmt: skip
        if permit.granted:
            on_granted()

    for unit in [Unit() for _ in range(50)]:
        for _ in range(heavy // 50):
            begin(unit, "heavy")
    for n in range(400):
        clock.alarm(n / 2, lambda: begin(Unit(), "light"))
    clock.forward(300)
    assert len(took) == 400
    return took


def p99(seconds: list[float]) -> float:
    return quantiles(seconds, n=100)[98]


def test_a_light_tenant_is_hardly_slower_beside_one_with_10000_waiting():
    clocks = [Clock() for _ in range(3)]
    alone = p99(latencies(scheduler_of(clocks[0]), clocks[0], heavy=0, shares=True))
    beside = p99(latencies(scheduler_of(clocks[1]), clocks[1], heavy=10_000, shares=True))
    without = p99(latencies(scheduler_of(clocks[2]), clocks[2], heavy=10_000, shares=False))
    assert beside <= 1.5 * alone, (alone, beside)
    assert without > 1.5 * alone, "so this test can fail"


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["share", "priority"])
async def test_so_are_the_runs_of_a_light_tenant(how: str):
    """Also where the heavy one has nested fan-outs, whose leaves know nothing of tenants."""

    @action(reads=["n"], writes=["out"])
    async def leaf(n: int) -> None:
        await anyio.sleep(0.5 + (n * 7919 % 100) / 100)

    inner = fan_out(leaf, over="elements", item="n", name="inner")
    heavy = Application(fan_out(inner, over="groups", item="elements", name="outer"))
    light, took = Application(leaf), list[float]()
    limits = Limits(20, share=tenant) if how == "share" else Limits(20)
    groups = [[n * 10 + m for m in range(10)] for n in range(10)]

    async def visit(runtime: Runtime, n: int) -> None:
        began = anyio.current_time()
        priority = "normal" if how == "share" else "interactive"
        await runtime.run(light, {"n": n, "tenant": "light"}, priority=priority)
        took.append(anyio.current_time() - began)

    async def measure(*, beside: bool) -> float:
        took.clear()
        async with Runtime(limits=limits) as runtime, anyio.create_task_group() as tasks:
            if beside:
                for _ in range(20):
                    tasks.start_soon(runtime.run, heavy, {"groups": groups, "tenant": "heavy"})
            await anyio.sleep(0.1)
            async with anyio.create_task_group() as lights:
                for n in range(60):
                    lights.start_soon(visit, runtime, n)
                    await anyio.sleep(0.5)
            tasks.cancel_scope.cancel()
        return p99(took)

    alone = await measure(beside=False)
    assert await measure(beside=True) <= 1.5 * alone


async def go(runtime: Runtime, app: Application[Any], state: Any, priority: Any) -> None:
    await runtime.run(app, state, priority=priority)


def tenant(state: State) -> object:
    return state["tenant"]


# -- shares in runs --------------------------------------------------------------------------------


def three_for_a(name: str) -> int:
    return 3 if name == "a" else 1


def noting(calls: list[Any], limits: Limits | None = None, seconds: float = 1) -> Any:
    @action(reads=["n"], writes=["out"], limits=limits)
    async def work(n: Any) -> Any:
        calls.append(n)
        await anyio.sleep(seconds)
        return n

    return work


@pytest.mark.anyio
@pytest.mark.parametrize("weight", [{"a": 3}, three_for_a, None])
@pytest.mark.parametrize("where", ["runtime", "application", "action", "fan-out's rate"])
async def test_shares_have_turns_by_weight(where: str, weight: Any):
    calls: list[str] = []
    limits = Limits(1, share=lambda state: state["n"][0], weight=weight)
    if where == "fan-out's rate":
        limits = Limits(rate=Rate(1), share=lambda state: state["n"][0], weight=weight)
    act = noting(calls, limits if where == "action" else None)
    step = fan_out(
        act, over="ns", item="n", name="many",
        limits=limits if where.startswith("fan-out") else Limits(100),
    )  # fmt: skip
    app = Application(step, limits=limits if where == "application" else None)
    async with Runtime(limits=limits if where == "runtime" else None) as runtime:
        names = ["b"] * 20 + ["a"] * 20
        await runtime.run(app, {"ns": [f"{name}{n}" for n, name in enumerate(names)]})
    early = Counter(name[0] for name in calls[:20])
    assert early["a"] == pytest.approx(10 if weight is None else 15, abs=1.5)
    for name in "ab":  # in each share, those that came first are first
        numbers = [int(call[1:]) for call in calls if call[0] == name]
        assert numbers == sorted(numbers)


@pytest.mark.anyio
async def test_shares_are_nested():
    """Tenants on the runtime, and hosts in the fan-out of each: both have turns."""
    calls: list[tuple[str, str]] = []

    @action(reads=["page"], writes=["out"])
    async def fetch(page: tuple[str, str]) -> None:
        calls.append(page)
        await anyio.sleep(1)

    crawl = fan_out(
        fetch, over="pages", item="page", name="crawl",
        limits=Limits(100) & Limits(rate=Rate(1000, burst=1000), share=lambda s: s["page"][1]),
    )  # fmt: skip
    app = Application(crawl)
    async with (
        Runtime(limits=Limits(1, share=tenant)) as runtime,
        anyio.create_task_group() as tasks,
    ):
        for name, hosts in (("a", "xxxxxxxxyy"), ("a", "xxxxxxxxyy"), ("b", "xxxxxxxxyy")):
            pages = [(name, host) for host in hosts]
            tasks.start_soon(runtime.run, app, {"pages": pages, "tenant": name})
            await anyio.sleep(0.001)
    tenants = Counter(name for name, _ in calls[:16])
    assert tenants["a"] == pytest.approx(8, abs=1)
    hosts = Counter(host for name, host in calls[:16] if name == "b")
    assert hosts["y"] == 2, "both of them are among the first eight of ten"


@pytest.mark.anyio
async def test_a_share_and_a_key_of_one_limit():
    """Each key has slots of its own, and the shares take turns at each."""
    calls: list[str] = []
    limits = Limits(1, by=lambda s: s["n"][1], share=lambda s: s["n"][0])
    step = fan_out(noting(calls, limits), over="ns", item="n", name="many")
    names = [f"{name}{key}" for key in "xy" for name in "aaaab"]
    await Application(step).run({"ns": names})
    for key in "xy":
        of_key = [name for name in calls if name[1] == key]
        assert of_key.index(f"b{key}") <= 2
    assert anyio.current_time() == 5


@pytest.mark.anyio
@pytest.mark.parametrize("fails", ["share", "weight"])
@pytest.mark.parametrize("where", ["action", "fan-out"])
async def test_what_the_functions_raise_fails_the_attempt_or_the_step(fails: str, where: str):
    def wrong(_: Any) -> Any:
        raise LookupError("no tenant")

    limits = Limits(
        rate=Rate(10),
        share=wrong if fails == "share" else lambda s: 1,
        weight=wrong if fails == "weight" else None,
    )
    act = noting([], limits if where == "action" else None)
    on_fan_out = limits if where == "fan-out" else None
    step = fan_out(act, over="ns", item="n", name="many", limits=on_fan_out)
    async with no_leaks():
        with pytest.raises((LookupError, ExceptionGroup)) as caught:
            await Application(step).run({"ns": [1]})
    errors = [one for one in leaves(caught.value) if isinstance(one, LookupError)]
    assert len(errors) == 1


def coroutine(_: Any) -> Any:
    async def later() -> int:
        return 1

    return later()


def giving(value: Any) -> Any:
    def give(_: Any) -> Any:
        return value

    return give


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": giving([])}, "share= returned .*not hashable"),
        ({"share": giving(1), "weight": giving(0)}, "weight= returned 0 for 1"),
        ({"share": giving(1), "weight": giving(math.inf)}, "weight= returned inf for 1"),
        ({"share": giving(1), "weight": giving("x")}, "weight= returned 'x' for 1"),
        ({"share": giving(1), "weight": coroutine}, "something to be awaited"),
    ],
)
async def test_what_they_return_is_checked(options: Any, message: str):
    with pytest.raises(BadResult, match=message):
        await Application(noting([], Limits(1, **options))).run({"n": 1})


def test_a_share_that_a_mapping_of_weights_lacks_weighs_1():
    of = {"a": 4, "b": 0.5}
    part = Limits(1, share=lambda state: state["n"], weight=of).parts[0]
    assert [weight_of(part, key) for key in "abc"] == [4, 0.5, 1]
    assert weight_of(Limits(1, share=lambda state: state["n"]).parts[0], "a") == 1


def test_executions_that_used_no_turn_ahead_are_forgotten():
    top = Flow()
    flow = top.child("a share", 1.0)
    flow.add()  # something of it waits all the time
    units = [Unit() for _ in range(5 * SWEEP)]
    early = units[0]
    for _ in range(3):
        flow.join(early, is_returning=False)
    for unit in units:
        flow.join(unit, is_returning=False)
        flow.on_turn(flow.round)
    assert len(flow._turns) <= 2 * SWEEP  # pyright: ignore[reportPrivateUsage]


@pytest.mark.anyio
async def test_a_share_may_be_by_a_field_that_a_graph_as_a_node_is_not_given():
    @action(reads=["tenant"], writes=["mark"])
    async def mark(tenant: str) -> str:
        return tenant.upper()

    @action(reads=["mark"], writes=["out"], limits=Limits(1, share=lambda state: state["tenant"]))
    async def call(mark: str) -> str:
        return mark

    child = Graph.chain(mark, Graph.chain(call, name="node"), name="child")
    step = fan_out(child, over="tenants", item="tenant", take="out", into="out")
    assert (await Application(step).run({"tenants": ["a", "b"]})).state["out"] == ["A", "B"]


@pytest.mark.anyio
async def test_a_share_is_no_secret():
    act = noting([], Limits(1, share=lambda s: s["token"]))
    app = Application(Graph.chain(act, reads_token), secret={"token"})
    with pytest.raises(SecretLeaked):
        await app.run({"n": 1, "token": "t0ken-of-someone"})


@action(reads=["token"], writes=["end"])
async def reads_token(token: str) -> int:
    return len(token)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": {"a": 2}}, "give share="),
        ({"share": 5}, "share"),
        ({"share": tenant, "weight": 5}, "weight"),
        ({"share": tenant, "weight": {"a": 0}}, "weight=.*'a'"),
    ],
)
def test_misuse_of_shares(options: Any, message: str):
    with pytest.raises(DefinitionError, match=message):
        Limits(1, **options)


def test_shares_are_shown():
    shown = repr(Limits(3, share=tenant, weight={"a": 2}))
    assert shown == "Limits(3, share=tenant, weight={'a': 2})"


def test_flows_of_many_tenants_are_forgotten():
    clock = Clock()
    scheduler, gate = scheduler_of(clock), Gate(1)
    for n in range(20 * SWEEP):
        unit = Unit()
        flow = scheduler.flow_of(unit, [Share("limit", n, 1.0)])
        permit = AttemptPermit(scheduler, (gate,), None, HeldPermits(unit), flow=flow)
        other = AttemptPermit(scheduler, (gate,), None, HeldPermits(unit), flow=flow)
        permit.leave()
        other.leave()
    assert len(scheduler.first_flow._flows) <= 2 * SWEEP  # pyright: ignore[reportPrivateUsage]
    assert repr(scheduler.first_flow) == "<Flow of weight 8, 0 waiting>"


# -- priority --------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("door", ["run", "start", "open", "application"])
async def test_interactive_runs_go_before_batch_runs_and_those_still_have_turns(door: str):
    calls: list[str] = []
    act = noting(calls, Limits(1), seconds=0.1)
    step = fan_out(act, over="ns", item="n", name="many")

    async def enter(runtime: Runtime, priority: Priority) -> None:
        app = Application(step, name=priority)
        state = {"ns": [priority] * 200}
        if door == "run":
            await runtime.run(app, state, priority=priority)
        elif door == "start":
            handle = await runtime.start(app, state, priority=priority)
            await handle.wait_ended()
        elif door == "open":
            async with app.open(state, runtime=runtime, priority=priority) as run:
                await run.result()
        else:
            await runtime.run(Application(step, name=priority, priority=priority), state)

    async with Runtime() as runtime, anyio.create_task_group() as tasks:
        for priority in ("batch", "normal", "interactive"):
            tasks.start_soon(enter, runtime, priority)
            await anyio.sleep(0.01)
    early = Counter(calls[:146])
    assert early["interactive"] == pytest.approx(128, abs=3)
    assert early["normal"] == pytest.approx(16, abs=2)
    assert 1 <= early["batch"] <= 3, "it doesn't starve"


@pytest.mark.anyio
async def test_a_priority_holds_at_every_limit_and_for_all_descendants():
    """At a rate, at slots, at threads; in nested fan-outs and in the further steps of a child."""
    calls: list[str] = []
    rated = Limits(rate=Rate(10))

    @action(reads=["n"], writes=["out"], limits=rated)
    async def leaf(n: str) -> str:
        calls.append(n)
        return n

    inner = fan_out(leaf, over="element", item="n", name="inner")
    outer = fan_out(Graph.chain(inner, name="child"), over="ns", item="element", name="outer")
    app = Application(outer)
    async with Runtime() as runtime, anyio.create_task_group() as tasks:
        for priority in ("batch", "interactive"):
            state = {"ns": [[priority] * 5] * 10}
            tasks.start_soon(go, runtime, app, state, priority)
            await anyio.sleep(0.01)
    assert Counter(calls[1:50])["interactive"] >= 47


@pytest.mark.anyio
async def test_a_resumed_run_has_the_priority_of_its_application():
    """Or the one that it is given: it belongs to an execution."""
    calls: list[str] = []
    act = noting(calls, Limits(1), seconds=1)
    batch = Application(fan_out(act, over="ns", item="n", name="many"), priority="batch", name="b")
    other = Application(fan_out(act, over="ns", item="n", name="many"), name="o")
    store = MemoryStore()
    with anyio.move_on_after(1.5):
        await Application(batch.graph, name="b", priority="batch", store=store).run(
            {"ns": ["b"] * 30}, id="r"
        )
    calls.clear()
    async with Runtime(apps=[batch], store=store) as runtime, anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: runtime.run(batch, id="r"))
        await anyio.sleep(0.01)
        tasks.start_soon(runtime.run, other, {"ns": ["o"] * 20})
    assert Counter(calls[1:19])["o"] >= 15


@pytest.mark.anyio
async def test_misuse_of_priorities():
    act = noting([])
    with pytest.raises(DefinitionError, match="priority= takes one of 'interactive', 'normal', "):
        Application(act, priority="high")  # type: ignore[arg-type] # that is the mistake
    with pytest.raises(BadUse, match=r"run\(priority=...\) takes one of"):
        await Application(act).run({"n": 1}, priority="high")  # type: ignore[arg-type] # that is the mistake


# -- retries ---------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["one run", "two runs", "shares", "priorities"])
async def test_a_retry_that_is_due_starts_before_any_new_child(kind: str):
    """Of its share and its class: across these, shares have their turns all the same."""
    starts: list[tuple[str, int, int]] = []
    again = Retry(4, on=ConnectionError, initial=0.05, factor=1, jitter=0)
    limits = Limits(rate=Rate(10), share=tenant if kind == "shares" else None)

    @action(reads=["n", "tenant"], writes=["out"], retry=again, limits=limits)
    async def flaky(n: int, tenant: str, context: Context) -> None:
        starts.append((tenant, n, context.attempt))
        if n % 5 == 0 and context.attempt < 4:
            raise ConnectionError

    app = Application(fan_out(flaky, over="ns", item="n", name="many"))
    async with Runtime() as runtime, anyio.create_task_group() as tasks:
        for name in ("a",) if kind == "one run" else ("a", "b"):
            priority = "batch" if (kind, name) == ("priorities", "a") else "normal"
            state = {"ns": range(50), "tenant": name}
            tasks.start_soon(go, runtime, app, state, priority)
            await anyio.sleep(0.001)
    due: dict[str, list[int]] = defaultdict(list)
    for name, n, attempt in starts:
        group = name if kind in ("shares", "priorities") else ""
        if attempt > 1:
            due[group].remove(n)
        else:
            assert not due[group], "a retry was due, and a new child has started"
        if n % 5 == 0 and attempt < 4:
            due[group].append(n)


# -- cancellation ----------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_flows_are_right_after_a_cancellation_anywhere(backend: Backend):
    async def scenario(attempt: Attempt) -> None:
        calls: list[str] = []
        step = fan_out(noting(calls), over="ns", item="n", name="many")
        limits = Limits(1, share=lambda state: state["n"][0]) & Limits(rate=Rate(2))
        async with no_leaks(), Runtime(limits=limits) as runtime:

            async def run() -> None:
                async with anyio.create_task_group() as tasks:
                    for priority in ("batch", "interactive"):
                        state = {"ns": ["a1", "b1", "a2"]}
                        tasks.start_soon(go, runtime, Application(step), state, priority)

            await attempt(run)
            admission: Any = runtime._admission  # pyright: ignore[reportPrivateUsage]
            scheduler: FairScheduler = admission.scheduler
            assert not scheduler.wait_queues
            flow: Flow | None = scheduler.first_flow
            while flow is not None:
                assert flow.active == 0
                flow = flow.parent
            calls.clear()
            await runtime.run(Application(step), {"ns": ["a1", "b1"]})
            assert sorted(calls) == ["a1", "b1"]

    assert cancel_everywhere(scenario, backend=backend) >= 20
