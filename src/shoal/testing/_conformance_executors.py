"""`ExecutorConformance`: the tests that every executor must pass."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel

from shoal._engine.fanout.context import Context
from shoal._events.events import Failed, Item
from shoal._graph.action import action
from shoal._graph.fan_out import fan_out
from shoal._graph.policy import Each
from shoal._limits.retry import Retry
from shoal._runtime.application import Application
from shoal._runtime.runtime import Runtime
from shoal._state.result import Result
from shoal._state.state import State
from shoal.executors._port import Executor
from shoal.stores._memory import MemoryStore

from ._leaks import no_leaks
from ._recording import RecordingHook

# Actions of this module, so that workers in other processes find them by import.


@action(reads=["n"], writes=["square"])
def square(n: int) -> int:
    """Return a square, from a plain function."""
    return n * n


@action(reads=["n"], writes=["square"])
async def square_later(n: int) -> int:
    """Return a square, from a coroutine function."""
    await anyio.lowlevel.checkpoint()
    return n * n


@action(reads=["n"], writes=["total"])
async def count_up(n: int) -> AsyncIterator[int | Result[int]]:
    """Give partial items, and return how many."""
    for number in range(n):
        yield number
    yield Result(n)


@action(reads=["log", "n"], writes=["log"])
def append(state: State) -> State:
    """Return a changed state."""
    return state.append(log=state["n"])


@action(reads=["n"], writes=["square"])
def refuse_odd(n: int) -> int:
    """Fail for odd numbers."""
    if n % 2:
        raise ValueError(f"{n} is odd")
    return n * n


@action(reads=["n"], writes=["tries"])
async def stumble(n: int, context: Context) -> int:
    """Fail in the first attempt."""
    if context.attempt == 1:
        raise ConnectionError("stumbled")
    await context.emit(n)
    return context.attempt


@action(reads=["n"], writes=["answer"])
async def ask(n: int, context: Context) -> str:
    """Ask a person."""
    return f"{n}: {await context.ask('name', {'n': n})}"


@action(reads=["n"], writes=["squares"])
async def lead(n: int, context: Context) -> int:
    """Start children."""
    async with context.fan_out(name="part") as parts:
        for number in range(n):
            parts.start(square, {"n": number}, key=number)
    return n


@action(reads=["seconds"], writes=["woken"])
async def sleep(seconds: float) -> bool:
    """Sleep."""
    await anyio.sleep(seconds)
    return True


class ExecutorConformance:
    """Tests of all that a run needs of an executor. Derive from it; add an ``executor`` fixture.

    For pytest, with anyio's plugin::

        @pytest.mark.anyio
        class TestMyExecutor(ExecutorConformance):
            @pytest.fixture
            def executor(self):
                return MyExecutor(2)

    The actions are in a module of shoal's, so workers find them by import, and they take no inputs.
    What an executor doesn't take if it is inherited (see ``Executor.takes``) is called on the event
    loop, as in any run, and then the test says nothing of it. Workers that die, graces, and what
    can't be sent are for your own tests: executors differ too much in how to make that happen.
    """

    many = 100
    """How many children the test of many calls starts."""

    async def _run(self, executor: Executor, act: Any, fields: dict[str, Any], **more: Any) -> Any:
        async with (
            no_leaks(descriptors=False, threads=False),
            Runtime(executor=executor) as runtime,
        ):
            app = Application(act, **more)
            return await app.run(fields, id="conformance", runtime=runtime)

    async def test_many_plain_functions_are_called(self, executor: Executor) -> None:
        each = fan_out(square, over="ns", item="n", into="squares")
        result = await self._run(executor, each, {"ns": range(self.many)})
        assert list(result.state["squares"]) == [n * n for n in range(self.many)]

    async def test_coroutines_and_streams(self, executor: Executor) -> None:
        hook = RecordingHook()
        result = await self._run(executor, square_later, {"n": 7})
        assert result.state["square"] == 49
        result = await self._run(executor, count_up, {"n": 3}, hooks=[hook])
        assert result.state["total"] == 3
        assert [event.item for event in hook.of(Item)] == [0, 1, 2]

    async def test_a_change_of_the_state_is_the_one_that_was_made(self, executor: Executor) -> None:
        hook = RecordingHook()
        result = await self._run(executor, append, {"log": [1], "n": 2}, hooks=[hook])
        assert list(result.state["log"]) == [1, 2]
        hook.assert_paired()

    async def test_exceptions_arrive_and_their_siblings_go_on(self, executor: Executor) -> None:
        each = fan_out(refuse_odd, over="ns", item="n", into="out", on_error="ignore")
        result = await self._run(executor, each, {"ns": range(4)})
        failed = [one for one in result.outcomes("out") if isinstance(one, Failed)]
        assert [str(one.error) for one in failed] == ["1 is odd", "3 is odd"]
        assert all(isinstance(one.error, ValueError) for one in failed)

    async def test_contexts_and_retries(self, executor: Executor) -> None:
        hook = RecordingHook()
        each = Each(retry=Retry(2, on=(ConnectionError,), initial=0.001))
        step = fan_out(stumble, over="ns", item="n", into="tries", each=each)
        result = await self._run(executor, step, {"ns": [5]}, hooks=[hook])
        assert list(result.state["tries"]) == [2]
        assert [event.item for event in hook.of(Item)] == [5]

    async def test_questions_halt_the_run(self, executor: Executor) -> None:
        store = MemoryStore()
        assert (await self._run(executor, ask, {"n": 1}, store=store)).status == "halted"
        async with Runtime(executor=executor) as runtime:
            app = Application(ask, store=store)
            result = await app.run(id="conformance", answers={"name": "Ada"}, runtime=runtime)
        assert result.state["answer"] == "1: Ada"

    async def test_an_action_starts_children_of_its_own(self, executor: Executor) -> None:
        hook = RecordingHook()
        result = await self._run(executor, lead, {"n": 3}, hooks=[hook])
        assert result.state["squares"] == 3
        hook.assert_paired()

    async def test_a_cancelled_call_ends_and_others_go_on(self, executor: Executor) -> None:
        async with (
            no_leaks(descriptors=False, threads=False),
            Runtime(executor=executor) as runtime,
        ):
            with anyio.move_on_after(0.05) as scope:
                await Application(sleep).run({"seconds": 60.0}, runtime=runtime)
            assert scope.cancelled_caught
            result = await Application(square).run({"n": 3}, runtime=runtime)
            assert result.state["square"] == 9
