"""How outcomes of children become part of their parent's state. Imports runs and sources.

Invariants:
- Each outcome is applied by one numbered update that names its child, on top of the update before
  it: ``reduce`` for one child sees what ``reduce`` for the one before it left.
- If ``reduce`` or ``grow`` raises, the updates before that child stand, and it stays unapplied.
- Nothing behind the outcome that decides a contest is applied.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from math import inf
from typing import Any, cast, final

from shoal._concurrency.cancellation import as_failure
from shoal._engine.disposition import APPLIED_BEFORE, DEFERRED, SKIPPED
from shoal._engine.run import Run
from shoal._errors.exceptions import InvalidState, brief, note
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
    change_between,
    make_state,
    put_within,
)

from .entries import PendingChild
from .ledger import Ledger
from .race import Race
from .source import ElementSource

_Placed = tuple[Any, Any, float | None]

NOTED = 5
"""Failed children that an error about another one names besides."""


@final
class BatchJoin:
    """A batch of outcomes on their way into the parent's state: one numbered update for each."""

    __slots__ = (
        "_admitted",
        "_data",
        "_elements",
        "_ended",
        "_errors",
        "_failed",
        "_consults",
        "_contest",
        "_join",
        "_nested",
        "_number",
        "_reruns",
        "_schema",
        "_tolerance",
        "_values",
        "admitted",
        "applied",
        "decision",
        "failures",
        "is_failing",
        "missed",
        "unapplied",
        "updates",
    )

    def __init__(
        self,
        join: JoinSpec,
        parent: Run,
        elements: ElementSource,
        ledger: Ledger,
        contest: Race | None = None,
        *,
        done_before: int = 0,
        reruns: AbstractSet[ChildName] = frozenset(),
    ) -> None:
        """Begin on the parent's state as it is.

        Args:
            join: What becomes of results.
            parent: Whose state it is.
            elements: Hears of what ``grow`` returns.
            ledger: How others ended before.
            contest: Says whose results count, if that is a question.
            done_before: Children that are Done and not in the ledger, as they have yet to come up.
            reruns: Children that run again, of whose earlier results some may still be there.
        """
        self._join = join
        self._reruns = reruns
        self._contest = contest
        self._nested = join.is_nested
        self._consults = (
            join.reduce is not None
            or join.grow is not None
            or (contest is not None and contest.consults)
        )
        self._tolerance = join.on_error if isinstance(join.on_error, Tolerate) else None
        self._elements = elements
        self._data = parent.data
        self._schema = parent.config.schema
        self._number = parent.number
        self._failed = ledger.failed
        self._ended = ledger.failed + ledger.done + done_before
        self._values: list[_Placed] = []  # puts not yet in _data: a batch of them costs one copy
        self._errors: list[_Placed] = []
        self.updates: list[Update] = []
        self.applied: list[Run] = []  # by the update at the same place
        self.unapplied: list[Run] = []
        self.missed: list[Run] = []  # of these, those that were not judged, since one before raised
        self._admitted: list[Run] = []  # those whose results count in the contest
        self.is_failing = False  # whether there are more failures than are tolerated
        self.failures: list[Run] = []  # those that are to be raised
        self.admitted: list[PendingChild] = []
        self.decision: Decision | None = None

    def add_all(self, batch: list[Run]) -> BaseException | None:
        """Add outcomes up to the one that decides a contest, or the first that can't be applied.

        Returns why it can't, naming its key.
        """
        tells = self._consults or self._contest is not None  # others than the state
        growths = found = admitted = 0
        for at, child in enumerate(batch):
            before = self._data, len(self._values), len(self._errors)
            if self._consults:
                before = self.finished_data(), 0, 0
            if tells:
                growths, found = self._elements.growths, len(self.admitted)
                admitted = len(self._admitted)
            try:
                self._add(child)
            except BaseException as raised:  # noqa: BLE001 # raised by the fan-out, after a commit
                failure = as_failure(raised)
                error = raised if failure is None else failure
                name, path = self._join.name, child.path
                note(
                    error, f"shoal: fan-out {name!r} applying key {brief(child.key)}, run {path.id}"
                )
                self._data, values, errors = before  # without what this child has placed already
                del self._values[values:], self._errors[errors:], self.admitted[found:]
                self._withdraw(growths, admitted)
                self.missed = batch[at:]
                self._miss(self.missed)
                try:
                    return error
                finally:
                    del error, failure  # breaks the traceback cycle
            if self.decision is not None:
                self._miss(batch[at + 1 :])
                break
        return None

    def note_missed(self, error: BaseException) -> None:
        """Say in ``error`` which children have failed that nobody has judged because of it."""
        failed = [child for child in self.missed if child.status == "failed"]
        for child in failed[:NOTED]:
            note(error, f"shoal: besides, key {brief(child.key)} failed: {brief(child.error)}")
        if len(failed) > NOTED:
            note(error, f"shoal: and {len(failed) - NOTED} more have failed")

    def reason_to_stop(self, *, is_lost: bool) -> str | None:
        """Say why the children that are in flight are to be cancelled, if they are.

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
        """Undo what was told of the batch besides the state: it could not be saved."""
        self._withdraw(0, 0)
        self.admitted.clear()

    def _withdraw(self, growths: int, admitted: int) -> None:
        """Undo what ``grow`` and the contest were told, but the first so many times."""
        self._elements.ungrow(growths)
        for child in reversed(self._admitted[admitted:]):
            assert self._contest is not None, "it has admitted the child"
            self._contest.withdraw(child)
        del self._admitted[admitted:]

    def _miss(self, children: list[Run]) -> None:
        """Leave out what comes too late; of those that are kept, it is only a new place."""
        for child in children:
            child.discard_result()
        self.unapplied += children

    def finished_data(self) -> Mapping[str, object]:
        """Return the fields of the state after all updates."""
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
        if status == "halted":  # that is no end, whatever is decided by ends
            self.unapplied.append(child)
            return
        is_kept = child.disposition.is_kept
        counts = status == "failed" or (status == "succeeded" and self._tolerance is not None)
        if counts and not is_kept:  # else it was counted when it came up
            self._count(failed=status == "failed")
        brings_nothing = status in ("failed", "cancelled") and not self._applies(child)
        if brings_nothing or child.disposition is DEFERRED:
            self.unapplied.append(child)
            return
        contest = None if is_kept else self._contest
        if contest is not None and status == "succeeded":
            self._admitted.append(child)
            if not contest.admits(child):
                self._admitted.pop()
                self._refuse(child)
                return
        operations = self._placing(child)
        discovered: tuple[object, ...] = ()
        at = 0
        if self._consults and status is not None and not is_kept:
            outcome = cast("Done | Failed", child.outcome)
            if join.reduce is not None:
                operations += self._reduce(join.reduce, outcome)
            if join.grow is not None:
                discovered, at = self._grow(join.grow, outcome)
        if contest is not None and not self.is_failing:
            self.decision = contest.decide(child, self._state)
            if self.decision is not None and self._reruns:
                operations += self._without_old(child)
        self._apply(child, operations, discovered, at)

    def _without_old(self, last: Run) -> tuple[Operation, ...]:
        """Take out old results of children that run again and have not come to a new one.

        It is decided by ``last``, so they never will; and nothing follows a decision (see
        test_old_results_are_gone_with_the_decision).
        """
        new = [child for child in (*self.applied, last) if child.status == "succeeded"]
        old = self._reruns - {ChildName(child.config.act, child.key) for child in new}
        values = self._join.without(self.finished_data(), old)
        self._data = {**self._data, **values}
        return tuple(Set(field, value) for field, value in values.items())

    def _refuse(self, child: Run) -> None:
        """Leave out a result that doesn't count; but what ``grow`` finds in it does."""
        child.discard_result()
        if self._join.grow is None:
            self.unapplied.append(child)
        else:
            outcome = cast("Done | Failed", child.outcome)
            self._apply(child, (), *self._grow(self._join.grow, outcome))

    def _apply(
        self, child: Run, operations: tuple[Operation, ...], discovered: tuple[object, ...], at: int
    ) -> None:
        join = self._join
        self._number += 1
        self.updates.append(Update(self._number, join.name, operations, discovered, at))
        self.applied.append(child)

    def _count(self, *, failed: bool) -> None:
        """Judge whether there are too many failures now; a success may be what ``after`` waits for.

        Skipped and cancelled children count for nothing.
        """
        self._ended += 1
        self._failed += failed
        if self._tolerance is not None:  # once too many, always too many
            exceeded = self._tolerance.is_exceeded(self._failed, self._ended)
            self.is_failing = self.is_failing or exceeded
        elif self._join.on_error == "fail":
            self.is_failing = True

    def _applies(self, child: Run) -> bool:
        """Tell whether a child that did not succeed becomes part of the state."""
        if child.status == "cancelled":
            return False
        if self.is_failing:
            self.failures.append(child)
            return False
        return self._join.on_error != "ignore"

    def _placing(self, child: Run) -> tuple[Operation, ...]:
        """Put what a child brings where ``into`` or ``errors_into`` has it."""
        join = self._join
        if child.status == "failed":
            if join.errors_into is None:
                return ()
            info = ErrorInfo.of(cast("Exception", child.error))
            return (self._put(join.errors_into, child, info, self._errors),)
        if join.into is None:
            return ()
        if join.shape == "one":
            return self._choosing(join.into)
        value = child.value
        if child.disposition is APPLIED_BEFORE or child.disposition is SKIPPED:
            # only its place among the others changes
            value = join.collected(self._data, child.config.act, child.key)
            if child.disposition.is_kept:
                child.value = value  # which is saved with it once more, and may not have been read
        return (self._put(join.into, child, value, self._values),)

    def _choosing(self, field: str) -> tuple[Operation, ...]:
        """Give ``into`` the value of the whole contest, once that is known."""
        assert self._contest is not None, "only a contest comes to a single value"
        chosen = self._contest.chosen
        if chosen is None:
            return ()
        change = Change((Set(field, chosen.value),), {field: chosen.value})
        if self._schema is not None:
            change = self._schema.checked(change, self._data, self._who(chosen.key))
        self._data = change.applied_to(self._data)
        return change.operations

    def _put(self, field: str, child: Run, value: object, placed: list[_Placed]) -> Put | PutWithin:
        position = child.position
        if self._schema is not None:
            value = self._fitting(self._schema, field, child, value)
        if not self._nested:
            key = child.config.act if self._join.shape == "by act" else child.key
            placed.append((key, value, position))
            if self._schema is not None and self._schema.most(field) < inf:
                grown = cast("Collected", self._data[field]).put_all(placed)
                self._refuse_too_many(self._schema, field, child, len(grown))
            return Put(field, key, value, position)
        put = PutWithin(field, child.key, child.config.act, value, position, position)
        within = put_within(self._data[field], put)
        assert within is not None, "the fan-out has made the collection itself"
        if self._schema is not None:
            self._refuse_too_many(self._schema, field, child, len(within))
        self._data = {**self._data, field: within}
        return put

    def _fitting(self, schema: Schema[Any], field: str, child: Run, value: object) -> object:
        """Hold what a child brings to the model of the parent's state."""
        who = self._who(child.key)
        listed = isinstance(self._data[field], PositionedList)
        if self._nested:
            key = None if listed else child.key
            return schema.inner_entry(field, key, child.config.act, value, who)
        if listed:
            return schema.item(field, value, who)
        key = child.config.act if self._join.shape == "by act" else child.key
        return schema.entry(field, key, value, who)

    def _refuse_too_many(self, schema: Schema[Any], field: str, child: Run, count: int) -> None:
        most = schema.most(field)
        if count > most:
            msg = (
                f"{self._who(child.key)} makes field {field!r} {count} items long, and "
                f"{schema.name} allows at most {most:g}"
            )
            raise InvalidState(msg)

    def _who(self, key: Key) -> str:
        return f"fan-out {self._join.name!r}, for key {brief(key)},"

    def _grow(self, grow: Grow, outcome: Done | Failed) -> tuple[tuple[object, ...], int]:
        """Return the new elements, and the position of the first."""
        entries = self._elements.grow(grow(self._state(), outcome), outcome)
        self.admitted += entries
        first = self._elements.kinds[0]  # the other acts get the same elements
        discovered = tuple(entry.element for entry in entries if entry.kind is first)
        return discovered, entries[0].position if entries else 0

    def _state(self) -> State:
        """Return the state after all updates, as the fan-out's own functions see it."""
        return make_state(self.finished_data(), self._join.permit)

    def _reduce(self, reduce: Reduce, outcome: Done | Failed) -> tuple[Operation, ...]:
        base = self._state()
        who = f"reduce of fan-out {self._join.name!r}, for key {brief(outcome.key)},"
        change = change_between(base, reduce(base, outcome), who)
        if self._schema is not None:
            change = self._schema.checked(change, self._data, who)
        self._data = change.applied_to(self._data)
        return change.operations
