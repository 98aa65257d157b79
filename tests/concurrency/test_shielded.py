"""`shielded`: cleanup that awaits although its action is cancelled; for how long, and what then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
import pytest

from shoal import (
    Application,
    Context,
    Each,
    Failed,
    Limits,
    Result,
    Runtime,
    StepTimeout,
    action,
    fan_out,
    race,
    shielded,
)
from shoal.errors import BadUse

pytestmark = pytest.mark.anyio

SECONDS = 1.0


class Cleaned:
    """What was cleaned up, and how long that was given."""

    def __init__(self) -> None:
        self.names: list[str] = []

    async def up(self, name: str, seconds: float = SECONDS) -> None:
        async with shielded():
            await anyio.sleep(seconds)
            self.names.append(name)


@pytest.fixture
def cleaned() -> Cleaned:
    return Cleaned()


def asking(cleaned: Cleaned, **options: Any) -> Any:
    @action(reads=["q"], writes=["answer"], **options)
    async def ask(q: str, text: str = "me", delay: float = 100.0) -> str:
        try:
            await anyio.sleep(delay)
            return text
        finally:
            await cleaned.up(text)

    return ask


async def a_lost_race(cleaned: Cleaned) -> list[str]:
    ask = asking(cleaned)
    fast, slow = ask.bind(name="fast", text="fast", delay=1.0), ask.bind(name="slow", text="slow")
    result = await Application(race(fast, slow, into="answer")).run({"q": "?"})
    assert result.state["answer"] == "fast"
    return ["fast", "slow"]


async def a_lost_race_of_streams(cleaned: Cleaned) -> list[str]:
    @action(reads=["q"], writes=["answer"])
    async def ask(q: str, text: str, delay: float) -> AsyncIterator[str | Result[str]]:
        try:
            await anyio.sleep(delay)
            yield Result(text)
        finally:
            await cleaned.up(text)

    fast = ask.bind(name="fast", text="fast", delay=1.0)
    slow = ask.bind(name="slow", text="slow", delay=100.0)
    await Application(race(fast, slow, into="answer")).run({"q": "?"})
    return ["fast", "slow"]


async def a_timeout(cleaned: Cleaned) -> list[str]:
    with pytest.raises(StepTimeout):
        await Application(asking(cleaned, timeout=1.0)).run({"q": "?"})
    return ["me"]


async def a_child_s_timeout(cleaned: Cleaned) -> list[str]:
    ask = asking(cleaned)
    over = fan_out(ask, over="qs", item="q", into="answers", take="answer", each=Each(timeout=1.0))
    with pytest.raises(ExceptionGroup):
        await Application(over).run({"qs": ["?"]})
    return ["me"]


async def a_failed_sibling(cleaned: Cleaned) -> list[str]:
    ask = asking(cleaned)

    @action(reads=["q"], writes=["answer"])
    async def fail(q: str) -> str:
        await anyio.sleep(1)
        raise ValueError

    both = fan_out([ask, fail], into="answers", take="answer")
    with pytest.raises(ExceptionGroup):
        await Application(both).run({"q": "?"})
    return ["me"]


async def a_caller_s_timeout(cleaned: Cleaned) -> list[str]:
    with anyio.move_on_after(1):
        await Application(asking(cleaned)).run({"q": "?"})
    return ["me"]


async def a_group_that_was_left(cleaned: Cleaned) -> list[str]:
    @action(writes=["answer"])
    async def own(context: Context) -> str:
        with suppress(ValueError):
            async with context.fan_out(name="kids") as group:
                group.start(asking(cleaned), {"q": "?"})
                await anyio.sleep(1)
                raise ValueError
        return "left"

    await Application(own).run()
    return ["me"]


async def a_scope_of_the_action_s_own(cleaned: Cleaned) -> list[str]:
    @action(writes=["answer"])
    async def own() -> str:
        with anyio.move_on_after(1):
            try:
                await anyio.sleep(100)
            finally:
                await cleaned.up("own")
        return "left"

    await Application(own).run()
    return ["own"]


async def no_run(cleaned: Cleaned) -> list[str]:
    with anyio.move_on_after(1):
        try:
            await anyio.sleep(100)
        finally:
            await cleaned.up("outside")
    return ["outside"]


WAYS: tuple[Callable[[Cleaned], Awaitable[list[str]]], ...] = (
    a_lost_race,
    a_lost_race_of_streams,
    a_timeout,
    a_child_s_timeout,
    a_failed_sibling,
    a_caller_s_timeout,
    a_group_that_was_left,
    a_scope_of_the_action_s_own,
    no_run,
)


@pytest.mark.parametrize("way", WAYS)
async def test_cleanup_awaits_to_its_end(way: Any, cleaned: Cleaned):
    wanted = await way(cleaned)
    assert cleaned.names == wanted


async def test_without_a_shield_cleanup_is_cancelled_again_at_its_first_await():
    reached: list[str] = []

    @action(reads=["q"], writes=["answer"])
    async def ask(q: str) -> str:
        try:
            await anyio.sleep(100)
        finally:
            await anyio.sleep(0.01)
            reached.append("here")
        return q

    with anyio.move_on_after(1):
        await Application(ask).run({"q": "?"})
    assert not reached


@pytest.mark.parametrize(
    ("seconds", "grace", "limit"),
    [(2.0, 5.0, 2.0), (60.0, 5.0, 5.0), (None, 5.0, 5.0), (None, 0.5, 0.5), (60.0, 20.0, 20.0)],
)
async def test_it_lasts_as_long_as_it_says_and_no_longer_than_the_grace(
    seconds: float | None, grace: float, limit: float, caplog: pytest.LogCaptureFixture
):
    left: list[float] = []

    @action(reads=["q"], writes=["answer"])
    async def ask(q: str) -> str:
        try:
            await anyio.sleep(100)
        finally:
            async with shielded(seconds):
                await anyio.sleep(1000)
            left.append(anyio.current_time())
        return q

    async with Runtime(grace=grace) as runtime:
        with anyio.move_on_after(1) as scope:
            await runtime.run(Application(ask), {"q": "?"})
    assert scope.cancelled_caught
    assert left == [pytest.approx(1 + limit)]
    received = [r.getMessage() for r in caplog.records if "cleanup at" in r.getMessage()]
    assert len(received) == 1
    assert "test_shielded.py" in received[0]
    assert f"in ask took longer than its {limit:g} s, and was cancelled" in received[0]


async def test_outside_of_runs_there_is_no_bound():
    with anyio.move_on_after(1):
        try:
            await anyio.sleep(100)
        finally:
            async with shielded(60):
                await anyio.sleep(1000)
    assert anyio.current_time() == pytest.approx(61)


async def test_it_cuts_nothing_off_that_ends_in_time_and_is_quiet(caplog: pytest.LogCaptureFixture):
    async with shielded(2):
        await anyio.sleep(1.9)
    assert not caplog.records


async def test_what_the_block_raises_goes_on():
    with pytest.raises(ValueError, match="mine"):
        async with shielded(2):
            raise ValueError("mine")


async def test_one_object_is_for_one_block_at_a_time():
    """Children that share one, made once for all, are told; one after the other they may."""
    shared = shielded(2)

    @action(reads=["item"], writes=["out"])
    async def work(item: int) -> int:
        async with shared:
            await anyio.sleep(1)
        return item

    one_by_one = fan_out(work, over="n", into="outs", take="out", limits=Limits(1))
    state = (await Application(one_by_one).run({"n": [1, 2]})).state
    assert state["outs"] == [1, 2]
    at_once = fan_out(work, over="n", into="outs", take="out", on_error="collect", name="at once")
    result = await Application(at_once).run({"n": [1, 2]})
    assert result.state["outs"] == [1]
    (failed,) = result.outcomes("at once")
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, BadUse)
    assert "make one for each block" in str(failed.error)


async def test_blocks_in_blocks_end_with_the_outer_one():
    async with shielded(1), shielded(60):
        await anyio.sleep(3)
    assert anyio.current_time() == pytest.approx(3)  # the inner one is shielded from the outer one


@pytest.mark.parametrize("seconds", [0, -1, "1", True, float("nan")])
def test_what_is_no_time_is_refused(seconds: Any):
    with pytest.raises(BadUse, match="takes a number of seconds above 0"):
        shielded(seconds)


async def test_a_native_timeout_within_the_action_leaves_time_for_cleanup(
    cleaned: Cleaned, anyio_backend_name: str
):
    if anyio_backend_name == "trio":
        pytest.skip("trio has no native cancellation")

    @action(writes=["answer"])
    async def own() -> str:
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                try:
                    await anyio.sleep(100)
                finally:
                    await cleaned.up("own")
        return "left"

    await Application(own).run()
    assert cleaned.names == ["own"]


async def test_a_native_timeout_around_a_run_leaves_time_for_cleanup(
    cleaned: Cleaned, anyio_backend_name: str
):
    if anyio_backend_name == "trio":
        pytest.skip("trio has no native cancellation")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await Application(asking(cleaned)).run({"q": "?"})
    assert cleaned.names == ["me"]
