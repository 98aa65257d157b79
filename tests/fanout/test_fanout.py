"""Fan-outs: what they run over, what becomes of results, and what is left behind (nothing)."""

import itertools
import math
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, cast

import anyio
import pytest
import trio
from anyio.lowlevel import checkpoint

from shoal import (
    Application,
    Cancelled,
    Done,
    ErrorInfo,
    Failed,
    Graph,
    Limits,
    Outcome,
    Skipped,
    State,
    action,
    fan_out,
)
from shoal._errors.exceptions import kind_of
from shoal.errors import (
    BadKey,
    BadResult,
    DepthExceeded,
    MissingField,
    SpuriousCancel,
    UndeclaredRead,
    UndeclaredWrite,
)
from shoal.events import ChildEnded, ChildStarted, RunEnded, StateUpdated
from shoal.stores import replay
from shoal.testing import RecordingHook, no_leaks
from shoal.types import FanOut

pytestmark = pytest.mark.anyio


@action(reads=["item"], writes=["double"])
async def double(item: int) -> int:
    await checkpoint()
    return 2 * item


@action(reads=["item"], writes=["slept"])
async def sleep(item: float) -> float:
    """Sleeps as long as its element says."""
    await anyio.sleep(item)
    return item


@action(reads=["item"], writes=["checked"])
async def refuse_odd(item: int) -> int:
    await checkpoint()
    if item % 2:
        raise ValueError(item)
    return item


@action(reads=["item"], writes=["never"])
async def block(item: object) -> None:
    await anyio.sleep_forever()


class Bearings:
    """What a test action sees of the others: how many run, and how many ever ran."""

    def __init__(self) -> None:
        self.started: list[Any] = []
        self.running = 0
        self.peak = 0

    def enter(self, item: object) -> None:
        self.started.append(item)
        self.running += 1
        self.peak = max(self.peak, self.running)

    def leave(self) -> None:
        self.running -= 1


def history(hook: RecordingHook, state: Mapping[str, object]) -> list[tuple[Outcome | None, State]]:
    """The outcome that each of the root's updates applied, and the state after it."""
    now, after = State(state), list[tuple[Outcome | None, State]]()
    for event in hook.of(StateUpdated):
        if event.depth == 0:
            now = replay(now, event.update.operations)
            after.append((event.outcome, now))
    return after


def cancellation() -> BaseException:
    """The backend's cancellation, made by somebody who should not."""
    kind = anyio.get_cancelled_exc_class()
    if kind is trio.Cancelled:
        create: Callable[..., BaseException] = getattr(kind, "_create")  # noqa: B009 # private
        return create(source="explicit")
    return kind()


# -- over, item, key -------------------------------------------------------------------------------


@pytest.mark.realtime
@pytest.mark.parametrize("elements", [[3, 1, 2], (3, 1, 2), range(3), {}, []])
async def test_over_a_field(elements: Iterable[int]):
    app = Application(fan_out(double, over="numbers", into="doubles", take="double"))
    result = await app.run({"numbers": elements})
    assert result.state["doubles"] == [2 * n for n in elements]
    assert result.state["numbers"] is elements


@pytest.mark.realtime
async def test_over_a_function_of_what_it_may_read():
    def below(state: State) -> Iterable[int]:
        return range(state["top"])

    app = Application(fan_out(double, over=below, reads=["top"], into="doubles"))
    assert (await app.run({"top": 4, "other": 9})).state["doubles"] == [0, 2, 4, 6]

    greedy = fan_out(double, over=lambda state: state["other"], reads=["top"], into="doubles")
    with pytest.raises(UndeclaredRead, match=r"'doubles'.*'other'"):
        await Application(greedy).run({"top": 4, "other": [9]})


@pytest.mark.realtime
async def test_over_an_async_iterable_of_any_kind():
    class Countdown:
        """An iterator that has no ``aclose``."""

        def __init__(self, start: int) -> None:
            self.left = start

        def __aiter__(self) -> AsyncIterator[int]:
            return self

        async def __anext__(self) -> int:
            await checkpoint()
            if not self.left:
                raise StopAsyncIteration
            self.left -= 1
            return self.left

    async def generator(state: State) -> AsyncIterator[int]:
        for n in range(state["top"]):
            await checkpoint()
            yield n

    def iterator(state: State) -> Countdown:
        return Countdown(state["top"])

    for over, expected in (generator, [0, 2, 4]), (iterator, [4, 2, 0]):
        app = Application(fan_out(double, over=over, reads=["top"], into="doubles"))
        assert (await app.run({"top": 3})).state["doubles"] == expected


@pytest.mark.realtime
@pytest.mark.parametrize("over", ["a text", b"bytes", 7, None])
async def test_over_what_is_no_iterable_is_refused(over: object):
    app = Application(fan_out(double, over="elements", into="doubles"))
    with pytest.raises(BadResult, match=r"'doubles'.*iterable.*" + kind_of(over)):
        await app.run({"elements": over})
    with pytest.raises(MissingField, match=r"'doubles'.*'elements'"):
        await app.run({})


@pytest.mark.realtime
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("limit", [1, 3, 20])
async def test_elements_are_pulled_only_as_there_is_room(limit: int, is_async: bool):
    """A child holds its place until its result is in the parent's state."""
    pulled, reduced, ahead = 0, 0, list[int]()

    def numbers(state: State) -> Iterator[int]:
        nonlocal pulled
        for n in range(state["top"]):
            pulled += 1
            ahead.append(pulled - reduced)
            yield n

    async def numbers_async(state: State) -> AsyncIterator[int]:
        for n in numbers(state):
            yield n

    def count(state: State, outcome: Outcome) -> State:
        nonlocal reduced
        reduced += 1
        return state.increment(count=1)

    over = numbers_async if is_async else numbers
    app = Application(
        fan_out(
            double,
            over=over,
            reads=["top"],
            reduce=count,
            writes=["count"],
            limits=Limits(limit),
            name="f",
        )
    )
    assert (await app.run({"top": 50})).state["count"] == 50
    assert max(ahead) == limit


@pytest.mark.realtime
async def test_children_find_their_element_under_item_and_the_fields_they_read():
    @action(reads=["n", "factor"], writes=["product"])
    async def multiply(n: int, factor: int) -> int:
        return n * factor

    app = Application(fan_out(multiply, over="numbers", item="n", into="products"))
    result = await app.run({"numbers": [1, 2], "factor": 10, "n": "the parent's own"})
    assert result.state["products"] == [10, 20]
    assert result.state["n"] == "the parent's own"
    with pytest.raises(MissingField, match=r"'products'.*'factor'"):
        await app.run({"numbers": [1]})


