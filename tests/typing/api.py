"""What users write against the API, as a type checker sees it. Never executed.

Checked by `basedpyright` with the project's settings: it fails if a line has an error, and if one
that is marked as an error has none.
"""

# pyright: reportUnusedFunction=false, reportUnusedVariable=false, reportUnusedClass=false
# pyright: reportUnnecessaryTypeIgnoreComment=true
# ruff: noqa: F841, RUF012 # classes as users write them

from __future__ import annotations

import logging
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Collection,
    Coroutine,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import Any, Literal, TypedDict, assert_never, assert_type

import anyio.from_thread
from pydantic import BaseModel

import shoal
from shoal import (
    END,
    Action,
    Application,
    Cancelled,
    Context,
    Done,
    Each,
    ErrorInfo,
    Failed,
    Graph,
    Halted,
    Hedge,
    Hook,
    Limits,
    MapActions,
    MapStates,
    MemoryStore,
    NobodyAccepted,
    Outcome,
    ParallelAction,
    PositionedList,
    Question,
    Result,
    Retry,
    RetryBudget,
    RunHandle,
    RunPath,
    RunResult,
    Runtime,
    Skipped,
    SQLiteStore,
    State,
    StateList,
    StateMap,
    StepTimeout,
    Task,
    Tolerate,
    action,
    all_,
    fan_out,
    first,
    first_item,
    quorum,
    race,
    shielded,
    when,
)
from shoal.errors import Rejected
from shoal.events import (
    ChildEnded,
    ChildHalted,
    ChildName,
    ChildStarted,
    Drop,
    Event,
    Extend,
    Increment,
    Item,
    Operation,
    Put,
    PutWithin,
    RunEnded,
    RunStarted,
    Set,
    StateUpdated,
    StepEnded,
    StepStarted,
    Update,
)
from shoal.stores import Steered, replay
from shoal.testing import RecordingHook
from shoal.types import (
    Act,
    ChildGroup,
    Condition,
    FanOut,
    First,
    FirstItem,
    FunctionAction,
    Input,
    Key,
    Ledger,
    OpenRun,
    Quorum,
    RunEvents,
    Until,
)
from shoal.watch import Control, draw
from shoal.watch.logging import LogContext
from shoal.watch.telemetry import OpenTelemetry


@dataclass
class Page:
    url: str
    depth: int


class Client:
    async def get(self, url: str) -> str:
        return url


# -- actions keep their function's signature ----------------------------------------------------


@action(reads=["url"], writes=["page"])
async def fetch(url: str, client: Client, retries: int = 3) -> str:
    return await client.get(url)


@action(reads=("page",), writes={"title", "links"}, name="read", version="2")
def parse(page: str) -> dict[str, object]:
    return {"title": page, "links": [page]}


@action(reads=["links"], writes=["count"], executor="loop")
def count(state: State) -> State:
    return state.update(count=len(state["links"]))


@action()
async def nothing() -> None: ...


@action(reads=["question"], writes=["answer"])
async def ask(question: str, client: Client) -> AsyncIterator[str | Result[str]]:
    answer = await client.get(question)
    yield answer[0]
    yield Result(answer)
    yield Result(5)  # pyright: ignore[reportReturnType]


@action(writes=["answer", "tokens"])
async def ask_more() -> AsyncGenerator[int | Result[Mapping[str, object]], None]:
    yield 1
    yield Result({"answer": "", "tokens": 3})


def takes_any_stream(act: FunctionAction[..., AsyncIterator[object]]) -> None: ...


takes_any_stream(ask)
takes_any_stream(ask_more)
takes_any_stream(nothing)  # pyright: ignore[reportArgumentType]
assert_type(ask("why", Client()), AsyncIterator[str | Result[str]])
assert_type(Result("x"), Result[str])
assert_type(Result[int](5).value, int)
result_of_any: Result[object] = Result[str]("x")
ask("why")  # pyright: ignore[reportCallIssue]

