"""The map with pydantic-graph's builder: a task for each element, and a semaphore as the limit."""

# pyright: basic, reportMissingImports=false
# (Only `nox -s bench` installs it.)

from __future__ import annotations

import asyncio
from typing import Any

from pydantic_graph import GraphBuilder, StepContext, reduce_dict_update

from benchmarks.compare.by_hand import body, looped
from benchmarks.compare.workloads import Job, Program


def built() -> Any:
    builder: Any = GraphBuilder(
        deps_type=asyncio.Semaphore, input_type=list[int], output_type=dict[int, int]
    )

    @builder.step
    async def spread(ctx: StepContext[Any, Any, list[int]]) -> list[int]:
        return ctx.inputs

    @builder.step
    async def double(ctx: StepContext[Any, asyncio.Semaphore, int]) -> dict[int, int]:
        async with ctx.deps:
            return {ctx.inputs: await body(ctx.inputs)}

    collect = builder.join(reduce_dict_update, initial_factory=dict)
    builder.add(
        builder.edge_from(builder.start_node).to(spread),
        builder.edge_from(spread).map().to(double),
        builder.edge_from(double).to(collect),
        builder.edge_from(collect).to(builder.end_node),
    )
    return builder.build()


def contenders(backend: str) -> dict[str, dict[str, Program]]:
    if backend != "asyncio":
        return {}
    graph = built()

    async def mapped(job: Job) -> Any:
        deps = asyncio.Semaphore(job.limit)
        return await graph.run(inputs=list(range(job.items)), deps=deps)

    return {"pydantic": {"map": looped(mapped)}}
