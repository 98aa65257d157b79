"""Backends: virtual time on asyncio and trio; real time, everywhere, for what is marked so.

A test marked ``realtime`` runs on plain asyncio, uvloop, eager tasks (3.12 and newer) and trio. All
others run under virtual time: there a sleep takes no time, and a deadlock is an error; with
``pytest --one-backend`` each of these runs on asyncio or on trio, and not on both. Loops are
started as by ``asyncio.run`` and ``trio.run``; ``pytest --starter=NAME`` starts those of asyncio in
another of the ways that `tests.starters` has, and also those that tests start by ``anyio.run``. A
test marked ``every_starter`` is run in all of these ways, in real time.
"""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from importlib import import_module
from inspect import isasyncgenfunction
from inspect import iscoroutinefunction as is_coroutine_function
from typing import Any
from zlib import crc32

import anyio
import pytest
from blockbuster import blockbuster_ctx

from shoal.stores._sql import leases as _claims
from shoal.testing import virtual_backend
from tests.starters import ON_ASYNCIO, STARTERS, start
from tests.stores.durable import find_programs
from tests.stores.postgres import QUICK, PostgresServer, private_server

VIRTUAL = ("asyncio", "trio")
REAL = ("asyncio-real", "uvloop", "trio-real") + (("eager",) if sys.version_info >= (3, 12) else ())
BACKENDS_OF = {  # what a starter that runs no loop of asyncio's own runs
    "uvloop.run": ("uvloop",),
    "uvicorn": ("asyncio-real",),
    "trio.run": ("trio", "trio-real"),
}


