"""Hedged races: a delay that is learned from latencies, and a budget for extra starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import inf, nan
from random import Random
from typing import Any, Literal

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal import (
    Application,
    Breaker,
    Cancelled,
    Done,
    Each,
    Failed,
    Graph,
    Hedge,
    Limits,
    MapStates,
    NobodyAccepted,
    Runtime,
    State,
    action,
    fan_out,
    first,
    quorum,
    race,
)
from shoal._engine.fanout.hedge import ENOUGH, WINDOW, HedgeStatistics
from shoal.errors import DefinitionError
from shoal.testing import run_virtual
from shoal.types import Act, FanOut
from tests.engine.test_cancellation import Watched, seen_runs

from .test_stagger import Starts, watched_race
from .test_until import always, sleeper

pytestmark = pytest.mark.anyio

__all__ = ["seen_runs"]  # a fixture


# -- what is learned -------------------------------------------------------------------------------


def hedge_statistics(latencies: Iterable[float], **hedge: float) -> HedgeStatistics:
    experience = HedgeStatistics(Hedge(**hedge))
    for latency in latencies:
        experience.learn(latency)
    return experience


def test_until_enough_is_known_the_delay_is_the_initial_one():
    assert hedge_statistics([1] * (ENOUGH - 1)).delay == inf
    assert hedge_statistics([1] * (ENOUGH - 1), initial=0.5).delay == 0.5
    assert hedge_statistics([1] * ENOUGH, initial=0.5).delay == 1


def test_the_delay_is_a_percentile():
    latencies = [*range(1, 101)]
    Random(1).shuffle(latencies)
    assert hedge_statistics(latencies, percentile=90).delay == 90
    assert hedge_statistics(latencies, percentile=99.5).delay == 100
    assert hedge_statistics(latencies, percentile=0.1).delay == 1
    assert hedge_statistics([5] * 96 + [7] * 4).delay == 5
    assert hedge_statistics([5] * 94 + [7] * 6).delay == 7


def test_what_is_long_past_is_forgotten():
    experience = hedge_statistics([100] * WINDOW)
    for _ in range(WINDOW):
        experience.learn(1)
    assert experience.delay == 1
    assert "1000 latencies: delay 1 s" in repr(experience)


@given(st.lists(st.floats(0, 1e6), min_size=ENOUGH, max_size=60), st.floats(1, 99))
def test_it_is_the_nearest_rank_of_the_last_ones(latencies: list[float], percentile: float):
    delay = hedge_statistics(
        [*[1e9] * WINDOW, *latencies * 40][-2 * WINDOW :], percentile=percentile
    ).delay
    last = sorted([*[1e9] * WINDOW, *latencies * 40][-WINDOW:])
    assert delay in last
    assert sum(latency <= delay for latency in last) >= percentile / 100 * len(last) - 1e-6
    assert sum(latency < delay for latency in last) < percentile / 100 * len(last) + 1e-6


# -- the budget ------------------------------------------------------------------------------------


class Racing:
    """One that waits for the budget."""

    def __init__(self) -> None:
        self.granted = 0

    def grant(self) -> None:
        self.granted += 1


def test_one_is_granted_in_advance_then_a_share():
    experience, racing = HedgeStatistics(Hedge(budget=0.25)), Racing()
    assert experience.spend(racing)
    assert not experience.spend(racing)
    for _ in range(3):
        experience.earn()
        assert racing.granted == 0
    experience.earn()
    assert racing.granted == 1
    assert not experience.spend(Racing())


@pytest.mark.parametrize("budget", [0.1, 0.15, 0.3, 1 / 3, 1])
def test_rounding_loses_nothing(budget: float):
    experience = HedgeStatistics(Hedge(budget=budget))
    spent, racing = 0, Racing()
    for _ in range(600):
        experience.earn()
        spent += experience.spend(racing)
    spent += experience.spend(racing)
    assert spent + racing.granted == round(600 * budget + 1)


def test_a_waiting_request_is_granted_in_turn():
    experience = HedgeStatistics(Hedge(budget=0.5))
    first_, second, third = Racing(), Racing(), Racing()
    assert experience.spend(first_)
    for racing in (first_, second, third):
        assert not experience.spend(racing)
        assert not experience.spend(racing), "waits once"
    experience.leave(second, 0)
    for _ in range(4):
        experience.earn()
    assert (first_.granted, second.granted, third.granted) == (1, 0, 1)


def test_an_unspent_hedge_goes_to_a_waiting_race():
    experience = HedgeStatistics(Hedge(budget=0.1))
    first_, second = Racing(), Racing()
    assert experience.spend(first_)
    assert not experience.spend(second)
    experience.leave(first_, 1)
    assert second.granted == 1


def test_what_is_left_unused_is_kept_for_a_while_only():
    experience = HedgeStatistics(Hedge(budget=0.1))
    for _ in range(100_000):
        experience.earn()
    spent = 0
    while experience.spend(Racing()):
        spent += 1
    assert spent == 0.1 * WINDOW


@given(st.floats(0.01, 1), st.lists(st.booleans(), max_size=300), st.integers(0, 50))
def test_extra_starts_are_a_share_of_the_needed_ones(budget: float, asks: list[bool], quiet: int):
    """In every stretch, also after any time without any."""
    experience = HedgeStatistics(Hedge(budget=budget))
    for _ in range(quiet):
        experience.earn()
    needed, extra = quiet, 0
    racing = Racing()
    for ask in asks:
        needed += 1
        experience.earn()
        extra += ask and experience.spend(racing)
        assert extra + racing.granted <= budget * needed + 1 + 1e-6


# -- races -----------------------------------------------------------------------------------------


class Endpoint:
    """An act that takes the times it is told, one after the other; negative ones fail then."""

    def __init__(self, seconds: Iterable[float], default: float = 1) -> None:
        self.seconds = list(seconds)
        self.default = default
        self.starts: list[float] = []

        @action(writes=["value"], name="ask")
        async def ask() -> float:
            self.starts.append(anyio.current_time())
            mine = self.seconds.pop(0) if self.seconds else self.default
            await anyio.sleep(abs(mine))
            if mine < 0:
                raise ValueError(mine)
            return mine

        self.ask = ask

    def say(self, seconds: Iterable[float]) -> None:
        self.seconds = list(seconds)

    def hedged(self, copies: int = 2, **hedge: float) -> FanOut:
        acts = [self.ask, *(self.ask.bind(name=f"again{n}") for n in range(1, copies))]
        return race(*acts, into="out", stagger=Hedge(**hedge))

    async def warm_up(self, app: Application, runtime: Runtime, count: int = ENOUGH) -> None:
        for _ in range(count):
            await app.run(runtime=runtime)
        self.starts.clear()


async def test_at_first_it_is_hedged_after_the_initial_delay():
    """X09: primary done before the delay: one call; both slow: as many as there are."""
    endpoint = Endpoint([0.25, 5, 9])
    app = Application(endpoint.hedged(initial=0.5))
    async with Runtime() as runtime:
        await app.run(runtime=runtime)
        assert endpoint.starts == [0]
        await app.run(runtime=runtime)
        assert endpoint.starts == [0, 0.25, 0.75]
        assert anyio.current_time() == 5.25


async def test_without_an_initial_delay_only_failures_start_the_next():
    endpoint = Endpoint([5, -1, 1])
    app = Application(endpoint.hedged())
    async with Runtime() as runtime:
        await app.run(runtime=runtime)
        assert endpoint.starts == [0]
        assert (await app.run(runtime=runtime)).state["out"] == 1
        assert endpoint.starts == [0, 5, 6]


async def test_the_delay_is_learned():
    endpoint = Endpoint([*range(1, 21), 99, 2])
    app = Application(endpoint.hedged(percentile=90))
    async with Runtime() as runtime:
        await endpoint.warm_up(app, runtime)
        began = anyio.current_time()
        result = await app.run(runtime=runtime)
        assert result.state["out"] == 2
        assert [at - began for at in endpoint.starts] == [0, 18]
        assert anyio.current_time() - began == 20
        (loser,) = result.outcomes("out")
        assert isinstance(loser, Cancelled)
        assert loser.act == "ask"


async def test_slow_losers_count_with_the_time_they_had_and_quick_ones_do_not():
    """Else the slow ones, of which it is all about, would never be seen: they all lose."""
    endpoint = Endpoint([], default=1)
    hedged = endpoint.hedged(budget=1, percentile=75)
    app = Application(hedged)
    async with Runtime() as runtime:
        await endpoint.warm_up(app, runtime)
        experience = runtime.services.hedge_statistics[hedged.definition]
        endpoint.say([9, 1])
        await app.run(runtime=runtime)
        assert sorted([*experience.of().known][ENOUGH:]) == [1, 2]
        endpoint.say([1.25, 9])
        await app.run(runtime=runtime)
        assert list(experience.of().known)[ENOUGH + 2 :] == [1.25], "the hedge had no time"


async def test_failures_say_nothing_about_latency():
    endpoint = Endpoint([], default=1)
    hedged = endpoint.hedged(budget=1)
    app = Application(hedged)
    async with Runtime() as runtime:
        endpoint.say([-7, 1])
        await app.run(runtime=runtime)
        assert list(runtime.services.hedge_statistics[hedged.definition].of().known) == [1]


@pytest.mark.parametrize("breaker", [None, Breaker(failures=3, cool_down=1000)])
async def test_a_hedged_race_falls_back_without_a_budget(breaker: Breaker | None):
    """A hedge limits extra starts. The only contestant that is left is no extra one."""
    flaky, good = Endpoint([], default=-1), sleeper("good", 1, "good")
    each = None if breaker is None else Each(breaker=breaker)
    hedge = Hedge(budget=0.1, initial=5)
    app = Application(race(flaky.ask, good, into="out", stagger=hedge, each=each))
    async with Runtime() as runtime:
        for _ in range(50):
            assert (await app.run(runtime=runtime)).state["out"] == "good"
    assert len(flaky.starts) == (50 if breaker is None else 3)


async def test_a_failure_beside_a_contestant_in_flight_asks_the_budget_for_the_next():
    endpoint = Endpoint([9, -1, 1])
    app = Application(endpoint.hedged(copies=3, budget=0.1, initial=1))
    async with Runtime() as runtime:
        assert (await app.run(runtime=runtime)).state["out"] == 9
        assert endpoint.starts == [0, 1], "the first one is still at work, and no budget is left"


async def test_a_poll_that_disagrees_starts_as_many_as_could_still_decide_it():
    watched, starts = watched_race(
        sleeper("a", 1, "x"), sleeper("b", 1, "y"), sleeper("c", 1, "z"), sleeper("d", 1, "x"),
        until=quorum(2), stagger=Hedge(),
    )  # fmt: skip
    await watched.go({})
    began = starts["a"]
    assert {name: at - began for name, at in starts.items()} == {"a": 0, "b": 0, "c": 1, "d": 2}
    watched.check()


async def test_what_only_hangs_waits_for_the_budget_in_turn():
    endpoint = Endpoint([], default=9)
    app = Application(endpoint.hedged(budget=0.25, initial=1))
    async with Runtime() as runtime, anyio.create_task_group() as tasks:
        for _ in range(8):
            tasks.start_soon(lambda: app.run(runtime=runtime))
        await anyio.sleep(2)
        assert endpoint.starts == [0] * 8 + [1] * 3, "one in advance, and two earned"
        for _ in range(4):
            tasks.start_soon(lambda: app.run(runtime=runtime))
        await anyio.sleep(0.5)
        assert endpoint.starts[11:] == [2] * 5, "four are needed, and allow one that had to wait"
        await anyio.sleep(0.6)
        assert endpoint.starts[16:] == []


async def test_a_race_without_a_budget_is_lost_only_when_all_have_failed():
    endpoint = Endpoint([], default=-1)
    app = Application(endpoint.hedged(copies=3, budget=0.1))
    async with Runtime() as runtime:
        for _ in range(20):
            with pytest.raises(NobodyAccepted) as raised:
                await app.run(runtime=runtime)
            assert len(raised.value.exceptions) == 3


async def test_as_many_as_are_needed_start_at_once():
    for until in (first(2), quorum(2)):
        watched, starts = watched_race(
            sleeper("a", 1, "x"), sleeper("b", 9, "x"), sleeper("c", 1, "x"),
            until=until, stagger=Hedge(initial=0.5),
        )  # fmt: skip
        began = anyio.current_time()
        await watched.go({})
        assert {name: at - began for name, at in starts.items()} == {"a": 0, "b": 0, "c": 0.5}
        watched.check()


async def test_what_was_granted_and_not_used_is_given_back():
    """X10: a hedge that has no room does not start, and costs nothing."""
    endpoint = Endpoint([3, 3, 3, 3, 3])
    acts = [endpoint.ask, endpoint.ask.bind(name="again")]
    narrow = race(*acts, into="out", stagger=Hedge(initial=1), limits=Limits(1))
    app = Application(narrow)
    async with Runtime() as runtime:
        for _ in range(3):
            await app.run(runtime=runtime)
        assert endpoint.starts == [0, 3, 6]
        experience = runtime.services.hedge_statistics[narrow.definition]
        assert experience._tokens == pytest.approx(1.3)
        assert not experience._waiting


async def test_what_is_bound_shares_what_was_learned_and_runtimes_do_not():
    endpoint = Endpoint([], default=1)
    hedged = endpoint.hedged(percentile=90)
    other = hedged.bind(name="other")
    assert hedged.definition is other.definition
    apps = Application(hedged), Application(other)
    async with Runtime() as runtime:
        await endpoint.warm_up(apps[0], runtime)
        endpoint.say([9, 1])
        await apps[1].run(runtime=runtime)
        assert len(endpoint.starts) == 2
    endpoint.say([9, 1])
    await apps[0].run()
    assert len(endpoint.starts) == 3, "a new runtime knows nothing"


async def test_each_child_of_a_map_is_hedged_by_a_race_over_it():
    seconds = {"a": [1, 1], "b": [9, 1], "c": [-1, 1]}

    @action(reads=["item"], writes=["page"])
    async def get(item: str) -> str:
        mine = seconds[item].pop(0)
        await anyio.sleep(abs(mine))
        if mine < 0:
            raise ValueError
        return item.upper()

    hedged = race(get, get.bind(name="again"), into="page", stagger=Hedge(initial=2, budget=1))
    watched = Watched(fan_out(hedged, over="n", key=str, into="pages", take="page"))
    state = await watched.go({"n": ["a", "b", "c"]})
    assert state["pages"] == {"a": "A", "b": "B", "c": "C"}
    assert anyio.current_time() == 3
    assert seconds == {"a": [1], "b": [], "c": []}
    watched.check()


async def test_over_elements_the_others_are_extra():
    starts = Starts()

    @action(reads=["item"], writes=["slept"])
    async def sleep(item: float) -> float:
        await anyio.sleep(item)
        return item

    watched = Watched(
        fan_out(sleep, over="n", into="out", until=first(), stagger=Hedge(initial=1, budget=1)),
        hooks=[starts],
    )
    assert (await watched.go({"n": [9, 5, 1, 1]}))["out"] == 1
    assert starts.at == {"0": 0, "1": 1, "2": 2}, "one in advance, and one for the needed start"
    assert anyio.current_time() == 3
    watched.check()


async def test_a_class_may_hedge():
    class Search(MapStates):
        reads = ("n",)
        writes = ("found",)
        until = first()
        stagger = Hedge(initial=1)

        def action(self, state: State, inputs: Any) -> Act:
            return sleeper("s", 5)

        def states(self, state: State, inputs: Any) -> Iterable[dict[str, object]]:
            return [{} for _ in state["n"]]

        def reduce(self, state: State, outcome: Done | Failed) -> State:
            return state.update(found=outcome.key)

    assert Search().definition is Search
    starts = Starts()
    watched = Watched(Search(), hooks=[starts])
    assert (await watched.go({"n": [1, 2, 3]}))["found"] == 0
    assert starts.at == {"0": 0, "1": 1}
    watched.check()


async def test_cancelled_from_outside_nothing_is_kept():
    endpoint = Endpoint([], default=99)
    hedged = endpoint.hedged(initial=1, budget=0.01)
    app = Application(Graph.chain(hedged))
    async with Runtime() as runtime:
        for _ in range(3):
            with anyio.move_on_after(3):
                await app.run(runtime=runtime)
        experience = runtime.services.hedge_statistics[hedged.definition]
        assert not experience._waiting
        assert not experience.of().known, "how long it would have taken, nobody knows"


@pytest.mark.sweep
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_tail_is_cut_off(backend: Literal["asyncio", "trio"]):
    """5 % of requests are 3-second stragglers among 80 to 120 ms."""
    requests, random = 2000, Random(5)
    delays, seconds = list[float](), list[float]()
    endpoint = Endpoint([])

    def latency() -> float:
        return 3.0 if random.random() < 0.05 else random.uniform(0.08, 0.12)

    hedged = endpoint.hedged(percentile=90, budget=0.15)
    app = Application(hedged)

    async def main() -> None:
        async with Runtime() as runtime:
            for _ in range(requests):
                endpoint.say([latency(), latency()])
                began = anyio.current_time()
                await app.run(runtime=runtime)
                seconds.append(anyio.current_time() - began)
                delays.append(runtime.services.hedge_statistics[hedged.definition].delay)

    run_virtual(main, backend=backend)
    seconds.sort()
    p50, p99 = seconds[requests // 2], seconds[requests * 99 // 100]
    delay = sorted(delays[ENOUGH:])[len(delays) // 2]
    assert p99 <= 1.3 * (delay + p50)
    assert len(endpoint.starts) - requests <= 0.15 * requests


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"percentile": 0}, {"percentile": 100}, {"percentile": -5}, {"percentile": "90"},
        {"percentile": nan}, {"percentile": True}, {"budget": 0}, {"budget": 1.5}, {"budget": nan},
        {"budget": None}, {"initial": -1}, {"initial": nan}, {"initial": "soon"},
        {"initial": True},
    ],
)  # fmt: skip
def test_ranges_are_checked(wrong: dict[str, Any]):
    (name,) = wrong
    with pytest.raises(DefinitionError, match=rf"Hedge\({name}=\.\.\.\) takes"):
        Hedge(**wrong)


def test_only_races_are_hedged():
    make: list[Callable[[], object]] = [
        lambda: fan_out(sleeper("a", 1), over="n", into="out", stagger=Hedge()),
        lambda: race(sleeper("a", 1), into="out", stagger=Hedge(), until=always),
    ]
    for make_one in make:
        with pytest.raises(DefinitionError, match=r"'out': stagger=Hedge\(...\).*here all are"):
            make_one()
