"""Which executor calls an action: inherited at all depths, overridden, opened once, closed."""

from __future__ import annotations

import asyncio
import logging
import pickle
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Literal

import anyio
import pytest

from shoal import (
    Action,
    Application,
    Context,
    Done,
    Graph,
    Limits,
    MapStates,
    MemoryStore,
    ParallelAction,
    Result,
    Runtime,
    State,
    Task,
    action,
    fan_out,
    race,
)
from shoal.errors import BadResult, DefinitionError, NotSendable, StepTimeout
from shoal.events import Item, StepEnded, Waiting
from shoal.executors import Executor, Threads
from shoal.executors._effects import effect_of
from shoal.executors._named import executor_named
from shoal.executors._threads import SHARED_THREADS
from shoal.testing import RecordingHook, no_leaks

from .fake import Fake, FakePool

pytestmark = pytest.mark.anyio


@action(reads=["n"], writes=["out"])
def plain(n: int) -> int:
    return n + 1


@action(reads=["n"], writes=["out"])
async def later(n: int) -> int:
    return n + 1


@action(reads=["n"], writes=["out"], name="streaming")
async def streaming(n: int) -> AsyncIterator[int | Result[int]]:
    yield n
    yield Result(n + 1)


KINDS = {"plain": plain, "async": later, "stream": streaming}


def over(act: Any = plain, **more: Any) -> Any:
    given: dict[str, Any] = {"over": "ns", "item": "n", "into": "outs", "take": "out", **more}
    return fan_out(act, **given)


def as_done(outcome: object) -> Done:
    assert isinstance(outcome, Done)
    return outcome


# -- the nearest one holds -------------------------------------------------------------------------


@pytest.mark.parametrize("takes", ["plain", "all"])
@pytest.mark.parametrize("kind", KINDS)
async def test_an_inherited_executor_takes_what_it_says(kind: str, takes: Literal["plain", "all"]):
    fake = Fake(takes=takes)
    result = await Application(KINDS[kind], executor=fake).run({"n": 1})
    assert result.state["out"] == 2
    there = [KINDS[kind].name] if kind == "plain" or takes == "all" else []
    assert fake.called == there


@pytest.mark.parametrize("kind", KINDS)
async def test_an_executor_of_the_action_s_own_takes_it_whatever_it_is(kind: str):
    fake = Fake(takes="plain")
    act = action(reads=["n"], writes=["out"], executor=fake, name="own")(KINDS[kind].function)
    hook = RecordingHook()
    assert (await Application(act, hooks=[hook]).run({"n": 1})).state["out"] == 2
    assert fake.called == ["own"]
    assert len(hook.of(Item)) == (kind == "stream")


def nested(depth: int, act: Any, **more: Any) -> Any:
    """A fan-out in a fan-out, so many deep, of ``act`` in a graph in a race."""
    if depth == 0:
        other = action(reads=["n"], writes=["out"], name="first")(plain.function)
        graph = Graph.chain(act, name="inside")
        chain = Graph.chain(other, graph, name="chain")
        return race(chain, into="out", name="race", **more)
    return fan_out(nested(depth - 1, act, **more), over="ns", item="n", into="out", take="out")


@pytest.mark.parametrize("where", ["runtime", "application", "fan-out", "race", "action"])
async def test_the_nearest_one_holds_at_all_depths(where: str):
    """Those further out are there as well, and get nothing of it."""
    levels = ["runtime", "application", "fan-out", "race", "action"]
    fakes = {level: Fake(level) for level in levels}
    given = {level: fakes[level] for level in levels[: levels.index(where) + 1]}
    act = action(reads=["n"], writes=["out"], name="it", executor=given.get("action"))(
        plain.function
    )
    tree = fan_out(
        nested(2, act, executor=given.get("race")),
        over="ns",
        item="n",
        into="out",
        take="out",
        name="outermost",
        executor=given.get("fan-out"),
    )
    app = Application(tree, executor=given.get("application"))
    async with no_leaks(), Runtime(executor=given.get("runtime")) as runtime:
        await runtime.run(app, {"ns": [1, 2]})
    called = {level: {*fake.called} for level, fake in fakes.items() if fake.called}
    expected = {where: {"it", "first"}}
    if where == "action":
        expected = {"action": {"it"}, "race": {"first"}}
    assert called == expected
    assert fakes[where].called.count("it") == 8


