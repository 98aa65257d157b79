"""Resuming a parallel step: the records that earlier executions have left, and their counting.

Invariants:
- A child whose end ``reduce`` has taken is counted once, when the step is resumed. Other recorded
  children are counted when their elements come up, or when the step ends.
- An accepted result counts in a race from the start, whenever its element comes up, until its child
  runs anew.
- Results of elements that don't come up any more stay if they are stored by key, and are removed
  if they are stored by position.
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
from .losers import end_losers
from .race import Race
from .recorded import RecordedChildren, decided, outcome_of, read_recorded_children
from .source import ElementSource
from .takeup import Declared, fewest_acts, refuse_changed, refuse_lost_winner, without_failures


@final
class StepResume:
    """The records of one visit of a step that an earlier execution or attempt has begun."""

    __slots__ = ("_accepted", "_name", "_parent", "_store", "begun", "recorded_children")

    def __init__(
        self,
        parent: Run,
        name: str,
        store: Store,
        begun: ReplayedHistory | None,
        recorded_children: RecordedChildren | None,
    ) -> None:
        """Collect the records.

        Args:
            parent: The run whose step it is.
            name: The step's name.
            store: The store of the children.
            begun: The step in the parent's history; None: it isn't there.
            recorded_children: The recorded children; None: there are none.
        """
        # A step is resumed once in an execution, so none of these is replaced. Attempts share the
        # object.
        self._parent = parent
        self._name = name
        self._store = store
        # None although there are records, if the children's own store has them and the parent has
        # none.
        self.begun: ReplayedHistory | None = begun
        """The step in the parent's history; None if it isn't there."""
        self.recorded_children: RecordedChildren | None = recorded_children
        """The recorded children; None if there are none."""
        # Results that earlier executions accepted, and the race counts. Empty unless it is a race;
        # ``withdraw_reruns`` removes those whose children run anew.
        self._accepted: dict[ChildName, Done] = {}

    # -- counting -------------------------------------------------------------------------------

    def take_up(self, ledger: Ledger, race: Race | None) -> None:
        """Count the children that count even if their elements don't come up again.

        These are the children whose ends ``reduce`` has taken and, in a race, all whose results
        were accepted. Otherwise others could win before the elements of these come up, see
        test_what_was_accepted_before_counts_before_its_element_comes_up.
        """
        children, path = self.recorded_children, self._parent.path
        if children is None:
            return
        # Before the first child comes up, whose record is then counted for the race or not.
        children.has_race = race is not None
        done, others = children.folded()
        ledger.done += done
        for record in others:
            ledger.add(outcome_of(record, path))
        if race is None:
            return
        for record in children.rest():
            # A loser that succeeded was not used, and a success that is not applied has yet to be
            # judged.
            if record.status == "succeeded" and record.used and children.is_applied(record):
                outcome = outcome_of(record, path)
                assert isinstance(outcome, Done)
                self._accepted[ChildName(record.act, record.key)] = outcome
                race.recall(outcome)

    def withdraw_reruns(self, race: Race | None) -> None:
        """Withdraw accepted results whose children have come up since, and run anew."""
        if self.recorded_children is None or race is None:
            return
        for name in self._accepted.keys() & self.recorded_children.reruns:
            # Once: its new result is judged like any other.
            race.withdraw(self._accepted.pop(name))

    @property
    def last_accepted(self) -> Done | None:
        """The last accepted result that still counts; None if there is none."""
        return next(reversed(self._accepted.values()), None)

    def count(self, record: ChildRecord, outcome: Outcome, ledger: Ledger) -> None:
        """Count the end of a child in an earlier execution, unless ``take_up`` has counted it."""
        if self.recorded_children is None or not self.recorded_children.is_folded(record):
            ledger.add(outcome)

    def count_kept(self, record: ChildRecord, ledger: Ledger, race: Race | None) -> None:
        """Count a child that comes up, and that an earlier execution completed and applied."""
        if race is None and is_done(record):  # as most are: saves making an outcome for each
            children = self.recorded_children
            ledger.done += children is None or not children.is_folded(record)
            return
        self.count(record, outcome_of(record, self._parent.path), ledger)

    def count_rest(self, decision: Decision, ledger: Ledger) -> None:
        """Count the recorded children that don't come up any more, because it is decided."""
        for record, outcome in self.rest(decision):
            self.count(record, outcome, ledger)

    def rest(self, decision: Decision) -> Iterator[tuple[ChildRecord, Outcome]]:
        """Yield the records and outcomes of children that have not come up."""
        for record in () if self.recorded_children is None else self.recorded_children.rest():
            yield record, outcome_of(decided(record, decision), self._parent.path)

    # -- opening --------------------------------------------------------------------------------

    def refuse_changed(
        self, now: Declared, join: JoinSpec, goes_on: Decision | None = None
    ) -> StepBegun | None:
        """Refuse changes of the program that can't be carried over; return what has to be saved.

        Args:
            now: What the step declares now.
            join: How results are put into the state.
            goes_on: The decision, if the stream that has decided has yet to end.
        """
        declares = refuse_changed(self._parent, join, now, self.begun, self.recorded_children)
        if goes_on is not None:
            refuse_lost_winner(self._parent, goes_on, self.begun, now)
        return declares

    async def foresee(self, source: ElementSource) -> None:
        """Refuse children now that would be refused when they come up, as far as they are known.

        Otherwise children that come up earlier would be applied first. Then the former program
        could not continue from the state that the changed program has made of them: see
        test_the_former_program_goes_on_after_a_refusal.
        """
        children = self.recorded_children
        if children is None or not children.may_refuse:
            return
        # Only of a collection: asking an iterator would use it up, and what it gives may depend on
        # what is done.
        is_known = isinstance(source.given, Sequence | AbstractSet)
        given = cast("Iterable[object]", source.given) if is_known else ()
        with suppress(NotData):  # raised again when the element comes up
            elements = frozenset(map(digest, given))
            for record in await children.in_full(children.rest()):
                child = source.remade(record)
                if child is not None:
                    # By its digest, since elements need neither be hashable nor compare as users
                    # expect.
                    comes_up = digest(record.element) in elements
                    children.foresee(child, record, comes_up=comes_up)

    def reopen(
        self, begun: ReplayedHistory, source: ElementSource, join: JoinSpec
    ) -> dict[str, object]:
        """Restore discovered elements, and drop failures; return the fields that change.

        Children that failed run again, unless ``reduce`` has taken their failure.
        """
        # `grow` is asked again about a child that runs again. What it discovered before is known by
        # the child's name, so that nothing is discovered twice.
        discovering = [update for update in begun.under_way if update.discovered]
        causes = dict[int | None, ChildName]()
        if discovering and self.recorded_children is not None:
            found = self.recorded_children.applied_by({update.number for update in discovering})
            causes = {one.applied: ChildName(one.act, one.key) for one in found}
        # In the order of the updates, so that elements come up in the order in which they were
        # found.
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
        """Record and count losers that have no end, because the process died.

        Args:
            decision: The decision of the step.
            ledger: Counts the losers.
            make: Makes a source of the losers without a record; None: there are none.
            room_of: Returns how many children of a source were in flight, at most.
        """
        # A decision without any record: the process died between its save and that of the losers.
        none = RecordedChildren(self._parent, self._name, Records())
        children = self.recorded_children or none
        # Their ends are in the store when this returns, and only then they are counted.
        lost = await end_losers(
            self._parent, children, decision, make, room_of, kept_in=self._store
        )
        for outcome in lost:
            ledger.add(outcome)

    def left_over(self, ledger: Ledger, join: JoinSpec) -> list[ChildRecord]:
        """Count or return the records of elements that don't come up any more.

        There are such elements if the inputs have changed. A result that is stored by key stays,
        and is counted: the source may have left out its element because it is done. Without keys,
        results behind the last position belong to no element: their records are returned, and the
        caller removes them.
        """
        children = self.recorded_children
        gone: list[ChildRecord] = []
        for record in () if children is None else children.rest():
            assert children is not None
            if children.is_part_of_the_state(record) and not join.is_listed:
                children.refuse_kept(record)
                self.count(record, outcome_of(record, self._parent.path), ledger)
            else:
                gone.append(record)
        return gone

    def values_without(
        self, gone: Iterable[ChildRecord], ledger: Ledger, join: JoinSpec
    ) -> Mapping[str, object]:
        """Return the fields that change when old results are removed.

        Old results are those in ``gone``, and those of children that ran anew and failed. If there
        is one value for each key, a value that another act has put there stays.
        """
        acts = None if self.recorded_children is None else self.recorded_children.acts_now
        nested = join.is_nested
        # Unless results are nested, a key is one place for all acts, and another act may have
        # filled it.
        is_ours = [one for one in gone if nested or acts is None or one.act in acts]
        old = {(record.act, record.key) for record in is_ours}
        old |= {(one.act, one.key) for one in ledger if isinstance(one, Failed)}
        return join.without(self._parent.data, old)

    async def forget(self, gone: Sequence[ChildRecord], source: ElementSource) -> None:
        """Delete the histories of children that don't come up any more."""
        if self.recorded_children is None:
            return
        # The element is needed to make the child again, by which its history is found.
        for record in await self.recorded_children.in_full(gone):
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
    race: Race | None,
) -> StepResume | None:
    """Load the records of the present visit of a step from the store; None if there are none.

    Args:
        parent: The run whose step it is.
        join: How results are put into the state.
        store: The store of the children.
        begun: The step in the parent's history; None: it isn't there.
        ledger: Counts the children that count from the start.
        race: The race, if the step is one; accepted results are recalled in it.
    """
    # If several versions of the program have run, only the update of a result says which made it.
    several = begun is not None and len(begun.declarations) > 1
    recorded_children = await read_recorded_children(
        parent,
        join.name,
        parent.visit(join.name),
        store,
        folds=join.reduce is not None,
        in_full=race is not None or several,
    )
    if begun is None and recorded_children is None:
        return None
    if begun is not None and recorded_children is not None:
        recorded_children.fewest_acts = fewest_acts(begun)
    resume = StepResume(parent, join.name, store, begun, recorded_children)
    # Before any child comes up: see `take_up`.
    resume.take_up(ledger, race)
    return resume
