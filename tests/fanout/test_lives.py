"""What one life of a run leaves for the next: counts, skipped keys, discoveries, old results."""

# pyright: reportUnknownLambdaType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from shoal import (
    Application,
    Context,
    Done,
    Each,
    Graph,
    Limits,
    MemoryStore,
    ParallelAction,
    Retry,
    RunPath,
    SQLiteStore,
    State,
    StoreFailed,
    Task,
    action,
    fan_out,
    first_item,
)
from shoal.errors import BadKey
from shoal.events import Decision, Update
from shoal.stores._protocol import Batch
from shoal.types import Key

from .cut_short import Cancels, Process, two_steps

pytestmark = pytest.mark.anyio


@action(reads=["x"], writes=["y"])
async def work(x: int) -> int:
    await anyio.sleep(1)
    return x


# -- keys that are repeated ------------------------------------------------------------------------


class Tasks(ParallelAction):
    name = "tasks"
    reads = ()
    writes = ("seen",)

    def tasks(self, state: State, inputs: Any) -> Any:
        return [Task(work, {"x": n}, key=n) for n in (1, 2, 2, 3)]

    def reduce(self, state: State, outcome: Any) -> State:
        return state.update(seen=outcome.key)


def elements(over: Callable[[State], Any]) -> Any:
    return fan_out(work, over=over, item="x", key=int, reads=[], into="out", name="elements")


async def numbers() -> AsyncIterator[int]:
    for n in (1, 2, 2, 3):
        yield n


REPEATING = {
    "list": lambda: elements(lambda state: [1, 2, 2, 3]),
    "async": lambda: elements(lambda state: numbers()),
    "tasks": Tasks,
}


@pytest.mark.parametrize("source", REPEATING)
@pytest.mark.parametrize("attempts", [2, 3])
async def test_a_repeated_key_is_refused_in_each_attempt(source: str, attempts: int):
    """The second attempt took the repetition for the element that the first one had pulled."""
    around = fan_out(
        REPEATING[source](), over=lambda state: [0], item="o", key=int, reads=[], into="all",
        each=Each(retry=Retry(attempts, on=Exception, jitter=0)),
    )  # fmt: skip
    with pytest.raises(ExceptionGroup) as raised:
        await Application(around).run({})
    assert raised.group_contains(BadKey, match="an earlier")


# -- at_most ---------------------------------------------------------------------------------------


@action(writes=["out"])
async def own(context: Context) -> list[Key]:
    async with context.fan_out(name="own", store=None) as group:
        group.start_each(work, over=[1, 2], item="x", key=int)
        return sorted([outcome.key async for outcome in group])


AT_MOST: dict[str, tuple[Any, object]] = {
    "fan_out": (
        fan_out(
            work, over=lambda state: [1, 2, 3], item="x", key=int, reads=[], into="out",
            at_most=2, store=None, name="few",
        ),
        {1: 1, 2: 2},
    ),
    "own": (own, [1, 2]),
}  # fmt: skip


@pytest.mark.parametrize("form", AT_MOST)
async def test_a_child_that_is_kept_nowhere_begins_again_within_at_most(form: str):
    """It counts as started, so nobody else may be, and it has to run again itself."""
    act, wanted = AT_MOST[form]
    app = Application(act, store=MemoryStore())
    with anyio.move_on_after(0.5):
        await app.run({}, id="run")
    result = await app.run({}, id="run")
    assert result.state["out"] == wanted
    ledgers = [result.outcomes("few")] if form == "fan_out" else []
    assert [(one.done, one.cancelled) for one in ledgers] == [(2, 0)] * len(ledgers)


# -- skipped keys ----------------------------------------------------------------------------------


@pytest.mark.parametrize("attempts", [1, 2], ids=["another life", "another attempt"])
async def test_a_skipped_key_stays_skipped_where_until_raises_about_it(attempts: int):
    """It was kept as one that is to run when the run is resumed, and its value was overwritten."""
    asked, ran = Counter[object](), Counter[int]()

    @action(reads=["x"], writes=["y"], name="work")
    async def counted(x: int) -> int:
        ran[x] += 1
        return x

    @action(writes=["out"])
    async def prepare() -> dict[int, int]:
        return {1: 70}

    def until(state: State, outcome: Any) -> bool:
        asked[outcome.key] += 1
        if outcome.key == 1 and asked[1] == 1:
            raise ConnectionError
        return False

    step = fan_out(
        counted, over=lambda state: [1, 2], item="x", key=int, reads=[], into="out", until=until
    )
    both = Graph.chain(prepare, step, name="both")
    around = fan_out(
        both, over=lambda state: [0], item="o", key=int, reads=[], into="all", take="out",
        each=Each(retry=Retry(attempts, on=Exception, jitter=0)),
    )  # fmt: skip
    app = Application(around, store=MemoryStore())
    if attempts == 1:
        with pytest.raises(ExceptionGroup):
            await app.run({}, id="run")
    result = await app.run({}, id="run")
    assert result.state["all"] == {0: {1: 70, 2: 2}}
    assert set(ran) == {2}


