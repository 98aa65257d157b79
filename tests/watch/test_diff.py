"""Two runs are compared child by child, whatever their keys are."""

from __future__ import annotations

import pytest

from shoal import Application, MemoryStore, action, fan_out
from shoal.watch import Queries

pytestmark = pytest.mark.anyio

ADDRESS = "https://example.org/" + "long/" * 60
KEYS = [f"{ADDRESS}a", f"{ADDRESS}b", "\ud800", 10**5000, 10**5000 + 1, "1", 1]


@action(reads=["item", "wrong"], writes=["done"])
async def check(item: str | int, wrong: str | int) -> bool:
    if item == wrong and type(item) is type(wrong):
        raise ValueError("wrong")
    return True


@pytest.mark.parametrize("key", KEYS, ids=range(len(KEYS)))
async def test_children_of_keys_that_begin_alike_are_told_apart(key: str | int):
    store = MemoryStore()
    app = Application(
        fan_out(
            check, over="items", item="item", into="all", key=lambda item: item, on_error="collect"
        ),
        store=store,
    )
    await app.run({"items": KEYS, "wrong": ""}, id="a")
    await app.run({"items": KEYS, "wrong": key}, id="b")
    difference = await Queries(store).diff("a", "b")
    assert [one.key for one in difference.children] == [key]
