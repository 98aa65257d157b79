"""Count the children of nested fan-outs, for the drawing of a graph.

A store counts the children of one run at a time. So few runs are looked at, and how many is said.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, final

from shoal._events.identity import RunPath
from shoal.stores._watching import Inspects

from ._headline import StepBar
from ._overview import bars_of

Way = tuple[str, ...]
"""The way down to a fan-out: step and act of each run on it, and the fan-out's own step."""


@final
class Nested(NamedTuple):
    """The nested fan-outs of a run, as the store has them."""

    bars: Mapping[Way, Sequence[StepBar]]
    """The fan-outs of each way, without those of the run itself."""
    looked_at: int
    """How many descendants with children were counted."""
    is_whole: bool
    """Whether these are all."""


async def nested_of(
    store: Inspects, path: RunPath, *, limit: int, without: Collection[RunPath] = ()
) -> Nested:
    """Count the children of the nested fan-outs of a run.

    Args:
        store: What has them.
        path: The run.
        limit: At most so many descendants are looked at.
        without: Descendants whose fan-outs are counted otherwise.
    """
    bars: dict[Way, list[StepBar]] = {}
    waiting = deque[tuple[RunPath, Way]]([(path, ())])
    looked_at, is_whole = -1, True  # the run itself doesn't count
    while waiting and looked_at < limit:
        at, way = waiting.popleft()
        looked_at += 1
        if way and at not in without:
            for bar in bars_of(at, await store.tallies(at), None):
                bars.setdefault((*way, bar.step), []).append(bar)
        # A page more than is needed tells whether there are further ones.
        page = await store.rows(at, order="position", limit=limit + 1)
        waiting += [
            (row.path, (*way, row.path.step, row.path.act)) for row in page.rows if row.has_children
        ]
        is_whole = is_whole and page.after is None
    return Nested(bars, looked_at, is_whole and not waiting)
