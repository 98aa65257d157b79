"""Children that are at work whenever a process dies: who is condemned, and who isn't."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from shoal import (
    Application,
    Context,
    Each,
    Failed,
    Graph,
    Limits,
    MemoryStore,
    Retry,
    RunPath,
    Runtime,
    SQLiteStore,
    action,
    fan_out,
    race,
)
from shoal._engine.crash_suspects import CrashSuspects
from shoal.errors import DefinitionError, Poisoned
from shoal.stores import Batch
from shoal.testing import RecordingHook, no_leaks

pytestmark = pytest.mark.anyio

ran = Counter[str]()
kills = set[str]()
killed = list[anyio.Event]()


@pytest.fixture(autouse=True)
def all_is_well() -> None:
    ran.clear()
    kills.clear()


async def work(name: str) -> None:
    """Take the process down, if this is one that does; at a moment when others are at work."""
    ran[name] += 1
    await anyio.sleep(1)
    if name in kills:
        killed[0].set()
        await anyio.sleep_forever()
    await anyio.sleep(1)


@action(reads=["item"], writes=["out"])
async def leaf(item: str) -> str:
    await work(item)
    return item.upper()


@action(reads=["out"], writes=["end"])
async def last(out: str) -> str:
    await work(f"last {out}")
    return out


def mapped(act: Any = leaf, **more: Any) -> Any:
    given: dict[str, Any] = {"into": "outs", "take": "out", "on_error": "collect", **more}
    return fan_out(act, over="items", item="item", key=str, errors_into="bad", **given)


async def one_life(store: Any, app: Application[Any], items: Any, **options: Any) -> Any:
    """Run it until it has ended, or its process has died; then return None."""
    killed[:] = [anyio.Event()]
    result: Any = None
    async with Runtime(store=store, **options) as runtime, anyio.create_task_group() as tasks:

        async def run() -> None:
            nonlocal result
            try:
                result = await app.run({"items": items}, id="x", runtime=runtime)
            except Exception as error:
                result = error
            tasks.cancel_scope.cancel()

        async def die() -> None:
            await killed[0].wait()
            store.left = store.copy()
            tasks.cancel_scope.cancel()

        tasks.start_soon(run)
        tasks.start_soon(die)
    return result


class Kept:
    """Lives, one after the other, of what is kept in memory."""

    def __init__(self, act: Any, items: Any, **options: Any) -> None:
        self.app: Application[Any] = Application(act, name="app", hooks=options.pop("hooks", ()))
        self.items = items
        self.options = options
        self.store: Any = MemoryStore()
        self.lives = 0

    async def live(self) -> Any:
        """Return what it comes to in the next life; None if that dies."""
        self.lives += 1
        result = await one_life(self.store, self.app, self.items, **self.options)
        if result is None:
            self.store = self.store.left
        return result

    async def live_on(self, at_most: int = 20) -> Any:
        while self.lives < at_most:
            result = await self.live()
            if result is not None:
                return result
        raise AssertionError("it never ends")


async def test_what_kills_is_condemned_and_all_others_end():
    kills.add("b")
    lives = Kept(mapped(), ["a", "b", "c", "d"])
    result = await lives.live_on()
    assert lives.lives == 5, "the first is not counted, three are, and then it ends"
    assert result.state["outs"] == {"a": "A", "c": "C", "d": "D"}
    assert list(result.state["bad"]) == ["b"]
    (outcome,) = result.outcomes("outs")
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, Poisoned)
    assert outcome.error.crashes == 3
    assert ran["b"] == 4
    message = str(outcome.error)
    assert "key 'b' of 'outs' (run " in message
    assert (
        "which executes 'leaf') was at work in 3 executions in a row whose process died" in message
    )
    assert "(4 crashes in all)" in message
    assert "retry_failed('x')" in message


async def test_nobody_else_of_many_is_condemned():
    kills.update(["7", "13"])
    lives = Kept(mapped(limits=Limits(10)), [str(number) for number in range(20)])
    result = await lives.live_on()
    assert sorted(result.state["bad"]) == ["13", "7"]


@pytest.mark.parametrize("most", [1, 2, 5])
async def test_how_many_crashes_are_allowed(most: int):
    kills.add("b")
    lives = Kept(mapped(), ["b"], max_crashes=most)
    result = await lives.live_on()
    assert lives.lives == most + 2
    assert list(result.state["bad"]) == ["b"]


async def test_the_first_life_and_one_that_resumes_after_no_crash_count_nobody():
    store: Any = MemoryStore()
    app = Application(mapped(), name="app")
    for _ in range(2):
        with anyio.move_on_after(0.5):
            async with Runtime(store=store) as runtime:
                await app.run({"items": ["a"]}, id="x", runtime=runtime)
        assert {one.crashes for one in await store.children(path_of(app))} <= {0}


def path_of(app: Application[Any]) -> RunPath:
    return RunPath(run_id="x", act=app.name)


async def test_a_child_that_gets_further_is_acquitted():
    """Each life dies in another step of the same child: none three times in a row."""
    steps = Graph.chain(leaf, last, name="steps")
    lives = Kept(mapped(steps, take="end"), ["a"])
    for kill in ["a", "a", "a", "last A", "last A"]:
        kills.clear()
        kills.add(kill)
        assert await lives.live() is None
    kills.clear()
    result = await lives.live()
    assert result.state["outs"] == {"a": "A"}


async def test_a_child_that_ends_otherwise_is_acquitted():
    """A run that was cancelled, and then is killed, begins to count anew."""
    lives = Kept(mapped(), ["a"])
    kills.add("a")
    for _ in range(3):
        assert await lives.live() is None
    kills.clear()
    with anyio.move_on_after(0.5):
        await one_life(lives.store, lives.app, ["a"])
    kills.add("a")
    for _ in range(3):
        assert await lives.live() is None
    kills.clear()
    assert (await lives.live()).state["outs"] == {"a": "A"}


async def test_it_stays_condemned_though_others_kill_too():
    kills.add("a")
    lives = Kept(mapped(), ["a", "b"])
    for _ in range(4):
        assert await lives.live() is None
    before = ran["a"]
    kills.add("b")
    result = await lives.live_on()
    assert sorted(result.state["bad"]) == ["a", "b"]
    assert ran["a"] == before


async def test_once_it_is_set_right_it_can_be_tried_again():
    kills.add("b")
    lives = Kept(mapped(), ["a", "b"])
    await lives.live_on()
    kills.clear()
    async with Runtime(store=lives.store) as runtime:
        result = await lives.app.retry_failed("x", runtime=runtime)
    assert result.state["outs"] == {"a": "A", "b": "B"}


async def test_where_failures_are_not_collected_the_run_fails_and_its_resume_tries_again():
    kills.add("b")
    act = fan_out(leaf, over="items", item="item", key=str, into="outs")
    lives = Kept(act, ["a", "b"])
    error: Any = await lives.live_on()
    assert [type(one) for one in error.exceptions] == [Poisoned]
    kills.clear()
    assert (await lives.live()).state["outs"] == {"a": "A", "b": "B"}


async def test_it_is_not_retried():
    kills.add("b")
    hook = RecordingHook()
    each = Each(retry=Retry(3, on=Exception))
    lives = Kept(mapped(each=each), ["b"], hooks=[hook])
    result = await lives.live_on()
    (outcome,) = result.outcomes("outs")
    assert outcome.attempts == 1
    hook.assert_paired()


# -- who is to blame -------------------------------------------------------------------------------


async def test_below_another_fan_out_only_the_one_that_kills_is_condemned():
    kills.add("b2")
    inner = mapped(into="inner", name="inner")
    act = fan_out(
        Graph.chain(inner, name="each"),
        over="groups",
        item="items",
        key=lambda items: items[0],
        into="all",
        take="inner",
    )
    app = Application(act, name="app")
    store: Any = MemoryStore()
    groups = [["a1", "a2"], ["b1", "b2", "b3"]]
    result: Any = None
    while result is None:
        result = await one_life_of(store, app, {"groups": groups})
        store = store.left if result is None else store
    assert result.state["all"]["b1"] == {"b1": "B1", "b3": "B3"}
    assert result.state["all"]["a1"] == {"a1": "A1", "a2": "A2"}


async def one_life_of(store: Any, app: Application[Any], state: Any) -> Any:
    class Given:
        async def run(self, _: Any, **more: Any) -> Any:
            return await app.run(state, **more)

    given: Any = Given()
    return await one_life(store, given, None)


@action(reads=["item"], writes=["out"])
async def starts_its_own(item: str, context: Context) -> Any:
    await work(f"before {item}")
    async with context.fan_out(name="own") as group:
        for name in "xy":
            group.start(leaf, {"item": item + name}, key=name)
        found = [type(outcome).__name__ async for outcome in group]
    await work(f"after {item}")
    return found


async def test_below_an_action_s_own_fan_out_its_children_are_to_blame():
    kills.add("by")
    lives = Kept(mapped(starts_its_own, limits=Limits(2)), ["a", "b"])
    result = await lives.live_on()
    assert lives.lives == 5
    assert result.state["outs"]["a"] == ["Done", "Done"]
    assert sorted(result.state["outs"]["b"]) == ["Done", "Failed"]


async def test_an_action_that_kills_before_its_own_fan_out_is_to_blame():
    kills.add("before b")
    lives = Kept(mapped(starts_its_own), ["a", "b"])
    result = await lives.live_on()
    assert list(result.state["bad"]) == ["b"]


class Elsewhere:
    """A store of children's own, which dies with the one of their root run."""

    def __init__(self) -> None:
        self.store = self.left = MemoryStore()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


