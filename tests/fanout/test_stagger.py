"""When children start: after a delay, at once where one failed, one at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from itertools import pairwise
from math import inf, nan
from typing import Any

import anyio
import pytest

from shoal import (
    Cancelled,
    Done,
    Failed,
    Hook,
    Limits,
    MapStates,
    NobodyAccepted,
    State,
    action,
    fan_out,
    first,
    quorum,
    race,
)
from shoal.errors import DefinitionError
from shoal.events import ChildStarted
from shoal.types import Act
from tests.engine.test_cancellation import Watched, seen_runs

from .test_until import losers, sleeper

pytestmark = pytest.mark.anyio

__all__ = ["seen_runs"]  # a fixture


class Starts(Hook):
    """Notes when each child starts."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}

    def on_child_started(self, event: ChildStarted) -> None:
        name = event.child.act if event.child.key == "" else str(event.child.key)
        self.at[name] = anyio.current_time()


def watched_race(*acts: Act, **options: Any) -> tuple[Watched, dict[str, float]]:
    starts = Starts()
    return Watched(race(*acts, into="out", **options), hooks=[starts]), starts.at


def only(*values: str) -> Callable[[str], bool]:
    return values.__contains__


@action(reads=["item"], writes=["slept"])
async def sleep(item: float) -> float:
    """Sleeps as long as its element says; negative ones fail then."""
    await anyio.sleep(abs(item))
    if item < 0:
        raise ValueError(item)
    return item


# -- races -----------------------------------------------------------------------------------------


async def test_the_next_starts_after_the_delay():
    """X09: the start times are exact."""
    watched, starts = watched_race(
        sleeper("a", 9), sleeper("b", 9), sleeper("c", 1), sleeper("d", 1), stagger=0.5
    )
    assert (await watched.go({}))["out"] == "c"
    assert starts == {"a": 0, "b": 0.5, "c": 1, "d": 1.5}
    assert anyio.current_time() == 2
    watched.check()


async def test_a_provider_that_answers_before_the_delay_is_the_only_one_that_starts():
    watched, starts = watched_race(sleeper("a", 0.4), sleeper("b", 0), stagger=0.5)
    assert (await watched.go({}))["out"] == "a"
    assert starts == {"a": 0}
    assert anyio.current_time() == 0.4
    assert not losers(watched)
    watched.check()


async def test_the_next_starts_at_once_when_one_fails():
    watched, starts = watched_race(
        sleeper("a", 0.125, ValueError()), sleeper("b", 9), sleeper("c", 0.25), stagger=0.5
    )
    assert (await watched.go({}))["out"] == "c"
    assert starts == {"a": 0, "b": 0.125, "c": 0.625}, "the delay counts from the last start"
    watched.check()


async def test_the_next_starts_at_once_when_one_is_refused():
    watched, starts = watched_race(
        sleeper("a", 0.125), sleeper("b", 0.125), stagger=0.5, accept=only("b")
    )
    assert (await watched.go({}))["out"] == "b"
    assert starts == {"a": 0, "b": 0.125}
    watched.check()


async def test_two_that_fail_at_once_let_two_start():
    watched, starts = watched_race(
        sleeper("a", 1, ValueError()),
        sleeper("b", 0.25, ValueError()),
        sleeper("c", 9),
        sleeper("d", 1),
        sleeper("e", 1),
        stagger=0.75,
    )
    assert (await watched.go({}))["out"] == "d"
    assert starts == {"a": 0, "b": 0.75, "c": 1, "d": 1, "e": 1.75}
    watched.check()


async def test_without_a_delay_one_starts_after_the_other():
    watched, starts = watched_race(
        sleeper("a", 9), sleeper("b", 9), sleeper("c", 0), sleeper("d", 9), stagger=0
    )
    assert (await watched.go({}))["out"] == "c"
    assert set(starts.values()) == {0}
    watched.check()


async def test_an_ordered_fallback():
    watched, starts = watched_race(
        sleeper("a", 5, ValueError()),
        sleeper("b", 500),
        sleeper("c", 0),
        stagger=inf,
        accept=only("c"),
    )
    assert (await watched.go({}))["out"] == "c"
    assert starts == {"a": 0, "b": 5, "c": 505}
    assert [type(outcome) for outcome in losers(watched)] == [Failed, Done]
    watched.check()


