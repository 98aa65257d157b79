"""An outcome is final: what is Done stays Done, whatever interrupts its parent, and how often."""

# Their functions are lambdas of what a fan-out hands them, which pyright can't infer in dicts.
# pyright: reportUnknownLambdaType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportOperatorIssue=false

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import anyio
import pytest
from pydantic import AfterValidator, TypeAdapter

from shoal import (
    Application,
    Breaker,
    Context,
    Done,
    Each,
    Failed,
    Graph,
    Hook,
    Limits,
    MemoryStore,
    Outcome,
    Rate,
    Result,
    Retry,
    RunPath,
    SQLiteStore,
    State,
    Tolerate,
    action,
    fan_out,
    first,
    first_item,
)
from shoal.errors import HookFailed, InputChanged, InvalidState, NotData
from shoal.events import ChildEnded, ChildStarted, StateUpdated
from shoal.stores import Store
from shoal.testing import Attempt, RecordingHook, Recovery, cancel_everywhere, crash_everywhere

pytestmark = pytest.mark.anyio

Backend = Literal["asyncio", "trio"]


class Once:
    """Raises the first time that it is asked about one of the keys that it is for."""

    def __init__(self, *keys: object) -> None:
        self.left = set(keys) or {None}

    def __call__(self, key: object = None) -> None:
        if key in self.left:
            self.left.remove(key)
            raise ConnectionError(key)

    def is_first(self) -> bool:
        """Tell whether it was not asked before, and don't raise."""
        try:
            self()
        except ConnectionError:
            return True
        return False


@dataclass
class Witness(Hook):
    """Knows which keys are Done for everybody, and fails where one of them is executed."""

    store: Store
    done: set[str | int] = field(default_factory=set[str | int])
    ran: Counter[object] = field(default_factory=Counter[object])
    breaks: list[str] = field(default_factory=list[str])

    async def on_child_started(self, event: ChildStarted) -> None:
        await anyio.sleep(0)  # one more place where a life may be interrupted

    def on_child_ended(self, event: ChildEnded) -> None:
        if isinstance(event.outcome, Done):
            self.done.add(event.outcome.key)
        elif event.outcome.key in self.done:
            self.breaks.append(f"{event.outcome.key!r} was Done, and is told {event.outcome!r}")

    def run(self, key: object) -> None:
        self.ran[key] += 1
        if key in self.done:
            self.breaks.append(f"{key!r} is Done, and is executed again")

    async def look(self) -> None:
        """See what the store says now."""
        records = await self.store.children(RunPath(run_id="run", act="app"))
        received = {one.key: one.status for one in records}
        self.breaks += [
            f"{key!r} was Done, and is {received[key]} in the store"
            for key in self.done
            if key in received and received[key] != "succeeded"
        ]
        self.done |= {key for key, status in received.items() if status == "succeeded"}


Program = Callable[[Witness, list[int]], Application]
"""Makes an application; it fails in its first life, when most of its children are Done."""


def worker(witness: Witness, name: str = "work") -> Any:
    @action(reads=["x"], writes=["y"], name=name)
    async def work(x: int) -> int:
        witness.run(x)
        await anyio.sleep(0)
        return x

    return work


def steps(witness: Witness) -> Graph:
    @action(reads=["y"], writes=["z"])
    async def double(y: int) -> int:
        return 2 * y

    return Graph.chain(worker(witness), double, name="steps")


def reduced(
    witness: Witness, life: list[int], hooks: Sequence[Hook] = (), **options: Any
) -> Application:
    def reduce(state: State, outcome: Done | Failed) -> State:
        assert isinstance(outcome, Done)
        if life[0] == 1 and outcome.key == 1:
            raise ConnectionError
        assert outcome.state["y"] == outcome.key, "written by its first step"
        return state.increment(sum=outcome.state["z"])

    step = fan_out(
        steps(witness), over="xs", item="x", key=int, reduce=reduce, writes=["sum"], take="z",
        limits=Limits(3), name="step", **options,
    )  # fmt: skip
    return Application(step, name="app", store=witness.store, hooks=[witness, *hooks])


def kept_nowhere(witness: Witness, life: list[int]) -> Application:
    return reduced(witness, life, store=None)


def own(witness: Witness, life: list[int], **options: Any) -> Application:
    act = steps(witness)

    @action(reads=["xs"], writes=["sum"])
    async def collect(xs: Sequence[int], context: Context) -> int:
        found = 0
        async with context.fan_out(name="own", limits=Limits(3), **options) as group:
            group.start(act, {"x": xs[0]}, key=xs[0])
            group.start_each(act, over=xs[1:], item="x", key=int)
            async for outcome in group:
                assert isinstance(outcome, Done)
                assert outcome.state["y"] == outcome.key
                found += outcome.state["z"]
        if life[0] == 1:
            raise ConnectionError
        return found

    return Application(collect, name="app", store=witness.store, hooks=[witness])


def own_kept_nowhere(witness: Witness, life: list[int]) -> Application:
    return own(witness, life, store=None)


