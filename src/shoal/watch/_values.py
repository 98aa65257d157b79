"""Show stored JSON in little room."""

from __future__ import annotations

import json
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


def value_of(stored: str, characters: int | None) -> Value:
    """Make a value of the JSON that is stored.

    Args:
        stored: The JSON.
        characters: Shorten it to so many characters; None for all of it.
    """
    size = len(stored)
    if characters is not None and size > characters:
        return Value(stored[:characters], size, is_complete=False)
    try:
        text = json.dumps(json.loads(stored), indent=2, ensure_ascii=False)
    except (ValueError, RecursionError):  # a number of more digits than Python converts
        text = stored
    return Value(text, size, is_complete=True)
