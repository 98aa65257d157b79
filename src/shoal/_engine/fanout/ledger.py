"""``Ledger``: counts of how a fan-out's children ended, and their unused outcomes.

Invariants:
- Every key ends in exactly one outcome. The ledger counts all of them, and keeps only the unused
  ones, so that its memory does not grow with the successes.
"""

from __future__ import annotations

import traceback
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import final

from shoal._engine.disposition import LIVE
from shoal._engine.run import Run
from shoal._errors.completion import hides
from shoal._errors.exceptions import note
from shoal._errors.inspection import release_frames
from shoal._events.events import Cancelled, ChildName, Done, Failed, Outcome, Skipped
from shoal.stores._protocol import Store


@hides("add enter enter_all forget kept_in release_errors settle without")
@final
@dataclass(slots=True)
class Ledger:
    """Counts of how the children of a fan-out ended, and the outcomes that were not used.

    Iterate it for the unused outcomes, in input order: all that are not Done, and those Done that
    arrived too late or were refused (``used`` is False). A vote that a quorum has counted was used,
    whether it agreed with the majority or not. The ledger of an action's own fan-out has only
    counts: its outcomes were given to the action, or raised when the action left the block.
    """

    # Counts only: the values of these children are in the parent's state.
    done: int = 0
    failed: int = 0
    cancelled: int = 0
    skipped: int = 0
    dropped: int = 0
    """Elements without a child, because their keys were repeated; see ``grow``."""
    left: int = 0
    """Known children that were not started: ``at_most`` was reached, or the step failed or halted.

    They are children of elements that ``grow`` had found, and of further acts of the last element.
    """
    halted: int = 0
    """Children that have no outcome yet, because they wait for answers or the run was drained."""
    winner: ChildName | None = field(default=None, repr=False)
    """The contestant that has decided the race, by its act and key; None: nothing was decided.

    Then the unused outcomes are those of its losers. In a race by ``first_item`` it is known as
    soon as the contestant leads.
    """
    # Where outcomes are read from later, when the step and its configuration are gone.
    kept_in: Store | None = field(default=None, repr=False)
    """The store that has the children's histories; None: the parent's store."""
    # The unused outcomes, unsorted. None until there is one, since most fan-outs have none.
    _rest: list[Outcome] | None = field(default=None, repr=False)
    # Cancelled children without a made outcome: a race may cancel many, and few programs look at
    # them. Whenever outcomes are read, `settle` moves them to _rest.
    _cancelled: list[Run] | None = field(default=None, repr=False)

    @property
    def is_decided(self) -> bool:
        """Whether a race was decided."""
        return self.winner is not None

    @property
    def total(self) -> int:
        """The number of outcomes. Children that are halted have none."""
        return self.done + self.failed + self.cancelled + self.skipped

    def __iter__(self) -> Iterator[Outcome]:
        """Iterate over the unused outcomes, in input order."""
        self.settle()
        # Sorted when they are read, as few programs do; they come in the order in which children
        # end.
        return iter(sorted(self._rest or (), key=lambda outcome: outcome.position))

    def __len__(self) -> int:
        """Count the unused outcomes."""
        return len(self._rest or ()) + len(self._cancelled or ())

    def enter(self, child: Run, *, raised: bool) -> None:
        """Count a child's end, and keep its outcome if it was not used.

        Args:
            child: The child, which has ended.
            raised: Whether its failure is or may be raised. If not, the failure is kept as data and
                its traceback is dropped, together with the objects that its frames keep alive:
                pages, bodies, connections.
        """
        if not child.disposition.is_counted:  # else ``count_done`` has counted it
            self.count(child)
        if (child.status == "succeeded" and child.used) or child.disposition.is_kept:
            return
        if child.status == "halted":  # it has no outcome: it goes on when it is answered
            return
        # The run itself stays for now; see `_cancelled`.
        if child.status == "cancelled":
            if self._cancelled is None:
                self._cancelled = []
            self._cancelled.append(child)
            return
        if not raised and isinstance(child.error, Exception):
            _release_traceback(child.error)
        if self._rest is None:
            self._rest = []
        # In this order: the outcome is made of the error that the run drops next.
        self._rest.append(child.outcome)
        child.release_error()

    def enter_all(self, children: Iterable[Run], *, raised: Collection[int] | None) -> None:
        """Enter children; ``raised`` are the ids of those whose failures are, None: all."""
        done, cancelled = 0, list[Run]()
        for child in children:
            if child.disposition is LIVE and child.status == "succeeded" and child.used:
                done += 1  # no call for nearly all children
            elif child.disposition is LIVE and child.status == "cancelled":
                cancelled.append(child)  # nor for the many that are cancelled at once
            else:
                self.enter(child, raised=raised is None or id(child) in raised)
        self.done += done
        if cancelled:
            self.cancelled += len(cancelled)
            self._cancelled = [*(self._cancelled or ()), *cancelled]

    def without(self, children: Collection[Run]) -> Ledger:
        """Return a ledger without ``children``, which have ended and come up again.

        Those that are Done stay counted: they only have to be applied.
        """
        # By name: an outcome was made of the run, and doesn't refer to it.
        again = {ChildName(child.config.act, child.key) for child in children}
        ledger = Ledger(self.done, self.failed, self.cancelled, self.skipped, halted=self.halted)
        for child in children:
            # As `enter` has counted it.
            if child.status != "succeeded" and not child.disposition.is_counted:
                ledger.count(child, by=-1)
        ledger._rest = [one for one in self if ChildName(one.act, one.key) not in again]
        return ledger

    def settle(self) -> None:
        """Replace cancelled runs by their outcomes, so that the runs are freed."""
        if self._cancelled:
            self._rest = [*(self._rest or ()), *(child.outcome for child in self._cancelled)]
            self._cancelled = None

    def release_errors(self) -> None:
        """Drop the tracebacks of the kept failures: none of them will be raised."""
        for outcome in self._rest or ():
            if isinstance(outcome, Failed):
                _release_traceback(outcome.error)

    def forget(self) -> None:
        """Release the outcomes. Their errors are raised, and the frames of those lead back here."""
        self._rest = self._cancelled = None

    def count(self, child: Run, by: int = 1) -> None:
        """Count a child's end."""
        match child.status:
            case "halted":
                self.halted += by
            case "succeeded":
                self.done += by
            case "failed":
                self.failed += by
            case "cancelled":
                self.cancelled += by
            # Skipped by its key or by a breaker: only such children have no status at their end.
            case None:
                self.skipped += by

    def count_done(self) -> None:
        """Count a child that is Done already, when it comes up: it has ended before.

        Until it is applied it counts for a tolerated share too, see
        test_children_that_an_earlier_execution_left_done_have_ended.
        """
        self.done += 1

    def add(self, outcome: Outcome, *, kept: bool = True) -> None:
        """Count a recorded outcome; keep it if it was not used and ``kept`` is true."""
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
    """Set and return the ledger of one visit of a step: ``ledger``, or an empty one."""
    ledgers = run.ledgers.setdefault(step, [])
    # The list is indexed by visit. An action may open its own fan-out in some visits only, so the
    # visits before get empty ledgers.
    while len(ledgers) < visit:
        ledgers.append(Ledger())
    ledger = Ledger() if ledger is None else ledger
    ledger.kept_in = kept_in
    ledgers[visit : visit + 1] = [ledger]  # replaces that of an earlier attempt, if there was one
    return ledger


def _release_traceback(error: BaseException) -> None:
    """Drop the tracebacks of an error and of its causes and members; note where it was raised.

    The frames are not cleared: one of them may belong to a coroutine that still runs, and clearing
    the frame would close the coroutine (see test_an_exception_that_is_shared_harms_nobody_else).
    """
    places = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    if places:
        code, line = places[-1]
        note(error, f"shoal: raised at {code.co_filename}:{line}, in {code.co_name}")
    release_frames(error)
