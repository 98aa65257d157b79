"""How the children of a fan-out ended: counts, and the outcomes that brought nothing. Imports runs.

Invariants:
- Every key ends in exactly one outcome. The ledger keeps counts, and those that brought nothing.
"""

from __future__ import annotations

import traceback
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import final

from shoal._engine.run import Run
from shoal._errors.exceptions import note
from shoal._errors.inspection import let_go_of_frames
from shoal._events.events import Cancelled, ChildName, Done, Failed, Outcome, Skipped
from shoal.stores._protocol import Store


@final
@dataclass(slots=True)
class Ledger:
    """How the children of a fan-out ended: counts, and the outcomes that brought nothing.

    Iterate it for those outcomes, in input order: all that are not Done, and those Done that were
    not ``used``, having come too late or been refused. A vote that a quorum has counted was used,
    whether it was one of those that agreed or not. Of an action's own fan-out there are counts
    alone: its outcomes were handed to the action, or raised where it left the block.
    """

    done: int = 0
    failed: int = 0
    cancelled: int = 0
    skipped: int = 0
    dropped: int = 0
    """Elements that ``grow`` (or ``over``, with ``grow``) repeated, which made no child."""
    left: int = 0
    """Children that were to come next when ``at_most`` was reached, or the step failed.

    They are those of elements that ``grow`` had found, and further acts of the last element.
    """
    halted: int = 0
    """Children that have no outcome yet, since they wait for answers."""
    is_decided: bool = field(default=False, repr=False)
    """Whether a race was decided: then outcomes that brought nothing are those of its losers."""
    kept_in: Store | None = field(default=None, repr=False)
    """The store that has the children's histories, if it isn't the parent's."""
    _rest: list[Outcome] | None = field(default=None, repr=False)
    _cancelled: list[Run] | None = field(default=None, repr=False)  # with outcomes nobody asked for

    @property
    def total(self) -> int:
        """Outcomes in all. Children that are halted have none."""
        return self.done + self.failed + self.cancelled + self.skipped

    def __iter__(self) -> Iterator[Outcome]:
        """Go through the outcomes that brought nothing, in input order."""
        self.settle()
        return iter(sorted(self._rest or (), key=lambda outcome: outcome.position))

    def __len__(self) -> int:
        """Count the outcomes that brought nothing."""
        return len(self._rest or ()) + len(self._cancelled or ())

    def enter(self, child: Run, *, raised: bool) -> None:
        """Count a child's end, and keep its outcome if it brought nothing.

        Args:
            child: It has ended.
            raised: Whether its failure will be raised, or may be. Otherwise it is kept as data, and
                its traceback is dropped, with all that the frames hold: pages, bodies, connections.
        """
        self.count(child)
        if (child.status == "succeeded" and child.used) or child.disposition.is_kept:
            return
        if child.status == "halted":
            return
        if child.status == "cancelled":
            if self._cancelled is None:
                self._cancelled = []
            self._cancelled.append(child)
            return
        if not raised and isinstance(child.error, Exception):
            _let_go(child.error)
        if self._rest is None:
            self._rest = []
        self._rest.append(child.outcome)
        child.release_error()

    def without(self, children: Collection[Run]) -> Ledger:
        """Count all but ``children``, which have ended and are to go on.

        Those that were found to be kept stay counted.
        """
        again = {ChildName(child.config.act, child.key) for child in children}
        ledger = Ledger(self.done, self.failed, self.cancelled, self.skipped, halted=self.halted)
        for child in children:
            ledger.count(child, by=-1)
        ledger._rest = [one for one in self if ChildName(one.act, one.key) not in again]
        return ledger

    def settle(self) -> None:
        """Let go of the runs that were cancelled, for their outcomes."""
        if self._cancelled:
            self._rest = [*(self._rest or ()), *(child.outcome for child in self._cancelled)]
            self._cancelled = None

    def let_go(self) -> None:
        """Keep as data the failures that might have been raised, and won't be."""
        for outcome in self._rest or ():
            if isinstance(outcome, Failed):
                _let_go(outcome.error)

    def forget(self) -> None:
        """Let go of the outcomes, whose errors will be raised: their frames lead back to here."""
        self._rest = self._cancelled = None

    def count(self, child: Run, by: int = 1) -> None:
        """Count a child's end, unless it was counted when it was found to be kept."""
        if child.status == "halted":
            self.halted += by
            return
        if child.disposition.is_kept:
            return
        match child.status:
            case "succeeded":
                self.done += by
            case "failed":
                self.failed += by
            case "cancelled":
                self.cancelled += by
            case None:
                self.skipped += by

    def add(self, outcome: Outcome, *, kept: bool = True) -> None:
        """Count a recorded outcome and, if it brought nothing and is ``kept``, keep it."""
        match outcome:
            case Done():
                self.done += 1
                if outcome.used:
                    return
            case Failed():
                self.failed += 1
            case Cancelled():
                self.cancelled += 1
            case Skipped():
                self.skipped += 1
        if not kept:
            return
        if self._rest is None:
            self._rest = []
        self._rest.append(outcome)


def new_ledger(
    run: Run, step: str, visit: int, kept_in: Store, ledger: Ledger | None = None
) -> Ledger:
    """Begin to count how the children of one visit of a step end, or go on with ``ledger``."""
    ledgers = run.ledgers.setdefault(step, [])
    while len(ledgers) <= visit:  # an action may open a fan-out of its own in some visits only
        ledgers.append(Ledger())
    ledger = ledgers[visit] = Ledger() if ledger is None else ledger
    ledger.kept_in = kept_in
    return ledger


def _let_go(error: BaseException) -> None:
    """Drop the tracebacks of an error and all that belongs to it; note where it was raised.

    The frames are not cleared: one of them may be a coroutine's that still runs, and clearing would
    close it (see test_an_exception_that_is_shared_harms_nobody_else).
    """
    places = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    if places:
        code, line = places[-1]
        note(error, f"shoal: raised at {code.co_filename}:{line}, in {code.co_name}")
    let_go_of_frames(error)
