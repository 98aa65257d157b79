"""Permits of a run: taken with each attempt, given back while it waits for another one.

Imports runs, and what is told of them; anyio.

Invariants:
- Between two attempts nothing is held, not even a place in flight.
- What has stepped aside for the next attempt and is cancelled meanwhile holds its stake again: it
  is about to end, and ends in flight.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from anyio import sleep
from anyio.lowlevel import checkpoint_if_cancelled

from shoal._graph.action import FunctionAction
from shoal._limits.permits import Seat, Stake

from .publish import publish_waiting
from .run import Run


def take_permit(run: Run, action: FunctionAction[..., Any]) -> Seat | None:
    """Take the permit for an attempt of ``action``, which may have to wait; None: it needs none."""
    permits, setting = run.permits, run.setting
    if permits is not None and permits.seat is not None:
        seat, permits.seat = permits.seat, None
        return seat
    return setting.services.admission.seat(
        setting.scopes,
        run.head[1],
        run.slot_owner.held_permits(),
        owner=action.definition,
        limits=action.limits,
        in_thread=action.in_thread,
    )


async def wait_without_slot(run: Run, seconds: float) -> None:
    """Wait before another attempt, holding nothing: not even its place in flight.

    An action's next attempt takes that again, together with what else it needs.
    """
    stake = _step_aside(run)
    if stake is not None:
        stake.returns = True
    try:
        await sleep(seconds)
        await checkpoint_if_cancelled()  # in the tick in which its time had come
    except BaseException:
        if stake is not None:
            stake.resume()
        raise


def _step_aside(run: Run) -> Stake | None:
    stake = run.slot_owner.held_permits().make_stake()
    if stake is not None:
        stake.step_aside()
        # The rate of a fan-out counts starts of children. An action that is tried again by its
        # own ``retry`` is none unless it is the child's first step; see
        # test_a_retry_of_a_further_step_does_not_pay_the_rate_of_the_fan_out.
        stake.is_due = run.is_starting
    return stake


def pause_keys(run: Run, seconds: float, seat: Seat | None) -> bool:
    """Let nothing more start for a while with the keys of an attempt, before it ends.

    Returns whether its limits have keys that keep the next attempt waiting.
    """
    return run.setting.services.admission.pause(seat, run.slot_owner.held_permits(), seconds)


async def wait_for_later(run: Run, seconds: float, *, is_paused: bool) -> None:
    """Hold nothing until an action that asked for it may be tried again.

    If its keys are paused, the next attempt waits for them as others do, and behind them: else
    one child that is refused again and again would keep all others with its key from starting.
    """
    if is_paused:
        _step_aside(run)
    else:
        await wait_without_slot(run, seconds)


async def retake_slot(run: Run) -> None:
    """Take its place in flight again after a wait, unless the next attempt of an action does."""
    stake = None if run.permits is None else run.permits.stake
    if stake is None or stake.is_held:
        return
    stake.is_due = True  # the child is tried again, at whichever step it stands
    if run.pending is None and any(
        act.name == run.step
        and isinstance(act, FunctionAction)
        and act.cache is None
        and bool(act.limits or run.setting.scopes)
        for act in run.setting.graph.acts
    ):
        return
    await _retake_place(run)


async def wait_turn_without_slot(run: Run, turn: Awaitable[None]) -> None:
    """Await ``turn``, which others must give, without a place in flight: they may wait for it.

    See test_a_suspect_that_waits_for_its_turn_holds_no_place.
    """
    owner = run.slot_owner
    stake = owner.held_permits().make_stake()
    if stake is None or not stake.is_held:
        await turn
        return
    stake.step_aside()
    stake.returns = True
    try:
        await turn
        await _retake_place(owner)
    except BaseException:
        stake.resume()  # it is about to end, and ends in flight
        raise


async def _retake_place(run: Run) -> None:
    seat = run.setting.services.admission.place(run.held_permits())
    try:
        await publish_waiting(run, seat)
        await seat.wait()
    except BaseException:
        seat.cancel()  # hooks were told when it was granted, or it waits still
        raise