@pytest.mark.realtime
async def test_children_start_from_the_state_as_it_was_when_the_step_began():
    @action(reads=["item", "log"], writes=["seen"])
    async def look(item: int, log: list[int]) -> int:
        await checkpoint()
        return len(log)

    def log(state: State, outcome: Outcome) -> State:
        assert isinstance(outcome, Done)
        return state.append(log=outcome.value)

    spread = fan_out(
        look, over="numbers", reads=["log"], reduce=log, writes=["log"], name="f", limits=Limits(1)
    )
    result = await Application(spread).run({"numbers": range(4), "log": [0]})
    assert result.state["log"] == [0, 1, 1, 1, 1]


@pytest.mark.realtime
async def test_key_by_a_function_or_by_a_field_of_the_element():
    class Thing:
        def __init__(self, name: str) -> None:
            self.name = name

    @action(reads=["item"], writes=["size"])
    async def size(item: Any) -> int:
        return len(item.name if isinstance(item, Thing) else item["name"])

    things = [Thing("b"), {"name": "aa"}]
    by_field = Application(fan_out(size, over="things", key="name", into="sizes"))
    result = await by_field.run({"things": things})
    assert list(result.state["sizes"].items()) == [("b", 1), ("aa", 2)]

    by_function = Application(fan_out(double, over="numbers", key=lambda n: n, into="doubles"))
    result = await by_function.run({"numbers": [7, 3]})
    assert list(result.state["doubles"].items()) == [(7, 14), (3, 6)]

    with pytest.raises(BadKey, match=r"key='name'.*'x'"):
        await by_field.run({"things": [{"name": "a"}, "x"]})


@pytest.mark.realtime
async def test_keys_of_one_and_its_text_are_two():
    @action(reads=["item"], writes=["kind"])
    async def kind(item: object) -> str:
        await checkpoint()
        return type(item).__name__

    hook = RecordingHook()
    app = Application(fan_out(kind, over="keys", key=lambda key: key, into="kinds"), hooks=[hook])
    result = await app.run({"keys": [1, "1"]})
    assert list(result.state["kinds"].items()) == [(1, "int"), ("1", "str")]
    assert len({event.outcome.run_id for event in hook.of(ChildEnded)}) == 2


@pytest.mark.realtime
@pytest.mark.parametrize("key", [None, 1.5, True, ("a",), b"a"])
async def test_a_key_of_another_type_is_refused_by_its_element(key: object):
    app = Application(fan_out(double, over="numbers", key=lambda n: key, into="doubles"))
    with pytest.raises(BadKey, match=rf"'doubles'.*element 0 \(5\).*{type(key).__name__}"):
        await app.run({"numbers": [5]})


@pytest.mark.realtime
@pytest.mark.parametrize("limit", [1, 2, 10])
async def test_a_repeated_key_is_refused_by_its_element(limit: int):
    hook = RecordingHook()
    app = Application(
        fan_out(double, over="names", key=lambda n: n % 3, into="out", limits=Limits(limit)),
        hooks=[hook],
    )
    async with no_leaks():
        with pytest.raises(BadKey, match=r"'out'.*element 3 \(3\).*key 0"):
            await app.run({"names": [0, 1, 2, 3, 4]})
    hook.assert_paired()
    assert len(hook.of(ChildStarted)) <= 3


# -- into, take, errors_into, reduce ---------------------------------------------------------------


ORDERS = [
    *itertools.permutations(range(4)),
    *(random.Random(n).sample(range(9), 9) for n in (1, 2)),
]


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: "".join(map(str, order)))
@pytest.mark.parametrize("key", [None, str])
async def test_results_are_in_input_order_at_every_moment(
    order: tuple[int, ...], key: Callable[[object], object] | None
):
    """Whatever the order in which children end: here, by a second each."""
    hook = RecordingHook()
    app = Application(fan_out(sleep, over="naps", key=key, into="slept"), hooks=[hook])
    naps = [order.index(n) + 1.0 for n in range(len(order))]
    result = await app.run({"naps": naps})
    arrived = list[int]()
    for outcome, state in history(hook, {"naps": naps}):
        if outcome is not None:
            arrived.append(outcome.position)
        here = [naps[position] for position in sorted(arrived)]
        slept = state["slept"]
        assert list(slept) == ([str(nap) for nap in here] if key else here)
        assert list(slept.values() if key else slept) == here
    assert arrived == list(order)
    assert result.state["slept"] == ({str(nap): nap for nap in naps} if key else naps)


async def test_results_that_come_together_are_applied_in_input_order():
    hook = RecordingHook()
    app = Application(fan_out(sleep, over="naps", into="slept"), hooks=[hook])
    naps = [2.0, 1.0, 2.0, 1.0, 2.0]
    await app.run({"naps": naps})
    applied = [outcome.position for outcome, _ in history(hook, {}) if outcome is not None]
    assert applied == [1, 3, 0, 2, 4]


@pytest.mark.realtime
async def test_a_list_closes_up_over_what_failed():
    app = Application(fan_out(refuse_odd, over="n", into="even", on_error="collect"))
    result = await app.run({"n": range(5)})
    assert result.state["even"] == [0, 2, 4]
    assert result.state["even"][1] == 2


