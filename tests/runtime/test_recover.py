"""What dead processes have left: found, and resumed by one of those that look for it."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import anyio
import pytest

from shoal import (
    Application,
    MemoryStore,
    RunClaimed,
    Runtime,
    SQLiteStore,
    StoreFailed,
    action,
    fan_out,
)
from shoal.errors import BadUse, DefinitionError, MissingInput, NoApplication
from shoal.stores import Batch, Orphan
from shoal.testing import no_leaks
from shoal.types import Recovered

pytestmark = pytest.mark.anyio

ran = list[str]()
fails = set[str]()


@pytest.fixture(autouse=True)
def all_is_well() -> None:
    ran.clear()
    fails.clear()


@action(reads=["item"], writes=["out"])
async def leaf(item: str) -> str:
    ran.append(item)
    await anyio.sleep(1)
    if item in fails:
        raise ValueError(item)
    return item.upper()


def application(**options: Any) -> Application[Any]:
    act = fan_out(leaf, over="items", item="item", key=str, into="outs")
    given: dict[str, Any] = {"name": "app", **options}
    return Application(act, **given)


async def left_behind(*ids: str, app: Application[Any] | None = None) -> MemoryStore:
    """Return what is found after a process has died that ran these, when they had begun."""
    store = found = MemoryStore()
    app = application() if app is None else app
    async with Runtime(store=store) as runtime, anyio.create_task_group() as tasks:
        for run_id in ids:
            tasks.start_soon(lambda one=run_id: app.run({"items": [one]}, id=one, runtime=runtime))
        await anyio.sleep(0.5)
        found = store.copy()
        tasks.cancel_scope.cancel()
    ran.clear()
    return found


def by_id(recovered: Any) -> dict[str, Recovered]:
    return {one.run_id: one for one in recovered}


async def test_what_a_dead_process_left_is_resumed():
    store = await left_behind("a", "b")
    assert sorted(await store.orphans()) == [
        Orphan(each, "app", "1", priority="normal") for each in ("a", "b")
    ]
    async with no_leaks(), Runtime(apps=[application()], store=store) as runtime:
        began = anyio.current_time()
        found = by_id(await runtime.recover())
        assert anyio.current_time() - began == pytest.approx(1), "both at once"
        assert await runtime.recover() == []
    assert sorted(ran) == ["a", "b"]
    assert {run_id: one.result.state["outs"] for run_id, one in found.items()} == {
        "a": {"a": "A"},
        "b": {"b": "B"},
    }
    assert (found["a"].application, found["a"].version, found["a"].error) == ("app", "1", None)


async def test_what_has_ended_or_goes_on_is_left_alone():
    store = await left_behind("a")
    fails.add("failed")
    app = application(store=store)
    async with Runtime(apps=[app]) as runtime:
        with pytest.raises(ExceptionGroup):
            await runtime.run(app, {"items": ["failed"]}, id="failed")
        with anyio.move_on_after(0.5):
            await runtime.run(app, {"items": ["cancelled"]}, id="cancelled")
        async with app.open({"items": ["goes on"]}, id="goes on", runtime=runtime) as run:
            await anyio.sleep(0.5)
            ran.clear()
            assert list(by_id(await runtime.recover())) == ["a"]
            assert ran == ["a"]
            await run.result()


async def test_a_run_that_was_resumed_after_its_end_is_left_by_a_process_that_dies():
    """Also if nothing that it did was saved: somebody wants it to go on."""
    store = MemoryStore()
    app = application()
    async with Runtime(store=store) as runtime:
        with anyio.move_on_after(0.5):
            await runtime.run(app, {"items": ["a"]}, id="a")
        assert await store.orphans() == []
        async with app.open(id="a", runtime=runtime):
            await anyio.sleep(0.5)
            found = store.copy()
    ran.clear()
    async with Runtime(apps=[app], store=found) as runtime:
        assert list(by_id(await runtime.recover())) == ["a"]
    assert ran == ["a"]


async def test_one_that_fails_does_nothing_to_the_others():
    store = await left_behind("a", "b", "c")
    fails.add("b")
    async with no_leaks(), Runtime(apps=[application()], store=store) as runtime:
        found = by_id(await runtime.recover())
    assert isinstance(found["b"].error, ExceptionGroup)
    assert found["b"].result is None
    assert [found[one].error for one in "ac"] == [None, None]


async def test_unknown_and_changed_applications_are_reported_and_left_as_they_are():
    store = await left_behind("a")
    for options in ({"name": "apq"}, {"version": "0"}):
        left = await left_behind("x", app=application(**options))
        store._roots.update(left._roots)
        app = application(store=store)
        async with Runtime(apps=[app, application(name="other")], store=MemoryStore()) as runtime:
            found = by_id(await runtime.recover())
        error = found["x"].error
        assert isinstance(error, NoApplication)
        if "name" in options:
            assert "run x is of application 'apq', which the runtime does not have" in str(error)
            assert "(it has: app, other); did you mean 'app'?" in str(error)
            assert found["a"].error is None
        else:
            assert "run x was started with version '0' of application 'app'" in str(error)
            assert "the runtime has only '1'" in str(error)
        assert [one.run_id for one in await store.orphans()] == ["x"]


async def test_each_run_is_resumed_under_its_version():
    store = await left_behind("a")
    left = await left_behind("b", app=application(version="2"))
    store._roots.update(left._roots)
    apps = [application(version="1"), application(version="2")]
    async with Runtime(apps=apps, store=store) as runtime:
        found = by_id(await runtime.recover())
    assert [found[one].error for one in "ab"] == [None, None]


@action(reads=["item"], writes=["out"])
async def asks(item: str, client: str) -> str:
    ran.append(client)
    await anyio.sleep(1)
    return client


async def test_a_missing_input_is_reported_and_the_run_left():
    act = fan_out(asks, over="items", item="item", key=str, into="outs")
    app = Application(act, name="asks")
    store = await left_behind("a", app=Application(act, name="asks", inputs={"client": "c"}))
    async with Runtime(apps=[app], store=store) as runtime:
        (found,) = await runtime.recover()
        assert isinstance(found.error, MissingInput)
    async with Runtime(apps=[app], store=store, inputs={"client": "d"}) as runtime:
        (found,) = await runtime.recover()
        assert found.result.state["outs"] == {"a": "d"}


# -- several that recover at once ------------------------------------------------------------------


@pytest.mark.parametrize("delay", [0.0, 0.5, 1.0, 2.0])
async def test_each_run_goes_to_one_of_those_that_recover(delay: float):
    ids = [f"run {number}" for number in range(20)]
    store = await left_behind(*ids)
    fails.add("run 3")
    found: list[Recovered] = []

    async def recover(after: float) -> None:
        async with Runtime(apps=[application()], store=store) as runtime:
            orphans = await runtime._recoverables.orphans()

            async def known() -> Any:
                return orphans

            runtime._recoverables.orphans = known
            await anyio.sleep(after)
            found.extend(await runtime.recover())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(recover, 0)
        tasks.start_soon(recover, delay)
    assert sorted(one.run_id for one in found) == sorted(ids)
    assert sorted(ran) == sorted(ids)
    assert [one.run_id for one in found if one.error] == ["run 3"]


async def test_many_are_resumed_some_at_once():
    store = await left_behind(*(f"{number:03}" for number in range(250)))
    async with Runtime(apps=[application()], store=store) as runtime:
        began = anyio.current_time()
        assert len(await runtime.recover()) == 250
        assert anyio.current_time() - began == pytest.approx(3)


async def test_a_store_of_children_that_is_claimed_is_a_failure():
    below = MemoryStore()
    act = fan_out(leaf, over="items", item="item", key=str, into="outs", store=below)
    store = await left_behind("a", app=Application(act, name="app"))
    below._claims.clear()
    await below.claim("a", "somebody else")
    async with Runtime(apps=[Application(act, name="app")], store=store) as runtime:
        (found,) = await runtime.recover()
    assert isinstance(found.error, RunClaimed)


# -- being cancelled -------------------------------------------------------------------------------


async def test_cancelled_it_cancels_what_it_has_resumed():
    store = await left_behind("a", "b")
    async with no_leaks(), Runtime(apps=[application()], store=store) as runtime:
        with anyio.move_on_after(0.5) as scope:
            await runtime.recover()
        assert scope.cancelled_caught
    record = await store.load("a")
    assert record is not None
    assert (record.status, record.reason) == ("cancelled", "the caller was cancelled")
    assert (await application(store=store).run(id="a")).state["outs"] == {"a": "A"}


async def test_a_runtime_that_is_left_cancels_them():
    store = await left_behind("a")
    found: list[Recovered] = []
    async with no_leaks(), anyio.create_task_group() as tasks:
        with pytest.raises(ZeroDivisionError):
            async with Runtime(apps=[application()], store=store) as runtime:

                async def recover() -> None:
                    found.extend(await runtime.recover())

                tasks.start_soon(recover)
                await anyio.sleep(0.5)
                raise ZeroDivisionError
    assert "the runtime was closed" in str(found[0].error)


# -- what can't be ---------------------------------------------------------------------------------


class Keeps:
    """A store that does no more than it has to."""

    def __init__(self) -> None:
        self._kept = MemoryStore()

    def __getattr__(self, name: str) -> Any:
        if name == "orphans":
            raise AttributeError(name)
        return getattr(self._kept, name)


async def test_it_needs_applications_and_a_store_that_finds_orphans():
    with pytest.raises(BadUse, match="not open yet"):
        await Runtime(apps=[application()], store=MemoryStore()).recover()
    async with Runtime(store=MemoryStore()) as runtime:
        with pytest.raises(BadUse, match=r"it has no applications: Runtime\(apps="):
            await runtime.recover()
    async with Runtime(apps=[application()]) as runtime:
        with pytest.raises(
            BadUse, match="'app' can't be recovered, because they are saved nowhere"
        ):
            await runtime.recover()
    keeps: Any = Keeps()
    async with Runtime(apps=[application()], store=keeps) as runtime:
        with pytest.raises(BadUse, match=r"Keeps object at .* has no orphans\(\)"):
            await runtime.recover()
    with pytest.raises(BadUse, match=r"recover\(\) needs a store"):
        await application().recover("a")


async def test_a_store_that_can_not_say():
    class Broken(Keeps):
        async def orphans(self) -> Any:
            raise ConnectionError("gone")

    store: Any = Broken()
    async with Runtime(apps=[application()], store=store) as runtime:
        with pytest.raises(StoreFailed, match="could not be asked for orphans") as raised:
            await runtime.recover()
    assert isinstance(raised.value.__cause__, ConnectionError)


def test_what_is_no_list_of_applications_is_refused():
    wrong: Any = [leaf]
    with pytest.raises(DefinitionError, match=r"Runtime\(apps=...\) takes a list of applications"):
        Runtime(apps=wrong)
    wrong = [Application]
    with pytest.raises(DefinitionError, match=r"Runtime\(apps=...\) takes a list of applications"):
        Runtime(apps=wrong)
    with pytest.raises(DefinitionError, match="two applications 'app' of version '1'"):
        Runtime(apps=[application(), application()])


# -- in a file, after a process that was killed ----------------------------------------------------

KILLED = """
import sys
import anyio
from shoal import Application, Limits, SQLiteStore, action, fan_out

