"""What a program leaves of a run that refuses it, and what it takes up of a run that doesn't."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from typing import Any

import anyio
import pytest

from shoal import (
    Application,
    Context,
    Done,
    Graph,
    Limits,
    MemoryStore,
    Rate,
    Result,
    RunConflict,
    SQLiteStore,
    State,
    action,
    fan_out,
    first_item,
    race,
)
from shoal._events.identity import RunPath
from shoal.errors import InputChanged
from shoal.events import ChildEnded, ChildRerun
from shoal.stores import StepBegun
from shoal.testing import RecordingHook
from shoal.types import FanOut

pytestmark = pytest.mark.anyio

NS = [1, 2, 3]
slow: set[int] = set()
bad: set[int] = set()
calls: list[str] = []


@pytest.fixture(autouse=True)
def _first_life() -> None:
    slow.clear()
    bad.clear()
    calls.clear()


async def _work(n: int) -> str:
    calls.append(f"work {n}")
    if n in slow:
        await anyio.sleep(3600)
    if n in bad:
        raise OSError(f"{n} is bad")
    return f"work {n}"


async def _more(n: int) -> str:
    if n in bad:
        raise OSError(f"{n} is bad")
    return f"more {n}"


work = action(reads=["n"], writes=["v"], name="work")(_work)
work_2 = action(reads=["n"], writes=["v"], name="work", version="2")(_work)
more = action(reads=["n"], writes=["w"], name="more")(_more)


def put(state: State, outcome: Any) -> State:
    return state.put("sums", outcome.key, outcome.value)


def folding(*steps: Any, over: Any = "ns", limit: int = 3) -> FanOut:
    act = steps[0] if len(steps) == 1 else Graph.chain(*steps, name="page")
    take = "v" if len(steps) == 1 else "w"
    return fan_out(
        act, over=over, item="n", key=str, name="fan", reads=["ns", "sums"], reduce=put,
        writes=["sums"], take=take, limits=Limits(limit),
    )  # fmt: skip


def collecting(take: Any, limit: int = 3) -> FanOut:
    return fan_out(
        Graph.chain(work, more, name="page"), over="ns", item="n", key=str, name="fan",
        into="out", take=take, limits=Limits(limit),
    )  # fmt: skip


def generated(state: State) -> Iterator[int]:
    yield from state["ns"]


def given() -> dict[str, Any]:
    return {"ns": NS, "sums": {}}


async def began(act: Any, store: Any, *, under_way: int) -> None:
    """Have a run end where all children are done but one."""
    slow.add(under_way)
    app = Application(act, store=store, name="app")
    with anyio.move_on_after(1):
        await app.run(given(), id="x")
    slow.clear()
    calls.clear()


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(lambda: folding(work), lambda: folding(work_2, limit=1), id="reduced"),
        pytest.param(lambda: folding(work), lambda: folding(work, more, limit=1), id="step added"),
        pytest.param(lambda: collecting("v"), lambda: collecting("w", limit=1), id="collected"),
    ],
)
async def test_the_former_program_goes_on_after_a_refusal(
    before: Callable[[], Any], after: Callable[[], Any], kind: str, tmp_path: Any
):
    """The child that comes up first is not done, so the changed program could execute it."""
    path = tmp_path / "runs.db"
    store: Any = MemoryStore() if kind == "memory" else SQLiteStore(path, synchronous="normal")
    await began(before(), store, under_way=1)
    kept = await store.read(RunPath(run_id="x"))
    for _ in range(2):
        with pytest.raises(RunConflict):
            await Application(after(), store=store, name="app").run(id="x")
    assert not calls, "what comes up before that is not executed"
    assert await store.read(RunPath(run_id="x")) == kept
    result = await Application(before(), store=store, name="app").run(id="x")
    clean = await Application(before(), name="app").run(given())
    assert result.state == clean.state
    assert calls == ["work 1", "work 1", "work 2", "work 3"], "once, and each of the clean run"


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_the_former_program_goes_on_after_a_refusal_that_came_late(kind: str, tmp_path: Any):
    """Elements of a generator are not known before they come up; and one failed before that."""
    path = tmp_path / "runs.db"
    store: Any = MemoryStore() if kind == "memory" else SQLiteStore(path, synchronous="normal")
    root = RunPath(run_id="x")

    def before() -> FanOut:
        return folding(work, over=generated)

    def after() -> FanOut:
        return folding(work, more, over=generated, limit=1)

    await began(before(), store, under_way=1)
    bad.add(1)
    with pytest.raises(ExceptionGroup, match="a child of fan-out"):
        await Application(after(), store=store, name="app").run(id="x")
    bad.clear()
    said = [one.declared["take"] for one in await store.read(root) if isinstance(one, StepBegun)]
    assert said == ["v", "w"]
    result = await Application(before(), store=store, name="app").run(id="x")
    assert dict(result.state["sums"]) == {f"{n}": f"work {n}" for n in NS}


async def test_neither_program_goes_on_where_both_have_had_results_reduced():
    """What a generator brings is not known before: a fork is what remains, as the error says."""
    store = MemoryStore()
    await began(folding(work, over=generated), store, under_way=1)
    changed = Application(folding(work_2, over=generated, limit=1), store=store, name="app")
    former = Application(folding(work, over=generated), store=store, name="app")
    for app, key in ((changed, "2"), (former, "1"), (changed, "2")):
        with pytest.raises(InputChanged, match=rf"key '{key}' .*fork\('x', number=0\)"):
            await app.run(id="x")
    forked = await changed.fork("x", number=0)
    assert dict(forked.state["sums"]) == {f"{n}": f"work {n}" for n in NS}


async def test_neither_program_goes_on_where_each_has_begun_the_fan_out_of_another_child():
    """A child that waits for answers is compared when it has them: a fork is what remains."""

    async def ask(n: int, context: Context) -> str:
        if n % 10 == 1:
            return await context.ask("ok?")
        return f"work {n}"

    def tens(state: State) -> list[int]:
        return [state["m"] * 10 + n for n in NS]

    def outer(begins: int = 2, **options: Any) -> Application[Any]:
        asks = action(reads=["n"], writes=["v"], name="asks")(ask)
        inner = fan_out(
            asks, over=tens, item="n", key=str, name="fan", reads=["m", "sums"], **options
        )
        around = fan_out(
            inner, over="ms", item="m", key=str, name="outer", reads=["sums"], into="all",
            take="sums", limits=Limits(1), at_most=begins,
        )  # fmt: skip
        return Application(around, store=store, name="app")

    store = MemoryStore()
    collects: dict[str, Any] = {"into": "sums", "take": "v"}
    folds: dict[str, Any] = {"reduce": put, "writes": ["sums"], "take": "v"}
    state: dict[str, Any] = {"ms": [1, 2], "sums": {}}
    await outer(1, **collects).run(state, id="x")
    waits = await outer(**folds).run(id="x")
    assert [str(one.path.key) for one in waits.questions] == ["11", "21"]
    answers = {one.address: "yes" for one in waits.questions}
    with pytest.raises(RunConflict, match=r"went into 'sums' by key, and go to reduce= now"):
        await outer(**folds).run(id="x", answers=answers)
    with pytest.raises(RunConflict, match=r"went to reduce=, and go into 'sums'.*number=0"):
        await outer(**collects).run(id="x")
    forked = await outer(**folds).fork("x", number=0)
    assert forked.status == "halted", "it begins from the start"


RESULTS_GO: dict[str, dict[str, Any]] = {
    "into= by key": {"into": "sums"},
    "to reduce=": {"reduce": put, "writes": ["sums"]},
    "nowhere": {},
}


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("after", RESULTS_GO)
@pytest.mark.parametrize("before", ["to reduce=", "nowhere"])
async def test_a_fan_out_that_has_applied_nothing_may_put_results_elsewhere(
    before: str, after: str, kind: str, tmp_path: Any
):
    """It is begun, for a child of it has failed; `into=` would have begun its collection."""
    path = tmp_path / "runs.db"
    store: Any = MemoryStore() if kind == "memory" else SQLiteStore(path, synchronous="normal")

    def program(goes: str, **options: Any) -> Application[Any]:
        given: dict[str, Any] = {"key": str, "take": "v", **RESULTS_GO[goes]}
        act = fan_out(work, over="ns", item="n", name="fan", reads=["ns", "sums"], **given)
        return Application(act, name="app", **options)

    bad.update(NS)
    with pytest.raises(ExceptionGroup):
        await program(before, store=store).run(given(), id="x")
    bad.clear()
    entries = await store.read(RunPath(run_id="x"))
    assert [type(one) for one in entries] == [StepBegun]
    result = await program(after, store=store).run(id="x")
    clean = await program(after).run(given())
    assert result.state == clean.state
    again = await program(after, store=store).run(id="x")
    assert again.state == clean.state


@pytest.mark.parametrize("on_break", ["fail", "restart"])
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_stream_that_has_decided_is_not_lost_with_its_act(
    kind: str, on_break: Any, tmp_path: Any
):
    """It has given its first item, and waits for an answer; the act is renamed meanwhile."""
    path = tmp_path / "runs.db"
    store: Any = MemoryStore() if kind == "memory" else SQLiteStore(path, synchronous="normal")

    def program(*names: str) -> Application[Any]:
        async def tell(n: int, context: Context) -> AsyncIterator[Any]:
            yield f"item {n}"
            yield Result(await context.ask("ok?"))

        acts = [action(reads=["n"], writes=["v"], name=name)(tell) for name in names]
        until = first_item(on_break=on_break)
        act = race(*acts, into="out", until=until, name="race", limits=Limits(1))
        return Application(act, store=store, name="app")

    waits = await program("a", "b").run({"n": 1}, id="x")
    answers = {one.address: "yes" for one in waits.questions}
    for _ in range(2):
        with pytest.raises(
            RunConflict, match=r"decided by the first item of 'a', .* 'c', 'b' \(if"
        ):
            await program("c", "b").run(id="x", answers=answers)
    result = await program("b", "a").run(id="x", answers=answers)
    assert result.state["out"] == "yes"


async def test_an_element_that_comes_up_no_more_does_not_refuse_another_version():
    """As where the source leaves out what is done; so does a generator, which can't be seen."""
    store = MemoryStore()
    await began(folding(work), store, under_way=1)

    def rest(_: State) -> list[int]:
        return [1]

    changed = Application(folding(work_2, over=rest), store=store, name="app")
    result = await changed.run(id="x")
    assert set(result.state["sums"]) == {"1", "2", "3"}
    assert calls == ["work 1"]


