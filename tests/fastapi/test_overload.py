"""Runs that limits refuse because they are overloaded: 503, and when to come back."""

from __future__ import annotations

import anyio
import pytest
from httpx import Response

from shoal import Application, Limits, Rate, action, fan_out, race
from shoal.testing import no_leaks
from tests.fastapi.inside import client_of, service_of

pytestmark = pytest.mark.anyio

limits = Limits(rate=Rate(1, per=5), waiting=1)


@action(reads=["n"], writes=["out"], limits=limits)
async def ask(n: int) -> int:
    return n


alone = Application(ask, name="alone")
many = Application(fan_out(ask, over="ns", item="n", into="outs"), name="many")
some = Application(race(ask, ask.bind(name="again"), into="won", take="out"), name="some")


@pytest.mark.parametrize("app", [alone, many, some])
async def test_what_finds_too_many_waiting_is_answered_with_503(app: Application[object]):
    service, _ = service_of(alone, many, some)
    responses: list[Response] = []
    async with no_leaks(), client_of(service) as client:

        async def wait(name: str, id: str) -> None:
            sent = {"id": id, "state": {"n": 1, "ns": [1, 2]}}
            responses.append(await client.post(f"/{name}/wait", json=sent))

        async with anyio.create_task_group() as tasks:
            for n in range(2):
                tasks.start_soon(wait, "alone", str(n))
                await anyio.sleep(0.1)
            await wait(app.name, "refused")
            refused = responses[-1]
            assert refused.status_code == 503
            assert refused.headers["retry-after"] == "5"
            assert "wait" in refused.json()["detail"]
        await anyio.sleep(10)
        await wait(app.name, "refused")
    assert [one.status_code for one in responses] == [200, 503, 200, 200]
    assert responses[-1].json()["status"] == "succeeded"
