"""Read the rows of children in full."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .dialect import Connection, Dialect
from .rows import Child

_CHILDREN = (
    "SELECT step, visit, act, {key}, position, element, digest, status, applied, "
    "coalesce(used, 1), value, forms.form, change, own, reason, winner_act, winner_key, error, "
    "coalesce(attempts, 1), coalesce(elapsed, 0.0), coalesce(abandoned, 0), coalesce(crashes, 0), "
    "ended_at, failed_step "
    "FROM runs JOIN places ON places.id = place LEFT JOIN forms ON forms.id = runs.form WHERE "
)
_KEY, _WINNER = Child._fields.index("key"), Child._fields.index("winner_key")


def children_where(sql: Connection, dialect: Dialect, where: str, *values: Any) -> Iterator[Child]:
    """Yield the children that the SQL condition ``where`` selects."""
    key_of = dialect.key_of
    for row in sql.execute(f"{_CHILDREN.format(key=dialect.key)}{where}", values):
        child = list(row)
        child[_KEY] = key_of(child[_KEY])
        if child[_WINNER] is not None:
            child[_WINNER] = key_of(child[_WINNER])
        yield Child._make(child)
