"""How the outcomes of children become part of their parent's state. Imports the run and the source.

Invariants:
- Each outcome is applied by one numbered update that names its child, on top of the update before
  it: ``reduce`` for one child sees what ``reduce`` for the one before it left.
- If ``reduce`` or ``grow`` raises, the updates before that child stand, and it stays unapplied.
- Every key ends in exactly one outcome. The ledger keeps counts, and those that are not Done.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, final

from ._cancel import as_failure
from ._collections import PositionedList, StateMap
from ._errors import MissingField, StateError, brief, note
from ._events import Done, ErrorInfo, Failed, Outcome, Update
from ._policy import OnError
from ._run import Run
from ._source import Elements, Entry
from ._state import Operation, Permit, Put, State, change_between, make_state

Reduce = Callable[[State, Done | Failed], State]
Grow = Callable[[State, Done | Failed], Iterable[Any]]
Take = str | Sequence[str] | Callable[[State], Any]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Join:
    """What a fan-out does with its results, as its user said."""

    name: str
    """The fan-out's."""
    permit: Permit
    """What ``reduce`` and ``grow`` may do with the parent's state."""
    into: str | None
    take: Take | None
    errors_into: str | None
    reduce: Reduce | None
    grow: Grow | None
    on_error: OnError

    def collections(
        self, data: Mapping[str, object], *, keyed: bool, visit: int
    ) -> tuple[dict[str, object], frozenset[object]]:
        """Make what the fields in ``into`` and ``errors_into`` hold before the first result.

        Returns them, and the keys of elements that need no child: those already in ``into``, on
        the first visit. What is there on a later one is what the visit before it made, and is
        replaced.
        """
        values: dict[str, object] = {}
        done: frozenset[object] = frozenset()
        if self.into is not None:
            found = data.get(self.into)
            if not keyed:
                values[self.into] = PositionedList[object](StateMap())
            elif found is None or self.grow is not None or visit > 0:
                values[self.into] = StateMap[object, object]()
            elif isinstance(found, Mapping):
                known = cast("Mapping[object, object]", found)
                done = frozenset(known)
                values[self.into] = StateMap(known)
            else:
                msg = (
                    f"fan-out {self.name!r} collects a mapping into {self.into!r}, "
                    f"which holds a {type(found).__name__}"
                )
                raise StateError(msg)
        if self.errors_into is not None:
            values[self.errors_into] = StateMap[object, object]()
        return values, done

    def value_of(self, child: Run) -> object:
        """Read a child's value off its final state, as ``take`` says."""
        take = self.take
        if isinstance(take, str):
            return self._field(child, take)
        if take is None:
            return None
        if callable(take):
            return take(make_state(child.final_data()))
        return {field: self._field(child, field) for field in take}

    def _field(self, child: Run, field: str) -> object:
        try:
            return child.final_field(field)
        except KeyError:
            msg = (
                f"fan-out {self.name!r} takes field {field!r} of each child, "
                f"but this one never wrote it"
            )
            raise MissingField(msg) from None


@final
@dataclass(slots=True)
class Ledger:
    """How the children of a fan-out ended: counts, and the outcomes that are not Done.

    Iterate it for those outcomes, in input order.
    """

    done: int = 0
    failed: int = 0
    cancelled: int = 0
    skipped: int = 0
    dropped: int = 0
    """Elements that ``grow`` (or ``over``, with ``grow``) repeated, which made no child."""
    left: int = 0
    """Elements that ``grow`` had found when ``at_most`` was reached, and that got no child."""
    _rest: list[Outcome] | None = None

    @property
    def total(self) -> int:
        """Outcomes in all."""
        return self.done + self.failed + self.cancelled + self.skipped

    def __iter__(self) -> Iterator[Outcome]:
        """Go through the outcomes that are not Done, in input order."""
        return iter(sorted(self._rest or (), key=lambda outcome: outcome.position))

    def __len__(self) -> int:
        """Count the outcomes that are not Done."""
        return len(self._rest or ())

    def enter(self, child: Run, *, raised: bool) -> None:
        """Count a child's end, and keep its outcome if it is not Done.

        Args:
            child: It has ended.
            raised: Whether its failure will be raised. Otherwise it is kept as data, and its
                traceback is dropped, with all that the frames hold: pages, bodies, connections.
        """
        match child.status:
            case "succeeded":
                self.done += 1
                return
            case "failed":
                self.failed += 1
                if not raised and child.error is not None:
                    _let_go(child.error)
            case "cancelled":
                self.cancelled += 1
            case None:
                self.skipped += 1
        if self._rest is None:
            self._rest = []
        self._rest.append(child.outcome)