async def test_a_fallback_that_nobody_is_left_of():
    watched, starts = watched_race(
        sleeper("a", 1, ValueError()), sleeper("b", 1, KeyError()), stagger=inf
    )
    with pytest.raises(NobodyAccepted) as raised:
        await watched.go({})
    assert [type(error) for error in raised.value.exceptions] == [ValueError, KeyError]
    assert starts == {"a": 0, "b": 1}
    watched.check()


async def test_one_at_a_time_until_there_are_enough():
    """Also after those that were accepted, where more are wanted."""
    watched, starts = watched_race(
        sleeper("a", 1), sleeper("b", 1, ValueError()), sleeper("c", 1), sleeper("d", 1),
        stagger=inf, until=first(2),
    )  # fmt: skip
    assert (await watched.go({}))["out"] == {"a": "a", "c": "c"}
    assert starts == {"a": 0, "b": 1, "c": 2}
    watched.check()
    watched, starts = watched_race(
        sleeper("a", 1, "x"), sleeper("b", 1, "y"), sleeper("c", 1, "x"), sleeper("d", 1),
        stagger=inf, until=quorum(2),
    )  # fmt: skip
    assert (await watched.go({}))["out"] == "x"
    assert list(starts) == ["a", "b", "c"]


async def test_those_that_never_started_are_no_losers():
    watched, _ = watched_race(
        sleeper("a", 1), sleeper("b", 9), sleeper("c", 9), stagger=0.75
    )  # fmt: skip
    await watched.go({})
    (loser,) = losers(watched)
    assert isinstance(loser, Cancelled)
    assert loser.act == "b"
    assert watched.run is not None
    assert watched.run.ledgers["out"][-1].left == 1


async def test_a_limit_holds_starts_back():
    watched, starts = watched_race(
        sleeper("a", 1, ValueError()), sleeper("b", 9), sleeper("c", 1), stagger=0.25,
        limits=Limits(2),
    )  # fmt: skip
    assert (await watched.go({}))["out"] == "c"
    assert starts == {"a": 0, "b": 0.25, "c": 1}
    watched.check()


async def test_a_live_budget_that_is_spent_holds_starts_back_until_it_is_not():
    """It is asked again after each delay, for nobody is woken when it has a permit again."""
    contest = race(sleeper("a", 9), sleeper("b", 1), into="won", stagger=0.25)
    waits = fan_out(sleep, over="n", into="waits", limits=Limits(3))
    both = fan_out([contest, waits], into="out", take=dict, limits=Limits(2))
    starts = Starts()
    watched = Watched(both, hooks=[starts], max_live=1)
    state = await watched.go({"n": [1.125, 1.125, 1.125]})
    assert state["out"]["won"]["won"] == "b"
    assert (starts.at["a"], starts.at["b"]) == (0, 1.25)
    watched.check()


# -- elements --------------------------------------------------------------------------------------


def over(elements: Iterable[float], **options: Any) -> tuple[Watched, dict[str, float]]:
    starts = Starts()
    step = fan_out(sleep, over=lambda state: elements, reads=[], into="out", **options)
    return Watched(step, hooks=[starts]), starts.at


async def test_elements_are_staggered_as_acts_are():
    watched, starts = over([2, 2, 2], stagger=0.5)
    assert (await watched.go({}))["out"] == [2, 2, 2]
    assert starts == {"0": 0, "1": 0.5, "2": 1}
    watched.check()


async def test_an_end_that_was_no_failure_lets_nobody_start():
    watched, starts = over([0.125, 0.125, -0.125, 0.125], stagger=0.5, on_error="collect")
    await watched.go({})
    assert starts == {"0": 0, "1": 0.5, "2": 1, "3": 1.125}
    watched.check()


async def test_one_element_at_a_time():
    watched, starts = over([1, 2, 3], stagger=inf)
    assert (await watched.go({}))["out"] == [1, 2, 3]
    assert starts == {"0": 0, "1": 1, "2": 3}
    watched.check()


