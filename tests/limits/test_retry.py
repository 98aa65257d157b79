"""Trying again: the arithmetic, what is tried again and when, and where a retried child goes on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import AsyncIterator, Callable
from functools import partial
from itertools import pairwise
from random import Random
from typing import Any, Literal

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal import (
    Application,
    Context,
    Done,
    Each,
    Failed,
    Graph,
    Hook,
    Limits,
    MapStates,
    MemoryStore,
    Outcome,
    Rate,
    Retry,
    RetryBudget,
    RetryLater,
    Runtime,
    State,
    StepTimeout,
    StoreFailed,
    action,
    fan_out,
    when,
)
from shoal._limits.retry import Account
from shoal.errors import BadResult, DefinitionError, HookFailed, NoTransition, TooManySteps
from shoal.events import (
    AttemptEnded,
    ChildEnded,
    RunEnded,
    RunStarted,
    StateUpdated,
    StepEnded,
    StepStarted,
)
from shoal.stores import Store
from shoal.stores._protocol import Batch, NullStore
from shoal.testing import (
    Attempt,
    RecordingHook,
    Recovery,
    cancel_everywhere,
    crash_everywhere,
    no_leaks,
)
from shoal.types import Ended

pytestmark = pytest.mark.anyio

Backend = Literal["asyncio", "trio"]
every_way = pytest.mark.parametrize(
    "how", [("asyncio", "scope"), ("asyncio", "native"), ("trio", "scope")], ids=" ".join
)


class Flaky:
    """Fails as often as it is told to, and knows when it was called and with what."""

    def __init__(self, *failures: Exception | None) -> None:
        self.failures = list(failures)
        self.at: list[float] = []
        self.calls: list[object] = []

    def __call__(self, what: object = None) -> int:
        """Fail if it is time to; return how often it was called."""
        self.at.append(anyio.current_time())
        self.calls.append(what)
        if self.failures:
            failure = self.failures.pop(0)
            if failure is not None:
                raise failure
        return len(self.at)

    @property
    def delays(self) -> list[float]:
        return [round(later - sooner, 9) for sooner, later in pairwise(self.at)]


def flaky_action(flaky: Flaky, retry: Retry | None, **options: Any) -> Any:
    @action(reads=["n"], writes=["out"], name="flaky", retry=retry, **options)
    async def act(n: int) -> int:
        return flaky(n)

    return act


def evenly(attempts: int = 3, on: Any = ConnectionError, **options: Any) -> Retry:
    """A retry without chance."""
    return Retry(attempts, on=on, **dict[str, Any]({"initial": 1.0, "jitter": 0.0, **options}))


# -- arithmetic ------------------------------------------------------------------------------------

seconds = st.floats(0.001, 1000)


@given(
    failures=st.integers(1, 5000),
    initial=seconds,
    factor=st.floats(1, 10),
    cap=seconds,
    jitter=st.floats(0, 1),
    chance=st.floats(0, 0.999),
)
def test_a_delay_is_exponential_and_never_beyond_the_cap_whatever_chance_says(
    *, failures: int, initial: float, factor: float, cap: float, jitter: float, chance: float
):
    retry = Retry(on=OSError, initial=initial, factor=factor, cap=cap, jitter=jitter)
    try:
        longest = min(cap, initial * math.pow(factor, failures - 1))
    except OverflowError:
        longest = cap
    delay = retry.delay(failures, chance)
    assert (1 - jitter) * longest - 1e-9 <= delay <= longest <= cap
    assert retry.delay(failures, 0.0) == pytest.approx(longest)
    assert retry.delay(failures, chance) == delay, "nothing but its arguments decides"


def test_jitter_is_a_share_of_the_delay_and_spreads_evenly():
    retry = Retry(on=OSError, initial=8, factor=1, cap=8, jitter=0.25)
    chance = Random(1).random
    delays = [retry.delay(1, chance()) for _ in range(10_000)]
    assert 6 <= min(delays) < 6.01
    assert 7.99 < max(delays) <= 8
    assert sum(delays) / len(delays) == pytest.approx(7, abs=0.02)


@pytest.mark.parametrize(
    ("why", "options"),
    [
        ("number of attempts", {"attempts": 0}),
        ("number of attempts", {"attempts": True}),
        ("number of attempts", {"attempts": 1.5}),
        ("exception classes", {"on": "OSError"}),
        ("exception classes", {"on": (OSError, "x")}),
        ("ends a run", {"on": KeyboardInterrupt}),
        ("ends a run", {"on": (OSError, BaseException)}),
        ("never try anything", {"on": ()}),
        ("coroutine function", {"on": anyio.sleep}),
        ("total", {"total": 0}),
        ("total", {"total": math.inf}),
        ("initial", {"initial": -1}),
        ("cap", {"cap": math.inf}),
        ("cap", {"cap": "5"}),
        ("factor", {"factor": 0.5}),
        ("jitter", {"jitter": 1.5}),
        ("jitter", {"jitter": -0.5}),
        ("RetryBudget", {"budget": 0.1}),
    ],
)
def test_what_makes_no_sense_is_refused(why: str, options: dict[str, Any]):
    with pytest.raises(DefinitionError, match=f"^Retry.*{why}"):
        Retry(**dict[str, Any]({"on": OSError, **options}))


class Answering:
    """What is called like a coroutine function."""

    async def __call__(self, error: Exception) -> bool:
        return False


@pytest.mark.parametrize("on", [partial(anyio.sleep, 1), Answering()])
def test_what_is_a_coroutine_function_in_disguise_is_refused(on: Any):
    with pytest.raises(DefinitionError, match=r"^Retry\(on=...\) takes a plain function"):
        Retry(on=on)


@pytest.mark.parametrize("options", [{"share": -1}, {"floor": math.nan}, {"window": 0}])
def test_a_budget_that_makes_no_sense_is_refused(options: dict[str, Any]):
    with pytest.raises(DefinitionError, match=f"^RetryBudget.{next(iter(options))}="):
        RetryBudget(**options)


def test_other_policies_and_actions_refuse_what_they_cannot_use():
    with pytest.raises(DefinitionError, match="has no effect"):
        Each()
    with pytest.raises(DefinitionError, match=r"Each\(retry=...\) takes Retry"):
        Each(retry=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(DefinitionError, match="retry= takes Retry"):
        action(retry=3)(Flaky(None).__call__)  # pyright: ignore[reportArgumentType]
    with pytest.raises(DefinitionError, match="each= takes Each"):
        fan_out(flaky_action(Flaky(), None), over="ns", name="f", each=3)  # pyright: ignore[reportCallIssue, reportArgumentType]


def test_what_is_tried_again():
    inner = ExceptionGroup("inner", [ConnectionError(), ConnectionResetError()])
    whole = ExceptionGroup("outer", [inner, ConnectionAbortedError()])
    other = ExceptionGroup("outer", [inner, ValueError()])
    by_class, by_function = (
        Retry(on=ConnectionError),
        Retry(on=lambda e: "Conn" in type(e).__name__),
    )
    for retry in (by_class, by_function):
        assert retry.is_for(ConnectionResetError())
        assert not retry.is_for(OSError())
        assert retry.is_for(whole)
        assert not retry.is_for(other)
    assert Retry(on=(ConnectionError, ValueError)).is_for(other)
    assert Retry(on=ExceptionGroup).is_for(other), "a class may be the group's own"
    asked: list[Exception] = []
    Retry(on=lambda error: asked.append(error) or True).is_for(whole)
    assert [type(error) for error in asked] == [
        ConnectionError,
        ConnectionResetError,
        ConnectionAbortedError,
    ], "a function is asked about what is in a group"


@given(
    st.floats(0, 2),
    st.floats(0, 5),
    st.floats(0.5, 30),
    st.lists(st.tuples(st.floats(0, 20), st.booleans()), max_size=80),
)
@settings(deadline=None)
def test_a_budget_bounds_retries_over_any_span(
    share: float, floor: float, window: float, steps: list[tuple[float, bool]]
):
    """Against a ledger of every first attempt and every retry, over each span of time."""
    account = Account(RetryBudget(share=share, floor=floor, window=window), 0.0)
    now, firsts, retries = 0.0, [0.0][:0], [0.0][:0]
    for elapsed, is_first in steps:
        now += elapsed
        if is_first:
            account.earn(now)
            firsts.append(now)
        elif account.spend(now):
            retries.append(now)
        reserve = floor * window
        assert account.level(now) <= reserve + share * len(firsts) + 1e-6
        for since in (0.0, *retries):
            made = sum(since <= at for at in retries)
            earned = share * sum(since - 4 * window <= at for at in firsts)
            faded = math.exp(-4) * share * len(firsts)  # of what is longer ago, so much is left
            assert made <= reserve + floor * (now - since) + earned + faded + 1e-6


def test_a_budget_fills_to_its_floor_and_fades_to_it():
    account = Account(RetryBudget(share=0.5, floor=1, window=10), 0.0)
    assert account.level(0) == account.level(100) == 10, "what is in hand at first, and stays"
    spent = 0
    while account.spend(100):
        spent += 1
    assert spent == 10
    assert account.level(101) == pytest.approx(1, abs=0.05), "about one a second"
    assert account.level(200) == pytest.approx(10, abs=0.01), "and never more than in the beginning"
    for _ in range(100):
        account.earn(200)
    assert account.level(200) == pytest.approx(60, abs=0.01)
    assert account.level(210) == pytest.approx(10 + 50 / math.e, abs=0.01)
    assert account.level(400) == pytest.approx(10, abs=0.01)


def test_ten_first_attempts_make_up_for_one_retry():
    account = Account(RetryBudget(share=0.1, floor=0), 0.0)
    assert not account.spend(0)
    for _ in range(10):
        account.earn(0)
    assert account.spend(0)
    assert not account.spend(0)


# -- actions ---------------------------------------------------------------------------------------


async def test_an_action_is_tried_again_after_growing_delays():
    flaky, hook = Flaky(*[ConnectionError()] * 3), RecordingHook()
    act = flaky_action(flaky, evenly(5, cap=3))
    async with no_leaks():
        result = await Application(act, hooks=[hook]).run({"n": 1})
    assert result.state["out"] == 4
    assert flaky.delays == [1, 2, 3]
    received = [(e.attempt, type(e.error), e.next_in, e.step) for e in hook.of(AttemptEnded)]
    assert received == [
        (1, ConnectionError, 1, "flaky"),
        (2, ConnectionError, 2, "flaky"),
        (3, ConnectionError, 3, "flaky"),
        (4, type(None), None, "flaky"),
    ]
    assert [type(e) for e in hook.events] == [
        *(RunStarted, StepStarted, *[AttemptEnded] * 4, StateUpdated, StepEnded, RunEnded)
    ]
    hook.assert_paired()


async def test_the_last_failure_is_raised_as_it_is_and_says_which_attempt_it_was():
    failures = [ConnectionError(n) for n in range(3)]
    flaky, hook = Flaky(*failures), RecordingHook()
    with pytest.raises(ConnectionError) as caught:
        await Application(flaky_action(flaky, evenly()), hooks=[hook]).run({"n": 1})
    assert caught.value is failures[2]
    assert caught.value.__cause__ is caught.value.__context__ is None
    assert "shoal: in attempt 3 of 3" in caught.value.__notes__
    assert [e.next_in for e in hook.of(AttemptEnded)] == [1, 2, None]
    assert [e.error for e in hook.of(AttemptEnded)] == failures


async def test_other_failures_are_not_tried_again():
    flaky, hook = Flaky(ConnectionError(), ValueError("no")), RecordingHook()
    with pytest.raises(ValueError, match="no") as caught:
        await Application(flaky_action(flaky, evenly()), hooks=[hook]).run({"n": 1})
    assert len(flaky.at) == 2
    assert not any("attempt" in note for note in caught.value.__notes__)
    assert [e.next_in for e in hook.of(AttemptEnded)] == [1, None]


async def test_attempts_of_actions_without_retry_are_not_published():
    flaky, hook = Flaky(), RecordingHook()
    await Application(flaky_action(flaky, None), hooks=[hook]).run({"n": 1})
    assert not hook.of(AttemptEnded)


async def test_a_retry_of_one_attempt_is_none():
    flaky = Flaky(ConnectionError())
    with pytest.raises(ConnectionError) as caught:
        await Application(flaky_action(flaky, Retry(1, on=ConnectionError))).run({"n": 1})
    assert len(flaky.at) == 1
    assert not any("attempt" in note for note in caught.value.__notes__)


async def test_a_context_knows_its_attempt():
    attempts: list[int] = []

    @action(writes=["out"], retry=evenly(4))
    async def act(context: Context) -> int:
        attempts.append(context.attempt)
        if len(attempts) < 3:
            raise ConnectionError
        return context.attempt

    assert (await Application(act).run()).state["out"] == 3
    assert attempts == [1, 2, 3]


async def test_each_step_counts_its_own_attempts():
    attempts: list[tuple[str, int]] = []

    def make(name: str) -> Any:
        @action(name=name, retry=evenly(3))
        async def act(context: Context) -> None:
            attempts.append((name, context.attempt))
            if context.attempt < 3:
                raise ConnectionError

        return act

    await Application(Graph.chain(make("a"), make("b"))).run()
    assert attempts == [(name, n) for name in "ab" for n in (1, 2, 3)]


async def test_no_attempt_begins_after_the_total():
    flaky = Flaky(*[ConnectionError()] * 9)
    app = Application(flaky_action(flaky, evenly(9, factor=1, total=3.5)))
    with pytest.raises(ConnectionError) as caught:
        await app.run({"n": 1})
    assert [at - flaky.at[0] for at in flaky.at] == [0, 1, 2, 3]
    assert any("3.5 s are over" in note for note in caught.value.__notes__)
    assert anyio.current_time() == flaky.at[-1], "nor is it waited for"


async def test_an_attempt_that_waits_for_a_slot_until_after_the_total_gives_up():
    flaky = Flaky(ConnectionError("first"))

    @action(reads=["n"], writes=["out"], name="flaky", retry=evenly(9, total=5))
    async def act(n: int) -> int:
        if n == 1:
            return flaky(n)
        await anyio.sleep(10)
        return n

    app = Application(act, limits=Limits(1))
    async with Runtime() as runtime, anyio.create_task_group() as tasks:

        async def other() -> None:
            await anyio.sleep(0.5)  # while the first waits for its second attempt
            await runtime.run(app, {"n": 2})

        tasks.start_soon(other)
        with pytest.raises(ConnectionError, match="first") as caught:
            await runtime.run(app, {"n": 1})
        assert any("5 s are over" in note for note in caught.value.__notes__)
    assert anyio.current_time() == 10.5
    assert len(flaky.at) == 1


async def test_an_attempt_that_comes_too_late_pays_nothing_and_no_policy_sees_it():
    ends: list[tuple[float, str]] = []
    starts: list[tuple[float, int]] = []

    class Seen:
        def after(self, n: float, changed_at: float, ended: Ended) -> float:
            ends.append((anyio.current_time(), repr(ended.error)))
            return n

    @action(reads=["n"], writes=["out"], retry=evenly(9, total=5, initial=3))
    async def act(n: int) -> int:
        starts.append((anyio.current_time(), n))
        if n == 1:
            raise ConnectionError
        await anyio.sleep(10)
        return n

    app = Application(act, limits=Limits(1, adapt=Seen()) & Limits(rate=Rate(1, per=2)))
    async with no_leaks(), Runtime() as runtime, anyio.create_task_group() as tasks:

        async def other(after: float, n: int) -> None:
            await anyio.sleep(after)  # while the first waits for its second attempt
            await runtime.run(app, {"n": n})

        tasks.start_soon(other, 0.5, 2)
        tasks.start_soon(other, 1.5, 3)
        with pytest.raises(ConnectionError):
            await runtime.run(app, {"n": 1})
    # The first run is granted its slot at 12, when its attempt would come too late.
    assert starts == [(0, 1), (2, 2), (12, 3)]
    assert ends == [(0, "ConnectionError()"), (12, "None"), (22, "None")]


async def test_a_function_that_cannot_decide_raises_its_own_error():
    def on(error: Exception) -> bool:
        raise LookupError("don't know")

    flaky = Flaky(ConnectionError())
    with pytest.raises(LookupError, match="don't know") as caught:
        await Application(flaky_action(flaky, Retry(on=on))).run({"n": 1})
    assert isinstance(caught.value.__context__, ConnectionError)


@pytest.mark.parametrize("of", ["action", "each"])
async def test_a_function_whose_answer_must_be_awaited_has_given_none(of: str):
    def on(error: Exception) -> object:
        return Answering()(error)

    flaky = Flaky(ConnectionError(), ConnectionError())
    retry = Retry(on=on)
    act = flaky_action(flaky, retry if of == "action" else None)
    each = Each(retry=retry) if of == "each" else None
    app = Application(fan_out(act, over="ns", item="n", name="f", each=each, on_error="collect"))
    result = await app.run({"ns": [1]})
    (failed,) = result.outcomes("f")
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, BadResult)
    assert "to be awaited" in str(failed.error)
    assert isinstance(failed.error.__context__, ConnectionError)
    assert len(flaky.calls) == 1


@pytest.mark.parametrize("ends", ["limit", "app"])
async def test_no_slot_is_held_between_attempts(ends: str):
    """With a limit of 1: the other attempt runs while the first waits for its second one."""
    order: list[str] = []
    limits = Limits(1)

    @action(reads=["n"], writes=["out"], retry=evenly(), limits=limits if ends == "limit" else None)
    async def act(n: int, context: Context) -> int:
        order.append(f"{n}.{context.attempt}")
        await anyio.sleep(0.1)
        if n == 0 and context.attempt == 1:
            raise ConnectionError
        return n

    many = fan_out(act, over="ns", item="n", into="outs")
    app = Application(many, limits=limits if ends == "app" else None)
    async with no_leaks():
        result = await app.run({"ns": [0, 1, 2]})
    assert result.state["outs"] == [0, 1, 2]
    assert order == ["0.1", "1.1", "2.1", "0.2"]


async def test_a_seeded_runtime_has_the_same_delays_again():
    async def delays(seed: int | None) -> list[float]:
        flaky = Flaky(*[ConnectionError()] * 5)
        async with Runtime(seed=seed) as runtime:
            act = flaky_action(flaky, Retry(9, on=ConnectionError))
            await runtime.run(Application(act), {"n": 1})
        return flaky.delays

    first = await delays(7)
    assert first == await delays(7)
    assert first != await delays(8)
    assert await delays(None) != await delays(None)


@pytest.mark.parametrize(("share", "retried"), [(0.0, 3), (0.5, 6)])
async def test_a_budget_is_shared_by_all_that_have_it(share: float, retried: int):
    """Six first attempts earn so much; three are in hand from the start."""
    budget = RetryBudget(share=share, floor=0.3, window=10)
    flaky, notes = Flaky(*[ConnectionError()] * 99), list[str]()
    act = flaky_action(flaky, evenly(9, budget=budget, initial=0))
    many = fan_out(act, over="ns", item="n", into="outs", on_error="collect", errors_into="errors")
    async with Runtime() as runtime:
        for n in range(3):  # also by other runs of the runtime
            result = await runtime.run(Application(many), {"ns": [n, n + 10]})
            for outcome in result.outcomes("outs"):
                assert isinstance(outcome, Failed)
                notes += outcome.error.__notes__
    assert len(flaky.at) == 6 + retried
    assert any("RetryBudget(share=" in note and "attempt 1" in note for note in notes)


async def test_budgets_that_are_equal_are_not_the_same():
    flaky = Flaky(*[ConnectionError()] * 99)
    for _ in range(2):
        budget = RetryBudget(share=0, floor=0.2)
        with pytest.raises(ConnectionError):
            await Application(flaky_action(flaky, evenly(9, budget=budget))).run({"n": 1})
    assert RetryBudget() != RetryBudget()
    assert len(flaky.at) == 2 * 3


async def test_a_budget_is_full_again_in_another_runtime():
    budget, flaky = RetryBudget(share=0, floor=0.2), Flaky(*[ConnectionError()] * 99)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            await Application(flaky_action(flaky, evenly(9, budget=budget))).run({"n": 1})
    assert len(flaky.at) == 2 * 3


# -- what ends an execution ------------------------------------------------------------------------


class Guard(Hook):
    def on_step_started(self, event: StepStarted) -> None:
        if event.step == "inner":
            raise ValueError("guarded")


async def test_what_ends_the_execution_is_not_tried_again():
    """Not even by who would try everything again, and hides what it is."""
    calls = 0

    @action(name="inner")
    async def inner() -> None: ...

    @action(name="outer", retry=evenly(9, on=Exception))
    async def outer(context: Context) -> None:
        nonlocal calls
        calls += 1
        try:
            async with context.fan_out(name="f") as group:
                group.start(inner)
        except Exception as error:
            raise ConnectionError from error

    many = fan_out(outer, over=lambda state: [1], reads=[], name="many", each=Each(retry=evenly(9)))
    with pytest.raises((HookFailed, ConnectionError)):
        await Application(outer, hooks=[Guard()]).run()
    assert calls == 1
    with pytest.raises((HookFailed, ExceptionGroup)):
        await Application(many, hooks=[Guard()]).run()
    assert calls == 2


async def test_a_store_that_failed_is_not_tried_again():
    calls = 0

    class Failing(NullStore):
        def save(self, batch: Batch) -> None:
            nonlocal calls
            if batch.step_completed == "first":
                calls += 1
                raise OSError("full")

    @action()
    async def first() -> None: ...

    children = Graph.chain(first, first.bind(name="second"))
    each = Each(retry=evenly(9, on=Exception))
    many = fan_out(children, over=lambda state: [1], reads=[], name="many", each=each)
    async with Runtime(store=Failing()) as runtime:
        with pytest.raises(StoreFailed):
            await runtime.run(Application(many))
    assert calls == 1


async def test_keyboard_interrupt_is_not_tried_again():
    calls = 0

    @action(retry=evenly(9, on=Exception))
    async def act() -> None:
        nonlocal calls
        calls += 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await Application(act).run()
    assert calls == 1


async def test_a_cancellation_is_not_tried_again():
    calls = 0

    @action(reads=["n"], retry=evenly(9, on=Exception))
    async def act(n: int) -> None:
        nonlocal calls
        calls += 1
        await anyio.sleep(10)

    each = Each(retry=evenly(9, on=Exception))
    app = Application(fan_out(act, over="ns", item="n", name="many", each=each))
    with anyio.move_on_after(1) as scope:
        await app.run({"ns": [1, 2]})
    assert scope.cancelled_caught
    assert calls == 2
    assert anyio.current_time() == 1


async def test_a_child_that_fails_while_being_cancelled_is_not_tried_again():
    calls = 0

    @action(retry=evenly(9, on=Exception))
    async def act() -> None:
        nonlocal calls
        calls += 1
        try:
            await anyio.sleep(10)
        finally:
            raise ConnectionError

    hook = RecordingHook()
    with anyio.move_on_after(1):
        await Application(act, hooks=[hook]).run()
    assert calls == 1
    assert [e.next_in for e in hook.of(AttemptEnded)] == [None]


async def test_what_a_step_refuses_is_tried_again_only_if_asked_for():
    @action(writes=["out"], retry=evenly())
    async def wrong() -> None: ...  # for a field there is a value: None

    @action(writes=["a", "b"], retry=evenly())
    async def incomplete() -> dict[str, int]:
        return {"a": 1}

    assert (await Application(wrong).run()).state["out"] is None
    with pytest.raises(Exception, match="returned no value for b"):
        await Application(incomplete).run()
    assert anyio.current_time() == 0


async def test_the_native_cancellation_an_attempt_leaves_does_not_hit_the_next():
    asyncio = pytest.importorskip("asyncio")
    if anyio.get_cancelled_exc_class() is not asyncio.CancelledError:
        pytest.skip("trio has no native cancellation")
    calls = 0

    @action(writes=["out"], retry=evenly())
    async def act() -> int:
        nonlocal calls
        calls += 1
        if calls == 1:
            asyncio.current_task().cancel()
            raise ConnectionError
        await anyio.sleep(1)
        return calls

    assert (await Application(act).run()).state["out"] == 2


# -- children --------------------------------------------------------------------------------------


async def test_a_child_goes_on_at_the_step_that_failed():
    hook, first = RecordingHook(), Flaky()
    second = Flaky(*[ConnectionError()] * 2)

    @action(reads=["n"], writes=["one"])
    async def one(n: int) -> int:
        return 10 * first(n)

    @action(reads=["one"], writes=["out"])
    async def two(one: int, context: Context) -> tuple[int, int]:
        second(one)
        return one, context.attempt

    each = Each(retry=evenly())
    many = fan_out(Graph.chain(one, two), over="ns", item="n", into="outs", take="out", each=each)
    app = Application(many, hooks=[hook])
    async with no_leaks():
        result = await app.run({"ns": [1]})
    assert result.state["outs"] == [(10, 3)]
    assert first.calls == [1], "no completed step runs again"
    assert second.delays == [1, 2]
    hook.assert_paired()
    outcome = hook.of(ChildEnded)[0].outcome
    assert isinstance(outcome, Done)
    assert outcome.attempts == 3
    child = [event for event in hook.events if event.depth == 1]
    assert [type(event).__name__ for event in child] == [
        *("RunStarted", "StepStarted", "AttemptEnded", "StateUpdated", "StepEnded"),
        *("StepStarted", "AttemptEnded", "AttemptEnded", "AttemptEnded", "StateUpdated"),
        *("StepEnded", "RunEnded"),
    ]
    attempts = [(e.step, e.attempt, e.next_in) for e in hook.of(AttemptEnded)]
    assert attempts == [("one", 1, None), ("two", 1, 1), ("two", 2, 2), ("two", 3, None)]


async def test_a_child_that_keeps_failing_fails_with_the_last_failure():
    flaky, hook = Flaky(*[ConnectionError(n) for n in range(9)]), RecordingHook()
    each = Each(retry=evenly())
    many = fan_out(
        flaky_action(flaky, None), over="ns", item="n", into="outs", each=each,
        on_error="collect", errors_into="errors",
    )  # fmt: skip
    result = await Application(many, hooks=[hook]).run({"ns": [5]})
    (outcome,) = result.outcomes("outs")
    assert isinstance(outcome, Failed)
    assert outcome.attempts == 3
    assert outcome.elapsed == 3
    assert outcome.error.args == (2,)
    assert "shoal: in attempt 3 of 3" in outcome.error.__notes__
    assert [e.next_in for e in hook.of(AttemptEnded)] == [1, 2, None]
    hook.assert_paired()


async def test_attempts_of_actions_and_of_children_multiply():
    flaky, hook = Flaky(*[ConnectionError()] * 5), RecordingHook()
    each = Each(retry=evenly(2, initial=10, cap=10))
    act = flaky_action(flaky, evenly(3))
    many = fan_out(act, over="ns", item="n", into="outs", each=each)
    await Application(many, hooks=[hook]).run({"ns": [5]})
    assert flaky.delays == [1, 2, 10, 1, 2]
    assert [(e.attempt, e.next_in) for e in hook.of(AttemptEnded)] == [
        *((1, 1), (2, 2), (3, 10), (4, 1), (5, 2), (6, None))
    ]
    assert hook.of(ChildEnded)[0].outcome.attempts == 6
    hook.assert_paired()


async def test_children_without_trouble_took_one_attempt():
    hook = RecordingHook()
    many = fan_out(flaky_action(Flaky(), None), over="ns", item="n", into="outs")
    await Application(many, hooks=[hook]).run({"ns": [5], "outs": []})
    assert hook.of(ChildEnded)[0].outcome.attempts == 1


async def test_a_condition_that_failed_is_asked_again_and_its_act_is_not():
    flaky, asked = Flaky(), 0

    def ready(out: int) -> bool:
        nonlocal asked
        asked += 1
        if asked < 3:
            raise ConnectionError
        return True

    @action(reads=["out"], writes=["end"])
    async def end(out: int, context: Context) -> tuple[int, int]:
        return out, context.attempt

    act = flaky_action(flaky, None)
    graph = Graph((act, end, when(ready)), (end, act, when(end=0)), entry=act)
    many = fan_out(graph, over="ns", item="n", into="ends", take="end", each=Each(retry=evenly()))
    hook = RecordingHook()
    with pytest.raises(ExceptionGroup) as caught:  # the end has an edge that isn't true
        await Application(many, hooks=[hook]).run({"ns": [1]})
    assert caught.group_contains(NoTransition)
    assert (asked, len(flaky.at)) == (3, 1)
    assert hook.of(StateUpdated)[2].update.step == "end"
    hook.assert_paired()


async def test_an_endless_loop_does_not_begin_anew():
    turns = 0

    @action()
    async def turn() -> None:
        nonlocal turns
        turns += 1

    @action()
    async def before() -> None:
        assert not turns

    loop = Graph((before, turn), (turn, turn), entry=before)
    each = Each(retry=evenly(2, on=TooManySteps))
    many = fan_out(loop, over=lambda state: [1], reads=[], name="many", each=each)
    with pytest.raises(ExceptionGroup):
        await Application(many, max_steps=10).run()
    assert turns == 9 + 10


@pytest.mark.parametrize("matches", [True, False])
async def test_groups_are_looked_into(matches: bool):
    """An inner fan-out raises a group: tried again if all in it are such."""
    calls: list[int] = []

    @action(reads=["n"], writes=["out"])
    async def inner(n: int) -> int:
        calls.append(n)
        if calls.count(n) == 1 and n < 2:
            await anyio.sleep(1)
            raise ConnectionError if n == 0 or matches else ValueError
        return n

    below = fan_out(inner, over="below", item="n", into="found", name="below")

    @action(reads=["item"], writes=["below"])
    async def spread(item: int) -> list[int]:
        return [0, 1, 2]

    graph = Graph.chain(spread, below)
    each = Each(retry=evenly(on=ConnectionError))
    many = fan_out(graph, over="ns", into="outs", take="found", each=each, name="many")
    app = Application(many)
    if matches:
        result = await app.run({"ns": [7]})
        assert result.state.to_plain()["outs"] == [[0, 1, 2]]
        assert sorted(calls) == [0, 0, 1, 1, 2], "whoever was done is done"
    else:
        with pytest.raises(ExceptionGroup) as caught:
            await app.run({"ns": [7]})
        assert caught.group_contains(ValueError, depth=2)
        assert sorted(calls) == [0, 1, 2]


# -- where steps that consist of runs go on --------------------------------------------------------


class Counting(MapStates):
    """As ``below``, as a class, with or without keys, from a generator that may wait."""

    reads = ("elements",)
    writes = ("sum", "order")
    limits = Limits(2)
    keyed = False

    def action(self, state: State, inputs: Any) -> Any:
        return inputs["act"]

    async def states(self, state: State, inputs: Any) -> AsyncIterator[Any]:
        for n in state["elements"]:
            await anyio.sleep(0.01)
            yield {"n": n}

    def key(self, state: Any) -> Any:
        return state["n"] if self.keyed else None

    def reduce(self, state: State, outcome: Outcome) -> State:
        return fold(state, outcome)


class CountingKeyed(Counting):
    keyed = True


def fold(state: State, outcome: Any) -> State:
    out = outcome.state["out"]
    return state.increment(sum=out).append(order=out)


def grown(state: State, outcome: Any) -> list[int]:
    out = outcome.state["out"]
    return [out + 10] if out < 30 else []


async def elements_later(state: State) -> AsyncIterator[int]:
    for n in state["elements"]:
        await anyio.sleep(0.01)
        yield n


def generated(state: State) -> Any:
    yield from state["elements"]


SHAPES: dict[str, Callable[[Any], Any]] = {
    "positions": lambda act: fan_out(act, over="elements", item="n", into="found", take="out"),
    "keys": lambda act: fan_out(act, over="elements", item="n", key=str, into="found", take="out"),
    "reduced": lambda act: fan_out(
        act, over="elements", item="n", reduce=fold, writes=["sum", "order"], name="f"
    ),
    "a generator": lambda act: fan_out(
        act, over=generated, reads=["elements"], item="n", reduce=fold, writes=["sum", "order"],
        name="f",
    ),
    "in turns": lambda act: fan_out(
        act, over="elements", item="n", reduce=fold, writes=["sum", "order"], name="f",
        limits=Limits(1),
    ),
    "async": lambda act: fan_out(
        act, over=elements_later, reads=["elements"], item="n", into="found", take="out", name="f",
        limits=Limits(2),
    ),
    "async keys": lambda act: fan_out(
        act, over=elements_later, reads=["elements"], item="n", key=int, name="f", reduce=fold,
        writes=["sum", "order"], limits=Limits(2),
    ),
    "so many": lambda act: fan_out(
        act, over="elements", item="n", key=int, into="found", take="out", at_most=4,
        limits=Limits(2),
    ),
    "async, so many": lambda act: fan_out(
        act, over=elements_later, reads=["elements"], item="n", into="found", take="out", at_most=4,
        limits=Limits(2),
    ),
    "a frontier": lambda act: fan_out(
        act, over="elements", item="n", key=int, grow=grown, into="found", take="out",
        limits=Limits(3),
    ),
    "a frontier by position": lambda act: fan_out(
        act, over="elements", item="n", grow=grown, reduce=fold, writes=["sum", "order"], name="f",
        limits=Limits(2),
    ),
    "two acts": lambda act: fan_out(
        [act, act.bind(name="other")], over="elements", item="n", key=int, into="found", take="out",
        limits=Limits(3),
    ),
    "tasks": lambda act: Counting(),
    "tasks with keys": lambda act: CountingKeyed(),
}  # fmt: skip


class Worker:
    """The act of an inner fan-out's children: one step that always succeeds, one that may fail."""

    def __init__(self, fails: Callable[[str, int, int], bool]) -> None:
        self.prepared: list[int] = []
        self.worked: list[tuple[str, int]] = []  # to their ends

        @action(reads=["n"], writes=["ready"])
        async def prepare(n: int) -> int:
            await anyio.sleep(0.1)
            self.prepared.append(n)
            return n

        @action(reads=["ready"], writes=["out"], limits=None)
        async def work(ready: int, context: Context) -> int:
            await anyio.sleep(0.1 * (ready % 3))
            if fails(context.path.act, ready, context.attempt):
                raise ConnectionError(ready)
            self.worked.append((context.path.act, ready))
            return ready

        self.graph = Graph.chain(prepare, work, name="act")


