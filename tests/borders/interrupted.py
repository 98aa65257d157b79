"""Programs that are interrupted at random moments in random ways, on shuffled schedules.

Whatever happens: updates are numbered one by one, saved before they are seen, and replay to the
state; every start has its end, every key ends once, cause precedes effect; a cancel is never lost;
and nothing is alive afterwards. The programs are those of `test_graphs`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, Protocol

import anyio
from anyio.lowlevel import checkpoint

from shoal import Graph
from shoal.errors import CommitInDoubt, Rejected, SpuriousCancel, TooFewChildren
from shoal.testing import run_virtual
from shoal.testing._invariants import leaves
from tests.engine.test_cancellation import Watched, seen_runs, this_task

__all__ = ["seen_runs"]  # a fixture

Backend = Literal["asyncio", "trio"]
MOMENTS = [0, 0, 0.25, 0.5, 0.5, 1]  # few different ones, so that many things meet in one
EXPECTED = (ValueError, OSError, LookupError, SpuriousCancel, Rejected, TooFewChildren)


async def nap() -> None:
    await anyio.sleep(0.25)


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
    in_doubt = run is not None and run.config.execution.unsaved
    assert in_doubt or end != "in doubt"
    if in_doubt:  # an action cancelled its own task in the middle of a save
        watched.hook.assert_paired()
    else:
        watched.check()
    case.program.check(watched, end)


def fuzz(backend: Backend, seeds: Iterable[int], make: Make) -> None:
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
