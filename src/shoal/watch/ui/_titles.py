"""Call children by ``title=`` of their fan-outs, also those that no report has any more.

Titles are saved nowhere. Where the application is known, its function is called again, with the
element that the store has of the child: so it needs no other field.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, final

from shoal._events.identity import RunPath
from shoal._graph.act import Act
from shoal._runtime.application import Application
from shoal._runtime.tally import TEXT
from shoal._state.state import make_state
from shoal.watch._queries import Queries

from ._acts import act_of, within

LARGEST = 10_000
"""Characters of an element that is read for a title."""


@final
class Titles:
    """The titles of children."""

    def __init__(self, queries: Queries, applications: Mapping[str, Application[Any]]) -> None:
        """Call children by the titles of applications.

        Args:
            queries: Have the elements.
            applications: Those that are known, by name.
        """
        self._queries = queries
        self._applications = applications

    async def of(self, application: str, paths: Iterable[RunPath]) -> dict[RunPath, str]:
        """Return the titles of runs, without those that have none or can't be told."""
        known = self._applications.get(application)
        found: dict[RunPath, str] = {}
        for path in () if known is None else dict.fromkeys(paths):
            text = None if known is None else await self._title(known.graph, path)
            if text:
                found[path] = text
        return found

    async def _title(self, graph: Act, path: RunPath) -> str | None:
        if path.parent is None:
            return None
        act = _fan_out_of(graph, path)
        title, item = getattr(act, "title", None), getattr(act, "item", None)
        if not callable(title) or not isinstance(item, str):
            return None
        text = await self._queries.inspected.text(path, "element")
        if text is None or len(text) > LARGEST:
            return None
        try:
            # Imported here: with a store that isn't one of shoal's, msgspec may be missing.
            from shoal.stores._codec.codec import Codec  # noqa: PLC0415

            called = title(make_state({item: Codec().decode(text)}))
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001 # it needs more than the element, or a type is gone
            return None
        shown = called if isinstance(called, str) else str(called)
        return shown if len(shown) <= TEXT else f"{shown[: TEXT - 1]}…"


def _fan_out_of(graph: Act, path: RunPath) -> Act | None:
    """Return the fan-out that has started a child; None if it is an action's own."""
    assert path.parent is not None, "a root run has no fan-out"
    act = act_of(graph, path.parent)
    return None if act is None else within(act, path.step)
