"""One step of a function action: bind, call, check, maybe again. Imports runs and attempts; anyio.

Invariants:
- An action's function gets exactly what its parameters name, and what it returns is checked against
  its declared writes before anybody sees it.
- An attempt holds its slots exactly while the function runs, on every way out; also where that is a
  thread which nobody waits for any more.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from types import AsyncGeneratorType, CoroutineType
from typing import Any, NoReturn, cast

from anyio.lowlevel import checkpoint_if_cancelled

from shoal._concurrency.cancellation import (
    absorb_stray_cancel,
    as_failure,
    cancelled,
    ki_protected,
    ki_unprotected,
)
from shoal._concurrency.worker_threads import Thread
from shoal._errors.exceptions import (
    BadResult,
    Halting,
    MissingField,
    RetryLater,
    UndeclaredWrite,
    brief,
    kind_of,
    note,
)
from shoal._graph.action import FunctionAction, Result
from shoal._limits.permits import Seat
from shoal._state.secrets import Secret
from shoal._state.state import NO_CHANGE, Change, Set, change_between, make_state, refuse_awaitable

from .attempts import try_step, within
from .commit import SAVE, commit
from .crash_suspects import Suspects
from .permits import pause_keys, take_permit, wait_for_later, wait_turn_without_slot
from .publish import publish_grace_exceeded, publish_waiting
from .questions import halting_attempt, is_blocked
from .result_cache import lookup, result_key, store_result
from .run import Run
from .streaming import Items, stream

logger = logging.getLogger("shoal")

LATER = 10
"""``RetryLater`` in a row that fail an action."""


def call_action(run: Run, action: FunctionAction[..., object]) -> Awaitable[Change]:
    """Execute ``action`` on the state of ``run``, as its current step, and return what it changed.

    It starts when the limits that apply let it. A cancellation goes straight to the function; one
    that runs in a thread is waited for, as long as the grace. If it fails, it is executed again
    as its ``retry`` has it; meanwhile it holds nothing.

    Raises:
        MissingField: A field that it reads is not there.
        BadResult: It returned what its declaration doesn't allow.
        IncompleteStream: It streams, and did not end with its only ``Result``.
        Halting: It waits for an answer.
    """
    return _execute(run, action) if action.cache is None else _look_up_or_execute(run, action)


async def _look_up_or_execute(run: Run, action: FunctionAction[..., object]) -> Change:
    """Take what is stored of ``action``; else execute it, which has it stored."""
    retries = run.retry_state()
    retries.result_key, retries.is_cached = result_key(action, run.head[1]), False
    change = await lookup(run, action)
    return await _execute(run, action) if change is None else change


def _execute(run: Run, action: FunctionAction[..., object]) -> Awaitable[Change]:
    setting = run.setting
    if action.takes_context and run.questions is not None and is_blocked(run):
        return _halt(run)
    if setting.execution.suspects is not None and setting.keeps:
        return _call_suspect(run, action, setting.execution.suspects)
    return _call_tried(run, action)


async def _halt(run: Run) -> Change:
    raise Halting(f"run {run.path.id} waits for answers")


async def _call_suspect(
    run: Run, action: FunctionAction[..., object], suspects: Suspects
) -> Change:
    """Execute it, and have that saved before: a process has died, and may do so again."""
    retries = run.retry_state()
    before = retries.crashes - retries.is_suspect
    turn = suspects.wait_turn(retries, before)
    if suspects.is_free(before):
        await turn
    else:  # the child that is at work may wait for just what this one holds
        permits = run.permits
        if permits is not None and permits.seat is not None:
            permits.seat.cancel()
            permits.seat = None
        await wait_turn_without_slot(run, turn)
    try:
        if not retries.is_suspect:
            retries.crashes, retries.is_suspect = retries.crashes + 1, True
            await commit(run, SAVE)
        return await _call_tried(run, action)
    finally:
        suspects.leave(retries)


async def pass_blame(run: Run) -> None:
    """Count crashes against ``run`` no more: its own children do the work, and are counted."""
    retries, suspects = run.retries, run.setting.execution.suspects
    if suspects is None or retries is None or not retries.is_suspect:
        return
    suspects.leave(retries)
    retries.clear_crashes(retries.crashes - 1)
    await commit(run, SAVE)


def _call_tried(run: Run, action: FunctionAction[..., object]) -> Awaitable[Change]:
    """Make attempts as ``retry`` and limits have it: most actions have neither."""
    if action.retry is not None:
        return try_step(run, action.retry, partial(_call_seated, run, action))
    if run.setting.scopes or action.is_governed:
        return _call_seated(run, action)
    return _call(run, action, is_free=True)


@ki_protected
async def _call_seated(
    run: Run,
    action: FunctionAction[..., object],
    on_admitted: Callable[[], None] | None = None,
    later: RetryLater | None = None,
) -> Change:
    """Make one attempt; again, as long as it asks to be tried later.

    Args:
        run: Whose current step it is.
        action: What to execute.
        on_admitted: Called when the attempt begins.
        later: What it has asked for already.
    """
    asked = 0
    paused: list[bool] = [] if later is None else [pause_keys(run, later.after, None)]
    while True:
        if later is not None:
            asked += 1
            await absorb_stray_cancel(run.setting.services.native_cancels)
            await wait_for_later(run, later.after, is_paused=paused.pop())
            later = None
        seat = take_permit(run, action)
        try:
            return await _attempt(run, action, seat, on_admitted, paused)
        except RetryLater as error:
            if asked + 1 >= LATER or not paused or run.setting.execution.is_doomed or cancelled():
                note(error, f"shoal: asked for it {asked + 1} times in a row")
                raise
            later = error
        on_admitted = None  # it is the same attempt still


@ki_protected
async def _attempt(
    run: Run,
    action: FunctionAction[..., object],
    seat: Seat | None,
    on_admitted: Callable[[], None] | None,
    paused: list[bool],
) -> Change:
    """Make one attempt, in its slots, its thread and its time. One that never began paid nothing.

    If it asks to be tried later, its keys are paused before it gives back its slots, and ``paused``
    says whether it has any. What adapts its limits is told how it ended, and may fail it.
    """
    services = run.setting.services
    thread: Thread | None = None
    failure: BaseException | None = None
    begun = False
    try:
        if seat is not None and not seat.granted:
            await publish_waiting(run, seat)
            await seat.wait()
            await checkpoint_if_cancelled()  # in the tick of the grant, or while hooks were told
            if action.cache is not None:  # somebody may have come to it meanwhile
                recalled = await lookup(run, action)
                if recalled is not None:
                    return recalled
        begun = True
        if action.in_thread:
            thread = services.threads.turn()
        if on_admitted is not None:
            on_admitted()
        if action.takes_context or action.is_streaming:
            make_context = partial(services.context, run, action, seat)
            attempt = partial(_call_emitting, run, action, make_context, thread=thread)
        else:
            attempt = partial(_call, run, action, thread=thread)
        timed: Callable[[], Awaitable[Change]] = attempt
        if action.timeout is not None:
            what = partial(_what, run, action.name)
            timed = partial(within, action.timeout, attempt, run, what=what)
        if action.takes_context:
            return await halting_attempt(run, timed)
        if action.cache is not None:  # while it has its seat: whoever has it next looks again
            return await store_result(run, action, await timed(), action.cache)
        return await timed()
    except BaseException as error:
        failure = error
        if isinstance(error, RetryLater):
            paused.append(pause_keys(run, error.after, seat))
        raise
    finally:
        try:
            # What waits for a person says nothing of whoever the limit protects.
            if seat is not None and begun and seat.since is not None and not run.is_halting:
                _adapt(run, seat, failure)
        finally:  # whatever the user's policy does, see test_a_policy_that_raises_fails_the_attempt
            failure = None  # no cycle from the exception through its traceback to this frame
            if seat is not None and thread is not None:
                await _leave_thread(run, thread, seat)
            elif seat is not None and begun:
                seat.leave()
            elif seat is not None:
                seat.cancel()


@ki_protected
def _adapt(run: Run, seat: Seat, failure: BaseException | None) -> None:
    """Tell what adapts limits how an attempt ended.

    Raises:
        Exception: What a user's policy raised. That is never instead of a cancellation, or of what
            else must travel on.
    """
    try:
        run.setting.services.admission.adapt(seat, failure)
    except Exception:
        if failure is None or as_failure(failure) is not None:
            raise
        # Only told: the cancellation, or what else it is, is under way and must travel on.
        logger.exception("adapt= of a limit, told of the end of run %s", run.path.id)


@ki_protected
async def _leave_thread(run: Run, thread: Thread, seat: Seat) -> None:
    """Leave the seat as soon as the function has returned, and don't wait for that."""
    try:
        if thread.is_running:  # nobody waits for it any more
            await publish_grace_exceeded(run, thread.place, thread.grace, abandoned=True)
    finally:
        thread.leave(seat.leave)