# -- old results -----------------------------------------------------------------------------------


class Mortal:
    """A store whose process dies behind the save that decides a step, if it is to."""

    def __init__(self, store: MemoryStore, *, dies: bool) -> None:
        self.store, self.dies, self.is_dead = store, dies, False

    def save(self, batch: Batch) -> None:
        if self.is_dead:
            raise OSError("the process is dead")
        self.is_dead = self.dies and batch.decision is not None
        self.store.save(batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


@pytest.mark.parametrize("dies", [False, True], ids=["lives on", "dies behind the decision"])
@pytest.mark.parametrize("ends", ["fails", "is cancelled"])
@pytest.mark.parametrize("keyed", [True, False], ids=["by key", "by position"])
async def test_old_results_are_gone_with_the_decision(ends: str, keyed: bool, dies: bool):
    """They were taken out by an update of their own behind it, which might never have come."""
    store = MemoryStore()

    def make(version: str, *, dies: bool = False) -> Application:
        @action(reads=["x"], writes=["y"], version=version, name="work")
        async def versioned(x: int) -> str:
            if version == "2" and x == 1:
                if ends == "fails":
                    raise ConnectionError
                await anyio.sleep_forever()
            await anyio.sleep(x)
            return f"{x} by {version}"

        def until(state: State, outcome: Any) -> bool:
            return version == "2" and isinstance(outcome, Done) and outcome.element == 2

        step = fan_out(
            versioned, over=lambda state: [3, 1, 2], item="x", key=int if keyed else None,
            into="out", reads=[], until=until, on_error="collect", name="step",
        )  # fmt: skip
        kept: Any = Mortal(store, dies=dies)
        return Application(step, store=kept)

    with anyio.move_on_after(2.5):
        await make("1").run({}, id="run")
    app = make("2", dies=dies)
    if dies:
        with pytest.raises(StoreFailed):
            await app.run({}, id="run")
        app = make("2")
    result = await app.run({}, id="run")
    assert result.state["out"] == ({2: "2 by 2"} if keyed else ["2 by 2"])
    history = await store.read(RunPath(run_id="run", act="app"))
    decided = [isinstance(entry, Decision) for entry in history].index(True)
    assert not any(isinstance(entry, Update) for entry in history[decided:])


# -- what was discovered ---------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["fails", "version"])
@pytest.mark.parametrize("until", [False, True], ids=["", "until raises"])
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_what_a_child_has_discovered_without_keys_counts_once(
    change: str, until: bool, kind: str, tmp_path: Path
):
    """Each life discovered it once more, for nothing tells elements without keys apart."""
    once, path = [until], tmp_path / "runs.db"
    store = MemoryStore() if kind == "memory" else SQLiteStore(path, synchronous="normal")

    def make(life: int) -> Application:
        version = str(life) if change == "version" else "1"

        @action(reads=["x"], writes=["y"], version=version, name="work")
        async def versioned(x: object, context: Context) -> object:
            if x == "rests":
                await context.ask("which nobody answers, so that the step goes on in each life")
            if change == "fails" and x == "from" and life < 3:
                raise ConnectionError
            return x

        def grow(state: State, outcome: Any) -> list[object]:
            if outcome.element == "late":  # it fails in no life, and finds what another one has
                return ["twice"]
            if outcome.element != "from":
                return []
            return ["twice", ["a", "list"], "twice", *(["now"] if life == 3 else [])]

        def decides(state: State, outcome: Any) -> bool:
            if life == 2 and outcome.element == "from" and once[0]:
                once[0] = False
                raise ConnectionError
            return False

        options: dict[str, Any] = {"until": decides} if until else {}
        step = fan_out(
            versioned, over=lambda state: ["rests", "from", "late"], item="x", into="out",
            reads=[], grow=grow, on_error="collect", **options,
        )  # fmt: skip
        return Application(step, store=store)

    found: Any = None
    for life in (1, 2, 3, 4):
        try:
            result = await make(life).run({}, id="run")
        except ConnectionError:
            assert (life, until) == (2, True)
        else:
            assert result.status == "halted"
            found = result.state["out"]
    wanted = ["from", "late", "twice", "twice", "twice", ["a", "list"], "now"]
    assert sorted(map(str, found)) == sorted(map(str, wanted))


# -- rounds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_most", [1, 2, 3])
@pytest.mark.parametrize("attempts", [1, 2])
@pytest.mark.parametrize("source", ["list", "async"])
@pytest.mark.parametrize("stored", [True, False], ids=["store", "no store"])
async def test_at_most_counts_what_all_rounds_of_a_race_have_started(
    at_most: int, attempts: int, source: str, stored: bool
):
    """Each round started as many: those that had broken off in the one before were not counted."""
    ran = Counter[int]()

    @action(reads=["x"], writes=["y"])
    async def tell(x: int) -> Any:
        ran[x] += 1
        await anyio.sleep(x)
        yield "so"
        await anyio.sleep(0.5)
        raise ConnectionError

    async def given() -> AsyncIterator[int]:
        for n in (1, 2, 3, 4):
            yield n

    step = fan_out(
        tell, over=lambda state: given() if source == "async" else [1, 2, 3, 4], item="x", key=int,
        reads=[], into="out", until=first_item(on_break="restart"), at_most=at_most, name="race",
    )  # fmt: skip
    around = fan_out(
        step, over=lambda state: [0], item="o", key=int, reads=[], into="all",
        each=Each(retry=Retry(attempts, on=Exception, jitter=0)),
    )  # fmt: skip
    app = Application(around, store=MemoryStore() if stored else None)
    with pytest.raises(ExceptionGroup):
        await app.run({}, id="run")
    # Those that did not break off take part in each round: of the n-th there are n.
    rounds = {n: n * attempts for n in range(1, at_most + 1)}
    assert ran == rounds
    if stored:
        with pytest.raises(ExceptionGroup):
            await app.run({}, id="run")
        assert set(ran) == set(rounds)


# -- what was under way ----------------------------------------------------------------------------


class Dying:
    """A store whose process dies at its n-th save."""

    def __init__(self, store: MemoryStore, n: int) -> None:
        self.store, self.process = store, Process(n)

    def save(self, batch: Batch) -> None:
        self.process.save()
        self.store.save(batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


inner = fan_out(two_steps, over=lambda state: [1, 2], item="x", reads=[], into="in", take="y")


@action(writes=["in"])
async def starts(context: Context) -> list[object]:
    async with context.fan_out(name="own", limits=Limits(2)) as group:
        group.start_each(two_steps, over=[1, 2], item="x")
        return [outcome.key async for outcome in group]


UNDER_WAY: dict[str, Any] = {
    "fan-out": inner,
    "node": Graph.chain(Graph.chain(inner, name="node"), name="app"),
    "own": starts,
}  # fmt: skip


async def below(store: MemoryStore, path: RunPath) -> list[tuple[RunPath, str | None]]:
    found = list[tuple[RunPath, str | None]]()
    for one in await store.children(path):
        child = RunPath(act=one.act, parent=path, step=one.step, visit=one.visit, key=one.key)
        found += [(child, one.status), *await below(store, child)]
    return found


@pytest.mark.parametrize("form", UNDER_WAY)
@pytest.mark.parametrize("wrapped", [False, True], ids=["in a root run", "in children"])
async def test_nothing_below_a_run_that_has_ended_goes_on(form: str, wrapped: bool):
    """What the next life was cancelled before it came to stayed under way for good."""
    act = UNDER_WAY[form]
    if wrapped:
        act = fan_out(
            act, over=lambda state: [0, 1, 2], item="o", into="all", reads=[], take="in",
            limits=Limits(2), name="outer",
        )  # fmt: skip
    n, died, cancelled = 0, True, 0
    while died:
        n += 3 if wrapped else 1
        kept = MemoryStore()
        mortal: Any = Dying(kept, n)
        try:
            await Application(act, store=mortal, name="app").run({}, id="run")
            died = False
        except StoreFailed:
            pass
        k, ends = 0, False
        while died and not ends:
            k += 5 if wrapped else 2
            store, hook = kept.copy(), Cancels(k)
            with hook.scope:
                await Application(act, store=store, name="app", hooks=[hook]).run({}, id="run")
                ends = True
            if ends:
                break
            root = RunPath(run_id="run", act="app")
            record = await store.load("run")
            assert record is not None
            cancelled += record.status == "cancelled"
            assert record.status in ("cancelled", "succeeded")  # if it was the last event
            assert [path for path, status in await below(store, root) if status is None] == []
            await Application(act, store=store, name="app").run({}, id="run")
    assert cancelled > 5


async def test_what_an_action_does_not_start_again_is_under_way_no_more():
    """Its action succeeded without it, and it stayed under way in a run that has succeeded."""
    store, numbers = MemoryStore(), [1, 2, 3]

    @action(writes=["in"], name="starts")
    async def starts_some(context: Context) -> list[object]:
        async with context.fan_out(name="own", limits=Limits(2)) as group:
            group.start_each(two_steps, over=list(numbers), item="x", key=int)
            return [outcome.key async for outcome in group]

    with pytest.raises(StoreFailed):
        dying: Any = Dying(store, 3)  # behind the first step of two children
        await Application(starts_some, store=dying, name="app").run({}, id="run")
    store, numbers = store.copy(), [2]
    app = Application(starts_some, store=store, name="app")
    result = await app.run({}, id="run")
    assert result.state["in"] == [2]
    found = {
        path.key: status for path, status in await below(store, RunPath(run_id="run", act="app"))
    }
    assert found == {1: "cancelled", 2: "succeeded"}
