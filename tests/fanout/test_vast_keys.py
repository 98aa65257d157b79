"""Integers of more digits than Python writes: as keys of children, and in messages."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shoal import Application, Failed, MemoryStore, SQLiteStore, action, fan_out
from shoal._errors.exceptions import brief
from shoal._events.identity import RunPath, child_id
from shoal.stores._protocol import Store

VAST = 10**5000

runs_of_all_kinds = pytest.mark.anyio


@pytest.fixture
def digits() -> Iterator[None]:
    """Leave what Python is told of the number of digits as it was."""
    limit = sys.get_int_max_str_digits()
    yield
    sys.set_int_max_str_digits(limit)


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


class list_(list[Any]):  # noqa: N801 # it is called list below
    def __len__(self) -> int:
        raise RuntimeError("no")


list_.__name__ = "list"


@pytest.mark.parametrize(
    "value",
    [
        VAST,
        -VAST,
        [VAST, {VAST: VAST}],
        (Unspeakable(), VAST),
        list_([1]),
        [["x" * 1000] * 10] * 10,
        {key: dict.fromkeys(range(10), "x" * 200) for key in range(10)},
    ],
    ids=["int", "negative", "holding", "unspeakable", "no list", "lists", "dicts"],
)
def test_anything_is_shown_and_in_short(value: object):
    shown = brief(value)
    assert 0 < len(shown) <= 300
    assert "\n" not in shown


def test_what_is_shown_of_vast_ints_tells_them_apart():
    shown = {brief(number) for number in (VAST, VAST + 1, -VAST, VAST * 2)}
    assert len(shown) == 4
    assert brief(VAST).startswith("0x31e2080103")
    assert brief(-VAST).startswith("-0x31e2080103")
    assert brief(10**20) == "1" + "0" * 20


def test_the_id_of_a_vast_key_depends_on_nothing_else(digits: None):
    found: set[tuple[str, ...]] = set()
    for limit in (640, 4300, 0):
        sys.set_int_max_str_digits(limit)
        keys = (10**1000, VAST, -VAST)
        found.add(tuple(child_id("root", "s", 0, "a", key) for key in keys))
    assert found == {
        (
            "0f1e9605afdc2d5e46acfc2229306cd5",
            "e0ec98f8c55408538f691c081fb2613e",
            "9b0786be510f58b6037480e46acc63f3",
        )
    }


def test_a_path_with_a_vast_key_can_be_shown():
    path = RunPath(parent=RunPath(run_id="r", act="app"), act="a", step="s", key=VAST)
    assert "s#0/a[0x31e2080103" in repr(path)


@action(reads=["n"], writes=["r"])
async def odd(n: int) -> int:
    if not n % 2:
        raise ValueError("even")
    return n


@pytest.fixture(params=["none", "memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store | None:
    kinds = {"none": None, "memory": MemoryStore(), "sqlite": SQLiteStore(tmp_path / "runs.db")}
    return kinds[request.param]


@runs_of_all_kinds
async def test_a_failing_child_with_a_vast_key_fails_with_its_own_error(store: Store | None):
    everything = fan_out(
        odd, over="ns", item="n", key=VAST.__add__, into="rs", take="r", on_error="collect"
    )
    app = Application(everything, store=store)
    for _ in range(2 if store is not None else 1):  # the second time it is read
        result = await app.run({"ns": [1, 2, 3]}, id="run")
        assert dict(result.state["rs"]) == {VAST + 1: 1, VAST + 3: 3}
        (failed,) = [one for one in result.outcomes("rs") if isinstance(one, Failed)]
        assert failed.key == VAST + 2
        assert str(failed.error) == "even"
        assert "of 'rs', key 0x31e2080103" in failed.error.__notes__[0]


@runs_of_all_kinds
async def test_a_failing_child_with_a_vast_key_ends_it_with_its_own_error(store: Store | None):
    everything = fan_out(odd, over="ns", item="n", key=VAST.__add__, into="rs", take="r")
    with pytest.raises(ExceptionGroup, match="a child of fan-out 'rs' failed") as caught:
        await Application(everything, store=store).run({"ns": [1, 2, 3]})
    assert [str(error) for error in caught.value.exceptions] == ["even"]
