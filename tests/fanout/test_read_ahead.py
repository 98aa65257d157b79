"""How far a source is read ahead, ``fan_out(ahead=)``: judged by what was pulled and not ended."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any, Literal

import anyio
import pytest

from shoal import (
    Application,
    Context,
    Each,
    Limits,
    MapStates,
    Rate,
    Retry,
    RetryLater,
    Runtime,
    SharedRate,
    State,
    action,
    fan_out,
)
from shoal.errors import DefinitionError
from shoal.rates import MemoryRates
from shoal.testing import Attempt, cancel_everywhere, no_leaks

pytestmark = pytest.mark.anyio

PLACES = 4


class Pulled:
    """Elements of a source, and how many of them were pulled and have not ended at each moment."""

    def __init__(self, elements: int = 40, *, seconds: float = 0) -> None:
        self.elements = elements
        self.seconds = seconds
        self.pulled = self.started = self.ended = 0
        self.most_open = self.most_unstarted = 0
        self.closed = 0

    def next(self) -> int:
        self.pulled += 1
        self.most_open = max(self.most_open, self.pulled - self.ended)
        return self.pulled - 1

    def begin_again(self) -> None:
        self.pulled = self.started = self.ended = self.most_open = self.most_unstarted = 0

    @asynccontextmanager
    async def watched(self) -> AsyncGenerator[None]:
        """Count what has not started whenever nothing happens: between the ticks of the clock."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch)
            yield
            tasks.cancel_scope.cancel()

    async def _watch(self) -> None:
        await anyio.sleep(0.0123)
        while True:
            self.most_unstarted = max(self.most_unstarted, self.pulled - self.started)
            await anyio.sleep(0.1)

    def iterable(self, _state: object = None) -> Iterator[int]:
        try:
            while self.pulled < self.elements:
                yield self.next()
        finally:
            self.closed += 1

    async def generator(self, _state: object = None) -> AsyncIterator[int]:
        try:
            while self.pulled < self.elements:
                await anyio.sleep(self.seconds)
                yield self.next()
        finally:
            self.closed += 1

    def act(self, seconds: float = 1, **options: Any) -> Any:
        @action(reads=["n"], writes=["out"], name="act", **options)
        async def act(n: int) -> int:
            self.started += 1
            await anyio.sleep(seconds)
            self.ended += 1
            return n

        return act

    def failing(self, *, later: bool = False) -> Any:
        """An act whose first attempt of each element fails, or asks to come later."""
        seen = set[int]()

        @action(reads=["n"], writes=["out"], name="act")
        async def act(n: int) -> int:
            if n not in seen:
                seen.add(n)
                self.started += 1
                if later:
                    raise RetryLater(20)
                raise ConnectionError(n)
            await anyio.sleep(1)
            self.ended += 1
            return n

        return act


def many(source: Pulled, act: Any, over: str, limits: Limits, **options: Any) -> Any:
    return fan_out(
        act, over=getattr(source, over), reads=[], item="n", into="out", limits=limits, **options
    )


both = pytest.mark.parametrize("over", ["iterable", "generator"])


# -- the default -----------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("where", ["fan-out", "action", "action slots", "runtime"])
async def test_by_default_two_elements_wait_for_a_limit_that_all_share(where: str, over: str):
    source, limits = Pulled(), Limits(rate=Rate(1, burst=1))
    options: dict[str, Any] = {}
    if where.startswith("action"):
        options = {"limits": limits if where == "action" else Limits(1)}
    own = Limits(PLACES) & limits if where == "fan-out" else Limits(PLACES)
    step = many(source, source.act(0.5, **options), over, own)
    shared = limits if where == "runtime" else None
    async with no_leaks(), Runtime(limits=shared) as runtime, source.watched():
        await runtime.run(Application(step))
    assert source.ended == 40
    assert source.most_unstarted == 2
    assert source.most_open <= PLACES + 2
    assert source.closed == 1


@both
async def test_what_has_a_place_is_all_that_is_pulled_where_nothing_else_limits(over: str):
    source = Pulled()
    async with source.watched():
        await Application(many(source, source.act(), over, Limits(PLACES))).run()
    assert source.most_open == PLACES
    assert source.most_unstarted == 0


