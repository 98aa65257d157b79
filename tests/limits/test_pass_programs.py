"""Random programs with passes and without: attempts start at the same moments.

A pass takes what a request would have been granted, and nothing else. So programs whose children
only make requests are the model of the same programs with passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from random import Random
from typing import Any

import anyio
import pytest

from shoal import (
    Application,
    Budget,
    Each,
    Graph,
    Hedge,
    Limits,
    Rate,
    Retry,
    RetryLater,
    RunHandle,
    Runtime,
    SharedRate,
    action,
    fan_out,
    first,
    quorum,
)
from shoal._limits.passes import Passes
from shoal.errors import BadUse
from shoal.rates import MemoryRates
from shoal.testing import run_virtual
from tests.limits.test_passes import nothing_taken
from tests.limits.test_scheduler import Unit

AGAIN = Retry(3, on=ConnectionError, initial=0.1, jitter=0)
RUN: ContextVar[int] = ContextVar("RUN")


class Program:
    """Up to three runs within the same few limits: nested, retried, raced, paused, cancelled."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.random = random = Random(seed)
        self.starts: list[tuple[float, int, str, int]] = []
        self.attempts: dict[tuple[int, str, int], int] = {}
        self.limited: list[Any] = []  # actions with limits
        self.handles: dict[int, RunHandle[Any]] = {}
        self.has_priorities = seed % 3 == 0
        self.pool = [self.limits() for _ in range(3)]
        self.of_runtime = self.one_of_them(0.3)
        self.runs: list[tuple[Application[Any], float, int, Any, float]] = []
        for number in range(random.choice([1, 2, 3])):
            app = self.application(f"r{number}")
            priority = random.choice(["normal", "batch", "interactive"])
            self.runs.append(
                (
                    app,
                    random.random() * 2 * (number > 0),
                    random.randrange(1, 14),
                    priority if self.has_priorities else "normal",
                    random.random() * 6 if random.random() < 0.2 else math.inf,
                )
            )
        self.steps = [
            (random.random() * 5, random.choice([self.shut, self.change, self.hold]))
            for _ in range(random.choice([0, 0, 1, 3]))
        ]
        # Their choices must not depend on how often the others have chosen.
        self.numbers = [Random(random.random()) for _ in self.steps]

    # -- what there is

    def limits(self) -> Limits:
        random, kind = self.random, self.random.random()
        rate = Rate(random.choice([2, 5, 20]), burst=random.choice([1, 6, 20]))
        if self.seed % 2 and kind < 0.3:  # for which only a request will do
            shared = SharedRate(Rate(20, burst=2), f"rate {random.random()}", MemoryRates())
            return random.choice(
                [
                    Budget(random.choice([5, 30]), "EUR", worst=1),
                    Limits(rate=shared),
                    Limits(random.choice([1, 2]), by=lambda state: state.get("n", 0) % 2),
                ]
            )
        if kind < 0.5:
            return Limits(random.choice([1, 2, 3, 5, 8]))
        if kind < 0.75:
            return Limits(rate=rate)
        if kind < 0.9:
            return Limits(random.choice([1, 2, 4]), rate=rate)
        return Limits(random.choice([2, 4])) & Limits(rate=rate)

    def one_of_them(self, chance: float) -> Limits | None:
        return self.random.choice(self.pool) if self.random.random() < chance else None

    def application(self, name: str) -> Application[Any]:
        random = self.random
        options: dict[str, Any] = {"on_error": "ignore"}
        if random.random() < 0.2:
            end = random.choice([first(), first(2), quorum(2)])
            options = {"until": end, "take": "x", "into": "found", "key": int}
        if random.random() < 0.2:
            each = random.choice([Each(retry=AGAIN), Each(hedge=Hedge(initial=0.2, budget=1))])
            options["each"] = each
        limits = self.one_of_them(0.2) or self.places()
        graph = self.graph(name, depth=1)
        step = fan_out(graph, over="ns", item="n", name=f"{name} all", limits=limits, **options)
        return Application(step, limits=self.one_of_them(0.25), name=name)

    def places(self) -> Limits:
        random = self.random
        places = Limits(random.choice([1, 2, 3, 8]))
        rate = Rate(random.choice([5, 20]), burst=random.choice([1, 4]))
        return places if random.random() < 0.6 else places & Limits(rate=rate)

    def graph(self, name: str, depth: int) -> Graph:
        random = self.random
        begin = self.act(f"{name} begin", "n", "x")
        if depth and random.random() < 0.35:

            @action(name=f"{name} spread", reads=["x"], writes=["xs"])
            async def spread(x: int) -> list[int]:
                return [10 * x + n for n in range(3)]

            below = self.graph(f"{name} below", depth - 1)
            step = fan_out(
                below, over="xs", item="n", name=f"{name} fan", limits=self.places(),
                on_error="ignore",
            )  # fmt: skip
            return Graph.chain(begin, spread, step, name=name)
        if random.random() < 0.6:
            return Graph.chain(begin, self.act(f"{name} end", "x", "y"), name=name)
        return Graph.chain(begin, name=name)

    def act(self, name: str, reads: str, writes: str) -> Any:
        limits, later = self.one_of_them(0.7), self.random.choice([0.0, 0.0, 0.3])
        retry = AGAIN if self.random.random() < 0.1 else None

        async def work(number: int) -> int:
            key = RUN.get(), name, number
            self.starts.append((round(anyio.current_time(), 9), *key))
            attempt = self.attempts[key] = self.attempts.get(key, 0) + 1
            random = Random(f"{self.seed} {name} {number}")
            await anyio.sleep(random.choice([0, 0.05, 0.3, 1]) * (1 + random.random()))
            kind = random.random()
            if kind < later and attempt == 1:
                raise RetryLater(random.random())
            if kind > 0.9 and attempt < 3:
                raise ConnectionError(name)
            return number

        if reads == "n":

            async def called(n: int) -> int:
                return await work(n)

            made = action(name=name, reads=["n"], writes=[writes], limits=limits, retry=retry)(
                called
            )
        else:

            async def called_next(x: int) -> int:
                return await work(x)

            made = action(name=name, reads=["x"], writes=[writes], limits=limits, retry=retry)(
                called_next
            )
        if limits is not None:
            self.limited.append(made)
        return made

    # -- what happens

    async def main(self) -> None:
        async with Runtime(limits=self.of_runtime) as self.runtime:
            for act in self.limited:  # with passes, they would be known earlier
                self.runtime.limiter(act)
            if self.has_priorities:  # and classes later, as a pass has no turn
                admission = self.runtime._admission  # pyright: ignore[reportPrivateUsage]
                admission.scheduler.flow_of(Unit("batch"), ())
            async with anyio.create_task_group() as tasks:
                for number, run in enumerate(self.runs):
                    tasks.start_soon(self.go, number, run)
                for random, (at, does) in zip(self.numbers, self.steps, strict=True):
                    tasks.start_soon(self.later, at, does, random)
            assert nothing_taken(self.runtime)

    async def go(self, number: int, run: tuple[Application[Any], float, int, Any, float]) -> None:
        app, at, many, priority, ends = run
        await anyio.sleep(at)
        RUN.set(number)
        handle = await self.runtime.start(app, {"ns": list(range(many))}, priority=priority)
        self.handles[number] = handle
        with anyio.move_on_after(ends):
            await handle.wait_ended()
        handle.cancel("its time is over")
        await handle.wait_ended()

    async def later(self, at: float, does: Any, random: Random) -> None:
        await anyio.sleep(at)
        await does(random)

    async def shut(self, random: Random) -> None:
        if self.limited:
            limiter = self.runtime.limiter(random.choice(self.limited))
            limiter.pause()
            await anyio.sleep(2 * random.random())
            limiter.resume()

    async def change(self, random: Random) -> None:
        numbers = random.choice([1, 2, 6]), random.choice([2, 9])
        of = [act for act in self.limited if all(_is_plain(part) for part in act.limits.parts)]
        if of:
            limiter = self.runtime.limiter(random.choice(of))
            n, k = numbers
            parts = [
                Limits(part.n and n, rate=part.rate and Rate(k, burst=n))
                for part in limiter.limits.parts
            ]
            limiter.change(parts[0] if len(parts) == 1 else parts[0] & parts[1])

    async def hold(self, random: Random) -> None:
        handle = self.handles.get(random.choice([0, 1, 2]))
        if handle is None:
            return
        try:
            await handle.pause()
            await anyio.sleep(2 * random.random())
            await handle.resume()
        except BadUse:
            return  # it has ended


