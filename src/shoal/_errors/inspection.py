"""Inspect an exception without running its own code.

A user's exception class may be anything: a group whose ``derive`` fails, a collection of errors
whose ``len`` is 0, a frozen dataclass, which takes no attributes. If the engine ran such code, an
error in it would be taken for a failure of the engine.

Invariants:
- Nothing here calls a method that the exception's class may define.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar, cast

E = TypeVar("E", bound=BaseException)
Kinds = type[BaseException] | tuple[type[BaseException], ...]

# Python's own descriptors: an exception's class may override the attributes of these names.
_members: Any = vars(BaseExceptionGroup)["exceptions"]
_message: Any = vars(BaseExceptionGroup)["message"]
_links: Any = vars(BaseException)
_args: Any = vars(BaseException)["args"]


def first_of(*errors: E | None) -> E | None:
    """Return the first error that is not None. ``or`` would call its ``__bool__``."""
    for error in errors:
        if error is not None:
            return error
    return None


def members(group: BaseExceptionGroup[BaseException]) -> tuple[BaseException, ...]:
    """Return the exceptions of a group."""
    return _members.__get__(group)


def message_of(group: BaseExceptionGroup[BaseException]) -> str:
    return str(_message.__get__(group))


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions in a group and in the groups inside it; else ``error`` alone."""
    left = [error]
    while left:
        one = left.pop()
        if isinstance(one, BaseExceptionGroup):
            left += reversed(members(cast("BaseExceptionGroup[BaseException]", one)))
        else:
            yield one


def are_all(error: BaseException, kinds: Kinds) -> bool:
    """Return whether ``error``, or each leaf if it is a group, is of one of these kinds."""
    return all(isinstance(leaf, kinds) for leaf in leaves(error))


def without(error: BaseException, kinds: Kinds) -> BaseException | None:
    """Return a group without the leaves of these kinds; None if none is left.

    If nothing is left out, that is ``error`` itself, unless it is no ``Exception`` although all its
    leaves are. A smaller group is of Python's own class, because the group's own class may refuse
    to be made with fewer.
    """
    if not isinstance(error, BaseExceptionGroup):
        return None if isinstance(error, kinds) else error
    group = cast("BaseExceptionGroup[BaseException]", error)
    before = members(group)
    after = [one for one in (without(each, kinds) for each in before) if one is not None]
    if not after:
        return None
    is_same = len(after) == len(before) and all(map(_is, after, before))
    if is_same and (isinstance(group, Exception) or not _are_exceptions(after)):
        return group
    made = BaseExceptionGroup(message_of(group), after)
    for link in ("__cause__", "__context__", "__suppress_context__", "__traceback__"):
        member = _links[link]
        member.__set__(made, member.__get__(group))
    notes = attributes_of(group).get("__notes__")
    if isinstance(notes, list):
        made.__notes__ = list(cast("list[str]", notes))
    return made


def release_frames(error: BaseException) -> None:
    """Drop the tracebacks of an error, of the errors in it, and of its causes and contexts."""
    seen: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        BaseException.with_traceback(one, None)
        left += (cause_of(one), context_of(one))
        if isinstance(one, BaseExceptionGroup):
            left += members(cast("BaseExceptionGroup[BaseException]", one))


def attributes_of(error: BaseException) -> dict[str, Any]:
    """Return the ``__dict__`` of an exception itself, for reading and changing."""
    return _links["__dict__"].__get__(error)


def args_of(error: BaseException) -> tuple[Any, ...]:
    return _args.__get__(error)


def set_args(error: BaseException, args: tuple[Any, ...]) -> None:
    _args.__set__(error, args)


def cause_of(error: BaseException) -> BaseException | None:
    return _links["__cause__"].__get__(error)


def context_of(error: BaseException) -> BaseException | None:
    return _links["__context__"].__get__(error)


def set_context(error: BaseException, context: BaseException | None) -> None:
    _links["__context__"].__set__(error, context)


def _is(one: object, other: object) -> bool:
    return one is other


def _are_exceptions(errors: list[BaseException]) -> bool:
    return all(isinstance(one, Exception) for one in errors)
