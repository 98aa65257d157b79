"""Applies the outcomes of children to their parent's state.

Invariants:
- Each outcome is applied by one numbered update that names its child. Updates build on each other:
  ``reduce`` for a child sees the state that ``reduce`` for the child before it returned.
- If ``reduce`` or ``grow`` raises, earlier updates stand and the child stays unapplied.
- No outcome is applied after the one that decides a race.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from math import inf
from typing import Any, cast, final

from shoal._concurrency.cancellation import as_failure
from shoal._engine.commit import Write, commit, is_silent
from shoal._engine.disposition import APPLIED_BEFORE, DEFERRED, LIVE, SKIPPED
from shoal._engine.run import Run
from shoal._errors.exceptions import InvalidState, brief, note
from shoal._errors.tracebacks import hide_frames
from shoal._events.events import ChildName, Decision, Done, ErrorInfo, Failed, Update
from shoal._events.identity import Key
from shoal._graph.parallel import Collected, Grow, JoinSpec, Reduce
from shoal._graph.policy import Tolerate
from shoal._state.collections import PositionedList
from shoal._state.schema import Schema
from shoal._state.state import (
    Change,
    Operation,
    Put,
    PutWithin,
    Set,
    State,
    as_named,
    change_between,
    make_state,
    put_within,
)
from shoal.stores._history import StepBegun

from .entries import PendingChild
from .growth import Growth
from .ledger import Ledger
from .race import Race

_Placed = tuple[Any, Any, float | None]

NOTED = 5
"""Other failed children that an error names, so that its notes stay readable."""


@final
class _ForKey:
    """A fan-out and one of its keys, as messages name them: made text for a message alone."""

    __slots__ = ("_key", "_name")

    def __init__(self, name: str, key: Key) -> None:
        self._name, self._key = name, key

    def __str__(self) -> str:
        return f"fan-out {self._name!r}, for key {brief(self._key)},"


@final
class BatchJoin:
    """A batch of outcomes, and the numbered updates that apply them to the parent's state.

    It only computes: the caller saves ``updates`` and sets the parent's state, or calls
    ``withdraw`` if the save fails.
    """

    __slots__ = (
        "_admitted",
        "_data",
        "_ended",
        "_errors",
        "_failed",
        "_growth",
        "_consults",
        "_race",
        "_join",
        "_nested",
        "_number",
        "_parent",
        "_reruns",
        "_schema",
        "_tolerance",
        "_values",
        "admitted",
        "applied",
        "decision",
        "failures",
        "is_failing",
        "is_plain",
        "is_silent",
        "missed",
        "unapplied",
        "updates",
    )

    def __init__(
        self,
        join: JoinSpec,
        parent: Run,
        growth: Growth | None,
        ledger: Ledger,
        race: Race | None = None,
        *,
        done_before: int = 0,
        reruns: AbstractSet[ChildName] = frozenset(),
    ) -> None:
        """Start an empty batch on the parent's current state.

        Args:
            join: Says where results and failures go.
            parent: The run whose state it is.
            growth: Takes the elements that ``grow`` returns; None: nothing grows.
            ledger: Counts the children that ended in earlier batches, attempts and executions.
            race: Decides which results count; None: all do.
            done_before: The number of children that are Done but not yet in the ledger, because
                their source has not reached them.
            reruns: Children that run again, whose earlier results may still be in the state.
        """
        self._join = join
        # Only read here: the step takes a child out once its new result is saved.
        self._reruns = reruns
        self._race = race
        self._nested = join.is_nested
        self._consults = (
            join.reduce is not None or join.grow is not None or (race is not None and race.consults)
        )
        # None unless it is a share of the children: only then successes are counted, too.
        self._tolerance = join.on_error if isinstance(join.on_error, Tolerate) else None
        self._growth = growth
        # Replaced by new mappings and never changed: the parent's state is this one until the batch
        # is saved, and stays it if that fails.
        self._data = parent.data
        self._parent = parent
        self._schema = parent.config.schema
        self._number = parent.number
        # Both count all executions. What is Done and not in the ledger yet counts too: otherwise
        # a tolerated share would depend on which children are being applied (see
        # test_children_that_an_earlier_execution_left_done_have_ended).
        self._failed = ledger.failed
        self._ended = ledger.failed + ledger.done + done_before
        # Puts into ``into`` and ``errors_into`` that _data lacks: a whole batch of them makes one
        # new version of the collection. `finished_data` empties both.
        self._values: list[_Placed] = []
        self._errors: list[_Placed] = []
        self.updates: list[Update] = []
        self.applied: list[Run] = []  # parallel to ``updates``
        self.unapplied: list[Run] = []  # without an update: losers, failures, halted children
        # The unapplied children from the one whose outcome raised; empty if none did.
        self.missed: list[Run] = []
        self._admitted: list[Run] = []  # accepted by the race; withdrawn if the batch fails
        self.is_failing = False  # more failures than tolerated; never reset
        self.failures: list[Run] = []  # failed children whose errors the step raises
        self.admitted: list[PendingChild] = []  # new elements of ``grow``, until they are saved
        self.decision: Decision | None = None  # set at most once; ends the batch
        self.is_plain: bool = False
        """Whether the batch has nothing but successes that are put into a collection."""
        self.is_silent: bool = False
        """Whether the batch has made no updates, since nothing would save or publish them."""

    def add_all(self, batch: list[Run]) -> BaseException | None:
        """Add outcomes up to the one that decides a race, or the first that can't be applied.

        Returns the error because of which that one can't be applied, with a note of its key.
        """
        if self._is_plain and _have_succeeded(batch):
            self.is_silent = is_silent(self._parent) and is_silent(batch[0])
            if self._schema is None:
                self._put_all(batch)
            else:
                error = self._put_fitting(batch, self._schema)
                if error is not None:
                    return error
            self.is_plain = True
            return None
        # Whether the source or the race change too, and must be set back if an outcome raises.
        is_undoable = self._consults or self._race is not None
        growths = found = admitted = 0
        for at, child in enumerate(batch):
            before = self._data, len(self._values), len(self._errors)
            if self._consults:
                # The user's functions see the state, so everything placed is in it by then.
                before = self.finished_data(), 0, 0
            if is_undoable:
                growths = 0 if self._growth is None else self._growth.calls
                found = len(self.admitted)
                admitted = len(self._admitted)
            try:
                self._add(child)
            except BaseException as raised:  # noqa: BLE001 # raised by the fan-out, after a commit
                # Undo what this child has placed: the updates before it stand without it.
                self._data, values, errors = before
                del self._values[values:], self._errors[errors:], self.admitted[found:]
                self._withdraw(growths, admitted)
                return self._stop_at(batch, at, raised)
            if self.decision is not None:
                # Those behind it have lost, also if they succeeded: the order in which the parent
                # takes ends decides every tie.
                self._miss(batch[at + 1 :])
                break
        return None

    def _stop_at(self, batch: list[Run], at: int, raised: BaseException) -> BaseException:
        """Leave the rest of the batch unapplied, because ``raised`` came from one of them."""
        failure = as_failure(raised)
        error = raised if failure is None else failure
        child, name = batch[at], self._join.name
        note(error, f"shoal: fan-out {name!r} applying key {brief(child.key)}, run {child.path.id}")
        self.missed = batch[at:]
        self._miss(self.missed)
        try:
            return error
        finally:
            del error, failure, raised  # breaks the traceback cycle

    @property
    def _is_plain(self) -> bool:
        """Whether a success is put into a collection, and nothing but a model looks at it."""
        join = self._join
        return (
            not (self._consults or self._nested)
            and self._race is self._tolerance is None
            and join.into is not None
            and join.shape in ("by key", "by position")
            and (self._schema is None or self._schema.most(join.into) == inf)
        )

    def _put_all(self, batch: list[Run]) -> None:
        """Add successes with nothing to check: as ``_add`` does it, without a call for each."""
        placed: list[_Placed] = [(child.key, child.value, child.position) for child in batch]
        self._note_puts(placed)
        self._values += placed
        self._number += len(batch)
        self.applied += batch

    def _put_fitting(self, batch: list[Run], schema: Schema[Any]) -> BaseException | None:
        """Add successes whose values fit the model, as ``_put_all``; return as ``add_all``."""
        into = cast("str", self._join.into)
        exact = schema.exact_entry(into) if self._join.shape == "by key" else None
        placed: list[_Placed] = []
        error: BaseException | None = None
        for at, child in enumerate(batch):
            key, value = child.key, child.value
            if exact is None or type(key) is not exact[0] or type(value) is not exact[1]:
                try:
                    value = self._fitting(schema, into, child, value)
                except BaseException as raised:  # noqa: BLE001 # as in `add_all`
                    error = self._stop_at(batch, at, raised)
                    break
            placed.append((key, value, child.position))
        self._note_puts(placed)
        self._values += placed
        self._number += len(placed)
        self.applied += batch[: len(placed)]
        try:
            return error
        finally:
            del error  # breaks the traceback cycle

    def _note_puts(self, placed: list[_Placed]) -> None:
        """Make the updates that put values, as their classes would make them."""
        if self.is_silent:
            return
        name, into = self._join.name, cast("str", self._join.into)
        self.updates += [
            as_named(Update, (number, name, (as_named(Put, (into, *put)),), (), 0))
            for number, put in enumerate(placed, self._number + 1)
        ]

    async def commit(self, declared: StepBegun | None) -> None:
        """Save and publish the batch, and set the parent's state; see ``commit``."""
        if self.is_silent:
            # As `commit` does it: there is nothing to save or to publish.
            self._parent.head = self._number, self.finished_data()
            return
        write = Write(
            self.updates,
            self.finished_data(),
            applied=self.applied,
            unapplied=[child for child in self.unapplied if not child.disposition.is_saved],
            decision=self.decision,
            step_begun=declared,
        )
        await commit(self._parent, write)

    def note_missed(self, error: BaseException) -> None:
        """Add notes to ``error`` about failed children that were not applied because of it."""
        failed = [child for child in self.missed if child.status == "failed"]
        for child in failed[:NOTED]:
            note(error, f"shoal: besides, key {brief(child.key)} failed: {brief(child.error)}")
        if len(failed) > NOTED:
            note(error, f"shoal: and {len(failed) - NOTED} more have failed")

    def reason_to_stop(self, *, is_lost: bool) -> str | None:
        """Return the reason to cancel the children in flight; None: let them go on.

        Args:
            is_lost: Whether the race can't be decided any more.
        """
        if self.decision is not None:
            return self.decision.reason
        if is_lost:
            return f"fan-out {self._join.name!r} can't be decided any more"
        if not self.is_failing:
            return None
        if not self.failures:
            return f"too many children of fan-out {self._join.name!r} failed"
        first = self.failures[0]
        return f"key {brief(first.key)} of fan-out {self._join.name!r} failed: {brief(first.error)}"

    def withdraw(self) -> None:
        """Undo the batch's changes to the source and the race: it could not be saved."""
        self._withdraw(0, 0)
        self.admitted.clear()

    def _withdraw(self, growths: int, admitted: int) -> None:
        """Undo all but the first ``growths`` calls of ``grow`` and ``admitted`` race results."""
        if self._growth is not None:
            self._growth.undo(growths)
        # The last one first, so that the race goes back through the choices that it has made.
        for child in reversed(self._admitted[admitted:]):
            assert self._race is not None, "it has accepted the child"
            self._race.withdraw(child)
        del self._admitted[admitted:]

    def _miss(self, children: list[Run]) -> None:
        """Leave ``children`` unapplied, and drop the results of this execution."""
        for child in children:
            child.discard_result()
        self.unapplied += children

    def finished_data(self) -> Mapping[str, object]:
        """Return the fields of the state after all updates so far."""
        for name, placed in (
            (self._join.into, self._values),
            (self._join.errors_into, self._errors),
        ):
            if name is not None and placed:
                grown = cast("Collected", self._data[name]).put_all(placed)
                self._data = {**self._data, name: grown}
                placed.clear()
        return self._data

    def _add(self, child: Run) -> None:
        join, status = self._join, child.status
        if status == "halted":  # not an end: it neither fails the step nor decides a race
            self.unapplied.append(child)
            return
        is_kept = child.disposition.is_kept
        # Successes count only for a tolerated share: it needs the number of all ends.
        counts = status == "failed" or (status == "succeeded" and self._tolerance is not None)
        if counts and not child.disposition.is_counted:
            self._count(failed=status == "failed")
        brings_nothing = status in ("failed", "cancelled") and not self._applies(child)
        if brings_nothing or child.disposition is DEFERRED:
            self.unapplied.append(child)
            return
        race = None if is_kept else self._race  # what is kept was judged when it was applied
        if race is not None and status == "succeeded":
            # Before the call: if `accepts` raises halfway, the child must be withdrawn as well.
            self._admitted.append(child)
            if not race.accepts(child):
                self._admitted.pop()
                self._refuse(child)
                return
        # First: `grow` and the race below see the state with this child's result.
        operations = self._placing(child)
        discovered: tuple[object, ...] = ()
        at = 0
        if self._consults and status is not None and not is_kept:
            outcome = cast("Done | Failed", child.outcome)
            if join.reduce is not None:
                # Before `grow`, which sees what this leaves; see
                # test_grow_sees_what_reduce_has_just_left_and_failures_too.
                operations += self._reduce(join.reduce, outcome)
            if join.grow is not None:
                discovered, at = self._grow(join.grow, outcome)
        # After `reduce` and `grow`: ``until`` may be a function of the state that they led to.
        # A step that fails decides nothing any more.
        if race is not None and not self.is_failing:
            self.decision = race.decide(child, self._state)
            if self.decision is not None and self._reruns:
                operations += self._without_old(child)
        self._apply(child, operations, discovered, at)

    def _without_old(self, last: Run) -> tuple[Operation, ...]:
        """Remove the old results of children that run again and have no new result.

        ``last`` has decided the race, so they never get one, and no later update could remove them
        (see test_old_results_are_gone_with_the_decision).
        """
        new = [child for child in (*self.applied, last) if child.status == "succeeded"]
        old = self._reruns - {ChildName(child.config.act, child.key) for child in new}
        values = self._join.without(self.finished_data(), old)
        self._data = {**self._data, **values}
        return tuple(Set(field, value) for field, value in values.items())

    def _refuse(self, child: Run) -> None:
        """Leave out a result that the race refused. ``grow`` still finds elements in it."""
        child.discard_result()
        if self._join.grow is None:
            # Nothing is found in it, so no update is needed to record that.
            self.unapplied.append(child)
        else:
            outcome = cast("Done | Failed", child.outcome)
            self._apply(child, (), *self._grow(self._join.grow, outcome))

    def _apply(
        self, child: Run, operations: tuple[Operation, ...], discovered: tuple[object, ...], at: int
    ) -> None:
        join = self._join
        # Also for a child that changes nothing: by this number its record says that it was applied.
        self._number += 1
        self.updates.append(Update(self._number, join.name, operations, discovered, at))
        self.applied.append(child)

    def _count(self, *, failed: bool) -> None:
        """Count an end, and set ``is_failing`` if there are too many failures now.

        A success matters too: ``Tolerate(after=...)`` waits for a number of ends. Skipped and
        cancelled children don't count.
        """
        self._ended += 1
        self._failed += failed
        # Once failing, always failing: later successes lower the share, but don't undo it.
        if self._tolerance is not None:
            exceeded = self._tolerance.is_exceeded(self._failed, self._ended)
            self.is_failing = self.is_failing or exceeded
        elif self._join.on_error == "fail":
            self.is_failing = True

    def _applies(self, child: Run) -> bool:
        """Return whether a child that failed or was cancelled gets an update."""
        if child.status == "cancelled":
            return False
        if self.is_failing:
            self.failures.append(child)
            return False
        return self._join.on_error != "ignore"

    def _placing(self, child: Run) -> tuple[Operation, ...]:
        """Return the operations that put a child's result or failure into the state."""
        join = self._join
        if child.status == "failed":
            if join.errors_into is None:
                return ()
            error = cast("Exception", child.error)
            # A child that is resumed is called through other frames of ours, and its collected
            # failure must be the same: see test_a_collected_failure_is_the_same_after_a_crash.
            hide_frames(error)
            info = ErrorInfo.of(error)
            return (self._put(join.errors_into, child, info, self._errors),)
        if join.into is None:
            return ()
        if join.shape == "one":
            return self._choosing(join.into)
        value = child.value
        if child.disposition is APPLIED_BEFORE or child.disposition is SKIPPED:
            # Its value is in the state already; only its position among the others changes.
            value = join.collected(self._data, child.config.act, child.key)
            if child.disposition.is_kept:
                # The child is saved again with its value, which its record may not contain.
                child.value = value
        return (self._put(join.into, child, value, self._values),)

    def _choosing(self, field: str) -> tuple[Operation, ...]:
        """Set ``field`` to the value of the race's winner, once there is one."""
        assert self._race is not None, "only a race comes to a single value"
        chosen = self._race.chosen
        if chosen is None:
            return ()
        change = Change(None, {field: chosen.value})
        if self._schema is not None:
            change = self._schema.checked(change, self._data, self._subject(chosen.key))
        self._data = change.applied_to(self._data)
        return change.operations

    def _put(self, field: str, child: Run, value: object, placed: list[_Placed]) -> Put | PutWithin:
        position = child.position
        if self._schema is not None:
            value = self._fitting(self._schema, field, child, value)
        if not self._nested:
            key = child.config.act if self._join.shape == "by act" else child.key
            placed.append((key, value, position))
            # Only with a maximum: counting makes a new version of the collection for each child.
            if self._schema is not None and self._schema.most(field) < inf:
                grown = cast("Collected", self._data[field]).put_all(placed)
                self._refuse_too_many(self._schema, field, child, len(grown))
            return Put(field, key, value, position)
        # Put at once and not noted in `placed`, because a put within an entry depends on those
        # before it.
        put = PutWithin(field, child.key, child.config.act, value, position, position)
        within = put_within(self._data[field], put)
        assert within is not None, "the fan-out has made the collection itself"
        if self._schema is not None:
            self._refuse_too_many(self._schema, field, child, len(within))
        self._data = {**self._data, field: within}
        return put

    def _fitting(self, schema: Schema[Any], field: str, child: Run, value: object) -> object:
        """Return the value as the model of the parent's state accepts it."""
        subject = _ForKey(self._join.name, child.key)
        listed = isinstance(self._data[field], PositionedList)
        if self._nested:
            key = None if listed else child.key
            return schema.inner_entry(field, key, child.config.act, value, subject)
        if listed:
            return schema.item(field, value, subject)
        key = child.config.act if self._join.shape == "by act" else child.key
        return schema.entry(field, key, value, subject)

    def _refuse_too_many(self, schema: Schema[Any], field: str, child: Run, count: int) -> None:
        most = schema.most(field)
        if count > most:
            msg = (
                f"{self._subject(child.key)} makes field {field!r} {count} items long, and "
                f"{schema.name} allows at most {most:g}"
            )
            raise InvalidState(msg)

    def _subject(self, key: Key) -> str:
        return str(_ForKey(self._join.name, key))

    def _grow(self, grow: Grow, outcome: Done | Failed) -> tuple[tuple[object, ...], int]:
        """Call ``grow``; return the new elements and the position of the first."""
        growth = self._growth
        assert growth is not None, "the source was made for a fan-out that grows"
        entries = growth.find(grow(self._state(), outcome), outcome)
        self.admitted += entries
        first = growth.kinds[0]  # all acts get the same elements: record each once
        discovered = tuple(entry.element for entry in entries if entry.kind is first)
        return discovered, entries[0].position if entries else 0

    def _state(self) -> State:
        """Return the state after all updates so far, as ``reduce``, ``grow`` and ``by`` see it."""
        return make_state(self.finished_data(), self._join.access)

    def _reduce(self, reduce: Reduce, outcome: Done | Failed) -> tuple[Operation, ...]:
        # Kept until the function returns: only a state made from this very object tells its
        # changes.
        base = self._state()
        subject = f"reduce of fan-out {self._join.name!r}, for key {brief(outcome.key)},"
        change = change_between(base, reduce(base, outcome), subject)
        if self._schema is not None:
            change = self._schema.checked(change, self._data, subject)
        self._data = change.applied_to(self._data)
        return change.operations


def _have_succeeded(batch: list[Run]) -> bool:
    """Return whether all children of a batch were executed here, and have succeeded."""
    # A loop of its own, since each turn of a generator would cost as much as the question.
    for child in batch:
        if child.status != "succeeded" or child.disposition is not LIVE:
            return False
    return True