refuse: list[Callable[[int], bool]] = []
"""Says which values the model refuses."""
refuse.append(lambda value: False)


def checked(value: int) -> int:
    if refuse[0](value):
        raise ValueError(value)
    return value


TypeAdapter(int)  # what pydantic reads from files for the first model is read here


class Model(TypedDict, total=False):
    xs: list[int]
    sum: Annotated[int, AfterValidator(checked)]
    out: dict[int, Annotated[int, AfterValidator(checked)]]


def node(witness: Witness, life: list[int]) -> Application:
    """A graph as a node, whose result is refused by the model of its parent's state."""

    refuse[0] = lambda value: life[0] == 1 and value > 0

    @action(reads=["xs"], writes=["sum"])
    async def add(xs: Sequence[int]) -> int:
        witness.run("")
        await anyio.sleep(0)
        return 2 * sum(xs)

    graph = Graph.chain(Graph.chain(add, name="node"), name="main")
    app: Any = Application(graph, name="app", store=witness.store, hooks=[witness], state=Model)
    return app


def contest(witness: Witness, life: list[int]) -> Application:
    """The second of two that decide a race can't be applied."""

    def reduce(state: State, outcome: Done | Failed) -> State:
        assert isinstance(outcome, Done)
        if life[0] == 1 and state["sum"]:
            raise ConnectionError
        return state.increment(sum=6)

    step = fan_out(
        steps(witness), over="xs", item="x", key=int, reduce=reduce, writes=["sum"], take="z",
        limits=Limits(3), name="step", until=first(2),
    )  # fmt: skip
    return Application(step, name="app", store=witness.store, hooks=[witness])


PROGRAMS: list[tuple[Program, int]] = [
    (reduced, 12),
    (kept_nowhere, 12),
    (own, 12),
    (own_kept_nowhere, 12),
    (node, 12),
    (contest, 12),
]
programs = pytest.mark.parametrize(
    ("program", "total"), [pytest.param(*one, id=one[0].__name__) for one in PROGRAMS]
)
given = {"xs": [0, 1, 2, 3], "sum": 0}


async def fail(app: Application) -> None:
    with pytest.raises(Exception):  # in a group or not, of whatever kind
        await app.run(given, id="run")


@pytest.mark.sweep
@programs
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("second", ["succeeds", "fails"])
def test_what_is_done_stays_done_wherever_the_second_life_is_cancelled(
    program: Program, total: int, backend: Backend, second: str
):
    async def scenario(attempt: Attempt) -> None:
        life = [1]
        witness = Witness(MemoryStore())
        app = program(witness, life)
        await fail(app)
        await witness.look()
        assert witness.done

        async def go_on() -> None:
            try:
                await app.run(id="run")
            except Exception:
                if life[0] != 1:
                    raise

        life[0] = 2 if second == "succeeds" else 1
        await attempt(go_on)
        await witness.look()
        life[0] = 3
        result = await app.run(id="run")
        await witness.look()
        assert not witness.breaks
        assert result.state["sum"] == total
        assert (await app.run(id="run")).state["sum"] == total

    assert cancel_everywhere(scenario, backend=backend, limit=60, seed=1) > 3


@pytest.mark.sweep
@programs
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_what_is_done_stays_done_wherever_a_process_dies(
    program: Program, total: int, backend: Backend
):
    async def scenario(store: Store) -> int:
        witness = Witness(store)
        life = [1]
        app = program(witness, life)
        known = await store.children(RunPath(run_id="run", act="app"))
        witness.done = {one.key for one in known if one.status == "succeeded"}
        if not known:
            with suppress(ExceptionGroup, ConnectionError, InvalidState):  # as it is meant to
                await app.run(given, id="run")
        life[0] = 2
        result = await app.run(given, id="run")
        assert not witness.breaks
        return result.state["sum"]

    async def check(recovery: Recovery[int]) -> None:
        assert recovery.result == total

    assert crash_everywhere(scenario, check, backend=backend, times=2, limit=20, seed=1) > 3


async def test_a_child_kept_nowhere_may_write_what_can_not_be_kept(tmp_path: Path):
    """Then its outcome has its value, and no more of its state, when it is handed over again."""
    ran, life = list[int](), [1]

    @action(reads=["x"], writes=["page"])
    async def fetch(x: int) -> object:
        ran.append(x)
        return NoData()

    @action(reads=["page"], writes=["size"])
    async def measure(page: object) -> int:
        return 5

    @action(writes=["sizes"])
    async def collect(context: Context) -> list[int]:
        act = fan_out(
            Graph.chain(fetch, measure, name="page"), over=lambda state: [1], item="x", key=int,
            into="sizes", take="size", reads=[], store=None,
        )  # fmt: skip
        async with context.fan_out(name="own", store=None) as group:
            group.start(act, key="all")
            sizes = [outcome.value[1] async for outcome in group if isinstance(outcome, Done)]
        if life[0] == 1:
            raise ConnectionError
        return sizes

    app = Application(collect, store=SQLiteStore(tmp_path / "runs.db"))
    with pytest.raises(ConnectionError):
        await app.run({}, id="run")
    life[0] = 2
    assert (await app.run(id="run")).state["sizes"] == [5]
    assert ran == [1]