@action(reads=["item"], writes=["half", "rest"])
async def divide(item: int) -> dict[str, int]:
    return {"half": item // 2, "rest": item % 2}


def as_number(state: State) -> int:
    return state["half"] * 10 + state["rest"]


@pytest.mark.realtime
@pytest.mark.parametrize(
    ("take", "expected"),
    [
        ("half", [1, 2]),
        ("item", [3, 4]),
        (["half", "rest"], [{"half": 1, "rest": 1}, {"half": 2, "rest": 0}]),
        (as_number, [11, 20]),
    ],
)
async def test_take_names_the_value(take: Any, expected: object):
    app = Application(fan_out(divide, over="numbers", into="out", take=take))
    assert (await app.run({"numbers": [3, 4]})).state["out"] == expected


@pytest.mark.realtime
async def test_without_take_it_is_the_field_named_as_into_or_the_only_write():
    named = Application(fan_out(divide, over="numbers", into="rest"))
    assert (await named.run({"numbers": [3, 4]})).state["rest"] == [1, 0]
    only = Application(fan_out(double, over="numbers", into="anything"))
    assert (await only.run({"numbers": [3, 4]})).state["anything"] == [6, 8]


@pytest.mark.realtime
async def test_a_take_that_raises_is_a_failure_of_that_child():
    def inverse(state: State) -> float:
        return 1 / state["double"]

    app = Application(
        fan_out(double, over="n", into="out", take=inverse, on_error="collect", errors_into="err")
    )
    result = await app.run({"n": [1, 0, 2]})
    assert result.state["out"] == [0.5, 0.25]
    assert result.state["err"][1].type == "ZeroDivisionError"


@pytest.mark.realtime
async def test_a_take_that_returns_what_must_be_awaited_is_a_failure_of_that_child():
    async def later() -> int:
        return 1

    def take(state: State) -> object:
        return later() if state["double"] == 4 else state["double"]

    app = Application(
        fan_out(double, over="n", into="out", take=take, on_error="collect", errors_into="err")
    )
    result = await app.run({"n": [1, 2, 3]})
    assert result.state["out"] == [2, 6]
    assert result.state["err"][1].type == "shoal.BadResult"
    assert "take= of fan-out 'out' is a plain function" in result.state["err"][1].message


@pytest.mark.realtime
@pytest.mark.parametrize("key", [None, str])
async def test_errors_into_collects_failures_as_data(key: Callable[[object], object] | None):
    app = Application(
        fan_out(refuse_odd, over="n", key=key, into="even", errors_into="odd", on_error="collect")
    )
    result = await app.run({"n": range(4), "odd": "what was there before"})
    odd = result.state["odd"]
    assert list(odd) == (["1", "3"] if key else [1, 3])
    info = odd["1" if key else 1]
    assert isinstance(info, ErrorInfo)
    assert (info.type, info.message) == ("ValueError", "1")
    assert "raise ValueError(item)" in info.traceback
    assert all(
        outcome.error.args for outcome in result.outcomes("even") if isinstance(outcome, Failed)
    )


async def test_each_reducer_sees_what_the_one_before_it_left():
    """Also within a batch: all of these end at the same moment."""
    seen = list[tuple[int, list[int]]]()

    def reduce(state: State, outcome: Outcome) -> State:
        seen.append((outcome.position, list(state.get("log", []))))
        return state.append(log=outcome.position)

    hook = RecordingHook()
    app = Application(
        fan_out(sleep, over="naps", reduce=reduce, writes=["log"], name="f"), hooks=[hook]
    )
    result = await app.run({"naps": [1.0] * 7})
    assert seen == [(k, list(range(k))) for k in range(7)]
    assert result.state["log"] == list(range(7))
    assert [list(state["log"]) for _, state in history(hook, {})] == [
        list(range(k + 1)) for k in range(7)
    ]


async def test_a_reducer_sees_the_failures_collected_so_far():
    @action(reads=["item"], writes=["value"])
    async def work(item: int) -> int:
        await anyio.sleep(1)  # so that they end together, and are one batch
        if item % 2:
            raise ValueError(item)
        return item

    def reduce(state: State, outcome: Outcome) -> State:
        return state.append(seen=list(state["errors"]))

    spread = fan_out(
        work,
        over="n",
        reduce=reduce,
        writes=["seen"],
        errors_into="errors",
        on_error="collect",
        name="f",
    )
    result = await Application(spread).run({"n": range(5)})
    assert result.state["seen"] == [[], [1], [1], [1, 3], [1, 3]]


@pytest.mark.realtime
async def test_reduce_is_called_for_results_and_collected_failures_alone():
    kinds = Counter[str]()

    def reduce(state: State, outcome: Outcome) -> State:
        kinds[type(outcome).__name__] += 1
        if isinstance(outcome, Failed):
            return state.append(bad=outcome.element)
        assert isinstance(outcome, Done)
        return state.append(good=outcome.value)

    def app(on_error: Any) -> Application:
        return Application(
            fan_out(
                refuse_odd,
                over="n",
                reduce=reduce,
                writes=["good", "bad"],
                name="f",
                on_error=on_error,
                limits=Limits(1),
            )
        )

    result = await app("collect").run({"n": range(5)})
    assert kinds == {"Done": 3, "Failed": 2}
    assert (result.state["good"], result.state["bad"]) == ([0, 2, 4], [1, 3])
    kinds.clear()
    with pytest.RaisesGroup(ValueError):
        await app("fail").run({"n": range(5)})
    assert kinds == {"Done": 1}


def return_none(state: State, outcome: Outcome) -> Any:
    return None


def return_another_state(state: State, outcome: Outcome) -> State:
    return State(log=[])


def write_undeclared(state: State, outcome: Outcome) -> State:
    return state.update(other=1)


def read_undeclared(state: State, outcome: Outcome) -> State:
    return state.update(log=state["secret"])


def raise_lookup_error(state: State, outcome: Outcome) -> State:
    raise LookupError("no")


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (return_none, BadResult),
        (return_another_state, BadResult),
        (write_undeclared, UndeclaredWrite),
        (read_undeclared, UndeclaredRead),
        (raise_lookup_error, LookupError),
    ],
)
async def test_where_a_reducer_fails_what_was_before_it_stands(
    wrong: Callable[[State, Outcome], State], error: type[Exception]
):
    """All in one batch: the third's reducer is wrong."""

    def reduce(state: State, outcome: Outcome) -> State:
        if outcome.position == 2:
            return wrong(state, outcome)
        return state.append(log=outcome.position)

    hook = RecordingHook()
    spread = fan_out(sleep, over="naps", reduce=reduce, writes=["log"], name="f")
    app = Application(spread, hooks=[hook])
    async with no_leaks():
        with pytest.raises(error) as caught:
            await app.run({"naps": [1.0] * 5 + [9.0], "secret": 1}, id="r")
    assert type(caught.value) is error
    assert any("'f'" in note and "key 2" in note for note in caught.value.__notes__)
    assert [dict(state) for _, state in history(hook, {})][-1] == {"log": [0, 1]}
    hook.assert_paired()
    ends = {e.outcome.position: e.outcome for e in hook.of(ChildEnded)}
    done = [outcome for outcome in ends.values() if isinstance(outcome, Done)]
    assert {outcome.position: outcome.used for outcome in done} == {
        0: True,
        1: True,
        2: False,
        3: False,
        4: False,
    }
    assert isinstance(ends[5], Cancelled)
    assert anyio.current_time() == 1.0


# -- grow, at_most ---------------------------------------------------------------------------------


LINKS = {
    "a": ["b", "c", "a"],
    "b": ["d", "c", "b"],
    "c": ["a", "e"],
    "d": ["f", "e"],
    "e": [],
    "f": ["a", "b", "c", "d", "e", "f"],
}


