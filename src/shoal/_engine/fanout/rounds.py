"""Rounds of a race among streams: the race is run again if its winner fails.

Invariants:
- A contestant that has failed is left out of the next round. It takes part again in another attempt
  of the step, and in another execution once no others are left, as failed children do there.
- A contestant that was started counts once for ``at_most``, however many rounds it takes part in.
- A halted contestant runs from its start as all others do, and asks the same question again.
- A contestant that is Done stays Done, and wins if no child has emitted an item before it comes up.
- All of that is kept over all rounds, because a contestant doesn't come up in a round that is
  decided before. If that is the last round, the contestant keeps its end of an earlier one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import final

from shoal._engine.run import Run
from shoal._events.events import ChildName, Decision, Done, Failed, Outcome
from shoal._events.identity import Key

from .finish import record_unapplied
from .ledger import Ledger
from .losers import Pick, without
from .race import Race
from .recorded import RecordedChildren
from .source import ElementSource

_NONE: frozenset[ChildName] = frozenset()  # one for all steps: few have any


@final
class Rounds:
    """The contestants of the next round, and how each of them takes part."""

    __slots__ = ("_begun", "_done", "_failed_before", "_former", "_out", "_tried", "pick")

    def __init__(self) -> None:
        """Prepare the first round, in which all children take part."""
        self.pick: Callable[[str, Key], Pick] | None = None
        """Returns for a child whether it is left out or runs anew; see ``ElementSource``.

        None in the first round. The step sets it for the winner that an earlier execution left.
        """
        self._out: frozenset[ChildName] = _NONE  # contestants that are left out
        # Of these, the ones that failed in an earlier execution. A round with them empties it.
        self._failed_before: frozenset[ChildName] = _NONE
        self._tried: dict[ChildName, int] = {}  # attempts so far; never fewer in a later round
        self._done: dict[ChildName, Done] = {}  # contestants that are Done, in any round
        self._former: ElementSource | None = None  # the last round's, until ``prepare``
        # All contestants that a round has started: their last outcome, or the run that has none,
        # because it halted, or was begun by an earlier execution and taken back unstarted.
        self._begun: dict[ChildName, Outcome | Run] = {}

    @property
    def may_readmit(self) -> bool:
        """Whether contestants are left out that failed in an earlier execution."""
        return bool(self._failed_before)

    def failed_before(self, outcomes: Iterable[Outcome]) -> None:
        """Note which contestants have failed in an earlier execution."""
        self._failed_before |= {_name_of(one) for one in outcomes if isinstance(one, Failed)}

    def left_behind(self, source: ElementSource) -> Iterable[Outcome | Run]:
        """Return the contestants that have not come up in the last round, which had ``source``."""
        return [one for name, one in self._begun.items() if name in source.to_come]

    async def end_left_behind(
        self,
        source: ElementSource,
        parent: Run,
        recorded_children: RecordedChildren | None,
        decision: Decision | None,
        ledger: Ledger,
    ) -> None:
        """Count contestants that have not come up in the last round: it was decided before.

        Their end is that of the round in which they came up last. If they halted there, or were put
        back, they are cancelled now.
        """
        lost: list[Run] = []
        for one in self.left_behind(source):
            if isinstance(one, Run):
                if decision is not None:
                    end = one.give_up if one.status == "halted" else one.never_start
                    end(decision.reason, decision.winner)
                    lost.append(one)
            elif recorded_children is None or (
                recorded_children.get(ChildName(one.act, one.key)) is None
            ):
                ledger.add(one)
        if lost:
            # Saved before they are counted, so that the ledger has no end that a store lacks.
            await record_unapplied(parent, lost)
        for child in lost:
            ledger.enter(child, raised=False)
        ledger.settle()

    def forget(self) -> None:
        """Release the outcomes of contestants."""
        self._begun.clear()  # breaks a cycle: the frames of their errors refer to the step

    def prepare(self, source: ElementSource) -> None:
        """Let ``source`` make the children of a round as these rounds require."""
        source.pick, source.tried, source.done_before = self.pick, self._tried, self._done
        former, self._former = self._former, None
        if former is not None:
            begun = self._begun.items()
            again = {name: one.position for name, one in begun if name not in self._out}
            source.count_on(former, again)

    def begin_again(
        self,
        outcomes: Sequence[Outcome],
        resting: Collection[Run],
        race: Race | None,
        former: ElementSource | None,
        *,
        among_all: bool,
    ) -> Iterable[Outcome]:
        """Prepare the next round; return the outcomes of contestants that are left out of it.

        Args:
            outcomes: The ends of the contestants that have ended.
            resting: The halted contestants.
            race: The last round's race.
            former: The last round's source; None: this execution has run no round.
            among_all: Whether failed contestants take part too, as in another attempt.
        """
        is_broken = race is not None and race.is_broken
        if race is not None and race.winner is not None:
            self._out |= {race.winner}
        self._out |= {_name_of(one) for one in outcomes if isinstance(one, Failed)}
        if among_all:
            self._out = _NONE
        elif not is_broken:  # no others are left, so these run again
            self._out -= self._failed_before
        if among_all or not is_broken:
            self._failed_before = _NONE
        self._done |= {_name_of(one): one for one in outcomes if isinstance(one, Done)}
        for one in outcomes:
            # An outcome of a contestant that never started this time has no attempts.
            tried = self._tried.get(_name_of(one), 0)
            self._tried[_name_of(one)] = max(tried, one.attempts)
        self._begun |= {_name_of(one): one for one in outcomes}
        self._begun |= {ChildName(one.config.act, one.key): one for one in resting}
        # Those have come up, so their records are gone: without this they would begin as new ones,
        # on top of their histories. See
        # test_a_contestant_that_was_taken_back_does_not_begin_on_top_of_its_history.
        for one in () if former is None else former.taken_back():
            self._begun.setdefault(ChildName(one.config.act, one.key), one)
        self._former = former
        anew = self._begun.keys() - self._out - self._done.keys()
        self.pick = partial(without, self._out, frozenset(anew))
        return [one for one in outcomes if _name_of(one) in self._out]


def _name_of(outcome: Outcome) -> ChildName:
    return ChildName(outcome.act, outcome.key)
