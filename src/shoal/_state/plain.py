"""Copy the content of a state into plain dicts and lists, all the way down."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from .collections import PositionedList, StateList, StateMap


class HasPlainForm:
    """A value of the library's own that is no collection but can be written as JSON."""

    __slots__ = ()

    def to_plain(self) -> dict[str, Any]:
        """Copy the value into a plain dict."""
        raise NotImplementedError


def to_plain(value: object, *, for_json: bool = False) -> object:
    """Copy ``value`` into plain lists and dicts, all the way down. Other values stay as they are.

    Args:
        value: The value to copy.
        for_json: Whether states and errors as data become dicts too.
    """
    match value:
        case StateList() | PositionedList() | list():
            items = cast("Sequence[object]", value)
            return [to_plain(item, for_json=for_json) for item in items]
        case StateMap() | dict():
            pairs = cast("Mapping[object, object]", value).items()
            return {key: to_plain(item, for_json=for_json) for key, item in pairs}
        case HasPlainForm() if for_json:
            return value.to_plain()
        case _:
            return value
