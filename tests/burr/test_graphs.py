"""Graphs of Burr's as graphs: their walk, where they begin and end, and what stands in them."""

# Burr's own types are unknown in part.
# pyright: reportMissingTypeArgument=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false, reportUnknownLambdaType=false

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

import shoal
from shoal import Application, Graph, MemoryStore, Retry, fan_out
from shoal.errors import MissingInput
from shoal.testing import no_leaks
from shoal.watch.draw import mermaid

pytest.importorskip("burr", reason="needs Burr: pip install apache-burr")

from burr.core import (
    ApplicationBuilder,
    Condition,
    GraphBuilder,
    State,
    action,
    default,
    expr,
    when,
)
from burr.core.parallelism import RunnableGraph
from burr.integrations.pydantic import PydanticTypingSystem

from shoal.burr import act, graph

pytestmark = pytest.mark.anyio


@action(reads=["n"], writes=["n", "path"])
def count(state: State) -> State:
    return state.increment(n=1).append(path="count")


@action(reads=["n"], writes=["path"], tags=["last"])
async def even(state: State) -> State:
    return state.append(path="even")


@action(reads=["n"], writes=["path"], tags=["last"])
async def odd(state: State) -> State:
    return state.append(path="odd")


async def walked(made: Any, **fields: Any) -> list[str]:
    async with no_leaks():
        return list((await Application(made).run(fields)).state.get("path", []))


def counting(*transitions: Any) -> Any:
    return GraphBuilder().with_actions(count, even, odd).with_transitions(*transitions).build()


# -- the walk --------------------------------------------------------------------------------------


async def test_transitions_are_tried_in_order_and_default_is_taken_always():
    made = graph(
        counting(("count", "count", expr("n < 3")), ("count", "even", when(n=4)), ("count", "odd"))
    )
    assert await walked(made, n=0) == ["count", "count", "count", "odd"]
    assert await walked(made, n=3) == ["count", "even"]


@pytest.mark.parametrize(
    ("condition", "goes"),
    [
        (when(n=1), True),
        (when(n__gte=2), False),
        (when(n__in=[1, 2], path__contains="count"), True),
        (~when(n=1), False),
        (when(n=7) | expr("n < 3"), True),
        (when(n=1) & expr("len(path) > 5"), False),
        (Condition.safe_expr("n + 1 == 2 and path[-1] == 'count'"), True),
        (Condition.lmda(lambda state: state["n"] == 1, ["n"]), True),
        (default, True),
    ],
    ids=str,
)
async def test_conditions_are_burrs(condition: Condition, goes: bool):
    made = graph(counting(("count", "even", condition)), entrypoint="count")
    assert await walked(made, n=0) == (["count", "even"] if goes else ["count"])


# Fails where a graph that has nowhere to go fails the run, as ours does.
async def test_where_no_transition_is_true_the_run_ends():
    made = graph(counting(("count", "even", when(n=9))), entrypoint="count")
    assert [repr(edge) for edge in made.edges][-1] == "count -> END"
    assert await walked(made, n=0) == ["count"]


async def test_what_can_not_be_reached_is_left_out():
    made = graph(counting(("count", "even"), ("odd", "even")), entrypoint="odd")
    assert [one.name for one in made.acts] == ["odd", "even"]
    assert await walked(made, n=0) == ["odd", "even"]


async def test_a_graph_ends_after_what_halts_it():
    whole = counting(("count", "even"), ("even", "odd"), ("odd", "count"))
    made = graph(whole, entrypoint="count", halt_after=["even"], name="short")
    assert (made.name, await walked(made, n=0)) == ("short", ["count", "even"])
    assert await walked(graph(whole, entrypoint="count", halt_after="@tag:last"), n=0) == [
        "count",
        "even",
    ]
    runnable = RunnableGraph(whole, entrypoint="even", halt_after=["odd"])
    assert await walked(graph(runnable), n=0) == ["even", "odd"]


async def test_one_action_alone_is_a_graph():
    made = graph(GraphBuilder().with_actions(count).build())
    assert (repr(made), await walked(made, n=0)) == ("<Graph count: count>", ["count"])


def test_a_drawing_shows_burrs_conditions():
    made = graph(counting(("count", "count", expr("n < 3")), ("count", "odd")), entrypoint="count")
    assert "n #lt; 3" in mermaid(made)


# -- applications ----------------------------------------------------------------------------------


@action(reads=[], writes=["prompt", "history"])
def hear(state: State, prompt: str) -> State:
    return state.update(prompt=prompt).append(history={"role": "user", "content": prompt})


@action(reads=["prompt", "history"], writes=["history"])
def answer(state: State) -> State:
    said = f"{state['prompt']}? ({len(state['history'])})"
    return state.append(history={"role": "assistant", "content": said})