assert_type(fetch.name, str)
assert_type(fetch.reads, Collection[str])
assert_type(fetch.takes, Mapping[str, Input])
assert_type(parse("<html>"), dict[str, object])
assert_type(count(State()), State)


async def calling_an_action() -> None:
    assert_type(await fetch("http://x", Client()), str)
    assert_type(await fetch(url="http://x", client=Client(), retries=1), str)
    coroutine: Coroutine[Any, Any, str] = fetch("http://x", Client())
    await coroutine
    await fetch("http://x")  # pyright: ignore[reportCallIssue]
    await fetch(1, Client())  # pyright: ignore[reportArgumentType]
    assert_type(await nothing(), None)


def takes_any_action(act: FunctionAction[[str], str]) -> None: ...


takes_any_action(action(name="shout")(str.upper))
takes_any_action(nothing)  # pyright: ignore[reportArgumentType]

action(reads=["url"], executor="process")  # pyright: ignore[reportArgumentType]
action(reads=[1])  # pyright: ignore[reportArgumentType]
action(fetch)  # pyright: ignore[reportArgumentType]


# -- graphs and fan-outs ------------------------------------------------------------------------

chain = Graph.chain(fetch, parse, count, name="page")
assert_type(chain, Graph)
Graph.chain(calling_an_action)  # pyright: ignore[reportArgumentType]


def is_good(score: float, limit: float = 0.9) -> bool:
    return score > limit


good = when(lambda score: score > 0.9)
assert_type(good, Condition)
assert_type(~good & when("ready") | when(status="ok", tries=3), Condition)
assert_type(good({"score": 1}), bool)
assert_type(good.reads, frozenset[str])
when(is_good)
when(lambda state: state["score"] > 1, reads=["score"])
when(lambda score, tries: score > 1 and tries < 3)
good & is_good  # pyright: ignore[reportOperatorIssue, reportUnusedExpression]
when(5)  # pyright: ignore[reportArgumentType]

looping = Graph(
    (fetch, parse),
    (parse, fetch, when("again") & ~good),
    (parse, count, lambda score: score > 1),
    (parse, END, is_good),
    (count, END),
    entry=fetch,
    name="looping",
)
assert_type(looping, Graph)
assert_type(looping.part(entry="parse", ends_after=[count]), Graph)
assert_type(looping.bind(name="other", client="c"), Graph)
assert_type(looping.needs, frozenset[str])
assert_type(looping.missing({"url"}), Mapping[str, str])
assert_type(Graph(*looping.edges), Graph)
Graph((looping, chain), (chain, fan_out(looping, over="urls", name="all")))
Application(looping, max_steps=10)
Graph((END, fetch))  # pyright: ignore[reportArgumentType]
Graph((fetch, parse, "ready"))  # pyright: ignore[reportArgumentType]
Graph(fetch, parse)  # pyright: ignore[reportArgumentType]


def host(page: Page) -> str:
    return page.url


def number(page: Page) -> int:
    return page.depth


def key_of_any(element: object) -> Key:
    return str(element)


def pages(state: State) -> Iterator[Page]:
    yield Page("http://x", state["depth"])


async def pages_later(state: State) -> AsyncIterator[Page]:
    yield Page("http://x", 0)


def add(state: State, outcome: Outcome) -> State:
    match outcome:
        case Done(value=value, state=child):
            return state.append(values=value).increment(pages=len(child["links"]))
        case Failed(error=error, key=key):
            return state.put("errors", key, str(error))
        case Cancelled(reason=reason) | Skipped(reason=reason):
            return state.update(last=reason)
        case _:
            assert_never(outcome)


def links(state: State, outcome: Outcome) -> list[Page]:
    if not isinstance(outcome, Done):
        return []
    return [Page(url, outcome.element.depth + 1) for url in outcome.state["links"]]


