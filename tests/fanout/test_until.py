"""What ends a fan-out early: the first good results, some that agree, or what a function says."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from typing import Any

import anyio
import pydantic
import pytest

from shoal import (
    END,
    Application,
    Cancelled,
    Done,
    Failed,
    Graph,
    Limits,
    MapStates,
    NobodyAccepted,
    Outcome,
    ParallelAction,
    Skipped,
    State,
    Task,
    action,
    all_,
    fan_out,
    first,
    quorum,
    race,
    when,
)
from shoal.errors import BadResult, DefinitionError, InvalidState, Rejected, TooFewChildren
from shoal.events import ChildEnded, ChildName, Decision, StateUpdated
from shoal.stores import replay
from shoal.types import Act
from tests.engine.test_cancellation import Watched, cancellation, seen_runs

pytestmark = pytest.mark.anyio

__all__ = ["seen_runs"]  # a fixture


@action(reads=["item"], writes=["slept"])
async def sleep(item: float) -> float:
    """Sleeps as long as its element says; negative ones fail then."""
    await anyio.sleep(abs(item))
    if item < 0:
        raise ValueError(item)
    return item


@action(reads=["item"], writes=["square"])
async def square(item: int) -> int:
    return item * item


def sleeper(name: str, seconds: float, value: object = None) -> Act:
    """Make an act that sleeps, and returns a value, or raises it."""

    @action(writes=["value"], name=name)
    async def sleep() -> object:
        await anyio.sleep(seconds)
        if isinstance(value, Exception):
            raise value
        return value if value is not None else name

    return sleep


def over(until: Any, elements: Iterable[Any] = (), **options: Any) -> Watched:
    """A fan-out over elements that sleep, watched."""
    options.setdefault("into", "out")
    return Watched(fan_out(sleep, over="n", until=until, **options))


def losers(watched: Watched, step: str = "out") -> list[Outcome]:
    """How those ended that brought nothing, in input order."""
    ended = [event.outcome for event in watched.of(ChildEnded) if event.step == step]
    losers = [outcome for outcome in ended if not (isinstance(outcome, Done) and outcome.used)]
    assert watched.run is not None
    if watched.run.status == "succeeded":
        (ledger,) = watched.run.ledgers[step]
        assert len(ledger) == len(losers)
    return sorted(losers, key=lambda outcome: outcome.position)


def saved_decisions(watched: Watched) -> list[Decision]:
    return [decision for _, decision in watched.store.decisions]


# -- first -----------------------------------------------------------------------------------------


async def test_the_first_to_succeed_wins():
    watched = over(first())
    state = await watched.go({"n": [3, 1, 2]})
    assert anyio.current_time() == 1
    assert state["out"] == 1
    watched.check()
    assert [type(outcome) for outcome in losers(watched)] == [Cancelled, Cancelled]
    winner = ChildName("sleep", 1)
    reason = "key 1 decided fan-out 'out'"
    assert saved_decisions(watched) == [Decision("out", winner, (winner,), reason)]
    for outcome in losers(watched):
        assert isinstance(outcome, Cancelled)
        assert (outcome.winner, outcome.reason) == (winner, reason)


async def test_a_failure_only_removes_a_contestant():
    """X02: the first to finish fails, the second succeeds."""
    watched = over(first())
    state = await watched.go({"n": [-1, -1.5, 2, 3]})
    assert state["out"] == 2
    watched.check()
    ends = {outcome.element: type(outcome) for outcome in losers(watched)}
    assert ends == {-1: Failed, -1.5: Failed, 3: Cancelled}
    for outcome in losers(watched):
        if isinstance(outcome, Failed):  # as data: nobody raised it
            assert outcome.error.__traceback__ is None


async def test_when_all_fail_all_failures_are_raised_in_input_order():
    """X03, R5."""
    watched = over(first(), name="race")
    with pytest.raises(NobodyAccepted) as raised:
        await watched.go({"n": [-3, -1, -2]})
    assert [error.args for error in raised.value.exceptions] == [(-3,), (-1,), (-2,)]
    assert "none of its 3 children was accepted" in str(raised.value)
    for position, error in enumerate(raised.value.exceptions):
        (note,) = error.__notes__
        assert f"'sleep' of 'race', key {position}, run " in note
        assert error.__traceback__ is not None
    watched.check()
    assert watched.run is not None
    assert "out" not in watched.state


async def test_of_two_at_once_the_lower_position_wins_and_the_other_comes_too_late():
    """X01."""
    watched = over(first())
    state = await watched.go({"n": [2, 1, 1.0, 1]})
    assert state["out"] == 1
    watched.check()
    assert watched.run is not None
    ends = [(o.position, type(o), getattr(o, "used", None)) for o in losers(watched)]
    assert ends == [(0, Cancelled, None), (2, Done, False), (3, Done, False)]
    (applied,) = [e.outcome for e in watched.of(StateUpdated) if e.outcome is not None]
    assert applied.position == 1


@pytest.mark.parametrize("value", [None, 0, "", [], False])
async def test_a_falsy_answer_wins(value: object):
    """X13."""

    @action(writes=["value"])
    async def answer() -> object:
        return value

    watched = Watched(race(sleeper("slow", 5), answer, into="value"))
    assert (await watched.go({}))["value"] == value
    watched.check()


async def test_what_is_refused_is_done_and_not_used():
    watched = over(first(accept=lambda slept: slept > 2))
    state = await watched.go({"n": [1, 2, 3, 4]})
    assert state["out"] == 3
    watched.check()
    assert [(o.element, type(o)) for o in losers(watched)] == [(1, Done), (2, Done), (4, Cancelled)]
    assert not any(outcome.used for outcome in losers(watched) if isinstance(outcome, Done))
    received = [e.outcome for e in watched.of(ChildEnded)]
    assert [o.used for o in received if isinstance(o, Done)] == [False, False, True]


async def test_when_all_are_refused_or_fail_both_are_raised_in_input_order():
    def accept(slept: float) -> bool:
        if slept == 3:
            raise LookupError(slept)
        return False

    watched = over(first(accept=accept))
    with pytest.raises(NobodyAccepted) as raised:
        await watched.go({"n": [3, -2, 1]})
    broken, failure, refused = raised.value.exceptions
    assert isinstance(broken, Rejected)
    assert broken.value == 3
    assert isinstance(broken.__cause__, LookupError)
    assert isinstance(failure, ValueError)
    assert isinstance(refused, Rejected)
    assert (refused.value, refused.__cause__) == (1, None)
    assert str(refused) == "1 was not accepted by accept"
    assert str(broken) == "3 can't be judged: LookupError(3)"
    reasons = raised.value.reasons
    assert [reason.partition(" ")[0] for reason in reasons] == ["key"] * 3
    assert all(
        reason in str(raised.value)
        for reason in (f"key 0: {broken}", f"key 1 failed: {failure!r}", f"key 2: {refused}")
    )
    assert "'sleep' of 'out', key 2, run " in refused.__notes__[0]
    watched.check()


async def test_a_race_of_many_shows_five_reasons_and_keeps_all():
    watched = over(first(accept=lambda _: False))
    with pytest.raises(NobodyAccepted) as raised:
        await watched.go({"n": [1, 2, 3, 4, 5, 6, 7]})
    assert len(raised.value.reasons) == 7
    assert str(raised.value).count(" was not accepted") == 5
    assert str(raised.value).endswith("; and 2 more")
    half, _ = raised.value.split(lambda error: isinstance(error, Rejected) and error.value == 1)
    assert isinstance(half, NobodyAccepted)
    assert not half.reasons, "they would name others"


async def test_accept_takes_what_take_names():
    def accept(value: dict[str, float]) -> bool:
        assert set(value) == {"slept", "item"}
        return value["slept"] == 2

    watched = over(first(accept=accept), take=["slept", "item"])
    assert (await watched.go({"n": [1, 2, 3]}))["out"] == {"slept": 2, "item": 2}
    watched.check()


async def test_an_accept_that_must_be_awaited_fails_the_step():
    async def accept(value: object) -> bool:
        return True

    with pytest.raises(DefinitionError, match=r"first\(accept=...\).*'accept' is a coroutine"):
        first(accept=accept)
    watched = over(first(accept=lambda value: accept(value)))  # noqa: PLW0108 # can't be seen through
    with pytest.raises(BadResult, match=r"accept= of fan-out 'out'.*awaited"):
        await watched.go({"n": [1, 2]})
    watched.check()


async def test_an_accept_that_raises_a_cancellation_refuses():
    def accept(slept: float) -> bool:
        if slept == 1:
            raise cancellation()
        if slept == 2:
            raise GeneratorExit
        return True

    watched = over(first(accept=accept))
    assert (await watched.go({"n": [1, 2, 3]}))["out"] == 3
    watched.check()


@pytest.mark.parametrize("fatal", [KeyboardInterrupt, SystemExit])
async def test_an_accept_that_is_interrupted_ends_everything(fatal: type[BaseException]):
    def accept(slept: float) -> bool:
        raise fatal

    watched = over(first(accept=accept))
    with pytest.raises(fatal):
        await watched.go({"n": [1, 2]})
    watched.hook.assert_paired()


async def test_three_of_ten_and_no_more():
    """X07: four of them end at once."""
    watched = over(first(3), key=str)
    state = await watched.go({"n": [9, 1, 1.25, 2.0, 2, 2.5, -0.5, 0.5, 4, 5]})
    assert state["out"] == {"1": 1, "1.25": 1.25, "0.5": 0.5}
    assert list(state["out"]) == ["1", "1.25", "0.5"], "in input order"
    watched.check()
    (decision,) = saved_decisions(watched)
    assert decision.winner == ChildName("sleep", "1.25")
    assert [name.key for name in decision.winners] == ["1", "1.25", "0.5"]


async def test_more_than_one_is_collected_as_by_a_fan_out_over_all():
    acts = [sleeper("slow", 9), sleeper("second", 2), sleeper("first", 1)]
    watched = Watched(fan_out(acts, into="out", until=first(2)))
    assert (await watched.go({}))["out"] == {"second": "second", "first": "first"}
    watched = over(first(2))
    assert (await watched.go({"n": [9, 2, 1]}))["out"] == [2, 1]
    watched.check()


async def test_what_is_there_already_is_no_contestant():
    """Nothing is skipped where not all is awaited; and old results are no results of this race."""
    watched = over(first(2), key=str)
    state = await watched.go({"n": [1, 2, 3], "out": {"1": "old", "7": "old"}})
    assert state["out"] == {"1": 1, "2": 2}
    watched = over(first(), key=str)
    assert (await watched.go({"n": [2, 1], "out": {"2": "old"}}))["out"] == 1
    assert not any(isinstance(outcome, Skipped) for outcome in losers(watched))


async def test_until_a_winner_is_known_the_field_keeps_what_it_had():
    seen = list[object]()

    def accept(slept: float) -> bool:
        assert watched.run is not None
        seen.append(watched.run.state.get("out"))
        return slept > 1

    watched = over(first(accept=accept))
    assert (await watched.go({"n": [1, 2], "out": "old"}))["out"] == 2
    assert seen == ["old", "old"]


async def test_it_is_known_at_once_when_too_few_are_left():
    watched = over(first(4))
    with pytest.raises(NobodyAccepted, match="1 of its 6 children was accepted, not 4") as raised:
        await watched.go({"n": [9, -2, -1, 0.5, -3, 99]})
    assert anyio.current_time() == 3, "and not later, when the others would have ended"
    assert [error.args[0] for error in raised.value.exceptions] == [-2, -1, -3]
    assert [type(o) for o in losers(watched) if o.element in (9, 99)] == [Cancelled, Cancelled]
    watched.check()


async def test_too_few_elements_are_known_before_anything_starts():
    for elements in ([], [1], range(2), {"a": 1}):
        watched = over(first(3))
        with pytest.raises(NobodyAccepted) as raised:
            await watched.go({"n": elements})
        (error,) = raised.value.exceptions
        assert isinstance(error, TooFewChildren)
        assert "no child failed: fan-out 'out' had too few" in str(error)
        assert not watched.of(ChildEnded)
        watched.check()
    assert anyio.current_time() == 0


async def test_too_few_elements_of_unknown_number_are_known_when_they_have_ended():
    async def later(state: State) -> AsyncIterator[int]:
        for n in state["n"]:
            await anyio.sleep(0)
            yield n

    def now(state: State) -> Iterator[int]:
        return iter(state["n"])

    for source in (now, later):
        watched = Watched(
            fan_out(sleep, over=source, reads=["n"], into="out", until=first(3, accept=bool))
        )
        with pytest.raises(NobodyAccepted) as raised:
            await watched.go({"n": [1, 2]})
        assert isinstance(raised.value.exceptions[0], TooFewChildren)
        watched.check()


async def test_no_elements_at_all():
    watched = over(first())
    with pytest.raises(NobodyAccepted) as raised:
        await watched.go({"n": []})
    assert isinstance(raised.value.exceptions[0], TooFewChildren)


async def test_an_infinite_source_is_stopped_and_closed():
    """X14."""
    closed = list[str]()

    def forever(state: State) -> Iterator[int]:
        n = 0
        try:
            while True:
                n += 1
                yield n
        finally:
            closed.append("sync")

    async def forever_async(state: State) -> AsyncIterator[int]:
        try:
            for n in forever(state):
                yield n
        finally:
            closed.append("async")

    for source in (forever, forever_async):
        watched = Watched(
            fan_out(
                square,
                over=source,
                reads=[],
                into="out",
                until=first(accept=lambda value: value > 1000),
                limits=Limits(5),
            )
        )
        assert (await watched.go({}))["out"] == 1024
        watched.check()
    assert "async" in closed
    assert closed[0] == "sync"


async def test_a_search_grows_by_what_is_refused():
    def deeper(state: State, outcome: Done) -> Iterable[int]:
        return [2 * outcome.element, 2 * outcome.element + 1]

    watched = Watched(
        fan_out(
            square,
            over="n",
            key=int,
            grow=deeper,
            into="out",
            until=first(accept=lambda value: value == 13 * 13),
            limits=Limits(1),
        )
    )
    state = await watched.go({"n": [1]})
    assert state["out"] == 169
    watched.check()
    refused = [e.outcome for e in watched.of(ChildEnded)][:-1]
    assert [outcome.element for outcome in refused] == list(range(1, 13))
    assert all(isinstance(outcome, Done) and not outcome.used for outcome in refused)
    discovered = [e.update.discovered for e in watched.of(StateUpdated) if e.outcome is not None]
    assert discovered[0] == (2, 3), "saved with the refused child that it came from"


async def test_a_search_is_lost_only_when_nothing_grows_any_more():
    def deeper(state: State, outcome: Done) -> Iterable[int]:
        return [outcome.element - 1] if outcome.element else []

    searching = fan_out(
        square, over="n", key=int, grow=deeper, into="out", until=first(2, accept=lambda v: v <= 1)
    )
    assert list((await Watched(searching).go({"n": [5]}))["out"]) == [1, 0]
    with pytest.raises(NobodyAccepted, match="1 of its 1 child was accepted, not 2"):
        await Watched(searching).go({"n": [0]})


async def test_reduce_is_given_what_is_accepted():
    def add(state: State, outcome: Done) -> State:
        return state.increment(sum=outcome.value)

    watched = Watched(
        fan_out(
            sleep,
            over="n",
            reduce=add,
            writes=["sum"],
            name="out",
            until=first(2, accept=lambda slept: slept > 1),
        )
    )
    assert (await watched.go({"n": [1, 2, 3, 4], "sum": 0}))["sum"] == 5
    watched.check()


async def test_a_reduce_that_fails_decides_nothing():
    def broken(state: State, outcome: Done) -> State:
        raise LookupError

    watched = Watched(
        fan_out(sleep, over="n", reduce=broken, writes=["x"], name="out", until=first())
    )
    with pytest.raises(LookupError):
        await watched.go({"n": [1, 2]})
    assert not saved_decisions(watched)
    watched.check()


async def test_a_loop_races_anew():
    @action(reads=["turn", "out"], writes=["turn", "n", "seen"])
    async def again(turn: int, state: State) -> State:
        return state.update(turn=turn + 1, n=[3 + turn, 2 + turn]).append(seen=state["out"])

    step = fan_out(sleep, over="n", key=str, into="out", until=first())
    more = when(lambda turn: turn < 3)
    graph = Graph((step, again), (again, step, more), (again, END), entry=step)
    watched = Watched(graph)
    state = await watched.go({"n": [2, 1], "turn": 0, "seen": []})
    assert state["seen"] == [1, 2, 3]
    watched.check()


class Typed(pydantic.BaseModel):
    n: list[float]
    out: float | None = None
    several: dict[str, float] = {}


async def test_the_winning_value_is_held_to_the_model():
    watched = Watched(fan_out(sleep, over="n", into="out", until=first()), state=Typed)
    assert (await watched.go({"n": [2.0, 1.0]}))["out"] == 1
    several = Watched(
        fan_out(sleep, over="n", key=str, into="several", until=first(2)), state=Typed
    )
    assert (await several.go({"n": [3.0, 2.0, 1.0]}))["several"] == {"2.0": 2, "1.0": 1}

    @action(reads=["item"], writes=["text"])
    async def text(item: float) -> str:
        return "no number"

    watched = Watched(fan_out(text, over="n", into="out", until=first()), state=Typed)
    with pytest.raises(InvalidState, match="'out'"):
        await watched.go({"n": [1.0]})
    with pytest.raises(DefinitionError, match="'several'"):
        Application(fan_out(sleep, over="n", into="several", until=first(2)), state=Typed)


# -- quorum ----------------------------------------------------------------------------------------


def votes(*values: object) -> Sequence[Act]:
    """Make acts, each of which is a second later than the one before."""
    return [sleeper(f"v{at}", at + 1, value) for at, value in enumerate(values)]


async def test_votes_that_agree_decide():
    watched = Watched(fan_out(votes("a", "b", "b", "b", "c"), into="out", until=quorum(2)))
    state = await watched.go({})
    assert anyio.current_time() == 3
    assert state["out"] == "b"
    watched.check()
    (decision,) = saved_decisions(watched)
    assert decision.winner == ChildName("v2", "")
    assert [name.act for name in decision.winners] == ["v1", "v2"]
    assert [type(outcome) for outcome in losers(watched)] == [Cancelled, Cancelled]


async def test_the_agreed_value_is_that_of_the_lowest_position():
    acts = [sleeper("late", 3, "YES"), sleeper("early", 1, "yes"), sleeper("no", 2, "no")]
    watched = Watched(fan_out(acts, into="out", until=quorum(2, by=str.lower)))
    assert (await watched.go({}))["out"] == "YES"
    watched.check()


async def test_values_that_cannot_be_hashed_agree_as_well():
    acts = votes({"a": 1}, ["b"], {"a": 1})
    watched = Watched(fan_out(acts, into="out", until=quorum(2)))
    assert (await watched.go({}))["out"] == {"a": 1}
    watched.check()


async def test_when_nobody_agrees_all_values_are_raised():
    acts = votes("a", ValueError("fails"), "b", "c", "d")
    watched = Watched(fan_out(acts, into="out", until=quorum(3)))
    with pytest.raises(NobodyAccepted, match="no 3 of its 5 children agree") as raised:
        await watched.go({})
    assert anyio.current_time() == 4, "one voter is left, and two are lacking"
    values = [getattr(error, "value", error.args[0]) for error in raised.value.exceptions]
    assert values == ["a", "fails", "b", "c"]
    assert isinstance(losers(watched)[-1], Cancelled)
    watched.check()


async def test_a_by_that_raises_refuses():
    watched = Watched(fan_out(votes(1, "a", "A"), into="out", until=quorum(2, by=str.lower)))
    assert (await watched.go({}))["out"] == "a"
    watched = Watched(fan_out(votes(1, "a", 2), into="out", until=quorum(2, by=str.lower)))
    with pytest.raises(NobodyAccepted) as raised:
        await watched.go({})
    first_, second, third = raised.value.exceptions
    assert isinstance(first_.__cause__, TypeError)
    assert second.__cause__ is None
    assert isinstance(third.__cause__, TypeError)
    watched.check()


class Incomparable:
    """Like an array of several numbers."""

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __eq__(self, other: object) -> bool:
        msg = "the truth of an array is ambiguous"
        raise ValueError(msg)


class Unhashable:
    """What raises something else than TypeError."""

    def __hash__(self) -> int:
        raise ValueError


@pytest.mark.parametrize("odd", [Incomparable(), Unhashable()])
async def test_what_cannot_be_compared_is_refused(odd: object):
    watched = Watched(fan_out(votes(odd, ["a"], odd, ["a"]), into="out", until=quorum(2)))
    assert (await watched.go({}))["out"] == ["a"], "others don't suffer by it"
    watched.check()
    watched = Watched(fan_out(votes(odd, ["a"], odd), into="out", until=quorum(2)))
    with pytest.raises(NobodyAccepted, match="no 2 of its 3 children agree\n") as raised:
        await watched.go({})
    first_, second, third = raised.value.exceptions
    for error, act in ((first_, "v0"), (third, "v2")):
        assert isinstance(error, Rejected)
        assert "can't be judged" in str(error)
        assert isinstance(error.__cause__, ValueError)
        assert f"shoal: '{act}' of 'out', run " in error.__notes__[0]
    assert second.__cause__ is None
    watched.check()


async def test_what_is_lost_before_it_starts_says_why():
    for until, why in (
        (first(3), "none of its 0 children was accepted, and with at most 2 more there can't be 3"),
        (quorum(3), "no 3 of its 0 children agree, and with at most 2 more there can't be 3"),
    ):
        watched = over(until)
        with pytest.raises(NobodyAccepted, match=why) as raised:
            await watched.go({"n": [1, 2]})
        (few,) = raised.value.exceptions
        assert isinstance(few, TooFewChildren)
        assert why not in str(few), "its group says so already"
        watched.check()
    watched = over(first(2), limits=Limits(1))
    with pytest.raises(
        NobodyAccepted, match=r"none of its 2 .* with at most 1 more there can't be"
    ):
        await watched.go({"n": [-1, -2, 3]})
    watched.check()


async def test_every_vote_is_reduced():
    def note(state: State, outcome: Done) -> State:
        return state.append(votes=outcome.value)

    watched = Watched(
        fan_out(
            votes("a", "b", "a", "c"), reduce=note, writes=["votes"], name="out", until=quorum(2)
        )
    )
    assert (await watched.go({"votes": []}))["votes"] == ["a", "b", "a"]
    watched.check()


# -- a function ------------------------------------------------------------------------------------


def always(state: State, outcome: Outcome) -> bool:
    return True


def never(state: State, outcome: Outcome) -> bool:
    return False


async def test_a_function_is_asked_after_each_update():
    asked = list[tuple[object, float]]()

    def enough(state: State, outcome: Outcome) -> bool:
        asked.append((list(state["out"]), outcome.element))
        return len(state["out"]) == 3

    watched = over(enough)
    state = await watched.go({"n": [1, 9, 3, 2, 99]})
    assert state["out"] == [1, 3, 2]
    assert asked == [([1], 1), ([1, 2], 2), ([1, 3, 2], 3)]
    assert saved_decisions(watched)[0].winner == ChildName("sleep", 2)
    watched.check()


async def test_never_satisfied_it_awaits_all():
    watched = over(never)
    assert (await watched.go({"n": [2, 1]}))["out"] == [2, 1]
    watched.check()


async def test_it_does_not_say_what_a_failure_means():
    """Failures end the step, or are collected, as without it."""
    watched = over(never)
    with pytest.raises(ExceptionGroup, match="a child of fan-out 'out' failed"):
        await watched.go({"n": [9, -1]})

    def one_failed(state: State, outcome: Outcome) -> bool:
        return isinstance(outcome, Failed)

    watched = over(one_failed, on_error="collect", errors_into="errors")
    state = await watched.go({"n": [9, 1, -2, 3]})
    assert list(state["errors"]) == [2]
    assert state["out"] == [1]
    watched.check()


async def test_what_fails_in_cleanup_after_the_decision_changes_nothing():
    @action(reads=["item"], writes=["slept"])
    async def untidy(item: float) -> float:
        try:
            await anyio.sleep(item)
        except BaseException:
            raise OSError("cleanup") from None
        return item

    for until in (first(), always):
        watched = Watched(fan_out(untidy, over="n", into="out", until=until))
        await watched.go({"n": [2, 1]})
        (outcome,) = losers(watched)
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.error, OSError)
        watched.check()


async def test_what_is_skipped_is_an_outcome_too():
    def skipped(state: State, outcome: Outcome) -> bool:
        return isinstance(outcome, Skipped)

    watched = over(skipped, key=str)
    state = await watched.go({"n": [1, 2, 3], "out": {"2": "old"}})
    assert anyio.current_time() == 0
    assert state["out"] == {"2": "old"}
    watched.check()


async def test_a_function_that_raises_fails_the_step_and_leaves_its_child_unapplied():
    """X08."""

    def broken(state: State, outcome: Outcome) -> bool:
        if outcome.element == 2:
            raise LookupError(len(state["out"]))
        return False

    watched = over(broken)
    with pytest.raises(LookupError) as raised:
        await watched.go({"n": [3, 2, 1]})
    assert raised.value.args == (2,), "it was asked about the state with that child in it"
    assert "key 1" in raised.value.__notes__[0]
    assert watched.state["out"] == [1]
    watched.check()
    (late,) = [o for o in losers(watched) if isinstance(o, Done)]
    assert late.element == 2


async def test_a_function_may_look_only_at_what_the_fan_out_declares():
    def nosy(state: State, outcome: Outcome) -> bool:
        return state["secret"]

    watched = over(nosy)
    with pytest.raises(Exception, match="secret"):
        await watched.go({"n": [1], "secret": 1})


async def test_a_function_that_must_be_awaited_is_refused():
    async def until(state: State, outcome: Outcome) -> bool:
        return True

    with pytest.raises(DefinitionError, match=r"until=.*coroutine function"):
        over(until)

    def hidden(state: State, outcome: Outcome) -> Any:
        return until(state, outcome)

    watched = over(hidden)
    with pytest.raises(BadResult, match=r"until= of fan-out 'out'"):
        await watched.go({"n": [1]})


# -- classes ---------------------------------------------------------------------------------------


class Search(MapStates):
    reads = ("n",)
    writes = ("found",)

    def action(self, state: State, inputs: Any) -> Act:
        return sleep

    def states(self, state: State, inputs: Any) -> Iterable[dict[str, float]]:
        return [{"item": n} for n in state["n"]]

    def reduce(self, state: State, outcome: Done | Failed) -> State:
        assert isinstance(outcome, Done)
        return state.append(found=outcome.value)


async def test_a_class_races_too():
    class FirstTwo(Search):
        until = first(2, accept=lambda slept: slept > 1)

    watched = Watched(FirstTwo())
    state = await watched.go({"n": [1, -1, 2, 3, 4], "found": []})
    assert state["found"] == [2, 3]
    watched.check()
    with pytest.raises(NobodyAccepted):
        await Watched(FirstTwo()).go({"n": [1, 2], "found": []})


async def test_a_class_may_be_asked():
    class Asked(Search):
        def until(self, state: State, outcome: Outcome) -> bool:
            return sum(state["found"]) >= 3

    watched = Watched(Asked())
    assert (await watched.go({"n": [1, 2, 3, 4], "found": []}))["found"] == [1, 2]
    watched.check()


def test_classes_are_checked_where_they_are_defined():
    with pytest.raises(DefinitionError, match=r"class Both.*on_error can't be given"):

        class Both(Search):  # pyright: ignore[reportUnusedClass]
            until = first()
            on_error = "collect"

    with pytest.raises(DefinitionError, match="until= takes all_"):

        class Wrong(Search):  # pyright: ignore[reportUnusedClass]
            until = 3  # pyright: ignore[reportAssignmentType]

    with pytest.raises(DefinitionError, match="coroutine function"):

        class Awaited(Search):  # pyright: ignore[reportUnusedClass]
            async def until(self, state: State, outcome: Outcome) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
                return True

    with pytest.raises(DefinitionError, match="stagger= takes seconds"):

        class Backwards(Search):  # pyright: ignore[reportUnusedClass]
            stagger = -1


async def test_tasks_race_by_act_and_key():
    class Mixed(ParallelAction):
        writes = ("won",)
        until = first()

        def tasks(self, state: State, inputs: Any) -> Iterable[Task]:
            yield Task(sleep, {"item": 2}, key="two")
            yield Task(sleep, {"item": 1}, key="one")
            yield Task(square.bind(name="never"), {"item": 7}, key="one")

        def reduce(self, state: State, outcome: Done | Failed) -> State:
            return state.update(won=(outcome.act, outcome.key))

    watched = Watched(Mixed())
    assert (await watched.go({}))["won"] == ("never", "one")
    assert saved_decisions(watched)[0].winner == ChildName("never", "one")
    watched.check()


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "2", None])
def test_counts_are_counts(n: Any):
    for make in (first, quorum):
        with pytest.raises(DefinitionError, match="whole number of at least 1"):
            make(n)


@pytest.mark.parametrize("until", [3, "first", first, quorum, all_, object()])
def test_until_takes_what_says_when_to_end(until: Any):
    with pytest.raises(DefinitionError, match=r"fan_out 'out': until= takes"):
        over(until)


@pytest.mark.parametrize("until", [first(), first(2), quorum(2)])
@pytest.mark.parametrize("on_error", ["fail", "collect", "ignore"])
def test_a_race_takes_no_on_error(until: Any, on_error: Any):
    with pytest.raises(DefinitionError, match=r"only removes a contestant, so on_error="):
        over(until, on_error=on_error)
    with pytest.raises(DefinitionError, match=r"only removes a contestant, so errors_into="):
        over(until, errors_into="errors")


def test_more_than_there_can_be_is_refused():
    acts = votes("a", "b")
    for until in (first(3), quorum(3)):
        with pytest.raises(DefinitionError, match=r"\(3\) can't be reached by at most 2 children"):
            fan_out(acts, into="out", until=until)
        with pytest.raises(DefinitionError, match="at most 2 children"):
            over(until, at_most=2)


async def test_more_than_were_chosen_is_refused_when_they_are():
    watched = Watched(fan_out(lambda state: votes("a", "b"), reads=[], into="out", until=quorum(3)))
    with pytest.raises(BadResult, match="at most 2 children"):
        await watched.go({})


def test_values_say_what_they_are():
    assert repr(all_()) == "All()"
    assert repr(first(2)) == "First(n=2, accept=None)"
    assert first(2) == first(2) != quorum(2)
    with pytest.raises(AttributeError):
        first().n = 2  # pyright: ignore[reportAttributeAccessIssue]


async def test_all_awaits_all():
    watched = over(all_())
    assert (await watched.go({"n": [2, 1]}))["out"] == [2, 1]


def test_groups_of_losers_split_as_groups_do():
    group = NobodyAccepted("lost", [ValueError(1), Rejected("no", 2)])
    rest = group.split(ValueError)[1]
    assert isinstance(rest, NobodyAccepted)
    assert [type(error) for error in rest.exceptions] == [Rejected]


async def test_what_is_published_replays_to_the_state():
    for until in (first(), first(2), quorum(1), always):
        watched = over(until)
        state = await watched.go({"n": [3, 1, 2]})
        replayed = State({"n": [3, 1, 2]})
        for event in watched.of(StateUpdated):
            replayed = replay(replayed, event.update.operations)
        assert replayed == state