@final
class Draft:
    """A batch of outcomes on their way into the parent's state: one numbered update for each."""

    __slots__ = (
        "_data",
        "_elements",
        "_errors",
        "_join",
        "_number",
        "_values",
        "admitted",
        "applied",
        "failures",
        "unapplied",
        "updates",
    )

    def __init__(self, join: Join, parent: Run, elements: Elements) -> None:
        """Begin on the parent's state as it is."""
        self._join = join
        self._elements = elements
        self._data = parent.data
        self._number = parent.number
        self._values: list[_Placed] = []  # puts not yet in _data: a batch of them costs one copy
        self._errors: list[_Placed] = []
        self.updates: list[Update] = []
        self.applied: list[Run] = []  # by the update at the same place
        self.unapplied: list[Run] = []
        self.failures: list[Run] = []
        self.admitted: list[Entry] = []

    def add_all(self, batch: list[Run]) -> BaseException | None:
        """Add outcomes up to the first that can't be applied; return why not, naming its key."""
        for at, child in enumerate(batch):
            before = self._data, len(self._values), len(self._errors)
            if self._join.reduce is not None or self._join.grow is not None:
                before = self.finished_data(), 0, 0
            try:
                self._add(child)
            except BaseException as raised:  # noqa: BLE001 # raised by the fan-out, after a commit
                error = as_failure(raised) or raised
                name, path = self._join.name, child.path
                note(error, f"shoal: fan-out {name!r} applying key {child.key!r}, run {path.id}")
                self._data, values, errors = before  # without what this child has placed already
                del self._values[values:], self._errors[errors:]
                self.unapplied += batch[at:]
                for missed in batch[at:]:
                    missed.miss()
                return error
        return None

    def finished_data(self) -> Mapping[str, object]:
        """Return the fields of the state after all updates."""
        for field, placed in (
            (self._join.into, self._values),
            (self._join.errors_into, self._errors),
        ):
            if field is not None and placed:
                grown = cast("_Collection", self._data[field]).put_all(placed)
                self._data = {**self._data, field: grown}
                placed.clear()
        return self._data

    def _add(self, child: Run) -> None:
        join = self._join
        operations: tuple[Operation, ...] = ()
        discovered: list[Entry] = []
        if child.status == "cancelled":
            self.unapplied.append(child)
            return
        if child.status == "failed" and join.on_error == "fail":
            self.failures.append(child)
            self.unapplied.append(child)
            return
        if child.status == "succeeded":
            if join.into is not None:
                operations = (self._put(join.into, child, child.value, self._values),)
        elif child.status == "failed":
            if join.errors_into is not None:
                info = error_info(cast("Exception", child.error))
                operations = (self._put(join.errors_into, child, info, self._errors),)
        elif join.into is not None:  # skipped: only its place among the others changes
            known = cast("Mapping[object, object]", self._data[join.into])[child.key]
            operations = (self._put(join.into, child, known, self._values),)
        if child.status is not None and (join.reduce is not None or join.grow is not None):
            outcome = cast("Done | Failed", child.outcome)
            if join.reduce is not None:
                operations += self._reduce(join.reduce, outcome)
            if join.grow is not None:
                state = make_state(self.finished_data(), join.permit)
                discovered = self._elements.grow(join.grow(state, outcome), child.key)
                self.admitted += discovered
        self._number += 1
        new = tuple(element for _, _, element in discovered)
        self.updates.append(Update(self._number, join.name, operations, new))
        self.applied.append(child)

    def _put(self, field: str, child: Run, value: object, placed: list[_Placed]) -> Put:
        placed.append((child.key, value, child.position))
        return Put(field, child.key, value, child.position)

    def _reduce(self, reduce: Reduce, outcome: Done | Failed) -> tuple[Operation, ...]:
        base = make_state(self.finished_data(), self._join.permit)
        who = f"reduce of fan-out {self._join.name!r}, for key {outcome.key!r},"
        change = change_between(base, reduce(base, outcome), who)
        self._data = change.applied_to(self._data)
        return change.operations


_Placed = tuple[Any, Any, float | None]
_Collection = StateMap[object, object] | PositionedList[object]


def _let_go(error: BaseException) -> None:
    """Drop the tracebacks of an error and of those that led to it; note where it was raised.

    The frames are not cleared: one of them may be a coroutine's that still runs, and clearing would
    close it (see test_an_exception_that_is_shared_harms_nobody_else).
    """
    places = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    if places:
        code, line = places[-1]
        note(error, f"shoal: raised at {code.co_filename}:{line}, in {code.co_name}")
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        link = chain.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            link.with_traceback(None)
            chain += (link.__cause__, link.__context__)


def error_info(error: Exception) -> ErrorInfo:
    """Make an error into data."""
    kind = type(error)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    text = "".join(traceback.format_exception(error))
    try:
        message = str(error)
    except Exception as failure:  # noqa: BLE001 # an error about an error must not hide it
        message = f"<str() of it failed: {brief(failure)}>"
    return ErrorInfo(type=f"{module}{kind.__qualname__}", message=message, traceback=text)
