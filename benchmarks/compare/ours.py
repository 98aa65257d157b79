"""The workloads with shoal."""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio

from benchmarks.compare.served import served
from benchmarks.compare.workloads import Job, Part, Program
from shoal import (
    Application,
    Graph,
    Hook,
    Limits,
    Rate,
    Runtime,
    SQLiteStore,
    State,
    action,
    fan_out,
    race,
)
from shoal.events import StateUpdated

FAST = Rate(1e9, burst=1e9)


class Listening(Hook):
    """Receives one kind of event, and does nothing."""

    observer = True

    def on_state_updated(self, event: StateUpdated) -> None:
        pass


def contenders(backend: str) -> dict[str, dict[str, Program]]:
    return {"shoal": programs(_trio_turn if backend == "trio" else _turn)}


async def _turn() -> None:
    await asyncio.sleep(0)


async def _trio_turn() -> None:
    await sys.modules["trio"].sleep(0)


def programs(turn: Callable[[], Awaitable[None]]) -> dict[str, Program]:
    if turn is _turn:

        async def passed(n: int) -> int:
            await asyncio.sleep(0)
            return n + n
    else:

        async def passed(n: int) -> int:
            await sys.modules["trio"].sleep(0)
            return n + n

    @action(reads=["n"], writes=["double"])
    async def double(n: int) -> int:
        return await passed(n)

    @action(reads=["double"], writes=["fourfold"])
    async def again(double: int) -> int:
        return await passed(double)

    @action(reads=["n"], writes=["double"])
    async def from_state(state: State) -> State:
        return state.update(double=await passed(state["n"]))

    @action(reads=["n"], writes=["double"])
    async def slow(n: int) -> int:
        await anyio.sleep(0.001)
        return n + n

    @action(reads=["n"], writes=["double"])
    def in_thread(n: int) -> int:
        return n + n

    @action(reads=["n"], writes=["double"])
    async def meeting(n: int) -> int:
        meeting_place.started += 1
        if meeting_place.started == meeting_place.wanted:
            meeting_place.all_started.set()
        await meeting_place.all_started.wait()
        return n + n

    meeting_place = _MeetingPlace()

    def further(number: int) -> Any:
        @action(reads=["double"], writes=["double"], name=f"step{number}")
        async def step(double: int) -> int:
            return double

        return step

    eleven = Graph.chain(double, *map(further, range(10)), name="eleven")
    two = Graph.chain(double, again, name="two")

    def app(
        act: Any, job: Job, *, take: str = "double", limits: Limits | None = None, **how: Any
    ) -> Application:
        limited = Limits(job.limit) if limits is None else Limits(job.limit) & limits
        spread = fan_out(
            act, over="numbers", item="n", key=int, into="found", take=take, limits=limited
        )
        return Application(spread, **how)

    def mapped(act: Any, **how: Any) -> Program:
        # Made in the first round and kept, as programs make theirs when they are imported.
        kept: dict[int, Application] = {}

        def program(job: Job) -> object:
            made = kept.get(job.limit)
            if made is None:
                made = kept[job.limit] = app(act, job, **how)
            return made.run_sync({"numbers": range(job.items)}, backend=job.backend).state["found"]

        return program

    def listed(job: Job) -> object:
        spread = fan_out(
            double, over="numbers", item="n", into="found", take="double", limits=Limits(job.limit)
        )
        made = Application(spread)
        return made.run_sync({"numbers": range(job.items)}, backend=job.backend).state["found"]

    def count(state: State, _: object) -> State:
        return state.increment(count=1)

    def counted(job: Job) -> object:
        spread = fan_out(
            double,
            over="numbers",
            item="n",
            reduce=count,
            writes=["count"],
            name="counting",
            limits=Limits(job.limit),
        )
        found = Application(spread).run_sync(
            {"numbers": range(job.items), "count": 0}, backend=job.backend
        )
        return found.state["count"]

    def limited_above(job: Job) -> object:
        made = Application(app(double, job).graph, limits=Limits(job.limit))
        return made.run_sync({"numbers": range(job.items)}, backend=job.backend).state["found"]

    inner = fan_out(
        double, over="ten", item="n", into="found", take="double", limits=Limits(10), name="inner"
    )
    nested_app = fan_out(
        inner,
        over="groups",
        item="ten",
        key=lambda ten: ten[0] // 10,
        into="all",
        take=lambda state: sum(state["found"]),
        name="outer",
    )

    def nested(job: Job) -> object:
        groups = [range(10 * n, 10 * n + 10) for n in range(job.items // 10)]
        found = Application(nested_app).run_sync({"groups": groups}, backend=job.backend)
        return found.state["all"]

    def streamed(job: Job) -> object:
        async def main() -> object:
            seen = 0
            async with app(double, job).open({"numbers": range(job.items)}) as run:
                async for event in run:
                    seen += isinstance(event, StateUpdated)
                result = await run.result()
            assert seen >= job.items
            return result.state["found"]

        return anyio.run(main, backend=job.backend)

    @action(writes=["answer"])
    async def quick() -> str:
        await turn()
        return "quick"

    @action(writes=["answer"])
    async def never() -> str:
        await anyio.sleep(3600)
        return "never"

    def contest(contestants: int) -> Application:
        acts = [
            quick if n == contestants // 2 else never.bind(name=f"never{n}")
            for n in range(contestants)
        ]
        return Application(race(*acts, into="answer", limits=Limits(contestants)))

    async def won(made: Application, races: int) -> int:
        done = 0
        async with Runtime() as runtime:
            for _ in range(races):
                done += (await made.run(runtime=runtime)).state["answer"] == "quick"
        return done

    def raced(job: Job) -> object:
        return anyio.run(won, contest(job.limit), job.items, backend=job.backend)

    def raced_by_many(job: Job) -> object:
        races = job.items // job.limit
        return anyio.run(won, contest(job.limit), races, backend=job.backend) * job.limit

    async def runs(job: Job, made: Application) -> int:
        done = 0
        async with Runtime() as runtime:
            for n in range(job.items):
                done += (await made.run({"n": n}, runtime=runtime)).state["double"] == 2 * n
        return done

    def one_run(job: Job) -> object:
        return anyio.run(runs, job, Application(double), backend=job.backend)

    async def durable_runs(job: Job) -> int:
        # The file stays open for all of them, as in a service.
        async with SQLiteStore(job.folder / "runs.db") as store:
            return await runs(job, Application(double, store=store, watch=False))

    def durable_run(job: Job) -> object:
        return anyio.run(durable_runs, job, backend=job.backend)

    def meet(job: Job) -> object:
        meeting_place.started, meeting_place.wanted = 0, job.items
        meeting_place.all_started = anyio.Event()
        spread = fan_out(
            meeting,
            over="numbers",
            item="n",
            reduce=count,
            writes=["count"],
            name="counting",
            limits=Limits(job.limit),
        )
        found = Application(spread).run_sync(
            {"numbers": range(job.items), "count": 0}, backend=job.backend
        )
        return found.state["count"]

    def durable(job: Job) -> object:
        made = app(double, job, store=SQLiteStore(job.folder / "runs.db"), watch=False)
        return made.run_sync({"numbers": range(job.items)}, backend=job.backend).state["found"]

    @action(reads=["n"], writes=["double"])
    async def fails_once(n: int) -> int:
        if n == unfinished.last:
            unfinished.last = -1
            raise ConnectionError
        return await passed(n)

    unfinished = _Unfinished()

    def resumed(job: Job) -> object:
        if not (job.folder / "runs.db").exists():
            unfinished.last = job.items - 1
        made = app(fails_once, job, store=SQLiteStore(job.folder / "runs.db"), watch=False)
        try:
            found = made.run_sync({"numbers": range(job.items)}, id="x", backend=job.backend)
        except ConnectionError:
            return None
        except ExceptionGroup as failures:
            if failures.split(ConnectionError)[1] is not None:
                raise
            return None
        return found.state["found"]

    return {
        "map": mapped(double),
        "state": mapped(from_state),
        "two": mapped(two, take="fourfold"),
        "eleven": mapped(eleven),
        "sleep": mapped(slow),
        "nested": nested,
        "list": listed,
        "count": counted,
        "hook": mapped(double, hooks=[Listening()]),
        "hooks": mapped(double, hooks=[Listening() for _ in range(5)]),
        "stream": streamed,
        "capacity": limited_above,
        "rate": mapped(double, limits=Limits(rate=FAST)),
        "race": raced,
        "race1000": raced_by_many,
        "race-seen": lambda job: anyio.run(partial(races, job, seen=True), backend=job.backend),
        "race-back": lambda job: anyio.run(partial(races, job, seen=False), backend=job.backend),
        "cancel": lambda job: anyio.run(cancelled, job, backend=job.backend),
        "run": one_run,
        "service": served("/run"),
        "threads": mapped(in_thread),
        "memory": meet,
        "durable": durable,
        "durable-run": durable_run,
        "resume": resumed,
    }


@action(writes=["never"])
async def sleep_for_ever() -> None:
    await anyio.sleep(3600)


async def cancelled(job: Job) -> Part:
    """Cancel the run of many children in flight, all of which wait."""
    spread = fan_out(
        sleep_for_ever, over="numbers", item="n", into="found", limits=Limits(job.limit)
    )
    wall = cpu = 0.0
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(Application(spread).run, {"numbers": range(job.items)})
        await anyio.wait_all_tasks_blocked()
        gc.collect()  # one that is due must not be measured
        wall, cpu = time.perf_counter(), time.process_time()
        tasks.cancel_scope.cancel()
    return Part(job.items, time.perf_counter() - wall, time.process_time() - cpu)


class Winner(Hook):
    """Notes when a race's winner is published."""

    observer = True

    def __init__(self) -> None:
        self.at = 0.0, 0.0

    def on_state_updated(self, event: StateUpdated) -> None:
        if event.depth == 0 and event.outcome is not None:
            self.at = time.perf_counter(), time.process_time()


async def races(job: Job, *, seen: bool) -> Part:
    """Measure from each winner's return until it is published, or until the run is back."""
    returned, winner = [0.0, 0.0], Winner()

    @action(writes=["answer"])
    async def first() -> str:
        await anyio.sleep(0.001)
        returned[:] = time.perf_counter(), time.process_time()
        return "first"

    @action(writes=["answer"])
    async def late() -> str:
        await anyio.sleep(3600)
        return "late"

    acts = [first if n == job.limit // 2 else late.bind(name=f"late{n}") for n in range(job.limit)]
    made = Application(race(*acts, into="answer"), hooks=[winner] if seen else ())
    done, wall, cpu = 0, 0.0, 0.0
    async with Runtime() as runtime:
        for _ in range(job.items):
            done += (await made.run(runtime=runtime)).state["answer"] == "first"
            at = winner.at if seen else (time.perf_counter(), time.process_time())
            wall, cpu = wall + at[0] - returned[0], cpu + at[1] - returned[1]
    return Part(done, wall, cpu)


class _MeetingPlace:
    started = 0
    wanted = 0
    all_started: anyio.Event


class _Unfinished:
    last = -1
