"""Read the history of a run for people: what each entry changed, when, and for which child."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, final

from shoal.stores._watching import EntryKind, Row

How = Literal["set", "added", "changed", "removed"]
"""What happened to a field: it was set as a whole, got more items, was changed, or was removed."""


@final
class FieldChange(NamedTuple):
    """What an update did to one field."""

    field: str
    how: How
    key: str = ""
    """The key within the field, as JSON; empty if the field was set as a whole."""
    value: str = ""
    """The new value as JSON, shortened."""
    size: int = 0
    """The characters of the whole value, as JSON."""


@final
class HistoryEntry(NamedTuple):
    """One entry of a run's history."""

    number: int
    """The number of the update; of another entry, that of the last update before it."""
    kind: EntryKind
    step: str
    at: float | None
    """When it was saved, in seconds since 1970; None if that isn't known."""
    changes: Sequence[FieldChange] = ()
    child: Row | None = None
    """The child that the update applied."""
    discovered: int = 0
    """How many new elements the update discovered."""
    text: str = ""
    """What the entry says, if it is no update: the winner of a race, the name of a question."""


@final
class HistoryPage(NamedTuple):
    """A page of a history."""

    entries: Sequence[HistoryEntry]
    after: str | None
    """The cursor of the next page; None after the last one."""
