"""The runtime: what runs share, what they do not do to each other, and how its block is left."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from typing import Any

import anyio
import pytest
from anyio.abc import TaskGroup

from shoal import (
    Application,
    Limits,
    ParallelAction,
    RunCancelled,
    RunResult,
    Runtime,
    State,
    Task,
    action,
    fan_out,
)
from shoal.errors import BadUse, DefinitionError
from shoal.events import RunEnded
from shoal.testing import RecordingHook, no_leaks

pytestmark = pytest.mark.anyio


@action(reads=["item"], writes=["out"])
async def sleep(item: float) -> float:
    await anyio.sleep(item)
    return item


@action(reads=["item"], writes=["out"])
async def fail(item: float) -> float:
    await anyio.sleep(item)
    raise LookupError(item)


@action(writes=["said"])
async def say(word: str) -> str:
    return word


class Busy:
    """How many are busy at once, and how many were at most."""

    def __init__(self) -> None:
        self.now = self.most = 0

    async def work(self) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        await anyio.sleep(1)
        self.now -= 1


@action(reads=["item"], writes=["out"])
async def work(item: int, busy: Busy) -> int:
    await busy.work()
    return item


@action(reads=["item"], writes=["out"])
async def more_work(item: int, busy: Busy) -> int:
    await busy.work()
    return item


# -- inputs: bind > task > run > application > runtime > default ----------------------------------


@action(writes=["said"])
async def speak(word: str = "default") -> str:
    return word


class Speaking(ParallelAction):
    writes = ("word",)

    def __init__(self, **given: str) -> None:
        self.act = speak.bind(word="bind")
        self.given = given

    def tasks(self, state: State, inputs: object) -> Any:
        yield Task(self.act, inputs=self.given)

    def reduce(self, state: State, outcome: Any) -> State:
        return state.update(word=outcome.value)


LEVELS = ["task", "run", "application", "runtime", "default"]


@pytest.mark.parametrize("level", LEVELS)
async def test_an_input_is_looked_up_level_by_level(level: str):
    below = LEVELS[LEVELS.index(level) :]

    def at(name: str) -> dict[str, str]:
        return {"word": name} if name in below else {}

    act = Speaking(**at("task"))
    act.act = speak
    application = Application(act, inputs=at("application"))
    async with no_leaks(), Runtime(inputs=at("runtime")) as runtime:
        result = await runtime.run(application, inputs=at("run"))
    assert result.state["word"] == level


@pytest.mark.parametrize("level", LEVELS[1:])
async def test_a_single_actions_input_is_looked_up_likewise(level: str):
    below = LEVELS[LEVELS.index(level) :]

    def at(name: str) -> dict[str, Any]:
        return {"word": name} if name in below else {}

    application = Application(speak, inputs=at("application"))
    async with Runtime(inputs=at("runtime")) as runtime:
        for _ in range(2):  # what one run was given is not there for the next
            assert (await runtime.run(application, inputs=at("run"))).state["said"] == level
            async with application.open(inputs=at("run"), runtime=runtime) as run:
                assert (await run.result()).state["said"] == level


@pytest.mark.parametrize("outer", [None, "outer"])
async def test_what_is_bound_inside_stays_whatever_is_bound_outside(outer: str | None):
    inner = Speaking().bind(**({} if outer is None else {"word": outer}))
    assert (await Application(inner).run()).state["word"] == "bind"
    free = Speaking()
    free.act = speak
    bound = free.bind(**({} if outer is None else {"word": outer}))
    assert (await Application(bound).run()).state["word"] == (outer or "default")


async def test_a_runtimes_inputs_may_serve_other_applications():
    async with Runtime(inputs={"word": "hello", "client": object()}) as runtime:
        assert (await runtime.run(Application(say))).state["said"] == "hello"
        assert (await runtime.run(Application(sleep), {"item": 0})).state["out"] == 0


# -- limits --------------------------------------------------------------------------------------


async def together(*jobs: Callable[[], Coroutine[Any, Any, object]]) -> None:
    async with anyio.create_task_group() as tasks:
        for job in jobs:
            tasks.start_soon(job)


@pytest.mark.parametrize("where", ["runtime", "application", "action", "nowhere"])
async def test_limits_are_shared_by_the_runs_of_a_runtime(where: str):
    limits = Limits(2)
    act = work
    if where == "action":
        act = action(reads=["item"], writes=["out"], limits=limits)(work)
    app = Application(
        fan_out(act, over="items", into="outs"), limits=limits if where == "application" else None
    )
    other = Application(fan_out(more_work, over="items", into="outs"))
    busy = Busy()
    started = anyio.current_time()
    async with (
        no_leaks(),
        Runtime(inputs={"busy": busy}, limits=limits if where == "runtime" else None) as runtime,
    ):

        async def run(which: Application[Any]) -> None:
            await runtime.run(which, {"items": [1, 2, 3]})

        await together(lambda: run(app), lambda: run(app), lambda: run(other))
    most, seconds = {"runtime": (2, 5), "application": (5, 3), "action": (5, 3), "nowhere": (9, 1)}[
        where
    ]
    assert (busy.most, busy.now) == (most, 0)
    assert anyio.current_time() - started == seconds


async def test_two_runtimes_share_nothing():
    app = Application(work, limits=Limits(1))
    busy = Busy()

    async def run() -> None:
        await app.run({"item": 1}, inputs={"busy": busy})

    await together(run, run, run)
    assert busy.most == 3


# -- several at once -----------------------------------------------------------------------------


async def test_one_that_fails_and_one_that_is_cancelled_do_nothing_to_the_others():
    results: dict[str, RunResult] = {}
    hooks = {name: RecordingHook() for name in ("good", "many", "failing", "cancelled")}
    async with no_leaks(), Runtime() as runtime:

        async def good() -> None:
            app = Application(sleep, hooks=[hooks["good"]])
            results["good"] = await runtime.run(app, {"item": 5})

        async def many() -> None:
            act = fan_out(sleep, over="items", into="outs")
            app = Application(act, hooks=[hooks["many"]])
            results["many"] = await runtime.run(app, {"items": [4, 1, 3]})

        async def failing() -> None:
            act = fan_out(fail, over="items", into="outs")
            app = Application(act, hooks=[hooks["failing"]])
            with pytest.raises(ExceptionGroup, match="2 children of fan-out 'outs' failed"):
                await runtime.run(app, {"items": [2, 2, 9]})
            assert anyio.current_time() - began == 2

        async def cancelled() -> None:
            app = Application(sleep, hooks=[hooks["cancelled"]])
            with anyio.move_on_after(3) as scope:
                await runtime.run(app, {"item": 9})
            assert scope.cancelled_caught
            assert anyio.current_time() - began == 3

        began = anyio.current_time()
        await together(good, many, failing, cancelled)
        assert anyio.current_time() - began == 5
    assert results["good"].state["out"] == 5
    assert results["many"].state["outs"] == [4, 1, 3]
    statuses = {name: hook.of(RunEnded)[-1].status for name, hook in hooks.items()}
    assert statuses == {
        "good": "succeeded", "many": "succeeded", "failing": "failed", "cancelled": "cancelled",
    }  # fmt: skip
    for hook in hooks.values():
        hook.assert_paired()


class Panic(BaseException):
    """What an extension module may raise."""


@pytest.mark.parametrize("fatal", [KeyboardInterrupt, SystemExit, Panic])
async def test_what_ends_the_program_comes_out_of_its_run_bare(fatal: type[BaseException]):
    @action(writes=["out"])
    async def interrupt() -> None:
        await anyio.sleep(1)
        raise fatal

    hook = RecordingHook()
    ended: list[object] = []
    async with no_leaks(), Runtime() as runtime:

        async def other() -> None:
            ended.append((await runtime.run(Application(sleep), {"item": 3})).state["out"])

        async def interrupted() -> None:
            with pytest.raises(fatal):
                await runtime.run(Application(interrupt, hooks=[hook]))

        await together(other, interrupted)
    hook.assert_paired()
    assert ended == [3]


# -- opening and leaving -------------------------------------------------------------------------


async def test_it_is_used_inside_its_block():
    app = Application(sleep)
    runtime = Runtime()

    async def use() -> None:
        with pytest.raises(BadUse, match=says):
            await runtime.run(app, {"item": 0})
        with pytest.raises(BadUse, match=says):
            app.open({"item": 0}, runtime=runtime)

    says = "the runtime is not open yet: use it inside `async with Runtime"
    await use()
    opened = None
    async with no_leaks(), runtime:
        with pytest.raises(BadUse, match="open already: another block needs another"):
            await runtime.__aenter__()
        await runtime.run(app, {"item": 0})
        opened = app.open({"item": 0}, runtime=runtime)
    says = "the runtime is closed: use it inside"
    await use()
    with pytest.raises(BadUse, match=says):
        await opened.__aenter__()
    async with runtime:  # again, all anew
        await runtime.run(app, {"item": 0})


async def test_what_is_no_runtime_is_named():
    wrong: Any = "runtime"
    with pytest.raises(TypeError, match=r"run\(runtime=...\) takes an open Runtime, not 'runtime'"):
        await Application(sleep).run({"item": 0}, runtime=wrong)
    with pytest.raises(TypeError, match=r"open\(runtime=...\) takes an open Runtime"):
        Application(sleep).open({"item": 0}, runtime=wrong)
    for given in ([("word", 1)], "word"):
        with pytest.raises(DefinitionError, match=r"Runtime\(inputs=...\) takes a mapping"):
            Runtime(inputs=given)  # pyright: ignore[reportArgumentType]
    with pytest.raises(DefinitionError, match=r"Runtime\(limits=...\) takes Limits\(n\), not 3"):
        Runtime(limits=3)  # pyright: ignore[reportArgumentType]


def test_threads_and_a_deadline_that_make_no_sense_are_refused():
    threads: Any
    for threads in (0, -1, 0.5, "4", None, True):
        with pytest.raises(DefinitionError, match=r"Runtime\(threads=...\) takes a whole number"):
            Runtime(threads=threads)
    seconds: Any
    for seconds in (0, -1, "3", None, math.inf, math.nan):
        with pytest.raises(DefinitionError, match=r"\(commit_deadline=...\) takes .* seconds"):
            Runtime(commit_deadline=seconds)


async def test_leaving_it_waits_for_the_runs_in_it():
    outs: list[object] = []
    async with no_leaks(), anyio.create_task_group() as tasks:
        began = anyio.current_time()
        async with Runtime() as runtime:

            async def run(item: float) -> None:
                outs.append((await runtime.run(Application(sleep), {"item": item})).state["out"])

            tasks.start_soon(run, 3)
            tasks.start_soon(run, 2)
            await anyio.sleep(1)
        assert anyio.current_time() - began == 3
    assert outs == [2, 3]


async def test_a_caller_that_is_cancelled_waits_for_the_cleanup_of_its_run():
    cleaned: list[float] = []

    @action()
    async def work() -> None:
        try:
            await anyio.sleep(60)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(2)
            cleaned.append(anyio.current_time())

    async with Runtime() as runtime:
        began = anyio.current_time()
        with anyio.move_on_after(1):
            await runtime.run(Application(work))
        assert cleaned == [began + 3] == [anyio.current_time()]


async def test_nothing_starts_while_it_is_being_left():
    async with no_leaks(), anyio.create_task_group() as tasks:

        async def late(runtime: Runtime) -> None:
            await anyio.sleep(1)
            with pytest.raises(BadUse, match="the runtime is closed"):
                await runtime.run(Application(sleep), {"item": 1})
            with pytest.raises(BadUse, match="the runtime is closed"):
                await opened.__aenter__()

        async with Runtime() as runtime:
            opened = Application(sleep).open({"item": 1}, runtime=runtime)
            tasks.start_soon(runtime.run, Application(sleep), {"item": 2})
            tasks.start_soon(late, runtime)
            await anyio.sleep(0.5)


@pytest.mark.parametrize("how", ["raises", "is cancelled", "is cancelled while it waits"])
async def test_a_block_that_fails_cancels_the_runs_in_it(how: str):
    received: list[str] = []
    hook = RecordingHook()
    cleaned: list[float] = []

    @action(reads=["item"], writes=["out"])
    async def for_ever(item: int) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(item)
            cleaned.append(anyio.current_time())

    async def run(runtime: Runtime, item: int) -> None:
        try:
            await runtime.run(Application(for_ever, hooks=[hook]), {"item": item})
        except RunCancelled as error:
            received.append(str(error))

    async def block(tasks: TaskGroup) -> None:
        async with Runtime() as runtime:
            tasks.start_soon(run, runtime, 3)
            tasks.start_soon(run, runtime, 2)
            await anyio.sleep(0.5)
            if how == "raises":
                raise LookupError("the block")
            if how == "is cancelled":
                await anyio.sleep_forever()

    began = left = anyio.current_time()
    async with no_leaks(), anyio.create_task_group() as tasks:
        if how == "raises":
            with pytest.raises(LookupError, match="the block"):  # bare: in no group
                await block(tasks)
        else:
            with anyio.move_on_after(1) as scope:
                await block(tasks)
            assert scope.cancelled_caught
        left = anyio.current_time()
    assert left == max(cleaned)  # at once, and after all cleanup
    assert left - began == (0.5 if how == "raises" else 1) + 3
    assert len(received) == 2
    assert all("was cancelled: the runtime was closed" in one for one in received)
    hook.assert_paired()


async def test_an_opened_run_in_a_shared_runtime():
    async with no_leaks(), Runtime() as runtime:
        async with Application(sleep).open({"item": 5}, runtime=runtime) as run:
            await anyio.sleep(1)
        assert run.status == "cancelled"
        assert (await runtime.run(Application(sleep), {"item": 1})).state["out"] == 1
        async with Application(fail).open({"item": 1}, runtime=runtime) as run:
            with pytest.raises(LookupError):
                await run.result()
        assert (await runtime.run(Application(sleep), {"item": 1})).state["out"] == 1


async def test_runs_at_random_leave_a_runtime_as_it_was():
    """Whatever starts, fails and is cancelled in whatever order, the rest is right."""
    async with no_leaks(), Runtime(limits=Limits(3)) as runtime:

        async def one(seed: int) -> None:
            await anyio.sleep(seed % 7 / 4)
            kind = seed % 3
            app = Application(fan_out(fail if kind == 1 else sleep, over="items", into="outs"))
            with anyio.move_on_after(seed % 5 / 2 + 0.1 if kind == 2 else 60):
                with nullcontext() if kind != 1 else pytest.raises(ExceptionGroup):
                    result = await runtime.run(app, {"items": [seed % 4 / 3, 0.5]})
                    assert result.state["outs"] == [seed % 4 / 3, 0.5]

        await together(*(lambda seed=seed: one(seed) for seed in range(40)))