def chat() -> Any:
    return (
        ApplicationBuilder()
        .with_actions(hear, answer)
        .with_transitions(("hear", "answer"), ("answer", "hear"))
        .with_state(history=[])
        .with_entrypoint("hear")
        .build()
    )


async def test_an_application_that_halts_goes_on_with_other_inputs():
    burrs = chat()
    for prompt in ("why", "how"):
        _, _, last = burrs.run(halt_after=["answer"], inputs={"prompt": prompt})
    app = Application(graph(chat()), store=MemoryStore())
    run = await app.run(
        chat().state.get_all(), id="a", inputs={"prompt": "why"}, halt_after=["answer"]
    )
    assert run.status == "halted"
    run = await app.run(id="a", inputs={"prompt": "how"}, halt_after=["answer"])
    assert run.state["history"] == last["history"]
    assert [one["content"] for one in run.state["history"]] == [
        "why",
        "why? (1)",
        "how",
        "how? (3)",
    ]


@action(reads=[], writes=["feedback"])
def hear_feedback(state: State, feedback: str, mark: int = 0) -> State:
    return state.update(feedback=feedback)


# Fails where all inputs are asked for when the run starts.
async def test_a_run_halts_before_an_action_and_is_then_given_its_input():
    whole = GraphBuilder().with_actions(hear, hear_feedback, odd)
    whole = whole.with_transitions(
        ("hear", "hear_feedback"),
        ("hear_feedback", "hear_feedback", expr("len(feedback) > 0")),
        ("hear_feedback", "odd"),
    )
    app = Application(graph(whole), store=MemoryStore())
    halts: Any = {"halt_before": ["hear_feedback"]}
    assert (await app.run({}, id="a", inputs={"prompt": "p"}, **halts)).status == "halted"
    run = await app.run(id="a", inputs={"feedback": "more"}, **halts)
    assert (run.status, run.state["feedback"]) == ("halted", "more")
    with pytest.raises(MissingInput, match=r"action 'hear_feedback' lacks the input 'feedback'"):
        await app.run(id="a")
    run = await app.run(id="a", inputs={"feedback": ""})
    assert (run.status, run.state["path"]) == ("succeeded", ["odd"])


class Order(BaseModel):
    amount: int = 0
    total: int | None = None


@action(reads=["amount"], writes=["total"])
def add_up(state: State[Order]) -> State[Order]:
    return state.update(total=state.data.amount * 2)


async def test_a_typed_application_has_its_data():
    app = (
        ApplicationBuilder()
        .with_actions(add_up)
        .with_typing(PydanticTypingSystem(Order))
        .with_state(Order(amount=2))
        .with_entrypoint("add_up")
        .build()
    )
    made = graph(app)
    assert (await Application(made).run({"amount": 2})).state["total"] == 4
    assert (await Application(made, state=Order).run(Order(amount=3))).state.data.total == 6


# -- moving ----------------------------------------------------------------------------------------


async def test_acts_stand_in_the_place_of_actions():
    fails = [1]

    @shoal.action(reads=["n"], writes=["path"])
    async def mine(n: int) -> list[str]:
        return [f"mine {n}"]

    @action(reads=["n"], writes=["n"])
    def shaky(state: State) -> State:
        if fails:
            raise ConnectionError(fails.pop())
        return state.increment(n=1)

    again = act(shaky, retry=Retry(2, on=ConnectionError))
    made = graph(
        counting(("count", "even")), entrypoint="count", acts={"even": mine, "count": again}
    )
    assert made.name == "count+even"
    assert await walked(made, n=0) == ["mine 1"]


async def test_a_graph_is_a_child_that_starts_with_what_it_reads():
    whole = GraphBuilder().with_actions(even, odd).with_transitions(("even", "odd", when(n=1)))
    made = graph(whole)
    assert (made.name, made.reads) == ("even+odd", {"n"})
    many = fan_out(made, over="ns", item="n", take="path", into="paths")
    run = await Application(many).run({"ns": [0, 1], "path": ["of another"]})
    assert run.state["paths"] == [["even"], ["even", "odd"]]


async def test_a_graph_goes_on_where_it_was():
    calls: list[str] = []

    @action(reads=[], writes=["page"])
    def fetch(state: State, url: str) -> State:
        calls.append("fetch")
        return state.update(page=f"<{url}>")

    @action(reads=["page"], writes=["title"])
    def parse(state: State) -> State:
        calls.append("parse")
        if calls.count("parse") == 1:
            raise ValueError("bad page")
        return state.update(title=state["page"][1:-1])

    whole = GraphBuilder().with_actions(fetch, parse).with_transitions(("fetch", "parse")).build()
    app = Application(Graph.chain(graph(whole, name="crawl")), store=MemoryStore())
    with pytest.raises(ValueError, match="bad page"):
        await app.run({}, id="a", inputs={"url": "u"})
    assert (await app.run(id="a", inputs={"url": "u"})).state["title"] == "u"
    assert calls == ["fetch", "parse", "parse"]
