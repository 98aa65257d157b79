"""Partial items: what an attempt of an action gives before it returns. Imports runs; anyio.

Invariants:
- The items of an attempt are told one at a time, counted from 0, and only while it runs: whoever is
  slow to hear of one holds up the next.
- An item is told to everybody or to nobody, whatever is cancelled meanwhile; then the cancellation
  arrives where the item was given, as it would at an ``await``.
- The generator of a streaming action is closed, cleanup included, in the task that advanced it, on
  every way out. What it ended by is never hidden by what closing it raises.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from functools import partial
from types import AsyncGeneratorType
from typing import cast, final

from anyio import CancelScope, Lock
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from shoal._concurrency.cancellation import cancelled, ki_protected, ki_unprotected
from shoal._concurrency.closing import closed_after
from shoal._errors.exceptions import BadUse, IncompleteStream, RunCancelled, brief
from shoal._graph.action import Result

from .publish import is_item_heard, publish_item
from .run import Run

logger = logging.getLogger("shoal")

ITEMS = 64
"""Items that an attempt gives without passing a checkpoint, if it never waits."""


@final
class Items:
    """The partial items of one attempt."""

    __slots__ = ("_over", "_run", "_stopped", "_turn", "attempt", "count", "step")

    def __init__(self, run: Run, step: str, attempt: int = 1) -> None:
        """Begin with none.

        Args:
            run: Hears of them.
            step: The name of the action.
            attempt: Which try of the step it is.
        """
        self._run = run
        self._turn: Lock | None = None  # of the tasks that give items, if anybody hears them
        self._over = False
        self._stopped = False
        self.step: str = step
        self.attempt: int = attempt
        self.count: int = 0

    @property
    def run_id(self) -> str:
        """The id of the run that hears of them."""
        return self._run.path.id

    def hide_secrets(self, error: BaseException) -> None:
        """Mask what is secret in an error of the attempt that is about to be told."""
        self._run.setting.secrets.hide(error)

    def give(self, item: object) -> Awaitable[None] | None:
        """Take the next item; return what tells it, if it has to be awaited.

        Raises:
            BadUse: The attempt has ended.
        """
        if is_item_heard(self._run):  # by now: who follows a run may have come meanwhile
            return self._tell(item)
        self._next()
        return self._pause() if self.count % ITEMS == 0 else None

    @ki_protected
    async def _tell(self, item: object) -> None:
        """Tell an item, and wait for those who are slow to hear of it.

        Raises:
            BaseException: A cancellation. It arrives before the item is told, or after.
            HookFailed: A guarding hook raised; everybody else was told.
            BadUse: The attempt has ended.
        """
        if self._turn is None:
            self._turn = Lock(fast_acquire=True)
        turn = self._turn
        if turn.locked():
            await turn.acquire()
        else:
            turn.acquire_nowait()
        try:
            pending = publish_item(self._run, item, self.step, self.attempt, self._next())
            if pending is not None:
                await pending
            await self._pause()
        finally:
            turn.release()

    def _next(self) -> int:
        if self._over:
            msg = (
                f"action {self.step!r} of run {self.run_id} has ended, and something it left "
                f"behind gives a partial item: await all that emits before the action returns"
            )
            raise BadUse(msg)
        if self._stopped:
            msg = (
                f"action {self.step!r} of run {self.run_id} was cancelled, so its thread should end"
            )
            raise RunCancelled(msg)
        index = self.count
        self.count = index + 1
        return index

    async def _pause(self) -> None:
        """Let others have a turn, now and then; and let a cancellation arrive, if there is one."""
        if self.count % ITEMS == 0:
            await checkpoint()
        if cancelled():
            # In a scope that is cancelled only now. What a thread calls, anyio doesn't interrupt if
            # it was cancelled before, but lets it wait for that for ever, see
            # test_a_thread_that_emits_learns_of_a_cancellation.
            with CancelScope() as scope:
                scope.cancel()
                await checkpoint_if_cancelled()

    @property
    def is_over(self) -> bool:
        """Whether the attempt has ended, or was cancelled and left its thread behind."""
        return self._over or self._stopped

    def stop(self) -> None:
        """Refuse what comes now: the attempt is cancelled, though its thread still runs."""
        self._stopped = True

    def end(self) -> Awaitable[None] | None:
        """Take no more; return what is to be awaited if an item is being told."""
        self._over = True
        if self._turn is None or not self._turn.locked():
            return None
        return _wait_for(self._turn)


@ki_protected
async def _wait_for(turn: Lock) -> None:
    with CancelScope(shield=True):
        async with turn:
            pass


@ki_protected
async def stream(generator: AsyncGeneratorType[object, None], items: Items) -> object:
    """Advance the generator of a streaming action to its end, and return what its Result holds.

    Each other thing that it yields is given to ``items``. In between it stands at its ``yield``:
    there arrives what is cancelled by the generator itself, as by a timeout that it is inside of.
    When everything is cancelled, or an item can't be told, it is closed.

    Raises:
        IncompleteStream: It ended without a Result, or yielded something after it.
        BaseException: Whatever came out of it, or of telling its items.
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
    generator: AsyncGeneratorType[object, None], items: Items, scope: CancelScope
) -> object:
    result: Result[object] | None = None
    thrown: BaseException | None = None  # into the generator, at the yield where it stands
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
                raise
            except BaseException as interruption:
                if _comes_from_outside(scope):
                    raise
                thrown = interruption
    finally:
        del thrown  # no cycle from the exception through its traceback to this frame
    if result is None:
        await checkpoint_if_cancelled()  # which it may have swallowed, and ended
        raise _incomplete(items, f"ended without a Result, after {items.count} items")
    return result.value


def _comes_from_outside(scope: CancelScope) -> bool:
    """Tell whether a cancellation is not the generator's own: of a scope that it holds, say."""
    if not cancelled():
        return False
    scope.shield = True
    inside = cancelled()
    scope.shield = False
    return not inside


def _incomplete(items: Items, what: str) -> IncompleteStream:
    return IncompleteStream(
        f"streaming action {items.step!r} of run {items.run_id} {what}; it yields "
        f"`Result(value)` once, as the last thing: what it would return if it didn't stream"
    )