@pytest.mark.parametrize("keyed", ["fan-out", "action"])
async def test_by_default_keys_are_looked_for_far_ahead(keyed: str):
    """The number of the documentation: the greater of 64 and four times the limit."""
    source = Pulled(1000)
    by_key = Limits(1, by=lambda state: min(state["n"], 0))
    act = source.act(limits=by_key if keyed == "action" else None)
    for places, ahead in ((2, 64), (20, 80)):
        source.begin_again()
        limits = Limits(places) & by_key if keyed == "fan-out" else Limits(places)
        with anyio.move_on_after(10):
            async with source.watched():
                await Application(many(source, act, "iterable", limits)).run()
        assert source.most_unstarted == ahead


async def test_by_default_several_acts_are_looked_for_far_ahead():
    """An act that waits for its own limit delays the other one by nothing."""
    source, began = Pulled(20), list[float]()

    @action(reads=["n"], writes=["out"], name="slow", limits=Limits(rate=Rate(1, burst=1)))
    async def slow(n: int) -> int:
        return n

    @action(reads=["n"], writes=["out"], name="quick")
    async def quick(n: int) -> int:
        began.append(anyio.current_time())
        return n

    start = anyio.current_time()
    await Application(many(source, [slow, quick], "iterable", Limits(4), take="out")).run()
    assert max(began) == start


async def test_tasks_are_looked_for_far_ahead_unless_all_have_one_act():
    source = Pulled()

    class Squares(MapStates):
        reads = ()
        writes = ("sum",)
        limits = Limits(PLACES) & Limits(rate=Rate(1, burst=1))

        def action(self, state: State, inputs: Any) -> Any:
            return act

        def states(self, state: State, inputs: Any) -> Any:
            return ({"n": n} for n in source.iterable())

        def reduce(self, state: State, outcome: Any) -> State:
            return state.increment(sum=1)

    class Tasks(Squares):
        def tasks(self, state: State, inputs: Any) -> Any:
            return super().tasks(state, inputs)

    class Few(Tasks):
        ahead = 3

    act = source.act(0.5)
    for step, most in ((Squares(), 2), (Tasks(), 39), (Few(), 3)):
        source.begin_again()
        async with source.watched():
            await Application(step).run({"sum": 0})
        assert source.ended == 40
        assert source.most_unstarted == most


# -- as given --------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("ahead", [0, 1, 3, 10])
@pytest.mark.parametrize("where", ["fan-out", "action", "action slots", "runtime", "keys", "cost"])
async def test_no_more_than_flight_and_ahead_are_pulled_and_not_ended(
    where: str, ahead: int, over: str
):
    source, limits = Pulled(), Limits(rate=Rate(1, burst=1))
    own, options = Limits(PLACES), dict[str, Any]()
    if where == "fan-out":
        own &= limits
    elif where == "keys":
        own &= Limits(1, by=lambda state: state["n"] % 2)
    elif where == "cost":
        own &= Limits(rate=Rate(2), cost=lambda state: 1 + state["n"] % 2)
    elif where != "runtime":
        options = {"limits": limits if where == "action" else Limits(1)}
    step = many(source, source.act(0.5, **options), over, own, ahead=ahead)
    shared = limits if where == "runtime" else None
    async with no_leaks(), Runtime(limits=shared) as runtime, source.watched():
        await runtime.run(Application(step))
    assert source.ended == 40
    assert source.most_open <= PLACES + ahead
    # Only an element says whether its child can start where it has a key or a cost of its own.
    assert source.most_unstarted == max(ahead, 1 if where in ("keys", "cost") else 0)
    assert source.closed == 1


@both
async def test_with_0_an_element_is_pulled_in_the_tick_in_which_its_child_starts(over: str):
    source, times = Pulled(6), list[tuple[int, float]]()

    @action(reads=["n"], writes=["out"], limits=Limits(rate=Rate(1, per=10, burst=1)))
    async def act(n: int) -> int:
        times.append((source.pulled, anyio.current_time() - start))
        source.ended += 1
        return n

    start = anyio.current_time()
    await Application(many(source, act, over, Limits(3), ahead=0)).run()
    assert [pulled for pulled, _ in times] == [1, 2, 3, 4, 5, 6]
    assert [round(at) for _, at in times] == [0, 10, 20, 30, 40, 50]


