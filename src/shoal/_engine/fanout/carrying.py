"""What earlier executions have left of a parallel step, carried over into this one.

Imports sources, contests, and what a changed program can't go on with.

Invariants:
- What ``reduce`` has taken is counted once, when the step is taken up; what else is done, when it
  comes up, or when all is over.
- A result that was accepted counts in a contest from the start, whenever its element comes up,
  until its child runs anew.
- What is left in the end, of elements that come up no more, stays where its key is known, and is
  taken out where its place is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import cast

from shoal._engine.commit import Write, commit, forget_history
from shoal._engine.run import Run
from shoal._errors.exceptions import NotData
from shoal._events.events import ChildName, Decision, Done, Failed, Outcome, Update
from shoal._graph.parallel import Join
from shoal._state.digest import digest
from shoal._state.state import Set
from shoal.stores._history import Playback, StepBegun
from shoal.stores._protocol import ChildRecord, Store
from shoal.stores._records import Records

from .ledger import new_ledger
from .race import Contest
from .recorded import Recorded, decided, outcome_of, recorded_children
from .source import Elements
from .takeup import Declared, end_losers, refuse_changed, without_failures


class Carrier(ABC):
    """The part of a parallel step that carries over what earlier executions have left of it."""

    def __init__(self, run: Run, name: str, join: Join, store: Store) -> None:
        """Know nothing of them yet.

        Args:
            run: The parent.
            name: The step's name.
            join: What becomes of results.
            store: Where the children are kept.
        """
        self.parent = run
        self.join = join
        self._name = name
        self._store = store
        self.decision: Decision | None = None
        self._contest: Contest | None = None
        self._accepted: dict[ChildName, Done] = {}  # in earlier executions; these count in it
        # An earlier execution may have begun the step: all children start from the state as it was.
        self._begun = run.playback
        self.data: Mapping[str, object] = (
            run.data if self._begun is None else self._begun.began.data
        )
        self.ledger = new_ledger(run, name, run.visit(name), store)
        self.recorded: Recorded | None = None
        self._declares: StepBegun | None = None  # to be saved with what is saved first
        self.source: Elements | None = None  # of the last attempt that came so far

    @abstractmethod
    def _make_source(self) -> Elements:
        """Begin to make what children are made of."""

    @abstractmethod
    def _room_of(self, source: Elements) -> int:
        """Say how many children of ``source`` are in flight."""

    @abstractmethod
    def _declared(self) -> Declared:
        """Say what a later execution has to be compared with."""

    async def _recall(self) -> None:
        """Ask the store what earlier executions have left of the children."""
        run, name, begun = self.parent, self._name, self._begun
        # Of which program a result is, only its own update says.
        several = begun is not None and len(begun.declarations) > 1
        recorded = self.recorded = await recorded_children(
            run,
            name,
            run.visit(name),
            self._store,
            folds=self.join.reduce is not None,
            in_full=self._contest is not None or several,
        )
        if recorded is not None:  # what reduce has taken counts, whether or not it comes up again
            recorded.has_contest = self._contest is not None
            done, others = recorded.folded()
            self.ledger.done += done
            for record in others:
                self.ledger.add(outcome_of(record, run.path))
            self._recall_accepted(recorded)

    def _recall_accepted(self, recorded: Recorded) -> None:
        """Tell the contest of all results that counted before.

        Else others could win before the elements of these come up, see
        test_what_was_accepted_before_counts_before_its_element_comes_up.
        """
        if self._contest is None:
            return
        for record in recorded.rest():
            if record.status == "succeeded" and record.used and recorded.is_applied(record):
                outcome = outcome_of(record, self.parent.path)
                assert isinstance(outcome, Done)
                self._accepted[ChildName(record.act, record.key)] = outcome
                self._contest.recall(outcome)

    def _withdraw_reruns(self) -> None:
        """Have results count no more whose children have come up since, and run anew."""
        if self.recorded is None or self._contest is None:
            return
        for name in self._accepted.keys() & self.recorded.reruns:
            self._contest.withdraw(self._accepted.pop(name))

    def _count(self, record: ChildRecord, outcome: Outcome) -> None:
        """Count how a child has ended in an earlier execution, unless that was done at once."""
        if self.recorded is None or not self.recorded.is_folded(record):
            self.ledger.add(outcome)

    async def _end_losers(self, decision: Decision, *, makes: bool = False) -> None:
        """Record losers without an end, for the process died; ``makes`` those without a record."""
        recorded = self.recorded or Recorded(self.parent, self._name, Records())
        make = self._make_source if makes else None
        lost = await end_losers(
            self.parent, recorded, decision, make, self._room_of, kept_in=self._store
        )
        for outcome in lost:
            self.ledger.add(outcome)

    def _count_rest(self, decision: Decision) -> None:
        """Count how those ended, by record, that don't come up any more: it is decided."""
        for record, outcome in self._rest(decision):
            self._count(record, outcome)

    def _rest(self, decision: Decision) -> Iterator[tuple[ChildRecord, Outcome]]:
        """Go through what is recorded of children that have not come up."""
        for record in () if self.recorded is None else self.recorded.rest():
            yield record, outcome_of(decided(record, decision), self.parent.path)

    def _refuse_changed(self) -> StepBegun | None:
        """Refuse what can't be carried over; return what is to be saved of what it declares now."""
        now = self._declared()
        return refuse_changed(self.parent, self.join, now, self._begun, self.recorded)

    async def _foresee(self) -> None:
        """Refuse what would be refused when it comes up, as far as that is known now.

        Else children that come up earlier would be applied before that, and the former program
        could not go on with what the changed one has made of them (see
        test_the_former_program_goes_on_after_a_refusal).
        """
        recorded, source = self.recorded, self.source
        if recorded is None or source is None or not recorded.may_refuse:
            return
        is_known = isinstance(source.given, Sequence | AbstractSet)
        given = cast("Iterable[object]", source.given) if is_known else ()
        with suppress(NotData):  # which is said when it comes up
            elements = frozenset(map(digest, given))
            for record in await recorded.in_full(recorded.rest()):
                child = source.remade(record)
                if child is not None:
                    comes_up = digest(record.element) in elements
                    recorded.foresee(child, record, comes_up=comes_up)

    def _reopen(self, begun: Playback) -> dict[str, object]:
        """Take the step up again: let come what had been discovered, and forget failures.

        Children that failed run again, unless ``reduce`` has taken their failure. Returns the
        fields that change by that.
        """
        source = self.source
        assert source is not None
        discovering = [update for update in begun.under_way if update.discovered]
        causes = dict[int | None, ChildName]()
        if discovering and self.recorded is not None:
            found = self.recorded.applied_by({update.number for update in discovering})
            causes = {one.applied: ChildName(one.act, one.key) for one in found}
        for one in discovering:
            source.rediscover(one.discovered, one.discovered_at, causes.get(one.number))
        return without_failures(self.join, self.parent.data)

    async def _clear_up(self) -> None:
        """Settle what is left of earlier executions, where inputs are not what they were.

        What a child has come to stays where it is if its key does not come up any more: the source
        may know it is done. Without keys, what follows the last position is nobody's; and where a
        child has run anew and failed, its old result is gone.
        """
        recorded, source, join = self.recorded, self.source, self.join
        if recorded is None or source is None:
            return
        gone: list[ChildRecord] = []
        if self.decision is not None:
            await self._end_losers(self.decision)
            self._count_rest(self.decision)
        for record in () if self.decision is not None else recorded.rest():
            if recorded.is_part_of_the_state(record) and not join.is_listed:
                recorded.refuse_kept(record)
                self._count(record, outcome_of(record, self.parent.path))
            else:
                gone.append(record)
        # Where there is one value for each key, what another act has brought there stays.
        acts, nested = recorded.acts_now, join.is_nested
        is_ours = [one for one in gone if nested or acts is None or one.act in acts]
        old = {(record.act, record.key) for record in is_ours}
        old |= {(one.act, one.key) for one in self.ledger if isinstance(one, Failed)}
        await self._set(join.without(self.parent.data, old))
        for record in await recorded.in_full(gone):
            child = source.remade(record)
            if child is not None:
                await forget_history(child)

    async def _set(self, values: Mapping[str, object]) -> None:
        """Give fields of the parent's state new values, by an update of their own."""
        run = self.parent
        if values:
            operations = tuple(Set(field, value) for field, value in values.items())
            update = Update(run.number + 1, self._name, operations)
            declares, self._declares = self._declares, None
            await commit(run, Write((update,), {**run.data, **values}, step_begun=declares))