def nested(worker: Worker, shape: str, each: Each | None = None) -> Application[dict[str, Any]]:
    """A fan-out in a child of a fan-out."""

    @action(reads=["item"], writes=["elements"])
    async def spread(item: int) -> list[int]:
        return list(range(6))

    inner = SHAPES[shape](worker.graph)
    child = Graph.chain(spread, inner, name="child")
    take = ["order", "sum"] if "sum" in inner.writes else "found"
    outer = fan_out(child, over="ns", into="outs", take=take, each=each)
    return Application(outer)


async def run_nested(
    app: Application[dict[str, Any]], worker: Worker, store: MemoryStore | None = None
) -> Any:
    inputs = {"act": worker.graph} if app.graph.takes_more else None
    async with Runtime(store=store) as runtime:
        result = await runtime.run(app, {"ns": [1]}, inputs=inputs)
    return result.state.to_plain()["outs"][0]


@pytest.mark.sweep
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("failing", "stored"),
    [
        ((0,), False),
        ((2,), False),
        ((5,), False),
        ((1, 3), False),
        ((0, 1, 2, 3, 4, 5), False),
        ((1, 3), True),
    ],
)
async def test_a_fan_out_in_a_retried_child_goes_on_where_it_failed(
    shape: str, failing: tuple[int, ...], stored: bool
):
    """Whatever is done stays, is applied once, and never runs again."""
    whole = Worker(lambda act, n, attempt: False)
    expected = await run_nested(nested(whole, shape), whole)

    failed: set[int] = set()

    def fails(act: str, n: int, attempt: int) -> bool:
        first = n in failing and n not in failed
        failed.add(n)
        return first

    worker = Worker(fails)
    app = nested(worker, shape, Each(retry=evenly(9)))
    async with no_leaks():
        found = await run_nested(app, worker, MemoryStore() if stored else None)
    if "order" in found:
        assert sorted(found["order"]) == sorted(expected["order"])
        assert found["sum"] == expected["sum"]
    else:
        assert found == expected
    assert sorted(worker.worked) == sorted(whole.worked), "each worked once"


