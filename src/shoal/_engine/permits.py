"""Acquire a run's permits for each attempt, and release them while it waits for the next one.

Invariants:
- Between two attempts a run holds no permit, not even the slot in flight of its child.
- A run that has suspended its slot until the next attempt and is cancelled meanwhile holds the slot
  again: it is about to end, and a child ends in flight.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from anyio import current_effective_deadline, sleep
from anyio.lowlevel import checkpoint_if_cancelled

from shoal._concurrency.cancellation import cancelled, ki_protected
from shoal._errors.exceptions import Overloaded
from shoal._graph.action import FunctionAction
from shoal._limits.limiters import Limiter
from shoal._limits.passes import Passes
from shoal._limits.permits import AttemptPermit, InFlightSlot
from shoal._limits.refusals import starts_at
from shoal.executors._port import Pool

from .child_time import time_of, waiting
from .config import RunConfig
from .halting import unless_drained, until_granted
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
        run=run,
    )


def passes_of(config: RunConfig, own: tuple[Limiter, ...] = ()) -> Passes:
    """Make the passes of the children of one kind, which call simple actions alone.

    Args:
        config: What they have in common.
        own: The limiters of their fan-out that count their starts.
    """
    controller = config.services.admission
    config.passes = Passes(
        controller.scheduler,
        controller.limiters,
        config.graph.simple,
        scopes=config.scopes,
        own=own,
        unit=config.execution,
    )
    return config.passes


@ki_protected
def hold_permits(run: Run) -> None:
    """Turn what a run has taken past its requests into the permits that these would have made.

    What its attempt holds becomes the permit of its first attempt, which the next one takes over.
    """
    passed, run.passed = run.passed, None
    if passed is None:
        return
    permits = run.held_permits()
    if passed.own and permits.in_flight is not None:
        costs = (1.0,) * len(passed.own)
        slot = permits.in_flight.make_slot(permits, passed.own, costs, is_held=True)
        slot.taken_at, permits.slot = passed.taken_at, slot
    if passed.gates:
        scheduler, taken_at = run.config.services.admission.scheduler, passed.taken_at
        permits.first_permit = AttemptPermit(
            scheduler, passed.gates, None, permits, taken_at=taken_at
        )


def fields_around(run: Run) -> dict[str, object]:
    """Return the fields of a run, and the ones of the runs around it that it wasn't given.

    So the tenant of a run is known in all fan-outs below it, whether or not their graphs read it.
    """
    found: list[Mapping[str, object]] = [run.head[1]]
    owner = run.slot_owner
    while True:
        if owner is not run:
            found.append(owner.head[1])
        in_flight = owner.config.in_flight
        # None in a root run, and once the fan-out has ended.
        if in_flight is None or in_flight.parent is None:
            break
        run = in_flight.parent
        found.append(run.head[1])
        owner = run.slot_owner
    fields: dict[str, object] = {}
    for one in reversed(found):
        fields.update(one)
    return fields


async def wait_for_permit(run: Run, permit: AttemptPermit) -> None:
    """Wait until ``permit`` is granted, and publish that.

    Raises:
        Overloaded: The attempt could only start after its deadline.
        RateUnavailable: The backend of a shared rate can't be reached.
    """
    if permit.wait_queue is not None:
        refuse_too_late(run, permit)
    with waiting(run, permit):
        published = await publish_waiting(run, permit)
        await until_granted(run, permit)
        await publish_wait_ended(run, published)


def refuse_too_late(run: Run, permit: AttemptPermit) -> None:
    """Refuse an attempt that waits, if it can't start before its deadline.

    Raises:
        Overloaded: A rate has its next turn too late, or the pause of a key ends too late.
    """
    owner, callers = run.slot_owner, math.inf
    if owner.config.in_flight is None:
        deadline, callers = current_effective_deadline(), run.config.deadline
    else:
        # Only its own: what a fan-out or another run around it does when its time is over, and what
        # it keeps for the next execution, is not for a child to decide.
        time = time_of(run)
        deadline = math.inf if time is None else time.deadline
    # A run that is cancelled already ends as cancelled, and not by a failure of its own; see
    # test_programs_of_all_pairs.
    if deadline == callers == math.inf or cancelled():
        return
    starts, gate = starts_at(permit)
    # A scope of the caller's ends in a cancellation, which a block of `move_on_after` catches; an
    # exception would pass through it. Only a limit with `waiting=` makes callers expect one.
    if gate is not None and gate.part is not None and gate.part.waiting is not None:
        deadline = min(deadline, callers)
    if starts < deadline or gate is None:
        return
    now = run.config.services.clock()
    msg = (
        f"it could start in {starts - now:.3g} s at the earliest, by {gate.part!r}, and its time "
        f"is over in {max(0.0, deadline - now):.3g} s"
    )
    raise Overloaded(msg, starts - now)


@stands_for("backoff")
async def wait_without_slot(run: Run, seconds: float) -> None:
    """Wait before another attempt and hold nothing meanwhile, not even the slot in flight.

    The next attempt acquires that slot again, together with its permit.
    """
    slot = _step_aside(run)
    run.retry_state().next_at = run.config.services.clock() + seconds  # for watchers alone
    # Ahead of children that have not started: what is under way is finished first.
    run.slot_owner.held_permits().returns = True
    try:
        with waiting(run, "its next attempt"):
            await unless_drained(run, partial(sleep, seconds))
            # The pause and an outer cancellation can end in the same tick; the cancellation wins.
            await checkpoint_if_cancelled()
    except BaseException:
        if slot is not None:
            slot.resume()
        raise


def starts_in(run: Run, seconds: float) -> float:
    """Return the seconds until another attempt of ``run``, which waits for ``seconds``, can begin.

    It may begin later than that, when a rate has its next turn or the pause of a key ends. When
    slots are released is unknown, so it may begin still later.
    """
    owner, now = run.slot_owner, run.config.services.clock()
    begins = at = now + seconds
    last = None if owner.retries is None else owner.retries.last_permit
    if last is not None:
        for index, gate in enumerate(last.needed):
            begins = gate.turn_from(begins, last.cost(index))
    slot = None if owner.permits is None else owner.permits.slot
    if slot is not None:
        starts = _starts_anew(run)
        for index, gate in enumerate(slot.needed):
            begins = gate.turn_from(begins, slot.costs[index] if starts and slot.costs else 0.0)
    return seconds if begins == at else begins - now


def _step_aside(run: Run) -> InFlightSlot | None:
    slot = run.slot_owner.held_permits().make_slot()
    if slot is not None:
        slot.step_aside()
        # The rate of a fan-out counts starts of children, and only a retry of the first step is
        # another start; see test_a_retry_of_a_further_step_does_not_pay_the_rate_of_the_fan_out and
        # test_a_fan_outs_rate_is_charged_for_starts_done_anew_and_not_for_further_steps.
        slot.is_due = _starts_anew(run)
    return slot


def _starts_anew(run: Run) -> bool:
    """Return whether the next attempt of ``run`` is its start, done anew."""
    if not run.is_starting:
        return False
    # Graphs that are nodes go on where they have failed, and may have completed steps of their own.
    kept = () if run.retries is None else run.retries.retained.values()
    return all(_starts_anew(inner) for inner in kept if isinstance(inner, Run))


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
    owner.held_permits().returns = True
    try:
        with waiting(run, "its turn after a crash"):
            await unless_drained(run, turn)
        await _retake_place(owner)
    except BaseException:
        slot.resume()  # the child is about to end, and ends in flight
        raise


@stands_for("paused")
async def wait_while_held(run: Run) -> None:
    """Wait until the execution is not held, before an attempt that needs no permit yet.

    What the run holds that another execution could use is released meanwhile. Its place in its
    fan-out is not, if it is nothing but that: the children of a paused run stay as they are.
    """
    permits, hold = run.permits, run.config.execution.hold
    if permits is not None and permits.first_permit is not None:
        # It was granted when the child was admitted, before the hold.
        permits.first_permit.cancel()
        permits.first_permit = None
    slot = run.slot_owner.permits and run.slot_owner.permits.slot
    while hold.is_on:
        if slot is None or not slot.is_shared:
            await unless_drained(run, hold.wait)
        else:
            await wait_turn_without_slot(run, hold.wait)
    # The hold and an outer cancellation can end in the same tick; the cancellation wins.
    await checkpoint_if_cancelled()


async def _retake_place(run: Run) -> None:
    permit = run.config.services.admission.place(run.config.scopes, run.held_permits(), run)
    try:
        with waiting(run, permit):
            published = await publish_waiting(run, permit)
            await until_granted(run, permit)
            await publish_wait_ended(run, published)
    except BaseException:
        # It may have been granted while hooks ran, or still be in a queue. Both are undone.
        permit.cancel()
        raise
