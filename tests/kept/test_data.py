"""What is stored of shoal's own classes is read, and compares, as it always has.

A digest holds the names of classes and functions, a pickle those of classes. Neither may change
when a class moves to another module: children would run anew, or nothing could read what was kept.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import subprocess
import sys
from base64 import b64decode
from enum import Enum
from pathlib import Path
from typing import cast

import pytest

from shoal import ErrorInfo, PositionedList, StateList, StateMap
from shoal._state.digest import digest
from shoal.errors import NotData
from shoal.stores._codec.typenames import find, name_of
from shoal.types import Inherit
from tests.kept.data import DATA, VALUES, public

KEPT = json.loads((Path(__file__).parent / "data.json").read_text())
PUBLIC = public()


@pytest.mark.parametrize("name", KEPT["names"])
def test_a_public_name_has_the_digest_that_it_had(name: str):
    assert digest(PUBLIC[name]).hex() == KEPT["names"][name]


@pytest.mark.parametrize("name", KEPT["values"])
def test_a_value_has_the_digest_that_it_had(name: str):
    assert digest(VALUES[name]).hex() == KEPT["values"][name]


@pytest.mark.parametrize("home", ["shoal", "shoal.public", "shoal._engine.fanout.somewhere"])
def test_a_class_that_moves_keeps_its_digest(home: str, monkeypatch: pytest.MonkeyPatch):
    for one in PUBLIC.values():
        monkeypatch.setattr(one, "__module__", home)
    assert {name: digest(PUBLIC[name]).hex() for name in KEPT["names"]} == KEPT["names"]
    assert {name: digest(VALUES[name]).hex() for name in KEPT["values"]} == KEPT["values"]


def test_a_new_class_has_a_digest_that_no_move_changes(monkeypatch: pytest.MonkeyPatch):
    class New: ...

    New.__qualname__ = "New"
    seen: set[bytes] = set()
    for home in ("shoal", "shoal._here", "shoal._there.deep"):
        monkeypatch.setattr(New, "__module__", home)
        seen.add(digest(New))
    assert len(seen) == 1
    monkeypatch.setattr(New, "__module__", "shoals")  # a package of somebody else
    assert digest(New) not in seen


@pytest.mark.parametrize("name", DATA)
def test_a_pickle_of_before_is_read(name: str):
    read = pickle.loads(b64decode(KEPT["pickles"][name]))
    assert type(read) is type(DATA[name])
    assert digest(read) == digest(DATA[name])
    assert repr(read) == repr(DATA[name])


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", DATA)
def test_pickles_hold_public_names(name: str, protocol: int):
    assert b"shoal." not in pickle.dumps(DATA[name], protocol)


@pytest.mark.parametrize("kind", [ErrorInfo, Inherit, NotData, PositionedList, StateList, StateMap])
def test_what_is_pickled_shows_its_public_name(kind: type):
    assert f"{kind.__module__}.{kind.__qualname__}" == f"shoal.{kind.__name__}"


def is_saved(kind: object) -> bool:
    """Tell whether a codec writes objects of it by the name of their class."""
    is_plain = isinstance(kind, type) and issubclass(kind, Enum | BaseException | tuple)
    return is_plain or (isinstance(kind, type) and dataclasses.is_dataclass(cast("object", kind)))


@pytest.mark.parametrize("home", [None, "shoal._deep.below", "shoal.stores._deep"])
@pytest.mark.parametrize("name", [name for name in PUBLIC if is_saved(PUBLIC[name])])
def test_a_codec_writes_the_public_name(
    name: str, home: str | None, monkeypatch: pytest.MonkeyPatch
):
    kind = PUBLIC[name]
    assert isinstance(kind, type)
    monkeypatch.setattr(kind, "__module__", home or kind.__module__)
    assert name_of(kind) == f"shoal:{name}"
    assert find(f"shoal:{name}") is kind


def test_a_fresh_process_finds_the_names_that_are_kept():
    program = (
        "from shoal.stores._codec.typenames import find, name_of\n"
        "for name in ('ErrorInfo', 'StateMap', 'NotData', 'Update', 'RunRecord', 'Ledger'):\n"
        "    kind = find(f'shoal:{name}')\n"
        "    assert kind.__name__ == name\n"
        "    assert name_of(kind) == f'shoal:{name}'\n"
        "assert find('shoal:Nothing') is find('shoal:Update.Nothing') is None\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
