"""Second copies of late children of a map: ``Each(hedge=Hedge(...))``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any, Literal

import anyio
import pytest

from shoal import (
    Application,
    Breaker,
    Cancelled,
    Context,
    Done,
    Each,
    Failed,
    Graph,
    Hedge,
    Hook,
    Limits,
    MapStates,
    MemoryStore,
    Rate,
    Result,
    Retry,
    RetryLater,
    RunPath,
    Runtime,
    State,
    action,
    fan_out,
    first_item,
)
from shoal.errors import DefinitionError, StepTimeout
from shoal.events import ChildEnded, HedgeEnded, HedgeStarted, Item
from shoal.stores import Store
from shoal.testing import (
    Attempt,
    RecordingHook,
    Recovery,
    cancel_everywhere,
    crash_everywhere,
    no_leaks,
)

pytestmark = pytest.mark.anyio

HEDGE = Hedge(initial=1, budget=1)
"""An attempt is late after one second, as long as fewer than 20 are known."""
Body = Callable[[int, int], Any]


class Calls:
    """An action that counts its calls: of each element the first, and the second, a copy."""

    def __init__(self, body: Body | None = None, **options: Any) -> None:
        self.count = Counter[int]()
        self.at_work = 0
        self.ended = list[tuple[int, int, str]]()  # element, call, how
        self.began = dict[tuple[int, int], float]()
        self.body = body or self.slow_first

        @action(reads=["n"], writes=["out"], name="act", **options)
        async def act(n: int) -> Any:
            return await self.call(n)

        self.act = act

    async def call(self, n: int) -> Any:
        self.count[n] += 1
        call = self.count[n]
        self.at_work += 1
        self.began[n, call] = anyio.current_time()
        how = "raised"
        try:
            result = await self.body(n, call)
            how = "returned"
        except BaseException as error:
            how = "failed" if isinstance(error, Exception) else "cancelled"
            raise
        finally:
            self.at_work -= 1
            self.ended.append((n, call, how))
        return result

    @staticmethod
    async def slow_first(n: int, call: int) -> str:
        await anyio.sleep(100 if call == 1 else 0.5)
        return f"{n} by call {call}"


def mapped(act: Any, hedge: Hedge = HEDGE, *, each: Each | None = None, **options: Any) -> Any:
    options = {"over": "ns", "item": "n", "into": "out", "take": "out", "key": str, **options}
    return fan_out(act, each=each or Each(hedge=hedge), **options)


def events(hook: RecordingHook) -> list[tuple[object, object]]:
    return [
        (event.path.key, "began" if isinstance(event, HedgeStarted) else event.used)
        for event in hook.events
        if isinstance(event, HedgeStarted | HedgeEnded)
    ]


async def outcomes_of(result: Any) -> list[Any]:
    return [outcome async for outcome in result.all_outcomes("out")]


def done(outcome: object) -> Done:
    assert isinstance(outcome, Done), outcome
    return outcome


# -- what it is for --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
async def test_stragglers_no_longer_make_the_tail(seed: int):
    """5 % of 3 s: the 99th percentile is that of a late attempt and a second one."""
    random, ends, starts = Random(seed), dict[int, float](), Counter[int]()
    slow = set(random.sample(range(100, 2000), 95))  # 5 %

    @action(reads=["n"], writes=["out"])
    async def request(n: int) -> int:
        starts[n] += 1
        begins.setdefault(n, anyio.current_time())
        await anyio.sleep(3 if n in slow and starts[n] == 1 else random.uniform(0.08, 0.12))
        return n

    begins = dict[int, float]()

    class Ends(Hook):
        def on_child_ended(self, event: Any) -> None:
            ends[event.outcome.element] = anyio.current_time() - begins[event.outcome.element]

    hedge = Hedge(percentile=95, budget=0.05)
    step = mapped(request, hedge, limits=Limits(20))
    async with no_leaks():
        await Application(step, hooks=[Ends()]).run({"ns": range(2000)})
    took = sorted(ends.values())
    p50, p99 = took[1000], took[1980]
    assert p99 <= 1.3 * (0.12 + p50)
    extra = starts.total() - 2000
    assert len(slow) <= extra + 5
    assert extra <= 0.05 * 2000 + 1


async def test_the_budget_holds_over_the_whole_fan_out_and_all_of_its_executions():
    calls = Calls()
    step = mapped(calls.act, Hedge(initial=1, budget=0.1), limits=Limits(50))
    async with Runtime() as runtime:
        for _ in range(2):
            calls.count.clear()
            with anyio.move_on_after(50):
                await runtime.run(Application(step), {"ns": range(100)})
        # One in advance, and a tenth of 100 starts in flight so far.
        assert calls.count.total() <= 50 + 50 / 10 + 5


async def test_a_late_child_has_one_more_attempt_and_the_first_success_counts():
    calls, hook = Calls(), RecordingHook()
    async with no_leaks():
        result = await Application(mapped(calls.act), hooks=[hook], store=MemoryStore()).run(
            {"ns": [1]}
        )
    assert result.state["out"] == {"1": "1 by call 2"}
    assert anyio.current_time() == 1.5
    assert calls.ended == [(1, 2, "returned"), (1, 1, "cancelled")]
    assert events(hook) == [("1", "began"), ("1", True)]
    assert hook.of(HedgeStarted)[0].after == 1
    (outcome,) = await outcomes_of(result)
    assert (outcome.attempts, outcome.elapsed) == (1, 1.5)
    hook.assert_paired()


async def test_one_that_ends_before_its_copy_does_counts():
    async def body(n: int, call: int) -> str:
        await anyio.sleep(2)
        return f"call {call}"

    calls, hook = Calls(body), RecordingHook()
    result = await Application(mapped(calls.act), hooks=[hook]).run({"ns": [1]})
    assert result.state["out"] == {"1": "call 1"}
    assert anyio.current_time() == 2
    assert calls.ended == [(1, 1, "returned"), (1, 2, "cancelled")]
    assert events(hook) == [("1", "began"), ("1", False)]


async def test_both_in_one_tick_are_one_outcome():
    async def body(n: int, call: int) -> str:
        await anyio.sleep(2 if call == 1 else 1)
        return f"call {call}"

    calls = Calls(body)
    result = await Application(mapped(calls.act)).run({"ns": range(5)})
    assert len(result.state["out"]) == 5
    assert calls.at_work == 0


@pytest.mark.parametrize("loser", ["attempt", "copy"])
async def test_the_loser_is_awaited_to_the_end_of_its_cleanup(loser: str):
    """Before the child goes on, not only before the fan-out ends."""

    async def body(n: int, call: int) -> str:
        try:
            await anyio.sleep(10 if (call == 1) == (loser == "attempt") else 2)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(2)
        return f"call {call}"

    @action(reads=["out"], writes=["end"])
    async def last(out: str) -> str:
        assert calls.at_work == 0
        return f"{out} at {anyio.current_time()}"

    calls = Calls(body)
    step = mapped(Graph.chain(calls.act, last), take="end")
    result = await Application(step).run({"ns": [1]})
    # The winner has the same cleanup, at the end of which it wins.
    assert result.state["out"] == {"1": "call 2 at 7.0" if loser == "attempt" else "call 1 at 6.0"}


async def test_what_the_loser_raises_in_its_cleanup_changes_nothing():
    async def body(n: int, call: int) -> str:
        try:
            await anyio.sleep(10 if call == 1 else 0.5)
        finally:
            if call == 1:
                raise ValueError("in cleanup")
        return f"call {call}"

    result = await Application(mapped(Calls(body).act)).run({"ns": [1]})
    assert result.state["out"] == {"1": "call 2"}


async def test_one_that_swallows_its_cancellation_has_lost_all_the_same():
    async def body(n: int, call: int) -> str:
        try:
            await anyio.sleep(10 if call == 1 else 0.5)
        except anyio.get_cancelled_exc_class():
            pass
        return f"call {call}"

    result = await Application(mapped(Calls(body).act)).run({"ns": [1]})
    assert result.state["out"] == {"1": "call 2"}


# -- failures and retries --------------------------------------------------------------------------


async def test_a_copy_that_fails_leaves_the_attempt_alone():
    async def body(n: int, call: int) -> str:
        await anyio.sleep(3 if call == 1 else 0.5)
        if call == 2:
            raise ConnectionError("copy")
        return f"call {call}"

    calls, hook = Calls(body), RecordingHook()
    result = await Application(mapped(calls.act), hooks=[hook]).run({"ns": [1]})
    assert result.state["out"] == {"1": "call 1"}
    assert calls.count[1] == 2, "an attempt has one copy"
    assert events(hook) == [("1", "began"), ("1", False)]


async def test_one_that_fails_leaves_its_copy_alone():
    async def body(n: int, call: int) -> str:
        await anyio.sleep(2)
        if call == 1:
            raise ConnectionError("first")
        return f"call {call}"

    result = await Application(mapped(Calls(body).act)).run({"ns": [1]})
    assert result.state["out"] == {"1": "call 2"}
    assert anyio.current_time() == 3


@pytest.mark.parametrize("where", ["each", "action", "nowhere"])
async def test_one_that_fails_does_not_wait_for_a_copy_that_has_not_begun(where: str):
    """A retry begins as it does without a hedge, though no place is free for the copy."""

    async def body(n: int, call: int) -> str:
        await anyio.sleep(2 if n == 1 else 50 if call == 1 else 0.5)
        if (n, call) == (1, 1):
            raise ConnectionError(n)
        return f"call {call}"

    retry, hedge = Retry(2, on=ConnectionError, initial=1, jitter=0), Hedge(initial=1, budget=0.01)
    calls, hook = Calls(body, retry=retry if where == "action" else None), RecordingHook()
    each = Each(hedge=hedge, retry=retry if where == "each" else None)
    step = mapped(calls.act, each=each, limits=Limits(2), on_error="collect", errors_into="failed")
    async with no_leaks(), Runtime() as runtime:
        result = await runtime.run(Application(step, hooks=[hook]), {"ns": [1, 2]})
        (statistics,) = runtime.services.child_hedges[step.definition].values()
    # The second copy has the first one's cost and place.
    assert events(hook) == [("2", "began"), ("2", True)]
    began = {(1, 1): 0, (2, 1): 0, (2, 2): 2}
    assert calls.began == (began if where == "nowhere" else {**began, (1, 2): 3})
    assert statistics._tokens == pytest.approx(len(calls.began) * 0.01 - 0.01)
    if where == "nowhere":
        assert result.state["failed"]["1"].message == "1"
        assert anyio.current_time() == 2.5
    else:
        assert result.state["out"] == {"1": "call 2", "2": "call 2"}
        assert anyio.current_time() == 5


@pytest.mark.parametrize("order", ["copy first", "copy last"])
async def test_if_both_fail_the_failure_of_the_attempt_itself_counts(order: str):
    async def body(n: int, call: int) -> str:
        await anyio.sleep(1.5 if (call == 2) == (order == "copy first") else 4)
        raise (ConnectionError if call == 1 else ValueError)(f"call {call}")

    step = mapped(Calls(body).act, on_error="collect")
    result = await Application(step, store=MemoryStore()).run({"ns": [1]})
    (outcome,) = await outcomes_of(result)
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, ConnectionError)
    assert "so has a second copy: ValueError('call 2')" in "".join(outcome.error.__notes__)


@pytest.mark.parametrize("where", ["each", "action"])
async def test_both_failed_is_one_failed_attempt_for_a_retry(where: str):
    async def body(n: int, call: int) -> str:
        await anyio.sleep(2)
        if call <= 2:
            raise ConnectionError(call)
        return f"call {call}"

    retry = Retry(3, on=ConnectionError, initial=4, jitter=0)
    calls = Calls(body, retry=retry if where == "action" else None)
    each = Each(hedge=HEDGE, retry=retry if where == "each" else None)
    result = await Application(mapped(calls.act, each=each), store=MemoryStore()).run({"ns": [1]})
    assert result.state["out"] == {"1": "call 3"}
    (outcome,) = await outcomes_of(result)
    assert outcome.attempts == 2
    assert calls.count[1] == 4, "the second attempt was late as well"
    assert calls.began[1, 3] == 3 + 4
    assert calls.began[1, 4] == 3 + 4 + 1


async def test_a_timeout_of_the_child_ends_both():
    calls = Calls(lambda n, call: value(100, n))
    each = Each(hedge=HEDGE, timeout=3)
    result = await Application(
        mapped(calls.act, each=each, on_error="collect"), store=MemoryStore()
    ).run({"ns": [1]})
    (outcome,) = await outcomes_of(result)
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, StepTimeout)
    assert sorted(calls.ended) == [(1, 1, "cancelled"), (1, 2, "cancelled")]
    assert anyio.current_time() == 3


async def test_the_timeout_of_the_action_is_that_of_each_attempt():
    async def body(n: int, call: int) -> str:
        await anyio.sleep(100 if call == 1 else 2.5)
        return f"call {call}"

    calls = Calls(body, timeout=3)
    result = await Application(mapped(calls.act)).run({"ns": [1]})
    assert result.state["out"] == {"1": "call 2"}
    assert calls.ended[0] == (1, 1, "cancelled")
    assert anyio.current_time() == 3.5


async def test_one_that_is_put_off_is_not_late_meanwhile():
    async def body(n: int, call: int) -> str:
        if call == 1:
            raise RetryLater(10)
        return f"call {call}"

    calls, hook = Calls(body), RecordingHook()
    result = await Application(mapped(calls.act), hooks=[hook]).run({"ns": [1]})
    assert result.state["out"] == {"1": "call 2"}
    assert not hook.of(HedgeStarted)


async def test_a_copy_that_waits_is_dropped_where_its_attempt_is_put_off():
    """It would begin although the attempt was told to come later. That one may be late again."""

    async def body(n: int, call: int) -> str:
        await anyio.sleep(5 if n == 2 else 2 if call == 1 else 3)
        if (n, call) == (1, 1):
            raise RetryLater(10)
        return f"call {call}"

    calls = Calls(body)
    result = await Application(mapped(calls.act, limits=Limits(2))).run({"ns": [1, 2]})
    assert result.state["out"] == {"1": "call 2", "2": "call 1"}
    assert calls.began == {(1, 1): 0, (2, 1): 0, (2, 2): 2, (1, 2): 12, (1, 3): 13}


async def test_a_copy_that_is_put_off_has_failed():
    async def body(n: int, call: int) -> str:
        if call == 2:
            raise RetryLater(10)
        await anyio.sleep(3)
        return f"call {call}"

    result = await Application(mapped(Calls(body).act)).run({"ns": [1]})
    assert result.state["out"] == {"1": "call 1"}
    assert anyio.current_time() == 3


async def test_what_may_kill_processes_is_alone_at_work():
    """After a crash in which the run was at work, its attempts have no copies."""

    async def body(n: int, call: int) -> str:
        if call == 1:
            raise ConnectionError(n)
        await anyio.sleep(5)
        return f"call {call}"

    calls = Calls(body, retry=Retry(2, on=ConnectionError, initial=2, jitter=0))
    async with Runtime() as runtime:
        handle = await runtime.start(Application(mapped(calls.act)), {"ns": [1]})
        await anyio.sleep(1)
        run: Any = handle._root.run  # pyright: ignore[reportPrivateUsage]
        (group,) = run.config.execution.groups
        (child,) = group.living()
        child.retry_state().crashes = 1
        result = await handle.result()
    assert result.state["out"] == {"1": "call 2"}
    assert calls.count[1] == 2


async def test_a_breaker_hears_of_the_child_and_not_of_its_copy():
    async def body(n: int, call: int) -> str:
        await anyio.sleep(2)
        if call == 2:
            raise ConnectionError(n)
        return "well"

    each = Each(hedge=HEDGE, breaker=Breaker(failures=1))
    result = await Application(mapped(Calls(body).act, each=each)).run({"ns": range(5)})
    assert len(result.state["out"]) == 5


# -- limits ----------------------------------------------------------------------------------------


async def test_waiting_for_a_limit_makes_nothing_late():
    async def body(n: int, call: int) -> int:
        await anyio.sleep(0.9)
        return n

    calls, hook = Calls(body, limits=Limits(1)), RecordingHook()
    await Application(mapped(calls.act), hooks=[hook]).run({"ns": range(10)})
    assert not hook.of(HedgeStarted)


@pytest.mark.parametrize("where", ["fan-out", "action", "runtime", "rate"])
async def test_a_copy_that_finds_no_place_waits_and_holds_nothing(where: str):
    """With one place nothing is hedged, and nothing deadlocks."""

    async def body(n: int, call: int) -> str:
        await anyio.sleep(3)
        return f"{n} by call {call}"

    one = Limits(rate=Rate(1, per=100, burst=3)) if where == "rate" else Limits(1)
    calls, hook = Calls(body, limits=one if where == "action" else None), RecordingHook()
    own = one if where in ("fan-out", "rate") else None
    step = mapped(calls.act, limits=own)
    async with no_leaks(), Runtime(limits=one if where == "runtime" else None) as runtime:
        result = await runtime.run(Application(step, hooks=[hook]), {"ns": range(3)})
        assert [value.split()[-1] for value in result.state["out"].values()] == ["1"] * 3
        assert calls.count.total() == 3
        assert not hook.of(HedgeStarted)
        if where == "action":
            statistics = runtime.limiter(calls.act).statistics()[0]
            assert (statistics.in_use, statistics.waiting) == (0, 0)


async def test_a_copy_goes_before_children_that_are_not_pulled_yet():
    """It waits for a place like a child that was pulled before those."""
    calls = Calls()

    async def body(n: int, call: int) -> int:
        await anyio.sleep(100 if n == 0 and call == 1 else 2)
        return call

    calls.body = body
    step = mapped(calls.act, Hedge(initial=3, budget=1), limits=Limits(2))
    result = await Application(step).run({"ns": range(10)})
    assert calls.began[0, 2] == 4, "when the first place is free after it was late"
    assert result.state["out"]["0"] == 2


async def test_a_copy_takes_a_place_a_unit_and_a_key_like_any_start():
    async def body(n: int, call: int) -> int:
        await anyio.sleep(9 if call == 1 else 0.5)
        return call

    calls = Calls(body)
    limits = Limits(4) & Limits(rate=Rate(1, per=4, burst=1)) & Limits(2, by=lambda s: s["n"])
    result = await Application(mapped(calls.act, limits=limits)).run({"ns": [1]})
    assert calls.began == {(1, 1): 0, (1, 2): 4}
    assert result.state["out"] == {"1": 2}


async def test_a_copy_that_never_began_costs_no_budget_and_no_unit():
    async def body(n: int, call: int) -> int:
        await anyio.sleep(2)
        return call

    calls = Calls(body)
    step = mapped(calls.act, Hedge(initial=1, budget=0.01), limits=Limits(1))
    async with Runtime() as runtime:
        await runtime.run(Application(step), {"ns": range(5)})
        (statistics,) = runtime.services.child_hedges[step.definition].values()
        assert statistics._tokens == pytest.approx(1 + 5 * 0.01)
    assert calls.count.total() == 5


async def test_places_of_copies_are_no_children():
    """``until=`` and displays count children."""
    calls = Calls()
    async with Runtime() as runtime:
        handle = await runtime.start(Application(mapped(calls.act)), {"ns": range(1)})
        await anyio.sleep(1.25)
        assert calls.at_work == 2
        run: Any = handle._root.run  # pyright: ignore[reportPrivateUsage]
        (group,) = run.config.execution.groups
        assert (group.in_flight, group.under_way, group.started) == (1, 1, 1)
        await handle.result()


# -- several steps, streams, children, questions ---------------------------------------------------


async def test_the_copy_of_a_child_with_several_steps_is_one_of_the_step_it_is_at():
    """Steps that are completed stay, and each step is late by its own latencies."""
    first = Calls(lambda n, call: value(0.5, n))
    second = Calls()

    @action(reads=["out"], writes=["end"])
    async def last(out: str) -> str:
        return f"{out}, then the last"

    @action(reads=["n", "out"], writes=["out"], name="second")
    async def again(n: int, out: int) -> Any:
        return await second.call(n)

    store = MemoryStore()
    step = mapped(Graph.chain(first.act, again, last), take="end")
    result = await Application(step, store=store).run({"ns": [1]}, id="a")
    assert result.state["out"] == {"1": "1 by call 2, then the last"}
    assert (first.count[1], second.count[1]) == (1, 2)
    (child,) = await outcomes_of(result)
    assert child.state["out"] == "1 by call 2"


async def value(seconds: float, result: Any) -> Any:
    await anyio.sleep(seconds)
    return result


async def test_each_step_is_late_by_what_it_takes_itself():
    @action(reads=["n"], writes=["m"])
    async def slow(n: int) -> int:
        await anyio.sleep(5)
        return n

    @action(reads=["m"], writes=["out"])
    async def quick(m: int) -> int:
        counts[m] += 1
        await anyio.sleep(50 if m == 30 and counts[m] == 1 else 0.1)
        return m

    counts, hook = Counter[int](), RecordingHook()
    step = mapped(Graph.chain(slow, quick), Hedge(), limits=Limits(2))
    await Application(step, hooks=[hook]).run({"ns": range(40)})
    (started,) = hook.of(HedgeStarted)
    assert (started.step, started.path.key, started.after) == ("quick", "30", pytest.approx(0.1))


@pytest.mark.parametrize("first", ["attempt", "copy"])
async def test_the_first_that_gives_an_item_goes_on_alone(first: str):
    calls = Counter[int]()

    @action(reads=["n"], writes=["out"])
    async def stream(n: int) -> Any:
        calls[n] += 1
        call = calls[n]
        await anyio.sleep(2 if (call == 1) == (first == "attempt") else 20)
        for item in range(3):
            yield f"{call}.{item}"
            await anyio.sleep(1)
        yield Result(call)

    hook = RecordingHook()
    result = await Application(mapped(stream), hooks=[hook]).run({"ns": [1]})
    winner = 1 if first == "attempt" else 2
    assert result.state["out"] == {"1": winner}
    assert [event.item for event in hook.of(Item)] == [f"{winner}.{n}" for n in range(3)]
    assert {event.attempt for event in hook.of(Item)} == {1}
    assert events(hook) == [("1", "began"), ("1", winner == 2)]


async def test_one_that_has_given_items_is_not_copied():
    @action(reads=["n"], writes=["out"])
    async def stream(n: int) -> Any:
        yield "early"
        await anyio.sleep(10)
        yield Result(n)

    hook = RecordingHook()
    await Application(mapped(stream), hooks=[hook]).run({"ns": [1]})
    assert not hook.of(HedgeStarted)


async def test_a_copy_that_goes_on_alone_and_fails_has_failed():
    calls = Counter[int]()

    @action(reads=["n"], writes=["out"])
    async def stream(n: int) -> Any:
        calls[n] += 1
        if calls[n] == 1:
            await anyio.sleep(100)
        yield "an item"
        raise ConnectionError("after an item")

    step = mapped(stream, on_error="collect", errors_into="failed")
    result = await Application(step).run({"ns": [1]})
    assert result.state["failed"]["1"].message == "after an item"
    assert anyio.current_time() == 1


async def test_one_that_gives_way_and_returns_all_the_same_has_lost():
    """It swallows the cancellation, and its result must not follow the items of its copy."""
    calls = Counter[int]()

    @action(reads=["n"], writes=["out"])
    async def stream(n: int) -> Any:
        calls[n] += 1
        if calls[n] == 1:
            try:
                await anyio.sleep(100)
            except anyio.get_cancelled_exc_class():
                pass
            yield Result("call 1")
            return
        yield "an item"
        await anyio.sleep(2)
        yield Result("call 2")

    hook = RecordingHook()
    result = await Application(mapped(stream), hooks=[hook]).run({"ns": [1]})
    assert result.state["out"] == {"1": "call 2"}
    assert [event.item for event in hook.of(Item)] == ["an item"]


async def test_the_first_item_of_a_copy_decides_a_race():
    calls = Counter[int]()

    @action(reads=["n"], writes=["out"])
    async def stream(n: int) -> Any:
        calls[n] += 1
        await anyio.sleep(2 if n == 1 and calls[n] == 2 else 20)
        yield f"{n} by call {calls[n]}"
        yield Result(n)

    hook = RecordingHook()
    step = mapped(stream, until=first_item(), key=None, take="out")
    result = await Application(step, hooks=[hook]).run({"ns": range(3)})
    assert result.state["out"] == 1
    assert [event.item for event in hook.of(Item)] == ["1 by call 2"]
    hook.assert_paired()


@pytest.mark.parametrize("slow", ["attempt", "copy"])
async def test_children_of_its_own_are_started_by_the_attempt_and_never_by_a_copy(slow: str):
    """They are saved, and of a copy nothing is."""
    calls, started = Counter[int](), list[int]()

    @action(reads=["n"], writes=["square"])
    async def square(n: int) -> int:
        started.append(n)
        await anyio.sleep(3)
        return n * n

    @action(reads=["n"], writes=["out"])
    async def parent(n: int, context: Context) -> int:
        calls[n] += 1
        await anyio.sleep(2 if (calls[n] == 1) == (slow == "copy") else 10)
        async with context.fan_out(name="squares") as group:
            group.start_each(square, over=range(3), item="n")
            return sum([done(outcome).value async for outcome in group])

    hook, store = RecordingHook(), MemoryStore()
    async with no_leaks():
        result = await Application(mapped(parent), hooks=[hook], store=store).run({"ns": [1]})
    assert result.state["out"] == {"1": 5}
    assert started == [0, 1, 2]
    assert calls[1] == 2
    assert events(hook) == [("1", "began"), ("1", False)]
    hook.assert_paired()


@pytest.mark.parametrize("slow", ["attempt", "copy"])
async def test_questions_are_asked_by_the_attempt_and_never_by_a_copy(slow: str):
    calls, failures = Counter[int](), list[Exception]()

    @action(reads=["n"], writes=["out"])
    async def asks(n: int, context: Context) -> Any:
        calls[n] += 1
        await anyio.sleep(2 if (calls[n] == 1) == (slow == "copy") else 5)
        try:
            return await context.ask("go on?")
        except Exception as error:
            failures.append(error)
            raise

    app = Application(mapped(asks), store=MemoryStore())
    result = await app.run({"ns": [1]}, id="a")
    assert failures == [], "a copy is cancelled where it asks"
    assert result.status == "halted"
    assert len(result.questions) == 1
    result = await app.run(id="a", answers={"go on?": "yes"})
    assert result.state["out"] == {"1": "yes"}


async def test_a_copy_gets_answers_that_are_there():
    calls = Counter[int]()

    @action(reads=["n"], writes=["out"])
    async def asks(n: int, context: Context) -> Any:
        answer = await context.ask("go on?")
        calls[n] += 1
        return await value(100 if calls[n] == 1 else 1, f"{answer} by call {calls[n]}")

    app = Application(mapped(asks), store=MemoryStore())
    result = await app.run({"ns": [1]}, id="a")
    result = await app.run(id="a", answers={"go on?": "yes"})
    assert result.state["out"] == {"1": "yes by call 2"}


async def test_a_copy_under_a_shield_is_told_that_it_can_not_ask():
    calls, told = Counter[int](), list[str]()

    @action(reads=["n"], writes=["out"])
    async def asks(n: int, context: Context) -> Any:
        calls[n] += 1
        if calls[n] == 1:
            return await value(3, "first")
        try:
            with anyio.CancelScope(shield=True):
                await context.ask("go on?")
        except Exception as error:
            told.append(str(error))
            raise

    result = await Application(mapped(asks), store=MemoryStore()).run({"ns": [1]})
    assert result.state["out"] == {"1": "first"}
    assert "a second copy of action 'asks'" in told[0]


async def test_both_have_one_idempotency_key_attempt_and_context():
    calls, keys = Counter[int](), list[tuple[object, ...]]()

    @action(reads=["n"], writes=["out"])
    async def pays(n: int, context: Context) -> int:
        calls[n] += 1
        key = context.idempotency_key
        keys.append((key, context.run_id, context.attempt, context.key, context.step))
        return await value(100 if calls[n] == 1 else 1, n)

    await Application(mapped(pays)).run({"ns": [1]})
    assert len(keys) == 2
    assert len(set(keys)) == 1


async def test_each_is_charged_and_losers_count():
    limits, calls = Limits(rate=Rate(1000, per=1), cost=lambda _: 10), Counter[int]()

    @action(reads=["n"], writes=["out"], limits=limits)
    async def asks(n: int, context: Context) -> int:
        calls[n] += 1
        context.charge(100 if calls[n] == 1 else 1)
        return await value(100 if calls[n] == 1 else 1, n)

    async with Runtime() as runtime:
        await runtime.run(Application(mapped(asks)), {"ns": [1]})
        limiter = runtime.limiter(asks)
        assert limiter.charged(limiter.limits.parts[0]) == 101


async def test_a_result_that_is_cached_is_cached_whichever_made_it():
    calls = Calls(cache=100)
    step = mapped(calls.act)
    async with Runtime() as runtime:
        for _ in range(2):
            result = await runtime.run(Application(step), {"ns": [1]})
            assert result.state["out"] == {"1": "1 by call 2"}
    assert calls.count[1] == 2


@pytest.mark.parametrize("is_put_off", [False, True])
async def test_a_store_is_asked_for_children_of_an_action_only_if_it_was_called_before(
    is_put_off: bool,
):
    """A new run must not pay for the question."""
    asked, put_off, store = list[RunPath](), list[int](), MemoryStore()
    children = store.children

    async def asking(path: RunPath, *where: Any) -> Any:
        asked.append(path)
        return await children(path, *where)

    store.children = asking  # pyright: ignore[reportAttributeAccessIssue]

    @action(reads=["n"], writes=["out"])
    async def own(n: int, context: Context) -> int:
        async with context.fan_out(name="own") as group:
            group.start(Calls(lambda n, _: value(0, n)).act, {"n": n})
        if is_put_off and not put_off:
            put_off.append(n)
            raise RetryLater(1)
        return n

    result = await Application(mapped(own), store=store).run({"ns": [1]})
    assert result.state["out"] == {"1": 1}
    assert len(asked) == is_put_off


async def test_children_that_an_action_starts_itself():
    calls = Calls()

    @action(writes=["all"])
    async def parent(context: Context) -> list[Any]:
        async with context.fan_out(name="each", each=Each(hedge=HEDGE)) as group:
            group.start_each(calls.act, over=range(3), item="n")
            return sorted([done(outcome).value async for outcome in group])

    async with no_leaks():
        result = await Application(parent).run()
    assert result.state["all"] == ["0 by call 2", "1 by call 2", "2 by call 2"]


async def test_tasks_of_a_class():
    calls = Calls()

    class Squares(MapStates):
        reads = ("ns",)
        writes = ("all",)
        each = Each(hedge=HEDGE)

        def action(self, state: State, inputs: Any) -> Any:
            return calls.act

        def states(self, state: State, inputs: Any) -> Any:
            return [{"n": n} for n in state["ns"]]

        def reduce(self, state: State, outcome: Any) -> State:
            return state.append(all=outcome.value)

    result = await Application(Squares()).run({"ns": [1], "all": []})
    assert list(result.state["all"]) == ["1 by call 2"]


async def test_hooks_and_variables_of_the_step_are_those_of_its_copy():
    from contextvars import ContextVar

    variable: ContextVar[str] = ContextVar("variable", default="unset")
    seen = list[str]()

    @action(reads=["n"], writes=["m"])
    async def sets(n: int) -> int:
        variable.set(f"set for {n}")
        return n

    calls = Counter[int]()

    @action(reads=["m"], writes=["out"])
    async def reads(m: int) -> int:
        calls[m] += 1
        seen.append(variable.get())
        variable.set("changed")
        return await value(100 if calls[m] == 1 else 1, m)

    await Application(mapped(Graph.chain(sets, reads))).run({"ns": [1]})
    assert seen == ["set for 1"] * 2


# -- statistics ------------------------------------------------------------------------------------


async def test_nothing_is_late_before_enough_is_known():
    calls, hook = Calls(), RecordingHook()

    async def body(n: int, call: int) -> int:
        await anyio.sleep(12 if n in (5, 25) and call == 1 else 1)
        return call

    calls.body = body
    step = mapped(calls.act, Hedge(budget=1), limits=Limits(2))
    await Application(step, hooks=[hook]).run({"ns": range(30)})
    assert [event.path.key for event in hook.of(HedgeStarted)] == ["25"]


async def test_copies_that_win_do_not_make_the_delay_longer():
    """Else the delay would grow by the time of a copy, again and again, up to the slowest."""
    random, calls = Random(1), Counter[int]()

    @action(reads=["n"], writes=["out"])
    async def act(n: int) -> int:
        calls[n] += 1
        slow = calls[n] == 1 and n >= 50 and n % 16 == 0  # a little more than 5 %
        return await value(30 if slow else random.uniform(0.9, 1.1), n)

    hook = RecordingHook()
    step = mapped(act, Hedge(budget=0.1), limits=Limits(10))
    await Application(step, hooks=[hook]).run({"ns": range(1000)})
    delays = [event.after for event in hook.of(HedgeStarted)]
    assert len(delays) >= 50
    assert max(delays) <= 1.2


async def test_a_copy_that_wins_says_how_long_it_took_and_that_the_attempt_was_late():
    calls = Calls(lambda n, call: value(30 if call == 1 else 0.5, n))
    step = mapped(calls.act)
    async with Runtime() as runtime:
        await runtime.run(Application(step), {"ns": [1]})
        (statistics,) = runtime.services.child_hedges[step.definition].values()
        assert list(statistics.of("act").known) == [0.5, 1]
        assert HEDGE.initial == 1


async def test_what_is_learnt_lasts_as_long_as_the_runtime_and_a_changed_hedge_begins_anew():
    calls = Calls(lambda n, call: value(1, n))
    step = mapped(calls.act, Hedge())
    async with Runtime() as runtime:
        for _ in range(2):
            await runtime.run(Application(step), {"ns": range(10)})
        (statistics,) = runtime.services.child_hedges[step.definition].values()
        assert statistics.of("act").delay == 1
        assert "act 20 latencies: delay 1 s" in repr(statistics)


# -- cancelled, crashed, resumed -------------------------------------------------------------------


async def test_nothing_is_copied_in_a_run_that_is_paused():
    calls, store = Calls(), MemoryStore()
    async with Runtime(store=store) as runtime:
        handle = await runtime.start(Application(mapped(calls.act)), {"ns": [1]}, id="a")
        await anyio.sleep(0.5)
        await handle.pause("for a while")
        await anyio.sleep(10)
        assert calls.count[1] == 1
        await handle.resume()
        result = await handle.result()
    assert result.state["out"] == {"1": "1 by call 2"}
    assert anyio.current_time() == pytest.approx(0.5 + 10 + 0.5)


async def test_the_time_at_work_goes_on_while_only_the_copy_is_at_work():
    async def body(n: int, call: int) -> str:
        await anyio.sleep(2 if call == 1 else 100)
        if call == 1:
            raise ConnectionError(n)
        return f"call {call}"

    step = mapped(Calls(body).act, each=Each(hedge=HEDGE, work_timeout=5), on_error="collect")
    result = await Application(step, store=MemoryStore()).run({"ns": [1]})
    (outcome,) = await outcomes_of(result)
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, StepTimeout)
    assert anyio.current_time() == 5


async def test_one_child_cancelled_by_hand_takes_its_copy_along():
    calls = Calls(lambda n, call: value(100, n))
    async with no_leaks(), Runtime() as runtime:
        handle = await runtime.start(Application(mapped(calls.act)), {"ns": range(2)})
        await anyio.sleep(2)
        assert calls.at_work == 4
        assert handle.cancel_child("1", "not this one")
        await anyio.wait_all_tasks_blocked()
        assert calls.at_work == 2
        handle.cancel("enough")
        await handle.wait_ended()
    assert calls.at_work == 0


async def test_what_is_cancelled_when_its_copy_wins_is_cancelled():
    """It swallows both cancellations: that for its copy, and the one from outside."""

    async def body(n: int, call: int) -> str:
        try:
            await anyio.sleep(100 if call == 1 else 1)
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await anyio.sleep(2)
        return f"call {call}"

    calls, hook = Calls(body), RecordingHook()
    async with Runtime() as runtime:
        handle = await runtime.start(Application(mapped(calls.act), hooks=[hook]), {"ns": [1]})
        await anyio.sleep(3)
        handle.cancel("enough")
        await handle.wait_ended()
    assert anyio.current_time() == 4
    (ended,) = hook.of(ChildEnded)
    assert isinstance(ended.outcome, Cancelled)


async def test_an_interrupt_in_a_copy_ends_the_program():
    async def body(n: int, call: int) -> str:
        if call == 2:
            raise KeyboardInterrupt
        await anyio.sleep(100)
        return "never"

    calls = Calls(body)
    with pytest.raises(KeyboardInterrupt):
        await Application(mapped(calls.act)).run({"ns": [1]})
    assert calls.at_work == 0


def hedged_chain(counts: Counter[tuple[str, int]], limits: Limits | None = None) -> Any:
    """Two steps, both late for some of the children, with retries, items and cleanups."""

    def body_of(name: str) -> Any:
        async def body(n: int) -> int:
            counts[name, n] += 1
            call = counts[name, n]
            try:
                await anyio.sleep(9 if call == 1 and n % 2 else 0.5)
                if n == 1 and call == 2:
                    raise ConnectionError(name)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.1)
            return n * 10

        return body

    first, second = body_of("first"), body_of("second")

    @action(reads=["n"], writes=["m"], limits=limits, retry=Retry(3, on=ConnectionError, initial=1))
    async def one(n: int, context: Context) -> int:
        return await first(n)

    @action(reads=["m"], writes=["out"])
    async def two(m: int) -> Any:
        result = await second(m // 10)
        yield f"item of {m}"
        yield Result(result)

    each = Each(hedge=HEDGE, timeout=60, retry=Retry(4, on=ConnectionError, initial=1))
    return mapped(Graph.chain(one, two), each=each, limits=Limits(3))


every_way = pytest.mark.parametrize(
    ("backend", "how"), [("asyncio", "scope"), ("asyncio", "native"), ("trio", "scope")]
)


@pytest.mark.sweep
@every_way
@pytest.mark.parametrize("seed", [None, 3])
def test_cancelled_everywhere_it_leaves_nothing_behind(
    backend: Literal["asyncio", "trio"], how: Literal["scope", "native"], seed: int | None
):
    async def scenario(attempt: Attempt) -> None:
        hook, counts = RecordingHook(), Counter[tuple[str, int]]()
        step = hedged_chain(counts, Limits(3))
        async with no_leaks(), Runtime() as runtime:
            app = Application(step, hooks=[hook])
            ending = await attempt(runtime.run, app, {"ns": range(4)})
            limiters = runtime._admission.limiters.by_owner.values()  # pyright: ignore[reportPrivateUsage]
            found = [one for named in limiters for it in named.values() for one in it.statistics()]
            assert not any(one.in_use or one.waiting for one in found)
            for statistics in runtime.services.child_hedges.get(step.definition, {}).values():
                assert not statistics._waiting
        hook.assert_paired()
        began = Counter(event.path.id for event in hook.of(HedgeStarted))
        assert began == Counter(event.path.id for event in hook.of(HedgeEnded))
        if not ending.cancelled:
            assert ending.result is not None
            assert ending.result.state["out"] == {str(n): n * 10 for n in range(4)}

    limit = 60 if seed is None else 20
    assert cancel_everywhere(scenario, backend=backend, how=how, seed=seed, limit=limit) > 15


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("how", ["dies", "fails"])
def test_a_crash_at_each_write_knows_of_no_copy(
    backend: Literal["asyncio", "trio"], how: Literal["dies", "fails"]
):
    async def scenario(store: Store) -> object:
        step = hedged_chain(Counter())
        app = Application(step, name="app", store=store)
        result = await app.run({"ns": range(3)}, id="r")
        outcomes = [one.value for one in await outcomes_of(result)]
        return [result.state.to_plain()["out"], outcomes]

    def check(recovery: Recovery[object]) -> None:
        assert recovery.result == recovery.clean == [{"0": 0, "1": 10, "2": 20}, [0, 10, 20]]

    assert crash_everywhere(scenario, check, how=how, backend=backend) >= 5


async def test_a_run_that_is_drained_starts_no_copy():
    """Neither of an attempt that is late by then, nor the one that waits for a slot."""
    calls = Calls(limits=Limits(3))
    app = Application(mapped(calls.act), store=MemoryStore())
    async with no_leaks(), Runtime() as runtime:
        handle = await runtime.start(app, {"ns": range(3)}, id="r")
        await anyio.sleep(0.5)
        handle.drain("enough")
        assert await handle.wait_ended() == "succeeded"
        assert anyio.current_time() == 100
        assert calls.count == {0: 1, 1: 1, 2: 1}
        waits = await runtime.start(app, {"ns": range(10, 14)}, id="waits")
        await anyio.sleep(1.5)  # the copies of three wait for slots that these hold
        waits.drain("enough")
        assert await waits.wait_ended() == "halted"
        assert calls.count == {0: 1, 1: 1, 2: 1, 10: 1, 11: 1, 12: 1}
        await runtime.run(app, id="waits")
        assert calls.count[13] == 2


@pytest.mark.realtime
async def test_a_copy_on_every_event_loop():
    """Late at once, so that no timer plays a part; and no originals can have all the places, which
    their copies need too."""

    async def body(n: int, call: int) -> str:
        if call == 1 and n % 2:
            await anyio.sleep_forever()
        await anyio.lowlevel.checkpoint()
        return f"call {call}"

    calls = Calls(body)
    step = mapped(calls.act, Hedge(initial=0, budget=1), limits=Limits(40))
    async with no_leaks():
        result = await Application(step).run({"ns": range(20)})
    assert [result.state["out"][str(n)] for n in range(1, 20, 2)] == ["call 2"] * 10
    assert calls.at_work == 0


@pytest.mark.slow
async def test_a_thread_that_is_left_behind_keeps_its_slot_and_nothing_else():
    """A plain function can't be interrupted: with ``abandon=True`` the step goes on without it."""
    import threading

    calls, goes_on = Counter[int](), threading.Event()

    @action(reads=["n"], writes=["out"], abandon=True)
    def blocks(n: int) -> str:
        calls[n] += 1
        if calls[n] == 1:
            goes_on.wait(10)
            return "call 1"
        return "call 2"

    step = mapped(blocks, Hedge(initial=0.05, budget=1))
    try:
        result = await Application(step, store=MemoryStore()).run({"ns": [1]})
    finally:
        goes_on.set()
    assert result.state["out"] == {"1": "call 2"}
    (outcome,) = await outcomes_of(result)
    assert outcome.abandoned


# -- misuse ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [0.05, "95", Each(timeout=1), True])
def test_a_hedge_is_a_hedge(wrong: Any):
    with pytest.raises(DefinitionError, match=r"Each\(hedge=...\) takes Hedge\(...\)"):
        Each(hedge=wrong)


def test_drawings_say_so():
    step = mapped(Calls().act, Hedge(percentile=90))
    assert "hedged above p90 each" in step.sketch().labels
