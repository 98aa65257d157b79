"""Backends: virtual time on asyncio and trio; real time, everywhere, for what is marked so.

A test marked ``realtime`` runs on plain asyncio, uvloop, eager tasks (3.12 and newer) and trio. All
others run under virtual time: there a sleep takes no time, and a deadlock is an error.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
from blockbuster import blockbuster_ctx

from shoal.testing import virtual_backend
from tests.durable import find_programs
from tests.postgres import QUICK, PostgresServer, private_server

VIRTUAL = ("asyncio", "trio")
REAL = ("asyncio-real", "uvloop", "trio-real") + (("eager",) if sys.version_info >= (3, 12) else ())


SWEEPS = frozenset(
    (  # modules that try every place, or many random cases: the longest by far
        "test_cancellation",
        "test_changed_programs",
        "test_decided_races",
        "test_everywhere",
        "test_fuzz",
        "test_fuzz_graphs",
        "test_fuzz_races",
        "test_fuzz_resume",
        "test_never_started",
        "test_race_resume",
        "test_redis",
        "test_resume",
    )
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in SWEEPS:
            item.add_marker("sweep")


def pytest_collection_finish() -> None:
    import_module("hypothesis")  # whose plugin does it in the end; it looks through the heap then


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> Iterator[None]:
    """What there was before is not looked through whenever a test collects garbage: most do.

    The tests themselves, all that pytest has collected, are 0.2 s of CPU time each time.
    """
    gc.collect()
    gc.freeze()
    yield
    assert gc.get_freeze_count(), "gc.unfreeze() makes all later tests slow, whatever it is for"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    fixtures = metafunc._arg2fixturedefs.get("anyio_backend", ())  # pytest has no public way to ask
    if fixtures and fixtures[-1].func.__name__ == "anyio_backend_of":  # a module may have its own
        real = metafunc.definition.get_closest_marker("realtime") is not None
        metafunc.parametrize("anyio_backend", REAL if real else VIRTUAL, indirect=True)


def eager_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009 # not on 3.11
    return loop


@pytest.fixture(name="anyio_backend")
def anyio_backend_of(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    match request.param:
        case "asyncio" | "trio" as name:
            return virtual_backend(name)
        case "asyncio-real":
            return "asyncio", {"debug": True}
        case "uvloop":
            return "asyncio", {"use_uvloop": True}
        case "eager":
            return "asyncio", {"loop_factory": eager_loop}
        case _:
            return "trio", {}


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server that keeps nothing on disk, for all tests of this process."""
    with private_server(find_programs(), QUICK) as server:
        yield server


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    with blockbuster_ctx("shoal"):
        yield
