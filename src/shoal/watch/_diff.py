"""Compare two runs: where they took different ways, and in what they differ.

The histories are read as they are stored, and replayed on JSON. So the types of the program needn't
be imported, and the programs of the two runs may differ. Errors are compared without their
tracebacks and without the ids of runs in them, which differ between any two runs.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple, cast, final

from shoal._events.identity import Key, RunPath
from shoal._events.paths import key_as_text
from shoal.stores._codec.plain import from_difference, is_error, plain
from shoal.stores._protocol import ChildStatus
from shoal.stores._watching import Inspects, Row

from ._failures import normalised
from ._stored import apply, entries_of, opened, rows_of
from ._words import shortened

MOST = 50
"""The most fields and children that are listed."""
_SHOWN = 200
"""The characters of a value that are shown."""
_BEFORE = 40
"""Of these, the characters before the first difference, if that is far behind the beginning."""


@final
class Parting(NamedTuple):
    """The first place where two runs took different ways."""

    after: str
    """The step that both had completed before; empty if they differ from the start."""
    first: str
    """The next step of the first run; empty if it had none."""
    second: str
    """That of the second run."""
    at: int
    """How many steps both have in common."""


@final
class FieldDifference(NamedTuple):
    """A field with different values in the last states of two runs."""

    field: str
    key: str
    """The key within the field, as JSON; empty if the field differs as a whole."""
    first: str | None
    """The value in the first run as JSON without tags of types, shortened to where it differs; None
    if it has none."""
    second: str | None


@final
class ChildDifference(NamedTuple):
    """A child that ended in different ways in two runs, or that only one of them has."""

    step: str
    visit: int
    act: str
    key: Key
    first: Row | None
    second: Row | None

    @property
    def is_in_both(self) -> bool:
        """Whether both runs have the child."""
        return self.first is not None and self.second is not None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How two runs differ."""

    first: Row
    second: Row
    is_first_lost: bool = False
    """Whether the first run has no end and no process executes it."""
    is_second_lost: bool = False
    parting: Parting | None
    """The first place where they took different ways; None if they took the same."""
    fields: Sequence[FieldDifference] = ()
    """At most 50."""
    children: Sequence[ChildDifference] = ()
    """At most 50: those that both have first."""
    omitted_fields: int = 0
    """How many further fields and keys differ."""
    omitted_children: int = 0
    """How many further children differ."""

    @property
    def is_same(self) -> bool:
        """Whether the runs took the same way to the same end."""
        return (
            self.first.status == self.second.status
            and self.is_first_lost == self.is_second_lost
            and self.parting is None
            and not self.fields
            and not self.children
        )


async def difference(
    store: Inspects, first: Row, second: Row, *, lost: tuple[bool, bool] = (False, False)
) -> Difference:
    """Compare two runs; ``lost`` says whether each has no end and no process executes it."""
    ways = [await _way(store, row) for row in (first, second)]
    ids = _ids_in(first, second)
    fields = _different_fields(ways[0].state, ways[1].state, ids)
    children, omitted = await _different_children(store, first.path, second.path)
    return Difference(
        first=first,
        second=second,
        is_first_lost=lost[0],
        is_second_lost=lost[1],
        parting=_parting(ways[0].steps, ways[1].steps),
        fields=fields[:MOST],
        children=children,
        omitted_fields=max(0, len(fields) - MOST),
        omitted_children=omitted,
    )


@final
class _Way(NamedTuple):
    """What a run did: its steps in order, and its last state."""

    steps: Sequence[str]
    state: Mapping[str, Any]


def _parting(first: Sequence[str], second: Sequence[str]) -> Parting | None:
    at = 0
    while at < len(first) and at < len(second) and first[at] == second[at]:
        at += 1
    if at == len(first) == len(second):
        return None
    return Parting(
        after=first[at - 1] if at else "",
        first=first[at] if at < len(first) else "",
        second=second[at] if at < len(second) else "",
        at=at,
    )


async def _way(store: Inspects, row: Row) -> _Way:
    text = await store.text(row.path, "element" if row.path.parent is not None else "first")
    state: dict[str, Any] = {}
    if text is not None:
        first = json.loads(text)
        if row.path.parent is None:
            state = {field: opened(value) for field, value in first.items()}
        else:
            state = {"(element)": first}
    steps, under_way = list[str](), ""
    async for entry in entries_of(store, row.path):
        match entry.kind:
            case "update":
                update = json.loads(entry.data)
                under_way = entry.step
                for operation in update["do"]:
                    apply(state, *operation)
            case "completed":
                steps.append(entry.step)
                under_way = ""
            case "rewound":
                while steps and steps.pop() != entry.step:
                    pass
            case _:
                pass
    return _Way([*steps, under_way] if under_way else steps, state)


_ABSENT = object()


def _ids_in(first: Row, second: Row) -> re.Pattern[str]:
    """Return a pattern of the ids of these runs, and of any child, as errors have them."""
    roots = "|".join(re.escape(row.path.root.id) for row in (first, second))
    return re.compile(rf"\b[0-9a-f]{{32}}\b|(?<=\brun )(?:{roots})(?!\w)")