async def test_children_of_a_retried_fan_out_go_on_at_their_own_failed_step():
    """What was cancelled since a sibling failed isn't prepared again either."""
    attempts: dict[int, int] = {}

    def fails(act: str, n: int, attempt: int) -> bool:
        attempts[n] = attempt
        return n == 0 and attempt == 1

    worker = Worker(fails)
    app = nested(worker, "keys", Each(retry=evenly()))
    await run_nested(app, worker)
    assert sorted(worker.prepared) == list(range(6))
    assert attempts[0] == attempts[1] == 2, "1 was under way when 0 failed"


async def test_events_of_a_retried_fan_out_are_paired_and_each_result_is_applied_once():
    worker = Worker(lambda act, n, attempt: n in (0, 4) and attempt == 1)
    hook = RecordingHook()
    app = nested(worker, "reduced", Each(retry=evenly()))
    app = Application(app.graph, hooks=[hook])
    result = await run_nested(app, worker)
    assert result["sum"] == sum(range(6))
    hook.assert_paired()
    applied = [e.outcome.key for e in hook.of(StateUpdated) if e.outcome and e.path.depth == 1]
    assert sorted(applied) == list(range(6))
    numbers = [e.update.number for e in hook.of(StateUpdated) if e.path.depth == 1]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_what_could_not_be_reduced_is_reduced_in_the_next_attempt_and_not_run_again():
    reduced: list[int] = []

    def reduce(state: State, outcome: Any) -> State:
        reduced.append(outcome.key)
        if reduced.count(1) == 1 and outcome.key == 1:
            raise ConnectionError("in reduce")
        return state.increment(sum=outcome.state["out"])

    worker = Worker(lambda act, n, attempt: False)

    @action(reads=["item"], writes=["elements"])
    async def spread(item: int) -> list[int]:
        return [0, 3, 1, 4]

    inner = fan_out(
        worker.graph, over="elements", item="n", key=int, reduce=reduce, writes=["sum"], name="f"
    )
    child = Graph.chain(spread, inner, name="child")
    outer = fan_out(child, over="ns", into="outs", take="sum", each=Each(retry=evenly()))
    hook = RecordingHook()
    result = await Application(outer, hooks=[hook]).run({"ns": [1]})
    assert result.state["outs"] == [8]
    assert sorted(n for _, n in worker.worked) == [0, 1, 3, 4]
    assert sorted(reduced) == [0, 1, 1, 3, 4]
    hook.assert_paired()