async def test_loop_keeps_a_part_of_the_tree_out_of_an_executor():
    fake = Fake()
    here = threading.get_ident()

    @action(reads=["n"], writes=["out"])
    def where(n: int) -> bool:
        return threading.get_ident() == here

    inner = fan_out(where, over="ns", item="n", into="outs", take="out", executor="loop")
    both = fan_out([inner.bind(name="inner"), later], into="all", take=dict)
    result = await Application(both, executor=fake).run({"ns": [1, 2], "n": 5})
    assert fake.called == ["later"]
    assert result.state["all"]["inner"]["outs"] == [True, True]


@pytest.mark.realtime
async def test_threads_within_another_executor():
    fake, here = Fake(), threading.get_ident()

    @action(reads=["n"], writes=["out"], executor="threads")
    def where(n: int) -> bool:
        return threading.get_ident() == here

    assert (await Application(where, executor=fake).run({"n": 1})).state["out"] is False
    assert not fake.pools, "and so nothing was opened"


OF_THE_CLASS = Fake("of the class")


class Mapped(MapStates):
    reads = ("ns",)
    writes = ("sum",)
    executor = OF_THE_CLASS

    def action(self, state: State, inputs: Mapping[str, Any]) -> Any:
        return plain

    def states(self, state: State, inputs: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        for n in state["ns"]:
            yield {"n": n}

    def reduce(self, state: State, outcome: Any) -> State:
        return state.increment(sum=outcome.value)


async def test_a_parallel_action_says_it_by_an_attribute_of_its_class():
    result = await Application(Mapped(), executor=Fake("outside")).run({"ns": [1, 2]})
    assert result.state["sum"] == 5
    assert OF_THE_CLASS.pool.called == ["plain", "plain"]


async def test_an_action_s_own_fan_out_inherits_and_may_say_otherwise():
    outer, inner = Fake("outer"), Fake("inner")

    @action(writes=["out"])
    async def work(context: Context) -> int:
        found: int = 0
        for name, executor in (("as it is", None), ("elsewhere", inner)):
            async with context.fan_out(name=name, executor=executor) as group:
                group.start(plain, {"n": 1})
                async for outcome in group:
                    found += as_done(outcome).value
        return found

    assert (await Application(work, executor=outer).run()).state["out"] == 4
    assert outer.called == ["work", "plain"]
    assert inner.called == ["plain"]


async def test_a_task_may_bring_an_act_with_an_executor():
    fake = Fake()
    act = action(reads=["n"], writes=["out"], executor=fake, name="it")(plain.function)

    class Tasks(ParallelAction):
        writes = ("out",)

        def tasks(self, state: State, inputs: Mapping[str, Any]) -> Iterator[Task]:
            yield Task(act, {"n": 1})

        def reduce(self, state: State, outcome: Any) -> State:
            return state.update(out=outcome.value)

    assert (await Application(Tasks()).run()).state["out"] == 2
    assert fake.called == ["it"]


async def test_an_action_class_and_its_instances():
    fake = Fake()

    class Add(Action):
        reads = ("n",)
        writes = ("out",)
        executor = fake

        def __init__(self, by: int) -> None:
            self.by = by

        def run(self, n: int) -> int:
            return n + self.by

    both = fan_out([Add(1), Add(2).bind(name="two")], into="all", take="out")
    assert (await Application(both).run({"n": 1})).state["all"] == {"Add": 2, "two": 3}
    assert sorted(fake.called) == ["Add", "two"]


# -- what it is ------------------------------------------------------------------------------------


async def test_a_change_of_the_state_is_worked_out_where_the_function_ran():
    @action(reads=["log"], writes=["log", "count"])
    def add(state: State) -> State:
        return state.append(log="x").increment(count=2)

    result = await Application(Graph.chain(add), executor=Fake()).run({"log": ["a"]})
    assert result.state["log"] == ["a", "x"]
    assert result.state["count"] == 2


@pytest.mark.parametrize("executor", [None, "loop", "threads", Fake()], ids=str)
async def test_wrong_results_are_refused_everywhere_in_the_same_words(executor: Any):
    @action(writes=["out"])
    def gives_a_coroutine() -> Any:
        return later.function(1)

    @action(writes=["out"])
    def gives_a_result() -> Any:
        return Result(1)

    @action(writes=["out"])
    def gives_another_state(state: State) -> State:
        return State(out=1)

    for act, words in (
        (gives_a_coroutine, "is a plain function and returned something to be awaited"),
        (gives_a_result, "returned a Result, which only a streaming action yields"),
        (gives_another_state, "returned a State that was not made from the one it was given"),
    ):
        with pytest.raises(BadResult, match=words):
            await Application(act, executor=executor).run()


async def test_an_idempotency_key_can_be_computed_where_the_function_runs():
    found: list[str] = []

    @action(reads=["a", "token", "b"], writes=["out"], executor=Fake())
    async def pay(a: int, token: str, state: State, context: Context) -> State:
        values = {"a": a, "b": state["b"]}
        effect = pickle.loads(pickle.dumps(effect_of(context)))
        found.append(effect.key(values.__getitem__))
        found.append(context.idempotency_key)
        return state.update(out=1)

    start = State({"a": 1, "b": [2], "token": "secret text"}, secret={"token"})
    await Application(pay).run(start, id="x")
    assert found[0] == found[1]


def test_it_is_drawn_where_it_is_said():
    fake = Fake("fakes")
    act = action(reads=["n"], writes=["out"], executor=fake, name="it")(plain.function)
    assert act.sketch().labels == ("in fakes",)
    looped = action(reads=["n"], writes=["out"], executor="loop", name="it")(plain.function)
    assert looped.sketch().labels == ("on the loop",)
    assert "in fakes" in [*over(executor=fake).sketch().labels]
    assert "in threads" in [*over(executor="threads").sketch().labels]
    assert not plain.sketch().labels


def returns_nothing(self: object) -> None: ...


WRONG: list[Callable[[Any], object]] = [
    lambda given: action(name="x", executor=given)(lambda: None),
    lambda given: over(executor=given),
    lambda given: race(plain, later, into="out", executor=given),
    lambda given: Application(plain, executor=given),
    lambda given: Runtime(executor=given),
    lambda given: type("Mapped", (Mapped,), {"executor": given}),
    lambda given: type("It", (Action,), {"executor": given, "run": returns_nothing}),
]


@pytest.mark.parametrize("make", WRONG)
@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            "thread",
            "executor= is 'loop', 'threads', 'processes', 'interpreters', or an.* not 'thread'",
        ),
        (4, "not 4"),
        (Threads, r"not <class .*Threads'> \(make one of it"),
    ],
)
def test_what_is_no_executor_is_refused_where_it_is_written(make: Any, given: Any, words: str):
    with pytest.raises(DefinitionError, match=words):
        make(given)


