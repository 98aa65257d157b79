"""Conditions of Burr's as conditions of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from burr.core import Condition as BurrCondition
from burr.core import default

from shoal._errors.exceptions import MissingField, UndeclaredRead
from shoal._graph.condition import Condition
from shoal._state.state import FieldAccess, make_state, refuse_awaitable

from ._state import Given, View


def condition_of(found: BurrCondition) -> Condition | None:
    """Return a condition of ours that is true when Burr's is; None for Burr's ``default``.

    As with Burr, the fields that it names must be there when it is evaluated. It sees those alone.
    """
    # By name, as Burr itself asks for it.
    if found is default or found.name == default.name:
        return None
    fields = frozenset(found.reads)
    code = f"Burr's condition {found.name!r}"
    # Burr's type is of any state.
    resolver = cast("Callable[[View], object]", found.resolver)  # pyright: ignore[reportUnknownMemberType]
    access = FieldAccess(code, fields, frozenset())

    def test(data: Mapping[str, object]) -> bool:
        missing = sorted(fields - data.keys())
        if missing:
            msg = (
                f"{code} reads field {missing[0]!r}, which the state does not have "
                f"(it has: {', '.join(sorted(data)) or 'none'}); "
                f"pass it to run(), or write it in an earlier action"
            )
            raise MissingField(msg)
        try:
            result = resolver(View(make_state(data, access), Given(), None))
        except UndeclaredRead as error:
            # Burr shows a condition all fields, and asks for those that it names.
            msg = (
                f"{code} reads a field that it does not name (it names: "
                f"{', '.join(sorted(fields)) or 'none'}); name all that it reads: "
                f"Condition.lmda(function, [...])"
            )
            raise UndeclaredRead(msg) from error
        refuse_awaitable(result, code)
        return bool(result)

    return Condition(fields, fields, test, lambda: found.name, code)
