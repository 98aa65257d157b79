"""What tests of backends share: a server of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .redis_server import SERVERS, Server, find


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """Whatever server of Redis's kind there is; or, where a test names some, that one."""
    named: str | None = getattr(request, "param", None)
    served = Server(find(*(SERVERS if named is None else (named,))), tmp_path)
    served.start()
    try:
        yield served
    finally:
        served.kill()
