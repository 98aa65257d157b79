"""Execute one step of a function action: bind its arguments, call it, check its result.

Invariants:
- A function receives exactly the arguments that its parameters name. Its result is checked against
  the declared writes before anything else sees it.
- An attempt holds its slots exactly while the function runs, on every way out. A worker that was
  left behind keeps them until the function returns.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, cast

from anyio.lowlevel import checkpoint_if_cancelled

from shoal._concurrency.cancellation import (
    absorb_stray_cancel,
    as_failure,
    cancelled,
    ki_protected,
    ki_unprotected,
)
from shoal._concurrency.watchdog import Place
from shoal._errors.exceptions import (
    BudgetExceeded,
    DefinitionError,
    Halting,
    RetryLater,
    WorkerDied,
    brief,
    note,
)
from shoal._graph.action import FunctionAction
from shoal._limits.permits import AttemptPermit
from shoal._state.secrets import Secret
from shoal._state.state import Change, make_state, refuse_awaitable
from shoal.executors._port import Call, ContextPort, Pool
from shoal.executors._streams import stream
from shoal.executors._threads import ThreadCall

from .attempts import AttemptTime, try_step, within
from .child_time import time_of
from .commit import SAVE, commit
from .crash_suspects import CrashSuspects
from .halting import stop_if_drained
from .hedged import HedgedAttempt, hedged_attempt
from .permits import (
    hold_permits,
    pause_keys,
    take_permit,
    wait_for_later,
    wait_for_permit,
    wait_turn_without_slot,
    wait_while_held,
)
from .publish import publish_grace_exceeded
from .questions import halting_attempt, is_blocked
from .result_cache import lookup, result_key, store_result
from .returned import TO_CHECK, checked_result, missing_field, written
from .run import Run
from .spending import publish_spent, record_stakes, refused
from .standing import stands_for
from .streaming import Items
from .worker_deaths import outlive

logger = logging.getLogger("shoal")

LATER = 10
"""The number of ``RetryLater`` in a row with which an action fails.