# -- Done, and only to be applied ---------------------------------------------------------------


async def test_a_done_child_waits_for_nothing_and_publishes_nothing():
    store, life = MemoryStore(), [1]
    began, asked = list[Any](), list[Any]()

    def ask(state: State) -> str:
        asked.append(state["x"])
        return "one"

    class Starts(Hook):
        async def on_child_started(self, event: ChildStarted) -> None:
            began.append(event.child.key)
            await anyio.sleep(20)

    @action(reads=["x"], writes=["y"], limits=Limits(rate=Rate(1, per=60)))
    async def work(x: int) -> int:
        return x

    def reduce(state: State, outcome: Done | Failed) -> State:
        if life[0] == 1:
            raise ConnectionError
        return state.increment(n=1)

    step = fan_out(
        work, over="xs", item="x", key=int, reduce=reduce, writes=["n"],
        each=Each(breaker=Breaker(by=ask)), limits=Limits(1, rate=Rate(1, per=60)), name="step",
    )  # fmt: skip
    app = Application(step, store=store, hooks=[Starts()])
    with pytest.raises(ConnectionError):
        await app.run({"xs": [0], "n": 0}, id="run")
    assert began == asked == [0]
    before, life[0] = anyio.current_time(), 2
    result = await app.run(id="run")
    assert result.state["n"] == 1
    assert anyio.current_time() == before
    assert began == asked == [0]


def retried(step: Any, retry: int = 3, **options: Any) -> Application:
    """Something around a fan-out that is tried again."""
    outer = fan_out(
        step, over=lambda state: [""], item="o", key=str, reads=[], into="all",
        take=lambda state: state.data, each=Each(retry=Retry(retry, on=Exception, jitter=0)),
    )  # fmt: skip
    return Application(outer, **options)


async def in_the_end(app: Application, **options: Any) -> dict[str, Any]:
    return (await app.run(options)).state["all"][""]


async def test_in_another_attempt_a_done_child_waits_for_nothing_and_is_published_once():
    once, ran, hook = Once(0), Counter[int](), RecordingHook()

    @action(reads=["x"], writes=["y"])
    async def work(x: int) -> int:
        ran[x] += 1
        return x

    def reduce(state: State, outcome: Done | Failed) -> State:
        once(outcome.key)
        return state.put("n", outcome.key, anyio.current_time())

    @action(writes=["n"])
    async def prepare() -> dict[int, float]:
        return {}

    rate = Limits(1) & Limits(rate=Rate(1, per=60, burst=1))
    step = fan_out(
        work, over=lambda state: [0, 1], item="x", key=int, reads=[], reduce=reduce, writes=["n"],
        limits=rate, name="step",
    )  # fmt: skip
    app = retried(Graph.chain(prepare, step, name="both"), hooks=[hook])
    ends = (await in_the_end(app))["n"]
    assert ran == {0: 1, 1: 1}
    assert ends[0] < 1, "the delay of the retry, and no window of the rate"
    hook.assert_paired()
    ended = [event.outcome for event in hook.of(ChildEnded)]
    received = [(type(one), one.key) for one in ended if one.path.step == "step"]
    assert received == [(Done, 0), (Done, 1)]
    outcomes = [event.outcome for event in hook.of(StateUpdated)]
    applied = [one.key for one in outcomes if one is not None and one.path.step == "step"]
    assert applied == [0, 1], "what is applied later is told by the update"


async def test_a_child_that_is_only_applied_has_the_attempts_that_it_took():
    ran, once, seen = list[int](), Once(), list[int]()

    @action(reads=["x"], writes=["y"], retry=Retry(3, on=OSError))
    async def work(x: int) -> int:
        ran.append(x)
        if len(ran) < 3:
            raise OSError
        return x

    def reduce(state: State, outcome: Done | Failed) -> State:
        seen.append(outcome.attempts)
        once()
        return state

    step = fan_out(
        work, over=lambda state: [0], item="x", key=int, reads=[], reduce=reduce, writes=["n"],
        name="step",
    )  # fmt: skip
    app = Application(step, store=MemoryStore())
    with pytest.raises(ConnectionError):
        await app.run({}, id="run")
    await app.run(id="run")
    assert (seen, ran) == ([3, 3], [0, 0, 0])


async def test_the_end_of_a_done_child_is_published_once():
    life, hook = [1], RecordingHook()
    witness = Witness(MemoryStore())
    await fail(reduced(witness, life))
    life[0] = 2
    ended = set(witness.done)
    assert len(ended) > 1
    await reduced(witness, life, [hook]).run(id="run")
    hook.assert_paired()
    assert not ended & {event.outcome.key for event in hook.of(ChildEnded)}
    updates = [event.outcome for event in hook.of(StateUpdated) if event.outcome is not None]
    assert ended <= {outcome.key for outcome in updates if isinstance(outcome, Done)} | {0}


