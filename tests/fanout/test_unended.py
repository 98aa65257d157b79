"""What no execution has come to again is not kept as if it went on, wherever it is kept."""

# pyright: reportUnknownLambdaType=false, reportUnknownMemberType=false
# pyright: reportUnknownArgumentType=false, reportUnknownVariableType=false

from __future__ import annotations

from typing import Any

import pytest

from shoal import (
    INHERIT,
    Application,
    Context,
    Graph,
    Hook,
    Limits,
    MemoryStore,
    ParallelAction,
    RunPath,
    State,
    StoreFailed,
    Task,
    action,
    fan_out,
    first,
)
from shoal.stores._protocol import Batch
from tests.sweeps import EVERYWHERE

from .cut_short import Cancels, Process, begin, go_on, two_steps

pytestmark = pytest.mark.anyio


MANY = 1_000_000


class Kept:
    """A store of a process, which keeps what it had when that died."""

    def __init__(self) -> None:
        self.begin(MemoryStore(), Process(MANY))

    def begin(self, store: MemoryStore, process: Process) -> None:
        self.store, self.process, self.claimed = store.copy(), process, False

    async def claim(self, run_id: str, holder: str) -> bool:
        self.claimed = True
        return await self.store.claim(run_id, holder)

    def save(self, batch: Batch) -> None:
        self.process.save()
        self.store.save(batch)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


in_a_node = Graph.chain(Graph.chain(begin, go_on, name="node"), name="with a node")


def mapped(store: Any, act: Any = two_steps, **more: Any) -> Any:
    given: dict[str, Any] = {"into": "in", "take": "y", "limits": Limits(2), **more}
    return fan_out(act, over=lambda state: [1, 2], item="x", reads=[], store=store, **given)


def by_class(store: Any) -> Any:
    class Tasks(ParallelAction):
        name = "tasks"
        reads = ()
        writes = ("in",)

        def tasks(self, state: State, inputs: Any) -> Any:
            return [Task(two_steps, {"x": n}, key=n) for n in (1, 2)]

        def reduce(self, state: State, outcome: Any) -> State:
            return state.put("in", outcome.key, outcome.value)

    tasks = Tasks()
    tasks.store = store
    return tasks


def starts(store: Any) -> Any:
    @action(writes=["in"])
    async def own(context: Context) -> list[object]:
        async with context.fan_out(name="own", store=store, limits=Limits(2)) as group:
            group.start_each(two_steps, over=[1, 2], item="x")
            return [outcome.key async for outcome in group]

    return own


FORMS: dict[str, Any] = {
    "fan-out": mapped,
    "with nodes": lambda store: mapped(store, in_a_node),
    "in a node": lambda store: Graph.chain(Graph.chain(mapped(store), name="node"), name="app"),
    "class": by_class,
    "own": starts,
}


def around(act: Any, **more: Any) -> Any:
    return fan_out(
        act, over=lambda state: [0, 1, 2], item="o", into="all", reads=[], take="in",
        limits=Limits(2), name="outer", **more,
    )  # fmt: skip


async def kept_below(path: RunPath, *stores: Any) -> dict[RunPath, str | None]:
    """Say how all below a run have ended: of each child, as the store of its parent says it."""
    found = dict[RunPath, str | None]()
    for store in stores:
        for one in await store.children(path):
            child = RunPath(act=one.act, parent=path, step=one.step, visit=one.visit, key=one.key)
            found[child] = found.get(child) or one.status
    for child in list(found):
        found |= await kept_below(child, *stores)
    return found


ROOT = RunPath(run_id="run", act="app")


class Lives:
    """Lives of one run whose children have stores of their own."""

    def __init__(self, form: str, where: str) -> None:
        self.main, self.own, self.outer = self.stores = Kept(), Kept(), Kept()
        own: Any = self.own
        act = FORMS[form](own)
        if where != "root":
            act = around(act, **({"store": self.outer} if where == "children elsewhere" else {}))
        self.act = act

    async def live(self, kept: Any, *, saves: int = MANY, hook: Hook | None = None) -> list[Any]:
        """Go on with what is kept until the n-th save, and return what is kept then."""
        process = Process(saves)
        for store, before in zip(self.stores, kept, strict=True):
            store.begin(before, process)
        main: Any = self.main
        app = Application(self.act, store=main, name="app", hooks=[hook] if hook else ())
        try:
            await app.run({}, id="run")
        finally:
            left = [one.store for one in self.stores]
        return left


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("where", ["root", "children", "children elsewhere"])
async def test_in_a_store_of_its_own_nothing_goes_on_below_a_run_that_has_ended(
    form: str, where: str
):
    """The store of the parent knows nothing of a child that has only begun, so nobody ended it."""
    lives, nothing = Lives(form, where), [MemoryStore() for _ in range(3)]
    step, cancelled, n = 1 if where == "root" else (4 if EVERYWHERE else 7), 0, 0
    while True:
        n += step
        try:
            await lives.live(nothing, saves=n)
            break
        except StoreFailed:
            left = [one.store for one in lives.stores]
        k, ends = 0, False
        while not ends:
            k += 2 * step
            hook = Cancels(k)
            with hook.scope:
                await lives.live(left, hook=hook)
                ends = True
            record = await lives.main.load("run")
            assert record is not None
            cancelled += record.status == "cancelled"
            # What an action starts by itself is known, with its store, when it is executed.
            reached = lives.stores if form != "own" or lives.own.claimed else lives.stores[::2]
            found = await kept_below(ROOT, *reached)
            assert [path for path, status in found.items() if status is None] == []
            await lives.live([one.store for one in lives.stores])
    assert cancelled > 2


@pytest.mark.parametrize("until", ["all", "first"])
@pytest.mark.parametrize("form", FORMS)
async def test_nothing_goes_on_below_a_child_that_had_ended_in_an_earlier_execution(
    form: str, until: str
):
    """A child that goes on is known to have ended, until it saves anything itself."""
    more = {"until": first()} if until == "first" else {}
    act, under_way = around(FORMS[form](INHERIT), **more), 0
    # trio runs its tasks in a random order, so other moments follow until a child was under way.
    for events in (6, 9, 13, *range(3, 30)):
        if under_way and events not in (6, 9, 13):
            break
        kept = MemoryStore()
        hook = Cancels(events)
        with hook.scope:
            await Application(act, store=kept, name="app", hooks=[hook]).run({}, id="run")
        for n in range(1, 10):
            dies = Kept()
            dies.begin(kept, Process(n))
            mortal: Any = dies
            try:
                await Application(act, store=mortal, name="app").run({}, id="run")
                break
            except StoreFailed:
                pass
            under_way += None in (await kept_below(ROOT, dies.store)).values()
            for k in (1, 6):
                store, hook = dies.store.copy(), Cancels(k)
                app = Application(act, store=store, name="app", hooks=[hook])
                with hook.scope:
                    await app.run({}, id="run")
                found = await kept_below(ROOT, store)
                assert [path for path, status in found.items() if status is None] == []
                await Application(act, store=store, name="app").run({}, id="run")
                found = await kept_below(ROOT, store)
                assert [path for path, status in found.items() if status is None] == []
    assert under_way
