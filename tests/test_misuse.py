"""Mistakes: each is told clearly, naming who made it, and leaves nothing hanging."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, cast

import anyio
import pytest

from shoal import Application, Done, Graph, Hook, Limits, Outcome, State, action, fan_out
from shoal.errors import (
    BadKey,
    BadResult,
    DefinitionError,
    DepthExceeded,
    HookFailed,
    MissingField,
    MissingInput,
    StateError,
    UndeclaredRead,
    UndeclaredWrite,
)
from shoal.events import StepStarted
from shoal.testing import RecordingHook, no_leaks
from shoal.types import FunctionAction

pytestmark = pytest.mark.anyio


@action(reads=["item"], writes=["out"])
async def echo(item: Any) -> Any:
    await anyio.sleep(1)
    return item


@action(reads=["item"], writes=["out", "more"])
async def two(item: Any) -> dict[str, Any]:
    return {"out": item, "more": item}


@action(reads=["item"], writes=["out", "more"])
async def only_out(item: Any, state: State) -> State:
    return state.update(out=item)


@action(reads=["item"])
async def silent(item: Any) -> None: ...


@action(reads=["item"], writes=["out"])
async def choosy(item: Any) -> Any:
    if item == "b":
        raise LookupError("b")
    return item


async def run_into(
    kind: type[BaseException], act: Any, state: dict[str, Any] | None = None, *hooks: Hook
) -> str:
    """Run into an error of that kind; return what it says, its notes included."""
    hook = RecordingHook()
    given = {"items": ["a", "b", "c"]} if state is None else state
    with anyio.fail_after(60):
        async with no_leaks():
            with pytest.raises(kind) as caught:
                await Application(act, hooks=[hook, *hooks]).run(given, id="run-7")
    hook.assert_paired()
    assert type(caught.value) is kind
    said = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert "run-7" in said
    return said


# -- the ones a user makes first -----------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 2, 100])
async def test_a_repeated_key(limit: int):
    act = fan_out(echo, over="items", key=len, into="titles", limits=Limits(limit))
    said = await run_into(BadKey, act, {"items": ["a", "bb", "c", "dd"]})
    assert "fan-out 'titles': element 2 ('c') has the key 1, which an earlier element has" in said
    assert "in fan-out 'titles', run" in said


async def test_a_key_that_is_no_key():
    kinds: dict[Any, str] = {None: "NoneType", 1.5: "float", True: "bool", ("a",): "tuple"}
    for wrong, kind in kinds.items():

        def key(_: object, wrong: object = wrong) -> object:
            return wrong

        said = await run_into(BadKey, fan_out(echo, over="items", key=key, into="titles"))
        assert (
            f"fan-out 'titles': the key of element 0 ('a') is a {kind}; keys are str or int" in said
        )


async def test_a_key_that_names_no_field_of_the_element():
    act = fan_out(echo, over="items", key="url", into="titles")
    for items in ([{"uri": 1}], [5], [State(uri=1)]):
        said = await run_into(BadKey, act, {"items": items})
        assert "fan-out 'titles': key='url' names a field of each element, but" in said
    result = await Application(act).run({"items": [{"url": "a"}, State(url="b")]})
    assert list(result.state["titles"]) == ["a", "b"]


async def test_an_undeclared_write():
    @action(writes=["a"])
    async def parse(state: State) -> State:
        return state.update(title=1)

    said = await run_into(UndeclaredWrite, parse)
    assert "action 'parse' writes field 'title'" in said
    assert "declared: a" in said
    assert "in action 'parse'" in said


async def add(state: State, outcome: Outcome) -> State:
    return state


class Reducer:
    async def __call__(self, state: State, outcome: Outcome) -> State:
        return state


@pytest.mark.parametrize(
    "reduce",
    [add, functools.partial(add), Reducer(), Reducer().__call__],
    ids=["function", "partial", "object", "method"],
)
def test_a_coroutine_function_as_reducer(reduce: Any):
    with pytest.raises(DefinitionError) as caught:
        fan_out(echo, over="items", reduce=reduce, writes=["n"], name="sum")
    message = str(caught.value)
    assert "fan_out 'sum': reduce= takes a plain function" in message
    assert "is a coroutine function" in message


async def test_a_reducer_that_returns_none():
    def forget(state: State, outcome: Outcome) -> Any:
        state.increment(n=1)

    act = fan_out(echo, over="items", reduce=forget, writes=["n"], name="sum")
    said = await run_into(BadResult, act)
    assert "reduce of fan-out 'sum', for key 0, returned None (NoneType)" in said
    assert "return state.update(...)" in said
    assert "applying key 0" in said


async def test_a_hook_that_raises():
    class Nosy(Hook):
        def on_step_started(self, event: StepStarted) -> None:
            raise LookupError(event.step)

    said = await run_into(HookFailed, Graph.chain(silent, echo), {"item": 1}, Nosy())
    assert "hook Nosy raised LookupError('silent')" in said
    assert "StepStarted of run run-7" in said
    assert "observer = True" in said


async def test_a_missing_input():
    called: list[str] = []

    @action()
    async def first() -> None:
        called.append("first")

    @action()
    async def fetch(client: object) -> None: ...

    with pytest.raises(MissingInput) as caught:
        await Application(Graph.chain(first, fetch), name="crawl").run()
    assert "application 'crawl' lacks the input 'client' (action 'fetch')" in str(caught.value)
    assert called == []


# -- what reduce, grow, over, key and take do wrong at run time ----------------------------------


async def later() -> State:
    return State()


def return_coroutine(state: State, outcome: Outcome) -> Any:
    return later()


def take_too_little(state: State) -> State:
    return state


REDUCERS: list[tuple[Callable[[Any, Any], Any], type[Exception], str]] = [
    (lambda s, o: State(n=1), BadResult, "not made from the one it was given"),
    (lambda s, o: {"n": 1}, BadResult, "returned {'n': 1} (dict)"),
    (return_coroutine, BadResult, "to be awaited"),
    (lambda s, o: s.update(m=1), UndeclaredWrite, "action 'sum' writes field 'm'"),
    (lambda s, o: s.update(n=s["items"], o=s["x"]), UndeclaredRead, "reads field 'x'"),
    (lambda s, o: s.append(n=1).increment(n=1), StateError, "increment needs a number"),
    (lambda s, o: 1 / 0, ZeroDivisionError, "division by zero"),
    (cast("Any", take_too_little), TypeError, "positional argument"),
]


@pytest.mark.parametrize(("reduce", "kind", "words"), REDUCERS)
async def test_a_reducer_that_errs(reduce: Any, kind: type[Exception], words: str):
    act = fan_out(echo, over="items", key=str, reduce=reduce, writes=["n"], name="sum")
    said = await run_into(kind, act)
    assert words in said
    assert "fan-out 'sum' applying key 'a'" in said


GROWS: list[tuple[Callable[[Any, Any], Any], type[Exception], str]] = [
    (lambda s, o: None, BadResult, "'out': grow returned None for key 'a'"),
    (lambda s, o: 5, BadResult, "'out': grow returned an int for key 'a'"),
    (lambda s, o: "text", BadResult, "'out': grow returned a str for key 'a'"),
    (return_coroutine, BadResult, "returned something to be awaited"),
    (lambda s, o: [s["secret"]], UndeclaredRead, "action 'out' reads field 'secret'"),
    (lambda s, o: [object()], BadKey, "keys are str or int"),
    (lambda s, o: 1 / 0, ZeroDivisionError, "division by zero"),
    (lambda s, o: (str(1 / n) for n in (1, 0)), ZeroDivisionError, "division by zero"),
]


@pytest.mark.parametrize(("grow", "kind", "words"), GROWS)
async def test_a_grow_that_errs(grow: Any, kind: type[Exception], words: str):
    def key(element: Any) -> Any:
        return element if isinstance(element, str) else None

    act = fan_out(echo, over="items", key=key, into="out", grow=grow)
    said = await run_into(kind, act)
    assert words in said
    assert "fan-out 'out' applying key 'a'" in said


def break_off(state: State) -> Iterator[str]:
    yield "a"
    yield "b"
    raise LookupError("the source broke")


async def break_off_later(state: State) -> AsyncIterator[str]:
    yield "a"
    await anyio.sleep(0.5)
    raise LookupError("the source broke")


OVERS: list[tuple[Callable[[Any], Any], type[Exception], str]] = [
    (lambda s: None, BadResult, "'out' runs over an iterable of elements, but `over` gave None"),
    (lambda s: 5, BadResult, "gave an int"),
    (lambda s: "text", BadResult, "gave a str"),
    (
        lambda s: later(),
        BadResult,
        "fan-out 'out' is a plain function and returned something to be aw",
    ),
    (lambda s: s["secret"], UndeclaredRead, "action 'out' reads field 'secret'"),
    (lambda s: 1 / 0, ZeroDivisionError, "division by zero"),
    (break_off, LookupError, "the source broke"),
    (break_off_later, LookupError, "the source broke"),
]


@pytest.mark.parametrize(
    ("over", "kind", "words"),
    OVERS,
)  # fmt: skip
@pytest.mark.parametrize("limit", [1, 100])
async def test_an_over_that_errs(over: Any, kind: type[Exception], words: str, limit: int):
    act = fan_out(echo, over=over, reads=["items"], into="out", limits=Limits(limit))
    said = await run_into(kind, act)
    assert words in said
    assert "in fan-out 'out'" in said


def perhaps(field: str) -> FunctionAction[..., Any]:
    """Make an action that may write a field, and doesn't."""

    @action(writes=[field])
    async def may_write(state: State) -> State:
        return state

    return may_write