class Pair:
    """A store and that of some children: what is left is what both had when the process died."""

    def __init__(self, store: MemoryStore, elsewhere: Elsewhere) -> None:
        self.store, self.elsewhere = store, elsewhere
        elsewhere.store = elsewhere.left

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    def copy(self) -> Pair:
        store, kept = self.store.copy(), self.elsewhere.store
        self.elsewhere.left = kept.copy()
        pair = Pair(store, self.elsewhere)
        self.elsewhere.store = kept  # this life's, until its end
        return pair


elsewhere = list[Elsewhere]()


@action(reads=["item"], writes=["out"])
async def fail(item: str) -> str:
    ran[item] += 1
    raise LookupError(item)


@action(reads=["items"], writes=["inner"])
async def starts_elsewhere(items: Any, context: Context) -> None:
    kept: Any = elsewhere[0]
    async with context.fan_out(name="own", store=kept) as group:
        group.start(fail, {"item": items}, key=items)
        async for outcome in group:
            assert isinstance(outcome, Failed)
            raise outcome.error


@pytest.mark.parametrize("form", ["fan-out", "own"])
@pytest.mark.parametrize("attempts", [1, 4])
async def test_in_a_store_of_its_own_an_ended_child_is_acquitted(form: str, attempts: int):
    """Its parent is kept nowhere, so its count stayed there: also attempts counted as crashes."""
    kept: Any = Elsewhere()
    elsewhere[:] = [kept]
    inner: Any = starts_elsewhere
    if form == "fan-out":
        inner = fan_out(
            fail, over=lambda state: [state["items"]], item="item", key=str, reads=["items"],
            into="inner", store=kept,
        )  # fmt: skip
    each = Each(retry=Retry(attempts, on=Exception, initial=0.01, jitter=0))
    outer: Any = fan_out(
        inner, over=lambda state: items_and_a_crash(), item="items", key=str, reads=[],
        into="outs", take="inner", store=None, each=each, on_error="collect", errors_into="bad",
    )  # fmt: skip
    lives = Kept(outer, [])
    lives.store = Pair(MemoryStore(), kept)
    kills.add("end")
    for _ in range(5):
        assert await lives.live() is None
    kills.clear()
    result = await lives.live()
    (outcome,) = result.outcomes("outs")
    (error,) = leaves(outcome.error)
    assert isinstance(error, LookupError)
    assert ran["a"] == 6 * attempts


