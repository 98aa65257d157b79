"""Check what a function returned, where it ran."""

from __future__ import annotations

from types import AsyncGeneratorType, CoroutineType
from typing import Any, NoReturn, cast

from shoal._errors.exceptions import BadResult
from shoal._state.result import Result
from shoal._state.state import State, change_between, refuse_awaitable

from ._port import Job

MISTAKES = (CoroutineType, AsyncGeneratorType, Result)
"""Types of results that are always a mistake: no state can hold them."""


def refuse_mistake(name: str, result: object) -> NoReturn:
    """Refuse what the action called ``name`` returned, one of ``MISTAKES``.

    Raises:
        BadResult: Always.
    """
    subject = f"action {name!r}"
    if isinstance(result, CoroutineType):
        coroutine = cast("CoroutineType[Any, Any, Any]", result)
        coroutine.close()  # else Python warns that it was never awaited, at some later time
        msg = (
            f"{subject} returned a coroutine that nobody awaited: "
            f"await {coroutine.__qualname__}(...)"
        )
    elif isinstance(result, Result):
        msg = (
            f"{subject} returned a Result, which only a streaming action yields, as its last item: "
            f"return the value itself"
        )
    else:
        msg = (
            f"{subject} returned an async generator; to stream, it has to be an async generator "
            f"function itself, which yields each item and, as the last thing, Result(value)"
        )
    raise BadResult(msg)


def finished(job: Job, state: State | None, result: object) -> object:
    """Return the result of a call: what the function returned, or the change of its state.

    Args:
        job: The function.
        state: The state that it was given; None if it takes none.
        result: What it returned; of a stream, the value of its ``Result``.

    Raises:
        BadResult: No state can hold the result, or it is no state made from ``state``.
    """
    if job.kind == "plain":
        refuse_awaitable(result, f"action {job.name!r}")
    if isinstance(result, MISTAKES):
        refuse_mistake(job.name, cast("object", result))
    return result if state is None else change_between(state, result, f"action {job.name!r}")