async def test_an_over_that_is_not_there_or_no_iterable():
    act = fan_out(echo, over="urls", into="out")
    with pytest.raises(MissingField) as caught:
        await Application(act).run({"items": []})
    assert (
        "application 'out': fan-out 'out', which runs over it, reads field 'urls', which the state "
        "does not have (it has: items)"
    ) in str(caught.value)
    said = await run_into(MissingField, Graph.chain(perhaps("urls"), act), {"items": []})
    assert (
        "fan-out 'out' runs over field 'urls', which the state does not have (it has: items)"
        in said
    )
    for value, shown in ((5, "an int"), ("text", "a str"), (b"bytes", "a bytes"), (None, "None")):
        said = await run_into(BadResult, act, {"urls": value})
        assert f"'out' runs over an iterable of elements, but `over` gave {shown}" in said


async def test_a_key_that_raises():
    def key(element: str) -> str:
        return {"a": "x"}[element]

    said = await run_into(KeyError, fan_out(echo, over="items", key=key, into="out"))
    assert "'b'" in said
    assert "in fan-out 'out'" in said


def take_more(state: State) -> object:
    return state["more"]


@pytest.mark.parametrize("take", ["more", ["out", "more"], take_more])
async def test_a_take_of_what_no_child_wrote(take: Any):
    act = fan_out(only_out, over="items", into="results", take=take)
    with pytest.raises(ExceptionGroup) as caught:
        await Application(act).run({"items": ["a"]})
    (error,) = caught.value.exceptions
    assert isinstance(error, MissingField)
    assert "'more'" in str(error)


