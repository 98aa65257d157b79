"""Breakers: what keeps failing is skipped for a while."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal import (
    AIMD,
    Application,
    Breaker,
    Cancelled,
    Context,
    Done,
    Each,
    Failed,
    Limits,
    MemoryStore,
    Outcome,
    Runtime,
    Skipped,
    State,
    action,
    fan_out,
    race,
)
from shoal._limits.breaker import Circuits
from shoal.errors import BadResult, BadUse, DefinitionError
from shoal.events import ChildEnded
from shoal.testing import RecordingHook, cancel_everywhere, no_leaks
from shoal.types import Ended

pytestmark = pytest.mark.anyio


class Down(Exception):
    """The other side does not work."""


broken = set[str]()
called = list[str]()


@pytest.fixture(autouse=True)
def all_work() -> None:
    broken.clear()
    called.clear()


@action(reads=["host", "n"], writes=["page"])
async def fetch(host: str, n: int) -> str:
    called.append(f"{host}{n}")
    await anyio.sleep(1)
    if host in broken:
        raise Down(host)
    return f"{host}{n}"


def host_of(state: State) -> str:
    return state["task"][0]


@action(reads=["task"], writes=["page"])
async def get(task: str) -> str:
    called.append(task)
    await anyio.sleep(1)
    if task[0] in broken:
        raise Down(task)
    return task


def pages(breaker: Breaker, **options: Any) -> Any:
    given: dict[str, Any] = {"on_error": "collect", "limits": Limits(1), **options}
    return fan_out(
        get, over="tasks", item="task", key=str, into="pages", each=Each(breaker=breaker), **given
    )


def tasks(text: str) -> dict[str, Any]:
    return {"tasks": text.split()}


def skipped(outcomes: Sequence[Outcome]) -> list[object]:
    return [one.key for one in outcomes if isinstance(one, Skipped)]


# -- in a fan-out ----------------------------------------------------------------------------------


async def test_a_key_that_keeps_failing_is_skipped_and_others_are_not():
    broken.add("a")
    act = pages(Breaker(by=host_of, failures=2))
    result = await Application(act).run(tasks("a1 b1 a2 a3 b2 a4"))
    assert called == ["a1", "b1", "a2", "b2"]
    assert result.state["pages"] == {"b1": "b1", "b2": "b2"}
    ledger = result.outcomes("pages")
    assert (ledger.done, ledger.failed, ledger.skipped) == (2, 2, 2)
    assert skipped([*ledger]) == ["a3", "a4"]
    reasons = {one.reason for one in ledger if isinstance(one, Skipped)}
    assert reasons == {"breaker open: a"}


async def test_after_the_cool_down_one_probe_decides():
    broken.add("a")
    act = pages(Breaker(failures=1, cool_down=10))
    app = Application(act)
    async with Runtime() as runtime:
        await runtime.run(app, tasks("a1 a2"))
        assert called == ["a1"]
        await anyio.sleep(9)
        await runtime.run(app, tasks("a3"))
        assert called == ["a1"], "it is still open"
        await anyio.sleep(1)
        await runtime.run(app, tasks("a4 a5"))
        assert called == ["a1", "a4"], "the probe has failed"
        await anyio.sleep(10)
        broken.clear()
        await runtime.run(app, tasks("a6 a7"))
        assert called == ["a1", "a4", "a6", "a7"]
        statistics = runtime.circuits(act).statistics()
        assert (statistics.failing, statistics.open, statistics.skipped) == (0, (), 3)


async def test_while_a_probe_is_under_way_others_are_skipped():
    broken.add("a")
    act = pages(Breaker(failures=1, cool_down=5), limits=Limits(3))
    app = Application(act)
    async with Runtime() as runtime:
        await runtime.run(app, tasks("a1"))
        await anyio.sleep(5)
        called.clear()
        result = await runtime.run(app, tasks("a2 a3 a4"))
        assert called == ["a2"]
        assert result.outcomes("pages").skipped == 2
        assert runtime.circuits(act).statistics().open == ("get",)
        assert "1 open" in repr(runtime.circuits(act))


async def test_contestants_of_a_race_have_circuits_of_their_own():
    @action(writes=["page"])
    async def ask(host: str) -> str:
        called.append(host)
        await anyio.sleep(1)
        if host in broken:
            raise Down(host)
        await anyio.sleep(1)
        return host

    broken.add("a")
    hosts = [ask.bind(name=host, host=host) for host in "ab"]
    act = race(*hosts, into="page", each=Each(breaker=Breaker(failures=2, cool_down=10)))
    app = Application(act)
    async with Runtime() as runtime:
        for _ in range(2):
            assert (await runtime.run(app)).state["page"] == "b"
        result = await runtime.run(app)
        assert result.state["page"] == "b"
        assert called == ["a", "b", "a", "b", "b"]
        [skipped] = result.outcomes("page")
        assert (skipped.act, getattr(skipped, "reason", "")) == ("a", "breaker open: a")
        assert runtime.circuits(act).statistics().open == ("a",)


async def test_what_is_no_failure_of_the_other_side_closes_the_circuit():
    @action(reads=["task"], writes=["page"])
    async def fail(task: str) -> str:
        called.append(task)
        raise Down if task[0] == "a" else ValueError(task)

    breaker = Breaker(failures=2, on=Down)
    act = fan_out(
        fail,
        over="tasks",
        item="task",
        key=str,
        into="pages",
        each=Each(breaker=breaker),
        on_error="ignore",
        limits=Limits(1),
    )
    await Application(act).run(tasks("a1 b1 a2 b2 a3 a4 a5"))
    assert called == ["a1", "b1", "a2", "b2", "a3", "a4"]


async def test_two_runtimes_learn_apart():
    broken.add("a")
    app = Application(pages(Breaker(failures=1)))
    await app.run(tasks("a1 a2"))
    await app.run(tasks("a3 a4"))
    assert called == ["a1", "a3"]


async def test_what_was_skipped_runs_when_the_run_is_resumed():
    broken.add("a")
    act = pages(Breaker(by=host_of, failures=1), on_error="collect")
    store = MemoryStore()

    @action(reads=["pages"], writes=["count"])
    async def count(pages: Any) -> int:
        if broken:
            raise Down("not yet")
        return len(pages)

    from shoal import Graph

    app = Application(Graph.chain(act, count), store=store)
    with pytest.raises(Down):
        await app.run(tasks("a1 b1 a2"), id="x")
    assert called == ["a1", "b1"]
    broken.clear()
    result = await app.retry_failed("x")
    assert called == ["a1", "b1", "a1", "a2"]
    assert result.state["pages"] == {"a1": "a1", "b1": "b1", "a2": "a2"}
    assert result.state["count"] == 3


async def test_a_skipped_contestant_leaves_the_race():
    broken.add("a")

    @action(reads=["n"], writes=["page"])
    async def mirror(n: int, host: str) -> str:
        called.append(host)
        await anyio.sleep(1 if host == "a" else 5)
        if host in broken:
            raise Down(host)
        return host

    mirrors = [mirror.bind(name=host, host=host) for host in "ab"]
    act = fan_out(
        mirrors,
        into="page",
        until=race(*mirrors, into="page").join.until,
        each=Each(breaker=Breaker(failures=1, by=lambda state: "all")),
        limits=Limits(1),
    )
    from shoal import NobodyAccepted

    async with Runtime() as runtime:
        with pytest.raises(NobodyAccepted):
            await runtime.run(Application(act), {"n": 1})
    assert called == ["a"]


async def test_an_action_s_own_children_have_breakers_too():
    broken.add("a")

    @action(writes=["ends"])
    async def all_of_them(context: Context) -> list[str]:
        each = Each(breaker=Breaker(failures=1))
        async with context.fan_out(name="f", each=each, limits=Limits(1)) as group:
            group.start_each(get, over=["a1", "a2"], item="task", key=str)
            return [type(outcome).__name__ async for outcome in group]

    async with Runtime() as runtime:
        result = await runtime.run(Application(all_of_them))
        assert result.state["ends"] == ["Failed", "Skipped"]
        assert runtime.circuits(all_of_them, "f").statistics().skipped == 1


async def test_events_are_paired_and_cancelled_children_say_nothing():
    broken.add("a")
    hook = RecordingHook()
    act = pages(Breaker(by=host_of, failures=1), limits=Limits(2))
    app = Application(act, hooks=[hook])
    async with no_leaks(), Runtime() as runtime:
        with anyio.move_on_after(0.5):
            await runtime.run(app, tasks("a1 a2"))
        hook.assert_paired()
        called.clear()
        await runtime.run(app, tasks("a1 b1"))
        assert sorted(called) == ["a1", "b1"]
    hook.assert_paired()
    ends = [event.outcome for event in hook.of(ChildEnded)]
    assert sum(isinstance(end, Failed) for end in ends) == 1
    assert sum(isinstance(end, Done) for end in ends) == 1


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_cancelled_everywhere_no_probe_is_lost(backend: Any):
    async def scenario(attempt: Any) -> None:
        broken.clear()
        broken.add("a")
        act = pages(Breaker(failures=1, cool_down=1), limits=Limits(2))
        app = Application(act)
        async with Runtime() as runtime:
            await runtime.run(app, tasks("a1"))
            await anyio.sleep(1)
            broken.clear()
            await attempt(runtime.run, app, tasks("a2 a3"))
            await anyio.sleep(1)
            result = await runtime.run(app, tasks("a4"))
            assert result.state["pages"] == {"a4": "a4"}, "the circuit is stuck"

    cancel_everywhere(scenario, backend=backend)


# -- a function that can't judge -------------------------------------------------------------------


class Buggy(Exception):
    """The function's own."""


