"""Runs that start from a state of another one, and runs that take up again what had failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.lowlevel import checkpoint

from shoal import (
    END,
    Application,
    Context,
    Done,
    Failed,
    Graph,
    Limits,
    MemoryStore,
    Outcome,
    RunClaimed,
    RunConflict,
    RunPath,
    RunResult,
    Runtime,
    ShoalError,
    SQLiteStore,
    State,
    Tolerate,
    UnknownRun,
    action,
    fan_out,
    when,
)
from shoal.errors import BadUse, InvalidState, MissingField, StateError
from shoal.events import (
    ChildRerun,
    ChildStarted,
    Put,
    RunStarted,
    StateUpdated,
    StepStarted,
    Update,
)
from shoal.stores import Browses, Completed, Rewound, Store
from shoal.stores._protocol import NullStore
from shoal.testing import (
    Attempt,
    RecordingHook,
    Recovery,
    cancel_everywhere,
    crash_everywhere,
    no_leaks,
)

pytestmark = pytest.mark.anyio

ran = list[Any]()
fails = set[Any]()


@pytest.fixture(autouse=True)
def all_is_well() -> None:
    ran.clear()
    fails.clear()


def run_body(name: Any) -> None:
    ran.append(name)
    if name in fails:
        raise ValueError(name)


@action(reads=["n"], writes=["one"])
async def one(n: int) -> int:
    run_body("one")
    await anyio.sleep(1)
    return n + 1


@action(reads=["one"], writes=["two"])
async def two(one: int) -> int:
    run_body("two")
    await anyio.sleep(1)
    return one + 1


@action(reads=["two"], writes=["three"])
async def three(two: int) -> int:
    run_body("three")
    return two + 1


@action(reads=["item"], writes=["out"])
async def leaf(item: Any) -> str:
    run_body(f"leaf {item}")
    await checkpoint()
    return f"{item}!"


@action(reads=["item"], writes=["size"])
async def measure(item: str) -> int:
    run_body(f"measure {item}")
    await checkpoint()
    return len(item)


@action(reads=["sizes"], writes=["total"])
async def add_up(sizes: Mapping[str, int]) -> int:
    run_body("add up")
    return sum(sizes.values())


chain = Graph.chain(one, two, three, name="app")


def apps(graph: Any, store: Store | None = None, **options: Any) -> Application[Any]:
    return Application(graph, store=MemoryStore() if store is None else store, **options)


# -- forks -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "left"),
    [(0, ["one", "two", "three"]), (1, ["two", "three"]), (2, ["three"]), (3, []), (None, [])],
)
async def test_a_fork_goes_on_after_the_step_of_any_update(number: int | None, left: list[str]):
    app = apps(chain)
    first = await app.run({"n": 1}, id="x")
    ran.clear()
    hook = RecordingHook()
    app.hooks = (hook,)
    forked = await app.fork("x", number=number, id="y")
    assert ran == left
    assert forked.state == first.state
    assert forked.run_id == "y"
    hook.assert_paired()
    assert [event.resumed for event in hook.of(RunStarted)] == [False]
    assert [event.update.number for event in hook.of(StateUpdated)] == [*range(1, len(left) + 1)]


async def test_a_fork_starts_with_what_is_changed():
    app = apps(chain)
    await app.run({"n": 1}, id="x")
    ran.clear()
    forked = await app.fork("x", number=1, update={"one": 10, "more": "m"})
    assert ran == ["two", "three"]
    assert forked.state == {"n": 1, "one": 10, "two": 11, "three": 12, "more": "m"}
    assert forked.run_id != "x"
    other = await app.run(id="x")
    assert other.state["one"] == 2, "the other run is left as it is"


async def test_a_fork_is_a_run_like_any_other():
    app = apps(chain)
    await app.run({"n": 1}, id="x")
    ran.clear()
    fails.add("three")
    with pytest.raises(ValueError, match="three"):
        await app.fork("x", number=1, id="y", update={"one": 5})
    fails.clear()
    result = await app.run(id="y")
    assert ran == ["two", "three", "three"]
    assert result.state == {"n": 1, "one": 5, "two": 6, "three": 7}
    # Asked for once more it is the same run, and one that was forked otherwise is a conflict.
    assert (await app.fork("x", number=1, id="y", update={"one": 5})).state == result.state
    with pytest.raises(RunConflict, match="its initial state differs in 'one'"):
        await app.fork("x", number=1, id="y", update={"one": 6})
    with pytest.raises(RunConflict, match=r"forked from was \('x', 1\) and is \('x', 2\) now"):
        await app.fork("x", number=2, id="y", update={"one": 5})
    with pytest.raises(RunConflict, match="forked from"):
        await app.run({"n": 1, "one": 5}, id="y")
    assert ran == ["two", "three", "three"]


async def test_forks_of_forks():
    app = apps(chain)
    await app.run({"n": 1}, id="x")
    await app.fork("x", number=1, id="y", update={"one": 10})
    ran.clear()
    third = await app.fork("y", number=0, id="z")
    assert ran == ["two", "three"], "y began after one"
    assert third.state["three"] == 12
    ran.clear()
    assert (await app.fork("y", number=1, id="w")).state["three"] == 12
    assert ran == ["three"]


async def test_a_run_that_goes_on_can_be_forked():
    app = apps(chain)
    async with app.open({"n": 1}, id="x") as run:
        async for event in run:
            if isinstance(event, StateUpdated):
                break
        ran.clear()
        forked = await app.fork("x", update={"one": 50})
        assert forked.state["three"] == 52
        assert (await run.result()).state["three"] == 4
    assert ran.count("two") >= 1


async def test_failed_and_cancelled_runs_can_be_forked():
    app = apps(chain)
    fails.add("two")
    with pytest.raises(ValueError, match="two"):
        await app.run({"n": 1}, id="x")
    fails.clear()
    ran.clear()
    assert (await app.fork("x")).state["three"] == 4
    assert ran == ["two", "three"]


async def test_what_a_step_under_way_has_collected_is_in_the_fork_and_is_skipped():
    leaves = fan_out(leaf, over="items", key=str, into="outs", limits=Limits(1))
    app = apps(Graph.chain(one, leaves, two, name="app"))
    fails.add("leaf c")
    with pytest.raises(ExceptionGroup):
        await app.run({"n": 1, "items": list("abc")}, id="x")
    fails.clear()
    ran.clear()
    forked = await app.fork("x", update={"items": list("abcd")})
    assert ran == ["leaf c", "leaf d", "two"]
    assert list(forked.state["outs"].items()) == [(one, f"{one}!") for one in "abcd"]
    ledger = forked.outcomes("outs")
    assert (ledger.done, ledger.skipped) == (2, 2)
    ran.clear()
    at_a = next(
        entry.number
        for entry in await _store(app).read(RunPath(run_id="x"))
        if isinstance(entry, Update) and _key(entry) == "a"
    )
    await app.fork("x", number=at_a)
    assert ran == ["leaf b", "leaf c", "two"]


def _key(update: Update) -> object:
    return next((one.key for one in update.operations if isinstance(one, Put)), None)


def _store(app: Application[Any]) -> MemoryStore:
    assert isinstance(app.store, MemoryStore)
    return app.store


async def test_a_fork_counts_visits_as_the_other_run_did():
    @action(reads=["turn"], writes=["turn"])
    async def next_turn(turn: int) -> int:
        return turn + 1

    leaves = fan_out(leaf, over="items", key=str, into="outs")
    graph = Graph(
        (leaves, next_turn), (next_turn, leaves, when(lambda turn: turn < 2)), (next_turn, END),
        entry=leaves, name="app",
    )  # fmt: skip
    app = apps(graph)
    await app.run({"items": ["a"], "turn": 0}, id="x")
    history = await _store(app).read(RunPath(run_id="x"))
    after_first_turn = next(
        entry.number for entry in history if isinstance(entry, Update) and entry.step == "next_turn"
    )
    ran.clear()
    forked = await app.fork("x", number=after_first_turn)
    assert ran == ["leaf a"], "a second visit skips nothing"
    assert [ledger.done for ledger in forked._ledgers["outs"]] == [0, 1]
    outcomes = [one async for one in forked.all_outcomes("outs")]
    assert [type(one) for one in outcomes] == [Done]
    again = await app.run(id=forked.run_id)
    assert [ledger.done for ledger in again._ledgers["outs"]] == [0, 1]


@dataclass
class Model:
    n: int
    one: int = 0
    two: int = 0
    three: int = 0


typed = Graph.chain(one, two, three, name="app", state=Model)


async def test_typed_states_are_held_to_their_model():
    app = apps(typed)
    await app.run({"n": 1}, id="x")
    assert (await app.fork("x", number=1, update={"one": "7"})).state.data == Model(1, 7, 8, 9)
    with pytest.raises(InvalidState):
        await app.fork("x", number=1, update={"one": "seven"})
    with pytest.raises(StateError, match="'four', which Model does not declare"):
        await app.fork("x", number=1, update={"four": 4})


@pytest.mark.parametrize("is_kept", [True, False], ids=["store", "no store"])
async def test_an_id_that_no_run_has_is_named(is_kept: bool):
    app = Application(chain, name="app", store=MemoryStore() if is_kept else None)
    await app.run({"n": 1}, id="crawl-2024")
    where = "the store has no run" if is_kept else "there is no store to have a run"
    said = f"{where} 'crawl-2042', and a new one can't begin: action "
    async with Runtime() as runtime:
        for call in (
            lambda: app.run(id="crawl-2042"),
            lambda: app.run({}, id="crawl-2042"),
            lambda: app.start(id="crawl-2042", runtime=runtime),
            *([lambda: app.run(id="crawl-2042", answers={"ok": 1})] if is_kept else []),
        ):
            with pytest.raises(MissingField) as missing:
                await call()
            assert said in str(missing.value)
        if is_kept:
            for call in (app.fork, app.retry_failed, app.questions):
                with pytest.raises(UnknownRun, match="the store has no run 'crawl-2042'"):
                    await call("crawl-2042")


@pytest.mark.parametrize("place", ["memory", "sqlite"])
async def test_an_id_like_one_that_is_known_is_noted(place: str, tmp_path: Path):
    store = MemoryStore() if place == "memory" else SQLiteStore(tmp_path / "runs.db")
    app = Application(chain, name="app", store=store)
    async with no_leaks():
        await app.run({"n": 1}, id="crawl-2024")
        for call in (
            lambda: app.run(id="crawl-2042"),
            lambda: app.fork("crawl-2042"),
            lambda: app.retry_failed("crawl-2042"),
            lambda: app.questions("crawl-2042"),
        ):
            with pytest.raises(ShoalError) as missing:
                await call()
            noted = isinstance(store, Browses)
            notes = ["shoal: did you mean 'crawl-2024'?"] if noted else []
            assert getattr(missing.value, "__notes__", []) == notes
            assert "2024" not in str(missing.value)
        with pytest.raises(UnknownRun) as other:
            await app.fork("another")
        assert getattr(other.value, "__notes__", []) == []


async def test_what_can_not_be_forked():
    app = apps(chain)
    await app.run({"n": 1}, id="x")
    with pytest.raises(UnknownRun, match="no run 'y'"):
        await app.fork("y", id="z")
    for number in (-1, 4):
        with pytest.raises(UnknownRun, match=f"updates 1 to 3, so it can't be forked at {number}"):
            await app.fork("x", number=number, id="z")
    with pytest.raises(BadUse, match=r"fork\(\) needs a store"):
        await Application(chain).fork("x")
    with pytest.raises(BadUse, match=r"fork\(\) needs a store"):
        await Application(chain, store=NullStore()).fork("x")
    with pytest.raises(TypeError, match="update as a mapping"):
        await app.fork("x", update=[1])  # pyright: ignore[reportArgumentType]
    assert not _store(app)._claims
    assert len(_store(app)) == 1
    async with Runtime(store=_store(app)) as runtime:
        assert (await Application(chain).fork("x", runtime=runtime)).state["three"] == 4


async def test_a_fork_by_a_changed_application():
    store = MemoryStore()
    await apps(chain, store, version="1").run({"n": 1}, id="x")
    ran.clear()
    newer = apps(Graph.chain(one, two, three.bind(name="tripled"), name="app"), store, version="2")
    assert (await newer.fork("x", number=2)).state["three"] == 4
    assert ran == ["three"]
    other = apps(Graph.chain(two.bind(name="else"), name="app"), store, version="3")
    with pytest.raises(RunConflict, match="completed the step 'two', which 'app' does not have"):
        await other.fork("x", number=2)


async def test_a_fork_that_lacks_a_field_says_so():
    store = MemoryStore()
    await apps(chain, store).run({"n": 1}, id="x")

    @action(reads=["four"], writes=["five"])
    async def five(four: int) -> int:
        return four

    longer = apps(Graph.chain(one, two, three, five, name="app"), store)
    with pytest.raises(MissingField, match="'four'"):
        await longer.fork("x")
    assert (await longer.fork("x", update={"four": 4})).state["five"] == 4


# -- retry_failed ----------------------------------------------------------------------------------


def crawl(**options: Any) -> Graph:
    """A map that tolerates failures, and steps that depend on what it has collected."""
    given: dict[str, Any] = {"on_error": "collect", "errors_into": "errors", **options}
    leaves = fan_out(leaf, over="items", key=str, into="outs", limits=Limits(1), **given)
    sizes = fan_out(
        measure, over=lambda state: list(state["outs"].values()), reads=["outs"], key=str,
        into="sizes", limits=Limits(1),
    )  # fmt: skip
    return Graph.chain(one, leaves, sizes, add_up, name="crawl")


STATE = {"n": 1, "items": list("abcd")}


async def failed_once(app: Application[Any], *failing: str) -> RunResult[Any]:
    fails.update(f"leaf {one}" for one in failing)
    result = await app.run(STATE, id="x")
    assert result.outcomes("outs").failed == len(failing)
    fails.clear()
    ran.clear()
    return result


async def test_what_failed_runs_again_and_what_depends_on_it_follows():
    app = apps(crawl())
    before = await failed_once(app, "b", "d")
    assert before.state["total"] == 4
    hook = RecordingHook()
    app.hooks = (hook,)
    result = await app.retry_failed("x")
    hook.assert_paired()
    assert ran == ["leaf b", "leaf d", "measure b!", "measure d!", "add up"]
    assert [event.step for event in hook.of(StepStarted) if event.depth == 0] == [
        "outs", "sizes", "add_up"
    ]  # fmt: skip
    assert hook.of(ChildRerun) == []
    whole = await apps(crawl()).run(STATE, id="y")
    assert result.state == whole.state
    assert list(result.state["outs"]) == list("abcd")
    assert result.state["errors"] == {}
    for step in ("outs", "sizes"):
        assert result.outcomes(step).done == 4
        outcomes = [(o.key, o.position, type(o)) async for o in result.all_outcomes(step)]
        assert len(outcomes) == 4
        assert {kind for _, _, kind in outcomes} == {Done}
    result.raise_for_failures()
    ran.clear()
    again = await app.run(STATE, id="x")
    assert again.state == result.state
    again.raise_for_failures()
    assert not ran


async def test_what_fails_again_stays_failed_and_can_be_retried_again():
    app = apps(crawl())
    await failed_once(app, "b", "d")
    fails.add("leaf d")
    result = await app.retry_failed("x")
    assert result.state["total"] == 6
    assert list(result.state["errors"]) == ["d"]
    (failed,) = result.outcomes("outs")
    assert isinstance(failed, Failed)
    with pytest.raises(ExceptionGroup) as raised:
        result.raise_for_failures()
    assert [str(error) for error in raised.value.exceptions] == ["leaf d"]
    fails.clear()
    ran.clear()
    result = await app.retry_failed("x")
    assert ran == ["leaf d", "measure d!", "add up"]
    assert result.state["total"] == 8
    with pytest.raises(BadUse, match="run x has completed no fan-out with failures"):
        await app.retry_failed("x")
    assert (await app.run(id="x")).state["total"] == 8


@pytest.mark.parametrize("on_error", ["ignore", Tolerate(count=3)])
async def test_ignored_and_tolerated_failures_can_be_retried(on_error: Any):
    given = {"errors_into": None} if on_error == "ignore" else {}
    app = apps(crawl(on_error=on_error, **given))
    await failed_once(app, "a", "b")
    result = await app.retry_failed("x")
    assert ran[:2] == ["leaf a", "leaf b"]
    assert result.state["total"] == 8


async def test_too_many_that_fail_again_fail_the_run_which_then_goes_on():
    app = apps(crawl(on_error=Tolerate(count=1)))
    await failed_once(app, "b")
    fails.update({"leaf b"})
    app = Application(crawl(on_error=Tolerate(count=0)), store=app.store)
    with pytest.raises(ExceptionGroup):
        await app.retry_failed("x")
    fails.clear()
    ran.clear()
    assert (await app.run(id="x")).state["total"] == 8
    assert ran == ["leaf b", "measure b!", "add up"]


async def test_without_keys_too():
    leaves = fan_out(leaf, over="items", into="outs", on_error="collect", errors_into="errors")
    app = apps(Graph.chain(leaves, name="app"))
    fails.add("leaf c")
    assert (await app.run({"items": list("abcd")}, id="x")).state["outs"] == ["a!", "b!", "d!"]
    fails.clear()
    ran.clear()
    result = await app.retry_failed("x")
    assert ran == ["leaf c"]
    assert result.state["outs"] == ["a!", "b!", "c!", "d!"]


async def test_the_visit_with_failures_is_the_one_that_is_taken_up():
    @action(reads=["turn"], writes=["turn"])
    async def next_turn(turn: int) -> int:
        run_body(f"turn {turn}")
        return turn + 1

    @action(reads=["item", "turn"], writes=["out"])
    async def of_turn(item: str, turn: int) -> str:
        run_body(f"{item}{turn}")
        return f"{item}{turn}"

    leaves = fan_out(
        of_turn, over="items", key=str, into="outs", on_error="collect", limits=Limits(1)
    )  # fmt: skip
    graph = Graph(
        (leaves, next_turn), (next_turn, leaves, when(lambda turn: turn < 3)), (next_turn, END),
        entry=leaves, name="app",
    )  # fmt: skip
    app = apps(graph)
    state = {"items": ["a", "b"], "turn": 0}
    fails.add("b1")
    await app.run(state, id="x")
    fails.clear()
    ran.clear()
    result = await app.retry_failed("x")
    assert ran == ["b1", "turn 1", "turn 2"], "children of the third visit saw what they had seen"
    assert [ledger.done for ledger in result._ledgers["outs"]] == [2, 2, 2]
    assert result.state["outs"] == {"a": "a2", "b": "b2"}
    history = await _store(app).read(RunPath(run_id="x"))
    assert [entry.visit for entry in history if isinstance(entry, Rewound)] == [1]


async def test_later_steps_whose_input_changed_run_anew_and_others_do_not():
    @action(reads=["outs"], writes=["all"])
    async def join(outs: Mapping[str, str]) -> str:
        run_body("join")
        return "".join(outs.values())

    @action(reads=["item", "all"], writes=["seen"])
    async def look(item: str, all: str) -> str:  # noqa: A002 # a field of that name is the point
        run_body(f"look {item}")
        return item + all

    leaves = fan_out(
        leaf, over="items", key=str, into="outs", on_error="collect", limits=Limits(1)
    )  # fmt: skip
    looks = fan_out(look, over="items", key=str, into="looks", limits=Limits(1))
    sizes = fan_out(measure, over="items", key=str, into="sizes", limits=Limits(1))
    app = apps(Graph.chain(leaves, join, looks, sizes, name="app"))
    fails.add("leaf b")
    await app.run({"items": ["a", "b"]}, id="x")
    fails.clear()
    ran.clear()
    hook = RecordingHook()
    app.hooks = (hook,)
    result = await app.retry_failed("x")
    assert ran == ["leaf b", "join", "look a", "look b"]
    assert result.state["looks"] == {"a": "aa!b!", "b": "ba!b!"}
    assert result.state["sizes"] == {"a": 1, "b": 1}
    assert [event.child.key for event in hook.of(ChildRerun)] == ["a", "b"]
    # Children that are Done are applied again: their start and their end were told before.
    assert {event.child.step for event in hook.of(ChildStarted)} == {"outs", "looks"}


async def test_later_steps_that_reduce_begin_anew():
    def tell(state: State, outcome: Any) -> State:
        return state.append(told=outcome.key)

    leaves = fan_out(
        leaf, over="items", key=str, into="outs", on_error="collect", limits=Limits(1)
    )  # fmt: skip
    folds = fan_out(
        measure, over=lambda state: list(state["outs"].values()), reads=["outs"], key=str,
        reduce=tell, writes=["told"], name="folds", limits=Limits(1),
    )  # fmt: skip
    app = apps(Graph.chain(leaves, folds, name="app"))
    fails.add("leaf b")
    state = {"items": list("abc"), "told": ["before"]}
    assert (await app.run(state, id="x")).state["told"] == ["before", "a!", "c!"]
    fails.clear()
    ran.clear()
    result = await app.retry_failed("x")
    assert ran == ["leaf b", "measure b!"]
    assert result.state["told"] == ["before", "a!", "b!", "c!"]


async def test_later_nodes_and_own_fan_outs_begin_anew():
    @action(reads=["outs"], writes=["found"])
    async def search(outs: Mapping[str, str], context: Context) -> list[object]:
        run_body("search")
        found: list[object] = []
        async with context.fan_out(name="tries", limits=Limits(1)) as group:
            group.start_each(measure, over=list(outs.values()), key=str)
            async for outcome in group:
                assert isinstance(outcome, Done)
                found.append((outcome.key, outcome.value))
        return found

    leaves = fan_out(
        leaf, over="items", key=str, into="outs", on_error="collect", limits=Limits(1)
    )  # fmt: skip
    sizes = fan_out(
        measure, over=lambda state: list(state["outs"].values()), reads=["outs"], key=str,
        into="sizes", limits=Limits(1),
    )  # fmt: skip
    changes = Graph.chain(sizes, add_up, name="changes")
    same = Graph.chain(one, two, name="same")
    app = apps(Graph.chain(leaves, same, search, changes, name="app"))
    fails.add("leaf b")
    await app.run({"n": 1, "items": list("abc")}, id="x")
    fails.clear()
    ran.clear()
    result = await app.retry_failed("x")
    assert ran == [
        "leaf b", "search", "measure b!", "measure a!", "measure b!", "measure c!", "add up"
    ]  # fmt: skip
    assert (result.state["two"], result.state["total"]) == (3, 6)
    assert result.state["found"] == [(f"{key}!", 2) for key in "abc"]
    assert result.outcomes("changes/sizes").done == 3
    assert result.outcomes("search/tries").done == 3


async def test_what_can_not_be_retried():
    app = apps(crawl())
    with pytest.raises(UnknownRun, match="no run 'x'"):
        await app.retry_failed("x")
    await app.run(STATE, id="x")
    with pytest.raises(BadUse, match="no fan-out with failures, so there is none to retry"):
        await app.retry_failed("x")
    with pytest.raises(BadUse, match=r"retry_failed\(\) needs a store"):
        await Application(crawl()).retry_failed("x")
    assert not _store(app)._claims
    async with app.open(STATE, id="y", stepwise=True):
        with pytest.raises(RunClaimed):
            await app.retry_failed("y")
    with pytest.raises(
        BadUse, match=r"run y has completed no fan-out with failures.*run\(id='y'\)"
    ):
        await app.retry_failed("y")


@pytest.mark.parametrize("below", ["child", "node"])
async def test_what_was_put_up_with_below_is_out_of_reach(below: str):
    """A child, or a node, that has collected failures has succeeded: it is kept."""
    inner = fan_out(
        leaf, over="items", key=str, into="outs", on_error="collect", errors_into="errors"
    )  # fmt: skip
    graph = Graph.chain(inner, name="inner")
    if below == "node":
        app = apps(Graph.chain(graph))
    else:
        app = apps(fan_out(graph, over=lambda _: [1], reads=[], into="all", take="errors"))
    fails.add("leaf b")
    result = await app.run({"items": ["a", "b"]}, id="x")
    assert list(result.state["all"][0] if below == "child" else result.state["errors"]) == ["b"]
    ran.clear()
    fails.clear()
    with pytest.raises(
        BadUse, match="none to retry; failures that a child, or a graph as a node, has tol"
    ):
        await app.retry_failed("x")
    assert not ran
    assert (await app.run(id="x")).state == result.state


async def test_a_child_that_failed_goes_on_where_that_was_however_deep():
    """Of its own children only those run that had failed; a sibling that put up with some stays."""

    @action(reads=["out"], writes=["out"])
    async def again(out: str) -> str:
        run_body(f"again {out}")
        return out

    tolerant = fan_out(leaf, over="items", key=str, into="outs", on_error="ignore")
    strict = fan_out(
        Graph.chain(leaf, again, name="two"), over="items", key=str, into="outs", take="out",
        limits=Limits(1),
    )  # fmt: skip
    acts = [Graph.chain(tolerant, name="tolerant"), Graph.chain(strict, name="strict")]
    app = apps(fan_out(acts, into="all", take="outs", on_error="ignore", limits=Limits(1)))
    fails.update(("leaf b", "again c!"))
    result = await app.run({"items": ["a", "b", "c"]}, id="x")
    assert {act: list(outs) for act, outs in result.state["all"].items()} == {
        "tolerant": ["a", "c"]
    }  # fmt: skip
    fails.clear()
    ran.clear()
    result = await app.retry_failed("x")
    assert ran == ["leaf b", "again b!", "leaf c", "again c!"]
    assert {act: list(outs) for act, outs in result.state["all"].items()} == {
        "tolerant": ["a", "c"], "strict": ["a", "b", "c"]
    }  # fmt: skip
    result.raise_for_failures()


async def test_failures_that_reduce_was_given_can_not_be_taken_back():
    def tell(state: State, outcome: Any) -> State:
        return state.append(told=(outcome.key, type(outcome).__name__))

    folds = fan_out(
        leaf, over="items", key=str, reduce=tell, writes=["told"], on_error="collect", name="fold"
    )  # fmt: skip
    app = apps(folds)
    fails.add("leaf b")
    await app.run({"items": ["a", "b"]}, id="x")
    with pytest.raises(BadUse, match=r"'fold' have failed, and reduce.*fork\('x', number=0\)"):
        await app.retry_failed("x")
    fails.clear()
    forked = await app.fork("x", number=0)
    assert sorted(forked.state["told"]) == [("a", "Done"), ("b", "Done")]


async def test_the_first_step_with_failures_is_taken_up_and_later_ones_follow():
    first = fan_out(leaf, over="items", key=str, into="outs", on_error="collect", limits=Limits(1))
    second = fan_out(
        measure, over="items", key=str, into="sizes", on_error="collect", limits=Limits(1)
    )  # fmt: skip
    app = apps(Graph.chain(first, second, add_up, name="app"))
    fails.update({"leaf a", "measure b"})
    await app.run({"items": ["a", "b"]}, id="x")
    fails.clear()
    ran.clear()
    result = await app.retry_failed("x")
    assert ran == ["leaf a", "measure b", "add up"]
    assert result.state["total"] == 2
    result.raise_for_failures()


async def test_a_failed_run_with_collected_failures_before_can_be_retried():
    app = apps(crawl())
    fails.update({"leaf b", "add up"})
    with pytest.raises(ValueError, match="add up"):
        await app.run(STATE, id="x")
    fails.clear()
    ran.clear()
    assert (await app.retry_failed("x")).state["total"] == 8
    assert ran == ["leaf b", "measure b!", "add up"]


async def test_a_run_that_went_back_can_be_forked_anywhere():
    app = apps(crawl())
    await failed_once(app, "b")
    await app.retry_failed("x")
    history = await _store(app).read(RunPath(run_id="x"))
    back = next(at for at, entry in enumerate(history) if isinstance(entry, Rewound))
    went_back = next(one.number for one in history[back:] if isinstance(one, Update))
    last = max(entry.number for entry in history if isinstance(entry, Update))
    completed = next(e.number for e in history if isinstance(e, Completed) and e.step == "outs")
    for number in range(last + 1):
        ran.clear()
        forked = await app.fork("x", number=number)
        had_failed = completed <= number < went_back
        assert forked.state["total"] == (6 if had_failed else 8), number
        if number >= went_back:
            assert "leaf a" not in ran
    assert (await app.fork("x")).state["total"] == 8


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("how", ["dies", "fails", "hangs"])
def test_a_crash_anywhere_in_a_retry_comes_to_the_same(backend: Any, how: Any):
    async def scenario(store: Store) -> Any:
        app = apps(crawl(), store)
        if not retried:  # in the first place
            fails.update({"leaf b", "leaf d"})
            await app.run(STATE, id="x")
            fails.clear()
            retried.append(True)
        try:
            result = await app.retry_failed("x")
        except BadUse:  # it had gone back before the crash, and maybe come to its end
            result = await app.run(STATE, id="x")
        return result.state.to_plain()

    def check(recovery: Recovery[Any]) -> None:
        assert recovery.result == recovery.clean
        assert recovery.clean["total"] == 8
        retried.clear()
        fails.clear()

    retried = list[bool]()
    assert crash_everywhere(scenario, check, backend=backend, how=how, limit=20) == 20
    assert crash_everywhere(scenario, check, backend=backend, how=how, times=2, limit=12) == 12


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_cancel_anywhere_in_a_retry_leaves_the_run_resumable(backend: Any):
    async def scenario(attempt: Attempt) -> None:
        app = apps(crawl())
        await failed_once(app, "b", "d")
        await attempt(app.retry_failed, "x")
        try:
            result = await app.retry_failed("x")
        except BadUse:
            result = await app.run(id="x")
        assert result.state["total"] == 8
        assert list(result.state["outs"].values()) == [f"{one}!" for one in "abcd"]

    assert cancel_everywhere(scenario, backend=backend, limit=60) > 20


# -- reopen ----------------------------------------------------------------------------------------


async def test_a_raised_at_most_starts_what_was_left_out_and_what_has_failed():
    store = MemoryStore()
    fails.add("leaf b")
    before = await Application(crawl(at_most=3), store=store).run(STATE, id="x")
    assert list(before.state["outs"]) == ["a", "c"]
    fails.clear()
    ran.clear()
    result = await Application(crawl(at_most=9), store=store).reopen("x")
    assert ran == ["leaf b", "leaf d", "measure b!", "measure d!", "add up"]
    assert result.state == (await apps(crawl()).run(STATE, id="y")).state
    app = Application(crawl(at_most=4), store=store)
    with pytest.raises(BadUse, match="raise at_most= first; a run that has not succeeded"):
        await app.reopen("x")
    assert (await app.run(id="x")).status == "succeeded"


async def test_a_fold_goes_on_but_does_not_take_failures_back():
    def counting(at_most: int) -> Application[Any]:
        def add(state: State, outcome: Outcome) -> State:
            return state.update(n=state["n"] + 1)

        counted = fan_out(
            leaf, over="items", key=str, reduce=add, reads=["n"], writes=["n"],
            at_most=at_most, on_error="collect", name="counted",
        )  # fmt: skip
        return Application(counted, store=store)

    store = MemoryStore()
    fails.add("leaf b")
    assert (await counting(3).run(STATE, id="x")).state["n"] == 4
    fails.clear()
    ran.clear()
    assert (await counting(4).reopen("x")).state["n"] == 5
    assert ran == ["leaf d"]
    with pytest.raises(BadUse, match="reduce has taken that"):
        await counting(4).reopen("x")


async def test_a_frontier_goes_on_where_it_was_cut_off():
    def crawling(at_most: int) -> Application[Any]:
        def more(_: State, outcome: Outcome) -> list[str]:
            return [outcome.element * 2, outcome.element + "-"] if len(outcome.element) < 9 else []

        act = fan_out(leaf, over="items", key=str, into="outs", grow=more, at_most=at_most)
        return Application(act, store=store)

    store = MemoryStore()
    await crawling(2).run({"items": ["a"]}, id="x")
    result = await crawling(7).reopen("x", step="outs")
    whole = await Application(crawling(7).graph).run({"items": ["a"]})
    assert result.state == whole.state
    assert (result.outcomes("outs").done, result.outcomes("outs").left) == (7, 8)


async def test_a_step_is_named_that_is_a_fan_out():
    app = apps(crawl(at_most=4))
    await app.run(STATE, id="x")
    with pytest.raises(BadUse, match=r"no fan-out 'out' of its own \(it has: outs, sizes\); did"):
        await app.reopen("x", step="out")
    with pytest.raises(BadUse, match="'outs' is not completed, or has no failures"):
        await app.reopen("x", step=app.graph.acts[1])
    ran.clear()
    await app.reopen("x", step="sizes")  # which has no limit now, and may have had one
    assert ran == ["add up"]
    with pytest.raises(BadUse, match=r"reopen\(step=\.\.\.\) takes the name of a fan-out, not 3"):
        await app.reopen("x", step=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UnknownRun, match="did you mean 'x'"):
        await app.reopen("xx")
