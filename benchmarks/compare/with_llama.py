"""The map with llama-index-workflows: an event for each element, a step with so many workers."""

# pyright: basic, reportMissingImports=false
# (Only `nox -s bench` installs it.)

from __future__ import annotations

from typing import Any

from workflows import Context, Workflow, step
from workflows.events import Event, StartEvent, StopEvent

from benchmarks.compare.by_hand import body, looped
from benchmarks.compare.workloads import Job, Program


class Number(Event):
    n: int


class Doubled(Event):
    n: int
    double: int


def made(limit: int) -> type[Workflow]:
    class Doubles(Workflow):
        @step
        async def spread(self, ctx: Context, ev: StartEvent) -> Number | None:
            for n in range(ev.wanted):
                ctx.send_event(Number(n=n))
            return None

        @step(num_workers=limit)
        async def double(self, ctx: Context, ev: Number) -> Doubled:
            return Doubled(n=ev.n, double=await body(ev.n))

        @step(num_workers=1)
        async def collect(self, ctx: Context, ev: Doubled) -> StopEvent | None:
            found[ev.n] = ev.double
            return StopEvent(result=dict(found)) if len(found) == self.wanted else None

    found: dict[int, int] = {}
    return Doubles


def contenders(backend: str) -> dict[str, dict[str, Program]]:
    if backend != "asyncio":
        return {}

    async def mapped(job: Job) -> Any:
        workflow: Any = made(job.limit)(timeout=None)
        workflow.wanted = job.items
        return await workflow.run(wanted=job.items)

    return {"llama": {"map": looped(mapped)}}
