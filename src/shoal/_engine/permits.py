"""Acquire a run's permits for each attempt, and release them while it waits for the next one.

Invariants:
- Between two attempts a run holds no permit, not even the slot in flight of its child.
- A run that has suspended its slot until the next attempt and is cancelled meanwhile holds the slot
  again: it is about to end, and a child ends in flight.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from anyio import sleep
from anyio.lowlevel import checkpoint_if_cancelled

from shoal._graph.action import FunctionAction
from shoal._limits.permits import AttemptPermit, InFlightSlot
from shoal.executors._port import Pool

from .halting import unless_drained, wait_for_permit
from .publish import publish_wait_ended, publish_waiting
from .run import Run
from .standing import stands_for


def take_permit(
    run: Run, action: FunctionAction[..., Any], pool: Pool | None
) -> AttemptPermit | None:
    """Return the permit for an attempt of ``action``; None if it needs none.

    The permit may not be granted yet: the caller awaits ``wait``.

    Args:
        run: The run that makes the attempt.
        action: The action.
        pool: Where its function is called; None: on the event loop.
    """
    permits, config = run.permits, run.config
    if permits is not None and permits.first_permit is not None:
        # Admission acquired it for the child's first attempt. It is handed over once: the attempt
        # that has it releases it.
        permit, permits.first_permit = permits.first_permit, None
        return permit
    return config.services.admission.permit(
        config.scopes,
        run.head[1],
        run.slot_owner.held_permits(),
        owner=action.definition,
        limits=action.limits,
        worker=None if pool is None else pool.gate,
        keeps_worker=action.is_plain,
    )


@stands_for("backoff")
async def wait_without_slot(run: Run, seconds: float) -> None:
    """Wait before another attempt and hold nothing meanwhile, not even the slot in flight.

    The next attempt acquires that slot again, together with its permit.
    """
    slot = _step_aside(run)
    run.retry_state().next_at = run.config.services.clock() + seconds  # for watchers alone
    if slot is not None:
        # Ahead of children that have not started: what is under way is finished first.
        slot.returns = True
    try:
        await unless_drained(run, partial(sleep, seconds))
        # The pause and an outer cancellation can end in the same tick; the cancellation wins.
        await checkpoint_if_cancelled()
    except BaseException:
        if slot is not None:
            slot.resume()
        raise


def _step_aside(run: Run) -> InFlightSlot | None:
    slot = run.slot_owner.held_permits().make_slot()
    if slot is not None:
        slot.step_aside()
        # The rate of a fan-out counts starts of children. A retry by the action's own ``retry`` is
        # a start only in the child's first step; see
        # test_a_retry_of_a_further_step_does_not_pay_the_rate_of_the_fan_out.
        slot.is_due = run.is_starting
    return slot


def pause_keys(run: Run, seconds: float, permit: AttemptPermit | None) -> bool:
    """Pause the keys of an attempt for ``seconds``, so that nothing else starts with them.

    It is called before the attempt ends. Returns whether its limits have keys at all, which then
    keep the next attempt waiting.
    """
    return run.config.services.admission.pause(permit, run.slot_owner.held_permits(), seconds)


async def wait_for_later(run: Run, seconds: float, *, is_paused: bool) -> None:
    """Release everything until an action that raised ``RetryLater`` may be attempted again.

    If its keys are paused, it doesn't sleep here: the next attempt waits for the keys, behind other
    children with the same key. In front of them, one child that is refused again and again would
    keep all others from starting.
    """
    if is_paused:
        _step_aside(run)
    else:
        await wait_without_slot(run, seconds)


async def retake_slot(run: Run) -> None:
    """Acquire the slot in flight again before a child is retried.

    If the child continues with an action that needs a permit, the slot is acquired with the permit
    and not here: a child that held a slot and waited for a permit could block others.
    """
    slot = None if run.permits is None else run.permits.slot
    if slot is None or slot.is_held:
        return
    slot.is_due = True  # a retry of the child is a start, whichever step it continues at
    # An action with a cache may need no permit, and then nothing else would acquire the slot; see
    # test_a_child_that_is_tried_again_takes_its_place_though_it_needs_no_permit.
    if run.pending is None and any(
        act.name == run.step
        and isinstance(act, FunctionAction)
        and act.cache is None
        and bool(act.limits or run.config.scopes)
        for act in run.config.graph.acts
    ):
        return
    await _retake_place(run)


async def wait_turn_without_slot(run: Run, turn: Callable[[], Awaitable[None]]) -> None:
    """Wait for a turn without a slot in flight: the children that give the turn may need the slot.

    See test_a_suspect_that_waits_for_its_turn_holds_no_place.
    """
    owner = run.slot_owner
    slot = owner.held_permits().make_slot()
    if slot is None or not slot.is_held:
        await unless_drained(run, turn)
        return
    slot.step_aside()
    slot.returns = True
    try:
        await unless_drained(run, turn)
        await _retake_place(owner)
    except BaseException:
        slot.resume()  # the child is about to end, and ends in flight
        raise


async def _retake_place(run: Run) -> None:
    permit = run.config.services.admission.place(run.held_permits())
    try:
        waiting = await publish_waiting(run, permit)
        await wait_for_permit(run, permit)
        await publish_wait_ended(run, waiting)
    except BaseException:
        # It may have been granted while hooks ran, or still be in a queue. Both are undone.
        permit.cancel()
        raise
