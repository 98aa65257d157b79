"""`replay`: a stored run is replayed without a call, and the first other decision is reported."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest

from shoal import (
    END,
    Application,
    Breaker,
    Budget,
    Context,
    Each,
    Graph,
    Limits,
    MemoryStore,
    Rate,
    Result,
    Retry,
    SharedRate,
    SQLiteStore,
    State,
    action,
    fan_out,
    first_item,
    quorum,
    race,
    when,
)
from shoal.__main__ import main
from shoal.errors import BadUse, UnknownRun
from shoal.rates import MemoryRates
from shoal.testing import RecordingHook, ReplayDiffers, replay, run_virtual
from shoal.testing._recorded import read_run

Program = tuple[Any, dict[str, Any]]
PROGRAMS: dict[str, Callable[[], Program]] = {}
calls: list[str] = []


def program(make: Callable[[], Program]) -> Callable[[], Program]:
    PROGRAMS[make.__name__] = make
    return make


def asking(name: str, seconds: float, value: str = "", fails: bool = False, **more: Any) -> Any:
    """An action that takes some seconds to answer, or to fail."""

    @action(reads=["q"], writes=["a"], name=name, **more)
    async def ask(q: object) -> str:
        calls.append(name)
        await anyio.sleep(seconds)
        if fails:
            raise ConnectionError(name)
        return value or name

    return ask


@action(reads=["x"], writes=["y"])
async def slowest_first(x: int) -> int:
    calls.append("slowest_first")
    await anyio.sleep(10 - x)
    if x == 7:
        raise ValueError(f"no {x}")
    return x * x


@action(reads=["y"], writes=["z"])
async def add_one(y: int) -> int:
    calls.append("add_one")
    return y + 1


def over(act: Any = slowest_first, **more: Any) -> Any:
    given: dict[str, Any] = {"over": "xs", "item": "x", "key": str, "into": "ys", "name": "map"}
    return fan_out(act, **{**given, **more})


two = Graph.chain(slowest_first, add_one, name="two")


@program
def race_of_accepted() -> Program:
    contestants = asking("quick", 1), asking("slow", 5), asking("bad", 2, fails=True)
    return race(*contestants, into="a", name="race", accept=lambda a: a == "slow"), {"q": 1}


@program
def race_with_a_stagger() -> Program:
    return race(asking("slow", 5), asking("quick", 1), into="a", name="race", stagger=2), {"q": 1}


@program
def race_that_is_lost() -> Program:
    contestants = asking("quick", 1), asking("slow", 5)
    return race(*contestants, into="a", name="race", accept=lambda a: False), {"q": 1}


@program
def race_by_quorum() -> Program:
    contestants = asking("1", 5, "x"), asking("2", 1, "y"), asking("3", 2, "x")
    return race(*contestants, into="a", name="race", until=quorum(2)), {"q": 1}


@program
def race_by_the_first_item() -> Program:
    def stream(name: str, seconds: float) -> Any:
        @action(reads=["q"], writes=["a"], name=name)
        async def act(q: object) -> AsyncIterator[str | Result[str]]:
            await anyio.sleep(seconds)
            yield f"{name} begins"
            await anyio.sleep(9 - 2 * seconds)
            yield Result(name)

        return act

    until = first_item(when=lambda item: item.startswith("early"))
    return race(stream("late", 4), stream("early", 1), into="a", name="r", until=until), {"q": 1}


@program
def frontier() -> Program:
    links = {"a": ["b", "c"], "b": ["d", "a"], "c": ["e"], "d": [], "e": []}

    @action(reads=["url"], writes=["links"])
    async def fetch(url: str) -> list[str]:
        await anyio.sleep(4 - len(links[url]))
        return links[url]

    crawl = fan_out(
        fetch,
        over="urls",
        item="url",
        key=str,
        into="pages",
        grow=lambda _, done: done.value,
        name="crawl",
    )
    return crawl, {"urls": ["a"]}


@program
def map_in_a_map() -> Program:
    inner = over(two, take="z", limits=Limits(1))
    outer = over(Graph.chain(inner, name="in"), over="groups", item="xs", key=None, into="all",
                 take="ys", name="outer", limits=Limits(2))  # fmt: skip
    return outer, {"groups": [[1, 2], [3, 4], [5]]}


@program
def map_that_collects_failures() -> Program:
    each = Each(retry=Retry(2, on=OSError))
    mapped = over(two, take="z", on_error="collect", errors_into="errors", each=each)
    return mapped, {"xs": [1, 7, 3]}


@program
def map_that_fails_fast() -> Program:
    return over(limits=Limits(2)), {"xs": [9, 8, 7, 6, 5, 4]}


@program
def map_that_keeps_nothing_of_its_children() -> Program:
    return over(two, take="z", store=None), {"xs": [1, 2]}


@program
def map_with_a_store_of_its_own() -> Program:
    return over(two, take="z", store=MemoryStore()), {"xs": [1, 2]}


@program
def reducer_that_depends_on_the_order() -> Program:
    def fold(state: State, done: Any) -> State:
        return state.update(total=2 * state["total"] + done.value)

    return over(into=None, reduce=fold, writes=["total"]), {"xs": [1, 2, 3], "total": 0}


@program
def timeouts_of_children() -> Program:
    act = asking("late", 9)
    each = Each(timeout=4)
    return over(
        Graph.chain(act, name="g"), over="qs", item="q", each=each, on_error="ignore", take="a"
    ), {"qs": [1, 2]}


@program
def timeout_of_a_step() -> Program:
    return over(timeout=8), {"xs": [1, 4, 5]}


@program
def retries() -> Program:
    tried: list[int] = []

    @action(reads=["x"], writes=["y"], retry=Retry(4, on=ConnectionError, initial=3))
    async def flaky(x: int) -> int:
        tried.append(x)
        if tried.count(x) < 3:
            raise ConnectionError("again")
        if x == 2:
            raise KeyError("no")
        return x

    return over(flaky, on_error="ignore"), {"xs": [1, 2, 3]}


@program
def breaker() -> Program:
    @action(reads=["x"], writes=["y"])
    async def down(x: int) -> int:
        await anyio.sleep(1)
        raise ConnectionError("down")

    each = Each(breaker=Breaker(by=lambda _: "host"))
    return over(down, each=each, on_error="ignore", limits=Limits(1)), {"xs": list(range(12))}


@program
def budget_of_reported_costs() -> Program:
    @action(reads=["x"], writes=["y"])
    async def pay(x: int, context: Context) -> int:
        await anyio.sleep(x)
        context.charge(0.4)
        return x

    limits = Limits(1) & Budget(3, "USD", worst=1)
    return over(pay, limits=limits, on_error="ignore"), {"xs": list(range(9))}


@program
def races_that_empty_a_budget() -> Program:
    """Losers cost their worst case, and what several attempts hold is not on record."""

    def asked(name: str, seconds: float) -> Any:
        @action(reads=["x"], writes=["y"], name=name, limits=money)
        async def ask(x: int, context: Context) -> int:
            calls.append(name)
            await anyio.sleep(seconds)
            context.charge(0.02)
            return x

        return ask

    money = Budget(1.0, "USD", worst=0.1)
    both = race(asked("big", 3), asked("small", 0.05), into="y", stagger=0.05)
    return over(both, limits=Limits(4), on_error="ignore"), {"xs": list(range(14))}


class Backend:
    """A backend that a replay may not call."""

    def __init__(self) -> None:
        self.kept = MemoryRates()

    async def settle(self, requests: Any) -> Any:
        calls.append("backend")
        return await self.kept.settle(requests)


@program
def shared_rate_and_threads_and_a_cache() -> Program:
    rate = SharedRate(Rate(1, per=1), "it", Backend())

    @action(reads=["x"], writes=["y"], cache=60, limits=Limits(rate=rate))
    def plain(x: int) -> int:
        calls.append("plain")
        return x

    return over(plain, limits=Limits(1), key=None), {"xs": [1, 1, 2]}


@program
def own_fan_out() -> Program:
    @action(reads=["xs"], writes=["total"])
    async def lead(xs: list[int], context: Context) -> int:
        async with context.fan_out(name="part") as parts:
            for x in xs:
                parts.start(two, {"x": x}, key=x)
        return len(xs)

    return lead, {"xs": [1, 2]}


@program
def graph_as_a_node_in_a_loop() -> Program:
    @action(reads=["x", "z"], writes=["x"])
    async def less(x: int, z: int) -> int:
        return x - 1

    return Graph((two, less), (less, two, when(lambda x: x > 0)), (less, END), entry=two), {"x": 3}


@program
def failing_root() -> Program:
    retry = Retry(2, on=ConnectionError)
    return Graph.chain(asking("one", 1), asking("two", 1, fails=True, retry=retry)), {"q": 1}


@program
def question() -> Program:
    @action(reads=["x"], writes=["ok"])
    async def confirm(x: int, context: Context) -> bool:
        return await context.ask("ok?", {"x": x})

    return Graph.chain(over(confirm, into="oks"), asking("after", 1)), {"xs": [1, 2], "q": 1}


FAIL = {"race_that_is_lost", "map_that_fails_fast", "timeout_of_a_step", "failing_root"}


def recorded(app: Application[Any], start: dict[str, Any]) -> list[MemoryStore]:
    """Run an application to its end; return its store there, and at each halt."""
    store = MemoryStore()
    app.store = store
    stores = [store]

    async def run() -> None:
        try:
            result = await app.run(start, id="r")
            while result.questions:
                stores.append(store.copy())
                answers: Any = {question.address: True for question in result.questions}
                result = await app.run(id="r", answers=answers)
        except Exception:
            pass

    run_virtual(run)
    return stores


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_same_program_decides_the_same_and_calls_nothing(name: str):
    graph, start = PROGRAMS[name]()
    hook = RecordingHook()
    app = Application(graph, name="app", hooks=[hook])
    stores = recorded(app, start)
    statuses = ["halted"] * (len(stores) - 1)
    for store, status in zip(stores[1:], statuses, strict=True):
        assert replay(app, store, "r").status == status
    calls.clear()
    hook.events.clear()
    # One backend for each: a replay is the same on both.
    backends: tuple[Literal["asyncio", "trio"], ...] = ("asyncio", "trio")
    replayed = replay(app, stores[0], "r", backend=backends[len(name) % 2])
    assert replayed.status == ("failed" if name in FAIL else "succeeded")
    assert replayed.is_complete
    assert calls == []
    assert hook.events == []


# -- changed programs ------------------------------------------------------------------------------


def difference(was: Any, now: Any, start: dict[str, Any]) -> Any:
    """The difference that the replay of a run of one graph by another graph reports."""
    store = recorded(Application(was, name="app"), start)[0]
    with pytest.raises(ReplayDiffers) as raised:
        replay(Application(now, name="app"), store, "r")
    assert str(raised.value.difference) in str(raised.value)
    return raised.value.difference


def judged(least: int) -> Graph:
    yes, no = asking("yes", 1), asking("no", 1)
    big = when(lambda z: z >= least)
    return Graph((two, yes, big), (two, no), name="judged")


def test_another_edge():
    found = difference(judged(5), judged(50), {"x": 3, "q": 1})
    assert (found.kind, found.path, found.step) == ("edge", "r", "two")
    assert found.recorded == "after 'two' came 'yes'"
    assert found.now == "after 'two' comes 'no'"


def test_a_step_more_and_a_step_less():
    longer = Graph.chain(two, asking("more", 1), name="g")
    shorter = Graph.chain(two, name="g")
    found = difference(longer, shorter, {"x": 3, "q": 1})
    assert (found.recorded, found.now) == ("after 'two' came 'more'", "after 'two' the run ends")
    found = difference(shorter, longer, {"x": 3, "q": 1})
    assert (found.recorded, found.now) == ("after 'two' the run ended", "after 'two' comes 'more'")


def test_a_step_more_in_a_child():
    more = Graph.chain(slowest_first, add_one, asking("more", 1), name="two")
    found = difference(over(two, take="z"), over(more, take="z"), {"xs": [5, 6], "q": 1})
    assert (found.kind, found.path) == ("edge", "r/map:0:two:6")
    assert found.now == "after 'add_one' comes 'more'"


def test_other_keys():
    found = difference(over(), over(key="n{}".format), {"xs": [1, 2]})
    assert (found.kind, found.step) == ("key", "map")
    assert (found.recorded, found.now) == ("2 children: '1', '2'", "one more: key 'n1'")


def test_elements_that_are_left_out():
    def firsts(state: State) -> list[int]:
        return state["xs"][:2]

    found = difference(over(), over(over=firsts, reads=["xs"]), {"xs": [1, 2, 3]})
    assert (found.kind, found.now) == ("key", "2 children, without '3'")


def test_another_winner():
    contestants = asking("quick", 1), asking("slow", 5)
    any_of = race(*contestants, into="a", name="race")
    slow = race(*contestants, into="a", name="race", accept=lambda a: a == "slow")
    found = difference(slow, any_of, {"q": 1})
    assert (found.kind, found.step) == ("winner", "race")
    assert found.recorded.startswith("'slow' won")
    assert found.now.startswith("'quick' wins")
    # The other way round, the program waits for a contestant that was cancelled.
    found = difference(any_of, slow, {"q": 1})
    assert found.step == "race"


def test_another_contestant():
    contestants = asking("quick", 1), asking("slow", 5)
    one_more = race(*contestants, asking("new", 1), into="a", name="race")
    found = difference(race(*contestants, into="a", name="race"), one_more, {"q": 1})
    assert (found.kind, found.now) == ("key", "one more: act 'new'")


@pytest.mark.parametrize(("was", "now"), [(3, 2), (2, 3)])
def test_another_number_of_attempts(was: int, now: int):
    def tries(attempts: int) -> Any:
        retry = Retry(attempts, on=ConnectionError)
        act = asking("bad", 1, fails=True, retry=retry)
        return over(act, over="qs", item="q", on_error="ignore")

    found = difference(tries(was), tries(now), {"qs": [1]})
    assert (found.kind, found.path, found.step) == ("retry", "r/map:0:bad:1", "bad")
    assert f"in attempt {was}" in found.recorded


def test_another_update():
    def reducing(by: int) -> Any:
        def fold(state: State, done: Any) -> State:
            return state.update(total=state["total"] + by * done.value)

        return over(into=None, reduce=fold, writes=["total"])

    found = difference(reducing(1), reducing(2), {"xs": [1, 2], "total": 0})
    assert (found.kind, found.step) == ("update", "map")
    assert found.recorded == "'total' = [4] (applying '2')"
    assert found.now == "'total' = [8] (applying '2')"


def test_a_reducer_that_fails_now():
    def fold(state: State, done: Any) -> State:
        return state.update(total=state["total"] + done.value)

    def raising(state: State, done: Any) -> State:
        raise RuntimeError("broken")

    def reducing(function: Any) -> Any:
        return over(into=None, reduce=function, writes=["total"])

    found = difference(reducing(fold), reducing(raising), {"xs": [1, 2], "total": 0})
    assert (found.kind, found.step) == ("end", "map")
    assert "broken" in found.now


def test_a_frontier_that_finds_other_elements():
    def crawl(most: int) -> Any:
        @action(reads=["x"], writes=["y"])
        async def fetch(x: int) -> list[int]:
            return [x + 1, x + 2]

        def found(_: State, done: Any) -> list[int]:
            return [x for x in done.value if x < most]

        return over(fetch, grow=found)

    found = difference(crawl(4), crawl(6), {"xs": [1]})
    assert (found.kind, found.step) == ("key", "map")
    assert found.recorded == "the result of '2' led to 0 new elements: []"
    assert found.now == "it leads to 1 new element: [4]"


def test_a_difference_in_a_child_comes_before_what_follows_from_it():
    def inner(accepted: str) -> Any:
        contestants = asking("quick", 1), asking("slow", 5)
        return race(*contestants, into="a", name="inner", accept=lambda a: a == accepted)

    def outer(accepted: str) -> Any:
        return over(Graph.chain(inner(accepted), name="g"), over="qs", item="q", take="a")

    found = difference(outer("slow"), outer("quick"), {"qs": [1, 2]})
    assert (found.kind, found.path, found.step) == ("winner", "r/map:0:g:1", "inner")


# -- what is recorded ------------------------------------------------------------------------------


def test_a_run_that_was_cancelled_is_replayed_as_far_as_it_went():
    store = MemoryStore()
    app = Application(over(limits=Limits(2)), name="app", store=store)

    async def run() -> None:
        with anyio.move_on_after(6):
            await app.run({"xs": [5, 6, 1, 2]}, id="r")

    run_virtual(run)
    replayed = replay(app, store, "r")
    assert (replayed.status, replayed.is_complete) == ("running", False)
    assert replayed.served == 2


def test_contestants_that_a_stagger_had_not_started_are_no_difference():
    contestants = asking("quick", 1), asking("slow", 5)
    late = race(*contestants, into="a", name="race", stagger=1.5)
    store = recorded(Application(late, name="app"), {"q": 1})[0]
    soon = race(*contestants, into="a", name="race", stagger=0.5)
    assert replay(Application(soon, name="app"), store, "r").status == "succeeded"


def test_a_stored_error_that_a_retry_can_not_judge_is_retried_as_recorded():
    class Refused(Exception):
        def __init__(self, response: object) -> None:
            super().__init__("refused")
            self.response = response

    def may_pass(error: Exception) -> bool:
        return getattr(error, "response").is_late  # noqa: B009 # which the stored one lacks

    class Response:
        is_late = True

    retry = Retry(3, on=may_pass)

    @action(reads=["x"], writes=["y"])
    async def fetch(x: int) -> int:
        raise Refused(Response())

    app = Application(over(fetch, each=Each(retry=retry), on_error="ignore"), name="app")
    store = recorded(app, {"xs": [1]})[0]
    assert replay(app, store, "r").served == 3


def test_a_run_that_failed_and_was_resumed():
    fails = [True]

    @action(reads=["x"], writes=["y"])
    async def once(x: int) -> int:
        await anyio.sleep(x)
        if x == 2 and fails.pop():
            raise ConnectionError("down")
        return x

    app = Application(Graph.chain(over(once), asking("last", 1)), name="app")
    store = recorded(app, {"xs": [1, 2, 3], "q": 1})[0]

    async def resume() -> None:
        await app.run(id="r")

    fails.append(False)
    run_virtual(resume)
    assert replay(app, store, "r").is_complete


def test_a_fork_and_a_run_whose_failures_were_retried():
    fails = [True]

    @action(reads=["x"], writes=["y"])
    async def once(x: int) -> int:
        if x == 2 and fails.pop():
            raise ConnectionError("down")
        return x

    mapped = over(once, on_error="collect", errors_into="errors")
    app = Application(Graph.chain(mapped, asking("last", 1)), name="app")
    store = recorded(app, {"xs": [1, 2, 3], "q": 1})[0]
    fails.append(False)

    async def again() -> None:
        await app.fork("r", number=3, id="f")
        await app.retry_failed("r")

    run_virtual(again)
    assert replay(app, store, "f").is_complete
    assert replay(app, store, "r").is_complete


def test_a_fork_behind_a_step_goes_on_there():
    """Steps before the fork are not executed again, since its first state has their updates."""

    @action(reads=["q"], writes=["q"], name="more")
    async def more(q: int) -> int:
        return q + 1

    loop = Graph((more, more, when(lambda q: q < 3)), (more, asking("last", 1)))
    app = Application(loop, name="app")
    store = recorded(app, {"q": 0})[0]
    run_virtual(lambda: app.fork("r", number=2, id="f"))
    replayed = replay(app, store, "f")
    assert (replayed.is_complete, replayed.served) == (True, 2)
    shorter = Graph((more, more, when(lambda q: q < 2)), (more, asking("last", 1)))
    with pytest.raises(ReplayDiffers) as raised:
        replay(Application(shorter, name="app"), store, "f")
    assert raised.value.difference.kind == "edge"


def test_secrets_are_not_recorded_and_stand_in_by_their_names():
    seen: list[str] = []

    def is_long(token: str) -> bool:
        seen.append(token)
        return True

    first, last = asking("one", 1), asking("two", 1)
    graph = Graph((first, last, when(is_long)), (first, END))
    app = Application(graph, name="app", secret=["token"])
    store = recorded(app, {"q": 1, "token": "hunter2"})[0]
    data = anyio.run(read_run, store, "r")
    assert "hunter2" not in json.dumps(data)
    assert data["secret"] == {"token": "<token>"}
    seen.clear()
    replay(app, store, "r")
    replay(app, store, "r", secrets={"token": "another"})
    assert seen == ["<token>", "another"]


def test_inputs_are_needed_by_actions_with_children_alone():
    @action(reads=["x"], writes=["y"])
    async def child(x: int, client: Any) -> int:
        return await client(x)

    @action(reads=["xs"], writes=["total"])
    async def lead(xs: list[int], model: Any, context: Context) -> int:
        async with context.fan_out(name="part") as parts:
            for x in await model(xs):
                parts.start(child.bind(client=model), {"x": x}, key=x)
        return len(xs)

    async def model(value: Any) -> Any:
        return value

    app = Application(lead, name="app")
    store = MemoryStore()
    app.store = store

    async def run() -> None:
        await app.run({"xs": [1, 2]}, id="r", inputs={"model": model})

    run_virtual(run)
    assert replay(app, store, "r", inputs={"model": model}).called == {"lead"}
    with pytest.raises(BadUse, match=r"uses the input 'model' .* give a fake: replay\(\.\.\., inp"):
        replay(app, store, "r")


def test_a_database_is_replayed_too(tmp_path: Path):
    store = SQLiteStore(tmp_path / "runs.db")
    app = Application(over(add_one, over="ys", item="y", into="zs"), name="app", store=store)
    app.run_sync({"ys": [1, 2]}, id="r")
    assert replay(app, store, "r").is_complete
    other = over(add_one, over="ys", item="y", key="n{}".format, into="zs")
    with pytest.raises(ReplayDiffers):
        replay(Application(other, name="app"), store, "r")


def test_misuse_is_refused(tmp_path: Path):
    app = Application(judged(5), name="app")
    store = recorded(app, {"x": 9, "q": 1})[0]
    with pytest.raises(UnknownRun, match="there is no run 'q'"):
        replay(app, store, "q")
    with pytest.raises(BadUse, match="which run of the store"):
        replay(app, store)
    with pytest.raises(BadUse, match="give this one its name"):
        replay(Application(judged(5), name="other"), store, "r")
    file = tmp_path / "x.json"
    with pytest.raises(BadUse, match="can't be read"):
        replay(app, file)
    for text, why in (("{", "is no recorded run"), ("{}", "its format is None")):
        file.write_text(text)
        with pytest.raises(BadUse, match=why):
            replay(app, file)
    with pytest.raises(BadUse, match="names a run of a store"):
        replay(app, file, "r")


# -- the test that is written ----------------------------------------------------------------------

MODULE = """
from shoal import Application, SQLiteStore, action, fan_out