def cannot_tell(error: BaseException) -> bool:
    raise Buggy


@pytest.mark.parametrize("whose", ["breaker", "limits", "both"])
async def test_what_the_user_s_function_raises_fails_that_child_and_no_other(whose: str):
    broken.add("a")
    hook = RecordingHook()
    breaker = Breaker(on=Exception if whose == "limits" else cannot_tell)
    policy = AIMD(overload=None if whose == "breaker" else cannot_tell)
    app = Application(pages(breaker, limits=Limits(3, adapt=policy), name="f"), hooks=[hook])
    async with no_leaks(), Runtime() as runtime:
        result = await runtime.run(app, tasks("a1 b1 b2"))
    hook.assert_paired()
    assert result.state["pages"] == {"b1": "b1", "b2": "b2"}
    (failed,) = result.outcomes("f")
    assert isinstance(failed, Failed)
    error = failed.error
    assert type(error) is Buggy
    if whose == "both":
        assert type(error.__context__) is Buggy
        error = error.__context__
    assert type(error.__context__) is Down
    assert (
        f"shoal: in action 'get' of 'f', key 'a1', run {failed.path.id}" in failed.error.__notes__
    )
    assert [event.outcome for event in hook.of(ChildEnded) if event.outcome.key == "a1"] == [failed]


