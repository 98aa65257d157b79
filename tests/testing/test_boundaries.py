"""`fail_everywhere`: the places that it finds, what it makes of them, and what it refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest

from shoal import Application, Hook, Retry, State, action, fan_out
from shoal.events import Event
from shoal.testing import Aftermath, Boundaries, BoundaryError, LeakError, fail_everywhere

Backend = Literal["asyncio", "trio"]
every_backend = pytest.mark.parametrize("backend", ["asyncio", "trio"])


@action(reads=["item"], writes=["leaf"])
async def double(item: int) -> int:
    await anyio.sleep(1)
    return 2 * item


async def pulled(state: State) -> AsyncIterator[int]:
    for item in state["n"]:
        yield item


def numbers(state: State) -> Iterator[int]:
    yield from state["n"]


def value(state: State) -> int:
    return state["leaf"]


def a_map(b: Boundaries, over: Any = numbers) -> Any:
    return fan_out(
        b(double), over=b(over, "pull"), key=b(int, "key"), into="out", take=b(value, "take"),
        reads=["n"],
    )  # fmt: skip


async def scenario(b: Boundaries) -> dict[int, int]:
    result = await Application(a_map(b), hooks=[b.hook()]).run({"n": [1, 2]})
    return dict(result.state["out"])


@every_backend
@pytest.mark.parametrize("over", [numbers, pulled], ids=["generator", "async generator"])
def test_each_boundary_is_a_place_and_so_is_each_event(backend: Backend, over: Any):
    calls: list[str] = []

    async def short(b: Boundaries) -> object:
        return (await Application(a_map(b, over)).run({"n": [1]})).state["out"]

    def check(aftermath: Aftermath[object]) -> None:
        if aftermath.call:
            calls.append(aftermath.call)
            assert isinstance(aftermath.error, Exception)
            assert aftermath.clean == {1: 2}
        else:
            assert aftermath.result == {1: 2}

    assert fail_everywhere(short, check, backend=backend) == len(calls)
    both = [
        f"{name}, {when} it" for name in ("key", "double", "take") for when in ("before", "after")
    ]
    assert sorted(calls) == sorted(["pull, before an item", "pull, after it", *both])


@every_backend
@pytest.mark.parametrize("how", ["raises", "interrupts", "hangs", "late"])
def test_the_scenario_may_end_in_any_of_these_ways(backend: Backend, how: Any):
    ends: set[object] = set()

    def check(aftermath: Aftermath[object]) -> None:
        ends.add("cancelled" if aftermath.cancelled else type(aftermath.error).__name__)

    # Some places only: a hook that hangs is given up after 30 s, and fails the run.
    assert fail_everywhere(scenario, check, how=how, backend=backend, limit=12) == 12
    expected = {
        "raises": {"HookFailed"},
        "interrupts": {"KeyboardInterrupt"},
        "hangs": {"HookFailed", "cancelled"},
        "late": {"HookFailed", "cancelled"},
    }
    assert expected[how] <= ends
    assert "BoundaryError" not in ends or how == "late"


@every_backend
def test_what_recovers_comes_to_its_result(backend: Backend):
    async def stubborn(b: Boundaries) -> int:
        @action(reads=["n"], writes=["out"], retry=Retry(2, on=BoundaryError))
        async def again(n: int) -> int:
            return n

        return (await Application(b(again)).run({"n": 3})).state["out"]

    def check(aftermath: Aftermath[int]) -> None:
        assert aftermath.result == 3

    assert fail_everywhere(stubborn, check, backend=backend) == 2


def test_a_failure_that_is_another_one_fails_the_test_and_says_how_to_try_it_again():
    async def clumsy(b: Boundaries) -> None:
        async def work() -> None: ...

        try:
            await b(work)()
        except BoundaryError:
            raise ValueError("something else") from ValueError("not that")

    # Its context is the fault, so only one that hides it is another failure.
    async def hiding(b: Boundaries) -> None:
        try:
            await clumsy(b)
        except ValueError as error:
            error.__context__ = None
            raise

    assert fail_everywhere(clumsy) == 2
    with pytest.raises(ValueError, match="something else") as caught:
        fail_everywhere(hiding)
    (note,) = caught.value.__notes__
    assert "place 1 went wrong: work, before it" in note
    assert "fail_everywhere(..., only=1) tries this place alone" in note
    with pytest.raises(ValueError, match="something else"):
        fail_everywhere(hiding, only=2)


@every_backend
def test_interrupts_and_cancellations_must_not_be_swallowed(backend: Backend):
    async def work() -> None: ...

    async def swallowing(b: Boundaries) -> str:
        with suppress(BaseException):
            await b(work)()
        return "done"

    assert fail_everywhere(swallowing, backend=backend) == 2
    with pytest.raises(AssertionError, match="an interrupt was swallowed, and 'done'"):
        fail_everywhere(swallowing, how="interrupts", backend=backend)
    with pytest.raises(AssertionError, match="a cancellation was swallowed, and 'done'"):
        fail_everywhere(swallowing, how="hangs", backend=backend)


def test_an_interrupt_that_stops_the_event_loop_is_not_one_that_comes_out():
    async def leaving(b: Boundaries) -> None:
        async def work() -> None: ...

        async with anyio.create_task_group() as group:
            group.start_soon(b(work))

    with pytest.raises(AssertionError, match="never came out of the scenario"):
        fail_everywhere(leaving, how="interrupts")


@every_backend
def test_what_is_left_behind_is_found(backend: Backend):
    files: list[Any] = []

    async def leaking(b: Boundaries) -> None:
        file = Path("/dev/null").open()  # noqa: SIM115 # what is being tested
        files.append(file)
        b(file.fileno, "use")()
        file.close()

    with pytest.raises(LeakError, match="descriptor"):
        fail_everywhere(leaking, backend=backend)
    for file in files:
        file.close()


def test_a_hook_has_all_methods_and_may_be_an_observer():
    b = Boundaries(0, "raises")
    assert isinstance(b.hook(), Hook)
    assert not b.hook().observer
    assert b.hook(observer=True).observer

    async def observed(b: Boundaries) -> dict[int, int]:
        result = await Application(a_map(b), hooks=[b.hook(observer=True)]).run({"n": []})
        return dict(result.state["out"])

    def check(aftermath: Aftermath[dict[int, int]]) -> None:
        assert aftermath.result == {} or aftermath.call.startswith("pull")

    fail_everywhere(observed, check)


@every_backend
def test_a_check_may_be_a_coroutine_function(backend: Backend):
    checked: list[int] = []

    async def check(aftermath: Aftermath[object]) -> None:
        await anyio.sleep(1)
        checked.append(aftermath.place)

    async def work(event: Event | None = None) -> None: ...

    async def calling(b: Boundaries) -> None:
        await b(work)()

    assert fail_everywhere(calling, check, backend=backend, how="hangs") == 2
    assert checked == [0, 1, 2, 3]  # the last one went wrong nowhere