async def test_a_done_child_wins_a_race_of_streams_that_is_run_again():
    """It came to its end when another had been elected, and that one then broke off."""
    starts = Counter[str]()
    app_of: list[Any] = []

    def stream(name: str) -> Any:
        @action(writes=["text"], name=name)
        async def tell():  # a generator of items
            starts[name] += 1
            if name == "a":
                await anyio.sleep(1)
                yield "a"
                await anyio.sleep(1)
                raise ConnectionError
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1.5)
            yield Result(name)

        return tell

    step = fan_out([stream("a"), stream("b")], into="out", until=first_item(on_break="restart"))
    app_of.append(Application(step))
    result = await app_of[0].run({})
    assert result.state["out"] == "b"
    assert starts == {"a": 1, "b": 1}


async def test_a_skipped_child_is_not_executed_in_another_attempt():
    """It ended behind a child that could not be applied, in one batch with it."""
    ran, once = list[int](), Once()

    @action(reads=["x"], writes=["y"])
    async def work(x: int) -> int:
        ran.append(x)
        return x

    @action(writes=["out"])
    async def prepare() -> dict[int, int]:
        return {0: 7}

    refuse[0] = lambda value: value == 1 and once.is_first()
    step = fan_out(work, over=lambda state: [1, 0, 2], item="x", key=int, reads=[], into="out")
    graph = Graph.chain(prepare, step, name="both", state=Model)
    found = await in_the_end(retried(graph))
    assert found["out"] == {0: 7, 1: 1, 2: 2}
    assert ran == [1, 2]


# -- elements -----------------------------------------------------------------------------------


class NoData:
    def __reduce__(self) -> str:
        msg = "no data"
        raise TypeError(msg)


def asked(once: Once, answer: Any) -> Callable[[State], Any]:
    def ask(state: State) -> Any:
        once(state["n"])
        return answer

    return ask


def growing(once: Once) -> Any:
    def grow(state: State, outcome: Done | Failed) -> Any:
        if outcome.key == 0:
            yield 10
            yield 11
            once(2)
            yield 12

    return grow


RAISES: dict[str, tuple[Callable[[Once], dict[str, Any]], set[int]]] = {
    "by": (lambda once: {"limits": Limits(4, by=asked(once, "k"))}, set()),
    "cost": (
        lambda once: {"limits": Limits(rate=Rate(1000, burst=9), cost=asked(once, 1))},
        set(),
    ),
    "breaker": (lambda once: {"each": Each(breaker=Breaker(by=asked(once, "k")))}, set()),
    "staggered": (lambda once: {"limits": Limits(4, by=asked(once, "k")), "stagger": 1}, set()),
    "key": (lambda once: {"key": lambda n: (once(n), n)[1]}, set()),
    "grow": (lambda once: {"grow": growing(once)}, {10, 11, 12}),
    "until": (
        lambda once: {
            "grow": lambda state, outcome: [outcome.key + 10] if outcome.key < 4 else [],
            "until": lambda state, outcome: (once(outcome.key), False)[1],
        },
        {10, 11, 12, 13},
    ),
    "take": (lambda once: {"take": lambda state: (once(state["n"]), state["v"])[1]}, set()),
}  # fmt: skip


@pytest.mark.parametrize("what", RAISES)
@pytest.mark.parametrize("keyed", [True, False], ids=["keys", "positions"])
@pytest.mark.parametrize("source", ["iterable", "async"])
@pytest.mark.parametrize("stored", [True, False], ids=["store", "no store"])
async def test_an_element_is_not_lost_when_something_raises_about_it(
    what: str, keyed: bool, source: str, stored: bool
):
    make, grown = RAISES[what]
    if not keyed and (grown or what == "key"):
        pytest.skip("elements that are found need keys")
    ran = Counter[int]()

    @action(reads=["n"], writes=["v"])
    async def work(n: int) -> int:
        await anyio.sleep(0)
        ran[n] += 1
        return n

    async def numbers() -> Any:
        for n in range(4):
            yield n

    def over(state: State) -> Any:
        return numbers() if source == "async" else list(range(4))

    options: dict[str, Any] = {"key": int if keyed else None, "take": "v", **make(Once(2))}
    step = fan_out(work, over=over, item="n", into="out", reads=[], **options)
    app = retried(step, store=MemoryStore() if stored else None)
    found = (await in_the_end(app))["out"]
    wanted = {0, 1, 2, 3} | grown
    assert (set(found) if keyed else found) == (wanted if keyed else sorted(wanted))
    assert set(ran.values()) == {1}


async def test_what_can_not_be_kept_fails_each_attempt():
    @action(reads=["n"], writes=["v"])
    async def work(n: object) -> int:
        return 1

    step = fan_out(
        work, over=lambda state: [0, NoData(), 2], item="n", into="out", reads=[],
        key=lambda n: 1 if type(n) is NoData else n,
    )  # fmt: skip
    with pytest.raises(ExceptionGroup) as raised:
        await retried(step, store=MemoryStore()).run({})
    assert raised.group_contains(NotData, depth=1)


