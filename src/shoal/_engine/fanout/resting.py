"""``RestingChildren``: the halted children of a step, which wait for answers or have theirs.

Invariants:
- A child whose questions are answered goes back into the source, and stays halted until the source
  gives it out again. So if the step is decided, halts or fails before that, it ends as the others
  that are halted do; see test_a_contestant_that_is_answered_and_has_no_place_has_lost.
- A child is put back once for each time that it halts.
- One that was given out, and comes back to the source unstarted because the execution is drained,
  is halted as before; see test_one_that_is_drained_before_it_starts_is_still_halted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import final

from shoal._engine.questions import is_answered
from shoal._engine.run import Run
from shoal._events.events import ChildName, Decision

from .entries import ChildSource
from .ledger import Ledger


@final
class RestingChildren:
    """The halted children of one step, which its ledger counts as such."""

    __slots__ = ("_answered", "_given_out", "waiting")

    def __init__(self) -> None:
        """Begin without a halted child."""
        self.waiting: list[Run] = []
        """Those that have an open question, in the order in which they halted."""
        # Those that the source has again. A dict, since each is looked up when it is given out.
        self._answered: dict[Run, None] = {}
        # Those that the source has given out again, with their questions as the store has them.
        self._given_out: dict[Run, object] = {}

    def __iter__(self) -> Iterator[Run]:
        """Go through all of them."""
        yield from self.waiting
        yield from self._answered

    def __len__(self) -> int:
        """Count all of them."""
        return len(self.waiting) + len(self._answered)

    def put_back(self, source: ChildSource) -> Sequence[Run]:
        """Put those that have their answers back into ``source``; return them."""
        answered = [child for child in self.waiting if is_answered(child)]
        self.waiting = [child for child in self.waiting if child not in answered]
        # The first by position is put back last, so it is taken first.
        for child in sorted(answered, key=lambda child: -child.position):
            self._answered[child] = None
            source.take_back(child)
        return answered

    def begin_again(self, child: Run, ledger: Ledger) -> None:
        """Let a child that the source gives out once more go on, if it has its answers."""
        if child in self._answered:
            del self._answered[child]
            ledger.count(child, by=-1)
            self._given_out[child] = child.value
            child.reopen(counts=False)

    def rest_unstarted(self, ledger: Ledger) -> None:
        """Count those as halted that were given out and have not started: no child starts now."""
        for child, asked in self._given_out.items():
            if child.is_live and child.status is None:
                child.rest_again(asked)
                ledger.count(child)
                self._answered[child] = None
        self._given_out.clear()

    def give_up(
        self, decision: Decision | None, late: Iterable[Run], ledger: Ledger
    ) -> Sequence[Run]:
        """Cancel the children that lose by ``decision``; return those that ``ledger`` has counted.

        Args:
            decision: The decision of their race; None: no race was decided.
            late: Ended children that the ledger has not counted yet. Those that are halted, and
                don't lose, rest from now on.
            ledger: The ledger.
        """
        lost: list[Run] = []
        stay: list[Run] = []
        counted = dict.fromkeys(self)
        for child in (*counted, *late):
            if child.status != "halted":
                continue
            if decision is None or ChildName(child.config.act, child.key) == decision.winner:
                if child not in self._answered:
                    stay.append(child)
                continue
            if child in counted:
                # As halted. It is entered again with the end that it gets now.
                ledger.count(child, by=-1)
                lost.append(child)
                self._answered.pop(child, None)
            child.give_up(decision.reason, decision.winner)
        self.waiting = stay
        return lost

    def clear(self) -> None:
        """Forget those that wait: another attempt or round takes them up by other means."""
        self.waiting.clear()
        self._given_out.clear()
