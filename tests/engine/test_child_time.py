"""The time of a child: what its timeouts count, and what their errors say of waiting."""

from __future__ import annotations

import time
from typing import Any, Literal

import anyio
import pytest

from shoal import (
    Application,
    Context,
    Each,
    Graph,
    Limits,
    MemoryStore,
    Rate,
    Retry,
    RetryBudget,
    RetryLater,
    Runtime,
    StepTimeout,
    action,
    fan_out,
)
from shoal.errors import DefinitionError, Overloaded
from shoal.events import AttemptEnded
from shoal.testing import Attempt, RecordingHook, cancel_everywhere, no_leaks

pytestmark = pytest.mark.anyio
Backend = Literal["asyncio", "trio"]


def sleeper(limits: Limits | None = None, retry: Retry | None = None, name: str = "work") -> Any:
    @action(reads=["n"], writes=["out"], limits=limits, retry=retry, name=name)
    async def work(n: float) -> float:
        await anyio.sleep(n)
        return n

    return work


def many(act: Any, each: Each, **options: Any) -> Any:
    given: dict[str, Any] = {"over": "ns", "item": "n", "into": "outs", "take": "out"}
    return fan_out(act, each=each, on_error="collect", **{**given, **options})


def errors_of(result: Any, step: str = "outs") -> list[Any]:
    return [one.error for one in result.outcomes(step) if type(one).__name__ == "Failed"]


# -- what the error says ---------------------------------------------------------------------------


async def test_the_error_says_how_much_was_waiting_and_for_what():
    again = Retry(9, on=ConnectionError, initial=2, factor=1, jitter=0)

    @action(reads=["n"], writes=["x"], retry=again)
    async def flaky(n: float, context: Context) -> float:
        await anyio.sleep(1)
        if context.attempt < 2:
            raise ConnectionError
        return n

    slow = sleeper(Limits(1), name="slow")
    app = Application(many(Graph.chain(flaky, slow, name="child"), Each(timeout=10)))
    result = await app.run({"ns": [5, 5]})
    (error,) = errors_of(result)
    assert isinstance(error, StepTimeout)
    assert anyio.current_time() == 10
    # 1 s at work, 2 s until the next attempt, 1 s at work, 5 s behind the other, 1 s at work
    assert "took longer than its timeout of 10 s; 7 s of that it waited: 5 s for a slot of " in str(
        error
    )
    assert str(error).endswith("Limits(1), 2 s for its next attempt")
    assert error.waited == {"a slot of Limits(1)": 5, "its next attempt": 2}


async def test_a_child_that_never_waited_says_nothing_of_it():
    result = await Application(many(sleeper(), Each(timeout=1))).run({"ns": [2]})
    (error,) = errors_of(result)
    assert str(error).endswith("took longer than its timeout of 1 s")
    assert error.waited == {}


@pytest.mark.parametrize(
    ("limits", "what"),
    [
        (Limits(1), "a slot of Limits(1)"),
        (Limits(1, by=lambda state: "k"), "key 'k' of Limits(1, by=<lambda>)"),
        (
            Limits(rate=Rate(1000, burst=1000), by=lambda state: "k"),
            "key 'k' of Limits(rate=Rate(1000, per=1.0, burst=1000), by=<lambda>)",
        ),
    ],
)
async def test_each_kind_of_wait_has_its_name(limits: Limits, what: str):
    """A wait that nobody could know to be too long: for slots, or while others pause a key."""

    @action(reads=["n"], writes=["out"], limits=limits)
    async def hold(n: float, context: Context) -> None:
        if "rate" in what:
            if n == 0:
                await anyio.sleep(0.5)
                raise RetryLater(3)
            await anyio.sleep(0.6)
            raise ConnectionError
        await anyio.sleep(9)

    begin = sleeper(name="begin")
    each = Each(timeout=2, retry=Retry(2, on=ConnectionError, initial=0.3, jitter=0))
    app = Application(many(Graph.chain(begin, hold, name="child"), each))
    result = await app.run({"ns": [0, 0.1]})
    errors = [error for error in errors_of(result) if isinstance(error, StepTimeout | Overloaded)]
    assert len(errors) == 2
    if "rate" in what:
        assert {type(error) for error in errors} == {StepTimeout, Overloaded}
    else:
        assert what in {one for error in errors for one in getattr(error, "waited", ())}