crawl = fan_out(
    chain,
    over="pages",
    item="url",
    key=host,
    into="titles",
    take="title",
    errors_into="failed",
    on_error="collect",
    limits=Limits(20),
    grow=links,
    at_most=1_000,
)
assert_type(crawl, FanOut)
assert_type(crawl.writes, Collection[str])
fan_out(crawl, over=pages, reads=["depth"], key=number, name="all")
fan_out(fetch, over=pages_later, reads=[], key="url", into="page", take=["page"])
fan_out(fetch, over=lambda state: state["urls"], reads=["urls"], key=key_of_any, into="pages")
fan_out(
    fetch, over=lambda state: range(10), reads=(), into="pages", take=lambda state: state["page"]
)
fan_out(fetch, over="urls", reduce=add, writes=["values", "pages", "errors"], name="add")
fan_out(fetch, over="urls", reduce=lambda state, outcome: state, writes=["n"], name="none")

fan_out(fetch, "urls")  # pyright: ignore[reportCallIssue]
fan_out(fetch, over=["a"])  # pyright: ignore[reportArgumentType]
fan_out(fetch, over="urls", limits=20)  # pyright: ignore[reportArgumentType]
fan_out(fetch, over="urls", on_error="never")  # pyright: ignore[reportCallIssue, reportArgumentType]
fan_out(fetch, over="urls", key=pages_later, into="pages")  # an async key is refused when built


async def add_later(state: State, outcome: Outcome) -> State:
    return state


def forget(state: State, outcome: Outcome) -> None: ...


fan_out(fetch, over="urls", reduce=add_later, writes=["n"])  # pyright: ignore[reportArgumentType]
fan_out(fetch, over="urls", reduce=forget, writes=["n"])  # pyright: ignore[reportArgumentType]
fan_out(fetch, over="urls", grow=forget, into="pages")  # pyright: ignore[reportArgumentType]


def add_done(state: State, outcome: Done) -> State:  # all there is where a failure ends the step
    return state.append(values=outcome.value)


fan_out(fetch, over="urls", reduce=add_done, writes=["values"], name="sum")
fan_out(fetch, over="urls", reduce=add, writes=["values"], name="sum", on_error="collect")
fan_out(
    fetch, over="urls", reduce=lambda state, outcome: state.put("by", outcome.key, 1), writes=["by"]
)
fan_out(fetch, over="urls", reduce=add_done, writes=["n"], on_error="collect")  # pyright: ignore[reportCallIssue, reportArgumentType]


# -- attempts and timeouts ------------------------------------------------------------------------


def is_passing(error: Exception) -> bool:
    return "429" in str(error)


budget = RetryBudget(share=0.1, floor=2, window=30)
assert_type(Retry(3, on=ConnectionError).attempts, int)
assert_type(Retry(on=(ConnectionError, TimeoutError), budget=budget).budget, RetryBudget | None)
Retry(5, on=is_passing, total=60, initial=0.5, factor=3, cap=20, jitter=1)
Retry(on=lambda error: isinstance(error, OSError))
Retry(3)  # pyright: ignore[reportCallIssue]
Retry(3, ConnectionError)  # pyright: ignore[reportCallIssue]
Retry(3, on=KeyboardInterrupt)  # a class is a function of an error, too; refused when made
Retry(3, on="ConnectionError")  # pyright: ignore[reportArgumentType]
Retry(3, on=OSError, budget=0.1)  # pyright: ignore[reportArgumentType]
assert_type(Each(timeout=20).retry, Retry | None)
Each(20)  # pyright: ignore[reportCallIssue]
each = Each(timeout=20, retry=Retry(3, on=StepTimeout))
fan_out(fetch, over="urls", into="pages", each=each, timeout=60)
fan_out(fetch, over="urls", into="pages", each=Retry(on=OSError))  # pyright: ignore[reportArgumentType]
fan_out(fetch, over="urls", into="pages", timeout="1 h")  # pyright: ignore[reportArgumentType]