@pytest.mark.parametrize("ends", ["a failure", "a timeout"])
@pytest.mark.parametrize("limits", [Limits(2), Limits(5), Limits(2) & Limits(rate=Rate(100))])
@pytest.mark.parametrize("waits", ["each", "action", "later"])
async def test_a_retried_child_waits_for_no_place_of_a_group_that_is_gone(
    waits: str, limits: Limits, ends: str
):
    """It waited for its next attempt when its group ended; a new group lives it now."""
    tries = Counter[str]()
    retry = Retry(3, on=ConnectionError, initial=0.05, jitter=0)

    @action(reads=["x"], writes=["y"], retry=retry if waits == "action" else None)
    async def work(x: str) -> str:
        tries[x] += 1
        if x == "A" and tries[x] == 1:
            raise RetryLater(0.05) if waits == "later" else ConnectionError("once")
        if x == "B" and tries[x] == 1:
            await anyio.sleep(0.01 if ends == "a failure" else 60)
            raise ValueError("once")
        await anyio.sleep(0.001)
        return x

    inner = fan_out(
        work, over=lambda state: ["A", "B"], item="x", key=str, reads=[], into="ys", take="y",
        limits=limits, each=Each(retry=retry) if waits == "each" else None,
        timeout=0.03 if ends == "a timeout" else None,
    )  # fmt: skip
    outer = fan_out(
        inner, over=lambda state: ["o"], item="o", key=str, reads=[], into="all", take="ys",
        each=Each(retry=Retry(3, on=Exception, initial=0.001)),
    )  # fmt: skip
    async with no_leaks():
        result = await Application(outer).run({})
    assert result.state.to_plain()["all"] == {"o": {"A": "A", "B": "B"}}
    assert tries == {"A": 2, "B": 2}