async def test_what_grow_finds_is_saved_with_the_update_that_applies_its_cause():
    """It was found twice: before ``until`` raised, and by the attempt after that."""
    life, once = [1], Once(0)

    @action(reads=["n"], writes=["v"])
    async def work(n: int) -> int:
        if n == 10 and life[0] == 1:
            raise ConnectionError
        return n

    step = fan_out(
        work, over=lambda state: [0], item="n", key=int, into="out", reads=[],
        grow=lambda state, outcome: [10] if outcome.key == 0 else [],
        until=lambda state, outcome: (once(outcome.key), False)[1],
    )  # fmt: skip
    app = retried(step, 2, store=MemoryStore())
    with pytest.raises(ExceptionGroup):
        await app.run({}, id="run")
    life[0] = 2
    assert (await app.run(id="run")).state["all"][""]["out"] == {0: 0, 10: 10}


async def test_what_grow_finds_is_not_lost_where_its_update_can_not_be_saved():
    once = Once()

    @action(reads=["n"], writes=["v"])
    async def work(n: int) -> int:
        return n

    def reduce(state: State, outcome: Done | Failed) -> State:
        try:
            once()
        except ConnectionError:
            return state.put("seen", outcome.key, NoData())
        return state.put("seen", outcome.key, 1)

    @action(writes=["seen"])
    async def prepare() -> dict[int, int]:
        return {}

    step = fan_out(
        work, over=lambda state: [0], item="n", key=int, reads=[], writes=["seen"], reduce=reduce,
        grow=lambda state, outcome: [outcome.key + 1] if outcome.key < 3 else [], name="step",
    )  # fmt: skip
    store = MemoryStore()
    app = retried(Graph.chain(prepare, step, name="both"), store=refusing(store))
    assert (await in_the_end(app))["seen"] == {0: 1, 1: 1, 2: 1, 3: 1}


def refusing(store: MemoryStore) -> MemoryStore:
    """Have a store refuse what is no data, as those in databases do."""
    save = store.save

    def saving(batch: Any) -> None:
        values = [getattr(op, "value", None) for one in batch.updates for op in one.operations]
        if any(isinstance(value, NoData) for value in values):
            msg = "it is no data"
            raise NotData(msg)
        save(batch)

    store.save = saving  # pyright: ignore[reportAttributeAccessIssue]
    return store


async def test_what_is_applied_stays_when_over_raises_in_another_attempt():
    once, calls, ran = Once(1), list[int](), Counter[int]()
    over_fails = Once(2)

    def over(state: State) -> list[int]:
        calls.append(1)
        over_fails(len(calls))
        return [0, 1, 2]

    @action(reads=["n"], writes=["v"])
    async def work(n: int) -> int:
        ran[n] += 1
        once(n)
        return n

    @action(writes=["sum"])
    async def prepare() -> int:
        return 0

    step = fan_out(
        work, over=over, item="n", key=int, reads=[], writes=["sum"], limits=Limits(1),
        reduce=lambda state, outcome: state.increment(sum=10 ** outcome.key), name="step",
    )  # fmt: skip
    found = await in_the_end(retried(Graph.chain(prepare, step, name="both"), 4))
    assert found["sum"] == 111
    assert ran == {0: 1, 1: 2, 2: 1}


async def test_a_changed_input_refuses_the_run_and_is_not_tried_again():
    life, store = [1], MemoryStore()

    def app() -> Application:
        @action(reads=["n"], writes=["v"])
        async def work(n: tuple[int, int]) -> int:
            if n == (1, 1):
                raise ConnectionError
            return n[0]

        @action(writes=["sum"])
        async def prepare() -> int:
            return 0

        step = fan_out(
            work, over=lambda state: [(0, life[0]), (1, life[0])], item="n", reads=[],
            key=lambda n: n[0], writes=["sum"], limits=Limits(1),
            reduce=lambda state, outcome: state.increment(sum=10 ** outcome.key),
            name="step",
        )  # fmt: skip
        graph = Graph.chain(prepare, step, name="both")
        outer = fan_out(
            graph, over=lambda state: [""], item="o", key=str, reads=[], into="all", take="sum",
            each=Each(retry=Retry(3, on=Exception, jitter=0)), name="outer",
        )  # fmt: skip
        return Application(outer, store=store, name="app")

    with pytest.raises(ExceptionGroup) as raised:
        await app().run({}, id="run")
    assert raised.group_contains(ConnectionError)
    life[0] = 2
    for _ in range(2):
        with pytest.raises(InputChanged):
            await app().run({}, id="run")