async def test_children_that_read_what_nobody_has():
    act = fan_out(echo, over="items", item="elment", into="results")
    with pytest.raises(MissingField) as caught:
        await Application(act).run({"items": []})
    assert (
        "application 'results': action 'echo' in fan-out 'results', whose element is 'elment' "
        "(see item=; if 'item' is the element, write item='item'), reads field 'item', "
        "which the state does not have (it has: items)"
    ) in str(caught.value)
    said = await run_into(MissingField, Graph.chain(perhaps("item"), act))
    assert "the children of fan-out 'results' read field 'item'" in said
    assert "(it has: items)" in said
    assert "item='elment' is what they get now" in said


async def test_a_collection_that_is_none():
    act = fan_out(echo, over="items", key=str, into="out")
    said = await run_into(StateError, act, {"items": ["a"], "out": [1]})
    assert "fan-out 'out' collects a mapping into 'out', which holds a list" in said


async def test_fan_outs_that_are_too_deep():
    act: Any = silent
    for level in range(70):
        act = fan_out(act, over="one", name=f"level {level}")
    with pytest.raises(ExceptionGroup) as caught:
        await Application(act).run({"one": [1], "item": 1})
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        (error,) = error.exceptions
    assert type(error) is DepthExceeded
    assert "would run 65 levels below the root; at most 64 are allowed" in str(error)


