"""Find out what a run does now, by looking at where its coroutine is suspended.

A run keeps no note of what it does, so that it costs nothing. The functions in which runs wait are
marked here instead, and ``look`` goes along a suspended coroutine until it finds a marked one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import CodeType, CoroutineType, GeneratorType
from typing import Any, Literal, NamedTuple, TypeVar, cast, final

from shoal._concurrency.cancellation import drive
from shoal._concurrency.watchdog import calls
from shoal._events.report import Doing
from shoal._limits.permits import AttemptPermit

F = TypeVar("F", bound=Callable[..., Any])

Mark = Literal[
    "action",  # calls the function of an action
    "again",  # called by that, makes another attempt
    "backoff",
    "commit",
    "context",  # has a local variable `context`
    "copy",  # waits for a second copy: its local variable `self` has that one's coroutine
    "graph",  # executes a graph as a node: its local variable `child` is that run
    "group",  # the task of a parent, in a fan-out
    "paused",
    "permit",  # a method of an `AttemptPermit`
    "relay",  # resumes the coroutine in its local variable `coroutine`
    "store",
    "walk",  # called by `walk_simply`, which stands for an action, where more is needed
]

_marked: dict[Callable[..., Any], Mark] = {
    drive: "relay",
    AttemptPermit.wait: "permit",
    AttemptPermit.reacquire: "permit",
}


def stands_for(mark: Mark) -> Callable[[F], F]:
    """Mark a coroutine function in which runs wait."""

    def marked(function: F) -> F:
        _marked[function] = mark
        return calls(mark)(function) if mark == "store" else function

    return marked


Marks = Mapping[int, tuple[CodeType, Mark]]
"""The marked functions by the ids of their code; a code object is slow to hash."""


def marks() -> Marks:
    """Return the marked functions, with the code that they have now.

    To be called when a runtime is open: trio gives functions other code then.
    """
    return {id(function.__code__): (function.__code__, mark) for function, mark in _marked.items()}


@final
class Standing(NamedTuple):
    """What a run does now."""

    doing: Doing
    permit: AttemptPermit | None = None
    """The permit that it waits for."""
    inner: Any = None
    """The run that it executes as a graph that is a node, if there is one: the innermost."""
    context: Any = None
    """The ``Context`` of the attempt, if its action takes one."""


def look(awaitable: object, known: Marks, *, has_context: bool = False) -> Standing:
    """Return what a run does, given the suspended coroutine that executes it.

    Args:
        awaitable: The coroutine.
        known: What ``marks`` has returned.
        has_context: Whether ``Standing.context`` is wanted.
    """
    doing: Doing = "other"
    inner: object = None
    context: object = None
    is_in_group = False
    at: Any = awaitable
    while True:
        kind = cast(
            "object", type(at)
        )  # apart from the tests, or pyright narrows what it knows of `at`
        if kind is CoroutineType:
            code, following = at.cr_code, at.cr_await
        elif kind is GeneratorType:
            code, following = at.gi_code, at.gi_yieldfrom
        else:
            break
        # The code in the value keeps its id from being used again; it need not be compared.
        found = known.get(id(code))
        if found is None:
            if doing == "action":
                break  # the function of an action: whatever it awaits, it is executed
            # A coroutine in between: a wrapper, or code of a library.
            at = following
            continue
        mark = found[1]
        if mark == "relay":
            following = _variable(at, "coroutine")
        elif mark == "copy":
            # The attempt itself is over, so its run does what the copy does.
            following = getattr(_variable(at, "self"), "copy_task", None)
        elif mark == "action":
            doing = "action"
        elif mark == "backoff":
            return Standing("backoff", None, inner, context)
        elif mark == "paused":
            return Standing("paused", None, inner, context)
        elif mark == "store":
            return Standing("store", None, inner, context)
        elif mark == "permit":
            return Standing("slot", _variable(at, "self"), inner, context)
        elif mark == "context":
            context = _variable(at, "context") if has_context else None
        elif mark == "graph":
            # What was found so far belongs to the run around that node.
            inner, context, doing = _variable(at, "child"), None, "other"
        elif mark == "group":
            is_in_group = True
        # The task of a parent commits what its reducers have just made: for watchers that is one
        # thing.
        elif mark == "commit" and is_in_group:
            doing = "reducer"
        else:
            doing = "other"
        at = following
    return Standing(doing, None, inner, context)


def _variable(awaitable: Any, name: str) -> Any:
    """Return a local variable of a coroutine; None if it has ended, or has not begun."""
    frame = getattr(awaitable, "cr_frame", None) or getattr(awaitable, "gi_frame", None)
    return None if frame is None else frame.f_locals.get(name)