async def test_failures_that_a_step_has_collected_stay_collected():
    """They are part of the state already; only what ended the step is tried again."""
    worker = Worker(lambda act, n, attempt: n in (0, 1))
    calls = 0

    def reduce(state: State, outcome: Any) -> State:
        nonlocal calls
        if outcome.key == 5:
            calls += 1
            if calls == 1:
                raise ConnectionError
        return state.append(seen=outcome.key)

    @action(reads=["item"], writes=["elements"])
    async def spread(item: int) -> list[int]:
        return [0, 1, 2, 5]

    inner = fan_out(
        worker.graph, over="elements", item="n", key=int, reduce=reduce, writes=["seen"], name="f",
        on_error="collect",
    )  # fmt: skip
    child = Graph.chain(spread, inner, name="child")
    outer = fan_out(child, over="ns", into="outs", take="seen", each=Each(retry=evenly()))
    result = await Application(outer).run({"ns": [1]})
    assert sorted(result.state["outs"][0]) == [0, 1, 2, 5]


async def test_failures_that_a_step_has_ignored_are_not_tried_again():
    tried: list[int] = []
    calls = 0

    def fails(act: str, n: int, attempt: int) -> bool:
        tried.append(n)
        return n in (0, 1)

    worker = Worker(fails)

    def reduce(state: State, outcome: Any) -> State:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise ConnectionError
        return state.append(seen=outcome.key)

    @action(reads=["item"], writes=["elements"])
    async def spread(item: int) -> list[int]:
        return [0, 1, 2, 3, 4, 5]

    inner = fan_out(
        worker.graph, over="elements", item="n", key=int, reduce=reduce, writes=["seen"], name="f",
        on_error="ignore", limits=Limits(1),
    )  # fmt: skip
    child = Graph.chain(spread, inner, name="child")
    outer = fan_out(child, over="ns", into="outs", take="seen", each=Each(retry=evenly()))
    hook = RecordingHook()
    result = await Application(outer, hooks=[hook]).run({"ns": [1]})
    assert result.state["outs"] == [[2, 3, 4, 5]]
    assert tried == [0, 1, 2, 3, 4, 5]
    hook.assert_paired()


