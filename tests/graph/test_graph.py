"""Graphs: checked when they are built, walked in order, and what flows through them."""

from __future__ import annotations

import copy
import pickle
import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any, cast

import pytest

from shoal import END, Action, Application, Graph, Outcome, State, action, fan_out, when
from shoal.errors import (
    BadResult,
    DefinitionError,
    MissingField,
    MissingInput,
    NoTransition,
    TooManySteps,
)
from shoal.events import RunEnded, StateUpdated, StepEnded, StepStarted
from shoal.testing import RecordingHook
from shoal.types import Act, FunctionAction, Input

pytestmark = pytest.mark.anyio


@action(reads=["url"], writes=["page"])
async def fetch(url: str, client: str) -> str:
    return f"{client} of {url}"


@action(reads=["page", "base"], writes=["title"])
async def parse(page: str, base: str, flags: int = 0) -> str:
    return f"{page} on {base}"


@action(reads=["title", "url"], writes=["url"])
async def follow(title: str, url: str, client: str) -> str:
    return f"{title}, {url}"


def test_a_chain_is_what_its_acts_are():
    graph = Graph.chain(fetch, parse, follow)
    assert graph.name == "fetch+parse+follow"
    assert graph.acts == (fetch, parse, follow)
    assert graph.entry is fetch
    assert graph.after(fetch, {}) is parse
    assert graph.after(parse, {}) is follow
    assert graph.after(follow, {}) is None
    assert repr(graph) == "<Graph fetch+parse+follow: fetch -> parse -> follow>"


def required(graph: Graph) -> dict[str, Input]:
    return {name: need for name, need in graph.takes.items() if need.required}


def test_a_chain_reads_what_it_does_not_write_first():
    graph = Graph.chain(fetch, parse, follow)
    assert graph.reads == {"url", "base"}
    assert graph.writes == {"page", "title", "url"}
    assert graph.sure_writes == {"page", "title", "url"}
    assert Graph.chain(parse, fetch).reads == {"page", "base", "url"}


def test_a_chain_needs_its_acts_inputs_and_names_the_first_that_does():
    assert required(Graph.chain(fetch, parse, follow)) == {"client": Input("fetch", required=True)}
    assert required(Graph.chain(follow, fetch)) == {"client": Input("follow", required=True)}
    assert required(Graph.chain(parse)) == {}


def test_a_chain_may_have_a_name():
    assert Graph.chain(fetch, name="page").name == "page"
    assert Application(Graph.chain(fetch, name="page")).name == "page"
    assert Application(fetch).name == "fetch"
    assert Application(fetch, name="mine").name == "mine"


@pytest.mark.parametrize("name", [5, b"page", ""])
def test_names_are_strings(name: Any):
    with pytest.raises(DefinitionError, match=f"name.*{name!r}"):
        Graph.chain(fetch, name=name)
    if name:
        with pytest.raises(DefinitionError, match=f"name.*{name!r}"):
            Application(fetch, name=name)


def test_a_fan_out_is_an_act():
    pages = fan_out(fetch, over="urls", item="url", into="pages", key=str)
    graph = Graph.chain(pages, parse)
    assert graph.name == "pages+parse"
    assert graph.reads == {"urls", "page", "base"}
    assert graph.writes == {"pages", "title"}
    assert required(graph) == {"client": Input("fetch", required=True)}
    assert repr(pages) == "<fan_out pages of fetch>"


async def plain() -> None: ...


@pytest.mark.parametrize(
    ("acts", "message"),
    [
        ((), "at least one action"),
        (
            (fetch, parse, fetch),
            r"two acts .* named 'fetch': it is the same act, twice; .*act\.bind\(name=",
        ),
        ((plain,), r"plain.*is none: decorate it: @action\("),
        ((fetch, lambda: None), r"lambda.*is none: decorate it"),
        ((None,), "None is none: give an @action"),
        (("fetch",), "'fetch' is none: give an @action"),
        (([fetch, parse],), r"\[.*\] is none: acts in a row are Graph.chain\(\*acts\)"),
    ],
)
def test_what_is_no_chain_is_refused(acts: Any, message: str):
    with pytest.raises(DefinitionError, match=message):
        Graph.chain(*acts)


@pytest.mark.parametrize("wrong", [plain, None, "fetch", 5])
def test_only_acts_and_graphs_are_applications_and_fan_outs(wrong: Any):
    with pytest.raises(DefinitionError, match="Application takes actions"):
        Application(wrong)
    with pytest.raises(DefinitionError, match="fan_out 'x' takes actions"):
        fan_out(wrong, over="urls", name="x")