@action(reads=["item"], writes=["links"])
async def follow(item: str) -> list[str]:
    await anyio.sleep(ord(item) % 3)
    return LINKS[item]


def new_links(state: State, outcome: Outcome) -> list[str]:
    return outcome.value if isinstance(outcome, Done) else []


@pytest.mark.parametrize("limit", [1, 2, 100])
async def test_grow_discovers_everything_once_in_order_of_discovery(limit: int):
    hook = RecordingHook()
    crawl = fan_out(
        follow, over="seeds", key=str, into="site", grow=new_links, limits=Limits(limit)
    )
    app = Application(crawl, hooks=[hook])
    result = await app.run({"seeds": ["a", "a"]})
    assert set(result.state["site"]) == set(LINKS)
    started = [event.element for event in hook.of(ChildStarted)]
    assert sorted(started) == sorted(LINKS)
    ledger = result.outcomes("site")
    links = sum(map(len, LINKS.values()))
    assert (ledger.done, ledger.dropped) == (6, 2 + links - 6)
    discovered = ["a"]  # then what the updates say
    for event in hook.of(StateUpdated):
        if event.depth == 0:
            discovered += [str(element) for element in event.update.discovered]
    assert list(result.state["site"]) == discovered
    by_position = sorted(hook.of(ChildStarted), key=lambda event: event.position)
    assert [event.element for event in by_position] == discovered


async def test_grow_sees_what_reduce_has_just_left_and_failures_too():
    seen = list[tuple[int, int]]()

    def count(state: State, outcome: Outcome) -> State:
        return state.increment(count=1)

    def grow(state: State, outcome: Outcome) -> list[int]:
        seen.append((state["count"], outcome.element))
        return [outcome.element + 1] if outcome.element < 4 else []

    app = Application(
        fan_out(
            refuse_odd,
            over="n",
            reduce=count,
            reads=["count"],
            writes=["count"],
            grow=grow,
            on_error="collect",
            name="f",
        )
    )
    result = await app.run({"n": [0]})
    assert seen == [(1, 0), (2, 1), (3, 2), (4, 3), (5, 4)]
    assert (result.outcomes("f").done, result.outcomes("f").failed) == (3, 2)


async def test_where_grow_fails_nothing_of_what_reduce_has_just_left_stays():
    def count(state: State, outcome: Outcome) -> State:
        return state.increment(count=1)

    def grow(state: State, outcome: Outcome) -> list[int]:
        assert 1 / (2 - outcome.element)
        return []

    hook = RecordingHook()
    step = fan_out(
        double, over="n", reduce=count, writes=["count"], grow=grow, name="f", limits=Limits(1)
    )
    async with Application(step, hooks=[hook]).open({"n": [0, 1, 2]}) as run:
        with pytest.raises(ZeroDivisionError):
            await run.result()
        assert run.state["count"] == 2
    assert [dict(state) for _, state in history(hook, {})][-1] == {"count": 2}


@pytest.mark.realtime
async def test_grow_without_key_counts_positions_on():
    def grow(state: State, outcome: Outcome) -> list[int]:
        return [outcome.element - 1] * 2 if outcome.element else []

    app = Application(fan_out(double, over="n", into="out", grow=grow))
    result = await app.run({"n": [3]})
    assert result.state["out"] == [6, 4, 4, 2, 2, 2, 2, *[0] * 8]
    assert result.outcomes("out").dropped == 0


@pytest.mark.realtime
async def test_with_grow_nothing_is_skipped():
    """What a page that is already there links to is not known."""

    def grow(state: State, outcome: Outcome) -> list[int]:
        return [outcome.element + 1] if outcome.element < 3 else []

    app = Application(fan_out(double, over="n", key=str, into="out", grow=grow))
    result = await app.run({"n": [0], "out": {"0": "old", "9": "old"}})
    assert {k: v for k, v in result.state["out"].items() if k != "9"} == {
        "0": 0,
        "1": 2,
        "2": 4,
        "3": 6,
    }
    assert result.outcomes("out").skipped == 0


@pytest.mark.realtime
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("at_most", [0, 7, 100, 110])
@pytest.mark.parametrize("limit", [1, 100])
async def test_at_most_is_exact_and_nothing_is_pulled_beyond(
    at_most: int, limit: int, is_async: bool
):
    pulled = 0

    def numbers(state: State) -> Iterator[int]:
        nonlocal pulled
        for n in itertools.count():
            pulled += 1
            yield n

    async def numbers_async(state: State) -> AsyncIterator[int]:
        for n in numbers(state):
            yield n

    over = numbers_async if is_async else numbers
    app = Application(
        fan_out(double, over=over, reads=["-"], into="out", at_most=at_most, limits=Limits(limit))
    )
    result = await app.run({"-": None})
    assert result.state["out"] == [2 * n for n in range(at_most)]
    assert result.outcomes("out").total == at_most
    assert pulled == at_most


@pytest.mark.realtime
@pytest.mark.parametrize("limit", [1, 3, 100])
async def test_at_most_is_exact_under_grow(limit: int):
    def grow(state: State, outcome: Outcome) -> list[int]:
        return [2 * outcome.element + 1, 2 * outcome.element + 2]

    app = Application(
        fan_out(double, over="n", key=str, grow=grow, at_most=20, name="f", limits=Limits(limit))
    )
    result = await app.run({"n": [0]})
    assert result.outcomes("f").total == 20


@pytest.mark.realtime
async def test_at_most_reached_by_growing_leaves_the_rest_of_the_source_alone():
    pulled = 0

    async def numbers(state: State) -> AsyncIterator[int]:
        nonlocal pulled
        for n in range(1000):
            pulled += 1
            yield n

    def grow(state: State, outcome: Outcome) -> list[int]:
        return [-10 * outcome.element - n for n in range(1, 5)]

    app = Application(
        fan_out(
            double,
            over=numbers,
            reads=["-"],
            key=str,
            grow=grow,
            at_most=9,
            name="f",
            limits=Limits(2),
        )
    )
    result = await app.run({"-": None})
    assert result.outcomes("f").total == 9
    assert pulled <= 9


async def test_at_most_does_not_wait_for_an_element_that_nobody_needs():
    closed = False

    async def three_and_no_more(state: State) -> AsyncIterator[int]:
        nonlocal closed
        try:
            for n in range(3):
                yield n
            await anyio.sleep_forever()
        finally:
            closed = True

    app = Application(fan_out(double, over=three_and_no_more, reads=["-"], into="out", at_most=3))
    async with no_leaks():
        assert (await app.run({"-": None})).state["out"] == [0, 2, 4]
    assert closed