async def test_no_more_is_pulled_than_what_is_left_of_at_most():
    pulled: list[int] = []

    async def elements(state: State) -> AsyncIterator[int]:
        for n in range(100):
            await anyio.sleep(0.01)
            pulled.append(n)
            yield n

    worker = Worker(lambda act, n, attempt: n == 1 and attempt == 1)
    inner = fan_out(
        worker.graph, over=elements, reads=[], item="n", at_most=4, into="found", take="out",
        limits=Limits(2),
    )  # fmt: skip
    outer = fan_out(
        Graph.chain(inner, name="child"), over="ns", into="outs", take="found",
        each=Each(retry=evenly()),
    )  # fmt: skip
    result = await Application(outer).run({"ns": [1]})
    assert result.state.to_plain()["outs"] == [[0, 1, 2, 3]]
    assert pulled[-4:] == [0, 1, 2, 3]
    assert max(pulled) == 3


async def test_a_source_that_failed_is_asked_anew():
    """What it gave before is known; a second element with the same key isn't taken for it."""
    opened = 0

    def elements(state: State) -> Any:
        nonlocal opened
        opened += 1
        for n in range(6):
            if opened < 3 and n == 2 * opened:
                raise ConnectionError("in over")
            yield n

    worker = Worker(lambda act, n, attempt: False)
    inner = fan_out(
        worker.graph, over=elements, reads=[], item="n", reduce=fold, writes=["sum", "order"],
        name="f", limits=Limits(1),
    )  # fmt: skip
    child = Graph.chain(inner, name="child")
    outer = fan_out(child, over="ns", into="outs", take="order", each=Each(retry=evenly()))
    result = await Application(outer).run({"ns": [1]})
    assert result.state.to_plain()["outs"] == [list(range(6))]
    assert opened == 3
    assert len(worker.worked) == 6