async def test_a_chain_is_walked_in_order_each_act_on_what_the_last_one_left():
    hook = RecordingHook()
    result = await Application(Graph.chain(fetch, parse, follow), hooks=[hook]).run(
        {"url": "u", "base": "b"}, inputs={"client": "c"}
    )
    assert result.state == {
        "url": "c of u on b, u",
        "base": "b",
        "page": "c of u",
        "title": "c of u on b",
    }
    assert [event.step for event in hook.of(StepStarted)] == ["fetch", "parse", "follow"]
    assert [(event.step, event.status) for event in hook.of(StepEnded)] == [
        ("fetch", "succeeded"),
        ("parse", "succeeded"),
        ("follow", "succeeded"),
    ]


async def test_what_follows_a_failed_act_is_not_walked():
    @action(reads=["url"], writes=["page"], name="fetch")
    async def failing(url: str) -> str:
        raise OSError(url)

    hook = RecordingHook()
    with pytest.raises(OSError, match="u"):
        await Application(Graph.chain(failing, parse), hooks=[hook]).run({"url": "u", "base": "b"})
    assert [event.step for event in hook.of(StepStarted)] == ["fetch"]


async def test_one_graph_may_stand_in_several_places():
    shared = Graph.chain(fetch, parse, name="page")
    first = fan_out(shared, over="urls", item="url", into="first", take="title")
    second = fan_out(shared, over="urls", item="url", into="second", take="page")
    result = await Application(Graph.chain(first, second)).run(
        {"urls": ["u"], "base": "b"}, inputs={"client": "c"}
    )
    assert result.state["first"] == ["c of u on b"]
    assert result.state["second"] == ["c of u"]


# -- edges and conditions ------------------------------------------------------------------------


def act(name: str, reads: str = "", writes: str = "") -> FunctionAction[..., Any]:
    """Make an action that surely writes its own name into all that it writes."""
    fields = reads.split()

    def parameters(**_: object) -> Any:
        written = writes.split()
        return dict.fromkeys(written, name) if len(written) != 1 else name

    source = f"lambda {', '.join(fields)}: parameters()"
    function = eval(source, {"parameters": parameters if writes else lambda: None})
    return action(reads=fields, writes=writes.split(), name=name, executor="loop")(function)


def unsure(name: str, reads: str = "", writes: str = "") -> FunctionAction[..., Any]:
    """Make an action that may read and write, and does neither."""

    @action(reads=reads.split(), writes=writes.split(), name=name)
    async def perhaps(state: State) -> State:
        return state

    return perhaps


@action(reads=["n"], writes=["n"])
async def more(n: int) -> int:
    return n + 1


@action(reads=["n"], writes=["result"])
async def finish(n: int) -> str:
    return f"at {n}"


a, b, c, d = (act(name) for name in "abcd")
counted = Graph((more, more, lambda n: n < 5), (more, finish))


def steps(hook: RecordingHook) -> list[str]:
    return [event.step for event in hook.of(StepStarted)]


async def walk(graph: Graph, state: dict[str, Any], **options: Any) -> list[str]:
    """Run a graph and return the steps that it took."""
    hook = RecordingHook()
    await Application(graph, hooks=[hook], **options).run(state)
    hook.assert_paired()
    return steps(hook)


async def test_a_loop_goes_round_until_its_condition_is_false():
    hook = RecordingHook()
    result = await Application(counted, hooks=[hook]).run({"n": 1})
    assert result.state == {"n": 5, "result": "at 5"}
    assert steps(hook) == ["more"] * 4 + ["finish"]
    numbers = [event.update.number for event in hook.of(StateUpdated)]
    assert numbers == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"x": 1, "y": 1}, "ab"),
        ({"x": 0, "y": 1}, "ac"),
        ({"x": 0, "y": 0}, "ad"),
        ({"x": 1}, "ab"),
    ],
)
async def test_edges_are_tried_as_written_and_the_first_true_one_is_taken(
    state: dict[str, Any], expected: str
):
    reader = unsure("a", writes="y")  # so that "y" may be left out
    graph = Graph((reader, b, when("x")), (reader, c, when("y")), (reader, d))
    assert await walk(graph, state) == [*expected]


async def test_conditions_see_the_state_after_the_act():
    graph = Graph((more, a, when(n=2)), (more, b))
    assert await walk(graph, {"n": 1}) == ["more", "a"]
    assert await walk(graph, {"n": 2}) == ["more", "b"]


async def test_a_run_ends_where_no_edge_leaves_or_one_leads_to_end():
    graph = Graph((a, END, when("stop")), (a, b), (b, c), (c, END))
    assert await walk(graph, {"stop": True}) == ["a"]
    assert await walk(graph, {"stop": False}) == ["a", "b", "c"]
    assert await walk(Graph((a, END)), {}) == ["a"]
    assert await walk(Graph.chain(a), {}) == ["a"]


