"""What an exception is, found out without its own code. Imports nothing of shoal.

The class of an exception that a user raises may be anything: a group whose ``derive`` fails, a
collection of errors whose ``len`` is 0, a frozen dataclass, which takes no attributes. If the
engine ran such code, what that raises would be taken for a failure of the engine's own.

Invariants:
- Nothing here calls a method that an exception's own class may define.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar, cast

E = TypeVar("E", bound=BaseException)
Kinds = type[BaseException] | tuple[type[BaseException], ...]

_members: Any = vars(BaseExceptionGroup)["exceptions"]
_message: Any = vars(BaseExceptionGroup)["message"]
_links: Any = vars(BaseException)
_args: Any = vars(BaseException)["args"]


def first_of(*errors: E | None) -> E | None:
    """Return the first that there is: ``or`` would ask them whether they are true."""
    return next((error for error in errors if error is not None), None)


def members(group: BaseExceptionGroup[BaseException]) -> tuple[BaseException, ...]:
    """Return what a group is made of."""
    return _members.__get__(group)


def message_of(group: BaseExceptionGroup[BaseException]) -> str:
    """Return a group's message."""
    return str(_message.__get__(group))


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Go through what is in a group, and in groups in there; or through ``error`` alone."""
    left = [error]
    while left:
        one = left.pop()
        if isinstance(one, BaseExceptionGroup):
            left += reversed(members(cast("BaseExceptionGroup[BaseException]", one)))
        else:
            yield one


def are_all(error: BaseException, kinds: Kinds) -> bool:
    """Tell whether ``error``, or all there is in it if it is a group, is of these kinds."""
    return all(isinstance(leaf, kinds) for leaf in leaves(error))


def without(error: BaseException, kinds: Kinds) -> BaseException | None:
    """Return what is left of a group without the leaves of these kinds; None if nothing is.

    Where nothing is left out, that is ``error`` itself, unless it is no ``Exception`` though all
    in it are. What is made anew is of Python's own class, for the group's own may not be made with
    less.
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


def let_go_of_frames(error: BaseException) -> None:
    """Drop the tracebacks of an error, of what is in it, and of those that led to it."""
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
    """Return the attributes that an exception was given: its own dict, to look at and to change."""
    return _links["__dict__"].__get__(error)


def args_of(error: BaseException) -> tuple[Any, ...]:
    """Return what an exception was made with."""
    return _args.__get__(error)


def set_args(error: BaseException, args: tuple[Any, ...]) -> None:
    """Have an exception be made with something else."""
    _args.__set__(error, args)


def cause_of(error: BaseException) -> BaseException | None:
    """Return what ``error`` was raised from."""
    return _links["__cause__"].__get__(error)


def context_of(error: BaseException) -> BaseException | None:
    """Return what was being handled when ``error`` was raised."""
    return _links["__context__"].__get__(error)


def set_context(error: BaseException, context: BaseException | None) -> None:
    """Have ``error`` say what was being handled when it was raised."""
    _links["__context__"].__set__(error, context)


def _is(one: object, other: object) -> bool:
    return one is other


def _are_exceptions(errors: list[BaseException]) -> bool:
    return all(isinstance(one, Exception) for one in errors)