async def test_an_action_s_own_fan_out_refuses_it_too():
    @action()
    async def work(context: Context) -> None:
        context.fan_out(name="x", executor="cloud")  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]

    with pytest.raises(DefinitionError, match="not 'cloud'"):
        await Application(work).run()


@pytest.mark.parametrize("count", [0, 1.5, True, "2"])
def test_threads_take_a_count(count: Any):
    with pytest.raises(DefinitionError, match="whole number, at least 1"):
        Threads(count)


@pytest.mark.parametrize("kind", ["async", "stream"])
def test_threads_of_its_own_for_what_is_no_plain_function(kind: str):
    words = "generator" if kind == "stream" else "coroutine"
    with pytest.raises(DefinitionError, match=f"it is an? .*{words}.* threads run plain"):
        action(name="x", reads=["n"], executor="threads")(KINDS[kind].function)


def test_a_name_stands_for_one_executor():
    assert executor_named("threads", "x") is SHARED_THREADS
    assert executor_named("loop", "x") == "loop"
    assert executor_named(None, "x") is None
    assert repr(Threads()) == "Threads()"
    assert repr(Threads(3)) == "Threads(3)"


# -- a plain function that inherits the loop -------------------------------------------------------


@pytest.mark.parametrize("options", [{"timeout": 3}, {"abandon": True}])
async def test_what_can_not_be_on_the_loop_does_not_inherit_it(options: Any):
    ran: list[int] = []

    @action(reads=["n"], writes=["out"], **options)
    def work(n: int) -> int:
        ran.append(n)
        return n

    words = "can't be interrupted" if "timeout" in options else "can be abandoned"
    with pytest.raises(DefinitionError, match=f"action 'work': .*{words}"):
        await Application(over(work), executor="loop").run({"ns": [1]})

    def chosen(state: State) -> Any:
        return work

    with pytest.raises(ExceptionGroup) as caught:
        await Application(over(chosen, reads=["ns"]), executor="loop").run({"ns": [1]})
    assert caught.group_contains(DefinitionError, match=f"action 'work': .*{words}")
    assert not ran
    work_there = Fake()
    result = await Application(over(work), executor=work_there).run({"ns": [1]})
    assert result.state["outs"] == [1]


# -- pools -----------------------------------------------------------------------------------------