@action(reads=["url"], writes=["page"], timeout=5, retry=Retry(3, on=OSError), abandon=True)
def download(url: str, context: Context) -> str:
    assert_type(context.attempt, int)
    assert_type(context.deadline, float)
    return url


assert_type(download.timeout, float | None)
assert_type(download.retry, Retry | None)
action(timeout="5")  # pyright: ignore[reportArgumentType]
action(retry=3)  # pyright: ignore[reportArgumentType]


async def patience() -> None:
    async with Runtime(grace=2.5, seed=7):
        pass
    Runtime(grace=None)  # pyright: ignore[reportArgumentType]
    try:
        await Application(download).run({"url": "x"})
    except StepTimeout as error:
        caught: TimeoutError = error


# -- applications and results -------------------------------------------------------------------


async def running() -> None:
    application = Application(crawl, name="crawl", hooks=[RecordingHook()])
    result = await application.run({"pages": [Page("x", 0)]}, id="crawl-1", inputs={"client": 1})
    assert_type(result, RunResult[dict[str, Any]])
    assert_type(result.run_id, str)
    assert_type(result.status, Literal["succeeded", "halted"])
    for question in result.questions:
        assert_type(question, Question)
        assert_type(question.address, tuple[str, str])
    assert_type(result.outcomes("titles").halted, int)
    assert_type(await application.questions("crawl-1"), Sequence[Question])
    answers = {question.address: True for question in result.questions}
    await application.run(id="crawl-1", answers=answers, halt_before=["parse"])
    await application.run(id="crawl-1", answers={"approve": True}, halt_after=[fetch])
    await application.run(id="crawl-1", answers=[1])  # pyright: ignore[reportArgumentType]
    assert_type(result.state, State[dict[str, Any]])
    assert_type(result.state.data, dict[str, Any])
    assert_type(result.state["titles"], Any)
    assert_type(result.outcomes("titles"), Ledger)
    assert_type(result.outcomes("titles").failed, int)
    for outcome in result.outcomes("titles"):
        assert_type(outcome, Outcome)
        assert_type(outcome.key, Key)
        assert_type(outcome.position, int)
        assert_type(outcome.run_id, str)
        assert_type(outcome.elapsed, float)
    await application.run()
    await application.run(result.state)
    await application.run(["pages"])  # pyright: ignore[reportArgumentType]
    await Application(chain).run({}, inputs={"client": Client()})
    result.state = State()  # pyright: ignore[reportAttributeAccessIssue]


def running_from_synchronous_code() -> None:
    assert_type(
        Application(fetch).run_sync({"url": "x"}, backend="trio"), RunResult[dict[str, Any]]
    )
    Application(fetch).run_sync(backend="curio")  # pyright: ignore[reportArgumentType]
    Application("fetch")  # pyright: ignore[reportArgumentType]
    Application(fetch, hooks=[print])  # pyright: ignore[reportArgumentType]


# -- applications with a model -------------------------------------------------------------------


class PageModel(BaseModel):
    url: str
    page: str = ""


class PageFields(TypedDict):
    url: str
    page: str


