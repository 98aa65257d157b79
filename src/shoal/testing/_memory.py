"""`flat_memory`: the memory that a program takes must not follow the number of its items."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable
from typing import Literal, final

from shoal.testing._clock import run_virtual
from shoal.testing._steps import steps_of_this_loop

_LINES = 5  # of code that are named
_NEAR = 0.9  # of the peak: there the lines are looked at
_TRIES = 3  # for each size, before its memory is said to grow


@final
class MemoryGrows(AssertionError):
    """The memory of a scenario grows with the number of its items.

    Attributes:
        sizes: the numbers of items.
        peaks: the bytes that were in use at most, for each of them.
    """

    def __init__(self, sizes: tuple[int, int], peaks: tuple[int, int], lines: str) -> None:
        self.sizes = sizes
        self.peaks = peaks
        few, many = sizes
        more = (peaks[1] - peaks[0]) / max(1, many - few)
        super().__init__(
            f"{peaks[0]:,} bytes were in use at most with {few:,} items, and {peaks[1]:,} with "
            f"{many:,}: {more:,.0f} bytes for each further item. At the peak they were made at\n"
            f"{lines}HINT: look for a queue, a list or a task group that is filled faster than it "
            f"is emptied: give it a bound, so that the side that fills it waits"
        )


def flat_memory(
    scenario: Callable[[int], Awaitable[object]],
    *,
    sizes: tuple[int, int] = (100, 1000),
    per_item: float = 64.0,
    backend: Literal["asyncio", "trio"] = "asyncio",
) -> tuple[int, int]:
    """Run a scenario with few and with many items, and compare the memory that is in use at most.

    It is called with a number of items, in a new event loop under virtual time: first once to load
    what it imports, then once for each size. What Python allocates counts, also of what is freed
    before the end. So a queue without a bound is found, although it is empty in the end.
    Allocations of other threads and of caches that are filled count too, but not each time: if the
    memory seems to grow, both sizes are run twice more, and the least of each counts.

    >>> import anyio
    >>> async def scenario(count: int) -> None:
    ...     for number in range(count):
    ...         await anyio.sleep(number)
    >>> few, many = flat_memory(scenario, sizes=(10, 50))

    Args:
        scenario: called with the number of items.
        sizes: the numbers of items.
        per_item: bytes by which the peak may grow for each further item. Results count: a list of
            integers takes some 40.
        backend: "asyncio" or "trio".

    Returns:
        The bytes in use at most, for each size.

    Raises:
        MemoryGrows: it takes more for each further item; the message names the lines that made it.
        BaseException: whatever the scenario raises.
    """
    few, many = sizes
    run_virtual(scenario, few, backend=backend)
    allowed = per_item * (many - few)
    least = _peak(scenario, few, backend), _peak(scenario, many, backend)
    for _ in range(_TRIES - 1):
        if least[1] - least[0] <= allowed:
            break
        least = (
            min(least[0], _peak(scenario, few, backend)),
            min(least[1], _peak(scenario, many, backend)),
        )
    if least[1] - least[0] > allowed:
        raise MemoryGrows(sizes, least, _lines_at(scenario, many, backend, least[1] * _NEAR))
    return least


def _peak(
    scenario: Callable[[int], Awaitable[object]], size: int, backend: Literal["asyncio", "trio"]
) -> int:
    import tracemalloc  # noqa: PLC0415 # sub-interpreters, which load this package, can't load it

    gc.collect()
    tracemalloc.start()
    try:
        run_virtual(scenario, size, backend=backend)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def _lines_at(
    scenario: Callable[[int], Awaitable[object]],
    size: int,
    backend: Literal["asyncio", "trio"],
    enough: float,
) -> str:
    """Run it once more, and return the lines that had made most when it was near its peak."""
    import tracemalloc  # noqa: PLC0415 # as in `_peak`

    found: list[str] = []

    def look() -> None:
        if not found and tracemalloc.get_traced_memory()[0] >= enough:
            statistics = tracemalloc.take_snapshot().statistics("lineno")[:_LINES]
            found.extend(f"  {one}\n" for one in statistics)

    async def watched() -> None:
        with steps_of_this_loop(look, reason=""):
            await scenario(size)

    gc.collect()
    tracemalloc.start()
    try:
        run_virtual(watched, backend=backend)
    finally:
        tracemalloc.stop()
    return "".join(found) or "  (the peak was too short to see)\n"
