"""Functions that users give, told apart by how they are called. Imports errors."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

from shoal._errors.exceptions import DefinitionError


def is_async(function: Callable[..., object]) -> bool:
    """Tell whether what ``function`` returns is to be awaited."""
    return is_kind(function, inspect.iscoroutinefunction)


def is_streaming(function: Callable[..., object]) -> bool:
    """Tell whether ``function`` is an async generator function."""
    return is_kind(function, inspect.isasyncgenfunction)


def is_kind(function: Callable[..., object], is_one: Callable[[object], bool]) -> bool:
    """Tell whether ``is_one`` is true of what is called in the end."""
    while isinstance(function, functools.partial):
        function = function.func
    return is_one(function) or is_one(
        getattr(function, "__call__", None)  # noqa: B004 # a callable object's own method
    )


def require_plain(function: object, what: str) -> None:
    """Refuse a coroutine function where shoal calls a plain one on the event loop.

    Raises:
        DefinitionError: Naming ``what`` it was given as.
    """
    if not callable(function):
        msg = f"{what} takes a function, not {function!r}"
        raise DefinitionError(msg)
    if is_async(function) or is_streaming(function):
        msg = (
            f"{what} takes a plain function, called on the event loop, which it must not hold up; "
            f"{getattr(function, '__name__', function)!r} is a coroutine function. "
            f"Put what must be awaited into an action"
        )
        raise DefinitionError(msg)