async def typed_applications(runtime: Runtime) -> None:
    by_model = Application(fetch, state=PageModel, inputs=["client"])
    assert_type(by_model, Application[PageModel])
    assert_type(by_model.run_sync(PageModel(url="x")).state.data, PageModel)
    assert_type((await by_model.run({"url": "x"})).state.data.page, str)
    by_dataclass = Application(fetch, state=Page, name="pages", limits=Limits(2))
    assert_type(by_dataclass.run_sync(Page("x", 1)).state.data, Page)
    by_fields = Application(fetch, state=PageFields)
    assert_type(by_fields.run_sync({"url": "x", "page": ""}).state.data, PageFields)
    assert_type((await by_fields.run({"url": "x"})).state.data["page"], str)
    assert_type(await runtime.run(by_model, {"url": "x"}), RunResult[PageModel])
    assert_type(await runtime.run(Application(fetch)), RunResult[dict[str, Any]])
    listed = Application(fetch, state=["url"], inputs={"client": Client()})
    assert_type(listed, Application[dict[str, Any]])
    assert_type(listed.run_sync({"url": "x"}).state.data, dict[str, Any])
    assert_type(Application(Graph.chain(fetch, state=Page)), Application[dict[str, Any]])
    await by_model.run(Page("x", 1))  # pyright: ignore[reportArgumentType]
    by_model.run_sync(3)  # pyright: ignore[reportArgumentType]
    Application(fetch, inputs=5)  # pyright: ignore[reportArgumentType]
    async with by_model.open(PageModel(url="x"), runtime=runtime) as run:
        assert_type(run, OpenRun[PageModel])
        assert_type(run.state.data, PageModel)
        assert_type((await run.result()).state.data, PageModel)
        async for event in run:
            assert_type(event, Event)
    handle = await runtime.start(by_model, {"url": "x"}, id="x")
    assert_type(handle, RunHandle[PageModel])
    assert_type((await handle.result()).state.data, PageModel)
    assert_type(runtime.find("x"), RunHandle[Any] | None)
    with handle.events() as events:
        assert_type(events, RunEvents)
        assert_type(await anext(events), Event)
    async with Application(fetch).open({"url": "x"}, stepwise=True) as untyped:
        assert_type(untyped.state.data, dict[str, Any])
        assert_type(await untyped.step(), str | None)


# -- classes -------------------------------------------------------------------------------------


class Fetch(Action):
    reads = ["url"]
    writes = ["page"]
    executor = "loop"
    limits = Limits(2)

    def __init__(self, client: Client) -> None:
        self.client = client

    async def run(self, url: str, retries: int = 3) -> str:
        return await self.client.get(url)


assert_type(Fetch(Client()).bind(name="other", retries=1), Fetch)
assert_type(Fetch(Client()).name, str)


class Ask(Action):
    reads = ["question"]
    writes = ["answer"]

    async def run(self, question: str) -> AsyncIterator[str | Result[str]]:
        yield question
        yield Result(question)


Graph.chain(ask, ask_more, Ask(), name="asking")


class FetchAll(ParallelAction):
    reads = ["urls"]
    writes = ["pages"]
    inputs = ["client"]
    limits = Limits(10)
    on_error = "collect"
    at_most = 100

    def tasks(self, state: State, inputs: Mapping[str, Any]) -> Iterator[Task]:
        for url in state["urls"]:
            yield Task(fetch, {"url": url}, key=url, inputs={"retries": 1})

    def reduce(self, state: State, outcome: Done | Failed) -> State:
        if isinstance(outcome, Failed):
            return state.append(failed=str(outcome.error))
        return state.put("pages", outcome.key, outcome.value)

    def finish(self, state: State) -> State:
        return state.update(done=True)


class FetchLater(ParallelAction):
    on_error = Tolerate(count=3)

    async def tasks(self, state: State, inputs: Mapping[str, Any]) -> AsyncIterator[Task]:
        yield Task(fetch)

    def reduce(self, state: State, outcome: Done | Failed) -> State:
        return state