async def test_a_graph_as_a_node_of_a_retried_child_goes_on_where_it_failed():
    first, second, hook = Flaky(), Flaky(*[ConnectionError()] * 2), RecordingHook()

    @action(reads=["n"], writes=["one"])
    async def one(n: int) -> int:
        return first(n)

    @action(reads=["one"], writes=["out"])
    async def two(one: int) -> int:
        return second(one)

    deep = Graph.chain(Graph.chain(one, two, name="inmost"), name="inner")
    many = fan_out(
        Graph.chain(deep, name="child"), over="ns", item="n", into="outs", take="out",
        each=Each(retry=evenly()),
    )  # fmt: skip
    result = await Application(many, hooks=[hook]).run({"ns": [4]})
    assert result.state["outs"] == [3]
    assert len(first.at) == 1
    assert second.delays == [1, 2]
    hook.assert_paired()


async def test_three_levels_down_only_what_failed_runs_again():
    worked: list[int] = []
    failed: set[int] = set()

    @action(reads=["leaf"], writes=["out"])
    async def work(leaf: int) -> int:
        await anyio.sleep(0.1)
        if leaf % 4 == 1 and leaf not in failed:
            failed.add(leaf)
            raise ConnectionError(leaf)
        worked.append(leaf)
        return leaf

    leaves = fan_out(
        work, over=lambda s: range(4 * s["twig"], 4 * s["twig"] + 4), reads=["twig"], item="leaf",
        reduce=fold, writes=["sum", "order"], name="leaves",
    )  # fmt: skip
    twigs = fan_out(
        Graph.chain(leaves, name="a_twig"), over=lambda s: range(2 * s["n"], 2 * s["n"] + 2),
        reads=["n"], item="twig", key=int, into="twigs", take="sum",
    )  # fmt: skip
    tree = fan_out(
        Graph.chain(twigs, name="a_branch"), over="ns", item="n", into="outs", take="twigs",
        each=Each(retry=evenly(9)),
    )  # fmt: skip
    async with no_leaks():
        result = await Application(tree).run({"ns": [0, 1]})
    assert result.state.data["outs"] == [{0: 6, 1: 22}, {2: 38, 3: 54}]
    assert sorted(worked) == list(range(16))


async def test_an_actions_own_children_are_retried_too():
    flaky, outcomes = Flaky(*[ConnectionError()] * 2), list[Outcome]()

    @action(writes=["out"])
    async def act(context: Context) -> int:
        async with context.fan_out(name="f", each=Each(retry=evenly())) as group:
            group.start(flaky_action(flaky, None), {"n": 1})
            outcomes.extend([outcome async for outcome in group])
        return len(outcomes)

    async with no_leaks():
        await Application(act).run()
    assert [(type(outcome), outcome.attempts) for outcome in outcomes] == [(Done, 3)]
    assert flaky.delays == [1, 2]


@pytest.mark.parametrize("level", ["action", "child"])
@pytest.mark.parametrize("stored", [False, True], ids=["", "stored"])
async def test_an_actions_own_children_that_are_recorded_are_not_run_again(
    level: str, *, stored: bool
):
    """Its body runs again; what the store knows of its children, it is given."""
    worked: list[int] = []
    retry = evenly()

    @action(reads=["n"], writes=["out"])
    async def work(n: int, context: Context) -> int:
        if n == 2 and worked.count(2) < 1:
            worked.append(n)
            raise ConnectionError
        worked.append(n)
        return n

    @action(reads=["x"], writes=["sum"], retry=retry if level == "action" else None)
    async def act(x: int, context: Context) -> int:
        async with context.fan_out(name="f", limits=Limits(1)) as group:
            group.start_each(work, over=[1, 2, 3], item="n", key=int)
            values = [outcome.value async for outcome in group if isinstance(outcome, Done)]
        if len(values) < 3:
            raise ConnectionError
        return sum(values)

    each = Each(retry=retry) if level == "child" else None
    many = fan_out(act, over="xs", item="x", into="outs", take="sum", each=each)
    hook = RecordingHook()
    async with Runtime(store=MemoryStore() if stored else None) as runtime:
        result = await runtime.run(Application(many, hooks=[hook]), {"xs": [0]})
    assert result.state["outs"] == [6]
    assert worked == ([1, 2, 3, 2] if stored else [1, 2, 3, 1, 2, 3])
    hook.assert_paired()