async def test_a_pool_is_opened_once_at_first_use_and_closed_at_the_end():
    fake, other = Fake(), Fake("other")
    act = action(reads=["n"], writes=["out"], executor=fake, name="it")(plain.function)
    async with no_leaks():
        async with Runtime(executor=fake) as runtime:
            await runtime.run(Application(later, executor=other), {"n": 1})
            assert not fake.pools
            for app in (Application(act), Application(plain), Application(over(executor=fake))):
                await runtime.run(app, {"n": 1, "ns": [1, 2]})
            assert len(fake.pools) == 1
            assert fake.pool.closed == 0
        assert (fake.pool.closed, other.pool.closed) == (1, 1)
        async with runtime:
            await runtime.run(Application(act), {"n": 1})
            assert len(fake.pools) == 2
        assert fake.pool.closed == 1


def natively(method: str) -> None:
    task = asyncio.current_task()
    assert task is not None
    getattr(task, method)()


@pytest.mark.parametrize("how", ["raised", "cancelled", "cancelled natively", "exit"])
async def test_a_pool_is_closed_however_the_block_is_left(how: str, anyio_backend_name: str):
    fake = Fake()
    closing = list[str]()

    class Slow(FakePool):
        async def aclose(self) -> None:
            closing.append("begun")
            await anyio.sleep(1)
            closing.append("ended")
            await super().aclose()

    fake.made_of = Slow
    if how == "cancelled natively" and anyio_backend_name != "asyncio":
        pytest.skip("trio has no native cancellation")

    @action(executor=fake)
    async def stays() -> None:
        await anyio.sleep_forever()

    @action(executor=fake)
    async def leaves() -> None:
        raise SystemExit

    async def main(scope: anyio.CancelScope) -> None:
        with scope:
            async with Runtime() as runtime:
                if how == "exit":
                    await runtime.run(Application(leaves))
                await runtime.start(Application(stays))
                await anyio.sleep(0.1)
                if how == "cancelled":
                    scope.cancel()
                elif how == "cancelled natively":
                    natively("cancel")
                else:
                    raise LookupError
                await anyio.sleep(1)

    async with no_leaks():
        try:
            await main(anyio.CancelScope())
        except (LookupError, SystemExit):
            assert how in ("raised", "exit")
        except BaseException:
            if how != "cancelled natively":
                raise
            natively("uncancel")
    assert closing == ["begun", "ended"]
    assert fake.pool.closed == 1


async def test_a_pool_that_fails_to_close_is_logged_and_others_close(
    caplog: pytest.LogCaptureFixture,
):
    bad, good = Fake("bad"), Fake("good")

    class Broken(FakePool):
        async def aclose(self) -> None:
            raise OSError("no such process")

    bad.made_of = Broken
    async with Runtime() as runtime:
        for fake in (bad, good):
            await runtime.run(Application(plain, executor=fake), {"n": 1})
    assert good.pool.closed == 1
    assert [record.exc_info[1] for record in caplog.records if record.exc_info]  # type: ignore[index]
    assert "Fake()" in caplog.text
    assert "no such process" in caplog.text


async def test_a_task_of_a_pool_that_fails_does_not_end_the_runtime(
    caplog: pytest.LogCaptureFixture,
):
    """Nor does a cancellation of the runtime reach it: the pool ends it."""
    fake, seen = Fake(), list[str]()
    stop = anyio.Event()

    async def fails() -> None:
        raise OSError("lost")

    async def stays() -> None:
        seen.append("begun")
        await stop.wait()
        seen.append("ended")

    class WithTasks(FakePool):
        def __init__(self, executor: Fake, host: Any) -> None:
            super().__init__(executor, host)
            host.start_task(fails)
            host.start_task(stays)

        async def aclose(self) -> None:
            seen.append("closing")
            stop.set()

    fake.made_of = WithTasks
    async with no_leaks():
        with anyio.CancelScope() as scope:
            async with Runtime(executor=fake) as runtime:
                await runtime.run(Application(plain), {"n": 1})
                await runtime.run(Application(later), {"n": 1})
                scope.cancel()
                await anyio.sleep(1)
    assert seen == ["begun", "closing", "ended"]
    assert "lost" in caplog.text
    assert caplog.records[0].levelno == logging.ERROR