async def test_two_failures_beside_each_other_are_both_published():
    @action(reads=["item"], writes=["out"])
    async def fail(item: str) -> str:
        await anyio.sleep(1)
        raise LookupError(item)

    with pytest.raises(ExceptionGroup) as caught:
        await Application(fan_out(fail, over="items", into="out")).run({"items": ["a", "b"]})
    assert str(caught.value).startswith("2 children of fan-out 'out' failed")
    assert [str(error) for error in caught.value.exceptions] == ["a", "b"]


# -- what is lost without a word ------------------------------------------------------------------


async def test_over_is_read_before_the_results_are_cleared():
    act = fan_out(echo, over="items", into="items")
    assert (await Application(act).run({"items": ["a", "b"]})).state["items"] == ["a", "b"]

    todo = fan_out(
        echo,
        over=lambda state: [item for item in state["items"] if item not in state["out"]],
        reads=["items"],
        into="out",
    )
    result = await Application(todo).run({"items": ["a", "b"], "out": ["a"]})
    assert result.state["out"] == ["b"]

    again = fan_out(
        choosy, over="failed", key=str, into="out", errors_into="failed", on_error="collect"
    )
    result = await Application(again).run({"failed": {"a": 1, "b": 2}})
    assert result.state["out"] == {"a": "a"}
    assert list(result.state["failed"]) == ["b"]


async def test_over_may_read_nothing_if_it_says_so():
    act = fan_out(echo, over=lambda _: ["a", "b"], reads=[], into="out")
    assert (await Application(act).run()).state["out"] == ["a", "b"]


async def test_reads_may_be_any_iterable():
    act = fan_out(echo, over=lambda s: s["items"], reads=iter(["items"]), into="out")
    assert act.reads == {"items"}
    assert (await Application(act).run({"items": ["a"]})).state["out"] == ["a"]
    parse = action(reads=iter(["item"]), writes=iter(["out"]), name="parse")(echo.function)
    assert (parse.reads, parse.writes) == ({"item"}, {"out"})


# -- what fan_out refuses when it is built -------------------------------------------------------


async def wait(*_: object) -> Any: ...


async def generate(*_: object) -> AsyncIterator[int]:
    yield 1