@action(reads=["n", "token"], writes=["square"])
async def square(n: int, token: str) -> int:
    return n * n


numbers = fan_out(square, over="ns", item="n", key=str, into="squares", name="numbers")
app = Application(numbers, name="squares", secret=["token"], store=SQLiteStore("runs.db"))


def other() -> Application:
    return Application(fan_out(square, over="ns", item="n", key=lambda n: n, into="squares",
                               name="numbers"), name="squares", secret=["token"])
"""


def test_a_run_is_exported_as_a_test_that_pytest_runs(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "squares_app.py").write_text(MODULE)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    import squares_app  # pyright: ignore[reportMissingImports]

    module: Any = squares_app
    module.app.run_sync({"ns": [1, 2], "token": "hunter2"}, id="today/1")
    command = ["export", "today%2F1", "--as-test", "--db", "runs.db", "--to", "tests", "--app"]
    assert main([*command, "squares_app:app"]) == 0
    said = capsys.readouterr()
    test = tmp_path / "tests" / "test_replay_today_1.py"
    fixture = test.with_suffix(".json")
    assert said.out.split() == [str(Path("tests") / test.name), str(Path("tests") / fixture.name)]
    assert "hunter2" not in fixture.read_text() + test.read_text()
    assert "'<token>' for 'token'" in test.read_text()
    assert replay(module.app, fixture).served == 2
    with pytest.raises(ReplayDiffers, match="one more: key 1"):
        replay(module.other(), fixture)
    # As it is written, by pytest alone; in this process, where nothing has to be imported.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    assert pytest.main(["-q", "-p", "no:cacheprovider", str(test)]) == 0
    monkeypatch.setattr(module, "app", module.other())
    monkeypatch.delitem(sys.modules, test.stem, raising=False)
    assert pytest.main(["-q", "-p", "no:cacheprovider", str(test)]) == 1
    # A test that is there may have been edited, so it stays.
    test.write_text("edited")
    assert main([*command, "squares_app:other"]) == 0
    assert test.read_text() == "edited"
    capsys.readouterr()
    assert main(command[:-1]) == 2
    assert "which application does the test replay" in capsys.readouterr().err
    for wrong, why in (("fan_out", "write a function without"), ("numbers", "it has: app")):
        with pytest.raises(SystemExit):
            main([*command, f"squares_app:{wrong}"])
        assert why in capsys.readouterr().err