@ki_protected
async def _call_emitting(
    run: Run,
    action: FunctionAction[..., object],
    make_context: Callable[[Items], object],
    *,
    thread: Thread | None,
) -> Change:
    """Make an attempt that may give partial items."""
    items = Items(run, action.name, run.attempt)
    context = make_context(items) if action.takes_context else None
    try:
        return await _call(run, action, context=context, items=items, thread=thread)
    finally:
        being_told = items.end()
        if being_told is not None:
            await being_told


def _what(run: Run, name: str) -> str:
    path = run.path
    key = "" if path.parent is None else f" (key {brief(path.key)} of {path.step!r})"
    return f"action {name!r} of run {path.id}{key}"


@ki_unprotected
async def _call(
    run: Run,
    action: FunctionAction[..., object],
    *,
    context: object = None,
    items: Items | None = None,
    thread: Thread | None = None,
    is_free: bool = False,
) -> Change:
    """Call the function, and check what it returns; ``is_free``: nothing limits it so far."""
    data = run.head[1]
    kwargs: dict[str, Any] = {}
    try:
        for name in action.fields:
            value = data[name]
            kwargs[name] = value.value if type(value) is Secret else value
    except KeyError as missing:
        raise _missing(action, missing.args[0], data) from None
    if action.input_names:
        inputs, bound = run.setting.inputs, action.bound
        for name in action.input_names:
            if name in inputs:
                kwargs[name] = inputs[name]
            elif name in bound:
                kwargs[name] = bound[name]
    base = None
    if action.takes_state:
        base = make_state(data, action.permit)
        kwargs["state"] = base
    if action.takes_context:
        kwargs["context"] = context
    later: RetryLater | None = None
    result: object = None
    try:
        if action.is_async:
            result = await cast("Any", action.function(**kwargs))
        elif action.is_streaming:
            assert items is not None
            result = await stream(cast("Any", action.function(**kwargs)), items)
        elif thread is not None:
            on_cancelled = None if items is None else items.stop
            result = await thread.call(
                action.function, kwargs, abandon=action.abandon, on_cancelled=on_cancelled
            )
        else:
            result = action.function(**kwargs)
    except RetryLater as error:
        if not is_free:
            raise
        later = error
    if later is not None:
        return await _call_seated(run, action, later=later)
    if not (action.is_async or action.is_streaming):
        refuse_awaitable(result, f"action {action.name!r}")
    if isinstance(result, _MISTAKES):
        _refuse_mistake(action, cast("object", result))
    if base is not None:
        return change_between(base, result, f"action {action.name!r}")
    field = action.only_write
    if field is not None:
        return Change((Set(field, result),), {field: result})
    return _writes(action, result)


