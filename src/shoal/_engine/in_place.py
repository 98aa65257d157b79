"""Find values of a state that a step has changed in place, under ``Runtime(debug=True)``.

The runs of a tree share the values of their states, and a store saves a value once. So a list that
is appended to in place changes for others, and is another one after a resume.

Invariants:
- Nothing here is called in a runtime without ``debug``.
- A message names fields and types, never values, because a field may be secret.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import is_dataclass
from typing import cast

from shoal._errors.exceptions import ChangedInPlace, NotData, brief, note
from shoal._graph.act import Act
from shoal._graph.action import FunctionAction
from shoal._state.digest import digest
from shoal._state.secrets import Secret
from shoal._state.state import Change

from .run import Run

DEPTH = 16
"""Levels of a value that are compared if parts of it are no data. It ends cycles, too."""


async def refuse_changes_in_place(
    run: Run, act: Act, perform: Callable[[], Awaitable[Change]]
) -> Change:
    """Perform a step, and compare the fields that it reads before and after.

    If the step raises, its exception has a note about the first field that it has changed.

    Args:
        run: The run whose current step this is.
        act: What is executed.
        perform: Performs the step.

    Raises:
        ChangedInPlace: A value of the state has changed meanwhile.
        Exception: Whatever the step raised.
    """
    data = run.head[1]
    # The objects themselves, since the step may commit other ones under these names.
    before = {name: _value(data[name]) for name in _fields(act) if name in data}
    marks = {name: _mark(value, DEPTH) for name, value in before.items()}
    try:
        change = await perform()
    except Exception as error:
        found = _changed(before, marks)
        if found is not None:
            note(error, f"shoal: {_message(run, act, found, before[found])}")
        raise
    found = _changed(before, marks)
    if found is not None:
        raise ChangedInPlace(_message(run, act, found, before[found]), found)
    return change


def _fields(act: Act) -> Sequence[str]:
    """Return the fields whose values a step of ``act`` can reach."""
    if isinstance(act, FunctionAction) and not act.takes_state:
        return sorted(act.reads)
    return sorted({*act.reads, *act.writes})  # a state offers what is only written, too


def _value(value: object) -> object:
    return value.value if isinstance(value, Secret) else value


def _mark(value: object, depth: int) -> object:
    """Return what is equal as long as ``value`` is not changed."""
    try:
        return digest(value)
    except NotData:
        if depth > 0 and isinstance(value, Mapping):
            pairs = cast("Mapping[object, object]", value).items()
            return [(_mark(key, depth - 1), _mark(one, depth - 1)) for key, one in pairs]
        if depth > 0 and isinstance(value, Sequence) and not isinstance(value, str):
            return [_mark(one, depth - 1) for one in cast("Sequence[object]", value)]
        return id(value)


def _changed(before: Mapping[str, object], marks: Mapping[str, object]) -> str | None:
    return next((name for name in before if _mark(before[name], DEPTH) != marks[name]), None)


def _message(run: Run, act: Act, field: str, value: object) -> str:
    path = run.path
    key = "" if path.parent is None else f" (key {brief(path.key)} of {path.step!r})"
    what = "action" if isinstance(act, FunctionAction) else "act"
    declared = "" if field in act.writes else f", and declare writes=[{field!r}]"
    return (
        f"{what} {act.name!r} of run {path.id}{key} changed field {field!r} in place, a "
        f"{type(value).__name__} that other runs may hold and that may be saved already; make a "
        f"new value: {_mended(field, value)}, and return that{declared}. (Found by debug=True: "
        f"this {what} has done it, or one that ran at the same time.)"
    )


def _mended(field: str, value: object) -> str:
    """Return the line that makes a changed copy of ``value``."""
    if isinstance(value, Mapping):
        return f"{field} = {{**{field}, key: value}}"
    if isinstance(value, AbstractSet):
        return f"{field} = {field} | {{value}}"
    if isinstance(value, list):
        return f"{field} = [*{field}, value]"
    if is_dataclass(value):
        return f"{field} = dataclasses.replace({field}, ...)"
    if hasattr(value, "model_copy"):
        return f"{field} = {field}.model_copy(update={{...}})"
    return f"{field} = copy.deepcopy({field})"