async def test_a_run_begins_at_the_entry():
    loop = ((a, b, when("x")), (b, a, when("x")))
    assert await walk(Graph(*loop, (a, END), (b, END), entry=b), {"x": 0}) == ["b"]
    assert await walk(Graph(*loop, (a, END), (b, END), entry="a"), {"x": 0}) == ["a"]
    assert Graph((a, a, when("x")), (a, b)).entry is a, "its own successor, and no other's"
    assert Graph((b, c), (a, b)).entry is a


async def test_the_end_of_a_child_may_depend_on_a_condition():
    @action(reads=["m"], writes=["n"])
    async def start(m: int) -> int:
        return m

    each = Graph((start, more), (more, END, when(lambda n: n > 2)), (more, finish), name="each")
    numbers = fan_out(each, over="numbers", item="m", into="ends", take=["n", "result"])
    only_n = fan_out(each, over="numbers", item="m", into="ends", take="n")
    assert (await Application(only_n).run({"numbers": [0, 1, 2]})).state["ends"] == [1, 2, 3]
    taken = (await Application(numbers).run({"numbers": [0, 1]})).state["ends"]
    assert taken == [{"n": 1, "result": "at 1"}, {"n": 2, "result": "at 2"}]


async def failed(graph: Graph, state: dict[str, Any], kind: type[Exception]) -> tuple[Any, Any]:
    """Run into that error after the first step, which is completed; return it and the events."""
    hook = RecordingHook()
    with pytest.raises(kind) as caught:
        await Application(graph, name="app", hooks=[hook]).run(state, id="run-7")
    hook.assert_paired()
    assert type(caught.value) is kind
    assert [(event.step, event.status) for event in hook.of(StepEnded)] == [("more", "succeeded")]
    assert [event.update.operations[0].field for event in hook.of(StateUpdated)] == ["n"]
    assert [event.status for event in hook.of(RunEnded)] == ["failed"]
    said = "\n".join([str(caught.value), *caught.value.__notes__])
    assert "run run-7" in said
    return caught.value, said


async def test_where_no_edge_is_true_the_run_fails_after_the_step():
    graph = Graph((more, a, when(lambda n: n > 5)), (more, b, when("long")), name="g")
    _, said = await failed(graph, {"n": 1, "long": "", "other": 1}, NoTransition)
    assert "graph 'g': no edge that leaves 'more' is true of the state: " in said
    assert "to 'a' when(lambda n: ...), with n=2; to 'b' when('long'), with long=''; " in said
    unread = Graph((more, a, lambda: False))
    _, said = await failed(unread, {"n": 1}, NoTransition)
    assert "with no field" in said


async def test_values_are_shortened_where_no_edge_is_true():
    graph = Graph((a, b, when(text="x")))
    with pytest.raises(NoTransition) as caught:
        graph.after(a, {"text": "y" * 10_000})
    assert len(str(caught.value)) < 400


async def test_a_condition_that_raises_fails_the_run_after_the_step():
    def broken(n: int) -> bool:
        return {0: True}[n]

    graph = Graph((more, a, broken), (more, b))
    error, said = await failed(graph, {"n": 1}, KeyError)
    assert error.args == (2,)
    assert "on edge 'more' -> 'a', when(broken)" in said


async def test_a_condition_on_a_field_that_is_not_there_names_the_edge():
    @action(reads=["n"], writes=["n", "score"], name="more")
    async def first(state: State) -> State:
        return state.increment(n=1)

    graph = Graph((first, a, when("score")), (first, b))
    _, said = await failed(graph, {"n": 1}, MissingField)
    assert "when('score') reads field 'score', which the state does not have" in said
    assert "on edge 'more' -> 'a', when('score')" in said


async def test_a_condition_that_returns_an_awaitable_fails_the_run_after_the_step():
    async def later() -> bool:
        return True

    graph = Graph((more, a, lambda n: later()), (more, b))
    _, said = await failed(graph, {"n": 1}, BadResult)
    assert "on edge 'more' -> 'a'" in said


async def test_a_child_whose_condition_raises_fails_alone():
    @action(reads=["m"], writes=["n"])
    async def start(m: int) -> int:
        return m

    one = Graph((start, finish, when(lambda n: 1 / n)), (start, END), name="one")
    every = fan_out(
        one,
        over="numbers",
        item="m",
        into="results",
        take="result",
        key=str,
        errors_into="failed",
        on_error="collect",
    )
    result = await Application(every).run({"numbers": [0, 1]})
    assert result.state["results"] == {"1": "at 1"}
    assert result.state["failed"]["0"].type == "ZeroDivisionError"
    assert "on edge 'start' -> 'finish'" in result.state["failed"]["0"].traceback