def _missing(
    action: FunctionAction[..., object], field: str, data: Mapping[str, object]
) -> MissingField:
    msg = (
        f"action {action.name!r} reads field {field!r}, which the state does not have "
        f"(it has: {', '.join(sorted(data)) or 'none'}); "
        f"pass it to run(), or write it in an earlier action"
    )
    return MissingField(msg)


_MISTAKES = (CoroutineType, AsyncGeneratorType, Result)
"""What nobody means to write to a state."""


def _refuse_mistake(action: FunctionAction[..., object], result: object) -> NoReturn:
    who = f"action {action.name!r}"
    if isinstance(result, CoroutineType):
        coroutine = cast("CoroutineType[Any, Any, Any]", result)
        coroutine.close()
        msg = f"{who} returned a coroutine that nobody awaited: await {coroutine.__qualname__}(...)"
    elif isinstance(result, Result):
        msg = (
            f"{who} returned a Result, which is what a streaming action yields last, and no other: "
            f"return the value itself"
        )
    else:
        msg = (
            f"{who} returned an async generator; to stream, it has to be an async generator "
            f"function itself, which yields each item and, as the last thing, Result(value)"
        )
    raise BadResult(msg)


def _writes(action: FunctionAction[..., object], result: object) -> Change:
    """Check the result of an action that writes no field, or several."""
    name = action.name
    if not action.writes:
        if result is not None:
            msg = (
                f"action {name!r} declares no writes and returned {kind_of(result)}; "
                f"declare writes=[...] or return None"
            )
            raise BadResult(msg)
        return NO_CHANGE
    expected = ", ".join(sorted(action.writes))
    if not isinstance(result, Mapping):
        msg = (
            f"action {name!r} writes several fields, so it returns a mapping of them "
            f"({expected}), not {kind_of(result)}"
        )
        raise BadResult(msg)
    values = dict(cast("Mapping[str, object]", result))
    extra = ", ".join(sorted(map(str, values.keys() - action.writes)))
    if extra:
        msg = (
            f"action {name!r} returned a value for {extra}, which it does not declare; "
            f"add it to writes=[...] (declared: {expected})"
        )
        raise UndeclaredWrite(msg)
    missing = ", ".join(sorted(action.writes - values.keys()))
    if missing:
        msg = (
            f"action {name!r} returned no value for {missing}, which it declares to write; "
            f"to write only some of its fields, take `state` and return state.update(...)"
        )
        raise BadResult(msg)
    for value in values.values():
        if isinstance(value, _MISTAKES):
            _refuse_mistake(action, cast("object", value))
    return Change(tuple(Set(field, value) for field, value in values.items()), values)