async def test_where_failures_are_raised_so_is_that():
    broken.add("a")
    hook = RecordingHook()
    act = pages(Breaker(on=cannot_tell), on_error="fail", limits=Limits(2))
    with pytest.raises(ExceptionGroup) as caught:
        await Application(act, hooks=[hook]).run(tasks("a1 b1 b2"))
    assert [type(error) for error in caught.value.exceptions] == [Buggy]
    hook.assert_paired()


async def test_a_child_that_did_well_fails_by_the_policy_of_its_fan_out():
    class Policy:
        def after(self, n: float, changed_at: float, ended: Ended) -> float:
            raise Buggy

    hook = RecordingHook()
    act = fan_out(
        get,
        over="tasks",
        item="task",
        into="pages",
        name="f",
        on_error="collect",
        limits=Limits(1, adapt=Policy()),
    )
    app = Application(act, hooks=[hook], store=MemoryStore())
    async with no_leaks(), Runtime() as runtime:
        result = await runtime.run(app, tasks("a1 b1"))
    hook.assert_paired()
    assert result.state["pages"] == []
    assert [type(outcome) for outcome in result.outcomes("f")] == [Failed, Failed]
    assert [event.outcome for event in hook.of(ChildEnded)] == list(result.outcomes("f"))


async def test_a_contestant_that_cannot_be_judged_loses():
    @action(reads=["n"], writes=["page"])
    async def ask(n: int, host: str) -> str:
        return await fetch.function(host, n)

    contestants = [ask.bind(name=host, host=host) for host in "ab"]
    act = race(*contestants, into="page", each=Each(breaker=Breaker(on=cannot_tell)))
    broken.add("a")
    hook = RecordingHook()
    result = await Application(act, hooks=[hook]).run({"n": 1})
    assert result.state["page"] == "b1"
    hook.assert_paired()


async def test_an_action_s_own_children_fail_by_that_too():
    broken.add("a")

    @action(writes=["ends"])
    async def all_of_them(context: Context) -> list[str]:
        each = Each(breaker=Breaker(on=cannot_tell))
        async with context.fan_out(name="f", each=each) as group:
            group.start_each(get, over=["a1", "b1"], item="task", key=str)
            ends = [outcome async for outcome in group]
        assert isinstance(ends[0], Failed | Done)
        return [type(end.error).__name__ for end in ends if isinstance(end, Failed)]

    hook = RecordingHook()
    result = await Application(all_of_them, hooks=[hook]).run()
    assert result.state["ends"] == ["Buggy"]
    hook.assert_paired()


