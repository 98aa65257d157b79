"""Answer what watchers ask about runs, from the data that ``MemoryStore`` keeps.

Everything is computed from all children of a run at each call: a run in memory has fewer of them
than one in a database.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, final

from shoal._errors.exceptions import NotEncodable, brief
from shoal._events.events import Decision, Update, in_short
from shoal._events.identity import RunPath
from shoal._state.state import Drop, Extend, Increment, Operation, Put, PutWithin, Set

from ._history import (
    BudgetLevel,
    Completed,
    Entry,
    QuestionAnswered,
    QuestionAsked,
    Rewound,
    Steered,
    StepBegun,
)
from ._protocol import ChildRecord, ChildStatus
from ._row_order import STATUSES, Standing, page, place_of
from ._watching import Bin, EntryKind, Order, Row, RowPage, StepTally, StoredEntry


@final
class Inspected(NamedTuple):
    """A child, with what its record doesn't have."""

    record: ChildRecord
    ended_at: float | None
    failed_step: str
    has_children: bool

    def standing(self, number: int) -> Standing:
        """Return what its place among its siblings depends on."""
        record = self.record
        return Standing(
            number,
            record.position,
            record.status or "running",
            record.applied,
            record.elapsed,
            self.ended_at,
        )

    def row(self, parent: RunPath) -> Row:
        """Return it as a watcher sees it."""
        record, ended_at = self.record, self.ended_at
        error, winner = record.error, None
        if record.winner is not None:
            act, key = record.winner
            winner = RunPath(parent=parent, step=record.step, visit=record.visit, act=act, key=key)
        return Row(
            path=RunPath(
                parent=parent, step=record.step, visit=record.visit, act=record.act, key=record.key
            ),
            status=record.status or "running",
            position=record.position,
            began_at=None if ended_at is None else ended_at - record.elapsed,
            ended_at=ended_at,
            elapsed=record.elapsed,
            attempts=record.attempts,
            used=record.used,
            reason=record.reason,
            winner=winner,
            error_type="" if error is None else type(error).__name__,
            error="" if error is None else in_short(error),
            failed_step=self.failed_step,
            has_children=self.has_children,
            applied=record.applied,
        )


def rows(
    path: RunPath, children: Iterable[Inspected], order: Order, after: str | None, limit: int
) -> RowPage:
    """Return a page of children."""
    numbered = dict(enumerate(children, 1))
    standings = [one.standing(number) for number, one in numbered.items()]
    taken, more = page(standings, order, place_of(after, order), max(0, limit))
    return RowPage([numbered[one.id].row(path) for one in taken], more)


def tallies(
    children: Iterable[Inspected], decided: Collection[tuple[str, int]]
) -> Sequence[StepTally]:
    """Count children by step, visit, act and status."""
    counts: dict[tuple[str, int, str], Counter[ChildStatus]] = {}
    lost = Counter[tuple[str, int, str]]()
    for child in children:
        record = child.record
        place = record.step, record.visit, record.act
        counts.setdefault(place, Counter())[record.status or "running"] += 1
        lost[place] += is_lost(record, decided)
    steps = list(dict.fromkeys(step for step, _, _ in counts))
    places = sorted(counts, key=lambda place: (steps.index(place[0]), place[1]))
    return [
        StepTally(
            *place,
            {status: counts[place][status] for status in STATUSES if status in counts[place]},
            lost[place],
        )
        for place in places
    ]


def is_lost(record: ChildRecord, decided: Collection[tuple[str, int]]) -> bool:
    """Return whether a child that failed or was cancelled has lost a race."""
    if record.status == "failed":
        return (record.step, record.visit) in decided
    return record.status == "cancelled" and record.winner is not None


def timeline(children: Iterable[Inspected], bins: int) -> Sequence[Bin]:
    """Count the ends of children by time."""
    ended: list[tuple[float, ChildStatus]] = [
        (one.ended_at, one.record.status)
        for one in children
        if one.ended_at is not None and one.record.status is not None
    ]
    if not ended or bins < 1:
        return []
    begins, ends = min(at for at, _ in ended), max(at for at, _ in ended)
    width = (ends - begins) / bins
    if width <= 0.0:
        bins, width = 1, 1.0
    counts = [Counter[ChildStatus]() for _ in range(bins)]
    for at, status in ended:
        counts[min(int((at - begins) / width), bins - 1)][status] += 1
    return [
        Bin(
            begins + at * width,
            ends if at == bins - 1 else begins + (at + 1) * width,
            {status: of[status] for status in STATUSES if status in of},
        )
        for at, of in enumerate(counts)
    ]


