"""Advance the generator of a streaming action, wherever it runs.

Invariants:
- The generator is closed, with its cleanup, in the task that advanced it, on every way out. An
  error raised in closing never hides the error that ended the generator.
"""

from __future__ import annotations

from functools import partial
from types import AsyncGeneratorType
from typing import cast

from anyio import CancelScope
from anyio.lowlevel import checkpoint_if_cancelled

from shoal._concurrency.cancellation import cancelled, ki_protected, ki_unprotected
from shoal._concurrency.closing import closed_after
from shoal._errors.exceptions import IncompleteStream, brief
from shoal._state.result import Result

from ._port import ItemsPort


@ki_protected
async def stream(generator: AsyncGeneratorType[object, None], items: ItemsPort) -> object:
    """Advance the generator of a streaming action to its end, and return the value of its Result.

    Everything else that it yields goes to ``items``. A cancellation by the generator itself, by a
    timeout around its ``yield`` for example, is raised at that ``yield``. If the cancellation comes
    from outside, or an item can't be published, the generator is closed.

    Raises:
        IncompleteStream: The generator ended without a Result, or yielded something after it.
        BaseException: The generator raised it, or a hook that received its items.
    """
    return await closed_after(
        generator,
        partial(_consume, generator, items),
        f"streaming action {items.step!r}",
        where=f", in run {items.run_id}",
        hide=items.hide_secrets,
    )


@ki_unprotected
async def _consume(
    generator: AsyncGeneratorType[object, None], items: ItemsPort, scope: CancelScope
) -> object:
    result: Result[object] | None = None
    thrown: BaseException | None = None  # raised in the generator at its `yield`, and then None
    try:
        while True:
            try:
                item = await (anext(generator) if thrown is None else generator.athrow(thrown))
            except StopAsyncIteration:
                break
            thrown = None
            if result is not None:
                raise _incomplete(items, f"yielded {brief(item)} after its Result")
            if isinstance(item, Result):
                result = cast("Result[object]", item)
                continue
            try:
                pending = items.give(item)
                if pending is not None:
                    await pending
            except (Exception, GeneratorExit):
                raise  # a hook failed: the generator can't do anything about it
            except BaseException as interruption:
                if _comes_from_outside(scope):
                    raise
                thrown = interruption
    finally:
        del thrown  # breaks the traceback cycle
    if result is None:
        # It may have swallowed its cancellation and ended: then it is cancelled, and not at fault.
        # See test_one_that_swallows_its_cancellation_is_cancelled_all_the_same.
        await checkpoint_if_cancelled()
        raise _incomplete(items, f"ended without a Result, after {items.count} items")
    return result.value


def _comes_from_outside(scope: CancelScope) -> bool:
    """Return whether the cancellation comes from outside ``scope``, and not from the generator."""
    if not cancelled():
        return False
    # Shielding hides all that is outside for a moment. No await in between, so no task sees it.
    scope.shield = True
    inside = cancelled()
    scope.shield = False
    return not inside


def _incomplete(items: ItemsPort, what: str) -> IncompleteStream:
    return IncompleteStream(
        f"streaming action {items.step!r} of run {items.run_id} {what}; it yields "
        f"`Result(value)` once, as the last thing: what it would return if it didn't stream"
    )