def _different_fields(
    first: Mapping[str, Any], second: Mapping[str, Any], ids: re.Pattern[str]
) -> list[FieldDifference]:
    found = list[FieldDifference]()
    for field in {**first, **second}:
        one, other = first.get(field, _ABSENT), second.get(field, _ABSENT)
        if one == other:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            ones, others = cast("dict[str, Any]", one), cast("dict[str, Any]", other)
            for key in {**ones, **others}:
                a, b = ones.get(key, _ABSENT), others.get(key, _ABSENT)
                if not _is_same(a, b, ids):
                    found.append(FieldDifference(field, key, *_shown(a, b)))
        elif not _is_same(one, other, ids):
            found.append(FieldDifference(field, "", *_shown(one, other)))
    return found


def _is_same(one: Any, other: Any, ids: re.Pattern[str]) -> bool:
    return one == other or _without_noise(one, ids) == _without_noise(other, ids)


def _without_noise(value: Any, ids: re.Pattern[str], *, is_in_error: bool = False) -> Any:
    """Return a value without what differs between errors that are the same."""
    if isinstance(value, str):
        return ids.sub("<id>", value) if is_in_error else value
    if isinstance(value, list):
        items = cast("list[Any]", value)
        return [_without_noise(one, ids, is_in_error=is_in_error) for one in items]
    if not isinstance(value, dict):
        return value
    data = cast("dict[str, Any]", value)
    is_in_error = is_in_error or is_error(data)
    return {
        name: _without_noise(one, ids, is_in_error=is_in_error)
        for name, one in data.items()
        if not (is_in_error and name in _PLACES)
    }


_PLACES = ("trace", "traceback")
"""Where an error was raised: lines move when a program changes, and its causes are objects."""


def _shown(one: Any, other: Any) -> tuple[str | None, str | None]:
    """Return two values as JSON, shortened so that the first difference is shown."""
    if one is _ABSENT or other is _ABSENT:
        texts = [None if value is _ABSENT else _json(_plain(value)) for value in (one, other)]
    elif _plain(one) == _plain(other):
        texts = [_json(one), _json(other)]  # they differ in their types
    else:
        texts = [_json(_plain(one)), _json(_plain(other))]
    first, second = texts
    if first is not None and second is not None:
        first, second = from_difference(first, second, shown=_SHOWN, before=_BEFORE)
    return _cut(first), _cut(second)


def _plain(value: Any) -> Any:
    return plain(value, without=_PLACES)


def _cut(text: str | None) -> str | None:
    return None if text is None else shortened(text, _SHOWN)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# -- children ----------------------------------------------------------------------------------

_KEY = 200
"""Characters of a key that are kept."""
_Name = tuple[str, int, str, str]


@final
class _End(NamedTuple):
    """How a child ended: what is compared, and what it takes to find it again."""

    status: ChildStatus
    error_type: str
    message: str


def _name_of(row: Row) -> _Name:
    path, key = row.path, row.path.key
    name = f"{type(key).__name__}:{key_as_text(key)}"
    if len(name) > _KEY:  # cut, for the memory; the hash keeps apart those that begin alike
        name = f"{name[:_KEY]}{blake2b(name.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"
    return path.step, path.visit, path.act, name


def _end_of(row: Row) -> _End:
    return _End(row.status, row.error_type, normalised(row.error))


async def _different_children(
    store: Inspects, first: RunPath, second: RunPath
) -> tuple[list[ChildDifference], int]:
    """Return children that differ, and how many are left out.

    The ends of the first run's children are kept, and rows only of those that are listed.
    """
    ends = {_name_of(row): _end_of(row) async for row in rows_of(store, first)}
    different, only_second, omitted = dict[_Name, Row](), list[Row](), 0
    async for row in rows_of(store, second):
        end = ends.pop(_name_of(row), None)
        if end is None:
            if len(only_second) < MOST:
                only_second.append(row)
            else:
                omitted += 1
        elif end != _end_of(row):
            if len(different) < MOST:
                different[_name_of(row)] = row
            else:
                omitted += 1
    rows = dict[_Name, Row]()
    only_first = list[Row]()
    omitted += max(0, len(ends) - MOST)
    if different or ends:
        async for row in rows_of(store, first):
            name = _name_of(row)
            if name in different:
                rows[name] = row
            elif name in ends and len(only_first) < MOST:
                only_first.append(row)
    found = [_child(rows.get(name), row) for name, row in different.items()]
    found += [_child(row, None) for row in only_first]
    found += [_child(None, row) for row in only_second]
    return found[:MOST], omitted + max(0, len(found) - MOST)


def _child(first: Row | None, second: Row | None) -> ChildDifference:
    row = first or second
    assert row is not None, "one of the runs has the child"
    path = row.path
    return ChildDifference(path.step, path.visit, path.act, path.key, first, second)
