"""One process's work on a root run: saving for it and all its descendants. Imports the ports.

Invariants:
- A save is acknowledged within the commit deadline, or the execution ends. After a save that failed
  or is in doubt nothing is saved any more: what came after it could contradict it.
- A save can't be cancelled.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import final

from anyio import CancelScope, move_on_after

from ._cancel import as_failure
from ._errors import CommitInDoubt, ShoalError, SpuriousCancel, StoreFailed
from ._hooks import Hooks
from ._ports import Batch, Services


@final
class Execution:
    """From the start or resume of a root run to its end in this process."""

    __slots__ = ("_failure", "hooks", "services")

    def __init__(self, services: Services, hooks: Hooks) -> None:
        """Begin.

        Args:
            services: The runtime's.
            hooks: Told of the root run and its descendants.
        """
        self.services = services
        self.hooks = hooks
        self._failure: ShoalError | None = None

    @property
    def unsaved(self) -> bool:
        """Whether a save failed, so that nothing can be saved any more."""
        return self._failure is not None

    def ended_by(self, error: BaseException) -> bool:
        """Tell whether ``error`` ends the execution, and is no failure of the run it came out of.

        That is what became of the store or of a guarding hook; no ``on_error`` tolerates it.
        """
        return error is self._failure or any(error is failure for failure in self.hooks.failures)

    async def save(self, batch: Batch) -> None:
        """Have the store keep ``batch``; do nothing once a save has failed.

        Raises:
            StoreFailed: The store raised; the batch is not kept.
            CommitInDoubt: It did not acknowledge in time; whether the batch is kept is unknown.
        """
        if self._failure is not None:
            return
        try:
            pending = self.services.store.save(batch)
            if pending is None:
                return
            with CancelScope(shield=True), move_on_after(self.services.commit_deadline):
                await self._acknowledged(pending, batch)
                return
        except Exception as error:
            if self._failure is None:
                self._failure = StoreFailed(
                    f"the store could not keep a save of run {batch.path.id}: {error!r}; "
                    f"the run stops at its last saved state"
                )
            raise self._failure from error
        self._failure = self._in_doubt(
            batch, f"did not acknowledge it within {self.services.commit_deadline:g} s"
        )
        raise self._failure

    async def _acknowledged(self, pending: Awaitable[None], batch: Batch) -> None:
        try:
            await pending
        except BaseException as error:
            failure = as_failure(error)
            if not isinstance(failure, SpuriousCancel):
                raise
            # user code cancelled the task it ran in, which is ours
            self._failure = self._in_doubt(batch, "was interrupted meanwhile")
            raise self._failure from failure

    @staticmethod
    def _in_doubt(batch: Batch, why: str) -> CommitInDoubt:
        return CommitInDoubt(
            f"whether a save of run {batch.path.id} is kept is unknown: the store {why}; the run "
            f"stops, and learns from the store what happened when it is resumed"
        )
