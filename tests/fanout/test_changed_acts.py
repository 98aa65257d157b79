"""Runs whose list of acts has changed when they are resumed, however much of them was done."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from typing import Any, Literal

import anyio
import pytest

from shoal import (
    Application,
    Each,
    Graph,
    Limits,
    MemoryStore,
    Outcome,
    Result,
    Retry,
    RunPath,
    State,
    StoreFailed,
    action,
    fan_out,
    first_item,
)
from shoal._graph.until import OnBreak
from shoal.events import Decision
from shoal.types import Act, Key

pytestmark = pytest.mark.anyio

NS = [1, 2, 3, 4, 5]


def act(name: str, stop: int, end: str, reads: Sequence[str] = ("n",)) -> Act:
    """Make an act that is at work for longer the greater its number is, and fails at ``stop``."""

    @action(reads=reads, writes=["v"], name=name)
    async def work(n: int) -> str:
        await anyio.sleep(n)
        if n == stop:
            if end == "failed":
                raise ConnectionError(name)
            await anyio.sleep_forever()
        return f"{name}{n}"

    return work


class Dying:
    """A store whose process dies once so many saves were kept."""

    def __init__(self, store: Any, saves: int) -> None:
        self._store, self._left = store, saves

    def save(self, batch: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise OSError("the process is dead")
        return self._store.save(batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


CHANGES = ["A A", "A AY", "A ZA", "AB ABY", "AB ZAB", "AB AZB", "AB BA", "ABY YAB", "AB YBXA"]


@pytest.mark.parametrize("end", ["failed", "cancelled", "killed"])
@pytest.mark.parametrize("limit", [1, 2, 100])
@pytest.mark.parametrize("kind", ["key", "no key", "same elements", "no elements"])
@pytest.mark.parametrize("change", CHANGES)
async def test_acts_of_a_list_change_however_much_was_done(
    change: str, kind: str, limit: int, end: Literal["failed", "cancelled", "killed"]
):
    before, after = change.split()
    over: dict[str, Any] = {"over": "ns", "item": "n"}
    over = {"key": {**over, "key": str}, "no elements": {}}.get(kind, over)
    ns = [2] * 5 if kind == "same elements" else NS

    def application(names: str, store: Any, stop: int = 0) -> Application[Any]:
        acts = [act(name, stop, end) for name in names]
        if not over:
            acts = [act(name, stop, end, ()).bind(n="ABXYZ".index(name) + 1) for name in names]
        fan = fan_out(acts, into="out", limits=Limits(limit), name="fan", **over)
        return Application(fan, name="app", store=store)

    for stop in range(1, 20 if end == "killed" else 6):
        store = MemoryStore()
        if end == "killed":
            begins = application(before, Dying(store, stop))
        else:
            begins = application(before, store, stop)
        with suppress(ExceptionGroup, StoreFailed), anyio.move_on_after(60):
            await begins.run({"ns": ns}, id="x")
            break  # it came to its end
        result = await application(after, store).run({"ns": ns}, id="x")
        clean = await application(after, MemoryStore()).run({"ns": ns})
        assert result.state == clean.state
        assert repr(result.state) == repr(clean.state), "in the same order"


async def test_elements_that_are_the_same_are_not_taken_for_each_other():
    """Element 1 of act A now has the place that element 2, which is done, had then."""
    seconds = [1, 99, 1, 1]

    @action(reads=["n"], writes=["v"], name="A")
    async def work(n: int) -> int:
        await anyio.sleep(seconds.pop(0) if seconds else 0)
        return n

    def application(*acts: Act, store: Any) -> Application[Any]:
        return Application(fan_out(acts, over="ns", item="n", into="out", name="fan"), store=store)

    other, store = act("B", 0, ""), MemoryStore()
    dying = Dying(store, 3)
    with suppress(StoreFailed):
        await application(work, store=dying).run({"ns": [7] * 4}, id="x")
    result = await application(work, other, store=store).run(id="x")
    assert result.state["out"] == [{"A": 7, "B": "B7"}] * 4


def counted(state: State, outcome: Outcome) -> State:
    return state.increment(**{f"{outcome.act}{outcome.element}": 1})


@pytest.mark.parametrize("stop", range(1, 7))
@pytest.mark.parametrize("limit", [1, 2, 6])
@pytest.mark.parametrize("change", ["A AB", "A BA", "AB BYA", "A AB BAY"])
async def test_elements_that_grow_behind_another_list_of_acts_take_no_others_place(
    change: str, limit: int, stop: int
):
    """Without keys an element is known by its index, and its position counts acts."""
    ns = [1, 2, 3, 4, 5, 6]
    store, (*before, last) = MemoryStore(), change.split()

    def application(names: str, *, stop: int = 0) -> Application[Any]:
        def grow(state: State, outcome: Outcome) -> list[int]:
            is_cause = not stop and (outcome.act, outcome.element) == (last[-1], 1)
            return [70, 80] if is_cause else []

        acts = [act(name, stop, "cancelled") for name in names]
        options: dict[str, Any] = {"limits": Limits(limit), "name": "fan", "grow": grow}
        writes = [f"{name}{n}" for name in "ABY" for n in (*ns, 70, 80)]
        fan = fan_out(acts, over="ns", item="n", reduce=counted, writes=writes, **options)
        return Application(fan, name="app", store=store)

    # Nothing grows before the last program: only then may the number of acts be another one.
    for names in before:
        with anyio.move_on_after(30):
            await application(names, stop=stop).run({"ns": ns}, id="x")
    result = await application(last).run(id="x")
    found = {name: count for name, count in result.state.items() if name != "ns"}
    grown = (70, 80) if any(f"{name}70" in found for name in last) else ()
    expected = {f"{name}{n}": 1 for name in last for n in (*ns, *grown)}
    assert {name: found.get(name) for name in expected} == expected


@pytest.mark.parametrize("limit", [1, 2, 6])
@pytest.mark.parametrize("change", ["A AB", "A ABY", "A AYB"])
async def test_children_that_at_most_counts_come_up_behind_a_longer_list_of_acts(
    change: str, limit: int
):
    """All of them have begun: the last ones have other positions now than then."""
    ns = [1, 2, 3, 4, 5, 6]
    before, after = change.split()

    def application(names: str, *, stop: int = 0) -> Application[Any]:
        def over(state: State) -> Iterator[int]:
            yield from ns

        acts = [act(name, stop, "failed") for name in names]
        writes = [f"{name}{n}" for name in "ABY" for n in ns]
        given: dict[str, Any] = {"over": over, "item": "n", "reads": [], "at_most": 6}
        limits = Limits(limit)
        fan = fan_out(acts, reduce=counted, writes=writes, name="fan", limits=limits, **given)
        return Application(fan, name="app", store=store)

    store = MemoryStore()
    with suppress(ExceptionGroup):
        await application(before, stop=6).run({}, id="x")
    result = await application(after).run(id="x")
    assert result.state == {f"A{n}": 1 for n in ns}


@pytest.mark.parametrize("saves", range(1, 6))
@pytest.mark.parametrize("on_break", ["fail", "restart"])
async def test_the_first_item_decides_though_its_act_is_renamed_before_there_is_a_record(
    on_break: OnBreak, saves: int
):
    """The key alone finds the winner among the children of an only act."""

    def application(name: str, store: Any) -> Application[Any]:
        @action(reads=["n"], writes=["v"], name=name)
        async def work(n: int) -> AsyncIterator[str | Result[str]]:
            await anyio.sleep(abs(n - first))
            yield "so"
            await anyio.sleep(1)
            yield Result(f"{n} is first")

        until = first_item(on_break=on_break)
        fan = fan_out(work, over="ns", item="n", key=str, into="out", until=until, name="fan")
        return Application(fan, name="app", store=store)

    store, first = MemoryStore(), 3
    with suppress(StoreFailed):
        await application("A", Dying(store, saves)).run({"ns": NS}, id="x")
    first = 5
    is_decided = any(isinstance(one, Decision) for one in await store.read(RunPath(run_id="x")))
    result = await application("X", store).run({"ns": NS}, id="x")
    assert result.state["out"] == f"{3 if is_decided else 5} is first"


@pytest.mark.parametrize("limit", [1, 2, 6])
@pytest.mark.parametrize("grows", [False, True])
@pytest.mark.parametrize("change", ["A AB", "A BAY", "AB ABY", "AB A"])
async def test_elements_have_keys_of_their_own_if_more_acts_are_chosen_in_another_attempt(
    change: str, grows: bool, limit: int
):
    """The first attempt fails where element 3 is applied; without keys, their indices are keys."""
    choices, keys = change.split(), dict[tuple[str, Key], int]()
    ns, is_first = [1, 2, 3, 4, 5, 6], True

    def choose(state: State) -> Sequence[Act]:
        return [act(name, 0, "") for name in choices[not is_first]]

    def note(state: State, outcome: Outcome) -> State:
        nonlocal is_first
        if is_first and outcome.element == 3:
            is_first = False
            raise ConnectionError
        assert isinstance(outcome.element, int)
        assert keys.setdefault((outcome.act, outcome.key), outcome.element) == outcome.element
        return state.increment(done=1)

    def grow(state: State, outcome: Outcome) -> list[int]:
        return [7, 8] if (outcome.act, outcome.element) == ("A", 1) else []

    inner = fan_out(
        choose, over="ns", item="n", reduce=note, writes=["done"], reads=["ns"], name="fan",
        grow=grow if grows else None, limits=Limits(limit),
    )  # fmt: skip
    outer = fan_out(
        Graph.chain(inner, name="inner"), over="names", key=str, into="all", take="done",
        name="outer", each=Each(retry=Retry(attempts=2, on=ConnectionError, jitter=0)),
    )  # fmt: skip
    app = Application(outer, name="app", store=MemoryStore())
    result = await app.run({"names": ["x"], "ns": ns}, id="x")
    assert result.state["all"] == {"x": len(keys)}
    elements = set(keys.values())
    assert elements == {*ns, 7, 8} if grows else set(ns)
    assert len({(name, element) for (name, _), element in keys.items()}) == len(keys)