async def test_children_of_an_act_that_is_gone_take_no_place_of_at_most():
    def pages(*names: str) -> FanOut:
        acts = [work.bind(name=name, n=n) for n, name in enumerate(names, 1)]
        return fan_out(acts, into="out", take="v", name="fan", at_most=1)

    @action(writes=["v"], name="work")
    async def work(n: int) -> str:
        return await _work(n)

    store = MemoryStore()
    bad.add(1)
    with suppress(ExceptionGroup):
        await Application(pages("a", "b"), store=store, name="app").run({}, id="x")
    bad.clear()
    result = await Application(pages("c", "d"), store=store, name="app").run(id="x")
    clean = await Application(pages("c", "d"), name="app").run({})
    assert result.state == clean.state
    assert dict(result.state["out"]) == {"c": "work 1"}


async def test_a_void_history_is_published_though_the_child_is_cancelled_before_it_starts():
    """Else a hook that counts what is done would count what it has done below it twice."""

    def application(act: Any, hook: RecordingHook) -> Application[Any]:
        inner = fan_out(act, over="ns", item="n", key=str, into="out", take="v", name="inner")
        outer = fan_out(
            Graph.chain(inner, name="both"), over="names", item="name", key=str, into="all",
            take="out", limits=Limits(rate=Rate(2)), name="outer", reads=["ns", "names"],
        )  # fmt: skip
        return Application(outer, store=store, hooks=[hook], name="app")

    store, hooks = MemoryStore(), [RecordingHook() for _ in range(3)]
    slow.update([3])
    with anyio.move_on_after(1):
        await application(work, hooks[0]).run({"names": ["a", "b"], "ns": NS}, id="x")
    assert sum(_is_done(event) for event in hooks[0].events) == 4
    with anyio.move_on_after(0.25):  # b waits for its turn
        await application(work_2, hooks[1]).run(id="x")
    slow.clear()
    await application(work_2, hooks[2]).run(id="x")
    received = [
        [event.child.key for event in hook.events if isinstance(event, ChildRerun)]
        for hook in hooks
    ]
    assert received == [[], ["a", "b"], []]
    for hook in hooks:
        hook.assert_paired()


def _is_done(event: Any) -> bool:
    return isinstance(event, ChildEnded) and isinstance(event.outcome, Done)