def _is_plain(part: Any) -> bool:
    return part.by is None and part.terms is None and isinstance(part.rate, Rate | None)


def refused(_passes: Passes, _run: Any, _act: str) -> bool:
    return False


def played(seed: int, take: Callable[[Passes, Any, str], bool]) -> list[Any]:
    """Return when which attempts of a program start."""
    program = Program(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Passes, "take", take)
        run_virtual(program.main)
    return sorted(program.starts)


@pytest.mark.parametrize(
    "seeds", [(1, 66, 152, 168), pytest.param(range(150), marks=pytest.mark.slow)]
)
def test_the_same_starts_with_passes_as_with_requests_alone(seeds: Sequence[int]):
    taken, ties, take = [0], list[int](), Passes.take

    def counted(self: Passes, run: Any, act: str) -> bool:
        may = take(self, run, act)
        taken[0] += may and run.passed is not None
        return may

    for seed in seeds:
        passing, requesting = played(seed, counted), played(seed, refused)
        if passing != requesting:
            # Of two that come in one moment either may be first, and all later moments follow.
            at = min(set(passing) ^ set(requesting))[0]
            moments = [[one for one in all_ if one[0] == at] for all_ in (passing, requesting)]
            assert len(moments[0]) == len(moments[1]), (seed, *moments)
            ties.append(seed)
    assert taken[0] > len(seeds), "so this test can fail"
    assert len(ties) <= len(seeds) // 50