async def test_a_cancelled_source_has_not_ended():
    """The last child that was known ends in the tick in which the run is cancelled."""
    scopes: list[anyio.CancelScope] = []
    ran: list[int] = []

    @action(reads=["n"], writes=["v"])
    async def work(n: int) -> int:
        ran.append(n)
        if scopes:
            scopes.pop().cancel()
        return n

    async def elements(state: State) -> AsyncIterator[int]:
        for n in range(3):
            yield n

    class Slow(Hook):
        async def on_child_started(self, event: object) -> None:
            await anyio.lowlevel.checkpoint()

        on_child_ended = on_state_updated = on_child_started

    step = fan_out(
        work, over=elements, reads=[], item="n", key=int, into="out", take="v", stagger=0.25
    )
    app = Application(step, store=MemoryStore(), hooks=[Slow()])
    with anyio.CancelScope() as scope:
        scopes.append(scope)
        await app.run({}, id="run")
    result = await app.run(id="run")
    assert dict(result.state["out"]) == {0: 0, 1: 1, 2: 2}


# -- failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("on_error", ["fail", "collect", "ignore"])
@pytest.mark.parametrize("what", ["reduce", "until", "reduce of a failure"])
async def test_a_failure_behind_a_child_that_could_not_be_applied_is_not_lost(
    on_error: Any, what: str
):
    if what == "reduce of a failure" and on_error != "collect":
        pytest.skip("no failure is reduced")
    fails, applies = Once(0 if what == "reduce of a failure" else 1), Once(0)

    @action(reads=["x"], writes=["y"])
    async def work(x: int) -> int:
        await anyio.sleep(0.01)  # all in one batch
        fails(x)
        return x

    def reduce(state: State, outcome: Done | Failed) -> State:
        if what != "until":
            applies(outcome.key)
        return state.append(seen=(outcome.key, type(outcome).__name__))

    @action(writes=["seen"])
    async def prepare() -> list[Any]:
        return []

    options: dict[str, Any] = {} if on_error == "fail" else {"on_error": on_error}
    if what == "until":
        options["until"] = lambda state, outcome: (applies(outcome.key), False)[1]
    step = fan_out(
        work, over=lambda state: [0, 1, 2], item="x", key=int, reads=[], writes=["seen"],
        reduce=reduce, name="step", **options,
    )  # fmt: skip
    hook = RecordingHook()
    app = retried(Graph.chain(prepare, step, name="both"), hooks=[hook])
    seen = (await in_the_end(app))["seen"]
    assert sorted(map(tuple, seen)) == [(0, "Done"), (1, "Done"), (2, "Done")]
    hook.assert_paired()


async def test_the_error_names_other_failed_children():
    @action(reads=["x"], writes=["y"])
    async def work(x: int) -> int:
        await anyio.sleep(0.01)
        if x:
            raise ConnectionError(x)
        return x

    def reduce(state: State, outcome: Done | Failed) -> State:
        raise OSError

    step = fan_out(
        work, over="xs", item="x", key=int, reduce=reduce, writes=["n"], on_error="collect",
        name="step",
    )  # fmt: skip
    with pytest.raises(OSError) as raised:  # its notes are looked at
        await Application(step).run({"xs": range(8), "n": 0})
    notes = [one for one in raised.value.__notes__ if "besides" in one or "more" in one]
    assert len(notes) == 6
    assert "key 1 failed: ConnectionError(1)" in notes[0]
    assert "2 more" in notes[-1]


async def test_a_result_that_counts_in_a_race_counts_once():
    """The first of two that are wanted can't be applied: it is no second vote when it can."""
    once = Once(0)

    @action(reads=["x"], writes=["y"])
    async def work(x: int) -> int:
        await anyio.sleep(x)
        return x

    def reduce(state: State, outcome: Done | Failed) -> State:
        once(outcome.key)
        return state.append(seen=outcome.key)

    @action(writes=["seen"])
    async def prepare() -> list[Any]:
        return []

    step = fan_out(
        work, over=lambda state: [0, 1, 2], item="x", key=int, reads=[], writes=["seen"],
        reduce=reduce, until=first(2), name="step",
    )  # fmt: skip
    found = await in_the_end(retried(Graph.chain(prepare, step, name="both")))
    assert found["seen"] == [0, 1]


async def test_elements_that_grow_finds_again_are_no_new_ones_where_their_update_is_not_made():
    """The child that found them has failed, and runs again; ``until`` raises about it once."""
    life, once = [1], Once(0)

    @action(reads=["n"], writes=["v"])
    async def work(n: int) -> int:
        if n == 0 and life[0] == 1:
            raise OSError
        return n

    def until(state: State, outcome: Outcome) -> bool:
        if outcome.key == 1 and life[0] == 1:
            raise ConnectionError
        if life[0] == 2:
            once(outcome.key)
        return False

    step = fan_out(
        work, over=lambda state: [0], item="n", into="out", reads=[], until=until,
        grow=lambda state, outcome: [10, 11] if outcome.element == 0 else [],
        on_error="collect", errors_into="errors",
    )  # fmt: skip
    app = retried(step, 2, store=MemoryStore())
    with pytest.raises(ExceptionGroup):
        await app.run({}, id="run")
    life[0] = 2
    assert (await app.run(id="run")).state["all"][""]["out"] == [0, 10, 11]
    assert not once.left


