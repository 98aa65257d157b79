"""Cancels some children of a group, and no others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

from shoal._engine.config import RunConfig
from shoal._engine.run import Run
from shoal._events.events import ChildName
from shoal._events.identity import Key

from .admission import ChildAdmission
from .entries import ChildSource
from .scope import GroupScope
from .workers import WorkerPool


@final
class ChildCancellation:
    """Cancels children by name while their siblings go on.

    A child that has begun is cancelled in its worker. One that waits to start never starts, and one
    that the source still keeps is removed from it.
    """

    __slots__ = ("_admission", "_leave", "_pool", "_scope", "_source")

    def __init__(
        self,
        scope: GroupScope,
        source: ChildSource,
        admission: ChildAdmission,
        pool: WorkerPool,
        leave: Callable[[Run], None],
    ) -> None:
        """Cancel nothing yet.

        Args:
            scope: The group's; once it is closing, all children are cancelled already.
            source: Keeps children that were not taken yet.
            admission: Keeps children that wait to start.
            pool: Executes the others.
            leave: Hands a child that has ended over to the parent.
        """
        self._scope = scope
        self._source = source
        self._admission = admission
        self._pool = pool
        self._leave = leave

    def others(self, child: Run, reason: str, winner: ChildName) -> None:
        """Cancel all children except ``child``, which goes on."""
        begun = [other for other in self._pool.living() if other is not child]
        self._pool.cancel_alone(begun, reason, winner)
        self.unstarted(self._admission.waiting_to_start, reason, winner)

    def by_key(
        self, key: Key, reason: str, act: str | None = None, step: str | None = None
    ) -> bool:
        """Cancel the children that have this key; with ``act``, only the one that executes it.

        A child that waits to start never starts. Siblings go on. Returns whether a child with this
        key had not ended; elements that the source has not pulled yet don't count.
        """

        def is_meant(config: RunConfig, of: Key) -> bool:
            return key == of and act in (None, config.act) and step in (None, config.step)

        def is_one(child: Run) -> bool:
            return is_meant(child.config, child.key)

        begun = [child for child in self._pool.living() if is_one(child)]
        unstarted = [child for child in self._admission.waiting_to_start if is_one(child)]
        if not self._scope.closing:  # else all are cancelled already, and the first reason counts
            unstarted += self._drop(is_meant)
            self._pool.cancel_alone(begun, reason)
            self.unstarted(unstarted, reason)
        return bool(begun or unstarted)

    def _drop(self, is_meant: Callable[[RunConfig, Key], bool]) -> list[Run]:
        """Remove the children that are meant from the source, and return those to cancel."""
        dropped = list[Run]()
        try:
            for child in self._source.drop(is_meant):
                # As any ended child it counts as in flight until the parent has committed its end.
                self._admission.place.used += 1
                if child.is_live:
                    dropped.append(child)
                else:  # Done already: it is applied, not cancelled
                    self._leave(child)
        except BaseException as error:  # noqa: BLE001 # raised by ``ChildTaskGroup.run``
            self._scope.fail(error)
        return dropped

    def unstarted(
        self, children: Sequence[Run], reason: str, winner: ChildName | None = None
    ) -> None:
        """Cancel children that have not started, and put them into the inbox."""
        if not children:  # as at the end of most groups
            return
        self._admission.cancel_unstarted(children, reason, winner)
        for child in children:
            self._leave(child)

    def close(self) -> None:
        """Cancel what still waits to start, and release the group."""
        self.unstarted(self._admission.waiting_to_start, self._scope.reason, self._scope.winner)
        # Breaks a cycle: this is a method of the group, which refers to this.
        self._leave = _ignore


def _ignore(_child: Run) -> None:
    """Replace ``leave`` of a group that has ended."""