# -- refused at once -------------------------------------------------------------------------------


@pytest.mark.parametrize(("retries", "timeout"), [("action", 3), ("child", 3), ("child", 4)])
async def test_an_attempt_whose_delay_does_not_end_before_the_timeout_is_not_waited_for(
    retries: str, timeout: float
):
    again = Retry(9, on=ConnectionError, initial=4, jitter=0)
    hook = RecordingHook()

    @action(reads=["n"], writes=["out"], retry=again if retries == "action" else None)
    async def fail(n: float) -> None:
        raise ConnectionError("down")

    each = Each(timeout=timeout, retry=again if retries == "child" else None)
    result = await Application(many(fail, each), hooks=[hook]).run({"ns": [1]})
    (error,) = errors_of(result)
    assert anyio.current_time() == 0
    assert isinstance(error, StepTimeout)
    assert f"next attempt in 4 s, and its timeout is over in {timeout} s" in str(error)
    assert isinstance(error.__cause__, ConnectionError)
    assert [one.next_in for one in hook.of(AttemptEnded)] == [None]
    hook.assert_paired()


async def test_an_attempt_that_is_not_waited_for_costs_no_budget_of_retries():
    budget = RetryBudget(share=0.01, floor=0.1, window=10)  # one retry
    again = Retry(9, on=ConnectionError, initial=4, jitter=0, budget=budget)
    calls: list[float] = []

    @action(reads=["n"], writes=["out"], retry=again)
    async def fail(n: float) -> None:
        calls.append(n)
        raise ConnectionError("down")

    async with Runtime() as runtime:
        await runtime.run(Application(many(fail, Each(timeout=3))), {"ns": [1]})
        await runtime.run(Application(many(fail, Each(timeout=5))), {"ns": [2]})
    assert calls == [1, 2, 2]


# -- work ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "limits", [Limits(1), Limits(rate=Rate(1, per=2)), Limits(1, by=lambda state: 0)]
)
async def test_work_timeout_counts_no_waits_for_limits(limits: Limits):
    chain = Graph.chain(sleeper(name="begin"), sleeper(limits), name="child")
    app = Application(many(chain, Each(work_timeout=3)))
    result = await app.run({"ns": [1.0, 1.1, 1.2, 1.3, 1.9]})
    (error,) = errors_of(result)
    assert "work_timeout of 3 s; " in str(error)
    assert " beside that it waited for " in str(error)
    assert len(result.state["outs"]) == 4


async def test_work_timeout_counts_all_attempts_and_no_delays():
    begun: list[float] = []
    again = Retry(9, on=ConnectionError, initial=100, factor=1, cap=100, jitter=0)

    @action(reads=["n"], writes=["out"])
    async def fail(n: float) -> None:
        begun.append(anyio.current_time())
        await anyio.sleep(n)
        raise ConnectionError

    app = Application(many(fail, Each(work_timeout=2.5, retry=again)))
    (error,) = errors_of(await app.run({"ns": [1]}))
    assert begun == [0, 101, 202]
    assert anyio.current_time() == 202.5
    assert isinstance(error, StepTimeout)
    assert error.waited == {"its next attempt": 200}


async def test_both_timeouts_of_a_child_hold():
    slow = sleeper(Limits(1))
    for each, seconds in (
        (Each(timeout=5, work_timeout=2), 2),
        (Each(timeout=2, work_timeout=5), 2),
    ):
        began = anyio.current_time()
        (error,) = errors_of(await Application(many(slow, each)).run({"ns": [9]}))
        assert isinstance(error, StepTimeout)
        assert anyio.current_time() - began == seconds