def count(state: State, outcome: Outcome) -> State:
    return state.increment(n=isinstance(outcome, Done))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no name": ({"name": None, "into": None}, "without into= needs a name"),
    "an empty name": ({"name": "", "into": None}, "without into= needs a name"),
    "a name that is none": ({"name": 5}, r"name= takes a name, not 5"),
    "over": ({"over": ["a"]}, "'x'.*over= takes the name of a field or a function.*not a list"),
    "over, none": ({"over": None}, "'x'.*over="),
    "over, awaited": ({"over": wait, "reads": []}, "'x'.*over= takes a plain function.*'wait'"),
    "over, undeclared": ({"over": generate}, r"'x'.*over= is a function.*reads=\[\.\.\.\]"),
    "item": ({"item": 5}, "'x'.*item= takes a name, not 5"),
    "item, written": ({"item": "out"}, "'x'.*'echo' writes 'out', the field that holds its el"),
    "key": ({"key": 5}, "'x'.*key= takes a function, not 5"),
    "key, awaited": ({"key": wait}, "'x'.*key= takes a plain function.*'wait'"),
    "into": ({"into": 5}, "into= takes a name, not 5"),
    "into and reduce": ({"reduce": count, "writes": ["n"]}, "'x'.*into= and reduce= both"),
    "into twice": (
        {"into": "a", "errors_into": "a", "take": "out", "on_error": "collect"},
        "'x'.*into= and errors_into= are both 'a'",
    ),
    "take, unknown": ({"take": "title"}, r"'x'.*take='title' is no field.*writes: out"),
    "take, one unknown": ({"take": ["out", "title"]}, "'x'.*take='title' is no field"),
    "take, no name": ({"take": [5]}, "'x'.*take=5 is no field"),
    "take, a number": ({"take": 5}, "'x'.*take= takes a function, not 5"),
    "take, awaited": ({"take": wait}, "'x'.*take= takes a plain function"),
    "take, ambiguous": ({"act": two}, r"'x'.*which of the fields that 'two' writes \(more, out\)"),
    "take, nothing": ({"act": silent}, r"'x'.*which of the fields.*\(none\) goes into 'results'"),
    "errors_into": ({"errors_into": 5, "on_error": "collect"}, "errors_into= takes a name"),
    "errors_into, unused": ({"errors_into": "bad"}, "'x'.*errors_into=.*on_error='collect'"),
    "reduce": (
        {"into": None, "reduce": 5, "writes": ["n"]},
        "'x'.*reduce= takes a function, not 5",
    ),
    "reduce, a name": ({"into": None, "reduce": "n", "writes": ["n"]}, "'x'.*reduce= takes a func"),
    "reduce, awaited": ({"into": None, "reduce": wait, "writes": ["n"]}, "'x'.*reduce=.*'wait'"),
    "reduce, generates": ({"into": None, "reduce": generate, "writes": ["n"]}, "'x'.*reduce="),
    "reduce, undeclared": ({"into": None, "reduce": count}, r"'x'.*reduce=.*writes=\[\.\.\.\]"),
    "grow": ({"grow": 5}, "'x'.*grow= takes a function, not 5"),
    "grow, a name": ({"grow": "links"}, "'x'.*grow= takes a function"),
    "grow, awaited": ({"grow": wait}, "'x'.*grow=.*'wait' is a coroutine function"),
    "grow, generates": ({"grow": generate}, "'x'.*grow="),
    "at_most": ({"at_most": "5"}, "'x'.*at_most= takes a number of children, not '5'"),
    "at_most, negative": ({"at_most": -1}, "'x'.*at_most=.*not -1"),
    "at_most, a half": ({"at_most": 1.5}, "'x'.*at_most=.*not 1.5"),
    "at_most, true": ({"at_most": True}, "'x'.*at_most=.*not True"),
    "on_error": (
        {"on_error": "ignored"},
        "'x'.*on_error= is .*'fail', 'collect', 'ignore'.*not 'ignored'",
    ),
    "limits": ({"limits": 5}, r"'x'.*limits= takes Limits\(n\), not 5"),
    "reads": ({"reads": "items"}, r"reads='items' is one string.*reads=\['items'\]"),
    "writes": ({"writes": "items"}, r"writes='items' is one string.*writes=\['items'\]"),
    "reads, no names": ({"reads": [5]}, "reads= lists field names.*not 5"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_when_it_is_built(case: str):
    changes, message = REFUSED[case]
    arguments: dict[str, Any] = {
        "act": echo,
        "over": "items",
        "into": "results",
        "name": "x",
        **changes,
    }
    with pytest.raises(DefinitionError, match=message):
        fan_out(arguments.pop("act"), **arguments)


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "5", True])
def test_limits_count_children(wrong: Any):
    with pytest.raises(DefinitionError, match=rf"Limits\(n\).*at least 1, not {wrong!r}"):
        Limits(wrong)


def test_what_fits_is_not_refused():
    assert fan_out(echo, over="items", into="results").name == "results"
    assert fan_out(two, over="items", into="more").writes == {"more"}
    assert fan_out(silent, over="items", name="x").writes == set[str]()
    assert fan_out(echo, over=generate, reads=[], into="results", at_most=0).reads == set[str]()
    assert fan_out(echo, over="items", errors_into="bad", on_error="collect").name == "bad"
    act = fan_out(
        echo,
        over="items",
        reduce=count,
        writes=["n"],
        name="x",
        errors_into="e",
        on_error="collect",
    )
    assert act.writes == {"n", "e"}