async def items_and_a_crash() -> AsyncIterator[str]:
    """Give one element, and take the process down in the source, which is nobody's fault."""
    yield "a"
    await work("end")


def leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from leaves(inner)
    else:
        yield error


async def test_a_graph_as_a_node_fails_bare():
    kills.add("a")

    @action(reads=["items"], writes=["item"])
    async def choose(items: Any) -> Any:
        return items

    graph = Graph.chain(choose, Graph.chain(leaf, name="node"), name="outer")
    lives = Kept(graph, "a")
    error = await lives.live_on()
    assert isinstance(error, Poisoned)
    assert "of 'node'" in str(error)
    assert lives.lives == 5


async def test_in_a_race_it_only_loses():
    kills.add("bad")

    @action(reads=["items"], writes=["out"])
    async def bad(items: Any) -> Any:
        await work("bad")
        return "bad"

    @action(reads=["items"], writes=["out"])
    async def slow(items: Any) -> Any:
        await anyio.sleep(60)
        return "slow"

    lives = Kept(race(bad, slow, into="out"), [])
    result = await lives.live_on()
    assert result.state["out"] == "slow"
    assert lives.lives == 5


async def test_last_chances_are_had_one_after_the_other():
    kills.add("a")
    lives = Kept(mapped(), ["a", "b", "c"])
    for _ in range(3):
        assert await lives.live() is None
    kills.clear()
    async with no_leaks():
        began = anyio.current_time()
        await lives.live()
        assert anyio.current_time() - began == pytest.approx(6), "each takes 2"


class Slow:
    """A store whose saves take their time."""

    def __init__(self, kept: MemoryStore) -> None:
        self._kept: Any = kept

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kept, name)

    async def save(self, batch: Batch) -> None:
        await anyio.sleep(0.1)
        self._kept.save(batch)


