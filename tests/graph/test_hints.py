"""Mistakes in definitions that are named by what the user has written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoal import Application, MemoryStore, Runtime, State, action, fan_out, first, quorum, race
from shoal.errors import DefinitionError

pytestmark = pytest.mark.anyio


@action(reads=["n"], writes=["o"])
async def one(n: int) -> int:
    return n


two = one.bind(name="two")


@pytest.mark.parametrize(
    "wrong",
    [
        {"until": first(3)},
        {"until": quorum(3)},
        {"until": first},
        {"until": 5},
        {"stagger": "soon"},
        {"stagger": -1},
    ],
)
def test_a_race_is_called_a_race(wrong: Any):
    with pytest.raises(DefinitionError, match=r"^race 'o': "):
        race(one, two, into="o", **wrong)


@pytest.mark.parametrize("place", ["runs.db", Path("runs.db")])
def test_a_file_in_the_place_of_a_store_is_named(place: Any):
    for make in (
        lambda: Application(one, store=place),
        lambda: Runtime(store=place),
        lambda: fan_out(one, over="items", item="n", into="o", store=place),
    ):
        with pytest.raises(DefinitionError, match=r"write SQLiteStore\('runs.db'\)$"):
            make()


def test_so_is_a_url_without_its_password():
    url: Any = "postgresql://user:secret@host/runs"
    with pytest.raises(DefinitionError, match="PostgresStore") as raised:
        Application(one, store=url)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("parameter", ["reduce", "grow"])
def test_a_coroutine_function_is_refused_before_a_missing_name(parameter: str):
    async def wrong(state: State[Any], outcome: Any) -> Any:
        raise NotImplementedError

    given: Any = {parameter: wrong}
    with pytest.raises(DefinitionError, match=r"^fan_out: .*'wrong' is a coroutine function"):
        fan_out(one, over="items", item="n", **given)


async def test_there_is_nothing_to_recover_of_an_unknown_run():
    assert await Application(one, store=MemoryStore()).recover("typo") is None
