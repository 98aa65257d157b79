"""The root runs that go on in one runtime. Imports root runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

from .root_run import Root


@final
class Roots:
    """Root runs from their start to their end, in order of their start.

    Two may have one id: where the store is about to refuse the later one, or none would.
    """

    __slots__ = ("_all", "_by_id")

    def __init__(self) -> None:
        """Have none."""
        self._all: dict[Root, None] = {}
        self._by_id: dict[str, list[Root]] = {}

    def add(self, root: Root) -> None:
        """Have one more."""
        self._all[root] = None
        self._by_id.setdefault(root.path.id, []).append(root)

    def remove(self, root: Root) -> None:
        """Have one less, for it has ended."""
        del self._all[root]
        of_its_id = self._by_id[root.path.id]
        of_its_id.remove(root)
        if not of_its_id:
            del self._by_id[root.path.id]

    def find(self, run_id: str) -> Root | None:
        """Return the first of that id that has begun."""
        return next((root for root in self._by_id.get(run_id, ()) if root.run is not None), None)

    def interrupt(self, reason: str) -> None:
        """Cancel all, without an end: others may resume them."""
        for root in self._all:
            root.interrupt(reason)

    async def wait_for_first(self) -> None:
        """Wait until the one that was started first has ended."""
        hosted = next(iter(self._all)).hosted
        assert hosted is not None, "it is alive"
        await hosted.ended.wait()

    def __iter__(self) -> Iterator[Root]:
        """Go through those that have begun."""
        return (root for root in self._all if root.run is not None)

    def __len__(self) -> int:
        return len(self._all)
