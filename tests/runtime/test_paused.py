"""Runs that are paused, resumed and steered from outside, through the store."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any, Literal

import anyio
import pytest

from shoal import (
    Application,
    Context,
    Graph,
    Limits,
    MemoryStore,
    Rate,
    Runtime,
    UnknownRun,
    action,
    fan_out,
)
from shoal.errors import NotSteered
from shoal.events import RunSteered
from shoal.stores import Batch, Command
from shoal.testing import Attempt, RecordingHook, cancel_everywhere, no_leaks
from shoal.watch import Control, Queries

pytestmark = pytest.mark.anyio

began = Counter[int]()


@pytest.fixture(autouse=True)
def count_anew() -> None:
    began.clear()


@action(reads=["item"], writes=["done"])
async def work(item: int) -> int:
    began[item] += 1
    await anyio.sleep(1)
    return item


step = fan_out(work, over="items", item="item", into="found", limits=Limits(2), name="step")
ITEMS = {"items": [1, 2, 3, 4]}


def application(store: MemoryStore | None = None, **more: Any) -> Application[Any]:
    return Application(step, name="app", store=store, watch=True, **more)


async def test_a_paused_run_starts_nothing_and_says_so():
    store, hook = MemoryStore(), RecordingHook()
    app = application(store, hooks=[hook])
    async with no_leaks(), Runtime() as runtime:
        run = await app.start(ITEMS, id="a", runtime=runtime)
        await anyio.sleep(0.5)
        assert run.paused is None
        await run.pause("the service is down", by="ops")
        await run.pause("again", by="somebody else")
        assert run.paused is not None
        assert (run.paused.by, run.paused.reason) == ("ops", "the service is down")
        await anyio.sleep(100)
        assert began.total() == 2
        overview = await Queries(store).overview("a")
        assert overview.paused == run.paused
        assert " by ops (the service is down)" in overview.headline.text
        assert "paused since" in overview.headline.text
        assert overview.report is not None
        assert overview.report.spent["paused"] > 50
        await run.resume(by="ops")
        await run.resume()
        assert run.paused is None
        assert (await run.result()).state["found"] == [1, 2, 3, 4]
        await run.pause("too late")
        assert run.paused is None
    said = [(one.what, one.by) for one in await Queries(store).steered("a")]
    assert said == [("pause", "ops"), ("pause", "somebody else"), ("resume", "ops")]
    assert [(one.what, one.by) for one in hook.of(RunSteered)] == said
    assert (await Queries(store).overview("a")).paused is None


async def test_it_is_paused_without_a_store_too():
    async with no_leaks(), Runtime() as runtime:
        run = await Application(step).start(ITEMS, runtime=runtime)
        await anyio.sleep(0.5)
        await run.pause()
        await anyio.sleep(10)
        assert began.total() == 2
        await run.resume()
        await run.result()


async def test_it_is_still_paused_after_its_process_has_died():
    store = MemoryStore()
    app = application()
    async with Runtime(store=store) as runtime:
        run = await app.start(ITEMS, id="a", runtime=runtime)
        await anyio.sleep(0.5)
        await run.pause("for the night")
        await anyio.sleep(1)
        later = store.copy()
        run.cancel("the process dies")
        await run.wait_ended()
    began.clear()
    async with no_leaks(), Runtime(apps=[app], store=later) as runtime:
        (orphan,) = await later.orphans()
        assert orphan.is_paused
        assert await runtime.recover() == []
        run = await app.start(id="a", runtime=runtime)
        await anyio.sleep(20)
        assert not began
        assert run.paused is not None
        assert run.paused.reason == "for the night"
        await run.resume()
        assert (await run.result()).state["found"] == [1, 2, 3, 4]
    assert sorted(began) == [3, 4]


@pytest.mark.parametrize("limits", [None, Limits(2)])
@pytest.mark.parametrize("when", [0.5, 1.5])
async def test_a_paused_run_is_drained_and_paused_still(limits: Limits | None, when: float):
    @action(reads=["item", "done"], writes=["more"], limits=limits)
    async def further(item: int, done: int) -> int:
        await anyio.sleep(1)
        return 2 * done

    both = fan_out(
        Graph.chain(work, further), over="items", item="item", into="found", take="more",
        limits=Limits(2) & Limits(3, by=lambda state: state["item"] % 2),
    )  # fmt: skip
    store = MemoryStore()
    app = Application(both, name="app", store=store)
    async with no_leaks(), Runtime(limits=Limits(9)) as runtime:
        run = await app.start(ITEMS, id="a", runtime=runtime)
        await anyio.sleep(when)
        await run.pause("for the night")
        await anyio.sleep(2)
        run.drain("the process stops")
        since = anyio.current_time()
        assert await run.wait_ended() == "halted"
        assert anyio.current_time() == since
        run = await app.start(id="a", runtime=runtime)
        await anyio.sleep(5)
        assert run.status is None
        assert run.paused is not None
        await run.resume()
        assert sorted((await run.result()).state["found"]) == [2, 4, 6, 8]
    assert began == Counter({1: 1, 2: 1, 3: 1, 4: 1})


async def test_a_run_without_a_process_is_paused_and_resumed():
    store = MemoryStore()
    app = application()
    async with Runtime(store=store) as runtime:
        run = await app.start(ITEMS, id="a", runtime=runtime)
        await anyio.sleep(0.5)
        later = store.copy()
        run.cancel("the process dies")
        await run.wait_ended()
    control = Control(later, by="ops")
    noted = await control.pause("a", "wait")
    assert await control.pause("a", "again") == noted
    overview = await Queries(later).overview("a")
    assert (overview.is_lost, overview.paused) == (True, noted)
    for what in (control.cancel("a"), control.change_limit("a", "step", part=-1, n=3)):
        with pytest.raises(NotSteered, match="no process executes run a"):
            await what
    async with no_leaks(), Runtime(apps=[app], store=later) as runtime:
        assert await runtime.recover() == []
        assert await control.resume("a") is not None
        assert await control.resume("a") is None
        (recovered,) = await runtime.recover()
        assert recovered.result.state["found"] == [1, 2, 3, 4]
    for what in (control.pause("a"), control.cancel("a")):
        with pytest.raises(NotSteered, match="run a has succeeded"):
            await what
    with pytest.raises(UnknownRun, match="there is no run 'b'"):
        await control.pause("b")


@action(reads=["name"], writes=["answer"])
async def consult(name: str, context: Context) -> object:
    return await context.ask("what", name)


async def test_a_halted_run_is_paused():
    store = MemoryStore()
    app = Application(Graph.chain(consult), name="asks", store=store)
    await app.run({"name": "a"}, id="a")
    control = Control(store)
    await control.pause("a")
    async with no_leaks(), Runtime() as runtime:
        run = await app.start(id="a", answers={"what": 3}, runtime=runtime)
        await anyio.sleep(10)
        assert run.status is None
        await run.resume()
        assert (await run.result()).state["answer"] == 3


async def test_another_process_steers_it_and_that_is_on_record():
    store = MemoryStore()
    app = application()
    async with no_leaks(), Runtime(store=store) as runtime:
        run = await app.start({"items": range(30)}, id="a", runtime=runtime)
        control = Control(store, by="ops")
        await anyio.sleep(0.5)
        since = anyio.current_time()
        assert (await control.pause("a", "wait")).what == "pause"
        assert anyio.current_time() - since < 1
        await anyio.sleep(5)
        assert began.total() == 2
        assert (await control.change_limit("a", "step", part=-1, n=7)).arguments["n"] == 7
        await control.resume("a")
        await anyio.sleep(0.5)
        assert began.total() == 9
        await anyio.sleep(0.6)
        child = f"a/step:0:work:#{max(began)}"
        await control.cancel(child, "not that one")
        with pytest.raises(NotSteered, match="no such child is under way"):
            await control.cancel(child, "twice")
        with pytest.raises(NotSteered, match=r"no fan-out 'steps' is under way here"):
            await control.change_limit("a", "steps", part=-1, n=7)
        await control.cancel("a", "enough")
        assert await run.wait_ended() == "cancelled"
        assert run.reason == "enough"
        said = [(one.what, one.reason) for one in await Queries(store).steered("a")]
    assert said == [
        ("pause", "wait"), ("change limits", ""), ("resume", ""), ("cancel child", "not that one"),
        ("refused", ""), ("refused", ""), ("cancel", "enough"),
    ]  # fmt: skip
    assert {one.by for one in await Queries(store).steered("a")} == {"ops"}


async def test_limits_and_their_keys_are_paused():
    @action(
        reads=["item"], writes=["done"], name="call",
        limits=Limits(4) & Limits(rate=Rate(50), by=lambda state: f"key {state['item'] % 2}"),
    )  # fmt: skip
    async def call(item: int) -> int:
        began[item] += 1
        await anyio.sleep(0.5)
        return item

    store = MemoryStore()
    app = Application(
        fan_out(call, over="items", item="item", into="found"), name="app", watch=True
    )
    async with no_leaks(), Runtime(store=store, limits=Limits(8)) as runtime:
        control = Control(store)
        limiter = runtime.limiter(call)
        limiter.pause("key 1", part=1)
        run = await app.start({"items": range(10)}, id="a", runtime=runtime)
        await anyio.sleep(5)
        assert sorted(began) == [0, 2, 4, 6, 8]
        assert limiter.statistics()[1].paused == 1
        await control.pause_limit("a", "runtime", reason="the provider is down")
        await control.resume_limit("a", "call", part=1, key="key 1")
        await anyio.sleep(5)
        assert began.total() == 5
        (report,) = [use for use in await Queries(store).limits("a") if use.owner == "runtime"]
        assert report.paused == 1
        await control.resume_limit("a", "runtime")
        assert (await run.result()).state["found"] == [*range(10)]
        for part, key, why in [(2, None, "has no part 2"), (0, "a", "has no keys")]:
            with pytest.raises(RuntimeError, match=why):
                limiter.pause(key, part=part)
        limiter.pause()
        limiter.change(limiter.limits)
        limiter.pause("key 7", part=1)
        assert [one.paused for one in limiter.statistics()] == [1, 1]
        limiter.resume("key 7", part=1)
        limiter.resume()


async def test_a_run_that_is_not_watched_takes_no_requests():
    store = MemoryStore()
    app = Application(step, name="app", store=store, watch=False)
    async with no_leaks(), Runtime() as runtime:
        run = await app.start({"items": range(20)}, id="a", runtime=runtime)
        with pytest.raises(NotSteered, match="has not taken the request within 1 s"):
            await Control(store, patience=1).pause("a")
        store._lives["a"].began_at -= 5  # pyright: ignore[reportPrivateUsage]
        with pytest.raises(NotSteered, match="leave out watch=False"):
            await Control(store, patience=1).pause("a")
        run.cancel("enough")


async def test_two_that_steer_at_once_are_carried_out_one_after_the_other():
    store = MemoryStore()
    app = application(store)
    async with no_leaks(), Runtime() as runtime:
        run = await app.start({"items": range(50)}, id="a", runtime=runtime)
        await anyio.sleep(0.5)
        async with anyio.create_task_group() as tasks:
            for n in range(6):
                tasks.start_soon(run.pause, f"{n}")
                tasks.start_soon(Control(store, by=f"{n}").pause, "a")
                tasks.start_soon(run.resume)
        entries = [one.what for one in await Queries(store).steered("a")]
        is_paused = "pause" in entries and entries[::-1].index("pause") < (
            [*entries[::-1], "resume"].index("resume")
        )
        assert (run.paused is not None) is is_paused
        await anyio.sleep(2)
        before = began.total()
        await anyio.sleep(5)
        assert (began.total() == before) is is_paused
        await run.resume()
        await run.result()


async def test_what_comes_while_the_end_is_saved_does_not_undo_it(monkeypatch: pytest.MonkeyPatch):
    """A save after the end would say that the run goes on."""
    store = MemoryStore()
    save = store.save

    def slowly(batch: Batch) -> Any:
        save(batch)
        return anyio.sleep(1) if batch.ended else None

    monkeypatch.setattr(store, "save", slowly)
    async with no_leaks(), Runtime(store=store) as runtime:
        run = await application().start({"items": [1]}, id="a", runtime=runtime)
        await anyio.sleep(1.5)
        assert run.status is None
        await run.pause()
        assert run.paused is None
        await run.result()
    summary = await store.summary("a")
    assert summary is not None
    assert summary.status == "succeeded"
    assert not await Queries(store).steered("a")


async def test_a_command_that_is_none_is_refused(caplog: pytest.LogCaptureFixture):
    store = MemoryStore()
    app = application(store)
    async with no_leaks(), Runtime() as runtime:
        run = await app.start(ITEMS, id="a", runtime=runtime)
        await anyio.sleep(0.1)
        for kind, arguments in [("dance", {"id": "1"}), ("pause limit", {"owner": "nobody"})]:
            await store.command(Command(run_id="a", kind=kind, arguments=arguments))  # pyright: ignore[reportArgumentType]
        await run.result()
    assert [one.levelno for one in caplog.records] == [logging.WARNING] * 2
    (entry,) = await Queries(store).steered("a")
    assert (entry.what, entry.arguments["command"]) == ("refused", "dance")


async def test_a_reason_that_holds_a_secret_is_refused():
    @action(reads=["item", "token"], writes=["done"])
    async def login(item: int, token: str) -> int:
        await anyio.sleep(1)
        return item

    store = MemoryStore()
    app = Application(login, name="app", store=store, secret={"token"}, watch=True)
    async with no_leaks(), Runtime() as runtime:
        run = await app.start({"item": 1, "token": "hunter2-hunter2"}, id="a", runtime=runtime)
        with pytest.raises(Exception, match="secret"):
            await run.pause("hunter2-hunter2 leaked")
        assert run.paused is None
        assert (await run.result()).state["done"] == 1


@pytest.mark.sweep
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_steering_is_cancelled_everywhere(backend: Literal["asyncio", "trio"]):
    async def steered(store: MemoryStore) -> None:
        async with Runtime(store=store) as runtime:
            run = await application().start({"items": range(3)}, id="a", runtime=runtime)
            control = Control(store)
            await control.pause("a")
            await anyio.sleep(2)
            assert began.total() <= 2
            await control.resume("a")
            await run.result()

    async def scenario(attempt: Attempt) -> None:
        store = MemoryStore()
        began.clear()
        ending = await attempt(steered, store)
        summary = await store.summary("a")
        if summary is None:
            return
        assert ending.cancelled or summary.status == "succeeded"
        if summary.status == "succeeded":
            return
        async with Runtime(store=store) as runtime:
            run = await application().start(id="a", runtime=runtime)
            entries = [one.what for one in await Queries(store).steered("a")]
            assert (run.paused is not None) is (entries[-1:] == ["pause"])
            await run.resume()
            assert (await run.result()).state["found"] == [*range(3)]

    assert cancel_everywhere(scenario, backend=backend) > 10