@action(reads=["item"], writes=["out"])
async def leaf(item):
    if item == "b":
        print("begun", flush=True)
        await anyio.sleep_forever()
    return item.upper()

act = fan_out(leaf, over="items", item="item", key=str, into="outs", limits=Limits(1))
app = Application(act, name="app", store=SQLiteStore(sys.argv[1]))
anyio.run(lambda: app.run({"items": ["a", "b"]}, id="x"))
"""


def killed(path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGKILL)


async def test_what_a_killed_process_left_in_a_file_is_resumed_by_one_of_two(tmp_path: Path):
    path = tmp_path / "runs.db"
    await anyio.to_thread.run_sync(killed, path)
    found: list[Recovered] = []

    async def recover() -> None:
        store = SQLiteStore(path)
        async with Runtime(apps=[application()], store=store) as runtime:
            found.extend(await runtime.recover())
            assert list(await store.orphans()) == []

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(recover)
        tasks.start_soon(recover)
    (one,) = found
    assert one.result.state["outs"] == {"a": "A", "b": "B"}
    assert ran == ["b"]


async def test_an_execution_that_has_lost_its_store_leaves_an_orphan():
    class Breaks(Keeps):
        def save(self, batch: Batch) -> None:
            if batch.step_completed or batch.ended:
                raise ConnectionError
            self._kept.save(batch)

    store: Any = Breaks()
    with pytest.raises(StoreFailed):
        await application(store=store).run({"items": ["a"]}, id="a")
    async with Runtime(apps=[application()], store=store._kept) as runtime:
        (found,) = await runtime.recover()
    assert found.error is None
