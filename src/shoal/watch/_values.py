"""Show stored JSON in little room."""

from __future__ import annotations

from typing import Literal, NamedTuple, final

What = Literal["element", "value", "error", "first"]
"""A value of a run: the element that it works on, its result, its error; of a root run, the state
that it began with, without its secret fields."""


@final
class Value(NamedTuple):
    """A value of a run, as JSON text."""

    text: str
    """The JSON, indented if it is complete; else its first characters as they are stored."""
    size: int
    """The number of characters of the stored JSON."""
    is_complete: bool
    """Whether ``text`` has all of it."""