WITH_CLUSTERS = frozenset({"test_ray", "test_ray_crash"})
"""Modules with tests that need a cluster of Ray's: some seconds, and a dozen processes."""
SWEEPS = frozenset(
    (  # modules that try every place, or many random cases: the longest by far
        "test_cancellation",
        "test_changed_acts",
        "test_changed_programs",
        "test_decided_races",
        "test_everywhere",
        "test_graphs",
        "test_graphs_resume",
        "test_never_started",
        "test_process_crashes",
        "test_process_loops",
        "test_process_programs",
        "test_race_resume",
        "test_resume",
        "test_teardown",
        "test_unended",
    )
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--starter", choices=STARTERS, help="how event loops are started")
    halves = "run each test of virtual time on both, on one that its name decides, or on the other"
    parser.addoption("--backends", choices=("both", "one", "other"), default="both", help=halves)


def pytest_configure() -> None:
    """Raise Ctrl-C here, and in the processes that tests start, also if pytest was started by `&`.

    A shell makes a program in the background ignore it, and all processes that the program starts.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def the_starter_for_all(pytestconfig: pytest.Config) -> Iterator[None]:
    """With ``--starter``, what tests start by ``anyio.run`` is started by that, too."""
    starter: str | None = pytestconfig.getoption("--starter")
    with pytest.MonkeyPatch.context() as patch:
        if starter is not None and starter in ON_ASYNCIO:
            patch.setattr(anyio, "run", partial(run_by, starter))
        yield


def run_by(
    starter: str,
    main: Callable[..., Coroutine[Any, Any, Any]],
    *args: object,
    backend: str = "asyncio",
    backend_options: dict[str, Any] | None = None,
) -> object:
    return start(starter, partial(main, *args), backend, backend_options)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in SWEEPS:
            item.add_marker("sweep")
    if config.getoption("--backends") == "other":
        left_out = [item for item in items if is_of_the_other_half(item)]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]
    # Each process that has one of them starts a cluster. `--dist worksteal` gives the first ones to
    # one process, and takes only last ones away.
    items.sort(key=lambda item: item.path.stem not in WITH_CLUSTERS)


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
        metafunc.parametrize("anyio_backend", backends(metafunc), indirect=True)


def backends(metafunc: pytest.Metafunc) -> Sequence[str]:
    """The backends that a test is run on: by ``--starter``, those which that can start."""
    starter: str | None = metafunc.config.getoption("--starter")
    if metafunc.definition.get_closest_marker("every_starter") is not None:
        return [name for name in STARTERS if starter in (None, name)]
    real = metafunc.definition.get_closest_marker("realtime") is not None
    found = REAL if real else VIRTUAL
    if starter is None:
        return found if real else share_of(metafunc.definition, metafunc.config)
    wanted = BACKENDS_OF.get(starter, ("asyncio", "asyncio-real"))
    return [name for name in found if name in wanted]


def share_of(test: pytest.Item, config: pytest.Config) -> Sequence[str]:
    """The backends of a test of virtual time, by ``--backends``: two runs may share them."""
    chosen = config.getoption("--backends")
    # The gate runs sweeps on the oldest Python alone: there, half of their cases on each.
    if chosen == "both" or (chosen == "other" and is_sweep(test)):
        return VIRTUAL
    # By its name alone, so that a test doesn't move to the other one from time to time.
    one = crc32(test.nodeid.encode()) % len(VIRTUAL)
    return (VIRTUAL[one if chosen == "one" else 1 - one],)


def is_of_the_other_half(item: pytest.Item) -> bool:
    """Whether this case of a sweep, as its name decides, only runs on the other backend."""
    cases = (
        item.callspec.params
        if isinstance(item, pytest.Function) and hasattr(item, "callspec")
        else {}
    )
    backend = cases.get("anyio_backend")
    if backend not in VIRTUAL or not is_sweep(item):
        return False
    return VIRTUAL[crc32(item.nodeid.replace(backend, "").encode()) % len(VIRTUAL)] != backend


def is_sweep(test: pytest.Item) -> bool:
    """Whether some of the test's parameters, or all, are marked as a sweep."""
    marked = test.path.stem in SWEEPS or test.get_closest_marker("sweep") is not None
    values = (value for each in test.iter_markers("parametrize") for value in each.args[1])
    marks = (mark for value in values for mark in getattr(value, "marks", ()))
    return marked or any(mark.name == "sweep" for mark in marks)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run an async test in a loop of its own, which anyio's plugin would start in its own way.

    The plugin runs those tests that have async fixtures: these live in the same loop.
    """
    backend: Any = pyfuncitem.funcargs.get("anyio_backend")
    test: Any = pyfuncitem.obj
    if backend is None or not is_coroutine_function(test) or has_async_fixtures(pyfuncitem):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    name, options = backend
    starter = options.get("starter") or pyfuncitem.config.getoption("--starter") or "asyncio.run"
    start(starter, partial(test, **arguments), name, options)
    return True


def has_async_fixtures(item: pytest.Function) -> bool:
    """Whether anyio's plugin has started a loop for a fixture of the test's."""
    fixtures = [each[-1].func for each in item._fixtureinfo.name2fixturedefs.values()]
    return any(map(isasyncgenfunction, fixtures)) or any(map(is_coroutine_function, fixtures))


@pytest.fixture(name="anyio_backend")
def anyio_backend_of(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    match request.param:
        case "asyncio" | "trio" as name:
            return virtual_backend(name)
        case "asyncio-real":
            return "asyncio", {"debug": True}
        case "uvloop":
            return "asyncio", {"use_uvloop": True}
        case "eager" | "asyncio.Runner" | "run_until_complete" | "notebook" | "asyncio.run" as name:
            return "asyncio", {"starter": name}
        case "anyio.run" | "uvicorn" as name:
            return "asyncio", {"starter": name}
        case "uvloop.run":
            return "asyncio", {"use_uvloop": True}
        case _:
            return "trio", {}


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server that keeps nothing on disk, for all tests of this process."""
    with private_server(find_programs(), QUICK) as server:
        yield server


@pytest.fixture(autouse=True)
def no_execution_is_left() -> Iterator[None]:
    """The process knows of each execution that the test began, or simulated, that it has ended.

    Else it would refuse to go on with the run, as if that execution still did.
    """
    before = _claims._alive.copy()
    yield
    left = [one for one, alive in _claims._alive.items() if before.get(one) != alive]
    assert not left, f"executions that this test has left: {left}"


@pytest.fixture(autouse=True)
def nothing_blocks_the_loop() -> Iterator[None]:
    with blockbuster_ctx("shoal"):
        yield
