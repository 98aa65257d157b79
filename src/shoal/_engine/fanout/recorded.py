"""Reads the records of earlier executions, and decides what happens to each recorded child.

Invariants:
- A child that succeeded and was applied is neither executed nor applied again. A child that
  succeeded without being applied is applied. Any other continues after its last completed step.
- If a step was decided, a child without an end in the store has lost: it was cancelled by the
  decision, or it died with its process.
- A child that waits for answers is not executed until one of them is there.
- A child whose digest has changed runs anew. If ``reduce`` has taken its result, the step is
  refused instead, because ``reduce`` can't be undone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Literal, final

from shoal._engine.parts import read_done
from shoal._engine.progress import asks_for_more, recorded_questions
from shoal._engine.run import Run
from shoal._errors.exceptions import InputChanged, NotData, RunConflict, brief, fork_advice
from shoal._events.events import Cancelled, ChildName, Decision, Done, Failed, Outcome, Skipped
from shoal._events.identity import Key, RunPath
from shoal._state.digest import digest
from shoal._state.state import State, make_state
from shoal.stores._protocol import ChildRecord, DoneChild, NullStore, ReadsInParts, Store
from shoal.stores._records import UNREAD, Conflicts, Records, was_started

ResumeDecision = Literal[
    "new", "begins again", "goes on", "runs anew", "is done", "is kept", "rests"
]
"""The decision about a child in this execution: see ``RecordedChildren.resume``."""


async def read_recorded_children(
    run: Run, step: str, visit: int, store: Store, *, folds: bool = False, in_full: bool = True
) -> RecordedChildren | None:
    """Return the recorded children of one visit of a step; None if there are none.

    Args:
        run: The parent.
        step: The step's name.
        visit: The number of the visit.
        store: The store of the children, which may differ from the parent's.
        folds: Whether ``reduce`` takes their results.
        in_full: Whether to read the values and elements of done children too.

    Raises:
        StoreFailed: A store could not be read.
        RunClaimed: Another execution holds the run in the children's store.
    """
    config, path = run.config, run.path
    execution = config.execution
    is_apart = store is not config.store and not isinstance(store, NullStore)
    retries, resume = run.retries, run.resume
    is_repeated = retries is not None and (retries.is_repeated or retries.attempt > 1)
    # A child of an action that is called again in this execution, and that was cancelled; see
    # test_grandchildren_that_are_done_stay_so_when_the_action_is_called_again.
    is_continued = resume is not None and resume.record is not None
    has_begun = execution.is_resumed or is_repeated or is_continued
    if not (is_apart or has_begun):
        return None
    what, records = f"the children of step {step!r} of run {path.id}", Records()
    # First the children's store: the parent's store has their ends, which replace these records.
    if is_apart:
        # Before it is read: another execution of the run could go on with the very same children.
        await execution.claim(store, path.root.id)
        for record in await execution.ask(store.children(path, step, visit), what):
            records.add(record)
    # Otherwise this execution is the first, and has saved nothing of the step: a fresh run must not
    # pay for a question.
    if has_begun:
        await _read_records(run, step, visit, records, what, in_full=in_full)
    if not records:
        return None
    return RecordedChildren(run, step, records, folds=folds, forgets=isinstance(store, NullStore))


async def _read_records(
    run: Run, step: str, visit: int, records: Records, what: str, *, in_full: bool
) -> None:
    """Add the records of the parent's own store to ``records``."""
    execution, store, path = run.config.execution, run.config.store, run.path
    has_undone = False
    playback = run.playback
    numbers = frozenset(() if playback is None else (one.number for one in playback.under_way))

    def take(children: Sequence[DoneChild]) -> None:
        nonlocal has_undone
        has_undone = has_undone or any(run.is_undone(one.applied) for one in children)
        # Those that the step under way has applied are listed apart: their updates are compared.
        records.add_done(children, numbers)

    # Without values and elements, which most children that are done don't need any more.
    if isinstance(store, ReadsInParts) and not in_full:
        await read_done(execution, store, path, step, visit, take=take)
        if not has_undone:  # otherwise children are applied again, which needs their values
            for record in await execution.ask(store.not_done(path, step, visit), what):
                records.add(record)
            return
    for record in await execution.ask(store.children(path, step, visit), what):
        records.add(record)


