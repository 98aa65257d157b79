"""Metrics for Prometheus: ``service_router(metrics=True)``."""

from __future__ import annotations

import re

import anyio
import pytest
from fastapi import FastAPI, HTTPException

from shoal import Application, Breaker, Budget, Each, Limits, Runtime, action, fan_out
from shoal.fastapi import runs_router, runtime_lifespan, service_router
from shoal.testing import no_leaks
from tests.fastapi.inside import client_of

pytestmark = pytest.mark.anyio


@action(reads=["n"], writes=["out"], limits=Limits(2))
async def work(n: int) -> int:
    await anyio.sleep(n)
    if n == 2:
        raise ValueError("two")
    return n


app = Application(work, name='the "work"\n')
many = Application(
    fan_out(
        work,
        over="ns",
        item="n",
        into="outs",
        name="many",
        on_error="collect",
        limits=Limits(1),
        each=Each(breaker=Breaker(failures=1)),
    ),
    name="many",
)


def read(text: str) -> dict[str, float]:
    """Read metrics as Prometheus does."""
    found = dict[str, float]()
    for line in text.splitlines():
        if not line.startswith("#"):
            matched = re.fullmatch(r'(shoal_\w+(?:\{(?:\w+="(?:[^"\\]|\\.)*",?)+\})?) (\S+)', line)
            assert matched is not None, line
            assert matched[1] not in found, line
            found[matched[1]] = float(matched[2])
    return found


async def test_metrics_tell_what_the_runtime_does():
    runtime = Runtime(limits=Limits(5) & Budget(7, "USD", worst=0.5), max_runs=1, waiting=1)
    service = FastAPI(lifespan=runtime_lifespan(runtime))
    service.include_router(service_router(authorize=None, metrics=True))
    service.include_router(runs_router(app, authorize=None))
    async with no_leaks(), client_of(service) as client, anyio.create_task_group() as tasks:
        response = await client.get("/metrics")
        assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert read(response.text)["shoal_runs_executing"] == 0
        for n in range(3):
            sent = {"state": {"n": 1 + n % 2}}
            tasks.start_soon(lambda sent=sent: client.post("/runs/wait", json=sent))
            await anyio.sleep(0.1)
        now = read((await client.get("/metrics")).text)
        assert now["shoal_runs_executing"] == 1
        assert now["shoal_runs_waiting"] == 1
        assert now["shoal_runs_max"] == 1
        assert now["shoal_runs_max_waiting"] == 1
        assert now["shoal_runs_refused_total"] == 1
        assert now["shoal_draining"] == 0
        assert now['shoal_runs_running{application="the \\"work\\"\\n"}'] == 1
        assert now['shoal_limit_in_use{owner="runtime",part="0"}'] == 1
        assert now['shoal_limit_slots{owner="runtime",part="0"}'] == 5
        assert now['shoal_limit_slots{owner="work",part="0"}'] == 2
        await anyio.sleep(4)
        await runtime.run(many, {"ns": [2, 2, 2, 2]})
        text = (await client.get("/metrics")).text
        now = read(text)
        for status in ("succeeded", "failed"):
            labels = f'application="the \\"work\\"\\n",status="{status}"'
            assert now[f"shoal_runs_ended_total{{{labels}}}"] == 1
        assert now['shoal_runs_ended_total{application="many",status="succeeded"}'] == 1
        assert now['shoal_budget_amount{owner="runtime",part="1",unit="USD"}'] == 7
        assert now['shoal_budget_spent{owner="runtime",part="1",unit="USD"}'] > 0
        assert now['shoal_breaker_open{fan_out="many"}'] == 1
        assert now['shoal_breaker_skipped_total{fan_out="many"}'] == 3
        assert "shoal_runs_running" not in text
        assert text.count("# TYPE shoal_runs_ended_total counter\n") == 1


async def test_they_are_off_by_default_and_authorized():
    async def refuse() -> None:
        raise HTTPException(401)

    for has_metrics, status in ((False, 404), (True, 401)):
        service = FastAPI(lifespan=runtime_lifespan(Runtime()))
        service.include_router(service_router(authorize=refuse, metrics=has_metrics))
        async with no_leaks(), client_of(service) as client:
            assert (await client.get("/metrics")).status_code == status
