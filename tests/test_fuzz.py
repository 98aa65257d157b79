"""Random trees of fan-outs, cancelled at random moments in random ways, on shuffled schedules.

Whatever happens: updates are numbered one by one and replay to the state, every start has its end,
every key ends once, no more children are in flight than the limit says, a cancel is never lost, and
nothing is alive afterwards.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from typing import Any, Literal

import anyio
import pytest

from shoal import (
    Application,
    ChildEnded,
    ChildStarted,
    FanOut,
    Limits,
    RunEnded,
    RunResult,
    State,
    StateUpdated,
    action,
    fan_out,
    replay,
)
from shoal.testing import RecordingHook, run_virtual

Cancel = Literal["no", "scope", "native", "twice"]
DELAYS = [0, 0, 0, 0.25, 0.5, 1]  # few different moments, so that many things meet in one


class Case:
    """One random program and what is done to it."""

    def __init__(self, seed: int, backend: str) -> None:
        self.random = random.Random(seed)
        kinds: list[Cancel] = ["no", "scope", "native", "twice"]
        if backend == "trio":
            del kinds[2:]
        self.cancel: Cancel = self.random.choice(kinds)
        self.cancel_at = self.random.choice([0, 0.25, 0.5, 1, 1.25])
        self.turns = self.random.randrange(4)
        self.limits: dict[str, int] = {}
        self.depth = self.random.randrange(1, 4)
        self.act = self.level(1)

    def level(self, depth: int) -> FanOut:
        rng = self.random
        name = f"level{depth}"
        limit = self.limits[name] = rng.choice([1, 2, 3, 100])
        delays = {n: rng.choice(DELAYS) for n in range(64)}
        failing = {n for n in range(64) if rng.random() < 0.08}
        stubborn = {n for n in range(64) if rng.random() < 0.1}

        @action(reads=["item"], writes=["out"], name=f"leaf{depth}")
        async def leaf(item: int) -> int:
            try:
                if delays[item % 64]:
                    await anyio.sleep(delays[item % 64])
                if item % 64 in failing:
                    raise ValueError(item)
            finally:
                if item % 64 in stubborn:
                    with anyio.CancelScope(shield=True):
                        await anyio.sleep(0.25)
            return item

        width = rng.randrange(7)
        inner = self.level(depth + 1) if depth < self.depth else leaf
        source = rng.choice(["list", "generator", "async"])

        def over(state: State) -> Any:
            base = state["item"] * 7 if depth > 1 else 0
            numbers = range(base, base + width)
            if source == "list":
                return list(numbers)
            return (n for n in numbers) if source == "generator" else slowly(numbers)

        common: dict[str, Any] = {
            "over": over,
            "reads": ["item"] if depth > 1 else [],
            "limits": Limits(limit),
            "name": name,
            "on_error": rng.choice(["fail", "collect"]),
        }
        shape = rng.choice(["into", "keyed", "reduce"])
        if shape == "reduce":
            return fan_out(inner, **common, reduce=tally, writes=["out"], take="out")
        if shape == "keyed":
            return fan_out(inner, **common, into="out", key=int)
        return fan_out(inner, **common, into="out")


async def slowly(numbers: range) -> AsyncIterator[int]:
    for n in numbers:
        await anyio.sleep(0.25 * (n % 2))
        yield n


def tally(state: State, _: object) -> State:
    return state.update(out=state.get("out", 0) + 1)


async def run_case(case: Case) -> None:
    hook = RecordingHook()
    application = Application(case.act, hooks=[hook])
    result: RunResult | None = None
    alive_before = set(anyio.get_running_tasks())
    match case.cancel:
        case "no" | "scope":
            deadline = case.cancel_at if case.cancel == "scope" else 60
            with anyio.move_on_after(deadline):
                with contextlib.suppress(ExceptionGroup):
                    result = await application.run()
        case "native" | "twice":
            result = await natively_cancelled(case, application)
    alive = set(anyio.get_running_tasks()) - alive_before
    assert not alive, f"left behind: {alive}"
    check(case, hook, result)


async def natively_cancelled(case: Case, application: Application) -> RunResult | None:
    ended = False

    async def caller() -> RunResult | None:
        nonlocal ended
        try:
            return await application.run()
        except ExceptionGroup:
            return None
        finally:
            ended = True

    task = asyncio.get_running_loop().create_task(caller())
    await anyio.sleep(case.cancel_at)
    for _ in range(case.turns):
        await asyncio.sleep(0)
    in_time = not ended
    task.cancel()
    if case.cancel == "twice":
        await asyncio.sleep(0)
        task.cancel()
    try:
        result = await task
    except asyncio.CancelledError:
        return None
    assert not in_time, "a native cancel was lost"
    return result


def check(case: Case, hook: RecordingHook, result: RunResult | None) -> None:
    hook.assert_paired()
    states: dict[str, State] = defaultdict(State)
    numbers: dict[str, int] = defaultdict(int)
    in_flight: dict[tuple[str, str], int] = defaultdict(int)
    ends: set[tuple[str, str, object]] = set()
    runs_ended: set[str] = set()
    for event in hook.events:
        match event:
            case StateUpdated():
                numbers[event.run_id] += 1
                assert event.update.number == numbers[event.run_id]
                states[event.run_id] = replay(states[event.run_id], event.update.operations)
                if event.outcome is not None:
                    assert event.outcome.run_id in runs_ended, "cause precedes effect"
            case ChildStarted():
                in_flight[event.run_id, event.step] += 1
                assert in_flight[event.run_id, event.step] <= case.limits[event.step]
            case ChildEnded():
                in_flight[event.run_id, event.step] -= 1
                end = (event.run_id, event.step, event.outcome.key)
                assert end not in ends, "a key ended twice"
                ends.add(end)
            case RunEnded():
                runs_ended.add(event.run_id)
            case _:
                pass
    assert not any(in_flight.values())
    root = hook.of(RunEnded)[-1] if hook.events else None
    if result is not None:
        assert root is not None
        assert root.status == "succeeded"
        assert states[result.run_id] == result.state
        ledger = result.outcomes("level1")
        assert ledger.cancelled == 0, "a cancelled fan-out never succeeds"


def fuzz(backend: Literal["asyncio", "trio"], seeds: range) -> None:
    for seed in seeds:
        shuffle = seed if seed % 2 else None
        try:
            run_virtual(run_case, Case(seed, backend), backend=backend, seed=shuffle)
        except BaseException as error:
            error.add_note(f"seed {seed} on {backend}")
            raise


@pytest.mark.timeout(60)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_random_programs(backend: Literal["asyncio", "trio"]) -> None:
    fuzz(backend, range(400))


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_many_random_programs(backend: Literal["asyncio", "trio"], block: int) -> None:
    fuzz(backend, range(1000 + block * 1000, 2000 + block * 1000))