class FetchEach(MapStates):
    reads = ["urls"]
    writes = ["pages"]

    def action(self, state: State, inputs: Mapping[str, Any]) -> Act:
        return fetch

    def states(self, state: State, inputs: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        return ({"url": url} for url in state["urls"])

    def reduce(self, state: State, outcome: Done | Failed) -> State:
        return state


class AskAll(MapActions):
    writes = ["pages"]

    def actions(self, state: State, inputs: Mapping[str, Any]) -> list[Act]:
        return [fetch, chain]

    def reduce(self, state: State, outcome: Done | Failed) -> State:
        return state


Graph.chain(Fetch(Client()), FetchAll(), FetchEach(), AskAll().bind(name="more"))
Graph.chain(Fetch)  # pyright: ignore[reportArgumentType]
fan_out([fetch, chain], into="pages", take=["page"])
fan_out([Fetch(Client()), fetch], over="urls", key=str, into="pages", on_error=Tolerate(share=0.1))
fan_out(lambda state: [fetch, chain], over="urls", into="pages", reads=["urls"])
Tolerate(3)  # pyright: ignore[reportCallIssue]
Task(fetch, 3)  # pyright: ignore[reportArgumentType]


@action(reads=["urls"], writes=["pages"])
async def by_hand(urls: list[str], context: Context) -> list[str]:
    assert_type(context.path, RunPath)
    assert_type(context.deadline, float)
    found: list[str] = []
    await context.emit(found)
    context.emit(5)  # pyright: ignore[reportUnusedCoroutine]
    with context.span("fetching", urls=len(urls)):
        async with context.fan_out(name="all", limits=Limits(3)) as group:
            assert_type(group, ChildGroup)
            group.start(fetch, {"url": urls[0]}, key="first")
            group.start_each(fetch, over=urls[1:], item="url")
            async for outcome in group:
                assert_type(outcome, Outcome)
                if isinstance(outcome, Done):
                    found.append(outcome.value)
            group.cancel("enough")
    return found


# -- races --------------------------------------------------------------------------------------


def is_long(page: str) -> bool:
    return len(page) > 10


async def is_long_later(page: str) -> bool:
    return len(page) > 10


def enough(state: State, outcome: Outcome) -> bool:
    return len(state["pages"]) > 3


answer = race(fetch, chain, into="page", take="page", accept=is_long, stagger=0.5, timeout=20)
assert_type(answer, FanOut)
race(fetch, chain, into="page", take="page", until=quorum(2, by=len))
race(fetch, fetch.bind(name="again"), into="page", stagger=Hedge(percentile=90, budget=0.15))
race(lambda state: [fetch, chain], into="page", take="page", reads=["urls"])
race(fetch, chain, reduce=add_done, writes=["values"], name="race", limits=Limits(2))
fan_out(fetch, over="urls", into="pages", until=first(3, accept=is_long), key=str)
fan_out(fetch, over="urls", into="pages", until=enough, on_error="collect")
fan_out(fetch, over="urls", into="pages", until=all_(), on_error="collect", stagger=inf)
fan_out(fetch, over="urls", into="page", until=first_item(when=is_long, on_break="restart"))
assert_type(first(2), First)
assert_type(quorum(2), Quorum)
assert_type(first_item(), FirstItem)
until: Until = enough
until = all_()

race(fetch, chain, into="page", on_error="collect")  # pyright: ignore[reportCallIssue]
race([fetch, chain], into="page")  # pyright: ignore[reportArgumentType]
race(fetch, chain, into="page", stagger="soon")  # pyright: ignore[reportArgumentType]
race(fetch, chain, into="page", reduce=add_later, writes=["n"])  # pyright: ignore[reportArgumentType]
race(fetch, into="page", accept=is_long_later)  # an async one is refused when built
fan_out(fetch, over="urls", into="page", until=first)  # pyright: ignore[reportArgumentType]
fan_out(fetch, over="urls", into="page", until=first(), on_error="collect")  # pyright: ignore[reportCallIssue, reportArgumentType]
fan_out(fetch, over="urls", into="page", until=first_item(on_break="never"))  # pyright: ignore[reportArgumentType]
first("2")  # pyright: ignore[reportArgumentType]
Hedge(0.9)  # pyright: ignore[reportCallIssue]


class FirstPages(FetchAll):
    until = first(3, accept=is_long)
    stagger = Hedge(initial=1.0)


class EnoughPages(FetchAll):
    def until(self, state: State, outcome: Outcome) -> bool:
        return enough(state, outcome)


async def losing(result: RunResult, run: OpenRun[dict[str, Any]], event: ChildStarted) -> None:
    for outcome in result.outcomes("page"):
        if isinstance(outcome, Cancelled):
            assert_type(outcome.winner, ChildName | None)
    assert_type(run.cancel_child("key", "too slow"), bool)
    assert_type(run.cancel_child(event.child, "too slow"), bool)
    run.cancel_child("key")
    try:
        await run.result()
    except NobodyAccepted as lost:
        assert_type(lost.exceptions, tuple[Exception | ExceptionGroup[Exception], ...])
    except Rejected as rejected:
        assert_type(rejected.value, object)


# -- states -------------------------------------------------------------------------------------


def states(state: State) -> None:
    assert_type(state.update(a=1), State)
    assert_type(state.update({"a": 1}, b=2), State)
    assert_type(state.append(a=1).extend(b=[1], c=(2,)), State)
    assert_type(state.put("by", "key", 1).put("by", 2, object(), 5), State)
    assert_type(state.increment(a=1, b=0.5), State)
    assert_type(state.drop("a", "b"), State)
    assert_type(state["a"], Any)
    assert_type(state.to_plain(), dict[str, Any])
    assert_type(len(state), int)
    assert_type(dict(state), dict[str, Any])
    mapping: Mapping[str, object] = state
    state["a"] = 1  # pyright: ignore[reportIndexIssue]
    state.increment(a="1")  # pyright: ignore[reportArgumentType]
    state.extend(a=1)  # pyright: ignore[reportArgumentType]
    state.update([1])  # pyright: ignore[reportArgumentType]


async def cleaning_up() -> None:
    async with shielded(2.5) as nothing:
        assert_type(nothing, None)
    async with shielded():
        pass
    shielded("2")  # pyright: ignore[reportArgumentType]
    with shielded(2):  # pyright: ignore[reportGeneralTypeIssues]
        pass


def operations(state: State, update: Update) -> None:
    assert_type(replay(state, update.operations), State)
    assert_type(update.number, int)
    for operation in update.operations:
        assert_type(operation, Operation)
        match operation:
            case Set(name, value) | Extend(name, value):
                assert_type(name, str)
            case Put(name, key, value, position):
                assert_type(position, float | None)
            case PutWithin(name, key, inner_key, value):
                assert_type(inner_key, object)
            case Increment(name, by):
                assert_type(by, float)
            case Drop(name):
                assert_type(name, str)
            case _:
                assert_never(operation)


def collections() -> None:
    items = StateList([1, 2])
    assert_type(items, StateList[int])
    assert_type(items.append(3).extend([4]), StateList[int])
    assert_type(items[0], int)
    assert_type(items[:1], list[int])
    items.append("5")  # pyright: ignore[reportArgumentType]
    items[0] = 1  # pyright: ignore[reportIndexIssue]
    sequence: Sequence[float] = items

    by_name = StateMap({"a": 1})
    assert_type(by_name, StateMap[str, int])
    assert_type(by_name.put("b", 2, 5), StateMap[str, int])
    assert_type(by_name["a"], int)
    assert_type(by_name.get("a"), int | None)
    by_name.put(1, 2)  # pyright: ignore[reportArgumentType]
    mapping: Mapping[str, float] = by_name

    placed = PositionedList(StateMap({1: "a"}))
    assert_type(placed, PositionedList[str])
    assert_type(placed[0], str)
    assert_type(list(placed), list[str])


# -- hooks and events ---------------------------------------------------------------------------


class Progress(Hook):
    observer = True

    def on_child_ended(self, event: ChildEnded) -> None:
        assert_type(event.outcome, Outcome)
        assert_type(event.step, str)

    def on_item(self, event: Item) -> None:
        assert_type(event.item, Any)
        assert_type(event.index, int)
        assert_type(event.attempt, int)
        assert_type(event.provisional, bool)

    async def on_state_updated(self, event: StateUpdated) -> None:
        assert_type(event.update, Update)
        assert_type(event.outcome, Outcome | None)

    def on_child_started(self, event: ChildStarted) -> None:
        assert_type(event.child, RunPath)
        assert_type(event.position, int)

    async def on_child_halted(self, event: ChildHalted) -> None:
        assert_type(event.halted, Halted)
        assert_type(event.halted.questions, tuple[Question, ...])

    async def on_run_ended(self, event: RunEnded) -> None:
        assert_type(event.status, Literal["succeeded", "failed", "cancelled", "halted"])
        assert_type(event.questions, tuple[Question, ...])
        assert_type(event.error, BaseException | None)

    @contextmanager
    def around_step(self, event: StepStarted) -> Generator[None]:
        assert_type(event.run_id, str)
        assert_type(event.parent_id, str | None)
        assert_type(event.depth, int)
        yield


class WrongEvent(Hook):
    def on_step_ended(self, event: StepStarted) -> None: ...  # pyright: ignore[reportIncompatibleMethodOverride]


def reading_events(hook: RecordingHook) -> None:
    assert_type(hook.events, list[Event])
    assert_type(hook.of(StepEnded), list[StepEnded])
    for event in hook.events:
        assert_type(event.path.key, Key)
        match event:
            case RunStarted() | StepStarted():
                assert_type(event.depth, int)
            case ChildEnded(outcome=Failed(error=error)):
                assert_type(error, Exception)
            case ChildEnded(outcome=Done(used=used)):
                assert_type(used, bool)
            case _:
                pass
    hook.events[0].path = RunPath()  # pyright: ignore[reportAttributeAccessIssue]


def errors(result: RunResult) -> None:
    info: ErrorInfo = result.state["failed"]["key"]
    assert_type(info.type, str)
    assert_type(info.message, str)
    missing: KeyError = shoal.errors.MissingField("no such field")
    causes: Iterable[type[shoal.ShoalError]] = [
        shoal.errors.HookFailed,
        shoal.errors.BadKey,
        shoal.StoreFailed,
    ]


def drawings(
    graph: Graph, application: Application[Any], counts: dict[str, dict[str, int]]
) -> None:
    assert_type(draw.mermaid(graph), str)
    assert_type(draw.dot(application, depth=2), str)
    assert_type(draw.svg(graph, counts, styled=False), str)
    by_path: dict[tuple[str, ...], dict[str, int]] = {("pages", "fetch"): {"done": 1}}
    both: dict[str | tuple[str, ...], dict[str, int]] = {**counts, **by_path}
    draw.svg(graph, by_path)
    draw.svg(graph, both)
    draw.svg("graph")  # pyright: ignore[reportArgumentType]


def telemetry(store: SQLiteStore, logger: logging.Handler) -> None:
    context = LogContext()
    logger.addFilter(context)
    hooks: Sequence[Hook] = [OpenTelemetry(children="off", store=store), context]
    OpenTelemetry(children="some")  # pyright: ignore[reportArgumentType]
    OpenTelemetry(store=MemoryStore())


class Verdict(TypedDict):
    merge: bool


async def typed_answers(context: Context) -> None:
    assert_type(await context.ask("a"), Any)
    assert_type(await context.ask("a", {"any": "thing"}, answer=Verdict), Verdict)
    assert_type(await context.ask("a", answer=float), float)
    assert_type(await context.ask("a", "?", list[int]), list[int])
    assert_type(await context.ask("a", answer=Literal["yes", "no"]), Any)
    assert_type(await context.ask("a", answer={"type": "integer"}), Any)
    assert_type(anyio.from_thread.run(context.ask, "a", None, int), int)


async def steering(run: RunHandle[Any], store: MemoryStore) -> None:
    await run.pause("the service is down", by="ops")
    assert_type(run.paused, Steered | None)
    control = Control(store, by="ops")
    assert_type(await control.pause("id"), Steered)
    assert_type(await control.resume("id"), Steered | None)
    await control.change_limit("id", "runtime", n=3, rate=2.5)
    Control("runs.db")  # pyright: ignore[reportArgumentType]