async def test_nor_when_growing_reaches_it_first():
    closed = False

    async def one_and_no_more(state: State) -> AsyncIterator[int]:
        nonlocal closed
        try:
            yield 1
            await anyio.sleep_forever()
        finally:
            closed = True

    def grow(state: State, outcome: Outcome) -> list[int]:
        return [outcome.element + 1]

    app = Application(
        fan_out(
            double, over=one_and_no_more, reads=["-"], key=int, into="out", grow=grow, at_most=5
        )
    )
    async with no_leaks():
        assert (await app.run({"-": None})).state["out"] == {1: 2, 2: 4, 3: 6, 4: 8, 5: 10}
    assert closed


@pytest.mark.realtime
@pytest.mark.parametrize("returned", ["text", 7, None])
async def test_a_grow_that_returns_no_iterable_is_refused_by_its_key(returned: Any):
    app = Application(fan_out(double, over="n", key=str, into="out", grow=lambda s, o: returned))
    async with no_leaks():
        with pytest.raises(BadResult, match=rf"'out'.*grow.*{kind_of(returned)}.*'5'"):
            await app.run({"n": [5]})


# -- inputs minus outputs --------------------------------------------------------------------------


@pytest.mark.realtime
async def test_what_is_in_the_collection_already_is_skipped():
    hook = RecordingHook()
    app = Application(fan_out(double, over="n", key=str, into="out", name="f"), hooks=[hook])
    result = await app.run({"n": [3, 1, 2, 0], "out": {"1": "kept", "0": "kept", "8": "kept"}})
    expected = {"3": 6, "1": "kept", "2": 4, "0": "kept", "8": "kept"}
    assert result.state["out"] == expected
    # in input order, behind what no element named
    assert list(result.state["out"]) == ["8", "3", "1", "2", "0"]
    assert sorted(event.element for event in hook.of(ChildStarted)) == [2, 3]
    hook.assert_paired()
    ledger = result.outcomes("f")
    assert (ledger.done, ledger.skipped, ledger.total) == (2, 2, 4)
    skipped = list(ledger)
    assert [outcome.key for outcome in skipped] == ["1", "0"]
    assert all(isinstance(outcome, Skipped) for outcome in skipped)
    assert {outcome.reason for outcome in skipped if isinstance(outcome, Skipped)} == {
        "already in out"
    }
    assert sum(isinstance(event.outcome, Skipped) for event in hook.of(ChildEnded)) == 2


@pytest.mark.realtime
async def test_running_again_on_a_result_runs_nothing():
    app = Application(fan_out(double, over="n", key=str, into="out"))
    first = await app.run({"n": range(300)})
    hook = RecordingHook()
    again = Application(app.graph, hooks=[hook])
    second = await again.run(first.state)
    assert second.state == first.state
    assert not hook.of(ChildStarted)
    assert second.outcomes("out").skipped == 300


@pytest.mark.realtime
async def test_skipped_elements_do_not_count_towards_at_most():
    app = Application(fan_out(double, over="n", key=str, into="out", at_most=2))
    result = await app.run({"n": range(9), "out": {"0": 0, "1": 2, "3": 6}})
    assert list(result.state["out"]) == ["0", "1", "2", "3", "4"]


@pytest.mark.realtime
async def test_without_key_everything_runs_again():
    app = Application(fan_out(double, over="n", into="out"))
    result = await app.run({"n": [1, 2], "out": [9, 9, 9]})
    assert result.state["out"] == [2, 4]
    assert result.outcomes("out").done == 2


# -- limits ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["list", "generator", "async generator"])
@pytest.mark.parametrize("limit", [1, 2, 7, 400])
async def test_in_flight_are_as_many_as_the_limit_and_never_more(limit: int, kind: str):
    bearings = Bearings()

    @action(reads=["item"], writes=["done"])
    async def work(item: int) -> None:
        bearings.enter(item)
        await anyio.sleep(1 + item % 3)
        bearings.leave()

    def generator(state: State) -> Iterator[int]:
        yield from state["n"]

    async def async_generator(state: State) -> AsyncIterator[int]:
        for n in state["n"]:
            yield n

    over: Any = {"list": "n", "generator": generator, "async generator": async_generator}[kind]
    app = Application(fan_out(work, over=over, reads=["n"], name="f", limits=Limits(limit)))
    await app.run({"n": list(range(500))})
    assert bearings.peak == limit
    assert len(bearings.started) == 500


@pytest.mark.parametrize("is_async", [False, True])
async def test_an_infinite_source_starts_as_many_as_the_default_limit(is_async: bool):
    bearings, pulled = Bearings(), 0

    @action(reads=["item"], writes=["done"])
    async def work(item: int) -> None:
        bearings.enter(item)
        await anyio.sleep_forever()

    def numbers(state: State) -> Iterator[int]:
        nonlocal pulled
        for n in itertools.count():
            pulled += 1
            yield n

    async def numbers_async(state: State) -> AsyncIterator[int]:
        for n in numbers(state):
            yield n

    over = numbers_async if is_async else numbers
    app = Application(fan_out(work, over=over, reads=["-"], name="f"))
    async with no_leaks():
        with anyio.move_on_after(10):
            await app.run({"-": None})
    assert bearings.started == list(range(100))
    assert pulled == 100


@pytest.mark.realtime
async def test_a_child_costs_no_task_thread_or_file():
    counts = set[int]()
    tasks_before, threads_before = len(anyio.get_running_tasks()), threading.active_count()

    @action(reads=["item"], writes=["done"])
    async def work(item: int) -> None:
        await checkpoint()
        counts.add(len(anyio.get_running_tasks()) - tasks_before)
        assert threading.active_count() <= threads_before
        await checkpoint()

    app = Application(fan_out(work, over="n", name="f", limits=Limits(10)))
    async with no_leaks():
        result = await app.run({"n": range(1000)})
    assert result.outcomes("f").done == 1000
    assert max(counts) <= 10 + 1  # the run's own task, which also hosts the pullers


# -- on_error, groups, the ledger ------------------------------------------------------------------


