"""The change that a function's result is, checked against what its action declares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn, cast

from shoal._errors.exceptions import BadResult, MissingField, UndeclaredWrite, kind_of
from shoal._graph.action import FunctionAction
from shoal._state.state import NO_CHANGE, Change, State, change_between
from shoal.executors._results import MISTAKES, refuse_mistake

TO_CHECK = (dict, *MISTAKES)
"""Types of results of which some are refused."""


def checked_result(
    action: FunctionAction[..., object], base: State | None, result: object
) -> Change:
    """Return the change that ``result`` is: of an action called here, on the state ``base``."""
    if isinstance(result, MISTAKES):
        refuse_mistake(action.name, cast("object", result))
    if base is not None:
        return change_between(base, result, "action", action.name)
    return written(action, result)


def written(action: FunctionAction[..., object], result: object) -> Change:
    """Return the change of an action that has returned the values of the fields it writes."""
    # The usual action writes one field and returns its value, so nothing else has to be checked.
    field = action.only_write
    if field is not None:
        # By type and length first: this is the path of each child.
        if type(result) is dict and len(cast("dict[str, object]", result)) == 1 and field in result:
            _refuse_wrapped(action, field)
        return Change(None, {field: cast("object", result)})
    return _writes(action, result)


def missing_field(
    action: FunctionAction[..., object], field: str, data: Mapping[str, object]
) -> MissingField:
    msg = (
        f"action {action.name!r} reads field {field!r}, which the state does not have "
        f"(it has: {', '.join(sorted(data)) or 'none'}); "
        f"pass it to run(), or write it in an earlier action"
    )
    return MissingField(msg)


def _refuse_wrapped(action: FunctionAction[..., object], field: str) -> NoReturn:
    msg = (
        f"action {action.name!r} returned a mapping of its only field, {{{field!r}: ...}}; an "
        f"action that writes one field returns the value itself. If the value is a mapping with "
        f"that key, take `state` and return state.update({field}=...)"
    )
    raise BadResult(msg)


def _writes(action: FunctionAction[..., object], result: object) -> Change:
    """Return the change of an action that writes no field or several, after checking its result."""
    name = action.name
    if not action.writes:
        if result is not None:
            msg = (
                f"action {name!r} declares no writes and returned {kind_of(result)}; "
                f"declare writes=[...] or return None"
            )
            raise BadResult(msg)
        return NO_CHANGE
    expected = ", ".join(sorted(action.writes))
    if not isinstance(result, Mapping):
        msg = (
            f"action {name!r} writes several fields, so it returns a mapping of them "
            f"({expected}), not {kind_of(result)}"
        )
        raise BadResult(msg)
    values = dict(cast("Mapping[str, object]", result))
    # Before the missing ones: a misspelled name is both, and the error should name what was
    # written. Keys may be of any type, and are made text because mixed types can't be sorted.
    extra = ", ".join(sorted(map(str, values.keys() - action.writes)))
    if extra:
        msg = (
            f"action {name!r} returned a value for {extra}, which it does not declare; "
            f"add it to writes=[...] (declared: {expected})"
        )
        raise UndeclaredWrite(msg)
    missing = ", ".join(sorted(action.writes - values.keys()))
    if missing:
        msg = (
            f"action {name!r} returned no value for {missing}, which it declares to write; "
            f"to write only some of its fields, take `state` and return state.update(...)"
        )
        raise BadResult(msg)
    # The result as a whole was checked before, and that was the mapping.
    for value in values.values():
        if isinstance(value, MISTAKES):
            refuse_mistake(action.name, cast("object", value))
    return Change(None, values)