def test_the_same_edges_make_another_graph():
    again = Graph(*counted.edges, name="again")
    assert again.acts == counted.acts
    assert again.edges == counted.edges


def test_a_graph_shows_its_edges():
    graph = Graph((a, b, when("x")), (a, END), (b, a), entry=a, name="g")
    assert repr(graph) == "<Graph g: a -> b when('x'), a -> END, b -> a>"
    assert repr(Graph((a, b), (b, c))) == "<Graph a+b+c: a -> b -> c>"
    assert repr(Graph.chain(a)) == "<Graph a: a>"
    assert Graph((b, c), (a, b)).name == "b+c+a"


def test_end_is_one_and_says_so():
    assert repr(END) == "END"
    assert copy.deepcopy(END) is END
    assert pickle.loads(pickle.dumps(END)) is END


# -- what is refused -----------------------------------------------------------------------------


class Greet(Action):
    writes = ("greeting",)

    async def run(self) -> str:
        return "hello"


async def is_later(n: int) -> bool:
    return n > 1


x = when("x")


def takes_state(state: State) -> bool:
    return "n" in state


untyped: Any = Graph
WRONG: list[tuple[Callable[[], object], str]] = [
    (untyped, r"Graph\(\) needs an edge.*Graph.chain\(a\)"),
    (lambda: untyped(entry=a), r"needs an edge"),
    (lambda: untyped(a), r"takes edges, .* not <action a .*Graph.chain\(a, b, c\)"),
    (lambda: untyped(a, b), r"takes edges, .* not <action a "),
    (lambda: untyped([a, b]), r"not \[.*\]; edges are tuples"),
    (lambda: untyped([(a, b), (b, c)]), r"edges are tuples, each an argument of its own"),
    (lambda: untyped((a,)), r"takes edges, \(a, b\) or \(a, b, when"),
    (lambda: untyped((a, b, x, x)), r"takes edges"),
    (lambda: untyped("ab"), r"takes edges, .* not 'ab'"),
    (lambda: untyped((a, None)), r"Graph takes actions; None is none: give an @action"),
    (lambda: untyped((a, "b")), r"'b' is none: give an @action, a fan_out\(...\) or a Graph"),
    (lambda: untyped((plain, a)), r"plain.* is none: decorate it"),
    (lambda: untyped((a, Greet)), r"Greet.* is none: it is a class: write Greet\(\)"),
    (lambda: untyped.chain(Greet), r"it is a class: write Greet\(\)"),
    (lambda: untyped((END, a)), r"no edge leaves END, but one leads from it to 'a'"),
    (lambda: untyped((END, END)), r"no edge leaves END"),
    (lambda: untyped.chain(a, END), r"END is none: it is only where an edge leads to"),
    (lambda: untyped((a, END), entry=END), r"an act of the graph, or its name, not END"),
    (lambda: untyped((a, b), entry=c), r"Graph\(entry=...\): no act is named 'c' .*a, b"),
    (lambda: untyped((a, more), entry="mroe"), r"no act is named 'mroe'.*did you mean 'more'"),
    (lambda: untyped((a, b), entry=act("a")), r"two acts of the graph are named 'a'"),
    (lambda: untyped((a, c), (b, c)), r"missing entry: .*no edge leads to: a, b; .*entry="),
    (lambda: untyped((a, b, x), (b, a)), r"missing entry: .*each follows another: a, b"),
    (lambda: untyped((a, b), (c, d), entry=a), r"no path leads from 'a', .* to c, d"),
    (lambda: untyped((a, b), (b, c), entry=b), r"no path leads from 'b', .* to a; add an edge"),
    (lambda: untyped((a, b), (c, c, x)), r"missing entry|no path leads"),
    (lambda: untyped((a, b), (a, c, x)), r"'a' -> 'c' is never tried: 'a' -> 'b' comes before"),
    (lambda: untyped((a, END), (a, c, x)), r"'a' -> 'c' is never tried: 'a' -> END comes before"),
    (lambda: untyped((a, b), (a, b)), r"'a' -> 'b' is never tried"),
    (
        lambda: untyped((a, b), (b, act("a", "n"))),
        r"named 'a': <action a reads=\[\] .*> and <action a reads=\['n'\] .*bind\(name=",
    ),
    (
        lambda: untyped.chain(a, act("a", "n")),
        r"named 'a': <action a reads=\[\] .*> and <action a reads=\['n'\] .*bind\(name=",
    ),
    (lambda: untyped((a, b, "x")), r"'a' -> 'b': 'x' is no condition: write when\('x'\)"),
    (lambda: untyped((a, b, True)), r"True is no condition: an edge without .* always taken"),
    (lambda: untyped((a, b, {"x": 1})), r"{'x': 1} is no condition: write when"),
    (lambda: untyped((a, b, is_later)), r"edge 'a' -> 'b': .*is a coroutine function"),
    (lambda: untyped((a, b, takes_state)), r"edge 'a' -> 'b': .*takes `state`"),
    (lambda: untyped((a, b, c)), r"edge 'a' -> 'b': <action c .*is an act, not a condition"),
    (lambda: untyped((a, b), name=5), r"Graph\(name=...\) takes a name, not 5"),
    (lambda: counted.part(entry="mor"), r"part\(entry=...\): no act .*did you mean 'more'"),
    (lambda: counted.part(entry=a), r"'more\+finish': part\(entry=...\): no act is named 'a'"),
    (lambda: counted.part(ends_after=["x"]), r"part\(ends_after=...\): no act is named 'x'"),
    (lambda: cast("Any", counted).part(ends_after="more"), r"takes a list of acts, not 'mo"),
    (lambda: cast("Any", counted).part(ends_after=more), r"takes a list of acts, not <act"),
    (lambda: cast("Any", counted).part(ends_after=[5]), r"or its name, not 5"),
    (lambda: counted.bind(model="x"), r"takes no input 'model' that could be bound"),
    (lambda: counted.bind(name=""), r"takes a name, not ''"),
    (lambda: Application(a, max_steps=0), r"max_steps= takes a whole number .*, not 0"),
    (lambda: Application(a, max_steps=True), r"max_steps= takes .*, not True"),
    (lambda: Application(a, max_steps=cast("Any", "9")), r"max_steps= takes .*, not '9'"),
]