def test_runtimes_of_several_threads_have_pools_of_their_own():
    fake = Fake()
    results: list[int] = []

    def run() -> None:
        app = Application(over(executor=fake))
        results.append(sum(app.run_sync({"ns": [1, 2, 3]}).state["outs"]))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert results == [9] * 4
    assert len({id(pool) for pool in fake.pools}) == 4
    assert [pool.closed for pool in fake.pools] == [1] * 4
    assert [len(pool.called) for pool in fake.pools] == [3] * 4


# -- what can't be sent ----------------------------------------------------------------------------

TREES: dict[str, Callable[[Any], Any]] = {
    "alone": lambda act: act,
    "in a graph": lambda act: Graph.chain(later, Graph.chain(act, name="inner")),
    "in a fan-out": over,
    "in a race": lambda act: race(act, later, into="all", take="out"),
    "deep": lambda act: Graph.chain(
        later, fan_out(over(Graph.chain(act)), over="nss", item="ns", into="all", take="outs")
    ),
}


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("what", ["function", "input", "bound input"])
async def test_what_can_not_be_sent_is_refused_before_anything_starts(tree: str, what: str):
    fake = Fake(takes="plain", refusing=("work",) if what == "function" else ("guard",))
    hook, store = RecordingHook(), MemoryStore()

    @action(reads=["n"], writes=["out"])
    def work(n: int, guard: object) -> int:
        return n

    act: Any = work.bind(guard=threading.Lock()) if what == "bound input" else work
    inputs = {} if what == "bound input" else {"guard": threading.Lock()}
    app = Application(TREES[tree](act), executor=fake, hooks=[hook], store=store)
    state = {"n": 1, "ns": [1], "nss": [[1]]}
    words = r"application .*: action 'work' can't be called in Fake\(\): .* make it in the worker"
    async with Runtime() as runtime:
        with pytest.raises(NotSendable, match=words):
            await app.run(state, id="x", inputs=inputs, runtime=runtime)
        with pytest.raises(NotSendable, match=words):
            await app.start(state, id="x", inputs=inputs, runtime=runtime)
        with pytest.raises(NotSendable, match=words):
            async with app.open(state, id="x", inputs=inputs, runtime=runtime):
                pass
    assert not hook.events
    assert not await store.runs()
    assert not fake.pools


async def test_a_runtime_s_executor_is_asked_too_and_a_nearer_one_instead():
    fake = Fake(refusing=("plain",))
    async with Runtime(executor=fake) as runtime:
        with pytest.raises(NotSendable):
            await runtime.run(Application(plain), {"n": 1})
        near = Application(over(executor=Fake("near")))
        assert (await runtime.run(near, {"ns": [1]})).state["outs"] == [2]


async def test_one_application_is_held_to_the_executor_of_each_runtime_in_turn():
    app, refusing = Application(plain), Fake(refusing=("plain",))
    async with Runtime() as runtime, Runtime(executor=refusing) as other:
        for _ in range(2):
            assert (await runtime.run(app, {"n": 1})).state["out"] == 2
            with pytest.raises(NotSendable):
                await other.run(app, {"n": 1})


async def test_it_is_asked_about_the_inputs_that_the_function_takes():
    fake = Fake()

    @action(reads=["n"], writes=["out"])
    def one(n: int, a: int, b: int = 2) -> int:
        return n + a + b

    @action(reads=["n"], writes=["out"])
    async def two(n: int, c: int) -> int:
        return n + c

    app = Application(Graph.chain(one.bind(a=1), two), executor=fake, inputs={"c": 3})
    await app.run({"n": 1}, inputs={"b": 5})
    assert fake.asked == [("one", {"a": 1, "b": 5}), ("two", {"c": 3})]


async def test_a_value_of_the_state_fails_its_step_at_the_call():
    fake = Fake()
    app = Application(over(on_error="collect", errors_into="bad", executor=fake))
    result = await app.run({"ns": [1, "a lock"]})
    assert result.state["outs"] == [2]
    (found,) = result.state["bad"].values()
    assert found.type == "shoal.NotSendable"
    assert "field 'n' can't be sent" in found.message


# -- the gate --------------------------------------------------------------------------------------


async def test_an_attempt_waits_for_a_worker_as_for_any_limit():
    fake, hook = Fake("cluster", slots=2), RecordingHook()

    @action(reads=["n"], writes=["out"])
    async def slow(n: int) -> int:
        await anyio.sleep(1)
        return n

    async with no_leaks(), Runtime() as runtime:
        app = Application(over(slow, executor=fake), hooks=[hook])
        start = anyio.current_time()
        await runtime.run(app, {"ns": list(range(6))})
        assert anyio.current_time() - start == pytest.approx(3)
        assert fake.pool.most == 2
        assert fake.pool.gate.used == 0
    assert {(event.limit, event.key) for event in hook.of(Waiting)} == {("cluster", None)}


