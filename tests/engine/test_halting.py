"""Runs that halt: among siblings, in races, below, between two steps; and how they are answered."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from math import inf
from typing import Any, Literal

import anyio
import pytest

from shoal import (
    Application,
    Cancelled,
    Context,
    Done,
    Each,
    Graph,
    Hedge,
    Hook,
    Limits,
    MapStates,
    MemoryStore,
    NobodyAccepted,
    Outcome,
    Question,
    Rate,
    Result,
    Retry,
    RunResult,
    Runtime,
    SQLiteStore,
    State,
    Tolerate,
    UnknownQuestion,
    action,
    fan_out,
    first,
    first_item,
    quorum,
    race,
)
from shoal.errors import BadUse, DefinitionError, NotData
from shoal.events import (
    ChildEnded,
    ChildHalted,
    ChildName,
    ChildStarted,
    RunEnded,
    StateUpdated,
    StepEnded,
)
from shoal.stores import Store
from shoal.testing import RecordingHook, cancel_everywhere, crash_everywhere, no_leaks

pytestmark = pytest.mark.anyio

Backend = Literal["asyncio", "trio"]

ran = list[Any]()


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()


@action(reads=["item"], writes=["out"])
async def leaf(item: str, context: Context) -> str:
    """Sleeps a second; those in capitals ask, those with a dash fail after another one."""
    ran.append(item)
    await anyio.sleep(1)
    if item.startswith("-"):
        await anyio.sleep(1)
        raise ValueError(item)
    if item.isupper():
        return f"{item}={await context.ask('ok', item.lower())}"
    return item


def application(act: Any, **options: Any) -> tuple[Application[Any], RecordingHook]:
    hook = RecordingHook()
    given: dict[str, Any] = {"store": MemoryStore(), "hooks": [hook], **options}
    return Application(act, **given), hook


def keys(result: RunResult[Any]) -> list[Any]:
    return [one.key for one in result.questions]


def answers_of(result: RunResult[Any]) -> dict[Any, Any]:
    return {one.address: "yes" for one in result.questions}


def losers(result: RunResult[Any], step: str) -> dict[Any, tuple[str, ChildName | None]]:
    return {
        one.key: (one.reason, one.winner)
        for one in result.outcomes(step)
        if isinstance(one, Cancelled)
    }


each = fan_out(leaf, over="items", item="item", key=str, into="outs", take="out")


# -- among siblings --------------------------------------------------------------------------------


async def test_siblings_go_on_and_only_an_answered_child_runs_again():
    app, hook = application(each)
    async with no_leaks():
        result = await app.run({"items": ["a", "B", "c", "D"]}, id="x")
    assert (result.status, keys(result)) == ("halted", ["B", "D"])
    assert result.state["outs"] == {"a": "a", "c": "c"}
    ledger = result.outcomes("outs")
    assert (ledger.done, ledger.halted, ledger.total, list(ledger)) == (2, 2, 2, [])
    assert [event.halted.key for event in hook.of(ChildHalted)] == ["B", "D"]
    assert [event.halted.questions for event in hook.of(ChildHalted)] == [
        (one,) for one in result.questions
    ]
    hook.assert_paired()

    ran.clear()
    hook.events.clear()
    result = await app.run(id="x", answers={result.questions[1].address: "yes"})
    assert (result.status, keys(result), ran) == ("halted", ["B"], ["D"])
    assert result.state["outs"] == {"a": "a", "c": "c", "D": "D=yes"}
    assert [event.child.key for event in hook.of(ChildStarted)] == ["D"]
    hook.assert_paired()

    ran.clear()
    result = await app.run(id="x", answers={"ok": "no"})
    assert (result.status, result.questions, ran) == ("succeeded", (), ["B"])
    assert list(result.state["outs"].items()) == [
        ("a", "a"), ("B", "B=no"), ("c", "c"), ("D", "D=yes"),
    ]  # fmt: skip
    assert (result.outcomes("outs").halted, result.outcomes("outs").done) == (0, 4)


async def test_a_halted_child_takes_no_place_in_flight():
    act = fan_out(leaf, over="items", item="item", key=str, into="outs", limits=Limits(1))
    app, _ = application(act)
    result = await app.run({"items": ["A", "B", "c"]}, id="x")
    assert (keys(result), result.state["outs"]) == (["A", "B"], {"c": "c"})
    assert ran == ["A", "B", "c"]


async def test_a_resting_child_is_not_charged_again():
    limits = Limits(10, rate=Rate(1, per=10))
    act = fan_out(leaf, over="items", item="item", key=str, into="outs", limits=limits)
    app, _ = application(act)
    result = await app.run({"items": ["A", "B", "C"]}, id="x")
    began = anyio.current_time()
    result = await app.run(id="x", answers={result.questions[2].address: "yes"})
    assert anyio.current_time() - began == pytest.approx(1)
    assert keys(result) == ["A", "B"]


async def test_questions_come_in_order_of_positions_and_not_of_time():
    @action(reads=["item"], writes=["out"])
    async def late(item: int, context: Context) -> str:
        await anyio.sleep(10 - item)
        return await context.ask("ok", item)

    app, _ = application(fan_out(late, over="items", item="item", into="outs"))
    result = await app.run({"items": range(5)}, id="x")
    assert [one.question for one in result.questions] == [0, 1, 2, 3, 4]
    assert list(await app.questions("x")) == list(result.questions)


@pytest.mark.parametrize("on_error", ["collect", "ignore", Tolerate(count=1)])
async def test_a_halted_child_has_neither_failed_nor_succeeded(on_error: Any):
    errors: dict[str, Any] = {} if on_error == "ignore" else {"errors_into": "errors"}
    act = fan_out(
        leaf, over="items", item="item", key=str, into="outs", on_error=on_error, **errors
    )
    app, _ = application(act)
    result = await app.run({"items": ["-a", "B", "C", "d"]}, id="x")
    assert (result.status, keys(result)) == ("halted", ["B", "C"])
    assert set(result.state.get("errors", {"-a": 1})) == {"-a"}
    result = await app.run(id="x", answers=answers_of(result))
    assert result.status == "succeeded"
    assert list(result.state["outs"]) == ["B", "C", "d"]


async def test_a_failure_beside_a_question_fails_the_step():
    app, hook = application(each)
    for _ in range(2):
        with pytest.raises(ExceptionGroup):
            await app.run({"items": ["B", "-c"]}, id="x")
        assert [one.key for one in await app.questions("x")] == ["B"]
    hook.assert_paired()
    assert ran == ["B", "-c", "-c"]  # who rests is left alone


async def test_reduce_is_not_called_for_a_halted_child():
    def collect(state: State, outcome: Any) -> State:
        return state.append(seen=outcome.key)

    act = fan_out(
        leaf, over="items", item="item", key=str, reduce=collect, writes=["seen"], name="f"
    )
    app, _ = application(act)
    result = await app.run({"items": ["a", "B"], "seen": []}, id="x")
    assert (result.status, result.state["seen"]) == ("halted", ["a"])
    result = await app.run(id="x", answers=answers_of(result))
    assert result.state["seen"] == ["a", "B"]


async def test_what_grows_goes_on_beside_a_question():
    def grow(state: State, outcome: Any) -> Iterable[str]:
        return [outcome.element + "x"] if len(outcome.element) < 4 else []

    act = fan_out(
        leaf, over="items", item="item", key=str, into="outs", take="out", grow=grow, at_most=20
    )
    app, _ = application(act)
    result = await app.run({"items": ["a", "B"]}, id="x")
    assert list(result.state["outs"]) == ["a", "ax", "axx", "axxx"]
    result = await app.run(id="x", answers=answers_of(result))
    assert result.status == "succeeded"
    assert set(result.state["outs"]) == {"a", "ax", "axx", "axxx", "B", "Bx", "Bxx", "Bxxx"}


async def test_a_child_with_another_element_is_asked_anew():
    def graph(version: str) -> Graph:
        return Graph.chain(fan_out(
            action(reads=["item"], writes=["out"], name="leaf", version=version)(leaf.function),
            over="items", item="item", key=str, into="outs", take="out",
        ), name="app")  # fmt: skip

    store = MemoryStore()
    old = await Application(graph("1"), store=store).run({"items": ["A"]}, id="x")
    new = await Application(graph("2"), store=store).run(id="x")
    assert old.questions[0].address == new.questions[0].address
    assert old.questions[0].id != new.questions[0].id
    result = await Application(graph("2"), store=store).run(id="x", answers={"ok": 1})
    assert result.state["outs"] == {"A": "A=1"}
    again = await Application(graph("3"), store=store).run(id="x")
    assert again.status == "succeeded"  # what is over is over


# -- below -----------------------------------------------------------------------------------------


@action(reads=["outs"], writes=["all"])
async def join(outs: Any) -> str:
    return ",".join(str(value) for value in outs.values())


@action(reads=["words"], writes=["items"])
async def split(words: str) -> list[str]:
    ran.append(words)
    return words.split()


inner = Graph.chain(split, each, join, name="inner")
middle = fan_out(inner, over="lines", item="words", key=str, into="alls", take="all")


@pytest.mark.parametrize("depth", ["two", "node", "three"])
async def test_what_is_asked_deep_down_halts_all_above(depth: str):
    act: Any = middle
    if depth == "node":
        act = Graph.chain(Graph.chain(middle, name="node"))
    if depth == "three":
        act = fan_out(middle, over="pages", item="lines", into="books", take="alls")
    app, hook = application(act)
    lines = ["a B", "c", "D e F"]
    async with no_leaks():
        result = await app.run({"lines": lines, "pages": [lines, ["G"]]}, id="x")
    expected = ["B", "D", "F", "G"] if depth == "three" else ["B", "D", "F"]
    assert (result.status, keys(result)) == ("halted", expected)
    assert list(await app.questions("x")) == list(result.questions)
    hook.assert_paired()
    hook.events.clear()
    assert (await app.run(id="x")).questions == result.questions
    assert hook.of(ChildStarted) == []  # who rests isn't started at any depth
    ran.clear()
    (second,) = (one for one in result.questions if one.key == "D")
    result = await app.run(id="x", answers={second.address: "first"})
    assert (keys(result), ran) == ([key for key in expected if key != "D"], ["D"])
    ran.clear()
    result = await app.run(id="x", answers=answers_of(result))
    assert result.status == "succeeded"
    assert sorted(ran) == [key for key in expected if key != "D"]
    alls = {"a B": "a,B=yes", "c": "c", "D e F": "D=first,e,F=yes"}
    if depth == "three":
        assert result.state["books"] == [alls, {"G": "G=yes"}]
    else:
        assert result.state["alls"] == alls
    hook.assert_paired()


async def test_a_child_goes_on_at_the_step_that_has_asked():
    @action(reads=["out", "item"], writes=["last"])
    async def sign(out: str, item: str, context: Context) -> str:
        ran.append("sign")
        return f"{out}, signed {await context.ask('sign', out)}" if item.isupper() else out

    act = fan_out(
        Graph.chain(leaf, sign), over="items", item="item", key=str, into="o", take="last"
    )
    app, _ = application(act)
    result = await app.run({"items": ["A"]}, id="x")
    result = await app.run(id="x", answers={"ok": "yes"})
    assert [(one.step, one.name, one.question) for one in result.questions] == [
        ("sign", "sign", "A=yes")
    ]
    result = await app.run(id="x", answers={"sign": "me"})
    assert result.state["o"] == {"A": "A=yes, signed me"}
    assert ran == ["A", "A", "sign", "sign"]


class Leaves(MapStates):
    reads = ("items",)
    writes = ("seen",)

    def action(self, state: State, inputs: Any) -> Any:
        return leaf

    def states(self, state: State, inputs: Any) -> Any:
        for item in state["items"]:
            yield {"item": item}

    def reduce(self, state: State, outcome: Any) -> State:
        return state.append(seen=outcome.value)


async def test_class_forms_halt_as_well():
    app, _ = application(Leaves())
    result = await app.run({"items": ["a", "B"], "seen": []}, id="x")
    assert (result.status, result.state["seen"]) == ("halted", ["a"])
    result = await app.run(id="x", answers=answers_of(result))
    assert result.state["seen"] == ["a", "B=yes"]


# -- an action's own fan-out -----------------------------------------------------------------------


@action(reads=["items"], writes=["got"])
async def iterates(items: Sequence[str], context: Context) -> list[str]:
    ran.append("body")
    got: dict[str, str] = {}
    async with context.fan_out(name="own") as group:
        for item in items:
            group.start(leaf, {"item": item}, key=item)
        async for outcome in group:
            assert outcome.key not in got
            got[str(outcome.key)] = getattr(outcome, "value", None) or type(outcome).__name__
        assert set(got) == set(items), "it is halted before"
    return [got[item] for item in items]


@action(reads=["items"], writes=["got"])
async def leaves(items: Sequence[str], context: Context) -> list[str]:
    ran.append("body")
    async with context.fan_out(name="own", limits=Limits(2)) as group:
        group.start_each(leaf, over=items, item="item", key=str)
    return ["left"]


@pytest.mark.parametrize("act", [iterates, leaves], ids=lambda act: act.name)
async def test_an_action_halts_when_only_halted_children_are_left(act: Any):
    app, hook = application(act)
    async with no_leaks():
        result = await app.run({"items": ["a", "B", "c"]}, id="x")
    assert (result.status, keys(result)) == ("halted", ["B"])
    assert list(await app.questions("x")) == list(result.questions)
    hook.assert_paired()
    ran.clear()
    result = await app.run(id="x", answers={"ok": "yes"})
    assert ran == ["body", "B"]
    assert result.state["got"] == (["left"] if act is leaves else ["a", "B=yes", "c"])
    assert result.outcomes(f"{act.name}/own").halted == 0
    hook.assert_paired()


async def test_failures_of_an_actions_own_children_come_before_its_questions():
    app, hook = application(leaves)
    with pytest.raises(ExceptionGroup, match="a child of fan-out 'leaves/own' failed"):
        await app.run({"items": ["-a", "B"]}, id="x")
    hook.assert_paired()


async def test_a_halted_child_is_cancelled_with_the_group():
    @action(reads=["items"], writes=["got"])
    async def enough(items: Sequence[str], context: Context) -> list[str]:
        got: list[str] = []
        async with context.fan_out(name="own") as group:
            for item in items:
                group.start(leaf, {"item": item}, key=item)
            async for outcome in group:
                got.append(f"{outcome.key} {type(outcome).__name__}")
                if len(got) == 1:
                    await anyio.sleep(1)
                    group.cancel("enough")
        return got

    app, hook = application(enough)
    result = await app.run({"items": ["a", "B"]}, id="x")
    assert (result.status, result.state["got"]) == ("succeeded", ["a Done", "B Cancelled"])
    assert result.outcomes("enough/own").cancelled == 1
    assert result.outcomes("enough/own").halted == 0
    hook.assert_paired()


async def test_a_child_that_is_started_no_more_is_asked_no_more():
    @action(reads=["items"])
    async def starts(items: Sequence[str], wanted: Sequence[str], context: Context) -> None:
        async with context.fan_out(name="own") as group:
            for item in wanted:
                group.start(leaf, {"item": item}, key=item)

    app, _ = application(Graph.chain(starts, person))
    result = await app.run({"items": []}, id="x", inputs={"wanted": ["A", "B"]})
    assert keys(result) == ["A", "B"]
    answers = {result.questions[0].address: "yes"}
    result = await app.run(id="x", inputs={"wanted": ["A"]}, answers=answers)
    assert [one.step for one in result.questions] == ["person"]
    assert list(await app.questions("x")) == list(result.questions)


# -- races -----------------------------------------------------------------------------------------


async def test_a_decision_elsewhere_cancels_a_halted_child():
    @action(reads=["item"], writes=["out"])
    async def slow(item: str) -> str:
        await anyio.sleep(5)
        return "slow"

    app, hook = application(race(leaf, slow, into="answer"))
    async with no_leaks():
        result = await app.run({"item": "A"}, id="x")
    assert (result.status, result.state["answer"], result.questions) == ("succeeded", "slow", ())
    (loser,) = result.outcomes("answer")
    assert isinstance(loser, Cancelled)
    assert (loser.act, loser.winner) == ("leaf", ChildName("slow", ""))
    assert (result.outcomes("answer").cancelled, result.outcomes("answer").halted) == (1, 0)
    received = [event for event in hook.events if isinstance(event, ChildHalted | ChildEnded)]
    assert [type(event).__name__ for event in received] == [
        "ChildHalted",
        "ChildEnded",
        "ChildEnded",
    ]
    hook.assert_paired()
    recorded = [one async for one in result.all_outcomes("answer")]
    assert [type(one).__name__ for one in recorded] == ["Cancelled", "Done"]
    assert await app.questions("x") == []
    with pytest.raises(UnknownQuestion, match="run x has no open question"):
        await app.run(id="x", answers={"ok": 1})


async def test_a_child_that_loses_while_it_halts_has_lost():
    @action(writes=["out"])
    async def stubborn(context: Context) -> str:
        try:
            return await context.ask("ok", "?")
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(2)
            raise ValueError

    @action(writes=["out"])
    async def quicker() -> str:
        await anyio.sleep(1)
        return "quicker"

    app, hook = application(race(stubborn, quicker, into="answer"))
    result = await app.run(id="x")
    (loser,) = result.outcomes("answer")
    assert isinstance(loser, Cancelled)
    assert (loser.reason, loser.winner) == (
        "'quicker' decided fan-out 'answer'",
        ChildName("quicker", ""),
    )
    hook.assert_paired()


async def test_a_race_whose_others_have_failed_halts_and_is_won_by_an_answer():
    act = fan_out(
        leaf, over="items", item="item", key=str, into="out", take="out", until=first(accept=len)
    )
    app, hook = application(act)
    result = await app.run({"items": ["-a", "B", "-c", "D"]}, id="x")
    assert (result.status, keys(result)) == ("halted", ["B", "D"])
    hook.events.clear()
    result = await app.run(id="x", answers={result.questions[1].address: "yes"})
    assert (result.status, result.state["out"]) == ("succeeded", "D=yes")
    assert {event.outcome.key for event in hook.of(ChildEnded)} == {"-a", "B", "-c", "D"}
    assert losers(result, "out")["B"][1] == ChildName("leaf", "D")
    hook.assert_paired()


@pytest.mark.parametrize("until", [first(3), quorum(3, by=len)])
async def test_a_race_that_can_not_be_won_any_more_fails_in_spite_of_halted_children(until: Any):
    act = fan_out(leaf, over="items", item="item", key=str, into="out", take="out", until=until)
    app, hook = application(act)
    with pytest.raises(NobodyAccepted):
        await app.run({"items": ["A", "-b", "-c", "d"]}, id="x")
    hook.assert_paired()


async def test_a_quorum_waits_for_children_that_may_still_make_it():
    act = fan_out(
        leaf, over="items", item="item", key=str, into="out", take="out", until=quorum(2, by=bool)
    )
    app, hook = application(act)
    result = await app.run({"items": ["a", "-b", "C", "D"]}, id="x")
    assert (result.status, keys(result)) == ("halted", ["C", "D"])
    result = await app.run(id="x", answers={result.questions[0].address: "yes"})
    assert (result.status, result.state["out"]) == ("succeeded", "a")
    assert losers(result, "out")["D"] == ("key 'C' decided fan-out 'out'", ChildName("leaf", "C"))
    hook.assert_paired()


@pytest.mark.parametrize(
    ("until", "asks"),
    [(first(2), "AB"), (first(3), "ABCD"), (quorum(2, by=bool), "AB"), (quorum(3, by=bool), "ABC")],
)
async def test_children_that_halt_at_once_may_still_win_a_race(until: Any, asks: str):
    """Those that rest are one batch. One answer or two would be enough, so the last child goes on.

    It fails in the first execution, so that the second executes it again.
    """

    @action(reads=["item"], writes=["out"])
    async def last_is_slow(item: str, context: Context) -> str:
        if item in asks:
            return f"{item}={await context.ask('ok', item)}"
        ran.append(item)
        await anyio.sleep(1)
        if ran == ["slow"]:
            raise ValueError(item)
        return item

    act = fan_out(
        last_is_slow, over="items", item="item", key=str, into="out", take="out", until=until
    )
    app, hook = application(act)
    assert (await app.run({"items": [*asks, "slow"]}, id="x")).status == "halted"
    hook.events.clear()
    result = await app.run(id="x")
    assert (result.status, keys(result)) == ("halted", list(asks))
    (ended,) = hook.of(ChildEnded)
    assert isinstance(ended.outcome, Done)
    answers = {one.address: "yes" for one in result.questions[1:]}
    result = await app.run(id="x", answers=answers)
    assert (result.status, ran) == ("succeeded", ["slow", "slow"])
    assert result.outcomes("out").done == until.wanted
    hook.assert_paired()


async def test_a_condition_of_the_users_is_not_asked_about_a_halted_child():
    asked: list[Any] = []

    def enough(state: State, outcome: Outcome) -> bool:
        asked.append(outcome.key)
        return len(state["outs"]) == 3

    act = fan_out(leaf, over="items", item="item", key=str, into="outs", take="out", until=enough)
    app, _ = application(act)
    result = await app.run({"items": ["a", "B", "c", "D"]}, id="x")
    assert (result.status, keys(result), asked) == ("halted", ["B", "D"], ["a", "c"])
    result = await app.run(id="x", answers={result.questions[1].address: "yes"})
    assert (result.status, asked) == ("succeeded", ["a", "c", "D"])


async def test_one_after_the_other_the_next_starts_where_one_halts():
    act = fan_out(
        leaf, over="items", item="item", key=str, into="out", take="out", until=first(), stagger=inf
    )
    app, hook = application(act)
    result = await app.run({"items": ["A", "-b", "c", "d"]}, id="x")
    assert (result.state["out"], ran) == ("c", ["A", "-b", "c"])
    assert losers(result, "out")["A"][1] == ChildName("leaf", "c")
    hook.assert_paired()
    app, hook = application(act)
    ran.clear()
    result = await app.run({"items": ["A", "-b"]}, id="y")
    assert keys(result) == ["A"]
    result = await app.run(id="y", answers={"ok": "yes"})
    assert (result.state["out"], ran) == ("A=yes", ["A", "-b", "A"])


@pytest.mark.parametrize("stagger", [0.3, Hedge(percentile=95, budget=0.5, initial=0.5)])
async def test_staggered_races_halt_and_go_on(stagger: Any):
    act = fan_out(
        leaf, over="items", item="item", key=str, into="out", take="out", until=first(),
        stagger=stagger,
    )  # fmt: skip
    app, hook = application(act)
    result = await app.run({"items": ["A", "-b", "-c"]}, id="x")
    assert keys(result) == ["A"]
    result = await app.run(id="x", answers={"ok": "yes"})
    assert (result.status, result.state["out"]) == ("succeeded", "A=yes")
    hook.assert_paired()


async def test_a_child_that_has_given_the_first_item_may_ask():
    @action(reads=["item"], writes=["out"])
    async def stream(item: str, context: Context) -> AsyncIterator[str | Result[str]]:
        ran.append(item)
        await anyio.sleep(len(item))
        yield "first"
        yield Result(f"{item}={await context.ask('ok', item)}")

    act = fan_out(
        stream, over="items", item="item", key=str, into="out", take="out", until=first_item()
    )
    app, hook = application(act)
    result = await app.run({"items": ["long", "b", "longer"]}, id="x")
    assert (result.status, keys(result)) == ("halted", ["b"])
    assert set(losers(result, "out")) == {"long", "longer"}
    ran.clear()
    result = await app.run(id="x", answers={"ok": "yes"})
    assert (result.status, result.state["out"], ran) == ("succeeded", "b=yes", ["b"])
    hook.assert_paired()


async def test_a_child_that_asks_before_the_first_item_is_cancelled_by_it():
    @action(reads=["item"], writes=["out"])
    async def stream(item: str, context: Context) -> AsyncIterator[str | Result[str]]:
        if item == "A":
            await context.ask("ok", item)
        await anyio.sleep(1)
        yield "first"
        await anyio.sleep(1)
        yield Result(item)

    act = fan_out(
        stream, over="items", item="item", key=str, into="out", take="out", until=first_item()
    )
    app, hook = application(act)
    result = await app.run({"items": ["A", "b"]}, id="x")
    assert (result.status, result.state["out"]) == ("succeeded", "b")
    assert losers(result, "out")["A"][1] == ChildName("stream", "b")
    hook.assert_paired()


async def test_a_child_that_halts_lets_the_next_start_at_once():
    act = fan_out(
        leaf, over="items", item="item", key=str, into="out", take="out", until=first(), stagger=50
    )
    app, _ = application(act)
    began = anyio.current_time()
    result = await app.run({"items": ["A", "b"]}, id="x")
    assert result.state["out"] == "b"
    assert anyio.current_time() - began == pytest.approx(2)


async def test_a_resting_child_lets_no_other_start_early():
    act = fan_out(
        leaf, over="items", item="item", key=str, into="out", take="out", until=first(), stagger=50
    )
    app, _ = application(act)
    await app.run({"items": ["A", "-b", "-c"]}, id="x")
    ran.clear()
    async with app.open(id="x"):
        await anyio.sleep(0.5)
        assert ran == ["-b"]


async def test_a_decision_counts_though_its_losers_were_not_recorded():
    store = MemoryStore()
    found: list[MemoryStore] = []

    class DiesAtTheDecision(Hook):
        def on_state_updated(self, event: StateUpdated) -> None:
            if event.outcome is not None:
                found.append(store.copy())

    def graph() -> Graph:
        return Graph.chain(
            fan_out(
                leaf, over="items", item="item", key=str, into="out", take="out", until=first()
            ),
            person,
        )

    app = Application(graph(), store=store, hooks=[DiesAtTheDecision()])
    await app.run({"items": ["A", "-b", "C"]}, id="x")
    (address, *_) = [one.address for one in await app.questions("x")]
    await app.run(id="x", answers={address: "yes"})
    (dead,) = found
    again = Application(graph(), store=dead)
    assert await again.questions("x") == []  # C has lost
    result = await again.run(id="x")
    assert [one.step for one in result.questions] == ["person"]
    assert list(await again.questions("x")) == list(result.questions)
    ledger = result.outcomes("out")
    assert (ledger.done, ledger.cancelled, ledger.halted) == (1, 1, 0)
    result = await again.run(id="x", answers={"decide": "done"})
    assert result.outcomes("out").cancelled == 1
    recorded = {one.key: one async for one in result.all_outcomes("out")}
    lost = recorded["C"]
    assert isinstance(lost, Cancelled)
    assert lost.winner == ChildName("leaf", "A")


async def test_a_race_of_streams_that_broke_off_is_tried_again_with_the_contestant_that_had_asked():
    breaks = iter([True, False])

    @action(reads=["item"], writes=["out"])
    async def stream(item: str, context: Context) -> AsyncIterator[str | Result[str]]:
        ran.append(item)
        if item == "A":
            await context.ask("ok", item)
        await anyio.sleep(1)
        yield "first"
        await anyio.sleep(1)
        if next(breaks):
            raise ValueError
        yield Result(item)

    act = fan_out(
        stream, over="items", item="item", key=str, into="out", take="out", until=first_item()
    )
    outer = fan_out(
        act, over="lines", item="items", into="outs", take="out",
        each=Each(retry=Retry(3, on=NobodyAccepted)),
    )  # fmt: skip
    app, hook = application(outer)
    result = await app.run({"lines": [["A", "b"]]}, id="x")
    assert (result.status, result.state["outs"]) == ("succeeded", ["b"])
    assert ran == ["A", "b", "b"]
    hook.assert_paired()


# -- tried again -----------------------------------------------------------------------------------


async def test_what_is_halted_stays_so_when_its_parent_is_tried_again():
    fails = iter([True, True, False])

    @action(reads=["item"], writes=["out"])
    async def child(item: str, context: Context) -> str:
        ran.append(item)
        if item == "A":
            return await context.ask("ok", item)
        await anyio.sleep(1)
        if next(fails):
            raise ValueError
        return item

    below = fan_out(child, over="items", item="item", key=str, into="outs", take="out")
    above = fan_out(
        below,
        over="lines",
        item="items",
        into="all",
        take="outs",
        each=Each(retry=Retry(5, on=Exception)),
    )
    app, hook = application(above)
    result = await app.run({"lines": [["A", "b"]]}, id="x")
    assert (result.status, keys(result)) == ("halted", ["A"])
    assert ran == ["A", "b", "b", "b"]  # a step that waits isn't attempted again
    hook.assert_paired()
    result = await app.run(id="x", answers={"ok": "yes"})
    assert result.state["all"] == [{"A": "yes", "b": "b"}]


async def test_children_kept_elsewhere_halt_too():
    elsewhere = MemoryStore()
    act = fan_out(
        leaf, over="items", item="item", key=str, into="outs", take="out", store=elsewhere
    )
    app, hook = application(act)
    result = await app.run({"items": ["a", "B"]}, id="x")
    assert keys(result) == ["B"]
    assert list(await app.questions("x")) == list(result.questions)
    result = await app.run(id="x", answers={"ok": "yes"})
    assert result.state["outs"] == {"a": "a", "B": "B=yes"}
    hook.assert_paired()


# -- answers ---------------------------------------------------------------------------------------


async def test_an_answer_to_no_question_is_refused_and_nothing_runs():
    store = MemoryStore()
    app, _ = application(each, store=store)
    with pytest.raises(UnknownQuestion, match="run x has no open question, so 'ok' can't be answ"):
        await app.run({"items": ["A"]}, id="x", answers={"ok": 1})
    assert (len(store), ran) == (0, [])
    result = await app.run({"items": ["A", "B"]}, id="x")
    one, two = (question.address for question in result.questions)
    ran.clear()
    for answers, why in (
        ({"no": 1}, rf"run x has not asked 'no'; its open questions are .*{one[0]}.*{two[0]}"),
        ({("x", "ok"): 1}, r"run x has not asked \('x', 'ok'\)"),
        ({"ok": 1}, rf"2 questions are called 'ok'; say which.*{one[0]}.*key 'A'.*{two[0]}"),
        ({one: 1, two: 2, "more": 3}, "has not asked 'more'"),
    ):
        with pytest.raises(UnknownQuestion, match=why):
            await app.run(id="x", answers=answers)  # pyright: ignore[reportArgumentType]
    assert list(await app.questions("x")) == list(result.questions)
    assert ran == []
    result = await app.run(id="x", answers={one: 1})
    with pytest.raises(UnknownQuestion, match="has not asked"):
        await app.run(id="x", answers={one: 2})  # which was answered, and used
    with pytest.raises(UnknownQuestion, match="has two for"):
        await app.run(id="x", answers={two: 2, "ok": 3})
    result = await app.run(id="x", answers={"ok": 2})
    assert result.state["outs"] == {"A": "A=1", "B": "B=2"}
    with pytest.raises(UnknownQuestion, match="no open question"):
        await app.run(id="x", answers={"ok": 2})


async def test_an_answer_that_is_no_data_is_refused():
    app, _ = application(each)
    await app.run({"items": ["A"]}, id="x")
    with pytest.raises(
        NotData, match=r"run x: the answer to .* can't be kept: answer\['a'\]: a gen"
    ):
        await app.run(id="x", answers={"ok": {"a": (n for n in ())}})
    assert len(await app.questions("x")) == 1


async def test_answers_need_an_id_and_a_store_and_are_a_mapping():
    app, _ = application(each)
    with pytest.raises(BadUse, match=r"run\(answers=...\) takes id= as well"):
        await app.run({"items": ["A"]}, answers={"ok": 1})
    with pytest.raises(BadUse, match=r"run\(answers=...\) needs a store"):
        await Application(each).run({"items": ["A"]}, id="x", answers={"ok": 1})
    with pytest.raises(
        TypeError, match=r"run\(answers=...\) takes a mapping, {\(run_id, name\): va"
    ):
        await app.run({"items": ["A"]}, id="x", answers=["ok"])  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadUse, match=r"questions\(\) needs a store"):
        await Application(each).questions("x")


async def test_the_same_answer_may_be_given_again_until_it_is_used():
    store = MemoryStore()
    app, _ = application(each, store=store)
    result = await app.run({"items": ["A"]}, id="x")
    killed = MemoryStore()
    async with anyio.create_task_group() as tasks:
        async with app.open(id="x", answers={"ok": "yes"}):
            await anyio.sleep(0.5)
            killed = store.copy()  # what is there if the process dies now
        tasks.cancel_scope.cancel()
    again = Application(each, store=killed)
    assert await again.questions("x") == []
    with pytest.raises(UnknownQuestion, match="'ok' was answered before, with 'yes', and that has"):
        await again.run(id="x", answers={"ok": "no"})
    result = await again.run(id="x", answers={"ok": "yes"})
    assert result.state["outs"] == {"A": "A=yes"}


async def test_another_answer_may_be_given_where_the_run_has_failed_with_one():
    @action(writes=["verdict"])
    async def decide(context: Context) -> str:
        verdict = await context.ask("verdict")
        if verdict != "yes":
            raise ValueError(verdict)
        return verdict

    app = Application(decide, store=MemoryStore())
    assert (await app.run(id="x")).status == "halted"
    with pytest.raises(ValueError, match="maybe"):
        await app.run(id="x", answers={"verdict": "maybe"})
    with pytest.raises(ValueError, match="maybe"):
        await app.run(id="x")
    with pytest.raises(ValueError, match="perhaps"):
        await app.run(id="x", answers={"verdict": "perhaps"})
    result = await app.run(id="x", answers={"verdict": "yes"})
    assert result.state["verdict"] == "yes"


async def test_questions_are_listed_while_a_run_goes_on():
    app, _ = application(each)
    listed: Sequence[Question] = ()
    async with app.open({"items": ["A", "b"]}, id="x") as run:
        async for event in run:
            if isinstance(event, ChildHalted):
                listed = await app.questions("x")
                assert [one.key for one in listed] == ["A"]
                break
        result = await run.result()
    assert list(listed) == list(result.questions)


# -- who runs it -----------------------------------------------------------------------------------


async def test_an_opened_run_ends_normally_and_says_that_it_is_halted():
    app, _ = application(each)
    async with no_leaks(), app.open({"items": ["A", "b"]}, id="x") as run:
        events = [event async for event in run]
        result = await run.result()
        assert (run.status, result.status, keys(result)) == ("halted", "halted", ["A"])
    last = events[-1]
    assert isinstance(last, RunEnded)
    assert (last.status, last.questions) == ("halted", result.questions)
    async with app.open(id="x", answers={"ok": 1}) as run:
        assert (await run.result()).state["outs"] == {"A": "A=1", "b": "b"}


async def test_steps_of_a_halted_run():
    @action(writes=["n"])
    async def begin() -> int:
        return 1

    @action(reads=["n"], writes=["out"])
    async def ask(n: int, context: Context) -> str:
        return await context.ask("ok", n)

    app, _ = application(Graph.chain(begin, ask))
    async with app.open(id="x", stepwise=True) as run:
        assert [await run.step(), await run.step()] == ["begin", None]
        assert run.status == "halted"
    async with app.open(id="x", stepwise=True, answers={"ok": "yes"}) as run:
        assert [await run.step(), await run.step()] == ["ask", None]


def test_from_synchronous_code():
    app, _ = application(each)
    result = app.run_sync({"items": ["A"]}, id="x")
    assert app.run_sync(id="x", answers=answers_of(result)).state["outs"] == {"A": "A=yes"}
    chain = application(Graph.chain(split, each))[0]
    assert chain.run_sync({"words": "a"}, id="x", halt_after=["split"]).status == "halted"
    assert chain.run_sync(id="x", halt_before=["split"]).status == "succeeded"


async def test_a_runtime_passes_answers_on_and_recovers_nothing_that_waits():
    app, _ = application(each)
    async with Runtime(apps=[app]) as runtime:
        await runtime.run(app, {"items": ["A"]}, id="x")
        assert await runtime.recover() == []
        assert [one.key for one in await app.questions("x", runtime=runtime)] == ["A"]
        result = await runtime.run(app, id="x", answers={"ok": 1})
    assert result.state["outs"] == {"A": "A=1"}


async def test_what_is_recovered_may_halt():
    app, hook = application(each)
    store = app.store
    assert isinstance(store, MemoryStore)
    async with app.open({"items": ["A", "b"]}, id="x"):
        await anyio.sleep(0.5)
        dead = store.copy()
    again = Application(each, store=dead)
    async with Runtime(apps=[again]) as runtime:
        (recovered,) = await runtime.recover()
    assert (recovered.error, recovered.result.status) == (None, "halted")
    hook.assert_paired()


async def test_a_file_remembers_it_all(tmp_path: Any):
    app, _ = application(middle, store=SQLiteStore(tmp_path / "runs.db"))
    result = await app.run({"lines": ["a B", "C"]}, id="x")
    again = Application(middle, store=SQLiteStore(tmp_path / "runs.db"))
    assert list(await again.questions("x")) == list(result.questions)
    rested = await again.run(id="x")
    assert rested.questions == result.questions
    result = await again.run(id="x", answers=answers_of(result))
    assert result.state["alls"] == {"a B": "a,B=yes", "C": "C=yes"}


# -- between two steps -----------------------------------------------------------------------------


@action(reads=["n"], writes=["n"])
async def one(n: int) -> int:
    ran.append("one")
    return n + 1


@action(reads=["n"], writes=["n"])
async def two(n: int) -> int:
    ran.append("two")
    return n + 1


line = Graph.chain(one, two, name="line")


async def test_a_run_halts_before_and_after_steps_and_goes_on_past_them():
    app, hook = application(line)
    result = await app.run({"n": 0}, id="x", halt_before=["one"], halt_after=[one])
    assert (result.status, result.questions, ran) == ("halted", (), [])
    result = await app.run(id="x", halt_before=["one"], halt_after=[one])
    assert (result.status, result.state["n"], ran) == ("halted", 1, ["one"])
    result = await app.run(id="x", halt_before=[two])
    assert (result.status, result.state["n"], ran) == ("succeeded", 2, ["one", "two"])
    assert [event.status for event in hook.of(RunEnded)] == ["halted", "halted", "succeeded"]
    hook.assert_paired()


async def test_nothing_follows_the_last_step_so_there_is_nothing_to_halt_for():
    app, _ = application(line)
    result = await app.run({"n": 0}, id="x", halt_after=["two"])
    assert result.status == "succeeded"


async def test_without_a_store_a_run_halts_and_can_be_looked_at():
    result = await Application(line).run({"n": 0}, halt_before=["two"])
    assert (result.status, result.state["n"]) == ("halted", 1)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["three"], r"run\(halt_before=...\): no act is named 'three' \(there are: one, two\)"),
        (["on"], r"did you mean 'one'\?"),
        ([leaf], "no act is named 'leaf'"),
        ("one", "takes a list of acts, not 'one'"),
        (one, "takes a list of acts"),
        (5, "takes a list of acts"),
        ([5], "takes an act of the graph, or its name, not 5"),
    ],
)
async def test_halting_at_what_is_no_act_is_refused(given: Any, why: str):
    with pytest.raises(DefinitionError, match=why):
        await Application(line).run({"n": 0}, halt_before=given)


async def test_a_child_that_was_halted_before_a_step_and_crashed_in_it_is_asked_again():
    store = MemoryStore()
    app = Application(Graph.chain(one, each), store=store)
    await app.run({"n": 0, "items": ["a"]}, id="x", halt_before=["outs"])
    async with app.open(id="x", halt_before=["outs"]):
        await anyio.sleep(0.5)
        dead = store.copy()
    again = Application(Graph.chain(one, each), store=dead)
    assert (await again.run(id="x", halt_before=["outs"])).status == "halted"
    assert (await again.run(id="x", halt_before=["outs"])).status == "succeeded"


async def test_a_run_is_known_to_be_halted_as_soon_as_the_step_before_is_completed():
    store = MemoryStore()
    found: list[MemoryStore] = []

    class DiesThen(Hook):
        def on_step_ended(self, event: StepEnded) -> None:
            found.append(store.copy())

    app = Application(line, store=store, hooks=[DiesThen()])
    await app.run({"n": 0}, id="x", halt_after=["one"])
    record = await found[0].load("x")
    assert record is not None
    assert record.status == "halted"
    again = Application(line, store=found[0])
    assert (await again.run(id="x", halt_before=["two"])).status == "succeeded"


async def test_stepwise_a_step_that_is_halted_after_is_reported():
    app, _ = application(line)
    async with app.open({"n": 0}, id="x", stepwise=True, halt_after=["one"]) as run:
        assert [await run.step(), await run.step(), run.status] == ["one", None, "halted"]


# -- whatever happens ------------------------------------------------------------------------------


@action(reads=["item"], writes=["out"])
async def quick(item: str, context: Context) -> str:
    await anyio.lowlevel.checkpoint()
    return f"{item}={await context.ask('ok', item)}" if item.isupper() else item


@action(writes=["decision"])
async def person(context: Context) -> str:
    return await context.ask("decide", "?")


@action(writes=["decision"])
async def machine() -> str:
    await anyio.sleep(1)
    raise ValueError


def approval() -> Graph:
    """A map and a race, both of which ask, and a step that does so by itself."""
    many = fan_out(quick, over="items", item="item", key=str, into="outs", take="out")
    return Graph.chain(many, race(person, machine, into="decided"), person, name="approval")


async def answered(store: Store) -> tuple[Any, list[Any]]:
    """Run it, and answer whatever is asked, one by one, until it has succeeded."""
    hook = RecordingHook()
    app = Application(approval(), store=store, hooks=[hook])
    result = await app.run({"items": ["a", "B", "C"]}, id="x")
    asked: list[Any] = []
    while result.status == "halted":
        listed = list(await app.questions("x"))
        assert listed == list(result.questions)
        assert all(question in listed for question in result.questions)
        question = result.questions[0]
        asked.append(question.question)
        result = await app.run(id="x", answers={question.address: question.question})
    hook.assert_paired()
    return result.state.to_plain(), asked


@pytest.mark.sweep
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("how", ["dies", "fails", "hangs"])
def test_wherever_its_store_goes_wrong_it_comes_to_the_same(backend: Backend, how: Any):
    def check(recovery: Any) -> None:
        assert recovery.result[0] == recovery.clean[0]
        rest = recovery.result[1]  # what was asked in the last life: answers aren't asked for again
        assert rest == recovery.clean[1][len(recovery.clean[1]) - len(rest) :]

    limit = None if how == "dies" else 40
    assert crash_everywhere(answered, check, how=how, backend=backend, limit=limit) > 20


@pytest.mark.sweep
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("how", ["scope", "native"])
def test_wherever_it_is_cancelled_it_can_be_resumed(backend: Backend, how: Any):
    if backend == "trio" and how == "native":
        return

    async def scenario(attempt: Any) -> None:
        store = MemoryStore()
        hook = RecordingHook()
        app = Application(approval(), store=store, hooks=[hook])

        async def live() -> None:
            result = await app.run({"items": ["a", "B"]}, id="x")
            await app.run(id="x", answers=answers_of(result))

        await attempt(live)
        hook.assert_paired()
        state, _ = await answered_from(store)
        assert state["outs"] == {"a": "a", "B": "B=yes"} or state["outs"] == {"a": "a", "B": "B=B"}

    assert cancel_everywhere(scenario, how=how, backend=backend, limit=60) > 5


async def answered_from(store: Store) -> tuple[Any, list[Any]]:
    app = Application(approval(), store=store)
    result = await app.run({"items": ["a", "B"]}, id="x")
    while result.status == "halted":
        question = result.questions[0]
        result = await app.run(id="x", answers={question.address: question.question})
    return result.state.to_plain(), []
