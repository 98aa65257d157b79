"""The programs of the page about services."""

from __future__ import annotations

import gc
import re
from pathlib import Path
from typing import Any

import anyio
import pytest
from httpx import ASGITransport, AsyncClient

PAGE = Path(__file__).parents[2] / "docs" / "services.md"


def program(number: int) -> dict[str, Any]:
    """Run a program of the page; return what it has defined."""
    text = PAGE.read_text("utf-8")
    block = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)[number]
    names: dict[str, Any] = {"__name__": "page"}
    thresholds = gc.get_threshold()
    try:
        exec(compile(block, str(PAGE), "exec"), names)
    finally:
        gc.set_threshold(*thresholds)
    return names


def test_without_a_framework(capsys: pytest.CaptureFixture[str]):
    program(0)
    assert capsys.readouterr().out.splitlines() == [
        "['three', 'twelve']",
        "succeeded 9",
        "['twelve']",
    ]


def test_with_fastapi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    service = program(1)["service"]

    async def main() -> None:
        async with service.router.lifespan_context(service) as state:

            async def app(scope: Any, receive: Any, send: Any) -> None:
                await service({**scope, "state": dict(state)}, receive, send)

            transport = ASGITransport(app)
            async with AsyncClient(transport=transport, base_url="http://x") as client:
                assert (await client.get("/square/3")).status_code in (401, 403)
                client.headers["authorization"] = "Bearer secret"
                assert (await client.get("/square/3")).json() == 9
                found = await client.post("/runs/wait", json={"state": {"n": 4}})
                assert found.json()["state"] == {"n": 4, "square": 16}

    anyio.run(main)
