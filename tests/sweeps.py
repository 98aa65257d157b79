"""How much of a sweep is tried: a sample of its turns in the gate, all of them by `nox -s soak`."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable
from zlib import crc32

EVERYWHERE = "SHOAL_EVERYWHERE" in os.environ
EVERY = 1 if EVERYWHERE else 5  # one turn of so many
TURNS = 1000  # no scenario takes as many


async def at_any_turn(once: Callable[[int], Awaitable[bool]]) -> int:
    """Call ``once(turn)`` for turns of the event loop, until it says that all had ended before.

    A scenario is tried at its first turn and at its last; in between at one turn of every few.
    Which one depends on the test's name alone: so a test tries the same turns each time, and the
    tests of one scenario, on all loops and by all interruptions, try most of its turns together.

    Returns:
        The last turn that was not too late.
    """
    last = -1
    for turn in sample():
        if await once(turn):
            break
        last = turn
    else:
        raise AssertionError(f"the scenario had not ended after {TURNS} turns")
    for before in range(turn - 1, last, -1):
        if not await once(before):
            return before
    return last


def sample() -> Iterable[int]:
    offset = crc32(os.environ["PYTEST_CURRENT_TEST"].encode()) % EVERY
    return dict.fromkeys((0, *range(offset, TURNS, EVERY)))
