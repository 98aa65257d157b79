"""Fan-outs over several acts: side by side, times elements, and chosen by a function."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from itertools import product
from types import FrameType
from typing import Any, cast

import anyio
import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal import (
    END,
    Action,
    Application,
    Done,
    Failed,
    Graph,
    Limits,
    Outcome,
    Skipped,
    State,
    action,
    fan_out,
    when,
)
from shoal.errors import (
    BadResult,
    DefinitionError,
    MissingField,
    MissingInput,
    StateError,
    UndeclaredRead,
)
from shoal.events import ChildStarted, StateUpdated
from shoal.testing import RecordingHook, no_leaks, run_virtual
from shoal.types import FanOut, FunctionAction
from tests.fanout.test_fanout import history

pytestmark = pytest.mark.anyio

AnyAction = FunctionAction[..., Any]


def planned(name: str, field: str = "item") -> AnyAction:
    """An action that does what the plan in ``field`` says under its name: when, and whether."""

    @action(reads=[field], writes=["value"], name=name)
    async def perform(state: State) -> State:
        plan = state[field]
        after, fails = plan.get(name, (0, False))
        await anyio.sleep(after)
        if fails:
            raise ValueError(name)
        return state.update(value=f"{plan.get('id', '')}{name}")

    return perform


a, b, c = planned("a"), planned("b"), planned("c")


@action(reads=["item"], writes=["tenfold"])
async def tenfold(item: int) -> int:
    await checkpoint()
    return 10 * item


@action(reads=["item"], writes=["negative"])
async def negative(item: int) -> int:
    await checkpoint()
    return -item


@action(reads=["n"], writes=["plus"])
async def plus(n: int) -> int:
    return n + 1


@action(reads=["n"], writes=["minus"])
async def minus(n: int) -> int:
    return n - 1


def ordered(value: object) -> object:
    """What can be compared with the order of mappings counting too."""
    if isinstance(value, Mapping):
        mapping = cast("Mapping[object, object]", value)
        return [(key, ordered(inner)) for key, inner in mapping.items()]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [ordered(inner) for inner in cast("Sequence[object]", value)]
    return value


async def started_by(act: FanOut, state: Mapping[str, Any], **inputs: Any) -> list[ChildStarted]:
    """Run what must fail; return which children had started by then."""
    hook = RecordingHook()
    async with no_leaks():
        await Application(act, hooks=[hook]).run(state, inputs=inputs)
    raise AssertionError("it should have failed")


# -- the shape of results --------------------------------------------------------------------------


async def test_acts_side_by_side_are_a_mapping_by_act():
    slow = {"a": (3, False), "b": (1, False), "c": (2, False)}
    hook = RecordingHook()
    acts = [planned(name, "plan") for name in "abc"]
    app = Application(fan_out(acts, into="out"), hooks=[hook])
    result = await app.run({"plan": slow})
    assert ordered(result.state["out"]) == [("a", "a"), ("b", "b"), ("c", "c")]
    seen = [list(state["out"]) for _, state in history(hook, {"plan": slow})]
    assert seen == [[], ["b"], ["b", "c"], ["a", "b", "c"]]
    assert [outcome.key for outcome, _ in history(hook, {"plan": slow}) if outcome] == [""] * 3
    started = hook.of(ChildStarted)
    assert [(event.child.act, event.position, event.element) for event in started] == [
        ("a", 0, None), ("b", 1, None), ("c", 2, None),
    ]  # fmt: skip


async def test_acts_times_elements_are_mappings_by_key_and_act():
    app = Application(fan_out([tenfold, negative], over="n", key=str, into="out"))
    result = await app.run({"n": [3, 1]})
    expected = [
        ("3", [("tenfold", 30), ("negative", -3)]),
        ("1", [("tenfold", 10), ("negative", -1)]),
    ]
    assert ordered(result.state["out"]) == expected


async def test_without_key_they_are_a_list_of_mappings_by_act():
    app = Application(fan_out((tenfold, negative), over="n", into="out"))
    result = await app.run({"n": [3, 3]})
    assert result.state["out"] == [{"tenfold": 30, "negative": -3}] * 2
    assert [type(one) for one in result.state.to_plain()["out"]] == [dict, dict]


@pytest.mark.parametrize(
    ("over", "key", "expected"),
    [(None, None, {"plus": 6}), ("n", str, {"5": {"tenfold": 50}}), ("n", None, [{"tenfold": 50}])],
)
async def test_a_list_of_one_act_is_a_list(over: str | None, key: Any, expected: object):
    acts = [plus] if over is None else [tenfold]
    app = Application(fan_out(acts, over=over, key=key, into="out"))
    result = await app.run({"n": 5 if over is None else [5]})
    assert result.state["out"] == expected


async def test_a_graph_is_an_act_like_any_other():
    @action(reads=["tenfold"], writes=["sum"])
    async def add(tenfold: int) -> int:
        return tenfold + 1

    both = Graph.chain(tenfold, add, name="both")
    app = Application(fan_out([both, negative], over="n", key=int, into="out", take=take_first))
    result = await app.run({"n": [2]})
    assert result.state["out"] == {2: {"both": 21, "negative": -2}}


def take_first(state: State) -> object:
    return state.get("sum", state.get("negative"))


async def test_without_elements_an_act_may_read_what_elements_are_called():
    """There `item` is a field like any other, also for a graph around it that has to bring it."""
    inner = Graph.chain(fan_out([tenfold, negative], into="out"), name="inner")
    assert inner.reads == {"item"}
    result = await Application(Graph.chain(plus, inner)).run({"n": 1, "item": 5})
    assert result.state["out"] == {"tenfold": 50, "negative": -5}
    chosen = fan_out(lambda _: [tenfold], reads=["item"], into="out")
    assert (await Application(chosen).run({"item": 5})).state["out"] == {"tenfold": 50}
    undeclared = fan_out(lambda _: [tenfold], reads=[], into="out")
    with pytest.raises(UndeclaredRead, match="fan-out 'out': 'tenfold' reads item, which"):
        await Application(undeclared).run({"item": 5})


async def test_an_element_may_be_written_over_where_there_is_none():
    @action(writes=["item"])
    async def make() -> int:
        return 1

    assert (await Application(fan_out([make], into="out")).run({})).state["out"] == {"make": 1}


# -- every shape, at every moment ------------------------------------------------------------------

NAMES = "abc"


@st.composite
def programs(draw: st.DrawFn) -> dict[str, Any]:
    over = draw(st.booleans())
    names = draw(st.permutations(NAMES).map(lambda all_: all_[:2])) if draw(st.booleans()) else "a"
    several = not over or len(names) > 1 or draw(st.booleans())
    keyed = over and draw(st.booleans())
    size = draw(st.integers(0, 4)) if over else 1
    plans = [
        {"id": str(at), **{name: (draw(st.integers(0, 3)), draw(st.booleans())) for name in names}}
        for at in range(size)
    ]
    pairs = draw(st.permutations(list(product(range(size), names))))
    return {
        "over": over,
        "keyed": keyed,
        "several": several,
        "names": list(names),
        "plans": plans,
        "before": draw(st.permutations(pairs).map(lambda all_: all_[: len(all_) // 2]))
        if keyed
        else [],
        "collect": draw(st.booleans()),
        "at_most": draw(st.none() | st.integers(0, 6)),
        "limit": draw(st.integers(1, 5)),
        "chosen": draw(st.booleans()),
        "lazy": draw(st.booleans()),
    }


class Model:
    """What a field collects, as plain as can be: entries are placed by rank, and old ones first."""

    def __init__(self, program: dict[str, Any], *, errors: bool) -> None:
        self.program = program
        self.errors = errors
        self.entries: dict[tuple[int, str], tuple[int, object]] = {}  # (element, act): rank, value

    def show(self) -> object:
        program = self.program
        outer: dict[int, dict[str, object]] = {}
        ranks = Counter[int]()
        for (at, _), (rank, _) in self.entries.items():
            ranks[at] = max(ranks[at], rank) if at in ranks else rank
        inner = sorted(self.entries.items(), key=lambda entry: entry[1][0])
        for at in sorted(ranks, key=lambda at: ranks[at]):
            outer[at] = {act: value for (of, act), (_, value) in inner if of == at}
        if not program["over"]:
            return ordered(outer.get(0, {}))
        if program["keyed"]:
            keyed: dict[Any, Any] = {program["plans"][at]["id"]: by for at, by in outer.items()}
        else:
            keyed = dict(outer)
        if not program["several"]:
            keyed = {key: next(iter(by.values())) for key, by in keyed.items()}
        if program["keyed"] or self.errors:
            return ordered(keyed)
        return ordered(list(keyed.values()))


def before(program: dict[str, Any]) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for at, name in program["before"]:
        key = program["plans"][at]["id"]
        if program["several"]:
            found.setdefault(key, {})[name] = "old"
        else:
            found[key] = "old"
    return found


async def check_program(program: dict[str, Any]) -> None:
    names: list[str] = program["names"]
    field = "item" if program["over"] else "plan"
    acts = [planned(name, field) for name in names]
    act: Any = acts if program["several"] else acts[0]

    async def later(state: State) -> AsyncIterator[Any]:
        for plan in state["plans"]:
            yield plan
            await checkpoint()

    step = fan_out(
        (lambda _: act) if program["chosen"] else act,
        over=(later if program["lazy"] else "plans") if program["over"] else None,
        key="id" if program["keyed"] else None,
        into="out",
        errors_into="bad" if program["collect"] else None,
        on_error="collect" if program["collect"] else "ignore",
        at_most=program["at_most"],
        limits=Limits(program["limit"]),
        reads=["plans", "plan"],
    )
    state: dict[str, Any] = {"plans": program["plans"], "plan": (program["plans"] or [{}])[0]}
    if program["before"]:
        state["out"] = before(program)
    hook = RecordingHook()
    result = await Application(step, hooks=[hook]).run(state)
    hook.assert_paired()
    updates = [event.update for event in hook.of(StateUpdated) if event.depth == 0]
    assert [update.number for update in updates] == list(range(1, len(updates) + 1))

    # every moment
    good, bad = Model(program, errors=False), Model(program, errors=True)
    for at, (index, name) in enumerate(program["before"]):
        # in the order of the mapping that was there
        first = next(n for n, (i, _) in enumerate(program["before"]) if i == index)
        good.entries[index, name] = (first * 10 + at - 1000, "old")
    replayed = state
    for outcome, moment in history(hook, state):
        replayed = dict(moment)
        if outcome is not None:
            index, rank = divmod(outcome.position, len(names))
            pair = index, names[rank]
            assert (outcome.act, outcome.element) == (
                names[rank], program["plans"][index] if program["over"] else None
            )  # fmt: skip
            match outcome:
                case Done():
                    good.entries[pair] = (outcome.position, outcome.value)
                case Skipped():
                    assert pair in program["before"]
                    good.entries[pair] = (outcome.position, "old")
                case _:
                    bad.entries[pair] = (outcome.position, "ValueError")
        assert ordered(moment["out"]) == good.show()
        if program["collect"]:
            assert ordered(only_types(moment["bad"])) == bad.show()
    assert ordered(replayed.get("out", {})) == ordered(result.state.get("out", {}))
    assert replayed == dict(result.state)

    # the end
    pairs = list(product(range(len(program["plans"])), names))
    new = [pair for pair in pairs if pair not in program["before"]]
    ran = new[: program["at_most"]] if program["at_most"] is not None else new
    failing = {pair for pair in ran if program["plans"][pair[0]][pair[1]][1]}
    assert {pair for pair in good.entries if pair not in program["before"]} == set(ran) - failing
    assert set(bad.entries) == (failing if program["collect"] else set())
    ledger = result.outcomes("out")
    assert (ledger.done, ledger.failed) == (len(ran) - len(failing), len(failing))
    if program["at_most"] is None:
        assert ledger.skipped == len(program["before"])


def only_types(errors: object) -> object:
    if isinstance(errors, Mapping):
        mapping = cast("Mapping[object, object]", errors)
        return {key: only_types(inner) for key, inner in mapping.items()}
    return cast("Any", errors).type


@settings(derandomize=True, deadline=None, max_examples=12)
@given(programs(), st.integers(0, 9))
def test_every_shape_at_every_moment(program: dict[str, Any], seed: int):
    run_virtual(check_program, program, backend="asyncio", seed=seed)
    run_virtual(check_program, program, backend="trio", seed=seed)


@pytest.mark.slow
@pytest.mark.timeout(600)
@settings(deadline=None, max_examples=1500)
@given(programs(), st.integers(0, 999))
def test_every_shape_at_every_moment_often(program: dict[str, Any], seed: int):
    run_virtual(check_program, program, backend="asyncio", seed=seed)
    run_virtual(check_program, program, backend="trio", seed=seed)


# -- acts chosen by a function ---------------------------------------------------------------------


CHOSEN: list[tuple[Any, object]] = [
    (tenfold, {"1": 10, "2": 20}),
    (Graph.chain(tenfold, name="g"), {"1": 10, "2": 20}),
    ([tenfold], {"1": {"tenfold": 10}, "2": {"tenfold": 20}}),
    (
        (negative, tenfold),
        {"1": {"negative": -1, "tenfold": 10}, "2": {"negative": -2, "tenfold": 20}},
    ),
]


@pytest.mark.parametrize(("acts", "expected"), CHOSEN)
async def test_a_function_may_choose_the_acts_and_the_shape_follows(acts: Any, expected: object):
    app = Application(fan_out(lambda _: acts, over="n", key=str, into="out", reads=[]))
    assert ordered((await app.run({"n": [1, 2]})).state["out"]) == ordered(expected)


async def test_it_is_called_once_per_step_on_what_the_fan_out_may_read():
    seen: list[State] = []

    def choose(state: State) -> Any:
        seen.append(state)
        return [tenfold, negative] if state["wanted"] == "both" else negative

    step = fan_out(choose, over="n", key=int, into="out", reads=["wanted"])
    assert step.reads == {"n", "wanted"}
    result = await Application(step).run({"n": [1, 2, 3], "wanted": "one", "other": 1})
    assert result.state["out"] == {1: -1, 2: -2, 3: -3}
    assert [dict(state) for state in seen] == [{"n": [1, 2, 3], "wanted": "one"}]
    with pytest.raises(UndeclaredRead, match="'other'"):
        seen[0]["other"]


async def test_each_visit_of_a_loop_may_choose_others():
    @action(reads=["turn"], writes=["turn"])
    async def count(turn: int) -> int:
        return turn + 1

    def choose(state: State) -> Any:
        return [tenfold, negative] if state["turn"] == 2 else tenfold

    step = fan_out(choose, over="n", key=int, into="out", reads=["turn"])
    again = when(lambda turn: turn < 3)
    hook = RecordingHook()
    app = Application(
        Graph((count, step), (step, count, again), (step, END), entry=count), hooks=[hook]
    )
    result = await app.run({"n": [1], "turn": 0})
    assert result.state["out"] == {1: 10}
    found = [state["out"] for outcome, state in history(hook, {"n": [1], "turn": 0}) if outcome]
    assert found == [{1: 10}, {1: {"tenfold": 10}}, {1: {"tenfold": 10, "negative": -1}}, {1: 10}]
    assert [result.outcomes("out", visit).done for visit in range(3)] == [1, 2, 1]


def bare(state: State) -> None: ...


async def waits(*_: object) -> Any: ...


class Waits:
    async def __call__(self, state: State) -> Any: ...


class AnAction(Action):
    async def run(self) -> None: ...


@action(reads=["item"], writes=["item"])
async def over_item(item: int) -> int:
    return item


@action(reads=["item"], writes=["one", "two"])
async def writes_two(item: int) -> Mapping[str, int]:
    return {"one": item, "two": item}


@action(reads=["item", "secret"], writes=["out"])
async def reads_secret(item: int, secret: int) -> int:
    return item


@action(reads=["item"], writes=["out"])
async def takes_tool(item: int, tool: object) -> int:
    return item


def generates(_: object) -> Iterable[Any]:
    yield tenfold


FOUND: dict[str, tuple[Callable[[State], Any], type[Exception], str]] = {
    "nothing": (lambda _: None, BadResult, "'out', whose acts are chosen, takes actions; None is"),
    "the function itself": (lambda state: state["n"][0], BadResult, "1 is none.*itself was meant"),
    "a name": (lambda _: "tenfold", BadResult, "'tenfold' is none"),
    "an empty list": (lambda _: [], BadResult, "takes at least one act; the list is empty(?!;)"),
    "a bare function": (lambda _: [bare], BadResult, "bare.* is none: decorate it"),
    "a class": (lambda _: AnAction, BadResult, r"it is a class: write AnAction\(\)"),
    "END": (lambda _: [tenfold, END], BadResult, "END is none"),
    "a nested list": (lambda _: [[tenfold]], BadResult, "takes one list of acts.*flatten it(?!;)"),
    "a generator": (generates, BadResult, "generates.* is none"),
    "two of one name": (lambda _: [tenfold, tenfold], BadResult, "two acts are named 'tenfold'"),
    "an awaitable": (lambda _: waits(), BadResult, "something to be awaited"),
    "a clash": (lambda _: over_item, BadResult, "'over_item' writes 'item', the field that holds"),
    "no value": (lambda _: [writes_two], BadResult, "which of the fields that 'writes_two' writes"),
    "an undeclared read": (lambda _: reads_secret, UndeclaredRead, r"reads secret, .* reads=\["),
    "a missing input": (lambda _: takes_tool, MissingInput, "'takes_tool' in step 'out'.*'tool'"),
    "an error": (lambda _: 1 // 0, ZeroDivisionError, "division"),
}  # fmt: skip


@pytest.mark.parametrize("case", FOUND)
async def test_what_only_a_run_can_find_is_found_before_any_child_starts(case: str):
    choose, kind, message = FOUND[case]
    hook = RecordingHook()
    app = Application(fan_out(choose, over="n", key=str, into="out", reads=["n"]), hooks=[hook])
    async with no_leaks():
        with pytest.raises(kind, match=message):
            await app.run({"n": [1, 2], "secret": 3})
    hook.assert_paired()
    assert not hook.of(ChildStarted)


async def test_a_chosen_act_that_lacks_a_field_says_which():
    step = fan_out(lambda _: [plus], into="out", reads=["n"], name="step")
    with pytest.raises(MissingField, match="'n'"):
        await Application(step).run({})


async def test_an_over_that_must_not_be_awaited_is_closed_whatever_else_is_wrong():
    """The acts are looked at first, so what `over` returned is never left unawaited."""
    unawaited: Any = waits
    step = fan_out(lambda _: takes_tool, over=lambda _: unawaited(), reads=[], into="out")
    with pytest.raises(MissingInput, match="'tool'"):
        await Application(step).run({})


# -- what is refused when it is built --------------------------------------------------------------


def choose_a(state: State) -> Any: ...


def choose_two(state: State, more: object) -> Any: ...


LIST_REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "an empty list": ([], {}, "'x' takes at least one act; the list is empty"),
    "nested lists": ([[tenfold], negative], {}, "'x' takes one list of acts, in which .*flatten"),
    "an undecorated function": ([tenfold, bare], {}, "'x' takes actions; .*bare.*: decorate it"),
    "a coroutine function": ([waits], {}, "'x' takes actions; .*waits.*: decorate it"),
    "a class": ([AnAction], {}, r"'x' takes actions; .*it is a class: write AnAction\(\)"),
    "a class alone": (AnAction, {}, r"'x' takes actions; .*write AnAction\(\)"),
    "END": ([tenfold, END], {}, "'x' takes actions; END is none: it is only where an edge leads"),
    "a name": (["tenfold"], {}, "'x' takes actions; 'tenfold' is none: give an @action"),
    "names": ("ab", {}, "'x' takes actions; 'ab' is none"),
    "a set": ({tenfold}, {}, "'x' takes actions; .* is none"),
    "two of one name": ([plus, negative, plus], {}, r"are named 'plus'; .*act.bind\(name="),
    "two binds of one name": ([plus, plus.bind(name="plus")], {}, "two acts are named 'plus'"),
    "a clash": ([tenfold, over_item], {}, "'over_item' writes 'item', the field that holds its el"),
    "no value": ([tenfold, writes_two], {}, r"'x': which of the fields that 'writes_two' .*take="),
    "no such value": ([tenfold, negative], {"take": "tenfold"}, "take='tenfold' is no field that"),
    "one act, no elements": (tenfold, {"over": None}, "nothing to fan out over.*a list of acts"),
    "key without elements": ([a], {"over": None, "key": str}, "key= is about elements.*no over="),
    "grow without elements": ([a], {"over": None, "grow": bare}, "grow= is about elements"),
    "undeclared": (choose_a, {}, r"act= is a function, so .*reads=\[\] .*; if it was meant"),
    "awaited": (waits, {"reads": []}, "'x' takes actions; .*waits.*: decorate it"),
    "an awaited object": (Waits(), {"reads": []}, "'x' takes actions; .*Waits.*: decorate it"),
    "of two parameters": (choose_two, {"reads": []}, "'x' takes actions; .*: decorate it"),
}  # fmt: skip


@pytest.mark.parametrize("case", LIST_REFUSED)
def test_what_cannot_work_is_refused_when_it_is_built(case: str):
    acts, options, message = LIST_REFUSED[case]
    given: dict[str, Any] = {"over": "n", "into": "x", **options}
    with pytest.raises(DefinitionError, match=message):
        fan_out(acts, **given)


# -- take ------------------------------------------------------------------------------------------


async def test_take_for_several_acts():
    @action(reads=["item"], writes=["out", "more"])
    async def named(item: int) -> Mapping[str, int]:
        return {"out": item, "more": 0}

    app = Application(fan_out([named, tenfold], over="n", into="out"))
    assert (await app.run({"n": [1]})).state["out"] == [{"named": 1, "tenfold": 10}]
    app = Application(fan_out([named, writes_two], over="n", into="out", take=["item"]))
    expected = [{"named": {"item": 1}, "writes_two": {"item": 1}}]
    assert (await app.run({"n": [1]})).state["out"] == expected
    app = Application(fan_out([tenfold, negative], over="n", into="out", take=sorted))
    expected = [{"tenfold": ["item", "tenfold"], "negative": ["item", "negative"]}]
    assert (await app.run({"n": [1]})).state["out"] == expected


async def test_without_into_a_child_that_wrote_nothing_has_no_value():
    @action(reads=["item"], writes=["even"])
    async def only_even(state: State) -> State:
        return state if state["item"] % 2 else state.update(even=state["item"])

    values: dict[int, object] = {}

    def note(state: State, outcome: Outcome) -> State:
        assert isinstance(outcome, Done)
        values[outcome.element] = outcome.value
        return state.increment(count=1)

    step = fan_out(only_even, over="n", reduce=note, writes=["count"], name="step")
    result = await Application(step).run({"n": [1, 2]})
    assert values == {1: None, 2: 2}
    assert result.state["count"] == 2
    collected = Application(fan_out(only_even, over="n", into="out"))  # here it would be a hole
    with pytest.raises(ExceptionGroup) as caught:
        await collected.run({"n": [1, 2]})
    assert [type(error) for error in caught.value.exceptions] == [MissingField]


# -- inputs minus outputs --------------------------------------------------------------------------


async def test_only_missing_pairs_run_and_on_the_first_visit_only():
    ran: list[tuple[str, int]] = []

    def counting(name: str) -> AnyAction:
        @action(reads=["item"], writes=["value"], name=name)
        async def perform(item: int) -> str:
            ran.append((name, item))
            return "new"

        return perform

    @action(reads=["turn"], writes=["turn"])
    async def count(turn: int) -> int:
        return turn + 1

    step = fan_out([counting("a"), counting("b")], over="n", key=str, into="out")
    again = when(lambda turn: turn < 2)
    app = Application(Graph((step, count), (count, step, again), (count, END), entry=step))
    there = {"1": {"a": "old"}, "2": {"a": "old", "b": "old"}, "9": {"b": "old"}}
    result = await app.run({"n": [3, 2, 1], "turn": 0, "out": there})
    assert sorted(ran[:3]) == [("a", 3), ("b", 1), ("b", 3)]
    assert sorted(ran[3:]) == sorted(product("ab", [1, 2, 3]))
    first, second = result.outcomes("out", 0), result.outcomes("out", 1)
    assert [(o.act, o.key, type(o)) for o in first] == [
        ("a", "2", Skipped), ("b", "2", Skipped), ("a", "1", Skipped),
    ]  # fmt: skip
    assert (second.done, second.skipped) == (6, 0)
    assert there == {"1": {"a": "old"}, "2": {"a": "old", "b": "old"}, "9": {"b": "old"}}
    one = Application(step)
    result = await one.run({"n": [3, 2, 1], "out": there})
    assert ordered(result.state["out"]) == [
        ("9", [("b", "old")]),
        ("3", [("a", "new"), ("b", "new")]),
        ("2", [("a", "old"), ("b", "old")]),
        ("1", [("a", "old"), ("b", "new")]),
    ]
    ran.clear()
    assert (await one.run(result.state)).state == result.state
    assert not ran


@pytest.mark.parametrize(
    ("acts", "found", "message"),
    [
        (
            [tenfold],
            {"1": 10},
            "'out' collects {key: {act: value}} into 'out', which holds an int for",
        ),
        ([tenfold], [1], "'out' collects a mapping into 'out', which holds a list"),
        (tenfold, "text", "'out' collects a mapping into 'out', which holds a str"),
    ],
)
async def test_what_is_no_collection_of_results_is_refused(acts: Any, found: Any, message: str):
    with pytest.raises(StateError, match=message):
        await started_by(fan_out(acts, over="n", key=str, into="out"), {"n": [1, 2], "out": found})


async def test_acts_alone_start_anew():
    hook = RecordingHook()
    app = Application(fan_out([plus, minus], into="out"), hooks=[hook])
    result = await app.run({"n": 1, "out": {"plus": "old", "other": "old"}})
    assert ordered(result.state["out"]) == [("plus", 2), ("minus", 0)]
    assert len(hook.of(ChildStarted)) == 2


# -- at_most, grow, reduce -------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("limit", [1, 2, 100])
@pytest.mark.parametrize("at_most", range(8))
async def test_at_most_counts_children_of_all_acts(at_most: int, limit: int, is_async: bool):
    async def later(state: State) -> AsyncIterator[int]:
        for n in state["n"]:
            yield n

    hook = RecordingHook()
    step = fan_out(
        [tenfold, negative],
        over=later if is_async else "n",
        key=int,
        into="out",
        at_most=at_most,
        limits=Limits(limit),
        reads=["n"],
    )
    result = await Application(step, hooks=[hook]).run({"n": [1, 2, 3]})
    started = [(event.child.key, event.child.act) for event in hook.of(ChildStarted)]
    expected = list(product([1, 2, 3], ["tenfold", "negative"]))[:at_most]
    assert sorted(started, key=str) == sorted(expected, key=str)
    ledger = result.outcomes("out")
    assert (ledger.done, ledger.left) == (len(expected), at_most % 2 if at_most < 6 else 0)


@pytest.mark.parametrize("is_async", [False, True])
async def test_skipped_children_do_not_count_towards_at_most(is_async: bool):
    async def later(state: State) -> AsyncIterator[int]:
        for n in state["n"]:
            yield n

    step = fan_out(
        [tenfold, negative],
        over=later if is_async else "n",
        key=int,
        into="out",
        at_most=2,
        reads=["n"],
    )
    there = {1: {"tenfold": 10, "negative": -1}}
    result = await Application(step).run({"n": [1, 2, 3], "out": there})
    assert result.state["out"] == {**there, 2: {"tenfold": 20, "negative": -2}}
    assert (result.outcomes("out").done, result.outcomes("out").skipped) == (2, 2)


async def test_at_most_zero_of_acts_alone_runs_none():
    result = await Application(fan_out([plus, minus], into="out", at_most=0)).run({"n": 1})
    assert result.state["out"] == {}
    result = await Application(fan_out([plus, minus], into="out", at_most=1)).run({"n": 1})
    assert result.state["out"] == {"plus": 2}
    assert result.outcomes("out").left == 1


@pytest.mark.parametrize("limit", [1, 3, 100])
async def test_grow_is_asked_for_each_outcome_and_runs_all_acts(limit: int):
    asked: list[tuple[str, int]] = []

    def grow(state: State, outcome: Outcome) -> Iterable[int]:
        asked.append((outcome.act, outcome.element))
        return [outcome.element + 1, outcome.element + 2] if outcome.element < 3 else []

    hook = RecordingHook()
    step = fan_out(
        [tenfold, negative], over="n", key=int, into="out", grow=grow, limits=Limits(limit)
    )
    result = await Application(step, hooks=[hook]).run({"n": [1]})
    assert sorted(asked) == sorted(product(["tenfold", "negative"], [1, 2, 3, 4]))
    expected = {n: {"tenfold": 10 * n, "negative": -n} for n in (1, 2, 3, 4)}
    assert ordered(result.state["out"]) == ordered(expected)
    assert result.outcomes("out").dropped == 5  # of eight that were returned, three are new
    discovered = [event.update.discovered for event in hook.of(StateUpdated) if not event.depth]
    assert [n for new in discovered for n in new] == [2, 3, 4]  # not once for each act


async def test_reduce_sees_the_act_and_failures_in_input_order():
    seen: list[tuple[str, object, bool]] = []

    def reduce(state: State, outcome: Outcome) -> State:
        seen.append((outcome.act, outcome.key, isinstance(outcome, Failed)))
        return state.append(order=outcome.position)

    step = fan_out(
        [a, b], over="n", key="id", reduce=reduce, writes=["order"], name="x", on_error="collect"
    )
    plans = [{"id": 0, "a": (1, True)}, {"id": 1, "b": (0, True)}]
    result = await Application(step).run({"n": plans})
    # a of 0 comes a second later than the others
    assert seen == [("b", 0, False), ("a", 1, False), ("b", 1, True), ("a", 0, True)]
    assert result.state["order"] == [1, 2, 3, 0]
    assert [outcome.act for outcome in result.outcomes("x")] == ["a", "b"]


# -- bind ------------------------------------------------------------------------------------------


@action(reads=["item"], writes=["said"])
async def say(item: str, word: str = "default") -> str:
    return f"{word} {item}"


@action(reads=["item"], writes=["said"])
async def shout(item: str, word: str, mark: str) -> str:
    return f"{word.upper()} {item}{mark}"


async def test_bind_reaches_the_acts_that_take_it():
    step = fan_out([say, shout], over="n", into="out")
    assert step.takes["word"].required
    bound = step.bind(name="bound", word="hi", mark="!")
    assert (step.name, bound.name, bound.takes, set(bound.bound)) == (
        "out",
        "bound",
        {},
        {"word", "mark"},
    )
    result = await Application(bound).run({"n": ["x"]})
    assert result.state["out"] == [{"say": "hi x", "shout": "HI x!"}]
    assert result.outcomes("bound").done == 1 + 1
    with pytest.raises(DefinitionError, match="every action that takes 'word' has it bound"):
        await Application(bound).run({"n": ["x"]}, inputs={"word": "run"})
    with pytest.raises(DefinitionError, match="'bound' has bound its input 'word' already"):
        bound.bind(word="later")
    partly = fan_out([say.bind(word="own"), shout], over="n", into="out").bind(word="hi", mark="!")
    out = (await Application(partly).run({"n": ["x"]})).state["out"]
    assert out == [{"say": "own x", "shout": "HI x!"}]
    mixed = fan_out([say.bind(word="own"), shout.bind(mark="?")], over="n", into="out")
    out = (await Application(mixed).run({"n": ["x"]}, inputs={"word": "run"})).state["out"]
    assert out == [{"say": "own x", "shout": "RUN x?"}]
    with pytest.raises(DefinitionError, match=r"'out' takes no input 'wort'.*did you mean 'word'"):
        step.bind(wort="hi")
    with pytest.raises(MissingInput, match="'shout'"):
        await Application(step.bind(word="hi")).run({"n": ["x"]})


def result_of(word: str, mark: str) -> object:
    return [{"say": f"{word} x", "shout": f"{word.upper()} x{mark}"}]


async def test_bind_reaches_chosen_acts_and_their_errors_bear_the_name():
    step = fan_out(lambda _: [say, shout], over="n", into="out", reads=[])
    bound = step.bind(name="bound", word="hi", mark="!", nobody_takes="this")
    assert (await Application(bound).run({"n": ["x"]})).state["out"] == result_of("hi", "!")
    with pytest.raises(MissingInput, match=r"step 'out'.*'word'|step 'out'.*'mark'"):
        await Application(step).run({"n": ["x"]})
    broken = fan_out(lambda _: None, over="n", into="out", reads=[]).bind(name="other")  # pyright: ignore[reportArgumentType, reportCallIssue] # that is the point
    with pytest.raises(BadResult, match="fan-out 'other'"):
        await Application(broken).run({"n": ["x"]})


# -- cost ------------------------------------------------------------------------------------------


def calls_of(elements: int) -> int:
    """How many functions are called by a fan-out of that many elements over two acts."""
    step = fan_out([tenfold, negative], over="n", key=int, into="out", limits=Limits(10))
    app = Application(step)
    calls = 0

    def count(frame: FrameType, event: str, arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    async def program() -> None:
        sys.setprofile(count)
        try:
            await app.run({"n": range(elements)})
        finally:
            sys.setprofile(None)

    run_virtual(program)
    return calls


def test_calls_are_proportional_to_children():
    one, two = calls_of(100), calls_of(200)
    assert two < 2.2 * one


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("keyed", [True, False])
def test_time_is_proportional_to_children(keyed: bool):
    acts = [tenfold.bind(name=f"act {n}") for n in range(5)]
    app = Application(fan_out(acts, over="n", key=int if keyed else None, into="out"))

    def seconds(elements: int) -> float:
        since = time.perf_counter()
        anyio.run(app.run, {"n": range(elements)})
        return time.perf_counter() - since

    seconds(100)
    assert seconds(10_000) < 25 * seconds(1_000)