async def test_fail_cancels_the_rest_applies_what_is_done_and_raises_a_group():
    hook = RecordingHook()
    ended = list[float]()

    @action(reads=["item"], writes=["slept"])
    async def nap(item: float) -> float:
        try:
            await anyio.sleep(abs(item))
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.5)  # a cleanup that takes its time
            ended.append(item)
        if item < 0:
            raise ValueError(item)
        return item

    app = Application(fan_out(nap, over="naps", into="out"), hooks=[hook])
    naps = [9.0, 1.0, -2.0, 2.0, 1.5, -2.0, 8.0]
    async with no_leaks():
        with pytest.raises(ExceptionGroup) as caught:
            await app.run({"naps": naps}, id="r")
        assert sorted(ended) == sorted(naps), "siblings are gone when run raises"
    assert anyio.current_time() == 3.0
    group: ExceptionGroup[Exception] = caught.value
    assert [error.args for error in group.exceptions] == [(-2.0,), (-2.0,)]
    assert "'out'" in str(group)
    notes = [error.__notes__ for error in group.exceptions]
    assert ["key 2," in notes[0][0], "key 5," in notes[1][0]] == [True, True]
    children = {event.position: event.child.id for event in hook.of(ChildStarted)}
    assert "'nap'" in notes[0][0]
    assert children[2] in notes[0][0]
    # what had ended by then, in the very moment too, is part of the state
    assert history(hook, {"naps": naps})[-1][1]["out"] == [1.0, 2.0, 1.5]
    hook.assert_paired()
    ends = Counter(type(event.outcome).__name__ for event in hook.of(ChildEnded))
    assert ends == {"Done": 3, "Failed": 2, "Cancelled": 2}


async def test_failures_of_cleanups_join_the_group_in_input_order():
    @action(reads=["item"], writes=["-"])
    async def nap(item: float) -> None:
        try:
            await anyio.sleep(item)
            raise ValueError(item)
        finally:
            if item > 1:
                raise OSError(item)

    with pytest.raises(ExceptionGroup) as caught:
        await Application(fan_out(nap, over="naps", name="f")).run({"naps": [3, 1, 2]})
    group: ExceptionGroup[Exception] = caught.value
    kinds = [(type(error), error.args) for error in group.exceptions]
    assert kinds == [(OSError, (3,)), (ValueError, (1,)), (OSError, (2,))]


class NoText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class NoRepr(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


@dataclass(frozen=True)
class Frozen(Exception):
    """Can't be given a note."""

    code: int


class NoNotes(Exception):
    __notes__ = None  # pyright: ignore[reportAssignmentType] # what it is about


@pytest.mark.parametrize("on_error", ["fail", "collect"])
@pytest.mark.parametrize("kind", [NoText, NoRepr, Frozen, NoNotes])
async def test_an_exception_that_misbehaves_itself_is_a_failure_like_any_other(
    kind: Callable[[int], Exception], on_error: Any
):
    @action(reads=["item"], writes=["value"])
    async def work(item: int) -> int:
        await anyio.sleep(1)  # so that they end together, and are one batch
        if item == 3:
            raise kind(item)
        return item

    hook = RecordingHook()
    errors: Any = {"errors_into": "errors"} if on_error == "collect" else {}
    app = Application(
        fan_out(work, over="n", into="out", on_error=on_error, **errors), hooks=[hook]
    )
    async with no_leaks():
        if on_error == "fail":
            with pytest.raises(ExceptionGroup) as caught:
                await app.run({"n": range(6)})
            assert [type(error) for error in leaves(caught.value)] == [kind]
        else:
            state = (await app.run({"n": range(6)})).state
            assert state["out"] == [0, 1, 2, 4, 5]
            assert list(state["errors"]) == [3]
    hook.assert_paired()
    assert history(hook, {})[-1][1]["out"] == [0, 1, 2, 4, 5]
    with pytest.raises(Exception) as alone:
        await Application(work).run({"item": 3})
    assert type(alone.value) is kind


async def test_an_exception_that_is_shared_harms_nobody_else():
    """As children that await one failed future share it. Its traceback shows where they stand."""
    error = LookupError("shared")

    @action(reads=["item"], writes=["value"])
    async def work(item: int) -> int:
        try:
            await anyio.sleep(1)
            raise error
        except LookupError:
            if item == 1:
                raise
            await anyio.sleep(1)  # a handler that takes its time, while the others' failure is kept
        return item

    app = Application(fan_out(work, over="n", into="out", on_error="collect", errors_into="errors"))
    async with no_leaks():
        try:
            raise error
        except LookupError:
            result = await app.run({"n": range(4)})
    assert result.state["out"] == [0, 2, 3]
    assert result.state["errors"][1].message == "shared"


@pytest.mark.realtime
async def test_collect_runs_everything_and_the_ledger_has_the_failures():
    app = Application(fan_out(refuse_odd, over="n", key=str, into="even", on_error="collect"))
    result = await app.run({"n": range(10), "even": {"4": "kept"}})
    ledger = result.outcomes("even")
    assert (ledger.done, ledger.failed, ledger.skipped, ledger.cancelled) == (4, 5, 1, 0)
    assert (ledger.total, len(ledger)) == (10, 6)
    rest = list(ledger)
    assert [outcome.position for outcome in rest] == [1, 3, 4, 5, 7, 9]
    for outcome in rest:
        if isinstance(outcome, Failed):
            assert isinstance(outcome.error, ValueError)
            assert outcome.element == outcome.position
    with pytest.raises(KeyError, match=r"'nothing'.*even"):
        result.outcomes("nothing")


@action(reads=["item"], writes=["pair"])
async def pair(item: int) -> list[int]:
    await checkpoint()
    return [10 * item, 10 * item + 1]


def leaves(error: object) -> tuple[Exception, ...]:
    """What is in a group; nothing for what is none."""
    if not isinstance(error, ExceptionGroup):
        return ()
    return cast("ExceptionGroup[Exception]", error).exceptions


def three_deep(leaf: Any, *, take: str, **options: Any) -> FanOut:
    inner = fan_out(leaf, over="pair", into="inner", take=take, **options)
    middle = fan_out(Graph.chain(pair, inner), over="pair", into="middle", take="inner", **options)
    return fan_out(Graph.chain(pair, middle), over="n", into="out", take="middle", **options)


@pytest.mark.realtime
@pytest.mark.parametrize("limit", [1, 2, 100])
async def test_nested_three_deep(limit: int):
    hook = RecordingHook()
    app = Application(three_deep(double, take="double", limits=Limits(limit)), hooks=[hook])
    async with no_leaks():
        result = await app.run({"n": [1, 2]})
    assert result.state["out"] == [[[200, 202], [220, 222]], [[400, 402], [420, 422]]]
    hook.assert_paired()
    assert Counter(event.depth for event in hook.of(RunEnded)) == {0: 1, 1: 2, 2: 4, 3: 8}


async def test_groups_nest_in_input_order_with_a_note_at_every_level():
    @action(reads=["item"], writes=["-"])
    async def refuse(item: int) -> None:
        await anyio.sleep(1)
        if item not in (100, 111):
            raise ValueError(item)

    with pytest.raises(ExceptionGroup) as caught:
        await Application(three_deep(refuse, take="-")).run({"n": [1, 2]}, id="r")

    def tree(error: Exception) -> object:
        return [tree(inner) for inner in leaves(error)] or error.args[0]

    assert tree(caught.value) == [[[101], [110]], [[200, 201], [210, 211]]]
    first = leaves(caught.value)[0]
    assert "fan-out 'middle'" in str(first)
    assert any("of 'out', key 0" in note for note in first.__notes__)


@pytest.mark.realtime
async def test_collected_failures_of_nested_fan_outs_are_groups():
    app = Application(three_deep(refuse_odd, take="checked"))
    collecting = fan_out(app.graph, over="m", item="n", into="all", take="out", on_error="collect")
    result = await Application(collecting).run({"m": [[1], [2]]})
    (one, two) = result.outcomes("all")
    assert isinstance(one, Failed)
    assert isinstance(one.error, ExceptionGroup)
    assert isinstance(two, Failed)
    assert result.state["all"] == []


# -- sources that fail, and closing ----------------------------------------------------------------


class Closing:
    """A source that knows whether, and where, it was closed."""

    def __init__(self, *, fails_at: int = -1, error: BaseException | None = None) -> None:
        self.fails_at = fails_at
        self.error = error
        self.closed = 0
        self.opened_in: object = None

    def numbers(self, state: State) -> Generator[int, None, None]:
        try:
            for n in range(state["top"]):
                if n == self.fails_at:
                    raise self.error or OSError("the source broke")
                yield n
        finally:
            self.closed += 1

    async def numbers_async(self, state: State) -> AsyncIterator[int]:
        me = anyio.get_current_task().id
        numbers = self.numbers(state)
        try:
            for n in numbers:
                await checkpoint()
                yield n
        finally:
            numbers.close()
            with anyio.CancelScope(shield=True):
                await checkpoint()  # what waits is awaited
            assert anyio.get_current_task().id == me, "closed in the task that advanced it"
            self.closed += 1


@pytest.mark.sweep
@pytest.mark.realtime
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    "way_out",
    ["end", "at_most", "child fails", "source fails", "bad key", "cancel", "reduce fails"],
)
async def test_a_generator_is_closed_on_every_way_out(way_out: str, is_async: bool):
    source = Closing(fails_at=4 if way_out == "source fails" else -1)

    @action(reads=["item"], writes=["n"])
    async def work(item: int) -> int:
        await checkpoint()
        if way_out == "child fails" and item == 2:
            raise ValueError(item)
        if way_out == "cancel" and item == 2:
            scope.cancel()
            await anyio.sleep_forever()
        return item

    def reduce(state: State, outcome: Outcome) -> State:
        if way_out == "reduce fails" and outcome.position == 2:
            raise ValueError
        return state

    def key(element: int) -> Any:
        return None if way_out == "bad key" and element == 3 else element

    app = Application(
        fan_out(
            work,
            over=source.numbers_async if is_async else source.numbers,
            reads=["top"],
            key=key,
            reduce=reduce,
            writes=["x"],
            name="f",
            limits=Limits(2),
            at_most=5 if way_out == "at_most" else None,
        )
    )
    raised = None
    async with no_leaks():
        with anyio.CancelScope() as scope:
            try:
                await app.run({"top": 10})
            except Exception as error:
                raised = error
    expected = {
        "child fails": ExceptionGroup,
        "source fails": OSError,
        "bad key": BadKey,
        "reduce fails": ValueError,
    }.get(way_out)
    assert type(raised) is (expected or type(None)), raised
    assert source.closed == (2 if is_async else 1)