@pytest.mark.parametrize(("build", "message"), WRONG)
def test_what_is_no_graph_is_refused(build: Callable[[], object], message: str):
    with pytest.raises(DefinitionError, match=message):
        build()


# -- what flows ----------------------------------------------------------------------------------


def flows(graph: Graph) -> tuple[str, str, str]:
    """Return what it reads, what it needs, and what it surely writes."""
    return (
        " ".join(sorted(graph.reads)),
        " ".join(sorted(graph.needs)),
        " ".join(sorted(graph.sure_writes)),
    )


IN, OUT = act("in", "x", "y"), act("out", "y", "z")
LEFT, RIGHT = act("left", "", "y l"), act("right", "", "y r")


@pytest.mark.parametrize(
    ("graph", "reads", "needs", "sure"),
    [
        (Graph.chain(IN, OUT), "x", "x", "y z"),
        (Graph.chain(OUT, IN), "x y", "x y", "y z"),
        # an act that may not have written: read, and perhaps from outside
        (Graph.chain(unsure("may", "", "y"), OUT), "y", "", "z"),
        # on one way of two, on both, on none
        (Graph((a, LEFT, x), (a, OUT), (LEFT, OUT)), "x y", "x", "z"),
        (Graph((a, LEFT, x), (a, RIGHT), (LEFT, OUT), (RIGHT, OUT)), "x", "x", "y z"),
        (Graph((a, LEFT, x), (a, b), (LEFT, END), (b, OUT)), "x y", "x y", ""),
        # loops: what is written later doesn't help the first time, what may come back does
        (Graph((OUT, IN, when("z")), (OUT, END), (IN, OUT), entry=OUT), "x y", "x y", "z"),
        (Graph((a, OUT), (OUT, IN, x), (OUT, END), (IN, OUT)), "x y", "x y", "z"),
        (Graph((a, OUT, x), (a, IN), (IN, a, x), (IN, OUT), entry=a), "x y", "x", "z"),
        (Graph((more, more, lambda n: n < 5), (more, finish)), "n", "n", "n result"),
        # conditions come after their act; what it surely writes is there
        (Graph((IN, OUT, when("y")), (IN, END)), "x", "x", "y"),
        (Graph((IN, OUT, when("q")), (IN, END)), "q x", "q x", "y"),
        (Graph((unsure("may", "", "q"), a, when("q")), (a, END)), "q", "", ""),
        (Graph((a, b, lambda q, r=1: q == r), (a, END)), "q r", "q", ""),
        (Graph((a, b, when("q") & when("r")), (a, END)), "q r", "q", ""),
        # the second edge may be tried only after a way back
        (
            Graph((a, b, when("q")), (a, c, when("l")), (b, LEFT), (LEFT, a), entry=a),
            "l q",
            "q",
            "",
        ),
        # only the ways that end count for what is surely there
        (Graph((IN, LEFT, x), (IN, END), (LEFT, IN), entry=IN), "x", "x", "y"),
        (Graph((LEFT, RIGHT), (RIGHT, LEFT), entry=LEFT), "", "", ""),
        (
            Graph.chain(fan_out(IN, over="xs", item="x", into="ys"), act("sum", "ys")),
            "xs",
            "xs",
            "ys",
        ),
        (Graph.chain(Graph.chain(IN, name="inner"), OUT), "x", "x", "y z"),
        (Graph.chain(Graph.chain(unsure("may", "", "y"), OUT, name="inner")), "y", "", "z"),
        (Graph.chain(unsure("may", "q", "")), "q", "", ""),
    ],
)
def test_what_comes_from_outside_is_known(graph: Graph, reads: str, needs: str, sure: str):
    assert flows(graph) == (reads, needs, sure)