async def test_a_child_is_at_work_while_one_of_its_children_is():
    """The clock stands still only while all of them wait."""
    inner = fan_out(sleeper(), over="elements", item="n", into="inner", name="inner", take="out")
    outer = many(
        inner, Each(work_timeout=3.5), over="groups", item="elements", take="inner", name="outer"
    )
    app = Application(outer, limits=Limits(1))
    # One at a time in all: each group is at work for as long as its own three are, together 3 s,
    # though it takes them 9.
    result = await app.run({"groups": [[1, 1, 1]] * 3})
    assert anyio.current_time() == 9
    assert errors_of(result, "outer") == []
    result = await app.run({"groups": [[1, 1, 1.75]] * 2})
    assert len(errors_of(result, "outer")) == 2


async def test_a_child_is_at_work_again_when_its_children_have_ended():
    @action(reads=["inner"], writes=["out"])
    async def add_up(inner: list[float]) -> float:
        await anyio.sleep(9)
        return sum(inner)

    inner = fan_out(sleeper(), over="elements", item="n", into="inner", name="inner", take="out")
    both = Graph.chain(inner, add_up, name="both")
    outer = many(both, Each(work_timeout=3), over="groups", item="elements", name="outer")
    (error,) = errors_of(await Application(outer).run({"groups": [[1, 2]]}), "outer")
    assert isinstance(error, StepTimeout)
    assert anyio.current_time() == 3


async def test_children_of_an_action_count_as_its_work():
    @action(reads=["n"], writes=["out"])
    async def spread(n: float, context: Context) -> None:
        async with context.fan_out(name="inner") as group:
            group.start(sleeper(), {"n": n}, key="a")

    (error,) = errors_of(await Application(many(spread, Each(work_timeout=2))).run({"ns": [3]}))
    assert isinstance(error, StepTimeout)
    assert anyio.current_time() == 2


@pytest.mark.slow
@pytest.mark.realtime
async def test_a_wait_for_a_worker_is_no_work():
    @action(reads=["n"], writes=["out"])
    def block(n: float) -> float:
        time.sleep(n)
        return n

    step = many(Graph.chain(sleeper(name="begin"), block, name="child"), Each(work_timeout=1))
    async with Runtime(threads=1) as runtime:
        result = await runtime.run(Application(step), {"ns": [0.1] * 12})
    assert errors_of(result) == []


async def test_it_takes_a_number_above_0():
    for wrong in (0, -1, "1", True):
        with pytest.raises(DefinitionError, match="work_timeout"):
            Each(work_timeout=wrong)  # pyright: ignore[reportArgumentType]


async def test_a_resumed_child_has_its_time_anew():
    store = MemoryStore()
    app = Application(many(sleeper(), Each(work_timeout=3)), store=store)
    with anyio.move_on_after(2):
        await app.run({"ns": [2.5]}, id="r")
    result = await app.run(id="r")
    assert result.state["outs"] == [2.5]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_times_are_right_after_a_cancellation_anywhere(backend: Backend):
    async def scenario(attempt: Attempt) -> None:
        again = Retry(2, on=ConnectionError, initial=1, jitter=0)
        calls: list[float] = []

        @action(reads=["n"], writes=["out"], limits=Limits(1))
        async def flaky(n: float) -> float:
            calls.append(n)
            await anyio.sleep(n)
            if len(calls) == 1:
                raise ConnectionError
            return n

        inner = many(flaky, Each(work_timeout=9, retry=again), name="inner", into="inner")
        both = Each(timeout=50, work_timeout=20)
        outer = many(inner, both, over="groups", item="ns", take="inner")
        app = Application(outer)
        async with no_leaks(), Runtime() as runtime:

            async def run() -> None:
                await runtime.run(app, {"groups": [[1, 2], [1]]})

            await attempt(run)
            result = await runtime.run(app, {"groups": [[1.0, 2.0]]})
            assert result.state["outs"] == [[1.0, 2.0]]

    assert cancel_everywhere(scenario, backend=backend) >= 20