async def test_a_child_that_waits_for_a_turn_holds_no_slot():
    """While it is saved that the first is at work, the second has got the only slot."""
    kills.add("a")
    lives = Kept(mapped(), ["a", "b"], limits=Limits(1))
    for _ in range(3):
        assert await lives.live() is None
    kills.clear()
    lives.store = Slow(lives.store)
    async with no_leaks():
        result = await lives.live()
    assert result.state["outs"] == {"a": "A", "b": "B"}


async def test_a_suspect_that_waits_for_its_turn_holds_no_place():
    """The child that is at work fails once, and its next attempt needs the only place in flight."""
    fails = set[str]()

    @action(reads=["item"], writes=["out"], retry=Retry(2, on=ConnectionError, initial=1))
    async def flaky(item: str) -> str:
        await work(item)
        if item in fails:
            fails.remove(item)
            raise ConnectionError(item)
        return item.upper()

    kills.add("a")
    lives = Kept(mapped(flaky), ["a", "b"])
    for _ in range(3):
        assert await lives.live() is None
    kills.clear()
    fails.add("a")
    lives.app = Application(mapped(flaky, limits=Limits(1)), name="app")
    async with no_leaks():
        result = await lives.live()
    assert result.state["outs"] == {"a": "A", "b": "B"}


async def test_a_child_that_waits_for_a_last_chance_may_be_cancelled():
    kills.add("a")
    lives = Kept(mapped(), ["a", "b", "c"])
    for _ in range(3):
        assert await lives.live() is None
    kills.clear()
    with anyio.move_on_after(3):
        await one_life(lives.store, lives.app, lives.items)
    result = await lives.live()
    assert result.state["outs"] == {"a": "A", "b": "B", "c": "C"}


async def test_a_last_chance_waits_for_all_others_and_they_for_it():
    suspects, order = CrashSuspects(3), list[str]()

    async def be_at_work(name: str, crashes: int) -> None:
        child = object()
        await suspects.wait_turn(child, crashes)
        order.append(f"{name} begins")
        await anyio.sleep(1)
        order.append(f"{name} ends")
        suspects.leave(child)
        suspects.leave(child)  # again is no error, and nobody else's end

    async with anyio.create_task_group() as tasks:
        for name, crashes in (("a", 0), ("b", 1), ("last", 2), ("other", 2)):
            tasks.start_soon(be_at_work, name, crashes)
            await anyio.sleep(0.1)
        await anyio.sleep(1)
        tasks.start_soon(be_at_work, "c", 0)
    first = ["a begins", "b begins", "a ends", "b ends"]
    assert order[:4] == first
    pairs = [tuple(order[at : at + 2]) for at in range(4, 10, 2)]
    assert sorted(pairs) == [(f"{name} begins", f"{name} ends") for name in ("c", "last", "other")]


# -- where it is kept ------------------------------------------------------------------------------


class Mortal:
    """A store in a file whose process may die: then it saves nothing more, nor gives back."""

    def __init__(self, path: Path) -> None:
        self._file: Any = SQLiteStore(path, synchronous="normal")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def copy(self) -> None:
        pass

    def save(self, batch: Batch) -> Any:
        return None if killed[0].is_set() else self._file.save(batch)

    async def release(self, run_id: str, holder: str) -> None:
        if killed[0].is_set():
            await self._file._writer.ask(be_gone)
            self._file._claims.pop((run_id, holder)).end()
            await self._file._leave()
        else:
            await self._file.release(run_id, holder)


def be_gone(database: Any) -> None:
    database._sql.execute("UPDATE claims SET pid = 1, started = '1'")
    database._claims.clear()


async def test_in_a_file(tmp_path: Path):
    kills.add("b")
    app = Application(mapped(), name="app")
    result: Any = None
    lives = 0
    while result is None:
        lives += 1
        result = await one_life(Mortal(tmp_path / "runs.db"), app, ["a", "b", "c"])
    assert lives == 5
    assert result.state["outs"] == {"a": "A", "c": "C"}
    (outcome,) = result.outcomes("outs")
    assert outcome.error.crashes == 3
    store = SQLiteStore(tmp_path / "runs.db")
    again: Any = await Application(mapped(), name="app", store=store).run(id="x")
    (read,) = again.outcomes("outs")
    assert isinstance(read.error, Poisoned)
    assert str(read.error) == str(outcome.error)


@pytest.mark.parametrize("most", [0, -1, 1.5, True, None])
def test_what_is_no_number_of_crashes_is_refused(most: Any):
    with pytest.raises(DefinitionError, match=r"Runtime\(max_crashes=...\) takes a whole number"):
        Runtime(max_crashes=most)
