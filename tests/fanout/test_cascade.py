"""Whether a fan-out's children are kept and told of where their parent is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

import anyio.lowlevel
import pytest

from shoal import (
    END,
    INHERIT,
    Application,
    Context,
    Done,
    Graph,
    Hook,
    MemoryStore,
    ParallelAction,
    RunClaimed,
    RunPath,
    Runtime,
    State,
    StoreFailed,
    Task,
    action,
    fan_out,
    when,
)
from shoal.errors import BadUse, DefinitionError, HookFailed
from shoal.events import ChildEnded, RunStarted, StateUpdated
from shoal.stores._protocol import Batch
from shoal.testing import RecordingHook, no_leaks, run_virtual

pytestmark = pytest.mark.anyio

T = TypeVar("T")


class Stops:
    """A store that stops at its k-th save: what it has kept till then is in ``left``."""

    def __init__(self, at: int) -> None:
        self._kept = MemoryStore()
        self._at = at
        self._saves = 0
        self.left: MemoryStore | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kept, name)

    def save(self, batch: Batch) -> None:
        self._saves += 1
        if self._saves >= self._at:
            self.left = self.left or self._kept.copy()
            raise OSError("no space left on device")
        self._kept.save(batch)


ran = list[tuple[str, Any]]()


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()


@action(reads=["n"], writes=["half"])
async def halve(n: int) -> float:
    ran.append(("halve", n))
    await anyio.lowlevel.checkpoint()
    return n / 2


@action(reads=["half"], writes=["text"])
async def show(half: float) -> str:
    ran.append(("show", half))
    await anyio.lowlevel.checkpoint()
    return str(half)


@action(reads=["texts"], writes=["count"])
async def count(texts: Any) -> int:
    return len(texts)


def application(kept_in: Any, /, **options: Any) -> Application[Any]:
    texts = fan_out(
        Graph.chain(halve, show, name="both"),
        over="ns",
        item="n",
        key=str,
        into="texts",
        take="text",
        **options,
    )
    return Application(Graph.chain(texts, count), name="app", store=kept_in)


STATE = {"ns": [1, 2, 3]}
TEXTS = {"1": "0.5", "2": "1.0", "3": "1.5"}


async def kept_of_children(store: MemoryStore) -> list[str]:
    """The steps that are kept of the children, apart from their ends."""
    found = list[str]()
    for record in store._roots["x"].children():
        found += [type(entry).__name__ for entry in record.history]
    return found


# -- stores --------------------------------------------------------------------------------------


async def test_children_are_kept_where_their_parent_is():
    store = MemoryStore()
    result = await application(store).run(STATE, id="x")
    assert result.state["texts"] == TEXTS
    assert await kept_of_children(store) == ["Update", "Completed", "Update"] * 3


async def test_of_children_without_a_store_only_their_ends_are_kept():
    store = MemoryStore()
    result = await application(store, store=None).run(STATE, id="x")
    assert result.state["texts"] == TEXTS
    assert await kept_of_children(store) == []
    outcomes = [outcome async for outcome in result.all_outcomes("texts")]
    assert [(one.key, type(one)) for one in outcomes] == [(k, Done) for k in ("1", "2", "3")]


async def test_outcomes_are_read_back_from_where_the_children_are_kept():
    store, other = MemoryStore(), MemoryStore()
    app = application(store, store=other)
    for result in (await app.run(STATE, id="x"), await app.run(id="x")):  # ran, and recalled
        outcomes = [outcome async for outcome in result.all_outcomes("texts")]
        states = [dict(one.state) for one in outcomes if isinstance(one, Done)]
        assert [state["text"] for state in states] == ["0.5", "1.0", "1.5"]

    @action(writes=["done"])
    async def own(context: Context) -> int:
        async with context.fan_out(name="f", store=other) as group:
            group.start(halve, {"n": 4})
        return 1

    result = await Application(own, store=store).run(id="y")
    (outcome,) = [outcome async for outcome in result.all_outcomes("own/f")]
    assert isinstance(outcome, Done)
    assert dict(outcome.state) == {"half": 2.0}


@pytest.mark.sweep
@pytest.mark.parametrize("where", ["nowhere", "elsewhere", "here"])
async def test_wherever_they_are_kept_a_stop_at_any_save_loses_nothing(where: str):
    stops_at = 0
    while True:
        stops_at += 1
        ran.clear()
        store = Stops(stops_at)
        elsewhere = MemoryStore()
        kept: Any = {"nowhere": None, "elsewhere": elsewhere, "here": INHERIT}[where]
        async with no_leaks():
            try:
                await application(store, store=kept).run(STATE, id="x")
            except StoreFailed:
                assert store.left is not None
            else:
                break
            result = await application(store.left, store=kept).run(STATE, id="x")
        assert result.state["texts"] == TEXTS
        assert result.state["count"] == 3
        assert result.outcomes("texts").done == 3
    assert stops_at > 3


async def test_a_store_of_the_children_alone_is_enough_to_find_them_again():
    elsewhere = MemoryStore()
    first = await application(None, store=elsewhere).run(STATE, id="x")
    assert len(ran) == 6
    again = await application(None, store=elsewhere).run(STATE, id="x")
    assert len(ran) == 6, "nothing ran again"
    assert first.state == again.state


@pytest.mark.parametrize("is_nested", [False, True])
@pytest.mark.parametrize("key", [None, str])
async def test_what_grew_below_a_parent_that_is_kept_nowhere_is_found_again(
    key: Any, is_nested: bool
):
    """Nothing has the elements that it returned, and they get the places that they had."""
    elsewhere = MemoryStore()

    def make() -> Application[Any]:
        grown = fan_out(
            Graph.chain(halve, show, name="both"), over="ns", item="n", key=key, into="texts",
            take="text", store=elsewhere, grow=grow,
        )  # fmt: skip
        if not is_nested:
            return Application(grown, name="app")
        outer = fan_out(
            grown, over=lambda state: ["a"], item="name", reads=["ns"], key=str, into="all",
            take="texts", store=None,
        )  # fmt: skip
        return Application(outer, name="app", store=MemoryStore())

    def grow(_: State, outcome: Done) -> list[int]:
        return [outcome.element * 10, outcome.element * 10 + 1] if outcome.element < 10 else []

    first = await make().run({"ns": [1, 2]}, id="x")
    assert len(ran) == 12
    again = await make().run({"ns": [1, 2]}, id="x")
    assert len(ran) == 12, "nothing ran again"
    assert first.state == again.state


async def test_two_executions_that_share_the_children_s_store_are_one_too_many():
    elsewhere = MemoryStore()
    app = application(None, store=elsewhere)
    async with app.open(STATE, id="x", stepwise=True) as run:
        await elsewhere.claim("x", "somebody else")
        with pytest.raises(RunClaimed, match="run x"):
            await run.step()
        await elsewhere.release("x", "somebody else")


async def test_an_action_s_own_children_may_be_kept_elsewhere():
    elsewhere = MemoryStore()

    @action(writes=["sum"])
    async def add(context: Context) -> float:
        total = 0.0
        async with context.fan_out(name="halves", store=elsewhere) as group:
            group.start_each(halve, over=range(3), item="n", key=str)
            async for outcome in group:
                assert isinstance(outcome, Done)
                total += outcome.value
        return total

    store = MemoryStore()
    assert (await Application(add, store=store).run(id="x")).state["sum"] == 1.5
    assert len(list(elsewhere._roots["x"].children())) == 3


async def test_what_is_no_store_is_refused():
    for wrong in (3, MemoryStore):
        with pytest.raises(DefinitionError, match="takes a store"):
            application(None, store=wrong)
        with pytest.raises(DefinitionError, match="takes a store"):
            Application(halve, store=wrong)  # pyright: ignore[reportArgumentType]
        with pytest.raises(DefinitionError, match="takes a store"):
            Runtime(store=wrong)  # pyright: ignore[reportArgumentType]

        @action()
        async def own(context: Context, wrong: Any = wrong) -> None:
            with pytest.raises(DefinitionError, match="takes a store"):
                context.fan_out(name="f", store=wrong)

        await Application(own).run()


async def test_without_a_store_nothing_is_known_of_children_that_are_done():
    result = await application(None).run(STATE)
    with pytest.raises(BadUse, match="has no store"):
        await anext(result.all_outcomes("texts"))
    with pytest.raises(KeyError, match="executed no fan-out"):
        result.all_outcomes("others")


# -- hooks ---------------------------------------------------------------------------------------


class Guard(Hook):
    def on_run_started(self, event: RunStarted) -> None:
        raise ValueError("not today")


async def test_children_may_have_hooks_of_their_own():
    parent, children = RecordingHook(), RecordingHook()
    app = application(None, hooks=[children])
    app.hooks = (parent,)
    await app.run(STATE)
    assert {event.depth for event in children.events} == {1}
    assert len(children.of(RunStarted)) == 3
    assert len(children.of(StateUpdated)) == 6
    children.assert_paired()
    parent.assert_paired()
    assert {event.depth for event in parent.events} == {0}
    assert len(parent.of(ChildEnded)) == 3


async def test_children_may_have_no_hooks_at_all_and_streams_see_them_all_the_same():
    app = application(None, hooks=[])
    depths = set[int]()
    async with app.open(STATE) as run:
        async for event in run:
            depths.add(event.depth)
    assert depths == {0, 1}


async def test_hooks_of_children_are_notified_though_no_hook_listens_to_their_parent():
    children = RecordingHook()
    await application(None, hooks=[children]).run(STATE)
    assert len(children.of(RunStarted)) == 3
    children.assert_paired()


async def test_a_guard_of_the_children_ends_the_run():
    with pytest.raises(HookFailed, match="not today"):
        await application(None, hooks=[Guard()], on_error="collect").run(STATE)


async def test_class_forms_take_a_store_and_hooks_of_their_own():
    elsewhere, children = MemoryStore(), RecordingHook()

    class Sum(ParallelAction):
        reads = ("ns",)
        writes = ("sum",)
        store = elsewhere
        hooks = (children,)

        def tasks(self, state: Any, inputs: Any) -> Any:
            for n in state["ns"]:
                yield Task(halve, {"n": n}, key=n)

        def reduce(self, state: Any, outcome: Any) -> Any:
            return state.increment(sum=outcome.value)

    result = await Application(Sum()).run(STATE, id="x")
    assert result.state["sum"] == 3
    assert len(list(elsewhere._roots["x"].children())) == 3
    assert len(children.of(RunStarted)) == 3


# -- inputs minus outputs --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("again", "first", "second"),
    [
        (None, ["2", "3"], ["1", "2", "3"]),
        (True, ["1", "2", "3"], ["1", "2", "3"]),
        (False, ["2", "3"], []),
    ],
)
async def test_again_says_on_which_visits_what_is_there_runs_again(
    again: bool | None, first: list[str], second: list[str]
):
    visits = list[list[str]]()

    @action(reads=["turn"], writes=["turn"])
    async def turn(turn: int) -> int:
        visits.append([])
        return turn + 1

    @action(reads=["n"], writes=["half"])
    async def halve(n: int) -> float:
        visits[-1].append(str(n))
        return n / 2

    halves = fan_out(halve, over="ns", item="n", key=str, into="halves", again=again)
    graph = Graph((turn, halves), (halves, turn, when(turn=1)), (halves, END), entry=turn)
    result = await Application(graph).run({**STATE, "turn": 0, "halves": {"1": 0.5}})
    assert visits == [first, second]
    assert result.state["halves"] == {"1": 0.5, "2": 1.0, "3": 1.5}
    assert list(result.state["halves"]) == ["1", "2", "3"]


def test_again_is_refused_where_it_means_nothing():
    with pytest.raises(DefinitionError, match="needs both"):
        fan_out(halve, over="ns", item="n", into="halves", again=True)
    with pytest.raises(DefinitionError, match="needs both"):
        fan_out(halve, over="ns", item="n", key=str, name="f", again=True)
    with pytest.raises(DefinitionError, match="grow"):
        fan_out(halve, over="ns", item="n", key=str, into="h", again=False, grow=lambda s, o: [3])
    with pytest.raises(DefinitionError, match="True, False"):
        fan_out(halve, over="ns", item="n", key=str, into="h", again=cast("Any", "yes"))


class SlowToClaim:
    """A store that takes its time to say whether it has claimed a run, and notes earlier saves."""

    def __init__(self, seconds: float) -> None:
        self._kept = MemoryStore()
        self._seconds = seconds
        self._is_claimed = False
        self.too_early: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kept, name)

    async def claim(self, run_id: str, holder: str) -> Any:
        await anyio.sleep(self._seconds)
        self._is_claimed = True
        return await self._kept.claim(run_id, holder)

    def save(self, batch: Batch) -> Any:
        if not self._is_claimed:
            self.too_early.append(batch.path.id)
        return self._kept.save(batch)


@pytest.mark.parametrize("seconds", [1, 1000])
async def test_a_claim_that_is_never_answered_is_everybodys(seconds: float):
    """Several children come to a store of their own at once: all of them wait for its one claim."""
    own: Any = SlowToClaim(seconds)

    @action(reads=["item"], writes=["out"])
    async def work(item: int) -> int:
        return item

    inner = fan_out(work, over="m", into="outs", take="out", store=own, name="inner")
    outer = fan_out(inner, over="n", item="m", into="all", take="outs", name="outer")
    hook = RecordingHook()
    app = Application(outer, store=MemoryStore(), hooks=[hook])
    async with no_leaks():
        if seconds == 1:
            result = await app.run({"n": [[1, 2], [3]]})
            assert result.state["all"] == [[1, 2], [3]]
        else:
            with pytest.raises(StoreFailed, match="it did not answer within 30 s"):
                await app.run({"n": [[1, 2], [3]]})
    assert own.too_early == []
    hook.assert_paired()


async def test_a_claim_is_not_cancelled_and_says_once_that_another_execution_has_died():
    class Dies(MemoryStore):  # pyright: ignore[reportGeneralTypeIssues] # a test's own
        claims = 0

        async def claim(self, run_id: str, holder: str) -> bool:
            self.claims += 1
            await anyio.sleep(5)
            return True

    @action(writes=["out"])
    async def work() -> None:
        await anyio.sleep(20)

    own, has_died = Dies(), list[tuple[float, bool]]()
    async with no_leaks(), Runtime() as runtime:
        run = await runtime.start(Application(work))
        execution = run._run.config.execution  # pyright: ignore[reportPrivateUsage]

        async def claim(after: float) -> None:
            await anyio.sleep(after)
            with anyio.move_on_after(1):
                answer = await execution.claim(own, "a run")
                has_died.append((anyio.current_time(), answer))

        async with anyio.create_task_group() as tasks:
            for after in (0, 0.5, 9):
                tasks.start_soon(claim, after)
        await run.result()
    assert has_died == [(5, True), (5, False), (9, False)]
    assert own.claims == 1


class SlowToTell(MemoryStore):  # pyright: ignore[reportGeneralTypeIssues] # a test's own
    """A store that takes five seconds for each answer, from when it ``is_slow``."""

    is_slow = False

    async def _late(self, ask: Callable[..., Awaitable[T]], *args: Any) -> T:
        if self.is_slow:
            await anyio.sleep(5)
        return await ask(*args)

    def claim(self, run_id: str, holder: str) -> Any:
        return self._late(super().claim, run_id, holder)

    def load(self, run_id: str) -> Any:
        return self._late(super().load, run_id)

    def children(self, path: RunPath, step: str | None = None, visit: int | None = None) -> Any:
        return self._late(super().children, path, step, visit)


@pytest.mark.parametrize("of", ["an own store", "a resumed run", "questions", "fork"])
def test_a_native_timeout_while_a_store_is_asked(of: str):
    """It is whose task that is: the store has not failed, and the run goes on."""
    own: Any = SlowToTell()
    main: Any = SlowToTell()
    outcomes = list[str]()

    @action(reads=["item"], writes=["leaf"])
    async def work(item: int) -> int:
        return item

    @action(writes=["told"])
    async def patient(context: Context) -> int:
        store = own if of == "an own store" else INHERIT
        main.is_slow = of == "a resumed run"
        try:
            async with asyncio.timeout(1), context.fan_out(name="f", store=store) as group:
                group.start(work, {"item": 1})
        except TimeoutError:
            outcomes.append("timed out")
        own.is_slow = main.is_slow = False
        async with context.fan_out(name="g", store=store) as group:
            group.start(work, {"item": 2})
            return sum([outcome.value async for outcome in group if isinstance(outcome, Done)])

    async def go() -> None:
        app = Application(patient, store=main)
        if of == "an own store":
            own.is_slow = True
        else:
            await app.run({"other": 1}, id="a", halt_before=[patient])
            main.is_slow = of in ("questions", "fork")
        if of in ("questions", "fork"):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    await (app.questions("a") if of == "questions" else app.fork("a", id="b"))
            main.is_slow = False
            return
        result = await app.run({"other": 1}, id="a")
        assert result.state["told"] == 2
        assert outcomes == ["timed out"]

    run_virtual(go)
