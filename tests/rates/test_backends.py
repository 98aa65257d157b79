"""What each backend of shared rates and budgets does: as reckoned, for any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal.rates import MemoryRates, RateBackend
from shoal.testing import RateBackendConformance

from .redis_server import SERVERS, Server, find

pytestmark = [pytest.mark.anyio, pytest.mark.realtime]

real = pytest.mark.services, pytest.mark.sweep


@pytest.fixture(
    params=["memory", *(pytest.param(name, marks=real) for name in (*SERVERS, "postgres"))]
)
def clients(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """A function that makes clients of one server; in memory there is one client."""
    match request.param:
        case "memory":
            rates = MemoryRates()
            yield lambda: rates
        case "postgres":
            from shoal.rates.postgres import PostgresRates

            server = request.getfixturevalue("postgres")
            schema = server.new_schema()
            clients = [PostgresRates(server.address(), schema=schema) for _ in range(2)]
            yield iter(clients).__next__
            for client in clients:
                client.close()
        case program:
            from shoal.rates.redis import RedisRates

            served = Server(find(program), tmp_path)
            served.start()
            links = [RedisRates(served.url) for _ in range(2)]
            yield iter(links).__next__
            for link in links:
                link.close()
            served.kill()


class TestBackends(RateBackendConformance):
    @pytest.fixture
    def backend(self, clients: Callable[[], RateBackend]) -> RateBackend:
        first, self._second = clients(), clients()
        return first

    def another(self, backend: RateBackend) -> RateBackend:
        return self._second