def entries(
    history: Sequence[Entry],
    times: Sequence[tuple[int, float]],
    rows: Mapping[int | None, Row],
    *,
    kinds: Collection[EntryKind] | None,
    from_number: int,
    limit: int,
) -> tuple[Sequence[StoredEntry], int | None]:
    """Return a part of a history as JSON, and the number from which the next part goes on.

    Args:
        history: The whole history of the run.
        times: When its updates were saved.
        rows: Its children, by the numbers of the updates that applied them.
        kinds: Only entries of these kinds.
        from_number: Leave out the entries before the update of that number.
        limit: About so many entries.
    """
    found: list[StoredEntry] = []
    number = 0
    for entry in history:
        number = entry.number if isinstance(entry, Update) else number
        kind = _KINDS[type(entry)]
        if number < from_number or (kinds is not None and kind not in kinds):
            continue
        if len(found) >= limit and number > found[-1].number:
            return found, number
        at = bisect_left(times, number, key=lambda noted: noted[0])
        when = times[at][1] if at < len(times) else None
        child = rows.get(number) if isinstance(entry, Update) else None
        step = "" if isinstance(entry, QuestionAnswered | BudgetLevel | Steered) else entry.step
        found.append(StoredEntry(number, kind, step, _data(entry), when, child))
    return found, None


_KINDS: dict[type, EntryKind] = {
    Update: "update",
    Decision: "decision",
    Completed: "completed",
    Rewound: "rewound",
    StepBegun: "begun",
    QuestionAsked: "asked",
    QuestionAnswered: "answered",
    BudgetLevel: "spent",
    Steered: "steered",
}
_OPERATIONS: dict[type, str] = {
    Set: "set",
    Extend: "extend",
    Put: "put",
    PutWithin: "within",
    Increment: "add",
    Drop: "drop",
}


def _data(entry: Entry) -> str:
    match entry:
        case Update():
            # Value by value: one that can't be written takes none of the others with it.
            operations = ",".join(map(_operation, entry.operations))
            more = f',"found":{text(list(entry.discovered))}' if entry.discovered else ""
            if more:
                more += f',"at":{entry.discovered_at}'
            return (
                f'{{"number":{entry.number},"do":[{operations}],"step":{json.dumps(entry.step)}'
                f"{more}}}"
            )
        case Decision():
            return text([list(entry.winner), list(map(list, entry.winners)), entry.reason])
        case Completed():
            return str(entry.number)
        case Rewound():
            return str(entry.visit)
        case StepBegun():
            return text(entry.declared)
        case QuestionAsked():
            schema = "" if entry.schema is None else f",{text(entry.schema)}"
            return f"[{text(entry.name)},{text(entry.question)},{json.dumps(entry.id)}{schema}]"
        case QuestionAnswered():
            return f"[{json.dumps(entry.id)},{text(entry.value)}]"
        case BudgetLevel():
            return text([*entry[:-1], dict(entry.by)])
        case Steered():
            return json.dumps([entry.what, entry.by, entry.at, dict(entry.arguments)])


def _operation(operation: Operation) -> str:
    parts: list[object] = [*operation]
    if isinstance(operation, Extend):
        parts = [operation.field, list(operation.values)]
    return f"[{','.join([json.dumps(_OPERATIONS[type(operation)]), *map(text, parts)])}]"


def text(value: object) -> str:
    """Return a value as JSON, as the stores in databases write it.

    A value that they would refuse, which this store keeps, is described in a JSON string; so is
    every value where msgspec isn't installed.
    """
    try:
        from ._codec.codec import Codec  # noqa: PLC0415 # needs msgspec, which the core doesn't

        return Codec().encode(value, "value")
    except (ImportError, NotEncodable):
        return json.dumps(brief(value))
