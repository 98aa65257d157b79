"""The durable map in PostgreSQL: on a given server, or on a temporary one on the disk.

Each run has its own schema, created before it and dropped after it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.map import LIMIT, by_shoal, doubles
from shoal import Application, PostgresStore
from tests.stores.postgres import private_server, programs

SCHEMA = "shoal_benchmark"
HOW: dict[str, dict[str, Any]] = {
    "durability=sync": {},
    "durability=relaxed": {"durability": "relaxed"},
    "durability=end": {"durability": "end"},
}


def measure(items: Sequence[int], rounds: int, address: str | None) -> None:
    """Print the time and the table size per item."""
    if address is not None:
        _measure(items, rounds, address)
        return
    found = programs()
    if found is None:
        print("\nPostgreSQL is not installed, so it isn't measured (--postgres URL names a server)")
        return
    with tempfile.TemporaryDirectory(dir=".") as folder:  # on a disk; /tmp may be in memory
        Path(folder).chmod(0o755)  # the user of the PostgreSQL server needs access
        with private_server(found, {"shared_buffers": "128MB"}, Path(folder).absolute()) as server:
            _measure(items, rounds, server.address())


def _measure(items: Sequence[int], rounds: int, address: str) -> None:
    with psycopg.connect(address, autocommit=True) as connection:
        version = connection.info.parameter_status("server_version")
        for number in items:
            print(f"\ndurable map over {number:,} items, {LIMIT} in flight, PostgreSQL {version}")
            print(f"{'':<44}{'us/item':>9}{'min':>9}{'bytes/item':>12}")
            taken: dict[str, list[float]] = {name: [] for name in HOW}
            sizes = dict[str, float]()
            for _ in range(rounds):
                for name, how in HOW.items():
                    with fresh_schema(connection):
                        by_shoal(Application(doubles, store=store(address, how)), 2)()
                        app = Application(doubles, store=store(address, how))
                        began = time.perf_counter()
                        by_shoal(app, number)()
                        taken[name].append((time.perf_counter() - began) / number * 1e6)
                        sizes[name] = size(connection) / number
            for name, each in taken.items():
                median, least = statistics.median(each), min(each)
                print(f"{f'shoal, {name}':<44}{median:>9.1f}{least:>9.1f}{sizes[name]:>12.0f}")


def store(address: str, how: dict[str, Any]) -> PostgresStore:
    return PostgresStore(address, schema=SCHEMA, **how)


@contextmanager
def fresh_schema(connection: psycopg.Connection[Any]) -> Generator[None]:
    drop = f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE"
    connection.execute(drop.encode())
    try:
        yield
    finally:
        connection.execute(drop.encode())


def size(connection: psycopg.Connection[Any]) -> int:
    found = connection.execute(
        "SELECT sum(pg_total_relation_size(oid)) FROM pg_class "
        "WHERE relnamespace = %s::regnamespace AND relkind = 'r'",
        (SCHEMA,),
    ).fetchone()
    assert found is not None
    return int(found[0])
