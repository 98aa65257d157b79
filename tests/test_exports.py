"""What `import shoal` gives, and what it costs."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import json
import pickle
import subprocess
import sys
import types
import typing
from typing import Any

import pytest

import shoal
import shoal.testing
from shoal._errors import exceptions as _errors
from shoal._events import events as _events
from shoal._state import collections as _collections

OPEN = {  # classes meant for subclassing, exceptions aside
    "Act",
    "Action",
    "Adaptive",
    "Browses",
    "CachesResults",
    "Event",
    "FindsOrphans",
    "Hook",
    "MapActions",
    "MapActionsAndStates",
    "MapStates",
    "ParallelAction",
    "Prunes",
    "RateBackend",
    "ReadsInParts",
    "RunHandle",
    "SavedRun",
    "Store",
}
HAVE_NO_DOCSTRING = {"__version__", "Key", "OnError", "Operation", "Outcome"}


def exported() -> dict[str, Any]:
    return {name: getattr(shoal, name) for name in shoal.__all__}


def classes() -> dict[str, type[Any]]:
    return {name: value for name, value in exported().items() if isinstance(value, type)}


def test_all_is_sorted_and_names_nothing_twice():
    constants_first = sorted(set(shoal.__all__), key=lambda name: (not name.isupper(), name))
    assert shoal.__all__ == constants_first
    assert shoal.testing.__all__ == sorted(set(shoal.testing.__all__))


@pytest.mark.parametrize("module", [shoal, shoal.testing], ids=lambda module: module.__name__)
def test_all_is_what_is_public(module: types.ModuleType):
    public = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    public.discard("annotations")  # the future import
    later = getattr(module, "_LATER", {})  # imported when asked for
    declared = {name for name in module.__all__ if name != "__version__" and name not in later}
    assert public == declared


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
    assert found <= {*shoal.__all__}


def test_every_error_is_a_shoal_error():
    errors = [value for value in classes().values() if issubclass(value, BaseException)]
    errors.remove(shoal.Halting)  # which is none: `except Exception` is to let it pass
    assert len(errors) > 10
    for error in errors:
        assert issubclass(error, shoal.ShoalError)
        assert issubclass(error, Exception)


@pytest.mark.parametrize("name", sorted({*shoal.__all__} - HAVE_NO_DOCSTRING))
def test_everything_public_is_documented(name: str):
    assert (getattr(shoal, name).__doc__ or "").strip()


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
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout
    return {name.partition(".")[0] for name in json.loads(output)}


def test_importing_shoal_loads_nothing_optional():
    loaded = loaded_by("import shoal")
    assert "anyio" in loaded
    assert loaded & OPTIONAL == set()


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