def test_the_act_that_needs_a_field_is_known():
    inner = Graph.chain(parse, name="inner")
    pages = fan_out(fetch, over="urls", item="url", into="pages", name="all")
    graph = Graph((a, inner, when("x")), (a, pages), name="g")
    assert graph.needed_by == {
        "x": "edge 'a' -> 'inner', when('x'),",
        "page": "action 'parse'",
        "base": "action 'parse'",
        "urls": "fan-out 'all', which runs over it,",
    }
    assert graph.missing({"x", "urls", "page"}) == {"base": "action 'parse'"}
    assert graph.missing(graph.needs) == {}


async def test_what_must_come_from_outside_is_asked_for_before_anything_starts():
    hook = RecordingHook()
    graph = Graph((a, END, when("ready")), (a, finish))
    app = Application(graph, name="app", hooks=[hook])
    for state, message in (
        ({"n": 1}, r"'app': edge 'a' -> END, when\('ready'\), reads field 'ready'.*it has: n\)"),
        ({"ready": 1}, r"application 'app': action 'finish' reads field 'n', .*pass it to run\(\)"),
    ):
        with pytest.raises(MissingField, match=message):
            await app.run(state)
    assert hook.events == []
    assert (await app.run({"ready": 1, "n": 1})).state == {"ready": 1, "n": 1}


async def test_children_get_what_they_read_and_may_do_without():
    @action(reads=["m", "hint"], writes=["guess"])
    async def guess(state: State) -> State:
        return state.update(guess=state.get("hint", "none"))

    guesses = fan_out(guess, over="ms", item="m", into="guesses")
    assert guesses.needs == {"ms"}
    app = Application(guesses)
    assert (await app.run({"ms": [1]})).state["guesses"] == ["none"]
    assert (await app.run({"ms": [1], "hint": "h"})).state["guesses"] == ["h"]


def straight_edges(acts: list[Act]) -> Iterable[Any]:
    return pairwise(acts)


def test_a_graph_of_a_thousand_acts_is_built_quickly():
    acts: list[Act] = [act(f"n{i}", f"f{i}", f"f{i + 1}") for i in range(1000)]
    began = time.perf_counter()
    chain = Graph.chain(*acts)
    backwards = Graph(*reversed(list(straight_edges(acts))))
    back: Any = [(acts[i + 1], acts[i], x) for i in range(998)]
    ladder = Graph(*back, *straight_edges(acts), entry=acts[0])
    assert time.perf_counter() - began < 2  # takes 0.05
    assert flows(chain)[:2] == flows(backwards)[:2] == ("f0", "f0")
    assert ladder.needs == {"f0", "x"}
    assert len(ladder.sure_writes) == 1000


# -- parts ---------------------------------------------------------------------------------------

LOOP = Graph((a, b), (b, a, when("again")), (b, c), (c, d), entry=a, name="loop")


@pytest.mark.parametrize(
    ("part", "shown"),
    [
        (LOOP.part(entry=b), "<Graph loop: a -> b, b -> a when('again'), b -> c, c -> d>"),
        (LOOP.part(entry="c"), "<Graph loop: c -> d>"),
        (LOOP.part(entry=d), "<Graph loop: d>"),
        (LOOP.part(ends_after=[a]), "<Graph loop: a>"),
        (LOOP.part(ends_after=["b"]), "<Graph loop: a -> b>"),
        (LOOP.part(b, [a, "c"], "some"), "<Graph some: b -> a when('again'), b -> c>"),
        (LOOP.part("c", {"c"}), "<Graph loop: c>"),
    ],
    ids=repr,
)
async def test_a_part_is_entered_elsewhere_or_left_earlier(part: Graph, shown: str):
    assert repr(part) == shown
    await walk(part, {"again": False})


async def test_a_part_needs_what_it_no_longer_writes():
    graph = Graph.chain(IN, OUT, act("last", "z"), name="g")
    assert flows(graph.part(entry=OUT)) == ("y", "y", "z")
    assert flows(graph.part(ends_after=[IN])) == ("x", "x", "y")
    assert await walk(graph.part(entry="out", ends_after=["out"]), {"y": 1}) == ["out"]


