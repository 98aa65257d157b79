"""Partial items: the items that an attempt of an action gives before it returns.

Invariants:
- The items of an attempt are published one at a time, counted from 0, and only while the attempt
  runs: a slow hook delays the next item.
- An item reaches all hooks or none, also if the run is cancelled meanwhile. The cancellation
  arrives afterwards, where the item was given, as at any ``await``.
- The generator of a streaming action is closed, with its cleanup, in the task that advanced it, on
  every way out. An error raised in closing never hides the error that ended the generator.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import final

from anyio import CancelScope, Lock
from anyio.lowlevel import checkpoint, checkpoint_if_cancelled

from shoal._concurrency.cancellation import cancelled, ki_protected
from shoal._errors.exceptions import BadUse, RunCancelled

from .publish import has_item_listeners, publish_item, refuse_secrets_in_item
from .run import Run

logger = logging.getLogger("shoal")

ITEMS = 64
"""Items that an attempt gives without passing a checkpoint, if it never waits.

A checkpoint costs more than an item that no hook receives; 64 of those delay other tasks by well
below a millisecond. See test_others_run_while_it_streams_and_never_waits.
"""


@final
class Items:
    """The partial items of one attempt."""

    __slots__ = ("_over", "_run", "_stopped", "_turn", "attempt", "count", "on_first", "step")

    def __init__(self, run: Run, step: str, attempt: int = 1) -> None:
        """Start with no item.

        Args:
            run: The run whose action gives the items.
            step: The name of the action.
            attempt: The number of the attempt at the step.
        """
        self._run = run
        # Several tasks of an action may emit. Made with the first item that a hook receives.
        self._turn: Lock | None = None
        # Neither is ever reset. `_over`: the attempt has ended. `_stopped`: it was cancelled, and
        # a thread of it may still run.
        self._over = False
        self._stopped = False
        self.step: str = step
        self.attempt: int = attempt
        self.count: int = 0
        self.on_first: Callable[[], None] | None = None
        """Called before the first item is given; None: nothing is."""

    @property
    def run_id(self) -> str:
        """The id of the run."""
        return self._run.path.id

    def hide_secrets(self, error: BaseException) -> None:
        """Mask secrets in an error of the attempt that is about to be published."""
        self._run.config.secrets.hide(error)

    def give(self, item: object) -> Awaitable[None] | None:
        """Publish the next item; return an awaitable if the action has to wait for that.

        Raises:
            BadUse: The attempt has ended.
            SecretLeaked: The item holds a secret, whether or not anything receives it.
        """
        # Asked at each item: a reader may begin to follow the run at any time.
        if has_item_listeners(self._run):
            return self._publish(item)
        self._next()
        # Here too, or else a run would succeed until the day that something listens to it.
        if self._run.config.secrets.names:
            refuse_secrets_in_item(self._run, item, self.step)
        return self._pause() if self.count % ITEMS == 0 else None

    @ki_protected
    async def _publish(self, item: object) -> None:
        """Publish an item, and wait until all hooks have received it.

        Raises:
            BaseException: A cancellation. It arrives before the item is published, or after.
            HookFailed: A guarding hook raised; all other hooks received the item.
            BadUse: The attempt has ended.
        """
        if self._turn is None:
            self._turn = Lock(fast_acquire=True)
        turn = self._turn
        # Without a checkpoint if the lock is free: a cancellation would lose the item. One that
        # waits may be cancelled before its turn, and then no hook receives the item; see
        # test_an_item_that_is_cancelled_before_its_turn_is_not_published.
        if turn.locked():
            await turn.acquire()
        else:
            turn.acquire_nowait()
        try:
            # The index is taken here, with the lock held, so that items are numbered in order.
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
        if self.on_first is not None:
            on_first, self.on_first = self.on_first, None
            on_first()
        self.count = index + 1
        return index

    async def _pause(self) -> None:
        """Let other tasks run after some items, and let a cancellation arrive if there is one."""
        if self.count % ITEMS == 0:
            await checkpoint()
        if cancelled():
            # In a scope that is cancelled only now. A thread may call this through anyio, which
            # doesn't interrupt a call that was cancelled before it began, and waits for ever; see
            # test_a_thread_that_emits_learns_of_a_cancellation.
            with CancelScope() as scope:
                scope.cancel()
                await checkpoint_if_cancelled()

    @property
    def is_over(self) -> bool:
        """Whether the attempt has ended, or was cancelled and left its thread behind."""
        return self._over or self._stopped

    def stop(self) -> None:
        """Refuse further items, since the attempt is cancelled, though its thread still runs."""
        self._stopped = True

    def end(self) -> Awaitable[None] | None:
        """Refuse further items; return an awaitable if an item is being published."""
        # Before the wait for an item under way, so that none begins meanwhile.
        self._over = True
        if self._turn is None or not self._turn.locked():
            return None
        return _wait_for(self._turn)


@ki_protected
async def _wait_for(turn: Lock) -> None:
    # Shielded: hooks must not receive an item after the end of its attempt.
    with CancelScope(shield=True):
        async with turn:
            pass