async def test_a_source_that_raises_fails_the_step_when_all_children_are_gone():
    hook = RecordingHook()
    source = Closing(fails_at=4)
    ended = list[int]()

    @action(reads=["item"], writes=["n"])
    async def work(item: int) -> int:
        try:
            await anyio.sleep(1 if item < 3 else 10)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1)
            ended.append(item)
        return item

    app = Application(
        fan_out(work, over=source.numbers, reads=["top"], into="out", limits=Limits(2)),
        hooks=[hook],
    )
    async with no_leaks():
        with pytest.raises(OSError, match="the source broke"):
            await app.run({"top": 10})
        assert sorted(ended) == [0, 1, 2, 3]
    hook.assert_paired()
    ends = {event.outcome.position: type(event.outcome) for event in hook.of(ChildEnded)}
    assert ends == {0: Done, 1: Done, 2: Done, 3: Cancelled}


KINDS: dict[str, Callable[[], BaseException]] = {
    "cancellation": cancellation,
    "GeneratorExit": GeneratorExit,
    "StopIteration": StopIteration,
}


@pytest.mark.sweep
@pytest.mark.realtime
@pytest.mark.parametrize("where", ["over", "async over", "key", "reduce", "grow"])
@pytest.mark.parametrize("kind", KINDS)
async def test_no_false_cancellation_from_what_the_fan_out_calls(where: str, kind: str):
    """``future.result()`` of a future that somebody cancelled raises it, for one."""
    hook = RecordingHook()

    def boom(here: str) -> None:
        if here == where:
            error = KINDS[kind]()
            raise error

    class Numbers:
        def __init__(self) -> None:
            self.n = -1

        def __iter__(self) -> Iterator[int]:
            return self

        def __next__(self) -> int:
            self.n += 1
            if self.n == 4 and kind != "StopIteration":  # which is its way to say that it's done
                boom("over")
            if self.n == 10:
                raise StopIteration
            return self.n

    async def numbers_async(state: State) -> AsyncIterator[int]:
        for n in range(10):
            await checkpoint()
            if n == 4:
                boom("async over")
            yield n

    def key(element: int) -> int:
        if element == 4:
            boom("key")
        return element

    def reduce(state: State, outcome: Outcome) -> State:
        if outcome.position == 4:
            boom("reduce")
        return state.append(out=outcome.position)

    def grow(state: State, outcome: Outcome) -> list[int]:
        if outcome.position == 4:
            boom("grow")
        return []

    app = Application(
        fan_out(
            double,
            over=numbers_async if where == "async over" else lambda state: Numbers(),
            reads=["-"],
            key=key,
            reduce=reduce,
            grow=grow,
            writes=["out"],
            name="f",
            limits=Limits(3),
        ),
        hooks=[hook],
    )
    async with no_leaks():
        if kind == "StopIteration" and where == "over":
            assert len((await app.run({"-": None})).state["out"]) == 10
            return
        with pytest.raises((SpuriousCancel, RuntimeError, StopIteration)) as caught:
            await app.run({"-": None})
    assert isinstance(caught.value, SpuriousCancel) == (kind != "StopIteration")
    hook.assert_paired()
    (end,) = (event for event in hook.of(RunEnded) if event.depth == 0)
    assert end.status == "failed"