# -- places in flight ------------------------------------------------------------------------------


async def test_a_child_that_waits_for_its_next_attempt_gives_its_place_in_flight_to_another():
    order: list[str] = []

    @action(reads=["n"], writes=["out"])
    async def act(n: int, context: Context) -> int:
        order.append(f"{n}.{context.attempt}")
        await anyio.sleep(0.4)
        if n == 0 and context.attempt == 1:
            raise ConnectionError
        return n

    many = fan_out(
        act, over="ns", item="n", into="outs", each=Each(retry=evenly()), limits=Limits(1)
    )
    async with no_leaks():
        result = await Application(many).run({"ns": range(5)})
    assert result.state["outs"] == list(range(5))
    # It comes back after a second, ahead of 4, when 3 is under way.
    assert order == ["0.1", "1.1", "2.1", "3.1", "0.2", "4.1"]


async def test_a_child_that_is_cancelled_while_it_waits_for_its_place_again_takes_no_other_place():
    running = most = 0

    @action(reads=["n"], writes=["out"])
    async def act(n: int) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await anyio.sleep(n)
            if n == 1:
                raise ConnectionError
        finally:
            running -= 1
        return n

    each = Each(retry=evenly(), timeout=7)
    many = fan_out(
        act, over="ns", item="n", into="outs", each=each, limits=Limits(1), on_error="ignore"
    )
    async with no_leaks():
        result = await Application(many).run({"ns": [1, 6.5, 2, 2, 2]})
    assert result.outcomes("outs").failed == 1
    assert most == 1


@pytest.mark.parametrize("n", [1, 3, 40])
async def test_never_more_are_in_flight_and_only_so_many_wait_aside(n: int):
    running = most = under_way = most_under_way = 0

    @action(reads=["n"], writes=["out"])
    async def act(n: int, context: Context) -> int:
        nonlocal running, most, under_way, most_under_way
        running += 1
        most = max(most, running)
        if context.attempt == 1:
            under_way += 1
            most_under_way = max(most_under_way, under_way)
        await anyio.sleep(0.01)
        running -= 1
        if context.attempt == 1:
            raise ConnectionError
        under_way -= 1
        return n

    each = Each(retry=evenly(initial=1000, cap=1000))
    many = fan_out(act, over="ns", item="n", into="outs", each=each, limits=Limits(n))
    async with no_leaks():
        result = await Application(many).run({"ns": range(500)})
    assert result.state["outs"] == list(range(500))
    assert most == n
    aside = max(64, 4 * n)
    assert aside <= most_under_way <= aside + n


# -- cancelled everywhere --------------------------------------------------------------------------


def retried() -> Graph:
    """Everything that is tried again at once: actions, children, fan-outs in them."""
    failed: set[object] = set()

    def fail_first(what: object) -> None:
        if what not in failed:
            failed.add(what)
            raise ConnectionError(what)

    @action(reads=["leaf"], writes=["out"], retry=evenly(initial=0.5))
    async def work(leaf: int) -> int:
        await anyio.sleep(0.25)
        fail_first(("leaf", leaf))
        return leaf

    @action(reads=["out"], writes=["more"], limits=Limits(1))
    async def more(out: int) -> int:
        try:
            await anyio.sleep(0.25)
            fail_first(("more", out))
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.25)
        return 10 * out

    leaves = fan_out(
        Graph.chain(work, more, name="both"), over=lambda s: [2 * s["n"], 2 * s["n"] + 1],
        reads=["n"], item="leaf", reduce=fold_more, writes=["sum"], name="leaves",
    )  # fmt: skip
    tree = fan_out(
        Graph.chain(leaves, name="tree"), over="ns", item="n", into="outs", take="sum",
        each=Each(retry=evenly(9), timeout=60), limits=Limits(1), timeout=600,
    )  # fmt: skip
    return Graph.chain(tree)


def fold_more(state: State, outcome: Any) -> State:
    return state.increment(sum=outcome.state["more"])


@every_way
@pytest.mark.parametrize("seed", [None, 3])
def test_retries_cancelled_everywhere(how: tuple[Backend, Any], seed: int | None):
    async def scenario(attempt: Attempt) -> None:
        hook = RecordingHook()
        async with Runtime() as runtime:
            app = Application(retried(), hooks=[hook])
            ending = await attempt(runtime.run, app, {"ns": [0, 1]})
            limiters = runtime._admission.limiters.by_owner.values()  # pyright: ignore[reportPrivateUsage]
            found = [one for named in limiters for it in named.values() for one in it.statistics()]
            assert not any(one.in_use for one in found)
        hook.assert_paired()
        if not ending.cancelled:
            assert ending.result is not None
            assert ending.result.state["outs"] == [10, 50]
        assert len([e for e in hook.of(RunEnded) if e.depth == 0]) == len(
            [e for e in hook.of(RunStarted) if e.depth == 0]
        )

    backend, kind = how
    limit = None if seed is None else 30
    assert cancel_everywhere(scenario, backend=backend, how=kind, seed=seed, limit=limit) > 20


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("how", ["dies", "fails"])
def test_retries_while_the_store_goes_wrong(backend: Backend, how: Literal["dies", "fails"]):
    """Before, between and after attempts: in the end each result is applied once."""

    async def scenario(store: Store) -> object:
        app = Application(retried(), name="app", store=store)
        return (await app.run({"ns": [0, 1]}, id="r")).state.to_plain()["outs"]

    def check(recovery: Recovery[object]) -> None:
        assert recovery.result == recovery.clean == [10, 50]

    assert crash_everywhere(scenario, check, how=how, backend=backend, limit=40) > 20


@every_way
def test_a_retry_that_would_come_after_the_timeout_cancelled_everywhere(how: tuple[Backend, Any]):
    async def scenario(attempt: Attempt) -> None:
        hook, flaky = RecordingHook(), Flaky(*[ConnectionError()] * 99)
        many = fan_out(
            flaky_action(flaky, None), over="ns", item="n", into="outs", limits=Limits(1),
            each=Each(retry=evenly(9, initial=2, cap=60), timeout=5),
            errors_into="errors", on_error="collect",
        )  # fmt: skip
        ending = await attempt(Application(many, hooks=[hook]).run, {"ns": [1, 2]})
        hook.assert_paired()
        if not ending.cancelled:
            assert ending.result is not None
            for outcome in ending.result.outcomes("outs"):
                assert isinstance(outcome, Failed)
                assert isinstance(outcome.error, StepTimeout)
                assert isinstance(outcome.error.__cause__, ConnectionError)
                assert outcome.attempts == 2
                assert outcome.elapsed == 2

    backend, kind = how
    assert cancel_everywhere(scenario, backend=backend, how=kind) > 10