async def test_what_is_skipped_takes_no_turn():
    starts = Starts()
    watched = Watched(fan_out(sleep, over="n", key=str, into="out", stagger=0.5), hooks=[starts])
    state = await watched.go({"n": [1, 2, 3, 4], "out": {"2": "old", "3": "old"}})
    assert state["out"] == {"1": 1, "2": "old", "3": "old", "4": 4}
    assert starts.at == {"1": 0, "4": 0.5}
    watched.check()


@pytest.mark.parametrize("stagger", [0.5, inf])
async def test_an_element_is_pulled_only_when_it_may_start(stagger: float):
    pulled = list[float]()

    def now() -> Iterator[float]:
        for _ in range(4):
            pulled.append(anyio.current_time())
            yield 0.75

    async def later() -> AsyncIterator[float]:
        for n in now():
            yield n

    expected = [0, 0.5, 1, 1.5] if stagger == 0.5 else [0, 0.75, 1.5, 2.25]
    for source in (now, later):
        pulled.clear()
        began = anyio.current_time()
        watched, _ = over(source(), stagger=stagger)  # pyright: ignore[reportArgumentType] # async too
        assert (await watched.go({}))["out"] == [0.75] * 4
        assert [at - began for at in pulled] == expected
        watched.check()


@pytest.mark.parametrize("stagger", [0.25, 3, inf])
@pytest.mark.parametrize("limits", [None, Limits(1), Limits(2)])
async def test_a_frontier_that_is_dry_for_a_while_starts_what_it_discovers(
    stagger: float, limits: Limits | None
):
    """The last child known has started, and takes longer than the delay; then it finds more."""
    starts = Starts()

    def grow(state: State, outcome: Done) -> list[int]:
        return [n for n in (2 * outcome.value + 1, 2 * outcome.value + 2) if n < 7]

    @action(reads=["item"], writes=["slept"])
    async def fetch(item: int) -> int:
        await anyio.sleep(1)
        return item

    crawl = fan_out(
        fetch, over="items", into="out", take="slept", key=int, limits=limits, stagger=stagger,
        grow=grow,
    )  # fmt: skip
    watched = Watched(crawl, hooks=[starts])
    began = anyio.current_time()
    state = await watched.go({"items": [0]})
    assert list(state["out"]) == list(range(7))
    times = sorted(at - began for at in starts.at.values())
    least = 1 if stagger == inf or limits == Limits(1) else 0
    least = max(least, stagger if stagger != inf else 1)
    assert all(later - sooner >= least for sooner, later in pairwise(times))
    watched.check()


@pytest.mark.parametrize("stagger", [0.5, inf])
async def test_a_staggered_fan_out_without_elements_ends_at_once(stagger: float):
    watched = Watched(fan_out(sleep, over="n", key=str, into="out", stagger=stagger))
    began = anyio.current_time()
    state = await watched.go({"n": []})
    assert dict(state["out"]) == {}
    assert anyio.current_time() == began
    watched.check()


async def test_classes_stagger_too():
    class Sleepers(MapStates):
        reads = ("n",)
        writes = ("sum",)
        stagger = 0.5

        def action(self, state: State, inputs: Any) -> Act:
            return sleep

        def states(self, state: State, inputs: Any) -> Iterable[dict[str, float]]:
            return [{"item": n} for n in state["n"]]

        def reduce(self, state: State, outcome: Done | Failed) -> State:
            return state.increment(sum=outcome.element["item"])

    starts = Starts()
    watched = Watched(Sleepers(), hooks=[starts])
    assert (await watched.go({"n": [2, 2, 2], "sum": 0}))["sum"] == 6
    assert starts.at == {"0": 0, "1": 0.5, "2": 1}


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("stagger", [-1, -0.5, nan, True, "1", [1], 1j])
def test_delays_are_delays(stagger: Any):
    with pytest.raises(DefinitionError, match=r"'out': stagger= takes seconds"):
        over([], stagger=stagger)
    with pytest.raises(DefinitionError, match=r"'out': stagger= takes seconds"):
        race(sleeper("a", 1), into="out", stagger=stagger)