async def test_a_gate_follows_its_pool():
    """With more slots, those that wait begin at once; with fewer, those at work go on."""
    fake = Fake(slots=1)
    at_work = 0
    seen: list[int] = []

    @action(reads=["n"], writes=["out"])
    async def slow(n: int) -> int:
        nonlocal at_work
        at_work += 1
        await anyio.sleep(1)
        seen.append(at_work)
        at_work -= 1
        return n

    async def change() -> None:
        for slots in (4, 2):
            await anyio.sleep(1.5)
            fake.pool.resize(slots)

    async with Runtime() as runtime, anyio.create_task_group() as tasks:
        tasks.start_soon(change)
        await runtime.run(Application(over(slow, executor=fake)), {"ns": list(range(12))})
    # 1 at 0 s and at 1 s, 3 more at 1.5 s; then as many as end, until there are 2 from 3 s on.
    assert fake.pool.most == 4
    assert seen[0] == 1
    assert max(seen[-4:]) <= 2


@pytest.mark.parametrize("limited", [False, True])
async def test_a_coroutine_function_gives_its_slot_to_its_own_children(limited: bool):
    """So that any depth goes on, whatever the number of slots."""
    fake = Fake(slots=1, workers=1)

    @action(reads=["depth"], writes=["out"], limits=Limits(1) if limited else None)
    async def down(depth: int, context: Context) -> int:
        if depth == 0:
            return 1
        async with context.fan_out(name="below") as group:
            for key in "ab":
                group.start(down, {"depth": depth - 1}, key=key)
            return sum([as_done(outcome).value async for outcome in group])

    async with no_leaks(), Runtime() as runtime:
        result = await runtime.run(Application(down, executor=fake), {"depth": 4})
        assert fake.pool.gate.used == 0
        assert fake.pool.gate.users == 0
    assert result.state["out"] == 16
    assert fake.pool.most > 1


async def test_a_wait_for_a_worker_that_is_cancelled_takes_nothing():
    fake, began = Fake(slots=1), list[int]()

    @action(reads=["n"], writes=["out"], executor=fake)
    async def work(n: int) -> int:
        began.append(n)
        await anyio.sleep(n)
        return n

    both = race(
        work.bind(name="a"),
        Graph.chain(action(writes=["n"], name="m")(lambda: 1), work, name="b"),
        into="won",
        take="out",
        stagger=0.1,
    )
    async with no_leaks(), Runtime() as runtime:
        assert (await runtime.run(Application(both), {"n": 2})).state["won"] == 2
        assert fake.pool.gate.used == 0
        assert fake.pool.gate.users == 0
    assert began == [2]


async def test_events_and_steps_are_the_same_wherever_it_runs():
    found: list[Any] = []
    places: list[Any] = ["loop", Fake()]
    for executor in places:
        hook = RecordingHook()
        tree = Graph.chain(plain, streaming, over(later, name="many"))
        app = Application(tree, executor=executor, hooks=[hook])
        result = await app.run({"n": 1, "ns": [1, 2]}, id="x")
        found.append(
            (
                dict(result.state),
                [type(event).__name__ for event in hook.events],
                [event.step for event in hook.of(StepEnded)],
            )
        )
    assert found[0] == found[1]


def test_an_executor_is_declared_once_and_compared_by_identity():
    class Mine(Executor):
        def refuse(self, job: Any, inputs: Any) -> str:
            return ""

        def open(self, host: Any) -> Any:
            raise AssertionError

    assert Mine() != Mine()
    assert repr(Mine()) == "Mine()"
    assert Mine().takes == "plain"


# -- timeouts --------------------------------------------------------------------------------------


async def test_the_timeout_of_an_attempt_begins_when_a_worker_is_at_it():
    @action(reads=["n"], writes=["out"], timeout=2)
    async def takes(n: int, context: Context) -> float:
        await anyio.sleep(n)
        return context.deadline - anyio.current_time()

    where = Fake()
    where.before = lambda _: anyio.sleep(100)  # for a worker to start
    async with no_leaks(), Runtime(executor=where) as runtime:
        result = await runtime.run(Application(takes), {"n": 1})
        assert result.status == "succeeded"
        began = anyio.current_time()
        with pytest.raises(StepTimeout, match="its timeout of 2 s"):
            await runtime.run(Application(takes), {"n": 3})
        assert anyio.current_time() - began == 102
