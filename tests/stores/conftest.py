"""What tests of stores share: a schema of their own in a PostgreSQL server."""

from __future__ import annotations

import pytest

from .durable import InSchema
from .postgres import PostgresServer


@pytest.fixture
def place(postgres: PostgresServer) -> InSchema:
    return InSchema(postgres)
