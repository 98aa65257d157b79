"""The example of a service: a review from its files to its verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
from httpx import ASGITransport, AsyncClient

from examples.fastapi_service.review import File
from examples.fastapi_service.service import make_service

pytestmark = pytest.mark.anyio

ALLOWED = {"authorization": "Bearer secret"}
FILES = [File(path=f"{name}.py", text="x = 1\n" * n).model_dump() for n, name in enumerate("abc")]


async def settled(client: AsyncClient) -> dict[str, Any]:
    """The review, once it waits for a person or has ended."""
    found: dict[str, Any] = {"status": "running"}
    while found["status"] == "running":
        await anyio.sleep(0.1)
        found = (await client.get("/reviews/pr-1")).json()
    return found


async def test_a_review(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("REVIEWS_TOKEN", "secret")
    service = make_service(str(tmp_path / "reviews.db"))
    async with service.router.lifespan_context(service) as state:

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await service({**scope, "state": dict(state or {})}, receive, send)

        transport = ASGITransport(app)
        async with AsyncClient(transport=transport, base_url="http://x", headers=ALLOWED) as client:
            for header in ("", "Bearer wrong"):
                refused = await client.get("/reviews", headers={"authorization": header})
                assert refused.status_code in (401, 403)
            assert (await client.get("/readyz", headers={"authorization": ""})).status_code == 200
            body: dict[str, Any] = {"id": "pr-1", "state": {"files": FILES}}
            assert (await client.post("/reviews", json=body)).status_code == 202
            assert (await client.get("/busy")).json() == {"reviews": ["pr-1"]}
            found = await settled(client)
            assert found["status"] == "halted"
            findings = {"a.py": "0 lines", "b.py": "1 lines", "c.py": "2 lines"}
            assert found["questions"][0]["question"]["findings"] == findings
            for value in ("maybe", "", None, ["accepted"]):
                mistyped = {"answers": [{"name": "verdict", "value": value}]}
                response = await client.post("/reviews/pr-1/answers", json=mistyped)
                assert response.status_code == 202
                found = await settled(client)
                assert (found["status"], found["state"]["verdict"]) == ("halted", "")
                assert found["questions"][0]["question"]["not_understood"] == repr(value)
            answers = {"answers": [{"name": "verdict", "value": "accepted"}]}
            await client.post("/reviews/pr-1/answers", json=answers)
            events = await client.get("/reviews/pr-1/events")
            assert '"status":"succeeded"' in events.text
            assert (await client.get("/reviews/pr-1")).json()["state"]["verdict"] == "accepted"
