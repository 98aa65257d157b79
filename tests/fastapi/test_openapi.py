"""Requests that nobody would think of, made of what the service says of itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fastapi.serving import serving

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)


@pytest.mark.services
@pytest.mark.timeout(600)
@pytest.mark.parametrize("examples", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_no_request_makes_the_service_fail(examples: int, tmp_path: Path):
    app, store = "tests.fastapi.served:service", str(tmp_path / "runs.db")
    with serving("uvicorn", app, STORE=store, MOST_SECONDS="0.05") as server:
        url = f"http://127.0.0.1:{server.port}/openapi.json"
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "run", url, "--no-color", "--seed=1"),
            *(f"--checks={','.join(CHECKS)}", f"--max-examples={examples}"),
            *("--request-timeout=20", "--generation-database=none"),
        ]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, cwd=tmp_path, timeout=550
        )
        assert done.returncode == 0, done.stdout
        assert server.process.poll() is None
