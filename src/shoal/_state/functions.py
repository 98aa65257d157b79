"""Check how a user's function is called: plainly, as a coroutine or as an async generator.

Annotations are read here as well. Since Python 3.14 they are evaluated when they are read, which
fails for names that are imported for type checkers only. Nothing here needs such names, so they
stay unevaluated.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping

from shoal._errors.exceptions import DefinitionError

if sys.version_info >= (3, 14):
    from annotationlib import Format, get_annotations

    def signature_of(function: Callable[..., object]) -> inspect.Signature:
        """Return the signature of ``function``; annotations without a value are ``ForwardRef``."""
        return inspect.signature(function, annotation_format=Format.FORWARDREF)

    def annotations_of(cls: type) -> Mapping[str, object]:
        """Return the annotations in the body of ``cls``; those of its bases are left out."""
        return get_annotations(cls, format=Format.FORWARDREF)

else:

    def signature_of(function: Callable[..., object]) -> inspect.Signature:
        """Return the signature of ``function``."""
        return inspect.signature(function)

    def annotations_of(cls: type) -> Mapping[str, object]:
        """Return the annotations in the body of ``cls``; those of its bases are left out."""
        return inspect.get_annotations(cls)


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
