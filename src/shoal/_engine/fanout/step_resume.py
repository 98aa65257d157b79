"""What earlier executions have left of a parallel step, taken up by this one.

Invariants:
- What ``reduce`` has taken is counted once, when the step is taken up; what else is done, when it
  comes up, or when all is over.
- A result that was accepted counts in a race from the start, whenever its element comes up, until
  its child runs anew.
- What is left in the end, of elements that come up no more, stays where its key is known, and is
  taken out where its place is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import cast, final

from shoal._engine.commit import forget_history
from shoal._engine.parts import is_done
from shoal._engine.run import Run
from shoal._errors.exceptions import NotData
from shoal._events.events import ChildName, Decision, Done, Failed, Outcome
from shoal._graph.parallel import JoinSpec
from shoal._state.digest import digest
from shoal.stores._history import ReplayedHistory, StepBegun
from shoal.stores._protocol import ChildRecord, Store
from shoal.stores._records import Records

from .ledger import Ledger
from .race import Race
from .recorded import RecordedChildren, decided, outcome_of, recorded_children
from .source import ElementSource
from .takeup import Declared, end_losers, refuse_changed, refuse_lost_winner, without_failures


@final
class StepResume:
    """What is known of one visit of a step that an earlier execution, or attempt, has begun."""

    __slots__ = ("_accepted", "_name", "_parent", "_store", "begun", "recorded")

    def __init__(
        self,
        parent: Run,
        name: str,
        store: Store,
        begun: ReplayedHistory | None,
        recorded: RecordedChildren | None,
    ) -> None:
        """Collect it.

        Args:
            parent: The run whose step it is.
            name: The step's name.
            store: Where the children are kept.
            begun: What the parent's history says of it; None: nothing.
            recorded: The children that are recorded; None: none are.
        """
        self._parent = parent
        self._name = name
        self._store = store
        self.begun: ReplayedHistory | None = begun
        """What the parent's history says of it."""
        self.recorded: RecordedChildren | None = recorded
        """The children that are recorded."""
        self._accepted: dict[ChildName, Done] = {}  # in earlier executions; these count in a race

    # -- counting -------------------------------------------------------------------------------

    def take_up(self, ledger: Ledger, contest: Race | None) -> None:
        """Count what counts whether or not its element comes up again.

        That is what ``reduce`` has taken and, in a race, all results that were accepted. Else
        others could win before the elements of these come up, see
        test_what_was_accepted_before_counts_before_its_element_comes_up.
        """
        recorded, path = self.recorded, self._parent.path
        if recorded is None:
            return
        recorded.has_contest = contest is not None
        done, others = recorded.folded()
        ledger.done += done
        for record in others:
            ledger.add(outcome_of(record, path))
        if contest is None:
            return
        for record in recorded.rest():
            if record.status == "succeeded" and record.used and recorded.is_applied(record):
                outcome = outcome_of(record, path)
                assert isinstance(outcome, Done)
                self._accepted[ChildName(record.act, record.key)] = outcome
                contest.recall(outcome)

    def withdraw_reruns(self, contest: Race | None) -> None:
        """Have results count no more whose children have come up since, and run anew."""
        if self.recorded is None or contest is None:
            return
        for name in self._accepted.keys() & self.recorded.reruns:
            contest.withdraw(self._accepted.pop(name))

    @property
    def last_accepted(self) -> Done | None:
        """The last of the results that were accepted, and still count."""
        return next(reversed(self._accepted.values()), None)

    def count(self, record: ChildRecord, outcome: Outcome, ledger: Ledger) -> None:
        """Count how a child has ended in an earlier execution, unless that was done at once."""
        if self.recorded is None or not self.recorded.is_folded(record):
            ledger.add(outcome)

    def count_kept(self, record: ChildRecord, ledger: Ledger, contest: Race | None) -> None:
        """Count a child that comes up, and that an earlier execution has done all about."""
        if contest is None and is_done(record):  # as most are, so without its outcome
            ledger.done += self.recorded is None or not self.recorded.is_folded(record)
            return
        self.count(record, outcome_of(record, self._parent.path), ledger)

    def count_rest(self, decision: Decision, ledger: Ledger) -> None:
        """Count how those ended, by record, that don't come up any more: it is decided."""
        for record, outcome in self.rest(decision):
            self.count(record, outcome, ledger)

    def rest(self, decision: Decision) -> Iterator[tuple[ChildRecord, Outcome]]:
        """Go through what is recorded of children that have not come up."""
        for record in () if self.recorded is None else self.recorded.rest():
            yield record, outcome_of(decided(record, decision), self._parent.path)

    # -- opening --------------------------------------------------------------------------------

    def refuse_changed(
        self, now: Declared, join: JoinSpec, goes_on: Decision | None = None
    ) -> StepBegun | None:
        """Refuse what can't be carried over; return what is to be saved of what it declares now.

        Args:
            now: What the step declares.
            join: What becomes of results.
            goes_on: How it was decided, where the stream that has decided it has yet to end.
        """
        declares = refuse_changed(self._parent, join, now, self.begun, self.recorded)
        if goes_on is not None:
            refuse_lost_winner(self._parent, goes_on, self.begun, now)
        return declares

    async def foresee(self, source: ElementSource) -> None:
        """Refuse what would be refused when it comes up, as far as that is known now.

        Else children that come up earlier would be applied before that, and the former program
        could not go on with what the changed one has made of them (see
        test_the_former_program_goes_on_after_a_refusal).
        """
        recorded = self.recorded
        if recorded is None or not recorded.may_refuse:
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

    def reopen(
        self, begun: ReplayedHistory, source: ElementSource, join: JoinSpec
    ) -> dict[str, object]:
        """Let come what had been discovered, and forget failures.

        Children that failed run again, unless ``reduce`` has taken their failure. Returns the
        fields that change by that.
        """
        discovering = [update for update in begun.under_way if update.discovered]
        causes = dict[int | None, ChildName]()
        if discovering and self.recorded is not None:
            found = self.recorded.applied_by({update.number for update in discovering})
            causes = {one.applied: ChildName(one.act, one.key) for one in found}
        for one in discovering:
            source.rediscover(one.discovered, one.discovered_at, causes.get(one.number))
        return without_failures(join, self._parent.data)

    # -- ending ---------------------------------------------------------------------------------

    async def end_losers(
        self,
        decision: Decision,
        ledger: Ledger,
        *,
        make: Callable[[], ElementSource] | None = None,
        room_of: Callable[[ElementSource], int],
    ) -> None:
        """Record losers without an end, for the process died, and count them.

        Args:
            decision: How the step was decided.
            ledger: Counts them.
            make: Makes a source of those that nothing is recorded of; None: there are none.
            room_of: Says how many of its children were in flight, at most.
        """
        recorded = self.recorded or RecordedChildren(self._parent, self._name, Records())
        lost = await end_losers(
            self._parent, recorded, decision, make, room_of, kept_in=self._store
        )
        for outcome in lost:
            ledger.add(outcome)

    def left_over(self, ledger: Ledger, join: JoinSpec) -> list[ChildRecord]:
        """Count what is left of elements that come up no more; return what is to be forgotten.

        That is where inputs are not what they were. What a child has come to stays where it is if
        its key does not come up any more: the source may know it is done. Without keys, what
        follows the last position is nobody's.
        """
        recorded = self.recorded
        gone: list[ChildRecord] = []
        for record in () if recorded is None else recorded.rest():
            assert recorded is not None
            if recorded.is_part_of_the_state(record) and not join.is_listed:
                recorded.refuse_kept(record)
                self.count(record, outcome_of(record, self._parent.path), ledger)
            else:
                gone.append(record)
        return gone

    def values_without(
        self, gone: Iterable[ChildRecord], ledger: Ledger, join: JoinSpec
    ) -> Mapping[str, object]:
        """Return the fields that change where old results are taken out.

        That is those in ``gone`` and, where a child has run anew and failed, its old one. Where
        there is one value for each key, what another act has brought there stays.
        """
        acts = None if self.recorded is None else self.recorded.acts_now
        nested = join.is_nested
        is_ours = [one for one in gone if nested or acts is None or one.act in acts]
        old = {(record.act, record.key) for record in is_ours}
        old |= {(one.act, one.key) for one in ledger if isinstance(one, Failed)}
        return join.without(self._parent.data, old)

    async def forget(self, gone: Sequence[ChildRecord], source: ElementSource) -> None:
        """Forget the histories of children that come up no more."""
        if self.recorded is None:
            return
        for record in await self.recorded.in_full(gone):
            child = source.remade(record)
            if child is not None:
                await forget_history(child)


async def resume_of(
    parent: Run,
    join: JoinSpec,
    store: Store,
    begun: ReplayedHistory | None,
    *,
    ledger: Ledger,
    contest: Race | None,
) -> StepResume | None:
    """Ask the store what there is of the present visit of a step; None if there is nothing.

    Args:
        parent: The run whose step it is.
        join: What becomes of results.
        store: Where the children are kept.
        begun: What the parent's history says of it.
        ledger: Counts what counts from the start.
        contest: The race that the step is; it hears of results that were accepted.
    """
    # Of which program a result is, only its own update says.
    several = begun is not None and len(begun.declarations) > 1
    recorded = await recorded_children(
        parent,
        join.name,
        parent.visit(join.name),
        store,
        folds=join.reduce is not None,
        in_full=contest is not None or several,
    )
    if begun is None and recorded is None:
        return None
    resume = StepResume(parent, join.name, store, begun, recorded)
    resume.take_up(ledger, contest)
    return resume