async def test_with_0_two_runs_share_a_limit_fairly():
    """What was asked for before the element is there is held, not lost to others that wait."""
    sources = [Pulled(), Pulled()]
    ends = list[float]()

    async def run(source: Pulled) -> None:
        act = source.act(0.1)
        await runtime.run(Application(many(source, act, "iterable", Limits(2), ahead=0)))
        ends.append(anyio.current_time())

    shared = Limits(rate=Rate(2, burst=1))
    async with Runtime(limits=shared) as runtime, anyio.create_task_group() as tasks:
        for source in sources:
            tasks.start_soon(run, source)
    assert ends[1] - ends[0] <= 4


@both
@pytest.mark.parametrize("later", [False, True])
async def test_children_that_wait_for_another_attempt_count_as_begun(over: str, later: bool):
    """Their places go to others, as far as ``ahead`` allows that more elements are held."""
    for ahead, most in ((0, 4), (3, 7), (None, 40)):
        source = Pulled()
        each = None if later else Each(retry=Retry(3, on=ConnectionError, initial=20, jitter=0))
        step = many(
            source, source.failing(later=later), over, Limits(PLACES), ahead=ahead, each=each
        )
        await Application(step).run()
        assert source.ended == 40
        assert source.most_open == most


@both
async def test_paused_keys_count_as_begun_or_as_waiting(over: str):
    source, refused = Pulled(), set[int]()

    @action(reads=["n"], writes=["out"])
    async def act(n: int) -> int:
        if n not in refused and n % 5 == 0:
            refused.add(n)
            source.started += 1
            raise RetryLater(30)
        source.started += n % 5 != 0
        await anyio.sleep(1)
        source.ended += 1
        return n

    limits = Limits(PLACES) & Limits(2, by=lambda state: state["n"] % 5)
    await Application(many(source, act, over, limits, ahead=2)).run()
    assert source.ended == 40
    assert source.most_open <= PLACES + 2


async def test_a_slow_source_is_read_ahead_while_all_places_are_taken():
    """So it has elements when places are free, and takes no time then."""
    took = list[float]()
    for ahead in (None, 4):
        source, start = Pulled(20, seconds=0.5), anyio.current_time()
        await Application(many(source, source.act(2), "generator", Limits(4), ahead=ahead)).run()
        took.append(anyio.current_time() - start)
        assert source.most_open <= 4 + (ahead or 0)
    assert took[1] < took[0]


async def test_a_spent_live_budget_is_no_reason_to_pull():
    sources = [Pulled(200) for _ in range(3)]

    @action(reads=["at"], writes=["out"])
    async def outer(at: int, context: Context) -> int:
        act = sources[at].act()
        async with context.fan_out(name="inner") as group:
            group.start_each(act, over=sources[at].generator(), item="n")
            return sum([1 async for _ in group])

    step = fan_out(outer, over="at", item="at", into="outs", take="out")
    app = Application(step, max_live=6)
    result = await app.run({"at": [0, 1, 2]})
    assert result.state["outs"] == [200, 200, 200]
    assert max(source.most_open for source in sources) <= 6 + 2


@both
async def test_a_frontier_reads_its_first_elements_like_others(over: str):
    """What ``grow`` finds was not pulled; of ``over`` no more than ``ahead`` are."""
    source = Pulled(10)

    @action(reads=["n"], writes=["out"], limits=Limits(rate=Rate(1, burst=1)))
    async def act(n: int) -> int:
        source.started += n < 10
        return n

    def grow(state: State, outcome: Any) -> list[int]:
        return [outcome.element + 100] if outcome.element < 10 else []

    step = fan_out(
        act,
        over=getattr(source, over),
        reads=[],
        item="n",
        key=str,
        into="out",
        grow=grow,
        limits=Limits(PLACES),
        ahead=1,
    )
    async with source.watched():
        result = await Application(step).run()
    assert len(result.state["out"]) == 20
    assert source.most_unstarted == 1


@pytest.mark.parametrize(("ahead", "most"), [(None, 2), (0, 0), (5, 5)])
async def test_the_elements_of_an_action_s_own_fan_out(ahead: int | None, most: int):
    source = Pulled()
    act = source.act(0.5)

    @action(writes=["out"])
    async def all_of_them(context: Context) -> int:
        limits = Limits(PLACES) & Limits(rate=Rate(1, burst=1))
        async with context.fan_out(name="each", limits=limits, ahead=ahead) as group:
            group.start_each(act, over=source.iterable(), item="n")
            return len([outcome async for outcome in group])

    async with source.watched():
        result = await Application(all_of_them).run()
    assert result.state["out"] == 40
    assert source.most_unstarted == most