async def test_a_probe_that_cannot_be_judged_leaves_its_place_to_another():
    bugs = [False, True, False]

    def on(error: BaseException) -> bool:
        if bugs.pop(0):
            raise Buggy
        return True

    broken.add("a")
    app = Application(pages(Breaker(failures=1, cool_down=5, by=host_of, on=on)))
    async with Runtime() as runtime:
        for task, seconds in (("a1", 5), ("a2", 0), ("a3", 5)):
            await runtime.run(app, tasks(task))
            await anyio.sleep(seconds)
        assert called == ["a1", "a2", "a3"], "the circuit is stuck"
        broken.clear()
        await runtime.run(app, tasks("a4"))
        assert called[-1] == "a4"


@pytest.mark.parametrize("whose", ["breaker", "limits"])
async def test_a_ctrl_c_in_there_ends_everything(whose: str):
    def interrupted(error: BaseException) -> bool:
        raise KeyboardInterrupt

    broken.add("a")
    hook = RecordingHook()
    breaker = Breaker(on=interrupted if whose == "breaker" else Exception)
    policy = AIMD(overload=interrupted if whose == "limits" else None)
    act = pages(breaker, limits=Limits(2, adapt=policy))
    with pytest.raises(KeyboardInterrupt):
        await Application(act, hooks=[hook]).run(tasks("a1 b1 b2"))
    hook.assert_paired()


async def test_a_cancelled_child_stays_so_whatever_is_raised(caplog: pytest.LogCaptureFixture):
    class Policy:
        def after(self, n: float, changed_at: float, ended: Ended) -> float:
            raise Buggy

    hook = RecordingHook()
    act = pages(Breaker(), limits=Limits(2, adapt=Policy()))
    async with no_leaks():
        with anyio.move_on_after(0.5) as scope:
            await Application(act, hooks=[hook]).run(tasks("a1 b1 b2"))
        assert scope.cancelled_caught
    hook.assert_paired()
    assert {type(event.outcome) for event in hook.of(ChildEnded)} == {Cancelled}
    assert "which cancelled" in caplog.text
    assert "Buggy" in caplog.text


async def test_an_answer_that_must_be_awaited_is_none():
    async def later() -> bool:
        return True

    def tell(_: object) -> Any:
        return later()

    broken.add("a")
    act = pages(Breaker(on=tell), name="f")
    result = await Application(act).run(tasks("a1 b1"))
    assert result.state["pages"] == {"b1": "b1"}
    (failed,) = result.outcomes("f")
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, BadResult)
    assert isinstance(failed.error.__context__, Down)
    with pytest.raises(BadResult, match=r"Breaker\(by=...\) is a plain function"):
        await Application(pages(Breaker(by=tell))).run(tasks("a1"))


# -- by itself -------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    events=st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from(["ok", "down", "cancel", "wait"])),
        max_size=40,
    ),
    failures=st.integers(1, 3),
)
def test_it_does_what_a_table_says(events: list[tuple[str, str]], failures: int):
    now = 0.0
    circuits = Circuits(Breaker(failures=failures, cool_down=5), lambda: now)
    failed, opened = {"a": 0, "b": 0}, dict[str, float]()
    for key, what in events:
        if what == "wait":
            now += 3
            continue
        admitted = circuits.admit(key)
        assert admitted == (key not in opened or now >= opened[key])
        if not admitted:
            continue
        if what == "ok":
            circuits.on_end(key, "done")
            failed[key] = 0
            opened.pop(key, None)
        elif what == "cancel":
            circuits.on_end(key, "cancelled")
        else:
            circuits.on_end(key, Down())
            failed[key] += 1
            if failed[key] >= failures:
                opened[key] = now + 5
    assert set(circuits.statistics().open) == set(opened)


def test_what_is_no_breaker_is_refused():
    numbers = ({"failures": 0}, {"failures": 1.5}, {"cool_down": 0}, {"cool_down": "long"})
    kinds = ({"on": 3}, {"on": ()}, {"on": (OSError, "x")}, {"on": int}, {"on": anyio.sleep})
    for wrong in (*numbers, *kinds):
        with pytest.raises(DefinitionError, match="Breaker"):
            Breaker(**cast("Any", wrong))

    async def by(state: State) -> str:
        return ""

    with pytest.raises(DefinitionError, match="coroutine function"):
        Breaker(by=by)
    with pytest.raises(DefinitionError, match="Breaker"):
        Each(breaker="open")  # pyright: ignore[reportArgumentType]


async def test_a_key_that_is_not_hashable_fails_the_step():
    def unhashable(state: State) -> Any:
        return []

    with pytest.raises(BadResult, match="not hashable"):
        await Application(pages(Breaker(by=unhashable))).run(tasks("a1"))


async def test_asking_for_circuits_that_there_are_not():
    async with Runtime() as runtime:
        with pytest.raises(BadUse, match="breaker="):
            runtime.circuits(get)
