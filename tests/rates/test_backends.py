"""What each backend of shared rates and budgets does: as reckoned, for any number of processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from shoal.rates import MemoryRates
from shoal.rates.postgres import PostgresRates
from shoal.rates.redis import RedisRates
from shoal.testing import RateBackendConformance
from tests.stores.postgres import PostgresServer

from .redis_server import SERVERS, Server

pytestmark = [pytest.mark.anyio, pytest.mark.realtime]


class TestMemoryRates(RateBackendConformance):
    @pytest.fixture
    def backend(self) -> MemoryRates:
        return MemoryRates()


class Shared(RateBackendConformance):
    """A backend with a server, whose second client is another one."""

    second: Any

    def another(self, backend: Any) -> Any:
        return self.second


@pytest.mark.services
@pytest.mark.parametrize("server", SERVERS, indirect=True)
class TestRedisRates(Shared):
    @pytest.fixture
    def backend(self, server: Server) -> Iterator[RedisRates]:
        with RedisRates(server.url) as rates, RedisRates(server.url) as self.second:
            yield rates


@pytest.mark.services
class TestPostgresRates(Shared):
    @pytest.fixture
    def backend(self, postgres: PostgresServer) -> Iterator[PostgresRates]:
        where, schema = postgres.address(), postgres.new_schema()
        with (
            PostgresRates(where, schema=schema) as rates,
            PostgresRates(where, schema=schema) as self.second,
        ):
            yield rates