async def test_a_stream_of_memory_objects():
    source = Pulled()
    send, receive = anyio.create_memory_object_stream[int](0)

    async def produce() -> None:
        async with send:
            for n in range(40):
                await send.send(n)
                source.next()

    @action(writes=["out"])
    async def consume(context: Context) -> int:
        act = source.act(0.5)
        limits = Limits(PLACES) & Limits(rate=Rate(1, burst=1))
        async with context.fan_out(name="each", limits=limits, ahead=1) as group, receive:
            group.start_each(act, over=receive, item="n")
            return len([outcome async for outcome in group])

    async with no_leaks(), anyio.create_task_group() as tasks:
        tasks.start_soon(produce)
        result = await Application(consume).run()
        assert result.state["out"] == 40
    assert source.most_open <= PLACES + 1


# -- decisions, failures, cancellations ------------------------------------------------------------


async def test_what_was_asked_for_is_given_back_where_no_child_comes():
    """A step that ends while it asks for its next child keeps no slot from others."""
    source = Pulled(3)

    @action(reads=["n"], writes=["out"], limits=Limits(1), name="one")
    async def one(n: int) -> int:
        await anyio.sleep(1)
        if n == 2:
            raise ValueError(n)
        return n

    step = many(source, one, "iterable", Limits(3), ahead=0)
    async with no_leaks(), Runtime() as runtime:
        with pytest.raises(ExceptionGroup):
            await runtime.run(Application(step))
        for element in (range(2), [5]):
            again = fan_out(one, over="ns", item="n", into="out", ahead=0)
            await runtime.run(Application(again), {"ns": list(element)})
        assert runtime.limiter(one).statistics()[0].in_use == 0
        assert runtime.limiter(one).statistics()[0].waiting == 0


@pytest.mark.sweep
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@both
@pytest.mark.parametrize("ahead", [0, 2])
def test_cancelled_anywhere_it_gives_everything_back(
    over: str, ahead: int, backend: Literal["asyncio", "trio"]
):
    async def scenario(attempt: Attempt) -> None:
        source = Pulled(6)
        act = source.act(0.5, limits=Limits(1) & Limits(rate=Rate(2, burst=1)))
        step = many(source, act, over, Limits(3) & Limits(rate=Rate(4)), ahead=ahead)
        async with Runtime() as runtime:
            await attempt(lambda: runtime.run(Application(step)))
            statistics = runtime.limiter(act).statistics()
            assert [one.in_use + one.waiting for one in statistics] == [0, 0]
        assert source.closed or not source.pulled

    cancel_everywhere(scenario, backend=backend)


# -- misuse ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", [-1, 1.5, True, "3", float("inf")])
async def test_it_takes_a_number_of_elements(wrong: Any):
    source = Pulled()
    with pytest.raises(DefinitionError, match="ahead= takes a number of elements"):
        fan_out(source.act(), over="ns", item="n", into="out", ahead=wrong)
    with pytest.raises(DefinitionError, match="ahead= takes a number of elements"):
        type("Wrong", (MapStates,), {"ahead": wrong})

    @action(writes=["out"])
    async def act(context: Context) -> None:
        context.fan_out(name="each", ahead=wrong)

    with pytest.raises(DefinitionError, match=r"ahead=...\) takes a number of elements"):
        await Application(act).run()


async def test_of_shared_rates_and_with_shares_more_wait_by_default():
    """A backend is asked for as many units as children wait; and shares have turns."""
    source = Pulled(30)
    act = source.act(0.5)
    for limits in (
        Limits(rate=SharedRate(Rate(2, burst=1), "some", MemoryRates())),
        Limits(rate=Rate(2, burst=1), share=lambda state: state["n"] % 3),
    ):
        source.begin_again()
        async with source.watched():
            step = many(source, act, "iterable", Limits(PLACES) & limits)
            await Application(step).run()
        assert source.ended == 30
        assert source.most_unstarted >= 25