class Stopped(Exception):
    """What ends a fan-out here."""


@action(reads=["item"], writes=["out"])
async def stop_at_2(item: int) -> int:
    await anyio.sleep(1)
    if item == 2:
        raise Stopped
    return item


@pytest.mark.parametrize("cleanup", ["waits", "yields", "yields twice", "raises", "never ends"])
@pytest.mark.parametrize("way_out", ["at most", "fails", "is cancelled"])
async def test_a_source_is_closed_inside_of_the_scopes_that_it_holds(
    way_out: str, cleanup: str, caplog: pytest.LogCaptureFixture
):
    closed = list[str]()

    async def numbers() -> AsyncIterator[int]:
        async with anyio.create_task_group():
            with anyio.CancelScope():
                try:
                    for number in itertools.count():
                        await checkpoint()
                        yield number
                finally:
                    await anyio.sleep(math.inf if cleanup == "never ends" else 1)
                    closed.append(cleanup)
                    if cleanup == "raises":
                        raise LookupError("while closing")
                    if cleanup == "yields":
                        yield -1
                    if cleanup == "yields twice":
                        try:
                            yield -1
                        except GeneratorExit:
                            yield -2

    at_most = 2 if way_out == "at most" else None
    act = fan_out(
        stop_at_2, over=lambda _: numbers(), reads=[], name="f", at_most=at_most, limits=Limits(3)
    )
    raised: BaseException | None = None
    began = anyio.current_time()
    async with no_leaks():
        with anyio.move_on_after(0.5 if way_out == "is cancelled" else math.inf):
            try:
                await Application(act).run()
            except ExceptionGroup as error:
                raised = error.exceptions[0]
    is_raised = cleanup == "raises" and way_out == "at most"
    expected = LookupError if is_raised else Stopped if way_out == "fails" else type(None)
    assert type(raised) is expected
    assert closed == ([] if cleanup == "never ends" else [cleanup])
    last = {"fails": 1.0, "is cancelled": 0.5, "at most": 0.0}[way_out]
    took = last + (5 if cleanup == "never ends" else 1)
    assert anyio.current_time() - began == pytest.approx(took)
    logged = [one for one in caplog.messages if "was closed" in one]
    assert bool(logged) == (cleanup != "waits" and not is_raised)


@pytest.mark.parametrize("is_async", [False, True])
async def test_an_error_of_closing_does_not_hide_why_the_fan_out_failed(is_async: bool):
    def numbers(state: State) -> Iterator[int]:
        try:
            yield from range(10)
        finally:
            raise OSError("closing failed")

    async def numbers_async(state: State) -> AsyncIterator[int]:
        try:
            for n in range(10):
                yield n
        finally:
            raise OSError("closing failed")

    @action(reads=["item"], writes=["n"])
    async def work(item: int) -> None:
        await anyio.sleep(1)
        raise ValueError(item)

    hook = RecordingHook()
    over = numbers_async if is_async else numbers
    app = Application(
        fan_out(work, over=over, reads=["-"], name="f", limits=Limits(2)), hooks=[hook]
    )
    async with no_leaks():
        with pytest.raises(ExceptionGroup) as caught:
            await app.run({"-": None})
    group: ExceptionGroup[Exception] = caught.value
    assert [type(error) for error in group.exceptions] == [ValueError, ValueError]
    hook.assert_paired()


# -- isolation -------------------------------------------------------------------------------------


LETTER = ContextVar("LETTER", default="unset")


@pytest.mark.realtime
@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize("limit", [1, 2, 50])
async def test_a_context_variable_set_by_a_child_is_seen_by_nobody_else(limit: int, waits: bool):
    seen = list[tuple[str, str]]()

    @action(reads=[], writes=["began"])
    async def begin() -> None:
        LETTER.set("the step's")

    @action(reads=["item"], writes=["one"])
    async def one(item: int) -> str:
        before = LETTER.get()
        if waits:
            await checkpoint()
        LETTER.set(f"child {item}")
        if waits:
            await checkpoint()
        return before

    @action(reads=["item", "one"], writes=["two"])
    async def two(item: int, one: str) -> None:
        assert LETTER.get() == f"child {item}", "the steps of one child share a context"
        seen.append((one, LETTER.get()))

    @action(reads=[], writes=["ended"])
    async def end() -> str:
        return LETTER.get()

    LETTER.set("the caller's")
    spread = fan_out(Graph.chain(one, two), over="n", name="f", take="one", limits=Limits(limit))
    result = await Application(Graph.chain(begin, spread, end)).run({"n": range(30)})
    assert {before for before, _ in seen} == {"the step's"}
    assert result.state["ended"] == "the step's"
    assert LETTER.get() == "the caller's"


# -- depth -----------------------------------------------------------------------------------------


def levels(count: int) -> FanOut:
    spread = fan_out(double, over="list", item="item", into="level", take="double")
    for _ in range(count - 1):
        spread = fan_out(spread, over="list", item="item", into="level", take="level")
    return spread


async def test_fan_outs_nest_64_deep_and_no_deeper():
    deepest = await Application(levels(64)).run({"list": [1]})
    value = deepest.state["level"]
    for _ in range(63):
        (value,) = value
    assert value == [2]

    hook = RecordingHook()
    with pytest.raises(ExceptionGroup) as caught:
        await Application(levels(65), hooks=[hook]).run({"list": [1]})
    hook.assert_paired()
    error: Exception = caught.value
    while inner := leaves(error):
        (error,) = inner
    assert isinstance(error, DepthExceeded)
    assert "64" in str(error)


async def test_64_levels_are_cancelled_at_once():
    spread = fan_out(block, over="list", into="level", take="never")
    for _ in range(63):
        spread = fan_out(spread, over="list", into="level", take="level")
    hook = RecordingHook()
    async with no_leaks():
        with anyio.move_on_after(1) as scope:
            await Application(spread, hooks=[hook]).run({"list": [1]})
    assert scope.cancelled_caught
    hook.assert_paired()
    assert len(hook.of(RunEnded)) == 65
