"""Rounds of a race among streams that is run again where its winner breaks off.

Imports what has been taken up, and contests.

Invariants:
- A contestant that has failed takes no part in the next round. It does in another attempt of the
  step, and in another execution once nobody else is left: what has failed runs again there.
- What has been started counts for ``at_most`` once, however many rounds it takes part in.
- One that waits for answers runs from its start as all others do, and asks the same once more.
- One that is Done stays Done, and wins where nobody has given an item before.
- All of that is remembered over all rounds: a contestant may not come up in one of them, since that
  was decided before. If that is the last one, it has lost as it did before.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import final

from shoal._engine.run import Run
from shoal._events.events import ChildName, Done, Failed, Outcome
from shoal._events.identity import Key

from .race import Race
from .source import ElementSource
from .takeup import Pick, without


@final
class Rounds:
    """Who takes part in the next round, and how."""

    __slots__ = ("_begun", "_done", "_failed_before", "_former", "_out", "_tried", "pick")

    def __init__(self) -> None:
        """Have everybody take part."""
        self.pick: Callable[[str, Key], Pick] | None = None
        """Says of a child whether it is left out or runs anew; see ``ElementSource``."""
        self._out: set[ChildName] = set()
        self._failed_before: frozenset[ChildName] = frozenset()  # of these, in another execution
        self._tried: dict[ChildName, int] = {}
        self._done: dict[ChildName, Done] = {}
        self._former: ElementSource | None = None  # of the round before
        # Those that any round has started: how they ended in the last of these, or how they wait.
        self._begun: dict[ChildName, Outcome | Run] = {}

    @property
    def may_readmit(self) -> bool:
        """Whether there are some that have failed in an earlier execution, and are left out."""
        return bool(self._failed_before)

    def failed_before(self, outcomes: Iterable[Outcome]) -> None:
        """Hear how some have ended in an earlier execution, that are known here by now."""
        self._failed_before |= {_name_of(one) for one in outcomes if isinstance(one, Failed)}

    def left_behind(self, source: ElementSource) -> Iterable[Outcome | Run]:
        """Go through those that have not come up in the last round, which had ``source``."""
        return [one for name, one in self._begun.items() if name in source.to_come]

    def forget(self) -> None:
        """Let go of how contestants have ended: the frames of their errors lead back to here."""
        self._begun.clear()

    def prepare(self, source: ElementSource) -> None:
        """Have the children of a round made as they take part in it."""
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
        contest: Race | None,
        former: ElementSource | None,
        *,
        among_all: bool,
    ) -> Iterable[Outcome]:
        """Prepare the next round; return the outcomes of those that take no part in it.

        Args:
            outcomes: How those ended that have.
            resting: Those that wait for answers.
            contest: The last round's.
            former: The last round's source; None: this execution has run none.
            among_all: Whether those that have failed take part, too: it is tried again.
        """
        is_broken = contest is not None and contest.is_broken
        if contest is not None and contest.winner is not None:
            self._out.add(contest.winner)
        self._out |= {_name_of(one) for one in outcomes if isinstance(one, Failed)}
        if among_all:
            self._out.clear()
        elif not is_broken:  # nobody else is left
            self._out -= self._failed_before
        if among_all or not is_broken:
            self._failed_before = frozenset()
        self._done |= {_name_of(one): one for one in outcomes if isinstance(one, Done)}
        for one in outcomes:
            tried = self._tried.get(_name_of(one), 0)  # one that never started this time has none
            self._tried[_name_of(one)] = max(tried, one.attempts)
        self._begun |= {_name_of(one): one for one in outcomes}
        self._begun |= {ChildName(one.config.act, one.key): one for one in resting}
        self._former = former
        anew = self._begun.keys() - self._out - self._done.keys()
        self.pick = partial(without, frozenset(self._out), frozenset(anew))
        return [one for one in outcomes if _name_of(one) in self._out]


def _name_of(outcome: Outcome) -> ChildName:
    return ChildName(outcome.act, outcome.key)
