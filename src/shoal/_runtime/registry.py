"""The root runs that a runtime executes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import final

from anyio import CancelScope

from shoal._errors.inspection import first_of
from shoal._events.events import Status

from .root_run import RootRun


@final
class RunRegistry:
    """Root runs from their start to their end, in order of their start.

    Two of them may have one id: in a store that is about to refuse the later one, or without a
    store.
    """

    __slots__ = ("_all", "_by_id", "ended")

    def __init__(self) -> None:
        self._all: dict[RootRun, None] = {}  # a dict keeps the order, and removes in constant time
        self._by_id: dict[str, list[RootRun]] = {}
        self.ended: Counter[tuple[str, Status]] = Counter()
        """Executions that have ended, by application and status."""

    def add(self, root: RootRun) -> None:
        """Add a run that is about to be executed."""
        self._all[root] = None
        self._by_id.setdefault(root.path.id, []).append(root)

    def remove(self, root: RootRun) -> None:
        """Remove a run that has ended, and count it if it had begun."""
        if root.run is not None:
            # Without a status it was ended by a KeyboardInterrupt or the like.
            self.ended[root.path.act, root.run.status or "failed"] += 1
        del self._all[root]
        of_its_id = self._by_id[root.path.id]
        of_its_id.remove(root)
        if not of_its_id:
            del self._by_id[root.path.id]

    def find(self, run_id: str) -> RootRun | None:
        """Return the first run of that id that has begun."""
        return next((root for root in self._by_id.get(run_id, ()) if root.run is not None), None)

    async def wait_empty(self) -> None:
        """Wait until all runs have ended, those that are added meanwhile too."""
        while self._all:
            await self._wait_for_oldest()

    def drain_all(self, reason: str) -> None:
        """Start nothing more in the runs that have a store, and save no end of them for that."""
        for root in self._all:
            root.drain_interrupted(reason)

    async def interrupt_all(self, reason: str) -> None:
        """Cancel all runs without an end in their store, and wait until they have ended."""
        while self._all:
            self._interrupt(reason)
            await self._wait_for_oldest()

    async def close(self, reason: str, *, cancelling: bool) -> BaseException | None:
        """Wait until all runs have ended; interrupt them if the wait is interrupted.

        Args:
            reason: Why the runs are cancelled then.
            cancelling: Whether they are interrupted at once.

        Returns the first interruption of the wait, for the caller to raise; None if there was none.
        """
        interruption: BaseException | None = None
        while self._all:
            if cancelling:
                self._interrupt(reason)
            try:
                # Interrupted once, the wait goes on shielded: the block ends after its runs.
                with CancelScope(shield=cancelling):
                    await self._wait_for_oldest()
            except BaseException as error:  # noqa: BLE001 # returned, and raised by the caller
                interruption = first_of(interruption, error)
                cancelling = True
        try:
            return interruption
        finally:
            del interruption  # breaks the traceback cycle

    def _interrupt(self, reason: str) -> None:
        for root in self._all:
            root.interrupt(reason)

    async def _wait_for_oldest(self) -> None:
        await next(iter(self._all)).task.ended.wait()

    def __iter__(self) -> Iterator[RootRun]:
        """Go through the runs that have begun."""
        return (root for root in self._all if root.run is not None)

    def __len__(self) -> int:
        return len(self._all)
