"""Random trees of fan-outs, cancelled at random moments in random ways, on shuffled schedules.

Whatever happens: updates are numbered one by one, saved before they are seen, and replay to the
state; every start has its end, every key ends once, cause precedes effect; no more children are in
flight than the limit says; a cancel is never lost; and nothing is alive afterwards.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal, Protocol, cast

import anyio
import pytest
from anyio.lowlevel import checkpoint

from shoal import (
    Cancelled,
    ChildEnded,
    ChildStarted,
    CommitInDoubt,
    FanOut,
    FunctionAction,
    Graph,
    Limits,
    Outcome,
    Rejected,
    SpuriousCancel,
    State,
    TooFewChildren,
    action,
    fan_out,
)
from shoal.testing import run_virtual
from tests.test_cancellation import Watched, cancellation, seen_runs, this_task

__all__ = ["seen_runs"]  # a fixture

Backend = Literal["asyncio", "trio"]
MOMENTS = [0, 0, 0.25, 0.5, 0.5, 1]  # few different ones, so that many things meet in one
EXPECTED = (ValueError, OSError, LookupError, SpuriousCancel, Rejected, TooFewChildren)


async def nap() -> None:
    await anyio.sleep(0.25)


# -- programs --------------------------------------------------------------------------------------


async def live(random: Random, *, spoil: bool, on_asyncio: bool) -> None:
    """What a random action does: wait, fail, clean up, and sometimes misbehave."""
    fate = random.random()
    try:
        for _ in range(random.randrange(3)):
            if random.random() < 0.5:
                await anyio.sleep(random.choice(MOMENTS))
            else:
                await checkpoint()
        if fate < 0.08:
            raise ValueError
        if spoil and fate < 0.2:
            await misbehave(fate, on_asyncio=on_asyncio)
        if fate > 0.95:
            with suppress(anyio.get_cancelled_exc_class()):  # swallows its cancellation
                await anyio.sleep(3)
    finally:
        cleanup = random.random()
        if cleanup < 0.2:
            with anyio.CancelScope(shield=True):
                await nap()
        elif cleanup < 0.25:
            raise OSError("cleanup")


async def misbehave(fate: float, *, on_asyncio: bool) -> None:
    if fate < 0.12:
        raise cancellation()
    if fate < 0.14:
        raise GeneratorExit
    if on_asyncio:
        this_task().cancel()
        if fate < 0.17:
            await checkpoint()


@dataclass
class Program:
    """A random graph: perhaps a step, a fan-out up to three deep, perhaps another step."""

    random: Random
    on_asyncio: bool
    limits: dict[str, int] = field(default_factory=dict[str, int])
    acts: int = 0

    def __post_init__(self) -> None:
        self.spoil = self.random.random() < 0.3
        steps = [self.step() for _ in range(self.random.randrange(3))]
        self.graph = Graph.chain(*steps[:1], self.level(self.random.randrange(3)), *steps[1:])
        self.given = {"item": 1}
        self.settings = dict[str, Any]()

    def name(self, prefix: str) -> str:
        self.acts += 1
        return f"{prefix}{self.acts}"

    def step(self) -> FunctionAction[Any, Any]:
        name, seed = self.name("step"), self.random.random()

        @action(reads=["item"], writes=[name], name=name)
        async def step(item: int) -> int:
            random = Random(f"{seed} {item}")
            await live(random, spoil=self.spoil, on_asyncio=self.on_asyncio)
            return item

        return step

    def level(self, deeper: int) -> FanOut:
        random, name = self.random, self.name("level")
        steps = [self.step() for _ in range(random.choice([0, 1, 2] if deeper else [1, 2]))]
        inner = [self.level(deeper - 1)] if deeper else []
        limit = self.limits[name] = random.choice([1, 2, 3, 100])
        on_error = random.choice(["fail", "collect"])
        options: dict[str, Any] = {
            "over": random_source(random.random(), random.randrange(7)),
            "reads": ["item"],
            "at_most": random.randrange(5) if random.random() < 0.2 else None,
            "on_error": on_error,
            "limits": Limits(limit),
        }
        if on_error == "collect" and random.random() < 0.5:
            options["errors_into"] = f"{name} errors"
        match random.choice(["list", "mapping", "reduce", "grow"]):
            case "list":
                options |= {"into": name, "take": plain}
            case "mapping":
                options |= {"into": name, "take": plain, "key": str}
            case "grow":
                options |= {"into": name, "take": plain, "key": int, "grow": grow}
            case _:
                reduce = random_reducer(random.random(), name)
                options |= {"reduce": reduce, "writes": [name], "name": name}
        return fan_out(Graph.chain(*steps, *inner), **options)

    def check(self, watched: Watched, end: str) -> None:
        in_flight = Counter[tuple[str, str]]()
        for event in watched.hook.events:
            match event:
                case ChildStarted():
                    in_flight[event.run_id, event.step] += 1
                    assert in_flight[event.run_id, event.step] <= self.limits[event.step]
                case ChildEnded() if event.outcome.attempts:
                    in_flight[event.run_id, event.step] -= 1
                case _:
                    pass
        if end == "succeeded":
            ends = [event.outcome for event in watched.of(ChildEnded)]
            assert not any(isinstance(outcome, Cancelled) for outcome in ends)


def random_source(seed: float, width: int) -> Callable[[State], Any]:
    """A list, a generator or an async generator of numbers; some fail, some take their time."""

    def listed(state: State) -> list[int]:
        return [10 * state["item"] + n for n in range(width)]

    def generated(state: State) -> Iterator[int]:
        yield from listed(state)
        if Random(seed).random() < 0.1:
            raise LookupError("source")

    async def generated_async(state: State) -> AsyncIterator[int]:
        random = Random(seed)
        try:
            for n in generated(state):
                if random.random() < 0.4:
                    await anyio.sleep(random.choice(MOMENTS))
                yield n
        finally:
            if random.random() < 0.3:
                with anyio.CancelScope(shield=True):
                    await nap()

    return Random(seed).choice([listed, generated, generated_async])


def random_reducer(seed: float, into: str) -> Callable[[State, Outcome], State]:
    def reduce(state: State, outcome: Outcome) -> State:
        if Random(f"{seed} {outcome.position}").random() < 0.04:
            raise LookupError("reduce")
        return state.append(**{into: outcome.position})

    return reduce


def plain(state: State) -> list[str]:
    return sorted(state)


def grow(state: State, outcome: Outcome) -> Iterable[int]:
    return [outcome.element + 100] if outcome.element < 200 else []


# -- interruptions ---------------------------------------------------------------------------------


class Subject(Protocol):
    """A random program."""

    graph: Graph
    given: dict[str, Any]
    """What it starts with."""
    settings: dict[str, Any]
    """Of its application."""

    def check(self, watched: Watched, end: str) -> None:
        """Assert what has to hold after a run that has ended so."""
        ...


Make = Callable[[Random, bool], Subject]


@dataclass
class Case:
    """A program, what its store and hooks are like, and how and when it is interrupted."""

    seed: int
    backend: Backend
    make: Make

    def __post_init__(self) -> None:
        random = Random(f"{self.backend} {self.seed}")
        on_asyncio = self.backend == "asyncio"
        self.program = self.make(random, on_asyncio)
        waits = random.choice([None, None, checkpoint, nap])
        self.watched = Watched(self.program.graph, waits=waits, **self.program.settings)
        native = ["native", "twice", "timeout", "both"]
        self.interrupt = random.choice(
            ["nothing", "scope", "scope", *(native if on_asyncio else [])]
        )
        self.after = random.choice([0, 0.25, 0.5, 0.5, 1, 1.25, 2])
        self.turns = random.randrange(6)

    async def wait(self) -> None:
        """Until it is to be interrupted: at a moment, and at a turn of the loop within it."""
        await anyio.sleep(self.after)
        for _ in range(self.turns):
            await checkpoint()

    async def go(self) -> str:
        """Run the program to its end, or to where it is interrupted."""
        try:
            await self.watched.go(self.program.given)
        except Exception as error:
            causes = list(leaves(error))
            if any(isinstance(cause, CommitInDoubt) for cause in causes):
                return "in doubt"
            if all(isinstance(cause, EXPECTED) for cause in causes):
                return "failed"
            raise
        return "succeeded"


def leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in cast("BaseExceptionGroup[BaseException]", error).exceptions:
            yield from leaves(inner)
    else:
        yield error


async def in_a_scope(case: Case) -> str:
    end = ""

    async def cancel(scope: anyio.CancelScope) -> None:
        await case.wait()
        scope.cancel()

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            if case.interrupt == "scope":
                tasks.start_soon(cancel, scope)
            end = await case.go()
            tasks.cancel_scope.cancel()
    assert scope.cancelled_caught == (not end), "a cancel was lost, or came from nowhere"
    return end


async def in_a_timeout(case: Case) -> str:
    end = ""
    try:
        async with asyncio.timeout(case.after):
            end = await case.go()
    except TimeoutError:
        assert not end
    else:
        assert end
    assert this_task().cancelling() == 0
    return end


async def in_a_task(case: Case) -> str:
    """Cancelled natively, once or twice, or natively and by a scope."""
    end, scope, left = "", anyio.CancelScope(), False

    async def caller() -> None:
        nonlocal end, left
        with scope:
            try:
                end = await case.go()
            finally:
                left = True

    task = asyncio.create_task(caller())
    await case.wait()
    requests = 0
    if case.interrupt == "both":
        early = case.turns % 2
        if early:
            scope.cancel()
        requests += not left and task.cancel()
        scope.cancel()
    else:
        for _ in range(2 if case.interrupt == "twice" else 1):
            requests += task.cancel()
            if case.turns % 2:
                await asyncio.sleep(0)
    await asyncio.wait([task])
    assert task.cancelled() == (requests > 0), "a cancel was lost, or came from nowhere"
    assert task.cancelling() == requests
    return end


async def run_case(case: Case) -> str:
    tasks = len(anyio.get_running_tasks())
    match case.interrupt:
        case "nothing" | "scope":
            end = await in_a_scope(case)
        case "timeout":
            end = await in_a_timeout(case)
        case _:
            end = await in_a_task(case)
    for _ in range(3):
        await checkpoint()
    assert len(anyio.get_running_tasks()) == tasks, "alive afterwards"
    check(case, end)
    return end


def check(case: Case, end: str) -> None:
    watched, run = case.watched, case.watched.run
    in_doubt = run is not None and run.setting.execution.unsaved
    assert in_doubt or end != "in doubt"
    if in_doubt:  # an action cancelled its own task in the middle of a save
        watched.hook.assert_paired()
    else:
        watched.check()
    case.program.check(watched, end)


def fuzz(backend: Backend, seeds: Iterable[int], make: Make = Program) -> None:
    ends = Counter[str]()
    for seed in seeds:
        for schedule in (None, seed) if backend == "asyncio" else (seed,):
            try:
                case = Case(seed, backend, make)
                ends[run_virtual(run_case, case, backend=backend, seed=schedule)] += 1
            except BaseException as error:
                error.add_note(f"seed {seed} on {backend}, schedule {schedule}")
                raise
    assert {"", "succeeded", "failed"} <= set(ends), "the cases are too much alike"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_random_programs(backend: Backend):
    fuzz(backend, range(300))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("block", range(10))
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_many_random_programs(backend: Backend, block: int):
    fuzz(backend, range(1000 * (block + 1), 1000 * (block + 2)))
