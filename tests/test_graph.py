"""Graphs: checked when they are built, walked in order."""

from __future__ import annotations

from typing import Any

import pytest

from shoal import (
    Application,
    DefinitionError,
    Graph,
    Input,
    MissingField,
    StepEnded,
    StepStarted,
    action,
    fan_out,
)
from shoal.testing import RecordingHook

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
    assert graph.after(fetch) is parse
    assert graph.after(parse) is follow
    assert graph.after(follow) is None
    assert repr(graph) == "<Graph fetch+parse+follow: fetch -> parse -> follow>"


def required(graph: Graph) -> dict[str, Input]:
    return {name: need for name, need in graph.takes.items() if need.required}


def test_a_chain_reads_what_it_does_not_write_first():
    graph = Graph.chain(fetch, parse, follow)
    assert graph.reads == {"url", "base"}
    assert graph.writes == {"page", "title", "url"}
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


@pytest.mark.parametrize("name", [5, b"page"])
def test_names_are_strings(name: Any):
    with pytest.raises(DefinitionError, match=f"name.*{name!r}"):
        Graph.chain(fetch, name=name)
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
            r"two acts .* named 'fetch'.*@action\(name=.*fan_out\(\.\.\., name=",
        ),
        ((plain,), r"plain.*is none: decorate it: @action\("),
        ((fetch, lambda: None), r"lambda.*is none: decorate it"),
        ((None,), "None is none: give an @action"),
        (("fetch",), "'fetch' is none: give an @action"),
        (([fetch, parse],), r"\[.*\] is none: give an @action"),
    ],
)
def test_what_is_no_chain_is_refused(acts: Any, message: str):
    with pytest.raises(DefinitionError, match=message):
        Graph.chain(*acts)


def test_a_graph_in_a_chain_is_refused_for_what_it_is():
    inner: Any = Graph.chain(fetch, name="inner")
    with pytest.raises(DefinitionError) as caught:
        Graph.chain(inner, parse)
    message = str(caught.value)
    assert "<Graph inner: fetch>" in message
    assert "or a Graph" not in message, "that is what was given"


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
    hook = RecordingHook()
    with pytest.raises(MissingField, match="action 'parse' reads field 'base'"):
        await Application(Graph.chain(fetch, parse, follow), hooks=[hook]).run(
            {"url": "u"}, inputs={"client": "c"}
        )
    assert [event.step for event in hook.of(StepStarted)] == ["fetch", "parse"]


async def test_one_graph_may_stand_in_several_places():
    shared = Graph.chain(fetch, parse, name="page")
    first = fan_out(shared, over="urls", item="url", into="first", take="title")
    second = fan_out(shared, over="urls", item="url", into="second", take="page")
    result = await Application(Graph.chain(first, second)).run(
        {"urls": ["u"], "base": "b"}, inputs={"client": "c"}
    )
    assert result.state["first"] == ["c of u on b"]
    assert result.state["second"] == ["c of u"]
