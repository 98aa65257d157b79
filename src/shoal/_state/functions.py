"""Check how a user's function is called: plainly, as a coroutine or as an async generator."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

from shoal._errors.exceptions import DefinitionError


def is_async(function: Callable[..., object]) -> bool:
    """Return whether the result of ``function`` must be awaited."""
    return is_kind(function, inspect.iscoroutinefunction)


def is_streaming(function: Callable[..., object]) -> bool:
    """Return whether ``function`` is an async generator function."""
    return is_kind(function, inspect.isasyncgenfunction)


def is_kind(function: Callable[..., object], is_one: Callable[[object], bool]) -> bool:
    """Return whether ``is_one`` is true of the function inside partials and callable objects."""
    while isinstance(function, functools.partial):
        function = function.func
    return is_one(function) or is_one(
        getattr(function, "__call__", None)  # noqa: B004 # a callable object's own method
    )


def require_plain(function: object, what: str) -> None:
    """Refuse a coroutine function where shoal calls a plain one on the event loop.

    Raises:
        DefinitionError: It is one, or can't be called. ``what`` names it in the message.
    """
    if not callable(function):
        msg = f"{what} takes a function, not {function!r}"
        raise DefinitionError(msg)
    if is_async(function) or is_streaming(function):
        msg = (
            f"{what} takes a plain function, which is called on the event loop and must not block "
            f"it; {getattr(function, '__name__', function)!r} is a coroutine function. "
            f"Await in an action instead"
        )
        raise DefinitionError(msg)
