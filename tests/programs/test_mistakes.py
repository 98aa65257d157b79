"""Mistakes that everybody makes once, and what is said about them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, make_dataclass
from typing import Any, final

import pytest

from shoal import (
    Application,
    Context,
    Done,
    ErrorInfo,
    Failed,
    Graph,
    Hook,
    Limits,
    MapStates,
    State,
    action,
    fan_out,
)
from shoal.errors import BadResult, DefinitionError, InvalidState, MissingField
from shoal.types import Act

pytestmark = pytest.mark.anyio


@action(reads=["url"], writes=["page"])
async def fetch(url: str) -> str:
    return f"<{url}>"


@action(reads=["page"], writes=["title"])
async def parse(page: str) -> str:
    return page[1:-1]


async def helper() -> int:
    return 1


@action(writes=["n"])
async def forgets_await() -> object:
    return helper()


@action(writes=["m", "n"])
async def forgets_await_within() -> dict[str, object]:
    return {"m": 1, "n": helper()}


@action(writes=["n"])
async def forgets_await_of_a_state(state: State) -> Any:
    return helper()


@action()
async def forgets_await_and_writes_nothing() -> object:
    return helper()


@pytest.mark.parametrize(
    "act",
    [
        forgets_await,
        forgets_await_within,
        forgets_await_of_a_state,
        forgets_await_and_writes_nothing,
    ],
    ids=lambda act: act.name,
)
async def test_a_forgotten_await(act: Act) -> None:
    """Nor is the coroutine left to complain by itself, which would be an error here."""
    said = f"action '{act.name}' returned a coroutine that nobody awaited: await helper"
    with pytest.raises(BadResult, match=said):
        await Application(act).run()


async def test_a_coroutine_function_as_a_value_is_none_of_our_business() -> None:
    @action(writes=["job"])
    async def choose() -> object:
        return helper

    assert (await Application(choose).run()).state["job"] is helper


def declares_what_it_does_not_take() -> object:
    @action(reads=["url", "depth"], writes=["page"])
    async def get(url: str, dept: int) -> str:
        return f"{url}{dept}"

    return get


def takes_the_context_by_another_name() -> object:
    @action(writes=["page"])
    async def get(ctx: Context) -> str:
        return ctx.run_id

    return get


def misspells_its_method() -> object:
    class Progress(Hook):
        def on_child_end(self, event: object) -> None: ...

    return Progress


async def plain(url: str) -> str:
    return url


@dataclass
class Model:
    url: str


@action(writes=["said"])
async def talk(client: object, word: str = "") -> str:
    return f"{client} {word}"


untyped: Any = fan_out
untyped_app: Any = Application
REFUSED = [
    (declares_what_it_does_not_take, "it reads 'depth', but no .*; did you mean 'dept'"),
    (takes_the_context_by_another_name, "'ctx' is annotated as a Context, .*'context'"),
    (misspells_its_method, r"nothing calls Progress.on_child_end; did you mean 'on_child_ended"),
    (lambda: untyped(len, over="urls", into="x"), r"'x': act= .*; if .* itself, decorate it"),
    (lambda: fan_out(fetch, over="urls", item="url", into="x", take="pag"), "did you mean 'page'"),
    (lambda: Graph.chain(fetch, fetch), "are named 'fetch': it is the same act, twice; "),
    (lambda: untyped_app(plain("x")), "it is the result of calling .*: write the action without"),
    (lambda: untyped_app(fetch, state=Model("x")), "state= takes a model, which is a class"),
    (lambda: Application(fetch, state="url"), r"^state='url' is one .*: state=\['url'\]$"),
    (lambda: Application(talk, inputs=["clinet"]), "'clinet' .*; did you mean 'client'"),
    (lambda: Application(talk, inputs=["word"]), r"lacks the input 'client' \(action 'talk'\)"),
]


@pytest.mark.parametrize(("build", "said"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_refused_when_it_is_built(build: Callable[[], object], said: str) -> None:
    with pytest.raises(DefinitionError, match=said):
        build()


def test_hooks_may_have_methods_of_their_own() -> None:
    class Display(Hook):
        def on_click(self) -> None: ...
        def on_update(self) -> None: ...
        def around(self) -> None: ...

    assert Application(fetch, hooks=[Display()]).hooks


def test_an_action_that_takes_the_state_may_read_what_it_names_nowhere() -> None:
    @action(reads=["url", "depth"], writes=["page"])
    async def get(url: str, state: State) -> State:
        return state.update(page=f"{url}{state['depth']}")

    done = Application(get).run_sync({"url": "u", "depth": 2})
    assert done.state["page"] == "u2"


@action(writes=["n"])
async def starts_children(context: Context) -> int:
    async with context.fan_out(name="pages") as group:
        group.start(fetch, {"ulr": "x"})
    return 1


@action(reads=["pgae"], writes=["title"])
async def misspells(pgae: str) -> str:
    return pgae


@final
class Misspelt(MapStates):
    reads = ("urls",)
    writes = ("pages",)

    def action(self, state: State, inputs: Mapping[str, Any]) -> Act:
        return fetch

    def states(self, state: State, inputs: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        yield {"ulr": "x"}

    def reduce(self, state: State, outcome: Done | Failed) -> State:
        return state


WHEN_RUN: list[tuple[Act, Any, type[Exception], str]] = [
    (Graph.chain(fetch, misspells), {"url": "x"}, MissingField, "'pgae'.*did you mean 'page'"),
    (fan_out(fetch, over="urls", into="pages"), {"urls": []}, MissingField, r"write item='url'\)"),
    (Misspelt(), {"urls": []}, MissingField, "'url', .*; give it to the Task: .* mean 'ulr'"),
    (starts_children, {}, MissingField, "'url', .*; give it to group.start, .* did you mean 'ulr'"),
    (fan_out(fetch, over="url", into="pages"), {"url": "x"}, BadResult, "a str, .*: give a list"),
    (fetch, Model("x"), TypeError, r"not a Model; to give .*: Application\(..., state=Model\)"),
]


@pytest.mark.parametrize(
    ("act", "given", "kind", "said"), WHEN_RUN, ids=[act.name for act, *_ in WHEN_RUN]
)
async def test_what_is_refused_when_it_is_run(
    act: Act, given: Any, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        await Application(act).run(given)


# Loads pydantic with its plugins here, and not first in a loop, which that would block.
Application(fetch, state=make_dataclass("Page", [("url", str), ("page", str, "")]))


async def collect(pages: object, **how: Any) -> tuple[str, int]:
    """Collect pages in a field that is declared as ``pages``; return how many were fetched."""
    fetched = 0

    @action(reads=["url"], writes=["page"])
    async def count(url: str) -> str:
        nonlocal fetched
        fetched += 1
        return url

    model: Any = make_dataclass("Crawl", [("urls", list[str]), ("pages", pages, None)])
    with pytest.raises(InvalidState) as caught:
        act = fan_out(count, over="urls", item="url", into="pages", limits=Limits(1), **how)
        await Application(act, state=model).run({"urls": ["a", "b", "c"]})
    return str(caught.value), fetched


async def test_a_collection_of_another_kind_than_declared_is_refused_where_it_is_built() -> None:
    with pytest.raises(DefinitionError, match=r"a list into 'pages', and Crawl.pages: dict"):
        await collect(dict[str, str])
    with pytest.raises(DefinitionError, match=r"a mapping into 'pages', and Crawl.pages: list"):
        await collect(list[str], key=str)


async def test_positions_are_no_keys_where_a_list_is_declared_besides_a_mapping() -> None:
    @dataclass
    class Crawl:
        urls: list[str]
        pages: list[str] | dict[str, str] | None = None

    act = fan_out(fetch, over="urls", item="url", into="pages")
    result = await Application(act, state=Crawl).run(Crawl(["a"]))
    assert result.state.data.pages == ["<a>"]


async def test_keys_that_are_declared_otherwise_are_refused_with_the_first_result() -> None:
    said, fetched = await collect(dict[int, str], key=str)
    assert "for key 'a', gives a key of field 'pages' 'a' (str), which does not fit Crawl" in said
    assert fetched == 1


async def test_positions_are_the_keys_of_collected_failures() -> None:
    @action(reads=["url"], writes=["page"])
    async def fail(url: str) -> str:
        raise ValueError(url)

    @dataclass
    class Crawl:
        urls: list[str]
        pages: list[str] = field(default_factory=list[str])
        broken: Mapping[int, ErrorInfo] = field(default_factory=dict[int, ErrorInfo])

    act = fan_out(
        fail, over="urls", item="url", into="pages", errors_into="broken", on_error="collect"
    )
    result = await Application(act, state=Crawl).run(Crawl(["a", "b"]))
    assert {at: error.message for at, error in result.state.data.broken.items()} == {0: "a", 1: "b"}
