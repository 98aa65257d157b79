"""Public names: where each is, for whom, and what importing costs."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.resources
import json
import os
import pickle
import subprocess
import sys
import types
import typing
from typing import Any

import pytest

import shoal
import shoal.errors
import shoal.events
import shoal.executors
import shoal.rates
import shoal.stores
import shoal.testing
import shoal.types
from shoal._errors import exceptions as _errors
from shoal._events import events as _events
from shoal._state import collections as _collections

OPEN = {  # classes meant for subclassing, exceptions aside
    "Act",
    "Action",
    "Adaptive",
    "Browses",
    "BudgetBackend",
    "CachesResults",
    "Event",
    "Executor",
    "FindsOrphans",
    "Hook",
    "Inspects",
    "KeepsReports",
    "Limits",  # of which `Budget` is one
    "MapActions",
    "MapActionsAndStates",
    "MapStates",
    "ParallelAction",
    "Prunes",
    "RateBackend",
    "ReadsInParts",
    "RunHandle",
    "SavedRun",
    "Steers",
    "Store",
}
HAVE_NO_DOCSTRING = {
    "__version__",
    "CommandKind",
    "Entry",
    "EntryKind",
    "ExecutorName",
    "Key",
    "OnError",
    "Priority",
    "Operation",
    "Outcome",
    "Until",
}
HOMES = [shoal, shoal.errors, shoal.events, shoal.executors, shoal.rates, shoal.stores, shoal.types]
NAMES = {f"{home.__name__}.{name}": (home, name) for home in HOMES for name in home.__all__}
MOVED = {name: home for home in HOMES[1:] for name in home.__all__ if name not in shoal.__all__}
MOVED.pop("MemoryRates")  # it never was in `shoal`


def exported() -> dict[str, Any]:
    return {name: getattr(home, name) for home, name in NAMES.values()}


def classes() -> dict[str, type[Any]]:
    return {name: value for name, value in exported().items() if isinstance(value, type)}


def test_a_newcomer_sees_at_most_eighty_names():
    assert len(shoal.__all__) <= 80


@pytest.mark.parametrize("module", [*HOMES, shoal.testing], ids=lambda module: module.__name__)
def test_all_is_sorted_and_names_nothing_twice(module: types.ModuleType):
    names: list[str] = module.__all__
    constants_first = sorted(set(names), key=lambda name: (not name.isupper(), name))
    assert names == constants_first


@pytest.mark.parametrize("module", [*HOMES, shoal.testing], ids=lambda module: module.__name__)
def test_all_is_what_is_public(module: types.ModuleType):
    assert all(hasattr(module, name) for name in module.__all__)  # `shoal` imports them now
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    public.discard("annotations")  # the future import
    public -= {name for name in MOVED if module is shoal}  # asked for by a pickle, maybe
    assert public == {*module.__all__} - {"__version__"}


def test_a_name_has_one_home_but_for_a_dozen_errors():
    homes: dict[str, list[types.ModuleType]] = {}
    for home, name in NAMES.values():
        homes.setdefault(name, []).append(home)
    twice = {name: where for name, where in homes.items() if len(where) > 1}
    assert list(twice.values()) == [[shoal, shoal.errors]] * 12


@pytest.mark.parametrize("module", HOMES, ids=lambda module: module.__name__)
def test_a_home_says_what_it_is_for_with_an_example(module: types.ModuleType):
    assert " for " in (module.__doc__ or "")
    assert ">>> " in (module.__doc__ or "")


@pytest.mark.parametrize("name", [name for name in MOVED if not shoal._is_pickled(name)])
def test_a_moved_name_says_its_address(name: str):
    home = MOVED[name].__name__
    with pytest.raises(AttributeError, match=f"^shoal.{name} moved to {home}$"):
        getattr(shoal, name)
    assert not hasattr(shoal, name)
    with pytest.raises(ImportError, match=f"^shoal.{name} moved to {home}: from {home} import "):
        exec(f"from shoal import {name}")


@pytest.mark.parametrize("name", [name for name in MOVED if shoal._is_pickled(name)])
def test_pickles_find_a_moved_name(name: str):
    assert name not in shoal.__all__
    assert pickle.loads(f"cshoal\n{name}\n.".encode()) is getattr(MOVED[name], name)


def test_an_unknown_name_is_no_attribute():
    with pytest.raises(AttributeError, match=r"^module 'shoal' has no attribute 'Fanout'$"):
        shoal.Fanout  # noqa: B018 # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnusedExpression]


def test_the_homes_need_no_import_of_their_own():
    program = "import shoal; shoal.errors.BadKey, shoal.events.Update, shoal.types.Act, dir(shoal)"
    assert "shoal" in loaded_by(program)


def test_type_checkers_see_the_names_that_are_there():
    written = ast.parse(importlib.resources.files("shoal").joinpath("__init__.py").read_text())
    (block,) = [node for node in written.body if isinstance(node, ast.If) and not node.orelse][:1]
    seen = {
        f"{'.' * node.level}{node.module or ''}": {alias.name for alias in node.names}
        for node in block.body
        if isinstance(node, ast.ImportFrom) and node.module
    }
    received = {f"shoal.{module}": {*names.split()} for module, names in shoal._DEFINED.items()}
    assert seen == received
    assert {*shoal.__all__} == {name for names in received.values() for name in names} | {
        "__version__"
    }
    assert {
        name: f"shoal.{home}" for home, names in shoal._MOVED.items() for name in names.split()
    } == {name: home.__name__ for name, home in MOVED.items()}


@pytest.mark.parametrize(
    "source", [_errors, _events, _collections], ids=["errors", "events", "collections"]
)
def test_whatever_a_user_may_meet_is_exported(source: types.ModuleType):
    homes = {source.__name__, "shoal"}
    found = {
        name
        for name, value in vars(source).items()
        if isinstance(value, type) and value.__module__ in homes and not name.startswith("_")
    }
    assert len(found) > 2
    assert found <= {*exported()}


def test_every_error_is_a_shoal_error():
    errors = [value for value in classes().values() if issubclass(value, BaseException)]
    errors.remove(shoal.errors.Halting)  # which is none: `except Exception` is to let it pass
    assert len(errors) > 10
    for error in errors:
        assert issubclass(error, shoal.ShoalError)
        assert issubclass(error, Exception)


@pytest.mark.parametrize("name", sorted({*exported()} - HAVE_NO_DOCSTRING))
def test_everything_public_is_documented(name: str):
    assert (exported()[name].__doc__ or "").strip()


def test_classes_are_final():
    not_final = {
        name
        for name, value in classes().items()
        if not issubclass(value, BaseException) and not getattr(value, "__final__", False)
    }
    assert not_final == OPEN


def test_annotations_of_public_names_can_be_read():
    for name, value in exported().items():
        if isinstance(value, type):
            members = [
                value,
                *(m for m in vars(value).values() if isinstance(m, types.FunctionType)),
            ]
        elif isinstance(value, types.FunctionType):
            members = [value]
        else:
            continue
        for member in members:
            try:
                typing.get_type_hints(member)
            except NameError as error:
                raise AssertionError(f"{name}: {member}: {error}") from error


def test_classes_are_pickled_by_a_name_that_finds_them():
    for value in classes().values():
        assert pickle.loads(pickle.dumps(value)) is value


def test_errors_show_their_public_name():
    for value in classes().values():
        if issubclass(value, BaseException):
            assert value.__module__ == "shoal"


def test_the_version_is_the_distributions():
    assert shoal.__version__ == importlib.metadata.version("shoal")


def test_the_package_says_that_it_is_typed():
    assert importlib.resources.files("shoal").joinpath("py.typed").is_file()


OPTIONAL = {
    "ada_url",
    "aiolimiter",
    "asyncio",  # trio does without it
    "blockbuster",
    "burr",
    "fastapi",
    "httpx",
    "hypothesis",
    "jinja2",
    "msgspec",
    "opentelemetry",
    "psycopg",
    "pydantic",
    "pytest",
    "ray",
    "redis",
    "rich",
    "selectolax",
    "sqlite3",
    "starlette",
    "trio",
    "uvicorn",
    "uvloop",
    "w3lib",
}


def loaded_by(statement: str) -> set[str]:
    """The modules, of the first level, that are there after the statement in a fresh process."""
    script = f"import sys, json\n{statement}\nprint(json.dumps(sorted(sys.modules)))"
    # `nox -s coverage` measures processes as well, and loads modules of its own for that.
    unmeasured = {name: value for name, value in os.environ.items() if "COVERAGE" not in name}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, env=unmeasured
    )
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


def test_importing_shoal_loads_nothing_optional():
    most = [name for name in shoal.__all__ if name not in shoal._EXTRAS]
    loaded = loaded_by(f"import shoal; from shoal import {', '.join(most)}")
    assert "anyio" in loaded
    assert loaded & OPTIONAL == set()


def test_importing_shoal_loads_nothing_yet():
    assert "anyio" not in loaded_by("import shoal")
    assert "anyio" not in loaded_by("from shoal import ShoalError")


def test_a_program_loads_what_it_uses_alone():
    loaded = loaded_by("from shoal import Application, Graph, Limits, action, fan_out, race")
    assert "pickle" not in loaded  # for secrets


@pytest.mark.parametrize(
    ("missing", "name", "extra"),
    [
        ("psycopg", "PostgresStore", "shoal[postgres]"),
        ("psycopg.errors", "PostgresStore", "shoal[postgres]"),
        ("sqlite3", "SQLiteStore", "shoal[sqlite]"),
    ],
)
def test_all_names_can_be_imported_without_the_extras(missing: str, name: str, extra: str):
    program = (
        "import sys, pydoc\n"
        f"sys.modules[{missing!r}] = None\n"
        "from shoal import *\n"
        f"try: {name}('x')\n"
        "except ImportError as error: print(error)\n"
        f"print({name}.__name__, isinstance(1, {name}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    said, shown = done.stdout.decode().splitlines()
    assert said.startswith(f"{name} needs ")
    assert said.endswith("'psycopg[binary]'") or extra in said
    assert shown == f"{name} False"


@pytest.mark.parametrize(
    ("module", "missing", "extra"),
    [("shoal.fastapi", "fastapi", "fastapi"), ("shoal.watch.ui", "starlette", "web")],
)
def test_a_module_of_an_extra_says_how_to_get_it(module: str, missing: str, extra: str):
    program = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        f"try: import {module}\n"
        "except ModuleNotFoundError as error: print(error, '|', error.name)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert f"pip install 'shoal[{extra}]' | {missing}" in done.stdout.decode()


def test_running_on_one_backend_does_not_load_the_other():
    program = (
        "import shoal\n"
        "@shoal.action(reads=['n'], writes=['m'])\n"
        "async def act(n: int) -> int: return n\n"
        "app = shoal.Application(shoal.fan_out(act, over='ns', item='n', into='ms'))\n"
        "assert app.run_sync({{'ns': [1, 2]}}, backend={!r}).state['ms'] == [1, 2]\n"
    )
    assert "trio" not in loaded_by(program.format("asyncio"))
    assert "trio" in loaded_by(program.format("trio"))


def test_the_testing_module_loads_no_trio_until_it_is_asked_for():
    assert loaded_by("import shoal.testing") & (OPTIONAL - {"asyncio"}) == set()
    assert "trio" in loaded_by("import shoal.testing; shoal.testing.virtual_backend('trio')")