Each says how long to wait. An action that was put off so often waits for something that doesn't
change by waiting.
"""


def call_action(run: Run, action: FunctionAction[..., object]) -> Awaitable[Change]:
    """Execute ``action`` on the state of ``run``, as its current step, and return its change.

    The function is called once all limits that apply allow it. A cancellation reaches the function
    at once; a function in a worker is awaited until the grace is over. A failed attempt is retried
    as ``action.retry`` says, and between attempts the run holds no permit.

    Raises:
        MissingField: The state lacks a field that the action reads.
        BadResult: The function returned something that the declaration of the action doesn't allow.
        IncompleteStream: A streaming action did not end with its only ``Result``.
        Halting: The action waits for an answer.
    """
    return _execute(run, action) if action.cache is None else _look_up_or_execute(run, action)


async def _look_up_or_execute(run: Run, action: FunctionAction[..., object]) -> Change:
    """Return the stored result of ``action``; else execute it, and its result is stored."""
    retries = run.retry_state()
    # Computed once, from the state before the action: `store_result` uses the same key.
    retries.result_key, retries.is_cached = result_key(action, run.head[1]), False
    # Before a permit is requested: what is found needs no slot, no rate and no thread; see
    # test_what_is_remembered_waits_for_no_slot_no_rate_and_no_thread.
    change = await lookup(run, action)
    return await _execute(run, action) if change is None else change


def _execute(run: Run, action: FunctionAction[..., object]) -> Awaitable[Change]:
    config = run.config
    # Only an action with a context can ask. While its question is open it would only ask again;
    # see test_without_an_answer_a_step_that_asks_is_not_attempted_again.
    if action.takes_context and run.questions is not None and is_blocked(run):
        return _halt(run)
    # Crashes are counted only for runs that a store keeps, and only after a crash.
    if config.execution.suspects is not None and config.keeps:
        return _call_suspect(run, action, config.execution.suspects)
    return _call_tried(run, action)


async def _halt(run: Run) -> Change:
    raise Halting(f"run {run.path.id} waits for answers")


async def _call_suspect(
    run: Run, action: FunctionAction[..., object], suspects: CrashSuspects
) -> Change:
    """Save that the run is at work, then execute the action: another crash is held against it."""
    retries = run.retry_state()
    # Crashes in earlier executions: the count includes this one while `is_suspect` is set.
    before = retries.crashes - retries.is_suspect
    turn = partial(suspects.wait_turn, retries, before)
    try:
        # No wait then, so the permit that admission has acquired for the child can stay with it.
        if suspects.is_free(before):
            await turn()
        else:
            # The child that is at work may wait for the very permit that this one holds; see
            # test_a_child_that_waits_for_a_turn_holds_no_slot.
            permits = run.permits
            if permits is not None and permits.first_permit is not None:
                permits.first_permit.cancel()
                permits.first_permit = None
            await wait_turn_without_slot(run, turn)
        if not retries.is_suspect:
            # Saved before the call: if the process dies in it, only the store can tell.
            retries.crashes, retries.is_suspect = retries.crashes + 1, True
            await commit(run, SAVE)
        return await _call_tried(run, action)
    finally:
        # `is_suspect` stays set: the count goes down when the step is completed.
        suspects.leave(retries)


async def hand_blame_to_children(run: Run) -> None:
    """Stop counting crashes against ``run``: its children do the work now and are counted instead.

    See test_below_an_action_s_own_fan_out_its_children_are_to_blame.
    """
    retries, suspects = run.retries, run.config.execution.suspects
    if suspects is None or retries is None or not retries.is_suspect:
        return
    suspects.leave(retries)  # before the save: a child may wait to be alone at work
    # Only the count of this execution is taken back: the action itself may have been at work in the
    # crashes before.
    retries.clear_crashes(retries.crashes - 1)
    await commit(run, SAVE)


def _call_tried(run: Run, action: FunctionAction[..., object]) -> Awaitable[Change]:
    # Most actions have no retry and no limits: nothing is awaited in between for those.
    config = run.config
    if action.retry is not None:
        return try_step(run, action.retry, partial(_call_once, run, action))
    # An action in a thread is governed: `_call` alone would run it without the permit that bounds
    # the threads.
    if config.is_governed or action.is_governed:
        return _call_once(run, action)
    if config.execution.hold.is_on:
        return _call_after_hold(run, action)
    return _call(run, action, is_free=True)


def _call_once(
    run: Run, action: FunctionAction[..., object], on_admitted: Callable[[], None] | None = None
) -> Awaitable[Change]:
    """Make one attempt; see ``call_admitted``."""
    attempt = call_admitted(run, action, on_admitted)
    return _call_hedged(run, action, attempt) if run.config.is_hedged else attempt


@ki_protected
async def _call_hedged(
    run: Run, action: FunctionAction[..., object], attempt: Coroutine[Any, Any, Change]
) -> Change:
    """Make one attempt, of which a second copy may be made."""
    change = await HedgedAttempt(run, action, partial(_call_copy, action)).execute(attempt)
    if change is None:
        # Items of it went out, so those of the next attempt need another number. No retry counts
        # it, because nothing has failed.
        stop_if_drained(run)
        run.begin_attempt()
        change = await call_admitted(run, action)
    return change


async def _call_copy(
    action: FunctionAction[..., object], copy: Run, permit: AttemptPermit
) -> Change:
    """Make the one attempt of a second copy, which is put off by nothing."""
    return await _attempt(copy, action, permit, None, [], pool=_pool_of(copy, action))


async def _call_after_hold(run: Run, action: FunctionAction[..., object]) -> Change:
    await wait_while_held(run)
    return await _call(run, action, is_free=True)


@stands_for("again")
@ki_protected
async def call_admitted(
    run: Run,
    action: FunctionAction[..., object],
    on_admitted: Callable[[], None] | None = None,
    later: RetryLater | None = None,
) -> Change:
    """Make one attempt, and repeat it as long as it raises ``RetryLater`` or its worker dies.

    Args:
        run: The run whose current step this is.
        action: The step's action.
        on_admitted: Called when the attempt begins.
        later: Raised by the attempt already, which has taken what it needed past a request, if
            anything limits it.
    """
    pool = _pool_of(run, action)
    death: WorkerDied | None = None
    asked = 0
    # Filled by `_attempt`, which pauses the keys while it still holds its permit: in between,
    # others with the same key would start. Empty if the attempt never came to that.
    paused: list[bool] = []
    if later is not None:
        permit = _begun_permit(run)
        paused.append(pause_keys(run, later.after, permit))
        if permit is not None:
            permit.leave()
    while True:
        if later is not None:
            asked += 1
            # A native cancel that the action left on this task would interrupt the wait.
            await absorb_stray_cancel(run.config.services.native_cancels)
            # `pop` leaves the list empty for the next attempt, which fills it again if it gets that
            # far.
            await wait_for_later(run, later.after, is_paused=paused.pop())
            stop_if_drained(run)  # keys that are paused may be open again at once
            later = None
        if run.config.execution.hold.is_on:
            await wait_while_held(run)
        # No await between this and the `try` in `_attempt`, which releases the permit: a
        # cancellation in between would leave its slots taken for good.
        permit = take_permit(run, action, pool)
        try:
            return await _attempt(run, action, permit, on_admitted, paused, pool=pool)
        except RetryLater as error:
            # `paused` is empty if the error is not the action's, but that of an `adapt=` policy,
            # which fails the attempt. An attempt that raised while it was cancelled has failed too:
            # the wait would be cut short at once, and its error would be lost.
            if asked + 1 >= LATER or not paused or run.config.execution.is_doomed or cancelled():
                note(error, f"shoal: asked for it {asked + 1} times in a row")
                raise
            later = error
        except WorkerDied as error:
            if pool is None:  # the function has raised it, and no worker of ours has died
                raise
            death = error
        if death is not None:
            await outlive(run, death)
            stop_if_drained(run)
            death = None
        on_admitted = None  # a repetition is the same attempt, and is counted once
        if action.takes_context:
            # Its children of before are in the store: see
            # test_an_action_with_children_of_its_own_is_called_again.
            run.retry_state().is_repeated = True


@ki_protected
def _begun_permit(run: Run) -> AttemptPermit | None:
    """Return the permit of an attempt that has begun past a request; None if nothing limits it."""
    hold_permits(run)
    permits = run.permits
    if permits is None:
        return None
    permit, permits.first_permit = permits.first_permit, None
    return permit


def _pool_of(run: Run, action: FunctionAction[..., object]) -> Pool | None:
    """Return where the function of ``action`` is called; None: on the event loop.

    Raises:
        DefinitionError: The action inherits the loop, where it can't be executed. Graphs that are
            known before the run are refused before it.
    """
    inherited = run.config.executor
    if inherited == "loop" and action.executor is None:
        why = action.unfit_for(None)
        if why:
            raise DefinitionError(f"action {action.name!r}: {why}")
    return run.config.pool_of(action)


@ki_protected
async def _attempt(
    run: Run,
    action: FunctionAction[..., object],
    permit: AttemptPermit | None,
    on_admitted: Callable[[], None] | None,
    paused: list[bool],
    *,
    pool: Pool | None,
) -> Change:
    """Make one attempt within its permit, worker and timeout. One that never began paid nothing.

    If the attempt raises ``RetryLater``, its keys are paused before its slots are released, and
    ``paused`` receives whether there are any. An adaptive limit receives how the attempt ended, and
    its policy may fail the attempt.
    """
    call: Call | None = None
    time: AttemptTime | None = None
    failure: BaseException | None = None
    begun = False  # decides whether the permit is charged (left) or given back (cancelled)
    try:
        # Most permits are granted at once, and those cost neither an await nor an event.
        if permit is not None and not permit.granted:
            try:
                await wait_for_permit(run, permit)
            except BudgetExceeded as error:
                await refused(run, action.name, error)
                raise
            # A cancellation may arrive in the tick of the grant, or while hooks run, which are
            # shielded. The function must not begin then; see
            # test_a_cancel_in_the_tick_of_the_grant.
            await checkpoint_if_cancelled()
            if action.cache is not None:
                # The attempt that held the slot may have stored the result; see
                # test_a_child_that_has_waited_for_a_slot_looks_again_and_pays_nothing.
                recalled = await lookup(run, action)
                if recalled is not None:
                    return recalled
        if permit is not None and permit.stakes:
            await record_stakes(run, action.name, permit)
        if on_admitted is not None:
            # An attempt begins once it has its permit (see
            # test_the_time_begins_when_it_has_its_slots). If it is too late for another attempt,
            # this raises the failure of the last one, and the permit is not charged; see
            # test_an_attempt_that_comes_too_late_pays_nothing_and_no_policy_sees_it.
            on_admitted()
        # Charged from here on, and not sooner: see
        # test_a_child_that_is_cancelled_before_its_body_starts_has_paid_nothing.
        begun = True
        if run.config.is_hedged and (hedged := hedged_attempt(run)) is not None:
            hedged.begin(run)  # from here on, since waiting for limits makes nothing late
        if pool is not None:
            call = pool.call()
        if call is not None and (action.timeout is not None or time_of(run) is not None):
            time = AttemptTime(action.timeout, run)
        if action.takes_context or action.is_streaming:
            attempt = partial(_call_emitting, run, action, permit, call, time)
        else:
            attempt = partial(_call, run, action, call=call, time=time)
        timed: Callable[[], Awaitable[Change]] = attempt
        if action.timeout is not None:
            what = partial(_what, run, action.name)
            # Around the call alone: neither the wait for the permit nor storing the result takes
            # the action's time.
            timed = partial(within, action.timeout, attempt, run, what=what, time=time)
        if action.takes_context:
            # Outside of the timeout, because an attempt that has asked and then times out is halted
            # and has not failed; see test_an_attempt_that_has_asked_is_halted_however_it_ends. An
            # action with a context has no cache: see
            # test_what_does_more_than_to_write_can_not_have_it.
            return await halting_attempt(run, timed)
        if action.cache is not None:
            # Stored before the slot is released: the next attempt that gets the slot looks here.
            return await store_result(run, action, await timed(), action.cache)
        return await timed()
    except BaseException as error:
        # For the policies in `finally`, which are asked however the attempt ends.
        failure = error
        if isinstance(error, RetryLater):
            # While the permit is held: nothing else with its keys can start before the pause.
            paused.append(pause_keys(run, error.after, permit))
            if run.config.is_hedged and (hedged := hedged_attempt(run)) is not None:
                hedged.pause(run)
        is_resumable = action.retry is not None or run.config.is_resumable
        if permit is not None and is_resumable and isinstance(error, Exception):
            run.slot_owner.retry_state().last_permit = permit
        raise
    finally:
        try:
            # A halted attempt waits for a person, which says nothing about the limited resource;
            # see test_what_waits_for_a_person_says_nothing_of_a_limit.
            if permit is not None and begun and permit.since is not None and not run.is_halting:
                # Before the slots are released, so that a policy sees how many were in use.
                _adapt(run, permit, failure)
        finally:
            # Also if the user's policy raises; see test_a_policy_that_raises_fails_the_attempt.
            failure = None  # breaks the traceback cycle
            if time is not None:
                time.end()  # it may have ended while it waited for a worker
            if permit is not None and permit.stakes and begun:
                # Before a worker is left behind: what that one says is too late.
                await publish_spent(run, action.name, permit.settle())
            if permit is not None and call is not None and call.is_running:
                await _leave_behind(run, call, permit)
            elif permit is not None and begun:
                permit.leave()
            elif permit is not None:
                permit.cancel()


@ki_protected
def _adapt(run: Run, permit: AttemptPermit, failure: BaseException | None) -> None:
    """Report how an attempt ended to the policies that adapt its limits.

    Raises:
        Exception: A user's policy raised it. It never replaces a cancellation, nor another
            exception that must propagate.
    """
    try:
        run.config.services.admission.adapt(permit, failure)
    except Exception:
        if failure is None or as_failure(failure) is not None:
            raise
        # Only logged, since a cancellation or the like is propagating. See
        # test_a_cancellation_stays_one_whatever_the_policy_raises.
        logger.exception("adapt= of a limit, told of the end of run %s", run.path.id)


@ki_protected
async def _leave_behind(run: Run, call: Call, permit: AttemptPermit) -> None:
    """Release the permit when the function of the call has ended, without waiting for that.

    The grace is over, and the function is still at work.
    """
    try:
        await publish_grace_exceeded(run, Place(call.place), call.grace, abandoned=True)
    finally:
        # Also if a guarding hook raises. The slot is taken until the function has really ended;
        # see test_a_thread_keeps_its_slot_until_it_returns.
        call.leave(permit.leave)


@stands_for("context")
@ki_protected
async def _call_emitting(
    run: Run,
    action: FunctionAction[..., object],
    permit: AttemptPermit | None,
    call: Call | None,
    time: AttemptTime | None,
) -> Change:
    """Call the function of an action that may emit partial items."""
    hedged = hedged_attempt(run)
    # The items of a copy are those of its run, for hooks and for a race.
    items = Items(run if hedged is None else hedged.run, action.name, run.attempt)
    if hedged is not None:
        hedged.has_items(run, items)
    context: ContextPort | None = None
    if action.takes_context:
        context = run.config.services.context(run, action, permit, items, call is not None)
    try:
        return await _call(run, action, context=context, items=items, call=call, time=time)
    finally:
        # The attempt must not end while one of its items is on its way to hooks.
        pending = items.end()
        if pending is not None:
            await pending


def _what(run: Run, name: str) -> str:
    path = run.path
    key = "" if path.parent is None else f" (key {brief(path.key)} of {path.step!r})"
    return f"action {name!r} of run {path.id}{key}"


@stands_for("action")
@ki_unprotected
async def call_simply(run: Run, action: Any) -> Change:
    """Call the function of an action that is ``is_simple``, and check its result.

    The shortest way of the commonest step: the caller has found that nothing limits the call,
    repeats it, or calls it elsewhere. Otherwise as ``_call``.
    """
    data = run.head[1]
    kwargs: dict[str, Any] = {}
    try:
        for name in action.fields:
            value = data[name]
            # `type() is` instead of `isinstance`: per field and child, and `Secret` is final.
            kwargs[name] = value.value if type(value) is Secret else value
    except KeyError as missing:
        raise missing_field(action, missing.args[0], data) from None
    base = None
    if action.takes_state:
        base = kwargs["state"] = make_state(data, action.access)
    function: Any = action.function
    later: RetryLater | None = None
    result: object = None
    try:
        result = await function(**kwargs)
    except RetryLater as error:
        later = error
    if later is not None:  # outside of `except`, as in `_call`
        return await call_admitted(run, action, later=later)
    if base is not None:
        return checked_result(action, base, result)
    field = action.only_write
    if field is None or isinstance(result, TO_CHECK):
        return checked_result(action, None, cast("object", result))
    return Change(None, {field: result})  # as most actions end


@stands_for("action")
@ki_unprotected
async def _call(
    run: Run,
    action: FunctionAction[..., object],
    *,
    context: ContextPort | None = None,
    items: Items | None = None,
    call: Call | None = None,
    time: AttemptTime | None = None,
    is_free: bool = False,
    is_injected: bool = False,
) -> Change:
    """Call the function and check its result.

    Args:
        run: The run whose current step this is.
        action: The step's action.
        context: The argument for its parameter ``context``.
        items: Receives the items of a streaming action.
        call: Calls the function elsewhere; None: it is called on the event loop.
        time: The time that the function may take, if that is limited and it is called elsewhere.
        is_free: Whether nothing around this call repeats it after a ``RetryLater``.
        is_injected: Whether the simulation, if the run is one, makes this very call.
    """
    if run.config.services.injection is not None and not is_injected:
        given: dict[str, Any] = {"context": context, "items": items, "time": time}
        return await _call_injected(run, action, call, is_free=is_free, **given)
    data = run.head[1]
    kwargs: dict[str, Any] = {}
    try:
        for name in action.fields:
            value = data[name]
            # `type() is` instead of `isinstance`: per field and child, and `Secret` is final.
            kwargs[name] = value.value if type(value) is Secret else value
    except KeyError as missing:
        raise missing_field(action, missing.args[0], data) from None
    if action.input_names:
        # Bound inputs win over those of the run, which other actions may take by that name. An
        # input that neither has is left to the parameter's default; one without a default was
        # refused before the run began.
        inputs, bound = run.config.inputs, action.bound_inputs
        for name in action.input_names:
            if name in bound:
                kwargs[name] = bound[name]
            elif name in inputs:
                kwargs[name] = inputs[name]
    base = None
    if action.takes_state:
        # Kept until the function returns: only a state made from this very object tells its
        # changes.
        base = make_state(data, action.access)
        kwargs["state"] = base
    if action.takes_context and call is None:
        kwargs["context"] = context
    later: RetryLater | None = None
    result: object = None
    try:
        if call is not None:
            # A worker learns of its cancellation when it emits the next item.
            on_cancelled = None if items is None else items.stop
            result = await call.call(
                action.job,
                kwargs,
                abandon=action.abandon,
                alone=run.retries is not None and run.retries.needs_own_worker,
                context=context,
                items=items,
                on_cancelled=on_cancelled,
                time=time,
            )
        elif action.is_async:
            result = await cast("Any", action.function(**kwargs))
        elif action.is_streaming:
            assert items is not None
            result = await stream(cast("Any", action.function(**kwargs)), items)
        else:
            result = action.function(**kwargs)
    except RetryLater as error:
        if not is_free:
            raise
        later = error
    # Outside of `except`, so that failures of the repetitions get no `__context__` from the first.
    if later is not None:
        # An action without limits or retry has nothing around this call that could repeat it.
        return await call_admitted(run, action, later=later)
    if call is not None:
        if base is not None:
            return cast("Change", result)  # worked out where the function ran
        return written(action, result)
    if action.is_plain:
        refuse_awaitable(result, f"action {action.name!r}")
    return checked_result(action, base, result)


async def _call_injected(
    run: Run, action: FunctionAction[..., object], call: Call | None, *, is_free: bool, **given: Any
) -> Change:
    """Have the simulation make the call, which passes on to ``_call`` what it is told to call."""
    injection = run.config.services.injection
    assert injection is not None, "the caller has looked"
    # In a simulation, functions for threads are called on the loop: what happens in which order is
    # then decided by the seed alone. Those that use their context need the thread.
    if isinstance(call, ThreadCall) and not action.takes_context:
        call = None
    made = partial(_call, run, action, call=call, is_injected=True, **given)
    later: RetryLater | None = None
    try:
        return await injection.call(run, action, made, given["context"])
    except RetryLater as error:
        if not is_free:
            raise
        later = error
    return await call_admitted(run, action, later=later)
