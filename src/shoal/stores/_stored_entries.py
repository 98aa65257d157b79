"""Write the entries of a history in memory as the stores in databases have them, for watchers."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import cast

from shoal._events.events import Decision, Update
from shoal._state.state import Drop, Extend, Increment, Operation, Put, PutWithin, Set

from ._history import Completed, Entry, QuestionAnswered, QuestionAsked, Rewound, StepBegun
from ._inspecting import text
from ._watching import EntryKind, Row, StoredEntry

_OPERATIONS: Mapping[type, str] = {
    Set: "set",
    Extend: "extend",
    Put: "put",
    PutWithin: "within",
    Increment: "add",
    Drop: "drop",
}


def stored_part(
    history: Iterable[Entry],
    children: Mapping[int, Row],
    times: Sequence[tuple[int, float]],
    *,
    kinds: Collection[EntryKind] | None,
    from_number: int,
    limit: int,
) -> tuple[Sequence[StoredEntry], int | None]:
    """Return a part of a history; see ``Inspects.entries``.

    Args:
        history: The entries.
        children: The children of the run, by the number of the update that applied each.
        times: The numbers of updates with the times of their saves.
        kinds: Only entries of these kinds.
        from_number: Leave out the entries before the update of that number.
        limit: About so many.
    """
    numbers = [number for number, _ in times]
    found = list[StoredEntry]()
    number = 0
    for entry in history:
        number = entry.number if isinstance(entry, Update) else number
        if number < from_number:
            continue
        kind = _kind_of(entry)
        if kinds is not None and kind not in kinds:
            continue
        if found and len(found) >= limit and number > found[-1].number:
            return found, number
        at = bisect_left(numbers, number)
        step, data = _content(entry)
        found.append(
            StoredEntry(
                number=number,
                kind=kind,
                step=step,
                data=data,
                at=times[at][1] if at < len(times) else None,
                child=children.get(number) if kind == "update" else None,
            )
        )
    return found, None


def _kind_of(entry: Entry) -> EntryKind:
    match entry:
        case Update():
            return "update"
        case Decision():
            return "decision"
        case Completed():
            return "completed"
        case Rewound():
            return "rewound"
        case StepBegun():
            return "begun"
        case QuestionAsked():
            return "asked"
        case QuestionAnswered():
            return "answered"


def _content(entry: Entry) -> tuple[str, str]:
    """Return the step of an entry, and its JSON."""
    match entry:
        case Update():
            operations = ",".join(map(_operation, entry.operations))
            step = json.dumps(entry.step)
            data = f'{{"number":{entry.number},"do":[{operations}],"step":{step}'
            if entry.discovered:
                data += f',"found":{_array(entry.discovered)},"at":{entry.discovered_at}'
            return entry.step, f"{data}}}"
        case Decision():
            return entry.step, text([[*entry.winner], [*map(list, entry.winners)], entry.reason])
        case Completed():
            return entry.step, str(entry.number)
        case Rewound():
            return entry.step, str(entry.visit)
        case StepBegun():
            return entry.step, text(entry.declared)
        case QuestionAsked():
            return entry.step, _array((entry.name, entry.question, entry.id))
        case QuestionAnswered():
            return "", _array((entry.id, entry.value))


def _operation(operation: Operation) -> str:
    kind = _OPERATIONS[type(operation)]
    if isinstance(operation, Extend):
        return f"[{json.dumps(kind)},{json.dumps(operation.field)},{_array(operation.values)}]"
    return _array((kind, *cast("Iterable[object]", operation)))


def _array(values: Iterable[object]) -> str:
    """Write values one by one: one that can't be stored is described, and the others are not."""
    return f"[{','.join(map(text, values))}]"