def conflict(parent: Run, step: str, why: str) -> RunConflict:
    """Return the error for a step that a changed program can't continue, with advice.

    The error ends the execution, whatever ``on_error`` of an enclosing fan-out says.
    """
    run_id, root = parent.path.id, parent.path.root.id
    error = RunConflict(
        f"fan-out {step!r} of run {run_id} was begun by a program in which {why}, and some of its "
        f"results are there already; change that back to go on with it, or "
        f"{fork_advice(root, parent.config.execution.forks_at)}"
    )
    return parent.config.execution.refuse(error)


@final
class RecordedChildren:
    """The recorded children of one visit of a step, until each of them comes up again."""

    __slots__ = (
        "_alike",
        "_folds",
        "_forgets",
        "_left",
        "_parent",
        "_step",
        "acts",
        "acts_done",
        "acts_in_order",
        "acts_now",
        "compares",
        "conflicts",
        "done_left",
        "fewest_acts",
        "has_race",
        "has_other_acts",
        "last_position",
        "renamed",
        "reruns",
        "started",
    )

    def __init__(
        self,
        parent: Run,
        step: str,
        records: Records,
        *,
        folds: bool = False,
        forgets: bool = False,
    ) -> None:
        """Start with all ``records``.

        Args:
            parent: The children's parent.
            step: The step's name, for errors.
            records: The records of the children. Only this object changes them from now on.
            folds: Whether ``reduce`` takes their results.
            forgets: Whether only the children's ends are saved, and no histories.
        """
        self._parent = parent
        # For messages alone; the records are those of one visit of it.
        self._step = step
        # Then a child that isn't done begins again, because nothing says how far it came.
        self._forgets = forgets
        # Then an applied end stays whatever changes, or the step is refused: `reduce` can't be
        # undone.
        self._folds = folds
        self._left = records  # shrinks: a record is removed when its child comes up
        # Of all records, also of those that have come up since: new positions go behind all of
        # them.
        self.last_position: int = records.last_position
        """The highest position of a recorded child, in the program that has recorded it."""
        # Lowered by `leave_out` alone. A child that comes up stays counted.
        self.started: int = records.started
        """The number of children that were started; `at_most` counts them."""
        # Done children that were read in parts are applied: with ``folds``, they were reduced.
        done = 0 if folds else records.done
        # Lowered whenever a record leaves `_left`, by `drop` and `resume`.
        self.done_left: int = done + sum(map(self._is_done, records.others))
        """The number of Done children that have not come up, without those that were reduced."""
        # As they were at the beginning: they don't shrink as children come up.
        self.acts: frozenset[str] = frozenset(records.acts)
        """The names of the children's acts."""
        self.acts_done: frozenset[str] = frozenset(records.acts_done)
        """The names of the acts that have results."""
        self.fewest_acts: int | None = None
        """The fewest acts for an element in a program that has recorded them; None: unknown."""
        # The attributes down to has_race are set before the first child comes up.
        self.acts_now: frozenset[str] | None = None
        """The names of the acts that are executed now; None: each task has its own act."""
        self.acts_in_order: tuple[Sequence[str], Sequence[str]] | None = None
        """The acts then and now, if they differ: positions count acts. None: they are the same."""
        self.renamed: tuple[str, str] | None = None
        """The name of the only act, then and now, if it has changed."""
        self.compares: bool = False
        """Whether a child without a record is compared with the record of its position."""
        self.conflicts: Conflicts | None = None
        """Why recorded results can't be used as they are; None: all of them can."""
        self.has_other_acts: bool = False
        """Whether records may be of acts, or versions of acts, that are not executed now."""
        self.has_race: bool = False
        """Whether a race may decide the step before all children have ended."""
        self.reruns: set[ChildName] = set()
        """Children of a race that run again. One leaves when its new result has been applied."""
        # Only tasks need it: elements are told apart by their keys and positions.
        self._alike: Counter[str] | None = None  # records per digest; made on first use

    def leave_out(self, acts: Collection[str]) -> None:
        """Stop counting the children of removed acts as started. None of them may be done.

        Otherwise ``at_most`` would leave no room for their replacements (see
        test_children_of_an_act_that_is_gone_take_no_place_of_at_most).
        """
        self.started -= sum(map(was_started, self._left.of(acts)))

    def last_position_now(self, acts: int) -> int:
        """Return the highest position that recorded elements take, with ``acts`` for each.

        It may be higher than that, but not lower: a program with fewer acts may have recorded the
        last element. See test_elements_that_grow_behind_another_list_of_acts_take_no_others_place.
        """
        then = self.fewest_acts or acts
        return (self.last_position // then + 1) * acts - 1

    def get(self, child: ChildName) -> ChildRecord | None:
        """Return the record of a child that has not come up yet; None if it has none."""
        return self._left.get(child)

    def drop(self, child: ChildName) -> None:
        """Remove the record of a child, which has come up."""
        record = self._left.pop(child)
        self.done_left -= record is not None and self._is_done(record)

    @property
    def left(self) -> int:
        """The number of children that have not come up yet."""
        return len(self._left)

    def rest(self) -> Sequence[ChildRecord]:
        """Return the records of the children that have not come up, in input order."""
        return list(self._left)

    async def in_full(self, records: Sequence[ChildRecord]) -> Sequence[ChildRecord]:
        """Return ``records`` with elements and values, reading them if they were left out.

        Raises:
            StoreFailed: The store could not be read.
        """
        unread = {ChildName(one.act, one.key) for one in records if one.element is UNREAD}
        if not unread:
            return records
        config, path, one = self._parent.config, self._parent.path, records[0]
        asked = config.store.children(path, one.step, one.visit)
        # All of them in one question, since no store can be asked for some.
        found = await config.execution.ask(asked, f"the children of step {self._step!r}")
        # A record that the store lacks now stays as it is.
        read = {ChildName(one.act, one.key): one for one in found}
        return [read.get(ChildName(one.act, one.key), one) for one in records]

    def applied_by(self, numbers: Collection[int]) -> Iterator[ChildRecord]:
        """Iterate over the records that updates of these numbers have applied."""
        for record in (*self._left.applied_first, *self._left.others):
            if record.applied in numbers and self.is_applied(record):
                yield record

    def folded(self) -> tuple[int, Iterator[ChildRecord]]:
        """Return the reduced children: the number of done ones, and the records of the others."""
        done = self._left.done if self._folds else 0
        return done, filter(self.is_folded, self._left.others)

    def resume(self, child: Run) -> tuple[ResumeDecision, ChildRecord | None]:
        """Decide what happens to ``child``, which comes up now, and prepare it for that.

        "is kept": applied before; "is done": only applied; "goes on": continued after its last
        step; "rests": not executed, waits for answers; "runs anew": executed, its digest changed;
        "begins again": executed, it has no history; "new": it has no record that counts.

        Returns the decision and the record. A child that "is kept" is left as it is: whether it
        is dropped, or applied once more, depends on what asks.

        Raises:
            InputChanged: It would run anew, but ``reduce`` has taken its result.
            RunConflict: The changed program can't use its result.
        """
        name = ChildName(child.config.act, child.key)
        record = self._left.get(name)
        if record is None:
            # Only in a parallel step: the calls of `start` in an action may come in any order.
            if self.compares:
                self._refuse_renamed(child)
            return "new", None
        decision = self._decide(child, record)
        # Only now: if `_decide` has raised, the child may come up once more.
        self._left.pop(name)
        self.done_left -= self._is_done(record)
        # Such a child may have a result that counts. The step withdraws it before the next
        # judgement; see test_what_was_accepted_before_does_not_count_where_it_runs_anew.
        if self.has_race and decision not in ("is done", "is kept", "new"):
            self.reruns.add(name)
        if decision == "goes on":
            child.resume_state().record = record
        elif decision == "is done":
            child.take_over(record)
        elif decision == "runs anew":
            child.resume_state().is_afresh = True
        elif decision == "rests":
            child.rest(record)
        return decision, None if decision == "new" else record

    def is_done(self, child: Run) -> bool:
        """Return whether ``resume`` would say that ``child`` is done; nothing else happens.

        Raises:
            InputChanged: As ``resume``.
            RunConflict: As ``resume``.
        """
        record = self.get(ChildName(child.config.act, child.key))
        return record is not None and self._decide(child, record) == "is done"

    @property
    def may_refuse(self) -> bool:
        """Whether ``resume`` may raise for a child that has not come up yet."""
        return self.conflicts is not None or (self._folds and self.has_other_acts)

    def foresee(self, child: Run, record: ChildRecord, *, comes_up: bool) -> None:
        """Raise now what ``resume`` would raise later, after other children were applied.

        Args:
            child: The child as the source would make it.
            record: Its record.
            comes_up: Whether it certainly comes up. If not, a reduced result may simply stay.

        Raises:
            InputChanged: As ``resume``.
            RunConflict: As ``resume``.
        """
        # Else `_decide` would refuse a changed input that may not come up at all.
        if comes_up or not self.is_folded(record) or record.digest == child.digest:
            self._decide(child, record)

    def _decide(self, child: Run, record: ChildRecord) -> ResumeDecision:
        applied = self.is_applied(record)
        if record.status == "skipped" and record.used:  # because of its key, whatever its digest
            # If no update that still counts has applied it, it is looked at once more.
            return "is kept" if applied else "new"
        # Before it is looked at as applied: a result of other input must not stay.
        if record.digest != child.digest:
            if self.is_folded(record):
                # `reduce` has taken what was made of the other input, and nothing can take that out
                # again.
                then, now = self.renamed or (child.config.act, child.config.act)
                was = "" if then == now else f" ({then!r}, now {now!r})"
                msg = (
                    f"fan-out {self._step!r}: what key {brief(child.key)} works on, its act{was} "
                    f"or the act's version has changed since its result was reduced (run "
                    f"{child.path.id}); reduce can't be undone: "
                    f"{fork_advice(child.path.root.id, child.config.execution.forks_at)}"
                )
                raise self._parent.config.execution.refuse(InputChanged(msg))
            return "runs anew"
        if self.is_part_of_the_state(record):
            self.refuse_kept(record)
            return "is kept"
        if record.status == "succeeded":  # before ``_forgets``: a result needs no history
            if self.conflicts is not None and self.conflicts.of_value:
                raise conflict(self._parent, self._step, self.conflicts.of_value)
            return "is done"
        if self._forgets:
            return "begins again"  # not "new": ``started`` counts it already
        return "rests" if self._waits(child, record) else "goes on"

    def done_elsewhere(self) -> int:
        """Count the children that have not come up, and whose results are in the state."""
        if not self.done_left:
            return 0
        done = 0 if self._folds else self._left.done
        others = filter(self._is_done, self._left.others)
        return done + sum(map(self.is_part_of_the_state, others))

    def _is_done(self, record: ChildRecord) -> bool:
        return record.status == "succeeded" and not self.is_folded(record)

    def refuse_kept(self, record: ChildRecord) -> None:
        """Refuse an applied result that can't stay in the state.

        Raises:
            RunConflict: With the change of the program.
        """
        why = "" if self.conflicts is None else self.conflicts.of_kept(record)
        if why:
            raise conflict(self._parent, self._step, why)

    def _refuse_renamed(self, child: Run) -> None:
        """Refuse a child that is new only because its act or its key was renamed.

        Raises:
            RunConflict: The child at its position has an end to lose, and only that name differs.
        """
        # Its record, if it had another name, is one at the same position.
        place, act = self._place_then(child), child.config.act
        record = None if place is None else self._left.at(place)
        if record is None:
            return
        if record.status != "succeeded" and not self.is_folded(record):
            return  # there is nothing to lose
        # Acts of a list are compared as a whole by `as_recorded`; here it is about tasks.
        if record.key == child.key and self.acts_now is None and record.act != act:
            why = (
                f"child {child.position}, key {brief(child.key)}, was of act {record.act!r}, and "
                f"now it is of {act!r} (if the act was renamed, give it its old name with name=; "
                f"what was added stands behind what was there)"
            )
            raise conflict(self._parent, self._step, why)
        if record.act == act and record.key != child.key and self._works_on_same(record, child):
            why = (
                f"element {child.position} had the key {brief(record.key)}, and now it has "
                f"{brief(child.key)}"
            )
            raise conflict(self._parent, self._step, why)

    def _place_then(self, child: Run) -> int | None:
        """Return the position that a child had among the acts then; None if its act is new.

        The present position may have been that of another element (see
        test_elements_that_are_the_same_are_not_taken_for_each_other).
        """
        if self.acts_in_order is None or self.renamed is not None:
            return child.position
        (then, now), act = self.acts_in_order, child.config.act
        if act not in then:
            return None
        return child.position // len(now) * len(then) + then.index(act)

    def _works_on_same(self, record: ChildRecord, child: Run) -> bool:
        """Return whether a child works on the same element as the child of a record."""
        if record.digest != child.digest:
            return False
        if self.acts_now is None:
            # Each task has its own act then, so tasks may have equal input and still be several.
            if self._alike is None:
                self._alike = Counter(one.digest for one in self._left)
            if self._alike[record.digest] > 1:
                return False  # several tasks with equal input: only their keys tell them apart
        if record.element is UNREAD:
            return True  # the element is part of the digest
        try:
            # By their digests, as saved: an element that was read back need not be equal to the
            # given one.
            return digest(record.element) == digest(child.element)
        except NotData:
            return False

    def _waits(self, child: Run, record: ChildRecord) -> bool:
        """Return whether a child is halted, and none of its questions is answered."""
        if record.status != "halted":
            return False
        answers = child.config.execution.answers
        # Its own and those of its descendants: an answer to any of them lets it go on.
        asked = recorded_questions(record.value, child.path)
        # One answer is enough to go on: the child asks its other questions again.
        return bool(asked) and not any(one.id in answers or asks_for_more(one) for one in asked)

    def has_done(self, act: str, key: Key) -> bool:
        """Return whether that child has not come up yet, and its result is in the state."""
        record = self._left.get(ChildName(act, key))
        return record is not None and self.is_part_of_the_state(record)

    def is_part_of_the_state(self, record: ChildRecord) -> bool:
        """Return whether the child's result is in the state, by ``into`` or ``reduce``."""
        # `reduce` takes failures too. Otherwise a failed child runs again, so nothing of it is
        # there to stay.
        counts = self._folds or record.status in ("succeeded", "skipped")
        return counts and self.is_applied(record)

    def is_folded(self, record: ChildRecord) -> bool:
        """Return whether ``reduce`` has taken the child's end, which can't be undone."""
        return self._folds and self.is_applied(record)

    def is_applied(self, record: ChildRecord) -> bool:
        """Return whether an update has applied the child, and was not undone."""
        number = record.applied
        # Going back undoes updates, but not the records of what they applied.
        return number is not None and not self._parent.is_undone(number)


def is_unended(record: ChildRecord) -> bool:
    """Return whether a child has no end: it is under way or halted."""
    return record.status in (None, "halted")


def decided(record: ChildRecord, decision: Decision | None) -> ChildRecord:
    """Return the record of a child; without an end, it was cancelled by ``decision``, if any."""
    if decision is None or not is_unended(record):
        return record
    return record._replace(
        status="cancelled", value=None, reason=decision.reason, winner=decision.winner
    )


def outcome_of(record: ChildRecord, parent: RunPath, state: State | None = None) -> Outcome:
    """Return the recorded outcome of a child of the run ``parent``.

    Args:
        record: The child's record.
        parent: The path of its parent.
        state: The fields that it has written, if it is Done.
    """
    path = RunPath(
        act=record.act, parent=parent, step=record.step, visit=record.visit, key=record.key
    )
    position, element = record.position, record.element
    attempts, elapsed, abandoned = record.attempts, record.elapsed, record.abandoned
    match record.status:
        case "failed":
            assert record.error is not None, "a store keeps what a child failed with"
            return Failed(
                path=path,
                position=position,
                element=element,
                attempts=attempts,
                elapsed=elapsed,
                abandoned=abandoned,
                error=record.error,
            )
        case "cancelled":
            return Cancelled(
                path=path,
                position=position,
                element=element,
                attempts=attempts,
                elapsed=elapsed,
                abandoned=abandoned,
                reason=record.reason,
                winner=record.winner,
            )
        case "skipped":
            return Skipped(path=path, position=position, element=element, reason=record.reason)
        case _:
            return Done(
                path=path,
                position=position,
                element=element,
                attempts=attempts,
                elapsed=elapsed,
                abandoned=abandoned,
                value=record.value,
                state=make_state({}) if state is None else state,
                used=record.used,
            )