async def test_what_grow_finds_in_a_batch_stays_where_it_raises_for_a_later_child():
    once = Once(1)

    @action(reads=["n"], writes=["v"])
    async def work(n: int) -> int:
        return n

    def grow(state: State, outcome: Done | Failed) -> list[int]:
        once(outcome.key)
        return [outcome.key + 10] if outcome.key < 2 else []

    step = fan_out(
        work, over=lambda state: [0, 1], item="n", key=int, into="out", reads=[], grow=grow
    )  # fmt: skip
    found = await in_the_end(retried(step, 2))
    assert found["out"] == {0: 0, 1: 1, 10: 10, 11: 11}


async def test_a_result_that_a_race_has_accepted_counts_where_a_later_one_can_not_be_taken():
    once = Once()
    refuse[0] = lambda value: value == 1 and once.is_first()

    @action(reads=["x"], writes=["y"])
    async def work(x: int) -> int:
        await anyio.sleep(1)  # both end together
        return x

    step = fan_out(
        work, over=lambda state: [0, 1], item="x", key=int, reads=[], into="out", until=first(2)
    )  # fmt: skip
    found = await in_the_end(retried(Graph.chain(step, name="main", state=Model), 2))
    assert found["out"] == {0: 0, 1: 1}


# -- a value that can't be taken ----------------------------------------------------------------


@pytest.mark.parametrize("how", ["retried", "retried, stored", "resumed"])
async def test_a_child_whose_value_could_not_be_taken_executes_nothing_again(how: str):
    ran, once = Counter[str](), Once()

    @action(reads=["x"], writes=["page"])
    async def fetch(x: int) -> str:
        ran["fetch"] += 1
        return "page"

    @action(reads=["z"], writes=["w"])
    async def look_up(z: int) -> int:
        ran["look_up"] += 1
        return z

    @action(reads=["page"], writes=["title"])
    async def parse(page: str) -> str:
        ran["parse"] += 1
        return "title"

    def take(state: State) -> str:
        once()
        return state["title"]

    links = fan_out(look_up, over=lambda s: range(3), item="z", key=int, into="links", reads=[])
    pages = fan_out(
        Graph.chain(fetch, links, parse, name="page"), over=lambda state: [0], item="x", key=int,
        into="titles", take=take, reads=[],
    )  # fmt: skip
    if how == "resumed":
        hook = RecordingHook()
        app = Application(pages, store=MemoryStore(), hooks=[hook])
        with pytest.raises(ExceptionGroup):
            await app.run({}, id="run")
        titles = (await app.run(id="run")).state["titles"]
        hook.assert_paired()
    else:
        store = MemoryStore() if "stored" in how else None
        titles = (await in_the_end(retried(pages, store=store)))["titles"]
    assert titles == {0: "title"}
    assert ran == {"fetch": 1, "look_up": 3, "parse": 1}


@pytest.mark.parametrize("how", ["retried", "resumed"])
async def test_a_node_that_could_not_be_applied_is_not_executed_again(how: str):
    ran, once = Counter[str](), Once()

    refuse[0] = lambda value: value > 0 and once.is_first()

    @action(writes=["sum"])
    async def count() -> int:
        ran["count"] += 1
        return 1

    graph = Graph.chain(Graph.chain(count, name="node"), name="main", state=Model)
    if how == "retried":
        assert (await in_the_end(retried(graph)))["sum"] == 1
    else:
        app: Any = Application(graph, store=MemoryStore())
        with pytest.raises(Exception):  # of whatever kind
            await app.run({}, id="run")
        assert (await app.run(id="run")).state["sum"] == 1
    assert ran == {"count": 1}


# -- races that are run again -------------------------------------------------------------------


def streams(breaks: int) -> tuple[Any, list[int]]:
    executed, left = [0], [breaks]

    @action(reads=["x"], writes=["y"])
    async def tell(x: int):  # a generator of items
        executed[0] += 1
        await anyio.sleep(1)
        yield "Once"
        await anyio.sleep(1)
        if left[0]:
            left[0] -= 1
            raise ConnectionError
        yield Result("the end")

    step = fan_out(
        tell, over=lambda state: [0, 1], item="x", key=int, reads=[], into="story",
        until=first_item(on_break="restart"),
    )  # fmt: skip
    return step, executed


async def test_a_race_of_streams_that_is_lost_is_run_again_in_another_attempt():
    step, executed = streams(2)
    assert (await in_the_end(retried(step)))["story"] == "the end"
    assert executed == [5], "two rounds of two and one, and another race of two"


async def test_a_race_of_streams_that_is_lost_is_run_again_when_it_is_resumed():
    step, executed = streams(4)
    app = Application(step, store=MemoryStore())
    for total in (3, 6):
        with pytest.raises(ExceptionGroup):
            await app.run({}, id="run")
        assert executed == [total]
    result = await app.run(id="run")
    assert result.state["story"] == "the end"
    assert result.outcomes("story").total == 2


