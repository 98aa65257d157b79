"""What is left of a sweep in the gate: its ends, and an even sample between them."""

from __future__ import annotations

import pytest

from shoal.testing import run_virtual
from tests.sweeps import EVERY, at_any_turn


@pytest.mark.parametrize("last", [0, 1, 2, 3, 30, 31, 32])
def test_the_ends_are_tried_and_one_turn_of_every_few(last: int):
    tried: list[int] = []

    async def once(turn: int) -> bool:
        tried.append(turn)
        return turn > last

    assert run_virtual(at_any_turn, once, backend="asyncio") == last
    assert {0, last} <= set(tried)
    assert len(tried) <= last / EVERY + EVERY + 3
    assert all(set(range(turn, turn + EVERY)) & set(tried) for turn in range(last + 1))


def test_a_scenario_that_never_ends_is_no_endless_test():
    async def once(turn: int) -> bool:
        return False

    with pytest.raises(AssertionError, match="had not ended after 1000 turns"):
        run_virtual(at_any_turn, once, backend="asyncio")