async def test_a_part_walks_only_what_it_has():
    assert await walk(LOOP.part(entry=b), {"again": False}) == ["b", "c", "d"]
    assert await walk(LOOP.part(ends_after=[b]), {}) == ["a", "b"]
    looping = Graph((more, b), (b, more, lambda n: n < 3), (b, c), entry=more)
    assert await walk(looping.part(entry=b, ends_after=[c]), {"n": 1}) == [
        *("b", "more", "b", "more", "b", "c")
    ]


# -- binding -------------------------------------------------------------------------------------


async def test_bound_inputs_go_to_every_act_that_takes_them():
    graph = Graph((fetch, parse), (parse, follow, when("again")), (parse, END), name="page")
    bound = graph.bind(name="bound", client="c")
    assert (bound.name, graph.name) == ("bound", "page")
    assert required(bound) == {}
    assert required(graph) == {"client": Input("fetch", required=True)}
    assert bound.acts[1] is parse, "which takes no client"
    assert [act.name for act in bound.acts] == ["fetch", "parse", "follow"]
    assert [repr(edge) for edge in bound.edges] == [repr(edge) for edge in graph.edges]
    assert bound.entry is bound.acts[0]
    assert flows(bound) == flows(graph)
    state = {"url": "u", "base": "b", "again": True}
    assert (await Application(bound).run(state)).state["url"] == "c of u on b, u"
    with pytest.raises(DefinitionError, match="every action that takes 'client' has it bound"):
        await Application(bound).run(state, inputs={"client": "other"})
    with pytest.raises(MissingInput, match="'client'"):
        await Application(graph).run(state)


async def test_what_an_act_has_bound_itself_stays():
    graph = Graph.chain(fetch.bind(client="own"), follow)
    result = await Application(graph.bind(client="outer")).run({"url": "u", "title": "t"})
    assert result.state["page"] == "own of u"
    with pytest.raises(MissingInput):
        await Application(graph).run({"url": "u", "title": "t"})


def test_binding_only_a_name_keeps_the_acts():
    named = counted.bind(name="named")
    assert (named.name, counted.name) == ("named", "more+finish")
    assert named.acts == counted.acts


async def test_binding_reaches_into_graphs_and_fan_outs():
    pages = fan_out(fetch, over="urls", item="url", into="pages")
    graph = Graph.chain(pages, Graph.chain(follow, name="inner"), name="g")
    assert required(graph.bind(client="c")) == {}
    assert required(graph) == {"client": Input("fetch", required=True)}
    app = Application(Graph.chain(pages).bind(client="c"))
    assert (await app.run({"urls": ["u"]})).state["pages"] == ["c of u"]


async def test_a_fan_out_can_be_bound_and_named():
    pages = fan_out(fetch, over="urls", item="url", into="pages")
    named = pages.bind(name="named", client="c")
    assert (pages.name, named.name) == ("pages", "named")
    assert repr(named) == "<fan_out named of fetch>"
    with pytest.raises(
        DefinitionError, match=r"'pages' takes no input 'clent'.*did you mean 'clie"
    ):
        pages.bind(clent=1)
    both = Graph.chain(pages.bind(client="first"), named)
    hook = RecordingHook()
    result = await Application(both, hooks=[hook]).run({"urls": ["u"]})
    assert steps(hook) == ["pages", "fetch", "named", "fetch"]
    assert result.state["pages"] == ["c of u"]
    assert result.outcomes("pages").done == result.outcomes("named").done == 1


async def test_the_name_of_a_bound_fan_out_is_in_its_errors():
    def reduce(state: State, outcome: Outcome) -> State:
        return state.update(wrong=1)

    pages = fan_out(fetch, over="urls", item="url", reduce=reduce, writes=["n"], name="pages")
    with pytest.raises(Exception, match="'named' writes field 'wrong'"):
        await Application(pages.bind(name="named", client="c")).run({"urls": ["u"]})


# -- how many steps ------------------------------------------------------------------------------

ENDLESS = Graph((a, b), (b, c), (c, a), entry=a, name="endless")


@pytest.mark.parametrize("limit", [1, 2, 5, 100])
async def test_an_endless_loop_is_stopped(limit: int):
    hook = RecordingHook()
    app = Application(ENDLESS, name="app", hooks=[hook], max_steps=limit)
    with pytest.raises(TooManySteps) as caught:
        await app.run(id="run-7")
    hook.assert_paired()
    assert len(steps(hook)) == limit
    assert {event.status for event in hook.of(StepEnded)} == {"succeeded"}
    message = str(caught.value)
    assert message.startswith(f"run run-7 of 'app' has taken {limit} steps, the last ")
    last = steps(hook)[-5:]
    assert f"{' -> '.join(last)}, and {'abc'[limit % 3]!r} would be next" in message
    assert "Application(..., max_steps=...)" in message