# -- ledgers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["by key", "listed", "reduced"])
async def test_a_share_counts_those_that_were_done_before(shape: str):
    life = [1]

    @action(reads=["x"], writes=["y"])
    async def work(x: int) -> int:
        if x == 0:
            if life[0] == 1:
                await anyio.sleep(1)
            raise ConnectionError(x)
        if x == 19 and life[0] == 1:
            await anyio.sleep(60)
        return x

    options: dict[str, Any] = {"into": "out", "key": int if shape == "by key" else None}
    if shape == "reduced":
        options = {
            "reduce": lambda s, o: s.increment(n=1),
            "writes": ["n"],
            "key": int,
            "name": "out",
        }
    tolerance = Tolerate(share=0.1)
    step = fan_out(work, over="xs", item="x", on_error=tolerance, **options)
    app = Application(step, store=MemoryStore())
    with anyio.move_on_after(2):
        await app.run({"xs": list(range(20)), "n": 0}, id="run")
    life[0] = 2
    ledger = (await app.run(id="run")).outcomes("out")
    assert (ledger.done, ledger.failed) == (19, 1)


@pytest.mark.parametrize("last", ["failures", "nothing", "own"])
async def test_the_ledger_of_a_fan_out_in_a_node_is_there_after_a_resume(last: str):
    @action(reads=["x"], writes=["y"])
    async def work(x: int) -> int:
        raise ConnectionError(x)

    @action(writes=["n"])
    async def after() -> int:
        once()
        return 1

    @action()
    async def own(context: Context) -> None:
        async with context.fan_out(name="fan") as group:
            group.start(work, {"x": 1})
            async for _ in group:
                pass

    fan: Any = fan_out(
        work, over=lambda state: [1, 2] if last == "failures" else [], item="x", key=int, reads=[],
        name="fan", reduce=lambda s, o: s, writes=["total"], on_error="ignore",
    )  # fmt: skip
    node = Graph.chain(own if last == "own" else fan, name="node")
    app = Application(Graph.chain(node, after, name="main"), store=MemoryStore())
    once = Once()
    once.left.clear()
    straight = await app.run({}, id="straight")
    once = Once()
    with pytest.raises(ConnectionError):
        await app.run({}, id="run")
    resumed = await app.run(id="run")
    name = "node/own/fan" if last == "own" else "node/fan"
    assert repr(resumed.outcomes(name)) == repr(straight.outcomes(name))


# -- guards in an action's own fan-out ----------------------------------------------------------


@pytest.mark.parametrize("consequence", ["starts another", "raises", "catches it"])
async def test_a_guard_that_fails_in_an_actions_own_fan_out_fails_the_run(consequence: str):
    class Guard(Hook):
        def on_child_ended(self, event: ChildEnded) -> None:
            if event.outcome.key == 4:
                raise ZeroDivisionError

    @action(reads=["n"], writes=["half"])
    async def halve(n: int) -> int:
        return n // 2

    @action(writes=["path"])
    async def descend(context: Context) -> int:
        try:
            async with context.fan_out(name="halves") as group:
                group.start(halve, {"n": 9}, key=9)
                async for outcome in group:
                    half = outcome.value  # type: ignore[union-attr] # a Cancelled has none
                    group.start(halve, {"n": half}, key=half)
                    if consequence == "raises" and half == 4:
                        await anyio.sleep(1)
                        raise KeyError(half)
        except HookFailed:
            if consequence != "catches it":
                raise
        return 1

    app = Application(descend, hooks=[Guard()], store=MemoryStore())
    with pytest.raises(HookFailed):
        await app.run({})


# -- what may follow what -----------------------------------------------------------------------


async def test_what_is_done_can_not_end_in_any_other_way():
    runs = list[Any]()
    store = MemoryStore()
    save = store.save

    def saving(batch: Any) -> None:
        save(batch)
        runs.extend(batch.applied)

    store.save = saving  # pyright: ignore[reportAttributeAccessIssue]
    witness = Witness(store)
    step = fan_out(steps(witness), over="xs", item="x", key=int, into="ys", take="z")
    await Application(step, store=store).run({"xs": [3]})
    (run,) = runs
    for end in (lambda: run.cancel("no"), lambda: run.fail(ValueError()), run.halt):
        with pytest.raises(AssertionError, match="has ended"):
            end()
    run.reopen()  # as where its parent is tried again
    assert run.status == "succeeded"
    assert not run.is_live
    for end in (
        lambda: run.cancel("no", None, "succeeded"),
        lambda: run.fail(ValueError(), "succeeded"),
        lambda: run.never_start("no"),
        run.succeed,
    ):
        with pytest.raises(AssertionError, match="has ended"):
            end()
    run.revoke_end()
    run.replace_end(ValueError())
    assert isinstance(run.outcome, Done)
    assert (run.outcome.value, run.outcome.state["y"]) == (6, 3)