async def test_as_many_steps_as_allowed_may_be_taken():
    assert len(await walk(counted, {"n": 1}, max_steps=5)) == 5
    with pytest.raises(TooManySteps):
        await walk(counted, {"n": 1}, max_steps=4)


async def test_by_default_a_thousand_steps():
    hook = RecordingHook()
    with pytest.raises(TooManySteps, match="1000 steps"):
        await Application(ENDLESS, hooks=[hook]).run()
    assert len(steps(hook)) == 1000


async def test_children_count_for_themselves():
    numbers = fan_out(Graph.chain(a, b, c), over="numbers", name="numbers")
    app = Application(Graph.chain(numbers, d), max_steps=3)
    await app.run({"numbers": range(10)})
    each = fan_out(ENDLESS, over="numbers", name="numbers", on_error="collect")
    result = await Application(each, max_steps=10).run({"numbers": range(3)})
    assert result.outcomes("numbers").failed == 3
    for outcome in result.outcomes("numbers"):
        assert f"run {outcome.path.id} of 'endless' has taken 10 steps" in str(
            cast("Any", outcome).error
        )


# -- visits --------------------------------------------------------------------------------------


@action(reads=["turn"], writes=["turn"])
async def next_turn(turn: int) -> int:
    return turn + 1


@action(reads=["item", "turn"], writes=["value"])
async def evaluate(item: str, turn: int) -> str:
    return f"{item}{turn}"


@pytest.mark.parametrize("key", [str, None])
async def test_a_loop_runs_its_fan_out_afresh_on_every_visit(key: Any):
    values = fan_out(evaluate, over="items", into="values", key=key)
    loop = Graph(
        (values, next_turn),
        (next_turn, values, lambda turn: turn < 3),
        (next_turn, END),
        entry=values,
    )
    hook = RecordingHook()
    result = await Application(loop, hooks=[hook]).run({"items": ["a", "b"], "turn": 0})
    hook.assert_paired()
    expected = ["a2", "b2"]
    assert result.state["values"] == (dict(zip("ab", expected, strict=True)) if key else expected)
    assert result.outcomes("values").done == 2
    ended = [event for event in hook.of(RunEnded) if event.path.parent is not None]
    assert [event.path.visit for event in ended] == [0, 0, 1, 1, 2, 2]
    assert len({event.path.id for event in ended}) == 6


async def test_what_was_there_before_is_kept_on_the_first_visit_alone():
    values = fan_out(evaluate, over="items", into="values", key=str)
    loop = Graph(
        (values, next_turn),
        (next_turn, values, lambda turn: turn < 2),
        (next_turn, END),
        entry=values,
    )
    state = {"items": ["a", "b"], "values": {"a": "old", "z": "old"}, "turn": 0}
    once = await Application(loop.part(ends_after=[values])).run(state)
    assert once.state["values"] == {"z": "old", "a": "old", "b": "b0"}
    assert once.outcomes("values").skipped == 1
    twice = await Application(loop).run(state)
    assert twice.state["values"] == {"a": "a1", "b": "b1"}
    assert twice.outcomes("values").skipped == 0


async def test_each_fan_out_of_a_loop_counts_its_own_visits():
    first = fan_out(evaluate, over="items", into="first", key=str)
    second = fan_out(evaluate, over="items", into="second", key=str)
    loop = Graph(
        (first, next_turn),
        (next_turn, first, lambda turn: turn < 2),
        (next_turn, second),
        entry=first,
    )
    hook = RecordingHook()
    await Application(loop, hooks=[hook]).run({"items": ["a"], "turn": 0})
    paths = [event.path for event in hook.of(RunEnded) if event.path.parent is not None]
    assert [(path.step, path.visit) for path in paths] == [
        ("first", 0),
        ("first", 1),
        ("second", 0),
    ]


async def test_a_loop_in_a_child_counts_for_that_child():
    values = fan_out(evaluate, over="items", into="values", key=str)

    @action(reads=["n"], writes=["turn"])
    async def begin(n: int) -> int:
        return n

    each = Graph(
        (begin, values),
        (values, next_turn),
        (next_turn, values, lambda turn: turn < 2),
        (next_turn, END),
        name="each",
    )
    alls = fan_out(each, over="ns", item="n", into="alls", take="values")
    result = await Application(alls).run({"ns": [0, 1], "items": ["a"]})
    assert result.state["alls"] == [{"a": "a1"}, {"a": "a1"}]
